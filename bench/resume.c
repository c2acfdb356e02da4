/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed, again and again, with many sessions connected: how long until the next one answers, until a queue hands
 * out its next message, and what a pair that does not need it notices.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/inspect.h"
#include "bench/topic.h"

#define HOLDERS      10u
#define KILLS        40u
#define WAITING      100000u
#define MESSAGE_SIZE 1024u
#define BATCH        64u
#define PACE_NS      1000000 /* between two messages of the pair */

enum {
    V_OLD,
    V_OLD_P99,
    V_NEW,
    V_NEW_P99,
    V_QUEUE,
    V_QUEUE_P99,
    V_GAP,
    V_GAP_QUIET,
    V_LATENCY,
    V_LATENCY_QUIET,
    V_SESSIONS,
    V_DESCRIPTORS,
    V_CALLS,
    V_PER_DESCRIPTOR,
    V_COUNT
};

enum { QUIET, KILLING, OVER };

struct resume {
    unsigned sessions; /* of each holder */
    _Atomic unsigned stage;
    uint64_t gaps[OVER], latencies[OVER]; /* of the pair: the worst, in ticks */
    double values[V_COUNT];
    char topic[TOPIC_NAME_SIZE], held[TOPIC_NAME_SIZE], queue[TOPIC_NAME_SIZE];
};

/* ---- those who look on ------------------------------------------------------------------------------------------- */

static int hold(struct bench_seat *seat, void *argument)
{
    const struct resume *resume = argument;
    ipc_connection **connections = bench_alloc(resume->sessions * sizeof(*connections));
    ipc_publisher *publisher;
    char topic[2 * TOPIC_NAME_SIZE];

    for (unsigned i = 0; i < resume->sessions; i++) {
        snprintf(topic, sizeof(topic), "%s.%u.%u", resume->held, seat->index, i);
        if (topic_connect(seat, &connections[i]) < 0 ||
            topic_publisher(seat, &publisher, connections[i], topic, 4096) < 0)
            return -1;
    }
    bench_begin(seat);
    bench_meet(seat);
    bench_end(seat);
    for (unsigned i = 0; i < resume->sessions; i++)
        ipc_connection_close(connections[i]);
    free(connections);
    return 0;
}

struct beat {
    uint64_t number, sent;
};

static int pair_write(struct bench_seat *seat, void *argument)
{
    struct resume *resume = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;
    struct beat beat = {0};
    int result = 0;

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, resume->topic, 1u << 16) < 0)
        return -1;
    result = ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000));
    bench_begin(seat);
    for (bool last = false; !last && result >= 0; beat.number++) {
        const struct timespec pace = {.tv_nsec = PACE_NS};

        nanosleep(&pace, NULL);
        last = atomic_load(&resume->stage) == OVER;
        beat.sent = last ? 0 : bench_ticks();
        result = ipc_publisher_publish(publisher, &beat, sizeof(beat));
    }
    bench_end(seat);
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int pair_read(struct bench_seat *seat, void *argument)
{
    struct resume *resume = argument;
    ipc_connection *connection;
    ipc_subscription *subscription;
    uint64_t before = 0, wanted = 0;
    struct beat beat;

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, resume->topic, 0) < 0)
        return -1;
    bench_begin(seat);
    for (;; wanted++) {
        ssize_t size = ipc_subscription_receive(subscription, &beat, sizeof(beat), NULL, IPC_FOREVER);
        uint64_t now = bench_ticks();
        unsigned stage = atomic_load(&resume->stage);

        if (size != sizeof(beat) || beat.number != wanted)
            return bench_fail(seat, "message %llu of the pair: %s", (unsigned long long)wanted,
                              size < 0 ? strerror((int)-size) : "another one came");
        if (!beat.sent)
            break;
        if (stage < OVER && before) {
            if (now - before > resume->gaps[stage])
                resume->gaps[stage] = now - before;
            if (now - beat.sent > resume->latencies[stage])
                resume->latencies[stage] = now - beat.sent;
        }
        before = now;
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* ---- who kills --------------------------------------------------------------------------------------------------- */

/* Kill the child ipcd of this ipcd-run and see it dead; the time of the kill. */
static int kill_ipcd(struct bench_seat *seat, pid_t run, pid_t *ret_pid, uint64_t *ret_ticks)
{
    pid_t pid = inspect_broker_of(run);
    int fd = pid > 0 && pid != run ? pidfd_open(pid, 0) : -1;
    struct pollfd end = {.fd = fd, .events = POLLIN};

    if (fd < 0)
        return bench_fail(seat, "ipcd is not to be found, or not the child of an ipcd-run");
    *ret_ticks = bench_ticks();
    bool dead = pidfd_send_signal(fd, SIGKILL, NULL, 0) == 0 && poll(&end, 1, 30000) == 1;
    close(fd);
    *ret_pid = pid;
    return dead ? 0 : bench_fail(seat, "ipcd does not die");
}

static int make_request(struct bench_seat *seat, ipc_connection *connection, const char *topic)
{
    ipc_publisher *publisher;

    if (topic_publisher(seat, &publisher, connection, topic, 4096) < 0)
        return -1;
    ipc_publisher_close(publisher);
    return 0;
}

static void keep_quantiles(double *values, struct bench_sample *sample)
{
    values[0] = bench_sample_quantile(sample, 0.5);
    values[1] = bench_sample_quantile(sample, 0.99);
    sample->count = 0;
}

/* Until a session that was there, and one that was not, is answered. */
static int kill_and_ask(struct bench_seat *seat, struct resume *resume, pid_t run, ipc_connection *old)
{
    struct bench_sample olds, news;
    ipc_connection *other;
    uint64_t start = 0;
    pid_t pid;

    bench_sample_init(&olds, KILLS);
    bench_sample_init(&news, KILLS);
    for (unsigned i = 0; i < KILLS; i++) {
        if (kill_ipcd(seat, run, &pid, &start) < 0 || make_request(seat, old, resume->held) < 0)
            return -1;
        bench_sample_add(&olds, bench_ticks() - start);
        if (kill_ipcd(seat, run, &pid, &start) < 0 || topic_connect(seat, &other) < 0)
            return -1;
        bench_sample_add(&news, bench_ticks() - start);
        ipc_connection_close(other);
    }
    keep_quantiles(&resume->values[V_OLD], &olds);
    keep_quantiles(&resume->values[V_NEW], &news);
    return 0;
}

/* What ipcd-run and the next ipcd call until that says that it is ready; -1 if it did not. */
static long count_calls(FILE *file)
{
    char line[512];
    long calls = 0;

    while (fgets(line, sizeof(line), file)) {
        calls += strstr(line, " resumed>") == NULL;
        if (strstr(line, "READY=1") && strstr(line, "send"))
            return calls;
    }
    return -1;
}

/* False when it ended instead. */
static bool wait_traced(pid_t tracer, pid_t traced)
{
    char path[64], line[128];

    snprintf(path, sizeof(path), "/proc/%d/status", (int)traced);
    while (waitpid(tracer, NULL, WNOHANG) == 0) {
        FILE *file = fopen(path, "re");
        int by = 0;
        while (file && !by && fgets(line, sizeof(line), file))
            (void)sscanf(line, "TracerPid: %d", &by);
        if (file)
            fclose(file);
        if (by)
            return true;
        sched_yield();
    }
    return false;
}

/* One restart under strace: what it calls for each descriptor that ipcd holds. */
static int kill_and_trace(struct bench_seat *seat, struct resume *resume, pid_t run, ipc_connection *old)
{
    char path[] = "/tmp/ipc-bench-XXXXXX", number[24];
    struct inspection held;
    uint64_t start = 0;
    pid_t pid;
    int fd = mkostemp(path, O_CLOEXEC);

    if (fd < 0 || inspect(&held, inspect_broker_of(run)) < 0) {
        if (fd >= 0)
            close(fd);
        return bench_fail(seat, "the broker's process is not to be found, or no file can be made");
    }
    snprintf(number, sizeof(number), "%d", (int)run);
    pid_t tracer = fork();
    if (tracer == 0) {
        execlp("strace", "strace", "-f", "-qq", "-o", path, "-p", number, (char *)NULL);
        _exit(127);
    }
    long calls = -1;
    int result = 0;
    if (tracer > 0 && wait_traced(tracer, run)) {
        if (kill_ipcd(seat, run, &pid, &start) < 0 || make_request(seat, old, resume->held) < 0)
            result = -1;
        kill(tracer, SIGINT);
        waitpid(tracer, NULL, 0);
    }
    FILE *file = fdopen(fd, "r");
    if (file && result == 0)
        calls = count_calls(file);
    if (file)
        fclose(file);
    else
        close(fd);
    unlink(path);
    resume->values[V_DESCRIPTORS] = held.descriptors;
    resume->values[V_CALLS] = calls < 0 ? BENCH_NONE : (double)calls;
    resume->values[V_PER_DESCRIPTOR] = resume->values[V_CALLS] / held.descriptors;
    return result;
}

static int fill_queue(struct bench_seat *seat, ipc_connection *connection, const char *queue)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct iovec messages[BATCH];
    ipc_producer *producer;
    struct ipc_error error;
    unsigned char *data = bench_alloc(MESSAGE_SIZE);
    ssize_t result = 0;

    settings.given = IPC_QUEUE_BYTES_MAX;
    settings.bytes_max = UINT64_C(1) << 30;
    if (ipc_queue_create(connection, queue, &settings, 0, &error) < 0 ||
        ipc_producer_open(&producer, connection, queue, NULL, &error) < 0)
        return bench_fail(seat, "%s", error.text);
    for (unsigned i = 0; i < BATCH; i++)
        messages[i] = (struct iovec){data, MESSAGE_SIZE};
    for (unsigned sent = 0; sent < WAITING && result >= 0; sent += (unsigned)result)
        result = ipc_producer_send_batch(producer, messages, WAITING - sent < BATCH ? WAITING - sent : BATCH,
                                         NULL, IPC_FOREVER, NULL);
    if (result >= 0)
        result = ipc_producer_flush(producer, IPC_FOREVER);
    free(data);
    if (result < 0)
        return bench_fail(seat, "filling the queue: %s", strerror((int)-result));
    ipc_producer_close(producer);
    return 0;
}

/* The consumer's window is one message, which it has: the next one can only come from the next ipcd. */
static int kill_and_receive(struct bench_seat *seat, struct resume *resume, pid_t run,
                            ipc_connection *connection)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    unsigned char *data = bench_alloc(MESSAGE_SIZE);
    struct ipc_queue_message message;
    struct bench_sample sample;
    ipc_consumer *consumer;
    struct ipc_error error;
    uint64_t start = 0;
    pid_t pid;

    options.prefetch = 1;
    bench_sample_init(&sample, KILLS);
    if (fill_queue(seat, connection, resume->queue) < 0)
        return -1;
    if (ipc_consumer_open(&consumer, connection, resume->queue, &options, &error) < 0)
        return bench_fail(seat, "%s", error.text);
    ssize_t size = ipc_consumer_receive(consumer, data, MESSAGE_SIZE, &message, IPC_FOREVER);
    for (unsigned i = 0; i < KILLS && size >= 0; i++) {
        if (kill_ipcd(seat, run, &pid, &start) < 0)
            return -1;
        size = ipc_consumer_ack(consumer, message.delivery);
        if (size >= 0)
            size = ipc_consumer_receive(consumer, data, MESSAGE_SIZE, &message, IPC_FOREVER);
        bench_sample_add(&sample, bench_ticks() - start);
    }
    if (size < 0)
        return bench_fail(seat, "receive: %s", strerror((int)-size));
    keep_quantiles(&resume->values[V_QUEUE], &sample);
    ipc_consumer_close(consumer);
    ipc_queue_remove(connection, resume->queue, 0, NULL);
    free(data);
    return 0;
}

static int kill_it(struct bench_seat *seat, void *argument)
{
    struct resume *resume = argument;
    pid_t run = inspect_listener();
    ipc_connection *connection;

    if (topic_connect(seat, &connection) < 0)
        return -1;
    bench_begin(seat); /* everyone is connected */
    uint64_t start = bench_now_ns();
    if (kill_and_ask(seat, resume, run, connection) < 0)
        return -1;
    uint64_t took = bench_now_ns() - start;
    struct timespec as_long = {(time_t)(took / 1000000000), (long)(took % 1000000000)};
    atomic_store(&resume->stage, QUIET);
    nanosleep(&as_long, NULL);
    atomic_store(&resume->stage, OVER);
    if (kill_and_trace(seat, resume, run, connection) < 0 ||
        kill_and_receive(seat, resume, run, connection) < 0)
        return -1;
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int resume_run(double *values)
{
    struct resume *resume = bench_shared(sizeof(*resume));
    struct bench_role roles[3 + HOLDERS] = {{BENCH_ANYWHERE, kill_it, resume},
                                            {BENCH_ANYWHERE, pair_write, resume},
                                            {BENCH_ANYWHERE, pair_read, resume}};

    resume->sessions = bench.quick ? 10 : 100;
    resume->stage = KILLING;
    topic_name(resume->topic, "resume");
    topic_name(resume->held, "held");
    topic_name(resume->queue, "resume");
    for (unsigned i = 0; i < HOLDERS; i++)
        roles[3 + i] = (struct bench_role){BENCH_ANYWHERE, hold, resume};
    if (bench_play(roles, 3 + HOLDERS, NULL) < 0)
        return -1;
    resume->values[V_SESSIONS] = resume->sessions * HOLDERS;
    resume->values[V_GAP] = (double)resume->gaps[KILLING] * bench_tick_ns;
    resume->values[V_GAP_QUIET] = (double)resume->gaps[QUIET] * bench_tick_ns;
    resume->values[V_LATENCY] = (double)resume->latencies[KILLING] * bench_tick_ns;
    resume->values[V_LATENCY_QUIET] = (double)resume->latencies[QUIET] * bench_tick_ns;
    if (isnan(resume->values[V_CALLS])) {
        bench_waive(V_CALLS, "tracing failed: is strace installed, and may this user trace?");
        bench_waive(V_PER_DESCRIPTOR, "tracing failed: is strace installed, and may this user trace?");
    }
    memcpy(values, resume->values, sizeof(resume->values));
    return 0;
}

#define WITHIN(n, v, t)                                                                           \
 {                                                                                                \
  .name = (n), .value = (v), .scale = 1e-6, .unit = "ms", .limit = -1, .limit_fixed = BENCH_NONE, \
  .kind = BENCH_VALUE_MAX, .target = (t)                                                          \
 }

static const struct bench_row rows[] = {
    WITHIN("resume.request.p50", V_OLD, 20),
    WITHIN("resume.request.p99", V_OLD_P99, 100),
    WITHIN("resume.connect.p50", V_NEW, 20),
    WITHIN("resume.connect.p99", V_NEW_P99, 100),
    WITHIN("resume.queue.p50", V_QUEUE, 20),
    WITHIN("resume.queue.p99", V_QUEUE_P99, 100),
    BENCH_AGAINST("resume.pair.worst-gap", V_GAP, 1e-6, "ms", "without kills", V_GAP_QUIET, BENCH_INFO, 0),
    BENCH_AGAINST("resume.pair.worst-latency", V_LATENCY, 1e-6, "ms", "without kills", V_LATENCY_QUIET,
                  BENCH_INFO, 0),
    BENCH_FIGURE("resume.sessions", V_SESSIONS, 1, "sessions"),
    BENCH_FIGURE("resume.descriptors", V_DESCRIPTORS, 1, "fds"),
    BENCH_FIGURE("resume.calls", V_CALLS, 1, "calls"),
    BENCH_FIGURE("resume.calls-per-descriptor", V_PER_DESCRIPTOR, 1, "calls"),
};

const struct bench_case bench_case_resume = {
    "resume", "ipcd killed with 1,000 sessions (quick: 100) and 100,000 waiting messages",
    BENCH_BROKER | BENCH_ONCE, resume_run, BENCH_ROWS(rows)};
