/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-mq: programs that only know mqueues (mqueue_helper.c), in the raw form and with envelopes.
 */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/gateway.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

static struct gateway_process gateway;

/* ---- mqueues and those who use them ------------------------------------------------------------------------ */

/* An mqueue of this test alone. */
static const char *mqueue(const char *name)
{
    static char names[8][64];
    static unsigned next;
    char *text = names[next++ % 8];
    snprintf(text, sizeof(names[0]), "/ipct-%d-%s", (int)getpid(), name);
    return text;
}

static bool mqueue_exists(const char *name)
{
    mqd_t fd = mq_open(mqueue(name), O_RDONLY);
    if (fd >= 0)
        mq_close(fd);
    return fd >= 0;
}

/* Run the helper with these arguments, the mqueues by their short names: those that begin with '/'. */
static pid_t helper(int *output, const char *const *arguments)
{
    char path[512];
    const char *argv[10] = {"mqueue_helper"};
    int ends[2] = {-1, -1};
    for (int i = 0; arguments[i]; i++)
        argv[i + 1] = arguments[i][0] == '/' ? mqueue(arguments[i] + 1) : arguments[i];
    snprintf(path, sizeof(path), "%s/mqueue_helper", getenv("TEST_HELPER_DIR"));
    if (output)
        EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        if (output)
            dup2(ends[1], STDOUT_FILENO);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    EXPECT(pid > 0);
    if (output) {
        *output = ends[0];
        close(ends[1]);
    }
    return pid;
}
#define HELPER(...)      helper(NULL, (const char *const[]){__VA_ARGS__, NULL})
#define HELPER_DONE(...) EXPECT_EQ(wait_child(HELPER(__VA_ARGS__)), 0)

/* A number of the helper's, and its size. */
static void number_text(char *text, unsigned long number, size_t size)
{
    int used = snprintf(text, size + 1, "%lu ", number);
    memset(text + used, 'x', size - (size_t)used);
    text[size] = '\0';
}

static void start(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void start(const char *format, ...)
{
    char config[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(config, sizeof(config), format, arguments);
    va_end(arguments);
    gateway_process_start(&gateway, "IPCD_MQ_BIN", config);
}

#define SMALL "messages = 8\nmessage-size = 256\n"

/* ---- queues ------------------------------------------------------------------------------------------------ */

static void receive_numbers_text(ipc_consumer *consumer, unsigned long from, unsigned long to, size_t size)
{
    char buffer[512], wanted[512];
    struct ipc_queue_message message;
    for (unsigned long number = from; number < to; number++) {
        EXPECT_EQ(ipc_consumer_receive(consumer, buffer, sizeof(buffer), &message, IPC_FOREVER), size);
        number_text(wanted, number, size);
        EXPECT(memcmp(buffer, wanted, size) == 0);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
}

static void test_into_a_queue(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_queue_message message;
    const void *value;
    size_t size;
    char text[64];
    (void)state;
    queue_new(connection, "work", NULL);
    start("[bind in]\ndirection = in\nmqueue = %s\nqueue = work\nidentity = press\n" SMALL, mqueue("in"));
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    pid_t child = HELPER("send", "/in", "0", "3000", "100");
    receive_numbers_text(consumer, 0, 3000, 100);
    EXPECT_EQ(wait_child(child), 0);
    /* Its priority is that of the mqueue, as far as a queue has one; the binding states who it is from. */
    HELPER_DONE("say", "/in", "five", "5");
    EXPECT_EQ(ipc_consumer_receive(consumer, text, sizeof(text), &message, IPC_FOREVER), 4);
    EXPECT_EQ(message.priority, 5);
    EXPECT_EQ(ipc_queue_message_header(&message, "identity", &value, &size), 0);
    EXPECT(size == 5 && memcmp(value, "press", 5) == 0);
    HELPER_DONE("say", "/in", "most", "31");
    EXPECT_EQ(ipc_consumer_receive(consumer, text, sizeof(text), &message, IPC_FOREVER), 4);
    EXPECT_EQ(message.priority, 9);
    EXPECT_EQ(ipc_consumer_ack_until(consumer, message.delivery), 0);
    EXPECT_EQ(gateway_wait_state(connection, "mq", "in", "open").received, 3002);
    consumer_end(consumer);
    gateway_process_stop(&gateway);
    EXPECT(!mqueue_exists("in"));
    ipc_connection_close(connection);
}

static void test_out_of_a_queue(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_dead_letter dead;
    struct ipc_queue_message message;
    char text[512];
    (void)state;
    queue_new(connection, "dead", NULL);
    settings.given = IPC_QUEUE_DEAD_LETTER;
    settings.dead_letter = "dead";
    queue_new(connection, "work", &settings);
    start("[bind out]\ndirection = out\nmqueue = %s\nqueue = work\n" SMALL, mqueue("out"));
    ipc_producer *producer = producer_new(connection, "work");
    for (unsigned long number = 0; number < 1000; number++) {
        number_text(text, number, 100);
        EXPECT_EQ(ipc_producer_send(producer, text, 100, IPC_FOREVER, NULL), 0);
    }
    /* Nobody reads: the mqueue is full, and the gateway waits, with nothing lost. */
    struct gateway_numbers numbers = gateway_wait_state(connection, "mq", "out", "blocked");
    EXPECT_EQ(numbers.sent, 8);
    EXPECT_EQ(numbers.dropped, 0);
    HELPER_DONE("receive", "/out", "0", "1000", "100");
    /* What the mqueue cannot hold is a dead letter, with the reason. */
    memset(text, 'y', 300);
    EXPECT_EQ(ipc_producer_send(producer, text, 300, IPC_FOREVER, NULL), 0);
    ipc_consumer *consumer = consumer_new(connection, "dead", 0);
    EXPECT_EQ(ipc_consumer_receive(consumer, text, sizeof(text), &message, IPC_FOREVER), 300);
    EXPECT_EQ(ipc_queue_message_dead_letter(&message, &dead), 0);
    EXPECT_TEXT(dead.reason, "300 bytes are more than the 256 of mqueue");
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    /* And the others go on. */
    send_text(producer, "next", NULL);
    HELPER_DONE("hear", "/out", "next");
    EXPECT_EQ(gateway_wait_state(connection, "mq", "out", "open").dead, 1);
    consumer_end(consumer);
    producer_end(producer);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* Priorities lead out of a queue as well: the mqueue sorts by them. */
static void test_priority_outwards(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_send high = IPC_SEND_INIT;
    (void)state;
    queue_new(connection, "work", NULL);
    high.priority = 7;
    ipc_producer *producer = producer_new(connection, "work");
    start("[bind out]\ndirection = out\nmqueue = %s\nqueue = work\n" SMALL, mqueue("out"));
    send_text(producer, "low", NULL);
    send_text(producer, "high", &high);
    while (gateway_wait_state(connection, "mq", "out", "").sent != 2)
        continue;
    HELPER_DONE("hear", "/out", "high");
    HELPER_DONE("hear", "/out", "low");
    producer_end(producer);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* A queue that refuses when it is full: what it refused is kept, and offered again until it is taken. */
static void test_refused_is_held(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct gateway_numbers numbers;
    bool seen[200] = {false};
    (void)state;
    settings.given = IPC_QUEUE_FULL | IPC_QUEUE_MESSAGES_MAX;
    settings.full = IPC_QUEUE_FULL_REJECT;
    settings.messages_max = 10;
    queue_new(connection, "work", &settings);
    start("[bind in]\ndirection = in\nmqueue = %s\nqueue = work\n" SMALL, mqueue("in"));
    pid_t child = HELPER("send", "/in", "0", "200", "50");
    do
        numbers = gateway_wait_state(connection, "mq", "in", "blocked");
    while (numbers.refused == 0);
    EXPECT_TEXT(numbers.error, "queue work is full");
    EXPECT_EQ(numbers.dropped, 0);
    ipc_consumer *consumer = consumer_new(connection, "work", 1);
    for (unsigned i = 0; i < 200; i++) {
        struct ipc_queue_message message;
        char text[64];
        EXPECT_EQ(ipc_consumer_receive(consumer, text, sizeof(text), &message, IPC_FOREVER), 50);
        unsigned long number = strtoul(text, NULL, 10);
        EXPECT(number < 200 && !seen[number]);
        seen[number] = true;
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    EXPECT_EQ(wait_child(child), 0);
    receive_nothing(consumer);
    consumer_end(consumer);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* ---- topics ------------------------------------------------------------------------------------------------ */

static void test_topics(void **state)
{
    ipc_connection *connection = connection_new();
    char buffer[256], wanted[256];
    (void)state;
    start("[bind in]\ndirection = in\nmqueue = %s\ntopic = plant.1.heat\n" SMALL
          "[bind out]\ndirection = out\nmqueue = %s\ntopic = plant.*.cold\n" SMALL,
          mqueue("in"), mqueue("out"));
    ipc_subscription *subscription =
        subscription_new(connection, "plant.>", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    pid_t child = HELPER("send", "/in", "0", "3000", "100");
    for (unsigned long number = 0; number < 3000; number++) {
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER), 100);
        number_text(wanted, number, 100);
        EXPECT(memcmp(buffer, wanted, 100) == 0);
    }
    EXPECT_EQ(wait_child(child), 0);
    subscription_end(subscription);
    /* Outwards, the publisher waits for the mqueue's reader. */
    ipc_publisher *publisher = publisher_new(connection, "plant.7.cold", 0, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    child = HELPER("receive", "/out", "0", "3000", "100");
    for (unsigned long number = 0; number < 3000; number++) {
        number_text(buffer, number, 100);
        EXPECT_EQ(ipc_publisher_publish(publisher, buffer, 100), 0);
    }
    EXPECT_EQ(wait_child(child), 0);
    publisher_end(publisher);
    /* From one mqueue to another. */
    const char *other[] = {"direction",    "out",       "mqueue",   mqueue("other"),
                           "topic",        "plant.1.*", "messages", "4",
                           "message-size", "64",        NULL};
    ipc__gateway__binding__free_unpacked(
        gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "", other, NULL, NULL), NULL);
    do /* until it has joined */
        HELPER_DONE("say", "/in", "through");
    while (gateway_wait_state(connection, "mq", "mq-1", "").sent == 0);
    HELPER_DONE("hear", "/other", "through");
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* With full = drop, nobody waits for the mqueue, and what is lost is counted. */
static void test_drop(void **state)
{
    ipc_connection *connection = connection_new();
    struct gateway_numbers numbers;
    (void)state;
    start("[bind out]\ndirection = out\nmqueue = %s\ntopic = t\nfull = drop\n" SMALL, mqueue("out"));
    ipc_publisher *publisher = publisher_new(connection, "t", 0, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (unsigned i = 0; i < 100; i++)
        EXPECT_EQ(ipc_publisher_publish(publisher, "text", 4), 0);
    do
        numbers = gateway_wait_state(connection, "mq", "out", "open");
    while (numbers.sent + numbers.dropped != 100);
    EXPECT_EQ(numbers.sent, 8);
    publisher_end(publisher);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* ---- services ---------------------------------------------------------------------------------------------- */

static void test_mqueue_calls(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_request *request;
    ipc_server *server;
    char buffer[256], answer[256];
    (void)state;
    start("[bind c]\ndirection = call\nmqueue = %s\nreply = %s\nservice = echo\ntimeout = 60s\n" SMALL,
          mqueue("calls"), mqueue("answers"));
    pid_t child = HELPER("call", "/calls", "/answers", "0", "300");
    EXPECT_EQ(ipc_server_open(&server, connection, "echo", NULL, NULL), 0);
    for (unsigned long number = 0; number < 300; number++) {
        EXPECT_EQ(ipc_server_receive(server, buffer, sizeof(buffer), &request, IPC_FOREVER), 32);
        int size = snprintf(answer, sizeof(answer), "re:%.32s", buffer);
        /* In parts or in one: the mqueue gets one message. */
        if (number % 2)
            EXPECT_EQ(ipc_request_part(request, answer, 3, NULL), 0);
        EXPECT_EQ(ipc_request_reply(request, answer + (number % 2 ? 3 : 0),
                                    (size_t)size - (number % 2 ? 3 : 0), NULL),
                  0);
    }
    EXPECT_EQ(wait_child(child), 0);
    /* An error is an empty message. */
    HELPER_DONE("say", "/calls", "fail");
    EXPECT_EQ(ipc_server_receive(server, buffer, sizeof(buffer), &request, IPC_FOREVER), 4);
    EXPECT_EQ(ipc_request_fail(request, 7, "not today", NULL, 0), 0);
    HELPER_DONE("hear", "/answers", "");
    EXPECT_TEXT(gateway_wait_state(connection, "mq", "c", "open").error, "not today");
    ipc_server_close(server);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

static void test_mqueue_serves(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    char text[512], wanted[64], buffer[256];
    ipc_client *client;
    ipc_call *calls[3];
    (void)state;
    start("[bind s]\ndirection = serve\nmqueue = %s\nreply = %s\nservice = echo\ntimeout = 60s\n" SMALL,
          mqueue("work"), mqueue("done"));
    EXPECT_EQ(ipc_client_open(&client, connection, "echo", NULL, NULL), 0);
    pid_t child = HELPER("serve", "/work", "/done", "303");
    how.timeout_ns = SECONDS(60);
    for (unsigned number = 0; number < 300; number++) {
        int size = snprintf(text, sizeof(text), "%u", number);
        snprintf(wanted, sizeof(wanted), "re:%u", number);
        EXPECT_EQ(ipc_client_call(client, text, (size_t)size, buffer, sizeof(buffer), &how, NULL),
                  strlen(wanted));
        EXPECT(memcmp(buffer, wanted, strlen(wanted)) == 0);
    }
    /* Several at a time: one after the other, each gets its own. */
    for (unsigned i = 0; i < 3; i++)
        EXPECT_EQ(ipc_call_start(&calls[i], client, &"abc"[i], 1, &how), 0);
    for (unsigned i = 0; i < 3; i++) {
        EXPECT_EQ(ipc_call_next(calls[i], &reply, IPC_FOREVER), 1);
        EXPECT(reply.size == 4 && ((const char *)reply.data)[3] == "abc"[i]);
        ipc_call_free(calls[i]);
    }
    EXPECT_EQ(wait_child(child), 0);
    /* Too large for the mqueue; and nobody there who reads: what was not read in time is taken back. */
    memset(text, 'x', 300);
    EXPECT_EQ(ipc_client_call(client, text, 300, buffer, sizeof(buffer), &how, &reply), -EREMOTEIO);
    EXPECT_TEXT(reply.text, "larger than a message");
    how.timeout_ns = 1000000;
    /* Its own clock says so, or the gateway's. */
    ssize_t late = ipc_client_call(client, "late", 4, buffer, sizeof(buffer), &how, NULL);
    EXPECT(late == -ETIMEDOUT || late == -EREMOTEIO);
    while (gateway_wait_state(connection, "mq", "s", "").held != 0)
        continue;
    how.timeout_ns = SECONDS(60);
    child = HELPER("serve", "/work", "/done", "1");
    EXPECT_EQ(ipc_client_call(client, "next", 4, buffer, sizeof(buffer), &how, NULL), 7);
    EXPECT(memcmp(buffer, "re:next", 7) == 0);
    EXPECT_EQ(wait_child(child), 0);
    ipc_client_close(client);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* The program that serves is this test. */
struct program {
    mqd_t requests, replies;
};

static struct program program_here(const char *requests, const char *replies)
{
    struct program here = {mq_open(mqueue(requests), O_RDONLY | O_CLOEXEC),
                           mq_open(mqueue(replies), O_WRONLY | O_CLOEXEC)};
    EXPECT(here.requests >= 0 && here.replies >= 0);
    return here;
}

static void program_end(struct program here)
{
    mq_close(here.requests);
    mq_close(here.replies);
}

static ipc_call *call_start(ipc_client *client, const char *text)
{
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    ipc_call *call;
    how.timeout_ns = SECONDS(60);
    how.flags = IPC_CALL_WAIT;
    EXPECT_EQ(ipc_call_start(&call, client, text, strlen(text), &how), 0);
    return call;
}

/* The client sends a call when it knows a server: let it, until the program has one. */
static void wait_request(ipc_client *client, struct program here)
{
    struct pollfd wanted[2] = {{.fd = here.requests, .events = POLLIN},
                               {.fd = ipc_client_fd(client), .events = POLLIN}};
    EXPECT(wanted[1].fd >= 0);
    do {
        EXPECT(ipc_client_dispatch(client, 0) >= 0);
        EXPECT(poll(wanted, 2, -1) > 0);
    } while (!wanted[0].revents);
}

static void call_answered(ipc_call *call, const char *text)
{
    struct ipc_reply reply;
    EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 1);
    EXPECT(reply.size == strlen(text) && memcmp(reply.data, text, reply.size) == 0);
    ipc_call_free(call);
}

static void call_lost(ipc_call *call)
{
    EXPECT_EQ(ipc_call_next(call, NULL, IPC_FOREVER), -EPIPE);
    ipc_call_free(call);
}

/* The gateway is killed while a call is with the program, and while one was not read yet: no answer goes to another. */
static void test_raw_server_over_a_kill(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_client *client;
    char text[256];
    (void)state;
    start("[bind s]\ndirection = serve\nmqueue = %s\nreply = %s\nservice = echo\ntimeout = 60s\n" SMALL,
          mqueue("work"), mqueue("done"));
    EXPECT_EQ(ipc_client_open(&client, connection, "echo", NULL, NULL), 0);
    struct program here = program_here("work", "done");
    ipc_call *first = call_start(client, "first");
    wait_request(client, here);
    EXPECT_EQ(mq_receive(here.requests, text, sizeof(text), NULL), 5);
    gateway_process_kill(&gateway);
    call_lost(first);
    gateway_process_again(&gateway);
    ipc_call *second = call_start(client, "second");
    EXPECT_EQ(mq_send(here.replies, "re:first", 8, 0), 0);
    wait_request(client, here);
    EXPECT_EQ(mq_receive(here.requests, text, sizeof(text), NULL), 6);
    EXPECT_EQ(mq_send(here.replies, "re:second", 9, 0), 0);
    call_answered(second, "re:second");
    /* Not read: taken back. */
    ipc_call *third = call_start(client, "third");
    wait_request(client, here);
    gateway_process_kill(&gateway);
    call_lost(third);
    gateway_process_again(&gateway);
    ipc_call *fourth = call_start(client, "fourth");
    wait_request(client, here);
    EXPECT_EQ(mq_receive(here.requests, text, sizeof(text), NULL), 6);
    EXPECT(memcmp(text, "fourth", 6) == 0);
    EXPECT_EQ(mq_send(here.replies, "re:fourth", 9, 0), 0);
    call_answered(fourth, "re:fourth");
    program_end(here);
    ipc_client_close(client);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* ---- in envelopes ------------------------------------------------------------------------------------------ */

static ipc_mq *end_new(mqd_t fd)
{
    ipc_mq *end;
    EXPECT_EQ(ipc_mq_open(&end, fd, NULL), 0);
    return end;
}

static void expect_header(const struct ipc_queue_message *message, const char *name, const char *wanted)
{
    const void *value;
    size_t size;
    EXPECT_EQ(ipc_queue_message_header(message, name, &value, &size), 0);
    EXPECT(size == strlen(wanted) && memcmp(value, wanted, size) == 0);
}

static void test_envelopes_inwards(void **state)
{
    static char buffer[5001], wanted[5001];
    ipc_connection *connection = connection_new();
    struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT;
    const struct ipc_header forged = {"identity", "root", 4};
    struct ipc_queue_message got;
    (void)state;
    queue_new(connection, "work", NULL);
    queue_new(connection, "dead", NULL);
    start(
        "[bind in]\ndirection = in\nform = enveloped\nmqueue = %s\nqueue = work\nidentity = press\ndead-letter = dead\n"
        "key = k\nttl = 1h\ngather-max = 8K\n" SMALL,
        mqueue("in"));
    ipc_consumer *consumer = consumer_new(connection, "work", 0), *dead = consumer_new(connection, "dead", 0);
    pid_t child = HELPER("esend", "/in", "0", "300", "5000"); /* 27 pieces each */
    for (unsigned long number = 0; number < 300; number++) {
        EXPECT_EQ(ipc_consumer_receive(consumer, buffer, sizeof(buffer), &got, IPC_FOREVER), 5000);
        number_text(wanted, number, 5000);
        EXPECT(memcmp(buffer, wanted, 5000) == 0);
        expect_header(&got, "h", "v");
        expect_header(&got, "identity", "press");
        EXPECT(got.key_size == 1 && memcmp(got.key, "k", 1) == 0);
        EXPECT_EQ(ipc_consumer_ack(consumer, got.delivery), 0);
    }
    EXPECT_EQ(wait_child(child), 0);
    /* What it says of itself goes along; but whose it is says the binding. */
    mqd_t fd = mq_open(mqueue("in"), O_WRONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    ipc_mq *end = end_new(fd);
    message.data = "body";
    message.data_size = 4;
    message.name = "work";
    message.id = "id";
    message.id_size = 2;
    message.key = "own";
    message.key_size = 3;
    message.reply_to = "dead";
    message.content_type = "text/plain";
    message.headers = &forged;
    message.header_count = 1;
    message.priority = 4;
    EXPECT_EQ(ipc_mq_send(end, &message, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_consumer_receive(consumer, buffer, sizeof(buffer), &got, IPC_FOREVER), 4);
    expect_header(&got, "identity", "press");
    EXPECT_TEXT(got.reply_to, "dead");
    EXPECT_TEXT(got.content_type, "text/plain");
    EXPECT(got.id_size == 2 && got.key_size == 3 && got.priority == 4);
    EXPECT_EQ(ipc_consumer_ack(consumer, got.delivery), 0);
    /* No envelope; for another name; too large. Each becomes a dead letter, as it came. */
    HELPER_DONE("say", "/in", "hello");
    EXPECT_EQ(ipc_consumer_receive(dead, buffer, sizeof(buffer), &got, IPC_FOREVER), 5);
    EXPECT(memcmp(buffer, "hello", 5) == 0);
    expect_header(&got, "mqueue", mqueue("in"));
    expect_header(&got, "reason", "it is no envelope of a version that is known");
    message.name = "elsewhere";
    EXPECT_EQ(ipc_mq_send(end, &message, IPC_FOREVER), 0);
    EXPECT(ipc_consumer_receive(dead, buffer, sizeof(buffer), &got, IPC_FOREVER) > 0);
    expect_header(&got, "reason", "it is for another name than that of its binding");
    HELPER_DONE("esend", "/in", "0", "1", "9000");
    EXPECT(ipc_consumer_receive(dead, buffer, sizeof(buffer), &got, IPC_FOREVER) > 0);
    expect_header(&got, "reason", "its pieces are more than gather-max");
    receive_nothing(consumer);
    ipc_mq_close(end);
    mq_close(fd);
    consumer_end(consumer);
    consumer_end(dead);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

static void test_envelopes_outwards(void **state)
{
    const struct ipc_header header = {"h", "v", 1};
    static char text[5001];
    ipc_connection *connection = connection_new();
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_publish publish = IPC_PUBLISH_INIT;
    struct iovec piece = {text, 5000};
    struct ipc_mq_message got;
    (void)state;
    queue_new(connection, "work", NULL);
    start("[bind q]\ndirection = out\nform = enveloped\noversize = split\nmqueue = %s\nqueue = work\n" SMALL
          "[bind t]\ndirection = out\nform = enveloped\nmqueue = %s\ntopic = plant.*\n" SMALL,
          mqueue("q"), mqueue("t"));
    ipc_producer *producer = producer_new(connection, "work");
    how.headers = publish.headers = &header;
    how.header_count = publish.header_count = 1;
    pid_t child = HELPER("ereceive", "/q", "0", "300", "5000");
    for (unsigned long number = 0; number < 300; number++) {
        number_text(text, number, 5000);
        EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL), 0);
    }
    EXPECT_EQ(wait_child(child), 0);
    how.id = "id";
    how.id_size = 2;
    how.reply_to = "answers";
    piece.iov_len = 4;
    EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL), 0);
    mqd_t fd = mq_open(mqueue("q"), O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    ipc_mq *end = end_new(fd);
    EXPECT_EQ(ipc_mq_receive(end, &got, IPC_FOREVER), 0);
    EXPECT_TEXT(got.name, "work");
    EXPECT_TEXT(got.reply_to, "answers");
    EXPECT_EQ(got.attempt, 1);
    EXPECT(got.data_size == 4 && got.id_size == 2 && memcmp(got.id, "id", 2) == 0);
    ipc_mq_close(end);
    mq_close(fd);
    producer_end(producer);
    /* Of a pattern, the name tells which topic it was. Nobody split this one. */
    ipc_publisher *publisher = publisher_new(connection, "plant.7", 0, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    piece.iov_len = 256;
    EXPECT_EQ(ipc_publisher_publishv(publisher, &piece, 1, &publish), 0);
    piece.iov_len = 4;
    EXPECT_EQ(ipc_publisher_publishv(publisher, &piece, 1, &publish), 0);
    fd = mq_open(mqueue("t"), O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    end = end_new(fd);
    EXPECT_EQ(ipc_mq_receive(end, &got, IPC_FOREVER), 0);
    EXPECT_TEXT(got.name, "plant.7");
    EXPECT(got.data_size == 4 && got.header_count == 1);
    EXPECT_EQ(gateway_wait_state(connection, "mq", "t", "open").dropped, 1);
    ipc_mq_close(end);
    mq_close(fd);
    publisher_end(publisher);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* Several calls at a time from an mqueue to an mqueue, answered the last first; and whom a reply may go to. */
static void test_envelopes_call(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_mq_message request = IPC_MQ_MESSAGE_INIT, got;
    const struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 256};
    (void)state;
    start(
        "[bind c]\ndirection = call\nform = enveloped\nmqueue = %s\nreply = %s-*\nservice = echo\ntimeout = 60s\n" SMALL
        "[bind s]\ndirection = serve\nform = enveloped\nmqueue = %s\nreply = %s\nservice = echo\ntimeout = 60s\n" SMALL,
        mqueue("calls"), mqueue("answers"), mqueue("work"), mqueue("done"));
    pid_t server = HELPER("eserve", "/work", "/done", "600", "4");
    pid_t one = HELPER("ecall", "/calls", "/answers-1", "0", "300", "8");
    pid_t two = HELPER("ecall", "/calls", "/answers-2", "0", "300", "8");
    EXPECT_EQ(wait_child(one), 0);
    EXPECT_EQ(wait_child(two), 0);
    EXPECT_EQ(wait_child(server), 0);
    EXPECT_EQ(gateway_wait_state(connection, "mq", "s", "open").dropped, 0);
    /* A reply that would go elsewhere. */
    mqd_t fd = mq_open(mqueue("calls"), O_WRONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    ipc_mq *end = end_new(fd);
    request.kind = IPC_MQ_REQUEST;
    request.id = "1";
    request.id_size = 1;
    request.reply_to = mqueue("done");
    EXPECT_EQ(ipc_mq_send(end, &request, IPC_FOREVER), 0);
    while (gateway_wait_state(connection, "mq", "c", "").bad != 1)
        continue;
    EXPECT_TEXT(gateway_wait_state(connection, "mq", "c", "").error, "does not allow");
    /* An error of the service is a reply with its code. */
    char name[64];
    snprintf(name, sizeof(name), "%s", mqueue("answers-3"));
    mqd_t replies = mq_open(name, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes);
    EXPECT(replies >= 0);
    ipc_mq *answers = end_new(replies);
    struct program here = program_here("work", "done");
    ipc_mq *in = end_new(here.requests), *out = end_new(here.replies);
    request.reply_to = name;
    EXPECT_EQ(ipc_mq_send(end, &request, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_mq_receive(in, &got, IPC_FOREVER), 0);
    got.kind = IPC_MQ_REPLY;
    got.code = 7;
    got.text = "not today";
    EXPECT_EQ(ipc_mq_send(out, &got, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_mq_receive(answers, &got, IPC_FOREVER), 0);
    EXPECT_EQ(got.code, 7);
    EXPECT_TEXT(got.text, "not today");
    EXPECT(got.id_size == 1 && memcmp(got.id, "1", 1) == 0);
    ipc_mq_close(in);
    ipc_mq_close(out);
    ipc_mq_close(answers);
    ipc_mq_close(end);
    program_end(here);
    mq_close(replies);
    EXPECT_EQ(mq_unlink(name), 0);
    mq_close(fd);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* An answer to a call of a gateway that was killed is nobody's. */
static void test_envelope_of_before(void **state)
{
    ipc_connection *connection = connection_new();
    struct ipc_mq_message got;
    unsigned char id[255];
    ipc_client *client;
    (void)state;
    start(
        "[bind s]\ndirection = serve\nform = enveloped\nmqueue = %s\nreply = %s\nservice = echo\ntimeout = 60s\n" SMALL,
        mqueue("work"), mqueue("done"));
    EXPECT_EQ(ipc_client_open(&client, connection, "echo", NULL, NULL), 0);
    struct program here = program_here("work", "done");
    ipc_mq *in = end_new(here.requests), *out = end_new(here.replies);
    ipc_call *first = call_start(client, "first");
    wait_request(client, here);
    EXPECT_EQ(ipc_mq_receive(in, &got, IPC_FOREVER), 0);
    size_t id_size = got.id_size;
    memcpy(id, got.id, id_size);
    gateway_process_kill(&gateway);
    call_lost(first);
    gateway_process_again(&gateway);
    ipc_call *second = call_start(client, "second");
    wait_request(client, here);
    EXPECT_EQ(ipc_mq_receive(in, &got, IPC_FOREVER), 0);
    EXPECT(got.data_size == 6 && got.id_size == id_size && memcmp(id, got.id, id_size) != 0);
    struct ipc_mq_message stale = IPC_MQ_MESSAGE_INIT;
    stale.kind = IPC_MQ_REPLY;
    stale.id = id;
    stale.id_size = id_size;
    stale.data = "re:first";
    stale.data_size = 8;
    EXPECT_EQ(ipc_mq_send(out, &stale, IPC_FOREVER), 0);
    got.kind = IPC_MQ_REPLY;
    EXPECT_EQ(ipc_mq_send(out, &got, IPC_FOREVER), 0);
    call_answered(second, "second");
    EXPECT_EQ(gateway_wait_state(connection, "mq", "s", "open").dropped, 1);
    ipc_mq_close(in);
    ipc_mq_close(out);
    program_end(here);
    ipc_client_close(client);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* ---- management -------------------------------------------------------------------------------------------- */

static void free_binding(Ipc__Gateway__Binding *binding)
{
    EXPECT(binding != NULL);
    ipc__gateway__binding__free_unpacked(binding, NULL);
}

static void test_bind_at_run_time(void **state)
{
    ipc_connection *connection = connection_new();
    const struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 64};
    char found[64], text[256];
    int result;
    (void)state;
    queue_new(connection, "work", NULL);
    start("[gateway]\n");
    snprintf(found, sizeof(found), "%s", mqueue("found"));
    mqd_t fd = mq_open(found, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes);
    EXPECT(fd >= 0);
    const char *in[] = {"direction", "in", "mqueue",       mqueue("made"), "queue", "work",
                        "messages",  "4",  "message-size", "64",           NULL};
    const char *out[] = {"direction", "out", "mqueue", found, "topic", "t", NULL};
    const char *lost[] = {"direction", "in", "mqueue", mqueue("lost"), "queue", "nowhere", NULL};
    const char *wrong[] = {"direction", "sideways", NULL};
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "one", in, &result, NULL));
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "", out, &result, NULL));
    EXPECT(!gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "", lost, &result, text));
    EXPECT_EQ(result, -EREMOTEIO);
    EXPECT_TEXT(text, "there is no queue nowhere");
    EXPECT(!mqueue_exists("lost"));
    EXPECT(!gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "", wrong, &result, text));
    EXPECT_TEXT(text, "direction = sideways: it is one of");
    EXPECT(!gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "one", in, &result, text));
    EXPECT_TEXT(text, "there is a binding one already");
    /* They survive the gateway, and so does what it knows of what it made. */
    gateway_process_kill(&gateway);
    gateway_process_again(&gateway);
    kill(gateway.pid, SIGUSR1);
    EXPECT_EQ(wait_child(gateway.pid), 0);
    HELPER_DONE("say", "/made", "hello");
    gateway_process_again(&gateway);
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    struct ipc_queue_message message = receive_text(consumer, "hello");
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    consumer_end(consumer);
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__UNBIND, "one", NULL, &result, NULL));
    EXPECT(!mqueue_exists("made"));
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__UNBIND, "mq-1", NULL, &result, NULL));
    EXPECT(mqueue_exists("found"));
    EXPECT(!gateway_ask(connection, "mq", IPC__GATEWAY__VERB__UNBIND, "mq-1", NULL, &result, text));
    EXPECT_TEXT(text, "there is no such binding");
    gateway_process_stop(&gateway);
    EXPECT_EQ(mq_unlink(found), 0);
    mq_close(fd);
    ipc_connection_close(connection);
}

/* A configuration that is read again: what is in it as before goes on as if nothing had happened. */
static void test_read_again(void **state)
{
    static const char *const names[] = {"stays", "changes", "goes", "comes", "bound"};
    ipc_connection *connection = connection_new();
    char queues[5][160], config[1024];
    int result;
    (void)state;
    for (int i = 0; i < 5; i++) {
        queue_new(connection, names[i], NULL);
        snprintf(queues[i], sizeof(queues[i]), "[bind %s]\ndirection = in\nmqueue = %s\nqueue = %s\n" SMALL,
                 names[i], mqueue(names[i]), names[i]);
    }
    start("%s%s%s", queues[0], queues[1], queues[2]);
    const char *bound[] = {"direction",    "in", "mqueue", mqueue("bound"), "queue", "bound", "messages", "4",
                           "message-size", "64", NULL};
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "bound", bound, &result, NULL));
    pid_t child = HELPER("send", "/stays", "0", "20000", "100");
    ipc_consumer *consumer = consumer_new(connection, "stays", 0);
    receive_numbers_text(consumer, 0, 1000, 100);
    /* With a mistake nothing is taken over. */
    snprintf(config, sizeof(config), "%s[bind comes]\ndirection = sideways\n", queues[3]);
    gateway_process_reload(&gateway, config);
    HELPER_DONE("say", "/goes", "still");
    consumer_end(consumer);
    consumer = consumer_new(connection, "goes", 0);
    (void)receive_text(consumer, "still");
    consumer_end(consumer);
    EXPECT(!mqueue_exists("comes"));
    /* One stays, one is for another queue, one is gone, one is new. */
    snprintf(config, sizeof(config), "%s%s[bind changes]\ndirection = in\nmqueue = %s\nqueue = goes\n" SMALL,
             queues[3], queues[0], mqueue("changes"));
    gateway_process_reload(&gateway, config);
    EXPECT(!mqueue_exists("goes"));
    HELPER_DONE("say", "/changes", "changed");
    HELPER_DONE("say", "/comes", "come");
    HELPER_DONE("say", "/bound", "bound");
    static const char *const hears[][2] = {
        {"goes", "still"}, {"goes", "changed"}, {"comes", "come"}, {"bound", "bound"}};
    for (int i = 0; i < 4; i++) {
        consumer = consumer_new(connection, hears[i][0], 0);
        struct ipc_queue_message message = receive_text(consumer, hears[i][1]);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        consumer_end(consumer);
    }
    consumer = consumer_new(connection, "stays", 0);
    receive_numbers_text(consumer, 1000, 20000, 100);
    EXPECT_EQ(wait_child(child), 0);
    EXPECT_EQ(gateway_wait_state(connection, "mq", "stays", "open").received,
              20000); /* it was not opened again */
    consumer_end(consumer);
    /* The configuration may have now what was bound at run time. */
    gateway_process_reload(&gateway, queues[4]);
    EXPECT(!mqueue_exists("stays") && mqueue_exists("bound"));
    gateway_process_kill(&gateway);
    gateway_process_again(&gateway);
    gateway_process_stop(&gateway);
    EXPECT(!mqueue_exists("bound"));
    ipc_connection_close(connection);
}

/* More than the machine allows is cut, and said. */
static void test_limits(void **state)
{
    ipc_connection *connection = connection_new();
    struct mq_attr attributes;
    unsigned long allowed = 0;
    FILE *file = fopen("/proc/sys/fs/mqueue/msg_max", "re");
    (void)state;
    EXPECT(file && fscanf(file, "%lu", &allowed) == 1);
    fclose(file);
    queue_new(connection, "work", NULL);
    start(
        "[bind in]\ndirection = in\nmqueue = %s\nqueue = work\nmessages = 65536\nmessage-size = 128\nmode = 640\n",
        mqueue("in"));
    mqd_t fd = mq_open(mqueue("in"), O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    EXPECT_EQ(mq_getattr(fd, &attributes), 0);
    EXPECT(attributes.mq_maxmsg <= (long)allowed);
    EXPECT_EQ(attributes.mq_msgsize, 128);
    mq_close(fd);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* A binding whose queue is not there yet opens when it is. */
static void test_opens_later(void **state)
{
    ipc_connection *connection = connection_new();
    (void)state;
    start("[bind in]\ndirection = in\nmqueue = %s\nqueue = later\n" SMALL, mqueue("in"));
    EXPECT_TEXT(gateway_wait_state(connection, "mq", "in", "waiting").error, "there is no queue later");
    queue_new(connection, "later", NULL);
    (void)gateway_wait_state(connection, "mq", "in", "open");
    EXPECT_EQ(ipc_queue_remove(connection, "later", 0, NULL), 0);
    (void)gateway_wait_state(connection, "mq", "in", "waiting");
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* ---- death ------------------------------------------------------------------------------------------------- */

#define KILLS 8u

/* How many of these are missing; those that came again are allowed to. */
static unsigned missing(const unsigned char *seen, unsigned count)
{
    unsigned lost = 0;
    for (unsigned i = 0; i < count; i++)
        lost += seen[i] == 0;
    return lost;
}

/* Into a queue, each kill loses one message at most, and none comes twice. */
static void test_killed_inwards(void **state)
{
    ipc_connection *connection = connection_new();
    static unsigned char seen[40001];
    unsigned kills = 0, received = 0;
    (void)state;
    memset(seen, 0, sizeof(seen));
    queue_new(connection, "work", NULL);
    start("[bind in]\ndirection = in\nmqueue = %s\nqueue = work\n" SMALL, mqueue("in"));
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    pid_t child = HELPER("send", "/in", "0", "40000", "32");
    for (bool ended = false; !ended;) {
        struct ipc_queue_message message;
        char text[64];
        EXPECT(ipc_consumer_receive(consumer, text, sizeof(text), &message, IPC_FOREVER) > 0);
        unsigned long number = strtoul(text, NULL, 10);
        EXPECT(number <= 40000);
        EXPECT_EQ(seen[number]++, 0);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        received++;
        ended = number == 40000;
        if (received == 4000 * (kills + 1) && kills < KILLS) {
            gateway_process_kill(&gateway);
            gateway_process_again(&gateway);
            kills++;
        }
        if (kills == KILLS && child > 0 && received > 4000 * KILLS) {
            EXPECT_EQ(wait_child(child), 0);
            child = 0;
            HELPER_DONE("send", "/in", "40000", "40001", "32");
        }
    }
    unsigned lost = missing(seen, 40000);
    print_message("%u kills inwards: %u of 40000 messages lost\n", kills, lost);
    EXPECT_EQ(kills, KILLS);
    EXPECT(lost <= kills);
    consumer_end(consumer);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* Out of a queue nothing is lost, and each kill brings sixteen again at most: what is acknowledged together. */
static void test_killed_outwards(void **state)
{
    ipc_connection *connection = connection_new();
    static unsigned char seen[20000];
    unsigned kills = 0, received = 0, again = 0;
    unsigned long number;
    char text[64];
    int output;
    (void)state;
    memset(seen, 0, sizeof(seen));
    queue_new(connection, "work", NULL);
    ipc_producer *producer = producer_new(connection, "work");
    for (number = 0; number < 20000; number++) {
        number_text(text, number, 32);
        EXPECT_EQ(ipc_producer_send(producer, text, 32, IPC_FOREVER, NULL), 0);
    }
    start("[bind out]\ndirection = out\nmqueue = %s\nqueue = work\n" SMALL, mqueue("out"));
    pid_t child = helper(&output, (const char *const[]){"collect", "/out", "20000", NULL});
    FILE *numbers = fdopen(output, "re");
    EXPECT(numbers != NULL);
    while (fscanf(numbers, "%lu", &number) == 1 && number != 20000) {
        EXPECT(number < 20000);
        again += seen[number] > 0;
        seen[number] = 1;
        if (++received == 2000 * (kills + 1) && kills < KILLS) {
            gateway_process_kill(&gateway);
            gateway_process_again(&gateway);
            kills++;
        }
        if (missing(seen + 19999, 1) == 0 && producer) {
            number_text(text, 20000, 32);
            EXPECT_EQ(ipc_producer_send(producer, text, 32, IPC_FOREVER, NULL), 0);
            producer_end(producer);
            producer = NULL;
        }
    }
    EXPECT_EQ(wait_child(child), 0);
    fclose(numbers);
    print_message("%u kills outwards: %u came again\n", kills, again);
    EXPECT_EQ(kills, KILLS);
    EXPECT(again <= 16 * kills);
    EXPECT_EQ(missing(seen, 20000), 0);
    gateway_process_stop(&gateway);
    ipc_connection_close(connection);
}

/* The broker goes away, and another one comes: the gateway goes on by itself. */
static void test_broker_goes(void **state)
{
    const char *const quiet[] = {"--log-level", "error", NULL};
    struct guarded guarded;
    struct ipc_queue_message message;
    (void)state;
    watchdog(90, "a gateway without its broker");
    expect_here();
    guarded_start(&guarded, quiet);
    ipc_connection *connection = connection_new();
    queue_new(connection, "work", NULL);
    start("[bind in]\ndirection = in\nmqueue = %s\nqueue = work\n" SMALL, mqueue("in"));
    ipc_consumer *consumer = consumer_new(connection, "work", 0);
    guarded_kill_ipcd(&guarded);
    HELPER_DONE("say", "/in", "one");
    message = receive_text(consumer, "one");
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    ipc_connection_close(connection);
    guarded_lose(&guarded);
    guarded_run(&guarded, quiet);
    gateway_process_ready(&gateway);
    connection = connection_new();
    (void)gateway_wait_state(connection, "mq", "in", "waiting");
    queue_new(connection, "work", NULL);
    HELPER_DONE("say", "/in", "two");
    consumer = consumer_new(connection, "work", 0);
    message = receive_text(consumer, "two");
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    ipc_connection_close(connection);
    gateway_process_stop(&gateway);
    guarded_stop(&guarded);
    watchdog(0, "");
}

/* ipcd-run runs the gateway, and again when it dies; ipcd does not notice. A SIGHUP reaches both. */
static void test_supervised(void **state)
{
    char folder[] = "/tmp/ipc-test-XXXXXX", config[64], option[80];
    const char *const arguments[] = {"--log-level", "error", "--gateway", option, NULL};
    const char *in[] = {"direction", "in", "mqueue",       mqueue("in"), "topic", "t",
                        "messages",  "4",  "message-size", "64",         NULL};
    struct guarded guarded;
    int result;
    (void)state;
    watchdog(90, "a supervised gateway");
    expect_here();
    EXPECT(mkdtemp(folder) != NULL);
    snprintf(config, sizeof(config), "%s/mq.conf", folder);
    snprintf(option, sizeof(option), "mq:%s", config);
    FILE *file = fopen(config, "we");
    EXPECT(file != NULL);
    guarded_start(&guarded, arguments);
    pid_t ipcd = guarded_pid(&guarded);
    ipc_connection *connection = connection_new();
    free_binding(gateway_ask(connection, "mq", IPC__GATEWAY__VERB__BIND, "in", in, &result, NULL));
    for (unsigned i = 0; i < 3; i++) {
        struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
        struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
        struct ipc_reply reply;
        ipc_client *client;
        how.flags = IPC_CALL_WAIT;
        /* An answer, or an error, names the server: whom to kill. */
        EXPECT_EQ(ipc_client_open(&client, connection, "ipcd.gateway.mq", &options, NULL), 0);
        EXPECT_EQ(ipc_client_call(client, NULL, 0, NULL, 0, &how, &reply), -EREMOTEIO);
        EXPECT(reply.server.pid > 0);
        EXPECT_EQ(kill((pid_t)reply.server.pid, SIGKILL), 0);
        EXPECT_EQ(ipc_client_call(client, NULL, 0, NULL, 0, &how, &reply) == -EPIPE || reply.server.pid > 0,
                  1);
        ipc_client_close(client);
        (void)gateway_wait_state(connection, "mq", "in", "open");
    }
    EXPECT_EQ(guarded_pid(&guarded), ipcd);
    EXPECT(mqueue_exists("in"));
    fprintf(file, "[bind more]\ndirection = in\nmqueue = %s\ntopic = t\n" SMALL, mqueue("more"));
    EXPECT_EQ(fclose(file), 0);
    EXPECT_EQ(kill(guarded.run, SIGHUP), 0);
    (void)gateway_wait_state(connection, "mq", "more", "open");
    EXPECT_EQ(guarded_wait_other(&guarded, ipcd) > 0, 1);
    EXPECT(mqueue_exists("in") && mqueue_exists("more"));
    ipc_connection_close(connection);
    guarded_stop(&guarded);
    EXPECT_EQ(unlink(config), 0);
    EXPECT_EQ(rmdir(folder), 0);
    EXPECT(!mqueue_exists("more"));
    EXPECT(!mqueue_exists("in"));
    watchdog(0, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_into_a_queue),
        CASE(test_out_of_a_queue),
        CASE(test_priority_outwards),
        CASE(test_refused_is_held),
        CASE(test_topics),
        CASE(test_drop),
        CASE(test_mqueue_calls),
        CASE(test_mqueue_serves),
        CASE(test_raw_server_over_a_kill),
        CASE(test_envelopes_inwards),
        CASE(test_envelopes_outwards),
        CASE(test_envelopes_call),
        CASE(test_envelope_of_before),
        CASE(test_bind_at_run_time),
        CASE(test_read_again),
        CASE(test_limits),
        CASE(test_opens_later),
        CASE(test_killed_inwards),
        CASE(test_killed_outwards),
        cmocka_unit_test(test_broker_goes),
        cmocka_unit_test(test_supervised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
