/* SPDX-License-Identifier: Apache-2.0
 *
 * The control side of queues, over a plain socket: creating, changing, removing them, ports, what is refused and how,
 * and all of that while ipcd is killed.
 */
#include <sched.h>
#include <time.h>

#include "libipc/lane/segment.h"
#include "proto/queue.h"
#include "tests/proc/test_broker_raw.h"
#include "tests/support/guarded.h"

static struct raw_broker broker;
static struct guarded guarded;
static bool in_child; /* whose failed check ends in the teardown, too */
static const char *const quiet[] = {"--log-level", "error", NULL};

static int start(void **state)
{
    watchdog(90, "queues");
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

static int start_guarded(void **state)
{
    watchdog(180, "queues, guarded");
    guarded_start(&guarded, quiet);
    (void)snprintf(broker.address, sizeof(broker.address), "%s", guarded.address);
    return 0;
}

static int stop_guarded(void **state)
{
    if (in_child)
        return 0;
    guarded_stop(&guarded);
    watchdog(0, NULL);
    return 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

/* The answer to the last request: one that comes twice, after ipcd was killed, is passed over, and so are notices. */
static int answer(struct raw_client *client)
{
    int type;

    do
        type = raw_recv(client, 0);
    while (type > 0 && client->frame.id != client->last_id);
    return type;
}

#define EXPECT_DONE(client)                                                                               \
 do {                                                                                                     \
  int type_ = answer(client);                                                                             \
  if (type_ == TYPE(FAILURE))                                                                             \
   fail_msg("failure: %s", ((const Ipc__Control__Failure *)(const void *)(client)->frame.message)->text); \
  assert_int_equal(type_, TYPE(DONE));                                                                    \
 } while (0)

static void expect_failure(struct raw_client *client, int code, const char *said)
{
    const Ipc__Control__Failure *failure;

    assert_int_equal(answer(client), TYPE(FAILURE));
    failure = (const Ipc__Control__Failure *)(const void *)client->frame.message;
    if (failure->code != code || !strstr(failure->text, said))
        fail_msg("%d: %s", failure->code, failure->text);
}

/* Settings from their text: "ttl=1s bytes-max=1M". */
static void set_text(Ipc__Control__QueueSettings *settings, const char *text)
{
    static char copy[512];
    char why[IPC_QUEUE_TEXT_SIZE];

    ipc__control__queue_settings__init(settings);
    (void)snprintf(copy, sizeof(copy), "%s", text);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        char *value = strchr(word, '=');

        *value++ = '\0';
        if (ipc_queue_setting_parse(ipc_queue_setting_find(word), value, settings, why) < 0)
            fail_msg("%s", why);
    }
}

static void create(struct raw_client *client, const char *name, const char *text)
{
    Ipc__Control__QueueCreate create = IPC__CONTROL__QUEUE_CREATE__INIT;
    Ipc__Control__QueueSettings settings;

    set_text(&settings, text);
    create.queue = (char *)(uintptr_t)name;
    create.settings = &settings;
    raw_send(client, TYPE(QUEUE_CREATE), &create.base);
}

static void set(struct raw_client *client, const char *name, const char *text)
{
    Ipc__Control__QueueSet set = IPC__CONTROL__QUEUE_SET__INIT;
    Ipc__Control__QueueSettings settings;

    set_text(&settings, text);
    set.queue = (char *)(uintptr_t)name;
    set.settings = &settings;
    raw_send(client, TYPE(QUEUE_SET), &set.base);
}

static void drop(struct raw_client *client, const char *name, bool if_empty)
{
    Ipc__Control__QueueRemove remove = IPC__CONTROL__QUEUE_REMOVE__INIT;

    remove.queue = (char *)(uintptr_t)name;
    remove.if_empty = if_empty;
    raw_send(client, TYPE(QUEUE_REMOVE), &remove.base);
}

static void open_port(struct raw_client *client, const char *name, Ipc__Control__Role role,
                      uint32_t ring_size, bool bell)
{
    Ipc__Control__PortOpen open = IPC__CONTROL__PORT_OPEN__INIT;

    open.queue = (char *)(uintptr_t)name;
    open.role = role;
    open.ring_size = ring_size;
    open.bell = bell;
    raw_send(client, TYPE(PORT_OPEN), &open.base);
}

static const Ipc__Control__PortOpened *opened(struct raw_client *client)
{
    int type = answer(client);

    if (type == TYPE(FAILURE))
        fail_msg("failure: %s", ((const Ipc__Control__Failure *)(const void *)client->frame.message)->text);
    assert_int_equal(type, TYPE(PORT_OPENED));
    return (const Ipc__Control__PortOpened *)(const void *)client->frame.message;
}

static void close_port(struct raw_client *client, uint64_t port)
{
    Ipc__Control__PortClose close = IPC__CONTROL__PORT_CLOSE__INIT;

    close.port = port;
    raw_send(client, TYPE(PORT_CLOSE), &close.base);
}

static void ask_bell(struct raw_client *client, uint64_t port)
{
    Ipc__Control__PortBell bell = IPC__CONTROL__PORT_BELL__INIT;

    bell.port = port;
    raw_send(client, TYPE(PORT_BELL), &bell.base);
}

static const Ipc__Control__Page *list(struct raw_client *client, Ipc__Control__ListKind kind)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;

    list.kind = kind;
    raw_send(client, TYPE(LIST), &list.base);
    assert_int_equal(answer(client), TYPE(PAGE));
    return (const Ipc__Control__Page *)(const void *)client->frame.message;
}

#define LIST_QUEUES IPC__CONTROL__LIST_KIND__LIST_QUEUES
#define LIST_PORTS  IPC__CONTROL__LIST_KIND__LIST_PORTS
#define PRODUCER    IPC__CONTROL__ROLE__PRODUCER
#define CONSUMER    IPC__CONTROL__ROLE__CONSUMER

/* The queue's row; lives until the next frame. */
static const Ipc__Control__Item *row(struct raw_client *client, const char *name)
{
    const Ipc__Control__Page *page = list(client, LIST_QUEUES);

    for (size_t i = 0; i < page->n_items; i++)
        if (strcmp(page->items[i]->name, name) == 0)
            return page->items[i];
    return NULL;
}

static void expect_setting(const Ipc__Control__Item *item, const char *name, const char *value)
{
    char text[IPC_QUEUE_TEXT_SIZE];

    assert_non_null(item);
    ipc_queue_setting_print(ipc_queue_setting_find(name), item->settings, text);
    assert_string_equal(text, value);
}

/* ---- a broker alone ---------------------------------------------------------------------------------------- */

static void test_create_set_remove(void **state)
{
    struct raw_client client, admin;
    const Ipc__Control__Item *item;

    raw_hello(&client, &broker, "maker");
    raw_admin(&admin, &broker);
    create(&client, "jobs.dead", "");
    EXPECT_DONE(&client);
    create(&client, "jobs", "ttl=36h lease=30s dead-letter=jobs.dead full=dead-letter class=best-effort");
    EXPECT_DONE(&client);
    item = row(&admin, "jobs");
    expect_setting(item, "ttl", "36h");
    expect_setting(item, "lease", "30s");
    expect_setting(item, "dead-letter", "jobs.dead");
    expect_setting(item, "full", "dead-letter");
    expect_setting(item, "class", "best-effort");
    expect_setting(item, "bytes-max", "64M");
    assert_int_equal(item->peer->session, client.session);
    assert_int_equal(item->peer->uid, getuid());

    /* Only what is given changes; whoever may looks on through a tool. */
    set(&admin, "jobs", "lease=0 paused=yes attempts-max=5");
    EXPECT_DONE(&admin);
    item = row(&admin, "jobs");
    expect_setting(item, "lease", "0");
    expect_setting(item, "paused", "yes");
    expect_setting(item, "attempts-max", "5");
    expect_setting(item, "ttl", "36h");
    expect_setting(item, "dead-letter", "jobs.dead");

    drop(&admin, "jobs.dead", false);
    expect_failure(&admin, -EBUSY, "queue jobs sends its dead letters there");
    drop(&admin, "jobs", true);
    EXPECT_DONE(&admin);
    drop(&admin, "jobs.dead", false);
    EXPECT_DONE(&admin);
    assert_int_equal(list(&admin, LIST_QUEUES)->n_items, 0);
    raw_goodbye(&client);
    raw_goodbye(&admin);
}

static void test_what_is_refused(void **state)
{
    Ipc__Control__QueueCreate again = IPC__CONTROL__QUEUE_CREATE__INIT;
    Ipc__Control__QueueDo wish = IPC__CONTROL__QUEUE_DO__INIT;
    struct raw_client client, admin;

    raw_hello(&client, &broker, "wrong");
    raw_admin(&admin, &broker);
    create(&client, "a..b", "");
    expect_failure(&client, -EINVAL, "empty level");
    create(&client, "*", "");
    expect_failure(&client, -EINVAL, "patterns");
    create(&client, "q", "dead-letter=nowhere");
    expect_failure(&client, -ENOENT, "there is no queue nowhere: create it first");
    create(&client, "q", "full=dead-letter");
    expect_failure(&client, -EINVAL, "set dead-letter, too");
    create(&client, "q", "bytes-max=64K message-size-max=1M");
    expect_failure(&client, -EINVAL, "less than one message");
    create(&client, "q", "message-size-max=1K");
    EXPECT_DONE(&client);
    create(&client, "q", "");
    expect_failure(&client, -EEXIST, "ipcctl queue set");
    again.queue = (char[]){"q"};
    again.may_exist = true;
    raw_send(&client, TYPE(QUEUE_CREATE), &again.base);
    EXPECT_DONE(&client);
    set(&client, "q", "message-size-max=2K");
    expect_failure(&client, -EINVAL, "message-size-max of queue q is 1K and cannot change");
    set(&client, "q", "message-size-max=1K paused=yes");
    EXPECT_DONE(&client);
    set(&client, "q", "dead-letter=q");
    expect_failure(&client, -ELOOP, "come back");
    create(&client, "r", "dead-letter=q");
    EXPECT_DONE(&client);
    create(&client, "s", "dead-letter=r");
    EXPECT_DONE(&client);
    set(&client, "q", "dead-letter=s");
    expect_failure(&client, -ELOOP, "come back");
    set(&client, "none", "ttl=1s");
    expect_failure(&client, -ENOENT, "there is no queue none");
    drop(&client, "none", false);
    expect_failure(&client, -ENOENT, "there is no queue none");

    open_port(&client, "none", PRODUCER, 0, false);
    expect_failure(&client, -ENOENT, "ipcctl queue create");
    open_port(&client, "q", (Ipc__Control__Role)2, 0, false);
    expect_failure(&client, -EINVAL, "a producer or a consumer");
    open_port(&client, "q", PRODUCER, UINT32_MAX, false);
    expect_failure(&client, -EINVAL, "ring-size-max");
    open_port(&admin, "q", PRODUCER, 0, false);
    expect_failure(&admin, -EPERM, "admin");
    close_port(&client, 77);
    expect_failure(&client, -ENOENT, "no port 77");
    ask_bell(&client, 77);
    expect_failure(&client, -ENOENT, "no port 77");

    wish.queue = (char[]){"q"};
    wish.operation = IPC__CONTROL__QUEUE_OPERATION__MOVE;
    wish.target = (char[]){"none"};
    raw_send(&client, TYPE(QUEUE_DO), &wish.base);
    expect_failure(&client, -ENOENT, "no queue none to move to");
    wish.target = (char[]){"q"};
    raw_send(&client, TYPE(QUEUE_DO), &wish.base);
    expect_failure(&client, -EINVAL, "the queue that they are in");
    wish.operation = (Ipc__Control__QueueOperation)9;
    raw_send(&client, TYPE(QUEUE_DO), &wish.base);
    expect_failure(&client, -EINVAL, "operation 9");
    raw_goodbye(&client);
    raw_goodbye(&admin);
}

static void test_operations_on_an_empty_queue(void **state)
{
    Ipc__Control__QueueDo wish = IPC__CONTROL__QUEUE_DO__INIT;
    struct raw_client client;

    raw_hello(&client, &broker, "operator");
    create(&client, "a", "");
    EXPECT_DONE(&client);
    create(&client, "b", "");
    EXPECT_DONE(&client);
    wish.queue = (char[]){"a"};
    wish.target = (char[]){"b"};
    for (int operation = 0; operation <= IPC__CONTROL__QUEUE_OPERATION__REQUEUE; operation++) {
        const Ipc__Control__QueueDid *did;

        wish.operation = (Ipc__Control__QueueOperation)operation;
        raw_send(&client, TYPE(QUEUE_DO), &wish.base);
        assert_int_equal(answer(&client), TYPE(QUEUE_DID));
        did = (const Ipc__Control__QueueDid *)(const void *)client.frame.message;
        assert_int_equal(did->done, 0);
        assert_int_equal(did->next, 0);
        assert_int_equal(did->n_messages, 0);
    }
    raw_goodbye(&client);
}

/* Sent at once: each has its answer, whoever was first, and the queue is gone. */
static void test_two_remove_at_once(void **state)
{
    struct raw_client one, two;
    int left, right;

    raw_hello(&one, &broker, "1");
    raw_hello(&two, &broker, "2");
    for (unsigned i = 0; i < 50; i++) {
        create(&one, "q", "");
        EXPECT_DONE(&one);
        drop(&one, "q", i % 2);
        drop(&two, "q", i % 3);
        left = answer(&one);
        right = answer(&two);
        assert_true(left == TYPE(DONE) || right == TYPE(DONE));
        assert_true(left == TYPE(DONE) || left == TYPE(FAILURE));
        assert_true(right == TYPE(DONE) || right == TYPE(FAILURE));
        assert_null(row(&one, "q"));
    }
    raw_goodbye(&one);
    raw_goodbye(&two);
}

static void check_segment(int fd, uint32_t ring_size, bool writable)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    struct stat st;

    assert_return_code(fstat(fd, &st), errno);
    assert_int_equal(st.st_size, lane_segment_size(IPC_SEGMENT_PORT, ring_size));
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, writable ? O_RDWR : O_RDONLY);
    assert_int_equal(fcntl(fd, F_GET_SEALS) & seals, seals);
}

static void test_ports(void **state)
{
    const Ipc__Control__PortOpened *port;
    const Ipc__Control__Page *page;
    const Ipc__Control__Item *item;
    struct raw_client client, admin;
    uint64_t producer, consumer;
    unsigned before;

    raw_hello(&client, &broker, "user");
    raw_admin(&admin, &broker);
    create(&client, "q", "message-size-max=100K");
    EXPECT_DONE(&client);
    raw_settle(&admin);
    before = raw_broker_descriptors(&broker);

    open_port(&client, "q", PRODUCER, 4096, false);
    port = opened(&client);
    producer = port->port;
    assert_int_equal(port->session_ring_size, 262144); /* two of the largest fit in */
    assert_int_equal(port->core_ring_size, IPC_VERDICT_RING_SIZE);
    assert_int_equal(port->settings->message_size_max, 102400);
    assert_int_equal(client.n_fds, 3);
    check_segment(client.fds[0], port->session_ring_size, true);
    check_segment(client.fds[1], port->core_ring_size, false);

    open_port(&client, "q", CONSUMER, 1 << 20, true);
    port = opened(&client);
    consumer = port->port;
    assert_true(consumer != producer);
    assert_int_equal(port->session_ring_size, IPC_ACK_RING_SIZE);
    assert_int_equal(port->core_ring_size, 1 << 20);
    assert_int_equal(port->prefetch, IPC_PREFETCH_DEFAULT);
    assert_int_equal(client.n_fds, 4);
    check_segment(client.fds[0], port->session_ring_size, true);
    check_segment(client.fds[1], port->core_ring_size, false);
    ask_bell(&client, consumer);
    expect_failure(&client, -EEXIST, "its bell");
    ask_bell(&client, producer);
    EXPECT_DONE(&client);
    assert_int_equal(client.n_fds, 1);

    item = row(&admin, "q");
    assert_int_equal(item->producers, 1);
    assert_int_equal(item->consumers, 1);
    page = list(&admin, LIST_PORTS);
    assert_int_equal(page->n_items, 2);
    assert_int_equal(page->items[0]->id, producer);
    assert_int_equal(page->items[1]->role, CONSUMER);
    assert_int_equal(page->items[1]->prefetch, IPC_PREFETCH_DEFAULT);
    assert_int_equal(page->items[1]->peer->session, client.session);
    assert_string_equal(page->items[1]->peer->name, "user");
    /* Three for each port, and the bells. What was handed out is not kept. */
    assert_int_equal(raw_broker_descriptors(&broker), before + 8);

    close_port(&client, producer);
    EXPECT_DONE(&client);
    close_port(&client, producer);
    expect_failure(&client, -ENOENT, "no port");
    raw_goodbye(&client); /* ends the other */
    while (list(&admin, LIST_PORTS)->n_items > 0)
        sched_yield();
    item = row(&admin, "q");
    assert_int_equal(item->producers, 0);
    assert_int_equal(item->consumers, 0);
    drop(&admin, "q", true);
    EXPECT_DONE(&admin);
    raw_goodbye(&admin);
}

/* A large ring is allocated by the worker. */
static void test_large_port(void **state)
{
    struct raw_client client, admin;

    raw_hello(&client, &broker, "large");
    raw_admin(&admin, &broker);
    create(&client, "q", "");
    EXPECT_DONE(&client);
    open_port(&client, "q", PRODUCER, 32 << 20, false);
    assert_int_equal(opened(&client)->session_ring_size, 32 << 20);
    open_port(&client, "q", CONSUMER, 32 << 20, false);
    assert_int_equal(opened(&client)->core_ring_size, 32 << 20);
    /* The queue may go while the worker is at it. */
    open_port(&client, "q", CONSUMER, 128 << 20, false);
    drop(&admin, "q", false);
    EXPECT_DONE(&admin);
    if (answer(&client) == TYPE(FAILURE))
        assert_int_equal(((const Ipc__Control__Failure *)(const void *)client.frame.message)->code, -ENOENT);
    /* And so may the session. */
    create(&client, "q", "");
    EXPECT_DONE(&client);
    open_port(&client, "q", CONSUMER, 128 << 20, false);
    raw_disconnect(&client);
    while (list(&admin, LIST_PORTS)->n_items > 0 || raw_status(&admin)->sessions > 1)
        sched_yield();
    raw_goodbye(&admin);
}

static void test_port_of_a_removed_queue_ends(void **state)
{
    const Ipc__Control__PortEnd *end;
    struct raw_client client, admin;
    uint64_t port;

    raw_hello(&client, &broker, "user");
    raw_admin(&admin, &broker);
    create(&admin, "q", "");
    EXPECT_DONE(&admin);
    open_port(&client, "q", CONSUMER, 0, false);
    port = opened(&client)->port;
    drop(&admin, "q", false);
    EXPECT_DONE(&admin);
    end = raw_expect(&client, TYPE(PORT_END));
    assert_int_equal(end->port, port);
    assert_int_equal(end->reason, IPC_REASON_CLOSED);
    assert_non_null(strstr(end->text, "removed"));
    assert_int_equal(list(&admin, LIST_PORTS)->n_items, 1);
    close_port(&client, port);
    EXPECT_DONE(&client);
    assert_int_equal(list(&admin, LIST_PORTS)->n_items, 0);
    raw_goodbye(&client);
    raw_goodbye(&admin);
}

static void test_limits(void **state)
{
    struct raw_client client;

    raw_hello(&client, &broker, "greedy");
    create(&client, "a", "");
    EXPECT_DONE(&client);
    create(&client, "b", "");
    EXPECT_DONE(&client);
    create(&client, "c", "");
    expect_failure(&client, -EDQUOT, "queues");
    drop(&client, "b", false);
    EXPECT_DONE(&client);
    create(&client, "c", "");
    EXPECT_DONE(&client);
    open_port(&client, "a", PRODUCER, 0, false);
    (void)opened(&client);
    open_port(&client, "a", CONSUMER, 0, false);
    expect_failure(&client, -EDQUOT, "ports");
    raw_goodbye(&client);
}

static void test_configured(void **state)
{
    struct raw_client admin;

    raw_admin(&admin, &broker);
    assert_int_equal(list(&admin, LIST_QUEUES)->n_items, 2);
    expect_setting(row(&admin, "jobs"), "dead-letter", "jobs.dead");
    expect_setting(row(&admin, "jobs"), "full", "dead-letter");
    expect_setting(row(&admin, "jobs"), "ttl", "36h");
    expect_setting(row(&admin, "jobs.dead"), "bytes-max", "1M");
    raw_goodbye(&admin);
}

/* An admin session, and how many descriptors are kept with it: whoever was there before is gone when it is answered. */
static unsigned kept_with(struct raw_client *admin)
{
    raw_admin(admin, &broker);
    (void)raw_status(admin);
    return guarded_kept(&guarded);
}

/* ---- with ipcd-run, and an ipcd that is killed --------------------------------------------------------------- */

static void test_restart_keeps_queues_and_ports(void **state)
{
    struct raw_client client, admin;
    uint64_t port, other;
    unsigned before = kept_with(&admin);

    raw_hello(&client, &broker, "user");
    create(&client, "q", "");
    EXPECT_DONE(&client);
    create(&client, "best", "class=best-effort");
    EXPECT_DONE(&client);
    set(&client, "q", "ttl=1m dead-letter=best paused=yes");
    EXPECT_DONE(&client);
    open_port(&client, "q", PRODUCER, 0, true);
    port = opened(&client)->port;
    open_port(&client, "q", CONSUMER, 0, false);
    other = opened(&client)->port;
    guarded_kill_ipcd(&guarded);

    ask_bell(&client, port);
    expect_failure(&client, -EEXIST, "its bell");
    ask_bell(&client, other);
    EXPECT_DONE(&client);
    guarded_kill_ipcd(&guarded);
    expect_setting(row(&admin, "q"), "ttl", "1m");
    expect_setting(row(&admin, "q"), "dead-letter", "best");
    expect_setting(row(&admin, "q"), "paused", "yes");
    expect_setting(row(&admin, "best"), "class", "best-effort");
    assert_int_equal(row(&admin, "q")->producers, 1);
    assert_int_equal(row(&admin, "q")->consumers, 1);
    assert_int_equal(list(&admin, LIST_PORTS)->n_items, 2);

    /* A queue is removed: its ports are told, and told again by the next. */
    drop(&admin, "q", false);
    EXPECT_DONE(&admin);
    (void)raw_expect(&client, TYPE(PORT_END));
    (void)raw_expect(&client, TYPE(PORT_END));
    guarded_kill_ipcd(&guarded);
    (void)raw_expect(&client, TYPE(PORT_END));
    close_port(&client, port);
    EXPECT_DONE(&client);
    close_port(&client, other);
    EXPECT_DONE(&client);
    drop(&client, "best", false);
    EXPECT_DONE(&client);
    raw_goodbye(&client);
    while (guarded_kept(&guarded) != before)
        sched_yield();
    raw_goodbye(&admin);
}

/* A session that is gone when the next ipcd comes takes its ports along. */
static void test_death_while_there_is_no_ipcd(void **state)
{
    struct raw_client client, admin;
    unsigned before = kept_with(&admin);
    pid_t ipcd;

    raw_hello(&client, &broker, "user");
    create(&client, "q", "");
    EXPECT_DONE(&client);
    open_port(&client, "q", PRODUCER, 0, false);
    (void)opened(&client);
    open_port(&client, "q", CONSUMER, 0, true);
    (void)opened(&client);
    ipcd = guarded_pid(&guarded);
    assert_return_code(kill(guarded.run, SIGSTOP), errno);
    assert_return_code(kill(ipcd, SIGKILL), errno);
    raw_disconnect(&client);
    assert_return_code(kill(guarded.run, SIGCONT), errno);
    guarded_wait_other(&guarded, ipcd);
    while (list(&admin, LIST_PORTS)->n_items > 0)
        sched_yield();
    drop(&admin, "q", true);
    EXPECT_DONE(&admin);
    while (guarded_kept(&guarded) != before)
        sched_yield();
    raw_goodbye(&admin);
}

/* What a client does all the time. Whatever is killed once it was welcomed, each request is answered as if nothing had
 * been. */
static void work(unsigned number, unsigned rounds, int welcomed_fd)
{
    const Ipc__Control__Done bye = IPC__CONTROL__DONE__INIT;
    struct raw_client client;
    char name[16];
    int left;

    (void)snprintf(name, sizeof(name), "q%u", number);
    raw_hello(&client, &broker, name);
    assert_int_equal(write(welcomed_fd, "", 1), 1);
    close(welcomed_fd);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t port;

        create(&client, name, i % 2 ? "" : "class=best-effort");
        EXPECT_DONE(&client);
        set(&client, name, "ttl=5s");
        EXPECT_DONE(&client);
        open_port(&client, name, i % 3 ? PRODUCER : CONSUMER, 0, i % 2);
        port = opened(&client)->port;
        if (i % 2 == 0) {
            ask_bell(&client, port);
            EXPECT_DONE(&client);
        }
        if (i % 5) {
            close_port(&client, port);
            EXPECT_DONE(&client);
        }
        expect_setting(row(&client, name), "ttl", "5s");
        drop(&client, name, i % 4 == 0);
        EXPECT_DONE(&client);
        if (i % 5 == 0) {
            close_port(&client, port);
            EXPECT_DONE(&client);
        }
        assert_null(row(&client, name));
    }
    raw_send(&client, TYPE(GOODBYE), &bye.base);
    left = answer(&client); /* or ipcd was killed before it could say more */
    assert_true(left == TYPE(DONE) || left == -1);
    raw_disconnect(&client);
}

#define WORKERS 3u

static void test_killed_while_queues_come_and_go(void **state)
{
    const char *told = getenv("IPC_TEST_SEED");
    unsigned seed = told ? (unsigned)strtoul(told, NULL, 10) : (unsigned)time(NULL), kills = 0;
    pid_t workers[WORKERS];
    int welcomed[2];
    struct raw_client admin, watching;
    unsigned before = kept_with(&watching);

    print_message("seed %u\n", seed);
    assert_return_code(pipe2(welcomed, O_CLOEXEC), errno);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = fork_child();
        assert_true(workers[i] >= 0);
        if (workers[i] == 0) {
            in_child = true;
            work(i, 60, welcomed[1]);
            _exit(0);
        }
    }
    close(welcomed[1]);
    for (unsigned i = 0; i < WORKERS; i++) /* a hello that is cut off is one to repeat: not looked at here */
        assert_int_equal(read(welcomed[0], (char[1]){0}, 1), 1);
    close(welcomed[0]);
    for (unsigned left = WORKERS; left > 0;) {
        siginfo_t info = {0};

        /* So many of its own requests later than the last one. */
        raw_admin(&admin, &broker);
        for (unsigned n = (unsigned)rand_r(&seed) % 60; n > 0; n--)
            (void)list(&admin, LIST_QUEUES);
        raw_disconnect(&admin);
        guarded_kill_ipcd(&guarded);
        kills++;
        for (unsigned i = 0; i < WORKERS; i++) {
            if (workers[i] <= 0 || waitid(P_PID, (id_t)workers[i], &info, WEXITED | WNOHANG | WNOWAIT) < 0 ||
                info.si_pid == 0)
                continue;
            assert_int_equal(wait_child(workers[i]), 0);
            workers[i] = 0;
            info.si_pid = 0;
            left--;
        }
    }
    print_message("%u kills\n", kills);
    assert_int_equal(list(&watching, LIST_QUEUES)->n_items, 0);
    while (list(&watching, LIST_PORTS)->n_items > 0)
        sched_yield();
    while (guarded_kept(&guarded) != before)
        sched_yield();
    raw_goodbye(&watching);
}

#define ALONE(function, config)              \
 {                                           \
#  function, function, start, stop, (char[]) \
  {                                          \
   config                                    \
  }                                          \
 }
#define GUARDED(function) cmocka_unit_test_setup_teardown(function, start_guarded, stop_guarded)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ALONE(test_create_set_remove, ""),
        ALONE(test_what_is_refused, ""),
        ALONE(test_operations_on_an_empty_queue, ""),
        ALONE(test_two_remove_at_once, "[broker]\nrouter-threads = 3\n"),
        ALONE(test_ports, ""),
        ALONE(test_large_port, ""),
        ALONE(test_port_of_a_removed_queue_ends, "[broker]\nrouter-threads = 2\n"),
        ALONE(test_limits, "[limits]\nqueues = 2\nports = 1\n"),
        ALONE(test_configured, "[queue jobs]\nfull = dead-letter\ndead-letter = jobs.dead\nttl = 36h\n"
                               "[queue jobs.dead]\nbytes-max = 1M\n"),
        GUARDED(test_restart_keeps_queues_and_ports),
        GUARDED(test_death_while_there_is_no_ipcd),
        GUARDED(test_killed_while_queues_come_and_go),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
