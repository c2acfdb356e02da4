/* SPDX-License-Identifier: Apache-2.0
 *
 * A session that must not be lost: numbers through a topic that it reads itself, tasks through a queue, and now and then a
 * request that the broker has to answer. Says "ready", and after SIGTERM how much it was; ends with 1 and a sentence if
 * anything failed or is missing.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/ipc.h>

#define ROUND 200u

static volatile sig_atomic_t told_to_stop;

static void on_term(int number)
{
    (void)number;
    told_to_stop = 1;
}

static void check(int64_t result, const char *what)
{
    if (result >= 0)
        return;
    printf("lost: %s: %s\n", what, strerror((int)-result));
    exit(1);
}

static void expect(uint64_t got, uint64_t wanted, const char *what)
{
    if (got == wanted)
        return;
    printf("lost: %s %" PRIu64 " came where %" PRIu64 " was due\n", what, got, wanted);
    exit(1);
}

int main(int argc, char **argv)
{
    const struct sigaction action = {.sa_handler = on_term};
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    const char *name = argc > 1 ? argv[1] : "traffic";
    char topic[64], queue[64], other[64];
    ipc_connection *connection;
    ipc_publisher *publisher, *second;
    ipc_subscription *subscription;
    ipc_producer *producer;
    ipc_consumer *consumer;
    struct ipc_error error = {0};
    struct ipc_queue_message message;
    uint64_t count = 0, requests = 0, got;
    int result;

    options.slow = IPC_SLOW_BLOCK;
    options.flags = IPC_SUBSCRIPTION_SELF;
    (void)sigaction(SIGTERM, &action, NULL);
    (void)snprintf(topic, sizeof(topic), "%s.topic", name);
    (void)snprintf(other, sizeof(other), "%s.other", name);
    (void)snprintf(queue, sizeof(queue), "%s.queue", name);
    check(ipc_connection_open(&connection, NULL, NULL, &error), error.text);
    check(ipc_publisher_open(&publisher, connection, topic, NULL, &error), "publisher");
    check(ipc_subscription_open(&subscription, connection, topic, &options, &error), "subscription");
    check(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), "waiting for the reader");
    check(ipc_queue_create(connection, queue, NULL, IPC_QUEUE_MAY_EXIST, &error), "queue");
    check(ipc_producer_open(&producer, connection, queue, NULL, &error), "producer");
    check(ipc_consumer_open(&consumer, connection, queue, NULL, &error), "consumer");
    printf("ready\n");
    (void)fflush(stdout);
    while (!told_to_stop) {
        for (uint64_t i = count; i < count + ROUND; i++)
            check(ipc_publisher_publish(publisher, &i, sizeof(i)), "publishing");
        for (uint64_t i = count; i < count + ROUND; i++) {
            check(ipc_subscription_receive(subscription, &got, sizeof(got), NULL, IPC_FOREVER), "receiving");
            expect(got, i, "message");
        }
        count += ROUND;
        check(ipc_producer_send(producer, &count, sizeof(count), IPC_FOREVER, NULL), "sending");
        check(ipc_producer_flush(producer, IPC_FOREVER), "flushing");
        check(ipc_consumer_receive(consumer, &got, sizeof(got), &message, IPC_FOREVER), "consuming");
        check(ipc_consumer_ack(consumer, message.delivery), "acknowledging");
        expect(got, count, "task");
        do /* a broker that hangs is killed later than a request gives up */
            result = ipc_publisher_open(&second, connection, other, NULL, &error);
        while (result == -ETIMEDOUT);
        check(result, "a request");
        ipc_publisher_close(second);
        requests++;
    }
    printf("%" PRIu64 " messages, %" PRIu64 " requests\n", count, requests);
    ipc_connection_close(connection);
    return 0;
}
