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
    ipc_subscription *subscription;
    int result;

    begin(&self, work);
    result =
        ipc_subscription_open(&subscription, self.connection, torture_queue_name(work->queue), NULL, NULL);
    if (result < 0)
        FAIL(&self, result);
    while (!work->torture->consumers_stop) {
        struct ipc_message message;
        ssize_t size = ipc_subscription_receive(subscription, bytes, sizeof(bytes), &message, 50 * MS);

        if (size >= 0)
            published(&self, bytes, (size_t)size, message.sender->session);
        else if (size != -ETIMEDOUT)
            FAIL(&self, (int)size);
    }
    end(&self);
}
