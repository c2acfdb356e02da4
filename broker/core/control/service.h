/* SPDX-License-Identifier: Apache-2.0
 *
 * Services: which server a lane of calls is paired with, and who may reply to whom. The lanes, their pairings and the
 * notices about them are those of topics. Control thread only.
 *
 * A live lane of calls (KIND_CALL) is paired with one server (a subscription of KIND_SERVE) at a time, the one with the
 * fewest lanes of those that no other lane of the same inbox is paired with, or waits for one. That holds after each
 * request and each end; another ipcd seeks again for all of them.
 */
#ifndef IPCD_CORE_CONTROL_SERVICE_H
#define IPCD_CORE_CONTROL_SERVICE_H

#include "broker/core/control/broker.h"

/* May this session advertise that lane of calls or replies? False: it was told why not. *ret_name: the service. */
bool service_may_advertise(struct broker *broker, struct session *session, uint64_t id,
                           const Ipc__Control__Advertise *advertise, const char **ret_name);

/* Pair a new lane of calls or replies. -EDQUOT: its reader has no room for it. What else fails is tried again. */
int service_join_lane(struct broker *broker, struct lane *lane, struct refusal *refusal);

/* The client or the server of that pairing could not use it: the client is told, and it is tried again later. */
void service_refused(struct broker *broker, const struct pairing *pairing);

/* Find a server for a lane of calls that has none. Other lanes are left alone. */
void service_seek(struct broker *broker, struct lane *lane);
void service_seek_all(struct broker *broker, const struct topic *service);

/* Try again what failed for want of memory or descriptors. */
void service_join_missed(struct broker *broker, struct subscription *subscription);

/* A lane of that session has ended: a server of its own may be free for another lane of the same inbox. */
void service_left(struct broker *broker, struct session *session, const struct lane *lane);

/* The pairing with the server that it has now, or NULL. */
const struct pairing *service_pairing(const struct lane *lane);

uint32_t service_servers(const struct topic *service);

/* Is the client of that pairing of calls still to be told of the end of a lane with its server's replies? */
bool service_replies(const struct broker *broker, const struct pairing *calls);

#endif
