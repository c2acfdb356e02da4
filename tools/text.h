/* SPDX-License-Identifier: Apache-2.0
 *
 * Text for people and for JSON: escaping what others wrote, numbers that one can read, near misses of a word.
 */
#ifndef IPC_TOOLS_TEXT_H
#define IPC_TOOLS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* True if the bytes are valid UTF-8 (RFC 3629: no surrogates, no overlong forms). */
bool text_is_utf8(const void *data, size_t size);

/* Write bytes so that no terminal obeys them: printable UTF-8 as it is; tab, newline, carriage return and
 * backslash as \t \n \r \\; other control characters, invalid bytes and marks that reorder or hide text as
 * \xNN (a byte) or \u{N} (a character). */
void text_escape(FILE *out, const void *data, size_t size);

/* The same into memory of the caller's (free it). */
char *text_escaped(const void *data, size_t size);

/* Base64 (RFC 4648) of the bytes; free it. */
char *text_base64(const void *data, size_t size);

#define TEXT_NUMBER_SIZE 32
/* 9999, 12.3k, 4.5M: three significant digits from 10,000 on. Each fills and returns `buffer`. */
const char *text_count(char buffer[static TEXT_NUMBER_SIZE], uint64_t count);
/* 512B, 256K, 1.5M, 4.0G: powers of 1024. */
const char *text_bytes(char buffer[static TEXT_NUMBER_SIZE], uint64_t bytes);
/* 850ns, 12.3us, 4.5ms, 17s, 3m20s, 2h05m, 4d03h */
const char *text_duration(char buffer[static TEXT_NUMBER_SIZE], uint64_t duration_ns);
/* 2024-05-06T07:08:09Z, from nanoseconds of CLOCK_REALTIME */
const char *text_time(char buffer[static TEXT_NUMBER_SIZE], uint64_t realtime_ns);

/* Of the words (NULL-terminated list) the one nearest to `text`, or NULL if none is near. */
const char *text_nearest(const char *text, const char *const *words);

#endif
