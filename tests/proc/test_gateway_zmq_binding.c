/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq as a gateway among others: bindings at run time, peers, a broker that goes away. The program outside has libzmq and
 * nothing else.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/dealer.h"
#include "tests/support/gateway.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

static struct gateway_process gateway;

static void router_of(const char *folder, const char *name, char address[128])
{
    snprintf(address, 128, "ipc://%s/%s", folder, name);
}

/* Until it is greeted: by a gateway that was not there yet, or is another one by now. */
static void greet(struct dealer *dealer)
{
    dealer_say(dealer, "HELLO", "hello", "", "{\"name\":\"outside\"}", "", 0);
    while (dealer_hear(dealer, -1) && strcmp(dealer->command, "WELCOME") != 0)
        continue;
}

static void greet_again(struct dealer *dealer)
{
    do
        dealer_say(dealer, "PING", "ping", "", "", "", 0);
    while (!dealer_hear(dealer, 100) || strcmp(dealer->command, "ERROR") != 0);
    EXPECT_EQ(dealer_number(dealer, "code"), -ENOTCONN);
    greet(dealer);
}

static void ask(struct dealer *dealer, const char *command, const char *name, const char *properties,
                const char *body)
{
    dealer_say(dealer, command, "asked", name, properties, body, strlen(body));
    while (dealer_hear(dealer, -1) && strcmp(dealer->id, "asked") != 0)
        continue;
}

/* There and back. */
static void exchange(struct dealer *dealer, const char *body)
{
    ask(dealer, "SEND", "work", "", body);
    EXPECT(strcmp(dealer->command, "OK") == 0);
    dealer_say(dealer, "PULL", "pull", "work", "{\"credit\":1}", "", 0);
    while (dealer_hear(dealer, -1) && strcmp(dealer->command, "MSG") != 0)
        continue;
    EXPECT_EQ(zmq_msg_size(&dealer->body), strlen(body));
    EXPECT(memcmp(zmq_msg_data(&dealer->body), body, strlen(body)) == 0);
    dealer_say(dealer, "ACK", dealer->id, "work", "", "", 0);
}

static bool exists(const char *address)
{
    return access(address + strlen("ipc://"), F_OK) == 0;
}

static void test_bind_at_run_time(void **state)
{
    ipc_connection *connection = connection_new();
    struct dealer dealer;
    char address[128], text[256], identity[32];
    Ipc__Gateway__Binding *binding;
    struct stat file;
    int result;

    (void)state;
    queue_new(connection, "work", NULL);
    gateway_process_start(&gateway, "IPCD_ZMQ_BIN", "[gateway]\n");
    router_of(gateway.folder, "more", address);
    const char *more[] = {"endpoint", "router", "address", address, "mode", "666", NULL};
    const char *far[] = {"endpoint", "router", "address", "tcp://0.0.0.0:5555", NULL};
    const char *nowhere[] = {"endpoint", "router", "address", "ipc:///nowhere/at/all", NULL};
    binding = gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__BIND, "more", more, &result, text);
    EXPECT(binding != NULL);
    ipc__gateway__binding__free_unpacked(binding, NULL);
    EXPECT_EQ(stat(address + strlen("ipc://"), &file), 0);
    EXPECT_EQ(file.st_mode & 0777, 0666);
    EXPECT(!gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__BIND, "", far, &result, text));
    EXPECT(strstr(text, "can be reached from other machines, and without keys") != NULL);
    EXPECT(!gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__BIND, "", nowhere, &result, text));
    EXPECT(strstr(text, "cannot be listened on") != NULL);

    dealer_open(&dealer, address);
    greet(&dealer);
    exchange(&dealer, "first");
    /* Who is there is told with the endpoint's own binding, whichever address he came by. */
    binding = gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__LIST, "zmq-router", NULL, NULL, NULL);
    EXPECT(binding != NULL);
    EXPECT_EQ(binding->n_peers, 1);
    snprintf(identity, sizeof(identity), "uid:%u", (unsigned)getuid());
    EXPECT(strcmp(binding->peers[0]->name, "outside") == 0);
    EXPECT(strcmp(binding->peers[0]->identity, identity) == 0);
    EXPECT(binding->peers[0]->received >= 3 && binding->peers[0]->sent >= 3);
    EXPECT(binding->received >= 3);
    ipc__gateway__binding__free_unpacked(binding, NULL);
    /* It would act with the gateway's rights, and be told everything. */
    ask(&dealer, "CALL", "ipcd.gateway.zmq", "", "");
    EXPECT(strcmp(dealer.command, "ERROR") == 0);
    EXPECT_EQ(dealer_number(&dealer, "code"), -EACCES);

    gateway_process_kill(&gateway);
    gateway_process_again(&gateway);
    greet_again(&dealer);
    exchange(&dealer, "second");
    dealer_close(&dealer);
    binding = gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__UNBIND, "more", NULL, &result, text);
    EXPECT(binding != NULL);
    ipc__gateway__binding__free_unpacked(binding, NULL);
    EXPECT(!exists(address));
    EXPECT(!gateway_ask(connection, "zmq", IPC__GATEWAY__VERB__UNBIND, "zmq-pub", NULL, &result, text));
    EXPECT(strstr(text, "is in the configuration (built in)") != NULL);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* Another broker at the same address: the gateway is its client by itself, and so is the program outside. */
static void test_broker_goes(void **state)
{
    const char *const quiet[] = {"--log-level", "error", NULL};
    struct guarded guarded;
    ipc_connection *connection;
    struct dealer dealer;
    char address[128];

    (void)state;
    guarded_start(&guarded, quiet);
    connection = connection_new();
    queue_new(connection, "work", NULL);
    ipc_connection_close(connection);
    gateway_process_start(&gateway, "IPCD_ZMQ_BIN", "[gateway]\n");
    router_of(guarded.folder, "zmq-router", address);
    dealer_open(&dealer, address);
    greet(&dealer);
    exchange(&dealer, "first");
    guarded_lose(&guarded);
    guarded_run(&guarded, quiet);
    gateway_process_ready(&gateway);
    connection = connection_new();
    queue_new(connection, "work", NULL);
    greet_again(&dealer);
    exchange(&dealer, "second");
    dealer_close(&dealer);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
    guarded_stop(&guarded);
}

/* Of one of the gateway's own endpoints, which are beside the broker's socket. */
static void endpoint_of(const char *name, char address[128])
{
    const char *beside = getenv("IPC_ADDRESS");

    snprintf(address, 128, "ipc://%.*s/%s", (int)(strrchr(beside, '/') - beside), beside, name);
}

/* A plain subscriber, known to the gateway. */
static void *subscriber_new(void *context, struct dealer *dealer, const char *prefix, const char *word)
{
    char address[128];
    void *subscriber = zmq_socket(context, ZMQ_SUB);

    endpoint_of("zmq-sub", address);
    EXPECT_EQ(zmq_connect(subscriber, address), 0);
    EXPECT_EQ(zmq_setsockopt(subscriber, ZMQ_SUBSCRIBE, prefix, strlen(prefix)), 0);
    EXPECT_EQ(zmq_setsockopt(subscriber, ZMQ_SUBSCRIBE, word, strlen(word)), 0);
    dealer_say(dealer, "SYNC", word, "", "", "", 0);
    while (dealer_hear(dealer, -1) && (strcmp(dealer->command, "OK") != 0 || strcmp(dealer->id, word) != 0))
        continue;
    return subscriber;
}

static void expect_next(void *subscriber, const char *topic, unsigned sequence, const char *body)
{
    char text[256], begin[64];
    int size = zmq_recv(subscriber, text, sizeof(text), 0);

    EXPECT(size == (int)strlen(topic) && memcmp(text, topic, (size_t)size) == 0);
    size = zmq_recv(subscriber, text, sizeof(text), 0);
    snprintf(begin, sizeof(begin), "{\"seq\":%u,", sequence);
    EXPECT(size > (int)strlen(begin) && memcmp(text, begin, strlen(begin)) == 0);
    size = zmq_recv(subscriber, text, sizeof(text), 0);
    EXPECT(size == (int)strlen(body) && memcmp(text, body, (size_t)size) == 0);
}

/* Of two publishers of one session one is in the middle of a message while a broader prefix takes over. */
static void test_broader_in_the_middle(void **state)
{
    ipc_connection *connection = connection_new();
    void *context = zmq_ctx_new(), *narrow, *broad, *message;
    ipc_publisher *one = publisher_new(connection, "a.b", 0, 0),
                  *two = publisher_new(connection, "a.b", 0, 0);
    struct dealer dealer;
    char address[128];

    (void)state;
    gateway_process_start(&gateway, "IPCD_ZMQ_BIN", "[gateway]\n");
    endpoint_of("zmq-router", address);
    dealer_open(&dealer, address);
    greet(&dealer);
    narrow = subscriber_new(context, &dealer, "a.b", "\nnarrow");
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(ipc_publisher_publish(one, "before", 6), 0);
    for (unsigned i = 0; i < 100; i++)
        expect_next(narrow, "a.b", i, "before");
    EXPECT_EQ(ipc_publisher_loan(one, 6, NULL, &message), 0);
    memcpy(message, "middle", 6);
    broad = subscriber_new(context, &dealer, "a.", "\nbroad");
    EXPECT_EQ(ipc_publisher_publish(two, "second", 6), 0);
    expect_next(narrow, "a.b", 100, "second");
    EXPECT_EQ(ipc_publisher_commit(one, 6), 0);
    EXPECT_EQ(ipc_publisher_publish(one, "after", 5), 0);
    expect_next(narrow, "a.b", 101, "middle");
    expect_next(narrow, "a.b", 102, "after");
    expect_next(broad, "a.b", 100, "second");
    expect_next(broad, "a.b", 101, "middle");
    expect_next(broad, "a.b", 102, "after");
    zmq_close(narrow);
    zmq_close(broad);
    zmq_ctx_term(context);
    dealer_close(&dealer);
    gateway_process_stop(&gateway);
    publisher_end(one);
    publisher_end(two);
    ipc_connection_close(connection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_bind_at_run_time),
        CASE(test_broker_goes),
        CASE(test_broader_in_the_middle),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
