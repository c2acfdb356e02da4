/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl policy: what the broker's rules, or a gateway's, say about somebody.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>

#include "tools/admin.h"
#include "tools/gateway.h"
#include "tools/output.h"

#define GROUPS_MAX 1024

struct policy_arguments {
    struct tool *tool;
    const char *words[4]; /* test USER VERB NAME */
    int count;
    const char *gateway; /* NULL: the broker */
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct policy_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'g':
        arguments->gateway = value;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->count == 0 && strcmp(value, "test") != 0)
            argp_error(state, "'%s': there is only `ipcctl policy test'", value);
        if (arguments->count == 4)
            argp_error(state, "'%s': what is that for?", value);
        arguments->words[arguments->count++] = value;
        return 0;
    case ARGP_KEY_END:
        if (arguments->count < 4)
            argp_error(state, "USER, VERB and NAME are needed, such as: test alice publish sensors.door");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Who that is, with all groups. A number that has no name is of no group. */
static int find_user(const char *name, uint32_t *uid, gid_t *groups, int *count)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(name, &end, 10);
    bool numeric = *name >= '0' && *name <= '9' && *end == '\0' && errno == 0 && number < UINT32_MAX;
    const struct passwd *entry = numeric ? getpwuid((uid_t)number) : getpwnam(name);
    if (!entry && !numeric)
        return tool_fail(TOOL_FAILED, name, "there is no such user on this machine");
    *uid = entry ? entry->pw_uid : (uint32_t)number;
    if (!entry)
        *count = 0;
    else if (getgrouplist(entry->pw_name, entry->pw_gid, groups, count) < 0)
        return tool_fail(TOOL_FAILED, name, "it is in more than %d groups", GROUPS_MAX);
    return TOOL_OK;
}

static int show(const struct tool *tool, bool allowed, const char *text)
{
    if (tool->json) {
        json_t *document = json_object();
        output_set(document, "allowed", json_boolean(allowed));
        output_set(document, "reason", output_string(text));
        output_document(document);
    } else {
        printf("%s: %s\n", allowed ? "allowed" : "denied", text);
    }
    return allowed ? TOOL_OK : TOOL_FAILED;
}

/* What a gateway's rules say. */
static int ask_gateway(const struct policy_arguments *arguments, const char *gateway,
                       Ipc__Gateway__Question *question)
{
    Ipc__Gateway__Request request = IPC__GATEWAY__REQUEST__INIT;
    ipc_connection *connection = NULL;
    struct answers answers = {0};
    request.verb = IPC__GATEWAY__VERB__EXPLAIN;
    request.question = question;
    int status = tool_connect(&connection, arguments->tool, "ipcctl policy");
    if (status == TOOL_OK)
        status = gateway_ask(arguments->tool, connection, gateway, &request, &answers);
    if (status == TOOL_OK) {
        const Ipc__Gateway__Decision *decision = answers.count == 1 ? answers.items[0]->decision : NULL;
        status = decision ? show(arguments->tool, decision->allowed, decision->text)
                          : tool_fail(TOOL_FAILED, gateway, "the gateway does not know that question");
    }
    answers_done(&answers);
    ipc_connection_close(connection);
    return status;
}

int cmd_policy(struct tool *tool, int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"gateway", 'g', "GATEWAY", 0,
         "Ask for the rules of that gateway, such as zmq, instead of the broker's", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "test USER VERB NAME",
        .doc =
            "Tell whether the broker's policy lets USER (a name or number) do VERB with NAME, and which rule says so; "
            "or, of USER key:NAME, whether the rules of ipcd-zmq let who has that CURVE key. "
            "VERB is publish, subscribe, send, receive, call, serve, attach, create or administer.\v"
            "The exit status is 0 if it is allowed, and 1 if not. Rules are those of ipcd.conf(5) and ipcd-zmq(8)."};
    struct policy_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    gid_t groups[GROUPS_MAX];
    int count = GROUPS_MAX;
    Ipc__Control__Policy request = IPC__CONTROL__POLICY__INIT;
    Ipc__Gateway__Question question = IPC__GATEWAY__QUESTION__INIT;
    question.verb = (char *)(uintptr_t)arguments.words[2];
    question.name = (char *)(uintptr_t)arguments.words[3];
    if (strncmp(arguments.words[1], "key:", 4) == 0) {
        question.key = (char *)(uintptr_t)(arguments.words[1] + 4);
        return ask_gateway(&arguments, arguments.gateway ? arguments.gateway : "zmq", &question);
    }
    int status = find_user(arguments.words[1], &request.uid, groups, &count);
    if (status != TOOL_OK)
        return status;
    if (arguments.gateway) {
        question.uid = request.uid;
        question.gids = groups;
        question.n_gids = (size_t)count;
        return ask_gateway(&arguments, arguments.gateway, &question);
    }
    request.gids = groups;
    request.n_gids = (size_t)count;
    request.verb = (char *)(uintptr_t)arguments.words[2];
    request.name = (char *)(uintptr_t)arguments.words[3];

    _cleanup_admin_ struct admin *admin = NULL;
    const Ipc__Control__Decision *decision = NULL;
    status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_request(admin, IPC__CONTROL__TYPE__POLICY, &request.base, IPC__CONTROL__TYPE__DECISION,
                               "the policy", &decision);
    if (status != TOOL_OK || !decision)
        return status;
    return show(tool, decision->allowed, decision->text);
}
