/* SPDX-License-Identifier: Apache-2.0
 *
 * Lies on the socket: every field of every message that a client may send, at its ends and with what belongs to others;
 * every type at the wrong time; every field of the frame. After each, a pair of another user goes on as if nothing was.
 */
#include "tests/support/hostile.h"
#include "tests/support/queue.h"

enum value { ZERO, ONE, MINUS, MAX, NONE, OTHER, TEXT };
enum outcome { ANSWER, FAILS, ENDS, QUIET };

struct row {
    unsigned type;
    const char *field;
    enum value value;
    const char *text;
    enum outcome outcome;
    int what; /* ANSWER: the type; FAILS: the errno; ENDS: the reason */
};

#define NEVER UINT64_C(0x123456789) /* an id that nothing ever has */

static char long_name[7001], name_255[256], name_256[257];

static const struct row rows[] = {
    {TYPE(HELLO), "version_min", ZERO, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "version_min", ONE, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "version_min", MAX, NULL, FAILS, EPROTONOSUPPORT},
    {TYPE(HELLO), "version_max", ZERO, NULL, FAILS, EPROTONOSUPPORT},
    {TYPE(HELLO), "version_max", ONE, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "version_max", MAX, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "features", ZERO, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "features", ONE, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "features", MAX, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "fingerprint", ZERO, NULL, FAILS, EPROTONOSUPPORT},
    {TYPE(HELLO), "fingerprint", ONE, NULL, FAILS, EPROTONOSUPPORT},
    {TYPE(HELLO), "fingerprint", MAX, NULL, FAILS, EPROTONOSUPPORT},
    {TYPE(HELLO), "name", TEXT, "", ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "name", TEXT, "\x01\x1b[2J\xff\n", ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "name", TEXT, long_name, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "admin", ZERO, NULL, ANSWER, TYPE(WELCOME)},
    {TYPE(HELLO), "admin", ONE, NULL, ANSWER, TYPE(WELCOME)},

    {TYPE(ADVERTISE), "topic", TEXT, "", FAILS, EINVAL},
    {TYPE(ADVERTISE), "topic", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(ADVERTISE), "topic", TEXT, "a.*", FAILS, EINVAL},
    {TYPE(ADVERTISE), "topic", TEXT, name_255, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "topic", TEXT, name_256, FAILS, EINVAL},
    {TYPE(ADVERTISE), "topic", TEXT, long_name, FAILS, EINVAL},
    {TYPE(ADVERTISE), "ring_size", ZERO, NULL, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "ring_size", ONE, NULL, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "ring_size", MAX, NULL, FAILS, EINVAL},
    {TYPE(ADVERTISE), "retain", ZERO, NULL, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "exclusive", ZERO, NULL, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "exclusive", ONE, NULL, ANSWER, TYPE(ADVERTISED)},
    {TYPE(ADVERTISE), "kind", ONE, NULL, FAILS, EINVAL},
    {TYPE(ADVERTISE), "kind", MINUS, NULL, FAILS, EINVAL},
    {TYPE(ADVERTISE), "kind", MAX, NULL, FAILS, EINVAL},
    {TYPE(ADVERTISE), "target", NONE, NULL, ANSWER, TYPE(ADVERTISED)},

    {TYPE(UNADVERTISE), "lane", ZERO, NULL, FAILS, ENOENT},
    {TYPE(UNADVERTISE), "lane", MAX, NULL, FAILS, ENOENT},
    {TYPE(UNADVERTISE), "lane", NONE, NULL, FAILS, ENOENT},
    {TYPE(UNADVERTISE), "lane", OTHER, NULL, FAILS, ENOENT},

    {TYPE(SUBSCRIBE), "pattern", TEXT, "", FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "pattern", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "pattern", TEXT, "a.>.b", FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "pattern", TEXT, name_255, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "pattern", TEXT, name_256, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "pattern", TEXT, long_name, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "start", ZERO, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "start", ONE, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "start", MINUS, NULL, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "start", MAX, NULL, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "slow", ZERO, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "slow", ONE, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "slow", MINUS, NULL, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "slow", MAX, NULL, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "self", ONE, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "tap", ONE, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "kind", ONE, NULL, ANSWER, TYPE(SUBSCRIBED)},
    {TYPE(SUBSCRIBE), "kind", MINUS, NULL, FAILS, EINVAL},
    {TYPE(SUBSCRIBE), "kind", MAX, NULL, FAILS, EINVAL},

    {TYPE(UNSUBSCRIBE), "subscription", ZERO, NULL, FAILS, ENOENT},
    {TYPE(UNSUBSCRIBE), "subscription", MAX, NULL, FAILS, ENOENT},
    {TYPE(UNSUBSCRIBE), "subscription", NONE, NULL, FAILS, ENOENT},
    {TYPE(UNSUBSCRIBE), "subscription", OTHER, NULL, FAILS, ENOENT},

    {TYPE(BELL), "subscription", ZERO, NULL, FAILS, ENOENT},
    {TYPE(BELL), "subscription", MAX, NULL, FAILS, ENOENT},
    {TYPE(BELL), "subscription", NONE, NULL, FAILS, ENOENT},
    {TYPE(BELL), "subscription", OTHER, NULL, FAILS, ENOENT},

    {TYPE(LIST), "kind", ZERO, NULL, ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "kind", ONE, NULL, ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "kind", MINUS, NULL, FAILS, EINVAL},
    {TYPE(LIST), "kind", MAX, NULL, FAILS, EINVAL},
    {TYPE(LIST), "after", ONE, NULL, ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "after", NONE, NULL, ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "after", MAX, NULL, ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "pattern", TEXT, "", ANSWER, TYPE(PAGE)},
    {TYPE(LIST), "pattern", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(LIST), "pattern", TEXT, name_256, FAILS, EINVAL},

    {TYPE(CONFIRM), "notice", ZERO, NULL, ENDS, IPC_REASON_PROTOCOL},
    {TYPE(CONFIRM), "notice", ONE, NULL, ENDS, IPC_REASON_PROTOCOL},
    {TYPE(CONFIRM), "notice", MINUS, NULL, ENDS, IPC_REASON_PROTOCOL},
    {TYPE(CONFIRM), "notice", MAX, NULL, ENDS, IPC_REASON_PROTOCOL},
    {TYPE(CONFIRM), "pairing", ZERO, NULL, QUIET, 0},
    {TYPE(CONFIRM), "pairing", MAX, NULL, QUIET, 0},
    {TYPE(CONFIRM), "pairing", NONE, NULL, QUIET, 0},
    {TYPE(CONFIRM), "pairing", OTHER, NULL, QUIET, 0},
    {TYPE(CONFIRM), "result", ZERO, NULL, QUIET, 0},
    {TYPE(CONFIRM), "result", ONE, NULL, QUIET, 0},
    {TYPE(CONFIRM), "result", MINUS, NULL, QUIET, 0},
    {TYPE(CONFIRM), "result", MAX, NULL, QUIET, 0},

    {TYPE(DETACH), "pairing", ZERO, NULL, QUIET, 0},
    {TYPE(DETACH), "pairing", MAX, NULL, QUIET, 0},
    {TYPE(DETACH), "pairing", NONE, NULL, QUIET, 0},
    {TYPE(DETACH), "pairing", OTHER, NULL, QUIET, 0},
    {TYPE(DETACH), "reason", ZERO, NULL, QUIET, 0},
    {TYPE(DETACH), "reason", ONE, NULL, QUIET, 0},
    {TYPE(DETACH), "reason", MINUS, NULL, QUIET, 0},
    {TYPE(DETACH), "reason", MAX, NULL, QUIET, 0},

    {TYPE(QUEUE_CREATE), "queue", TEXT, "", FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "queue", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "queue", TEXT, "a.*", FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "queue", TEXT, name_256, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "queue", TEXT, long_name, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "queue", TEXT, "attack.queue", FAILS, EEXIST},
    {TYPE(QUEUE_CREATE), "queue", TEXT, "victim.queue", FAILS, EEXIST},
    {TYPE(QUEUE_CREATE), "settings", ZERO, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "may_exist", ONE, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.given", ZERO, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.given", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.messages_max", ZERO, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.messages_max", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.bytes_max", ZERO, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.bytes_max", ONE, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.bytes_max", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.message_size_max", ZERO, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.message_size_max", ONE, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.message_size_max", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.full", ONE, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.full", MINUS, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.full", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.class_", ONE, NULL, ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.class_", MINUS, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.class_", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.ttl_ns", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.delay_ns", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.lease_ns", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.attempts_max", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.dead_letter", TEXT, "", ANSWER, TYPE(DONE)},
    {TYPE(QUEUE_CREATE), "settings.dead_letter", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.dead_letter", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(QUEUE_CREATE), "settings.dead_letter", TEXT, name_256, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.dedup_window", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.dedup_window_ns", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_CREATE), "settings.paused", ONE, NULL, ANSWER, TYPE(DONE)},

    {TYPE(QUEUE_SET), "queue", TEXT, "", FAILS, EINVAL},
    {TYPE(QUEUE_SET), "queue", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(QUEUE_SET), "queue", TEXT, "victim.queue", FAILS, EACCES},
    {TYPE(QUEUE_SET), "settings", ZERO, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_SET), "settings.class_", ONE, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_SET), "settings.message_size_max", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_SET), "settings.dedup_window", ONE, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_SET), "settings.full", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_SET), "settings.dead_letter", TEXT, "attack.queue", FAILS, ELOOP},

    {TYPE(QUEUE_REMOVE), "queue", TEXT, "", FAILS, EINVAL},
    {TYPE(QUEUE_REMOVE), "queue", TEXT, long_name, FAILS, EINVAL},
    {TYPE(QUEUE_REMOVE), "queue", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(QUEUE_REMOVE), "queue", TEXT, "victim.queue", FAILS, EACCES},
    {TYPE(QUEUE_REMOVE), "if_empty", ONE, NULL, ANSWER, TYPE(DONE)},

    {TYPE(QUEUE_DO), "queue", TEXT, "", FAILS, EINVAL},
    {TYPE(QUEUE_DO), "queue", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(QUEUE_DO), "queue", TEXT, "victim.queue", FAILS, EACCES},
    {TYPE(QUEUE_DO), "operation", ONE, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "operation", MINUS, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_DO), "operation", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_DO), "target", TEXT, "victim.queue", ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "target", TEXT, "\x01", ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "after", MAX, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "count_max", MAX, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "priority_plus_1", MAX, NULL, FAILS, EINVAL},
    {TYPE(QUEUE_DO), "older_than_ns", MAX, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "attempts_min", MAX, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "header", TEXT, "\x01\xff", ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "header", TEXT, long_name, FAILS, EINVAL},
    {TYPE(QUEUE_DO), "value", ZERO, NULL, ANSWER, TYPE(QUEUE_DID)},
    {TYPE(QUEUE_DO), "payload_max", MAX, NULL, ANSWER, TYPE(QUEUE_DID)},

    {TYPE(PORT_OPEN), "queue", TEXT, "", FAILS, EINVAL},
    {TYPE(PORT_OPEN), "queue", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(PORT_OPEN), "queue", TEXT, "victim.queue", ANSWER, TYPE(PORT_OPENED)},
    {TYPE(PORT_OPEN), "role", ONE, NULL, ANSWER, TYPE(PORT_OPENED)},
    {TYPE(PORT_OPEN), "role", MINUS, NULL, FAILS, EINVAL},
    {TYPE(PORT_OPEN), "role", MAX, NULL, FAILS, EINVAL},
    {TYPE(PORT_OPEN), "ring_size", ONE, NULL, ANSWER, TYPE(PORT_OPENED)},
    {TYPE(PORT_OPEN), "ring_size", MAX, NULL, FAILS, EINVAL},
    {TYPE(PORT_OPEN), "prefetch", MAX, NULL, FAILS, EINVAL},
    {TYPE(PORT_OPEN), "bell", ONE, NULL, ANSWER, TYPE(PORT_OPENED)},

    {TYPE(PORT_CLOSE), "port", ZERO, NULL, FAILS, ENOENT},
    {TYPE(PORT_CLOSE), "port", MAX, NULL, FAILS, ENOENT},
    {TYPE(PORT_CLOSE), "port", NONE, NULL, FAILS, ENOENT},
    {TYPE(PORT_CLOSE), "port", OTHER, NULL, FAILS, ENOENT},
    {TYPE(PORT_BELL), "port", ZERO, NULL, FAILS, ENOENT},
    {TYPE(PORT_BELL), "port", MAX, NULL, FAILS, ENOENT},
    {TYPE(PORT_BELL), "port", NONE, NULL, FAILS, ENOENT},
    {TYPE(PORT_BELL), "port", OTHER, NULL, FAILS, ENOENT},

    {TYPE(SEGMENT_OPEN), "name", TEXT, "", FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "name", TEXT, "a.*", FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "name", TEXT, name_256, FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "name", TEXT, "victim.segment", FAILS, EACCES},
    {TYPE(SEGMENT_OPEN), "size", ZERO, NULL, FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "size", ONE, NULL, ANSWER, TYPE(SEGMENT_OPENED)},
    {TYPE(SEGMENT_OPEN), "size", MAX, NULL, FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "permits", ZERO, NULL, ANSWER, TYPE(SEGMENT_OPENED)},
    {TYPE(SEGMENT_OPEN), "permits", MAX, NULL, FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "create", ZERO, NULL, FAILS, ENOENT},
    {TYPE(SEGMENT_OPEN), "exclusive", ONE, NULL, ANSWER, TYPE(SEGMENT_OPENED)},
    {TYPE(SEGMENT_OPEN), "mode", MAX, NULL, FAILS, EINVAL},
    {TYPE(SEGMENT_OPEN), "keep", ONE, NULL, ANSWER, TYPE(SEGMENT_OPENED)},

    {TYPE(SEGMENT_CLOSE), "attachment", ZERO, NULL, FAILS, ENOENT},
    {TYPE(SEGMENT_CLOSE), "attachment", MAX, NULL, FAILS, ENOENT},
    {TYPE(SEGMENT_CLOSE), "attachment", NONE, NULL, FAILS, ENOENT},
    {TYPE(SEGMENT_CLOSE), "attachment", OTHER, NULL, FAILS, ENOENT},
    {TYPE(SEGMENT_CLOSE), "remove", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(SEGMENT_CLOSE), "remove", TEXT, "attack.none", FAILS, ENOENT},
    {TYPE(SEGMENT_CLOSE), "remove", TEXT, "victim.segment", FAILS, EACCES},

    {TYPE(POLICY), "uid", MAX, NULL, FAILS, EACCES},
    {TYPE(POLICY), "gids", ZERO, NULL, ANSWER, TYPE(DECISION)},
    {TYPE(POLICY), "verb", TEXT, "", FAILS, EINVAL},
    {TYPE(POLICY), "verb", TEXT, "\x01\xff", FAILS, EINVAL},
    {TYPE(POLICY), "name", TEXT, "", FAILS, EINVAL},
    {TYPE(POLICY), "name", TEXT, "\x01", FAILS, EINVAL},
    {TYPE(POLICY), "name", TEXT, name_256, FAILS, EINVAL},
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))

static const unsigned requests[] = {
    TYPE(HELLO),     TYPE(ADVERTISE),    TYPE(UNADVERTISE), TYPE(SUBSCRIBE),    TYPE(BELL),
    TYPE(LIST),      TYPE(UNSUBSCRIBE),  TYPE(STATUS),      TYPE(CONFIRM),      TYPE(DETACH),
    TYPE(GOODBYE),   TYPE(QUEUE_CREATE), TYPE(QUEUE_SET),   TYPE(QUEUE_REMOVE), TYPE(QUEUE_DO),
    TYPE(PORT_OPEN), TYPE(PORT_CLOSE),   TYPE(PORT_BELL),   TYPE(SEGMENT_OPEN), TYPE(SEGMENT_CLOSE),
    TYPE(POLICY)};
#define REQUESTS (sizeof(requests) / sizeof(requests[0]))

/* The pair that is attacked, and what the attacker has of its own. */
static struct {
    ipc_connection *out, *in;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    ipc_producer *producer;
    ipc_consumer *consumer;
    ipc_segment *segment;
    uint64_t lane, subscription_id, pairing, port, sent;
} victim;
static struct {
    struct raw_client client;
    uint64_t lane, subscription, pairing, port, attachment;
} attacker;

static uint64_t number_of(unsigned kind, size_t n)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    static struct raw_client looker;
    hostile_hello(&looker, WHO_CALM, "looker");
    list.kind = (Ipc__Control__ListKind)kind;
    raw_send(&looker, TYPE(LIST), &list.base);
    const Ipc__Control__Page *page = hostile_wait(&looker, TYPE(PAGE));
    EXPECT_EQ(page->n_items, n);
    uint64_t id = page->items[0]->id;
    raw_goodbye(&looker);
    return id;
}

static void exchange_one(void)
{
    publish_numbers(victim.publisher, victim.sent, victim.sent + 1, 64);
    receive_numbers(victim.subscription, victim.sent, victim.sent + 1, 64);
    send_numbers(victim.producer, victim.sent, victim.sent + 1, 64);
    receive_acked(victim.consumer, victim.sent, victim.sent + 1);
    victim.sent++;
}

static int setup(void **state)
{
    hostile_setup(state);
    memset(long_name, 'n', sizeof(long_name) - 1);
    memset(name_255, 'n', sizeof(name_255) - 1);
    memset(name_256, 'n', sizeof(name_256) - 1);
    victim.sent = 0;
    victim.out = hostile_connection(WHO_PEER);
    victim.in = hostile_connection(WHO_PEER);
    victim.publisher = publisher_new(victim.out, "victim.topic", 4096, 0);
    victim.subscription = subscription_new(victim.in, "victim.*", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    struct ipc_segment_options segment = IPC_SEGMENT_OPTIONS_INIT;
    segment.bytes = 4096;
    segment.flags = IPC_SEGMENT_CREATE;
    EXPECT_EQ(ipc_segment_open(&victim.segment, victim.out, "victim.segment", &segment, NULL), 0);
    queue_new(victim.out, "victim.queue", NULL);
    victim.producer = producer_new(victim.out, "victim.queue");
    victim.consumer = consumer_new(victim.in, "victim.queue", 0);
    EXPECT_EQ(ipc_publisher_wait_readers(victim.publisher, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_subscription_wait_writers(victim.subscription, 1, IPC_FOREVER), 1);
    victim.lane = number_of(IPC__CONTROL__LIST_KIND__LIST_TOPICS, 1);
    victim.subscription_id = number_of(IPC__CONTROL__LIST_KIND__LIST_SUBSCRIPTIONS, 1);
    victim.pairing = number_of(IPC__CONTROL__LIST_KIND__LIST_PAIRINGS, 1);
    victim.port = number_of(IPC__CONTROL__LIST_KIND__LIST_PORTS, 2);
    return 0;
}

/* A message of that type as a good client would send it. */
union any {
    ProtobufCMessage base;
    Ipc__Control__Hello hello;
    Ipc__Control__Advertise advertise;
    Ipc__Control__Subscribe subscribe;
    Ipc__Control__List list;
    Ipc__Control__Confirm confirm;
    Ipc__Control__Detach detach;
    Ipc__Control__Unadvertise unadvertise;
    Ipc__Control__Unsubscribe unsubscribe;
    Ipc__Control__Bell bell;
    Ipc__Control__QueueCreate queue_create;
    Ipc__Control__QueueSet queue_set;
    Ipc__Control__QueueRemove queue_remove;
    Ipc__Control__QueueDo queue_do;
    Ipc__Control__PortOpen port_open;
    Ipc__Control__PortClose port_close;
    Ipc__Control__SegmentOpen segment_open;
    Ipc__Control__SegmentClose segment_close;
    Ipc__Control__Policy policy;
};
static Ipc__Control__QueueSettings settings;
static uint32_t gids[] = {0, 1};
#define TEXT_OF(text) ((char *)(uintptr_t)(text))

static void good_message(union any *any, unsigned type)
{
    protobuf_c_message_init(ipc_frame_descriptor((uint16_t)type), any);
    switch (type) {
    case TYPE(HELLO):
        any->hello.version_min = any->hello.version_max = IPC_CONTROL_VERSION;
        any->hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
        any->hello.name = TEXT_OF("attacker");
        break;
    case TYPE(ADVERTISE):
        any->advertise.topic = TEXT_OF("attack.topic");
        any->advertise.ring_size = 4096;
        break;
    case TYPE(SUBSCRIBE):
        any->subscribe.pattern = TEXT_OF("attack.none");
        break;
    case TYPE(UNADVERTISE):
        any->unadvertise.lane = attacker.lane;
        break;
    case TYPE(UNSUBSCRIBE):
    case TYPE(BELL):
        any->bell.subscription = attacker.subscription;
        break;
    case TYPE(CONFIRM):
        any->confirm.notice = (Ipc__Control__Type)TYPE(LANE_ADD);
        any->confirm.pairing = attacker.pairing;
        break;
    case TYPE(DETACH):
        any->detach.pairing = attacker.pairing;
        break;
    case TYPE(QUEUE_CREATE):
        any->queue_create.queue = TEXT_OF("attack.new");
        any->queue_create.settings = &settings;
        break;
    case TYPE(QUEUE_SET):
        any->queue_set.queue = TEXT_OF("attack.queue");
        any->queue_set.settings = &settings;
        break;
    case TYPE(QUEUE_REMOVE):
    case TYPE(QUEUE_DO):
    case TYPE(PORT_OPEN):
        any->queue_remove.queue = TEXT_OF("attack.queue"); /* the first field of each */
        break;
    case TYPE(PORT_CLOSE):
    case TYPE(PORT_BELL):
        any->port_close.port = attacker.port;
        break;
    case TYPE(SEGMENT_OPEN):
        any->segment_open.name = TEXT_OF("attack.fresh");
        any->segment_open.size = 4096;
        any->segment_open.create = true;
        break;
    case TYPE(SEGMENT_CLOSE):
        any->segment_close.attachment = attacker.attachment;
        break;
    case TYPE(POLICY):
        any->policy.uid = hostile.uid[WHO_ATTACKER];
        any->policy.gids = gids;
        any->policy.n_gids = 1;
        any->policy.verb = TEXT_OF("publish");
        any->policy.name = TEXT_OF("attack.topic");
        break;
    default:
        break;
    }
}

/* A good request about that name. Returns the type of its answer. */
static unsigned attacker_do(unsigned type, const char *name)
{
    union any any;
    int got;
    ipc__control__queue_settings__init(&settings);
    good_message(&any, type);
    any.queue_remove.queue = TEXT_OF(name); /* the first field of each */
    raw_send(&attacker.client, type, &any.base);
    do
        got = raw_recv(&attacker.client, 0);
    while (got >= (int)TYPE(READER_ADD)); /* notices */
    return (unsigned)got;
}

/* A session that has one of everything: a lane, a subscription, and a pairing as the victim's reader. */
static void attacker_begin(bool hello)
{
    struct held_cell cell;
    attacker.pairing = attacker.lane = attacker.subscription = 0;
    if (!hello) {
        hostile_connect(&attacker.client, WHO_ATTACKER);
        return;
    }
    hostile_hello(&attacker.client, WHO_ATTACKER, "attacker");
    attacker.lane = raw_advertise(&attacker.client, "attack.own", 4096, false);
    attacker.subscription = raw_subscribe(&attacker.client, "victim.topic", 0, 1);
    held_cell_open(&cell, &attacker.client, NULL);
    attacker.pairing = cell.pairing;
    held_cell_close(&cell);
    /* The queues that an attacker before left behind are its user's. */
    attacker_do(TYPE(QUEUE_REMOVE), "attack.new");
    attacker_do(TYPE(QUEUE_CREATE), "attack.queue");
    if (attacker_do(TYPE(PORT_OPEN), "attack.queue") == TYPE(PORT_OPENED))
        attacker.port = ((const Ipc__Control__PortOpened *)attacker.client.frame.message)->port;
    if (attacker_do(TYPE(SEGMENT_OPEN), "attack.segment") == TYPE(SEGMENT_OPENED))
        attacker.attachment =
            ((const Ipc__Control__SegmentOpened *)attacker.client.frame.message)->attachment;
}

static void attacker_end(void)
{
    raw_disconnect(&attacker.client);
}

/* What stays when its sessions are gone. */
static void attacker_clean(void)
{
    hostile_hello(&attacker.client, WHO_ATTACKER, "attacker");
    (void)attacker_do(TYPE(QUEUE_REMOVE), "attack.new");
    (void)attacker_do(TYPE(QUEUE_REMOVE), "attack.queue");
    Ipc__Control__SegmentClose close = IPC__CONTROL__SEGMENT_CLOSE__INIT;
    close.remove = TEXT_OF("attack.fresh");
    raw_send(&attacker.client, TYPE(SEGMENT_CLOSE), &close.base);
    (void)raw_recv(&attacker.client, 0);
    attacker_end();
}

static int teardown(void **state)
{
    struct ipc_event event;
    exchange_one();
    /* Nobody left the pair on the way: each side had one peer of its own, and never lost it. */
    while (ipc_connection_next_event(victim.in, &event) > 0)
        EXPECT(event.kind != IPC_EVENT_ENDED &&
               (event.kind != IPC_EVENT_WRITER_LEFT || event.peer.uid != hostile.uid[WHO_PEER]));
    while (ipc_connection_next_event(victim.out, &event) > 0)
        EXPECT(event.kind != IPC_EVENT_ENDED &&
               (event.kind != IPC_EVENT_READER_LEFT || event.peer.uid != hostile.uid[WHO_PEER]));
    subscription_end(victim.subscription);
    publisher_end(victim.publisher);
    ipc_producer_close(victim.producer);
    ipc_consumer_close(victim.consumer);
    EXPECT_EQ(ipc_queue_remove(victim.out, "victim.queue", 0, NULL), 0);
    ipc_connection_close(victim.in);
    ipc_connection_close(victim.out);
    attacker_clean();
    return hostile_teardown(state);
}

static uint64_t id_of_other(const char *field)
{
    return strcmp(field, "lane") == 0           ? victim.lane
           : strcmp(field, "subscription") == 0 ? victim.subscription_id
           : strcmp(field, "port") == 0         ? victim.port
           : strcmp(field, "attachment") == 0   ? 1 /* the first one is the victim's */
                                                : victim.pairing;
}

static void set_field(union any *any, const struct row *row)
{
    bool inner = strncmp(row->field, "settings.", 9) == 0;
    const ProtobufCMessage *message = inner ? &settings.base : &any->base;
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field_by_name(message->descriptor, row->field + (inner ? 9 : 0));
    EXPECT(field != NULL);
    void *at = (char *)(uintptr_t)message + field->offset;
    if (inner)
        settings.given = 1u << field->id;
    uint64_t value = row->value == ONE     ? 1
                     : row->value == MINUS ? UINT64_MAX
                     : row->value == MAX   ? UINT64_MAX
                     : row->value == NONE  ? NEVER
                     : row->value == OTHER ? id_of_other(row->field)
                                           : 0;
    switch (field->label == PROTOBUF_C_LABEL_REPEATED ? PROTOBUF_C_TYPE_MESSAGE : field->type) {
    case PROTOBUF_C_TYPE_MESSAGE: /* without it */
        *(size_t *)(field->quantifier_offset ? (char *)any + field->quantifier_offset : at) = 0;
        break;
    case PROTOBUF_C_TYPE_BYTES:
        ((ProtobufCBinaryData *)at)->len = 0;
        break;
    case PROTOBUF_C_TYPE_STRING:
        *(char **)at = (char *)(uintptr_t)row->text;
        break;
    case PROTOBUF_C_TYPE_UINT64:
        *(uint64_t *)at = value;
        break;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_ENUM:
        *(int32_t *)at = row->value == MAX ? INT32_MAX : (int32_t)value;
        break;
    default:
        *(uint32_t *)at = (uint32_t)value;
        break;
    }
}

static void expect_outcome(const struct row *row)
{
    struct raw_client *client = &attacker.client;
    const Ipc__Control__Failure *failure;
    switch (row->outcome) {
    case ANSWER:
        (void)hostile_wait(client, (unsigned)row->what);
        break;
    case FAILS:
        failure = hostile_wait(client, TYPE(FAILURE));
        EXPECT_EQ(failure->code, -row->what);
        EXPECT(strlen(failure->text) > 10);
        break;
    case QUIET:
        break;
    case ENDS:
        EXPECT_EQ(((const Ipc__Control__Ended *)hostile_wait(client, TYPE(ENDED)))->reason, row->what);
        EXPECT_EQ(raw_recv(client, 0), -1);
        return;
    }
    if (row->type == TYPE(HELLO) && row->outcome == FAILS)
        EXPECT_EQ(((const Ipc__Control__Ended *)hostile_wait(client, TYPE(ENDED)))->reason,
                  IPC_REASON_PROTOCOL);
    else
        hostile_alive(client);
}

static void test_every_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        const struct row *row = &rows[i];
        union any any;
        watchdog(60, row->field);
        attacker_begin(row->type != TYPE(HELLO));
        ipc__control__queue_settings__init(&settings);
        good_message(&any, row->type);
        set_field(&any, row);
        if (row->type == TYPE(CONFIRM) || row->type == TYPE(DETACH))
            raw_send_as(&attacker.client, row->type, 0, &any.base);
        else
            raw_send(&attacker.client, row->type, &any.base);
        expect_outcome(row);
        attacker_end();
        exchange_one();
    }
}

/* No field was forgotten: what is added to these messages has to be lied about, too. */
static void test_no_field_is_left_out(void **state)
{
    (void)state;
    for (size_t i = 0; i < REQUESTS; i++) {
        const ProtobufCMessageDescriptor *message = ipc_frame_descriptor((uint16_t)requests[i]);
        for (unsigned k = 0; k < message->n_fields; k++) {
            bool found = false;
            for (size_t n = 0; n < ROWS; n++)
                found = found ||
                        (rows[n].type == requests[i] && strcmp(rows[n].field, message->fields[k].name) == 0);
            if (!found)
                fprintf(stderr, "%s.%s\n", message->short_name, message->fields[k].name);
            EXPECT(found);
        }
    }
}

static void send_header(uint16_t magic, uint16_t type, uint32_t size, uint64_t id, size_t bytes)
{
    unsigned char packet[64] = {0};
    const struct ipc_frame_header header = {.magic = magic, .type = type, .size = size, .id = id};
    memcpy(packet, &header, sizeof(header));
    EXPECT_EQ(hostile_send(&attacker.client, packet, sizeof(header) + bytes, NULL, 0),
              sizeof(header) + bytes);
}

static void expect_protocol(void)
{
    EXPECT_EQ(((const Ipc__Control__Ended *)hostile_wait(&attacker.client, TYPE(ENDED)))->reason,
              IPC_REASON_PROTOCOL);
    EXPECT_EQ(raw_recv(&attacker.client, 0), -1);
    attacker_end();
    exchange_one();
}

/* Every type but HELLO before HELLO; HELLO after it; types of the core, and numbers that are no type. */
static void test_every_type_at_the_wrong_time(void **state)
{
    static const uint16_t no_types[] = {0, 63, 127, 255, 256, 32767, 65535};
    (void)state;
    for (unsigned i = 0; i < ipc__control__type__descriptor.n_values; i++) {
        uint16_t type = (uint16_t)ipc__control__type__descriptor.values[i].value;
        if (type != TYPE(HELLO)) {
            attacker_begin(false);
            send_header(IPC_FRAME_MAGIC, type, 0, 7, 0);
            expect_protocol();
        }
        if (type == TYPE(HELLO) || type >= TYPE(WELCOME)) {
            attacker_begin(true);
            send_header(IPC_FRAME_MAGIC, type, 0, 7, 0);
            expect_protocol();
        }
    }
    for (size_t i = 0; i < sizeof(no_types) / sizeof(no_types[0]); i++) {
        attacker_begin(true);
        send_header(IPC_FRAME_MAGIC, no_types[i], 0, 7, 0);
        expect_protocol();
    }
}

static void test_every_field_of_the_frame(void **state)
{
    static const struct {
        uint16_t magic;
        uint32_t size;
        uint64_t id;
        size_t bytes;
    } frames[] = {
        {0, 0, 1, 0},
        {1, 0, 1, 0},
        {UINT16_MAX, 0, 1, 0},
        {IPC_FRAME_MAGIC, 1, 1, 0},
        {IPC_FRAME_MAGIC, UINT32_MAX, 1, 0},
        {IPC_FRAME_MAGIC, 0, 1, 8},
        {IPC_FRAME_MAGIC, 7, 1, 8},
        {IPC_FRAME_MAGIC, 0, 0, 0}, /* a request without a number */
    };
    (void)state;
    for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
        attacker_begin(true);
        send_header(frames[i].magic, TYPE(STATUS), frames[i].size, frames[i].id, frames[i].bytes);
        expect_protocol();
    }
    for (size_t size = 0; size < sizeof(struct ipc_frame_header); size++) {
        static const struct ipc_frame_header whole = {
            .magic = IPC_FRAME_MAGIC, .type = TYPE(STATUS), .id = 1};
        attacker_begin(true);
        EXPECT_EQ(hostile_send(&attacker.client, &whole, size, NULL, 0), size);
        expect_protocol();
    }
    /* Any number is a number, and it may come twice: each request has its answer. */
    attacker_begin(true);
    for (unsigned i = 0; i < 2; i++) {
        send_header(IPC_FRAME_MAGIC, TYPE(STATUS), 0, UINT64_MAX, 0);
        (void)hostile_wait(&attacker.client, TYPE(STATUS_REPLY));
        EXPECT_EQ(attacker.client.frame.id, UINT64_MAX);
    }
    attacker_end();
}

/* A message of very many small parts, which would take far more memory than it has bytes. */
static void test_a_frame_that_unpacks_to_much(void **state)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE] = {0};
    const struct ipc_frame_header header = {
        .magic = IPC_FRAME_MAGIC, .type = TYPE(STATUS), .size = sizeof(packet) - sizeof(header), .id = 1};
    (void)state;
    memcpy(packet, &header, sizeof(header));
    for (size_t i = sizeof(header); i + 2 <= sizeof(packet); i += 2) {
        packet[i] = 15 << 3; /* an unknown field: a number of one byte */
        packet[i + 1] = 1;
    }
    attacker_begin(true);
    EXPECT_EQ(hostile_send(&attacker.client, packet, sizeof(packet), NULL, 0), sizeof(packet));
    expect_protocol();
    hostile_log_expect("session-expelled", "name=\"attacker\"", "reason=protocol", "too much memory", NULL);
}

/* What a session confirms and detaches of its own pairing, in any order and again and again. */
static void test_confirms_in_every_order(void **state)
{
    static const unsigned notices[] = {TYPE(READER_ADD), TYPE(READER_DEL), TYPE(LANE_ADD), TYPE(LANE_DEL)};
    static const int results[] = {0, 1, -1, INT32_MIN, INT32_MAX};
    uint64_t seed = 0x9e3779b97f4a7c15;
    (void)state;
    for (unsigned round = 0; round < 200; round++) {
        attacker_begin(true);
        for (unsigned i = 0; i < 12; i++) {
            uint64_t random = hostile_random(&seed);
            raw_confirm(&attacker.client, notices[random % 4],
                        random >> 32 & 1 ? attacker.pairing : victim.pairing, results[random / 4 % 5]);
            if (random >> 33 % 8 == 0) {
                Ipc__Control__Detach detach = IPC__CONTROL__DETACH__INIT;
                detach.pairing = attacker.pairing;
                detach.reason = (Ipc__Control__Reason)(random >> 40 & 15);
                raw_send_as(&attacker.client, TYPE(DETACH), 0, &detach.base);
            }
        }
        hostile_alive(&attacker.client);
        attacker_end();
        exchange_one();
    }
}

/* A writer that confirms a reader again and again does not keep that reader awake. */
static void test_a_confirm_counts_once(void **state)
{
    struct held_lane lane;
    struct ipc_cells *cells;
    struct raw_client reader;
    unsigned nudges = 0;
    int type;
    (void)state;
    hostile_hello(&attacker.client, WHO_ATTACKER, "attacker");
    hostile_hello(&reader, WHO_PEER, "reader");
    raw_subscribe(&reader, "attack.topic", 0, 0);
    held_lane_open(&lane, &attacker.client, "attack.topic", 4096);
    uint64_t pairing = held_lane_admit(&lane, &attacker.client, &cells);
    (void)hostile_wait(&reader, TYPE(LANE_ADD));
    raw_confirm(&reader, TYPE(LANE_ADD), pairing, 0);
    hostile_alive(&reader);
    for (unsigned i = 0; i < 300; i++) {
        raw_confirm(&attacker.client, TYPE(READER_ADD), pairing, 0);
        hostile_alive(&attacker.client);
    }
    while ((type = raw_recv(&reader, MSG_DONTWAIT)) > 0)
        nudges += type == TYPE(NUDGE);
    EXPECT_EQ(nudges <= 2, true);
    lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
    held_lane_close(&lane);
    raw_disconnect(&reader);
    attacker_end();
}

/* Whoever is sent away is named in the log, with the reason and what it did. */
static void test_the_operator_reads_why(void **state)
{
    static const struct {
        uint16_t magic, type;
        uint64_t id;
        const char *text;
    } attacks[] = {
        {1, TYPE(STATUS), 1, "not a frame of the control protocol"},
        {IPC_FRAME_MAGIC, TYPE(STATUS), 0, "a request without a number"},
        {IPC_FRAME_MAGIC, TYPE(HELLO), 1, "HELLO twice"},
        {IPC_FRAME_MAGIC, TYPE(WELCOME), 1, "only the broker sends"},
        {IPC_FRAME_MAGIC, TYPE(CONFIRM), 0, "confirmed a notice of no known kind"},
    };
    char uid[32];
    (void)state;
    snprintf(uid, sizeof(uid), "uid=%u", (unsigned)hostile.uid[WHO_ATTACKER]);
    for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
        attacker_begin(true);
        send_header(attacks[i].magic, attacks[i].type, 0, attacks[i].id, 0);
        expect_protocol();
        hostile_log_expect("session-expelled", uid, "pid=", "name=\"attacker\"", "reason=protocol",
                           attacks[i].text, NULL);
    }
    attacker_begin(false);
    send_header(IPC_FRAME_MAGIC, TYPE(STATUS), 0, 1, 0);
    expect_protocol();
    hostile_log_expect("session-expelled", uid, "reason=protocol", "did not begin with HELLO", NULL);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_every_field),
        ATTACK(test_no_field_is_left_out),
        ATTACK(test_every_type_at_the_wrong_time),
        ATTACK(test_every_field_of_the_frame),
        ATTACK(test_a_frame_that_unpacks_to_much),
        ATTACK(test_confirms_in_every_order),
        ATTACK(test_a_confirm_counts_once),
        ATTACK(test_the_operator_reads_why),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(void)
{
    return hostile_run("hostile/test_socket", tests);
}
