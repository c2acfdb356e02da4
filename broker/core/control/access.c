/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/access.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/lane.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/request.h"
#include "broker/core/control/session.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "proto/name.h"

/* The name that stands for the broker itself. */
#define ADMINISTERED "ipcd"

/* Read once, when a rule could depend on them. Returns 0, or a negative errno: then nothing is allowed. */
static int load_groups(struct session *session)
{
    socklen_t size = 0;

    if (session->groups_known)
        return 0;
    if (getsockopt(session->fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) < 0 && errno != ERANGE)
        return -errno;
    if (size > 0) {
        gid_t *groups = malloc(size);

        if (!groups)
            return -ENOMEM;
        if (getsockopt(session->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0) {
            int result = -errno;

            free(groups);
            return result;
        }
        session->groups = groups;
        session->n_groups = size / sizeof(*groups);
    }
    session->groups_known = true;
    return 0;
}

/* Root and our own user need no groups. */
static int identify(struct session *session, struct identity *ret)
{
    int result = session->peer.uid == 0 || session->peer.uid == geteuid() ? 0 : load_groups(session);

    *ret = (struct identity){session->peer.uid, session->peer.gid, session->groups, session->n_groups, NULL};
    return result;
}

static const struct policy *policy_of(const struct broker *broker)
{
    return &broker->options.config->policy;
}

bool access_allows(struct broker *broker, struct session *session, enum verb verb, const char *name)
{
    struct identity identity;

#ifdef IPC_PLANT_MATCH_UNCHECKED
    return true;
#endif
    return identify(session, &identity) == 0 && policy_allows(policy_of(broker), &identity, verb, name);
}

bool access_administers(struct broker *broker, struct session *session)
{
    return access_allows(broker, session, VERB_ADMINISTER, ADMINISTERED);
}

static bool deny(struct broker *broker, struct session *session, uint64_t id, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static bool deny(struct broker *broker, struct session *session, uint64_t id, const char *format, ...)
{
    const struct log_about about = {session->peer.session, session->peer.uid, session->peer.pid,
                                    session->peer.name, "denied"};
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    broker->denied++;
    if (session->user)
        session->user->denied++;
    log_write(LOG_DENIED, &about, "%s", text);
    session_event(broker, session, EVENT_DENIED, text);
    session_fail(broker, session, id, -EACCES, "%s", text);
    return false;
}

bool access_explain(const struct broker *broker, const struct identity *identity, enum verb verb,
                    const char *name, char *why, size_t size)
{
    return policy_explain(policy_of(broker), identity, verb, name, "ipcd.conf(5)", why, size);
}

/* `whose` is put behind the name. */
static bool check(struct broker *broker, struct session *session, uint64_t id, enum verb verb,
                  const char *name, const char *whose)
{
    struct identity identity;
    char why[256];
    int result = identify(session, &identity);

    if (result < 0) {
        session_fail(broker, session, id, result, "the broker could not find out the client's groups");
        return false;
    }
    if (policy_allows(policy_of(broker), &identity, verb, name))
        return true;
    (void)access_explain(broker, &identity, verb, name, why, sizeof(why));
    return deny(broker, session, id, "uid %" PRIu32 " may not %s %.200s%s: %s", identity.uid,
                verb_phrase(verb), name, whose, why);
}

bool access_check(struct broker *broker, struct session *session, uint64_t id, enum verb verb,
                  const char *name)
{
    return check(broker, session, id, verb, name, "");
}

bool access_check_of(struct broker *broker, struct session *session, uint64_t id, enum verb verb,
                     const char *name, uint32_t owner)
{
    char whose[32];

    (void)snprintf(whose, sizeof(whose), " of uid %" PRIu32, owner);
    return check(broker, session, id, verb, name, whose);
}

bool access_check_pattern(struct broker *broker, struct session *session, uint64_t id, const char *pattern)
{
    struct identity identity;

    if (strpbrk(pattern, "*>") == NULL)
        return access_check(broker, session, id, VERB_SUBSCRIBE, pattern);
    if (identify(session, &identity) == 0 &&
        policy_may_allow(policy_of(broker), &identity, VERB_SUBSCRIBE, pattern))
        return true;
    return deny(broker, session, id,
                "uid %" PRIu32
                " may not subscribe to any topic that %.200s stands for: no rule of the policy allows "
                "it ([rule NAME] in ipcd.conf(5))",
                identity.uid, pattern);
}

bool access_check_any(struct broker *broker, struct session *session, uint64_t id)
{
    struct identity identity;

    if (identify(session, &identity) == 0 && policy_knows(policy_of(broker), &identity))
        return true;
    return deny(broker, session, id,
                "uid %" PRIu32
                " may do nothing here: no rule of the policy speaks of it ([rule NAME] in ipcd.conf(5)); "
                "by default members of group ipc may use the broker of the system",
                identity.uid);
}

void request_policy(struct broker *broker, struct session *session, uint64_t id,
                    const Ipc__Control__Policy *policy)
{
    const struct identity identity = {policy->uid, policy->n_gids ? policy->gids[0] : 0,
                                      policy->gids + (policy->n_gids > 0),
                                      policy->n_gids - (policy->n_gids > 0), NULL};
    bool own = identity.uid == session->peer.uid;
    enum verb verb = verb_from_word(policy->verb);
    const char *wrong = ipc_name_check(policy->name, false);
    Ipc__Control__Decision decision = IPC__CONTROL__DECISION__INIT;
    char why[256], quoted[40];

    text_quote(quoted, sizeof(quoted), policy->verb);
    if (verb == VERB_COUNT || wrong) {
        session_fail(broker, session, id, -EINVAL,
                     wrong ? "the name is not valid: %s" : "there is no verb '%s'; there are " VERB_WORDS,
                     wrong ? wrong : quoted);
        return;
    }
    if (!own && !access_administers(broker, session)) {
        deny(broker, session, id,
             "uid %" PRIu32
             " may ask about itself only: no rule of the policy lets it administer " ADMINISTERED
             " ([rule NAME] in ipcd.conf(5))",
             session->peer.uid);
        return;
    }
    decision.allowed = access_explain(broker, &identity, verb, policy->name, why, sizeof(why));
    decision.text = why;
    session_reply(broker, session, IPC__CONTROL__TYPE__DECISION, id, &decision.base, -1);
}

static enum verb verb_of_subscription(const struct subscription *subscription)
{
    return subscription->kind == IPC__CONTROL__KIND__KIND_TOPIC   ? VERB_SUBSCRIBE
           : subscription->kind == IPC__CONTROL__KIND__KIND_SERVE ? VERB_SERVE
                                                                  : VERB_CALL;
}

/* Something that it has and may not have any more; its name in *ret. False: there is nothing. */
static bool has_forbidden(struct broker *broker, struct session *session, enum verb *ret_verb,
                          const char **ret_name)
{
    struct identity identity;
    const struct policy *policy = policy_of(broker);

    if (identify(session, &identity) < 0) { /* for want of memory: nothing is allowed to whom nobody knows */
        *ret_verb = VERB_COUNT;
        *ret_name = "";
        return true;
    }
    list_for_each(node, &session->lanes)
    {
        const struct lane *lane = list_entry(node, struct lane, by_session);

        *ret_verb = lane->kind == IPC__CONTROL__KIND__KIND_TOPIC ? VERB_PUBLISH : VERB_CALL;
        *ret_name = lane->topic->name;
        if (lane->kind != IPC__CONTROL__KIND__KIND_REPLY &&
            !policy_allows(policy, &identity, *ret_verb, *ret_name))
            return true;
    }
    list_for_each(node, &session->subscriptions)
    {
        const struct subscription *subscription = list_entry(node, struct subscription, by_session);

        *ret_verb = verb_of_subscription(subscription);
        *ret_name = subscription->pattern;
        if (subscription->topic ? !policy_allows(policy, &identity, *ret_verb, *ret_name)
                                : !policy_may_allow(policy, &identity, *ret_verb, *ret_name))
            return true;
    }
    list_for_each(node, &session->ports)
    {
        const struct port *port = list_entry(node, struct port, by_session);

        *ret_verb = port->row->consumer ? VERB_RECEIVE : VERB_SEND;
        *ret_name = port->queue ? port->queue->row->name : "";
        if (port->queue && !policy_allows(policy, &identity, *ret_verb, *ret_name))
            return true;
    }
    list_for_each(node, &session->attachments)
    {
        const struct attachment *attachment = list_entry(node, struct attachment, by_session);
        const struct shared *shared = attachment->shared;

        *ret_verb = VERB_ATTACH;
        *ret_name = shared->row->name;
        if (shared->row->uid != identity.uid && !policy_allows(policy, &identity, VERB_ATTACH, *ret_name))
            return true;
    }
    return false;
}

/* Who reads a lane that it may not read: what is written from now on goes to another lane, without it. */
static void revoke_readers(struct broker *broker)
{
    char text[320];

    list_for_each_safe(node, &broker->pairings)
    {
        struct pairing *pairing = list_entry(node, struct pairing, link);
        struct subscription *subscription = pairing->subscription;

        if (!subscription || subscription->kind != IPC__CONTROL__KIND__KIND_TOPIC ||
            access_allows(broker, subscription->session, VERB_SUBSCRIBE, pairing->lane->topic->name))
            continue;
        (void)snprintf(text, sizeof(text),
                       "the policy was changed: uid %" PRIu32 " may not subscribe to topic %.200s any more",
                       subscription->session->peer.uid, pairing->lane->topic->name);
        session_event(broker, subscription->session, EVENT_DENIED, text);
        lane_renew(broker, pairing->lane);
        pairing_detach(broker, pairing, IPC_REASON_DENIED);
    }
}

void access_revoke(struct broker *broker)
{
    revoke_readers(broker);
    list_for_each_safe(node, &broker->sessions)
    {
        struct session *session = list_entry(node, struct session, link);
        enum verb verb;
        const char *name;
        char text[512];

        if (session->state != SESSION_OPEN || !has_forbidden(broker, session, &verb, &name))
            continue;
        if (verb == VERB_COUNT)
            (void)snprintf(text, sizeof(text),
                           "the broker could not find out the groups of uid %" PRIu32
                           " to apply its policy: connect again",
                           session->peer.uid);
        else
            (void)snprintf(text, sizeof(text),
                           "the policy was changed: uid %" PRIu32 " may not %s %.200s any more",
                           session->peer.uid, verb_phrase(verb), name);
        session_end(broker, session, IPC_REASON_DENIED, text);
    }
}
