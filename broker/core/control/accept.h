/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking connections from the listening socket. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_ACCEPT_H
#define IPCD_CORE_CONTROL_ACCEPT_H

#include "broker/core/control/broker.h"

/* Take connections, a bounded number of them. */
void accept_on_event(struct broker *broker);

/* Take connections again after a pause for want of descriptors. */
void accept_resume(struct broker *broker);

#endif
