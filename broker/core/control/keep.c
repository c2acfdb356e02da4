/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/keep.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "broker/core/control/broker.h"
#include "broker/core/control/loop.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

/* How long a guardian may take to read what its socket holds, before we go on without it. */
#define PATIENCE_MS 1000

static void give_up(struct broker *broker, int error)
{
    log_write(LOG_SYSTEM, NULL,
              "unguarded: what keeps this broker alive does not take its descriptors (%s); trying again",
              strerror(error));
    broker->keep.lost = true;
    loop_retry_soon(broker);
}

static void post(struct broker *broker, const char *text, const int *fds, size_t n_fds)
{
    struct keep *keep = &broker->keep;

    while (keep->fd >= 0 && !keep->lost) {
        struct pollfd room = {.fd = keep->fd, .events = POLLOUT};
        int result = fd_send(keep->fd, text, strlen(text), fds, n_fds);

        if (result == 0)
            return;
        if (result == -ECONNREFUSED || result == -EPIPE || result == -ENOTCONN)
            return; /* it is gone, which its pidfd tells */
        if ((result != -EAGAIN && result != -ENOBUFS && result != -ETOOMANYREFS) ||
            poll(&room, 1, PATIENCE_MS) <= 0)
            give_up(broker, -result);
    }
}

/* Is that our parent, or is it gone already, and somebody else is? NULL: nobody said who it is. */
static bool is_parent(const char *pid)
{
    return !pid || atoi(pid) == getppid();
}

int keep_init(struct broker *broker, bool stores)
{
    struct keep *keep = &broker->keep;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    size_t size = path ? strlen(path) : 0;

    *keep = KEEP_INIT;
    if (size < 2 || size >= sizeof(address.sun_path) || (path[0] != '@' && path[0] != '/'))
        return 0;
    memcpy(address.sun_path, path, size);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    keep->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (keep->fd < 0 ||
        connect(keep->fd, (const struct sockaddr *)&address,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (path[0] == '/'))) < 0) {
        int result = -errno;

        log_write(LOG_SYSTEM, NULL, "NOTIFY_SOCKET=%s: %s", path, strerror(-result));
        keep->fd = fd_close(keep->fd);
        return result;
    }
    keep->stores = stores;
    if (!stores)
        return 0;
    keep->pidfd = pidfd_open(getppid(), 0);
    if (keep->pidfd < 0)
        return -errno;
    return is_parent(getenv("IPCD_GUARDIAN_PID")) ? loop_add(broker, keep->pidfd, EPOLLIN, LOOP_GUARDIAN, 0)
                                                  : -ESRCH;
}

static void close_adopt(struct broker *broker)
{
    struct keep *keep = &broker->keep;

    if (keep->adopt_fd < 0)
        return;
    (void)unlink(keep->path);
    loop_remove(broker, keep->adopt_fd);
    keep->adopt_fd = fd_close(keep->adopt_fd);
}

static bool guardian_lives(const struct keep *keep)
{
    struct pollfd end = {.fd = keep->pidfd, .events = POLLIN};

    return keep->pidfd >= 0 && poll(&end, 1, 0) <= 0; /* who cannot be asked about is not dead */
}

void keep_done(struct broker *broker)
{
    close_adopt(broker);
    fd_close(broker->keep.fd);
    fd_close(broker->keep.pidfd);
    broker->keep = KEEP_INIT;
}

void keep_say(struct broker *broker, const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    post(broker, text, NULL, 0);
}

static void store(struct broker *broker, const char *name, const int *fds, size_t n_fds)
{
    char text[64];
    int there[IPC_MAX_FRAME_FDS];
    size_t n = 0;

    if (!broker->keep.stores)
        return;
    for (size_t i = 0; i < n_fds; i++)
        if (fds[i] >= 0)
            there[n++] = fds[i];
    (void)snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s", name);
    post(broker, text, there, n);
}

void keep_store(struct broker *broker, enum keep_kind kind, uint64_t id, const int *fds, size_t n_fds)
{
    char name[24];

    (void)snprintf(name, sizeof(name), "%c%" PRIu64, (char)kind, id);
    store(broker, name, fds, n_fds);
}

void keep_remove(struct broker *broker, enum keep_kind kind, uint64_t id)
{
#ifdef IPC_PLANT_KEPT_FOREVER
    return;
#endif
    if (broker->keep.stores)
        keep_say(broker, "FDSTOREREMOVE=1\nFDNAME=%c%" PRIu64, (char)kind, id);
}

static void keep_some(struct broker *broker, enum keep_kind kind, uint64_t id, int fd)
{
    if (fd >= 0)
        keep_store(broker, kind, id, &fd, 1);
}

void keep_config(struct broker *broker)
{
    store(broker, "config", &broker->options.config_fd, broker->options.config_fd >= 0);
}

void keep_all(struct broker *broker)
{
    broker->keep.lost = false;
    store(broker, "registry", &broker->state.fd, 1);
    store(broker, "listener", &broker->listen_fd, 1);
    keep_config(broker);
    list_for_each(node, &broker->sessions)
    {
        const struct session *session = list_entry(node, struct session, link);

        if (session->row)
            keep_store(broker, KEEP_SESSION, session->peer.session,
                       (int[]){session->fd, session->pidfd, session->board_fd}, 3);
        list_for_each(cells, &session->cells)
        {
            const struct cells *some = list_entry(cells, struct cells, link);

            keep_store(broker, KEEP_CELLS, some->id, &some->fd, 1);
        }
    }
    list_for_each(lanes, &broker->lanes)
    {
        const struct lane *lane = list_entry(lanes, struct lane, link);

        keep_store(broker, KEEP_LANE, lane->id, &lane->fd, 1);
        /* Cells of readers that left are known through the pairings alone. */
        list_for_each(pairings, &lane->pairings)
        {
            const struct cells *cells = list_entry(pairings, struct pairing, by_lane)->cells;

            if (!cells->session)
                keep_store(broker, KEEP_CELLS, cells->id, &cells->fd, 1);
        }
    }
    list_for_each(segments, &broker->shared)
    {
        const struct shared *shared = list_entry(segments, struct shared, link);

        keep_store(broker, KEEP_SHARED, shared->id, &shared->fd, 1);
    }
    list_for_each(queues, &broker->queues)
    {
        const struct queue *queue = list_entry(queues, struct queue, link);

        if (queue->row->class == QUEUE_CRASH_SAFE)
            keep_store(broker, KEEP_QUEUE, queue->id, &queue->fd, 1);
    }
    list_for_each(ports, &broker->ports)
    {
        const struct port *port = list_entry(ports, struct port, link);

        keep_store(broker, KEEP_PORT, port->id, (int[]){port->session_fd, port->core_fd, port->bell_fd}, 3);
        keep_some(broker, KEEP_PORT_RING, port->id, port->ring_fd);
        keep_some(broker, KEEP_GIVE_RING, port->id, port->give_ring_fd);
        keep_some(broker, KEEP_GIVE_BELL, port->id, port->give_bell_fd);
    }
    list_for_each(subscriptions, &broker->subscriptions)
    {
        list_for_each(bells, &list_entry(subscriptions, struct subscription, link)->bells)
        {
            const struct bell *bell = list_entry(bells, struct bell, link);

            keep_store(broker, KEEP_BELL_RING, bell->id, &bell->ring_fd, 1);
            if (bell->read_fd >= 0)
                keep_store(broker, KEEP_BELL_READ, bell->id, &bell->read_fd, 1);
        }
    }
}

/* One retry says all of it again; the next one finds that nothing of that was refused. */
#define REFUSED_RETRIES 2u

void keep_on_refused(struct broker *broker)
{
    if (broker->keep.refused == 0)
        log_write(
            LOG_SYSTEM, NULL,
            "unguarded: ipcd-run cannot keep all descriptors, for want of memory or of its limit of open files; "
            "trying again");
    broker->keep.refused = REFUSED_RETRIES;
    loop_retry_later(broker);
}

void keep_retry(struct broker *broker)
{
    struct keep *keep = &broker->keep;

    if (keep->lost || keep->refused == REFUSED_RETRIES)
        keep_all(broker);
    if (keep->refused == 0)
        return;
    if (--keep->refused > 0)
        loop_retry_later(broker);
    else
        log_write(LOG_STARTED, NULL, "guarded again: ipcd-run keeps all descriptors");
}

const char *keep_guardian(const struct broker *broker)
{
    bool by_run = strcmp(broker->options.guardian, "ipcd-run") == 0;

    if (by_run && (!broker->keep.stores || broker->keep.lost || broker->keep.refused > 0))
        return "";
    return broker->options.guardian;
}

/* A place beside the broker's socket where only our user and root can come. */
static int open_adopt(struct broker *broker)
{
    struct keep *keep = &broker->keep;
    struct sockaddr_un own = {0}, address = {.sun_family = AF_UNIX};
    socklen_t size = sizeof(own);
    mode_t mask;
    int result;

    if (getsockname(broker->listen_fd, (struct sockaddr *)&own, &size) < 0 || own.sun_path[0] != '/')
        return -ENOENT;
    if (snprintf(keep->path, sizeof(keep->path), "%s.guard", own.sun_path) >= (int)sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, keep->path, strlen(keep->path) + 1);
    keep->adopt_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (keep->adopt_fd < 0)
        return -errno;
    (void)unlink(keep->path); /* a name that only brokers of this socket use, of which we are the one */
    mask = umask(0177);
    result = bind(keep->adopt_fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
                     listen(keep->adopt_fd, 4) < 0
                 ? -errno
                 : loop_add(broker, keep->adopt_fd, EPOLLIN, LOOP_ADOPT, 0);
    (void)umask(mask);
    if (result < 0)
        close_adopt(broker);
    return result;
}

int keep_open(struct broker *broker)
{
    int result;

    if (!broker->keep.stores || !getenv("IPCD_GUARDIAN_PID"))
        return 0;
    result = open_adopt(broker);
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "another ipcd-run could not take over from this one: %s",
                  strerror(-result));
    /* One that came after the end of ours, and before there was this place, has begun anew. */
    return guardian_lives(&broker->keep) ? 0 : -ESRCH;
}

void keep_on_guardian(struct broker *broker)
{
    struct keep *keep = &broker->keep;
    int result = 0;

    if (guardian_lives(keep))
        return; /* the next one was quicker than this event */
    loop_remove(broker, keep->pidfd);
    keep->pidfd = fd_close(keep->pidfd);
    keep->fd = fd_close(keep->fd);
    keep->stores = keep->lost = false;
    keep->refused = 0;
    if (keep->adopt_fd < 0)
        result = open_adopt(broker);
    log_write(LOG_SYSTEM, NULL,
              "unguarded: ipcd-run is gone; sessions go on, but would not survive the end of this ipcd%s%s",
              result == 0 ? "; start ipcd-run with the same address to guard it again" : ": ",
              result == 0 ? "" : strerror(-result));
}

/* Who is it, and what did it bring? Returns the descriptor of its notify socket or a negative errno. */
static int receive_guardian(int peer)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char text[32] = "";
    struct iovec piece = {.iov_base = text, .iov_len = sizeof(text) - 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    const struct timeval limit = {.tv_usec = PATIENCE_MS * 1000 / 2};
    _cleanup_(fd_closep) int fd = -1;
    struct ucred who;
    socklen_t size = sizeof(who);

    if (getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || (who.uid != 0 && who.uid != geteuid()))
        return -EPERM;
    (void)setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (recvmsg(peer, &message, MSG_CMSG_CLOEXEC) < 0)
        return -errno;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at))
        if (at->cmsg_level == SOL_SOCKET && at->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(at), sizeof(fd));
    if (strcmp(text, "ADOPT=1") != 0 || fd < 0)
        return -EPROTO;
    return fd_steal(&fd);
}

void keep_on_adopt(struct broker *broker)
{
    struct keep *keep = &broker->keep;
    _cleanup_(fd_closep) int peer = accept4(keep->adopt_fd, NULL, NULL, SOCK_CLOEXEC);
    _cleanup_(fd_closep) int fd = -1;
    struct ucred who = {0};
    socklen_t size = sizeof(who);
    char answer[128] = "OK";

    if (peer < 0)
        return;
    if (keep->pidfd >= 0)
        keep_on_guardian(broker);
    fd = keep->pidfd < 0 ? receive_guardian(peer) : -EBUSY;
    if (fd >= 0 && getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0)
        keep->pidfd = pidfd_open(who.pid, 0);
    if (fd < 0 || keep->pidfd < 0) {
        (void)snprintf(answer, sizeof(answer), "ERROR=%s", strerror(fd < 0 ? -fd : errno));
        (void)fd_send(peer, answer, strlen(answer), NULL, 0);
        return;
    }
    (void)fd_send(peer, answer, strlen(answer), NULL, 0);
    keep->fd = fd_steal(&fd);
    keep->stores = true;
    (void)loop_add(broker, keep->pidfd, EPOLLIN, LOOP_GUARDIAN, 0);
    keep_all(broker);
    keep_say(broker, "READY=1\nSTATUS=Adopted.");
    log_write(LOG_STARTED, NULL, "guarded again, by ipcd-run (pid %d)", (int)who.pid);
}
