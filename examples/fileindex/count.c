/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker of the file index with nothing but two mqueues: lines, words and bytes of each file, as `wc` counts them in the C
 * locale. ipcd-mq brings what is in work.count into the one, and what is in the other to the results; of libipc there are
 * only the envelopes.
 *
 *     count WORK RESULTS [--any-byte]
 *
 * A word is a run of bytes without white space. The wc of coreutils before 9.5 counts it only if a printable
 * byte is in it; with the argument --any-byte, each such run is a word, as in later ones and in POSIX.
 *
 * ipcd-mq acknowledges work when the mqueue has it. So, unlike that of the other workers, the file that this one is at is
 * lost if it is killed. If ipcd-mq is killed, work that the mqueue had may come again.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/mq.h>

#include "common.h"

enum { SPACE = 1, LETTER = 2 };

struct count {
    uint64_t lines, words, bytes;
    bool in_word;
};

struct job {
    ipc_mq *work, *results;
    uint64_t messages, bytes, redelivered;
    bool begun;           /* with a file at all */
    uint64_t file;        /* the one in progress, or that was done last */
    uint64_t part, parts; /* of it: the next one, of how many */
    struct count count;
};

static unsigned char kinds[256];

static void count_update(struct count *state, const unsigned char *data, size_t size)
{
    struct count count = *state;

    for (size_t i = 0; i < size; i++) {
        unsigned kind = kinds[data[i]];

        count.lines += data[i] == '\n';
        if (kind == SPACE) {
            count.words += count.in_word;
            count.in_word = false;
        } else if (kind == LETTER) {
            count.in_word = true;
        }
    }
    count.bytes += size;
    *state = count;
}

/* ---- messages -------------------------------------------------------------------------------------------- */

static ipc_mq *end_open(const char *name, int flags)
{
    mqd_t mqueue = mq_open(name, flags);
    ipc_mq *end;

    if (mqueue == (mqd_t)-1)
        err(1, "%s", name);
    errno = -ipc_mq_open(&end, mqueue, NULL);
    if (errno != 0)
        err(1, "%s", name);
    return end;
}

static struct ipc_header header_of(const struct ipc_mq_message *message, const char *name)
{
    struct ipc_header header = {.name = name};

    if (ipc_mq_header(message, name, &header.value, &header.value_size) < 0)
        errx(1, "a message has no header '%s'", name);
    return header;
}

static uint64_t number_of(const struct ipc_mq_message *message, const char *name)
{
    const struct ipc_header header = header_of(message, name);
    char text[24], *end;
    uint64_t number;

    snprintf(text, sizeof(text), "%.*s", (int)header.value_size, (const char *)header.value);
    number = strtoull(text, &end, 10);
    if (end == text || *end != '\0')
        errx(1, "header '%s' of a message is not a number", name);
    return number;
}

static struct ipc_header number_header(const char *name, uint64_t number, char text[static 24])
{
    return (struct ipc_header){name, text, (size_t)snprintf(text, 24, "%" PRIu64, number)};
}

static void send_result(const struct job *job, const char *type, const char *id,
                        const struct ipc_header *headers, size_t header_count, const char *text)
{
    struct ipc_mq_message result = IPC_MQ_MESSAGE_INIT;

    result.content_type = type;
    result.id = id;
    result.id_size = strlen(id);
    result.headers = headers;
    result.header_count = header_count;
    result.data = text;
    result.data_size = strlen(text);
    errno = -ipc_mq_send(job->results, &result, IPC_FOREVER);
    if (errno != 0)
        err(1, "sending");
}

/* ---- work ------------------------------------------------------------------------------------------------ */

static void job_result(const struct job *job, const struct ipc_mq_message *last_part)
{
    const struct count *count = &job->count;
    char id[64], parts[24], text[80];
    const struct ipc_header headers[] = {
        {"from", "count", 5},
        header_of(last_part, "file"),
        header_of(last_part, "path"),
        {"part", "0", 1},
        {"last", "1", 1},
        number_header("work", job->parts, parts),
    };

    if (count->bytes != number_of(last_part, "size"))
        errx(1, "file %" PRIu64 ": %" PRIu64 " bytes announced, %" PRIu64 " received", job->file,
             number_of(last_part, "size"), count->bytes);
    snprintf(id, sizeof(id), "count %" PRIu64 " 0", job->file);
    snprintf(text, sizeof(text), "%" PRIu64 " %" PRIu64 " %" PRIu64, count->lines,
             count->words + count->in_word, count->bytes);
    send_result(job, TYPE_RESULT, id, headers, sizeof(headers) / sizeof(headers[0]), text);
}

static void job_part(struct job *job, const struct ipc_mq_message *message)
{
    uint64_t file = number_of(message, "file"), part = number_of(message, "part");

    if (message->attempt > 1 && job->begun && (file < job->file || (file == job->file && part < job->part)))
        return; /* the mqueue had it already */
    if (job->part == job->parts) {
        job->begun = true;
        job->file = file;
        job->part = 0;
        job->parts = number_of(message, "parts");
        job->count = (struct count){0};
    }
    if (file != job->file || part != job->part)
        errx(1, "part %" PRIu64 " of file %" PRIu64 " expected, not part %" PRIu64 " of file %" PRIu64,
             job->part, job->file, part, file);
    count_update(&job->count, message->data, message->data_size);
    if (++job->part == job->parts)
        job_result(job, message);
}

static void job_end(const struct job *job)
{
    char messages[24], bytes[24], redelivered[24];
    const struct ipc_header headers[] = {
        {"from", "count", 5},
        number_header("messages", job->messages, messages),
        number_header("bytes", job->bytes, bytes),
        number_header("redelivered", job->redelivered, redelivered),
        {"replaced", "0", 1},
    };

    send_result(job, TYPE_END, "count end", headers, sizeof(headers) / sizeof(headers[0]), "");
}

int main(int argc, char **argv)
{
    struct job job = {0};
    struct ipc_mq_message message;
    bool any = argc > 3 && strcmp(argv[3], "--any-byte") == 0;

    if (argc < 3)
        errx(1, "usage: count WORK RESULTS [--any-byte]");
    for (unsigned byte = 0; byte < 256; byte++) {
        if (byte == ' ' || (byte >= '\t' && byte <= '\r'))
            kinds[byte] = SPACE;
        else if (any || (byte > ' ' && byte < 0x7f))
            kinds[byte] = LETTER;
    }
    job.work = end_open(argv[1], O_RDONLY);
    job.results = end_open(argv[2], O_WRONLY);
    for (;;) {
        errno = -ipc_mq_receive(job.work, &message, IPC_FOREVER);
        if (errno != 0)
            err(1, "receiving");
        job.messages++;
        job.bytes += message.data_size;
        job.redelivered += message.attempt > 1;
        if (message.content_type == NULL)
            errx(1, "a message without a type");
        if (strcmp(message.content_type, TYPE_PART) == 0)
            job_part(&job, &message);
        else if (strcmp(message.content_type, TYPE_END) == 0 && job.part == job.parts)
            break;
        else
            errx(1, "a message of an unexpected type: %s", message.content_type);
    }
    job_end(&job);
    ipc_mq_close(job.work);
    ipc_mq_close(job.results);
    return 0;
}
