/* SPDX-License-Identifier: Apache-2.0
 *
 * A pairing holds a slot of its lane, a cell of its reader, and a place in the reader's quota from its making until
 * both sides are done.
 */
#include "broker/core/control/pairing.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/control/bell.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/service.h"
#include "broker/core/util/log.h"

#define TYPE(name)   IPC__CONTROL__TYPE__##name
#define REASON(name) IPC__CONTROL__REASON__REASON_##name

/* So many readers that left may a writer ignore, even if its user is at its limit. */
#define UNHEARD_MAX 256u

struct pairing *pairing_of_writer_side(struct side *side)
{
    return list_entry(side, struct pairing, writer_side);
}

struct pairing *pairing_of_reader_side(struct side *side)
{
    return list_entry(side, struct pairing, reader_side);
}

static uint64_t pack(const struct side *side)
{
    return side->state | (uint64_t)side->reason << 8 | (uint64_t)side->known << 16 |
           (uint64_t)side->joined << 17 | (uint64_t)side->ending << 18;
}

void pairing_store(const struct pairing *pairing)
{
    uint64_t sides = pack(&pairing->writer_side) | pack(&pairing->reader_side) << 32;

    if (sides != atomic_load_explicit(&pairing->row->sides, memory_order_relaxed))
        atomic_store_explicit(&pairing->row->sides, sides, memory_order_release);
}

void pairing_set_bell(struct pairing *pairing, struct bell *bell)
{
    pairing->bell = bell;
    atomic_store_explicit(&pairing->row->bell, bell ? bell->id : 0, memory_order_release);
}

void pairing_requeue(struct broker *broker, struct session *session, struct side *side)
{
    enum side_notice due = side_due(side);

    pairing_store(side->writer ? pairing_of_writer_side(side) : pairing_of_reader_side(side));
    if (!list_empty(&side->due)) {
        list_remove(&side->due);
        session->due--;
        notice_mark(broker, session); /* `pending` may have to fall */
    }
    if (due == SIDE_NOTICE_NONE)
        return;
    list_append(due == SIDE_NOTICE_DEL ? &session->dels
                : side->writer         ? &session->writer_adds
                                       : &session->reader_adds,
                &side->due);
    session->due++;
    notice_mark(broker, session);
}

/* After a change of a side that may have ended its flight. */
static void settle(struct broker *broker, struct session *session, struct side *side, bool flew)
{
    if (flew && !side->flight)
        session->window--;
    pairing_requeue(broker, session, side);
}

static void writer_end(struct broker *broker, struct pairing *pairing, unsigned reason)
{
    if (!pairing->lane->session)
        return;
    side_end(&pairing->writer_side, reason, false);
    pairing_requeue(broker, pairing->lane->session, &pairing->writer_side);
}

static void writer_gone(struct broker *broker, struct pairing *pairing, struct session *session)
{
    bool flew = pairing->writer_side.flight;

    side_gone(&pairing->writer_side);
    settle(broker, session, &pairing->writer_side, flew);
}

static void reader_end(struct broker *broker, struct pairing *pairing, unsigned reason, bool owed)
{
    if (!pairing->subscription)
        return;
    side_end(&pairing->reader_side, reason, owed);
    pairing_requeue(broker, pairing->subscription->session, &pairing->reader_side);
}

static void reader_gone(struct broker *broker, struct pairing *pairing)
{
    bool flew = pairing->reader_side.flight;

    if (!pairing->subscription)
        return;
    side_gone(&pairing->reader_side);
    settle(broker, pairing->subscription->session, &pairing->reader_side, flew);
}

void pairing_start(struct broker *broker, struct pairing *pairing)
{
    side_start(&pairing->writer_side);
    side_start(&pairing->reader_side);
    if (pairing->late)
        side_end(&pairing->reader_side, pairing->lane->reason, true);
    else
        pairing_requeue(broker, pairing->lane->session, &pairing->writer_side);
    pairing_requeue(broker, pairing->subscription->session, &pairing->reader_side);
}

void pairing_promote(struct broker *broker, struct lane *lane)
{
    struct pairing *pairing;

    while (lane->state == LANE_LIVE && (pairing = lane_slot_next(lane))) {
        pairing->slot = lane_slot_take(lane, pairing->reader_uid);
        assert(pairing->slot != PAIRING_NO_SLOT);
        atomic_store_explicit(&pairing->row->slot, pairing->slot, memory_order_release);
        list_remove(&pairing->by_lane);
        list_append(&lane->pairings, &pairing->by_lane);
        pairing_start(broker, pairing);
    }
}

/* The reader is gone, and only the writer's word is missing: from here on that costs the writer. Who lets too much of
 * it pile up is ended. */
static void charge_writer(struct broker *broker, struct pairing *pairing)
{
    const struct charge charge = {.of = {[LIMIT_LANES] = 1}};
    struct user *writer = pairing->lane->user;
    struct session *session = pairing->lane->session;

    if (pairing->left || !side_done(&pairing->reader_side))
        return;
    pairing->left = true;
    session->unheard++;
#ifdef IPC_PLANT_READER_PAYS
    return;
#endif
    quota_return_for(&broker->quota, pairing->user, writer, &charge);
    quota_charge(&broker->quota, writer, &charge);
    pairing->user = writer;
    if (session->unheard >= UNHEARD_MAX && list_empty(&session->overdue) &&
        writer->used[LIMIT_LANES] > writer->limits.most[LIMIT_LANES])
        list_append(&broker->overdue, &session->overdue);
}

bool pairing_finish(struct broker *broker, struct pairing *pairing)
{
    const struct charge charge = {.of = {[LIMIT_LANES] = 1}};
    struct lane *lane = pairing->lane;

    if (!side_done(&pairing->writer_side)) {
        charge_writer(broker, pairing);
        return false;
    }
    if (pairing->left)
        lane->session->unheard--;
    pairing->left = false;
    if (!side_done(&pairing->reader_side))
        return false;
    assert(list_empty(&pairing->writer_side.due) && list_empty(&pairing->reader_side.due));
    state_drop(&broker->state, STATE_PAIRINGS, pairing->row);
    list_remove(&pairing->by_cells);
    cells_return(broker, pairing->cells, pairing->cell);
#ifndef IPC_PLANT_PAIRING_NOT_RETURNED
    quota_return_for(&broker->quota, pairing->user, lane->user, &charge);
#endif
    hash_remove(&broker->pairings_by_id, &pairing->node);
    list_remove(&pairing->link);
    list_remove(&pairing->by_lane);
    if (pairing->subscription) {
        list_remove(&pairing->by_subscription);
        pairing->subscription->n_pairings--;
    }
    lane->readers--;
    if (pairing->slot != PAIRING_NO_SLOT) {
        lane_slot_return(lane, pairing->slot);
        pairing_promote(broker, lane);
    }
    free(pairing);
    return true;
}

static void confirm_writer(struct broker *broker, struct session *session, struct pairing *pairing, bool add,
                           int result)
{
    struct side *side = &pairing->writer_side;
    bool flew = side->flight;

    bool news = add ? side_confirm_add(side) : side_confirm_del(side);

    if (news)
        settle(broker, session, side, flew);
    if (!add || !side->joined)
        return;
    if (result < 0) {
        writer_end(broker, pairing, REASON(LIMIT));
        reader_end(broker, pairing, REASON(LIMIT), false);
    } else if (result == 0 && !pairing->counted) { /* not only received: the reader looks again, once */
#ifndef IPC_PLANT_NUDGE_ALWAYS
        pairing->counted = true;
#endif
        if (pairing->subscription && pairing->reader_side.known && !side_done(&pairing->reader_side))
            notice_nudge(broker, pairing->subscription->session);
    }
}

static void confirm_reader(struct broker *broker, struct session *session, struct pairing *pairing, bool add,
                           int result)
{
    struct side *side = &pairing->reader_side;
    bool flew = side->flight;
    bool joined = side->joined;

    if (!(add ? side_confirm_add(side) : side_confirm_del(side)))
        return;
    settle(broker, session, side, flew);
    if (add && result < 0) {
        pairing->cells->known = false; /* perhaps it was that descriptor that it had no room for */
        if (joined)
            reader_end(broker, pairing, REASON(LIMIT),
                       false); /* it reads: the cell is its own until it says so */
        else
            reader_gone(broker, pairing);
        writer_end(broker, pairing, REASON(LIMIT));
    }
}

void pairing_confirm(struct broker *broker, struct session *session, struct pairing *pairing, unsigned notice,
                     int result)
{
    bool add = notice == TYPE(READER_ADD) || notice == TYPE(LANE_ADD);
    bool writer = notice == TYPE(READER_ADD) || notice == TYPE(READER_DEL);
    struct lane *lane = pairing->lane;

    if (result < 0) {
        const struct log_about about = {session->peer.session, session->peer.uid, session->peer.pid,
                                        session->peer.name, "limit"};

        log_write(LOG_PAIRING_FAILED, &about,
                  "it could not use its side of pairing %" PRIu64 " of topic %s: %s", pairing->id,
                  lane->topic->name, strerror(result > INT32_MIN ? -result : 0));
    }
    if (writer && lane->session == session)
        confirm_writer(broker, session, pairing, add, result);
    else if (!writer && pairing->subscription && pairing->subscription->session == session)
        confirm_reader(broker, session, pairing, add, result);
    if (add && result < 0)
        service_refused(broker, pairing);
    if (pairing_finish(broker, pairing))
        lane_release(broker, lane);
}

void pairing_detach(struct broker *broker, struct pairing *pairing, unsigned reason)
{
    struct lane *lane = pairing->lane;

    writer_end(broker, pairing, reason);
    reader_end(broker, pairing, reason, false);
    if (reason == REASON(LIMIT))
        service_refused(broker, pairing);
    else
        service_seek(broker, lane);
    if (pairing_finish(broker, pairing))
        lane_release(broker, lane);
}

void pairing_end_subscription(struct broker *broker, struct subscription *subscription, unsigned reason)
{
    const struct charge charge = {.of = {[LIMIT_SUBSCRIPTIONS] = 1}};
    struct user *user = subscription->session->user;
    struct topic *served = subscription->kind == IPC__CONTROL__KIND__KIND_SERVE ? subscription->topic : NULL;

    atomic_store_explicit(&subscription->row->ending, (uint8_t)reason, memory_order_release);
    list_for_each_safe(node, &subscription->pairings)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_subscription);
        struct lane *lane = pairing->lane;

        reader_gone(broker, pairing);
        writer_end(broker, pairing, reason);
        pairing_set_bell(pairing, NULL);
        pairing->subscription = NULL;
        list_remove(&pairing->by_subscription);
        if (pairing_finish(broker, pairing))
            lane_release(broker, lane);
    }
    bell_free_all(broker, subscription);
    quota_return(&broker->quota, user, &charge);
    if (served && list_empty(&served->lanes))
        served = NULL; /* it may go with its last server */
    registry_subscription_free(broker, subscription);
    if (served)
        service_seek_all(broker, served);
}

void pairing_end_lane(struct broker *broker, struct lane *lane, unsigned reason)
{
    struct session *session = lane->session;

    lane->reason = (uint8_t)reason;
    lane_set_state(lane, LANE_DRAINING);
    list_for_each_safe(node, &lane->waiting)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_lane);

        writer_gone(broker, pairing, session);
        reader_gone(broker, pairing);
        (void)pairing_finish(broker, pairing);
    }
    list_for_each_safe(node, &lane->pairings)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_lane);

        /* A reader that the writer may have counted gets to see the lane even now. */
        writer_gone(broker, pairing, session);
        reader_end(broker, pairing, reason,
                   pairing->writer_side.known || pairing->start == IPC__CONTROL__START__START_OLDEST);
        (void)pairing_finish(broker, pairing);
    }
    list_remove(&lane->by_session);
    lane->session = NULL;
    service_left(broker, session, lane);
    if (lane->retain)
        lane_retain(broker, lane);
    else
        lane_release(broker, lane);
}
