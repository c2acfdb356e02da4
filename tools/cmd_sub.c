/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl sub: print what is published. An observer unless asked to be more: it is not counted as a reader, and
 * never makes a publisher wait.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/ipcctl.h"
#include "tools/message.h"
#include "tools/output.h"
#include "tools/text.h"

#define PATTERNS_MAX 64
#define ROUND_MAX    256 /* messages of one pattern before the others have their turn */

enum { KEY_START = 0x2000, KEY_SLOW, KEY_NO_TAP, KEY_STATS };

struct sub_arguments {
    struct tool *tool;
    const char *patterns[PATTERNS_MAX];
    size_t pattern_count;
    uint64_t count; /* 0: all */
    enum ipc_start start;
    enum ipc_slow slow;
    bool reader; /* counts as one */
    bool raw, null, bare, headers, stats;
};

static const struct argp_option options[] = {
    {"count", 'n', "N", 0, "End after N messages", 0},
    {"start", KEY_START, "WHERE", 0,
     "next (default), last or oldest: which message of a publisher is the first", 0},
    {"slow", KEY_SLOW, "HOW", 0,
     "When this reads too slowly: drop-oldest (default), block or disconnect; block implies --no-tap", 0},
    {"no-tap", KEY_NO_TAP, NULL, 0, "Be a reader that publishers count when they wait for readers", 0},
    {"raw", 'r', NULL, 0, "Print the payload alone, as it is", 0},
    {"null", '0', NULL, 0, "End each message with a NUL byte instead of a newline", 0},
    {"no-newline", 'N', NULL, 0, "End messages with nothing", 0},
    {"headers", 'H', NULL, 0, "Also number, sender, time, content type and headers", 0},
    {"stats", KEY_STATS, NULL, 0, "In the end tell on stderr how many messages came, and how many were lost",
     0},
    {0}};

static unsigned word_index(struct argp_state *state, const char *option, const char *value,
                           const char *const *words)
{
    for (unsigned i = 0; words[i]; i++)
        if (strcmp(value, words[i]) == 0)
            return i;
    argp_error(state, "%s: '%s' is none of %s, %s, %s", option, value, words[0], words[1], words[2]);
    return 0;
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    static const char *const starts[] = {"next", "last", "oldest", NULL};
    static const char *const slows[] = {"drop-oldest", "block", "disconnect", NULL};
    struct sub_arguments *arguments = state->input;
    unsigned index;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'n':
        arguments->count = tool_parse_number(state, "--count", value, 1, UINT64_MAX);
        return 0;
    case KEY_START:
        index = word_index(state, "--start", value, starts);
        arguments->start = (enum ipc_start)index;
        return 0;
    case KEY_SLOW:
        index = word_index(state, "--slow", value, slows);
        arguments->slow = (enum ipc_slow)index;
        return 0;
    case KEY_NO_TAP:
        arguments->reader = true;
        return 0;
    case 'r':
        arguments->raw = true;
        return 0;
    case '0':
        arguments->null = true;
        return 0;
    case 'N':
        arguments->bare = true;
        return 0;
    case 'H':
        arguments->headers = true;
        return 0;
    case KEY_STATS:
        arguments->stats = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->pattern_count == PATTERNS_MAX)
            argp_error(state, "at most %d patterns", PATTERNS_MAX);
        tool_parse_name(state, value, true);
        arguments->patterns[arguments->pattern_count++] = value;
        return 0;
    case ARGP_KEY_END:
        if (arguments->pattern_count == 0)
            argp_error(state, "which PATTERN? '>' means every topic");
        if (arguments->raw && (arguments->headers || arguments->tool->json))
            argp_error(state, "--raw prints the payload alone: not with --headers or --json");
        if (arguments->null && arguments->bare)
            argp_error(state, "--null and --no-newline exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

struct sub {
    const struct sub_arguments *arguments;
    struct message_format format;
    struct tool_session session;
    ipc_subscription *subscriptions[PATTERNS_MAX];
    void *buffer;
    size_t capacity;
    int interrupt_fd;
    int connection_fd;
    uint64_t start_ns;
    uint64_t received, bytes, lost;
    uint64_t lost_unsaid, lost_say_ns; /* what the person was not told yet, and not before when */
};

static bool enough(const struct sub *sub)
{
    return sub->arguments->count > 0 && sub->received >= sub->arguments->count;
}

/* What a person should know about publishers: why one is not read any more. */
static void take_events(struct sub *sub)
{
    struct ipc_event event;
    int r;
    while ((r = ipc_connection_next_event(sub->session.connection, &event)) != 0) {
        if (r == -EOVERFLOW)
            continue;
        if (r < 0)
            return;
        if (tool_session_event(&sub->session, &event))
            continue;
        bool bad = event.reason == IPC_REASON_SLOW || event.reason == IPC_REASON_LIMIT ||
                   event.reason == IPC_REASON_CORRUPT || event.reason == IPC_REASON_DENIED;
        if (event.kind == IPC_EVENT_WRITER_LEFT && bad)
            tool_fail(TOOL_OK, event.topic, "detached from session %" PRIu64 " (%s): %s", event.peer.session,
                      event.peer.name, ipc_reason_text(event.reason));
    }
}

/* A person at a terminal is told of losses, at most once a second. */
static void tell_loss(struct sub *sub)
{
    uint64_t now = tool_now_ns();
    if (sub->arguments->tool->json || now < sub->lost_say_ns || !isatty(STDERR_FILENO))
        return;
    tool_fail(TOOL_OK, "too slow", "%" PRIu64 " messages lost; --slow=block makes publishers wait",
              sub->lost_unsaid);
    sub->lost_unsaid = 0;
    sub->lost_say_ns = now + 1000000000u;
}

/* Print up to ROUND_MAX messages of a subscription. Returns 1 if there may be more, 0 if not, or a negative
 * errno. */
static int drain(struct sub *sub, ipc_subscription *subscription)
{
    for (int i = 0; i < ROUND_MAX && !enough(sub) && !tool_interrupted(); i++) {
        struct ipc_message message;
        ssize_t size = ipc_subscription_receive(subscription, sub->buffer, sub->capacity, &message, 0);
        if (size == -EMSGSIZE) {
            sub->capacity = message.size;
            sub->buffer = tool_alloc(sub->buffer, sub->capacity);
            continue;
        }
        if (size < 0)
            return size == -EAGAIN || size == -ETIMEDOUT ? 0 : (int)size;
        message_print(&sub->format, &message);
        if (tool_stdout_gone())
            return 0;
        sub->received++;
        sub->bytes += message.size;
        sub->lost += message.lost;
        sub->lost_unsaid += message.lost;
        if (sub->lost_unsaid > 0)
            tell_loss(sub);
    }
    return 1;
}

static bool timed_out(const struct sub *sub)
{
    return sub->session.deadline_ns != 0 && tool_now_ns() >= sub->session.deadline_ns;
}

/* Sleep until there is something to do. Returns TOOL_OK, or the status to end with. */
static int sleep_until_news(struct sub *sub)
{
    if (timed_out(sub)) {
        if (sub->arguments->count == 0)
            return TOOL_OK;
        return tool_fail(TOOL_TIMEOUT, sub->arguments->patterns[0],
                         "%" PRIu64 " of %" PRIu64 " messages came in time", sub->received,
                         sub->arguments->count);
    }
    struct timespec left;
    const struct timespec *timeout = tool_session_sleep(&sub->session, sub->session.deadline_ns, &left);
    struct pollfd fds[] = {{.fd = sub->interrupt_fd, .events = POLLIN},
                           {.fd = sub->connection_fd, .events = POLLIN},
                           {.fd = STDOUT_FILENO, .events = 0}}; /* only: nobody reads it any more */
    if (ppoll(fds, 3, timeout, NULL) < 0 && errno != EINTR)
        return tool_fail(TOOL_FAILED, "poll", "%s", strerror(errno));
    if (fds[2].revents & (POLLERR | POLLHUP))
        return -1;
    return TOOL_OK;
}

/* Until it is enough, the time is over, nobody listens or somebody interrupts. */
static int run(struct sub *sub)
{
    while (!tool_interrupted() && !enough(sub)) {
        bool more = false;
        tool_session_dispatch(&sub->session);
        for (size_t i = 0; i < sub->arguments->pattern_count && !enough(sub); i++) {
            int r = drain(sub, sub->subscriptions[i]);
            if (tool_stdout_gone())
                return TOOL_OK;
            if (r < 0 && r != -EPIPE)
                return tool_fail_error(sub->arguments->patterns[i], r, NULL);
            more = more || r > 0;
        }
        take_events(sub);
        if (enough(sub) || (more && !timed_out(sub)))
            continue;
        if (fflush(stdout) != 0)
            return tool_stdout_gone() ? TOOL_OK : TOOL_FAILED;
        int status = tool_session_check(&sub->session);
        if (status == TOOL_OK)
            status = sleep_until_news(sub);
        if (status != TOOL_OK)
            return status < 0 ? TOOL_OK : status;
        if (sub->arguments->count == 0 && timed_out(sub))
            return tool_session_check(&sub->session);
    }
    return enough(sub) ? TOOL_OK : TOOL_INTERRUPTED;
}

static int open_all(struct sub *sub)
{
    const struct sub_arguments *arguments = sub->arguments;
    struct tool bounded = *arguments->tool; /* --timeout is about messages; 0 of it means the default here */
    if (bounded.timeout_ns == IPC_FOREVER || bounded.timeout_ns > TOOL_TIMEOUT_NS)
        bounded.timeout_ns = TOOL_UNSET;
    int status = tool_session_open(&sub->session, &bounded, "ipcctl sub");
    if (status != TOOL_OK)
        return status;
    sub->session.patience_ns = tool_timeout(arguments->tool);
    if (arguments->tool->timeout_ns != TOOL_UNSET && arguments->tool->timeout_ns != IPC_FOREVER)
        sub->session.deadline_ns = sub->start_ns + (uint64_t)arguments->tool->timeout_ns;
    struct ipc_subscription_options subscription_options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    subscription_options.start = arguments->start;
    subscription_options.slow = arguments->slow;
    subscription_options.spin_max_ns = 0;
    bool tap = !arguments->reader && arguments->slow != IPC_SLOW_BLOCK;
    subscription_options.flags = tap ? IPC_SUBSCRIPTION_TAP : 0;
    for (size_t i = 0; i < arguments->pattern_count; i++) {
        struct ipc_error error = {0};
        int r = ipc_subscription_open(&sub->subscriptions[i], sub->session.connection, arguments->patterns[i],
                                      &subscription_options, &error);
        if (r < 0)
            return tool_fail_error(arguments->patterns[i], r, &error);
    }
    sub->connection_fd = ipc_connection_fd(sub->session.connection);
    if (sub->connection_fd < 0)
        return tool_fail_error("connect", sub->connection_fd, NULL);
    return TOOL_OK;
}

static void print_stats(const struct sub *sub)
{
    uint64_t elapsed_ns = tool_now_ns() - sub->start_ns;
    if (sub->arguments->tool->json) {
        json_t *document = json_object();
        output_set(document, "received", output_number(sub->received));
        output_set(document, "bytes", output_number(sub->bytes));
        output_set(document, "lost", output_number(sub->lost));
        output_set(document, "elapsed_ns", output_number(elapsed_ns));
        _cleanup_free_ char *text = json_dumps(document, JSON_COMPACT);
        json_decref(document);
        fprintf(stderr, "%s\n", text ? text : "");
        return;
    }
    char bytes[TEXT_NUMBER_SIZE], elapsed[TEXT_NUMBER_SIZE], rate[TEXT_NUMBER_SIZE];
    double seconds = (double)elapsed_ns / 1e9;
    uint64_t per_second = seconds > 0 ? (uint64_t)((double)sub->received / seconds) : 0;
    fprintf(stderr, "%" PRIu64 " messages (%s) in %s, %s/s; %" PRIu64 " lost\n", sub->received,
            text_bytes(bytes, sub->bytes), text_duration(elapsed, elapsed_ns), text_count(rate, per_second),
            sub->lost);
}

int cmd_sub(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "PATTERN...",
        .doc =
            "Print the messages of every topic that matches a PATTERN: `*' stands for one level, a final `>' for "
            "one or more. Quote patterns, so that the shell leaves them alone.\v"
            "It ends on SIGINT, after --count messages, or after --timeout. Each message is a line: the topic, a "
            "space, the payload with control bytes escaped. It only watches, unless --no-tap or --slow=block."};
    struct sub_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    struct sub sub = {.arguments = &arguments,
                      .format = {.tool = tool,
                                 .raw = arguments.raw,
                                 .headers = arguments.headers,
                                 .delimiter = arguments.null   ? '\0'
                                              : arguments.bare ? -1
                                                               : '\n'},
                      .start_ns = tool_now_ns()};
    sub.capacity = 65536;
    sub.buffer = tool_alloc(NULL, sub.capacity);
    sub.interrupt_fd = tool_catch_signals();
    int status = sub.interrupt_fd < 0 ? tool_fail(TOOL_FAILED, "eventfd", "%s", strerror(errno))
                                      : open_all(&sub);
    bool opened = status == TOOL_OK;
    if (opened)
        status = run(&sub);
    /* Who ends it by hand wants to know what there was. */
    if (opened && (arguments.stats || (status == TOOL_INTERRUPTED && isatty(STDERR_FILENO)))) {
        fflush(stdout);
        print_stats(&sub);
    }
    ipc_connection_close(sub.session.connection);
    free(sub.buffer);
    return status;
}
