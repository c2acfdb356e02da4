/* SPDX-License-Identifier: Apache-2.0
 *
 * The event loop. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_LOOP_H
#define IPCD_CORE_CONTROL_LOOP_H

#include <stdint.h>

struct broker;

/* What an event is about. With the number of a session, which is never used again, an event that is left over from one
 * that ended finds nobody. */
enum loop_source {
    LOOP_LISTEN = 1,
    LOOP_SIGNAL,
    LOOP_WATCHDOG,
    LOOP_RETRY,
    LOOP_WORKER,
    LOOP_SOCKET,
    LOOP_PROCESS,
    LOOP_GUARDIAN,
    LOOP_ADOPT,
    LOOP_ROUTERS,
};

/* Watch a descriptor. Returns 0 or a negative errno. */
int loop_add(struct broker *broker, int fd, uint32_t events, enum loop_source source, uint64_t id);
int loop_change(struct broker *broker, int fd, uint32_t events, enum loop_source source, uint64_t id);
void loop_remove(struct broker *broker, int fd);

/* Ask for a round in a moment, in which is tried again what failed for want of descriptors or memory. */
void loop_retry_soon(struct broker *broker);
/* The same, of what somebody else has to make room for. */
void loop_retry_later(struct broker *broker);

/* Wait until there is something to do, and do it: a bounded amount. Returns 0 or a negative errno. */
int loop_round(struct broker *broker);

/* Run until a signal ends it; then every session is told. Returns 0 or a negative errno. */
int loop_run(struct broker *broker);

#endif
