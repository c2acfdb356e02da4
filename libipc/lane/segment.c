/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/lane/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/limits.h"

size_t lane_segment_size(enum ipc_segment_kind kind, uint32_t ring_size)
{
    switch (kind) {
    case IPC_SEGMENT_BOARD:
        return sizeof(struct ipc_board);
    case IPC_SEGMENT_CELLS:
        return sizeof(struct ipc_cells);
    case IPC_SEGMENT_LANE:
    case IPC_SEGMENT_PORT:
    case IPC_SEGMENT_SHARED:
        return IPC_LAYOUT_PAGE + (size_t)ring_size;
    }
    return 0;
}

struct ipc_segment_header lane_segment_header(enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id)
{
    return (struct ipc_segment_header){.magic = IPC_LAYOUT_MAGIC,
                                       .abi_major = IPC_LAYOUT_ABI_MAJOR,
                                       .abi_minor = IPC_LAYOUT_ABI_MINOR,
                                       .kind = kind,
                                       .fingerprint = IPC_LAYOUT_FINGERPRINT,
                                       .size = lane_segment_size(kind, ring_size),
                                       .id = id};
}

static int check(int fd, size_t size)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    int have = fcntl(fd, F_GET_SEALS);
#ifdef IPC_PLANT_SEALS_UNSEEN
    have = seals;
#endif
    if (have < 0 || (have & seals) != seals || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != size)
        return -EPROTO;
    return 0;
}

int lane_segment_map(void **ret, int fd, enum ipc_segment_kind kind, uint32_t ring_size, bool writable)
{
    bool ring_good = ring_size >= IPC_MIN_RING_SIZE && ring_size <= IPC_MAX_RING_SIZE &&
                     (ring_size & (ring_size - 1)) == 0;
    size_t size = lane_segment_size(kind, ring_size);
    bool has_ring = kind == IPC_SEGMENT_LANE || kind == IPC_SEGMENT_PORT;
    if (size == 0 || (has_ring ? !ring_good : ring_size != 0))
        return -EPROTO;
    int result = check(fd, size);
    if (result < 0)
        return result;

    const int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    const int flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
    unsigned char *base = mmap(NULL, size + ring_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return -errno;
    if (mmap(base, size, protection, flags, fd, 0) == MAP_FAILED ||
        (ring_size && mmap(base + size, ring_size, protection, flags, fd, IPC_LAYOUT_PAGE) == MAP_FAILED) ||
        madvise(base, size + ring_size, MADV_DONTFORK) < 0) {
        result = -errno;
        munmap(base, size + ring_size);
        return result;
    }
    struct ipc_segment_header header;
    memcpy(&header, base, sizeof(header));
    struct ipc_segment_header expected = lane_segment_header(kind, ring_size, header.id);
    expected.abi_minor = header.abi_minor;
    if (memcmp(&header, &expected, sizeof(header)) != 0) {
        munmap(base, size + ring_size);
        return -EPROTO;
    }
    *ret = base;
    return 0;
}

int lane_segment_map_shared(void **ret, int fd, uint32_t size)
{
    struct ipc_segment_header header;
    size_t bytes = lane_segment_size(IPC_SEGMENT_SHARED, size);
    int result = check(fd, bytes);
    if (result < 0)
        return result;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    memcpy(&header, base, sizeof(header));
    struct ipc_segment_header expected = lane_segment_header(IPC_SEGMENT_SHARED, size, header.id);
    expected.abi_minor = header.abi_minor;
    if (memcmp(&header, &expected, sizeof(header)) != 0 || madvise(base, bytes, MADV_DONTFORK) < 0) {
        munmap(base, bytes);
        return -EPROTO;
    }
    *ret = base;
    return 0;
}

void lane_segment_unmap(void *segment, enum ipc_segment_kind kind, uint32_t ring_size)
{
    if (segment)
        munmap(segment, lane_segment_size(kind, ring_size) + (kind == IPC_SEGMENT_SHARED ? 0 : ring_size));
}
