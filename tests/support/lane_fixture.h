/* SPDX-License-Identifier: Apache-2.0
 *
 * Lanes, cells and boards without a broker: sealed memfds as the core makes them, mapped as clients map them,
 * and messages whose content follows from their number.
 */
#ifndef IPC_TESTS_LANE_FIXTURE_H
#define IPC_TESTS_LANE_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libipc/lane/reader.h"
#include "libipc/lane/segment.h"
#include "libipc/lane/writer.h"

enum fixture_policy { FIXTURE_DROP, FIXTURE_PIN, FIXTURE_DISCONNECT };

/* A sealed segment with its header, as the core hands it out. Returns the descriptor or -1. */
int fixture_segment(enum ipc_segment_kind kind, uint32_t ring_size);

/* Map it; NULL if that fails. */
void *fixture_map(int fd, enum ipc_segment_kind kind, uint32_t ring_size, bool writable);

/* One lane and the cells of its readers, each mapped twice in this process: as its writer has it and as its
 * readers have it. */
struct fixture {
    uint32_t ring_size;
    int lane_fd;
    int cells_fd;
    struct ipc_lane *lane;              /* the writer's mapping */
    const struct ipc_lane *lane_read;   /* the readers' mapping */
    struct ipc_cells *cells;            /* the readers' mapping */
    const struct ipc_cells *cells_read; /* the writer's mapping */
    struct lane_writer writer;
};

bool fixture_init(struct fixture *fixture, uint32_t ring_size);
void fixture_done(struct fixture *fixture);

/* In a child of fork, which has no mapping: map everything again. What the writer knew is kept, but no readers. */
bool fixture_remap(struct fixture *fixture);

/* As if so many bytes and records had been published before; the lane is empty. */
void fixture_begin_at(struct fixture *fixture, uint64_t position, uint64_t sequence);

/* The reader with that slot and cell, whose pairing is 100 + index: its own half, and the writer's half. */
void fixture_attach(struct fixture *fixture, struct lane_reader *reader, unsigned index,
                    enum fixture_policy policy, unsigned start);
int fixture_admit(struct fixture *fixture, unsigned index, enum fixture_policy policy, unsigned start);

/* Both, the writer's first. */
void fixture_join(struct fixture *fixture, struct lane_reader *reader, unsigned index,
                  enum fixture_policy policy, unsigned start);

/* The content of the message with that number. */
void fixture_fill(unsigned char *body, size_t size, uint64_t number);
bool fixture_holds(const unsigned char *body, size_t size, uint64_t number);

/* Publish one message; 0, -EAGAIN or -EMSGSIZE. */
int fixture_publish(struct lane_writer *writer, uint32_t size);

/* Receive a copy, look at its content, go on. 1; 0; -EPROTO; -ESTALE; -EBADMSG if the content is wrong. */
int fixture_receive(struct lane_reader *reader, struct lane_record *record);

#endif
