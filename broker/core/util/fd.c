/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/fd.h"

#include <assert.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "proto/limits.h"

#ifndef SO_PASSRIGHTS
# define SO_PASSRIGHTS 83
#endif

#ifndef MFD_NOEXEC_SEAL
# define MFD_NOEXEC_SEAL 0x0008U
#endif

int fd_memory(const char *name, unsigned flags)
{
    const char *without = getenv("IPC_WITHOUT"); /* for tests: see lane_without() */
    bool old = without && strstr(without, "noexec_seal");
    int fd = old ? -1 : memfd_create(name, flags | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

    if (old || (fd < 0 && errno == EINVAL))
        fd = memfd_create(name, flags | MFD_ALLOW_SEALING);
    return fd < 0 ? -errno : fd;
}

int fd_reopen_readonly(int fd)
{
    char path[sizeof("/proc/self/fd/-2147483648")];
    int reopened;

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    reopened = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    return reopened < 0 ? -errno : reopened;
}

int fd_send(int socket, const void *packet, size_t size, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(IPC_MAX_FRAME_FDS * sizeof(int))];
    } control;
    struct iovec piece = {.iov_base = (void *)(uintptr_t)packet, .iov_len = size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};

    assert(n_fds <= IPC_MAX_FRAME_FDS);
    if (n_fds > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));

        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, n_fds * sizeof(int));
    }
    for (;;) {
        if (sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno != EINTR)
            return -errno;
    }
}

void fd_refuse_rights(int socket)
{
#ifndef IPC_PLANT_RIGHTS_TAKEN
    (void)setsockopt(socket, SOL_SOCKET, SO_PASSRIGHTS, &(int){0}, sizeof(int));
#endif
}

size_t fd_raise_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 1024;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};

        if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
            limit = raised;
    }
    return limit.rlim_cur > (rlim_t)1 << 20 ? (size_t)1 << 20 : (size_t)limit.rlim_cur;
}
