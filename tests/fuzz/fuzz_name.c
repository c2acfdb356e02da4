/* SPDX-License-Identifier: Apache-2.0
 *
 * Names and patterns: two texts, apart by a zero byte. Good ones are matched, and checked against a slow matcher.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/name.h"

static unsigned split(const char *text, const char **levels, size_t *sizes)
{
    unsigned count = 0;
    for (;;) {
        levels[count] = text;
        sizes[count] = strcspn(text, ".");
        text += sizes[count++];
        if (!*text || count == IPC_MAX_NAME_LEVELS)
            return count;
        text++;
    }
}

static bool slow_match(const char *pattern, const char *name)
{
    const char *p[IPC_MAX_NAME_LEVELS], *n[IPC_MAX_NAME_LEVELS];
    size_t p_size[IPC_MAX_NAME_LEVELS], n_size[IPC_MAX_NAME_LEVELS];
    unsigned p_count = split(pattern, p, p_size), n_count = split(name, n, n_size);
    for (unsigned i = 0; i < p_count; i++) {
        if (i >= n_count)
            return false;
        if (p[i][0] == '>')
            return true;
        if (p[i][0] != '*' && (p_size[i] != n_size[i] || memcmp(p[i], n[i], n_size[i]) != 0))
            return false;
    }
    return p_count == n_count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *pattern = malloc(size + 1);
    if (!pattern)
        return 0;
    if (size)
        memcpy(pattern, data, size);
    pattern[size] = '\0';
    size_t first = strlen(pattern);
    const char *name = first < size ? pattern + first + 1 : "";
    if (!ipc_name_check(pattern, false) && ipc_name_check(pattern, true))
        abort(); /* every name is a pattern, of itself alone */
    if (!ipc_name_check(pattern, false) && !ipc_name_match(pattern, pattern))
        abort();
    if (!ipc_name_check(pattern, true) && !ipc_name_check(name, false) &&
        ipc_name_match(pattern, name) != slow_match(pattern, name))
        abort();
    free(pattern);
    return 0;
}
