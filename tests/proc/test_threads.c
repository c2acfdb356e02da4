/* SPDX-License-Identifier: Apache-2.0
 *
 * Many threads over one connection. Threads report by a count: cmocka's asserts are for the test's own thread, so
 * a failed check in another one ends the process.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"

#define THREADS  4
#define MESSAGES 5000u

struct work {
    ipc_connection *connection;
    unsigned index;
    _Atomic bool *stop;
    _Atomic unsigned *rounds;
};

static void threads_run(void *(*body)(void *), struct work *work, pthread_t *threads, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        EXPECT_EQ(pthread_create(&threads[i], NULL, body, &work[i]), 0);
}

static void threads_join(pthread_t *threads, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        EXPECT_EQ(pthread_join(threads[i], NULL), 0);
}

static void name_of(char *name, size_t size, const char *what, unsigned index)
{
    snprintf(name, size, "threads.%s.%u", what, index);
}

/* ---- each with a handle of its own ---------------------------------------------------------------------------- */

static void *publish_own(void *argument)
{
    struct work *work = argument;
    char name[64];
    name_of(name, sizeof(name), "own", work->index);
    ipc_publisher *publisher = publisher_new(work->connection, name, 1 << 14, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, MESSAGES, 40);
    publisher_end(publisher);
    return NULL;
}

static void *receive_own(void *argument)
{
    struct work *work = argument;
    char name[64];
    name_of(name, sizeof(name), "own", work->index);
    ipc_subscription *subscription =
        subscription_new(work->connection, name, IPC_START_NEXT, IPC_SLOW_BLOCK, IPC_SUBSCRIPTION_SELF);
    receive_numbers(subscription, 0, MESSAGES, 40);
    subscription_end(subscription);
    return NULL;
}

static void test_own_handles(void **state)
{
    (void)state;
    for (int connections = 1; connections <= 2; connections++) {
        ipc_connection *connection[2] = {connection_new(), connections == 2 ? connection_new() : NULL};
        struct work out[THREADS], in[THREADS];
        pthread_t publishers[THREADS], subscribers[THREADS];
        for (unsigned i = 0; i < THREADS; i++) {
            out[i] = (struct work){.connection = connection[0], .index = i};
            in[i] = (struct work){.connection = connection[connections - 1], .index = i};
        }
        threads_run(publish_own, out, publishers, THREADS);
        threads_run(receive_own, in, subscribers, THREADS);
        threads_join(publishers, THREADS);
        threads_join(subscribers, THREADS);
        ipc_connection_close(connection[0]);
        ipc_connection_close(connection[1]);
    }
}

/* ---- opening and closing -------------------------------------------------------------------------------------- */

static void *open_and_close(void *argument)
{
    struct work *work = argument;
    char name[64];
    name_of(name, sizeof(name), "churn", work->index % 2);
    for (int i = 0; i < 60; i++) {
        ipc_subscription *subscription = subscription_new(work->connection, "threads.churn.*",
                                                          IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST,
                                                          IPC_SUBSCRIPTION_SELF);
        ipc_publisher *publisher =
            publisher_new(work->connection, name, 4096, i % 5 == 0 ? IPC_PUBLISHER_RETAIN : 0);
        if (i % 3 == 0)
            EXPECT(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER) >= 1);
        if (i % 7 == 0)
            EXPECT(ipc_subscription_fd(subscription) >= 0);
        publish_numbers(publisher, 0, 3, 32);
        unsigned char buffer[64];
        EXPECT(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER) == 32);
        publisher_end(publisher);
        subscription_end(subscription);
    }
    return NULL;
}

static void test_open_and_close(void **state)
{
    ipc_connection *connection = connection_new();
    struct work work[THREADS];
    pthread_t threads[THREADS];
    (void)state;
    for (unsigned i = 0; i < THREADS; i++)
        work[i] = (struct work){.connection = connection, .index = i};
    threads_run(open_and_close, work, threads, THREADS);
    threads_join(threads, THREADS);
    ipc_connection_close(connection);
}

/* ---- one blocks, others ask --------------------------------------------------------------------------------- */

static void *receive_rare(void *argument)
{
    struct work *work = argument;
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_subscription *subscription;
    options.spin_max_ns = 0;
    options.flags = IPC_SUBSCRIPTION_SELF;
    EXPECT_EQ(ipc_subscription_open(&subscription, work->connection, "threads.rare", &options, NULL), 0);
    for (uint64_t i = 0; i < 50; i++) {
        receive_numbers(subscription, i, i + 1, 16);
        atomic_fetch_add(work->rounds, 1);
    }
    subscription_end(subscription);
    return NULL;
}

static void *ask_all_the_time(void *argument)
{
    struct work *work = argument;
    char name[64];
    name_of(name, sizeof(name), "ask", work->index);
    do {
        struct ipc_event event;
        ipc_publisher *publisher = publisher_new(work->connection, name, 4096, 0);
        EXPECT_EQ(ipc_connection_dispatch(work->connection), 0);
        while (ipc_connection_next_event(work->connection, &event) == 1)
            ;
        publisher_end(publisher);
    } while (!atomic_load(work->stop));
    return NULL;
}

static void test_blocked_while_others_ask(void **state)
{
    ipc_connection *connection = connection_new();
    _Atomic bool stop = false;
    _Atomic unsigned rounds = 0;
    struct work work[3];
    pthread_t receiver, askers[2];
    (void)state;
    for (unsigned i = 0; i < 3; i++)
        work[i] = (struct work){.connection = connection, .index = i, .stop = &stop, .rounds = &rounds};
    threads_run(receive_rare, &work[2], &receiver, 1);
    threads_run(ask_all_the_time, work, askers, 2);
    ipc_publisher *publisher = publisher_new(connection, "threads.rare", 4096, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (unsigned i = 0; i < 50; i++) {
        while (atomic_load(&rounds) < i)
            sched_yield();
        publish_numbers(publisher, i, i + 1, 16);
    }
    threads_join(&receiver, 1);
    atomic_store(&stop, true);
    threads_join(askers, 2);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* ---- the end reaches every thread ---------------------------------------------------------------------------- */

static void *receive_to_the_end(void *argument)
{
    struct work *work = argument;
    unsigned char buffer[64];
    ssize_t size;
    char name[64];
    name_of(name, sizeof(name), "end", work->index);
    ipc_subscription *subscription =
        subscription_new(work->connection, name, IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    if (work->index % 2)
        EXPECT(ipc_subscription_fd(subscription) >= 0);
    atomic_fetch_add(work->rounds, 1);
    do
        size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER);
    while (size >= 0);
    EXPECT_EQ(size, -EPIPE);
    subscription_end(subscription);
    return NULL;
}

static void test_end_reaches_all(void **state)
{
    ipc_connection *connection = connection_new();
    _Atomic unsigned rounds = 0;
    struct work work[THREADS];
    pthread_t threads[THREADS];
    (void)state;
    for (unsigned i = 0; i < THREADS; i++)
        work[i] = (struct work){.connection = connection, .index = i, .rounds = &rounds};
    threads_run(receive_to_the_end, work, threads, THREADS);
    while (atomic_load(&rounds) < THREADS)
        sched_yield();
    broker_stop(&broker);
    threads_join(threads, THREADS);
    EXPECT_EQ(event_wait(connection, IPC_EVENT_ENDED).reason, IPC_REASON_SHUTDOWN);
    ipc_connection_close(connection);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_own_handles),
        CASE(test_open_and_close),
        CASE(test_blocked_while_others_ask),
        CASE(test_end_reaches_all),
    };
    return cmocka_run_group_tests_name("threads", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
