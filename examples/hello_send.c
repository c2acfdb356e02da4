/* SPDX-License-Identifier: Apache-2.0
 *
 * The shortest producer: puts a task into a queue, and knows that it is safe there.
 *
 *     hello_send; hello_work      (both need a broker: ipcd-run --private -- sh gives a shell with one)
 */
#include <stdio.h>

#include <ipc/ipc.h>

int main(void)
{
    ipc_connection *connection;
    ipc_producer *producer;
    struct ipc_error error;

    if (ipc_connection_open(&connection, NULL, NULL, &error) < 0 ||
        ipc_queue_create(connection, "tasks", NULL, IPC_QUEUE_MAY_EXIST, &error) < 0 ||
        ipc_producer_open(&producer, connection, "tasks", NULL, &error) < 0) {
        fprintf(stderr, "hello_send: %s\n", error.text);
        return 1;
    }
    if (ipc_producer_send(producer, "sweep", 5, IPC_FOREVER, NULL) < 0 ||
        ipc_producer_flush(producer, IPC_FOREVER) < 0) /* from here on it outlives us, and ipcd */
        return 1;
    ipc_connection_close(connection);
    return 0;
}
