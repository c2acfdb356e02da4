/* SPDX-License-Identifier: Apache-2.0
 *
 * Publishing: copy, gather, batch, loan; headers; and waiting for room.
 *
 * Mail is looked at before a message (a reader that was announced gets it) and after its commit (a reader that
 * slept before it was announced is woken for it: see wire.md, "Pairings and notices").
 */
#include "libipc/patterns/publish.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "proto/fields.h"

/* How long a writer polls for room before it sleeps. */
#define ROOM_SPIN_NS UINT64_C(50000)

/* Nothing tells a publisher in memory that both ipcd and ipcd-run are gone. A clock per message would cost too much, so
 * it is read with what happens anyway: after a system call that woke somebody, and now and then in a stream. */
#define LOOK_EVERY 64u
#define FLAGS      (IPC_PUBLISH_REJECT | IPC_PUBLISH_DROP_NEWEST | IPC_PUBLISH_MORE)
static inline bool look_is_due(const struct ipc_publisher *publisher)
{
    const struct lane_writer *writer = &publisher->writer;
    return writer->rings != publisher->rings_seen || writer->peer_count == 0 ||
           writer->sequence % LOOK_EVERY == 0;
}

static inline int enter(struct ipc_publisher *publisher)
{
    int result = handle_enter(&publisher->handle);
    if (__builtin_expect(result < 0, 0))
        return result;
    if (__builtin_expect(publisher->looks, 0) && look_is_due(publisher))
        publisher_look(publisher);
    if (__builtin_expect(handle_has_mail(&publisher->handle), 0))
        publisher_news(publisher);
    if (__builtin_expect(handle_ended(&publisher->handle), 0)) {
        result = publisher_revive(publisher);
        if (result < 0)
            return result;
    }
    if (__builtin_expect(publisher->loan_open, 0))
        return -EBUSY;
    return __builtin_expect(publisher->renew, 0) ? publisher_renew(publisher) : 0;
}

static inline void leave(struct ipc_publisher *publisher)
{
    if (__builtin_expect(handle_has_mail(&publisher->handle), 0))
        publisher_news(publisher);
    if (__builtin_expect(publisher->writer.faulted, 0))
        publisher_report_faults(publisher);
}

/* Poll for a quarter of the ring, for a while. */
static bool spin_for_room(struct ipc_publisher *publisher, uint32_t stride, uint64_t until)
{
    uint32_t comfortable = publisher->writer.ring_size / 4;
    if (comfortable < stride)
        comfortable = stride;
    unsigned looks = 0;
    do {
        for (int i = 0; i < 16; i++)
            spin_relax();
        if (lane_writer_make_room(&publisher->writer, comfortable) == 0)
            return true;
        if (++looks > SPIN_BLIND)
            spin_yield();
    } while (!handle_has_mail(&publisher->handle) && lane_now() < until);
    return lane_writer_has_room(&publisher->writer, stride);
}

/* How often it is asked whether a message is still wanted. */
#define UNWANTED_NS UINT64_C(10000000)

/* Readers that pin are in the way. Wait for them, up to block_max_ns, then go on without them. */
static int wait_for_room(struct ipc_publisher *publisher, uint32_t stride)
{
    struct lane_writer *writer = &publisher->writer;
    struct ipc_connection *connection = publisher->handle.connection;
    uint64_t now = lane_now();
    uint64_t deadline = lane_deadline(publisher->block_max_ns);
    uint64_t check = now + (publisher->looks ? LOOK_NS : IPC_NET_NS);
    bool timed_out = false;
    publisher->waits++;
    for (;;) {
        if (spin_for_room(publisher, stride, now + ROOM_SPIN_NS) ||
            lane_writer_make_room(writer, stride) == 0) {
#ifndef IPC_PLANT_NET_UNCOUNTED
            publisher->net += timed_out;
#endif
            return 0;
        }
        if (publisher->unwanted && publisher->unwanted(publisher->unwanted_about))
            return -ECANCELED;
        struct lane_word words[3];
        handle_words(&publisher->handle, words + 1);
        if (handle_has_mail(&publisher->handle))
            publisher_news(publisher);
        if (publisher->renew)
            return publisher_renew(publisher); /* a fresh lane has room */
        if (handle_ended(&publisher->handle)) {
            int result = publisher_revive(publisher);
            if (result < 0 || !handle_ended(&publisher->handle))
                return result; /* a fresh lane has room */
            check = publisher->look_at_ns;
        }
        const struct lane_peer *slowest;
        uint64_t raw;
        uint64_t want = lane_writer_want(writer, stride, &slowest, &raw);
        now = lane_now();
        timed_out = false;
        if (slowest && now < deadline) {
            words[0] = (struct lane_word){lane_low_half(&slowest->cell->cursor), (uint32_t)raw, false};
            uint64_t net = now + IPC_NET_NS, until = deadline < net ? deadline : net;
            if (publisher->looks && check < until) /* else the net is to be seen at work */
                until = check;
            if (publisher->unwanted && now + UNWANTED_NS < until)
                until = now + UNWANTED_NS;
            timed_out = lane_sleep(words, 3, until) == -ETIMEDOUT && until == net;
            now = lane_now();
        }
        lane_writer_want_clear(writer);
        if (now >= check) { /* a broker that was killed sends no mail */
            connection_look(connection, &check);
        }
        if (now >= deadline) {
            lane_writer_fault_slow(writer, want);
            publisher_report_faults(publisher);
            deadline = LANE_NEVER;
        }
    }
}

/* Room for a body, waiting for it as the flags say. 0; 1: the message is dropped; negative errno. */
static inline int reserve(struct ipc_publisher *publisher, uint64_t size, unsigned flags,
                          unsigned char **body)
{
    if (__builtin_expect(size > publisher->message_size_max, 0))
        return -EMSGSIZE;
    int result = lane_writer_reserve(&publisher->writer, (uint32_t)size, body);
    if (__builtin_expect(result != -EAGAIN, 1))
        return result;
    if (flags & IPC_PUBLISH_DROP_NEWEST) {
        publisher->dropped++;
        return 1;
    }
    if (flags & IPC_PUBLISH_REJECT)
        return -EAGAIN;
    result = wait_for_room(publisher, ipc_record_stride((uint32_t)size));
    return result < 0 ? result : lane_writer_reserve(&publisher->writer, (uint32_t)size, body);
}

static uint64_t timestamp(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Size of the header block that a message needs; 0: none; -EINVAL, -E2BIG. */
int64_t publisher_headers_size(const struct ipc_publisher *publisher, const struct ipc_publish *how)
{
    size_t fields = publisher->flags & IPC_PUBLISHER_TIMESTAMP ? ipc_field_size(0, sizeof(uint64_t)) : 0;
    if (how) {
        if (how->size != sizeof(*how) || (how->flags & ~FLAGS))
            return -EINVAL;
        if (how->header_count > IPC_MAX_HEADERS)
            return -E2BIG;
        if (how->content_type) {
            size_t size = strnlen(how->content_type, 256);
            if (size > 255)
                return -E2BIG;
            fields += ipc_field_size(0, size);
        }
        for (size_t i = 0; i < how->header_count; i++) {
            const struct ipc_header *header = &how->headers[i];
            size_t name_size = header->name ? strnlen(header->name, 256) : 0;
            if (name_size == 0 || (!header->value && header->value_size))
                return -EINVAL;
            if (name_size > 255 || header->value_size > UINT16_MAX)
                return -E2BIG;
            fields += ipc_field_size(name_size, header->value_size);
        }
    }
    size_t size = fields ? ipc_fields_block_size(fields) : 0;
    return size > IPC_MAX_HEADERS_SIZE ? -E2BIG : (int64_t)size;
}

/* Write the header block that publisher_headers_size() counted. */
void publisher_put_headers(const struct ipc_publisher *publisher, const struct ipc_publish *how,
                           unsigned char *block, uint32_t size)
{
    memset(block + size - 8, 0, 8);
    struct ipc_record_headers headers = {.size = size};
    size_t position = sizeof(headers);
    if (publisher->flags & IPC_PUBLISHER_TIMESTAMP) {
        uint64_t now = timestamp();
        ipc_field_put(
            block, &position,
            &(struct ipc_field){.kind = IPC_FIELD_TIMESTAMP, .value_size = sizeof(now), .value = &now});
        headers.count++;
    }
    if (how && how->content_type) {
        ipc_field_put(block, &position,
                      &(struct ipc_field){.kind = IPC_FIELD_CONTENT_TYPE,
                                          .value_size = (uint16_t)strlen(how->content_type),
                                          .value = how->content_type});
        headers.count++;
    }
    for (size_t i = 0; how && i < how->header_count; i++) {
        const struct ipc_header *header = &how->headers[i];
        ipc_field_put(block, &position,
                      &(struct ipc_field){.kind = IPC_FIELD_USER,
                                          .name_size = (uint8_t)strlen(header->name),
                                          .name = header->name,
                                          .value_size = (uint16_t)header->value_size,
                                          .value = header->value});
        headers.count++;
    }
    memcpy(block, &headers, sizeof(headers));
}

/* Everything but the usual message. */
__attribute__((noinline)) static int publish_any(struct ipc_publisher *publisher, const void *data,
                                                 size_t size)
{
    struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    return !publisher || (!data && size) ? -EINVAL : ipc_publisher_publishv(publisher, &piece, 1, NULL);
}

/* Somebody sleeps, or there is mail. */
__attribute__((noinline)) static int publish_seen(struct ipc_publisher *publisher, uint64_t any)
{
    lane_writer_ring_any(&publisher->writer, any);
    leave(publisher);
    return 0;
}

/* The usual message is short and plain, has room, and no news came. It makes no reader faulty, so none is looked
 * for. What is rare is called as the last thing, so that nothing has to be kept in registers over it. */
int ipc_publisher_publish(ipc_publisher *publisher, const void *data, size_t size)
{
    if (__builtin_expect(!publisher || !data || handle_enter(&publisher->handle) < 0 ||
                             handle_has_mail(&publisher->handle) || handle_ended(&publisher->handle) ||
                             size >= publisher->plain_size_end || !lane_copies(size) ||
                             !lane_writer_has_room(&publisher->writer, ipc_record_stride((uint32_t)size)),
                         0))
        return publish_any(publisher, data, size);
    unsigned char *body = lane_writer_body(&publisher->writer, publisher->writer.position);
    lane_fetch(body, size);
    lane_copy_in(body, data, size);
    lane_writer_put(&publisher->writer, (uint32_t)size, 0);
    uint64_t any = lane_writer_look(&publisher->writer);
    if (__builtin_expect(any != 0 || handle_has_mail(&publisher->handle), 0))
        return publish_seen(publisher, any);
    return 0;
}

int publisher_open_message(struct ipc_publisher *publisher, uint32_t prefix, uint64_t size,
                           const struct ipc_publish *how, uint32_t *headers, unsigned char **body)
{
    int64_t block = publisher_headers_size(publisher, how);
    if (block < 0)
        return (int)block;
    int result = enter(publisher);
    if (result < 0)
        return result;
    result = reserve(publisher, prefix + (uint64_t)block + size, how ? how->flags : 0, body);
    if (result == 0 && block)
        publisher_put_headers(publisher, how, *body + prefix, (uint32_t)block);
    *headers = (uint32_t)block;
    return result;
}

void publisher_commit(struct ipc_publisher *publisher, uint32_t size, uint32_t headers)
{
    lane_writer_commit(&publisher->writer, size, headers ? IPC_RECORD_HEADERS : 0);
    leave(publisher);
}

int ipc_publisher_publishv(ipc_publisher *publisher, const struct iovec *pieces, int piece_count,
                           const struct ipc_publish *how)
{
    if (!publisher || piece_count < 0 || (piece_count && !pieces))
        return -EINVAL;
    uint64_t size = 0;
    for (int i = 0; i < piece_count; i++) {
        if (pieces[i].iov_len > IPC_MAX_MESSAGE_SIZE)
            return -EMSGSIZE;
        size += pieces[i].iov_len;
    }
    uint32_t headers;
    unsigned char *body;
    int result = publisher_open_message(publisher, 0, size, how, &headers, &body);
    if (result != 0)
        return result < 0 ? result : 0;
    unsigned char *at = body + headers;
    lane_fetch(body, headers + (size_t)size);
    for (int i = 0; i < piece_count; i++) {
        if (pieces[i].iov_len)
            lane_copy_in(at, pieces[i].iov_base, pieces[i].iov_len);
        at += pieces[i].iov_len;
    }
    lane_writer_commit_more(&publisher->writer, headers + (uint32_t)size, headers ? IPC_RECORD_HEADERS : 0,
                            how && (how->flags & IPC_PUBLISH_MORE));
    leave(publisher);
    return 0;
}

int ipc_publisher_ring(ipc_publisher *publisher)
{
    if (!publisher)
        return -EINVAL;
    int result = handle_enter(&publisher->handle);
    if (result == 0)
        lane_writer_ring_held(&publisher->writer);
    return result;
}

/* Publish as many messages as fit into `part` bytes, all by one commit. */
static int publish_part(struct ipc_publisher *publisher, const struct iovec *messages, size_t count,
                        uint64_t part, bool more, size_t *done)
{
    struct lane_writer *writer = &publisher->writer;
    uint64_t strides = 0;
    size_t n = 0;
    for (; n < count; n++) {
        if (messages[n].iov_len > publisher->message_size_max)
            break;
        uint32_t stride = ipc_record_stride((uint32_t)messages[n].iov_len);
        if (n && strides + stride > part)
            break;
        strides += stride;
    }
    *done = 0;
    if (n == 0)
        return -EMSGSIZE;
    if (!lane_writer_has_room(writer, strides)) {
        int result = lane_writer_make_room(writer, (uint32_t)strides);
        if (result < 0)
            return result;
    }
    struct lane_batch batch = lane_batch_begin(writer);
    for (size_t i = 0; i < n; i++) {
        uint32_t size = (uint32_t)messages[i].iov_len;
        unsigned char *body = lane_writer_body(writer, batch.position);
        lane_fetch(body, size);
        if (size)
            lane_copy_in(body, messages[i].iov_base, size);
        lane_batch_put(writer, &batch, size, 0);
    }
    lane_batch_commit_more(writer, &batch, more);
    *done = n;
    return 0;
}

static ssize_t publish_each(struct ipc_publisher *publisher, const struct iovec *messages, size_t count,
                            unsigned flags)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    how.flags = flags;
    for (size_t i = 0; i < count; i++) {
        int result = ipc_publisher_publishv(publisher, &messages[i], 1, &how);
        if (result < 0)
            return i ? (ssize_t)i : result;
    }
    return (ssize_t)count;
}

ssize_t ipc_publisher_publish_batch(ipc_publisher *publisher, const struct iovec *messages, size_t count,
                                    unsigned flags)
{
    if (!publisher || !messages || count == 0 || (flags & ~FLAGS))
        return -EINVAL;
    if (publisher->flags & IPC_PUBLISHER_TIMESTAMP)
        return publish_each(publisher, messages, count, flags);
    int result = enter(publisher);
    if (result < 0)
        return result;
    const struct lane_writer *writer = &publisher->writer;
    uint64_t part = writer->ring_size / 4;
    size_t done = 0;
    while (result == 0 && done < count) {
        size_t now;
        result = publish_part(publisher, messages + done, count - done, part, flags & IPC_PUBLISH_MORE, &now);
        done += now;
        part = writer->ring_size / 4;
        if (result == -EAGAIN) {
            unsigned char *body;
            result = reserve(publisher, messages[done].iov_len, flags, &body);
            part = writer->limit - writer->position - sizeof(uint64_t); /* room for one, at least */
            if (result == 1) {                                          /* dropped */
                done++;
                result = 0;
            }
        }
    }
    leave(publisher);
    return done ? (ssize_t)done : result;
}

int ipc_publisher_loan(ipc_publisher *publisher, size_t size_max, const struct ipc_publish *how, void **ret)
{
    if (!publisher || !ret)
        return -EINVAL;
    if (size_max > publisher->message_size_max)
        return -EMSGSIZE;
    uint32_t headers;
    unsigned char *body;
    int result = publisher_open_message(publisher, 0, size_max, how, &headers, &body);
    if (result != 0)
        return result < 0 ? result : -EAGAIN;
    publisher->loan_open = true;
    publisher_set_plain(publisher);
    publisher->loan_size = (uint32_t)size_max;
    publisher->loan_headers = headers;
    publisher->loan_more = how && (how->flags & IPC_PUBLISH_MORE);
    *ret = body + headers;
    return 0;
}

int ipc_publisher_commit(ipc_publisher *publisher, size_t size)
{
    if (!publisher)
        return -EINVAL;
    int result = handle_enter(&publisher->handle);
    if (result < 0)
        return result;
    if (!publisher->loan_open || size > publisher->loan_size)
        return -EINVAL;
    publisher->loan_open = false;
    publisher_set_plain(publisher);
    if (handle_ended(&publisher->handle) && !publisher->looks)
        return -EPIPE;
    uint32_t headers = publisher->loan_headers;
    lane_writer_commit_more(&publisher->writer, headers + (uint32_t)size, headers ? IPC_RECORD_HEADERS : 0,
                            publisher->loan_more);
    leave(publisher);
    return 0;
}

int ipc_publisher_abort(ipc_publisher *publisher)
{
    if (!publisher)
        return -EINVAL;
    int result = handle_enter(&publisher->handle);
    if (result < 0)
        return result;
    if (!publisher->loan_open)
        return -EINVAL;
    publisher->loan_open = false;
    publisher_set_plain(publisher);
    return 0;
}
