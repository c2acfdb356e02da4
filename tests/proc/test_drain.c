/* SPDX-License-Identifier: Apache-2.0
 *
 * A broker that is told to stop lets consumers finish what is in their queues, for as long as [broker] drain says.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/queue.h"

static void start(unsigned seconds)
{
    char path[64];

    snprintf(path, sizeof(path), "/tmp/ipc-drain.%d", (int)getpid());
    FILE *file = fopen(path, "we");
    EXPECT(file != NULL);
    EXPECT(fprintf(file, "[broker]\ndrain = %u\n", seconds) > 0);
    EXPECT_EQ(fclose(file), 0);
    broker_start(&broker, (const char *const[]){"--config", path, NULL});
    EXPECT_EQ(unlink(path), 0);
}

static void expect_stopped(void)
{
    EXPECT_EQ(wait_child(broker.pid), 0);
    broker_forget(&broker);
}

/* The broker ended the session in good order. */
static void expect_shutdown(ipc_connection *connection)
{
    struct ipc_event event = {0};

    while (event.kind != IPC_EVENT_ENDED)
        if (ipc_connection_next_event(connection, &event) == 0)
            sched_yield();
    EXPECT_EQ(event.reason, IPC_REASON_SHUTDOWN);
    ipc_connection_close(connection);
}

/* Send until it is not taken any more. How many were. */
static uint64_t send_until_refused(ipc_producer *producer, uint64_t from)
{
    unsigned char bytes[16];
    int result = 0;

    while (result == 0) {
        message_fill(bytes, sizeof(bytes), from);
        result = ipc_producer_send(producer, bytes, sizeof(bytes), IPC_FOREVER, NULL);
        if (result == 0)
            result = ipc_producer_flush(producer, IPC_FOREVER);
        from += result == 0;
    }
    EXPECT_EQ(result, -EPIPE);
    return from;
}

static void test_consumers_finish(void **state)
{
    struct ipc_queue_message message;
    struct ipc_error error;
    ipc_connection *refused;
    (void)state;

    start(3600);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    ipc_producer *producer = producer_new(connection, "work"), *another;
    ipc_consumer *consumer = consumer_new(connection, "work", 1);
    send_numbers(producer, 0, 3, 16);
    EXPECT_EQ(receive_number(consumer, &message), 0);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    uint64_t sent = send_until_refused(producer, 3);
    EXPECT_EQ(ipc_connection_open(&refused, NULL, NULL, &error), -ESHUTDOWN);
    EXPECT_TEXT(error.text, "the broker stops");
    EXPECT_EQ(ipc_producer_open(&another, connection, "work", NULL, &error), -ESHUTDOWN);
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    receive_acked(consumer, 1, sent);
    expect_stopped();
    expect_shutdown(connection);
}

static void test_only_so_long(void **state)
{
    struct ipc_queue_message message;
    (void)state;

    start(1);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    ipc_producer *producer = producer_new(connection, "work");
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    send_numbers(producer, 0, 1, 16);
    EXPECT_EQ(receive_number(consumer, &message), 0);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    expect_stopped();
    expect_shutdown(connection);
}

static void test_asked_twice(void **state)
{
    struct ipc_queue_message message;
    (void)state;

    start(3600);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    ipc_producer *producer = producer_new(connection, "work");
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    send_numbers(producer, 0, 1, 16);
    EXPECT_EQ(receive_number(consumer, &message), 0);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    (void)send_until_refused(producer, 1); /* it drains */
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    expect_stopped();
    expect_shutdown(connection);
}

/* More refusals than its lane holds: a producer that ends gets each of them, so what it takes for confirmed is there. */
static void test_refusals_are_not_lost(void **state)
{
    static uint64_t numbers[4000];
    static struct iovec batch[4000];
    const size_t count = sizeof(numbers) / sizeof(numbers[0]);
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_producer_options options = IPC_PRODUCER_OPTIONS_INIT;
    struct ipc_queue_message message;
    struct ipc_refusal refusal;
    ipc_producer *producer;
    uint64_t refused = 0, stood = 0;
    int result;
    (void)state;

    settings.given = IPC_QUEUE_MESSAGES_MAX | IPC_QUEUE_FULL;
    settings.messages_max = 2;
    settings.full = IPC_QUEUE_FULL_REJECT;
    options.ring_size = 1 << 20;
    for (size_t i = 0; i < count; i++) {
        numbers[i] = i;
        batch[i] = (struct iovec){&numbers[i], sizeof(numbers[i])};
    }
    start(3600);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", &settings);
    EXPECT_EQ(ipc_producer_open(&producer, connection, "work", &options, NULL), 0);
    ipc_consumer *consumer = consumer_new(connection, "work", 1);
    send_numbers(producer, 0, 1, sizeof(uint64_t));
    EXPECT_EQ(receive_number(consumer, &message), 0);
    EXPECT_EQ(ipc_producer_send_batch(producer, batch, count, NULL, IPC_FOREVER, NULL), count);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    do {
        result = ipc_producer_flush(producer, IPC_FOREVER);
        while (ipc_producer_next_refusal(producer, &refusal) > 0)
            refused++;
    } while (result == -ENOBUFS);
    EXPECT(result == -EBADMSG || result == -EPIPE);
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    while (ipc_consumer_take(consumer, &message, 1, IPC_FOREVER) == 1) {
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        EXPECT_EQ(ipc_consumer_release(consumer, 1), 0);
        stood++;
    }
    EXPECT_EQ(refused + stood, count);
    expect_stopped();
    ipc_connection_close(connection);
}

/* What nobody receives is not waited for. */
static void test_nothing_to_wait_for(void **state)
{
    (void)state;

    start(3600);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    queue_new(connection, "done", NULL);
    ipc_producer *producer = producer_new(connection, "work");
    ipc_consumer *consumer = consumer_new(connection, "done", 0);
    send_numbers(producer, 0, 1, 16);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    expect_stopped();
    expect_shutdown(connection);
    (void)consumer;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_consumers_finish),    cmocka_unit_test(test_only_so_long),
        cmocka_unit_test(test_asked_twice),         cmocka_unit_test(test_refusals_are_not_lost),
        cmocka_unit_test(test_nothing_to_wait_for),
    };
    expect_here();
    watchdog(120, "drain");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
