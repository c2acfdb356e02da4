/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of queues: a consumer for each peer and queue. So a slow peer holds no more than its window, and what it did not
 * acknowledge goes to others the moment its consumer is closed. Which is also done when a peer has acknowledged everything and
 * asks for no more: what waits here for it is for others, and with the next PULL there is another consumer.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/gateways/zmq/gateway.h"

#define WINDOW_DEFAULT 256u
#define IDLE_NS        UINT64_C(1000000000)

/* A message that the peer has. */
struct delivery {
    struct hash_node node;
};

/* Of a consumer, which may end before its pull. */
struct intake {
    struct source source;
    struct pull *pull;
};

struct pull {
    struct list link;
    struct peer *peer;
    char queue[256];
    ipc_consumer *consumer;
    struct intake *intake;
    uint64_t credit, window;
    uint64_t idle_since_ns; /* 0: it is not */
    struct hash open;       /* deliveries */
};

static struct pull *find(const struct peer *peer, const char *queue)
{
    list_for_each(link, &peer->pulls)
    {
        struct pull *pull = list_entry(link, struct pull, link);

        if (strcmp(pull->queue, queue) == 0)
            return pull;
    }
    return NULL;
}

static void consumer_close(struct zmq_gateway *gateway, struct pull *pull)
{
    if (pull->intake)
        source_bury(gateway, &pull->intake->source, pull->intake);
    pull->intake = NULL;
    pull->consumer = ipc_consumer_close(pull->consumer);
    gateway->idle_pulls -= pull->idle_since_ns > 0;
    pull->idle_since_ns = 0;
}

/* After credit or what is open has changed. */
static void look_idle(struct zmq_gateway *gateway, struct pull *pull)
{
    const bool idle = pull->consumer && !pull->credit && !pull->open.count;

    if (idle == (pull->idle_since_ns > 0))
        return;
    pull->idle_since_ns = idle ? gateway->now_ns : 0;
    if (idle)
        gateway->idle_pulls++;
    else
        gateway->idle_pulls--;
}

void pulls_check(struct zmq_gateway *gateway)
{
    if (!gateway->idle_pulls)
        return;
    list_for_each(link, &gateway->peer_list)
    {
        list_for_each(of_peer, &list_entry(link, struct peer, link)->pulls)
        {
            struct pull *pull = list_entry(of_peer, struct pull, link);

            if (pull->idle_since_ns && gateway->now_ns - pull->idle_since_ns > IDLE_NS)
                consumer_close(gateway, pull);
        }
    }
}

static void pull_end(struct zmq_gateway *gateway, struct pull *pull)
{
    hash_clear(&pull->open);
    hash_done(&pull->open);
    list_remove(&pull->link);
    pull->peer->pull_count--;
    consumer_close(gateway, pull);
    free(pull);
}

void pulls_end(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->pulls) pull_end(gateway, list_entry(link, struct pull, link));
}

void pulls_review(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->pulls)
    {
        struct pull *pull = list_entry(link, struct pull, link);

        if (!access_has(gateway, peer, VERB_RECEIVE, pull->queue,
                        (struct wire_frame){pull->queue, strlen(pull->queue)}))
            pull_end(gateway, pull);
    }
}

/* ---- messages ------------------------------------------------------------------------------------------------- */

static void describe(struct wire_text *text, const struct ipc_queue_message *message)
{
    size_t position = 0, name_size, value_size;
    const char *name;
    const void *value;

    wire_text_begin(text);
    wire_text_number(text, "attempt", message->attempt);
    if (message->redelivered) {
        const char *word = ipc_redelivered_word(message->redelivered);

        wire_text_string(text, "redelivered", word, strlen(word));
    }
    if (message->priority)
        wire_text_number(text, "priority", message->priority);
    wire_text_number(text, "number", message->number);
    wire_text_number(text, "sender", message->sender_session);
    wire_text_number(text, "uid", message->sender_uid);
    if (message->reply_to)
        wire_text_string(text, "reply_to", message->reply_to, strlen(message->reply_to));
    if (message->id)
        wire_text_string(text, "message_id", message->id, message->id_size);
    if (message->key)
        wire_text_string(text, "key", message->key, message->key_size);
    if (message->content_type)
        wire_text_string(text, "content_type", message->content_type, strlen(message->content_type));
    while (ipc_queue_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1)
        wire_text_header(text, name, name_size, value, value_size);
}

/* Returns 0, or a negative errno: no more now. */
static int deliver(struct zmq_gateway *gateway, struct pull *pull)
{
    struct delivery *delivery = malloc(sizeof(*delivery));
    struct ipc_queue_message message;
    char id[24];
    ssize_t taken = delivery ? ipc_consumer_take(pull->consumer, &message, 1, 0) : -ENOMEM;

    if (taken < 0) {
        free(delivery);
        return (int)taken;
    }
    hash_add(&pull->open, &delivery->node, message.delivery);
    describe(&gateway->text, &message);
    const struct wire_frame tag = {
        id, (size_t)snprintf(id, sizeof(id), "%llu", (unsigned long long)message.delivery)};
    (void)peer_send(gateway, pull->peer, "MSG", tag, pull->queue, wire_text_end(&gateway->text),
                    (struct wire_frame){message.data, message.size}, false);
    (void)ipc_consumer_release(pull->consumer, 1);
#ifdef IPC_PLANT_CREDIT_ENDLESS
    return 0;
#endif
    pull->credit--;
    return 0;
}

static void pull_run(struct zmq_gateway *gateway, struct pull *pull)
{
    int result = 0;

    if (!pull->consumer)
        return;
    for (unsigned n = 0; n < ROUND_MAX && result == 0 && pull->credit && peer_ready(pull->peer); n++)
        result = deliver(gateway, pull);
    if (result < 0 && result != -EAGAIN && result != -ENOMEM) {
        peer_error(gateway, pull->peer, (struct wire_frame){pull->queue, strlen(pull->queue)}, result,
                   "the queue is not there any more, or may not be used: what was pulled from it is over");
        pull_end(gateway, pull);
        return;
    }
    source_enable(gateway, &pull->intake->source, pull->credit && peer_ready(pull->peer));
    look_idle(gateway, pull);
}

static void pull_ready(struct zmq_gateway *gateway, struct source *source)
{
    pull_run(gateway, list_entry(source, struct intake, source)->pull);
}

void pulls_resume(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->pulls) pull_run(gateway, list_entry(link, struct pull, link));
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static int consumer_open(struct zmq_gateway *gateway, struct pull *pull, struct ipc_error *error)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    int result;

    options.prefetch = (uint32_t)pull->window;
    pull->intake = calloc(1, sizeof(*pull->intake));
    if (!pull->intake)
        return -ENOMEM;
    pull->intake->pull = pull;
    result = ipc_consumer_open(&pull->consumer, gateway->out, pull->queue, &options, error);
    if (result < 0)
        return result;
    result = source_add(gateway, &pull->intake->source, ipc_consumer_fd(pull->consumer), pull_ready);
    if (result < 0)
        (void)snprintf(error->text, sizeof(error->text), "the queue cannot be watched: %s",
                       strerror(-result));
    return result;
}

static int pull_open(struct zmq_gateway *gateway, struct peer *peer, const char *queue, uint64_t window,
                     struct pull **ret, struct ipc_error *error)
{
    struct pull *pull = peer->pull_count < PEER_THINGS_MAX ? calloc(1, sizeof(*pull)) : NULL;
    int result;

    if (!pull) {
        (void)snprintf(error->text, sizeof(error->text), "a peer pulls from at most %u queues",
                       PEER_THINGS_MAX);
        return -EDQUOT;
    }
    pull->peer = peer;
    (void)snprintf(pull->queue, sizeof(pull->queue), "%s", queue);
    list_append(&peer->pulls, &pull->link);
    peer->pull_count++;
    pull->window = window;
    result = hash_init(&pull->open);
    if (result < 0) {
        pull_end(gateway, pull);
        return result;
    }
    *ret = pull;
    return 0;
}

static void pull_more(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                      const struct wire_properties *given)
{
    struct pull *pull = find(peer, message->name);
    struct ipc_error error = {0};
    uint64_t credit = given->credit ? given->credit : 1;
    uint64_t window = given->window ? given->window : credit < WINDOW_DEFAULT ? credit : WINDOW_DEFAULT;
    int result = pull ? 0 : pull_open(gateway, peer, message->name, window, &pull, &error);

    if (result == 0 && !pull->consumer) {
        result = consumer_open(gateway, pull, &error);
        if (result < 0)
            pull_end(gateway, pull);
    }
    if (result < 0) {
        peer_error(gateway, peer, message->id, result, error.text);
        if (result == -EPIPE)
            session_over(gateway);
        return;
    }
    pull->credit += credit;
    peer_ok(gateway, peer, message->id);
    pull_run(gateway, pull);
}

/* Those of a range that the peer has; each is decided once. Returns how many. */
static uint64_t settle(struct zmq_gateway *gateway, struct pull *pull, uint64_t first, uint64_t last,
                       const struct ipc_nack *nack)
{
    uint64_t count = 0, highest = 0;

    for (uint64_t at = first; pull->open.count && at - first <= last - first; at++) {
        struct hash_node *node = hash_find(&pull->open, at);

        if (node) {
            hash_remove(&pull->open, node);
            free(list_entry(node, struct delivery, node));
            count++;
            highest = at;
            if (nack)
                (void)ipc_consumer_nack(pull->consumer, at, at, nack);
        }
        if (at == last)
            break;
    }
    if (count && !nack)
        (void)ipc_consumer_ack_range(pull->consumer, first, highest);
    look_idle(gateway, pull);
    return count;
}

static void decide(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                   const struct wire_properties *given)
{
    struct pull *pull = find(peer, message->name);
    struct ipc_nack nack = IPC_NACK_INIT;
    uint64_t first = 0, last = 0;

    nack.flags = given->dead ? IPC_NACK_DEAD : 0;
    nack.delay_ns = given->delay_ms * 1000000;
    nack.reason = given->reason;
    if (wire_range_parse(&message->id, &first, &last) < 0 || last - first >= 1000000)
        peer_error(gateway, peer, message->id, -EINVAL,
                   "the id is a delivery, as 17, or a range of at most a million, as 12-17");
    else if (!pull || settle(gateway, pull, first, last, message->command == WIRE_NACK ? &nack : NULL) == 0)
        peer_error(gateway, peer, message->id, -ENOENT,
                   "that was not delivered to this peer, or was acknowledged or refused before");
}

void pull_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                  const struct wire_properties *given)
{
    if (message->command == WIRE_PULL) {
        pull_more(gateway, peer, message, given);
    } else if (message->command == WIRE_STOP) {
        struct pull *pull = find(peer, message->name);

        if (pull)
            pull_end(gateway, pull);
        peer_ok(gateway, peer, message->id);
    } else {
        decide(gateway, peer, message, given);
    }
}
