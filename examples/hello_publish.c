/* SPDX-License-Identifier: Apache-2.0
 *
 * The shortest publisher: waits until somebody reads "greetings", and says hello.
 *
 *     hello_subscribe & hello_publish      (both need a broker: ipcd-run --private -- sh gives a shell with one)
 */
#include <stdio.h>
#include <string.h>

#include <ipc/ipc.h>

int main(void)
{
    ipc_connection *connection;
    ipc_publisher *publisher;
    struct ipc_error error;
    int r;

    if (ipc_connection_open(&connection, NULL, NULL, &error) < 0 ||
        ipc_publisher_open(&publisher, connection, "greetings", NULL, &error) < 0) {
        fprintf(stderr, "hello_publish: %s\n", error.text);
        return 1;
    }
    r = ipc_publisher_wait_readers(publisher, 1, INT64_C(10000000000)); /* 10 s */
    if (r >= 0)
        r = ipc_publisher_publish(publisher, "hello", 5);
    if (r < 0)
        fprintf(stderr, "hello_publish: %s\n", strerror(-r));
    ipc_connection_close(connection); /* and the publisher with it */
    return r < 0 ? 1 : 0;
}
