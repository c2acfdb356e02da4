/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd: arguments, configuration, socket; then the loop.
 */
#include <argp.h>
#include <errno.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker/core/control/broker.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/recover.h"
#include "broker/core/util/config.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "libipc/lane/wait.h"

const char *argp_program_version = "ipcd " IPCD_VERSION;

enum option_key {
    OPTION_CHECK = 256,
    OPTION_CHECK_STATE,
    OPTION_LOG_LEVEL,
    OPTION_MEMBARRIER,
    OPTION_NO_PEER_PIDFD,
    OPTION_NO_PASSRIGHTS
};

struct arguments {
    const char *config_path, *address;
    int log_level; /* -1: as configured */
    int state_fd;  /* -1: none to check */
    bool check, membarrier, peer_pidfd, passrights;
};

static const struct argp_option options[] = {
    {"config", 'c', "FILE", 0,
     "Read FILE and FILE.d/*.conf (default: /etc/ipcd/ipcd.conf, or for a user "
     "~/.config/ipcd/ipcd.conf, if it is there)",
     0},
    {"address", 'a', "PATH", 0,
     "Listen on PATH (default: $XDG_RUNTIME_DIR/ipcd/socket, or /run/ipcd/socket for root)", 0},
    {"check", OPTION_CHECK, NULL, 0, "Print the configuration that holds, or every mistake in it, and exit",
     0},
    {"check-state", OPTION_CHECK_STATE, "FD", 0,
     "Say whether this ipcd can go on, with this configuration, from the state that another one keeps in descriptor FD, and exit",
     0},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "error, warning, notice, info or debug", 0},
    {"membarrier", OPTION_MEMBARRIER, "auto|off", 0, "Whether clients may rely on membarrier(2)", 0},
    {"no-pidfd-peer", OPTION_NO_PEER_PIDFD, NULL, 0, "Do not use SO_PEERPIDFD, as on a kernel before 6.5", 0},
    {"no-passrights", OPTION_NO_PASSRIGHTS, NULL, 0, "Do not use SO_PASSRIGHTS, as on a kernel before 6.16",
     0},
    {0},
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case 'c':
        arguments->config_path = value;
        break;
    case 'a':
        arguments->address = value;
        break;
    case OPTION_CHECK:
        arguments->check = true;
        break;
    case OPTION_CHECK_STATE:
        arguments->state_fd = atoi(value);
        break;
    case OPTION_LOG_LEVEL:
        arguments->log_level = log_level_from_word(value);
        if (arguments->log_level < 0)
            argp_error(state, "--log-level=%s: error, warning, notice, info and debug are allowed", value);
        break;
    case OPTION_MEMBARRIER:
        if (strcmp(value, "auto") != 0 && strcmp(value, "off") != 0)
            argp_error(state, "--membarrier=%s: auto and off are allowed", value);
        arguments->membarrier = strcmp(value, "auto") == 0;
        break;
    case OPTION_NO_PEER_PIDFD:
        arguments->peer_pidfd = false;
        break;
    case OPTION_NO_PASSRIGHTS:
        arguments->passrights = false;
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s' for? There are only options", value);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static bool membarrier_works(void)
{
    long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);

    return commands > 0 && commands & MEMBARRIER_CMD_GLOBAL_EXPEDITED;
}

static const char *guardian(void)
{
    const char *told = getenv("IPCD_GUARDIAN");

    if (told && strcmp(told, "ipcd-run") == 0)
        return "ipcd-run";
    return getenv("INVOCATION_ID") && getenv("NOTIFY_SOCKET") ? "systemd" : "";
}

/* From the files; or, instead of an ipcd that died, as that one was. Files that have mistakes cost no sessions. */
static unsigned load(struct config *config, const struct arguments *arguments, int *kept_fd)
{
    _cleanup_(freep) char *path = arguments->config_path ? strdup(arguments->config_path)
                                                         : config_default_path();
    const char *told = getenv("IPCD_CONFIG");
    unsigned mistakes = 0;
    int fd = told && !arguments->check && arguments->state_fd < 0 ? atoi(told) : -1;

    *kept_fd = -1;
    if (path && (fd < 0 || getenv("IPCD_RELOAD")))
        mistakes = config_load(config, path, arguments->config_path != NULL, stderr);
    if (fd < 0 || (getenv("IPCD_RELOAD") && mistakes == 0))
        return mistakes;
    if (mistakes > 0)
        fprintf(stderr, "ipcd: the configuration has mistakes; it stays as it was\n");
    config_done(config);
    config_init(config);
    *kept_fd = fd;
    return config_load_kept(config, fd, stderr);
}

/* Returns the number of mistakes, which were printed. */
static unsigned configure(struct config *config, const struct arguments *arguments, int *kept_fd)
{
    unsigned mistakes;

    config_init(config);
    mistakes = load(config, arguments, kept_fd);
    config_resolve(config, fd_raise_limit());
    if (arguments->log_level >= 0)
        config->log_level = (uint64_t)arguments->log_level;
    if (arguments->address && strlen(arguments->address) > IPC_MAX_ADDRESS_SIZE) {
        fprintf(stderr, "ipcd: --address: a path of at most %u bytes is allowed\n", IPC_MAX_ADDRESS_SIZE);
        mistakes++;
    } else if (arguments->address) {
        (void)snprintf(config->address, sizeof(config->address), "%s", arguments->address);
    } else if (!config->address[0]) {
        (void)listener_default_address(config->address, sizeof(config->address));
    }
    return mistakes;
}

static void say_lowered(const struct config *config)
{
    char segments[32], queues[32], limit[32];

    if (!config->lowered)
        return;
    text_from_number(segments, sizeof(segments), config->total[LIMIT_SEGMENT_BYTES], true);
    text_from_number(queues, sizeof(queues), config->total_queue_bytes, true);
    text_from_number(limit, sizeof(limit), config->memory_limit, true);
    log_write(
        LOG_CONFIG, NULL,
        "total-segment-bytes is lowered to %s and total-queue-bytes to %s: the memory cgroup allows %s, of which "
        "ipcd keeps a quarter, but at least 16M, for itself; raise MemoryMax=, or set less in [limits]",
        segments, queues, limit);
}

static int serve(const struct config *config, const struct broker_options *broker_options)
{
    struct listener listener = LISTENER_INIT;
    struct broker *broker = NULL;
    char error[512];
    int result = listener_inherit(&listener, error, sizeof(error));

    say_lowered(config);
    if (result == 0 && !config->address[0]) {
        (void)snprintf(error, sizeof(error),
                       "no address to listen on: XDG_RUNTIME_DIR is not set; set it, or give --address");
        result = -ENOENT;
    }
    if (result == 0)
        result =
            listener_open(&listener, config->address, (unsigned)config->socket_mode, error, sizeof(error));
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "%s", error);
        listener_close(&listener);
        return result;
    }
    result = broker_new(&broker, broker_options);
    if (result == 0) {
        broker->listen_fd = listener.fd;
        if (broker_options->passrights)
            fd_refuse_rights(listener.fd);
        result = keep_open(broker);
        if (result < 0)
            log_write(LOG_SYSTEM, NULL, "ipcd-run was gone before this ipcd was ready; it ends, too");
    }
    if (result == 0)
        result = recover(broker);
    if (result == 0) {
        result = loop_add(broker, listener.fd, EPOLLIN, LOOP_LISTEN, 0);
        if (result < 0)
            log_write(LOG_SYSTEM, NULL, "the broker cannot watch its socket: %s", strerror(-result));
    }
    if (result == 0) {
        const char *where = listener.path[0] ? listener.path : "the socket that it was started with";

        log_write(LOG_STARTED, NULL, "ipcd %s listens on %s", IPCD_VERSION, where);
        keep_say(broker, "READY=1\nSTATUS=Listening on %s.", where);
        result = loop_run(broker);
        log_write(LOG_STOPPED, NULL, "stopped");
    }
    if (result < 0 && broker && broker->keep.stores)
        exit(EXIT_FAILURE); /* as if killed: to end its sessions would take them from the next ipcd */
    /* The socket goes first: whoever finds no socket knows that nobody answers. */
    listener_close(&listener);
    broker_free(broker);
    return result;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {
        options,
        parse_option,
        NULL,
        "The message broker for the processes of this machine.\vStopped by SIGTERM or SIGINT. See ipcd(8) and ipcd.conf(5).",
        NULL,
        NULL,
        NULL};
    static struct config config;
    struct arguments arguments = {
        .log_level = -1, .state_fd = -1, .membarrier = true, .peer_pidfd = true, .passrights = true};
    struct broker_options broker_options = {.config = &config};
    int kept_fd;

    (void)argp_parse(&parser, argc, argv, 0, NULL, &arguments);
    if (configure(&config, &arguments, &kept_fd) > 0) {
        fprintf(stderr, "ipcd: the configuration has mistakes; nothing was started\n");
        return EXIT_FAILURE;
    }
    if (arguments.state_fd >= 0)
        return recover_check(arguments.state_fd) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (arguments.check) {
        config_print(&config, stdout);
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    log_init("ipcd", (int)config.log_level);
    (void)signal(SIGPIPE, SIG_IGN);
    broker_options.guardian = guardian();
    broker_options.config_fd = kept_fd >= 0 ? kept_fd : config_keep(&config);
    broker_options.membarrier = arguments.membarrier && membarrier_works();
    broker_options.peer_pidfd = arguments.peer_pidfd && !lane_without("peerpidfd");
    broker_options.passrights = arguments.passrights;
    return serve(&config, &broker_options) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
