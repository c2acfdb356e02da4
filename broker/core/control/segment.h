/* SPDX-License-Identifier: Apache-2.0
 *
 * Segments: sealed memory that the core makes, charges to a user, and hands out. Control thread, but for
 * segment_create(), segment_memfd(), segment_allocate() and segment_destroy(), which any thread may call.
 */
#ifndef IPCD_CORE_CONTROL_SEGMENT_H
#define IPCD_CORE_CONTROL_SEGMENT_H

#include <stdint.h>

#include "broker/core/control/quota.h"
#include "proto/layout.h"

/* Bytes that are charged for a segment. */
uint64_t segment_size(enum ipc_segment_kind kind, uint32_t ring_size);

/* An empty memfd of mode 0600. Returns a descriptor or a negative errno. */
int segment_create(enum ipc_segment_kind kind);
int segment_memfd(const char *name);

/* Give it its full size, memory included. The slow part. Returns 0 or a negative errno (-ENOSPC, -ENOMEM). */
int segment_allocate(int fd, uint64_t size);

/* Write its header, seal it and verify the seals. Returns 0 or a negative errno. */
int segment_seal(int fd, enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id);

/* All of it, for small segments. */
int segment_make(enum ipc_segment_kind kind, uint32_t ring_size, uint64_t id);

/* Give its memory back to the system, whoever else holds a descriptor, and close it. Returns -1. */
int segment_destroy(int fd, uint64_t size);

/* The same, and then return its charge: a descriptor passed to a friend keeps no memory that nobody is charged for. If
 * it is large the worker does that, and the charge is returned later. */
struct broker;
void segment_free(struct broker *broker, struct user *user, int fd, uint64_t size,
                  const struct charge *charge);

#endif
