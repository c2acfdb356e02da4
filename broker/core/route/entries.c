/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/route/entries.h"

#include <stdlib.h>

#define BLOCK_ENTRIES 255u

struct fifo_block {
    struct fifo_block *next;
    struct entry entries[BLOCK_ENTRIES];
};

bool fifo_push(struct fifo *fifo, struct entry entry)
{
    if (!fifo->last || fifo->to == BLOCK_ENTRIES) {
        struct fifo_block *block = malloc(sizeof(*block));

        if (!block)
            return false;
        block->next = NULL;
        if (fifo->last)
            fifo->last->next = block;
        else
            fifo->first = block;
        if (fifo->first == block)
            fifo->from = 0;
        fifo->last = block;
        fifo->to = 0;
    }
    fifo->last->entries[fifo->to++] = entry;
    fifo->count++;
    return true;
}

const struct entry *fifo_peek(const struct fifo *fifo)
{
    return fifo->count ? &fifo->first->entries[fifo->from] : NULL;
}

void fifo_pop(struct fifo *fifo)
{
    fifo->count--;
    if (++fifo->from < BLOCK_ENTRIES && fifo->count)
        return;
    if (fifo->count == 0) { /* one block stays for the next */
        fifo->from = fifo->to = 0;
        return;
    }
    struct fifo_block *block = fifo->first;

    fifo->first = block->next;
    fifo->from = 0;
    free(block);
}

void fifo_clear(struct fifo *fifo)
{
    for (struct fifo_block *block = fifo->first, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *fifo = (struct fifo){0};
}

bool heap_reserve(struct heap *heap, size_t more)
{
    size_t capacity = heap->capacity ? heap->capacity : 16;
    struct heap_item *items;

    while (capacity < heap->count + more)
        capacity *= 2;
    if (capacity == heap->capacity)
        return true;
    items = realloc(heap->items, capacity * sizeof(*items));
    if (!items)
        return false;
    heap->items = items;
    heap->capacity = capacity;
    return true;
}

static bool below(const struct heap_item *a, const struct heap_item *b)
{
    return a->order != b->order ? a->order < b->order : a->entry.number < b->entry.number;
}

static void sift_down(struct heap *heap, size_t at)
{
    struct heap_item item = heap->items[at];

    for (;;) {
        size_t child = 2 * at + 1;

        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && below(&heap->items[child + 1], &heap->items[child]))
            child++;
        if (!below(&heap->items[child], &item))
            break;
        heap->items[at] = heap->items[child];
        at = child;
    }
    heap->items[at] = item;
}

bool heap_push(struct heap *heap, const struct heap_item *item)
{
    size_t at;

    if (!heap_reserve(heap, 1))
        return false;
    for (at = heap->count++; at > 0 && below(item, &heap->items[(at - 1) / 2]); at = (at - 1) / 2)
        heap->items[at] = heap->items[(at - 1) / 2];
    heap->items[at] = *item;
    return true;
}

void heap_pop(struct heap *heap)
{
    heap->items[0] = heap->items[--heap->count];
    if (heap->count)
        sift_down(heap, 0);
}

void heap_filter(struct heap *heap, bool (*keep)(void *data, const struct heap_item *item), void *data)
{
    size_t kept = 0;

    for (size_t i = 0; i < heap->count; i++)
        if (keep(data, &heap->items[i]))
            heap->items[kept++] = heap->items[i];
    heap->count = kept;
    for (size_t i = kept / 2; i-- > 0;)
        sift_down(heap, i);
}

void heap_clear(struct heap *heap)
{
    free(heap->items);
    *heap = (struct heap){0};
}
