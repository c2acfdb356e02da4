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

/* How long what a broader channel replaced is read beside it. A publisher that was in the middle of a message when the broader
 * one came does not know it yet. */
#define OVERLAP_NS UINT64_C(1000000000)

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

/* The number of the message that is to come next of a publisher (the key). */
struct due {
    struct hash_node node;
    uint64_t sequence;
};

struct channel {
    struct source source;
    struct list link;
    enum endpoint which;
    char pattern[256];
    unsigned count; /* texts that plain subscribers want and that it covers */
    ipc_subscription *subscription;
    uint64_t sequence; /* of a pattern */
    bool replaced;     /* by a broader one, and read until that one is known to all publishers */
    struct buffer buffer;
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
    bool skipped; /* when it was seen, with what the same SUB wanted */
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
static int receive(struct zmq_gateway *gateway, ipc_subscription *subscription, struct buffer *buffer,
                   struct ipc_message *message)
{
    ssize_t size = ipc_subscription_receive(subscription, buffer->bytes, buffer->capacity, message, 0);

    if (size == -EMSGSIZE)
        size = buffer_grow(buffer, message->size)
                   ? ipc_subscription_receive(subscription, buffer->bytes, buffer->capacity, message, 0)
                   : -ENOMEM;
    if (size == -EPIPE)
        session_over(gateway);
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
        if (receive(gateway, sub->subscription, &gateway->buffer, &message) < 0)
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
    hash_clear(&gateway->topics);
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

/* NULL: there is no memory, and a message may come twice. */
static struct due *due_of(struct zmq_gateway *gateway, uint64_t publisher)
{
    struct hash_node *node = hash_find(&gateway->due, publisher);
    struct due *due = node ? list_entry(node, struct due, node) : calloc(1, sizeof(*due));

    if (due && !node)
        hash_add(&gateway->due, &due->node, publisher);
    return due;
}

static void forget_due(struct zmq_gateway *gateway)
{
    hash_clear(&gateway->due);
    gateway->overlap_ns = 0;
}

static void pass(struct zmq_gateway *gateway, struct channel *channel, struct ipc_message *message);

/* What came before that message, by channels that were there before this one. */
static void pass_older(struct zmq_gateway *gateway, const struct channel *channel,
                       const struct ipc_message *message, const struct due *due)
{
    struct ipc_message before;

    list_for_each(link, &gateway->channels)
    {
        struct channel *other = list_entry(link, struct channel, link);

        if (other == channel)
            return;
        if (other->replaced && wire_cover_contains(other->pattern, message->topic))
            while (due->sequence < message->sequence &&
                   receive(gateway, other->subscription, &other->buffer, &before) == 0)
                pass(gateway, other, &before);
    }
}

/* Send it, unless another channel did. */
static void pass(struct zmq_gateway *gateway, struct channel *channel, struct ipc_message *message)
{
    struct due *due = NULL;

    if (channel->which == ENDPOINT_SUB && gateway->overlap_ns)
        due = due_of(gateway, message->publisher);
    if (due) {
        pass_older(gateway, channel, message, due);
        if (due->sequence > message->sequence)
            return;
        if (due->sequence > 0)
            message->lost = message->sequence - due->sequence;
        due->sequence = message->sequence + 1;
    }
    forward(gateway, channel, message);
}

/* Returns whether it is empty. */
static bool channel_read(struct zmq_gateway *gateway, struct channel *channel)
{
    struct ipc_message message;

    for (unsigned n = 0; n < ROUND_MAX; n++) {
        if (receive(gateway, channel->subscription, channel->replaced ? &channel->buffer : &gateway->buffer,
                    &message) < 0)
            return true;
        pass(gateway, channel, &message);
    }
    return false;
}

static void channel_ready(struct zmq_gateway *gateway, struct source *source)
{
    (void)channel_read(gateway, list_entry(source, struct channel, source));
}

static void channel_end(struct zmq_gateway *gateway, struct channel *channel)
{
    list_remove(&channel->link);
    gateway->channel_count--;
    free(channel->buffer.bytes);
    source_bury(gateway, &channel->source, channel);
    ipc_subscription_close(channel->subscription);
}

/* `broader` is told to publishers by now, but may miss what they are just publishing. */
static void replace(struct zmq_gateway *gateway, struct channel *channel, struct channel *broader)
{
    broader->count += channel->count;
    channel->replaced = true;
    gateway->overlap_ns = gateway->now_ns + OVERLAP_NS;
}

void channels_check(struct zmq_gateway *gateway)
{
    bool empty = true;

    if (!gateway->overlap_ns || gateway->now_ns < gateway->overlap_ns)
        return;
    list_for_each_safe(link, &gateway->channels)
    {
        struct channel *channel = list_entry(link, struct channel, link);

        if (channel->replaced && channel_read(gateway, channel))
            channel_end(gateway, channel);
    }
    /* What the others have not sent yet may be what those sent. */
    list_for_each(link, &gateway->channels)
    {
        struct channel *channel = list_entry(link, struct channel, link);

        if (channel->which == ENDPOINT_SUB)
            empty = channel_read(gateway, channel) && !channel->replaced && empty;
    }
    if (empty)
        forget_due(gateway);
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

        if (channel->which == which && !channel->replaced &&
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
    list_for_each(link, &gateway->channels)
    {
        struct channel *other = list_entry(link, struct channel, link);

        if (other != channel && other->which == which && !other->replaced &&
            wire_cover_contains(channel->pattern, other->pattern))
            replace(gateway, other, channel);
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

static void sync_add(struct zmq_gateway *gateway, const struct wire_frame *text, uint64_t peer, bool skipped)
{
    struct sync *sync = malloc(sizeof(*sync));

    if (!sync)
        return;
    sync->peer = peer;
    sync->skipped = skipped;
    sync->size = text->size;
    memcpy(sync->text, text->data, text->size);
    list_append(&gateway->syncs, &sync->link);
    if (++gateway->sync_count > SYNCS_MAX)
        sync_end(gateway, list_entry(gateway->syncs.next, struct sync, link));
}

static void sync_answer(struct zmq_gateway *gateway, struct peer *peer, const struct wire_frame *text,
                        bool skipped)
{
    if (skipped)
        peer_error(
            gateway, peer, *text, -EAGAIN,
            "the SUB has to connect again, which it does by itself: subscribe to another word, and ask for that");
    else
        peer_ok(gateway, peer, *text);
}

static void sync_asked(struct zmq_gateway *gateway, struct peer *peer, const struct wire_frame *text)
{
    struct sync *sync = find_sync(gateway, text);

    if (text->size < 2 || *(const char *)text->data != '\n')
        peer_error(gateway, peer, *text, -EINVAL,
                   "the id is what the SUB subscribed to last: a line feed and a random word");
    else if (sync && !sync->peer)
        sync_answer(gateway, peer, text, sync->skipped);
    else if (!sync)
        sync_add(gateway, text, peer->number, false);
}

static void sync_seen(struct zmq_gateway *gateway, const struct wire_frame *text, bool there, bool skipped)
{
    struct sync *sync = text->size <= WIRE_ID_MAX ? find_sync(gateway, text) : NULL;
    struct peer *peer = sync ? peer_by_number(gateway, sync->peer) : NULL;

    if (there && peer)
        sync_answer(gateway, peer, text, skipped);
    if (sync)
        sync_end(gateway, sync);
    if (there && text->size <= WIRE_ID_MAX)
        sync_add(gateway, text, 0, skipped);
}

void plain_refused(struct zmq_gateway *gateway, enum endpoint which, const char *name, const char *why)
{
    const struct log_about about = {.name = name, .reason = endpoint_word(which)};

    gateway->sockets[which].counts.bad++;
    log_write(LOG_BAD_INPUT, &about, "a subscription was not made: %s", why);
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

bool plain_sync(struct zmq_gateway *gateway, const struct wire_frame *text, bool there, bool skipped)
{
    if (text->size == 0 || *(const char *)text->data != '\n')
        return false;
    sync_seen(gateway, text, there, skipped);
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
    if (plain_sync(gateway, &text, bytes[0] == 1, false))
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
    forget_due(gateway);
}
