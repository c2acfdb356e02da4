/* SPDX-License-Identifier: Apache-2.0
 *
 * Producers and consumers of a torture run. They may be killed anywhere: before they do something they write that they are
 * about to, and afterwards that they have done it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc/ipc.h"
#include "ipc/queue.h"
#include "tests/torture/self.h"

#define BATCH 32u

void note(struct self *self, struct event event)
{
    if (!journal_append(self->work->journal, event))
        _exit(0); /* it has had its share */
}

void failed(struct self *self, int result, int line)
{
    note(self, (struct event){.kind = EVENT_ERROR,
                              .client = self->work->client,
                              .checksum = (uint32_t)-result,
                              .number = (uint64_t)line});
    _exit(1);
}

uint32_t checksum(const unsigned char *bytes, size_t size)
{
    uint64_t sum = size, word;

    for (; size >= sizeof(word); size -= sizeof(word), bytes += sizeof(word)) {
        memcpy(&word, bytes, sizeof(word));
        sum = torture_mix(sum ^ word);
    }
    for (; size; size--)
        sum = torture_mix(sum ^ *bytes++);
    return (uint32_t)(sum >> 16);
}

void begin_alone(struct self *self, const struct client_work *work)
{
    *self = (struct self){.work = work,
                          .queue = &work->torture->queues[work->queue],
                          .random = torture_mix(work->torture->seed ^ (uint64_t)work->client << 32)};
    self->client = work->client;
    note(self, (struct event){.kind = EVENT_BEGIN, .client = work->client});
}

void begin(struct self *self, const struct client_work *work)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    int result;

    begin_alone(self, work);
    options.timeout_ns = 3600 * 1000 * MS; /* the driver's watchdog is the one that counts */
    result = ipc_connection_open(&self->connection, NULL, &options, NULL);
    if (result < 0)
        FAIL(self, result);
}

void end(struct self *self)
{
    ipc_connection_close(self->connection);
    _exit(0);
}

const char *torture_queue_name(unsigned queue)
{
    static const char *const names[TORTURE_WAYS] = {
        "q0",        "q1",       "q2",      "q3",          "dead",         "zmq-send",
        "zmq-push",  "mq-in",    "mq-out",  "mq-topic-in", "mq-topic-out", "calls",
        "topic-out", "topic-in", "mq-call", "mq-call-raw", "mq-serve",     "mq-serve-raw"};

    return names[queue];
}

void torture_mqueue_name(const struct torture *torture, unsigned way, const char *suffix,
                         char ret[TORTURE_MQUEUE_SIZE])
{
    (void)snprintf(ret, TORTURE_MQUEUE_SIZE, "/ipc-torture-%d-%s%s", torture->driver, torture_queue_name(way),
                   suffix);
}

/* ---- producers ---- */

/* A message follows from its producer and its number, but for the process that sends it. */
size_t compose(const struct self *self, uint32_t sequence, unsigned char *bytes, struct event *ret)
{
    uint64_t random = torture_mix(self->work->torture->seed ^ (uint64_t)self->work->slot << 32 ^ sequence);
    struct body body = {.producer = self->work->slot,
                        .sender = self->client,
                        .sequence = sequence,
                        .queue = (uint8_t)self->work->queue,
                        .priority = (uint8_t)(random % self->queue->priorities),
                        .key = (uint16_t)(self->queue->keys ? 1 + (random >> 8) % self->queue->keys : 0)};
    size_t room = random >> 60 ? 128 : TORTURE_SIZE_MAX - sizeof(body);

    body.size = (uint32_t)(sizeof(body) + (random >> 16) % room);
    memcpy(bytes, &body, sizeof(body));
    for (size_t at = sizeof(body); at < body.size; at += sizeof(random)) {
        random = torture_mix(random);
        memcpy(bytes + at, &random, sizeof(random));
    }
    *ret = (struct event){.kind = EVENT_SEND,
                          .producer = body.producer,
                          .sequence = sequence,
                          .checksum = checksum(bytes, body.size),
                          .queue = body.queue,
                          .priority = body.priority,
                          .key = body.key};
    return body.size;
}

/* Everything that is known of what was sent. */
static void settle(struct self *self)
{
    _Atomic uint32_t *decided = &self->work->torture->decided[self->work->slot];
    uint32_t last = self->work->torture->last[self->work->slot], next = *decided + 1;
    uint64_t confirmed = ipc_producer_confirmed(self->producer);
    struct ipc_refusal refusal;

    while (ipc_producer_next_refusal(self->producer, &refusal) > 0) {
        note(self, (struct event){.kind = EVENT_REFUSED, .number = refusal.ticket});
        if (refusal.code != -ENOSPC)
            FAIL(self, refusal.code);
    }
    if (!confirmed)
        return;
    note(self, (struct event){.kind = EVENT_CONFIRMED, .number = confirmed});
    while (next <= last && self->tickets[next % UNSETTLED_MAX] &&
           self->tickets[next % UNSETTLED_MAX] <= confirmed)
        *decided = next++;
}

bool is_composed(const struct self *self, const void *data, size_t size, struct body *ret)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct client_work work = *self->work;
    struct self sender = {.work = &work, .queue = self->queue};
    struct event event;

    if (size < sizeof(*ret))
        return false;
    memcpy(ret, data, sizeof(*ret));
    work.slot = ret->producer;
    sender.client = ret->sender;
    return compose(&sender, ret->sequence, bytes, &event) == size && memcmp(bytes, data, size) == 0;
}

static int send_by_loan(struct self *self, const unsigned char *bytes, size_t size,
                        const struct ipc_send *how, uint64_t *ticket)
{
    void *room;
    int result = ipc_producer_loan(self->producer, TORTURE_SIZE_MAX, how, 100 * MS, &room);

    if (result < 0)
        return result;
    memcpy(room, bytes, size);
    return ipc_producer_commit(self->producer, size, ticket);
}

/* Send that message; false if there was no room. */
static bool send_one(struct self *self, uint32_t sequence)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct ipc_send how = IPC_SEND_INIT;
    struct event event;
    size_t size = compose(self, sequence, bytes, &event);
    uint64_t id = (uint64_t)self->work->slot << 32 | sequence, ticket = 0;
    struct iovec piece = {.iov_base = bytes, .iov_len = size};
    int result;

    how.priority = event.priority;
    if (event.key) {
        how.key = &event.key;
        how.key_size = sizeof(event.key);
    }
    if (self->queue->dedup) {
        how.id = &id;
        how.id_size = sizeof(id);
    }
    note(self, event);
    if (torture_random(&self->random, 8) == 0)
        result = send_by_loan(self, bytes, size, &how, &ticket);
    else
        result = ipc_producer_sendv(self->producer, &piece, 1, &how, 100 * MS, &ticket);
    if (result < 0) {
        note(self, (struct event){.kind = EVENT_NOT_SENT, .sequence = sequence});
        if (result != -ETIMEDOUT && result != -ENOBUFS)
            FAIL(self, result);
        return false;
    }
    note(self, (struct event){.kind = EVENT_SENT, .sequence = sequence, .number = ticket});
    self->tickets[sequence % UNSETTLED_MAX] = ticket;
    return true;
}

/* Several at once, which is for messages without attributes. Returns how many went. */
static unsigned send_batch(struct self *self, uint32_t sequence)
{
    static unsigned char bytes[BATCH][TORTURE_SIZE_MAX + 64];
    struct iovec pieces[BATCH];
    struct event event;
    uint64_t ticket = 0;
    ssize_t sent;

    for (unsigned i = 0; i < BATCH; i++) {
        pieces[i] =
            (struct iovec){.iov_base = bytes[i], .iov_len = compose(self, sequence + i, bytes[i], &event)};
        note(self, event);
    }
    sent = ipc_producer_send_batch(self->producer, pieces, BATCH, NULL, 100 * MS, &ticket);
    if (sent < 0 && sent != -ETIMEDOUT && sent != -ENOBUFS)
        FAIL(self, (int)sent);
    if (sent < 0)
        sent = 0;
    if (sent < BATCH)
        note(self, (struct event){.kind = EVENT_NOT_SENT, .sequence = sequence + (uint32_t)sent});
    if (sent > 0)
        note(self,
             (struct event){.kind = EVENT_SENT, .sequence = sequence + (uint32_t)sent - 1, .number = ticket});
    for (unsigned i = 0; i < sent; i++)
        self->tickets[(sequence + i) % UNSETTLED_MAX] = ticket;
    return (unsigned)sent;
}

static bool plain(const struct self *self)
{
    return self->queue->priorities == 1 && !self->queue->keys && !self->queue->dedup && !self->queue->reject;
}

void client_produce(const struct client_work *work)
{
    static struct self self;
    struct ipc_producer_options options = IPC_PRODUCER_OPTIONS_INIT;
    _Atomic uint32_t *last = &work->torture->last[work->slot], *decided = &work->torture->decided[work->slot];
    uint32_t next;
    int result;

    begin(&self, work);
    options.ring_size = 16384;
    result =
        ipc_producer_open(&self.producer, self.connection, torture_queue_name(work->queue), &options, NULL);
    if (result < 0)
        FAIL(&self, result);
    /* What the one before did not hear of: once more if the queue knows it again, or now and then without that. */
    next = *last + 1;
    if (work->queue % 2 == 0)
        next = *decided + 1;
    else
        *decided = *last;
    while (!work->torture->producers_stop || next <= *last) {
        uint32_t until = next;

        if (plain(&self) && next > *last && torture_random(&self.random, 4) == 0) {
            *last = next + BATCH - 1;
            until += send_batch(&self, next);
            *last = until - 1;
        } else {
            if (next > *last)
                *last = next;
            if (send_one(&self, next))
                until++;
        }
        if (until == next || next % 16 == 0 || until - *decided > UNSETTLED_MAX - 2 * BATCH)
            settle(&self);
        if (until - *decided > UNSETTLED_MAX - 2 * BATCH) {
            result = ipc_producer_flush(self.producer, 100 * MS);
            if (result < 0 && result != -ETIMEDOUT && result != -EBADMSG && result != -ENOBUFS)
                FAIL(&self, result);
            settle(&self);
        }
        next = until;
        if (!work->torture->producers_stop && torture_random(&self.random, 20000) == 0)
            break;
    }
    do {
        result = ipc_producer_flush(self.producer, 100 * MS);
        settle(&self);
        if (result < 0 && result != -ETIMEDOUT && result != -EBADMSG && result != -ENOBUFS)
            FAIL(&self, result);
    } while (result == -ETIMEDOUT || result == -ENOBUFS);
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    ipc_producer_close(self.producer);
    end(&self);
    _exit(0);
}

/* ---- consumers ---- */

struct held {
    uint64_t deliveries[BATCH];
    unsigned count;
};

void receive_note(struct self *self, struct event event, const void *data, size_t size)
{
    _Atomic uint32_t *arrived = self->work->torture->arrived;
    struct body body = {0};

    memcpy(&body, data, size < sizeof(body) ? size : sizeof(body));
    event.kind = EVENT_RECEIVED;
    event.queue = (uint8_t)self->work->queue;
    event.checksum = checksum(data, size);
    event.client = body.sender;
    event.producer = body.producer;
    event.sequence = body.sequence;
    note(self, event);
    if (body.producer < TORTURE_CLIENTS && arrived[body.producer] < body.sequence)
        arrived[body.producer] = body.sequence;
    self->work->torture->received[self->work->queue]++;
}

static void note_message(struct self *self, const struct ipc_queue_message *message)
{
    struct event event = {.number = message->number,
                          .delivery = message->delivery,
                          .attempt = (uint16_t)message->attempt,
                          .priority = (uint8_t)message->priority,
                          .redelivered = (uint8_t)message->redelivered};

    if (message->key_size == sizeof(event.key))
        memcpy(&event.key, message->key, sizeof(event.key));
    receive_note(self, event, message->data, message->size);
}

static void answer_ack(struct self *self, uint64_t first, uint64_t last)
{
    int result;

    note(self, (struct event){.kind = EVENT_ACKING, .number = first, .delivery = last});
    if (first == last)
        result = ipc_consumer_ack(self->consumer, first);
    else
        result = ipc_consumer_ack_range(self->consumer, first, last);
    if (result < 0)
        FAIL(self, result);
    note(self, (struct event){.kind = EVENT_ACKED, .number = first, .delivery = last});
}

static void refuse(struct self *self, uint64_t delivery)
{
    struct ipc_nack how = IPC_NACK_INIT;
    int result;

    if (!self->queue->keys && torture_random(&self->random, 2))
        how.delay_ns = (uint64_t)MS * torture_random(&self->random, 30);
    if (self->queue->letters && torture_random(&self->random, 4) == 0)
        how.flags |= IPC_NACK_DEAD;
    note(self, (struct event){.kind = EVENT_REFUSING,
                              .number = delivery,
                              .delivery = delivery,
                              .attempt = how.delay_ns || how.flags});
    result = ipc_consumer_nack(self->consumer, delivery, delivery, &how);
    if (result < 0)
        FAIL(self, result);
}

static void ack_held(struct self *self, struct held *held)
{
    for (unsigned i = 0; i < held->count; i++)
        answer_ack(self, held->deliveries[i], held->deliveries[i]);
    held->count = 0;
}

/* Some at once, some one by one, some later, some never. */
static void answer(struct self *self, const struct ipc_queue_message *messages, unsigned count,
                   struct held *held)
{
    bool whole = self->work->drains || torture_random(&self->random, 4) != 0;

    if (whole) {
        answer_ack(self, messages[0].delivery, messages[count - 1].delivery);
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t choice = torture_random(&self->random, 16);

        if (choice == 0)
            refuse(self, messages[i].delivery);
        else if (choice == 1 && held->count < BATCH)
            held->deliveries[held->count++] = messages[i].delivery;
        else
            answer_ack(self, messages[i].delivery, messages[i].delivery);
    }
}

void client_consume(const struct client_work *work)
{
    static unsigned char buffer[BATCH * (TORTURE_SIZE_MAX + 64)];
    static struct self self;
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    struct ipc_queue_message messages[BATCH];
    struct held held = {.count = 0};
    bool slow = work->slot % 3 == 0 && !work->drains;
    int result;

    begin(&self, work);
    options.prefetch = self.queue->prefetch;
    options.ring_size = 16384;
    result =
        ipc_consumer_open(&self.consumer, self.connection, torture_queue_name(work->queue), &options, NULL);
    if (result < 0)
        FAIL(&self, result);
    while (!work->torture->consumers_stop) {
        unsigned batch = (unsigned)torture_random(&self.random, BATCH) + 1;
        ssize_t count =
            ipc_consumer_receive_batch(self.consumer, buffer, sizeof(buffer), messages, batch, 50 * MS);

        if (count < 0 && count != -ETIMEDOUT)
            FAIL(&self, (int)count);
        for (ssize_t i = 0; i < count; i++)
            note_message(&self, &messages[i]);
        if (count > 0)
            answer(&self, messages, (unsigned)count, &held);
        if (held.count && (count < 0 || torture_random(&self.random, 8) == 0))
            ack_held(&self, &held);
        if (slow && torture_random(&self.random, 4) == 0)
            usleep(1000); /* a consumer that has something to do */
        if (!work->drains && torture_random(&self.random, 5000) == 0)
            break;
    }
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    ipc_consumer_close(self.consumer);
    end(&self);
    _exit(0);
}

/* ---- an operator ---- */

/* Move a few messages from one of the queues to the first one, or dead letters back. */
void client_move(const struct client_work *work)
{
    static struct self self;
    const char *tool = getenv("IPCCTL_BIN");
    char count[32], priority[32];
    uint64_t from;

    begin_alone(&self, work);
    from = 1 + torture_random(&self.random, TORTURE_QUEUES);
    (void)snprintf(count, sizeof(count), "--count=%" PRIu64, 1 + torture_random(&self.random, 200));
    (void)snprintf(priority, sizeof(priority), "--priority=%" PRIu64, torture_random(&self.random, 10));
    usleep(1000 * (useconds_t)torture_random(&self.random, 200)); /* not all the time */
    if (work->torture->producers_stop)
        _exit(0);
    note(&self, (struct event){.kind = EVENT_MOVE,
                               .queue = (uint8_t)from,
                               .number = from == TORTURE_DEAD ? HISTORY_BACK : 0});
    if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
        FAIL(&self, -errno);
    if (from == TORTURE_DEAD && torture_random(&self.random, 2))
        (void)execl(tool, tool, "queue", "requeue", "dead", count, priority, NULL);
    if (from == TORTURE_DEAD)
        (void)execl(tool, tool, "queue", "requeue", "dead", count, NULL);
    (void)execl(tool, tool, "queue", "move", torture_queue_name((unsigned)from), torture_queue_name(0), count,
                NULL);
    FAIL(&self, -errno);
}
