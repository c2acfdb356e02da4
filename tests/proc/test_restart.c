/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed, again and again, under those that use it: nothing that they have is lost, nothing stalls, and
 * what a client does meanwhile is answered by the next one.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "libipc/lane/wait.h"
#include "tests/support/broker.h"
#include "tests/support/guarded.h"

static struct guarded guarded;
static const char *const quiet[] = {"--log-level", "error", NULL};

static int setup(void **state)
{
    watchdog(60, "restart");
    guarded_start(&guarded, quiet);
    return 0;
}

static int teardown(void **state)
{
    guarded_stop(&guarded);
    return 0;
}

static struct broker_counts counts(void)
{
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    return broker_count(&as);
}

static void settles(const struct broker_counts *then)
{
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    broker_settles(&as, then);
}

struct pair {
    ipc_connection *writing, *reading;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    uint64_t at;
};

static struct pair pair_new(const char *topic, enum ipc_slow slow)
{
    struct pair pair = {connection_new(), connection_new(), NULL, NULL, 0};
    pair.publisher = publisher_new(pair.writing, topic, 1 << 16, 0);
    pair.subscription = subscription_new(pair.reading, topic, IPC_START_NEXT, slow, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(pair.publisher, 1, IPC_FOREVER), 1);
    return pair;
}

static void pair_exchange(struct pair *pair, uint64_t count)
{
    for (uint64_t i = 0; i < count; i += 50, pair->at += 50) {
        publish_numbers(pair->publisher, pair->at, pair->at + 50, 64);
        receive_numbers(pair->subscription, pair->at, pair->at + 50, 64);
    }
}

/* Take in that everybody else has left. */
static void pair_alone(struct pair *pair)
{
    struct ipc_publisher_stats writing;
    struct ipc_subscription_stats reading;
    do
        EXPECT_EQ(ipc_publisher_stats(pair->publisher, &writing), 0);
    while (writing.readers > 1);
    do {
        char byte;
        EXPECT(ipc_subscription_receive(pair->subscription, &byte, 1, NULL, 0) < 0);
        EXPECT_EQ(ipc_subscription_stats(pair->subscription, &reading), 0);
    } while (reading.writers > 1);
}

static void pair_end(struct pair *pair)
{
    publisher_end(pair->publisher);
    subscription_end(pair->subscription);
    ipc_connection_close(pair->writing);
    ipc_connection_close(pair->reading);
}

static void test_all_is_there_again(void **state)
{
    struct pair block = pair_new("a.block", IPC_SLOW_BLOCK), drop = pair_new("a.drop", IPC_SLOW_DROP_OLDEST);
    struct broker_counts before = counts();

    for (unsigned i = 0; i < 5; i++) {
        guarded_kill_ipcd(&guarded);
        settles(&before);
        pair_exchange(&block, 1000);
        pair_exchange(&drop, 1000);
        EXPECT_EQ(guarded_status(&guarded).starts, i + 2);
    }
    EXPECT(strcmp(guarded_status(&guarded).guardian, "ipcd-run") == 0);
    pair_end(&block);
    pair_end(&drop);
}

static void wait_for_guardian(const char *guardian)
{
    while (strcmp(guarded_status(&guarded).guardian, guardian) != 0)
        sched_yield();
}

/* ipcd-run has no descriptor left for what is new: ipcd hears of it, says so, and has it kept as soon as it can be. */
static void test_what_could_not_be_kept_is_kept_later(void **state)
{
    struct rlimit before, few;
    EXPECT_EQ(prlimit(guarded.run, RLIMIT_NOFILE, NULL, &before), 0);
    few = before;
    few.rlim_cur = guarded_kept(&guarded);
    EXPECT_EQ(prlimit(guarded.run, RLIMIT_NOFILE, &few, NULL), 0);
    struct pair pair = pair_new("refused", IPC_SLOW_BLOCK);
    wait_for_guardian("");
    pair_exchange(&pair, 1000);
    EXPECT_EQ(prlimit(guarded.run, RLIMIT_NOFILE, &before, NULL), 0);
    wait_for_guardian("ipcd-run");
    guarded_kill_ipcd(&guarded);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

static unsigned boards_mapped(void)
{
    char path[64], line[512];
    unsigned n = 0;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)guarded_pid(&guarded));
    FILE *file = fopen(path, "re");
    EXPECT(file != NULL);
    while (fgets(line, sizeof(line), file))
        n += strstr(line, "ipc-board") != NULL;
    fclose(file);
    return n;
}

static void test_who_is_owed_nothing_costs_nothing(void **state)
{
    ipc_connection *connections[8];

    for (size_t i = 0; i < 8; i++)
        connections[i] = connection_new();
    EXPECT_EQ(boards_mapped(), 8);
    guarded_kill_ipcd(&guarded);
    EXPECT_EQ(guarded_status(&guarded).starts, 2);
    publisher_end(publisher_new(connections[7], "asks", 1 << 16, 0));
    EXPECT_EQ(boards_mapped(), 0);
    for (size_t i = 0; i < 8; i++)
        ipc_connection_close(connections[i]);
}

/* With nobody there to start another one, so that there is no ipcd at all for as long as it takes. */
static void test_direct_traffic_does_not_pause(void **state)
{
    struct pair pair = pair_new("down", IPC_SLOW_BLOCK);
    pid_t ipcd = guarded_pid(&guarded);

    kill(guarded.run, SIGSTOP);
    kill(ipcd, SIGKILL);
    pair_exchange(&pair, 100000);
    kill(guarded.run, SIGCONT);
    guarded_wait_other(&guarded, ipcd);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

static void test_new_clients_join_old_topics(void **state)
{
    struct pair pair = pair_new("old.topic", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();
    ipc_connection *connection;
    ipc_subscription *exact, *wild;
    ipc_publisher *publisher;

    guarded_kill_ipcd(&guarded);
    connection = connection_new();
    exact = subscription_new(connection, "old.topic", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    wild = subscription_new(connection, "old.>", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(pair.publisher, 3, IPC_FOREVER), 3);
    publish_numbers(pair.publisher, 0, 50, 64);
    receive_numbers(pair.subscription, 0, 50, 64);
    receive_numbers(exact, 0, 50, 64);
    receive_numbers(wild, 0, 50, 64);
    publisher = publisher_new(connection, "old.topic", 1 << 16, 0);
    EXPECT(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER) >= 1);
    publish_numbers(publisher, 0, 50, 64);
    receive_numbers(pair.subscription, 0, 50, 64);
    publisher_end(publisher);
    subscription_end(exact);
    subscription_end(wild);
    ipc_connection_close(connection);
    pair_alone(&pair);
    settles(&before);
    pair_end(&pair);
}

static void request_while_down(void *argument)
{
    const int *gates = argument;
    ipc_connection *connection = connection_new();
    gate_open(gates[0]);
    gate_wait(gates[1]);
    ipc_publisher *publisher = publisher_new(connection, "in.flight", 1 << 16, 0);
    ipc_subscription *subscription =
        subscription_new(connection, "in.*", IPC_START_NEXT, IPC_SLOW_BLOCK, IPC_SUBSCRIPTION_SELF);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, 50, 64);
    receive_numbers(subscription, 0, 50, 64);
    publisher_end(publisher);
    subscription_end(subscription);
    ipc_connection_close(connection);
}

static void test_requests_in_flight_are_answered(void **state)
{
    struct broker_counts before = counts();

    for (unsigned i = 0; i < 10; i++) {
        int gates[2] = {gate_new(), gate_new()};
        pid_t child = child_start(request_while_down, gates), ipcd = guarded_pid(&guarded);

        gate_wait(gates[0]);
        kill(ipcd, SIGSTOP);
        gate_open(gates[1]);
        for (unsigned turn = 0; turn < 100 * i; turn++)
            sched_yield();
        kill(ipcd, SIGKILL);
        guarded_wait_other(&guarded, ipcd);
        child_done(child);
        settles(&before);
        close(gates[0]);
        close(gates[1]);
    }
}

static void subscribe_and_wait(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_subscription *subscription = subscription_new(connection, "dead", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    (void)argument;
    EXPECT(ipc_subscription_receive(subscription, &(char){0}, 1, NULL, IPC_FOREVER) == -EPIPE);
}

static void test_who_died_meanwhile_is_found(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "dead", 1 << 16, 0);
    struct broker_counts before = counts();
    struct ipc_publisher_stats stats;
    pid_t child = child_start(subscribe_and_wait, NULL), ipcd = guarded_pid(&guarded);

    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    kill(guarded.run, SIGSTOP);
    kill(ipcd, SIGKILL);
    child_kill(child);
    kill(guarded.run, SIGCONT);
    guarded_wait_other(&guarded, ipcd);
    do
        EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    while (stats.readers > 0);
    event_wait(connection, IPC_EVENT_READER_LEFT);
    settles(&before);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* Readers are dead, and their writer has not looked: the next ipcd has their cells, and goes on. */
static void test_readers_that_nobody_missed(void **state)
{
    enum { READERS = 3 };
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "dead", 1 << 16, 0);
    struct broker_counts before = counts();
    struct ipc_publisher_stats stats;
    pid_t children[READERS];

    for (unsigned i = 0; i < READERS; i++)
        children[i] = child_start(subscribe_and_wait, NULL);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, READERS, IPC_FOREVER), READERS);
    for (unsigned i = 0; i < READERS; i++)
        child_kill(children[i]);
    while (counts().sessions > before.sessions)
        sched_yield();
    for (unsigned i = 0; i < 2; i++)
        guarded_kill_ipcd(&guarded);
    do
        EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    while (stats.readers > 0);
    settles(&before);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void come_and_go(void *argument)
{
    char topic[32];
    snprintf(topic, sizeof(topic), "churn.%d", (int)getpid());
    for (unsigned i = 0; i < 40; i++) {
        struct pair pair = pair_new(topic, IPC_SLOW_BLOCK);
        pair_end(&pair);
    }
    (void)argument;
}

static void test_many_kills_under_load(void **state)
{
    struct pair pair = pair_new("load", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();
    unsigned kept_before = guarded_kept(&guarded);
    pid_t children[2];

    for (unsigned i = 0; i < 2; i++)
        children[i] = child_start(come_and_go, NULL);
    for (unsigned i = 0; i < 50; i++) {
        guarded_kill_ipcd(&guarded);
        pair_exchange(&pair, 500);
    }
    for (unsigned i = 0; i < 2; i++)
        child_done(children[i]);
    settles(&before);
    while (guarded_kept(&guarded) != kept_before)
        sched_yield();
    pair_end(&pair);
}

static void test_hung(void **state)
{
    static const char *const impatient[] = {"--watchdog", "2", "--log-level", "error", NULL};
    struct pair pair;
    pid_t ipcd;

    guarded_stop(&guarded);
    guarded_start(&guarded, impatient);
    pair = pair_new("hung", IPC_SLOW_BLOCK);
    ipcd = guarded_pid(&guarded);
    kill(ipcd, SIGSTOP);
    guarded_wait_other(&guarded, ipcd);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

static void test_upgrade(void **state)
{
    struct pair pair = pair_new("upgrade", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();
    pid_t ipcd = guarded_pid(&guarded);

    kill(guarded.run, SIGHUP);
    guarded_wait_other(&guarded, ipcd);
    settles(&before);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

static void test_the_guardian_is_killed(void **state)
{
    struct pair pair = pair_new("guardian", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();
    pid_t ipcd = guarded_pid(&guarded);

    kill(guarded.run, SIGKILL);
    EXPECT_EQ(waitpid(guarded.run, NULL, 0), guarded.run);
    assert_int_equal(guarded_pid(&guarded), ipcd);
    pair_exchange(&pair, 1000);
    while (strcmp(guarded_status(&guarded).guardian, "") != 0) /* until ipcd has noticed */
        sched_yield();
    guarded_run(&guarded, quiet);
    guarded_wait_other(&guarded, ipcd);
    EXPECT(strcmp(guarded_status(&guarded).guardian, "ipcd-run") == 0);
    guarded_kill_ipcd(&guarded);
    settles(&before);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

/* The next one comes at once: whether ipcd has noticed or not, there is one ipcd, and the sessions are its. */
static void test_one_guardian_after_the_other(void **state)
{
    static const int ends[] = {SIGUSR1, SIGKILL};
    struct pair pair = pair_new("after", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();

    for (unsigned i = 0; i < 10; i++) {
        pid_t ipcd = guarded_pid(&guarded);
        int status;

        kill(guarded.run, ends[i % 2]);
        EXPECT_EQ(waitpid(guarded.run, &status, 0), guarded.run);
        EXPECT(i % 2 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
        guarded_run(&guarded, quiet);
        pair_exchange(&pair, 100);
        guarded_wait_other(&guarded, ipcd);
    }
    settles(&before);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

static void expect_lost(ipc_connection *connection)
{
    struct ipc_event event = {0};
    ipc_publisher *publisher;

    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "another", NULL, NULL), -EPIPE);
    while (event.kind != IPC_EVENT_ENDED)
        EXPECT_EQ(ipc_connection_next_event(connection, &event), 1);
    EXPECT_EQ(event.reason, IPC_REASON_SHUTDOWN);
}

/* Nobody has kept anything: sessions end, and their clients are told when they ask. What was published is in the readers' memory, and the next
 * broker begins with nothing. */
static void test_both_are_killed_at_once(void **state)
{
    struct broker_counts none = counts();
    struct pair pair = pair_new("both", IPC_SLOW_BLOCK);
    pid_t ipcd = guarded_pid(&guarded);

    pair_exchange(&pair, 50);
    publish_numbers(pair.publisher, 50, 100, 64);
    guarded_lose(&guarded);
    receive_numbers(pair.subscription, 50, 100, 64);
    expect_lost(pair.writing);
    expect_lost(pair.reading);
    EXPECT_EQ(ipc_publisher_publish(pair.publisher, "x", 1), -EPIPE);
    ipc_connection_close(pair.writing);
    ipc_connection_close(pair.reading);
    guarded_run(&guarded, quiet);
    guarded_wait_other(&guarded, ipcd);
    settles(&none);
    pair = pair_new("both", IPC_SLOW_BLOCK);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
}

/* A wrong setting is refused before anything is replaced; and if ipcd dies before it is mended, sessions go on all the same. */
static void test_a_wrong_configuration(void **state)
{
    struct pair pair = pair_new("wrong", IPC_SLOW_BLOCK);
    struct broker_counts before = counts();
    char path[96], text[4096];
    int errors[2], saved;
    size_t size = 0;
    pid_t ipcd;
    FILE *file;

    snprintf(path, sizeof(path), "%s/ipcd.conf", guarded.folder);
    file = fopen(path, "we");
    EXPECT(file && fputs("[limits]\nsessions = many\n", file) > 0 && fclose(file) == 0);
    ipcd = guarded_pid(&guarded);
    kill(guarded.run, SIGKILL);
    EXPECT_EQ(waitpid(guarded.run, NULL, 0), guarded.run);
    EXPECT(pipe2(errors, O_CLOEXEC) == 0);
    saved = dup(STDERR_FILENO);
    EXPECT(dup2(errors[1], STDERR_FILENO) == STDERR_FILENO);
    close(errors[1]);
    guarded_run(&guarded, (const char *const[]){"--config", path, "--log-level", "error", NULL});
    EXPECT(dup2(saved, STDERR_FILENO) == STDERR_FILENO);
    close(saved);
    do {
        ssize_t more = read(errors[0], text + size, sizeof(text) - 1 - size);
        EXPECT(more > 0);
        size += (size_t)more;
        text[size] = '\0';
    } while (!strstr(text, "the running ipcd stays"));
    EXPECT(strstr(text, "ipcd.conf:2") != NULL);
    assert_int_equal(guarded_pid(&guarded), ipcd);
    pair_exchange(&pair, 1000);
    guarded_kill_ipcd(&guarded);
    settles(&before);
    pair_exchange(&pair, 1000);
    pair_end(&pair);
    EXPECT_EQ(unlink(path), 0);
    close(errors[0]);
}

static int by_size(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

static void test_a_thousand_sessions(void **state)
{
    enum { N = 1000, KILLS = 20 };
    static ipc_connection *connections[N];
    struct pair pair = pair_new("thousand", IPC_SLOW_BLOCK);
    struct broker_counts before;
    uint64_t took[KILLS];

    for (unsigned i = 0; i < N; i++)
        connections[i] = connection_new();
    before = counts();
    for (unsigned i = 0; i < KILLS; i++) {
        pid_t ipcd = guarded_pid(&guarded);
        uint64_t start = lane_now();
        kill(ipcd, SIGKILL);
        guarded_wait_other(&guarded, ipcd);
        took[i] = lane_now() - start;
        pair_exchange(&pair, 100);
    }
    qsort(took, KILLS, sizeof(*took), by_size);
    printf("1,000 sessions: from the kill to the answer of the next ipcd p50 %.1f ms, worst of %d %.1f ms\n",
           (double)took[KILLS / 2] * 1e-6, KILLS, (double)took[KILLS - 1] * 1e-6);
    settles(&before);
    for (unsigned i = 0; i < N; i++)
        ipc_connection_close(connections[i]);
    pair_end(&pair);
}

int main(void)
{
#define GUARDED(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        GUARDED(test_all_is_there_again),
        GUARDED(test_what_could_not_be_kept_is_kept_later),
        GUARDED(test_who_is_owed_nothing_costs_nothing),
        GUARDED(test_direct_traffic_does_not_pause),
        GUARDED(test_new_clients_join_old_topics),
        GUARDED(test_requests_in_flight_are_answered),
        GUARDED(test_who_died_meanwhile_is_found),
        GUARDED(test_readers_that_nobody_missed),
        GUARDED(test_many_kills_under_load),
        GUARDED(test_hung),
        GUARDED(test_upgrade),
        GUARDED(test_the_guardian_is_killed),
        GUARDED(test_one_guardian_after_the_other),
        GUARDED(test_both_are_killed_at_once),
        GUARDED(test_a_wrong_configuration),
        GUARDED(test_a_thousand_sessions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
