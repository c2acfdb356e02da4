/* SPDX-License-Identifier: Apache-2.0
 *
 * The shortest subscriber: waits for one message on "greetings" and prints it, with the sender's name.
 *
 *     hello_subscribe & hello_publish      (both need a broker: ipcd-run --private -- sh gives a shell with one)
 */
#include <stdio.h>
#include <string.h>

#include <ipc/ipc.h>

int main(void)
{
    ipc_connection *connection;
    ipc_subscription *subscription;
    struct ipc_error error;
    struct ipc_message message;
    char buffer[256];
    ssize_t size;

    if (ipc_connection_open(&connection, NULL, NULL, &error) < 0 ||
        ipc_subscription_open(&subscription, connection, "greetings", NULL, &error) < 0) {
        fprintf(stderr, "hello_subscribe: %s\n", error.text);
        return 1;
    }
    size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message,
                                    INT64_C(10000000000)); /* 10 s */
    if (size < 0)
        fprintf(stderr, "hello_subscribe: %s\n", strerror((int)-size));
    else
        printf("%s: %.*s, from %s\n", message.topic, (int)size, buffer, message.sender->name);
    ipc_connection_close(connection); /* and the subscription with it */
    return size == 5 && memcmp(buffer, "hello", 5) == 0 ? 0 : 1;
}
