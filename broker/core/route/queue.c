/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues: coming, going, and being rebuilt from their files.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/route/router.h"
#include "broker/core/util/fd.h"

void queue_add(struct router *router, struct route_mail *mail)
{
    struct queue *queue = calloc(1, sizeof(*queue));
    int result = queue ? 0 : -ENOMEM;

    if (queue) {
        queue->router = router;
        queue->id = mail->queue;
        queue->settings = mail->settings;
        queue->stats = mail->stats;
        (void)snprintf(queue->name, sizeof(queue->name), "%.*s", (int)mail->size, (const char *)mail->bytes);
        list_init(&queue->dirty);
        list_init(&queue->link);
        list_init(&queue->producers);
        list_init(&queue->consumers);
        list_init(&queue->willing);
        list_init(&queue->held);
        result = file_open(&queue->file, mail->fd, queue->id, mail->resumed, mail->budget);
        if (result == 0)
            result = hash_init(&queue->keys);
        if (result == 0)
            result = ids_init(queue);
    }
    if (result < 0) {
        if (queue)
            queue_free(queue);
        mail->kind = ROUTE_QUEUE_BROKEN;
        mail->result = result;
        (void)snprintf(mail->text, sizeof(mail->text), "%s",
                       result == -EBADMSG ? "its file makes no sense" : strerror(-result));
        router_mail(router, mail);
        return;
    }
    hash_add(&router->queues, &queue->node, queue->id);
    list_append(&router->all, &queue->link);
    route_mail_free(mail);
}

static void clear_lists(struct queue *queue)
{
    for (unsigned i = 0; i < IPC_PRIORITIES; i++)
        fifo_clear(&queue->ready[i]);
    queue->ready_mask = 0;
    heap_clear(&queue->returned);
}

void queue_free(struct queue *queue)
{
    clear_lists(queue);
    if (queue->keys.buckets)
        keys_clear(queue);
    ids_done(queue);
    free(queue->letters);
    file_close(&queue->file);
    list_remove(&queue->dirty);
    list_remove(&queue->link);
    free(queue);
}

/* Whose delivery is it? The lane that an earlier ipcd wrote tells if it was sent. */
static struct port *holder(struct queue *queue, const struct record_state *state, uint64_t *ret_delivery)
{
    list_for_each(node, &queue->consumers)
    {
        struct port *port = list_entry(node, struct port, link);

        if (port->about.slot != state->slot || !port->about.resumed)
            continue;
        *ret_delivery = port->out.sequence +
                        (uint64_t)(int64_t)(int32_t)(state->delivery - (uint32_t)port->out.sequence);
        return *ret_delivery < port->out.sequence ? port : NULL;
    }
    return NULL;
}

static int reopen(struct queue *queue, struct port *port, uint64_t delivery, uint64_t offset,
                  struct record *record)
{
    struct open open = {.offset = offset, .number = record->number};
    uint64_t span;

    if (port->open_count == 0 || delivery < port->open_first) {
        uint64_t first = port->open_count ? port->open_first : delivery + 1;

        span = port->out.sequence - delivery;
        if (span > port->open_capacity) {
            uint32_t capacity = port->open_capacity ? port->open_capacity : 64;
            struct open *grown;

            while (capacity < span)
                capacity *= 2;
            grown = calloc(capacity, sizeof(*grown));
            if (!grown)
                return -ENOMEM;
            for (uint64_t d = first; port->open_count && d < port->out.sequence; d++)
                grown[d & (capacity - 1)] = port->open[d & (port->open_capacity - 1)];
            free(port->open);
            port->open = grown;
            port->open_capacity = capacity;
        }
        port->open_first = delivery;
    }
    if (record->flags & RECORD_KEY) {
        open.key = key_restore(queue, record, port);
        if (!open.key)
            return -ENOMEM;
    }
    if (queue->settings.lease_ns) {
        open.lease = queue->router->now_ns + queue->settings.lease_ns;
        (void)router_timer(queue, TIMER_LEASE, open.lease,
                           (struct entry){.offset = port->about.id, .number = delivery});
    }
    port->open[delivery & (port->open_capacity - 1)] = open;
    port->open_count++;
    return 0;
}

/* Of a message that says nothing itself, by when it was accepted. */
static uint64_t expiry_of(struct queue *queue, struct record *record, const struct attributes *attributes)
{
    uint64_t age;

    if (attributes->expires || !queue->settings.ttl_ns)
        return attributes->expires;
    age = queue->router->real_ns > record->time_ns ? queue->router->real_ns - record->time_ns : 0;
    return age < queue->settings.ttl_ns ? queue->router->boot_ns + queue->settings.ttl_ns - age : 1;
}

static int found_waiting(struct queue *queue, uint64_t offset, struct record *record)
{
    struct entry entry = {.offset = offset, .number = record->number};
    uint64_t not_before = atomic_load_explicit(&record->not_before, memory_order_relaxed), expires = 0;

    if (record->flags & RECORD_EXPIRES || queue->settings.ttl_ns) {
        struct attributes attributes;

        (void)record_attributes(record, &attributes);
        expires = expiry_of(queue, record, &attributes);
    }
    if (expires && !router_timer(queue, TIMER_EXPIRES, expires, entry))
        return -ENOMEM;
    if (not_before > queue->router->boot_ns) {
        if (!router_timer(queue, TIMER_READY, not_before, entry))
            return -ENOMEM;
        queue->delayed++;
        return 0;
    }
    if (!fifo_push(&queue->ready[record->priority], entry))
        return -ENOMEM;
    queue->ready_mask |= 1u << record->priority;
    return 0;
}

static void count(struct queue *queue, const struct record *record, bool waiting)
{
    uint32_t i = 0;

    queue->waiting += waiting;
    queue->unacked += !waiting;
    queue->bytes += record_stride(record->size);
    while (i < queue->n_owners && queue->owners[i].uid != record->uid)
        i++;
    if (i == queue->n_owners && i < OWNERS_MAX)
        queue->owners[queue->n_owners++] = (struct owner){.uid = record->uid};
    if (i < queue->n_owners)
        queue->owners[i].messages++;
}

static int note_letter(struct queue *queue, const struct record *record)
{
    uint32_t n = queue->n_letters;

    if ((n & (n - 1)) == 0) {
        struct origin *grown = realloc(queue->letters, (n ? 2 * (size_t)n : 1) * sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        queue->letters = grown;
    }
    queue->letters[queue->n_letters++] = (struct origin){.queue = record->origin, .number = record->position};
    return 0;
}

static void decided(struct queue *queue, const struct record *record)
{
    struct hash_node *node = record->flags & RECORD_LETTER ? NULL
                                                           : hash_find(&queue->router->ports, record->origin);
    struct port *port = node ? list_entry(node, struct port, node) : NULL;

    if (port && port->queue == queue && record->position + 8 > port->decided)
        port->decided = record->position + 8;
}

/* It goes on to become a dead letter: nobody is to get it here again. */
static int found_dying(struct queue *queue, uint64_t offset, struct record *record, struct record_state state)
{
    struct entry entry = {.offset = offset, .number = record->number};

    state.kind = RECORD_WAITING;
    record_store(record, &state);
    count(queue, record, true);
    return router_timer(queue, TIMER_BURY, queue->router->boot_ns, entry) ? 0 : -ENOMEM;
}

static int found(void *data, uint64_t offset, struct record *record)
{
    struct queue *queue = data;
    struct record_state state = record_load(record);
    uint64_t delivery = 0;
    struct port *port = state.kind == RECORD_DELIVERED ? holder(queue, &state, &delivery) : NULL;
    int result;

    if (record->flags & RECORD_LETTER && note_letter(queue, record) < 0)
        return -ENOMEM;
    decided(queue, record);
    if (state.slot == SLOT_DYING)
        return found_dying(queue, offset, record, state);
    if (port) {
        count(queue, record, false);
        return reopen(queue, port, delivery, offset, record);
    }
    if (state.kind == RECORD_DELIVERED) { /* never sent, or on its way to another queue: as it was before */
        if (state.slot != SLOT_LEAVING && state.attempt)
            state.attempt--;
        state.kind = RECORD_WAITING;
        record_store(record, &state);
    }
    result = found_waiting(queue, offset, record);
    if (result == 0)
        count(queue, record, true);
    return result;
}

/* Ids whose records were committed when ipcd was killed, but which are not in the ring. */
static int found_id(void *data, uint64_t offset, struct record *record)
{
    struct queue *queue = data;
    uint64_t ids = atomic_load_explicit(&queue->file.header->ids, memory_order_relaxed);
    uint32_t window = file_id_space(&queue->file);
    struct attributes attributes;
    uint64_t hash[2];

    (void)offset;
    if (!(record->flags & RECORD_ID) || record->flags & RECORD_LETTER ||
        (ids && queue->file.ids[(ids - 1) % window].number >= record->number))
        return 0;
    if (file_id_reserve(&queue->file) < 0)
        return -ENOMEM;
    (void)record_attributes(record, &attributes);
    ids_hash(queue, &attributes, hash);
    ids_add(queue, hash, record->number);
    return 0;
}

void queue_begin(struct queue *queue)
{
    int result = file_scan(&queue->file, found, queue);

    if (result == 0 && file_id_space(&queue->file))
        result = file_each(&queue->file, 0, found_id, queue);
    letters_sort(queue);
    queue->torn = result < 0;
    queue->running = true;
    router_queue_dirty(queue);
    list_for_each(node, &queue->producers)
        router_port_awake(queue->router, list_entry(node, struct port, link));
    list_for_each(at, &queue->consumers)
    {
        router_port_awake(queue->router, list_entry(at, struct port, link));
        port_set_willing(list_entry(at, struct port, link));
    }
}

static int found_again(void *data, uint64_t offset, struct record *record)
{
    struct queue *queue = data;

    struct record_state state = record_load(record);

    return state.kind == RECORD_WAITING && state.slot != SLOT_DYING ? found_waiting(queue, offset, record)
                                                                    : 0;
}

void queue_mend(struct queue *queue)
{
    clear_lists(queue);
    queue->delayed = 0;
    queue->torn = file_each(&queue->file, 0, found_again, queue) < 0;
    if (queue->torn)
        router_retry_soon(queue->router);
    router_queue_dirty(queue);
}

void queue_set(struct queue *queue, const struct queue_settings *settings)
{
    queue->settings = *settings;
    queue_room(queue);
    router_queue_dirty(queue);
}

void queue_publish(struct queue *queue)
{
    struct queue_stats *stats = queue->stats;

#define PUBLISH(name) atomic_store_explicit(&stats->name, queue->name, memory_order_relaxed)
    PUBLISH(waiting);
    PUBLISH(delayed);
    PUBLISH(unacked);
    PUBLISH(bytes);
    PUBLISH(accepted);
    PUBLISH(acked);
    PUBLISH(redelivered);
    PUBLISH(dead);
    PUBLISH(dropped);
    PUBLISH(rejected);
    PUBLISH(duplicates);
#undef PUBLISH
    atomic_store_explicit(&stats->memory, queue->file.memory, memory_order_relaxed);
}
