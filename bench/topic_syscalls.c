/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls per message between two processes that are awake: this program starts itself once more under
 * strace and counts the lines of each process between two marks.
 */
#include "bench/syscalls.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/topic.h"

#define MARK_BEGIN "bench-begin"
#define MARK_END   "bench-end"
#define TRACE_S    60
#define PROCESSES  16u
#define WARM_UP    10u /* the part of the messages that is not counted */

enum { V_TRIP, V_STREAM };

/* ---- traced ---------------------------------------------------------------------------------------------- */

struct traced {
    uint64_t count;
    bool stream;
    char there[TOPIC_NAME_SIZE], back[TOPIC_NAME_SIZE];
};

static int traced_send(struct bench_seat *seat, void *argument)
{
    const struct traced *traced = argument;
    ipc_connection *connection;
    ipc_publisher *publisher;
    ipc_subscription *subscription = NULL;
    uint64_t message[8] = {0};
    ssize_t result = 0;

    if (topic_connect(seat, &connection) < 0 ||
        topic_publisher(seat, &publisher, connection, traced->there, 1u << 18) < 0 ||
        (!traced->stream &&
         topic_subscription(seat, &subscription, connection, traced->back, IPC_FOREVER) < 0))
        return -1;
    result = ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000));
    if (result >= 0 && subscription)
        result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    bench_meet(seat);
    for (uint64_t n = 0; n < traced->count && result >= 0; n++) {
        if (n == traced->count / WARM_UP) /* what the broker had to say has been read by now */
            prctl(PR_SET_NAME, MARK_BEGIN);
        message[0] = n;
        result = ipc_publisher_publish(publisher, message, sizeof(message));
        if (result >= 0 && subscription)
            result = ipc_subscription_receive(subscription, message, sizeof(message), NULL, IPC_FOREVER);
        if (message[0] != n)
            break;
    }
    prctl(PR_SET_NAME, MARK_END);
    if (result < 0)
        return bench_fail(seat, "traced: %s", strerror((int)-result));
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int traced_receive(struct bench_seat *seat, void *argument)
{
    const struct traced *traced = argument;
    ipc_connection *connection;
    ipc_publisher *publisher = NULL;
    ipc_subscription *subscription;
    uint64_t message[8];
    ssize_t result = 0;

    if (topic_connect(seat, &connection) < 0 ||
        topic_subscription(seat, &subscription, connection, traced->there, IPC_FOREVER) < 0 ||
        (!traced->stream && topic_publisher(seat, &publisher, connection, traced->back, 1u << 18) < 0))
        return -1;
    result = ipc_subscription_wait_writers(subscription, 1, INT64_C(30000000000));
    if (result >= 0 && publisher)
        result = ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000));
    bench_meet(seat);
    for (uint64_t n = 0; n < traced->count && result >= 0; n++) {
        if (n == traced->count / WARM_UP) /* what the broker had to say has been read by now */
            prctl(PR_SET_NAME, MARK_BEGIN);
        result = ipc_subscription_receive(subscription, message, sizeof(message), NULL, IPC_FOREVER);
        if (result >= 0 && message[0] != n)
            break;
        if (result >= 0 && publisher)
            result = ipc_publisher_publish(publisher, message, sizeof(message));
    }
    prctl(PR_SET_NAME, MARK_END);
    if (result < 0)
        return bench_fail(seat, "traced: %s", strerror((int)-result));
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* Odd counts: round trips; even ones: a stream. */
int bench_traced_run(uint64_t count)
{
    struct traced traced = {.count = count, .stream = count % 2 == 0};
    struct bench_role roles[] = {{0, traced_send, &traced}, {1, traced_receive, &traced}};

    snprintf(traced.there, sizeof(traced.there), "bench.traced.%d.there", (int)getpid());
    snprintf(traced.back, sizeof(traced.back), "bench.traced.%d.back", (int)getpid());
    return bench_play(roles, 2, NULL);
}

/* ---- tracing --------------------------------------------------------------------------------------------- */

/* Lines between the marks, over all processes; -1 if no process left both marks. */
static long count_lines(FILE *file)
{
    struct {
        long pid, calls;
        bool open, closed;
    } seen[PROCESSES] = {0};
    char line[512];
    unsigned used = 0;
    long sum = 0, closed = 0;

    while (fgets(line, sizeof(line), file)) {
        char *rest;
        long pid = strtol(line, &rest, 10);
        unsigned i = 0;
        while (i < used && seen[i].pid != pid)
            i++;
        if (i == PROCESSES)
            continue;
        if (i == used)
            seen[used++].pid = pid;
        if (strstr(rest, MARK_BEGIN)) {
            seen[i].open = true;
        } else if (strstr(rest, MARK_END)) {
            seen[i].open = false;
            seen[i].closed = true;
        } else if (seen[i].open && !strstr(rest, " resumed>")) {
            seen[i].calls++;
        }
    }
    for (unsigned i = 0; i < used; i++) {
        closed += seen[i].closed;
        sum += seen[i].calls;
    }
    return closed == 2 ? sum : -1;
}

static int trace(uint64_t count, double *ret)
{
    char path[] = "/tmp/ipc-bench-XXXXXX", number[24];
    int fd = mkostemp(path, O_CLOEXEC);

    if (fd < 0)
        return -1;
    snprintf(number, sizeof(number), "%llu", (unsigned long long)count);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        char self[4096];
        ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
        self[length > 0 ? length : 0] = 0;
        alarm(TRACE_S);
        execlp("strace", "strace", "-f", "-qq", "-o", path, "--", self, "--traced", number, (char *)NULL);
        _exit(127);
    }
    int status = -1;
    if (pid > 0)
        waitpid(pid, &status, 0);
    FILE *file = fdopen(fd, "r");
    long lines = file && status == 0 ? count_lines(file) : -1;
    if (file)
        fclose(file);
    else
        close(fd);
    unlink(path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        bench_waive(V_TRIP, "strace is not installed");
        bench_waive(V_STREAM, "strace is not installed");
        return 0;
    }
    if (lines < 0) {
        bench_waive(V_TRIP, "tracing failed: may this user trace?");
        bench_waive(V_STREAM, "tracing failed: may this user trace?");
        return 0;
    }
    *ret = (double)lines / (double)(count - count / WARM_UP);
    return 0;
}

static int syscalls_run(double *values)
{
    uint64_t count = bench_count(200000);

    return trace(count + 1, &values[V_TRIP]) < 0 || trace(count, &values[V_STREAM]) < 0 ? -1 : 0;
}

static const struct bench_row rows[] = {
    {.name = "syscalls.per-round-trip.spinning",
     .value = V_TRIP,
     .scale = 1,
     .unit = "calls",
     .limit = -1,
     .limit_fixed = BENCH_NONE,
     .kind = BENCH_VALUE_MAX,
     .target = 0},
    {.name = "syscalls.per-message.streaming",
     .value = V_STREAM,
     .scale = 1,
     .unit = "calls",
     .limit = -1,
     .limit_fixed = BENCH_NONE,
     .kind = BENCH_VALUE_MAX,
     .target = 0.001},
};

const struct bench_case bench_case_syscalls = {"syscalls",
                                               "system calls per message, both sides awake (strace)",
                                               BENCH_BROKER | BENCH_ONCE, syscalls_run, BENCH_ROWS(rows)};
