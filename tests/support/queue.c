/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/queue.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SIZE_MAX_USED 65536

static void told(const char *queue, int result, const struct ipc_error *error)
{
    if (result < 0)
        fprintf(stderr, "%s: %s\n", queue, error->text);
    EXPECT_EQ(result, 0);
}

void queue_new(ipc_connection *connection, const char *queue, const struct ipc_queue_settings *settings)
{
    struct ipc_error error = {0};
    told(queue, ipc_queue_create(connection, queue, settings, 0, &error), &error);
}

ipc_producer *producer_new(ipc_connection *connection, const char *queue)
{
    struct ipc_error error = {0};
    ipc_producer *producer = NULL;
    told(queue, ipc_producer_open(&producer, connection, queue, NULL, &error), &error);
    return producer;
}

ipc_consumer *consumer_new(ipc_connection *connection, const char *queue, uint32_t prefetch)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_consumer *consumer = NULL;
    options.prefetch = prefetch;
    told(queue, ipc_consumer_open(&consumer, connection, queue, &options, &error), &error);
    return consumer;
}

void producer_end(ipc_producer *producer)
{
    struct ipc_producer_stats stats;
    EXPECT_EQ(ipc_producer_stats(producer, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    ipc_producer_close(producer);
}

void consumer_end(ipc_consumer *consumer)
{
    struct ipc_consumer_stats stats;
    EXPECT_EQ(ipc_consumer_stats(consumer, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    ipc_consumer_close(consumer);
}

void send_numbers(ipc_producer *producer, uint64_t from, uint64_t to, size_t size)
{
    unsigned char buffer[4096];
    EXPECT(size >= 8 && size <= sizeof(buffer));
    for (uint64_t number = from; number < to; number++) {
        message_fill(buffer, size, number);
        EXPECT_EQ(ipc_producer_send(producer, buffer, size, IPC_FOREVER, NULL), 0);
    }
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
}

uint64_t receive_number(ipc_consumer *consumer, struct ipc_queue_message *message)
{
    static _Thread_local unsigned char buffer[SIZE_MAX_USED];
    uint64_t number;
    ssize_t size = ipc_consumer_receive(consumer, buffer, sizeof(buffer), message, IPC_FOREVER);
    EXPECT(size >= (ssize_t)sizeof(number));
    memcpy(&number, buffer, sizeof(number));
    EXPECT(message_holds(buffer, (size_t)size, number));
    return number;
}

void receive_acked(ipc_consumer *consumer, uint64_t from, uint64_t to)
{
    struct ipc_queue_message message;
    for (uint64_t number = from; number < to; number++) {
        EXPECT_EQ(receive_number(consumer, &message), number);
        EXPECT_EQ(message.attempt, 1);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
}

void receive_nothing(ipc_consumer *consumer)
{
    struct ipc_queue_message message;
    unsigned char buffer[64];
    EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_consumer_receive(consumer, buffer, sizeof(buffer), &message, 0), -EAGAIN);
}

void send_text(ipc_producer *producer, const char *text, const struct ipc_send *how)
{
    struct iovec piece = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};
    struct ipc_error error = {0};
    uint64_t ticket;
    EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, how, IPC_FOREVER, &ticket), 0);
    told(text, ipc_producer_confirm(producer, ticket, IPC_FOREVER, &error), &error);
}

struct ipc_queue_message receive_text(ipc_consumer *consumer, const char *text)
{
    static _Thread_local char buffer[4096];
    struct ipc_queue_message message;
    ssize_t size = ipc_consumer_receive(consumer, buffer, sizeof(buffer) - 1, &message, IPC_FOREVER);
    EXPECT(size >= 0);
    buffer[size] = '\0';
    if (strcmp(buffer, text) != 0)
        fprintf(stderr, "received \"%s\", not \"%s\"\n", buffer, text);
    EXPECT(strcmp(buffer, text) == 0);
    return message;
}
