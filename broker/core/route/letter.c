/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages on their way to another queue. The original counts as delivered to nobody (SLOT_LEAVING) until the other queue
 * has committed the copy, and the copy is not delivered (SLOT_ARRIVED) until the original is done with. A router that
 * finds such an original sends it again, which the other queue knows if it has it; one that finds such a copy asks. What was diverted has no original but in its producer's lane.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/route/router.h"
#include "proto/fields.h"

#define RETRY_NS UINT64_C(1000000000)

/* Fields that a message does not take along: as a dead letter; and from among the dead. */
static bool is_of_death(uint8_t kind)
{
    return kind >= IPC_FIELD_ORIGIN && kind <= IPC_FIELD_DIED;
}
static bool is_of_life(uint8_t kind)
{
    return kind == IPC_FIELD_EXPIRES || kind == IPC_FIELD_NOT_BEFORE;
}

struct death {
    const char *queue, *reason;
    uint32_t attempts;
    uint64_t time_ns;
};

static size_t block_of(struct record *record, const unsigned char **ret)
{
    struct ipc_record_headers headers;
    int size;

    *ret = record_body(record);
    if (!(record->flags & RECORD_HEADERS) || record->size < sizeof(headers))
        return 0;
    memcpy(&headers, *ret, sizeof(headers));
    size = ipc_fields_block_check(&headers, record->size);
    return size < 0 ? 0 : (size_t)size;
}

/* Put one field, or count it if there is no block yet. */
static void put(unsigned char *block, size_t *position, uint16_t *count, const struct ipc_field *field)
{
    if (block)
        ipc_field_put(block, position, field);
    else
        *position += ipc_field_size(field->name_size, field->value_size);
    ++*count;
}

static size_t put_fields(unsigned char *block, uint16_t *count, const unsigned char *old, size_t old_size,
                         const struct death *death)
{
    size_t position = sizeof(struct ipc_record_headers), at = 0;
    struct ipc_field field;

    while (old_size && ipc_field_next(old, old_size, &at, &field) > 0)
        if (!is_of_death(field.kind) && !(death && is_of_life(field.kind)))
            put(block, &position, count, &field);
    if (death) {
        const struct ipc_field fields[] = {
            {.kind = IPC_FIELD_ORIGIN, .value_size = (uint16_t)strlen(death->queue), .value = death->queue},
            {.kind = IPC_FIELD_REASON, .value_size = (uint16_t)strlen(death->reason), .value = death->reason},
            {.kind = IPC_FIELD_ATTEMPTS, .value_size = sizeof(death->attempts), .value = &death->attempts},
            {.kind = IPC_FIELD_DIED, .value_size = sizeof(death->time_ns), .value = &death->time_ns},
        };

        for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++)
            put(block, &position, count, &fields[i]);
    }
    return position;
}

static struct route_mail *letter_new(struct queue *queue, struct record *record, const struct death *death)
{
    const unsigned char *old;
    size_t old_size = block_of(record, &old), payload = record->size - old_size, block, position;
    struct ipc_record_headers headers = {0};
    struct route_mail *mail;

    position = put_fields(NULL, &headers.count, old, old_size, death);
    block = headers.count ? ipc_fields_block_size(position - sizeof(headers)) : 0;
    mail = route_mail_new(ROUTE_LETTER, queue->id, block + payload);
    if (!mail)
        return NULL;
    if (block) {
        headers.size = (uint32_t)block;
        headers.count = 0;
        memset(mail->bytes + block - 8, 0, 8);
        (void)put_fields(mail->bytes, &headers.count, old, old_size, death);
        memcpy(mail->bytes, &headers, sizeof(headers));
        mail->headers = IPC_RECORD_HEADERS;
    }
    memcpy(mail->bytes + block, old + old_size, payload);
    mail->number = record->number;
    mail->session = record->session;
    mail->uid = record->uid;
    mail->pid = record->pid;
    mail->priority = record->priority;
    mail->dead = death != NULL;
    return mail;
}

static void leave(struct queue *queue, struct record *record, struct route_mail *mail, uint16_t slot)
{
    struct record_state state = record_load(record);

    state.kind = RECORD_DELIVERED;
    state.slot = slot;
    state.delivery = (uint32_t)mail->to;
    record_store(record, &state);
    queue->delayed -= queue_is_delayed(queue, record);
    if (slot == SLOT_DYING) /* and may come back, to try again */
        atomic_store_explicit(&record->not_before, 0, memory_order_relaxed);
    queue->waiting--;
    queue->unacked++;
    router_queue_dirty(queue);
    router_mail(queue->router, mail);
}

void letter_bury(struct queue *queue, struct entry entry, struct record *record, const char *reason)
{
    struct record_state state = record_load(record);
    const struct death death = {
        .queue = queue->name, .reason = reason, .attempts = state.attempt, .time_ns = queue->router->real_ns};
    struct route_mail *mail;

    if (!queue->settings.dead_letter) {
        queue_forget(queue, entry.offset, record, state);
        queue->dropped++;
        return;
    }
    mail = letter_new(queue, record, &death);
    if (mail) {
        leave(queue, record, mail, SLOT_DYING);
        if (record->flags & RECORD_KEY)
            key_forget(queue, record);
        return;
    }
    if (!router_timer(queue, TIMER_BURY, queue->router->boot_ns + RETRY_NS, entry))
        queue->torn = true;
}

bool letter_divert(struct queue *queue, struct port *port, struct record *record)
{
    const struct death death = {
        .queue = queue->name, .reason = "the queue was full", .time_ns = queue->router->real_ns};
    struct route_mail *mail = letter_new(queue, record, &death);

    if (!mail)
        return false;
    mail->diverted = port->about.id;
    mail->number = record->position;
    port->letter = true;
    router_mail(queue->router, mail);
    return true;
}

/* The name of the queue where it became a dead letter; empty if it did not. */
static void origin_name(struct record *record, char name[IPC_MAX_NAME_SIZE + 1])
{
    const unsigned char *block;
    size_t size = block_of(record, &block), position = 0;
    struct ipc_field field;

    memset(name, 0, IPC_MAX_NAME_SIZE + 1);
    while (size && ipc_field_next(block, size, &position, &field) > 0)
        if (field.kind == IPC_FIELD_ORIGIN && field.value_size <= IPC_MAX_NAME_SIZE)
            memcpy(name, field.value, field.value_size);
}

bool letter_move(struct queue *queue, struct record *record, uint64_t to, void *work)
{
    char origin[IPC_MAX_NAME_SIZE + 1] = "";
    struct route_mail *mail;

    if (!to)
        origin_name(record, origin);
    mail = to <= UINT32_MAX && (to || *origin) ? letter_new(queue, record, NULL) : NULL;
    if (!mail)
        return false;
    memcpy(mail->target, origin, sizeof(origin));
    mail->to = to;
    mail->data = work;
    leave(queue, record, mail, SLOT_LEAVING);
    if (record->flags & RECORD_KEY)
        key_forget(queue, record);
    return true;
}

void letter_again(struct queue *queue, struct entry entry, struct record *record)
{
    if (!letter_move(queue, record, record_load(record).delivery, NULL) &&
        !router_timer(queue, TIMER_BURY, queue->router->boot_ns + RETRY_NS, entry))
        queue->torn = true;
}

static int by_number(void *data, uint64_t offset, struct record *record)
{
    struct entry *wanted = data;

    if (record->number == wanted->number)
        wanted->offset = offset;
    return 1;
}

bool letter_ask(struct queue *queue, const struct origin *letter)
{
    struct route_mail *mail = route_mail_new(ROUTE_LETTER_ASK, queue->id, 0);

    if (!mail)
        return false;
    if (letter->queue & ORIGIN_PORT) {
        mail->diverted = letter->queue & ~ORIGIN_PORT;
        origin_name(file_record(&queue->file, letter->offset), mail->target);
    } else {
        mail->to = letter->queue;
    }
    mail->number = letter->number;
    mail->offset = letter->offset;
    mail->arrived = letter->arrived;
    router_mail(queue->router, mail);
    return true;
}

static int by_position(void *data, uint64_t offset, struct record *record)
{
    const struct origin *wanted = data;

    (void)offset;
    return record->origin == wanted->queue && record->position == wanted->number;
}

/* Did the queue take in what an earlier ipcd had diverted? If that is not decided, it will not. */
static int diverted_asked(struct router *router, struct queue *queue, const struct route_mail *mail)
{
    struct hash_node *node = hash_find(&router->ports, mail->diverted);
    struct port *port = node ? list_entry(node, struct port, node) : NULL;
    struct origin wanted = {.queue = mail->diverted, .number = mail->number};
    int result;

    if (port && mail->number >= port->in.position) {
        if (port->decided <= mail->number)
            port->decided = mail->number + sizeof(uint64_t);
        return 0;
    }
    if (port && port->taken == mail->number + 1)
        return -EEXIST;
    result = queue ? file_each(&queue->file, 0, by_position, &wanted) : 0;
    return result > 0 ? -EEXIST : result;
}

void letter_asked(struct router *router, struct queue *queue, struct route_mail *mail)
{
    struct entry entry = {.number = mail->number};
    int result;

    if (mail->diverted)
        result = diverted_asked(router, queue, mail);
    else
        result = queue ? file_each(&queue->file, mail->number - 1, by_number, &entry) : 0;
    if (entry.offset) {
        struct record *record = file_record(&queue->file, entry.offset);
        struct record_state state = record_load(record);

        result = 0;
        if (state.kind == RECORD_WAITING) {
            queue->dead += state.slot == SLOT_DYING;
            queue_forget(queue, entry.offset, record, state);
        } else if (state.kind == RECORD_DELIVERED) {
            result = state.slot >= SLOT_DYING ? -EAGAIN : -EEXIST;
        }
    }
    mail->result = result < 0 && result != -EEXIST ? -EAGAIN : result;
    mail->kind = ROUTE_LETTER_KNOWN;
    mail->to = mail->origin;
    router_mail(router, mail);
}

static void come_home(struct queue *queue, const struct route_mail *mail)
{
    struct entry entry = {.number = mail->number};
    struct attributes attributes;
    struct record_state state;
    struct record *record;

    (void)file_each(&queue->file, mail->number - 1, by_number, &entry);
    if (!entry.offset)
        return;
    record = file_record(&queue->file, entry.offset);
    state = record_load(record);
    if (mail->result == 0 || (mail->dead && mail->result == -ENOENT)) {
        queue_forget(queue, entry.offset, record, state);
        if (mail->dead && mail->result == 0)
            queue->dead++;
        else if (mail->dead)
            queue->dropped++;
        return;
    }
    queue->unacked--;
    queue->waiting++;
    if (!mail->dead) {
        if (!record->not_before && /* which a router that took over has forgotten */
            record_attributes(record, &attributes) != UINT32_MAX)
            atomic_store_explicit(&record->not_before, attributes.not_before, memory_order_relaxed);
        state.redelivery = IPC_REDELIVERY_REQUEUED;
        queue_return(queue, entry, record, state);
        return;
    }
    /* No room there: it stays out of the lists, and tries again. */
    state.kind = RECORD_WAITING;
    record_store(record, &state);
    if (!router_timer(queue, TIMER_BURY, queue->router->boot_ns + RETRY_NS, entry))
        queue->torn = true;
}

void letter_done(struct router *router, struct route_mail *mail)
{
    struct hash_node *node = hash_find(&router->queues, mail->queue);
    struct queue *queue = node ? list_entry(node, struct queue, node) : NULL;

    if (queue && mail->diverted) {
        struct hash_node *at = hash_find(&router->ports, mail->diverted);

        if (at)
            port_diverted(router, list_entry(at, struct port, node), mail->result);
    } else if (queue) {
        come_home(queue, mail);
    }
    if (mail->data)
        look_letter_done(mail->data, mail->result);
    if (mail->result == 0 && mail->arrived) {
        mail->kind = ROUTE_LETTER_KNOWN;
        router_mail(router, mail);
    } else {
        route_mail_free(mail);
    }
}
