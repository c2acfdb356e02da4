/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking over an ipcd whose ipcd-run is gone: it listens beside its socket, and gives everything to whoever comes. As long as
 * one can connect there, it is alive.
 */
#include "broker/run/run.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

static int connect_to(const struct sockaddr *address, socklen_t size, int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, address, size) < 0) {
        int result = -errno;

        fd_close(fd);
        return result;
    }
    return fd < 0 ? -errno : fd;
}

/* A descriptor on which it can tell us things. */
static int open_ear(const struct notify *notify)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t size = strlen(notify->address);

    memcpy(address.sun_path + 1, notify->address + 1, size - 1);
    return connect_to((const struct sockaddr *)&address,
                      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size), SOCK_DGRAM | SOCK_NONBLOCK);
}

/* Returns its answer's size or a negative errno; one that does not answer hangs, and is killed. */
static int hear(int fd, int pidfd, uint64_t patience_ns, char *answer, size_t size)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN}, ended = {.fd = pidfd, .events = POLLIN};
    ssize_t result;

    if (poll(&readable, 1, patience_ns ? (int)(patience_ns / 1000000) : -1) == 0) {
        log_write(LOG_CHILD, NULL,
                  "the ipcd that is there does not answer in %.1f s: it is killed, its sessions are lost",
                  (double)patience_ns * 1e-9);
        (void)pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
        (void)poll(&ended, 1, -1);
        return -ESRCH;
    }
    result = recv(fd, answer, size, MSG_DONTWAIT);
    if (result == 0 || (result < 0 && errno == ECONNRESET))
        return -ESRCH; /* it ended meanwhile */
    return result < 0 ? -errno : (int)result;
}

int adopt_ipcd(struct child *child, const struct notify *notify, const char *address, uint64_t patience_ns)
{
    static const char ask[] = "ADOPT=1";
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    _cleanup_(fd_closep) int fd = -1, ear = -1, pidfd = -1;
    struct ucred who;
    struct pollfd hangup = {.events = POLLRDHUP};
    socklen_t size = sizeof(who);
    char answer[256] = "";
    int result;

    if (snprintf(place.sun_path, sizeof(place.sun_path), "%s.guard", address) >= (int)sizeof(place.sun_path))
        return -ENOENT;
    fd = connect_to((const struct sockaddr *)&place, sizeof(place), SOCK_SEQPACKET);
    if (fd < 0)
        return fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0)
        return -errno;
    pidfd = pidfd_open(who.pid, 0);
    hangup.fd = fd;
    if (pidfd < 0 || poll(&hangup, 1, 0) != 0)
        return -ESRCH;
    ear = open_ear(notify);
    if (ear < 0)
        return ear;
    result = fd_send(fd, ask, sizeof(ask) - 1, &ear, 1);
    if (result == 0)
        result = hear(fd, pidfd, patience_ns, answer, sizeof(answer) - 1);
    if (result < 0)
        return result == -EPIPE ? -ESRCH : result;
    if (strcmp(answer, "OK") != 0)
        return -EPERM;
    child->pid = who.pid;
    child->pidfd = fd_steal(&pidfd);
    child->adopted = true;
    return 0;
}

void adopt_remove(const char *address)
{
    char path[sizeof((struct sockaddr_un){0}.sun_path)];

    if (snprintf(path, sizeof(path), "%s.guard", address) < (int)sizeof(path))
        (void)unlink(path);
}
