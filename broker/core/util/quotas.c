/* SPDX-License-Identifier: Apache-2.0
 *
 * Sections [quota NAME]: what some users may have instead of what [limits] says. Who is in a group is looked up once, when
 * the configuration is read: it is a matter of the uid that is charged, not of the groups that one of its processes has.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/config.h"
#include "broker/core/util/inifile.h"

const struct user_limit_about user_limit_about[USER_LIMITS] = {
#define ABOUT(id, setting, what, bytes, user, total, most, advice) \
 [LIMIT_##id] = {setting, bytes, (bytes) ? 4096 : 1, most},
    LIMITS(ABOUT)
#undef ABOUT
        [USER_QUEUE_BYTES] = {"queue-bytes", true, 65536, UINT64_C(1) << 46},
    [USER_CONNECTS] = {"connects-per-second", false, 1, 1000000},
};

struct config_quota *config_quota_of(struct config *config, const char *name)
{
    struct config_quota *quotas;

    for (size_t i = 0; i < config->n_quotas; i++)
        if (strcmp(config->quotas[i].rule.name, name) == 0)
            return &config->quotas[i];
    quotas = reallocarray(config->quotas, config->n_quotas + 1, sizeof(*quotas));
    if (!quotas)
        return NULL;
    config->quotas = quotas;
    quotas += config->n_quotas++;
    *quotas = (struct config_quota){0};
    (void)snprintf(quotas->rule.name, sizeof(quotas->rule.name), "%s", name);
    return quotas;
}

int config_quota_setting(const char *key)
{
    for (int i = 0; i < (int)USER_LIMITS; i++)
        if (strcmp(user_limit_about[i].setting, key) == 0)
            return i;
    return -1;
}

const char *config_quota_wrong(const struct config_quota *quota)
{
    if (quota->rule.n_who == 0)
        return "it does not say who: 'who = user:NAME' (or group:NAME, or anyone)";
    for (unsigned i = 0; i < USER_LIMITS; i++)
        if (quota->most[i])
            return NULL;
    return "it does not set any limit";
}

void config_quotas_done(struct config *config)
{
    for (size_t i = 0; i < config->n_quotas; i++)
        free(config->quotas[i].members);
    free(config->quotas);
    config->quotas = NULL;
    config->n_quotas = 0;
}

static int by_uid(const void *left, const void *right)
{
    const uint32_t *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

bool config_quota_add_member(struct config_quota *quota, uint32_t uid)
{
    uint32_t *members = reallocarray(quota->members, quota->n_members + 1, sizeof(*members));

    if (!members)
        return false;
    quota->members = members;
    members[quota->n_members++] = uid;
    return true;
}

/* Those that the group lists, and those whose own group it is. */
static bool add_group(struct config_quota *quota, uint32_t gid)
{
    const struct group *group = getgrgid(gid);
    const struct passwd *passwd;
    bool done = true;

    for (char **name = group ? group->gr_mem : NULL; done && name && *name; name++) {
        passwd = getpwnam(*name);
        done = !passwd || config_quota_add_member(quota, passwd->pw_uid);
    }
    setpwent();
    while (done && (passwd = getpwent()))
        done = passwd->pw_gid != gid || config_quota_add_member(quota, passwd->pw_uid);
    endpwent();
    return done;
}

int config_quotas_resolve(struct config *config)
{
    for (size_t i = 0; i < config->n_quotas; i++) {
        struct config_quota *quota = &config->quotas[i];

        free(quota->members);
        quota->members = NULL;
        quota->n_members = 0;
        for (unsigned j = 0; j < quota->rule.n_who; j++)
            if (quota->rule.who[j].kind == WHO_GROUP && !add_group(quota, quota->rule.who[j].id))
                return -ENOMEM;
        if (quota->n_members)
            qsort(quota->members, quota->n_members, sizeof(*quota->members), by_uid);
    }
    return 0;
}

static bool speaks_of(const struct config_quota *quota, uint32_t uid)
{
    for (unsigned i = 0; i < quota->rule.n_who; i++)
        if (quota->rule.who[i].kind == WHO_ANYONE ||
            (quota->rule.who[i].kind == WHO_USER && quota->rule.who[i].id == uid))
            return true;
    return quota->n_members &&
           bsearch(&uid, quota->members, quota->n_members, sizeof(*quota->members), by_uid);
}

void config_user_limits(const struct config *config, uint32_t uid, struct user_limits *ret)
{
    *ret = (struct user_limits){0};
    memcpy(ret->most, config->per_user, sizeof(config->per_user));
    ret->most[USER_QUEUE_BYTES] = config->queue_bytes;
    ret->most[USER_CONNECTS] = config->connects_per_second;
    for (size_t i = 0; i < config->n_quotas; i++) {
        const struct config_quota *quota = &config->quotas[i];

        for (unsigned j = 0; speaks_of(quota, uid) && j < USER_LIMITS; j++)
            if (quota->most[j] && !ret->from[j]) {
                ret->most[j] = quota->most[j];
                ret->from[j] = quota->rule.name;
            }
    }
}
