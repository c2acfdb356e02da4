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
#define AGAIN_NS    UINT64_C(50000000)   /* until a refused message is offered again */
#define ROOM_NS     UINT64_C(1000000)    /* until a topic's readers are looked at again */
#define PATIENCE_NS UINT64_C(1000000000) /* with them */

enum slot_state { SLOT_DONE, SLOT_UNSENT, SLOT_SENT, SLOT_REFUSED };

struct slot {
    enum slot_state state;
    unsigned priority;
    uint64_t ticket;
    size_t size;
};

struct inbound {
    struct gateway_binding *binding;
    struct mqueue mqueue;
    ipc_producer *producer;
    ipc_publisher *publisher;
    struct gateway_source answers; /* the producer's descriptor */
    struct gateway_timer again;
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
    while (in->tail < in->unsent && slot_at(in, in->tail)->state == SLOT_DONE)
        in->tail++;
    in->binding->counters.held = in->head - in->tail;
}

/* A header with the identity that the binding states, if it does. */
static size_t headers_of(const struct inbound *in, struct ipc_header headers[1])
{
    const struct mq_settings *settings = in->binding->settings;

    headers[0] = (struct ipc_header){"identity", settings->identity, strlen(settings->identity)};
    return settings->identity[0] ? 1 : 0;
}

static int send_to_queue(struct inbound *in, size_t index)
{
    struct slot *slot = slot_at(in, index);
    struct iovec piece = {bytes_of(in, index), slot->size};
    struct ipc_header headers[1];
    struct ipc_send how = IPC_SEND_INIT;
    int result;

    how.priority = slot->priority < MQ_PRIORITY_MAX ? slot->priority : MQ_PRIORITY_MAX;
    how.headers = headers;
    how.header_count = headers_of(in, headers);
    result = ipc_producer_sendv(in->producer, &piece, 1, &how, 0, &slot->ticket);
    if (result == 0)
        slot->state = SLOT_SENT;
    return result;
}

/* Readers that block get a while, in which others are served; then those that still have not read are detached. */
static int send_to_topic(struct inbound *in, size_t index)
{
    struct slot *slot = slot_at(in, index);
    struct iovec piece = {bytes_of(in, index), slot->size};
    struct ipc_header headers[1];
    struct ipc_publish how = IPC_PUBLISH_INIT;
    uint64_t now_ns = in->patient_until_ns ? time_monotonic_ns() : 0;
    int result;

    how.headers = headers;
    how.header_count = headers_of(in, headers);
    how.flags = in->patient_until_ns && now_ns >= in->patient_until_ns ? 0 : IPC_PUBLISH_REJECT;
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

/* Too large for the queue, or the queue is gone: such a message will not be taken. True if the binding goes on. */
static bool give_up(struct inbound *in, size_t index, int result)
{
    struct gateway_binding *binding = in->binding;

    if (gateway_is_over(binding->gateway, result))
        return false;
    if (result == -EMSGSIZE || result == -E2BIG) {
        binding->counters.dropped++;
        slot_at(in, index)->state = SLOT_DONE;
        gateway_binding_say(binding, "a message of %zu bytes is larger than its target allows: dropped",
                            slot_at(in, index)->size);
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
        gateway_binding_say(in->binding, "refused, and %s: %s",
                            settings->refused == MQ_REFUSED_DROP ? "dropped" : "held", refusal->text);
        if (settings->refused == MQ_REFUSED_DROP) {
            in->binding->counters.dropped++;
            slot->state = SLOT_DONE;
        } else {
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

/* Wait for what is needed next: messages, or room for them. */
static void wait_on(struct inbound *in)
{
    bool room = in->unsent == in->head && in->head - in->tail < SLOTS && in->refused == 0;

    settle(in);
    in->binding->blocked = !room;
    (void)mqueue_watch(&in->mqueue, room ? EPOLLIN : 0);
}

static void on_message(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct inbound *in = mqueue->binding->open;

    (void)events;
    for (unsigned i = 0; i < MQ_BURST && in->head - in->tail < SLOTS; i++) {
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
        in->head++;
        in->binding->counters.received++;
        int result = send_on(in);

        if (result == -EIO)
            return;
        if (result == -EAGAIN)
            break;
    }
    if (in->head - in->tail == SLOTS && in->producer)
        (void)take_answers(in);
    wait_on(in);
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
    wait_on(in);
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
        wait_on(in);
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
    int result;

    if (!in)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = in;
    in->binding = binding;
    in->again.due = on_again;
    in->mqueue.source.fd = -1;
    result = open_target(in, why);
    if (result == 0)
        result = mqueue_open(&in->mqueue, binding, settings->mqueue, O_RDONLY, on_message, why);
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
    mqueue_close(&in->mqueue);
    gateway_unwatch(binding->gateway, &in->answers);
    (void)ipc_producer_close(in->producer);
    (void)ipc_publisher_close(in->publisher);
    free(in->bytes);
    free(in);
}
