/* SPDX-License-Identifier: Apache-2.0
 *
 * Receiving: copied or in place, one or many; and the headers of what was received.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libipc/patterns/patterns.h"
#include "proto/fields.h"

static int scratch_reserve(struct ipc_subscription *sub, size_t size)
{
    if (sub->scratch_size + size <= sub->scratch_capacity)
        return 0;
    size_t capacity = 2 * (sub->scratch_size + size);
    unsigned char *scratch = realloc(sub->scratch, capacity);
    if (!scratch)
        return -ENOMEM;
    sub->scratch = scratch;
    sub->scratch_capacity = capacity;
    return 0;
}

/* The size of a record's header block, as far as it can be believed before the copy. */
static int64_t block_size(const struct lane_record *record)
{
    if (__builtin_expect(!(record->flags & IPC_RECORD_HEADERS), 1))
        return 0;
    struct ipc_record_headers headers;
    if (record->size < sizeof(headers))
        return -EPROTO;
    lane_copy_out(&headers, record->body, sizeof(headers));
    return ipc_fields_block_check(&headers, record->size);
}

static void describe(struct ipc_message *message, const struct sub_lane *lane,
                     const struct lane_record *record, const void *data, size_t size)
{
    message->data = data;
    message->size = size;
    message->sequence = record->sequence;
    message->lost = lane->reader.just_lost;
    message->timestamp_ns = 0;
    message->topic = lane->topic;
    message->publisher = lane->id;
    message->sender = &lane->sender;
    message->content_type = NULL;
    message->fields = NULL;
    message->fields_size = 0;
}

void message_describe_fields(struct ipc_message *message, unsigned char *block, size_t size)
{
    struct ipc_field field;
    size_t position = 0;
    message->fields = block;
    message->fields_size = size;
    while (ipc_field_next(block, size, &position, &field) > 0) {
        if (field.kind == IPC_FIELD_TIMESTAMP && field.value_size == sizeof(uint64_t)) {
            memcpy(&message->timestamp_ns, field.value, sizeof(uint64_t));
        } else if (field.kind == IPC_FIELD_CONTENT_TYPE && field.value_size < 256) {
            char *text = (char *)block + size;
            memcpy(text, field.value, field.value_size);
            text[field.value_size] = '\0';
            message->content_type = text;
        }
    }
}

ssize_t subscription_copy(struct ipc_subscription *sub, struct sub_lane *lane,
                          const struct lane_record *record, void *buffer, size_t capacity, int64_t *block,
                          bool *again)
{
    struct lane_reader *reader = &lane->reader;
    *again = false;
    *block = block_size(record);
    if (__builtin_expect(*block < 0, 0)) {
        if (lane_reader_check(reader))
            return -EPROTO;
        *again = true;
        return 0;
    }
    size_t size = record->size - (size_t)*block;
    if (__builtin_expect(size > capacity, 0)) {
        *again = !lane_reader_check(reader);
        return *again ? 0 : -EMSGSIZE;
    }
    if (__builtin_expect(*block > 0, 0)) {
        if (scratch_reserve(sub, (size_t)*block + BLOCK_EXTRA) < 0)
            return -ENOMEM;
        lane_copy_out(sub->scratch + sub->scratch_size, record->body, (size_t)*block);
    }
    lane_copy_out(buffer, record->body + *block, size);
    *again = !lane_reader_check(reader);
    return (ssize_t)size;
}

/* Done with a record that was copied; one that was taken before and is held keeps its place. */
static void copied(struct ipc_subscription *sub, struct sub_lane *lane, const struct lane_record *record)
{
    sub->received++;
    if (__builtin_expect(lane->held > 0, 0)) {
        lane_reader_hold(&lane->reader, record);
        return;
    }
    lane_reader_advance(&lane->reader, record);
    sub->now = lane;
    sub->burst_end = sub->lane_count > 1 ? sub->burst_start + BURST_MAX : UINT64_MAX;
}

/* The size of a plain record on the lane that was read last, copied and described: most messages. Otherwise -EAGAIN,
 * and nothing has changed. `call`: also one that is so long that a call copies it. The reader has moved on, and may
 * have to report that: receive_report(). */
__attribute__((always_inline)) static inline ssize_t receive_plain(struct ipc_subscription *sub, void *buffer,
                                                                   size_t capacity,
                                                                   struct ipc_message *message, bool call)
{
    struct sub_lane *lane = sub->now;
    if (!lane || sub->received >= sub->burst_end || handle_has_mail(&sub->handle))
        return -EAGAIN;
    struct lane_reader *reader = &lane->reader;
    uint64_t size = lane_reader_plain(reader, lane_reader_load(reader));
    if (size > capacity || size > reader->ring_size / 2 - sizeof(uint64_t) || (!call && !lane_copies(size)))
        return -EAGAIN;
    struct lane_record record = {.body = lane_reader_body(reader),
                                 .sequence = reader->sequence,
                                 .next = reader->position + ipc_record_stride((uint32_t)size)};
    lane_copy_out(buffer, record.body, size);
    if (!lane_reader_valid(reader)) {
        sub->now = NULL;
        return -EAGAIN;
    }
    if (message)
        describe(message, lane, &record, buffer, size);
    sub->received++;
    lane_reader_hold(reader, &record);
    reader->consumed = record.next;
    return (ssize_t)size;
}

/* Called as the last thing, so that nothing has to be kept in registers over it. */
__attribute__((noinline)) static ssize_t receive_report(struct lane_reader *reader, ssize_t size)
{
    lane_reader_report(reader);
    return size;
}

/* Everything else: out of line, so that the usual way needs few registers. */
__attribute__((noinline)) static ssize_t receive_any(struct ipc_subscription *sub, void *buffer,
                                                     size_t capacity, struct ipc_message *message,
                                                     int64_t timeout_ns)
{
    if (!sub || (!buffer && capacity))
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    sub->scratch_size = 0;
    for (;;) {
        struct lane_record record;
        struct sub_lane *lane;
        result = subscription_find(sub, &record, &lane);
        if (result == 0)
            result = subscription_wait(sub, &record, &lane, timeout_ns);
        if (__builtin_expect(result < 0, 0))
            return result;
        int64_t block;
        bool again;
        ssize_t size = subscription_copy(sub, lane, &record, buffer, capacity, &block, &again);
        if (__builtin_expect(again, 0))
            continue;
        if (__builtin_expect(size == -EPROTO, 0)) {
            subscription_break(sub, lane, IPC_REASON_CORRUPT);
            continue;
        }
        if (message) {
            describe(message, lane, &record, buffer, record.size - (size_t)(block > 0 ? block : 0));
            if (__builtin_expect(block > 0 && size >= 0, 0))
                message_describe_fields(message, sub->scratch, (size_t)block);
        }
        if (__builtin_expect(size < 0, 0))
            return size;
        copied(sub, lane, &record);
        return size;
    }
}

ssize_t ipc_subscription_receive(ipc_subscription *sub, void *buffer, size_t capacity,
                                 struct ipc_message *message, int64_t timeout_ns)
{
    if (__builtin_expect(!sub || !buffer || handle_enter(&sub->handle) < 0, 0))
        return receive_any(sub, buffer, capacity, message, timeout_ns);
    ssize_t size = receive_plain(sub, buffer, capacity, message, false);
    if (__builtin_expect(size < 0, 0))
        return receive_any(sub, buffer, capacity, message, timeout_ns);
    struct lane_reader *reader = &sub->now->reader;
    return __builtin_expect(reader->consumed < reader->report_at, 1) ? size : receive_report(reader, size);
}

ssize_t ipc_subscription_receive_batch(ipc_subscription *sub, void *buffer, size_t capacity,
                                       struct ipc_message *messages, size_t count, int64_t timeout_ns)
{
    if (!sub || !buffer || !messages || count == 0)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    sub->scratch_size = 0;
    unsigned char *at = buffer;
    size_t n = 0;
    while (n < count) {
        struct lane_record record;
        struct sub_lane *lane;
        ssize_t plain = receive_plain(sub, at, capacity, &messages[n], true);
        if (plain >= 0) {
            lane_reader_release(&sub->now->reader, sub->now->reader.position);
            size_t room = ((size_t)plain + 7) & ~(size_t)7;
            room = room < capacity ? room : capacity;
            at += room;
            capacity -= room;
            n++;
            continue;
        }
        sub->keep = n > 0;
        result = subscription_find(sub, &record, &lane);
        sub->keep = false;
        if (result == 0) {
            if (n > 0)
                break;
            result = subscription_wait(sub, &record, &lane, timeout_ns);
        }
        if (result < 0)
            return result;
        int64_t block;
        bool again;
        ssize_t size = subscription_copy(sub, lane, &record, at, capacity, &block, &again);
        if (again)
            continue;
        if (size == -EPROTO) {
            subscription_break(sub, lane, IPC_REASON_CORRUPT);
            continue;
        }
        if (size < 0 && n > 0)
            break;
        describe(&messages[n], lane, &record, at, record.size - (size_t)(block > 0 ? block : 0));
        if (size < 0)
            return size;
        if (block > 0) { /* an offset for now: the scratch memory may still move */
            messages[n].fields_size = (size_t)block;
            messages[n].fields = (const void *)(uintptr_t)sub->scratch_size;
            sub->scratch_size += ((size_t)block + BLOCK_EXTRA + 7) & ~(size_t)7;
        }
        size_t taken = ((size_t)size + 7) & ~(size_t)7;
        at += taken < capacity ? taken : capacity;
        capacity -= taken < capacity ? taken : capacity;
        copied(sub, lane, &record);
        n++;
    }
    for (size_t i = 0; i < n; i++)
        if (messages[i].fields_size)
            message_describe_fields(&messages[i], sub->scratch + (uintptr_t)messages[i].fields,
                                    messages[i].fields_size);
    return (ssize_t)n;
}

/* Show a record in place. Headers are copied; so is the payload if the writer has not admitted us yet (it does so
 * when it is next in the library), since it may overwrite what it does not know that we hold. Returns 1 if it just
 * did. */
static int hold(struct ipc_subscription *sub, struct sub_lane *lane, const struct lane_record *record,
                struct ipc_message *message)
{
    bool in_place = lane_reader_in_place(&lane->reader);
    int64_t block = block_size(record);
    if (block < 0)
        return lane_reader_check(&lane->reader) ? -EPROTO : 1;
    size_t size = record->size - (size_t)block;
    unsigned char *copy = NULL;
    const unsigned char *payload = record->body + block;
    if (block > 0 || !in_place) {
        copy = malloc((size_t)block + BLOCK_EXTRA + (in_place ? 0 : size));
        if (!copy)
            return -ENOMEM;
        lane_copy_out(copy, record->body, (size_t)block);
        if (!in_place) {
            lane_copy_out(copy + block + BLOCK_EXTRA, payload, size);
            payload = copy + block + BLOCK_EXTRA;
        }
        if (!lane_reader_check(&lane->reader)) {
            free(copy);
            return 1;
        }
    }
    describe(message, lane, record, payload, size);
    if (block > 0)
        message_describe_fields(message, copy, (size_t)block);
    lane_reader_hold(&lane->reader, record);
    lane->held++;
    sub->now = NULL;
    sub->received++;
    sub->held[sub->held_head++ % HELD_MAX] = (struct held){.lane = lane, .next = record->next, .copy = copy};
    return 0;
}

ssize_t ipc_subscription_take(ipc_subscription *sub, struct ipc_message *messages, size_t count,
                              int64_t timeout_ns)
{
    if (!sub || !messages || count == 0)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    if (sub->slow != IPC_SLOW_BLOCK)
        return -EOPNOTSUPP;
    if (!sub->held && !(sub->held = calloc(HELD_MAX, sizeof(*sub->held))))
        return -ENOMEM;
    if (sub->held_head - sub->held_tail == HELD_MAX)
        return -EBUSY;
    size_t n = 0;
    while (n < count && sub->held_head - sub->held_tail < HELD_MAX) {
        struct lane_record record;
        struct sub_lane *lane;
        result = subscription_find(sub, &record, &lane);
        if (result == 0) {
            if (n > 0)
                break;
            result = subscription_wait(sub, &record, &lane, timeout_ns);
        }
        if (result > 0)
            result = hold(sub, lane, &record, &messages[n]);
        if (result == 0)
            n++;
        else if (result == -EPROTO)
            subscription_break(sub, lane, IPC_REASON_CORRUPT);
        else if (result < 0)
            break;
    }
    return n ? (ssize_t)n : result;
}

int ipc_subscription_release(ipc_subscription *sub, size_t count)
{
    if (!sub)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    if (count > sub->held_head - sub->held_tail)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        struct held *held = &sub->held[sub->held_tail++ % HELD_MAX];
        held->lane->held--;
        /* With the last one go the records that were copied while it was held; a reader that was overtaken before
         * it was admitted is further on already. */
        struct lane_reader *reader = &held->lane->reader;
        uint64_t until = held->lane->held ? held->next : reader->position;
        if (!held->lane->broken && until > reader->consumed)
            lane_reader_release(reader, until);
        free(held->copy);
        held->copy = NULL;
    }
    return 0;
}

int ipc_message_next_header(const struct ipc_message *message, size_t *position, const char **name,
                            size_t *name_size, const void **value, size_t *value_size)
{
    if (!message || !position || !name || !name_size || !value || !value_size)
        return -EINVAL;
    struct ipc_field field;
    while (message->fields && ipc_field_next(message->fields, message->fields_size, position, &field) > 0) {
        if (field.kind != IPC_FIELD_USER)
            continue;
        *name = field.name;
        *name_size = field.name_size;
        *value = field.value;
        *value_size = field.value_size;
        return 1;
    }
    return 0;
}

int ipc_message_header(const struct ipc_message *message, const char *name, const void **value,
                       size_t *value_size)
{
    if (!name)
        return -EINVAL;
    size_t position = 0, found_size, wanted = strlen(name);
    const char *found;
    int result;
    while ((result = ipc_message_next_header(message, &position, &found, &found_size, value, value_size)) > 0)
        if (found_size == wanted && memcmp(found, name, wanted) == 0)
            return 0;
    return result < 0 ? result : -ENOENT;
}
