/* SPDX-License-Identifier: Apache-2.0
 *
 * Producers. The router's cursor is the confirm: what lies below it is decided, and was accepted unless a
 * verdict, which is written before the cursor moves, names it. So the cursor is loaded first and the verdicts
 * are read then.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libipc/patterns/port.h"
#include "libipc/patterns/send.h"

#define REFUSALS_MAX 1024u

struct refusal {
    struct refusal *next;
    struct ipc_refusal told;
};

struct ipc_producer {
    struct port port;
    uint32_t message_size_max;
    uint32_t loan_size;    /* bytes of payload lent out, if loan_open */
    uint32_t loan_headers; /* bytes of headers in front of it */
    bool loan_open;
    bool loan_more;
    bool some_refused;        /* since the last flush */
    uint64_t decided;         /* everything below this position is */
    uint64_t told;            /* the same, as dispatch last said */
    uint64_t judged;          /* ticket of the last verdict */
    uint64_t undecided;       /* what the session's end left undecided was told up to this position */
    struct refusal *refusals; /* oldest first */
    struct refusal **refusals_end;
    unsigned refusal_count;
    void (*refused)(void *context, const struct ipc_refusal *refusal);
    void (*confirmed)(void *context, uint64_t ticket);
    void *context;
    uint64_t refused_count;
    uint64_t duplicates;
    uint64_t waits;
};

static ipc_producer *producer_of(struct port *port)
{
    return (ipc_producer *)((char *)port - offsetof(ipc_producer, port));
}

/* ---- opening and closing ---------------------------------------------------------------------------------
 * */

static void close_handle(struct handle *handle)
{
    ipc_producer_close(producer_of((struct port *)((char *)handle - offsetof(struct port, handle))));
}

static int handle_descriptor(struct handle *handle)
{
    return port_fd((struct port *)((char *)handle - offsetof(struct port, handle)));
}

static const struct handle_type producer_type = {
    .kind = HANDLE_PORT, .close = close_handle, .descriptor = handle_descriptor, .set = port_set};

int ipc_producer_open(ipc_producer **ret, ipc_connection *connection, const char *queue,
                      const struct ipc_producer_options *options, struct ipc_error *error)
{
    const struct ipc_producer_options defaults = IPC_PRODUCER_OPTIONS_INIT;
    if (!options)
        options = &defaults;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_PRODUCER_OPTIONS_INIT");
    ipc_producer *producer = calloc(1, sizeof(*producer));
    if (!producer)
        return error_set(error, -ENOMEM, "out of memory");
    struct port_wish wish = {.type = &producer_type,
                             .queue = queue,
                             .ring_size = options->ring_size,
                             .spin_max_ns = options->spin_max_ns};
    Ipc__Control__PortOpened opened;
    uint32_t queue_max;
    int result = port_open(&producer->port, connection, &wish, &opened, &queue_max, error);
    if (result < 0) {
        free(producer);
        return result;
    }
    uint32_t lane_max = lane_body_size_max(opened.session_ring_size);
    producer->message_size_max = queue_max && queue_max < lane_max ? queue_max : lane_max;
    producer->refusals_end = &producer->refusals;
    producer->refused = options->refused;
    producer->confirmed = options->confirmed;
    producer->context = options->context;
    result = port_join(&producer->port, error);
    if (result < 0) {
        ipc_producer_close(producer);
        return result;
    }
    *ret = producer;
    return 0;
}

static bool take_refusal(ipc_producer *producer, struct refusal **at, struct ipc_refusal *ret)
{
    struct refusal *refusal = *at;
    if (!refusal)
        return false;
    *at = refusal->next;
    if (!*at)
        producer->refusals_end = at;
    producer->refusal_count--;
    *ret = refusal->told;
    free(refusal);
    return true;
}

ipc_producer *ipc_producer_close(ipc_producer *producer)
{
    if (!producer)
        return NULL;
    port_close(&producer->port);
    struct ipc_refusal refusal;
    while (take_refusal(producer, &producer->refusals, &refusal))
        ;
    free(producer);
    return NULL;
}

/* ---- confirms and verdicts -------------------------------------------------------------------------------
 * */

#define UNDECIDED \
 "the session with the broker ended before queue \"%.100s\" confirmed this: open another producer, and send it again"

static struct ipc_refusal *refuse(ipc_producer *producer, uint64_t ticket, int code)
{
    struct refusal *refusal = calloc(1, sizeof(*refusal));
    if (!refusal)
        return NULL;
    refusal->told.ticket = ticket;
    refusal->told.code = code;
    *producer->refusals_end = refusal;
    producer->refusals_end = &refusal->next;
    producer->refusal_count++;
    producer->refused_count++;
    producer->some_refused = true;
    return &refusal->told;
}

static int take_verdict(ipc_producer *producer, const struct lane_record *record)
{
    struct ipc_verdict verdict;
    if (record->size < sizeof(verdict))
        return -EPROTO;
    lane_copy_out(&verdict, record->body, sizeof(verdict));
    if (verdict.code == 0) {
        producer->duplicates++;
        return 0;
    }
    int code = verdict.code < 0 && verdict.code > -4096 ? verdict.code : -EIO;
    struct ipc_refusal *told = refuse(producer, verdict.position + 1, code);
    if (!told)
        return -ENOMEM;
    size_t size = record->size - sizeof(verdict);
    if (size >= sizeof(told->text))
        size = sizeof(told->text) - 1;
    lane_copy_out(told->text, record->body + sizeof(verdict), size);
    producer->judged = told->ticket;
    return 0;
}

/* The session is over: what it left undecided is told one by one, as refused. Our lane still has it, for it was not taken.
 * False: nothing is left to tell. */
static bool tell_undecided(ipc_producer *producer)
{
    struct lane_writer *writer = &producer->port.writer;
    if (producer->undecided < producer->decided)
        producer->undecided = producer->decided;
    while (port_over(&producer->port) == -EPIPE && producer->undecided < writer->position) {
        uint64_t ticket = producer->undecided + 1;
        uint64_t word =
            atomic_load_explicit(lane_writer_word(writer, producer->undecided), memory_order_relaxed);
        struct ipc_refusal *told = NULL;
        if (ticket > producer->judged && !(told = refuse(producer, ticket, -EPIPE)))
            return false;
        producer->undecided += ipc_record_stride((uint32_t)word & IPC_RECORD_SIZE);
        if (!told)
            continue;
        snprintf(told->text, sizeof(told->text), UNDECIDED, producer->port.queue);
        return true;
    }
    return false;
}

/* 0; -ENOBUFS as many refusals as we keep wait to be taken: the rest stays in the lane; -ENOMEM, -EPROTO. */
static int take_in(ipc_producer *producer)
{
    struct port *port = &producer->port;
    struct lane_reader *reader = &port->reader;
    uint64_t cursor = lane_writer_consumed(&port->writer);
    struct lane_record record;
    int result;
    while ((result = lane_reader_peek(reader, &record)) > 0) {
        if (producer->refusal_count >= REFUSALS_MAX)
            return -ENOBUFS;
        result = take_verdict(producer, &record);
        if (result < 0)
            break;
        lane_reader_advance(reader, &record);
    }
    if (result == 0 && port->writer.faulted)
        result = -EPROTO;
    if (result == -ENOMEM)
        return result;
    if (result < 0)
        return port->over = -EPROTO;
    producer->decided = cursor;
    return 0;
}

static inline int enter(ipc_producer *producer)
{
    int result = port_enter(&producer->port);
    if (__builtin_expect(producer->port.over, 0) && !producer->loan_open && result != -ECHILD)
        port_give_back(&producer->port);
    return result;
}

/* Before something is sent. */
static inline int enter_sending(ipc_producer *producer)
{
    int result = enter(producer);
    if (__builtin_expect(result < 0, 0))
        return result;
    if (__builtin_expect(producer->loan_open, 0))
        return -EBUSY;
    struct lane_record record;
    return __builtin_expect(lane_reader_peek(&producer->port.reader, &record) != 0, 0) ? take_in(producer)
                                                                                       : 0;
}

static int look_decided(struct port *port, uint64_t ticket)
{
    ipc_producer *producer = producer_of(port);
    int result = take_in(producer);
    return result < 0 ? result : producer->decided >= ticket;
}

static int wait_decided(ipc_producer *producer, uint64_t ticket, int64_t timeout_ns)
{
    struct port *port = &producer->port;
    int result = enter(producer);
    lane_writer_ring_held(&port->writer);
    if (result == 0)
        result = look_decided(port, ticket);
    if (result == 0 && timeout_ns == 0)
        return -EAGAIN;
    if (result == 0)
        result = port_wait(port, look_decided, ticket, ticket, lane_deadline(timeout_ns));
    if (result == -EPIPE && look_decided(port, ticket) > 0)
        return 0; /* before the session ended */
    return result < 0 ? result : 0;
}

int ipc_producer_confirm(ipc_producer *producer, uint64_t ticket, int64_t timeout_ns, struct ipc_error *error)
{
    if (!producer || ticket == 0 || ticket > producer->port.writer.position)
        return error_set(error, -EINVAL, "this producer has sent no message with that ticket");
    int result = wait_decided(producer, ticket, timeout_ns);
    if (result == -EPIPE)
        return error_set(error, result, UNDECIDED, producer->port.queue);
    if (result < 0)
        return error_set(error, result, "queue \"%s\" did not confirm: %s", producer->port.queue,
                         strerror(-result));
    for (struct refusal **at = &producer->refusals; *at; at = &(*at)->next) {
        struct ipc_refusal refusal;
        if ((*at)->told.ticket != ticket)
            continue;
        take_refusal(producer, at, &refusal);
        return error_set(error, refusal.code, "%s", refusal.text);
    }
    return 0;
}

int ipc_producer_flush(ipc_producer *producer, int64_t timeout_ns)
{
    if (!producer)
        return -EINVAL;
    int result = wait_decided(producer, producer->port.writer.position, timeout_ns);
    if (result == 0 && producer->some_refused)
        result = -EBADMSG;
    if (result == 0 || result == -EBADMSG)
        producer->some_refused = false;
    return result;
}

/* Also what was decided before the session ended. */
static void look_last(ipc_producer *producer)
{
    int over = port_over(&producer->port);
    if (over == 0 || over == -EPIPE)
        take_in(producer);
}

static bool next_refusal(ipc_producer *producer, struct ipc_refusal *ret)
{
    return take_refusal(producer, &producer->refusals, ret) ||
           (tell_undecided(producer) && take_refusal(producer, &producer->refusals, ret));
}

uint64_t ipc_producer_confirmed(ipc_producer *producer)
{
    if (!producer || guard_foreign(producer->port.handle.connection))
        return 0;
    look_last(producer);
    return producer->decided;
}

int ipc_producer_next_refusal(ipc_producer *producer, struct ipc_refusal *ret)
{
    if (!producer || !ret)
        return -EINVAL;
    if (guard_foreign(producer->port.handle.connection))
        return -ECHILD;
    if (producer->refusal_count == 0)
        look_last(producer);
    return next_refusal(producer, ret);
}

/* Something that dispatch has not told. */
static int look_news(struct port *port, uint64_t told)
{
    ipc_producer *producer = producer_of(port);
    int result = take_in(producer);
    if (result == -ENOBUFS || producer->refusal_count > 0)
        return 1;
    return result < 0 ? result : producer->decided > told;
}

int ipc_producer_dispatch(ipc_producer *producer)
{
    if (!producer)
        return -EINVAL;
    int over = enter(producer);
    if (over < 0 && over != -EPIPE)
        return over;
    lane_writer_ring_held(&producer->port.writer);
    int result = take_in(producer);
    if (result < 0 && result != -ENOBUFS)
        return result;
    struct ipc_refusal refusal;
    while (producer->refused && next_refusal(producer, &refusal))
        producer->refused(producer->context, &refusal);
    bool more = producer->decided > producer->told;
    producer->told = producer->decided;
    if (more && producer->confirmed)
        producer->confirmed(producer->context, producer->told);
    if (over < 0)
        return over;
    if (producer->port.set >= 0)
        result = port_quiet(&producer->port, look_news, producer->told, producer->told + 1);
    return result < 0 && result != -ENOBUFS ? result : 0;
}

int ipc_producer_fd(ipc_producer *producer)
{
    return producer ? port_fd(&producer->port) : -EINVAL;
}

/* ---- sending ---------------------------------------------------------------------------------------------
 * */

static int look_room(struct port *port, uint64_t stride)
{
    int result = take_in(producer_of(port));
    return result < 0 ? result : lane_writer_make_room(&port->writer, (uint32_t)stride) == 0;
}

static int wait_for_room(ipc_producer *producer, uint32_t size, uint64_t deadline)
{
    producer->waits++;
    return port_wait_room(&producer->port, look_room, ipc_record_stride(size), deadline);
}

static inline int reserve(ipc_producer *producer, uint64_t size, int64_t timeout_ns, unsigned char **body)
{
    if (__builtin_expect(size > producer->message_size_max, 0))
        return -EMSGSIZE;
    int result = lane_writer_reserve(&producer->port.writer, (uint32_t)size, body);
    if (__builtin_expect(result != -EAGAIN || timeout_ns == 0, 1))
        return result;
    result = wait_for_room(producer, (uint32_t)size, lane_deadline(timeout_ns));
    return result < 0 ? result : lane_writer_reserve(&producer->port.writer, (uint32_t)size, body);
}

/* A message's ticket is the position behind the start of its record, so that everything below a cursor has a
 * ticket that is not greater than the cursor, and no ticket is 0. */
static inline void commit(ipc_producer *producer, uint32_t size, uint32_t flags, bool more, uint64_t *ticket)
{
    struct lane_writer *writer = &producer->port.writer;
    if (ticket)
        *ticket = writer->position + 1;
    lane_writer_commit_more(writer, size, flags, more);
}

int ipc_producer_send(ipc_producer *producer, const void *data, size_t size, int64_t timeout_ns,
                      uint64_t *ticket)
{
    if (__builtin_expect(!producer || (!data && size), 0))
        return -EINVAL;
    unsigned char *body = NULL;
    int result = enter_sending(producer);
    if (__builtin_expect(result >= 0, 1))
        result = reserve(producer, size, timeout_ns, &body);
    if (__builtin_expect(result < 0, 0))
        return result;
    lane_fetch(body, size);
    lane_copy_in(body, data, size);
    commit(producer, (uint32_t)size, 0, false, ticket);
    return 0;
}

int ipc_producer_ring(ipc_producer *producer)
{
    if (!producer)
        return -EINVAL;
    int result = enter(producer);
    if (result == 0)
        lane_writer_ring_held(&producer->port.writer);
    return result;
}

static inline bool is_more(const struct ipc_send *how)
{
    return how && (how->flags & IPC_SEND_MORE);
}

/* Open a message: headers and room for `size` bytes of payload. */
static int open_message(ipc_producer *producer, uint64_t size, const struct ipc_send *how, int64_t timeout_ns,
                        uint32_t *headers, unsigned char **body)
{
    int64_t block = send_block_size(how);
    if (block < 0)
        return (int)block;
    int result = enter_sending(producer);
    if (result >= 0)
        result = reserve(producer, (uint64_t)block + size, timeout_ns, body);
    if (result == 0 && block)
        send_block_put(how, *body, (uint32_t)block);
    *headers = (uint32_t)block;
    return result;
}

int ipc_producer_sendv(ipc_producer *producer, const struct iovec *pieces, int piece_count,
                       const struct ipc_send *how, int64_t timeout_ns, uint64_t *ticket)
{
    if (!producer || piece_count < 0 || (piece_count && !pieces))
        return -EINVAL;
    uint64_t size = 0;
    for (int i = 0; i < piece_count; i++) {
        if (pieces[i].iov_len > IPC_MAX_MESSAGE_SIZE)
            return -EMSGSIZE;
        size += pieces[i].iov_len;
    }
    uint32_t headers;
    unsigned char *body;
    int result = open_message(producer, size, how, timeout_ns, &headers, &body);
    if (result < 0)
        return result;
    unsigned char *at = body + headers;
    for (int i = 0; i < piece_count; i++) {
        if (pieces[i].iov_len)
            lane_copy_in(at, pieces[i].iov_base, pieces[i].iov_len);
        at += pieces[i].iov_len;
    }
    commit(producer, headers + (uint32_t)size, headers ? IPC_RECORD_HEADERS : 0, is_more(how), ticket);
    return 0;
}

/* Send as many messages as there is room for, at most a quarter of the ring, by one commit. Returns how many;
 * 0: no room; -EMSGSIZE the first one is too large. */
static ssize_t send_part(ipc_producer *producer, const struct iovec *messages, size_t count,
                         const struct ipc_send *how, uint32_t block, uint64_t *ticket)
{
    struct lane_writer *writer = &producer->port.writer;
    struct lane_batch batch = lane_batch_begin(writer);
    const uint64_t end = writer->position + writer->ring_size / 4;
    ssize_t result = 0;
    while (batch.count < count && (batch.count == 0 || batch.position < end)) {
        const struct iovec *message = &messages[batch.count];
        unsigned char *body;
        if (message->iov_len > producer->message_size_max - block) {
            result = -EMSGSIZE;
            break;
        }
        uint32_t size = block + (uint32_t)message->iov_len;
        if (lane_batch_reserve(writer, &batch, size, &body) < 0)
            break;
        lane_fetch(body, size);
        if (block)
            send_block_put(how, body, block);
        if (message->iov_len)
            lane_copy_in(body + block, message->iov_base, message->iov_len);
        if (ticket)
            *ticket = batch.position + 1;
        lane_batch_put(writer, &batch, size, block ? IPC_RECORD_HEADERS : 0);
    }
    lane_batch_commit_more(writer, &batch, is_more(how));
    return batch.count ? (ssize_t)batch.count : result;
}

ssize_t ipc_producer_send_batch(ipc_producer *producer, const struct iovec *messages, size_t count,
                                const struct ipc_send *how, int64_t timeout_ns, uint64_t *ticket)
{
    if (!producer || !messages || count == 0 || (how && how->id_size))
        return -EINVAL;
    int64_t block = send_block_size(how);
    if (block < 0)
        return block;
    if (block > producer->message_size_max)
        return -EMSGSIZE;
    uint64_t deadline = timeout_ns > 0 ? lane_deadline(timeout_ns) : LANE_NEVER;
    ssize_t result = enter_sending(producer);
    size_t done = 0;
    while (result >= 0 && done < count) {
        result = send_part(producer, messages + done, count - done, how, (uint32_t)block, ticket);
        if (result > 0) {
            done += (size_t)result;
        } else if (result == 0) {
            uint32_t size = (uint32_t)block + (uint32_t)messages[done].iov_len;
            result = timeout_ns == 0 ? -EAGAIN : wait_for_room(producer, size, deadline);
        }
    }
    return done ? (ssize_t)done : result;
}

int ipc_producer_loan(ipc_producer *producer, size_t size_max, const struct ipc_send *how, int64_t timeout_ns,
                      void **ret)
{
    if (!producer || !ret)
        return -EINVAL;
    if (size_max > producer->message_size_max)
        return -EMSGSIZE;
    uint32_t headers;
    unsigned char *body;
    int result = open_message(producer, size_max, how, timeout_ns, &headers, &body);
    if (result < 0)
        return result;
    producer->loan_open = true;
    producer->loan_size = (uint32_t)size_max;
    producer->loan_headers = headers;
    producer->loan_more = is_more(how);
    *ret = body + headers;
    return 0;
}

/* The end of a loan. */
static int end_loan(ipc_producer *producer, size_t size)
{
    if (!producer)
        return -EINVAL;
    if (guard_foreign(producer->port.handle.connection))
        return -ECHILD;
    if (!producer->loan_open || size > producer->loan_size)
        return -EINVAL;
    producer->loan_open = false;
    return 0;
}

int ipc_producer_commit(ipc_producer *producer, size_t size, uint64_t *ticket)
{
    int result = end_loan(producer, size);
    if (result == 0)
        result = enter(producer);
    if (result < 0)
        return result;
    uint32_t headers = producer->loan_headers;
    commit(producer, headers + (uint32_t)size, headers ? IPC_RECORD_HEADERS : 0, producer->loan_more, ticket);
    return 0;
}

int ipc_producer_abort(ipc_producer *producer)
{
    return end_loan(producer, 0);
}

int ipc_producer_stats(ipc_producer *producer, struct ipc_producer_stats *ret)
{
    if (!producer || !ret)
        return -EINVAL;
    int result = enter(producer);
    if (result == -ECHILD)
        return result;
    if (result == 0)
        take_in(producer);
    const struct lane_writer *writer = &producer->port.writer;
    *ret = (struct ipc_producer_stats){.sent = writer->sequence,
                                       .bytes = writer->position,
                                       .undecided_bytes = writer->position - producer->decided,
                                       .refused = producer->refused_count,
                                       .duplicates = producer->duplicates,
                                       .waits = producer->waits,
                                       .sleeps = producer->port.sleeps,
                                       .rings = writer->rings,
                                       .net = producer->port.net,
                                       .message_size_max = producer->message_size_max,
                                       .ring_size = writer->ring_size};
    return 0;
}
