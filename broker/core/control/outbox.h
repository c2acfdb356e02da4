/* SPDX-License-Identifier: Apache-2.0
 *
 * Answers that did not fit into a client's socket buffer: a few frames, each with its descriptors, in order.
 * Bounded: who does not read its answers is ended. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_OUTBOX_H
#define IPCD_CORE_CONTROL_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>

#include "broker/core/util/list.h"

#define OUTBOX_SIZE_MAX ((size_t)65536)

struct outbox {
    struct list frames;
    size_t size;
};

void outbox_init(struct outbox *outbox);
void outbox_done(struct outbox *outbox);

static inline bool outbox_empty(const struct outbox *outbox)
{
    return list_empty(&outbox->frames);
}

/* Send a frame, or keep it if the socket is full or others wait before it. The descriptors stay the caller's. Returns 0;
 * -ENOBUFS the outbox is full; -ENOMEM, -EMFILE; or what sending said (-EPIPE, -ECONNRESET). */
int outbox_send(struct outbox *outbox, int socket, const void *packet, size_t size, const int *fds,
                size_t n_fds);

/* Send what is kept. Returns 0 if nothing is left, -EAGAIN, or what sending said. */
int outbox_flush(struct outbox *outbox, int socket);

#endif
