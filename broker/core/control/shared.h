/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared segments of users, and who is attached to them. The core writes into one only to take back the permits of a
 * session that ended. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_SHARED_H
#define IPCD_CORE_CONTROL_SHARED_H

#include "broker/core/control/broker.h"

struct shared_wish {
    const char *name;
    uint32_t size, permits, mode;
    bool keep;
};

struct shared *registry_shared_named(const struct broker *broker, const char *name);

/* NULL: the session may attach; else why not. */
const char *registry_shared_denied(const struct session *session, const struct shared *shared);

/* What one costs who makes it; and what being attached costs. */
struct charge registry_shared_charge(uint32_t size);
extern const struct charge attachment_charge;

/* Make one whose memory is allocated; the charge was taken. On success the descriptor is the segment's. 0 or a negative
 * errno. */
int registry_shared_new(struct broker *broker, struct session *session, const struct shared_wish *wish,
                        int *fd, struct shared **ret);

/* The charge was taken. NULL: out of memory. */
struct attachment *registry_attach(struct broker *broker, struct session *session, struct shared *shared,
                                   uint64_t request, bool created);
struct attachment *registry_attachment(const struct session *session, uint64_t id);

/* Its session lets go of it, or is gone: its permits return, and a segment that nobody keeps goes. */
void registry_detach(struct broker *broker, struct attachment *attachment);

/* It goes when nobody is attached any more, which may be now. */
void registry_shared_unkeep(struct broker *broker, struct shared *shared);

/* The first page, for looking. NULL: no memory. */
struct ipc_shared *registry_shared_page(struct shared *shared);

/* Those of an earlier ipcd. 0 or -ENOMEM. */
int registry_shared_restore(struct broker *broker, struct shared_row *row, int fd);
int registry_attachment_restore(struct broker *broker, struct attachment_row *row);
/* When all are there: those that nobody needs go. */
void registry_shared_resume(struct broker *broker);

/* Without a word to anybody. */
void registry_shared_free(struct broker *broker, struct shared *shared);

#endif
