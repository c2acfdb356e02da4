/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl quota: who uses what of each limit, the largest first.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/admin.h"
#include "tools/output.h"
#include "tools/text.h"

struct quota_arguments {
    struct tool *tool;
    const char *user;
    uint64_t top;
    bool all;
};

static const struct argp_option options[] = {
    {"all", 'a', NULL, 0, "Also users that have nothing of a limit", 0},
    {"top", 'n', "NUMBER", 0, "Of each limit only the NUMBER users that have most", 0},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct quota_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'a':
        arguments->all = true;
        return 0;
    case 'n':
        arguments->top = tool_parse_number(state, "--top", value, 1, UINT32_MAX);
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->user)
            argp_error(state, "'%s': one USER is enough", value);
        arguments->user = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* One row and its place among those of its limit. */
struct row {
    const Ipc__Control__Item *item;
    size_t order; /* of the limit */
    uint64_t rank;
};

static int by_limit_and_use(const void *left, const void *right)
{
    const struct row *a = left, *b = right;
    if (a->order != b->order)
        return a->order < b->order ? -1 : 1;
    if (a->item->used != b->item->used)
        return a->item->used > b->item->used ? -1 : 1;
    return (a->item->peer->uid > b->item->peer->uid) - (a->item->peer->uid < b->item->peer->uid);
}

/* In the order of the limits, as the broker lists them for each user. Returns how many. */
static size_t sort(struct row *rows, const struct admin_list *list)
{
    size_t per_user = 0;
    while (per_user < list->count && list->items[per_user]->peer->uid == list->items[0]->peer->uid)
        per_user++;
    for (size_t i = 0; i < list->count; i++)
        rows[i] = (struct row){list->items[i], i % per_user, 0};
    if (list->count)
        qsort(rows, list->count, sizeof(*rows), by_limit_and_use);
    for (size_t i = 0; i < list->count; i++)
        rows[i].rank = i && rows[i].order == rows[i - 1].order ? rows[i - 1].rank + 1 : 1;
    return list->count;
}

static bool wanted(const struct quota_arguments *arguments, const struct row *row)
{
    char user[64], uid[16];
    snprintf(uid, sizeof(uid), "%" PRIu32, row->item->peer->uid);
    return (arguments->all || row->item->used > 0) && (!arguments->top || row->rank <= arguments->top) &&
           (!arguments->user || strcmp(arguments->user, uid) == 0 ||
            strcmp(arguments->user, tool_user_name(user, sizeof(user), row->item->peer->uid)) == 0);
}

static json_t *row_json(const struct row *row)
{
    const Ipc__Control__Item *item = row->item;
    char user[64];
    json_t *object = json_object();
    output_set(object, "resource", output_string(item->name));
    output_set(object, "rank", output_number(row->rank));
    output_set(object, "uid", output_number(item->peer->uid));
    output_set(object, "user", output_string(tool_user_name(user, sizeof(user), item->peer->uid)));
    output_set(object, "used", output_number(item->used));
    output_set(object, "limit", output_number(item->limit));
    output_set(object, "share", output_number(item->share));
    output_set(object, "total_used", output_number(item->total_used));
    output_set(object, "total", item->total ? output_number(item->total) : json_null());
    output_set(object, "bytes", json_boolean(item->in_bytes));
    output_set(object, "quota", *item->quota ? output_string(item->quota) : json_null());
    return object;
}

static void add(struct table *table, enum tone tone, const Ipc__Control__Item *item, uint64_t number)
{
    if (item->in_bytes)
        table_add_bytes(table, tone, number);
    else
        table_add_count(table, tone, number);
}

static void row_table(struct table *table, const struct row *row)
{
    const Ipc__Control__Item *item = row->item;
    char user[64];
    /* From here on the next request may be refused. */
    bool tight = item->used > item->share / 10 * 9;
    table_add(table, row->rank == 1 ? TONE_BOLD : TONE_PLAIN, "%s", item->name);
    table_add(table, TONE_DIM, "%" PRIu64, row->rank);
    table_add(table, TONE_NAME, "%s", tool_user_name(user, sizeof(user), item->peer->uid));
    add(table, tight ? TONE_BAD : TONE_PLAIN, item, item->used);
    add(table, TONE_PLAIN, item, item->share);
    add(table, TONE_PLAIN, item, item->limit);
    if (item->total) {
        add(table, TONE_PLAIN, item, item->total_used);
        add(table, TONE_PLAIN, item, item->total);
    } else {
        table_add(table, TONE_DIM, "-");
        table_add(table, TONE_DIM, "-");
    }
    table_add(table, TONE_DIM, *item->quota ? "[quota %s]" : "[limits]", item->quota);
}

int cmd_quota(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "[USER]",
        .doc =
            "Rank users by what they use of each limit of the broker; with USER (a name or number) only that one.\v"
            "SHARE is what a user may have now: its LIMIT, or its share of the TOTAL beside what the others have. "
            "FROM is the section of ipcd.conf(5) that sets the limit. Who does not administer the broker sees "
            "himself only."};
    static const struct table_column columns[] = {{"RESOURCE"},
                                                  {"RANK", .right = true},
                                                  {"USER", .shrink = true},
                                                  {"USED", .right = true},
                                                  {"SHARE", .right = true},
                                                  {"LIMIT", .right = true},
                                                  {"ALL", .right = true},
                                                  {"TOTAL", .right = true},
                                                  {"FROM", .shrink = true}};
    struct quota_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    _cleanup_admin_ struct admin *admin = NULL;
    _cleanup_admin_list_ struct admin_list list = ADMIN_LIST_INIT;
    int status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_list(admin, &list, IPC__CONTROL__LIST_KIND__LIST_QUOTA, NULL);
    if (status != TOOL_OK)
        return status;

    _cleanup_free_ struct row *rows = tool_alloc(NULL, (list.count + 1) * sizeof(*rows));
    size_t count = sort(rows, &list);
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        if (!wanted(&arguments, &rows[i]))
            continue;
        output_append(array, row_json(&rows[i]));
        row_table(table, &rows[i]);
    }
    json_t *document = json_object();
    output_set(document, "quota", array);
    if (tool->json) {
        output_document(document);
    } else {
        json_decref(document);
        table_print(table, tool);
    }
    return TOOL_OK;
}
