/* SPDX-License-Identifier: Apache-2.0
 *
 * The policy: who may do what, for clients of several users (so it has to run as root), and what becomes of those who
 * have something when a new policy takes it back.
 */
#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/guarded.h"
#include "tests/support/hostile.h"

enum { ALICE = 1001, BOB = 1002, CAROL = 1003, STRANGER = 1004, STAFF = 2000 };

static struct guarded guarded;
static char config[96];

static void write_policy(const char *rules)
{
    FILE *file = fopen(config, "we");
    EXPECT(file != NULL);
    EXPECT(fputs(rules, file) >= 0);
    EXPECT_EQ(fclose(file), 0);
}

static void start(const char *rules)
{
    snprintf(config, sizeof(config), "/tmp/ipc-policy.%d", (int)getpid());
    write_policy(rules);
    guarded_start(&guarded,
                  (const char *const[]){"--config", config, "--log-level",
                                        getenv("IPC_TEST_LOG") ? getenv("IPC_TEST_LOG") : "error", NULL});
    EXPECT_EQ(chmod(guarded.folder, 0711), 0);
}

static int stop(void **state)
{
    guarded_stop(&guarded);
    EXPECT_EQ(unlink(config), 0);
    return 0;
}

/* As ipcd-run is told by an operator, or by `systemctl reload`. */
static void reload(const char *rules)
{
    pid_t ipcd = guarded_pid(&guarded);
    write_policy(rules);
    kill(guarded.run, SIGHUP);
    guarded_wait_other(&guarded, ipcd);
}

static void become(uid_t uid, gid_t group)
{
    EXPECT_EQ(setgroups(group != 0, &group), 0);
    EXPECT_EQ(setresgid(uid, uid, uid), 0);
    EXPECT_EQ(setresuid(uid, uid, uid), 0);
    EXPECT_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0); /* which that took back */
}

static const char rules[] = "[rule not bob]\n"
                            "who = user:1002\n"
                            "deny = publish send\n"
                            "names = plant.>\n"
                            "[rule staff]\n"
                            "who = group:2000\n"
                            "allow = publish, subscribe, send, receive, call, serve, create, attach\n"
                            "names = plant.> tools.*\n"
                            "[rule carol]\n"
                            "who = user:1003\n"
                            "allow = subscribe call\n"
                            "names = plant.public.*\n";

static void alice(void *argument)
{
    become(ALICE, STAFF);
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "plant.secret.a", 4096, 0), *none = NULL;
    ipc_publisher *public = publisher_new(connection, "plant.public.a", 4096, IPC_PUBLISHER_RETAIN);
    ipc_server *server = NULL;
    ipc_producer *producer = NULL;
    struct ipc_error error;

    EXPECT_EQ(ipc_publisher_open(&none, connection, "elsewhere", NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "uid 1001 may not publish to topic elsewhere: no rule of the policy allows it");
    EXPECT_EQ(ipc_publisher_open(&none, connection, "tools.a.b", NULL, &error), -EACCES);
    EXPECT_EQ(ipc_queue_create(connection, "plant.queue", NULL, 0, &error), 0);
    EXPECT_EQ(ipc_queue_create(connection, "other.queue", NULL, 0, &error), -EACCES);
    EXPECT_TEXT(error.text, "may not create queue or shared segment other.queue");
    EXPECT_EQ(ipc_producer_open(&producer, connection, "plant.queue", NULL, &error), 0);
    EXPECT_EQ(ipc_server_open(&server, connection, "plant.public.service", NULL, &error), 0);
    publish_numbers(publisher, 0, 1, 8);
    publish_numbers(public, 0, 1, 8);
    gate_open(((int *)argument)[0]);
    gate_wait(((int *)argument)[1]);
    ipc_server_close(server);
    ipc_producer_close(producer);
    publisher_end(public);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* In the group, but denied by a rule that comes first. */
static void bob(void *argument)
{
    become(BOB, STAFF);
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = NULL;
    ipc_producer *producer = NULL;
    ipc_consumer *consumer = NULL;
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_error error;

    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "plant.b", NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "rule 'not bob'");
    EXPECT_TEXT(error.text, ":1) denies it");
    EXPECT_EQ(ipc_producer_open(&producer, connection, "plant.queue", NULL, &error), -EACCES);
    EXPECT_EQ(ipc_consumer_open(&consumer, connection, "plant.queue", NULL, &error), 0);
    /* It is alice's, and nobody is an administrator here. */
    EXPECT_EQ(ipc_queue_set(connection, "plant.queue", &settings, &error), -EACCES);
    EXPECT_TEXT(error.text, "may not change or look into queue plant.queue of uid 1001");
    /* Nor by way of a queue of his own. */
    settings.dead_letter = "plant.queue";
    settings.given = IPC_QUEUE_DEAD_LETTER;
    EXPECT_EQ(ipc_queue_create(connection, "plant.letters", &settings, 0, &error), -EACCES);
    EXPECT_TEXT(error.text, "may not send to queue plant.queue");
    ipc_consumer_close(consumer);
    publisher = publisher_new(connection, "tools.b", 4096, 0);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* What a tool prints, to this user. */
static void run_tool(char *text, size_t size, const char *arguments)
{
    char command[512];
    snprintf(command, sizeof(command), "%s %s 2>&1", getenv("IPCCTL_BIN"), arguments);
    FILE *out = popen(command, "re");
    EXPECT(out != NULL);
    text[fread(text, 1, size - 1, out)] = '\0';
    pclose(out);
}

/* A tool has the rights of its user: who administers nothing sees what is his, and what he may use. */
static void look_around(void)
{
    char text[8192];

    run_tool(text, sizeof(text), "ls --timeout=0");
    EXPECT_TEXT(text, "plant.public.a");
    EXPECT(!strstr(text, "plant.secret") && !strstr(text, "plant.queue"));
    run_tool(text, sizeof(text), "clients --json --timeout=0");
    EXPECT_TEXT(text, "\"uid\": 1003");
    EXPECT(!strstr(text, "\"uid\": 1001"));
    run_tool(text, sizeof(text), "policy test 1003 publish plant.secret.a --timeout=0");
    EXPECT_TEXT(text, "denied: no rule");
    run_tool(text, sizeof(text), "policy test 1001 publish plant.secret.a --timeout=0");
    EXPECT_TEXT(text, "uid 1003 may ask about itself only");
    run_tool(text, sizeof(text), "queue purge plant.queue --timeout=0");
    EXPECT_TEXT(text, "may not change or look into queue plant.queue of uid 1001");
}

/* May subscribe to all, and gets what she may have. */
static void carol(void *argument)
{
    become(CAROL, 0);
    ipc_connection *connection = connection_new();
    ipc_subscription *all = subscription_new(connection, ">", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
    ipc_subscription *none = NULL;
    ipc_client *client = NULL;
    ipc_server *server = NULL;
    struct ipc_error error;

    receive_numbers(all, 0, 1, 8);
    EXPECT_EQ(ipc_subscription_wait_writers(all, 0, 0), 1); /* that one alone */
    EXPECT_EQ(ipc_subscription_open(&none, connection, "plant.secret.a", NULL, &error), -EACCES);
    EXPECT_EQ(ipc_subscription_open(&none, connection, "tools.>", NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "may not subscribe to any topic that tools.> stands for");
    EXPECT_EQ(ipc_client_open(&client, connection, "plant.public.service", NULL, &error), 0);
    EXPECT_EQ(ipc_server_open(&server, connection, "plant.public.service", NULL, &error), -EACCES);
    ipc_client_close(client);
    EXPECT_EQ(ipc_client_open(&client, connection, "plant.secret.service", NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "may not call service plant.secret.service");
    look_around();
    subscription_end(all);
    ipc_connection_close(connection);
}

static void stranger(void *argument)
{
    ipc_connection *connection = NULL;
    struct ipc_error error;

    become(STRANGER, 0);
    EXPECT_EQ(ipc_connection_open(&connection, NULL, NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "uid 1004 may do nothing here");
}

static void test_rules(void **state)
{
    int gates[2] = {gate_new(), gate_new()};
    pid_t first;

    start(rules);
    first = child_start(alice, gates);
    gate_wait(gates[0]);
    child_done(child_start(bob, NULL));
    child_done(child_start(carol, NULL));
    child_done(child_start(stranger, NULL));
    gate_open(gates[1]);
    child_done(first);
    close(gates[0]);
    close(gates[1]);
}

/* ---- another policy -------------------------------------------------------------------------------------- */

#define EVERYBODY "[rule everybody]\nwho = anyone\nallow = all\n"

struct stage {
    int ready, go, done;
};

/* Nothing more comes, and the lane is taken away because of the policy. */
static void expect_denied(ipc_connection *connection, ipc_subscription *sub)
{
    struct ipc_event event = {0};
    char byte;

    while (event.kind != IPC_EVENT_WRITER_LEFT) {
        EXPECT_EQ(ipc_subscription_receive(sub, &byte, sizeof(byte), NULL, 0), -EAGAIN);
        if (ipc_connection_next_event(connection, &event) <= 0)
            sched_yield();
    }
    EXPECT_EQ(event.reason, IPC_REASON_DENIED);
}

/* The lane that it reads, mapped a second time, for good. */
static const uint64_t *keep_lane(size_t *ret_words)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    void *found = NULL;
    unsigned long from, to;

    EXPECT(maps != NULL);
    while (fgets(line, sizeof(line), maps))
        if (strstr(line, "memfd:ipc-lane") && sscanf(line, "%lx-%lx", &from, &to) == 2) {
            *ret_words = (to - from) / sizeof(uint64_t);
            found = (void *)from; /* NOLINT(performance-no-int-to-ptr): it is a text */
            break;
        }
    fclose(maps);
    EXPECT(found != NULL);
    found = mremap(found, 0, *ret_words * sizeof(uint64_t), MREMAP_MAYMOVE);
    EXPECT(found != MAP_FAILED);
    return found;
}

/* A reader of everything that may read nothing after the reload. */
static void revoked(void *argument)
{
    const struct stage *stage = argument;
    char buffer[64];

    become(BOB, 0);
    ipc_connection *connection = connection_new();
    ipc_subscription *sub = subscription_new(connection, ">", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_subscription_wait_writers(sub, 1, SECONDS(60)), 1);
    gate_open(stage->ready);
    receive_numbers(sub, 0, 1000, 64);
    size_t words;
    const uint64_t *lane = keep_lane(&words);
    expect_denied(connection, sub);
    uint64_t *before = malloc(words * sizeof(*before));
    EXPECT(before != NULL);
    memcpy(before, lane, words * sizeof(*before));
    gate_open(stage->ready);
    gate_wait(
        stage->go); /* until much more was published: not there, but the memory may have been given back */
    for (size_t i = 0; i < words; i++)
        EXPECT(lane[i] == before[i] || lane[i] == 0);
    free(before);
    EXPECT_EQ(ipc_subscription_receive(sub, buffer, sizeof(buffer), NULL, 0), -EAGAIN);
    subscription_end(sub);
    ipc_connection_close(connection);
}

/* One that may go on reading: it loses nothing and sees all in order. */
static void kept(void *argument)
{
    const struct stage *stage = argument;

    become(CAROL, 0);
    ipc_connection *connection = connection_new();
    ipc_subscription *sub = subscription_new(connection, "stream", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_subscription_wait_writers(sub, 1, SECONDS(60)), 1);
    gate_open(stage->ready);
    receive_numbers(sub, 0, 50000, 64);
    subscription_end(sub);
    ipc_connection_close(connection);
}

static void test_a_reader_is_revoked(void **state)
{
    struct stage bob_stage = {gate_new(), gate_new(), -1}, carol_stage = {gate_new(), -1, -1};

    start(EVERYBODY);
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "stream", 65536, 0);
    pid_t bobs = child_start(revoked, &bob_stage), carols = child_start(kept, &carol_stage);
    gate_wait(bob_stage.ready);
    gate_wait(carol_stage.ready);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, SECONDS(60)), 2);
    publish_numbers(publisher, 0, 1000, 64);

    reload("[rule not bob]\nwho = user:1002\ndeny = subscribe\nnames = stream\n" EVERYBODY);
    gate_wait(bob_stage.ready);
    publish_numbers(publisher, 1000, 50000, 64);
    gate_open(bob_stage.go);
    child_done(bobs);
    child_done(carols);

    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.published, 50000);
    EXPECT_EQ(stats.overrun, 0);
    publisher_end(publisher);
    ipc_connection_close(connection);
}

/* One that may not read the topic any more, whose publisher writes on into the lane that it has mapped. */
static void overhears(void *argument)
{
    const struct stage *stage = argument;
    char buffer[64];
    size_t words, changed = 0;

    become(BOB, 0);
    ipc_connection *connection = connection_new();
    ipc_subscription *sub = subscription_new(connection, ">", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    gate_open(stage->ready);
    receive_numbers(sub, 0, 10, 64);
    const uint64_t *lane = keep_lane(&words);
    expect_denied(connection, sub);
    uint64_t *before = malloc(words * sizeof(*before));
    EXPECT(before != NULL);
    memcpy(before, lane, words * sizeof(*before));
    gate_open(stage->ready);
    gate_wait(stage->go);
    for (size_t i = 0; i < words; i++)
        changed += lane[i] != before[i];
    EXPECT(changed > 0);
    free(before);
    EXPECT_EQ(ipc_subscription_receive(sub, buffer, sizeof(buffer), NULL, 0), -EAGAIN);
    subscription_end(sub);
    ipc_connection_close(connection);
}

static void goes_on(void *argument)
{
    const struct stage *stage = argument;

    become(CAROL, 0);
    ipc_connection *connection = connection_new();
    ipc_subscription *sub = subscription_new(connection, "stream", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    ipc_subscription *other = subscription_new(connection, "other", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    gate_open(stage->ready);
    receive_numbers(sub, 0, 20, 64);
    receive_numbers(other, 0, 1000, 64);
    subscription_end(sub);
    subscription_end(other);
    ipc_connection_close(connection);
}

/* It shows on what it writes itself, to whom it could have told it anyway; and does nobody else any harm. */
static void test_a_publisher_that_does_not_renew(void **state)
{
    struct stage bob_stage = {gate_new(), gate_new(), -1}, carol_stage = {gate_new(), -1, -1};
    struct raw_broker there = {0};
    struct raw_client stubborn;
    struct held_lane lane;
    struct ipc_cells *cells[2];

    start(EVERYBODY);
    pid_t bobs = child_start(overhears, &bob_stage), carols = child_start(goes_on, &carol_stage);
    gate_wait(bob_stage.ready);
    gate_wait(carol_stage.ready);
    (void)snprintf(there.address, sizeof(there.address), "%s", guarded.address);
    raw_hello(&stubborn, &there, "stubborn");
    held_lane_open(&lane, &stubborn, "stream", 65536);
    for (unsigned i = 0; i < 2; i++)
        (void)held_lane_admit(&lane, &stubborn, &cells[i]);
    for (unsigned i = 0; i < 10; i++)
        EXPECT_EQ(held_lane_publish(&lane, i, 64), 0);

    reload("[rule not bob]\nwho = user:1002\ndeny = subscribe\nnames = stream other\n" EVERYBODY);
    (void)hostile_wait(&stubborn, TYPE(RENEW));
    gate_wait(bob_stage.ready);
    for (unsigned i = 10; i < 20; i++)
        EXPECT_EQ(held_lane_publish(&lane, i, 64), 0);
    gate_open(bob_stage.go);
    ipc_connection *connection = connection_new();
    ipc_publisher *honest = publisher_new(connection, "other", 65536, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(honest, 1, SECONDS(60)), 1);
    publish_numbers(honest, 0, 1000, 64);
    child_done(bobs);
    child_done(carols);
    hostile_alive(&stubborn);

    publisher_end(honest);
    ipc_connection_close(connection);
    for (unsigned i = 0; i < 2; i++)
        lane_segment_unmap(cells[i], IPC_SEGMENT_CELLS, 0);
    held_lane_close(&lane);
    raw_disconnect(&stubborn);
}

/* A publisher that may not go on. */
static void denied_writer(void *argument)
{
    const struct stage *stage = argument;

    become(BOB, 0);
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "stream", 65536, 0);
    gate_open(stage->ready);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, SECONDS(60)), 1);
    publish_numbers(publisher, 0, 10, 64);
    struct ipc_event event = event_wait(connection, IPC_EVENT_ENDED);
    EXPECT_EQ(event.reason, IPC_REASON_DENIED);
    EXPECT_EQ(ipc_publisher_publish(publisher, "x", 1), -EPIPE);
    gate_open(stage->done);
    ipc_publisher_close(publisher);
    ipc_connection_close(connection);
}

static void test_a_writer_is_revoked(void **state)
{
    struct stage stage = {gate_new(), -1, gate_new()};

    start(EVERYBODY);
    ipc_connection *connection = connection_new();
    pid_t bobs = child_start(denied_writer, &stage);
    gate_wait(stage.ready);
    ipc_subscription *sub = subscription_new(connection, "stream", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    receive_numbers(sub, 0, 10, 64);
    reload("[rule not bob]\nwho = user:1002\ndeny = publish\nnames = stream\n" EVERYBODY);
    gate_wait(stage.done);
    expect_denied(connection, sub);
    subscription_end(sub);
    child_done(bobs);
    ipc_connection_close(connection);
}

static void denied_publisher(void *argument)
{
    ipc_publisher *publisher = NULL;
    struct ipc_error error;

    become(BOB, 0);
    ipc_connection *connection = connection_new();
    EXPECT_EQ(ipc_publisher_open(&publisher, connection, "stream", NULL, &error), -EACCES);
    char origin[128];
    snprintf(origin, sizeof(origin), "rule 'not bob' (%s:1) denies it", config);
    EXPECT_TEXT(error.text, origin);
    ipc_connection_close(connection);
}

/* What is in the files while they are edited has no say before it is asked for: neither other rules nor mistakes. */
static void test_a_crash_does_not_change_the_policy(void **state)
{
    static const char *const edited[] = {EVERYBODY, "[rule not bob]\nwho = group:no-such-group\n" EVERYBODY};

    start("[rule not bob]\nwho = user:1002\ndeny = publish\nnames = stream\n" EVERYBODY);
    for (unsigned i = 0; i < 2; i++) {
        write_policy(edited[i]);
        guarded_kill_ipcd(&guarded);
        child_done(child_start(denied_publisher, NULL));
        guarded_kill_ipcd(&guarded);
        child_done(child_start(denied_publisher, NULL));
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rules, stop),
        cmocka_unit_test_teardown(test_a_reader_is_revoked, stop),
        cmocka_unit_test_teardown(test_a_publisher_that_does_not_renew, stop),
        cmocka_unit_test_teardown(test_a_writer_is_revoked, stop),
        cmocka_unit_test_teardown(test_a_crash_does_not_change_the_policy, stop),
    };

    if (getuid() != 0) {
        puts("skipped: only root can be several users");
        return 77;
    }
    expect_here();
    watchdog(60, "policy");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
