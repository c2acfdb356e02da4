/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd and ipcd-run are both killed, so that all sessions are over: connections that asked for it begin another one by
 * themselves, and what they had goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <ipc/segment.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

static struct guarded guarded;
static const char *const quiet[] = {"--log-level", "error", NULL};

static int setup(void **state)
{
    watchdog(60, "reconnect");
    guarded_start(&guarded, quiet);
    return 0;
}

static int teardown(void **state)
{
    guarded_stop(&guarded);
    return 0;
}

static void kill_both(void)
{
    pid_t ipcd = guarded_pid(&guarded);
    int pidfd = pidfd_open(ipcd, 0);
    EXPECT(pidfd >= 0);
    EXPECT_EQ(kill(guarded.run, SIGSTOP), 0); /* so that it starts no other, and ipcd does not miss it */
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    EXPECT_EQ(kill(guarded.run, SIGKILL), 0);
    EXPECT_EQ(wait_child(guarded.run), 128 + SIGKILL);
    struct pollfd gone = {.fd = pidfd, .events = POLLIN};
    EXPECT_EQ(poll(&gone, 1, -1), 1);
    close(pidfd);
}

static void start_again(void)
{
    guarded_run(&guarded, quiet);
    guarded_pid(&guarded);
}

static ipc_connection *connection_lasting(int64_t timeout_ns)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_connection *connection;
    options.flags = IPC_CONNECTION_RECONNECT;
    options.timeout_ns = timeout_ns;
    EXPECT_EQ(ipc_connection_open(&connection, NULL, &options, &error), 0);
    return connection;
}

struct pair {
    ipc_connection *writing, *reading;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    uint64_t at;
};

static struct pair pair_new(const char *topic, const char *pattern, enum ipc_slow slow)
{
    struct pair pair = {connection_lasting(SECONDS(60)), connection_lasting(SECONDS(60)), NULL, NULL, 0};
    pair.publisher = publisher_new(pair.writing, topic, 1 << 16, 0);
    pair.subscription = subscription_new(pair.reading, pattern, IPC_START_NEXT, slow, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(pair.publisher, 1, IPC_FOREVER), 1);
    return pair;
}

static void pair_exchange(struct pair *pair, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++, pair->at++) {
        publish_numbers(pair->publisher, pair->at, pair->at + 1, 64);
        receive_numbers(pair->subscription, pair->at, pair->at + 1, 64);
    }
}

static bool took(ipc_connection *connection, enum ipc_event_kind kind, struct ipc_event *event)
{
    int result;
    while ((result = ipc_connection_next_event(connection, event)) != 0)
        if (result == 1 && event->kind == (unsigned)kind)
            return true;
    return false;
}

/* Go on until both of its ends are in another session. */
static void pair_crosses(struct pair *pair)
{
    struct ipc_event event;
    bool wrote = false, read = false;
    while (!wrote || !read) {
        pair_exchange(pair, 1);
        wrote = wrote || took(pair->writing, IPC_EVENT_RECONNECTED, &event);
        read = read || took(pair->reading, IPC_EVENT_RECONNECTED, &event);
    }
    struct ipc_peer me;
    EXPECT_EQ(ipc_connection_identity(pair->reading, &me), 0);
    EXPECT(me.session != 0);
    pair_exchange(pair, 1000);
    EXPECT_EQ(ipc_publisher_wait_readers(pair->publisher, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_subscription_wait_writers(pair->subscription, 1, IPC_FOREVER), 1);
}

static void pair_end(struct pair *pair)
{
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(pair->subscription, &stats), 0);
    EXPECT_EQ(stats.lost, 0);
    publisher_end(pair->publisher);
    subscription_end(pair->subscription);
    ipc_connection_close(pair->writing);
    ipc_connection_close(pair->reading);
}

static void test_traffic_goes_on(void **state)
{
    struct pair exact = pair_new("a.block", "a.block", IPC_SLOW_BLOCK);
    struct pair wild = pair_new("b.drop", "b.>", IPC_SLOW_DROP_OLDEST);
    pair_exchange(&exact, 100);
    pair_exchange(&wild, 100);
    kill_both();
    pair_exchange(&exact, 1000); /* there is no broker at all */
    pair_exchange(&wild, 1000);
    start_again();
    pair_crosses(&exact);
    pair_crosses(&wild);
    pair_end(&exact);
    pair_end(&wild);
}

static void test_again_and_again(void **state)
{
    const unsigned without = descriptors_open();
    struct pair pair = pair_new("again", ">", IPC_SLOW_BLOCK);
    EXPECT(ipc_connection_fd(pair.reading) >= 0);
    const unsigned open = descriptors_open();
    for (unsigned i = 0; i < 6; i++) {
        kill_both();
        if (i % 2)
            pair_exchange(&pair, 10);
        start_again();
        pair_crosses(&pair);
        EXPECT(descriptors_open() <=
               open + 3); /* both ends of a bell, and one of before until it is looked at */
    }
    pair_end(&pair);
    EXPECT_EQ(descriptors_open(), without);
}

/* A broker that is stopped in good order ends all pairings first; then it has gone away, too. */
static void test_stopped_in_order(void **state)
{
    struct pair pair = pair_new("orderly", "orderly", IPC_SLOW_BLOCK);
    struct ipc_event event;
    bool wrote = false, read = false;
    char buffer[64];
    EXPECT_EQ(kill(guarded.run, SIGTERM), 0);
    EXPECT_EQ(wait_child(guarded.run), 0);
    start_again();
    while (!wrote || !read) {
        publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
        pair.at++;
        (void)ipc_subscription_receive(pair.subscription, buffer, sizeof(buffer), NULL, 0);
        wrote = wrote || took(pair.writing, IPC_EVENT_RECONNECTED, &event);
        read = read || took(pair.reading, IPC_EVENT_RECONNECTED, &event);
    }
    EXPECT_EQ(ipc_publisher_wait_readers(pair.publisher, 1, IPC_FOREVER), 1);
    publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
    do
        EXPECT_EQ(ipc_subscription_receive(pair.subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER), 64);
    while (!message_holds(buffer, 64, pair.at));
    pair.at++;
    pair_exchange(&pair, 1000);
    publisher_end(pair.publisher);
    subscription_end(pair.subscription);
    ipc_connection_close(pair.writing);
    ipc_connection_close(pair.reading);
}

/* Wait for the descriptor, as a loop of events does, and take what there is. */
static void receive_by_descriptor(struct pair *pair, int fd, bool of_connection)
{
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        char buffer[64];
        int result = of_connection ? ipc_connection_dispatch(pair->reading) : 0;
        EXPECT(result == 0 || result == -EAGAIN);
        ssize_t size = ipc_subscription_receive(pair->subscription, buffer, sizeof(buffer), NULL, 0);
        if (size >= 0) {
            EXPECT(message_holds(buffer, (size_t)size, pair->at++));
            return;
        }
        EXPECT_EQ(size, -EAGAIN);
        EXPECT_EQ(poll(&ready, 1, -1), 1);
    }
}

static void descriptor_goes_on(bool of_connection)
{
    struct pair pair = pair_new("bell", "bell", IPC_SLOW_BLOCK);
    int fd = of_connection ? ipc_connection_fd(pair.reading) : ipc_subscription_fd(pair.subscription);
    struct ipc_event event;
    EXPECT(fd >= 0);
    int gate = gate_new();
    pid_t child = fork_child(); /* keeps the old socket open */
    if (child == 0) {
        gate_wait(gate);
        _exit(ipc_connection_dispatch(pair.reading) == -ECHILD &&
                      ipc_subscription_receive(pair.subscription, &event, 1, NULL, 0) == -ECHILD &&
                      ipc_publisher_publish(pair.publisher, NULL, 0) == -ECHILD
                  ? 0
                  : 1);
    }
    publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
    receive_by_descriptor(&pair, fd, of_connection);
    kill_both();
    publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
    receive_by_descriptor(&pair, fd, of_connection);
    start_again();
    bool wrote = false, read = false;
    while (!wrote || !read) {
        publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
        receive_by_descriptor(&pair, fd, of_connection);
        wrote = wrote || took(pair.writing, IPC_EVENT_RECONNECTED, &event);
        read = read || took(pair.reading, IPC_EVENT_RECONNECTED, &event);
    }
    for (unsigned i = 0; i < 100; i++) {
        publish_numbers(pair.publisher, pair.at, pair.at + 1, 64);
        receive_by_descriptor(&pair, fd, of_connection);
    }
    EXPECT_EQ(of_connection ? ipc_connection_fd(pair.reading) : ipc_subscription_fd(pair.subscription), fd);
    /* Once nothing is left to be told, it is quiet: the old socket, which the child has open, is not in it. */
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    char byte;
    do {
        EXPECT(ipc_connection_dispatch(pair.reading) == 0);
        EXPECT_EQ(ipc_subscription_receive(pair.subscription, &byte, 1, NULL, 0), -EAGAIN);
    } while (poll(&ready, 1, 0) == 1);
    gate_open(gate);
    EXPECT_EQ(wait_child(child), 0);
    close(gate);
    pair_end(&pair);
}

static void test_descriptor_of_connection(void **state)
{
    descriptor_goes_on(true);
}

static void test_descriptor_of_subscription(void **state)
{
    descriptor_goes_on(false);
}

static void test_nobody_there_for_a_while(void **state)
{
    ipc_connection *connection = connection_lasting(SECONDS(2));
    ipc_subscription *subscription = subscription_new(connection, "x", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    struct pollfd ready = {.fd = ipc_connection_fd(connection), .events = POLLIN};
    struct ipc_error error = {0};
    struct ipc_event event;
    ipc_publisher *publisher;
    char byte;
    EXPECT(ready.fd >= 0);
    kill_both();
    EXPECT_EQ(ipc_connection_dispatch(connection), -EAGAIN);
    event = event_wait(connection, IPC_EVENT_ENDED);
    EXPECT_EQ(event.reason, IPC_REASON_SHUTDOWN);
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "x", NULL, &error), -ETIMEDOUT);
    EXPECT_TEXT(error.text, "did not come back in time");
    EXPECT_EQ(ipc_subscription_receive(subscription, &byte, 1, NULL, 0), -EAGAIN);
    EXPECT_EQ(ipc_subscription_receive(subscription, &byte, 1, NULL, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, 1000000), -ETIMEDOUT);
    for (unsigned i = 0; i < 5; i++) { /* the descriptor says when it is worth a try */
        EXPECT_EQ(poll(&ready, 1, -1), 1);
        EXPECT_EQ(ipc_connection_dispatch(connection), -EAGAIN);
        EXPECT_EQ(ipc_subscription_receive(subscription, &byte, 1, NULL, 0), -EAGAIN);
    }
    start_again();
    do
        EXPECT_EQ(poll(&ready, 1, -1), 1);
    while (ipc_connection_dispatch(connection) == -EAGAIN);
    event = event_wait(connection, IPC_EVENT_RECONNECTED);
    EXPECT_EQ(event.peer.pid, getpid());
    subscription_end(subscription);
    ipc_connection_close(connection);
}

/* What a reader does not see while it is away is counted, across both sessions. */
static void test_gaps_are_counted(void **state)
{
    struct pair pair = pair_new("gap", "gap", IPC_SLOW_DROP_OLDEST);
    struct ipc_event event;
    pair_exchange(&pair, 10);
    kill_both();
    start_again();
    uint64_t published = pair.at, received = pair.at, lost = 0;
    while (!took(pair.writing, IPC_EVENT_RECONNECTED, &event)) {
        publish_numbers(pair.publisher, published, published + 1, 64);
        published++;
    }
    publish_numbers(pair.publisher, published, published + 10000, 64);
    published += 10000;
    while (received + lost < published) {
        struct ipc_message message;
        char buffer[64];
        ssize_t size =
            ipc_subscription_receive(pair.subscription, buffer, sizeof(buffer), &message, IPC_FOREVER);
        EXPECT_EQ(size, 64);
        lost += message.lost;
        EXPECT_EQ(message.sequence, received + lost);
        EXPECT(message_holds(buffer, 64, received + lost));
        received++;
    }
    EXPECT_EQ(received + lost, published);
    EXPECT(lost > 0);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(pair.subscription, &stats), 0);
    EXPECT_EQ(stats.lost, lost);
    publisher_end(pair.publisher);
    subscription_end(pair.subscription);
    ipc_connection_close(pair.writing);
    ipc_connection_close(pair.reading);
}

static void test_loan_is_kept(void **state)
{
    struct pair pair = pair_new("loan", "loan", IPC_SLOW_BLOCK);
    struct ipc_message taken;
    struct ipc_event event;
    void *loan;
    pair_exchange(&pair, 10);
    publish_numbers(pair.publisher, 10, 11, 64);
    EXPECT_EQ(ipc_subscription_take(pair.subscription, &taken, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_publisher_loan(pair.publisher, 64, NULL, &loan), 0);
    kill_both();
    start_again();
    do
        EXPECT(ipc_connection_dispatch(pair.writing) <= 0);
    while (!took(pair.writing, IPC_EVENT_RECONNECTED, &event));
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, "x", 1), -EBUSY);
    message_fill(loan, 64, 11);
    EXPECT_EQ(ipc_publisher_commit(pair.publisher, 64), 0);
    pair.at = 11;
    receive_numbers(pair.subscription, pair.at, pair.at + 1, 64);
    pair.at = 12;
    EXPECT(message_holds(taken.data, 64, 10));
    while (!took(pair.reading, IPC_EVENT_RECONNECTED, &event))
        pair_exchange(&pair, 1);
    EXPECT(message_holds(taken.data, 64, 10)); /* it is still ours */
    EXPECT_EQ(ipc_subscription_release(pair.subscription, 1), 0);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

struct shared {
    ipc_connection *connection;
    const char *topic;
    _Atomic bool stop;
};

/* Both ends are of this thread, and each is declared again by calls on it alone: so both are called. */
static void pair_meets(struct pair *pair)
{
    char byte;
    int readers;
    while ((readers = ipc_publisher_wait_readers(pair->publisher, 1, 0)) < 0) {
        EXPECT_EQ(readers, -ETIMEDOUT);
        EXPECT_EQ(ipc_subscription_receive(pair->subscription, &byte, 1, NULL, 0), -EAGAIN);
        sched_yield();
    }
    EXPECT_EQ(readers, 1);
}

/* A publisher and a subscription of its own, on a connection that another thread uses, too. */
static void *thread_works(void *argument)
{
    struct shared *shared = argument;
    struct pair pair = {shared->connection, shared->connection, NULL, NULL, 0};
    pair.publisher = publisher_new(shared->connection, shared->topic, 1 << 16, 0);
    pair.subscription = subscription_new(shared->connection, shared->topic, IPC_START_NEXT, IPC_SLOW_BLOCK,
                                         IPC_SUBSCRIPTION_SELF);
    pair_meets(&pair);
    while (!atomic_load(&shared->stop))
        pair_exchange(&pair, 10);
    pair_meets(&pair);
    pair_exchange(&pair, 1000);
    publisher_end(pair.publisher);
    subscription_end(pair.subscription);
    return NULL;
}

static void test_threads(void **state)
{
    ipc_connection *connection = connection_lasting(SECONDS(60));
    struct shared shared[] = {{connection, "thread.1", false}, {connection, "thread.2", false}};
    pthread_t threads[2];
    struct ipc_event event;
    for (int i = 0; i < 2; i++)
        EXPECT_EQ(pthread_create(&threads[i], NULL, thread_works, &shared[i]), 0);
    kill_both();
    start_again();
    while (!took(connection, IPC_EVENT_RECONNECTED, &event))
        sched_yield();
    for (int i = 0; i < 2; i++)
        atomic_store(&shared[i].stop, true);
    for (int i = 0; i < 2; i++)
        EXPECT_EQ(pthread_join(threads[i], NULL), 0);
    ipc_connection_close(connection);
}

/* Only a broker that went away is come back to. */
static void test_ended_for_cause(void **state)
{
    ipc_connection *connection = connection_lasting(SECONDS(5));
    ipc_publisher *publisher = publisher_new(connection, "cause", 1 << 16, 0);
    struct ipc_error error = {0};
    struct ipc_event event;
    int fd = -1;
    struct sockaddr_storage name;
    for (int i = 3; fd < 0; i++) { /* the socket of the session: say what no client says */
        socklen_t size = sizeof(name);
        if (getpeername(i, (struct sockaddr *)&name, &size) == 0 && name.ss_family == AF_UNIX)
            fd = i;
    }
    EXPECT_EQ(send(fd, "nonsense", 8, MSG_NOSIGNAL), 8);
    event = event_wait(connection, IPC_EVENT_ENDED);
    EXPECT_EQ(event.reason, IPC_REASON_PROTOCOL);
    EXPECT_EQ(ipc_connection_dispatch(connection), -EPIPE);
    EXPECT_EQ(ipc_publisher_publish(publisher, "x", 1), -EPIPE);
    ipc_publisher *other;
    EXPECT_EQ(ipc_publisher_open(&other, connection, "other", NULL, &error), -EPIPE);
    EXPECT_TEXT(error.text, "open a new connection");
    ipc_connection_close(connection);
}

static void test_not_asked_for(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "plain", 1 << 16, 0), *other;
    struct ipc_error error = {0};
    kill_both();
    start_again();
    EXPECT_EQ(ipc_connection_dispatch(connection), -EPIPE);
    EXPECT_EQ(ipc_publisher_publish(publisher, "x", 1), -EPIPE);
    EXPECT_EQ(ipc_publisher_open(&other, connection, "other", NULL, &error), -EPIPE);
    EXPECT_TEXT(error.text, "open a new connection");
    ipc_connection_close(connection);
}

/* ---- services ----------------------------------------------------------------------------------------------- */

#define SERVICE "reconnect.service"

/* Serves until it is told to end. What is odd is not answered: who called that waits for it. */
static void serve(void *argument)
{
    int *gate = argument;
    ipc_connection *connection = connection_lasting(SECONDS(60));
    ipc_server *server;
    bool end = false;
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, NULL, NULL), 0);
    gate_open(*gate);
    while (!end) {
        struct ipc_request *request;
        uint32_t number;
        EXPECT_EQ(ipc_server_receive(server, &number, sizeof(number), &request, IPC_FOREVER), sizeof(number));
        end = number == 0;
        if (number % 2) {
            gate_open(*gate);
            continue;
        }
        int result = ipc_request_reply(request, &number, sizeof(number), NULL);
        EXPECT(result == 0 || result == -EPIPE);
    }
    ipc_server_close(server);
    ipc_connection_close(connection);
}

static void call_even(ipc_client *client, uint32_t number)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    uint32_t answer = 1;
    options.flags = IPC_CALL_WAIT;
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_client_call(client, &number, sizeof(number), &answer, sizeof(answer), &options, NULL), 4);
    EXPECT_EQ(answer, number);
}

/* Until this side knows. */
static void notice_end(ipc_connection *connection)
{
    struct ipc_event event;
    while (!took(connection, IPC_EVENT_ENDED, &event))
        EXPECT(ipc_connection_dispatch(connection) <= 0);
}

static void test_calls(void **state)
{
    int gate = gate_new();
    pid_t server = child_start(serve, &gate);
    ipc_connection *connection = connection_lasting(SECONDS(60));
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    ipc_client *client;
    ipc_call *lost, *again, *later = NULL;
    uint32_t odd = 1, even = 2;
    gate_wait(gate);
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, NULL, NULL), 0);
    for (uint32_t i = 2; i <= 10; i += 2) {
        call_even(client, i);
        EXPECT_EQ(ipc_call_start(&lost, client, &odd, sizeof(odd), &options), 0);
        gate_wait(gate);
        options.flags = IPC_CALL_RETRY;
        EXPECT_EQ(ipc_call_start(&again, client, &odd, sizeof(odd), &options), 0);
        gate_wait(gate);
        kill_both();
        if (i % 4) {
            notice_end(connection);
            EXPECT_EQ(ipc_call_next(lost, &reply, IPC_FOREVER), -ECONNRESET); /* at once */
            EXPECT_EQ(reply.reason, IPC_REASON_SHUTDOWN);
            EXPECT_TEXT(reply.text, "may be made again");
        }
        EXPECT_EQ(ipc_call_wait(again, 0), -EAGAIN);
        options.flags = 0;
        if (i % 4) /* there is no broker: it waits for one */
            EXPECT_EQ(ipc_call_start(&later, client, &even, sizeof(even), &options), 0);
        start_again();
        EXPECT_EQ(ipc_call_wait(lost, IPC_FOREVER), 0);
        EXPECT_EQ(ipc_call_next(lost, &reply, 0), -ECONNRESET);
        if (i % 4) {
            EXPECT_EQ(ipc_call_next(later, &reply, IPC_FOREVER), 1);
            ipc_call_free(later);
        }
        EXPECT_EQ(ipc_call_wait(again, 0), -EAGAIN);
        while (ipc_call_wait(again, 1000000) == -ETIME && poll(&(struct pollfd){gate, POLLIN, 0}, 1, 0) == 0)
            ; /* the server has it once more */
        gate_wait(gate);
        ipc_call_free(again);
        ipc_call_free(lost);
    }
    call_even(client, 0);
    child_done(server);
    ipc_connection_close(connection);
    close(gate);
}

/* Descriptors are quiet while there is no broker but to try again, and once all is as it was. */
static void test_service_descriptors(void **state)
{
    ipc_connection *calling = connection_lasting(SECONDS(60)), *serving = connection_lasting(SECONDS(60));
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_event event;
    struct ipc_request *request;
    struct ipc_reply reply;
    ipc_client *client;
    ipc_server *server;
    ipc_call *call;
    options.timeout_ns = IPC_FOREVER;
    char byte;
    EXPECT_EQ(ipc_server_open(&server, serving, SERVICE, NULL, NULL), 0);
    EXPECT_EQ(ipc_client_open(&client, calling, SERVICE, NULL, NULL), 0);
    struct pollfd ready[] = {{ipc_client_fd(client), POLLIN, 0}, {ipc_server_fd(server), POLLIN, 0}};
    EXPECT(ready[0].fd >= 0 && ready[1].fd >= 0);
    for (int round = 0; round < 3; round++) {
        bool called = false, served = false;
        EXPECT_EQ(ipc_call_start(&call, client, "x", 1, &options), 0);
        while (ipc_call_wait(call, 0) == -EAGAIN) {
            EXPECT(poll(ready, 2, -1) > 0);
            EXPECT(ipc_client_dispatch(client, 0) >= 0);
            ssize_t size = ipc_server_receive(server, &byte, 1, &request, 0);
            EXPECT(size == -EAGAIN || (size == 1 && ipc_request_reply(request, "y", 1, NULL) == 0));
        }
        EXPECT_EQ(ipc_call_next(call, &reply, 0), 1);
        ipc_call_free(call);
        kill_both();
        notice_end(calling);
        notice_end(serving);
        do {
            EXPECT(ipc_client_dispatch(client, 0) >= 0);
            EXPECT_EQ(ipc_server_receive(server, &byte, 1, &request, 0), -EAGAIN);
        } while (poll(ready, 2, 0) > 0);
        start_again();
        while (!called || !served) {
            EXPECT(poll(ready, 2, -1) > 0);
            EXPECT(ipc_client_dispatch(client, 0) >= 0);
            EXPECT_EQ(ipc_server_receive(server, &byte, 1, &request, 0), -EAGAIN);
            called = called || took(calling, IPC_EVENT_RECONNECTED, &event);
            served = served || took(serving, IPC_EVENT_RECONNECTED, &event);
        }
        do {
            EXPECT(ipc_client_dispatch(client, 0) >= 0);
            EXPECT_EQ(ipc_server_receive(server, &byte, 1, &request, 0), -EAGAIN);
        } while (poll(ready, 2, 0) > 0);
    }
    ipc_connection_close(calling);
    ipc_connection_close(serving);
}

static void test_call_without_broker(void **state)
{
    ipc_connection *connection = connection_lasting(SECONDS(60));
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    struct ipc_request *request;
    ipc_client *client;
    ipc_server *server;
    char byte;
    options.timeout_ns = 1000000;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, NULL, NULL), 0);
    EXPECT_EQ(ipc_server_open(&server, connection, "reconnect.other", NULL, NULL), 0);
    struct pollfd ready = {.fd = ipc_client_fd(client), .events = POLLIN};
    EXPECT(ready.fd >= 0);
    kill_both();
    notice_end(connection);
    EXPECT_EQ(ipc_client_call(client, "x", 1, &byte, 1, &options, &reply), -ETIMEDOUT);
    EXPECT_TEXT(reply.text, "did not come back in time");
    EXPECT_EQ(ipc_server_receive(server, &byte, 1, &request, 0), -EAGAIN);
    EXPECT_EQ(ipc_server_receive(server, &byte, 1, &request, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_client_dispatch(client, 0), 0);
    start_again();
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_client_call(client, "x", 1, &byte, 1, &options, &reply), -ENOENT);
    EXPECT_EQ(ipc_client_fd(client), ready.fd);
    ipc_connection_close(connection);
}

/* ---- queues --------------------------------------------------------------------------------------------- */

#define HELD 4u /* by the queue; what is sent beyond that stays undecided */
#define SENT 10u

static void count_refused(void *context, const struct ipc_refusal *refusal)
{
    EXPECT_EQ(refusal->code, -EPIPE);
    ++*(unsigned *)context;
}

static ipc_producer *jobs_new(ipc_connection *connection, unsigned *refused)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_producer_options options = IPC_PRODUCER_OPTIONS_INIT;
    ipc_producer *producer;
    settings.given = IPC_QUEUE_MESSAGES_MAX;
    settings.messages_max = HELD;
    queue_new(connection, "jobs", &settings);
    options.refused = count_refused;
    options.context = refused;
    EXPECT_EQ(ipc_producer_open(&producer, connection, "jobs", &options, NULL), 0);
    return producer;
}

/* What a queue had not confirmed is refused, each once; what it had is not. */
static void test_producer(void **state)
{
    unsigned refused = 0;
    ipc_connection *connection = connection_lasting(SECONDS(60));
    ipc_producer *second = jobs_new(connection, &refused), *first = producer_new(connection, "jobs"), *other;
    struct ipc_error error = {0};
    struct ipc_refusal refusal;
    uint64_t tickets[SENT];
    for (unsigned i = 0; i < SENT; i++)
        EXPECT_EQ(ipc_producer_send(first, &i, sizeof(i), IPC_FOREVER, &tickets[i]), 0);
    EXPECT_EQ(ipc_producer_confirm(first, tickets[HELD - 1], IPC_FOREVER, NULL), 0);
    for (unsigned i = 0; i < SENT; i++)
        EXPECT_EQ(ipc_producer_send(second, &i, sizeof(i), IPC_FOREVER, NULL), 0);
    kill_both();
    EXPECT_EQ(ipc_producer_confirm(first, tickets[SENT - 1], IPC_FOREVER, &error), -EPIPE);
    EXPECT_TEXT(error.text, "open another producer, and send it again");
    EXPECT_EQ(ipc_producer_flush(first, IPC_FOREVER), -EPIPE);
    EXPECT_EQ(ipc_producer_send(first, "x", 1, IPC_FOREVER, NULL), -EPIPE);
    EXPECT_EQ(ipc_producer_confirm(first, tickets[HELD - 1], 0, NULL), 0);
    uint64_t confirmed = ipc_producer_confirmed(first);
    EXPECT(confirmed >= tickets[HELD - 1] && confirmed < tickets[HELD]);
    EXPECT_EQ(ipc_producer_dispatch(second), -EPIPE);
    EXPECT_EQ(refused, SENT);
    start_again();
    EXPECT_EQ(ipc_producer_open(&other, connection, "jobs", NULL, &error), -ENOENT);
    other = jobs_new(connection, &refused);
    ipc_consumer *consumer = consumer_new(connection, "jobs", 0);
    for (unsigned i = HELD; i < SENT; i++) {
        EXPECT_EQ(ipc_producer_next_refusal(first, &refusal), 1);
        EXPECT_EQ(refusal.ticket, tickets[i]);
        EXPECT_EQ(refusal.code, -EPIPE);
        EXPECT_EQ(ipc_producer_send(other, &i, sizeof(i), IPC_FOREVER, NULL), 0);
        struct ipc_queue_message message;
        unsigned number;
        EXPECT_EQ(ipc_consumer_receive(consumer, &number, sizeof(number), &message, IPC_FOREVER), 4);
        EXPECT_EQ(number, i);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    EXPECT_EQ(ipc_producer_next_refusal(first, &refusal), 0);
    EXPECT_EQ(ipc_producer_flush(other, IPC_FOREVER), 0);
    ipc_producer_close(first);
    ipc_connection_close(connection);
}

/* Deliveries of a session that is over are void, and acknowledging them does no harm. */
static void test_consumer(void **state)
{
    unsigned refused = 0;
    ipc_connection *connection = connection_lasting(SECONDS(60));
    ipc_producer *producer = jobs_new(connection, &refused);
    ipc_consumer *consumer = consumer_new(connection, "jobs", 0), *other;
    struct ipc_queue_message message, taken;
    char byte;
    EXPECT_EQ(ipc_producer_send(producer, "x", 1, IPC_FOREVER, NULL), 0);
    EXPECT_EQ(ipc_producer_send(producer, "y", 1, IPC_FOREVER, NULL), 0);
    EXPECT_EQ(ipc_consumer_receive(consumer, &byte, 1, &message, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_consumer_take(consumer, &taken, 1, IPC_FOREVER), 1);
    kill_both();
    EXPECT_EQ(ipc_consumer_receive(consumer, &byte, 1, &message, IPC_FOREVER), -EPIPE);
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), -EPIPE);
    EXPECT_EQ(*(const char *)taken.data, 'y'); /* it is still ours */
    EXPECT_EQ(ipc_consumer_release(consumer, 1), 0);
    start_again();
    producer = jobs_new(connection, &refused);
    other = consumer_new(connection, "jobs", 0);
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), -EPIPE);
    EXPECT_EQ(ipc_producer_send(producer, "z", 1, IPC_FOREVER, NULL), 0);
    EXPECT_EQ(ipc_consumer_receive(other, &byte, 1, &message, IPC_FOREVER), 1);
    EXPECT_EQ(byte, 'z');
    EXPECT_EQ(ipc_consumer_ack(other, message.delivery), 0);
    EXPECT_EQ(ipc_consumer_flush(other, IPC_FOREVER), 0);
    EXPECT_EQ(refused, 0);
    ipc_connection_close(connection);
}

/* ---- segments ------------------------------------------------------------------------------------------- */

static void *wait_for_permit(void *segment)
{
    EXPECT_EQ(ipc_segment_acquire(segment, IPC_FOREVER), -EPIPE);
    return NULL;
}

static void test_segment(void **state)
{
    ipc_connection *connection = connection_lasting(SECONDS(60));
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_segment *old, *other, *next;
    pthread_t waiter;
    options.bytes = 4096;
    options.flags = IPC_SEGMENT_CREATE | IPC_SEGMENT_KEEP;
    EXPECT_EQ(ipc_segment_open(&old, connection, "kept", &options, &error), 0);
    EXPECT_EQ(ipc_segment_open(&other, connection, "other", &options, &error), 0);
    memcpy(ipc_segment_data(old), "what was there", sizeof("what was there"));
    EXPECT_EQ(ipc_segment_acquire(old, 0), 0);
    EXPECT_EQ(pthread_create(&waiter, NULL, wait_for_permit, old), 0);
    kill_both();
    EXPECT_EQ(pthread_join(waiter, NULL), 0);
    int permit; /* of a free one, too */
    while ((permit = ipc_segment_acquire(other, 0)) >= 0)
        (void)ipc_segment_release(other, permit);
    EXPECT_EQ(permit, -EPIPE);
    start_again();
    EXPECT_EQ(ipc_segment_open(&next, connection, "kept", NULL, &error), -ENOENT);
    EXPECT_EQ(ipc_segment_open(&next, connection, "kept", &options, &error), 0);
    EXPECT_EQ(ipc_segment_created(next), 1);
    EXPECT_EQ(*(char *)ipc_segment_data(next), 0);
    EXPECT_EQ(ipc_segment_acquire(next, 0), 0); /* whatever is held of the old one */
    memcpy(ipc_segment_data(next), ipc_segment_data(old), sizeof("what was there"));
    EXPECT_EQ(ipc_segment_release(next, 0), 0);
    EXPECT_EQ(ipc_segment_acquire(old, IPC_FOREVER), -EPIPE);
    EXPECT_EQ(ipc_segment_release(old, 0), -EPIPE);
    EXPECT_EQ(ipc_segment_release(old, 0), -EPERM);
    ipc_segment_close(old);
    EXPECT_EQ(strcmp(ipc_segment_data(next), "what was there"), 0);
    ipc_connection_close(connection);
}

/* ---- ipcctl ------------------------------------------------------------------------------------------------- */

struct tool {
    pid_t pid;
    int in, out, err; /* what it reads from; memfds that it writes to */
};

static struct tool tool_start(const char *const *arguments)
{
    struct tool tool = {.out = memfd_create("out", MFD_CLOEXEC), .err = memfd_create("err", MFD_CLOEXEC)};
    const char *argv[8] = {getenv("IPCCTL_BIN")};
    int in[2];
    EXPECT(argv[0] != NULL && tool.out >= 0 && tool.err >= 0 && pipe2(in, O_CLOEXEC) == 0);
    for (unsigned n = 1; *arguments; n++)
        argv[n] = *arguments++;
    tool.in = in[1];
    tool.pid = fork_child();
    EXPECT(tool.pid >= 0);
    if (tool.pid == 0) {
        if (dup2(in[0], 0) == 0 && dup2(tool.out, 1) == 1 && dup2(tool.err, 2) == 2)
            execv(argv[0], (char **)(uintptr_t)argv);
        _exit(126);
    }
    close(in[0]);
    return tool;
}

#define TOOL(...) tool_start((const char *const[]){__VA_ARGS__, NULL})

static void tool_say(const struct tool *tool, const char *text)
{
    EXPECT_EQ(write(tool->in, text, strlen(text)), (ssize_t)strlen(text));
}

/* How often. */
static unsigned tool_said(int fd, const char *text)
{
    char said[1024] = "";
    unsigned count = 0;
    EXPECT(pread(fd, said, sizeof(said) - 1, 0) >= 0);
    for (const char *at = said; (at = strstr(at, text)); at++)
        count++;
    return count;
}

static void tool_ends(struct tool *tool, int status, const char *out, const char *err)
{
    close(tool->in);
    EXPECT_EQ(wait_child(tool->pid), status);
    EXPECT(!*out || tool_said(tool->out, out) == 1);
    EXPECT(tool_said(tool->err, err) > 0);
    close(tool->out);
    close(tool->err);
}

static void test_tools_come_back(void **state)
{
    struct tool sub = TOOL("sub", "--no-tap", "--count=3", "tool.*");
    struct tool pub = TOOL("pub", "--wait=1", "--timeout=60", "tool.a");
    tool_say(&pub, "one\n");
    while (!tool_said(sub.out, "tool.a one\n"))
        sched_yield();
    for (unsigned i = 1; i <= 2; i++) {
        kill_both();
        while (tool_said(pub.err, "it went away") < i)
            sched_yield();
        tool_say(&pub, "two\n");
        start_again();
        while (tool_said(sub.out, "tool.a two\n") < i)
            sched_yield();
    }
    tool_ends(&sub, 0, "tool.a one\ntool.a two\ntool.a two\n", "ipcctl: broker: it is back");
    tool_ends(&pub, 0, "", "ipcctl: broker: it is back");
}

static void test_tool_serves_again(void **state)
{
    struct tool serve = TOOL("serve", "--echo", "--count=3", "--timeout=60", SERVICE);
    ipc_connection *connection = connection_lasting(SECONDS(60));
    ipc_client *client;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, NULL, NULL), 0);
    call_even(client, 2);
    for (unsigned i = 1; i <= 2; i++) {
        kill_both();
        while (tool_said(serve.err, "it went away") < i)
            sched_yield();
        notice_end(connection);
        start_again();
        call_even(client, 4);
    }
    tool_ends(&serve, 0, "", "ipcctl: broker: it is back");
    ipc_connection_close(connection);
}

static void test_tools_give_up(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription = subscription_new(connection, "up", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    struct tool pub = TOOL("pub", "--timeout=2", "up");
    char byte;
    tool_say(&pub, "x\n"); /* it is at it: what it needs the broker for to begin with is done */
    EXPECT_EQ(ipc_subscription_receive(subscription, &byte, 1, NULL, IPC_FOREVER), 1);
    kill_both();
    tool_ends(&pub, 3, "", "did not come back in time; --timeout waits longer");
    ipc_connection_close(connection);
    start_again();
}

#define GUARDED(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        GUARDED(test_traffic_goes_on),
        GUARDED(test_again_and_again),
        GUARDED(test_stopped_in_order),
        GUARDED(test_descriptor_of_connection),
        GUARDED(test_descriptor_of_subscription),
        GUARDED(test_nobody_there_for_a_while),
        GUARDED(test_gaps_are_counted),
        GUARDED(test_loan_is_kept),
        GUARDED(test_threads),
        GUARDED(test_ended_for_cause),
        GUARDED(test_not_asked_for),
        GUARDED(test_calls),
        GUARDED(test_service_descriptors),
        GUARDED(test_call_without_broker),
        GUARDED(test_producer),
        GUARDED(test_consumer),
        GUARDED(test_segment),
        GUARDED(test_tools_come_back),
        GUARDED(test_tool_serves_again),
        GUARDED(test_tools_give_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
