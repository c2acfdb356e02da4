/* SPDX-License-Identifier: Apache-2.0
 *
 * The raw ring: what shared memory can do between one producer and one consumer when nothing is asked of it but
 * speed. No names, no other readers, no other sizes, no death, no distrust. The limit that the product is
 * measured against, so it uses every honest trick we know:
 *
 * - Slots of one size; the slot's own word, the message's number, commits it: one cache line moves per message,
 *   and nothing is zeroed ahead. One mapping, inherited by fork, every page touched before.
 * - The reader's position is stored in steps of an eighth of the ring, and read when the ring seems full.
 * - In streams the writer asks for every line that it will write two kilobytes later, for writing.
 * - A reader that caught up with a stream waits a little, so that it does not pull each line away from under
 *   the writer; it does not when messages come one by one.
 */
#ifndef BENCH_LIMIT_RING_H
#define BENCH_LIMIT_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RAW_SPIN UINT32_MAX

struct raw_ring {
    uint32_t slot_size; /* bytes, word included */
    uint32_t slots;
    uint32_t size;  /* of a message */
    uint32_t spins; /* looks before a waiter sleeps; RAW_SPIN: it never does */
    bool in_order;  /* nothing is done ahead of a look that finds a message: no guess that it will */
    bool fetch;     /* a stream: ask for lines ahead (in round trips that costs more than it brings) */
    size_t map_size;
    _Alignas(128) _Atomic uint32_t tail; /* messages consumed, in steps */
    /* 1: sleeps. Set by the sleeper, taken back by whoever wakes it; futex words. */
    _Alignas(128) _Atomic uint32_t reader_sleeps;
    _Alignas(128) _Atomic uint32_t writer_sleeps;
    _Alignas(4096) unsigned char data[];
};

struct raw_writer {
    struct raw_ring *ring;
    unsigned char *slot, *end;
    uint64_t number, limit; /* of the next message; the last that fits, as far as was seen */
};
struct raw_reader {
    struct raw_ring *ring;
    unsigned char *slot, *end;
    uint64_t number, stored;
    uint32_t run, backoff, probe, looks;
};

struct raw_ring *raw_ring_new(uint32_t size, uint32_t ring_size, uint32_t spins, bool stream);
void raw_ring_free(struct raw_ring *ring);
void raw_writer_init(struct raw_writer *writer, struct raw_ring *ring);
void raw_reader_init(struct raw_reader *reader, struct raw_ring *ring);

/* One message of the ring's size, copied in or out; waits for room, or for a message. */
void raw_put(struct raw_writer *writer, const void *data);
void raw_get(struct raw_reader *reader, void *data);
/* Several messages, one after the other in `data`, without a call for each. */
void raw_put_many(struct raw_writer *writer, const unsigned char *data, unsigned count);
void raw_get_many(struct raw_reader *reader, unsigned char *data, unsigned count);
/* The same without waiting. */
bool raw_try_get(struct raw_reader *reader, void *data);

#endif
