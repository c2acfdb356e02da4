/* SPDX-License-Identifier: Apache-2.0
 *
 * Toward whoever keeps this broker alive: what sd_notify(3) says, and the descriptors that have to outlive us. A
 * datagram that is in the guardian's socket counts as kept: it reads all of it before it starts the next ipcd.
 *
 * Nothing here can make a request fail. A guardian that does not take what we send is told again later, everything,
 * and until then the broker says that it is unguarded. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_KEEP_H
#define IPCD_CORE_CONTROL_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct broker;

/* Names of what is kept: this and the record's number. */
enum keep_kind {
    KEEP_SESSION = 's', /* socket; pidfd, if watched; board, unless admin */
    KEEP_LANE = 'l',
    KEEP_CELLS = 'c',
    KEEP_SHARED = 'm',
    KEEP_BELL_RING = 'w', /* the end that writers get */
    KEEP_BELL_READ = 'e', /* the other, until the reader has it */
    KEEP_QUEUE = 'q',     /* its file, unless its class is best effort */
    KEEP_PORT = 'p',      /* the session's end, the core's, what the router is rung by */
    KEEP_PORT_RING = 'n', /* what the router rings the session by */
    KEEP_GIVE_RING = 'r', /* the session's ends of the two, until it has them for sure */
    KEEP_GIVE_BELL = 'b',
};

struct keep {
    int fd;           /* a datagram socket, connected; -1: there is nobody */
    int pidfd;        /* of the guardian */
    int adopt_fd;     /* where a new one may come */
    bool stores;      /* it keeps descriptors */
    bool lost;        /* it did not take something: all of it has to be said again */
    unsigned refused; /* it could not keep something: retries until all counts as kept */
    char path[120];   /* of adopt_fd */
};

#define KEEP_INIT                       \
 (struct keep)                          \
 {                                      \
  .fd = -1, .pidfd = -1, .adopt_fd = -1 \
 }

/* From the environment; `stores`: the guardian is ipcd-run. Without NOTIFY_SOCKET there is nobody. 0, -ESRCH: it is gone
 * already, or a negative errno. */
int keep_init(struct broker *broker, bool stores);
void keep_done(struct broker *broker);

/* Open the place where the next guardian finds us: as long as one can connect there, we are alive. Needs listen_fd. 0, or
 * -ESRCH: the guardian is gone, and the next one may have begun without us. */
int keep_open(struct broker *broker);

/* Lines of sd_notify(3). */
void keep_say(struct broker *broker, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Up to 4 descriptors; negative ones are left out. Replaces what was kept under that name. */
void keep_store(struct broker *broker, enum keep_kind kind, uint64_t id, const int *fds, size_t n_fds);
void keep_remove(struct broker *broker, enum keep_kind kind, uint64_t id);

/* The configuration, which is another than that of the ipcd before. */
void keep_config(struct broker *broker);

/* Everything again, to a guardian that may have missed some; and that again, if that is due. */
void keep_all(struct broker *broker);
void keep_retry(struct broker *broker);

/* The guardian tells by SIGUSR2 that it had no memory, or no descriptor, for what we sent. */
void keep_on_refused(struct broker *broker);

/* Who would start this broker again, as of now: "ipcd-run", "systemd" or "". */
const char *keep_guardian(const struct broker *broker);

/* Events of the loop: the guardian died; another one is there. */
void keep_on_guardian(struct broker *broker);
void keep_on_adopt(struct broker *broker);

#endif
