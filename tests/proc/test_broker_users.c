/* SPDX-License-Identifier: Apache-2.0
 *
 * Users against each other: what one does to the limits, another can still do what it needs, and errors name who did it.
 * A user is made by seteuid() at the connect, which is what the kernel reports to the broker; those that flood are
 * processes of their own, with setuid().
 */
#include <sys/prctl.h>

#include "tests/proc/test_broker_raw.h"

#define HOSTILE  1001u
#define INNOCENT 1002u
#define THIRD    1003u

static struct raw_broker broker;
static struct raw_client admin;

static int start(void **state)
{
    watchdog(90, "users");
    raw_broker_start(&broker, *state, NULL);
    assert_return_code(chmod(broker.folder, 0711), errno);
    raw_admin(&admin, &broker);
    return 0;
}

static int stop(void **state)
{
    raw_disconnect(&admin);
    raw_broker_stop(&broker);
    assert_false(children_left());
    watchdog(0, NULL);
    return 0;
}

static void connect_as(struct raw_client *client, uid_t uid)
{
    assert_return_code(seteuid(uid), errno);
    raw_connect(client, &broker);
    assert_return_code(seteuid(0), errno);
}

/* Returns false if it was refused: then the refusal is the frame received last. */
static bool try_hello(struct raw_client *client, uid_t uid)
{
    int got;

    connect_as(client, uid);
    raw_hello_as(client, "user", false);
    got = raw_recv(client, 0);
    assert_true(got == TYPE(WELCOME) || got == TYPE(FAILURE));
    return got == TYPE(WELCOME);
}

static void hello(struct raw_client *client, uid_t uid)
{
    if (!try_hello(client, uid))
        fail_msg("%s", ((const Ipc__Control__Failure *)(const void *)client->frame.message)->text);
}

/* What a user has in use; lives until the admin's next frame. */
static const Ipc__Control__Item *use_of(uid_t uid)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    const Ipc__Control__Page *page;

    list.kind = IPC__CONTROL__LIST_KIND__LIST_USERS;
    list.pattern = (char *)(uintptr_t) "";
    raw_send(&admin, TYPE(LIST), &list.base);
    page = raw_expect(&admin, TYPE(PAGE));
    for (size_t i = 0; i < page->n_items; i++)
        if (page->items[i]->peer->uid == uid)
            return page->items[i];
    fail_msg("user %u is not listed", (unsigned)uid);
    return NULL;
}

/* Whatever it is told meanwhile is passed over. */
static void advertise(struct raw_client *client, const char *topic)
{
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;
    int got;

    message.topic = (char *)(uintptr_t)topic;
    message.ring_size = 4096;
    raw_send(client, TYPE(ADVERTISE), &message.base);
    while ((got = raw_recv(client, 0)) != TYPE(ADVERTISED))
        assert_int_equal(got, TYPE(READER_ADD));
}

/* Take in notices, confirm those that add; returns how many of `type` came until none is left. */
static unsigned confirm_adds(struct raw_client *client, unsigned type)
{
    unsigned n = 0;
    int got;

    raw_settle(&admin);
    while ((got = raw_recv(client, MSG_DONTWAIT)) > 0) {
        const Ipc__Control__LaneAdd *lane = (const void *)client->frame.message;
        const Ipc__Control__ReaderAdd *reader = (const void *)client->frame.message;

        n += (unsigned)got == type;
        if (got == TYPE(LANE_ADD))
            raw_confirm(client, TYPE(LANE_ADD), lane->pairing, 0);
        if (got == TYPE(READER_ADD))
            raw_confirm(client, TYPE(READER_ADD), reader->pairing, 0);
        if (got == TYPE(LANE_ADD) || got == TYPE(READER_ADD))
            raw_settle(&admin); /* the next may come */
    }
    return n;
}

static void test_sessions_are_shared(void **state)
{
    struct raw_client clients[61];
    unsigned n = 0, others = 0;
    char most[64];

    while (try_hello(&clients[n], HOSTILE))
        n++;
    (void)snprintf(most, sizeof(most), "most: user %u with %u;", HOSTILE, n);
    assert_non_null(
        strstr(((const Ipc__Control__Failure *)(const void *)clients[n].frame.message)->text, most));
    assert_non_null(strstr(((const Ipc__Control__Failure *)(const void *)clients[n].frame.message)->text,
                           "raise total-sessions in [limits]"));
    raw_disconnect(&clients[n]);
    assert_int_equal(n, 25); /* of the 59 that the admin leaves 3/7 */
    while (try_hello(&clients[n + others], INNOCENT))
        others++;
    raw_disconnect(&clients[n + others]);
    assert_int_equal(others, 10);
    assert_true(try_hello(&clients[n + others], 0)); /* and root still looks after it all */
    for (unsigned i = 0; i <= n + others; i++)
        raw_disconnect(&clients[i]);
    while (raw_status(&admin)->sessions > 1)
        continue;
}

/* What others publish counts for the reader, but in shares. */
static void test_a_publisher_fills_only_its_share_of_a_reader(void **state)
{
    struct raw_client reader, hostile, third;
    unsigned got;

    hello(&reader, INNOCENT);
    raw_subscribe(&reader, ">", 0, 0);
    hello(&hostile, HOSTILE);
    for (unsigned i = 0; i < 60; i++) {
        char topic[32];

        (void)snprintf(topic, sizeof(topic), "junk.%u", i);
        advertise(&hostile, topic);
    }
    assert_int_equal(use_of(INNOCENT)->pairings, 30); /* 3/4 of 40 */
    hello(&third, THIRD);
    raw_advertise(&third, "news", 4096, false);
    assert_int_equal(use_of(INNOCENT)->pairings, 31);
    got = confirm_adds(&reader, TYPE(LANE_ADD));
    assert_int_equal(got, 31);
    /* The same for who subscribes afterwards: what is too much of one is left out, the rest is there. */
    raw_disconnect(&reader);
    hello(&reader, INNOCENT);
    raw_subscribe(&reader, ">", 0, 31);
    raw_disconnect(&reader);
    raw_disconnect(&hostile);
    raw_disconnect(&third);
}

static void test_one_user_does_not_take_all_slots_of_a_lane(void **state)
{
    struct raw_client writer, hostile, reader;

    hello(&writer, THIRD);
    raw_advertise(&writer, "a", 4096, false);
    hello(&hostile, HOSTILE);
    for (unsigned i = 0; i < 230; i++) {
        raw_send(&hostile, TYPE(SUBSCRIBE),
                 &(const Ipc__Control__Subscribe){
                     .base = PROTOBUF_C_MESSAGE_INIT(&ipc__control__subscribe__descriptor),
                     .pattern = (char *)(uintptr_t) "a"}
                      .base);
        while (raw_recv(&hostile, 0) != TYPE(SUBSCRIBED))
            continue;
    }
    hello(&reader, INNOCENT);
    raw_subscribe(&reader, "a", 0, 1);
    raw_expect(&reader, TYPE(LANE_ADD));
    raw_disconnect(&reader);
    raw_disconnect(&hostile);
    raw_disconnect(&writer);
}

/* A writer that does not say that its reader left: the reader has its charges back at once. */
static void test_who_does_not_confirm_pays(void **state)
{
    struct raw_client writer, reader;
    const Ipc__Control__ReaderAdd *add;
    uint64_t subscription, pairing, bytes;

    hello(&writer, HOSTILE);
    raw_advertise(&writer, "a", 4096, false);
    bytes = use_of(HOSTILE)->bytes;
    hello(&reader, INNOCENT);
    subscription = raw_subscribe(&reader, "a", 0, 1);
    add = raw_expect(&writer, TYPE(READER_ADD));
    pairing = add->pairing;
    raw_confirm(&writer, TYPE(READER_ADD), pairing, 0);
    raw_settle(&admin);
    while (raw_recv(&reader, MSG_DONTWAIT) > 0)
        continue;
    raw_unsubscribe(&reader, subscription);
    assert_int_equal(use_of(INNOCENT)->pairings, 0);
    assert_int_equal(use_of(HOSTILE)->pairings, 1);
    raw_goodbye(&reader);
    assert_int_equal(use_of(INNOCENT)->bytes, 0);
    assert_int_equal(use_of(INNOCENT)->descriptors, 0);
    assert_int_equal(use_of(HOSTILE)->bytes, bytes + sizeof(struct ipc_cells));
    raw_expect(&writer, TYPE(READER_DEL));
    raw_confirm(&writer, TYPE(READER_DEL), pairing, 0);
    raw_settle(&admin);
    assert_int_equal(use_of(HOSTILE)->pairings, 0);
    assert_int_equal(use_of(HOSTILE)->bytes, bytes);
    raw_goodbye(&writer);
}

/* To a broker that may have hung up already. */
static void try_confirm(struct raw_client *client, uint64_t pairing)
{
    Ipc__Control__Confirm confirm = IPC__CONTROL__CONFIRM__INIT;
    unsigned char packet[256];
    int size;

    confirm.notice = TYPE(READER_ADD);
    confirm.pairing = pairing;
    size = ipc_frame_pack(packet, sizeof(packet), TYPE(CONFIRM), 0, &confirm.base);
    (void)!send(client->fd, packet, (size_t)size, MSG_NOSIGNAL);
}

static void test_who_confirms_nothing_at_its_limit_is_ended(void **state)
{
    struct raw_client writer, reader;
    bool ended = false;

    hello(&writer, HOSTILE);
    raw_advertise(&writer, "a", 4096, false);
    raw_advertise(&writer, "b", 4096, false);
    hello(&reader, INNOCENT);
    while (!ended) {
        Ipc__Control__Unsubscribe unsubscribe = IPC__CONTROL__UNSUBSCRIBE__INIT;
        Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;
        int got;

        subscribe.pattern = (char *)(uintptr_t) ">";
        raw_send(&reader, TYPE(SUBSCRIBE), &subscribe.base);
        while ((got = raw_recv(&reader, 0)) != TYPE(SUBSCRIBED))
            assert_true(got > 0);
        unsubscribe.subscription =
            ((const Ipc__Control__Subscribed *)(const void *)reader.frame.message)->subscription;
        while (!ended && (got = raw_recv(&writer, MSG_DONTWAIT)) != 0) {
            const Ipc__Control__ReaderAdd *add = (const void *)writer.frame.message;

            ended = got < 0 || got == TYPE(ENDED);
            if (got == TYPE(ENDED))
                assert_int_equal(((const Ipc__Control__Ended *)(const void *)writer.frame.message)->reason,
                                 IPC_REASON_SLOW);
            if (got == TYPE(READER_ADD))
                try_confirm(&writer, add->pairing);
        }
        raw_send(&reader, TYPE(UNSUBSCRIBE), &unsubscribe.base);
        while ((got = raw_recv(&reader, 0)) != TYPE(DONE))
            assert_true(got > 0);
    }
    raw_disconnect(&writer);
    raw_settle(&admin);
    assert_int_equal(use_of(INNOCENT)->pairings, 0);
    raw_goodbye(&reader);
}

static void test_who_says_nothing_is_ended(void **state)
{
    struct raw_client silent, talks;

    hello(&talks, INNOCENT);
    connect_as(&silent, HOSTILE);
    raw_expect_ended(&silent, IPC_REASON_PROTOCOL);
    raw_disconnect(&silent);
    raw_goodbye(&talks);
}

static int flood_connect(void)
{
    Ipc__Control__Hello greeting = IPC__CONTROL__HELLO__INIT;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    unsigned char packet[256];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), size;

    greeting.version_min = greeting.version_max = IPC_CONTROL_VERSION;
    greeting.fingerprint = IPC_LAYOUT_FINGERPRINT;
    greeting.name = (char *)(uintptr_t) "flood";
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", broker.address);
    (void)connect(fd, (const struct sockaddr *)&address, sizeof(address));
    size = ipc_frame_pack(packet, sizeof(packet), TYPE(HELLO), 1, &greeting.base);
    (void)!send(fd, packet, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return fd;
}

/* 64 at a time, until the last of them hears something or is sent away. */
static void flood_connects(void)
{
    for (;;) {
        struct pollfd fds[64];

        for (unsigned i = 0; i < 64; i++)
            fds[i] = (struct pollfd){.fd = flood_connect(), .events = POLLIN};
        (void)poll(&fds[63], 1, -1);
        for (unsigned i = 0; i < 64; i++)
            close(fds[i].fd);
    }
}

/* To say that a lane goes on in the place of another says nothing about a lane that is somebody else's. */
static void test_a_lane_does_not_replace_that_of_another(void **state)
{
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;
    struct raw_client writer, hostile, reader;

    hello(&writer, INNOCENT);
    hello(&hostile, HOSTILE);
    message.target = raw_advertise(&writer, "kept", 4096, true);
    message.topic = (char *)(uintptr_t) "kept";
    message.ring_size = 4096;
    raw_send(&hostile, TYPE(ADVERTISE), &message.base);
    raw_expect(&hostile, TYPE(ADVERTISED));
    raw_disconnect(&hostile);
    raw_goodbye(&writer);
    raw_settle(&admin);
    hello(&reader, THIRD);
    raw_subscribe(&reader, "kept", 1, 0);
    assert_int_equal(((const Ipc__Control__LaneAdd *)raw_expect(&reader, TYPE(LANE_ADD)))->lane,
                     message.target);
    raw_disconnect(&reader);
}

/* As many requests as the socket takes; what comes back is thrown away unread. Runs until it is killed. */
static void flood(unsigned kind)
{
    static const Ipc__Control__Status status = {PROTOBUF_C_MESSAGE_INIT(&ipc__control__status__descriptor)};
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    static const unsigned types[] = {TYPE(STATUS), TYPE(SUBSCRIBE), TYPE(ADVERTISE), TYPE(LIST)};
    const ProtobufCMessage *messages[] = {&status.base, &subscribe.base, &advertise.base, &list.base};
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    char topic[32];
    int fd;

    if (kind == 4)
        flood_connects();
    subscribe.pattern = (char *)(uintptr_t) ">";
    list.kind = IPC__CONTROL__LIST_KIND__LIST_PAIRINGS;
    list.pattern = (char *)(uintptr_t) "none";
    advertise.topic = topic;
    advertise.ring_size = 4096;
    fd = flood_connect();
    for (uint64_t n = 2;; n++) {
        struct pollfd ready = {.fd = fd, .events = POLLIN | POLLOUT};
        int size;

        (void)snprintf(topic, sizeof(topic), "flood.%u", (unsigned)n);
        size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)types[kind], n, messages[kind]);
        (void)poll(&ready, 1, -1);
        while (recv(fd, NULL, 0, MSG_TRUNC | MSG_DONTWAIT) > 0)
            continue;
        if (send(fd, packet, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) {
            close(fd);
            fd = flood_connect();
        }
    }
}

/* An innocent pair lives its life beside them; every answer comes, and is no refusal. */
static void test_a_flood_of_processes(void **state)
{
    enum { KINDS = 5, LIVES = 20 };
    pid_t children[KINDS];

    for (unsigned kind = 0; kind < KINDS; kind++) {
        children[kind] = fork_child();
        if (children[kind] == 0) {
            if (setuid(HOSTILE) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0)
                flood(kind);
            _exit(1);
        }
    }
    for (unsigned i = 0; i < LIVES; i++) {
        struct raw_client writer, reader;
        uint64_t lane;

        hello(&writer, INNOCENT);
        lane = raw_advertise(&writer, "innocent.a", 4096, false);
        hello(&reader, INNOCENT);
        raw_subscribe(&reader, "innocent.*", 0, 1);
        assert_int_equal(((const Ipc__Control__LaneAdd *)raw_expect(&reader, TYPE(LANE_ADD)))->lane, lane);
        raw_expect(&writer, TYPE(READER_ADD));
        raw_goodbye(&reader);
        raw_disconnect(&writer);
    }
    assert_true(use_of(HOSTILE)->refused > 0 || use_of(HOSTILE)->sessions > 0);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        (void)kill(children[kind], SIGKILL);
        assert_int_equal(wait_child(children[kind]), 128 + SIGKILL);
    }
    while (raw_status(&admin)->sessions > 1)
        continue;
    assert_int_equal(use_of(HOSTILE)->bytes, 0);
    assert_int_equal(use_of(HOSTILE)->descriptors, 0);
}

int main(void)
{
#define CASE(name, config) \
 cmocka_unit_test_prestate_setup_teardown(name, start, stop, (void *)(uintptr_t)(config))
    const struct CMUnitTest tests[] = {
        CASE(test_sessions_are_shared, "[limits]\nsessions = 60\ntotal-sessions = 60\n"),
        CASE(test_a_publisher_fills_only_its_share_of_a_reader, "[limits]\nlanes = 40\n"),
        CASE(test_one_user_does_not_take_all_slots_of_a_lane, NULL),
        CASE(test_who_does_not_confirm_pays, NULL),
        CASE(test_a_lane_does_not_replace_that_of_another, NULL),
        CASE(test_who_confirms_nothing_at_its_limit_is_ended, "[limits]\nlanes = 10\n"),
        CASE(test_who_says_nothing_is_ended, "[limits]\nhello-timeout = 1\n"),
        CASE(test_a_flood_of_processes,
             "[limits]\nsessions = 200\nconnects-per-second = 100\ntopics = 2000\nlanes = 3000\n"),
    };

    if (geteuid() != 0) {
        print_message("skipped: only root can connect as other users\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
