/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame around each control message, and the only functions that turn received bytes into messages.
 * Used by the core and by libipc alike; pure functions over buffers, any thread.
 */
#ifndef IPC_PROTO_FRAME_H
#define IPC_PROTO_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "control.pb-c.h"
#include "proto/limits.h"

#define IPC_FRAME_MAGIC        UINT16_C(0xd1c9)
#define IPC_CONTROL_VERSION    1u
#define IPC_FEATURE_MEMBARRIER UINT64_C(1) /* this process is registered for, and may issue, membarrier */
#define IPC_FEATURE_WAITV      UINT64_C(2)

struct ipc_frame_header {
    uint16_t magic;
    uint16_t type; /* Ipc__Control__Type */
    uint32_t size; /* of the message that follows, bytes */
    uint64_t id;   /* request id; a reply repeats it; 0 in notices */
};

/* Unpacking takes memory from this arena alone, so that no peer decides how much a frame costs. */
struct ipc_frame_arena {
    ProtobufCAllocator allocator;
    size_t used;
    _Alignas(16) unsigned char memory[IPC_MAX_UNPACK_SIZE];
};

struct ipc_frame {
    uint16_t type;
    uint64_t id;
    const ProtobufCMessage *message; /* lives in the arena, until its next use */
};

/* Pack a message into buffer. Returns the size of the packet, or -EMSGSIZE if it exceeds capacity. */
int ipc_frame_pack(void *buffer, size_t capacity, uint16_t type, uint64_t id,
                   const ProtobufCMessage *message);

/* Check a received packet and unpack its message into the arena. Returns 0; -EPROTO if the frame is not one of
 * ours, its type unknown, or its message malformed; -EMSGSIZE if unpacking would exceed the arena. */
int ipc_frame_unpack(struct ipc_frame *frame, struct ipc_frame_arena *arena, const void *packet, size_t size);

/* The descriptor of a type's message, or NULL for a type that does not exist. */
const ProtobufCMessageDescriptor *ipc_frame_descriptor(uint16_t type);

/* How many descriptors may come with a message of this type, at most. */
unsigned ipc_frame_fds_max(uint16_t type);

#endif
