/* SPDX-License-Identifier: Apache-2.0
 *
 * A pair of one user: alone, beside processes of another user that only compute, and beside as many that flood the broker with
 * connects, declarations, bytes and messages. Those have the lowest priority, so that it is the broker that is measured, and not
 * who has the processors; what that costs all the same, those that compute show.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/topic.h"

#define FLOODS    4
#define FLOOD_UID 61001u /* nobody is that */

enum { V_CALM, V_CALM_P99, V_BESIDE, V_BESIDE_P99, V_FLOODED, V_FLOODED_P99, V_RATE };

static const char config[] = "[broker]\nsocket-mode = 666\n"
                             "[limits]\nsessions = 100\ntopics = 500\nconnects-per-second = 500\n"
                             "total-segment-bytes = 64M\n"
                             "[rule everybody]\nwho = anyone\nallow = publish subscribe create\n";

/* A broker of its own, which lets other users in. Returns ipcd-run's pid, or -1. */
static pid_t start_broker(const char *folder)
{
    char program[32], path[96], address[96];
    FILE *file;
    pid_t pid;

    (void)snprintf(program, sizeof(program), "/proc/%d/exe", (int)getppid()); /* which runs this program */
    (void)snprintf(path, sizeof(path), "%s/ipcd.conf", folder);
    (void)snprintf(address, sizeof(address), "%s/socket", folder);
    file = fopen(path, "we");
    if (!file || fputs(config, file) < 0 || fclose(file) != 0 || chmod(folder, 0711) < 0)
        return -1;
    setenv("IPC_ADDRESS", address, 1);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        execl(program, "ipcd-run", "--address", address, "--config", path, "--log-level=error", NULL);
        _exit(127);
    }
    for (unsigned i = 0; i < 1000 && pid > 0; i++) {
        ipc_connection *connection;

        if (ipc_connection_open(&connection, NULL, NULL, NULL) == 0) {
            ipc_connection_close(connection);
            return pid;
        }
        (void)nanosleep(&(const struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return -1;
}

static void compute(int kind, _Atomic uint64_t *calls)
{
    (void)kind;
    for (;;)
        (void)atomic_load_explicit(calls, memory_order_relaxed);
}

/* Whatever becomes of it. */
static void flood(int kind, _Atomic uint64_t *calls)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    ipc_connection *connection = NULL;
    ipc_subscription *subscription = NULL;
    ipc_publisher *publisher = NULL;

    options.ring_size = kind == 2 ? 1u << 20 : 4096;
    for (uint64_t i = 0;; i++) {
        char topic[48];

        atomic_fetch_add_explicit(calls, 1, memory_order_relaxed);
        (void)snprintf(topic, sizeof(topic), "flood.%d.%u", kind, (unsigned)i);
        if (kind == 0)
            connection = ipc_connection_close(connection);
        if (!connection && ipc_connection_open(&connection, NULL, NULL, NULL) < 0)
            continue;
        if (kind == 1 && i % 2)
            (void)ipc_subscription_open(&subscription, connection, ">", NULL, NULL);
        else if (kind == 1 || kind == 2 || (kind == 3 && !publisher))
            (void)ipc_publisher_open(&publisher, connection, topic, &options, NULL);
        else if (kind == 3)
            (void)ipc_publisher_publish(publisher, topic, sizeof(topic));
    }
}

static pid_t start_least(void (*work)(int kind, _Atomic uint64_t *calls), int kind, _Atomic uint64_t *calls)
{
    struct sched_param least;
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    if (setresgid(FLOOD_UID, FLOOD_UID, FLOOD_UID) < 0 || setresuid(FLOOD_UID, FLOOD_UID, FLOOD_UID) < 0)
        _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    least.sched_priority = sched_get_priority_min(sched_getscheduler(0));
    (void)sched_setparam(0, &least);
    (void)setpriority(PRIO_PROCESS, 0, 19);
    work(kind, calls);
    _exit(1);
}

static void end(pid_t pid, int with)
{
    if (pid > 0 && kill(pid, with) == 0)
        (void)waitpid(pid, NULL, 0);
}

static int measure(double *values, unsigned p50)
{
    struct topic_pair pair = {.size = 64, .count = bench_count(20000), .max_ns = UINT64_C(5000000000)};
    double cpu_ns;

    return topic_pair_run(&pair, &values[p50], &values[p50 + 1], &cpu_ns);
}

static int measure_beside(void (*work)(int kind, _Atomic uint64_t *calls), double *values, unsigned p50,
                          double *ret_rate)
{
    _Atomic uint64_t *calls = bench_shared(sizeof(*calls));
    pid_t others[FLOODS];
    uint64_t start = bench_now_ns();
    int result;

    for (int kind = 0; kind < FLOODS; kind++)
        others[kind] = start_least(work, kind, calls);
    result = measure(values, p50);
    *ret_rate = (double)atomic_load(calls) * 1e9 / (double)(bench_now_ns() - start);
    for (int kind = 0; kind < FLOODS; kind++)
        end(others[kind], SIGKILL);
    return result;
}

static int measure_all(double *values)
{
    double none;

    if (measure(values, V_CALM) < 0 || measure_beside(compute, values, V_BESIDE, &none) < 0)
        return -1;
    return measure_beside(flood, values, V_FLOODED, &values[V_RATE]);
}

static int flood_run(double *values)
{
    char folder[] = "/tmp/ipc-bench.XXXXXX", path[64], *address = strdup(getenv("IPC_ADDRESS"));
    pid_t run;
    int result = -1;

    if (geteuid() != 0) {
        bench_waive(V_FLOODED, "needs another user: only root has one");
        bench_waive(V_FLOODED_P99, "needs another user: only root has one");
        bench_waive(V_BESIDE_P99, "needs another user: only root has one");
        free(address);
        return 0;
    }
    if (address && mkdtemp(folder)) {
        run = start_broker(folder);
        if (run > 0)
            result = measure_all(values);
        end(run, SIGTERM);
        setenv("IPC_ADDRESS", address, 1);
        (void)snprintf(path, sizeof(path), "%s/ipcd.conf", folder);
        (void)unlink(path);
        (void)rmdir(folder);
    }
    free(address);
    return result;
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("flood.pair.p99", V_FLOODED_P99, 1e-3, "us", "without the flood", V_CALM_P99,
                  BENCH_RATIO_MAX, 2),
    BENCH_AGAINST("flood.pair.p99 (computing)", V_FLOODED_P99, 1e-3, "us", "beside computing", V_BESIDE_P99,
                  BENCH_INFO, 0),
    BENCH_AGAINST("flood.computing.p99", V_BESIDE_P99, 1e-3, "us", "alone", V_CALM_P99, BENCH_INFO, 0),
    BENCH_AGAINST("flood.pair.p50", V_FLOODED, 1e-3, "us", "without the flood", V_CALM, BENCH_INFO, 0),
    BENCH_FIGURE("flood.calls", V_RATE, 1, "calls/s"),
};

const struct bench_case bench_case_flood = {"flood",
                                            "a pair of one user while another one floods the broker (root)",
                                            BENCH_BROKER, flood_run, BENCH_ROWS(rows)};
