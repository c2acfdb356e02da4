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
 * is all or nothing: 0, or a negative errno and the refusal. *ret_matched: lanes with a writer. */
int pairing_join_subscription(struct broker *broker, struct subscription *subscription, uint32_t *ret_matched,
                              struct refusal *refusal);
/* For a lane, who is at a limit is left out, and that is logged. */
void pairing_join_lane(struct broker *broker, struct lane *lane);

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

#endif
