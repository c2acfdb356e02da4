/* SPDX-License-Identifier: Apache-2.0
 *
 * What collect has collected, and its comparison with what the tools of the system say of the same files.
 */
#ifndef FILEINDEX_CHECK_H
#define FILEINDEX_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Who publishes results. */
enum source { WALK, DIGEST, COUNT, IDENTIFIERS, SOURCES };

struct file {
    char *path;
    uint64_t size, mtime_ns;
    unsigned seen; /* 1 << enum source: who has said something about it */
    char *skipped; /* why walk did not publish it; NULL: it did */
    bool changed;  /* since walk read it */
    char digest[65];
    uint64_t lines, words, bytes;
    uint64_t identifiers;
};

struct index {
    struct file *files;
    size_t count; /* by number of the file, as walk counted */
    size_t room;
    char *top; /* what identifiers says of all files: "count name" lines, then "total distinct" */
};

/* The file of that number. Grows the index. */
struct file *index_file(struct index *index, uint64_t number);
void index_done(struct index *index);

/* Print a path so that it cannot upset the terminal. */
void print_path(const char *path);

/* Compare with sha256sum, wc and grep | tr | awk. Says on stdout what is wrong, and counts it. */
uint64_t check_all(struct index *index);

#endif
