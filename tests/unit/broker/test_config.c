/* SPDX-License-Identifier: Apache-2.0 */
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/core/util/config.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

static struct config config;
static char *said;

/* Parses a text; *said is what it complained of. */
static unsigned parse(const char *text, size_t size)
{
    FILE *errors;
    size_t said_size;
    unsigned mistakes;

    free(said);
    config_done(&config);
    errors = open_memstream(&said, &said_size);
    assert_non_null(errors);
    config_init(&config);
    mistakes = config_parse(&config, "x.conf", text, size, errors);
    assert_int_equal(fclose(errors), 0);
    return mistakes;
}

#define PARSE(text) parse(text, strlen(text))

static void expect_said(const char *part)
{
    if (!strstr(said, part))
        fail_msg("'%s' is not in: %s", part, said);
}

static int tear_down(void **state)
{
    free(said);
    said = NULL;
    config_done(&config);
    return 0;
}

static void test_values(void **state)
{
    assert_int_equal(
        PARSE("# comment\n\n[broker]\naddress = /run/x\nlog-level: debug\nsocket-mode = 0660\n"
              "[limits]\n  sessions = 3\nsegment-bytes = 2G\ntotal-lanes=9 ; why\nring-size-max = 64K"),
        0);
    assert_string_equal(config.address, "/run/x");
    assert_int_equal(config.log_level, LOG_DEBUG);
    assert_int_equal(config.socket_mode, 0660);
    assert_int_equal(config.per_user[LIMIT_SESSIONS], 3);
    assert_int_equal(config.per_user[LIMIT_SEGMENT_BYTES], UINT64_C(2) << 30);
    assert_int_equal(config.total[LIMIT_LANES], 9);
    assert_int_equal(config.ring_size_max, 65536);
    assert_int_equal(config.per_user[LIMIT_TOPICS], IPC_TOPICS_DEFAULT);
}

static void test_mistakes_name_line_and_what_is_allowed(void **state)
{
    assert_int_equal(PARSE("sessions = 3\n"), 1);
    expect_said("x.conf:1: 'sessions' stands before any section");
    assert_int_equal(PARSE("[limits]\nsessions = 0\n"), 1);
    expect_said("x.conf:2: sessions = 0: a whole number from 1 to 8192 is allowed");
    assert_int_equal(PARSE("[broker]\ndrain = 10s\n"), 1);
    expect_said("x.conf:2: drain = 10s: a whole number of seconds from 0 to 3600 is allowed");
    assert_int_equal(PARSE("[limits]\nsessions = 8193\n"), 1);
    assert_int_equal(PARSE("[limits]\nsessions = 8192\n"), 0);
    assert_int_equal(PARSE("[limits]\nsessions = -1\nsegment-bytes = 1T\ntopics = 99999999999999999999999\n"),
                     3);
    assert_int_equal(PARSE("[broker]\naddress = relative\n"), 1);
    assert_int_equal(PARSE("[broker]\nsocket-mode = 888\n"), 1);
    assert_int_equal(PARSE("[broker]\nno value\n"), 1);
    expect_said("x.conf:2: 'setting = value'");
    assert_int_equal(PARSE("[empty]\n"), 1);
    expect_said("x.conf:1: unknown section [empty]");
    assert_int_equal(PARSE("[broker\n"), 1);
    assert_int_equal(parse("[broker]\nlog-level = in\0fo\n", 27), 1);
    expect_said("zero byte");
}

static void test_long_lines_and_many_mistakes(void **state)
{
    char text[4096] = "[limits]\n";
    size_t used = strlen(text);

    memset(text + used, 'a', 300);
    assert_int_equal(PARSE(text), 1);
    expect_said("300 bytes");
    for (unsigned i = 0; i < 70; i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "\033x%u = 1\n", i);
    assert_int_equal(PARSE(text), 70);
    expect_said("20 more mistakes");
    assert_null(strchr(said, '\033'));
}

static void test_what_is_printed_can_be_read(void **state)
{
    struct config before;
    char *text = NULL;
    size_t size;
    FILE *out;

    assert_int_equal(PARSE("[broker]\naddress = /a\n[limits]\ndescriptors = 77\n"), 0);
    config_resolve(&config, 1000);
    assert_int_equal(config.total[LIMIT_DESCRIPTORS],
                     1000 - IPC_CORE_FDS_BASE - config.router_threads * IPC_CORE_FDS_PER_ROUTER);
    before = config;
    out = open_memstream(&text, &size);
    assert_non_null(out);
    config_print(&config, out);
    assert_int_equal(fclose(out), 0);
    assert_int_equal(parse(text, size), 0);
    free(text);
    config.memory_limit = before.memory_limit;
    config.lowered = before.lowered;
    memset(before.origin, 0, sizeof(before.origin));
    memset(config.origin, 0, sizeof(config.origin));
    assert_memory_equal(&before, &config, sizeof(config));
}

#define SET(name) (queue->settings.given >> ipc_queue_setting_find(name)->field & 1)

static void test_queues(void **state)
{
    const struct config_queue *queue;
    char *text = NULL;
    size_t size;
    FILE *out;

    assert_int_equal(PARSE("[queue jobs]\nbytes-max = 1M\nlease = 30s\n[limits]\nsessions = 7\n"
                           "[queue jobs.dead]\n[queue   jobs]\ndead-letter = jobs.dead\npaused = yes\n"),
                     0);
    assert_int_equal(config.per_user[LIMIT_SESSIONS], 7);
    assert_int_equal(config.n_queues, 2);
    queue = &config.queues[0];
    assert_string_equal(queue->name, "jobs");
    assert_int_equal(queue->settings.bytes_max, 1 << 20);
    assert_int_equal(queue->settings.lease_ns, UINT64_C(30000000000));
    assert_string_equal(queue->dead_letter, "jobs.dead");
    assert_true(SET("paused") && SET("dead-letter") && !SET("ttl"));
    assert_int_equal(config.queues[1].settings.given, 0);

    out = open_memstream(&text, &size);
    assert_non_null(out);
    config_print(&config, out);
    assert_int_equal(fclose(out), 0);
    assert_non_null(strstr(text,
                           "# x.conf:1\n[queue jobs]\nbytes-max = 1M\nlease = 30s\ndead-letter = jobs.dead\n"
                           "paused = yes\n"));
    free(text);

    /* A drop-in changes what came before, and only that. */
    assert_int_equal(config_parse(&config, "y.conf", "[queue jobs]\nlease = 5s\n", 24, stderr), 0);
    queue = &config.queues[0];
    assert_int_equal(queue->settings.lease_ns, UINT64_C(5000000000));
    assert_string_equal(queue->dead_letter, "jobs.dead");
}

static void test_mistakes_in_queues(void **state)
{
    assert_int_equal(PARSE("[queue a..b]\nttl = 1s\n"), 1);
    expect_said("x.conf:1: [queue NAME]: this is no name of a queue: it has an empty level");
    assert_int_equal(PARSE("[queue ]\n"), 1);
    assert_int_equal(PARSE("[queue q]\nttl = 1\n"), 1);
    expect_said("x.conf:2: ttl: a time from 0 to 366d is allowed");
    assert_int_equal(PARSE("[queue q]\nsessions = 1\n"), 1);
    expect_said("unknown setting 'sessions' in [queue NAME]; there are: messages-max bytes-max");
    assert_int_equal(PARSE("[queue q]\nttl = 1s\nttl = 2s\n"), 1);
    expect_said("ttl was set already in line 2");
    assert_int_equal(PARSE("[queue q]\nttl = 1s\n[queue r]\nttl = 2s\n"), 0);
    assert_int_equal(PARSE("[queue q]\ndead-letter = q\n"), 1);
    expect_said("its own dead letters");
    assert_int_equal(PARSE("[limits]\nttl = 1s\n"), 1);
}

static void test_numbers(void **state)
{
    uint64_t number = 5;
    char text[32];

    assert_int_equal(text_to_number("16M", true, &number), 0);
    assert_int_equal(number, 16 << 20);
    text_from_number(text, sizeof(text), number, true);
    assert_string_equal(text, "16M");
    assert_int_equal(text_to_number("18446744073709551615", false, &number), 0);
    assert_int_equal(number, UINT64_MAX);
    assert_int_equal(text_to_number("18446744073709551616", false, &number), -34);
    assert_int_equal(text_to_number("18446744073709551615K", true, &number), -34);
    assert_int_equal(text_to_number("1K", false, &number), -22);
    assert_int_equal(text_to_number("", true, &number), -22);
    assert_int_equal(text_to_number("1KK", true, &number), -22);
    text_from_number(text, sizeof(text), 0, true);
    assert_string_equal(text, "0");
}

static void test_names_of_strangers(void **state)
{
    char text[16];

    text_clean(text, sizeof(text), "a\nb\xff\xc3\xa9");
    assert_string_equal(text, "a?b?\xc3\xa9");
    text_clean(text, 4, "ab\xc3\xa9"); /* no half characters */
    assert_string_equal(text, "ab");
    text_clean(text, sizeof(text), "\xc0\xaf\xed\xa0\x80\xf8z");
    assert_string_equal(text, "??????z");
    text_clean(text, sizeof(text), "\xc2\x9bm"); /* a C1 control character */
    assert_string_equal(text, "??m");
    text_quote(text, sizeof(text), "a\"\\\x1b");
    assert_string_equal(text, "a\\\"\\\\\\x1b");
    text_quote(text, 12, "0123456789abcdef");
    assert_string_equal(text, "01234...");
}

/* As for a service that was passed its socket: it goes on with its settings after a crash, address or not. */
static void test_what_is_kept_without_an_address(void **state)
{
    struct config kept;
    FILE *errors = tmpfile();
    int fd;

    assert_non_null(errors);
    assert_int_equal(PARSE("[limits]\nsessions = 7\n"), 0);
    config_resolve(&config, 1024);
    assert_string_equal(config.address, "");
    fd = config_keep(&config);
    assert_true(fd >= 0);
    config_init(&kept);
    assert_int_equal(config_load_kept(&kept, fd, errors), 0);
    config_done(&kept);
    assert_int_equal(close(fd), 0);
    assert_int_equal(fclose(errors), 0);
}

static bool there_is_a_group;

/* In place of libc's, which may ask other services and wait for them: what a crash is no occasion for. */
struct group *getgrnam(const char *name)
{
    static char text[] = "ipc";
    static struct group group = {.gr_name = text, .gr_gid = 4242};

    return there_is_a_group && strcmp(name, text) == 0 ? &group : NULL;
}

static void test_what_is_kept_asks_for_no_groups(void **state)
{
    FILE *errors = tmpfile();
    struct config kept;
    int fd;

    assert_non_null(errors);
    assert_int_equal(PARSE(""), 0);
    config_resolve(&config, 1024);
    assert_int_equal(config.policy.n, 0);
    fd = config_keep(&config);
    assert_true(fd >= 0);
    there_is_a_group = true;
    config_init(&kept);
    assert_int_equal(config_load_kept(&kept, fd, errors), 0);
    config_resolve(&kept, 1024);
    assert_int_equal(kept.policy.n, 0);
    config_resolve(&config, 1024);
    assert_int_equal(config.policy.n, geteuid() < 1000);
    there_is_a_group = false;
    config_done(&kept);
    assert_int_equal(close(fd), 0);
    assert_int_equal(fclose(errors), 0);
}

static void test_quotas(void **state)
{
    struct user_limits limits;
    char *text = NULL;
    size_t size;
    FILE *out;

    assert_int_equal(PARSE("[quota batch jobs]\nwho = user:5, user:7\nsegment-bytes = 1M\n"
                           "[limits]\nsessions = 7\n[quota batch jobs]\nsessions = 3\n"
                           "[quota rest]\nwho = anyone\nsessions = 4\nconnects-per-second = 9\n"),
                     0);
    assert_int_equal(config_parse(&config, "y.conf", "[quota rest]\nsessions = 5\n", 26, stderr), 0);
    config_user_limits(&config, 7, &limits);
    assert_int_equal(limits.most[LIMIT_SESSIONS], 3);
    assert_int_equal(limits.most[LIMIT_SEGMENT_BYTES], 1 << 20);
    assert_int_equal(limits.most[USER_CONNECTS], 9);
    assert_string_equal(limits.from[LIMIT_SESSIONS], "batch jobs");
    assert_null(limits.from[LIMIT_TOPICS]);
    config_user_limits(&config, 6, &limits);
    assert_int_equal(limits.most[LIMIT_SESSIONS], 5);

    config_resolve(&config, 1000);
    out = open_memstream(&text, &size);
    assert_non_null(out);
    config_print(&config, out);
    assert_int_equal(fclose(out), 0);
    assert_non_null(strstr(text,
                           "# x.conf:1\n[quota batch jobs]\nwho = user:5 user:7\nsessions = 3\n"
                           "segment-bytes = 1M\n\n# x.conf:8\n[quota rest]\nwho = anyone\nsessions = 5\n"
                           "connects-per-second = 9\n"));
    assert_int_equal(parse(text, size), 0);
    free(text);
    assert_int_equal(config.n_quotas, 2);
}

/* Who is in a group is asked once. */
static void test_members_are_kept(void **state)
{
    struct user_limits limits;
    struct config kept;
    int fd;

    assert_int_equal(PARSE("[quota wheel]\nwho = group:0\nsessions = 3\n"), 0);
    config_resolve(&config, 1024);
    assert_true(config.quotas[0].n_members >= 1);
    for (uint32_t uid = 5000; uid < 5100; uid++)
        assert_true(config_quota_add_member(&config.quotas[0], uid));
    fd = config_keep(&config);
    assert_true(fd >= 0);
    config_init(&kept);
    assert_int_equal(config_load_kept(&kept, fd, stderr), 0);
    config_resolve(&kept, 1024);
    assert_int_equal(kept.quotas[0].n_members, config.quotas[0].n_members);
    for (uint32_t uid = 5000; uid <= 5100; uid++) {
        config_user_limits(&kept, uid, &limits);
        assert_int_equal(limits.most[LIMIT_SESSIONS], uid < 5100 ? 3 : IPC_SESSIONS_DEFAULT);
    }
    config_done(&kept);
    assert_int_equal(close(fd), 0);
}

static void test_mistakes_in_quotas(void **state)
{
    assert_int_equal(PARSE("[quota ]\n"), 1);
    expect_said("x.conf:1: [quota NAME]: this is no name of a quota");
    assert_int_equal(PARSE("[quota q]\nsessions = 0\n"), 1);
    expect_said("x.conf:2: sessions = 0: a whole number from 1 to 8192 is allowed");
    assert_int_equal(PARSE("[quota q]\nsessions = 1\nsessions = 2\nwho = no-one\n"), 2);
    expect_said("sessions was set already in line 2");
    expect_said("anyone, user:NAME and group:NAME are allowed");
    assert_int_equal(PARSE("[quota q]\ntotal-sessions = 1\n"), 1);
    expect_said("unknown setting 'total-sessions' in [quota NAME]; there are: who sessions topics");
    assert_int_equal(PARSE("[quota q]\nwho = anyone\n"), 0);
    assert_string_equal(config_quota_wrong(&config.quotas[0]), "it does not set any limit");
    assert_int_equal(PARSE("[quota q]\nsessions = 1\n"), 0);
    assert_non_null(strstr(config_quota_wrong(&config.quotas[0]), "it does not say who"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_values, tear_down),
        cmocka_unit_test_teardown(test_mistakes_name_line_and_what_is_allowed, tear_down),
        cmocka_unit_test_teardown(test_long_lines_and_many_mistakes, tear_down),
        cmocka_unit_test_teardown(test_what_is_printed_can_be_read, tear_down),
        cmocka_unit_test_teardown(test_what_is_kept_without_an_address, tear_down),
        cmocka_unit_test_teardown(test_what_is_kept_asks_for_no_groups, tear_down),
        cmocka_unit_test_teardown(test_queues, tear_down),
        cmocka_unit_test_teardown(test_mistakes_in_queues, tear_down),
        cmocka_unit_test_teardown(test_quotas, tear_down),
        cmocka_unit_test_teardown(test_members_are_kept, tear_down),
        cmocka_unit_test_teardown(test_mistakes_in_quotas, tear_down),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_names_of_strangers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
