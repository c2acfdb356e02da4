/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of 1 MiB: in place they should cost what small ones cost; copied, what the copies cost.
 */
#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/topic.h"

#define MIB    (1u << 20)
#define MAX_NS UINT64_C(1500000000)

enum {
    V_SMALL_SPIN,
    V_SMALL_SLEEP,
    V_LARGE_SPIN,
    V_LARGE_SLEEP,
    V_COPIED,
    V_COPIED_TWICE,
    V_RAW,
    V_MEMCPY,
    V_COPIED_TRIP,
};

static int trip(double *ret, uint32_t size, bool in_place, int64_t spin_max_ns, uint64_t count)
{
    struct topic_pair pair = {
        .size = size, .in_place = in_place, .spin_max_ns = spin_max_ns, .count = count, .max_ns = MAX_NS};
    double p99, cpu_ns;

    return topic_pair_run(&pair, ret, &p99, &cpu_ns);
}

static int large_run(double *values)
{
    uint64_t spinning = bench_count(100000), sleeping = bench_count(8000), count = bench_count(8000);
    struct topic_stream stream = {
        .size = MIB, .ring_size = 16 * MIB, .spin_max_ns = IPC_FOREVER, .count = count, .readers = 1};
    struct limit_stream raw;

    if (trip(&values[V_SMALL_SPIN], 64, false, IPC_FOREVER, spinning) < 0 ||
        trip(&values[V_LARGE_SPIN], MIB, true, IPC_FOREVER, spinning) < 0 ||
        trip(&values[V_SMALL_SLEEP], 64, false, 0, sleeping) < 0 ||
        trip(&values[V_LARGE_SLEEP], MIB, true, 0, sleeping) < 0 ||
        trip(&values[V_COPIED_TRIP], MIB, false, IPC_FOREVER, bench_count(2000)) < 0 ||
        limit_ring_stream(&raw, MIB, 16 * MIB, RAW_SPIN, count, 1) < 0 || topic_stream_run(&stream) < 0)
        return -1;
    values[V_MEMCPY] = limit_memcpy(MIB, 16 * MIB, count * MIB);
    values[V_RAW] = raw.rate * MIB;
    values[V_COPIED] = stream.rate * MIB;
    values[V_COPIED_TWICE] = 2 * values[V_COPIED];
    if (2 * values[V_RAW] < 0.8 * values[V_MEMCPY])
        bench_waive(
            V_COPIED_TWICE,
            "the raw ring with the same two copies reaches %.2f of memcpy: its source is warm in the core "
            "that copies, theirs was just written by the other core",
            2 * values[V_RAW] / values[V_MEMCPY]);
    return 0;
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("large.1MiB.loan-take.spinning.p50", V_LARGE_SPIN, 1e-3, "us", "64 B copied", V_SMALL_SPIN,
                  BENCH_RATIO_MAX, 1.3),
    BENCH_AGAINST("large.1MiB.loan-take.sleeping.p50", V_LARGE_SLEEP, 1e-3, "us", "64 B copied",
                  V_SMALL_SLEEP, BENCH_RATIO_MAX, 1.3),
    BENCH_AGAINST("large.1MiB.copied.copies", V_COPIED_TWICE, 1e-9, "GB/s", "memcpy", V_MEMCPY,
                  BENCH_RATIO_MIN, 0.8),
    BENCH_AGAINST("large.1MiB.copied", V_COPIED, 1e-9, "GB/s", "raw ring", V_RAW, BENCH_INFO, 0),
    BENCH_FIGURE("large.1MiB.copied.round-trip.p50", V_COPIED_TRIP, 1e-3, "us"),
};

const struct bench_case bench_case_large = {"large", "messages of 1 MiB", BENCH_PROBED | BENCH_BROKER,
                                            large_run, BENCH_ROWS(rows)};
