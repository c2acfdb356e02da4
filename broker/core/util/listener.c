/* SPDX-License-Identifier: Apache-2.0
 *
 * A lock beside the socket decides between two brokers that start at once; connecting decides whether a socket that
 * lies there is dead.
 */
#include "broker/core/util/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "broker/core/util/daemon.h"
#include "broker/core/util/fd.h"

static int fail(char *error, size_t size, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static int fail(char *error, size_t size, int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return code;
}

int listener_default_address(char *ret, size_t capacity)
{
    const char *folder = getenv("XDG_RUNTIME_DIR");
    int size;

    if (geteuid() == 0)
        size = snprintf(ret, capacity, "/run/ipcd/socket");
    else if (folder && folder[0] == '/')
        size = snprintf(ret, capacity, "%s/ipcd/socket", folder);
    else
        return -ENOENT;
    return size > 0 && (size_t)size < capacity ? 0 : -ENAMETOOLONG;
}

static bool is_ours(int fd)
{
    int type = 0, listens = 0;
    socklen_t size = sizeof(int);
    struct sockaddr_storage name = {0};
    socklen_t name_size = sizeof(name);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens &&
           getsockname(fd, (struct sockaddr *)&name, &name_size) == 0 && name.ss_family == AF_UNIX;
}

int listener_inherit(struct listener *listener, char *error, size_t error_size)
{
    int n = daemon_listen_fds();
    int fd = DAEMON_LISTEN_FD;

    if (n < 0)
        return fail(error, error_size, n, "LISTEN_PID or LISTEN_FDS is not a number");
    if (n == 0)
        return 0;
    if (n != 1)
        return fail(error, error_size, -EINVAL, "%d sockets were passed (LISTEN_FDS); one is expected", n);
    if (!is_ours(fd))
        return fail(
            error, error_size, -EINVAL,
            "the socket that was passed (LISTEN_FDS) is not a listening Unix socket of type SOCK_SEQPACKET "
            "(ListenSequentialPacket=)");
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return fail(error, error_size, -errno, "the socket that was passed cannot be set up: %s",
                    strerror(errno));
    listener->fd = fd;
    return 1;
}

static int make_folder(const char *path, char *error, size_t error_size)
{
    _cleanup_(freep) char *copy = strdup(path);
    const char *folder = copy ? dirname(copy) : NULL;

    if (!folder)
        return fail(error, error_size, -ENOMEM, "out of memory");
    if (mkdir(folder, geteuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST)
        return fail(error, error_size, -errno, "the folder %s cannot be made: %s", folder, strerror(errno));
    return 0;
}

static int take_lock(struct listener *listener, const char *path, char *error, size_t error_size)
{
    char lock[IPC_MAX_ADDRESS_SIZE + sizeof(".lock")];

    (void)snprintf(lock, sizeof(lock), "%s.lock", path);
    for (int i = 0; i < 100; i++) {
        _cleanup_(fd_closep) int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        struct stat held, there;

        if (fd < 0 || fstat(fd, &held) < 0)
            return fail(error, error_size, -errno, "the lock %s cannot be opened: %s", lock, strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
            return fail(error, error_size, -EADDRINUSE,
                        "another broker serves %s (it holds %s): stop it, or choose another --address", path,
                        lock);
        /* Whoever held it before may have removed it in between: then ours is of nobody's concern. */
        if (stat(lock, &there) == 0 && there.st_dev == held.st_dev && there.st_ino == held.st_ino) {
            listener->lock_fd = fd_steal(&fd);
            return 0;
        }
    }
    return fail(error, error_size, -EBUSY, "the lock %s changes all the time", lock);
}

/* Remove a socket that nobody listens on. */
static int clear_path(const struct sockaddr_un *address, char *error, size_t error_size)
{
    _cleanup_(fd_closep) int probe = -1;
    struct stat st;

    if (lstat(address->sun_path, &st) < 0)
        return errno == ENOENT
                   ? 0
                   : fail(error, error_size, -errno, "%s: %s", address->sun_path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return fail(error, error_size, -EEXIST,
                    "%s is there and is not a socket: remove it, or choose another --address",
                    address->sun_path);
    probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return fail(error, error_size, -errno, "no socket to be had: %s", strerror(errno));
    if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno != ECONNREFUSED)
        return fail(error, error_size, -EADDRINUSE,
                    "somebody listens on %s already: stop it, or choose another --address",
                    address->sun_path);
    if (unlink(address->sun_path) < 0 && errno != ENOENT)
        return fail(error, error_size, -errno, "the dead socket %s cannot be removed: %s", address->sun_path,
                    strerror(errno));
    return 0;
}

int listener_lock(struct listener *listener, const char *path, char *error, size_t error_size)
{
    int result;

    if (listener->lock_fd >= 0)
        return 0;
    if (strlen(path) > IPC_MAX_ADDRESS_SIZE)
        return fail(error, error_size, -ENAMETOOLONG,
                    "%s is longer than the %u bytes that the path of a socket can have", path,
                    IPC_MAX_ADDRESS_SIZE);
    result = make_folder(path, error, error_size);
    if (result == 0)
        result = take_lock(listener, path, error, error_size);
    if (result == 0)
        (void)snprintf(listener->path, sizeof(listener->path), "%s", path);
    return result;
}

void listener_claim(struct listener *listener)
{
    listener->ours = stat(listener->path, &listener->file) == 0;
}

int listener_open(struct listener *listener, const char *path, unsigned mode, char *error, size_t error_size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mode_t mask;
    int result;

    if (strlen(path) > IPC_MAX_ADDRESS_SIZE)
        return fail(error, error_size, -ENAMETOOLONG,
                    "%s is longer than the %u bytes that the path of a socket can have", path,
                    IPC_MAX_ADDRESS_SIZE);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    result = listener_lock(listener, path, error, error_size);
    if (result < 0)
        return result;
    result = clear_path(&address, error, error_size);
    if (result < 0)
        return result;
    listener->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mask = umask(0777 & ~mode);
    result = listener->fd < 0 || bind(listener->fd, (const struct sockaddr *)&address, sizeof(address)) < 0
                 ? -errno
                 : 0;
    (void)umask(mask);
    if (result == 0) {
        listener->ours = true;
        if (stat(path, &listener->file) < 0 || listen(listener->fd, SOMAXCONN) < 0)
            result = -errno;
    }
    if (result < 0)
        return fail(error, error_size, result, "cannot listen on %s: %s", path, strerror(-result));
    return 0;
}

void listener_close(struct listener *listener)
{
    char lock[IPC_MAX_ADDRESS_SIZE + sizeof(".lock")];
    struct stat st;

    listener->fd = fd_close(listener->fd);
    /* Only what is ours: somebody may have replaced it. */
    if (listener->ours && stat(listener->path, &st) == 0 && st.st_dev == listener->file.st_dev &&
        st.st_ino == listener->file.st_ino)
        (void)unlink(listener->path);
    if (listener->lock_fd >= 0 && listener->path[0]) {
        (void)snprintf(lock, sizeof(lock), "%s.lock", listener->path);
        (void)unlink(lock);
    }
    listener->lock_fd = fd_close(listener->lock_fd);
}
