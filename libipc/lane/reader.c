/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/lane/reader.h"

#include "control.pb-c.h"
#include "libipc/lane/wait.h"

/* How often a walk over a lane that is being overwritten starts again before it settles for the tail. */
#define WALKS_MAX      64
/* Records without a sleep, after which a reader does not count as one that sleeps often. */
#define STREAM_RECORDS 64u

static uint64_t tail_of(const struct lane_reader *reader)
{
    return atomic_load_explicit(&reader->lane->tail, LANE_PUBLISH == memory_order_seq_cst
                                                         ? memory_order_seq_cst
                                                         : memory_order_acquire);
}

/* A peer's position, as far as it can be one. */
static uint64_t border(uint64_t position)
{
    return position & ~(uint64_t)(IPC_RECORD_ALIGN - 1);
}

static bool word_is_record(const struct lane_reader *reader, uint64_t word)
{
    uint32_t low = (uint32_t)word;
#ifdef IPC_PLANT_SIZE_UNCHECKED
    return low & IPC_RECORD_COMMITTED;
#endif
    return (low & (IPC_RECORD_COMMITTED | IPC_RECORD_RESERVED)) == IPC_RECORD_COMMITTED &&
           (low & IPC_RECORD_SIZE) <= reader->ring_size / 2 - sizeof(uint64_t);
}

/* The 64-bit number near `near` whose low half is `low`. */
static uint64_t extend(uint64_t near, uint32_t low)
{
    return near + (uint64_t)(int64_t)(int32_t)(low - (uint32_t)near);
}

/* Walk from a record boundary to the end of the lane. Returns the end, or the last record if `last`. */
static uint64_t walk(const struct lane_reader *reader, uint64_t from, bool last)
{
    for (int i = 0; i < WALKS_MAX; i++) {
        uint64_t position = from, before = from;
        for (;;) {
            uint64_t word = atomic_load_explicit(lane_reader_word(reader, position), memory_order_acquire);
            lane_check_fence();
            if (tail_of(reader) > position)
                break; /* it was overwritten: what we loaded may be anything */
            if (!word_is_record(reader, word) || position - from > reader->ring_size)
                return last ? before : position;
            before = position;
            position += ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
        }
        from = border(tail_of(reader));
    }
    return border(tail_of(reader));
}

static void choose_start(struct lane_reader *reader, unsigned start)
{
    uint64_t tail = border(tail_of(reader));
    uint64_t head = atomic_load_explicit(&reader->lane->head, memory_order_acquire);
    reader->sequence = atomic_load_explicit(&reader->lane->tail_sequence, memory_order_relaxed);
    if (start == IPC__CONTROL__START__START_OLDEST)
        reader->position = tail;
    else if (start == IPC__CONTROL__START__START_LAST)
        reader->position = walk(reader, tail, true);
    else
        reader->position = walk(reader, head >= tail && head % IPC_RECORD_ALIGN == 0 ? head : tail, false);
}

void lane_reader_init(struct lane_reader *reader, const struct ipc_lane *lane, const unsigned char *ring,
                      uint32_t ring_size, uint32_t slot, struct ipc_cell *cell, uint64_t pairing,
                      unsigned start, bool pins, bool ended)
{
    *reader = (struct lane_reader){.lane = lane,
                                   .ring = ring,
                                   .ring_size = ring_size,
                                   .slot = slot,
                                   .cell = cell,
                                   .pins = pins,
                                   .checks = !ended,
                                   .stream_records = STREAM_RECORDS,
                                   .bell = -1};
    uint64_t admitted = ended ? 0 : atomic_load_explicit(&lane->slots[slot].start, memory_order_acquire);
    if (!(admitted & 1)) {
        choose_start(reader, start);
#ifndef IPC_PLANT_START_NOT_REREAD
        /* Admitted meanwhile: what was published since then is promised to us. Not yet: the writer will find our
         * choice, or choose a place that does not come before it. */
        if (!ended)
            admitted = atomic_load_explicit(&lane->slots[slot].start, memory_order_acquire);
#endif
    }
    if (admitted & 1) {
        reader->position = border(admitted);
        reader->sequence = atomic_load_explicit(&lane->slots[slot].start_sequence, memory_order_relaxed);
        reader->knows = true;
        reader->checks = !pins;
    }
    reader->reported = reader->consumed = reader->position;
    reader->report_at = reader->reported + ring_size / 4;
    reader->start = ended ? UINT64_MAX : reader->position;
    reader->armed = atomic_load_explicit(&cell->armed, memory_order_relaxed) & ~(IPC_ARMED_STEP - 1);
    atomic_store_explicit(&cell->lost, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->cursor, reader->position, memory_order_release);
    /* The release pairs with the acquire in peer_cursor(): who sees our pairing sees our cursor. */
    atomic_store_explicit(&cell->owner, pairing, LANE_PUBLISH);
    /* A writer that waits for room took the cell as it was before for our cursor. Pairs with the fence in
     * lane_writer_want_at(). */
    lane_publish_fence(true);
    if (atomic_load_explicit(&lane->want, LANE_LOOK) != 0)
        lane_wake(lane_low_half(&cell->cursor), false);
}

void lane_reader_resume(struct lane_reader *reader, const struct ipc_lane *lane, const unsigned char *ring,
                        uint32_t ring_size, uint32_t slot, struct ipc_cell *cell)
{
    uint64_t cursor = atomic_load_explicit(&cell->cursor, memory_order_relaxed);
    uint64_t armed = atomic_load_explicit(&cell->armed, memory_order_relaxed);
    *reader = (struct lane_reader){.lane = lane,
                                   .ring = ring,
                                   .ring_size = ring_size,
                                   .slot = slot,
                                   .stream_records = STREAM_RECORDS,
                                   .bell = -1,
                                   .cell = cell,
                                   .pins = true,
                                   .checks = true,
                                   .position = cursor,
                                   .consumed = cursor,
                                   .reported = cursor,
                                   .start = cursor,
                                   .armed = armed & ~(IPC_ARMED_STEP - 1),
                                   .lost = atomic_load_explicit(&cell->lost, memory_order_relaxed)};
    reader->sequence = atomic_load_explicit(&lane->tail_sequence, memory_order_relaxed);
    lane_reader_in_place(reader);
    lane_reader_disarm(reader);
    /* Whoever reported this cursor may have been killed before it woke the writer. */
    lane_wake(lane_low_half(&cell->cursor), false);
}

bool lane_reader_in_place(struct lane_reader *reader)
{
    if (reader->checks && reader->pins) {
        uint64_t admitted =
            atomic_load_explicit(&reader->lane->slots[reader->slot].start, memory_order_acquire);
        if ((admitted & 1) && reader->position >= border(admitted) && tail_of(reader) <= reader->position)
            reader->checks = false;
    }
    return !reader->checks;
}

/* Jump to the tail; what lies between is counted as lost when the next record shows its number. */
static void skip_to(struct lane_reader *reader, uint64_t tail)
{
    reader->position = reader->consumed = border(tail);
}

void lane_reader_ended(struct lane_reader *reader)
{
    uint64_t tail = tail_of(reader);
    if (reader->checks && tail > reader->position)
        skip_to(reader, tail);
    reader->checks = false;
}

bool lane_reader_recheck(struct lane_reader *reader)
{
    if (reader->checks)
        skip_to(reader, tail_of(reader));
    else
        reader->knows = false; /* peek shall look closely, and find that it was given up */
    return false;
}

/* The number of the record at our start, if the writer has told it: what is missing from there on was lost. */
static void learn_start(struct lane_reader *reader, uint64_t found)
{
    uint64_t admitted = atomic_load_explicit(&reader->lane->slots[reader->slot].start, memory_order_acquire);
    uint64_t sequence =
        atomic_load_explicit(&reader->lane->slots[reader->slot].start_sequence, memory_order_relaxed);
    if (reader->start > admitted || !(admitted & 1) || sequence > found)
        return;
    reader->sequence = sequence;
    reader->knows = true;
}

void lane_reader_continue(struct lane_reader *reader, uint64_t sequence)
{
    reader->expects = sequence;
    reader->knows = false;
}

int lane_reader_peek_slow(struct lane_reader *reader, uint64_t word, struct lane_record *record)
{
    for (int i = 0; i < WALKS_MAX; i++) {
        lane_check_fence();
        uint64_t tail = tail_of(reader);
        if (tail > reader->position) {
            if (!reader->checks)
                return -ESTALE; /* it no longer waits for us: we were too slow for it */
            skip_to(reader, tail);
            word = atomic_load_explicit(lane_reader_word(reader, reader->position), memory_order_acquire);
            continue;
        }
        if (!((uint32_t)word & IPC_RECORD_COMMITTED)) {
            if (reader->consumed != reader->reported)
                lane_reader_report(reader);
            return 0;
        }
        if (!word_is_record(reader, word))
            return -EPROTO;
        lane_reader_in_place(reader);
        /* Of more than 2^31 missed records only the tail's number tells how many. */
        uint64_t near = atomic_load_explicit(&reader->lane->tail_sequence, memory_order_relaxed);
        if (near < reader->sequence)
            near = reader->sequence;
        uint64_t sequence = extend(near, (uint32_t)(word >> 32));
        if (!reader->knows)
            learn_start(reader, sequence);
        if (reader->expects && reader->expects <= sequence) {
            reader->sequence = reader->expects;
            reader->knows = true;
        }
        reader->expects = 0;
#ifndef IPC_PLANT_NUMBERS_BACK
        if (reader->knows && (int64_t)(sequence - reader->sequence) < 0)
            return -EPROTO; /* numbers do not go back, not below 0 either */
#endif
        if (reader->knows && sequence != reader->sequence) {
            reader->just_lost += sequence - reader->sequence;
            reader->lost += sequence - reader->sequence;
            atomic_store_explicit(&reader->cell->lost, reader->lost, memory_order_relaxed);
        }
        reader->sequence = sequence;
        reader->knows = true;
        record->body = lane_reader_body(reader);
        record->sequence = sequence;
        record->size = (uint32_t)word & IPC_RECORD_SIZE;
        record->flags = (uint32_t)word & IPC_RECORD_HEADERS;
        record->next = reader->position + ipc_record_stride(record->size);
        return 1;
    }
    return 0; /* it is overwritten faster than we can look: the caller comes again */
}

void lane_reader_report(struct lane_reader *reader)
{
    uint64_t old = reader->reported;
    uint64_t now = reader->consumed;
    /* Pairs with the acquire in peer_cursor(): our reads below the cursor are over. */
    atomic_store_explicit(&reader->cell->cursor, now, LANE_PUBLISH);
    reader->reported = now;
    reader->report_at = now + reader->ring_size / 4;
    if (reader->told &&
        reader->sequence - reader->armed_sequence >= reader->stream_records) { /* no need to fence any more */
        reader->told = false;
        lane_reader_disarm(reader);
    }
    lane_publish_fence(true); /* pairs with the one in lane_writer_want_at(); steps are rare enough for it */
    uint64_t want = atomic_load_explicit(&reader->lane->want, LANE_LOOK);
#ifdef IPC_PLANT_WANT_UNHEARD
    want = 0;
#endif
    if (want != 0 && old < want && want <= now) {
        lane_wake(lane_low_half(&reader->cell->cursor), false);
        if (reader->bell >= 0)
            lane_reader_ring(reader);
    }
}

void lane_reader_ring(struct lane_reader *reader)
{
    unsigned tries = 0;
    do
        reader->unrung = !lane_bell_ring(reader->bell);
    while (reader->unrung && !reader->hasty && lane_bell_again(&tries));
}

bool lane_reader_arm(struct lane_reader *reader, bool bell)
{
    if (reader->consumed != reader->reported)
        lane_reader_report(reader);
    reader->armed += IPC_ARMED_STEP;
    reader->armed_at = reader->position;
    reader->armed_sequence = reader->sequence;
    reader->told = reader->told && reader->often;
    atomic_store_explicit(&reader->cell->asleep, reader->position, memory_order_relaxed);
    atomic_store_explicit(&reader->cell->armed,
                          reader->armed | IPC_ARMED | (bell ? IPC_ARMED_BELL : 0) |
                              (reader->often ? IPC_ARMED_FENCE : 0),
                          LANE_PUBLISH);
    return !reader->told;
}

void lane_reader_disarm(struct lane_reader *reader)
{
    atomic_store_explicit(&reader->cell->armed, reader->armed | (reader->told ? IPC_ARMED_FENCE : 0),
                          memory_order_relaxed);
}

bool lane_reader_sleeps_on(struct lane_reader *reader, const _Atomic uint32_t **word, uint32_t *value)
{
    const _Atomic uint64_t *record = lane_reader_word(reader, reader->position);
    *word = lane_low_half(record);
    *value = (uint32_t)atomic_load_explicit(
        record, LANE_PUBLISH == memory_order_seq_cst ? memory_order_seq_cst : memory_order_acquire);
    lane_check_fence();
#ifdef IPC_PLANT_NO_RELOOK
    return true;
#endif
#ifdef IPC_PLANT_MOVED_ASLEEP
    return !(*value & IPC_RECORD_COMMITTED) && tail_of(reader) <= reader->position;
#endif
    return !(*value & IPC_RECORD_COMMITTED) && tail_of(reader) <= reader->position &&
           reader->position == reader->armed_at;
}
