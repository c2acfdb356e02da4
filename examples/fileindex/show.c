/* SPDX-License-Identifier: Apache-2.0
 *
 * The client of the file index: shows its news and its progress, then the final result. Exits with 0 only if every
 * result is right.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

static bool terminal;

static ipc_call *ask(ipc_client *client, const char *what)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    ipc_call *call;
    int r;

    options.flags = IPC_CALL_WAIT; /* for collect to begin */
    options.timeout_ns = IPC_FOREVER;
    r = ipc_call_start(&call, client, what, strlen(what), &options);
    if (r < 0)
        die("asking for the %s: %s", what, strerror(-r));
    return call;
}

static void show_news(ipc_subscription *news)
{
    char text[512];
    ssize_t size;

    while ((size = ipc_subscription_receive(news, text, sizeof(text), NULL, 0)) >= 0)
        printf("%s  %.*s\n", terminal ? "\r\033[K" : "", (int)size, text);
}

/* On a terminal each line of progress takes the place of the one before; in a log there is one now and then. */
static void show_progress(ipc_client *client, ipc_subscription *news)
{
    ipc_call *call = ask(client, "progress");
    struct ipc_reply reply;
    uint64_t shown_ns = 0;
    int r;

    while ((r = ipc_call_next(call, &reply, TICK_NS)) == 1 || r == -ETIME) {
        show_news(news);
        if (r == 1 && (terminal || realtime_ns() - shown_ns > UINT64_C(1000000000))) {
            printf("%s  %.*s%s", terminal ? "\r" : "", (int)reply.size, (const char *)reply.data,
                   terminal ? "\033[K" : "\n");
            shown_ns = realtime_ns();
        }
        fflush(stdout);
    }
    if (r < 0)
        die("collect left before the end of the job: %s", strerror(-r));
    show_news(news);
    ipc_call_free(call);
    printf("%s\nComparing with sha256sum, wc, and grep | tr | awk ...\n", terminal ? "\n" : "");
    fflush(stdout);
}

static int show_result(ipc_client *client)
{
    ipc_call *call = ask(client, "result");
    struct ipc_reply reply;
    int r = ipc_call_next(call, &reply, IPC_FOREVER);

    if (r != 1 && r != -EREMOTEIO)
        die("collect left before it told the result: %s", strerror(-r));
    fwrite(reply.data, 1, reply.size, stdout);
    ipc_call_free(call);
    return r == 1 && fflush(stdout) == 0 ? 0 : 1;
}

int main(void)
{
    ipc_connection *connection = job_connect("show");
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_subscription *news;
    ipc_client *client;
    struct ipc_error error;
    int status;

    terminal = isatty(STDOUT_FILENO) == 1;
    options.start = IPC_START_OLDEST;
    if (ipc_subscription_open(&news, connection, NEWS, &options, &error) < 0 ||
        ipc_client_open(&client, connection, SERVICE, NULL, &error) < 0)
        die("%s", error.text);
    show_progress(client, news);
    status = show_result(client);
    ipc_connection_close(connection);
    return status;
}
