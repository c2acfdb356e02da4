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
#include <unistd.h>

#include "common.h"

const char *const kind_names[KINDS] = {"digest", "count", "identifiers"};
const char *const kind_transports[KINDS] = {"shared memory", "POSIX mqueue", "ZeroMQ"};

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

ipc_producer *job_producer(ipc_connection *connection, const char *queue)
{
    struct ipc_error error;
    ipc_producer *producer;

    if (ipc_producer_open(&producer, connection, queue, NULL, &error) < 0)
        die("%s", error.text);
    return producer;
}

ipc_consumer *job_consumer(ipc_connection *connection, const char *queue)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    struct ipc_error error;
    ipc_consumer *consumer;

    options.prefetch = PREFETCH;
    if (ipc_consumer_open(&consumer, connection, queue, &options, &error) < 0)
        die("%s", error.text);
    return consumer;
}

static const char *work_name(enum kind kind, char name[static 32])
{
    snprintf(name, 32, "work.%s", kind_names[kind]);
    return name;
}

ipc_producer *work_producer(ipc_connection *connection, enum kind kind)
{
    return job_producer(connection, work_name(kind, (char[32]){0}));
}

ipc_consumer *work_consumer(ipc_connection *connection, enum kind kind)
{
    return job_consumer(connection, work_name(kind, (char[32]){0}));
}

void job_flush(ipc_producer *producer)
{
    struct ipc_refusal refusal;
    int r = ipc_producer_flush(producer, IPC_FOREVER);

    if (r == -EBADMSG && ipc_producer_next_refusal(producer, &refusal) == 1)
        die("%s", refusal.text);
    if (r < 0)
        die("waiting for a queue: %s", strerror(-r));
}

ipc_publisher *news_open(ipc_connection *connection, const char *name)
{
    struct ipc_error error;
    ipc_publisher *news;
    char topic[64];

    snprintf(topic, sizeof(topic), "news.%s", name);
    if (ipc_publisher_open(&news, connection, topic, NULL, &error) < 0)
        die("%s", error.text);
    return news;
}

void news_tell(ipc_publisher *news, const char *format, ...)
{
    char text[512];
    va_list arguments;
    int size = snprintf(text, sizeof(text), "%s (%d) ", program, (int)getpid());

    va_start(arguments, format);
    vsnprintf(text + size, sizeof(text) - (size_t)size, format, arguments);
    va_end(arguments);
    if (ipc_publisher_publish(news, text, strlen(text)) < 0)
        die("publishing news failed");
}

/* ---- messages -------------------------------------------------------------------------------------------- */

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

void job_send(ipc_producer *producer, const char *type, const struct headers *headers, const char *id,
              const void *data, size_t size)
{
    struct ipc_send how = IPC_SEND_INIT;
    struct iovec piece = {(void *)data, size};
    int r;

    how.flags = IPC_SEND_TIMESTAMP;
    how.content_type = type;
    how.headers = headers->list;
    how.header_count = headers->count;
    how.id = id;
    how.id_size = id != NULL ? strlen(id) : 0;
    r = ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL);
    if (r < 0)
        die("sending: %s", strerror(-r));
}

bool message_is(const struct ipc_queue_message *message, const char *type)
{
    return message->content_type != NULL && strcmp(message->content_type, type) == 0;
}

uint64_t message_number(const struct ipc_queue_message *message, const char *name)
{
    const void *value;
    size_t size;
    uint64_t number = 0;

    if (ipc_queue_message_header(message, name, &value, &size) < 0)
        die("a message has no header '%s'", name);
    for (size_t i = 0; i < size; i++) {
        unsigned digit = (unsigned)((const unsigned char *)value)[i] - '0';

        if (digit > 9 || __builtin_mul_overflow(number, UINT64_C(10), &number) ||
            __builtin_add_overflow(number, (uint64_t)digit, &number))
            die("header '%s' of a message is not a number", name);
    }
    return number;
}

char *message_text(const struct ipc_queue_message *message, const char *name)
{
    const void *value;
    size_t size;
    char *text;

    if (ipc_queue_message_header(message, name, &value, &size) < 0)
        die("a message has no header '%s'", name);
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

/* ---- the board ------------------------------------------------------------------------------------------- */

ipc_segment *board_open(ipc_connection *connection)
{
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    struct ipc_error error;
    ipc_segment *segment;

    options.bytes = sizeof(struct board);
    options.permits = 1;
    options.flags = IPC_SEGMENT_CREATE | IPC_SEGMENT_KEEP;
    if (ipc_segment_open(&segment, connection, SEGMENT, &options, &error) < 0)
        die("%s", error.text);
    return segment;
}

struct board *board_lock(ipc_segment *segment)
{
    int r = ipc_segment_acquire(segment, IPC_FOREVER);

    if (r < 0)
        die("taking the board's permit: %s", strerror(-r));
    return ipc_segment_data(segment);
}

void board_unlock(ipc_segment *segment)
{
    ipc_segment_release(segment, 0); /* the only one */
}
