/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed, again and again, under calls: none is lost, none is answered twice, and servers are found by clients
 * and clients by servers when it is there again.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

#define SERVICE "restart.service"
#define TOTAL   100000u

struct shared {
    _Atomic uint8_t executed[TOTAL];
    _Atomic int stop;
};

static struct guarded guarded;
static const char *const quiet[] = {"--log-level", "error", NULL};
static struct shared *shared;
static int ready;

static int setup(void **state)
{
    (void)state;
    watchdog(100, "services over a restart");
    guarded_start(&guarded, quiet);
    shared = shared_new(sizeof(*shared));
    ready = gate_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close(ready);
    shared_free(shared, sizeof(*shared));
    guarded_stop(&guarded);
    return 0;
}

static void serve(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_server *server;
    (void)argument;
    EXPECT_EQ(ipc_server_open(&server, connection, SERVICE, NULL, NULL), 0);
    gate_open(ready);
    while (!atomic_load(&shared->stop)) {
        struct ipc_request *request;
        uint32_t number;
        ssize_t size = ipc_server_receive(server, &number, sizeof(number), &request, 20000000);
        if (size == -ETIMEDOUT)
            continue;
        EXPECT_EQ(size, sizeof(number));
        if (number < TOTAL)
            atomic_fetch_add(&shared->executed[number], 1);
        EXPECT_EQ(ipc_request_reply(request, &number, sizeof(number), NULL), 0);
    }
    ipc_server_close(server);
    ipc_connection_close(connection);
}

static pid_t server_start(void)
{
    pid_t child = child_start(serve, NULL);
    gate_wait(ready);
    return child;
}

static void call(ipc_client *client, uint32_t number, const struct ipc_call_options *options)
{
    uint32_t answer = 0;
    EXPECT_EQ(ipc_client_call(client, &number, sizeof(number), &answer, sizeof(answer), options, NULL),
              sizeof(answer));
    EXPECT_EQ(answer, number);
}

/* With 32 under way at any time, over two servers, while one ipcd after the other dies. */
static void test_under_load(void **state)
{
    (void)state;
    pid_t servers[2] = {server_start(), server_start()};
    ipc_connection *connection = connection_new();
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    ipc_client *client;
    ipc_call *calls[32];
    uint32_t made = 0, done = 0;
    options.timeout_ns = SECONDS(60);
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, NULL, NULL), 0);
    for (; done < TOTAL; done++) {
        for (; made < TOTAL && made - done < 32; made++)
            EXPECT_EQ(ipc_call_start(&calls[made % 32], client, &made, sizeof(made), &options), 0);
        struct ipc_reply reply;
        EXPECT_EQ(ipc_call_next(calls[done % 32], &reply, IPC_FOREVER), 1);
        uint32_t number;
        memcpy(&number, reply.data, sizeof(number));
        EXPECT_EQ(number, done);
        ipc_call_free(calls[done % 32]);
        if (done % 10000 == 5000)
            kill(guarded_pid(&guarded), SIGKILL);
    }
    for (uint32_t i = 0; i < TOTAL; i++)
        EXPECT_EQ(atomic_load(&shared->executed[i]), 1);
    atomic_store(&shared->stop, 1);
    child_done(servers[0]);
    child_done(servers[1]);
    ipc_client_close(client);
    ipc_connection_close(connection);
}

/* With nobody to start another one, calls go on; and what changes while none is there is made good. */
static void test_without_any(void **state)
{
    (void)state;
    pid_t victim = server_start(), ipcd = guarded_pid(&guarded);
    ipc_connection *connection = connection_new();
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    ipc_client *client;
    options.flags = IPC_CALL_WAIT | IPC_CALL_RETRY;
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_client_open(&client, connection, SERVICE, NULL, NULL), 0);
    call(client, 0, NULL);
    kill(guarded.run, SIGSTOP);
    kill(ipcd, SIGKILL);
    for (uint32_t i = 0; i < 20000; i++)
        call(client, i, &options);
    child_kill(victim);
    kill(guarded.run, SIGCONT);
    guarded_wait_other(&guarded, ipcd);
    /* The client waits for a server now, in the registry of the third one. */
    guarded_kill_ipcd(&guarded);
    pid_t other = server_start();
    guarded_kill_ipcd(&guarded);
    for (uint32_t i = 20000; i < 21000; i++)
        call(client, i, &options);
    atomic_store(&shared->stop, 1);
    child_done(other);
    ipc_client_close(client);
    ipc_connection_close(connection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_under_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_any, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
