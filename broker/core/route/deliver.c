/* SPDX-License-Identifier: Apache-2.0
 *
 * From the ready lists to consumers, and what comes back from them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/route/router.h"
#include "libipc/lane/wait.h"

/* Deliveries of one queue in one round, and to one consumer in a row. */
#define ROUND_MAX 1024u
#define SHARE_MAX 1024u

/* ---- the ready lists ---- */

static uint64_t order_of(const struct record *record)
{
    return (uint64_t)(IPC_PRIORITIES - 1 - record->priority) << 56 | record->number;
}

/* The first record that waits, of the highest priority, if it is known to be that. It stays in its list until take(). */
static struct record *first_ready(struct queue *queue, struct entry *ret, bool *ret_returned)
{
    for (;;) {
        const struct heap_item *top = heap_top(&queue->returned);
        const struct entry *first = NULL;
        unsigned priority = 0;
        struct record *record;

        while (queue->ready_mask && !first) {
            priority = 31u - (unsigned)__builtin_clz(queue->ready_mask);
            first = fifo_peek(&queue->ready[priority]);
            if (!first)
                queue->ready_mask &= ~(1u << priority);
        }
        if (!first && !top)
            return NULL;
        *ret_returned =
            top && (!first || top->order < ((uint64_t)(IPC_PRIORITIES - 1 - priority) << 56 | first->number));
        *ret = *ret_returned ? top->entry : *first;
        record = file_find(&queue->file, ret->offset, ret->number);
        if (record && record_load(record).kind == RECORD_WAITING)
            return !queue->scanning || file_scan_is_first(&queue->file, record->priority, record->number)
                       ? record
                       : NULL;
        if (*ret_returned)
            heap_pop(&queue->returned);
        else
            fifo_pop(&queue->ready[priority]);
    }
}

static void take(struct queue *queue, unsigned priority, bool returned)
{
    if (returned)
        heap_pop(&queue->returned);
    else
        fifo_pop(&queue->ready[priority]);
}

static uint64_t ready_count(const struct queue *queue)
{
    uint64_t count = queue->returned.count;

    for (uint32_t mask = queue->ready_mask; mask; mask &= mask - 1)
        count += queue->ready[__builtin_ctz(mask)].count;
    return count;
}

bool queue_list_between(struct queue *queue, const struct record *head, struct entry entry)
{
    return heap_push(&queue->returned, &(struct heap_item){.order = order_of(head), .entry = entry});
}

void queue_return(struct queue *queue, struct entry entry, struct record *record, struct record_state state)
{
    uint64_t not_before = atomic_load_explicit(&record->not_before, memory_order_relaxed);

    state.kind = RECORD_WAITING;
    state.slot = 0;
    state.delivery = 0;
#ifndef IPC_PLANT_RETURN_UNSTORED
    record_store(record, &state);
#endif
    if (not_before > queue->router->boot_ns) {
        if (router_timer(queue, TIMER_READY, not_before, entry))
            queue->delayed++;
    } else if (!queue_list_between(queue, record, entry)) {
        queue->torn = true;
    }
    router_queue_dirty(queue);
}

static void disown(struct queue *queue, uint32_t uid)
{
    for (uint32_t i = 0; i < queue->n_owners; i++)
        if (queue->owners[i].uid == uid) {
            if (--queue->owners[i].messages == 0)
                queue->owners[i] = queue->owners[--queue->n_owners];
            return;
        }
}

void queue_room(struct queue *queue)
{
    list_for_each_safe(node, &queue->held)
    {
        struct port *port = list_entry(node, struct port, turn);

        if (!port->letter)
            router_port_awake(queue->router, port);
    }
}

void queue_forget(struct queue *queue, uint64_t offset, struct record *record, struct record_state was)
{
    queue->bytes -= record_stride(record->size);
    if (was.kind == RECORD_WAITING) {
        queue->waiting--;
        queue->delayed -= queue_is_delayed(queue, record);
    } else {
        queue->unacked--;
    }
    disown(queue, record->uid);
    if (record->flags & RECORD_KEY && was.kind == RECORD_WAITING)
        key_forget(queue, record);
    file_done(&queue->file, offset);
    queue_room(queue);
    router_queue_dirty(queue);
}

/* ---- delivering ---- */

static bool open_reserve(struct port *port)
{
    uint64_t next = port_next_delivery(port), span = next - port->open_first;
    uint32_t capacity = port->open_capacity ? 2 * port->open_capacity : 64;
    struct open *open;

    if (span < port->open_capacity)
        return true;
    open = calloc(capacity, sizeof(*open));
    if (!open)
        return false;
    for (uint64_t d = port->open_first; d < next; d++)
        open[d & (capacity - 1)] = port->open[d & (port->open_capacity - 1)];
    free(port->open);
    port->open = open;
    port->open_capacity = capacity;
    return true;
}

/* Take note that it is with the consumer. */
static void open_add(struct queue *queue, struct port *port, uint64_t delivery, struct open open)
{
    uint64_t lease = queue->settings.lease_ns;

    if (lease) {
        open.lease = queue->router->now_ns + lease;
        (void)router_timer(queue, TIMER_LEASE, open.lease,
                           (struct entry){.offset = port->about.id, .number = delivery});
    }
    if (port->open_count++ == 0)
        port->open_first = delivery;
    port->open[delivery & (port->open_capacity - 1)] = open;
}

/* Write it into the consumer's lane; port_commit() lets the consumer have it. The state comes first: a delivery that the
 * lane does not show was never sent. */
static int send(struct queue *queue, struct port *port, struct entry entry, struct record *record,
                struct key *key)
{
    struct record_state state = record_load(record);
    struct ipc_delivery head = {.number = record->number,
                                .time_ns = record->time_ns,
                                .session = record->session,
                                .uid = record->uid,
                                .pid = record->pid,
                                .attempt = (uint16_t)(state.attempt + 1),
                                .priority = record->priority,
                                .redelivery = (uint8_t)state.redelivery};
    uint32_t size = (uint32_t)sizeof(head) + record->size;
    uint64_t delivery = port_next_delivery(port);
    unsigned char *body;
    int result;

    if (!open_reserve(port))
        return -ENOMEM;
    if (port->batch.count == 0)
        port->batch = lane_batch_begin(&port->out);
    result = lane_batch_reserve(&port->out, &port->batch, size, &body);
    if (result < 0)
        return result;
    lane_fetch(body, size);
    lane_fetch_read(record, record_stride(record->size));
    lane_copy_in(body, &head, sizeof(head));
    lane_copy_in(body + sizeof(head), record_body(record), record->size);
    state.kind = RECORD_DELIVERED;
#ifndef IPC_PLANT_ATTEMPT_FORGOTTEN
    state.attempt++;
#endif
    state.slot = port->about.slot;
    state.delivery = (uint32_t)delivery;
    file_delivers(&queue->file, entry.offset);
#ifndef IPC_PLANT_DELIVERED_LATE
    record_store(record, &state);
#endif
    lane_batch_put(&port->out, &port->batch, size, record->flags & RECORD_HEADERS ? IPC_RECORD_HEADERS : 0);
#ifdef IPC_PLANT_DELIVERED_LATE
    port_commit(port);
    record_store(record, &state);
#endif
    queue->waiting--;
    queue->unacked++;
    queue->redelivered += state.attempt > 1;
    if (queue->settings.class == QUEUE_BEST_EFFORT) { /* it is gone with this, whatever becomes of it */
        queue->acked++;
        queue_forget(queue, entry.offset, record, state);
    } else {
        open_add(queue, port, delivery,
                 (struct open){.offset = entry.offset, .number = entry.number, .key = key});
    }
    return 0;
}

static void unwilling(struct port *port)
{
    if (list_empty(&port->willing))
        return;
    list_remove(&port->willing);
    port->queue->n_willing--;
}

/* Its lane is full: it shall ring when there is room. */
static void wait_for_room(struct port *port, uint32_t size)
{
    const struct lane_peer *slowest;
    uint64_t cursor;
    uint32_t stride = ipc_record_stride((uint32_t)sizeof(struct ipc_delivery) + size);

    port_commit(port);
    (void)lane_writer_want(&port->out, stride, &slowest, &cursor);
    if (!slowest) {
        lane_writer_want_clear(&port->out);
        return;
    }
    port->wants_room = stride;
    unwilling(port);
}

/* One message to one consumer. False: this port, or the queue, has to wait. */
static bool deliver_one(struct queue *queue, struct port *turn)
{
    struct port *port = turn;
    struct entry entry;
    bool returned;
    struct record *record = first_ready(queue, &entry, &returned);
    struct key *key = NULL;
    unsigned priority;
    int result;

    if (!record)
        return false;
    if (record->flags & RECORD_KEY && key_turn(queue, record, entry, &port, &key) == KEY_PARKED) {
        take(queue, record->priority, returned);
        return true;
    }
    priority = record->priority; /* with the best effort the record is gone afterwards */
    result = send(queue, port, entry, record, key);
    if (result == -EAGAIN || result == -EMSGSIZE) {
        wait_for_room(port, record->size);
    } else if (result < 0) {
        unwilling(port);
        router_retry_soon(queue->router);
    }
    if (result < 0) {
        if (key)
            key_unused(queue, key);
        return false;
    }
    take(queue, priority, returned);
    if (key && queue->settings.class == QUEUE_BEST_EFFORT)
        key_unused(queue, key);
    else if (key)
        key_opened(queue, key, port, entry);
    if (port != turn) /* it is not its turn, which would end with this */
        port_commit(port);
    if (!port_is_willing(port))
        unwilling(port);
    return true;
}

bool queue_deliver(struct queue *queue)
{
    unsigned left = ROUND_MAX;

    if (!queue->running || queue->settings.paused)
        return false;
    if (queue->settings.lease_ns && queue->n_willing)
        queue->router->now_ns = lane_now(); /* of no lease anything is over before it has begun */
    while (left && queue->n_willing) {
        struct port *port = list_entry(queue->willing.next, struct port, willing);
        uint64_t share = (ready_count(queue) + queue->n_willing - 1) / queue->n_willing;

        if (share == 0 || (queue->scanning && !first_ready(queue, &(struct entry){0}, &(bool){0})))
            return false;
        /* Who wants to have many at a time is woken for many at a time. */
        if (share < port->about.prefetch / 4)
            share = port->about.prefetch / 4;
        if (share > SHARE_MAX)
            share = SHARE_MAX;
        /* To the end of the line. */
        list_remove(&port->willing);
        list_append(&queue->willing, &port->willing);
        for (; share && left; share--, left--)
            if (!deliver_one(queue, port) || list_empty(&port->willing))
                break;
        port_commit(port);
        if (left)
            left--;
    }
    return !left;
}

/* ---- acknowledgements ---- */

/* The delivery is not open any more. */
static struct open close_open(struct queue *queue, struct port *port, uint64_t delivery, struct entry back)
{
    struct open *open = port_open_of(port, delivery), was = *open;

    *open = (struct open){0};
    port->open_count--;
    while (port->open_first < port->out.sequence &&
           !port->open[port->open_first & (port->open_capacity - 1)].offset)
        port->open_first++;
    if (was.key)
        key_closed(queue, was.key, back);
    port_set_willing(port);
    return was;
}

void queue_ack(struct queue *queue, struct port *port, uint64_t delivery)
{
    struct open *open = port_open_of(port, delivery), was;
    struct record *record;
    struct record_state state;

    if (!open)
        return;
    was = close_open(queue, port, delivery, (struct entry){0});
    record = file_record(&queue->file, was.offset);
    state = record_load(record);
    queue->acked++;
    queue_forget(queue, was.offset, record, state);
}

/* An open delivery comes back: for now, for later, or for good. */
static void come_back(struct queue *queue, struct port *port, uint64_t delivery, unsigned redelivery,
                      uint64_t delay_ns, bool dead, const char *reason)
{
    struct open *open = port_open_of(port, delivery), was;
    struct entry entry;
    struct record *record;
    struct record_state state;
    char attempts[64];
    const char *bury = dead ? "refused by its consumer" : NULL;

    if (!open)
        return;
    entry = (struct entry){.offset = open->offset, .number = open->number};
    record = file_record(&queue->file, entry.offset);
    state = record_load(record);
    state.redelivery = redelivery;
    if (!bury && queue->settings.attempts_max && state.attempt >= queue->settings.attempts_max) {
        (void)snprintf(attempts, sizeof(attempts), "delivered %u times without an acknowledgement",
                       state.attempt);
        bury = attempts;
    }
    if (bury && *reason)
        bury = reason;
    was = close_open(queue, port, delivery, bury ? (struct entry){0} : entry);
    (void)was;
    if (delay_ns && !bury)
        atomic_store_explicit(&record->not_before, queue->router->boot_ns + delay_ns, memory_order_relaxed);
    queue->unacked--;
    queue->waiting++;
    state.kind = RECORD_WAITING;
    if (bury) {
        state.slot = SLOT_DYING;
        record_store(record, &state);
        letter_bury(queue, entry, record, bury);
    } else {
#ifndef IPC_PLANT_REDELIVERY_FORGOTTEN
        queue_return(queue, entry, record, state);
#endif
    }
}

void queue_refuse(struct queue *queue, struct port *port, uint64_t delivery, const struct ipc_ack *ack,
                  const char *reason)
{
    come_back(queue, port, delivery, IPC_REDELIVERY_REFUSED, ack->ns, (ack->flags & IPC_ACK_DEAD) != 0,
              reason);
}

void queue_touch(struct queue *queue, struct port *port, uint64_t delivery, uint64_t ns)
{
    struct open *open = port_open_of(port, delivery);

    if (!open || !queue->settings.lease_ns)
        return;
    if (!ns)
        ns = queue->settings.lease_ns;
    open->lease = queue->router->now_ns + (ns < UINT64_MAX / 4 ? ns : UINT64_MAX / 4);
    (void)router_timer(queue, TIMER_LEASE, open->lease,
                       (struct entry){.offset = port->about.id, .number = delivery});
}

void queue_lease_over(struct queue *queue, struct port *port, uint64_t delivery)
{
    struct open *open = port_open_of(port, delivery);

    if (open && open->lease && open->lease <= queue->router->now_ns)
        come_back(queue, port, delivery, IPC_REDELIVERY_EXPIRED, 0, false, "");
}

void queue_take_back(struct queue *queue, struct port *port, unsigned redelivery)
{
    for (uint64_t delivery = port->open_first; port->open_count && delivery < port->out.sequence; delivery++)
        come_back(queue, port, delivery, redelivery, 0, false, "");
}

void queue_timer(struct queue *queue, enum timer_kind kind, struct entry entry)
{
    struct record *record = file_find(&queue->file, entry.offset, entry.number);
    struct record_state state;

    if (!record)
        return;
    state = record_load(record);
    if (state.kind != RECORD_WAITING)
        return;
    switch (kind) {
    case TIMER_READY:
        if (atomic_load_explicit(&record->not_before, memory_order_relaxed) > queue->router->boot_ns)
            return; /* it was put off again */
        queue->delayed -= queue->delayed > 0;
        queue_return(queue, entry, record, state);
        break;
    case TIMER_EXPIRES:
        letter_bury(queue, entry, record, "its time to live was over");
        break;
    default:
        if (state.slot == SLOT_LEAVING)
            letter_again(queue, entry, record);
        else
            letter_bury(queue, entry, record, "it was to become a dead letter before");
        break;
    }
}
