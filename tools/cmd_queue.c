/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl queue: the verbs that are about queues. Those about messages are in queue_messages.c.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/queue.h"
#include "tools/output.h"
#include "tools/queue.h"
#include "tools/text.h"

enum { KEY_IF_MISSING = 0x2000, KEY_PRIORITY, KEY_OLDER, KEY_ATTEMPTS, KEY_PAYLOAD };

static const struct argp_option options[] = {
    {"force", 'f', NULL, 0, "rm: also if messages are in it", 0},
    {"if-missing", KEY_IF_MISSING, NULL, 0, "create: leave one that exists as it is", 0},
    {NULL, 0, NULL, 0, "Which messages (peek, purge, move, requeue); all that are given must hold:", 1},
    {"priority", KEY_PRIORITY, "N", 0, "Of this priority, 0 to 9", 1},
    {"older-than", KEY_OLDER, "TIME", 0, "Accepted longer ago than this: 500ms, 30s, 5m, 12h, 7d", 1},
    {"attempts", KEY_ATTEMPTS, "N", 0, "Delivered at least N times", 1},
    {"header", 'H', "NAME[=VALUE]", 0,
     "With this header, and value; `origin' and `reason' are those of a dead letter", 1},
    {"count", 'n', "N", 0, "No more than N messages (peek: 20; 0: all)", 1},
    {"payload", KEY_PAYLOAD, "BYTES", 0, "peek: how much of each payload, 0 to 2048 (64)", 2},
    {0}};

static int do_create(struct queue_arguments *arguments);
static int do_set(struct queue_arguments *arguments);
static int do_show(struct queue_arguments *arguments);
static int do_list(struct queue_arguments *arguments);
static int do_remove(struct queue_arguments *arguments);

static const struct verb {
    const char *name;
    int (*run)(struct queue_arguments *arguments);
    bool settings, messages;
} verbs[] = {
    {"create", do_create, true, false}, {"set", do_set, true, false},
    {"show", do_show, false, false},    {"ls", do_list, false, false},
    {"pause", do_set, false, false},    {"resume", do_set, false, false},
    {"purge", queue_move, false, true}, {"peek", queue_peek, false, true},
    {"move", queue_move, false, true},  {"requeue", queue_move, false, true},
    {"rm", do_remove, false, false},
};
#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

static const struct verb *verb_of(const char *name)
{
    for (size_t i = 0; name && i < VERB_COUNT; i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

static bool is(const struct queue_arguments *arguments, const char *verb)
{
    return arguments->verb && strcmp(arguments->verb, verb) == 0;
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

static void parse_verb(struct argp_state *state, struct queue_arguments *arguments, const char *text)
{
    if (!verb_of(text)) {
        const char *words[VERB_COUNT + 1] = {NULL};
        for (size_t i = 0; i < VERB_COUNT; i++)
            words[i] = verbs[i].name;
        const char *nearest = text_nearest(text, words);
        _cleanup_free_ char *escaped = text_escaped(text, strlen(text));
        argp_error(state, "there is no `queue %s'%s%s%s", escaped, nearest ? "; did you mean `" : "",
                   nearest ? nearest : "", nearest ? "'?" : "");
    }
    arguments->verb = text;
}

static void parse_setting(struct argp_state *state, struct queue_arguments *arguments, char *text)
{
    char *value = strchr(text, '='), why[IPC_QUEUE_TEXT_SIZE];
    const char *words[IPC_QUEUE_SETTINGS + 1] = {NULL};
    if (!value) {
        argp_error(state, "'%s' is not a setting: SETTING=VALUE is expected, such as ttl=36h", text);
        return;
    }
    *value++ = '\0';
    const struct ipc_queue_setting *setting = ipc_queue_setting_find(text);
    if (!setting) {
        for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++)
            words[i] = ipc_queue_settings[i].name;
        const char *nearest = text_nearest(text, words);
        argp_error(state, "there is no setting '%s'%s%s%s", text, nearest ? "; did you mean `" : "",
                   nearest ? nearest : "", nearest ? "'?" : "");
        return;
    }
    if (ipc_queue_setting_parse(setting, value, &arguments->settings, why) < 0)
        argp_error(state, "%s", why);
}

static void parse_argument(struct argp_state *state, struct queue_arguments *arguments, char *text)
{
    if (!arguments->verb) {
        parse_verb(state, arguments, text);
    } else if (!arguments->queue) {
        tool_parse_name(state, text, is(arguments, "ls"));
        arguments->queue = text;
    } else if (is(arguments, "move") && !arguments->target) {
        tool_parse_name(state, text, false);
        arguments->target = text;
    } else if (verb_of(arguments->verb)->settings) {
        parse_setting(state, arguments, text);
    } else {
        argp_error(state, "what is '%s' for?", text);
    }
}

static void parse_header(struct argp_state *state, struct queue_arguments *arguments, char *text)
{
    char *value = strchr(text, '=');
    size_t size = value ? (size_t)(value - text) : strlen(text);
    if (size == 0 || size > 255 || (value && strlen(value + 1) > 256))
        argp_error(state, "--header: NAME or NAME=VALUE, of 1 to 255 and at most 256 bytes");
    if (value)
        *value++ = '\0';
    arguments->header = text;
    arguments->value = value;
}

static void check(struct argp_state *state, const struct queue_arguments *arguments)
{
    const struct verb *verb = verb_of(arguments->verb);
    bool chosen = arguments->priority_plus_1 || arguments->attempts_min || arguments->older_than_ns ||
                  arguments->count_given || arguments->header;
    if (!verb) {
        argp_error(state,
                   "what to do? create, set, show, ls, pause, resume, purge, peek, move, requeue or rm");
        return;
    }
    if (!arguments->queue && !is(arguments, "ls"))
        argp_error(state, "which QUEUE?");
    if (is(arguments, "move") && !arguments->target)
        argp_error(state, "move to which queue?");
    if (is(arguments, "set") && arguments->settings.given == 0)
        argp_error(state, "set what? SETTING=VALUE is expected, such as ttl=36h");
    if (chosen && !verb->messages)
        argp_error(state, "`queue %s' is not about messages; peek, purge, move and requeue are", verb->name);
    if (arguments->force && !is(arguments, "rm"))
        argp_error(state, "--force is of `queue rm'");
    if (arguments->if_missing && !is(arguments, "create"))
        argp_error(state, "--if-missing is of `queue create'");
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct queue_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'f':
        arguments->force = true;
        return 0;
    case KEY_IF_MISSING:
        arguments->if_missing = true;
        return 0;
    case KEY_PRIORITY:
        arguments->priority_plus_1 =
            (uint32_t)tool_parse_number(state, "--priority", value, 0, IPC_PRIORITIES - 1) + 1;
        return 0;
    case KEY_OLDER:
        if (ipc_quantity_parse(value, IPC_QUEUE_DURATION, &arguments->older_than_ns) < 0)
            argp_error(state, "--older-than: '%s' is not a time, such as 500ms, 30s, 5m, 12h or 7d", value);
        return 0;
    case KEY_ATTEMPTS:
        arguments->attempts_min =
            (uint32_t)tool_parse_number(state, "--attempts", value, 0, IPC_MAX_ATTEMPTS);
        return 0;
    case 'H':
        parse_header(state, arguments, value);
        return 0;
    case 'n':
        arguments->count = tool_parse_number(state, "--count", value, 0, UINT64_MAX);
        arguments->count_given = true;
        return 0;
    case KEY_PAYLOAD:
        arguments->payload_max = (uint32_t)tool_parse_number(state, "--payload", value, 0, 2048);
        return 0;
    case ARGP_KEY_ARG:
        parse_argument(state, arguments, value);
        return 0;
    case ARGP_KEY_END:
        check(state, arguments);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- verbs ------------------------------------------------------------------------------------------------------ */

void queue_done(const struct queue_arguments *arguments, json_t *document)
{
    if (!arguments->tool->json)
        return;
    document = document ? document : json_object();
    output_set(document, "operation", output_string(arguments->verb));
    output_set(document, "queue", output_string(arguments->queue));
    output_document(document);
}

/* One request that is answered by DONE. */
static int ask(struct queue_arguments *arguments, uint16_t type, const ProtobufCMessage *message)
{
    _cleanup_admin_ struct admin *admin = NULL;
    const Ipc__Control__Done *done;
    int status = admin_open(&admin, arguments->tool);
    if (status == TOOL_OK)
        status = admin_request(admin, type, message, IPC__CONTROL__TYPE__DONE, arguments->queue, &done);
    if (status == TOOL_OK)
        queue_done(arguments, NULL);
    return status;
}

static int do_create(struct queue_arguments *arguments)
{
    Ipc__Control__QueueCreate request = IPC__CONTROL__QUEUE_CREATE__INIT;
    request.queue = (char *)(uintptr_t)arguments->queue;
    request.settings = &arguments->settings;
    request.may_exist = arguments->if_missing;
    return ask(arguments, IPC__CONTROL__TYPE__QUEUE_CREATE, &request.base);
}

static int do_set(struct queue_arguments *arguments)
{
    Ipc__Control__QueueSet request = IPC__CONTROL__QUEUE_SET__INIT;
    const struct ipc_queue_setting *paused = ipc_queue_setting_find("paused");
    if (!is(arguments, "set")) {
        arguments->settings.paused = is(arguments, "pause");
        arguments->settings.given = UINT32_C(1) << paused->field;
    }
    request.queue = (char *)(uintptr_t)arguments->queue;
    request.settings = &arguments->settings;
    return ask(arguments, IPC__CONTROL__TYPE__QUEUE_SET, &request.base);
}

static int do_remove(struct queue_arguments *arguments)
{
    Ipc__Control__QueueRemove request = IPC__CONTROL__QUEUE_REMOVE__INIT;
    request.queue = (char *)(uintptr_t)arguments->queue;
    request.if_empty = !arguments->force;
    return ask(arguments, IPC__CONTROL__TYPE__QUEUE_REMOVE, &request.base);
}

static const char *state_word(const Ipc__Control__Item *queue)
{
    return queue->ended ? "removing" : queue->settings && queue->settings->paused ? "paused" : "open";
}

static json_t *settings_json(const Ipc__Control__QueueSettings *settings)
{
    json_t *row = json_object();
    char text[IPC_QUEUE_TEXT_SIZE];
    for (size_t i = 0; settings && i < IPC_QUEUE_SETTINGS; i++) {
        const struct ipc_queue_setting *setting = &ipc_queue_settings[i];
        json_t *value;
        switch (setting->kind) {
        case IPC_QUEUE_SWITCH:
            value = json_boolean(ipc_queue_setting_get(setting, settings));
            break;
        case IPC_QUEUE_WORD:
        case IPC_QUEUE_NAME:
            ipc_queue_setting_print(setting, settings, text);
            value = output_string(setting->kind == IPC_QUEUE_NAME ? settings->dead_letter : text);
            break;
        default:
            value = output_number(ipc_queue_setting_get(setting, settings));
            break;
        }
        output_set(row, setting->name, value);
    }
    return row;
}

static const struct {
    const char *name, *title;
    size_t offset;
} counters[] = {
#define COUNTER(name) #name, #name, offsetof(Ipc__Control__Item, name)
    {COUNTER(waiting)},  {COUNTER(delayed)},     {COUNTER(unacked)},   {COUNTER(bytes)},
    {COUNTER(memory)},   {COUNTER(producers)},   {COUNTER(consumers)}, {COUNTER(accepted)},
    {COUNTER(acked)},    {COUNTER(redelivered)}, {COUNTER(dead)},      {COUNTER(dropped)},
    {COUNTER(rejected)}, {COUNTER(duplicates)},
#undef COUNTER
};
#define COUNTER_COUNT (sizeof(counters) / sizeof(counters[0]))

static uint64_t counter(const Ipc__Control__Item *queue, size_t i)
{
    uint64_t value;
    memcpy(&value, (const char *)queue + counters[i].offset, sizeof(value));
    return value;
}

static json_t *queue_json(const Ipc__Control__Item *queue)
{
    json_t *row = json_object();
    output_set(row, "queue", output_string(queue->name));
    output_set(row, "id", output_number(queue->id));
    output_set(row, "uid", output_number(queue->peer->uid));
    output_set(row, "state", output_string(state_word(queue)));
    for (size_t i = 0; i < COUNTER_COUNT; i++)
        output_set(row, counters[i].name, output_number(counter(queue, i)));
    output_set(row, "settings", settings_json(queue->settings));
    return row;
}

static int by_name(const void *a, const void *b)
{
    const Ipc__Control__Item *x = *(Ipc__Control__Item *const *)a, *y = *(Ipc__Control__Item *const *)b;
    return strcmp(x->name, y->name);
}

static void sort(struct admin_list *list)
{
    if (list->count > 0)
        qsort(list->items, list->count, sizeof(*list->items), by_name);
}

json_t *queue_rows(struct admin_list *list)
{
    json_t *queues = json_array();
    sort(list);
    for (size_t i = 0; i < list->count; i++)
        output_append(queues, queue_json(list->items[i]));
    return queues;
}

void queue_print(struct admin_list *list, const struct tool *tool)
{
    static const struct table_column columns[] = {{"QUEUE", .shrink = true},
                                                  {"WAITING", .right = true},
                                                  {"UNACKED", .right = true},
                                                  {"MEMORY", .right = true},
                                                  {"PRODUCERS", .right = true},
                                                  {"CONSUMERS", .right = true},
                                                  {"ACCEPTED", .right = true},
                                                  {"ACKED", .right = true},
                                                  {"REDELIVERED", .right = true},
                                                  {"DEAD", .right = true},
                                                  {"DROPPED", .right = true},
                                                  {"REJECTED", .right = true},
                                                  {"STATE"}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    sort(list);
    for (size_t i = 0; i < list->count; i++) {
        const Ipc__Control__Item *queue = list->items[i];
        table_add(table, TONE_NAME, "%s", queue->name);
        table_add_count(table, TONE_PLAIN, queue->waiting);
        table_add_count(table, TONE_PLAIN, queue->unacked);
        table_add_bytes(table, TONE_PLAIN, queue->memory);
        table_add_count(table, TONE_PLAIN, queue->producers);
        table_add_count(table, TONE_PLAIN, queue->consumers);
        table_add_count(table, TONE_PLAIN, queue->accepted);
        table_add_count(table, TONE_PLAIN, queue->acked);
        table_add_count(table, queue->redelivered ? TONE_BAD : TONE_PLAIN, queue->redelivered);
        table_add_count(table, queue->dead ? TONE_BAD : TONE_PLAIN, queue->dead);
        table_add_count(table, queue->dropped ? TONE_BAD : TONE_PLAIN, queue->dropped);
        table_add_count(table, queue->rejected ? TONE_BAD : TONE_PLAIN, queue->rejected);
        table_add(table, strcmp(state_word(queue), "open") == 0 ? TONE_PLAIN : TONE_BOLD, "%s",
                  state_word(queue));
    }
    table_print(table, tool);
}

static int do_list(struct queue_arguments *arguments)
{
    _cleanup_admin_ struct admin *admin = NULL;
    _cleanup_admin_list_ struct admin_list list = ADMIN_LIST_INIT;
    int status = admin_open(&admin, arguments->tool);
    if (status == TOOL_OK)
        status = admin_list(admin, &list, IPC__CONTROL__LIST_KIND__LIST_QUEUES, arguments->queue);
    if (status != TOOL_OK)
        return status;
    if (arguments->tool->json) {
        json_t *document = json_object();
        output_set(document, "queues", queue_rows(&list));
        output_document(document);
    } else {
        queue_print(&list, arguments->tool);
    }
    return TOOL_OK;
}

static void show_json(const Ipc__Control__Item *queue, const struct admin_list *ports)
{
    json_t *document = queue_json(queue), *rows = json_array();
    for (size_t i = 0; i < ports->count; i++) {
        const Ipc__Control__Item *port = ports->items[i];
        json_t *row = json_object();
        output_set(row, "port", output_number(port->id));
        output_set(row, "role",
                   output_string(port->role == IPC__CONTROL__ROLE__CONSUMER ? "consumer" : "producer"));
        output_set(row, "session", output_number(port->peer->session));
        output_set(row, "name", output_string(port->peer->name));
        output_set(row, "uid", output_number(port->peer->uid));
        output_set(row, "pid", output_number(port->peer->pid));
        output_set(row, "ring_size", output_number(port->ring_size));
        output_set(row, "prefetch", output_number(port->prefetch));
        output_append(rows, row);
    }
    output_set(document, "ports", rows);
    output_document(document);
}

static void show_text(const Ipc__Control__Item *queue, const struct admin_list *ports,
                      const struct tool *tool)
{
    static const struct table_column columns[] = {{"WHAT"}, {"VALUE", .shrink = true}};
    static const struct table_column port_columns[] = {{"PORT", .right = true},    {"ROLE"},
                                                       {"SESSION", .right = true}, {"NAME", .shrink = true},
                                                       {"UID", .right = true},     {"RING", .right = true},
                                                       {"PREFETCH", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, 2), *ports_table = table_new(port_columns, 7);
    char text[IPC_QUEUE_TEXT_SIZE];
    struct tool quiet = *tool;
    quiet.no_header = true; /* the first column is the header */
    table_add(table, TONE_DIM, "queue");
    table_add(table, TONE_NAME, "%s", queue->name);
    table_add(table, TONE_DIM, "state");
    table_add(table, TONE_PLAIN, "%s", state_word(queue));
    table_add(table, TONE_DIM, "owner");
    table_add(table, TONE_PLAIN, "user %" PRIu32, queue->peer->uid);
    for (size_t i = 0; i < COUNTER_COUNT; i++) {
        table_add(table, TONE_DIM, "%s", counters[i].title);
        table_add(table, TONE_PLAIN, "%" PRIu64, counter(queue, i));
    }
    for (size_t i = 0; queue->settings && i < IPC_QUEUE_SETTINGS; i++) {
        ipc_queue_setting_print(&ipc_queue_settings[i], queue->settings, text);
        table_add(table, TONE_DIM, "%s", ipc_queue_settings[i].name);
        table_add(table, TONE_PLAIN, "%s", text);
    }
    table_print(table, &quiet);
    for (size_t i = 0; i < ports->count; i++) {
        const Ipc__Control__Item *port = ports->items[i];
        table_add(ports_table, TONE_PLAIN, "%" PRIu64, port->id);
        table_add(ports_table, TONE_PLAIN,
                  port->role == IPC__CONTROL__ROLE__CONSUMER ? "consumer" : "producer");
        table_add(ports_table, TONE_PLAIN, "%" PRIu64, port->peer->session);
        table_add(ports_table, TONE_NAME, "%s[%" PRIu32 "]", port->peer->name, port->peer->pid);
        table_add(ports_table, TONE_PLAIN, "%" PRIu32, port->peer->uid);
        table_add_bytes(ports_table, TONE_PLAIN, port->ring_size);
        table_add_count(ports_table, TONE_PLAIN, port->prefetch);
    }
    if (ports->count > 0) {
        putchar('\n');
        table_print(ports_table, tool);
    }
}

static int do_show(struct queue_arguments *arguments)
{
    _cleanup_admin_ struct admin *admin = NULL;
    _cleanup_admin_list_ struct admin_list queues = ADMIN_LIST_INIT, ports = ADMIN_LIST_INIT;
    int status = admin_open(&admin, arguments->tool);
    if (status == TOOL_OK)
        status = admin_list(admin, &queues, IPC__CONTROL__LIST_KIND__LIST_QUEUES, arguments->queue);
    if (status == TOOL_OK && queues.count == 0)
        return tool_fail(TOOL_FAILED, arguments->queue,
                         "there is no such queue; `ipcctl queue ls' lists them");
    if (status == TOOL_OK)
        status = admin_list(admin, &ports, IPC__CONTROL__LIST_KIND__LIST_PORTS, arguments->queue);
    if (status != TOOL_OK)
        return status;
    if (arguments->tool->json)
        show_json(queues.items[0], &ports);
    else
        show_text(queues.items[0], &ports, arguments->tool);
    return TOOL_OK;
}

int cmd_queue(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc =
            "create QUEUE [SETTING=VALUE...]\nset QUEUE SETTING=VALUE...\nshow QUEUE\nls [PATTERN]\n"
            "pause QUEUE\nresume QUEUE\npurge QUEUE\npeek QUEUE\nmove QUEUE TARGET\nrequeue QUEUE\nrm QUEUE",
        .doc = "Create, change, look into, empty and remove queues.\v"
               "requeue gives dead letters back to the queues that they came from. Settings: messages-max, "
               "bytes-max, message-size-max, full, class, ttl, delay, lease, attempts-max, dead-letter, "
               "dedup-window, dedup-time and paused; ipcctl(1) tells what they mean."};
    struct queue_arguments arguments = {.tool = tool, .payload_max = 64};
    ipc__control__queue_settings__init(&arguments.settings);
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;
    return verb_of(arguments.verb)->run(&arguments);
}
