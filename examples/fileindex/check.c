/* SPDX-License-Identifier: Apache-2.0
 *
 * The results against the tools of the system: sha256sum for the digests, wc for the counts, and a pipeline of
 * grep, tr, awk and sort for the identifiers. They run side by side, each over the same list of files, and
 * report in its order; a file that a tool could not read is missing there.
 *
 * Files that changed since they were read are left out, and said to be.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "common.h"

#define SHOWN_MAX 5 /* complaints of a kind */

struct file *index_file(struct index *index, uint64_t number)
{
    if (number >= UINT32_MAX)
        die("file number %" PRIu64 " makes no sense", number);
    if (number >= index->room) {
        size_t room = index->room ? index->room : 1024;

        while (room <= number)
            room *= 2;
        index->files = must(realloc(index->files, room * sizeof(*index->files)));
        memset(index->files + index->room, 0, (room - index->room) * sizeof(*index->files));
        index->room = room;
    }
    if (number >= index->count)
        index->count = (size_t)number + 1;
    return &index->files[number];
}

void index_done(struct index *index)
{
    for (size_t i = 0; i < index->count; i++) {
        free(index->files[i].path);
        free(index->files[i].skipped);
        free(index->files[i].names);
    }
    free(index->files);
    free(index->top);
}

void print_path(FILE *out, const char *path)
{
    for (const unsigned char *byte = (const unsigned char *)path; *byte != '\0'; byte++)
        if (*byte >= ' ' && *byte < 0x7f && *byte != '\\')
            putc(*byte, out);
        else
            fprintf(out, "\\x%02x", (unsigned)*byte);
}

/* ---- the list -------------------------------------------------------------------------------------------- */

static bool file_compared(const struct file *file)
{
    return file->skipped == NULL && !file->changed;
}

/* Look which files changed. Returns how many did since the last look. */
static uint64_t look_for_changes(struct index *index)
{
    uint64_t changed = 0;

    for (size_t i = 0; i < index->count; i++) {
        struct file *file = &index->files[i];
        struct stat now;

        if (!file_compared(file))
            continue;
        file->changed = lstat(file->path, &now) < 0 || (uint64_t)now.st_size != file->size ||
                        (uint64_t)now.st_mtim.tv_sec * 1000000000 + (uint64_t)now.st_mtim.tv_nsec !=
                            file->mtime_ns;
        changed += file->changed;
    }
    return changed;
}

/* Start a tool; `command` reads the names, each with a 0 behind it, from $list. */
static FILE *tool_start(const char *command, FILE *list)
{
    char *text = NULL;
    size_t size = 0;
    FILE *whole = must(open_memstream(&text, &size));
    FILE *tool;

    /* Its own file position: /dev/fd opens the file anew. */
    fprintf(whole, "export LC_ALL=C; list=/dev/fd/%d; %s", fileno(list), command);
    if (fclose(whole) != 0)
        die("out of memory");
    tool = popen(text, "r");
    if (tool == NULL)
        die("cannot start a shell for the comparison");
    free(text);
    return tool;
}

static uint64_t complain(FILE *out, uint64_t before, const struct file *file, const char *what)
{
    if (before < SHOWN_MAX) {
        fprintf(out, "  WRONG  %s: ", what);
        print_path(out, file->path);
        putc('\n', out);
    }
    return before + 1;
}

/* ---- per file -------------------------------------------------------------------------------------------- */

/* The next file on the list of which a tool printed this name; files between were not read by it. `name` is
 * NULL if the tool did not print it as it is. */
static struct file *next_named(struct index *index, size_t *position, const char *name)
{
    while (*position < index->count) {
        struct file *file = &index->files[(*position)++];

        if (file_compared(file) &&
            (name == NULL ? strchr(file->path, '\n') != NULL : strcmp(file->path, name) == 0))
            return file;
    }
    return NULL;
}

static void verdict_digest(struct index *index, FILE *tool, bool *right)
{
    char *line = NULL;
    size_t room = 0, position = 0;

    while (getdelim(&line, &room, '\0', tool) > 66) {
        struct file *file = next_named(index, &position, line + 66);

        if (file != NULL)
            right[file - index->files] = memcmp(line, file->digest, 64) == 0;
    }
    free(line);
}

static void verdict_count(struct index *index, FILE *tool, bool *right)
{
    char *line = NULL;
    size_t room = 0, position = 0;
    ssize_t size;

    while ((size = getdelim(&line, &room, '\n', tool)) > 0) {
        char *at = line;
        uint64_t lines = strtoull(at, &at, 10);
        uint64_t words = strtoull(at, &at, 10);
        uint64_t bytes = strtoull(at, &at, 10);
        struct file *file;

        line[size - 1] = '\0';
        if (strcmp(at, " total") == 0)
            break;
        /* A name with a line feed is quoted, and does not begin with the folder's slash. */
        file = next_named(index, &position, at[0] == ' ' && at[1] == '/' ? at + 1 : NULL);
        if (file != NULL)
            right[file - index->files] = lines == file->lines && words == file->words && bytes == file->bytes;
    }
    free(line);
}

static uint64_t tell_wrong(FILE *out, struct index *index, const bool *right, const char *what)
{
    uint64_t wrong = 0, compared = 0;

    for (size_t i = 0; i < index->count; i++) {
        const struct file *file = &index->files[i];

        if (!file_compared(file))
            continue;
        compared++;
        if (!right[i])
            wrong = complain(out, wrong, file, what);
    }
    fprintf(out, "  %-28s %9" PRIu64 " of %" PRIu64 " right\n", what, compared - wrong, compared);
    return wrong;
}

/* ---- over all files -------------------------------------------------------------------------------------- */

/* `theirs` is what the pipeline printed: as index->top. */
static uint64_t tell_identifiers_wrong(FILE *out, const struct index *index, const char *theirs,
                                       bool some_left_out)
{
    const char *ours = index->top != NULL ? index->top : "", *last = theirs;
    uint64_t total, sum = 0;
    bool same_top = some_left_out || strcmp(ours, theirs) == 0; /* ours is of all files */

    while (strchr(last, '\n') != NULL && strchr(last, '\n')[1] != '\0')
        last = strchr(last, '\n') + 1;
    total = strtoull(last, NULL, 10);
    for (size_t i = 0; i < index->count; i++)
        if (file_compared(&index->files[i]))
            sum += index->files[i].identifiers;

    if (last[0] == '\0')
        fprintf(out, "  WRONG  the pipeline for the identifiers printed nothing\n");
    else if (sum != total)
        fprintf(out, "  WRONG  identifiers: %" PRIu64 " counted, grep finds %" PRIu64 "\n", sum, total);
    else if (!same_top)
        fprintf(out,
                "  WRONG  the most frequent identifiers; collected, then as sort and awk have them:\n%s%s",
                ours, theirs);
    else
        fprintf(out, "  %-28s %9" PRIu64 " of %" PRIu64 " right%s\n", "identifiers (grep, awk)", sum, total,
                some_left_out ? " (of the files compared)" : ", and the ten most frequent");
    return last[0] == '\0' || sum != total || !same_top;
}

uint64_t check_all(struct index *index, FILE *out)
{
    FILE *list = must(tmpfile()), *sha256sum, *wc, *pipeline;
    bool *digests = must(calloc(index->count + 1, sizeof(bool)));
    bool *counts = must(calloc(index->count + 1, sizeof(bool)));
    uint64_t changed = look_for_changes(index), wrong = 0;
    char *theirs = NULL;
    size_t room = 0;

    for (size_t i = 0; i < index->count; i++)
        if (file_compared(&index->files[i]))
            fwrite(index->files[i].path, 1, strlen(index->files[i].path) + 1, list);
    if (fflush(list) != 0)
        die("the list of files for the comparison cannot be written");
    pipeline = tool_start("xargs -0 -r -a $list grep -ha '' | tr -cs A-Za-z0-9_ '\\n' | awk '"
                          "{ sub(/^[0-9]+/, \"\") } $0 != \"\" { n[$0]++; total++ } "
                          "END { top = \"sort -k1,1nr -k2,2 | head -n 10\"; "
                          "for (name in n) { print n[name], name | top; distinct++ } close(top); "
                          "printf \"%.0f %.0f\\n\", total, distinct }'",
                          list);
    wc = tool_start("wc -lwc --files0-from=$list", list);
    sha256sum = tool_start("xargs -0 -r -a $list sha256sum -z --", list);
    verdict_digest(index, sha256sum, digests);
    verdict_count(index, wc, counts);
    if (getdelim(&theirs, &room, '\0', pipeline) < 0) {
        free(theirs);
        theirs = must(strdup(""));
    }
    if (look_for_changes(index) == 0) {
        wrong += tell_wrong(out, index, digests, "digests (sha256sum)");
        wrong += tell_wrong(out, index, counts, "lines, words, bytes (wc)");
        wrong += tell_identifiers_wrong(out, index, theirs, changed > 0);
    } else {
        fprintf(out, "  WRONG  files changed during the comparison; run it again\n");
        wrong++;
    }
    pclose(sha256sum);
    pclose(wc);
    pclose(pipeline);
    fclose(list);
    free(theirs);
    free(digests);
    free(counts);
    return wrong;
}
