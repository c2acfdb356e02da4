/* SPDX-License-Identifier: Apache-2.0
 *
 * Where are we? Two virtual cpus are sometimes two cores and sometimes two threads of one, and everything that
 * crosses between them costs several times more in the first case. The time of a cache line there and back
 * tells which it is. Both processes spin, so one that did not have its cpu all the time was disturbed by others.
 */
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "bench/bench.h"

#define TRIPS_PER_CHUNK 500u
#define CHUNKS          31u
#define TWO_CORES_NS    300.0
#define ONE_CORE_NS     200.0
#define UNDISTURBED     0.9 /* of the time, both have their cpu */

struct ball {
    _Alignas(BENCH_LINE) _Atomic uint32_t ping;
    _Alignas(BENCH_LINE) _Atomic uint32_t pong;
};

static int probe_there(struct bench_seat *seat, void *argument)
{
    struct ball *ball = argument;
    double chunks[CHUNKS];
    uint32_t n = 0;

    bench_begin(seat);
    for (unsigned chunk = 0; chunk < CHUNKS; chunk++) {
        uint64_t start = bench_ticks();
        for (unsigned i = 0; i < TRIPS_PER_CHUNK; i++) {
            atomic_store_explicit(&ball->ping, ++n, memory_order_release);
            while (atomic_load_explicit(&ball->pong, memory_order_acquire) != n)
                bench_pause();
        }
        chunks[chunk] = (double)(bench_ticks() - start) * bench_tick_ns / TRIPS_PER_CHUNK;
    }
    bench_end(seat);
    seat->values[0] = bench_median(chunks, CHUNKS);
    return 0;
}

static int probe_back(struct bench_seat *seat, void *argument)
{
    struct ball *ball = argument;

    bench_begin(seat);
    for (uint32_t n = 1; n <= TRIPS_PER_CHUNK * CHUNKS; n++) {
        while (atomic_load_explicit(&ball->ping, memory_order_acquire) != n)
            bench_pause();
        atomic_store_explicit(&ball->pong, n, memory_order_release);
    }
    bench_end(seat);
    return 0;
}

enum bench_state bench_probe(double *ret_ns, bool *ret_disturbed)
{
    struct ball *ball = bench_shared(sizeof(*ball));
    struct bench_role roles[] = {{0, probe_there, ball}, {1, probe_back, ball}};
    struct bench_seat seats[2];
    int result = bench_play(roles, 2, seats);

    munmap(ball, sizeof(*ball));
    if (result < 0) {
        *ret_ns = BENCH_NONE;
        *ret_disturbed = true;
        return BENCH_STATE_UNKNOWN;
    }
    *ret_ns = seats[0].values[0];
    *ret_disturbed = false;
    for (unsigned i = 0; i < 2; i++)
        if ((double)seats[i].cpu_ns < UNDISTURBED * (double)(seats[i].end_ns - seats[i].start_ns))
            *ret_disturbed = true;
    if (*ret_ns > TWO_CORES_NS)
        return BENCH_STATE_TWO_CORES;
    return *ret_ns < ONE_CORE_NS ? BENCH_STATE_ONE_CORE : BENCH_STATE_UNKNOWN;
}

const char *bench_state_word(enum bench_state state)
{
    switch (state) {
    case BENCH_STATE_TWO_CORES:
        return "two cores";
    case BENCH_STATE_ONE_CORE:
        return "one core";
    case BENCH_STATE_UNKNOWN:
        break;
    }
    return "unclear";
}
