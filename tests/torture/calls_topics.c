/* SPDX-License-Identifier: Apache-2.0
 *
 * Servers, publishers and subscribers of a torture run. What comes is whole, each publisher's messages come in their order and
 * none twice; some may be missing.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/torture/calls_topics.h"

void client_serve(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    ipc_server *server;
    int result;

    begin(&self, work);
    result = ipc_server_open(&server, self.connection, torture_queue_name(work->queue), NULL, NULL);
    if (result < 0)
        FAIL(&self, result);
    while (!work->torture->consumers_stop) {
        struct ipc_request *request;
        struct torture_answer answer;
        ssize_t size = ipc_server_receive(server, bytes, sizeof(bytes), &request, 50 * MS);

        if (size == -ETIMEDOUT)
            continue;
        if (size < 0)
            FAIL(&self, (int)size);
        if (!is_composed(&self, bytes, (size_t)size, &answer.of))
            FAIL(&self, -EBADMSG);
        answer.sum = checksum(bytes, (size_t)size);
        result = ipc_request_reply(request, &answer, sizeof(answer), NULL);
        if (result < 0 && result != -EPIPE) /* its gateway was killed */
            FAIL(&self, result);
    }
    end(&self);
}

bool is_answer(const struct self *self, uint32_t number, const void *data, size_t size)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct torture_answer answer;
    struct event event;
    size_t request_size = compose(self, number, bytes, &event);

    if (size != sizeof(answer))
        return false;
    memcpy(&answer, data, sizeof(answer));
    return memcmp(&answer.of, bytes, sizeof(answer.of)) == 0 && answer.sum == checksum(bytes, request_size);
}

bool may_fail(int code)
{
    return code == -EPIPE || code == -ENOENT || code == -ETIMEDOUT || code == -EAGAIN || code == -ECONNRESET;
}

/* ---- calls ---- */

/* True if it is over. */
static bool call_over(struct self *self, ipc_call *call, uint32_t number)
{
    struct ipc_reply reply = {.text = ""};
    int result;

    while ((result = ipc_call_next(call, &reply, 0)) == 1) {
        if (!is_answer(self, number, reply.data, reply.size))
            FAIL(self, -EBADMSG);
        self->work->torture->received[self->work->queue]++;
    }
    if (result == -EAGAIN)
        return false;
    if (result == -EREMOTEIO)
        result = -reply.code; /* a program behind a gateway was killed */
    if (result < 0 && !may_fail(result))
        FAIL(self, result);
    return true;
}

void client_call(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct {
        ipc_call *call;
        uint32_t number;
    } open[CALLS] = {0};
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    ipc_client *client;
    unsigned n_open = 0;
    uint32_t made = 0;
    int result;

    begin(&self, work);
    result = ipc_client_open(&client, self.connection, torture_queue_name(work->queue), NULL, NULL);
    if (result < 0)
        FAIL(&self, result);
    while (!work->torture->producers_stop || n_open) {
        struct event event;

        for (unsigned i = 0; i < CALLS && !work->torture->producers_stop; i++) {
            if (open[i].call)
                continue;
            how.flags = IPC_CALL_WAIT | IPC_CALL_KEEP | (++made % 2 ? IPC_CALL_RETRY : 0);
            result = ipc_call_start(&open[i].call, client, bytes, compose(&self, made, bytes, &event), &how);
            if (result < 0)
                FAIL(&self, result);
            open[i].number = made;
            n_open++;
        }
        result = ipc_client_dispatch(client, 50 * MS);
        if (result < 0 && result != -ETIMEDOUT)
            FAIL(&self, result);
        for (unsigned i = 0; i < CALLS; i++)
            if (open[i].call && call_over(&self, open[i].call, open[i].number)) {
                open[i].call = ipc_call_free(open[i].call);
                n_open--;
            }
    }
    end(&self);
}

/* ---- topics ---- */

/* Wait for a gateway that hands on what is published. One that is dead already may still count as a reader. */
static void be_heard(struct self *self, ipc_publisher *publisher)
{
    struct torture *torture = self->work->torture;
    uint64_t hello;
    uint32_t kills;

    do {
        kills = torture->gateway_kills[TORTURE_MQ];
        for (hello = ++torture->hellos; torture->heard != hello; usleep(10000)) {
            int result = ipc_publisher_publish(publisher, &hello, sizeof(hello));

            if (result < 0)
                FAIL(self, result);
        }
        note(self, (struct event){.kind = EVENT_BEGIN, .client = self->client});
    } while (kills != torture->gateway_kills[TORTURE_MQ]);
}

/* To a gateway that blocks, so that only its kills explain what does not come; with a history. */
void client_publish_all(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    _Atomic uint32_t *last = &work->torture->last[work->slot], *arrived = &work->torture->arrived[work->slot];
    ipc_publisher *publisher;
    uint32_t first = 0;
    int result;

    begin(&self, work);
    options.block_max_ns = IPC_FOREVER;
    result = ipc_publisher_open(&publisher, self.connection, torture_queue_name(work->queue), &options, NULL);
    if (result == 0)
        be_heard(&self, publisher);
    /* When nobody is killed any more, as soon as one has arrived all that follow will. */
    while (result >= 0 && (!first || *arrived < first)) {
        struct event event;
        size_t size = compose(&self, *last + 1, bytes, &event);

        if (work->torture->producers_stop && !first)
            first = event.sequence;
        note(&self, event);
        result = ipc_publisher_publish(publisher, bytes, size);
        note(&self, (struct event){.kind = EVENT_SENT, .sequence = event.sequence});
        *last = event.sequence;
        usleep(PACE_US);
    }
    if (result < 0)
        FAIL(&self, result);
    while (*arrived < *last)
        usleep(PACE_US);
    work->torture->ended[work->slot] = *last;
    end(&self);
}

void client_publish(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    ipc_publisher *publisher;
    struct event event;
    int result;

    begin(&self, work);
    result = ipc_publisher_open(&publisher, self.connection, torture_queue_name(work->queue), NULL, NULL);
    for (uint32_t sequence = 1; result >= 0 && !work->torture->producers_stop; sequence++) {
        result = ipc_publisher_publish(publisher, bytes, compose(&self, sequence, bytes, &event));
        usleep(PACE_US);
    }
    if (result < 0)
        FAIL(&self, result);
    end(&self);
}

/* The last number of each sender, by each session that published it: over a kill of the gateway that was one, what the next one
 * publishes may be read before what the first one left. */
static uint32_t *last_of(struct self *self, uint32_t sender, uint64_t session)
{
    static struct {
        uint64_t session;
        uint32_t sender, last;
    } seen[1u << 16];
    uint64_t at = torture_mix(torture_mix(session) ^ sender);

    for (unsigned i = 0; i < 1u << 16; i++, at++) {
        typeof(seen[0]) *entry = &seen[at & ((1u << 16) - 1)];

        if (!entry->sender) {
            entry->sender = sender;
            entry->session = session;
        }
        if (entry->sender == sender && entry->session == session)
            return &entry->last;
    }
    FAIL(self, -ENOSPC);
}

void published(struct self *self, const void *data, size_t size, uint64_t session)
{
    struct body body;
    uint32_t *last;

    if (!is_composed(self, data, size, &body))
        FAIL(self, -EBADMSG);
    last = last_of(self, body.sender, session);
    if (body.sequence <= *last)
        FAIL(self, body.sequence == *last ? -EEXIST : -EILSEQ);
    *last = body.sequence;
    self->work->torture->received[self->work->queue]++;
}

void client_subscribe(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_subscription *subscription;
    uint64_t taken = 0;
    int result;

    begin(&self, work);
    if (work->queue == TORTURE_MQ_TOPIC_IN && !work->drains)
        options.start = IPC_START_OLDEST;
    result = ipc_subscription_open(&subscription, self.connection, torture_queue_name(work->queue), &options,
                                   NULL);
    if (result < 0)
        FAIL(&self, result);
    work->torture->subscribed |= work->queue == TORTURE_MQ_TOPIC_IN;
    while (!work->torture->consumers_stop) {
        struct ipc_message message;
        ssize_t size = ipc_subscription_receive(subscription, bytes, sizeof(bytes), &message, 50 * MS);

        if (size >= 0 && work->queue == TORTURE_MQ_TOPIC_IN)
            receive_note(&self, (struct event){.delivery = ++taken, .attempt = 1}, bytes, (size_t)size);
        else if (size >= 0)
            published(&self, bytes, (size_t)size, message.sender->session);
        else if (size != -ETIMEDOUT)
            FAIL(&self, (int)size);
    }
    end(&self);
}
