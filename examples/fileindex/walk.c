/* SPDX-License-Identifier: Apache-2.0
 *
 * The producer of the file index: walks a folder, and sends the content of every regular file in it to the queue of
 * each kind of worker. What became of each file goes to the results, for collect to judge.
 *
 *     walk FOLDER
 *
 * Links are not followed.
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
    ipc_producer *work[KINDS];
    ipc_producer *results;
    unsigned char *content; /* room for a file */
    uint64_t files;
    uint64_t messages; /* to each kind of worker */
    uint64_t bytes;    /* in them */
    uint64_t links;    /* and all else that is not a regular file */
};

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

/* Read a file. NULL if it is the same before and after; else why not. */
static const char *read_file(struct walk *walk, int fd, struct stat *before)
{
    struct stat after;
    const char *trouble;
    unsigned char byte;

    if (fstat(fd, before) < 0)
        return strerror(errno);
    if (!S_ISREG(before->st_mode))
        return "not a regular file any more";
    if (before->st_size > (off_t)FILE_SIZE_MAX)
        return "larger than 32 MiB";
    trouble = read_all(fd, walk->content, (size_t)before->st_size);
    if (trouble != NULL)
        return trouble;
    if (read(fd, &byte, 1) == 1)
        return "longer than its size says";
    if (fstat(fd, &after) < 0)
        return strerror(errno);
    if (after.st_size != before->st_size || mtime_of(&after) != mtime_of(before))
        return "changed while it was read";
    return NULL;
}

static void send_parts(struct walk *walk, size_t size, const char *path)
{
    size_t parts = size <= PART_SIZE_MAX ? 1 : (size + PART_SIZE_MAX - 1) / PART_SIZE_MAX;

    for (size_t part = 0; part < parts; part++) {
        size_t from = part * PART_SIZE_MAX;
        size_t part_size = size - from < PART_SIZE_MAX ? size - from : PART_SIZE_MAX;
        struct headers headers = {0};

        headers_add_number(&headers, "file", walk->files);
        headers_add(&headers, "path", path);
        headers_add_number(&headers, "part", part);
        headers_add_number(&headers, "parts", parts);
        headers_add_number(&headers, "size", size);
        for (enum kind kind = 0; kind < KINDS; kind++)
            job_send(walk->work[kind], TYPE_PART, &headers, NULL, walk->content + from, part_size);
        walk->messages++;
        walk->bytes += part_size;
    }
}

static const char *walk_file(struct walk *walk, const FTSENT *entry, struct stat *status)
{
    const char *trouble;
    int fd = open(entry->fts_accpath, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return strerror(errno);
    trouble = read_file(walk, fd, status);
    if (trouble == NULL)
        send_parts(walk, (size_t)status->st_size, entry->fts_path);
    close(fd);
    return trouble;
}

static void walk_report(struct walk *walk, const FTSENT *entry, const struct stat *status,
                        const char *trouble)
{
    struct headers headers = {0};
    const char *fate = trouble == NULL ? "sent" : trouble;

    headers_add(&headers, "from", "walk");
    headers_add_number(&headers, "file", walk->files++);
    headers_add(&headers, "path", entry->fts_path);
    headers_add_number(&headers, "size", (uint64_t)status->st_size);
    headers_add_number(&headers, "mtime", mtime_of(status));
    job_send(walk->results, TYPE_RESULT, &headers, NULL, fate, strlen(fate));
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
    }
    if (errno != 0)
        die("walking %s: %s", folder, strerror(errno));
    fts_close(tree);
}

/* Each kind of worker is told that there is no more, and then collect, how much there was. */
static void walk_end(struct walk *walk)
{
    struct headers headers = {0};

    for (enum kind kind = 0; kind < KINDS; kind++) {
        job_send(walk->work[kind], TYPE_END, &headers, NULL, NULL, 0);
        job_flush(walk->work[kind]);
    }
    headers_add(&headers, "from", "walk");
    headers_add_number(&headers, "messages", walk->messages);
    headers_add_number(&headers, "bytes", walk->bytes);
    headers_add_number(&headers, "links", walk->links);
    job_send(walk->results, TYPE_END, &headers, NULL, NULL, 0);
    job_flush(walk->results);
}

int main(int argc, char **argv)
{
    ipc_connection *connection = job_connect("walk");
    ipc_publisher *news = news_open(connection, "walk");
    struct walk walk = {.content = must(malloc(FILE_SIZE_MAX))};

    if (argc != 2)
        die("usage: walk FOLDER");
    for (enum kind kind = 0; kind < KINDS; kind++)
        walk.work[kind] = work_producer(connection, kind);
    walk.results = job_producer(connection, QUEUE_RESULTS);

    walk_folder(&walk, argv[1]);
    walk_end(&walk);
    news_tell(news, "has sent %llu files; all of it is in the queues", (unsigned long long)walk.files);
    ipc_connection_close(connection);
    free(walk.content);
    return 0;
}
