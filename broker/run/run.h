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

#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"

#include "proto/limits.h"

/* ---- notify.c: the socket on which children say how they are --------------------------------------------- */

struct notify {
    int fd;
    char address[sizeof("@ipcd-run/") + 40]; /* abstract: nothing is left behind */
};

/* What one message said. */
struct notify_news {
    bool ready, stopping, watchdog;
    bool store, remove; /* the names' descriptors */
    bool refused;       /* which could not be kept */
    pid_t sender;
    uint64_t extend_us; /* so much more time to stop in; 0: nothing new */
    char status[256];   /* empty: nothing new */
};

/* Returns 0 or a negative errno. */
int notify_init(struct notify *notify);
void notify_done(struct notify *notify);

/* Take in one message, and, if it comes from `pid`, its descriptors into the store; others' are dropped. Returns 1, 0 if
 * there is none, or a negative errno. */
struct store;
int notify_read(struct notify *notify, pid_t pid, struct store *store, struct notify_news *ret);

/* Read the text of a message: lines of KEY=value. Pure. */
void notify_parse(const char *text, struct notify_news *ret);

/* ---- store.c: descriptors that outlive ipcd ----------------------------------------------------------------- */

#define STORE_PARTS 4u

struct store {
    struct list kept; /* in the order of storing */
    struct hash by_name;
    size_t count; /* descriptors */
};

int store_init(struct store *store);
void store_done(struct store *store);
void store_clear(struct store *store);

/* Keep descriptors, which are the store's on success, under a name of 1 to 23 printable characters; what was kept under
 * it is closed. 0, -EINVAL, -ENOMEM. */
int store_put(struct store *store, const char *name, const int *fds, unsigned count);
void store_remove(struct store *store, const char *name);

/* The first descriptor of that name, which stays the store's; or -1. */
int store_get(const struct store *store, const char *name);

/* A memfd with the index of all of it (proto/store.h), not close-on-exec; or a negative errno. */
int store_index(const struct store *store);

/* ---- child.c: starting processes that end with us ---------------------------------------------------------- */

struct child {
    pid_t pid; /* 0: not running */
    int pidfd;
    bool adopted; /* it is not our child: nobody tells us its status */
};

#define CHILD_INIT      \
 {                      \
  .pid = 0, .pidfd = -1 \
 }

struct child_plan {
    const char *const *argv;
    char *const *environment;
    int listen_fd; /* becomes descriptor 3 of the child, or -1 */
    bool inherits; /* what is kept; others get 0, 1, 2 alone */
    bool survives; /* us */
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

/* ---- gateway.c: the gateways, which are run beside ipcd ----------------------------------------------------- */

#define RUN_GATEWAYS_MAX 8u

struct run_gateway {
    char *path; /* of its program */
    const char *config;
    struct child child;
    bool ready;   /* since it was started */
    bool settled; /* it was ready once, or ended */
    unsigned failures;
    uint64_t restart_at_ns; /* 0: no restart is due */
};

struct run_gateways {
    struct run_gateway each[RUN_GATEWAYS_MAX];
    size_t count;
    bool stopping;
    const char *address, *notify; /* of ipcd's socket, and of ours */
    const char *log_level;        /* or NULL: as configured */
};

void gateways_start(struct run_gateways *gateways);
/* Has each been ready once, or failed? */
bool gateways_settled(const struct run_gateways *gateways);
bool gateways_run(const struct run_gateways *gateways);
bool gateways_have(const struct run_gateways *gateways, pid_t pid);
/* It said that it is ready. */
void gateways_ready(struct run_gateways *gateways, pid_t pid);
/* They read their configuration again. */
void gateways_reload(const struct run_gateways *gateways);
/* Tell all of them to end; none is started again. */
void gateways_signal(struct run_gateways *gateways, int signal);
/* Its pidfd became readable. */
void gateways_on_end(struct run_gateways *gateways, size_t index);
/* When some of them are to be started again; 0: none is. And: start those whose time has come. */
uint64_t gateways_due(const struct run_gateways *gateways);
void gateways_restart(struct run_gateways *gateways);

/* ---- supervise.c: the life of ipcd and COMMAND ----------------------------------------------------------- */

struct run_options {
    const char *address, *config_path, *ipcd_path;
    const char *log_level; /* ipcd's, or NULL: as configured */
    bool private;
    uint64_t watchdog_ns; /* 0: none */
    char **command;       /* NULL: none */
    struct run_gateways gateways;
};

/* Returns the exit status. */
int run_supervise(const struct run_options *options);

/* ---- adopt.c ------------------------------------------------------------------------------------------------ */

/* Take over the ipcd that serves an address without a guardian; one that does not answer in `patience_ns` (0: for ever) is
 * killed. -ENOENT, -ECONNREFUSED, -ESRCH: there is none. -EPERM: it has a guardian. */
int adopt_ipcd(struct child *child, const struct notify *notify, const char *address, uint64_t patience_ns);

/* Remove what an ipcd that was killed left there. */
void adopt_remove(const char *address);

/* ---- refuse.c ----------------------------------------------------------------------------------------------- */

/* For a second, or until a signal comes (-1: none is waited for), answer who connects with a failure that says why there is
 * no broker. */
void refuse_connections(int listen_fd, int signal_fd, const char *text);

/* ---- folder.c: the private directory ------------------------------------------------------------------------ */

/* A fresh directory of mode 0700 under $XDG_RUNTIME_DIR or /tmp. Returns 0 or a negative errno. */
int folder_make(char *ret, size_t capacity);

/* Remove it with the files that are directly in it. */
void folder_remove(const char *path);

#endif
