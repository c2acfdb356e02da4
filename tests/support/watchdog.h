/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests that wait for events: an end for those that would wait for ever, and a look at what a case left.
 */
#ifndef IPC_TESTS_WATCHDOG_H
#define IPC_TESTS_WATCHDOG_H

#include <stdbool.h>
#include <sys/types.h>

/* If not called again (0: off) within so many seconds, say what was going on and end the process (status 124). */
void watchdog(unsigned seconds, const char *what);

/* A child that is killed when its parent ends. As fork(2). */
pid_t fork_child(void);

/* Wait for a child: its exit status, or 128 + the signal that ended it. */
int wait_child(pid_t child);

/* Descriptors that this process has open. */
unsigned descriptors_open(void);
/* Of another process. */
unsigned descriptors_of(pid_t pid);

/* True if this process has children, running or not waited for. */
bool children_left(void);

#endif
