/* SPDX-License-Identifier: Apache-2.0
 *
 * A broker with its guardian: ipcd-run and the ipcd that it keeps alive, in a folder of their own.
 */
#ifndef IPC_TESTS_GUARDED_H
#define IPC_TESTS_GUARDED_H

#include <sys/types.h>

struct guarded {
    pid_t run;
    char folder[48];
    char address[80];
};

/* Start it and wait until it answers; its address is put into IPC_ADDRESS. `arguments` (or NULL) are ipcd-run's. */
void guarded_start(struct guarded *guarded, const char *const *arguments);
/* Another ipcd-run for the same address. */
void guarded_run(struct guarded *guarded, const char *const *arguments);
/* End it by SIGTERM; it must leave with 0, and no file. */
void guarded_stop(struct guarded *guarded);
/* Kill ipcd-run and ipcd: the sessions are over. guarded_run() starts anew at the same address. */
void guarded_lose(const struct guarded *guarded);

/* What the ipcd that answers says of itself; pid 0: there is none. */
struct guarded_status {
    pid_t pid;
    unsigned starts;
    char guardian[16];
};
struct guarded_status guarded_status(const struct guarded *guarded);

/* The ipcd that answers now. */
pid_t guarded_pid(const struct guarded *guarded);
/* Kill the ipcd that answers now, and wait until another one does. */
void guarded_kill_ipcd(const struct guarded *guarded);
/* How many descriptors ipcd-run has open: its own, and what it keeps; when it has read what ipcd told it. */
unsigned guarded_kept(const struct guarded *guarded);
/* Wait until one answers that is not `other`. */
pid_t guarded_wait_other(const struct guarded *guarded, pid_t other);

#endif
