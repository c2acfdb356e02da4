/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/lane.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/util/fd.h"

#define CELLS_ALL ((UINT64_C(1) << IPC_CELLS_PER_SEGMENT) - 1)
static_assert(IPC_CELLS_PER_SEGMENT < 64, "cells.used is one word");

struct charge lane_charge(uint32_t ring_size)
{
    return (struct charge){.of = {[LIMIT_TOPICS] = 1,
                                  [LIMIT_DESCRIPTORS] = 1,
                                  [LIMIT_SEGMENT_BYTES] = segment_size(IPC_SEGMENT_LANE, ring_size)}};
}

struct lane *lane_new(struct broker *broker, struct session *session, const struct lane_wish *wish, int *fd)
{
    struct lane *lane = calloc(1, sizeof(*lane));

    if (!lane)
        return NULL;
    lane->topic = registry_topic(broker, wish->name, true);
    if (!lane->topic) {
        free(lane);
        return NULL;
    }
    lane->id = ++broker->lane_last;
    lane->writer = session->peer;
    lane->session = session;
    lane->user = session->user;
    lane->retain = wish->retain;
    lane->exclusive = wish->exclusive;
    lane->fence = !(session->features & IPC_FEATURE_MEMBARRIER);
    lane->ring_size = wish->ring_size;
    lane->fd = fd_steal(fd);
    list_init(&lane->pairings);
    list_init(&lane->waiting);
    list_append(&broker->lanes, &lane->link);
    list_append(&session->lanes, &lane->by_session);
    list_append(&lane->topic->lanes, &lane->by_topic);
    hash_add(&broker->lanes_by_id, &lane->node, lane->id);
    broker->n_topics++;
    return lane;
}

void lane_release(struct broker *broker, struct lane *lane)
{
    struct charge charge = lane_charge(lane->ring_size);

    if (lane->state != LANE_DRAINING || !list_empty(&lane->pairings))
        return;
    assert(list_empty(&lane->waiting) && !lane->session);
    /* Before the charge is returned the memory is: a descriptor passed to a friend keeps none. */
    lane->fd = segment_destroy(lane->fd, segment_size(IPC_SEGMENT_LANE, lane->ring_size));
    quota_return(&broker->quota, lane->user, &charge);
    hash_remove(&broker->lanes_by_id, &lane->node);
    list_remove(&lane->link);
    list_remove(&lane->by_topic);
    registry_topic_release(broker, lane->topic);
    broker->n_topics--;
    free(lane);
}

void lane_retain(struct broker *broker, struct lane *lane)
{
    list_for_each_safe(node, &lane->topic->lanes)
    {
        struct lane *older = list_entry(node, struct lane, by_topic);

        if (older->state != LANE_RETAINED || older->user != lane->user)
            continue;
        older->state = LANE_DRAINING;
        lane_release(broker, older);
    }
    lane->state = LANE_RETAINED;
}

uint32_t lane_slot_take(struct lane *lane)
{
    for (uint32_t slot = 0; slot < IPC_LANE_SLOTS; slot++) {
        uint64_t bit = UINT64_C(1) << (slot % 64);

        if (lane->slots[slot / 64] & bit)
            continue;
        lane->slots[slot / 64] |= bit;
        return slot;
    }
    return PAIRING_NO_SLOT;
}

void lane_slot_return(struct lane *lane, uint32_t slot)
{
    uint64_t bit = UINT64_C(1) << (slot % 64);

    assert(lane->slots[slot / 64] & bit);
    lane->slots[slot / 64] &= ~bit;
}

static uint64_t cells_free(const struct session *session)
{
    uint64_t n = 0;

    list_for_each(node, &session->cells)
    {
        const struct cells *cells = list_entry(node, struct cells, link);

        n += IPC_CELLS_PER_SEGMENT - (unsigned)__builtin_popcountll(cells->used);
    }
    return n;
}

static struct charge charge_of_segments(uint64_t n)
{
    return (struct charge){
        .of = {[LIMIT_DESCRIPTORS] = n, [LIMIT_SEGMENT_BYTES] = n * segment_size(IPC_SEGMENT_CELLS, 0)}};
}

struct charge cells_charge(const struct session *session, uint64_t n)
{
    uint64_t there = cells_free(session), missing = n > there ? n - there : 0;

    return charge_of_segments((missing + IPC_CELLS_PER_SEGMENT - 1) / IPC_CELLS_PER_SEGMENT);
}

int cells_reserve(struct broker *broker, struct session *session, uint64_t n, uint64_t *ret_made)
{
    *ret_made = 0;
    for (uint64_t there = cells_free(session); there < n; there += IPC_CELLS_PER_SEGMENT) {
        struct cells *cells = calloc(1, sizeof(*cells));

        if (!cells)
            return -ENOMEM;
        cells->id = ++broker->segment_last;
        cells->fd = segment_make(IPC_SEGMENT_CELLS, 0, cells->id);
        if (cells->fd < 0) {
            int result = cells->fd;

            free(cells);
            return result;
        }
        cells->session = session;
        cells->user = session->user;
        list_append(&session->cells, &cells->link);
        ++*ret_made;
    }
    return 0;
}

struct cells *cells_take(struct session *session, uint32_t *ret_cell)
{
    list_for_each(node, &session->cells)
    {
        struct cells *cells = list_entry(node, struct cells, link);

        if (cells->used == CELLS_ALL)
            continue;
        *ret_cell = (uint32_t)__builtin_ctzll(~cells->used);
        cells->used |= UINT64_C(1) << *ret_cell;
        /* Full ones go to the end, so that a free one is found at once. */
        if (cells->used == CELLS_ALL) {
            list_remove(&cells->link);
            list_append(&session->cells, &cells->link);
        }
        return cells;
    }
    return NULL;
}

static void cells_release(struct broker *broker, struct cells *cells)
{
    struct charge charge = charge_of_segments(1);

    if (cells->session || cells->used)
        return;
    cells->fd = segment_destroy(cells->fd, segment_size(IPC_SEGMENT_CELLS, 0));
    quota_return(&broker->quota, cells->user, &charge);
    list_remove(&cells->link);
    free(cells);
}

void cells_return(struct broker *broker, struct cells *cells, uint32_t cell)
{
    bool full = cells->used == CELLS_ALL;

    assert(cells->used & UINT64_C(1) << cell);
    cells->used &= ~(UINT64_C(1) << cell);
    if (full && cells->session) {
        list_remove(&cells->link);
        list_append(cells->session->cells.next, &cells->link); /* to the front */
    }
    cells_release(broker, cells);
}

void cells_orphan(struct broker *broker, struct cells *cells)
{
    list_remove(&cells->link);
    cells->session = NULL;
    cells_release(broker, cells);
}
