/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients that do not read, read byte by byte, flood, hoard, or stand still: what others ask is answered, and what they
 * publish arrives.
 */
#include "tests/support/hostile.h"

#define HOARD_LIMIT 40u
#define TOLD_MAX    8u /* of those that are refused, at once */

static struct raw_client attacker, innocent;

static int setup(void **state)
{
    hostile_setup(state);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    hostile_hello(&innocent, WHO_CALM, "innocent");
    return 0;
}

static int teardown(void **state)
{
    raw_disconnect(&attacker);
    hostile_alive(&innocent);
    raw_disconnect(&innocent);
    return hostile_teardown(state);
}

/* Send requests until the socket takes no more. Returns how many it took. */
static unsigned flood(struct raw_client *client, unsigned type, const ProtobufCMessage *message)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, 7, message);
    unsigned n = 0;
    while (send(client->fd, packet, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL) == size)
        n++;
    EXPECT_EQ(errno, EAGAIN);
    return n;
}

/* Answers that are not read are not made: the session waits, and nobody else does. */
static void test_answers_not_read(void **state)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    unsigned sent = 0, answers = 0;
    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        sent += flood(&attacker, TYPE(STATUS), &status.base);
        hostile_alive(&innocent);
    }
    EXPECT(sent > 10);
    while (answers < sent) { /* then it reads, and has each answer once */
        EXPECT_EQ(raw_recv(&attacker, 0), TYPE(STATUS_REPLY));
        answers++;
    }
    EXPECT_EQ(raw_recv(&attacker, MSG_DONTWAIT), 0);
}

/* At most so many notices with descriptors are on their way to a session that does not confirm them. */
static void test_notices_not_confirmed(void **state)
{
    struct raw_client publisher;
    unsigned adds = 0;
    char topic[32];
    (void)state;
    hostile_subscribe(&attacker, "flood.*", 0, 0);
    hostile_hello(&publisher, WHO_PEER, "publisher");
    for (unsigned i = 0; i < 100; i++) {
        snprintf(topic, sizeof(topic), "flood.%u", i);
        hostile_advertise(&publisher, topic, 4096);
        (void)hostile_wait(&publisher, TYPE(ADVERTISED));
    }
    for (unsigned i = 0; i < 10; i++)
        hostile_alive(&innocent);
    int type;
    while ((type = raw_recv(&attacker, MSG_DONTWAIT)) > 0)
        adds += type == TYPE(LANE_ADD);
    EXPECT(adds > 0 && adds <= IPC_NOTICE_WINDOW);
    EXPECT(attacker.board->pending > 0);
    raw_disconnect(&publisher);
}

/* One byte of each packet: the rest of it is lost, by its own doing. One byte in each packet: no frame. */
static void test_byte_by_byte(void **state)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    char byte;
    (void)state;
    for (unsigned i = 0; i < 200; i++) {
        raw_send(&attacker, TYPE(STATUS), &status.base);
        EXPECT_EQ(recv(attacker.fd, &byte, 1, 0), 1);
    }
    hostile_alive(&attacker);
    EXPECT_EQ(hostile_send(&attacker, "x", 1, NULL, 0), 1);
    EXPECT_EQ(((const Ipc__Control__Ended *)hostile_wait(&attacker, TYPE(ENDED)))->reason,
              IPC_REASON_PROTOCOL);
}

static void flood_for_ever(void *argument)
{
    static struct raw_client client;
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    unsigned char packet[IPC_MAX_FRAME_SIZE], answer[IPC_MAX_FRAME_SIZE];
    unsigned kind = *(unsigned *)argument;
    hostile_hello(&client, WHO_ATTACKER, "flooder");
    list.kind = (Ipc__Control__ListKind)(kind % 5);
    int size = ipc_frame_pack(packet, sizeof(packet), TYPE(LIST), 7, &list.base);
    for (;;) {
        (void)!send(client.fd, packet, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (kind % 2)
            while (recv(client.fd, answer, sizeof(answer), MSG_DONTWAIT) > 0)
                continue;
    }
}

static void test_requests_without_end(void **state)
{
    pid_t flooders[4];
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        flooders[i] = child_start(flood_for_ever, &i);
    for (unsigned i = 0; i < 500; i++)
        hostile_alive(&innocent);
    for (unsigned i = 0; i < 4; i++)
        child_kill(flooders[i]);
}

static void come_and_go(void *argument)
{
    static struct raw_client client;
    const bool bells = *(const bool *)argument;
    hostile_hello(&client, WHO_ATTACKER, "comes and goes");
    for (;;) {
        Ipc__Control__Bell bell = IPC__CONTROL__BELL__INIT;
        bell.subscription = hostile_subscribe(&client, "busy", 0, IPC_SLOW_DROP_OLDEST);
        for (unsigned i = 0; bells && i < 20; i++) {
            raw_send(&client, TYPE(BELL), &bell.base);
            int type;
            do
                EXPECT((type = raw_recv(&client, 0)) > 0);
            while (type != TYPE(DONE) && type != TYPE(FAILURE));
        }
        hostile_unsubscribe(&client, bell.subscription);
    }
}

/* They never take their lanes; nothing of what the honest reader is to get is lost. */
static void test_subscribing_and_leaving_without_end(void **state)
{
    ipc_connection *out = hostile_connection(WHO_PEER), *in = hostile_connection(WHO_CALM);
    ipc_publisher *publisher = publisher_new(out, "busy", 4096, 0);
    ipc_subscription *subscription = subscription_new(in, "busy", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    struct ipc_publisher_stats stats;
    struct ipc_event event;
    pid_t goers[4];
    (void)state;
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    for (unsigned i = 0; i < 4; i++)
        goers[i] = child_start(come_and_go, &(bool){i % 2});
    for (uint64_t number = 0; number < 3000; number++) {
        publish_numbers(publisher, number, number + 1, 64);
        receive_numbers(subscription, number, number + 1, 64);
        if (number % 100 == 0)
            hostile_alive(&innocent);
    }
    for (unsigned i = 0; i < 4; i++)
        child_kill(goers[i]);
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.lost, 0);
    while (ipc_connection_next_event(in, &event) > 0)
        EXPECT(event.kind != IPC_EVENT_WRITER_LEFT && event.kind != IPC_EVENT_ENDED);
    subscription_end(subscription);
    publisher_end(publisher);
    ipc_connection_close(in);
    ipc_connection_close(out);
}

/* Whoever says that it is there and nothing else takes from its own user's share. */
static void test_sessions_hoarded(void **state)
{
    struct raw_client *hoard = calloc(HOARD_LIMIT + TOLD_MAX, sizeof(*hoard));
    unsigned refused = 0;
    (void)state;
    EXPECT(hoard != NULL);
    hostile_stop();
    hostile_start(false, "[limits]\nsessions = 40\n");
    hostile_hello(&innocent, WHO_CALM, "innocent");
    for (unsigned i = 0; i < HOARD_LIMIT + TOLD_MAX; i++)
        hostile_connect(&hoard[i], WHO_ATTACKER);
    hostile_alive(&innocent);
    for (unsigned i = HOARD_LIMIT; i < HOARD_LIMIT + TOLD_MAX; i++) {
        raw_hello_as(&hoard[i], "one more", false);
        const Ipc__Control__Failure *failure = hostile_wait(&hoard[i], TYPE(FAILURE));
        EXPECT_EQ(failure->code, -EDQUOT);
        EXPECT_TEXT(failure->text, "sessions");
        refused++;
    }
    EXPECT_EQ(refused, TOLD_MAX);
    hostile_hello(&attacker, WHO_PEER, "another user");
    hostile_alive(&attacker);
    for (unsigned i = 0; i < HOARD_LIMIT + TOLD_MAX; i++)
        raw_disconnect(&hoard[i]);
    free(hoard);
    hostile_log_expect("refused", "not let in", "sessions", NULL);
}

static int hoard_setup(void **state)
{
    return hostile_setup(state);
}

/* A reader that pins and never moves: the publisher waits as long as it said, once, and goes on without it. */
static void test_a_cursor_that_stands_still(void **state)
{
    ipc_connection *out = hostile_connection(WHO_PEER);
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_publisher_stats stats;
    ipc_publisher *publisher;
    struct held_cell cell;
    (void)state;
    options.ring_size = 4096;
    options.block_max_ns = 20000000;
    EXPECT_EQ(ipc_publisher_open(&publisher, out, "stand.still", &options, NULL), 0);
    hostile_subscribe(&attacker, "stand.still", 0, IPC_SLOW_BLOCK);
    held_cell_open(&cell, &attacker, NULL);
    atomic_store(&cell.cell->owner, cell.pairing);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, 1000, 64);
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.waits, 1);
    EXPECT_EQ(stats.detached, 1);
    EXPECT_EQ(stats.readers, 0);
    hostile_log_expect("detached", "reason=slow", "topic stand.still", "the writer", NULL);
    held_cell_close(&cell);
    publisher_end(publisher);
    ipc_connection_close(out);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_answers_not_read),
        ATTACK(test_notices_not_confirmed),
        ATTACK(test_byte_by_byte),
        ATTACK(test_requests_without_end),
        ATTACK(test_subscribing_and_leaving_without_end),
        ATTACK(test_a_cursor_that_stands_still),
        cmocka_unit_test_setup_teardown(test_sessions_hoarded, hoard_setup, teardown),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(int argc, char **argv)
{
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* one of them */
    return hostile_run("hostile/test_slow", tests);
}
