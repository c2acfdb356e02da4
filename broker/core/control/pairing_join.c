/* SPDX-License-Identifier: Apache-2.0
 *
 * Making pairings: for a new subscription, for a new lane, and asking for bells.
 */
#include "broker/core/control/pairing.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/error.h>

#include "broker/core/control/bell.h"
#include "broker/core/control/budget.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/service.h"
#include "broker/core/control/session.h"
#include "broker/core/util/log.h"

static void write_row(const struct pairing *pairing)
{
    struct pairing_row *row = pairing->row;

    row->lane = pairing->lane_id;
    row->subscription = pairing->subscription_id;
    row->cells = pairing->cells->id;
    row->reader_session = pairing->reader_session;
    row->uid = pairing->reader_uid;
    row->slot = pairing->slot;
    row->cell = pairing->cell;
    row->start = pairing->start;
    row->slow = pairing->slow;
    row->tap = pairing->tap;
    row->fence = pairing->fence;
    row->late = pairing->late;
    pairing_store(pairing);
    state_commit(row, pairing->id);
}

static struct pairing *pairing_alloc(struct broker *broker)
{
    struct pairing *pairing = calloc(1, sizeof(*pairing));

    if (pairing)
        pairing->row = state_take(&broker->state, STATE_PAIRINGS);
    if (pairing && pairing->row)
        return pairing;
    free(pairing);
    return NULL;
}

/* Fill in and start a record; charge, cell and (if the subscription wants one) bell are there. */
static void join(struct broker *broker, struct pairing *pairing, struct lane *lane,
                 struct subscription *subscription, unsigned start_at)
{
    struct session *reader = subscription->session;

    broker->work += WORK_PAIRING;
    pairing->id = state_number(&broker->state, NUMBER_PAIRING);
    pairing->lane = lane;
    pairing->lane_id = lane->id;
    pairing->subscription = subscription;
    pairing->subscription_id = subscription->id;
    pairing->cells = cells_take(reader, &pairing->cell);
    assert(pairing->cells);
    pairing->user = reader->user;
    pairing->reader_session = reader->peer.session;
    pairing->reader_uid = reader->peer.uid;
    pairing->start = (uint8_t)start_at;
    pairing->slow = subscription->slow;
    pairing->tap = subscription->tap;
    pairing->fence = !(reader->features & IPC_FEATURE_MEMBARRIER);
    pairing->late = lane->state != LANE_LIVE;
    if (!pairing->late)
        pairing_set_bell(pairing, bell_find(subscription, lane->writer.uid));
    pairing->slot = pairing->late ? PAIRING_NO_SLOT : lane_slot_take(lane, pairing->reader_uid);
    side_init(&pairing->writer_side, true);
    side_init(&pairing->reader_side, false);
    if (pairing->late)
        side_gone(&pairing->writer_side);
    pairing_link(broker, pairing);
    write_row(pairing);
    if (pairing->late || pairing->slot != PAIRING_NO_SLOT) {
        pairing_start(broker, pairing);
    } else {
        const struct log_about about = {reader->peer.session, reader->peer.uid, reader->peer.pid,
                                        reader->peer.name, "limit"};

        log_write(LOG_PAIRING_FAILED, &about,
                  "lane %" PRIu64 " of topic %s has %" PRIu32
                  " readers; a lane can have %u, the last 8 for users with few: subscription %" PRIu64
                  " waits until one leaves",
                  lane->id, lane->topic->name, lane->readers, IPC_LANE_SLOTS, subscription->id);
    }
}

void pairing_link(struct broker *broker, struct pairing *pairing)
{
    struct lane *lane = pairing->lane;

    hash_add(&broker->pairings_by_id, &pairing->node, pairing->id);
    list_append(&broker->pairings, &pairing->link);
    list_append(&pairing->cells->pairings, &pairing->by_cells);
    list_init(&pairing->by_subscription);
    if (pairing->subscription) {
        list_append(&pairing->subscription->pairings, &pairing->by_subscription);
        pairing->subscription->n_pairings++;
    }
    lane->readers++;
    list_append(pairing->late || pairing->slot != PAIRING_NO_SLOT ? &lane->pairings : &lane->waiting,
                &pairing->by_lane);
}

static void add_charge(struct charge *sum, struct charge more)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++)
        sum->of[i] += more.of[i];
}

/* Reserve cells under a charge that was taken; what was not made is returned. */
static int reserve_cells(struct broker *broker, struct session *session, uint64_t n, struct refusal *refusal)
{
    struct charge planned = cells_charge(session, n), one = {0}, left;
    uint64_t made;
    int result = cells_reserve(broker, session, n, &made);

    if (result == 0)
        return 0;
    if (planned.of[LIMIT_DESCRIPTORS])
        one.of[LIMIT_SEGMENT_BYTES] = planned.of[LIMIT_SEGMENT_BYTES] / planned.of[LIMIT_DESCRIPTORS];
    left = planned;
    left.of[LIMIT_DESCRIPTORS] -= made;
    left.of[LIMIT_SEGMENT_BYTES] -= made * one.of[LIMIT_SEGMENT_BYTES];
    quota_return(&broker->quota, session->user, &left);
    refusal_set(refusal, result, "the broker could not make a segment for cursors: %s", strerror(-result));
    return result;
}

int pairing_join(struct broker *broker, struct lane *lane, struct subscription *subscription,
                 unsigned start_at, struct refusal *refusal)
{
    struct session *session = subscription->session;
    struct charge charge = {.of = {[LIMIT_LANES] = 1}};
    const struct charge kept = charge;
    struct user *writer = lane->user;
    struct pairing *pairing;
    int result;

    add_charge(&charge, cells_charge(session, 1));
#ifdef IPC_PLANT_ACTOR_WRONG
    writer = session->user;
#endif
    result = quota_take_for(&broker->quota, session->user, writer, &charge, refusal);
    if (result < 0)
        return result;
    result = reserve_cells(broker, session, 1, refusal);
    if (result == 0 && subscription->bell)
        result = bell_make(broker, subscription, lane->writer.uid, refusal);
    pairing = result == 0 ? pairing_alloc(broker) : NULL;
    if (!pairing) {
        quota_return_for(&broker->quota, session->user, writer, &kept);
        if (result == 0)
            refusal_set(refusal, -ENOMEM, "the broker is out of memory");
        return refusal->code;
    }
    join(broker, pairing, lane, subscription, start_at);
    return 0;
}

int pairing_join_subscription(struct broker *broker, struct subscription *subscription, uint32_t *ret_matched,
                              struct refusal *refusal)
{
    const struct charge charge = {.of = {[LIMIT_SUBSCRIPTIONS] = 1}};
    const struct peer *reader = &subscription->session->peer;
    const struct log_about about = {reader->session, reader->uid, reader->pid, reader->name, "limit"};
    struct user *user = subscription->session->user;
    struct charge own = charge;
    struct lane *lane = NULL;
    uint32_t left_out = 0;
    int result;

    /* What its user publishes itself is what it cannot do without: if that is too much, nothing has to be undone. */
    while ((lane = match_lanes_next(broker, subscription, lane)))
        own.of[LIMIT_LANES] += lane->user == user;
    result = quota_take(&broker->quota, user, &own, refusal);
    if (result < 0) {
        registry_subscription_free(broker, subscription);
        return result;
    }
    own.of[LIMIT_SUBSCRIPTIONS] = 0;
    quota_return(&broker->quota, user, &own);
    *ret_matched = 0;
    while ((lane = match_lanes_next(broker, subscription, lane))) {
        result = pairing_join(broker, lane, subscription, subscription->start, refusal);
        if (result < 0 && !refusal->of_actor) { /* nobody was told of those that were made */
            pairing_end_subscription(broker, subscription, IPC_REASON_LIMIT);
            return result;
        }
        if (result < 0 && left_out++ == 0)
            log_write(LOG_PAIRING_FAILED, &about,
                      "subscription %" PRIu64 " does not get topic %s and perhaps others: %s",
                      subscription->id, lane->topic->name, refusal->text);
        *ret_matched += result == 0 && lane->state == LANE_LIVE;
    }
    return 0;
}

static void join_or_miss(struct broker *broker, struct lane *lane, struct subscription *subscription)
{
    const struct peer *reader = &subscription->session->peer;
    const struct log_about about = {reader->session, reader->uid, reader->pid, reader->name, "limit"};
    struct refusal refusal;
    /* The lane is younger than the subscription: whatever is in it was published after that. */
    int result = pairing_join(broker, lane, subscription, IPC__CONTROL__START__START_OLDEST, &refusal);

    if (result == 0)
        return;
    log_write(LOG_PAIRING_FAILED, &about, "subscription %" PRIu64 " does not get topic %s%s: %s",
              subscription->id, lane->topic->name, result == -EDQUOT ? "" : " for now", refusal.text);
    if (result == -EDQUOT)
        session_event(broker, subscription->session, EVENT_LIMIT, refusal.text);
#ifndef IPC_PLANT_JOIN_MISSED
    if (result == -EDQUOT)
        return;
    pairing_missed(broker, subscription);
    loop_retry_soon(broker);
#endif
}

void pairing_missed(struct broker *broker, struct subscription *subscription)
{
    subscription->missed = broker->missed = true;
    atomic_store_explicit(&subscription->row->missed, 1, memory_order_release);
}

void pairing_join_lane(struct broker *broker, struct lane *lane)
{
    struct subscription *subscription;
    struct match_walk walk;

    match_readers_start(&walk, broker, lane);
    while ((subscription = match_readers_next(&walk, broker, lane)))
        join_or_miss(broker, lane, subscription);
}

void pairing_join_missed(struct broker *broker)
{
    if (!broker->missed)
        return;
    broker->missed = false;
    list_for_each(node, &broker->subscriptions)
    {
        struct subscription *subscription = list_entry(node, struct subscription, link);

        if (!subscription->missed)
            continue;
        subscription->missed = false;
        service_join_missed(broker, subscription);
        list_for_each(pairings, &subscription->pairings)
        {
            list_entry(pairings, struct pairing, by_subscription)->lane->seen_by = subscription->id;
        }
        for (struct lane *lane = NULL; (lane = match_lanes_next(broker, subscription, lane));)
            if (lane->seen_by != subscription->id)
                join_or_miss(broker, lane, subscription);
        if (!subscription->missed)
            atomic_store_explicit(&subscription->row->missed, 0, memory_order_release);
    }
}

int pairing_ask_bells(struct broker *broker, struct subscription *subscription, struct refusal *refusal)
{
    if (subscription->bell) { /* asked again: somebody spoiled a bell, and all get new ones */
        list_for_each(node, &subscription->pairings)
        {
            pairing_set_bell(list_entry(node, struct pairing, by_subscription), NULL);
        }
        bell_free_all(broker, subscription);
        subscription->bell = false;
    }
    list_for_each(node, &subscription->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_subscription);
        int result = 0;

        if (!pairing->late && pairing->lane->session)
            result = bell_make(broker, subscription, pairing->lane->writer.uid, refusal);
        if (result < 0)
            return result;
    }
    subscription->bell = true;
    atomic_store_explicit(&subscription->row->bell, 1, memory_order_release);
    list_for_each(node, &subscription->pairings)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_subscription);

        if (pairing->late || !pairing->lane->session)
            continue;
        pairing_set_bell(pairing, bell_find(subscription, pairing->lane->writer.uid));
        if (side_again(&pairing->writer_side))
            pairing_requeue(broker, pairing->lane->session, &pairing->writer_side);
        if (side_again(&pairing->reader_side))
            pairing_requeue(broker, subscription->session, &pairing->reader_side);
    }
    return 0;
}
