/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs of the file index share: the words of their protocol, and a few helpers around libipc.
 *
 *     walk    publishes files.header, files.source, files.other: the content of each file, in parts, each with
 *             the headers file, path, part, parts, size; then on each of the three a message of type TYPE_END
 *     digest, count, identifiers
 *             read files.>, and publish results.digest, results.count, results.identifiers: one message per
 *             file with the headers file and path, then one of type TYPE_END with what they measured
 *     collect reads results.>
 *
 * walk publishes results.walk, too: what became of each file. An end message carries the header "status":
 * "done", or why the job was given up. A program that leaves without one has failed; the broker says so to all
 * who read from it, so nobody waits for it.
 */
#ifndef FILEINDEX_COMMON_H
#define FILEINDEX_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ipc/ipc.h>

#define TYPE_PART      "application/octet-stream"
#define TYPE_ABANDONED "application/vnd.fileindex.abandoned" /* forget this file's parts: it changed */
#define TYPE_RESULT    "text/plain"
#define TYPE_END       "application/vnd.fileindex.end"

#define LANES         3u                         /* topics below "files" */
#define WORKERS       3u                         /* readers of each of them */
#define PART_SIZE_MAX ((size_t)256 * 1024)       /* bytes of a file in one message */
#define RING_SIZE     ((uint32_t)1024 * 1024)    /* holds at least two parts with their headers */
#define START_NS      (INT64_C(30) * 1000000000) /* for the programs to find each other */
#define TICK_NS       (INT64_C(100) * 1000000)   /* how often one who waits looks for events */

/* Print "program: sentence" and exit with status 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* As malloc and so on, but never NULL. */
void *must(void *allocation);

/* Connect to the broker of IPC_ADDRESS under this program's name. */
ipc_connection *job_connect(const char *name);
ipc_publisher *job_publisher(ipc_connection *connection, const char *topic);
ipc_subscription *job_subscription(ipc_connection *connection, const char *pattern);

/* True if somebody joined or left; the event is stored. */
bool job_event(ipc_connection *connection, struct ipc_event *ret);

/* ---- headers --------------------------------------------------------------------------------------------- */

struct headers {
    size_t count;
    struct ipc_header list[8];
    char text[8][24];
};
void headers_add(struct headers *headers, const char *name, const char *value);
void headers_add_number(struct headers *headers, const char *name, uint64_t value);

/* Publish with a content type and headers. */
void job_publish(ipc_publisher *publisher, const char *type, const struct headers *headers, const void *data,
                 size_t size);

bool message_is(const struct ipc_message *message, const char *type);

/* The value of a header, which must be there. */
uint64_t message_number(const struct ipc_message *message, const char *name);
char *message_text(const struct ipc_message *message, const char *name); /* yours: free() it */

/* ---- time ------------------------------------------------------------------------------------------------ */

uint64_t realtime_ns(void);

/* Latencies in buckets 1/16 of a power of two wide. */
struct latency {
    uint64_t count;
    uint64_t sum_ns;
    uint32_t buckets[64 * 16];
};
void latency_add(struct latency *latency, uint64_t ns);
uint64_t latency_percentile_ns(const struct latency *latency, unsigned percent);

#endif
