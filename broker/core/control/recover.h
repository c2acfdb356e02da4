/* SPDX-License-Identifier: Apache-2.0
 *
 * Going on where an earlier ipcd was killed: from the descriptors that ipcd-run kept and the registry segment among
 * them. Before the broker is ready nothing is done per descriptor; after that, sessions are watched a few per round.
 * Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_RECOVER_H
#define IPCD_CORE_CONTROL_RECOVER_H

#include "broker/core/control/broker.h"

/* Take over what IPCD_STORE lists, or begin anew. Returns 0 or a negative errno, after it was logged. */
int recover(struct broker *broker);

/* One round's work: watch some sessions, or let go of some descriptors that belong to nothing. */
void recover_some(struct broker *broker);

void recover_done(struct broker *broker);

/* ipcd --check-state=FD: can this ipcd go on from there? Says so on stderr. */
bool recover_check(int fd);

#endif
