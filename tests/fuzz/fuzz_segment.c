/* SPDX-License-Identifier: Apache-2.0
 *
 * Descriptors handed over as segments: kind, size, seals and header as the input says. What is mapped is whole.
 * Input: kind, log2 of the ring's size, seals, how the length differs, then the header.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libipc/lane/segment.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ipc_segment_header header;
    void *segment = NULL;
    if (size < 4)
        return 0;
    enum ipc_segment_kind kind = (enum ipc_segment_kind)(data[0] & 3);
    uint32_t ring_size = kind == IPC_SEGMENT_LANE ? UINT32_C(1) << (data[1] & 15) : data[1] & 16;
    size_t whole = lane_segment_size(kind, ring_size);
    header = lane_segment_header(kind, ring_size, 1);
    for (size_t i = 4; i < size && i - 4 < sizeof(header); i++)
        ((unsigned char *)&header)[i - 4] ^= data[i];
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return 0;
    off_t length = (off_t)whole + (int8_t)data[3];
    if (ftruncate(fd, length < 0 ? 0 : length) == 0 && pwrite(fd, &header, sizeof(header), 0) > 0 &&
        (length <= 0 || ftruncate(fd, length) == 0) && fcntl(fd, F_ADD_SEALS, data[2] & 7) == 0) {
        bool good = (data[2] & 7) == 7 && length == (off_t)whole && whole > 0;
        int result = lane_segment_map(&segment, fd, kind, ring_size, data[2] & 8);
        if (result == 0 && !good)
            abort();
        if (result == 0) {
            volatile unsigned char *bytes = segment;
            (void)bytes[0];
            (void)bytes[whole + ring_size - 1];
            lane_segment_unmap(segment, kind, ring_size);
        } else if (segment) {
            abort();
        }
    }
    close(fd);
    return 0;
}
