/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel and the memory can do: system calls, sleeping and waking, copying.
 */
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/limit.h"
#include "bench/limit_ring.h"

struct sleepers {
    _Alignas(BENCH_LINE) _Atomic uint32_t words[2 * BENCH_LINE];
    int fds[2];
    bool futex;
    bool barrier; /* both issue one for each other before they sleep, and time it */
    uint64_t count;
};

static void send_to(struct sleepers *sleepers, unsigned which, uint32_t n)
{
    if (sleepers->futex) {
        _Atomic uint32_t *word = &sleepers->words[which * BENCH_LINE];
        atomic_store(word, n);
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    } else {
        uint64_t one = 1;
        (void)!write(sleepers->fds[which], &one, sizeof(one));
    }
}

static void sleep_until(struct sleepers *sleepers, unsigned which, uint32_t n)
{
    if (sleepers->futex) {
        _Atomic uint32_t *word = &sleepers->words[which * BENCH_LINE];
        while (atomic_load(word) != n)
            syscall(SYS_futex, word, FUTEX_WAIT, n - 1, NULL, NULL, 0);
    } else {
        uint64_t got;
        (void)!read(sleepers->fds[which], &got, sizeof(got));
    }
}

static void barrier(struct sleepers *sleepers, struct bench_sample *sample)
{
    if (!sleepers->barrier)
        return;
    uint64_t before = bench_ticks();
    syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
    bench_sample_add(sample, bench_ticks() - before);
}

static int barrier_register(struct bench_seat *seat, struct sleepers *sleepers)
{
    if (sleepers->barrier && syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) != 0)
        return bench_fail(seat, "this kernel has no membarrier for other processes");
    return 0;
}

static int sleeper_ping(struct bench_seat *seat, void *argument)
{
    struct sleepers *sleepers = argument;
    struct bench_sample sample, barriers;

    if (barrier_register(seat, sleepers) < 0)
        return -1;
    bench_sample_init(&sample, sleepers->count);
    bench_sample_init(&barriers, sleepers->count);
    bench_begin(seat);
    uint64_t before = bench_ticks();
    for (uint32_t n = 1; n <= sleepers->count; n++) {
        send_to(sleepers, 0, n);
        barrier(sleepers, &barriers);
        sleep_until(sleepers, 1, n);
        uint64_t after = bench_ticks();
        bench_sample_add(&sample, after - before);
        before = after;
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    seat->values[1] = bench_sample_quantile(&barriers, 0.5);
    seat->values[2] = bench_sample_quantile(&barriers, 0.9);
    return 0;
}

static int sleeper_pong(struct bench_seat *seat, void *argument)
{
    struct sleepers *sleepers = argument;
    struct bench_sample barriers;

    if (barrier_register(seat, sleepers) < 0)
        return -1;
    bench_sample_init(&barriers, sleepers->count);
    bench_begin(seat);
    for (uint32_t n = 1; n <= sleepers->count; n++) {
        barrier(sleepers, &barriers);
        sleep_until(sleepers, 0, n);
        send_to(sleepers, 1, n);
    }
    bench_end(seat);
    return 0;
}

/* ret: p50 of the round trip, and with barriers p50 and p90 of one. */
static int sleepers_round_trip(double *ret, uint64_t count, bool futex, bool with_barrier)
{
    struct sleepers *sleepers = bench_shared(sizeof(*sleepers));
    struct bench_role roles[] = {{0, sleeper_ping, sleepers}, {1, sleeper_pong, sleepers}};
    struct bench_seat seats[2];

    sleepers->futex = futex;
    sleepers->barrier = with_barrier;
    sleepers->count = count;
    for (unsigned i = 0; i < 2; i++)
        sleepers->fds[i] = futex ? -1 : eventfd(0, EFD_CLOEXEC);
    int result = bench_play(roles, 2, seats);
    for (unsigned i = 0; i < 2 && !futex; i++)
        close(sleepers->fds[i]);
    munmap(sleepers, sizeof(*sleepers));
    if (result == 0)
        memcpy(ret, seats[0].values, (with_barrier ? 3 : 1) * sizeof(*ret));
    return result;
}

int limit_eventfd_round_trip(double *ret_p50, uint64_t count)
{
    return sleepers_round_trip(ret_p50, count, false, false);
}

int limit_futex_round_trip(double *ret_p50, uint64_t count)
{
    return sleepers_round_trip(ret_p50, count, true, false);
}

struct copying {
    uint32_t size, window;
    uint64_t total;
};

static int copy_role(struct bench_seat *seat, void *argument)
{
    const struct copying *copying = argument;
    unsigned char *from = bench_alloc(copying->size), *to = bench_alloc(copying->window);
    uint32_t places = copying->window / copying->size;
    uint64_t count = copying->total / copying->size;

    memset(from, 1, copying->size);
    memset(to, 1, copying->window);
    bench_begin(seat);
    for (uint64_t n = 0; n < count; n++) {
        unsigned char *place = to + n % places * copying->size;
        memcpy(place, from, copying->size);
        __asm__ volatile("" : : "r"(place) : "memory");
    }
    bench_end(seat);
    seat->messages = count;
    return 0;
}

double limit_memcpy(uint32_t size, uint32_t window, uint64_t total)
{
    struct copying copying = {size, window, total};
    struct bench_role role = {0, copy_role, &copying};
    struct bench_seat seat;

    if (bench_play(&role, 1, &seat) < 0)
        return BENCH_NONE;
    return (double)(seat.messages * size) / bench_elapsed_s(&seat, 1);
}

static int syscall_role(struct bench_seat *seat, void *argument)
{
    const uint64_t *count = argument;

    bench_begin(seat);
    for (uint64_t n = 0; n < *count; n++)
        syscall(SYS_getppid);
    bench_end(seat);
    return 0;
}

/* ---- the case -------------------------------------------------------------------------------------------- */

enum {
    V_LINE,
    V_SYSCALL,
    V_FUTEX,
    V_EVENTFD,
    V_COPY_1K,
    V_COPY_64K,
    V_COPY_1M,
    V_SPIN,
    V_SLEEP,
    V_BARRIER_TRIP,
    V_BARRIER,
    V_BARRIER_P90
};

static int limits_run(double *values)
{
    uint64_t calls = bench_count(200000), trips = bench_count(5000), bytes = bench_count(UINT64_C(4) << 30);
    struct bench_role role = {0, syscall_role, &calls};
    struct bench_seat seat;
    double p99;

    bool disturbed;
    bench_probe(&values[V_LINE], &disturbed);
    if (bench_play(&role, 1, &seat) < 0)
        return -1;
    values[V_SYSCALL] = bench_elapsed_s(&seat, 1) * 1e9 / (double)calls;
    if (limit_futex_round_trip(&values[V_FUTEX], trips) < 0 ||
        limit_eventfd_round_trip(&values[V_EVENTFD], trips) < 0 ||
        limit_ring_round_trip(&values[V_SPIN], &p99, 64, RAW_SPIN, false, bench_count(100000)) < 0 ||
        limit_ring_round_trip(&values[V_SLEEP], &p99, 64, 0, false, trips) < 0)
        return -1;
    if (sleepers_round_trip(&values[V_BARRIER_TRIP], trips, true, true) < 0)
        bench_waive(V_BARRIER_TRIP, "this kernel has no membarrier for other processes");
    values[V_COPY_1K] = limit_memcpy(1024, 1024, bytes);
    values[V_COPY_64K] = limit_memcpy(65536, 65536, bytes);
    values[V_COPY_1M] = limit_memcpy(1 << 20, 4 << 20, bytes);
    return 0;
}

static const struct bench_row limits_rows[] = {
    BENCH_FIGURE("limit.cache-line-round-trip", V_LINE, 1, "ns"),
    BENCH_FIGURE("limit.system-call", V_SYSCALL, 1, "ns"),
    BENCH_FIGURE("limit.futex-round-trip", V_FUTEX, 1e-3, "us"),
    BENCH_FIGURE("limit.eventfd-round-trip", V_EVENTFD, 1e-3, "us"),
    BENCH_FIGURE("limit.raw-ring-round-trip.spinning", V_SPIN, 1e-3, "us"),
    BENCH_FIGURE("limit.raw-ring-round-trip.sleeping", V_SLEEP, 1e-3, "us"),
    BENCH_FIGURE("limit.futex-round-trip.membarrier", V_BARRIER_TRIP, 1e-3, "us"),
    BENCH_FIGURE("limit.membarrier.p50", V_BARRIER, 1e-3, "us"),
    BENCH_FIGURE("limit.membarrier.p90", V_BARRIER_P90, 1e-3, "us"),
    BENCH_FIGURE("limit.memcpy.1KiB", V_COPY_1K, 1e-9, "GB/s"),
    BENCH_FIGURE("limit.memcpy.64KiB", V_COPY_64K, 1e-9, "GB/s"),
    BENCH_FIGURE("limit.memcpy.1MiB", V_COPY_1M, 1e-9, "GB/s"),
};

const struct bench_case bench_case_limits = {
    .name = "limits",
    .what = "what this machine can do: cache lines, system calls, sleeping, copying",
    .flags = BENCH_PROBED,
    .run = limits_run,
    .rows = limits_rows,
    .row_count = sizeof(limits_rows) / sizeof(*limits_rows),
};
