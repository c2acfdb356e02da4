/* SPDX-License-Identifier: Apache-2.0
 *
 * The writing end of a lane: one thread of the publishing session. Reserve, fill in, commit, ring.
 *
 * Invariants: everything in [tail, position) is a chain of committed records; the word at position is stamped
 * and not committed; no byte at or above tail + ring_size has been touched; tail never passes a counted reader
 * that pins. A process that dies between any two instructions leaves them true.
 */
#ifndef IPC_LANE_WRITER_H
#define IPC_LANE_WRITER_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libipc/lane/atomic.h"
#include "proto/layout.h"

/* How many words one round of the look after a publish takes. */
#define LANE_LOOKS 4u

/* A reader that the writer counts. */
struct lane_peer {
    const struct ipc_cell *cell; /* in the reader's segment: every load of it is checked */
    uint64_t pairing;
    uint64_t rung;   /* the armed value that was rung last */
    uint64_t start;  /* counted from here */
    uint64_t cursor; /* accepted last */
    uint32_t slot;
    int bell; /* to ring it by, or -1 */
    bool pins;
    bool fence;
    bool disconnect; /* lose it rather than let it lose records */
    bool tap;
    uint8_t fault; /* IPC_REASON_SLOW or _CORRUPT: it is not counted any more, and is to be reported */
};

struct lane_writer {
    unsigned char *ring;
    uint64_t position; /* where the next record goes */
    uint64_t limit;    /* tail + ring_size */
    uint64_t sequence;
    uint32_t ring_size;
    uint32_t peer_count;
    struct lane_peer *peers;
    const _Atomic uint64_t **armed; /* peers[i].cell->armed, for the look after each publish; filled up to
                                       a multiple of LANE_LOOKS with a word that is 0 */
    size_t armed_count;
    bool fence;
    bool faulted; /* some peer has a fault */
    bool hasty;   /* set by an owner that will not pause for a bell that is refused, and comes again itself */
    bool unrung;  /* some bell was: lane_writer_ring_armed() tries again, also at the next publish */
    bool held;    /* something was committed for which nobody was rung yet: lane_writer_ring_held() */

    struct ipc_lane *lane;
    uint64_t tail;
    uint64_t tail_sequence;
    uint32_t peer_capacity;
    uint64_t overrun;
    uint64_t lost_departed; /* of readers that left */
    uint64_t rings;
};

/* Take over a fresh lane, mapped read-write. Nothing is allocated. */
void lane_writer_init(struct lane_writer *writer, struct ipc_lane *lane, unsigned char *ring,
                      uint32_t ring_size);

/* Begin a fresh lane with that number instead of 0. */
void lane_writer_continue(struct lane_writer *writer, uint64_t sequence);

/* Take over a lane whose writer, an earlier process of ours, is dead: go on behind the last record that it committed.
 * No reader is counted yet. */
void lane_writer_resume(struct lane_writer *writer, struct ipc_lane *lane, unsigned char *ring,
                        uint32_t ring_size);

/* Free what adding readers allocated. The shared memory is the caller's. */
void lane_writer_done(struct lane_writer *writer);

/* Count a reader (peer->cell, pairing, slot, bell, pins, fence, disconnect, tap are filled in), from the cursor
 * that it chose, or from where `start` (enum of control.proto) says; wake it if it sleeps. The bell becomes the
 * writer's own. For a pairing that is counted already only the bell is replaced. Returns 0 or -ENOMEM. */
int lane_writer_add(struct lane_writer *writer, const struct lane_peer *peer, unsigned start);

/* Stop counting a reader, and say so in its slot. Returns false if the pairing was not counted; its bell is
 * closed by the caller: it is stored in *bell (or -1). */
bool lane_writer_remove(struct lane_writer *writer, uint64_t pairing, int *bell);

/* Readers that are counted and are not taps. */
unsigned lane_writer_readers(const struct lane_writer *writer);

/* Make room for a record of that stride and the word after it. -EAGAIN: readers that pin are in the way. */
int lane_writer_make_room(struct lane_writer *writer, uint32_t stride);

/* The cursor position to wait for when a record of that stride does not fit, and, in *slowest, the reader that
 * is furthest behind, with the raw value of its cursor. */
uint64_t lane_writer_want(struct lane_writer *writer, uint32_t stride, const struct lane_peer **slowest,
                          uint64_t *raw_cursor);
/* The same for a position of the caller's choice, above 0. *slowest is NULL if everybody is there already. */
void lane_writer_want_at(struct lane_writer *writer, uint64_t want, const struct lane_peer **slowest,
                         uint64_t *raw_cursor);
void lane_writer_want_clear(struct lane_writer *writer);

/* The position up to which every reader that pins has read. */
uint64_t lane_writer_consumed(struct lane_writer *writer);

/* Mark every pinning reader below the position as too slow. */
void lane_writer_fault_slow(struct lane_writer *writer, uint64_t below);

void lane_writer_ring_armed(struct lane_writer *writer);

/* How many bytes a record's body may have: the record with its word is at most half the ring. */
static inline uint32_t lane_body_size_max(uint32_t ring_size)
{
    return ring_size / 2 - (uint32_t)sizeof(uint64_t);
}

static inline unsigned char *lane_writer_body(struct lane_writer *writer, uint64_t position)
{
    return writer->ring + (position & (writer->ring_size - 1)) + sizeof(uint64_t);
}

static inline bool lane_writer_has_room(const struct lane_writer *writer, uint64_t stride)
{
#ifdef IPC_PLANT_ROOM_SHORT
    return writer->position + stride <= writer->limit;
#endif
    return writer->position + stride + sizeof(uint64_t) <= writer->limit;
}

/* Room for a body of that size at the writer's position. 0, -EAGAIN, or -EMSGSIZE. */
static inline int lane_writer_reserve(struct lane_writer *writer, uint32_t size, unsigned char **body)
{
    if (__builtin_expect(size > lane_body_size_max(writer->ring_size), 0))
        return -EMSGSIZE;
    uint32_t stride = ipc_record_stride(size);
    if (__builtin_expect(!lane_writer_has_room(writer, stride), 0)) {
        int result = lane_writer_make_room(writer, stride);
        if (result < 0)
            return result;
    }
    *body = lane_writer_body(writer, writer->position);
#ifdef IPC_PLANT_COMMIT_EARLY
    *(_Atomic uint64_t *)(void *)(*body - 8) = writer->sequence << 32 | IPC_RECORD_COMMITTED | size;
#endif
    return 0;
}

static inline _Atomic uint64_t *lane_writer_word(struct lane_writer *writer, uint64_t position)
{
    return (_Atomic uint64_t *)(void *)(writer->ring + (position & (writer->ring_size - 1)));
}

static inline uint64_t lane_record_word(uint64_t sequence, uint32_t size, uint32_t flags)
{
    return sequence << 32 | IPC_RECORD_COMMITTED | flags | size;
}

/* Stamp the word that comes after the records below `end`. */
static inline void lane_writer_stamp(struct lane_writer *writer, uint64_t end)
{
    _Atomic uint32_t *word = (_Atomic uint32_t *)(void *)lane_writer_word(writer, end);
    atomic_store_explicit(word, ipc_record_stamp(end, writer->ring_size), memory_order_relaxed);
}

/* After a publish: what all who may sleep say, as far as somebody has to be seen to. Then lane_writer_ring_any(). */
static inline uint64_t lane_writer_look(const struct lane_writer *writer)
{
    lane_publish_fence(writer->fence);
    uint64_t any = 0;
    for (size_t i = 0; i < writer->armed_count; i += LANE_LOOKS)
        any |= atomic_load_explicit(writer->armed[i], LANE_LOOK) |
               atomic_load_explicit(writer->armed[i + 1], LANE_LOOK) |
               atomic_load_explicit(writer->armed[i + 2], LANE_LOOK) |
               atomic_load_explicit(writer->armed[i + 3], LANE_LOOK);
    return any & (IPC_ARMED | IPC_ARMED_FENCE);
}

/* Wake whoever sleeps. `any`: what the look saw. */
static inline void lane_writer_ring_any(struct lane_writer *writer, uint64_t any)
{
    if (__builtin_expect(any != 0, 0)) {
#if !defined(IPC_TSAN) && !defined(IPC_PLANT_NO_OFTEN_FENCE)
        if (any & IPC_ARMED_FENCE) /* pairs with the fence of a reader that sleeps often */
            atomic_thread_fence(memory_order_seq_cst);
#endif
        lane_writer_ring_armed(writer);
    }
}

static inline void lane_writer_ring(struct lane_writer *writer)
{
    lane_writer_ring_any(writer, lane_writer_look(writer));
}

/* Publish the body that was reserved and filled in; whoever sleeps is still to be woken. The release pairs with
 * the acquire in lane_reader_peek(). */
static inline void lane_writer_put(struct lane_writer *writer, uint32_t size, uint32_t flags)
{
    _Atomic uint64_t *word = lane_writer_word(writer, writer->position);
    uint64_t end = writer->position + ipc_record_stride(size);
    uint64_t sequence = writer->sequence;
#ifdef IPC_PLANT_RING_EARLY
    lane_writer_ring(writer);
#endif
#ifndef IPC_PLANT_STAMP_LATE
    lane_writer_stamp(writer, end);
#endif
    atomic_store_explicit(word, lane_record_word(sequence, size, flags), LANE_PUBLISH);
#ifdef IPC_PLANT_STAMP_LATE
    lane_writer_stamp(writer, end);
#endif
    writer->position = end;
    writer->sequence = sequence + 1;
}

static inline void lane_writer_commit(struct lane_writer *writer, uint32_t size, uint32_t flags)
{
    lane_writer_put(writer, size, flags);
#ifndef IPC_PLANT_RING_EARLY
    lane_writer_ring(writer);
#endif
}

/* If more is to come, whoever sleeps is woken with the next commit without `more`, by lane_writer_ring_held(), or before room
 * is made; and if this process dies before that, by the notice of its death. */
static inline void lane_writer_ring_or_hold(struct lane_writer *writer, bool more)
{
    if (__builtin_expect(more, 0))
        writer->held = true;
    else
        lane_writer_ring(writer);
}

static inline void lane_writer_commit_more(struct lane_writer *writer, uint32_t size, uint32_t flags,
                                           bool more)
{
    lane_writer_put(writer, size, flags);
    lane_writer_ring_or_hold(writer, more);
}

static inline void lane_writer_ring_held(struct lane_writer *writer)
{
    if (!writer->held)
        return;
    writer->held = false;
#ifndef IPC_PLANT_RING_FORGOTTEN
    lane_writer_ring(writer);
#endif
}

/* Several records that become visible by one store: the word of the first one, which comes last. Begin; for each one
 * make room for all so far, fill in its body, put; commit. Not committed, it was never there. */
struct lane_batch {
    uint64_t position; /* where the next record goes */
    uint64_t count;
    uint64_t first; /* the first one's word */
};

static inline struct lane_batch lane_batch_begin(const struct lane_writer *writer)
{
    return (struct lane_batch){.position = writer->position};
}

/* Where the body of the next record goes, if there is room for one of that size: 0, -EAGAIN, or -EMSGSIZE. */
static inline int lane_batch_reserve(struct lane_writer *writer, const struct lane_batch *batch,
                                     uint32_t size, unsigned char **body)
{
    if (__builtin_expect(size > lane_body_size_max(writer->ring_size), 0))
        return -EMSGSIZE;
    uint64_t strides = batch->position - writer->position + ipc_record_stride(size);
    if (__builtin_expect(!lane_writer_has_room(writer, strides), 0)) {
        if (strides + sizeof(uint64_t) > writer->ring_size)
            return -EAGAIN;
        int result = lane_writer_make_room(writer, (uint32_t)strides);
        if (result < 0)
            return result;
    }
    *body = lane_writer_body(writer, batch->position);
    return 0;
}

static inline void lane_batch_put(struct lane_writer *writer, struct lane_batch *batch, uint32_t size,
                                  uint32_t flags)
{
    uint64_t word = lane_record_word(writer->sequence + batch->count, size, flags);
    if (batch->count++ == 0)
        batch->first = word;
    else
        atomic_store_explicit(lane_writer_word(writer, batch->position), word, memory_order_relaxed);
    batch->position += ipc_record_stride(size);
}

/* The release pairs with the acquire in lane_reader_peek(). `more`: as in lane_writer_commit_more(). */
static inline void lane_batch_commit_more(struct lane_writer *writer, const struct lane_batch *batch,
                                          bool more)
{
    if (batch->count == 0)
        return;
    lane_writer_stamp(writer, batch->position);
    atomic_store_explicit(lane_writer_word(writer, writer->position), batch->first, LANE_PUBLISH);
    writer->position = batch->position;
    writer->sequence += batch->count;
    lane_writer_ring_or_hold(writer, more);
}

static inline void lane_batch_commit(struct lane_writer *writer, const struct lane_batch *batch)
{
    lane_batch_commit_more(writer, batch, false);
}

#endif
