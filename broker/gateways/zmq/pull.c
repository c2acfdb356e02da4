/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of queues: a consumer for each peer and queue. So a slow peer holds no more than its window, and what it did not
 * acknowledge goes to others the moment its consumer is closed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/gateways/zmq/gateway.h"

#define WINDOW_DEFAULT 256u

/* A message that the peer has. */
struct delivery {
    struct hash_node node;
};

struct pull {
    struct source source;
    struct list link;
    struct peer *peer;
    char queue[256];
    ipc_consumer *consumer;
    uint64_t credit;
    struct hash open; /* deliveries */
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

static void pull_end(struct zmq_gateway *gateway, struct pull *pull)
{
    if (pull->open.buckets) {
        for (size_t i = 0; i < (size_t)1 << pull->open.bits; i++)
            for (struct hash_node *node = pull->open.buckets[i], *next; node; node = next) {
                next = node->next;
                free(list_entry(node, struct delivery, node));
            }
        hash_done(&pull->open);
    }
    list_remove(&pull->link);
    pull->peer->pull_count--;
    source_bury(gateway, &pull->source, pull);
    ipc_consumer_close(pull->consumer);
}

void pulls_end(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->pulls) pull_end(gateway, list_entry(link, struct pull, link));
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
    pull->credit--;
    return 0;
}

static void pull_run(struct zmq_gateway *gateway, struct pull *pull)
{
    int result = 0;

    for (unsigned n = 0; n < ROUND_MAX && result == 0 && pull->credit && peer_ready(pull->peer); n++)
        result = deliver(gateway, pull);
    if (result < 0 && result != -EAGAIN && result != -ENOMEM) {
        peer_error(gateway, pull->peer, (struct wire_frame){pull->queue, strlen(pull->queue)}, result,
                   "the queue is not there any more, or may not be used: what was pulled from it is over");
        pull_end(gateway, pull);
        return;
    }
    source_enable(gateway, &pull->source, pull->credit && peer_ready(pull->peer));
}

static void pull_ready(struct zmq_gateway *gateway, struct source *source)
{
    pull_run(gateway, list_entry(source, struct pull, source));
}

void pulls_resume(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->pulls) pull_run(gateway, list_entry(link, struct pull, link));
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static int pull_open(struct zmq_gateway *gateway, struct peer *peer, const char *queue, uint64_t window,
                     struct pull **ret, struct ipc_error *error)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
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
    options.prefetch = (uint32_t)window;
    result = hash_init(&pull->open);
    if (result == 0)
        result = ipc_consumer_open(&pull->consumer, gateway->out, queue, &options, error);
    if (result == 0) {
        result = source_add(gateway, &pull->source, ipc_consumer_fd(pull->consumer), pull_ready);
        if (result < 0)
            (void)snprintf(error->text, sizeof(error->text), "the queue cannot be watched: %s",
                           strerror(-result));
    }
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
static uint64_t settle(struct pull *pull, uint64_t first, uint64_t last, const struct ipc_nack *nack)
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
    else if (!pull || settle(pull, first, last, message->command == WIRE_NACK ? &nack : NULL) == 0)
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
