/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "proto/limits.h"
#include "proto/name.h"

static void test_names(void **state)
{
    static const char *const good[] = {"a",     "a.b",    "a.b.c", "~!@#$%^&()-_=+[]{}|;:'\",<?/\\",
                                       "A.0.z", "a-b.c_d"};
    static const char *const bad[] = {"",    ".",    "a.",   ".a",    "a..b", "a b",        "a\tb",
                                      "a\n", "\x7f", "\x80", "a\xff", "*",    "a.*",        "a.>",
                                      ">",   "a*",   " ",    "a.b*",  "\x1f", "caf\xc3\xa9"};
    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_null(ipc_name_check(good[i], false));
        assert_null(ipc_name_check(good[i], true));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_non_null(ipc_name_check(bad[i], false));
    assert_non_null(ipc_name_check(NULL, false));
    assert_non_null(ipc_name_check(NULL, true));
}

static void test_patterns(void **state)
{
    static const char *const good[] = {"*", ">", "*.*", "a.*", "*.a", "a.>", "*.>", "a.*.b.>"};
    static const char *const bad[] = {"a*",   "*a", "**", ">.a",    "a.>.b", ">>",
                                      "a.b>", ">a", "*>", "a.*b.c", "*.",    ".>"};
    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_null(ipc_name_check(good[i], true));
        assert_non_null(ipc_name_check(good[i], false));
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_non_null(ipc_name_check(bad[i], true));
}

static void test_limits(void **state)
{
    char name[IPC_MAX_NAME_SIZE + 2];
    (void)state;
    memset(name, 'a', sizeof(name));
    name[IPC_MAX_NAME_SIZE] = '\0';
    assert_null(ipc_name_check(name, false));
    name[IPC_MAX_NAME_SIZE] = 'a';
    name[IPC_MAX_NAME_SIZE + 1] = '\0';
    assert_non_null(ipc_name_check(name, false));
    char levels[2 * IPC_MAX_NAME_LEVELS + 2] = "";
    for (unsigned i = 0; i < IPC_MAX_NAME_LEVELS; i++)
        memcpy(levels + 2 * i, "a.", 2);
    levels[2 * IPC_MAX_NAME_LEVELS - 1] = '\0';
    assert_null(ipc_name_check(levels, false));
    memcpy(levels + 2 * IPC_MAX_NAME_LEVELS - 1, ".a", 3);
    assert_non_null(ipc_name_check(levels, false));
}

static void test_matches(void **state)
{
    static const struct {
        const char *pattern, *name;
        bool matches;
    } cases[] = {
        {"a", "a", true},          {"a", "b", false},          {"a", "ab", false},
        {"ab", "a", false},        {"a.b", "a.b", true},       {"a.b", "a", false},
        {"a", "a.b", false},       {"*", "a", true},           {"*", "a.b", false},
        {"*.b", "a.b", true},      {"*.b", "a.c", false},      {"a.*", "a.b", true},
        {"a.*", "a", false},       {"a.*", "a.b.c", false},    {"a.*.c", "a.b.c", true},
        {"a.*.c", "a.b.d", false}, {">", "a", true},           {">", "a.b.c", true},
        {"a.>", "a", false},       {"a.>", "a.b", true},       {"a.>", "a.b.c", true},
        {"a.>", "b.c", false},     {"*.>", "a", false},        {"*.>", "a.b", true},
        {"a.*.>", "a.b", false},   {"a.*.>", "a.b.c.d", true}, {"*.*", "a", false},
        {"*.*", "a.b", true},      {"aa.b", "a.b", false},     {"a.bb", "a.b", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_null(ipc_name_check(cases[i].pattern, true));
        assert_null(ipc_name_check(cases[i].name, false));
        if (ipc_name_match(cases[i].pattern, cases[i].name) != cases[i].matches)
            fail_msg("%s %s %s", cases[i].pattern, cases[i].matches ? "should match" : "should not match",
                     cases[i].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_matches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
