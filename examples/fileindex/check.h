/* SPDX-License-Identifier: Apache-2.0
 *
 * What collect has collected, and its comparison with what the tools of the system say of the same files.
 */
#ifndef FILEINDEX_CHECK_H
#define FILEINDEX_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common.h"

struct file {
    char *path;
    uint64_t size, mtime_ns;
    bool walked;
    char *skipped; /* why walk did not send it; NULL: it did */
    struct {
        uint64_t parts; /* of the result, so far */
        bool complete;
    } results[KINDS];
    bool changed; /* since walk read it */
    char *names;  /* lines of the result of identifiers, so far */
    size_t names_size;
    char digest[65];
    uint64_t lines, words, bytes;
    uint64_t identifiers;
};

struct index {
    struct file *files;
    size_t count; /* by number of the file, as walk counted */
    size_t room;
    char *top; /* the most frequent identifiers of all files: "count name" lines, then "total distinct" */
};

/* The file of that number. Grows the index. */
struct file *index_file(struct index *index, uint64_t number);
void index_done(struct index *index);

/* Print a path so that it cannot upset the terminal. */
void print_path(FILE *out, const char *path);

/* Compare with sha256sum, wc and grep | tr | awk. Says what is wrong, and counts it. */
uint64_t check_all(struct index *index, FILE *out);

#endif
