/* SPDX-License-Identifier: Apache-2.0
 *
 * The last value: who comes late still learns how things stand. A publisher with IPC_PUBLISHER_RETAIN leaves
 * its lane behind when it ends; a subscription with IPC_START_LAST begins with the last message there.
 *
 *     ipcd-run --private -- last_value
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/ipc.h>

#define SECOND INT64_C(1000000000)

/* Every call that can fail is asked whether it did. */
static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

static void expect(bool fact, const char *what)
{
    if (!fact) {
        fprintf(stderr, "not true: %s\n", what);
        exit(1);
    }
}

static void publish_and_leave(void)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    ipc_connection *connection;
    ipc_publisher *publisher;

    options.flags = IPC_PUBLISHER_RETAIN;
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, connection, "plant.7.temperature", &options, NULL), "advertising");
    check(ipc_publisher_publish(publisher, "20.5", 4), "publishing");
    check(ipc_publisher_publish(publisher, "21.0", 4), "publishing");
    check(ipc_publisher_publish(publisher, "21.5", 4), "publishing");
    ipc_connection_close(connection);
}

int main(void)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_connection *connection;
    ipc_subscription *subscription;
    char buffer[64];
    ssize_t size;

    publish_and_leave(); /* nobody listens yet, and the publisher is gone before anybody does */

    options.start = IPC_START_LAST;
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_subscription_open(&subscription, connection, "plant.7.temperature", &options, NULL),
          "subscribing");
    size =
        check(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 10 * SECOND), "receiving");
    printf("the last temperature: %.*s\n", (int)size, buffer);
    expect(size == 4 && memcmp(buffer, "21.5", 4) == 0, "the last value is 21.5");
    ipc_connection_close(connection);
    return 0;
}
