/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits of some users only, [quota NAME]: they hold for who is meant, over a reload, over the death of ipcd, and in what
 * `ipcctl quota` says. Several users, so it has to run as root.
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

#define EVERYBODY         "[rule everybody]\nwho = anyone\nallow = publish subscribe\n"
#define ALICE_HAS(topics) EVERYBODY "[quota alice]\nwho = user:1001\ntopics = " #topics "\n"

static struct guarded guarded;
static char config[96];

static void write_config(const char *text)
{
    FILE *file = fopen(config, "we");
    EXPECT(file != NULL);
    EXPECT(fputs(text, file) >= 0);
    EXPECT_EQ(fclose(file), 0);
}

static int start(void **state)
{
    snprintf(config, sizeof(config), "/tmp/ipc-quota.%d", (int)getpid());
    write_config(*state);
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

static void reload(const char *text)
{
    pid_t ipcd = guarded_pid(&guarded);
    write_config(text);
    kill(guarded.run, SIGHUP);
    guarded_wait_other(&guarded, ipcd);
}

static void become(uid_t uid)
{
    EXPECT_EQ(setgroups(0, NULL), 0);
    EXPECT_EQ(setresgid(uid, uid, uid), 0);
    EXPECT_EQ(setresuid(uid, uid, uid), 0);
    EXPECT_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
}

/* What `ipcctl quota --json` says of a user and limit, to that user; `uid` 0 sees all. */
static json_t *quota_of(uid_t asker, uid_t uid, const char *resource)
{
    int fds[2], status;
    json_t *found = NULL, *row;
    size_t i;

    EXPECT_EQ(pipe(fds), 0);
    pid_t child = fork_child();
    EXPECT(child >= 0);
    if (child == 0) {
        if (asker)
            become(asker);
        dup2(fds[1], 1);
        close(fds[0]);
        close(fds[1]);
        execl(getenv("IPCCTL_BIN"), "ipcctl", "quota", "--all", "--json", "--timeout=0", NULL);
        _exit(126);
    }
    close(fds[1]);
    FILE *in = fdopen(fds[0], "r");
    json_t *document = json_loadf(in, 0, NULL);
    fclose(in);
    status = wait_child(child);
    EXPECT_EQ(status, 0);
    EXPECT(document != NULL);
    json_array_foreach(json_object_get(document, "quota"), i, row)
    {
        uid_t of = (uid_t)json_integer_value(json_object_get(row, "uid"));
        EXPECT(asker == 0 || of == asker); /* nobody sees what is others' */
        if (of == uid && strcmp(json_string_value(json_object_get(row, "resource")), resource) == 0)
            found = json_incref(row);
    }
    json_decref(document);
    return found;
}

static void expect_quota(uid_t asker, uid_t uid, const char *resource, unsigned used, unsigned limit,
                         const char *from)
{
    json_t *row = quota_of(asker, uid, resource);
    const char *quota = json_string_value(json_object_get(row, "quota"));

    EXPECT(row != NULL);
    EXPECT_EQ(json_integer_value(json_object_get(row, "used")), used);
    EXPECT_EQ(json_integer_value(json_object_get(row, "limit")), limit);
    EXPECT(from ? quota && strcmp(quota, from) == 0 : !quota);
    json_decref(row);
}

struct gates {
    int ready, go;
};

/* Take all that there is, and say so; then, each time one is told to, find that the next one is refused. */
static void hoard(void *argument)
{
    const struct gates *gates = argument;
    ipc_publisher *publishers[4], *more = NULL;
    struct ipc_error error;
    char topic[16];

    become(ALICE);
    ipc_connection *connection = connection_new();
    for (unsigned i = 0; i < 4; i++) {
        snprintf(topic, sizeof(topic), "alice.%u", i);
        publishers[i] = publisher_new(connection, topic, 4096, 0);
    }
    for (unsigned limit = 4; limit >= 2; limit -= 2) {
        char text[128];
        EXPECT_EQ(ipc_publisher_open(&more, connection, "more", NULL, &error), -EDQUOT);
        snprintf(text, sizeof(text), "user 1001 has 4 of %u advertised topics", limit);
        EXPECT_TEXT(error.text, text);
        EXPECT_TEXT(error.text, "raise topics in [quota alice] of ipcd.conf");
        gate_open(gates->ready);
        gate_wait(gates->go);
    }
    for (unsigned i = 0; i < 4; i++)
        publisher_end(publishers[i]);
    ipc_connection_close(connection);
}

static void not_alice(void *argument)
{
    become(BOB);
    ipc_connection *connection = connection_new();
    ipc_publisher *publishers[5];
    for (unsigned i = 0; i < 5; i++) {
        char topic[16];
        snprintf(topic, sizeof(topic), "bob.%u", i);
        publishers[i] = publisher_new(connection, topic, 4096, 0);
    }
    for (unsigned i = 0; i < 5; i++)
        publisher_end(publishers[i]);
    ipc_connection_close(connection);
}

static void test_a_lower_limit_takes_nothing_back(void **state)
{
    struct gates gates = {gate_new(), gate_new()};
    pid_t child = child_start(hoard, &gates);

    gate_wait(gates.ready);
    child_done(child_start(not_alice, NULL));
    expect_quota(0, ALICE, "topics", 4, 4, "alice");
    expect_quota(ALICE, ALICE, "topics", 4, 4, "alice");
    expect_quota(ALICE, ALICE, "sessions", 2, 2048, NULL); /* the one that asks is another */
    EXPECT(quota_of(BOB, ALICE, "topics") == NULL);

    reload(ALICE_HAS(2));
    write_config(ALICE_HAS(100)); /* which nobody has asked for yet */
    guarded_kill_ipcd(&guarded);
    gate_open(gates.go);
    gate_wait(gates.ready);
    expect_quota(0, ALICE, "topics", 4, 2, "alice");
    gate_open(gates.go);
    child_done(child);
    close(gates.ready);
    close(gates.go);
}

int main(void)
{
    static char first[] = ALICE_HAS(4);
    const struct CMUnitTest tests[] = {
        {"test_a_lower_limit_takes_nothing_back", test_a_lower_limit_takes_nothing_back, start, stop, first},
    };

    if (getuid() != 0) {
        puts("skipped: only root can be several users");
        return 77;
    }
    expect_here();
    watchdog(60, "quota");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
