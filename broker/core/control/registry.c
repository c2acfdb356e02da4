/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/registry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int registry_init(struct broker *broker)
{
    list_init(&broker->sessions);
    list_init(&broker->lanes);
    list_init(&broker->subscriptions);
    list_init(&broker->pairings);
    list_init(&broker->queues);
    list_init(&broker->ports);
    list_init(&broker->shared);
    list_init(&broker->wildcards);
    list_init(&broker->dirty);
    list_init(&broker->stalled);
    list_init(&broker->ended);
    list_init(&broker->refused);
    list_init(&broker->silent);
    list_init(&broker->overdue);
    list_init(&broker->orphans);
    list_init(&broker->unwatched);
    if (hash_init(&broker->sessions_by_id) < 0 || hash_init(&broker->lanes_by_id) < 0 ||
        hash_init(&broker->subscriptions_by_id) < 0 || hash_init(&broker->pairings_by_id) < 0 ||
        hash_init(&broker->cells_by_id) < 0 || hash_init(&broker->topics_by_name) < 0 ||
        hash_init(&broker->queues_by_id) < 0 || hash_init(&broker->queues_by_name) < 0 ||
        hash_init(&broker->ports_by_id) < 0 || hash_init(&broker->shared_by_name) < 0)
        return -ENOMEM;
    if (events_init(&broker->events) < 0)
        return -ENOMEM;
    return quota_init(&broker->quota, broker->options.config);
}

void registry_done(struct broker *broker)
{
    quota_done(&broker->quota);
    events_done(&broker->events);
    hash_done(&broker->sessions_by_id);
    hash_done(&broker->lanes_by_id);
    hash_done(&broker->subscriptions_by_id);
    hash_done(&broker->pairings_by_id);
    hash_done(&broker->cells_by_id);
    hash_done(&broker->topics_by_name);
    hash_done(&broker->queues_by_id);
    hash_done(&broker->queues_by_name);
    hash_done(&broker->ports_by_id);
    hash_done(&broker->shared_by_name);
}

struct session *registry_session(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->sessions_by_id, id);

    return node ? list_entry(node, struct session, node) : NULL;
}

struct lane *registry_lane(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->lanes_by_id, id);

    return node ? list_entry(node, struct lane, node) : NULL;
}

struct subscription *registry_subscription(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->subscriptions_by_id, id);

    return node ? list_entry(node, struct subscription, node) : NULL;
}

struct pairing *registry_pairing(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->pairings_by_id, id);

    return node ? list_entry(node, struct pairing, node) : NULL;
}

enum name_space registry_space(unsigned kind)
{
    switch (kind) {
    case IPC__CONTROL__KIND__KIND_SERVE:
    case IPC__CONTROL__KIND__KIND_CALL:
        return SPACE_SERVICES;
    case IPC__CONTROL__KIND__KIND_INBOX:
    case IPC__CONTROL__KIND__KIND_REPLY:
        return SPACE_INBOXES;
    default:
        return SPACE_TOPICS;
    }
}

struct topic *registry_topic(struct broker *broker, enum name_space space, const char *name, bool make)
{
    size_t size = strlen(name);
    uint64_t key = hash_string(broker->secret, name, size);
    struct topic *topic;

    for (struct hash_node *node = hash_find(&broker->topics_by_name, key); node;
         node = hash_find_next(node)) {
        topic = list_entry(node, struct topic, node);
        if (topic->space == space && strcmp(topic->name, name) == 0)
            return topic;
    }
    if (!make)
        return NULL;
    topic = calloc(1, sizeof(*topic) + size + 1);
    if (!topic)
        return NULL;
    topic->space = space;
    list_init(&topic->lanes);
    list_init(&topic->readers);
    memcpy(topic->name, name, size + 1);
    hash_add(&broker->topics_by_name, &topic->node, key);
    return topic;
}

void registry_topic_release(struct broker *broker, struct topic *topic)
{
    if (!topic || !list_empty(&topic->lanes) || !list_empty(&topic->readers))
        return;
    hash_remove(&broker->topics_by_name, &topic->node);
    free(topic);
}

struct subscription *registry_subscription_new(struct broker *broker, struct session *session, uint64_t id,
                                               unsigned kind, const char *pattern,
                                               struct subscription_row *row)
{
    size_t size = strlen(pattern);
    struct subscription *subscription = calloc(1, sizeof(*subscription) + size + 1);

    if (!subscription)
        return NULL;
    memcpy(subscription->pattern, pattern, size + 1);
    if (!strpbrk(pattern, "*>")) {
        subscription->topic = registry_topic(broker, registry_space(kind), pattern, true);
        if (!subscription->topic) {
            free(subscription);
            return NULL;
        }
    }
    subscription->row = row;
    subscription->kind = (uint8_t)kind;
    subscription->session = session;
    list_init(&subscription->pairings);
    list_init(&subscription->bells);
    subscription->id = id;
    list_append(&broker->subscriptions, &subscription->link);
    list_append(&session->subscriptions, &subscription->by_session);
    list_append(subscription->topic ? &subscription->topic->readers : &broker->wildcards,
                &subscription->by_match);
    hash_add(&broker->subscriptions_by_id, &subscription->node, subscription->id);
    return subscription;
}

struct subscription *registry_subscription_free(struct broker *broker, struct subscription *subscription)
{
    state_drop(&broker->state, STATE_SUBSCRIPTIONS, subscription->row);
    hash_remove(&broker->subscriptions_by_id, &subscription->node);
    list_remove(&subscription->link);
    list_remove(&subscription->by_session);
    list_remove(&subscription->by_match);
    registry_topic_release(broker, subscription->topic);
    free(subscription);
    return NULL;
}
