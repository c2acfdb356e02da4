/* SPDX-License-Identifier: Apache-2.0
 *
 * What all parts of ipcctl share: the global options, the exit statuses, how it ends in error, and how it is
 * interrupted. One process, one thread.
 */
#ifndef IPC_TOOLS_IPCCTL_H
#define IPC_TOOLS_IPCCTL_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include <ipc/ipc.h>

/* Documented in ipcctl(1). */
enum tool_status {
    TOOL_OK = 0,
    TOOL_FAILED = 1,        /* the broker said no, or something here failed */
    TOOL_USAGE = 2,         /* the command line makes no sense */
    TOOL_NO_BROKER = 3,     /* no broker, not let in, or the session is over */
    TOOL_TIMEOUT = 4,       /* not done in time */
    TOOL_INTERRUPTED = 130, /* SIGINT or SIGTERM */
};

enum tool_color { TOOL_COLOR_AUTO, TOOL_COLOR_NEVER, TOOL_COLOR_ALWAYS };

#define TOOL_TIMEOUT_NS INT64_C(5000000000) /* of queries, unless --timeout says otherwise */
#define TOOL_UNSET      INT64_MIN

/* The global options; each may stand before or after the subcommand. */
struct tool {
    const char *address; /* NULL: as ipc_connection_open() finds it */
    bool json;
    bool no_header;
    enum tool_color color;
    int64_t timeout_ns; /* TOOL_UNSET, IPC_FOREVER or a time */
};

/* The timeout of one exchange with the broker. */
static inline int64_t tool_timeout(const struct tool *tool)
{
    return tool->timeout_ns == TOOL_UNSET ? TOOL_TIMEOUT_NS : tool->timeout_ns;
}

#define TOOL_GROUP_GLOBAL 100 /* the global options stand last in each help */

/* The global options as a child of a subcommand's parser; its input is the struct tool. */
extern const struct argp tool_argp;
extern const struct argp_child tool_argp_children[];

/* A subcommand: argv[0] is its name in messages. Returns an enum tool_status. */
int cmd_status(struct tool *tool, int argc, char **argv);
int cmd_ls(struct tool *tool, int argc, char **argv);
int cmd_queue(struct tool *tool, int argc, char **argv);
int cmd_clients(struct tool *tool, int argc, char **argv);
int cmd_quota(struct tool *tool, int argc, char **argv);
int cmd_events(struct tool *tool, int argc, char **argv);
int cmd_doctor(struct tool *tool, int argc, char **argv);
int cmd_policy(struct tool *tool, int argc, char **argv);
int cmd_pub(struct tool *tool, int argc, char **argv);
int cmd_sub(struct tool *tool, int argc, char **argv);
int cmd_send(struct tool *tool, int argc, char **argv);
int cmd_recv(struct tool *tool, int argc, char **argv);
int cmd_call(struct tool *tool, int argc, char **argv);
int cmd_serve(struct tool *tool, int argc, char **argv);
int cmd_gateways(struct tool *tool, int argc, char **argv);
int cmd_bind(struct tool *tool, int argc, char **argv);
int cmd_unbind(struct tool *tool, int argc, char **argv);
int cmd_bench(struct tool *tool, int argc, char **argv);

/* Say on stderr "ipcctl: WHAT: text" and return the status. Control bytes in it are escaped. */
int tool_fail(int status, const char *what, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* From now on what tool_fail() says goes there instead; NULL: to stderr again. */
void tool_fail_into(char *buffer, size_t size);

/* Say why a call of libipc or of the admin client failed: the sentence if there is one, else the errno's text.
 * Returns the status that belongs to the error. */
int tool_fail_error(const char *what, int code, const struct ipc_error *error);

/* Connect with the given options, or say why not. Returns TOOL_OK, or the status to end with. */
int tool_connect(ipc_connection **ret, const struct tool *tool, const char *name);

/* A connection that outlives its broker. */
struct tool_session {
    ipc_connection *connection;
    int64_t patience_ns;    /* how long it waits for a broker that went away; or IPC_FOREVER */
    uint64_t deadline_ns;   /* nor longer than until then; 0: none */
    uint64_t away_until_ns; /* the broker is away, and waited for until then; 0: it is there */
    unsigned ended;         /* enum ipc_reason: it is over for good */
};
/* As tool_connect(). */
int tool_session_open(struct tool_session *session, const struct tool *tool, const char *name);
/* Take in what the broker has to say, or look if it is back: when the connection's descriptor is readable. */
void tool_session_dispatch(struct tool_session *session);
/* Say on stderr that the broker went, or came back. True if the event was about that. */
bool tool_session_event(struct tool_session *session, const struct ipc_event *event);
/* TOOL_OK, or the status to end with once it is over for good. */
int tool_session_check(const struct tool_session *session);
/* How long to sleep at most: until the time (0: none), or until the broker is not waited for. NULL: for ever. */
const struct timespec *tool_session_sleep(const struct tool_session *session, uint64_t until_ns,
                                          struct timespec *left);

/* Parsers of option values; they end the program with TOOL_USAGE through argp_error(). */
int64_t tool_parse_seconds(struct argp_state *state, const char *option, const char *text);
uint64_t tool_parse_number(struct argp_state *state, const char *option, const char *text, uint64_t min,
                           uint64_t max);
void tool_parse_name(struct argp_state *state, const char *text, bool pattern);
/* NAME=VALUE, cut in two, into headers[*count] of IPC_MAX_HEADERS. */
void tool_parse_header(struct argp_state *state, char *text, struct ipc_header *headers, size_t *count);

/* From now on SIGINT and SIGTERM ask for an orderly end: they make the returned descriptor readable, and interrupt
 * a blocking system call. A second one ends the process on the spot. Returns -1 on failure. */
int tool_catch_signals(void);
bool tool_interrupted(void);

/* Flush stdout. Returns the status to end with if nobody reads it any more (quietly TOOL_OK) or it cannot be
 * written (TOOL_FAILED), else `status`. */
int tool_finish(int status);

/* True if stdout is broken for good; tool_finish() says what that means. */
bool tool_stdout_gone(void);

/* malloc and friends that end the program when there is no memory. */
void *tool_alloc(void *old, size_t size);

uint64_t tool_now_ns(void);

/* The user's name, or its number where it has none, in `buffer`. */
const char *tool_user_name(char *buffer, size_t size, uint32_t uid);

static inline void tool_freep(void *pointer)
{
    free(*(void **)pointer);
}
#define _cleanup_free_ __attribute__((cleanup(tool_freep)))

#endif
