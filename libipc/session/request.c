/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests: one frame out, notices taken in on the way, the answer. One at a time per connection.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libipc/session/receive.h"
#include "libipc/session/session.h"

static struct timespec to_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static int wait_for(int fd, short events, uint64_t deadline_ns)
{
    for (;;) {
        uint64_t now = lane_now();
        if (now >= deadline_ns)
            return -ETIMEDOUT;
        struct timespec left = to_timespec(deadline_ns - now);
        struct pollfd wait = {.fd = fd, .events = events};
        int result = ppoll(&wait, 1, deadline_ns == LANE_NEVER ? NULL : &left, NULL);
        if (result > 0)
            return 0;
        if (result < 0 && errno != EINTR)
            return -errno;
    }
}

static int send_request(struct ipc_connection *connection, const void *packet, size_t size,
                        uint64_t deadline_ns)
{
    for (;;) {
        if (send(connection->socket, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno == ENOBUFS || errno == ENOMEM)
            return -ENOMEM;
        if (errno != EAGAIN)
            return -EPIPE;
        int result = wait_for(connection->socket, POLLOUT, deadline_ns);
        if (result < 0)
            return result;
    }
}

static int ended_error(struct ipc_connection *connection, struct ipc_error *error)
{
    unsigned reason = atomic_load_explicit(&connection->ended, memory_order_relaxed);
    return error_set(error, -EPIPE, "the session with the broker is over: %s; %s",
                     ipc_reason_text(reason ? reason : IPC_REASON_SHUTDOWN),
                     connection_between(connection) ? "this connection tries to begin another one"
                                                    : "open a new connection");
}

/* Receive until the answer with that id is there. */
static int await_reply(struct ipc_connection *connection, uint64_t id, uint16_t reply_type,
                       const ProtobufCMessage **reply, int *ret_fds, unsigned fd_count, uint64_t deadline_ns,
                       struct ipc_error *error)
{
    for (;;) {
        struct ipc_frame frame;
        int fds[IPC_MAX_FRAME_FDS];
        unsigned count;
        int result = receive_frame(connection, &frame, fds, &count);
        if (result == -EAGAIN) {
            result = wait_for(connection->socket, POLLIN, deadline_ns);
            if (result == -ETIMEDOUT)
                return error_set(error, result,
                                 "the broker did not answer in time: is it stopped or overloaded?");
            if (result == 0)
                continue;
        }
        if (result < 0) {
            receive_close(fds, count);
            pump_end(connection, result == -EPIPE ? IPC_REASON_SHUTDOWN : IPC_REASON_PROTOCOL);
            return ended_error(connection, error);
        }
        bool refused = frame.id == 0 &&
                       frame.type == IPC__CONTROL__TYPE__FAILURE; /* before it read a request */
        if (frame.id != id && !refused) { /* a notice, or the late answer to a request that timed out */
            receive_dispatch(connection, &frame, fds, count);
            if (atomic_load_explicit(&connection->ended, memory_order_relaxed))
                return ended_error(connection, error);
            continue;
        }
        if (frame.type == IPC__CONTROL__TYPE__FAILURE) {
            connection->answered = id;
            const Ipc__Control__Failure *failure = (const void *)frame.message;
            receive_close(fds, count);
            int code = failure->code < 0 && failure->code > -4096 ? failure->code : -EIO;
            return error_set(error, code, "%s", failure->text);
        }
        if (frame.type != reply_type || (fd_count && count != fd_count)) {
            receive_dispatch(connection, &frame, fds, count); /* undoes what was made for it */
            if (count < fd_count && frame.type == reply_type)
                return error_set(error, -EMFILE,
                                 "there was no room for the descriptors of the broker's answer");
            return error_set(error, -EPROTO, "the broker's answer is not one to this request");
        }
        connection->answered = id;
        if (fd_count)
            memcpy(ret_fds, fds, fd_count * sizeof(int));
        else
            receive_close(fds, count);
        *reply = frame.message;
        return 0;
    }
}

static bool lock_until(struct ipc_connection *connection, uint64_t deadline_ns)
{
    if (deadline_ns == LANE_NEVER)
        return pthread_mutex_lock(&connection->lock) == 0;
#ifdef IPC_TSAN /* it does not know pthread_mutex_clocklock() */
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t passed = lane_now(), left = deadline_ns > passed ? deadline_ns - passed : 0;
    struct timespec until = to_timespec((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + left);
    return pthread_mutex_timedlock(&connection->lock, &until) == 0;
#else
    struct timespec until = to_timespec(deadline_ns);
    return pthread_mutex_clocklock(&connection->lock, CLOCK_MONOTONIC, &until) == 0;
#endif
}

/* The handle that a request is about is of another session. */
static bool is_past(const struct ipc_connection *connection, const struct handle *of)
{
    return of && of->epoch != atomic_load_explicit(&connection->epoch, memory_order_relaxed);
}

static int request_once(struct ipc_connection *connection, const struct handle *of, uint16_t type,
                        const ProtobufCMessage *message, uint16_t reply_type, const ProtobufCMessage **reply,
                        int *fds, unsigned fd_count, uint64_t deadline, struct ipc_error *error)
{
    if (!lock_until(connection, deadline))
        return error_set(error, -ETIMEDOUT, "another thread's request to the broker did not end in time");

    int result = 0;
    if (atomic_load_explicit(&connection->ended, memory_order_relaxed) || is_past(connection, of)) {
        result = ended_error(connection, error);
    } else {
        unsigned char packet[IPC_MAX_FRAME_SIZE];
        uint64_t id = ++connection->request_id;
        int size = ipc_frame_pack(packet, sizeof(packet), type, id, message);
        if (size < 0)
            result = error_set(error, size, "the request is larger than %u bytes", IPC_MAX_FRAME_SIZE);
        else
            result = send_request(connection, packet, (size_t)size, deadline);
        if (result == -ETIMEDOUT)
            error_set(error, result, "the broker takes no requests: is it stopped or overloaded?");
        else if (result < 0 && result != -EPIPE && size >= 0)
            error_set(error, result, "the request could not be sent: %s", strerror(-result));
        if (result == 0 || result == -EPIPE) /* a broker that hung up may have said why */
            result = await_reply(connection, id, reply_type, reply, fds, fd_count, deadline, error);
    }
    if (result < 0)
        pump_unlock(connection);
    return result;
}

/* A broker that went away took what it did for us along, so another one is asked again. */
int request_fds_of(struct ipc_connection *connection, const struct handle *of, uint16_t type,
                   const ProtobufCMessage *message, uint16_t reply_type, const ProtobufCMessage **reply,
                   int *fds, unsigned fd_count, struct ipc_error *error)
{
    uint64_t deadline = lane_deadline(connection->timeout_ns);
    bool anew = !of && type != IPC__CONTROL__TYPE__GOODBYE;
    int result;
    do {
        if (anew && connection_between(connection) && connection_await(connection, deadline) == -ETIMEDOUT)
            return error_set(error, -ETIMEDOUT, "the broker at %s went away, and did not come back in time",
                             connection->address);
        result =
            request_once(connection, of, type, message, reply_type, reply, fds, fd_count, deadline, error);
    } while (result == -EPIPE && anew && connection_between(connection));
    return result;
}

void request_undo(const struct handle *handle, uint16_t type, const ProtobufCMessage *message)
{
    struct ipc_connection *connection = handle->connection;
    int result = request_simple_of(connection, handle, type, message, NULL);
    if (result == 0 || result == -EPIPE)
        return;
    pthread_mutex_lock(&connection->lock);
    if (!is_past(connection, handle))
        pump_send(connection, type, message);
    pump_unlock(connection);
}

void request_done(struct ipc_connection *connection)
{
    pump_unlock(connection);
}

int request_simple_of(struct ipc_connection *connection, const struct handle *of, uint16_t type,
                      const ProtobufCMessage *message, struct ipc_error *error)
{
    const ProtobufCMessage *reply;
    int result =
        request_fds_of(connection, of, type, message, IPC__CONTROL__TYPE__DONE, &reply, NULL, 0, error);
    if (result == 0)
        request_done(connection);
    return result;
}
