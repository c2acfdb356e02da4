/* SPDX-License-Identifier: Apache-2.0
 *
 * Events: a connection is told who joined and who left, and why. A child process subscribes and closes; a
 * second one is killed: its publisher learns of that from the broker, which watches every process.
 *
 *     ipcd-run --private -- events
 */
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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

/* A process of its own: receives one message, then leaves, or waits to be killed. */
static pid_t start_reader(const char *name, bool leave)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection; /* the parent's cannot be used here */
    ipc_subscription *subscription;
    char buffer[16];
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child != 0)
        return child;
    options.name = name;
    check(ipc_connection_open(&connection, NULL, &options, NULL), "connecting");
    check(ipc_subscription_open(&subscription, connection, "alarms", NULL, NULL), "subscribing");
    check(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 30 * SECOND), "receiving");
    if (!leave) {
        for (;;)
            pause();
    }
    ipc_connection_close(connection);
    _exit(0);
}

/* Wait for an event of this kind. */
static struct ipc_event next_event(ipc_connection *connection, ipc_publisher *publisher,
                                   enum ipc_event_kind kind)
{
    static const char *const kinds[] = {
        "", "reader joined", "reader left", "writer joined", "writer left", "ended"};
    struct pollfd news = {.fd = (int)check(ipc_connection_fd(connection), "the descriptor"),
                          .events = POLLIN};
    struct ipc_event event;

    for (int round = 0; round < 300; round++) {
        ipc_publisher_wait_readers(publisher, 1, 0); /* a publisher takes in its readers when it is used */
        while (check(ipc_connection_next_event(connection, &event), "reading events") == 1) {
            printf("%-13s %-8s (process %u) of %s: %s\n", kinds[event.kind], event.peer.name,
                   (unsigned)event.peer.pid, event.topic, ipc_reason_text(event.reason));
            if (event.kind == (unsigned)kind)
                return event;
        }
        poll(&news, 1, 100);
        check(ipc_connection_dispatch(connection), "dispatching");
    }
    expect(false, "the event comes within 30 s");
    exit(1);
}

int main(void)
{
    ipc_connection *connection;
    ipc_publisher *publisher;
    struct ipc_event event;
    pid_t child;

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, connection, "alarms", NULL, NULL), "advertising");

    child = start_reader("polite", true);
    event = next_event(connection, publisher, IPC_EVENT_READER_JOINED);
    expect(strcmp(event.peer.name, "polite") == 0 && event.peer.pid == (uint32_t)child,
           "it is the first child");
    check(ipc_publisher_publish(publisher, "go", 2), "publishing");
    event = next_event(connection, publisher, IPC_EVENT_READER_LEFT);
    expect(event.reason == IPC_REASON_CLOSED, "it closed its connection");
    waitpid(child, NULL, 0);

    child = start_reader("unlucky", false);
    event = next_event(connection, publisher, IPC_EVENT_READER_JOINED);
    expect(strcmp(event.peer.name, "unlucky") == 0, "it is the second child");
    kill(child, SIGKILL);
    event = next_event(connection, publisher, IPC_EVENT_READER_LEFT);
    expect(event.reason == IPC_REASON_DIED && event.peer.pid == (uint32_t)child, "it died");
    waitpid(child, NULL, 0);

    ipc_connection_close(connection);
    return 0;
}
