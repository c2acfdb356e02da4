/* SPDX-License-Identifier: Apache-2.0
 *
 * Matching against the plain definition of it: every pair, tried by ipc_name_match().
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "broker/core/control/lane.h"
#include "broker/core/control/registry.h"
#include "proto/name.h"

static struct config config;
static struct broker *broker;
static struct session sessions[2];

static int init(void **state)
{
    config_init(&config);
    config_resolve(&config, 1024);
    broker = calloc(1, sizeof(*broker));
    if (!broker)
        return -1;
    broker->options.config = &config;
    for (size_t i = 0; i < 2; i++) {
        memset(&sessions[i], 0, sizeof(sessions[i]));
        sessions[i].peer.session = i + 1;
        list_init(&sessions[i].lanes);
        list_init(&sessions[i].subscriptions);
    }
    broker->keep = KEEP_INIT;
    return registry_init(broker) < 0 ? -1 : state_new(&broker->state);
}

static int done(void **state)
{
    list_for_each_safe(node, &broker->subscriptions)
        registry_subscription_free(broker, list_entry(node, struct subscription, link));
    list_for_each_safe(other, &broker->lanes)
    {
        struct lane *lane = list_entry(other, struct lane, link);

        list_remove(&lane->by_topic);
        registry_topic_release(broker, lane->topic);
        free(lane);
    }
    assert_int_equal(broker->topics_by_name.count, 0);
    registry_done(broker);
    state_close(&broker->state);
    free(broker);
    return 0;
}

static struct lane *add_lane(unsigned session, const char *name)
{
    const struct lane_wish wish = {.name = name, .ring_size = 4096};
    int fd = -1;
    struct lane *lane = lane_new(broker, &sessions[session], &wish, &fd);

    assert_non_null(lane);
    return lane;
}

static struct subscription *add_subscription(unsigned session, const char *pattern, bool self)
{
    struct subscription_row *row = state_take(&broker->state, STATE_SUBSCRIPTIONS);
    struct subscription *subscription;

    assert_non_null(row);
    subscription = registry_subscription_new(broker, &sessions[session],
                                             state_number(&broker->state, NUMBER_SUBSCRIPTION),
                                             IPC__CONTROL__KIND__KIND_TOPIC, pattern, row);
    assert_non_null(subscription);
    subscription->self = self;
    return subscription;
}

static const char *random_name(char *name, size_t size, bool pattern)
{
    static const char *const levels[] = {"a", "b", "cc", "*", ">"};
    unsigned n = 1 + (unsigned)rand() % 3;

    name[0] = '\0';
    for (unsigned i = 0; i < n; i++) {
        unsigned which = (unsigned)rand() % (pattern ? i + 1 == n ? 5 : 4 : 3);
        size_t used = strlen(name);

        (void)snprintf(name + used, size - used, "%s%s", i ? "." : "", levels[which]);
    }
    return name;
}

static void test_both_walks_find_every_pair_in_order(void **state)
{
    char name[32];

    srand(42);
    for (unsigned i = 0; i < 200; i++) {
        add_lane((unsigned)rand() % 2, random_name(name, sizeof(name), false));
        add_subscription((unsigned)rand() % 2, random_name(name, sizeof(name), true), rand() % 2);
    }
    list_for_each(node, &broker->lanes)
    {
        struct lane *lane = list_entry(node, struct lane, link);
        struct match_walk walk;

        match_readers_start(&walk, broker, lane);
        list_for_each(other, &broker->subscriptions)
        {
            struct subscription *subscription = list_entry(other, struct subscription, link);

            if (ipc_name_match(subscription->pattern, lane->topic->name) &&
                (subscription->self || subscription->session != lane->session))
                assert_ptr_equal(match_readers_next(&walk, broker, lane), subscription);
        }
        assert_null(match_readers_next(&walk, broker, lane));
    }
    list_for_each(node, &broker->subscriptions)
    {
        struct subscription *subscription = list_entry(node, struct subscription, link);
        struct lane *at = NULL;

        list_for_each(other, &broker->lanes)
        {
            struct lane *lane = list_entry(other, struct lane, link);

            if (ipc_name_match(subscription->pattern, lane->topic->name) &&
                (subscription->self || subscription->session != lane->session)) {
                at = match_lanes_next(broker, subscription, at);
                assert_ptr_equal(at, lane);
            }
        }
        assert_null(match_lanes_next(broker, subscription, at));
    }
}

static void test_who_wants_a_lane_without_writer(void **state)
{
    struct lane *lane = add_lane(0, "a");
    struct subscription *next = add_subscription(1, "a", false), *oldest = add_subscription(1, "*", false);

    oldest->start = IPC__CONTROL__START__START_OLDEST;
    lane->state = LANE_RETAINED;
    assert_null(match_lanes_next(broker, next, NULL));
    assert_ptr_equal(match_lanes_next(broker, oldest, NULL), lane);
    lane->state = LANE_DRAINING;
    assert_null(match_lanes_next(broker, oldest, NULL));
}

static struct pairing pairings[IPC_LANE_SLOTS + 3];

/* A reader of that uid takes a slot or waits. */
static struct pairing *join(struct lane *lane, struct pairing *pairing, uint32_t uid)
{
    *pairing = (struct pairing){.reader_uid = uid, .slot = lane_slot_take(lane, uid)};
    list_append(pairing->slot == PAIRING_NO_SLOT ? &lane->waiting : &lane->pairings, &pairing->by_lane);
    return pairing;
}

static void leave(struct lane *lane, struct pairing *pairing)
{
    list_remove(&pairing->by_lane);
    lane_slot_return(lane, pairing->slot);
}

/* No uid gets all of the last 8. */
static void test_slots(void **state)
{
    static const uint32_t most[] = {200, 4, 2, 1, 1};
    struct lane *lane = add_lane(0, "a");
    struct pairing *at = pairings;
    uint32_t taken = 0;

    for (uint32_t uid = 0; uid < 5; uid++) {
        for (uint32_t i = 0; i < most[uid]; i++)
            assert_int_equal(join(lane, at++, uid)->slot, taken++);
        assert_int_equal(lane_slot_take(lane, uid), PAIRING_NO_SLOT);
    }
    assert_int_equal(taken, IPC_LANE_SLOTS);
    join(lane, at++, 7);
    assert_null(lane_slot_next(lane));
    leave(lane, &pairings[100]);
    leave(lane, &pairings[7]);
    assert_ptr_equal(lane_slot_next(lane), at - 1);
    assert_int_equal(lane_slot_take(lane, 7), 7);
    assert_int_equal(lane_slot_take(lane, 8), 100);
}

static void test_who_has_its_share_lets_others_go_first(void **state)
{
    struct lane *lane = add_lane(0, "a");
    struct pairing *at = pairings;

    for (uint32_t i = 0; i < 200; i++)
        join(lane, at++, 1);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(join(lane, at++, 1)->slot, PAIRING_NO_SLOT);
    assert_null(lane_slot_next(lane)); /* slots are free, but not for this one */
    assert_int_equal(join(lane, at++, 2)->slot, 200);
    leave(lane, &pairings[0]);
    assert_null(lane_slot_next(lane)); /* 8 again */
    leave(lane, &pairings[1]);
    assert_ptr_equal(lane_slot_next(lane), &pairings[200]);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, init, done)
    const struct CMUnitTest tests[] = {
        CASE(test_both_walks_find_every_pair_in_order),
        CASE(test_who_wants_a_lane_without_writer),
        CASE(test_slots),
        CASE(test_who_has_its_share_lets_others_go_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
