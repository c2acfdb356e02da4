/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/input.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tools/ipcctl.h"

#define READ_SIZE ((size_t)65536)

void input_done(struct input *input)
{
    free(input->buffer);
    input->buffer = NULL;
}

int input_fill(struct input *input)
{
    if (input->start > 0) {
        memmove(input->buffer, input->buffer + input->start, input->end - input->start);
        input->end -= input->start;
        input->seen -= input->start;
        input->start = 0;
    }
    if (input->capacity - input->end < READ_SIZE) {
        input->capacity = 2 * input->capacity + READ_SIZE;
        input->buffer = tool_alloc(input->buffer, input->capacity);
    }
    ssize_t size = read(input->fd, input->buffer + input->end, input->capacity - input->end);
    if (size < 0)
        return -errno;
    input->end += (size_t)size;
    input->ended = size == 0;
    return 0;
}

int input_next(struct input *input, const char **ret_data, size_t *ret_size)
{
    if (input->done)
        return 0;
    const char *found = NULL;
    if (!input->whole && input->end > input->seen)
        found = memchr(input->buffer + input->seen, input->delimiter, input->end - input->seen);
    if (!found) {
        input->seen = input->end;
        if (!input->ended)
            return -EAGAIN;
        /* What follows the last delimiter is a message if there is something; the whole is one even if empty. */
        input->done = true;
        if (input->start == input->end && !input->whole)
            return 0;
        *ret_data = input->buffer + input->start;
        *ret_size = input->end - input->start;
        return 1;
    }
    *ret_data = input->buffer + input->start;
    *ret_size = (size_t)(found - *ret_data);
    input->start = input->seen = (size_t)(found - input->buffer) + 1;
    return 1;
}
