/* SPDX-License-Identifier: Apache-2.0
 *
 * From an mqueue into a queue or a topic. An mqueue cannot be peeked: a message is received into a slot, and sent from
 * there at once; if this process is killed in between, that one message is lost, and no other. The slot keeps the message
 * until the queue has decided on it, so that one that is refused is not lost either: the binding's `refused` says what
 * becomes of it. While there is no room, nothing more is received.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/text.h"
#include "broker/gateways/mq/mq.h"

#define SLOTS       512u
#define STREAM_MIN  4u                   /* messages of a burst behind which another one is expected, */
#define HOLD_NS     UINT64_C(50000)      /* for so long, before whoever sleeps on the first is woken, */
#define HELD_MAX    256u                 /* or until there are so many */
#define AGAIN_NS    UINT64_C(50000000)   /* until a refused message is offered again */
#define ROOM_NS     UINT64_C(1000000)    /* until a topic's readers are looked at again */
#define PATIENCE_NS UINT64_C(1000000000) /* with them */

enum slot_state { SLOT_DONE, SLOT_UNSENT, SLOT_SENT, SLOT_REFUSED };

struct slot {
    enum slot_state state;
    unsigned priority;
    uint64_t ticket;
    size_t size;
    unsigned char
        *whole; /* of an envelope that came in pieces: `size` bytes; NULL: they are in the slot's place */
};

struct inbound {
    struct gateway_binding *binding;
    struct mqueue mqueue;
    ipc_producer *producer;
    ipc_publisher *publisher;
    ipc_producer *dead;            /* NULL: what cannot be handed on is dropped */
    ipc_mq *envelopes;             /* NULL: the raw form */
    struct ipc_mq_message message; /* that of the slot with index shown - 1; 0: of none */
    size_t shown;
    struct gateway_source answers; /* the producer's descriptor */
    struct gateway_timer again, later;
    unsigned held;             /* messages for which nobody was woken yet */
    uint64_t patient_until_ns; /* with a topic's readers; 0: they have room */
    struct slot slots[SLOTS];
    char *bytes;               /* SLOTS of the mqueue's message size */
    size_t tail, head, unsent; /* slots in use, [tail, head); from `unsent` on they wait to be sent */
    size_t refused;            /* of those in use */
};

static struct slot *slot_at(struct inbound *in, size_t index)
{
    return &in->slots[index % SLOTS];
}

static char *bytes_of(struct inbound *in, size_t index)
{
    return in->bytes + index % SLOTS * in->mqueue.message_size;
}

static void settle(struct inbound *in)
{
    while (in->tail < in->unsent && slot_at(in, in->tail)->state == SLOT_DONE) {
        free(slot_at(in, in->tail)->whole);
        slot_at(in, in->tail++)->whole = NULL;
    }
    in->binding->counters.held = in->head - in->tail;
}

static const void *data_of(struct inbound *in, size_t index)
{
    const struct slot *slot = slot_at(in, index);

    return slot->whole ? (const void *)slot->whole : bytes_of(in, index);
}

/* The message in a slot. An envelope in it was unpacked before: it is good, and there is memory for it. */
static const struct ipc_mq_message *show(struct inbound *in, size_t index)
{
    const struct ipc_mq_message none = IPC_MQ_MESSAGE_INIT;

    if (in->shown != index + 1 && in->envelopes) {
        (void)ipc_mq_unpack(in->envelopes, data_of(in, index), slot_at(in, index)->size, &in->message);
    } else if (!in->envelopes) {
        in->message = none;
        in->message.data = data_of(in, index);
        in->message.data_size = slot_at(in, index)->size;
    }
    in->shown = index + 1;
    return &in->message;
}

/* ---- what cannot be handed on ---------------------------------------------------------------------------- */

static int send_dead(struct inbound *in, const void *data, size_t size, const char *reason)
{
    const struct mq_settings *settings = in->binding->settings;
    const struct ipc_header headers[] = {{"reason", reason, strlen(reason)},
                                         {"mqueue", settings->mqueue, strlen(settings->mqueue)}};
    struct iovec piece = {(void *)(uintptr_t)data, size};
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_refusal refusal;

    (void)ipc_producer_dispatch(in->dead);
    while (ipc_producer_next_refusal(in->dead, &refusal) > 0) {
        in->binding->counters.dead--;
        in->binding->counters.dropped++;
    }
    how.headers = headers;
    how.header_count = 2;
    return ipc_producer_sendv(in->dead, &piece, 1, &how, 0, NULL);
}

static void drop(struct inbound *in, const void *data, size_t size, const char *reason)
{
    int result = in->dead ? send_dead(in, data, size, reason) : -ENOENT;

    if (result == 0)
        in->binding->counters.dead++;
    else
        in->binding->counters.dropped++;
    gateway_binding_say(in->binding, "%s: %s%s%s", result == 0 ? "a dead letter" : "dropped", reason,
                        result < 0 && in->dead ? "; and no dead letter: " : "",
                        result < 0 && in->dead ? strerror(-result) : "");
}

/* ---- handing on ------------------------------------------------------------------------------------------ */

static int send_to_queue(struct inbound *in, size_t index)
{
    const struct mq_settings *settings = in->binding->settings;
    const struct ipc_mq_message *message = show(in, index);
    struct slot *slot = slot_at(in, index);
    struct iovec piece = {(void *)(uintptr_t)message->data, message->data_size};
    struct ipc_header headers[IPC_MAX_HEADERS + 1];
    struct ipc_send how = IPC_SEND_INIT;
    int result;

    how.flags = IPC_SEND_MORE;
    how.priority = slot->priority < MQ_PRIORITY_MAX ? slot->priority : MQ_PRIORITY_MAX;
    how.headers = headers;
    how.header_count = mq_headers_in(settings, message, headers);
    how.content_type = message->content_type;
    how.reply_to = message->reply_to;
    how.ttl_ns = message->ttl_ns ? message->ttl_ns : settings->ttl_ns;
    how.delay_ns = message->delay_ns;
    how.id = message->id;
    how.id_size = message->id_size;
    how.key = message->key ? message->key : settings->key[0] ? settings->key : NULL;
    how.key_size = message->key ? message->key_size : strlen(settings->key);
    result = ipc_producer_sendv(in->producer, &piece, 1, &how, 0, &slot->ticket);
    if (result == 0)
        slot->state = SLOT_SENT;
    return result;
}

/* Readers that block get a while, in which others are served; then those that still have not read are detached. */
static int send_to_topic(struct inbound *in, size_t index)
{
    const struct ipc_mq_message *message = show(in, index);
    struct slot *slot = slot_at(in, index);
    struct iovec piece = {(void *)(uintptr_t)message->data, message->data_size};
    struct ipc_header headers[IPC_MAX_HEADERS + 1];
    struct ipc_publish how = IPC_PUBLISH_INIT;
    uint64_t now_ns = in->patient_until_ns ? time_monotonic_ns() : 0;
    int result;

    how.headers = headers;
    how.header_count = mq_headers_in(in->binding->settings, message, headers);
    how.content_type = message->content_type;
    how.flags = IPC_PUBLISH_MORE |
                (in->patient_until_ns && now_ns >= in->patient_until_ns ? 0 : IPC_PUBLISH_REJECT);
    result = ipc_publisher_publishv(in->publisher, &piece, 1, &how);
    if (result == -EAGAIN) {
        now_ns = time_monotonic_ns();
        if (!in->patient_until_ns)
            in->patient_until_ns = now_ns + PATIENCE_NS;
        gateway_timer_set(in->binding->gateway, &in->again, now_ns + ROOM_NS);
        return result;
    }
    in->patient_until_ns = 0;
    if (result == 0)
        slot->state = SLOT_DONE;
    return result;
}

/* Too large for the queue, or nothing that it can hold, or the queue is gone: such a message will not be taken. True if the
 * binding goes on. */
static bool give_up(struct inbound *in, size_t index, int result)
{
    struct gateway_binding *binding = in->binding;

    if (gateway_is_over(binding->gateway, result))
        return false;
    if (result == -EMSGSIZE || result == -E2BIG || result == -EINVAL) {
        struct slot *slot = slot_at(in, index);
        char why[GATEWAY_WHY_SIZE];

        (void)snprintf(why, sizeof(why),
                       result == -EINVAL ? "%zu bytes with an envelope that makes no sense to its target"
                                         : "%zu bytes are more than its target allows",
                       slot->size);
        drop(in, data_of(in, index), slot->size, why);
        slot->state = SLOT_DONE;
        return true;
    }
    gateway_binding_fail(binding, "messages cannot be handed on: %s", strerror(-result));
    return false;
}

/* Send what waits to be. 0; -EAGAIN there is no room; -EIO the binding does not go on. */
static int send_on(struct inbound *in)
{
    while (in->unsent < in->head) {
        int result = in->producer ? send_to_queue(in, in->unsent) : send_to_topic(in, in->unsent);

        if (result == -EAGAIN)
            return result;
        if (result < 0 && !give_up(in, in->unsent, result))
            return -EIO;
        if (result == 0)
            in->binding->counters.bytes += slot_at(in, in->unsent)->size;
        in->unsent++;
    }
    return 0;
}

static void refuse(struct inbound *in, const struct ipc_refusal *refusal)
{
    const struct mq_settings *settings = in->binding->settings;

    for (size_t i = in->tail; i < in->unsent; i++) {
        struct slot *slot = slot_at(in, i);

        if (slot->state != SLOT_SENT || slot->ticket != refusal->ticket)
            continue;
        in->binding->counters.refused++;
        if (settings->refused == MQ_REFUSED_DROP) {
            drop(in, data_of(in, i), slot->size, refusal->text);
            slot->state = SLOT_DONE;
        } else {
            gateway_binding_say(in->binding, "refused, and held: %s", refusal->text);
            slot->state = SLOT_REFUSED;
            in->refused++;
            gateway_timer_set(in->binding->gateway, &in->again, time_monotonic_ns() + AGAIN_NS);
        }
        return;
    }
}

/* What did the queue decide? */
static int take_answers(struct inbound *in)
{
    struct ipc_refusal refusal;
    uint64_t confirmed;
    int result = ipc_producer_dispatch(in->producer);

    confirmed = ipc_producer_confirmed(in->producer);
    while (ipc_producer_next_refusal(in->producer, &refusal) > 0)
        refuse(in, &refusal);
    for (size_t i = in->tail; i < in->unsent; i++) {
        struct slot *slot = slot_at(in, i);

        if (slot->state == SLOT_SENT && slot->ticket <= confirmed)
            slot->state = SLOT_DONE;
    }
    settle(in);
    return result;
}

/* Wake whoever sleeps on what was sent. */
static void ring(struct inbound *in)
{
    in->held = 0;
    gateway_timer_set(in->binding->gateway, &in->later, 0);
    if (in->producer)
        (void)ipc_producer_ring(in->producer);
    else
        (void)ipc_publisher_ring(in->publisher);
}

static void on_later(struct gateway_timer *timer)
{
    ring((void *)((char *)timer - offsetof(struct inbound, later)));
}

/* Wait for what is needed next: messages, or room for them. `burst` came in a row. */
static void wait_on(struct inbound *in, unsigned burst)
{
    bool room = in->unsent == in->head && in->head - in->tail < SLOTS && in->refused == 0;

    if (!room || (burst < STREAM_MIN && !in->later.set))
        ring(in);
    else if (!in->later.set)
        gateway_timer_set(in->binding->gateway, &in->later, time_monotonic_ns() + HOLD_NS);
    settle(in);
    in->binding->blocked = !room;
    (void)mqueue_watch(&in->mqueue, room ? EPOLLIN : 0);
}

/* NULL, or why a message cannot be for this binding. */
static const char *wrong_for(const struct mq_settings *settings, const struct ipc_mq_message *message)
{
    const char *name = settings->queue[0] ? settings->queue : settings->topic;

    if (message->kind != IPC_MQ_MESSAGE)
        return "it is a request or a reply, and no message";
    return message->name && strcmp(message->name, name) != 0
               ? "it is for another name than that of its binding"
               : NULL;
}

/* A message that was gathered from pieces needs a place of its own. */
static int keep_whole(struct inbound *in, struct slot *slot)
{
    ssize_t size = ipc_mq_pack(&in->message, NULL, 0);

    slot->whole = malloc((size_t)size);
    if (!slot->whole)
        return -ENOMEM;
    slot->size = (size_t)ipc_mq_pack(&in->message, slot->whole, (size_t)size);
    return 0;
}

/* Look into what was just received into the next slot. True if it holds a message now. */
static bool take_envelope(struct inbound *in)
{
    struct slot *slot = slot_at(in, in->head);
    struct ipc_mq_stats before, after;
    const char *wrong;
    int result;

    (void)ipc_mq_stats(in->envelopes, &before);
    result = ipc_mq_unpack(in->envelopes, bytes_of(in, in->head), slot->size, &in->message);
    (void)ipc_mq_stats(in->envelopes, &after);
    in->shown = result == 1 ? in->head + 1 : 0;
    if (after.incomplete > before.incomplete) {
        in->binding->counters.dropped += after.incomplete - before.incomplete;
        gateway_binding_say(in->binding, "dropped: a message of which not all pieces came");
    }
    if (result == 0)
        return false;
    in->binding->counters.received++;
    if (result == 1 && after.pieces > before.pieces)
        result = keep_whole(in, slot);
    wrong = result == -EMSGSIZE ? "its pieces are more than gather-max"
            : result == -ENOMEM ? "there is no memory for it"
            : result < 0        ? "it is no envelope of a version that is known"
                                : wrong_for(in->binding->settings, &in->message);
    if (!wrong)
        return true;
    in->binding->counters.bad++;
    drop(in, data_of(in, in->head), slot->size, wrong);
    free(slot->whole);
    slot->whole = NULL;
    return false;
}

static void on_message(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct inbound *in = mqueue->binding->open;
    unsigned burst = 0;

    (void)events;
    for (; burst < MQ_BURST && in->head - in->tail < SLOTS; burst++) {
        struct slot *slot = slot_at(in, in->head);
        ssize_t size =
            mq_receive(source->fd, bytes_of(in, in->head), in->mqueue.message_size, &slot->priority);

        if (size < 0) {
            if (errno != EAGAIN && errno != EINTR)
                gateway_binding_fail(in->binding, "its mqueue cannot be read: %s", strerror(errno));
            if (errno != EAGAIN && errno != EINTR)
                return;
            break;
        }
        slot->size = (size_t)size;
        slot->state = SLOT_UNSENT;
        if (!in->envelopes)
            in->binding->counters.received++;
        else if (!take_envelope(in))
            continue;
        in->head++;
        int result = send_on(in);

        if (result == -EIO)
            return;
        if (result == -EAGAIN)
            break;
        if (++in->held == HELD_MAX)
            ring(in);
    }
    if (in->head - in->tail == SLOTS && in->producer)
        (void)take_answers(in);
    wait_on(in, burst);
}

static void on_answers(struct gateway_source *source, uint32_t events)
{
    struct inbound *in = source->context;
    int result = take_answers(in);

    (void)events;
    if (result == 0)
        result = send_on(in);
    if (result == -EIO)
        return;
    if (result < 0 && result != -EAGAIN) {
        (void)give_up(in, in->tail, result);
        return;
    }
    wait_on(in, 0);
}

/* Offer what was refused again, in its order; or look if a topic's readers have room. */
static void on_again(struct gateway_timer *timer)
{
    struct inbound *in = (void *)((char *)timer - offsetof(struct inbound, again));
    int result = 0;

    for (size_t i = in->tail; i < in->unsent && in->refused > 0 && result == 0; i++) {
        if (slot_at(in, i)->state != SLOT_REFUSED)
            continue;
        result = send_to_queue(in, i);
        if (result == 0)
            in->refused--;
        else if (result != -EAGAIN && !give_up(in, i, result))
            return;
    }
    if (in->refused > 0)
        gateway_timer_set(in->binding->gateway, &in->again, time_monotonic_ns() + AGAIN_NS);
    if (send_on(in) != -EIO)
        wait_on(in, 0);
}

static int open_target(struct inbound *in, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = in->binding->settings;
    struct gateway *gateway = in->binding->gateway;
    struct ipc_error error = {.text = ""};
    int result;

    if (settings->queue[0]) {
        struct ipc_producer_options options = IPC_PRODUCER_OPTIONS_INIT;

        options.spin_max_ns = 0;
        result = mq_why(
            why, settings->queue,
            ipc_producer_open(&in->producer, gateway->connection, settings->queue, &options, &error), &error);
        if (result < 0)
            return result;
        in->answers.fd = ipc_producer_fd(in->producer);
        in->answers.ready = on_answers;
        in->answers.context = in;
        result = in->answers.fd < 0 ? in->answers.fd : gateway_watch(gateway, &in->answers, EPOLLIN);
        return mq_why(why, settings->queue, result, NULL);
    }
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;

    options.block_max_ns = 1;
    return mq_why(why, settings->topic,
                  ipc_publisher_open(&in->publisher, gateway->connection, settings->topic, &options, &error),
                  &error);
}

int in_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct inbound *in = calloc(1, sizeof(*in));
    struct ipc_error error = {.text = ""};
    int result;

    if (!in)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = in;
    in->binding = binding;
    in->again.due = on_again;
    in->later.due = on_later;
    in->mqueue.source.fd = -1;
    result = open_target(in, why);
    if (result == 0)
        result = mqueue_open(&in->mqueue, binding, settings->mqueue, O_RDONLY, on_message, why);
    if (result == 0 && settings->form == MQ_ENVELOPED)
        result = mq_end_open(&in->envelopes, &in->mqueue, why);
    if (result == 0 && settings->dead_letter[0])
        result = mq_why(
            why, settings->dead_letter,
            ipc_producer_open(&in->dead, binding->gateway->connection, settings->dead_letter, NULL, &error),
            &error);
    if (result == 0) {
        in->bytes = malloc(SLOTS * in->mqueue.message_size);
        result = in->bytes ? mqueue_watch(&in->mqueue, EPOLLIN) : -ENOMEM;
        (void)mq_why(why, settings->mqueue, result, NULL);
    }
    return result;
}

void in_unbind(struct gateway_binding *binding)
{
    struct inbound *in = binding->open;

    gateway_timer_set(binding->gateway, &in->again, 0);
    gateway_timer_set(binding->gateway, &in->later, 0);
    mqueue_close(&in->mqueue);
    gateway_unwatch(binding->gateway, &in->answers);
    (void)ipc_producer_close(in->producer);
    (void)ipc_publisher_close(in->publisher);
    (void)ipc_producer_close(in->dead);
    (void)ipc_mq_close(in->envelopes);
    for (size_t i = 0; i < SLOTS; i++)
        free(in->slots[i].whole);
    free(in->bytes);
    free(in);
}
