/* SPDX-License-Identifier: Apache-2.0
 *
 * The publisher of the file index: walks a folder and publishes every regular file in it, by its ending as
 * files.header, files.source or files.other. The kernel reads a file straight into the lane (a loan), from
 * where the workers take it: its bytes are copied once, for all three.
 *
 *     walk FOLDER
 *
 * Links are not followed. What became of each file goes to results.walk, for collect to judge.
 */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"

struct walk {
    ipc_connection *connection;
    ipc_publisher *lanes[LANES];
    ipc_publisher *results;
    uint64_t files;
    uint64_t messages;
    uint64_t bytes;
    uint64_t links; /* and all else that is not a regular file */
};

static const char *const lane_topics[LANES] = {"files.header", "files.source", "files.other"};

static ipc_publisher *walk_lane(const struct walk *walk, const char *name)
{
    static const char *const endings[2][8] = {{".h", ".hh", ".hpp", ".hxx", ".H"},
                                              {".c", ".cc", ".cpp", ".cxx", ".C", ".S", ".inc"}};
    const char *ending = strrchr(name, '.');

    for (unsigned lane = 0; ending != NULL && lane < 2; lane++)
        for (unsigned i = 0; i < 8 && endings[lane][i] != NULL; i++)
            if (strcmp(ending, endings[lane][i]) == 0)
                return walk->lanes[lane];
    return walk->lanes[2];
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static void walk_end(struct walk *walk, const char *status)
{
    struct headers headers = {0};
    uint64_t lost = 0;

    for (unsigned i = 0; i < LANES; i++) {
        struct ipc_publisher_stats stats;

        ipc_publisher_stats(walk->lanes[i], &stats);
        lost += stats.lost + stats.dropped + stats.detached;
    }
    headers_add(&headers, "status", status);
    for (unsigned i = 0; i < LANES; i++)
        job_publish(walk->lanes[i], TYPE_END, &headers, NULL, 0);
    headers_add_number(&headers, "messages", walk->messages + LANES);
    headers_add_number(&headers, "bytes", walk->bytes);
    headers_add_number(&headers, "lost", lost);
    headers_add_number(&headers, "links", walk->links);
    job_publish(walk->results, TYPE_END, &headers, NULL, 0);
}

/* If one of the programs has left, the job cannot be done any more: tell the others why. */
static void walk_check_readers(struct walk *walk)
{
    struct ipc_event event;

    while (job_event(walk->connection, &event)) {
        char status[512];

        if (event.kind != IPC_EVENT_READER_LEFT)
            continue;
        if (strcmp(event.peer.name, "collect") != 0 && strcmp(event.peer.name, "digest") != 0 &&
            strcmp(event.peer.name, "count") != 0 && strcmp(event.peer.name, "identifiers") != 0)
            continue; /* somebody who was only looking */
        snprintf(status, sizeof(status), "%s (process %u) left before the end of the job: %s",
                 event.peer.name, (unsigned)event.peer.pid, ipc_reason_text(event.reason));
        walk_end(walk, status);
        if (strcmp(event.peer.name, "collect") == 0)
            die("%s", status);
        ipc_connection_close(walk->connection);
        exit(1); /* collect says why */
    }
}

/* ---- one file -------------------------------------------------------------------------------------------- */

static uint64_t mtime_of(const struct stat *status)
{
    return (uint64_t)status->st_mtim.tv_sec * 1000000000 + (uint64_t)status->st_mtim.tv_nsec;
}

/* Read exactly `size` bytes. 0, or why not. */
static const char *read_all(int fd, unsigned char *to, size_t size)
{
    while (size > 0) {
        ssize_t n = read(fd, to, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return strerror(errno);
        if (n == 0)
            return "changed while it was read";
        to += n;
        size -= (size_t)n;
    }
    return NULL;
}

/* NULL if the file still is what `before` says, and was read to its end. */
static const char *check_unchanged(int fd, const struct stat *before)
{
    struct stat after;
    unsigned char byte;

    if (read(fd, &byte, 1) == 1)
        return "longer than its size says";
    if (fstat(fd, &after) < 0)
        return strerror(errno);
    if (after.st_size != before->st_size || mtime_of(&after) != mtime_of(before))
        return "changed while it was read";
    return NULL;
}

static const char *send_part(struct walk *walk, ipc_publisher *lane, int fd, const struct stat *status,
                             size_t size, bool last, const struct headers *headers)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    const char *trouble;
    void *room = NULL;
    int r;

    how.content_type = TYPE_PART;
    how.headers = headers->list;
    how.header_count = headers->count;
    r = ipc_publisher_loan(lane, size, &how, &room);
    if (r < 0)
        die("borrowing %zu bytes of a lane: %s", size, strerror(-r));
    trouble = read_all(fd, room, size);
    if (trouble == NULL && last)
        trouble = check_unchanged(fd, status);
    r = trouble == NULL ? ipc_publisher_commit(lane, size) : ipc_publisher_abort(lane);
    if (r < 0)
        die("publishing a part: %s", strerror(-r));
    if (trouble == NULL) {
        walk->messages++;
        walk->bytes += size;
    }
    return trouble;
}

static const char *send_parts(struct walk *walk, ipc_publisher *lane, int fd, const struct stat *status,
                              const char *path)
{
    uint64_t size = (uint64_t)status->st_size;
    uint64_t parts = size <= PART_SIZE_MAX ? 1 : (size + PART_SIZE_MAX - 1) / PART_SIZE_MAX;

    for (uint64_t part = 0; part < parts; part++) {
        uint64_t left = size - part * PART_SIZE_MAX;
        struct headers headers = {0};
        const char *trouble;

        headers_add_number(&headers, "file", walk->files);
        headers_add(&headers, "path", path);
        headers_add_number(&headers, "part", part);
        headers_add_number(&headers, "parts", parts);
        headers_add_number(&headers, "size", size);
        trouble = send_part(walk, lane, fd, status, left < PART_SIZE_MAX ? (size_t)left : PART_SIZE_MAX,
                            part + 1 == parts, &headers);
        if (trouble != NULL) {
            if (part > 0) {
                job_publish(lane, TYPE_ABANDONED, &headers, NULL, 0);
                walk->messages++;
            }
            return trouble;
        }
        if (part % 16 == 15)
            walk_check_readers(walk);
    }
    return NULL;
}

static const char *walk_file(struct walk *walk, const FTSENT *entry, struct stat *status)
{
    const char *trouble;
    int fd = open(entry->fts_accpath, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return strerror(errno);
    if (fstat(fd, status) < 0)
        trouble = strerror(errno);
    else if (!S_ISREG(status->st_mode))
        trouble = "not a regular file any more";
    else
        trouble = send_parts(walk, walk_lane(walk, entry->fts_name), fd, status, entry->fts_path);
    close(fd);
    return trouble;
}

static void walk_report(struct walk *walk, const FTSENT *entry, const struct stat *status,
                        const char *trouble)
{
    struct headers headers = {0};
    const char *fate = trouble == NULL ? "sent" : trouble;

    headers_add_number(&headers, "file", walk->files++);
    headers_add(&headers, "path", entry->fts_path);
    headers_add_number(&headers, "size", (uint64_t)status->st_size);
    headers_add_number(&headers, "mtime", mtime_of(status));
    job_publish(walk->results, TYPE_RESULT, &headers, fate, strlen(fate));
}

/* ---- the folder ------------------------------------------------------------------------------------------ */

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static void walk_folder(struct walk *walk, char *folder)
{
    FTS *tree = fts_open((char *[]){folder, NULL}, FTS_PHYSICAL | FTS_NOCHDIR, by_name);
    FTSENT *entry;

    if (tree == NULL)
        die("%s: %s", folder, strerror(errno));
    while ((entry = fts_read(tree)) != NULL) { /* at the end it sets errno to 0 */
        struct stat status = {0};

        switch (entry->fts_info) {
        case FTS_F:
            walk_report(walk, entry, &status, walk_file(walk, entry, &status));
            break;
        case FTS_DNR:
        case FTS_ERR:
        case FTS_NS:
            walk_report(walk, entry, &status, strerror(entry->fts_errno));
            break;
        case FTS_SL:
        case FTS_SLNONE:
        case FTS_DEFAULT:
            walk->links++;
            break;
        default: /* folders */
            break;
        }
        walk_check_readers(walk);
    }
    if (errno != 0)
        die("walking %s: %s", folder, strerror(errno));
    fts_close(tree);
}

int main(int argc, char **argv)
{
    struct walk walk = {.connection = job_connect("walk")};
    int r;

    if (argc != 2)
        die("usage: walk FOLDER");
    walk.results = job_publisher(walk.connection, "results.walk");
    for (unsigned i = 0; i < LANES; i++)
        walk.lanes[i] = job_publisher(walk.connection, lane_topics[i]);
    r = ipc_publisher_wait_readers(walk.results, 1, START_NS);
    for (unsigned i = 0; i < LANES && r >= 0; i++)
        r = ipc_publisher_wait_readers(walk.lanes[i], WORKERS, START_NS);
    if (r < 0)
        die("waiting for the readers: %s", strerror(-r));

    walk_folder(&walk, argv[1]);
    walk_end(&walk, "done");
    ipc_connection_close(walk.connection);
    return 0;
}
