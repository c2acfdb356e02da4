/* SPDX-License-Identifier: Apache-2.0
 *
 * Making and ending sessions. Who a client is comes from the kernel at its connect: SO_PEERCRED and a pidfd. The pidfd
 * says when it dies, even if a forked child keeps the socket open.
 */
#include "broker/core/control/session.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>

#include <ipc/error.h>

#include "broker/core/control/budget.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/port.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/shared.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#ifndef SO_PEERPIDFD
# define SO_PEERPIDFD 77
#endif

/* Refused clients that wait for their first frame. One more, and the oldest goes. */
#define REFUSED_MAX      32u
/* Of one user so many; more are closed without a word. */
#define REFUSED_PER_USER 8u

static const struct charge session_charge = {.of = {[LIMIT_SESSIONS] = 1, [LIMIT_DESCRIPTORS] = 2}};
static const struct charge board_charge = {
    .of = {[LIMIT_DESCRIPTORS] = 1, [LIMIT_SEGMENT_BYTES] = sizeof(struct ipc_board)}};

static const char *reason_word(unsigned reason)
{
    switch (reason) {
#define WORD(name, number, word, text) \
 case IPC_REASON_##name:               \
  return word;
        IPC_REASONS(WORD)
#undef WORD
    default:
        return "unknown";
    }
}

static struct log_about about_session(const struct session *session, const char *reason)
{
    return (struct log_about){session->peer.session, session->peer.uid, session->peer.pid, session->peer.name,
                              reason};
}

/* The peer's pidfd. Returns a descriptor, -1 if there can be none (it is outside of our pid namespace), or a negative
 * errno if it is dead. */
static int peer_pidfd(const struct broker *broker, int fd, pid_t pid)
{
    struct pollfd hangup = {.fd = fd, .events = POLLRDHUP};
    int pidfd = -1;

    if (broker->options.peer_pidfd) {
        socklen_t size = sizeof(pidfd);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0)
            return pidfd;
        if (errno != ENOPROTOOPT)
            return errno == EMFILE || errno == ENFILE || errno == ENOMEM ? -errno : -ESRCH;
    }
    if (pid <= 0)
        return -1;
    pidfd = pidfd_open(pid, 0);
    if (pidfd < 0)
        return errno == ESRCH || errno == EINVAL ? -ESRCH : -errno;
    /* The number may have gone to another process in between; but whoever has it now did not keep our socket open. */
    if (poll(&hangup, 1, 0) != 0) {
        fd_close(pidfd);
        return -ESRCH;
    }
    return pidfd;
}

static void session_free(struct session *session)
{
    outbox_done(&session->outbox);
    fd_close(session->fd);
    fd_close(session->pidfd);
    fd_close(session->board_fd);
    free(session->groups);
    free(session->refusal);
    free(session);
}

static struct session *session_alloc(void)
{
    struct session *session = calloc(1, sizeof(*session));

    if (!session)
        return NULL;
    session->fd = session->pidfd = session->board_fd = -1;
    list_init(&session->link);
    list_init(&session->dirty);
    list_init(&session->unwatched);
    list_init(&session->stalled);
    list_init(&session->overdue);
    list_init(&session->silent);
    list_init(&session->lanes);
    list_init(&session->subscriptions);
    list_init(&session->cells);
    list_init(&session->ports);
    list_init(&session->attachments);
    list_init(&session->port_ends);
    list_init(&session->writer_adds);
    list_init(&session->reader_adds);
    list_init(&session->dels);
    outbox_init(&session->outbox);
    session->since_ns = time_realtime_ns();
    return session;
}

void session_event(struct broker *broker, const struct session *session, enum event_kind kind,
                   const char *text)
{
    events_add(&broker->events, time_monotonic_ns(), kind, &session->peer, text);
}

static int begin_refused(struct broker *broker, struct session *session, const struct refusal *refusal)
{
    const struct log_about about = about_session(session, "limit");
    unsigned n = 0;

    session_event(broker, session, EVENT_LIMIT, refusal->text);
    list_for_each(node, &broker->refused)
        n += list_entry(node, struct session, link)->peer.uid == session->peer.uid;
    if (n >= REFUSED_PER_USER)
        return -EDQUOT;

    log_write(LOG_REFUSED, &about, "not let in: %s", refusal->text);
    session->state = SESSION_REFUSED;
    session->user = NULL; /* nothing is charged that would keep it */
    session->refusal = strdup(refusal->text);
    if (broker->n_refused >= REFUSED_MAX)
        session_end(broker, list_entry(broker->refused.next, struct session, link), IPC_REASON_LIMIT, NULL);
    list_append(&broker->refused, &session->link);
    broker->n_refused++;
    return 0;
}

static int begin(struct broker *broker, struct session *session)
{
    struct refusal refusal;
    int result = quota_connect(&broker->quota, session->user, time_monotonic_ns(), &refusal);

    if (result == 0)
        result = quota_take(&broker->quota, session->user, &session_charge, &refusal);
    if (result < 0)
        return begin_refused(broker, session, &refusal);
    session->user->work_left -= WORK_SESSION;
    session->state = SESSION_NEW;
    session->pidfd = peer_pidfd(broker, session->fd, (pid_t)session->peer.pid);
    result = session->pidfd < -1 ? session->pidfd : 0;
    if (result < 0) {
        session->pidfd = -1;
        quota_return(&broker->quota, session->user, &session_charge);
        return result;
    }
    list_append(&broker->sessions, &session->link);
    session->begun_ns = time_monotonic_ns();
    list_append(&broker->silent, &session->silent);
    return 0;
}

int session_watch(struct broker *broker, struct session *session)
{
    int result;

    session->events = EPOLLIN | EPOLLRDHUP;
    session->watched = true;
    result = loop_add(broker, session->fd, session->events, LOOP_SOCKET, session->peer.session);
#ifdef IPC_PLANT_PIDFD_UNWATCHED
    if (session->resumed)
        return result;
#endif
    if (result == 0 && session->pidfd >= 0)
        result = loop_add(broker, session->pidfd, EPOLLIN, LOOP_PROCESS, session->peer.session);
    return result;
}

struct ipc_board *session_board(struct session *session)
{
    void *board;

    if (session->board || session->board_fd < 0)
        return session->board;
    board = mmap(NULL, sizeof(*session->board), PROT_READ | PROT_WRITE, MAP_SHARED, session->board_fd, 0);
    if (board != MAP_FAILED)
        session->board = board;
    return session->board;
}

struct session *session_restore(struct broker *broker, struct session_row *row, int fd, int pidfd,
                                int board_fd)
{
    struct session *session = session_alloc();

    if (!session)
        return NULL;
    session->peer = (struct peer){.session = atomic_load_explicit(&row->row.id, memory_order_relaxed),
                                  .uid = row->uid,
                                  .gid = row->gid,
                                  .pid = row->pid};
    memcpy(session->peer.name, row->name, sizeof(session->peer.name));
    session->user = quota_user(&broker->quota, row->uid);
    if (!session->user) {
        free(session);
        return NULL;
    }
    session->row = row;
    session->state = SESSION_OPEN;
    session->admin = row->admin;
    session->features = row->features;
    session->since_ns = row->since_ns;
    session->resumed = true;
    session->fd = fd;
    session->pidfd = pidfd;
    session->board_fd = board_fd;
    quota_charge(&broker->quota, session->user, &session_charge);
    if (board_fd >= 0) {
        quota_charge(&broker->quota, session->user, &board_charge);
        broker->n_boards++;
    }
    list_append(&broker->sessions, &session->link);
    hash_add(&broker->sessions_by_id, &session->node, session->peer.session);
    return session;
}

int session_new(struct broker *broker, int *fd)
{
    struct session *session = session_alloc();
    struct ucred peer;
    socklen_t size = sizeof(peer);
    int result;

    if (!session)
        return -ENOMEM;
    if (getsockopt(*fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        result = -errno;
        session_free(session);
        return result;
    }
    session->peer = (struct peer){.session = state_number(&broker->state, NUMBER_SESSION),
                                  .uid = peer.uid,
                                  .gid = peer.gid,
                                  .pid = (uint32_t)peer.pid};
    session->user = quota_user(&broker->quota, peer.uid);
    session->fd = *fd;
    /* Few frames fit: descriptors in those that nobody reads count against the broker, whatever was confirmed. */
    (void)setsockopt(session->fd, SOL_SOCKET, SO_SNDBUF, &(int){2 * IPC_MAX_FRAME_SIZE}, sizeof(int));
    result = session->user ? begin(broker, session) : -ENOMEM;
    if (result == 0) {
        hash_add(&broker->sessions_by_id, &session->node, session->peer.session);
        result = session_watch(broker, session);
        *fd = -1;
        if (result < 0) {
            session_fail(broker, session, 0, result, "the broker cannot watch one more connection: %s",
                         strerror(-result));
            session_end(broker, session, IPC_REASON_LIMIT, NULL);
        }
        return 0;
    }
    session->fd = -1;
    session_free(session);
    return result;
}

/* From here on it outlives this ipcd. */
static int begin_keeping(struct broker *broker, struct session *session, struct refusal *refusal)
{
    struct session_row *row = state_take(&broker->state, STATE_SESSIONS);

    if (!row) {
        refusal_set(refusal, -ENOMEM, "the broker has no memory for the session's record");
        return -ENOMEM;
    }
    row->features = session->features;
    row->since_ns = session->since_ns;
    row->request = session->hello;
    row->uid = session->peer.uid;
    row->gid = session->peer.gid;
    row->pid = session->peer.pid;
    row->admin = session->admin;
    row->watched = session->pidfd >= 0;
    memcpy(row->name, session->peer.name, sizeof(row->name));
    keep_store(broker, KEEP_SESSION, session->peer.session,
               (int[]){session->fd, session->pidfd, session->board_fd}, 3);
    state_commit(row, session->peer.session);
    session->row = row;
    session->state = SESSION_OPEN;
    list_remove(&session->silent);
    return 0;
}

int session_open(struct broker *broker, struct session *session, struct refusal *refusal)
{
    int result;

    if (session->admin)
        return begin_keeping(broker, session, refusal);
    result = quota_take(&broker->quota, session->user, &board_charge, refusal);
    if (result < 0)
        return result;
    session->board_fd = segment_make(IPC_SEGMENT_BOARD, 0, state_number(&broker->state, NUMBER_SEGMENT));
    if (!session_board(session)) {
        result = session->board_fd < 0 ? session->board_fd : -errno;
        session->board_fd = fd_close(session->board_fd);
        quota_return(&broker->quota, session->user, &board_charge);
        refusal_set(refusal, result, "the broker could not make the session's board: %s", strerror(-result));
        return result;
    }
    broker->n_boards++;
    return begin_keeping(broker, session, refusal);
}

/* Tell it why, if that fits, and those that sleep on its board. */
static void say_ended(struct broker *broker, struct session *session, unsigned reason, const char *text)
{
    Ipc__Control__Ended message = IPC__CONTROL__ENDED__INIT;

    if (text && session->state != SESSION_REFUSED && outbox_empty(&session->outbox)) {
        int size;

        message.reason = (Ipc__Control__Reason)reason;
        message.text = (char *)(uintptr_t)text;
        size = ipc_frame_pack(broker->tx, sizeof(broker->tx), IPC__CONTROL__TYPE__ENDED, 0, &message.base);
        if (size > 0)
            (void)fd_send(session->fd, broker->tx, (size_t)size, NULL, 0);
    }
    if (session_board(session)) {
        atomic_store_explicit(&session->board->ended, reason, memory_order_release);
        notice_mail(session);
    }
}

static void log_ended(struct broker *broker, const struct session *session, unsigned reason, const char *text)
{
    const struct log_about about = about_session(session, reason_word(reason));
    bool badly = reason != IPC_REASON_CLOSED && reason != IPC_REASON_SHUTDOWN;

    broker->ended_badly += badly;
    if (badly && reason != IPC_REASON_DIED)
        session_event(broker, session, EVENT_ENDED, text ? text : reason_word(reason));
    else if (session->row) /* it had come */
        session_event(broker, session, reason == IPC_REASON_DIED ? EVENT_DIED : EVENT_WENT, NULL);
    if (badly && reason != IPC_REASON_DIED)
        log_write(LOG_SESSION_EXPELLED, &about, "session ended by the broker: %s",
                  text ? text : reason_word(reason));
    else
        log_write(LOG_SESSION_ENDED, &about, "session ended");
}

static void release(struct broker *broker, struct session *session, unsigned reason)
{
    list_for_each_safe(node, &session->lanes)
        pairing_end_lane(broker, list_entry(node, struct lane, by_session), reason);
    list_for_each_safe(node, &session->subscriptions)
        pairing_end_subscription(broker, list_entry(node, struct subscription, by_session), reason);
    list_for_each_safe(node, &session->ports)
        registry_port_end(broker, list_entry(node, struct port, by_session), reason);
    list_for_each_safe(node, &session->attachments)
        registry_detach(broker, list_entry(node, struct attachment, by_session));
    list_for_each_safe(node, &session->cells) cells_orphan(broker, list_entry(node, struct cells, link));
    if (session->board_fd >= 0) {
        if (session->board)
            munmap(session->board, sizeof(*session->board));
        session->board = NULL;
        /* Whom the core sends away may still have to read why on its board: that page stays as long as it does. */
        if (reason == IPC_REASON_CLOSED || reason == IPC_REASON_DIED)
            session->board_fd = segment_destroy(session->board_fd, sizeof(struct ipc_board));
        session->board_fd = fd_close(session->board_fd);
        quota_return(&broker->quota, session->user, &board_charge);
        broker->n_boards--;
    }
#ifdef IPC_PLANT_SESSION_NOT_RETURNED
    return;
#endif
    quota_return(&broker->quota, session->user, &session_charge);
}

void session_end(struct broker *broker, struct session *session, unsigned reason, const char *text)
{
    enum session_state state = session->state;

    if (state == SESSION_ENDED)
        return;
    if (session->row)
        atomic_store_explicit(&session->row->ending, (uint8_t)(reason + 1), memory_order_release);
    say_ended(broker, session, reason, text);
    session->state = SESSION_ENDED;
    list_remove(&session->dirty);
    list_remove(&session->unwatched);
    list_remove(&session->stalled);
    list_remove(&session->overdue);
    list_remove(&session->silent);
    list_remove(&session->link);
    if (state == SESSION_REFUSED) {
        broker->n_refused--;
    } else {
        release(broker, session, reason);
        log_ended(broker, session, reason, text);
    }
    if (session->watched) {
        loop_remove(broker, session->fd);
        if (session->pidfd >= 0)
            loop_remove(broker, session->pidfd);
    }
    session_drain(session);
    if (session->row) {
        state_drop(&broker->state, STATE_SESSIONS, session->row);
        /* The guardian has it open, too. */
        (void)shutdown(session->fd, SHUT_RDWR);
        keep_remove(broker, KEEP_SESSION, session->peer.session);
    }
    session->fd = fd_close(session->fd);
    session->pidfd = fd_close(session->pidfd);
    hash_remove(&broker->sessions_by_id, &session->node);
    list_append(&broker->ended, &session->link);
    if (broker->listen_paused)
        loop_retry_soon(broker);
}

uint64_t session_deadline_ns(const struct broker *broker)
{
    if (list_empty(&broker->silent))
        return UINT64_MAX;
    return list_entry(broker->silent.next, struct session, silent)->begun_ns +
           broker->options.config->hello_timeout * UINT64_C(1000000000);
}

void session_end_overdue(struct broker *broker)
{
    while (session_deadline_ns(broker) <= time_monotonic_ns()) {
        struct session *session = list_entry(broker->silent.next, struct session, silent);

        if (recv(session->fd, &(char){0}, 1, MSG_PEEK | MSG_DONTWAIT) > 0) { /* it is us who are slow */
            list_remove(&session->silent);
            session->begun_ns = time_monotonic_ns();
            list_append(&broker->silent, &session->silent);
        } else {
            session_end(broker, session, IPC_REASON_PROTOCOL,
                        "it did not say HELLO in time; see hello-timeout in [limits] of ipcd.conf");
        }
    }
    list_for_each_safe(node, &broker->overdue)
        session_end(broker, list_entry(node, struct session, overdue), IPC_REASON_SLOW,
                    "it does not confirm that its readers left, and its user is at the limit of lanes");
}

void session_bury(struct broker *broker)
{
    list_for_each_safe(node, &broker->ended)
    {
        list_remove(node);
        session_free(list_entry(node, struct session, link));
    }
}
