/* SPDX-License-Identifier: Apache-2.0
 *
 * The end of the file index: collects every result, checks that nothing is missing or twice, compares all of it
 * with the tools of the system, and prints a table. Exits with 0 only if every result is right.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "common.h"

static const char *const source_names[SOURCES] = {"walk", "digest", "count", "identifiers"};

/* What a program said of itself at its end. */
struct summary {
    bool joined, ended;
    uint64_t results; /* messages received from it */
    uint64_t sequence;
    uint64_t messages, bytes, lost, mean_ns, p99_ns, links;
};

struct collect {
    ipc_connection *connection;
    struct index index;
    struct summary sources[SOURCES];
    unsigned ended;
    uint64_t sent, skipped, bytes;
    uint64_t first_ns, last_ns, shown_ns;
    bool terminal;
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

static void show_progress(struct collect *collect, bool last)
{
    char files[32], digests[32], counts[32], identifiers[32];
    uint64_t now = realtime_ns();

    if (!last && (collect->first_ns == 0 || collect->ended == SOURCES))
        return; /* nothing yet, or the last line follows */
    if (!last && now - collect->shown_ns < (collect->terminal ? UINT64_C(50000000) : UINT64_C(1000000000)))
        return;
    collect->shown_ns = now;
    printf("%s  %s files, %.1f MB; results: digest %s, count %s, identifiers %s%s",
           collect->terminal ? "\r" : "", grouped(collect->sent, files), (double)collect->bytes / 1e6,
           grouped(collect->sources[DIGEST].results, digests),
           grouped(collect->sources[COUNT].results, counts),
           grouped(collect->sources[IDENTIFIERS].results, identifiers),
           collect->terminal && !last ? "\033[K"
           : collect->terminal        ? "\033[K\n"
                                      : "\n");
    fflush(stdout);
}

static void collect_result(struct collect *collect, enum source source, const struct ipc_message *message)
{
    struct file *file = index_file(&collect->index, message_number(message, "file"));
    char *path = message_text(message, "path");
    char *text = must(strndup(message->size > 0 ? message->data : "", message->size));
    char *at = text;

    if (file->seen & 1u << source)
        die("%s said it twice: %s", source_names[source], path);
    file->seen |= 1u << source;
    collect->sources[source].results++;
    if (file->path == NULL) {
        file->path = path;
    } else {
        if (strcmp(file->path, path) != 0)
            die("two files have one number: %s and %s", file->path, path);
        free(path);
    }

    switch (source) {
    case WALK:
        file->size = message_number(message, "size");
        file->mtime_ns = message_number(message, "mtime");
        if (strcmp(text, "sent") == 0) {
            collect->sent++;
            collect->bytes += file->size;
        } else {
            collect->skipped++;
            file->skipped = text;
            return; /* the text is the file's now */
        }
        break;
    case DIGEST:
        snprintf(file->digest, sizeof(file->digest), "%s", text);
        break;
    case COUNT:
        file->lines = strtoull(at, &at, 10);
        file->words = strtoull(at, &at, 10);
        file->bytes = strtoull(at, &at, 10);
        break;
    default:
        file->identifiers = strtoull(text, NULL, 10);
        break;
    }
    free(text);
}

static void collect_end(struct collect *collect, enum source source, const struct ipc_message *message)
{
    struct summary *summary = &collect->sources[source];
    char *status = message_text(message, "status");

    if (strcmp(status, "done") != 0)
        die("the job was given up: %s", status);
    free(status);
    summary->ended = true;
    summary->messages = message_number(message, "messages");
    summary->bytes = message_number(message, "bytes");
    summary->lost = message_number(message, "lost");
    if (source == WALK) {
        summary->links = message_number(message, "links");
    } else {
        summary->mean_ns = message_number(message, "mean_ns");
        summary->p99_ns = message_number(message, "p99_ns");
    }
    if (source == IDENTIFIERS)
        collect->index.top = must(strndup(message->data, message->size));
    collect->ended++;
}

static void collect_message(struct collect *collect, const struct ipc_message *message)
{
    enum source source = 0;
    struct summary *summary;

    while (source < SOURCES && strcmp(message->topic + strlen("results."), source_names[source]) != 0)
        source++;
    if (source == SOURCES)
        die("a message on %s, which nobody here publishes", message->topic);
    summary = &collect->sources[source];
    if (message->sequence != summary->sequence || message->lost != 0)
        die("%s: message %" PRIu64 " expected, %" PRIu64 " came", message->topic, summary->sequence,
            message->sequence);
    summary->sequence++;
    if (collect->first_ns == 0)
        collect->first_ns = message->timestamp_ns;
    if (message_is(message, TYPE_END) && !summary->ended)
        collect_end(collect, source, message);
    else if (message_is(message, TYPE_RESULT) && !summary->ended)
        collect_result(collect, source, message);
    else
        die("%s: a message of an unexpected type, or after the end", message->topic);
}

static void end_progress_and_die(const struct collect *collect, const struct ipc_event *event)
{
    if (collect->terminal)
        putchar('\n');
    die("%s (process %u) left before the end of the job: %s", event->peer.name, (unsigned)event->peer.pid,
        ipc_reason_text(event->reason));
}

/* A program that leaves before its end has failed. */
static void check_events(struct collect *collect)
{
    struct ipc_event event;

    while (job_event(collect->connection, &event))
        for (enum source source = 0; source < SOURCES; source++) {
            struct summary *summary = &collect->sources[source];

            if (strcmp(event.topic + strlen("results."), source_names[source]) != 0)
                continue;
            summary->joined |= event.kind == IPC_EVENT_WRITER_JOINED;
            if (event.kind == IPC_EVENT_WRITER_LEFT && !summary->ended)
                end_progress_and_die(collect, &event);
        }
}

static void check_all_joined(struct collect *collect, uint64_t deadline_ns)
{
    for (enum source source = 0; source < SOURCES; source++)
        if (!collect->sources[source].joined && realtime_ns() > deadline_ns)
            die("%s did not start", source_names[source]);
}

static void collect_all(struct collect *collect, ipc_subscription *results)
{
    uint64_t deadline = realtime_ns() + START_NS;

    while (collect->ended < SOURCES) {
        struct ipc_message messages[64];
        ssize_t n = ipc_subscription_take(results, messages, 64, TICK_NS);

        if (n < 0 && n != -ETIMEDOUT)
            die("receiving: %s", strerror((int)-n));
        for (ssize_t i = 0; i < n; i++)
            collect_message(collect, &messages[i]);
        if (n > 0)
            ipc_subscription_release(results, (size_t)n);
        show_progress(collect, false);
        check_events(collect);
        check_all_joined(collect, deadline);
    }
    collect->last_ns = realtime_ns();
    show_progress(collect, true);
}

/* ---- judging --------------------------------------------------------------------------------------------- */

static uint64_t check_complete(struct collect *collect)
{
    uint64_t wrong = 0;

    for (size_t i = 0; i < collect->index.count; i++) {
        const struct file *file = &collect->index.files[i];
        unsigned expected = file->skipped != NULL ? 1u << WALK : (1u << SOURCES) - 1;

        if (file->seen == expected)
            continue;
        if (wrong++ < 5) {
            printf("  WRONG  results missing: ");
            if (file->path != NULL)
                print_path(file->path);
            putchar('\n');
        }
    }
    for (enum source source = 0; source < SOURCES; source++) {
        const struct summary *summary = &collect->sources[source];

        if (summary->lost != 0 || summary->messages != collect->sources[WALK].messages) {
            printf("  WRONG  %s: %" PRIu64 " messages of %" PRIu64 ", %" PRIu64 " lost\n",
                   source_names[source], summary->messages, collect->sources[WALK].messages, summary->lost);
            wrong++;
        }
    }
    return wrong;
}

static void tell_left_out(const struct collect *collect)
{
    uint64_t changed = 0, shown = 0;

    for (size_t i = 0; i < collect->index.count; i++) {
        const struct file *file = &collect->index.files[i];

        changed += file->changed;
        if (file->skipped == NULL && !file->changed)
            continue;
        if (shown++ >= 5)
            continue;
        printf("  %s  ", file->skipped != NULL ? "skipped" : "changed");
        print_path(file->path);
        printf("%s%s\n", file->skipped != NULL ? ": " : "", file->skipped != NULL ? file->skipped : "");
    }
    if (shown > 5)
        printf("  ... and %" PRIu64 " more\n", shown - 5);
    if (changed > 0)
        printf("  %" PRIu64 " changed after they were read and were not compared\n", changed);
}

static void tell_identifiers(const struct collect *collect)
{
    const char *line = collect->index.top;
    const char *separator = "\nMost frequent: ";

    for (const char *end; line != NULL && (end = strchr(line, '\n')) != NULL && end[1] != '\0';
         line = end + 1) {
        const char *name = memchr(line, ' ', (size_t)(end - line));

        if (name != NULL)
            printf("%s%.*s", separator, end - name < 40 ? (int)(end - name - 1) : 40, name + 1);
        separator = ", ";
    }
    printf("%s", separator[0] == ',' ? "\n" : "");
}

static void tell_table(const struct collect *collect)
{
    double seconds = (double)(collect->last_ns - collect->first_ns) / 1e9;
    uint64_t received = 0, lost = 0;
    char text[32], other[32];

    if (collect->last_ns <= collect->first_ns)
        seconds = 1e-9;
    for (enum source source = 0; source < SOURCES; source++) {
        received += collect->sources[source].sequence +
                    (source == WALK ? 0 : collect->sources[source].messages);
        lost += collect->sources[source].lost;
    }
    printf("\n%s files, %.1f MB in %.2f s; %s skipped; %s links and special files not followed\n",
           grouped(collect->sent, text), (double)collect->bytes / 1e6, seconds,
           grouped(collect->skipped, other), grouped(collect->sources[WALK].links, (char[32]){0}));
    printf("\n  %-14s %10s %10s %10s %8s   %-20s\n", "", "messages", "per second", "MB", "MB/s",
           "latency mean, p99");
    for (enum source source = 0; source < SOURCES; source++) {
        const struct summary *summary = &collect->sources[source];

        printf("  %-14s %10s %10s %10.1f %8.1f", source_names[source], grouped(summary->messages, text),
               grouped((uint64_t)((double)summary->messages / seconds), other), (double)summary->bytes / 1e6,
               (double)summary->bytes / 1e6 / seconds);
        if (source == WALK)
            printf("   (publishes)\n");
        else
            printf("   %.2f ms, %.2f ms\n", (double)summary->mean_ns / 1e6, (double)summary->p99_ns / 1e6);
    }
    printf("  %-14s %10s %10s\n", "all received", grouped(received, text),
           grouped((uint64_t)((double)received / seconds), other));
    printf("  %-14s %10s\n", "drops", grouped(lost, text));
}

int main(void)
{
    struct collect collect = {.connection = job_connect("collect"), .terminal = isatty(STDOUT_FILENO) == 1};
    ipc_subscription *results = job_subscription(collect.connection, "results.>");
    uint64_t wrong;

    collect_all(&collect, results);
    collect.connection = ipc_connection_close(collect.connection);

    wrong = check_complete(&collect);
    printf("\nComparing with sha256sum, wc, and grep | tr | awk ...\n");
    if (wrong == 0)
        wrong = check_all(&collect.index);
    tell_left_out(&collect);
    tell_identifiers(&collect);
    tell_table(&collect);
    printf(wrong == 0 ? "\nEvery result is right.\n" : "\nFAILED: not every result is right.\n");
    index_done(&collect.index);
    return wrong == 0 ? 0 : 1;
}
