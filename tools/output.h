/* SPDX-License-Identifier: Apache-2.0
 *
 * Output: tables that fit the terminal, and JSON documents. Both are made from the same values, exact in JSON
 * and rounded in tables.
 */
#ifndef IPC_TOOLS_OUTPUT_H
#define IPC_TOOLS_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "tools/ipcctl.h"

struct table_column {
    const char *title;
    bool right;  /* a number */
    bool shrink; /* may be cut to fit the terminal */
};

/* How a cell looks where colors are on. */
enum tone { TONE_PLAIN, TONE_BOLD, TONE_DIM, TONE_BAD, TONE_NAME };

struct table;
struct table *table_new(const struct table_column *columns, size_t column_count);
struct table *table_free(struct table *table);
static inline void table_freep(struct table **table)
{
    table_free(*table);
}
#define _cleanup_table_ __attribute__((cleanup(table_freep)))

/* The next cell, row by row from left to right. Control bytes are escaped. */
void table_add(struct table *table, enum tone tone, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void table_add_count(struct table *table, enum tone tone, uint64_t count);
void table_add_bytes(struct table *table, enum tone tone, uint64_t bytes);

/* Print it to stdout. */
void table_print(const struct table *table, const struct tool *tool);

/* The escape sequence of a tone, or "" if colors are off for stdout. */
const char *output_tone(const struct tool *tool, enum tone tone);
const char *output_tone_end(const struct tool *tool, enum tone tone);

/* JSON values that never fail: names of others that are not UTF-8 are escaped. */
json_t *output_string(const char *text);
json_t *output_number(uint64_t number);
/* Set a new value in an object; ends the program if there is no memory. */
void output_set(json_t *object, const char *key, json_t *value);
void output_append(json_t *array, json_t *value);
/* Set key_encoding-like pairs: `key` to the bytes as a string, or base64; `encoding` to "utf-8" or "base64". */
void output_set_bytes(json_t *object, const char *key, const void *data, size_t size);
/* Print the document to stdout, and let go of it. */
void output_document(json_t *document);
/* Print it as one line. */
void output_line(json_t *object);

#endif
