/* SPDX-License-Identifier: Apache-2.0
 *
 * Lanes and cells segments as records: making, charging, freeing. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_LANE_H
#define IPCD_CORE_CONTROL_LANE_H

#include "broker/core/control/broker.h"

struct lane_wish {
    const char *name;
    uint32_t ring_size;
    bool retain, exclusive;
    uint64_t request;
    unsigned kind;
    uint64_t target;
};

/* What a lane costs. */
struct charge lane_charge(uint32_t ring_size);

/* Make the record of a lane whose segment is there; the charge was taken. On success the descriptor is the lane's.
 * NULL: out of memory. */
struct lane *lane_new(struct broker *broker, struct session *session, const struct lane_wish *wish, int *fd);

/* Into the registry's lists, without a session. */
void lane_link(struct broker *broker, struct lane *lane);

/* Its pairings are there, too: before that an ipcd that is killed has not made it. */
void lane_joined(struct lane *lane);

void lane_set_state(struct lane *lane, enum lane_state state);

/* Have its writer go on in another one, if it is still there: what it writes into this one may be seen by somebody who may
 * not any more. */
void lane_renew(struct broker *broker, struct lane *lane);

/* Free a lane that nobody reads and nobody writes, unless it is retained. */
void lane_release(struct broker *broker, struct lane *lane);

/* Its writer is gone and it stays: the one that stayed of the same name and user until now goes. */
void lane_retain(struct broker *broker, struct lane *lane);

/* The lowest free slot, taken for a reader of that uid; or PAIRING_NO_SLOT: the last 8 are not for
 * uids that have more than are left. */
uint32_t lane_slot_take(struct lane *lane, uint32_t uid);
/* Who waits longest among those who may take one now, or NULL. */
struct pairing *lane_slot_next(struct lane *lane);
void lane_slot_return(struct lane *lane, uint32_t slot);

/* What n cells more cost a session, beside those that are free in its segments. */
struct charge cells_charge(const struct session *session, uint64_t n);

/* Make segments until n cells are free; the charge was taken. Returns 0 or a negative errno: then what was made stays
 * and *ret_made says how many. */
int cells_reserve(struct broker *broker, struct session *session, uint64_t n, uint64_t *ret_made);

/* Take a free cell; there must be one. */
struct cells *cells_take(struct session *session, uint32_t *ret_cell);

/* Give it back. The segment goes, if it is empty and its session is gone. Without its session it is charged to one of
 * the writers that have not confirmed yet. */
void cells_return(struct broker *broker, struct cells *cells, uint32_t cell);

/* Its session is gone. */
void cells_orphan(struct broker *broker, struct cells *cells);
/* If that is so, and nothing is in it any more, it goes; otherwise a writer pays for it. */
void cells_release(struct broker *broker, struct cells *cells);

/* Those of an earlier ipcd, from their rows; NULL: out of memory. Then, when the pairings are there as well, what is
 * left to do for a lane. */
struct lane *lane_restore(struct broker *broker, struct lane_row *row, int fd);
struct cells *cells_restore(struct broker *broker, struct cells_row *row, int fd);
void lane_resume(struct broker *broker, struct lane *lane);

#endif
