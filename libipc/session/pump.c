/* SPDX-License-Identifier: Apache-2.0
 *
 * The pump: what the core says, from the socket to the handles. The core is trusted, but it may be another
 * version: what does not make sense ends the session.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/session/receive.h"
#include "libipc/session/session.h"

void segment_unref(struct ipc_connection *connection, struct segment_ref *segment)
{
    if (!segment || --segment->references > 0)
        return;
    struct segment_ref **at = &connection->segments;
    while (*at != segment)
        at = &(*at)->next;
    *at = segment->next;
    lane_segment_unmap(segment->segment, IPC_SEGMENT_CELLS, 0);
    free(segment);
}

/* The cells segment of that id, mapped from *fd unless we have it. Own ones stay for the life of the session. */
static struct segment_ref *segment_get(struct ipc_connection *connection, uint64_t id, int fd, bool own)
{
    struct segment_ref *segment = connection->segments;
    while (segment && (segment->id != id || segment->own != own))
        segment = segment->next;
    if (!segment) {
        segment = calloc(1, sizeof(*segment));
        if (!segment || fd < 0 || lane_segment_map(&segment->segment, fd, IPC_SEGMENT_CELLS, 0, own) < 0) {
            free(segment);
            return NULL;
        }
        segment->id = id;
        segment->own = own;
        segment->references = own ? 1 : 0;
        segment->next = connection->segments;
        connection->segments = segment;
    }
    segment->references++;
    return segment;
}

void notice_free(struct ipc_connection *connection, struct notice *notice)
{
    if (notice->bell >= 0)
        close(notice->bell);
    if (!guard_foreign(connection)) { /* a forked child has no mappings of its parent's */
        lane_segment_unmap(notice->lane, IPC_SEGMENT_LANE, notice->ring_size);
        segment_unref(connection, notice->cells);
    }
    free(notice);
}

struct notice *inbox_take(struct handle *handle)
{
    struct notice *stack = atomic_exchange_explicit(&handle->inbox, NULL, memory_order_acquire);
    struct notice *oldest = NULL;
    while (stack) {
        struct notice *next = stack->next;
        stack->next = oldest;
        oldest = stack;
        stack = next;
    }
    return oldest;
}

static void inbox_put(struct handle *handle, struct notice *notice)
{
    struct notice *top = atomic_load_explicit(&handle->inbox, memory_order_relaxed);
    do
        notice->next = top;
    while (!atomic_compare_exchange_weak_explicit(&handle->inbox, &top, notice, memory_order_release,
                                                  memory_order_relaxed));
    atomic_fetch_add_explicit(&handle->connection->news, 1, memory_order_seq_cst);
    lane_wake(&handle->connection->news, true);
    if (handle->self >= 0)
        (void)!write(handle->self, &(uint64_t){1}, sizeof(uint64_t));
}

static void outbox_flush(struct ipc_connection *connection)
{
    size_t sent = 0;
    while (sent < connection->outbox_size) {
        uint32_t size;
        memcpy(&size, connection->outbox + sent, sizeof(size));
        const unsigned char *packet = connection->outbox + sent + sizeof(size);
        if (send(connection->socket, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            break;
        sent += sizeof(size) + size;
    }
    if (sent == 0)
        return;
    memmove(connection->outbox, connection->outbox + sent, connection->outbox_size - sent);
    connection->outbox_size -= sent;
}

/* Send now if nothing waits, else keep it. What is kept are answers to what the core has sent (confirms, the undoing
 * of late answers) and one detach per pairing, so the core bounds the outbox. */
static void send_or_keep(struct ipc_connection *connection, const void *packet, size_t size)
{
    if (atomic_load_explicit(&connection->ended, memory_order_relaxed))
        return;
    outbox_flush(connection);
    if (connection->outbox_size == 0 &&
        send(connection->socket, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size)
        return;
    size_t needed = connection->outbox_size + sizeof(uint32_t) + size;
    if (needed > connection->outbox_capacity) {
        unsigned char *grown = realloc(connection->outbox, 2 * needed);
        if (!grown) {
            pump_end(connection, IPC_REASON_LIMIT);
            return;
        }
        connection->outbox = grown;
        connection->outbox_capacity = 2 * needed;
    }
    uint32_t size32 = (uint32_t)size;
    memcpy(connection->outbox + connection->outbox_size, &size32, sizeof(size32));
    memcpy(connection->outbox + connection->outbox_size + sizeof(size32), packet, size);
    connection->outbox_size = needed;
}

static void confirm_locked(struct ipc_connection *connection, uint16_t notice, uint64_t pairing, int result)
{
    Ipc__Control__Confirm confirm = IPC__CONTROL__CONFIRM__INIT;
    confirm.notice = (Ipc__Control__Type)notice;
    confirm.pairing = pairing;
    confirm.result = result;
    unsigned char packet[128];
    int size = ipc_frame_pack(packet, sizeof(packet), IPC__CONTROL__TYPE__CONFIRM, 0, &confirm.base);
    send_or_keep(connection, packet, (size_t)size);
}

void pump_send(struct ipc_connection *connection, uint16_t type, const ProtobufCMessage *message)
{
    unsigned char packet[128];
    int size = ipc_frame_pack(packet, sizeof(packet), type, ++connection->request_id, message);
    send_or_keep(connection, packet, (size_t)size);
}

void pump_confirm(struct handle *handle, uint16_t notice, uint64_t pairing, int result)
{
    struct ipc_connection *connection = handle->connection;
    pthread_mutex_lock(&connection->lock);
    if (!handle_ended(handle))
        confirm_locked(connection, notice, pairing, result);
    pump_unlock(connection);
}

void pump_detach(struct handle *handle, uint64_t pairing, unsigned reason)
{
    struct ipc_connection *connection = handle->connection;
    Ipc__Control__Detach detach = IPC__CONTROL__DETACH__INIT;
    detach.pairing = pairing;
    detach.reason = (Ipc__Control__Reason)reason;
    unsigned char packet[128];
    int size = ipc_frame_pack(packet, sizeof(packet), IPC__CONTROL__TYPE__DETACH, 0, &detach.base);
    pthread_mutex_lock(&connection->lock);
    if (!handle_ended(handle))
        send_or_keep(connection, packet, (size_t)size);
    pump_unlock(connection);
}

void handles_rouse(struct ipc_connection *connection)
{
    for (struct handle *handle = connection->handles; handle; handle = handle->next)
        if (handle->self >= 0)
            (void)!write(handle->self, &(uint64_t){1}, sizeof(uint64_t));
    atomic_fetch_add_explicit(&connection->news, 1, memory_order_seq_cst);
    lane_wake(&connection->news, true);
}

void pump_end(struct ipc_connection *connection, unsigned reason)
{
    if (atomic_load_explicit(&connection->ended, memory_order_relaxed))
        return;
    unsigned told = atomic_load_explicit(&connection->board->ended, memory_order_acquire);
    if (told && reason == IPC_REASON_SHUTDOWN) /* the end of a socket does not say why */
        reason = told;
    atomic_store_explicit(&connection->ended, reason ? reason : IPC_REASON_SHUTDOWN, memory_order_release);
    atomic_fetch_add_explicit(&connection->epoch, 1, memory_order_release);
    event_add(connection, IPC_EVENT_ENDED, reason, &connection->identity, "");
    (void)shutdown(connection->socket, SHUT_RDWR); /* where we alone know, the core and our peers learn it */
    if (connection_between(connection))
        reconnect_begin(connection);
    handles_rouse(connection);
}

static void copy_peer(struct ipc_peer *to, const Ipc__Control__Peer *from)
{
    *to = (struct ipc_peer){0};
    if (!from)
        return;
    to->session = from->session;
    to->uid = from->uid;
    to->gid = from->gid;
    to->pid = from->pid;
    snprintf(to->name, sizeof(to->name), "%s", from->name);
}

static struct handle *handle_find(struct ipc_connection *connection, uint64_t id, enum handle_kind kind)
{
    struct handle *handle = connection->handles;
    while (handle && (handle->id != id || handle->type->kind != kind || handle_ended(handle)))
        handle = handle->next;
    return handle;
}

static int take_fd(int *fds, unsigned *count)
{
    for (unsigned i = 0; i < *count; i++) {
        if (fds[i] >= 0) {
            int fd = fds[i];
            fds[i] = -1;
            return fd;
        }
    }
    return -1;
}

/* Give a notice to its handle, or let go of it if the handle has left. */
static void deliver(struct ipc_connection *connection, struct handle *handle, struct notice *notice)
{
    if (handle) {
        inbox_put(handle, notice);
        return;
    }
    confirm_locked(connection, notice->type, notice->pairing, 0);
    notice_free(connection, notice);
}

static void on_reader_add(struct ipc_connection *connection, struct notice *notice,
                          const Ipc__Control__ReaderAdd *message, int *fds, unsigned fd_count)
{
    *notice = (struct notice){.type = IPC__CONTROL__TYPE__READER_ADD,
                              .pairing = message->pairing,
                              .lane_id = message->lane,
                              .slot = message->slot,
                              .cell = message->cell,
                              .start = message->start,
                              .slow = message->slow,
                              .tap = message->tap,
                              .fence = message->fence,
                              .again = message->again,
                              .bell = -1};
    copy_peer(&notice->peer, message->peer);
    int fd = take_fd(fds, &fd_count);
    if (message->bell)
        notice->bell = take_fd(fds, &fd_count);
    bool sane = message->slot < IPC_LANE_SLOTS && message->cell < IPC_CELLS_PER_SEGMENT;
    if (sane && (!message->bell || notice->bell >= 0))
        notice->cells = segment_get(connection, message->cells, fd, false);
    if (fd >= 0)
        close(fd);
    if (!notice->cells) {
        confirm_locked(connection, notice->type, notice->pairing, sane ? -ENOMEM : -EPROTO);
        notice_free(connection, notice);
        return;
    }
    confirm_locked(connection, notice->type, notice->pairing, 1);
    deliver(connection, handle_find(connection, notice->lane_id, HANDLE_PUBLISHER), notice);
}

static void on_lane_add(struct ipc_connection *connection, struct notice *notice,
                        const Ipc__Control__LaneAdd *message, int *fds, unsigned fd_count)
{
    *notice = (struct notice){.type = IPC__CONTROL__TYPE__LANE_ADD,
                              .pairing = message->pairing,
                              .lane_id = message->lane,
                              .slot = message->slot,
                              .cell = message->cell,
                              .ring_size = message->ring_size,
                              .ended = message->ended,
                              .start = message->start,
                              .fence = message->fence,
                              .call = message->call,
                              .after = message->after,
                              .bell = -1};
    copy_peer(&notice->peer, message->peer);
    snprintf(notice->topic, sizeof(notice->topic), "%s", message->topic);
    int lane_fd = take_fd(fds, &fd_count);
    int cells_fd = message->cells_new ? take_fd(fds, &fd_count) : -1;
    if (message->bell_new)
        notice->bell = take_fd(fds, &fd_count);
    struct handle *handle = handle_find(connection, message->subscription, HANDLE_SUBSCRIPTION);
    bool sane = message->slot < IPC_LANE_SLOTS && message->cell < IPC_CELLS_PER_SEGMENT;
    int result = !sane ? -EPROTO : message->bell_new && notice->bell < 0 ? -EMFILE : 0;
    if (sane) /* even if the subscription has left: the core sends each cells segment once */
        notice->cells = segment_get(connection, message->cells, cells_fd, true);
    if (result == 0 && handle) {
        result = notice->cells
                     ? lane_segment_map(&notice->lane, lane_fd, IPC_SEGMENT_LANE, notice->ring_size, false)
                     : -ENOMEM;
    }
    if (lane_fd >= 0)
        close(lane_fd);
    if (cells_fd >= 0)
        close(cells_fd);
    confirm_locked(connection, notice->type, notice->pairing, result);
    if (result < 0 && handle)
        event_add(connection, IPC_EVENT_WRITER_LEFT, IPC_REASON_LIMIT, &notice->peer, notice->topic);
    if (result < 0 || !handle)
        notice_free(connection, notice);
    else
        inbox_put(handle, notice);
}

/* Take the first announcement of a pairing back out of an inbox whose owner has not looked at it. What is put back
 * comes before the mail of the notice that brought us here, so the owner looks again. */
static bool inbox_cancel(struct ipc_connection *connection, struct handle *handle, uint64_t pairing)
{
    bool found = false;
    struct notice *next;
    for (struct notice *notice = inbox_take(handle); notice; notice = next) {
        next = notice->next;
        if (notice->type == IPC__CONTROL__TYPE__READER_ADD && notice->pairing == pairing && !notice->again) {
            found = true;
            notice_free(connection, notice);
        } else {
            inbox_put(handle, notice);
        }
    }
    return found;
}

static void on_simple(struct ipc_connection *connection, struct notice *notice, const struct ipc_frame *frame)
{
    *notice = (struct notice){.type = frame->type, .bell = -1};
    struct handle *handle;
    if (frame->type == IPC__CONTROL__TYPE__READER_DEL) {
        const Ipc__Control__ReaderDel *message = (const void *)frame->message;
        notice->pairing = message->pairing;
        notice->reason = message->reason;
        notice->servers = message->servers;
        notice->replying = message->replying;
        handle = handle_find(connection, message->lane, HANDLE_PUBLISHER);
        if (handle && inbox_cancel(connection, handle, notice->pairing))
            handle = NULL; /* it never counted that reader: answered here */
    } else {
        const Ipc__Control__LaneDel *message = (const void *)frame->message;
        notice->pairing = message->pairing;
        notice->reason = message->reason;
        handle = handle_find(connection, message->subscription, HANDLE_SUBSCRIPTION);
    }
    deliver(connection, handle, notice);
}

/* A port is over. Needs no confirmation: the thread that owns its handle closes it. */
static void on_port_end(struct ipc_connection *connection, struct notice *notice,
                        const Ipc__Control__PortEnd *message)
{
    *notice = (struct notice){.type = IPC__CONTROL__TYPE__PORT_END, .reason = message->reason, .bell = -1};
    struct handle *handle = handle_find(connection, message->port, HANDLE_PORT);
    if (!handle) { /* closed meanwhile, and said so */
        notice_free(connection, notice);
        return;
    }
    inbox_put(handle, notice);
}

/* Needs no confirmation: the writer lets go of that lane. */
static void on_renew(struct ipc_connection *connection, struct notice *notice,
                     const Ipc__Control__Renew *message)
{
    *notice = (struct notice){.type = IPC__CONTROL__TYPE__RENEW, .bell = -1};
    struct handle *handle = handle_find(connection, message->lane, HANDLE_PUBLISHER);
    if (handle)
        inbox_put(handle, notice);
    else
        notice_free(connection, notice);
}

/* The answer to a request that timed out: what it made is nobody's. */
static void on_late(struct ipc_connection *connection, const struct ipc_frame *frame)
{
    Ipc__Control__Unadvertise unadvertise = IPC__CONTROL__UNADVERTISE__INIT;
    Ipc__Control__Unsubscribe unsubscribe = IPC__CONTROL__UNSUBSCRIBE__INIT;
    Ipc__Control__PortClose port_close = IPC__CONTROL__PORT_CLOSE__INIT;
    Ipc__Control__SegmentClose segment_close = IPC__CONTROL__SEGMENT_CLOSE__INIT;
    const ProtobufCMessage *message = NULL;
    uint16_t type = 0;
    if (frame->type == IPC__CONTROL__TYPE__ADVERTISED) {
        unadvertise.lane = ((const Ipc__Control__Advertised *)(const void *)frame->message)->lane;
        type = IPC__CONTROL__TYPE__UNADVERTISE;
        message = &unadvertise.base;
    } else if (frame->type == IPC__CONTROL__TYPE__SUBSCRIBED) {
        unsubscribe.subscription =
            ((const Ipc__Control__Subscribed *)(const void *)frame->message)->subscription;
        type = IPC__CONTROL__TYPE__UNSUBSCRIBE;
        message = &unsubscribe.base;
    } else if (frame->type == IPC__CONTROL__TYPE__PORT_OPENED) {
        port_close.port = ((const Ipc__Control__PortOpened *)(const void *)frame->message)->port;
        type = IPC__CONTROL__TYPE__PORT_CLOSE;
        message = &port_close.base;
    } else if (frame->type == IPC__CONTROL__TYPE__SEGMENT_OPENED) {
        segment_close.attachment =
            ((const Ipc__Control__SegmentOpened *)(const void *)frame->message)->attachment;
        type = IPC__CONTROL__TYPE__SEGMENT_CLOSE;
        message = &segment_close.base;
    }
    if (message)
        pump_send(connection, type, message);
}

/* One frame that is not the reply somebody waits for. */
static void dispatch(struct ipc_connection *connection, const struct ipc_frame *frame, int *fds,
                     unsigned fd_count)
{
    if (frame->id != 0) {
        if (frame->id != connection->answered) {
            connection->answered = frame->id;
            on_late(connection, frame);
        }
        return;
    }
    if (frame->type == IPC__CONTROL__TYPE__ENDED) {
        const Ipc__Control__Ended *message = (const void *)frame->message;
        pump_end(connection, message->reason);
        return;
    }
    if (frame->type == IPC__CONTROL__TYPE__NUDGE) {
        for (struct handle *handle = connection->handles; handle; handle = handle->next)
            if (handle->self >= 0)
                (void)!write(handle->self, &(uint64_t){1}, sizeof(uint64_t));
        return; /* the mail that came with it wakes the others */
    }
    struct notice *notice = calloc(1, sizeof(*notice));
    if (!notice) {
        pump_end(connection, IPC_REASON_LIMIT);
        return;
    }
    if (frame->type == IPC__CONTROL__TYPE__READER_ADD)
        on_reader_add(connection, notice, (const void *)frame->message, fds, fd_count);
    else if (frame->type == IPC__CONTROL__TYPE__LANE_ADD)
        on_lane_add(connection, notice, (const void *)frame->message, fds, fd_count);
    else if (frame->type == IPC__CONTROL__TYPE__READER_DEL || frame->type == IPC__CONTROL__TYPE__LANE_DEL)
        on_simple(connection, notice, frame);
    else if (frame->type == IPC__CONTROL__TYPE__RENEW)
        on_renew(connection, notice, (const void *)frame->message);
    else if (frame->type == IPC__CONTROL__TYPE__PORT_END)
        on_port_end(connection, notice, (const void *)frame->message);
    else
        free(notice); /* a notice of a later version */
}

int receive_frame(struct ipc_connection *connection, struct ipc_frame *frame, int *fds, unsigned *fd_count)
{
    union {
        struct cmsghdr header;
        unsigned char bytes[CMSG_SPACE(IPC_MAX_FRAME_FDS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = connection->packet, .iov_len = sizeof(connection->packet)};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    *fd_count = 0;
    ssize_t size;
    do
        size = recvmsg(connection->socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == EINTR);
    if (size < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        *fd_count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), *fd_count * sizeof(int));
    }
    if (size == 0)
        return -EPIPE;
    /* Descriptors are cut off when this process is out of them: what comes without them is refused one by one. */
    if (message.msg_flags & MSG_TRUNC)
        return -EPROTO;
    return ipc_frame_unpack(frame, &connection->arena, connection->packet, (size_t)size) < 0 ? -EPROTO : 0;
}

void receive_dispatch(struct ipc_connection *connection, const struct ipc_frame *frame, int *fds,
                      unsigned count)
{
    dispatch(connection, frame, fds, count);
    receive_close(fds, count);
}

void receive_close(int *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static bool pump_once(struct ipc_connection *connection)
{
    struct ipc_frame frame;
    int fds[IPC_MAX_FRAME_FDS];
    unsigned count;
    int result = receive_frame(connection, &frame, fds, &count);
    if (result == 0) {
        receive_dispatch(connection, &frame, fds, count);
        return true;
    }
    receive_close(fds, count);
    if (result != -EAGAIN)
        pump_end(connection, result == -EPIPE ? IPC_REASON_SHUTDOWN : IPC_REASON_PROTOCOL);
    return false;
}

void pump(struct ipc_connection *connection)
{
    uint64_t deadline = 0;
    for (;;) {
        uint32_t mail = atomic_load_explicit(&connection->board->mail, memory_order_seq_cst);
        if (connection->outbox_size)
            outbox_flush(connection);
        while (!atomic_load_explicit(&connection->ended, memory_order_relaxed) && pump_once(connection))
            ;
        atomic_store_explicit(&connection->mail_pumped, mail, memory_order_seq_cst);
        unsigned reason = atomic_load_explicit(&connection->board->ended, memory_order_acquire);
        if (reason)
            pump_end(connection, reason);
        if (atomic_load_explicit(&connection->ended, memory_order_relaxed) ||
            atomic_load_explicit(&connection->board->pending, memory_order_acquire) == 0)
            return;
        uint64_t now = lane_now();
        if (deadline == 0)
            deadline = now + PENDING_WAIT_NS;
        struct pollfd wait = {.fd = connection->socket, .events = POLLIN};
        if (now >= deadline)
            return;
        (void)poll(&wait, 1, 1); /* pending may also fall without a frame */
    }
}

uint32_t pump_try(struct ipc_connection *connection, uint32_t seen)
{
    uint32_t mail = atomic_load_explicit(&connection->board->mail, memory_order_seq_cst);
    if (pthread_mutex_trylock(&connection->lock) != 0)
        return seen;
    if (atomic_load_explicit(&connection->mail_pumped, memory_order_relaxed) != mail)
        pump(connection);
    pump_unlock(connection);
    return mail;
}

void pump_unlock(struct ipc_connection *connection)
{
    for (;;) {
        pthread_mutex_unlock(&connection->lock);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&connection->ended, memory_order_relaxed) ||
            atomic_load_explicit(&connection->board->mail, memory_order_seq_cst) ==
                atomic_load_explicit(&connection->mail_pumped, memory_order_seq_cst) ||
            pthread_mutex_trylock(&connection->lock) != 0)
            return;
        pump(connection);
    }
}
