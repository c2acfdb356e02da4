/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "broker/run/run.h"

static void test_lines(void **state)
{
    struct notify_news news;

    notify_parse("READY=1\nSTATUS=Listening.\nFDSTORE=1", &news);
    assert_true(news.ready);
    assert_false(news.stopping);
    assert_false(news.watchdog);
    assert_string_equal(news.status, "Listening.");
    notify_parse("STOPPING=1\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=2500000\n", &news);
    assert_int_equal(news.extend_us, 2500000);
    assert_true(news.stopping);
    assert_true(news.watchdog);
    assert_string_equal(news.status, "");
}

static void test_text_that_is_none_of_it(void **state)
{
    char text[1024];
    struct notify_news news;

    notify_parse("", &news);
    notify_parse("READY=10\nxREADY=1\nREADY", &news);
    assert_false(news.ready);
    memset(text, 'x', sizeof(text));
    memcpy(text, "STATUS=\033", 8);
    text[sizeof(text) - 1] = '\0';
    notify_parse(text, &news);
    assert_int_equal(news.status[0], '?');
    assert_true(strlen(news.status) < sizeof(news.status));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_text_that_is_none_of_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
