/* SPDX-License-Identifier: Apache-2.0
 *
 * What the gateways share: arguments, configuration, the loop, bindings and their management. A gateway is an ordinary
 * client of the broker: one process, one thread, one epoll loop, everything else is libipc.
 *
 * A gateway's main() calls gateway_main() with what is its own: the tables of its settings and a few functions.
 */
#ifndef IPCD_GATEWAYS_COMMON_GATEWAY_H
#define IPCD_GATEWAYS_COMMON_GATEWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <ipc/ipc.h>

#include "broker/core/util/log.h"
#include "broker/core/util/policy.h"
#include "gateway.pb-c.h"
#include "libipc/patterns/spin.h"

#define GATEWAY_ID_SIZE      48u  /* of a binding, terminated */
#define GATEWAY_VALUE_SIZE   160u /* of a setting, terminated */
#define GATEWAY_WHY_SIZE     256u /* of a sentence about what is wrong, terminated */
#define GATEWAY_BINDINGS_MAX 256u
#define GATEWAY_SETTINGS_MAX 32u /* of a table */

/* ---- setting.c: tables of settings ----------------------------------------------------------------------- */

enum gateway_setting_kind {
    GATEWAY_TEXT,     /* char[most] */
    GATEWAY_COUNT,    /* uint64_t, as all that follow */
    GATEWAY_SIZE,     /* bytes, with a suffix K, M or G */
    GATEWAY_DURATION, /* nanoseconds, with a suffix ns to d */
    GATEWAY_MODE,     /* octal */
    GATEWAY_WORD,     /* index in `words` */
};

struct gateway_setting {
    const char *key;
    enum gateway_setting_kind kind;
    size_t offset; /* in the struct that the table is about */
    uint64_t least, most;
    const char *const *words; /* NULL at the end */
    const char *fallback;     /* the default, as text; NULL: it has to be given */
    const char *doc;          /* of one in [gateway], which is an option of that name as well */
    bool binds;               /* the same: defaults() makes bindings of it */
};

struct gateway_table {
    const struct gateway_setting *settings;
    size_t count; /* at most GATEWAY_SETTINGS_MAX */
    size_t size;  /* of the struct */
};

/* What was given of a table, as text: "" or a value. */
struct gateway_given {
    char values[GATEWAY_SETTINGS_MAX][GATEWAY_VALUE_SIZE];
};

/* Index of a setting, or -ENOENT and a sentence that names those that there are. */
int gateway_setting_find(const struct gateway_table *table, const char *key, char why[GATEWAY_WHY_SIZE]);

/* Is the value allowed? Then it is put into *given. 0, or -EINVAL and a sentence. */
int gateway_setting_give(const struct gateway_table *table, size_t index, const char *value,
                         struct gateway_given *given, char why[GATEWAY_WHY_SIZE]);

/* Fill in the struct from what is given and the defaults. 0, or -EINVAL and a sentence. */
int gateway_settings_resolve(const struct gateway_table *table, const struct gateway_given *given, void *ret,
                             char why[GATEWAY_WHY_SIZE]);

/* ---- bindings -------------------------------------------------------------------------------------------- */

struct gateway;
struct gateway_config;

struct gateway_timer {
    uint64_t at_ns; /* CLOCK_MONOTONIC */
    void (*due)(struct gateway_timer *timer);
    struct gateway_timer *next;
    bool set;
};

struct gateway_counters {
    uint64_t received, sent, bytes, dropped, denied, refused, bad, dead, held; /* as in gateway.proto */
};

struct gateway_binding {
    struct gateway *gateway;
    char id[GATEWAY_ID_SIZE];
    char origin[96]; /* file:line, or "" if it was made at run time */
    struct gateway_given given;
    void *settings; /* the gateway's struct of binding settings, resolved */
    void *open;     /* the gateway's own, while it is open; NULL */
    bool blocked;   /* what it writes to is full */
    struct gateway_counters counters;
    char error[GATEWAY_WHY_SIZE]; /* the last one */
    unsigned failures;
    struct gateway_timer retry;
};

/* The binding cannot go on: it is closed, the reason is logged and shown, and it is opened again later. */
void gateway_binding_fail(struct gateway_binding *binding, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Note and log something that the operator of the binding should know. */
void gateway_binding_say(struct gateway_binding *binding, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- the gateway ----------------------------------------------------------------------------------------- */

/* What a gateway brings along. */
struct gateway_kind {
    const char *name;           /* "mq": its service is ipcd.gateway.mq */
    const char *program;        /* "ipcd-mq" */
    const char *doc;            /* for --help */
    struct gateway_table own;   /* of the section [gateway], besides address and log-level */
    struct gateway_table binds; /* of the sections [bind ID] */
    bool has_rules;             /* it asks gateway->policy: there may be sections [rule NAME] */

    /* Add bindings that are there in any case to what the files and options gave. 0 or a negative errno. NULL: none. */
    int (*defaults)(struct gateway_config *config);
    /* Do the settings of a binding fit together? 0, or -EINVAL and a sentence. Pure. */
    int (*check)(const void *own, const void *binding, char why[GATEWAY_WHY_SIZE]);
    /* Once, before the first session; and at the end. 0, or a negative errno after it has logged why. NULL: nothing. */
    int (*start)(struct gateway *gateway);
    void (*stop)(struct gateway *gateway);
    /* With each session, around its bindings. 0, or a negative errno: if the session is not over, that is the end. NULL:
     * nothing. */
    int (*open)(struct gateway *gateway);
    void (*close)(struct gateway *gateway);
    /* Before each wait. Returns when it wants to be called again at the latest; UINT64_MAX: after the next event. NULL: nothing. */
    uint64_t (*round)(struct gateway *gateway);
    /* Open a binding: binding->open. 0, or a negative errno and a sentence; then unbind() is called as well. */
    int (*bind)(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
    /* Close it, whatever of it is there; also when the session is over. */
    void (*unbind)(struct gateway_binding *binding);
    /* Does a binding, open or not, use this thing, which gateway_made() was told of? And: remove it from the system. */
    bool (*uses)(const struct gateway_binding *binding, const char *made);
    void (*unmake)(const char *made);
    /* gateway->policy is another one now. False: the session has to begin anew for it. NULL: there are no rules. */
    bool (*rules_changed)(struct gateway *gateway, bool had_rules);
    /* Files that settings name are to be read again. False: the session has to begin anew for it. NULL: there are none. */
    bool (*reread)(struct gateway *gateway);
    /* An event of the connection. NULL: nobody wants to know. */
    void (*event)(struct gateway *gateway, const struct ipc_event *event);
    /* Its limits and the peers of a binding, for LIST: malloc'ed, freed by the caller; may bring its counters up to date. NULL:
     * none. */
    void (*limits)(struct gateway *gateway, Ipc__Gateway__About *about);
    void (*peers)(struct gateway_binding *binding, Ipc__Gateway__Binding *message);
};

struct gateway_source;
struct epoll_event;

struct gateway {
    const struct gateway_kind *kind;
    void *own;     /* the struct of its [gateway] settings */
    void *context; /* the kind's */
    struct policy *policy;
    ipc_connection *connection;
    bool over;     /* the session is */
    bool stopping; /* we were told to */
    bool leaving;  /* and what was made at run time is for the next gateway */

    /* common's own */
    const struct gateway_arguments *arguments;
    const struct gateway_config *config; /* at the start, from which settings are */
    char address[128], folder[128];      /* of the broker's socket; and the folder that it is in */
    char state_path[160];
    struct gateway_binding *bindings[GATEWAY_BINDINGS_MAX];
    size_t n_bindings;
    char **made;
    size_t n_made;
    uint64_t since_ns;
    ipc_server *server;
    struct gateway_source *server_source, *signal_source;
    int epoll_fd, signal_fd, lock_fd;
    struct gateway_timer *timers;
    struct epoll_event *pending; /* of the round at hand */
    int n_pending;
    struct spin spin;      /* of the loop */
    uint64_t preempted_ns; /* when it was looked how often it is, */
    long preempted;        /* and how often it had been until then */
};

/* Does everything. Returns the exit status. */
int gateway_main(const struct gateway_kind *kind, int argc, char **argv);

/* The thing of that name in the system is made by us, and removed with the last binding that uses it, even by the gateway
 * that comes after us. Call it before the thing is made. 0 or a negative errno. */
int gateway_made(struct gateway *gateway, const char *name);
void gateway_unmade(struct gateway *gateway, const char *name); /* it was not */
bool gateway_has_made(const struct gateway *gateway, const char *name);

/* A mark of a binding, which outlives the process if that is killed, and ends with an orderly end. */
void gateway_mark(struct gateway_binding *binding, bool on);
bool gateway_is_marked(const struct gateway_binding *binding);

/* Hand the connection's events to the kind: after calls on publishers and subscriptions. */
void gateway_take_events(struct gateway *gateway);

/* The result of a call of libipc: true if the session is over, which ends the loop's round. */
bool gateway_is_over(struct gateway *gateway, long result);

/* ---- loop.c ---------------------------------------------------------------------------------------------- */

/* A descriptor that is watched, level-triggered. Part of its owner, zeroed at first. */
struct gateway_source {
    int fd;
    bool watched;
    uint32_t events; /* EPOLLIN, EPOLLOUT; 0: none for now */
    void (*ready)(struct gateway_source *source, uint32_t events);
    void *context;
};

/* Watch it for source->events, from now on or differently. 0 or a negative errno. */
int gateway_watch(struct gateway *gateway, struct gateway_source *source, uint32_t events);
/* No more; it will not be called again. Before its descriptor is closed. */
void gateway_unwatch(struct gateway *gateway, struct gateway_source *source);

/* Call timer->due() once at that time, instead of a time set before; 0: not at all. */
void gateway_timer_set(struct gateway *gateway, struct gateway_timer *timer, uint64_t at_ns);

int gateway_loop_init(struct gateway *gateway);
void gateway_loop_done(struct gateway *gateway);
/* Until `over` or `stopping`. 0 or a negative errno. */
int gateway_loop_run(struct gateway *gateway);

/* ---- configure.c ----------------------------------------------------------------------------------------- */

struct gateway_config {
    const struct gateway_kind *kind;
    char address[128];
    uint64_t log_level;
    struct gateway_given given;
    void *own;
    struct gateway_binding *bindings[GATEWAY_BINDINGS_MAX];
    size_t n_bindings;
    char **made;
    size_t n_made;
    struct policy policy;
};

/* The binding of that id. NULL: there is none. */
struct gateway_binding *gateway_config_find(const struct gateway_config *config, const char *id);
/* The same, which is made if there is none. NULL: there are too many, or no memory. */
struct gateway_binding *gateway_config_binding(struct gateway_config *config, const char *id);
/* Read a file with its drop-ins, or a state file. Returns the number of mistakes, which were written to `errors`. */
unsigned gateway_config_load(struct gateway_config *config, const char *path, bool required, FILE *errors);
unsigned gateway_config_parse(struct gateway_config *config, const char *path, const char *text, size_t size,
                              FILE *errors);
/* Check what is given as a whole, and resolve it. */
unsigned gateway_config_resolve(struct gateway_config *config, FILE *errors);
void gateway_config_print(const struct gateway_config *config, FILE *out);
void gateway_config_init(struct gateway_config *config, const struct gateway_kind *kind);
void gateway_config_done(struct gateway_config *config);

/* A binding with nothing given. NULL: no memory. */
struct gateway_binding *gateway_binding_new(const struct gateway_kind *kind, const char *id);
struct gateway_binding *gateway_binding_free(struct gateway_binding *binding);
/* Fill in its settings from what is given. 0, or -EINVAL and a sentence. */
int gateway_binding_resolve(struct gateway_binding *binding, const struct gateway_kind *kind, const void *own,
                            char why[GATEWAY_WHY_SIZE]);
/* Is this a good id? NULL, or what is wrong. */
const char *gateway_id_check(const char *id);
void gateway_binding_print(const struct gateway_binding *binding, const struct gateway_kind *kind, FILE *out);

/* The state file: bindings made at run time, and what was made. 0 or a negative errno, which was logged. */
int gateway_state_write(struct gateway *gateway);

/* ---- bind.c, manage.c ------------------------------------------------------------------------------------ */

/* Open it now or, if that fails, later. */
void gateway_open_binding(struct gateway_binding *binding);
void gateway_close_binding(struct gateway_binding *binding);
/* Remove what no binding uses any more; all: at the end. */
void gateway_sweep(struct gateway *gateway, bool all);

/* By BIND and UNBIND. 0, or a negative errno and a sentence. What is unbound is the caller's to free. */
int gateway_bind(struct gateway *gateway, const Ipc__Gateway__Request *request, struct gateway_binding **ret,
                 char why[GATEWAY_WHY_SIZE]);
int gateway_unbind(struct gateway *gateway, struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
struct gateway_binding *gateway_find(struct gateway *gateway, const char *id);

struct gateway_changes {
    unsigned added, changed, gone;
};
/* The configured bindings are those of `config` from now on, which has none then. What is as it was is left alone, and so is what
 * was made at run time, unless there is one of the same id now. */
void gateway_take_bindings(struct gateway *gateway, struct gateway_config *config,
                           struct gateway_changes *changes);

/* By the rules, if there are any, and the reason. */
bool gateway_explain(const struct gateway *gateway, const struct identity *identity, enum verb verb,
                     const char *name, char why[GATEWAY_WHY_SIZE]);

int gateway_manage_start(struct gateway *gateway);
void gateway_manage_stop(struct gateway *gateway);

#endif
