/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop of a worker: take work, send results, wait until they are confirmed, acknowledge the work.
 *
 * The parts of a file come in order, with nothing between them. They are acknowledged together, with the result of the
 * last one: whoever takes over from a worker that was killed gets the file from its beginning.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

#define BATCH 32

struct job {
    const struct worker *worker;
    ipc_publisher *news;
    ipc_segment *board;
    ipc_consumer *work;
    ipc_producer *results;
    char *path; /* of the file in progress; NULL: none */
    uint64_t file;
    uint64_t part, parts; /* the next one, of how many */
    uint64_t size, seen;  /* bytes announced, bytes received */
    void *state;
    uint64_t files;      /* with a result */
    uint64_t finished;   /* delivery up to which there is nothing left to do */
    bool unacknowledged; /* that one */
    uint64_t end;        /* delivery that said that there is no more */
    bool taking_over, ended;
};

/* ---- results --------------------------------------------------------------------------------------------- */

/* In parts, as the file itself; each with an id, by which the queue knows one that it has already. */
static void job_result(const struct job *job)
{
    const char *from = kind_names[job->worker->kind];
    char *text = NULL;
    size_t size = 0;
    FILE *result = must(open_memstream(&text, &size));

    job->worker->finish(job->state, result);
    if (fclose(result) != 0)
        die("out of memory");
    for (size_t part = 0, at = 0; part == 0 || at < size; part++) {
        size_t part_size = size - at < PART_SIZE_MAX ? size - at : PART_SIZE_MAX;
        struct headers headers = {0};
        char id[64];

        snprintf(id, sizeof(id), "%s %llu %zu", from, (unsigned long long)job->file, part);
        headers_add(&headers, "from", from);
        headers_add_number(&headers, "file", job->file);
        headers_add(&headers, "path", job->path);
        headers_add_number(&headers, "part", part);
        headers_add_number(&headers, "last", at + part_size == size);
        headers_add_number(&headers, "work", job->parts);
        job_send(job->results, TYPE_RESULT, &headers, id, text + at, part_size);
        at += part_size;
    }
    free(text);
}

/* ---- work ------------------------------------------------------------------------------------------------ */

static void job_finished(struct job *job, const struct ipc_queue_message *message)
{
    job->finished = message->delivery;
    job->unacknowledged = true;
}

static void job_begin(struct job *job, const struct ipc_queue_message *message)
{
    job->path = message_text(message, "path");
    job->file = message_number(message, "file");
    job->parts = message_number(message, "parts");
    job->size = message_number(message, "size");
    job->part = 0;
    job->seen = 0;
    memset(job->state, 0, job->worker->state_size);
    job->worker->begin(job->state);
}

static void job_part(struct job *job, const struct ipc_queue_message *message)
{
    if (job->path == NULL)
        job_begin(job, message);
    if (message_number(message, "file") != job->file || message_number(message, "part") != job->part)
        die("%s: part %llu expected; message %llu, attempt %u, is part %llu of file %llu", job->path,
            (unsigned long long)job->part, (unsigned long long)message->number, message->attempt,
            (unsigned long long)message_number(message, "part"),
            (unsigned long long)message_number(message, "file"));
    job->worker->update(job->state, message->data, message->size);
    job->seen += message->size;
    if (++job->part < job->parts)
        return;
    if (job->seen != job->size)
        die("%s: %llu bytes announced, %llu received", job->path, (unsigned long long)job->size,
            (unsigned long long)job->seen);
    job_result(job);
    free(job->path);
    job->path = NULL;
    job->files++;
    job_finished(job, message);
}

static void job_message(struct job *job, const struct ipc_queue_message *message)
{
    if (message->redelivered == IPC_REDELIVERED_DIED && !job->taking_over) {
        job->taking_over = true;
        news_tell(job->news, "takes over work of one that died: attempt %u", message->attempt);
    }
    if (message_is(message, TYPE_PART)) {
        job_part(job, message);
    } else if (message_is(message, TYPE_END) && job->path == NULL) {
        job->ended = true;
        job->end = message->delivery;
    } else {
        die("a message of an unexpected type");
    }
}

/* What arrived, and how long it was on its way. */
static void job_tally(const struct job *job, const struct ipc_queue_message *messages, ssize_t count)
{
    struct tally *tally = &board_lock(job->board)->kinds[job->worker->kind];
    uint64_t now = realtime_ns();

    for (ssize_t i = 0; i < count; i++) {
        const struct ipc_queue_message *message = &messages[i];

        tally->messages++;
        tally->bytes += message->size;
        tally->redelivered += message->attempt > 1;
        if (message->attempt == 1) /* the others waited for a death */
            latency_add(&tally->latency, now > message->timestamp_ns ? now - message->timestamp_ns : 0);
    }
    board_unlock(job->board);
}

static void job_work(struct job *job, uint64_t die_after)
{
    while (!job->ended) {
        struct ipc_queue_message messages[BATCH];
        ssize_t n = ipc_consumer_take(job->work, messages, BATCH, IPC_FOREVER);
        int r;

        if (n < 0)
            die("taking work: %s", strerror((int)-n));
        job_tally(job, messages, n);
        for (ssize_t i = 0; i < n; i++)
            job_message(job, &messages[i]);
        ipc_consumer_release(job->work, (size_t)n);

        if (!job->unacknowledged)
            continue; /* in the middle of a file */
        job_flush(job->results);
        if (job->files >= die_after) {
            news_tell(job->news, "kills itself: %llu results sent, and not all of their work acknowledged",
                      (unsigned long long)job->files);
            raise(SIGKILL);
        }
        r = ipc_consumer_ack_until(job->work, job->finished);
        if (r < 0)
            die("acknowledging: %s", strerror(-r));
        job->unacknowledged = false;
    }
}

/* All else is acknowledged: say that this is all. */
static void job_end(const struct job *job)
{
    const char *from = kind_names[job->worker->kind];
    struct headers headers = {0};
    char id[64];
    int r;

    snprintf(id, sizeof(id), "%s end", from);
    headers_add(&headers, "from", from);
    job_send(job->results, TYPE_END, &headers, id, NULL, 0);
    job_flush(job->results);
    r = ipc_consumer_ack(job->work, job->end);
    if (r < 0)
        die("acknowledging the end: %s", strerror(-r));
}

int worker_run(const struct worker *worker, int argc, char **argv)
{
    const char *name = kind_names[worker->kind];
    ipc_connection *connection = job_connect(name);
    struct job job = {.worker = worker, .state = must(calloc(1, worker->state_size))};
    uint64_t die_after = UINT64_MAX, replaced = 0;

    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--die-after") == 0)
            die_after = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--replaces") == 0)
            replaced = strtoull(argv[i + 1], NULL, 10);
    }
    job.news = news_open(connection, name);
    job.board = board_open(connection);
    job.results = job_producer(connection, QUEUE_RESULTS);
    job.work = work_consumer(connection, worker->kind);
    board_lock(job.board)->kinds[worker->kind].replaced = replaced;
    board_unlock(job.board);

    job_work(&job, die_after);
    job_end(&job);
    ipc_connection_close(connection); /* ends all that was opened with it */
    free(job.state);
    return 0;
}
