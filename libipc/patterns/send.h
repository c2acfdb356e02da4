/* SPDX-License-Identifier: Apache-2.0
 *
 * The header block of a message to a queue, from struct ipc_send.
 */
#ifndef IPC_PATTERNS_SEND_H
#define IPC_PATTERNS_SEND_H

#include <stdint.h>

#include "ipc/queue.h"

/* Bytes of the block; 0: none is needed; -EINVAL, -E2BIG. */
int64_t send_block_size(const struct ipc_send *how);

/* Write the block that send_block_size() counted. */
void send_block_put(const struct ipc_send *how, unsigned char *bytes, uint32_t size);

#endif
