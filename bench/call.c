/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of 64 bytes, answered with as much: client on one cpu, server on the other.
 */
#include <string.h>

#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/peer.h"
#include "bench/topic.h"

#define SIZE        64u
#define OUTSTANDING 64u
#define STOP        UINT64_MAX

enum {
    V_SLEEP,
    V_SLEEP_P99,
    V_EVENTFD,
    V_SPIN_RATE,
    V_RAW_SPIN_RATE,
    V_MANY_RATE,
    V_RAW_MANY_RATE,
    V_MANY_CPU,
    V_MANY_RINGS,
};

/* ---- the product ----------------------------------------------------------------------------------------- */

struct trial {
    int64_t spin_max_ns;
    unsigned outstanding;
    uint64_t count;
    char service[TOPIC_NAME_SIZE];
};

static int serve(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    ipc_connection *connection;
    ipc_server *server;
    uint64_t number = 0;

    options.spin_max_ns = trial->spin_max_ns;
    if (topic_connect(seat, &connection) < 0 ||
        ipc_server_open(&server, connection, trial->service, &options, NULL) < 0)
        return bench_fail(seat, "no server");
    bench_meet(seat);
    bench_begin(seat);
    while (number != STOP) {
        unsigned char data[SIZE];
        struct ipc_request *request;
        ssize_t size = ipc_server_receive(server, data, sizeof(data), &request, IPC_FOREVER);
        if (size != SIZE)
            return bench_fail(seat, "receive: %s", size < 0 ? strerror((int)-size) : "another size");
        memcpy(&number, data, sizeof(number));
        int result = ipc_request_reply(request, data, SIZE, NULL);
        if (result < 0)
            return bench_fail(seat, "reply: %s", strerror(-result));
    }
    bench_end(seat);
    struct ipc_server_stats stats;
    ipc_server_stats(server, &stats);
    seat->values[0] = (double)stats.rings;
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int call_once(struct bench_seat *seat, ipc_client *client, uint64_t number)
{
    unsigned char data[SIZE] = {0};
    uint64_t got;

    memcpy(data, &number, sizeof(number));
    ssize_t size = ipc_client_call(client, data, SIZE, data, SIZE, NULL, NULL);
    memcpy(&got, data, sizeof(got));
    return size == SIZE && got == number
               ? 0
               : bench_fail(seat, "call: %s", size < 0 ? strerror((int)-size) : "another answer");
}

static int one_at_a_time(struct bench_seat *seat, ipc_client *client, uint64_t count)
{
    struct bench_sample sample;

    bench_sample_init(&sample, count);
    bench_begin(seat);
    uint64_t before = bench_ticks();
    for (uint64_t n = 0; n < count; n++) {
        if (call_once(seat, client, n) < 0)
            return -1;
        uint64_t after = bench_ticks();
        bench_sample_add(&sample, after - before);
        before = after;
    }
    bench_end(seat);
    seat->values[1] = bench_sample_quantile(&sample, 0.5);
    seat->values[2] = bench_sample_quantile(&sample, 0.99);
    return 0;
}

static int many_at_a_time(struct bench_seat *seat, ipc_client *client, const struct trial *trial)
{
    unsigned char data[SIZE] = {0};
    ipc_call *calls[OUTSTANDING] = {0};
    uint64_t made = 0, done = 0, got;

    bench_begin(seat);
    while (done < trial->count) {
        for (; made < trial->count && made - done < trial->outstanding; made++) {
            memcpy(data, &made, sizeof(made));
            int result = ipc_call_start(&calls[made % OUTSTANDING], client, data, SIZE, NULL);
            if (result < 0)
                return bench_fail(seat, "call: %s", strerror(-result));
        }
        struct ipc_reply reply;
        int result = ipc_call_next(calls[done % OUTSTANDING], &reply, IPC_FOREVER);
        if (result != 1)
            return bench_fail(seat, "answer: %s", strerror(-result));
        memcpy(&got, reply.data, sizeof(got));
        if (got != done)
            return bench_fail(seat, "another answer");
        ipc_call_free(calls[done++ % OUTSTANDING]);
    }
    bench_end(seat);
    return 0;
}

static int ask(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    ipc_connection *connection;
    ipc_client *client;

    options.spin_max_ns = trial->spin_max_ns;
    bench_meet(seat); /* the server is there */
    if (topic_connect(seat, &connection) < 0 ||
        ipc_client_open(&client, connection, trial->service, &options, NULL) < 0)
        return bench_fail(seat, "no client");
    if ((trial->outstanding == 1 ? one_at_a_time(seat, client, trial->count)
                                 : many_at_a_time(seat, client, trial)) < 0 ||
        call_once(seat, client, STOP) < 0)
        return -1;
    struct ipc_client_stats stats;
    ipc_client_stats(client, &stats);
    seat->values[0] = (double)stats.rings;
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* Calls per second; seats tell the rest. */
static double run(struct trial *trial, struct bench_seat seats[2])
{
    struct bench_role roles[] = {{0, ask, trial}, {1, serve, trial}};

    topic_name(trial->service, "call");
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    return (double)trial->count * 1e9 / (double)(seats[0].end_ns - seats[0].start_ns);
}

int call_sleeping(unsigned outstanding, uint64_t count, double *ret_p50_ns, double *ret_rate)
{
    struct trial trial = {.spin_max_ns = 0, .outstanding = outstanding, .count = count};
    struct bench_seat seats[2];

    if ((*ret_rate = run(&trial, seats)) < 0)
        return -1;
    *ret_p50_ns = seats[0].values[1];
    return 0;
}

/* ---- the limit ------------------------------------------------------------------------------------------- */

/* Two raw rings, one there and one back, with so many messages under way. Whoever runs dry sleeps on a futex, or (spins
 * is RAW_SPIN) never. */
struct raw_trial {
    struct raw_ring *there, *back;
    unsigned outstanding;
    uint64_t count;
};

static int raw_ask(struct bench_seat *seat, void *argument)
{
    const struct raw_trial *trial = argument;
    unsigned char data[SIZE] = {0};
    struct raw_writer writer;
    struct raw_reader reader;
    uint64_t made = 0;

    raw_writer_init(&writer, trial->there);
    raw_reader_init(&reader, trial->back);
    bench_begin(seat);
    for (uint64_t done = 0; done < trial->count; done++) {
        for (; made < trial->count && made - done < trial->outstanding; made++)
            raw_put(&writer, data);
        raw_get(&reader, data);
    }
    bench_end(seat);
    return 0;
}

static int raw_answer(struct bench_seat *seat, void *argument)
{
    const struct raw_trial *trial = argument;
    unsigned char data[SIZE];
    struct raw_writer writer;
    struct raw_reader reader;

    raw_writer_init(&writer, trial->back);
    raw_reader_init(&reader, trial->there);
    bench_begin(seat);
    for (uint64_t n = 0; n < trial->count; n++) {
        raw_get(&reader, data);
        raw_put(&writer, data);
    }
    bench_end(seat);
    return 0;
}

static int raw_run(double *ret_rate, unsigned outstanding, uint32_t spins, uint64_t count)
{
    bool stream = outstanding > 1;
    struct raw_trial trial = {raw_ring_new(SIZE, 1u << 18, spins, stream),
                              raw_ring_new(SIZE, 1u << 18, spins, stream), outstanding, count};
    struct bench_role roles[] = {{0, raw_ask, &trial}, {1, raw_answer, &trial}};
    struct bench_seat seats[2];
    int result = bench_play(roles, 2, seats);

    *ret_rate = (double)count * 1e9 / (double)(seats[0].end_ns - seats[0].start_ns);
    raw_ring_free(trial.there);
    raw_ring_free(trial.back);
    return result;
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

static int call_run(double *values)
{
    uint64_t few = bench_count(10000), many = bench_count(500000), spinning = bench_count(200000);
    struct trial sleeping = {.spin_max_ns = 0, .outstanding = 1, .count = few};
    struct trial awake = {.spin_max_ns = IPC_FOREVER, .outstanding = 1, .count = spinning};
    struct trial busy = {.spin_max_ns = 0, .outstanding = OUTSTANDING, .count = many};
    struct bench_seat seats[2];

    if (run(&sleeping, seats) < 0)
        return -1;
    values[V_SLEEP] = seats[0].values[1];
    values[V_SLEEP_P99] = seats[0].values[2];
    if (limit_eventfd_round_trip(&values[V_EVENTFD], few) < 0 ||
        (values[V_SPIN_RATE] = run(&awake, seats)) < 0 ||
        raw_run(&values[V_RAW_SPIN_RATE], 1, RAW_SPIN, spinning) < 0 ||
        (values[V_MANY_RATE] = run(&busy, seats)) < 0)
        return -1;
    values[V_MANY_CPU] = bench_cpu_s(seats, 2) * 1e6 / (double)many;
    values[V_MANY_RINGS] = (seats[0].values[0] + seats[1].values[0]) / (double)many;
    return raw_run(&values[V_RAW_MANY_RATE], OUTSTANDING, 0, many);
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("call.64B.sleeping.p50", V_SLEEP, 1e-3, "us", "eventfd", V_EVENTFD, BENCH_RATIO_MAX, 1.15),
    BENCH_FIGURE("call.64B.sleeping.p99", V_SLEEP_P99, 1e-3, "us"),
    BENCH_AGAINST("call.64B.spinning", V_SPIN_RATE, 1e-3, "k/s", "raw ring", V_RAW_SPIN_RATE, BENCH_RATIO_MIN,
                  0.8),
    BENCH_AGAINST_FIXED("call.64B.spinning.anchor", V_SPIN_RATE, 1e-3, "k/s", "raw ring, elsewhere", 770,
                        BENCH_RATIO_MIN, 0.8),
    BENCH_AGAINST("call.64B.sleeping.64-outstanding", V_MANY_RATE, 1e-3, "k/s", "raw ring, futexes",
                  V_RAW_MANY_RATE, BENCH_RATIO_MIN, 1.0),
    BENCH_AGAINST_FIXED("call.64B.sleeping.64-outstanding.anchor", V_MANY_RATE, 1e-3, "k/s",
                        "raw ring, elsewhere", 880, BENCH_RATIO_MIN, 1.0),
    BENCH_FIGURE("call.64B.sleeping.64-outstanding.cpu", V_MANY_CPU, 1, "s/M"),
    BENCH_FIGURE("call.64B.sleeping.64-outstanding.wakes", V_MANY_RINGS, 1, "/call"),
};

const struct bench_case bench_case_call = {"call", "64 B to a service and back", BENCH_PROBED | BENCH_BROKER,
                                           call_run, BENCH_ROWS(rows)};
