/* SPDX-License-Identifier: Apache-2.0
 *
 * The header block at the start of a record's body: how it is laid out, checked and walked. Pure functions over
 * private copies: what is still in shared memory is copied first.
 */
#ifndef IPC_PROTO_FIELDS_H
#define IPC_PROTO_FIELDS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/layout.h"

struct ipc_field {
    uint8_t kind; /* enum ipc_field_kind */
    uint8_t name_size;
    uint16_t value_size;
    const char *name;
    const void *value;
};

/* Bytes that a field takes in a block. */
static inline size_t ipc_field_size(size_t name_size, size_t value_size)
{
    return 4 + name_size + value_size;
}

/* Bytes of a block whose fields take that many. */
static inline size_t ipc_fields_block_size(size_t fields_size)
{
    return (sizeof(struct ipc_record_headers) + fields_size + 7) & ~(size_t)7;
}

/* Append a field at *position of a block (which begins behind its struct ipc_record_headers); the caller has
 * counted the room. */
void ipc_field_put(unsigned char *block, size_t *position, const struct ipc_field *field);

/* The size of the block at the start of a body of body_size bytes, from its first 8 bytes; -EPROTO if it cannot
 * be one. */
int ipc_fields_block_check(const struct ipc_record_headers *headers, size_t body_size);

/* The field at *position (0 at first) of a block of block_size bytes. 1: stored; 0: no more; -EPROTO. */
int ipc_field_next(const unsigned char *block, size_t block_size, size_t *position, struct ipc_field *field);

#endif
