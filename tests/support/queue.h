/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues for tests with processes: made, sent to and received from, each call checked.
 */
#ifndef IPC_TESTS_QUEUE_H
#define IPC_TESTS_QUEUE_H

#include "tests/support/broker.h"

void queue_new(ipc_connection *connection, const char *queue, const struct ipc_queue_settings *settings);
ipc_producer *producer_new(ipc_connection *connection, const char *queue);
ipc_consumer *consumer_new(ipc_connection *connection, const char *queue, uint32_t prefetch);
/* Close; it must not have needed the bounded wait. */
void producer_end(ipc_producer *producer);
void consumer_end(ipc_consumer *consumer);

/* Send numbers [from, to) with messages of that size (message_fill()), and have them confirmed. */
void send_numbers(ipc_producer *producer, uint64_t from, uint64_t to, size_t size);

/* Receive a message, waited for: its number; its content must be right. */
uint64_t receive_number(ipc_consumer *consumer, struct ipc_queue_message *message);

/* Receive numbers [from, to) one by one, each the first time, and acknowledge them. */
void receive_acked(ipc_consumer *consumer, uint64_t from, uint64_t to);

/* Nothing comes: whoever else the queue could give it to is not there. Known once an answer of this consumer has been taken in. */
void receive_nothing(ipc_consumer *consumer);

/* Send a text, confirmed. */
void send_text(ipc_producer *producer, const char *text, const struct ipc_send *how);
/* Receive a text, waited for. */
struct ipc_queue_message receive_text(ipc_consumer *consumer, const char *text);

#endif
