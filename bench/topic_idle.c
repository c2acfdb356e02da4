/* SPDX-License-Identifier: Apache-2.0
 *
 * Who waits uses no CPU time: a subscriber with nothing to receive, a publisher without readers that want
 * something, and the broker, looked at over two seconds.
 */
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench/inspect.h"
#include "bench/topic.h"

enum { V_TICKS, V_CPU, V_SWITCHES, V_BROKER_TICKS };

struct idle {
    int64_t wait_ns;
    char topic[TOPIC_NAME_SIZE];
};

static double cpu_us(const struct rusage *usage)
{
    return (double)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1e6 +
           (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
}

static int idle_wait(struct bench_seat *seat, void *argument)
{
    const struct idle *idle = argument;
    ipc_connection *connection;
    ipc_subscription *subscription;
    struct inspection before, after;
    struct rusage usage_before, usage_after;
    unsigned char message[64];

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, idle->topic, IPC_SPIN_ADAPTIVE) < 0)
        return -1;
    int result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    if (result < 0)
        return bench_fail(seat, "waiting for the publisher: %s", strerror(-result));
    bench_begin(seat);
    /* A few messages first, so that it has a reason to poll. */
    for (unsigned n = 0; n < 1000; n++)
        if (ipc_subscription_receive(subscription, message, sizeof(message), NULL, IPC_FOREVER) < 0)
            return bench_fail(seat, "receive failed");
    inspect(&before, getpid());
    getrusage(RUSAGE_SELF, &usage_before);
    ssize_t size = ipc_subscription_receive(subscription, message, sizeof(message), NULL, idle->wait_ns);
    getrusage(RUSAGE_SELF, &usage_after);
    inspect(&after, getpid());
    bench_end(seat);
    if (size != -ETIMEDOUT)
        return bench_fail(seat, "idle: %s", size < 0 ? strerror((int)-size) : "a message");
    /* Reading /proc may complete a tick: take the lesser of the two accounts. */
    seat->values[1] = cpu_us(&usage_after) - cpu_us(&usage_before);
    seat->values[0] = seat->values[1] < 10000 ? 0 : (double)(after.cpu_ticks - before.cpu_ticks);
    seat->values[2] = (double)(usage_after.ru_nvcsw - usage_before.ru_nvcsw);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int idle_publish(struct bench_seat *seat, void *argument)
{
    const struct idle *idle = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;
    struct inspection before, after;
    unsigned char message[64] = {0};

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, idle->topic, 1u << 18) < 0)
        return -1;
    int result = ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000));
    bench_begin(seat);
    for (unsigned n = 0; n < 1000 && result >= 0; n++)
        result = ipc_publisher_publish(publisher, message, sizeof(message));
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    pid_t broker = inspect_broker();
    bool seen = inspect(&before, broker) == 0;
    bench_meet(seat);
    seat->values[0] = seen && inspect(&after, broker) == 0 ? (double)(after.cpu_ticks - before.cpu_ticks)
                                                           : BENCH_NONE;
    bench_end(seat);
    ipc_connection_close(connection);
    return 0;
}

static int idle_run(double *values)
{
    struct idle idle = {.wait_ns = bench.quick ? 500000000 : 2000000000};
    struct bench_role roles[] = {{1, idle_wait, &idle}, {0, idle_publish, &idle}};
    struct bench_seat seats[2];

    topic_name(idle.topic, "idle");
    if (bench_play(roles, 2, seats) < 0)
        return -1;
    values[V_TICKS] = seats[0].values[0];
    values[V_CPU] = seats[0].values[1];
    values[V_SWITCHES] = seats[0].values[2];
    values[V_BROKER_TICKS] = seats[1].values[0];
    return 0;
}

static const struct bench_row rows[] = {
    BENCH_AT_MOST("idle.subscriber.ticks", V_TICKS, "ticks", 0),
    BENCH_FIGURE("idle.subscriber.cpu", V_CPU, 1, "us"),
    BENCH_FIGURE("idle.subscriber.sleeps", V_SWITCHES, 1, "times"),
    BENCH_AT_MOST("idle.broker.ticks", V_BROKER_TICKS, "ticks", 0),
};

const struct bench_case bench_case_idle = {"idle", "CPU time of those who wait (2 s)",
                                           BENCH_BROKER | BENCH_ONCE, idle_run, BENCH_ROWS(rows)};
