/* SPDX-License-Identifier: Apache-2.0
 *
 * Which subscriptions want a lane, which lanes a subscription wants: when somebody advertises or subscribes, never per
 * message. A pattern that is a plain name is found by hash; the others are one list. Lists are in order of number, so
 * the two walks are as well.
 */
#include "broker/core/control/registry.h"

#include <string.h>

#include "broker/core/control/access.h"
#include "proto/name.h"

static bool wants(struct broker *broker, const struct subscription *subscription, const struct lane *lane)
{
    if (!subscription->self && lane->writer.session == subscription->session->peer.session)
        return false;
    /* Of a lane that gets no new messages, only who wants old ones has any use. */
    if (lane->state != LANE_LIVE &&
        (lane->state != LANE_RETAINED || subscription->start == IPC__CONTROL__START__START_NEXT))
        return false;
    return access_allows(broker, subscription->session, VERB_SUBSCRIBE, lane->topic->name);
}

void match_readers_start(struct match_walk *walk, struct broker *broker, const struct lane *lane)
{
    walk->wildcard = broker->wildcards.next;
    walk->exact = lane->topic->readers.next;
}

struct subscription *match_readers_next(struct match_walk *walk, struct broker *broker,
                                        const struct lane *lane)
{
    for (;;) {
        struct subscription *wildcard = NULL, *exact = NULL, *next;

        if (walk->wildcard != &broker->wildcards)
            wildcard = list_entry(walk->wildcard, struct subscription, by_match);
        if (walk->exact != &lane->topic->readers)
            exact = list_entry(walk->exact, struct subscription, by_match);
        if (!wildcard && !exact)
            return NULL;
        broker->work++;
        if (!wildcard || (exact && exact->id < wildcard->id)) {
            next = exact;
            walk->exact = walk->exact->next;
        } else {
            next = wildcard;
            walk->wildcard = walk->wildcard->next;
            if (!ipc_name_match(next->pattern, lane->topic->name))
                continue;
        }
        if (wants(broker, next, lane))
            return next;
    }
}

static struct lane *next_of_topic(struct broker *broker, const struct subscription *subscription,
                                  const struct lane *at)
{
    struct list *head = &subscription->topic->lanes, *node = at ? at->by_topic.next : head->next;

    for (; node != head; node = node->next) {
        struct lane *lane = list_entry(node, struct lane, by_topic);

        broker->work++;
        if (wants(broker, subscription, lane))
            return lane;
    }
    return NULL;
}

struct lane *match_lanes_next(struct broker *broker, const struct subscription *subscription,
                              const struct lane *at)
{
    struct list *node;

    if (subscription->kind != IPC__CONTROL__KIND__KIND_TOPIC)
        return NULL;
    if (subscription->topic)
        return next_of_topic(broker, subscription, at);
    for (node = at ? at->link.next : broker->lanes.next; node != &broker->lanes; node = node->next) {
        struct lane *lane = list_entry(node, struct lane, link);

        broker->work++;
        if (lane->topic->space == SPACE_TOPICS && ipc_name_match(subscription->pattern, lane->topic->name) &&
            wants(broker, subscription, lane))
            return lane;
    }
    return NULL;
}
