/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"
#include "libipc/session/session.h"

#define RETRY_MS 5

static int connect_to(struct ipc_connection *connection, struct ipc_error *error)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path, connection->address, sizeof(connection->address));
    connection->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection->socket < 0)
        return error_set(error, -errno, "cannot make a socket: %s", strerror(errno));
    if (connection->timeout_ns >= 0) {
        struct timeval limit = {.tv_sec = (time_t)(connection->timeout_ns / 1000000000),
                                .tv_usec = (suseconds_t)(connection->timeout_ns % 1000000000 / 1000) + 1};
        setsockopt(connection->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    }
    int result;
    do
        result = connect(connection->socket, (struct sockaddr *)&name, sizeof(name));
    while (result < 0 && errno == EINTR);
    if (result < 0) {
        int code = errno == EAGAIN || errno == EINPROGRESS ? -ETIMEDOUT : -errno;
        const char *hint = code == -ENOENT || code == -ECONNREFUSED
                               ? "; no broker runs there: start ipcd, or set IPC_ADDRESS"
                               : "";
        return error_set(error, code, "cannot connect to %s: %s%s", name.sun_path, strerror(-code), hint);
    }
    if (fcntl(connection->socket, F_SETFL, O_NONBLOCK) < 0)
        return error_set(error, -errno, "cannot set up the socket: %s", strerror(errno));
    return 0;
}

void hello_fill(Ipc__Control__Hello *message, char *name)
{
    ipc__control__hello__init(message);
    message->version_min = message->version_max = IPC_CONTROL_VERSION;
    message->features = (lane_barrier_register() ? IPC_FEATURE_MEMBARRIER : 0) |
                        (lane_has_waitv() ? IPC_FEATURE_WAITV : 0);
    message->fingerprint = IPC_LAYOUT_FINGERPRINT;
    message->name = name;
}

/* The board of a later session takes the place of the first one's, since other threads look at it at any time. */
int hello_answered(struct ipc_connection *connection, const Ipc__Control__Welcome *welcome, int fd)
{
    void *board;
    const size_t size = lane_segment_size(IPC_SEGMENT_BOARD, 0);
    int result = lane_segment_map(&board, fd, IPC_SEGMENT_BOARD, 0, false);
    if (result < 0)
        return result;
    if (connection->identity.session == 0) { /* which destroy() looks at, too */
        free(connection->board);
        connection->board = board;
    } else if (mremap(board, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, connection->board) == MAP_FAILED) {
        result = -errno;
        lane_segment_unmap(board, IPC_SEGMENT_BOARD, 0);
        return result;
    }
    connection->identity.session = welcome->session;
    connection->identity.uid = welcome->uid;
    connection->identity.gid = getegid();
    connection->identity.pid = (uint32_t)getpid();
    return 0;
}

static int hello(struct ipc_connection *connection, struct ipc_error *error)
{
    Ipc__Control__Hello message;
    hello_fill(&message, connection->identity.name);
    const ProtobufCMessage *reply;
    int fd = -1;
    int result = request(connection, IPC__CONTROL__TYPE__HELLO, &message.base, IPC__CONTROL__TYPE__WELCOME,
                         &reply, &fd, error);
    if (result < 0)
        return result;
    result = hello_answered(connection, (const void *)reply, fd);
    close(fd);
    if (result < 0)
        error_set(error, result, "cannot map the session's board: %s", strerror(-result));
    request_done(connection);
    return result;
}

/* A broker that is killed and restarted before it knows us hangs up: then once more, in what time is left. */
static int begin(struct ipc_connection *connection, struct ipc_error *error)
{
    uint64_t deadline = lane_deadline(connection->timeout_ns);
    bool was_there = false;
    for (;;) {
        int result = connect_to(connection, error);
        was_there = was_there || result == 0;
        if (result == 0)
            result = hello(connection, error);
        bool restarting = was_there && (result == -EPIPE || result == -ECONNREFUSED || result == -ENOENT);
        if (!restarting || lane_now() >= deadline)
            return result;
        close(connection->socket);
        connection->socket = -1;
        atomic_store_explicit(&connection->ended, 0, memory_order_relaxed);
        atomic_store_explicit(&connection->epoch, 0, memory_order_relaxed);
        connection->events_head = connection->events_tail = 0;
        poll(NULL, 0, RETRY_MS);
    }
}

static void destroy(struct ipc_connection *connection, bool foreign)
{
    if (connection->epoll >= 0)
        close(connection->epoll);
    if (connection->socket >= 0)
        close(connection->socket);
    if (connection->timer >= 0)
        close(connection->timer);
    while (connection->segments) {
        struct segment_ref *segment = connection->segments;
        connection->segments = segment->next;
        if (!foreign)
            lane_segment_unmap(segment->segment, IPC_SEGMENT_CELLS, 0);
        free(segment);
    }
    if (connection->identity.session == 0)
        free(connection->board);
    else if (!foreign)
        lane_segment_unmap(connection->board, IPC_SEGMENT_BOARD, 0);
    free(connection->events);
    free(connection->outbox);
    pthread_mutex_destroy(&connection->lock);
    free(connection);
}

int ipc_connection_open(ipc_connection **ret, const char *address,
                        const struct ipc_connection_options *options, struct ipc_error *error)
{
    const struct ipc_connection_options defaults = IPC_CONNECTION_OPTIONS_INIT;
    if (!options)
        options = &defaults;
    if (!ret || options->size != sizeof(*options))
        return error_set(error, -EINVAL,
                         "ret is NULL, or the options do not start from IPC_CONNECTION_OPTIONS_INIT");
    if (options->name && strlen(options->name) > IPC_MAX_CLIENT_NAME)
        return error_set(error, -EINVAL, "the client's name is longer than %u bytes", IPC_MAX_CLIENT_NAME);
    if (options->flags & ~IPC_CONNECTION_RECONNECT)
        return error_set(error, -EINVAL, "flags 0x%x are not known", options->flags);

    struct ipc_connection *connection = calloc(1, sizeof(*connection));
    if (!connection)
        return error_set(error, -ENOMEM, "out of memory");
    connection->socket = connection->epoll = connection->timer = -1;
    const char *name = options->name ? options->name : program_invocation_short_name;
    snprintf(connection->identity.name, sizeof(connection->identity.name), "%s", name);
    for (char *c = connection->identity.name; *c;
         c++) /* a file's name need not be text: protobuf strings are */
        if ((unsigned char)*c < ' ' || (unsigned char)*c >= 0x7f)
            *c = '?';
    connection->timeout_ns = options->timeout_ns;
    connection->generation = guard_generation(true);
    pthread_mutex_init(&connection->lock, NULL);
    /* Until the core hands out the board, an empty one. */
    connection->board = aligned_alloc(IPC_LAYOUT_LINE, sizeof(struct ipc_board));
    int result = -ENOMEM;
    if (!connection->board || connection->generation == 0) {
        error_set(error, result, "out of memory");
    } else if (address_resolve(connection->address, sizeof(connection->address), address) < 0) {
        result = error_set(error, -ENAMETOOLONG, "the broker's address is longer than %u bytes",
                           IPC_MAX_ADDRESS_SIZE);
    } else {
        memset(connection->board, 0, sizeof(struct ipc_board));
        result = begin(connection, error);
    }
    if (result == 0 && (options->flags & IPC_CONNECTION_RECONNECT)) {
        connection->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        connection->reconnects = connection->timer >= 0;
        if (connection->timer < 0)
            result = error_set(error, -errno, "cannot make a timer: %s", strerror(errno));
    }
    if (result < 0) {
        destroy(connection, false);
        return result;
    }
    *ret = connection;
    return 0;
}

ipc_connection *ipc_connection_close(ipc_connection *connection)
{
    if (!connection)
        return NULL;
    bool foreign = guard_foreign(connection);
    while (connection->handles) {
        struct handle *handle = connection->handles;
        if (handle->owner)
            handle->close(handle->owner);
        else
            handle->type->close(handle);
    }
    if (!foreign) {
        Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;
        const ProtobufCMessage *reply;
        if (request(connection, IPC__CONTROL__TYPE__GOODBYE, &done.base, IPC__CONTROL__TYPE__DONE, &reply,
                    NULL, NULL) == 0)
            pthread_mutex_unlock(&connection->lock);
    }
    destroy(connection, foreign);
    return NULL;
}

void handle_add(struct ipc_connection *connection, struct handle *handle)
{
    handle->mail = &connection->board->mail;
    handle->epoch = atomic_load_explicit(&connection->epoch, memory_order_relaxed);
    handle->next = connection->handles;
    connection->handles = handle;
}

void handle_declared(struct handle *handle, uint64_t id)
{
    struct ipc_connection *connection = handle->connection;
    struct notice *next;
    for (struct notice *notice = inbox_take(handle); notice; notice = next) {
        next = notice->next;
        notice_free(connection, notice);
    }
    handle->id = id;
    handle->epoch = atomic_load_explicit(&connection->epoch, memory_order_relaxed);
    handle->mail_seen = atomic_load_explicit(&connection->board->mail, memory_order_relaxed) - 1;
}

void handle_remove(struct ipc_connection *connection, struct handle *handle)
{
    struct handle **at = &connection->handles;
    while (*at != handle)
        at = &(*at)->next;
    *at = handle->next;
}

int ipc_connection_identity(const ipc_connection *connection, struct ipc_peer *ret)
{
    if (!connection || !ret)
        return -EINVAL;
    if (guard_foreign(connection))
        return -ECHILD;
    ipc_connection *mine = (ipc_connection *)(uintptr_t)connection;
    pthread_mutex_lock(&mine->lock);
    *ret = connection->identity;
    pump_unlock(mine);
    return 0;
}

int ipc_connection_dispatch(ipc_connection *connection)
{
    if (!connection)
        return -EINVAL;
    if (guard_foreign(connection))
        return -ECHILD;
    uint64_t next_ns;
    return connection_look(connection, &next_ns);
}

int ipc_connection_fd(ipc_connection *connection)
{
    if (!connection)
        return -EINVAL;
    if (guard_foreign(connection))
        return -ECHILD;
    pthread_mutex_lock(&connection->lock);
    int result = connection->epoll;
    if (result < 0) {
        struct epoll_event event = {.events = EPOLLIN};
        result = epoll_create1(EPOLL_CLOEXEC);
        if (result >= 0 && epoll_ctl(result, EPOLL_CTL_ADD, connection->socket, &event) < 0) {
            int code = -errno;
            close(result);
            result = code;
        }
        if (result >= 0)
            connection->epoll = result;
        else if (result == -1)
            result = -errno;
    }
    pump_unlock(connection);
    return result < 0 ? result : patterns_join_descriptors(connection);
}
