/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl recv: consume the messages of a queue. A message is acknowledged once it was written to stdout.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/ipcctl.h"
#include "tools/output.h"
#include "tools/text.h"

#define BATCH_MAX 256u

enum { KEY_ACK = 0x2000, KEY_NO_ACK, KEY_PREFETCH, KEY_BATCH };

struct recv_arguments {
    struct tool *tool;
    const char *queue;
    uint64_t count; /* 0: all */
    uint32_t prefetch, batch;
    bool raw, null, bare, headers, no_ack;
};

static const struct argp_option options[] = {
    {"count", 'n', "N", 0, "End after N messages", 0},
    {"ack", KEY_ACK, NULL, 0, "Acknowledge each message once it is printed (default)", 0},
    {"no-ack", KEY_NO_ACK, NULL, 0, "Give them back in the end: they are delivered again", 0},
    {"prefetch", KEY_PREFETCH, "N", 0, "Have up to N messages on the way (256; with --count, N)", 0},
    {"batch", KEY_BATCH, "N", 0, "Acknowledge up to N messages, if they are there, at once (32)", 0},
    {"raw", 'r', NULL, 0, "Print the payload alone, as it is", 0},
    {"null", '0', NULL, 0, "End each message with a NUL byte instead of a newline", 0},
    {"no-newline", 'N', NULL, 0, "End messages with nothing", 0},
    {"headers", 'H', NULL, 0, "Also number, attempt, sender, time and headers", 0},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct recv_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'n':
        arguments->count = tool_parse_number(state, "--count", value, 1, UINT64_MAX);
        return 0;
    case KEY_ACK:
    case KEY_NO_ACK:
        arguments->no_ack = key == KEY_NO_ACK;
        return 0;
    case KEY_PREFETCH:
        arguments->prefetch = (uint32_t)tool_parse_number(state, "--prefetch", value, 1, IPC_MAX_PREFETCH);
        return 0;
    case KEY_BATCH:
        arguments->batch = (uint32_t)tool_parse_number(state, "--batch", value, 1, BATCH_MAX);
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
    case ARGP_KEY_ARG:
        if (arguments->queue)
            argp_error(state, "one QUEUE at a time");
        tool_parse_name(state, value, false);
        arguments->queue = value;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->queue)
            argp_error(state, "from which QUEUE?");
        if (arguments->raw && (arguments->headers || arguments->tool->json))
            argp_error(state, "--raw prints the payload alone: not with --headers or --json");
        if (arguments->null && arguments->bare)
            argp_error(state, "--null and --no-newline exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

struct recv {
    const struct recv_arguments *arguments;
    ipc_connection *connection;
    ipc_consumer *consumer;
    unsigned char *buffer;
    size_t capacity;
    struct ipc_queue_message messages[BATCH_MAX];
    int interrupt_fd, consumer_fd;
    uint64_t deadline_ns; /* 0: none */
    uint64_t received;
};

static bool enough(const struct recv *recv)
{
    return recv->arguments->count > 0 && recv->received >= recv->arguments->count;
}

static void print_json(const struct recv_arguments *arguments, const struct ipc_queue_message *message)
{
    json_t *row = json_object(), *sender = json_object(), *headers = json_array();
    struct ipc_dead_letter letter;
    output_set(row, "queue", output_string(arguments->queue));
    output_set(row, "number", output_number(message->number));
    output_set(row, "attempt", output_number(message->attempt));
    if (message->redelivered)
        output_set(row, "redelivered", output_string(ipc_redelivered_word(message->redelivered)));
    output_set(row, "priority", output_number(message->priority));
    output_set(row, "accepted_ns", output_number(message->accepted_ns));
    if (message->timestamp_ns)
        output_set(row, "timestamp_ns", output_number(message->timestamp_ns));
    output_set(sender, "session", output_number(message->sender_session));
    output_set(sender, "uid", output_number(message->sender_uid));
    output_set(sender, "pid", output_number(message->sender_pid));
    output_set(row, "sender", sender);
    if (message->content_type)
        output_set(row, "content_type", output_string(message->content_type));
    if (message->reply_to)
        output_set(row, "reply_to", output_string(message->reply_to));
    if (message->id) {
        json_t *id = json_object();
        output_set_bytes(id, "value", message->id, message->id_size);
        output_set(row, "id", id);
    }
    if (message->key) {
        json_t *key = json_object();
        output_set_bytes(key, "value", message->key, message->key_size);
        output_set(row, "key", key);
    }
    if (ipc_queue_message_dead_letter(message, &letter) == 0) {
        json_t *dead = json_object();
        output_set(dead, "origin", output_string(letter.origin));
        output_set(dead, "reason", output_string(letter.reason));
        output_set(dead, "attempts", output_number(letter.attempts));
        output_set(dead, "died_ns", output_number(letter.died_ns));
        output_set(row, "dead_letter", dead);
    }
    const char *name;
    const void *value;
    size_t position = 0, name_size, value_size;
    while (ipc_queue_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1) {
        json_t *header = json_object();
        _cleanup_free_ char *copy = strndup(name, name_size);
        output_set(header, "name", output_string(copy ? copy : ""));
        output_set_bytes(header, "value", value, value_size);
        output_append(headers, header);
    }
    if (json_array_size(headers) > 0)
        output_set(row, "headers", headers);
    else
        json_decref(headers);
    output_set(row, "size", output_number(message->size));
    output_set_bytes(row, "data", message->data, message->size);
    output_line(row);
}

static void print_text(const char *name, const void *value, size_t size)
{
    if (!value)
        return;
    printf(" %s=", name);
    text_escape(stdout, value, size);
}

static void print_headers(const struct tool *tool, const struct ipc_queue_message *message)
{
    char time[TEXT_NUMBER_SIZE];
    struct ipc_dead_letter letter;
    printf("%s[#%" PRIu64 " attempt=%u", output_tone(tool, TONE_DIM), message->number, message->attempt);
    if (message->redelivered)
        printf(" redelivered=%s", ipc_redelivered_word(message->redelivered));
    if (message->priority)
        printf(" priority=%u", message->priority);
    printf(" session=%" PRIu64 " uid=%" PRIu32 " pid=%" PRIu32 " time=%s", message->sender_session,
           message->sender_uid, message->sender_pid, text_time(time, message->accepted_ns));
    print_text("type", message->content_type, message->content_type ? strlen(message->content_type) : 0);
    print_text("reply-to", message->reply_to, message->reply_to ? strlen(message->reply_to) : 0);
    print_text("id", message->id, message->id_size);
    print_text("key", message->key, message->key_size);
    if (ipc_queue_message_dead_letter(message, &letter) == 0) {
        print_text("origin", letter.origin, strlen(letter.origin));
        printf(" attempts=%" PRIu32, letter.attempts);
        print_text("reason", letter.reason, strlen(letter.reason));
    }
    const char *name;
    const void *value;
    size_t position = 0, name_size, value_size;
    while (ipc_queue_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1) {
        putchar(' ');
        text_escape(stdout, name, name_size);
        putchar('=');
        text_escape(stdout, value, value_size);
    }
    printf("]%s ", output_tone_end(tool, TONE_DIM));
}

static void print(const struct recv_arguments *arguments, const struct ipc_queue_message *message)
{
    if (arguments->tool->json) {
        print_json(arguments, message);
        return;
    }
    if (arguments->headers)
        print_headers(arguments->tool, message);
    if (arguments->raw)
        fwrite(message->data, 1, message->size, stdout);
    else
        text_escape(stdout, message->data, message->size);
    if (!arguments->bare)
        putchar(arguments->null ? '\0' : '\n');
}

/* Print a batch, and then acknowledge it. Returns how many messages; 0 none; negative errno. */
static ssize_t take_batch(struct recv *recv)
{
    const struct recv_arguments *arguments = recv->arguments;
    size_t count = arguments->batch;
    if (arguments->count > 0 && arguments->count - recv->received < count)
        count = (size_t)(arguments->count - recv->received);
    ssize_t n =
        ipc_consumer_receive_batch(recv->consumer, recv->buffer, recv->capacity, recv->messages, count, 0);
    if (n == -EMSGSIZE) {
        recv->capacity = 2 * recv->messages[0].size;
        recv->buffer = tool_alloc(recv->buffer, recv->capacity);
        return take_batch(recv);
    }
    if (n < 0)
        return n == -EAGAIN ? 0 : n;
    for (ssize_t i = 0; i < n; i++)
        print(arguments, &recv->messages[i]);
    if (fflush(stdout) != 0 || tool_stdout_gone())
        return -EIO; /* nobody has seen them: they stay in the queue */
    recv->received += (uint64_t)n;
    int result = arguments->no_ack ? 0
                                   : ipc_consumer_ack_until(recv->consumer, recv->messages[n - 1].delivery);
    return result < 0 ? result : n;
}

static int wait_for_more(struct recv *recv)
{
    struct pollfd fds[] = {{.fd = recv->interrupt_fd, .events = POLLIN},
                           {.fd = recv->consumer_fd, .events = POLLIN},
                           {.fd = STDOUT_FILENO}};
    uint64_t now = tool_now_ns();
    if (recv->deadline_ns != 0 && now >= recv->deadline_ns)
        return recv->arguments->count > 0
                   ? tool_fail(TOOL_TIMEOUT, recv->arguments->queue,
                               "%" PRIu64 " of %" PRIu64 " messages came in time; --timeout waits longer",
                               recv->received, recv->arguments->count)
                   : -1;
    uint64_t left = recv->deadline_ns ? recv->deadline_ns - now : 0;
    struct timespec limit = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    int result = ppoll(fds, 3, recv->deadline_ns ? &limit : NULL, NULL);
    if (result < 0 && errno != EINTR)
        return tool_fail(TOOL_FAILED, "poll", "%s", strerror(errno));
    return result > 0 && (fds[2].revents & POLLERR) ? -1 : TOOL_OK; /* who read the output has gone */
}

static int run(struct recv *recv)
{
    while (!enough(recv)) {
        if (tool_interrupted())
            return TOOL_INTERRUPTED;
        ssize_t n = take_batch(recv);
        if (n == -EIO)
            return TOOL_OK;
        if (n == -EIDRM)
            return tool_fail(TOOL_FAILED, recv->arguments->queue, "the queue was removed");
        if (n < 0)
            return tool_fail_error(recv->arguments->queue, (int)n, NULL);
        if (n > 0)
            continue;
        int status = wait_for_more(recv);
        if (status != TOOL_OK)
            return status < 0 ? TOOL_OK : status;
    }
    return TOOL_OK;
}

static int open_consumer(struct recv *recv)
{
    const struct recv_arguments *arguments = recv->arguments;
    struct tool bounded = *arguments->tool; /* --timeout is about messages */
    struct ipc_error error = {0};
    bounded.timeout_ns = TOOL_UNSET;
    int status = tool_connect(&recv->connection, &bounded, "ipcctl recv");
    if (status != TOOL_OK)
        return status;
    struct ipc_consumer_options consumer_options = IPC_CONSUMER_OPTIONS_INIT;
    consumer_options.prefetch = arguments->prefetch;
    if (arguments->prefetch == 0 && arguments->count > 0)
        consumer_options.prefetch =
            (uint32_t)(arguments->count < IPC_MAX_PREFETCH ? arguments->count : IPC_MAX_PREFETCH);
    if (arguments->prefetch == 0 && arguments->no_ack && arguments->count == 0)
        consumer_options.prefetch = IPC_MAX_PREFETCH;
    int result =
        ipc_consumer_open(&recv->consumer, recv->connection, arguments->queue, &consumer_options, &error);
    if (result == 0)
        result = recv->consumer_fd = ipc_consumer_fd(recv->consumer);
    if (result == -ENOENT || result == -EACCES)
        return tool_fail(TOOL_FAILED, arguments->queue, "%s", error.text);
    return result < 0 ? tool_fail_error(arguments->queue, result, &error) : TOOL_OK;
}

int cmd_recv(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "QUEUE",
        .doc =
            "Take messages out of a queue and print them, each as a line with control bytes escaped.\v"
            "It ends on SIGINT, after --count messages, or after --timeout. A message is acknowledged once "
            "it is printed; if this process dies before, the message is delivered again."};
    struct recv_arguments arguments = {.tool = tool, .batch = 32};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    struct recv recv = {.arguments = &arguments};
    if (tool->timeout_ns != TOOL_UNSET && tool->timeout_ns != IPC_FOREVER)
        recv.deadline_ns = tool_now_ns() + (uint64_t)tool->timeout_ns;
    recv.capacity = 65536;
    recv.buffer = tool_alloc(NULL, recv.capacity);
    recv.interrupt_fd = tool_catch_signals();
    int status = recv.interrupt_fd < 0 ? tool_fail(TOOL_FAILED, "eventfd", "%s", strerror(errno))
                                       : open_consumer(&recv);
    if (status == TOOL_OK)
        status = run(&recv);
    ipc_connection_close(recv.connection);
    free(recv.buffer);
    return status;
}
