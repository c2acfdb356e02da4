/* SPDX-License-Identifier: Apache-2.0
 *
 * Topics, one publisher and one subscriber: every way to publish, every way to receive, sizes, headers.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "proto/limits.h"
#include "tests/support/broker.h"

struct pair {
    ipc_connection *out, *in;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
};

static struct pair pair_new(uint32_t ring_size, unsigned flags, enum ipc_slow slow)
{
    struct pair pair = {.out = connection_new(), .in = connection_new()};
    pair.publisher = publisher_new(pair.out, "basic", ring_size, flags);
    pair.subscription = subscription_new(pair.in, "basic", IPC_START_OLDEST, slow, 0);
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

static ssize_t receive(struct pair *pair, void *buffer, size_t capacity, struct ipc_message *message)
{
    return ipc_subscription_receive(pair->subscription, buffer, capacity, message, IPC_FOREVER);
}

static void test_sizes(void **state)
{
    struct pair pair = pair_new(65536, 0, IPC_SLOW_BLOCK);
    struct ipc_publisher_stats stats;
    unsigned char out[65536], in[65536];
    struct ipc_message message;
    uint64_t sequence = 0;
    (void)state;
    EXPECT_EQ(ipc_publisher_stats(pair.publisher, &stats), 0);
    EXPECT_EQ(stats.ring_size, 65536);
    EXPECT_EQ(stats.message_size_max, 65536 / 2 - 8);
    const size_t max = stats.message_size_max;
    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (unsigned char)(i * 7 + i / 251);
    for (int lap = 0; lap < 3; lap++) {
        for (size_t size = 0; size <= max; size += size < 300 ? 1 : size < max - 100 ? max / 7 : 1) {
            EXPECT_EQ(ipc_publisher_publish(pair.publisher, size ? out : NULL, size), 0);
            EXPECT_EQ(receive(&pair, in, sizeof(in), &message), size);
            EXPECT_EQ(memcmp(in, out, size), 0);
            EXPECT_EQ(message.sequence, sequence++);
            EXPECT_EQ(message.size, size);
            EXPECT(message.data == in && message.lost == 0 && message.timestamp_ns == 0);
            EXPECT(!message.content_type && !message.fields);
            EXPECT(strcmp(message.topic, "basic") == 0);
        }
        EXPECT_EQ(ipc_publisher_publish(pair.publisher, out, max), 0);
        EXPECT_EQ(receive(&pair, in, max, &message), max);
        sequence++;
    }
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, out, max + 1), -EMSGSIZE);
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, NULL, 1), -EINVAL);
    EXPECT_EQ(ipc_subscription_receive(pair.subscription, in, sizeof(in), NULL, 0), -EAGAIN);
    EXPECT_EQ(ipc_subscription_receive(pair.subscription, in, sizeof(in), NULL, 1000000), -ETIMEDOUT);
    pair_end(&pair);
}

/* Nothing that is published after a subscription was opened is missed, though nobody waited for anybody. */
static void test_open_is_joined(void **state)
{
    ipc_connection *out = connection_new(), *in = connection_new();
    ipc_publisher *publisher = publisher_new(out, "basic", 0, 0);
    uint64_t sequence = 0;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        ipc_subscription *subscription =
            subscription_new(in, "basic", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
        struct ipc_message message;
        char buffer[1];
        for (int k = 0; k < 2; k++)
            EXPECT_EQ(ipc_publisher_publish(publisher, "x", 1), 0);
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, IPC_FOREVER), 1);
        EXPECT_EQ(message.sequence, sequence);
        EXPECT_EQ(message.lost, 0);
        sequence += 2;
        subscription_end(subscription);
    }
    publisher_end(publisher);
    ipc_connection_close(out);
    ipc_connection_close(in);
}

static void test_size_options(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error;
    struct ipc_publisher_stats stats;
    ipc_publisher *publisher = NULL;
    char buffer[200] = "";
    (void)state;
    options.message_size_max = 100;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), 0);
    EXPECT_EQ(ipc_publisher_publish(publisher, buffer, 100), 0);
    EXPECT_EQ(ipc_publisher_publish(publisher, buffer, 101), -EMSGSIZE);
    publisher_end(publisher);
    options.message_size_max = 1000000; /* decides the ring */
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), 0);
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.ring_size, 1 << 21);
    EXPECT_EQ(stats.message_size_max, 1000000);
    publisher_end(publisher);
    publisher = NULL;
    options.ring_size = 1 << 20;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "2000016");
    options.ring_size = IPC_MAX_RING_SIZE + 1;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "268435456");
    options.ring_size = 0;
    options.message_size_max = IPC_MAX_MESSAGE_SIZE + 1;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "134217720");
    options.message_size_max = 0;
    options.flags = 0x80;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), -EINVAL);
    EXPECT(!publisher);
    /* A large ring is made by another thread of the core. */
    options.flags = 0;
    options.ring_size = 1 << 25;
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "size", &options, &error), 0);
    EXPECT_EQ(ipc_publisher_publish(publisher, buffer, sizeof(buffer)), 0);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void test_gather(void **state)
{
    struct pair pair = pair_new(4096, 0, IPC_SLOW_DROP_OLDEST);
    char in[64];
    struct iovec pieces[] = {{(char[]){"one "}, 4}, {NULL, 0}, {(char[]){"two "}, 4}, {(char[]){"three"}, 5}};
    (void)state;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, pieces, 4, NULL), 0);
    EXPECT_EQ(receive(&pair, in, sizeof(in), NULL), 13);
    EXPECT_EQ(memcmp(in, "one two three", 13), 0);
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, NULL), 0);
    EXPECT_EQ(receive(&pair, in, sizeof(in), NULL), 0);
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, pieces, -1, NULL), -EINVAL);
    pieces[0].iov_len = 4096;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, pieces, 4, NULL), -EMSGSIZE);
    pieces[0].iov_len = SIZE_MAX;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, pieces, 4, NULL), -EMSGSIZE);
    pair_end(&pair);
}

#define BATCH 5000
static void test_batch(void **state)
{
    static uint64_t numbers[BATCH];
    static struct iovec out[BATCH];
    (void)state;
    for (unsigned flags = 0; flags <= IPC_PUBLISHER_TIMESTAMP; flags += IPC_PUBLISHER_TIMESTAMP) {
        struct pair pair = pair_new(1 << 20, flags, IPC_SLOW_BLOCK);
        uint64_t in[64], next = 0;
        struct ipc_message messages[40];
        for (uint64_t i = 0; i < BATCH; i++) {
            numbers[i] = i;
            out[i] = (struct iovec){&numbers[i], sizeof(numbers[i])};
        }
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, out, BATCH, 0), BATCH);
        while (next < BATCH) {
            ssize_t got =
                ipc_subscription_receive_batch(pair.subscription, in, sizeof(in), messages, 40, IPC_FOREVER);
            EXPECT(got > 0);
            for (ssize_t i = 0; i < got; i++) {
                EXPECT_EQ(messages[i].size, 8);
                EXPECT_EQ(messages[i].sequence, next);
                EXPECT_EQ(*(const uint64_t *)messages[i].data, next++);
                EXPECT_EQ(messages[i].timestamp_ns != 0, flags != 0);
            }
        }
        EXPECT_EQ(ipc_subscription_receive_batch(pair.subscription, in, sizeof(in), messages, 40, 0),
                  -EAGAIN);
        out[1].iov_len = 1 << 21;
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, out, 2, 0), 1);
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, out + 1, 1, 0), -EMSGSIZE);
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, out, 0, 0), -EINVAL);
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, out, 1, 0x40), -EINVAL);
        EXPECT_EQ(receive(&pair, in, 8, NULL), 8);
        pair_end(&pair);
    }
}

static void test_small_buffer(void **state)
{
    struct pair pair = pair_new(4096, 0, IPC_SLOW_DROP_OLDEST);
    unsigned char in[128];
    struct ipc_message message = {0}, messages[4];
    (void)state;
    publish_numbers(pair.publisher, 0, 2, 100);
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(receive(&pair, in, 99, &message), -EMSGSIZE);
        EXPECT_EQ(message.size, 100);
    }
    EXPECT_EQ(receive(&pair, NULL, 0, NULL), -EMSGSIZE);
    EXPECT_EQ(ipc_subscription_receive_batch(pair.subscription, in, 99, messages, 4, 0), -EMSGSIZE);
    EXPECT_EQ(messages[0].size, 100);
    EXPECT_EQ(ipc_subscription_receive_batch(pair.subscription, in, 128, messages, 4, 0), 1);
    EXPECT(message_holds(messages[0].data, messages[0].size, 0));
    receive_numbers(pair.subscription, 1, 2, 100);
    pair_end(&pair);
}

static void test_loan(void **state)
{
    struct pair pair = pair_new(65536, 0, IPC_SLOW_BLOCK);
    unsigned char in[32768];
    void *place = NULL, *second = NULL;
    (void)state;
    EXPECT_EQ(ipc_publisher_commit(pair.publisher, 0), -EINVAL);
    EXPECT_EQ(ipc_publisher_abort(pair.publisher), -EINVAL);
    for (uint64_t i = 0; i < 100; i++) {
        EXPECT_EQ(ipc_publisher_loan(pair.publisher, 20000, NULL, &place), 0);
        memset(place, 0xff, 20000); /* what is not committed does not matter */
        EXPECT_EQ(ipc_publisher_loan(pair.publisher, 8, NULL, &second), -EBUSY);
        EXPECT_EQ(ipc_publisher_publish(pair.publisher, in, 8), -EBUSY);
        EXPECT_EQ(ipc_publisher_publish_batch(pair.publisher, &(struct iovec){in, 8}, 1, 0), -EBUSY);
        EXPECT(second == NULL);
        EXPECT_EQ(ipc_publisher_commit(pair.publisher, 20001), -EINVAL);
        EXPECT_EQ(ipc_subscription_receive(pair.subscription, in, sizeof(in), NULL, 0), -EAGAIN);
        if (i % 3 == 0) {
            EXPECT_EQ(ipc_publisher_abort(pair.publisher), 0);
            EXPECT_EQ(ipc_publisher_loan(pair.publisher, 1000, NULL, &place), 0);
        }
        message_fill(place, 1000, i);
        EXPECT_EQ(ipc_publisher_commit(pair.publisher, 1000), 0);
        EXPECT_EQ(ipc_publisher_commit(pair.publisher, 1000), -EINVAL);
        EXPECT_EQ(receive(&pair, in, sizeof(in), NULL), 1000);
        EXPECT(message_holds(in, 1000, i));
    }
    EXPECT_EQ(ipc_publisher_loan(pair.publisher, 32768 - 7, NULL, &second), -EMSGSIZE);
    EXPECT_EQ(ipc_publisher_loan(pair.publisher, 32768 - 8, NULL, &second), 0);
    EXPECT_EQ(ipc_publisher_commit(pair.publisher, 0), 0);
    EXPECT_EQ(receive(&pair, in, 0, NULL), 0);
    EXPECT_EQ(ipc_publisher_loan(pair.publisher, 10, NULL, &second), 0);
    pair_end(&pair); /* closing aborts it */
}

/* ---- headers -------------------------------------------------------------------------------------------------- */

static uint64_t realtime(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void check_headers(const struct ipc_message *message, unsigned count, uint64_t before)
{
    const char *name;
    const void *value;
    size_t position = 0, name_size, size;
    unsigned seen = 0;
    EXPECT(message->timestamp_ns >= before && message->timestamp_ns <= realtime());
    EXPECT(strcmp(message->content_type, "text/plain") == 0);
    EXPECT_EQ(ipc_message_header(message, "first", &value, &size), 0);
    EXPECT(size == 3 && memcmp(value, "\0b\0", 3) == 0);
    EXPECT_EQ(ipc_message_header(message, "empty", &value, &size), 0);
    EXPECT_EQ(size, 0);
    EXPECT_EQ(ipc_message_header(message, "firs", &value, &size), -ENOENT);
    while (ipc_message_next_header(message, &position, &name, &name_size, &value, &size) == 1)
        EXPECT(name_size == 5 && memcmp(name, seen++ ? "empty" : "first", 5) == 0);
    EXPECT_EQ(seen, count);
}

static void test_headers(void **state)
{
    struct pair pair = pair_new(65536, IPC_PUBLISHER_TIMESTAMP, IPC_SLOW_BLOCK);
    struct ipc_header headers[2] = {{"first", "\0b\0", 3}, {"empty", NULL, 0}};
    struct ipc_publish how = IPC_PUBLISH_INIT;
    struct ipc_message message = {0}, messages[8];
    unsigned char in[4096];
    struct iovec piece = {(char[]){"payload"}, 7};
    uint64_t before = realtime();
    const void *value;
    size_t size;
    void *loan;
    (void)state;
    how.content_type = "text/plain";
    how.headers = headers;
    how.header_count = 2;
    for (int i = 0; i < 1000; i++) {
        EXPECT_EQ(ipc_publisher_publishv(pair.publisher, &piece, 1, &how), 0);
        EXPECT_EQ(receive(&pair, in, 6, &message), -EMSGSIZE);
        EXPECT_EQ(message.size, 7);
        EXPECT_EQ(receive(&pair, in, sizeof(in), &message), 7);
        EXPECT_EQ(memcmp(in, "payload", 7), 0);
        check_headers(&message, 2, before);
    }
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(ipc_publisher_loan(pair.publisher, 100, &how, &loan), 0);
        memcpy(loan, "on loan", 7);
        EXPECT_EQ(ipc_publisher_commit(pair.publisher, 7), 0);
    }
    EXPECT_EQ(ipc_subscription_receive_batch(pair.subscription, in, sizeof(in), messages, 3, IPC_FOREVER), 3);
    for (int i = 0; i < 3; i++) {
        check_headers(&messages[i], 2, before);
        EXPECT(messages[i].size == 7 && memcmp(messages[i].data, "on loan", 7) == 0);
    }
    EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 8, IPC_FOREVER), 5);
    for (int i = 0; i < 5; i++)
        check_headers(&messages[i], 2, before);
    EXPECT_EQ(ipc_subscription_release(pair.subscription, 5), 0);
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, "x", 1), 0);
    EXPECT_EQ(receive(&pair, in, sizeof(in), &message), 1);
    EXPECT(message.timestamp_ns >= before && !message.content_type);
    EXPECT_EQ(ipc_message_header(&message, "first", &value, &size), -ENOENT);
    pair_end(&pair);
}

static void test_header_limits(void **state)
{
    struct pair pair = pair_new(1 << 20, 0, IPC_SLOW_BLOCK);
    static char text[70000], in[1 << 19];
    struct ipc_header headers[65];
    struct ipc_publish how = IPC_PUBLISH_INIT;
    struct ipc_message message;
    const void *value;
    size_t size;
    (void)state;
    memset(text, 'h', sizeof(text) - 1);
    for (int i = 0; i < 65; i++)
        headers[i] = (struct ipc_header){"n", text, 100};
    how.headers = headers;
    how.header_count = 64;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), 0);
    EXPECT_EQ(receive(&pair, in, 0, &message), 0);
    how.header_count = 65;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    how.header_count = 1;
    headers[0].value_size = 65536;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    headers[0].value_size = 65535; /* with its frame, more than a block may have */
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    headers[0].value_size = IPC_MAX_HEADERS_SIZE - 8 - 4 - 1;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), 0);
    EXPECT_EQ(receive(&pair, in, 0, &message), 0);
    EXPECT_EQ(ipc_message_header(&message, "n", &value, &size), 0);
    EXPECT(size == headers[0].value_size && memcmp(value, text, size) == 0);
    headers[0].value_size++;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    headers[0] = (struct ipc_header){text + sizeof(text) - 256, "v", 1};
    EXPECT_EQ(strlen(headers[0].name), 255);
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), 0);
    EXPECT_EQ(receive(&pair, in, 0, &message), 0);
    EXPECT_EQ(ipc_message_header(&message, headers[0].name, &value, &size), 0);
    headers[0].name--;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    headers[0].name = "";
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -EINVAL);
    headers[0] = (struct ipc_header){"n", NULL, 1};
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -EINVAL);
    how.header_count = 0;
    how.content_type = text + sizeof(text) - 256;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), 0);
    EXPECT_EQ(receive(&pair, in, 0, &message), 0);
    EXPECT_EQ(strlen(message.content_type), 255);
    how.content_type--;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), -E2BIG);
    how.content_type = "";
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, NULL, 0, &how), 0);
    EXPECT_EQ(receive(&pair, in, 0, &message), 0);
    EXPECT(message.content_type && !*message.content_type);
    /* Headers are part of the message: together at most what a message may have. */
    struct iovec piece = {in, (1 << 19) - 8 - 16};
    how.content_type = "abcd";
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, &piece, 1, &how), 0);
    EXPECT_EQ(receive(&pair, in, sizeof(in), &message), piece.iov_len);
    piece.iov_len++;
    EXPECT_EQ(ipc_publisher_publishv(pair.publisher, &piece, 1, &how), -EMSGSIZE);
    pair_end(&pair);
}

/* ---- in place ----------------------------------------------------------------------------------------------- */

static void test_take(void **state)
{
    struct pair pair = pair_new(1 << 18, 0, IPC_SLOW_BLOCK);
    static struct ipc_message messages[2000];
    struct ipc_publish how = IPC_PUBLISH_INIT;
    unsigned char in[64];
    struct iovec piece = {in, sizeof(in)};
    uint64_t published = 0, taken = 0;
    (void)state;
    EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 0, 0), -EINVAL);
    EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 1, 0), -EAGAIN);
    EXPECT_EQ(ipc_subscription_release(pair.subscription, 1), -EINVAL);
    for (int lap = 0; lap < 20; lap++) {
        publish_numbers(pair.publisher, published, published + 1500, 64);
        published += 1500;
        size_t held = 0;
        while (held < 1024) {
            ssize_t got = ipc_subscription_take(pair.subscription, messages + held, 700, IPC_FOREVER);
            EXPECT(got > 0);
            held += (size_t)got;
        }
        EXPECT_EQ(held, 1024);
        EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 1, 0), -EBUSY);
        for (size_t i = 0; i < held; i++) {
            EXPECT_EQ(messages[i].sequence, taken + i);
            EXPECT(message_holds(messages[i].data, messages[i].size, taken + i));
        }
        EXPECT_EQ(ipc_subscription_release(pair.subscription, 1025), -EINVAL);
        EXPECT_EQ(ipc_subscription_release(pair.subscription, 24), 0);
        EXPECT_EQ(ipc_subscription_release(pair.subscription, 1000), 0);
        taken += 1024;
        receive_numbers(pair.subscription, taken, published, 64);
        taken = published;
    }
    /* What is held keeps its place: the publisher has room for no more than the rest. */
    message_fill(in, sizeof(in), published);
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, in, sizeof(in)), 0);
    EXPECT_EQ(ipc_subscription_take(pair.subscription, messages, 1, IPC_FOREVER), 1);
    how.flags = IPC_PUBLISH_REJECT;
    int result;
    while ((result = ipc_publisher_publishv(pair.publisher, &piece, 1, &how)) == 0) {
        result = (int)ipc_subscription_receive(pair.subscription, in, sizeof(in), NULL, 0);
        EXPECT_EQ(result, 64);
    }
    EXPECT_EQ(result, -EAGAIN);
    EXPECT(message_holds(messages[0].data, messages[0].size, published));
    EXPECT_EQ(ipc_subscription_release(pair.subscription, 1), 0);
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(ipc_publisher_publishv(pair.publisher, &piece, 1, &how), 0);
    pair_end(&pair);
}

static void test_take_needs_block(void **state)
{
    struct pair pair = pair_new(4096, 0, IPC_SLOW_DROP_OLDEST);
    struct ipc_message message;
    (void)state;
    EXPECT_EQ(ipc_subscription_take(pair.subscription, &message, 1, 0), -EOPNOTSUPP);
    pair_end(&pair);
}

/* The sender is what the broker saw, whatever the sender says. */
static void test_sender(void **state)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_message message;
    struct ipc_peer self;
    ipc_connection *out, *in = connection_new();
    unsigned char buffer[64];
    (void)state;
    options.name = "root";
    EXPECT_EQ(ipc_connection_open(&out, NULL, &options, NULL), 0);
    EXPECT_EQ(ipc_connection_identity(out, &self), 0);
    ipc_publisher *publisher = publisher_new(out, "sender", 0, 0);
    ipc_subscription *subscription =
        subscription_new(in, "sender", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
    memset(buffer, 0xee, sizeof(buffer));
    EXPECT_EQ(ipc_publisher_publish(publisher, buffer, sizeof(buffer)), 0);
    EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, IPC_FOREVER), 64);
    EXPECT_EQ(memcmp(message.sender, &self, sizeof(self)), 0);
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(out);
    ipc_connection_close(in);
}

static int tests(void)
{
    const struct CMUnitTest list[] = {
        CASE(test_sizes), CASE(test_size_options),     CASE(test_gather),  CASE(test_batch),
        CASE(test_loan),  CASE(test_small_buffer),     CASE(test_headers), CASE(test_header_limits),
        CASE(test_take),  CASE(test_take_needs_block), CASE(test_sender),  CASE(test_open_is_joined),
    };
    return cmocka_run_group_tests_name("topic_basic", list, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
