/* SPDX-License-Identifier: Apache-2.0
 *
 * Ordering keys: while a consumer has open messages of a key, the others of that key go to it or wait ("parked"). One of
 * the parked ones at a time is exposed, that is, back in the ready lists; the next follows when it was delivered.
 */
#include <stdlib.h>
#include <string.h>

#include "broker/core/route/router.h"

static uint64_t key_hash(const struct queue *queue, struct record *record)
{
    struct attributes attributes;

    (void)record_attributes(record, &attributes);
    return hash_string(queue->file.header->secret, attributes.key, attributes.key_size);
}

/* Two keys of one hash are treated as one: that only makes them wait for each other. */
static struct key *key_of(struct queue *queue, uint64_t hash)
{
    struct hash_node *node = hash_find(&queue->keys, hash);

    return node ? list_entry(node, struct key, node) : NULL;
}

static struct key *key_make(struct queue *queue, uint64_t hash)
{
    struct key *key = calloc(1, sizeof(*key));

    if (key)
        hash_add(&queue->keys, &key->node, hash);
    return key;
}

static void key_release(struct queue *queue, struct key *key)
{
    if (key->open || key->exposed.number || key->parked.count)
        return;
    hash_remove(&queue->keys, &key->node);
    heap_clear(&key->parked);
    free(key);
}

/* Put the next parked message back into the ready lists. So while none is open, none is parked that comes before the exposed
 * one: nobody would expose it. */
static void expose(struct queue *queue, struct key *key)
{
    while (key->parked.count &&
#ifdef IPC_PLANT_KEY_STRANDED
           !key->exposed.number) {
#else
           (!key->exposed.number || heap_top(&key->parked)->order < key->exposed.number)) {
#endif
        struct entry entry = heap_top(&key->parked)->entry;
        struct record *record = file_find(&queue->file, entry.offset, entry.number);

        heap_pop(&key->parked);
        if (!record || record_load(record).kind != RECORD_WAITING)
            continue;
        key->exposed = entry;
        queue_return(queue, entry, record, record_load(record));
    }
}

static enum key_turn park(struct queue *queue, struct key *key, struct entry entry)
{
    if (key->exposed.number == entry.number)
        key->exposed.number = 0;
    if (!heap_push(&key->parked, &(struct heap_item){.order = entry.number, .entry = entry}))
        queue->torn = true;
    return KEY_PARKED;
}

enum key_turn key_turn(struct queue *queue, struct record *record, struct entry entry, struct port **port,
                       struct key **ret)
{
    uint64_t hash = key_hash(queue, record);
    struct key *key = key_of(queue, hash);

    *ret = key;
    if (!key) {
        *ret = key_make(queue, hash);
        if (!*ret)
            queue->torn = true;
        return *ret ? KEY_FREE : KEY_PARKED;
    }
#ifdef IPC_PLANT_KEY_IGNORED
    return KEY_FREE;
#endif
    if ((key->exposed.number && key->exposed.number < entry.number) ||
        (key->parked.count && heap_top(&key->parked)->order < entry.number))
        return park(queue, key, entry);
    if (key->open && key->port != (*port)->about.id) {
        struct hash_node *node = hash_find(&queue->router->ports, key->port);
        struct port *owner = node ? list_entry(node, struct port, node) : NULL;

        if (!owner || list_empty(&owner->willing))
            return park(queue, key, entry);
        *port = owner;
        return KEY_ELSEWHERE;
    }
    return KEY_FREE;
}

void key_opened(struct queue *queue, struct key *key, struct port *port, struct entry entry)
{
    key->port = port->about.id;
    key->open++;
    if (key->exposed.number == entry.number)
        key->exposed.number = 0;
    expose(queue, key);
}

void key_closed(struct queue *queue, struct key *key, struct entry back)
{
    key->open--;
    /* What comes back is in front of all the others of its key, even if it has to wait. */
    if (back.number && (!key->exposed.number || back.number < key->exposed.number))
        key->exposed = back;
    if (key->open == 0)
        expose(queue, key);
    key_release(queue, key);
}

void key_unused(struct queue *queue, struct key *key)
{
    key_release(queue, key);
}

void key_forget(struct queue *queue, struct record *record)
{
    struct key *key = key_of(queue, key_hash(queue, record));

    if (!key || key->exposed.number != record->number)
        return;
    key->exposed.number = 0;
    if (key->open == 0)
        expose(queue, key);
    key_release(queue, key);
}

struct key *key_restore(struct queue *queue, struct record *record, struct port *port)
{
    uint64_t hash = key_hash(queue, record);
    struct key *key = key_of(queue, hash);

    if (!key)
        key = key_make(queue, hash);
    if (key) {
        key->port = port->about.id;
        key->open++;
    }
    return key;
}

void keys_clear(struct queue *queue)
{
    for (size_t i = 0; i < (size_t)1 << queue->keys.bits; i++)
        for (struct hash_node *node = queue->keys.buckets[i], *next; node; node = next) {
            struct key *key = list_entry(node, struct key, node);

            next = node->next;
            heap_clear(&key->parked);
            free(key);
        }
    hash_done(&queue->keys);
}
