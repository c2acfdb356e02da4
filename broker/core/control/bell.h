/* SPDX-License-Identifier: Apache-2.0
 *
 * Bells: one socket pair per subscription and uid that writes to it. Not an eventfd, which a hostile writer could drain,
 * or fill and make blocking. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_BELL_H
#define IPCD_CORE_CONTROL_BELL_H

#include "broker/core/control/broker.h"

/* The subscription's bell for writers of that uid, or NULL. */
struct bell *bell_find(const struct subscription *subscription, uint32_t uid);

/* Make it if it is not there. 0, or a negative errno and the refusal. */
int bell_make(struct broker *broker, struct subscription *subscription, uint32_t uid,
              struct refusal *refusal);

void bell_free_all(struct broker *broker, struct subscription *subscription);

/* That of an earlier ipcd. NULL: out of memory. */
struct bell *bell_restore(struct broker *broker, struct subscription *subscription, struct bell_row *row,
                          int ring_fd, int read_fd);

#endif
