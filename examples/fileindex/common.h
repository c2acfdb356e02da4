/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs of the file index share: the words of their protocol, and a few helpers around libipc.
 *
 *     queues   work.digest, work.count, work.identifiers: from walk, every file for each kind of worker, in parts with
 *              the headers file, path, part, parts, size; at last a message of type TYPE_END
 *              results: from the workers, and from walk what became of each file (headers from, file, path, part,
 *              last, work, ...); from each at last a message of type TYPE_END
 *     service  fileindex: collect answers "progress" with a stream of lines, and "result" with the final table
 *     segment  fileindex.board: what the workers with libipc have handled so far, written under its one permit; the others
 *              say it with their end
 *     topics   news.>: what a program wants to be known at once, and nobody needs
 *
 * A worker acknowledges its work when the result is confirmed. Who is killed in between has its work done again, and
 * its result sent again: with the same id, by which the queue knows it. (All but count: see there.)
 */
#ifndef FILEINDEX_COMMON_H
#define FILEINDEX_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ipc/ipc.h>

#define TYPE_PART   "application/octet-stream"
#define TYPE_RESULT "text/plain"
#define TYPE_END    "application/vnd.fileindex.end"

#define QUEUE_RESULTS "results"
#define SERVICE       "fileindex"
#define SEGMENT       "fileindex.board"
#define NEWS          "news.>"

#define PART_SIZE_MAX ((size_t)256 * 1024) /* bytes of a file, or of a result, in one message */
#define FILE_SIZE_MAX \
 ((size_t)32 * 1024 * 1024) /* a worker has all parts of a file open, and its queue holds them */
#define PREFETCH 256u       /* more than a file has parts */
#define TICK_NS  (INT64_C(50) * 1000000)

enum kind { DIGEST, COUNT, IDENTIFIERS, KINDS };
extern const char *const kind_names[KINDS], *const kind_transports[KINDS];

/* Print "program: sentence" and exit with status 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* As malloc and so on, but never NULL. */
void *must(void *allocation);

/* Connect to the broker of IPC_ADDRESS under this program's name. */
ipc_connection *job_connect(const char *name);

/* The queues are those of ipcd.conf. */
ipc_producer *job_producer(ipc_connection *connection, const char *queue);
ipc_consumer *job_consumer(ipc_connection *connection, const char *queue);
ipc_producer *work_producer(ipc_connection *connection, enum kind kind);
ipc_consumer *work_consumer(ipc_connection *connection, enum kind kind);

/* Wait until all that was sent is in its queue, where the death of nobody loses it. */
void job_flush(ipc_producer *producer);

/* Tell everybody who listens: "program (pid) sentence". */
ipc_publisher *news_open(ipc_connection *connection, const char *name);
void news_tell(ipc_publisher *news, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- messages -------------------------------------------------------------------------------------------- */

struct headers {
    size_t count;
    struct ipc_header list[8];
    char text[8][24];
};
void headers_add(struct headers *headers, const char *name, const char *value);
void headers_add_number(struct headers *headers, const char *name, uint64_t value);

/* Send with a content type, headers, and an id if there is one. */
void job_send(ipc_producer *producer, const char *type, const struct headers *headers, const char *id,
              const void *data, size_t size);

bool message_is(const struct ipc_queue_message *message, const char *type);

/* The value of a header, which must be there. */
uint64_t message_number(const struct ipc_queue_message *message, const char *name);
char *message_text(const struct ipc_queue_message *message, const char *name); /* yours: free() it */

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

/* ---- the board ------------------------------------------------------------------------------------------- */

/* The shared segment. A worker that is killed leaves what it wrote, and the next one adds to it. */
struct board {
    struct tally {
        uint64_t replaced;    /* workers that died before the one that has begun last */
        uint64_t messages;    /* taken from the queue, those that came again included */
        uint64_t bytes;       /* in them */
        uint64_t redelivered; /* of the messages */
        struct latency latency;
    } kinds[KINDS];
};

/* The board is made by whoever comes first, and stays until it is removed. */
ipc_segment *board_open(ipc_connection *connection);

/* Only between these two may it be read or written. */
struct board *board_lock(ipc_segment *segment);
void board_unlock(ipc_segment *segment);

#endif
