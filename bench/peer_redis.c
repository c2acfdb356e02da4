/* SPDX-License-Identifier: Apache-2.0
 *
 * Redis as a queue, in the two ways that do not lose what a dead consumer had: lists (each message is moved to a list of
 * its consumer, which is deleted when all of it was worked on) and streams with a group of consumers. And as the way
 * of a call: a list there, a list back. All of it in pipelines, where that is possible, through a Unix socket.
 */
#include "bench/peer.h"

#ifdef IPC_HAVE_REDIS
# include <hiredis/hiredis.h>
# include <malloc.h>
# include <stdlib.h>
# include <string.h>
# include <time.h>
# include <unistd.h>

# define AHEAD 4u /* batches whose answers the producer has not read */

static redisContext *redis_connect(const struct peer_server *server)
{
    redisContext *redis = redisConnectUnix(server->address);

    if (redis && redis->err) {
        redisFree(redis);
        redis = NULL;
    }
    return redis;
}

static redisContext *redis_seat(struct bench_seat *seat, const struct peer_server *server)
{
    redisContext *redis = redis_connect(server);

    /* Its buffers come from the heap, and stay there: pages that are taken again and again cost more than all else. */
    mallopt(M_MMAP_THRESHOLD, 1 << 25);
    mallopt(M_TRIM_THRESHOLD, 1 << 28);
    if (redis)
        redis->reader->maxbuf = 0;
    else
        bench_fail(seat, "no connection to redis-server");
    return redis;
}

static int start_redis(struct peer_server *server)
{
    static const char *const arguments[] = {"redis-server", "--port",           "0",  "--unixsocket",
                                            "socket",       "--save",           "",   "--appendonly",
                                            "no",           "--protected-mode", "no", NULL};

    (void)snprintf(server->folder, sizeof(server->folder), "/tmp/ipc-bench-XXXXXX");
    if (!mkdtemp(server->folder) || peer_start(server, arguments) < 0)
        return -1;
    snprintf(server->address, sizeof(server->address), "%s/socket", server->folder);
    for (unsigned i = 0; i < 500; i++) {
        redisContext *redis = redis_connect(server);
        if (redis) {
            redisFree(redis);
            return 0;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    peer_stop(server);
    return -1;
}

/* The next answer, which is not an error; NULL after bench_fail(). */
static redisReply *answer(struct bench_seat *seat, redisContext *redis)
{
    void *reply = NULL;

    if (redisGetReply(redis, &reply) != REDIS_OK) {
        bench_fail(seat, "redis: %s", redis->errstr);
        return NULL;
    }
    redisReply *got = reply;
    if (got->type == REDIS_REPLY_ERROR) {
        bench_fail(seat, "redis: %s", got->str);
        freeReplyObject(got);
        return NULL;
    }
    return got;
}

static int skip(struct bench_seat *seat, redisContext *redis, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        redisReply *reply = answer(seat, redis);
        if (!reply)
            return -1;
        freeReplyObject(reply);
    }
    return 0;
}

static int command(struct bench_seat *seat, redisContext *redis, const char *text)
{
    redisAppendCommand(redis, text);
    return skip(seat, redis, 1);
}

/* ---- producers ------------------------------------------------------------------------------------------- */

/* Commands that append so many messages; returns how many answers there will be. */
typedef unsigned (*append)(redisContext *redis, const char *data, size_t size, unsigned count);

static unsigned append_to_list(redisContext *redis, const char *data, size_t size, unsigned count)
{
    const char *words[2 + PEER_BATCH] = {"RPUSH", "work"};
    size_t sizes[2 + PEER_BATCH] = {5, 4};

    for (unsigned i = 0; i < count; i++) {
        words[2 + i] = data;
        sizes[2 + i] = size;
    }
    redisAppendCommandArgv(redis, (int)(2 + count), words, sizes);
    return 1;
}

static unsigned append_to_stream(redisContext *redis, const char *data, size_t size, unsigned count)
{
    const char *words[] = {"XADD", "work", "*", "m", data};
    const size_t sizes[] = {4, 4, 1, 1, size};

    for (unsigned i = 0; i < count; i++)
        redisAppendCommandArgv(redis, 5, words, sizes);
    return count;
}

static int produce(struct bench_seat *seat, const struct peer_queue *queue, append how)
{
    redisContext *redis = redis_seat(seat, queue->server);
    unsigned open[AHEAD] = {0};
    unsigned turn = 0;
    char *data = bench_alloc(queue->size);

    if (!redis || command(seat, redis, "DEL work") < 0 ||
        (how == append_to_stream && command(seat, redis, "XGROUP CREATE work group $ MKSTREAM") < 0))
        return -1;
    bench_begin(seat);
    for (uint64_t sent = 0; sent < queue->count; turn = (turn + 1) % AHEAD) {
        unsigned now = queue->count - sent < PEER_BATCH ? (unsigned)(queue->count - sent) : PEER_BATCH;
        peer_queue_pace(queue, sent);
        if (skip(seat, redis, open[turn]) < 0)
            return -1;
        open[turn] = how(redis, data, queue->size, now);
        for (int done = 0; !done;)
            if (redisBufferWrite(redis, &done) != REDIS_OK)
                return bench_fail(seat, "redis: %s", redis->errstr);
        sent += now;
    }
    for (unsigned i = 0; i < AHEAD; i++)
        if (skip(seat, redis, open[(turn + i) % AHEAD]) < 0)
            return -1;
    bench_end(seat);
    bench_meet(seat);
    redisFree(redis);
    free(data);
    return 0;
}

static int produce_list(struct bench_seat *seat, void *argument)
{
    return produce(seat, argument, append_to_list);
}

static int produce_stream(struct bench_seat *seat, void *argument)
{
    return produce(seat, argument, append_to_stream);
}

/* ---- consumers ------------------------------------------------------------------------------------------- */

/* Take some, work on them, acknowledge them. Their number, or -1. */
typedef int (*take)(struct bench_seat *seat, redisContext *redis, uint32_t size);

static int take_from_list(struct bench_seat *seat, redisContext *redis, uint32_t size)
{
    unsigned count = 0, asked = PEER_RECEIVE;

    for (unsigned i = 0; i < asked; i++)
        redisAppendCommand(redis, "LMOVE work mine.%u LEFT RIGHT", seat->index);
    for (unsigned i = 0; i < asked; i++) {
        redisReply *reply = answer(seat, redis);
        if (!reply)
            return -1;
        count += reply->type == REDIS_REPLY_STRING && reply->len == size;
        freeReplyObject(reply);
    }
    if (count)
        redisAppendCommand(redis, "DEL mine.%u", seat->index);
    else /* wait, and put it back to the others */
        redisAppendCommand(redis, "BLMOVE work work LEFT LEFT 0.01");
    return skip(seat, redis, 1) < 0 ? -1 : (int)count;
}

static int take_from_stream(struct bench_seat *seat, redisContext *redis, uint32_t size)
{
    const char *words[3 + PEER_RECEIVE] = {"XACK", "work", "group"};
    size_t sizes[3 + PEER_RECEIVE] = {4, 4, 5};

    redisAppendCommand(redis, "XREADGROUP GROUP group %u COUNT %u BLOCK 10 STREAMS work >", seat->index,
                       PEER_RECEIVE);
    redisReply *reply = answer(seat, redis);
    if (!reply)
        return -1;
    size_t count = 0;
    if (reply->type == REDIS_REPLY_ARRAY) { /* of streams: name, entries; of an entry: id, fields */
        redisReply *entries = reply->element[0]->element[1];
        for (; count < entries->elements; count++) {
            redisReply *entry = entries->element[count];
            if (entry->element[1]->element[1]->len != size)
                return bench_fail(seat, "redis: another size");
            words[3 + count] = entry->element[0]->str;
            sizes[3 + count] = entry->element[0]->len;
        }
        redisAppendCommandArgv(redis, (int)(3 + count), words, sizes);
    }
    freeReplyObject(reply);
    return count && skip(seat, redis, 1) < 0 ? -1 : (int)count;
}

static int consume(struct bench_seat *seat, const struct peer_queue *queue, take how)
{
    redisContext *redis = redis_seat(seat, queue->server);

    if (!redis)
        return -1;
    bench_begin(seat);
    while (atomic_load(queue->taken) < queue->count) {
        int count = how(seat, redis, queue->size);
        if (count < 0)
            return -1;
        atomic_fetch_add(queue->taken, (uint64_t)count);
    }
    bench_end(seat);
    bench_meet(seat);
    redisFree(redis);
    return 0;
}

static int consume_list(struct bench_seat *seat, void *argument)
{
    return consume(seat, argument, take_from_list);
}

static int consume_stream(struct bench_seat *seat, void *argument)
{
    return consume(seat, argument, take_from_stream);
}

/* The faster of the two. */
static int measure_queue(const struct peer_server *server, uint32_t size, double *ret_rate, double *ret_cpu)
{
    struct peer_queue queue = {server, size, 2, bench_count(size > 64 ? 100000 : 200000),
                               bench_shared(sizeof(*queue.taken))};
    double rate, cpu;

    if (peer_queue_play(&queue, produce_list, consume_list, ret_rate, ret_cpu) < 0 ||
        peer_queue_play(&queue, produce_stream, consume_stream, &rate, &cpu) < 0)
        return -1;
    if (rate > *ret_rate) {
        *ret_rate = rate;
        *ret_cpu = cpu;
    }
    return 0;
}

/* ---- calls ----------------------------------------------------------------------------------------------- */

struct call {
    const struct peer_server *server;
    uint64_t count;
};

static int ask(struct bench_seat *seat, void *argument)
{
    const struct call *call = argument;
    redisContext *redis = redis_seat(seat, call->server);
    struct bench_sample sample;
    char data[64] = {0};

    if (!redis)
        return -1;
    bench_sample_init(&sample, call->count);
    bench_begin(seat);
    for (uint64_t i = 0; i < call->count; i++) {
        uint64_t before = bench_ticks();
        redisAppendCommand(redis, "RPUSH there %b", data, sizeof(data));
        redisAppendCommand(redis, "BLPOP back 0");
        if (skip(seat, redis, 2) < 0)
            return -1;
        bench_sample_add(&sample, bench_ticks() - before);
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    redisFree(redis);
    return 0;
}

static int serve(struct bench_seat *seat, void *argument)
{
    const struct call *call = argument;
    redisContext *redis = redis_seat(seat, call->server);

    if (!redis)
        return -1;
    bench_begin(seat);
    redisAppendCommand(redis, "BLPOP there 0");
    for (uint64_t i = 0; i < call->count; i++) {
        redisReply *reply = answer(seat, redis);
        if (!reply)
            return -1;
        redisAppendCommand(redis, "RPUSH back %b", reply->element[1]->str, reply->element[1]->len);
        if (i + 1 < call->count)
            redisAppendCommand(redis, "BLPOP there 0");
        freeReplyObject(reply);
        if (skip(seat, redis, 1) < 0)
            return -1;
    }
    bench_end(seat);
    redisFree(redis);
    return 0;
}

int redis_measure(double rates[2], double cpu[2], double *ret_call_ns)
{
    struct peer_server server;
    struct call call = {&server, bench_count(5000)};
    struct bench_role roles[] = {{0, ask, &call}, {1, serve, &call}};
    struct bench_seat seats[2];

    if (start_redis(&server) < 0) {
        fprintf(stderr, "ipc-bench: redis-server could not be started\n");
        return 0;
    }
    int result = measure_queue(&server, 64, &rates[0], &cpu[0]);
    if (result == 0)
        result = measure_queue(&server, 1024, &rates[1], &cpu[1]);
    if (result == 0)
        result = bench_play(roles, 2, seats);
    if (result == 0)
        *ret_call_ns = seats[0].values[0];
    peer_stop(&server);
    return result;
}
#else
int redis_measure(double rates[2], double cpu[2], double *ret_call_ns)
{
    (void)rates, (void)cpu, (void)ret_call_ns;
    fprintf(stderr, "ipc-bench: built without hiredis\n");
    return 0;
}
#endif
