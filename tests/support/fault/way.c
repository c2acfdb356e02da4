/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fault/way.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/broker.h"
#include "tests/support/fault/fault.h"

#define MESSAGES 8u
#define SLICE_NS INT64_C(2000000)
#define SLICES   10u /* of patience with a fault that lasts */

struct pair {
    const char *topic, *pattern;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    bool lost; /* an event told that the two were parted */
    int fd;
};

struct walk {
    const struct way *way;
    ipc_connection *out, *in;
    struct pair exact, wild;
    unsigned failed;
};

/* A step that may fail, but then with a reason. */
static bool did(struct walk *walk, int result, const struct ipc_error *error)
{
    if (result >= 0)
        return true;
    if (error) {
        EXPECT_EQ(error->code, result);
        EXPECT(error->text[0] != '\0');
    }
    walk->failed++;
    return false;
}

static void take_events(struct walk *walk, ipc_connection *connection)
{
    struct ipc_event event;
    int result;
    while (connection && (result = ipc_connection_next_event(connection, &event)) != 0) {
        if (result < 0) { /* no room for it: it may have been any */
            walk->exact.lost = walk->wild.lost = true;
            continue;
        }
        bool left = event.kind == IPC_EVENT_WRITER_LEFT || event.kind == IPC_EVENT_READER_LEFT;
        walk->exact.lost |= left && strcmp(event.topic, walk->exact.topic) == 0;
        walk->wild.lost |= left && strcmp(event.topic, walk->wild.topic) == 0;
    }
}

/* What a step that waits does when a slice of time has passed. Returns false if it is not to wait any longer. */
static bool patient(struct walk *walk, const struct pair *pair, unsigned slice)
{
    char byte; /* a lane that was left is dropped, and told about, by looking for messages */
    bool over = ipc_subscription_receive(pair->subscription, &byte, 1, NULL, 0) == -EPIPE;
    take_events(walk, walk->in);
    take_events(walk, walk->out);
    if (walk->way->lasting && slice >= SLICES)
        fault_disarm();
    return !pair->lost && !over;
}

static bool meet(struct walk *walk, struct pair *pair)
{
    for (unsigned slice = 0;; slice++) {
        int readers = ipc_publisher_wait_readers(pair->publisher, 1, SLICE_NS);
        int writers = readers < 0 ? readers : ipc_subscription_wait_writers(pair->subscription, 1, SLICE_NS);
        if (readers >= 1 && writers >= 1)
            return true;
        int result = readers < 0 ? readers : writers;
        if ((result != -ETIMEDOUT && result != 0) || !patient(walk, pair, slice))
            return did(walk, result < 0 ? result : -ENOLINK, NULL);
    }
}

static bool publish(struct walk *walk, const struct pair *pair, uint64_t number)
{
    const struct ipc_header header = {"number", &number, sizeof(number)};
    struct ipc_publish how = IPC_PUBLISH_INIT;
    unsigned char message[64];
    message_fill(message, sizeof(message), number);
    how.content_type = "application/octet-stream";
    how.headers = &header;
    how.header_count = 1;
    return did(walk,
               ipc_publisher_publishv(pair->publisher, &(struct iovec){message, sizeof(message)}, 1, &how),
               NULL);
}

/* Wait on the lane, or through the descriptor if there is one, and look at what came. */
static bool receive(struct walk *walk, const struct pair *pair, uint64_t number)
{
    for (unsigned slice = 0;; slice++) {
        unsigned char message[64];
        struct ipc_message about;
        struct pollfd wait = {.fd = pair->fd, .events = POLLIN};
        bool held = pair->fd < 0 && number % 2;
        ssize_t size;
        if (held) {
            size = ipc_subscription_take(pair->subscription, &about, 1, SLICE_NS);
            if (size == 1) {
                size = (ssize_t)about.size;
                memcpy(message, about.data, sizeof(message));
            }
        } else {
            size = ipc_subscription_receive(pair->subscription, message, sizeof(message), &about,
                                            pair->fd < 0 ? SLICE_NS : 0);
        }
        if (size >= 0) {
            const void *value;
            size_t value_size;
            EXPECT_EQ(size, sizeof(message));
            EXPECT(message_holds(message, sizeof(message), number));
            EXPECT_EQ(about.lost, 0);
            EXPECT_EQ(ipc_message_header(&about, "number", &value, &value_size), 0);
            EXPECT(value_size == sizeof(number) && memcmp(value, &number, sizeof(number)) == 0);
            return !held || did(walk, ipc_subscription_release(pair->subscription, 1), NULL);
        }
        if ((size != -ETIMEDOUT && size != -EAGAIN) || !patient(walk, pair, slice))
            return did(walk, size == -EAGAIN || size == -ETIMEDOUT ? -ENOLINK : (int)size, NULL);
        fault_spared++;
        if (pair->fd >= 0) /* what was published by now keeps it readable, whatever is lacking */
            EXPECT(poll(&wait, 1, -1) == 1);
        fault_spared--;
    }
}

static bool again(const struct walk *walk, ssize_t result, unsigned *slice)
{
    if (++*slice >= SLICES && walk->way->lasting)
        fault_disarm();
    return result == -ETIMEDOUT || result == -ETIME || result == -EAGAIN;
}

/* Nobody looks meanwhile: it is the bell that makes it readable. */
static void wait_readable(struct walk *walk, int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    unsigned slice = 0;
    fault_spared++;
    while (poll(&wait, 1, SLICE_NS / 1000000) == 0)
        (void)again(walk, 0, &slice);
    fault_spared--;
}

static void exchange(struct walk *walk, const struct pair *pair)
{
    for (uint64_t number = 0; number < MESSAGES; number++)
        if (!publish(walk, pair, number) || !receive(walk, pair, number))
            return;
    if (pair->fd < 0)
        return;
    /* Nothing there: the descriptor gets low, and a bell makes it readable again. */
    for (uint64_t number = MESSAGES; number < 2 * MESSAGES; number++) {
        unsigned char byte;
        ssize_t nothing = ipc_subscription_receive(pair->subscription, &byte, 1, NULL, 0);
        if (nothing != -EAGAIN) {
            did(walk, (int)nothing, NULL);
            return;
        }
        if (!publish(walk, pair, number))
            return;
        /* A bell that is refused for longer waits for the next publish. */
        if (atomic_load(&fault->kind) == FAULT_SEND && !walk->way->lasting)
            wait_readable(walk, pair->fd);
        if (!receive(walk, pair, number))
            return;
    }
}

static ipc_connection *open_connection(struct walk *walk, const char *name)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_connection *connection = NULL;
    options.name = name;
    options.timeout_ns = walk->way->lasting ? SECONDS(1) / 5 : SECONDS(120);
    did(walk, ipc_connection_open(&connection, NULL, &options, &error), &error);
    return connection;
}

static void open_pair(struct walk *walk, struct pair *pair, enum ipc_start start, bool descriptor)
{
    struct ipc_subscription_options reading = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_publisher_options writing = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error = {0};
    reading.start = start;
    reading.slow = IPC_SLOW_BLOCK;
    writing.ring_size = walk->way->ring_size;
    writing.block_max_ns = IPC_FOREVER;
    if (walk->in)
        did(walk, ipc_subscription_open(&pair->subscription, walk->in, pair->pattern, &reading, &error),
            &error);
    if (walk->out)
        did(walk, ipc_publisher_open(&pair->publisher, walk->out, pair->topic, &writing, &error), &error);
    if (!pair->subscription || !descriptor)
        return;
    pair->fd = ipc_subscription_fd(pair->subscription);
    did(walk, pair->fd, NULL);
    did(walk, ipc_connection_fd(walk->in), NULL);
}

static void use_pair(struct walk *walk, struct pair *pair)
{
    if (pair->publisher && pair->subscription && meet(walk, pair))
        exchange(walk, pair);
}

/* ---- queues, services, segments ------------------------------------------------------------------------------- */

#define QUEUE "way.queue"

struct delivery {
    bool confirmed, acked;
};

/* result = call, in slices of time. */
#define PATIENTLY(walk, result, call)       \
 do {                                       \
  unsigned slice_ = 0;                      \
  do                                        \
   (result) = (call);                       \
  while (again((walk), (result), &slice_)); \
 } while (0)

static bool send_one(struct walk *walk, ipc_producer *producer, int fd, uint64_t number,
                     struct delivery *delivery)
{
    unsigned char message[64];
    struct ipc_error error = {0};
    uint64_t ticket;
    int result;
    message_fill(message, sizeof(message), number);
    PATIENTLY(walk, result, ipc_producer_send(producer, message, sizeof(message), SLICE_NS, &ticket));
    if (!did(walk, result, NULL))
        return false;
    while (fd >= 0 && ipc_producer_dispatch(producer) == 0 && ipc_producer_confirmed(producer) < ticket)
        wait_readable(walk, fd);
    PATIENTLY(walk, result, ipc_producer_confirm(producer, ticket, SLICE_NS, &error));
    delivery->confirmed = result == 0;
    return did(walk, result, &error);
}

/* Returns the number of what came, or a negative errno. */
static int64_t receive_one(ipc_consumer *consumer, struct ipc_queue_message *about, int64_t timeout_ns)
{
    unsigned char message[64];
    uint64_t number;
    ssize_t size = ipc_consumer_receive(consumer, message, sizeof(message), about, timeout_ns);
    if (size < 0)
        return size;
    EXPECT_EQ(size, sizeof(message));
    memcpy(&number, message, sizeof(number));
    EXPECT(number < MESSAGES && message_holds(message, sizeof(message), number));
    return (int64_t)number;
}

/* It has taken all that there is, and waits by its descriptor. */
static bool quiet(struct walk *walk, ipc_consumer *consumer)
{
    struct ipc_queue_message about;
    int64_t got;
    do
        got = receive_one(consumer, &about, 0);
    while (got >= 0);
    return got == -EAGAIN || did(walk, (int)got, NULL);
}

static void use_queue(struct walk *walk, struct delivery *deliveries)
{
    struct ipc_error error = {0};
    struct ipc_queue_message about;
    ipc_producer *producer = NULL;
    ipc_consumer *consumer = NULL;
    int producer_fd = -1, consumer_fd = -1;
    bool good = did(walk, ipc_queue_create(walk->out, QUEUE, NULL, 0, &error), &error) &&
                did(walk, ipc_producer_open(&producer, walk->out, QUEUE, NULL, &error), &error) &&
                did(walk, ipc_consumer_open(&consumer, walk->in, QUEUE, NULL, &error), &error);
    for (uint64_t number = 0; good && number < MESSAGES; number++) {
        int64_t got;
        if (number == MESSAGES / 2) { /* from here on by bells */
            producer_fd = ipc_producer_fd(producer);
            consumer_fd = ipc_consumer_fd(consumer);
            good = did(walk, producer_fd, NULL) && did(walk, consumer_fd, NULL);
        }
        good = good && (consumer_fd < 0 || quiet(walk, consumer)) &&
               send_one(walk, producer, producer_fd, number, &deliveries[number]);
        if (!good || number % 2) /* every other one is left to whoever comes next */
            continue;
        if (consumer_fd >= 0)
            wait_readable(walk, consumer_fd);
        do {
            PATIENTLY(walk, got, receive_one(consumer, &about, SLICE_NS));
        } while (got >= 0 && (uint64_t)got != number);
        good = did(walk, (int)got, NULL) && did(walk, ipc_consumer_ack(consumer, about.delivery), NULL);
        deliveries[number].acked = good;
    }
    if (good) {
        int result;
        PATIENTLY(walk, result, ipc_consumer_flush(consumer, SLICE_NS));
        did(walk, result, NULL);
    }
    ipc_consumer_close(consumer);
    ipc_producer_close(producer);
}

/* With no fault any more: what was confirmed is there, unless it was acknowledged; then the queue goes. */
static void take_rest(const struct delivery *deliveries)
{
    bool seen[MESSAGES] = {false};
    ipc_connection *connection = connection_new();
    ipc_consumer *consumer = NULL;
    int result = ipc_consumer_open(&consumer, connection, QUEUE, NULL, NULL);
    for (unsigned number = 0; number < MESSAGES; number++) {
        while (deliveries[number].confirmed && !deliveries[number].acked && !seen[number]) {
            struct ipc_queue_message about;
            EXPECT_EQ(result, 0);
            int64_t got = receive_one(consumer, &about, IPC_FOREVER);
            EXPECT(got >= 0);
            seen[got] = true;
        }
    }
    ipc_consumer_close(consumer);
    EXPECT_EQ(ipc_queue_remove(connection, QUEUE, 0, NULL), result);
    ipc_connection_close(connection);
}

static void use_service(struct walk *walk)
{
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_error error = {0};
    struct ipc_request *request;
    struct ipc_reply reply = {0};
    ipc_server *server = NULL;
    ipc_client *client = NULL;
    ipc_call *call = NULL;
    uint64_t question = 7;
    unsigned slice = 0;
    int result;
    how.flags = IPC_CALL_WAIT;
    how.timeout_ns = walk->way->lasting ? SECONDS(1) / 5 : SECONDS(120);
    if (did(walk, ipc_server_open(&server, walk->in, "way.service", NULL, &error), &error) &&
        did(walk, ipc_client_open(&client, walk->out, "way.service", NULL, &error), &error) &&
        did(walk, ipc_call_start(&call, client, &question, sizeof(question), &how), NULL)) {
        bool answered = false;
        do {
            ssize_t size = ipc_server_receive(server, NULL, 0, &request, SLICE_NS);
            if (size >= 0) {
                EXPECT(size == sizeof(question) && memcmp(request->data, &question, sizeof(question)) == 0);
                answered = did(walk, ipc_request_reply(request, &question, sizeof(question), NULL), NULL);
            }
            if (size == -EPIPE && !did(walk, -EPIPE, NULL)) /* the call would wait for another server */
                ipc_call_cancel(call);
            result = ipc_call_wait(call, 0);
        } while (again(walk, result, &slice));
        result = ipc_call_next(call, &reply, 0);
        if (did(walk, result, NULL))
            EXPECT(result == 1 && answered && reply.size == sizeof(question) &&
                   memcmp(reply.data, &question, sizeof(question)) == 0);
    }
    ipc_call_free(call);
    ipc_client_close(client);
    ipc_server_close(server);
}

static void use_segment(struct walk *walk)
{
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_segment *made = NULL, *found = NULL;
    int permit;
    options.bytes = walk->way->ring_size;
    options.flags = IPC_SEGMENT_CREATE;
    if (did(walk, ipc_segment_open(&made, walk->out, "way.segment", &options, &error), &error) &&
        did(walk, ipc_segment_open(&found, walk->in, "way.segment", NULL, &error), &error)) {
        unsigned char *bytes = ipc_segment_data(made), *same = ipc_segment_data(found);
        size_t last = ipc_segment_size(found) - 1;
        EXPECT(ipc_segment_created(made) && !ipc_segment_created(found) && same[last] == 0);
        PATIENTLY(walk, permit, ipc_segment_acquire(made, SLICE_NS));
        if (did(walk, permit, NULL)) {
            bytes[last] = 1;
            EXPECT_EQ(ipc_segment_acquire(found, 0), -EAGAIN);
            EXPECT_EQ(ipc_segment_release(made, permit), 0);
            EXPECT_EQ(same[last], 1);
        }
    }
    ipc_segment_close(found);
    ipc_segment_close(made);
}

static unsigned walk_tasks(const struct way *way)
{
    struct walk walk = {.way = way};
    struct delivery deliveries[MESSAGES] = {{false, false}};
    walk.out = open_connection(&walk, "out");
    walk.in = open_connection(&walk, "in");
    if (walk.out && walk.in) {
        use_queue(&walk, deliveries);
        use_service(&walk);
        use_segment(&walk);
    }
    ipc_connection_close(walk.out);
    ipc_connection_close(walk.in);
    if (walk.out && walk.in) {
        fault_disarm();
        take_rest(deliveries);
    }
    return walk.failed;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

unsigned way_walk(const struct way *way)
{
    struct walk walk = {.way = way,
                        .exact = {.topic = "way.exact", .pattern = "way.exact", .fd = -1},
                        .wild = {.topic = "way.wild.a", .pattern = "way.wild.*", .fd = -1}};
    if (way->tasks)
        return walk_tasks(way);
    walk.out = open_connection(&walk, "out");
    walk.in = open_connection(&walk, "in");
    open_pair(&walk, &walk.wild, IPC_START_NEXT, true);
    open_pair(&walk, &walk.exact, IPC_START_OLDEST, false);
    use_pair(&walk, &walk.exact);
    use_pair(&walk, &walk.wild);
    ipc_publisher_close(walk.wild.publisher);
    ipc_subscription_close(walk.exact.subscription);
    ipc_connection_close(walk.out);
    take_events(&walk, walk.in);
    ipc_connection_close(walk.in);
    return walk.failed;
}

void way_walk_clean(uint32_t ring_size)
{
    const struct way way = {.ring_size = ring_size};
    EXPECT_EQ(way_walk(&way), 0);
}
