/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/limit_ring.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/bench.h"

#define AHEAD       2048u /* bytes */
#define LINE        64u
#define BACKOFF_MAX 256u /* pauses */

struct raw_ring *raw_ring_new(uint32_t size, uint32_t ring_size, uint32_t spins, bool stream)
{
    uint32_t slot_size = (uint32_t)sizeof(uint64_t) + ((size + 7) & ~7u);
    size_t map_size = sizeof(struct raw_ring) + ring_size + 2 * AHEAD;
    struct raw_ring *ring = bench_shared(map_size);

    ring->slot_size = slot_size;
    ring->slots = ring_size / slot_size;
    ring->size = size;
    ring->spins = spins;
    ring->fetch = stream;
    ring->map_size = map_size;
    return ring;
}

void raw_ring_free(struct raw_ring *ring)
{
    munmap(ring, ring->map_size);
}

void raw_writer_init(struct raw_writer *writer, struct raw_ring *ring)
{
    *writer = (struct raw_writer){.ring = ring,
                                  .slot = ring->data,
                                  .end = ring->data + (size_t)ring->slots * ring->slot_size,
                                  .number = 1,
                                  .limit = ring->slots};
}

void raw_reader_init(struct raw_reader *reader, struct raw_ring *ring)
{
    *reader = (struct raw_reader){.ring = ring,
                                  .slot = ring->data,
                                  .end = ring->data + (size_t)ring->slots * ring->slot_size,
                                  .number = 1};
}

/* The other side looks at the word after it has moved the ring on, and takes it back when it wakes us; so one
 * system call wakes, and one that comes too early only makes us look again. */
static void sleep_on(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAIT, 1, NULL, NULL, 0);
}

static inline void wake(_Atomic uint32_t *word)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(word, memory_order_relaxed)) {
        atomic_store_explicit(word, 0, memory_order_relaxed);
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

static inline void copy(void *to, const void *from, uint32_t size)
{
    if (size == 64) /* the compiler makes a few moves of it */
        memcpy(to, from, 64);
    else if (size == 16)
        memcpy(to, from, 16);
    else
        memcpy(to, from, size);
}

/* Ask for every line that will be written AHEAD bytes further on. (The compiler's own asks for one to read.) */
static inline void fetch(const unsigned char *slot, uint32_t size)
{
    for (uint32_t done = 0; done < size + LINE && done < AHEAD; done += LINE)
#if defined(__x86_64__)
        __asm__ volatile("prefetchw %0" : : "m"(slot[AHEAD + done]));
#else
        __builtin_prefetch(slot + AHEAD + done, 1, 3);
#endif
}

static __attribute__((noinline)) void wait_for_room(struct raw_writer *writer)
{
    struct raw_ring *ring = writer->ring;
    for (uint32_t looks = 0;; looks++) {
        uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
        /* The tail has 32 bits, the numbers have 64: the distance is small. */
        uint64_t consumed = writer->number - 1 - (uint32_t)((uint32_t)(writer->number - 1) - tail);
        writer->limit = consumed + ring->slots;
        if (writer->number <= writer->limit)
            return;
        if (looks < ring->spins) {
            bench_pause();
            continue;
        }
        atomic_store(&ring->writer_sleeps, 1);
        if (atomic_load(&ring->tail) == tail)
            sleep_on(&ring->writer_sleeps);
        atomic_store_explicit(&ring->writer_sleeps, 0, memory_order_relaxed);
    }
}

static inline void put(struct raw_writer *writer, const void *data)
{
    struct raw_ring *ring = writer->ring;
    unsigned char *slot = writer->slot;

    if (__builtin_expect(writer->number > writer->limit, 0))
        wait_for_room(writer);
    if (ring->fetch)
        fetch(slot, ring->slot_size);
    copy(slot + 8, data, ring->size);
    atomic_store_explicit((_Atomic uint64_t *)(void *)slot, writer->number, memory_order_release);
    if (ring->spins != RAW_SPIN)
        wake(&ring->reader_sleeps);
    slot += ring->slot_size;
    writer->slot = slot < writer->end ? slot : ring->data;
    writer->number++;
}

void raw_put(struct raw_writer *writer, const void *data)
{
    put(writer, data);
}

void raw_put_many(struct raw_writer *writer, const unsigned char *data, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        put(writer, data + (size_t)i * writer->ring->size);
}

static __attribute__((noinline)) void store_tail(struct raw_reader *reader)
{
    struct raw_ring *ring = reader->ring;
    reader->stored = reader->number;
    atomic_store_explicit(&ring->tail, (uint32_t)(reader->number - 1), memory_order_release);
    if (ring->spins != RAW_SPIN)
        wake(&ring->writer_sleeps);
}

static inline bool try_get(struct raw_reader *reader, void *data)
{
    struct raw_ring *ring = reader->ring;
    unsigned char *slot = reader->slot;

    if (atomic_load_explicit((_Atomic uint64_t *)(void *)slot, memory_order_acquire) != reader->number)
        return false;
    if (ring->in_order)
        bench_in_order();
    copy(data, slot + 8, ring->size);
    reader->run++;
    slot += ring->slot_size;
    reader->slot = slot < reader->end ? slot : ring->data;
    reader->number++;
    if (reader->number - reader->stored >= ring->slots / 8)
        store_tail(reader);
    return true;
}

bool raw_try_get(struct raw_reader *reader, void *data)
{
    return try_get(reader, data);
}

/* Nothing there. In a stream (several messages since the last time) let the writer get ahead. */
static __attribute__((noinline)) void wait_for_message(struct raw_reader *reader)
{
    struct raw_ring *ring = reader->ring;
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)reader->slot;

    reader->looks = reader->run ? 0 : reader->looks + 1;
    if (ring->spins != RAW_SPIN && reader->looks >= ring->spins) {
        atomic_store(&ring->reader_sleeps, 1);
        if (atomic_load(word) != reader->number)
            sleep_on(&ring->reader_sleeps);
        atomic_store_explicit(&ring->reader_sleeps, 0, memory_order_relaxed);
        reader->run = 0;
        return;
    }
    if (reader->run >= 2) {
        reader->backoff = reader->backoff ? reader->backoff * 2 : 4;
        if (reader->backoff > BACKOFF_MAX)
            reader->backoff = BACKOFF_MAX;
    } else if (reader->run == 1) {
        reader->backoff /= 2;
        if (++reader->probe % 64 == 0)
            reader->backoff = 4;
    }
    if (reader->run)
        for (uint32_t i = 0; i < reader->backoff; i++)
            bench_pause();
    reader->run = 0;
    bench_pause();
}

void raw_get(struct raw_reader *reader, void *data)
{
    while (!try_get(reader, data))
        wait_for_message(reader);
}

void raw_get_many(struct raw_reader *reader, unsigned char *data, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        while (!try_get(reader, data + (size_t)i * reader->ring->size))
            wait_for_message(reader);
}
