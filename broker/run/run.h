/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-run's parts. One thread. It parses no client data: only what ipcd tells by systemd's notify protocol.
 */
#ifndef IPCD_RUN_RUN_H
#define IPCD_RUN_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/limits.h"

/* ---- notify.c: the socket on which children say how they are --------------------------------------------- */

struct notify {
    int fd;
    char address[sizeof("@ipcd-run/") + 40]; /* abstract: nothing is left behind */
};

/* What one message said. */
struct notify_news {
    bool ready, stopping, watchdog;
    char status[256]; /* empty: nothing new */
};

/* Returns 0 or a negative errno. */
int notify_init(struct notify *notify);
void notify_done(struct notify *notify);

/* Take in one message that comes from `pid`; others' are dropped. Returns 1, 0 if there is none, or a negative errno. */
int notify_read(struct notify *notify, pid_t pid, struct notify_news *ret);

/* Read the text of a message: lines of KEY=value. Pure. */
void notify_parse(const char *text, struct notify_news *ret);

/* ---- child.c: starting processes that end with us ---------------------------------------------------------- */

struct child {
    pid_t pid; /* 0: not running */
    int pidfd;
};

#define CHILD_INIT      \
 {                      \
  .pid = 0, .pidfd = -1 \
 }

struct child_plan {
    const char *const *argv;
    char *const *environment;
    int listen_fd; /* becomes descriptor 3 of the child, or -1 */
    bool
        foreground_signals; /* keep SIGINT of the terminal for us: the child gets a process group of its own */
};

/* Start a program. Returns 0; or a negative errno: then exec failed, and nothing runs. */
int child_start(struct child *child, const struct child_plan *plan);

/* After its pidfd became readable: what it ended with (exit status, or 128 + signal), and in *ret_text how to say so. */
int child_reap(struct child *child, char *ret_text, size_t text_size);

void child_signal(const struct child *child, int signal);

/* An environment: ours, with some variables set (value) or left out (NULL). Free with environment_free(). NULL: no
 * memory. */
struct environment_change {
    const char *name, *value;
};
char **environment_new(const struct environment_change *changes, size_t n_changes);
char **environment_free(char **environment);

/* ---- supervise.c: the life of ipcd and COMMAND ----------------------------------------------------------- */

struct run_options {
    const char *address, *config_path, *ipcd_path;
    const char *log_level; /* ipcd's, or NULL: as configured */
    bool private;
    char **command; /* NULL: none */
};

/* Returns the exit status. */
int run_supervise(const struct run_options *options);

/* ---- folder.c: the private directory ------------------------------------------------------------------------ */

/* A fresh directory of mode 0700 under $XDG_RUNTIME_DIR or /tmp. Returns 0 or a negative errno. */
int folder_make(char *ret, size_t capacity);

/* Remove it with the files that are directly in it. */
void folder_remove(const char *path);

#endif
