/* SPDX-License-Identifier: Apache-2.0
 *
 * A broker that is told to stop lets consumers finish what is in their queues, and servers what they were asked, for as long
 * as [broker] drain says.
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

/* Send until it is not taken any more. How many were confirmed: one more may have been taken. */
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
    uint64_t number = 1;
    while (ipc_consumer_take(consumer, &message, 1, IPC_FOREVER) == 1) {
        EXPECT(message_holds(message.data, message.size, number++));
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        EXPECT_EQ(ipc_consumer_release(consumer, 1), 0);
    }
    EXPECT(number == sent || number == sent + 1);
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

#define SERVICE "work"

struct ends {
    ipc_connection *serving, *calling;
    ipc_server *server;
    ipc_client *client;
};

static struct ends ends_new(unsigned flags)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ends ends;

    options.flags = flags;
    ends.serving = connection_new();
    EXPECT_EQ(ipc_connection_open(&ends.calling, NULL, &options, NULL), 0);
    EXPECT_EQ(ipc_server_open(&ends.server, ends.serving, SERVICE, NULL, NULL), 0);
    EXPECT_EQ(ipc_client_open(&ends.client, ends.calling, SERVICE, NULL, NULL), 0);
    return ends;
}

static ipc_call *call_new(const struct ends *ends)
{
    ipc_call *call;

    EXPECT_EQ(ipc_call_start(&call, ends->client, "call", 4, NULL), 0);
    return call;
}

/* Waits for it. The client has to look, or it would not meet its server. */
static struct ipc_request *request_of(const struct ends *ends)
{
    struct ipc_request *request;

    while (ipc_server_receive(ends->server, NULL, 0, &request, 1000000) < 0)
        EXPECT(ipc_client_dispatch(ends->client, 0) >= 0);
    return request;
}

static void answer(const struct ends *ends, struct ipc_request *request, ipc_call *call)
{
    EXPECT_EQ(ipc_request_reply(request, "answer", 6, NULL), 0);
    EXPECT_EQ(ipc_call_wait(call, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_call_next(call, NULL, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_call_next(call, NULL, IPC_FOREVER), 0);
    EXPECT(ipc_call_free(call) == NULL);
    EXPECT(ipc_client_dispatch(ends->client, 0) >= 0);
}

static void stop_and_await_draining(void)
{
    struct ipc_error error;
    ipc_connection *refused;
    int result;

    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    while ((result = ipc_connection_open(&refused, NULL, NULL, &error)) == 0)
        ipc_connection_close(refused);
    EXPECT_EQ(result, -ESHUTDOWN);
    EXPECT_TEXT(error.text, "the broker stops");
}

static void test_calls_are_answered(void **state)
{
    struct ipc_error error;
    struct ipc_reply reply;
    ipc_client *late;
    ipc_call *call, *more;
    char buffer[8];
    (void)state;

    start(3600);
    struct ends ends = ends_new(0);
    call = call_new(&ends);
    struct ipc_request *request = request_of(&ends);
    stop_and_await_draining();
    EXPECT_EQ(ipc_call_start(&more, ends.client, "more", 4, NULL), -ESHUTDOWN);
    EXPECT_EQ(ipc_client_call(ends.client, "more", 4, buffer, sizeof(buffer), NULL, &reply), -ESHUTDOWN);
    EXPECT_TEXT(reply.text, "the broker stops");
    EXPECT_EQ(ipc_client_open(&late, ends.calling, SERVICE, NULL, &error), -ESHUTDOWN);
    EXPECT_TEXT(error.text, "the broker stops");
    answer(&ends, request, call);
    expect_stopped();
    expect_shutdown(ends.calling);
    expect_shutdown(ends.serving);
}

static void test_calls_only_so_long(void **state)
{
    ipc_call *call;
    (void)state;

    start(1);
    struct ends ends = ends_new(0);
    call = call_new(&ends);
    (void)request_of(&ends);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    EXPECT_EQ(ipc_call_next(call, NULL, IPC_FOREVER), -EPIPE);
    EXPECT(ipc_call_free(call) == NULL);
    expect_stopped();
    expect_shutdown(ends.calling);
    expect_shutdown(ends.serving);
}

/* Clients that have no call open are not asked, and whoever gave one up is not waited for. */
static void test_no_calls_to_wait_for(void **state)
{
    ipc_call *call;
    (void)state;

    start(3600);
    struct ends ends = ends_new(0);
    call = call_new(&ends);
    answer(&ends, request_of(&ends), call);
    call = call_new(&ends);
    (void)request_of(&ends);
    EXPECT(ipc_call_free(call) == NULL);
    EXPECT_EQ(kill(broker.pid, SIGTERM), 0);
    expect_stopped();
    expect_shutdown(ends.calling);
    expect_shutdown(ends.serving);
}

/* Where there will be another broker, calls are kept for it. */
static void test_calls_of_who_reconnects_are_kept(void **state)
{
    ipc_call *call, *more;
    (void)state;

    start(3600);
    struct ends ends = ends_new(IPC_CONNECTION_RECONNECT);
    call = call_new(&ends);
    struct ipc_request *request = request_of(&ends);
    stop_and_await_draining();
    more = call_new(&ends);
    answer(&ends, request, call);
    expect_stopped();
    EXPECT_EQ(ipc_call_wait(more, 0), -EAGAIN);
    ipc_connection_close(ends.calling);
    expect_shutdown(ends.serving);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_consumers_finish),
        cmocka_unit_test(test_only_so_long),
        cmocka_unit_test(test_asked_twice),
        cmocka_unit_test(test_refusals_are_not_lost),
        cmocka_unit_test(test_nothing_to_wait_for),
        cmocka_unit_test(test_calls_are_answered),
        cmocka_unit_test(test_calls_only_so_long),
        cmocka_unit_test(test_no_calls_to_wait_for),
        cmocka_unit_test(test_calls_of_who_reconnects_are_kept),
    };
    expect_here();
    watchdog(120, "drain");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
