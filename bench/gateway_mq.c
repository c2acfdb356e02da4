/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-mq beside a raw mqueue between two processes: the same mqueues (10 messages of 64 bytes), the same outside programs;
 * between them the gateway, and the product's end instead of the other program. Sender and receiver are pinned, the gateway
 * is left to the scheduler.
 */
#include <errno.h>
#include <mqueue.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/gateway.h"
#include "bench/topic.h"

#define SIZE    GATEWAY_SIZE
#define DEPTH   10u
#define STALLED 1000u /* messages for the program that does not read */

#define TOPIC_IN  "bench.mq.in"
#define TOPIC_OUT "bench.mq.out"
#define QUEUE_IN  "bench.mq.queue.in"
#define QUEUE_OUT "bench.mq.queue.out"
#define SERVICE   "bench.mq.service"
#define IN_STALL  "bench.mq.stalled"

enum {
    V_RAW,
    V_IN_TOPIC,
    V_OUT_TOPIC,
    V_IN_QUEUE,
    V_OUT_QUEUE,
    V_RAW_TRIP,
    V_TOPIC_TRIP,
    V_CALL_TRIP,
    V_QUEUE_TRIP,
    V_BESIDE,
    V_TICKS,
    V_SLEEPS,
};

/* ---- outside --------------------------------------------------------------------------------------------- */

static void mqueue_name(char name[64], const char *which)
{
    snprintf(name, 64, "/ipc-bench-%d-%s", (int)getpid(), which);
}

struct outside {
    char there[64], back[64];
    bool raw; /* they are made here */
};

static int open_mqueue(struct bench_seat *seat, const char *name, int access)
{
    mqd_t mqueue = mq_open(name, access | O_CLOEXEC);

    return mqueue < 0 ? bench_fail(seat, "%s: %s", name, strerror(errno)) : mqueue;
}

static int put(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    char data[SIZE] = {0};
    mqd_t mqueue = open_mqueue(seat, outside->there, O_WRONLY);

    if (mqueue < 0)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        memcpy(data, &n, sizeof(n));
        if (mq_send(mqueue, data, SIZE, 0) != 0)
            return bench_fail(seat, "mq_send: %s", strerror(errno));
    }
    bench_end(seat);
    bench_meet(seat);
    return mq_close(mqueue);
}

static int get(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    char data[SIZE];
    mqd_t mqueue = open_mqueue(seat, outside->there, O_RDONLY);

    if (mqueue < 0)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0, got; n < stream->count; n++) {
        ssize_t size = mq_receive(mqueue, data, SIZE, NULL);
        memcpy(&got, data, sizeof(got));
        if (size != SIZE || got != n)
            return bench_fail(seat, "mq_receive: %s", size < 0 ? strerror(errno) : "another message");
    }
    bench_end(seat);
    bench_meet(seat);
    return mq_close(mqueue);
}

/* Both ends of a round trip: who answers waits first. */
static int exchange(struct bench_seat *seat, const struct gateway_stream *stream, bool answers)
{
    const struct outside *outside = stream->outside;
    char data[SIZE] = {0};
    mqd_t to = open_mqueue(seat, answers ? outside->back : outside->there, O_WRONLY);
    mqd_t from = open_mqueue(seat, answers ? outside->there : outside->back, O_RDONLY);
    struct bench_sample sample;

    if (to < 0 || from < 0)
        return -1;
    bench_sample_init(&sample, stream->count);
    bench_begin(seat);
    for (uint64_t n = 0, got; n < stream->count; n++) {
        uint64_t before = bench_ticks();

        memcpy(data, &n, sizeof(n));
        if (!answers && mq_send(to, data, SIZE, 0) != 0)
            return bench_fail(seat, "mq_send: %s", strerror(errno));
        ssize_t size = mq_receive(from, data, SIZE, NULL);
        memcpy(&got, data, sizeof(got));
        if (size != SIZE || got != n)
            return bench_fail(seat, "mq_receive: %s", size < 0 ? strerror(errno) : "another message");
        if (answers && mq_send(to, data, SIZE, 0) != 0)
            return bench_fail(seat, "mq_send: %s", strerror(errno));
        bench_sample_add(&sample, bench_ticks() - before);
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    bench_meet(seat);
    mq_close(to);
    return mq_close(from);
}

static int ping(struct bench_seat *seat, void *argument)
{
    return exchange(seat, argument, false);
}

static int pong(struct bench_seat *seat, void *argument)
{
    return exchange(seat, argument, true);
}

/* ---- the product's ends of a round trip -------------------------------------------------------------------- */

static int echo_topic(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    unsigned char data[SIZE];
    ipc_connection *connection;
    ipc_subscription *subscription;
    ipc_publisher *publisher;

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, TOPIC_OUT, 1u << 18) < 0 ||
        topic_subscription(seat, &subscription, connection, TOPIC_IN, 0) < 0)
        return -1;
    if (ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000)) < 0)
        return bench_fail(seat, "the gateway does not read");
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++)
        if (ipc_subscription_receive(subscription, data, SIZE, NULL, IPC_FOREVER) != SIZE ||
            ipc_publisher_publish(publisher, data, SIZE) < 0)
            return bench_fail(seat, "echo of a topic");
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int echo_queue(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    struct ipc_consumer_options consumer_options = IPC_CONSUMER_OPTIONS_INIT;
    struct ipc_producer_options producer_options = IPC_PRODUCER_OPTIONS_INIT;
    struct ipc_queue_message message;
    unsigned char data[SIZE + 64];
    ipc_connection *connection;
    ipc_consumer *consumer;
    ipc_producer *producer;

    consumer_options.spin_max_ns = producer_options.spin_max_ns = 0;
    if (topic_connect(seat, &connection) < 0 ||
        ipc_consumer_open(&consumer, connection, QUEUE_IN, &consumer_options, NULL) < 0 ||
        ipc_producer_open(&producer, connection, QUEUE_OUT, &producer_options, NULL) < 0)
        return bench_fail(seat, "no ends of queues");
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++)
        if (ipc_consumer_receive(consumer, data, sizeof(data), &message, IPC_FOREVER) != SIZE ||
            ipc_producer_send(producer, message.data, SIZE, IPC_FOREVER, NULL) < 0 ||
            ipc_consumer_ack(consumer, message.delivery) < 0)
            return bench_fail(seat, "echo of a queue");
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int serve(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    unsigned char data[SIZE];
    ipc_connection *connection;
    ipc_server *server;

    options.spin_max_ns = 0;
    if (topic_connect(seat, &connection) < 0 ||
        ipc_server_open(&server, connection, SERVICE, &options, NULL) < 0)
        return bench_fail(seat, "no server");
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        struct ipc_request *request;

        if (ipc_server_receive(server, data, SIZE, &request, IPC_FOREVER) != SIZE ||
            ipc_request_reply(request, data, SIZE, NULL) < 0)
            return bench_fail(seat, "echo of a service");
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* ---- one repetition -------------------------------------------------------------------------------------- */

typedef int role(struct bench_seat *seat, void *argument);

static int stream_run(double *ret_rate, role *sender, role *receiver, struct gateway_stream *stream)
{
    struct bench_role roles[] = {{0, sender, stream}, {1, receiver, stream}};
    struct bench_seat seats[2];

    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *ret_rate = (double)stream->count * 1e9 / (double)(seats[1].end_ns - seats[0].start_ns);
    return 0;
}

static int trip_run(double *ret_p50, role *answers, const char *there, const char *back)
{
    struct outside outside;
    struct gateway_stream trip = {.count = bench_count(5000), .outside = &outside};
    struct bench_role roles[] = {{0, ping, &trip}, {1, answers, &trip}};
    struct bench_seat seats[2];

    mqueue_name(outside.there, there);
    mqueue_name(outside.back, back);
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *ret_p50 = seats[0].values[0];
    return 0;
}

static int in_run(double *ret_rate, const char *mqueue, const char *topic, const char *queue)
{
    struct outside outside;
    struct gateway_stream stream = {
        .count = bench_count(200000), .topic = topic, .queue = queue, .outside = &outside};

    mqueue_name(outside.there, mqueue);
    return stream_run(ret_rate, put, gateway_receive, &stream);
}

static int out_run(double *ret_rate, const char *mqueue, const char *topic, const char *queue)
{
    struct outside outside;
    struct gateway_stream stream = {
        .count = bench_count(200000), .topic = topic, .queue = queue, .outside = &outside};

    mqueue_name(outside.there, mqueue);
    return stream_run(ret_rate, gateway_send, get, &stream);
}

static int raw_run(double *values)
{
    const struct mq_attr attributes = {.mq_maxmsg = DEPTH, .mq_msgsize = SIZE};
    static const char *const names[] = {"raw", "raw-back"};
    struct outside outside;
    struct gateway_stream stream = {.count = bench_count(200000), .outside = &outside};
    int result = 0;
    char name[64];

    for (int i = 0; i < 2; i++) {
        mqueue_name(name, names[i]);
        mqd_t made = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes);
        if (made < 0) {
            fprintf(stderr, "ipc-bench: mqueue %s: %s\n", name, strerror(errno));
            result = -1;
        } else {
            mq_close(made);
        }
    }
    mqueue_name(outside.there, names[0]);
    if (result == 0)
        result = stream_run(&values[V_RAW], put, get, &stream);
    if (result == 0)
        result = trip_run(&values[V_RAW_TRIP], pong, names[0], names[1]);
    for (int i = 0; i < 2; i++) {
        mqueue_name(name, names[i]);
        mq_unlink(name);
    }
    return result;
}

static int start(struct gateway_program *gateway)
{
    static const char *const queues[] = {QUEUE_IN, QUEUE_OUT, IN_STALL, NULL};
    static const struct {
        const char *mqueue, *rest;
    } bindings[] = {
        {"in-topic", "direction = in\ntopic = " TOPIC_IN},
        {"out-topic", "direction = out\ntopic = " TOPIC_OUT},
        {"in-queue", "direction = in\nqueue = " QUEUE_IN},
        {"out-queue", "direction = out\nqueue = " QUEUE_OUT},
        {"stalled", "direction = out\nqueue = " IN_STALL},
        {"call", "direction = call\nservice = " SERVICE},
    };
    char config[4096], name[64], reply[64];
    size_t size = 0;

    for (size_t i = 0; i < sizeof(bindings) / sizeof(*bindings); i++) {
        bool calls = strcmp(bindings[i].mqueue, "call") == 0;

        mqueue_name(name, bindings[i].mqueue);
        mqueue_name(reply, "reply");
        size += (size_t)snprintf(config + size, sizeof(config) - size,
                                 "[bind %s]\nmqueue = %s\n%s\nmessages = %u\nmessage-size = %u\n%s%s\n",
                                 bindings[i].mqueue, name, bindings[i].rest, DEPTH, SIZE,
                                 calls ? "reply = " : "", calls ? reply : "");
    }
    return gateway_queues(queues) < 0 ? -1 : gateway_start(gateway, "ipcd-mq", config);
}

static int measure(double *values)
{
    struct gateway_stream stalled = {.count = STALLED, .queue = IN_STALL};
    struct bench_role stall = {BENCH_ANYWHERE, gateway_send, &stalled};

    if (in_run(&values[V_IN_TOPIC], "in-topic", TOPIC_IN, NULL) < 0 ||
        out_run(&values[V_OUT_TOPIC], "out-topic", TOPIC_OUT, NULL) < 0 ||
        in_run(&values[V_IN_QUEUE], "in-queue", NULL, QUEUE_IN) < 0 ||
        out_run(&values[V_OUT_QUEUE], "out-queue", NULL, QUEUE_OUT) < 0 ||
        trip_run(&values[V_TOPIC_TRIP], echo_topic, "in-topic", "out-topic") < 0 ||
        trip_run(&values[V_CALL_TRIP], serve, "call", "reply") < 0 ||
        trip_run(&values[V_QUEUE_TRIP], echo_queue, "in-queue", "out-queue") < 0 ||
        bench_play(&stall, 1, NULL) < 0)
        return -1;
    return out_run(&values[V_BESIDE], "out-topic", TOPIC_OUT, NULL);
}

static int mq_run(double *values)
{
    struct gateway_program gateway;

    if (raw_run(values) < 0 || start(&gateway) < 0)
        return -1;
    int result = measure(values);
    gateway_stop(&gateway);
    return result;
}

static int mq_idle_run(double *values)
{
    struct gateway_program gateway;

    if (start(&gateway) < 0)
        return -1;
    int result = in_run(&values[V_IN_QUEUE], "in-queue", NULL, QUEUE_IN);
    gateway_idle(&gateway, &values[V_TICKS], &values[V_SLEEPS]);
    gateway_stop(&gateway);
    return result;
}

#define RATE(n, v) BENCH_AGAINST("gateway-mq." n, v, 1e-3, "k/s", "raw mqueue", V_RAW, BENCH_RATIO_MIN, 0.6)
#define TRIP(n, v, t)                                                                                        \
 BENCH_AGAINST("gateway-mq.round-trip." n ".p50", v, 1e-3, "us", "raw mqueues", V_RAW_TRIP, BENCH_RATIO_MAX, \
               t)

static const struct bench_row rows[] = {
    RATE("in.topic", V_IN_TOPIC),
    RATE("out.topic", V_OUT_TOPIC),
    RATE("in.queue", V_IN_QUEUE),
    RATE("out.queue", V_OUT_QUEUE),
    TRIP("topics", V_TOPIC_TRIP, 2.2),
    TRIP("service", V_CALL_TRIP, 2.2),
    TRIP("queues", V_QUEUE_TRIP, 3.5),
    BENCH_AGAINST("gateway-mq.beside-a-stalled-one", V_BESIDE, 1e-3, "k/s", "alone", V_OUT_TOPIC,
                  BENCH_RATIO_MIN, 0.9),
};
static const struct bench_row idle_rows[] = {
    BENCH_AT_MOST("gateway-mq.idle.cpu", V_TICKS, "ticks", 0),
    BENCH_AT_MOST("gateway-mq.idle.sleeps", V_SLEEPS, "times", 0),
};

const struct bench_case bench_case_gateway_mq = {"gateway-mq", "ipcd-mq beside a raw mqueue, 64 B",
                                                 BENCH_PROBED | BENCH_BROKER, mq_run, BENCH_ROWS(rows)};
const struct bench_case bench_case_gateway_mq_idle = {"gateway-mq-idle", "ipcd-mq while nothing comes (2 s)",
                                                      BENCH_BROKER | BENCH_ONCE, mq_idle_run,
                                                      BENCH_ROWS(idle_rows)};
