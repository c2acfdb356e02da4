/* SPDX-License-Identifier: Apache-2.0
 *
 * Joining lanes and subscriptions, and taking them apart. Every function here leaves what is to be told in the lists of
 * the sessions concerned; notice_flush() tells it. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_PAIRING_H
#define IPCD_CORE_CONTROL_PAIRING_H

#include "broker/core/control/broker.h"

/* A side of a pairing, seen from its session. */
struct pairing *pairing_of_writer_side(struct side *side);
struct pairing *pairing_of_reader_side(struct side *side);

/* Pair a new subscription with every lane that matches, or a new lane with every subscription. For a subscription it
 * is all or nothing: 0, or a negative errno and the refusal, and then it is freed. Only what another user publishes
 * beyond its share of the reader's pairings is left out. *ret_matched: lanes with a writer. */
int pairing_join_subscription(struct broker *broker, struct subscription *subscription, uint32_t *ret_matched,
                              struct refusal *refusal);
int pairing_join(struct broker *broker, struct lane *lane, struct subscription *subscription,
                 unsigned start_at, struct refusal *refusal);
/* For a lane, who is at a limit is left out, and that is logged; for whom memory or descriptors were lacking, it is tried
 * again. */
void pairing_join_lane(struct broker *broker, struct lane *lane);
void pairing_join_missed(struct broker *broker);
/* That subscription is to be looked after then, also by the next ipcd. */
void pairing_missed(struct broker *broker, struct subscription *subscription);

/* From now on the subscription is rung by descriptor. 0, or a negative errno and the refusal. */
int pairing_ask_bells(struct broker *broker, struct subscription *subscription, struct refusal *refusal);

void pairing_confirm(struct broker *broker, struct session *session, struct pairing *pairing, unsigned notice,
                     int result);

/* One of its sessions wants it ended. */
void pairing_detach(struct broker *broker, struct pairing *pairing, unsigned reason);

/* The reader lets go of a subscription; it is freed. */
void pairing_end_subscription(struct broker *broker, struct subscription *subscription, unsigned reason);

/* The writer lets go of a lane; it is freed when its readers are done, unless it is retained. */
void pairing_end_lane(struct broker *broker, struct lane *lane, unsigned reason);

/* It has its slot, or needs none: both sides are to be told. */
void pairing_start(struct broker *broker, struct pairing *pairing);

/* A side's state changed: put it into the list where it belongs now. */
void pairing_requeue(struct broker *broker, struct session *session, struct side *side);

/* Into the registry's lists. */
void pairing_link(struct broker *broker, struct pairing *pairing);

/* Free a pairing if both sides are done. The lane stays: lane_release() is the caller's. */
bool pairing_finish(struct broker *broker, struct pairing *pairing);

/* A slot of the lane is free: the pairing that waits longest gets it. */
void pairing_promote(struct broker *broker, struct lane *lane);

/* Bring the row up to date. */
void pairing_store(const struct pairing *pairing);
void pairing_set_bell(struct pairing *pairing, struct bell *bell);

/* That of an earlier ipcd, from its row, when all that it refers to is there: 0 or -ENOMEM. Then what is left to do. */
int pairing_restore(struct broker *broker, struct pairing_row *row);
void pairing_resume(struct broker *broker, struct pairing *pairing);

#endif
