/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-run, refused its n-th allocation or system call while it starts, keeps descriptors, sees its ipcd killed and starts
 * the next one. Either clients go on, or their sessions end and they
 * are told; nothing hangs, and no process or file is left.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/fault/fault.h"
#include "tests/support/fault/series.h"
#include "tests/support/fault/way.h"
#include "tests/support/guarded.h"

#define RING_SIZE 65536u

/* No COMMAND, so it ends by SIGTERM alone, or because it cannot go on. */
struct stage {
    char folder[32], address[64], log[64];
    pid_t run;
    int status;
    bool ended;
};

static void stage_start(struct stage *stage, const char *run, const char *ipcd)
{
    stage->ended = false;
    stage->run = fork_child();
    if (stage->run > 0)
        return;
    int fd = open(stage->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(fd, STDERR_FILENO);
    close(fd);
    execl(run, "ipcd-run", "--address", stage->address, "--config", "/dev/null", "--ipcd", ipcd,
          "--log-level", "warning", (char *)NULL);
    _exit(127);
}

static bool stage_ended(struct stage *stage)
{
    if (!stage->ended)
        stage->ended = waitpid(stage->run, &stage->status, WNOHANG) == stage->run;
    return stage->ended;
}

/* Connect as soon as that works; NULL: it ended instead. A fault that lasts ends when it was seen often enough. */
static ipc_connection *stage_connect(struct stage *stage, const struct series *series)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection = NULL;
    options.timeout_ns = SECONDS(5);
    while (ipc_connection_open(&connection, stage->address, &options, NULL) < 0 && !stage_ended(stage)) {
        if (series->lasting && atomic_load(&fault->hits) > 3)
            fault_disarm();
        sched_yield();
    }
    return connection;
}

/* The child of `stage->run` that is ipcd; 0: there is none now. */
static pid_t stage_ipcd(const struct stage *stage)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)stage->run, (int)stage->run);
    FILE *children = fopen(path, "r");
    if (children && fscanf(children, "%d", &pid) != 1)
        pid = 0;
    if (children)
        fclose(children);
    return pid;
}

static void stage_end(struct stage *stage)
{
    struct stat st;
    if (!stage_ended(stage)) {
        kill(stage->run, SIGTERM);
        EXPECT_EQ(wait_child(stage->run), 0);
    } else { /* it gave up, and said why */
        EXPECT(WIFEXITED(stage->status) &&
               (WEXITSTATUS(stage->status) == 124 || WEXITSTATUS(stage->status) == 125));
        EXPECT(stat(stage->log, &st) == 0 && st.st_size > 0);
    }
    /* What was its ipcd's is ours now (PR_SET_CHILD_SUBREAPER): it must end as well. */
    while (waitpid(-1, NULL, 0) > 0)
        continue;
    unlink(stage->log);
    EXPECT(rmdir(stage->folder) == 0 && mkdir(stage->folder, 0700) == 0);
}

/* Messages of one session before and after its ipcd is killed. Returns the number of steps that failed. */
static unsigned live(struct stage *stage, const struct series *series)
{
    ipc_connection *connection = stage_connect(stage, series);
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    struct ipc_error error = {0};
    uint64_t at = 0;
    unsigned failed = 0;
    if (!connection)
        return 1;
    publisher = publisher_new(connection, "run", RING_SIZE, 0);
    subscription =
        subscription_new(connection, "run", IPC_START_OLDEST, IPC_SLOW_BLOCK, IPC_SUBSCRIPTION_SELF);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (unsigned i = 0; i < 2; i++, at += 8) {
        publish_numbers(publisher, at, at + 8, 64);
        receive_numbers(subscription, at, at + 8, 64);
        pid_t ipcd = stage_ipcd(stage);
        if (i == 0 && ipcd > 0)
            kill(ipcd, SIGKILL);
    }
    /* The next one answers, or the session is over and says so. */
    ipc_publisher *more = NULL;
    int result = -ETIMEDOUT;
    while (result == -ETIMEDOUT) {
        if (series->lasting && atomic_load(&fault->hits) > 3)
            fault_disarm();
        result = ipc_publisher_open(&more, connection, "run.more", NULL, &error);
    }
    if (result < 0) {
        EXPECT(result == -EPIPE && error.text[0]);
        failed++;
    }
    ipc_connection_close(connection);
    return failed;
}

static void each(const char *run, const char *ipcd, const enum fault_kind *only)
{
    struct stage stage = {.folder = "/tmp/ipc-fault-XXXXXX"};
    struct series series;
    EXPECT(mkdtemp(stage.folder) != NULL);
    snprintf(stage.address, sizeof(stage.address), "%s/socket", stage.folder);
    snprintf(stage.log, sizeof(stage.log), "%s/log", stage.folder);
    setenv("IPC_ADDRESS", stage.address, 1);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    series_begin(&series, only);
    series.sparse = series.share > 1; /* each run starts three processes */
    while (series_next(&series)) {
        series_arm(&series);
        stage_start(&stage, run, ipcd);
        unsigned failed = live(&stage, &series);
        series_done(&series, failed);
        if (series.hits > 0 && !stage_ended(&stage)) {
            ipc_connection *connection = stage_connect(&stage, &series);
            if (connection) {
                ipc_connection_close(connection);
                way_walk_clean(RING_SIZE);
            }
        }
        stage_end(&stage);
    }
    series_end(&series);
    EXPECT_EQ(rmdir(stage.folder), 0);
}

static void test_ipcd_run(void **state)
{
    /* What it calls; but fstat(), as for ipcd alone. */
    static const enum fault_kind only[] = {
        FAULT_ALLOC,     FAULT_MEMFD,   FAULT_OPEN,          FAULT_FCNTL,    FAULT_DUP2,
        FAULT_SOCKET,    FAULT_BIND,    FAULT_LISTEN,        FAULT_CONNECT,  FAULT_SETSOCKOPT,
        FAULT_POLL,      FAULT_RECVMSG, FAULT_RECVMSG_EINTR, FAULT_SIGNALFD, FAULT_PIDFD,
        FAULT_GETRANDOM, FAULT_VFORK,   FAULT_PIPE,          FAULT_NONE};
    (void)state;
    each(getenv("IPCD_RUN_FAULT_BIN"), getenv("IPCD_BIN"), only);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ipcd_run),
    };
    EXPECT(getenv("IPCD_RUN_FAULT_BIN") && getenv("IPCD_BIN"));
    fault = fault_share();
    cmocka_set_test_filter(getenv("IPC_FAULT_CASE"));
    return cmocka_run_group_tests_name("fault_run", tests, NULL, NULL);
}
