/* SPDX-License-Identifier: Apache-2.0
 *
 * One publisher, eight subscriber processes, everything delivered: against the same publisher with a raw ring to
 * each. More processes than cpus is the point, so nobody is pinned. And what eight readers cost the publisher
 * itself, which should be nothing.
 */
#include <string.h>

#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/topic.h"

#define READERS 8u

/* ---- deliveries ------------------------------------------------------------------------------------------ */

enum { V_EACH, V_BATCH, V_RAW, V_ONE };

static int fan(double *ret, uint32_t batch, uint64_t count)
{
    struct topic_stream stream = {.size = 64,
                                  .ring_size = 1u << 22,
                                  .batch = batch,
                                  .spin_max_ns = IPC_SPIN_ADAPTIVE,
                                  .count = count,
                                  .readers = READERS};

    if (topic_stream_run(&stream) < 0)
        return -1;
    *ret = stream.rate;
    return 0;
}

static int fanout_run(double *values)
{
    struct limit_stream raw;

    /* The rings together are as large as the one lane. */
    if (limit_ring_stream(&raw, 64, (1u << 22) / READERS, 300, bench_count(2000000), READERS) < 0 ||
        fan(&values[V_EACH], 0, bench_count(5000000)) < 0 ||
        fan(&values[V_BATCH], 64, bench_count(10000000)) < 0)
        return -1;
    values[V_RAW] = raw.rate;
    return 0;
}

static const struct bench_row fanout_rows[] = {
    BENCH_AGAINST("fanout.8.64B.batch-of-64", V_BATCH, 1e-6, "M/s", "8 raw rings", V_RAW, BENCH_RATIO_MIN, 5),
    BENCH_AGAINST_FIXED("fanout.8.64B.batch-of-64.aeron", V_BATCH, 1e-6, "M/s", "Aeron, elsewhere", 111,
                        BENCH_INFO, 0),
    BENCH_AGAINST("fanout.8.64B.each", V_EACH, 1e-6, "M/s", "8 raw rings", V_RAW, BENCH_INFO, 0),
    BENCH_AGAINST_FIXED("fanout.8.64B.each.aeron", V_EACH, 1e-6, "M/s", "Aeron, elsewhere", 111, BENCH_INFO,
                        0),
};

const struct bench_case bench_case_fanout = {
    "fanout", "one publisher, eight subscribers, lossless: deliveries", BENCH_PROBED | BENCH_BROKER,
    fanout_run, BENCH_ROWS(fanout_rows)};

/* ---- the publisher's own cost ---------------------------------------------------------------------------- */

#define BURST  8000u /* messages: less than a quarter of the ring */
#define BURSTS 40u

struct bursts {
    unsigned readers, bursts;
    char topic[TOPIC_NAME_SIZE];
};

/* Publishes while no reader runs: each waits outside of the library, awake as far as the lane knows, until the
 * burst is complete. So what is measured is the publisher's path alone, with nobody polling next to it and
 * nobody to wait for. */
static int bursts_write(struct bench_seat *seat, void *argument)
{
    const struct bursts *bursts = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;
    unsigned char message[64] = {0};
    double ns[BENCH_REPS_MAX];

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, bursts->topic, 1u << 22) < 0)
        return -1;
    int result = ipc_publisher_wait_readers(publisher, bursts->readers, INT64_C(30000000000));
    bench_begin(seat);
    for (unsigned burst = 0; burst < bursts->bursts && result >= 0; burst++) {
        uint64_t start = bench_ticks();
        for (uint64_t n = 0; n < BURST; n++) {
            memcpy(message, &n, sizeof(n));
            result = ipc_publisher_publish(publisher, message, sizeof(message));
        }
        /* The first bursts touch the ring; the last ones are kept. */
        ns[burst % BENCH_REPS_MAX] = (double)(bench_ticks() - start) * bench_tick_ns / BURST;
        bench_meet(seat); /* the burst is complete */
        bench_meet(seat); /* and read */
    }
    bench_end(seat);
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    seat->values[0] = bench_median(ns, bursts->bursts < BENCH_REPS_MAX ? bursts->bursts : BENCH_REPS_MAX);
    ipc_connection_close(connection);
    return 0;
}

static int bursts_read(struct bench_seat *seat, void *argument)
{
    const struct bursts *bursts = argument;
    ipc_connection *connection;
    ipc_subscription *subscription;
    unsigned char message[64];

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, bursts->topic, IPC_SPIN_ADAPTIVE) < 0)
        return -1;
    int result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for the publisher: %s", strerror(-result));
    bench_begin(seat);
    for (unsigned burst = 0; burst < bursts->bursts; burst++) {
        bench_meet(seat);
        for (uint64_t n = 0; n < BURST; n++) {
            uint64_t got;
            ssize_t size = ipc_subscription_receive(subscription, message, sizeof(message), NULL, 0);
            memcpy(&got, message, sizeof(got));
            if (size != sizeof(message) || got != n)
                return bench_fail(seat, "receive: %s", size < 0 ? strerror((int)-size) : "another message");
        }
        bench_meet(seat);
    }
    bench_end(seat);
    ipc_connection_close(connection);
    return 0;
}

static int publisher_cost(double *ret_ns, unsigned readers)
{
    struct bursts bursts = {.readers = readers, .bursts = bench.quick ? 10 : BURSTS};
    struct bench_role roles[READERS + 1] = {{0, bursts_write, &bursts}};
    struct bench_seat seats[READERS + 1];

    topic_name(bursts.topic, "bursts");
    for (unsigned i = 1; i <= readers; i++)
        roles[i] = (struct bench_role){1, bursts_read, &bursts};
    if (bench_play(roles, readers + 1, seats) < 0)
        return -1;
    *ret_ns = seats[0].values[0];
    return 0;
}

enum { V_COST_8, V_COST_1 };

static int publisher_run(double *values)
{
    return publisher_cost(&values[V_COST_1], 1) < 0 || publisher_cost(&values[V_COST_8], READERS) < 0 ? -1
                                                                                                      : 0;
}

static const struct bench_row publisher_rows[] = {
    BENCH_AGAINST("publisher.cost.8-readers", V_COST_8, 1, "ns", "1 reader", V_COST_1, BENCH_RATIO_MAX, 1.2),
};

const struct bench_case bench_case_publisher = {"publisher", "what a message costs its publisher, by readers",
                                                BENCH_PROBED | BENCH_BROKER, publisher_run,
                                                BENCH_ROWS(publisher_rows)};
