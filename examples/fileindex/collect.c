/* SPDX-License-Identifier: Apache-2.0
 *
 * The end of the file index: collects every result, checks that nothing is missing, and compares all of it with the
 * tools of the system. It shows nothing itself: it is a service that says how far it is ("progress", a stream of lines)
 * and how it ended ("result": the final table, or an error with it if not every result is right).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "common.h"
#include "table.h"

#define BATCH        64
#define TOP          10
#define REQUESTS_MAX 16u
#define PROGRESS_NS  UINT64_C(200000000)

struct collect {
    ipc_connection *connection;
    ipc_server *server;
    ipc_segment *board;
    struct index index;
    struct table names; /* of all files */
    struct {
        bool ended;
        uint64_t sent, skipped; /* files */
        uint64_t messages, bytes, links;
    } walk;
    bool ended[KINDS];
    uint64_t complete[KINDS];    /* files with a result */
    uint64_t worked[KINDS];      /* messages of walk that these results are about */
    struct tally told_of[KINDS]; /* by workers that have no board: with their end */
    uint64_t messages, bytes;    /* of results */
    uint64_t repeated;           /* of these, known already: passed over */
    uint64_t first_ns, last_ns, shown_ns;
    struct ipc_request *open[REQUESTS_MAX]; /* with this as their context if they ask for the progress */
    size_t open_count;
    char *verdict; /* what "result" is answered with, once it is known */
    size_t verdict_size;
    uint64_t wrong;
    bool told;
};

/* "12,345,678" */
static const char *grouped(uint64_t number, char *text)
{
    char digits[24];
    int size = snprintf(digits, sizeof(digits), "%" PRIu64, number);
    char *to = text;

    for (int i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0)
            *to++ = ',';
        *to++ = digits[i];
    }
    *to = '\0';
    return text;
}

/* ---- collecting ------------------------------------------------------------------------------------------ */

static char *text_of(const struct ipc_queue_message *message)
{
    return must(strndup(message->size > 0 ? message->data : "", message->size));
}

static void collect_walked(struct collect *collect, struct file *file,
                           const struct ipc_queue_message *message)
{
    char *fate = text_of(message);

    file->walked = true;
    file->size = message_number(message, "size");
    file->mtime_ns = message_number(message, "mtime");
    if (strcmp(fate, "sent") == 0) {
        collect->walk.sent++;
        free(fate);
    } else {
        collect->walk.skipped++;
        file->skipped = fate;
    }
}

static void collect_names(struct collect *collect, struct file *file, const struct ipc_queue_message *message,
                          bool last)
{
    file->names = must(realloc(file->names, file->names_size + message->size + 1));
    if (message->size > 0)
        memcpy(file->names + file->names_size, message->data, message->size);
    file->names_size += message->size;
    if (!last)
        return;
    file->names[file->names_size] = '\0';
    file->identifiers = table_read(&collect->names, file->names);
    free(file->names);
    file->names = NULL;
}

static void collect_worked(struct collect *collect, enum kind kind, struct file *file,
                           const struct ipc_queue_message *message)
{
    uint64_t part = message_number(message, "part");
    bool last = message_number(message, "last") != 0;
    char *text, *at;

    if (part < file->results[kind].parts) { /* the queue should have known it, by its id */
        collect->repeated++;
        return;
    }
    if (part > file->results[kind].parts)
        die("%s: part %" PRIu64 " of its result is missing", file->path, file->results[kind].parts);
    file->results[kind].parts++;
    if (kind == IDENTIFIERS) {
        collect_names(collect, file, message, last);
    } else {
        at = text = text_of(message);
        if (kind == DIGEST)
            snprintf(file->digest, sizeof(file->digest), "%s", text);
        else {
            file->lines = strtoull(at, &at, 10);
            file->words = strtoull(at, &at, 10);
            file->bytes = strtoull(at, &at, 10);
        }
        free(text);
    }
    if (last) {
        file->results[kind].complete = true;
        collect->complete[kind]++;
        collect->worked[kind] += message_number(message, "work");
    }
}

/* A worker of another transport says with its end what others write on the board. */
static void collect_tally(struct tally *tally, const struct ipc_queue_message *message)
{
    const void *value;
    size_t size;

    if (ipc_queue_message_header(message, "messages", &value, &size) < 0)
        return;
    tally->messages = message_number(message, "messages");
    tally->bytes = message_number(message, "bytes");
    tally->redelivered = message_number(message, "redelivered");
    tally->replaced = message_number(message, "replaced");
}

static void collect_message(struct collect *collect, const struct ipc_queue_message *message)
{
    char *from = message_text(message, "from"), *path;
    enum kind kind = 0;
    struct file *file;

    if (collect->first_ns == 0)
        collect->first_ns = message->timestamp_ns;
    collect->messages++;
    collect->bytes += message->size;
    while (kind < KINDS && strcmp(from, kind_names[kind]) != 0)
        kind++;
    free(from); /* whatever is no worker is walk */

    if (message_is(message, TYPE_END) && kind < KINDS) {
        collect->ended[kind] = true;
        collect_tally(&collect->told_of[kind], message);
        return;
    }
    if (message_is(message, TYPE_END)) {
        collect->walk.ended = true;
        collect->walk.messages = message_number(message, "messages");
        collect->walk.bytes = message_number(message, "bytes");
        collect->walk.links = message_number(message, "links");
        return;
    }
    file = index_file(&collect->index, message_number(message, "file"));
    path = message_text(message, "path");
    if (file->path == NULL) {
        file->path = path;
    } else {
        if (strcmp(file->path, path) != 0)
            die("two files have one number: %s and %s", file->path, path);
        free(path);
    }
    if (kind == KINDS)
        collect_walked(collect, file, message);
    else
        collect_worked(collect, kind, file, message);
}

static bool collect_is_done(const struct collect *collect)
{
    for (enum kind kind = 0; kind < KINDS; kind++)
        if (!collect->ended[kind])
            return false;
    return collect->walk.ended;
}

/* ---- the service ----------------------------------------------------------------------------------------- */

static bool asks(const struct ipc_request *request, const char *what)
{
    return request->size == strlen(what) && memcmp(request->data, what, request->size) == 0;
}

/* Take in new requests; they stay open until there is something to answer. */
static void serve(struct collect *collect, int64_t timeout_ns)
{
    struct ipc_request *request;
    ssize_t r;

    for (; (r = ipc_server_receive(collect->server, NULL, 0, &request, timeout_ns)) >= 0; timeout_ns = 0) {
        if (!asks(request, "progress") && !asks(request, "result"))
            ipc_request_fail(request, 1, "ask for \"progress\" or \"result\"", NULL, 0);
        else if (collect->open_count == REQUESTS_MAX)
            ipc_request_fail(request, 2, "too many are asking already", NULL, 0);
        else {
            request->context = asks(request, "progress") ? collect : NULL;
            collect->open[collect->open_count++] = request;
        }
    }
    if (r != -EAGAIN && r != -ETIMEDOUT)
        die("serving: %s", strerror((int)-r));
}

/* Answer one request, if there is an answer now. Returns true if it is over. */
static bool serve_one(struct collect *collect, struct ipc_request *request, const char *line, bool done)
{
    if (request->context != NULL) {
        if (ipc_request_part(request, line, strlen(line), NULL) == -EPIPE)
            return true;
        if (done)
            ipc_request_end(request);
        return done;
    }
    if (collect->verdict == NULL)
        return false;
    if (collect->wrong == 0)
        collect->told |= ipc_request_reply(request, collect->verdict, collect->verdict_size, NULL) == 0;
    else
        collect->told |= ipc_request_fail(request, 3, "not every result is right", collect->verdict,
                                          collect->verdict_size) == 0;
    return true;
}

static void serve_progress(struct collect *collect)
{
    bool done = collect_is_done(collect);
    char line[256], numbers[4][32];
    uint64_t now = realtime_ns(), worked = 0;

    if (!done && now - collect->shown_ns < PROGRESS_NS)
        return;
    collect->shown_ns = now;
    for (enum kind kind = 0; kind < KINDS; kind++)
        worked += collect->worked[kind];
    snprintf(line, sizeof(line), "%s messages handled; results: digest %s, count %s, identifiers %s",
             grouped(worked, numbers[0]), grouped(collect->complete[DIGEST], numbers[1]),
             grouped(collect->complete[COUNT], numbers[2]),
             grouped(collect->complete[IDENTIFIERS], numbers[3]));
    for (size_t i = 0; i < collect->open_count;)
        if (serve_one(collect, collect->open[i], line, done))
            collect->open[i] = collect->open[--collect->open_count];
        else
            i++;
}

static void collect_all(struct collect *collect, ipc_consumer *results)
{
    while (!collect_is_done(collect)) {
        struct ipc_queue_message messages[BATCH];
        ssize_t n = ipc_consumer_take(results, messages, BATCH, TICK_NS);

        if (n < 0 && n != -ETIMEDOUT)
            die("receiving: %s", strerror((int)-n));
        for (ssize_t i = 0; i < n; i++)
            collect_message(collect, &messages[i]);
        if (n > 0) {
            int r = ipc_consumer_ack_until(results, messages[n - 1].delivery);

            if (r < 0)
                die("acknowledging: %s", strerror(-r));
            ipc_consumer_release(results, (size_t)n);
        }
        serve(collect, 0);
        serve_progress(collect);
    }
    collect->last_ns = realtime_ns();
}

/* ---- judging --------------------------------------------------------------------------------------------- */

/* Messages that walk sent and no result is about. */
static uint64_t drops_of(const struct collect *collect)
{
    uint64_t drops = 0;

    for (enum kind kind = 0; kind < KINDS; kind++)
        drops += collect->walk.messages - collect->worked[kind];
    return drops;
}

static uint64_t check_complete(const struct collect *collect, FILE *out)
{
    uint64_t wrong = drops_of(collect);

    for (size_t i = 0; i < collect->index.count; i++) {
        const struct file *file = &collect->index.files[i];
        bool right = file->walked;

        for (enum kind kind = 0; kind < KINDS; kind++)
            right = right && file->results[kind].complete == (file->skipped == NULL);
        if (right)
            continue;
        if (wrong++ < 5) {
            fprintf(out, "  WRONG  results missing, or too many: ");
            if (file->path != NULL)
                print_path(out, file->path);
            putc('\n', out);
        }
    }
    return wrong;
}

static void tell_left_out(const struct collect *collect, FILE *out)
{
    uint64_t changed = 0, shown = 0;

    for (size_t i = 0; i < collect->index.count; i++) {
        const struct file *file = &collect->index.files[i];

        changed += file->changed;
        if (file->skipped == NULL && !file->changed)
            continue;
        if (shown++ >= 5)
            continue;
        fprintf(out, "  %s  ", file->skipped != NULL ? "skipped" : "changed");
        print_path(out, file->path);
        fprintf(out, "%s%s\n", file->skipped != NULL ? ": " : "", file->skipped != NULL ? file->skipped : "");
    }
    if (shown > 5)
        fprintf(out, "  ... and %" PRIu64 " more\n", shown - 5);
    if (changed > 0)
        fprintf(out, "  %" PRIu64 " changed after they were read and were not compared\n", changed);
}

static void tell_identifiers(const struct collect *collect, FILE *out)
{
    const char *line = collect->index.top;
    const char *separator = "\nMost frequent: ";

    for (const char *end; line != NULL && (end = strchr(line, '\n')) != NULL && end[1] != '\0';
         line = end + 1) {
        const char *name = memchr(line, ' ', (size_t)(end - line));

        if (name != NULL)
            fprintf(out, "%s%.*s", separator, end - name < 40 ? (int)(end - name - 1) : 40, name + 1);
        separator = ", ";
    }
    fprintf(out, "%s", separator[0] == ',' ? "\n" : "");
}

static void tell_row(FILE *out, const char *name, uint64_t messages, uint64_t bytes, double seconds)
{
    char text[32], other[32];

    fprintf(out, "  %-14s %10s %10s %10.1f %8.1f", name, grouped(messages, text),
            grouped((uint64_t)((double)messages / seconds), other), (double)bytes / 1e6,
            (double)bytes / 1e6 / seconds);
}

static void tell_table(const struct collect *collect, const struct board *board, FILE *out)
{
    double seconds = (double)(collect->last_ns - collect->first_ns) / 1e9;
    uint64_t messages = collect->messages, bytes = collect->bytes, redelivered = 0, replaced = 0;
    char text[32], other[32], third[32], fourth[32];

    if (collect->last_ns <= collect->first_ns)
        seconds = 1e-9;
    fprintf(out, "\n%s files, %.1f MB in %.2f s; %s skipped; %s links and special files not followed\n",
            grouped(collect->walk.sent, text), (double)collect->walk.bytes / 1e6, seconds,
            grouped(collect->walk.skipped, other), grouped(collect->walk.links, third));
    fprintf(out, "\n  %-14s %10s %10s %10s %8s   %-14s %s\n", "", "messages", "per second", "MB", "MB/s",
            "transport", "latency mean, p99");
    for (enum kind kind = 0; kind < KINDS; kind++) {
        bool told = collect->told_of[kind].messages > 0;
        const struct tally *tally = told ? &collect->told_of[kind] : &board->kinds[kind];
        uint64_t count = tally->latency.count ? tally->latency.count : 1;
        uint64_t p99_ns = latency_percentile_ns(&tally->latency, 99);

        tell_row(out, kind_names[kind], tally->messages, tally->bytes, seconds);
        fprintf(out, "   %-14s", kind_transports[kind]);
        if (tally->latency.count > 0)
            fprintf(out, " %.2f ms, %.2f ms", (double)(tally->latency.sum_ns / count) / 1e6,
                    (double)p99_ns / 1e6);
        fputc('\n', out);
        messages += tally->messages;
        bytes += tally->bytes;
        redelivered += tally->redelivered;
        replaced += tally->replaced;
    }
    tell_row(out, "results", collect->messages, collect->bytes, seconds);
    fputc('\n', out);
    tell_row(out, "all", messages, bytes, seconds);
    fprintf(
        out,
        "\n\n  %s drops; %s workers replaced; %s messages redelivered; %s results came twice past the queue\n",
        grouped(drops_of(collect), text), grouped(replaced, other), grouped(redelivered, third),
        grouped(collect->repeated, fourth));
}

static void judge(struct collect *collect)
{
    struct board *board = must(malloc(sizeof(*board)));
    char *top = NULL;
    size_t top_size = 0;
    FILE *out = must(open_memstream(&top, &top_size));

    memcpy(board, board_lock(collect->board), sizeof(*board));
    board_unlock(collect->board);
    table_summary(&collect->names, TOP, out);
    if (fclose(out) != 0)
        die("out of memory");
    collect->index.top = top;

    out = must(open_memstream(&collect->verdict, &collect->verdict_size));
    collect->wrong = check_complete(collect, out);
    if (collect->wrong == 0)
        collect->wrong = check_all(&collect->index, out);
    tell_left_out(collect, out);
    tell_identifiers(collect, out);
    tell_table(collect, board, out);
    fprintf(out,
            collect->wrong == 0 ? "\nEvery result is right.\n" : "\nFAILED: not every result is right.\n");
    if (fclose(out) != 0)
        die("out of memory");
    free(board);
}

int main(void)
{
    struct collect collect = {.connection = job_connect("collect")};
    ipc_consumer *results = job_consumer(collect.connection, QUEUE_RESULTS);
    struct ipc_error error;

    collect.board = board_open(collect.connection);
    if (ipc_server_open(&collect.server, collect.connection, SERVICE, NULL, &error) < 0)
        die("%s", error.text);
    collect_all(&collect, results);
    judge(&collect);
    while (!collect.told) {
        serve(&collect, IPC_FOREVER);
        serve_progress(&collect);
    }
    ipc_segment_remove(collect.connection, SEGMENT, NULL);
    ipc_connection_close(collect.connection);
    table_done(&collect.names);
    index_done(&collect.index);
    free(collect.verdict);
    return collect.wrong == 0 ? 0 : 1;
}
