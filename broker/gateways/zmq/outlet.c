/* SPDX-License-Identifier: Apache-2.0
 *
 * Into topics and queues: one publisher or producer for each name, shared by all outside peers. What there is no room for
 * is held, in order, up to a limit; it never holds up another name.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

/* Where a message came from, to answer. */
struct origin {
    uint64_t peer; /* 0: nobody to answer to */
    size_t id_size;
    unsigned char id[WIRE_ID_MAX];
};

struct held {
    struct list link;
    struct origin origin;
    size_t properties_size, body_size;
    unsigned char bytes[];
};

/* Sent, and not decided yet. */
struct awaited {
    struct list link;
    uint64_t ticket;
    struct origin origin;
};

struct outlet {
    struct source source;
    struct hash_node node;
    struct list link;
    struct zmq_gateway *gateway;
    enum outlet_kind kind;
    char name[256];
    ipc_publisher *publisher;
    ipc_producer *producer;
    struct list held, awaiting;
    size_t held_bytes;
    uint64_t held_since_ns; /* when what is first was held; 0: nothing is */
    bool over, full;        /* more is held than wanted; for too long: what comes is dropped */
};

static void answer(struct zmq_gateway *gateway, enum outlet_kind kind, const char *name,
                   const struct origin *origin, int code, const char *text)
{
    struct peer *peer = peer_by_number(gateway, origin->peer);
    const struct wire_frame id = {origin->id, origin->id_size};

    if (peer && code < 0)
        peer_error(gateway, peer, id, code, text);
    else if (peer && origin->id_size)
        peer_ok(gateway, peer, id);
    else if (!origin->peer && code < 0)
        endpoint_drop(gateway, kind == OUTLET_TOPIC ? ENDPOINT_PUB : ENDPOINT_PUSH, name, text);
}

/* ---- confirms -------------------------------------------------------------------------------------------------- */

static void refused(void *context, const struct ipc_refusal *refusal)
{
    struct outlet *outlet = context;

    list_for_each_safe(link, &outlet->awaiting)
    {
        struct awaited *awaited = list_entry(link, struct awaited, link);

        if (awaited->ticket < refusal->ticket)
            continue;
        if (awaited->ticket > refusal->ticket)
            break;
        answer(outlet->gateway, outlet->kind, outlet->name, &awaited->origin, refusal->code, refusal->text);
        list_remove(&awaited->link);
        free(awaited);
        return;
    }
    endpoint_drop(outlet->gateway, ENDPOINT_PUSH, outlet->name, refusal->text);
}

static void confirmed(void *context, uint64_t ticket)
{
    struct outlet *outlet = context;

    list_for_each_safe(link, &outlet->awaiting)
    {
        struct awaited *awaited = list_entry(link, struct awaited, link);

        if (awaited->ticket > ticket)
            return;
        answer(outlet->gateway, outlet->kind, outlet->name, &awaited->origin, 0, NULL);
        list_remove(&awaited->link);
        free(awaited);
    }
}

/* ---- opening and closing ------------------------------------------------------------------------------------------ */

static void outlet_end(struct outlet *outlet, int code, const char *text)
{
    struct zmq_gateway *gateway = outlet->gateway;

    list_for_each_safe(link, &outlet->awaiting)
    {
        struct awaited *awaited = list_entry(link, struct awaited, link);

        answer(gateway, outlet->kind, outlet->name, &awaited->origin, code, text);
        free(awaited);
    }
    list_for_each_safe(link, &outlet->held)
    {
        struct held *held = list_entry(link, struct held, link);

        answer(gateway, outlet->kind, outlet->name, &held->origin, code, text);
        free(held);
    }
    gateway->holding -= outlet->held_since_ns > 0;
    gateway->holding_topics -= outlet->held_since_ns > 0 && outlet->kind == OUTLET_TOPIC;
    gateway->overfull -= outlet->over;
    hash_remove(&gateway->outlets, &outlet->node);
    list_remove(&outlet->link);
    gateway->outlet_count--;
    source_bury(gateway, &outlet->source, outlet);
    ipc_publisher_close(outlet->publisher);
    ipc_producer_close(outlet->producer);
}

/* Confirms; and with them there may be room for what is held, which the next round looks at. */
static void producer_ready(struct zmq_gateway *gateway, struct source *source)
{
    struct outlet *outlet = list_entry(source, struct outlet, source);
    int result = ipc_producer_dispatch(outlet->producer);

    (void)gateway;
    if (result < 0)
        outlet_end(outlet, result, "the queue is not there any more, or may not be used");
}

static int open_outlet(struct outlet *outlet, struct ipc_error *error)
{
    struct zmq_gateway *gateway = outlet->gateway;
    struct ipc_publisher_options publisher = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_producer_options producer = IPC_PRODUCER_OPTIONS_INIT;
    int result;

    if (outlet->kind == OUTLET_TOPIC) {
        publisher.block_max_ns = 0; /* they have been waited for */
        if (gateway->options.message_size_max > 65536)
            publisher.message_size_max = (uint32_t)gateway->options.message_size_max + 65536; /* headers */
        return ipc_publisher_open(&outlet->publisher, gateway->in, outlet->name, &publisher, error);
    }
    producer.refused = refused;
    producer.confirmed = confirmed;
    producer.context = outlet;
    result = ipc_producer_open(&outlet->producer, gateway->in, outlet->name, &producer, error);
    if (result < 0)
        return result;
    result = source_add(gateway, &outlet->source, ipc_producer_fd(outlet->producer), producer_ready);
    if (result < 0)
        (void)snprintf(error->text, sizeof(error->text), "the queue cannot be watched: %s",
                       strerror(-result));
    return result;
}

static uint64_t key_of(const struct zmq_gateway *gateway, enum outlet_kind kind, const char *name)
{
    return hash_string(gateway->secret, name, strlen(name)) ^ (uint64_t)kind;
}

static struct outlet *find(const struct zmq_gateway *gateway, enum outlet_kind kind, const char *name)
{
    struct hash_node *node = hash_find(&gateway->outlets, key_of(gateway, kind, name));

    for (; node; node = hash_find_next(node)) {
        struct outlet *outlet = list_entry(node, struct outlet, node);

        if (outlet->kind == kind && strcmp(outlet->name, name) == 0)
            return outlet;
    }
    return NULL;
}

static void make_place(struct zmq_gateway *gateway)
{
    list_for_each_safe(link, &gateway->outlet_list)
    {
        struct outlet *outlet = list_entry(link, struct outlet, link);

        if (gateway->outlet_count < OUTLETS_MAX)
            return;
        if (list_empty(&outlet->held) && list_empty(&outlet->awaiting))
            outlet_end(outlet, 0, NULL);
    }
}

static int outlet_get(struct zmq_gateway *gateway, enum outlet_kind kind, const char *name,
                      struct outlet **ret, struct ipc_error *error)
{
    struct outlet *outlet = find(gateway, kind, name);
    int result;

    if (outlet) {
        if (gateway->outlet_list.previous != &outlet->link) {
            list_remove(&outlet->link);
            list_append(&gateway->outlet_list, &outlet->link);
        }
        *ret = outlet;
        return 0;
    }
    make_place(gateway);
    outlet = gateway->outlet_count < OUTLETS_MAX ? calloc(1, sizeof(*outlet)) : NULL;
    if (!outlet) {
        (void)snprintf(error->text, sizeof(error->text),
                       "the gateway has no place for another topic or queue");
        return -ENOBUFS;
    }
    outlet->gateway = gateway;
    outlet->kind = kind;
    (void)snprintf(outlet->name, sizeof(outlet->name), "%s", name);
    list_init(&outlet->held);
    list_init(&outlet->awaiting);
    hash_add(&gateway->outlets, &outlet->node, key_of(gateway, kind, name));
    list_append(&gateway->outlet_list, &outlet->link);
    gateway->outlet_count++;
    result = open_outlet(outlet, error);
    if (result < 0) {
        outlet_end(outlet, 0, NULL);
        return result;
    }
    *ret = outlet;
    return 0;
}

/* ---- taking --------------------------------------------------------------------------------------------------------- */

static int put_topic(struct outlet *outlet, const struct wire_properties *given, const struct iovec *body,
                     bool wait)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;

    how.flags = wait ? 0 : IPC_PUBLISH_REJECT;
    how.content_type = given->content_type;
    how.headers = given->headers;
    how.header_count = given->header_count;
    return ipc_publisher_publishv(outlet->publisher, body, 1, &how);
}

static int put_queue(struct outlet *outlet, const struct wire_properties *given, const struct iovec *body,
                     uint64_t *ticket)
{
    struct ipc_send how = IPC_SEND_INIT;

    how.content_type = given->content_type;
    how.headers = given->headers;
    how.header_count = given->header_count;
    how.priority = (unsigned)given->priority;
    how.ttl_ns = given->ttl_ms * 1000000;
    how.delay_ns = given->delay_ms * 1000000;
    how.id = given->message_id;
    how.id_size = given->message_id ? strlen(given->message_id) : 0;
    how.key = given->key;
    how.key_size = given->key ? strlen(given->key) : 0;
    how.reply_to = given->reply_to;
    return ipc_producer_sendv(outlet->producer, body, 1, &how, 0, ticket);
}

/* Into libipc; answers unless -EAGAIN. `wait`: those that hold up a topic have had their time. */
static int put(struct outlet *outlet, const struct wire_frame *properties, const struct wire_frame *data,
               const struct origin *origin, bool wait)
{
    static struct wire_properties given; /* large; this thread's */
    const struct iovec body = {(void *)(uintptr_t)data->data, data->size};
    struct awaited *awaited = NULL;
    const char *text = NULL;
    uint64_t ticket = 0;
    int result = wire_properties_parse(properties, &given, &text);

    if (result < 0) {
        answer(outlet->gateway, outlet->kind, outlet->name, origin, result, text);
        return result;
    }
    if (outlet->kind == OUTLET_QUEUE && origin->peer) {
        awaited = malloc(sizeof(*awaited));
        result = awaited ? 0 : -ENOMEM;
    }
    if (result == 0)
        result = outlet->kind == OUTLET_TOPIC ? put_topic(outlet, &given, &body, wait)
                                              : put_queue(outlet, &given, &body, &ticket);
    wire_properties_free(&given);
    if (result == 0 && awaited) {
        *awaited = (struct awaited){.ticket = ticket, .origin = *origin};
        list_append(&outlet->awaiting, &awaited->link);
        return 0;
    }
    free(awaited);
    if (result != -EAGAIN)
        answer(outlet->gateway, outlet->kind, outlet->name, origin, result,
               result == -EMSGSIZE ? "the message is larger than is allowed here" : strerrordesc_np(-result));
    return result;
}

static int hold(struct outlet *outlet, const struct wire_message *message, const struct origin *origin)
{
    struct zmq_gateway *gateway = outlet->gateway;
    size_t size = sizeof(struct held) + message->properties.size + message->body.size;
    struct held *held = NULL;

    /* One message more than wanted, so that those that push can be held up. */
    if (!outlet->full && outlet->held_bytes < gateway->options.backlog_max)
        held = malloc(size);
    if (!held)
        return -EAGAIN;
    held->origin = *origin;
    held->properties_size = message->properties.size;
    held->body_size = message->body.size;
    if (message->properties.size)
        memcpy(held->bytes, message->properties.data, message->properties.size);
    if (message->body.size)
        memcpy(held->bytes + message->properties.size, message->body.data, message->body.size);
    list_append(&outlet->held, &held->link);
    outlet->held_bytes += size;
    if (!outlet->held_since_ns) {
        outlet->held_since_ns = gateway->now_ns;
        gateway->holding++;
        gateway->holding_topics += outlet->kind == OUTLET_TOPIC;
    }
    if (!outlet->over && outlet->kind == OUTLET_QUEUE && outlet->held_bytes >= gateway->options.backlog_max) {
        outlet->over = true;
        gateway->overfull++;
    }
    return 0;
}

void outlet_take(struct zmq_gateway *gateway, enum outlet_kind kind, const struct wire_message *message,
                 struct peer *peer)
{
    struct origin origin = {.peer = peer ? peer->number : 0, .id_size = message->id.size};
    struct outlet *outlet = NULL;
    struct ipc_error error = {0};
    int result = outlet_get(gateway, kind, message->name, &outlet, &error);

    if (message->id.size)
        memcpy(origin.id, message->id.data, message->id.size);
    if (result < 0) {
        answer(gateway, kind, message->name, &origin, result, error.text);
        if (result == -EPIPE)
            session_over(gateway);
        return;
    }
    result = list_empty(&outlet->held) ? put(outlet, &message->properties, &message->body, &origin, false)
                                       : -EAGAIN;
    if (result == -EAGAIN && hold(outlet, message, &origin) < 0)
        answer(gateway, kind, outlet->name, &origin, -EAGAIN,
               kind == OUTLET_TOPIC
                   ? "the topic has no room: a reader that it waits for does not read"
                   : "the queue has no room: it is full, or what sends to it is faster than it");
    if (result == -EPIPE || result == -EIDRM || result == -EACCES)
        outlet_end(outlet, result, "the queue is not there any more, or may not be used");
}

/* What is held, as far as there is room. */
static void retry(struct outlet *outlet)
{
    struct zmq_gateway *gateway = outlet->gateway;
    const bool late = gateway->now_ns - outlet->held_since_ns > BLOCK_MAX_NS;
    bool any = false;

    while (!list_empty(&outlet->held)) {
        struct held *held = list_entry(outlet->held.next, struct held, link);
        const struct wire_frame properties = {held->bytes, held->properties_size};
        const struct wire_frame body = {held->bytes + held->properties_size, held->body_size};

        if (put(outlet, &properties, &body, &held->origin, late && !any) == -EAGAIN)
            break;
        any = true;
        outlet->held_bytes -= sizeof(*held) + held->properties_size + held->body_size;
        list_remove(&held->link);
        free(held);
    }
    if (any) {
        outlet->held_since_ns = gateway->now_ns;
        outlet->full = false;
    }
    if (outlet->over && (late || outlet->held_bytes < gateway->options.backlog_max)) {
        outlet->full = !any && late;
        outlet->over = false;
        gateway->overfull--;
    }
    if (list_empty(&outlet->held)) {
        outlet->held_since_ns = 0;
        outlet->full = false;
        gateway->holding--;
        gateway->holding_topics -= outlet->kind == OUTLET_TOPIC;
    }
}

void outlets_retry(struct zmq_gateway *gateway)
{
    list_for_each(link, &gateway->outlet_list)
    {
        struct outlet *outlet = list_entry(link, struct outlet, link);

        if (outlet->held_since_ns)
            retry(outlet);
    }
}

void outlets_end(struct zmq_gateway *gateway)
{
    list_for_each_safe(link, &gateway->outlet_list)
        outlet_end(list_entry(link, struct outlet, link), -EPIPE, "the gateway ends");
}
