/* SPDX-License-Identifier: Apache-2.0
 *
 * One function per kind of request. Each answers exactly once, or ends the session. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_REQUEST_H
#define IPCD_CORE_CONTROL_REQUEST_H

#include "broker/core/control/broker.h"

void request_hello(struct broker *broker, struct session *session, uint64_t id,
                   const Ipc__Control__Hello *hello);
void request_advertise(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__Advertise *advertise);
void request_unadvertise(struct broker *broker, struct session *session, uint64_t id,
                         const Ipc__Control__Unadvertise *unadvertise);
void request_subscribe(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__Subscribe *subscribe);
void request_unsubscribe(struct broker *broker, struct session *session, uint64_t id,
                         const Ipc__Control__Unsubscribe *unsubscribe);
void request_bell(struct broker *broker, struct session *session, uint64_t id,
                  const Ipc__Control__Bell *bell);
void request_list(struct broker *broker, struct session *session, uint64_t id,
                  const Ipc__Control__List *list);
void request_status(struct broker *broker, struct session *session, uint64_t id);

/* The worker has allocated the segment of an ADVERTISE (or could not). */
struct job;
void request_advertise_finish(struct broker *broker, struct job *job);

#endif
