/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl clients: sessions, or with --users what each user takes of its limits.
 */
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "tools/admin.h"
#include "tools/output.h"
#include "tools/text.h"

struct clients_arguments {
    struct tool *tool;
    bool users;
};

static const struct argp_option options[] = {
    {"users", 'u', NULL, 0, "What each user has of everything, and of the memory it may have", 0}, {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct clients_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'u':
        arguments->users = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static uint64_t age_ns(uint64_t since_ns)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return now_ns > since_ns ? now_ns - since_ns : 0;
}

static void sessions_json(const struct admin_list *list)
{
    json_t *sessions = json_array();
    for (size_t i = 0; i < list->count; i++) {
        const Ipc__Control__Item *item = list->items[i];
        char user[64], since[TEXT_NUMBER_SIZE];
        json_t *row = json_object();
        output_set(row, "session", output_number(item->peer->session));
        output_set(row, "name", output_string(item->peer->name));
        output_set(row, "uid", output_number(item->peer->uid));
        output_set(row, "user", output_string(tool_user_name(user, sizeof(user), item->peer->uid)));
        output_set(row, "gid", output_number(item->peer->gid));
        output_set(row, "pid", output_number(item->peer->pid));
        output_set(row, "since", output_string(text_time(since, item->since_ns)));
        output_set(row, "since_ns", output_number(item->since_ns));
        output_set(row, "topics", output_number(item->topics));
        output_set(row, "subscriptions", output_number(item->subscriptions));
        output_set(row, "lanes", output_number(item->pairings));
        output_set(row, "bytes", output_number(item->bytes));
        output_append(sessions, row);
    }
    json_t *document = json_object();
    output_set(document, "sessions", sessions);
    output_document(document);
}

static void sessions_table(const struct admin_list *list, const struct tool *tool)
{
    static const struct table_column columns[] = {{"SESSION", .right = true}, {"NAME", .shrink = true},
                                                  {"UID", .right = true},     {"USER", .shrink = true},
                                                  {"PID", .right = true},     {"AGE", .right = true},
                                                  {"TOPICS", .right = true},  {"SUBS", .right = true},
                                                  {"LANES", .right = true},   {"MEMORY", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < list->count; i++) {
        const Ipc__Control__Item *item = list->items[i];
        char user[64], age[TEXT_NUMBER_SIZE];
        table_add(table, TONE_PLAIN, "%" PRIu64, item->peer->session);
        table_add(table, TONE_NAME, "%s", item->peer->name);
        table_add(table, TONE_PLAIN, "%" PRIu32, item->peer->uid);
        table_add(table, TONE_PLAIN, "%s", tool_user_name(user, sizeof(user), item->peer->uid));
        table_add(table, TONE_PLAIN, "%" PRIu32, item->peer->pid);
        table_add(table, TONE_PLAIN, "%s", text_duration(age, age_ns(item->since_ns)));
        table_add_count(table, TONE_PLAIN, item->topics);
        table_add_count(table, TONE_PLAIN, item->subscriptions);
        table_add_count(table, TONE_PLAIN, item->pairings);
        table_add_bytes(table, TONE_PLAIN, item->bytes);
    }
    table_print(table, tool);
}

static void users_json(const struct admin_list *list)
{
    json_t *users = json_array();
    for (size_t i = 0; i < list->count; i++) {
        const Ipc__Control__Item *item = list->items[i];
        char user[64];
        json_t *row = json_object();
        output_set(row, "uid", output_number(item->peer->uid));
        output_set(row, "user", output_string(tool_user_name(user, sizeof(user), item->peer->uid)));
        output_set(row, "sessions", output_number(item->sessions));
        output_set(row, "topics", output_number(item->topics));
        output_set(row, "subscriptions", output_number(item->subscriptions));
        output_set(row, "lanes", output_number(item->pairings));
        output_set(row, "descriptors", output_number(item->descriptors));
        output_set(row, "bytes", output_number(item->bytes));
        output_set(row, "limit_bytes", output_number(item->limit_bytes));
        output_set(row, "refused", output_number(item->refused));
        output_set(row, "denied", output_number(item->denied));
        output_append(users, row);
    }
    json_t *document = json_object();
    output_set(document, "users", users);
    output_document(document);
}

static void users_table(const struct admin_list *list, const struct tool *tool)
{
    static const struct table_column columns[] = {
        {"UID", .right = true},    {"USER", .shrink = true}, {"SESSIONS", .right = true},
        {"TOPICS", .right = true}, {"SUBS", .right = true},  {"LANES", .right = true},
        {"MEMORY", .right = true}, {"LIMIT", .right = true}, {"REFUSED", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < list->count; i++) {
        const Ipc__Control__Item *item = list->items[i];
        char user[64];
        table_add(table, TONE_PLAIN, "%" PRIu32, item->peer->uid);
        table_add(table, TONE_NAME, "%s", tool_user_name(user, sizeof(user), item->peer->uid));
        table_add_count(table, TONE_PLAIN, item->sessions);
        table_add_count(table, TONE_PLAIN, item->topics);
        table_add_count(table, TONE_PLAIN, item->subscriptions);
        table_add_count(table, TONE_PLAIN, item->pairings);
        table_add_bytes(table, TONE_PLAIN, item->bytes);
        table_add_bytes(table, TONE_PLAIN, item->limit_bytes);
        table_add_count(table, item->refused ? TONE_BAD : TONE_PLAIN, item->refused);
    }
    table_print(table, tool);
}

int cmd_clients(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .doc = "List the sessions of the broker: who is connected, since when, and what it holds.\v"
               "NAME is what a client calls itself; user and process are what the broker saw."};
    struct clients_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    _cleanup_admin_ struct admin *admin = NULL;
    _cleanup_admin_list_ struct admin_list list = ADMIN_LIST_INIT;
    int status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_list(admin, &list,
                            arguments.users ? IPC__CONTROL__LIST_KIND__LIST_USERS
                                            : IPC__CONTROL__LIST_KIND__LIST_SESSIONS,
                            NULL);
    if (status != TOOL_OK)
        return status;
    if (arguments.users && tool->json)
        users_json(&list);
    else if (arguments.users)
        users_table(&list, tool);
    else if (tool->json)
        sessions_json(&list);
    else
        sessions_table(&list, tool);
    return TOOL_OK;
}
