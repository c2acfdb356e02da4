/* SPDX-License-Identifier: Apache-2.0
 *
 * Envelopes: what is packed comes out again; pieces of several senders are kept apart; what is bad is told and counted.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <ipc/mq.h>

static unsigned char packed[262144];

static ipc_mq *mq_new(mqd_t mqueue, size_t message_size_max)
{
    struct ipc_mq_options options = IPC_MQ_OPTIONS_INIT;
    ipc_mq *mq;
    options.message_size_max = message_size_max;
    assert_int_equal(ipc_mq_open(&mq, mqueue, &options), 0);
    return mq;
}

/* An mqueue that has no name any more. */
static mqd_t mqueue_new(long messages, long message_size, int flags)
{
    const struct mq_attr attributes = {.mq_maxmsg = messages, .mq_msgsize = message_size};
    char name[64];
    snprintf(name, sizeof(name), "/ipct-%d-unit", (int)getpid());
    mqd_t mqueue = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600, &attributes);
    assert_true(mqueue >= 0);
    assert_int_equal(mq_unlink(name), 0);
    return mqueue;
}

static void test_everything(void **state)
{
    const struct ipc_header headers[] = {{"one", "1", 1}, {"none", NULL, 0}};
    const struct ipc_mq_message given = {.size = sizeof(given),
                                         .kind = IPC_MQ_REPLY,
                                         .data = "body",
                                         .data_size = 4,
                                         .name = "a.b",
                                         .id = "\0id",
                                         .id_size = 3,
                                         .key = "k",
                                         .key_size = 1,
                                         .reply_to = "/answers",
                                         .content_type = "text/plain",
                                         .headers = headers,
                                         .header_count = 2,
                                         .ttl_ns = UINT64_MAX,
                                         .delay_ns = 1,
                                         .attempt = 3,
                                         .code = -7,
                                         .text = "why"};
    struct ipc_mq_message got;
    const void *value;
    size_t value_size;
    ipc_mq *mq = mq_new((mqd_t)-1, 1024);
    (void)state;
    ssize_t size = ipc_mq_pack(&given, packed, sizeof(packed));
    assert_true(size > 0);
    assert_int_equal(ipc_mq_pack(&given, NULL, 0), size);
    assert_int_equal(ipc_mq_pack(&given, packed, (size_t)size - 1), -EMSGSIZE);
    assert_int_equal(ipc_mq_unpack(mq, packed, (size_t)size, &got), 1);
    assert_int_equal(got.kind, IPC_MQ_REPLY);
    assert_int_equal(got.data_size, 4);
    assert_memory_equal(got.data, "body", 4);
    assert_string_equal(got.name, "a.b");
    assert_int_equal(got.id_size, 3);
    assert_memory_equal(got.id, "\0id", 3);
    assert_int_equal(got.key_size, 1);
    assert_memory_equal(got.key, "k", 1);
    assert_string_equal(got.reply_to, "/answers");
    assert_string_equal(got.content_type, "text/plain");
    assert_int_equal(got.ttl_ns, UINT64_MAX);
    assert_int_equal(got.delay_ns, 1);
    assert_int_equal(got.attempt, 3);
    assert_int_equal(got.code, -7);
    assert_string_equal(got.text, "why");
    assert_int_equal(got.header_count, 2);
    assert_int_equal(ipc_mq_header(&got, "one", &value, &value_size), 0);
    assert_int_equal(value_size, 1);
    assert_memory_equal(value, "1", 1);
    assert_int_equal(ipc_mq_header(&got, "none", &value, &value_size), 0);
    assert_int_equal(value_size, 0);
    assert_int_equal(ipc_mq_header(&got, "two", &value, &value_size), -ENOENT);
    ipc_mq_close(mq);
}

static void test_nothing(void **state)
{
    struct ipc_mq_message empty = IPC_MQ_MESSAGE_INIT, got;
    ipc_mq *mq = mq_new((mqd_t)-1, 1024);
    (void)state;
    ssize_t size = ipc_mq_pack(&empty, packed, sizeof(packed));
    assert_int_equal(size, 5); /* the magic number alone */
    assert_int_equal(ipc_mq_unpack(mq, packed, 5, &got), 1);
    assert_int_equal(got.data_size, 0);
    assert_null(got.name);
    assert_null(got.id);
    assert_null(got.text);
    assert_int_equal(got.header_count, 0);
    ipc_mq_close(mq);
}

static void test_limits(void **state)
{
    struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT;
    struct ipc_header headers[65];
    char text[257];
    (void)state;
    memset(text, 'x', 256);
    text[256] = '\0';
    message.name = text;
    assert_int_equal(ipc_mq_pack(&message, packed, sizeof(packed)), -E2BIG);
    text[255] = '\0';
    assert_true(ipc_mq_pack(&message, packed, sizeof(packed)) > 0);
    message.id = text;
    message.id_size = 256;
    assert_int_equal(ipc_mq_pack(&message, packed, sizeof(packed)), -E2BIG);
    message.id_size = 255;
    assert_true(ipc_mq_pack(&message, packed, sizeof(packed)) > 0);
    for (unsigned i = 0; i < 65; i++)
        headers[i] = (struct ipc_header){"h", "v", 1};
    message.headers = headers;
    message.header_count = 65;
    assert_int_equal(ipc_mq_pack(&message, packed, sizeof(packed)), -E2BIG);
    message.header_count = 64;
    ssize_t size = ipc_mq_pack(&message, packed, sizeof(packed));
    assert_true(size > 0);
    ipc_mq *mq = mq_new((mqd_t)-1, 1024);
    struct ipc_mq_message got;
    assert_int_equal(ipc_mq_unpack(mq, packed, (size_t)size, &got), 1);
    assert_int_equal(got.header_count, 64);
    ipc_mq_close(mq);
}

static void test_bad(void **state)
{
    struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT, got;
    struct ipc_mq_stats stats;
    ipc_mq *mq = mq_new((mqd_t)-1, 1024);
    (void)state;
    message.data = "0123456789";
    message.data_size = 10;
    ssize_t size = ipc_mq_pack(&message, packed, sizeof(packed));
    assert_true(size > 0);
    assert_int_equal(ipc_mq_unpack(mq, "hello", 5, &got), -EBADMSG);
    assert_int_equal(ipc_mq_unpack(mq, "", 0, &got), -EBADMSG);
    assert_int_equal(ipc_mq_unpack(mq, packed, (size_t)size - 1, &got), -EBADMSG);
    packed[4]++; /* another version */
    assert_int_equal(ipc_mq_unpack(mq, packed, (size_t)size, &got), -EBADMSG);
    packed[4]--;
    /* So many headers that an honest message of that size does not take the memory. */
    memset(packed + 5, 0, 60000);
    for (size_t at = 5; at < 60000; at += 2)
        packed[at] = 0x42;
    assert_int_equal(ipc_mq_unpack(mq, packed, 59999, &got), -EBADMSG);
    assert_int_equal(ipc_mq_stats(mq, &stats), 0);
    assert_int_equal(stats.bad, 5);
    assert_int_equal(stats.received, 0);
    ipc_mq_close(mq);
}

/* Two senders at one mqueue, each in pieces; and one that leaves in the middle. */
static void test_pieces(void **state)
{
    mqd_t mqueue = mqueue_new(4, 256, O_NONBLOCK);
    ipc_mq *senders[2] = {mq_new(mqueue, 1), mq_new(mqueue, 1)}, *receiver = mq_new(mqueue, 1048576);
    struct ipc_mq_message messages[2] = {IPC_MQ_MESSAGE_INIT, IPC_MQ_MESSAGE_INIT}, got;
    static char bodies[2][100000];
    struct ipc_mq_stats stats;
    unsigned left = 2, rounds = 0;
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        for (size_t at = 0; at < sizeof(bodies[i]); at++)
            bodies[i][at] = (char)(at * 31 / 7 + i);
        messages[i].data = bodies[i];
        messages[i].data_size = sizeof(bodies[i]);
        messages[i].priority = 3;
        messages[i].name = i ? "second" : "first";
    }
    while (left > 0) {
        /* As much as there is room for, by turns; then everything is read. */
        for (unsigned i = 0; i < 2; i++) {
            int result =
                messages[i].size ? ipc_mq_send(senders[(i + rounds) % 2], &messages[(i + rounds) % 2], 0) : 0;
            assert_true(result == 0 || result == -EAGAIN);
            if (result == 0 && messages[(i + rounds) % 2].size) {
                messages[(i + rounds) % 2].data_size = 0; /* the next is a small one */
            }
        }
        rounds++;
        int result;
        while ((result = ipc_mq_receive(receiver, &got, 0)) == 0) {
            if (got.data_size == 0)
                continue;
            unsigned which = strcmp(got.name, "second") == 0;
            assert_int_equal(got.data_size, sizeof(bodies[0]));
            assert_int_equal(got.priority, 3);
            assert_memory_equal(got.data, bodies[which], sizeof(bodies[0]));
            left--;
        }
        assert_int_equal(result, -EAGAIN);
    }
    /* Another message before the first was sent: that one is never complete, and the other one comes. */
    messages[0].data_size = sizeof(bodies[0]);
    assert_int_equal(ipc_mq_send(senders[0], &messages[0], 0), -EAGAIN);
    assert_int_equal(ipc_mq_receive(receiver, &got, 0), -EAGAIN);
    messages[0].data_size = 5;
    assert_int_equal(ipc_mq_send(senders[0], &messages[0], 0), 0);
    assert_int_equal(ipc_mq_receive(receiver, &got, 0), 0);
    assert_int_equal(got.data_size, 5);
    assert_int_equal(ipc_mq_stats(receiver, &stats), 0);
    assert_int_equal(stats.open, 1);
    /* So do more than can be gathered at a time: the oldest are given up. */
    for (unsigned i = 0; i < 16; i++) {
        messages[0].data_size = sizeof(bodies[0]) - i - 1;
        assert_int_equal(ipc_mq_send(senders[0], &messages[0], 0), -EAGAIN);
        assert_int_equal(ipc_mq_receive(receiver, &got, 0), -EAGAIN);
    }
    assert_int_equal(ipc_mq_stats(receiver, &stats), 0);
    assert_int_equal(stats.open, 16);
    assert_int_equal(stats.incomplete, 1);
    assert_int_equal(stats.bad, 0);
    /* Larger than wanted. */
    ipc_mq *modest = mq_new(mqueue, 50000);
    messages[0].data_size = sizeof(bodies[0]);
    assert_int_equal(ipc_mq_send(senders[0], &messages[0], 0), -EAGAIN);
    assert_int_equal(ipc_mq_receive(modest, &got, 0), -EMSGSIZE);
    ipc_mq_close(modest);
    ipc_mq_close(receiver);
    ipc_mq_close(senders[0]);
    ipc_mq_close(senders[1]);
    mq_close(mqueue);
}

/* With and without O_NONBLOCK, and with mqueues that are too small for pieces. */
static void test_waiting(void **state)
{
    const int flags[] = {0, O_NONBLOCK};
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        mqd_t mqueue = mqueue_new(1, 64, flags[i]);
        ipc_mq *mq = mq_new(mqueue, 1024);
        struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT, got;
        char body[100] = "";
        assert_int_equal(ipc_mq_receive(mq, &got, 0), -EAGAIN);
        assert_int_equal(ipc_mq_receive(mq, &got, 1000), -ETIMEDOUT);
        assert_int_equal(ipc_mq_send(mq, &message, 0), 0);
        assert_int_equal(ipc_mq_send(mq, &message, 0), -EAGAIN);
        assert_int_equal(ipc_mq_send(mq, &message, 1000), -ETIMEDOUT);
        assert_int_equal(ipc_mq_receive(mq, &got, IPC_FOREVER), 0);
        assert_int_equal(ipc_mq_send(mq, &message, INT64_MAX), 0);
        message.data = body;
        message.data_size = sizeof(body);
        assert_int_equal(ipc_mq_send(mq, &message, 0), -EMSGSIZE);
        ipc_mq_close(mq);
        mq_close(mqueue);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything), cmocka_unit_test(test_nothing), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_bad),        cmocka_unit_test(test_pieces),  cmocka_unit_test(test_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
