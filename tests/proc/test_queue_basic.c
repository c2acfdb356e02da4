/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues in peace: everything that a producer can say of a message and a consumer can answer, and what the queue
 * makes of it.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/queue.h"

#define MS(n) (UINT64_C(1000000) * (n))

struct flow {
    ipc_connection *out, *in;
    ipc_producer *producer;
    ipc_consumer *consumer;
};

static struct flow flow_new(const struct ipc_queue_settings *settings, uint32_t prefetch)
{
    struct flow flow = {.out = connection_new(), .in = connection_new()};
    queue_new(flow.out, "work", settings);
    flow.producer = producer_new(flow.out, "work");
    flow.consumer = consumer_new(flow.in, "work", prefetch);
    return flow;
}

static void flow_end(struct flow *flow)
{
    producer_end(flow->producer);
    consumer_end(flow->consumer);
    ipc_connection_close(flow->out);
    ipc_connection_close(flow->in);
}

static void test_content_and_order(void **state)
{
    struct flow flow = flow_new(NULL, 0);
    struct ipc_peer who;
    struct ipc_queue_message message;
    struct timespec before, after;
    static const size_t sizes[] = {8, 9, 64, 100, 1000, 4096};
    uint64_t number = 0;
    (void)state;
    clock_gettime(CLOCK_REALTIME, &before);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        send_numbers(flow.producer, i * 100, i * 100 + 100, sizes[i]);
    clock_gettime(CLOCK_REALTIME, &after);
    EXPECT_EQ(ipc_connection_identity(flow.out, &who), 0);
    for (uint64_t i = 0; i < 600; i++) {
        EXPECT_EQ(receive_number(flow.consumer, &message), i);
        EXPECT_EQ(message.size, sizes[i / 100]);
        EXPECT_EQ(message.delivery, i);
        EXPECT(i == 0 || message.number > number);
        number = message.number;
        EXPECT_EQ(message.attempt, 1);
        EXPECT_EQ(message.redelivered, IPC_REDELIVERED_NOT);
        EXPECT_EQ(message.priority, 0);
        EXPECT_EQ(message.sender_session, who.session);
        EXPECT_EQ(message.sender_uid, getuid());
        EXPECT_EQ(message.sender_pid, getpid());
        EXPECT(message.accepted_ns / 1000000000 >= (uint64_t)before.tv_sec);
        EXPECT(message.accepted_ns / 1000000000 <= (uint64_t)after.tv_sec);
        EXPECT(!message.content_type && !message.reply_to && !message.id && !message.key);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    receive_nothing(flow.consumer);
    flow_end(&flow);
}

static void test_empty_and_largest(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    settings.given = IPC_QUEUE_MESSAGE_SIZE_MAX;
    settings.message_size_max = 100000;
    struct flow flow = flow_new(&settings, 0);
    struct ipc_producer_stats stats;
    struct ipc_queue_message message;
    static unsigned char big[100001], in[100001];
    (void)state;
    EXPECT_EQ(ipc_producer_stats(flow.producer, &stats), 0);
    EXPECT_EQ(stats.message_size_max, 100000);
    EXPECT_EQ(ipc_producer_send(flow.producer, NULL, 0, 0, NULL), 0);
    memset(big, 0x5a, sizeof(big));
    EXPECT_EQ(ipc_producer_send(flow.producer, big, 100000, IPC_FOREVER, NULL), 0);
    EXPECT_EQ(ipc_producer_send(flow.producer, big, 100001, IPC_FOREVER, NULL), -EMSGSIZE);
    EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_consumer_receive(flow.consumer, in, sizeof(in), &message, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_consumer_receive(flow.consumer, in, 99999, &message, IPC_FOREVER), -EMSGSIZE);
    EXPECT_EQ(message.size, 100000);
    EXPECT_EQ(ipc_consumer_receive(flow.consumer, in, 100000, &message, IPC_FOREVER), 100000);
    EXPECT(memcmp(in, big, 100000) == 0);
    EXPECT_EQ(ipc_consumer_ack_until(flow.consumer, message.delivery), 0);
    receive_nothing(flow.consumer);
    flow_end(&flow);
}

static void test_everything_in_a_message(void **state)
{
    struct flow flow = flow_new(NULL, 0);
    const struct ipc_header headers[] = {{"unit", "celsius", 7}, {"empty", NULL, 0}};
    struct iovec pieces[] = {{(void *)"one ", 4}, {NULL, 0}, {(void *)"two", 3}};
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_queue_message message;
    const void *value;
    size_t size;
    (void)state;
    how.flags = IPC_SEND_TIMESTAMP;
    how.priority = 9;
    how.ttl_ns = UINT64_MAX;
    how.id = "id\0 7";
    how.id_size = 5;
    how.key = "key";
    how.key_size = 3;
    how.reply_to = "answers.here";
    how.content_type = "text/plain";
    how.headers = headers;
    how.header_count = 2;
    EXPECT_EQ(ipc_producer_sendv(flow.producer, pieces, 3, &how, 0, NULL), 0);
    message = receive_text(flow.consumer, "one two");
    EXPECT_EQ(message.priority, 9);
    EXPECT(message.timestamp_ns > 0 && message.timestamp_ns <= message.accepted_ns + SECONDS(10));
    EXPECT(message.id_size == 5 && memcmp(message.id, "id\0 7", 5) == 0);
    EXPECT(message.key_size == 3 && memcmp(message.key, "key", 3) == 0);
    EXPECT(strcmp(message.reply_to, "answers.here") == 0);
    EXPECT(strcmp(message.content_type, "text/plain") == 0);
    EXPECT_EQ(ipc_queue_message_header(&message, "unit", &value, &size), 0);
    EXPECT(size == 7 && memcmp(value, "celsius", 7) == 0);
    EXPECT_EQ(ipc_queue_message_header(&message, "empty", &value, &size), 0);
    EXPECT_EQ(size, 0);
    EXPECT_EQ(ipc_queue_message_header(&message, "nothing", &value, &size), -ENOENT);
    EXPECT_EQ(ipc_queue_message_dead_letter(&message, &(struct ipc_dead_letter){.attempts = 0}), -ENOENT);
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);

    how.priority = 10;
    EXPECT_EQ(ipc_producer_sendv(flow.producer, pieces, 3, &how, 0, NULL), -EINVAL);
    how.priority = 0;
    how.reply_to = "no name";
    EXPECT_EQ(ipc_producer_sendv(flow.producer, pieces, 3, &how, 0, NULL), -EINVAL);
    how.reply_to = NULL;
    how.id_size = 256;
    EXPECT_EQ(ipc_producer_sendv(flow.producer, pieces, 3, &how, 0, NULL), -E2BIG);
    how.id_size = 0;
    how.delay_ns = how.deliver_at_ns = 1;
    EXPECT_EQ(ipc_producer_sendv(flow.producer, pieces, 3, &how, 0, NULL), -EINVAL);
    flow_end(&flow);
}

static uint64_t rings_of(const struct flow *flow)
{
    struct ipc_producer_stats stats;
    EXPECT_EQ(ipc_producer_stats(flow->producer, &stats), 0);
    return stats.rings;
}

/* With IPC_SEND_MORE nobody is woken, before one of these. */
static void test_more(void **state)
{
    struct flow flow = flow_new(NULL, 1000);
    struct ipc_queue_message message;
    struct ipc_send how = IPC_SEND_INIT;
    uint64_t number = 0, ticket;
    (void)state;
    how.flags = IPC_SEND_MORE;
    EXPECT_EQ(ipc_producer_ring(NULL), -EINVAL);
    enum { RUNG, NEXT, CONFIRM, FLUSH, DISPATCH, CLOSED, WAYS };
    for (int way = 0; way < WAYS; way++) {
        uint64_t rings = rings_of(&flow);
        unsigned char bytes[3][64];
        struct iovec pieces[3];
        void *room;
        for (unsigned i = 0; i < 3; i++) {
            message_fill(bytes[i], 64, number + i);
            pieces[i] = (struct iovec){bytes[i], 64};
        }
        EXPECT_EQ(ipc_producer_sendv(flow.producer, &pieces[0], 1, &how, 0, NULL), 0);
        EXPECT_EQ(ipc_producer_send_batch(flow.producer, &pieces[1], 1, &how, 0, NULL), 1);
        EXPECT_EQ(ipc_producer_loan(flow.producer, 64, &how, 0, &room), 0);
        memcpy(room, bytes[2], 64);
        EXPECT_EQ(ipc_producer_commit(flow.producer, 64, &ticket), 0);
        EXPECT_EQ(rings_of(&flow), rings);
        if (way == RUNG)
            EXPECT_EQ(ipc_producer_ring(flow.producer), 0);
        else if (way == NEXT)
            EXPECT_EQ(ipc_producer_send(flow.producer, "x", 1, 0, NULL), 0);
        else if (way == CONFIRM)
            EXPECT_EQ(ipc_producer_confirm(flow.producer, ticket, IPC_FOREVER, NULL), 0);
        else if (way == FLUSH)
            EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), 0);
        else if (way == DISPATCH)
            EXPECT_EQ(ipc_producer_dispatch(flow.producer), 0);
        else
            flow.producer = ipc_producer_close(flow.producer);
        for (unsigned i = 0; i < 3; i++, number++)
            EXPECT_EQ(receive_number(flow.consumer, &message), number);
        if (way == NEXT)
            (void)receive_text(flow.consumer, "x");
        EXPECT_EQ(ipc_consumer_ack_until(flow.consumer, message.delivery), 0);
    }
    flow.producer = producer_new(flow.out, "work");
    flow_end(&flow);
}

static void test_batches_and_loans(void **state)
{
    struct flow flow = flow_new(NULL, 1000);
    static unsigned char out[500][64], in[500 * 64];
    static struct ipc_queue_message messages[500];
    struct iovec batch[500];
    uint64_t ticket = 0, deliveries[500], number = 0;
    void *room;
    (void)state;
    for (unsigned i = 0; i < 500; i++) {
        message_fill(out[i], sizeof(out[i]), i);
        batch[i] = (struct iovec){out[i], sizeof(out[i])};
    }
    EXPECT_EQ(ipc_producer_send_batch(flow.producer, batch, 500, NULL, IPC_FOREVER, &ticket), 500);
    EXPECT_EQ(ipc_producer_confirm(flow.producer, ticket, IPC_FOREVER, NULL), 0);
    EXPECT(ipc_producer_confirmed(flow.producer) >= ticket);
    while (number < 500) {
        ssize_t n = ipc_consumer_receive_batch(flow.consumer, in, sizeof(in), messages, 500, IPC_FOREVER);
        EXPECT(n > 0);
        for (ssize_t i = 0; i < n; i++, number++) {
            EXPECT(message_holds(messages[i].data, messages[i].size, number));
            deliveries[i] = messages[i].delivery;
        }
        EXPECT_EQ(ipc_consumer_ack_many(flow.consumer, deliveries, (size_t)n), 0);
    }
    receive_nothing(flow.consumer);
    struct ipc_consumer_stats stats;
    EXPECT_EQ(ipc_consumer_stats(flow.consumer, &stats), 0);
    EXPECT_EQ(stats.received, 500);
    EXPECT(stats.answers < 500); /* neighbours are one answer */

    EXPECT_EQ(ipc_producer_loan(flow.producer, 64, NULL, 0, &room), 0);
    EXPECT_EQ(ipc_producer_loan(flow.producer, 64, NULL, 0, &room), -EBUSY);
    EXPECT_EQ(ipc_producer_send(flow.producer, "x", 1, 0, NULL), -EBUSY);
    EXPECT_EQ(ipc_producer_abort(flow.producer), 0);
    EXPECT_EQ(ipc_producer_abort(flow.producer), -EINVAL);
    EXPECT_EQ(ipc_producer_loan(flow.producer, 64, NULL, 0, &room), 0);
    message_fill(room, 40, 500);
    EXPECT_EQ(ipc_producer_commit(flow.producer, 65, NULL), -EINVAL);
    EXPECT_EQ(ipc_producer_commit(flow.producer, 40, &ticket), 0);
    EXPECT_EQ(ipc_producer_commit(flow.producer, 40, NULL), -EINVAL);
    EXPECT_EQ(ipc_producer_confirm(flow.producer, ticket + 1000, 0, NULL), -EINVAL);
    EXPECT_EQ(ipc_consumer_take(flow.consumer, messages, 500, IPC_FOREVER), 1);
    EXPECT(message_holds(messages[0].data, messages[0].size, 500));
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, messages[0].delivery), 0);
    EXPECT_EQ(ipc_consumer_release(flow.consumer, 2), -EINVAL);
    EXPECT_EQ(ipc_consumer_release(flow.consumer, 1), 0);
    flow_end(&flow);
}

/* More than the rings hold, taken in place and given back in order. */
static void test_take_round_and_round(void **state)
{
    struct flow flow = flow_new(NULL, 64);
    struct ipc_queue_message messages[32];
    uint64_t number = 0, sent = 0;
    (void)state;
    while (number < 2000) {
        if (sent < 2000) {
            send_numbers(flow.producer, sent, sent + 100, 1000);
            sent += 100;
        }
        while (number < sent) {
            ssize_t n = ipc_consumer_take(flow.consumer, messages, 32, IPC_FOREVER);
            EXPECT(n > 0);
            for (ssize_t i = 0; i < n; i++)
                EXPECT(message_holds(messages[i].data, messages[i].size, number++));
            EXPECT_EQ(ipc_consumer_ack_until(flow.consumer, messages[n - 1].delivery), 0);
            EXPECT_EQ(ipc_consumer_release(flow.consumer, (size_t)n), 0);
        }
    }
    receive_nothing(flow.consumer);
    flow_end(&flow);
}

static void test_priorities(void **state)
{
    struct flow flow = flow_new(NULL, 1);
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_queue_message message;
    char text[32];
    (void)state;
    ipc_consumer_close(flow.consumer);
    for (unsigned i = 0; i < 30; i++) {
        how.priority = i * 7 % 10;
        snprintf(text, sizeof(text), "%u of %u", i / 10, how.priority);
        send_text(flow.producer, text, &how);
    }
    flow.consumer = consumer_new(flow.in, "work", 1);
    for (unsigned i = 0; i < 30; i++) {
        snprintf(text, sizeof(text), "%u of %u", i % 3, 9 - i / 3);
        message = receive_text(flow.consumer, text);
        EXPECT_EQ(message.priority, 9 - i / 3);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    flow_end(&flow);
}

static void test_times(void **state)
{
    struct flow flow = flow_new(NULL, 0);
    struct ipc_send how = IPC_SEND_INIT;
    struct timespec now;
    (void)state;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t due = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec + MS(1000);
    how.deliver_at_ns = due;
    send_text(flow.producer, "soon", &how);
    how.deliver_at_ns = 0;
    how.delay_ns =
        MS(1200); /* where a machine stalls so long that both are due they come as they were sent */
    send_text(flow.producer, "late", &how);
    how.delay_ns = 0;
    how.deliver_at_ns = 1;
    send_text(flow.producer, "now", &how);
    ipc_consumer_ack(flow.consumer, receive_text(flow.consumer, "now").delivery);
    ipc_consumer_ack(flow.consumer, receive_text(flow.consumer, "soon").delivery);
    clock_gettime(CLOCK_REALTIME, &now);
    EXPECT((uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec >= due - MS(10));
    ipc_consumer_ack(flow.consumer, receive_text(flow.consumer, "late").delivery);

    /* One that expires before its delay is over is never seen; what comes after both is. */
    struct ipc_send dead = IPC_SEND_INIT, last = IPC_SEND_INIT;
    dead.ttl_ns = MS(1);
    dead.delay_ns = MS(100);
    last.delay_ns = MS(200);
    send_text(flow.producer, "expired", &dead);
    send_text(flow.producer, "last", &last);
    receive_text(flow.consumer, "last");
    flow_end(&flow);
}

static void test_duplicates(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    settings.given = IPC_QUEUE_DEDUP_WINDOW;
    settings.dedup_window = 100;
    struct flow flow = flow_new(&settings, 0);
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_producer_stats stats;
    (void)state;
    how.id_size = 1;
    how.id = "a";
    send_text(flow.producer, "first", &how);
    send_text(flow.producer, "again", &how); /* confirmed, as a duplicate */
    how.id = "b";
    send_text(flow.producer, "second", &how);
    send_text(flow.producer, "third", NULL);
    EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_producer_stats(flow.producer, &stats), 0);
    EXPECT_EQ(stats.duplicates, 1);
    EXPECT_EQ(stats.refused, 0);
    receive_text(flow.consumer, "first");
    receive_text(flow.consumer, "second");
    receive_text(flow.consumer, "third");
    flow_end(&flow);
}

/* Messages of a key go to one consumer at a time, in order; other keys go past them. */
static void test_keys(void **state)
{
    struct flow flow = flow_new(NULL, 1);
    struct ipc_send how = IPC_SEND_INIT;
    ipc_consumer *other = consumer_new(flow.in, "work", 1);
    struct ipc_queue_message one, two;
    (void)state;
    how.key_size = 1;
    how.key = "k";
    send_text(flow.producer, "k1", &how);
    send_text(flow.producer, "k2", &how);
    send_text(flow.producer, "k3", &how);
    how.key = "l";
    send_text(flow.producer, "l1", &how);
    /* Whoever has k1, the other one gets l1 and nothing else. */
    struct pollfd fds[] = {{.fd = ipc_consumer_fd(flow.consumer), .events = POLLIN}};
    EXPECT(fds[0].fd >= 0);
    char text[16];
    ssize_t size = ipc_consumer_receive(flow.consumer, text, sizeof(text), &one, IPC_FOREVER);
    EXPECT_EQ(size, 2);
    bool first = memcmp(text, "k1", 2) == 0;
    two = receive_text(other, first ? "l1" : "k1");
    ipc_consumer *with_k = first ? flow.consumer : other, *with_l = first ? other : flow.consumer;
    EXPECT_EQ(ipc_consumer_ack(with_l, first ? two.delivery : one.delivery), 0);
    receive_nothing(with_l);
    EXPECT_EQ(ipc_consumer_ack(with_k, first ? one.delivery : two.delivery), 0);
    /* Now k2 may go to either. */
    ipc_consumer_close(with_l);
    one = receive_text(with_k, "k2");
    EXPECT_EQ(ipc_consumer_ack(with_k, one.delivery), 0);
    one = receive_text(with_k, "k3");
    EXPECT_EQ(ipc_consumer_ack(with_k, one.delivery), 0);
    flow.consumer = with_k;
    flow_end(&flow);
}

static void test_prefetch(void **state)
{
    struct flow flow = flow_new(NULL, 3);
    struct ipc_queue_message messages[4];
    (void)state;
    send_numbers(flow.producer, 0, 5, 8);
    for (uint64_t i = 0; i < 3; i++)
        EXPECT_EQ(receive_number(flow.consumer, &messages[i]), i);
    receive_nothing(flow.consumer);
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, messages[1].delivery), 0);
    EXPECT_EQ(receive_number(flow.consumer, &messages[3]), 3);
    receive_nothing(flow.consumer);
    /* Another one gets what is left. */
    ipc_consumer *other = consumer_new(flow.in, "work", 3);
    EXPECT_EQ(receive_number(other, &messages[1]), 4);
    consumer_end(other);
    EXPECT_EQ(ipc_consumer_ack_range(flow.consumer, 0, messages[3].delivery), 0);
    EXPECT_EQ(receive_number(flow.consumer, &messages[1]), 4);
    EXPECT_EQ(messages[1].attempt, 2);
    EXPECT_EQ(messages[1].redelivered, IPC_REDELIVERED_CLOSED);
    flow_end(&flow);
}

static void test_refused(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_nack nack = IPC_NACK_INIT;
    struct ipc_dead_letter letter;
    ipc_connection *tool = connection_new();
    struct ipc_queue_message message;
    struct ipc_send how = IPC_SEND_INIT;
    const struct ipc_header header = {"unit", "celsius", 7};
    char long_reason[300];
    (void)state;
    queue_new(tool, "dead", NULL);
    settings.given = IPC_QUEUE_DEAD_LETTER | IPC_QUEUE_ATTEMPTS_MAX;
    settings.dead_letter = "dead";
    settings.attempts_max = 3;
    struct flow flow = flow_new(&settings, 0);
    ipc_consumer *graveyard = consumer_new(tool, "dead", 0);
    how.headers = &header;
    how.header_count = 1;
    how.content_type = "text/plain";
    send_text(flow.producer, "bad", &how);
    message = receive_text(flow.consumer, "bad");
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, message.delivery, message.delivery, NULL), 0);
    message = receive_text(flow.consumer, "bad");
    EXPECT_EQ(message.attempt, 2);
    EXPECT_EQ(message.redelivered, IPC_REDELIVERED_REFUSED);
    nack.delay_ns = MS(50);
    nack.reason = "does not parse";
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, message.delivery, message.delivery, &nack), 0);
    message = receive_text(flow.consumer, "bad");
    EXPECT_EQ(message.attempt, 3);
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, message.delivery, message.delivery, &nack), 0);
    message = receive_text(graveyard, "bad");
    EXPECT_EQ(ipc_queue_message_dead_letter(&message, &letter), 0);
    EXPECT(strcmp(letter.origin, "work") == 0);
    EXPECT_TEXT(letter.reason, "does not parse");
    EXPECT_EQ(letter.attempts, 3);
    EXPECT(letter.died_ns > 0);
    EXPECT(strcmp(message.content_type, "text/plain") == 0);
    const void *value;
    size_t size;
    EXPECT_EQ(ipc_queue_message_header(&message, "unit", &value, &size), 0);
    EXPECT_EQ(ipc_consumer_ack(graveyard, message.delivery), 0);

    /* At once, whatever the attempt. */
    send_text(flow.producer, "worse", NULL);
    message = receive_text(flow.consumer, "worse");
    nack.flags = IPC_NACK_DEAD;
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, message.delivery, message.delivery, &nack), 0);
    message = receive_text(graveyard, "worse");
    EXPECT_EQ(ipc_queue_message_dead_letter(&message, &letter), 0);
    EXPECT_EQ(letter.attempts, 1);

    memset(long_reason, 'x', sizeof(long_reason));
    long_reason[256] = '\0';
    nack.reason = long_reason;
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, 0, 0, &nack), -E2BIG);
    EXPECT_EQ(ipc_consumer_nack(flow.consumer, 0, 1000, NULL), -EINVAL);
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, 1000), -EINVAL);
    EXPECT_EQ(ipc_consumer_ack_range(flow.consumer, 1, 0), -EINVAL);
    consumer_end(graveyard);
    flow_end(&flow);
    ipc_connection_close(tool);
}

/* What is touched stays; what is not goes to another. */
static void test_lease(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    settings.given = IPC_QUEUE_LEASE;
    settings.lease_ns = MS(1500);
    struct flow flow = flow_new(&settings, 2);
    struct ipc_queue_message message, again;
    (void)state;
    send_numbers(flow.producer, 0, 2, 8);
    EXPECT_EQ(receive_number(flow.consumer, &message), 0);
    EXPECT_EQ(receive_number(flow.consumer, &again), 1);
    EXPECT_EQ(ipc_consumer_touch(flow.consumer, message.delivery, message.delivery, (uint64_t)SECONDS(1000)),
              0);
    ipc_consumer *other = consumer_new(flow.in, "work", 2);
    EXPECT_EQ(receive_number(other, &again), 1);
    EXPECT_EQ(again.attempt, 2);
    EXPECT_EQ(again.redelivered, IPC_REDELIVERED_EXPIRED);
    EXPECT_EQ(ipc_consumer_ack(other, again.delivery), 0);
    receive_nothing(other);
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, 1), 0); /* too late, and passed over */
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    receive_nothing(flow.consumer);
    consumer_end(other);
    flow_end(&flow);
}

static struct ipc_queue_settings full_after(uint64_t messages, enum ipc_queue_full full)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    settings.given = IPC_QUEUE_MESSAGES_MAX | IPC_QUEUE_FULL;
    settings.messages_max = messages;
    settings.full = full;
    return settings;
}

static void test_full_rejects(void **state)
{
    struct ipc_queue_settings settings = full_after(5, IPC_QUEUE_FULL_REJECT);
    struct flow flow = flow_new(&settings, 1);
    struct ipc_refusal refusal;
    struct ipc_error error;
    uint64_t tickets[8];
    char uid[32];
    (void)state;
    for (uint64_t i = 0; i < 8; i++)
        EXPECT_EQ(ipc_producer_send(flow.producer, &i, sizeof(i), 0, &tickets[i]), 0);
    EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), -EBADMSG);
    EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), 0); /* nothing was sent since */
    EXPECT_EQ(ipc_producer_confirm(flow.producer, tickets[4], IPC_FOREVER, &error), 0);
    EXPECT_EQ(ipc_producer_confirm(flow.producer, tickets[6], IPC_FOREVER, &error), -ENOSPC);
    EXPECT_EQ(error.code, -ENOSPC);
    EXPECT_TEXT(error.text, "work");
    EXPECT_TEXT(error.text, "messages-max 5");
    snprintf(uid, sizeof(uid), "uid %u", (unsigned)getuid());
    EXPECT_TEXT(error.text, uid);
    EXPECT_EQ(ipc_producer_next_refusal(flow.producer, &refusal), 1);
    EXPECT_EQ(refusal.ticket, tickets[5]);
    EXPECT_EQ(refusal.code, -ENOSPC);
    EXPECT_EQ(ipc_producer_next_refusal(flow.producer, &refusal), 1);
    EXPECT_EQ(refusal.ticket, tickets[7]);
    EXPECT_EQ(ipc_producer_next_refusal(flow.producer, &refusal), 0);
    for (uint64_t i = 0; i < 5; i++) {
        struct ipc_queue_message message;
        EXPECT_EQ(receive_number(flow.consumer, &message), i);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    receive_nothing(flow.consumer);
    flow_end(&flow);
}

/* Thousands of refusals: none is lost, and who does not take them is told to. */
static void test_many_refusals(void **state)
{
    struct ipc_queue_settings settings = full_after(1, IPC_QUEUE_FULL_REJECT);
    struct flow flow = flow_new(&settings, 1);
    struct ipc_refusal refusal;
    uint64_t taken = 0, sent = 0, ticket, last = 0;
    (void)state;
    while (sent < 5000) {
        int result = ipc_producer_send(flow.producer, &sent, sizeof(sent), IPC_FOREVER, &ticket);
        sent += result == 0;
        if (result == 0)
            continue;
        EXPECT_EQ(result, -ENOBUFS);
        while (ipc_producer_next_refusal(flow.producer, &refusal) > 0) {
            EXPECT(refusal.ticket > last);
            last = refusal.ticket;
            taken++;
        }
    }
    for (int result = -ENOBUFS; result == -ENOBUFS;) {
        result = ipc_producer_flush(flow.producer, IPC_FOREVER);
        while (ipc_producer_next_refusal(flow.producer, &refusal) > 0)
            taken++;
    }
    EXPECT_EQ(taken, 4999);
    flow_end(&flow);
}

struct patient {
    ipc_producer *producer;
    int gate;
};

static void *send_when_full(void *argument)
{
    struct patient *patient = argument;
    uint64_t value = 7;
    /* The lane first, then the queue behind it: send until this one has had to wait. */
    struct ipc_producer_stats stats = {0};
    while (stats.waits == 0) {
        EXPECT_EQ(ipc_producer_send(patient->producer, &value, sizeof(value), IPC_FOREVER, NULL), 0);
        EXPECT_EQ(ipc_producer_stats(patient->producer, &stats), 0);
    }
    gate_open(patient->gate);
    EXPECT_EQ(ipc_producer_flush(patient->producer, IPC_FOREVER), 0);
    return NULL;
}

/* A queue that blocks holds up its own producers and nobody else; they go on when there is room. */
static void test_full_blocks(void **state)
{
    struct ipc_queue_settings settings = full_after(10, IPC_QUEUE_FULL_BLOCK);
    struct flow flow = flow_new(&settings, 5);
    ipc_connection *other = connection_new();
    uint64_t value = 7, sent = 0;
    pthread_t thread;
    (void)state;
    queue_new(other, "free", NULL);
    ipc_producer *neighbour = producer_new(other, "free");
    for (; sent < 10; sent++)
        EXPECT_EQ(ipc_producer_send(flow.producer, &value, sizeof(value), 0, NULL), 0);
    EXPECT_EQ(ipc_producer_flush(flow.producer, IPC_FOREVER), 0);
    while (ipc_producer_send(flow.producer, &value, sizeof(value), 0, NULL) == 0)
        sent++;
    EXPECT_EQ(ipc_producer_send(flow.producer, &value, sizeof(value), 0, NULL), -EAGAIN);
    EXPECT_EQ(ipc_producer_send(flow.producer, &value, sizeof(value), 1000000, NULL), -ETIMEDOUT);
    EXPECT_EQ(ipc_producer_flush(flow.producer, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_producer_flush(flow.producer, 0), -EAGAIN);
    send_numbers(neighbour, 0, 100, 64);
    producer_end(neighbour);

    struct patient patient = {flow.producer, gate_new()};
    EXPECT_EQ(pthread_create(&thread, NULL, send_when_full, &patient), 0);
    struct ipc_queue_message message;
    uint64_t received = 0;
    /* Make room until it has been let in; then for all of it. */
    for (; received < sent; received++) {
        EXPECT_EQ(ipc_consumer_receive(flow.consumer, &value, sizeof(value), &message, IPC_FOREVER), 8);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    gate_wait(patient.gate);
    struct ipc_producer_stats stats;
    do {
        while (ipc_consumer_receive(flow.consumer, &value, sizeof(value), &message, 100000000) == 8) {
            received++;
            EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
        }
    } while (pthread_tryjoin_np(thread, NULL) != 0);
    EXPECT_EQ(ipc_producer_stats(flow.producer, &stats), 0);
    for (; received < stats.sent; received++) {
        EXPECT_EQ(ipc_consumer_receive(flow.consumer, &value, sizeof(value), &message, IPC_FOREVER), 8);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    receive_nothing(flow.consumer);
    close(patient.gate);
    flow_end(&flow);
    ipc_connection_close(other);
}

static void test_full_makes_room(void **state)
{
    struct ipc_queue_settings settings = full_after(3, IPC_QUEUE_FULL_DROP_OLDEST);
    struct flow flow = flow_new(&settings, 1);
    struct ipc_queue_message message;
    (void)state;
    ipc_consumer_close(flow.consumer);
    send_numbers(flow.producer, 0, 10, 8);
    flow.consumer = consumer_new(flow.in, "work", 1);
    for (uint64_t i = 7; i < 10; i++) {
        EXPECT_EQ(receive_number(flow.consumer, &message), i);
        EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    }
    receive_nothing(flow.consumer);

    queue_new(flow.in, "overflow", NULL);
    settings = full_after(3, IPC_QUEUE_FULL_DEAD_LETTER);
    settings.given |= IPC_QUEUE_DEAD_LETTER;
    settings.dead_letter = "overflow";
    EXPECT_EQ(ipc_queue_set(flow.in, "work", &settings, NULL), 0);
    send_numbers(flow.producer, 0, 2, 8);
    EXPECT_EQ(receive_number(flow.consumer, &message), 0);
    send_numbers(flow.producer, 2, 6, 8);
    ipc_consumer *overflow = consumer_new(flow.in, "overflow", 0);
    struct ipc_queue_message letter;
    struct ipc_dead_letter about;
    for (uint64_t i = 3; i < 6; i++) {
        EXPECT_EQ(receive_number(overflow, &letter), i);
        EXPECT_EQ(ipc_queue_message_dead_letter(&letter, &about), 0);
        EXPECT(strcmp(about.origin, "work") == 0);
    }
    consumer_end(overflow);
    flow_end(&flow);
}

static void on_refused(void *context, const struct ipc_refusal *refusal)
{
    EXPECT_EQ(refusal->code, -ENOSPC);
    ((uint64_t *)context)[0]++;
}

static void on_confirmed(void *context, uint64_t ticket)
{
    ((uint64_t *)context)[1] = ticket;
}

/* Everything by descriptors, in one thread. */
static void test_descriptors(void **state)
{
    struct ipc_queue_settings settings = full_after(50, IPC_QUEUE_FULL_REJECT);
    struct flow flow = flow_new(&settings, 10);
    uint64_t seen[2] = {0}, ticket = 0, sent = 0, received = 0;
    struct ipc_producer_options options = IPC_PRODUCER_OPTIONS_INIT;
    (void)state;
    ipc_producer_close(flow.producer);
    options.refused = on_refused;
    options.confirmed = on_confirmed;
    options.context = seen;
    EXPECT_EQ(ipc_producer_open(&flow.producer, flow.out, "work", &options, NULL), 0);
    struct pollfd fds[] = {{.fd = ipc_producer_fd(flow.producer), .events = POLLIN},
                           {.fd = ipc_consumer_fd(flow.consumer), .events = POLLIN}};
    EXPECT(fds[0].fd >= 0 && fds[1].fd >= 0);
    while (seen[1] < ticket || sent < 3000 || received + seen[0] < sent) {
        struct ipc_queue_message message;
        uint64_t number;
        ssize_t size = 0;
        for (int i = 0; i < 30 && sent < 3000; i++)
            sent += ipc_producer_send(flow.producer, &sent, sizeof(sent), 0, &ticket) == 0;
        EXPECT(poll(fds, 2, -1) > 0);
        if (fds[0].revents)
            EXPECT_EQ(ipc_producer_dispatch(flow.producer), 0);
        while (fds[1].revents &&
               (size = ipc_consumer_receive(flow.consumer, &number, sizeof(number), &message, 0)) > 0) {
            received++;
            EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
        }
        if (fds[1].revents)
            EXPECT_EQ(size, -EAGAIN);
    }
    EXPECT_EQ(received + seen[0], 3000);
    /* Nothing is left to be told: both are quiet. */
    EXPECT_EQ(ipc_producer_dispatch(flow.producer), 0);
    receive_nothing(flow.consumer);
    EXPECT_EQ(ipc_producer_dispatch(flow.producer), 0);
    EXPECT_EQ(
        ipc_consumer_receive(flow.consumer, seen, sizeof(seen), &(struct ipc_queue_message){.size = 0}, 0),
        -EAGAIN);
    EXPECT_EQ(poll(fds, 2, 0), 0);
    flow_end(&flow);
}

static void test_settings_and_errors(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_error error;
    ipc_producer *producer;
    ipc_consumer *consumer;
    (void)state;
    EXPECT_EQ(ipc_producer_open(&producer, connection, "nowhere", NULL, &error), -ENOENT);
    EXPECT_TEXT(error.text, "nowhere");
    EXPECT_EQ(ipc_consumer_open(&consumer, connection, "nowhere", NULL, &error), -ENOENT);
    EXPECT_EQ(ipc_producer_open(&producer, connection, "no name", NULL, &error), -EINVAL);
    EXPECT_TEXT(error.text, "bad queue name");
    EXPECT_EQ(ipc_queue_create(connection, "", NULL, 0, &error), -EINVAL);
    EXPECT_EQ(ipc_queue_create(connection, "q", NULL, 8, &error), -EINVAL);
    settings.given = 1;
    EXPECT_EQ(ipc_queue_create(connection, "q", &settings, 0, &error), -EINVAL);
    settings.given = IPC_QUEUE_ATTEMPTS_MAX;
    settings.attempts_max = 1000000;
    EXPECT_EQ(ipc_queue_create(connection, "q", &settings, 0, &error), -EINVAL);
    EXPECT_EQ(ipc_queue_create(connection, "q", NULL, 0, &error), 0);
    EXPECT_EQ(ipc_queue_create(connection, "q", NULL, 0, &error), -EEXIST);
    EXPECT_EQ(ipc_queue_create(connection, "q", NULL, IPC_QUEUE_MAY_EXIST, &error), 0);
    EXPECT_EQ(ipc_queue_set(connection, "nowhere", &settings, &error), -ENOENT);
    EXPECT_EQ(ipc_queue_remove(connection, "nowhere", 0, &error), -ENOENT);

    /* Paused: nothing comes, until it goes on. */
    producer = producer_new(connection, "q");
    consumer = consumer_new(connection, "q", 0);
    settings.given = IPC_QUEUE_PAUSED;
    settings.paused = 1;
    EXPECT_EQ(ipc_queue_set(connection, "q", &settings, &error), 0);
    send_numbers(producer, 0, 3, 8);
    receive_nothing(consumer);
    settings.paused = 0;
    EXPECT_EQ(ipc_queue_set(connection, "q", &settings, &error), 0);
    receive_acked(consumer, 0, 2);

    /* Removed under those who use it: they are told, and get nothing but that. */
    EXPECT_EQ(ipc_queue_remove(connection, "q", IPC_QUEUE_IF_EMPTY, &error), -EBUSY);
    EXPECT_EQ(ipc_queue_remove(connection, "q", 0, &error), 0);
    struct ipc_event event = {0};
    char text[8];
    ssize_t size;
    while ((size = ipc_consumer_receive(consumer, text, sizeof(text), &(struct ipc_queue_message){.size = 0},
                                        IPC_FOREVER)) >= 0)
        ;
    EXPECT_EQ(size, -EIDRM);
    int sent =
        ipc_producer_send(producer, "x", 1, 0, NULL); /* it is told by a notice of its own, maybe later */
    EXPECT(sent == 0 || sent == -EIDRM);
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), -EIDRM);
    EXPECT_EQ(ipc_producer_send(producer, "x", 1, 0, NULL), -EIDRM);
    event = event_wait(connection, IPC_EVENT_QUEUE_ENDED);
    EXPECT(strcmp(event.topic, "q") == 0);
    ipc_producer_close(producer);
    ipc_consumer_close(consumer);
    EXPECT_EQ(ipc_queue_create(connection, "q", NULL, 0, &error), 0);
    ipc_connection_close(connection);
}

struct worker {
    ipc_connection *connection;
    ipc_consumer *consumer;
    ipc_producer *producer;
    uint64_t from;
    _Atomic uint64_t *sum;
};

static void *produce(void *argument)
{
    struct worker *worker = argument;
    send_numbers(worker->producer, worker->from, worker->from + 5000, 16);
    return NULL;
}

static void *consume(void *argument)
{
    struct worker *worker = argument;
    struct ipc_queue_message message;
    for (int i = 0; i < 5000; i++) {
        atomic_fetch_add(worker->sum, receive_number(worker->consumer, &message));
        EXPECT_EQ(ipc_consumer_ack(worker->consumer, message.delivery), 0);
    }
    return NULL;
}

/* One connection, several threads, each with a handle of its own. */
static void test_threads(void **state)
{
    ipc_connection *connection = connection_new();
    struct worker workers[4];
    _Atomic uint64_t sum = 0;
    pthread_t threads[4];
    (void)state;
    queue_new(connection, "a", NULL);
    queue_new(connection, "b", NULL);
    for (unsigned i = 0; i < 4; i++) {
        const char *queue = i % 2 ? "b" : "a";
        workers[i] = (struct worker){.from = i * 5000, .sum = &sum, .connection = connection};
        if (i < 2)
            workers[i].producer = producer_new(connection, queue);
        else
            workers[i].consumer = consumer_new(connection, queue, 100);
        EXPECT_EQ(pthread_create(&threads[i], NULL, i < 2 ? produce : consume, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
        EXPECT_EQ(pthread_join(threads[i], NULL), 0);
    EXPECT_EQ(sum, UINT64_C(10000) * 9999 / 2);
    ipc_connection_close(connection);
}

static void in_child(void *argument)
{
    struct flow *flow = argument;
    struct ipc_queue_message message;
    struct ipc_refusal refusal;
    void *room;
    char text[8];
    EXPECT_EQ(ipc_producer_send(flow->producer, "x", 1, 0, NULL), -ECHILD);
    EXPECT_EQ(ipc_producer_flush(flow->producer, 0), -ECHILD);
    EXPECT_EQ(ipc_producer_dispatch(flow->producer), -ECHILD);
    EXPECT_EQ(ipc_producer_loan(flow->producer, 1, NULL, 0, &room), -ECHILD);
    EXPECT_EQ(ipc_producer_next_refusal(flow->producer, &refusal), -ECHILD);
    EXPECT_EQ(ipc_producer_fd(flow->producer), -ECHILD);
    EXPECT_EQ(ipc_consumer_receive(flow->consumer, text, sizeof(text), &message, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_receive_batch(flow->consumer, text, sizeof(text), &message, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_take(flow->consumer, &message, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_release(flow->consumer, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_ack(flow->consumer, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_flush(flow->consumer, 0), -ECHILD);
    EXPECT_EQ(ipc_consumer_fd(flow->consumer), -ECHILD);
    EXPECT_EQ(ipc_queue_create(flow->out, "other", NULL, 0, NULL), -ECHILD);
    ipc_connection_close(flow->in);
    ipc_producer_close(flow->producer);
    ipc_connection_close(flow->out);
}

static void test_fork(void **state)
{
    struct flow flow = flow_new(NULL, 0);
    struct ipc_queue_message message;
    (void)state;
    send_numbers(flow.producer, 0, 2, 8);
    EXPECT_EQ(receive_number(flow.consumer, &message), 0);
    child_done(child_start(in_child, &flow));
    EXPECT_EQ(ipc_consumer_ack(flow.consumer, message.delivery), 0);
    EXPECT_EQ(receive_number(flow.consumer, &message), 1);
    send_numbers(flow.producer, 2, 4, 8);
    EXPECT_EQ(receive_number(flow.consumer, &message), 2);
    flow_end(&flow);
}

static int tests(void)
{
    const struct CMUnitTest cases[] = {
        CASE(test_content_and_order),
        CASE(test_empty_and_largest),
        CASE(test_everything_in_a_message),
        CASE(test_batches_and_loans),
        CASE(test_more),
        CASE(test_take_round_and_round),
        CASE(test_priorities),
        CASE(test_times),
        CASE(test_duplicates),
        CASE(test_keys),
        CASE(test_prefetch),
        CASE(test_refused),
        CASE(test_lease),
        CASE(test_full_rejects),
        CASE(test_many_refusals),
        CASE(test_full_blocks),
        CASE(test_full_makes_room),
        CASE(test_descriptors),
        CASE(test_settings_and_errors),
        CASE(test_threads),
        CASE(test_fork),
    };
    return cmocka_run_group_tests_name("queue-basic", cases, NULL, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    return run_variants(argv, tests);
}
