/* SPDX-License-Identifier: Apache-2.0
 *
 * From a queue or a topic into an mqueue. Of a queue, messages are acknowledged after the mqueue has taken them, some at a
 * time, and before anything is waited for: if this process is killed in between, they come again. While the mqueue is full,
 * nothing more is taken.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/gateways/mq/mq.h"
#include "proto/name.h"

#define ACKS_MAX 16u /* messages that come again at most */

struct outbound {
    struct gateway_binding *binding;
    struct mqueue mqueue;
    ipc_mq *envelopes; /* NULL: the raw form */
    struct mq_headers headers;
    ipc_consumer *consumer;
    ipc_subscription *subscription;
    struct gateway_source input;
    struct ipc_queue_message taken[MQ_BURST]; /* of a queue: [next, count) wait to be sent, */
    size_t acked, next, count;                /* [acked, next) to be acknowledged */
    char *buffer;                             /* of a topic: capacity bytes, in which `held` are a message */
    size_t capacity;
    struct ipc_message message;
    bool held, detached;
};

static bool is_full(int error)
{
    return error == EAGAIN || error == EINTR;
}

/* 0: the mqueue has it; 1: it is full and the message dropped; -EAGAIN: it is full; another negative errno. */
static int put(struct outbound *out, const struct ipc_mq_message *message)
{
    const struct mq_settings *settings = out->binding->settings;
    struct gateway_counters *counters = &out->binding->counters;
    int result;

    if (out->envelopes)
        result = ipc_mq_send(out->envelopes, message, 0);
    else
        result = mq_send(out->mqueue.source.fd, message->data, message->data_size, message->priority) == 0
                     ? 0
                     : -errno;
    if (result == 0) {
        counters->sent++;
        counters->bytes += message->data_size;
    }
    if (result == 0 || !is_full(-result))
        return result;
    if (settings->full == MQ_FULL_WAIT)
        return -EAGAIN;
    counters->dropped++;
    return 1;
}

/* Bytes that it takes in an mqueue, if that is more than one of its messages holds, and it is not to be split; else 0. */
static size_t too_large(const struct outbound *out, const struct ipc_mq_message *message)
{
    const struct mq_settings *settings = out->binding->settings;
    size_t size = message->data_size;

    if (settings->oversize == MQ_OVERSIZE_SPLIT)
        return 0;
    if (out->envelopes) {
        ssize_t packed = ipc_mq_pack(message, NULL, 0);

        if (packed > 0)
            size = (size_t)packed;
    }
    return size > out->mqueue.message_size ? size : 0;
}

/* Messages are taken, or what is there waits for room. */
static void wait_on(struct outbound *out, bool full)
{
    struct gateway *gateway = out->binding->gateway;

    out->binding->blocked = full;
    out->binding->counters.held = out->count - out->next + out->held;
    (void)mqueue_watch(&out->mqueue, full ? EPOLLOUT : 0);
    (void)gateway_watch(gateway, &out->input, full ? 0 : EPOLLIN);
}

/* ---- of a queue ------------------------------------------------------------------------------------------ */

static int refuse(struct outbound *out, const struct ipc_queue_message *message, size_t size)
{
    const struct mq_settings *settings = out->binding->settings;
    struct ipc_nack how = IPC_NACK_INIT;
    char reason[192];

    if (settings->oversize == MQ_OVERSIZE_DROP) {
        out->binding->counters.dropped++;
        return ipc_consumer_ack(out->consumer, message->delivery);
    }
    (void)snprintf(reason, sizeof(reason), "%zu bytes are more than the %zu of mqueue %.64s", size,
                   out->mqueue.message_size, settings->mqueue);
    how.flags = IPC_NACK_DEAD;
    how.reason = reason;
    out->binding->counters.dead++;
    gateway_binding_say(out->binding, "a dead letter: %s", reason);
    return ipc_consumer_nack(out->consumer, message->delivery, message->delivery, &how);
}

static struct ipc_mq_message envelope_of_queue(struct outbound *out, const struct ipc_queue_message *message)
{
    struct ipc_mq_message to = IPC_MQ_MESSAGE_INIT;

    to.priority = message->priority;
    to.data = message->data;
    to.data_size = message->size;
    if (!out->envelopes)
        return to;
    to.name = ((const struct mq_settings *)out->binding->settings)->queue;
    to.id = message->id;
    to.id_size = message->id ? message->id_size : 0;
    to.key = message->key;
    to.key_size = message->key ? message->key_size : 0;
    to.reply_to = message->reply_to;
    to.content_type = message->content_type;
    to.headers = out->headers.headers;
    to.header_count = mq_headers_out(&out->headers, message->fields, message->fields_size);
    to.attempt = message->attempt;
    return to;
}

/* What was sent and is not acknowledged yet. */
static int acknowledge(struct outbound *out)
{
    int result = out->acked < out->next
                     ? ipc_consumer_ack_range(out->consumer, out->taken[out->acked].delivery,
                                              out->taken[out->next - 1].delivery)
                     : 0;

    if (result == 0)
        out->acked = out->next;
    return result;
}

/* The next one. 0, or as send_taken(). */
static int send_next(struct outbound *out)
{
    const struct ipc_queue_message *message = &out->taken[out->next];
    const struct ipc_mq_message envelope = envelope_of_queue(out, message);
    size_t size = too_large(out, &envelope);
    int result;

    if (size > 0) {
        result = acknowledge(out);
        if (result == 0)
            result = refuse(out, message, size);
        if (result == 0)
            out->acked = ++out->next;
        return result;
    }
#ifdef IPC_PLANT_MQUEUE_UNASKED
    (void)ipc_consumer_ack(out->consumer, message->delivery);
#endif
    result = put(out, &envelope);
    if (result < 0)
        return result;
    out->next++;
    return out->next - out->acked < ACKS_MAX ? 0 : acknowledge(out);
}

/* 0; -EAGAIN the mqueue is full; another negative errno: of the consumer or the mqueue. */
static int send_taken(struct outbound *out)
{
    int result = 0, acknowledged;

    while (out->next < out->count && result == 0)
        result = send_next(out);
    acknowledged = acknowledge(out);
    if (out->next == out->count && out->count > 0) {
        (void)ipc_consumer_release(out->consumer, out->count);
        out->acked = out->next = out->count = 0;
    }
    return acknowledged < 0 ? acknowledged : result;
}

static int from_queue(struct outbound *out)
{
    int result = send_taken(out);

    if (result == 0) {
        ssize_t count = ipc_consumer_take(out->consumer, out->taken, MQ_BURST, 0);

        if (count == -EAGAIN)
            return 0;
        if (count < 0)
            return (int)count;
        out->count = (size_t)count;
        result = send_taken(out);
    }
    return result;
}

/* ---- of a topic ------------------------------------------------------------------------------------------ */

static int join(struct outbound *out, struct ipc_error *error)
{
    const struct mq_settings *settings = out->binding->settings;
    struct gateway *gateway = out->binding->gateway;
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    int result;

    options.spin_max_ns = 0;
    options.flags = IPC_SUBSCRIPTION_SELF; /* what comes from another mqueue, too */
    options.slow = settings->full == MQ_FULL_WAIT ? IPC_SLOW_BLOCK : IPC_SLOW_DROP_OLDEST;
    gateway_unwatch(gateway, &out->input);
    out->subscription = ipc_subscription_close(out->subscription);
    result = ipc_subscription_open(&out->subscription, gateway->connection, settings->topic, &options, error);
    if (result < 0)
        return result;
    out->input.fd = ipc_subscription_fd(out->subscription);
    return out->input.fd < 0 ? out->input.fd : gateway_watch(gateway, &out->input, EPOLLIN);
}

/* The next message into the buffer, which grows as needed. */
static int receive(struct outbound *out)
{
    for (;;) {
        ssize_t size =
            ipc_subscription_receive(out->subscription, out->buffer, out->capacity, &out->message, 0);

        if (size != -EMSGSIZE) {
            if (size >= 0) {
                out->binding->counters.dropped += out->message.lost;
                out->held = true;
            }
            return size < 0 ? (int)size : 0;
        }
        char *larger = realloc(out->buffer, out->message.size);

        if (!larger)
            return -ENOMEM;
        out->buffer = larger;
        out->capacity = out->message.size;
    }
}

static struct ipc_mq_message envelope_of_topic(struct outbound *out)
{
    struct ipc_mq_message to = IPC_MQ_MESSAGE_INIT;

    to.data = out->message.data;
    to.data_size = out->message.size;
    if (!out->envelopes)
        return to;
    to.name = out->message.topic;
    to.content_type = out->message.content_type;
    to.headers = out->headers.headers;
    to.header_count = mq_headers_out(&out->headers, out->message.fields, out->message.fields_size);
    return to;
}

static int from_topic(struct outbound *out)
{
    for (unsigned i = 0; i < MQ_BURST; i++) {
        int result = out->held ? 0 : receive(out);

        if (result == -EAGAIN)
            break;
        if (result < 0)
            return result;
        const struct ipc_mq_message envelope = envelope_of_topic(out);
        size_t size = too_large(out, &envelope);

        if (size > 0) {
            out->binding->counters.dropped++;
            gateway_binding_say(out->binding, "dropped: %zu bytes are more than the %zu of its mqueue", size,
                                out->mqueue.message_size);
        } else {
            result = put(out, &envelope);
        }
        if (result < 0)
            return result;
        out->held = false;
    }
    if (out->detached) {
        out->detached = false;
        return join(out, NULL);
    }
    return 0;
}

/* A publisher that waited for us has given up. Until we join again, what it publishes is lost to us. */
void out_event(struct gateway_binding *binding, const struct ipc_event *event)
{
    const struct mq_settings *settings = binding->settings;
    struct outbound *out = binding->open;

    if (!out || !out->subscription || event->kind != IPC_EVENT_WRITER_LEFT ||
        event->reason != IPC_REASON_SLOW || !ipc_name_match(settings->topic, event->topic))
        return;
    binding->counters.dropped++;
    gateway_binding_say(
        binding,
        "its mqueue was full for so long that %s[%u] goes on without it: messages of %.100s are lost",
        event->peer.name, event->peer.pid, event->topic);
    out->detached = true;
}

/* ---- both ------------------------------------------------------------------------------------------------ */

static void go_on(struct outbound *out)
{
    struct gateway *gateway = out->binding->gateway;
    int result = out->consumer ? from_queue(out) : from_topic(out);

    if (result == 0 || result == -EAGAIN) {
        wait_on(out, result == -EAGAIN);
        if (out->subscription)
            gateway_take_events(gateway);
        return;
    }
    if (!gateway_is_over(gateway, result))
        gateway_binding_fail(out->binding, "messages cannot be handed on: %s", strerror(-result));
}

static void on_input(struct gateway_source *source, uint32_t events)
{
    (void)events;
    go_on(source->context);
}

static void on_room(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;

    (void)events;
    go_on(mqueue->binding->open);
}

int out_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct gateway *gateway = binding->gateway;
    struct outbound *out = calloc(1, sizeof(*out));
    struct ipc_error error = {.text = ""};
    int result;

    if (!out)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = out;
    out->binding = binding;
    out->mqueue.source.fd = -1;
    out->input = (struct gateway_source){.fd = -1, .ready = on_input, .context = out};
    result = mqueue_open(&out->mqueue, binding, settings->mqueue, O_WRONLY, on_room, why);
    if (result == 0 && settings->form == MQ_ENVELOPED)
        result = mq_end_open(&out->envelopes, &out->mqueue, why);
    if (result < 0)
        return result;
    if (settings->topic[0])
        return mq_why(why, settings->topic, join(out, &error), &error);
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;

    options.spin_max_ns = 0;
    options.prefetch = (uint32_t)settings->prefetch;
    result = ipc_consumer_open(&out->consumer, gateway->connection, settings->queue, &options, &error);
    if (result == 0) {
        out->input.fd = ipc_consumer_fd(out->consumer);
        result = out->input.fd < 0 ? out->input.fd : gateway_watch(gateway, &out->input, EPOLLIN);
    }
    return mq_why(why, settings->queue, result, &error);
}

void out_unbind(struct gateway_binding *binding)
{
    struct outbound *out = binding->open;

    mqueue_close(&out->mqueue);
    gateway_unwatch(binding->gateway, &out->input);
    (void)ipc_consumer_close(out->consumer);
    (void)ipc_subscription_close(out->subscription);
    (void)ipc_mq_close(out->envelopes);
    free(out->buffer);
    free(out);
}
