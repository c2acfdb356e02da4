/* SPDX-License-Identifier: Apache-2.0
 *
 * Mail from the routers, and letters between them. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_ROUTING_H
#define IPCD_CORE_CONTROL_ROUTING_H

struct broker;

/* The routers have mail. */
void routing_on_event(struct broker *broker);

#endif
