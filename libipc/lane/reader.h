/* SPDX-License-Identifier: Apache-2.0
 *
 * The reading end of a lane: one thread of the reading session. Peek, copy, check, advance; arm before sleeping.
 *
 * Everything in the lane is written by a peer. A word is loaded once, checked, and the checked copy used. What
 * was copied from a lane that its writer may overwrite counts only if tail had not passed it afterwards.
 */
#ifndef IPC_LANE_READER_H
#define IPC_LANE_READER_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libipc/lane/atomic.h"
#include "proto/layout.h"

struct lane_reader {
    const unsigned char *ring;
    uint64_t position; /* of the next record to read */
    uint64_t
        consumed; /* everything below was copied or given back; position, unless records are held in place */
    uint64_t sequence;  /* of that record, if none was lost */
    uint64_t reported;  /* the cursor as the writer can see it */
    uint64_t report_at; /* consumed, from which on it is told again */
    uint32_t ring_size;
    bool checks;        /* the writer may overwrite what we read: check tail after each copy */
    bool pins;          /* the subscription asked the writer to wait for it */
    bool knows;         /* sequence is that of position, not only near it */
    uint64_t lost;      /* records missed, in all */
    uint64_t just_lost; /* before the record that is read next */

    const struct ipc_lane *lane;
    struct ipc_cell *cell;
    uint64_t armed; /* the count in the cell's word */
    bool often;     /* set by the waiter: the writers shall fence, so that sleeping needs no barrier */
    uint32_t stream_records; /* without a sleep, after which they need not any more */
    bool told;               /* the writer has seen that, for certain */
    uint64_t armed_sequence;
    uint64_t armed_at; /* our position when we armed: where the writer rings */
    uint64_t expects;  /* the number that came next in another lane of this writer; 0: none */
    uint64_t start;    /* where we began; UINT64_MAX: the lane has no writer to tell what we missed before */
    uint64_t waited_at, guess; /* see lane_reader_fetch() */
    uint32_t slot;
    int bell;           /* the writer waits for room by this one, too: not our own; -1: none */
    bool hasty, unrung; /* as in struct lane_writer, for lane_reader_ring() */
};

/* A record that was found. body and size lie within the ring; body may change under a reader that checks. */
struct lane_record {
    const unsigned char *body;
    uint64_t sequence;
    uint64_t next; /* position after it */
    uint32_t size;
    uint32_t flags;
};

/* Begin to read a lane: from where the writer admitted this pairing, else from where `start` (enum of
 * control.proto) says. `ended`: it has no writer any more. The cell is of this session and free. */
void lane_reader_init(struct lane_reader *reader, const struct ipc_lane *lane, const unsigned char *ring,
                      uint32_t ring_size, uint32_t slot, struct ipc_cell *cell, uint64_t pairing,
                      unsigned start, bool pins, bool ended);

/* Go on where an earlier process of ours, which is dead, stood with this cell. */
void lane_reader_resume(struct lane_reader *reader, const struct ipc_lane *lane, const unsigned char *ring,
                        uint32_t ring_size, uint32_t slot, struct ipc_cell *cell);

/* The lane goes on from another one, in which the record of that number was next: what comes before the first record
 * here was lost. */
void lane_reader_continue(struct lane_reader *reader, uint64_t sequence);

/* Nobody writes any more: nothing needs to be checked. */
void lane_reader_ended(struct lane_reader *reader);

/* What peek does when it is not simply there: 1, 0, -EPROTO, or -ESTALE. */
int lane_reader_peek_slow(struct lane_reader *reader, uint64_t word, struct lane_record *record);

/* What check does when tail has passed our position: move on to the tail. Returns false. */
bool lane_reader_recheck(struct lane_reader *reader);

/* Tell the writer how far we are, and wake it if it waits for that. */
void lane_reader_report(struct lane_reader *reader);

/* Ring its bell, or try that again: the writer looks what room there is. */
void lane_reader_ring(struct lane_reader *reader);

/* About to sleep: report, and let the writer know that it has to ring (by bell, or by the futex of the word at
 * our position). Then, for all lanes at once, a barrier, lane_reader_barred() and another peek, always. Returns false
 * if a fence of our own will do for the barrier: the writer is known to fence, because we sleep often. */
bool lane_reader_arm(struct lane_reader *reader, bool bell);

/* lane_barrier() was issued since the arming. */
static inline void lane_reader_barred(struct lane_reader *reader)
{
    reader->told = reader->often;
}

/* Awake again. */
void lane_reader_disarm(struct lane_reader *reader);

/* The word to sleep on, and in *value what it must hold while there is nothing to read. False: there is, or we
 * moved since we armed, and the writer would ring at the wrong place: look again, and arm again. */
bool lane_reader_sleeps_on(struct lane_reader *reader, const _Atomic uint32_t **word, uint32_t *value);

/* True if the record at our position may be used in place, not only copied. */
bool lane_reader_in_place(struct lane_reader *reader);

static inline const _Atomic uint64_t *lane_reader_word(const struct lane_reader *reader, uint64_t position)
{
    return (const _Atomic uint64_t *)(const void *)(reader->ring + (position & (reader->ring_size - 1)));
}

static inline const unsigned char *lane_reader_body(const struct lane_reader *reader)
{
    return reader->ring + (reader->position & (reader->ring_size - 1)) + sizeof(uint64_t);
}

static inline uint64_t lane_reader_load(const struct lane_reader *reader)
{
#ifdef IPC_PLANT_RELAXED_PEEK
    return atomic_load_explicit(lane_reader_word(reader, reader->position), memory_order_relaxed);
#else
    return atomic_load_explicit(lane_reader_word(reader, reader->position),
                                LANE_PUBLISH == memory_order_seq_cst ? memory_order_seq_cst
                                                                     : memory_order_acquire);
#endif
}

/* Before a look that is expected to find something soon: ask for the last line of the next record, as if it were as long as
 * what came since the last wait, so that it comes at the same time as the word, not after it. */
static inline void lane_reader_fetch(struct lane_reader *reader)
{
    if (reader->position != reader->waited_at) {
        reader->guess = reader->position - reader->waited_at;
        reader->waited_at = reader->position;
    }
    __builtin_prefetch(reader->ring + ((reader->position + reader->guess - 1) & (reader->ring_size - 1)));
}

/* The size of a record if the word is that of the next one, committed and without headers; else any number above
 * the sizes that there are. */
static inline uint64_t lane_reader_plain(const struct lane_reader *reader, uint64_t word)
{
    return word ^ (reader->sequence << 32 | IPC_RECORD_COMMITTED);
}

/* Look at the record at our position. 1 found; 0 nothing there yet; -EPROTO the lane makes no sense;
 * -ESTALE the writer gave up waiting for us. The acquire pairs with the release in lane_writer_commit(). */
static inline int lane_reader_peek(struct lane_reader *reader, struct lane_record *record)
{
    uint64_t word = lane_reader_load(reader);
    uint32_t size = (uint32_t)word & IPC_RECORD_SIZE;
    if (__builtin_expect(lane_reader_plain(reader, word & ~(uint64_t)IPC_RECORD_HEADERS) >
                                 reader->ring_size / 2 - sizeof(uint64_t) ||
                             !reader->knows,
                         0))
        return lane_reader_peek_slow(reader, word, record);
    record->body = lane_reader_body(reader);
    record->sequence = reader->sequence;
    record->next = reader->position + ipc_record_stride(size);
    record->size = size;
    record->flags = (uint32_t)word & IPC_RECORD_HEADERS;
#ifdef IPC_PLANT_REPORT_EARLY
    atomic_store_explicit(&reader->cell->cursor, record->next, LANE_PUBLISH);
#endif
    return 1;
}

/* The copy that was made of the record counts: nobody overwrote it meanwhile. */
static inline bool lane_reader_valid(const struct lane_reader *reader)
{
#ifdef IPC_PLANT_NO_CHECK
    return true;
#endif
    lane_check_fence();
    uint64_t tail = atomic_load_explicit(&reader->lane->tail, LANE_PUBLISH == memory_order_seq_cst
                                                                  ? memory_order_seq_cst
                                                                  : memory_order_acquire);
    return __builtin_expect(tail <= reader->position, 1);
}

/* The same, and if it does not count, peek again. A reader that pins checks too: the writer may have given up
 * waiting for it in the middle of the copy. */
static inline bool lane_reader_check(struct lane_reader *reader)
{
    return lane_reader_valid(reader) || lane_reader_recheck(reader);
}

/* Go on to the next record, and hold this one in place. */
static inline void lane_reader_hold(struct lane_reader *reader, const struct lane_record *record)
{
    reader->position = record->next;
    reader->sequence = record->sequence + 1;
    reader->just_lost = 0;
}

/* Give back everything below a position. The writer is told in steps of an eighth of the ring. */
static inline void lane_reader_release(struct lane_reader *reader, uint64_t position)
{
    reader->consumed = position;
    if (position >= reader->report_at)
        lane_reader_report(reader);
}

/* Done with a record that was copied; nothing is held. */
static inline void lane_reader_advance(struct lane_reader *reader, const struct lane_record *record)
{
    lane_reader_hold(reader, record);
    lane_reader_release(reader, record->next);
}

#endif
