/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/text.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "tools/ipcctl.h"

/* The size of the valid character at the start of the bytes, 0 if there is none. */
static size_t utf8_next(const unsigned char *data, size_t size, uint32_t *ret)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (size == 0)
        return 0;
    size_t length = data[0] < 0x80             ? 1
                    : (data[0] & 0xe0) == 0xc0 ? 2
                    : (data[0] & 0xf0) == 0xe0 ? 3
                    : (data[0] & 0xf8) == 0xf0 ? 4
                                               : 0;
    if (length == 0 || length > size)
        return 0;
    uint32_t c = length == 1 ? data[0] : data[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((data[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (data[i] & 0x3fu);
    }
    if (c < smallest[length] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *ret = c;
    return length;
}

bool text_is_utf8(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    uint32_t c;
    while (size > 0) {
        size_t length = utf8_next(bytes, size, &c);
        if (length == 0)
            return false;
        bytes += length;
        size -= length;
    }
    return true;
}

/* Characters that a terminal obeys, or that make a line read other than it is. */
static bool is_mark(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
           (c >= 0xfff9 && c <= 0xfffb);
}

void text_escape(FILE *out, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    size_t plain = 0; /* bytes at the start that need nothing */
    while (plain < size || plain > 0) {
        uint32_t c = 0;
        size_t length = utf8_next(bytes + plain, size - plain, &c);
        if (length > 0 && !is_mark(c) && c != '\\') {
            plain += length;
            continue;
        }
        if (plain > 0) {
            fwrite(bytes, 1, plain, out);
            bytes += plain;
            size -= plain;
            plain = 0;
            continue;
        }
        if (length == 0)
            fprintf(out, "\\x%02x", bytes[0]);
        else if (c == '\n' || c == '\t' || c == '\r' || c == '\\')
            fprintf(out, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : c == '\r' ? 'r' : '\\');
        else if (c < 0x80)
            fprintf(out, "\\x%02x", c);
        else
            fprintf(out, "\\u{%x}", c);
        length += length == 0;
        bytes += length;
        size -= length;
    }
}

char *text_escaped(const void *data, size_t size)
{
    char *text = NULL;
    size_t text_size = 0;
    FILE *out = open_memstream(&text, &text_size);
    if (!out)
        tool_alloc(NULL, SIZE_MAX);
    text_escape(out, data, size);
    if (fclose(out) != 0)
        tool_alloc(NULL, SIZE_MAX);
    return text;
}

char *text_base64(const void *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *bytes = data;
    char *text = tool_alloc(NULL, (size + 2) / 3 * 4 + 1), *end = text;
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i;
        uint32_t group = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                         (left > 2 ? bytes[i + 2] : 0);
        *end++ = digits[group >> 18];
        *end++ = digits[group >> 12 & 63];
        *end++ = left > 1 ? digits[group >> 6 & 63] : '=';
        *end++ = left > 2 ? digits[group & 63] : '=';
    }
    *end = '\0';
    return text;
}

/* Three significant digits and a unit; never "1000k" where "1.00M" is meant. */
static const char *scaled(char *buffer, uint64_t number, double step, const char *units)
{
    double value = (double)number;
    while (value >= step - 0.5 && units[1] != '\0') {
        value /= step;
        units++;
    }
    int decimals = value < 99.95 ? 1 : 0;
    snprintf(buffer, TEXT_NUMBER_SIZE, "%.*f%c", decimals, value, *units);
    return buffer;
}

const char *text_count(char buffer[static TEXT_NUMBER_SIZE], uint64_t count)
{
    if (count < 10000)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64, count);
    else
        scaled(buffer, count, 1000, " kMGTPE");
    return buffer;
}

const char *text_bytes(char buffer[static TEXT_NUMBER_SIZE], uint64_t bytes)
{
    static const char units[] = "BKMGTPE";
    size_t unit = 0;
    uint64_t whole = bytes;
    while (whole >= 1024 && whole % 1024 == 0 && units[unit + 1] != '\0') {
        whole /= 1024;
        unit++;
    }
    if (whole < 1024)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "%c", whole, units[unit]);
    else
        scaled(buffer, bytes, 1024, units);
    return buffer;
}

const char *text_duration(char buffer[static TEXT_NUMBER_SIZE], uint64_t duration_ns)
{
    uint64_t seconds = duration_ns / 1000000000u;
    if (duration_ns < 1000)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "ns", duration_ns);
    else if (duration_ns < 1000000)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%.1fus", (double)duration_ns / 1e3);
    else if (seconds < 1)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%.1fms", (double)duration_ns / 1e6);
    else if (seconds < 60)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "s", seconds);
    else if (seconds < 3600)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "m%02" PRIu64 "s", seconds / 60, seconds % 60);
    else if (seconds < 86400)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "h%02" PRIu64 "m", seconds / 3600, seconds / 60 % 60);
    else
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64 "d%02" PRIu64 "h", seconds / 86400,
                 seconds / 3600 % 24);
    return buffer;
}

const char *text_time(char buffer[static TEXT_NUMBER_SIZE], uint64_t realtime_ns)
{
    time_t seconds = (time_t)(realtime_ns / 1000000000u);
    struct tm parts;
    if (!gmtime_r(&seconds, &parts) || strftime(buffer, TEXT_NUMBER_SIZE, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
        snprintf(buffer, TEXT_NUMBER_SIZE, "%" PRIu64, realtime_ns);
    return buffer;
}

/* Edits from one word to the other: insert, delete, replace, swap two neighbours. */
static size_t distance(const char *a, const char *b)
{
    enum { MAX = 24 };
    size_t table[MAX + 1][MAX + 1];
    size_t a_size = strlen(a), b_size = strlen(b);
    if (a_size > MAX || b_size > MAX)
        return SIZE_MAX;
    for (size_t i = 0; i <= a_size; i++) {
        for (size_t j = 0; j <= b_size; j++) {
            if (i == 0 || j == 0) {
                table[i][j] = i + j;
                continue;
            }
            size_t best = table[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (table[i - 1][j] + 1 < best)
                best = table[i - 1][j] + 1;
            if (table[i][j - 1] + 1 < best)
                best = table[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                table[i - 2][j - 2] + 1 < best)
                best = table[i - 2][j - 2] + 1;
            table[i][j] = best;
        }
    }
    return table[a_size][b_size];
}

const char *text_nearest(const char *text, const char *const *words)
{
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (; *words; words++) {
        size_t d = distance(text, *words);
        bool begins = strlen(text) >= 2 && strncmp(text, *words, strlen(text)) == 0;
        if (begins)
            d = 1;
        /* At most half of the word may differ, or any word is near to "ls". */
        if (d < best_distance && (begins || 2 * d <= strlen(*words))) {
            best = *words;
            best_distance = d;
        }
    }
    return best;
}
