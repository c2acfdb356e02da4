/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl serve: answer the calls of a service, each by a command that gets the payload on stdin and whose output is the
 * answer. One at a time; the service's other servers share the load.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/ipcctl.h"

#define ANSWER_SIZE_DEFAULT 131040u

enum { KEY_ECHO = 0x2000, KEY_SIZE_MAX };

struct serve_arguments {
    struct tool *tool;
    const char *service;
    char **command;
    uint64_t count; /* 0: all */
    uint64_t size_max;
    bool echo;
};

static const struct argp_option options[] = {
    {"echo", KEY_ECHO, NULL, 0, "Answer each call with its own payload", 0},
    {"count", 'n', "N", 0, "End after N calls", 0},
    {"size-max", KEY_SIZE_MAX, "BYTES", 0, "Room for answers of up to this size (default 131040)", 0},
    {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct serve_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case KEY_ECHO:
        arguments->echo = true;
        return 0;
    case 'n':
        arguments->count = tool_parse_number(state, "--count", value, 1, UINT64_MAX);
        return 0;
    case KEY_SIZE_MAX:
        arguments->size_max = tool_parse_number(state, "--size-max", value, 1, IPC_MAX_MESSAGE_SIZE / 2);
        return 0;
    case ARGP_KEY_ARG:
        if (!arguments->service) {
            tool_parse_name(state, value, false);
            arguments->service = value;
        } else { /* the rest is the command's */
            arguments->command = state->argv + state->next - 1;
            state->next = state->argc;
        }
        return 0;
    case ARGP_KEY_END:
        if (!arguments->service)
            argp_error(state, "which SERVICE?");
        if (!arguments->command == !arguments->echo)
            argp_error(state, "a COMMAND, or --echo, and not both");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* A command at work. */
struct job {
    pid_t pid;
    int in, out; /* its stdin, or -1 when all was written; its stdout */
    const char *data;
    size_t size, written;
    char *answer;
    size_t answer_size, capacity;
};

static int job_start(struct job *job, char **command)
{
    int in[2], out[2];
    posix_spawn_file_actions_t actions;
    if (pipe2(in, O_CLOEXEC) < 0)
        return -errno;
    if (pipe2(out, O_CLOEXEC) < 0) {
        int r = -errno;
        close(in[0]);
        close(in[1]);
        return r;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    int r = -posix_spawnp(&job->pid, command[0], &actions, NULL, command, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    if (r < 0) {
        close(in[1]);
        close(out[0]);
        return r;
    }
    job->in = in[1];
    job->out = out[0];
    (void)fcntl(job->in, F_SETFL, O_NONBLOCK);
    return 0;
}

static void job_write(struct job *job)
{
    ssize_t n = job->size > job->written ? write(job->in, job->data + job->written, job->size - job->written)
                                         : 0;
    if (n > 0)
        job->written += (size_t)n;
    if (job->written == job->size || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        close(job->in); /* it need not read all */
        job->in = -1;
    }
}

/* False: that was all. */
static bool job_read(struct job *job)
{
    if (job->answer_size == job->capacity) {
        job->capacity = job->capacity ? 2 * job->capacity : 65536;
        job->answer = tool_alloc(job->answer, job->capacity);
    }
    ssize_t n = read(job->out, job->answer + job->answer_size, job->capacity - job->answer_size);
    if (n > 0)
        job->answer_size += (size_t)n;
    return n > 0 || (n < 0 && errno == EINTR);
}

/* Let the command work until it closes its output; end it when nobody wants the answer any more. Returns its status. */
static int job_run(struct job *job, struct ipc_request *request, uint64_t size_max)
{
    bool reading = true, ended = false;
    int status = 0;
    while (reading) {
        struct pollfd fds[] = {{job->out, POLLIN, 0}, {job->in, POLLOUT, 0}};
        (void)poll(fds, job->in >= 0 ? 2 : 1, 100);
        if (job->in >= 0 && fds[1].revents)
            job_write(job);
        if (fds[0].revents)
            reading = job_read(job) && job->answer_size <= size_max;
        if (!ended &&
            (ipc_request_cancelled(request) > 0 || tool_interrupted() || job->answer_size > size_max)) {
            kill(job->pid, SIGTERM);
            ended = true;
        }
    }
    if (job->in >= 0)
        close(job->in);
    close(job->out);
    while (waitpid(job->pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

static int answer_by_command(const struct serve_arguments *arguments, struct ipc_request *request)
{
    struct job job = {.in = -1, .out = -1, .data = request->data, .size = request->size};
    char text[256];
    int r = job_start(&job, arguments->command);
    if (r < 0) {
        snprintf(text, sizeof(text), "the command did not start: %s", strerror(-r));
        return ipc_request_fail(request, 127, text, NULL, 0);
    }
    int status = job_run(&job, request, arguments->size_max);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        r = ipc_request_reply(request, job.answer, job.answer_size, NULL);
    else if (job.answer_size > arguments->size_max)
        r = -EMSGSIZE;
    else {
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        snprintf(text, sizeof(text), "the command ended with %s %d", WIFEXITED(status) ? "status" : "signal",
                 WIFEXITED(status) ? code : WTERMSIG(status));
        r = ipc_request_fail(request, code, text, job.answer, job.answer_size);
    }
    if (r == -EMSGSIZE)
        r = ipc_request_fail(request, EMSGSIZE, "the answer is larger than --size-max", NULL, 0);
    free(job.answer);
    return r;
}

/* Sleep until there is something to do. Returns TOOL_OK, or the status to end with. */
static int sleep_until_news(struct tool_session *session, int interrupt_fd, int fd)
{
    struct pollfd fds[] = {{interrupt_fd, POLLIN, 0}, {fd, POLLIN, 0}};
    struct ipc_event event;
    struct timespec left;
    int r;
    while ((r = ipc_connection_next_event(session->connection, &event)) == 1 || r == -EOVERFLOW)
        if (r == 1)
            tool_session_event(session, &event);
    int status = tool_session_check(session);
    if (status == TOOL_OK)
        (void)ppoll(fds, 2, tool_session_sleep(session, 0, &left), NULL);
    return status;
}

static int run(const struct serve_arguments *arguments, struct tool_session *session, ipc_server *server,
               int interrupt_fd)
{
    size_t capacity = 65536;
    _cleanup_free_ void *buffer = tool_alloc(NULL, capacity);
    int fd = ipc_server_fd(server);
    if (fd < 0)
        return tool_fail_error(arguments->service, fd, NULL);
    for (uint64_t done = 0; !tool_interrupted();) {
        struct ipc_request *request;
        ssize_t size = ipc_server_receive(server, buffer, capacity, &request, 0);
        if (size == -EMSGSIZE) {
            capacity *= 2;
            buffer = tool_alloc(buffer, capacity);
        } else if (size == -EAGAIN) {
            int status = sleep_until_news(session, interrupt_fd, fd);
            if (status != TOOL_OK)
                return status;
        } else if (size < 0) {
            return tool_fail_error(arguments->service, (int)size, NULL);
        } else {
            int r = arguments->echo ? ipc_request_reply(request, buffer, (size_t)size, NULL)
                                    : answer_by_command(arguments, request);
            if (r < 0 && r != -EPIPE)
                return tool_fail_error(arguments->service, r, NULL);
            if (++done == arguments->count)
                return TOOL_OK;
        }
    }
    return TOOL_INTERRUPTED;
}

int cmd_serve(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .args_doc = "SERVICE -- COMMAND [ARGUMENT...]\nSERVICE --echo",
        .doc =
            "Answer the calls of a service: each runs COMMAND with the payload on stdin, and what it prints is the "
            "answer. If it fails, its status is the error's code.\v"
            "One call at a time: several of these share the calls. A command whose caller gave up is sent SIGTERM."};
    struct serve_arguments arguments = {.tool = tool, .size_max = ANSWER_SIZE_DEFAULT};
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &arguments) != 0)
        return TOOL_USAGE;
    struct ipc_server_options server_options = IPC_SERVER_OPTIONS_INIT;
    struct ipc_error error = {0};
    struct tool_session session = {0};
    ipc_server *server = NULL;
    server_options.spin_max_ns = 0;
    if (arguments.size_max > ANSWER_SIZE_DEFAULT)
        server_options.message_size_max = (uint32_t)arguments.size_max + 1024;
    int interrupt_fd = tool_catch_signals();
    int status = interrupt_fd < 0 ? tool_fail(TOOL_FAILED, "eventfd", "%s", strerror(errno))
                                  : tool_session_open(&session, tool, "ipcctl serve");
    if (status == TOOL_OK) {
        int r = ipc_server_open(&server, session.connection, arguments.service, &server_options, &error);
        status = r < 0 ? tool_fail_error(arguments.service, r, &error)
                       : run(&arguments, &session, server, interrupt_fd);
    }
    ipc_server_close(server);
    ipc_connection_close(session.connection);
    return status;
}
