/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/outbox.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/fd.h"
#include "proto/limits.h"

struct frame {
    struct list link;
    size_t size, n_fds;
    int fds[IPC_MAX_FRAME_FDS];
    unsigned char packet[];
};

void outbox_init(struct outbox *outbox)
{
    list_init(&outbox->frames);
    outbox->size = 0;
}

static void frame_free(struct frame *frame)
{
    for (size_t i = 0; i < frame->n_fds; i++)
        fd_close(frame->fds[i]);
    free(frame);
}

static void drop(struct outbox *outbox, struct frame *frame)
{
    list_remove(&frame->link);
    outbox->size -= frame->size;
    frame_free(frame);
}

void outbox_done(struct outbox *outbox)
{
    list_for_each_safe(node, &outbox->frames) drop(outbox, list_entry(node, struct frame, link));
}

static int keep(struct outbox *outbox, const void *packet, size_t size, const int *fds, size_t n_fds)
{
    struct frame *frame;

    if (size > OUTBOX_SIZE_MAX - outbox->size)
        return -ENOBUFS;
    frame = malloc(sizeof(*frame) + size);
    if (!frame)
        return -ENOMEM;
    *frame = (struct frame){.size = size};
    memcpy(frame->packet, packet, size);
    for (; frame->n_fds < n_fds; frame->n_fds++) {
        int fd = fcntl(fds[frame->n_fds], F_DUPFD_CLOEXEC, 3), result = -errno;

        if (fd < 0) {
            frame_free(frame);
            return result;
        }
        frame->fds[frame->n_fds] = fd;
    }
    outbox->size += size;
    list_append(&outbox->frames, &frame->link);
    return 0;
}

int outbox_send(struct outbox *outbox, int socket, const void *packet, size_t size, const int *fds,
                size_t n_fds)
{
    int result = -EAGAIN;

    if (outbox_empty(outbox))
        result = fd_send(socket, packet, size, fds, n_fds);
    bool later = result == -EAGAIN || result == -ETOOMANYREFS || result == -ENOBUFS || result == -ENOMEM;

    return later ? keep(outbox, packet, size, fds, n_fds) : result;
}

int outbox_flush(struct outbox *outbox, int socket)
{
    list_for_each_safe(node, &outbox->frames)
    {
        struct frame *frame = list_entry(node, struct frame, link);
        int result = fd_send(socket, frame->packet, frame->size, frame->fds, frame->n_fds);

        if (result < 0)
            return result;
        drop(outbox, frame);
    }
    return 0;
}
