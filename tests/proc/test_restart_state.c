/* SPDX-License-Identifier: Apache-2.0
 *
 * What the next ipcd makes of what the one before left: lanes without a writer, bells, pairings that wait, sessions whose
 * process died, a store that lost something, and starts that fail.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "libipc/patterns/patterns.h"
#include "tests/support/broker.h"
#include "tests/support/guarded.h"

static struct guarded guarded;
static char plan[96], helper[256];

static int setup(void **state)
{
    static const char *const arguments[] = {"--log-level", "error", "--watchdog", "0",
                                            "--ipcd",      helper,  NULL};

    watchdog(60, "restart with state");
    snprintf(helper, sizeof(helper), "%s/restart_helper", getenv("TEST_HELPER_DIR"));
    snprintf(plan, sizeof(plan), "/tmp/ipc-restart-plan.%d", (int)getpid());
    setenv("IPC_TEST_PLAN", plan, 1);
    guarded_start(&guarded, arguments);
    return 0;
}

static int teardown(void **state)
{
    unlink(plan);
    if (guarded.run)
        guarded_stop(&guarded);
    return 0;
}

/* What the next starts of ipcd do: see restart_helper.c. */
static void plan_write(const char *text)
{
    FILE *file = fopen(plan, "we");
    EXPECT(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static struct broker as_broker(void)
{
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    return as;
}

static struct broker_counts counts(void)
{
    const struct broker as = as_broker();
    return broker_count(&as);
}

static void settles(const struct broker_counts *then)
{
    const struct broker as = as_broker();
    broker_settles(&as, then);
}

/* Until the session is over, and with a reason. */
static void expect_over(ipc_connection *connection)
{
    while (ipc_connection_dispatch(connection) != -EPIPE)
        sched_yield();
    EXPECT(event_wait(connection, IPC_EVENT_ENDED).reason != 0);
}

/* ---- lanes, bells, pairings that wait -------------------------------------------------------------------------- */

static void publish_and_leave(const char *topic, uint64_t from, uint64_t to)
{
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, topic, 1 << 14, IPC_PUBLISHER_RETAIN);
    publish_numbers(publisher, from, to, 64);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void test_retained_lanes_stay(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription;

    publish_and_leave("kept.a", 0, 20);
    publish_and_leave("kept.b", 0, 5);
    EXPECT_EQ(counts().topics, 2);
    guarded_kill_ipcd(&guarded);
    subscription = subscription_new(connection, "kept.a", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    receive_numbers(subscription, 0, 20, 64);
    subscription_end(subscription);
    struct broker_counts before = counts();
    EXPECT_EQ(before.topics, 2);
    subscription = subscription_new(connection, "kept.*", IPC_START_LAST, IPC_SLOW_DROP_OLDEST, 0);
    guarded_kill_ipcd(&guarded);
    for (unsigned seen = 0; seen != (1U << 19 | 1U << 4);) {
        uint64_t number[8];
        EXPECT_EQ(ipc_subscription_receive(subscription, number, sizeof(number), NULL, IPC_FOREVER), 64);
        EXPECT(number[0] == 19 || number[0] == 4);
        seen |= 1U << number[0];
    }
    subscription_end(subscription);
    settles(&before);
    publish_and_leave("kept.a", 20, 30); /* takes the place of the older one */
    settles(&before);
    subscription = subscription_new(connection, "kept.a", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    receive_numbers(subscription, 20, 30, 64);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void wait_readable(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (poll(&wait, 1, -1) < 0)
        EXPECT_EQ(errno, EINTR);
}

static void receive_by_descriptor(ipc_subscription *subscription, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t number[8];
        ssize_t size = ipc_subscription_receive(subscription, number, sizeof(number), NULL, 0);
        if (size == -EAGAIN) {
            wait_readable(ipc_subscription_fd(subscription));
            continue;
        }
        EXPECT_EQ(size, 64);
        EXPECT_EQ(number[0], from++);
    }
}

static void test_bells_ring(void **state)
{
    ipc_connection *writing = connection_new(), *reading = connection_new();
    ipc_publisher *publisher = publisher_new(writing, "bell.a", 1 << 14, 0), *other;
    ipc_subscription *subscription = subscription_new(reading, "bell.*", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);

    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    EXPECT(ipc_subscription_fd(subscription) >= 0);
    publish_numbers(publisher, 0, 10, 64);
    receive_by_descriptor(subscription, 0, 10);
    struct broker_counts before = counts();
    guarded_kill_ipcd(&guarded);
    settles(&before);
    publish_numbers(publisher, 10, 20, 64);
    receive_by_descriptor(subscription, 10, 20);
    other = publisher_new(writing, "bell.b", 1 << 14, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(other, 1, IPC_FOREVER), 1);
    publish_numbers(other, 0, 10, 64);
    receive_by_descriptor(subscription, 0, 10);
    publisher_end(other);
    subscription_end(subscription);
    publisher_end(publisher);
    ipc_connection_close(writing);
    ipc_connection_close(reading);
}

static void test_a_pairing_that_waits_gets_its_slot(void **state)
{
    enum { SHARE = IPC_LANE_SLOTS - 8 }; /* of the only user */
    static ipc_subscription *readers[SHARE];
    ipc_connection *writing = connection_new(), *reading = connection_new(), *late = connection_new();
    ipc_publisher *publisher = publisher_new(writing, "full", 1 << 14, 0);
    ipc_subscription *waiting;

    for (unsigned i = 0; i < SHARE; i++)
        readers[i] = subscription_new(reading, "full", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    while (ipc_publisher_wait_readers(publisher, SHARE, 0) != SHARE)
        EXPECT(ipc_connection_dispatch(reading) == 0);
    waiting = subscription_new(late, "full", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    struct broker_counts before = counts();
    EXPECT_EQ(before.pairings, SHARE + 1);
    guarded_kill_ipcd(&guarded);
    settles(&before);
    EXPECT_EQ(ipc_subscription_wait_writers(waiting, 1, 0), -ETIMEDOUT);
    readers[7] = ipc_subscription_close(readers[7]);
    guarded_kill_ipcd(&guarded); /* while the writer has not confirmed */
    EXPECT_EQ(ipc_subscription_wait_writers(waiting, 1, 0), -ETIMEDOUT);
    while (ipc_subscription_wait_writers(waiting, 1, 0) != 1)
        EXPECT(ipc_publisher_wait_readers(publisher, 0, 0) >= 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, SHARE, IPC_FOREVER), SHARE);
    publish_numbers(publisher, 0, 10, 64);
    receive_numbers(waiting, 0, 10, 64);
    subscription_end(waiting);
    publisher_end(publisher);
    ipc_connection_close(late);
    ipc_connection_close(reading);
    ipc_connection_close(writing);
}

/* ---- processes that died ------------------------------------------------------------------------------------------ */

/* A client whose child keeps the socket. */
static void hold_by_a_child(void *argument)
{
    const int *gates = argument;
    ipc_connection *connection = connection_new();
    publisher_new(connection, "held", 1 << 14, 0);
    if (fork() == 0) {
        gate_wait(gates[1]);
        _exit(0);
    }
    gate_open(gates[0]);
    pause();
}

static void test_the_process_counts_not_the_socket(void **state)
{
    struct broker_counts before = counts();

    for (int down = 0; down < 2; down++) {
        int gates[2] = {gate_new(), gate_new()};
        pid_t client = child_start(hold_by_a_child, gates), ipcd = guarded_pid(&guarded);

        gate_wait(gates[0]);
        if (down)
            kill(guarded.run, SIGSTOP);
        kill(ipcd, SIGKILL);
        if (!down)
            guarded_wait_other(&guarded, ipcd);
        child_kill(client);
        if (down)
            kill(guarded.run, SIGCONT);
        guarded_wait_other(&guarded, ipcd);
        settles(&before);
        gate_open(gates[1]);
        close(gates[0]);
        close(gates[1]);
    }
}

/* ---- a store that lost something ------------------------------------------------------------------------------------ */

struct party {
    ipc_connection *writing, *reading;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
};

static struct party party_new(const char *topic)
{
    struct party party = {connection_new(), connection_new(), NULL, NULL};
    party.publisher = publisher_new(party.writing, topic, 1 << 14, 0);
    party.subscription = subscription_new(party.reading, topic, IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(party.publisher, 1, IPC_FOREVER), 1);
    EXPECT(ipc_subscription_fd(party.subscription) >= 0);
    publish_numbers(party.publisher, 0, 10, 64);
    receive_by_descriptor(party.subscription, 0, 10);
    return party;
}

static void party_end(struct party *party)
{
    ipc_connection_close(party->writing);
    ipc_connection_close(party->reading);
}

static uint64_t session_of(ipc_connection *connection)
{
    struct ipc_peer self;
    EXPECT_EQ(ipc_connection_identity(connection, &self), 0);
    return self.session;
}

static void test_records_without_descriptors(void **state)
{
    struct broker_counts nobody = counts();
    struct party party = party_new("innocent");
    unsigned kept = guarded_kept(&guarded);
    uint64_t at = 10;

    publish_and_leave("lost.retained", 0, 3);
    for (int what = 0; what < 5; what++) {
        struct party victim = party_new("lost");
        char text[128];
        const ipc_connection *over = victim.reading;
        switch (what) {
        case 0:
            snprintf(text, sizeof(text), "drop s%llu\n", (unsigned long long)session_of(victim.reading));
            break;
        case 1:
            snprintf(text, sizeof(text), "drop s%llu\n", (unsigned long long)session_of(victim.writing));
            over = victim.writing;
            break;
        case 2:
            snprintf(text, sizeof(text), "drop l%llu\n", (unsigned long long)victim.publisher->handle.id);
            over = victim.writing;
            break;
        case 3:
            snprintf(text, sizeof(text), "drop c%llu\n",
                     (unsigned long long)victim.subscription->lanes[0]->cells->id);
            break;
        default: /* the bell of the fifth victim; the innocent have the first */
            snprintf(text, sizeof(text), "drop w6\n");
            break;
        }
        plan_write(text);
        guarded_kill_ipcd(&guarded);
        expect_over((ipc_connection *)(uintptr_t)over);
        EXPECT_EQ(ipc_connection_dispatch(over == victim.reading ? victim.writing : victim.reading), 0);
        publish_numbers(party.publisher, at, at + 10, 64);
        receive_by_descriptor(party.subscription, at, at + 10);
        at += 10;
        party_end(&victim);
    }
    plan_write("drop l*\n");
    guarded_kill_ipcd(&guarded);
    expect_over(party.writing);
    EXPECT_EQ(ipc_connection_dispatch(party.reading), 0);
    party_end(&party);
    settles(&nobody);
    while (guarded_kept(&guarded) >= kept)
        sched_yield();
}

static void test_descriptors_without_records(void **state)
{
    struct party party = party_new("extra");
    struct broker_counts before = counts();
    unsigned kept = guarded_kept(&guarded);

    plan_write("extra l9999 c9999 s9999 w9999 e9999 nonsense\n");
    guarded_kill_ipcd(&guarded);
    settles(&before);
    while (guarded_kept(&guarded) != kept)
        sched_yield();
    party_end(&party);
}

static void test_no_registry(void **state)
{
    struct party party = party_new("registry");

    plan_write("drop registry\n");
    guarded_kill_ipcd(&guarded);
    expect_over(party.writing);
    expect_over(party.reading);
    party_end(&party);
    party = party_new("registry");
    guarded_kill_ipcd(&guarded);
    publish_numbers(party.publisher, 10, 20, 64);
    receive_by_descriptor(party.subscription, 10, 20);
    party_end(&party);
}

/* ---- starts that fail ------------------------------------------------------------------------------------------------- */

static void test_four_failed_starts_cost_nothing(void **state)
{
    struct party party = party_new("four");
    struct broker_counts before = counts();

    plan_write("fail\nfail\nfail\nfail\n");
    guarded_kill_ipcd(&guarded);
    settles(&before);
    publish_numbers(party.publisher, 10, 20, 64);
    receive_by_descriptor(party.subscription, 10, 20);
    party_end(&party);
}

static void test_five_failed_starts_cost_the_sessions(void **state)
{
    struct broker_counts nobody = counts();
    unsigned kept = guarded_kept(&guarded);
    struct party party = party_new("five");
    struct ipc_error error;
    ipc_subscription *none;

    plan_write("fail\nfail\nfail\nfail\nfail\n");
    guarded_kill_ipcd(&guarded);
    expect_over(party.writing);
    expect_over(party.reading);
    EXPECT_EQ(ipc_publisher_publish(party.publisher, "x", 1), -EPIPE);
    EXPECT_EQ(ipc_subscription_open(&none, party.reading, "x", NULL, &error), -EPIPE);
    EXPECT_TEXT(error.text, "the session with the broker is over");
    party_end(&party);
    party = party_new("five"); /* the address has not changed hands */
    party_end(&party);
    settles(&nobody);
    while (guarded_kept(&guarded) != kept)
        sched_yield();
}

static void test_ten_failed_starts_are_the_end(void **state)
{
    int status;

    plan_write("fail\nfail\nfail\nfail\nfail\nfail\nfail\nfail\nfail\nfail\n");
    kill(guarded_pid(&guarded), SIGKILL);
    EXPECT_EQ(waitpid(guarded.run, &status, 0), guarded.run);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 124);
    guarded.run = 0;
    EXPECT_EQ(rmdir(guarded.folder), 0); /* nothing is left */
}

int main(void)
{
#define GUARDED(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        GUARDED(test_retained_lanes_stay),
        GUARDED(test_bells_ring),
        GUARDED(test_a_pairing_that_waits_gets_its_slot),
        GUARDED(test_the_process_counts_not_the_socket),
        GUARDED(test_records_without_descriptors),
        GUARDED(test_descriptors_without_records),
        GUARDED(test_no_registry),
        GUARDED(test_four_failed_starts_cost_nothing),
        GUARDED(test_five_failed_starts_cost_the_sessions),
        GUARDED(test_ten_failed_starts_are_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
