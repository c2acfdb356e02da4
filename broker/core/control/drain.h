/* SPDX-License-Identifier: Apache-2.0
 *
 * Before the broker stops: nobody new, nothing new into queues and no new calls, while consumers and servers finish what
 * they have. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_DRAIN_H
#define IPCD_CORE_CONTROL_DRAIN_H

#include "broker/core/control/broker.h"

/* False: there is nothing to wait for, or [broker] drain is 0. */
bool drain_begin(struct broker *broker);

/* Everything is done, or the time is over. */
bool drain_is_over(struct broker *broker);

/* When that has to be asked again. UINT64_MAX: nothing is drained. */
uint64_t drain_deadline_ns(const struct broker *broker);

/* The session asks for something new: it is told that the broker stops. */
bool drain_refuses(struct broker *broker, struct session *session, uint64_t id, const char *what);

#endif
