/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/stats.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "proto/layout.h"

#define CHUNK 4096u

static bool read_at(int fd, void *bytes, size_t size, uint64_t offset)
{
    return pread(fd, bytes, size, (off_t)offset) == (ssize_t)size;
}

/* Walk from a record boundary over committed records, as far as the budget lasts: the writer tells its head only now
 * and then. */
static void walk(struct lane_stats *stats, int fd, uint32_t ring_size, uint64_t *budget)
{
    uint64_t word, position = stats->head, most = position + ring_size;
    unsigned char chunk[CHUNK];
    uint64_t loaded = UINT64_MAX; /* position of the first byte in chunk */
    uint32_t n = 0, last = 0;

    while (position < most && *budget >= CHUNK) {
        uint64_t base = position & ~(uint64_t)(CHUNK - 1);

        if (base != loaded) {
            if (!read_at(fd, chunk, CHUNK, IPC_LAYOUT_PAGE + (base & (ring_size - 1))))
                break;
            loaded = base;
            *budget -= CHUNK;
        }
        memcpy(&word, chunk + (position - base), sizeof(word));
        if (!((uint32_t)word & IPC_RECORD_COMMITTED))
            break;
        last = (uint32_t)(word >> 32);
        n++;
        position += ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
    }
    stats->head = position;
    /* The record tells the low half of its number; the high half is that of the tail, or the one after it. */
    if (n > 0) {
        uint64_t full = (stats->sequence & ~(uint64_t)UINT32_MAX) | last;

        if (full < stats->sequence)
            full += UINT64_C(1) << 32;
        stats->sequence = full + 1;
    }
}

void stats_of_lane(struct lane_stats *ret, int fd, uint32_t ring_size, uint64_t *budget)
{
    uint64_t words[4]; /* tail, tail_sequence, head, overrun */

    static_assert(offsetof(struct ipc_lane, overrun) == offsetof(struct ipc_lane, tail) + 24,
                  "four words in a row");
    *ret = (struct lane_stats){0};
    if (!read_at(fd, words, sizeof(words), offsetof(struct ipc_lane, tail)))
        return;
    ret->sequence = words[1];
    ret->overrun = words[3];
    ret->head = words[2];
    if (ret->head % IPC_RECORD_ALIGN == 0 && ret->head <= UINT64_MAX / 2)
        walk(ret, fd, ring_size, budget);
}

bool stats_of_cell(struct cell_stats *ret, int fd, uint32_t cell, uint64_t pairing)
{
    uint64_t words[3]; /* cursor, owner, lost */

    static_assert(offsetof(struct ipc_cell, lost) == 16, "three words in a row");
    *ret = (struct cell_stats){0};
    if (cell >= IPC_CELLS_PER_SEGMENT ||
        !read_at(fd, words, sizeof(words),
                 offsetof(struct ipc_cells, cells) + (uint64_t)cell * sizeof(struct ipc_cell)) ||
        words[1] != pairing)
        return false;
    ret->cursor = words[0];
    ret->lost = words[2];
    return true;
}

uint32_t stats_of_calls(int fd)
{
    uint64_t calls;

    return read_at(fd, &calls, sizeof(calls), offsetof(struct ipc_lane, calls)) ? (uint32_t)calls : 0;
}
