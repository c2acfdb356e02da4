/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames: every type there and back, and everything that must be refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/frame.h"

static struct ipc_frame_arena arena;
static unsigned char packet[IPC_MAX_FRAME_SIZE];

/* A message of a type with every field set to something: numbers count, texts are short. */
static void fill_in(ProtobufCMessage *message, uint64_t *count)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        unsigned char *at = (unsigned char *)message + field->offset;
        if (field->label == PROTOBUF_C_LABEL_REPEATED)
            continue;
        ++*count;
        switch (field->type) {
        case PROTOBUF_C_TYPE_STRING:
            *(const char **)(void *)at = "text";
            break;
        case PROTOBUF_C_TYPE_BYTES:
            *(ProtobufCBinaryData *)(void *)at = (ProtobufCBinaryData){.len = 4, .data = (uint8_t *)"data"};
            break;
        case PROTOBUF_C_TYPE_MESSAGE:
            break;
        case PROTOBUF_C_TYPE_UINT64:
            *(uint64_t *)(void *)at = UINT64_MAX - *count;
            break;
        case PROTOBUF_C_TYPE_BOOL:
            *(protobuf_c_boolean *)(void *)at = 1;
            break;
        case PROTOBUF_C_TYPE_ENUM:
            *(int *)(void *)at = 1;
            break;
        default: /* the other kinds in use have 32 bits */
            *(uint32_t *)(void *)at = (uint32_t)*count;
        }
    }
}

static ProtobufCMessage *make(uint16_t type)
{
    const ProtobufCMessageDescriptor *descriptor = ipc_frame_descriptor(type);
    uint64_t count = type * 100u;
    ProtobufCMessage *message = calloc(1, descriptor->sizeof_message);
    assert_non_null(message);
    protobuf_c_message_init(descriptor, message);
    fill_in(message, &count);
    return message;
}

static void test_every_type(void **state)
{
    unsigned types = 0;
    (void)state;
    for (unsigned type = 0; type <= UINT16_MAX; type++) {
        if (!ipc_frame_descriptor((uint16_t)type)) {
            assert_int_equal(ipc_frame_fds_max((uint16_t)type), 0);
            continue;
        }
        types++;
        assert_true(ipc_frame_fds_max((uint16_t)type) <= IPC_MAX_FRAME_FDS);
        ProtobufCMessage *message = make((uint16_t)type);
        int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, 77 + type, message);
        assert_true(size >= (int)sizeof(struct ipc_frame_header));
        struct ipc_frame frame;
        assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, (size_t)size), 0);
        assert_int_equal(frame.type, type);
        assert_int_equal(frame.id, 77 + type);
        unsigned char again[IPC_MAX_FRAME_SIZE];
        assert_int_equal(ipc_frame_pack(again, sizeof(again), frame.type, frame.id, frame.message), size);
        assert_memory_equal(again, packet, (size_t)size);

        /* Cut anywhere, and one byte more, it is refused: its size says so. */
        for (int cut = 0; cut < size; cut++)
            assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, (size_t)cut), -EPROTO);
        packet[size] = 0;
        assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, (size_t)size + 1), -EPROTO);
        /* Cut with a size that fits: refused or smaller, never read beyond. */
        for (int cut = (int)sizeof(struct ipc_frame_header); cut < size; cut++) {
            unsigned char *exact = malloc((size_t)cut);
            assert_non_null(exact);
            memcpy(exact, packet, (size_t)cut);
            uint32_t body = (uint32_t)cut - (uint32_t)sizeof(struct ipc_frame_header);
            memcpy(exact + offsetof(struct ipc_frame_header, size), &body, sizeof(body));
            int result = ipc_frame_unpack(&frame, &arena, exact, (size_t)cut);
            assert_true(result == 0 || result == -EPROTO);
            free(exact);
        }
        /* No room to pack. */
        assert_int_equal(ipc_frame_pack(packet, (size_t)size - 1, (uint16_t)type, 1, message), -EMSGSIZE);
        free(message);
    }
    assert_true(types >= 20);
}

static void refused(const struct ipc_frame_header *header)
{
    struct ipc_frame frame = {.id = 5};
    memcpy(packet, header, sizeof(*header));
    assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, sizeof(*header) + 4), -EPROTO);
    assert_int_equal(frame.id, 5);
}

static void test_bad_headers(void **state)
{
    const struct ipc_frame_header good = {
        .magic = IPC_FRAME_MAGIC, .type = IPC__CONTROL__TYPE__STATUS, .size = 4};
    struct ipc_frame_header bad;
    (void)state;
    memset(packet, 0, sizeof(packet));
    bad = good;
    bad.magic ^= 1;
    refused(&bad);
    bad = good;
    bad.type = IPC__CONTROL__TYPE__NONE;
    refused(&bad);
    bad = good;
    bad.type = UINT16_MAX;
    refused(&bad);
    bad = good;
    bad.type = 12;
    refused(&bad);
    bad = good;
    bad.size = 3;
    refused(&bad);
    bad = good;
    bad.size = 5;
    refused(&bad);
    bad = good;
    bad.size = UINT32_MAX;
    refused(&bad);
    refused(&good); /* four zero bytes are no message */
}

static void test_oversize(void **state)
{
    static char text[IPC_MAX_FRAME_SIZE + 1];
    static unsigned char large[2 * IPC_MAX_FRAME_SIZE];
    Ipc__Control__Failure failure = IPC__CONTROL__FAILURE__INIT;
    struct ipc_frame frame;
    (void)state;
    memset(text, 'x', sizeof(text) - 1);
    failure.text = text;
    assert_int_equal(ipc_frame_pack(large, sizeof(large), IPC__CONTROL__TYPE__FAILURE, 1, &failure.base),
                     -EMSGSIZE);
    size_t most = IPC_MAX_FRAME_SIZE - sizeof(struct ipc_frame_header) -
                  3; /* its tag, and two bytes of length */
    text[most] = '\0';
    assert_int_equal(ipc_frame_pack(large, sizeof(large), IPC__CONTROL__TYPE__FAILURE, 1, &failure.base),
                     IPC_MAX_FRAME_SIZE);
    assert_int_equal(ipc_frame_unpack(&frame, &arena, large, IPC_MAX_FRAME_SIZE), 0);
    text[most] = 'x';
    assert_int_equal(ipc_frame_pack(large, sizeof(large), IPC__CONTROL__TYPE__FAILURE, 1, &failure.base),
                     -EMSGSIZE);
    struct ipc_frame_header header = {.magic = IPC_FRAME_MAGIC, .type = IPC__CONTROL__TYPE__FAILURE};
    header.size = (uint32_t)(sizeof(large) - sizeof(header));
    memcpy(large, &header, sizeof(header));
    assert_int_equal(ipc_frame_unpack(&frame, &arena, large, sizeof(large)), -EPROTO);
}

/* Two bytes of the wire for each item, hundreds of bytes in memory: the arena ends it. */
static void test_arena_limit(void **state)
{
    struct ipc_frame frame;
    struct ipc_frame_header header = {.magic = IPC_FRAME_MAGIC, .type = IPC__CONTROL__TYPE__PAGE};
    (void)state;
    header.size = sizeof(packet) - sizeof(header);
    memcpy(packet, &header, sizeof(header));
    for (size_t i = sizeof(header); i + 1 < sizeof(packet); i += 2) {
        packet[i] = 1 << 3 | 2; /* field 1, an item, of no bytes */
        packet[i + 1] = 0;
    }
    assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, sizeof(packet)), -EMSGSIZE);
    assert_true(arena.used <= sizeof(arena.memory));
    /* As many as fit are fine, and the arena serves again. */
    header.size = 100;
    memcpy(packet, &header, sizeof(header));
    assert_int_equal(ipc_frame_unpack(&frame, &arena, packet, sizeof(header) + 100), 0);
    assert_int_equal(((const Ipc__Control__Page *)frame.message)->n_items, 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_oversize),
        cmocka_unit_test(test_arena_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
