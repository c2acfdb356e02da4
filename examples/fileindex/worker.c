/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop of a worker. The three topics arrive independently of each other, so there is one file in progress
 * per topic; within a topic, parts come in order. The content is read where it lies, in the publisher's lane.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "worker.h"

struct lane {
    char *topic;
    bool ended;
    uint64_t sequence; /* of the next message */
    char *path;        /* of the file in progress; NULL: none */
    uint64_t file;
    uint64_t part, parts; /* the next one, of how many */
    uint64_t size, seen;  /* bytes announced, bytes received */
    void *state;
};

struct job {
    const struct worker *worker;
    ipc_publisher *results;
    struct lane lanes[LANES];
    unsigned lane_count;
    unsigned joined, ended;
    char *status;
    uint64_t messages;
    uint64_t bytes;
    uint64_t lost;
    struct latency latency;
};

static struct lane *job_lane(struct job *job, const struct ipc_message *message)
{
    struct lane *lane;

    for (unsigned i = 0; i < job->lane_count; i++)
        if (strcmp(job->lanes[i].topic, message->topic) == 0)
            return &job->lanes[i];
    if (job->lane_count == LANES)
        die("a message on %s, one topic too many", message->topic);
    lane = &job->lanes[job->lane_count++];
    lane->topic = must(strdup(message->topic));
    lane->state = must(calloc(1, job->worker->state_size));
    return lane;
}

static void lane_begin(struct lane *lane, const struct worker *worker, const struct ipc_message *message)
{
    lane->path = message_text(message, "path");
    lane->file = message_number(message, "file");
    lane->parts = message_number(message, "parts");
    lane->size = message_number(message, "size");
    lane->part = 0;
    lane->seen = 0;
    memset(lane->state, 0, worker->state_size);
    worker->begin(lane->state, lane->parts == 1);
}

static void lane_forget(struct lane *lane)
{
    free(lane->path);
    lane->path = NULL;
}

/* Publish what `finish` or `summary` writes. */
static void job_result(struct job *job, const char *type, const struct headers *headers,
                       void (*finish)(void *state, FILE *result), void *state, void (*summary)(FILE *result))
{
    char *text = NULL;
    size_t size = 0;
    FILE *result = must(open_memstream(&text, &size));

    if (finish != NULL)
        finish(state, result);
    if (summary != NULL)
        summary(result);
    if (fclose(result) != 0)
        die("out of memory");
    job_publish(job->results, type, headers, text, size);
    free(text);
}

static void job_part(struct job *job, struct lane *lane, const struct ipc_message *message)
{
    const struct worker *worker = job->worker;

    if (lane->path == NULL)
        lane_begin(lane, worker, message);
    if (message_number(message, "file") != lane->file || message_number(message, "part") != lane->part)
        die("%s: part %llu expected, another came", lane->path, (unsigned long long)lane->part);
    worker->update(lane->state, message->data, message->size);
    lane->seen += message->size;
    job->bytes += message->size;
    if (++lane->part == lane->parts) {
        struct headers headers = {0};

        if (lane->seen != lane->size)
            die("%s: %llu bytes announced, %llu received", lane->path, (unsigned long long)lane->size,
                (unsigned long long)lane->seen);
        headers_add_number(&headers, "file", lane->file);
        headers_add(&headers, "path", lane->path);
        job_result(job, TYPE_RESULT, &headers, worker->finish, lane->state, NULL);
        lane_forget(lane);
    }
}

static void job_message(struct job *job, const struct ipc_message *message)
{
    struct lane *lane = job_lane(job, message);
    uint64_t now = realtime_ns();

    if (message->sequence != lane->sequence || message->lost != 0)
        die("%s: message %llu expected, %llu came", message->topic, (unsigned long long)lane->sequence,
            (unsigned long long)message->sequence);
    lane->sequence++;
    job->messages++;
    latency_add(&job->latency, now > message->timestamp_ns ? now - message->timestamp_ns : 0);

    if (message_is(message, TYPE_PART)) {
        job_part(job, lane, message);
    } else if (message_is(message, TYPE_ABANDONED)) {
        if (lane->path == NULL)
            die("%s: a file was abandoned, and none is open", message->topic);
        job->worker->abandon(lane->state);
        lane_forget(lane);
    } else if (message_is(message, TYPE_END) && !lane->ended) {
        lane->ended = true;
        job->ended++;
        free(job->status);
        job->status = message_text(message, "status");
    } else {
        die("%s: a message of an unexpected type", message->topic);
    }
}

/* A publisher that has ended its topic may leave; anybody else may not. */
static void job_check_event(struct job *job, const struct ipc_event *event)
{
    job->joined += event->kind == IPC_EVENT_WRITER_JOINED;
    if (event->kind != IPC_EVENT_WRITER_LEFT && event->kind != IPC_EVENT_READER_LEFT)
        return;
    if (event->kind == IPC_EVENT_READER_LEFT && strcmp(event->peer.name, "collect") != 0)
        return;
    for (unsigned i = 0; i < job->lane_count; i++)
        if (strcmp(job->lanes[i].topic, event->topic) == 0 && job->lanes[i].ended)
            return;
    die("%s (process %u) left %s before its end: %s", event->peer.name, (unsigned)event->peer.pid,
        event->topic, ipc_reason_text(event->reason));
}

static void job_read(struct job *job, ipc_connection *connection, ipc_subscription *files)
{
    uint64_t deadline = realtime_ns() + START_NS;

    while (job->ended < LANES) {
        struct ipc_message messages[64];
        struct ipc_event event;
        ssize_t n = ipc_subscription_take(files, messages, 64, TICK_NS);

        if (n < 0 && n != -ETIMEDOUT)
            die("receiving: %s", strerror((int)-n));
        for (ssize_t i = 0; i < n; i++)
            job_message(job, &messages[i]);
        if (n > 0)
            ipc_subscription_release(files, (size_t)n);
        while (job->ended < LANES && job_event(connection, &event))
            job_check_event(job, &event);
        if (job->joined < LANES && realtime_ns() > deadline)
            die("nobody publishes files");
    }
}

int worker_run(const struct worker *worker)
{
    ipc_connection *connection = job_connect(worker->name);
    struct job *job = must(calloc(1, sizeof(*job)));
    struct headers headers = {0};
    struct ipc_subscription_stats stats;
    ipc_subscription *files;
    char topic[64];
    bool done;
    int r;

    job->worker = worker;
    snprintf(topic, sizeof(topic), "results.%s", worker->name);
    job->results = job_publisher(connection, topic);
    r = ipc_publisher_wait_readers(job->results, 1, START_NS);
    if (r < 0)
        die("nobody collects the results: %s", strerror(-r));
    files = job_subscription(connection, "files.>"); /* walk starts when it has us all */
    job_read(job, connection, files);

    ipc_subscription_stats(files, &stats);
    job->lost = stats.lost;
    headers_add(&headers, "status", job->status);
    headers_add_number(&headers, "messages", job->messages);
    headers_add_number(&headers, "bytes", job->bytes);
    headers_add_number(&headers, "lost", job->lost);
    headers_add_number(&headers, "mean_ns",
                       job->latency.sum_ns / (job->latency.count ? job->latency.count : 1));
    headers_add_number(&headers, "p99_ns", latency_percentile_ns(&job->latency, 99));
    job_result(job, TYPE_END, &headers, NULL, NULL, worker->summary);
    done = strcmp(job->status, "done") == 0;

    ipc_connection_close(connection); /* ends the publisher and the subscription, too */
    for (unsigned i = 0; i < job->lane_count; i++) {
        free(job->lanes[i].topic);
        free(job->lanes[i].path);
        free(job->lanes[i].state);
    }
    free(job->status);
    free(job);
    return done ? 0 : 1;
}
