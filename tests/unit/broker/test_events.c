/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/control/events.h"

#define SECOND UINT64_C(1000000000)

static struct events *events;
static uint64_t last, now_ns;

static int init(void **state)
{
    events = calloc(1, sizeof(*events));
    last = 0;
    now_ns = SECOND;
    return events && events_init(events) == 0 ? 0 : -1;
}

static int done(void **state)
{
    events_done(events);
    free(events);
    return 0;
}

static void add(uint32_t uid, enum event_kind kind, const char *text)
{
    events_add(events, now_ns, kind, &(const struct peer){.uid = uid}, text);
}

static const struct event *next(uint64_t sequence)
{
    struct list *node = events_after(events, sequence);

    return node == &events->all ? NULL : list_entry(node, struct event, link);
}

/* How many of a user are there; the numbers of all grow. */
static size_t count(uint32_t uid)
{
    uint64_t before = 0;
    size_t n = 0;

    list_for_each(node, &events->all)
    {
        const struct event *event = list_entry(node, struct event, link);

        assert_true(event->sequence > before);
        before = event->sequence;
        n += event->peer.uid == uid;
    }
    assert_true(before == *events->last);
    return n;
}

static void test_numbers_go_on(void **state)
{
    add(1, EVENT_CAME, NULL);
    events_go_on(events, &last);
    add(1, EVENT_DENIED, "why");
    assert_int_equal(last, 2);
    assert_int_equal(next(0)->sequence, 1);
    assert_string_equal(next(0)->text, "");
    assert_int_equal(next(1)->kind, EVENT_DENIED);
    assert_string_equal(next(1)->text, "why");
    assert_null(next(2));
    /* As the next ipcd does. */
    events_done(events);
    memset(events, 0, sizeof(*events));
    assert_int_equal(events_init(events), 0);
    events_go_on(events, &last);
    add(1, EVENT_STARTED, NULL);
    assert_int_equal(next(2)->sequence, 3);
}

static void test_a_long_text_is_cut(void **state)
{
    char text[2 * EVENT_TEXT];

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    add(1, EVENT_DENIED, text);
    assert_int_equal(strlen(next(0)->text), EVENT_TEXT - 1);
}

/* What is too much is counted, and told: with the next, or when somebody asks. */
static void test_a_flood_is_counted(void **state)
{
    for (unsigned i = 0; i < EVENTS_BURST + 10; i++)
        add(1, EVENT_DENIED, NULL);
    assert_int_equal(count(1), EVENTS_BURST);
    events_flush(events, now_ns);
    assert_int_equal(count(1), EVENTS_BURST);
    now_ns += SECOND / EVENTS_PER_SECOND + 1;
    add(1, EVENT_WENT, NULL);
    assert_int_equal(next(EVENTS_BURST)->more, 10);
    add(1, EVENT_WENT, NULL);
    add(2, EVENT_WENT, NULL);
    now_ns += SECOND;
    events_flush(events, now_ns);
    assert_int_equal(count(2), 1);
    assert_int_equal(count(1), EVENTS_BURST + 2);
    assert_int_equal(next(EVENTS_BURST + 2)->kind, EVENT_MORE);
    assert_int_equal(next(EVENTS_BURST + 2)->more, 1);
    events_flush(events, now_ns);
    assert_int_equal(count(1), EVENTS_BURST + 2);
}

/* However long one floods, it loses its own events only. */
static void test_a_flood_costs_nobody_else_an_event(void **state)
{
    for (unsigned i = 0; i < 20; i++)
        add(7, EVENT_CAME, NULL);
    for (unsigned i = 0; i < 3 * EVENTS_KEPT; i++, now_ns += SECOND)
        add(i % 2, EVENT_DENIED, NULL);
    assert_int_equal(count(7), 20);
    assert_int_equal(count(0), (EVENTS_KEPT - 20) / 2);
    assert_int_equal(count(1), (EVENTS_KEPT - 20) / 2);
    assert_int_equal(next(0)->sequence, 1);
    assert_true(next(20)->sequence > EVENTS_KEPT); /* and whoever reads sees that they are lacking */
}

/* More users than it has events, each with more than it may tell. */
static void test_very_many_users(void **state)
{
    for (uint32_t uid = 0; uid < 3 * EVENTS_KEPT; uid++)
        for (unsigned i = 0; i < (uid % 3 ? 1 : EVENTS_BURST + 1); i++)
            add(uid, EVENT_CAME, NULL);
    now_ns += SECOND;
    events_flush(events, now_ns);
    assert_int_equal(count(3 * EVENTS_KEPT - 1), 1);
    assert_int_equal(events->n, EVENTS_KEPT);
    assert_true(events->n_sources <= EVENTS_KEPT + 1);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, init, done)
    const struct CMUnitTest tests[] = {
        CASE(test_numbers_go_on),      CASE(test_a_long_text_is_cut),
        CASE(test_a_flood_is_counted), CASE(test_a_flood_costs_nobody_else_an_event),
        CASE(test_very_many_users),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
