/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of a gateway: configuration, a session, its bindings; and again from the session on, when that is over because
 * the broker went away.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/inifile.h"
#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"
#include "libipc/session/session.h"

#define RECONNECT_LEAST_MS 20
#define RECONNECT_MOST_MS  1000

enum option_key {
    OPTION_CHECK = 256,
    OPTION_LOG_LEVEL,
    OPTION_STATE,
    OPTION_OWN /* and behind it: settings of [gateway] */
};

struct gateway_arguments {
    const char *config_path, *address, *state_path;
    int log_level; /* -1: as configured */
    bool check;
    const struct gateway_kind *kind;
    const char *own[GATEWAY_SETTINGS_MAX];
};

static const struct argp_option options[] = {
    {"address", 'a', "PATH", 0, "The broker's socket (default: IPC_ADDRESS, else where ipcctl looks, too)",
     0},
    {"config", 'c', "FILE", 0,
     "Read FILE and FILE.d/*.conf (default: in /etc/ipcd, or for a user in ~/.config/ipcd)", 0},
    {"check", OPTION_CHECK, NULL, 0, "Print the configuration that holds, or every mistake in it, and exit",
     0},
    {"state", OPTION_STATE, "FILE", 0,
     "Keep bindings made at run time in FILE (default: beside the broker's socket)", 0},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "error, warning, notice, info or debug", 0},
    {0},
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct gateway_arguments *arguments = state->input;

    switch (key) {
    case 'a':
        arguments->address = value;
        break;
    case 'c':
        arguments->config_path = value;
        break;
    case OPTION_CHECK:
        arguments->check = true;
        break;
    case OPTION_STATE:
        arguments->state_path = value;
        break;
    case OPTION_LOG_LEVEL:
        arguments->log_level = log_level_from_word(value);
        if (arguments->log_level < 0)
            argp_error(state, "--log-level=%s: error, warning, notice, info and debug are allowed", value);
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s' for? There are only options", value);
        break;
    default:
        if (key < OPTION_OWN || key >= OPTION_OWN + (int)arguments->kind->own.count)
            return ARGP_ERR_UNKNOWN;
        arguments->own[key - OPTION_OWN] = value;
    }
    return 0;
}

/* The settings of [gateway] are options, too, which have precedence. */
static void own_options(const struct gateway_table *own, struct argp_option ret[GATEWAY_SETTINGS_MAX + 8])
{
    size_t n = sizeof(options) / sizeof(options[0]) - 1;

    memcpy(ret, options, sizeof(options));
    for (size_t i = 0; i < own->count; i++, n++)
        ret[n] = (struct argp_option){.name = own->settings[i].key,
                                      .key = OPTION_OWN + (int)i,
                                      .arg = "VALUE",
                                      .doc = own->settings[i].doc};
    ret[n] = (struct argp_option){0};
}

static unsigned give_own(struct gateway_config *config, const struct gateway_arguments *arguments,
                         FILE *errors)
{
    char why[GATEWAY_WHY_SIZE];
    unsigned mistakes = 0;

    for (size_t i = 0; i < config->kind->own.count; i++) {
        if (!arguments->own[i] ||
            gateway_setting_give(&config->kind->own, i, arguments->own[i], &config->given, why) == 0)
            continue;
        fprintf(errors, "%s: --%s\n", config->kind->program, why);
        mistakes++;
    }
    return mistakes;
}

/* Files, options, and what is there in any case. Returns the number of mistakes. */
static unsigned read_config(struct gateway_config *config, const struct gateway_arguments *arguments,
                            FILE *errors)
{
    const struct gateway_kind *kind = arguments->kind;
    _cleanup_(freep) char *path = NULL;
    char file[64];
    unsigned mistakes = 0;

    gateway_config_init(config, kind);
    (void)snprintf(file, sizeof(file), "%s.conf", kind->program);
    path = arguments->config_path ? strdup(arguments->config_path) : inifile_default_path(file);
    if (path)
        mistakes = gateway_config_load(config, path, arguments->config_path != NULL, errors);
    mistakes += give_own(config, arguments, errors);
    if (kind->defaults && kind->defaults(config) < 0) {
        fprintf(errors, "%s: there are too many bindings\n", kind->program);
        mistakes++;
    }
    mistakes += gateway_config_resolve(config, errors);
    if (arguments->log_level >= 0)
        config->log_level = (uint64_t)arguments->log_level;
    return mistakes;
}

bool gateway_is_over(struct gateway *gateway, long result)
{
    if (result == -EPIPE || result == -EPROTO)
        gateway->over = true;
    return gateway->over;
}

bool gateway_has_made(const struct gateway *gateway, const char *name)
{
    for (size_t i = 0; i < gateway->n_made; i++)
        if (strcmp(gateway->made[i], name) == 0)
            return true;
    return false;
}

int gateway_made(struct gateway *gateway, const char *name)
{
    char **made, *copy;

    if (gateway_has_made(gateway, name))
        return 0;
    copy = strdup(name);
    made = reallocarray(gateway->made, gateway->n_made + 1, sizeof(*made));
    if (made)
        gateway->made = made;
    if (!made || !copy) {
        free(copy);
        return -ENOMEM;
    }
    made[gateway->n_made++] = copy;
    return gateway_state_write(gateway);
}

void gateway_unmade(struct gateway *gateway, const char *name)
{
    for (size_t i = 0; i < gateway->n_made; i++) {
        if (strcmp(gateway->made[i], name) != 0)
            continue;
        free(gateway->made[i]);
        gateway->made[i] = gateway->made[--gateway->n_made];
        (void)gateway_state_write(gateway);
        return;
    }
}

void gateway_take_events(struct gateway *gateway)
{
    struct ipc_event event;
    int result;

    while ((result = ipc_connection_next_event(gateway->connection, &event)) != 0) {
        if (result > 0 && event.kind == IPC_EVENT_ENDED)
            gateway->over = true;
        if (result > 0 && gateway->kind->event)
            gateway->kind->event(gateway, &event);
    }
}

/* Settings of [gateway] that are others now, but for those that bindings are made of: their names. */
static void changed_settings(const struct gateway *gateway, const struct gateway_config *config, FILE *out)
{
    const struct gateway_table *own = &gateway->kind->own;

    if (strcmp(gateway->config->address, config->address) != 0)
        fprintf(out, " address");
    for (size_t i = 0; i < own->count; i++)
        if (!own->settings[i].binds && strcmp(gateway->config->given.values[i], config->given.values[i]) != 0)
            fprintf(out, " %s", own->settings[i].key);
}

/* Its bindings and rules hold from now on. */
static void take_config(struct gateway *gateway, struct gateway_config *config)
{
    _cleanup_(freep) char *changed = NULL;
    const struct policy old = *gateway->policy;
    struct gateway_changes changes;
    size_t size;
    FILE *out;

    log_init(gateway->kind->program, (int)config->log_level);
    gateway_take_bindings(gateway, config, &changes);
    *gateway->policy = config->policy;
    config->policy = old; /* and ends with that */
    log_write(LOG_GATEWAY, NULL,
              "the configuration was read again: %zu rules hold now; bindings: %u new, %u changed, %u gone",
              gateway->policy->n, changes.added, changes.changed, changes.gone);
    out = open_memstream(&changed, &size);
    if (out) {
        changed_settings(gateway, config, out);
        if (fclose(out) == 0 && changed[0])
            log_write(LOG_GATEWAY, NULL, "settings that hold from the next start only:%s", changed);
    }
    if (gateway->kind->reread && !gateway->kind->reread(gateway))
        gateway->over = true;
    if (gateway->kind->rules_changed && gateway->connection && !gateway->over &&
        !gateway->kind->rules_changed(gateway, old.n > 0))
        gateway->over = true;
}

static void tell_ready(const struct gateway *gateway)
{
    (void)sd_notifyf(0, "READY=1\nSTATUS=%zu bindings at %s.", gateway->n_bindings, gateway->address);
}

static void reload(struct gateway *gateway)
{
    _cleanup_(freep) char *errors = NULL;
    struct gateway_config config;
    size_t size;
    FILE *out = open_memstream(&errors, &size);
    unsigned mistakes;

    if (!out) {
        log_write(LOG_CONFIG, NULL, "no memory for reading the configuration again: what held holds");
        return;
    }
    (void)sd_notify(0, "RELOADING=1");
    mistakes = read_config(&config, gateway->arguments, out);
    (void)fclose(out);
    if (mistakes == 0)
        take_config(gateway, &config);
    else
        log_write(LOG_CONFIG, NULL, "the new configuration has mistakes, and what held holds: %s", errors);
    gateway_config_done(&config);
    if (gateway->connection && !gateway->over) /* else with the next session */
        tell_ready(gateway);
}

static void on_signal(struct gateway_source *source, uint32_t events)
{
    struct gateway *gateway = source->context;
    struct signalfd_siginfo info;

    (void)events;
    while (read(source->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP) {
            reload(gateway);
            continue;
        }
        gateway->stopping = true;
        gateway->leaving = info.ssi_signo == SIGUSR1;
    }
}

/* One gateway of a kind per broker and state file. */
static int lock(struct gateway *gateway)
{
    char path[sizeof(gateway->state_path) + 8];

    (void)snprintf(path, sizeof(path), "%s.lock", gateway->state_path);
    gateway->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (gateway->lock_fd >= 0 && flock(gateway->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    int result = -errno;

    if (result == -EWOULDBLOCK)
        log_write(LOG_SYSTEM, NULL, "another %s serves this broker already (%s is locked)",
                  gateway->kind->program, path);
    else
        log_write(LOG_SYSTEM, NULL, "%s: %s; --state names another place", path, strerror(-result));
    return result;
}

static void unlock(struct gateway *gateway)
{
    char path[sizeof(gateway->state_path) + 8];

    (void)snprintf(path, sizeof(path), "%s.lock", gateway->state_path);
    if (gateway->lock_fd >= 0)
        (void)unlink(path);
    gateway->lock_fd = fd_close(gateway->lock_fd);
}

/* Marks are bytes of the file that is locked, by the binding's id: bindings come and go. */
static off_t mark_of(const struct gateway_binding *binding)
{
    uint32_t hash = 2166136261;

    for (const char *at = binding->id; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 16777619;
    return hash & 0xffff;
}

void gateway_mark(struct gateway_binding *binding, bool on)
{
    const char byte = on;

    (void)!pwrite(binding->gateway->lock_fd, &byte, 1, mark_of(binding));
}

bool gateway_is_marked(const struct gateway_binding *binding)
{
    char byte = 0;

    return pread(binding->gateway->lock_fd, &byte, 1, mark_of(binding)) == 1 && byte;
}

/* Take over the configured bindings, and those that a gateway before us made at run time. */
static int adopt(struct gateway *gateway, struct gateway_config *config, struct gateway_config *state)
{
    memcpy(gateway->bindings, config->bindings, config->n_bindings * sizeof(config->bindings[0]));
    gateway->n_bindings = config->n_bindings;
    config->n_bindings = 0;
    for (size_t i = 0; i < state->n_bindings; i++) {
        struct gateway_binding *binding = state->bindings[i];
        char why[GATEWAY_WHY_SIZE];

        binding->origin[0] = '\0';
#ifdef IPC_PLANT_BINDING_FORGOTTEN
        (void)gateway_binding_free(binding);
        continue;
#endif
        if (gateway_find(gateway, binding->id) || gateway->n_bindings == GATEWAY_BINDINGS_MAX) {
            log_write(LOG_CONFIG, &(struct log_about){.name = binding->id},
                      "the configuration has such a binding now: what was made at run time is dropped");
        } else if (gateway_binding_resolve(binding, gateway->kind, gateway->own, why) < 0) {
            log_write(LOG_CONFIG, &(struct log_about){.name = binding->id},
                      "what was made at run time is dropped: %s", why);
        } else {
            gateway->bindings[gateway->n_bindings++] = binding;
            continue;
        }
        (void)gateway_binding_free(binding);
    }
    state->n_bindings = 0;
    gateway->made = state->made;
    gateway->n_made = state->n_made;
    state->made = NULL;
    state->n_made = 0;
    for (size_t i = 0; i < gateway->n_bindings; i++)
        gateway->bindings[i]->gateway = gateway;
    gateway_sweep(gateway, false);
    return gateway_state_write(gateway);
}

static int connect_once(struct gateway *gateway, struct ipc_error *error)
{
    struct ipc_connection_options how = IPC_CONNECTION_OPTIONS_INIT;

    how.name = gateway->kind->program;
    return ipc_connection_open(&gateway->connection, gateway->address, &how, error);
}

/* The broker went away: wait until it is back, or until we are told to stop. */
static void connect_again(struct gateway *gateway)
{
    struct pollfd told = {.fd = gateway->signal_fd, .events = POLLIN};
    int wait_ms = RECONNECT_LEAST_MS;

    log_write(LOG_GATEWAY, NULL, "the session is over; waiting for a broker at %s", gateway->address);
    while (connect_once(gateway, NULL) < 0) {
        if (poll(&told, 1, wait_ms) > 0) {
            on_signal(gateway->signal_source, POLLIN);
            return;
        }
        wait_ms = wait_ms < RECONNECT_MOST_MS / 2 ? 2 * wait_ms : RECONNECT_MOST_MS;
    }
    log_write(LOG_GATEWAY, NULL, "connected again");
}

/* One session. */
static int serve(struct gateway *gateway)
{
    int result;

    gateway->over = false;
    result = gateway_manage_start(gateway);
    if (result == 0 && gateway->kind->open)
        result = gateway->kind->open(gateway);
    for (size_t i = 0; i < gateway->n_bindings && result == 0 && !gateway->over; i++)
        gateway_open_binding(gateway->bindings[i]);
    if (result == 0 && !gateway->over) {
        tell_ready(gateway);
        result = gateway_loop_run(gateway);
    }
    for (size_t i = 0; i < gateway->n_bindings; i++)
        gateway_close_binding(gateway->bindings[i]);
    if (gateway->kind->close)
        gateway->kind->close(gateway);
    gateway_manage_stop(gateway);
    gateway->connection = ipc_connection_close(gateway->connection);
    return gateway->over && !gateway->stopping ? 0 : result;
}

static int run(struct gateway *gateway, struct gateway_config *config, struct gateway_config *state)
{
    struct gateway_source server = {.fd = -1}, signals = {.fd = gateway->signal_fd};
    struct ipc_error error = {.text = ""};
    int result;

    gateway->server_source = &server;
    gateway->signal_source = &signals;
    signals.ready = on_signal;
    signals.context = gateway;
    result = connect_once(gateway, &error);
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "no session with the broker at %s: %s", gateway->address, error.text);
        return result;
    }
    result = gateway_watch(gateway, &signals, EPOLLIN);
    if (result == 0 && gateway->kind->start)
        result = gateway->kind->start(gateway);
    if (result == 0)
        result = adopt(gateway, config, state);
    while (result == 0 && !gateway->stopping) {
        if (!gateway->connection)
            connect_again(gateway);
        if (gateway->connection)
            result = serve(gateway);
    }
    gateway->connection = ipc_connection_close(gateway->connection);
    if (result == 0 && !gateway->leaving) { /* what was made at run time is over */
        while (gateway->n_bindings > 0)
            (void)gateway_binding_free(gateway->bindings[--gateway->n_bindings]);
        gateway_sweep(gateway, true);
        (void)gateway_state_write(gateway);
    }
    if (gateway->kind->stop)
        gateway->kind->stop(gateway);
    log_write(LOG_STOPPED, NULL, "stopped");
    return result;
}

static int find_paths(struct gateway *gateway, const struct gateway_arguments *arguments,
                      const struct gateway_config *config)
{
    const char *wanted = arguments->address   ? arguments->address
                         : config->address[0] ? config->address
                                              : NULL;
    char copy[sizeof(gateway->address)];
    int size;

    if (address_resolve(gateway->address, sizeof(gateway->address), wanted) < 0)
        return -ENAMETOOLONG;
    (void)snprintf(copy, sizeof(copy), "%s", gateway->address);
    (void)snprintf(gateway->folder, sizeof(gateway->folder), "%s", dirname(copy));
    size = arguments->state_path
               ? snprintf(gateway->state_path, sizeof(gateway->state_path), "%s", arguments->state_path)
               : snprintf(gateway->state_path, sizeof(gateway->state_path), "%s/%s.state", gateway->folder,
                          gateway->kind->program);
    return size < (int)sizeof(gateway->state_path) ? 0 : -ENAMETOOLONG;
}

/* Before the configuration is read: that it was changed is not to be missed. */
static sigset_t block_signals(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    return signals;
}

static int start(struct gateway *gateway, const struct gateway_arguments *arguments,
                 struct gateway_config *config, struct gateway_config *state, const sigset_t *signals)
{
    int result = find_paths(gateway, arguments, config);

    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "an address or the name of the state file is too long");
        return result;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    (void)fd_raise_limit();
    gateway->signal_fd = signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
    result = gateway->signal_fd < 0 ? -errno : gateway_loop_init(gateway);
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "cannot start: %s", strerror(-result));
    if (result == 0)
        result = lock(gateway);
    if (result == 0 && gateway_config_load(state, gateway->state_path, false, stderr) > 0)
        log_write(LOG_CONFIG, NULL, "%s has mistakes: what is wrong in it is left out", gateway->state_path);
    gateway->own = config->own;
    gateway->policy = &config->policy;
    gateway->arguments = arguments;
    gateway->config = config;
    gateway->since_ns = time_realtime_ns();
    if (result == 0)
        result = run(gateway, config, state);
    if (gateway->lock_fd >= 0)
        unlock(gateway);
    gateway_loop_done(gateway);
    gateway->signal_fd = fd_close(gateway->signal_fd);
    while (gateway->n_bindings > 0)
        (void)gateway_binding_free(gateway->bindings[--gateway->n_bindings]);
    while (gateway->n_made > 0)
        free(gateway->made[--gateway->n_made]);
    free(gateway->made);
    return result;
}

int gateway_main(const struct gateway_kind *kind, int argc, char **argv)
{
    struct argp_option all_options[GATEWAY_SETTINGS_MAX + 8];
    const struct argp parser = {all_options, parse_option, NULL, kind->doc, NULL, NULL, NULL};
    struct gateway_arguments arguments = {.log_level = -1, .kind = kind};
    struct gateway gateway = {.kind = kind, .epoll_fd = -1, .signal_fd = -1, .lock_fd = -1};
    struct gateway_config config, state;
    const sigset_t signals = block_signals();
    char version[64];
    unsigned mistakes;
    int status = EXIT_SUCCESS;

    (void)snprintf(version, sizeof(version), "%s %s", kind->program, IPCD_VERSION);
    argp_program_version = version;
    own_options(&kind->own, all_options);
    (void)argp_parse(&parser, argc, argv, 0, NULL, &arguments);
    gateway_config_init(&state, kind);
    mistakes = read_config(&config, &arguments, stderr);
    log_init(kind->program, (int)config.log_level);
    if (mistakes > 0) {
        fprintf(stderr, "%s: the configuration has mistakes; nothing was started\n", kind->program);
        status = EXIT_FAILURE;
    } else if (arguments.check) {
        gateway_config_print(&config, stdout);
        status = fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    } else if (start(&gateway, &arguments, &config, &state, &signals) < 0) {
        status = EXIT_FAILURE;
    }
    gateway_config_done(&config);
    gateway_config_done(&state);
    return status;
}
