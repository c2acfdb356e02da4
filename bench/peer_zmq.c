/* SPDX-License-Identifier: Apache-2.0
 *
 * A peer in the same run: ZeroMQ over its ipc transport, PUSH/PULL and REQ/REP, next to the product and the raw
 * ring. Built without ZeroMQ, its figures are missing and the table says why.
 */
#include <string.h>
#include <unistd.h>

#include "bench/limit.h"
#include "bench/limit_ring.h"
#include "bench/peer.h"
#include "bench/topic.h"

#ifdef IPC_HAVE_ZMQ
# include <zmq.h>
#endif

enum {
    V_ZMQ_RATE,
    V_ZMQ_CPU,
    V_ZMQ_TRIP,
    V_IPC_RATE,
    V_IPC_CPU,
    V_IPC_TRIP,
    V_IPC_TRIP_P99,
    V_ZMQ_RATE_1K,
    V_IPC_RATE_1K
};

#ifdef IPC_HAVE_ZMQ
struct peer {
    size_t size;
    uint64_t count;
    unsigned outstanding; /* calls */
    char address[64];
};

/* An abstract address: nothing to remove afterwards. */
static void peer_address(struct peer *peer)
{
    static unsigned used;
    snprintf(peer->address, sizeof(peer->address), "ipc://@ipc-bench-%d-%u", (int)getpid(), used++);
}

static void *peer_socket(struct bench_seat *seat, void **context, int type, const char *address, bool bind_it)
{
    *context = zmq_ctx_new();
    void *socket = *context ? zmq_socket(*context, type) : NULL;
    if (!socket || (bind_it ? zmq_bind(socket, address) : zmq_connect(socket, address)) != 0) {
        bench_fail(seat, "zmq %s: %s", address, zmq_strerror(zmq_errno()));
        return NULL;
    }
    return socket;
}

static void peer_done(void *context, void *socket)
{
    zmq_close(socket);
    zmq_ctx_term(context);
}

static int push(struct bench_seat *seat, void *argument)
{
    const struct peer *peer = argument;
    unsigned char *data = bench_alloc(peer->size);
    void *context, *socket = peer_socket(seat, &context, ZMQ_PUSH, peer->address, false);

    if (!socket)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < peer->count; n++) {
        memcpy(data, &n, sizeof(n));
        if (zmq_send(socket, data, peer->size, 0) < 0)
            return bench_fail(seat, "zmq_send: %s", zmq_strerror(zmq_errno()));
    }
    bench_meet(seat);
    bench_end(seat);
    peer_done(context, socket);
    return 0;
}

static int pull(struct bench_seat *seat, void *argument)
{
    const struct peer *peer = argument;
    unsigned char *data = bench_alloc(peer->size);
    void *context, *socket = peer_socket(seat, &context, ZMQ_PULL, peer->address, true);
    uint64_t got;

    if (!socket)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < peer->count; n++) {
        int size = zmq_recv(socket, data, peer->size, 0);
        memcpy(&got, data, sizeof(got));
        if (size != (int)peer->size || got != n)
            return bench_fail(seat, "zmq_recv: %s", size < 0 ? zmq_strerror(zmq_errno()) : "another message");
    }
    bench_end(seat);
    bench_meet(seat);
    peer_done(context, socket);
    return 0;
}

/* A REQ has one call at a time; a DEALER has as many as it likes, and writes the empty part itself. */
static int request(struct bench_seat *seat, void *argument)
{
    const struct peer *peer = argument;
    bool many = peer->outstanding > 1;
    unsigned char data[64] = {0};
    void *context, *socket = peer_socket(seat, &context, many ? ZMQ_DEALER : ZMQ_REQ, peer->address, false);
    struct bench_sample sample;

    if (!socket)
        return -1;
    bench_sample_init(&sample, peer->count);
    bench_begin(seat);
    uint64_t before = bench_ticks(), made = 0, got;
    for (uint64_t n = 0; n < peer->count; n++) {
        for (; made < peer->count && made - n < peer->outstanding; made++) {
            memcpy(data, &made, sizeof(made));
            if ((many && zmq_send(socket, "", 0, ZMQ_SNDMORE) < 0) ||
                zmq_send(socket, data, sizeof(data), 0) < 0)
                return bench_fail(seat, "zmq: %s", zmq_strerror(zmq_errno()));
        }
        if ((many && zmq_recv(socket, data, sizeof(data), 0) != 0) ||
            zmq_recv(socket, data, sizeof(data), 0) != sizeof(data))
            return bench_fail(seat, "zmq: %s", zmq_strerror(zmq_errno()));
        memcpy(&got, data, sizeof(got));
        if (got != n)
            return bench_fail(seat, "zmq: another reply");
        uint64_t after = bench_ticks();
        bench_sample_add(&sample, after - before);
        before = after;
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    peer_done(context, socket);
    return 0;
}

static int reply(struct bench_seat *seat, void *argument)
{
    const struct peer *peer = argument;
    unsigned char data[64];
    void *context, *socket = peer_socket(seat, &context, ZMQ_REP, peer->address, true);

    if (!socket)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < peer->count; n++)
        if (zmq_recv(socket, data, sizeof(data), 0) != sizeof(data) ||
            zmq_send(socket, data, sizeof(data), 0) < 0)
            return bench_fail(seat, "zmq: %s", zmq_strerror(zmq_errno()));
    bench_end(seat);
    peer_done(context, socket);
    return 0;
}

static int zmq_stream(double *rate, double *cpu, size_t size, uint64_t count)
{
    struct peer peer = {.size = size, .count = count};
    struct bench_role roles[] = {{0, push, &peer}, {1, pull, &peer}};
    struct bench_seat seats[2];

    peer_address(&peer);
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *rate = (double)count / (double)(seats[1].end_ns - seats[0].start_ns) * 1e9;
    if (cpu)
        *cpu = bench_cpu_s(seats, 2) * 1e6 / (double)count;
    return 0;
}

int zmq_call(unsigned outstanding, uint64_t count, double *ret_p50_ns, double *ret_rate)
{
    struct peer peer = {.size = 64, .count = count, .outstanding = outstanding};
    struct bench_role roles[] = {{0, request, &peer}, {1, reply, &peer}};
    struct bench_seat seats[2];

    peer_address(&peer);
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *ret_p50_ns = seats[0].values[0];
    *ret_rate = (double)count * 1e9 / (double)(seats[0].end_ns - seats[0].start_ns);
    return 0;
}

static int zmq_run(double *values)
{
    double ignored;

    if (zmq_stream(&values[V_ZMQ_RATE], &values[V_ZMQ_CPU], 64, bench_count(1000000)) < 0 ||
        zmq_stream(&values[V_ZMQ_RATE_1K], NULL, 1024, bench_count(200000)) < 0)
        return -1;
    return zmq_call(1, bench_count(5000), &values[V_ZMQ_TRIP], &ignored);
}
#else
static int zmq_run(double *values)
{
    (void)values;
    bench_waive(V_IPC_RATE, "built without ZeroMQ");
    return 0;
}

int zmq_call(unsigned outstanding, uint64_t count, double *ret_p50_ns, double *ret_rate)
{
    (void)outstanding, (void)count, (void)ret_p50_ns, (void)ret_rate;
    return 0;
}
#endif

static int ipc_stream(double *rate, double *cpu, uint32_t size, uint64_t count)
{
    struct topic_stream stream = {
        .size = size, .ring_size = 1u << 18, .spin_max_ns = IPC_SPIN_ADAPTIVE, .count = count, .readers = 1};

    if (topic_stream_run(&stream) < 0)
        return -1;
    *rate = stream.rate;
    if (cpu)
        *cpu = stream.cpu_s_million;
    return 0;
}

static int peers_run(double *values)
{
    struct topic_pair pair = {.size = 64, .spin_max_ns = 0, .count = bench_count(5000)};
    double cpu_ns;

    if (zmq_run(values) < 0 ||
        ipc_stream(&values[V_IPC_RATE], &values[V_IPC_CPU], 64, bench_count(5000000)) < 0 ||
        ipc_stream(&values[V_IPC_RATE_1K], NULL, 1024, bench_count(500000)) < 0)
        return -1;
    return topic_pair_run(&pair, &values[V_IPC_TRIP], &values[V_IPC_TRIP_P99], &cpu_ns);
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("peers.zeromq.throughput.64B", V_IPC_RATE, 1e-6, "M/s", "ZeroMQ ipc PUSH/PULL", V_ZMQ_RATE,
                  BENCH_INFO, 0),
    BENCH_AGAINST("peers.zeromq.throughput.1KiB", V_IPC_RATE_1K, 1e-6, "M/s", "ZeroMQ ipc PUSH/PULL",
                  V_ZMQ_RATE_1K, BENCH_INFO, 0),
    BENCH_AGAINST("peers.zeromq.cpu.64B", V_IPC_CPU, 1, "s/M", "ZeroMQ ipc PUSH/PULL", V_ZMQ_CPU, BENCH_INFO,
                  0),
    BENCH_AGAINST("peers.zeromq.round-trip.sleeping.p50", V_IPC_TRIP, 1e-3, "us", "ZeroMQ ipc REQ/REP",
                  V_ZMQ_TRIP, BENCH_INFO, 0),
};

const struct bench_case bench_case_peers = {"peers", "ZeroMQ ipc, in the same places",
                                            BENCH_PROBED | BENCH_BROKER | BENCH_PEER, peers_run,
                                            BENCH_ROWS(rows)};
