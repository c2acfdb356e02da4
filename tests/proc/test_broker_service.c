/* SPDX-License-Identifier: Apache-2.0
 *
 * Services as the core sees them: which server a lane of calls is paired with, and who may reply to whom.
 */
#include "tests/proc/test_broker_raw.h"

#define KIND(name) IPC__CONTROL__KIND__KIND_##name
#define RING       4096u

static struct raw_broker broker;
static struct raw_client client, first, second;

static int start(void **state)
{
    watchdog(60, "services of the core");
    raw_broker_start(&broker, NULL, NULL);
    raw_hello(&client, &broker, "client");
    raw_hello(&first, &broker, "first");
    raw_hello(&second, &broker, "second");
    return 0;
}

static int stop(void **state)
{
    struct raw_client *all[] = {&client, &first, &second};

    for (unsigned i = 0; i < 3; i++)
        if (all[i]->fd >= 0)
            raw_disconnect(all[i]);
    raw_broker_stop(&broker);
    assert_false(children_left());
    watchdog(0, NULL);
    return 0;
}

static void ask_advertise(struct raw_client *who, const char *name, unsigned kind, uint64_t target)
{
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;

    advertise.topic = (char *)(uintptr_t)name;
    advertise.ring_size = RING;
    advertise.kind = (Ipc__Control__Kind)kind;
    advertise.target = target;
    raw_send(who, TYPE(ADVERTISE), &advertise.base);
}

static uint64_t advertise_kind(struct raw_client *who, const char *name, unsigned kind, uint64_t target,
                               uint32_t servers)
{
    const Ipc__Control__Advertised *advertised;

    ask_advertise(who, name, kind, target);
    advertised = raw_expect(who, TYPE(ADVERTISED));
    assert_int_equal(advertised->servers, servers);
    return advertised->lane;
}

static void refused(struct raw_client *who, int code)
{
    assert_int_equal(((const Ipc__Control__Failure *)raw_expect(who, TYPE(FAILURE)))->code, code);
}

static uint64_t subscribe_kind(struct raw_client *who, const char *name, unsigned kind)
{
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;

    subscribe.pattern = (char *)(uintptr_t)name;
    subscribe.slow = IPC__CONTROL__SLOW__SLOW_BLOCK;
    subscribe.kind = (Ipc__Control__Kind)kind;
    raw_send(who, TYPE(SUBSCRIBE), &subscribe.base);
    return ((const Ipc__Control__Subscribed *)raw_expect(who, TYPE(SUBSCRIBED)))->subscription;
}

/* Both sides of a pairing are told; both take it. */
static uint64_t admit(struct raw_client *writer, struct raw_client *reader, uint64_t lane, uint64_t call)
{
    const Ipc__Control__ReaderAdd *reader_add = raw_expect(writer, TYPE(READER_ADD));
    uint64_t pairing = reader_add->pairing;
    const Ipc__Control__LaneAdd *lane_add;

    assert_int_equal(reader_add->lane, lane);
    assert_int_equal(reader_add->peer->session, reader->session);
    lane_add = raw_expect(reader, TYPE(LANE_ADD));
    assert_int_equal(lane_add->pairing, pairing);
    assert_int_equal(lane_add->call, call);
    assert_int_equal(lane_add->peer->session, writer->session);
    raw_confirm(reader, TYPE(LANE_ADD), pairing, 0);
    raw_confirm(writer, TYPE(READER_ADD), pairing, 0);
    raw_expect(reader, TYPE(NUDGE));
    return pairing;
}

static uint64_t expect_reader_del(struct raw_client *who, uint64_t pairing, unsigned reason, uint32_t servers,
                                  bool replying)
{
    const Ipc__Control__ReaderDel *del = raw_expect(who, TYPE(READER_DEL));

    assert_int_equal(del->pairing, pairing);
    assert_int_equal(del->reason, reason);
    assert_int_equal(del->servers, servers);
    assert_int_equal(del->replying, replying);
    raw_confirm(who, TYPE(READER_DEL), pairing, 0);
    return pairing;
}

static void test_names_are_apart(void **state)
{
    uint64_t inbox;

    subscribe_kind(&first, "a", KIND(SERVE));
    inbox = subscribe_kind(&client, "a", KIND(INBOX));
    (void)raw_advertise(&second, "a", RING, false); /* a topic of that name concerns none of them */
    (void)raw_subscribe(&client, ">", IPC__CONTROL__START__START_NEXT, 1);
    raw_expect(&second, TYPE(READER_ADD));
    raw_expect(&client, TYPE(LANE_ADD));
    advertise_kind(&client, "b", KIND(CALL), inbox, 0);
    raw_settle(&first);
    ask_advertise(&client, "a.*", KIND(CALL), inbox);
    refused(&client, -EINVAL);
    ask_advertise(&client, "a", KIND(SERVE), inbox);
    refused(&client, -EINVAL);
    ask_advertise(&client, "a", 77, inbox);
    refused(&client, -EINVAL);
}

/* The lane of a server that leaves goes to the next one; one that finds none waits. */
static void test_pairing_is_renewed(void **state)
{
    uint64_t inbox = subscribe_kind(&client, "s", KIND(INBOX)), lane, pairing, serving;

    lane = advertise_kind(&client, "s", KIND(CALL), inbox, 0);
    serving = subscribe_kind(&first, "s", KIND(SERVE));
    pairing = admit(&client, &first, lane, 0);
    subscribe_kind(&second, "s", KIND(SERVE));
    raw_settle(&second); /* one server is enough for one lane */
    raw_unsubscribe(&first, serving);
    expect_reader_del(&client, pairing, IPC_REASON_CLOSED, 1, false);
    pairing = admit(&client, &second, lane, 0);
    raw_disconnect(&second);
    expect_reader_del(&client, pairing, IPC_REASON_DIED, 0, false);
    raw_settle(&client);
    subscribe_kind(&first, "s", KIND(SERVE));
    admit(&client, &first, lane, 0);
}

/* Two lanes of one inbox have different servers; those of another inbox may have the same. */
static void test_lanes_of_an_inbox_are_spread(void **state)
{
    uint64_t inbox = subscribe_kind(&client, "s", KIND(INBOX)), other, lanes[3], pairing;

    subscribe_kind(&first, "s", KIND(SERVE));
    lanes[0] = advertise_kind(&client, "s", KIND(CALL), inbox, 1);
    admit(&client, &first, lanes[0], 0);
    lanes[1] = advertise_kind(&client, "s", KIND(CALL), inbox, 1);
    raw_settle(&client);
    other = subscribe_kind(&client, "s", KIND(INBOX));
    lanes[2] = advertise_kind(&client, "s", KIND(CALL), other, 1);
    admit(&client, &first, lanes[2], 0);
    subscribe_kind(&second, "s", KIND(SERVE));
    pairing = admit(&client, &second, lanes[1], 0);
    raw_unadvertise(&client, lanes[0]);
    raw_expect(&first, TYPE(LANE_DEL));
    raw_settle(&first);
    raw_disconnect(&second);
    expect_reader_del(&client, pairing, IPC_REASON_DIED, 1, false);
    admit(&client, &first, lanes[1], 0); /* which is free for it now */
}

static void test_who_may_reply(void **state)
{
    uint64_t inbox = subscribe_kind(&client, "s", KIND(INBOX)), lane, pairing, replies, topic;

    subscribe_kind(&first, "s", KIND(SERVE));
    subscribe_kind(&second, "s", KIND(SERVE));
    ask_advertise(&second, "s", KIND(CALL), inbox); /* somebody else's inbox */
    refused(&second, -ENOENT);
    ask_advertise(&first, "", KIND(REPLY), inbox);
    refused(&first, -EACCES);
    lane = advertise_kind(&client, "s", KIND(CALL), inbox, 2);
    pairing = admit(&client, &first, lane, 0);
    ask_advertise(&second, "", KIND(REPLY), pairing); /* a server, but not the one of these calls */
    refused(&second, -EACCES);
    ask_advertise(&client, "", KIND(REPLY), pairing);
    refused(&client, -EACCES);
    ask_advertise(&first, "", KIND(REPLY), pairing + 1000);
    refused(&first, -EACCES);
    replies = advertise_kind(&first, "", KIND(REPLY), pairing, 0);
    admit(&first, &client, replies, pairing);
    /* A pairing of a topic is none of calls. */
    topic = raw_advertise(&client, "t", RING, false);
    (void)raw_subscribe(&second, "t", IPC__CONTROL__START__START_NEXT, 1);
    pairing = admit(&client, &second, topic, 0);
    ask_advertise(&second, "", KIND(REPLY), pairing);
    refused(&second, -EACCES);
}

static void test_end_with_replies(void **state)
{
    uint64_t inbox = subscribe_kind(&client, "s", KIND(INBOX)), lane, calls, replies, answers;
    const Ipc__Control__LaneDel *del;

    subscribe_kind(&first, "s", KIND(SERVE));
    lane = advertise_kind(&client, "s", KIND(CALL), inbox, 1);
    calls = admit(&client, &first, lane, 0);
    answers = advertise_kind(&first, "", KIND(REPLY), calls, 0);
    replies = admit(&first, &client, answers, calls);
    raw_disconnect(&first);
    del = raw_expect(&client, TYPE(LANE_DEL)); /* first the end of the replies */
    assert_int_equal(del->pairing, replies);
    expect_reader_del(&client, calls, IPC_REASON_DIED, 0, false);
    raw_confirm(&client, TYPE(LANE_DEL), replies, 0);
    ask_advertise(&second, "", KIND(REPLY), calls);
    refused(&second, -EACCES);
}

static void test_services_are_listed(void **state)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    const Ipc__Control__Page *page;
    uint64_t inbox;

    subscribe_kind(&first, "s.one", KIND(SERVE));
    subscribe_kind(&second, "s.one", KIND(SERVE));
    inbox = subscribe_kind(&client, "s.two", KIND(INBOX));
    advertise_kind(&client, "s.two", KIND(CALL), inbox, 0);
    list.kind = IPC__CONTROL__LIST_KIND__LIST_SERVICES;
    list.pattern = (char[]){"s.>"};
    raw_send(&client, TYPE(LIST), &list.base);
    page = raw_expect(&client, TYPE(PAGE));
    assert_int_equal(page->n_items, 2);
    assert_string_equal(page->items[0]->name, "s.one");
    assert_int_equal(page->items[0]->servers, 2);
    assert_int_equal(page->items[0]->clients, 0);
    assert_string_equal(page->items[1]->name, "s.two");
    assert_int_equal(page->items[1]->servers, 0);
    assert_int_equal(page->items[1]->clients, 1);
    assert_int_equal(page->items[1]->unpaired, 1);
    list.kind = IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS;
    raw_send(&client, TYPE(LIST), &list.base);
    assert_int_equal(((const Ipc__Control__Page *)raw_expect(&client, TYPE(PAGE)))->n_items, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names_are_apart, start, stop),
        cmocka_unit_test_setup_teardown(test_pairing_is_renewed, start, stop),
        cmocka_unit_test_setup_teardown(test_lanes_of_an_inbox_are_spread, start, stop),
        cmocka_unit_test_setup_teardown(test_who_may_reply, start, stop),
        cmocka_unit_test_setup_teardown(test_end_with_replies, start, stop),
        cmocka_unit_test_setup_teardown(test_services_are_listed, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
