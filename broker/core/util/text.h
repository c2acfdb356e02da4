/* SPDX-License-Identifier: Apache-2.0
 *
 * Text from and for people: names of strangers, sizes, times. Pure functions, any thread.
 */
#ifndef IPCD_CORE_UTIL_TEXT_H
#define IPCD_CORE_UTIL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Copy `from` into `to`, at most capacity - 1 bytes, whole characters, always terminated. Bytes that are not
 * printable UTF-8 become '?', so that whoever gets the name may print it and put it into protobuf or JSON. */
void text_clean(char *to, size_t capacity, const char *from);

/* Copy `from` into `to`, quoted for a log line: '"', '\' and control bytes are escaped, the rest is cut off with
 * "..." if it does not fit. */
void text_quote(char *to, size_t capacity, const char *from);

/* A whole number, for sizes with one of the suffixes K, M, G (1024). Returns 0, or -EINVAL, or -ERANGE. */
int text_to_number(const char *text, bool size, uint64_t *ret);

/* A number as it is written in the configuration, with the largest suffix that divides it. */
void text_from_number(char *to, size_t capacity, uint64_t number, bool size);

uint64_t time_monotonic_ns(void);
uint64_t time_realtime_ns(void);

#endif
