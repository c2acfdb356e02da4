/* SPDX-License-Identifier: Apache-2.0
 *
 * Who uses how much: every uid that connects is a user, charged for what its sessions hold in the core, and in total.
 * Control thread only.
 *
 * One user must not be able to take what another needs. For each limit by itself, of the total T:
 *
 *   kept    A quarter of T is kept apart for minima m of T / (4 * `users`) each, so for `users` users (the setting; fewer
 *           if T is too small for minima that are of any use). Two of those places belong to uid 0 and to the broker's
 *           own uid, who are trusted, whether they are there or not. What is not kept is the pool.
 *   minimum A user takes from its minimum first. Whoever comes when all places are taken takes m from the pool instead.
 *   share   What a user has beyond m is its excess, taken from the pool. It may grow to e only if e * n <= 3 * f, where f
 *           is what is free in the pool after that, and n counts the users that have an excess then. Trusted users only
 *           need f >= 0.
 *   limits  Nobody grows beyond the limit per user, nothing beyond T.
 *
 * What follows from it, whatever the others do and in whatever order they take and return:
 *
 *   (1) As long as fewer than `users` users hold anything, one more always gets m, and everyone who is there keeps a
 *       right to m. Proof: a grant never overdraws the pool (f >= 0), and minima within the places are not taken from it;
 *       so what is used is at most pool + m * (users that hold something), and T is at least pool + m * (places).
 *   (2) Any s users that are not trusted have at most pool * (1 - R(s)) of excess together, with
 *       R(s) = 1/4 * 2/5 * 3/6 * ... * s/(s+3) = 6 / ((s+1)(s+2)(s+3)). Proof by induction over the grants (a return only
 *       makes sums smaller): let u be granted e, and S be any set of s users with u in it, so s <= n or the rest of S has no
 *       excess. From e * s <= 3 * (pool - x - e), where x is what S without u has, follows e <= 3 (pool - x) / (s+3), and
 *       x + e <= pool * 3/(s+3) + x * s/(s+3) <= pool * (1 - R(s-1) * s/(s+3)) = pool * (1 - R(s)).
 *       So a newcomer gets, beyond m, 3/(s+4) of the R(s) that s greedy ones left: with one of them 15 % of the pool.
 *   (3) A user that is alone gets m and three quarters of the pool, as far as its limit goes: more than half of T.
 */
#ifndef IPCD_CORE_CONTROL_QUOTA_H
#define IPCD_CORE_CONTROL_QUOTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/util/config.h"
#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"

/* A number of connects that fills up as time passes, to one second's worth. */
struct bucket {
    double left;
    uint64_t at_ns;
};

struct user {
    struct hash_node node;
    struct list link; /* quota.users, by uid */
    uint32_t uid;
    bool trusted;
    uint64_t used[LIMIT_COUNT];
    uint64_t refused;
    struct bucket connects, connects_minimum;
    /* Records that were looked at for it and not yet made up for, as of a round of the loop. */
    uint64_t work, work_round;
};

/* One limit's total, and how it is divided. */
struct pool {
    uint64_t minimum, places, size;
    uint64_t kept;    /* places of trusted users that count as taken: all of them, or 0 if there are too few places */
    uint64_t holders; /* users that hold something, and the trusted ones in any case */
    uint64_t over;    /* users that have an excess */
    uint64_t excess;  /* theirs together */
};

struct quota {
    const struct config *config;
    struct hash users_by_uid;
    struct list users;
    size_t n_users, n_users_sweep;
    uint64_t used[LIMIT_COUNT];
    struct pool pools[LIMIT_COUNT];
    struct bucket connects, connects_minima;
    uint64_t refused;
    uint64_t round;
};

/* What an operation takes of each limit. */
struct charge {
    uint64_t of[LIMIT_COUNT];
};

/* Why something was refused: a negative errno, and a sentence that names the limit, its use, who, and the setting. */
struct refusal {
    int code;
    char text[400];
};

int quota_init(struct quota *quota, const struct config *config);
void quota_done(struct quota *quota);

/* The record of a uid, made if need be. NULL: out of memory. */
struct user *quota_user(struct quota *quota, uint32_t uid);

/* The most that quota_take() would grant of one limit now. */
uint64_t quota_left(const struct quota *quota, const struct user *user, enum limit limit);

/* Take all of a charge or nothing. Returns 0, or -EDQUOT and the refusal, which is counted. */
int quota_take(struct quota *quota, struct user *user, const struct charge *charge, struct refusal *refusal);

/* What was taken in the time of an earlier ipcd (limits may be lower now), or is somebody's fault: it is not refused. */
void quota_charge(struct quota *quota, struct user *user, const struct charge *charge);

void quota_return(struct quota *quota, struct user *user, const struct charge *charge);

/* One connect more. The same results. A part of the total is kept for those who connect seldom. */
int quota_connect(struct quota *quota, struct user *user, uint64_t now_ns, struct refusal *refusal);

void refusal_set(struct refusal *refusal, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- slots of a lane --------------------------------------------------------------------------------------- */

/* May a reader have one of the `free` slots of another user's lane, when its uid has `own` of the lane's slots already?
 * Each uid gets a first one as long as there is any; for the rest it takes at most half of what is free, and a quarter of
 * all slots is for first ones only: it takes that many uids to lock out another. The lane's own user is not asked. */
bool quota_slot_allowed(uint32_t free, uint32_t own);

/* ---- time of the control thread ---------------------------------------------------------------------------- */

/* Each user has a number of records per round of the loop that may be looked at for it. What a request takes beyond that
 * is made up for in the next rounds, in which its sessions are not read. */
#define QUOTA_WORK_PER_ROUND UINT64_C(4096)
/* What one frame costs in any case, and making or ending one pairing. */
#define QUOTA_WORK_FRAME     16u
#define QUOTA_WORK_PAIRING   16u

/* The loop begins a round. */
void quota_round(struct quota *quota);

bool quota_may_work(const struct quota *quota, const struct user *user);
void quota_work(const struct quota *quota, struct user *user, uint64_t records);

#endif
