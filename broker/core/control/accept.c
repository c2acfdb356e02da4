/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking connections. Out of descriptors, one that was kept in reserve tells the client so; if even that is gone, the
 * loop stops listening until something was given back, instead of spinning on a queue that it cannot empty.
 */
#include "broker/core/control/accept.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "broker/core/control/loop.h"
#include "broker/core/control/session.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define ACCEPTS_PER_ROUND 32u
#define FULL_LOG_NS       UINT64_C(10000000000)

/* Once in a while, however often. */
static void log_full(struct broker *broker, const char *why)
{
    uint64_t now_ns = time_monotonic_ns();

    broker->turned_away++;
    if (now_ns < broker->full_log_ns)
        return;
    log_write(
        LOG_SYSTEM, NULL,
        "connections are turned away or kept waiting: %s (%" PRIu64
        " times since this was said last); raise the limit of open files (LimitNOFILE=), or lower sessions, "
        "topics or descriptors in [limits] of ipcd.conf",
        why, broker->turned_away);
    broker->turned_away = 0;
    broker->full_log_ns = now_ns + FULL_LOG_NS;
}

static void pause_listening(struct broker *broker, const char *why)
{
    if (!broker->listen_paused) {
        log_full(broker, why);
        (void)loop_change(broker, broker->listen_fd, 0, LOOP_LISTEN, 0);
        broker->listen_paused = true;
    }
    loop_retry_soon(broker);
}

void accept_resume(struct broker *broker)
{
    if (broker->reserve_fd < 0)
        broker->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (!broker->listen_paused)
        return;
    broker->listen_paused = false;
    (void)loop_change(broker, broker->listen_fd, EPOLLIN, LOOP_LISTEN, 0);
}

/* The number of the request that the client sent first, if it is there already. */
static uint64_t first_request(struct broker *broker, int fd)
{
    ssize_t size = recv(fd, broker->rx, sizeof(broker->rx), MSG_DONTWAIT);
    struct ipc_frame frame;

    return size > 0 && ipc_frame_unpack(&frame, &broker->arena, broker->rx, (size_t)size) == 0 ? frame.id : 0;
}

/* Tell a client that there are no descriptors for it. It is not waited for: if its first frame is not there yet, the
 * answer has the number 0. */
static void tell_full(struct broker *broker, int fd, int code)
{
    Ipc__Control__Failure message = IPC__CONTROL__FAILURE__INIT;
    int size;

    message.code = code;
    message.text = (char[]){
        "the broker has used up the file descriptors or the memory that it may use; raise its limit of "
        "open files (LimitNOFILE=), or lower sessions, topics or descriptors in [limits] of ipcd.conf"};
    size = ipc_frame_pack(broker->tx, sizeof(broker->tx), IPC__CONTROL__TYPE__FAILURE,
                          first_request(broker, fd), &message.base);
    if (size > 0)
        (void)fd_send(fd, broker->tx, (size_t)size, NULL, 0);
    broker->quota.refused++;
    log_full(broker, strerror(-code));
}

/* Out of descriptors: take the next connection in the place of the one in reserve, only to tell it. */
static void turn_away(struct broker *broker, int code)
{
    int fd;

    broker->reserve_fd = fd_close(broker->reserve_fd);
    fd = accept4(broker->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
        tell_full(broker, fd, -code);
        fd_close(fd);
    }
    broker->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (broker->reserve_fd < 0)
        pause_listening(broker, strerror(code));
}

void accept_on_event(struct broker *broker)
{
    for (unsigned i = 0; i < ACCEPTS_PER_ROUND && !broker->listen_paused; i++) {
        _cleanup_(fd_closep) int fd = accept4(broker->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        int result;

        if (fd < 0) {
            if (errno == EMFILE && broker->reserve_fd >= 0)
                turn_away(broker, errno);
            else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
                pause_listening(broker, strerror(errno));
            else if (errno != EINTR && errno != ECONNABORTED)
                return; /* none left, or one that went wrong by itself */
            continue;
        }
        result = session_new(broker, &fd);
        if (result < 0 && result != -ESRCH) /* whom there is nobody left to tell */
            tell_full(broker, fd, result);
    }
}
