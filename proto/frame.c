/* SPDX-License-Identifier: Apache-2.0
 *
 * Framing of control messages. Nothing in here trusts a byte that it has not counted.
 */
#include "proto/frame.h"

#include <errno.h>
#include <string.h>

static const ProtobufCMessageDescriptor *const descriptors[] = {
    [IPC__CONTROL__TYPE__HELLO] = &ipc__control__hello__descriptor,
    [IPC__CONTROL__TYPE__ADVERTISE] = &ipc__control__advertise__descriptor,
    [IPC__CONTROL__TYPE__UNADVERTISE] = &ipc__control__unadvertise__descriptor,
    [IPC__CONTROL__TYPE__SUBSCRIBE] = &ipc__control__subscribe__descriptor,
    [IPC__CONTROL__TYPE__UNSUBSCRIBE] = &ipc__control__unsubscribe__descriptor,
    [IPC__CONTROL__TYPE__BELL] = &ipc__control__bell__descriptor,
    [IPC__CONTROL__TYPE__LIST] = &ipc__control__list__descriptor,
    [IPC__CONTROL__TYPE__STATUS] = &ipc__control__status__descriptor,
    [IPC__CONTROL__TYPE__GOODBYE] = &ipc__control__done__descriptor,
    [IPC__CONTROL__TYPE__CONFIRM] = &ipc__control__confirm__descriptor,
    [IPC__CONTROL__TYPE__DETACH] = &ipc__control__detach__descriptor,
    [IPC__CONTROL__TYPE__WELCOME] = &ipc__control__welcome__descriptor,
    [IPC__CONTROL__TYPE__ADVERTISED] = &ipc__control__advertised__descriptor,
    [IPC__CONTROL__TYPE__SUBSCRIBED] = &ipc__control__subscribed__descriptor,
    [IPC__CONTROL__TYPE__DONE] = &ipc__control__done__descriptor,
    [IPC__CONTROL__TYPE__FAILURE] = &ipc__control__failure__descriptor,
    [IPC__CONTROL__TYPE__PAGE] = &ipc__control__page__descriptor,
    [IPC__CONTROL__TYPE__STATUS_REPLY] = &ipc__control__status_reply__descriptor,
    [IPC__CONTROL__TYPE__READER_ADD] = &ipc__control__reader_add__descriptor,
    [IPC__CONTROL__TYPE__READER_DEL] = &ipc__control__reader_del__descriptor,
    [IPC__CONTROL__TYPE__LANE_ADD] = &ipc__control__lane_add__descriptor,
    [IPC__CONTROL__TYPE__LANE_DEL] = &ipc__control__lane_del__descriptor,
    [IPC__CONTROL__TYPE__NUDGE] = &ipc__control__done__descriptor,
    [IPC__CONTROL__TYPE__ENDED] = &ipc__control__ended__descriptor,
    [IPC__CONTROL__TYPE__QUEUE_CREATE] = &ipc__control__queue_create__descriptor,
    [IPC__CONTROL__TYPE__QUEUE_SET] = &ipc__control__queue_set__descriptor,
    [IPC__CONTROL__TYPE__QUEUE_REMOVE] = &ipc__control__queue_remove__descriptor,
    [IPC__CONTROL__TYPE__QUEUE_DO] = &ipc__control__queue_do__descriptor,
    [IPC__CONTROL__TYPE__QUEUE_DID] = &ipc__control__queue_did__descriptor,
    [IPC__CONTROL__TYPE__PORT_OPEN] = &ipc__control__port_open__descriptor,
    [IPC__CONTROL__TYPE__PORT_OPENED] = &ipc__control__port_opened__descriptor,
    [IPC__CONTROL__TYPE__PORT_CLOSE] = &ipc__control__port_close__descriptor,
    [IPC__CONTROL__TYPE__PORT_BELL] = &ipc__control__port_bell__descriptor,
    [IPC__CONTROL__TYPE__SEGMENT_OPEN] = &ipc__control__segment_open__descriptor,
    [IPC__CONTROL__TYPE__SEGMENT_CLOSE] = &ipc__control__segment_close__descriptor,
    [IPC__CONTROL__TYPE__POLICY] = &ipc__control__policy__descriptor,
    [IPC__CONTROL__TYPE__DECISION] = &ipc__control__decision__descriptor,
    [IPC__CONTROL__TYPE__RENEW] = &ipc__control__renew__descriptor,
    [IPC__CONTROL__TYPE__SEGMENT_OPENED] = &ipc__control__segment_opened__descriptor,
    [IPC__CONTROL__TYPE__PORT_END] = &ipc__control__port_end__descriptor,
};

const ProtobufCMessageDescriptor *ipc_frame_descriptor(uint16_t type)
{
    return type < sizeof(descriptors) / sizeof(descriptors[0]) ? descriptors[type] : NULL;
}

unsigned ipc_frame_fds_max(uint16_t type)
{
    switch (type) {
    case IPC__CONTROL__TYPE__WELCOME:
    case IPC__CONTROL__TYPE__ADVERTISED:
    case IPC__CONTROL__TYPE__SEGMENT_OPENED:
    case IPC__CONTROL__TYPE__DONE:
        return 1;
    case IPC__CONTROL__TYPE__READER_ADD:
        return 2;
    case IPC__CONTROL__TYPE__LANE_ADD:
        return 3;
    case IPC__CONTROL__TYPE__PORT_OPENED:
        return 4;
    default:
        return 0;
    }
}

int ipc_frame_pack(void *buffer, size_t capacity, uint16_t type, uint64_t id, const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    struct ipc_frame_header header = {.magic = IPC_FRAME_MAGIC, .type = type, .id = id};
    if (size > IPC_MAX_FRAME_SIZE - sizeof(header) || size + sizeof(header) > capacity)
        return -EMSGSIZE;
    header.size = (uint32_t)size;
    memcpy(buffer, &header, sizeof(header));
    protobuf_c_message_pack(message, (uint8_t *)buffer + sizeof(header));
    return (int)(size + sizeof(header));
}

static void *arena_alloc(void *data, size_t size)
{
    struct ipc_frame_arena *arena = data;
    if (size > sizeof(arena->memory) - arena->used) {
        arena->used = sizeof(arena->memory); /* however much was left: this is how unpack knows */
        return NULL;
    }
    void *memory = arena->memory + arena->used;
    size_t rounded = (size + 15) & ~(size_t)15;
    size_t left = sizeof(arena->memory) - arena->used;
    arena->used += rounded < left ? rounded : left;
    return memory;
}

static void arena_free(void *data, void *memory)
{
    (void)data;
    (void)memory;
}

int ipc_frame_unpack(struct ipc_frame *frame, struct ipc_frame_arena *arena, const void *packet, size_t size)
{
    struct ipc_frame_header header;
    if (size < sizeof(header) || size > IPC_MAX_FRAME_SIZE)
        return -EPROTO;
    memcpy(&header, packet, sizeof(header));
    const ProtobufCMessageDescriptor *descriptor = ipc_frame_descriptor(header.type);
    if (header.magic != IPC_FRAME_MAGIC || header.size != size - sizeof(header) || !descriptor)
        return -EPROTO;
    arena->allocator =
        (ProtobufCAllocator){.alloc = arena_alloc, .free = arena_free, .allocator_data = arena};
    arena->used = 0;
    const uint8_t *body = (const uint8_t *)packet + sizeof(header);
    const ProtobufCMessage *message =
        protobuf_c_message_unpack(descriptor, &arena->allocator, header.size, body);
    if (!message)
        return arena->used >= sizeof(arena->memory) ? -EMSGSIZE : -EPROTO;
    *frame = (struct ipc_frame){.type = header.type, .id = header.id, .message = message};
    return 0;
}
