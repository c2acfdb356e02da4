/* SPDX-License-Identifier: Apache-2.0
 *
 * Who may do what: the policy, asked for a session. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_ACCESS_H
#define IPCD_CORE_CONTROL_ACCESS_H

#include "broker/core/control/broker.h"

/* Who a session is for the policy: as the kernel says, with the groups that it had at its connect. */
bool access_allows(struct broker *broker, struct session *session, enum verb verb, const char *name);

/* The same for a request. False: it was refused (-EACCES) with the rule that denies it, counted and logged. */
bool access_check(struct broker *broker, struct session *session, uint64_t id, enum verb verb,
                  const char *name);

/* The same for something that another user made, who is named. */
bool access_check_of(struct broker *broker, struct session *session, uint64_t id, enum verb verb,
                     const char *name, uint32_t owner);

/* May it subscribe to a pattern, or a name? Of a pattern it gets only what access_allows(). */
bool access_check_pattern(struct broker *broker, struct session *session, uint64_t id, const char *pattern);

/* Is it an administrator of the broker itself, who sees what is others'? Who may administer the name "ipcd". */
bool access_administers(struct broker *broker, struct session *session);

/* Is there anything that it may do? For HELLO. */
bool access_check_any(struct broker *broker, struct session *session, uint64_t id);

/* The decision about somebody, with the reason, for POLICY. */
struct identity;
bool access_explain(const struct broker *broker, const struct identity *identity, enum verb verb,
                    const char *name, char *why, size_t size);

/* The policy may be another than that of the ipcd before: take back what is not allowed any more. */
void access_revoke(struct broker *broker);

#endif
