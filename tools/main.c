/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl: finds the subcommand and hands over to its file.
 */
#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "tools/ipcctl.h"
#include "tools/text.h"

static const struct {
    const char *name;
    int (*run)(struct tool *tool, int argc, char **argv);
    const char *summary;
} commands[] = {
    {"status", cmd_status, "the broker itself: version, load, limits"},
    {"ls", cmd_ls, "topics, who publishes them, who reads them, who is slow; queues"},
    {"queue", cmd_queue, "queues: create, change, look into, empty, remove them"},
    {"clients", cmd_clients, "sessions, and what each user takes"},
    {"quota", cmd_quota, "who uses most of each limit, and what each may have"},
    {"events", cmd_events, "who came, went, died, was denied or over a limit"},
    {"doctor", cmd_doctor, "whether a broker runs here as it should, and what to do if not"},
    {"policy", cmd_policy, "who may do what, and which rule says so"},
    {"pub", cmd_pub, "publish messages from arguments or from stdin"},
    {"sub", cmd_sub, "print the messages of topics"},
    {"send", cmd_send, "put messages into a queue, and have them confirmed"},
    {"recv", cmd_recv, "take messages out of a queue and print them"},
    {"call", cmd_call, "call a service, and print what it answers"},
    {"serve", cmd_serve, "answer the calls of a service by a command"},
    {"gateways", cmd_gateways, "gateways to other transports, their bindings, what they dropped"},
    {"bind", cmd_bind, "bind something outside, such as an mqueue, to a name"},
    {"unbind", cmd_unbind, "end a binding"},
    {"bench", cmd_bench, "a quick self-test: throughput and round trip"},
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

struct main_arguments {
    struct tool *tool;
    int command; /* index in argv, 0: none */
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct main_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case ARGP_KEY_ARG:
        /* Everything from here on is the subcommand's. */
        arguments->command = state->next - 1;
        state->next = state->argc;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_state_help(state, stderr, ARGP_HELP_USAGE | ARGP_HELP_DOC | ARGP_HELP_LONG | ARGP_HELP_EXIT_ERR);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static char *filter(int key, const char *text, void *input)
{
    if (key != ARGP_KEY_HELP_POST_DOC)
        return (char *)text;
    char *help = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&help, &size);
    if (!out)
        return NULL;
    fputs("Commands:\n", out);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fputs("\n`ipcctl COMMAND --help' tells the options of each; ipcctl(1) tells everything.", out);
    return fclose(out) == 0 ? help : NULL;
}

static int unknown(const char *name)
{
    const char *words[COMMAND_COUNT + 1] = {NULL};
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        words[i] = commands[i].name;
    const char *nearest = text_nearest(name, words);
    if (nearest)
        return tool_fail(TOOL_USAGE, name, "there is no such command; did you mean `ipcctl %s'?", nearest);
    return tool_fail(TOOL_USAGE, name, "there is no such command; `ipcctl --help' lists them");
}

int main(int argc, char **argv)
{
    static const struct argp argp = {.parser = parse,
                                     .children = tool_argp_children,
                                     .args_doc = "COMMAND [ARGUMENTS...]",
                                     .doc = "See and use what flows through ipcd, the IPC message broker.\v",
                                     .help_filter = filter};
    struct tool tool = {.timeout_ns = TOOL_UNSET};
    struct main_arguments arguments = {.tool = &tool};

    signal(SIGPIPE, SIG_IGN); /* a closed stdout is seen where it is written */
    argp_program_version = "ipcctl " IPCD_VERSION;
    argp_err_exit_status = TOOL_USAGE;
    if (argc < 1)
        return TOOL_USAGE;
    argv[0] = (char *)"ipcctl";
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &arguments) != 0 || arguments.command == 0)
        return TOOL_USAGE;

    argc -= arguments.command;
    argv += arguments.command;
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(argv[0], commands[i].name) != 0)
            continue;
        char name[32];
        snprintf(name, sizeof(name), "ipcctl %s", commands[i].name);
        argv[0] = name;
        return tool_finish(commands[i].run(&tool, argc, argv));
    }
    return unknown(argv[0]);
}
