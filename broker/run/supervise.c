/* SPDX-License-Identifier: Apache-2.0
 *
 * One loop over a few descriptors: signals, what ipcd tells, and the pidfds of ipcd, COMMAND and the gateways. An ipcd
 * that dies is started again with everything that it had us keep. The loop ends when neither is to run any more.
 */
#include "broker/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>

#include "broker/core/util/config.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/inifile.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

/* How long what was told to end may take before it is killed. */
#define PATIENCE_NS UINT64_C(10000000000)

/* Starts in a row that did not get ready: after so many what is kept is dropped, and after as many again we give up. */
#define FAILURES_MAX 5u
#define CHECK_MS     5000
#define RESTART_NS   UINT64_C(5000000)    /* before the first restart after a failed one, doubled for each */
#define ABORT_NS     UINT64_C(1000000000) /* from SIGABRT to SIGKILL */

enum status {
    STATUS_IPCD_ENDED = 124,
    STATUS_IPCD_NOT_RUN = 125,
    STATUS_CONFIGURATION = 78, /* EX_CONFIG */
    STATUS_NOT_EXECUTABLE = 126,
    STATUS_NOT_FOUND = 127
};

static const char not_run[] = "ipcd could not be started; its log (journalctl -u ipcd) says why";

/* Digits enough for any pid; the child writes its own over them. */
#define PID_PLACE "00000000000"

struct supervisor {
    const struct run_options *options;
    struct run_gateways *gateways;
    struct listener listener;
    struct notify notify;
    struct child ipcd, command;
    int signal_fd;
    struct store store;
    bool was_ready, had_command, ready, told_to_stop, stopping;
    bool mistakes;  /* in the configuration */
    bool reload;    /* the next ipcd is to read it again */
    bool replace;   /* the ipcd that was adopted, once we have all that it keeps */
    bool hand_over; /* leave ipcd to the next ipcd-run, once it is ready */
    bool handed_over;
    unsigned failures;
    uint64_t kill_at_ns;    /* 0: nobody was told to end */
    uint64_t restart_at_ns; /* 0: no restart is due */
    uint64_t alive_at_ns;   /* ipcd said so last */
    int status;
    const char
        *refusal; /* what is told to who connects, if there is no broker and another try would end likewise */
    char folder[IPC_MAX_ADDRESS_SIZE + 1];
};

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    char text[768];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    log_write(LOG_CHILD, NULL, "%s", text);
}

/* The address of the socket that we were started with. Returns 1; 0: there is none; or -1 after it said what is wrong. */
static int inherit_address(struct supervisor *supervisor, char *ret, size_t capacity)
{
    struct sockaddr_un name = {0};
    socklen_t size = sizeof(name);
    char error[512];
    int result = listener_inherit(&supervisor->listener, error, sizeof(error));

    if (result < 0)
        say("%s", error);
    if (result <= 0)
        return result < 0 ? -1 : 0;
    if (getsockname(supervisor->listener.fd, (struct sockaddr *)&name, &size) < 0 ||
        name.sun_path[0] != '/') {
        say("the socket that was passed (LISTEN_FDS) has no path");
        return -1;
    }
    (void)snprintf(ret, capacity, "%.*s", (int)sizeof(name.sun_path), name.sun_path);
    return 1;
}

/* Where to listen, and with what mode. Returns 0, 1: we listen there already, or -1 after it said what is wrong. */
static int find_address(struct supervisor *supervisor, char *ret, size_t capacity, unsigned *ret_mode)
{
    const struct run_options *options = supervisor->options;
    _cleanup_(freep) char *path = options->config_path ? strdup(options->config_path) : config_default_path();
    _cleanup_(config_done) struct config config;
    int size;

    config_init(&config);
    supervisor->mistakes = path && config_load(&config, path, options->config_path != NULL, stderr) > 0;
    config_resolve(&config, 1024);
    *ret_mode = options->private ? 0600 : (unsigned)config.socket_mode;
    size = options->private ? 0 : inherit_address(supervisor, ret, capacity);
    if (size != 0)
        return size;
    if (options->private) {
        int result = folder_make(supervisor->folder, sizeof(supervisor->folder));

        if (result < 0) {
            say("no private directory could be made in $XDG_RUNTIME_DIR or /tmp: %s", strerror(-result));
            supervisor->folder[0] = '\0';
            return -1;
        }
        size = snprintf(ret, capacity, "%s/socket", supervisor->folder);
    } else if (options->address || config.address[0]) {
        size = snprintf(ret, capacity, "%s", options->address ? options->address : config.address);
    } else {
        if (listener_default_address(ret, capacity) < 0) {
            say("no address to listen on: XDG_RUNTIME_DIR is not set; set it, or give --address or --private");
            return -1;
        }
        return 0;
    }
    if (size < 0 || (size_t)size >= capacity) {
        say("the address is longer than the %u bytes that the path of a socket can have",
            IPC_MAX_ADDRESS_SIZE);
        return -1;
    }
    return 0;
}

static int prepare(struct supervisor *supervisor)
{
    char address[IPC_MAX_ADDRESS_SIZE + 1], error[512];
    unsigned mode;
    sigset_t signals;
    int result, listening;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    supervisor->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    result = supervisor->signal_fd < 0 ? -errno : notify_init(&supervisor->notify);
    if (result < 0) {
        say("cannot start: %s", strerror(-result));
        return -1;
    }
    listening = find_address(supervisor, address, sizeof(address), &mode);
    if (listening < 0)
        return -1;
    if (store_init(&supervisor->store) < 0) {
        say("out of memory");
        return -1;
    }
    (void)fd_raise_limit(); /* each descriptor that ipcd keeps open, we keep as well */
    if (listener_lock(&supervisor->listener, address, error, sizeof(error)) < 0) {
        say("%s", error);
        return -1;
    }
    result = supervisor->options->private ? -ENOENT
                                          : adopt_ipcd(&supervisor->ipcd, &supervisor->notify, address,
                                                       supervisor->options->watchdog_ns);
    if (result == 0) {
        if (listening == 0)
            listener_claim(&supervisor->listener);
        supervisor->replace = true;
        supervisor->alive_at_ns = time_monotonic_ns();
        return 0;
    }
    if (result != -ENOENT && result != -ECONNREFUSED && result != -ESRCH) {
        say("the ipcd that serves %s cannot be taken over: %s", address, strerror(-result));
        return -1;
    }
    if (supervisor->mistakes) {
        say("the configuration %s; nothing was started",
            inifile_lacked() ? "cannot be read" : "has mistakes");
        if (!inifile_lacked()) {
            supervisor->status = STATUS_CONFIGURATION;
            supervisor->refusal =
                "its configuration has mistakes; its log (journalctl -u ipcd) and ipcd --check name them";
        }
        return -1;
    }
    if (listening == 0 && listener_open(&supervisor->listener, address, mode, error, sizeof(error)) < 0) {
        say("%s", error);
        return -1;
    }
    return 0;
}

/* Returns their number. */
static size_t ipcd_arguments(const struct run_options *options, const char *argv[6])
{
    size_t n = 0;

    argv[n++] = options->ipcd_path;
    if (options->config_path) {
        argv[n++] = "--config";
        argv[n++] = options->config_path;
    }
    if (options->log_level) {
        argv[n++] = "--log-level";
        argv[n++] = options->log_level;
    }
    argv[n] = NULL;
    return n;
}

/* The socket that was bound here, or the one of an ipcd that was adopted. */
static int listening_fd(const struct supervisor *supervisor)
{
    int kept = store_get(&supervisor->store, "listener");

    return supervisor->listener.fd >= 0 ? supervisor->listener.fd : kept;
}

/* Is ipcd to go on if we end? */
static bool may_survive(const struct run_options *options)
{
    return !options->private && !options->command;
}

/* In what time ipcd is to show progress; 0: it need not. What systemd wants to hear of us, we hear of ipcd. */
static uint64_t watchdog_us(const struct run_options *options)
{
    uint64_t own_us = options->watchdog_ns / 1000, us = 0;

    (void)sd_watchdog_enabled(0, &us);
    return us == 0 || (own_us && own_us < us) ? own_us : us;
}

static int start_ipcd(struct supervisor *supervisor)
{
    const struct run_options *options = supervisor->options;
    const char *argv[6];
    char index_text[16], watchdog[32], pid[16], config[16];
    int config_fd = store_get(&supervisor->store, "config");
    uint64_t interval_us = watchdog_us(options);
    int index_fd = supervisor->store.count > 0 ? store_index(&supervisor->store) : -1;
    const struct environment_change changes[] = {
        {"LISTEN_FDS", "1"},
        {"LISTEN_PID", PID_PLACE},
        {"LISTEN_FDNAMES", "ipcd.socket"},
        {"NOTIFY_SOCKET", supervisor->notify.address},
        {"WATCHDOG_PID", NULL},
        {"WATCHDOG_USEC", interval_us ? watchdog : NULL},
        {"IPCD_GUARDIAN", "ipcd-run"},
        {"IPCD_GUARDIAN_PID", may_survive(options) ? pid : NULL},
        {"IPCD_STORE", index_fd >= 0 ? index_text : NULL},
        {"IPCD_CONFIG", config_fd >= 0 ? config : NULL},
        {"IPCD_RELOAD", supervisor->reload ? "1" : NULL},
    };
    (void)snprintf(index_text, sizeof(index_text), "%d", index_fd);
    (void)snprintf(watchdog, sizeof(watchdog), "%" PRIu64, interval_us);
    (void)snprintf(config, sizeof(config), "%d", config_fd);
    (void)snprintf(pid, sizeof(pid), "%d", (int)getpid());

    char **environment = environment_new(changes, sizeof(changes) / sizeof(changes[0]));
    const struct child_plan plan = {.argv = argv,
                                    .environment = environment,
                                    .listen_fd = listening_fd(supervisor),
                                    .inherits = true,
                                    .survives = may_survive(options),
                                    .foreground_signals = true};
    int result;

    (void)ipcd_arguments(options, argv);
#ifdef IPC_PLANT_STARTED_WITHOUT
    result = environment ? child_start(&supervisor->ipcd, &plan) : -ENOMEM;
#else
    if (supervisor->store.count > 0 && index_fd < 0)
        result = index_fd; /* without it, it would begin anew, and what is kept would hang */
    else
        result = environment ? child_start(&supervisor->ipcd, &plan) : -ENOMEM;
#endif
    supervisor->ready = false;
    supervisor->alive_at_ns = time_monotonic_ns();
    fd_close(index_fd);
    environment_free(environment);
    if (result < 0)
        say("%s cannot be run: %s%s", options->ipcd_path, strerror(-result),
            result == -ENOENT ? "; say where it is with --ipcd PATH" : "");
    return result;
}

/* The gateways first: they put what they hold back. */
static void stop_ipcd(struct supervisor *supervisor)
{
    supervisor->told_to_stop = true;
    supervisor->restart_at_ns = 0;
    if (gateways_run(supervisor->gateways))
        gateways_signal(supervisor->gateways, SIGTERM);
    else
        child_signal(&supervisor->ipcd, SIGTERM);
    if (supervisor->ipcd.pid)
        supervisor->kill_at_ns = time_monotonic_ns() + PATIENCE_NS;
}

static void start_command(struct supervisor *supervisor)
{
    const struct run_options *options = supervisor->options;
    const struct environment_change changes[] = {
        {"IPC_ADDRESS", supervisor->listener.path},
        {"NOTIFY_SOCKET", NULL},
        {"WATCHDOG_PID", NULL},
        {"WATCHDOG_USEC", NULL},
        {"LISTEN_FDS", NULL},
        {"LISTEN_PID", NULL},
        {"LISTEN_FDNAMES", NULL},
    };
    char **environment = environment_new(changes, sizeof(changes) / sizeof(changes[0]));
    const struct child_plan plan = {
        .argv = (const char *const *)options->command, .environment = environment, .listen_fd = -1};
    int result = environment ? child_start(&supervisor->command, &plan) : -ENOMEM;

    environment_free(environment);
    if (result == 0)
        return;
    say("%s cannot be run: %s", options->command[0], strerror(-result));
    supervisor->status = result == -ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_EXECUTABLE;
    stop_ipcd(supervisor);
}

static void upgrade(struct supervisor *supervisor);

/* COMMAND finds everything there. */
static void start_command_when_settled(struct supervisor *supervisor)
{
    if (!supervisor->was_ready || supervisor->had_command || !gateways_settled(supervisor->gateways))
        return;
    supervisor->had_command = true;
    (void)sd_notify(0, "READY=1");
    if (supervisor->options->command && !supervisor->told_to_stop)
        start_command(supervisor);
}

static void on_notify(struct supervisor *supervisor)
{
    struct notify_news news;

    while (notify_read(&supervisor->notify, supervisor->ipcd.pid, &supervisor->store, &news) > 0) {
        if (news.sender != supervisor->ipcd.pid) {
            if (news.ready)
                gateways_ready(supervisor->gateways, news.sender);
            continue;
        }
#ifndef IPC_PLANT_REFUSAL_UNTOLD
        if (news.refused)
            child_signal(&supervisor->ipcd, SIGUSR2); /* it says all of it again, later */
#endif
        supervisor->stopping = supervisor->stopping || news.stopping;
        if (news.status[0])
            (void)sd_notifyf(0, "STATUS=%s", news.status);
        if (news.watchdog || news.ready)
            supervisor->alive_at_ns = time_monotonic_ns();
        if (news.watchdog)
            (void)sd_notify(0, "WATCHDOG=1");
        if (news.stopping)
            (void)sd_notify(0, "STOPPING=1");
        if (news.extend_us && supervisor->kill_at_ns && supervisor->told_to_stop) {
            supervisor->kill_at_ns = time_monotonic_ns() + news.extend_us * 1000 + PATIENCE_NS;
            (void)sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, news.extend_us + PATIENCE_NS / 1000);
        }
        if (!news.ready || supervisor->ready)
            continue;
        supervisor->ready = true;
        supervisor->reload = false;
        supervisor->failures = 0;
        if (supervisor->was_ready)
            continue;
        supervisor->was_ready = true;
        if (!supervisor->told_to_stop)
            gateways_start(supervisor->gateways);
    }
    start_command_when_settled(supervisor);
    if (supervisor->hand_over && supervisor->ready && !supervisor->told_to_stop) {
        log_write(LOG_STOPPED, NULL, "ipcd goes on without us, for the next ipcd-run");
        supervisor->handed_over = true;
        return;
    }
    /* It may be another program than the one that is there now, with other settings, and is not our child. */
    if (supervisor->replace && supervisor->ready && !supervisor->told_to_stop) {
        supervisor->replace = false;
        upgrade(supervisor);
    }
}

/* Children that are not ours by name come to us if we are the first process of a container. */
static void reap_strangers(const struct supervisor *supervisor)
{
    for (;;) {
        siginfo_t info = {0};

        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0 ||
            info.si_pid == supervisor->ipcd.pid || info.si_pid == supervisor->command.pid ||
            gateways_have(supervisor->gateways, info.si_pid))
            return;
        (void)waitpid(info.si_pid, NULL, WNOHANG);
    }
}

/* Can the ipcd that is there now go on from what the running one keeps, with the configuration that is there now? */
static bool check_state(struct supervisor *supervisor)
{
    struct child check = CHILD_INIT;
    char option[40], how[80];
    const char *argv[7];
    size_t n = ipcd_arguments(supervisor->options, argv);
    char **environment = environment_new(NULL, 0);
    const struct child_plan plan = {
        .argv = argv, .environment = environment, .listen_fd = -1, .inherits = true};
    struct pollfd ended = {.events = POLLIN};
    int result;

    (void)snprintf(option, sizeof(option), "--check-state=%d", store_get(&supervisor->store, "registry"));
    argv[n] = option;
    argv[n + 1] = NULL;
    result = environment ? child_start(&check, &plan) : -ENOMEM;
    environment_free(environment);
    if (result < 0) {
        say("%s cannot be run: %s; the running ipcd stays", argv[0], strerror(-result));
        return false;
    }
    ended.fd = check.pidfd;
    if (poll(&ended, 1, CHECK_MS) <= 0)
        child_signal(&check, SIGKILL);
    if (child_reap(&check, how, sizeof(how)) == 0)
        return true;
    say("%s %s %s; the running ipcd stays", argv[0], option, how);
    return false;
}

/* Killing is how an ipcd is replaced: it is made for that. */
static void upgrade(struct supervisor *supervisor)
{
    on_notify(supervisor);
    if (!supervisor->ready || !check_state(supervisor))
        return;
    supervisor->reload = true;
    child_signal(&supervisor->ipcd, SIGKILL);
}

static void on_signal(struct supervisor *supervisor)
{
    struct signalfd_siginfo info;

    while (read(supervisor->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) {
            reap_strangers(supervisor);
        } else if (info.ssi_signo == SIGHUP && !supervisor->options->command) {
            gateways_reload(supervisor->gateways);
            upgrade(supervisor);
        } else if (info.ssi_signo == SIGUSR1) {
            supervisor->hand_over = may_survive(supervisor->options);
            on_notify(supervisor);
        } else if (supervisor->command.pid == 0) {
            if (supervisor->told_to_stop) { /* asked twice */
                gateways_signal(supervisor->gateways, SIGKILL);
                child_signal(&supervisor->ipcd, SIGKILL);
            }
            stop_ipcd(supervisor);
        } else if (info.ssi_code != SI_KERNEL) {
            /* The terminal's own signals reach COMMAND without us. */
            child_signal(&supervisor->command, (int)info.ssi_signo);
        }
    }
}

static void give_up(struct supervisor *supervisor, const char *how)
{
    say("ipcd ended by itself: it %s; every session is over%s", how,
        supervisor->command.pid ? ", and COMMAND is told to end" : "");
    supervisor->status = STATUS_IPCD_ENDED;
    store_clear(&supervisor->store);
    child_signal(&supervisor->command, SIGTERM);
    child_signal(&supervisor->command, SIGCONT);
    supervisor->kill_at_ns = time_monotonic_ns() + PATIENCE_NS;
}

/* All but the socket that it listens on. */
static void forget(struct supervisor *supervisor)
{
    if (supervisor->listener.fd < 0)
        supervisor->listener.fd = fcntl(store_get(&supervisor->store, "listener"), F_DUPFD_CLOEXEC, 4);
    store_clear(&supervisor->store);
}

/* It did not get ready: try again, but not for ever. */
static void try_again(struct supervisor *supervisor, const char *how)
{
    supervisor->failures++;
    if (supervisor->failures == 2 * FAILURES_MAX) {
        give_up(supervisor, how);
        return;
    }
    if (supervisor->failures == FAILURES_MAX) {
        say("ipcd %s %u times in a row before it was ready: what was kept for it is dropped, its sessions are lost",
            how, FAILURES_MAX);
        forget(supervisor);
    } else {
        say("ipcd %s; it is started again with %zu descriptors", how, supervisor->store.count);
    }
    supervisor->restart_at_ns = time_monotonic_ns() + (RESTART_NS << supervisor->failures);
}

static void restart(struct supervisor *supervisor)
{
    supervisor->restart_at_ns = 0;
    if (start_ipcd(supervisor) < 0)
        try_again(supervisor, "could not be started");
}

static void on_ipcd_end(struct supervisor *supervisor)
{
    char how[80];
    int status;

#ifdef IPC_PLANT_STORE_UNREAD
    (void)child_reap(&supervisor->ipcd, how, sizeof(how));
    restart(supervisor);
    return;
#endif
    on_notify(supervisor);
    status = child_reap(&supervisor->ipcd, how, sizeof(how));
    if (supervisor->told_to_stop) {
        if (status != 0)
            say("ipcd %s while it was stopping", how);
        return;
    }
    supervisor->kill_at_ns = 0;
    if (!supervisor->was_ready) {
        say("ipcd (%s) could not start: it %s", supervisor->options->ipcd_path, how);
        supervisor->status = STATUS_IPCD_NOT_RUN;
        supervisor->refusal = not_run;
        return;
    }
    if (supervisor->stopping && status == 0 && !supervisor->options->command)
        return; /* somebody stopped it in good order */
    if (!supervisor->ready) {
        try_again(supervisor, how);
        return;
    }
    say("ipcd %s; it is started again with %zu descriptors", how, supervisor->store.count);
    restart(supervisor);
}

static void on_command_end(struct supervisor *supervisor)
{
    char how[80];
    int status = child_reap(&supervisor->command, how, sizeof(how));

    if (supervisor->status == 0)
        supervisor->status = status;
    stop_ipcd(supervisor);
}

static void on_gateway_end(struct supervisor *supervisor, size_t index)
{
    on_notify(supervisor);
    gateways_on_end(supervisor->gateways, index);
    if (supervisor->told_to_stop && !gateways_run(supervisor->gateways))
        stop_ipcd(supervisor);
    start_command_when_settled(supervisor);
}

static void restart_gateways(struct supervisor *supervisor)
{
    gateways_restart(supervisor->gateways);
}

static void on_deadline(struct supervisor *supervisor)
{
    supervisor->kill_at_ns = 0;
    if (gateways_run(supervisor->gateways) && supervisor->told_to_stop) {
        say("gateways do not end and are killed");
        gateways_signal(supervisor->gateways, SIGKILL);
        return;
    }
    say("%s does not end and is killed", supervisor->ipcd.pid ? "ipcd" : "COMMAND");
    child_signal(&supervisor->ipcd, SIGKILL);
    if (!supervisor->ipcd.pid)
        child_signal(&supervisor->command, SIGKILL);
}

static void on_silence(struct supervisor *supervisor)
{
    say("ipcd shows no progress for %.1f s: it is killed", (double)supervisor->options->watchdog_ns * 1e-9);
    child_signal(&supervisor->ipcd, SIGABRT);
    supervisor->kill_at_ns = time_monotonic_ns() + ABORT_NS;
}

/* What is due first, and when; NULL: nothing. */
static void (*next_due(const struct supervisor *supervisor, uint64_t *ret_at_ns))(struct supervisor *)
{
    uint64_t silent_at_ns = supervisor->alive_at_ns + supervisor->options->watchdog_ns;
    uint64_t gateways_at_ns = gateways_due(supervisor->gateways);
    void (*due)(struct supervisor *) = NULL;

    if (supervisor->kill_at_ns) {
        *ret_at_ns = supervisor->kill_at_ns;
        due = on_deadline;
    } else if (supervisor->restart_at_ns) {
        *ret_at_ns = supervisor->restart_at_ns;
        due = restart;
    } else if (supervisor->options->watchdog_ns && supervisor->ipcd.pid && !supervisor->told_to_stop) {
        *ret_at_ns = silent_at_ns;
        due = on_silence;
    }
    if (gateways_at_ns && (!due || gateways_at_ns < *ret_at_ns)) {
        *ret_at_ns = gateways_at_ns;
        due = restart_gateways;
    }
    return due;
}

/* Gateways without an ipcd, now and later, have nothing to do. */
static bool lives(struct supervisor *supervisor)
{
    if (supervisor->handed_over)
        return false;
    if (supervisor->ipcd.pid || supervisor->command.pid || supervisor->restart_at_ns)
        return true;
    if (gateways_run(supervisor->gateways) && !supervisor->gateways->stopping) {
        supervisor->told_to_stop = true;
        gateways_signal(supervisor->gateways, SIGTERM);
        supervisor->kill_at_ns = time_monotonic_ns() + PATIENCE_NS;
    }
    return gateways_run(supervisor->gateways);
}

static void loop(struct supervisor *supervisor)
{
    struct run_gateways *gateways = supervisor->gateways;

    while (lives(supervisor)) {
        struct pollfd polls[4 + RUN_GATEWAYS_MAX] = {
            {.fd = supervisor->signal_fd, .events = POLLIN},
            {.fd = supervisor->notify.fd, .events = POLLIN},
            {.fd = supervisor->ipcd.pidfd, .events = POLLIN},
            {.fd = supervisor->command.pidfd, .events = POLLIN},
        };
        uint64_t now_ns = time_monotonic_ns(), at_ns = 0;
        void (*due)(struct supervisor *) = next_due(supervisor, &at_ns);
        int timeout = !due ? -1 : at_ns <= now_ns ? 0 : (int)((at_ns - now_ns) / 1000000) + 1;

        for (size_t i = 0; i < gateways->count; i++)
            polls[4 + i] = (struct pollfd){.fd = gateways->each[i].child.pidfd, .events = POLLIN};
        if (poll(polls, 4 + gateways->count, timeout) == 0) {
            if (due)
                due(supervisor);
            continue;
        }
        if (polls[1].revents)
            on_notify(supervisor);
        if (polls[3].revents && supervisor->command.pid)
            on_command_end(supervisor);
        if (polls[2].revents)
            on_ipcd_end(supervisor);
        for (size_t i = 0; i < gateways->count; i++)
            if (polls[4 + i].revents)
                on_gateway_end(supervisor, i);
        if (polls[0].revents)
            on_signal(supervisor);
    }
}

int run_supervise(const struct run_options *options)
{
    struct run_gateways gateways = options->gateways;
    struct supervisor supervisor = {.options = options,
                                    .gateways = &gateways,
                                    .listener = LISTENER_INIT,
                                    .notify = {.fd = -1},
                                    .ipcd = CHILD_INIT,
                                    .command = CHILD_INIT,
                                    .signal_fd = -1};

    if (prepare(&supervisor) < 0) {
        supervisor.status = supervisor.status ? supervisor.status : STATUS_IPCD_NOT_RUN;
    } else if (supervisor.ipcd.pid == 0 && start_ipcd(&supervisor) < 0) {
        supervisor.status = STATUS_IPCD_NOT_RUN;
        supervisor.refusal = not_run;
    } else {
        gateways.address = supervisor.listener.path;
        gateways.log_level = options->log_level;
        gateways.notify = supervisor.notify.address;
        loop(&supervisor);
    }
    if (supervisor.refusal && supervisor.listener.fd >= 0 && !supervisor.listener.ours)
        refuse_connections(supervisor.listener.fd, supervisor.signal_fd, supervisor.refusal);
    store_done(&supervisor.store);
    if (supervisor.handed_over)
        return 0; /* ipcd sees our end, not that of what only we have; gateways end with us */
    if (supervisor.listener.lock_fd >= 0)
        adopt_remove(supervisor.listener.path);
    listener_close(&supervisor.listener);
    if (supervisor.folder[0])
        folder_remove(supervisor.folder);
    notify_done(&supervisor.notify);
    fd_close(supervisor.signal_fd);
    return supervisor.status;
}
