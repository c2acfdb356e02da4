/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop of a worker with libipc, such as digest: it consumes a queue of work, and sends a result per file.
 */
#ifndef FILEINDEX_WORKER_H
#define FILEINDEX_WORKER_H

#include <stddef.h>
#include <stdio.h>

#include "common.h"

struct worker {
    enum kind kind;
    size_t state_size; /* of what it keeps about one file: zeroed before each file */
    void (*begin)(void *state);
    void (*update)(void *state, const unsigned char *data, size_t size);
    void (*finish)(void *state, FILE *result); /* the same for the same file, each time */
};

/* Work until there is no more. With --die-after N, kill itself at the worst moment after N files: their results are
 * sent, and the work is not acknowledged yet. --replaces N: N workers of this kind died before. Returns the exit status. */
int worker_run(const struct worker *worker, int argc, char **argv);

#endif
