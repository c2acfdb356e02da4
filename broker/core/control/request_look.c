/* SPDX-License-Identifier: Apache-2.0
 *
 * LIST and STATUS. A page goes on after a number, so that a listing costs nothing between its pages and misses nothing
 * that was there all the time. Numbers from shared memory are shown as they are: they are the client's word.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "broker/core/control/access.h"
#include "broker/core/control/port.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/service.h"
#include "broker/core/control/session.h"
#include "broker/core/control/shared.h"
#include "broker/core/control/stats.h"
#include "broker/core/util/text.h"
#include "proto/name.h"

#define ITEMS_MAX     128u
#define PAGE_SIZE_MAX (IPC_MAX_FRAME_SIZE - 64u)
/* What unpacking may take of the client's arena: items beside what the unpacker keeps of up to ITEMS_MAX of them. */
#define UNPACK_MAX    (IPC_MAX_UNPACK_SIZE - ITEMS_MAX * 64u - 512u)
/* Records that one page looks at. */
#define WORK_MAX      1024u
/* What one page may read of shared memory: who has used up most of it ends the page. */
#define READ_MAX      (UINT64_C(1) << 20)
#define READ_LEFT     (READ_MAX / 16)

/* Sessions that one shared segment may name. */
#define SHARED_WORDS (IPC_MAX_PERMITS + IPC_SHARED_WAITERS)

struct page {
    const Ipc__Control__List *wish;
    struct session *asker;
    bool administrator; /* it sees what is others', too */
    unsigned part;      /* which row of the record at hand */
    Ipc__Control__Item items[ITEMS_MAX];
    Ipc__Control__Peer peers[ITEMS_MAX];
    Ipc__Control__QueueSettings settings[ITEMS_MAX];
    Ipc__Control__Item *pointers[ITEMS_MAX];
    size_t n, size, unpacked;
    uint64_t read_left;
    uint64_t words[4 * SHARED_WORDS]; /* holders and waiters of shared segments */
    size_t n_words;
};

static size_t unpacked_text(const char *text)
{
    return text && *text ? (strlen(text) + 16) & ~(size_t)15 : 0;
}

/* Beyond 16 fields the unpacker keeps notes of 32 bytes for each, 32 of them at once. */
static size_t unpacked_size(const Ipc__Control__Item *item)
{
    return sizeof(*item) + 16 + unpacked_text(item->name) + unpacked_text(item->quota) +
           unpacked_text(item->event) + unpacked_text(item->text) +
           (item->peer ? sizeof(*item->peer) + 16 + unpacked_text(item->peer->name) : 0) +
           (item->settings
                ? sizeof(*item->settings) + 16 + 32 * 32 + unpacked_text(item->settings->dead_letter)
                : 0) +
           (item->n_holders || item->n_waiters ? 32 + 8 * (item->n_holders + item->n_waiters) : 0);
}

static void set_peer(struct page *page, const struct peer *peer)
{
    Ipc__Control__Peer *message = &page->peers[page->n];

    message->session = peer->session;
    message->uid = peer->uid;
    message->gid = peer->gid;
    message->pid = peer->pid;
    message->name = (char *)(uintptr_t)peer->name;
    page->items[page->n].peer = message;
}

static bool read_cell(struct page *page, struct cell_stats *ret, const struct pairing *pairing)
{
    page->read_left -= page->read_left < sizeof(struct ipc_cell) ? page->read_left : sizeof(struct ipc_cell);
    return stats_of_cell(ret, pairing->cells->fd, pairing->cell, pairing->id);
}

static void show_session(struct broker *broker, struct page *page, Ipc__Control__Item *item,
                         const struct session *session)
{
    set_peer(page, &session->peer);
    item->since_ns = session->since_ns;
    item->bytes = session->board_fd >= 0 ? sizeof(struct ipc_board) : 0;
    list_for_each(lane, &session->lanes)
    {
        broker->work++;
        item->topics++;
        item->bytes += IPC_LAYOUT_PAGE + (uint64_t)list_entry(lane, struct lane, by_session)->ring_size;
    }
    list_for_each(subscription, &session->subscriptions)
    {
        broker->work++;
        item->subscriptions++;
        item->pairings += list_entry(subscription, struct subscription, by_session)->n_pairings;
    }
    list_for_each(cells, &session->cells) item->bytes += sizeof(struct ipc_cells);
}

static void show_lane(struct broker *broker, struct page *page, Ipc__Control__Item *item,
                      const struct lane *lane)
{
    struct lane_stats stats;

    stats_of_lane(&stats, lane->fd, lane->ring_size, &page->read_left);
    set_peer(page, &lane->writer);
    item->name = lane->topic->name;
    item->lane = lane->id;
    item->ring_size = lane->ring_size;
    item->bytes = IPC_LAYOUT_PAGE + (uint64_t)lane->ring_size;
    item->head = stats.head;
    item->sequence = stats.sequence;
    item->overrun = stats.overrun;
    item->readers = item->pairings = lane->readers;
    item->retain = lane->retain;
    item->ended = lane->state != LANE_LIVE;
    list_for_each(node, &lane->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_lane);
        struct cell_stats cell;

        broker->work++;
        if (!read_cell(page, &cell, pairing))
            continue;
        item->lost += cell.lost;
        if (stats.head > cell.cursor && stats.head - cell.cursor > item->behind)
            item->behind = stats.head - cell.cursor;
    }
}

static void show_subscription(struct broker *broker, struct page *page, Ipc__Control__Item *item,
                              const struct subscription *subscription)
{
    set_peer(page, &subscription->session->peer);
    item->name = (char *)(uintptr_t)subscription->pattern;
    item->subscription = subscription->id;
    item->pairings = subscription->n_pairings;
    item->start = (Ipc__Control__Start)subscription->start;
    item->slow = (Ipc__Control__Slow)subscription->slow;
    list_for_each(node, &subscription->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_subscription);
        struct cell_stats cell;

        broker->work++;
        if (read_cell(page, &cell, pairing))
            item->lost += cell.lost;
    }
}

static void show_pairing(struct page *page, Ipc__Control__Item *item, const struct pairing *pairing)
{
    struct lane_stats lane;
    struct cell_stats cell;

    stats_of_lane(&lane, pairing->lane->fd, pairing->lane->ring_size, &page->read_left);
    if (pairing->subscription)
        set_peer(page, &pairing->subscription->session->peer);
    item->name = pairing->lane->topic->name;
    item->lane = pairing->lane_id;
    item->subscription = pairing->subscription_id;
    item->ring_size = pairing->lane->ring_size;
    item->start = (Ipc__Control__Start)pairing->start;
    item->slow = (Ipc__Control__Slow)pairing->slow;
    item->ended = !pairing->subscription || pairing->lane->state != LANE_LIVE;
    item->head = lane.head;
    item->sequence = lane.sequence;
    if (read_cell(page, &cell, pairing)) {
        item->lost = cell.lost;
        item->behind = lane.head > cell.cursor ? lane.head - cell.cursor : 0;
    }
}

/* A service is shown once, at its first server, or, if it has none, at the first inbox of those that wait for one. */
static bool shows_service(struct broker *broker, const struct subscription *subscription)
{
    const struct topic *name = subscription->topic, *service;

    if (subscription->kind == IPC__CONTROL__KIND__KIND_TOPIC || name->readers.next != &subscription->by_match)
        return false;
    service = name->space == SPACE_INBOXES ? registry_topic(broker, SPACE_SERVICES, name->name, false) : NULL;
    return !service || list_empty(&service->readers);
}

static void show_service(struct broker *broker, struct page *page, Ipc__Control__Item *item,
                         const struct subscription *subscription)
{
    const struct topic *service = registry_topic(broker, SPACE_SERVICES, subscription->pattern, false);
    const struct topic *inboxes = registry_topic(broker, SPACE_INBOXES, subscription->pattern, false);

    set_peer(page, &subscription->session->peer);
    item->name = (char *)(uintptr_t)subscription->pattern;
    item->servers = service ? service_servers(service) : 0;
    if (inboxes)
        list_for_each(node, &inboxes->readers) item->clients++;
    if (!service)
        return;
    list_for_each(node, &service->lanes)
    {
        const struct lane *lane = list_entry(node, struct lane, by_topic);
        const struct pairing *pairing = service_pairing(lane);
        struct lane_stats stats;
        struct cell_stats cell;

        item->unpaired += lane->state == LANE_LIVE && !pairing;
        if (!pairing)
            continue;
        stats_of_lane(&stats, lane->fd, lane->ring_size, &page->read_left);
        item->sequence += stats.sequence;
        if (read_cell(page, &cell, pairing) && stats.head > cell.cursor)
            item->behind += stats.head - cell.cursor;
    }
}

static void show_user(const struct broker *broker, struct page *page, Ipc__Control__Item *item,
                      const struct user *user)
{
    page->peers[page->n].uid = user->uid;
    item->peer = &page->peers[page->n];
    item->sessions = user->used[LIMIT_SESSIONS];
    item->topics = user->used[LIMIT_TOPICS];
    item->subscriptions = user->used[LIMIT_SUBSCRIPTIONS];
    item->pairings = user->used[LIMIT_LANES];
    item->bytes = user->used[LIMIT_SEGMENT_BYTES];
    item->descriptors = user->used[LIMIT_DESCRIPTORS];
    item->limit_bytes = quota_most(&broker->quota, user, LIMIT_SEGMENT_BYTES);
    item->refused = user->refused;
    item->denied = user->denied;
}

static void show_quota(const struct broker *broker, struct page *page, Ipc__Control__Item *item,
                       const struct user *user)
{
    unsigned limit = page->part;
    struct standing standing = quota_standing(&broker->quota, user, limit, time_monotonic_ns());
    const char *from = user->limits.from[limit];

    page->peers[page->n].uid = user->uid;
    item->peer = &page->peers[page->n];
    item->name = (char *)(uintptr_t)user_limit_about[limit].setting;
    item->used = standing.used;
    item->limit = user->limits.most[limit];
    item->share = standing.share;
    item->total_used = standing.total_used;
    item->total = standing.total;
    item->in_bytes = user_limit_about[limit].bytes;
    if (from)
        item->quota = (char *)(uintptr_t)from;
}

static void show_event(struct page *page, Ipc__Control__Item *item, const struct event *event)
{
    const char *word = event_word(event->kind);

    set_peer(page, &event->peer);
    item->since_ns = event->time_ns;
    item->event = (char *)(uintptr_t)word;
    item->text = (char *)(uintptr_t)event->text;
    item->more = event->more;
}

static void show_queue(const struct broker *broker, struct page *page, Ipc__Control__Item *item,
                       const struct queue *queue)
{
    const struct queue_stats *stats = &queue->stats;

    page->peers[page->n].session = queue->row->session;
    page->peers[page->n].uid = queue->row->uid;
    item->peer = &page->peers[page->n];
    item->name = queue->row->name;
    item->queue = queue->id;
    item->settings = &page->settings[page->n];
    registry_queue_settings(broker, queue, item->settings);
    item->ended = registry_queue_removing(queue);
    item->producers = queue->producers;
    item->consumers = queue->consumers;
    item->waiting = atomic_load_explicit(&stats->waiting, memory_order_relaxed);
    item->delayed = atomic_load_explicit(&stats->delayed, memory_order_relaxed);
    item->unacked = atomic_load_explicit(&stats->unacked, memory_order_relaxed);
    item->bytes = atomic_load_explicit(&stats->bytes, memory_order_relaxed);
    item->memory = atomic_load_explicit(&stats->memory, memory_order_relaxed);
    item->accepted = atomic_load_explicit(&stats->accepted, memory_order_relaxed);
    item->acked = atomic_load_explicit(&stats->acked, memory_order_relaxed);
    item->redelivered = atomic_load_explicit(&stats->redelivered, memory_order_relaxed);
    item->dead = atomic_load_explicit(&stats->dead, memory_order_relaxed);
    item->dropped = atomic_load_explicit(&stats->dropped, memory_order_relaxed);
    item->rejected = atomic_load_explicit(&stats->rejected, memory_order_relaxed);
    item->duplicates = atomic_load_explicit(&stats->duplicates, memory_order_relaxed);
}

static void show_port(struct page *page, Ipc__Control__Item *item, const struct port *port)
{
    const struct port_row *row = port->row;

    page->peers[page->n].session = row->session;
    page->peers[page->n].uid = row->uid;
    page->peers[page->n].pid = row->pid;
    if (port->session)
        page->peers[page->n].name = port->session->peer.name;
    item->peer = &page->peers[page->n];
    if (port->queue)
        item->name = port->queue->row->name;
    item->queue = row->queue;
    item->role = row->consumer ? IPC__CONTROL__ROLE__CONSUMER : IPC__CONTROL__ROLE__PRODUCER;
    item->ring_size = row->consumer ? row->core_ring_size : row->session_ring_size;
    item->prefetch = row->consumer ? row->prefetch : 0;
    item->bytes = 2 * IPC_LAYOUT_PAGE + (uint64_t)row->core_ring_size + row->session_ring_size;
    item->ended = !port->session || !port->queue;
}

/* Its words are its users' word. */
static void show_shared(struct page *page, Ipc__Control__Item *item, struct shared *shared)
{
    const struct ipc_shared *words = registry_shared_page(shared);

    page->read_left -= page->read_left < IPC_LAYOUT_PAGE ? page->read_left : IPC_LAYOUT_PAGE;
    item->peer = &page->peers[page->n];
    item->peer->uid = shared->row->uid;
    item->peer->gid = shared->row->gid;
    item->name = shared->row->name;
    item->bytes = shared->row->size;
    item->permits = shared->row->permits;
    item->attached = shared->n_attached;
    item->keep = shared->row->keep;
    item->holders = page->words + page->n_words;
    for (unsigned i = 0; words && i < shared->row->permits; i++) {
        uint64_t owner = atomic_load_explicit(&words->owners[i], memory_order_relaxed);

        if (owner)
            item->holders[item->n_holders++] = owner;
    }
    item->waiters = item->holders + item->n_holders;
    for (unsigned i = 0; words && i < IPC_SHARED_WAITERS; i++) {
        uint64_t waiter = atomic_load_explicit(&words->waiters[i], memory_order_relaxed);

        if (waiter)
            item->waiters[item->n_waiters++] = waiter;
    }
    page->n_words += item->n_holders + item->n_waiters;
}

/* What is whose, and with what a verb lets others see its name. */
struct label {
    uint64_t id;
    const char *name; /* NULL: none that is anybody's business */
    uint32_t uid;
    enum verb verbs[2];
    bool shown;
};

static struct label label_of_lane(const struct lane *lane, uint64_t id)
{
    return (struct label){id,
                          lane->topic->name,
                          lane->writer.uid,
                          {VERB_PUBLISH, VERB_SUBSCRIBE},
                          lane->kind == IPC__CONTROL__KIND__KIND_TOPIC};
}

static struct label label_of(struct broker *broker, unsigned kind, struct list *node)
{
    const struct subscription *subscription;
    const struct session *session;
    const struct pairing *pairing;
    const struct shared *shared;
    const struct queue *queue;
    const struct event *event;
    const struct lane *lane;
    const struct user *user;
    const struct port *port;

    switch (kind) {
    case IPC__CONTROL__LIST_KIND__LIST_SESSIONS:
        session = list_entry(node, struct session, link);
        return (struct label){session->peer.session, NULL, session->peer.uid, {0}, true};
    case IPC__CONTROL__LIST_KIND__LIST_TOPICS:
        lane = list_entry(node, struct lane, link);
        return label_of_lane(lane, lane->id);
    case IPC__CONTROL__LIST_KIND__LIST_PAIRINGS:
        pairing = list_entry(node, struct pairing, link);
        return label_of_lane(pairing->lane, pairing->id);
    case IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS:
        subscription = list_entry(node, struct subscription, link);
        return (struct label){subscription->id,
                              subscription->pattern,
                              subscription->session->peer.uid,
                              {VERB_PUBLISH, VERB_SUBSCRIBE},
                              subscription->kind == IPC__CONTROL__KIND__KIND_TOPIC};
    case IPC__CONTROL__LIST_KIND__LIST_SERVICES:
        subscription = list_entry(node, struct subscription, link);
        return (struct label){subscription->id,
                              subscription->pattern,
                              subscription->session->peer.uid,
                              {VERB_CALL, VERB_SERVE},
                              shows_service(broker, subscription)};
    case IPC__CONTROL__LIST_KIND__LIST_QUEUES:
        queue = list_entry(node, struct queue, link);
        return (struct label){queue->id, queue->row->name, queue->row->uid, {VERB_SEND, VERB_RECEIVE}, true};
    case IPC__CONTROL__LIST_KIND__LIST_SEGMENTS:
        shared = list_entry(node, struct shared, link);
        return (struct label){
            shared->id, shared->row->name, shared->row->uid, {VERB_ATTACH, VERB_ATTACH}, true};
    case IPC__CONTROL__LIST_KIND__LIST_PORTS:
        port = list_entry(node, struct port, link);
        return (struct label){port->id,
                              port->queue ? port->queue->row->name : NULL,
                              port->row->uid,
                              {VERB_SEND, VERB_RECEIVE},
                              true};
    case IPC__CONTROL__LIST_KIND__LIST_EVENTS:
        event = list_entry(node, struct event, link);
        return (struct label){event->sequence, NULL, event->peer.uid, {0}, true};
    default:
        user = list_entry(node, struct user, link);
        return (struct label){(uint64_t)user->uid + 1, NULL, user->uid, {0}, true};
    }
}

/* Who does not administer the broker sees what is its own, and names with which it may do something. */
static bool may_see(struct broker *broker, const struct page *page, const struct label *label)
{
    struct session *asker = page->asker;

    return page->administrator || asker->peer.uid == label->uid ||
           (label->name && (access_allows(broker, asker, label->verbs[0], label->name) ||
                            access_allows(broker, asker, label->verbs[1], label->name)));
}

static bool is_wanted(struct broker *broker, const struct page *page, const struct label *label)
{
    const char *pattern = page->wish->pattern;

    return label->shown &&
           (!label->name || !*pattern || strcmp(label->name, pattern) == 0 ||
            ipc_name_match(pattern, label->name)) &&
           may_see(broker, page, label);
}

static void show(struct broker *broker, struct page *page, Ipc__Control__Item *item, struct list *node)
{
    switch (page->wish->kind) {
    case IPC__CONTROL__LIST_KIND__LIST_SESSIONS:
        show_session(broker, page, item, list_entry(node, struct session, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_TOPICS:
        show_lane(broker, page, item, list_entry(node, struct lane, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS:
        show_subscription(broker, page, item, list_entry(node, struct subscription, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_PAIRINGS:
        show_pairing(page, item, list_entry(node, struct pairing, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_SERVICES:
        show_service(broker, page, item, list_entry(node, struct subscription, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_QUEUES:
        show_queue(broker, page, item, list_entry(node, struct queue, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_SEGMENTS:
        show_shared(page, item, list_entry(node, struct shared, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_PORTS:
        show_port(page, item, list_entry(node, struct port, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_EVENTS:
        show_event(page, item, list_entry(node, struct event, link));
        break;
    case IPC__CONTROL__LIST_KIND__LIST_QUOTA:
        show_quota(broker, page, item, list_entry(node, struct user, link));
        break;
    default:
        show_user(broker, page, item, list_entry(node, struct user, link));
        break;
    }
}

static struct list *head_of(struct broker *broker, unsigned kind)
{
    switch (kind) {
    case IPC__CONTROL__LIST_KIND__LIST_SESSIONS:
        return &broker->sessions;
    case IPC__CONTROL__LIST_KIND__LIST_TOPICS:
        return &broker->lanes;
    case IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS:
    case IPC__CONTROL__LIST_KIND__LIST_SERVICES:
        return &broker->subscriptions;
    case IPC__CONTROL__LIST_KIND__LIST_PAIRINGS:
        return &broker->pairings;
    case IPC__CONTROL__LIST_KIND__LIST_QUEUES:
        return &broker->queues;
    case IPC__CONTROL__LIST_KIND__LIST_SEGMENTS:
        return &broker->shared;
    case IPC__CONTROL__LIST_KIND__LIST_PORTS:
        return &broker->ports;
    case IPC__CONTROL__LIST_KIND__LIST_USERS:
    case IPC__CONTROL__LIST_KIND__LIST_QUOTA:
        return &broker->quota.users;
    case IPC__CONTROL__LIST_KIND__LIST_EVENTS:
        events_flush(&broker->events, time_monotonic_ns());
        return &broker->events.all;
    default:
        return NULL;
    }
}

/* The node of a number, or NULL. Those of users, who are few, are not looked for. */
static struct list *find(const struct broker *broker, unsigned kind, uint64_t id)
{
    struct session *session;
    struct lane *lane;
    struct subscription *subscription;
    struct pairing *pairing;
    struct queue *queue;
    struct port *port;

    switch (kind) {
    case IPC__CONTROL__LIST_KIND__LIST_SESSIONS:
        session = registry_session(broker, id);
        /* One that was refused has a number as well, and is in another list. */
        return session && session->state != SESSION_REFUSED ? &session->link : NULL;
    case IPC__CONTROL__LIST_KIND__LIST_TOPICS:
        lane = registry_lane(broker, id);
        return lane ? &lane->link : NULL;
    case IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS:
        subscription = registry_subscription(broker, id);
        return subscription ? &subscription->link : NULL;
    case IPC__CONTROL__LIST_KIND__LIST_PAIRINGS:
        pairing = registry_pairing(broker, id);
        return pairing ? &pairing->link : NULL;
    case IPC__CONTROL__LIST_KIND__LIST_QUEUES:
        queue = registry_queue(broker, id);
        return queue ? &queue->link : NULL;
    case IPC__CONTROL__LIST_KIND__LIST_PORTS:
        port = registry_port(broker, id);
        return port ? &port->link : NULL;
    default:
        return NULL;
    }
}

/* Where to go on after a number: behind its record if that is still there, else at one of the next numbers. Only when
 * they are gone as well, the list is walked to wherever the numbers are larger. */
static struct list *start_after(struct broker *broker, const struct page *page, struct list *head)
{
    uint64_t after = page->wish->after;
    struct list *node = find(broker, page->wish->kind, after);

    if (page->wish->kind == IPC__CONTROL__LIST_KIND__LIST_EVENTS)
        return events_after(&broker->events, after);
    if (node)
        return node->next;
    for (uint64_t i = 1; after > 0 && i <= WORK_MAX && !node; i++) {
        node = find(broker, page->wish->kind, after + i);
        broker->work++;
    }
    if (node)
        return node;
    for (node = head->next; node != head && label_of(broker, page->wish->kind, node).id <= after;
         node = node->next)
        broker->work++;
    return node;
}

static bool add_row(struct broker *broker, struct page *page, struct list *node, uint64_t id)
{
    Ipc__Control__Item *item = &page->items[page->n];
    size_t size, unpacked;

    if (page->n == ITEMS_MAX || (page->n > 0 && page->read_left < READ_LEFT) ||
        (page->n > 0 && page->n_words + SHARED_WORDS > sizeof(page->words) / sizeof(*page->words)))
        return false;
    ipc__control__item__init(item);
    ipc__control__peer__init(&page->peers[page->n]);
    item->id = id;
    show(broker, page, item, node);
    size = ipc__control__item__get_packed_size(item) + 4; /* tag and length */
    unpacked = unpacked_size(item);
    if (page->n > 0 && (page->size + size > PAGE_SIZE_MAX || page->unpacked + unpacked > UNPACK_MAX))
        return false;
    page->size += size;
    page->unpacked += unpacked;
    page->pointers[page->n++] = item;
    return true;
}

/* Add the rows of one record. Returns false if the page is full: then none was added. */
static bool add(struct broker *broker, struct page *page, struct list *node, uint64_t id)
{
    unsigned parts = page->wish->kind == IPC__CONTROL__LIST_KIND__LIST_QUOTA ? USER_LIMITS : 1;
    size_t n = page->n, size = page->size, unpacked = page->unpacked;

    for (page->part = 0; page->part < parts; page->part++) {
        if (add_row(broker, page, node, id))
            continue;
        page->n = n;
        page->size = size;
        page->unpacked = unpacked;
        return false;
    }
    return true;
}

void request_list(struct broker *broker, struct session *session, uint64_t id, const Ipc__Control__List *list)
{
    struct list *head = head_of(broker, list->kind);
    Ipc__Control__Page message = IPC__CONTROL__PAGE__INIT;
    struct page page;
    struct list *node;
    uint64_t work, last = 0;
    const char *wrong = *list->pattern ? ipc_name_check(list->pattern, true) : NULL;

    if (!head || wrong) {
        session_fail(broker, session, id, -EINVAL,
                     head ? "the pattern is not valid: %s" : "no such kind of list%s", head ? wrong : "");
        return;
    }
    page.wish = list;
    page.asker = session;
    page.administrator = access_administers(broker, session);
    page.n = page.size = page.unpacked = page.n_words = 0;
    page.read_left = READ_MAX;
    node = start_after(broker, &page, head);
    for (work = broker->work; node != head; node = node->next) {
        const struct label label = label_of(broker, list->kind, node);

        if (broker->work - work > WORK_MAX ||
            (is_wanted(broker, &page, &label) && !add(broker, &page, node, label.id))) {
            message.next = last;
            break;
        }
        broker->work++;
        last = label.id;
    }
    message.items = page.pointers;
    message.n_items = page.n;
    message.all = page.administrator;
    session_reply(broker, session, IPC__CONTROL__TYPE__PAGE, id, &message.base, -1);
}

static uint64_t resident_bytes(void)
{
    unsigned long size, resident;
    FILE *file = fopen("/proc/self/statm", "re");
    uint64_t bytes = 0;

    if (!file)
        return 0;
    if (fscanf(file, "%lu %lu", &size, &resident) == 2)
        bytes = (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
    (void)fclose(file);
    return bytes;
}

void request_status(struct broker *broker, struct session *session, uint64_t id)
{
    Ipc__Control__StatusReply status = IPC__CONTROL__STATUS_REPLY__INIT;
    const struct quota *quota = &broker->quota;
    const char *guardian = keep_guardian(broker);

    status.version = (char[]){IPCD_VERSION};
    status.instance = broker->instance;
    status.pid = (uint32_t)getpid();
    status.started_ns = broker->started_ns;
    status.sessions = quota->used[LIMIT_SESSIONS];
    status.topics = broker->n_topics;
    status.subscriptions = quota->used[LIMIT_SUBSCRIPTIONS];
    status.pairings = quota->used[LIMIT_LANES];
    status.segments = broker->n_topics + broker->n_boards + broker->cells_by_id.count +
                      2 * broker->ports_by_id.count;
    status.segment_bytes = quota->used[LIMIT_SEGMENT_BYTES];
    status.descriptors = quota->used[LIMIT_DESCRIPTORS] + IPC_CORE_FDS_BASE;
    status.descriptors_max = quota->config->total[LIMIT_DESCRIPTORS] + IPC_CORE_FDS_BASE;
    status.refused = quota->refused;
    status.denied = broker->denied;
    status.memory_limit = quota->config->memory_limit == UINT64_MAX ? 0 : quota->config->memory_limit;
    status.segment_bytes_max = quota->config->total[LIMIT_SEGMENT_BYTES];
    status.queue_bytes_max = quota->config->total_queue_bytes;
    status.lowered = quota->config->lowered;
    status.ended_badly = broker->ended_badly;
    status.membarrier = broker->options.membarrier;
    status.guardian = (char *)(uintptr_t)guardian;
    status.starts = broker->state.header->starts;
    status.rss_bytes = resident_bytes();
    status.requests = broker->requests;
    session_reply(broker, session, IPC__CONTROL__TYPE__STATUS_REPLY, id, &status.base, -1);
}
