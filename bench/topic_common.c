/* SPDX-License-Identifier: Apache-2.0
 *
 * Ends of topics, and the product at work: streams and round trips. Every message carries its number in its
 * first eight bytes, and every receiver checks it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bench/topic.h"

#define BATCH_MAX 64u

void topic_name(char name[TOPIC_NAME_SIZE], const char *stem)
{
    static unsigned used;
    snprintf(name, TOPIC_NAME_SIZE, "bench.%s.%u", stem, used++);
}

int topic_connect(struct bench_seat *seat, ipc_connection **ret)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error;

    options.timeout_ns = INT64_C(30000000000);
    if (ipc_connection_open(ret, NULL, &options, &error) < 0)
        return bench_fail(seat, "connect: %s", error.text);
    return 0;
}

int topic_publisher(struct bench_seat *seat, ipc_publisher **ret, ipc_connection *connection,
                    const char *topic, uint32_t ring_size)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error;

    options.ring_size = ring_size;
    options.block_max_ns = IPC_FOREVER;
    if (ipc_publisher_open(ret, connection, topic, &options, &error) < 0)
        return bench_fail(seat, "publisher of %s: %s", topic, error.text);
    return 0;
}

int topic_subscription(struct bench_seat *seat, ipc_subscription **ret, ipc_connection *connection,
                       const char *topic, int64_t spin_max_ns)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_error error;

    options.slow = IPC_SLOW_BLOCK;
    options.spin_max_ns = spin_max_ns;
    if (ipc_subscription_open(ret, connection, topic, &options, &error) < 0)
        return bench_fail(seat, "subscription of %s: %s", topic, error.text);
    return 0;
}

/* ---- streams --------------------------------------------------------------------------------------------- */

static int write_each(ipc_publisher *publisher, const struct topic_stream *stream)
{
    unsigned char *data = bench_alloc(stream->size);
    int result = 0;

    for (uint64_t n = 0; n < stream->count && result == 0; n++) {
        memcpy(data, &n, sizeof(n));
        result = ipc_publisher_publish(publisher, data, stream->size);
    }
    free(data);
    return result;
}

static int write_batches(ipc_publisher *publisher, const struct topic_stream *stream)
{
    unsigned char *data = bench_alloc((size_t)BATCH_MAX * stream->size);
    struct iovec pieces[BATCH_MAX];
    ssize_t result = 0;

    for (uint32_t i = 0; i < stream->batch; i++)
        pieces[i] = (struct iovec){data + (size_t)i * stream->size, stream->size};
    for (uint64_t n = 0; n < stream->count && result >= 0; n += (uint64_t)result) {
        for (uint32_t i = 0; i < stream->batch; i++) {
            uint64_t number = n + i;
            memcpy(pieces[i].iov_base, &number, sizeof(number));
        }
        uint64_t left = stream->count - n;
        result =
            ipc_publisher_publish_batch(publisher, pieces, left < stream->batch ? left : stream->batch, 0);
    }
    free(data);
    return result < 0 ? (int)result : 0;
}

static int stream_write(struct bench_seat *seat, void *argument)
{
    const struct topic_stream *stream = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, stream->topic, stream->ring_size) < 0)
        return -1;
    int result = ipc_publisher_wait_readers(publisher, stream->readers, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for readers: %s", strerror(-result));
    bench_begin(seat);
    result = stream->batch ? write_batches(publisher, stream) : write_each(publisher, stream);
    bench_end(seat);
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int check(struct bench_seat *seat, const void *data, size_t size, uint32_t size_wanted,
                 uint64_t wanted)
{
    uint64_t got;
    memcpy(&got, data, sizeof(got));
    if (__builtin_expect(got != wanted || size != size_wanted, 0))
        return bench_fail(seat, "message %llu came as %llu, %zu bytes", (unsigned long long)wanted,
                          (unsigned long long)got, size);
    return 0;
}

static int read_each(struct bench_seat *seat, ipc_subscription *subscription,
                     const struct topic_stream *stream)
{
    unsigned char *buffer = bench_alloc(stream->size);

    for (uint64_t n = 0; n < stream->count; n++) {
        ssize_t size = ipc_subscription_receive(subscription, buffer, stream->size, NULL, IPC_FOREVER);
        if (size < 0)
            return bench_fail(seat, "receive: %s", strerror((int)-size));
        if (check(seat, buffer, (size_t)size, stream->size, n) < 0)
            return -1;
    }
    free(buffer);
    return 0;
}

static int read_batches(struct bench_seat *seat, ipc_subscription *subscription,
                        const struct topic_stream *stream)
{
    size_t capacity = (size_t)BATCH_MAX * (stream->size + 16);
    unsigned char *buffer = bench_alloc(capacity);
    struct ipc_message messages[BATCH_MAX];

    for (uint64_t n = 0; n < stream->count;) {
        ssize_t count = ipc_subscription_receive_batch(subscription, buffer, capacity, messages,
                                                       stream->batch, IPC_FOREVER);
        if (count < 0)
            return bench_fail(seat, "receive: %s", strerror((int)-count));
        for (ssize_t i = 0; i < count; i++, n++)
            if (check(seat, messages[i].data, messages[i].size, stream->size, n) < 0)
                return -1;
    }
    free(buffer);
    return 0;
}

static int stream_read(struct bench_seat *seat, void *argument)
{
    const struct topic_stream *stream = argument;
    ipc_connection *connection;
    ipc_subscription *subscription;

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, stream->topic, stream->spin_max_ns) < 0)
        return -1;
    int result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for the publisher: %s", strerror(-result));
    bench_begin(seat);
    result = stream->batch ? read_batches(seat, subscription, stream) : read_each(seat, subscription, stream);
    bench_end(seat);
    if (result < 0)
        return -1;
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

int topic_stream_run(struct topic_stream *stream)
{
    struct bench_role roles[BENCH_ROLES_MAX];
    struct bench_seat seats[BENCH_ROLES_MAX];
    bool pinned = stream->readers == 1;

    topic_name(stream->topic, "stream");
    roles[0] = (struct bench_role){pinned ? 0 : BENCH_ANYWHERE, stream_write, stream};
    for (unsigned i = 1; i <= stream->readers; i++)
        roles[i] = (struct bench_role){pinned ? 1 : BENCH_ANYWHERE, stream_read, stream};
    if (bench_play(roles, stream->readers + 1, seats) < 0)
        return -1;
    stream->rate = (double)(stream->count * stream->readers) / bench_elapsed_s(seats, stream->readers + 1);
    stream->cpu_s_million = bench_cpu_s(seats, stream->readers + 1) * 1e6 / (double)stream->count;
    return 0;
}

/* ---- round trips ----------------------------------------------------------------------------------------- */

#define STOP UINT64_MAX

struct pair_end {
    const struct topic_pair *pair;
    ipc_connection *connection;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    unsigned char *buffer;
};

static int pair_open(struct bench_seat *seat, struct pair_end *end, const struct topic_pair *pair,
                     const char *to, const char *from)
{
    uint32_t ring_size = pair->size > 65536 ? 8 * pair->size : 1u << 18;

    end->pair = pair;
    end->buffer = bench_alloc(pair->size);
    if (topic_connect(seat, &end->connection) < 0 ||
        topic_publisher(seat, &end->publisher, end->connection, to, ring_size) < 0 ||
        topic_subscription(seat, &end->subscription, end->connection, from, pair->spin_max_ns) < 0)
        return -1;
    int result = ipc_publisher_wait_readers(end->publisher, 1, INT64_C(30000000000));
    if (result >= 0)
        result = ipc_subscription_wait_writers(end->subscription, 1, INT64_C(30000000000));
    return result < 0 ? bench_fail(seat, "waiting for the other end: %s", strerror(-result)) : 0;
}

/* The number stands at both ends of the message. */
static inline int pair_send(struct pair_end *end, uint64_t number)
{
    uint32_t size = end->pair->size;
    void *place = end->buffer;

    if (end->pair->in_place) {
        int result = ipc_publisher_loan(end->publisher, size, NULL, &place);
        if (result < 0)
            return result;
    }
    memcpy(place, &number, sizeof(number));
    memcpy((char *)place + size - sizeof(number), &number, sizeof(number));
    return end->pair->in_place ? ipc_publisher_commit(end->publisher, size)
                               : ipc_publisher_publish(end->publisher, place, size);
}

static inline int pair_receive(struct pair_end *end, uint64_t *number)
{
    uint32_t size = end->pair->size;
    struct ipc_message message = {.data = end->buffer};
    uint64_t last;
    ssize_t got;

    if (end->pair->in_place)
        got = ipc_subscription_take(end->subscription, &message, 1, IPC_FOREVER);
    else
        got = ipc_subscription_receive(end->subscription, end->buffer, size, NULL, IPC_FOREVER);
    if (got < 0)
        return (int)got;
    memcpy(number, message.data, sizeof(*number));
    memcpy(&last, (const char *)message.data + size - sizeof(last), sizeof(last));
    if (end->pair->in_place) {
        int result = ipc_subscription_release(end->subscription, 1);
        if (result < 0)
            return result;
    }
    return last == *number ? 0 : -EBADMSG;
}

int topic_pair_ping(struct bench_seat *seat, void *argument)
{
    const struct topic_pair *pair = argument;
    struct pair_end end;
    struct bench_sample sample;
    uint64_t n = 0, got = 0;
    int result = 0;

    if (pair_open(seat, &end, pair, pair->there, pair->back) < 0)
        return -1;
    bench_sample_init(&sample, pair->count);
    bench_begin(seat);
    uint64_t before = bench_ticks();
    uint64_t last = pair->max_ns ? before + (uint64_t)((double)pair->max_ns / bench_tick_ns) : UINT64_MAX;
    while (n < pair->count && before < last) {
        result = pair_send(&end, n);
        if (result == 0)
            result = pair_receive(&end, &got);
        if (result < 0 || got != n)
            return bench_fail(seat, "round trip %llu: %s", (unsigned long long)n,
                              result < 0 ? strerror(-result) : "another message came back");
        uint64_t after = bench_ticks();
        bench_sample_add(&sample, after - before);
        before = after;
        n++;
    }
    bench_end(seat);
    result = pair_send(&end, STOP);
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    seat->messages = n;
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    seat->values[1] = bench_sample_quantile(&sample, 0.99);
    bench_meet(seat);
    ipc_connection_close(end.connection);
    return 0;
}

int topic_pair_pong(struct bench_seat *seat, void *argument)
{
    const struct topic_pair *pair = argument;
    struct pair_end end;
    uint64_t number = 0;

    if (pair_open(seat, &end, pair, pair->back, pair->there) < 0)
        return -1;
    bench_begin(seat);
    for (;;) {
        int result = pair_receive(&end, &number);
        if (result == 0 && number == STOP)
            break;
        if (result == 0)
            result = pair_send(&end, number);
        if (result < 0)
            return bench_fail(seat, "reply: %s", strerror(-result));
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(end.connection);
    return 0;
}

int topic_pair_run(struct topic_pair *pair, double *ret_p50, double *ret_p99, double *ret_cpu_ns)
{
    struct bench_role roles[] = {{0, topic_pair_ping, pair}, {1, topic_pair_pong, pair}};
    struct bench_seat seats[2];

    topic_name(pair->there, "there");
    topic_name(pair->back, "back");
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    *ret_p50 = seats[0].values[0];
    *ret_p99 = seats[0].values[1];
    *ret_cpu_ns = bench_cpu_s(seats, 2) * 1e9 / (double)seats[0].messages;
    return 0;
}
