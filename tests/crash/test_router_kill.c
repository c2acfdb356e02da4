/* SPDX-License-Identifier: Apache-2.0
 *
 * The router is stepped through what it does for a few messages, and ipcd is killed at each of its instructions: taking them
 * out of the producer's lane, storing and confirming them, delivering, taking back what was refused, and taking
 * acknowledgements. With the next ipcd the client gets each message as often, in the order and with the attempt that it
 * would get without that.
 *
 * IPC_KILL_FULL=1: in small steps, from another instruction in each run (`./dev kill`); else some fifty of them.
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
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#define STEPS_FIRST 211u /* how far apart the instructions are */
#define STEPS_FULL  7u

static struct guarded guarded;

/* ---- the client ------------------------------------------------------------------------------------------------ */

struct stage {
    int go, done; /* a round; the second does not block */
};

static void round_of(ipc_producer *producer, ipc_consumer *consumer, uint64_t at)
{
    struct ipc_queue_message message;
    struct ipc_nack nack = IPC_NACK_INIT;

    send_numbers(producer, at, at + 3, 100);
    EXPECT_EQ(receive_number(consumer, &message), at);
    EXPECT_EQ(message.attempt, 1);
    EXPECT_EQ(ipc_consumer_nack(consumer, message.delivery, message.delivery, &nack), 0);
    /* It comes back to its place, but the next may have been on their way already. */
    bool again = false;
    for (uint64_t next = at + 1; next < at + 3 || !again;) {
        uint64_t number = receive_number(consumer, &message);
        if (number == at) {
            EXPECT(!again);
            again = true;
        } else {
            EXPECT_EQ(number, next++);
        }
        EXPECT_EQ(message.attempt, number == at ? 2 : 1);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    receive_nothing(consumer);
}

static void be_client(void *argument)
{
    const struct stage *stage = argument;
    ipc_connection *connection = connection_new();
    uint64_t at = 0;

    queue_new(connection, "stepped", NULL);
    ipc_producer *producer = producer_new(connection, "stepped");
    ipc_consumer *consumer = consumer_new(connection, "stepped", 8);
    for (;; at += 3) {
        round_of(producer, consumer, at);
        gate_open(stage->done);
        gate_wait(stage->go);
    }
}

/* ---- stepping -------------------------------------------------------------------------------------------------- */

static pid_t router_of(pid_t ipcd)
{
    char path[64], name[32];
    pid_t found = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)ipcd);
    DIR *tasks = opendir(path);
    EXPECT(tasks != NULL);
    for (const struct dirent *task; (task = readdir(tasks));) {
        char comm[512];
        snprintf(comm, sizeof(comm), "%s/%s/comm", path, task->d_name);
        FILE *file = fopen(comm, "re");
        if (file && fscanf(file, "%31s", name) == 1 && strcmp(name, "router") == 0)
            found = atoi(task->d_name);
        if (file)
            fclose(file);
    }
    closedir(tasks);
    EXPECT(found != 0);
    return found;
}

static bool is_done(const struct stage *stage)
{
    eventfd_t value;
    return eventfd_read(stage->done, &value) == 0;
}

/* Step the router through `count` instructions of a round, and kill ipcd there. False: the round was done before. */
static bool kill_at(const struct stage *stage, unsigned count)
{
    pid_t ipcd = guarded_pid(&guarded), router = router_of(ipcd), who;
    bool done = false;
    int status;

    EXPECT_EQ(ptrace(PTRACE_SEIZE, router, NULL, NULL), 0);
    EXPECT_EQ(ptrace(PTRACE_INTERRUPT, router, NULL, NULL), 0);
    EXPECT_EQ(waitpid(router, &status, __WALL), router);
    gate_open(stage->go);
    for (unsigned i = 0; i < count && !done; i++) {
        EXPECT_EQ(ptrace(PTRACE_SINGLESTEP, router, NULL, NULL), 0);
        while ((who = waitpid(router, &status, __WALL | WNOHANG)) == 0 && !done) {
            done = is_done(stage); /* then it may sleep for ever */
            if (!done)
                sched_yield();
        }
        EXPECT(who >= 0);
    }
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    while (waitpid(router, &status, __WALL) == router && !WIFSIGNALED(status) && !WIFEXITED(status))
        continue;
    guarded_wait_other(&guarded, ipcd);
    for (bool late = done; !late; late = is_done(stage))
        sched_yield();
    return !done;
}

static void test_at_every_instruction(void **state)
{
    struct stage stage = {.go = gate_new(), .done = gate_new()};
    unsigned step = getenv("IPC_KILL_FULL") ? STEPS_FULL : STEPS_FIRST, kills = 0;
    unsigned at = 1 + (unsigned)getpid() % step;
    pid_t client;

    EXPECT_EQ(fcntl(stage.done, F_SETFL, O_NONBLOCK), 0);
    client = child_start(be_client, &stage);
    while (!is_done(&stage))
        sched_yield();
    for (;; at += step, kills++) {
        watchdog(60, "a kill of ipcd while its router is stepped");
        if (!kill_at(&stage, at))
            break;
    }
    printf("ipcd was killed at %u of %u instructions of its router\n", kills, at);
    EXPECT(at > 2000);
    child_kill(client);
    close(stage.go);
    close(stage.done);
}

static int setup(void **state)
{
    static const char *const quiet[] = {"--log-level", "error", "--watchdog", "0", NULL};
    watchdog(30, "start");
    guarded_start(&guarded, quiet);
    return 0;
}

static int teardown(void **state)
{
    guarded_stop(&guarded);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_at_every_instruction, setup, teardown)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
