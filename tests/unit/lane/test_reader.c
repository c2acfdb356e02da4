/* SPDX-License-Identifier: Apache-2.0
 *
 * The lane from its reader's side: joining, and lanes that lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#define NEXT   IPC__CONTROL__START__START_NEXT
#define LAST   IPC__CONTROL__START__START_LAST
#define OLDEST IPC__CONTROL__START__START_OLDEST

static struct fixture lane;
static struct lane_record record;

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

static void publish(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(fixture_publish(&lane.writer, 100), 0);
}

static uint64_t first(struct lane_reader *reader)
{
    assert_int_equal(fixture_receive(reader, &record), 1);
    return record.sequence;
}

/* Each order of joining, each start, in an empty lane, a filled one, and one that has lapped. */
static void test_joins(void **state)
{
    static const unsigned published[] = {0, 1, 2, 20, 36, 37, 500};
    (void)state;
    for (size_t i = 0; i < sizeof(published) / sizeof(published[0]); i++) {
        for (unsigned late = 0; late < 2; late++) {
            for (unsigned start = NEXT; start <= OLDEST; start++) {
                int bell;
                struct lane_reader reader;
                fixture_begin_at(&lane, i * 4096 * 10, 1000);
                publish(published[i]);
                if (late) {
                    fixture_attach(&lane, &reader, 0, FIXTURE_PIN, start);
                    assert_false(lane_reader_in_place(&reader));
                    assert_int_equal(fixture_admit(&lane, 0, FIXTURE_PIN, start), 0);
                } else {
                    fixture_join(&lane, &reader, 0, FIXTURE_PIN, start);
                }
                assert_true(lane_reader_in_place(&reader));
                uint64_t expected = lane.writer.sequence;
                if (start == LAST && published[i])
                    expected--;
                if (start == OLDEST)
                    expected = lane.writer.tail_sequence;
                if (expected == lane.writer.sequence) {
                    assert_int_equal(fixture_receive(&reader, &record), 0);
                    publish(1);
                }
                assert_int_equal(first(&reader), expected);
                assert_int_equal(reader.lost, 0);
                while (fixture_receive(&reader, &record) == 1)
                    ;
                assert_int_equal(record.sequence, lane.writer.sequence - 1);
                assert_true(lane_writer_remove(&lane.writer, 100, &bell));
            }
        }
    }
}

/* Records that pass between a reader's own start and its first look are lost, and counted. */
static void test_loss_before_first_look(void **state)
{
    struct lane_reader reader;
    (void)state;
    publish(10);
    fixture_attach(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    publish(3); /* not counted yet, but behind the start that the reader chose */
    assert_int_equal(fixture_admit(&lane, 0, FIXTURE_DROP, NEXT), 0);
    publish(100);
    uint64_t number = first(&reader);
    assert_int_equal(reader.lost, number - 10);
    assert_int_equal(lane.writer.overrun, reader.lost);

    struct lane_reader other;
    fixture_join(&lane, &other, 1, FIXTURE_DROP, OLDEST);
    uint64_t oldest = lane.writer.tail_sequence;
    publish(100);
    number = first(&other);
    assert_int_equal(other.lost, number - oldest);
}

/* The reader began by itself while the writer admitted it further on. */
static void test_admitted_further_on(void **state)
{
    struct lane_reader reader;
    (void)state;
    publish(10);
    fixture_attach(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    publish(2);
    atomic_store(&lane.cells->cells[0].owner, 0); /* as if the writer had not seen it yet */
    assert_int_equal(fixture_admit(&lane, 0, FIXTURE_PIN, NEXT), 0);
    atomic_store(&lane.cells->cells[0].owner, 100);
    assert_false(lane_reader_in_place(&reader));
    assert_int_equal(first(&reader), 10);
    assert_int_equal(first(&reader), 11);
    assert_true(lane_reader_in_place(&reader));
    while (fixture_publish(&lane.writer, 100) == 0)
        ;
    assert_int_equal(first(&reader), 12);
    assert_int_equal(reader.lost, 0);
}

static void test_idle_writer(void **state)
{
    struct lane_reader reader;
    (void)state;
    publish(5);
    /* Nobody admits it: it reads all the same, by copy. */
    fixture_attach(&lane, &reader, 0, FIXTURE_DROP, OLDEST);
    for (uint64_t i = 0; i < 5; i++)
        assert_int_equal(first(&reader), i);
    assert_int_equal(fixture_receive(&reader, &record), 0);
}

static void test_ended_while_behind(void **state)
{
    struct lane_reader reader;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    publish(200);
    lane_reader_ended(&reader);
    uint64_t number = first(&reader);
    assert_int_equal(number, lane.writer.tail_sequence);
    assert_int_equal(reader.lost, number);
    assert_true(lane_reader_in_place(&reader));
    while (fixture_receive(&reader, &record) == 1)
        ;
    assert_int_equal(record.sequence, 199);

    const unsigned char *ring = lane_segment_ring((void *)(uintptr_t)lane.lane_read);
    static const struct {
        unsigned start;
        uint64_t back;
    } cases[] = {{NEXT, 0}, {LAST, 1}};
    for (size_t i = 0; i < 2; i++) {
        lane_reader_init(&reader, lane.lane_read, ring, lane.ring_size, 1, &lane.cells->cells[1], 7,
                         cases[i].start, false, true);
        if (cases[i].back)
            assert_int_equal(first(&reader), 199);
        assert_int_equal(fixture_receive(&reader, &record), 0);
    }
}

/* What is held in place stays where it is; the cursor follows the release, not the look. */
static void test_hold_and_release(void **state)
{
    struct lane_reader reader;
    struct lane_record held[3];
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    publish(36);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(lane_reader_peek(&reader, &held[i]), 1);
        lane_reader_hold(&reader, &held[i]);
    }
    while (lane_reader_peek(&reader, &record) == 1)
        lane_reader_hold(&reader, &record);
    assert_int_equal(fixture_publish(&lane.writer, 100), -EAGAIN);
    assert_int_equal(atomic_load(&lane.cells_read->cells[0].cursor), 0);
    for (uint64_t i = 0; i < 3; i++)
        assert_true(fixture_holds(held[i].body, 100, i));
    lane_reader_release(&reader, held[2].next);
    lane_reader_report(&reader);
    assert_int_equal(atomic_load(&lane.cells_read->cells[0].cursor), held[2].next);
    assert_int_equal(fixture_publish(&lane.writer, 100), 0);
    lane_reader_release(&reader, record.next);
    assert_int_equal(first(&reader), 36);
}

static _Atomic uint64_t *word_at(uint64_t position)
{
    return lane_writer_word(&lane.writer, position);
}

static void lie(uint64_t word, int expected)
{
    struct lane_reader reader;
    fixture_begin_at(&lane, 4096 * 5, 1 << 20);
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    publish(1);
    assert_int_equal(first(&reader), 1 << 20);
    atomic_store(word_at(lane.writer.position), word);
    assert_int_equal(lane_reader_peek(&reader, &record), expected);
    int bell;
    lane_writer_remove(&lane.writer, 100, &bell);
}

static void test_lying_words(void **state)
{
    const uint64_t number = ((UINT64_C(1) << 20) + 1) << 32;
    (void)state;
    lie(number | IPC_RECORD_COMMITTED, 1);
    lie(number | IPC_RECORD_COMMITTED | 2040, 1);
    lie(number | IPC_RECORD_COMMITTED | 2041, -EPROTO);
    lie(number | IPC_RECORD_COMMITTED | IPC_RECORD_SIZE, -EPROTO);
    lie(number | IPC_RECORD_COMMITTED | 0x10000000, -EPROTO);
    lie(number | IPC_RECORD_COMMITTED | 0x20000000, -EPROTO);
    lie((number - (UINT64_C(1) << 32)) | IPC_RECORD_COMMITTED, -EPROTO); /* the number goes back */
    lie(IPC_RECORD_COMMITTED, -EPROTO);
    lie(UINT64_MAX, -EPROTO);
    lie(number | 0x7fffffff, 0); /* not committed, whatever else it says */
    lie(0, 0);
}

/* tail and head beyond what was published, not aligned, going back: the reader stays within the ring. */
static void test_lying_tail(void **state)
{
    static const uint64_t lies[] = {UINT64_MAX, UINT64_C(1) << 63, 4097,   12345, 8, 1,
                                    0,          UINT64_MAX - 7,    1 << 20};
    static const unsigned n = sizeof(lies) / sizeof(lies[0]);
    const unsigned char *begin = lane_segment_ring((void *)(uintptr_t)lane.lane_read);
    (void)state;
    for (unsigned i = 0; i < n * n * 3; i++) {
        struct lane_reader reader;
        atomic_store(&lane.lane->tail, lies[i % n]);
        atomic_store(&lane.lane->head, lies[i / n % n]);
        atomic_store(&lane.lane->tail_sequence, lies[i % n]);
        atomic_store(&lane.lane->slots[3].start, i % 2 ? lies[i / n % n] : 0);
        fixture_attach(&lane, &reader, 3, i % 5 ? FIXTURE_DROP : FIXTURE_PIN, i / n / n);
        for (unsigned k = 0; k < n; k++) {
            int result = lane_reader_peek(&reader, &record);
            assert_true(result == 0 || result == 1 || result == -EPROTO || result == -ESTALE);
            if (result == 1) {
                assert_true(record.body >= begin && record.body + record.size <= begin + 2 * lane.ring_size);
                assert_true(record.size <= lane_body_size_max(lane.ring_size));
                lane_reader_check(&reader);
                lane_reader_advance(&reader, &record);
            }
            lane_reader_in_place(&reader);
            atomic_store(&lane.lane->tail, lies[k]);
        }
        lane_reader_ended(&reader);
        assert_in_range(lane_reader_peek(&reader, &record) + 200, 0, 201);
    }
}

/* A writer that lets a pinning reader go leaves it with -ESTALE, not with another record's bytes. */
static void test_left_behind(void **state)
{
    struct lane_reader reader;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    publish(10);
    lane_writer_fault_slow(&lane.writer, UINT64_MAX);
    publish(100);
    assert_int_equal(lane_reader_peek(&reader, &record), -ESTALE);
    assert_int_equal(lane_reader_peek(&reader, &record), -ESTALE);
}

/* An armed reader that is overrun and finds the lane empty at its new place is not rung there by the sleep that
 * it armed before: it must not sleep on that. */
static void test_moved_while_armed(void **state)
{
    struct lane_reader reader;
    const _Atomic uint32_t *word;
    uint32_t value;
    (void)state;
    uint32_t half = lane_body_size_max(lane.ring_size);
    fixture_join(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    lane_reader_arm(&reader, false);
    lane_barrier();
    assert_true(lane_reader_sleeps_on(&reader, &word, &value));
    assert_int_equal(fixture_publish(&lane.writer, half), 0);
    assert_false(lane_reader_sleeps_on(&reader, &word, &value));
    assert_int_equal(lane.writer.rings, 1);
    unsigned char *body;
    assert_int_equal(lane_writer_reserve(&lane.writer, half, &body), 0); /* tail is at the end now */
    assert_int_equal(lane_reader_peek(&reader, &record), 1);
    assert_false(lane_reader_check(&reader));
    assert_int_equal(lane_reader_peek(&reader, &record), 0);
    assert_false(lane_reader_sleeps_on(&reader, &word, &value));
    lane_reader_disarm(&reader);
    lane_reader_arm(&reader, false);
    lane_barrier();
    assert_true(lane_reader_sleeps_on(&reader, &word, &value));
    lane_writer_commit(&lane.writer, half, 0);
    assert_int_equal(lane.writer.rings, 2);
    assert_int_equal(lane_reader_peek(&reader, &record), 1);
    assert_int_equal(reader.lost, 1);
}

int main(void)
{
#define LANE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        LANE(test_joins),
        LANE(test_loss_before_first_look),
        LANE(test_admitted_further_on),
        LANE(test_idle_writer),
        LANE(test_ended_while_behind),
        LANE(test_hold_and_release),
        LANE(test_lying_words),
        LANE(test_lying_tail),
        LANE(test_left_behind),
        LANE(test_moved_while_armed),
    };
    watchdog(60, "unit/lane/test_reader");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
