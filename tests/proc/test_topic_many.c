/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics: many publishers, many subscribers, many sessions; and how many system calls a message costs.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"

#define SESSIONS 1000u

/* More lanes than futex_waitv takes: the subscription waits by bell. Every publisher wakes it. */

static void publish_crowd(void *argument)
{
    int go = *(int *)argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publishers[200];
    char name[32];
    for (unsigned i = 0; i < 200; i++) {
        snprintf(name, sizeof(name), "crowd.%u", i);
        publishers[i] = publisher_new(connection, name, 4096, 0);
    }
    for (unsigned i = 0; i < 200; i++)
        EXPECT_EQ(ipc_publisher_wait_readers(publishers[i], 1, IPC_FOREVER), 1);
    for (unsigned i = 0; i < 600; i++) {
        gate_wait(go);
        publish_numbers(publishers[i * 7 % 200], i, i + 1, 16);
    }
    for (unsigned i = 0; i < 200; i++)
        publisher_end(publishers[i]);
    ipc_connection_close(connection);
}

static void test_bells(void **state)
{
    int go = gate_new();
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription;
    (void)state;
    options.spin_max_ns = 0;
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "crowd.*", &options, NULL), 0);
    pid_t child = child_start(publish_crowd, &go);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 200, IPC_FOREVER), 200);
    for (unsigned i = 0; i < 600; i++) {
        gate_open(go);
        receive_numbers(subscription, i, i + 1, 16);
    }
    child_done(child);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT(stats.received == 600 && stats.lost == 0 && stats.sleeps > 0);
    subscription_end(subscription);
    ipc_connection_close(connection);
    close(go);
}

/* 100 publishers and 100 subscribers of one topic, each in a session of its own. */
static void read_square(void *argument)
{
    int ready = *(int *)argument;
    ipc_connection *connections[25];
    ipc_subscription *subscriptions[25];
    for (int i = 0; i < 25; i++) {
        connections[i] = connection_new();
        subscriptions[i] = subscription_new(connections[i], "square", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    }
    gate_open(ready);
    for (int i = 0; i < 25; i++) {
        EXPECT_EQ(ipc_subscription_wait_writers(subscriptions[i], 100, IPC_FOREVER), 100);
        for (int n = 0; n < 500; n++) {
            unsigned char buffer[64];
            struct ipc_message message;
            EXPECT_EQ(
                ipc_subscription_receive(subscriptions[i], buffer, sizeof(buffer), &message, IPC_FOREVER),
                32);
            EXPECT(message.sequence < 5 && message.lost == 0);
            EXPECT(message_holds(buffer, 32, message.sequence));
        }
    }
    for (int i = 0; i < 25; i++) {
        subscription_end(subscriptions[i]);
        ipc_connection_close(connections[i]);
    }
}

static void test_square(void **state)
{
    ipc_connection *connections[100];
    ipc_publisher *publishers[100];
    pid_t children[4];
    int ready = gate_new();
    (void)state;
    for (int i = 0; i < 4; i++)
        children[i] = child_start(read_square, &ready);
    for (int i = 0; i < 4; i++)
        gate_wait(ready);
    for (int i = 0; i < 100; i++) {
        connections[i] = connection_new();
        publishers[i] = publisher_new(connections[i], "square", 4096, 0);
    }
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(ipc_publisher_wait_readers(publishers[i], 100, IPC_FOREVER), 100);
    for (int i = 0; i < 100; i++)
        publish_numbers(publishers[i], 0, 5, 32);
    for (int i = 0; i < 4; i++)
        child_done(children[i]);
    for (int i = 0; i < 100; i++) {
        publisher_end(publishers[i]);
        ipc_connection_close(connections[i]);
    }
    close(ready);
}

static void test_thousand_sessions(void **state)
{
    static ipc_connection *connections[SESSIONS];
    static ipc_subscription *subscriptions[SESSIONS];
    struct broker_counts before = broker_count(&broker), now;
    struct rlimit limit, old;
    (void)state;
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
    limit = (struct rlimit){old.rlim_max, old.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    ipc_connection *connection = connection_new();
    for (unsigned i = 0; i < SESSIONS; i++) {
        connections[i] = connection_new();
        subscriptions[i] =
            subscription_new(connections[i], i % 5 ? "other" : "thousand", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    }
    ipc_publisher *publisher = publisher_new(connection, "thousand", 0, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, SESSIONS / 5, IPC_FOREVER), SESSIONS / 5);
    now = broker_count(&broker);
    EXPECT_EQ(now.sessions, before.sessions + SESSIONS + 1);
    publish_numbers(publisher, 0, 10, 64);
    for (unsigned i = 0; i < SESSIONS; i += 5)
        receive_numbers(subscriptions[i], 0, 10, 64);
    for (unsigned i = 0; i < SESSIONS; i++) {
        subscription_end(subscriptions[i]);
        ipc_connection_close(connections[i]);
    }
    publisher_end(publisher);
    ipc_connection_close(connection);
    broker_settles(&broker, &before);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
}

/* ---- system calls -------------------------------------------------------------------------------------------- */

#define COUNTED 100000u

static void publish_counted(void *argument)
{
    int ready = *(int *)argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "counted", 1 << 20, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    gate_wait(ready); /* the reader looks, and will not sleep */
    EXPECT_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP);
    publish_numbers(publisher, 0, COUNTED, 64);
    raise(SIGSTOP);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void receive_spinning(void *argument)
{
    int ready = *(int *)argument;
    ipc_connection *connection = connection_new();
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_subscription *subscription;
    options.spin_max_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "counted", &options, NULL), 0);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    gate_open(ready);
    uint64_t next = 0;
    while (next < COUNTED) {
        uint64_t buffer[8];
        struct ipc_message message;
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, IPC_FOREVER), 64);
        next = message.sequence + 1;
    }
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_system_calls(void **state)
{
    int ready = gate_new(), status;
    unsigned stops = 0;
    (void)state;
    pid_t reader = child_start(receive_spinning, &ready), writer = child_start(publish_counted, &ready);
    EXPECT_EQ(waitpid(writer, &status, WUNTRACED), writer);
    EXPECT(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    EXPECT_EQ(ptrace(PTRACE_SETOPTIONS, writer, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);
    for (;;) { /* from one SIGSTOP to the next */
        EXPECT_EQ(ptrace(PTRACE_SYSCALL, writer, NULL, NULL), 0);
        EXPECT_EQ(waitpid(writer, &status, 0), writer);
        EXPECT(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break;
        stops++;
    }
    printf("%u stops of system calls for %u messages\n", stops, COUNTED);
    /* raise() makes a few itself, mail may cost some; a message costs none. ThreadSanitizer makes the reader so slow that
     * the ring fills and its publisher sleeps. */
#ifdef IPC_TSAN
    EXPECT(stops < COUNTED / 100);
#else
    EXPECT(stops < COUNTED / 1000);
#endif
    EXPECT_EQ(ptrace(PTRACE_DETACH, writer, NULL, NULL), 0);
    child_done(writer);
    child_done(reader);
    close(ready);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_bells),
        CASE(test_square),
        CASE(test_thousand_sessions),
        CASE(test_system_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
