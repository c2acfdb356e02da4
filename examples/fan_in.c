/* SPDX-License-Identifier: Apache-2.0
 *
 * Fan-in: many processes put messages into one queue, and one takes them out, many at a time. Each producer's messages come
 * in the order in which it sent them.
 *
 *     ipcd-run --private -- fan_in
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipc/ipc.h>

enum { PRODUCERS = 4, MESSAGES = 10000, BATCH = 100 };

struct entry {
    uint32_t producer, number;
};

static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

static int produce(uint32_t number)
{
    ipc_connection *connection;
    ipc_producer *producer;

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_producer_open(&producer, connection, "journal", NULL, NULL), "opening the queue");
    for (uint32_t i = 0; i < MESSAGES; i += BATCH) {
        struct entry entries[BATCH];
        struct iovec messages[BATCH];

        for (uint32_t n = 0; n < BATCH; n++) {
            entries[n] = (struct entry){number, i + n};
            messages[n] = (struct iovec){&entries[n], sizeof(entries[n])};
        }
        check(ipc_producer_send_batch(producer, messages, BATCH, NULL, IPC_FOREVER, NULL), "sending");
    }
    check(ipc_producer_flush(producer, IPC_FOREVER), "everything is in the queue");
    ipc_connection_close(connection);
    return 0;
}

int main(void)
{
    ipc_connection *connection;
    ipc_consumer *consumer;
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    uint32_t next[PRODUCERS] = {0}, received = 0, calls = 0;

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_queue_create(connection, "journal", NULL, IPC_QUEUE_MAY_EXIST, NULL), "creating the queue");
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        pid_t child = fork();

        if (child == 0)
            _exit(produce(i));
        check(child, "forking");
    }

    options.prefetch = 1000;
    check(ipc_consumer_open(&consumer, connection, "journal", &options, NULL), "opening the queue");
    while (received < PRODUCERS * MESSAGES) {
        unsigned char buffer[BATCH * sizeof(struct entry)];
        struct ipc_queue_message messages[BATCH];
        ssize_t n =
            check(ipc_consumer_receive_batch(consumer, buffer, sizeof(buffer), messages, BATCH, IPC_FOREVER),
                  "receiving");

        for (ssize_t i = 0; i < n; i++) {
            const struct entry *entry = messages[i].data;

            if (entry->producer >= PRODUCERS || entry->number != next[entry->producer]++) {
                fprintf(stderr, "out of order\n");
                return 1;
            }
        }
        /* One acknowledgement for all of them. */
        check(ipc_consumer_ack_until(consumer, messages[n - 1].delivery), "acknowledging");
        received += (uint32_t)n;
        calls++;
    }
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        int status;

        check(wait(&status), "waiting");
        if (status != 0)
            return 1;
    }
    printf("%u messages of %d producers, in order, in %s calls\n", received, PRODUCERS,
           calls < received ? "fewer" : "as many");
    ipc_connection_close(connection);
    return 0;
}
