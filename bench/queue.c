/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues with explicit acknowledgement, crash safe: one producer that sends in batches and waits at the end for all
 * confirms; consumers that receive in batches and acknowledge each batch. Nothing is pinned: a router is a party, too.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bench/inspect.h"
#include "bench/peer.h"
#include "bench/topic.h"

#define BATCH          64u
#define RECEIVE_MAX    1024u
#define RECEIVE_SIZE   (256u << 10) /* bytes: still in the cache when the consumer looks at them */
#define CONSUMERS      4u
#define WAITING        100000u
#define MANY_QUEUES    1000u
#define LATENCY_GAP    100000 /* ns between two messages: long enough for everybody to fall asleep */
#define LATENCY_SIZE   64u
#define LATENCY_TARGET 1.3 /* eventfd round trips */

enum {
    V_2,
    V_4,
    V_1K,
    V_CPU,
    V_CPU_BROKER,
    V_LATENCY,
    V_LATENCY_P99,
    V_EVENTFD,
    V_CHAIN,
    V_BEHIND_FEW,
    V_BEHIND_MANY,
    V_WAITING_BYTES,
    V_WAITING_MEMORY,
    V_MANY_MEMORY,
    V_MANY_CPU,
};

/* ---- throughput ------------------------------------------------------------------------------------------ */

struct trial {
    uint32_t size;
    unsigned consumers;
    uint64_t count;
    uint64_t backlog; /* messages that wait all the time */
    char queue[TOPIC_NAME_SIZE];
    _Atomic uint64_t *taken; /* by all consumers */
};

static int fail(struct bench_seat *seat, const char *what, int64_t result)
{
    return bench_fail(seat, "%s: %s", what, strerror((int)-result));
}

static int make_queue(struct bench_seat *seat, ipc_connection *connection, const char *queue, uint64_t bytes)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_error error;

    settings.given = IPC_QUEUE_BYTES_MAX;
    settings.bytes_max = bytes;
    if (ipc_queue_create(connection, queue, &settings, IPC_QUEUE_MAY_EXIST, &error) < 0)
        return bench_fail(seat, "%s", error.text);
    return 0;
}

static int send_all(struct bench_seat *seat, ipc_producer *producer, uint32_t size, uint64_t count)
{
    struct iovec messages[BATCH];
    unsigned char *data = bench_alloc(size);

    for (unsigned i = 0; i < BATCH; i++)
        messages[i] = (struct iovec){.iov_base = data, .iov_len = size};
    for (uint64_t sent = 0; sent < count;) {
        size_t now = count - sent < BATCH ? (size_t)(count - sent) : BATCH;
        ssize_t n = ipc_producer_send_batch(producer, messages, now, NULL, IPC_FOREVER, NULL);

        if (n < 0)
            return fail(seat, "send", n);
        sent += (uint64_t)n;
    }
    int result = ipc_producer_flush(producer, IPC_FOREVER);
    free(data);
    return result < 0 ? fail(seat, "flush", result) : 0;
}

static int produce(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    ipc_connection *connection;
    ipc_producer *producer;

    if (topic_connect(seat, &connection) < 0 ||
        make_queue(seat, connection, trial->queue, (trial->backlog + PEER_AHEAD) * (trial->size + 128)) < 0 ||
        ipc_producer_open(&producer, connection, trial->queue, NULL, NULL) < 0)
        return bench_fail(seat, "no producer");
    if (send_all(seat, producer, trial->size, trial->backlog) < 0)
        return -1;
    bench_meet(seat); /* the queue is there */
    bench_begin(seat);
    if (send_all(seat, producer, trial->size, trial->count) < 0)
        return -1;
    bench_end(seat);
    bench_meet(seat);
    ipc_queue_remove(connection, trial->queue, 0, NULL);
    ipc_connection_close(connection);
    return 0;
}

static int consume(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    struct ipc_queue_message messages[RECEIVE_MAX];
    uint32_t count = RECEIVE_SIZE / trial->size < RECEIVE_MAX ? RECEIVE_SIZE / trial->size : RECEIVE_MAX;
    size_t capacity = count * (size_t)(trial->size + 8);
    unsigned char *buffer = bench_alloc(capacity);
    ipc_connection *connection;
    ipc_consumer *consumer;

    options.prefetch = 4 * count;
    options.ring_size = trial->size > 256 ? 1u << 21 : 1u << 19;
    bench_meet(seat);
    if (topic_connect(seat, &connection) < 0 ||
        ipc_consumer_open(&consumer, connection, trial->queue, &options, NULL) < 0)
        return bench_fail(seat, "no consumer");
    bench_begin(seat);
    while (atomic_load(trial->taken) < trial->count) {
        ssize_t n = ipc_consumer_receive_batch(consumer, buffer, capacity, messages, count, 10000000);
        if (n == -ETIMEDOUT)
            continue;
        if (n < 0)
            return fail(seat, "receive", n);
        int result = ipc_consumer_ack_until(consumer, messages[n - 1].delivery);
        if (result < 0)
            return fail(seat, "ack", result);
        atomic_fetch_add(trial->taken, (uint64_t)n);
        seat->messages += (uint64_t)n;
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    free(buffer);
    return 0;
}

static double broker_cpu_s(void)
{
    return inspect_cpu_s(inspect_broker());
}

/* Messages per second, from the first send to the last acknowledgement and the last confirm; CPU seconds of all processes
 * per million messages, and of these the broker's. */
static int run_trial(struct trial *trial, double *ret_rate, double *ret_cpu, double *ret_broker)
{
    struct bench_role roles[1 + CONSUMERS] = {{BENCH_ANYWHERE, produce, trial}};
    struct bench_seat seats[1 + CONSUMERS];
    unsigned count = 1 + trial->consumers;
    double before = broker_cpu_s(), broker;

    topic_name(trial->queue, "queue");
    atomic_store(trial->taken, 0);
    for (unsigned i = 1; i < count; i++)
        roles[i] = (struct bench_role){BENCH_ANYWHERE, consume, trial};
    if (bench_play(roles, count, seats) < 0)
        return -1;
    broker = broker_cpu_s() - before;
    *ret_rate = (double)trial->count / bench_elapsed_s(seats, count);
    if (ret_cpu)
        *ret_cpu = (bench_cpu_s(seats, count) + broker) * 1e6 / (double)trial->count;
    if (ret_broker)
        *ret_broker = broker * 1e6 / (double)trial->count;
    return 0;
}

int queue_rate(uint32_t size, unsigned consumers, uint64_t count, double *ret_rate, double *ret_cpu)
{
    struct trial trial = {
        .size = size, .consumers = consumers, .count = count, .taken = bench_shared(sizeof(*trial.taken))};

    return run_trial(&trial, ret_rate, ret_cpu, NULL);
}

static int throughput_run(double *values)
{
    struct trial trial = {.size = 64, .consumers = 2, .count = bench_count(4000000)};

    trial.taken = bench_shared(sizeof(*trial.taken));
    if (run_trial(&trial, &values[V_2], &values[V_CPU], &values[V_CPU_BROKER]) < 0)
        return -1;
    trial.consumers = 4;
    if (run_trial(&trial, &values[V_4], NULL, NULL) < 0)
        return -1;
    trial = (struct trial){.size = 1024, .consumers = 2, .count = bench_count(1000000), .taken = trial.taken};
    if (run_trial(&trial, &values[V_1K], NULL, NULL) < 0)
        return -1;
    trial = (struct trial){
        .size = 64, .consumers = 2, .count = bench_count(1000000), .backlog = 1000, .taken = trial.taken};
    if (run_trial(&trial, &values[V_BEHIND_FEW], NULL, NULL) < 0)
        return -1;
    trial.backlog = bench_count(10000000);
    return run_trial(&trial, &values[V_BEHIND_MANY], NULL, NULL);
}

/* ---- one message at a time, everybody asleep ------------------------------------------------------------- */

static int send_slowly(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    unsigned char data[LATENCY_SIZE] = {0};
    ipc_connection *connection;
    ipc_producer *producer;

    if (topic_connect(seat, &connection) < 0 || make_queue(seat, connection, trial->queue, 1 << 20) < 0 ||
        ipc_producer_open(&producer, connection, trial->queue, NULL, NULL) < 0)
        return bench_fail(seat, "no producer");
    bench_meet(seat);
    bench_begin(seat);
    for (uint64_t i = 0; i < trial->count; i++) {
        struct timespec gap = {.tv_nsec = LATENCY_GAP};
        nanosleep(&gap, NULL);
        uint64_t now = bench_ticks();
        memcpy(data, &now, sizeof(now));
        int result = ipc_producer_send(producer, data, sizeof(data), IPC_FOREVER, NULL);
        if (result < 0)
            return fail(seat, "send", result);
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_queue_remove(connection, trial->queue, 0, NULL);
    ipc_connection_close(connection);
    return 0;
}

static int receive_slowly(struct bench_seat *seat, void *argument)
{
    const struct trial *trial = argument;
    unsigned char data[LATENCY_SIZE];
    struct ipc_queue_message message;
    struct bench_sample sample;
    ipc_connection *connection;
    ipc_consumer *consumer;

    bench_sample_init(&sample, trial->count);
    bench_meet(seat);
    if (topic_connect(seat, &connection) < 0 ||
        ipc_consumer_open(&consumer, connection, trial->queue, NULL, NULL) < 0)
        return bench_fail(seat, "no consumer");
    bench_begin(seat);
    for (uint64_t i = 0; i < trial->count; i++) {
        ssize_t n = ipc_consumer_receive(consumer, data, sizeof(data), &message, IPC_FOREVER);
        uint64_t now = bench_ticks(), then;
        if (n != sizeof(data))
            return fail(seat, "receive", n);
        memcpy(&then, data, sizeof(then));
        bench_sample_add(&sample, now - then);
        int result = ipc_consumer_ack(consumer, message.delivery);
        if (result < 0)
            return fail(seat, "ack", result);
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    seat->values[1] = bench_sample_quantile(&sample, 0.99);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* The limits, at the same pace, since a processor that was idle for a while takes longer to wake: there and back between two
 * processes, and from the first of three through the second to the third, which is the way of a message. */
struct pace {
    int there, on;
    uint64_t count;
    _Atomic uint64_t *sent; /* of the chain: when, each */
};

static int pass_on(struct bench_seat *seat, int from, int to)
{
    uint64_t one;

    if ((from >= 0 && read(from, &one, sizeof(one)) != sizeof(one)) ||
        (to >= 0 && write(to, &(uint64_t){1}, sizeof(one)) != sizeof(one)))
        return bench_fail(seat, "eventfd: %s", strerror(errno));
    return 0;
}

static int pace_begin(struct bench_seat *seat, void *argument)
{
    const struct pace *pace = argument;
    struct bench_sample sample;

    bench_sample_init(&sample, pace->count);
    bench_begin(seat);
    for (uint64_t i = 0; i < pace->count; i++) {
        struct timespec gap = {.tv_nsec = LATENCY_GAP};

        nanosleep(&gap, NULL);
        uint64_t before = bench_ticks();
        if (pace->sent)
            atomic_store(&pace->sent[i], before);
        if (pass_on(seat, -1, pace->there) < 0 || (!pace->sent && pass_on(seat, pace->on, -1) < 0))
            return -1;
        bench_sample_add(&sample, bench_ticks() - before);
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    return 0;
}

static int pace_pass_on(struct bench_seat *seat, void *argument)
{
    const struct pace *pace = argument;

    bench_begin(seat);
    for (uint64_t i = 0; i < pace->count; i++)
        if (pass_on(seat, pace->there, pace->on) < 0)
            return -1;
    bench_end(seat);
    return 0;
}

static int pace_end(struct bench_seat *seat, void *argument)
{
    const struct pace *pace = argument;
    struct bench_sample sample;

    bench_sample_init(&sample, pace->count);
    bench_begin(seat);
    for (uint64_t i = 0; i < pace->count; i++) {
        if (pass_on(seat, pace->on, -1) < 0)
            return -1;
        bench_sample_add(&sample, bench_ticks() - atomic_load(&pace->sent[i]));
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    return 0;
}

/* The p50 of two processes, or of three. */
static int eventfd_slowly(double *ret_p50, unsigned processes, uint64_t count)
{
    struct pace pace = {eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE), eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE),
                        count, processes > 2 ? bench_shared(count * sizeof(*pace.sent)) : NULL};
    struct bench_role roles[] = {{BENCH_ANYWHERE, pace_begin, &pace},
                                 {BENCH_ANYWHERE, pace_pass_on, &pace},
                                 {BENCH_ANYWHERE, pace_end, &pace}};
    struct bench_seat seats[3];
    int result = bench_play(roles, processes, seats);

    close(pace.there);
    close(pace.on);
    *ret_p50 = seats[processes > 2 ? 2 : 0].values[0];
    return result;
}

static int latency_run(double *values)
{
    struct trial trial = {.count = bench_count(2000)};
    struct bench_role roles[] = {{BENCH_ANYWHERE, send_slowly, &trial},
                                 {BENCH_ANYWHERE, receive_slowly, &trial}};
    struct bench_seat seats[2];

    topic_name(trial.queue, "queue");
    if (eventfd_slowly(&values[V_EVENTFD], 2, trial.count) < 0 || bench_play(roles, 2, seats) < 0 ||
        eventfd_slowly(&values[V_CHAIN], 3, trial.count) < 0)
        return -1;
    values[V_LATENCY] = seats[1].values[0];
    if (values[V_CHAIN] > LATENCY_TARGET * values[V_EVENTFD])
        bench_waive(V_LATENCY,
                    "three processes that only wake each other in a row by eventfd take %.1f round trips",
                    values[V_CHAIN] / values[V_EVENTFD]);
    values[V_LATENCY_P99] = seats[1].values[1];
    return 0;
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

static uint64_t broker_memory(void)
{
    struct inspection now;

    return inspect(&now, inspect_broker()) < 0 ? 0 : now.memfd_bytes + now.private_bytes;
}

static int fill(struct bench_seat *seat, void *argument)
{
    double *values = argument;
    ipc_connection *connection;
    ipc_producer *producer;
    char name[TOPIC_NAME_SIZE];
    uint64_t before;

    topic_name(name, "waiting");
    if (topic_connect(seat, &connection) < 0 || make_queue(seat, connection, name, UINT64_C(1) << 30) < 0 ||
        ipc_producer_open(&producer, connection, name, NULL, NULL) < 0)
        return bench_fail(seat, "no producer");
    before = broker_memory();
    if (send_all(seat, producer, 1024, WAITING) < 0)
        return -1;
    values[V_WAITING_MEMORY] = (double)(broker_memory() - before);
    values[V_WAITING_BYTES] = (double)WAITING * 1024;
    ipc_queue_remove(connection, name, 0, NULL);

    before = broker_memory();
    for (unsigned i = 0; i < MANY_QUEUES; i++) {
        snprintf(name, sizeof(name), "many.%u", i);
        if (make_queue(seat, connection, name, 1 << 20) < 0 ||
            ipc_producer_open(&producer, connection, name, NULL, NULL) < 0 ||
            send_all(seat, producer, 64, 1) < 0)
            return bench_fail(seat, "queue %u", i);
        ipc_producer_close(producer);
    }
    values[V_MANY_MEMORY] = (double)(broker_memory() - before);
    double cpu = broker_cpu_s();
    sleep(2);
    values[V_MANY_CPU] = broker_cpu_s() - cpu;
    for (unsigned i = 0; i < MANY_QUEUES; i++) {
        snprintf(name, sizeof(name), "many.%u", i);
        ipc_queue_remove(connection, name, 0, NULL);
    }
    ipc_connection_close(connection);
    return 0;
}

static int memory_run(double *values)
{
    double *shared = bench_shared(BENCH_VALUES_MAX * sizeof(*shared));
    struct bench_role role = {BENCH_ANYWHERE, fill, shared};
    struct bench_seat seat;

    if (bench_play(&role, 1, &seat) < 0)
        return -1;
    for (unsigned i = V_WAITING_BYTES; i <= V_MANY_CPU; i++)
        values[i] = shared[i];
    return 0;
}

/* What peers reach on a machine of this kind: see docs/performance.md. */
static const struct bench_row throughput_rows[] = {
    BENCH_AGAINST_FIXED("queue.64B.2-consumers.redis", V_2, 1e-6, "M/s", "Redis, elsewhere", 0.464,
                        BENCH_RATIO_MIN, 10),
    BENCH_AGAINST_FIXED("queue.64B.2-consumers.nats", V_2, 1e-6, "M/s", "NATS without acks, elsewhere", 1.5,
                        BENCH_RATIO_MIN, 2),
    BENCH_AGAINST("queue.64B.4-consumers", V_4, 1e-6, "M/s", "2 consumers", V_2, BENCH_RATIO_MIN, 1),
    BENCH_AGAINST_FIXED("queue.1KiB.2-consumers.redis", V_1K, 1e-6, "M/s", "Redis, elsewhere", 0.228,
                        BENCH_RATIO_MIN, 10),
    BENCH_FIGURE("queue.64B.cpu", V_CPU, 1, "s/M"),
    BENCH_FIGURE("queue.64B.cpu.broker", V_CPU_BROKER, 1, "s/M"),
    BENCH_AGAINST("queue.64B.behind-10M", V_BEHIND_MANY, 1e-6, "M/s", "behind 1,000", V_BEHIND_FEW,
                  BENCH_RATIO_MIN, 0.9),
};
static const struct bench_row latency_rows[] = {
    BENCH_AGAINST("queue.latency.asleep.p50", V_LATENCY, 1e-3, "us", "eventfd round trip", V_EVENTFD,
                  BENCH_RATIO_MAX, LATENCY_TARGET),
    BENCH_AGAINST("queue.latency.asleep.p50.chain", V_LATENCY, 1e-3, "us", "eventfds, three in a row",
                  V_CHAIN, BENCH_RATIO_MAX, LATENCY_TARGET),
    BENCH_FIGURE("queue.latency.asleep.p99", V_LATENCY_P99, 1e-3, "us"),
};
static const struct bench_row memory_rows[] = {
    BENCH_AGAINST("queue.100000-waiting.memory", V_WAITING_MEMORY, 1.0 / (1 << 20), "MiB", "their payload",
                  V_WAITING_BYTES, BENCH_RATIO_MAX, 1.15),
    BENCH_FIGURE("queue.1000-queues.memory", V_MANY_MEMORY, 1.0 / (1 << 20), "MiB"),
    {.name = "queue.1000-queues.idle.cpu",
     .value = V_MANY_CPU,
     .scale = 1,
     .unit = "s",
     .limit = -1,
     .limit_fixed = BENCH_NONE,
     .kind = BENCH_VALUE_MAX,
     .target = 0},
};

const struct bench_case bench_case_queue = {
    "queue", "one producer, consumers that acknowledge, crash safe, in batches", BENCH_PROBED | BENCH_BROKER,
    throughput_run, BENCH_ROWS(throughput_rows)};
const struct bench_case bench_case_queue_latency = {
    "queue-latency", "one message at a time, everybody asleep", BENCH_PROBED | BENCH_BROKER, latency_run,
    BENCH_ROWS(latency_rows)};
const struct bench_case bench_case_queue_memory = {
    "queue-memory", "what waiting messages and many queues take", BENCH_BROKER | BENCH_ONCE, memory_run,
    BENCH_ROWS(memory_rows)};
