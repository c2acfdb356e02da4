/* SPDX-License-Identifier: Apache-2.0
 *
 * Decisions of the policy, and that a pattern is let in exactly if some name that it matches is.
 */
#include <errno.h>
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
#include "proto/name.h"

static struct config config;
static char said[4096];

static unsigned parse(const char *text)
{
    FILE *errors = fmemopen(said, sizeof(said), "w");
    unsigned mistakes;

    assert_non_null(errors);
    config_done(&config);
    config_init(&config);
    mistakes = config_parse(&config, "x.conf", text, strlen(text), errors);
    assert_int_equal(fclose(errors), 0);
    return mistakes;
}

static int tear_down(void **state)
{
    config_done(&config);
    return 0;
}

static bool may(uint32_t uid, uint32_t gid, const char *verb, const char *name)
{
    const gid_t others[] = {77, 78};
    const struct identity identity = {uid, gid, others, 2, NULL};

    return policy_allows(&config.policy, &identity, verb_from_word(verb), name);
}

static void test_the_first_rule_that_speaks_of_it_decides(void **state)
{
    assert_int_equal(parse("[rule a]\nwho = user:5 user:6\nallow = publish\ndeny = subscribe\nnames = a.b\n"
                           "[rule b]\nwho = group:9\ndeny = publish\nnames = a.>\n"
                           "[rule c]\nwho = anyone\nallow = publish, subscribe\n"),
                     0);
    assert_true(may(5, 9, "publish", "a.b"));
    assert_false(may(5, 9, "subscribe", "a.b"));
    assert_false(may(5, 9, "publish", "a.c"));
    assert_true(may(5, 9, "subscribe", "a.c"));
    assert_true(may(7, 8, "publish", "a.c"));
    assert_false(may(7, 8, "send", "a.c"));
    assert_true(may(0, 8, "send", "a.c"));
    assert_true(may(geteuid(), 8, "administer", "a.c"));
}

static void test_groups(void **state)
{
    assert_int_equal(parse("[rule a]\nwho = group:78\nallow = all\n"), 0);
    assert_true(may(5, 1, "call", "x"));
    assert_int_equal(parse("[rule a]\nwho = group:79\nallow = all\n"), 0);
    assert_false(may(5, 1, "call", "x"));
    assert_true(may(5, 79, "call", "x"));
}

static void test_without_rules_nobody_else(void **state)
{
    assert_int_equal(parse(""), 0);
    config_resolve(&config, 1000);
    assert_true(may(0, 0, "publish", "x"));
    assert_false(may(4711, 4711, "publish", "x"));
}

static void test_mistakes(void **state)
{
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"[rule x]\nwho = nobody-here\n", "x.conf:2: who: nobody-here: anyone, user:NAME and group:NAME"},
        {"[rule x]\nwho = user:no-such-user\n", "there is no such user"},
        {"[rule x]\nwho = group:no-such-group\n", "there is no such group"},
        {"[rule x]\nallow = eat\n", "allow: eat: publish, subscribe,"},
        {"[rule x]\nnames = a..b\n", "names: a..b: it has an empty level"},
        {"[rule x]\ncolour = red\n",
         "unknown setting 'colour' in [rule NAME]; there are: who allow deny names"},
        {"[rule x]\nallow = send\nallow = call\n", "allow was set already in line 2"},
        {"[rule ]\n", "no name of a rule"},
        {"[rules x]\n", "[rule NAME]"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_not_equal(parse(cases[i].text), 0);
        if (!strstr(said, cases[i].said))
            fail_msg("'%s' is not in: %s", cases[i].said, said);
    }
    parse("[rule x]\nallow = send\n");
    assert_non_null(strstr(policy_rule_wrong(&config.policy.rules[0]), "who"));
    parse("[rule x]\nwho = anyone\n");
    assert_non_null(strstr(policy_rule_wrong(&config.policy.rules[0]), "neither"));
    parse("[rule x]\nwho = anyone\nallow = all\ndeny = call\n");
    assert_non_null(strstr(policy_rule_wrong(&config.policy.rules[0]), "the same"));
}

static void test_what_is_printed_can_be_read(void **state)
{
    char text[POLICY_SETTINGS][2 * POLICY_TEXT], again[2 * POLICY_TEXT], why[POLICY_WHY_SIZE];
    struct policy_rule copy = {0};

    assert_int_equal(parse("[rule x]\nwho = group:78, user:3 anyone\nallow = send call\ndeny = create\n"
                           "names = a.*, b.> c\n"),
                     0);
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        policy_setting_print(&config.policy.rules[0], i, text[i]);
        assert_int_equal(policy_setting_parse(&copy, i, text[i], why), 0);
        policy_setting_print(&copy, i, again);
        assert_string_equal(text[i], again);
    }
    assert_string_equal(text[0], "group:78 user:3 anyone");
    assert_string_equal(text[3], "a.* b.> c");
}

/* All names and patterns of at most three levels over two words. */
#define WORDS_NAMES    2u
#define WORDS_PATTERNS 4u
static const char *const words[WORDS_PATTERNS] = {"a", "b", "*", ">"};

static unsigned all_of(unsigned n_words, char texts[][8])
{
    unsigned n = 0;

    for (unsigned i = 0; i < n_words; i++) {
        snprintf(texts[n++], 8, "%s", words[i]);
        for (unsigned j = 0; j < n_words; j++) {
            snprintf(texts[n++], 8, "%s.%s", words[i], words[j]);
            for (unsigned k = 0; k < n_words; k++)
                snprintf(texts[n++], 8, "%s.%s.%s", words[i], words[j], words[k]);
        }
    }
    return n;
}

static void test_overlap_and_cover(void **state)
{
    static char names[WORDS_NAMES * 7][8], patterns[WORDS_PATTERNS * 21][8];
    unsigned n_names = all_of(WORDS_NAMES, names), n_patterns = all_of(WORDS_PATTERNS, patterns),
             compared = 0;

    for (unsigned i = 0; i < n_patterns; i++)
        for (unsigned j = 0; j < n_patterns; j++) {
            bool overlap = false, cover = true;

            if (ipc_name_check(patterns[i], true) || ipc_name_check(patterns[j], true))
                continue;
            for (unsigned k = 0; k < n_names; k++) {
                bool one = ipc_name_match(patterns[i], names[k]),
                     other = ipc_name_match(patterns[j], names[k]);

                overlap = overlap || (one && other);
                cover = cover && (one || !other);
            }
            compared++;
            if (ipc_name_overlap(patterns[i], patterns[j]) != overlap)
                fail_msg("%s and %s do%s overlap", patterns[i], patterns[j], overlap ? "" : " not");
            /* Names are longer than three levels, and of more words, elsewhere: then it covers less. */
            if (ipc_name_cover(patterns[i], patterns[j]) && !cover)
                fail_msg("%s does not cover %s", patterns[i], patterns[j]);
        }
    assert_true(compared > 1000);
    assert_true(ipc_name_cover("a.>", "a.*.b"));
    assert_true(ipc_name_cover("*.b", "*.b"));
    assert_true(ipc_name_cover("*", "*"));
    assert_true(ipc_name_cover(">", ">"));
    assert_true(ipc_name_cover("a.>", "a.>"));
    assert_false(ipc_name_cover("*.>", ">"));
    assert_false(ipc_name_cover("a.*", "a.>"));
}

static void test_patterns(void **state)
{
    const struct identity identity = {5, 5, NULL, 0, NULL};

    assert_int_equal(parse("[rule a]\nwho = anyone\ndeny = subscribe\nnames = s.>\n"
                           "[rule b]\nwho = anyone\nallow = subscribe\nnames = s.* p.*\n"),
                     0);
    assert_false(policy_may_allow(&config.policy, &identity, VERB_SUBSCRIBE, "s.*"));
    assert_false(policy_may_allow(&config.policy, &identity, VERB_SUBSCRIBE, "x.*"));
    assert_true(policy_may_allow(&config.policy, &identity, VERB_SUBSCRIBE, ">"));
    assert_true(policy_may_allow(&config.policy, &identity, VERB_SUBSCRIBE, "*.x"));
}

/* Is every name of a pattern allowed: only if one rule says so, and none that is asked before it denies any. */
static void test_all_of_a_pattern(void **state)
{
    const struct identity identity = {5, 5, NULL, 0, NULL};

    assert_int_equal(parse("[rule a]\nwho = user:5\ndeny = subscribe\nnames = s.secret.>\n"
                           "[rule b]\nwho = anyone\nallow = subscribe\nnames = s.* p.>\n"
                           "[rule c]\nwho = user:6\nallow = all\n"),
                     0);
    static const struct {
        const char *pattern;
        bool allowed;
    } cases[] = {{"s.a", true},  {"s.secret", true}, {"s.*", true},   {"s.>", false}, {"s.secret.a", false},
                 {"p.>", true},  {"p.*.x", true},    {"p", false},    {">", false},   {"*.x", false},
                 {"*.>", false}, {"p.a.>", true},    {"s.s.*", false}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (policy_allows_all(&config.policy, &identity, VERB_SUBSCRIBE, cases[i].pattern) !=
            cases[i].allowed)
            fail_msg("%s: %s", cases[i].pattern, cases[i].allowed ? "denied" : "allowed");
    assert_false(policy_allows_all(&config.policy, &identity, VERB_PUBLISH, "p.a"));
}

static void test_keys(void **state)
{
    struct policy policy = {0};
    struct policy_rule *rule = policy_rule_of(&policy, "keys");
    struct identity identity = {POLICY_NOBODY, POLICY_NOBODY, NULL, 0, "lab"};
    char why[POLICY_WHY_SIZE];

    assert_non_null(rule);
    assert_int_equal(policy_setting_parse(rule, policy_setting_find("who"), "key:lab", why), 0);
    assert_int_equal(policy_setting_parse(rule, policy_setting_find("allow"), "send", why), 0);
    assert_true(policy_rule_has_keys(rule));
    assert_false(policy_has_groups(&policy));
    assert_true(policy_allows(&policy, &identity, VERB_SEND, "q"));
    assert_false(policy_allows(&policy, &identity, VERB_CALL, "q"));
    identity.key = "labs";
    assert_false(policy_allows(&policy, &identity, VERB_SEND, "q"));
    identity.key = NULL;
    assert_false(policy_allows(&policy, &identity, VERB_SEND, "q"));
    assert_false(policy_may_everything(&identity));
    assert_int_equal(policy_setting_parse(rule, policy_setting_find("who"), "key:", why), -EINVAL);
    policy_done(&policy);
    /* They mean nothing to the broker. */
    assert_int_equal(parse("[rule a]\nwho = key:lab\nallow = all\n"), 1);
    assert_non_null(strstr(said, "ipcd-zmq.conf"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_the_first_rule_that_speaks_of_it_decides, tear_down),
        cmocka_unit_test_teardown(test_groups, tear_down),
        cmocka_unit_test_teardown(test_without_rules_nobody_else, tear_down),
        cmocka_unit_test_teardown(test_mistakes, tear_down),
        cmocka_unit_test_teardown(test_what_is_printed_can_be_read, tear_down),
        cmocka_unit_test_teardown(test_overlap_and_cover, tear_down),
        cmocka_unit_test_teardown(test_patterns, tear_down),
        cmocka_unit_test_teardown(test_all_of_a_pattern, tear_down),
        cmocka_unit_test_teardown(test_keys, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
