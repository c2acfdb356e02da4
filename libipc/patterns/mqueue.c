/* SPDX-License-Identifier: Apache-2.0
 *
 * Envelopes in mqueues: proto/mq.proto. Everything that comes out of an mqueue is a stranger's: unpacking takes its memory
 * from an arena that is in proportion to what came, and pieces are gathered for a few messages at a time, in memory that
 * grows with what is there and not with what was announced.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <ipc/mq.h>

#include "mq.pb-c.h"
#include "proto/limits.h"

#define MAGIC          UINT32_C(0x31514d49)
#define ARENA_SPARE    ((size_t)32768) /* beside twice the message: for 64 headers, and what protobuf-c needs */
#define PIECE_ENVELOPE ((size_t)64)    /* at most, around its data */
#define PIECE_LEAST    ((size_t)128)
#define GATHERED_MAX   16u
#define TEXT_MAX       255u

struct buffer {
    unsigned char *bytes;
    size_t capacity;
};

/* A message of which not all pieces are there. */
struct gathered {
    struct buffer buffer;
    uint64_t of, used; /* 0: free; used counts up */
    size_t size, have;
};

struct ipc_mq {
    mqd_t mqueue;
    size_t message_size, message_size_max;
    struct buffer raw; /* a message of the mqueue */

    ProtobufCAllocator allocator;
    struct buffer arena;
    size_t arena_used;
    struct ipc_header headers[IPC_MAX_HEADERS];

    struct buffer packed, started; /* to be sent; and that of which pieces were sent */
    size_t started_size, started_at;
    uint64_t started_of;

    struct gathered gathered[GATHERED_MAX];
    uint64_t uses;
    struct ipc_mq_stats stats;
};

static int buffer_fit(struct buffer *buffer, size_t size)
{
    if (size <= buffer->capacity)
        return 0;
    unsigned char *larger = realloc(buffer->bytes, size);
    if (!larger)
        return -ENOMEM;
    *buffer = (struct buffer){larger, size};
    return 0;
}

static void *arena_alloc(void *data, size_t size)
{
    struct ipc_mq *mq = data;
    if (size > mq->arena.capacity - mq->arena_used)
        return NULL;
    void *memory = mq->arena.bytes + mq->arena_used;
    size_t rounded = (size + 15) & ~(size_t)15, left = mq->arena.capacity - mq->arena_used;
    mq->arena_used += rounded < left ? rounded : left;
    return memory;
}

static void arena_free(void *data, void *memory)
{
    (void)data;
    (void)memory;
}

int ipc_mq_open(ipc_mq **ret, mqd_t mqueue, const struct ipc_mq_options *options)
{
    const struct ipc_mq_options defaults = IPC_MQ_OPTIONS_INIT, *how = options ? options : &defaults;
    struct mq_attr attributes = {.mq_msgsize = 0};
    if (!ret || how->size != sizeof(*how) || how->message_size_max == 0)
        return -EINVAL;
    if (mqueue != (mqd_t)-1 && mq_getattr(mqueue, &attributes) < 0)
        return -errno;
    struct ipc_mq *mq = calloc(1, sizeof(*mq));
    if (!mq)
        return -ENOMEM;
    mq->mqueue = mqueue;
    mq->message_size = (size_t)attributes.mq_msgsize;
    mq->message_size_max = how->message_size_max;
    mq->allocator = (ProtobufCAllocator){.alloc = arena_alloc, .free = arena_free, .allocator_data = mq};
    if (getrandom(&mq->started_of, sizeof(mq->started_of), 0) != (ssize_t)sizeof(mq->started_of) ||
        buffer_fit(&mq->raw, mq->message_size + 1) < 0) {
        (void)ipc_mq_close(mq);
        return -ENOMEM;
    }
    *ret = mq;
    return 0;
}

ipc_mq *ipc_mq_close(ipc_mq *mq)
{
    if (!mq)
        return NULL;
    for (unsigned i = 0; i < GATHERED_MAX; i++)
        free(mq->gathered[i].buffer.bytes);
    free(mq->raw.bytes);
    free(mq->arena.bytes);
    free(mq->packed.bytes);
    free(mq->started.bytes);
    free(mq);
    return NULL;
}

/* ---- packing --------------------------------------------------------------------------------------------- */

static bool text_fits(const char *text)
{
    return !text || strnlen(text, TEXT_MAX + 1) <= TEXT_MAX;
}

static char *text_of(const char *text)
{
    return (char *)(uintptr_t)(text ? text : "");
}

static ProtobufCBinaryData bytes_of(const void *data, size_t size)
{
    return (ProtobufCBinaryData){.len = size, .data = (uint8_t *)(uintptr_t)data};
}

static int check(const struct ipc_mq_message *message)
{
    if (!message || message->size != sizeof(*message) || (message->data_size && !message->data) ||
        message->kind > IPC_MQ_REPLY || (message->id_size && !message->id) ||
        (message->key_size && !message->key) || (message->header_count && !message->headers))
        return -EINVAL;
    if (message->header_count > IPC_MAX_HEADERS || message->id_size > TEXT_MAX ||
        message->key_size > TEXT_MAX || !text_fits(message->name) || !text_fits(message->reply_to) ||
        !text_fits(message->content_type) || !text_fits(message->text))
        return -E2BIG;
    for (size_t i = 0; i < message->header_count; i++) {
        const struct ipc_header *header = &message->headers[i];
        if (!header->name || !*header->name || (header->value_size && !header->value))
            return -EINVAL;
        if (!text_fits(header->name) || header->value_size > UINT16_MAX)
            return -E2BIG;
    }
    return 0;
}

/* Pack it to where room(context, size) says; NULL: nowhere. Its size, or a negative errno. */
static ssize_t pack(const struct ipc_mq_message *message, void *context,
                    unsigned char *(*room)(void *context, size_t size))
{
    Ipc__Mq__Header headers[IPC_MAX_HEADERS], *pointers[IPC_MAX_HEADERS];
    Ipc__Mq__Envelope envelope = IPC__MQ__ENVELOPE__INIT;
    int result = check(message);
    if (result < 0)
        return result;
    envelope.magic = MAGIC;
    envelope.kind = (Ipc__Mq__Kind)message->kind;
    envelope.name = text_of(message->name);
    envelope.id = bytes_of(message->id, message->id_size);
    envelope.key = bytes_of(message->key, message->key_size);
    envelope.reply_to = text_of(message->reply_to);
    envelope.content_type = text_of(message->content_type);
    envelope.n_headers = message->header_count;
    envelope.headers = pointers;
    for (size_t i = 0; i < message->header_count; i++) {
        ipc__mq__header__init(&headers[i]);
        headers[i].name = text_of(message->headers[i].name);
        headers[i].value = bytes_of(message->headers[i].value, message->headers[i].value_size);
        pointers[i] = &headers[i];
    }
    envelope.ttl_ns = message->ttl_ns;
    envelope.delay_ns = message->delay_ns;
    envelope.attempt = message->attempt;
    envelope.code = message->code;
    envelope.text = text_of(message->text);
    envelope.body = bytes_of(message->data, message->data_size);
    size_t size = ipc__mq__envelope__get_packed_size(&envelope);
    if (!room)
        return (ssize_t)size;
    unsigned char *to = room(context, size);
    if (!to)
        return -EMSGSIZE;
    ipc__mq__envelope__pack(&envelope, to);
    return (ssize_t)size;
}

static unsigned char *room_given(void *context, size_t size)
{
    const struct buffer *given = context;
    return size <= given->capacity ? given->bytes : NULL;
}

static unsigned char *room_grown(void *context, size_t size)
{
    struct buffer *buffer = context;
    return buffer_fit(buffer, size) == 0 ? buffer->bytes : NULL;
}

ssize_t ipc_mq_pack(const struct ipc_mq_message *message, void *buffer, size_t capacity)
{
    struct buffer given = {buffer, capacity};
    return pack(message, &given, buffer ? room_given : NULL);
}

/* ---- unpacking ------------------------------------------------------------------------------------------- */

static const char *text_or_null(const char *text)
{
    return text && *text ? text : NULL;
}

static const void *data_or_null(ProtobufCBinaryData data)
{
    return data.len ? data.data : NULL;
}

/* NULL: it is none, or takes more memory than an honest one. */
static const Ipc__Mq__Envelope *parse(struct ipc_mq *mq, const void *data, size_t size)
{
    mq->arena_used = 0;
    const Ipc__Mq__Envelope *envelope = ipc__mq__envelope__unpack(&mq->allocator, size, data);
    return envelope && envelope->magic == MAGIC && envelope->n_headers <= IPC_MAX_HEADERS ? envelope : NULL;
}

static int show(struct ipc_mq *mq, const Ipc__Mq__Envelope *envelope, struct ipc_mq_message *ret)
{
    struct ipc_mq_message message = {
        .size = sizeof(message),
        .kind = (enum ipc_mq_kind)envelope->kind,
        .data = envelope->body.data,
        .data_size = envelope->body.len,
        .name = text_or_null(envelope->name),
        .id = data_or_null(envelope->id),
        .id_size = envelope->id.len,
        .key = data_or_null(envelope->key),
        .key_size = envelope->key.len,
        .reply_to = text_or_null(envelope->reply_to),
        .content_type = text_or_null(envelope->content_type),
        .headers = mq->headers,
        .header_count = envelope->n_headers,
        .ttl_ns = envelope->ttl_ns,
        .delay_ns = envelope->delay_ns,
        .attempt = envelope->attempt,
        .code = envelope->code,
        .text = text_or_null(envelope->text),
    };
    for (size_t i = 0; i < envelope->n_headers; i++)
        mq->headers[i] = (struct ipc_header){envelope->headers[i]->name, envelope->headers[i]->value.data,
                                             envelope->headers[i]->value.len};
    if ((unsigned)envelope->kind > IPC_MQ_REPLY || envelope->piece || check(&message) < 0)
        return -EBADMSG;
    *ret = message;
    mq->stats.received++;
    return 1;
}

static void gathered_free(struct gathered *gathered)
{
    free(gathered->buffer.bytes);
    *gathered = (struct gathered){.used = 0};
}

static void give_up(struct ipc_mq *mq, struct gathered *gathered)
{
    if (gathered->used)
        mq->stats.incomplete++;
    gathered_free(gathered);
}

/* Where that message is gathered, or where one can be. */
static struct gathered *gathered_of(struct ipc_mq *mq, uint64_t of)
{
    struct gathered *oldest = &mq->gathered[0];
    for (unsigned i = 0; i < GATHERED_MAX; i++) {
        if (mq->gathered[i].used && mq->gathered[i].of == of)
            return &mq->gathered[i];
        if (mq->gathered[i].used < oldest->used)
            oldest = &mq->gathered[i];
    }
    return oldest;
}

/* 1: the message is whole; 0; or a negative errno. */
static int gather(struct ipc_mq *mq, const Ipc__Mq__Piece *piece, struct gathered **ret)
{
    struct gathered *gathered = gathered_of(mq, piece->of);
    bool known = gathered->used && gathered->of == piece->of;
    if (piece->size > mq->message_size_max)
        return -EMSGSIZE;
    if (piece->offset == 0) {
        give_up(mq, gathered);
        *gathered = (struct gathered){.of = piece->of, .size = piece->size};
    } else if (!known) {
        return -EBADMSG;
    }
    if (piece->offset != gathered->have || piece->size != gathered->size || piece->data.len == 0 ||
        piece->data.len > gathered->size - gathered->have) {
        give_up(mq, gathered);
        return -EBADMSG;
    }
    size_t needed = gathered->have + piece->data.len, doubled = 2 * gathered->buffer.capacity;
    if (doubled > gathered->size)
        doubled = gathered->size;
    if (buffer_fit(&gathered->buffer, needed > doubled ? needed : doubled) < 0) {
        give_up(mq, gathered);
        return -ENOMEM;
    }
    memcpy(gathered->buffer.bytes + gathered->have, piece->data.data, piece->data.len);
    gathered->have = needed;
    gathered->used = ++mq->uses;
    *ret = gathered;
    return gathered->have == gathered->size;
}

static int unpack(struct ipc_mq *mq, const void *data, size_t size, struct ipc_mq_message *ret)
{
    struct gathered *gathered;
    if (buffer_fit(&mq->arena, 2 * size + ARENA_SPARE) < 0)
        return -ENOMEM;
    const Ipc__Mq__Envelope *envelope = parse(mq, data, size);
    if (!envelope)
        return -EBADMSG;
    if (!envelope->piece)
        return show(mq, envelope, ret);
    mq->stats.pieces++;
    int result = gather(mq, envelope->piece, &gathered);
    if (result <= 0)
        return result;
    result = buffer_fit(&mq->arena, 2 * gathered->size + ARENA_SPARE);
    if (result == 0) {
        envelope = parse(mq, gathered->buffer.bytes, gathered->size);
        result = envelope ? show(mq, envelope, ret) : -EBADMSG;
    }
    gathered_free(gathered);
    return result;
}

int ipc_mq_unpack(ipc_mq *mq, const void *data, size_t size, struct ipc_mq_message *ret)
{
    if (!mq || !ret || (size && !data))
        return -EINVAL;
    int result = unpack(mq, data, size, ret);
    if (result == -EBADMSG || result == -EMSGSIZE)
        mq->stats.bad++;
    return result;
}

int ipc_mq_header(const struct ipc_mq_message *message, const char *name, const void **value,
                  size_t *value_size)
{
    if (!message || !name || !value || !value_size)
        return -EINVAL;
    for (size_t i = 0; i < message->header_count; i++) {
        if (strcmp(message->headers[i].name, name) == 0) {
            *value = message->headers[i].value;
            *value_size = message->headers[i].value_size;
            return 0;
        }
    }
    return -ENOENT;
}

/* ---- the mqueue ------------------------------------------------------------------------------------------ */

static int64_t now_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* When a wait from now on ends; IPC_FOREVER: never. */
static int64_t until_ns(int64_t timeout_ns)
{
    int64_t now = timeout_ns > 0 ? now_ns() : 0;
    return timeout_ns > INT64_MAX - now ? IPC_FOREVER : timeout_ns > 0 ? now + timeout_ns : timeout_ns;
}

/* An mqueue's own timeouts are of the clock that is set: it is asked without waiting, and poll(2) waits. 0: look
 * again; or what the call returns. */
static int wait_for(const struct ipc_mq *mq, short events, int64_t end_ns)
{
    struct pollfd wanted = {.fd = (int)mq->mqueue, .events = events};
    struct timespec left = {0};
    if (end_ns == 0)
        return -EAGAIN;
    if (end_ns > 0) {
        int64_t left_ns = end_ns - now_ns();
        if (left_ns <= 0)
            return -ETIMEDOUT;
        left = (struct timespec){.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
    }
    int result = ppoll(&wanted, 1, end_ns > 0 ? &left : NULL, NULL);
    return result < 0 && errno != EINTR ? -errno : 0;
}

static const struct timespec at_once = {0};

static int put(struct ipc_mq *mq, const void *data, size_t size, unsigned priority, int64_t end_ns)
{
    while (mq_timedsend(mq->mqueue, data, size, priority, &at_once) < 0) {
        int result = errno == EAGAIN || errno == ETIMEDOUT ? wait_for(mq, POLLOUT, end_ns)
                     : errno == EINTR                      ? 0
                                                           : -errno;
        if (result < 0)
            return result;
    }
    return 0;
}

static int put_pieces(struct ipc_mq *mq, unsigned priority, int64_t end_ns)
{
    while (mq->started_at < mq->started_size) {
        Ipc__Mq__Envelope envelope = IPC__MQ__ENVELOPE__INIT;
        Ipc__Mq__Piece piece = IPC__MQ__PIECE__INIT;
        size_t left = mq->started_size - mq->started_at, most = mq->message_size - PIECE_ENVELOPE;
        envelope.magic = MAGIC;
        envelope.piece = &piece;
        piece.of = mq->started_of;
        piece.size = mq->started_size;
        piece.offset = mq->started_at;
        piece.data = bytes_of(mq->started.bytes + mq->started_at, left < most ? left : most);
        int result =
            put(mq, mq->raw.bytes, ipc__mq__envelope__pack(&envelope, mq->raw.bytes), priority, end_ns);
        if (result < 0)
            return result;
        mq->started_at += piece.data.len;
        mq->stats.pieces++;
    }
    mq->started_size = mq->started_at = 0;
    return 0;
}

int ipc_mq_send(ipc_mq *mq, const struct ipc_mq_message *message, int64_t timeout_ns)
{
    if (!mq || timeout_ns < IPC_FOREVER)
        return -EINVAL;
    int64_t end_ns = until_ns(timeout_ns);
    ssize_t size = pack(message, &mq->packed, room_grown);
    if (size < 0)
        return size == -EMSGSIZE ? -ENOMEM : (int)size;
    int result;
    if ((size_t)size <= mq->message_size) {
        result = put(mq, mq->packed.bytes, (size_t)size, message->priority, end_ns);
        if (result == 0)
            mq->started_size = 0;
    } else if (mq->message_size < PIECE_LEAST) {
        return -EMSGSIZE;
    } else {
        if (mq->started_size != (size_t)size ||
            memcmp(mq->started.bytes, mq->packed.bytes, (size_t)size) != 0) {
            const struct buffer other = mq->started;
            mq->started = mq->packed;
            mq->packed = other;
            mq->started_size = (size_t)size;
            mq->started_at = 0;
            mq->started_of++;
        }
        result = put_pieces(mq, message->priority, end_ns);
    }
    if (result == 0)
        mq->stats.sent++;
    return result;
}

int ipc_mq_receive(ipc_mq *mq, struct ipc_mq_message *ret, int64_t timeout_ns)
{
    if (!mq || !ret || timeout_ns < IPC_FOREVER)
        return -EINVAL;
    for (int64_t end_ns = until_ns(timeout_ns);;) {
        unsigned priority;
        ssize_t size =
            mq_timedreceive(mq->mqueue, (char *)mq->raw.bytes, mq->message_size, &priority, &at_once);
        int result;
        if (size >= 0) {
            result = ipc_mq_unpack(mq, mq->raw.bytes, (size_t)size, ret);
            if (result == 1)
                ret->priority = priority;
            if (result != 0)
                return result < 0 ? result : 0;
            continue;
        }
        result = errno == EAGAIN || errno == ETIMEDOUT ? wait_for(mq, POLLIN, end_ns)
                 : errno == EINTR                      ? 0
                                                       : -errno;
        if (result < 0)
            return result;
    }
}

int ipc_mq_stats(const ipc_mq *mq, struct ipc_mq_stats *ret)
{
    if (!mq || !ret)
        return -EINVAL;
    *ret = mq->stats;
    ret->open = 0;
    for (unsigned i = 0; i < GATHERED_MAX; i++)
        ret->open += mq->gathered[i].used != 0;
    return 0;
}
