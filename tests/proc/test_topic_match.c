/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics: which publishers a subscription finds, now and later, and where it starts in what they left.
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

/* The next message's text, or "" if there is none now. */
static const char *next(ipc_subscription *subscription, int64_t timeout_ns)
{
    static char text[64];
    ssize_t size = ipc_subscription_receive(subscription, text, sizeof(text) - 1, NULL, timeout_ns);
    EXPECT(size >= 0 || size == -EAGAIN);
    text[size > 0 ? size : 0] = '\0';
    return text;
}

static void say(ipc_publisher *publisher, const char *text)
{
    EXPECT_EQ(ipc_publisher_publish(publisher, text, strlen(text)), 0);
}

#define EXPECT_NEXT(subscription, text) EXPECT(strcmp(next((subscription), IPC_FOREVER), (text)) == 0)
#define EXPECT_NONE(subscription)       EXPECT(strcmp(next((subscription), 0), "") == 0)

static void test_wildcards(void **state)
{
    static const struct {
        const char *pattern;
        unsigned matches; /* one bit for each topic */
    } patterns[] = {{"a.b.c", 1},
                    {"a.*.c", 1 | 2},
                    {"a.>", 1 | 2 | 4},
                    {">", 1 | 2 | 4 | 8 | 16},
                    {"*", 8},
                    {"*.*", 4 | 16},
                    {"*.>", 1 | 2 | 4 | 16},
                    {"a.b.c.>", 0},
                    {"*.b.*", 1},
                    {"z", 8},
                    {"A.b.c", 0}};
    static const char *const topics[] = {"a.b.c", "a.x.c", "a.b", "z", "q.q"};
    ipc_connection *in = connection_new(), *out = connection_new();
    enum { PATTERNS = sizeof(patterns) / sizeof(patterns[0]), TOPICS = sizeof(topics) / sizeof(topics[0]) };
    ipc_subscription *subscriptions[PATTERNS];
    ipc_publisher *publishers[TOPICS];
    (void)state;
    /* The first two topics are there before the subscriptions, the others appear later. */
    for (int i = 0; i < TOPICS; i++) {
        for (int j = 0; i == 2 && j < PATTERNS; j++)
            subscriptions[j] =
                subscription_new(in, patterns[j].pattern, IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
        publishers[i] = publisher_new(out, topics[i], 4096, 0);
        say(publishers[i], topics[i]);
    }
    for (int j = 0; j < PATTERNS; j++) {
        unsigned wanted = (unsigned)__builtin_popcount(patterns[j].matches), seen = 0;
        EXPECT_EQ(ipc_subscription_wait_writers(subscriptions[j], wanted, IPC_FOREVER), wanted);
        for (unsigned n = 0; n < wanted; n++) {
            struct ipc_message message;
            char text[64];
            ssize_t size =
                ipc_subscription_receive(subscriptions[j], text, sizeof(text), &message, IPC_FOREVER);
            EXPECT(size > 0 && (size_t)size == strlen(message.topic) &&
                   memcmp(text, message.topic, (size_t)size) == 0);
            for (int i = 0; i < TOPICS; i++)
                if (strcmp(message.topic, topics[i]) == 0)
                    seen |= 1u << i;
        }
        EXPECT_EQ(seen, patterns[j].matches);
        EXPECT_NONE(subscriptions[j]);
        subscription_end(subscriptions[j]);
    }
    for (int i = 0; i < TOPICS; i++)
        publisher_end(publishers[i]);
    ipc_connection_close(in);
    ipc_connection_close(out);
}

static void test_names(void **state)
{
    static const char *const bad[] = {"", ".", "a.", ".a", "a..b", "a b", "a\tb", "\xc3\xa9", "a\x7f"};
    static const char *const bad_topics[] = {"*", ">", "a.*", "a.>", "a*"};
    static const char *const bad_patterns[] = {">.a", "a.>.b", "a*", "a.b>", "**"};
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = NULL;
    ipc_subscription *subscription = NULL;
    struct ipc_error error;
    char name[300];
    (void)state;
#define BAD(call)                                           \
 do {                                                       \
  error = (struct ipc_error){0};                            \
  EXPECT_EQ((call), -EINVAL);                               \
  EXPECT(error.code == -EINVAL && strlen(error.text) > 10); \
 } while (0)
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        BAD(ipc_publisher_open(&publisher, connection, bad[i], NULL, &error));
        BAD(ipc_subscription_open(&subscription, connection, bad[i], NULL, &error));
    }
    for (size_t i = 0; i < sizeof(bad_topics) / sizeof(bad_topics[0]); i++)
        BAD(ipc_publisher_open(&publisher, connection, bad_topics[i], NULL, &error));
    for (size_t i = 0; i < sizeof(bad_patterns) / sizeof(bad_patterns[0]); i++)
        BAD(ipc_subscription_open(&subscription, connection, bad_patterns[i], NULL, &error));
    BAD(ipc_publisher_open(&publisher, connection, NULL, NULL, &error));
    BAD(ipc_subscription_open(&subscription, connection, NULL, NULL, &error));
    memset(name, 'n', sizeof(name));
    name[256] = '\0';
    BAD(ipc_publisher_open(&publisher, connection, name, NULL, &error));
    BAD(ipc_subscription_open(&subscription, connection, name, NULL, &error));
    name[255] = '\0';
    publisher = publisher_new(connection, name, 4096, 0);
    subscription = subscription_new(connection, name, IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    publisher_end(publisher);
    subscription_end(subscription);
    publisher = NULL;
    for (int i = 0; i < 65; i++)
        name[i] = i % 2 ? '.' : 'l';
    name[65] = '\0';
    BAD(ipc_publisher_open(&publisher, connection, name, NULL, &error));
    name[63] = '\0'; /* 32 levels */
    publisher = publisher_new(connection, name, 4096, 0);
    publisher_end(publisher);
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    subscription = NULL;
    options.flags = 0x100;
    BAD(ipc_subscription_open(&subscription, connection, "a", &options, &error));
    options.flags = IPC_SUBSCRIPTION_TAP;
    options.slow = IPC_SLOW_BLOCK;
    BAD(ipc_subscription_open(&subscription, connection, "a", &options, &error));
    options.slow = (enum ipc_slow)3;
    BAD(ipc_subscription_open(&subscription, connection, "a", &options, &error));
    EXPECT(!subscription);
    ipc_connection_close(connection);
}

/* A publisher that is busy with something else: what it left is read, and its next message wakes. */
struct idle {
    int published, resume, got;
};

static void be_idle(void *argument)
{
    struct idle *idle = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "idle", 4096, 0);
    say(publisher, "one");
    say(publisher, "two");
    say(publisher, "three");
    gate_open(idle->published);
    gate_wait(idle->resume); /* not in the library */
    say(publisher, "four");
    gate_wait(idle->resume);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void sleep_for_four(void *argument)
{
    struct idle *idle = argument;
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription =
        subscription_new(connection, "idle", IPC_START_LAST, IPC_SLOW_DROP_OLDEST, 0);
    EXPECT_NEXT(subscription, "three");
    gate_open(idle->got);
    EXPECT_NEXT(subscription, "four");
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_idle_publisher(void **state)
{
    struct idle idle = {gate_new(), gate_new(), gate_new()};
    ipc_connection *connection = connection_new();
    (void)state;
    pid_t child = child_start(be_idle, &idle);
    gate_wait(idle.published);
    ipc_subscription *oldest =
        subscription_new(connection, "idle", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
    pid_t sleeper = child_start(sleep_for_four, &idle);
    ipc_subscription *newest = subscription_new(connection, "*", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    EXPECT_NEXT(oldest, "one");
    EXPECT_NEXT(oldest, "two");
    EXPECT_NEXT(oldest, "three");
    EXPECT_NONE(oldest);
    EXPECT_EQ(ipc_subscription_wait_writers(newest, 1, IPC_FOREVER), 1);
    EXPECT_NONE(newest);
    gate_wait(idle.got);
    gate_open(idle.resume);
    EXPECT_NEXT(oldest, "four");
    EXPECT_NEXT(newest, "four");
    child_done(sleeper);
    gate_open(idle.resume);
    child_done(child);
    subscription_end(oldest);
    subscription_end(newest);
    ipc_connection_close(connection);
    close(idle.published);
    close(idle.resume);
    close(idle.got);
}

static void test_starts(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    ipc_publisher *publisher = publisher_new(out, "start", 4096, 0);
    ipc_subscription *subscription;
    char text[64];
    (void)state;
    /* An empty lane: each start is the same. */
    for (int start = IPC_START_NEXT; start <= IPC_START_OLDEST; start++) {
        subscription = subscription_new(in, "start", (enum ipc_start)start, IPC_SLOW_DROP_OLDEST, 0);
        EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
        EXPECT_NONE(subscription);
        subscription_end(subscription);
    }
    /* Many laps; the oldest ones are gone. */
    for (int i = 0; i < 1000; i++) {
        snprintf(text, sizeof(text), "message %d of 1000, with some words behind it", i);
        say(publisher, text);
    }
    for (int admitted = 0; admitted < 2; admitted++) {
        unsigned readers = 0;
        subscription = subscription_new(in, "start", IPC_START_LAST, IPC_SLOW_DROP_OLDEST, 0);
        if (admitted)
            EXPECT_EQ(ipc_publisher_wait_readers(publisher, ++readers, IPC_FOREVER), readers);
        EXPECT_NEXT(subscription, "message 999 of 1000, with some words behind it");
        EXPECT_NONE(subscription);
        subscription_end(subscription);
        subscription = subscription_new(in, "start", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
        EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
        EXPECT_NONE(subscription);
        say(publisher, "and one more");
        EXPECT_NEXT(subscription, "and one more");
        subscription_end(subscription);
        subscription = subscription_new(in, "start", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
        unsigned count = 0;
        while (strncmp(next(subscription, IPC_FOREVER), "and", 3) != 0)
            count++;
        EXPECT(count > 30 && count < 100);
        subscription_end(subscription);
        snprintf(text, sizeof(text), "message %d of 1000, with some words behind it", 999);
        say(publisher, text);
    }
    publisher_end(publisher);
    ipc_connection_close(out);
    ipc_connection_close(in);
}

/* ---- retained lanes --------------------------------------------------------------------------------------- */

struct retain {
    const char *first, *second;
    bool dies;
};

static void leave_values(void *argument)
{
    const struct retain *retain = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "kept", 4096, IPC_PUBLISHER_RETAIN);
    say(publisher, retain->first);
    say(publisher, retain->second);
    if (retain->dies)
        raise(SIGKILL);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void test_retain(void **state)
{
    struct retain laps[] = {{"a", "b", false}, {"c", "d", true}, {"e", "f", false}};
    ipc_connection *connection = connection_new();
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct broker_counts before = broker_count(&broker), now;
        pid_t child = child_start(leave_values, &laps[i]);
        EXPECT_EQ(wait_child(child), laps[i].dies ? 128 + SIGKILL : 0);
        do
            now = broker_count(&broker);
        while (now.sessions != before.sessions);
        if (i > 0) /* the newest one takes the place of the one before */
            EXPECT_EQ(now.segments, before.segments);
        for (int again = 0; again < 2; again++) {
            ipc_subscription *last =
                subscription_new(connection, "kept", IPC_START_LAST, IPC_SLOW_DROP_OLDEST, 0);
            ipc_subscription *all = subscription_new(connection, "*", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
            ipc_subscription *new = subscription_new(connection, "kept", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
            EXPECT_NEXT(last, laps[i].second);
            EXPECT_NEXT(all, laps[i].first);
            EXPECT_NEXT(all, laps[i].second);
            EXPECT_NONE(last);
            EXPECT_NONE(all);
            EXPECT_NONE(new);
            subscription_end(last);
            subscription_end(all);
            subscription_end(new);
        }
    }
    ipc_connection_close(connection);
}

/* ---- self, taps, counts ------------------------------------------------------------------------------------- */

static void test_self_and_taps(void **state)
{
    ipc_connection *one = connection_new(), *two = connection_new();
    ipc_publisher *publisher = publisher_new(one, "who.reads", 4096, 0);
    struct ipc_publisher_stats stats;
    (void)state;
    ipc_subscription *deaf = subscription_new(one, "who.*", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
    ipc_subscription *self =
        subscription_new(one, "who.*", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_SELF);
    ipc_subscription *tap =
        subscription_new(two, "who.*", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_TAP);
    EXPECT_EQ(ipc_subscription_wait_writers(tap, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    say(publisher, "hear");
    EXPECT_NEXT(self, "hear");
    EXPECT_NEXT(tap, "hear");
    EXPECT_NONE(deaf);
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.readers, 1);
    EXPECT_EQ(stats.published, 1);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, 0), -ETIMEDOUT);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_wait_writers(deaf, 1, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_wait_writers(deaf, 0, 0), 0);
    publisher_end(publisher);
    subscription_end(deaf);
    subscription_end(self);
    subscription_end(tap);
    ipc_connection_close(one);
    ipc_connection_close(two);
}

static void test_events(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    struct ipc_event event;
    struct ipc_peer writer, reader;
    (void)state;
    EXPECT_EQ(ipc_connection_identity(out, &writer), 0);
    EXPECT_EQ(ipc_connection_identity(in, &reader), 0);
    ipc_publisher *publisher = publisher_new(out, "event", 4096, 0);
    for (int i = 0; i < 200; i++) {
        ipc_subscription *subscription =
            subscription_new(in, "event", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
        EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
        EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
        subscription_end(subscription);
        struct ipc_publisher_stats stats;
        do
            EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
        while (stats.readers > 0);
    }
    EXPECT_EQ(ipc_connection_next_event(out, &event), -EOVERFLOW); /* 400 events, of which 256 are kept */
    unsigned joined = 0, left = 0;
    while (ipc_connection_next_event(out, &event) == 1) {
        EXPECT(strcmp(event.topic, "event") == 0);
        EXPECT_EQ(event.peer.session, reader.session);
        joined += event.kind == IPC_EVENT_READER_JOINED && event.reason == IPC_REASON_NONE;
        left += event.kind == IPC_EVENT_READER_LEFT && event.reason == IPC_REASON_CLOSED;
    }
    EXPECT_EQ(joined, 128);
    EXPECT_EQ(left, 128);
    joined = 0;
    while (ipc_connection_next_event(in, &event) == 1) {
        EXPECT_EQ(event.kind, IPC_EVENT_WRITER_JOINED);
        EXPECT_EQ(event.peer.session, writer.session);
        joined++;
    }
    EXPECT_EQ(joined, 200);
    publisher_end(publisher);
    ipc_connection_close(out);
    ipc_connection_close(in);
}

/* Whoever subscribed first gets all of a publisher that starts at once, and of one that is gone before anybody looked. */
static void test_hasty_publisher(void **state)
{
    static const enum ipc_start starts[] = {IPC_START_NEXT, IPC_START_LAST, IPC_START_OLDEST};
    ipc_connection *in = connection_new();
    ipc_subscription *subscriptions[3];
    (void)state;
    for (int i = 0; i < 3; i++)
        subscriptions[i] =
            subscription_new(in, "hasty.*", starts[i], i ? IPC_SLOW_DROP_OLDEST : IPC_SLOW_BLOCK, 0);
    for (int round = 0; round < 20; round++) {
        ipc_connection *out = connection_new();
        ipc_publisher *publisher = publisher_new(out, "hasty.one", 65536, 0);
        publish_numbers(publisher, 0, 100, 64);
        ipc_connection_close(out);
        for (int i = 0; i < 3; i++)
            receive_numbers(subscriptions[i], 0, 100, 64);
    }
    for (int i = 0; i < 3; i++)
        subscription_end(subscriptions[i]);
    ipc_connection_close(in);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_wildcards), CASE(test_names),         CASE(test_idle_publisher), CASE(test_starts),
        CASE(test_retain),    CASE(test_self_and_taps), CASE(test_events),         CASE(test_hasty_publisher),
    };
    return cmocka_run_group_tests_name("topic_match", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
