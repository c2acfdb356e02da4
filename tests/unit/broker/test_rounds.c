/* SPDX-License-Identifier: Apache-2.0
 *
 * The core in this process, its loop driven round by round: what one user does, however much, delays the answers to
 * another by a bounded number of rounds, each with a bounded amount of work. Users are made by seteuid() at the connect,
 * which is what the kernel reports to the core.
 */
#include <sys/epoll.h>
#include <sys/stat.h>

#include "tests/proc/test_broker_raw.h"

#include "broker/core/control/access.h"
#include "broker/core/control/budget.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/recover.h"
#include "broker/core/control/registry.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"

#define HOSTILE    1001u
#define INNOCENT   1002u
#define SESSIONS   150u /* of the hostile user */
#define TOPICS     3000u
/* The loop takes 64 events in a round: what is ready has its turn within so many. A connect needs two. */
#define ROUNDS_MAX (2 * ((SESSIONS + 2u + 63u) / 64u))

static struct config config;
static struct broker *core;
static struct listener listener;
static struct raw_broker place;
static struct raw_client hostile[SESSIONS], innocent;

static void connect_as(struct raw_client *client, uid_t uid)
{
    assert_return_code(seteuid(uid), errno);
    raw_connect(client, &place);
    assert_return_code(seteuid(0), errno);
}

/* One round; whatever is sent was there before, so that it never sleeps for long. */
static void step(void)
{
    struct epoll_event event;

    if (epoll_wait(core->epoll_fd, &event, 1, 0) == 1 || !list_empty(&core->dirty))
        assert_int_equal(loop_round(core), 0);
}

/* Rounds until that answer is there. */
static unsigned rounds_until(struct raw_client *client, unsigned type)
{
    uint64_t before = core->round;
    int got;

    while ((got = raw_recv(client, MSG_DONTWAIT)) == 0 ||
           (got >= (int)TYPE(READER_ADD) && got <= (int)TYPE(NUDGE) && (int)type != got))
        step();
    if (got == TYPE(FAILURE) && type != TYPE(FAILURE))
        print_error("%s\n", ((const Ipc__Control__Failure *)(const void *)client->frame.message)->text);
    assert_int_equal(got, type);
    return (unsigned)(core->round - before);
}

static int start(void **state)
{
    char error[256], why[POLICY_WHY_SIZE];
    struct policy_rule *rule;

    watchdog(90, "rounds");
    raw_folder(&place);
    assert_return_code(chmod(place.folder, 0711), errno);
    log_init("ipcd", LOG_ERR);
    config_init(&config);
    rule = policy_rule_of(&config.policy, "everybody");
    assert_non_null(rule);
    assert_int_equal(policy_setting_parse(rule, policy_setting_find("who"), "anyone", why), 0);
    assert_int_equal(policy_setting_parse(rule, policy_setting_find("allow"), "all", why), 0);
    config_resolve(&config, 8192);
    listener = (struct listener)LISTENER_INIT;
    assert_int_equal(listener_open(&listener, place.address, 0666, error, sizeof(error)), 0);
    assert_int_equal(
        broker_new(&core, &(struct broker_options){.config = &config, .guardian = "", .peer_pidfd = true}),
        0);
    core->listen_fd = listener.fd;
    assert_int_equal(recover(core), 0);
    assert_int_equal(loop_add(core, listener.fd, EPOLLIN, LOOP_LISTEN, 0), 0);
    return 0;
}

static void hello(struct raw_client *client, uid_t uid)
{
    connect_as(client, uid);
    raw_hello_as(client, "round by round", false);
    (void)rounds_until(client, TYPE(WELCOME));
}

static int stop(void **state)
{
    for (unsigned i = 0; i < SESSIONS; i++)
        if (hostile[i].fd > 0)
            raw_disconnect(&hostile[i]);
    if (innocent.fd > 0)
        raw_disconnect(&innocent);
    while (!list_empty(&core->sessions) || !list_empty(&core->refused))
        step();
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        assert_int_equal(core->quota.used[i], 0);
        assert_int_equal(core->quota.n_holders[i], 0);
    }
    assert_int_equal(core->quota.usages.count, 0);
    listener_close(&listener);
    core = broker_free(core);
    config_done(&config);
    close(place.notify_fd);
    snprintf(place.config, sizeof(place.config), "%s/notify", place.folder);
    (void)unlink(place.config);
    assert_return_code(rmdir(place.folder), errno);
    watchdog(0, NULL);
    return 0;
}

static void advertise(struct raw_client *client, const char *topic)
{
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;

    message.topic = (char *)(uintptr_t)topic;
    message.ring_size = 4096;
    raw_send(client, TYPE(ADVERTISE), &message.base);
}

static void subscribe(struct raw_client *client, const char *pattern)
{
    Ipc__Control__Subscribe message = IPC__CONTROL__SUBSCRIBE__INIT;

    message.pattern = (char *)(uintptr_t)pattern;
    raw_send(client, TYPE(SUBSCRIBE), &message.base);
}

static void list(struct raw_client *client, Ipc__Control__ListKind kind, uint64_t after, const char *pattern)
{
    Ipc__Control__List message = IPC__CONTROL__LIST__INIT;

    message.kind = kind;
    message.after = after;
    message.pattern = (char *)(uintptr_t)pattern;
    raw_send(client, TYPE(LIST), &message.base);
}

/* Send it until the socket is full. */
static void fill(struct raw_client *client, unsigned type, const ProtobufCMessage *message)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, 1, message);

    assert_true(size > 0);
    while (send(client->fd, packet, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) == size)
        continue;
}

static void gather(void)
{
    for (unsigned i = 0; i < SESSIONS; i++)
        hello(&hostile[i], HOSTILE);
    for (unsigned i = 0; i < TOPICS; i++) {
        char topic[32];

        (void)snprintf(topic, sizeof(topic), "t.%u", i);
        advertise(&hostile[i % SESSIONS], topic);
        (void)rounds_until(&hostile[i % SESSIONS], TYPE(ADVERTISED));
    }
}

/* Each kind of request that makes the core look at much, from every session at once, answers never read. */
static void flood(void)
{
    Ipc__Control__Subscribe wild = IPC__CONTROL__SUBSCRIBE__INIT, none = IPC__CONTROL__SUBSCRIBE__INIT;
    Ipc__Control__List all = IPC__CONTROL__LIST__INIT, far = IPC__CONTROL__LIST__INIT;
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;

    wild.pattern = (char *)(uintptr_t) ">";
    none.pattern = (char *)(uintptr_t) "*.none";
    all.kind = far.kind = IPC__CONTROL__LIST_KIND__LIST_TOPICS;
    all.pattern = (char *)(uintptr_t) "*.none";
    far.after = UINT64_MAX / 2;
    for (unsigned i = 0; i < SESSIONS; i++) {
        switch (i % 5) {
        case 0:
            fill(&hostile[i], TYPE(SUBSCRIBE), &wild.base);
            break;
        case 1:
            fill(&hostile[i], TYPE(SUBSCRIBE), &none.base);
            break;
        case 2:
            fill(&hostile[i], TYPE(LIST), &all.base);
            break;
        case 3:
            fill(&hostile[i], TYPE(LIST), &far.base);
            break;
        default:
            fill(&hostile[i], TYPE(STATUS), &status.base);
        }
    }
}

static void test_a_flood_delays_nobody_else(void **state)
{
    struct user *user = quota_user(&core->quota, HOSTILE);
    unsigned worst = 0;

    config.per_user[LIMIT_LANES] = TOPICS / 2;
    gather();
    for (unsigned round = 0; round < 50; round++) {
        char topic[32];
        unsigned took[4];

        flood();
        connect_as(&innocent, INNOCENT);
        raw_hello_as(&innocent, "innocent", false);
        took[0] = rounds_until(&innocent, TYPE(WELCOME));
        (void)snprintf(topic, sizeof(topic), "i.%u", round);
        flood();
        advertise(&innocent, topic);
        took[1] = rounds_until(&innocent, TYPE(ADVERTISED));
        flood();
        subscribe(&innocent, "i.*");
        took[2] = rounds_until(&innocent, TYPE(SUBSCRIBED));
        flood();
        list(&innocent, IPC__CONTROL__LIST_KIND__LIST_USERS, 0, "");
        took[3] = rounds_until(&innocent, TYPE(PAGE));
        for (unsigned i = 0; i < 4; i++)
            worst = took[i] > worst ? took[i] : worst;
        raw_disconnect(&innocent);
        /* Some answers are read, so that the next requests are worked on. */
        for (unsigned i = 0; i < SESSIONS; i++)
            for (unsigned n = 0; n < 4; n++)
                (void)raw_recv(&hostile[i], MSG_DONTWAIT);
    }
    print_message("at most %u rounds; the flood owes %lld\n", worst, (long long)-user->work_left);
    assert_true(worst <= ROUNDS_MAX);
}

/* What a user's requests cost is paid by its rounds. */
static void test_a_round_is_short(void **state)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    uint64_t before, most = 0;

    for (unsigned i = 0; i < SESSIONS; i++)
        hello(&hostile[i], HOSTILE);
    for (unsigned i = 0; i < SESSIONS; i++)
        fill(&hostile[i], TYPE(STATUS), &status.base);
    for (unsigned round = 0; round < 200; round++) {
        before = core->requests;
        step();
        most = core->requests - before > most ? core->requests - before : most;
    }
    print_message("at most %llu requests in a round\n", (unsigned long long)most);
    assert_true(most > 0 && most <= WORK_PER_ROUND / WORK_FRAME);
}

/* A subscription that looks at every topic is paid for afterwards: no second one before. */
static void test_a_walk_is_paid_for(void **state)
{
    struct user *user;
    uint64_t before;

    gather();
    user = quota_user(&core->quota, HOSTILE);
    while (user->work_left < (int64_t)WORK_PER_ROUND) /* whatever that cost */
        assert_true(budget_left(core, (core->round++, user)) || user->work_left <= 0);
    subscribe(&hostile[0], "*.none");
    subscribe(&hostile[0], "*.none.either");
    (void)rounds_until(&hostile[0], TYPE(SUBSCRIBED));
    assert_true(user->work_left <= (int64_t)(WORK_PER_ROUND - TOPICS - WORK_FRAME));
    (void)rounds_until(&hostile[0], TYPE(SUBSCRIBED));
    assert_true(user->work_left < 0);
    before = core->round;
    raw_send(&hostile[0], TYPE(STATUS), &(const Ipc__Control__Status)IPC__CONTROL__STATUS__INIT.base);
    (void)rounds_until(&hostile[0], TYPE(STATUS_REPLY));
    assert_true(core->round - before >= 1);
}

/* A page looks at a bounded number of records, and goes on after them even if it shows none. */
static void test_a_listing_goes_in_slices(void **state)
{
    uint64_t after = 0, pages = 0, found = 0;

    gather();
    hello(&innocent, INNOCENT);
    do {
        const Ipc__Control__Page *page;

        list(&innocent, IPC__CONTROL__LIST_KIND__LIST_TOPICS, after, "t.2999");
        (void)rounds_until(&innocent, TYPE(PAGE));
        page = (const Ipc__Control__Page *)(const void *)innocent.frame.message;
        found += page->n_items;
        assert_true(page->next == 0 || page->next > after);
        after = page->next;
        pages++;
    } while (after > 0);
    assert_int_equal(found, 1);
    assert_true(pages >= 3);
}

/* For want of memory, say, when the next ipcd applies its policy: nothing is allowed to whom it cannot know. */
static void test_whose_groups_cannot_be_read_is_ended(void **state)
{
    struct session *session;

    hello(&innocent, INNOCENT);
    hello(&hostile[0], HOSTILE);
    session = list_entry(core->sessions.next, struct session, link);
    assert_int_equal(session->peer.uid, INNOCENT);
    access_revoke(core);
    assert_int_equal(session->state, SESSION_OPEN);
    session->groups_known = false;
    close(session->fd);
    session->fd = open("/dev/null", O_RDWR | O_CLOEXEC); /* which is asked for them in vain */
    access_revoke(core);
    assert_int_equal(session->state, SESSION_ENDED);
    assert_int_equal(list_entry(core->sessions.next, struct session, link)->peer.uid, HOSTILE);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        CASE(test_a_round_is_short),
        CASE(test_a_walk_is_paid_for),
        CASE(test_a_listing_goes_in_slices),
        CASE(test_a_flood_delays_nobody_else),
        CASE(test_whose_groups_cannot_be_read_is_ended),
    };

    if (geteuid() != 0) {
        print_message("skipped: only root can connect as other users\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
