/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs of a torture run that know nothing but mq_send(3) and mq_receive(3).
 */
#include <errno.h>
#include <mqueue.h>
#include <string.h>
#include <unistd.h>

#include "tests/torture/self.h"

#define AHEAD_MAX 4096u /* sent, and not known to have arrived */

/* It is there as soon as the gateway has made it. */
static mqd_t open_mqueue(struct self *self, const char *name, int access)
{
    mqd_t mqueue;

    while ((mqueue = mq_open(name, access | O_CLOEXEC)) < 0) {
        if (errno != ENOENT)
            FAIL(self, -errno);
        usleep(1000);
    }
    return mqueue;
}

static struct timespec in(uint64_t ns)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    ns += (uint64_t)at.tv_nsec;
    at.tv_sec += (time_t)(ns / 1000000000);
    at.tv_nsec = (long)(ns % 1000000000);
    return at;
}

static void send_one(struct self *self, mqd_t mqueue, uint32_t sequence)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(self, sequence, bytes, &event);

    self->work->torture->last[self->work->slot] = sequence;
    note(self, event);
    while (mq_send(mqueue, (const char *)bytes, size, 0) < 0)
        if (errno != EINTR)
            FAIL(self, -errno);
    note(self, (struct event){.kind = EVENT_SENT, .sequence = sequence});
}

void outside_mq_send(const struct client_work *work)
{
    static struct self self;
    _Atomic uint32_t *arrived = &work->torture->arrived[work->slot];
    uint32_t next = work->torture->last[work->slot] + 1, first;
    mqd_t mqueue;

    begin_alone(&self, work);
    mqueue = open_mqueue(&self, work->torture->mqueue_in, O_WRONLY);
    for (; !work->torture->producers_stop; next++) {
        send_one(&self, mqueue, next);
        if (next - *arrived > AHEAD_MAX)
            usleep(1000);
    }
    /* Nobody is killed any more: as soon as one has arrived, all that follow will. */
    for (first = next; *arrived < first; next++) {
        send_one(&self, mqueue, next);
        usleep(10000);
    }
    work->torture->ended[work->slot] = next - 1;
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    mq_close(mqueue);
    _exit(0);
}

void outside_mq_receive(const struct client_work *work)
{
    static struct self self;
    unsigned char bytes[8192];
    uint64_t taken = 0;
    mqd_t mqueue;
    ssize_t size = 0;

    begin_alone(&self, work);
    mqueue = open_mqueue(&self, work->torture->mqueue_out, O_RDONLY);
    while (!work->torture->consumers_stop || size >= 0) {
        const struct timespec until = in(50 * MS);
        unsigned priority;

        size = mq_timedreceive(mqueue, (char *)bytes, sizeof(bytes), &priority, &until);
        if (size < 0 && errno != ETIMEDOUT && errno != EINTR)
            FAIL(&self, -errno);
        if (size >= 0)
            receive_note(&self,
                         (struct event){.delivery = ++taken, .attempt = 1, .priority = (uint8_t)priority},
                         bytes, (size_t)size);
    }
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    mq_close(mqueue);
    _exit(0);
}
