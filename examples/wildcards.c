/* SPDX-License-Identifier: Apache-2.0
 *
 * Wildcards: '*' stands for exactly one level of a name, a final '>' for one or more.
 *
 *     ipcd-run --private -- wildcards
 */
#include <errno.h>
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

static const struct {
    const char *name;
    unsigned readers; /* of the patterns below */
} topics[] = {
    {"plant.1.temperature", 3}, {"plant.2.temperature", 5}, {"plant.2.pressure", 5},
    {"plant.2.pump.speed", 3},  {"office.temperature", 1},
};
enum { TOPICS = sizeof(topics) / sizeof(topics[0]) };

static const struct {
    const char *pattern;
    unsigned matches; /* of the topics above */
} patterns[] = {
    {"plant.2.pressure", 1}, {"plant.*.temperature", 2},
    {"plant.2.*", 2},        {"plant.2.>", 3},
    {"plant.>", 4},          {">", 5},
};
enum { PATTERNS = sizeof(patterns) / sizeof(patterns[0]) };

int main(void)
{
    ipc_connection *publishing, *subscribing;
    ipc_subscription *subscriptions[PATTERNS];
    struct ipc_error error;

    check(ipc_connection_open(&publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    for (unsigned i = 0; i < PATTERNS; i++)
        check(ipc_subscription_open(&subscriptions[i], subscribing, patterns[i].pattern, NULL, NULL),
              "subscribing");

    for (unsigned i = 0; i < TOPICS; i++) {
        ipc_publisher *publisher;
        const char *name = topics[i].name;

        check(ipc_publisher_open(&publisher, publishing, name, NULL, NULL), "advertising");
        check(ipc_publisher_wait_readers(publisher, topics[i].readers, 10 * SECOND),
              "waiting for the readers");
        check(ipc_publisher_publish(publisher, name, strlen(name)), "publishing");
        ipc_publisher_close(publisher); /* its readers still get what it published */
    }

    for (unsigned i = 0; i < PATTERNS; i++) {
        printf("%s\n", patterns[i].pattern);
        for (unsigned n = 0; n < patterns[i].matches; n++) {
            struct ipc_message message;
            char buffer[256];
            ssize_t size = check(
                ipc_subscription_receive(subscriptions[i], buffer, sizeof(buffer), &message, 10 * SECOND),
                "receiving");

            printf("    %s\n", message.topic);
            expect((size_t)size == strlen(message.topic) && memcmp(buffer, message.topic, (size_t)size) == 0,
                   "a message comes on the topic that it was published on");
        }
        expect(ipc_subscription_receive(subscriptions[i], NULL, 0, NULL, 0) == -EAGAIN, "no more match");
    }

    /* A bad name is refused, with a sentence that says why. */
    expect(ipc_subscription_open(&subscriptions[0], subscribing, "plant..pressure", NULL, &error) == -EINVAL,
           "an empty level is refused");
    printf("plant..pressure: %s\n", error.text);

    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    return 0;
}
