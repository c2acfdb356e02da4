/* SPDX-License-Identifier: Apache-2.0
 *
 * `ipcctl events`: what the broker tells of its clients, to whom, and over its own death. Several users, so it has to run as
 * root.
 */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

enum { ALICE = 1001, BOB = 1002 };

static const char rules[] = "[rule everybody]\nwho = anyone\nallow = subscribe\n"
                            "[rule alice]\nwho = user:1001\nallow = publish\nnames = a.*\n"
                            "[quota alice]\nwho = user:1001\ntopics = 1\n";
static struct guarded guarded;
static char config[96];

static int start(void **state)
{
    snprintf(config, sizeof(config), "/tmp/ipc-events.%d", (int)getpid());
    FILE *file = fopen(config, "we");
    EXPECT(file != NULL);
    EXPECT(fputs(rules, file) >= 0);
    EXPECT_EQ(fclose(file), 0);
    guarded_start(&guarded, (const char *const[]){"--config", config, "--log-level", "error", NULL});
    EXPECT_EQ(chmod(guarded.folder, 0711), 0);
    return 0;
}

static int stop(void **state)
{
    guarded_stop(&guarded);
    EXPECT_EQ(unlink(config), 0);
    return 0;
}

static void become(uid_t uid)
{
    EXPECT_EQ(setgroups(0, NULL), 0);
    EXPECT_EQ(setresgid(uid, uid, uid), 0);
    EXPECT_EQ(setresuid(uid, uid, uid), 0);
    EXPECT_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
}

/* A running `ipcctl events --json`, whose lines are read from `out`. */
struct tool {
    pid_t pid;
    FILE *out;
};

static struct tool tool_start(uid_t uid, const char *option)
{
    struct tool tool;
    int fds[2];

    EXPECT_EQ(pipe(fds), 0);
    tool.pid = fork_child();
    EXPECT(tool.pid >= 0);
    if (tool.pid == 0) {
        if (uid)
            become(uid);
        dup2(fds[1], 1);
        close(fds[0]);
        close(fds[1]);
        execl(getenv("IPCCTL_BIN"), "ipcctl", "events", "--json", "--timeout=0", option, NULL);
        _exit(126);
    }
    close(fds[1]);
    tool.out = fdopen(fds[0], "r");
    EXPECT(tool.out != NULL);
    return tool;
}

static json_t *tool_next(struct tool *tool)
{
    return json_loadf(tool->out, JSON_DISABLE_EOF_CHECK, NULL);
}

static void tool_stop(struct tool *tool, int status)
{
    EXPECT_EQ(wait_child(tool->pid), status);
    fclose(tool->out);
}

static bool is(const json_t *event, const char *kind, uid_t uid, const char *text)
{
    return strcmp(json_string_value(json_object_get(event, "event")), kind) == 0 &&
           (uid_t)json_integer_value(json_object_get(event, "uid")) == uid &&
           strstr(json_string_value(json_object_get(event, "text")), text) != NULL;
}

/* The next event of that kind, user and text, waited for. Returns its number. */
static uint64_t wait_for(struct tool *tool, const char *kind, uid_t uid, const char *text)
{
    for (;;) {
        json_t *event = tool_next(tool);
        EXPECT(event != NULL);
        bool found = is(event, kind, uid, text);
        uint64_t sequence = (uint64_t)json_integer_value(json_object_get(event, "sequence"));
        json_decref(event);
        if (found)
            return sequence;
    }
}

/* How many of them are in the history that a user sees. */
static unsigned count(uid_t asker, const char *kind, uid_t uid, const char *text)
{
    struct tool tool = tool_start(asker, NULL);
    unsigned n = 0;
    json_t *event;

    while ((event = tool_next(&tool))) {
        EXPECT(asker == 0 || (uid_t)json_integer_value(json_object_get(event, "uid")) == asker);
        n += is(event, kind, uid, text);
        json_decref(event);
    }
    tool_stop(&tool, 0);
    return n;
}

static void visit(void *argument)
{
    ipc_publisher *publisher = NULL, *second = NULL;
    struct ipc_error error;

    become(ALICE);
    ipc_connection *connection = connection_new();
    publisher = publisher_new(connection, "a.b", 4096, 0);
    EXPECT_EQ(ipc_publisher_open(&second, connection, "a.c", NULL, &error), -EDQUOT);
    EXPECT_EQ(ipc_publisher_open(&second, connection, "b.c", NULL, &error), -EACCES);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

static void stay(void *argument)
{
    become(BOB);
    ipc_connection *connection = connection_new();
    gate_open(*(int *)argument);
    for (;;)
        pause();
    ipc_connection_close(connection);
}

static void test_what_happens_is_told(void **state)
{
    struct tool tool = tool_start(0, "--follow");
    int gate = gate_new();

    wait_for(&tool, "started", 0, "start 1");
    child_done(child_start(visit, NULL));
    uint64_t came = wait_for(&tool, "came", ALICE, "");
    EXPECT(came < wait_for(&tool, "limit", ALICE, "raise topics in [quota alice] of ipcd.conf"));
    wait_for(&tool, "denied", ALICE, "may not publish to topic b.c: no rule of the policy allows it");
    wait_for(&tool, "went", ALICE, "");
    pid_t child = child_start(stay, &gate);
    gate_wait(gate);
    child_kill(child);
    uint64_t died = wait_for(&tool, "died", BOB, "");

    EXPECT_EQ(count(0, "denied", ALICE, ""), 1);
    EXPECT_EQ(count(ALICE, "denied", ALICE, ""), 1);
    EXPECT_EQ(count(BOB, "denied", ALICE, ""), 0);
    EXPECT_EQ(count(BOB, "died", BOB, ""), 1);

    /* The one that follows does so through the death of ipcd; numbers go on. */
    guarded_kill_ipcd(&guarded);
    EXPECT(wait_for(&tool, "started", 0, "start 2") > died);
    EXPECT_EQ(count(0, "denied", ALICE, ""), 0);
    kill(tool.pid, SIGINT);
    tool_stop(&tool, 130);
    close(gate);
}

/* Denied more often than anybody wants to read. */
static void flood(void *argument)
{
    ipc_publisher *publisher = NULL;

    become(BOB);
    ipc_connection *connection = connection_new();
    for (unsigned i = 0; i < 1000; i++)
        EXPECT_EQ(ipc_publisher_open(&publisher, connection, "b", NULL, NULL), -EACCES);
    ipc_connection_close(connection);
}

/* Some of it is kept, all of it is counted, and what others did is still there. */
static void test_a_flood(void **state)
{
    struct tool tool;
    uint64_t told = 0, before = 0;
    unsigned alices = 0;
    json_t *event;

    child_done(child_start(visit, NULL));
    child_done(child_start(flood, NULL));
    do { /* until its bucket lets the rest be told */
        tool = tool_start(0, NULL);
        for (told = alices = 0, before = 0; (event = tool_next(&tool)); json_decref(event)) {
            uint64_t sequence = (uint64_t)json_integer_value(json_object_get(event, "sequence"));
            EXPECT(sequence > before);
            before = sequence;
            if (json_integer_value(json_object_get(event, "uid")) == BOB)
                told += (uint64_t)json_integer_value(json_object_get(event, "more")) +
                        !is(event, "more", BOB, "");
            alices += is(event, "denied", ALICE, "");
        }
        tool_stop(&tool, 0);
    } while (told < 1002);
    EXPECT_EQ(told, 1002); /* it came and went as well */
    EXPECT_EQ(alices, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_happens_is_told, start, stop),
        cmocka_unit_test_setup_teardown(test_a_flood, start, stop),
    };

    if (getuid() != 0) {
        puts("skipped: only root can be several users");
        return 77;
    }
    expect_here();
    watchdog(60, "events");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
