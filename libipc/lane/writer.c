/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/lane/writer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"

/* tail moves in steps of this part of the ring, so that readers rarely see its line change. */
#define TAIL_STEPS 16u

void lane_writer_init(struct lane_writer *writer, struct ipc_lane *lane, unsigned char *ring,
                      uint32_t ring_size)
{
    *writer = (struct lane_writer){.lane = lane, .ring = ring, .ring_size = ring_size, .limit = ring_size};
    lane_writer_stamp(writer, 0);
}

void lane_writer_continue(struct lane_writer *writer, uint64_t sequence)
{
    writer->sequence = writer->tail_sequence = sequence;
    atomic_store_explicit(&writer->lane->tail_sequence, sequence, memory_order_relaxed);
}

void lane_writer_resume(struct lane_writer *writer, struct ipc_lane *lane, unsigned char *ring,
                        uint32_t ring_size)
{
    *writer = (struct lane_writer){.lane = lane, .ring = ring, .ring_size = ring_size};
    writer->tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);
    writer->tail_sequence = atomic_load_explicit(&lane->tail_sequence, memory_order_relaxed);
    writer->overrun = atomic_load_explicit(&lane->overrun, memory_order_relaxed);
    writer->limit = writer->tail + ring_size;
    writer->position = writer->tail;
    writer->sequence = writer->tail_sequence;
    while (writer->position < writer->limit) {
        uint64_t word =
            atomic_load_explicit(lane_writer_word(writer, writer->position), memory_order_relaxed);
        if (!((uint32_t)word & IPC_RECORD_COMMITTED))
            break;
        if (writer->position ==
            writer->tail) { /* it may have been killed between the two words of its tail */
            writer->sequence +=
                (uint64_t)(int64_t)(int32_t)((uint32_t)(word >> 32) - (uint32_t)writer->sequence);
            writer->tail_sequence = writer->sequence;
        }
        writer->position += ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
        writer->sequence++;
    }
    lane_writer_stamp(writer, writer->position);
    lane_writer_want_clear(writer);
}

void lane_writer_done(struct lane_writer *writer)
{
    free(writer->peers);
    free(writer->armed);
    writer->peers = NULL;
    writer->armed = NULL;
    writer->peer_count = writer->peer_capacity = 0;
    writer->armed_count = 0;
}

static void peer_fault(struct lane_writer *writer, struct lane_peer *peer, uint8_t reason)
{
    peer->fault = reason;
    peer->pins = false;
    writer->faulted = true;
}

/* The position up to which a reader has read, and in *raw the word as it stands in its segment. The acquire on
 * cursor pairs with the release in lane_reader_report(): its reads are over before we overwrite. A cursor counts
 * only if the cell serves this pairing, and if it moved forward and not beyond what was published. */
static uint64_t peer_cursor(struct lane_writer *writer, struct lane_peer *peer, uint64_t *raw)
{
    uint64_t owner = atomic_load_explicit(&peer->cell->owner, memory_order_acquire);
    uint64_t cursor = atomic_load_explicit(&peer->cell->cursor, LANE_PUBLISH == memory_order_seq_cst
                                                                    ? memory_order_seq_cst
                                                                    : memory_order_acquire);
    if (raw) {
        /* To be slept on: if the reader attached between the two loads, it may have reported and rung already. */
        if (owner != peer->pairing &&
            atomic_load_explicit(&peer->cell->owner, memory_order_acquire) == peer->pairing) {
            owner = peer->pairing;
            cursor = atomic_load_explicit(&peer->cell->cursor, memory_order_acquire);
        }
        *raw = cursor;
    }
#ifdef IPC_PLANT_CURSOR_UNCHECKED
    return cursor;
#endif
    if (owner != peer->pairing || cursor < peer->start)
        return peer->cursor;
    if (cursor < peer->cursor || cursor > writer->position || cursor % IPC_RECORD_ALIGN != 0) {
        if (!peer->fault)
            peer_fault(writer, peer, IPC__CONTROL__REASON__REASON_CORRUPT);
        return peer->cursor;
    }
    peer->cursor = cursor;
    return cursor;
}

/* Rebuild what depends on the set of readers. */
static void peers_changed(struct lane_writer *writer)
{
    static const _Atomic uint64_t nobody;
    writer->fence = !lane_barrier_register();
    uint32_t i = 0;
    for (; i < writer->peer_count; i++) {
        writer->armed[i] = &writer->peers[i].cell->armed;
        writer->fence = writer->fence || writer->peers[i].fence;
    }
    for (; i % LANE_LOOKS; i++)
        writer->armed[i] = &nobody;
    writer->armed_count = i;
}

static int peers_reserve(struct lane_writer *writer)
{
    if (writer->peer_count < writer->peer_capacity)
        return 0;
    uint32_t capacity = writer->peer_capacity ? 2 * writer->peer_capacity : LANE_LOOKS;
    struct lane_peer *peers = realloc(writer->peers, capacity * sizeof(*peers));
    if (!peers)
        return -ENOMEM;
    writer->peers = peers;
    const _Atomic uint64_t **armed = realloc(writer->armed, capacity * sizeof(*armed));
    if (!armed)
        return -ENOMEM;
    writer->armed = armed;
    writer->peer_capacity = capacity;
    return 0;
}

static uint64_t record_next(struct lane_writer *writer, uint64_t position)
{
    uint64_t word = atomic_load_explicit(lane_writer_word(writer, position), memory_order_relaxed);
    return position + ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
}

/* Position and sequence of the last record that is still there. */
static uint64_t last_record(struct lane_writer *writer, uint64_t *sequence)
{
    uint64_t position = writer->tail, last = writer->position;
    *sequence = writer->sequence;
    for (; position < writer->position; position = record_next(writer, position))
        last = position;
    if (last < writer->position)
        *sequence = writer->sequence - 1;
    return last;
}

/* The number of the record at a position that a reader chose. False: no record begins there. */
static bool record_sequence(struct lane_writer *writer, uint64_t position, uint64_t *ret)
{
    uint64_t at = writer->tail, sequence = writer->tail_sequence;
    if (position == writer->position) {
        at = position;
        sequence = writer->sequence;
    }
    for (; at < position; at = record_next(writer, at))
        sequence++;
    if (at == position)
        *ret = sequence;
    return at == position;
}

int lane_writer_add(struct lane_writer *writer, const struct lane_peer *peer, unsigned start)
{
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *known = &writer->peers[i];
        if (known->pairing == peer->pairing) {
            if (peer->bell >= 0) {
                if (known->bell >= 0)
                    close(known->bell);
                known->bell = peer->bell;
            }
            known->rung = 0;
            lane_writer_ring_armed(writer);
            return 0;
        }
    }
    if (peers_reserve(writer) < 0)
        return -ENOMEM;

    uint64_t position = writer->position, sequence = writer->sequence;
    uint64_t owner = atomic_load_explicit(&peer->cell->owner, memory_order_acquire);
    uint64_t cursor = atomic_load_explicit(&peer->cell->cursor, memory_order_acquire);
    if (start == IPC__CONTROL__START__START_OLDEST) {
        position = writer->tail;
        sequence = writer->tail_sequence;
    } else if (start == IPC__CONTROL__START__START_LAST) {
        position = last_record(writer, &sequence);
    }
    if (owner == peer->pairing && cursor >= writer->tail && cursor <= writer->position &&
        record_sequence(writer, cursor, &sequence))
        position = cursor;

    struct lane_peer *added = &writer->peers[writer->peer_count++];
    *added = *peer;
    added->start = added->cursor = position;
    added->rung = 0;
    added->fault = 0;
    peers_changed(writer);

    /* The reader that finds start set takes it; one that began by itself learns from it what it missed. */
    struct ipc_slot *slot = &writer->lane->slots[peer->slot];
#ifdef IPC_PLANT_START_EARLY
    atomic_store_explicit(&slot->start, position | 1, memory_order_release);
#endif
    atomic_store_explicit(&slot->start_sequence, sequence, memory_order_relaxed);
    atomic_store_explicit(&slot->start, position | 1, memory_order_release);
    lane_writer_ring(writer);
    return 0;
}

bool lane_writer_remove(struct lane_writer *writer, uint64_t pairing, int *bell)
{
    *bell = -1;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        if (peer->pairing != pairing)
            continue;
        *bell = peer->bell;
        if (atomic_load_explicit(&peer->cell->owner, memory_order_acquire) == pairing)
            writer->lost_departed += atomic_load_explicit(&peer->cell->lost, memory_order_relaxed);
        atomic_store_explicit(&writer->lane->slots[peer->slot].start, 0, memory_order_release);
        memmove(peer, peer + 1, (writer->peer_count - i - 1) * sizeof(*peer));
        writer->peer_count--;
        peers_changed(writer);
        return true;
    }
    return false;
}

unsigned lane_writer_readers(const struct lane_writer *writer)
{
    unsigned readers = 0;
    for (uint32_t i = 0; i < writer->peer_count; i++)
        readers += !writer->peers[i].tap && !writer->peers[i].fault;
    return readers;
}

/* The lowest position that a pinning reader still needs. */
static uint64_t pinned(struct lane_writer *writer)
{
    uint64_t lowest = writer->position;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        if (!peer->pins)
            continue;
        uint64_t cursor = peer_cursor(writer, peer, NULL);
        if (peer->pins && cursor < lowest)
            lowest = cursor;
    }
    return lowest;
}

/* Readers that do not pin and stand below `target` are about to lose records: refresh their cursors, so that
 * each record that passes can be counted, and let go of those that would rather leave. */
static bool laggards(struct lane_writer *writer, uint64_t target)
{
    bool some = false;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        if (peer->pins || peer->fault || peer->cursor >= target || peer_cursor(writer, peer, NULL) >= target
#ifndef IPC_PLANT_REASON_OVERWRITTEN
            || peer->fault
#endif
        )
            continue;
        if (peer->disconnect)
            peer_fault(writer, peer, IPC__CONTROL__REASON__REASON_SLOW);
        else
            some = true;
    }
    return some;
}

static void count_overrun(struct lane_writer *writer, uint64_t position)
{
    for (uint32_t i = 0; i < writer->peer_count; i++)
        if (!writer->peers[i].pins && !writer->peers[i].fault && writer->peers[i].cursor <= position)
            writer->overrun++;
}

int lane_writer_make_room(struct lane_writer *writer, uint32_t stride)
{
    lane_writer_ring_held(writer); /* those in the way may sleep */
    uint64_t needed = writer->position + stride + sizeof(uint64_t) - writer->ring_size;
    uint64_t target = needed + writer->ring_size / TAIL_STEPS;
    uint64_t lowest = pinned(writer);
    if (lowest < needed)
        return -EAGAIN;
    if (target > lowest)
        target = lowest;

    bool counting = laggards(writer, target);
    uint64_t tail = writer->tail, sequence = writer->tail_sequence;
    while (tail < target) {
        uint64_t next = record_next(writer, tail);
        if (next > lowest)
            break;
        if (counting)
            count_overrun(writer, tail);
        tail = next;
        sequence++;
    }
    if (tail < needed) {
        /* Nobody stands below what is needed, and yet the record at tail is: a cursor lies inside of it. */
        uint64_t next = record_next(writer, tail);
        for (uint32_t i = 0; i < writer->peer_count; i++)
            if (writer->peers[i].pins && writer->peers[i].cursor < next)
                peer_fault(writer, &writer->peers[i], IPC__CONTROL__REASON__REASON_CORRUPT);
        return -EAGAIN;
    }

    struct ipc_lane *lane = writer->lane;
    atomic_store_explicit(&lane->tail_sequence, sequence, memory_order_relaxed);
#ifndef IPC_PLANT_TAIL_LATE
    atomic_store_explicit(&lane->tail, tail, LANE_PUBLISH);
#endif
    atomic_store_explicit(&lane->head, writer->position, memory_order_release);
    atomic_store_explicit(&lane->overrun, writer->overrun, memory_order_relaxed);
    lane_overwrite_fence();
    writer->tail = tail;
    writer->tail_sequence = sequence;
    writer->limit = tail + writer->ring_size;
    return 0;
}

uint64_t lane_writer_want(struct lane_writer *writer, uint32_t stride, const struct lane_peer **slowest,
                          uint64_t *raw_cursor)
{
    uint64_t room = stride + sizeof(uint64_t);
    if (room < writer->ring_size / 4)
        room = writer->ring_size / 4;
    uint64_t want = writer->position + room - writer->ring_size;
    lane_writer_want_at(writer, want, slowest, raw_cursor);
    return want;
}

void lane_writer_want_at(struct lane_writer *writer, uint64_t want, const struct lane_peer **slowest,
                         uint64_t *raw_cursor)
{
    atomic_store_explicit(&writer->lane->want, want, LANE_PUBLISH);
    lane_publish_fence(true); /* pairs with the one in lane_reader_report() */

    *slowest = NULL;
    uint64_t lowest = want;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        uint64_t raw;
        if (!peer->pins)
            continue;
        uint64_t cursor = peer_cursor(writer, peer, &raw);
        if (peer->pins && cursor < lowest) {
            lowest = cursor;
            *slowest = peer;
            *raw_cursor = raw;
        }
    }
}

uint64_t lane_writer_consumed(struct lane_writer *writer)
{
    return pinned(writer);
}

void lane_writer_want_clear(struct lane_writer *writer)
{
    atomic_store_explicit(&writer->lane->want, 0, memory_order_relaxed);
}

void lane_writer_fault_slow(struct lane_writer *writer, uint64_t below)
{
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        if (peer->pins && peer_cursor(writer, peer, NULL) < below && peer->pins)
            peer_fault(writer, peer, IPC__CONTROL__REASON__REASON_SLOW);
    }
}

static void ring_each(struct lane_writer *writer)
{
    writer->unrung = false;
    uint64_t woken = UINT64_MAX;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct lane_peer *peer = &writer->peers[i];
        uint64_t armed = atomic_load_explicit(&peer->cell->armed, memory_order_acquire);
#ifdef IPC_PLANT_RING_AGAIN
        peer->rung = 0;
#endif
        if (!(armed & IPC_ARMED) || armed == peer->rung)
            continue;
        /* It stored where it sleeps before it armed. (Its cursor stays behind while it holds records in place.)
         * If nothing is there yet, what we look after is a record that it has read: a ring now could come before
         * it sleeps and leave the word as it is, and the ring that it needs would be withheld. */
        uint64_t asleep = atomic_load_explicit(&peer->cell->asleep, memory_order_relaxed);
#ifndef IPC_PLANT_RING_STALE
        if (asleep == writer->position)
            continue;
#endif
        if (armed & IPC_ARMED_BELL) {
            if (peer->bell < 0)
                continue; /* it is on its way: the notice that brings it rings */
            if (!lane_bell_ring(peer->bell)) {
                writer->unrung = true;
                continue;
            }
            peer->rung = armed;
        } else {
            peer->rung = armed;
            /* A wrong position wakes nobody, within our own ring. */
#ifdef IPC_PLANT_RING_CURSOR
            asleep = atomic_load_explicit(&peer->cell->cursor, memory_order_relaxed);
#endif
            uint64_t offset = asleep & (writer->ring_size - 1) & ~(uint64_t)(IPC_RECORD_ALIGN - 1);
            if (offset == woken)
                continue;
            woken = offset;
            lane_wake(lane_low_half(writer->ring + offset), false);
        }
        writer->rings++;
    }
}

void lane_writer_ring_armed(struct lane_writer *writer)
{
    unsigned tries = 0;
    do
        ring_each(writer);
    while (writer->unrung && !writer->hasty && lane_bell_again(&tries));
}
