/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl ls: topics and who publishes them, and queues; with -l who reads them and how far behind; with -s who waits for what.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/name.h"
#include "tools/admin.h"
#include "tools/output.h"
#include "tools/queue.h"
#include "tools/text.h"

struct ls_arguments {
    struct tool *tool;
    const char *pattern;
    bool pairings;
    bool subscriptions;
};

static const struct argp_option options[] = {
    {"long", 'l', NULL, 0, "Also the readers of each topic: policy, how far behind, what they lost", 0},
    {"subscriptions", 's', NULL, 0, "Also the subscriptions, those that match nothing included", 0},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct ls_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'l':
        arguments->pairings = true;
        return 0;
    case 's':
        arguments->subscriptions = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->pattern)
            argp_error(state, "one pattern at most; quote it, so that the shell does not expand it");
        tool_parse_name(state, value, true);
        arguments->pattern = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* What was listed, each sorted by name, then lane. */
struct listing {
    struct admin_list topics; /* one row a lane */
    struct admin_list pairings;
    struct admin_list subscriptions;
    struct admin_list services;
    struct admin_list queues;
    struct admin_list segments;
    Ipc__Control__Item **by_lane; /* the topics again, in order of their lanes */
};

static int by_name(const void *a, const void *b)
{
    const Ipc__Control__Item *x = *(Ipc__Control__Item *const *)a, *y = *(Ipc__Control__Item *const *)b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : x->lane != y->lane ? (x->lane < y->lane ? -1 : 1) : x->id < y->id ? -1 : 1;
}

static const char *state_word(const Ipc__Control__Item *topic)
{
    return topic->ended ? "retained" : "live";
}

static int by_lane(const void *a, const void *b)
{
    const Ipc__Control__Item *x = *(Ipc__Control__Item *const *)a, *y = *(Ipc__Control__Item *const *)b;
    return x->lane == y->lane ? 0 : x->lane < y->lane ? -1 : 1;
}

/* The topic that a pairing reads, NULL if it is not among those listed. */
static const Ipc__Control__Item *topic_of(const struct listing *listing, const Ipc__Control__Item *pairing)
{
    if (listing->topics.count == 0)
        return NULL;
    Ipc__Control__Item **found =
        bsearch(&pairing, listing->by_lane, listing->topics.count, sizeof(*listing->by_lane), by_lane);
    return found ? *found : NULL;
}

static void set_peer(json_t *row, const Ipc__Control__Peer *peer)
{
    output_set(row, "session", output_number(peer->session));
    output_set(row, "name", output_string(peer->name));
    output_set(row, "uid", output_number(peer->uid));
    output_set(row, "pid", output_number(peer->pid));
}

/* All lanes of one name: rows from `first` on, up to the end that is returned. */
static size_t topic_json(const struct admin_list *list, size_t first, json_t *topics)
{
    json_t *publishers = json_array();
    uint64_t readers = 0, published = 0, lost = 0;
    bool live = false;
    size_t i = first;
    for (; i < list->count && strcmp(list->items[i]->name, list->items[first]->name) == 0; i++) {
        const Ipc__Control__Item *item = list->items[i];
        json_t *row = json_object();
        output_set(row, "lane", output_number(item->lane));
        set_peer(row, item->peer);
        output_set(row, "readers", output_number(item->readers));
        output_set(row, "ring_size", output_number(item->ring_size));
        output_set(row, "published", output_number(item->sequence));
        output_set(row, "bytes", output_number(item->head));
        output_set(row, "lost", output_number(item->lost));
        output_set(row, "overrun", output_number(item->overrun));
        output_set(row, "retain", json_boolean(item->retain));
        output_set(row, "state", output_string(state_word(item)));
        output_append(publishers, row);
        readers += item->readers;
        published += item->sequence;
        lost += item->lost;
        live = live || !item->ended;
    }
    json_t *topic = json_object();
    output_set(topic, "topic", output_string(list->items[first]->name));
    output_set(topic, "state", json_string(live ? "live" : "retained"));
    output_set(topic, "readers", output_number(readers));
    output_set(topic, "published", output_number(published));
    output_set(topic, "lost", output_number(lost));
    output_set(topic, "publishers", publishers);
    output_append(topics, topic);
    return i;
}

/* "3 17 17 ..": as many as fit. */
static void sessions_text(char *to, size_t capacity, const uint64_t *sessions, size_t count)
{
    size_t size = 0;
    *to = 0;
    for (size_t i = 0; i < count && size < capacity; i++) {
        int n = size + 25 < capacity
                    ? snprintf(to + size, capacity - size, "%s%" PRIu64, i ? " " : "", sessions[i])
                    : snprintf(to + size, capacity - size, " ..");
        size += n > 0 ? (size_t)n : 0;
        if (size + 25 >= capacity && to[size - 1] == '.')
            break;
    }
}

static json_t *session_numbers(const uint64_t *sessions, size_t count)
{
    json_t *numbers = json_array();
    for (size_t i = 0; i < count; i++)
        output_append(numbers, output_number(sessions[i]));
    return numbers;
}

static json_t *segment_rows(const struct admin_list *segments)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < segments->count; i++) {
        const Ipc__Control__Item *item = segments->items[i];
        json_t *row = json_object();
        output_set(row, "segment", output_string(item->name));
        output_set(row, "bytes", output_number(item->bytes));
        output_set(row, "uid", output_number(item->peer->uid));
        output_set(row, "attached", output_number(item->attached));
        output_set(row, "permits", output_number(item->permits));
        output_set(row, "keep", json_boolean(item->keep));
        output_set(row, "holders", session_numbers(item->holders, item->n_holders));
        output_set(row, "waiters", session_numbers(item->waiters, item->n_waiters));
        output_append(rows, row);
    }
    return rows;
}

static void print_json(struct listing *listing, const struct ls_arguments *arguments)
{
    json_t *document = json_object(), *topics = json_array();
    for (size_t i = 0; i < listing->topics.count;)
        i = topic_json(&listing->topics, i, topics);
    output_set(document, "topics", topics);
    json_t *services = json_array();
    for (size_t i = 0; i < listing->services.count; i++) {
        const Ipc__Control__Item *item = listing->services.items[i];
        json_t *row = json_object();
        output_set(row, "service", output_string(item->name));
        output_set(row, "servers", output_number(item->servers));
        output_set(row, "clients", output_number(item->clients));
        output_set(row, "calls", output_number(item->sequence));
        output_set(row, "behind", output_number(item->behind));
        output_set(row, "unpaired", output_number(item->unpaired));
        output_append(services, row);
    }
    output_set(document, "services", services);
    if (arguments->pairings) {
        json_t *pairings = json_array();
        for (size_t i = 0; i < listing->pairings.count; i++) {
            const Ipc__Control__Item *item = listing->pairings.items[i], *topic = topic_of(listing, item);
            if (!topic)
                continue;
            json_t *row = json_object(), *reader = json_object();
            output_set(row, "pairing", output_number(item->id));
            output_set(row, "topic", output_string(topic->name));
            output_set(row, "lane", output_number(item->lane));
            output_set(row, "publisher_session", output_number(topic->peer->session));
            set_peer(reader, item->peer);
            output_set(row, "reader", reader);
            output_set(row, "subscription", output_number(item->subscription));
            output_set(row, "start", output_string(admin_start_word(item->start)));
            output_set(row, "slow", output_string(admin_slow_word(item->slow)));
            output_set(row, "behind", output_number(item->behind));
            output_set(row, "lost", output_number(item->lost));
            output_set(row, "overrun", output_number(topic->overrun));
            output_append(pairings, row);
        }
        output_set(document, "pairings", pairings);
    }
    if (arguments->subscriptions) {
        json_t *subscriptions = json_array();
        for (size_t i = 0; i < listing->subscriptions.count; i++) {
            const Ipc__Control__Item *item = listing->subscriptions.items[i];
            json_t *row = json_object();
            output_set(row, "subscription", output_number(item->id));
            output_set(row, "pattern", output_string(item->name));
            set_peer(row, item->peer);
            output_set(row, "start", output_string(admin_start_word(item->start)));
            output_set(row, "slow", output_string(admin_slow_word(item->slow)));
            output_set(row, "lanes", output_number(item->pairings));
            output_set(row, "lost", output_number(item->lost));
            output_append(subscriptions, row);
        }
        output_set(document, "subscriptions", subscriptions);
    }
    output_set(document, "queues", queue_rows(&listing->queues));
    output_set(document, "segments", segment_rows(&listing->segments));
    output_document(document);
}

static void print_segments(const struct listing *listing, const struct tool *tool)
{
    static const struct table_column columns[] = {{"SEGMENT", .shrink = true}, {"BYTES", .right = true},
                                                  {"USER", .right = true},     {"ATTACHED", .right = true},
                                                  {"PERMITS", .right = true},  {"FREE", .right = true},
                                                  {"HOLDERS", .shrink = true}, {"WAITING", .shrink = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < listing->segments.count; i++) {
        const Ipc__Control__Item *item = listing->segments.items[i];
        char holders[120], waiters[120];
        sessions_text(holders, sizeof(holders), item->holders, item->n_holders);
        sessions_text(waiters, sizeof(waiters), item->waiters, item->n_waiters);
        table_add(table, TONE_NAME, "%s", item->name);
        table_add_bytes(table, TONE_PLAIN, item->bytes);
        table_add(table, TONE_PLAIN, "%" PRIu32, item->peer->uid);
        table_add_count(table, TONE_PLAIN, item->attached);
        table_add_count(table, TONE_PLAIN, item->permits);
        table_add_count(table, TONE_PLAIN, item->permits - item->n_holders);
        table_add(table, TONE_PLAIN, "%s", holders);
        table_add(table, TONE_PLAIN, "%s", waiters);
    }
    table_print(table, tool);
}

static void add_peer(struct table *table, const Ipc__Control__Peer *peer)
{
    table_add(table, TONE_PLAIN, "%" PRIu64, peer->session);
    table_add(table, TONE_PLAIN, "%s[%" PRIu32 "]", peer->name, peer->pid);
}

static void print_topics(const struct listing *listing, const struct tool *tool)
{
    static const struct table_column columns[] = {
        {"TOPIC", .shrink = true},  {"SESSION", .right = true}, {"PUBLISHER", .shrink = true},
        {"READERS", .right = true}, {"RING", .right = true},    {"PUBLISHED", .right = true},
        {"BYTES", .right = true},   {"LOST", .right = true},    {"STATE"}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < listing->topics.count; i++) {
        const Ipc__Control__Item *item = listing->topics.items[i];
        table_add(table, TONE_NAME, "%s", item->name);
        add_peer(table, item->peer);
        table_add_count(table, TONE_PLAIN, item->readers);
        table_add_bytes(table, TONE_PLAIN, item->ring_size);
        table_add_count(table, TONE_PLAIN, item->sequence);
        table_add_bytes(table, TONE_PLAIN, item->head);
        table_add_count(table, item->lost ? TONE_BAD : TONE_PLAIN, item->lost);
        table_add(table, item->ended ? TONE_DIM : TONE_PLAIN, "%s", state_word(item));
    }
    table_print(table, tool);
}

static void print_services(const struct listing *listing, const struct tool *tool)
{
    static const struct table_column columns[] = {{"SERVICE", .shrink = true},
                                                  {"SERVERS", .right = true},
                                                  {"CLIENTS", .right = true},
                                                  {"CALLS", .right = true},
                                                  {"BEHIND", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < listing->services.count; i++) {
        const Ipc__Control__Item *item = listing->services.items[i];
        table_add(table, TONE_NAME, "%s", item->name);
        table_add_count(table, item->servers ? TONE_PLAIN : TONE_BAD, item->servers);
        table_add_count(table, TONE_PLAIN, item->clients);
        table_add_count(table, TONE_PLAIN, item->sequence);
        table_add_bytes(table, TONE_PLAIN, item->behind);
    }
    putchar('\n');
    table_print(table, tool);
}

static void print_pairings(const struct listing *listing, const struct tool *tool)
{
    static const struct table_column columns[] = {{"TOPIC", .shrink = true},
                                                  {"FROM", .right = true},
                                                  {"SESSION", .right = true},
                                                  {"READER", .shrink = true},
                                                  {"START"},
                                                  {"SLOW"},
                                                  {"BEHIND", .right = true},
                                                  {"LOST", .right = true},
                                                  {"OVERRUN", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < listing->pairings.count; i++) {
        const Ipc__Control__Item *item = listing->pairings.items[i], *topic = topic_of(listing, item);
        if (!topic)
            continue;
        table_add(table, TONE_NAME, "%s", topic->name);
        table_add(table, TONE_PLAIN, "%" PRIu64, topic->peer->session);
        add_peer(table, item->peer);
        table_add(table, TONE_PLAIN, "%s", admin_start_word(item->start));
        table_add(table, TONE_PLAIN, "%s", admin_slow_word(item->slow));
        table_add_bytes(table, TONE_PLAIN, item->behind);
        table_add_count(table, item->lost ? TONE_BAD : TONE_PLAIN, item->lost);
        table_add_count(table, TONE_PLAIN, topic->overrun);
    }
    putchar('\n');
    table_print(table, tool);
}

static void print_subscriptions(const struct listing *listing, const struct tool *tool)
{
    static const struct table_column columns[] = {{"PATTERN", .shrink = true},
                                                  {"SESSION", .right = true},
                                                  {"SUBSCRIBER", .shrink = true},
                                                  {"START"},
                                                  {"SLOW"},
                                                  {"LANES", .right = true},
                                                  {"LOST", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < listing->subscriptions.count; i++) {
        const Ipc__Control__Item *item = listing->subscriptions.items[i];
        table_add(table, TONE_NAME, "%s", item->name);
        add_peer(table, item->peer);
        table_add(table, TONE_PLAIN, "%s", admin_start_word(item->start));
        table_add(table, TONE_PLAIN, "%s", admin_slow_word(item->slow));
        table_add_count(table, TONE_PLAIN, item->pairings);
        table_add_count(table, item->lost ? TONE_BAD : TONE_PLAIN, item->lost);
    }
    putchar('\n');
    table_print(table, tool);
}

static void sort(struct admin_list *list)
{
    if (list->count > 0)
        qsort(list->items, list->count, sizeof(*list->items), by_name);
}

/* Of the subscriptions those that would get something of what was asked about: the one pattern, taken as a name,
 * matches the other. */
static void keep_overlapping(struct admin_list *list, const char *pattern)
{
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        Ipc__Control__Item *item = list->items[i];
        if (strcmp(item->name, pattern) == 0 || ipc_name_match(item->name, pattern) ||
            ipc_name_match(pattern, item->name))
            list->items[kept++] = item;
        else
            ipc__control__item__free_unpacked(item, NULL);
    }
    list->count = kept;
}

static int list_all(struct listing *listing, const struct ls_arguments *arguments)
{
    _cleanup_admin_ struct admin *admin = NULL;
    int status = admin_open(&admin, arguments->tool);
    if (status == TOOL_OK)
        status =
            admin_list(admin, &listing->topics, IPC__CONTROL__LIST_KIND__LIST_TOPICS, arguments->pattern);
    if (status == TOOL_OK)
        status =
            admin_list(admin, &listing->services, IPC__CONTROL__LIST_KIND__LIST_SERVICES, arguments->pattern);
    if (status == TOOL_OK && arguments->pairings)
        status =
            admin_list(admin, &listing->pairings, IPC__CONTROL__LIST_KIND__LIST_PAIRINGS, arguments->pattern);
    if (status == TOOL_OK && arguments->subscriptions)
        status =
            admin_list(admin, &listing->subscriptions, IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS, NULL);
    if (status == TOOL_OK)
        status =
            admin_list(admin, &listing->queues, IPC__CONTROL__LIST_KIND__LIST_QUEUES, arguments->pattern);
    if (status == TOOL_OK)
        status =
            admin_list(admin, &listing->segments, IPC__CONTROL__LIST_KIND__LIST_SEGMENTS, arguments->pattern);
    if (arguments->pattern)
        keep_overlapping(&listing->subscriptions, arguments->pattern);
    sort(&listing->topics);
    listing->by_lane = tool_alloc(NULL, listing->topics.count * sizeof(*listing->by_lane));
    for (size_t i = 0; i < listing->topics.count; i++)
        listing->by_lane[i] = listing->topics.items[i];
    qsort(listing->by_lane, listing->topics.count, sizeof(*listing->by_lane), by_lane);
    sort(&listing->services);
    sort(&listing->pairings);
    sort(&listing->subscriptions);
    return status;
}

int cmd_ls(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "[PATTERN]",
        .doc =
            "List topics, one line for each publisher of one, and services, queues and shared segments if there are "
            "any. PATTERN chooses names: `*' stands for one level, "
            "a final `>' for one or more.\v"
            "RING is the room of the publisher's lane, LOST what present readers missed of it; a topic that is "
            "`retained' has outlived its publisher. For a service, CALLS are those in the lanes that its clients have now, and BEHIND what its servers have still to "
            "read of them. In the list of readers BEHIND is what a reader has still to "
            "read, OVERRUN what its publisher has overwritten before all readers had told that they read it."};
    struct ls_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    struct listing listing = {ADMIN_LIST_INIT,
                              ADMIN_LIST_INIT,
                              ADMIN_LIST_INIT,
                              ADMIN_LIST_INIT,
                              ADMIN_LIST_INIT,
                              ADMIN_LIST_INIT,
                              NULL};
    int status = list_all(&listing, &arguments);
    if (status == TOOL_OK && tool->json) {
        print_json(&listing, &arguments);
    } else if (status == TOOL_OK) {
        print_topics(&listing, tool);
        if (listing.services.count > 0)
            print_services(&listing, tool);
        if (arguments.pairings)
            print_pairings(&listing, tool);
        if (arguments.subscriptions)
            print_subscriptions(&listing, tool);
        if (listing.queues.count > 0) {
            putchar('\n');
            queue_print(&listing.queues, tool);
        }
        if (listing.segments.count > 0) {
            putchar('\n');
            print_segments(&listing, tool);
        }
    }
    free(listing.by_lane);
    admin_list_done(&listing.topics);
    admin_list_done(&listing.pairings);
    admin_list_done(&listing.subscriptions);
    admin_list_done(&listing.services);
    admin_list_done(&listing.queues);
    admin_list_done(&listing.segments);
    return status;
}
