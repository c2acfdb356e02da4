/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages out of a stream of bytes: lines, pieces between NUL bytes, or the whole.
 */
#ifndef IPC_TOOLS_INPUT_H
#define IPC_TOOLS_INPUT_H

#include <stdbool.h>
#include <stddef.h>

struct input {
    int fd;
    bool whole;     /* one message: everything */
    char delimiter; /* else: ends each message, and is no part of it */
    char *buffer;
    size_t start; /* of what was not handed out yet */
    size_t seen;  /* no delimiter before this */
    size_t end;
    size_t capacity;
    bool ended; /* read returned 0 */
    bool done;  /* the last message was handed out */
};

void input_done(struct input *input);

/* Read once; blocks if there is nothing. Returns 0 or a negative errno. */
int input_fill(struct input *input);

/* The next message that is complete. Returns 1; 0 if there is none and will be none; -EAGAIN: fill first. The
 * bytes are valid until the next input_fill(). */
int input_next(struct input *input, const char **ret_data, size_t *ret_size);

#endif
