/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl call: ask a service, and print what it answers, part by part.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/input.h"
#include "tools/ipcctl.h"
#include "tools/output.h"

enum { KEY_RETRY = 0x2000 };

struct call_arguments {
    struct tool *tool;
    const char *service, *payload;
    bool wait, retry, raw;
};

static const struct argp_option options[] = {
    {"wait", 'w', NULL, 0, "If the service has no server, wait for one", 0},
    {"retry", KEY_RETRY, NULL, 0, "If its server dies, ask another: the call may be executed twice", 0},
    {"raw", 'r', NULL, 0, "Print payloads as they are, with nothing between them", 0},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct call_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'w':
        arguments->wait = true;
        return 0;
    case KEY_RETRY:
        arguments->retry = true;
        return 0;
    case 'r':
        arguments->raw = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->payload)
            argp_error(state, "one PAYLOAD at most; quote it if it holds spaces");
        if (arguments->service) {
            arguments->payload = value;
        } else {
            tool_parse_name(state, value, false);
            arguments->service = value;
        }
        return 0;
    case ARGP_KEY_END:
        if (!arguments->service)
            argp_error(state, "which SERVICE?");
        if (arguments->raw && arguments->tool->json)
            argp_error(state, "--raw prints the payload alone: not with --json");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void set_server(json_t *row, const struct ipc_peer *server)
{
    if (server->session == 0)
        return;
    json_t *peer = json_object();
    output_set(peer, "session", output_number(server->session));
    output_set(peer, "name", output_string(server->name));
    output_set(peer, "uid", output_number(server->uid));
    output_set(peer, "pid", output_number(server->pid));
    output_set(row, "server", peer);
}

static void print_part(const struct call_arguments *arguments, const struct ipc_reply *reply)
{
    if (!arguments->tool->json) {
        (void)fwrite(reply->data, 1, reply->size, stdout);
        const char *last = (const char *)reply->data + reply->size - 1;
        if (!arguments->raw && (reply->size == 0 || *last != '\n'))
            putchar('\n');
        return;
    }
    json_t *row = json_object();
    set_server(row, &reply->server);
    if (reply->content_type)
        output_set(row, "content_type", output_string(reply->content_type));
    output_set(row, "size", output_number(reply->size));
    output_set_bytes(row, "data", reply->data, reply->size);
    output_line(row);
}

static int fail(const struct call_arguments *arguments, int result, const struct ipc_reply *reply)
{
    int status = result == -ETIMEDOUT                             ? TOOL_TIMEOUT
                 : result == -EPIPE && reply->server.session == 0 ? TOOL_NO_BROKER
                                                                  : TOOL_FAILED;
    const char *text = *reply->text ? reply->text : strerror(-result);
    if (arguments->tool->json) {
        json_t *row = json_object();
        set_server(row, &reply->server);
        output_set(row, "error", output_string(text));
        output_set(row, "code", json_integer(reply->code));
        if (result == -EREMOTEIO)
            output_set_bytes(row, "data", reply->data, reply->size);
        output_line(row);
    }
    if (result == -EREMOTEIO)
        return tool_fail(status, arguments->service, "the server answers with error %d: %s", reply->code,
                         text);
    return tool_fail(status, arguments->service, "%s", text);
}

/* All of stdin, or the payload that was given. Returns TOOL_OK. */
static int payload(const struct call_arguments *arguments, struct input *input, const char **data,
                   size_t *size)
{
    if (arguments->payload) {
        *data = arguments->payload;
        *size = strlen(*data);
        return TOOL_OK;
    }
    int r;
    *size = 0;
    if (isatty(STDIN_FILENO))
        return TOOL_OK;
    while ((r = input_next(input, data, size)) == -EAGAIN) {
        r = input_fill(input);
        if (tool_interrupted())
            return TOOL_INTERRUPTED;
        if (r < 0 && r != -EINTR)
            return tool_fail(TOOL_FAILED, "stdin", "%s", strerror(-r));
    }
    return TOOL_OK;
}

static int call_service(const struct call_arguments *arguments, ipc_connection *connection, const char *data,
                        size_t size)
{
    struct ipc_client_options client_options = IPC_CLIENT_OPTIONS_INIT;
    struct ipc_call_options call_options = IPC_CALL_OPTIONS_INIT;
    struct ipc_error error = {0};
    struct ipc_reply reply = {.text = ""};
    ipc_client *client;
    ipc_call *call = NULL;
    client_options.spin_max_ns = 0;
    client_options.message_size_max = size > 65536 ? (uint32_t)size : 0;
    int r = ipc_client_open(&client, connection, arguments->service, &client_options, &error);
    if (r < 0)
        return tool_fail_error(arguments->service, r, &error);
    call_options.flags = (arguments->wait ? IPC_CALL_WAIT : 0) | (arguments->retry ? IPC_CALL_RETRY : 0);
    call_options.timeout_ns = tool_timeout(arguments->tool);
    r = ipc_call_start(&call, client, data, size, &call_options);
    if (r == -ENOENT)
        reply.text = "the service has no server; --wait waits for one";
    reply.code = r;
    /* In slices, so that an interrupt is seen. */
    while (r >= 0 && !tool_interrupted()) {
        r = ipc_call_next(call, &reply, INT64_C(100000000));
        if (r == 1)
            print_part(arguments, &reply);
        if (r == 0 || tool_stdout_gone())
            break;
        if (r == -ETIME)
            r = fflush(stdout) == 0 ? 1 : 0;
    }
    int status = r < 0                          ? fail(arguments, r, &reply)
                 : r == 0 || tool_stdout_gone() ? TOOL_OK
                                                : TOOL_INTERRUPTED;
    ipc_call_free(call);
    return status;
}

int cmd_call(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "SERVICE [PAYLOAD]",
        .doc =
            "Call a service, and print its answer. Without PAYLOAD, all of stdin is the payload, unless that is a "
            "terminal.\v"
            "--timeout is the call's deadline (5 s), which its server sees, too. An answer in several parts is printed "
            "as the parts come, each ended by a newline."};
    struct call_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;
    struct input input = {.fd = STDIN_FILENO, .whole = true};
    ipc_connection *connection = NULL;
    const char *data = NULL;
    size_t size = 0;
    int status = tool_catch_signals() < 0 ? tool_fail(TOOL_FAILED, "eventfd", "%s", strerror(errno))
                                          : payload(&arguments, &input, &data, &size);
    if (status == TOOL_OK)
        status = tool_connect(&connection, tool, "ipcctl call");
    if (status == TOOL_OK)
        status = call_service(&arguments, connection, data, size);
    ipc_connection_close(connection);
    input_done(&input);
    return status;
}
