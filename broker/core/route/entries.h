/* SPDX-License-Identifier: Apache-2.0
 *
 * Private lists of messages: first in first out, and by an order of their own. An entry says where a record is and which
 * number it had; file_find() tells if it is still there, so that nothing has to be taken out of the middle.
 */
#ifndef IPCD_CORE_ROUTE_ENTRIES_H
#define IPCD_CORE_ROUTE_ENTRIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct entry {
    uint64_t offset, number;
};

struct fifo_block;
struct fifo {
    struct fifo_block *first, *last;
    uint32_t from, to; /* in the first block, in the last */
    uint64_t count;
};

/* Returns false if out of memory. */
bool fifo_push(struct fifo *fifo, struct entry entry);
/* The first entry, or NULL; valid until the next call. */
const struct entry *fifo_peek(const struct fifo *fifo);
void fifo_pop(struct fifo *fifo);
void fifo_clear(struct fifo *fifo);

struct heap_item {
    uint64_t order; /* the lowest is on top */
    struct entry entry;
    uint64_t extra;
};
struct heap {
    struct heap_item *items;
    size_t count, capacity;
};

/* Room for so many more items than there are. */
bool heap_reserve(struct heap *heap, size_t more);
bool heap_push(struct heap *heap, const struct heap_item *item);
static inline const struct heap_item *heap_top(const struct heap *heap)
{
    return heap->count ? &heap->items[0] : NULL;
}
void heap_pop(struct heap *heap);
/* Keep those that `keep` says. */
void heap_filter(struct heap *heap, bool (*keep)(void *data, const struct heap_item *item), void *data);
void heap_clear(struct heap *heap);

#endif
