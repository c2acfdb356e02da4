/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/quota.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/share.h"
#include "broker/core/util/text.h"

/* From this many users on, those that hold nothing and have a full bucket are forgotten when a new one comes. */
#define USERS_SWEEP 1024u

/* What a user holds on behalf of an actor. */
struct usage {
    struct hash_node node;
    uint64_t lanes;
};

int quota_init(struct quota *quota, const struct config *config)
{
    *quota = (struct quota){.config = config, .budget = {.max = config->total_queue_bytes}};
    list_init(&quota->users);
    return hash_init(&quota->users_by_uid) < 0 ? -ENOMEM : hash_init(&quota->usages);
}

static void user_free(struct quota *quota, struct user *user)
{
    hash_remove(&quota->users_by_uid, &user->node);
    list_remove(&user->link);
    quota->n_users--;
    free(user);
}

void quota_done(struct quota *quota)
{
    if (!quota->users_by_uid.buckets)
        return;
    list_for_each_safe(node, &quota->users) user_free(quota, list_entry(node, struct user, link));
    hash_done(&quota->users_by_uid);
    hash_done(&quota->usages);
}

static void sweep(struct quota *quota)
{
    uint64_t now_ns = time_monotonic_ns();

    list_for_each_safe(node, &quota->users)
    {
        struct user *user = list_entry(node, struct user, link);
        bool idle = now_ns - user->connects_at_ns > UINT64_C(1000000000);

        for (size_t i = 0; i < LIMIT_COUNT; i++)
            idle = idle && user->used[i] == 0;
        if (idle)
            user_free(quota, user);
    }
}

struct user *quota_user(struct quota *quota, uint32_t uid)
{
    struct hash_node *node = hash_find(&quota->users_by_uid, uid);
    struct user *user;

    if (node)
        return list_entry(node, struct user, node);
    if (quota->n_users >= USERS_SWEEP)
        sweep(quota);
    user = calloc(1, sizeof(*user));
    if (!user)
        return NULL;
    user->uid = uid;
    config_user_limits(quota->config, uid, &user->limits);
    user->budget =
        (struct route_budget){.max = user->limits.most[USER_QUEUE_BYTES], .all = &quota->budget, .uid = uid};
    user->connects_left = (double)user->limits.most[USER_CONNECTS];
    user->connects_at_ns = time_monotonic_ns();

    struct list *after = quota->users.previous;
    while (after != &quota->users && list_entry(after, struct user, link)->uid > uid)
        after = after->previous;
    list_append(after->next, &user->link); /* before the next one */
    hash_add(&quota->users_by_uid, &user->node, uid);
    quota->n_users++;
    return user;
}

void refusal_set(struct refusal *refusal, int code, const char *format, ...)
{
    va_list arguments;

    refusal->code = code;
    refusal->of_actor = false;
    va_start(arguments, format);
    (void)vsnprintf(refusal->text, sizeof(refusal->text), format, arguments);
    va_end(arguments);
}

/* How many hold some of it, this user with them. */
static size_t holders(const struct quota *quota, const struct user *user, size_t limit)
{
    return quota->n_holders[limit] + (user->used[limit] == 0);
}

static uint64_t share_of_user(const struct quota *quota, const struct user *user, size_t limit)
{
#ifdef IPC_PLANT_SHARE_IGNORED
    return UINT64_MAX;
#endif
    return share_of(quota->config->total[limit], quota->used[limit] - user->used[limit],
                    holders(quota, user, limit));
}

uint64_t quota_most(const struct quota *quota, const struct user *user, enum limit limit)
{
    uint64_t share = share_of_user(quota, user, limit);

    return share < user->limits.most[limit] ? share : user->limits.most[limit];
}

/* Who has most of it. */
static const struct user *culprit(const struct quota *quota, enum limit limit)
{
    const struct user *most = NULL;

    list_for_each(node, &quota->users)
    {
        const struct user *user = list_entry(node, struct user, link);

        if (!most || user->used[limit] > most->used[limit])
            most = user;
    }
    return most;
}

static int refused(struct quota *quota, struct user *user)
{
    user->refused++;
    quota->refused++;
    return -EDQUOT;
}

/* Where the limit of a user is set, as it is written in ipcd.conf. */
static const char *section(char text[POLICY_NAME_SIZE + 8], const struct user *user, unsigned limit)
{
    const char *name = user->limits.from[limit];

    (void)snprintf(text, POLICY_NAME_SIZE + 8, name ? "[quota %s]" : "[limits]", name);
    return text;
}

static int refuse_own(struct quota *quota, struct user *user, enum limit limit, uint64_t wanted,
                      struct refusal *refusal)
{
    const struct limit_about *about = &limit_about[limit];
    char where[POLICY_NAME_SIZE + 8];

    refusal_set(refusal, -EDQUOT,
                "limit reached: user %" PRIu32 " has %" PRIu64 " of %" PRIu64 " %s, and user %" PRIu32
                " asked for %" PRIu64 " more; %s, or raise %s in %s of ipcd.conf",
                user->uid, user->used[limit], user->limits.most[limit], about->what, user->uid, wanted,
                about->advice, about->setting, section(where, user, limit));
    return refused(quota, user);
}

static int refuse_total(struct quota *quota, struct user *user, enum limit limit, uint64_t wanted,
                        struct refusal *refusal)
{
    const struct limit_about *about = &limit_about[limit];
    const struct user *most = culprit(quota, limit);
    uint64_t total = quota->config->total[limit], share = share_of_user(quota, user, limit);
    bool full = wanted > total - (quota->used[limit] < total ? quota->used[limit] : total);
    char has[128];

    if (full)
        (void)snprintf(has, sizeof(has), "all users together have %" PRIu64 " of %" PRIu64,
                       quota->used[limit], total);
    else
        (void)snprintf(has, sizeof(has), "user %" PRIu32 " has %" PRIu64 " of its share of %" PRIu64,
                       user->uid, user->used[limit], share);
    refusal_set(refusal, -EDQUOT,
                "limit reached: %s %s (most: user %" PRIu32 " with %" PRIu64 "; all: %" PRIu64 " of %" PRIu64
                "), and user %" PRIu32 " asked for %" PRIu64
                " more; %s, or raise total-%s in [limits] of ipcd.conf%s",
                has, about->what, most->uid, most->used[limit], quota->used[limit], total, user->uid, wanted,
                about->advice, about->setting,
                limit == LIMIT_DESCRIPTORS ? " and the broker's limit of open files (LimitNOFILE=)" : "");
    return refused(quota, user);
}

/* Memory of queues is shared among those who have queues. */
static void set_holders(struct quota *quota)
{
    atomic_store_explicit(&quota->budget.holders, quota->n_holders[LIMIT_QUEUES], memory_order_relaxed);
}

static void add(struct quota *quota, struct user *user, const struct charge *charge)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        quota->n_holders[i] += user->used[i] == 0 && charge->of[i] > 0;
        user->used[i] += charge->of[i];
        quota->used[i] += charge->of[i];
    }
    set_holders(quota);
}

int quota_take(struct quota *quota, struct user *user, const struct charge *charge, struct refusal *refusal)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        uint64_t wanted = charge->of[i], used = user->used[i], per_user = user->limits.most[i],
                 total = quota->config->total[i], share = share_of_user(quota, user, i);

        if (wanted == 0)
            continue;
        if (used > per_user || wanted > per_user - used)
            return refuse_own(quota, user, (enum limit)i, wanted, refusal);
        if (used > share || wanted > share - used || quota->used[i] > total ||
            wanted > total - quota->used[i])
            return refuse_total(quota, user, (enum limit)i, wanted, refusal);
    }
    add(quota, user, charge);
    return 0;
}

void quota_charge(struct quota *quota, struct user *user, const struct charge *charge)
{
    add(quota, user, charge);
}

void quota_return(struct quota *quota, struct user *user, const struct charge *charge)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        assert(user->used[i] >= charge->of[i] && quota->used[i] >= charge->of[i]);
        user->used[i] -= charge->of[i];
        quota->used[i] -= charge->of[i];
        quota->n_holders[i] -= user->used[i] == 0 && charge->of[i] > 0;
    }
    set_holders(quota);
}

static uint64_t usage_key(const struct user *user, const struct user *actor)
{
    return (uint64_t)user->uid << 32 | actor->uid;
}

static struct usage *usage_find(const struct quota *quota, const struct user *user, const struct user *actor)
{
    struct hash_node *node = hash_find(&quota->usages, usage_key(user, actor));

    return node ? list_entry(node, struct usage, node) : NULL;
}

/* NULL: out of memory. */
static struct usage *usage_make(struct quota *quota, struct user *user, const struct user *actor)
{
    struct usage *usage = usage_find(quota, user, actor);

    if (usage)
        return usage;
    usage = calloc(1, sizeof(*usage));
    if (usage) {
        hash_add(&quota->usages, &usage->node, usage_key(user, actor));
        user->n_actors++;
    }
    return usage;
}

static void usage_release(struct quota *quota, struct user *user, struct usage *usage)
{
    if (usage->lanes > 0)
        return;
    hash_remove(&quota->usages, &usage->node);
    user->n_actors--;
    free(usage);
}

int quota_take_for(struct quota *quota, struct user *user, struct user *actor, const struct charge *charge,
                   struct refusal *refusal)
{
    uint64_t wanted = charge->of[LIMIT_LANES], most, share;
    struct usage *usage = actor == user ? NULL : usage_make(quota, user, actor);
    char where[POLICY_NAME_SIZE + 8];
    int result;

    if (actor == user)
        return quota_take(quota, user, charge, refusal);
    if (!usage) {
        refusal_set(refusal, -ENOMEM, "the broker is out of memory");
        return -ENOMEM;
    }
    most = quota_most(quota, user, LIMIT_LANES);
    share = share_of(most, user->used[LIMIT_LANES] - usage->lanes, user->n_actors);
#ifdef IPC_PLANT_ACTOR_IGNORED
    share = most;
#endif
    if (usage->lanes > share || wanted > share - usage->lanes) {
        refusal_set(refusal, -EDQUOT,
                    "limit reached: of the %" PRIu64 " %s that user %" PRIu32
                    " may have, those with user %" PRIu32 " (%" PRIu64 ") are as many as its share, %" PRIu64
                    ", and user %" PRIu32 " caused %" PRIu64
                    " more; subscribe to fewer topics of user %" PRIu32 ", or raise lanes in %s of ipcd.conf",
                    most, limit_about[LIMIT_LANES].what, user->uid, actor->uid, usage->lanes, share,
                    actor->uid, wanted, actor->uid, section(where, user, LIMIT_LANES));
        refusal->of_actor = true;
        result = refused(quota, actor);
    } else {
        result = quota_take(quota, user, charge, refusal);
        if (result == 0)
            usage->lanes += wanted;
    }
    usage_release(quota, user, usage);
    return result;
}

void quota_charge_for(struct quota *quota, struct user *user, struct user *actor, const struct charge *charge)
{
    struct usage *usage = actor == user ? NULL : usage_make(quota, user, actor);

    quota_charge(quota, user, charge);
    if (usage)
        usage->lanes += charge->of[LIMIT_LANES];
}

void quota_return_for(struct quota *quota, struct user *user, struct user *actor, const struct charge *charge)
{
    struct usage *usage = actor == user ? NULL : usage_find(quota, user, actor);

    quota_return(quota, user, charge);
    if (!usage)
        return;
    /* One that there was no memory to count may be missing. */
    usage->lanes -= charge->of[LIMIT_LANES] < usage->lanes ? charge->of[LIMIT_LANES] : usage->lanes;
    usage_release(quota, user, usage);
}

/* What is left in the bucket of connects now. */
static double connects_left(const struct user *user, uint64_t now_ns)
{
    double most = (double)user->limits.most[USER_CONNECTS];
    double left = user->connects_left + (double)(now_ns - user->connects_at_ns) * 1e-9 * most;

    return left < most ? left : most;
}

int quota_connect(struct quota *quota, struct user *user, uint64_t now_ns, struct refusal *refusal)
{
    char where[POLICY_NAME_SIZE + 8];

    user->connects_left = connects_left(user, now_ns);
    user->connects_at_ns = now_ns;
    if (user->connects_left >= 1) {
        user->connects_left -= 1;
        return 0;
    }
    refusal_set(refusal, -EDQUOT,
                "limit reached: user %" PRIu32 " has connected more than %" PRIu64
                " times within a second; connect less often, or raise connects-per-second in %s of ipcd.conf",
                user->uid, user->limits.most[USER_CONNECTS], section(where, user, USER_CONNECTS));
    return refused(quota, user);
}

struct standing quota_standing(const struct quota *quota, const struct user *user, unsigned limit,
                               uint64_t now_ns)
{
    const struct route_budget *all = &quota->budget;
    struct standing standing = {.share = user->limits.most[limit]};
    uint64_t n, share;

    if (limit == USER_CONNECTS) {
        standing.used = (uint64_t)((double)standing.share - connects_left(user, now_ns) + 0.999);
        return standing;
    }
    if (limit < LIMIT_COUNT) {
        standing.used = user->used[limit];
        standing.total_used = quota->used[limit];
        standing.total = quota->config->total[limit];
        n = holders(quota, user, limit);
    } else {
        standing.used = atomic_load_explicit(&user->budget.used, memory_order_relaxed);
        standing.total_used = atomic_load_explicit(&all->used, memory_order_relaxed);
        standing.total = atomic_load_explicit(&all->max, memory_order_relaxed);
        n = quota->n_holders[LIMIT_QUEUES] + (user->used[LIMIT_QUEUES] == 0);
    }
    /* Routers change theirs meanwhile. */
    share = share_of(standing.total,
                     standing.total_used > standing.used ? standing.total_used - standing.used : 0, n);
    if (share < standing.share)
        standing.share = share;
    return standing;
}
