/* SPDX-License-Identifier: Apache-2.0
 *
 * A broker, or a client, that may have no more than 64 files open, and needs more: what fits works, what does not is told
 * which limit it is and which setting, and when some leave others get in.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#define FILES   64u
#define CLIENTS 18u
#define RING    4096u

enum kind { TOPIC, QUEUE, SERVICE, SEGMENT, KINDS };

/* A client is a process with a topic, a queue, a service or a segment of its own, and both ends of it. */
struct client {
    pid_t pid; /* 0: it is not there */
    unsigned number;
    int go, done; /* each time it is let go it uses its ends once */
    struct told {
        struct ipc_error error; /* what it was refused with */
        bool leave;
    } * told; /* shared */
};

struct ends {
    ipc_connection *connection;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    ipc_producer *producer;
    ipc_consumer *consumer;
    ipc_server *server;
    ipc_client *client;
    ipc_segment *segment;
};

/* A call to one's own server. */
static int call_self(const struct ends *ends, uint64_t number, struct ipc_error *error)
{
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    struct ipc_request *request;
    ipc_call *call;
    how.timeout_ns = SECONDS(60);
    int result = ipc_call_start(&call, ends->client, &number, sizeof(number), &how);
    if (result < 0)
        return result;
    while ((result = ipc_call_wait(call, 1000000)) == -ETIME)
        if (ipc_server_receive(ends->server, NULL, 0, &request, 0) >= 0)
            EXPECT_EQ(ipc_request_reply(request, request->data, request->size, NULL), 0);
    result = ipc_call_next(call, &reply, 0);
    if (result < 0) {
        error->code = result;
        snprintf(error->text, sizeof(error->text), "%s", reply.text);
    }
    EXPECT(result < 0 || (reply.size == sizeof(number) && memcmp(reply.data, &number, sizeof(number)) == 0));
    ipc_call_free(call);
    return result;
}

static int open_ends(struct ends *ends, unsigned number, struct ipc_error *error)
{
    struct ipc_publisher_options writing = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_subscription_options reading = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_segment_options sharing = IPC_SEGMENT_OPTIONS_INIT;
    char name[32];
    int result = ends->connection ? 0 : ipc_connection_open(&ends->connection, NULL, NULL, error);
    snprintf(name, sizeof(name), "few.%u", number);
    if (result < 0)
        return result;
    switch (number % KINDS) {
    case TOPIC:
        writing.ring_size = RING;
        reading.start = IPC_START_OLDEST;
        reading.flags = IPC_SUBSCRIPTION_SELF;
        result = ipc_publisher_open(&ends->publisher, ends->connection, name, &writing, error);
        return result < 0
                   ? result
                   : ipc_subscription_open(&ends->subscription, ends->connection, name, &reading, error);
    case QUEUE:
        result = ipc_queue_create(ends->connection, name, NULL, 0, error);
        if (result == -EEXIST) /* it outlived who made it */
            result = error->code = 0;
        if (result == 0)
            result = ipc_producer_open(&ends->producer, ends->connection, name, NULL, error);
        return result < 0 ? result : ipc_consumer_open(&ends->consumer, ends->connection, name, NULL, error);
    case SEGMENT:
        sharing.bytes = RING;
        sharing.flags = IPC_SEGMENT_CREATE;
        return ipc_segment_open(&ends->segment, ends->connection, name, &sharing, error);
    default:
        result = ipc_server_open(&ends->server, ends->connection, name, NULL, error);
        if (result == 0)
            result = ipc_client_open(&ends->client, ends->connection, name, NULL, error);
        if (result == 0)
            result = call_self(ends, 0, error);
        return result < 0 ? result : 0;
    }
}

/* All but the connection. */
static void close_ends(const struct ends *ends, unsigned number)
{
    char name[32];
    snprintf(name, sizeof(name), "few.%u", number);
    ipc_publisher_close(ends->publisher);
    ipc_subscription_close(ends->subscription);
    ipc_producer_close(ends->producer);
    ipc_consumer_close(ends->consumer);
    if (ends->connection && number % KINDS == QUEUE)
        (void)ipc_queue_remove(ends->connection, name, 0, NULL);
    ipc_client_close(ends->client);
    ipc_server_close(ends->server);
    ipc_segment_close(ends->segment);
}

static void use(const struct ends *ends, uint64_t number)
{
    if (ends->publisher) {
        publish_numbers(ends->publisher, number, number + 1, 64);
        receive_numbers(ends->subscription, number, number + 1, 64);
    } else if (ends->producer) {
        send_numbers(ends->producer, number, number + 1, 64);
        receive_acked(ends->consumer, number, number + 1);
    } else if (ends->segment) {
        EXPECT_EQ(ipc_segment_acquire(ends->segment, 0), 0);
        memcpy(ipc_segment_data(ends->segment), &number, sizeof(number));
        EXPECT_EQ(ipc_segment_release(ends->segment, 0), 0);
    } else {
        EXPECT_EQ(call_self(ends, number, &(struct ipc_error){0}), 1);
    }
}

static void be_client(void *argument)
{
    const struct client *client = argument;
    struct ends ends = {NULL};
    int result = open_ends(&ends, client->number, &client->told->error);
    EXPECT_EQ(client->told->error.code, result);
    gate_open(client->done);
    for (uint64_t number = 1; result == 0; number++) {
        gate_wait(client->go);
        if (client->told->leave)
            break;
        use(&ends, number);
        gate_open(client->done);
    }
    close_ends(&ends, client->number);
    ipc_connection_close(ends.connection);
}

static struct client clients[CLIENTS];

static void client_start(struct client *client)
{
    *client->told = (struct told){.leave = false};
    client->pid = child_start(be_client, client);
}

/* Returns false if it did not fit, and was told so. */
static bool client_fits(struct client *client)
{
    const struct ipc_error *error = &client->told->error;
    gate_wait(client->done);
    if (error->code == 0)
        return true;
    child_done(client->pid);
    client->pid = 0;
    printf("%u: %s\n", client->number, error->text);
    if (error->code == -EPIPE) { /* its server had no room for it, which the broker told the server */
        EXPECT_TEXT(error->text, "a limit was reached");
    } else {
        EXPECT(error->code == -EDQUOT || error->code == -EMFILE);
        EXPECT_TEXT(error->text, "descriptors");
        EXPECT(strstr(error->text, "descriptors in [limits]") || strstr(error->text, "LimitNOFILE="));
    }
    return false;
}

static void client_leave(struct client *client, bool killed)
{
    if (killed) {
        child_kill(client->pid);
    } else {
        client->told->leave = true;
        gate_open(client->go);
        child_done(client->pid);
    }
    client->pid = 0;
}

static void all_use(void)
{
    for (unsigned i = 0; i < CLIENTS; i++)
        if (clients[i].pid)
            gate_open(clients[i].go);
    for (unsigned i = 0; i < CLIENTS; i++)
        if (clients[i].pid)
            gate_wait(clients[i].done);
}

/* Returns how many fit. */
static unsigned all_come(bool at_once)
{
    unsigned fit = 0;
    for (unsigned i = 0; i < CLIENTS; i++) {
        client_start(&clients[i]);
        if (!at_once)
            fit += client_fits(&clients[i]);
    }
    for (unsigned i = 0; at_once && i < CLIENTS; i++)
        fit += client_fits(&clients[i]);
    return fit;
}

/* Half of them leave, by kill -9 if `killed`, and as many get in. */
static void some_change(bool killed)
{
    for (unsigned i = 0; i < CLIENTS; i += 2) {
        if (!clients[i].pid)
            continue;
        client_leave(&clients[i], killed);
        do /* the broker may not have seen yet that it left */
            client_start(&clients[i]);
        while (!client_fits(&clients[i]));
    }
}

static struct guarded guarded;

struct holdings {
    struct broker_counts counts;
    unsigned ipcd, run;
};

static struct holdings holdings_of(int counter, pid_t ipcd)
{
    struct holdings holdings;
    memset(&holdings, 0, sizeof(holdings));
    holdings.counts = broker_counter_ask(counter);
    holdings.ipcd = descriptors_of(ipcd);
    holdings.run = guarded.run ? guarded_kept(&guarded) : 0;
    return holdings;
}

/* More clients than fit, one after the other and at once, while ipcd is killed if `restarts`; and then as before. */
static void crowd(pid_t (*ipcd)(void), bool restarts)
{
    int counter = broker_counter_open(&broker);
    for (unsigned round = 0; round < 4; round++) {
        bool at_once = round & 1, killed = round & 2;
        struct holdings before = holdings_of(counter, ipcd()), now;
        unsigned fit = all_come(at_once);
        printf("round %u: %u fit\n", round, fit);
        EXPECT(fit < CLIENTS && (at_once || fit >= KINDS));
        all_use();
        some_change(killed);
        if (restarts)
            EXPECT_EQ(kill(ipcd(), SIGKILL), 0);
        all_use();
        for (unsigned i = 0; i < CLIENTS; i++)
            if (clients[i].pid)
                client_leave(&clients[i], killed);
        /* A queue outlives who made it. */
        ipc_connection *connection;
        while (ipc_connection_open(&connection, NULL, NULL, NULL) < 0)
            continue; /* it may not have seen yet that they left */
        for (unsigned i = QUEUE; i < CLIENTS; i += KINDS) {
            char name[32];
            snprintf(name, sizeof(name), "few.%u", i);
            (void)ipc_queue_remove(connection, name, 0, NULL);
        }
        ipc_connection_close(connection);
        do
            now = holdings_of(counter, ipcd());
        while (memcmp(&now, &before, sizeof(now)) != 0);
    }
    broker_counter_close(counter);
}

static pid_t ipcd_alone(void)
{
    return broker.pid;
}

/* That of ipcd-run, without asking it: it may be full. */
static pid_t ipcd_guarded(void)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)guarded.run, (int)guarded.run);
    while (pid == 0) {
        FILE *file = fopen(path, "re");
        EXPECT(file != NULL);
        if (fscanf(file, "%d", &pid) != 1)
            pid = 0;
        fclose(file);
    }
    return pid;
}

static void test_broker_alone(void **state)
{
    (void)state;
    crowd(ipcd_alone, false);
}

static void test_broker_guarded(void **state)
{
    (void)state;
    crowd(ipcd_guarded, true);
}

/* ---- a client --------------------------------------------------------------------------------------------------- */

/* Receive what was just published, or hear why that will not come. */
static int receive_or_hear(const struct ends *ends, uint64_t number, struct ipc_error *error)
{
    for (;;) {
        struct ipc_event event;
        uint64_t got;
        ssize_t size = ipc_subscription_receive(ends->subscription, &got, sizeof(got), NULL, 1000000);
        if (size >= 0) {
            EXPECT(size == sizeof(got) && got == number);
            return 0;
        }
        EXPECT_EQ(size, -ETIMEDOUT);
        while (ipc_connection_next_event(ends->connection, &event) > 0) {
            if (event.kind != IPC_EVENT_WRITER_LEFT)
                continue;
            EXPECT_EQ(event.reason, IPC_REASON_LIMIT);
            error->code = -EMFILE;
            snprintf(error->text, sizeof(error->text), "RLIMIT_NOFILE: %s", ipc_reason_text(event.reason));
            return error->code;
        }
    }
}

/* Everything that there is, with few descriptors left: it works, or says what is lacking. Returns how much did not.
 * `kept`: NULL, or the connection for all of it. */
static unsigned try_all(unsigned left, ipc_connection *kept)
{
    unsigned failed = 0;
    for (unsigned kind = 0; kind < KINDS; kind++) {
        struct ends ends = {.connection = kept};
        struct ipc_error error = {0};
        int result = open_ends(&ends, kind, &error);
        if (result == 0 && kind == TOPIC) {
            uint64_t number = left;
            EXPECT_EQ(ipc_publisher_publish(ends.publisher, &number, sizeof(number)), 0);
            result = receive_or_hear(&ends, number, &error);
        } else if (result == 0) {
            use(&ends, left);
        }
        if (result < 0) {
            EXPECT_EQ(error.code, result);
            EXPECT(strstr(error.text, "RLIMIT_NOFILE") || strstr(error.text, "a limit was reached"));
            failed++;
        }
        close_ends(&ends, kind);
        if (!kept)
            ipc_connection_close(ends.connection);
    }
    return failed;
}

static void be_greedy(void *argument)
{
    const struct rlimit few = {.rlim_cur = FILES, .rlim_max = FILES};
    int fds[FILES], fd, counter = broker_counter_open(&broker);
    ipc_connection *connections[FILES];
    struct ipc_error error;
    unsigned n_connections = 0, n = 0;
    (void)argument;
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    ipc_connection *kept = connection_new();
    EXPECT_EQ(try_all(0, kept), 0); /* some of what was made for it stays with the session */
    struct broker_counts before = broker_counter_ask(counter), now;
    /* More connections than it can have: those that it has go on. */
    while (ipc_connection_open(&connections[n_connections], NULL, NULL, &error) == 0)
        n_connections++;
    EXPECT_EQ(error.code, -EMFILE);
    EXPECT_TEXT(error.text, "RLIMIT_NOFILE");
    EXPECT(n_connections > FILES / 2);
    while (n_connections > 0) {
        EXPECT_EQ(ipc_connection_dispatch(connections[--n_connections]), 0);
        ipc_connection_close(connections[n_connections]);
    }
    while ((fd = dup(counter)) >= 0)
        fds[n++] = fd;
    for (unsigned left = 0, failed = KINDS; failed > 0; left++) {
        failed = try_all(left, left == 0 ? kept : NULL);
        EXPECT(left > 0 || failed == KINDS);
        do /* what was made for an answer that could not be taken is undone */
            now = broker_counter_ask(counter);
        while (memcmp(&now, &before, sizeof(now)) != 0);
        EXPECT(n > 0);
        close(fds[--n]);
    }
    ipc_connection_close(kept);
}

static void test_client(void **state)
{
    (void)state;
    child_done(child_start(be_greedy, NULL));
}

static int setup_clients(void)
{
    struct told *told = shared_new(CLIENTS * sizeof(*told));
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i] = (struct client){0, i, gate_new(), gate_new(), &told[i]};
    return 0;
}

static void teardown_clients(void)
{
    for (unsigned i = 0; i < CLIENTS; i++) {
        close(clients[i].go);
        close(clients[i].done);
    }
    shared_free(clients[0].told, CLIENTS * sizeof(*clients[0].told));
}

static int setup_alone(void **state)
{
    broker_files = FILES;
    int result = broker_setup(state);
    broker_files = 0;
    watchdog(110, "a case of this program");
    return result == 0 ? setup_clients() : result;
}

static int teardown_alone(void **state)
{
    teardown_clients();
    return broker_teardown(state);
}

static int setup_guarded(void **state)
{
    (void)state;
    expect_here();
    watchdog(110, "a case of this program");
    broker_files = FILES;
    guarded_start(&guarded, (const char *[]){"--log-level", "error", NULL});
    broker_files = 0;
    memcpy(broker.address, guarded.address, sizeof(broker.address));
    return setup_clients();
}

static int teardown_guarded(void **state)
{
    (void)state;
    teardown_clients();
    guarded_stop(&guarded);
    guarded.run = 0;
    EXPECT(!children_left());
    watchdog(0, "");
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_broker_alone, setup_alone, teardown_alone),
        CASE(test_client),
        cmocka_unit_test_setup_teardown(test_broker_guarded, setup_guarded, teardown_guarded),
    };
    return cmocka_run_group_tests_name("few_descriptors", tests, NULL, NULL);
}
