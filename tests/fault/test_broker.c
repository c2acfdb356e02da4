/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd, refused its n-th allocation or system call of each kind, for every n, once and for good, while clients go their
 * whole way; and while it starts. It goes on, or says what was lacking; it leaks nothing; and it serves others afterwards.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/fault/fault.h"
#include "tests/support/fault/series.h"
#include "tests/support/fault/way.h"

/* What there is of it, seen from outside. */
struct usage {
    struct broker_counts counts;
    unsigned descriptors, segments;
    int64_t live;
};

static struct usage usage_of(int counter)
{
    struct usage usage;
    memset(&usage, 0, sizeof(usage));
    usage.counts = broker_counter_ask(counter);
    usage.descriptors = descriptors_of(broker.pid);
    usage.segments = segments_mapped(broker.pid);
    usage.live = atomic_load(&fault->live);
    return usage;
}

/* Sessions end when their sockets do, so a moment later. */
static void settles(const struct usage *then)
{
    int counter = broker_counter_open(&broker);
    for (;;) {
        struct usage now = usage_of(counter);
        if (memcmp(&now, then, sizeof(now)) == 0)
            break;
        series_says("descriptors %u, %u; segments %u, %u; allocations %lld, %lld; sessions %u; pairings %u",
                    now.descriptors, then->descriptors, now.segments, then->segments, (long long)now.live,
                    (long long)then->live, (unsigned)now.counts.sessions, (unsigned)now.counts.pairings);
        sched_yield();
    }
    broker_counter_close(counter);
}

static void begin(struct usage *before, const struct way *way)
{
    broker_start(&broker, NULL);
    EXPECT_EQ(way_walk(way), 0);
    EXPECT_EQ(way_walk(way), 0);
    way_walk_clean(1 << 16);
    int counter = broker_counter_open(&broker);
    do
        *before = usage_of(counter);
    while (before->counts.sessions > 0 || before->counts.segments > 0);
    broker_counter_close(counter);
    settles(before);
}

static void walk_each(const struct way *clean, const enum fault_kind *kinds, const enum fault_kind *without)
{
    struct usage before;
    struct series series;
    begin(&before, clean);
    series_begin(&series, kinds);
    series_without(&series, without);
    while (series_next(&series)) {
        const bool dies = series.kind == FAULT_EPOLL_WAIT_DEAD;
        struct way way = *clean;
        way.lasting = series.lasting || dies;
        series_arm(&series);
        unsigned failed = way_walk(&way);
        series_done(&series, failed);
        EXPECT(failed == 0 || series.kind != FAULT_RECV_FRAME); /* a request is not worked on again */
        if (dies && series.hits > 0) {                          /* it cannot go on, and says so */
            EXPECT_EQ(wait_child(broker.pid), EXIT_FAILURE);
            broker_forget(&broker);
            begin(&before, clean);
            continue;
        }
        settles(&before);
        if (series.hits > 0)
            way_walk_clean(1 << 16);
    }
    series_end(&series);
    broker_stop(&broker);
}

static void test_whole_way(void **state)
{
    (void)state;
    walk_each(&(const struct way){.ring_size = 1 << 16}, NULL, NULL);
}

/* Rings that are made by the worker thread. */
static void test_large_rings(void **state)
{
    static const enum fault_kind kinds[] = {FAULT_ALLOC,     FAULT_MEMFD, FAULT_FALLOCATE, FAULT_FTRUNCATE,
                                            FAULT_EPOLL_CTL, FAULT_FCNTL, FAULT_THREAD,    FAULT_NONE};
    (void)state;
    walk_each(&(const struct way){.ring_size = 1 << 22}, kinds, NULL);
}

static void test_tasks(void **state)
{
    /* The queue would end with ipcd. */
    static const enum fault_kind without[] = {FAULT_EPOLL_WAIT_DEAD, FAULT_NONE};
    (void)state;
    walk_each(&(const struct way){.ring_size = 1 << 16, .tasks = true}, NULL, without);
}

/* ---- starting --------------------------------------------------------------------------------------------- */

static bool answers(const char *address)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection;
    options.timeout_ns = SECONDS(1) / 5;
    if (ipc_connection_open(&connection, address, &options, NULL) < 0)
        return false;
    ipc_connection_close(connection);
    return true;
}

static void test_start(void **state)
{
    /* An ipcd that cannot look at its own lock leaves it. */
    static const enum fault_kind not_while_starting[] = {FAULT_EPOLL_WAIT_DEAD, FAULT_FSTAT, FAULT_NONE};
    struct series series;
    char folder[] = "/tmp/ipc-fault-XXXXXX", address[64], log[64];
    (void)state;
    EXPECT(mkdtemp(folder) != NULL);
    snprintf(address, sizeof(address), "%s/socket", folder);
    snprintf(log, sizeof(log), "%s/log", folder);
    setenv("IPC_ADDRESS", address, 1);
    series_begin(&series, NULL);
    series_without(&series, not_while_starting);
    while (series_next(&series)) {
        int status = 0;
        series_arm(&series);
        pid_t pid = fork_child();
        if (pid == 0) {
            int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            dup2(fd, STDERR_FILENO);
            close(fd);
            execl(getenv("IPCD_BIN"), "ipcd", "--address", address, "--config", "/dev/null", "--log-level",
                  "warning", (char *)NULL);
            _exit(127);
        }
        while (!answers(address) && waitpid(pid, &status, WNOHANG) == 0)
            if (series.lasting && atomic_load(&fault->hits) > 20) /* it is up, but cannot take anybody */
                fault_disarm();
        bool up = status == 0;
        series_done(&series, !up);
        if (up) {
            way_walk_clean(1 << 16);
            kill(pid, SIGTERM);
            EXPECT_EQ(wait_child(pid), 0);
        } else {
            struct stat st;
            EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE);
            EXPECT(stat(log, &st) == 0 && st.st_size > 0); /* it said why */
        }
        unlink(log);
        EXPECT(rmdir(folder) == 0 && mkdir(folder, 0700) == 0); /* nothing is left in it */
    }
    series_end(&series);
    EXPECT_EQ(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_way),
        cmocka_unit_test(test_large_rings),
        cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_start),
    };
    EXPECT(getenv("IPCD_FAULT_BIN") != NULL);
    setenv("IPCD_BIN", getenv("IPCD_FAULT_BIN"), 1);
    fault = fault_share();
    cmocka_set_test_filter(getenv("IPC_FAULT_CASE")); /* one of them, with what it prints: IPC_FAULT_TELL=1 */
    return cmocka_run_group_tests_name("fault_broker", tests, NULL, NULL);
}
