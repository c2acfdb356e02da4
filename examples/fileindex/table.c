/* SPDX-License-Identifier: Apache-2.0
 *
 * How often each word occurs: a hash table with open addressing. The same words counted in the same order give the same
 * table, and the same lines.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "table.h"

static void table_grow(struct table *table)
{
    struct table grown = {.places = table->places ? table->places * 2 : 256};

    grown.words = must(calloc(grown.places, sizeof(*grown.words)));
    for (size_t i = 0; i < table->places; i++) {
        struct word *word = &table->words[i];
        size_t place = word->hash & (grown.places - 1);

        if (word->text == NULL)
            continue;
        while (grown.words[place].text != NULL)
            place = (place + 1) & (grown.places - 1);
        grown.words[place] = *word;
    }
    free(table->words);
    table->words = grown.words;
    table->places = grown.places;
}

static uint64_t hash_of(const char *text, size_t size)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 32;
}

void table_count(struct table *table, const char *text, size_t size, uint64_t count)
{
    uint64_t hash = hash_of(text, size);
    size_t place;

    if (table->used * 2 >= table->places)
        table_grow(table);
    place = hash & (table->places - 1);
    while (table->words[place].text != NULL) {
        struct word *word = &table->words[place];

        if (word->hash == hash && word->size == size && memcmp(word->text, text, size) == 0)
            break;
        place = (place + 1) & (table->places - 1);
    }
    if (table->words[place].text == NULL) {
        table->words[place] = (struct word){must(strndup(text, size)), size, hash, 0};
        table->used++;
    }
    table->words[place].count += count;
    table->total += count;
}

void table_done(struct table *table)
{
    for (size_t i = 0; i < table->places; i++)
        free(table->words[i].text);
    free(table->words);
    *table = (struct table){0};
}

void table_write(const struct table *table, FILE *to)
{
    for (size_t i = 0; i < table->places; i++)
        if (table->words[i].text != NULL)
            fprintf(to, "%" PRIu64 " %s\n", table->words[i].count, table->words[i].text);
}

uint64_t table_read(struct table *table, char *text)
{
    uint64_t before = table->total;

    for (char *end; (end = strchr(text, '\n')) != NULL; text = end + 1) {
        uint64_t count = strtoull(text, &text, 10);

        table_count(table, text + 1, (size_t)(end - text - 1), count);
    }
    return table->total - before;
}

/* The most frequent first, equal ones by name: as sort -k1,1nr -k2,2 does. */
static int word_compare(const void *a, const void *b)
{
    const struct word *left = a, *right = b;

    if (left->text == NULL || right->text == NULL)
        return (left->text == NULL) - (right->text == NULL);
    if (left->count != right->count)
        return left->count < right->count ? 1 : -1;
    return strcmp(left->text, right->text);
}

void table_summary(struct table *table, size_t top, FILE *to)
{
    if (table->places > 0)
        qsort(table->words, table->places, sizeof(*table->words), word_compare);
    for (size_t i = 0; i < top && i < table->used; i++)
        fprintf(to, "%" PRIu64 " %s\n", table->words[i].count, table->words[i].text);
    fprintf(to, "%" PRIu64 " %zu\n", table->total, table->used);
}
