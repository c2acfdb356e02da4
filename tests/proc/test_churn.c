/* SPDX-License-Identifier: Apache-2.0
 *
 * 1,000 sessions come and go, most of them by kill -9 in the middle of what they do, while ipcd is killed, too: again and
 * again (IPC_CHURN_ROUNDS=100 in `./dev kill`). Whatever ipcd and ipcd-run have open or mapped is as before.
 */
#include <dirent.h>
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

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

#define PROCESSES   20u
#define CONNECTIONS 50u /* of each */
#define LEAVE       4u  /* of the processes in good order */
#ifdef __SANITIZE_ADDRESS__
# define SLACK_KB  (1u << 20) /* freed memory is kept from use for a while */
# define ANONYMOUS false /* its allocator maps more whenever it likes: those of segments and files count */
#else
# define SLACK_KB  4096u
# define ANONYMOUS true
#endif

static struct guarded guarded;
static char config[64];

/* Everything of a process that could be left behind. */
struct holdings {
    unsigned descriptors, mappings, threads, children;
    unsigned long resident_kb;
};

static unsigned count_entries(pid_t pid, const char *what)
{
    char path[64];
    unsigned n = 0;
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
    DIR *folder = opendir(path);
    EXPECT(folder != NULL);
    while (readdir(folder))
        n++;
    closedir(folder);
    return n;
}

static struct holdings holdings_of(pid_t pid)
{
    struct holdings holdings = {.descriptors = count_entries(pid, "fd"),
                                .threads = count_entries(pid, "task")};
    char path[64], line[512];
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    FILE *file = fopen(path, "re");
    EXPECT(file != NULL);
    while (fgets(line, sizeof(line), file))
        holdings.mappings += ANONYMOUS || strchr(line, '/');
    fclose(file);
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    file = fopen(path, "re");
    EXPECT(file != NULL);
    while (fgets(line, sizeof(line), file))
        sscanf(line, "VmRSS: %lu", &holdings.resident_kb);
    fclose(file);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    file = fopen(path, "re");
    EXPECT(file != NULL);
    for (int child; fscanf(file, "%d", &child) == 1;)
        holdings.children++;
    fclose(file);
    return holdings;
}

struct orders {
    int ready, go;
    unsigned number;
};

static void be_fifty(void *argument)
{
    const struct orders *orders = argument;
    ipc_connection *connections[CONNECTIONS];
    char topic[32];
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        connections[i] = connection_new();
        snprintf(topic, sizeof(topic), "churn.%u", (orders->number + i) % 100);
        if (i % 2)
            publisher_new(connections[i], topic, 4096, 0);
        else
            subscription_new(connections[i], topic, IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
        if (i == CONNECTIONS / 2)
            gate_open(orders->ready); /* who is killed is killed while it goes on */
    }
    gate_open(orders->ready);
    gate_wait(orders->go);
    for (unsigned i = 0; i < CONNECTIONS; i++)
        ipc_connection_close(connections[i]);
}

static void round_of_a_thousand(unsigned number)
{
    struct orders orders[PROCESSES];
    pid_t pids[PROCESSES];

    for (unsigned i = 0; i < PROCESSES; i++) {
        orders[i] = (struct orders){gate_new(), gate_new(), number + i};
        pids[i] = child_start(be_fifty, &orders[i]);
    }
    for (unsigned i = 0; i < PROCESSES; i++) {
        gate_wait(orders[i].ready);
        if (i % 2 == 0 || i < LEAVE)
            gate_wait(orders[i].ready); /* half of them have all of their sessions when they end */
    }
    if (number % 2)
        guarded_kill_ipcd(&guarded);
    for (unsigned i = 0; i < PROCESSES; i++) {
        if (i < LEAVE)
            gate_open(orders[i].go);
        else
            kill(pids[i], SIGKILL);
    }
    for (unsigned i = 0; i < PROCESSES; i++) {
        int status = wait_child(pids[i]);
        EXPECT_EQ(status, i < LEAVE ? 0 : 128 + SIGKILL);
        close(orders[i].ready);
        close(orders[i].go);
    }
}

static void test_thousands_come_and_go(void **state)
{
    const char *told = getenv("IPC_CHURN_ROUNDS");
    unsigned rounds = told ? (unsigned)atoi(told) : 2;
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    struct broker_counts before = broker_count(&as);
    unsigned kept = guarded_kept(&guarded);
    struct holdings run_before = holdings_of(guarded.run), ipcd_before = {0}, ipcd;

    for (unsigned i = 0; i <= rounds; i++) { /* the first one fills heaps and caches */
        watchdog(120, "a thousand sessions");
        round_of_a_thousand(i);
        broker_settles(&as, &before);
        while (guarded_kept(&guarded) != kept)
            sched_yield();
        struct holdings run = holdings_of(guarded.run);
        do /* that of who asked last may still be closing */
            ipcd = holdings_of(guarded_pid(&guarded));
        while (i > 0 && ipcd.descriptors > ipcd_before.descriptors);
        if (i == 0) {
            run_before.resident_kb = run.resident_kb;
            ipcd_before = ipcd;
        }
        EXPECT_EQ(run.descriptors, run_before.descriptors);
        EXPECT_EQ(run.threads, run_before.threads);
        EXPECT_EQ(run.children, 1);
        EXPECT(run.mappings <= run_before.mappings + 4);
        EXPECT(run.resident_kb <= run_before.resident_kb + SLACK_KB);
        EXPECT(ipcd.mappings <= ipcd_before.mappings + 4);
        EXPECT(ipcd.resident_kb <= ipcd_before.resident_kb + SLACK_KB);
        EXPECT_EQ(ipcd.children, 0);
    }
    printf("%u sessions; ipcd %lu KiB, ipcd-run %lu KiB\n", PROCESSES * CONNECTIONS * (rounds + 1),
           ipcd.resident_kb, holdings_of(guarded.run).resident_kb);
}

static int setup(void **state)
{
    const char *arguments[] = {"--log-level", "error", "--config", config, NULL};
    snprintf(config, sizeof(config), "/tmp/ipc-churn.%d.conf", (int)getpid());
    FILE *file = fopen(config, "we");
    EXPECT(file && fputs("[limits]\nconnects-per-second = 1000000\n", file) >= 0 && fclose(file) == 0);
    watchdog(60, "start");
    guarded_start(&guarded, arguments);
    return 0;
}

static int teardown(void **state)
{
    guarded_stop(&guarded);
    unlink(config);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_thousands_come_and_go, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
