/* SPDX-License-Identifier: Apache-2.0
 *
 * Lanes, subscriptions and what their sessions are told about each other: order, window, confirmations, ends.
 */
#include <sys/mman.h>

#include "tests/proc/test_broker_raw.h"

#include "libipc/lane/segment.h"
#include "proto/limits.h"

#define RING 4096u

static struct raw_broker broker;
static struct raw_client writer, reader, other;

static int start(void **state)
{
    watchdog(60, "pairing");
    raw_broker_start(&broker, NULL, NULL);
    raw_hello(&writer, &broker, "writer");
    raw_hello(&reader, &broker, "reader");
    other.fd = -1;
    return 0;
}

static int stop(void **state)
{
    if (writer.fd >= 0)
        raw_disconnect(&writer);
    if (reader.fd >= 0)
        raw_disconnect(&reader);
    if (other.fd >= 0)
        raw_disconnect(&other);
    raw_broker_stop(&broker);
    assert_false(children_left());
    watchdog(0, NULL);
    return 0;
}

/* What the reader's LANE_DEL and the writer's READER_DEL say. */
static void expect_reader_del(struct raw_client *client, uint64_t pairing, unsigned reason)
{
    const Ipc__Control__ReaderDel *del = raw_expect(client, TYPE(READER_DEL));

    assert_int_equal(del->pairing, pairing);
    assert_int_equal(del->reason, reason);
    raw_confirm(client, TYPE(READER_DEL), pairing, 0);
}

static void expect_lane_del(struct raw_client *client, uint64_t pairing, unsigned reason)
{
    const Ipc__Control__LaneDel *del = raw_expect(client, TYPE(LANE_DEL));

    assert_int_equal(del->pairing, pairing);
    assert_int_equal(del->reason, reason);
    raw_confirm(client, TYPE(LANE_DEL), pairing, 0);
}

/* Both sides take a pairing in: the writer first. Returns it. */
static uint64_t admit(struct raw_client *from, struct raw_client *to)
{
    const Ipc__Control__ReaderAdd *reader_add = raw_expect(from, TYPE(READER_ADD));
    const Ipc__Control__LaneAdd *lane_add = raw_expect(to, TYPE(LANE_ADD));
    uint64_t pairing = reader_add->pairing;

    assert_int_equal(lane_add->pairing, pairing);
    assert_int_equal(lane_add->slot, reader_add->slot);
    assert_int_equal(lane_add->cell, reader_add->cell);
    assert_int_equal(lane_add->cells, reader_add->cells);
    raw_confirm(to, TYPE(LANE_ADD), pairing, 0);
    raw_settle(to);
    raw_confirm(from, TYPE(READER_ADD), pairing, 0);
    raw_expect(to, TYPE(NUDGE));
    return pairing;
}

static void test_pairing_is_told_to_both_with_descriptors(void **state)
{
    uint64_t lane = raw_advertise(&writer, "a.b", RING, false), subscription;
    const Ipc__Control__ReaderAdd *reader_add;
    const Ipc__Control__LaneAdd *lane_add;
    void *mapped;

    assert_int_equal(lane_segment_map(&mapped, writer.fds[0], IPC_SEGMENT_LANE, RING, true), 0);
    assert_int_equal(((struct ipc_lane *)mapped)->ring_size, RING);
    lane_segment_unmap(mapped, IPC_SEGMENT_LANE, RING);

    subscription = raw_subscribe(&reader, "a.*", IPC__CONTROL__START__START_LAST, 1);
    reader_add = raw_expect(&writer, TYPE(READER_ADD));
    assert_int_equal(reader_add->lane, lane);
    assert_int_equal(reader_add->slot, 0);
    assert_int_equal(reader_add->start, IPC__CONTROL__START__START_LAST);
    assert_int_equal(reader_add->peer->session, reader.session);
    assert_string_equal(reader_add->peer->name, "reader");
    assert_false(reader_add->fence);
    assert_int_equal(writer.n_fds, 1);
    assert_int_equal(lane_segment_map(&mapped, writer.fds[0], IPC_SEGMENT_CELLS, 0, true), -EACCES);
    assert_int_equal(lane_segment_map(&mapped, writer.fds[0], IPC_SEGMENT_CELLS, 0, false), 0);
    lane_segment_unmap(mapped, IPC_SEGMENT_CELLS, 0);

    lane_add = raw_expect(&reader, TYPE(LANE_ADD));
    assert_true(writer.board->mail > 0); /* before the reader knows, the writer has mail */
    assert_int_equal(lane_add->subscription, subscription);
    assert_int_equal(lane_add->lane, lane);
    assert_int_equal(lane_add->ring_size, RING);
    assert_string_equal(lane_add->topic, "a.b");
    assert_int_equal(lane_add->peer->session, writer.session);
    assert_true(lane_add->cells_new);
    assert_false(lane_add->ended);
    assert_int_equal(reader.n_fds, 2);
    assert_int_equal(lane_segment_map(&mapped, reader.fds[0], IPC_SEGMENT_LANE, RING, true), -EACCES);
    assert_int_equal(lane_segment_map(&mapped, reader.fds[0], IPC_SEGMENT_LANE, RING, false), 0);
    lane_segment_unmap(mapped, IPC_SEGMENT_LANE, RING);
    assert_int_equal(lane_segment_map(&mapped, reader.fds[1], IPC_SEGMENT_CELLS, 0, true), 0);
    lane_segment_unmap(mapped, IPC_SEGMENT_CELLS, 0);
    raw_settle(&reader);
    assert_int_equal(writer.board->pending, 0);
    assert_int_equal(reader.board->pending, 0);
}

static void test_a_lane_of_ones_own_is_only_joined_on_demand(void **state)
{
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;

    raw_advertise(&writer, "own", RING, false);
    raw_subscribe(&writer, ">", 0, 0);
    subscribe.pattern = (char[]){"own"};
    subscribe.self = true;
    raw_send(&writer, TYPE(SUBSCRIBE), &subscribe.base);
    raw_expect(&writer, TYPE(READER_ADD)); /* first: it can rely on its publishers from the answer on */
    assert_int_equal(((const Ipc__Control__Subscribed *)raw_expect(&writer, TYPE(SUBSCRIBED)))->matched, 1);
    raw_expect(&writer, TYPE(LANE_ADD));
}

/* Receives what is there, up to `most` frames of a kind, and the numbers of their pairings. */
static unsigned take(struct raw_client *client, unsigned type, uint64_t *pairings, unsigned most)
{
    unsigned n = 0;

    while (n < most && raw_recv(client, MSG_DONTWAIT) == (int)type)
        pairings[n++] = type == TYPE(READER_ADD)
                            ? ((const Ipc__Control__ReaderAdd *)(const void *)client->frame.message)->pairing
                            : ((const Ipc__Control__LaneAdd *)(const void *)client->frame.message)->pairing;
    return n;
}

static void test_window(void **state)
{
    enum { N = 20 };
    uint64_t told[N], seen[N];
    char topic[16];

    raw_admin(&other, &broker);
    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(topic, sizeof(topic), "t.%u", i);
        raw_advertise(&writer, topic, RING, false);
    }
    raw_subscribe(&reader, "t.>", 0, N);
    raw_settle(&other); /* a later round of the broker: all that fits was sent */
    assert_int_equal(writer.board->pending, N - IPC_NOTICE_WINDOW);
    assert_int_equal(reader.board->pending, N - IPC_NOTICE_WINDOW);
    assert_int_equal(take(&writer, TYPE(READER_ADD), told, N), IPC_NOTICE_WINDOW);
    assert_int_equal(take(&reader, TYPE(LANE_ADD), seen, N), IPC_NOTICE_WINDOW);
    for (unsigned i = 0; i < N; i++) {
        uint32_t mail = reader.board->mail,
                 left = i < N - IPC_NOTICE_WINDOW ? N - IPC_NOTICE_WINDOW - i - 1 : 0;

        raw_confirm(&reader, TYPE(LANE_ADD), seen[i], 0);
        raw_settle(&other);
        assert_int_equal(reader.board->pending, left);
        assert_int_equal(writer.board->pending, N - IPC_NOTICE_WINDOW);
        if (i < N - IPC_NOTICE_WINDOW) {
            assert_int_equal(take(&reader, TYPE(LANE_ADD), &seen[IPC_NOTICE_WINDOW + i], 1), 1);
            assert_true(reader.board->mail > mail);
        }
    }
    assert_int_equal(raw_recv(&reader, MSG_DONTWAIT), 0);
    for (unsigned i = 0; i < N; i++) {
        raw_confirm(&writer, TYPE(READER_ADD), told[i], 0);
        if (i < N - IPC_NOTICE_WINDOW)
            told[IPC_NOTICE_WINDOW + i] =
                ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
        raw_expect(&reader, TYPE(NUDGE));
    }
    assert_int_equal(writer.board->pending, 0);
    for (unsigned i = 1; i < N; i++) {
        assert_true(told[i] > told[i - 1]);
        assert_int_equal(told[i], seen[i]);
    }
}

/* DELs take no place in the window. */
static void test_ends_pass_a_full_window(void **state)
{
    uint64_t lanes[10], told[10];
    char topic[16];

    for (unsigned i = 0; i < 10; i++) {
        (void)snprintf(topic, sizeof(topic), "t.%u", i);
        lanes[i] = raw_advertise(&writer, topic, RING, false);
    }
    raw_subscribe(&reader, "t.>", 0, 10);
    for (unsigned i = 0; i < IPC_NOTICE_WINDOW; i++)
        told[i] = ((const Ipc__Control__LaneAdd *)raw_expect(&reader, TYPE(LANE_ADD)))->pairing;
    for (unsigned i = 0; i < IPC_NOTICE_WINDOW; i++)
        raw_expect(&writer, TYPE(READER_ADD));
    raw_unadvertise(&writer, lanes[2]);
    expect_lane_del(&reader, told[2], IPC_REASON_CLOSED);
    /* That one's place is free now, although its ADD was never confirmed by itself. */
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_unadvertise(&writer, lanes[9]); /* nobody was told of this one: nobody is told of its end */
    raw_settle(&reader);
}

static void test_unknown_confirms_and_detaches_are_ignored(void **state)
{
    Ipc__Control__Detach detach = IPC__CONTROL__DETACH__INIT;
    uint64_t pairing;

    raw_advertise(&writer, "a", RING, false);
    raw_subscribe(&reader, "a", 0, 1);
    raw_hello(&other, &broker, "other");
    pairing = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_confirm(&other, TYPE(READER_ADD), pairing, 0); /* not its pairing */
    raw_confirm(&other, TYPE(LANE_DEL), pairing, -ENOMEM);
    raw_confirm(&reader, TYPE(LANE_DEL), pairing, 0);   /* not told yet */
    raw_confirm(&reader, TYPE(READER_ADD), pairing, 0); /* not its side */
    raw_confirm(&writer, TYPE(READER_ADD), pairing + 1000, 0);
    detach.pairing = pairing;
    detach.reason = IPC__CONTROL__REASON__REASON_SLOW;
    raw_send_as(&other, TYPE(DETACH), 0, &detach.base);
    raw_settle(&other);
    raw_settle(&reader); /* nothing but the answer came */
    raw_confirm(&writer, TYPE(READER_ADD), pairing, 0);
    raw_expect(&reader, TYPE(NUDGE));
}

static void test_detach_is_told_to_both(void **state)
{
    Ipc__Control__Detach detach = IPC__CONTROL__DETACH__INIT;
    uint64_t pairing;

    raw_advertise(&writer, "a", RING, false);
    raw_subscribe(&reader, "a", 0, 1);
    pairing = admit(&writer, &reader);
    detach.pairing = pairing;
    detach.reason = IPC__CONTROL__REASON__REASON_SLOW;
    raw_send_as(&writer, TYPE(DETACH), 0, &detach.base);
    expect_reader_del(&writer, pairing, IPC_REASON_SLOW);
    expect_lane_del(&reader, pairing, IPC_REASON_SLOW);
    raw_settle(&writer);
    raw_settle(&reader);
    assert_int_equal(raw_status(&writer)->pairings, 0);
}

static void test_unsubscribe_and_slot_reuse(void **state)
{
    uint64_t subscription, pairing;

    raw_advertise(&writer, "a", RING, false);
    subscription = raw_subscribe(&reader, "a", 0, 1);
    pairing = admit(&writer, &reader);
    raw_unsubscribe(&reader, subscription);
    raw_settle(&reader); /* the writer has been told */
    raw_subscribe(&reader, "a", 0, 1);
    /* The slot of the first is not free before the writer confirmed. */
    expect_reader_del(&writer, pairing, IPC_REASON_CLOSED);
    assert_int_equal(((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->slot, 1);
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_settle(&writer);
    raw_subscribe(&reader, "*", 0, 1);
    assert_int_equal(((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->slot, 0);
}

static void test_unadvertise_keeps_the_lane_until_it_is_read(void **state)
{
    uint64_t lane = raw_advertise(&writer, "a", RING, false), pairing;

    raw_subscribe(&reader, "a", 0, 1);
    pairing = admit(&writer, &reader);
    raw_unadvertise(&writer, lane);
    assert_int_equal(raw_status(&writer)->topics, 1);
    expect_lane_del(&reader, pairing, IPC_REASON_CLOSED);
    raw_settle(&reader);
    assert_int_equal(raw_status(&writer)->topics, 0);
}

static void test_failed_mappings_end_the_pairing(void **state)
{
    uint64_t pairing;

    raw_advertise(&writer, "a", RING, false);
    raw_subscribe(&reader, "a", 0, 1);
    pairing = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_confirm(&writer, TYPE(READER_ADD), pairing, -ENOMEM);
    expect_reader_del(&writer, pairing, IPC_REASON_LIMIT);
    expect_lane_del(&reader, pairing, IPC_REASON_LIMIT);

    raw_subscribe(&reader, "*", 0, 1);
    pairing = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_confirm(&reader, TYPE(LANE_ADD), pairing, -ENFILE);
    expect_reader_del(&writer, pairing, IPC_REASON_LIMIT);
    raw_settle(&writer);
    raw_settle(&reader);
    assert_int_equal(raw_status(&writer)->pairings, 0);
}

/* A process with a session that advertises and subscribes, killed by SIGKILL; with `forked` its child lives on and
 * holds the socket. */
static void death(bool forked)
{
    int ready[2], hold[2];
    uint64_t told, seen;
    char byte;
    pid_t child;

    raw_advertise(&writer, "of.parent", RING, false);
    raw_subscribe(&reader, "of.child", 0, 0);
    assert_return_code(pipe2(ready, O_CLOEXEC), errno);
    assert_return_code(pipe2(hold, O_CLOEXEC), errno);
    child = fork_child();
    if (child == 0) {
        struct raw_client client;

        close(hold[1]);
        raw_hello(&client, &broker, "victim");
        raw_advertise(&client, "of.child", RING, false);
        raw_expect(&client, TYPE(READER_ADD));
        raw_subscribe(&client, "of.parent", 0, 1);
        if (forked && fork() == 0) {
            (void)!read(hold[0], &byte, 1); /* until the test closes its end */
            _exit(0);
        }
        (void)!write(ready[1], "", 1);
        for (;;)
            pause();
    }
    close(hold[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    told = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
    seen = ((const Ipc__Control__LaneAdd *)raw_expect(&reader, TYPE(LANE_ADD)))->pairing;
    assert_return_code(kill(child, SIGKILL), errno);
    assert_int_equal(wait_child(child), 128 + SIGKILL);
    expect_reader_del(&writer, told, IPC_REASON_DIED);
    expect_lane_del(&reader, seen, IPC_REASON_DIED);
    raw_settle(&writer);
    raw_settle(&reader);
    assert_int_equal(raw_status(&writer)->sessions, 2);
    assert_int_equal(raw_status(&writer)->topics, 1);
    assert_int_equal(raw_status(&writer)->pairings, 0);
    close(hold[1]);
    close(ready[0]);
    close(ready[1]);
}

static void test_killed_client(void **state)
{
    death(false);
}

static void test_killed_client_whose_child_holds_the_socket(void **state)
{
    death(true);
}

static void test_lane_that_the_writer_knew_is_shown_after_its_end(void **state)
{
    uint64_t lanes[10];
    char topic[16];

    for (unsigned i = 0; i < 10; i++) {
        (void)snprintf(topic, sizeof(topic), "t.%u", i);
        lanes[i] = raw_advertise(&writer, topic, RING, false);
    }
    raw_subscribe(&reader, "t.>", 0, 10);
    for (unsigned i = 0; i < 10; i++) {
        uint64_t pairing = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;

        raw_confirm(&writer, TYPE(READER_ADD), pairing, 0);
    }
    /* The reader's window is full of the first eight; what the last one said is not lost for it. */
    raw_unadvertise(&writer, lanes[9]);
    for (unsigned i = 0; i < 10;) {
        int type = raw_recv(&reader, 0);

        if (type == TYPE(NUDGE))
            continue;
        assert_int_equal(type, TYPE(LANE_ADD));
        raw_confirm(&reader, TYPE(LANE_ADD),
                    ((const Ipc__Control__LaneAdd *)(const void *)reader.frame.message)->pairing, 0);
        i++;
    }
    raw_expect(&reader, TYPE(LANE_DEL));
}

static void test_retained_lane_is_shown_to_who_wants_the_past(void **state)
{
    uint64_t lane = raw_advertise(&writer, "a", RING, true), newer, pairing;
    const Ipc__Control__LaneAdd *add;

    raw_unadvertise(&writer, lane);
    newer = raw_advertise(&writer, "a", RING, true);
    assert_int_equal(raw_status(&writer)->topics, 2);
    raw_unadvertise(&writer, newer);
    assert_int_equal(raw_status(&writer)->topics, 1);

    raw_subscribe(&reader, "a", IPC__CONTROL__START__START_NEXT, 0);
    raw_subscribe(&reader, "a", IPC__CONTROL__START__START_OLDEST, 0);
    add = raw_expect(&reader, TYPE(LANE_ADD));
    assert_int_equal(add->lane, newer);
    assert_true(add->ended);
    pairing = add->pairing;
    raw_confirm(&reader, TYPE(LANE_ADD), pairing, 0);
    expect_lane_del(&reader, pairing, IPC_REASON_CLOSED);
    raw_settle(&reader);
    assert_int_equal(raw_status(&reader)->topics, 1); /* it stays */
    raw_goodbye(&writer);
    writer.fd = -1;
    assert_int_equal(raw_status(&reader)->topics, 1);
}

static void test_a_lane_with_all_readers_lets_the_next_wait(void **state)
{
    enum { SHARE = IPC_LANE_SLOTS - 8 }; /* of the only user */
    uint64_t first = 0, subscription, told[SHARE];

    raw_advertise(&writer, "a", RING, false);
    for (unsigned i = 0; i < SHARE; i++) {
        subscription = raw_subscribe(&reader, "a", 0, 1);
        first = first ? first : subscription;
        told[i] = admit(&writer, &reader);
    }
    raw_hello(&other, &broker, "waits");
    raw_subscribe(&other, "a", 0, 1);
    raw_settle(&other);
    raw_settle(&writer);
    raw_unsubscribe(&reader, first);
    expect_reader_del(&writer, told[0], IPC_REASON_CLOSED);
    assert_int_equal(((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->slot, 0);
    raw_expect(&other, TYPE(LANE_ADD));
}

static void test_bell_rings(void **state)
{
    Ipc__Control__Bell bell = IPC__CONTROL__BELL__INIT;
    const Ipc__Control__LaneAdd *add;
    int ring, read_end;
    char byte = 0;

    raw_advertise(&writer, "a.1", RING, false);
    bell.subscription = raw_subscribe(&reader, "a.>", 0, 1);
    (void)admit(&writer, &reader);
    raw_send(&reader, TYPE(BELL), &bell.base);
    raw_expect(&reader, TYPE(DONE));
    assert_true(((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->bell);
    assert_int_equal(writer.n_fds, 2);
    ring = fcntl(writer.fds[1], F_DUPFD_CLOEXEC, 3);
    add = raw_expect(&reader, TYPE(LANE_ADD));
    assert_true(add->bell_new);
    assert_false(add->cells_new);
    assert_int_equal(reader.n_fds, 2);
    read_end = fcntl(reader.fds[1], F_DUPFD_CLOEXEC, 3);
    assert_int_equal(send(ring, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL), 1);
    assert_int_equal(recv(read_end, &byte, 1, 0), 1);

    /* A second lane of the same uid rings the same bell. */
    raw_advertise(&writer, "a.2", RING, false);
    assert_true(((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->bell);
    assert_false(((const Ipc__Control__LaneAdd *)raw_expect(&reader, TYPE(LANE_ADD)))->bell_new);
    close(ring);
    close(read_end);
}

static void test_many_topics_and_one_wildcard(void **state)
{
    enum { N = 3000 };
    unsigned n = 0;

    for (unsigned i = 0; i < N; i++) {
        char topic[32];

        (void)snprintf(topic, sizeof(topic), "many.%u", i);
        raw_advertise(&writer, topic, RING, false);
    }
    raw_subscribe(&reader, ">", 0, N);
    while (n < N) {
        assert_int_equal(raw_recv(&reader, 0), TYPE(LANE_ADD));
        raw_confirm(&reader, TYPE(LANE_ADD),
                    ((const Ipc__Control__LaneAdd *)(const void *)reader.frame.message)->pairing, 0);
        n++;
    }
    assert_int_equal(raw_status(&reader)->pairings, N);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        CASE(test_pairing_is_told_to_both_with_descriptors),
        CASE(test_a_lane_of_ones_own_is_only_joined_on_demand),
        CASE(test_window),
        CASE(test_ends_pass_a_full_window),
        CASE(test_unknown_confirms_and_detaches_are_ignored),
        CASE(test_detach_is_told_to_both),
        CASE(test_unsubscribe_and_slot_reuse),
        CASE(test_unadvertise_keeps_the_lane_until_it_is_read),
        CASE(test_failed_mappings_end_the_pairing),
        CASE(test_killed_client),
        CASE(test_killed_client_whose_child_holds_the_socket),
        CASE(test_lane_that_the_writer_knew_is_shown_after_its_end),
        CASE(test_retained_lane_is_shown_to_who_wants_the_past),
        CASE(test_a_lane_with_all_readers_lets_the_next_wait),
        CASE(test_bell_rings),
        CASE(test_many_topics_and_one_wildcard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
