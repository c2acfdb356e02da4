/* SPDX-License-Identifier: Apache-2.0
 *
 * The listening socket: a path of our own, or one that we were started with. For the core and its parent.
 */
#ifndef IPCD_CORE_UTIL_LISTENER_H
#define IPCD_CORE_UTIL_LISTENER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "proto/limits.h"

struct listener {
    int fd, lock_fd;
    bool ours; /* the path is to be removed at the end */
    struct stat file;
    char path[IPC_MAX_ADDRESS_SIZE + 1];
};

#define LISTENER_INIT     \
 {                        \
  .fd = -1, .lock_fd = -1 \
 }

/* Where a broker of this user listens if nothing else is said. Returns 0, or a negative errno. */
int listener_default_address(char *ret, size_t capacity);

/* Take over the socket that we were started with (LISTEN_FDS). Returns 1; 0 if there is none; or a negative errno and
 * what is wrong in `error`. */
int listener_inherit(struct listener *listener, char *error, size_t error_size);

/* Make a socket at a path. A dead one is replaced; a live one is refused. Returns 0, or a negative errno and what is
 * wrong in `error`. */
int listener_open(struct listener *listener, const char *path, unsigned mode, char *error, size_t error_size);

/* Close it, and remove what listener_open() made. */
void listener_close(struct listener *listener);

/* Only the lock of an address, for its later opening; and the file of a socket that another process has bound there for
 * us: closing removes it. */
int listener_lock(struct listener *listener, const char *path, char *error, size_t error_size);
void listener_claim(struct listener *listener);

#endif
