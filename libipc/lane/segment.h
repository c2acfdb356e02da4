/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping of segments that the core handed over: sizes, seals and headers are checked first.
 */
#ifndef IPC_LANE_SEGMENT_H
#define IPC_LANE_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/layout.h"

/* Map a whole segment, and if ring_size is not 0 its ring a second time behind it, so that no record wraps.
 * Touches all of it now. Returns 0 and the address; -EPROTO if the descriptor is not a sealed segment of that
 * kind and size; -ENOMEM, -EACCES. The descriptor stays the caller's, who may close it. */
int lane_segment_map(void **ret, int fd, enum ipc_segment_kind kind, uint32_t ring_size, bool writable);

/* Map a shared segment of so many bytes, after the same checks; once, and inherited by nobody. */
int lane_segment_map_shared(void **ret, int fd, uint32_t size);

/* NULL is allowed. */
void lane_segment_unmap(void *segment, enum ipc_segment_kind kind, uint32_t ring_size);

/* Bytes of a segment of that kind. */
size_t lane_segment_size(enum ipc_segment_kind kind, uint32_t ring_size);

/* The header of a new segment. */
struct ipc_segment_header lane_segment_header(enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id);

static inline unsigned char *lane_segment_ring(void *lane)
{
    return (unsigned char *)lane + IPC_LAYOUT_PAGE;
}

#endif
