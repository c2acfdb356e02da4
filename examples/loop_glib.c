/* SPDX-License-Identifier: Apache-2.0
 *
 * A subscription in GLib's main loop, as a program with a window would have it: ipc_subscription_fd() as a
 * source. A timeout publishes meanwhile.
 *
 *     ipcd-run --private -- loop_glib
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glib-unix.h>
#include <glib.h>

#include <ipc/ipc.h>

#define SECOND INT64_C(1000000000)

/* Every call that can fail is asked whether it did. */
static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

static void expect(bool fact, const char *what)
{
    if (!fact) {
        fprintf(stderr, "not true: %s\n", what);
        exit(1);
    }
}

enum { MESSAGES = 50 };

struct program {
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    uint64_t sent, received;
    GMainLoop *loop;
};

static gboolean on_timeout(gpointer data)
{
    struct program *program = data;

    check(ipc_publisher_publish(program->publisher, &program->sent, sizeof(program->sent)), "publishing");
    return ++program->sent < MESSAGES ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static gboolean on_deadline(gpointer data)
{
    expect(false, "everything came within 10 s");
    return G_SOURCE_REMOVE;
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
    struct program *program = data;
    uint64_t number;
    ssize_t size;

    while ((size = ipc_subscription_receive(program->subscription, &number, sizeof(number), NULL, 0)) !=
           -EAGAIN) {
        check(size, "receiving");
        expect(number == program->received, "in order, none missing");
        program->received++;
    }
    if (program->received < MESSAGES)
        return G_SOURCE_CONTINUE;
    g_main_loop_quit(program->loop);
    return G_SOURCE_REMOVE;
}

int main(void)
{
    struct program program = {0};
    ipc_connection *publishing, *subscribing;
    guint deadline;
    int fd;

    check(ipc_connection_open(&publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&program.publisher, publishing, "ticks", NULL, NULL), "advertising");
    check(ipc_subscription_open(&program.subscription, subscribing, "ticks", NULL, NULL), "subscribing");
    check(ipc_publisher_wait_readers(program.publisher, 1, 10 * SECOND), "waiting for the reader");

    program.loop = g_main_loop_new(NULL, FALSE);
    fd = (int)check(ipc_subscription_fd(program.subscription), "asking for the descriptor");
    g_unix_fd_add(fd, G_IO_IN, on_readable, &program);
    g_timeout_add(1, on_timeout, &program);
    deadline = g_timeout_add_seconds(10, on_deadline, NULL);
    g_main_loop_run(program.loop);
    g_source_remove(deadline);
    g_main_loop_unref(program.loop);

    printf("%llu messages through GLib's main loop\n", (unsigned long long)program.received);
    expect(program.received == MESSAGES, "everything came");
    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    return 0;
}
