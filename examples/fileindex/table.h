/* SPDX-License-Identifier: Apache-2.0
 *
 * How often each word occurs.
 */
#ifndef FILEINDEX_TABLE_H
#define FILEINDEX_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct word {
    char *text; /* NULL: free place */
    size_t size;
    uint64_t hash;
    uint64_t count;
};

struct table {
    struct word *words;
    size_t places; /* a power of two */
    size_t used;
    uint64_t total;
};

void table_count(struct table *table, const char *text, size_t size, uint64_t count);
void table_done(struct table *table);

/* A line "count word" for each. */
void table_write(const struct table *table, FILE *to);

/* Count what table_write() wrote, which is changed by that. Returns the sum of the counts. */
uint64_t table_read(struct table *table, char *text);

/* The `top` most frequent, sorted, as lines; then a line "total distinct". Nothing else may be done with it then. */
void table_summary(struct table *table, size_t top, FILE *to);

#endif
