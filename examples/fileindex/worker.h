/* SPDX-License-Identifier: Apache-2.0
 *
 * What digest, count and identifiers have in common: they read files.> and publish one result per file.
 */
#ifndef FILEINDEX_WORKER_H
#define FILEINDEX_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct worker {
    const char *name;                          /* of the program and of its results */
    size_t state_size;                         /* of what it keeps about one file: zeroed before each file */
    void (*begin)(void *state, bool one_part); /* one part: it comes at once, and is not abandoned */
    void (*update)(void *state, const unsigned char *data, size_t size);
    void (*finish)(void *state, FILE *result);
    void (*abandon)(void *state);  /* no result: the file changed while it was read */
    void (*summary)(FILE *result); /* NULL: nothing over all files */
};

/* Work until the job has ended. Returns the exit status. */
int worker_run(const struct worker *worker);

#endif
