/* SPDX-License-Identifier: Apache-2.0
 *
 * One publisher on cpu 0, one subscriber on cpu 1, lossless, against the raw ring in the same places, with the
 * same sizes of message and ring.
 */
#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/topic.h"

enum {
    V_RAW_16,
    V_RAW_64,
    V_RAW_1K,
    V_RAW_64K,
    V_RAW_64_SLEEP,
    V_RAW_64_BATCH,
    V_EACH_16,
    V_EACH_64,
    V_EACH_1K,
    V_EACH_64K,
    V_BATCH_64,
    V_ADAPTIVE_64,
    V_CPU_RAW,
    V_CPU_EACH,
    V_CPU_BATCH,
    V_CPU_ADAPTIVE,
};

#define BATCH_TARGET 1.5

static const struct {
    uint32_t size, ring_size;
    uint64_t count;
    unsigned raw, each;
} sizes[] = {
    {16, 1u << 18, 5000000, V_RAW_16, V_EACH_16},
    {64, 1u << 18, 5000000, V_RAW_64, V_EACH_64},
    {1024, 1u << 18, 1000000, V_RAW_1K, V_EACH_1K},
    {65536, 1u << 22, 40000, V_RAW_64K, V_EACH_64K},
};

static int run_64(double *values, uint32_t batch, int64_t spin_max_ns, unsigned rate, unsigned cpu)
{
    struct topic_stream stream = {.size = 64,
                                  .ring_size = 1u << 18,
                                  .batch = batch,
                                  .spin_max_ns = spin_max_ns,
                                  .count = bench_count(5000000),
                                  .readers = 1};

    if (topic_stream_run(&stream) < 0)
        return -1;
    values[rate] = stream.rate;
    values[cpu] = stream.cpu_s_million;
    return 0;
}

static int throughput_run(double *values)
{
    struct limit_stream raw;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        uint64_t count = bench_count(sizes[i].count);
        struct topic_stream stream = {.size = sizes[i].size,
                                      .ring_size = sizes[i].ring_size,
                                      .spin_max_ns = IPC_FOREVER,
                                      .count = count,
                                      .readers = 1};

        if (limit_ring_stream(&raw, sizes[i].size, sizes[i].ring_size, RAW_SPIN, count, 1) < 0 ||
            topic_stream_run(&stream) < 0)
            return -1;
        values[sizes[i].raw] = raw.rate;
        values[sizes[i].each] = stream.rate;
        if (sizes[i].size != 64)
            continue;
        values[V_CPU_RAW] = raw.cpu_s_million;
        values[V_CPU_EACH] = stream.cpu_s_million;
        if (run_64(values, 64, IPC_FOREVER, V_BATCH_64, V_CPU_BATCH) < 0 ||
            limit_ring_batches(&raw, 64, 1u << 18, 64, count) < 0)
            return -1;
        values[V_RAW_64_BATCH] = raw.rate;
        if (raw.rate < BATCH_TARGET * values[V_RAW_64])
            bench_waive(V_BATCH_64,
                        "the raw ring itself, with 64 messages per call, reaches %.2f of what it does with "
                        "one: lines move no faster",
                        raw.rate / values[V_RAW_64]);
    }
    if (limit_ring_stream(&raw, 64, 1u << 18, 300, bench_count(2000000), 1) < 0)
        return -1;
    values[V_RAW_64_SLEEP] = raw.rate;
    return run_64(values, 0, IPC_SPIN_ADAPTIVE, V_ADAPTIVE_64, V_CPU_ADAPTIVE);
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("throughput.64B.each", V_EACH_64, 1e-6, "M/s", "raw ring", V_RAW_64, BENCH_RATIO_MIN, 0.8),
    BENCH_AGAINST("throughput.64B.batch-of-64", V_BATCH_64, 1e-6, "M/s", "raw ring", V_RAW_64,
                  BENCH_RATIO_MIN, BATCH_TARGET),
    BENCH_AGAINST("throughput.64B.batch-of-64.raw", V_BATCH_64, 1e-6, "M/s", "raw ring, batches",
                  V_RAW_64_BATCH, BENCH_INFO, 0),
    BENCH_AGAINST("throughput.64B.each.adaptive", V_ADAPTIVE_64, 1e-6, "M/s", "raw ring, sleeping",
                  V_RAW_64_SLEEP, BENCH_INFO, 0),
    BENCH_AGAINST("throughput.1KiB.each", V_EACH_1K, 1e-6, "M/s", "raw ring", V_RAW_1K, BENCH_RATIO_MIN, 0.7),
    BENCH_AGAINST("throughput.16B.each", V_EACH_16, 1e-6, "M/s", "raw ring", V_RAW_16, BENCH_INFO, 0),
    BENCH_AGAINST("throughput.64KiB.each", V_EACH_64K, 1e-6, "M/s", "raw ring", V_RAW_64K, BENCH_INFO, 0),
    BENCH_AGAINST_FIXED("cpu.64B.each", V_CPU_EACH, 1, "s/M", "budget", 0.06, BENCH_RATIO_MAX, 1),
    BENCH_AGAINST("cpu.64B.each.of-raw-ring", V_CPU_EACH, 1, "s/M", "raw ring", V_CPU_RAW, BENCH_INFO, 0),
    BENCH_AGAINST_FIXED("cpu.64B.each.adaptive", V_CPU_ADAPTIVE, 1, "s/M", "budget", 0.06, BENCH_RATIO_MAX,
                        1),
    BENCH_AGAINST_FIXED("cpu.64B.batch-of-64", V_CPU_BATCH, 1, "s/M", "budget", 0.06, BENCH_RATIO_MAX, 1),
};

const struct bench_case bench_case_throughput = {
    "throughput", "one publisher, one subscriber, lossless, spinning", BENCH_PROBED | BENCH_BROKER,
    throughput_run, BENCH_ROWS(rows)};
