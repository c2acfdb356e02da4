/* SPDX-License-Identifier: Apache-2.0
 *
 * The raw ring at work: streams and round trips.
 */
#include <string.h>

#include "bench/bench.h"
#include "bench/limit.h"
#include "bench/limit_ring.h"

#define READERS_MAX 16u

struct stream {
    struct raw_ring *rings[READERS_MAX];
    unsigned readers;
    uint32_t batch;
    uint64_t count;
};

static int stream_write(struct bench_seat *seat, void *argument)
{
    struct stream *stream = argument;
    struct raw_writer writers[READERS_MAX];
    unsigned char *data = bench_alloc((size_t)stream->batch * stream->rings[0]->size);

    for (unsigned i = 0; i < stream->readers; i++)
        raw_writer_init(&writers[i], stream->rings[i]);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count && stream->batch == 1; n++) {
        memcpy(data, &n, sizeof(n));
        for (unsigned i = 0; i < stream->readers; i++)
            raw_put(&writers[i], data);
    }
    for (uint64_t n = 0; n < stream->count && stream->batch > 1; n += stream->batch) {
        for (unsigned i = 0; i < stream->batch; i++)
            memcpy(data + (size_t)i * stream->rings[0]->size, &(uint64_t){n + i}, sizeof(n));
        raw_put_many(&writers[0], data, stream->batch);
    }
    bench_end(seat);
    return 0;
}

static int stream_read(struct bench_seat *seat, void *argument)
{
    struct stream *stream = argument;
    struct raw_reader reader;
    uint32_t size = stream->rings[0]->size;
    unsigned char *data = bench_alloc((size_t)stream->batch * size);

    raw_reader_init(&reader, stream->rings[seat->index - 1]);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        uint64_t got;
        unsigned at = (unsigned)(n % stream->batch);
        if (stream->batch == 1)
            raw_get(&reader, data);
        else if (at == 0)
            raw_get_many(&reader, data, stream->batch);
        memcpy(&got, data + (size_t)at * size, sizeof(got));
        if (got != n)
            return bench_fail(seat, "raw ring: message %llu came as %llu", (unsigned long long)n,
                              (unsigned long long)got);
    }
    bench_end(seat);
    return 0;
}

static int stream_run(struct limit_stream *ret, uint32_t size, uint32_t ring_size, uint32_t spins,
                      uint64_t count, unsigned readers, uint32_t batch)
{
    struct stream stream = {.readers = readers, .batch = batch, .count = count - count % batch};
    struct bench_role roles[READERS_MAX + 1] = {{readers > 1 ? BENCH_ANYWHERE : 0, stream_write, &stream}};
    struct bench_seat seats[READERS_MAX + 1];

    for (unsigned i = 0; i < readers; i++) {
        stream.rings[i] = raw_ring_new(size, ring_size, spins, true);
        roles[i + 1] = (struct bench_role){readers > 1 ? BENCH_ANYWHERE : 1, stream_read, &stream};
    }
    int result = bench_play(roles, readers + 1, seats);
    for (unsigned i = 0; i < readers; i++)
        raw_ring_free(stream.rings[i]);
    if (result < 0)
        return -1;
    ret->rate = (double)(stream.count * readers) / bench_elapsed_s(seats, readers + 1);
    ret->cpu_s_million = bench_cpu_s(seats, readers + 1) * 1e6 / (double)stream.count;
    return 0;
}

int limit_ring_stream(struct limit_stream *ret, uint32_t size, uint32_t ring_size, uint32_t spins,
                      uint64_t count, unsigned readers)
{
    return stream_run(ret, size, ring_size, spins, count, readers, 1);
}

int limit_ring_batches(struct limit_stream *ret, uint32_t size, uint32_t ring_size, uint32_t batch,
                       uint64_t count)
{
    return stream_run(ret, size, ring_size, RAW_SPIN, count, 1, batch);
}

struct pair {
    struct raw_ring *there, *back;
    uint64_t count;
};

/* As those who use the product do: the number stands at both ends of the message, and is checked there. */
static inline void pair_send(struct raw_writer *writer, unsigned char *data, uint64_t number)
{
    memcpy(data, &number, sizeof(number));
    memcpy(data + writer->ring->size - sizeof(number), &number, sizeof(number));
    raw_put(writer, data);
}

static inline bool pair_receive(struct raw_reader *reader, unsigned char *data, uint64_t *number)
{
    uint64_t last;
    raw_get(reader, data);
    memcpy(number, data, sizeof(*number));
    memcpy(&last, data + reader->ring->size - sizeof(last), sizeof(last));
    return last == *number;
}

static int pair_ping(struct bench_seat *seat, void *argument)
{
    struct pair *pair = argument;
    struct raw_writer writer;
    struct raw_reader reader;
    struct bench_sample sample;
    unsigned char *data = bench_alloc(pair->there->size);

    bench_sample_init(&sample, pair->count);
    raw_writer_init(&writer, pair->there);
    raw_reader_init(&reader, pair->back);
    bench_begin(seat);
    uint64_t before = bench_ticks();
    for (uint64_t n = 0; n < pair->count; n++) {
        uint64_t got;
        pair_send(&writer, data, n);
        if (!pair_receive(&reader, data, &got) || got != n)
            return bench_fail(seat, "raw ring: a reply is wrong");
        uint64_t after = bench_ticks();
        bench_sample_add(&sample, after - before);
        before = after;
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    seat->values[1] = bench_sample_quantile(&sample, 0.99);
    return 0;
}

static int pair_pong(struct bench_seat *seat, void *argument)
{
    struct pair *pair = argument;
    struct raw_writer writer;
    struct raw_reader reader;
    unsigned char *data = bench_alloc(pair->there->size);

    raw_writer_init(&writer, pair->back);
    raw_reader_init(&reader, pair->there);
    bench_begin(seat);
    for (uint64_t n = 0; n < pair->count; n++) {
        uint64_t got;
        if (!pair_receive(&reader, data, &got))
            return bench_fail(seat, "raw ring: a request is wrong");
        pair_send(&writer, data, got);
    }
    bench_end(seat);
    return 0;
}

int limit_ring_round_trip(double *ret_p50, double *ret_p99, uint32_t size, uint32_t spins, bool in_order,
                          uint64_t count)
{
    struct pair pair = {raw_ring_new(size, 1u << 18, spins, false),
                        raw_ring_new(size, 1u << 18, spins, false), count};
    struct bench_role roles[] = {{0, pair_ping, &pair}, {1, pair_pong, &pair}};
    struct bench_seat seats[2];

    pair.there->in_order = pair.back->in_order = in_order;
    int result = bench_play(roles, 2, seats);
    raw_ring_free(pair.there);
    raw_ring_free(pair.back);
    if (result < 0)
        return -1;
    *ret_p50 = seats[0].values[0];
    *ret_p99 = seats[0].values[1];
    return 0;
}
