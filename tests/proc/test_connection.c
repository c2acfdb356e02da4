/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections: addresses, identity, brokers that are missing, stopped, killed or silent, and forked children.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/frame.h"
#include "proto/layout.h"
#include "tests/support/broker.h"

static int open_at(const char *address, struct ipc_error *error)
{
    ipc_connection *connection = NULL;
    *error = (struct ipc_error){0};
    int result = ipc_connection_open(&connection, address, NULL, error);
    EXPECT_EQ(connection != NULL, result == 0);
    EXPECT_EQ(error->code, result);
    ipc_connection_close(connection);
    return result;
}

static void test_addresses(void **state)
{
    struct ipc_error error;
    (void)state;
    EXPECT_EQ(open_at(NULL, &error), 0);
    setenv("IPC_ADDRESS", "/nowhere/at/all", 1);
    EXPECT_EQ(open_at(broker.address, &error), 0);
    EXPECT_EQ(open_at(NULL, &error), -ENOENT);
    unsetenv("IPC_ADDRESS");
    setenv("XDG_RUNTIME_DIR", broker.folder, 1);
    EXPECT_EQ(open_at(NULL, &error), 0);
    setenv("IPC_ADDRESS", "", 1);
    EXPECT_EQ(open_at("", &error), 0);
    unsetenv("XDG_RUNTIME_DIR");
    setenv("IPC_ADDRESS", broker.address, 1);
}

static void test_no_broker(void **state)
{
    struct ipc_error error;
    char path[200], text[80];
    (void)state;
    snprintf(path, sizeof(path), "%s/nobody", broker.folder);
    EXPECT_EQ(open_at(path, &error), -ENOENT);
    EXPECT_TEXT(error.text, path);
    EXPECT_TEXT(error.text, "IPC_ADDRESS");

    int file = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    EXPECT_EQ(open_at(path, &error), -ECONNREFUSED);
    EXPECT_TEXT(error.text, "start ipcd");
    close(file);
    unlink(path);

    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    EXPECT_EQ(open_at(path, &error), -ENAMETOOLONG);
    EXPECT_TEXT(error.text, "107");
    path[107] = '\0';
    EXPECT_EQ(open_at(path, &error), -ENOENT);
    path[107] = 'a';
    path[108] = '\0';
    EXPECT_EQ(open_at(path, &error), -ENAMETOOLONG);

    ipc_connection *connection = NULL;
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    memset(text, 'n', sizeof(text) - 1);
    text[64] = '\0';
    options.name = text;
    EXPECT_EQ(ipc_connection_open(&connection, NULL, &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "63");
    options.size = 3;
    EXPECT_EQ(ipc_connection_open(&connection, NULL, &options, &error), -EINVAL);
    EXPECT_EQ(ipc_connection_open(NULL, NULL, NULL, NULL), -EINVAL);
    EXPECT(connection == NULL);
    EXPECT(ipc_connection_close(NULL) == NULL);
}

/* Send one HELLO, and expect it to be refused. */
static void refused(uint32_t version, uint64_t fingerprint)
{
    static struct ipc_frame_arena arena;
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    struct ipc_frame frame;
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    hello.version_min = hello.version_max = version;
    hello.fingerprint = fingerprint;
    hello.name = (char *)"other";
    int fd = broker_socket(&broker);
    int size = ipc_frame_pack(packet, sizeof(packet), IPC__CONTROL__TYPE__HELLO, 7, &hello.base);
    EXPECT_EQ(send(fd, packet, (size_t)size, MSG_NOSIGNAL), size);
    ssize_t got = recv(fd, packet, sizeof(packet), 0);
    EXPECT(got > 0);
    EXPECT_EQ(ipc_frame_unpack(&frame, &arena, packet, (size_t)got), 0);
    EXPECT_EQ(frame.type, IPC__CONTROL__TYPE__FAILURE);
    EXPECT_EQ(frame.id, 7);
    const Ipc__Control__Failure *failure = (const void *)frame.message;
    EXPECT_EQ(failure->code, -EPROTONOSUPPORT);
    EXPECT(strlen(failure->text) > 20);
    while ((got = recv(fd, packet, sizeof(packet), 0)) > 0) /* that the session is over */
        ;
    EXPECT_EQ(got, 0);
    close(fd);
}

static void test_wrong_version(void **state)
{
    (void)state;
    refused(IPC_CONTROL_VERSION + 1, IPC_LAYOUT_FINGERPRINT);
    refused(IPC_CONTROL_VERSION, IPC_LAYOUT_FINGERPRINT + 1);
}

static void test_identity(void **state)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *named, *plain = connection_new();
    struct ipc_peer a, b;
    (void)state;
    options.name = "na\tm\xc3\xa9";
    EXPECT_EQ(ipc_connection_open(&named, NULL, &options, NULL), 0);
    EXPECT_EQ(ipc_connection_identity(plain, &a), 0);
    EXPECT_EQ(ipc_connection_identity(named, &b), 0);
    EXPECT(a.session != 0 && b.session != 0 && a.session != b.session);
    EXPECT_EQ(a.pid, getpid());
    EXPECT_EQ(a.uid, geteuid());
    EXPECT_EQ(a.gid, getegid());
    EXPECT(strcmp(a.name, "test_connection") == 0);
    EXPECT(strcmp(b.name, "na?m??") == 0);
    ipc_connection_close(plain);
    ipc_connection_close(named);
}

static void test_close_with_open_handles(void **state)
{
    struct broker_counts before = broker_count(&broker);
    (void)state;
    for (int round = 0; round < 3; round++) {
        ipc_connection *one = connection_new(), *two = connection_new();
        ipc_publisher *publisher = publisher_new(one, "open.a", 0, 0);
        publisher_new(one, "open.b", 0, 0);
        ipc_subscription *subscription = subscription_new(two, "open.*", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
        subscription_new(one, "open.>", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_SELF);
        EXPECT(ipc_subscription_wait_writers(subscription, 2, IPC_FOREVER) >= 2);
        EXPECT(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER) >= 2);
        publish_numbers(publisher, 0, 10, 64);
        if (round == 1)
            EXPECT(ipc_connection_fd(two) >= 0);
        struct ipc_message messages[3];
        EXPECT(ipc_subscription_take(subscription, messages, 3, IPC_FOREVER) > 0);
        void *loan;
        EXPECT_EQ(ipc_publisher_loan(publisher, 100, NULL, &loan), 0);
        EXPECT(ipc_connection_close(round == 2 ? two : one) == NULL);
        EXPECT(ipc_connection_close(round == 2 ? one : two) == NULL);
    }
    broker_settles(&broker, &before);
}

/* ---- brokers that end -------------------------------------------------------------------------------------- */

enum waiter { RECEIVE, TAKE, BATCH, READERS, WRITERS, PUBLISH, POLL, WAITERS };

struct end {
    int ready;
    enum waiter waiter;
    unsigned reason;
};

/* Every call on a session that is over says so. */
static void all_over(ipc_connection *connection, ipc_publisher *publisher, ipc_subscription *subscription,
                     unsigned reason)
{
    char buffer[64];
    struct iovec piece = {buffer, 8};
    struct ipc_error error;
    struct ipc_event event;
    struct ipc_publisher_stats stats;
    ipc_publisher *other;
    ipc_subscription *another;
    void *loan;
    EXPECT_EQ(ipc_connection_dispatch(connection), -EPIPE);
    event = event_wait(connection, IPC_EVENT_ENDED);
    EXPECT_EQ(event.reason, reason);
    EXPECT_EQ(ipc_publisher_publish(publisher, buffer, 8), -EPIPE);
    EXPECT_EQ(ipc_publisher_publishv(publisher, &piece, 1, NULL), -EPIPE);
    EXPECT_EQ(ipc_publisher_publish_batch(publisher, &piece, 1, 0), -EPIPE);
    EXPECT_EQ(ipc_publisher_loan(publisher, 8, NULL, &loan), -EPIPE);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1000, IPC_FOREVER), -EPIPE);
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    ssize_t got;
    while ((got = ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER)) >= 0)
        ;
    EXPECT_EQ(got, -EPIPE);
    EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0), -EPIPE);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1000, IPC_FOREVER), -EPIPE);
    EXPECT_EQ(ipc_publisher_open(&other, connection, "x", NULL, &error), -EPIPE);
    EXPECT_TEXT(error.text, "over");
    EXPECT_EQ(ipc_subscription_open(&another, connection, "x", NULL, &error), -EPIPE);
}

static void wait_for_end(void *argument)
{
    struct end *end = argument;
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "end.here", 4096, 0);
    enum ipc_slow slow = end->waiter == TAKE || end->waiter == PUBLISH ? IPC_SLOW_BLOCK
                                                                       : IPC_SLOW_DROP_OLDEST;
    ipc_subscription *subscription = subscription_new(connection,
                                                      end->waiter == PUBLISH ? "end.here" : "end.nothing",
                                                      IPC_START_NEXT, slow, IPC_SUBSCRIPTION_SELF);
    char buffer[64] = "";
    struct ipc_message message;
    struct pollfd wait = {.fd = end->waiter == POLL ? ipc_subscription_fd(subscription) : -1,
                          .events = POLLIN};
    if (end->waiter == PUBLISH)
        EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    ssize_t result = -EAGAIN;
    gate_open(end->ready);
    switch (end->waiter) {
    case RECEIVE:
        result = ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER);
        break;
    case TAKE:
        result = ipc_subscription_take(subscription, &message, 1, IPC_FOREVER);
        break;
    case BATCH:
        result =
            ipc_subscription_receive_batch(subscription, buffer, sizeof(buffer), &message, 1, IPC_FOREVER);
        break;
    case READERS:
        result = ipc_publisher_wait_readers(publisher, 5, IPC_FOREVER);
        break;
    case WRITERS:
        result = ipc_subscription_wait_writers(subscription, 5, IPC_FOREVER);
        break;
    case PUBLISH:
        while ((result = ipc_publisher_publish(publisher, buffer, sizeof(buffer))) == 0)
            ;
        break;
    default:
        while (result == -EAGAIN && poll(&wait, 1, -1) == 1)
            result = ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0);
    }
    EXPECT_EQ(result, -EPIPE);
    all_over(connection, publisher, subscription, end->reason);
    if (wait.fd >= 0)
        EXPECT_EQ(poll(&wait, 1, 0), 1);
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void end_under_waiters(bool killed)
{
    struct end ends[WAITERS];
    pid_t children[WAITERS];
    for (int i = 0; i < WAITERS; i++) {
        ends[i] = (struct end){.ready = gate_new(), .waiter = (enum waiter)i, .reason = IPC_REASON_SHUTDOWN};
        children[i] = child_start(wait_for_end, &ends[i]);
        gate_wait(ends[i].ready);
    }
    ipc_connection *mine = connection_new();
    ipc_publisher *publisher = publisher_new(mine, "mine", 0, IPC_PUBLISHER_RETAIN);
    ipc_subscription *subscription =
        subscription_new(mine, ">", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_SELF);
    if (killed)
        broker_kill(&broker);
    else
        broker_stop(&broker);
    all_over(mine, publisher, subscription, IPC_REASON_SHUTDOWN);
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(mine);
    for (int i = 0; i < WAITERS; i++) {
        child_done(children[i]);
        close(ends[i].ready);
    }
}

static void test_broker_stops(void **state)
{
    (void)state;
    end_under_waiters(false);
}

static void test_broker_killed(void **state)
{
    (void)state;
    end_under_waiters(true);
}

static void test_broker_silent(void **state)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *patient, *hasty = NULL, *none = NULL;
    ipc_publisher *publisher = NULL, *live;
    ipc_subscription *subscription = NULL;
    struct ipc_error error;
    char buffer[64];
    (void)state;
    options.timeout_ns = SECONDS(1);
    EXPECT_EQ(ipc_connection_open(&hasty, NULL, &options, NULL), 0);
    patient = connection_new();
    live = publisher_new(patient, "live", 0, 0);
    ipc_subscription *reader = subscription_new(hasty, "live", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(live, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_subscription_wait_writers(reader, 1, IPC_FOREVER), 1);

    EXPECT_EQ(kill(broker.pid, SIGSTOP), 0);
    EXPECT_EQ(ipc_connection_open(&none, NULL, &options, &error), -ETIMEDOUT);
    EXPECT_TEXT(error.text, "in time");
    EXPECT_EQ(ipc_publisher_open(&publisher, hasty, "late", NULL, &error), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_open(&subscription, hasty, "late", NULL, &error), -ETIMEDOUT);
    EXPECT(!none && !publisher && !subscription);
    /* Who knows each other needs no broker. */
    publish_numbers(live, 0, 100, 32);
    receive_numbers(reader, 0, 100, 32);
    EXPECT_EQ(ipc_subscription_receive(reader, buffer, sizeof(buffer), NULL, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_wait_writers(reader, 2, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_publisher_wait_readers(live, 2, 1000000), -ETIMEDOUT);
    EXPECT_EQ(kill(broker.pid, SIGCONT), 0);

    ipc_connection_close(hasty); /* its late answers do not disturb */
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_connection_open(&hasty, NULL, &options, &error), 0);
    EXPECT_EQ(ipc_publisher_open(&publisher, hasty, "late", NULL, &error), 0);
    publisher_end(publisher);
    publisher_end(live);
    ipc_connection_close(hasty);
    ipc_connection_close(patient);
}

/* A request that timed out leaves nothing behind once its answer has come. */
static void test_late_answers(void **state)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection;
    ipc_publisher *publisher = NULL;
    ipc_subscription *subscription = NULL;
    (void)state;
    options.timeout_ns = SECONDS(1) / 50;
    int result;
    do
        result = ipc_connection_open(&connection, NULL, &options, NULL);
    while (result == -ETIMEDOUT); /* a busy machine */
    EXPECT_EQ(result, 0);
    struct broker_counts before = broker_count(&broker);
    kill(broker.pid, SIGSTOP);
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "late.a", NULL, NULL), -ETIMEDOUT);
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "late.*", NULL, NULL), -ETIMEDOUT);
    kill(broker.pid, SIGCONT);
    struct broker_counts now;
    do {
        EXPECT_EQ(ipc_connection_dispatch(connection), 0);
        now = broker_count(&broker);
    } while (now.topics != before.topics || now.subscriptions != before.subscriptions ||
             now.segments != before.segments);
    ipc_connection_close(connection);
}

/* ---- fork ---------------------------------------------------------------------------------------------------- */

struct family {
    ipc_connection *connection;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    bool closes;
};

static void be_a_child(void *argument)
{
    struct family *family = argument;
    char buffer[64] = "";
    struct iovec piece = {buffer, 8};
    struct ipc_message message;
    struct ipc_event event;
    struct ipc_peer peer;
    struct ipc_publisher_stats publisher_stats;
    struct ipc_subscription_stats subscription_stats;
    struct ipc_error error;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    void *loan;
    EXPECT_EQ(ipc_connection_identity(family->connection, &peer), -ECHILD);
    EXPECT_EQ(ipc_connection_dispatch(family->connection), -ECHILD);
    EXPECT_EQ(ipc_connection_fd(family->connection), -ECHILD);
    EXPECT_EQ(ipc_connection_next_event(family->connection, &event), -ECHILD);
    EXPECT_EQ(ipc_publisher_open(&publisher, family->connection, "x", NULL, &error), -ECHILD);
    EXPECT_TEXT(error.text, "parent");
    EXPECT_EQ(ipc_subscription_open(&subscription, family->connection, "x", NULL, &error), -ECHILD);
    EXPECT_EQ(ipc_publisher_publish(family->publisher, buffer, 8), -ECHILD);
    EXPECT_EQ(ipc_publisher_publishv(family->publisher, &piece, 1, NULL), -ECHILD);
    EXPECT_EQ(ipc_publisher_publish_batch(family->publisher, &piece, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_publisher_loan(family->publisher, 8, NULL, &loan), -ECHILD);
    EXPECT_EQ(ipc_publisher_commit(family->publisher, 8), -ECHILD);
    EXPECT_EQ(ipc_publisher_abort(family->publisher), -ECHILD);
    EXPECT_EQ(ipc_publisher_wait_readers(family->publisher, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_publisher_stats(family->publisher, &publisher_stats), -ECHILD);
    EXPECT_EQ(ipc_subscription_receive(family->subscription, buffer, 64, NULL, 0), -ECHILD);
    EXPECT_EQ(ipc_subscription_receive_batch(family->subscription, buffer, 64, &message, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_subscription_take(family->subscription, &message, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_subscription_release(family->subscription, 0), -ECHILD);
    EXPECT_EQ(ipc_subscription_wait_writers(family->subscription, 1, 0), -ECHILD);
    EXPECT_EQ(ipc_subscription_fd(family->subscription), -ECHILD);
    EXPECT_EQ(ipc_subscription_stats(family->subscription, &subscription_stats), -ECHILD);

    ipc_connection *own = connection_new();
    ipc_publisher *told = publisher_new(own, "family.child", 0, 0);
    EXPECT(ipc_publisher_wait_readers(told, 1, IPC_FOREVER) >= 1);
    publish_numbers(told, 0, 3, 16);
    publisher_end(told);
    ipc_connection_close(own);
    if (family->closes)
        ipc_connection_close(family->connection);
}

static void test_fork(void **state)
{
    struct family family = {.connection = connection_new()};
    (void)state;
    family.publisher = publisher_new(family.connection, "family.parent", 0, 0);
    family.subscription = subscription_new(family.connection, "family.*", IPC_START_NEXT,
                                           IPC_SLOW_DROP_OLDEST, IPC_SUBSCRIPTION_SELF);
    EXPECT_EQ(ipc_publisher_wait_readers(family.publisher, 1, IPC_FOREVER), 1);
    int fd = ipc_connection_fd(family.connection);
    EXPECT(fd >= 0);
    publish_numbers(family.publisher, 0, 5, 16);
    receive_numbers(family.subscription, 0, 2, 16);
    for (int closes = 0; closes < 2; closes++) {
        family.closes = closes;
        child_done(child_start(be_a_child, &family));
        /* Three messages are left of ours, or five; the child sent three. */
        uint64_t own = closes ? 5 : 2, childs = 0, end = closes ? 10 : 5;
        if (closes)
            publish_numbers(family.publisher, 5, 10, 16);
        while (own < end || childs < 3) {
            struct ipc_message message;
            char buffer[64];
            EXPECT_EQ(ipc_subscription_receive(family.subscription, buffer, 64, &message, IPC_FOREVER), 16);
            bool ours = message.sender->pid == (uint32_t)getpid();
            EXPECT(message_holds(buffer, 16, ours ? own++ : childs++));
        }
        EXPECT_EQ(own, end);
        EXPECT_EQ(ipc_connection_dispatch(family.connection), 0);
    }
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    publish_numbers(family.publisher, 10, 11, 16);
    EXPECT_EQ(poll(&wait, 1, -1), 1);
    receive_numbers(family.subscription, 10, 11, 16);
    publisher_end(family.publisher);
    subscription_end(family.subscription);
    ipc_connection_close(family.connection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_addresses),
        CASE(test_no_broker),
        CASE(test_wrong_version),
        CASE(test_identity),
        CASE(test_close_with_open_handles),
        CASE(test_broker_stops),
        CASE(test_broker_killed),
        CASE(test_broker_silent),
        CASE(test_late_answers),
        CASE(test_fork),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
