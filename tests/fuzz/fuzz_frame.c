/* SPDX-License-Identifier: Apache-2.0
 *
 * Control frames from a stranger: what unpacks packs again, to a frame that unpacks to the same bytes.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ipc_frame_arena arena, other;
    static unsigned char packet[2][IPC_MAX_FRAME_SIZE];
    struct ipc_frame frame, again;
    struct ipc_frame_header header;

    if (ipc_frame_unpack(&frame, &arena, data, size) < 0) {
        /* As it came it is rarely whole: once more with the words that a mutation gets wrong first. */
        if (size < sizeof(header) || size > IPC_MAX_FRAME_SIZE)
            return 0;
        memcpy(packet[0], data, size);
        memcpy(&header, data, sizeof(header));
        header.magic = IPC_FRAME_MAGIC;
        header.type %= 72;
        header.size = (uint32_t)(size - sizeof(header));
        memcpy(packet[0], &header, sizeof(header));
        if (ipc_frame_unpack(&frame, &arena, packet[0], size) < 0)
            return 0;
    }
    if (!ipc_frame_descriptor(frame.type))
        abort();
    int first = ipc_frame_pack(packet[0], sizeof(packet[0]), frame.type, frame.id, frame.message);
    if (first < 0) /* unknown fields and defaults may take more than they came in, never more than a frame */
        return 0;
    if (ipc_frame_unpack(&again, &other, packet[0], (size_t)first) < 0)
        return 0;
    int second = ipc_frame_pack(packet[1], sizeof(packet[1]), again.type, again.id, again.message);
    if (second != first || memcmp(packet[0], packet[1], (size_t)first) != 0)
        abort();
    return 0;
}
