/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics: subscribers that read more slowly than somebody publishes, by every policy.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"

struct pair {
    ipc_connection *out, *in;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
};

static struct pair pair_new(enum ipc_slow slow, int64_t block_max_ns)
{
    struct pair pair = {.out = connection_new(), .in = connection_new()};
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    options.ring_size = 4096;
    options.block_max_ns = block_max_ns;
    EXPECT_EQ(ipc_publisher_open(&pair.publisher, pair.out, "slow", &options, NULL), 0);
    pair.subscription = subscription_new(pair.in, "slow", IPC_START_OLDEST, slow, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(pair.publisher, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_subscription_wait_writers(pair.subscription, 1, IPC_FOREVER), 1);
    return pair;
}

static void pair_end(struct pair *pair)
{
    publisher_end(pair->publisher);
    subscription_end(pair->subscription);
    ipc_connection_close(pair->out);
    ipc_connection_close(pair->in);
}

static struct ipc_publisher_stats stats_of(ipc_publisher *publisher)
{
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    return stats;
}

static uint64_t lost_by(ipc_subscription *subscription)
{
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    return stats.lost;
}

/* Take all that is there now: every message is as published, and what is missing is counted. Returns how many. */
static uint64_t drain(ipc_subscription *subscription, uint64_t *expected)
{
    unsigned char buffer[256];
    struct ipc_message message;
    uint64_t count = 0;
    ssize_t size;
    while ((size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, 0)) >= 0) {
        *expected += message.lost;
        EXPECT_EQ(message.sequence, *expected);
        EXPECT(message_holds(buffer, (size_t)size, *expected));
        ++*expected;
        count++;
    }
    EXPECT(size == -EAGAIN);
    return count;
}

static void test_drop_oldest(void **state)
{
    struct pair pair = pair_new(IPC_SLOW_DROP_OLDEST, SECONDS(1));
    uint64_t published = 0, expected = 0, received = 0;
    (void)state;
    for (uint64_t round = 0; round < 200; round++) {
        uint64_t many = round * round % 113;
        publish_numbers(pair.publisher, published, published + many, 8 + round % 200);
        published += many;
        received += drain(pair.subscription, &expected);
        EXPECT_EQ(expected, published);
        EXPECT_EQ(lost_by(pair.subscription), published - received);
        EXPECT_EQ(stats_of(pair.publisher).lost, published - received);
    }
    EXPECT(received < published && received > 0);
    struct ipc_publisher_stats stats = stats_of(pair.publisher);
    EXPECT_EQ(stats.published, published);
    EXPECT(stats.overrun >= stats.lost);
    EXPECT(stats.detached == 0 && stats.waits == 0 && stats.dropped == 0);
    /* What a reader lost is remembered when it has left. */
    ipc_subscription_close(pair.subscription);
    do
        stats = stats_of(pair.publisher);
    while (stats.readers > 0);
    EXPECT_EQ(stats.lost, published - received);
    pair.subscription = subscription_new(pair.in, "slow", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    pair_end(&pair);
}

/* Many concurrent laps: nothing torn, and both ends agree. */
struct race {
    int ready, done;
    uint64_t *lost;
    uint64_t count;
};

static void race_reader(void *argument)
{
    struct race *race = argument;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription =
        subscription_new(connection, "race", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    unsigned char buffer[256];
    struct ipc_message message;
    uint64_t expected = 0;
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    gate_open(race->ready);
    while (expected < race->count) {
        ssize_t size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, IPC_FOREVER);
        EXPECT(size >= 8);
        expected += message.lost;
        EXPECT_EQ(message.sequence, expected);
        EXPECT(message_holds(buffer, (size_t)size, expected));
        expected++;
    }
    *race->lost = lost_by(subscription);
    gate_open(race->ready);
    gate_wait(race->done);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_drop_oldest_races(void **state)
{
    struct race race = {gate_new(), gate_new(), shared_new(sizeof(uint64_t)), 200000};
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "race", 4096, 0);
    (void)state;
    pid_t child = child_start(race_reader, &race);
    gate_wait(race.ready);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; i < race.count; i++)
        publish_numbers(publisher, i, i + 1, 8 + i % 240);
    gate_wait(race.ready);
    EXPECT_EQ(stats_of(publisher).lost, *race.lost);
    gate_open(race.done);
    child_done(child);
    publisher_end(publisher);
    ipc_connection_close(connection);
    shared_free(race.lost, sizeof(uint64_t));
    close(race.ready);
    close(race.done);
}

static void block_reader(void *argument)
{
    uint64_t count = *(uint64_t *)argument;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription =
        subscription_new(connection, "block", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    receive_numbers(subscription, 0, count, 100);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_block(void **state)
{
    uint64_t count = 100000;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "block", 4096, 0);
    (void)state;
    pid_t children[2] = {child_start(block_reader, &count), child_start(block_reader, &count)};
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER), 2);
    publish_numbers(publisher, 0, count, 100);
    for (int i = 0; i < 2; i++)
        child_done(children[i]);
    struct ipc_publisher_stats stats = stats_of(publisher);
    EXPECT(stats.waits > 0 && stats.lost == 0 && stats.detached == 0 && stats.overrun == 0);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* Wait for the event while the handles of both sides are looked after. */
static struct ipc_event left_event(ipc_connection *connection, unsigned kind, ipc_publisher *publisher,
                                   ipc_subscription *subscription)
{
    struct ipc_event event = {0};
    unsigned char buffer[256];
    while (event.kind != kind) {
        EXPECT(ipc_connection_next_event(connection, &event) >= 0);
        if (publisher)
            stats_of(publisher);
        if (subscription)
            ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0);
    }
    return event;
}

static void detached_as_slow(struct pair *pair)
{
    struct ipc_peer reader, writer;
    EXPECT_EQ(ipc_connection_identity(pair->in, &reader), 0);
    EXPECT_EQ(ipc_connection_identity(pair->out, &writer), 0);
    struct ipc_publisher_stats stats = stats_of(pair->publisher);
    EXPECT_EQ(stats.detached, 1);
    EXPECT_EQ(stats.readers, 0);
    struct ipc_event event = left_event(pair->out, IPC_EVENT_READER_LEFT, pair->publisher, NULL);
    EXPECT_EQ(event.reason, IPC_REASON_SLOW);
    EXPECT_EQ(event.peer.session, reader.session);
    EXPECT(strcmp(event.topic, "slow") == 0);
    event = left_event(pair->in, IPC_EVENT_WRITER_LEFT, NULL, pair->subscription);
    EXPECT_EQ(event.reason, IPC_REASON_SLOW);
    EXPECT_EQ(event.peer.session, writer.session);
    struct ipc_subscription_stats in;
    EXPECT_EQ(ipc_subscription_stats(pair->subscription, &in), 0);
    EXPECT_EQ(in.writers, 0);
}

static void test_block_too_long(void **state)
{
    (void)state;
    for (int takes = 0; takes < 2; takes++) {
        struct pair pair = pair_new(IPC_SLOW_BLOCK, 1000000);
        struct ipc_message messages[4];
        publish_numbers(pair.publisher, 0, 4, 64);
        if (takes)
            EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 4, IPC_FOREVER), 4);
        publish_numbers(pair.publisher, 4, 200, 64);
        struct ipc_publisher_stats stats = stats_of(pair.publisher);
        EXPECT_EQ(stats.published, 200);
        EXPECT(stats.waits >= 1);
        if (takes) { /* only then can it let go of the lane */
            struct ipc_message more;
            EXPECT_EQ(ipc_subscription_take(pair.subscription, &more, 1, 0), -EAGAIN);
            EXPECT_EQ(ipc_subscription_release(pair.subscription, 4), 0);
        }
        detached_as_slow(&pair);
        pair_end(&pair);
    }
}

static void test_disconnect(void **state)
{
    struct pair pair = pair_new(IPC_SLOW_DISCONNECT, SECONDS(1));
    (void)state;
    publish_numbers(pair.publisher, 0, 40, 64);
    receive_numbers(pair.subscription, 0, 40, 64); /* in time: nothing happens */
    EXPECT_EQ(stats_of(pair.publisher).detached, 0);
    publish_numbers(pair.publisher, 40, 300, 64);
    EXPECT_EQ(stats_of(pair.publisher).waits, 0);
    detached_as_slow(&pair);
    pair_end(&pair);
}

static void test_reject_and_drop_newest(void **state)
{
    (void)state;
    for (unsigned flags = IPC_PUBLISH_REJECT; flags <= IPC_PUBLISH_DROP_NEWEST; flags++) {
        struct pair pair = pair_new(IPC_SLOW_BLOCK, SECONDS(1));
        struct ipc_publish how = IPC_PUBLISH_INIT;
        unsigned char buffer[64];
        struct iovec piece = {buffer, sizeof(buffer)};
        struct iovec batch[100];
        void *loan;
        uint64_t in = 0, tried = 0;
        how.flags = flags;
        int result = 0;
        while (tried < 100 && result == 0) {
            message_fill(buffer, sizeof(buffer), stats_of(pair.publisher).published);
            result = ipc_publisher_publishv(pair.publisher, &piece, 1, &how);
            tried++;
        }
        struct ipc_publisher_stats stats = stats_of(pair.publisher);
        EXPECT_EQ(result, flags == IPC_PUBLISH_REJECT ? -EAGAIN : 0);
        EXPECT_EQ(stats.dropped, flags == IPC_PUBLISH_REJECT ? 0 : 100 - stats.published);
        EXPECT(stats.published >= 4096 / 72 - 2 && stats.published < 60);
        EXPECT_EQ(ipc_publisher_loan(pair.publisher, 64, &how, &loan), -EAGAIN);
        receive_numbers(pair.subscription, 0, stats.published, 64);
        in = stats.published;
        for (int i = 0; i < 100; i++)
            batch[i] = piece;
        ssize_t some = ipc_publisher_publish_batch(pair.publisher, batch, 100, flags);
        if (flags == IPC_PUBLISH_REJECT) {
            EXPECT(some > 40 && some < 60);
            EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, batch, 100, flags), -EAGAIN);
        } else {
            EXPECT_EQ(some, 100);
            EXPECT(stats_of(pair.publisher).dropped > stats.dropped + 40);
        }
        stats = stats_of(pair.publisher);
        for (; in < stats.published; in++)
            EXPECT_EQ(ipc_subscription_receive(pair.subscription, buffer, 64, NULL, IPC_FOREVER), 64);
        EXPECT_EQ(ipc_subscription_receive(pair.subscription, buffer, 64, NULL, 0), -EAGAIN);
        EXPECT(stats.lost == 0 && stats.detached == 0 && stats.waits == 0);
        pair_end(&pair);
    }
}

/* A tap that does not read holds up nobody, and costs the others nothing. */
static void test_tap_never_blocks(void **state)
{
    struct pair pair = pair_new(IPC_SLOW_BLOCK, IPC_FOREVER);
    (void)state;
    ipc_subscription *tap =
        subscription_new(pair.in, "slow", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_TAP);
    EXPECT_EQ(ipc_subscription_wait_writers(tap, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; i < 2000; i++) {
        publish_numbers(pair.publisher, i, i + 1, 64);
        receive_numbers(pair.subscription, i, i + 1, 64);
    }
    EXPECT_EQ(stats_of(pair.publisher).waits, 0);
    uint64_t expected = 0;
    drain(tap, &expected);
    EXPECT_EQ(expected, 2000);
    EXPECT(lost_by(tap) > 1000);
    EXPECT_EQ(stats_of(pair.publisher).lost, lost_by(tap));
    subscription_end(tap);
    pair_end(&pair);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_drop_oldest),      CASE(test_drop_oldest_races), CASE(test_block),
        CASE(test_block_too_long),   CASE(test_disconnect),        CASE(test_reject_and_drop_newest),
        CASE(test_tap_never_blocks),
    };
    return cmocka_run_group_tests_name("topic_slow", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
