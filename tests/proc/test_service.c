/* SPDX-License-Identifier: Apache-2.0
 *
 * Services: calls between processes with a broker of their own. What a server does is told by a call's first byte.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cmocka.h>

#include "libipc/lane/wait.h"
#include "tests/support/broker.h"

#define SERVICE   "math.sum"
#define MANY      64u
#define EXECUTED  4096u
#define HOLDS_MAX 256u

struct shared {
    _Atomic uint32_t executed[EXECUTED]; /* by the number that a call carries */
    _Atomic uint32_t held, cancelled;
    _Atomic int stop;
};

struct roles {
    struct shared *shared;
    int ready;
    uint32_t ring_size;
};

static struct roles roles;

static int setup(void **state)
{
    int result = broker_setup(state);
    roles = (struct roles){shared_new(sizeof(struct shared)), gate_new(), 0};
    return result;
}

static int teardown(void **state)
{
    close(roles.ready);
    shared_free(roles.shared, sizeof(struct shared));
    return broker_teardown(state);
}

#define SERVICE_CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

/* What a call says: an operation and a number. */
struct order {
    char operation;
    uint32_t number;
    char more[56];
};

static void stream(struct ipc_request *request, uint32_t parts)
{
    for (uint32_t i = 0; i < parts; i++) {
        int result = ipc_request_part(request, &i, sizeof(i), NULL);
        if (result == -ECANCELED)
            break;
        if (result == -EPIPE)
            return;
        EXPECT_EQ(result, 0);
    }
    int result = ipc_request_end(request);
    EXPECT(result == 0 || result == -EPIPE);
}

/* Answer one request; false: keep it open. */
static bool obey(struct ipc_request *request, const struct order *order, size_t size)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    struct ipc_header header = {"origin", "server", 6};
    uint32_t pid = (uint32_t)getpid();
    int result = 0;
    switch (order->operation) {
    case 'n': /* count it, and say who did it */
        atomic_fetch_add(&roles.shared->executed[order->number % EXECUTED], 1);
        result = ipc_request_reply(request, &pid, sizeof(pid), NULL);
        break;
    case 'H': /* with headers */
        how.headers = &header;
        how.header_count = 1;
        how.content_type = "text/plain";
        result = ipc_request_reply(request, order, size, &how);
        break;
    case 's':
        stream(request, order->number);
        break;
    case 'f':
        result = ipc_request_fail(request, (int)order->number, "it cannot be done", "why", 3);
        break;
    case 'k': /* count it, and die of it; whoever gets it again answers */
        if (atomic_fetch_add(&roles.shared->executed[order->number % EXECUTED], 1) == 0)
            raise(SIGKILL);
        result = ipc_request_reply(request, &pid, sizeof(pid), NULL);
        break;
    case 'h':
        atomic_fetch_add(&roles.shared->held, 1);
        return false;
    default:
        result = ipc_request_reply(request, order, size, NULL);
        break;
    }
    EXPECT(result == 0 || result == -EPIPE);
    return true;
}

static void serve(void *argument)
{
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    ipc_connection *connection = connection_new();
    struct ipc_request *held[HOLDS_MAX];
    unsigned holds = 0;
    ipc_server *server;
    (void)argument;
    options.ring_size = roles.ring_size;
    options.block_max_ns = SECONDS(60);
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, &options, NULL), 0);
    gate_open(roles.ready);
    while (!atomic_load(&roles.shared->stop)) {
        static unsigned char buffer[1 << 20];
        struct order order = {0};
        struct ipc_request *request;
        ssize_t size = ipc_server_receive(server, buffer, sizeof(buffer), &request, 20000000);
        for (unsigned i = 0; i < holds;) {
            if (!ipc_request_cancelled(held[i])) {
                i++;
                continue;
            }
            int result = ipc_request_end(held[i]);
            EXPECT(result == 0 || result == -EPIPE);
            atomic_fetch_add(&roles.shared->cancelled, 1);
            held[i] = held[--holds];
        }
        if (size < 0) {
            EXPECT_EQ(size, -ETIMEDOUT);
            continue;
        }
        memcpy(&order, buffer, (size_t)size < sizeof(order) ? (size_t)size : sizeof(order));
        if (order.operation == 'h' || order.operation == 'k' || order.operation == 'n' ||
            order.operation == 's' || order.operation == 'f') {
            if (!obey(request, &order, (size_t)size)) {
                EXPECT(holds < HOLDS_MAX);
                held[holds++] = request;
            }
            continue;
        }
        if (order.operation == 'H') {
            (void)obey(request, &order, (size_t)size);
            continue;
        }
        int result = ipc_request_reply(request, buffer, (size_t)size, NULL);
        EXPECT(result == 0 || result == -EPIPE);
    }
    EXPECT(!ipc_server_close(server));
    ipc_connection_close(connection);
}

static pid_t server_start(void)
{
    pid_t child = child_start(serve, NULL);
    gate_wait(roles.ready);
    return child;
}

static void servers_end(const pid_t *servers, unsigned count)
{
    atomic_store(&roles.shared->stop, 1);
    for (unsigned i = 0; i < count; i++)
        child_done(servers[i]);
}

static ipc_client *client_new(ipc_connection *connection, uint32_t ring_size)
{
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    ipc_client *client;
    options.ring_size = ring_size;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, &options, NULL), 0);
    return client;
}

static void client_end(ipc_client *client)
{
    struct ipc_client_stats stats;
    EXPECT_EQ(ipc_client_stats(client, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    EXPECT(!ipc_client_close(client));
}

/* A call that names its server. */
static uint32_t ask_pid(ipc_client *client, uint32_t number)
{
    const struct order order = {.operation = 'n', .number = number};
    uint32_t pid = 0;
    EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &pid, sizeof(pid), NULL, NULL), sizeof(pid));
    return pid;
}

/* ---- one client, one server ---------------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 8, 64, 65, 1000, 30000, 131072 - 8 - 32};
    static unsigned char sent[1 << 18], got[1 << 18];
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 0);
    for (unsigned round = 0; round < 200; round++) {
        size_t size = sizes[round % 7];
        struct ipc_reply reply;
        message_fill(sent, size < 8 ? 8 : size, round);
        sent[0] = 'e';
        memset(got, 0, size + 1);
        EXPECT_EQ(ipc_client_call(client, sent, size, got, sizeof(got), NULL, &reply), size);
        EXPECT_EQ(memcmp(sent, got, size), 0);
        EXPECT_EQ(reply.size, size);
        EXPECT_EQ(reply.server.pid, server);
        EXPECT_EQ(reply.code, 0);
    }
    EXPECT_EQ(ipc_client_call(client, sent, 131072 - 8 - 31, got, sizeof(got), NULL, NULL), -EMSGSIZE);
    struct ipc_reply reply;
    EXPECT_EQ(ipc_client_call(client, "eeeeeeeeee", 10, got, 9, NULL, &reply), -EMSGSIZE);
    EXPECT_EQ(reply.size, 10);
    EXPECT_EQ(ipc_client_call(client, NULL, 0, got, 9, NULL, NULL), 0);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

static void test_headers_and_errors(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 0);
    struct order order = {.operation = 'H', .number = 7}, got;
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    const struct ipc_header header = {"trace", "abc", 3};
    struct ipc_reply reply;
    const void *value;
    size_t size;
    options.headers = &header;
    options.header_count = 1;
    for (unsigned flags = 0; flags <= IPC_CALL_RETRY; flags++) {
        options.flags = flags;
        EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &got, sizeof(got), &options, &reply),
                  sizeof(order));
        EXPECT_EQ(memcmp(&order, &got, sizeof(order)), 0);
        EXPECT_EQ(strcmp(reply.content_type, "text/plain"), 0);
        EXPECT_EQ(ipc_reply_header(&reply, "origin", &value, &size), 0);
        EXPECT(size == 6 && memcmp(value, "server", 6) == 0);
    }
    order.operation = 'f';
    order.number = 1234;
    EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &got, sizeof(got), NULL, &reply), -EREMOTEIO);
    EXPECT_EQ(reply.code, 1234);
    EXPECT_EQ(strcmp(reply.text, "it cannot be done"), 0);
    EXPECT(reply.size == 3 && memcmp(reply.data, "why", 3) == 0);
    EXPECT_EQ(reply.server.pid, server);

    ipc_call *call;
    EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), NULL), 0);
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), -EREMOTEIO);
    EXPECT_EQ(reply.code, 1234);
    EXPECT(reply.size == 3 && memcmp(reply.data, "why", 3) == 0);
    EXPECT(!ipc_call_free(call));
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

static void test_stream(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 0);
    const struct order order = {.operation = 's', .number = 20000}, empty = {.operation = 's'};
    struct ipc_reply reply;
    ipc_call *call, *other;
    EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), NULL), 0);
    EXPECT_EQ(ipc_call_start(&other, client, &empty, sizeof(empty), NULL), 0);
    for (uint32_t i = 0; i < order.number; i++) {
        uint32_t number;
        EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 1);
        EXPECT_EQ(reply.size, sizeof(number));
        memcpy(&number, reply.data, sizeof(number));
        EXPECT_EQ(number, i);
    }
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_call_next(other, &reply, IPC_FOREVER), 0);
    ipc_call_free(call);
    ipc_call_free(other);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

static void test_stream_that_is_not_taken(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    const struct order order = {.operation = 's', .number = 100000000};
    ipc_client *client;
    ipc_call *call;
    options.buffer_max = 4000;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, &options, NULL), 0);
    EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), NULL), 0);
    EXPECT_EQ(ipc_call_wait(call, IPC_FOREVER), 0);
    unsigned parts = 0;
    int result;
    while ((result = ipc_call_next(call, NULL, 0)) == 1)
        parts++;
    EXPECT_EQ(result, -ENOBUFS);
    EXPECT_EQ(parts, 1001);
    ipc_call_free(call);
    EXPECT_EQ(ask_pid(client, 1), server); /* the server has heard of it, and goes on */
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

static void test_answers_in_another_order(void **state)
{
    static const unsigned order[] = {1, 0, 2};
    ipc_connection *serving = connection_new(), *calling = connection_new();
    struct ipc_request *requests[3];
    uint32_t numbers[3];
    ipc_call *calls[3];
    struct ipc_reply reply;
    ipc_server *server;
    (void)state;
    EXPECT_EQ(ipc_server_open(&server, serving, SERVICE, NULL, NULL), 0);
    ipc_client *client = client_new(calling, 0);
    for (uint32_t i = 0; i < 3; i++)
        EXPECT_EQ(ipc_call_start(&calls[i], client, &i, sizeof(i), NULL), 0);
    for (uint32_t i = 0; i < 3; i++) {
        ssize_t got;
        do { /* one thread is both sides: each has to hear of the other */
            EXPECT_EQ(ipc_call_next(calls[0], &reply, 0), -EAGAIN);
            got = ipc_server_receive(server, &numbers[i], sizeof(*numbers), &requests[i], 1000000);
        } while (got == -ETIMEDOUT);
        EXPECT_EQ(got, sizeof(*numbers));
    }
    for (unsigned i = 0; i < 3; i++)
        EXPECT_EQ(ipc_request_reply(requests[order[i]], &numbers[order[i]], sizeof(*numbers), NULL), 0);
    for (uint32_t i = 3; i-- > 0;) {
        EXPECT_EQ(ipc_call_next(calls[i], &reply, IPC_FOREVER), 1);
        EXPECT(reply.size == sizeof(i) && memcmp(reply.data, &i, sizeof(i)) == 0);
        ipc_call_free(calls[i]);
    }
    client_end(client);
    EXPECT(!ipc_server_close(server));
    ipc_connection_close(calling);
    ipc_connection_close(serving);
}

/* Many at a time, answered in order, and with a ring that is full all the time. */
static void calls_at_a_time(unsigned servers, uint32_t ring_size, uint32_t total, unsigned flags)
{
    pid_t children[6];
    roles.ring_size = ring_size;
    for (unsigned i = 0; i < servers; i++)
        children[i] = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, ring_size);
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    uint32_t by_server[6] = {0};
    ipc_call *calls[MANY];
    uint32_t made = 0, done = 0;
    options.flags = flags;
    options.timeout_ns = SECONDS(60);
    while (done < total) {
        for (; made < total && made - done < MANY; made++) {
            const struct order order = {.operation = 'n', .number = made};
            EXPECT_EQ(ipc_call_start(&calls[made % MANY], client, &order, sizeof(order), &options), 0);
        }
        struct ipc_reply reply;
        EXPECT_EQ(ipc_call_next(calls[done % MANY], &reply, IPC_FOREVER), 1);
        uint32_t pid;
        memcpy(&pid, reply.data, sizeof(pid));
        EXPECT_EQ(pid, reply.server.pid);
        for (unsigned i = 0; i < servers; i++)
            by_server[i] += pid == (uint32_t)children[i];
        ipc_call_free(calls[done % MANY]);
        done++;
    }
    for (uint32_t i = 0; i < total; i++)
        EXPECT_EQ(atomic_load(&roles.shared->executed[i % EXECUTED]),
                  total / EXECUTED + (i % EXECUTED < total % EXECUTED));
    unsigned used = 0;
    for (unsigned i = 0; i < servers; i++)
        used += by_server[i] >= total / 20;
    EXPECT_EQ(used, servers < 4 ? servers : 4);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(children, servers);
}

static void test_many_calls_one_server(void **state)
{
    calls_at_a_time(1, 0, 20000, 0);
}

static void test_full_lanes(void **state)
{
    calls_at_a_time(1, 4096, 10000, 0);
}

/* So many that it takes longer than the slice of a cpu, which a server may have to wait for. */
static void test_balance_two_servers(void **state)
{
    calls_at_a_time(2, 0, 100000, IPC_CALL_RETRY);
}

static void test_balance_six_servers(void **state)
{
    calls_at_a_time(6, 0, 100000, 0);
}

/* Several clients, each with one call at a time: the servers that have the fewest get them. */
static void test_clients_are_spread(void **state)
{
    (void)state;
    pid_t servers[3] = {server_start(), server_start(), server_start()};
    ipc_connection *connection = connection_new();
    ipc_client *clients[6];
    unsigned count[3] = {0};
    for (unsigned i = 0; i < 6; i++) {
        clients[i] = client_new(connection, 4096);
        uint32_t pid = ask_pid(clients[i], i);
        for (unsigned j = 0; j < 3; j++)
            count[j] += pid == (uint32_t)servers[j];
    }
    for (unsigned j = 0; j < 3; j++)
        EXPECT_EQ(count[j], 2);
    for (unsigned i = 0; i < 6; i++)
        client_end(clients[i]);
    ipc_connection_close(connection);
    servers_end(servers, 3);
}

/* ---- no server ----------------------------------------------------------------------------------------------- */

static void start_late(void *argument)
{
    gate_wait(*(int *)argument);
    serve(NULL);
}

static void test_no_server(void **state)
{
    (void)state;
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 4096);
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    const struct order order = {.operation = 'n', .number = 5};
    int go = gate_new();
    pid_t child = child_start(start_late, &go);
    struct ipc_reply reply;
    ipc_call *call;
    uint32_t pid;

    EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &pid, sizeof(pid), NULL, &reply), -ENOENT);
    EXPECT_TEXT(reply.text, SERVICE);
    EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), NULL), -ENOENT);
    options.flags = IPC_CALL_WAIT;
    options.timeout_ns = 1000000;
    EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &pid, sizeof(pid), &options, NULL), -ETIMEDOUT);
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), &options), 0);
    EXPECT_EQ(ipc_call_next(call, &reply, 0), -EAGAIN);
    gate_open(go);
    EXPECT_EQ(ipc_client_call(client, &order, sizeof(order), &pid, sizeof(pid), &options, NULL), sizeof(pid));
    EXPECT_EQ(pid, child);
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 1);
    EXPECT_EQ(atomic_load(&roles.shared->executed[5]), 2);
    ipc_call_free(call);

    atomic_store(&roles.shared->stop, 1);
    child_done(child);
    gate_wait(roles.ready);
    int result;
    do /* until the news is here, calls go nowhere and fail */
        result = (int)ipc_client_call(client, &order, sizeof(order), &pid, sizeof(pid), NULL, &reply);
    while (result == -EPIPE);
    EXPECT_EQ(result, -ENOENT);
    EXPECT_EQ(atomic_load(&roles.shared->executed[5]), 2);
    client_end(client);
    ipc_connection_close(connection);
    close(go);
}

/* ---- deadlines and cancelling -------------------------------------------------------------------------------- */

static void test_deadline_and_cancel(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 4096);
    const struct order hold = {.operation = 'h'};
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    ipc_call *calls[100];
    char byte;

    options.timeout_ns = 30000000;
    do { /* until the server gets one before it is too late: then it sees the deadline, too */
        EXPECT_EQ(ipc_client_call(client, &hold, sizeof(hold), &byte, 1, &options, &reply), -ETIMEDOUT);
        EXPECT_TEXT(reply.text, "in time");
    } while (atomic_load(&roles.shared->held) == 0);
    EXPECT(ask_pid(client, 2) == (uint32_t)server); /* whatever came before is held by now */
    const uint32_t held = atomic_load(&roles.shared->held);
    while (atomic_load(&roles.shared->cancelled) < held)
        usleep(1000);
    options.timeout_ns = IPC_FOREVER;
    for (unsigned i = 0; i < 100; i++)
        EXPECT_EQ(ipc_call_start(&calls[i], client, &hold, sizeof(hold), &options), 0);
    while (atomic_load(&roles.shared->held) < held + 100)
        usleep(1000);
    EXPECT_EQ(ipc_call_next(calls[0], &reply, 1000000), -ETIME);
    for (unsigned i = 0; i < 100; i++) {
        if (i % 2)
            EXPECT_EQ(ipc_call_cancel(calls[i]), 0);
        if (i % 2)
            EXPECT_EQ(ipc_call_next(calls[i], &reply, 0), -ECANCELED);
        EXPECT(!ipc_call_free(calls[i]));
    }
    /* Cancels that found no room go out with the next turns. */
    while (atomic_load(&roles.shared->cancelled) < held + 100)
        EXPECT(ask_pid(client, 3) == (uint32_t)server);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

/* ---- deaths -------------------------------------------------------------------------------------------------- */

static void test_server_killed(void **state)
{
    (void)state;
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 1 << 16);
    const struct order hold = {.operation = 'h'}, kill_it = {.operation = 'k', .number = 9};
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    options.timeout_ns = IPC_FOREVER;
    pid_t victim = server_start();
    ipc_call *calls[MANY];
    struct ipc_reply reply;
    uint32_t pid;
    for (unsigned i = 0; i < MANY; i++)
        EXPECT_EQ(ipc_call_start(&calls[i], client, &hold, sizeof(hold), &options), 0);
    while (atomic_load(&roles.shared->held) < MANY)
        usleep(1000);
    pid_t other = server_start();
    while (ask_pid(client, 1) != (uint32_t)other) /* until it has come: the one that has nothing to do */
        ;
    child_kill(victim);
    for (unsigned i = 0; i < MANY; i++) {
        EXPECT_EQ(ipc_call_next(calls[i], &reply, IPC_FOREVER), -EPIPE);
        EXPECT_EQ(reply.server.pid, victim);
        EXPECT_EQ(reply.reason, IPC_REASON_DIED);
        EXPECT_TEXT(reply.text, "left before it answered");
        ipc_call_free(calls[i]);
    }
    EXPECT_EQ(ask_pid(client, 2), other);
    /* A call that kills its server: executed once; with the flag, by the next one as well. */
    EXPECT_EQ(ipc_client_call(client, &kill_it, sizeof(kill_it), &pid, sizeof(pid), &options, &reply),
              -EPIPE);
    EXPECT_EQ(reply.server.pid, other);
    EXPECT_EQ(atomic_load(&roles.shared->executed[9]), 1);
    EXPECT_EQ(wait_child(other), 128 + SIGKILL);
    EXPECT_EQ(atomic_load(&roles.shared->executed[9]), 1);

    const struct order again = {.operation = 'k', .number = 10};
    pid_t first = server_start(), second = server_start();
    options.flags = IPC_CALL_RETRY | IPC_CALL_WAIT;
    EXPECT_EQ(ipc_client_call(client, &again, sizeof(again), &pid, sizeof(pid), &options, &reply),
              sizeof(pid));
    EXPECT_EQ(atomic_load(&roles.shared->executed[10]), 2);
    EXPECT(pid == (uint32_t)first || pid == (uint32_t)second);
    pid_t survivor = (pid_t)pid, dead = pid == (uint32_t)first ? second : first;
    EXPECT_EQ(wait_child(dead), 128 + SIGKILL);
    EXPECT_EQ(ask_pid(client, 3), survivor);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&survivor, 1);
}

/* Servers are killed and others come, under calls that may be repeated: every one is answered. */
static void test_servers_come_and_go(void **state)
{
    (void)state;
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 1 << 16);
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    pid_t servers[3] = {server_start(), server_start(), server_start()};
    ipc_call *calls[MANY] = {NULL};
    uint32_t made = 0, done = 0, total = 4000;
    options.flags = IPC_CALL_RETRY | IPC_CALL_WAIT;
    options.timeout_ns = SECONDS(50);
    while (done < total) {
        for (; made < total && made - done < MANY; made++) {
            const struct order order = {.operation = 'n', .number = made};
            EXPECT_EQ(ipc_call_start(&calls[made % MANY], client, &order, sizeof(order), &options), 0);
        }
        EXPECT_EQ(ipc_call_next(calls[done % MANY], NULL, IPC_FOREVER), 1);
        ipc_call_free(calls[done % MANY]);
        if (done++ % 400 == 399) {
            unsigned which = done / 400 % 3;
            child_kill(servers[which]);
            servers[which] = server_start();
        }
    }
    for (uint32_t i = 0; i < total; i++)
        EXPECT(atomic_load(&roles.shared->executed[i]) >= 1);
    struct ipc_client_stats stats;
    EXPECT_EQ(ipc_client_stats(client, &stats), 0);
    EXPECT_EQ(stats.failed, 0);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(servers, 3);
}

static void call_until_killed(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 4096);
    const struct order hold = {.operation = 'h'};
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    ipc_call *call;
    (void)argument;
    options.timeout_ns = IPC_FOREVER;
    for (unsigned i = 0; i < 10; i++)
        EXPECT_EQ(ipc_call_start(&call, client, &hold, sizeof(hold), &options), 0);
    for (;;)
        (void)ask_pid(client, 0);
}

static void test_client_killed(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 4096);
    EXPECT_EQ(ask_pid(client, 1), server);
    struct broker_counts before = broker_count(&broker);
    for (unsigned round = 0; round < 5; round++) {
        pid_t child = child_start(call_until_killed, NULL);
        while (atomic_load(&roles.shared->held) < 10 * (round + 1))
            EXPECT_EQ(ask_pid(client, 1), server);
        child_kill(child);
        while (atomic_load(&roles.shared->cancelled) < 10 * (round + 1))
            EXPECT_EQ(ask_pid(client, 1), server);
    }
    broker_settles(&broker, &before);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

/* ---- by descriptor ------------------------------------------------------------------------------------------- */

struct tally {
    unsigned done, late;
};

static void count_done(ipc_call *call, void *context)
{
    struct tally *tally = context;
    struct ipc_reply reply;
    int result = ipc_call_next(call, &reply, 0);
    EXPECT(result == 1 || result == -ETIMEDOUT);
    tally->done++;
    tally->late += result < 0;
    ipc_call_free(call);
}

static void test_epoll_loop(void **state)
{
    (void)state;
    pid_t server = server_start();
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 1 << 16);
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct tally tally = {0, 0};
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(EPOLL_CLOEXEC);
    unsigned made = 0;
    EXPECT_EQ(epoll_ctl(set, EPOLL_CTL_ADD, ipc_client_fd(client), &event), 0);
    options.done = count_done;
    options.context = &tally;
    while (tally.done < 2000) {
        for (; made < 2000 && made - tally.done < MANY; made++) {
            /* Some are never answered: the descriptor tells of their deadlines, too. */
            const struct order order = {.operation = made % 200 == 7 ? 'h' : 'n', .number = made};
            ipc_call *call;
            options.timeout_ns = order.operation == 'h' ? 20000000 : SECONDS(50);
            EXPECT_EQ(ipc_call_start(&call, client, &order, sizeof(order), &options), 0);
        }
        EXPECT_EQ(epoll_wait(set, &event, 1, -1), 1);
        EXPECT(ipc_client_dispatch(client, 0) >= 0);
    }
    EXPECT_EQ(tally.late, 10);
    /* And then it is quiet. */
    EXPECT(ipc_client_dispatch(client, 0) >= 0);
    while (epoll_wait(set, &event, 1, 0) == 1)
        EXPECT(ipc_client_dispatch(client, 0) >= 0);
    close(set);
    client_end(client);
    ipc_connection_close(connection);
    servers_end(&server, 1);
}

/* A server in a loop of its own, with payloads in place, and its client in the same process. */
static void test_server_by_descriptor(void **state)
{
    (void)state;
    ipc_connection *connection = connection_new();
    ipc_server *server;
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, NULL, NULL), 0);
    ipc_client *client = client_new(connection, 1 << 16);
    int fd = ipc_server_fd(server);
    EXPECT(fd >= 0);
    for (unsigned round = 0; round < 200; round++) {
        char text[64];
        int size = snprintf(text, sizeof(text), "payload %u", round);
        ipc_call *calls[3];
        struct ipc_request *requests[3];
        struct ipc_reply reply;
        for (unsigned i = 0; i < 3; i++)
            EXPECT_EQ(ipc_call_start(&calls[i], client, text, (size_t)size, NULL), 0);
        if (round == 0)
            EXPECT_EQ(ipc_call_next(calls[0], NULL, 0), -EAGAIN);
        for (unsigned i = 0; i < 3;) {
            struct pollfd wait = {fd, POLLIN, 0};
            EXPECT_EQ(poll(&wait, 1, -1), 1);
            ssize_t got;
            while (i < 3 && (got = ipc_server_receive(server, NULL, 0, &requests[i], 0)) >= 0) {
                EXPECT_EQ(got, size);
                EXPECT_EQ(memcmp(requests[i]->data, text, (size_t)size), 0);
                EXPECT_EQ(requests[i]->caller->pid, getpid());
                i++;
            }
            if (i < 3)
                EXPECT_EQ(ipc_client_dispatch(client, 0), 0); /* calls that wait for their server go out */
        }
        /* In another order than they came. */
        for (unsigned i = 3; i-- > 0;)
            EXPECT_EQ(ipc_request_reply(requests[i], &i, sizeof(i), NULL), 0);
        for (unsigned i = 0; i < 3; i++) {
            unsigned number;
            EXPECT_EQ(ipc_call_next(calls[i], &reply, IPC_FOREVER), 1);
            memcpy(&number, reply.data, sizeof(number));
            EXPECT_EQ(number, i);
            ipc_call_free(calls[i]);
        }
    }
    struct ipc_server_stats stats;
    EXPECT_EQ(ipc_server_stats(server, &stats), 0);
    EXPECT_EQ(stats.received, 600);
    EXPECT_EQ(stats.answered, 600);
    EXPECT_EQ(stats.open, 0);
    /* The connection ends what is left. */
    ipc_connection_close(connection);
}

/* Calls that are to wait for nothing, while nobody reads them: they are kept, and go out in order. */
static void test_kept_calls(void **state)
{
    enum { KEPT = 400 };
    static ipc_call *calls[KEPT];
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_client_stats stats;
    ipc_connection *connection = connection_new();
    ipc_server *server;
    unsigned char text[64] = {0};
    (void)state;
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, NULL, NULL), 0);
    ipc_client *client = client_new(connection, 4096);
    options.flags = IPC_CALL_KEEP | IPC_CALL_WAIT;
    options.timeout_ns = IPC_FOREVER;
    for (uint32_t i = 0; i < KEPT; i++) {
        memcpy(text, &i, sizeof(i));
        EXPECT_EQ(ipc_call_start(&calls[i], client, text, sizeof(text), &options), 0);
    }
    for (uint32_t i = 0; i < KEPT;) {
        struct ipc_request *request;
        uint32_t number;
        ssize_t size = ipc_server_receive(server, text, sizeof(text), &request, 0);
        EXPECT(ipc_client_dispatch(client, 0) >= 0);
        if (size == -EAGAIN)
            continue;
        EXPECT_EQ(size, sizeof(text));
        memcpy(&number, text, sizeof(number));
        EXPECT_EQ(number, i++);
        EXPECT_EQ(ipc_request_reply(request, &number, sizeof(number), NULL), 0);
    }
    for (uint32_t i = 0; i < KEPT; i++) {
        EXPECT_EQ(ipc_call_wait(calls[i], IPC_FOREVER), 0);
        ipc_call_free(calls[i]);
    }
    EXPECT_EQ(ipc_client_stats(client, &stats), 0);
    EXPECT_EQ(stats.waits, 0);
    ipc_connection_close(connection);
}

static void test_limits(void **state)
{
    (void)state;
    ipc_connection *connection = connection_new();
    struct ipc_server_options server_options = IPC_SERVER_OPTIONS_INIT;
    struct ipc_client_options client_options = IPC_CLIENT_OPTIONS_INIT;
    ipc_server *server;
    ipc_client *client;
    struct ipc_error error;
    struct ipc_request *requests[4];
    ipc_call *calls[5];
    EXPECT_EQ(ipc_server_open(&server, connection, "a.*", NULL, &error), -EINVAL);
    EXPECT_EQ(ipc_client_open(&client, connection, ">", NULL, &error), -EINVAL);
    client_options.calls_max = 65537;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, &client_options, &error), -EINVAL);
    server_options.requests_max = 3;
    client_options.calls_max = 4;
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, &server_options, NULL), 0);
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, &client_options, NULL), 0);
    for (unsigned i = 0; i < 4; i++)
        EXPECT_EQ(ipc_call_start(&calls[i], client, "x", 1, NULL), 0);
    EXPECT_EQ(ipc_call_start(&calls[4], client, "x", 1, NULL), -EBUSY);
    for (unsigned i = 0; i < 3;) {
        char byte;
        ssize_t got = ipc_server_receive(server, &byte, 1, &requests[i], 0);
        EXPECT(got == 1 || got == -EAGAIN);
        i += got == 1;
        EXPECT(ipc_client_dispatch(client, 0) >= 0);
    }
    char byte;
    EXPECT_EQ(ipc_server_receive(server, &byte, 1, &requests[3], 0), -EBUSY);
    EXPECT_EQ(ipc_request_reply(requests[0], NULL, 0, NULL), 0);
    EXPECT_EQ(ipc_server_receive(server, &byte, 0, &requests[3], 0), -EMSGSIZE);
    EXPECT_EQ(ipc_server_receive(server, &byte, 1, &requests[3], 0), 1);
    ipc_client_close(client);
    EXPECT_EQ(ipc_request_cancelled(requests[3]), 1);
    EXPECT_EQ(ipc_request_reply(requests[3], NULL, 0, NULL), -EPIPE);
    ipc_server_close(server);
    ipc_connection_close(connection);
}

/* Parts of an answer, for as long as they are wanted. */
static void stream_for_ever(void *argument)
{
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    ipc_connection *connection = connection_new();
    static const char part[1000];
    struct ipc_request *request;
    ipc_server *server;
    int result;
    (void)argument;
    options.ring_size = 4096;
    options.block_max_ns = SECONDS(3600);
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, &options, NULL), 0);
    gate_open(roles.ready);
    EXPECT_EQ(ipc_server_receive(server, NULL, 0, &request, IPC_FOREVER), 1);
    do {
        atomic_fetch_add(&roles.shared->held, 1);
        result = ipc_request_part(request, part, sizeof(part), NULL);
    } while (result == 0);
    EXPECT_EQ(result, -ECANCELED);
    EXPECT_EQ(ipc_request_end(request), 0);
    ipc_server_close(server);
    ipc_connection_close(connection);
}

/* The client reads a part, no more, and gives up: its server, which waits for room, is to hear of it. */
static void test_cancelled_while_its_server_waits_for_room(void **state)
{
    (void)state;
    pid_t child = child_start(stream_for_ever, NULL);
    gate_wait(roles.ready);
    ipc_connection *connection = connection_new();
    ipc_client *client = client_new(connection, 4096);
    struct ipc_reply reply;
    ipc_call *call;
    EXPECT_EQ(ipc_call_start(&call, client, "x", 1, NULL), 0);
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 1);
    for (uint32_t seen = 0, same = 0; same < 1000; same++) { /* it has come to a stand */
        uint32_t now = atomic_load(&roles.shared->held);
        same = now == seen ? same : 0;
        seen = now;
        sched_yield();
    }
    EXPECT_EQ(ipc_call_cancel(call), 0);
    child_done(child);
    ipc_call_free(call);
    ipc_client_close(client);
    ipc_connection_close(connection);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        SERVICE_CASE(test_cancelled_while_its_server_waits_for_room),
        SERVICE_CASE(test_sizes),
        SERVICE_CASE(test_headers_and_errors),
        SERVICE_CASE(test_stream),
        SERVICE_CASE(test_answers_in_another_order),
        SERVICE_CASE(test_stream_that_is_not_taken),
        SERVICE_CASE(test_many_calls_one_server),
        SERVICE_CASE(test_full_lanes),
        SERVICE_CASE(test_balance_two_servers),
        SERVICE_CASE(test_balance_six_servers),
        SERVICE_CASE(test_clients_are_spread),
        SERVICE_CASE(test_no_server),
        SERVICE_CASE(test_deadline_and_cancel),
        SERVICE_CASE(test_server_killed),
        SERVICE_CASE(test_servers_come_and_go),
        SERVICE_CASE(test_client_killed),
        SERVICE_CASE(test_epoll_loop),
        SERVICE_CASE(test_server_by_descriptor),
        SERVICE_CASE(test_kept_calls),
        SERVICE_CASE(test_limits),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
