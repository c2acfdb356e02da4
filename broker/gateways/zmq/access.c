/* SPDX-License-Identifier: Apache-2.0
 *
 * Who may do what: the rules of the configuration, which are those of ipcd's policy, asked about the connection that a message
 * came by. ZAP gave it an identity and a number that is never used again, which libzmq puts into each of its messages; a peer
 * cannot, since what ZAP says goes before what the peer says of itself. Without rules nobody is asked about.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

bool access_rules(const struct zmq_gateway *gateway)
{
    return gateway->common->policy->n > 0;
}

uint64_t access_connection(const zmq_msg_t *message)
{
    const char *number = zmq_msg_gets(message, ACCESS_PROPERTY);

    return number ? strtoull(number, NULL, 10) : 0;
}

void visitor_done(struct visitor *visitor)
{
    free(visitor->groups);
    memset(visitor, 0, sizeof(*visitor));
}

/* The groups of whoever is at the other end, if it is still that process. */
static void load_groups(struct visitor *visitor, int fd, uint32_t pid)
{
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    gid_t *groups;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || (uint32_t)peer.pid != pid ||
        peer.uid != visitor->identity.uid)
        return;
    size = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) == 0 || errno != ERANGE)
        return;
    groups = malloc(size);
    if (!groups || getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0) {
        free(groups);
        return;
    }
    visitor->groups = groups;
    visitor->identity.groups = groups;
    visitor->identity.n_groups = size / sizeof(*groups);
}

void visitor_identify(struct visitor *visitor, const char *name, const char *address)
{
    struct identity *identity = &visitor->identity;
    uint32_t uid, gid;

    (void)snprintf(visitor->name, sizeof(visitor->name), "%s", name ? name : "");
    *identity = (struct identity){.uid = POLICY_NOBODY, .gid = POLICY_NOBODY};
    if (strncmp(visitor->name, "key:", 4) == 0) {
        identity->key = visitor->name + 4;
    } else if (strncmp(visitor->name, "uid:", 4) == 0 && address &&
               sscanf(address, "localhost:%" SCNu32 ":%" SCNu32 ":", &uid, &gid) == 2) {
        identity->uid = uid;
        identity->gid = gid;
    }
}

void visitor_take(struct zmq_gateway *gateway, struct visitor *visitor, const zmq_msg_t *message)
{
    const char *address = zmq_msg_gets(message, "Peer-Address");
    uint32_t pid;

    visitor_done(visitor);
    visitor_identify(visitor, zmq_msg_gets(message, "User-Id"), address);
    visitor->connection = access_connection(message);
    if (visitor->identity.uid != POLICY_NOBODY && /* for rules that may come, too */
        sscanf(address, "localhost:%*u:%*u:%" SCNu32, &pid) == 1)
        load_groups(visitor, zmq_msg_get(message, ZMQ_SRCFD), pid);
}

/* Of a message; until the next call. */
static struct visitor *visitor_of(struct zmq_gateway *gateway, const zmq_msg_t *message)
{
    uint64_t connection = access_connection(message);
    struct visitor *visitor = &gateway->visitors[connection % VISITORS];

    if (!connection || visitor->connection != connection)
        visitor_take(gateway, visitor, message);
    return visitor;
}

static void explain(const struct zmq_gateway *gateway, const struct visitor *visitor, enum verb verb,
                    const char *name, char why[ACCESS_WHY_SIZE])
{
    char rule[GATEWAY_WHY_SIZE];

    (void)gateway_explain(gateway->common, &visitor->identity, verb, name, rule);
    (void)snprintf(why, ACCESS_WHY_SIZE, "%s may not %s %.200s: %s", visitor->name, verb_phrase(verb), name,
                   rule);
}

static void deny(struct zmq_gateway *gateway, enum endpoint which, const struct visitor *visitor,
                 const char *why)
{
    const struct log_about about = {.name = visitor->name, .reason = endpoint_word(which)};

    gateway->sockets[which].counts.denied++;
    log_write(LOG_DENIED, &about, "%s", why);
}

bool access_message(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message,
                    const char *name)
{
    const enum verb verb = which == ENDPOINT_PUB ? VERB_PUBLISH : VERB_SEND;
    const struct visitor *visitor;
    char why[ACCESS_WHY_SIZE];

    if (!access_rules(gateway))
        return true;
    visitor = visitor_of(gateway, message);
    if (policy_allows(gateway->common->policy, &visitor->identity, verb, name))
        return true;
    explain(gateway, visitor, verb, name, why);
    deny(gateway, which, visitor, why);
    gateway->sockets[which].counts.dropped++;
    return false;
}

static enum verb verb_of(enum wire_command command)
{
    switch (command) {
    case WIRE_PUB:
        return VERB_PUBLISH;
    case WIRE_SUB:
        return VERB_SUBSCRIBE;
    case WIRE_SEND:
        return VERB_SEND;
    case WIRE_PULL:
        return VERB_RECEIVE;
    case WIRE_CALL:
        return VERB_CALL;
    case WIRE_SERVE:
        return VERB_SERVE;
    default: /* what it has by now, or names nothing */
        return VERB_COUNT;
    }
}

bool access_has(struct zmq_gateway *gateway, struct peer *peer, enum verb verb, const char *name,
                struct wire_frame id)
{
    const struct policy *policy = gateway->common->policy;
    const struct identity *identity = &peer->visitor.identity;
    char why[ACCESS_WHY_SIZE];

    if (verb == VERB_SUBSCRIBE && strpbrk(name, "*>")) {
        if (policy_may_allow(policy, identity, verb, name))
            return true;
        (void)snprintf(
            why, sizeof(why),
            "%s may not subscribe to any topic that %.200s stands for: no rule of the policy allows "
            "it ([rule NAME] in ipcd-zmq(8))",
            peer->visitor.name, name);
    } else {
        if (policy_allows(policy, identity, verb, name))
            return true;
        explain(gateway, &peer->visitor, verb, name, why);
    }
    peer->denied++;
    deny(gateway, ENDPOINT_ROUTER, &peer->visitor, why);
    peer_error(gateway, peer, id, -EACCES, why);
    return false;
}

bool access_peer(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message)
{
    const enum verb verb = verb_of(message->command);

#ifdef IPC_PLANT_RULES_UNASKED
    return true;
#endif
    return verb == VERB_COUNT || !access_rules(gateway) ||
           access_has(gateway, peer, verb, message->name, message->id);
}

bool access_topic(const struct zmq_gateway *gateway, const struct peer *peer, const char *topic)
{
    return policy_allows(gateway->common->policy, &peer->visitor.identity, VERB_SUBSCRIBE, topic);
}

bool access_covers(const struct zmq_gateway *gateway, const struct visitor *visitor, const char *pattern)
{
    return policy_allows_all(gateway->common->policy, &visitor->identity, VERB_SUBSCRIBE, pattern);
}

bool access_plain(struct zmq_gateway *gateway, enum endpoint which, const struct visitor *visitor,
                  const char *pattern)
{
    char why[ACCESS_WHY_SIZE];

#ifdef IPC_PLANT_PLAIN_UNASKED
    return true;
#endif
    if (access_covers(gateway, visitor, pattern))
        return true;
    if (strpbrk(pattern, "*>"))
        (void)snprintf(
            why, sizeof(why),
            "%s may not subscribe to every topic that %.200s stands for, as a plain subscriber has to: "
            "no rule of the policy allows it ([rule NAME] in ipcd-zmq(8))",
            visitor->name, pattern);
    else
        explain(gateway, visitor, VERB_SUBSCRIBE, pattern, why);
    deny(gateway, which, visitor, why);
    return false;
}

/* What was let in before is looked at again. Whether XPUB asks, and who chooses routing ids, is decided when sockets are made. */
bool access_changed(struct gateway *common, bool had_rules)
{
    struct zmq_gateway *gateway = common->context;

    if (access_rules(gateway) != had_rules)
        return false;
#ifdef IPC_PLANT_RULES_KEPT
    return true;
#endif
    if (!had_rules)
        return true;
    list_for_each_safe(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);

        subs_review(gateway, peer);
        pulls_review(gateway, peer);
        serves_review(gateway, peer);
    }
    watch_review(gateway);
    return true;
}

void access_end(struct zmq_gateway *gateway)
{
    for (size_t i = 0; i < VISITORS; i++)
        visitor_done(&gateway->visitors[i]);
}
