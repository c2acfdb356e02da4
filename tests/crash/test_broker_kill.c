/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed before and after each of its system calls while a client connects, advertises, subscribes by name and
 * by pattern, is paired, exchanges messages and takes all of it back. After each death the client has noticed nothing,
 * a bystander has lost nothing, and neither ipcd nor ipcd-run has more than before.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

static struct guarded guarded;

static struct broker as_broker(void)
{
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    return as;
}

static void be_client(void *argument)
{
    const int *go = argument;
    gate_wait(*go);
    ipc_connection *connection = connection_new(), *other = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "step.by.step", 1 << 14, 0);
    ipc_subscription *exact = subscription_new(other, "step.by.step", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    ipc_subscription *wild = subscription_new(other, "step.>", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER), 2);
    publish_numbers(publisher, 0, 20, 64);
    receive_numbers(exact, 0, 20, 64);
    receive_numbers(wild, 0, 20, 64);
    subscription_end(wild);
    publisher_end(publisher);
    subscription_end(exact);
    ipc_connection_close(other);
    ipc_connection_close(connection);
}

/* Let ipcd go on for `stops` system call stops while the client works, then kill it. False: the client was done
 * before. */
static bool kill_at(unsigned stops)
{
    pid_t ipcd = guarded_pid(&guarded);
    int go = gate_new(), status;
    pid_t client = child_start(be_client, &go);
    bool done = false;

    EXPECT_EQ(ptrace(PTRACE_SEIZE, ipcd, NULL, PTRACE_O_TRACESYSGOOD), 0);
    EXPECT_EQ(ptrace(PTRACE_INTERRUPT, ipcd, NULL, NULL), 0);
    EXPECT_EQ(waitpid(ipcd, &status, __WALL), ipcd);
    gate_open(go);
    for (unsigned i = 0; i < stops && !done; i++) {
        EXPECT_EQ(ptrace(PTRACE_SYSCALL, ipcd, NULL, NULL), 0);
        pid_t who = waitpid(-1, &status, __WALL);
        if (who == client) {
            EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            done = true;
        }
    }
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    while (waitpid(ipcd, &status, __WALL) == ipcd && !WIFSIGNALED(status))
        continue;
    guarded_wait_other(&guarded, ipcd);
    if (!done)
        child_done(client);
    close(go);
    return !done;
}

static void test_at_every_system_call(void **state)
{
    const struct broker as = as_broker();
    ipc_connection *writing = connection_new(), *reading = connection_new();
    ipc_publisher *publisher = publisher_new(writing, "bystander", 1 << 14, 0);
    ipc_subscription *subscription =
        subscription_new(reading, "bystander", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    struct broker_counts before = broker_count(&as);
    unsigned kept_before = guarded_kept(&guarded), stops = 0;

    do {
        watchdog(30, "a kill of ipcd at a system call");
        publish_numbers(publisher, 20 * (uint64_t)stops, 20 * (uint64_t)stops + 20, 64);
        receive_numbers(subscription, 20 * (uint64_t)stops, 20 * (uint64_t)stops + 20, 64);
        broker_settles(&as, &before);
        while (guarded_kept(&guarded) != kept_before)
            sched_yield();
    } while (kill_at(stops++));
    printf("ipcd was killed at %u system call stops\n", stops - 1);
    EXPECT(stops > 100);
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(writing);
    ipc_connection_close(reading);
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
        cmocka_unit_test_setup_teardown(test_at_every_system_call, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
