/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl events: who came, went, died, was denied or over a limit; what was, and with --follow what comes.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "tools/admin.h"
#include "tools/output.h"
#include "tools/text.h"

#define POLL_MS 200

struct events_arguments {
    struct tool *tool;
    const char *user, *kind;
    uint64_t lines, after;
    bool follow, some; /* some: only the last `lines` of what was */
    uint64_t last;     /* number of the last event seen */
};

enum { KEY_AFTER = 0x2000 };

static const struct argp_option options[] = {
    {"follow", 'f', NULL, 0, "Go on with what comes, until interrupted", 0},
    {"lines", 'n', "NUMBER", 0, "Of what was, only the last NUMBER", 0},
    {"after", KEY_AFTER, "SEQUENCE", 0, "Only those after that one", 0},
    {"user", 'u', "USER", 0, "Only those of USER, a name or number", 0},
    {"kind", 'k', "KIND", 0, "Only started, came, went, died, ended, denied, limit or more", 0},
    {0}};

static const char *const kinds[] = {"started", "came",  "went", "died", "ended",
                                    "denied",  "limit", "more", NULL};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct events_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'f':
        arguments->follow = true;
        return 0;
    case 'n':
        arguments->lines = tool_parse_number(state, "--lines", value, 0, UINT64_MAX);
        arguments->some = true;
        return 0;
    case KEY_AFTER:
        arguments->after = arguments->last = tool_parse_number(state, "--after", value, 0, UINT64_MAX);
        return 0;
    case 'u':
        arguments->user = value;
        return 0;
    case 'k':
        for (size_t i = 0; kinds[i] && !arguments->kind; i++)
            if (strcmp(kinds[i], value) == 0)
                arguments->kind = kinds[i];
        if (!arguments->kind)
            argp_error(state,
                       "--kind=%s: started, came, went, died, ended, denied, limit and more are allowed",
                       value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool wanted(const struct events_arguments *arguments, const Ipc__Control__Item *item)
{
    char user[64], uid[16];
    snprintf(uid, sizeof(uid), "%" PRIu32, item->peer->uid);
    return (!arguments->kind || strcmp(arguments->kind, item->event) == 0) &&
           (!arguments->user || strcmp(arguments->user, uid) == 0 ||
            strcmp(arguments->user, tool_user_name(user, sizeof(user), item->peer->uid)) == 0);
}

static void print_json(const Ipc__Control__Item *item)
{
    char user[64], time[TEXT_NUMBER_SIZE];
    json_t *object = json_object();
    output_set(object, "sequence", output_number(item->id));
    output_set(object, "time", output_string(text_time(time, item->since_ns)));
    output_set(object, "time_ns", output_number(item->since_ns));
    output_set(object, "event", output_string(item->event));
    output_set(object, "uid", output_number(item->peer->uid));
    output_set(object, "user", output_string(tool_user_name(user, sizeof(user), item->peer->uid)));
    output_set(object, "session", output_number(item->peer->session));
    output_set(object, "pid", output_number(item->peer->pid));
    output_set(object, "name", output_string(item->peer->name));
    output_set(object, "text", output_string(item->text));
    output_set(object, "more", output_number(item->more));
    output_line(object);
}

static void print_text(const Ipc__Control__Item *item, const struct tool *tool)
{
    char user[64], time[TEXT_NUMBER_SIZE];
    bool bad = strcmp(item->event, "came") != 0 && strcmp(item->event, "went") != 0 &&
               strcmp(item->event, "started") != 0;
    enum tone tone = bad ? TONE_BAD : TONE_PLAIN;
    printf("%s %s%-7s%s %s", text_time(time, item->since_ns), output_tone(tool, tone), item->event,
           output_tone_end(tool, tone), tool_user_name(user, sizeof(user), item->peer->uid));
    if (item->peer->session)
        printf(" session %" PRIu64, item->peer->session);
    if (*item->peer->name) {
        putchar(' ');
        text_escape(stdout, item->peer->name, strlen(item->peer->name));
    }
    if (item->peer->pid)
        printf(" (pid %" PRIu32 ")", item->peer->pid);
    if (*item->text) {
        fputs(": ", stdout);
        text_escape(stdout, item->text, strlen(item->text));
    }
    if (item->more)
        printf(" (%" PRIu64 " more of this user before, only counted)", item->more);
    putchar('\n');
}

/* Numbers that are lacking are said, to who sees all. Not those from before it began to look. */
static void print_gap(const struct events_arguments *arguments, uint64_t from, uint64_t to)
{
    if (arguments->tool->json) {
        json_t *object = json_object();
        output_set(object, "event", output_string("gap"));
        output_set(object, "from", output_number(from));
        output_set(object, "to", output_number(to));
        output_line(object);
    } else {
        printf("(%" PRIu64 " events are not kept any more)\n", to - from + 1);
    }
}

static void print_item(struct events_arguments *arguments, const Ipc__Control__Item *item, bool all)
{
    if (all && !arguments->kind && !arguments->user && arguments->last && item->id > arguments->last + 1)
        print_gap(arguments, arguments->last + 1, item->id - 1);
    arguments->last = item->id;
    if (!wanted(arguments, item))
        return;
    if (arguments->tool->json)
        print_json(item);
    else
        print_text(item, arguments->tool);
}

/* All that there is after the last one seen. */
static int print_new(struct admin *admin, struct events_arguments *arguments, bool first)
{
    _cleanup_admin_list_ struct admin_list list = ADMIN_LIST_INIT;
    int status = admin_list_after(admin, &list, IPC__CONTROL__LIST_KIND__LIST_EVENTS, arguments->last);
    if (status != TOOL_OK)
        return status;
    size_t skip = 0, n = 0;
    for (size_t i = 0; i < list.count; i++)
        n += wanted(arguments, list.items[i]);
    for (size_t i = 0; first && arguments->some && n > arguments->lines && i < list.count; i++) {
        n -= wanted(arguments, list.items[i]);
        skip = i + 1;
        arguments->last = list.items[i]->id;
    }
    for (size_t i = skip; i < list.count; i++)
        print_item(arguments, list.items[i], list.all);
    return TOOL_OK;
}

int cmd_events(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .doc =
            "Tell who came, went, died, was ended, was denied something and by which rule, or was over which limit.\v"
            "The broker keeps the last 2048, of each user its share. Who does not administer the broker sees his "
            "own. With --json one object a line."};
    struct events_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    _cleanup_admin_ struct admin *admin = NULL;
    int interrupt_fd = arguments.follow ? tool_catch_signals() : -1;
    int status = admin_open(&admin, tool);
    for (bool first = true; status == TOOL_OK; first = false) {
        status = print_new(admin, &arguments, first);
        if (status != TOOL_OK || !arguments.follow)
            return status;
        struct pollfd poll_fd = {.fd = interrupt_fd, .events = POLLIN};
        if (fflush(stdout) != 0 || tool_stdout_gone() || poll(&poll_fd, 1, POLL_MS) > 0 || tool_interrupted())
            return tool_interrupted() ? TOOL_INTERRUPTED : TOOL_OK;
        admin_renew(admin, tool);
    }
    return status;
}
