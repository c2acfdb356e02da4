/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes through a session's socket. Nothing waits: what does not fit is kept in the bounded outbox (answers) or in
 * the states it follows from (notices).
 */
#include "broker/core/control/session.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <ipc/error.h>

#include "broker/core/control/budget.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/port.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

/* Frames of one session in one round of the loop, if its user's budget lasts; of one that died, all that its socket can
 * hold. */
#define FRAMES_PER_ROUND 16u
#define FRAMES_AT_DEATH  1024u

/* Something is lacking: try again in a moment. */
static void stall(struct broker *broker, struct session *session)
{
    if (list_empty(&session->stalled))
        list_append(&broker->stalled, &session->stalled);
    loop_retry_soon(broker);
}

void session_update_events(struct broker *broker, struct session *session)
{
    uint32_t events = (session->busy || session->unread ? 0 : EPOLLIN | EPOLLRDHUP) |
                      (session->wants_out ? EPOLLOUT : 0);

    if (session->state == SESSION_ENDED || events == session->events || !session->watched)
        return;
    if (loop_change(broker, session->fd, events, LOOP_SOCKET, session->peer.session) == 0)
        session->events = events;
    else
        stall(broker, session);
}

/* The request in front was worked on and answered. False: it is still there, but must not be worked on again. */
static bool consume(struct session *session)
{
    session->spent = recv(session->fd, NULL, 0, MSG_TRUNC | MSG_DONTWAIT) < 0;
    session->unread = false;
    session->resumed = false;
    if (!session->spent && session->row && session->row->deaths)
        session->row->deaths = 0;
    return !session->spent;
}

void session_drain(struct session *session)
{
    for (unsigned i = 0; i < FRAMES_AT_DEATH && recv(session->fd, NULL, 0, MSG_TRUNC | MSG_DONTWAIT) > 0; i++)
        continue;
}

void session_answered(struct broker *broker, struct session *session)
{
    if (session->state == SESSION_ENDED)
        return;
    if (outbox_empty(&session->outbox)) {
        (void)consume(session);
        registry_port_handed(broker, session);
    } else {
        session->unread = true;
    }
    session_update_events(broker, session);
}

int session_flush_outbox(struct broker *broker, struct session *session)
{
    int result = outbox_flush(&session->outbox, session->fd);

    if (result == 0 && session->unread)
        session_answered(broker, session);
    return result;
}

void session_send_failed(struct broker *broker, struct session *session, int result)
{
    switch (result) {
    case -EAGAIN:
        session->wants_out = true;
        session_update_events(broker, session);
        break;
    case -ETOOMANYREFS: /* too many descriptors of this user are on their way through sockets */
    case -EMFILE:
    case -ENFILE:
    case -ENOMEM:
    case -ENOBUFS:
        stall(broker, session);
        break;
    default: /* 0, or the peer is gone: the hang-up is on its way */
        break;
    }
}

void session_retry_stalled(struct broker *broker)
{
    struct list now;

    /* Who stalls again has its turn the next time. */
    (void)list_take_all(&broker->stalled, &now);
    list_for_each_safe(node, &now)
    {
        struct session *session = list_entry(node, struct session, stalled);

        list_remove(node);
        session_update_events(broker, session);
        notice_mark(broker, session);
    }
}

void session_reply(struct broker *broker, struct session *session, unsigned type, uint64_t id,
                   const ProtobufCMessage *message, int fd)
{
    session_reply_with(broker, session, type, id, message, &fd, fd >= 0 ? 1 : 0);
}

void session_reply_with(struct broker *broker, struct session *session, unsigned type, uint64_t id,
                        const ProtobufCMessage *message, const int *fds, size_t n_fds)
{
    int size = ipc_frame_pack(broker->tx, sizeof(broker->tx), (uint16_t)type, id, message), result;

    if (session->state == SESSION_ENDED)
        return;
    if (size < 0) {
        session_fail(broker, session, id, -EMSGSIZE, "the answer does not fit into a frame");
        return;
    }
    result = outbox_send(&session->outbox, session->fd, broker->tx, (size_t)size, fds, n_fds);
    if (result == -ENOBUFS && session->state != SESSION_REFUSED)
        session_end(broker, session, IPC_REASON_SLOW, "it does not read the answers to its requests");
    else if (result == -ENOMEM || result == -EMFILE || result == -ENFILE)
        session_end(broker, session, IPC_REASON_LIMIT, "the broker has no room to answer it");
    else if (!outbox_empty(&session->outbox))
        session_send_failed(broker, session, -EAGAIN);
}

void session_fail(struct broker *broker, struct session *session, uint64_t id, int code, const char *format,
                  ...)
{
    Ipc__Control__Failure message = IPC__CONTROL__FAILURE__INIT;
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    message.code = code;
    message.text = text;
    session_reply(broker, session, IPC__CONTROL__TYPE__FAILURE, id, &message.base, -1);
}

void session_refuse(struct broker *broker, struct session *session, uint64_t id,
                    const struct refusal *refusal)
{
    const struct log_about about = {session->peer.session, session->peer.uid, session->peer.pid,
                                    session->peer.name, "limit"};

    log_write(LOG_REFUSED, &about, "request refused: %s", refusal->text);
    session_event(broker, session, EVENT_LIMIT, refusal->text);
    session_fail(broker, session, id, refusal->code, "%s", refusal->text);
}

/* Close what a client sent along. Returns true if there was anything. */
static bool drop_descriptors(struct msghdr *message)
{
    bool some = message->msg_flags & MSG_CTRUNC;
#ifdef IPC_PLANT_DESCRIPTORS_IGNORED
    return false;
#endif

    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(fd));
            fd_close(fd);
        }
        some = true;
    }
    return some;
}

/* Work on the frame in front. It stays in the socket until its answer has gone out: if we are killed before, the next
 * ipcd finds it there, and the records tell it what was done already. Returns false if there is none now, or it has to
 * wait, or the session is over. */
static bool read_frame(struct broker *broker, struct session *session)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {.iov_base = broker->rx, .iov_len = sizeof(broker->rx)};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t size;

    if (session->spent && !consume(session))
        return false;
    size = recvmsg(session->fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ENOMEM || errno == ENOBUFS)
            return false;
        session_end(broker, session, IPC_REASON_DIED, NULL);
        return false;
    }
    if (drop_descriptors(&message)) {
        session_end(broker, session, IPC_REASON_PROTOCOL, "it sent a descriptor, which no client may");
        return false;
    }
    if (size == 0) {
        struct pollfd hangup = {.fd = session->fd, .events = POLLRDHUP};

        if (poll(&hangup, 1, 0) == 1)
            session_end(broker, session, IPC_REASON_DIED, NULL);
        else
            session_end(broker, session, IPC_REASON_PROTOCOL, "it sent an empty frame");
        return false;
    }
    if (message.msg_flags & MSG_TRUNC || (size_t)size > IPC_MAX_FRAME_SIZE) {
        session_end(broker, session, IPC_REASON_PROTOCOL, "it sent a frame larger than 8192 bytes");
        return false;
    }
#ifdef IPC_PLANT_CONSUMED_EARLY
    (void)consume(session);
#endif
    broker->work = 0;
#ifndef IPC_PLANT_POISON_UNSEEN
    broker->state.header->working = session->row ? session->peer.session : 0;
#endif
    request_handle(broker, session, broker->rx, (size_t)size);
    broker->state.header->working = 0;
    budget_spend(broker, session->user);
#ifdef IPC_PLANT_CONSUMED_EARLY
    return session->state != SESSION_ENDED && !session->busy;
#endif
    if (!session->busy)
        session_answered(broker, session);
    return session->state != SESSION_ENDED && !session->busy && !session->unread;
}

void session_on_socket(struct broker *broker, struct session *session, uint32_t events)
{
    if (events & EPOLLOUT && session->wants_out) {
        session->wants_out = false;
        session_send_failed(broker, session, session_flush_outbox(broker, session));
        session_update_events(broker, session);
        notice_mark(broker, session);
    }
    if (session->busy || session->unread) {
        /* Nothing is read before the answer; only death counts, and the events that say it cannot be masked. */
        if (events & (EPOLLHUP | EPOLLERR))
            session_end(broker, session, IPC_REASON_DIED, NULL);
        return;
    }
    if (!(events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        return;
    session->gone = session->gone || events & EPOLLHUP;
    /* What an earlier ipcd began is finished at once, whatever it costs: notices have to wait for it. */
    for (unsigned i = 0; i < FRAMES_PER_ROUND && (session->resumed || budget_left(broker, session->user));
         i++) {
        if (!read_frame(broker, session))
            return;
    }
}

void session_on_process(struct broker *broker, struct session *session)
{
    session->gone = true;
    /* What it said before it died counts, a GOODBYE for one, but requests do not. A forked child that holds the socket may go on talking,
     * but not for long. */
    while (session->last_words++ < FRAMES_AT_DEATH && !session->busy && !session->unread) {
        if (!budget_left(broker, session->user))
            return; /* this event comes again */
        if (!read_frame(broker, session))
            break;
    }
    session_end(broker, session, IPC_REASON_DIED, NULL);
}
