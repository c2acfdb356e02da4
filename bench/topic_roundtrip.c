/* SPDX-License-Identifier: Apache-2.0
 *
 * A message of 64 bytes there and back, each process on a cpu of its own.
 */
#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/topic.h"

#define MAX_NS UINT64_C(1500000000) /* a busy machine must not stretch a run without end */

enum {
    V_SPIN,
    V_SPIN_P99,
    V_SLEEP,
    V_SLEEP_P99,
    V_ADAPTIVE,
    V_ADAPTIVE_P99,
    V_RAW_SPIN,
    V_RAW_SLEEP,
    V_EVENTFD,
    V_SLOWER,
    V_RAW_SPIN_P99,
    V_RAW_SLEEP_P99,
    V_RAW_ORDER,
    V_RAW_ORDER_P99,
};

static int trip(double *values, int64_t spin_max_ns, uint64_t count, unsigned p50)
{
    struct topic_pair pair = {.size = 64, .spin_max_ns = spin_max_ns, .count = count, .max_ns = MAX_NS};
    double cpu_ns;

    return topic_pair_run(&pair, &values[p50], &values[p50 + 1], &cpu_ns);
}

static int roundtrip_run(double *values)
{
    uint64_t spinning = bench_count(200000), sleeping = bench_count(10000);

    if (limit_ring_round_trip(&values[V_RAW_SPIN], &values[V_RAW_SPIN_P99], 64, RAW_SPIN, false, spinning) <
            0 ||
        trip(values, IPC_FOREVER, spinning, V_SPIN) < 0 ||
        limit_ring_round_trip(&values[V_RAW_ORDER], &values[V_RAW_ORDER_P99], 64, RAW_SPIN, true, spinning) <
            0 ||
        limit_ring_round_trip(&values[V_RAW_SLEEP], &values[V_RAW_SLEEP_P99], 64, 0, false, sleeping) < 0 ||
        trip(values, 0, sleeping, V_SLEEP) < 0 ||
        limit_eventfd_round_trip(&values[V_EVENTFD], sleeping) < 0 ||
        trip(values, IPC_SPIN_ADAPTIVE, spinning, V_ADAPTIVE) < 0)
        return -1;
    values[V_SLOWER] = fmax(values[V_RAW_SLEEP], values[V_EVENTFD]);
    return 0;
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("roundtrip.64B.spinning.p50", V_SPIN, 1e-3, "us", "raw ring", V_RAW_SPIN, BENCH_RATIO_MAX,
                  1.1),
    BENCH_AGAINST("roundtrip.64B.spinning.p50.in-order", V_SPIN, 1e-3, "us", "raw ring, in order",
                  V_RAW_ORDER, BENCH_INFO, 0),
    BENCH_AGAINST_FIXED("roundtrip.64B.spinning.p50.aeron", V_SPIN, 1e-3, "us", "Aeron, elsewhere", 0.65,
                        BENCH_INFO, 0),
    BENCH_AGAINST("roundtrip.64B.spinning.p99", V_SPIN_P99, 1e-3, "us", "raw ring", V_RAW_SPIN_P99,
                  BENCH_INFO, 0),
    BENCH_AGAINST("roundtrip.64B.sleeping.p50", V_SLEEP, 1e-3, "us", "slower of ring, eventfd", V_SLOWER,
                  BENCH_RATIO_MAX, 1.1),
    BENCH_AGAINST("roundtrip.64B.sleeping.p50.ring", V_SLEEP, 1e-3, "us", "raw ring, sleeping", V_RAW_SLEEP,
                  BENCH_INFO, 0),
    BENCH_AGAINST("roundtrip.64B.sleeping.p99", V_SLEEP_P99, 1e-3, "us", "raw ring, sleeping",
                  V_RAW_SLEEP_P99, BENCH_INFO, 0),
    BENCH_AGAINST("roundtrip.64B.adaptive.p50", V_ADAPTIVE, 1e-3, "us", "raw ring", V_RAW_SPIN, BENCH_INFO,
                  0),
};

const struct bench_case bench_case_roundtrip = {"roundtrip", "64 B there and back",
                                                BENCH_PROBED | BENCH_BROKER, roundtrip_run, BENCH_ROWS(rows)};
