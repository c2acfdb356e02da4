/* SPDX-License-Identifier: Apache-2.0
 *
 * Producers and consumers that lie to the router: each word of their ports, each record of a lane, each field of a message
 * and of an acknowledgement. An honest producer and an honest consumer of other users use the same queue, and a pair the one
 * beside it: they get every message, and nobody else's lie.
 */
#include "tests/support/hostile.h"

#include <sched.h>

#include "ipc/queue.h"
#include "libipc/lane/reader.h"
#include "libipc/lane/wait.h"
#include "proto/fields.h"
#include "tests/support/queue.h"

#define RING     4096u
#define ACK_RING IPC_ACK_RING_SIZE
#define LARGEST  512u /* of a message of the shared queue */
#define FEW      4u
#define MANY     80u /* more than the ring of a consumer holds */
#define SCRIBBLE 2000000u

enum outcome { LIVES, CORRUPT, ANY };

/* The honest ones. `sent` and `seen`: what their queue was given, and gave. */
static struct {
    ipc_connection *out, *in;
    ipc_producer *producer;
    ipc_consumer *consumer;
    uint64_t sent;
} shared, beside;
static struct raw_client attacker;
static bool attacker_there;
static unsigned surprises;
static bool may_delay; /* what the attacker was given may come back after its time, which is never */

/* The attacker's port. */
static struct {
    uint64_t id;
    bool consumer;
    struct ipc_port *own;
    void *other;
    uint32_t own_ring, other_ring;
    int bell;
    struct lane_writer out;
    struct lane_reader in;
} port;

static ipc_connection *open_pair(typeof(shared) *pair, const char *queue, enum who consumer)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    settings.given = IPC_QUEUE_MESSAGE_SIZE_MAX | IPC_QUEUE_LEASE;
    settings.message_size_max = LARGEST;
    settings.lease_ns = UINT64_C(3600) * 1000000000;
    memset(pair, 0, sizeof(*pair));
    pair->out = hostile_connection(WHO_PEER);
    pair->in = hostile_connection(consumer);
    queue_new(pair->out, queue, &settings);
    pair->producer = producer_new(pair->out, queue);
    pair->consumer = consumer_new(pair->in, queue, 1);
    return pair->out;
}

static void close_pair(typeof(shared) *pair, const char *queue)
{
    struct ipc_event event;
    consumer_end(pair->consumer);
    producer_end(pair->producer);
    EXPECT_EQ(ipc_queue_remove(pair->out, queue, may_delay ? 0 : IPC_QUEUE_IF_EMPTY, NULL), 0);
    EXPECT_EQ(ipc_connection_next_event(pair->in, &event), 0); /* nothing happened to them */
    EXPECT_EQ(ipc_connection_next_event(pair->out, &event), 0);
    ipc_connection_close(pair->in);
    ipc_connection_close(pair->out);
}

static int setup(void **state)
{
    hostile_setup(state);
    surprises = 0;
    may_delay = false;
    attacker_there = false;
    open_pair(&shared, "shared", WHO_CALM);
    open_pair(&beside, "beside", WHO_CALM);
    return 0;
}

static int teardown(void **state)
{
    close_pair(&beside, "beside");
    close_pair(&shared, "shared");
    return hostile_teardown(state);
}

/* The router has looked at what it was rung for before this, and the control thread has heard of it: more rounds than the
 * router makes between two looks at its bells. */
static void settle(void)
{
    static struct raw_client looker;
    for (unsigned i = 0; i < 12; i++) {
        send_numbers(beside.producer, beside.sent, beside.sent + 1, 64);
        receive_acked(beside.consumer, beside.sent, beside.sent + 1);
        beside.sent++;
    }
    hostile_hello(&looker, WHO_CALM, "looker");
    hostile_alive(&looker);
    raw_disconnect(&looker);
}

/* ---- the attacker's port --------------------------------------------------------------------------------- */

static void attacker_come(void)
{
    if (!attacker_there)
        hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    attacker_there = true;
}

static void port_open(const char *queue, bool consumer, uint32_t prefetch)
{
    Ipc__Control__PortOpen open = IPC__CONTROL__PORT_OPEN__INIT;
    const Ipc__Control__PortOpened *opened;
    void *own;
    attacker_come();
    open.queue = (char *)(uintptr_t)queue;
    open.role = consumer ? IPC__CONTROL__ROLE__CONSUMER : IPC__CONTROL__ROLE__PRODUCER;
    open.ring_size = RING;
    open.prefetch = prefetch;
    raw_send(&attacker, TYPE(PORT_OPEN), &open.base);
    opened = hostile_wait(&attacker, TYPE(PORT_OPENED));
    EXPECT_EQ(attacker.n_fds, 3);
    port.id = opened->port;
    port.consumer = consumer;
    port.own_ring = opened->session_ring_size;
    port.other_ring = opened->core_ring_size;
    EXPECT_EQ(lane_segment_map(&own, attacker.fds[0], IPC_SEGMENT_PORT, port.own_ring, true), 0);
    EXPECT_EQ(lane_segment_map(&port.other, attacker.fds[1], IPC_SEGMENT_PORT, port.other_ring, false), 0);
    port.own = own;
    port.bell = attacker.fds[2];
    attacker.fds[2] = -1;
    const struct lane_peer router = {.cell = &((struct ipc_port *)port.other)->cell,
                                     .pairing = port.id,
                                     .bell = port.bell,
                                     .pins = true,
                                     .fence = opened->fence};
    lane_writer_init(&port.out, &port.own->lane, lane_segment_ring(own), port.own_ring);
    EXPECT_EQ(lane_writer_add(&port.out, &router, IPC__CONTROL__START__START_OLDEST), 0);
    lane_reader_init(&port.in, port.other, lane_segment_ring(port.other), port.other_ring, 0, &port.own->cell,
                     port.id, IPC__CONTROL__START__START_OLDEST, true, false);
}

static void port_leave(void)
{
    lane_writer_done(&port.out);
    lane_segment_unmap(port.own, IPC_SEGMENT_PORT, port.own_ring);
    lane_segment_unmap(port.other, IPC_SEGMENT_PORT, port.other_ring);
    close(port.bell);
    raw_disconnect(&attacker);
    attacker_there = false;
}

/* Write a record, if there is room. */
static bool put(const void *body, uint32_t size, uint32_t flags)
{
    unsigned char *at;
    if (lane_writer_reserve(&port.out, size, &at) < 0)
        return false;
    memcpy(at, body, size);
    lane_writer_commit(&port.out, size, flags);
    (void)lane_bell_ring(port.bell);
    return true;
}

static void put_number(uint64_t number)
{
    unsigned char message[64];
    message_fill(message, sizeof(message), number);
    (void)put(message, sizeof(message), 0);
}

static void put_ack(uint8_t operation, uint64_t first, uint64_t last, uint64_t ns)
{
    const struct ipc_ack ack = {.operation = operation, .first = first, .last = last, .ns = ns};
    (void)put(&ack, sizeof(ack), 0);
}

/* Its first delivery is there. */
static void wait_delivery(void)
{
    struct lane_record record;
    while (lane_reader_peek(&port.in, &record) == 0)
        sched_yield();
}

/* ---- one lie, and what becomes of it --------------------------------------------------------------------- */

/* Every message of the honest producer that the attacker was not given for good comes, whole, and none twice; what the
 * attacker sent itself comes, too, but who knows what it is. */
static void all_come(uint64_t from, uint64_t taken_at_most)
{
    struct ipc_queue_message message;
    unsigned char buffer[65536];
    uint64_t left = shared.sent - from;
    bool seen[MANY] = {false};
    while (left > 0) {
        ssize_t size;
        if (taken_at_most && left <= taken_at_most) { /* they may be gone, and then the queue is empty */
            settle();
            size = ipc_consumer_receive(shared.consumer, buffer, sizeof(buffer), &message, 0);
            if (size == -EAGAIN)
                break;
        } else {
            size = ipc_consumer_receive(shared.consumer, buffer, sizeof(buffer), &message, IPC_FOREVER);
        }
        EXPECT(size >= 0);
        EXPECT_EQ(ipc_consumer_ack(shared.consumer, message.delivery), 0);
        if (message.sender_uid == hostile.uid[WHO_ATTACKER])
            continue;
        EXPECT_EQ(size, 64);
        uint64_t number;
        memcpy(&number, buffer, sizeof(number));
        EXPECT(number >= from && number < shared.sent && message_holds(buffer, (size_t)size, number));
        EXPECT(!seen[number - from]);
        seen[number - from] = true;
        left--;
    }
    EXPECT_EQ(ipc_consumer_flush(shared.consumer, IPC_FOREVER), 0);
}

/* What is left of the attacker in the shared queue goes. */
static void clean_up(void)
{
    struct ipc_queue_message message;
    unsigned char buffer[65536];
    for (;;) {
        settle();
        ssize_t size = ipc_consumer_receive(shared.consumer, buffer, sizeof(buffer), &message, 0);
        if (size == -EAGAIN)
            return;
        EXPECT(size >= 0 && message.sender_uid == hostile.uid[WHO_ATTACKER]);
        EXPECT_EQ(ipc_consumer_ack(shared.consumer, message.delivery), 0);
        EXPECT_EQ(ipc_consumer_flush(shared.consumer, IPC_FOREVER), 0);
    }
}

/* The session was ended, for that reason, with a sentence. */
static void expect_corrupt(const char *name)
{
    watchdog(120, name);
    const Ipc__Control__Ended *ended = hostile_wait(&attacker, TYPE(ENDED));
    EXPECT_EQ(ended->reason, IPC_REASON_CORRUPT);
    EXPECT(strlen(ended->text) > 10);
}

static bool ended_now(void)
{
    int type;
    while ((type = raw_recv(&attacker, MSG_DONTWAIT)) > 0) {
        const Ipc__Control__Ended *ended = (const void *)attacker.frame.message;
        if (type != TYPE(ENDED))
            continue;
        EXPECT_EQ(ended->reason, IPC_REASON_CORRUPT);
        EXPECT(strlen(ended->text) > 10);
        return true;
    }
    return type < 0;
}

/* The attacker is a producer or a consumer of the shared queue, with something on its way in each direction; then it does
 * `lie`. `takes`: messages that it may take for itself. */
static enum outcome tried(const char *name, bool consumer, unsigned messages, enum outcome expected,
                          unsigned takes, void (*lie)(const void *), const void *about)
{
    uint64_t from = shared.sent;
    watchdog(120, name);
    port_open("shared", consumer, messages);
    if (!consumer)
        put_number(1000000);
    send_numbers(shared.producer, shared.sent, shared.sent + messages, 64);
    shared.sent += messages;
    if (consumer)
        wait_delivery();
    lie(about);
    (void)lane_bell_ring(port.bell);
    enum outcome outcome = expected;
    if (expected == CORRUPT) {
        expect_corrupt(name);
    } else {
        settle();
        outcome = ended_now() ? CORRUPT : LIVES;
        if (outcome == LIVES)
            hostile_alive(&attacker);
        if (expected == LIVES && outcome != LIVES) {
            fprintf(stderr, "%s, %s: its session was ended\n", name, consumer ? "consumer" : "producer");
            surprises++;
        }
    }
    port_leave();
    all_come(from, takes);
    return outcome;
}

/* ---- each word ------------------------------------------------------------------------------------------- */

struct word_lie {
    const char *name;
    size_t offset; /* in struct ipc_port */
    uint64_t value;
};

static void write_word(const void *about)
{
    const struct word_lie *lie = about;
    memcpy((char *)port.own + lie->offset, &lie->value, sizeof(lie->value));
    if (port.consumer) {
        put_ack(IPC_ACK_TOUCH, 0, 0, 0);
        put_ack(IPC_ACK_TOUCH, 1, 0, 0);
    } else {
        for (unsigned i = 0; i < FEW; i++)
            put_number(1000001 + i);
    }
    (void)lane_bell_ring(port.bell);
}

#define LANE(word) offsetof(struct ipc_port, lane.word)
#define CELL(word) offsetof(struct ipc_port, cell.word)
static const struct {
    const char *name;
    size_t offset;
} words[] = {
    {"magic", LANE(header.magic)},
    {"abi and kind", LANE(header.abi_major)},
    {"fingerprint", LANE(header.fingerprint)},
    {"size", LANE(header.size)},
    {"id", LANE(header.id)},
    {"reserved", LANE(header.reserved)},
    {"ring_size", LANE(ring_size)},
    {"tail", LANE(tail)},
    {"tail_sequence", LANE(tail_sequence)},
    {"head", LANE(head)},
    {"overrun", LANE(overrun)},
    {"want", LANE(want)},
    {"slot.start", LANE(slots[0].start)},
    {"slot.start_sequence", LANE(slots[0].start_sequence)},
    {"another slot", LANE(slots[IPC_LANE_SLOTS - 1].start)},
    {"cursor", CELL(cursor)},
    {"owner", CELL(owner)},
    {"lost", CELL(lost)},
    {"armed", CELL(armed)},
    {"asleep", CELL(asleep)},
};
#define WORDS (sizeof(words) / sizeof(words[0]))

static void test_every_word_of_a_port(void **state)
{
    static const uint64_t values[] = {0,
                                      1,
                                      7,
                                      8,
                                      64,
                                      RING - 8,
                                      RING,
                                      1000 * RING,
                                      UINT64_C(1) << 31,
                                      UINT64_C(1) << 63,
                                      UINT64_MAX - 7,
                                      UINT64_MAX,
                                      IPC_ARMED | IPC_ARMED_BELL | IPC_ARMED_FENCE | 8};
    unsigned lived = 0, ended = 0;
    (void)state;
    for (size_t i = 0; i < WORDS; i++)
        for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++)
            for (unsigned consumer = 0; consumer < 2; consumer++) {
                const struct word_lie lie = {words[i].name, words[i].offset, values[k]};
                if (tried(lie.name, consumer, FEW, ANY, 0, write_word, &lie) == LIVES)
                    lived++;
                else
                    ended++;
            }
    clean_up();
    printf("%u lies in words of ports, %u of them cost their session\n", lived + ended, ended);
    EXPECT(ended > 4 && lived > 100);
}

/* What must not be passed over, since the router would act on it. */
static void fill_and_lie(const void *about)
{
    static const unsigned char large[LARGEST + 8];
    const struct word_lie *lie = about;
    atomic_store((_Atomic uint64_t *)(void *)((char *)port.own + lie->offset), lie->value);
    for (unsigned i = 0; !port.consumer && i < MANY;
         i++) /* each gets a verdict, until there is no more room */
        while (!put(large, sizeof(large), 0) && atomic_load(&attacker.board->ended) == 0)
            sched_yield();
}

static void test_a_cursor_that_lies(void **state)
{
    static const struct word_lie lies[] = {
        {"cursor not aligned", CELL(cursor), 12},
        {"cursor inside a record", CELL(cursor), 16},
        {"cursor beyond the end", CELL(cursor), 1000 * RING},
        {"cursor 2^63", CELL(cursor), UINT64_C(1) << 63},
        {"cursor at the end of numbers", CELL(cursor), UINT64_MAX},
        {"cursor at the last boundary", CELL(cursor), UINT64_MAX - 7},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        /* Inside a record is a slow reader, as far as can be told. */
        tried(lies[i].name, true, MANY, i == 1 ? LIVES : CORRUPT, 0, fill_and_lie, &lies[i]);
        if (i != 1)
            tried(lies[i].name, false, FEW, CORRUPT, 0, fill_and_lie, &lies[i]);
    }
    clean_up();
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("ended", "reason=corrupt", "the cursor with which it reads", NULL);
}

/* ---- records --------------------------------------------------------------------------------------------- */

struct record_lie {
    const char *name;
    enum outcome outcome; /* for a producer */
    uint64_t word;        /* without its number */
};
#define COMMITTED IPC_RECORD_COMMITTED

static void write_record(const void *about)
{
    const struct record_lie *lie = about;
    _Atomic uint64_t *word = lane_writer_word(&port.out, port.out.position);
    atomic_store(word, (port.out.sequence << 32) + lie->word);
}

static void test_records_of_bad_sizes(void **state)
{
    static const struct record_lie lies[] = {
        {"not committed", LIVES, 0x7fffffff},
        {"of no bytes", LIVES, COMMITTED},
        {"of one byte", LIVES, COMMITTED | 1},
        {"of half the ring", LIVES, COMMITTED | (RING / 2 - 8)},
        {"of one byte more", CORRUPT, COMMITTED | (RING / 2 - 7)},
        {"as large as the ring", CORRUPT, COMMITTED | RING},
        {"of all bits", CORRUPT, COMMITTED | IPC_RECORD_SIZE},
        {"bit 28", CORRUPT, COMMITTED | 0x10000000},
        {"bit 29", CORRUPT, COMMITTED | 0x20000000},
        {"1 further on", LIVES, UINT64_C(1) << 32 | COMMITTED | 64},
        {"1 back", CORRUPT, UINT64_MAX << 32 | COMMITTED | 64},
        {"2^31 back", CORRUPT, UINT64_C(0x80000000) << 32 | COMMITTED | 64},
        {"headers in no bytes", CORRUPT, COMMITTED | IPC_RECORD_HEADERS},
        {"headers in 7 bytes", CORRUPT, COMMITTED | IPC_RECORD_HEADERS | 7},
        {"headers of size 0", CORRUPT, COMMITTED | IPC_RECORD_HEADERS | 64},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        tried(lies[i].name, false, FEW, lies[i].outcome, 0, write_record, &lies[i]);
        /* No acknowledgement has any of those sizes but one of 64, which is none either, of nothing. */
        if (lies[i].outcome == CORRUPT && i < 12)
            tried(lies[i].name, true, FEW, CORRUPT, 0, write_record, &lies[i]);
    }
    clean_up();
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("ended", "reason=corrupt", "a record in its lane makes no sense", NULL);
}

/* ---- fields of a message --------------------------------------------------------------------------------- */

struct field_lie {
    const char *name;
    enum outcome outcome;
    uint8_t kind, byte;
    uint16_t size;
    int block; /* of the block, more than there is */
};

static void write_field(const void *about)
{
    const struct field_lie *lie = about;
    unsigned char body[LARGEST] = {0}, value[256];
    size_t position = sizeof(struct ipc_record_headers);
    memset(value, lie->byte, sizeof(value));
    ipc_field_put(body, &position,
                  &(struct ipc_field){.kind = lie->kind, .value_size = lie->size, .value = value});
    size_t size = ipc_fields_block_size(position - sizeof(struct ipc_record_headers));
    const struct ipc_record_headers headers = {.size = (uint32_t)((int)size + lie->block), .count = 1};
    memcpy(body, &headers, sizeof(headers));
    EXPECT(put(body, (uint32_t)size, IPC_RECORD_HEADERS));
}

static void test_every_field_of_a_message(void **state)
{
    static const struct field_lie lies[] = {
        {"priority 9", LIVES, IPC_FIELD_PRIORITY, 9, 1, 0},
        {"priority 10", CORRUPT, IPC_FIELD_PRIORITY, 10, 1, 0},
        {"priority 255", CORRUPT, IPC_FIELD_PRIORITY, 255, 1, 0},
        {"priority of no bytes", CORRUPT, IPC_FIELD_PRIORITY, 0, 0, 0},
        {"priority of two", CORRUPT, IPC_FIELD_PRIORITY, 0, 2, 0},
        {"expires, of 7 bytes", CORRUPT, IPC_FIELD_EXPIRES, 0, 7, 0},
        {"expires, of 9 bytes", CORRUPT, IPC_FIELD_EXPIRES, 0, 9, 0},
        {"expired at 0", LIVES, IPC_FIELD_EXPIRES, 0, 8, 0},
        {"expired long ago", LIVES, IPC_FIELD_EXPIRES, 1, 8, 0},
        {"not before, of 7 bytes", CORRUPT, IPC_FIELD_NOT_BEFORE, 0, 7, 0},
        {"not before long ago", LIVES, IPC_FIELD_NOT_BEFORE, 0, 8, 0},
        {"an id of no bytes", CORRUPT, IPC_FIELD_ID, 0, 0, 0},
        {"an id of 255", LIVES, IPC_FIELD_ID, 1, 255, 0},
        {"an id of 256", CORRUPT, IPC_FIELD_ID, 1, 256, 0},
        {"a key of no bytes", CORRUPT, IPC_FIELD_KEY, 0, 0, 0},
        {"a key of 255", LIVES, IPC_FIELD_KEY, 1, 255, 0},
        {"a key of 256", CORRUPT, IPC_FIELD_KEY, 1, 256, 0},
        {"reply to nonsense", LIVES, IPC_FIELD_REPLY_TO, 1, 9, 0},
        {"no such kind", LIVES, 200, 1, 9, 0},
        {"a dead letter's origin", CORRUPT, IPC_FIELD_ORIGIN, 'q', 3, 0},
        {"a dead letter's reason", CORRUPT, IPC_FIELD_REASON, 'q', 3, 0},
        {"a dead letter's attempts", CORRUPT, IPC_FIELD_ATTEMPTS, 1, 4, 0},
        {"a dead letter's time", CORRUPT, IPC_FIELD_DIED, 1, 8, 0},
        {"a block of one byte more", CORRUPT, IPC_FIELD_KEY, 1, 9, 1},
        {"a block larger than its record", CORRUPT, IPC_FIELD_KEY, 1, 9, 8},
        {"a block smaller than its field", CORRUPT, IPC_FIELD_KEY, 1, 9, -8},
        {"a block of very many bytes", CORRUPT, IPC_FIELD_KEY, 1, 9, INT32_MAX - 64},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
        tried(lies[i].name, false, FEW, lies[i].outcome, 0, write_field, &lies[i]);
    clean_up();
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("ended", "reason=corrupt", "header block", NULL);
}

/* ---- acknowledgements ------------------------------------------------------------------------------------ */

struct ack_lie {
    const char *name;
    enum outcome outcome;
    unsigned takes;
    struct ipc_ack ack;
    uint32_t size;
};

static void write_ack(const void *about)
{
    const struct ack_lie *lie = about;
    unsigned char body[512] = {0};
    memcpy(body, &lie->ack, sizeof(lie->ack));
    for (unsigned i = 0; i < 2; i++) /* twice: the second time is of nothing */
        (void)put(body, lie->size, 0);
}

static void test_acknowledgements_that_lie(void **state)
{
#define ACK(operation_, ...) {.operation = (operation_), __VA_ARGS__}, sizeof(struct ipc_ack)
    static const struct ack_lie lies[] = {
        {"never delivered", LIVES, 0, ACK(IPC_ACK_DONE, .first = FEW, .last = UINT64_MAX)},
        {"long ago", LIVES, 0, ACK(IPC_ACK_DONE, .first = UINT64_MAX - 9, .last = UINT64_MAX - 1)},
        {"backwards", LIVES, 0, ACK(IPC_ACK_DONE, .first = 3, .last = 0)},
        {"of all that there is", LIVES, FEW, ACK(IPC_ACK_DONE, .first = 0, .last = UINT64_MAX)},
        {"refuse all", LIVES, 0, ACK(IPC_ACK_REFUSE, .first = 0, .last = UINT64_MAX)},
        {"refuse, never delivered", LIVES, 0, ACK(IPC_ACK_REFUSE, .first = FEW, .last = UINT64_MAX)},
        {"refuse, after a time that wraps", LIVES, 0,
         ACK(IPC_ACK_REFUSE, .last = UINT64_MAX, .ns = UINT64_MAX)},
        {"touch for ever", LIVES, 0, ACK(IPC_ACK_TOUCH, .last = UINT64_MAX, .ns = UINT64_MAX)},
        {"touch, never delivered", LIVES, 0, ACK(IPC_ACK_TOUCH, .first = FEW, .last = UINT64_MAX)},
        {"operation 0", CORRUPT, 0, ACK(0, .last = UINT64_MAX)},
        {"operation 4", CORRUPT, 0, ACK(4, .last = UINT64_MAX)},
        {"operation 255", CORRUPT, 0, ACK(255, .last = UINT64_MAX)},
        {"a reason that is not there", CORRUPT, 0, ACK(IPC_ACK_REFUSE, .last = UINT64_MAX, .reason_size = 1)},
        {"a reason of all bits", CORRUPT, 0, ACK(IPC_ACK_DONE, .reason_size = UINT16_MAX)},
        {"of no bytes", CORRUPT, 0, {.operation = IPC_ACK_DONE}, 0},
        {"of a byte less", CORRUPT, 0, {.operation = IPC_ACK_DONE}, sizeof(struct ipc_ack) - 1},
        {"of 255 bytes more", LIVES, 1, {.operation = IPC_ACK_TOUCH}, sizeof(struct ipc_ack) + 255},
        {"of 256 bytes more", CORRUPT, 0, {.operation = IPC_ACK_TOUCH}, sizeof(struct ipc_ack) + 256},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
        tried(lies[i].name, true, FEW, lies[i].outcome, lies[i].takes, write_ack, &lies[i]);
    clean_up();
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("ended", "reason=corrupt", "acknowledgement of a wrong size", NULL);
    hostile_log_expect("ended", "reason=corrupt", "acknowledgement of no known kind", NULL);
    hostile_log_expect("ended", "reason=corrupt", "acknowledgement that makes no sense", NULL);
}

/* One delivery, and its lease begun anew for ever: the timers of before are not kept. And records that each name every
 * delivery that there is: the others have their turns in between. */
static uint64_t broker_memory(void)
{
    char path[64], line[128];
    unsigned long kib = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)hostile.raw.pid);
    FILE *file = fopen(path, "re");
    EXPECT(file != NULL);
    while (fgets(line, sizeof(line), file))
        (void)sscanf(line, "VmRSS: %lu", &kib);
    fclose(file);
    return (uint64_t)kib << 10;
}

static void test_touched_without_end(void **state)
{
    const uint64_t touches = 2000000;
    (void)state;
    port_open("shared", true, FEW);
    send_numbers(shared.producer, shared.sent, shared.sent + FEW, 64);
    shared.sent += FEW;
    wait_delivery();
    settle();
    uint64_t before = broker_memory();
    for (uint64_t done = 0; done < touches; done++) {
        const struct ipc_ack ack = {
            .operation = IPC_ACK_TOUCH, .last = UINT64_MAX, .ns = UINT64_MAX / 8 + done};
        while (!put(&ack, sizeof(ack), 0))
            sched_yield();
        if (done % 100000 == 0) {
            watchdog(120, "touching");
            settle();
        }
    }
    settle();
    uint64_t after = broker_memory();
    printf("%llu touches: the broker has %lld KiB more\n", (unsigned long long)touches,
           (long long)(after - before) / 1024);
    EXPECT(after < before + (UINT64_C(24) << 20)); /* a timer for each would take 64 MB and more */
    hostile_alive(&attacker);
    port_leave();
    all_come(shared.sent - FEW, 0);
    clean_up();
}

/* ---- bells, and ports without end ------------------------------------------------------------------------ */

static void abuse_bell(const void *about)
{
    static const char noise[4096];
    if (*(const int *)about == 0) {
        while (send(port.bell, noise, sizeof(noise), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            continue;
    } else {
        shutdown(port.bell, *(const int *)about == 1 ? SHUT_RDWR : SHUT_WR);
    }
}

static void test_bells_of_ports(void **state)
{
    (void)state;
    for (int way = 0; way < 3; way++)
        for (unsigned consumer = 0; consumer < 2; consumer++)
            tried("a bell filled or shut down", consumer, FEW, LIVES, 0, abuse_bell, &way);
    clean_up();
    EXPECT_EQ(surprises, 0);
}

/* Opened, rung and closed, again and again. */
static void test_ports_without_end(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 500; i++) {
        Ipc__Control__PortBell bell = IPC__CONTROL__PORT_BELL__INIT;
        Ipc__Control__PortClose over = IPC__CONTROL__PORT_CLOSE__INIT;
        port_open("shared", i % 2, 1);
        bell.port = over.port = port.id;
        raw_send(&attacker, TYPE(PORT_BELL), &bell.base);
        (void)hostile_wait(&attacker, TYPE(DONE));
        raw_send(&attacker, TYPE(PORT_CLOSE), &over.base);
        (void)hostile_wait(&attacker, TYPE(DONE));
        (void)lane_bell_ring(port.bell);
        if (i % 50 == 0)
            settle();
        lane_writer_done(&port.out);
        lane_segment_unmap(port.own, IPC_SEGMENT_PORT, port.own_ring);
        lane_segment_unmap(port.other, IPC_SEGMENT_PORT, port.other_ring);
        close(port.bell);
    }
    raw_disconnect(&attacker);
    attacker_there = false;
    clean_up();
}

/* Nobody of it reads: neither deliveries nor verdicts. The queue's others go on. */
static void test_ports_that_do_not_read(void **state)
{
    static const unsigned char large[LARGEST + 8];
    unsigned refused = 0;
    uint64_t from = shared.sent;
    (void)state;
    port_open("shared", false, 0);
    while (put(large, sizeof(large), 0) || refused++ < 20)
        settle();
    port_leave();
    port_open("shared", true, MANY);
    send_numbers(shared.producer, shared.sent, shared.sent + MANY, 64);
    shared.sent += MANY;
    wait_delivery();
    settle();
    hostile_alive(&attacker);
    port_leave();
    all_come(from, 0);
    clean_up();
}

/* ---- anything, anywhere ---------------------------------------------------------------------------------- */

static void test_scribbled_ports(void **state)
{
    uint64_t random = lane_now() | 1;
    unsigned sessions = 0, ended = 0;
    (void)state;
    printf("seed %llu\n", (unsigned long long)random);
    may_delay = true;
    for (unsigned done = 0; done < SCRIBBLE; sessions++) {
        uint64_t from = shared.sent;
        bool over = false;
        port_open("shared", sessions % 2, 8);
        const struct hostile_area area = {(unsigned char *)port.own, IPC_LAYOUT_PAGE + RING, port.own_ring};
        send_numbers(shared.producer, shared.sent, shared.sent + FEW, 64);
        shared.sent += FEW;
        for (unsigned i = 0; i < 20 && !over; i++) {
            watchdog(120, "scribbling");
            for (unsigned k = 0; k < 25;
                 k++) { /* what it says in between has sense, as far as its memory has */
                hostile_scribble(&area, 1, 100, &random);
                if (port.consumer)
                    put_ack(IPC_ACK_TOUCH, 0, random % 8, 0);
                else
                    put_number(random);
            }
            done += 2500;
            (void)lane_bell_ring(port.bell);
            over = ended_now();
        }
        ended += over;
        port_leave();
        all_come(from, FEW); /* one of its records may have been an acknowledgement */
    }
    clean_up();
    printf("%u random writes in %u sessions, %u of which were ended\n", SCRIBBLE, sessions, ended);
    EXPECT(ended > 0);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_every_word_of_a_port),
        ATTACK(test_a_cursor_that_lies),
        ATTACK(test_records_of_bad_sizes),
        ATTACK(test_every_field_of_a_message),
        ATTACK(test_acknowledgements_that_lie),
        ATTACK(test_touched_without_end),
        ATTACK(test_bells_of_ports),
        ATTACK(test_ports_without_end),
        ATTACK(test_ports_that_do_not_read),
        ATTACK(test_scribbled_ports),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(int argc, char **argv)
{
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* one of them */
    return hostile_run("hostile/test_ports", tests);
}
