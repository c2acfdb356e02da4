/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues as records: making, changing, removing them, and what is told to their routers. The messages are the routers'.
 * Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_QUEUE_H
#define IPCD_CORE_CONTROL_QUEUE_H

#include "broker/core/control/broker.h"

struct queue *registry_queue(const struct broker *broker, uint64_t id);
struct queue *registry_queue_named(const struct broker *broker, const char *name);

struct queue_wish {
    const char *name;
    const Ipc__Control__QueueSettings *settings; /* only what is given counts */
    struct user *user;                           /* who is charged */
    uint64_t session, request;                   /* whose wish it is; 0: the configuration's */
};

/* Make a queue; there is none of that name. 0, or a negative errno and the refusal. */
int registry_queue_new(struct broker *broker, const struct queue_wish *wish, struct refusal *refusal);

/* Change settings; all or none. 0, or a negative errno and the refusal. */
int registry_queue_set(struct broker *broker, struct queue *queue,
                       const Ipc__Control__QueueSettings *settings, struct refusal *refusal);

/* Its settings as a message; names in it live as long as the queues. */
void registry_queue_settings(const struct broker *broker, const struct queue *queue,
                             Ipc__Control__QueueSettings *ret);

/* Mail for its router. NULL: out of memory. */
struct route_mail *registry_queue_mail(const struct queue *queue, enum route_kind kind, size_t size);

/* From here on it is being removed, whoever is killed. */
void registry_queue_mark_removing(struct queue *queue, uint64_t session, uint64_t request);
bool registry_queue_removing(const struct queue *queue);

/* Its router is done with it: forget it, and tell the sessions of its ports why (enum ipc_reason). */
void registry_queue_gone(struct broker *broker, struct queue *queue, unsigned reason);

/* Without a word to anybody. */
void registry_queue_free(struct broker *broker, struct queue *queue);

/* That of an earlier ipcd, and the descriptor of its file or -1. Returns 0 or a negative errno. When its ports are there
 * as well, and those that ended have ended: registry_queue_ready(). */
int registry_queue_restore(struct broker *broker, struct queue_row *row, int fd);
int registry_queue_ready(struct broker *broker, struct queue *queue);

/* Make or change the queues of the configuration. */
void registry_queue_configure(struct broker *broker);

#endif
