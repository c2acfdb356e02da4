/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues while those who use them are killed, and the broker with them: what was sent arrives, what was not acknowledged
 * comes again and says so, and nothing else comes twice.
 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/guarded.h"
#include "tests/support/queue.h"

static struct guarded guarded;
static const char *const quiet[] = {"--log-level", "error", NULL};

static int setup(void **state)
{
    (void)state;
    watchdog(120, "queues and death");
    guarded_start(&guarded, quiet);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    guarded_stop(&guarded);
    watchdog(0, "");
    EXPECT(!children_left());
    return 0;
}

/* ---- one dies -------------------------------------------------------------------------------------------- */

static int ready;

/* Takes ten, acknowledges three, and never comes to the rest. */
static void hold_ten(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_consumer *consumer = consumer_new(connection, "work", 10);
    struct ipc_queue_message message;
    (void)argument;
    for (uint64_t number = 0; number < 10; number++) {
        EXPECT_EQ(receive_number(consumer, &message), number);
        if (number < 3)
            EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    gate_open(ready);
    pause();
}

static void test_consumer_killed(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_queue_message message;
    (void)state;
    queue_new(connection, "work", NULL);
    ipc_producer *producer = producer_new(connection, "work");
    send_numbers(producer, 0, 20, 100);
    ready = gate_new();
    pid_t child = child_start(hold_ten, NULL);
    gate_wait(ready);
    child_kill(child);
    /* Once for all: in their old order, and first those that came back. */
    ipc_consumer *consumer = consumer_new(connection, "work", 1);
    for (uint64_t number = 3; number < 20; number++) {
        uint64_t got = receive_number(consumer, &message);
        if (got >= 10 && number < 10) { /* the broker had not heard of the death yet */
            EXPECT_EQ(ipc_consumer_nack(consumer, message.delivery, message.delivery, NULL), 0);
            number--;
            continue;
        }
        EXPECT_EQ(got, number);
        EXPECT_EQ(message.redelivered, number < 10 ? IPC_REDELIVERED_DIED : message.redelivered);
        EXPECT(number >= 10 || message.attempt == 2);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    receive_nothing(consumer);
    producer_end(producer);
    consumer_end(consumer);
    ipc_connection_close(connection);
    close(ready);
}

/* Sends and never hears whether it arrived. With flags, nobody is woken for the last hundred. */
static void send_and_hang(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_producer *producer = producer_new(connection, "work");
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_producer_stats before, after;
    how.flags = *(unsigned *)argument;
    for (uint64_t number = 0; number < 1000; number++) {
        struct iovec piece = {&number, sizeof(number)};
        if (number == 900 && how.flags) {
            EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
            EXPECT_EQ(ipc_producer_stats(producer, &before), 0);
        }
        EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL), 0);
    }
    EXPECT_EQ(ipc_producer_stats(producer, &after), 0);
    EXPECT(!how.flags || after.rings == before.rings);
    gate_open(ready);
    pause();
}

static void producer_killed(unsigned flags)
{
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    ready = gate_new();
    pid_t child = child_start(send_and_hang, &flags);
    gate_wait(ready);
    child_kill(child);
    receive_acked(consumer, 0, 1000);
    receive_nothing(consumer);
    consumer_end(consumer);
    ipc_connection_close(connection);
    close(ready);
}

static void test_producer_killed(void **state)
{
    (void)state;
    producer_killed(0);
}

/* Between its commits and the ring. */
static void test_producer_killed_unrung(void **state)
{
    (void)state;
    producer_killed(IPC_SEND_MORE);
}

/* ---- producers that come again ---------------------------------------------------------------------------- */

#define RESENT 20000u

/* Sends from the first number that was not confirmed on, with the number as its id. */
static void resend(void *argument)
{
    _Atomic uint64_t *confirmed = argument;
    ipc_connection *connection = connection_new();
    ipc_producer *producer = producer_new(connection, "work");
    struct ipc_send how = IPC_SEND_INIT;
    for (uint64_t number = atomic_load(confirmed); number < RESENT;) {
        for (int i = 0; i < 50; i++, number++) {
            struct iovec piece = {&number, sizeof(number)};
            how.id = &number;
            how.id_size = sizeof(number);
            EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL), 0);
        }
        EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
        atomic_store(confirmed, number);
    }
    ipc_connection_close(connection);
}

static void test_producer_killed_and_resending(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    ipc_connection *connection = connection_new();
    _Atomic uint64_t *confirmed = shared_new(sizeof(*confirmed));
    struct ipc_queue_message message;
    uint64_t next = 0;
    (void)state;
    settings.given = IPC_QUEUE_DEDUP_WINDOW | IPC_QUEUE_MESSAGES_MAX;
    settings.dedup_window = RESENT;
    settings.messages_max = 1000; /* so that nobody is done before it is killed */
    queue_new(connection, "work", &settings);
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    for (int kill_number = 0; kill_number < 15; kill_number++) {
        pid_t child = child_start(resend, confirmed);
        for (uint64_t until = next + 500; next < until; next++) {
            EXPECT_EQ(receive_number(consumer, &message), next);
            EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        }
        child_kill(child);
        if (kill_number % 5 == 4)
            guarded_kill_ipcd(&guarded);
    }
    pid_t child = child_start(resend, confirmed);
    for (; next < RESENT; next++) {
        EXPECT_EQ(receive_number(consumer, &message), next);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    child_done(child);
    receive_nothing(consumer);
    ipc_consumer_close(consumer);
    ipc_connection_close(connection);
    shared_free(confirmed, sizeof(*confirmed));
}

/* ---- the broker dies, again and again ---------------------------------------------------------------------- */

#define PRODUCERS 2u
#define CONSUMERS 2u
#define EACH      15000u
#define TOTAL     (PRODUCERS * EACH)

struct history {
    _Atomic uint64_t done; /* different messages acknowledged */
    struct {
        _Atomic uint32_t received;
        _Atomic uint32_t first; /* times that it came as if it was the first time */
        _Atomic uint32_t acked;
    } of[TOTAL];
};

struct part {
    struct history *history;
    unsigned index;
};

static void load_producer(void *argument)
{
    const struct part *part = argument;
    ipc_connection *connection = connection_new();
    ipc_producer *producer = producer_new(connection, "work");
    unsigned char buffer[200];
    for (uint64_t i = 0; i < EACH; i++) {
        uint64_t number = part->index * EACH + i;
        size_t size = 8 + number % 190;
        message_fill(buffer, size, number);
        EXPECT_EQ(ipc_producer_send(producer, buffer, size, IPC_FOREVER, NULL), 0);
        if (i % 1000 == 999)
            EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
    }
    ipc_connection_close(connection);
}

static void load_consumer(void *argument)
{
    const struct part *part = argument;
    struct history *history = part->history;
    ipc_connection *connection = connection_new();
    ipc_consumer *consumer = consumer_new(connection, "work", 200);
    struct ipc_queue_message message;
    uint64_t last[PRODUCERS] = {0};
    for (;;) {
        uint64_t number = receive_number(consumer, &message);
        if (number == UINT64_MAX) /* the end */
            break;
        EXPECT(number < TOTAL);
        EXPECT_EQ(history->of[number].acked, 0);
        atomic_fetch_add(&history->of[number].received, 1);
        if (message.attempt == 1) {
            EXPECT_EQ(atomic_fetch_add(&history->of[number].first, 1), 0);
            EXPECT(number % EACH + 1 > last[number / EACH]); /* in order */
            last[number / EACH] = number % EACH + 1;
        }
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        atomic_store(&history->of[number].acked, 1);
        atomic_fetch_add(&history->done, 1);
    }
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    ipc_connection_close(connection);
}

static void test_broker_killed_under_load(void **state)
{
    struct history *history = shared_new(sizeof(*history));
    ipc_connection *connection = connection_new();
    struct part parts[CONSUMERS + PRODUCERS];
    pid_t children[CONSUMERS + PRODUCERS];
    unsigned kills = 0;
    (void)state;
    queue_new(connection, "work", NULL);
    for (unsigned i = 0; i < CONSUMERS + PRODUCERS; i++) {
        parts[i] = (struct part){history, i < CONSUMERS ? i : i - CONSUMERS};
        children[i] = child_start(i < CONSUMERS ? load_consumer : load_producer, &parts[i]);
    }
    /* Each time that some have gone through; nobody would go on if one was lost. */
    for (uint64_t goal = 1; goal < TOTAL; goal += TOTAL / 12) {
        while (atomic_load(&history->done) < goal)
            poll(NULL, 0, 1);
        guarded_kill_ipcd(&guarded);
        kills++;
    }
    for (unsigned i = CONSUMERS; i < CONSUMERS + PRODUCERS; i++)
        child_done(children[i]);
    while (atomic_load(&history->done) < TOTAL)
        poll(NULL, 0, 1);
    ipc_producer *producer = producer_new(connection, "work");
    for (unsigned i = 0; i < CONSUMERS; i++) {
        /* A consumer that has not acknowledged the end keeps no other from it: it takes one and leaves. */
        uint64_t end = UINT64_MAX;
        EXPECT_EQ(ipc_producer_send(producer, &end, sizeof(end), IPC_FOREVER, NULL), 0);
    }
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
    for (unsigned i = 0; i < CONSUMERS; i++)
        child_done(children[i]);
    uint64_t again = 0;
    for (unsigned i = 0; i < TOTAL; i++) {
        EXPECT(history->of[i].received >= 1);
        EXPECT_EQ(history->of[i].acked, 1);
        again += history->of[i].received - 1;
    }
    printf("%u messages through %u kills of ipcd, %llu delivered again\n", TOTAL, kills,
           (unsigned long long)again);
    ipc_producer_close(producer);
    ipc_connection_close(connection);
    shared_free(history, sizeof(*history));
}

/* Messages that do not fit into one chunk of the queue's file, and small ones that begin in the rest of their last one:
 * none is passed over, neither at once nor after a restart. */
static void test_large_and_small(void **state)
{
    static const size_t sizes[] = {300000, 100000, 8, 600000, 50000, 150000, 262144, 163841};
    static unsigned char content[600000], in[600000];
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    ipc_connection *connection = connection_new();
    ipc_producer *producer;
    ipc_consumer *consumer;
    struct ipc_queue_message message;
    (void)state;
    settings.given = IPC_QUEUE_MESSAGE_SIZE_MAX;
    settings.message_size_max = sizeof(content);
    queue_new(connection, "work", &settings);
    producer = producer_new(connection, "work");
    consumer = consumer_new(connection, "work", 0);
    for (unsigned round = 0; round < 4; round++) {
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            memset(content, (int)(round * 16 + i), sizes[i]);
            EXPECT_EQ(ipc_producer_send(producer, content, sizes[i], IPC_FOREVER, NULL), 0);
        }
        EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
        if (round % 2)
            guarded_kill_ipcd(&guarded);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            memset(content, (int)(round * 16 + i), sizes[i]);
            EXPECT_EQ(ipc_consumer_receive(consumer, in, sizeof(in), &message, IPC_FOREVER), sizes[i]);
            EXPECT(memcmp(in, content, sizes[i]) == 0);
        }
        EXPECT_EQ(ipc_consumer_ack_until(consumer, message.delivery), 0);
        EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    }
    producer_end(producer);
    consumer_end(consumer);
    ipc_connection_close(connection);
}

/* Who sleeps while ipcd is killed is woken by the next one, not by the bounded wait. */
static void test_asleep_over_a_restart(void **state)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    ipc_connection *connection = connection_new();
    (void)state;
    queue_new(connection, "work", &settings);
    ipc_producer *producer = producer_new(connection, "work");
    ipc_consumer *consumer = consumer_new(connection, "work", 10);
    struct pollfd fds[] = {{.fd = ipc_consumer_fd(consumer), .events = POLLIN},
                           {.fd = ipc_producer_fd(producer), .events = POLLIN}};
    for (uint64_t number = 0; number < 5; number++) {
        struct ipc_queue_message message;
        uint64_t got, ticket;
        EXPECT_EQ(ipc_consumer_receive(consumer, &got, sizeof(got), &message, 0), -EAGAIN);
        guarded_kill_ipcd(&guarded);
        EXPECT_EQ(ipc_producer_send(producer, &number, sizeof(number), 0, &ticket), 0);
        ssize_t size;
        while ((size = ipc_consumer_receive(consumer, &got, sizeof(got), &message, 0)) == -EAGAIN)
            EXPECT(poll(&fds[0], 1, -1) > 0);
        EXPECT_EQ(size, 8);
        EXPECT_EQ(got, number);
        EXPECT_EQ(message.attempt, 1);
        while (ipc_producer_confirmed(producer) < ticket) {
            EXPECT_EQ(ipc_producer_dispatch(producer), 0);
            if (ipc_producer_confirmed(producer) < ticket)
                EXPECT(poll(&fds[1], 1, -1) > 0);
        }
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    }
    producer_end(producer);
    consumer_end(consumer);
    ipc_connection_close(connection);
}

#define DEATH(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        DEATH(test_consumer_killed),          DEATH(test_producer_killed),
        DEATH(test_producer_killed_unrung),   DEATH(test_producer_killed_and_resending),
        DEATH(test_broker_killed_under_load), DEATH(test_large_and_small),
        DEATH(test_asleep_over_a_restart),
    };
    return cmocka_run_group_tests_name("queue-death", tests, NULL, NULL);
}
