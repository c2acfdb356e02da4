/* SPDX-License-Identifier: Apache-2.0
 *
 * The shortest consumer: takes a task from a queue, does it, and says so.
 *
 *     hello_send; hello_work      (both need a broker: ipcd-run --private -- sh gives a shell with one)
 */
#include <stdio.h>

#include <ipc/ipc.h>

int main(void)
{
    ipc_connection *connection;
    ipc_consumer *consumer;
    struct ipc_queue_message message;
    struct ipc_error error;
    char task[256];

    if (ipc_connection_open(&connection, NULL, NULL, &error) < 0 ||
        ipc_consumer_open(&consumer, connection, "tasks", NULL, &error) < 0) {
        fprintf(stderr, "hello_work: %s\n", error.text);
        return 1;
    }
    ssize_t size = ipc_consumer_receive(consumer, task, sizeof(task), &message, IPC_FOREVER);
    if (size < 0)
        return 1;
    printf("attempt %u: %.*s\n", message.attempt, (int)size, task);
    if (ipc_consumer_ack(consumer, message.delivery) < 0) /* without this, another one would get it */
        return 1;
    ipc_connection_close(connection);
    return 0;
}
