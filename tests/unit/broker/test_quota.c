/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/control/quota.h"

static struct config config;
static struct quota quota;
static struct refusal refusal;

static int init(void **state)
{
    config_init(&config);
    config_resolve(&config, 1024);
    config.per_user[LIMIT_SESSIONS] = 3;
    config.total[LIMIT_SESSIONS] = 5;
    config.per_user[LIMIT_SEGMENT_BYTES] = 100;
    config.connects_per_second = 2;
    return quota_init(&quota, &config);
}

static int done(void **state)
{
    quota_done(&quota);
    return 0;
}

static void test_limit_and_one_past_it(void **state)
{
    const struct charge one = {.of = {[LIMIT_SESSIONS] = 1}};
    struct user *user = quota_user(&quota, 1000);

    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(quota_take(&quota, user, &one, &refusal), 0);
    assert_int_equal(quota_take(&quota, user, &one, &refusal), -EDQUOT);
    assert_int_equal(refusal.code, -EDQUOT);
    assert_string_equal(refusal.text,
                        "limit reached: user 1000 has 3 of 3 sessions, and user 1000 asked for 1 more; "
                        "close connections, or raise sessions in [limits] of ipcd.conf");
    assert_int_equal(user->refused, 1);
    quota_return(&quota, user, &one);
    assert_int_equal(quota_take(&quota, user, &one, &refusal), 0);
}

static void test_total(void **state)
{
    const struct charge three = {.of = {[LIMIT_SESSIONS] = 3}};

    assert_int_equal(quota_take(&quota, quota_user(&quota, 1), &three, &refusal), 0);
    assert_int_equal(quota_take(&quota, quota_user(&quota, 2), &three, &refusal), -EDQUOT);
    assert_non_null(strstr(refusal.text, "all users together have 3 of 5 sessions"));
    assert_non_null(strstr(refusal.text, "raise total-sessions"));
    assert_int_equal(quota.refused, 1);
}

static void test_all_or_nothing(void **state)
{
    const struct charge both = {.of = {[LIMIT_SESSIONS] = 1, [LIMIT_SEGMENT_BYTES] = 101}};
    const struct charge huge = {.of = {[LIMIT_SEGMENT_BYTES] = UINT64_MAX}};
    struct user *user = quota_user(&quota, 7);

    assert_int_equal(quota_take(&quota, user, &both, &refusal), -EDQUOT);
    assert_int_equal(user->used[LIMIT_SESSIONS], 0);
    assert_int_equal(quota_take(&quota, user, &huge, &refusal), -EDQUOT);
    assert_int_equal(quota.used[LIMIT_SEGMENT_BYTES], 0);
}

static void test_connects_fill_up_again(void **state)
{
    struct user *user = quota_user(&quota, 7);
    uint64_t now_ns = user->connects_at_ns;

    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), 0);
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), 0);
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), -EDQUOT);
    assert_non_null(strstr(refusal.text, "connects-per-second"));
    now_ns += 500000001;
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), 0);
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), -EDQUOT);
    now_ns += UINT64_C(3600) * 1000000000;
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), 0);
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), 0);
    assert_int_equal(quota_connect(&quota, user, now_ns, &refusal), -EDQUOT);
}

static void test_users_are_in_order_of_uid(void **state)
{
    static const uint32_t uids[] = {5, 1, UINT32_MAX, 3, 0, 3};
    uint64_t last = 0, n = 0;

    for (size_t i = 0; i < sizeof(uids) / sizeof(uids[0]); i++)
        assert_int_equal(quota_user(&quota, uids[i])->uid, uids[i]);
    list_for_each(node, &quota.users)
    {
        uint64_t uid = list_entry(node, struct user, link)->uid;

        assert_true(n == 0 || uid > last);
        last = uid;
        n++;
    }
    assert_int_equal(n, 5);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, init, done)
    const struct CMUnitTest tests[] = {
        CASE(test_limit_and_one_past_it),
        CASE(test_total),
        CASE(test_all_or_nothing),
        CASE(test_connects_fill_up_again),
        CASE(test_users_are_in_order_of_uid),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
