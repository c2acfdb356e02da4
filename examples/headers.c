/* SPDX-License-Identifier: Apache-2.0
 *
 * What a message carries beside its payload: a content type, headers of the user's choice, a sequence number,
 * the time of publishing, and who sent it, as the broker knows it (not as the sender says).
 *
 *     ipcd-run --private -- headers
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void publish(ipc_publisher *publisher)
{
    /* Values are bytes: text, binary, or nothing at all. */
    static const unsigned char trace[4] = {0x00, 0xff, 0x10, 0x80};
    const struct ipc_header list[] = {
        {"unit", "celsius", 7}, {"trace", trace, sizeof(trace)}, {"final", NULL, 0}};
    struct ipc_publish how = IPC_PUBLISH_INIT;
    struct iovec pieces[] = {{(void *)"{\"value\":", 9}, {(void *)"21.5", 4}, {(void *)"}", 1}};

    how.content_type = "application/json";
    how.headers = list;
    how.header_count = 3;
    check(ipc_publisher_publishv(publisher, pieces, 3, &how), "publishing"); /* gathered from three pieces */
}

static void show(const struct ipc_message *message)
{
    const char *name;
    const void *value;
    size_t position = 0, name_size, value_size, count = 0;

    printf("%s %llu, sent at %llu ns by %s (process %u, user %u)\n", message->topic,
           (unsigned long long)message->sequence, (unsigned long long)message->timestamp_ns,
           message->sender->name, (unsigned)message->sender->pid, (unsigned)message->sender->uid);
    printf("content type: %s\n", message->content_type);
    while (ipc_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1) {
        printf("header %.*s: %zu bytes\n", (int)name_size, name, value_size);
        count++;
    }
    printf("%.*s\n", (int)message->size, (const char *)message->data);
    expect(count == 3, "all three headers came");
}

int main(void)
{
    struct ipc_connection_options name = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_publisher_options stamp = IPC_PUBLISHER_OPTIONS_INIT;
    ipc_connection *publishing, *subscribing;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    struct ipc_message message;
    const void *value;
    size_t size;
    char buffer[256];

    name.name = "thermometer";
    stamp.flags = IPC_PUBLISHER_TIMESTAMP;
    check(ipc_connection_open(&publishing, NULL, &name, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, publishing, "plant.7.temperature", &stamp, NULL), "advertising");
    check(ipc_subscription_open(&subscription, subscribing, "plant.>", NULL, NULL), "subscribing");
    check(ipc_publisher_wait_readers(publisher, 1, 10 * SECOND), "waiting for the reader");

    publish(publisher);
    check(ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, 10 * SECOND), "receiving");
    show(&message);
    expect(message.size == 14 && memcmp(buffer, "{\"value\":21.5}", 14) == 0, "the pieces were joined");
    expect(message.content_type != NULL && strcmp(message.content_type, "application/json") == 0,
           "the content type");
    expect(message.timestamp_ns > 0 && message.sequence == 0 && message.lost == 0, "stamped, and the first");
    expect(strcmp(message.sender->name, "thermometer") == 0 && message.sender->pid == (uint32_t)getpid() &&
               message.sender->uid == getuid(),
           "the sender is known");

    check(ipc_message_header(&message, "unit", &value, &size), "the header unit");
    expect(size == 7 && memcmp(value, "celsius", 7) == 0, "unit is celsius");
    check(ipc_message_header(&message, "trace", &value, &size), "the header trace");
    expect(size == 4 && memcmp(value, "\x00\xff\x10\x80", 4) == 0, "trace came byte by byte");
    check(ipc_message_header(&message, "final", &value, &size), "the header final");
    expect(size == 0, "final is empty");
    expect(ipc_message_header(&message, "other", &value, &size) == -ENOENT, "there is no other");

    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    return 0;
}
