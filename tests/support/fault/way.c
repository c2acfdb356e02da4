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
    (void)ipc_subscription_receive(pair->subscription, &byte, 1, NULL, 0);
    take_events(walk, walk->in);
    take_events(walk, walk->out);
    if (walk->way->lasting && slice >= SLICES)
        fault_disarm();
    return !pair->lost;
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
        if (!publish(walk, pair, number) || !receive(walk, pair, number))
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

unsigned way_walk(const struct way *way)
{
    struct walk walk = {.way = way,
                        .exact = {.topic = "way.exact", .pattern = "way.exact", .fd = -1},
                        .wild = {.topic = "way.wild.a", .pattern = "way.wild.*", .fd = -1}};
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
