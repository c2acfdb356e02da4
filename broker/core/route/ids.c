/* SPDX-License-Identifier: Apache-2.0
 *
 * Deduplication: is an id among those that the file's ring remembers? An open-addressed table of places in that ring.
 */
#include <errno.h>
#include <stdlib.h>

#include "broker/core/route/router.h"

static uint32_t slot_of(const struct ids *ids, const uint64_t hash[2])
{
    return (uint32_t)hash[0] & (ids->capacity - 1);
}

static void insert(struct queue *queue, uint32_t place)
{
    struct ids *ids = &queue->ids;
    uint32_t slot = slot_of(ids, queue->file.ids[place].hash);

    while (ids->slots[slot])
        slot = (slot + 1) & (ids->capacity - 1);
    ids->slots[slot] = place + 1;
}

/* Take out what the ring is about to overwrite; what follows in its chain moves up. */
static void forget(struct queue *queue, uint32_t place)
{
    struct ids *ids = &queue->ids;
    uint32_t mask = ids->capacity - 1, hole = slot_of(ids, queue->file.ids[place].hash);

    while (ids->slots[hole] && ids->slots[hole] != place + 1)
        hole = (hole + 1) & mask;
    if (!ids->slots[hole])
        return;
    for (uint32_t at = (hole + 1) & mask; ids->slots[at]; at = (at + 1) & mask) {
        uint32_t home = slot_of(ids, queue->file.ids[ids->slots[at] - 1].hash);

        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        ids->slots[hole] = ids->slots[at];
        hole = at;
    }
    ids->slots[hole] = 0;
}

int ids_init(struct queue *queue)
{
    uint64_t count = atomic_load_explicit(&queue->file.header->ids, memory_order_relaxed);
    uint32_t window = file_id_space(&queue->file);
    uint64_t from = count > window ? count - window : 0;

    if (!window)
        return 0;
    queue->ids.capacity = 2;
    while (queue->ids.capacity < 2 * window)
        queue->ids.capacity *= 2;
    queue->ids.slots = calloc(queue->ids.capacity, sizeof(*queue->ids.slots));
    if (!queue->ids.slots)
        return -ENOMEM;
    for (uint64_t i = from; i < count; i++)
        insert(queue, (uint32_t)(i % window));
    return 0;
}

void ids_done(struct queue *queue)
{
    free(queue->ids.slots);
    queue->ids = (struct ids){0};
}

void ids_hash(const struct queue *queue, const struct attributes *attributes, uint64_t hash[2])
{
    const uint64_t *secret = queue->file.header->secret;
    const uint64_t other[2] = {secret[1], ~secret[0]};

    hash[0] = hash_string(secret, attributes->id, attributes->id_size);
    hash[1] = hash_string(other, attributes->id, attributes->id_size);
}

bool ids_known(const struct queue *queue, const uint64_t hash[2])
{
    const struct ids *ids = &queue->ids;
    uint64_t window_ns = queue->settings.dedup_window_ns;

    for (uint32_t slot = slot_of(ids, hash); ids->slots[slot]; slot = (slot + 1) & (ids->capacity - 1)) {
        const struct file_id *id = &queue->file.ids[ids->slots[slot] - 1];

        if (id->hash[0] == hash[0] && id->hash[1] == hash[1] &&
            (!window_ns || queue->router->boot_ns - id->time_ns < window_ns))
            return true;
    }
    return false;
}

void ids_add(struct queue *queue, const uint64_t hash[2], uint64_t number)
{
    const struct file_id id = {
        .hash = {hash[0], hash[1]}, .time_ns = queue->router->boot_ns, .number = number};
    uint64_t count = atomic_load_explicit(&queue->file.header->ids, memory_order_relaxed);

#ifdef IPC_PLANT_ID_FORGOTTEN
    return;
#endif
    if (count >= file_id_space(&queue->file))
        forget(queue, (uint32_t)(count % file_id_space(&queue->file)));
    insert(queue, file_id_append(&queue->file, &id));
}
