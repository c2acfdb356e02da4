/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs of the file index share: see common.h.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"

static const char *program = "fileindex";

void die(const char *format, ...)
{
    va_list arguments;

    fflush(stdout);
    fprintf(stderr, "%s: ", program);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void *must(void *allocation)
{
    if (allocation == NULL)
        die("out of memory");
    return allocation;
}

ipc_connection *job_connect(const char *name)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error;
    ipc_connection *connection;

    program = name;
    options.name = name;
    if (ipc_connection_open(&connection, NULL, &options, &error) < 0)
        die("%s", error.text);
    return connection;
}

ipc_publisher *job_publisher(ipc_connection *connection, const char *topic)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error;
    ipc_publisher *publisher;

    options.ring_size = RING_SIZE;
    options.flags = IPC_PUBLISHER_TIMESTAMP;
    options.block_max_ns = IPC_FOREVER; /* a slow reader slows the job down, and loses nothing */
    if (ipc_publisher_open(&publisher, connection, topic, &options, &error) < 0)
        die("%s", error.text);
    return publisher;
}

ipc_subscription *job_subscription(ipc_connection *connection, const char *pattern)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_error error;
    ipc_subscription *subscription;

    options.slow = IPC_SLOW_BLOCK;
    if (ipc_subscription_open(&subscription, connection, pattern, &options, &error) < 0)
        die("%s", error.text);
    return subscription;
}

bool job_event(ipc_connection *connection, struct ipc_event *ret)
{
    struct ipc_event event;
    int r;

    while ((r = ipc_connection_next_event(connection, &event)) != 0) {
        if (r < 0) {
            if (r != -EOVERFLOW)
                die("reading events: %s", strerror(-r));
            continue;
        }
        if (event.kind == IPC_EVENT_ENDED)
            die("the broker ended the session: %s", ipc_reason_text(event.reason));
        *ret = event;
        return true;
    }
    return false;
}

/* ---- headers --------------------------------------------------------------------------------------------- */

void headers_add(struct headers *headers, const char *name, const char *value)
{
    if (headers->count == sizeof(headers->list) / sizeof(headers->list[0]))
        die("too many headers");
    headers->list[headers->count++] = (struct ipc_header){name, value, strlen(value)};
}

void headers_add_number(struct headers *headers, const char *name, uint64_t value)
{
    char *text = headers->text[headers->count % 8];

    snprintf(text, sizeof(headers->text[0]), "%llu", (unsigned long long)value);
    headers_add(headers, name, text);
}

void job_publish(ipc_publisher *publisher, const char *type, const struct headers *headers, const void *data,
                 size_t size)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    struct iovec piece = {(void *)data, size};
    int r;

    how.content_type = type;
    how.headers = headers->list;
    how.header_count = headers->count;
    r = ipc_publisher_publishv(publisher, &piece, 1, &how);
    if (r < 0)
        die("publishing: %s", strerror(-r));
}

bool message_is(const struct ipc_message *message, const char *type)
{
    return message->content_type != NULL && strcmp(message->content_type, type) == 0;
}

uint64_t message_number(const struct ipc_message *message, const char *name)
{
    const void *value;
    size_t size;
    uint64_t number = 0;

    if (ipc_message_header(message, name, &value, &size) < 0)
        die("a message on %s has no header '%s'", message->topic, name);
    for (size_t i = 0; i < size; i++) {
        unsigned digit = (unsigned)((const unsigned char *)value)[i] - '0';

        if (digit > 9 || __builtin_mul_overflow(number, UINT64_C(10), &number) ||
            __builtin_add_overflow(number, (uint64_t)digit, &number))
            die("header '%s' of a message on %s is not a number", name, message->topic);
    }
    return number;
}

char *message_text(const struct ipc_message *message, const char *name)
{
    const void *value;
    size_t size;
    char *text;

    if (ipc_message_header(message, name, &value, &size) < 0)
        die("a message on %s has no header '%s'", message->topic, name);
    text = must(malloc(size + 1));
    if (size > 0)
        memcpy(text, value, size);
    text[size] = '\0';
    return text;
}

/* ---- time ------------------------------------------------------------------------------------------------ */

uint64_t realtime_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void latency_add(struct latency *latency, uint64_t ns)
{
    unsigned power = ns < 16 ? 0
                             : 60u - (unsigned)__builtin_clzll(ns); /* shift that leaves 4 bits and the 1 */
    size_t bucket = ns < 16 ? (size_t)ns : (size_t)power * 16 + (size_t)(ns >> (power - 1)) % 16;

    latency->count++;
    latency->sum_ns += ns;
    latency->buckets[bucket]++;
}

uint64_t latency_percentile_ns(const struct latency *latency, unsigned percent)
{
    uint64_t rank = (latency->count * percent + 99) / 100;
    uint64_t seen = 0;

    for (size_t i = 0; i < sizeof(latency->buckets) / sizeof(latency->buckets[0]); i++) {
        seen += latency->buckets[i];
        if (seen >= rank) /* the bucket's upper end */
            return i < 16 ? i : ((uint64_t)(i % 16 + 17) << (i / 16 - 1)) - 1;
    }
    return 0;
}
