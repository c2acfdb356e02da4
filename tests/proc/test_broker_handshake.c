/* SPDX-License-Identifier: Apache-2.0
 *
 * The beginning and the end of sessions, and everything that a client may get wrong in a frame.
 */
#include "tests/proc/test_broker_raw.h"

static struct raw_broker broker;

static int start(void **state)
{
    watchdog(60, "handshake");
    raw_broker_start(&broker, NULL, *state);
    return 0;
}

static int stop(void **state)
{
    raw_broker_stop(&broker);
    assert_false(children_left());
    watchdog(0, NULL);
    return 0;
}

static void test_hello_is_welcomed_with_a_board(void **state)
{
    struct raw_client client;

    raw_hello(&client, &broker, "first");
    assert_int_equal(client.board->header.magic, IPC_LAYOUT_MAGIC);
    assert_int_equal(client.board->header.kind, IPC_SEGMENT_BOARD);
    assert_int_equal(client.board->header.fingerprint, IPC_LAYOUT_FINGERPRINT);
    assert_int_equal(client.board->ended, 0);
    assert_int_equal(fcntl(client.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_int_equal(fcntl(client.fds[0], F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    raw_goodbye(&client);
}

static void test_sessions_have_numbers_that_are_not_used_again(void **state)
{
    struct raw_client first, second;
    uint64_t number;

    raw_hello(&first, &broker, "first");
    number = first.session;
    raw_goodbye(&first);
    raw_hello(&second, &broker, "second");
    assert_true(second.session > number);
    raw_goodbye(&second);
}

static void test_other_version_is_refused_with_both_versions(void **state)
{
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    const Ipc__Control__Failure *failure;
    struct raw_client client;

    raw_connect(&client, &broker);
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION + 7;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char[]){"later"};
    raw_send(&client, TYPE(HELLO), &hello.base);
    failure = raw_expect(&client, TYPE(FAILURE));
    assert_int_equal(failure->code, -EPROTONOSUPPORT);
    assert_non_null(strstr(failure->text, "8"));
    raw_expect_ended(&client, IPC_REASON_PROTOCOL);
    raw_disconnect(&client);
}

static void test_other_layout_is_refused(void **state)
{
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    struct raw_client client;

    raw_connect(&client, &broker);
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT ^ 1;
    raw_send(&client, TYPE(HELLO), &hello.base);
    assert_int_equal(((const Ipc__Control__Failure *)raw_expect(&client, TYPE(FAILURE)))->code,
                     -EPROTONOSUPPORT);
    raw_expect_ended(&client, IPC_REASON_PROTOCOL);
    raw_disconnect(&client);
}

static void test_name_is_made_printable(void **state)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    const Ipc__Control__Page *page;
    struct raw_client client;

    raw_hello(&client, &broker, "a\033[31m\xff\xc3\xa9");
    list.pattern = (char[]){""};
    raw_send(&client, TYPE(LIST), &list.base);
    page = raw_expect(&client, TYPE(PAGE));
    assert_int_equal(page->n_items, 1);
    assert_string_equal(page->items[0]->peer->name, "a?[31m?\xc3\xa9");
    assert_int_equal(page->items[0]->peer->pid, getpid());
    assert_int_equal(page->items[0]->peer->uid, getuid());
    raw_goodbye(&client);
}

/* Each of these ends the session with reason protocol. */
static void expect_protocol(struct raw_client *client)
{
    raw_expect_ended(client, IPC_REASON_PROTOCOL);
    raw_disconnect(client);
}

static void test_bad_packets(void **state)
{
    static const struct ipc_frame_header no_such_type = {.magic = IPC_FRAME_MAGIC, .type = 999, .id = 1};
    static const struct ipc_frame_header wrong_magic = {.magic = 1, .type = TYPE(STATUS), .id = 1};
    static const struct ipc_frame_header wrong_size = {
        .magic = IPC_FRAME_MAGIC, .type = TYPE(STATUS), .id = 1, .size = 400};
    static const unsigned char large[IPC_MAX_FRAME_SIZE + 1];
    const struct {
        const void *bytes;
        size_t size;
    } packets[] = {
        {"x", 1},
        {"", 0},
        {large, sizeof(large)},
        {large, IPC_MAX_FRAME_SIZE},
        {&no_such_type, sizeof(no_such_type)},
        {&wrong_magic, sizeof(wrong_magic)},
        {&wrong_size, sizeof(wrong_size)},
    };

    for (size_t i = 0; i < sizeof(packets) / sizeof(packets[0]); i++) {
        struct raw_client client;

        raw_hello(&client, &broker, "bad");
        assert_int_equal(send(client.fd, packets[i].bytes, packets[i].size, 0), packets[i].size);
        expect_protocol(&client);
    }
}

static void test_wrong_order_of_frames(void **state)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    const Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;
    struct raw_client client;

    raw_connect(&client, &broker);
    raw_send(&client, TYPE(STATUS), &status.base);
    expect_protocol(&client);

    raw_hello(&client, &broker, "twice");
    raw_hello_as(&client, "twice", false);
    expect_protocol(&client);

    raw_hello(&client, &broker, "no number");
    raw_send_as(&client, TYPE(STATUS), 0, &status.base);
    expect_protocol(&client);

    raw_hello(&client, &broker, "not its to say");
    raw_send(&client, TYPE(NUDGE), &done.base);
    expect_protocol(&client);

    raw_hello(&client, &broker, "confirms what there is not");
    raw_confirm(&client, TYPE(STATUS), 1, 0);
    expect_protocol(&client);
}

static void test_descriptor_of_a_client_is_closed_and_ends_it(void **state)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    int size = ipc_frame_pack(packet, sizeof(packet), TYPE(STATUS), 1, &status.base);
    struct iovec piece = {.iov_base = packet, .iov_len = (size_t)size};

    for (unsigned n = 1; n <= 200; n += 199) {
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(200 * sizeof(int))] = {0};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control};
        struct raw_client client;
        struct cmsghdr *rights;
        int ends[2];
        char byte;

        raw_hello(&client, &broker, "generous");
        assert_return_code(pipe2(ends, O_CLOEXEC), errno);
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n * sizeof(int));
        for (unsigned i = 0; i < n; i++)
            memcpy(CMSG_DATA(rights) + i * sizeof(int), &ends[1], sizeof(int));
        assert_int_equal(sendmsg(client.fd, &message, 0), size);
        close(ends[1]);
        expect_protocol(&client);
        assert_int_equal(read(ends[0], &byte, 1), 0); /* nobody holds the other end any more */
        close(ends[0]);
    }
}

static void test_admin_only_looks(void **state)
{
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;
    const Ipc__Control__StatusReply *status;
    struct raw_client client;

    raw_admin(&client, &broker);
    status = raw_status(&client);
    assert_int_equal(status->pid, broker.pid);
    assert_int_equal(status->sessions, 1);
    assert_int_equal(status->segments, 0);
    assert_true(status->rss_bytes > 0);
    advertise.topic = (char[]){"a"};
    raw_send(&client, TYPE(ADVERTISE), &advertise.base);
    assert_int_equal(((const Ipc__Control__Failure *)raw_expect(&client, TYPE(FAILURE)))->code, -EPERM);
    raw_goodbye(&client);
}

static void test_hangup_without_goodbye_is_a_death(void **state)
{
    struct raw_client client, admin;

    raw_admin(&admin, &broker);
    raw_hello(&client, &broker, "hangs up");
    raw_disconnect(&client);
    while (raw_status(&admin)->sessions > 1) /* each asks the broker anew */
        continue;
    assert_int_equal(raw_status(&admin)->ended_badly, 1);
    raw_goodbye(&admin);
}

static void test_shutdown_is_told_to_every_session(void **state)
{
    struct raw_client clients[3];

    for (size_t i = 0; i < 3; i++)
        raw_hello(&clients[i], &broker, "stays");
    assert_return_code(kill(broker.pid, SIGTERM), errno);
    for (size_t i = 0; i < 3; i++) {
        raw_expect_ended(&clients[i], IPC_REASON_SHUTDOWN);
        assert_int_equal(clients[i].board->mail, 1);
        raw_disconnect(&clients[i]);
    }
}

static int stop_stopped(void **state)
{
    return stop(state);
}

int main(void)
{
    static const char *const fallback[4] = {"--no-pidfd-peer", "--no-passrights", NULL};
#define CASE(name) cmocka_unit_test_setup_teardown(name, start, stop)
#define CASE_FALLBACK(name) \
 cmocka_unit_test_prestate_setup_teardown(name, start, stop, (void *)(uintptr_t)fallback)
    const struct CMUnitTest tests[] = {
        CASE(test_hello_is_welcomed_with_a_board),
        CASE_FALLBACK(test_hello_is_welcomed_with_a_board),
        CASE(test_sessions_have_numbers_that_are_not_used_again),
        CASE(test_other_version_is_refused_with_both_versions),
        CASE(test_other_layout_is_refused),
        CASE(test_name_is_made_printable),
        CASE(test_bad_packets),
        CASE(test_wrong_order_of_frames),
        CASE_FALLBACK(test_descriptor_of_a_client_is_closed_and_ends_it),
        CASE(test_admin_only_looks),
        CASE(test_hangup_without_goodbye_is_a_death),
        CASE_FALLBACK(test_hangup_without_goodbye_is_a_death),
        cmocka_unit_test_setup_teardown(test_shutdown_is_told_to_every_session, start, stop_stopped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
