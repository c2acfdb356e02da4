/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/fields.h"

#include <errno.h>
#include <string.h>

#include "proto/limits.h"

void ipc_field_put(unsigned char *block, size_t *position, const struct ipc_field *field)
{
    unsigned char *at = block + *position;
    at[0] = field->kind;
    at[1] = field->name_size;
    memcpy(at + 2, &field->value_size, 2);
    if (field->name_size)
        memcpy(at + 4, field->name, field->name_size);
    if (field->value_size)
        memcpy(at + 4 + field->name_size, field->value, field->value_size);
    *position += ipc_field_size(field->name_size, field->value_size);
}

int ipc_fields_block_check(const struct ipc_record_headers *headers, size_t body_size)
{
    uint32_t size = headers->size;
    if (size < sizeof(*headers) || size > IPC_MAX_HEADERS_SIZE || size % 8 != 0 || size > body_size)
        return -EPROTO;
    return (int)size;
}

int ipc_field_next(const unsigned char *block, size_t block_size, size_t *position, struct ipc_field *field)
{
    size_t at = *position ? *position : sizeof(struct ipc_record_headers);
    if (at >= block_size || block[at] == IPC_FIELD_END)
        return 0;
    if (block_size - at < 4)
        return -EPROTO;
    uint16_t value_size;
    memcpy(&value_size, block + at + 2, 2);
    size_t size = ipc_field_size(block[at + 1], value_size);
    if (size > block_size - at)
        return -EPROTO;
    *field = (struct ipc_field){.kind = block[at],
                                .name_size = block[at + 1],
                                .value_size = value_size,
                                .name = (const char *)block + at + 4,
                                .value = block + at + 4 + block[at + 1]};
    *position = at + size;
    return 1;
}
