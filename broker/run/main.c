/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-run: arguments.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"
#include "broker/run/run.h"

const char *argp_program_version = "ipcd-run " IPCD_VERSION;

enum option_key { OPTION_PRIVATE = 256, OPTION_IPCD, OPTION_LOG_LEVEL, OPTION_WATCHDOG, OPTION_GATEWAY };

static const struct argp_option options[] = {
    {"address", 'a', "PATH", 0, "Listen on PATH (default: where ipcd would)", 0},
    {"private", OPTION_PRIVATE, NULL, 0, "Listen in a fresh private directory, which is removed at the end",
     0},
    {"config", 'c', "FILE", 0, "Hand FILE to ipcd", 0},
    {"ipcd", OPTION_IPCD, "PATH", 0, "Run this ipcd (default: the one beside ipcd-run, else from PATH)", 0},
    {"gateway", OPTION_GATEWAY, "NAME[:FILE]", 0,
     "Run the gateway ipcd-NAME (mq, zmq) beside ipcd, with the configuration FILE. May be given several times",
     0},
    {"watchdog", OPTION_WATCHDOG, "SECONDS", 0,
     "Kill and restart an ipcd that shows no progress for so long (default: 10; 0: never)", 0},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "error, warning, notice, info or debug", 0},
    {0},
};

/* The program of that name in the folder that this program is in. NULL: there is none. */
static char *neighbour(const char *name)
{
    char self[4096];
    ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *path = NULL, *slash;

    if (size <= 0)
        return NULL;
    self[size] = '\0';
    slash = strrchr(self, '/');
    if (!slash || asprintf(&path, "%.*s/%s", (int)(slash - self), self, name) < 0)
        return NULL;
    if (access(path, X_OK) == 0)
        return path;
    free(path);
    return NULL;
}

static void add_gateway(struct run_options *run, char *value, struct argp_state *state)
{
    struct run_gateway *gateway = &run->gateways.each[run->gateways.count];
    char *file = strchr(value, ':'), name[64];

    if (run->gateways.count == RUN_GATEWAYS_MAX)
        argp_error(state, "--gateway: at most %u gateways", RUN_GATEWAYS_MAX);
    if (file)
        *file++ = '\0';
    if (!*value || strchr(value, '/') || snprintf(name, sizeof(name), "ipcd-%s", value) >= (int)sizeof(name))
        argp_error(state, "--gateway=%s: the name of a gateway is expected, such as mq", value);
    gateway->child = (struct child)CHILD_INIT;
    gateway->config = file;
    gateway->path = neighbour(name);
    if (!gateway->path)
        gateway->path = strdup(name);
    run->gateways.count++;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct run_options *run = state->input;
    int level;

    switch (key) {
    case 'a':
        run->address = value;
        break;
    case 'c':
        run->config_path = value;
        break;
    case OPTION_PRIVATE:
        run->private = true;
        if (!run->config_path)
            run->config_path = "/dev/null"; /* nobody's configuration: it is the same everywhere */
        break;
    case OPTION_IPCD:
        run->ipcd_path = value;
        break;
    case OPTION_GATEWAY:
        add_gateway(run, value, state);
        break;
    case OPTION_WATCHDOG: {
        char *end;
        double seconds = strtod(value, &end);

        if (*end || end == value || !(seconds == 0 || (seconds >= 0.1 && seconds <= 3600)))
            argp_error(state, "--watchdog=%s: 0, or 0.1 to 3600 seconds are allowed", value);
        run->watchdog_ns = (uint64_t)(seconds * 1e9);
        break;
    }
    case OPTION_LOG_LEVEL:
        level = log_level_from_word(value);
        if (level < 0)
            argp_error(state, "--log-level=%s: error, warning, notice, info and debug are allowed", value);
        run->log_level = value;
        log_init("ipcd-run", level);
        break;
    case ARGP_KEY_ARGS:
        run->command = state->argv + state->next;
        state->next = state->argc;
        break;
    case ARGP_KEY_END:
        if (run->private && run->address)
            argp_error(state, "--private and --address exclude each other");
        for (size_t i = 0; i < run->gateways.count && run->private; i++)
            if (!run->gateways.each[i].config)
                run->gateways.each[i].config = "/dev/null";
        if (run->private && !run->log_level)
            run->log_level = "warning"; /* it is somebody's tool here, not a service */
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static bool options_read;

/* Argp ends the program where it finds a mistake. */
static void on_wrong_options(int status, void *argument)
{
    struct listener listener = LISTENER_INIT;
    char error[512];

    (void)argument;
    if (!options_read && status == argp_err_exit_status &&
        listener_inherit(&listener, error, sizeof(error)) > 0)
        refuse_connections(listener.fd, -1,
                           "ipcd-run was given wrong options; its log (journalctl -u ipcd) says which");
}

int main(int argc, char **argv)
{
    static const struct argp parser = {
        options,
        parse_option,
        "[-- COMMAND ARGUMENT...]",
        "Run ipcd, and with it COMMAND, which finds it through IPC_ADDRESS."
        "\vWith COMMAND, its exit status is that of ipcd-run (128+n if signal n killed it), and ipcd ends with it. "
        "125: ipcd could not be run; 126, 127: COMMAND could not be run; 124: ipcd could not be kept running. Without COMMAND, "
        "ipcd runs until SIGTERM or SIGINT. An ipcd that dies is started again and goes on with all sessions; SIGHUP swaps it for the program that is there now."
        " See ipcd-run(8).",
        NULL,
        NULL,
        NULL};
    struct run_options run = {.watchdog_ns = UINT64_C(10000000000)};
    int status;
    _cleanup_(freep) char *beside = neighbour("ipcd");

    log_init("ipcd-run", LOG_WARNING);
    run.ipcd_path = beside ? beside : "ipcd";
    (void)on_exit(on_wrong_options, NULL);
    (void)argp_parse(&parser, argc, argv, ARGP_IN_ORDER, NULL, &run);
    options_read = true;
    status = run_supervise(&run);
    while (run.gateways.count > 0)
        free(run.gateways.each[--run.gateways.count].path);
    return status;
}
