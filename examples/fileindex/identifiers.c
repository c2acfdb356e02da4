/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker of the file index: the identifiers of each file, [A-Za-z_][A-Za-z0-9_]*, and how often each occurs. An
 * identifier may go on in the next part of a file.
 */
#include <stdlib.h>
#include <string.h>

#include "table.h"
#include "worker.h"

struct identifiers {
    char *open; /* an identifier that the last part ended in */
    size_t open_size;
    struct table table;
};

static unsigned char kinds[256]; /* 1 begins an identifier, 2 continues one */

static void identifiers_begin(void *state)
{
}

static void identifiers_close(struct identifiers *file)
{
    if (file->open_size > 0)
        table_count(&file->table, file->open, file->open_size, 1);
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
            table_count(&file->table, (const char *)data + from, i - from, 1);
        }
    }
}

static void identifiers_finish(void *state, FILE *result)
{
    struct identifiers *file = state;

    identifiers_close(file);
    table_write(&file->table, result);
    table_done(&file->table);
    free(file->open);
}

int main(int argc, char **argv)
{
    for (unsigned byte = 0; byte < 128; byte++) {
        if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || byte == '_')
            kinds[byte] = 1;
        else if (byte >= '0' && byte <= '9')
            kinds[byte] = 2;
    }
    return worker_run(
        &(struct worker){
            .kind = IDENTIFIERS,
            .state_size = sizeof(struct identifiers),
            .begin = identifiers_begin,
            .update = identifiers_update,
            .finish = identifiers_finish,
        },
        argc, argv);
}
