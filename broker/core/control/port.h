/* SPDX-License-Identifier: Apache-2.0
 *
 * Ports of queues as records: two segments and what wakes either side. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_PORT_H
#define IPCD_CORE_CONTROL_PORT_H

#include "broker/core/control/broker.h"

struct port_wish {
    uint32_t core_ring_size, session_ring_size, prefetch;
    bool consumer, bell;
    uint64_t request;
};

struct port *registry_port(const struct broker *broker, uint64_t id);

/* What one costs. */
struct charge registry_port_charge(const struct port_wish *wish);

/* Make a port whose two segments are there and allocated; the charge was taken. On success the descriptors are the
 * port's. Returns 0 or a negative errno. */
int registry_port_new(struct broker *broker, struct session *session, struct queue *queue,
                      const struct port_wish *wish, int *core_fd, int *session_fd, struct port **ret);

/* Its session wants to be rung by a descriptor. 0, or a negative errno and the refusal. */
int registry_port_make_bell(struct broker *broker, struct port *port, struct refusal *refusal);

/* Its session is done with it. It is freed now, or when its router is done with it, too. */
void registry_port_end(struct broker *broker, struct port *port, unsigned reason);

/* Nothing more is taken by it: what is in its lane is, and then the session is told. */
void registry_port_retire(struct broker *broker, struct port *port, unsigned reason);

/* Its router is done with it; result < 0: it could not begin with it. */
void registry_port_gone(struct broker *broker, struct port *port, int result);

/* The queue is gone, and so the router is done with it. The session is told if it still has it. */
void registry_port_queue_gone(struct broker *broker, struct port *port, unsigned reason);

/* The session has the descriptors that it was sent last. */
void registry_port_handed(struct broker *broker, struct session *session);

/* Without a word to anybody. */
void registry_port_free(struct broker *broker, struct port *port);

/* That of an earlier ipcd. `kept`: the descriptors of KEEP_PORT; then those of the other three, or -1. Returns 0 or a
 * negative errno. Then, when all is there, what is left to do for it. */
int registry_port_restore(struct broker *broker, struct port_row *row, const int kept[3], int ring_fd,
                          int give_ring_fd, int give_bell_fd);
void registry_port_resume(struct broker *broker, struct port *port);

#endif
