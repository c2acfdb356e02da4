/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/lane.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/fd.h"

#define CELLS_ALL      ((UINT64_C(1) << IPC_CELLS_PER_SEGMENT) - 1)
/* The last slots of a lane are for uids that have fewer than are free. */
#define SLOTS_RESERVED 8u
static_assert(IPC_CELLS_PER_SEGMENT < 64, "cells.used is one word");

struct charge lane_charge(uint32_t ring_size)
{
    return (struct charge){.of = {[LIMIT_TOPICS] = 1,
                                  [LIMIT_DESCRIPTORS] = 1,
                                  [LIMIT_SEGMENT_BYTES] = segment_size(IPC_SEGMENT_LANE, ring_size)}};
}

static void write_row(const struct lane *lane)
{
    struct lane_row *row = lane->row;

    row->session = lane->writer.session;
    row->request = lane->request;
    row->uid = lane->writer.uid;
    row->gid = lane->writer.gid;
    row->pid = lane->writer.pid;
    row->ring_size = lane->ring_size;
    row->retain = lane->retain;
    row->exclusive = lane->exclusive;
    row->fence = lane->fence;
    row->kind = lane->kind;
    row->target = lane->target;
    memcpy(row->writer, lane->writer.name, sizeof(row->writer));
    memcpy(row->topic, lane->topic->name, strlen(lane->topic->name) + 1);
    state_commit(row, lane->id);
}

struct lane *lane_new(struct broker *broker, struct session *session, const struct lane_wish *wish, int *fd)
{
    struct lane *lane = calloc(1, sizeof(*lane));

    if (!lane)
        return NULL;
    lane->row = state_take(&broker->state, STATE_LANES);
    lane->topic = lane->row ? registry_topic(broker, registry_space(wish->kind), wish->name, true) : NULL;
    if (!lane->topic) {
        state_drop(&broker->state, STATE_LANES, lane->row);
        free(lane);
        return NULL;
    }
    lane->id = state_number(&broker->state, NUMBER_LANE);
    lane->writer = session->peer;
    lane->session = session;
    lane->user = session->user;
    lane->retain = wish->retain;
    lane->exclusive = wish->exclusive;
    lane->kind = (uint8_t)wish->kind;
    lane->target = wish->target;
    lane->fence = !(session->features & IPC_FEATURE_MEMBARRIER);
    lane->ring_size = wish->ring_size;
    lane->fd = fd_steal(fd);
    lane->request = wish->request;
    keep_store(broker, KEEP_LANE, lane->id, &lane->fd, 1);
    write_row(lane);
    lane_link(broker, lane);
    list_append(&session->lanes, &lane->by_session);
    return lane;
}

void lane_link(struct broker *broker, struct lane *lane)
{
    list_init(&lane->pairings);
    list_init(&lane->waiting);
    list_append(&broker->lanes, &lane->link);
    list_init(&lane->by_session);
    list_append(&lane->topic->lanes, &lane->by_topic);
    hash_add(&broker->lanes_by_id, &lane->node, lane->id);
    broker->n_topics++;
}

void lane_joined(struct lane *lane)
{
#ifdef IPC_PLANT_LANE_UNJOINED
    return;
#endif
    atomic_store_explicit(&lane->row->joined, 1, memory_order_release);
}

void lane_set_state(struct lane *lane, enum lane_state state)
{
    lane->state = state;
    lane->row->reason = lane->reason;
    atomic_store_explicit(&lane->row->state, (uint8_t)state, memory_order_release);
}

struct lane *lane_restore(struct broker *broker, struct lane_row *row, int fd)
{
    struct user *user = quota_user(&broker->quota, row->uid);
    struct lane *lane = user ? calloc(1, sizeof(*lane)) : NULL;
    const struct charge charge = lane_charge(row->ring_size);

    if (!lane)
        return NULL;
    *lane = (struct lane){.id = row->row.id,
                          .request = row->request,
                          .row = row,
                          .user = user,
                          .state = (enum lane_state)row->state,
                          .reason = row->reason,
                          .retain = row->retain,
                          .exclusive = row->exclusive,
                          .fence = row->fence,
                          .kind = row->kind,
                          .target = row->target,
                          .ring_size = row->ring_size,
                          .fd = fd,
                          .writer = {row->session, row->uid, row->gid, row->pid, ""}};
    memcpy(lane->writer.name, row->writer, sizeof(lane->writer.name));
    lane->topic = registry_topic(broker, registry_space(row->kind), row->topic, true);
    if (!lane->topic) {
        free(lane);
        return NULL;
    }
    lane_link(broker, lane);
    if (lane->state == LANE_LIVE) {
        lane->session = registry_session(broker, row->session);
        list_append(&lane->session->lanes, &lane->by_session);
    }
    quota_charge(&broker->quota, user, &charge);
    return lane;
}

void lane_renew(struct broker *broker, struct lane *lane)
{
#ifdef IPC_PLANT_RENEW_FORGOTTEN
    return;
#endif
    if (!lane->session)
        return;
    atomic_store_explicit(&lane->row->renew, 1, memory_order_release);
    lane->session->renew = true;
    notice_mark(broker, lane->session);
}

void lane_resume(struct broker *broker, struct lane *lane)
{
    if (atomic_load_explicit(&lane->row->renew, memory_order_relaxed))
        lane_renew(broker, lane);
    pairing_promote(broker, lane);
    if (lane->state == LANE_DRAINING && lane->retain)
        lane_retain(broker, lane);
    else
        lane_release(broker, lane);
}

void lane_release(struct broker *broker, struct lane *lane)
{
    struct charge charge = lane_charge(lane->ring_size);

    if (lane->state != LANE_DRAINING || !list_empty(&lane->pairings))
        return;
    assert(list_empty(&lane->waiting) && !lane->session);
    state_drop(&broker->state, STATE_LANES, lane->row);
    keep_remove(broker, KEEP_LANE, lane->id);
#ifdef IPC_PLANT_QUOTA_KEPT
    charge = (struct charge){0};
#endif
    segment_free(broker, lane->user, lane->fd, segment_size(IPC_SEGMENT_LANE, lane->ring_size), &charge);
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
        older->retain = false;
        atomic_store_explicit(&older->row->retain, 0, memory_order_release);
        lane_set_state(older, LANE_DRAINING);
        lane_release(broker, older);
    }
    lane_set_state(lane, LANE_RETAINED);
}

/* How many slots each uid has. */
struct slot_users {
    uint32_t uid[IPC_LANE_SLOTS], n[IPC_LANE_SLOTS], count, free;
};

static void slot_users(const struct lane *lane, struct slot_users *ret)
{
    ret->count = 0;
    ret->free = IPC_LANE_SLOTS;
    for (size_t i = 0; i < sizeof(lane->slots) / sizeof(*lane->slots); i++)
        ret->free -= (uint32_t)__builtin_popcountll(lane->slots[i]);
    list_for_each(node, &lane->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_lane);
        uint32_t i = 0;

        if (pairing->slot == PAIRING_NO_SLOT)
            continue;
        while (i < ret->count && ret->uid[i] != pairing->reader_uid)
            i++;
        if (i == ret->count) {
            ret->uid[ret->count++] = pairing->reader_uid;
            ret->n[i] = 0;
        }
        ret->n[i]++;
    }
}

static bool may_take(const struct slot_users *users, uint32_t uid)
{
    uint32_t i = 0;

    while (i < users->count && users->uid[i] != uid)
        i++;
#ifdef IPC_PLANT_SLOTS_UNLIMITED
    return users->free > 0;
#endif
    return users->free > SLOTS_RESERVED || (i < users->count ? users->n[i] : 0) < users->free;
}

struct pairing *lane_slot_next(struct lane *lane)
{
    struct slot_users users;

    if (list_empty(&lane->waiting))
        return NULL;
    slot_users(lane, &users);
    list_for_each(node, &lane->waiting)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_lane);

        if (may_take(&users, pairing->reader_uid))
            return pairing;
    }
    return NULL;
}

uint32_t lane_slot_take(struct lane *lane, uint32_t uid)
{
    struct slot_users users;

    slot_users(lane, &users);
    for (uint32_t slot = 0; may_take(&users, uid) && slot < IPC_LANE_SLOTS; slot++) {
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

/* As far as `most`. Full segments are behind all others. */
static uint64_t cells_free(const struct session *session, uint64_t most)
{
    uint64_t n = 0;

    list_for_each(node, &session->cells)
    {
        const struct cells *cells = list_entry(node, struct cells, link);

        if (n >= most || cells->used == CELLS_ALL)
            break;
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
    uint64_t there = cells_free(session, n), missing = n > there ? n - there : 0;

    return charge_of_segments((missing + IPC_CELLS_PER_SEGMENT - 1) / IPC_CELLS_PER_SEGMENT);
}

int cells_reserve(struct broker *broker, struct session *session, uint64_t n, uint64_t *ret_made)
{
    *ret_made = 0;
    for (uint64_t there = cells_free(session, n); there < n; there += IPC_CELLS_PER_SEGMENT) {
        struct cells *cells = calloc(1, sizeof(*cells));

        if (cells)
            cells->row = state_take(&broker->state, STATE_CELLS);
        if (!cells || !cells->row) {
            free(cells);
            return -ENOMEM;
        }
        cells->id = state_number(&broker->state, NUMBER_SEGMENT);
        cells->fd = segment_make(IPC_SEGMENT_CELLS, 0, cells->id);
        if (cells->fd < 0) {
            int result = cells->fd;

            state_drop(&broker->state, STATE_CELLS, cells->row);
            free(cells);
            return result;
        }
        cells->session = session;
        cells->user = session->user;
        cells->row->session = session->peer.session;
        cells->row->uid = session->peer.uid;
        keep_store(broker, KEEP_CELLS, cells->id, &cells->fd, 1);
        state_commit(cells->row, cells->id);
        hash_add(&broker->cells_by_id, &cells->node, cells->id);
        list_init(&cells->pairings);
        list_append(session->cells.next, &cells->link); /* to the front */
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

/* Its reader is gone and has no part in who does not confirm that. */
static void charge_a_writer(struct broker *broker, struct cells *cells)
{
    const struct charge charge = charge_of_segments(1);
    struct user *writer = list_entry(cells->pairings.next, struct pairing, by_cells)->lane->user;

#ifdef IPC_PLANT_READER_PAYS
    return;
#endif
    if (writer == cells->user)
        return;
    quota_return(&broker->quota, cells->user, &charge);
    quota_charge(&broker->quota, writer, &charge);
    cells->user = writer;
}

void cells_release(struct broker *broker, struct cells *cells)
{
    struct charge charge = charge_of_segments(1);

    if (cells->session)
        return;
    if (cells->used) {
        charge_a_writer(broker, cells);
        return;
    }
    state_drop(&broker->state, STATE_CELLS, cells->row);
    keep_remove(broker, KEEP_CELLS, cells->id);
    cells->fd = segment_destroy(cells->fd, segment_size(IPC_SEGMENT_CELLS, 0));
    quota_return(&broker->quota, cells->user, &charge);
    hash_remove(&broker->cells_by_id, &cells->node);
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
    list_append(&broker->orphans, &cells->link);
    cells->session = NULL;
    cells_release(broker, cells);
}

struct cells *cells_restore(struct broker *broker, struct cells_row *row, int fd)
{
    struct session *session = registry_session(broker, row->session);
    struct user *user = quota_user(&broker->quota, row->uid);
    struct cells *cells = user ? calloc(1, sizeof(*cells)) : NULL;
    const struct charge charge = charge_of_segments(1);

    if (!cells)
        return NULL;
    *cells = (struct cells){.id = row->row.id, .row = row, .session = session, .user = user, .fd = fd};
    list_init(&cells->pairings);
    list_append(session ? &session->cells : &broker->orphans, &cells->link);
    hash_add(&broker->cells_by_id, &cells->node, cells->id);
    quota_charge(&broker->quota, user, &charge);
    return cells;
}
