/* SPDX-License-Identifier: Apache-2.0
 *
 * Who uses how much: every uid that connects is a user, charged for what its sessions hold in the core, and in total.
 * Control thread only.
 *
 * Of what all users have together each may take a share: 3/4 if it is the only one, else as much as leaves enough for
 * the others (share_of()). Whatever the others do, the n-th user of a limit of T can hold 3T/((3n-2)(3n+1)).
 *
 * What somebody else makes a user hold (a publisher its readers' pairings) is charged to that user on behalf of the
 * other, the actor; within what the user may have each actor has a share in the same way.
 */
#ifndef IPCD_CORE_CONTROL_QUOTA_H
#define IPCD_CORE_CONTROL_QUOTA_H

#include <stddef.h>
#include <stdint.h>

#include "broker/core/route/route.h"
#include "broker/core/util/config.h"
#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"

struct user {
    struct hash_node node;
    struct list link; /* quota.users, by uid */
    uint32_t uid;
    struct user_limits limits;
    uint64_t used[LIMIT_COUNT];
    struct route_budget budget; /* memory of its queues */
    size_t n_actors;            /* other users on behalf of whom it holds pairings */
    uint64_t refused, denied;   /* for a limit; by the policy */
    /* Connects: a bucket of one second's worth, filled as time passes. */
    double connects_left;
    uint64_t connects_at_ns;
    /* See budget.h. */
    int64_t work_left;
    uint64_t round;
};

struct quota {
    const struct config *config;
    struct hash users_by_uid;
    struct list users;
    struct hash usages; /* struct usage of quota.c, by user and actor */
    size_t n_users;
    uint64_t used[LIMIT_COUNT];
    struct route_budget budget;    /* of all users' queues */
    size_t n_holders[LIMIT_COUNT]; /* users that hold some */
    uint64_t refused;
};

/* What an operation takes of each limit. */
struct charge {
    uint64_t of[LIMIT_COUNT];
};

/* Why something was refused: a negative errno, and a sentence that names the limit, its use, who, and the setting. */
struct refusal {
    int code;
    bool of_actor; /* an actor is at its share of what the user may have */
    char text[512];
};

int quota_init(struct quota *quota, const struct config *config);
void quota_done(struct quota *quota);

/* The record of a uid, made if need be. NULL: out of memory. */
struct user *quota_user(struct quota *quota, uint32_t uid);

/* Take all of a charge or nothing. Returns 0, or -EDQUOT and the refusal, which is counted. */
int quota_take(struct quota *quota, struct user *user, const struct charge *charge, struct refusal *refusal);

/* The same for pairings, which `user` holds on behalf of `actor`. */
int quota_take_for(struct quota *quota, struct user *user, struct user *actor, const struct charge *charge,
                   struct refusal *refusal);
void quota_charge_for(struct quota *quota, struct user *user, struct user *actor,
                      const struct charge *charge);
void quota_return_for(struct quota *quota, struct user *user, struct user *actor,
                      const struct charge *charge);

/* How much of a limit a user may have now. */
uint64_t quota_most(const struct quota *quota, const struct user *user, enum limit limit);

/* What it has of each limit, and may have as of now; `share` is never more than the limit. */
struct standing {
    uint64_t used, share, total_used, total; /* total 0: nobody else has to do with it */
};
struct standing quota_standing(const struct quota *quota, const struct user *user, unsigned limit,
                               uint64_t now_ns);

/* What was taken in the time of an earlier ipcd: limits may be lower now. */
void quota_charge(struct quota *quota, struct user *user, const struct charge *charge);

void quota_return(struct quota *quota, struct user *user, const struct charge *charge);

/* One connect more. The same results. */
int quota_connect(struct quota *quota, struct user *user, uint64_t now_ns, struct refusal *refusal);

void refusal_set(struct refusal *refusal, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
