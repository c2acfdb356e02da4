/* SPDX-License-Identifier: Apache-2.0
 *
 * Consumers: deliveries, copied or in place, one or many; and what is said of them: done, refused, not yet.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libipc/patterns/port.h"
#include "libipc/patterns/queue_message.h"
#include "proto/fields.h"

#define HELD_MAX 1024u

/* A record taken in place. */
struct held_delivery {
    uint64_t next;
    unsigned char *block; /* a copy of its headers; NULL: none */
};

struct ipc_consumer {
    struct port port;
    uint64_t until;             /* every delivery below was acknowledged by ack_until */
    struct held_delivery *held; /* ring of HELD_MAX, made when first needed */
    uint64_t held_head;
    uint64_t held_tail;
    unsigned char *scratch; /* header blocks of the messages that were received last */
    size_t scratch_size;
    size_t scratch_capacity;
    uint64_t received;
    uint32_t prefetch;
};

/* ---- opening and closing ---------------------------------------------------------------------------------
 * */

static void close_handle(struct handle *handle)
{
    struct port *port = (struct port *)((char *)handle - offsetof(struct port, handle));
    ipc_consumer_close((ipc_consumer *)((char *)port - offsetof(ipc_consumer, port)));
}

static int handle_descriptor(struct handle *handle)
{
    return port_fd((struct port *)((char *)handle - offsetof(struct port, handle)));
}

static const struct handle_type consumer_type = {
    .kind = HANDLE_PORT, .close = close_handle, .descriptor = handle_descriptor, .set = port_set};

int ipc_consumer_open(ipc_consumer **ret, ipc_connection *connection, const char *queue,
                      const struct ipc_consumer_options *options, struct ipc_error *error)
{
    const struct ipc_consumer_options defaults = IPC_CONSUMER_OPTIONS_INIT;
    if (!options)
        options = &defaults;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_CONSUMER_OPTIONS_INIT");
    if (options->prefetch > IPC_MAX_PREFETCH)
        return error_set(error, -EINVAL, "prefetch is %u, the limit is %u", options->prefetch,
                         IPC_MAX_PREFETCH);
    ipc_consumer *consumer = calloc(1, sizeof(*consumer));
    if (!consumer)
        return error_set(error, -ENOMEM, "out of memory");
    struct port_wish wish = {.type = &consumer_type,
                             .queue = queue,
                             .consumer = true,
                             .ring_size = options->ring_size,
                             .prefetch = options->prefetch,
                             .spin_max_ns = options->spin_max_ns};
    Ipc__Control__PortOpened opened;
    uint32_t message_size_max;
    int result = port_open(&consumer->port, connection, &wish, &opened, &message_size_max, error);
    if (result < 0) {
        free(consumer);
        return result;
    }
    consumer->prefetch = opened.prefetch;
    result = port_join(&consumer->port, error);
    if (result < 0) {
        ipc_consumer_close(consumer);
        return result;
    }
    *ret = consumer;
    return 0;
}

ipc_consumer *ipc_consumer_close(ipc_consumer *consumer)
{
    if (!consumer)
        return NULL;
    for (; consumer->held_tail != consumer->held_head; consumer->held_tail++)
        free(consumer->held[consumer->held_tail % HELD_MAX].block);
    port_close(&consumer->port);
    free(consumer->held);
    free(consumer->scratch);
    free(consumer);
    return NULL;
}

/* ---- receiving -------------------------------------------------------------------------------------------
 * */

static bool holds(const ipc_consumer *consumer)
{
    return consumer->held_head != consumer->held_tail;
}

static inline int enter(ipc_consumer *consumer)
{
    int result = port_enter(&consumer->port);
    if (__builtin_expect(consumer->port.over, 0) && !holds(consumer) && result != -ECHILD)
        port_give_back(&consumer->port);
    return result;
}

static int broken(ipc_consumer *consumer)
{
    return consumer->port.over = -EPROTO;
}

static int look_record(struct port *port, uint64_t unused)
{
    struct lane_record record;
    (void)unused;
    return lane_reader_peek(&port->reader, &record);
}

/* The next record, waited for. 0 or negative errno. */
static int find(ipc_consumer *consumer, struct lane_record *record, int64_t timeout_ns)
{
    struct port *port = &consumer->port;
    int result = lane_reader_peek(&port->reader, record);
    if (__builtin_expect(result > 0, 1))
        return 0;
    if (result == 0 && timeout_ns == 0)
        result = port_quiet(port, look_record, 0, 0);
    else if (result == 0)
        result = port_wait(port, look_record, 0, 0, lane_deadline(timeout_ns));
    if (result > 0)
        result = lane_reader_peek(&port->reader, record);
    if (result == 0)
        return timeout_ns == 0 ? -EAGAIN : -ETIMEDOUT;
    return result > 0 ? 0 : result == -ESTALE ? broken(consumer) : result;
}

/* What a delivery consists of. */
struct parts {
    struct ipc_delivery delivery;
    const unsigned char *block; /* of headers */
    const unsigned char *payload;
    size_t block_size;
    size_t payload_size;
};

/* The router wrote it: what makes no sense is of another version. */
static inline int take_apart(const struct lane_record *record, struct parts *parts)
{
    if (__builtin_expect(record->size < sizeof(parts->delivery), 0))
        return -EPROTO;
    lane_copy_out(&parts->delivery, record->body, sizeof(parts->delivery));
    parts->block = parts->payload = record->body + sizeof(parts->delivery);
    parts->payload_size = record->size - sizeof(parts->delivery);
    parts->block_size = 0;
    if (__builtin_expect(!(record->flags & IPC_RECORD_HEADERS), 1))
        return 0;
    struct ipc_record_headers headers;
    if (parts->payload_size < sizeof(headers))
        return -EPROTO;
    lane_copy_out(&headers, parts->block, sizeof(headers));
    int size = ipc_fields_block_check(&headers, parts->payload_size);
    if (size < 0)
        return size;
    parts->block_size = (size_t)size;
    parts->payload += size;
    parts->payload_size -= (size_t)size;
    return 0;
}

/* Room in the scratch memory for a block; an offset, since the memory may still move. */
static int scratch_reserve(ipc_consumer *consumer, size_t block_size, size_t *offset)
{
    size_t size = consumer->scratch_size + ((block_size + QUEUE_BLOCK_EXTRA + 7) & ~(size_t)7);
    if (size > consumer->scratch_capacity) {
        unsigned char *scratch = realloc(consumer->scratch, 2 * size);
        if (!scratch)
            return -ENOMEM;
        consumer->scratch = scratch;
        consumer->scratch_capacity = 2 * size;
    }
    *offset = consumer->scratch_size;
    consumer->scratch_size = size;
    return 0;
}

/* Done with a record that was copied; one that was taken before and is held keeps its place. */
static inline void copied(ipc_consumer *consumer, const struct lane_record *record)
{
    if (__builtin_expect(holds(consumer), 0))
        lane_reader_hold(&consumer->port.reader, record);
    else
        lane_reader_advance(&consumer->port.reader, record);
    consumer->received++;
}

/* Copy the record that was found. Of its headers, message->fields is the offset in the scratch memory. 0;
 * -EMSGSIZE, -ENOMEM, -EPROTO. */
static inline int receive(ipc_consumer *consumer, const struct lane_record *record, void *buffer,
                          size_t capacity, struct ipc_queue_message *message)
{
    struct parts parts;
    int result = take_apart(record, &parts);
    if (__builtin_expect(result < 0, 0))
        return broken(consumer);
    queue_message_describe(message, &parts.delivery, record->sequence);
    message->data = buffer;
    message->size = parts.payload_size;
    if (__builtin_expect(parts.payload_size > capacity, 0))
        return -EMSGSIZE;
    if (__builtin_expect(parts.block_size > 0, 0)) {
        size_t offset;
        result = scratch_reserve(consumer, parts.block_size, &offset);
        if (result < 0)
            return result;
        lane_copy_out(consumer->scratch + offset, parts.block, parts.block_size);
        message->fields = (const void *)(uintptr_t)offset;
        message->fields_size = parts.block_size;
    }
    lane_copy_out(buffer, parts.payload, parts.payload_size);
    copied(consumer, record);
    return 0;
}

/* The scratch memory does not move any more. */
static inline void received(ipc_consumer *consumer, struct ipc_queue_message *messages, size_t count)
{
    if (__builtin_expect(consumer->scratch_size == 0, 1))
        return;
    for (size_t i = 0; i < count; i++)
        if (messages[i].fields_size)
            queue_message_fields(&messages[i], consumer->scratch + (uintptr_t)messages[i].fields,
                                 messages[i].fields_size);
}

ssize_t ipc_consumer_receive(ipc_consumer *consumer, void *buffer, size_t capacity,
                             struct ipc_queue_message *message, int64_t timeout_ns)
{
    if (__builtin_expect(!consumer || (!buffer && capacity) || !message, 0))
        return -EINVAL;
    struct lane_record record;
    int result = enter(consumer);
    if (__builtin_expect(result == 0, 1))
        result = find(consumer, &record, timeout_ns);
    if (__builtin_expect(result == 0, 1)) {
        consumer->scratch_size = 0;
        result = receive(consumer, &record, buffer, capacity, message);
    }
    if (__builtin_expect(result < 0, 0))
        return result;
    received(consumer, message, 1);
    return (ssize_t)message->size;
}

ssize_t ipc_consumer_receive_batch(ipc_consumer *consumer, void *buffer, size_t capacity,
                                   struct ipc_queue_message *messages, size_t count, int64_t timeout_ns)
{
    if (!consumer || !buffer || !messages || count == 0)
        return -EINVAL;
    struct lane_record record;
    int result = enter(consumer);
    if (result == 0)
        result = find(consumer, &record, timeout_ns);
    consumer->scratch_size = 0;
    unsigned char *at = buffer;
    size_t n = 0;
    while (result == 0) {
        result = receive(consumer, &record, at, capacity, &messages[n]);
        if (result < 0)
            break;
        size_t taken = (messages[n].size + 7) & ~(size_t)7;
        if (taken > capacity)
            taken = capacity;
        at += taken;
        capacity -= taken;
        if (++n == count || lane_reader_peek(&consumer->port.reader, &record) <= 0)
            break;
    }
    received(consumer, messages, n);
    return n ? (ssize_t)n : result;
}

/* Show a record in place; its headers are copied, to be terminated. */
static int hold(ipc_consumer *consumer, const struct lane_record *record, struct ipc_queue_message *message)
{
    struct lane_reader *reader = &consumer->port.reader;
    struct parts parts;
    if (take_apart(record, &parts) < 0 || !lane_reader_in_place(reader))
        return broken(consumer); /* a router admits us before it writes anything */
    unsigned char *block = NULL;
    if (parts.block_size) {
        block = malloc(parts.block_size + QUEUE_BLOCK_EXTRA);
        if (!block)
            return -ENOMEM;
        lane_copy_out(block, parts.block, parts.block_size);
    }
    queue_message_describe(message, &parts.delivery, record->sequence);
    message->data = parts.payload;
    message->size = parts.payload_size;
    if (block)
        queue_message_fields(message, block, parts.block_size);
    lane_reader_hold(reader, record);
    consumer->held[consumer->held_head++ % HELD_MAX] =
        (struct held_delivery){.next = record->next, .block = block};
    consumer->received++;
    return 0;
}

ssize_t ipc_consumer_take(ipc_consumer *consumer, struct ipc_queue_message *messages, size_t count,
                          int64_t timeout_ns)
{
    if (!consumer || !messages || count == 0)
        return -EINVAL;
    int result = enter(consumer);
    if (result < 0)
        return result;
    if (!consumer->held && !(consumer->held = calloc(HELD_MAX, sizeof(*consumer->held))))
        return -ENOMEM;
    if (consumer->held_head - consumer->held_tail == HELD_MAX)
        return -EBUSY;
    struct lane_record record;
    result = find(consumer, &record, timeout_ns);
    size_t n = 0;
    while (result == 0 && (result = hold(consumer, &record, &messages[n])) == 0)
        if (++n == count || consumer->held_head - consumer->held_tail == HELD_MAX ||
            lane_reader_peek(&consumer->port.reader, &record) <= 0)
            break;
    return n ? (ssize_t)n : result;
}

int ipc_consumer_release(ipc_consumer *consumer, size_t count)
{
    if (!consumer)
        return -EINVAL;
    if (guard_foreign(consumer->port.handle.connection))
        return -ECHILD;
    if (count > consumer->held_head - consumer->held_tail)
        return -EINVAL;
    struct lane_reader *reader = &consumer->port.reader;
    for (size_t i = 0; i < count; i++) {
        struct held_delivery *held = &consumer->held[consumer->held_tail++ % HELD_MAX];
        /* With the last one go the records that were copied while it was held. */
        uint64_t until = holds(consumer) ? held->next : reader->position;
        free(held->block);
        if (until > reader->consumed && !consumer->port.over)
            lane_reader_release(reader, until);
    }
    return 0;
}

/* ---- answering -------------------------------------------------------------------------------------------
 * */

static int look_room(struct port *port, uint64_t stride)
{
    int result = port_over(port);
    return result < 0 ? result : lane_writer_make_room(&port->writer, (uint32_t)stride) == 0;
}

static int reserve(ipc_consumer *consumer, uint32_t size, unsigned char **body)
{
    struct port *port = &consumer->port;
    int result = lane_writer_reserve(&port->writer, size, body);
    if (__builtin_expect(result != -EAGAIN, 1))
        return result;
    result = port_wait_room(port, look_room, ipc_record_stride(size),
                            lane_deadline(port->handle.connection->timeout_ns));
    return result < 0 ? result : lane_writer_reserve(&port->writer, size, body);
}

/* Only what was received can be answered. */
static inline bool known(const ipc_consumer *consumer, uint64_t first, uint64_t last)
{
    return first <= last && last < consumer->port.reader.sequence;
}

static int answer(ipc_consumer *consumer, const struct ipc_ack *ack, const char *reason)
{
    unsigned char *body;
    int result = enter(consumer);
    if (__builtin_expect(result < 0, 0))
        return result;
    if (__builtin_expect(!known(consumer, ack->first, ack->last), 0))
        return -EINVAL;
    uint32_t size = (uint32_t)sizeof(*ack) + ack->reason_size;
    result = reserve(consumer, size, &body);
    if (__builtin_expect(result < 0, 0))
        return result;
    lane_copy_in(body, ack, sizeof(*ack));
    lane_copy_in(body + sizeof(*ack), reason, ack->reason_size);
    lane_writer_commit(&consumer->port.writer, size, 0);
    return 0;
}

int ipc_consumer_ack_range(ipc_consumer *consumer, uint64_t first, uint64_t last)
{
    if (__builtin_expect(!consumer, 0))
        return -EINVAL;
    return answer(consumer, &(struct ipc_ack){.operation = IPC_ACK_DONE, .first = first, .last = last}, NULL);
}

int ipc_consumer_ack(ipc_consumer *consumer, uint64_t delivery)
{
    return ipc_consumer_ack_range(consumer, delivery, delivery);
}

int ipc_consumer_ack_until(ipc_consumer *consumer, uint64_t delivery)
{
    if (!consumer)
        return -EINVAL;
    int result = 0;
    if (delivery >= consumer->until || delivery == UINT64_MAX)
        result = ipc_consumer_ack_range(consumer, consumer->until, delivery);
    if (result == 0 && delivery >= consumer->until)
        consumer->until = delivery + 1;
    return result;
}

/* One record for each run of neighbours, as many as there is room for by one commit. */
static int ack_part(ipc_consumer *consumer, const uint64_t *deliveries, size_t count, size_t *done)
{
    struct lane_writer *writer = &consumer->port.writer;
    struct lane_batch batch = lane_batch_begin(writer);
    int result = 0;
    while (*done < count && result == 0) {
        struct ipc_ack ack = {.operation = IPC_ACK_DONE, .first = deliveries[*done]};
        size_t n = 1;
        while (*done + n < count && deliveries[*done + n] == ack.first + n)
            n++;
        ack.last = ack.first + n - 1;
        unsigned char *body;
        result = lane_batch_reserve(writer, &batch, sizeof(ack), &body);
        if (result == 0) {
            lane_copy_in(body, &ack, sizeof(ack));
            lane_batch_put(writer, &batch, sizeof(ack), 0);
            *done += n;
        }
    }
    lane_batch_commit(writer, &batch);
    return result;
}

int ipc_consumer_ack_many(ipc_consumer *consumer, const uint64_t *deliveries, size_t count)
{
    if (!consumer || (!deliveries && count))
        return -EINVAL;
    int result = enter(consumer);
    for (size_t i = 0; i < count; i++)
        if (!known(consumer, deliveries[i], deliveries[i]))
            return result < 0 ? result : -EINVAL;
    size_t done = 0;
    while (result == 0 && done < count) {
        unsigned char *body;
        if (ack_part(consumer, deliveries, count, &done) == -EAGAIN)
            result = reserve(consumer, sizeof(struct ipc_ack), &body);
    }
    return result;
}

int ipc_consumer_nack(ipc_consumer *consumer, uint64_t first, uint64_t last, const struct ipc_nack *how)
{
    if (!consumer || (how && (how->size != sizeof(*how) || (how->flags & ~IPC_NACK_DEAD))))
        return -EINVAL;
    struct ipc_ack ack = {.operation = IPC_ACK_REFUSE, .first = first, .last = last};
    if (how) {
        size_t size = how->reason ? strnlen(how->reason, IPC_MAX_REASON_SIZE + 1) : 0;
        if (size > IPC_MAX_REASON_SIZE)
            return -E2BIG;
        ack.flags = how->flags & IPC_NACK_DEAD ? IPC_ACK_DEAD : 0;
        ack.reason_size = (uint16_t)size;
        ack.ns = how->delay_ns;
    }
    return answer(consumer, &ack, how ? how->reason : NULL);
}

int ipc_consumer_touch(ipc_consumer *consumer, uint64_t first, uint64_t last, uint64_t lease_ns)
{
    if (!consumer)
        return -EINVAL;
    return answer(consumer,
                  &(struct ipc_ack){.operation = IPC_ACK_TOUCH, .first = first, .last = last, .ns = lease_ns},
                  NULL);
}

static int look_consumed(struct port *port, uint64_t position)
{
    bool there = lane_writer_consumed(&port->writer) >= position;
    int result = port_over(port);
    return result < 0 ? result : there;
}

int ipc_consumer_flush(ipc_consumer *consumer, int64_t timeout_ns)
{
    if (!consumer)
        return -EINVAL;
    struct port *port = &consumer->port;
    int result = enter(consumer);
    if (result == 0)
        result = look_consumed(port, port->writer.position);
    if (result == 0 && timeout_ns == 0)
        return -EAGAIN;
    if (result == 0)
        result = port_wait(port, look_consumed, port->writer.position, port->writer.position,
                           lane_deadline(timeout_ns));
    return result < 0 ? result : 0;
}

/* ---- the rest --------------------------------------------------------------------------------------------
 * */

int ipc_consumer_fd(ipc_consumer *consumer)
{
    return consumer ? port_fd(&consumer->port) : -EINVAL;
}

int ipc_consumer_stats(ipc_consumer *consumer, struct ipc_consumer_stats *ret)
{
    if (!consumer || !ret)
        return -EINVAL;
    if (guard_foreign(consumer->port.handle.connection))
        return -ECHILD;
    const struct port *port = &consumer->port;
    *ret = (struct ipc_consumer_stats){.received = consumer->received,
                                       .answers = port->writer.sequence,
                                       .sleeps = port->sleeps,
                                       .polls = port->polls,
                                       .rings = port->writer.rings,
                                       .net = port->net,
                                       .prefetch = consumer->prefetch,
                                       .ring_size = port->reader.ring_size};
    return 0;
}
