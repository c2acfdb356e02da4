/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

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
    config_done(&config);
    return 0;
}

/* From here on the limits are what the configuration says now. */
static void begin_anew(void)
{
    quota_done(&quota);
    assert_int_equal(quota_init(&quota, &config), 0);
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
    assert_string_equal(
        refusal.text,
        "limit reached: all users together have 3 of 5 sessions (most: user 1 with 3; all: 3 of "
        "5), and user 2 asked for 3 more; close connections, or raise total-sessions in [limits] "
        "of ipcd.conf");
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

static void test_share_names_who_has_most(void **state)
{
    const struct charge one = {.of = {[LIMIT_SESSIONS] = 1}};
    unsigned n = 0;

    config.per_user[LIMIT_SESSIONS] = config.total[LIMIT_SESSIONS] = 100;
    while (quota_take(&quota, quota_user(&quota, 1), &one, &refusal) == 0)
        n++;
    assert_int_equal(n, 75); /* the only one: 3/4 */
    assert_string_equal(
        refusal.text,
        "limit reached: user 1 has 75 of its share of 75 sessions (most: user 1 with 75; all: 75 "
        "of 100), and user 1 asked for 1 more; close connections, or raise total-sessions in "
        "[limits] of ipcd.conf");
    for (n = 0; quota_take(&quota, quota_user(&quota, 2), &one, &refusal) == 0;)
        n++;
    assert_int_equal(n, 10); /* 3/7 of the 25 that are left */
    assert_non_null(strstr(refusal.text, "user 2 has 10 of its share of 10 sessions (most: user 1 with 75;"));
}

static void test_an_actor_is_named(void **state)
{
    const struct charge one = {.of = {[LIMIT_LANES] = 1}};
    struct user *reader, *hostile;
    unsigned n = 0;

    config.per_user[LIMIT_LANES] = 100;
    reader = quota_user(&quota, 1);
    hostile = quota_user(&quota, 666);
    while (quota_take_for(&quota, reader, hostile, &one, &refusal) == 0)
        n++;
    assert_int_equal(n, 75);
    assert_true(refusal.of_actor);
    assert_non_null(strstr(refusal.text, "user 666 caused 1 more"));
    assert_non_null(strstr(refusal.text, "raise lanes in [limits]"));
    assert_int_equal(hostile->refused, 1);
    assert_int_equal(reader->refused, 0);
    /* What it asks for itself is its own. */
    for (n = 0; quota_take_for(&quota, reader, reader, &one, &refusal) == 0;)
        n++;
    assert_int_equal(n, 25);
    assert_false(refusal.of_actor);
    while (reader->used[LIMIT_LANES] > 25)
        quota_return_for(&quota, reader, hostile, &one);
    assert_int_equal(reader->n_actors, 0);
    assert_int_equal(quota.usages.count, 0);
}

static void override(const char *text)
{
    assert_int_equal(config_parse(&config, "ipcd.conf", text, strlen(text), stderr), 0);
    assert_int_equal(config_quotas_resolve(&config), 0);
}

/* The first section that sets a limit holds for it, and is named. */
static void test_overrides(void **state)
{
    const struct charge one = {.of = {[LIMIT_SESSIONS] = 1}};
    struct user *user;
    unsigned n = 0;

    override("[quota backup]\nwho = user:7\nsessions = 2\n"
             "[quota others]\nwho = anyone\nsessions = 1\nconnects-per-second = 1\nqueue-bytes = 1M\n");
    user = quota_user(&quota, 7);
    while (quota_take(&quota, user, &one, &refusal) == 0)
        n++;
    assert_int_equal(n, 2);
    assert_string_equal(refusal.text,
                        "limit reached: user 7 has 2 of 2 sessions, and user 7 asked for 1 more; close "
                        "connections, or raise sessions in [quota backup] of ipcd.conf");
    assert_int_equal(quota_connect(&quota, user, user->connects_at_ns, &refusal), 0);
    assert_int_equal(quota_standing(&quota, user, USER_CONNECTS, user->connects_at_ns).used, 1);
    assert_int_equal(quota_connect(&quota, user, user->connects_at_ns, &refusal), -EDQUOT);
    assert_non_null(strstr(refusal.text, "raise connects-per-second in [quota others] of ipcd.conf"));
    assert_int_equal(user->budget.max, 1 << 20);
    assert_int_equal(quota_standing(&quota, user, LIMIT_SESSIONS, 0).used, 2);
    assert_int_equal(quota_standing(&quota, user, LIMIT_SESSIONS, 0).share, 2);
    assert_int_equal(quota_standing(&quota, user, LIMIT_SESSIONS, 0).total, 5);
    assert_int_equal(quota_user(&quota, 8)->limits.most[LIMIT_SESSIONS], 1);
    assert_int_equal(quota_user(&quota, 8)->limits.most[LIMIT_SEGMENT_BYTES], 100); /* of nobody's section */
}

/* Root is the only member of its group on each machine, by its entry in passwd. */
static void test_overrides_of_groups(void **state)
{
    override("[quota wheel]\nwho = group:0\ntopics = 9\n");
    assert_int_equal(quota_user(&quota, 0)->limits.most[LIMIT_TOPICS], 9);
    assert_string_equal(quota_user(&quota, 0)->limits.from[LIMIT_TOPICS], "wheel");
    assert_int_equal(quota_user(&quota, UINT32_MAX - 1)->limits.most[LIMIT_TOPICS], IPC_TOPICS_DEFAULT);
}

/* A lower limit takes nothing back, and is exceeded no further. */
static void test_what_is_held_stays(void **state)
{
    const struct charge one = {.of = {[LIMIT_SESSIONS] = 1}}, three = {.of = {[LIMIT_SESSIONS] = 3}};
    struct user *user;

    override("[quota low]\nwho = user:7\nsessions = 2\n");
    user = quota_user(&quota, 7);
    quota_charge(&quota, user, &three);
    for (unsigned held = 3; held >= 2; held--) {
        assert_int_equal(quota_take(&quota, user, &one, &refusal), -EDQUOT);
        assert_int_equal(user->used[LIMIT_SESSIONS], held);
        quota_return(&quota, user, &one);
    }
    assert_int_equal(quota_take(&quota, user, &one, &refusal), 0);
    assert_int_equal(quota_take(&quota, user, &one, &refusal), -EDQUOT);
}

/* ---- random sequences: IPC_TEST_SEED repeats one ---- */

#define USERS 8u

static uint64_t state_of_random;

static uint64_t draw(uint64_t n)
{
    state_of_random ^= state_of_random << 13;
    state_of_random ^= state_of_random >> 7;
    state_of_random ^= state_of_random << 17;
    return state_of_random % n;
}

static void seed(void)
{
    const char *told = getenv("IPC_TEST_SEED");

    if (told)
        state_of_random = strtoull(told, NULL, 0);
    else if (getrandom(&state_of_random, sizeof(state_of_random), 0) != (ssize_t)sizeof(state_of_random))
        fail();
    state_of_random |= 1;
    print_message("IPC_TEST_SEED=0x%llx\n", (unsigned long long)state_of_random);
}

/* Of a limit of `most`, what the n-th user of it can be sure of. */
static uint64_t sure(uint64_t most, uint64_t n)
{
    return 3 * most / ((3 * n - 2) * (3 * n + 1));
}

/* A section of their own for some of the users, with limits below and above those of the others. */
static void draw_overrides(uint64_t total)
{
    char text[USERS * 48];
    size_t at = 0;

    config_quotas_done(&config);
    for (unsigned i = 0; i < USERS; i++)
        at +=
            (size_t)snprintf(text + at, sizeof(text) - at, "[quota %u]\nwho = user:%u\nsessions = 1\n", i, i);
    override(text);
    for (unsigned i = 0; i < USERS; i++)
        for (size_t j = 0; j < LIMIT_COUNT; j++)
            config.quotas[i].most[j] = draw(2) ? 0 : 1 + draw(total);
}

/* User 0 asks for no more than it can be sure of, beside k others that take, return and ask too much at random: it is
 * never refused. Nobody has more than the limit that holds for it, whoever sets that. Nobody's use is forgotten or made up. */
static void test_nobody_is_refused_what_it_can_be_sure_of(void **state)
{
    seed();
    for (unsigned run = 0; run < 300; run++) {
        uint64_t model[USERS][LIMIT_COUNT] = {0}, total = 50 + draw(100000);
        unsigned hostile = 1 + (unsigned)draw(USERS - 1), innocent_takes = 0;

        for (size_t i = 0; i < LIMIT_COUNT; i++) {
            config.total[i] = total;
            config.per_user[i] = draw(2) ? total : 1 + draw(total);
        }
        draw_overrides(total);
        begin_anew();
        for (unsigned step = 0; step < 2000; step++) {
            unsigned who = draw(4) == 0 ? 0 : 1 + (unsigned)draw(hostile);
            size_t limit = draw(LIMIT_COUNT);
            struct user *user = quota_user(&quota, who);
            struct charge charge = {0};
            uint64_t n = 1, all = 0;

            for (unsigned i = 0; i <= hostile; i++) {
                n += i != who && model[i][limit] > 0;
                all += model[i][limit];
            }
            assert_int_equal(user->used[limit], model[who][limit]);
            assert_int_equal(quota.used[limit], all);
            assert_true(all <= total);
            assert_int_equal(user->limits.most[limit], config.quotas[who].most[limit]
                                                           ? config.quotas[who].most[limit]
                                                           : config.per_user[limit]);
            assert_true(model[who][limit] <= user->limits.most[limit]);
            if (draw(3) == 0 && model[who][limit] > 0) {
                charge.of[limit] = 1 + draw(model[who][limit]);
                quota_return(&quota, user, &charge);
                model[who][limit] -= charge.of[limit];
                continue;
            }
            if (who == 0) {
                uint64_t most = sure(total, n);

                most = most < user->limits.most[limit] ? most : user->limits.most[limit];
                if (most <= model[0][limit])
                    continue;
                charge.of[limit] = 1 + draw(most - model[0][limit]);
                if (quota_take(&quota, user, &charge, &refusal) < 0)
                    fail_msg("run %u, step %u: %s", run, step, refusal.text);
                innocent_takes++;
            } else {
                charge.of[limit] = draw(2) ? 1 : 1 + draw(total);
                if (quota_take(&quota, user, &charge, &refusal) < 0)
                    continue;
            }
            model[who][limit] += charge.of[limit];
        }
        assert_true(total < 5000 || innocent_takes > 0);
        for (unsigned who = 0; who <= hostile; who++) {
            struct charge rest = {0};

            memcpy(rest.of, model[who], sizeof(rest.of));
            quota_return(&quota, quota_user(&quota, who), &rest);
        }
        for (size_t i = 0; i < LIMIT_COUNT; i++) {
            assert_int_equal(quota.used[i], 0);
            assert_int_equal(quota.n_holders[i], 0);
        }
    }
}

/* The same for those who publish to one reader: the pairings that it may have are theirs in shares. Other readers are
 * there as well, and crowd the total. */
static void test_no_publisher_takes_the_readers_of_another(void **state)
{
    const struct charge one = {.of = {[LIMIT_LANES] = 1}};

    for (unsigned run = 0; run < 100; run++) {
        uint64_t model[USERS] = {0};
        unsigned hostile = 1 + (unsigned)draw(USERS - 1);
        struct user *reader;

        config.per_user[LIMIT_LANES] = 20 + draw(2000);
        config.total[LIMIT_LANES] = 4 * config.per_user[LIMIT_LANES];
        begin_anew();
        reader = quota_user(&quota, 100);
        for (unsigned step = 0; step < 4000; step++) {
            unsigned who = draw(3) == 0 ? 0 : 1 + (unsigned)draw(hostile);
            struct user *actor = quota_user(&quota, who);
            uint64_t n = 1;

            for (unsigned i = 0; i <= hostile; i++)
                n += i != who && model[i] > 0;
            if (draw(8) == 0 && model[who] > 0) {
                quota_return_for(&quota, reader, actor, &one);
                model[who]--;
            } else if (who > 0) {
                model[who] += quota_take_for(&quota, reader, actor, &one, &refusal) == 0;
            } else if (model[0] < sure(config.per_user[LIMIT_LANES], n)) {
                if (quota_take_for(&quota, reader, actor, &one, &refusal) < 0)
                    fail_msg("run %u, step %u: %s", run, step, refusal.text);
                model[0]++;
            }
        }
        for (unsigned who = 0; who <= hostile; who++)
            for (; model[who] > 0; model[who]--)
                quota_return_for(&quota, reader, quota_user(&quota, who), &one);
        assert_int_equal(quota.used[LIMIT_LANES], 0);
        assert_int_equal(quota.usages.count, 0);
        assert_int_equal(reader->n_actors, 0);
    }
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
        CASE(test_share_names_who_has_most),
        CASE(test_an_actor_is_named),
        CASE(test_overrides),
        CASE(test_overrides_of_groups),
        CASE(test_what_is_held_stays),
        CASE(test_nobody_is_refused_what_it_can_be_sure_of),
        CASE(test_no_publisher_takes_the_readers_of_another),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
