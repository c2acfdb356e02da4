/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues and calls of the product beside those of Redis, NATS and ZeroMQ. Their servers are started here, by a Unix
 * socket or the loopback, and keep nothing on disk.
 */
#include "bench/peer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/inspect.h"

#define OUTSTANDING 64u

/* ---- servers --------------------------------------------------------------------------------------------- */

static _Noreturn void be_server(const struct peer_server *server, const char *const *arguments, pid_t parent)
{
    char path[4096];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    const char *usual = getenv("PATH");
    snprintf(path, sizeof(path), "%s:/usr/sbin", usual ? usual : "/usr/bin");
    setenv("PATH", path, 1);
    if (chdir(server->folder) == 0 && freopen("log", "we", stdout) && dup2(STDOUT_FILENO, STDERR_FILENO) >= 0)
        execvp(arguments[0], (char **)arguments);
    _exit(127);
}

int peer_start(struct peer_server *server, const char *const *arguments)
{
    pid_t parent = getpid();

    fflush(NULL);
    server->pid = fork();
    if (server->pid == 0)
        be_server(server, arguments, parent);
    if (server->pid < 0)
        fprintf(stderr, "ipc-bench: fork: %s\n", strerror(errno));
    return server->pid < 0 ? -1 : 0;
}

void peer_stop(struct peer_server *server)
{
    char command[sizeof(server->folder) + 16];

    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    snprintf(command, sizeof(command), "rm -r '%s'", server->folder);
    if (system(command) != 0)
        fprintf(stderr, "ipc-bench: %s is left\n", server->folder);
}

/* ---- queues ---------------------------------------------------------------------------------------------- */

void peer_queue_pace(const struct peer_queue *queue, uint64_t sent)
{
    while (sent - atomic_load_explicit(queue->taken, memory_order_relaxed) > PEER_AHEAD)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

int peer_queue_play(struct peer_queue *queue, peer_role produce, peer_role consume, double *ret_rate,
                    double *ret_cpu)
{
    struct bench_role roles[BENCH_ROLES_MAX] = {{BENCH_ANYWHERE, produce, queue}};
    struct bench_seat seats[BENCH_ROLES_MAX];
    unsigned count = 1 + queue->consumers;
    double before = inspect_cpu_s(queue->server->pid);

    atomic_store(queue->taken, 0);
    for (unsigned i = 1; i < count; i++)
        roles[i] = (struct bench_role){BENCH_ANYWHERE, consume, queue};
    if (bench_play(roles, count, seats) < 0)
        return -1;
    double cpu = bench_cpu_s(seats, count) + inspect_cpu_s(queue->server->pid) - before;
    *ret_rate = (double)queue->count / bench_elapsed_s(seats, count);
    *ret_cpu = cpu * 1e6 / (double)queue->count;
    return 0;
}

enum {
    V_RATE, /* of 64 B, of 1 KiB: two values each */
    V_CPU = V_RATE + 2,
    V_REDIS_RATE = V_CPU + 2,
    V_REDIS_CPU = V_REDIS_RATE + 2,
    V_NATS_RATE = V_REDIS_CPU + 2,
    V_NATS_CPU = V_NATS_RATE + 2,
    V_CALL = V_NATS_CPU + 2,
    V_CALL_RATE,
    V_REDIS_CALL,
    V_ZMQ_CALL,
    V_ZMQ_CALL_RATE,
};

static int peers_run(double *values)
{
    double ignored;

    if (queue_rate(64, 2, bench_count(2000000), &values[V_RATE], &values[V_CPU]) < 0 ||
        queue_rate(1024, 2, bench_count(500000), &values[V_RATE + 1], &values[V_CPU + 1]) < 0 ||
        call_sleeping(1, bench_count(5000), &values[V_CALL], &ignored) < 0 ||
        call_sleeping(OUTSTANDING, bench_count(200000), &ignored, &values[V_CALL_RATE]) < 0 ||
        redis_measure(&values[V_REDIS_RATE], &values[V_REDIS_CPU], &values[V_REDIS_CALL]) < 0 ||
        nats_measure(&values[V_NATS_RATE], &values[V_NATS_CPU]) < 0 ||
        zmq_call(1, bench_count(5000), &values[V_ZMQ_CALL], &ignored) < 0)
        return -1;
    return zmq_call(OUTSTANDING, bench_count(100000), &ignored, &values[V_ZMQ_CALL_RATE]);
}

static const struct bench_row rows[] = {
    BENCH_AGAINST("peers.redis.queue.64B", V_RATE, 1e-6, "M/s", "Redis", V_REDIS_RATE, BENCH_RATIO_MIN, 10),
    BENCH_AGAINST("peers.redis.queue.1KiB", V_RATE + 1, 1e-6, "M/s", "Redis", V_REDIS_RATE + 1,
                  BENCH_RATIO_MIN, 10),
    BENCH_AGAINST("peers.redis.queue.64B.cpu", V_CPU, 1, "s/M", "Redis", V_REDIS_CPU, BENCH_INFO, 0),
    BENCH_AGAINST("peers.redis.queue.1KiB.cpu", V_CPU + 1, 1, "s/M", "Redis", V_REDIS_CPU + 1, BENCH_INFO, 0),
    BENCH_AGAINST("peers.nats.queue.64B", V_RATE, 1e-6, "M/s", "NATS without acks", V_NATS_RATE,
                  BENCH_RATIO_MIN, 2),
    BENCH_AGAINST("peers.nats.queue.1KiB", V_RATE + 1, 1e-6, "M/s", "NATS without acks", V_NATS_RATE + 1,
                  BENCH_INFO, 0),
    BENCH_AGAINST("peers.nats.queue.64B.cpu", V_CPU, 1, "s/M", "NATS without acks", V_NATS_CPU, BENCH_INFO,
                  0),
    BENCH_AGAINST("peers.redis.call.sleeping.p50", V_CALL, 1e-3, "us", "Redis, two lists", V_REDIS_CALL,
                  BENCH_INFO, 0),
    BENCH_AGAINST("peers.zeromq.call.sleeping.p50", V_CALL, 1e-3, "us", "ZeroMQ ipc REQ/REP", V_ZMQ_CALL,
                  BENCH_INFO, 0),
    BENCH_AGAINST("peers.zeromq.call.64-outstanding", V_CALL_RATE, 1e-3, "k/s", "ZeroMQ ipc DEALER/REP",
                  V_ZMQ_CALL_RATE, BENCH_INFO, 0),
};

const struct bench_case bench_case_peers_queue = {
    "peers-queue", "queues and calls beside Redis, NATS and ZeroMQ", BENCH_PROBED | BENCH_BROKER | BENCH_PEER,
    peers_run, BENCH_ROWS(rows)};
