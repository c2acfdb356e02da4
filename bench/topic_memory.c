/* SPDX-License-Identifier: Apache-2.0
 *
 * What the broker holds when nobody is there, and for each session that does nothing.
 */
#include <string.h>

#include "bench/inspect.h"
#include "bench/topic.h"

#define SESSIONS 500u

enum { V_IDLE, V_IDLE_PRIVATE, V_SESSION, V_SESSION_FDS };

static int hold_sessions(struct bench_seat *seat, void *argument)
{
    ipc_connection *connections[SESSIONS] = {0};
    struct inspection before, after;
    pid_t broker = inspect_broker();

    (void)argument;
    if (inspect(&before, broker) < 0)
        return bench_fail(seat, "the broker's process is not to be found");
    for (unsigned i = 0; i < SESSIONS; i++)
        if (topic_connect(seat, &connections[i]) < 0)
            return -1;
    if (inspect(&after, broker) < 0)
        return bench_fail(seat, "the broker's process is gone");
    for (unsigned i = 0; i < SESSIONS; i++)
        ipc_connection_close(connections[i]);
    seat->values[0] = (double)before.rss_bytes;
    seat->values[1] = (double)before.private_bytes;
    /* Its own memory, and the memfds that it made, whoever has them mapped. */
    seat->values[2] = ((double)(after.private_bytes + after.memfd_bytes) -
                       (double)(before.private_bytes + before.memfd_bytes)) /
                      SESSIONS;
    seat->values[3] = (double)(after.descriptors - before.descriptors) / SESSIONS;
    return 0;
}

static int memory_run(double *values)
{
    struct bench_role role = {BENCH_ANYWHERE, hold_sessions, NULL};
    struct bench_seat seat;

    if (bench_play(&role, 1, &seat) < 0)
        return -1;
    memcpy(values, seat.values, 4 * sizeof(*values));
    return 0;
}

static const struct bench_row rows[] = {
    BENCH_AGAINST_FIXED("memory.broker.idle", V_IDLE, 1.0 / (1 << 20), "MiB", "budget", 8, BENCH_RATIO_MAX,
                        1),
    BENCH_FIGURE("memory.broker.idle.private", V_IDLE_PRIVATE, 1.0 / (1 << 20), "MiB"),
    BENCH_AGAINST_FIXED("memory.session", V_SESSION, 1.0 / 1024, "KiB", "budget", 64, BENCH_RATIO_MAX, 1),
    BENCH_FIGURE("memory.session.descriptors", V_SESSION_FDS, 1, "fds"),
};

const struct bench_case bench_case_memory = {"memory", "the broker's memory: idle, and per session",
                                             BENCH_BROKER | BENCH_ONCE, memory_run, BENCH_ROWS(rows)};
