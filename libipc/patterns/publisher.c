/* SPDX-License-Identifier: Apache-2.0
 *
 * Publishers: opening, closing, and the readers that come and go.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"
#include "libipc/patterns/publish.h"
#include "proto/name.h"

/* How long a publisher in a fresh lane waits for those who are to read it. */
#define RENEW_WAIT_NS INT64_C(1000000000)

static void publisher_close(struct handle *handle)
{
    ipc_publisher_close((struct ipc_publisher *)((char *)handle - offsetof(struct ipc_publisher, handle)));
}

static const struct handle_type publisher_type = {.kind = HANDLE_PUBLISHER, .close = publisher_close};

static int check_options(const struct ipc_publisher_options *options, uint32_t *ring_size,
                         struct ipc_error *error)
{
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_PUBLISHER_OPTIONS_INIT");
    if (options->flags & ~(IPC_PUBLISHER_RETAIN | IPC_PUBLISHER_TIMESTAMP))
        return error_set(error, -EINVAL, "flags 0x%x are not known", options->flags);
    if (options->message_size_max > IPC_MAX_MESSAGE_SIZE)
        return error_set(error, -EINVAL, "message_size_max is %u, the limit is %u", options->message_size_max,
                         IPC_MAX_MESSAGE_SIZE);
    if (options->ring_size > IPC_MAX_RING_SIZE)
        return error_set(error, -EINVAL, "ring_size is %u, the limit is %u", options->ring_size,
                         IPC_MAX_RING_SIZE);
    uint64_t size = options->ring_size ? options->ring_size : IPC_RING_SIZE_DEFAULT;
    uint64_t needed = 2 * ((uint64_t)options->message_size_max + sizeof(uint64_t));
    if (size < needed) {
        if (options->ring_size)
            return error_set(error, -EINVAL, "messages of %u bytes need a ring of at least %llu, not %u",
                             options->message_size_max, (unsigned long long)needed, options->ring_size);
        size = needed;
    }
    uint64_t rounded = IPC_MIN_RING_SIZE;
    while (rounded < size)
        rounded *= 2;
    *ring_size = (uint32_t)rounded;
    return 0;
}

/* Have the broker make a lane. On success the connection's lock is held, until request_done(). */
static int advertise(struct ipc_publisher *publisher, uint32_t ring_size, unsigned kind, uint64_t target,
                     struct ipc_lane **lane, const Ipc__Control__Advertised **ret, struct ipc_error *error)
{
    struct ipc_connection *connection = publisher->handle.connection;
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;
    message.topic = publisher->topic;
    message.ring_size = ring_size;
    message.kind = (Ipc__Control__Kind)kind;
    message.target = target;
    message.retain = (publisher->flags & IPC_PUBLISHER_RETAIN) != 0;
    const ProtobufCMessage *reply;
    int fd = -1;
    int result = request(connection, IPC__CONTROL__TYPE__ADVERTISE, &message.base,
                         IPC__CONTROL__TYPE__ADVERTISED, &reply, &fd, error);
    if (result < 0)
        return result;
    const Ipc__Control__Advertised *advertised = (const void *)reply;
    Ipc__Control__Unadvertise undo = IPC__CONTROL__UNADVERTISE__INIT;
    undo.lane = advertised->lane;
    ring_size = advertised->ring_size;
    void *map = NULL;
    result = lane_segment_map(&map, fd, IPC_SEGMENT_LANE, ring_size, true);
    close(fd);
    if (result < 0) {
        pump_send(connection, IPC__CONTROL__TYPE__UNADVERTISE, &undo.base);
        request_done(connection);
        error_set(error, result, "cannot map the lane of \"%s\" (%u bytes): %s", publisher->topic, ring_size,
                  strerror(-result));
        return result;
    }
    *lane = map;
    *ret = advertised;
    return 0;
}

int ipc_publisher_open(ipc_publisher **ret, ipc_connection *connection, const char *topic,
                       const struct ipc_publisher_options *options, struct ipc_error *error)
{
    uint32_t servers;
    return publisher_open(ret, connection, topic, IPC__CONTROL__KIND__KIND_TOPIC, 0, options, &servers,
                          error);
}

int publisher_open(ipc_publisher **ret, ipc_connection *connection, const char *topic, unsigned kind,
                   uint64_t target, const struct ipc_publisher_options *options, uint32_t *servers,
                   struct ipc_error *error)
{
    const struct ipc_publisher_options defaults = IPC_PUBLISHER_OPTIONS_INIT;
    uint32_t ring_size = 0;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    if (guard_foreign(connection))
        return error_set(error, -ECHILD,
                         "the connection belongs to the parent process: open one of your own");
    const char *fault = ipc_name_check(topic, false);
    if (fault)
        return error_set(error, -EINVAL, "bad name \"%.100s\": %s", topic ? topic : "", fault);
    if (!options)
        options = &defaults;
    int result = check_options(options, &ring_size, error);
    if (result < 0)
        return result;

    struct ipc_publisher *publisher = calloc(1, sizeof(*publisher));
    if (!publisher)
        return error_set(error, -ENOMEM, "out of memory");
    publisher->handle.type = &publisher_type;
    publisher->handle.connection = connection;
    publisher->handle.self = -1;
    publisher->flags = options->flags;
    publisher->block_max_ns = options->block_max_ns;
    snprintf(publisher->topic, sizeof(publisher->topic), "%s", topic);

    const Ipc__Control__Advertised *advertised;
    result = advertise(publisher, ring_size, kind, target, &publisher->lane, &advertised, error);
    if (result < 0) {
        free(publisher);
        return result;
    }
    publisher->handle.id = advertised->lane;
    *servers = advertised->servers;
    ring_size = advertised->ring_size;
    handle_add(connection, &publisher->handle);
    request_done(connection);
    publisher->looks = connection->reconnects;
    publisher->message_size_max = options->message_size_max ? options->message_size_max
                                                            : lane_body_size_max(ring_size);
    publisher_set_plain(publisher);
    lane_writer_init(&publisher->writer, publisher->lane, lane_segment_ring(publisher->lane), ring_size);
    publisher->writer.fence = !lane_barrier_register();
    *ret = publisher;
    return 0;
}

static void reader_forget(struct ipc_publisher *publisher, uint64_t pairing, unsigned reason)
{
    struct ipc_connection *connection = publisher->handle.connection;
    int bell;
    lane_writer_remove(&publisher->writer, pairing, &bell);
    if (bell >= 0)
        close(bell);
    struct reader_ref **at = &publisher->readers;
    while (*at && (*at)->pairing != pairing)
        at = &(*at)->next;
    struct reader_ref *reader = *at;
    if (!reader)
        return;
    *at = reader->next;
    publisher->left = (struct reader_left){.pairing = pairing, .reason = reason, .peer = reader->peer};
    pthread_mutex_lock(&connection->lock);
    event_add(connection, IPC_EVENT_READER_LEFT, reason, &reader->peer, publisher->topic);
    segment_unref(connection, reader->cells);
    pump_unlock(connection);
    free(reader);
}

static void reader_admit(struct ipc_publisher *publisher, struct notice *notice)
{
    struct ipc_connection *connection = publisher->handle.connection;
    const struct ipc_cells *cells = notice->cells->segment;
    struct lane_peer peer = {.cell = &cells->cells[notice->cell],
                             .pairing = notice->pairing,
                             .slot = notice->slot,
                             .bell = notice->bell,
                             .pins = notice->slow == IPC_SLOW_BLOCK && !notice->tap,
                             .disconnect = notice->slow == IPC_SLOW_DISCONNECT,
                             .tap = notice->tap,
                             .fence = notice->fence};
    struct reader_ref *known = publisher->readers;
    while (known && known->pairing != notice->pairing)
        known = known->next;
    struct reader_ref *reader = known ? NULL : calloc(1, sizeof(*reader));
    int result = known || reader ? lane_writer_add(&publisher->writer, &peer, notice->start) : -ENOMEM;
    if (result == 0) {
        notice->bell = -1; /* the writer's now */
        if (reader) {
            *reader = (struct reader_ref){.next = publisher->readers,
                                          .pairing = notice->pairing,
                                          .cells = notice->cells,
                                          .peer = notice->peer};
            publisher->readers = reader;
            notice->cells = NULL;
        }
    } else {
        free(reader);
    }
    pthread_mutex_lock(&connection->lock);
    if (result == 0 && !known)
        event_add(connection, IPC_EVENT_READER_JOINED, 0, &notice->peer, publisher->topic);
    pump_unlock(connection);
    pump_confirm(&publisher->handle, IPC__CONTROL__TYPE__READER_ADD, notice->pairing, result);
}

void publisher_news(struct ipc_publisher *publisher)
{
    struct ipc_connection *connection = publisher->handle.connection;
    publisher->handle.mail_seen = pump_try(connection, publisher->handle.mail_seen);
    struct notice *next;
    for (struct notice *notice = inbox_take(&publisher->handle); notice; notice = next) {
        next = notice->next;
        if (notice->type == IPC__CONTROL__TYPE__READER_ADD) {
            reader_admit(publisher, notice);
        } else if (notice->type == IPC__CONTROL__TYPE__RENEW) {
            publisher->renew = true;
            publisher_set_plain(publisher);
        } else {
            reader_forget(publisher, notice->pairing, notice->reason);
            if (publisher->left.pairing == notice->pairing) {
                publisher->left.servers = notice->servers;
                publisher->left.replying = notice->replying;
            }
            pump_confirm(&publisher->handle, IPC__CONTROL__TYPE__READER_DEL, notice->pairing, 0);
        }
        pthread_mutex_lock(&connection->lock);
        notice_free(connection, notice);
        pump_unlock(connection);
    }
}

void publisher_report_faults(struct ipc_publisher *publisher)
{
    struct lane_writer *writer = &publisher->writer;
    writer->faulted = false;
    for (uint32_t i = 0; i < writer->peer_count;) {
        struct lane_peer peer = writer->peers[i];
        if (!peer.fault) {
            i++;
            continue;
        }
        publisher->detached++;
        reader_forget(publisher, peer.pairing, peer.fault);
        pump_detach(&publisher->handle, peer.pairing, peer.fault);
    }
}

/* Go on in a fresh lane, with the number that comes next. Readers of the old one read it to its end. */
static int declare_again(struct ipc_publisher *publisher, uint64_t renewed, unsigned reason,
                         uint32_t *ret_readers)
{
    const Ipc__Control__Advertised *advertised;
    struct ipc_lane *lane;
    const struct lane_writer old = publisher->writer;
    int result = advertise(publisher, old.ring_size, IPC__CONTROL__KIND__KIND_TOPIC, renewed, &lane,
                           &advertised, NULL);
    if (result < 0)
        return result;
    *ret_readers = advertised->readers;
    handle_declared(&publisher->handle, advertised->lane);
    request_done(publisher->handle.connection);
    while (publisher->readers)
        reader_forget(publisher, publisher->readers->pairing, reason);
    publisher->bytes_past += old.position;
    uint64_t lost = publisher->writer.lost_departed;
    lane_writer_done(&publisher->writer);
    lane_segment_unmap(publisher->lane, IPC_SEGMENT_LANE, old.ring_size);
    publisher->lane = lane;
    lane_writer_init(&publisher->writer, lane, lane_segment_ring(lane), old.ring_size);
    lane_writer_continue(&publisher->writer, old.sequence);
    publisher->writer.fence = !lane_barrier_register();
    publisher->writer.overrun = old.overrun;
    publisher->writer.lost_departed = lost;
    publisher->writer.rings = old.rings;
    return 0;
}

int publisher_revive(struct ipc_publisher *publisher)
{
    struct handle *handle = &publisher->handle;
    uint32_t readers;
    if (!handle->owner && connection_between(handle->connection) && lane_now() < publisher->look_at_ns)
        return 0;
    int result = handle_look(handle, &publisher->look_at_ns);
    if (result == 0 && publisher->loan_open)
        return -EBUSY;
    if (result == 0)
        result = declare_again(publisher, 0, IPC_REASON_SHUTDOWN, &readers);
    if (result == 0) {
        publisher->renew = false;
        publisher_set_plain(publisher);
    }
    if (result == -EPIPE && !handle->owner && connection_between(handle->connection))
        result = -EAGAIN; /* it is over once more */
    return result == -EAGAIN ? 0 : result;
}

int publisher_renew(struct ipc_publisher *publisher)
{
    Ipc__Control__Unadvertise message = IPC__CONTROL__UNADVERTISE__INIT;
    uint32_t readers;
    message.lane = publisher->handle.id;
    int result = declare_again(publisher, message.lane, IPC_REASON_CLOSED, &readers);
    if (result < 0)
        return result;
    publisher->renew = false;
    publisher_set_plain(publisher);
    request_undo(&publisher->handle, IPC__CONTROL__TYPE__UNADVERTISE, &message.base);
    /* Those who were readers and still may are to miss nothing. */
    (void)ipc_publisher_wait_readers(publisher, readers, RENEW_WAIT_NS);
    return 0;
}

void publisher_look(struct ipc_publisher *publisher)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    publisher->rings_seen = publisher->writer.rings;
    if ((uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec >= publisher->look_at_ns)
        connection_look(publisher->handle.connection, &publisher->look_at_ns);
}

ipc_publisher *ipc_publisher_close(ipc_publisher *publisher)
{
    if (!publisher)
        return NULL;
    struct ipc_connection *connection = publisher->handle.connection;
    bool foreign = guard_foreign(connection);
    if (!foreign) {
        Ipc__Control__Unadvertise message = IPC__CONTROL__UNADVERTISE__INIT;
        message.lane = publisher->handle.id;
        request_undo(&publisher->handle, IPC__CONTROL__TYPE__UNADVERTISE, &message.base);
        pthread_mutex_lock(&connection->lock);
    }
    handle_remove(connection, &publisher->handle);
    struct notice *next;
    for (struct notice *notice = inbox_take(&publisher->handle); notice; notice = next) {
        next = notice->next;
        notice_free(connection, notice);
    }
    while (publisher->readers) {
        struct reader_ref *reader = publisher->readers;
        publisher->readers = reader->next;
        if (!foreign)
            segment_unref(connection, reader->cells);
        free(reader);
    }
    for (uint32_t i = 0; i < publisher->writer.peer_count; i++)
        if (publisher->writer.peers[i].bell >= 0)
            close(publisher->writer.peers[i].bell);
    lane_writer_done(&publisher->writer);
    if (!foreign) {
        lane_segment_unmap(publisher->lane, IPC_SEGMENT_LANE, publisher->writer.ring_size);
        pump_unlock(connection);
    }
    free(publisher);
    return NULL;
}

int ipc_publisher_wait_readers(ipc_publisher *publisher, unsigned count, int64_t timeout_ns)
{
    if (!publisher)
        return -EINVAL;
    int result = handle_enter(&publisher->handle);
    if (result < 0)
        return result;
    lane_writer_ring_held(&publisher->writer);
    uint64_t deadline = lane_deadline(timeout_ns), look = 0;
    for (;;) {
        struct lane_word words[2];
        handle_words(&publisher->handle, words);
        if (handle_has_mail(&publisher->handle))
            publisher_news(publisher);
        uint64_t now = lane_now();
        bool ended = handle_ended(&publisher->handle);
        if (ended) {
            result = publisher_revive(publisher);
            if (result < 0)
                return result;
            if (!handle_ended(&publisher->handle))
                continue;
            look = publisher->look_at_ns;
        }
        unsigned readers = lane_writer_readers(&publisher->writer);
        if (readers >= count)
            return (int)readers;
        if (!ended && now >= look) { /* a broker that was killed sends no mail */
            connection_look(publisher->handle.connection, &look);
        }
        if (now >= deadline)
            return -ETIMEDOUT;
        if (!handle_restless(&publisher->handle))
            lane_sleep(words, 2, deadline < look ? deadline : look);
    }
}

int ipc_publisher_stats(ipc_publisher *publisher, struct ipc_publisher_stats *ret)
{
    if (!publisher || !ret)
        return -EINVAL;
    int result = handle_enter(&publisher->handle);
    if (result < 0)
        return result;
    if (handle_has_mail(&publisher->handle))
        publisher_news(publisher);
    const struct lane_writer *writer = &publisher->writer;
    *ret = (struct ipc_publisher_stats){.published = writer->sequence,
                                        .bytes = publisher->bytes_past + writer->position,
                                        .overrun = writer->overrun,
                                        .lost = writer->lost_departed,
                                        .dropped = publisher->dropped,
                                        .detached = publisher->detached,
                                        .waits = publisher->waits,
                                        .rings = writer->rings,
                                        .net = publisher->net,
                                        .readers = lane_writer_readers(writer),
                                        .message_size_max = publisher->message_size_max,
                                        .ring_size = writer->ring_size};
    for (uint32_t i = 0; i < writer->peer_count; i++)
        if (atomic_load_explicit(&writer->peers[i].cell->owner, memory_order_acquire) ==
            writer->peers[i].pairing)
            ret->lost += atomic_load_explicit(&writer->peers[i].cell->lost, memory_order_relaxed);
    return 0;
}
