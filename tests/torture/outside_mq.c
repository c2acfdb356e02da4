/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs of a torture run that know nothing but mq_send(3) and mq_receive(3), and some also <ipc/mq.h>.
 */
#include <errno.h>
#include <mqueue.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ipc/mq.h"
#include "tests/torture/calls_topics.h"

/* Sent, and not known to have arrived: in a queue; and in the ring of a topic, which must have room for it. */
#define AHEAD_MAX       4096u
#define AHEAD_TOPIC_MAX 256u
#define CALLS_BY_MQUEUE \
 4u /* at a time: the mqueue for their answers has room for more than two times as many */

/* It is there as soon as the gateway has made it. */
static mqd_t open_mqueue(struct self *self, const char *suffix, int access)
{
    char name[TORTURE_MQUEUE_SIZE];
    mqd_t mqueue;

    torture_mqueue_name(self->work->torture, self->work->queue, suffix, name);
    while ((mqueue = mq_open(name, access | O_CLOEXEC)) < 0) {
        if (errno != ENOENT)
            FAIL(self, -errno);
        usleep(1000);
    }
    return mqueue;
}

#define MQUEUE_BYTES 8192 /* as much as a message may have */

static struct timespec in(uint64_t ns)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    ns += (uint64_t)at.tv_nsec;
    at.tv_sec += (time_t)(ns / 1000000000);
    at.tv_nsec = (long)(ns % 1000000000);
    return at;
}

static void put(struct self *self, mqd_t mqueue, const void *data, size_t size)
{
    while (mq_send(mqueue, data, size, 0) < 0)
        if (errno != EINTR)
            FAIL(self, -errno);
}

/* What came within 50 ms; -1: nothing. */
static ssize_t get(struct self *self, mqd_t mqueue, unsigned char bytes[MQUEUE_BYTES], unsigned *priority)
{
    const struct timespec until = in(50 * MS);
    ssize_t size = mq_timedreceive(mqueue, (char *)bytes, MQUEUE_BYTES, priority, &until);

    if (size < 0 && errno != ETIMEDOUT && errno != EINTR)
        FAIL(self, -errno);
    return size;
}

static void send_one(struct self *self, mqd_t mqueue, uint32_t sequence)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(self, sequence, bytes, &event);

    self->work->torture->last[self->work->slot] = sequence;
    note(self, event);
    put(self, mqueue, bytes, size);
    note(self, (struct event){.kind = EVENT_SENT, .sequence = sequence});
}

void outside_mq_send(const struct client_work *work)
{
    static struct self self;
    _Atomic uint32_t *arrived = &work->torture->arrived[work->slot];
    const bool topic = work->queue == TORTURE_MQ_TOPIC_IN;
    uint32_t next = work->torture->last[work->slot] + 1, first;
    mqd_t mqueue;

    begin_alone(&self, work);
    mqueue = open_mqueue(&self, "", O_WRONLY);
    while (topic && !work->torture->subscribed)
        usleep(1000);
    for (; !work->torture->producers_stop; next++) {
        send_one(&self, mqueue, next);
        if (next - *arrived > (topic ? AHEAD_TOPIC_MAX : AHEAD_MAX))
            usleep(topic ? 10000 : 1000);
    }
    /* Nobody is killed any more: as soon as one has arrived, all that follow will. */
    for (first = next; *arrived < first; next++) {
        send_one(&self, mqueue, next);
        usleep(10000);
    }
    while (topic && *arrived < next - 1)
        usleep(1000);
    work->torture->ended[work->slot] = next - 1;
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    mq_close(mqueue);
    _exit(0);
}

static uint64_t get_hello(const unsigned char *bytes)
{
    uint64_t hello;

    memcpy(&hello, bytes, sizeof(hello));
    return hello;
}

void outside_mq_receive(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[MQUEUE_BYTES];
    uint64_t taken = 0;
    mqd_t mqueue;
    ssize_t size = 0;

    begin_alone(&self, work);
    mqueue = open_mqueue(&self, "", O_RDONLY);
    while (!work->torture->consumers_stop || size >= 0) {
        unsigned priority;

        size = get(&self, mqueue, bytes, &priority);
        if (size == sizeof(uint64_t))
            work->torture->heard = get_hello(bytes);
        else if (size >= 0)
            receive_note(&self,
                         (struct event){.delivery = ++taken, .attempt = 1, .priority = (uint8_t)priority},
                         bytes, (size_t)size);
    }
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    mq_close(mqueue);
    _exit(0);
}

/* ---- calls ---- */

/* What a caller knows of its calls. Those that were open when the gateway was killed may be answered, or not. */
struct caller {
    struct self self;
    bool raw; /* one at a time, and what is answered shows in the answer alone */
    mqd_t requests, replies;
    ipc_mq *in, *out;
    char reply_to[TORTURE_MQUEUE_SIZE];
    struct {
        uint32_t number, kills; /* 0: none; of the gateway, before it was made */
    } open[CALLS];
    unsigned n_open;
    uint32_t made, forgotten; /* the last one of each */
};

struct call_id {
    uint32_t client, number;
};

static void forget(struct caller *caller)
{
    struct torture *torture = caller->self.work->torture;

    for (unsigned i = 0; i < CALLS; i++)
        if (caller->open[i].number && caller->open[i].kills != torture->gateway_kills[TORTURE_MQ]) {
            if (caller->forgotten < caller->open[i].number)
                caller->forgotten = caller->open[i].number;
            caller->open[i].number = 0;
            caller->n_open--;
            torture->unanswered++;
        }
}

static void call_one(struct caller *caller)
{
    struct self *self = &caller->self;
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct ipc_mq_message request = IPC_MQ_MESSAGE_INIT;
    struct call_id id = {self->client, ++caller->made};
    struct event event;
    unsigned i = 0;
    int result;

    while (caller->open[i].number)
        i++;
    caller->open[i].number = caller->made;
    caller->open[i].kills = self->work->torture->gateway_kills[TORTURE_MQ];
    caller->n_open++;
    request.kind = IPC_MQ_REQUEST;
    request.reply_to = caller->reply_to;
    request.id = &id;
    request.id_size = sizeof(id);
    request.data = bytes;
    request.data_size = compose(self, caller->made, bytes, &event);
    if (caller->raw) {
        put(self, caller->requests, bytes, request.data_size);
        return;
    }
    result = ipc_mq_send(caller->out, &request, IPC_FOREVER);
    if (result < 0)
        FAIL(self, result);
}

static void answered(struct caller *caller, uint32_t number)
{
    unsigned i = 0;

    while (i < CALLS && caller->open[i].number != number)
        i++;
    if (i < CALLS) {
        caller->open[i].number = 0;
        caller->n_open--;
    } else if (number > caller->forgotten) {
        FAIL(&caller->self, -EEXIST);
    }
}

static void hear(struct caller *caller)
{
    struct self *self = &caller->self;
    struct ipc_mq_message reply;
    struct call_id id;
    int result = ipc_mq_receive(caller->in, &reply, 50 * MS);

    if (result == -ETIMEDOUT || result == -EINTR)
        return;
    if (result < 0)
        FAIL(self, result);
    if (reply.kind != IPC_MQ_REPLY || reply.id_size != sizeof(id))
        FAIL(self, -EPROTO);
    memcpy(&id, reply.id, sizeof(id));
    if (id.client != self->client) /* to the process before this one */
        return;
    if (reply.code != 0 && !may_fail(reply.code))
        FAIL(self, reply.code);
    if (reply.code == 0 && !is_answer(self, id.number, reply.data, reply.data_size))
        FAIL(self, -EBADMSG);
    answered(caller, id.number);
    self->work->torture->received[self->work->queue] += reply.code == 0;
}

static void hear_raw(struct caller *caller)
{
    struct self *self = &caller->self;
    unsigned char bytes[MQUEUE_BYTES];
    struct torture_answer answer;
    ssize_t size = get(self, caller->replies, bytes, NULL);

    if (size < 0)
        return;
    if (size == 0) { /* that one failed, or one that was forgotten */
        if (caller->n_open)
            answered(caller, caller->made);
        if (caller->forgotten < caller->made)
            caller->forgotten = caller->made;
        return;
    }
    memcpy(&answer, bytes, sizeof(answer));
    if (!is_answer(self, answer.of.sequence, bytes, (size_t)size))
        FAIL(self, -EBADMSG);
    answered(caller, answer.of.sequence);
    self->work->torture->received[self->work->queue]++;
}

void outside_mq_call(const struct client_work *work)
{
    static struct caller caller;
    const struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 1536};
    char suffix[16];
    int result = 0;

    begin_alone(&caller.self, work);
    caller.raw = work->queue == TORTURE_MQ_CALL_RAW;
    caller.requests = open_mqueue(&caller.self, "", O_WRONLY);
    if (caller.raw) {
        caller.replies = open_mqueue(&caller.self, "-reply", O_RDONLY);
    } else {
        (void)snprintf(suffix, sizeof(suffix), "-%u", work->slot);
        torture_mqueue_name(work->torture, work->queue, suffix, caller.reply_to);
        (void)mq_unlink(caller.reply_to); /* of the process before this one, with what was for it */
        caller.replies = mq_open(caller.reply_to, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &attributes);
        if (caller.replies < 0)
            FAIL(&caller.self, -errno);
        result = ipc_mq_open(&caller.in, caller.replies, NULL);
        if (result == 0)
            result = ipc_mq_open(&caller.out, caller.requests, NULL);
        if (result < 0)
            FAIL(&caller.self, result);
    }
    while (!work->torture->producers_stop || caller.n_open) {
        forget(&caller);
        while (!work->torture->producers_stop && caller.n_open < (caller.raw ? 1 : CALLS_BY_MQUEUE))
            call_one(&caller);
        if (caller.raw)
            hear_raw(&caller);
        else
            hear(&caller);
    }
    (void)ipc_mq_close(caller.in);
    (void)ipc_mq_close(caller.out);
    if (!caller.raw)
        (void)mq_unlink(caller.reply_to);
    note(&caller.self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    _exit(0);
}

static void serve_one(struct self *self, mqd_t replies, const void *data, size_t size, ipc_mq *out,
                      struct ipc_mq_message *message)
{
    struct torture_answer answer;
    int result;

    if (!is_composed(self, data, size, &answer.of))
        FAIL(self, -EBADMSG);
    answer.sum = checksum(data, size);
    if (!out) {
        put(self, replies, &answer, sizeof(answer));
        return;
    }
    message->kind = IPC_MQ_REPLY;
    message->data = &answer;
    message->data_size = sizeof(answer);
    result = ipc_mq_send(out, message, IPC_FOREVER);
    if (result < 0)
        FAIL(self, result);
}

void outside_mq_serve(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[MQUEUE_BYTES];
    mqd_t requests, replies;
    ipc_mq *in = NULL, *out = NULL;
    int result = 0;

    begin_alone(&self, work);
    requests = open_mqueue(&self, "", O_RDONLY);
    replies = open_mqueue(&self, "-reply", O_WRONLY);
    if (work->queue != TORTURE_MQ_SERVE_RAW) {
        result = ipc_mq_open(&in, requests, NULL);
        if (result == 0)
            result = ipc_mq_open(&out, replies, NULL);
    }
    while (result == 0 && !work->torture->consumers_stop) {
        struct ipc_mq_message message;

        if (in) {
            result = ipc_mq_receive(in, &message, 50 * MS);
            if (result == 0)
                serve_one(&self, replies, message.data, message.data_size, out, &message);
            else if (result == -ETIMEDOUT || result == -EINTR)
                result = 0;
        } else {
            ssize_t size = get(&self, requests, bytes, NULL);

            if (size >= 0)
                serve_one(&self, replies, bytes, (size_t)size, NULL, NULL);
        }
    }
    if (result < 0)
        FAIL(&self, result);
    (void)ipc_mq_close(in);
    (void)ipc_mq_close(out);
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    _exit(0);
}
