/* SPDX-License-Identifier: Apache-2.0
 *
 * Intrusive, circular, doubly linked lists. A node that is in no list points to itself.
 */
#ifndef IPCD_CORE_UTIL_LIST_H
#define IPCD_CORE_UTIL_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next, *previous;
};

static inline void list_init(struct list *list)
{
    list->next = list->previous = list;
}

/* True for an empty head, and for a node that is in no list. */
static inline bool list_empty(const struct list *list)
{
    return list->next == list;
}

static inline void list_append(struct list *head, struct list *node)
{
    node->previous = head->previous;
    node->next = head;
    head->previous->next = node;
    head->previous = node;
}

/* Take a node out of its list, if it is in one. */
static inline void list_remove(struct list *node)
{
    node->next->previous = node->previous;
    node->previous->next = node->next;
    list_init(node);
}

/* Take all out of one list, in order, into another one, which need not be initialized. Returns how many there are. */
static inline size_t list_take_all(struct list *from, struct list *to)
{
    size_t n = 0;

    list_init(to);
    for (; !list_empty(from); n++) {
        struct list *node = from->next;

        list_remove(node);
        list_append(to, node);
    }
    return n;
}

#define list_entry(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

#define list_for_each(node, head) for (struct list *node = (head)->next; node != (head); node = node->next)

/* The current node may be removed on the way. */
#define list_for_each_safe(node, head)                                             \
 for (struct list *node = (head)->next, *node##_next = node->next; node != (head); \
      node = node##_next, node##_next = node->next)

#endif
