/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/name.h"

#include <string.h>

#include "proto/limits.h"

const char *ipc_name_check(const char *name, bool pattern)
{
    if (!name || !*name)
        return "it is empty";
    size_t size = strnlen(name, IPC_MAX_NAME_SIZE + 1);
    if (size > IPC_MAX_NAME_SIZE)
        return "it is longer than 255 bytes";
    unsigned levels = 1;
    for (size_t i = 0, level = 0; i <= size; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c == '.' || c == '\0') {
            if (i == level)
                return "it has an empty level (two dots in a row, or a dot at an end)";
            level = i + 1;
            if (c == '.' && ++levels > IPC_MAX_NAME_LEVELS)
                return "it has more than 32 levels";
        } else if (c <= ' ' || c >= 0x7f) {
            return "it has a byte that is not printable ASCII (spaces are not allowed either)";
        } else if (c == '*' || c == '>') {
            if (!pattern)
                return "'*' and '>' belong in patterns, not in names";
            bool alone = i == level && (name[i + 1] == '.' || name[i + 1] == '\0');
            if (!alone)
                return "'*' and '>' stand for whole levels and cannot be part of one";
            if (c == '>' && name[i + 1] != '\0')
                return "'>' can only be the last level";
        }
    }
    return NULL;
}

bool ipc_name_match(const char *pattern, const char *name)
{
    for (;;) {
        if (pattern[0] == '>')
            return true;
        size_t name_level = strcspn(name, ".");
        size_t pattern_level = strcspn(pattern, ".");
        bool any = pattern_level == 1 && pattern[0] == '*';
        if (!any && (name_level != pattern_level || memcmp(name, pattern, name_level) != 0))
            return false;
        name += name_level;
        pattern += pattern_level;
        if (!*name || !*pattern)
            return !*name && !*pattern;
        name++;
        pattern++;
    }
}

/* The sizes of the next levels. */
struct levels {
    size_t of_pattern, of_other;
};

static bool same(const char *pattern, const char *other, struct levels size)
{
    return size.of_pattern == size.of_other && memcmp(pattern, other, size.of_pattern) == 0;
}

bool ipc_name_overlap(const char *pattern, const char *other)
{
    for (;;) {
        struct levels size = {strcspn(pattern, "."), strcspn(other, ".")};

        if (*pattern == '>' || *other == '>')
            return true;
        if (*pattern != '*' && *other != '*' && !same(pattern, other, size))
            return false;
        pattern += size.of_pattern;
        other += size.of_other;
        if (!*pattern || !*other)
            return !*pattern && !*other;
        pattern++;
        other++;
    }
}

bool ipc_name_cover(const char *pattern, const char *other)
{
    for (;;) {
        struct levels size = {strcspn(pattern, "."), strcspn(other, ".")};

        if (*pattern == '>')
            return true;
        if (*other == '>' || (*pattern != '*' && !same(pattern, other, size)))
            return false;
        pattern += size.of_pattern;
        other += size.of_other;
        if (!*pattern || !*other)
            return !*pattern && !*other;
        pattern++;
        other++;
    }
}
