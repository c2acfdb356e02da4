/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: any number of them may use one connection. A publisher or a subscription belongs to one thread at a
 * time, so each thread has its own. Each of four publishing threads counts to 10,000 on its topic; each of two
 * reading threads gets all of it.
 *
 *     ipcd-run --private -- threads
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
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

enum { PUBLISHERS = 4, READERS = 2, MESSAGES = 10000 };

static ipc_connection *connection; /* shared by all threads */

static void *publish(void *argument)
{
    ipc_publisher *publisher = argument;

    check(ipc_publisher_wait_readers(publisher, READERS, 10 * SECOND), "waiting for the readers");
    for (uint64_t number = 0; number < MESSAGES; number++)
        check(ipc_publisher_publish(publisher, &number, sizeof(number)), "publishing");
    return NULL;
}

static void *receive(void *argument)
{
    ipc_subscription *subscription = argument;
    uint64_t next[PUBLISHERS] = {0};

    for (unsigned n = 0; n < PUBLISHERS * MESSAGES; n++) {
        struct ipc_message message;
        unsigned publisher;
        uint64_t number;

        check(ipc_subscription_receive(subscription, &number, sizeof(number), &message, 10 * SECOND),
              "receiving");
        publisher = (unsigned)(message.topic[strlen("numbers.")] - '0');
        expect(publisher < PUBLISHERS, "the topic is one of ours");
        expect(number == next[publisher],
               "each publisher's messages come in order"); /* among them: no order */
        next[publisher]++;
    }
    return NULL;
}

int main(void)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_publisher_options patient = IPC_PUBLISHER_OPTIONS_INIT;
    pthread_t threads[PUBLISHERS + READERS];
    ipc_publisher *publishers[PUBLISHERS];
    ipc_subscription *subscriptions[READERS];

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    options.slow = IPC_SLOW_BLOCK;
    patient.block_max_ns = IPC_FOREVER;    /* however long a reader takes */
    options.flags = IPC_SUBSCRIPTION_SELF; /* our own connection's publishers, too */
    for (unsigned i = 0; i < READERS; i++)
        check(ipc_subscription_open(&subscriptions[i], connection, "numbers.*", &options, NULL),
              "subscribing");
    for (unsigned i = 0; i < PUBLISHERS; i++) {
        char topic[32];

        snprintf(topic, sizeof(topic), "numbers.%u", i);
        check(ipc_publisher_open(&publishers[i], connection, topic, &patient, NULL), "advertising");
    }

    for (unsigned i = 0; i < READERS; i++)
        check(-pthread_create(&threads[i], NULL, receive, subscriptions[i]), "starting a thread");
    for (unsigned i = 0; i < PUBLISHERS; i++)
        check(-pthread_create(&threads[READERS + i], NULL, publish, publishers[i]), "starting a thread");
    for (unsigned i = 0; i < PUBLISHERS + READERS; i++)
        check(-pthread_join(threads[i], NULL), "joining a thread");

    printf("%d threads over one connection, %d messages received\n", PUBLISHERS + READERS,
           PUBLISHERS * READERS * MESSAGES);
    ipc_connection_close(connection); /* one thread, when no other uses it any more */
    return 0;
}
