/* SPDX-License-Identifier: Apache-2.0
 *
 * Orders of the lane's shared words, and copies to and from a ring.
 *
 * The lane avoids a fence per message: whoever goes to sleep pays for a barrier in all other processes
 * (membarrier(2), GLOBAL_EXPEDITED), so the awake side needs compiler order only. ThreadSanitizer knows neither
 * that barrier nor plain fences, so under it the four accesses of each such handshake are sequentially
 * consistent, and ring copies are relaxed atomics (a drop-oldest reader copies first and checks then).
 */
#ifndef IPC_LANE_ATOMIC_H
#define IPC_LANE_ATOMIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef IPC_TSAN
# define LANE_PUBLISH memory_order_seq_cst /* store of what the sleeper looks at again */
# define LANE_LOOK    memory_order_seq_cst /* load of who sleeps, after the publish */
#else
# define LANE_PUBLISH memory_order_release
# define LANE_LOOK    memory_order_relaxed
#endif

/* Between a publish and the look at who sleeps. `fence`: some sleeper cannot, or does not want to, issue the barrier for
 * us. Pairs with lane_barrier() after lane_reader_arm(). */
static inline void lane_publish_fence(bool fence)
{
#ifndef IPC_TSAN
    if (__builtin_expect(fence, 0))
        atomic_thread_fence(memory_order_seq_cst);
    else
        atomic_signal_fence(memory_order_seq_cst);
#else
    (void)fence;
#endif
}

/* Between the copy out of a ring and the check of its tail. Pairs with lane_overwrite_fence(). */
static inline void lane_check_fence(void)
{
#ifndef IPC_TSAN
    atomic_thread_fence(memory_order_acquire);
#endif
}

/* Between the store of tail and the first store into what lies below it. Pairs with lane_check_fence(). */
static inline void lane_overwrite_fence(void)
{
#ifndef IPC_TSAN
    atomic_thread_fence(memory_order_release);
#endif
}

/* Sizes that lane_copy_in() and lane_copy_out() copy without a call. */
static inline bool lane_copies(size_t size)
{
    return size - 8 <= 120;
}

/* How far ahead a ring is fetched for writing, and what a line is; measured, see docs/performance.md. */
#define LANE_AHEAD 2048u
#define LANE_LINE  64u

/* Ask for the line to write to. (The compiler's own asks for one to read, unless it compiles for one machine.) */
static inline void lane_fetch_line(const unsigned char *at)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*at));
#else
    __builtin_prefetch(at, 1, 3);
#endif
}

/* Before `size` bytes are written: ask for as many further on, for every line of them. One that is left out costs the
 * whole way to the other core, and the records behind it wait. */
__attribute__((always_inline)) static inline void lane_fetch(const unsigned char *at, size_t size)
{
    lane_fetch_line(at + LANE_AHEAD);
    lane_fetch_line(at + LANE_AHEAD + LANE_LINE);
    for (size_t done = 2 * LANE_LINE; done < size && done < LANE_AHEAD; done += LANE_LINE)
        lane_fetch_line(at + LANE_AHEAD + done);
}

/* The same before `size` bytes are read, of what is read in order. */
static inline void lane_fetch_read(const void *at, size_t size)
{
    for (size_t done = 0; done < size + LANE_LINE && done < LANE_AHEAD; done += LANE_LINE)
        __builtin_prefetch((const unsigned char *)at + LANE_AHEAD + done);
}

#ifdef IPC_TSAN
static inline void lane_copy_in(void *ring, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        atomic_store_explicit((_Atomic unsigned char *)ring + i, ((const unsigned char *)from)[i],
                              memory_order_relaxed);
}
static inline void lane_copy_out(void *to, const void *ring, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)to)[i] =
            atomic_load_explicit((const _Atomic unsigned char *)ring + i, memory_order_relaxed);
}
#else
/* A call into libc for each small message costs more than the copy: sizes up to 128 are done here by two
 * overlapping halves of constant size. (Vectors, not arrays: those would bring a stack canary.) */
typedef uint64_t lane_vector __attribute__((vector_size(16)));

/* Twice 32 bytes, all of them loaded before any is stored. */
__attribute__((always_inline)) static inline void lane_copy_32(unsigned char *to, const unsigned char *from,
                                                               const unsigned char *from2, unsigned char *to2)
{
    lane_vector a, b, c, d;
    memcpy(&a, from, 16);
    memcpy(&b, from + 16, 16);
    memcpy(&c, from2, 16);
    memcpy(&d, from2 + 16, 16);
    memcpy(to, &a, 16);
    memcpy(to + 16, &b, 16);
    memcpy(to2, &c, 16);
    memcpy(to2 + 16, &d, 16);
}
__attribute__((always_inline)) static inline void lane_copy(void *to, const void *from, size_t size)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    if (!lane_copies(size)) {
        if (size)
            memcpy(t, f, size);
    } else if (size <= 16) {
        uint64_t a, b;
        memcpy(&a, f, 8);
        memcpy(&b, f + size - 8, 8);
        memcpy(t, &a, 8);
        memcpy(t + size - 8, &b, 8);
    } else if (size <= 32) {
        lane_vector a, b;
        memcpy(&a, f, 16);
        memcpy(&b, f + size - 16, 16);
        memcpy(t, &a, 16);
        memcpy(t + size - 16, &b, 16);
    } else if (size <= 64) {
        lane_copy_32(t, f, f + size - 32, t + size - 32);
    } else {
        lane_copy_32(t, f, f + 32, t + 32);
        lane_copy_32(t + size - 64, f + size - 64, f + size - 32, t + size - 32);
    }
}
__attribute__((always_inline)) static inline void lane_copy_in(void *ring, const void *from, size_t size)
{
    lane_copy(ring, from, size);
}
__attribute__((always_inline)) static inline void lane_copy_out(void *to, const void *ring, size_t size)
{
    lane_copy(to, ring, size);
}
#endif

#endif
