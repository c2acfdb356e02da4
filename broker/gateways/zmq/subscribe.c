/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of topics. A peer's SUB has a subscription of its own. Plain subscribers share channels: one for each pattern, and
 * as few as cover all prefixes: none of these lies within another, so that nothing comes twice.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"
#include "proto/name.h"

/* Messages that a channel may have left when a broader one takes over: more than its lanes hold. */
#define HANDOVER_MAX (1u << 20)

/* Of a peer. */
struct sub {
    struct source source;
    struct list link;
    struct peer *peer;
    size_t id_size;
    unsigned char id[WIRE_ID_MAX];
    ipc_subscription *subscription;
    char pattern[256];
    uint64_t sequence;
    bool some; /* the peer may not see every topic of the pattern */
};

/* What a channel that was replaced by a broader one has sent: not again. */
struct sent {
    struct hash_node node;
    uint64_t session, sequence;
    char topic[256];
};

struct channel {
    struct source source;
    struct list link;
    enum endpoint which;
    char pattern[256];
    unsigned count; /* texts that plain subscribers want and that it covers */
    ipc_subscription *subscription;
    uint64_t sequence; /* of a pattern */
    struct hash sent;
};

struct topic_count {
    struct hash_node node;
    uint64_t sequence;
    char name[];
};

/* A text of SYNC: seen (peer 0), or asked for. */
struct sync {
    struct list link;
    uint64_t peer;
    size_t size;
    unsigned char text[WIRE_ID_MAX];
};

void put_headers(struct wire_text *text, const char *content_type, const void *fields, size_t fields_size)
{
    const struct ipc_message message = {.fields = fields, .fields_size = fields_size};
    size_t position = 0, name_size, value_size;
    const char *name;
    const void *value;

    if (content_type)
        wire_text_string(text, "content_type", content_type, strlen(content_type));
    while (ipc_message_next_header(&message, &position, &name, &name_size, &value, &value_size) == 1)
        wire_text_header(text, name, name_size, value, value_size);
}

/* The next message, whatever its size. Returns 0, or a negative errno. */
static int receive(struct zmq_gateway *gateway, ipc_subscription *subscription, struct ipc_message *message)
{
    ssize_t size = ipc_subscription_receive(subscription, gateway->buffer, gateway->capacity, message, 0);

    if (size == -EMSGSIZE)
        size = gateway_buffer(gateway, message->size)
                   ? ipc_subscription_receive(subscription, gateway->buffer, gateway->capacity, message, 0)
                   : -ENOMEM;
    return size < 0 ? (int)size : 0;
}

/* ---- of a peer ---------------------------------------------------------------------------------------------------- */

static void sub_end(struct zmq_gateway *gateway, struct sub *sub)
{
    list_remove(&sub->link);
    sub->peer->sub_count--;
    source_bury(gateway, &sub->source, sub);
    ipc_subscription_close(sub->subscription);
}

void subs_end(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->subs) sub_end(gateway, list_entry(link, struct sub, link));
}

void subs_review(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->subs)
    {
        struct sub *sub = list_entry(link, struct sub, link);

        if (access_has(gateway, peer, VERB_SUBSCRIBE, sub->pattern,
                       (struct wire_frame){sub->id, sub->id_size}))
            sub->some = !access_covers(gateway, &peer->visitor, sub->pattern);
        else
            sub_end(gateway, sub);
    }
}

static void sub_ready(struct zmq_gateway *gateway, struct source *source)
{
    struct sub *sub = list_entry(source, struct sub, source);
    struct ipc_message message;

    for (unsigned n = 0; n < ROUND_MAX && !sub->peer->gone; n++) {
        int result = receive(gateway, sub->subscription, &message);

        if (result == -EPIPE)
            session_over(gateway);
        if (result < 0)
            return;
        sub->sequence += message.lost;
        if (sub->some && !access_topic(gateway, sub->peer, message.topic))
            continue;
        wire_text_begin(&gateway->text);
        wire_text_number(&gateway->text, "seq", sub->sequence++);
        wire_text_number(&gateway->text, "sender", message.sender->session);
        put_headers(&gateway->text, message.content_type, message.fields, message.fields_size);
        (void)peer_send(gateway, sub->peer, "EVENT", (struct wire_frame){sub->id, sub->id_size},
                        message.topic, wire_text_end(&gateway->text),
                        (struct wire_frame){message.data, message.size}, true);
    }
}

static struct sub *find_sub(const struct peer *peer, const struct wire_frame *id)
{
    list_for_each(link, &peer->subs)
    {
        struct sub *sub = list_entry(link, struct sub, link);

        if (sub->id_size == id->size && memcmp(sub->id, id->data, id->size) == 0)
            return sub;
    }
    return NULL;
}

static int start_of(const char *word, enum ipc_start *ret)
{
    static const char *const words[] = {"next", "last", "oldest"};

    *ret = IPC_START_NEXT;
    for (unsigned i = 0; word && i < 3; i++)
        if (strcmp(word, words[i]) == 0) {
            *ret = (enum ipc_start)i;
            return 0;
        }
    return word ? -EINVAL : 0;
}

static int sub_open(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                    const struct wire_properties *given, struct ipc_error *error)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct sub *sub;
    int result = start_of(given->start, &options.start);

    if (result < 0) {
        (void)snprintf(error->text, sizeof(error->text), "start is next, last or oldest");
        return result;
    }
    if (find_sub(peer, &message->id)) {
        (void)snprintf(error->text, sizeof(error->text), "there is a subscription with this id");
        return -EEXIST;
    }
    sub = peer->sub_count < PEER_THINGS_MAX ? calloc(1, sizeof(*sub)) : NULL;
    if (!sub) {
        (void)snprintf(error->text, sizeof(error->text), "a peer has at most %u subscriptions",
                       PEER_THINGS_MAX);
        return -EDQUOT;
    }
    sub->peer = peer;
    sub->id_size = message->id.size;
    memcpy(sub->id, message->id.data, message->id.size);
    (void)snprintf(sub->pattern, sizeof(sub->pattern), "%s", message->name);
    list_append(&peer->subs, &sub->link);
    peer->sub_count++;
    sub->some = access_rules(gateway) && !access_covers(gateway, &peer->visitor, message->name);
    result = ipc_subscription_open(&sub->subscription, gateway->out, message->name, &options, error);
    if (result == 0) {
        /* It also asks the broker for bells, which answers once the publishers have been told. */
        result = source_add(gateway, &sub->source, ipc_subscription_fd(sub->subscription), sub_ready);
        if (result < 0)
            (void)snprintf(error->text, sizeof(error->text), "it cannot be watched: %s", strerror(-result));
    }
    if (result < 0)
        sub_end(gateway, sub);
    return result;
}

static void sync_asked(struct zmq_gateway *gateway, struct peer *peer, const struct wire_frame *text);

void subscribe_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                       const struct wire_properties *given)
{
    struct ipc_error error = {0};
    struct sub *sub;
    int result;

    switch (message->command) {
    case WIRE_SUB:
        result = sub_open(gateway, peer, message, given, &error);
        if (result == 0)
            peer_ok(gateway, peer, message->id);
        else
            peer_error(gateway, peer, message->id, result, error.text);
        return;
    case WIRE_UNSUB:
        sub = find_sub(peer, &message->id);
        if (sub)
            sub_end(gateway, sub);
        peer_ok(gateway, peer, message->id);
        return;
    default:
        sync_asked(gateway, peer, &message->id);
        return;
    }
}

/* ---- channels: for plain subscribers ------------------------------------------------------------------------------- */

static uint64_t *topic_sequence(struct zmq_gateway *gateway, const char *topic)
{
    size_t size = strlen(topic);
    uint64_t key = hash_string(gateway->secret, topic, size);
    struct topic_count *count;

    for (struct hash_node *node = hash_find(&gateway->topics, key); node; node = hash_find_next(node)) {
        count = list_entry(node, struct topic_count, node);
        if (strcmp(count->name, topic) == 0)
            return &count->sequence;
    }
    count = gateway->topics.count < TOPICS_MAX ? malloc(sizeof(*count) + size + 1) : NULL;
    if (!count)
        return NULL;
    count->sequence = 0;
    memcpy(count->name, topic, size + 1);
    hash_add(&gateway->topics, &count->node, key);
    return &count->sequence;
}

static void forget_topics(struct zmq_gateway *gateway)
{
    for (size_t i = 0; gateway->topics.buckets && i < (size_t)1 << gateway->topics.bits; i++)
        while (gateway->topics.buckets[i]) {
            struct topic_count *count = list_entry(gateway->topics.buckets[i], struct topic_count, node);

            hash_remove(&gateway->topics, &count->node);
            free(count);
        }
    gateway->epoch++; /* counting begins anew */
}

/* To all subscribers that have room; the others miss it, which is counted once. */
static void channel_send(struct zmq_gateway *gateway, struct endpoint_socket *to,
                         const struct wire_frame *frames, unsigned count)
{
    const int drop = 0, keep = 1;
    int result = zmq_send(to->socket, frames[0].data, frames[0].size, ZMQ_SNDMORE | ZMQ_DONTWAIT);

    to->touched = true;
    if (result < 0) {
        const struct log_about about = {.reason = endpoint_word(to->which)};

        to->counts.dropped++;
        log_write(LOG_REFUSED, &about, "a subscriber does not read, and misses messages");
        (void)zmq_setsockopt(to->socket, ZMQ_XPUB_NODROP, &drop, sizeof(drop));
        (void)zmq_send(to->socket, frames[0].data, frames[0].size, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    }
    for (unsigned i = 1; i < count; i++)
        (void)zmq_send(to->socket, frames[i].data, frames[i].size,
                       ZMQ_DONTWAIT | (i + 1 < count ? ZMQ_SNDMORE : 0));
    if (result < 0)
        (void)zmq_setsockopt(to->socket, ZMQ_XPUB_NODROP, &keep, sizeof(keep));
    to->counts.sent++;
}

static void forward(struct zmq_gateway *gateway, struct channel *channel, const struct ipc_message *message)
{
    char pattern[258];
    struct wire_frame frames[4];
    unsigned count = 0;
    uint64_t *sequence = channel->which == ENDPOINT_MATCH ? &channel->sequence
                                                          : topic_sequence(gateway, message->topic);

    if (!sequence) {
        forget_topics(gateway);
        sequence = topic_sequence(gateway, message->topic);
    }
    wire_text_begin(&gateway->text);
    if (sequence) {
        *sequence += message->lost;
        wire_text_number(&gateway->text, "seq", (*sequence)++);
    }
    wire_text_number(&gateway->text, "epoch", gateway->epoch);
    wire_text_number(&gateway->text, "sender", message->sender->session);
    put_headers(&gateway->text, message->content_type, message->fields, message->fields_size);
    if (channel->which == ENDPOINT_MATCH)
        frames[count++] = (struct wire_frame){
            pattern, (size_t)snprintf(pattern, sizeof(pattern), "%s\n", channel->pattern)};
    frames[count++] = (struct wire_frame){message->topic, strlen(message->topic)};
    frames[count++] = wire_text_end(&gateway->text);
    frames[count++] = (struct wire_frame){message->data, message->size};
    channel_send(gateway, &gateway->sockets[channel->which], frames, count);
}

static struct sent *find_sent(const struct zmq_gateway *gateway, const struct channel *channel,
                              const struct ipc_message *message, uint64_t *ret_key)
{
    *ret_key = hash_string(gateway->secret, message->topic, strlen(message->topic)) ^
               message->sender->session;
    for (struct hash_node *node = hash_find(&channel->sent, *ret_key); node; node = hash_find_next(node)) {
        struct sent *sent = list_entry(node, struct sent, node);

        if (sent->session == message->sender->session && strcmp(sent->topic, message->topic) == 0)
            return sent;
    }
    return NULL;
}

/* Did the channel before this one send it? */
static bool was_sent(const struct zmq_gateway *gateway, struct channel *channel,
                     const struct ipc_message *message)
{
    uint64_t key;
    struct sent *sent = channel->sent.count ? find_sent(gateway, channel, message, &key) : NULL;

    if (!sent)
        return false;
    if (message->sequence <= sent->sequence)
        return true;
    hash_remove(&channel->sent, &sent->node);
    free(sent);
    return false;
}

static void remember_sent(const struct zmq_gateway *gateway, struct channel *channel,
                          const struct ipc_message *message)
{
    uint64_t key;
    struct sent *sent = find_sent(gateway, channel, message, &key);

    if (!sent) {
        sent = calloc(1, sizeof(*sent));
        if (!sent)
            return; /* it may come twice */
        sent->session = message->sender->session;
        (void)snprintf(sent->topic, sizeof(sent->topic), "%s", message->topic);
        hash_add(&channel->sent, &sent->node, key);
    }
    sent->sequence = message->sequence;
}

static void channel_ready(struct zmq_gateway *gateway, struct source *source)
{
    struct channel *channel = list_entry(source, struct channel, source);
    struct ipc_message message;

    for (unsigned n = 0; n < ROUND_MAX; n++) {
        int result = receive(gateway, channel->subscription, &message);

        if (result == -EPIPE)
            session_over(gateway);
        if (result < 0)
            return;
        if (!was_sent(gateway, channel, &message))
            forward(gateway, channel, &message);
    }
}

static void channel_end(struct zmq_gateway *gateway, struct channel *channel)
{
    for (size_t i = 0; channel->sent.buckets && i < (size_t)1 << channel->sent.bits; i++)
        while (channel->sent.buckets[i]) {
            struct sent *sent = list_entry(channel->sent.buckets[i], struct sent, node);

            hash_remove(&channel->sent, &sent->node);
            free(sent);
        }
    if (channel->sent.buckets)
        hash_done(&channel->sent);
    list_remove(&channel->link);
    gateway->channel_count--;
    source_bury(gateway, &channel->source, channel);
    ipc_subscription_close(channel->subscription);
}

/* `broader` reads everything by now: send what `channel` has left, and end it. */
static void hand_over(struct zmq_gateway *gateway, struct channel *channel, struct channel *broader)
{
    struct ipc_message message;

    for (unsigned n = 0; n < HANDOVER_MAX && receive(gateway, channel->subscription, &message) == 0; n++) {
        if (!was_sent(gateway, channel, &message))
            forward(gateway, channel, &message);
        remember_sent(gateway, broader, &message);
    }
    broader->count += channel->count;
    channel_end(gateway, channel);
}

static struct channel *channel_open(struct zmq_gateway *gateway, enum endpoint which, const char *pattern)
{
    struct channel *channel = gateway->channel_count < CHANNELS_MAX ? calloc(1, sizeof(*channel)) : NULL;
    struct ipc_error error = {.text = "there are as many as can be"};
    int result = -ENOBUFS;

    if (channel) {
        channel->which = which;
        (void)snprintf(channel->pattern, sizeof(channel->pattern), "%s", pattern);
        list_append(&gateway->channels, &channel->link);
        gateway->channel_count++;
        result = hash_init(&channel->sent);
        if (result == 0)
            result = ipc_subscription_open(&channel->subscription, gateway->out, pattern, NULL, &error);
        if (result == 0)
            result = source_add(gateway, &channel->source, ipc_subscription_fd(channel->subscription),
                                channel_ready);
        if (result == 0)
            return channel;
        channel_end(gateway, channel);
    }
    gateway->sockets[which].counts.bad++;
    const struct log_about about = {.name = pattern, .reason = endpoint_word(which)};
    log_write(LOG_REFUSED, &about, "a subscription was not made: %s: %s", strerror(-result), error.text);
    return NULL;
}

/* The channel that serves a text, if it is open. */
static struct channel *find_channel(const struct zmq_gateway *gateway, enum endpoint which,
                                    const char *pattern)
{
    list_for_each(link, &gateway->channels)
    {
        struct channel *channel = list_entry(link, struct channel, link);

        if (channel->which == which &&
            (which == ENDPOINT_MATCH ? strcmp(channel->pattern, pattern) == 0
                                     : wire_cover_contains(channel->pattern, pattern)))
            return channel;
    }
    return NULL;
}

bool plain_want(struct zmq_gateway *gateway, enum endpoint which, const char *pattern)
{
    struct channel *channel = find_channel(gateway, which, pattern);

    if (!channel)
        channel = channel_open(gateway, which, pattern);
    if (!channel)
        return false;
    channel->count++;
    if (which == ENDPOINT_MATCH)
        return true;
    list_for_each_safe(link, &gateway->channels)
    {
        struct channel *other = list_entry(link, struct channel, link);

        if (other != channel && other->which == which &&
            wire_cover_contains(channel->pattern, other->pattern))
            hand_over(gateway, other, channel);
    }
    return true;
}

void plain_want_no_more(struct zmq_gateway *gateway, enum endpoint which, const char *pattern)
{
    struct channel *channel = find_channel(gateway, which, pattern);

    if (channel && --channel->count == 0)
        channel_end(gateway, channel);
}

/* ---- SYNC ------------------------------------------------------------------------------------------------------------ */

static struct sync *find_sync(const struct zmq_gateway *gateway, const struct wire_frame *text)
{
    list_for_each(link, &gateway->syncs)
    {
        struct sync *sync = list_entry(link, struct sync, link);

        if (sync->size == text->size && memcmp(sync->text, text->data, text->size) == 0)
            return sync;
    }
    return NULL;
}

static void sync_end(struct zmq_gateway *gateway, struct sync *sync)
{
    list_remove(&sync->link);
    gateway->sync_count--;
    free(sync);
}

static void sync_add(struct zmq_gateway *gateway, const struct wire_frame *text, uint64_t peer)
{
    struct sync *sync = malloc(sizeof(*sync));

    if (!sync)
        return;
    sync->peer = peer;
    sync->size = text->size;
    memcpy(sync->text, text->data, text->size);
    list_append(&gateway->syncs, &sync->link);
    if (++gateway->sync_count > SYNCS_MAX)
        sync_end(gateway, list_entry(gateway->syncs.next, struct sync, link));
}

static void sync_asked(struct zmq_gateway *gateway, struct peer *peer, const struct wire_frame *text)
{
    struct sync *sync = find_sync(gateway, text);

    if (text->size < 2 || *(const char *)text->data != '\n')
        peer_error(gateway, peer, *text, -EINVAL,
                   "the id is what the SUB subscribed to last: a line feed and a random word");
    else if (sync && !sync->peer)
        peer_ok(gateway, peer, *text);
    else if (!sync)
        sync_add(gateway, text, peer->number);
}

static void sync_seen(struct zmq_gateway *gateway, const struct wire_frame *text, bool there)
{
    struct sync *sync = text->size <= WIRE_ID_MAX ? find_sync(gateway, text) : NULL;
    struct peer *peer = sync ? peer_by_number(gateway, sync->peer) : NULL;

    if (there && peer)
        peer_ok(gateway, peer, *text);
    if (sync)
        sync_end(gateway, sync);
    if (there && text->size <= WIRE_ID_MAX)
        sync_add(gateway, text, 0);
}

void plain_refused(struct zmq_gateway *gateway, enum endpoint which, const char *name, const char *why)
{
    const struct log_about about = {.name = name, .reason = endpoint_word(which)};

    gateway->sockets[which].counts.bad++;
    log_write(LOG_REFUSED, &about, "a subscription was not made: %s", why);
}

const char *plain_pattern(enum endpoint which, const struct wire_frame *text, char ret[256])
{
    char *end;

    if (which == ENDPOINT_SUB) {
        wire_prefix_cover(text->data, text->size, ret);
        return NULL;
    }
    (void)snprintf(ret, 256, "%.*s", (int)(text->size < 256 ? text->size : 256), (const char *)text->data);
    end = strchr(ret, '\n');
    if (!end)
        return "a pattern ends with a line feed";
    *end = '\0';
    return ipc_name_check(ret, true);
}

bool plain_sync(struct zmq_gateway *gateway, const struct wire_frame *text, bool there)
{
    if (text->size == 0 || *(const char *)text->data != '\n')
        return false;
    sync_seen(gateway, text, there);
    return true;
}

void subscribe_plain(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message)
{
    const char *bytes = zmq_msg_data((zmq_msg_t *)(uintptr_t)message), *wrong;
    const struct wire_frame text = {bytes + 1, zmq_msg_size(message) - 1};
    char pattern[256];

    if (access_rules(gateway)) {
        watch_message(gateway, which, message);
        return;
    }
    if (zmq_msg_size(message) == 0 || (bytes[0] != 0 && bytes[0] != 1))
        return; /* an XSUB may send what it likes */
    if (plain_sync(gateway, &text, bytes[0] == 1))
        return;
    wrong = plain_pattern(which, &text, pattern);
    if (wrong)
        plain_refused(gateway, which, pattern, wrong);
    else if (bytes[0] == 1)
        (void)plain_want(gateway, which, pattern);
    else
        plain_want_no_more(gateway, which, pattern);
}

void subscribe_end(struct zmq_gateway *gateway)
{
    list_for_each_safe(link, &gateway->channels) channel_end(gateway, list_entry(link, struct channel, link));
    list_for_each_safe(link, &gateway->syncs) sync_end(gateway, list_entry(link, struct sync, link));
    forget_topics(gateway);
}
