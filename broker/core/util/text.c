/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/text.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Bytes of the UTF-8 character at `at` (terminated text), or 0 if there is none, or a control character. */
static size_t utf8_size(const unsigned char *at)
{
    size_t size = at[0] < 0x80 ? 1 : at[0] >= 0xc2 && at[0] < 0xe0 ? 2 : (at[0] & 0xf0) == 0xe0 ? 3 : 4;
    uint32_t code;

    if (size == 1)
        return at[0] >= 0x20 && at[0] != 0x7f ? 1 : 0;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    code = at[0] & (0xffu >> (size + 1));
    for (size_t i = 1; i < size; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (at[i] & 0x3fu);
    }
    if (code < 0xa0 || (size == 3 && code < 0x800) || (size == 4 && code < 0x10000) || code > 0x10ffff ||
        (code >= 0xd800 && code < 0xe000))
        return 0;
    return size;
}

void text_clean(char *to, size_t capacity, const char *from)
{
    const unsigned char *at = (const unsigned char *)from;
    size_t used = 0;

    assert(capacity > 0);
    while (*at) {
        size_t size = utf8_size(at);

        if (used + (size ? size : 1) >= capacity)
            break;
        if (size) {
            memcpy(to + used, at, size);
            used += size;
            at += size;
        } else {
            to[used++] = '?';
            at++;
        }
    }
    to[used] = '\0';
}

void text_quote(char *to, size_t capacity, const char *from)
{
    static const char hex[] = "0123456789abcdef";
    size_t used = 0;

    assert(capacity >= 8);
    for (const unsigned char *at = (const unsigned char *)from; *at; at++) {
        if (used + 8 > capacity) {
            memcpy(to + used, "...", 3);
            used += 3;
            break;
        }
        if (*at == '"' || *at == '\\') {
            to[used++] = '\\';
            to[used++] = (char)*at;
        } else if (*at < 0x20 || *at == 0x7f) {
            to[used++] = '\\';
            to[used++] = 'x';
            to[used++] = hex[*at >> 4];
            to[used++] = hex[*at & 15];
        } else {
            to[used++] = (char)*at;
        }
    }
    to[used] = '\0';
}

int text_to_number(const char *text, bool size, uint64_t *ret)
{
    uint64_t number = 0;
    unsigned shift = 0;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (__builtin_mul_overflow(number, 10u, &number) ||
            __builtin_add_overflow(number, (unsigned)(*text - '0'), &number))
            return -ERANGE;
    }
    if (size && *text) {
        shift = *text == 'K' ? 10 : *text == 'M' ? 20 : *text == 'G' ? 30 : 0;
        text += shift ? 1 : 0;
    }
    if (*text)
        return -EINVAL;
    if (number << shift >> shift != number)
        return -ERANGE;
    *ret = number << shift;
    return 0;
}

void text_from_number(char *to, size_t capacity, uint64_t number, bool size)
{
    static const struct {
        unsigned shift;
        const char *suffix;
    } units[] = {{30, "G"}, {20, "M"}, {10, "K"}, {0, ""}};
    size_t i = size && number ? 0 : 3;

    while (units[i].shift && number & ((UINT64_C(1) << units[i].shift) - 1))
        i++;
    (void)snprintf(to, capacity, "%" PRIu64 "%s", number >> units[i].shift, units[i].suffix);
}

static uint64_t now(clockid_t clock)
{
    struct timespec time = {0};

    (void)clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

uint64_t time_monotonic_ns(void)
{
    return now(CLOCK_MONOTONIC);
}

uint64_t time_realtime_ns(void)
{
    return now(CLOCK_REALTIME);
}
