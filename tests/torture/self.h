/* SPDX-License-Identifier: Apache-2.0
 *
 * What the clients of a torture run have in common. They may be killed anywhere: before they do something they write that
 * they are about to, and afterwards that they have done it.
 */
#ifndef IPC_TESTS_TORTURE_SELF_H
#define IPC_TESTS_TORTURE_SELF_H

#include "ipc/ipc.h"
#include "ipc/queue.h"
#include "tests/torture/torture.h"

#define UNSETTLED_MAX 4096u /* messages of a producer of which it does not know yet */
#define MS            INT64_C(1000000)

struct body {
    uint32_t producer, sender, sequence, size;
    uint16_t key;
    uint8_t queue, priority;
    uint32_t reserved;
};

struct self {
    const struct client_work *work;
    const struct torture_queue *queue;
    uint64_t random;
    uint32_t client; /* of this process, or of its session with a gateway */
    ipc_connection *connection;
    ipc_producer *producer;
    ipc_consumer *consumer;
    uint64_t tickets[UNSETTLED_MAX]; /* by sequence; 0: not sent */
};

void note(struct self *self, struct event event);
#define FAIL(self, result) failed(self, result, __LINE__)
void failed(struct self *self, int result, int line) __attribute__((noreturn));
void begin_alone(struct self *self, const struct client_work *work);
/* With a connection. */
void begin(struct self *self, const struct client_work *work);
void end(struct self *self) __attribute__((noreturn));

uint32_t checksum(const unsigned char *bytes, size_t size);
/* The message of that number: into bytes, of TORTURE_SIZE_MAX + 64. Returns its size. */
size_t compose(const struct self *self, uint32_t sequence, unsigned char *bytes, struct event *ret);
/* Is that the message of its number, as somebody composed it? */
bool is_composed(const struct self *self, const void *data, size_t size, struct body *ret);
/* Note that it was received; the event has what came beside the body. */
void receive_note(struct self *self, struct event event, const void *data, size_t size);

#endif
