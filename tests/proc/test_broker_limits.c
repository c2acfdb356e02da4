/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits, and what a refusal says; many sessions that come and go; a client that does not read; the command line.
 */
#include <time.h>

#include "tests/proc/test_broker_raw.h"

static struct raw_broker broker;

static int start(void **state)
{
    watchdog(90, "limits");
    raw_broker_start(&broker, *state, NULL);
    return 0;
}

static int stop(void **state)
{
    raw_broker_stop(&broker);
    assert_false(children_left());
    watchdog(0, NULL);
    return 0;
}

/* The refusal names the limit's setting, the user, and what to do. */
static void expect_refusal(struct raw_client *client, const char *setting)
{
    const Ipc__Control__Failure *failure = raw_expect(client, TYPE(FAILURE));
    char user[32];

    (void)snprintf(user, sizeof(user), "user %u", (unsigned)getuid());
    assert_int_equal(failure->code, -EDQUOT);
    if (!strstr(failure->text, setting) || !strstr(failure->text, user) ||
        !strstr(failure->text, "limit reached"))
        fail_msg("%s", failure->text);
}

static void advertise(struct raw_client *client, const char *topic, uint32_t ring_size)
{
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;

    advertise.topic = (char *)(uintptr_t)topic;
    advertise.ring_size = ring_size;
    raw_send(client, TYPE(ADVERTISE), &advertise.base);
}

static void subscribe(struct raw_client *client, const char *pattern)
{
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;

    subscribe.pattern = (char *)(uintptr_t)pattern;
    raw_send(client, TYPE(SUBSCRIBE), &subscribe.base);
}

static void test_sessions(void **state)
{
    struct raw_client first, second, third;

    raw_hello(&first, &broker, "1");
    raw_hello(&second, &broker, "2");
    raw_connect(&third, &broker);
    raw_hello_as(&third, "3", false);
    expect_refusal(&third, "raise sessions in [limits]");
    assert_int_equal(raw_recv(&third, 0), -1);
    raw_disconnect(&third);
    raw_goodbye(&first);
    raw_hello(&third, &broker, "3");
    raw_goodbye(&third);
    raw_goodbye(&second);
}

static void test_topics_subscriptions_lanes(void **state)
{
    struct raw_client client, looker;

    raw_hello(&client, &broker, "greedy");
    raw_hello(&looker, &broker, "looker");
    raw_advertise(&client, "a", 4096, false);
    raw_advertise(&client, "b", 4096, false);
    advertise(&client, "c", 4096);
    expect_refusal(&client, "raise topics in [limits]");
    subscribe(&looker, ">"); /* two pairings, one is allowed */
    expect_refusal(&looker, "raise lanes in [limits]");
    raw_subscribe(&looker, "a", 0, 1);
    raw_expect(&looker, TYPE(LANE_ADD));
    raw_subscribe(&looker, "none", 0, 0);
    subscribe(&looker, "none.either");
    expect_refusal(&looker, "raise subscriptions in [limits]");
    assert_int_equal(raw_status(&looker)->refused, 3);
    raw_disconnect(&client);
    raw_disconnect(&looker);
}

static void test_bytes(void **state)
{
    struct raw_client client;

    raw_hello(&client, &broker, "large");
    advertise(&client, "a", 1 << 20);
    expect_refusal(&client, "raise segment-bytes in [limits]");
    raw_advertise(&client, "a", 1 << 19, false);
    raw_goodbye(&client);
    raw_hello(&client, &broker, "large again");
    raw_advertise(&client, "a", 1 << 19, false); /* all of it was given back */
    advertise(&client, "b", UINT32_MAX);
    assert_int_equal(((const Ipc__Control__Failure *)raw_expect(&client, TYPE(FAILURE)))->code, -EINVAL);
    raw_goodbye(&client);
}

static void test_connects_per_second(void **state)
{
    struct raw_client clients[6];
    unsigned refused = 0;

    for (unsigned i = 0; i < 6; i++) {
        raw_connect(&clients[i], &broker);
        raw_hello_as(&clients[i], "fast", true);
    }
    for (unsigned i = 0; i < 6; i++) {
        if (raw_recv(&clients[i], 0) == TYPE(FAILURE)) {
            refused++;
            assert_non_null(
                strstr(((const Ipc__Control__Failure *)(const void *)clients[i].frame.message)->text,
                       "connects-per-second"));
        }
        raw_disconnect(&clients[i]);
    }
    assert_true(refused > 0);
}

static void test_large_rings_are_made_aside(void **state)
{
    struct raw_client client, other;

    raw_hello(&client, &broker, "large");
    raw_hello(&other, &broker, "small");
    advertise(&client, "large", 64u << 20);
    raw_advertise(&other, "small", 4096, false);
    raw_expect(&client, TYPE(ADVERTISED));
    assert_int_equal(client.n_fds, 1);
    raw_settle(&client);
    advertise(&client, "larger", 64u << 20);
    raw_disconnect(&client); /* while it is being made */
    while (raw_status(&other)->topics > 1 || raw_status(&other)->sessions > 1 ||
           raw_status(&other)->segment_bytes > (1u << 20))
        continue;
    raw_goodbye(&other);
}

static void test_a_thousand_sessions_come_and_go(void **state)
{
    struct raw_client admin;
    unsigned before, after;
    uint64_t bytes;

    raw_admin(&admin, &broker);
    before = raw_broker_descriptors(&broker);
    bytes = raw_status(&admin)->segment_bytes;
    for (unsigned i = 0; i < 1000; i++) {
        struct raw_client client;
        char topic[32];

        raw_hello(&client, &broker, "short");
        (void)snprintf(topic, sizeof(topic), "s.%u", i % 7);
        raw_subscribe(&client, ">", 0, 0);
        raw_advertise(&client, topic, 4096, false);
        if (i % 2)
            raw_goodbye(&client);
        else
            raw_disconnect(&client);
        while (i % 2 == 0 && raw_status(&admin)->sessions > 1)
            continue;
    }
    raw_settle(&admin);
    after = raw_broker_descriptors(&broker);
    assert_int_equal(after, before);
    assert_int_equal(raw_status(&admin)->segment_bytes, bytes);
    assert_int_equal(raw_status(&admin)->topics, 0);
    raw_goodbye(&admin);
}

/* Its requests stay in its own socket; the others do not notice, and when it reads, every answer is there. */
static void test_who_does_not_read_answers_waits_for_itself(void **state)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    struct raw_client client, other;
    unsigned char packet[256];
    unsigned sent = 0;
    int size = ipc_frame_pack(packet, sizeof(packet), TYPE(STATUS), 1, &status.base);

    raw_hello(&client, &broker, "deaf");
    raw_hello(&other, &broker, "other");
    /* Full, and after two answered requests of another still full: it will not be served before it reads. */
    for (unsigned idle = 0; idle < 2; idle++) {
        while (send(client.fd, packet, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) == size) {
            sent++;
            idle = 0;
        }
        assert_int_equal(errno, EAGAIN);
        (void)raw_status(&other);
    }
    for (; sent > 0; sent--)
        raw_expect(&client, TYPE(STATUS_REPLY));
    assert_int_equal(atomic_load(&client.board->ended), 0);
    raw_disconnect(&other);
    raw_disconnect(&client);
}

/* HELLO to a broker that may have hung up already. */
static bool try_hello(struct raw_client *client)
{
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    unsigned char packet[256];
    int size;

    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.admin = true;
    size = ipc_frame_pack(packet, sizeof(packet), TYPE(HELLO), 1, &hello.base);
    return send(client->fd, packet, (size_t)size, MSG_NOSIGNAL) == size;
}

static void test_out_of_descriptors(void **state)
{
    enum { N = 40 };
    struct raw_client clients[N], admin;
    unsigned refused = 0;

    for (unsigned i = 0; i < N; i++) {
        raw_connect(&clients[i], &broker);
        (void)try_hello(&clients[i]);
    }
    for (unsigned i = 0; i < N; i++) {
        int type = raw_recv(&clients[i], 0);

        refused += type != TYPE(WELCOME);
        if (type == TYPE(FAILURE))
            assert_non_null(
                strstr(((const Ipc__Control__Failure *)(const void *)clients[i].frame.message)->text,
                       "LimitNOFILE"));
    }
    assert_true(refused > 0);
    for (unsigned i = 0; i < N; i++)
        raw_disconnect(&clients[i]);
    for (;;) { /* until the broker noticed that they left */
        raw_connect(&admin, &broker);
        if (try_hello(&admin) && raw_recv(&admin, 0) == TYPE(WELCOME))
            break;
        raw_disconnect(&admin);
    }
    raw_goodbye(&admin);
}

/* Voluntary: it slept. */
static unsigned long switches(void)
{
    char path[64], line[128];
    unsigned long n = 0;
    FILE *file;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)broker.pid);
    file = fopen(path, "re");
    assert_non_null(file);
    while (fgets(line, sizeof(line), file))
        (void)sscanf(line, "voluntary_ctxt_switches: %lu", &n);
    assert_int_equal(fclose(file), 0);
    return n;
}

static int start_tiny(void **state)
{
    int error = dup(STDERR_FILENO), log = memfd_create("log", MFD_CLOEXEC);

    watchdog(90, "limits");
    assert_return_code(dup2(log, STDERR_FILENO), errno);
    raw_broker_start_limited(&broker, NULL, NULL, 64);
    assert_return_code(dup2(error, STDERR_FILENO), errno);
    close(error);
    *state = (void *)(intptr_t)log;
    return 0;
}

static void test_64_descriptors(void **state)
{
    enum { N = 60 };
    const struct rlimit none = {.rlim_cur = 3, .rlim_max = 64}, tiny = {.rlim_cur = 64, .rlim_max = 64};
    struct raw_client clients[N], late;
    bool welcome[N] = {false};
    char text[65536];
    unsigned welcomed = 0, said = 0;
    unsigned long slept;
    time_t since = time(NULL);
    ssize_t size;
    int type;

    for (unsigned i = 0; i < N; i++) {
        raw_connect(&clients[i], &broker);
        (void)try_hello(&clients[i]);
    }
    for (unsigned i = 0; i < N; i++) {
        welcome[i] = raw_recv(&clients[i], 0) == TYPE(WELCOME);
        clients[i].last_id = 1;
        welcomed += welcome[i];
    }
    assert_true(welcomed >= 8 && welcomed < N);
    /* Not even the reserve: nothing can be accepted, those that are there are served, and the broker sleeps. */
    assert_return_code(prlimit(broker.pid, RLIMIT_NOFILE, &none, NULL), errno);
    raw_connect(&late, &broker);
    (void)try_hello(&late);
    slept = switches();
    do { /* a broker that spins never sleeps in between */
        for (unsigned i = 0; i < N; i++)
            if (welcome[i])
                assert_true(raw_status(&clients[i])->sessions > 0);
    } while (switches() <= slept + 20);
    assert_int_equal(raw_recv(&late, MSG_DONTWAIT), 0);
    assert_return_code(prlimit(broker.pid, RLIMIT_NOFILE, &tiny, NULL), errno);
    for (unsigned i = 0; i < N; i++)
        raw_disconnect(&clients[i]);
    type = raw_recv(&late, 0);
    assert_true(type == TYPE(WELCOME) || type == TYPE(FAILURE) || type == -1);
    raw_disconnect(&late);
    for (;;) { /* until the broker noticed that they left */
        raw_connect(&late, &broker);
        if (try_hello(&late) && raw_recv(&late, 0) == TYPE(WELCOME))
            break;
        raw_disconnect(&late);
    }
    raw_goodbye(&late);
    size = pread((int)(intptr_t)*state, text, sizeof(text) - 1, 0);
    close((int)(intptr_t)*state);
    text[size > 0 ? size : 0] = '\0';
    for (const char *at = text; (at = strstr(at, "connections are turned away")); at++)
        said++;
    assert_true(said >= 1 && said <= 2 + (unsigned)(time(NULL) - since) / 10);
}

/* Items with short names are many in a page, and take most when it is unpacked. */
static void test_pages_of_short_names_can_be_unpacked(void **state)
{
    struct raw_client client, admin;
    unsigned found[5] = {0};

    raw_hello(&client, &broker, "");
    raw_admin(&admin, &broker);
    for (unsigned i = 0; i < 400; i++) {
        char topic[8];

        (void)snprintf(topic, sizeof(topic), "%x", i);
        raw_advertise(&client, topic, 4096, false);
    }
    for (unsigned kind = 0; kind < 5; kind++) {
        Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
        const Ipc__Control__Page *page;

        list.kind = (Ipc__Control__ListKind)kind;
        list.pattern = (char *)(uintptr_t) "";
        do {
            raw_send(&admin, TYPE(LIST), &list.base);
            page = raw_expect(&admin, TYPE(PAGE));
            found[kind] += (unsigned)page->n_items;
            list.after = page->next;
        } while (list.after > 0);
    }
    assert_int_equal(found[IPC__CONTROL__LIST_KIND__LIST_TOPICS], 400);
    assert_int_equal(found[IPC__CONTROL__LIST_KIND__LIST_SESSIONS], 2);
    assert_int_equal(found[IPC__CONTROL__LIST_KIND__LIST_USERS], 1);
    raw_disconnect(&client);
    raw_goodbye(&admin);
}

/* A broker that may open few files: fewer than its limits, which it chose from what it had at its start, let in. */
static int start_poor(void **state)
{
    const struct rlimit limit = {.rlim_cur = 40, .rlim_max = 40};

    watchdog(90, "limits");
    raw_broker_start(&broker, NULL, NULL);
    assert_return_code(prlimit(broker.pid, RLIMIT_NOFILE, &limit, NULL), errno);
    return 0;
}

/* Runs ipcd to its end with these arguments. Returns its exit status; *output is what it wrote. */
static int run(const char *const arguments[6], char *output, size_t size)
{
    const char *argv[8] = {getenv("IPCD_BIN")};
    int ends[2];
    size_t used = 0;
    ssize_t n;
    pid_t child;

    for (size_t i = 0; i < 6 && arguments[i]; i++)
        argv[i + 1] = arguments[i];
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    child = fork_child();
    if (child == 0) {
        (void)dup2(ends[1], STDOUT_FILENO);
        (void)dup2(ends[1], STDERR_FILENO);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(ends[1]);
    while (used + 1 < size && (n = read(ends[0], output + used, size - used - 1)) > 0)
        used += (size_t)n;
    output[used] = '\0';
    close(ends[0]);
    return wait_child(child);
}

static void test_check(void **state)
{
    static char output[16384];
    char path[128];
    const char *const check[6] = {"--check", "--config", broker.config, NULL};

    raw_write(broker.config, "[limits]\nsessions = 12\nsegment-bytes = 3M\n");
    assert_int_equal(run(check, output, sizeof(output)), 0);
    assert_non_null(strstr(output, "\nsessions = 12\n"));
    assert_non_null(strstr(output, "\nsegment-bytes = 3M\n"));

    /* What it prints is a configuration that says the same. */
    raw_write(broker.config, output);
    assert_int_equal(run(check, output, sizeof(output)), 0);
    assert_non_null(strstr(output, "\nsessions = 12\n"));

    (void)snprintf(path, sizeof(path), "%s.d", broker.config);
    assert_return_code(mkdir(path, 0700), errno);
    (void)snprintf(path, sizeof(path), "%s.d/10.conf", broker.config);
    raw_write(
        path,
        "[limits]\nsessions = 13\nsesions = 1\nlanes = many\nlanes = 7\n[colour]\n[broker]\nlog-level = loud\n");
    assert_int_equal(run(check, output, sizeof(output)), 1);
    assert_non_null(strstr(output, "10.conf:3: unknown setting 'sesions' in [limits]; there are: sessions"));
    assert_non_null(strstr(output, "10.conf:4: lanes = many: a whole number from 1 to"));
    assert_non_null(strstr(output, "10.conf:5: lanes was set already in line 4"));
    assert_non_null(strstr(output, "10.conf:6: unknown section [colour]"));
    assert_non_null(strstr(output, "10.conf:8: log-level = loud: error, warning"));
    raw_write(path, "[limits]\nsessions = 13\n");
    assert_int_equal(run(check, output, sizeof(output)), 0);
    assert_non_null(strstr(output, "\nsessions = 13\n"));
    (void)unlink(path);
    (void)snprintf(path, sizeof(path), "%s.d", broker.config);
    (void)rmdir(path);
}

static void test_a_second_broker_is_refused_and_a_dead_socket_replaced(void **state)
{
    static char output[4096];
    const char *const again[6] = {"--config", broker.config, "--address", broker.address, NULL};
    struct raw_broker second = broker;
    struct raw_client client;

    assert_int_equal(run(again, output, sizeof(output)), 1);
    assert_non_null(strstr(output, "another broker serves"));
    assert_return_code(kill(broker.pid, SIGKILL), errno);
    assert_int_equal(wait_child(broker.pid), 128 + SIGKILL);
    assert_int_equal(access(broker.address, F_OK), 0); /* left over */
    broker.pid = fork_child();
    if (broker.pid == 0) {
        char notify[96];

        (void)snprintf(notify, sizeof(notify), "%s/notify", second.folder);
        (void)setenv("NOTIFY_SOCKET", notify, 1);
        execl(getenv("IPCD_BIN"), "ipcd", "--config", second.config, "--address", second.address,
              "--log-level", "error", NULL);
        _exit(127);
    }
    raw_wait_notify(&broker, "READY=1");
    raw_hello(&client, &broker, "after");
    raw_goodbye(&client);
}

int main(void)
{
#define CASE(name, config) \
 cmocka_unit_test_prestate_setup_teardown(name, start, stop, (void *)(uintptr_t)(config))
    const struct CMUnitTest tests[] = {
        CASE(test_sessions, "[limits]\nsessions = 2\n"),
        CASE(test_topics_subscriptions_lanes, "[limits]\ntopics = 2\nsubscriptions = 2\nlanes = 1\n"),
        CASE(test_bytes, "[limits]\nsegment-bytes = 1M\n"),
        CASE(test_connects_per_second, "[limits]\nconnects-per-second = 1\n"),
        CASE(test_large_rings_are_made_aside, NULL),
        CASE(test_a_thousand_sessions_come_and_go, NULL),
        CASE(test_who_does_not_read_answers_waits_for_itself, NULL),
        cmocka_unit_test_setup_teardown(test_out_of_descriptors, start_poor, stop),
        cmocka_unit_test_setup_teardown(test_64_descriptors, start_tiny, stop),
        CASE(test_pages_of_short_names_can_be_unpacked, NULL),
        CASE(test_check, NULL),
        CASE(test_a_second_broker_is_refused_and_a_dead_socket_replaced, NULL),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
