/* SPDX-License-Identifier: Apache-2.0
 *
 * A message of 1 MiB, in place: built in the publisher's lane (loan, commit) and read there (take, release).
 * It is never copied. For more than 128 KiB, a publisher asks for a larger ring; to read in place, a
 * subscription must be one that the publisher waits for (IPC_SLOW_BLOCK).
 *
 *     ipcd-run --private -- loan
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

enum { SIZE = 1024 * 1024, NUMBERS = SIZE / (int)sizeof(uint64_t) };

int main(void)
{
    struct ipc_publisher_options large = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_subscription_options block = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_connection *publishing, *subscribing;
    ipc_publisher *publisher;
    ipc_subscription *subscription;

    large.message_size_max = SIZE; /* the ring follows: at least two of these */
    block.slow = IPC_SLOW_BLOCK;
    check(ipc_connection_open(&publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, publishing, "pictures", &large, NULL), "advertising");
    check(ipc_subscription_open(&subscription, subscribing, "pictures", &block, NULL), "subscribing");
    check(ipc_publisher_wait_readers(publisher, 1, 10 * SECOND), "waiting for the reader");

    for (uint64_t round = 0; round < 8; round++) {
        struct ipc_message message;
        const uint64_t *seen;
        void *room;
        uint64_t *numbers;

        check(ipc_publisher_loan(publisher, SIZE, NULL, &room), "borrowing");
        numbers = room;
        for (uint64_t i = 0; i < NUMBERS; i++)
            numbers[i] = round + i;
        if (round == 3) { /* changed our mind: nobody ever sees this one */
            check(ipc_publisher_abort(publisher), "giving back");
            continue;
        }
        check(ipc_publisher_commit(publisher, SIZE), "publishing");

        check(ipc_subscription_take(subscription, &message, 1, 10 * SECOND), "taking");
        expect(message.size == SIZE, "it is 1 MiB");
        seen = message.data; /* the publisher's own memory, read-only here */
        for (uint64_t i = 0; i < NUMBERS; i++)
            expect(seen[i] == round + i, "it is what was written");
        check(ipc_subscription_release(subscription, 1),
              "releasing"); /* the publisher may use the room again */
    }
    printf("7 messages of 1 MiB, none of them copied\n");
    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    return 0;
}
