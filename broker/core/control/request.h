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
/* The answer, once the writers have mail about it: see notice.c. */
void request_subscribed(struct broker *broker, struct session *session);
void request_unsubscribe(struct broker *broker, struct session *session, uint64_t id,
                         const Ipc__Control__Unsubscribe *unsubscribe);
void request_bell(struct broker *broker, struct session *session, uint64_t id,
                  const Ipc__Control__Bell *bell);
void request_list(struct broker *broker, struct session *session, uint64_t id,
                  const Ipc__Control__List *list);
void request_status(struct broker *broker, struct session *session, uint64_t id);

void request_queue_create(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__QueueCreate *create);
void request_queue_set(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__QueueSet *set);
void request_queue_remove(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__QueueRemove *remove);
void request_queue_do(struct broker *broker, struct session *session, uint64_t id,
                      const Ipc__Control__QueueDo *wish);
void request_port_open(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__PortOpen *open);
void request_port_close(struct broker *broker, struct session *session, uint64_t id,
                        const Ipc__Control__PortClose *close);
void request_port_bell(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__PortBell *bell);

/* A router has answered a wait (ROUTE_DID, or ROUTE_QUEUE_GONE that is not); or its queue is gone, and NULL is. */
struct wait;
struct route_mail;
void request_queue_finish(struct broker *broker, struct wait *wait, const struct route_mail *mail);

/* For those that answer. */
void request_answer_done(struct broker *broker, struct session *session, uint64_t id);

/* True if it may not take part; then it was told. */
bool request_deny_admin(struct broker *broker, struct session *session, uint64_t id);

/* Did an ipcd that was killed before its answer went out do it already? And from here on that is so. */
bool request_done_before(const struct session *session, uint64_t id);
void request_mark_done(struct session *session, uint64_t request);

/* Have a segment allocated by the worker, which then calls job->finish(); until that the session is busy. On success the
 * descriptor is the job's. Returns 0 or a negative errno. */
struct job;
int request_hand_over(struct broker *broker, struct session *session, const struct job *template, int *fd);

void request_segment_open(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__SegmentOpen *open);
void request_segment_close(struct broker *broker, struct session *session, uint64_t id,
                           const Ipc__Control__SegmentClose *close);

void request_policy(struct broker *broker, struct session *session, uint64_t id,
                    const Ipc__Control__Policy *policy);

#endif
