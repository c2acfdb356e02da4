/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker of the file index: lines, words and bytes of each file, as `wc` counts them in the C locale.
 *
 * A word is a run of bytes without white space. The wc of coreutils before 9.5 counts it only if a printable
 * byte is in it; with the argument --any-byte, each such run is a word, as in later ones and in POSIX.
 */
#include <inttypes.h>
#include <string.h>

#include "worker.h"

enum { SPACE = 1, LETTER = 2 };

struct count {
    uint64_t lines, words, bytes;
    bool in_word;
};

static unsigned char kinds[256];

static void count_begin(void *state)
{
}

static void count_update(void *state, const unsigned char *data, size_t size)
{
    struct count count = *(struct count *)state;

    for (size_t i = 0; i < size; i++) {
        unsigned kind = kinds[data[i]];

        count.lines += data[i] == '\n';
        if (kind == SPACE) {
            count.words += count.in_word;
            count.in_word = false;
        } else if (kind == LETTER) {
            count.in_word = true;
        }
    }
    count.bytes += size;
    *(struct count *)state = count;
}

static void count_finish(void *state, FILE *result)
{
    struct count *count = state;

    fprintf(result, "%" PRIu64 " %" PRIu64 " %" PRIu64, count->lines, count->words + count->in_word,
            count->bytes);
}

int main(int argc, char **argv)
{
    bool any = argc > 1 && strcmp(argv[1], "--any-byte") == 0;

    for (unsigned byte = 0; byte < 256; byte++) {
        if (byte == ' ' || (byte >= '\t' && byte <= '\r'))
            kinds[byte] = SPACE;
        else if (any || (byte > ' ' && byte < 0x7f))
            kinds[byte] = LETTER;
    }
    return worker_run(
        &(struct worker){
            .kind = COUNT,
            .state_size = sizeof(struct count),
            .begin = count_begin,
            .update = count_update,
            .finish = count_finish,
        },
        argc, argv);
}
