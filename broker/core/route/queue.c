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

#define SCAN_RETRY_NS     UINT64_C(50000000)
#define SCAN_RETRY_MAX_NS UINT64_C(5000000000)

void queue_add(struct router *router, struct route_mail *mail)
{
    struct queue *queue = calloc(1, sizeof(*queue));
    int result = queue ? 0 : -ENOMEM;

    if (queue) {
        queue->router = router;
        queue->scanning = true;
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
        if (mail->resumed && router_put_off(router, mail, result))
            return;
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
    while (queue->held_mail) {
        struct route_mail *mail = queue->held_mail;

        queue->held_mail = mail->next;
        route_mail_free(mail);
    }
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
                  const struct record *head)
{
    struct open open = {.offset = offset, .number = head->number};
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
    if (head->flags & RECORD_KEY) {
        open.key = key_restore(queue, file_record(&queue->file, offset), port);
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

/* When it expires: as it says itself, or, by when it was accepted, as the queue says. */
static uint64_t expiry_of(struct queue *queue, uint64_t offset, const struct record *head)
{
    struct attributes attributes;
    uint64_t age;

    if (head->flags & RECORD_EXPIRES) {
        (void)record_attributes(file_record(&queue->file, offset), &attributes);
        return attributes.expires;
    }
    if (!queue->settings.ttl_ns)
        return 0;
    age = queue->router->real_ns > head->time_ns ? queue->router->real_ns - head->time_ns : 0;
    return age < queue->settings.ttl_ns ? queue->router->boot_ns + queue->settings.ttl_ns - age : 1;
}

static int found_waiting(struct queue *queue, uint64_t offset, const struct record *head, bool in_order)
{
    struct entry entry = {.offset = offset, .number = head->number};
    uint64_t not_before = atomic_load_explicit(&head->not_before, memory_order_relaxed);
    uint64_t expires = expiry_of(queue, offset, head);

    if (expires && !router_timer(queue, TIMER_EXPIRES, expires, entry))
        return -ENOMEM;
    if (not_before > queue->router->boot_ns) {
        if (!router_timer(queue, TIMER_READY, not_before, entry))
            return -ENOMEM;
        queue->delayed++;
        return 0;
    }
    if (!in_order)
        return queue_list_between(queue, head, entry) ? 0 : -ENOMEM;
    if (!fifo_push(&queue->ready[head->priority], entry))
        return -ENOMEM;
    queue->ready_mask |= 1u << head->priority;
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

static int note_letter(struct queue *queue, uint64_t offset, const struct record *record)
{
    uint32_t n = queue->n_letters;

    if ((n & (n - 1)) == 0) {
        struct origin *grown = realloc(queue->letters, (n ? 2 * (size_t)n : 1) * sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        queue->letters = grown;
    }
    queue->letters[queue->n_letters++] = (struct origin){
        .queue = record->origin, .number = record->position, .offset = offset, .arrived = record->number};
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

/* It goes on to become a dead letter, or to another queue, which may have it already: nobody is to get it here again. */
static int found_going(struct queue *queue, uint64_t offset, const struct record *head,
                       struct record_state state)
{
    struct entry entry = {.offset = offset, .number = head->number};
    struct record *record = file_record(&queue->file, offset);

    state.kind = RECORD_WAITING;
    record_store(record, &state);
    atomic_store_explicit(&record->not_before, 0, memory_order_relaxed);
    if (!router_timer(queue, TIMER_BURY, queue->router->boot_ns, entry))
        return -ENOMEM;
    count(queue, head, true);
    return 0;
}

/* The queue that it comes from, or was diverted from, may have it, too. */
static bool is_unknown(const struct record *head, struct record_state state)
{
#ifdef IPC_PLANT_LETTER_TRUSTED
    return false;
#endif
#ifdef IPC_PLANT_DIVERTED_TRUSTED
    if (head->origin & ORIGIN_PORT)
        return false;
#endif
    return state.kind == RECORD_WAITING && state.slot == SLOT_ARRIVED;
}

static void ask_for_letters(struct queue *queue)
{
    for (uint32_t i = 0; i < queue->n_letters; i++) {
        const struct record *record =
            file_find(&queue->file, queue->letters[i].offset, queue->letters[i].arrived);

        if (record && is_unknown(record, record_load(record)) && !letter_ask(queue, &queue->letters[i]))
            queue->torn = true;
    }
}

static int found(void *data, uint64_t offset, const struct record *head, bool in_order)
{
    struct queue *queue = data;
    struct record_state state = record_load(head);
    uint64_t delivery = 0;
    struct port *port = state.kind == RECORD_DELIVERED ? holder(queue, &state, &delivery) : NULL;
    int result;

    if (head->flags & RECORD_LETTER && note_letter(queue, offset, head) < 0)
        return -ENOMEM;
    if (is_unknown(head, state)) {
        count(queue, head, true);
        return 0;
    }
    decided(queue, head);
    if (state.slot == SLOT_DYING || state.slot == SLOT_LEAVING)
        return found_going(queue, offset, head, state);
    if (port) {
        result = reopen(queue, port, delivery, offset, head);
        if (result == 0)
            count(queue, head, false);
        return result;
    }
    result = found_waiting(queue, offset, head, in_order);
    if (result < 0)
        return result;
    if (state.kind == RECORD_DELIVERED) { /* never sent: as it was before */
        if (state.attempt)
            state.attempt--;
        state.kind = RECORD_WAITING;
        record_store(file_record(&queue->file, offset), &state);
    }
    count(queue, head, true);
    return 0;
}

/* The id of the last record, if ipcd was killed between the commits of the two. */
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
    queue->begun = true;
    router_queue_dirty(queue);
}

static void go_on(struct queue *queue, struct list *ports)
{
    list_for_each(node, ports)
    {
        router_port_awake(queue->router, list_entry(node, struct port, link));
        port_set_willing(list_entry(node, struct port, link));
    }
}

/* The file cannot be read, or there is no memory for what is in it: it is tried again, less and less often. */
static void scan_failed(struct queue *queue, int result)
{
    struct route_mail *mail = queue->trouble ? NULL : route_mail_new(ROUTE_QUEUE_TROUBLE, queue->id, 0);

    queue->trouble = result;
    queue->scan_wait_ns = queue->scan_wait_ns ? 2 * queue->scan_wait_ns : SCAN_RETRY_NS;
    if (queue->scan_wait_ns > SCAN_RETRY_MAX_NS)
        queue->scan_wait_ns = SCAN_RETRY_MAX_NS;
    queue->scan_at = queue->router->now_ns + queue->scan_wait_ns;
    router_retry_at(queue->router, queue->scan_at);
    if (!mail)
        return;
    mail->result = result;
    router_mail(queue->router, mail);
}

bool queue_scan(struct queue *queue)
{
    uint64_t next;
    int result;

    if (!queue->begun || !queue->scanning || queue->scan_at > queue->router->now_ns)
        return false;
    result = file_scan(&queue->file, found, queue);
    next = queue->file.next_number;
    if (result == 0 && file_id_space(&queue->file))
        result = file_each(&queue->file, next > 1 ? next - 2 : 0, found_id, queue);
    if (result < 0) {
        scan_failed(queue, result);
        return false;
    }
    queue->trouble = 0;
    queue->scan_at = queue->scan_wait_ns = 0;
    if (!queue->running && file_scan_has_open(&queue->file)) {
        queue->running = true;
        go_on(queue, &queue->consumers);
    }
    if (result > 0)
        return true;
    letters_sort(queue);
    ask_for_letters(queue);
    queue->scanning = false;
    go_on(queue, &queue->producers);
    return false;
}

static int found_again(void *data, uint64_t offset, struct record *record)
{
    struct queue *queue = data;

    struct record_state state = record_load(record);

    return state.kind == RECORD_WAITING && state.slot < SLOT_ARRIVED
               ? found_waiting(queue, offset, record, true)
               : 0;
}

void queue_mend(struct queue *queue)
{
    clear_lists(queue);
    queue->delayed = 0;
    queue->torn = file_each(&queue->file, 0, found_again, queue) < 0;
    ask_for_letters(queue);
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
