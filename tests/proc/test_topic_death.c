/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics: publishers and subscribers that are killed or stopped in the middle.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "libipc/patterns/patterns.h"
#include "tests/support/broker.h"

struct shared {
    _Atomic uint64_t published; /* messages that were committed for certain */
    _Atomic uint64_t received;
    _Atomic uintptr_t word; /* where the publisher's next record begins, in its own memory */
    _Atomic int slept;
    uint64_t until; /* messages; 0: six */
    enum way { KILLED, RUNG, NEXT, ROOM, ENDED } way;
};

struct roles {
    struct shared *shared;
    int ready, go;
};

static struct roles roles_new(void)
{
    return (struct roles){shared_new(sizeof(struct shared)), gate_new(), gate_new()};
}

static void roles_end(struct roles *roles)
{
    close(roles->ready);
    close(roles->go);
    shared_free(roles->shared, sizeof(struct shared));
}

static void publish_until_killed(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "death", 1 << 16, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0;; i++) {
        publish_numbers(publisher, i, i + 1, 8 + i % 300);
        atomic_store(&roles->shared->published, i + 1);
    }
}

static void test_publisher_killed(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct roles roles = roles_new();
        ipc_connection *connection = connection_new();
        ipc_subscription *subscription =
            subscription_new(connection, "death", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
        pid_t child = child_start(publish_until_killed, &roles);
        uint64_t next = 0;
        for (uint64_t until = 100 + 977 * (uint64_t)round; next < until; next++)
            receive_numbers(subscription, next, next + 1, 8 + next % 300);
        child_kill(child);
        struct ipc_event event = {0};
        while (event.kind != IPC_EVENT_WRITER_LEFT) {
            unsigned char buffer[512];
            ssize_t size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0);
            if (size >= 0) {
                EXPECT_EQ(size, 8 + next % 300);
                EXPECT(message_holds(buffer, (size_t)size, next));
                next++;
            } else {
                EXPECT_EQ(size, -EAGAIN);
                EXPECT(ipc_connection_next_event(connection, &event) >= 0);
            }
        }
        EXPECT_EQ(event.reason, IPC_REASON_DIED);
        EXPECT_EQ(event.peer.pid, child);
        uint64_t published = atomic_load(&roles.shared->published);
        EXPECT(next == published || next == published + 1);
        subscription_end(subscription);
        ipc_connection_close(connection);
        roles_end(&roles);
    }
}

/* ---- the subscriber is killed -------------------------------------------------------------------------------- */

static void block_and_stand_still(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription = subscription_new(connection, "death", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    gate_open(roles->ready);
    gate_wait(roles->go);
}

static void publish_into_the_wall(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "death", 4096, 0); /* block_max is for ever */
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    gate_open(roles->ready);
    for (uint64_t i = 0; i < 1000; i++) {
        publish_numbers(publisher, i, i + 1, 64);
        atomic_store(&roles->shared->published, i + 1);
    }
    struct ipc_event event;
    do
        event = event_wait(connection, IPC_EVENT_READER_LEFT);
    while (event.reason != IPC_REASON_DIED);
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.detached, 0);
    atomic_store(&roles->shared->received, stats.waits); /* nobody receives here */
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void test_subscriber_killed(void **state)
{
    (void)state;
    uint64_t waits = 0;
    for (int round = 0; round < 10 || waits == 0; round++) { /* it may be preempted in front of the wall */
        struct roles roles = roles_new();
        pid_t publisher = child_start(publish_into_the_wall, &roles);
        pid_t subscriber = child_start(block_and_stand_still, &roles);
        gate_wait(roles.ready);
        gate_wait(roles.ready);
        while (atomic_load(&roles.shared->published) < 4096 / 72 - 1)
            ;
        child_kill(subscriber); /* from now on nothing but this wakes the publisher: it waits for ever */
        child_done(publisher);
        waits += atomic_load(&roles.shared->received);
        roles_end(&roles);
    }
}

/* ---- stopped is not dead ------------------------------------------------------------------------------------ */

static void receive_counting(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription = subscription_new(connection, "death", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    gate_open(roles->ready);
    for (uint64_t i = 0; i < 1000; i++) {
        receive_numbers(subscription, i, i + 1, 64);
        atomic_store(&roles->shared->received, i + 1);
    }
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_stopped_is_not_dead(void **state)
{
    struct roles roles = roles_new();
    struct ipc_publish how = IPC_PUBLISH_INIT;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "death", 4096, 0);
    unsigned char buffer[64];
    struct iovec piece = {buffer, sizeof(buffer)};
    struct ipc_event event;
    int status;
    (void)state;
    pid_t child = child_start(receive_counting, &roles);
    gate_wait(roles.ready);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, 200, 64);
    kill(child, SIGSTOP);
    EXPECT_EQ(waitpid(child, &status, WUNTRACED), child);
    EXPECT(WIFSTOPPED(status));
    uint64_t next = 200;
    how.flags = IPC_PUBLISH_REJECT;
    for (;; next++) {
        message_fill(buffer, sizeof(buffer), next);
        int result = ipc_publisher_publishv(publisher, &piece, 1, &how);
        if (result == -EAGAIN)
            break;
        EXPECT_EQ(result, 0);
    }
    broker_count(&broker); /* the core has had its turn since */
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.readers, 1);
    EXPECT_EQ(ipc_publisher_publishv(publisher, &piece, 1, &how), -EAGAIN);
    kill(child, SIGCONT);
    publish_numbers(publisher, next, 1000, 64);
    child_done(child);
    while (ipc_connection_next_event(connection, &event) == 1)
        EXPECT(event.kind != IPC_EVENT_READER_LEFT || event.reason == IPC_REASON_CLOSED);
    publisher_end(publisher);
    ipc_connection_close(connection);
    roles_end(&roles);
}

/* ---- killed between the commit and the ring --------------------------------------------------------------------- */

/* Publish five messages, and wait until the reader has read them and armed for the next: only that can be told from its other
 * sleeps, such as for a bell. */
static void publish_five(ipc_publisher *publisher)
{
    publish_numbers(publisher, 0, 5, 64);
    const struct ipc_cell *cell = publisher->writer.peers[0].cell;
    while (!(atomic_load(&cell->armed) & IPC_ARMED) ||
           atomic_load(&cell->asleep) != publisher->writer.position)
        sched_yield();
}

static void publish_one_traced(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "death", 1 << 16, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_five(publisher);
    gate_open(roles->ready);
    gate_wait(roles->go); /* the subscriber sleeps */
    const void *word = lane_writer_word(&publisher->writer, publisher->writer.position);
    atomic_store(&roles->shared->word, (uintptr_t)word);
    EXPECT_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP);
    publish_numbers(publisher, 5, 6, 64);
    raise(SIGABRT); /* the tracer lets nobody get here */
}

/* Until the sixth message, or as many as are to come, and the end of their publisher. */
static void sleep_for_the_sixth(void *argument)
{
    struct roles *roles = argument;
    uint64_t until = roles->shared->until ? roles->shared->until : 6;
    ipc_connection *connection = connection_new();
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_subscription *subscription;
    options.start = IPC_START_OLDEST;
    options.slow = IPC_SLOW_BLOCK;
    options.spin_max_ns = 0;
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "death", &options, NULL), 0);
    receive_numbers(subscription, 0, until, 64);
    if (roles->shared->way != KILLED)
        gate_open(roles->ready);
    unsigned char buffer[64];
    struct ipc_event event = {0};
    while (event.kind != IPC_EVENT_WRITER_LEFT) {
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0), -EAGAIN);
        EXPECT(ipc_connection_next_event(connection, &event) >= 0);
    }
    EXPECT_EQ(event.reason, roles->shared->way == KILLED ? IPC_REASON_DIED : IPC_REASON_CLOSED);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT(stats.sleeps > 0);
    EXPECT_EQ(stats.net, 0);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

/* Sleeping in the kernel, as /proc tells. */
static bool sleeps(pid_t pid)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    EXPECT(file && fgets(text, sizeof(text), file));
    fclose(file);
    const char *state = strrchr(text, ')');
    return state && state[2] == 'S';
}

static void test_killed_between_commit_and_ring(void **state)
{
    struct roles roles = roles_new();
    int status;
    (void)state;
    pid_t subscriber = child_start(sleep_for_the_sixth, &roles);
    pid_t publisher = child_start(publish_one_traced, &roles);
    gate_wait(roles.ready);
    while (!sleeps(subscriber))
        ;
    gate_open(roles.go);
    EXPECT_EQ(waitpid(publisher, &status, WUNTRACED), publisher);
    EXPECT(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    void *word = (void *)atomic_load(&roles.shared->word);
    unsigned steps = 0;
    do {
        EXPECT_EQ(ptrace(PTRACE_SINGLESTEP, publisher, NULL, NULL), 0);
        EXPECT_EQ(waitpid(publisher, &status, 0), publisher);
        EXPECT(WIFSTOPPED(status));
        EXPECT_EQ(WSTOPSIG(status), SIGTRAP);
        steps++;
        errno = 0;
    } while (!(ptrace(PTRACE_PEEKDATA, publisher, word, NULL) & (long)IPC_RECORD_COMMITTED));
    EXPECT_EQ(errno, 0);
    EXPECT(sleeps(subscriber));
    child_kill(publisher);
    child_done(subscriber);
    roles_end(&roles);
}

/* ---- more to come ----------------------------------------------------------------------------------------------- */

static uint64_t rings_of(ipc_publisher *publisher)
{
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.detached, 0);
    EXPECT_EQ(stats.net, 0);
    return stats.rings;
}

static void publish_more(void *argument)
{
    struct roles *roles = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "death", 1 << 12, 0);
    struct ipc_publish how = IPC_PUBLISH_INIT;
    unsigned char buffer[64];
    struct iovec piece = {buffer, sizeof(buffer)};
    how.flags = IPC_PUBLISH_MORE;
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_five(publisher);
    gate_open(roles->ready);
    gate_wait(roles->go); /* the subscriber sleeps */
    uint64_t rings = rings_of(publisher), until = roles->shared->until;
    for (uint64_t number = 5; number < (roles->shared->way == NEXT ? until - 1 : until); number++) {
        void *loan;
        message_fill(buffer, sizeof(buffer), number);
        if (number % 3 == 0) {
            EXPECT_EQ(ipc_publisher_publishv(publisher, &piece, 1, &how), 0);
        } else if (number % 3 == 1) {
            EXPECT_EQ(ipc_publisher_publish_batch(publisher, &piece, 1, IPC_PUBLISH_MORE), 1);
        } else {
            EXPECT_EQ(ipc_publisher_loan(publisher, sizeof(buffer), &how, &loan), 0);
            memcpy(loan, buffer, sizeof(buffer));
            EXPECT_EQ(ipc_publisher_commit(publisher, sizeof(buffer)), 0);
        }
        EXPECT(roles->shared->way == ROOM || rings_of(publisher) == rings);
    }
    if (roles->shared->way == KILLED) {
        gate_open(roles->ready);
        pause();
    }
    if (roles->shared->way == RUNG || roles->shared->way == ROOM)
        EXPECT_EQ(ipc_publisher_ring(publisher), 0);
    else if (roles->shared->way == NEXT)
        publish_numbers(publisher, until - 1, until, 64);
    if (roles->shared->way != ENDED)
        gate_wait(roles->ready); /* not the end wakes it */
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* With IPC_PUBLISH_MORE nobody is woken, and nobody misses anything. */
static void test_more(void **state)
{
    (void)state;
    for (enum way way = KILLED; way <= ENDED; way++) {
        struct roles roles = roles_new();
        roles.shared->way = way;
        roles.shared->until = way == ROOM ? 1000 : 9;
        pid_t subscriber = child_start(sleep_for_the_sixth, &roles);
        pid_t publisher = child_start(publish_more, &roles);
        gate_wait(roles.ready);
        while (!sleeps(subscriber))
            ;
        gate_open(roles.go);
        if (way == KILLED) {
            gate_wait(roles.ready);
            child_kill(publisher);
        } else {
            child_done(publisher);
        }
        child_done(subscriber);
        roles_end(&roles);
    }
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_publisher_killed),
        CASE(test_subscriber_killed),
        CASE(test_stopped_is_not_dead),
        CASE(test_killed_between_commit_and_ring),
        CASE(test_more),
    };
    return cmocka_run_group_tests_name("topic_death", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
