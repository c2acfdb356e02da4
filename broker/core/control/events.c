/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/events.h"

#include <assert.h>
#include <stdio.h>

#include "broker/core/util/text.h"

const char *event_word(enum event_kind kind)
{
    static const char *const words[] = {
#define EVENT_WORD(kind, word) word,
        EVENT_KINDS(EVENT_WORD)
#undef EVENT_WORD
    };

    return words[kind];
}

int events_init(struct events *events)
{
    events->last = &events->own_last;
    list_init(&events->all);
    list_init(&events->sources);
    list_init(&events->spare);
    return hash_init(&events->by_uid);
}

void events_done(struct events *events)
{
    hash_done(&events->by_uid);
}

void events_go_on(struct events *events, uint64_t *last)
{
    *last += *events->last;
    events->last = last;
}

static void source_release(struct events *events, struct event_source *source)
{
    if (source->n > 0)
        return;
    source->untold = 0;
    hash_remove(&events->by_uid, &source->node);
    list_remove(&source->link);
    list_append(&events->spare, &source->link);
}

/* There is one more than events, so that a newcomer always finds one. */
static struct event_source *source_of(struct events *events, uint32_t uid, uint64_t now_ns)
{
    struct hash_node *node = hash_find(&events->by_uid, uid);
    struct event_source *source;

    if (node)
        return list_entry(node, struct event_source, node);
    if (list_empty(&events->spare)) {
        source = &events->source_memory[events->n_sources++];
    } else {
        source = list_entry(events->spare.next, struct event_source, link);
        list_remove(&source->link);
    }
    *source = (struct event_source){.uid = uid, .left = EVENTS_BURST, .at_ns = now_ns};
    list_init(&source->link);
    list_init(&source->events);
    list_append(&events->sources, &source->link);
    hash_add(&events->by_uid, &source->node, uid);
    return source;
}

static void drop_oldest_of_largest(struct events *events)
{
    struct event_source *most = NULL;
    struct event *event;

    list_for_each(node, &events->sources)
    {
        struct event_source *source = list_entry(node, struct event_source, link);

        if (!most || source->n > most->n)
            most = source;
    }
    assert(most); /* it is called when there are events */
    event = list_entry(most->events.next, struct event, by_source);
    list_remove(&event->link);
    list_remove(&event->by_source);
    most->n--;
    /* Its memory is the next to be used. */
    list_append(&events->all, &event->link);
    source_release(events, most);
}

static struct event *event_new(struct events *events)
{
    struct event *event;

    if (events->n < EVENTS_KEPT) {
        event = &events->memory[events->n++];
    } else {
        drop_oldest_of_largest(events);
        event = list_entry(events->all.previous, struct event, link);
        list_remove(&event->link);
    }
    return event;
}

static bool may_tell(struct event_source *source, uint64_t now_ns)
{
    source->left += (double)(now_ns - source->at_ns) * 1e-9 * EVENTS_PER_SECOND;
    source->at_ns = now_ns;
    if (source->left > EVENTS_BURST)
        source->left = EVENTS_BURST;
    if (source->left < 1)
        return false;
    source->left -= 1;
    return true;
}

static void put(struct events *events, struct event_source *source, enum event_kind kind,
                const struct peer *peer, const char *text)
{
    struct event *event;

    source->n++; /* it is not released on the way */
    event = event_new(events);
    *event = (struct event){.source = source,
                            .sequence = ++*events->last,
                            .time_ns = time_realtime_ns(),
                            .more = source->untold,
                            .peer = *peer,
                            .kind = kind};
    (void)snprintf(event->text, sizeof(event->text), "%s", text ? text : "");
    source->untold = 0;
    list_init(&event->link);
    list_init(&event->by_source);
    list_append(&events->all, &event->link);
    list_append(&source->events, &event->by_source);
}

void events_add(struct events *events, uint64_t now_ns, enum event_kind kind, const struct peer *peer,
                const char *text)
{
    struct event_source *source = source_of(events, peer->uid, now_ns);

    if (may_tell(source, now_ns))
        put(events, source, kind, peer, text);
    else
        source->untold++;
}

void events_flush(struct events *events, uint64_t now_ns)
{
    /* Not along the list: one that is told may cost another its last event, and its place. */
    for (size_t i = 0; i < events->n_sources; i++) {
        struct event_source *source = &events->source_memory[i];

        if (source->untold > 0 && may_tell(source, now_ns))
            put(events, source, EVENT_MORE, &(const struct peer){.uid = source->uid}, NULL);
    }
}

struct list *events_after(struct events *events, uint64_t sequence)
{
    struct list *node = events->all.previous;

    while (node != &events->all && list_entry(node, struct event, link)->sequence > sequence)
        node = node->previous;
    return node->next;
}
