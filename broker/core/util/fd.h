/* SPDX-License-Identifier: Apache-2.0
 *
 * Descriptors and memory that free themselves at the end of a scope; packets with descriptors. Any thread.
 */
#ifndef IPCD_CORE_UTIL_FD_H
#define IPCD_CORE_UTIL_FD_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define _cleanup_(function) __attribute__((cleanup(function)))

/* Close a descriptor if it is one; errno stays. Returns -1, to be stored in its place. */
static inline int fd_close(int fd)
{
    if (fd >= 0) {
        int saved = errno;

        close(fd);
        errno = saved;
    }
    return -1;
}

static inline void fd_closep(int *fd)
{
    *fd = fd_close(*fd);
}

static inline int fd_steal(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

static inline void freep(void *pointer)
{
    free(*(void **)pointer);
}

/* A file in memory that can be sealed, and not executed where the kernel knows how (6.3). `flags` as memfd_create(2).
 * Returns a descriptor or a negative errno. */
int fd_memory(const char *name, unsigned flags);

/* A new description of the same file, read-only. Returns a descriptor or a negative errno. */
int fd_reopen_readonly(int fd);

/* Send one packet with up to 4 descriptors; never blocks, never raises a signal. Returns 0 or a negative errno. */
int fd_send(int socket, const void *packet, size_t size, const int *fds, size_t n_fds);

/* Raise the soft limit of open files to the hard one. Returns the limit that holds now. */
size_t fd_raise_limit(void);

/* Whoever sends descriptors to this socket, or to one that it accepts, gets EPERM, from Linux 6.16 on. Where the last
 * close of a descriptor may wait (a TCP socket that lingers), it could hold us up otherwise. */
void fd_refuse_rights(int socket);

#endif
