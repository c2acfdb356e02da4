/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl pub: publish arguments, or what comes in on stdin. Between messages it listens to the broker, so that
 * readers join at once and not with the next message.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/admin.h"
#include "tools/input.h"
#include "tools/ipcctl.h"

enum { KEY_TYPE = 0x2000, KEY_RETAIN, KEY_WHOLE, KEY_REPEAT, KEY_SIZE_MAX };

struct pub_arguments {
    struct tool *tool;
    const char *topic;
    char **data; /* data_count arguments; none: stdin */
    int data_count;
    struct ipc_header headers[IPC_MAX_HEADERS];
    size_t header_count;
    const char *type;
    bool retain, whole, null;
    unsigned wait;
    uint64_t repeat; /* 0: without end */
    uint64_t count;  /* 0: all */
    uint64_t size_max;
    int64_t interval_ns;
};

static const struct argp_option options[] = {
    {"header", 'H', "NAME=VALUE", 0, "A header of each message; may be given up to 64 times", 0},
    {"type", KEY_TYPE, "TYPE", 0, "Content type of each message, such as application/json", 0},
    {"retain", KEY_RETAIN, NULL, 0, "Keep the newest messages for readers that come after this ends", 0},
    {"wait", 'w', "N", OPTION_ARG_OPTIONAL, "First wait until N readers are there (1; taps do not count)", 0},
    {"whole", KEY_WHOLE, NULL, 0, "All of stdin is one message", 0},
    {"null", '0', NULL, 0, "A NUL byte ends each message on stdin, not a newline", 0},
    {"repeat", KEY_REPEAT, "N", OPTION_ARG_OPTIONAL,
     "Publish the arguments N times; without N until interrupted", 0},
    {"interval", 'i', "SECONDS", 0, "Wait this long between messages", 0},
    {"count", 'n', "N", 0, "End after N messages", 0},
    {"size-max", KEY_SIZE_MAX, "BYTES", 0, "Room for messages from stdin of up to this size (default 131064)",
     0},
    {0}};

static void check(struct argp_state *state, const struct pub_arguments *arguments)
{
    if (!arguments->topic)
        argp_error(state, "which TOPIC?");
    bool from_stdin = arguments->data_count == 0;
    if (!from_stdin && (arguments->whole || arguments->null))
        argp_error(state, "--whole and --null are about stdin, but there are messages as arguments");
    if (arguments->whole && arguments->null)
        argp_error(state, "--whole and --null exclude each other");
    if (from_stdin && arguments->repeat != 1)
        argp_error(state, "--repeat needs messages as arguments, stdin is read once");
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct pub_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'H':
        tool_parse_header(state, value, arguments->headers, &arguments->header_count);
        return 0;
    case KEY_TYPE:
        if (!*value || strlen(value) > 255)
            argp_error(state, "--type: a content type has 1 to 255 bytes");
        arguments->type = value;
        return 0;
    case KEY_RETAIN:
        arguments->retain = true;
        return 0;
    case 'w':
        arguments->wait = value ? (unsigned)tool_parse_number(state, "--wait", value, 0, IPC_MAX_LANE_READERS)
                                : 1;
        return 0;
    case KEY_WHOLE:
        arguments->whole = true;
        return 0;
    case '0':
        arguments->null = true;
        return 0;
    case KEY_REPEAT:
        arguments->repeat = value ? tool_parse_number(state, "--repeat", value, 0, UINT64_MAX) : 0;
        return 0;
    case 'i':
        arguments->interval_ns = tool_parse_seconds(state, "--interval", value);
        if (arguments->interval_ns == IPC_FOREVER)
            arguments->interval_ns = 0;
        return 0;
    case 'n':
        arguments->count = tool_parse_number(state, "--count", value, 1, UINT64_MAX);
        return 0;
    case KEY_SIZE_MAX:
        arguments->size_max = tool_parse_number(state, "--size-max", value, 1, IPC_MAX_MESSAGE_SIZE);
        return 0;
    case ARGP_KEY_ARG:
        if (!arguments->topic) {
            tool_parse_name(state, value, false);
            arguments->topic = value;
        } else {
            if (!arguments->data)
                arguments->data = tool_alloc(NULL, (size_t)state->argc * sizeof(*arguments->data));
            arguments->data[arguments->data_count++] = value;
        }
        return 0;
    case ARGP_KEY_END:
        check(state, arguments);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

struct pub {
    const struct pub_arguments *arguments;
    struct tool_session session;
    ipc_publisher *publisher;
    struct input input;
    int interrupt_fd;
    int connection_fd;
    bool was_away; /* the broker */
    uint64_t published;
    uint64_t next_ns; /* when the next message is due */
};

static int wait_readers(struct pub *pub)
{
    int64_t timeout = tool_timeout(pub->arguments->tool);
    uint64_t start = tool_now_ns();
    while (!tool_interrupted()) {
        /* In slices, because a signal does not end the call. */
        int64_t slice = 200000000, waited = (int64_t)(tool_now_ns() - start);
        if (timeout != IPC_FOREVER && timeout - waited < slice)
            slice = timeout > waited ? timeout - waited : 0;
        int r = ipc_publisher_wait_readers(pub->publisher, pub->arguments->wait, slice);
        if (r >= 0)
            return TOOL_OK;
        if (r != -ETIMEDOUT && r != -EAGAIN)
            return tool_fail_error(pub->arguments->topic, r, NULL);
        if (timeout != IPC_FOREVER && (int64_t)(tool_now_ns() - start) >= timeout)
            return tool_fail(TOOL_TIMEOUT, pub->arguments->topic,
                             "fewer than %u readers came in time; %s was published; --timeout waits longer",
                             pub->arguments->wait, pub->published ? "not all" : "nothing");
    }
    return TOOL_INTERRUPTED;
}

/* Whether the broker is there; let in who came. Returns TOOL_OK or the status to end with. */
static int look(struct pub *pub)
{
    struct ipc_event event;
    int r;
    while ((r = ipc_connection_next_event(pub->session.connection, &event)) == 1 || r == -EOVERFLOW)
        if (r == 1 && tool_session_event(&pub->session, &event))
            pub->was_away = true;
    int status = tool_session_check(&pub->session);
    if (status != TOOL_OK || pub->session.away_until_ns)
        return status;
    r = ipc_publisher_wait_readers(pub->publisher, 0, 0);
    if (r < 0)
        return tool_fail_error(pub->arguments->topic, r, NULL);
    bool again = pub->was_away && pub->arguments->wait > 0;
    pub->was_away = false;
    return again ? wait_readers(pub) : TOOL_OK;
}

/* Wait until stdin has something (fd >= 0) or until a time (not 0), and the broker is there; serve it meanwhile. Returns
 * TOOL_OK or the status to end with. */
static int wait_until(struct pub *pub, int fd, uint64_t until_ns)
{
    while (!tool_interrupted()) {
        int status = look(pub);
        bool away = pub->session.away_until_ns != 0;
        if (status != TOOL_OK || (!away && until_ns != 0 && tool_now_ns() >= until_ns))
            return status;
        struct timespec left;
        const struct timespec *timeout = tool_session_sleep(&pub->session, away ? 0 : until_ns, &left);
        struct pollfd fds[] = {{.fd = pub->interrupt_fd, .events = POLLIN},
                               {.fd = pub->connection_fd, .events = POLLIN},
                               {.fd = away ? -1 : fd, .events = POLLIN}};
        int r = ppoll(fds, 3, timeout, NULL);
        if (r < 0 && errno != EINTR)
            return tool_fail(TOOL_FAILED, "poll", "%s", strerror(errno));
        if (r > 0 && fds[1].revents)
            tool_session_dispatch(&pub->session);
        else if (r > 0 && fds[2].revents)
            return TOOL_OK;
    }
    return TOOL_INTERRUPTED;
}

/* One message. Returns TOOL_OK or the status to end with. */
static int publish(struct pub *pub, const void *data, size_t size)
{
    const struct pub_arguments *arguments = pub->arguments;
    int status = wait_until(pub, -1, pub->next_ns ? pub->next_ns : 1);
    if (status != TOOL_OK)
        return status;
    if (arguments->interval_ns > 0)
        pub->next_ns = (pub->next_ns ? pub->next_ns : tool_now_ns()) + (uint64_t)arguments->interval_ns;
    struct ipc_publish how = IPC_PUBLISH_INIT;
    how.content_type = arguments->type;
    how.headers = arguments->headers;
    how.header_count = arguments->header_count;
    struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    int r = ipc_publisher_publishv(pub->publisher, &piece, 1, &how);
    if (r == -EMSGSIZE)
        return tool_fail(TOOL_FAILED, arguments->topic,
                         "message %" PRIu64 " of %zu bytes is too large; --size-max makes room for it",
                         pub->published + 1, size);
    if (r == -E2BIG)
        return tool_fail(TOOL_FAILED, arguments->topic, "the headers have more than %u bytes",
                         IPC_MAX_HEADERS_SIZE);
    if (r < 0)
        return tool_fail_error(arguments->topic, r, NULL);
    pub->published++;
    return TOOL_OK;
}

static bool enough(const struct pub *pub)
{
    return pub->arguments->count > 0 && pub->published >= pub->arguments->count;
}

static int publish_arguments(struct pub *pub)
{
    const struct pub_arguments *arguments = pub->arguments;
    for (uint64_t round = 0; arguments->repeat == 0 || round < arguments->repeat; round++)
        for (int i = 0; i < arguments->data_count; i++) {
            if (enough(pub))
                return TOOL_OK;
            int status = publish(pub, arguments->data[i], strlen(arguments->data[i]));
            if (status != TOOL_OK)
                return status;
        }
    return TOOL_OK;
}

static int publish_input(struct pub *pub)
{
    while (!enough(pub)) {
        const char *data = NULL;
        size_t size = 0;
        int r = input_next(&pub->input, &data, &size);
        if (r == 0)
            return TOOL_OK;
        int status = TOOL_OK;
        if (r == 1) {
            status = publish(pub, data, size);
        } else {
            status = wait_until(pub, pub->input.fd, 0);
            r = status == TOOL_OK ? input_fill(&pub->input) : 0;
            if (r < 0 && r != -EINTR)
                status = tool_fail(TOOL_FAILED, "stdin", "%s", strerror(-r));
        }
        if (status != TOOL_OK)
            return status;
    }
    return TOOL_OK;
}

/* --whole: the size must be known before the lane is made. */
static int read_whole(struct pub *pub)
{
    while (!pub->input.ended) {
        struct pollfd fds[] = {{.fd = pub->interrupt_fd, .events = POLLIN},
                               {.fd = pub->input.fd, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return tool_fail(TOOL_FAILED, "poll", "%s", strerror(errno));
        if (tool_interrupted())
            return TOOL_INTERRUPTED;
        int r = fds[1].revents ? input_fill(&pub->input) : 0;
        if (r < 0 && r != -EINTR)
            return tool_fail(TOOL_FAILED, "stdin", "%s", strerror(-r));
        if (pub->input.end > IPC_MAX_MESSAGE_SIZE)
            return tool_fail(TOOL_FAILED, "stdin",
                             "a message has at most %u bytes; without --whole each line is one",
                             IPC_MAX_MESSAGE_SIZE);
    }
    return TOOL_OK;
}

/* Room for the largest message with its headers; 0: the default has it. */
static uint32_t size_max(const struct pub *pub)
{
    const struct pub_arguments *arguments = pub->arguments;
    size_t size = arguments->whole ? pub->input.end : 0;
    for (int i = 0; i < arguments->data_count; i++)
        if (strlen(arguments->data[i]) > size)
            size = strlen(arguments->data[i]);
    if (arguments->size_max > size)
        size = arguments->size_max;
    size += 64 + (arguments->type ? strlen(arguments->type) + 4 : 0); /* 64: the block, the time, rounding */
    for (size_t i = 0; i < arguments->header_count; i++)
        size += 4 + strlen(arguments->headers[i].name) + arguments->headers[i].value_size;
    if (size <= IPC_RING_SIZE_DEFAULT / 2 - 8)
        return 0;
    return size < IPC_MAX_MESSAGE_SIZE ? (uint32_t)size : IPC_MAX_MESSAGE_SIZE;
}

/* The readers of a new lane are announced right after the answer that the lane is there. Once the broker has answered
 * something else to somebody else, they have been: so that whoever is subscribed gets the first message, too. */
static int settle(const struct pub *pub)
{
    _cleanup_admin_ struct admin *admin = NULL;
    return admin_open(&admin, pub->arguments->tool);
}

static int open_publisher(struct pub *pub)
{
    const struct pub_arguments *arguments = pub->arguments;
    int status = tool_session_open(&pub->session, arguments->tool, "ipcctl pub");
    if (status != TOOL_OK)
        return status;
    struct ipc_publisher_options publisher_options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error = {0};
    publisher_options.message_size_max = size_max(pub);
    publisher_options.flags = IPC_PUBLISHER_TIMESTAMP | (arguments->retain ? IPC_PUBLISHER_RETAIN : 0);
    publisher_options.block_max_ns = tool_timeout(arguments->tool);
    int r = ipc_publisher_open(&pub->publisher, pub->session.connection, arguments->topic, &publisher_options,
                               &error);
    if (r < 0)
        return tool_fail_error(arguments->topic, r, &error);
    pub->connection_fd = ipc_connection_fd(pub->session.connection);
    if (pub->connection_fd < 0)
        return tool_fail_error(arguments->topic, pub->connection_fd, NULL);
    return settle(pub);
}

/* A person at a terminal is told when nobody listened; and everybody, when a reader was lost. */
static void tell(const struct pub *pub)
{
    struct ipc_publisher_stats stats;
    if (ipc_publisher_stats(pub->publisher, &stats) < 0)
        return;
    if (stats.detached > 0)
        tool_fail(TOOL_OK, pub->arguments->topic,
                  "%" PRIu64 " readers held it up for too long and were detached; --timeout waits longer",
                  stats.detached);
    else if (stats.readers == 0 && pub->published > 0 && !pub->arguments->retain && isatty(STDERR_FILENO))
        tool_fail(TOOL_OK, pub->arguments->topic,
                  "nobody was reading; --wait waits for a reader, --retain keeps messages for later ones");
}

int cmd_pub(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "TOPIC [DATA...]",
        .doc =
            "Publish each DATA as one message, or without DATA each line of stdin.\v"
            "DATA that begins with a dash stands after `--'. Readers that block may hold it up for as long as "
            "--timeout says, then they are detached."};
    struct pub_arguments arguments = {.tool = tool, .repeat = 1};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    struct pub pub = {
        .arguments = &arguments,
        .input = {.fd = STDIN_FILENO, .whole = arguments.whole, .delimiter = arguments.null ? '\0' : '\n'}};
    pub.interrupt_fd = tool_catch_signals();
    int status = pub.interrupt_fd < 0 ? tool_fail(TOOL_FAILED, "eventfd", "%s", strerror(errno)) : TOOL_OK;
    if (status == TOOL_OK && arguments.whole)
        status = read_whole(&pub);
    if (status == TOOL_OK)
        status = open_publisher(&pub);
    if (status == TOOL_OK && arguments.wait > 0)
        status = wait_readers(&pub);
    if (status == TOOL_OK)
        status = arguments.data_count > 0 ? publish_arguments(&pub) : publish_input(&pub);
    if (pub.publisher)
        tell(&pub);
    if (status == TOOL_OK && arguments.retain && pub.session.away_until_ns)
        status = tool_fail(TOOL_NO_BROKER, arguments.topic, "the broker is away, so that nothing is kept");
    ipc_connection_close(pub.session.connection);
    input_done(&pub.input);
    free(arguments.data);
    return status;
}
