/* SPDX-License-Identifier: Apache-2.0
 *
 * Does the default, which decides by itself when to poll and when to sleep, decide well? Its cost is compared
 * with that of always polling and of never polling, whichever is less. Cost: latency and CPU time of one
 * message added up, a microsecond of CPU being worth a microsecond of latency.
 */
#include <string.h>

#include "bench/topic.h"

#define PAIRS 4u

enum { MODE_ADAPTIVE, MODE_SPIN, MODE_SLEEP, MODES };
enum { PATTERN_PINGPONG, PATTERN_1, PATTERN_10, PATTERN_100, PATTERN_1000, PATTERN_PAIRS, PATTERNS };
/* Per pattern: three latencies, three CPU times, three costs, the better cost of spinning and sleeping. */
#define V(pattern, what) ((pattern)*10 + (what))
enum { LATENCY = 0, CPU = 3, COST = 6, BEST = 9 };
static_assert(V(PATTERNS, 0) <= BENCH_VALUES_MAX, "values");

static const int64_t spins[MODES] = {IPC_SPIN_ADAPTIVE, IPC_FOREVER, 0};

/* ---- arrivals -------------------------------------------------------------------------------------------- */

struct arrivals {
    uint64_t interval_ns, max_ns;
    int64_t spin_max_ns;
    char topic[TOPIC_NAME_SIZE];
};

/* It polls the clock between messages, so only the time inside publish counts as its CPU time. */
static int arrivals_write(struct bench_seat *seat, void *argument)
{
    const struct arrivals *arrivals = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;
    uint64_t message[8] = {0}, inside = 0;

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, arrivals->topic, 1u << 18) < 0)
        return -1;
    int result = ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for the reader: %s", strerror(-result));
    uint64_t interval = (uint64_t)((double)arrivals->interval_ns / bench_tick_ns);
    uint64_t count = arrivals->max_ns / arrivals->interval_ns;
    bench_begin(seat);
    uint64_t start = bench_ticks(), next = start;
    uint64_t last = start + (uint64_t)((double)arrivals->max_ns * 2 / bench_tick_ns);
    for (uint64_t n = 0; n < count && result >= 0; n++) {
        uint64_t now;
        while ((now = bench_ticks()) < next)
            bench_pause();
        message[0] = n;
        message[1] = now;
        message[2] = n + 1 == count || now > last;
        result = ipc_publisher_publish(publisher, message, sizeof(message));
        uint64_t after = bench_ticks();
        inside += after - now;
        next += interval;
        if (next < after)
            next = after;
        if (message[2])
            break;
    }
    bench_end(seat);
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    seat->values[0] = (double)inside * bench_tick_ns;
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int arrivals_read(struct bench_seat *seat, void *argument)
{
    const struct arrivals *arrivals = argument;
    ipc_connection *connection;
    ipc_subscription *subscription;
    struct bench_sample sample;
    uint64_t message[8], n = 0;

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, arrivals->topic, arrivals->spin_max_ns) < 0)
        return -1;
    int result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for the writer: %s", strerror(-result));
    bench_sample_init(&sample, arrivals->max_ns / arrivals->interval_ns + 1);
    bench_begin(seat);
    do {
        ssize_t size = ipc_subscription_receive(subscription, message, sizeof(message), NULL, IPC_FOREVER);
        uint64_t now = bench_ticks();
        if (size != sizeof(message) || message[0] != n++)
            return bench_fail(seat, "receive: %s", size < 0 ? strerror((int)-size) : "another message");
        bench_sample_add(&sample, now > message[1] ? now - message[1] : 0);
    } while (!message[2]);
    bench_end(seat);
    seat->messages = n;
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int run_arrivals(uint64_t interval_ns, int64_t spin_max_ns, double *latency, double *cpu)
{
    struct arrivals arrivals = {
        .interval_ns = interval_ns, .max_ns = bench_count(300000000), .spin_max_ns = spin_max_ns};
    struct bench_role roles[] = {{0, arrivals_write, &arrivals}, {1, arrivals_read, &arrivals}};
    struct bench_seat seats[2];

    topic_name(arrivals.topic, "arrivals");
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *latency = seats[1].values[0];
    *cpu = ((double)seats[1].cpu_ns + seats[0].values[0]) / (double)seats[1].messages;
    return 0;
}

/* ---- more processes than cpus ---------------------------------------------------------------------------- */

static int run_pairs(int64_t spin_max_ns, double *latency, double *cpu)
{
    struct topic_pair pairs[PAIRS];
    struct bench_role roles[2 * PAIRS];
    struct bench_seat seats[2 * PAIRS];
    uint64_t trips = 0;

    for (unsigned i = 0; i < PAIRS; i++) {
        pairs[i] = (struct topic_pair){
            .size = 64, .spin_max_ns = spin_max_ns, .count = 200000, .max_ns = bench_count(500000000)};
        topic_name(pairs[i].there, "there");
        topic_name(pairs[i].back, "back");
        roles[2 * i] = (struct bench_role){BENCH_ANYWHERE, topic_pair_ping, &pairs[i]};
        roles[2 * i + 1] = (struct bench_role){BENCH_ANYWHERE, topic_pair_pong, &pairs[i]};
    }
    if (bench_play(roles, 2 * PAIRS, seats) < 0)
        return -1;
    *latency = 0;
    for (unsigned i = 0; i < PAIRS; i++) {
        trips += seats[2 * i].messages;
        *latency += seats[2 * i].values[0] / PAIRS;
    }
    *cpu = bench_cpu_s(seats, 2 * PAIRS) * 1e9 / (double)trips;
    return 0;
}

static int run_pingpong(int64_t spin_max_ns, double *latency, double *cpu)
{
    struct topic_pair pair = {
        .size = 64, .spin_max_ns = spin_max_ns, .count = 200000, .max_ns = bench_count(300000000)};
    double p99;

    return topic_pair_run(&pair, latency, &p99, cpu);
}

static int adaptive_run(double *values)
{
    static const uint64_t intervals[PATTERNS] = {0, 1000, 10000, 100000, 1000000, 0};

    for (unsigned pattern = 0; pattern < PATTERNS; pattern++) {
        for (unsigned mode = 0; mode < MODES; mode++) {
            double *latency = &values[V(pattern, LATENCY + mode)], *cpu = &values[V(pattern, CPU + mode)];
            int result = intervals[pattern] ? run_arrivals(intervals[pattern], spins[mode], latency, cpu)
                         : pattern == PATTERN_PINGPONG ? run_pingpong(spins[mode], latency, cpu)
                                                       : run_pairs(spins[mode], latency, cpu);
            if (result < 0)
                return -1;
            values[V(pattern, COST + mode)] = *latency + *cpu;
        }
        values[V(pattern, BEST)] =
            fmin(values[V(pattern, COST + MODE_SPIN)], values[V(pattern, COST + MODE_SLEEP)]);
    }
    return 0;
}

#define PATTERN_ROWS(name, pattern)                                                                  \
 BENCH_AGAINST("adaptive." name ".cost", V(pattern, COST + MODE_ADAPTIVE), 1e-3, "us",               \
               "better of spin, sleep", V(pattern, BEST), BENCH_RATIO_MAX, 1.1),                     \
     BENCH_AGAINST("adaptive." name ".latency-p50", V(pattern, LATENCY + MODE_ADAPTIVE), 1e-3, "us", \
                   "sleeping", V(pattern, LATENCY + MODE_SLEEP), BENCH_INFO, 0),                     \
     BENCH_AGAINST("adaptive." name ".cpu", V(pattern, CPU + MODE_ADAPTIVE), 1e-3, "us", "spinning", \
                   V(pattern, CPU + MODE_SPIN), BENCH_INFO, 0),                                      \
     BENCH_AGAINST("adaptive." name ".cost-of-spinning", V(pattern, COST + MODE_SPIN), 1e-3, "us",   \
                   "sleeping", V(pattern, COST + MODE_SLEEP), BENCH_INFO, 0)

static const struct bench_row rows[] = {
    PATTERN_ROWS("ping-pong", PATTERN_PINGPONG), PATTERN_ROWS("every-1us", PATTERN_1),
    PATTERN_ROWS("every-10us", PATTERN_10),      PATTERN_ROWS("every-100us", PATTERN_100),
    PATTERN_ROWS("every-1000us", PATTERN_1000),  PATTERN_ROWS("4-pairs", PATTERN_PAIRS),
};

const struct bench_case bench_case_adaptive = {
    "adaptive", "the default way of waiting, in several loads: latency + CPU time per message",
    BENCH_PROBED | BENCH_BROKER, adaptive_run, BENCH_ROWS(rows)};
