/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits, measured: each function runs processes of its own and returns 0, or -1 after saying what failed.
 */
#ifndef BENCH_LIMIT_H
#define BENCH_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

struct limit_stream {
    double rate;          /* deliveries per second, over all readers */
    double cpu_s_million; /* CPU seconds of all processes per million messages */
};

/* One producer on cpu 0 and, through a raw ring for each, `readers` consumers: one on cpu 1, or, if there are
 * more, wherever the scheduler puts them. */
int limit_ring_stream(struct limit_stream *ret, uint32_t size, uint32_t ring_size, uint32_t spins,
                      uint64_t count, unsigned readers);

/* The same with one consumer, spinning, and `batch` messages for each call. */
int limit_ring_batches(struct limit_stream *ret, uint32_t size, uint32_t ring_size, uint32_t batch,
                       uint64_t count);

/* There and back over two raw rings; p50 and p99 in nanoseconds. `in_order`: a core does nothing ahead of a look that
 * finds the message; otherwise it guesses after how many looks the message comes, and is often right. */
int limit_ring_round_trip(double *ret_p50, double *ret_p99, uint32_t size, uint32_t spins, bool in_order,
                          uint64_t count);

/* The same with two eventfds, and with two futex words. */
int limit_eventfd_round_trip(double *ret_p50, uint64_t count);
int limit_futex_round_trip(double *ret_p50, uint64_t count);

/* memcpy of one process on cpu 0, blocks of `size` out of one buffer into places that rotate through `window`
 * bytes; bytes per second. */
double limit_memcpy(uint32_t size, uint32_t window, uint64_t total);

#endif
