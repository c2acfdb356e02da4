/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/segment.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "broker/core/control/broker.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/fd.h"
#include "libipc/lane/segment.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

uint64_t segment_size(enum ipc_segment_kind kind, uint32_t ring_size)
{
    return lane_segment_size(kind, ring_size);
}

int segment_create(enum ipc_segment_kind kind)
{
    static const char *const names[] = {
        [IPC_SEGMENT_BOARD] = "ipc-board",   [IPC_SEGMENT_CELLS] = "ipc-cells",
        [IPC_SEGMENT_LANE] = "ipc-lane",     [IPC_SEGMENT_PORT] = "ipc-port",
        [IPC_SEGMENT_SHARED] = "ipc-shared",
    };

    return segment_memfd(names[kind]);
}

int segment_memfd(const char *name)
{
    _cleanup_(fd_closep) int fd = fd_memory(name, MFD_CLOEXEC);

    if (fd < 0)
        return fd;
#ifdef IPC_PLANT_MODE_OPEN
    return fchmod(fd, 0666) < 0 ? -errno : fd_steal(&fd);
#endif
    /* The mode is what keeps other users from opening it read-write again through /proc. */
    if (fchmod(fd, 0600) < 0)
        return -errno;
    return fd_steal(&fd);
}

int segment_allocate(int fd, uint64_t size)
{
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    while (fallocate(fd, 0, 0, (off_t)size) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static int write_all(int fd, const void *bytes, size_t size, off_t offset)
{
    ssize_t n = pwrite(fd, bytes, size, offset);

    return n < 0 ? -errno : (size_t)n == size ? 0 : -EIO;
}

int segment_seal(int fd, enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id)
{
    struct ipc_segment_header header = lane_segment_header(kind, ring_size, id);
    int result = write_all(fd, &header, sizeof(header), 0), seals;

    if (result == 0 && ring_size)
        result = write_all(fd, &ring_size, sizeof(ring_size), offsetof(struct ipc_lane, ring_size));
    if (result < 0)
        return result;
    if (fcntl(fd, F_ADD_SEALS, SEALS) < 0)
        return -errno;
    seals = fcntl(fd, F_GET_SEALS);
    return seals < 0 ? -errno : (seals & SEALS) == SEALS ? 0 : -EPERM;
}

int segment_make(enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id)
{
    _cleanup_(fd_closep) int fd = segment_create(kind);
    int result = fd < 0 ? fd : segment_allocate(fd, segment_size(kind, ring_size));

    if (result == 0)
        result = segment_seal(fd, kind, ring_size, id);
    return result < 0 ? result : fd_steal(&fd);
}

int segment_destroy(int fd, uint64_t size)
{
#ifdef IPC_PLANT_NOT_PUNCHED
    return fd_close(fd);
#endif
    if (fd >= 0)
        (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size);
    return fd_close(fd);
}

static void freed(struct broker *broker, struct job *job)
{
    quota_return(&broker->quota, job->user, &job->charge);
    free(job);
}

void segment_free(struct broker *broker, struct user *user, int fd, uint64_t size,
                  const struct charge *charge)
{
    struct job *job = NULL;

    if (size >= WORKER_SIZE_MIN && !broker->worker)
        broker->worker = worker_new(broker->worker_fd);
    if (size >= WORKER_SIZE_MIN && broker->worker)
        job = malloc(sizeof(*job));
    if (job) {
        *job = (struct job){
            .finish = freed, .destroy = true, .fd = fd, .size = size, .user = user, .charge = *charge};
        list_init(&job->link);
        worker_push(broker->worker, job);
        return;
    }
    (void)segment_destroy(fd, size);
    quota_return(&broker->quota, user, charge);
}
