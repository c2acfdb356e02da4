/* SPDX-License-Identifier: Apache-2.0
 *
 * Lies in shared words: each word of layout.h that a client can write, with each value that could matter, one row each.
 * The other side is libipc under another user; an honest peer on the same lane goes on. And peers that do not ring.
 */
#include "tests/support/hostile.h"

#include "proto/fields.h"

#define RING 4096u

enum outcome {
    READS,   /* the peer reads on, nothing is lost */
    LOSES,   /* it reads on, and counts what is missing */
    STAYS,   /* it finds nothing more, and stays: no harm, no message */
    CORRUPT, /* it leaves this lane, with that reason */
    REFUSED, /* it could not map what it was given */
    KEEPS,   /* (writer) it keeps counting the reader */
    SLOW,    /* it was let go, or lets the reader go, as too slow */
};

static ipc_connection *peer;
static struct raw_client attacker;
static unsigned surprises;

/* All rows are tried before the test fails. */
static void compare(const char *name, unsigned slow, enum outcome outcome, enum outcome expected)
{
    if (outcome == expected)
        return;
    fprintf(stderr, "%s, slow %u: outcome %d, expected %d\n", name, slow, (int)outcome, (int)expected);
    surprises++;
}

static int setup(void **state)
{
    hostile_setup(state);
    surprises = 0;
    peer = hostile_connection(WHO_PEER);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    return 0;
}

static int teardown(void **state)
{
    hostile_alive(&attacker); /* none of this costs the attacker its session: the accuser may be the liar */
    raw_disconnect(&attacker);
    ipc_connection_close(peer);
    return hostile_teardown(state);
}

/* ---- a publisher that lies ------------------------------------------------------------------------------- */

static struct held_lane lane;

/* Receive without waiting until a record comes, or the writer was found to have left. */
static ssize_t receive_or_leave(ipc_subscription *subscription, struct ipc_message *message, unsigned *reason)
{
    unsigned char buffer[RING];
    struct ipc_event event;
    for (;;) {
        ssize_t size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), message, 0);
        while (ipc_connection_next_event(peer, &event) > 0) {
            if (event.kind == IPC_EVENT_WRITER_LEFT) {
                *reason = event.reason;
                return -EPIPE;
            }
        }
        if (size >= 0)
            return size;
        EXPECT_EQ(size, -EAGAIN);
        /* Enough round trips for whatever it detached to come back as a notice. */
        struct ipc_subscription_stats stats;
        EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
        if (stats.writers > 0)
            return -EAGAIN;
    }
}

enum lane_word {
    TAIL,
    TAIL_SEQUENCE,
    HEAD,
    OVERRUN,
    WANT,
    SLOT_START,
    SLOT_SEQUENCE,
    OTHER_SLOT,
    RING_SIZE,
    HEADER_MAGIC,
    HEADER_SIZE,
    HEADER_ID,
    HEADER_RESERVED,
    RECORD,      /* the word of the record that comes next; +: its place is added to the number */
    RECORD_NEXT, /* the same, and the record after it is there */
    BLOCK,       /* the header block of the record that comes next: size in the low half */
};

static const struct lane_row {
    const char *name;
    enum lane_word word;
    uint64_t value;
    enum ipc_slow slow;
    enum outcome outcome;
} lane_rows[] = {
#define BOTH(name, word, value, drop, block)           \
 {name, word, value, IPC_SLOW_DROP_OLDEST, drop},      \
 {                                                     \
  name " (pinned)", word, value, IPC_SLOW_BLOCK, block \
 }
    /* Valid from here on: a reader goes there, and finds records of another lap; one that pins was promised them. */
    BOTH("tail 0", TAIL, 0, READS, READS),
    BOTH("tail 8", TAIL, 8, READS, READS),
    BOTH("tail not aligned", TAIL, 1, READS, READS),
    BOTH("tail a lap on", TAIL, 64 * RING, CORRUPT, SLOW),
    BOTH("tail at half", TAIL, UINT64_C(1) << 63, CORRUPT, SLOW),
    BOTH("tail at the end", TAIL, UINT64_MAX, STAYS, SLOW),
    BOTH("tail_sequence 0", TAIL_SEQUENCE, 0, READS, READS),
    BOTH("tail_sequence 1", TAIL_SEQUENCE, 1, READS, READS),
    BOTH("tail_sequence max", TAIL_SEQUENCE, UINT64_MAX, READS, READS),
    BOTH("head 0", HEAD, 0, READS, READS),
    BOTH("head 1", HEAD, 1, READS, READS),
    BOTH("head max", HEAD, UINT64_MAX, READS, READS),
    BOTH("overrun 1", OVERRUN, 1, READS, READS),
    BOTH("overrun max", OVERRUN, UINT64_MAX, READS, READS),
    BOTH("want 1", WANT, 1, READS, READS),
    BOTH("want 64", WANT, 64, READS, READS),
    BOTH("want max", WANT, UINT64_MAX, READS, READS),
    BOTH("start 0", SLOT_START, 0, READS, READS),
    BOTH("start 1", SLOT_START, 1, READS, READS),
    BOTH("start max", SLOT_START, UINT64_MAX, READS, READS),
    BOTH("start_sequence 0", SLOT_SEQUENCE, 0, READS, READS),
    BOTH("start_sequence max", SLOT_SEQUENCE, UINT64_MAX, READS, READS),
    BOTH("start of another slot", OTHER_SLOT, UINT64_MAX, READS, READS),
    BOTH("ring_size 0", RING_SIZE, 0, READS, READS),
    BOTH("ring_size max", RING_SIZE, UINT64_MAX, READS, READS),
    /* After the reader has mapped it the header is only bytes. */
    BOTH("magic, late", HEADER_MAGIC, 0, READS, READS),
    BOTH("size, late", HEADER_SIZE, UINT64_MAX, READS, READS),
    BOTH("id, late", HEADER_ID, 0, READS, READS),
    BOTH("reserved, late", HEADER_RESERVED, UINT64_MAX, READS, READS),
    /* The record's word. Its number is that of the next record unless the row says otherwise. */
    BOTH("record 0", RECORD, 0, STAYS, STAYS),
    BOTH("record not committed", RECORD, 0x7fffffff, STAYS, STAYS),
    BOTH("record of no bytes", RECORD, IPC_RECORD_COMMITTED, READS, READS),
    BOTH("record of one byte", RECORD, IPC_RECORD_COMMITTED | 1, READS, READS),
    BOTH("record of half the ring", RECORD, IPC_RECORD_COMMITTED | (RING / 2 - 8), READS, READS),
    BOTH("record of one byte more", RECORD, IPC_RECORD_COMMITTED | (RING / 2 - 7), CORRUPT, CORRUPT),
    BOTH("record as large as the ring", RECORD, IPC_RECORD_COMMITTED | RING, CORRUPT, CORRUPT),
    BOTH("record of all bits", RECORD, IPC_RECORD_COMMITTED | IPC_RECORD_SIZE, CORRUPT, CORRUPT),
    BOTH("record, bit 28", RECORD, IPC_RECORD_COMMITTED | 0x10000000, CORRUPT, CORRUPT),
    BOTH("record, bit 29", RECORD, IPC_RECORD_COMMITTED | 0x20000000, CORRUPT, CORRUPT),
    BOTH("record 1 further on", RECORD, UINT64_C(1) << 32 | IPC_RECORD_COMMITTED, LOSES, LOSES),
    BOTH("record 2^31-1 further on", RECORD, UINT64_C(0x7fffffff) << 32 | IPC_RECORD_COMMITTED, LOSES, LOSES),
    BOTH("record 1 back", RECORD, UINT64_MAX << 32 | IPC_RECORD_COMMITTED, CORRUPT, CORRUPT),
    BOTH("record 2^31 back", RECORD, UINT64_C(0x80000000) << 32 | IPC_RECORD_COMMITTED, CORRUPT, CORRUPT),
    BOTH("headers in no bytes", RECORD, IPC_RECORD_COMMITTED | IPC_RECORD_HEADERS, CORRUPT, CORRUPT),
    BOTH("headers in 7 bytes", RECORD, IPC_RECORD_COMMITTED | IPC_RECORD_HEADERS | 7, CORRUPT, CORRUPT),
    BOTH("header block of 0", BLOCK, 0, CORRUPT, CORRUPT),
    BOTH("header block of 1", BLOCK, 1, CORRUPT, CORRUPT),
    BOTH("header block of 9", BLOCK, 9, CORRUPT, CORRUPT),
    BOTH("header block larger than its record", BLOCK, 264, CORRUPT, CORRUPT),
    BOTH("header block of all bits", BLOCK, UINT32_MAX, CORRUPT, CORRUPT),
    BOTH("header block of very many fields", BLOCK, UINT64_C(0xffffffff) << 32 | 8, READS, READS),
    BOTH("header block of garbage", BLOCK, UINT64_C(1) << 63 | 256, READS, READS),
    BOTH("a record and the one behind it", RECORD_NEXT, 0, READS, READS),
};
#define LANE_ROWS (sizeof(lane_rows) / sizeof(lane_rows[0]))

static void lie_in_lane(const struct lane_row *row, uint32_t slot)
{
    struct ipc_lane *words = lane.lane;
    _Atomic uint64_t *record = lane_writer_word(&lane.writer, lane.writer.position);
    struct ipc_segment_header *header = &words->header;
    uint64_t number = (lane.writer.sequence << 32) + row->value;
    unsigned char *body = (unsigned char *)record + 8;
    switch (row->word) {
    case TAIL:
        atomic_store(&words->tail, row->value);
        break;
    case TAIL_SEQUENCE:
        atomic_store(&words->tail_sequence, row->value);
        break;
    case HEAD:
        atomic_store(&words->head, row->value);
        break;
    case OVERRUN:
        atomic_store(&words->overrun, row->value);
        break;
    case WANT:
        atomic_store(&words->want, row->value);
        break;
    case SLOT_START:
        atomic_store(&words->slots[slot].start, row->value);
        break;
    case SLOT_SEQUENCE:
        atomic_store(&words->slots[slot].start_sequence, row->value);
        break;
    case OTHER_SLOT:
        atomic_store(&words->slots[IPC_LANE_SLOTS - 1].start, row->value);
        break;
    case RING_SIZE:
        words->ring_size = (uint32_t)row->value;
        break;
    case HEADER_MAGIC:
        header->magic = row->value;
        break;
    case HEADER_SIZE:
        header->size = row->value;
        break;
    case HEADER_ID:
        header->id = row->value;
        break;
    case HEADER_RESERVED:
        header->reserved[2] = row->value;
        break;
    case BLOCK:
        memset(body, 0xff, 256);
        memcpy(body, &row->value, 8);
        number = (lane.writer.sequence << 32) | IPC_RECORD_COMMITTED | IPC_RECORD_HEADERS | 256;
        __attribute__((fallthrough));
    case RECORD:
        if (row->value != 0 || row->word == BLOCK)
            atomic_store(record, number);
        else
            atomic_store(record, 0);
        return; /* this is the message */
    case RECORD_NEXT:
        EXPECT_EQ(held_lane_publish(&lane, lane.writer.sequence, 64), 0);
        break;
    }
    EXPECT_EQ(held_lane_publish(&lane, lane.writer.sequence, 64), 0);
}

/* Join, read one good message, then read a lie: what becomes of it? */
static void read_a_lie(const struct lane_row *row)
{
    struct ipc_cells *cells;
    struct ipc_message message;
    unsigned reason = IPC_REASON_NONE;
    ipc_subscription *subscription = subscription_new(peer, "lie", IPC_START_NEXT, row->slow, 0);
    held_lane_open(&lane, &attacker, "lie", RING);
    held_lane_admit(&lane, &attacker, &cells);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; i < 10; i++)
        EXPECT_EQ(held_lane_publish(&lane, i, 64), 0);
    receive_numbers(subscription, 0, 10, 64);
    lie_in_lane(row, lane.writer.peers[0].slot);
    ssize_t size = receive_or_leave(subscription, &message, &reason);
    enum outcome outcome = reason == IPC_REASON_CORRUPT ? CORRUPT
                           : reason == IPC_REASON_SLOW  ? SLOW
                           : size == -EAGAIN            ? STAYS
                           : message.lost               ? LOSES
                                                        : READS;
    compare(row->name, row->slow, outcome, row->outcome);
    ipc_subscription_close(subscription);
    lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
    hostile_unadvertise(&attacker, lane.id);
    held_lane_close(&lane);
    struct ipc_event event;
    while (ipc_connection_next_event(peer, &event) > 0)
        continue;
}

static void test_every_word_of_a_lane(void **state)
{
    (void)state;
    for (size_t i = 0; i < LANE_ROWS; i++) {
        watchdog(60, lane_rows[i].name);
        read_a_lie(&lane_rows[i]);
    }
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("detached", "reason=corrupt", "topic lie", "(writer)", NULL);
}

/* A header that is not the one that the core wrote: the reader does not take the lane. */
static void test_every_word_of_a_header(void **state)
{
    static const struct {
        size_t offset, size;
        enum outcome outcome;
    } words[] = {
        {offsetof(struct ipc_segment_header, magic), 8, REFUSED},
        {offsetof(struct ipc_segment_header, abi_major), 2, REFUSED},
        {offsetof(struct ipc_segment_header, abi_minor), 2, READS},
        {offsetof(struct ipc_segment_header, kind), 4, REFUSED},
        {offsetof(struct ipc_segment_header, fingerprint), 8, REFUSED},
        {offsetof(struct ipc_segment_header, size), 8, REFUSED},
        {offsetof(struct ipc_segment_header, id), 8, READS},
        {offsetof(struct ipc_segment_header, reserved), 8, REFUSED},
        {offsetof(struct ipc_segment_header, reserved) + 16, 8, REFUSED},
        {offsetof(struct ipc_lane, ring_size), 4, READS},
        {offsetof(struct ipc_lane, reserved), 4, READS},
    };
    static const uint64_t values[] = {0, 1, UINT64_C(1) << 31, UINT64_MAX, UINT64_C(0x5a5a5a5a5a5a5a5a)};
    unsigned refused = 0;
    (void)state;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
            unsigned char *at;
            held_lane_open(&lane, &attacker, "lie", RING);
            at = (unsigned char *)lane.lane + words[i].offset;
            if (memcmp(at, &values[k], words[i].size) == 0) { /* that is the truth */
                hostile_unadvertise(&attacker, lane.id);
                held_lane_close(&lane);
                continue;
            }
            memcpy(at, &values[k], words[i].size);
            EXPECT_EQ(held_lane_publish(&lane, 0, 64), 0);
            ipc_subscription *subscription =
                subscription_new(peer, "lie", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
            if (words[i].outcome == REFUSED) {
                /* The writer is told of the reader, and then that it could not. */
                uint64_t pairing =
                    ((const Ipc__Control__ReaderAdd *)hostile_wait(&attacker, TYPE(READER_ADD)))->pairing;
                raw_confirm(&attacker, TYPE(READER_ADD), pairing, 0);
                int type;
                while ((type = raw_recv(&attacker, MSG_DONTWAIT)) != TYPE(READER_DEL)) {
                    EXPECT(type >= 0);
                    EXPECT_EQ(ipc_subscription_receive(subscription, NULL, 0, NULL, 0), -EAGAIN);
                }
                const Ipc__Control__ReaderDel *left = (const void *)attacker.frame.message;
                EXPECT_EQ(left->reason, IPC__CONTROL__REASON__REASON_LIMIT);
                raw_confirm(&attacker, TYPE(READER_DEL), pairing, 0);
                refused++;
            } else {
                EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
                receive_numbers(subscription, 0, 1, 64);
            }
            ipc_subscription_close(subscription);
            hostile_unadvertise(&attacker, lane.id);
            held_lane_close(&lane);
        }
    }
    EXPECT(refused > 30);
    hostile_log_expect("pairing-failed", "topic lie", "could not use its side", NULL);
}

/* ---- a reader that lies ---------------------------------------------------------------------------------- */

enum cell_word { CURSOR, OWNER, LOST, ARMED, ASLEEP };

static const struct cell_row {
    const char *name;
    enum cell_word word;
    uint64_t value;
    enum outcome drop, block, disconnect;
} cell_rows[] = {
    /* A cursor below the place from which it is counted says nothing; neither does one of another pairing. */
    {"cursor 0", CURSOR, 0, CORRUPT, CORRUPT, CORRUPT},
    {"cursor 1", CURSOR, 1, CORRUPT, CORRUPT, CORRUPT},
    {"cursor 8 back", CURSOR, 8, CORRUPT, CORRUPT, CORRUPT},
    {"cursor not aligned", CURSOR, 95 * 72 + 4, CORRUPT, CORRUPT, CORRUPT},
    {"cursor inside a record", CURSOR, 95 * 72 + 8, KEEPS, SLOW, SLOW},
    {"cursor at a record", CURSOR, 95 * 72, KEEPS, SLOW, SLOW},
    {"cursor beyond the end", CURSOR, 1000 * RING, CORRUPT, CORRUPT, CORRUPT},
    {"cursor 2^63", CURSOR, UINT64_C(1) << 63, CORRUPT, CORRUPT, CORRUPT},
    {"cursor at the end of numbers", CURSOR, UINT64_MAX, CORRUPT, CORRUPT, CORRUPT},
    {"cursor at the last boundary", CURSOR, UINT64_MAX - 7, CORRUPT, CORRUPT, CORRUPT},
    {"owner 0", OWNER, 0, KEEPS, SLOW, SLOW},
    {"owner 1", OWNER, 1, KEEPS, SLOW, SLOW},
    {"owner max", OWNER, UINT64_MAX, KEEPS, SLOW, SLOW},
    {"lost 1", LOST, 1, KEEPS, SLOW, SLOW},
    {"lost max", LOST, UINT64_MAX, KEEPS, SLOW, SLOW},
    {"armed always", ARMED, IPC_ARMED, KEEPS, SLOW, SLOW},
    {"armed for a bell that is not there", ARMED, IPC_ARMED | IPC_ARMED_BELL, KEEPS, SLOW, SLOW},
    {"armed, fence", ARMED, IPC_ARMED_FENCE, KEEPS, SLOW, SLOW},
    {"armed, all bits", ARMED, UINT64_MAX, KEEPS, SLOW, SLOW},
    {"asleep 0", ASLEEP, 0, KEEPS, SLOW, SLOW},
    {"asleep not aligned", ASLEEP, 1, KEEPS, SLOW, SLOW},
    {"asleep at the end of the ring", ASLEEP, RING - 1, KEEPS, SLOW, SLOW},
    {"asleep max", ASLEEP, UINT64_MAX, KEEPS, SLOW, SLOW},
};
#define CELL_ROWS (sizeof(cell_rows) / sizeof(cell_rows[0]))

static void set_word(struct ipc_cell *cell, enum cell_word word, uint64_t value)
{
    _Atomic uint64_t *const words[] = {&cell->cursor, &cell->owner, &cell->lost, &cell->armed, &cell->asleep};
    atomic_store(words[word], value);
}

/* The publisher of the peer has an attacker and an honest reader. The honest one gets every message. */
static void publish_to_a_liar(const struct cell_row *row, enum ipc_slow slow, enum outcome expected)
{
    static struct ipc_cells *cells; /* the session's, from its first pairing on */
    struct held_cell cell;
    struct ipc_event event;
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    ipc_publisher *publisher;
    ipc_subscription *honest;
    unsigned reason = IPC_REASON_NONE;
    bool fresh;

    options.ring_size = RING;
    options.block_max_ns = 1000000;
    EXPECT_EQ(ipc_publisher_open(&publisher, peer, "truth", &options, NULL), 0);
    honest = subscription_new(peer, "truth", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_SELF);
    uint64_t subscription = hostile_subscribe(&attacker, "truth", 0, slow);
    held_cell_open(&cell, &attacker, cells);
    fresh = cell.cells != NULL;
    if (fresh)
        cells = cell.cells;
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER), 2);
    EXPECT_EQ(ipc_subscription_wait_writers(honest, 1, IPC_FOREVER), 1);

    while (ipc_connection_next_event(peer, &event) > 0)
        continue; /* of the row before */
    /* The liar reads on for a while, as it says; then it lies. */
    atomic_store(&cell.cell->cursor, 0);
    atomic_store(&cell.cell->owner, cell.pairing);
    for (uint64_t i = 0; i < 500; i++) {
        if (i == 100)
            set_word(cell.cell, row->word, row->value);
        publish_numbers(publisher, i, i + 1, 64);
        if (i < 90)
            set_word(cell.cell, CURSOR, (i + 1) * 72);
        receive_numbers(honest, i, i + 1, 64);
    }
    EXPECT(ipc_publisher_wait_readers(publisher, 0, 0) >= 1);
    while (ipc_connection_next_event(peer, &event) > 0)
        if (event.kind == IPC_EVENT_READER_LEFT && event.peer.uid == hostile.uid[WHO_ATTACKER])
            reason = event.reason;
    enum outcome outcome = reason == IPC_REASON_CORRUPT ? CORRUPT
                           : reason == IPC_REASON_SLOW  ? SLOW
                           : reason == IPC_REASON_NONE  ? KEEPS
                                                        : READS;
    compare(row->name, slow, outcome, expected);
    hostile_unsubscribe(&attacker, subscription);
    subscription_end(honest);
    publisher_end(publisher);
    if (fresh)
        cell.cells = NULL; /* kept for the next ones */
    held_cell_close(&cell);
}

static void test_every_word_of_a_cell(void **state)
{
    (void)state;
    for (size_t i = 0; i < CELL_ROWS; i++) {
        watchdog(60, cell_rows[i].name);
        publish_to_a_liar(&cell_rows[i], IPC_SLOW_DROP_OLDEST, cell_rows[i].drop);
        publish_to_a_liar(&cell_rows[i], IPC_SLOW_BLOCK, cell_rows[i].block);
        publish_to_a_liar(&cell_rows[i], IPC_SLOW_DISCONNECT, cell_rows[i].disconnect);
    }
    EXPECT_EQ(surprises, 0);
    hostile_log_expect("detached", "reason=corrupt", "topic truth", NULL);
    hostile_log_expect("detached", "reason=slow", "topic truth", NULL);
}

/* ---- peers that do not ring ------------------------------------------------------------------------------ */

/* Asleep in the kernel, as /proc tells. */
static bool sleeps(pid_t pid)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    EXPECT(file && fgets(text, sizeof(text), file));
    fclose(file);
    const char *state = strrchr(text, ')');
    return state && state[2] == 'S';
}

/* Whatever mail the other was to have has come: more round trips than the broker makes in one round of its loop. */
static void settle(void)
{
    for (unsigned i = 0; i < 40; i++)
        hostile_alive(&attacker);
}

static void receive_by_net(void *argument)
{
    (void)argument;
    struct ipc_subscription_stats stats;
    ipc_connection *connection = hostile_connection(WHO_PEER);
    ipc_subscription *subscription =
        subscription_new(connection, "mute", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    receive_numbers(subscription, 0, 1, 64);
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    receive_numbers(subscription, 1, 2, 64);
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT_EQ(stats.net, 1);
    ipc_subscription_close(subscription);
    ipc_connection_close(connection);
}

/* A sleeper that nobody wakes finds the message all the same, and counts that. */
static void test_writer_that_does_not_ring(void **state)
{
    (void)state;
    struct ipc_cells *cells;
    unsigned char *body;
    held_lane_open(&lane, &attacker, "mute", RING);
    pid_t reader = child_start(receive_by_net, NULL);
    held_lane_admit(&lane, &attacker, &cells);
    EXPECT_EQ(held_lane_publish(&lane, 0, 64), 0);
    settle();
    const struct ipc_cell *cell = lane.writer.peers[0].cell;
    while (atomic_load(&cell->cursor) != lane.writer.position || !(atomic_load(&cell->armed) & IPC_ARMED) ||
           !sleeps(reader))
        continue;
    EXPECT_EQ(lane_writer_reserve(&lane.writer, 64, &body), 0);
    message_fill(body, 64, 1);
    lane_writer_put(&lane.writer, 64, 0);
    child_done(reader);
    lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
    hostile_unadvertise(&attacker, lane.id);
    held_lane_close(&lane);
}

static void publish_by_net(void *argument)
{
    (void)argument;
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_publisher_stats stats = {0};
    ipc_connection *connection = hostile_connection(WHO_PEER);
    ipc_publisher *publisher;
    options.ring_size = RING;
    options.block_max_ns = INT64_MAX;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "mute", &options, NULL), 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; stats.waits == 0; i++) {
        publish_numbers(publisher, i, i + 1, 64);
        EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    }
    EXPECT_EQ(stats.net, 1);
    ipc_publisher_close(publisher);
    ipc_connection_close(connection);
}

/* The same for room: a reader that moves on and does not say so. */
static void test_reader_that_does_not_ring(void **state)
{
    (void)state;
    struct held_cell cell;
    uint64_t want, subscription = hostile_subscribe(&attacker, "mute", 0, IPC__CONTROL__SLOW__SLOW_BLOCK);
    pid_t writer = child_start(publish_by_net, NULL);
    held_cell_open(&cell, &attacker, NULL);
    atomic_store(&cell.cell->cursor, 0);
    atomic_store(&cell.cell->owner, cell.pairing);
    settle();
    while (!(want = atomic_load(&cell.lane->want)) || !sleeps(writer))
        continue;
    atomic_store(&cell.cell->cursor, want);
    child_done(writer);
    hostile_unsubscribe(&attacker, subscription);
    held_cell_close(&cell);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_every_word_of_a_lane),      ATTACK(test_every_word_of_a_header),
        ATTACK(test_every_word_of_a_cell),      ATTACK(test_writer_that_does_not_ring),
        ATTACK(test_reader_that_does_not_ring),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(void)
{
    return hostile_run("hostile/test_words", tests);
}
