/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/quota.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/text.h"

/* From this many users on, those that hold nothing and have a full bucket are forgotten when a new one comes. */
#define USERS_SWEEP 1024u

int quota_init(struct quota *quota, const struct config *config)
{
    *quota = (struct quota){.config = config, .budget = {.max = config->total_queue_bytes}};
    list_init(&quota->users);
    return hash_init(&quota->users_by_uid);
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
    user->budget =
        (struct route_budget){.max = quota->config->queue_bytes, .all = &quota->budget, .uid = uid};
    user->connects_left = (double)quota->config->connects_per_second;
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
    va_start(arguments, format);
    (void)vsnprintf(refusal->text, sizeof(refusal->text), format, arguments);
    va_end(arguments);
}

static int refuse(struct quota *quota, struct user *user, enum limit limit, bool total, uint64_t wanted,
                  struct refusal *refusal)
{
    const struct limit_about *about = &limit_about[limit];
    uint64_t used = total ? quota->used[limit] : user->used[limit];
    uint64_t most = total ? quota->config->total[limit] : quota->config->per_user[limit];
    char who[32];

    user->refused++;
    quota->refused++;
    (void)snprintf(who, sizeof(who), "user %" PRIu32, user->uid);
    refusal_set(refusal, -EDQUOT,
                "limit reached: %s%s %" PRIu64 " of %" PRIu64 " %s, and user %" PRIu32 " asked for %" PRIu64
                " more; %s, or raise %s%s in [limits] of ipcd.conf%s",
                total ? "all users together have" : who, total ? "" : " has", used, most, about->what,
                user->uid, wanted, about->advice, total ? "total-" : "", about->setting,
                total && limit == LIMIT_DESCRIPTORS ? " and the broker's limit of open files (LimitNOFILE=)"
                                                    : "");
    return -EDQUOT;
}

int quota_take(struct quota *quota, struct user *user, const struct charge *charge, struct refusal *refusal)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        uint64_t wanted = charge->of[i], per_user = quota->config->per_user[i],
                 total = quota->config->total[i];

        if (wanted == 0)
            continue;
        if (user->used[i] > per_user || wanted > per_user - user->used[i])
            return refuse(quota, user, (enum limit)i, false, wanted, refusal);
        if (quota->used[i] > total || wanted > total - quota->used[i])
            return refuse(quota, user, (enum limit)i, true, wanted, refusal);
    }
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        user->used[i] += charge->of[i];
        quota->used[i] += charge->of[i];
    }
    return 0;
}

void quota_charge(struct quota *quota, struct user *user, const struct charge *charge)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        user->used[i] += charge->of[i];
        quota->used[i] += charge->of[i];
    }
}

void quota_return(struct quota *quota, struct user *user, const struct charge *charge)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        assert(user->used[i] >= charge->of[i] && quota->used[i] >= charge->of[i]);
        user->used[i] -= charge->of[i];
        quota->used[i] -= charge->of[i];
    }
}

int quota_connect(struct quota *quota, struct user *user, uint64_t now_ns, struct refusal *refusal)
{
    double most = (double)quota->config->connects_per_second;

    user->connects_left += (double)(now_ns - user->connects_at_ns) * 1e-9 * most;
    user->connects_at_ns = now_ns;
    if (user->connects_left > most)
        user->connects_left = most;
    if (user->connects_left >= 1) {
        user->connects_left -= 1;
        return 0;
    }
    user->refused++;
    quota->refused++;
    refusal_set(
        refusal, -EDQUOT,
        "limit reached: user %" PRIu32 " has connected more than %" PRIu64
        " times within a second; connect less often, or raise connects-per-second in [limits] of ipcd.conf",
        user->uid, quota->config->connects_per_second);
    return -EDQUOT;
}
