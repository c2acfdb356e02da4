/* SPDX-License-Identifier: Apache-2.0
 *
 * From one session to the next, if the broker went away and the connection is one that reconnects: connect, say HELLO,
 * take WELCOME, each as a step that does not block, by whichever thread comes along, under the lock.
 *
 * Between two sessions the number of the socket, which users wait on through their sets, is that of a timer, which is
 * readable when it is time to try again. Handles stay what they are until the threads that own them declare them again:
 * their epoch tells that they are not of this session, and that their ids mean nothing to this broker.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "libipc/session/receive.h"
#include "libipc/session/session.h"

#define BACKOFF_MIN_NS UINT64_C(2000000)
#define BACKOFF_MAX_NS UINT64_C(500000000)
#define GREETING_NS    UINT64_C(2000000) /* how often who does not wait for the socket looks for WELCOME */

static struct timespec to_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static int in_sets(struct ipc_connection *connection, int operation)
{
    struct epoll_event event = {.events = EPOLLIN};
    int result = 0;
    if (connection->epoll >= 0 && epoll_ctl(connection->epoll, operation, connection->socket, &event) < 0)
        result = -errno;
    for (struct handle *handle = connection->handles; handle; handle = handle->next) {
        int set = handle->type->set ? handle->type->set(handle) : -1;
        if (set >= 0 && epoll_ctl(set, operation, connection->socket, &event) < 0)
            result = -errno;
    }
    return result;
}

/* Another file under the socket's number, and in all sets. A forked child may keep the old one open, so that it would
 * not leave the sets by itself. */
static int replace_socket(struct ipc_connection *connection, int fd)
{
    in_sets(connection, EPOLL_CTL_DEL);
    if (dup3(fd, connection->socket, O_CLOEXEC) < 0)
        return -errno;
    return in_sets(connection, EPOLL_CTL_ADD);
}

static void wait_until(struct ipc_connection *connection, uint64_t next_ns)
{
    struct itimerspec when = {.it_value = to_timespec(next_ns)};
    connection->greeting = false;
    connection->next_ns = next_ns;
    timerfd_settime(connection->timer, TFD_TIMER_ABSTIME, &when, NULL);
    replace_socket(connection, connection->timer);
}

static void try_later(struct ipc_connection *connection)
{
    wait_until(connection, lane_now() + connection->backoff_ns);
    connection->backoff_ns *= 2;
    if (connection->backoff_ns > BACKOFF_MAX_NS)
        connection->backoff_ns = BACKOFF_MAX_NS;
}

void reconnect_begin(struct ipc_connection *connection)
{
    uint64_t now = lane_now();
    connection->outbox_size = 0;
    if (connection->backoff_ns && now - connection->began_ns < BACKOFF_MAX_NS) {
        try_later(connection); /* it does not last */
        return;
    }
    connection->backoff_ns = BACKOFF_MIN_NS;
    wait_until(connection, now);
}

static int say_hello(struct ipc_connection *connection, int fd)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    Ipc__Control__Hello message;
    memcpy(name.sun_path, connection->address, sizeof(connection->address));
    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0)
        return -errno;
    hello_fill(&message, connection->identity.name);
    int size = ipc_frame_pack(connection->packet, sizeof(connection->packet), IPC__CONTROL__TYPE__HELLO,
                              ++connection->request_id, &message.base);
    if (size < 0 || send(fd, connection->packet, (size_t)size, MSG_NOSIGNAL) < 0)
        return size < 0 ? size : -errno;
    return replace_socket(connection, fd);
}

/* What is known by an id of the broker's is not known any more. */
static void forget_ids(struct ipc_connection *connection)
{
    struct segment_ref *next;
    for (struct segment_ref *segment = connection->segments; segment; segment = next) {
        next = segment->next;
#ifndef IPC_PLANT_SEGMENTS_KEPT
        segment->id = 0;
        if (segment->own) {
            segment->own = false;
            segment_unref(connection, segment); /* that of the session */
        }
#endif
    }
}

static void begin_session(struct ipc_connection *connection)
{
    connection->greeting = false;
    connection->began_ns = lane_now();
    connection->answered = 0;
    forget_ids(connection);
    atomic_store_explicit(&connection->mail_pumped, 0, memory_order_relaxed);
    atomic_store_explicit(&connection->ended, 0, memory_order_release);
    atomic_fetch_add_explicit(&connection->epoch, 1, memory_order_release);
    event_add(connection, IPC_EVENT_RECONNECTED, 0, &connection->identity, "");
    handles_rouse(connection);
}

static int take_welcome(struct ipc_connection *connection)
{
    struct ipc_frame frame;
    int fds[IPC_MAX_FRAME_FDS];
    unsigned count;
    int result = receive_frame(connection, &frame, fds, &count);
    if (result == 0 && (frame.type != IPC__CONTROL__TYPE__WELCOME || count != 1))
        result = -EPROTO;
    if (result == 0)
        result = hello_answered(connection, (const void *)frame.message, fds[0]);
    receive_close(fds, count);
    return result;
}

static void step(struct ipc_connection *connection)
{
    uint64_t now = lane_now();
    int result;
    if (connection->greeting) {
        result = take_welcome(connection);
        if (result == 0)
            begin_session(connection);
        else if (result != -EAGAIN || now >= connection->next_ns)
            try_later(connection);
        return;
    }
    if (now < connection->next_ns)
        return;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    result = fd < 0 ? -errno : say_hello(connection, fd);
    if (fd >= 0)
        close(fd);
    if (result < 0) {
        try_later(connection);
        return;
    }
    connection->greeting = true;
    connection->next_ns = lane_deadline(connection->timeout_ns);
}

int connection_look(struct ipc_connection *connection, uint64_t *next_ns)
{
    uint64_t now = lane_now();
    *next_ns = now + GREETING_NS; /* another thread is at it */
    if (pthread_mutex_trylock(&connection->lock) == 0) {
        if (!atomic_load_explicit(&connection->ended, memory_order_relaxed))
            pump(connection);
        if (connection_between(connection))
            step(connection);
        if (!connection_between(connection))
            *next_ns = now + (connection->reconnects ? LOOK_NS : IPC_NET_NS);
        else if (!connection->greeting)
            *next_ns = connection->next_ns;
        pump_unlock(connection);
    }
    if (connection_between(connection))
        return -EAGAIN;
    return atomic_load_explicit(&connection->ended, memory_order_relaxed) ? -EPIPE : 0;
}

int connection_await(struct ipc_connection *connection, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t next_ns, now;
        int result = connection_look(connection, &next_ns);
        if (result != -EAGAIN)
            return result;
        if ((now = lane_now()) >= deadline_ns)
            return -ETIMEDOUT;
        /* Bounded: another thread may put another file in its place. */
        struct timespec left = to_timespec(deadline_ns - now < LOOK_NS ? deadline_ns - now : LOOK_NS);
        struct pollfd wait = {.fd = connection->socket, .events = POLLIN};
        ppoll(&wait, 1, &left, NULL);
    }
}
