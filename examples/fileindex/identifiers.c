/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker of the file index: the identifiers of each file, [A-Za-z_][A-Za-z0-9_]*, and the most frequent ones
 * of all files. An identifier may go on in the next part of a file.
 *
 * The identifiers of a file in several parts are kept apart until it is complete: it may be abandoned.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "worker.h"

#define TOP 10

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

struct identifiers {
    char *open; /* an identifier that the last part ended in */
    size_t open_size;
    struct table own;
    struct table *table; /* own, or that of all files */
    uint64_t before;     /* its total when the file began */
};

static struct table all;
static unsigned char kinds[256]; /* 1 begins an identifier, 2 continues one */

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

static void table_count(struct table *table, const char *text, size_t size, uint64_t count)
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

static void table_done(struct table *table)
{
    for (size_t i = 0; i < table->places; i++)
        free(table->words[i].text);
    free(table->words);
    *table = (struct table){0};
}

static void identifiers_begin(void *state, bool one_part)
{
    struct identifiers *file = state;

    file->table = one_part ? &all : &file->own;
    file->before = file->table->total;
}

static void identifiers_close(struct identifiers *file)
{
    if (file->open_size > 0)
        table_count(file->table, file->open, file->open_size, 1);
    file->open_size = 0;
}

static void identifiers_update(void *state, const unsigned char *data, size_t size)
{
    struct identifiers *file = state;
    size_t i = 0;

    if (file->open_size > 0) {
        size_t more = 0;

        while (more < size && kinds[data[more]] != 0)
            more++;
        file->open = must(realloc(file->open, file->open_size + more + 1));
        memcpy(file->open + file->open_size, data, more);
        file->open_size += more;
        if (more == size)
            return;
        identifiers_close(file);
        i = more;
    }
    while (i < size) {
        size_t from;

        while (i < size && kinds[data[i]] != 1)
            i++;
        from = i;
        while (i < size && kinds[data[i]] != 0)
            i++;
        if (i == size) { /* it may go on in the next part */
            file->open = must(realloc(file->open, i - from + 1));
            memcpy(file->open, data + from, i - from);
            file->open_size = i - from;
        } else {
            table_count(file->table, (const char *)data + from, i - from, 1);
        }
    }
}

static void identifiers_abandon(void *state)
{
    struct identifiers *file = state;

    free(file->open);
    table_done(&file->own);
}

static void identifiers_finish(void *state, FILE *result)
{
    struct identifiers *file = state;

    identifiers_close(file);
    fprintf(result, "%" PRIu64, file->table->total - file->before);
    for (size_t i = 0; i < file->own.places; i++) {
        struct word *word = &file->own.words[i];

        if (word->text != NULL)
            table_count(&all, word->text, word->size, word->count);
    }
    identifiers_abandon(file);
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

static void identifiers_summary(FILE *result)
{
    if (all.places > 0)
        qsort(all.words, all.places, sizeof(*all.words), word_compare);
    for (size_t i = 0; i < TOP && i < all.used; i++)
        fprintf(result, "%" PRIu64 " %s\n", all.words[i].count, all.words[i].text);
    fprintf(result, "%" PRIu64 " %zu\n", all.total, all.used);
}

int main(void)
{
    int status;

    for (unsigned byte = 0; byte < 128; byte++) {
        if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || byte == '_')
            kinds[byte] = 1;
        else if (byte >= '0' && byte <= '9')
            kinds[byte] = 2;
    }
    status = worker_run(&(struct worker){
        .name = "identifiers",
        .state_size = sizeof(struct identifiers),
        .begin = identifiers_begin,
        .update = identifiers_update,
        .finish = identifiers_finish,
        .abandon = identifiers_abandon,
        .summary = identifiers_summary,
    });
    table_done(&all);
    return status;
}
