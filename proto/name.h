/* SPDX-License-Identifier: Apache-2.0
 *
 * Topic names and patterns. A name has levels separated by '.', each at least one byte of printable ASCII
 * except space, '.', '*' and '>'. In a pattern a level may be '*' (exactly one level) and the last may be '>'
 * (one or more levels). Pure functions, any thread, async-signal-safe.
 */
#ifndef IPC_PROTO_NAME_H
#define IPC_PROTO_NAME_H

#include <stdbool.h>
#include <stddef.h>

/* NULL if the name (or pattern, if pattern is true) is good, else a sentence that says what is wrong with it. */
const char *ipc_name_check(const char *name, bool pattern);

/* True if a good name matches a good pattern. */
bool ipc_name_match(const char *pattern, const char *name);

/* Of two good patterns: true if some name matches both, if each name that matches `other` matches `pattern`. */
bool ipc_name_overlap(const char *pattern, const char *other);
bool ipc_name_cover(const char *pattern, const char *other);

#endif
