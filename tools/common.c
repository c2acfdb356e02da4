/* SPDX-License-Identifier: Apache-2.0
 *
 * The global options, errors, signals and the end of the program.
 */
#include "tools/ipcctl.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "proto/limits.h"
#include "proto/name.h"
#include "tools/text.h"

/* ---- options ------------------------------------------------------------------------------------------------ */

enum { KEY_JSON = 0x1000, KEY_TIMEOUT, KEY_ADDRESS, KEY_NO_HEADER, KEY_COLOR };

static const struct argp_option options[] = {
    {"json", KEY_JSON, NULL, 0, "Print JSON: one document, or one object a line for a stream",
     TOOL_GROUP_GLOBAL},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "Give up after this time; 0: never (default 5)",
     TOOL_GROUP_GLOBAL},
    {"address", KEY_ADDRESS, "PATH", 0,
     "The broker's socket (default: $IPC_ADDRESS, the user's own, the system's)", TOOL_GROUP_GLOBAL},
    {"no-header", KEY_NO_HEADER, NULL, 0, "Leave out the first line of tables", TOOL_GROUP_GLOBAL},
    {"color", KEY_COLOR, "WHEN", OPTION_ARG_OPTIONAL, "auto (default), never or always", TOOL_GROUP_GLOBAL},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct tool *tool = state->input;
    switch (key) {
    case KEY_JSON:
        tool->json = true;
        return 0;
    case KEY_TIMEOUT:
        tool->timeout_ns = tool_parse_seconds(state, "--timeout", value);
        return 0;
    case KEY_ADDRESS:
        if (strlen(value) > IPC_MAX_ADDRESS_SIZE || !*value)
            argp_error(state, "--address: the path of a socket has 1 to %u bytes", IPC_MAX_ADDRESS_SIZE);
        tool->address = value;
        return 0;
    case KEY_NO_HEADER:
        tool->no_header = true;
        return 0;
    case KEY_COLOR:
        if (!value || strcmp(value, "always") == 0)
            tool->color = TOOL_COLOR_ALWAYS;
        else if (strcmp(value, "never") == 0)
            tool->color = TOOL_COLOR_NEVER;
        else if (strcmp(value, "auto") == 0)
            tool->color = TOOL_COLOR_AUTO;
        else
            argp_error(state, "--color: '%s' is none of auto, never, always", value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

const struct argp tool_argp = {.options = options, .parser = parse};
const struct argp_child tool_argp_children[] = {
    {&tool_argp, 0, "Options of every command:", TOOL_GROUP_GLOBAL}, {0}};

int64_t tool_parse_seconds(struct argp_state *state, const char *option, const char *text)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(seconds) || seconds < 0 || seconds > 1e9)
        argp_error(state, "%s: '%s' is not a time in seconds from 0 to 1e9, such as 2 or 0.5", option, text);
    if (seconds <= 0)
        return IPC_FOREVER;
    int64_t ns = (int64_t)(seconds * 1e9);
    return ns > 0 ? ns : 1;
}

uint64_t tool_parse_number(struct argp_state *state, const char *option, const char *text, uint64_t min,
                           uint64_t max)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || number < min || number > max)
        argp_error(state, "%s: '%s' is not a whole number from %llu to %llu", option, text,
                   (unsigned long long)min, (unsigned long long)max);
    return number;
}

void tool_parse_name(struct argp_state *state, const char *text, bool pattern)
{
    const char *wrong = ipc_name_check(text, pattern);
    if (!wrong)
        return;
    _cleanup_free_ char *escaped = text_escaped(text, strlen(text));
    argp_error(state, "'%s' is not a valid name%s: %s", escaped, pattern ? " or pattern" : "", wrong);
}

void tool_parse_header(struct argp_state *state, char *text, struct ipc_header *headers, size_t *count)
{
    char *value = strchr(text, '=');
    if (!value || value == text || value - text > 255) {
        argp_error(state, "--header: '%s' is not NAME=VALUE with a name of 1 to 255 bytes", text);
        return;
    }
    if (*count == IPC_MAX_HEADERS)
        argp_error(state, "--header: a message has at most %u headers", IPC_MAX_HEADERS);
    *value++ = '\0';
    if (strlen(value) > UINT16_MAX)
        argp_error(state, "--header: the value of '%s' is longer than 65535 bytes", text);
    headers[(*count)++] = (struct ipc_header){.name = text, .value = value, .value_size = strlen(value)};
}

/* ---- errors ------------------------------------------------------------------------------------------------- */

static char *fail_buffer;
static size_t fail_buffer_size;

void tool_fail_into(char *buffer, size_t size)
{
    fail_buffer = buffer;
    fail_buffer_size = size;
}

int tool_fail(int status, const char *what, const char *format, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (size < 0)
        text = NULL;
    if (fail_buffer) {
        snprintf(fail_buffer, fail_buffer_size, "%s: %s", what, text ? text : "");
        return status;
    }
    fflush(stdout); /* in the order in which it happened */
    /* One write, so that lines of several processes do not mix. */
    _cleanup_free_ char *line = NULL;
    size_t line_size = 0;
    FILE *out = open_memstream(&line, &line_size);
    if (!out)
        return status;
    fputs("ipcctl: ", out);
    text_escape(out, what, strlen(what));
    fputs(": ", out);
    if (text)
        text_escape(out, text, (size_t)size);
    fputc('\n', out);
    if (fclose(out) == 0)
        fwrite(line, 1, line_size, stderr);
    return status;
}

static int status_of(int code)
{
    switch (code) {
    case -ENOENT:
    case -ENOTSOCK:
    case -EPROTOTYPE:
    case -ECONNREFUSED:
    case -ECONNRESET:
    case -EPIPE:
    case -EACCES:
    case -EPERM:
    case -EPROTO:
    case -EPROTONOSUPPORT:
        return TOOL_NO_BROKER;
    case -ETIMEDOUT:
        return TOOL_TIMEOUT;
    default:
        return TOOL_FAILED;
    }
}

int tool_fail_error(const char *what, int code, const struct ipc_error *error)
{
    if (error && error->text[0] != '\0')
        return tool_fail(status_of(code), what, "%s", error->text);
    if (code == -ETIMEDOUT)
        return tool_fail(TOOL_TIMEOUT, what, "no answer in time; --timeout sets how long to wait");
    if (code == -EPIPE)
        return tool_fail(TOOL_NO_BROKER, what, "the broker ended the session");
    return tool_fail(status_of(code), what, "%s", strerror(-code));
}

static int connect_with(ipc_connection **ret, const struct tool *tool, const char *name, unsigned flags)
{
    struct ipc_connection_options connection_options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error = {0};
    connection_options.name = name;
    connection_options.timeout_ns = tool_timeout(tool);
    connection_options.flags = flags;
    int r = ipc_connection_open(ret, tool->address, &connection_options, &error);
    if (r == 0)
        return TOOL_OK;
    int status = tool_fail_error("connect", r, &error);
    return status == TOOL_TIMEOUT ? status : r == -EDQUOT ? TOOL_FAILED : TOOL_NO_BROKER;
}

int tool_connect(ipc_connection **ret, const struct tool *tool, const char *name)
{
    return connect_with(ret, tool, name, 0);
}

int tool_session_open(struct tool_session *session, const struct tool *tool, const char *name)
{
    *session = (struct tool_session){.patience_ns = tool_timeout(tool)};
    return connect_with(&session->connection, tool, name, IPC_CONNECTION_RECONNECT);
}

static void session_away(struct tool_session *session)
{
    session->away_until_ns = UINT64_MAX;
    if (session->patience_ns != IPC_FOREVER)
        session->away_until_ns = tool_now_ns() + (uint64_t)session->patience_ns;
    if (session->deadline_ns && session->deadline_ns < session->away_until_ns)
        session->away_until_ns = session->deadline_ns;
}

/* Events say more, but may get lost. */
void tool_session_dispatch(struct tool_session *session)
{
    int r = ipc_connection_dispatch(session->connection);
    if (r == 0)
        session->away_until_ns = 0;
    else if (r == -EAGAIN && session->away_until_ns == 0)
        session_away(session);
    else if (r == -EPIPE && session->ended == 0)
        session->ended = IPC_REASON_SHUTDOWN;
}

bool tool_session_event(struct tool_session *session, const struct ipc_event *event)
{
    if (event->kind == IPC_EVENT_RECONNECTED) {
        session->away_until_ns = 0;
        tool_fail(TOOL_OK, "broker", "it is back; this is its session %" PRIu64, event->peer.session);
    } else if (event->kind != IPC_EVENT_ENDED) {
        return false;
    } else if (event->reason == IPC_REASON_SHUTDOWN) {
        session_away(session);
        tool_fail(TOOL_OK, "broker", "it went away; waiting for it to come back");
    } else {
        session->ended = event->reason;
    }
    return true;
}

int tool_session_check(const struct tool_session *session)
{
    if (session->ended)
        return tool_fail(TOOL_NO_BROKER, "broker", "the session is over: %s",
                         ipc_reason_text(session->ended));
    if (session->away_until_ns && tool_now_ns() >= session->away_until_ns)
        return tool_fail(TOOL_NO_BROKER, "broker", "it did not come back in time; --timeout waits longer");
    return TOOL_OK;
}

const struct timespec *tool_session_sleep(const struct tool_session *session, uint64_t until_ns,
                                          struct timespec *left)
{
    uint64_t now = tool_now_ns();
    if (session->away_until_ns && (until_ns == 0 || session->away_until_ns < until_ns))
        until_ns = session->away_until_ns;
    if (until_ns == 0 || until_ns == UINT64_MAX)
        return NULL;
    uint64_t rest = until_ns > now ? until_ns - now : 0;
    *left = (struct timespec){.tv_sec = (time_t)(rest / 1000000000u), .tv_nsec = (long)(rest % 1000000000u)};
    return left;
}

void *tool_alloc(void *old, size_t size)
{
    void *memory = size < SIZE_MAX / 2 ? realloc(old, size ? size : 1) : NULL;
    if (!memory) {
        fputs("ipcctl: out of memory\n", stderr);
        _exit(TOOL_FAILED);
    }
    return memory;
}

/* ---- time, signals, the end --------------------------------------------------------------------------------- */

uint64_t tool_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static volatile sig_atomic_t interrupted;
static int interrupt_fd = -1;

static void on_signal(int number)
{
    int saved = errno;
    if (interrupted)
        _exit(TOOL_INTERRUPTED);
    interrupted = 1;
    eventfd_write(interrupt_fd, 1);
    errno = saved;
}

int tool_catch_signals(void)
{
    interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (interrupt_fd < 0)
        return -1;
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return interrupt_fd;
}

bool tool_interrupted(void)
{
    return interrupted != 0;
}

static int stdout_error; /* errno of the first failed write that was noticed */

bool tool_stdout_gone(void)
{
    if (!ferror(stdout))
        return false;
    if (stdout_error == 0)
        stdout_error = errno != 0 ? errno : EIO;
    return true;
}

int tool_finish(int status)
{
    errno = 0;
    if (fflush(stdout) != 0 && stdout_error == 0)
        stdout_error = errno;
    else if (ferror(stdout) && stdout_error == 0)
        stdout_error = errno != 0 ? errno : EPIPE;
    if (stdout_error == 0 || status != TOOL_OK)
        return status;
    if (stdout_error == EPIPE)
        return TOOL_OK;
    if (stdout_error == EINTR && tool_interrupted())
        return TOOL_INTERRUPTED;
    return tool_fail(TOOL_FAILED, "stdout", "%s", strerror(stdout_error));
}

const char *tool_user_name(char *buffer, size_t size, uint32_t uid)
{
    char memory[4096];
    struct passwd entry, *found = NULL;
    if (getpwuid_r(uid, &entry, memory, sizeof(memory), &found) == 0 && found)
        snprintf(buffer, size, "%s", found->pw_name);
    else
        snprintf(buffer, size, "%" PRIu32, uid);
    return buffer;
}
