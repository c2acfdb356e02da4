/* SPDX-License-Identifier: Apache-2.0
 *
 * Many small messages at a time, cheaper than one by one: publish_batch and receive_batch.
 *
 *     ipcd-run --private -- batch
 */
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

enum { BATCH = 100, BATCHES = 50 };

int main(void)
{
    struct ipc_subscription_options block = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_connection *publishing, *subscribing;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    uint64_t next = 0, received = 0, calls = 0;

    block.slow = IPC_SLOW_BLOCK; /* none may be missed */
    check(ipc_connection_open(&publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, publishing, "ticks", NULL, NULL), "advertising");
    check(ipc_subscription_open(&subscription, subscribing, "ticks", &block, NULL), "subscribing");
    check(ipc_publisher_wait_readers(publisher, 1, 10 * SECOND), "waiting for the reader");

    for (unsigned batch = 0; batch < BATCHES; batch++) {
        uint64_t numbers[BATCH];
        struct iovec pieces[BATCH];

        for (unsigned i = 0; i < BATCH; i++) {
            numbers[i] = next++;
            pieces[i] = (struct iovec){&numbers[i], sizeof(numbers[i])};
        }
        expect(check(ipc_publisher_publish_batch(publisher, pieces, BATCH, 0), "publishing") == BATCH,
               "all of a batch was published");

        while (received < next) {
            struct ipc_message messages[64];
            unsigned char buffer[4096]; /* payloads lie here one after the other */
            ssize_t n = check(ipc_subscription_receive_batch(subscription, buffer, sizeof(buffer), messages,
                                                             64, 10 * SECOND),
                              "receiving");

            calls++;
            for (ssize_t i = 0; i < n; i++) {
                uint64_t number;

                expect(messages[i].size == sizeof(number), "a message is one number");
                memcpy(&number, messages[i].data, sizeof(number));
                expect(number == received && messages[i].sequence == received, "in order, none missing");
                received++;
            }
        }
    }
    printf("%llu messages in %u calls to publish and %llu to receive\n", (unsigned long long)received,
           (unsigned)BATCHES, (unsigned long long)calls);
    expect(received == BATCH * BATCHES && calls < received, "everything came, several at a time");
    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    return 0;
}
