/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl send: put arguments, a file, or what comes in on stdin into a queue, and say what became of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/input.h"
#include "tools/ipcctl.h"
#include "tools/output.h"

#define REFUSALS_SHOWN 10u

enum {
    KEY_TYPE = 0x2000,
    KEY_WHOLE,
    KEY_TTL,
    KEY_DELAY,
    KEY_ID,
    KEY_KEY,
    KEY_REPLY_TO,
    KEY_CONFIRM,
    KEY_NO_CONFIRM
};

struct send_arguments {
    struct tool *tool;
    const char *queue;
    char **data; /* data_count arguments; none: stdin or file */
    int data_count;
    const char *file;
    struct ipc_header headers[IPC_MAX_HEADERS];
    struct ipc_send how;
    bool whole, null, no_confirm;
};

static const struct argp_option options[] = {
    {"priority", 'p', "N", 0, "0 (default) to 9: higher ones are delivered first", 0},
    {"ttl", KEY_TTL, "SECONDS", 0, "It expires after this time", 0},
    {"delay", KEY_DELAY, "SECONDS", 0, "It is delivered after this time at the earliest", 0},
    {"id", KEY_ID, "ID", 0, "A queue that remembers ids takes only one message of this one", 0},
    {"key", KEY_KEY, "KEY", 0, "Messages of one key go to one consumer at a time, in order", 0},
    {"reply-to", KEY_REPLY_TO, "QUEUE", 0, "Where answers go", 0},
    {"header", 'H', "NAME=VALUE", 0, "A header of each message; may be given up to 64 times", 0},
    {"type", KEY_TYPE, "TYPE", 0, "Content type of each message, such as application/json", 0},
    {"file", 'f', "FILE", 0, "Send what is in FILE as one message", 0},
    {"whole", KEY_WHOLE, NULL, 0, "All of stdin is one message", 0},
    {"null", '0', NULL, 0, "A NUL byte ends each message on stdin, not a newline", 0},
    {"confirm", KEY_CONFIRM, NULL, 0, "Wait until the queue has accepted or refused all of them (default)",
     0},
    {"no-confirm", KEY_NO_CONFIRM, NULL, 0, "Do not wait for that", 0},
    {0}};

static size_t text_size(struct argp_state *state, const char *option, const char *value)
{
    if (!*value || strlen(value) > 255)
        argp_error(state, "%s: 1 to 255 bytes", option);
    return strlen(value);
}

static uint64_t seconds(struct argp_state *state, const char *option, const char *value)
{
    int64_t ns = tool_parse_seconds(state, option, value);
    return ns == IPC_FOREVER ? UINT64_MAX : (uint64_t)ns;
}

static void check(struct argp_state *state, const struct send_arguments *arguments)
{
    if (!arguments->queue)
        argp_error(state, "to which QUEUE?");
    int sources = (arguments->data_count > 0) + (arguments->file != NULL) +
                  (arguments->whole || arguments->null);
    if (sources > 1 || (arguments->whole && arguments->null))
        argp_error(state, "messages come from arguments, from --file, or from stdin (--whole or --null)");
    if (arguments->how.id && arguments->data_count != 1 && !arguments->whole && !arguments->file)
        argp_error(state, "--id: that would make duplicates of all messages but the first");
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct send_arguments *arguments = state->input;
    struct ipc_send *how = &arguments->how;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'p':
        how->priority = (unsigned)tool_parse_number(state, "--priority", value, 0, IPC_PRIORITIES - 1);
        return 0;
    case KEY_TTL:
        how->ttl_ns = seconds(state, "--ttl", value);
        return 0;
    case KEY_DELAY:
        how->delay_ns = seconds(state, "--delay", value);
        return 0;
    case KEY_ID:
        how->id_size = text_size(state, "--id", value);
        how->id = value;
        return 0;
    case KEY_KEY:
        how->key_size = text_size(state, "--key", value);
        how->key = value;
        return 0;
    case KEY_REPLY_TO:
        tool_parse_name(state, value, false);
        how->reply_to = value;
        return 0;
    case 'H':
        tool_parse_header(state, value, arguments->headers, &how->header_count);
        how->headers = arguments->headers;
        return 0;
    case KEY_TYPE:
        text_size(state, "--type", value);
        how->content_type = value;
        return 0;
    case 'f':
        arguments->file = value;
        return 0;
    case KEY_WHOLE:
        arguments->whole = true;
        return 0;
    case '0':
        arguments->null = true;
        return 0;
    case KEY_CONFIRM:
    case KEY_NO_CONFIRM:
        arguments->no_confirm = key == KEY_NO_CONFIRM;
        return 0;
    case ARGP_KEY_ARG:
        if (!arguments->queue) {
            tool_parse_name(state, value, false);
            arguments->queue = value;
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

struct sending {
    const struct send_arguments *arguments;
    ipc_producer *producer;
    uint64_t sent;
    uint64_t refused;
};

/* Say which were refused, the first ones one by one. */
static void take_refusals(struct sending *sending)
{
    struct ipc_refusal refusal;
    while (ipc_producer_next_refusal(sending->producer, &refusal) > 0)
        if (sending->refused++ < REFUSALS_SHOWN)
            tool_fail(TOOL_FAILED, sending->arguments->queue, "refused: %s", refusal.text);
}

static int fail_sending(const struct sending *sending, int result, size_t size)
{
    const char *queue = sending->arguments->queue;
    struct ipc_producer_stats stats;
    if (result == -EMSGSIZE && ipc_producer_stats(sending->producer, &stats) == 0)
        return tool_fail(TOOL_FAILED, queue,
                         "message %" PRIu64 " of %zu bytes is too large: the queue takes %" PRIu32
                         " bytes, headers included",
                         sending->sent + 1, size, stats.message_size_max);
    if (result == -ETIMEDOUT || result == -EAGAIN)
        return tool_fail(TOOL_TIMEOUT, queue,
                         "message %" PRIu64 " found no room in time: the queue is full, and makes producers "
                         "wait; --timeout waits longer",
                         sending->sent + 1);
    if (result == -EIDRM)
        return tool_fail(TOOL_FAILED, queue, "the queue was removed");
    return tool_fail_error(queue, result, NULL);
}

static int send_one(struct sending *sending, const void *data, size_t size)
{
    struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    int result;
    while ((result = ipc_producer_sendv(sending->producer, &piece, 1, &sending->arguments->how,
                                        tool_timeout(sending->arguments->tool), NULL)) == -ENOBUFS)
        take_refusals(sending);
    if (result < 0)
        return fail_sending(sending, result, size);
    sending->sent++;
    return TOOL_OK;
}

static int send_input(struct sending *sending)
{
    const struct send_arguments *arguments = sending->arguments;
    struct input input = {.fd = STDIN_FILENO,
                          .whole = arguments->whole || arguments->file,
                          .delimiter = arguments->null ? '\0' : '\n'};
    if (arguments->file && (input.fd = open(arguments->file, O_RDONLY | O_CLOEXEC)) < 0)
        return tool_fail(TOOL_FAILED, arguments->file, "%s", strerror(errno));
    int status = TOOL_OK, result = 0;
    while (status == TOOL_OK) {
        const char *data = NULL;
        size_t size = 0;
        int found = input_next(&input, &data, &size);
        if (found == 0)
            break;
        if (found == 1)
            status = send_one(sending, data, size);
        else if ((result = input_fill(&input)) < 0 && result != -EINTR)
            status =
                tool_fail(TOOL_FAILED, arguments->file ? arguments->file : "stdin", "%s", strerror(-result));
    }
    if (arguments->file)
        close(input.fd);
    input_done(&input);
    return status;
}

static int confirm(struct sending *sending)
{
    int result;
    while ((result = ipc_producer_flush(sending->producer, tool_timeout(sending->arguments->tool))) ==
           -ENOBUFS)
        take_refusals(sending);
    take_refusals(sending);
    if (sending->refused > REFUSALS_SHOWN)
        tool_fail(TOOL_FAILED, sending->arguments->queue, "and %" PRIu64 " more were refused",
                  sending->refused - REFUSALS_SHOWN);
    if (result == -ETIMEDOUT || result == -EAGAIN)
        return tool_fail(TOOL_TIMEOUT, sending->arguments->queue,
                         "not confirmed in time: the queue is full, and takes them in when there is room; "
                         "--timeout waits longer");
    if (result == -EBADMSG)
        return TOOL_FAILED;
    return result < 0 ? fail_sending(sending, result, 0) : TOOL_OK;
}

static void print_json(const struct sending *sending)
{
    struct ipc_producer_stats stats;
    json_t *document = json_object();
    if (ipc_producer_stats(sending->producer, &stats) < 0)
        stats = (struct ipc_producer_stats){.duplicates = 0};
    output_set(document, "sent", output_number(sending->sent));
    if (!sending->arguments->no_confirm) {
        output_set(document, "refused", output_number(sending->refused));
        output_set(document, "duplicates", output_number(stats.duplicates));
    }
    output_document(document);
}

int cmd_send(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "QUEUE [DATA...]",
        .doc = "Send each DATA to a queue as one message, or without DATA each line of stdin.\v"
               "It ends when the queue has accepted all of them, with status 1 if it refused some. DATA that "
               "begins with a dash stands after `--'."};
    struct send_arguments arguments = {.tool = tool, .how = IPC_SEND_INIT};
    struct ipc_error error = {0};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    struct sending sending = {.arguments = &arguments};
    ipc_connection *connection = NULL;
    int status = tool_connect(&connection, tool, "ipcctl send");
    if (status == TOOL_OK) {
        int result = ipc_producer_open(&sending.producer, connection, arguments.queue, NULL, &error);
        if (result == -ENOENT || result == -EACCES)
            status = tool_fail(TOOL_FAILED, arguments.queue, "%s", error.text);
        else if (result < 0)
            status = tool_fail_error(arguments.queue, result, &error);
    }
    bool opened = status == TOOL_OK;
    for (int i = 0; i < arguments.data_count && status == TOOL_OK; i++)
        status = send_one(&sending, arguments.data[i], strlen(arguments.data[i]));
    if (status == TOOL_OK && arguments.data_count == 0)
        status = send_input(&sending);
    if (opened && !arguments.no_confirm && (status == TOOL_OK || sending.sent > 0)) {
        int confirmed = confirm(&sending);
        status = status == TOOL_OK ? confirmed : status;
    }
    if (opened && tool->json)
        print_json(&sending);
    ipc_connection_close(connection);
    free(arguments.data);
    return status;
}
