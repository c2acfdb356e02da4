/* SPDX-License-Identifier: Apache-2.0
 *
 * Deciding the fate of a message that a producer sent, and of one that comes from another queue.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/error.h>

#include "broker/core/route/router.h"
#include "proto/fields.h"

/* Bytes of a verdict's sentence, at most. */
#define SENTENCE_MAX 400u

static const unsigned char *header_block(struct record *record, size_t *ret_size)
{
    struct ipc_record_headers headers;
    int size;

    if (!(record->flags & RECORD_HEADERS) || record->size < sizeof(headers))
        return NULL;
    memcpy(&headers, record_body(record), sizeof(headers));
    size = ipc_fields_block_check(&headers, record->size);
    *ret_size = size < 0 ? 0 : (size_t)size;
    return size < 0 ? NULL : record_body(record);
}

static bool take_number(const struct ipc_field *field, uint64_t *ret)
{
    if (field->value_size != sizeof(*ret))
        return false;
    memcpy(ret, field->value, sizeof(*ret));
    return true;
}

static bool take_bytes(const struct ipc_field *field, const void **ret, uint16_t *ret_size)
{
    *ret = field->value;
    *ret_size = field->value_size;
    return field->value_size >= 1 && field->value_size <= 255;
}

static bool take_field(struct attributes *ret, const struct ipc_field *field, uint32_t *flags)
{
    switch (field->kind) {
    case IPC_FIELD_PRIORITY:
        if (field->value_size != 1 || *(const uint8_t *)field->value >= IPC_PRIORITIES)
            return false;
        ret->priority = *(const uint8_t *)field->value;
        return true;
    case IPC_FIELD_EXPIRES:
        *flags |= RECORD_EXPIRES;
        return take_number(field, &ret->expires);
    case IPC_FIELD_NOT_BEFORE:
        return take_number(field, &ret->not_before);
    case IPC_FIELD_ID:
        *flags |= RECORD_ID;
        return take_bytes(field, &ret->id, &ret->id_size);
    case IPC_FIELD_KEY:
        *flags |= RECORD_KEY;
        return take_bytes(field, &ret->key, &ret->key_size);
    case IPC_FIELD_ORIGIN ... IPC_FIELD_DIED: /* a producer does not say that it is a dead letter */
        return (*flags & RECORD_LETTER) != 0;
    default:
        return true;
    }
}

/* What a record's header block says, and the flags that follow from it; UINT32_MAX: it is malformed. */
uint32_t record_attributes(struct record *record, struct attributes *ret)
{
    size_t size = 0, position = 0;
    const unsigned char *block = header_block(record, &size);
    struct ipc_field field;
    uint32_t flags = record->flags & RECORD_LETTER;
    int result;

    *ret = (struct attributes){0};
    if (!(record->flags & RECORD_HEADERS))
        return 0;
    if (!block)
        return UINT32_MAX;
    while ((result = ipc_field_next(block, size, &position, &field)) > 0)
        if (!take_field(ret, &field, &flags))
            return UINT32_MAX;
    return result < 0 ? UINT32_MAX : flags;
}

/* Tell a producer what became of the message at its lane's reading position. The caller has seen that there is room. */
static void verdict(struct port *port, uint64_t position, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void verdict(struct port *port, uint64_t position, int code, const char *format, ...)
{
    struct ipc_verdict head = {.position = position, .code = code};
    unsigned char *body;
    char text[SENTENCE_MAX];
    va_list arguments;
    int size;

    va_start(arguments, format);
    size = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (size >= (int)sizeof(text))
        size = sizeof(text) - 1;
    if (lane_writer_reserve(&port->out, (uint32_t)(sizeof(head) + (size_t)size), &body) < 0)
        return;
    lane_copy_in(body, &head, sizeof(head));
    lane_copy_in(body + sizeof(head), text, (size_t)size);
    lane_writer_commit(&port->out, (uint32_t)(sizeof(head) + (size_t)size), 0);
}

static bool room_for_verdict(struct port *port)
{
    unsigned char *body;

    return (port->ending && port->reason != IPC_REASON_SHUTDOWN) || /* there is nobody to read it */
           lane_writer_reserve(&port->out, sizeof(struct ipc_verdict) + SENTENCE_MAX, &body) == 0;
}

/* Who has most messages in the queue. */
static const struct owner *culprit(const struct queue *queue)
{
    static const struct owner nobody;
    const struct owner *most = &nobody;

    for (uint32_t i = 0; i < queue->n_owners; i++)
        if (queue->owners[i].messages > most->messages)
            most = &queue->owners[i];
    return most;
}

static void refuse_full(struct queue *queue, struct port *port, uint64_t position)
{
    const struct owner *most = culprit(queue);

#ifdef IPC_PLANT_VERDICT_FORGOTTEN
    return;
#endif
    verdict(port, position, -ENOSPC,
            "queue %.150s is full: %" PRIu64 " messages, %" PRIu64 " bytes (limits: messages-max %" PRIu64
            ", bytes-max %" PRIu64 "); %" PRIu64 " of them are of uid %" PRIu32
            ": receive from it, or raise a limit",
            queue->name, queue->waiting + queue->unacked, queue->bytes, queue->settings.messages_max,
            queue->settings.bytes_max, most->messages, most->uid);
    queue->rejected++;
}

static bool is_full(const struct queue *queue, uint64_t stride)
{
    const struct queue_settings *settings = &queue->settings;

    return (settings->messages_max && queue->waiting + queue->unacked >= settings->messages_max) ||
           (settings->bytes_max && queue->bytes + stride > settings->bytes_max);
}

static bool drop(struct queue *queue, struct entry entry)
{
    struct record *record = file_find(&queue->file, entry.offset, entry.number);
    struct record_state state;

    if (!record)
        return false;
    state = record_load(record);
    if (state.kind != RECORD_WAITING)
        return false;
    queue_forget(queue, entry.offset, record, state);
    queue->dropped++;
    return true;
}

/* The oldest message that waits, of the lowest priority; then those that came back. */
static bool drop_oldest(struct queue *queue)
{
    bool dropped = false;

    for (unsigned priority = 0; priority < IPC_PRIORITIES && !dropped; priority++) {
        const struct entry *first;

        while (!dropped && (first = fifo_peek(&queue->ready[priority]))) {
            struct entry entry = *first;

            fifo_pop(&queue->ready[priority]);
            dropped = drop(queue, entry);
        }
    }
    while (!dropped && heap_top(&queue->returned)) {
        struct entry entry = heap_top(&queue->returned)->entry;

        heap_pop(&queue->returned);
        dropped = drop(queue, entry);
    }
    return dropped;
}

static void own(struct queue *queue, uint32_t uid)
{
    for (uint32_t i = 0; i < queue->n_owners; i++)
        if (queue->owners[i].uid == uid) {
            queue->owners[i].messages++;
            return;
        }
    if (queue->n_owners < OWNERS_MAX)
        queue->owners[queue->n_owners++] = (struct owner){.uid = uid, .messages = 1};
}

/* All that is needed to list and to time it is there before it is committed. */
static int list_record(struct queue *queue, struct record *record, uint64_t offset,
                       const struct attributes *attributes, uint64_t expires)
{
    struct entry entry = {.offset = offset, .number = record->number};
    struct router *router = queue->router;

    if (!heap_reserve(&router->boot_timers, 2))
        return -ENOMEM;
    if (attributes->not_before > router->boot_ns) {
        (void)router_timer(queue, TIMER_READY, attributes->not_before, entry);
        queue->delayed++;
    } else if (!fifo_push(&queue->ready[record->priority], entry)) {
        return -ENOMEM;
    } else {
        queue->ready_mask |= 1u << record->priority;
    }
    if (expires)
        (void)router_timer(queue, TIMER_EXPIRES, expires, entry);
    return 0;
}

static void account(struct queue *queue, const struct record *record)
{
    queue->waiting++;
    queue->accepted++;
    queue->bytes += record_stride(record->size);
    own(queue, record->uid);
    router_queue_dirty(queue);
}

/* When it expires: as it says itself, or as the queue says. */
static uint64_t expiry(const struct queue *queue, const struct attributes *attributes)
{
    if (attributes->expires || !queue->settings.ttl_ns)
        return attributes->expires;
    return queue->router->boot_ns + queue->settings.ttl_ns;
}

static enum verdict no_memory(struct queue *queue, struct port *port, uint64_t position, int result)
{
    if (queue->settings.full == QUEUE_FULL_BLOCK) {
        router_retry_soon(queue->router);
        return VERDICT_HOLD;
    }
    if (result == -EDQUOT)
        verdict(port, position, result,
                "the memory for queues of the owner of %.150s is used up (setting queue-bytes in [limits]): "
                "receive from its queues, or raise it",
                queue->name);
    else
        verdict(port, position, result, "there is no memory for messages of queue %.150s: %s", queue->name,
                strerror(-result));
    queue->rejected++;
    return VERDICT_ACCEPTED;
}

enum verdict queue_accept(struct queue *queue, struct port *port, const struct lane_record *in)
{
    uint64_t position = port->in.position, stride = record_stride(in->size), offset, number, hash[2];
    const struct queue_settings *settings = &queue->settings;
    struct attributes attributes;
    struct record *record;
    uint32_t flags;
    int result;

#ifndef IPC_PLANT_TAKEN_TWICE
    if (position < port->decided)
        return VERDICT_ACCEPTED; /* an earlier ipcd decided, and was killed before its cursor said so */
#endif
    if (!room_for_verdict(port))
        return VERDICT_NO_ROOM;
    if (in->size > settings->message_size_max) {
        verdict(port, position, -EMSGSIZE,
                "the message has %" PRIu32 " bytes with its headers; queue %.150s takes %" PRIu32
                " (message-size-max)",
                in->size, queue->name, settings->message_size_max);
        queue->rejected++;
        return VERDICT_ACCEPTED;
    }
    while (is_full(queue, stride) && settings->full == QUEUE_FULL_DROP_OLDEST && drop_oldest(queue)) {}
    if (is_full(queue, stride)) {
        if (settings->full == QUEUE_FULL_REJECT ||
            (settings->full == QUEUE_FULL_DEAD_LETTER && !settings->dead_letter)) {
            refuse_full(queue, port, position);
            return VERDICT_ACCEPTED;
        }
        if (settings->full != QUEUE_FULL_DEAD_LETTER)
            return VERDICT_HOLD;
    }
    result = file_reserve(&queue->file, in->size, &offset, &number);
    if (result < 0)
        return no_memory(queue, port, position, result);

    record = file_record(&queue->file, offset);
    record->number = number;
    record->origin = port->about.id;
    record->position = position;
    record->session = port->about.session;
    record->uid = port->about.uid;
    record->pid = port->about.pid;
    record->time_ns = queue->router->real_ns;
    record->size = in->size;
    record->flags = in->flags & IPC_RECORD_HEADERS ? RECORD_HEADERS : 0;
    record->reserved = 0;
    lane_fetch((unsigned char *)record, stride);
    lane_fetch_read(in->body, in->size);
    lane_copy_out(record_body(record), in->body, in->size);
    if (!lane_reader_check(&port->in)) {
        port_broken(port, "it overwrote a message that the broker was taking from its lane");
        return VERDICT_BROKEN;
    }
    flags = record_attributes(record, &attributes);
    if (flags == UINT32_MAX) {
        port_broken(port, "the header block of a message that it sent to a queue makes no sense");
        return VERDICT_BROKEN;
    }
    record->flags |= (uint8_t)flags;
    record->priority = attributes.priority;
    if (!attributes.not_before && settings->delay_ns)
        attributes.not_before = queue->router->boot_ns + settings->delay_ns;
    atomic_store_explicit(&record->not_before, attributes.not_before, memory_order_relaxed);

    if (is_full(queue, stride)) { /* the policy is to make it a dead letter */
        if (!letter_divert(queue, port, record))
            return no_memory(queue, port, position, -ENOMEM);
        return VERDICT_HOLD;
    }
    if (attributes.id && file_id_space(&queue->file)) {
        ids_hash(queue, &attributes, hash);
        if (ids_known(queue, hash)) {
            verdict(port, position, 0, "queue %.150s has had a message of this id", queue->name);
            queue->duplicates++;
            return VERDICT_ACCEPTED;
        }
        result = file_id_reserve(&queue->file);
    }
    if (result == 0)
        result = list_record(queue, record, offset, &attributes, expiry(queue, &attributes));
    if (result < 0)
        return no_memory(queue, port, position, result);
    file_commit(&queue->file, offset, &(struct record_state){.kind = RECORD_WAITING});
    if (attributes.id && file_id_space(&queue->file))
        ids_add(queue, hash, number);
    account(queue, record);
    return VERDICT_ACCEPTED;
}

void queue_diverted(struct queue *queue, struct port *port, int result)
{
    if (result < 0)
        refuse_full(queue, port, port->in.position);
    else
        queue->dead++;
    router_queue_dirty(queue);
}

static int by_origin(const void *a, const void *b)
{
    const struct origin *left = a, *right = b;

    if (left->queue != right->queue)
        return left->queue < right->queue ? -1 : 1;
    return left->number < right->number ? -1 : left->number > right->number;
}

void letters_sort(struct queue *queue)
{
    if (queue->n_letters)
        qsort(queue->letters, queue->n_letters, sizeof(*queue->letters), by_origin);
}

/* Where it comes from: a queue, or a port if it never was in one. */
static uint64_t origin_of(const struct route_mail *mail)
{
    return mail->diverted ? mail->diverted | ORIGIN_PORT : mail->origin;
}

/* It came before ipcd was killed, and its origin does not know. */
static bool came_before(const struct queue *queue, struct route_mail *mail)
{
    const struct origin wanted = {.queue = origin_of(mail), .number = mail->number};
    const struct origin *letter =
        queue->n_letters ? bsearch(&wanted, queue->letters, queue->n_letters, sizeof(wanted), by_origin)
                         : NULL;

    if (!letter)
        return false;
    mail->to = queue->id;
    mail->offset = letter->offset;
    mail->arrived = letter->arrived;
    return true;
}

int queue_accept_letter(struct queue *queue, struct route_mail *mail)
{
    struct attributes attributes;
    uint64_t offset, number;
    struct record *record;
    uint32_t flags;
    int result;

    if (came_before(queue, mail))
        return 0;
    if (mail->size > queue->settings.message_size_max)
        return -EMSGSIZE;
    if (is_full(queue, record_stride((uint32_t)mail->size)) &&
        !(queue->settings.full == QUEUE_FULL_DROP_OLDEST && drop_oldest(queue)))
        return -ENOSPC;
    result = file_reserve(&queue->file, (uint32_t)mail->size, &offset, &number);
    if (result < 0)
        return result;
    record = file_record(&queue->file, offset);
    record->number = number;
    record->origin = origin_of(mail);
    record->position = mail->number;
    record->session = mail->session;
    record->uid = mail->uid;
    record->pid = mail->pid;
    record->time_ns = queue->router->real_ns;
    record->size = (uint32_t)mail->size;
    record->priority = mail->priority;
    record->flags = RECORD_LETTER | (mail->headers ? RECORD_HEADERS : 0);
    record->reserved = 0;
    memcpy(record_body(record), mail->bytes, mail->size);
    flags = record_attributes(record, &attributes);
    if (flags == UINT32_MAX)
        return -EBADMSG;
    record->flags |= (uint8_t)flags;
    atomic_store_explicit(&record->not_before, attributes.not_before, memory_order_relaxed);
#ifdef IPC_PLANT_LETTER_EARLY
    result = list_record(queue, record, offset, &attributes, expiry(queue, &attributes));
#endif
    mail->to = queue->id;
    mail->offset = offset;
    mail->arrived = number;
    file_commit(&queue->file, offset, &(struct record_state){.kind = RECORD_WAITING, .slot = SLOT_ARRIVED});
    account(queue, record);
    return 0;
}

void queue_letter_known(struct queue *queue, const struct route_mail *mail)
{
    struct record *record = file_find(&queue->file, mail->offset, mail->arrived);
    struct record_state state = record ? record_load(record) : (struct record_state){0};
    struct attributes attributes;

    if (state.kind != RECORD_WAITING || state.slot != SLOT_ARRIVED)
        return;
    if (mail->result == -EAGAIN) {
        const struct origin letter = {record->origin, record->position, mail->offset, mail->arrived};

        queue->torn |= !letter_ask(queue, &letter);
        return;
    }
    if (mail->result < 0) {
        atomic_store_explicit(&record->not_before, 0, memory_order_relaxed);
        queue_forget(queue, mail->offset, record, state);
        return;
    }
    state.slot = 0;
    record_store(record, &state);
    (void)record_attributes(record, &attributes);
    if (list_record(queue, record, mail->offset, &attributes, expiry(queue, &attributes)) < 0)
        queue->torn = true;
    router_queue_dirty(queue);
}
