/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that writes at random over everything that it can write: its lanes (header, control words, slots, ring) and
 * the cells of its subscriptions, while honest peers read from those lanes and publish to those cells, and a pair of
 * another user exchanges messages beside it. First with each being another user, then all being one.
 *
 * test_scribble [WRITES [SEED]]; a failure is found again by its seed, as far as the timing of processes allows.
 */
#include "tests/support/hostile.h"

#include <sched.h>

#include "libipc/lane/wait.h"

#define WRITES_DEFAULT    100000000u /* over all runs */
#define LANES             3u
#define RING              65536u
#define WRITES_PER_ROUND  400000u
#define WRITES_PER_LOOK   20000u
#define WRITES_PER_LIE    200u
#define CALM_MESSAGES_MAX (1u << 16)
#define CALM_PAUSE_NS     200000

struct shared {
    _Atomic bool stop;
    _Atomic uint64_t writes, rounds, read, corrupt_lanes, corrupt_readers, published, sum;
    _Atomic uint32_t calm_count;
    uint32_t calm_ns[CALM_MESSAGES_MAX];
};
static struct shared *shared;
static uint64_t seed;
static bool attacks; /* false: the same work on private memory, to compare with */

/* The innocent pair on a processor of its own, if there are two: what is measured is what the attack does to it, not
 * that there are more programs than processors. */
static void run_on(bool calm)
{
    cpu_set_t set;
    int last = (int)sysconf(_SC_NPROCESSORS_ONLN) - 1;
    CPU_ZERO(&set);
    for (int i = 0; i <= last; i++)
        if (last == 0 || calm == (i == last))
            CPU_SET(i, &set);
    (void)sched_setaffinity(0, sizeof(set), &set);
}

/* ---- the attacker ---------------------------------------------------------------------------------------- */

/* One session of the attacker. */
static struct {
    struct raw_client client;
    struct held_lane lanes[LANES];
    unsigned n_lanes, n_areas;
    struct ipc_cells *cells;
    uint64_t pairings[IPC_CELLS_PER_SEGMENT];
    struct hostile_area areas[LANES + 2];
} own;

static void on_lane_add(const Ipc__Control__LaneAdd *add)
{
    if (add->cells_new && !own.cells) {
        void *map;
        EXPECT_EQ(lane_segment_map(&map, own.client.fds[1], IPC_SEGMENT_CELLS, 0, true), 0);
        own.cells = map;
        own.areas[own.n_areas++] = (struct hostile_area){map, sizeof(struct ipc_cells), RING};
        /* What is used of it most: the first cells, again and again. */
        own.areas[own.n_areas++] =
            (struct hostile_area){(unsigned char *)own.cells->cells, 4 * sizeof(struct ipc_cell), RING};
    }
    own.pairings[add->cell % IPC_CELLS_PER_SEGMENT] = add->pairing;
    raw_confirm(&own.client, TYPE(LANE_ADD), add->pairing, 0);
}

static void on_reader_add(const Ipc__Control__ReaderAdd *add)
{
    for (unsigned i = 0; i < own.n_lanes; i++)
        if (own.lanes[i].id == add->lane)
            atomic_store(&own.lanes[i].lane->slots[add->slot % IPC_LANE_SLOTS].start, 1);
    raw_confirm(&own.client, TYPE(READER_ADD), add->pairing, 0);
}

/* Without its owner a cell says nothing to its writer: the lies shall be heard. */
static void own_cells(void)
{
    for (unsigned i = 0; own.cells && i < IPC_CELLS_PER_SEGMENT; i++)
        if (own.pairings[i])
            atomic_store(&own.cells->cells[i].owner, own.pairings[i]);
}

/* Take what the core says, as a good client would: until that type (0: until there is no more). */
static void listen_until(int type)
{
    int got;
    while ((got = raw_recv(&own.client, type ? 0 : MSG_DONTWAIT)) != type) {
        const void *message = own.client.frame.message;
        EXPECT(got > 0); /* whatever is in its memory, its session lives */
        if (got == TYPE(LANE_ADD))
            on_lane_add(message);
        else if (got == TYPE(READER_ADD))
            on_reader_add(message);
        else if (got == TYPE(READER_DEL))
            raw_confirm(&own.client, TYPE(READER_DEL), ((const Ipc__Control__ReaderDel *)message)->pairing,
                        0);
        else if (got == TYPE(LANE_DEL))
            raw_confirm(&own.client, TYPE(LANE_DEL), ((const Ipc__Control__LaneDel *)message)->pairing, 0);
        else
            EXPECT_EQ(got, TYPE(NUDGE));
    }
}

/* Be a publisher and a reader as others are, long enough to be counted; then lie. */
static void attack_round(uint64_t *random, void *private_memory)
{
    const struct hostile_area private = {private_memory, IPC_LAYOUT_PAGE + RING, RING};
    char topic[32];
    memset(&own, 0, sizeof(own));
    raw_hello(&own.client, &hostile.raw, "scribbler");
    for (unsigned i = 0; i < LANES; i++) {
        struct held_lane *lane = &own.lanes[i];
        snprintf(topic, sizeof(topic), "scribble.%u", i);
        hostile_advertise(&own.client, topic, RING);
        listen_until(TYPE(ADVERTISED));
        held_lane_map(lane, &own.client);
        own.n_lanes++;
        own.areas[own.n_areas++] =
            (struct hostile_area){(unsigned char *)lane->lane, IPC_LAYOUT_PAGE + RING, RING};
        for (uint64_t k = 0; k < 200; k++)
            EXPECT_EQ(held_lane_publish(lane, k, 8 + (uint32_t)(k % 200)), 0);
    }
    for (unsigned i = 0; i < 3; i++) { /* each start, each way to be slow */
        Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;
        subscribe.pattern = (char *)(uintptr_t) "honest.*";
        subscribe.start = (Ipc__Control__Start)i;
        subscribe.slow = (Ipc__Control__Slow)i;
        raw_send(&own.client, TYPE(SUBSCRIBE), &subscribe.base);
        listen_until(TYPE(SUBSCRIBED));
    }
    for (unsigned done = 0; done < WRITES_PER_ROUND; done += WRITES_PER_LOOK) {
        listen_until(0);
        for (unsigned i = 0; i < WRITES_PER_LOOK / WRITES_PER_LIE; i++) {
            own_cells();
            hostile_scribble(attacks ? own.areas : &private, attacks ? own.n_areas : 1, WRITES_PER_LIE,
                             random);
        }
        atomic_fetch_add(&shared->writes, WRITES_PER_LOOK);
    }
    for (unsigned i = 0; i < LANES; i++)
        held_lane_close(&own.lanes[i]);
    lane_segment_unmap(own.cells, IPC_SEGMENT_CELLS, 0);
    raw_disconnect(&own.client);
    atomic_fetch_add(&shared->rounds, 1);
}

/* Itself, in both ways. How often depends on who runs when. */
static bool harmed(void)
{
    return atomic_load(&shared->corrupt_lanes) > 0 && atomic_load(&shared->corrupt_readers) > 0;
}

static void attack(void *writes)
{
    uint64_t random = seed;
    void *private_memory = calloc(1, IPC_LAYOUT_PAGE + RING);
    hostile_become(WHO_ATTACKER);
    EXPECT(private_memory != NULL);
    watchdog(600, "the attacker");
    while (atomic_load(&shared->writes) < *(uint64_t *)writes || (attacks && !harmed()))
        attack_round(&random, private_memory);
    free(private_memory);
}

/* ---- honest peers ---------------------------------------------------------------------------------------- */

/* Whatever it gets, it looks at all of it, as a program would: AddressSanitizer looks at each byte with it. */
static uint64_t look_at(const struct ipc_message *message)
{
    const unsigned char *bytes = message->data;
    size_t position = 0, name_size, value_size;
    const char *name;
    const void *bytes_of_value;
    uint64_t sum = message->content_type ? strlen(message->content_type) : 0;
    for (size_t i = 0; i < message->size; i++)
        sum += bytes[i];
    while (ipc_message_next_header(message, &position, &name, &name_size, &bytes_of_value, &value_size) > 0) {
        for (size_t i = 0; i < name_size; i++)
            sum += (unsigned char)name[i];
        for (size_t i = 0; i < value_size; i++)
            sum += ((const unsigned char *)bytes_of_value)[i];
    }
    return sum;
}

static void count_events(ipc_connection *connection)
{
    struct ipc_event event;
    int result;
    while ((result = ipc_connection_next_event(connection, &event)) != 0) {
        if (result < 0)
            continue;
        EXPECT(event.kind != IPC_EVENT_ENDED);
        if (event.kind == IPC_EVENT_WRITER_LEFT && event.reason == IPC_REASON_CORRUPT)
            atomic_fetch_add(&shared->corrupt_lanes, 1);
        if (event.kind == IPC_EVENT_READER_LEFT && event.reason == IPC_REASON_CORRUPT)
            atomic_fetch_add(&shared->corrupt_readers, 1);
    }
}

/* Reads what is scribbled over, in every way that there is. */
static void read_scribbles(void *argument)
{
    static unsigned char buffer[4 * RING];
    uint64_t sum = 0;
    struct ipc_message messages[16];
    (void)argument;
    hostile_become(WHO_PEER);
    watchdog(600, "the reader of scribbles");
    ipc_connection *connection = connection_new();
    ipc_subscription *subs[4];
    for (unsigned i = 0; i < 4; i++)
        subs[i] =
            subscription_new(connection, "scribble.*", (enum ipc_start)(i % 3), (enum ipc_slow)(i % 3), 0);
    EXPECT(ipc_subscription_fd(subs[3]) >= 0);
    for (unsigned i = 0; !atomic_load(&shared->stop); i++) {
        ipc_subscription *sub = subs[i % 4];
        int64_t timeout = i / 4 % 16 == 0 ? 100000 : 0;
        ssize_t n;
        if (i % 4 == 1 && i / 4 % 2) {
            n = ipc_subscription_take(sub, messages, 16, timeout);
            for (ssize_t k = 0; k < n; k++)
                sum += look_at(&messages[k]);
            if (n > 0)
                EXPECT_EQ(ipc_subscription_release(sub, (size_t)n), 0);
        } else if (i / 4 % 3 == 0) {
            n = ipc_subscription_receive_batch(sub, buffer, sizeof(buffer), messages, 16, timeout);
            for (ssize_t k = 0; k < n; k++)
                sum += look_at(&messages[k]);
        } else {
            n = ipc_subscription_receive(sub, buffer, sizeof(buffer), messages, timeout);
            if (n >= 0)
                sum += look_at(messages);
        }
        EXPECT(n >= 0 || n == -EAGAIN || n == -ETIMEDOUT);
        atomic_fetch_add(&shared->read, (uint64_t)(n > 0));
        count_events(connection);
    }
    atomic_store(&shared->sum, sum); /* of use only so that all of it is read */
    ipc_connection_close(connection);
}

/* Publishes to readers that scribble over their cursors, and to one that does not. */
static void publish_to_scribblers(void *argument)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    unsigned char buffer[256];
    ipc_publisher *publisher;
    struct ipc_message message;
    uint64_t number = 0, next = 0;
    (void)argument;
    hostile_become(WHO_PEER);
    watchdog(600, "the publisher to scribblers");
    ipc_connection *connection = connection_new(), *in = connection_new();
    options.ring_size = 16384;
    options.block_max_ns = 200000;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "honest.a", &options, NULL), 0);
    ipc_subscription *honest = subscription_new(in, "honest.*", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    EXPECT(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER) >= 1);
    EXPECT_EQ(ipc_subscription_wait_writers(honest, 1, IPC_FOREVER), 1);
    while (!atomic_load(&shared->stop)) {
        publish_numbers(publisher, number, number + 1, 8 + number % 200);
        number++;
        if (number % 8)
            continue;
        while (next <
               number) { /* every message, whole, in order, and none missing: it reads as it publishes */
            ssize_t size = ipc_subscription_receive(honest, buffer, sizeof(buffer), &message, IPC_FOREVER);
            EXPECT_EQ(size, 8 + next % 200);
            EXPECT(message_holds(buffer, (size_t)size, next));
            EXPECT_EQ(message.lost, 0);
            next++;
        }
        atomic_store(&shared->published, number);
        count_events(connection);
    }
    ipc_connection_close(in);
    ipc_connection_close(connection);
}

/* ---- the innocent pair ----------------------------------------------------------------------------------- */

static void calm_publish(void *argument)
{
    const struct timespec pause = {.tv_nsec = CALM_PAUSE_NS};
    unsigned char buffer[64];
    uint64_t number = 0;
    (void)argument;
    hostile_become(WHO_CALM);
    run_on(true);
    watchdog(600, "the innocent publisher");
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "calm", RING, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    while (!atomic_load(&shared->stop)) {
        uint64_t now = lane_now();
        message_fill(buffer, sizeof(buffer), number++);
        memcpy(buffer + 56, &now, 8);
        EXPECT_EQ(ipc_publisher_publish(publisher, buffer, sizeof(buffer)), 0);
        nanosleep(&pause, NULL); /* the pace of what is measured */
    }
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1); /* it leaves with the last message */
    EXPECT_EQ(ipc_publisher_publish(publisher, NULL, 0), 0);
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.detached + stats.overrun + stats.lost, 0);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void calm_receive(void *argument)
{
    unsigned char buffer[64];
    struct ipc_message message;
    struct ipc_event event;
    uint64_t number = 0, then;
    (void)argument;
    hostile_become(WHO_CALM);
    run_on(true);
    watchdog(600, "the innocent reader");
    ipc_connection *connection = connection_new();
    ipc_subscription *sub = subscription_new(connection, "calm", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    for (;;) {
        ssize_t size = ipc_subscription_receive(sub, buffer, sizeof(buffer), &message, IPC_FOREVER);
        EXPECT_EQ(message.lost, 0);
        EXPECT_EQ(message.sequence, number);
        if (size == 0)
            break;
        EXPECT_EQ(size, sizeof(buffer));
        memcpy(&then, buffer + 56, 8);
        EXPECT_EQ(*(uint64_t *)(void *)buffer, number);
        if (number < CALM_MESSAGES_MAX) {
            shared->calm_ns[number] = (uint32_t)(lane_now() - then);
            atomic_store(&shared->calm_count, (uint32_t)number + 1);
        }
        number++;
    }
    EXPECT_EQ(ipc_connection_next_event(connection, &event), 1);
    EXPECT_EQ(event.kind, IPC_EVENT_WRITER_JOINED);
    while (ipc_connection_next_event(connection, &event) > 0)
        EXPECT(event.kind == IPC_EVENT_WRITER_LEFT && event.reason == IPC_REASON_CLOSED);
    subscription_end(sub);
    ipc_connection_close(connection);
}

/* ---- runs ------------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static void run(const char *name, bool same_uid, bool attacking, uint64_t writes)
{
    void (*const honest[])(void *) = {calm_receive, calm_publish, read_scribbles, publish_to_scribblers};
    pid_t children[4];
    memset(shared, 0, sizeof(*shared));
    attacks = attacking;
    hostile_start(same_uid, NULL);
    for (unsigned i = 0; i < 4; i++)
        children[i] = child_start(honest[i], NULL);
    while (atomic_load(&shared->published) == 0 || atomic_load(&shared->calm_count) == 0)
        poll(NULL, 0, 1);
    child_done(child_start(attack, &writes));
    atomic_store(&shared->stop, true);
    for (unsigned i = 0; i < 4; i++)
        child_done(children[4 - 1 - i]);
    uint32_t n = atomic_load(&shared->calm_count);
    qsort(shared->calm_ns, n, sizeof(shared->calm_ns[0]), compare);
    printf(
        "%-30s %9llu writes in %llu sessions; peers read %llu, published %llu, left %llu lanes and %llu readers as "
        "corrupt; innocent pair: %u messages, none lost, p50 %u us, p99 %u us\n",
        name, (unsigned long long)shared->writes, (unsigned long long)shared->rounds,
        (unsigned long long)shared->read, (unsigned long long)shared->published,
        (unsigned long long)shared->corrupt_lanes, (unsigned long long)shared->corrupt_readers, n,
        shared->calm_ns[n / 2] / 1000, shared->calm_ns[n - 1 - n / 100] / 1000);
    fflush(stdout);
    if (attacking) /* of the log's lines, of which a second has no more than some, one is sure */
        hostile_log_expect("detached", "reason=corrupt", " topic ", NULL);
    hostile_stop();
}

static uint64_t writes_in_all = WRITES_DEFAULT;

static int tests(void)
{
    shared = shared_new(sizeof(*shared));
    watchdog(900, "test_scribble");
    run_on(false);
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    run("the same work, no attack", false, false, writes_in_all / 10);
    run("each another user", false, true, writes_in_all - writes_in_all / 4);
    run("all the same user", true, true, writes_in_all / 2);
    shared_free(shared, sizeof(*shared));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        writes_in_all = strtoull(argv[1], NULL, 0);
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : lane_now() | 1;
    return hostile_run("hostile/test_scribble", tests);
}
