/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/core/control/pairing_state.h"

static struct side side;

static int init(void **state)
{
    side_init(&side, true);
    return 0;
}

static void tell(enum side_notice notice)
{
    assert_int_equal(side_due(&side), notice);
    side_sent(&side);
    side_went(&side);
}

static void test_life(void **state)
{
    assert_int_equal(side_due(&side), SIDE_NOTICE_NONE);
    side_start(&side);
    tell(SIDE_NOTICE_ADD);
    assert_true(side.flight);
    assert_int_equal(side_due(&side), SIDE_NOTICE_NONE);
    assert_false(side_confirm_del(&side));
    assert_true(side_confirm_add(&side));
    assert_false(side.flight);
    assert_false(side_confirm_add(&side));
    side_end(&side, 3, false);
    side_end(&side, 4, false);
    assert_int_equal(side.reason, 3);
    tell(SIDE_NOTICE_DEL);
    assert_true(side_confirm_del(&side));
    assert_true(side_done(&side));
    assert_false(side_confirm_del(&side));
}

static void test_end_before_anything_was_told(void **state)
{
    side_end(&side, 1, true);
    assert_true(side_done(&side));

    init(state);
    side_start(&side);
    side_end(&side, 1, false);
    assert_true(side_done(&side));
}

static void test_end_that_is_owed_is_told_after_the_beginning(void **state)
{
    side_start(&side);
    side_end(&side, 1, true);
    side_end(&side, 2, false); /* what is owed stays owed */
    tell(SIDE_NOTICE_ADD);
    tell(SIDE_NOTICE_DEL);
    assert_true(side_confirm_add(&side));
    assert_true(side_confirm_del(&side));
    assert_true(side_done(&side));
    assert_int_equal(side.reason, 1);
}

/* What an ipcd leaves that was killed while it sent the ADD: known, not confirmed, due again. */
static void test_end_of_what_may_not_have_been_told(void **state)
{
    side_start(&side);
    side_end(&side, 1, true);
    side_sent(&side);
    assert_int_equal(side.state,
                     SIDE_ADD_SENT); /* killed here: the ADD is said again, and the DEL after it */
    side_went(&side);
    assert_int_equal(side_due(&side), SIDE_NOTICE_DEL);

    for (int writer = 0; writer < 2; writer++) {
        side_init(&side, writer);
        side.state = SIDE_ADD_DUE;
        side.known = true;
        side_end(&side, 1, false);
        if (!writer)
            tell(SIDE_NOTICE_ADD);
        tell(SIDE_NOTICE_DEL);
    }
}

static void test_end_while_the_beginning_is_on_its_way(void **state)
{
    side_start(&side);
    tell(SIDE_NOTICE_ADD);
    side_end(&side, 1, false);
    tell(SIDE_NOTICE_DEL);
    assert_true(side.flight);
    assert_true(side_confirm_del(&side)); /* even if only this is confirmed */
    assert_false(side.flight);
    assert_true(side_done(&side));
    assert_false(side_confirm_add(&side));
}

static void test_announced_again(void **state)
{
    side_start(&side);
    assert_true(side_again(&side)); /* the first one says it */
    tell(SIDE_NOTICE_ADD);
    assert_true(side_again(&side));
    assert_int_equal(side_due(&side), SIDE_NOTICE_NONE); /* one at a time */
    assert_true(side_confirm_add(&side));
    tell(SIDE_NOTICE_ADD);
    assert_true(side_confirm_add(&side));
    assert_int_equal(side_due(&side), SIDE_NOTICE_NONE);
    assert_true(side_again(&side));
    side_end(&side, 1, false); /* known: it is told the end, not the beginning once more */
    tell(SIDE_NOTICE_DEL);
    assert_false(side_again(&side));
}

static void test_gone_from_anywhere(void **state)
{
    for (unsigned steps = 0; steps < 5; steps++) {
        init(state);
        if (steps > 0)
            side_start(&side);
        if (steps > 1)
            side_sent(&side);
        if (steps > 2)
            side_end(&side, 1, false);
        if (steps > 3)
            side_sent(&side);
        side_gone(&side);
        assert_true(side_done(&side));
        assert_false(side.flight);
        assert_int_equal(side_due(&side), SIDE_NOTICE_NONE);
        assert_false(side_confirm_add(&side));
        assert_false(side_confirm_del(&side));
        side_start(&side);
        side_end(&side, 1, true);
        assert_true(side_done(&side));
    }
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup(name, init)
    const struct CMUnitTest tests[] = {
        CASE(test_life),
        CASE(test_end_before_anything_was_told),
        CASE(test_end_that_is_owed_is_told_after_the_beginning),
        CASE(test_end_of_what_may_not_have_been_told),
        CASE(test_end_while_the_beginning_is_on_its_way),
        CASE(test_announced_again),
        CASE(test_gone_from_anywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
