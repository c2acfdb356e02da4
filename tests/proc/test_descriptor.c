/* SPDX-License-Identifier: Apache-2.0
 *
 * Descriptors for foreign loops: high while there is something, low when there is not, and no wake-up is lost.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"

#define MESSAGES 100000u

static int ready(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    int result;
    do
        result = poll(&wait, 1, timeout_ms);
    while (result < 0 && errno == EINTR);
    return result;
}

static ssize_t look(ipc_subscription *subscription)
{
    unsigned char buffer[512];
    return ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0);
}

/* Receive until there is nothing; then the descriptor is low, sooner or later: news may still be on its way. */
static void settle(ipc_subscription *subscription, int fd)
{
    do
        while (look(subscription) >= 0)
            ;
    while (ready(fd, 50) != 0);
}

static void test_levels(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    ipc_subscription *subscription = subscription_new(in, "level.*", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    int fd = ipc_subscription_fd(subscription);
    (void)state;
    EXPECT(fd >= 0);
    EXPECT_EQ(ipc_subscription_fd(subscription), fd);
    settle(subscription, fd);
    ipc_publisher *publisher = publisher_new(out, "level.a", 4096, 0);
    EXPECT_EQ(ready(fd, -1), 1); /* a publisher is news */
    settle(subscription, fd);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    settle(subscription, fd);
    for (uint64_t i = 0; i < 300; i += 3) {
        publish_numbers(publisher, i, i + 3, 64);
        for (uint64_t n = i; n < i + 3; n++) {
            EXPECT_EQ(ready(fd, -1), 1);
            EXPECT_EQ(ready(fd, 0), 1); /* a level, not an edge */
            receive_numbers(subscription, n, n + 1, 64);
        }
        EXPECT_EQ(look(subscription), -EAGAIN);
        EXPECT_EQ(ready(fd, 0), 0);
    }
    /* One message is left where it is: high until it is taken. */
    publish_numbers(publisher, 300, 302, 64);
    EXPECT_EQ(ready(fd, -1), 1);
    receive_numbers(subscription, 300, 301, 64);
    EXPECT_EQ(ready(fd, 0), 1);
    receive_numbers(subscription, 301, 302, 64);
    EXPECT_EQ(look(subscription), -EAGAIN);
    EXPECT_EQ(ready(fd, 0), 0);
    publisher_end(publisher);
    EXPECT_EQ(ready(fd, -1), 1); /* so is its end */
    settle(subscription, fd);

    /* The session's end: high for good. */
    broker_stop(&broker);
    EXPECT_EQ(ready(fd, -1), 1);
    EXPECT_EQ(look(subscription), -EPIPE);
    EXPECT_EQ(look(subscription), -EPIPE);
    EXPECT_EQ(ready(fd, 0), 1);
    subscription_end(subscription);
    ipc_connection_close(in);
    ipc_connection_close(out);
}

static uint64_t cpu_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Of the waits of an idle loop all but the last ones run into their timeout: nothing turns in circles. */
static void test_idle_is_quiet(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    ipc_publisher *publisher = publisher_new(out, "quiet", 4096, 0);
    ipc_subscription *subscription = subscription_new(in, "quiet", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    int fds[2] = {ipc_subscription_fd(subscription), ipc_connection_fd(in)};
    (void)state;
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    settle(subscription, fds[0]);
    for (int i = 0; i < 2; i++) {
        while (ready(fds[i], 50) != 0) {
            ipc_connection_dispatch(in);
            look(subscription);
        }
        uint64_t before = cpu_ns();
        EXPECT_EQ(ready(fds[i], 300), 0);
        EXPECT(cpu_ns() - before < 100000000u);
    }
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(in);
    ipc_connection_close(out);
}

/* ---- no wake-up is lost ---------------------------------------------------------------------------------------- */

struct flow {
    unsigned seed;
    unsigned publishers;
};

static uint32_t random_next(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static void publish_paced(void *argument)
{
    const struct flow *flow = argument;
    uint32_t random = flow->seed * 2654435761u | 1;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "paced", 1 << 16, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; i < MESSAGES / flow->publishers; i++) {
        publish_numbers(publisher, i, i + 1, 8);
        uint32_t pause = random_next(&random);
        if (pause % 64 == 0)
            sched_yield();
        else if (pause % 4 == 0)
            for (volatile uint32_t n = pause >> 8 & 4095; n > 0; n--)
                ;
    }
    publisher_end(publisher);
    ipc_connection_close(connection);
}

enum loop { POLL_SUBSCRIPTION, EPOLL_CONNECTION, LOOPS };

static void receive_by(enum loop loop, unsigned publishers)
{
    struct flow flows[2];
    pid_t children[2];
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription = subscription_new(connection, "paced", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    int fd = loop == POLL_SUBSCRIPTION ? ipc_subscription_fd(subscription) : ipc_connection_fd(connection);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    EXPECT(fd >= 0 && set >= 0);
    EXPECT_EQ(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), 0);
    unsigned seed = (unsigned)getpid() + (unsigned)time(NULL);
    printf("seed %u\n", seed);
    for (unsigned i = 0; i < publishers; i++) {
        flows[i] = (struct flow){seed + i, publishers};
        children[i] = child_start(publish_paced, &flows[i]);
    }
    uint64_t next[2] = {0}, total = 0;
    uint64_t senders[2] = {0};
    while (total < MESSAGES / publishers * publishers) {
        int result = loop == POLL_SUBSCRIPTION ? ready(fd, -1) : epoll_wait(set, &event, 1, -1);
        EXPECT_EQ(result, 1);
        if (loop == EPOLL_CONNECTION)
            EXPECT_EQ(ipc_connection_dispatch(connection), 0);
        struct ipc_message message;
        uint64_t number;
        ssize_t size;
        while ((size = ipc_subscription_receive(subscription, &number, sizeof(number), &message, 0)) == 8) {
            unsigned who = senders[0] == message.sender->session || !senders[0] ? 0 : 1;
            senders[who] = message.sender->session;
            EXPECT_EQ(number, next[who]++);
            total++;
        }
        EXPECT_EQ(size, -EAGAIN);
    }
    for (unsigned i = 0; i < publishers; i++)
        child_done(children[i]);
    close(set);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_no_lost_wakeup(void **state)
{
    (void)state;
    for (int loop = 0; loop < LOOPS; loop++)
        for (unsigned publishers = 1; publishers <= 2; publishers++)
            receive_by((enum loop)loop, publishers);
}

/* The same without a descriptor: futexes, with a subscriber that never polls. */
static void test_no_lost_wakeup_in_the_library(void **state)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct flow flow = {(unsigned)getpid(), 1};
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription;
    (void)state;
    options.slow = IPC_SLOW_BLOCK;
    options.spin_max_ns = 0;
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "paced", &options, NULL), 0);
    printf("seed %u\n", flow.seed);
    pid_t child = child_start(publish_paced, &flow);
    receive_numbers(subscription, 0, MESSAGES, 8);
    child_done(child);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT(stats.received == MESSAGES && stats.sleeps > 0);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

/* The connection's descriptor also shows subscriptions that were opened after it. */
static void test_connection_descriptor(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    int fd = ipc_connection_fd(in);
    ipc_publisher *publishers[3];
    ipc_subscription *subscriptions[3];
    char name[32];
    (void)state;
    EXPECT(fd >= 0);
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "under.%d", i);
        publishers[i] = publisher_new(out, name, 4096, 0);
        subscriptions[i] = subscription_new(in, name, IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
        EXPECT_EQ(ipc_publisher_wait_readers(publishers[i], 1, IPC_FOREVER), 1);
    }
    for (uint64_t n = 0; n < 60; n++) {
        do {
            ipc_connection_dispatch(in);
            for (int i = 0; i < 3; i++)
                EXPECT_EQ(look(subscriptions[i]), -EAGAIN);
        } while (ready(fd, 20) != 0);
        publish_numbers(publishers[n % 3], n / 3, n / 3 + 1, 32);
        EXPECT_EQ(ready(fd, -1), 1);
        receive_numbers(subscriptions[n % 3], n / 3, n / 3 + 1, 32);
    }
    subscription_end(subscriptions[1]);
    ipc_connection_dispatch(in);
    publish_numbers(publishers[2], 20, 21, 32);
    EXPECT_EQ(ready(fd, -1), 1);
    receive_numbers(subscriptions[2], 20, 21, 32);
    subscription_end(subscriptions[0]);
    subscription_end(subscriptions[2]);
    for (int i = 0; i < 3; i++)
        publisher_end(publishers[i]);
    broker_stop(&broker);
    EXPECT_EQ(ready(fd, -1), 1);
    EXPECT_EQ(ipc_connection_dispatch(in), -EPIPE);
    ipc_connection_close(in);
    ipc_connection_close(out);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_levels),
        CASE(test_idle_is_quiet),
        CASE(test_no_lost_wakeup),
        CASE(test_no_lost_wakeup_in_the_library),
        CASE(test_connection_descriptor),
    };
    return cmocka_run_group_tests_name("descriptor", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
