/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/outbox.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/fd.h"

struct frame {
    struct list link;
    size_t size;
    int fd;
    unsigned char packet[];
};

void outbox_init(struct outbox *outbox)
{
    list_init(&outbox->frames);
    outbox->size = 0;
}

static void drop(struct outbox *outbox, struct frame *frame)
{
    list_remove(&frame->link);
    outbox->size -= frame->size;
    fd_close(frame->fd);
    free(frame);
}

void outbox_done(struct outbox *outbox)
{
    list_for_each_safe(node, &outbox->frames) drop(outbox, list_entry(node, struct frame, link));
}

static int keep(struct outbox *outbox, const void *packet, size_t size, int fd)
{
    struct frame *frame;

    if (size > OUTBOX_SIZE_MAX - outbox->size)
        return -ENOBUFS;
    frame = malloc(sizeof(*frame) + size);
    if (!frame)
        return -ENOMEM;
    *frame = (struct frame){.size = size, .fd = -1};
    memcpy(frame->packet, packet, size);
    if (fd >= 0) {
        frame->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (frame->fd < 0) {
            free(frame);
            return -errno;
        }
    }
    outbox->size += size;
    list_append(&outbox->frames, &frame->link);
    return 0;
}

int outbox_send(struct outbox *outbox, int socket, const void *packet, size_t size, int fd)
{
    int result = -EAGAIN;

    if (outbox_empty(outbox))
        result = fd_send(socket, packet, size, &fd, fd >= 0 ? 1 : 0);
    bool later = result == -EAGAIN || result == -ETOOMANYREFS || result == -ENOBUFS || result == -ENOMEM;

    return later ? keep(outbox, packet, size, fd) : result;
}

int outbox_flush(struct outbox *outbox, int socket)
{
    list_for_each_safe(node, &outbox->frames)
    {
        struct frame *frame = list_entry(node, struct frame, link);
        int result = fd_send(socket, frame->packet, frame->size, &frame->fd, frame->fd >= 0 ? 1 : 0);

        if (result < 0)
            return result;
        drop(outbox, frame);
    }
    return 0;
}
