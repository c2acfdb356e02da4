/* SPDX-License-Identifier: Apache-2.0
 *
 * Making, finding and freeing the registry's records, and matching names. No notices here: pairing.h joins records.
 * Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_REGISTRY_H
#define IPCD_CORE_CONTROL_REGISTRY_H

#include "broker/core/control/broker.h"

int registry_init(struct broker *broker);
void registry_done(struct broker *broker);

struct session *registry_session(const struct broker *broker, uint64_t id);
struct lane *registry_lane(const struct broker *broker, uint64_t id);
struct subscription *registry_subscription(const struct broker *broker, uint64_t id);
struct pairing *registry_pairing(const struct broker *broker, uint64_t id);

/* The record of a name, made if `make`. NULL: there is none, or out of memory. */
struct topic *registry_topic(struct broker *broker, enum name_space space, const char *name, bool make);

/* Where the names of a kind (enum Kind of control.proto) live. */
enum name_space registry_space(unsigned kind);

/* Free it if nobody uses it any more. */
void registry_topic_release(struct broker *broker, struct topic *topic);

/* A subscription with its row; NULL: out of memory, and the row stays the caller's. */
struct subscription *registry_subscription_new(struct broker *broker, struct session *session, uint64_t id,
                                               unsigned kind, const char *pattern,
                                               struct subscription_row *row);
struct subscription *registry_subscription_free(struct broker *broker, struct subscription *subscription);

/* Two walks in order of number over what matches; each starts with *at = NULL and ends with NULL. Records may not be
 * freed on the way. What is looked at is counted in broker.work. */
struct match_walk {
    struct list *wildcard, *exact;
};
void match_readers_start(struct match_walk *walk, struct broker *broker, const struct lane *lane);
struct subscription *match_readers_next(struct match_walk *walk, struct broker *broker,
                                        const struct lane *lane);
struct lane *match_lanes_next(struct broker *broker, const struct subscription *subscription,
                              const struct lane *at);

#endif
