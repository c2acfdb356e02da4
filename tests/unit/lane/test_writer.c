/* SPDX-License-Identifier: Apache-2.0
 *
 * The lane from its writer's side: sizes, room, laps, counts, and readers that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#define NEXT   IPC__CONTROL__START__START_NEXT
#define LAST   IPC__CONTROL__START__START_LAST
#define OLDEST IPC__CONTROL__START__START_OLDEST

static struct fixture lane;

static int setup(void **state)
{
    (void)state;
    return fixture_init(&lane, IPC_MIN_RING_SIZE) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    fixture_done(&lane);
    return 0;
}

/* Publish and receive one; both must work. */
static void pass(struct lane_reader *reader, uint32_t size)
{
    struct lane_record record;
    uint64_t number = lane.writer.sequence;
    assert_int_equal(fixture_publish(&lane.writer, size), 0);
    assert_int_equal(fixture_receive(reader, &record), 1);
    assert_int_equal(record.size, size);
    assert_int_equal(record.sequence, number);
    assert_int_equal(fixture_receive(reader, &record), 0);
}

static void test_every_size(void **state)
{
    struct lane_reader reader;
    unsigned char *body;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    uint32_t max = lane_body_size_max(lane.ring_size);
    for (uint32_t size = 0; size <= max; size++)
        pass(&reader, size);
    assert_int_equal(fixture_publish(&lane.writer, max + 1), -EMSGSIZE);
    assert_int_equal(lane_writer_reserve(&lane.writer, UINT32_MAX, &body), -EMSGSIZE);
    assert_int_equal(reader.lost, 0);
    assert_int_equal(lane.writer.overrun, 0);
}

static void test_wrap_at_every_alignment(void **state)
{
    (void)state;
    for (uint64_t at = 0; at < 2 * lane.ring_size; at += 8) {
        fixture_begin_at(&lane, at, at / 8);
        struct lane_reader reader;
        fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
        for (int i = 0; i < 9; i++)
            pass(&reader, 1000 + (uint32_t)i * 8);
        int bell;
        assert_true(lane_writer_remove(&lane.writer, 100, &bell));
    }
}

static void test_position_and_sequence_wrap(void **state)
{
    static const uint64_t starts[] = {UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_C(3) << 32};
    static const uint64_t sequences[] = {UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 63};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 3; k++) {
            fixture_begin_at(&lane, starts[i] - 2048, sequences[k] - 5);
            struct lane_reader pinned, dropping;
            fixture_join(&lane, &pinned, 0, FIXTURE_PIN, NEXT);
            fixture_join(&lane, &dropping, 1, FIXTURE_DROP, OLDEST);
            struct lane_record record;
            for (int n = 0; n < 100; n++) {
                pass(&pinned, (uint32_t)n);
                assert_int_equal(fixture_receive(&dropping, &record), 1);
                assert_int_equal(record.sequence, sequences[k] - 5 + (uint64_t)n);
            }
            /* A ring and more behind, over the same borders. */
            fixture_begin_at(&lane, lane.writer.position, lane.writer.sequence);
            for (int n = 0; n < 400; n++)
                pass(&pinned, 40);
            assert_int_equal(fixture_receive(&dropping, &record), 1);
            assert_int_equal(record.sequence - (sequences[k] - 5) - 100, dropping.lost);
            int bell;
            assert_true(lane_writer_remove(&lane.writer, 100, &bell));
            assert_true(lane_writer_remove(&lane.writer, 101, &bell));
        }
    }
}

static void test_stamps_of_laps_differ(void **state)
{
    (void)state;
    for (uint64_t lap = 0; lap < 1000; lap++) {
        uint64_t at = lap * lane.ring_size + 64;
        assert_int_equal(ipc_record_stamp(at, lane.ring_size) & IPC_RECORD_COMMITTED, 0);
        assert_int_not_equal(ipc_record_stamp(at, lane.ring_size),
                             ipc_record_stamp(at + lane.ring_size, lane.ring_size));
    }
}

static void test_exactly_full(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    /* 255 records of 16 bytes and the word behind them: 4088 of 4096. */
    for (int i = 0; i < 255; i++)
        assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    assert_int_equal(lane.writer.position, 4080);
    assert_int_equal(fixture_publish(&lane.writer, 8), -EAGAIN);
    /* One more of the smallest size fits exactly: 4088 + 8. */
    assert_int_equal(fixture_publish(&lane.writer, 0), 0);
    assert_int_equal(fixture_publish(&lane.writer, 0), -EAGAIN);
    for (uint64_t i = 0; i < 256; i++) {
        assert_int_equal(fixture_receive(&reader, &record), 1);
        assert_int_equal(record.sequence, i);
    }
    assert_int_equal(fixture_receive(&reader, &record), 0);
    assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    assert_int_equal(fixture_receive(&reader, &record), 1);
    /* Records of half the ring: one at a time. */
    uint32_t max = lane_body_size_max(lane.ring_size);
    for (int i = 0; i < 10; i++) {
        pass(&reader, max);
        assert_int_equal(fixture_publish(&lane.writer, max), 0);
        assert_int_equal(fixture_publish(&lane.writer, max), -EAGAIN);
        assert_int_equal(fixture_receive(&reader, &record), 1);
    }
}

/* As a batch is published: the first record is committed last. */
static void test_many_at_once(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    unsigned char message[64], *body = NULL;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    for (int round = 0; round < 50; round++) {
        struct lane_writer *writer = &lane.writer;
        struct lane_batch batch = lane_batch_begin(writer);
        lane_batch_commit(writer, &batch); /* of nothing */
        assert_int_equal(fixture_receive(&reader, &record), 0);
        for (uint32_t i = 0; i < 10; i++) {
            assert_int_equal(lane_batch_reserve(writer, &batch, i * 6, &body), 0);
            fixture_fill(message, i * 6, writer->sequence + i);
            lane_copy_in(body, message, i * 6);
            lane_batch_put(writer, &batch, i * 6, 0);
            assert_int_equal(fixture_receive(&reader, &record), 0);
        }
        lane_batch_commit(writer, &batch);
        for (uint32_t i = 0; i < 10; i++) {
            assert_int_equal(fixture_receive(&reader, &record), 1);
            assert_int_equal(record.size, i * 6);
        }
        assert_int_equal(fixture_receive(&reader, &record), 0);
    }

    /* Exactly as much as there is room for, and never more than the ring holds. */
    struct lane_batch batch = lane_batch_begin(&lane.writer);
    uint32_t n = 0;
    while (lane_batch_reserve(&lane.writer, &batch, 56, &body) == 0) {
        fixture_fill(body, 56, lane.writer.sequence + n++);
        lane_batch_put(&lane.writer, &batch, 56, 0);
    }
    assert_int_equal(n, (lane.ring_size - 8) / 64);
    assert_int_equal(lane_batch_reserve(&lane.writer, &batch, lane_body_size_max(lane.ring_size) + 1, &body),
                     -EMSGSIZE);
    lane_batch_commit(&lane.writer, &batch);
    while (n-- > 0)
        assert_int_equal(fixture_receive(&reader, &record), 1);
    assert_int_equal(fixture_receive(&reader, &record), 0);
}

/* Every record from tail to the end is a record, whatever the sizes; tail is always on a border. */
static void test_chain_from_tail(void **state)
{
    (void)state;
    uint64_t random = 1;
    for (int i = 0; i < 20000; i++) {
        random = random * UINT64_C(6364136223846793005) + 1;
        assert_int_equal(fixture_publish(&lane.writer, (uint32_t)(random >> 33) % 600), 0);
        uint64_t at = atomic_load(&lane.lane_read->tail);
        uint64_t number = atomic_load(&lane.lane_read->tail_sequence);
        assert_true(lane.writer.position - at + 8 <= lane.ring_size);
        while (at < lane.writer.position) {
            uint64_t word = atomic_load(lane_writer_word(&lane.writer, at));
            assert_true((uint32_t)word & IPC_RECORD_COMMITTED);
            assert_int_equal(word >> 32, number & UINT32_MAX);
            at += ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
            number++;
        }
        assert_int_equal(at, lane.writer.position);
        assert_int_equal(number, lane.writer.sequence);
        uint64_t word = atomic_load(lane_writer_word(&lane.writer, at));
        assert_int_equal((uint32_t)word, ipc_record_stamp(at, lane.ring_size));
        assert_true(atomic_load(&lane.lane_read->head) <= lane.writer.position);
    }
}

static void test_drop_oldest_counts(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    uint64_t received = 0;
    for (int round = 1; round < 60; round++) {
        for (int i = 0; i < round * 7; i++)
            assert_int_equal(fixture_publish(&lane.writer, (uint32_t)(i * 13) % 200), 0);
        for (int i = 0; i < 20 && fixture_receive(&reader, &record) == 1; i++)
            received++;
        lane_reader_report(&reader);
    }
    while (fixture_receive(&reader, &record) == 1)
        received++;
    assert_true(reader.lost > 0);
    assert_int_equal(received + reader.lost, lane.writer.sequence);
    /* It told how far it was before each overrun, so that both count the same. */
    assert_int_equal(lane.writer.overrun, reader.lost);
    assert_int_equal(atomic_load(&lane.lane_read->overrun), reader.lost);
    assert_int_equal(atomic_load(&lane.cells_read->cells[0].lost), reader.lost);
    int bell;
    assert_true(lane_writer_remove(&lane.writer, 100, &bell));
    assert_int_equal(lane.writer.lost_departed, reader.lost);
}

static void test_more_than_32_bits_lost(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    assert_int_equal(fixture_receive(&reader, &record), 1);
    fixture_begin_at(&lane, UINT64_C(1) << 40, (UINT64_C(5) << 32) - 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    assert_int_equal(fixture_receive(&reader, &record), 1);
    assert_int_equal(record.sequence, (UINT64_C(5) << 32) - 1);
    assert_int_equal(reader.lost, (UINT64_C(5) << 32) - 2);
    assert_int_equal(fixture_receive(&reader, &record), 1);
    assert_int_equal(fixture_receive(&reader, &record), 1);
    assert_int_equal(record.sequence, (UINT64_C(5) << 32) + 1);
}

static void test_pinned_loses_nothing(void **state)
{
    struct lane_reader pinned, dropping;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &pinned, 0, FIXTURE_PIN, NEXT);
    fixture_join(&lane, &dropping, 1, FIXTURE_DROP, NEXT);
    uint64_t read = 0;
    for (int i = 0; i < 5000; i++) {
        if (fixture_publish(&lane.writer, (uint32_t)i % 300) == -EAGAIN) {
            uint64_t before = atomic_load(&lane.lane_read->tail);
            assert_true(before <= pinned.position);
            do {
                assert_int_equal(fixture_receive(&pinned, &record), 1);
                assert_int_equal(record.sequence, read++);
            } while (i % 3 != 0 && read < lane.writer.sequence);
            lane_reader_report(&pinned);
        }
    }
    assert_int_equal(pinned.lost, 0);
    assert_true(lane_reader_in_place(&pinned));
    assert_false(lane_reader_in_place(&dropping));
    while (fixture_receive(&dropping, &record) == 1)
        ;
    assert_true(dropping.lost > 0);
}

/* A pinning reader whose writer gives it up in the middle of a copy must not take the copy for good. */
static void test_given_up_during_copy(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    unsigned char message[64];
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    assert_int_equal(fixture_publish(&lane.writer, 64), 0);
    assert_int_equal(lane_reader_peek(&reader, &record), 1);
    while (fixture_publish(&lane.writer, 64) == 0)
        ;
    const struct lane_peer *slowest;
    uint64_t raw;
    uint64_t want = lane_writer_want(&lane.writer, 72, &slowest, &raw);
    assert_non_null(slowest);
    assert_int_equal(raw, 0);
    lane_writer_want_clear(&lane.writer);
    lane_writer_fault_slow(&lane.writer, want);
    assert_int_equal(lane.writer.peers[0].fault, IPC__CONTROL__REASON__REASON_SLOW);
    assert_true(lane.writer.faulted);
    assert_int_equal(lane_writer_readers(&lane.writer), 0);
    assert_int_equal(fixture_publish(&lane.writer, 64), 0);
    lane_copy_out(message, record.body, record.size);
    assert_false(lane_reader_check(&reader));
    assert_int_equal(lane_reader_peek(&reader, &record), -ESTALE);
}

static void test_disconnect(void **state)
{
    struct lane_reader slow, quick;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &slow, 0, FIXTURE_DISCONNECT, NEXT);
    fixture_join(&lane, &quick, 1, FIXTURE_DISCONNECT, NEXT);
    for (int i = 0; i < 200; i++) {
        assert_int_equal(fixture_publish(&lane.writer, 100), 0);
        assert_int_equal(fixture_receive(&quick, &record), 1);
    }
    assert_int_equal(lane.writer.peers[0].fault, IPC__CONTROL__REASON__REASON_SLOW);
    assert_int_equal(lane.writer.peers[1].fault, 0);
    assert_int_equal(lane.writer.overrun, 0);
    assert_int_equal(lane_writer_readers(&lane.writer), 1);
}

static void set_cursor(unsigned index, uint64_t cursor)
{
    atomic_store(&lane.cells->cells[index].cursor, cursor);
}

/* Fill the lane until the pinning reader is in the way, which makes the writer look at its cursor. */
static void fill(void)
{
    for (int i = 0; i < 100; i++)
        if (fixture_publish(&lane.writer, 100) != 0)
            return;
}

static void lying_cursor(uint64_t first, uint64_t second, bool faulted)
{
    struct lane_reader reader;
    fixture_begin_at(&lane, 64 * 4096, 7);
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    fill();
    uint64_t tail = lane.writer.tail;
    set_cursor(0, first);
    fill();
    set_cursor(0, second);
    fill();
    if (faulted)
        assert_int_equal(lane.writer.peers[0].fault, IPC__CONTROL__REASON__REASON_CORRUPT);
    else
        assert_int_equal(lane.writer.peers[0].fault, 0);
    assert_true(lane.writer.tail >= tail);
    /* Whatever it says, the lane stays whole. */
    for (int i = 0; i < 200; i++) {
        int result = fixture_publish(&lane.writer, 100);
        assert_true(result == 0 || (!faulted && result == -EAGAIN));
    }
    int bell;
    assert_true(lane_writer_remove(&lane.writer, 100, &bell));
    assert_int_equal(fixture_publish(&lane.writer, 100), 0);
}

static void test_lying_cursors(void **state)
{
    const uint64_t base = 64 * 4096;
    (void)state;
    lying_cursor(base + 112, base, true);                   /* backward */
    lying_cursor(base + 112, base - 8, false);              /* below its start: merely slow */
    lying_cursor(base + (1 << 20), base + (1 << 20), true); /* beyond what was published */
    lying_cursor(UINT64_MAX & ~UINT64_C(7), 0, true);
    lying_cursor(base + 113, base + 113, true); /* not aligned */
    lying_cursor(base + 8, base + 8, false);    /* inside of a record: it only holds itself up */
    lying_cursor(0, 0, false);
}

static void test_lying_cursor_at_join(void **state)
{
    struct lane_reader reader;
    (void)state;
    for (int i = 0; i < 100; i++)
        assert_int_equal(fixture_publish(&lane.writer, 100), 0);
    fixture_attach(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    set_cursor(0, lane.writer.position - 8); /* no record begins there */
    assert_int_equal(fixture_admit(&lane, 0, FIXTURE_PIN, NEXT), 0);
    assert_int_equal(lane.writer.peers[0].start, lane.writer.position);
    set_cursor(0, UINT64_MAX);
    for (int i = 0; i < 100; i++)
        assert_int_equal(fixture_publish(&lane.writer, 100), 0);
    assert_int_equal(lane.writer.peers[0].fault, IPC__CONTROL__REASON__REASON_CORRUPT);
}

static void test_rings_once_per_sleep(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    for (uint64_t sleep = 1; sleep < 20; sleep++) {
        lane_reader_arm(&reader, false);
        for (int i = 0; i < 5; i++)
            assert_int_equal(fixture_publish(&lane.writer, 8), 0);
        assert_int_equal(lane.writer.rings, sleep);
        lane_reader_disarm(&reader);
        for (int i = 0; i < 5; i++)
            assert_int_equal(fixture_publish(&lane.writer, 8), 0);
        assert_int_equal(lane.writer.rings, sleep);
        while (fixture_receive(&reader, &record) == 1)
            ;
    }
}

static int publish_more(uint32_t size)
{
    unsigned char *body;
    int result = lane_writer_reserve(&lane.writer, size, &body);
    if (result == 0)
        lane_writer_commit_more(&lane.writer, size, 0, true);
    return result;
}

/* Nobody is rung while more is to come; then everybody once, whatever ends it. */
static void test_more(void **state)
{
    struct lane_writer *writer = &lane.writer;
    struct lane_reader reader;
    struct lane_record record;
    uint64_t rings = 0;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    enum { HELD, NEXT_COMMIT, BATCH, BATCH_MORE, ROOM, WAYS };
    for (int way = 0; way < WAYS; way++) {
        lane_reader_arm(&reader, false);
        for (int i = 0; i < 3; i++)
            assert_int_equal(publish_more(8), 0);
        assert_int_equal(writer->rings, rings);
        assert_int_equal(lane_reader_peek(&reader, &record), 1); /* it is there all the same */
        struct lane_batch batch = lane_batch_begin(writer);
        unsigned char *body;
        if (way == NEXT_COMMIT) {
            assert_int_equal(fixture_publish(writer, 8), 0);
        } else if (way == BATCH || way == BATCH_MORE) {
            assert_int_equal(lane_batch_reserve(writer, &batch, 8, &body), 0);
            lane_batch_put(writer, &batch, 8, 0);
            lane_batch_commit_more(writer, &batch, way == BATCH_MORE);
            assert_int_equal(writer->rings, way == BATCH ? rings + 1 : rings);
        } else if (way == ROOM) {
            while (publish_more(8) == 0)
                ;
            assert_int_equal(writer->rings, rings + 1);
        }
        lane_writer_ring_held(writer);
        assert_int_equal(writer->rings, ++rings);
        lane_writer_ring_held(writer);
        assert_int_equal(writer->rings, rings);
        lane_reader_disarm(&reader);
        while (lane_reader_peek(&reader, &record) == 1)
            lane_reader_advance(&reader, &record);
    }
}

/* Words of sleepers are looked at several at a time: none may be left out, whatever their number. */
static void test_rings_every_reader(void **state)
{
    struct lane_reader readers[2 * LANE_LOOKS + 1];
    struct lane_record record;
    uint64_t rings = 0;
    (void)state;
    for (unsigned count = 1; count <= 2 * LANE_LOOKS + 1; count++) {
        fixture_join(&lane, &readers[count - 1], count - 1, FIXTURE_DROP, NEXT);
        for (unsigned i = 0; i < count; i++) {
            while (fixture_receive(&readers[i], &record) == 1)
                ;
            lane_reader_arm(&readers[i], false);
            assert_int_equal(fixture_publish(&lane.writer, 8), 0);
            assert_int_equal(lane.writer.rings, ++rings);
            lane_reader_disarm(&readers[i]);
        }
    }
    for (unsigned left = 2 * LANE_LOOKS; left > 0;
         left--) { /* the first leaves; who comes last is still rung */
        int bell;
        assert_true(lane_writer_remove(&lane.writer, lane.writer.peers[0].pairing, &bell));
        while (fixture_receive(&readers[2 * LANE_LOOKS], &record) == 1)
            ;
        lane_reader_arm(&readers[2 * LANE_LOOKS], false);
        assert_int_equal(fixture_publish(&lane.writer, 8), 0);
        assert_int_equal(lane.writer.rings, ++rings);
        lane_reader_disarm(&readers[2 * LANE_LOOKS]);
    }
}

static void test_bell_comes_later(void **state)
{
    struct lane_reader reader;
    int pair[2], bell;
    (void)state;
    unsigned before = descriptors_open();
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    lane_reader_arm(&reader, true);
    assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    assert_int_equal(lane.writer.rings, 0);
    struct lane_peer peer = lane.writer.peers[0];
    for (int i = 0; i < 2; i++) { /* announced again: the older bell is given up */
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        peer.bell = pair[1];
        assert_int_equal(lane_writer_add(&lane.writer, &peer, NEXT), 0);
        assert_int_equal(lane.writer.rings, i + 1);
        char byte;
        assert_int_equal(recv(pair[0], &byte, 1, MSG_DONTWAIT), 1);
        close(pair[0]);
    }
    assert_int_equal(lane.writer.peer_count, 1);
    assert_true(lane_writer_remove(&lane.writer, 100, &bell));
    assert_int_equal(bell, pair[1]);
    close(bell);
    assert_int_equal(descriptors_open(), before);
    assert_false(lane_writer_remove(&lane.writer, 100, &bell));
}

static void test_every_slot(void **state)
{
    static struct lane_reader readers[IPC_CELLS_PER_SEGMENT];
    struct lane_record record;
    (void)state;
    for (unsigned i = 0; i < IPC_CELLS_PER_SEGMENT; i++) {
        fixture_join(&lane, &readers[i], i, i % 2 ? FIXTURE_PIN : FIXTURE_DROP, NEXT);
        assert_int_equal(fixture_publish(&lane.writer, i), 0);
    }
    assert_int_equal(lane_writer_readers(&lane.writer), IPC_CELLS_PER_SEGMENT);
    for (unsigned i = 0; i < IPC_CELLS_PER_SEGMENT; i++)
        for (uint64_t n = i; n < lane.writer.sequence; n++) {
            assert_int_equal(fixture_receive(&readers[i], &record), 1);
            assert_int_equal(record.sequence, n);
        }
    /* Taken out in another order than they came. */
    for (unsigned i = 0; i < IPC_CELLS_PER_SEGMENT; i++) {
        int bell;
        unsigned index = i * 10 % IPC_CELLS_PER_SEGMENT;
        assert_true(lane_writer_remove(&lane.writer, 100 + index, &bell));
        assert_int_equal(atomic_load(&lane.lane_read->slots[index].start), 0);
        assert_int_equal(fixture_publish(&lane.writer, 8), 0);
    }
    assert_int_equal(lane.writer.peer_count, 0);
}

static void test_want(void **state)
{
    struct lane_reader a, b;
    struct lane_record record;
    const struct lane_peer *slowest;
    uint64_t raw;
    (void)state;
    fixture_join(&lane, &a, 0, FIXTURE_PIN, NEXT);
    fixture_join(&lane, &b, 1, FIXTURE_PIN, NEXT);
    fill();
    assert_int_equal(fixture_receive(&a, &record), 1);
    lane_reader_report(&a);
    uint64_t want = lane_writer_want(&lane.writer, 112, &slowest, &raw);
    assert_int_equal(want, lane.writer.position + 1024 - 4096);
    assert_int_equal(atomic_load(&lane.lane_read->want), want);
    assert_ptr_equal(slowest, &lane.writer.peers[1]);
    assert_int_equal(raw, 0);
    while (b.position < want)
        assert_int_equal(fixture_receive(&b, &record), 1);
    lane_reader_report(&b);
    want = lane_writer_want(&lane.writer, 112, &slowest, &raw);
    assert_ptr_equal(slowest, &lane.writer.peers[0]);
    assert_int_equal(raw, 112);
    while (fixture_receive(&a, &record) == 1)
        ;
    lane_writer_want(&lane.writer, 112, &slowest, &raw);
    assert_null(slowest);
    lane_writer_want_clear(&lane.writer);
    assert_int_equal(atomic_load(&lane.lane_read->want), 0);
    /* A record of half the ring wants more than a quarter. */
    want = lane_writer_want(&lane.writer, 2048, &slowest, &raw);
    assert_int_equal(want, lane.writer.position + 2048 + 8 - 4096);
}

int main(void)
{
#define LANE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        LANE(test_every_size),
        LANE(test_wrap_at_every_alignment),
        LANE(test_position_and_sequence_wrap),
        LANE(test_stamps_of_laps_differ),
        LANE(test_exactly_full),
        LANE(test_many_at_once),
        LANE(test_chain_from_tail),
        LANE(test_drop_oldest_counts),
        LANE(test_more_than_32_bits_lost),
        LANE(test_pinned_loses_nothing),
        LANE(test_given_up_during_copy),
        LANE(test_disconnect),
        LANE(test_lying_cursors),
        LANE(test_lying_cursor_at_join),
        LANE(test_rings_once_per_sleep),
        LANE(test_more),
        LANE(test_rings_every_reader),
        LANE(test_bell_comes_later),
        LANE(test_every_slot),
        LANE(test_want),
    };
    watchdog(60, "unit/lane/test_writer");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
