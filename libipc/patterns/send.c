/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/patterns/send.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "proto/fields.h"
#include "proto/limits.h"
#include "proto/name.h"

#define TIME_SIZE sizeof(uint64_t)

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static uint64_t add(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static bool delayed(const struct ipc_send *how)
{
    return how->delay_ns || how->deliver_at_ns || (how->flags & IPC_SEND_AT_ONCE);
}

static int headers_size(const struct ipc_header *headers, size_t count, size_t *fields)
{
    if (count > IPC_MAX_HEADERS)
        return -E2BIG;
    for (size_t i = 0; i < count; i++) {
        size_t name_size = headers[i].name ? strnlen(headers[i].name, 256) : 0;
        if (name_size == 0 || (!headers[i].value && headers[i].value_size))
            return -EINVAL;
        if (name_size > 255 || headers[i].value_size > UINT16_MAX)
            return -E2BIG;
        *fields += ipc_field_size(name_size, headers[i].value_size);
    }
    return 0;
}

int64_t send_block_size(const struct ipc_send *how)
{
    if (!how)
        return 0;
    if (how->size != sizeof(*how) ||
        (how->flags & ~(IPC_SEND_AT_ONCE | IPC_SEND_TIMESTAMP | IPC_SEND_MORE)) ||
        how->priority >= IPC_PRIORITIES || (how->id_size && !how->id) || (how->key_size && !how->key) ||
        (how->reply_to && ipc_name_check(how->reply_to, false)))
        return -EINVAL;
    if (!!how->delay_ns + !!how->deliver_at_ns + !!(how->flags & IPC_SEND_AT_ONCE) > 1)
        return -EINVAL;
    if (how->id_size > 255 || how->key_size > 255)
        return -E2BIG;
    size_t fields = 0;
    fields += how->priority ? ipc_field_size(0, 1) : 0;
    fields += how->ttl_ns ? ipc_field_size(0, TIME_SIZE) : 0;
    fields += delayed(how) ? ipc_field_size(0, TIME_SIZE) : 0;
    fields += how->id_size ? ipc_field_size(0, how->id_size) : 0;
    fields += how->key_size ? ipc_field_size(0, how->key_size) : 0;
    fields += how->reply_to ? ipc_field_size(0, strlen(how->reply_to)) : 0;
    fields += how->flags & IPC_SEND_TIMESTAMP ? ipc_field_size(0, TIME_SIZE) : 0;
    if (how->content_type) {
        size_t size = strnlen(how->content_type, 256);
        if (size > 255)
            return -E2BIG;
        fields += ipc_field_size(0, size);
    }
    int result = headers_size(how->headers, how->header_count, &fields);
    if (result < 0)
        return result;
    size_t size = fields ? ipc_fields_block_size(fields) : 0;
    return size > IPC_MAX_HEADERS_SIZE ? -E2BIG : (int64_t)size;
}

struct block {
    unsigned char *bytes;
    size_t position;
    uint16_t count;
};

static void put(struct block *block, uint8_t kind, const void *value, size_t size)
{
    ipc_field_put(block->bytes, &block->position,
                  &(struct ipc_field){.kind = kind, .value_size = (uint16_t)size, .value = value});
    block->count++;
}

static void put_time(struct block *block, uint8_t kind, uint64_t time)
{
    put(block, kind, &time, sizeof(time));
}

/* What the router looks at comes first, so that it need not walk over the rest. */
void send_block_put(const struct ipc_send *how, unsigned char *bytes, uint32_t size)
{
    memset(bytes + size - 8, 0, 8);
    struct block block = {.bytes = bytes, .position = sizeof(struct ipc_record_headers)};
    uint64_t now = how->ttl_ns || delayed(how) ? clock_ns(CLOCK_BOOTTIME) : 0;
    if (how->priority)
        put(&block, IPC_FIELD_PRIORITY, &(uint8_t){(uint8_t)how->priority}, 1);
    if (how->ttl_ns)
        put_time(&block, IPC_FIELD_EXPIRES, add(now, how->ttl_ns));
    if (how->deliver_at_ns) {
        uint64_t real = clock_ns(CLOCK_REALTIME);
        put_time(&block, IPC_FIELD_NOT_BEFORE,
                 how->deliver_at_ns > real ? add(now, how->deliver_at_ns - real) : now);
    } else if (delayed(how)) {
        put_time(&block, IPC_FIELD_NOT_BEFORE, add(now, how->delay_ns));
    }
    if (how->id_size)
        put(&block, IPC_FIELD_ID, how->id, how->id_size);
    if (how->key_size)
        put(&block, IPC_FIELD_KEY, how->key, how->key_size);
    if (how->reply_to)
        put(&block, IPC_FIELD_REPLY_TO, how->reply_to, strlen(how->reply_to));
    if (how->flags & IPC_SEND_TIMESTAMP)
        put_time(&block, IPC_FIELD_TIMESTAMP, clock_ns(CLOCK_REALTIME));
    if (how->content_type)
        put(&block, IPC_FIELD_CONTENT_TYPE, how->content_type, strlen(how->content_type));
    for (size_t i = 0; i < how->header_count; i++) {
        const struct ipc_header *header = &how->headers[i];
        ipc_field_put(bytes, &block.position,
                      &(struct ipc_field){.kind = IPC_FIELD_USER,
                                          .name_size = (uint8_t)strlen(header->name),
                                          .name = header->name,
                                          .value_size = (uint16_t)header->value_size,
                                          .value = header->value});
        block.count++;
    }
    struct ipc_record_headers headers = {.size = size, .count = block.count};
    memcpy(bytes, &headers, sizeof(headers));
}
