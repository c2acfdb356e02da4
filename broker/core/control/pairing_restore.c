/* SPDX-License-Identifier: Apache-2.0
 *
 * Pairings of an earlier ipcd.
 */
#include "broker/core/control/pairing.h"

#include <errno.h>
#include <stdlib.h>

#include "broker/core/control/bell.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/registry.h"

static void unpack(struct side *side, uint32_t word)
{
    side->state = word & 0xff;
    side->reason = word >> 8 & 0xff;
    side->known = word >> 16 & 1;
    side->joined = word >> 17 & 1;
    side->ending = word >> 18 & 1;
    /* What was sent and not confirmed is said again: nobody knows whether it arrived. */
#ifdef IPC_PLANT_NOTICE_ONCE
    return;
#endif
    if (side->state == SIDE_ADD_SENT)
        side->state = SIDE_ADD_DUE;
    else if (side->state == SIDE_DEL_SENT)
        side->state = SIDE_DEL_DUE;
}

static struct bell *bell_of(const struct subscription *subscription, uint64_t id)
{
    if (subscription)
        list_for_each(node, &subscription->bells)
        {
            struct bell *bell = list_entry(node, struct bell, link);

            if (bell->id == id)
                return bell;
        }
    return NULL;
}

static void restore_sides(struct pairing *pairing)
{
    uint64_t sides = atomic_load_explicit(&pairing->row->sides, memory_order_relaxed);

    side_init(&pairing->writer_side, true);
    side_init(&pairing->reader_side, false);
    unpack(&pairing->writer_side, (uint32_t)sides);
    unpack(&pairing->reader_side, (uint32_t)(sides >> 32));
}

int pairing_restore(struct broker *broker, struct pairing_row *row)
{
    const struct charge charge = {.of = {[LIMIT_LANES] = 1}};
    struct lane *lane = registry_lane(broker, row->lane);
    struct subscription *subscription = registry_subscription(broker, row->subscription);
    struct hash_node *cells = hash_find(&broker->cells_by_id, row->cells);
    struct user *user = quota_user(&broker->quota, row->uid);
    struct pairing *pairing = user ? calloc(1, sizeof(*pairing)) : NULL;

    if (!pairing)
        return -ENOMEM;
    *pairing = (struct pairing){.id = row->row.id,
                                .lane_id = row->lane,
                                .subscription_id = row->subscription,
                                .row = row,
                                .lane = lane,
                                .subscription = subscription,
                                .user = user,
                                .reader_session = row->reader_session,
                                .reader_uid = row->uid,
                                .slot = row->slot,
                                .cell = row->cell,
                                .start = row->start,
                                .slow = row->slow,
                                .tap = row->tap,
                                .fence = row->fence,
                                .late = row->late};
    restore_sides(pairing);
    /* The lane or the subscription that it was made for was not finished: nobody was told, and it is made again. */
    if (!lane || !cells || (!subscription && !side_done(&pairing->reader_side))) {
        state_drop(&broker->state, STATE_PAIRINGS, row);
        free(pairing);
        return 0;
    }
    pairing->cells = list_entry(cells, struct cells, node);
    pairing->cells->used |= UINT64_C(1) << row->cell;
    pairing->bell = bell_of(subscription, row->bell);
    if (pairing->slot != PAIRING_NO_SLOT)
        lane->slots[pairing->slot / 64] |= UINT64_C(1) << (pairing->slot % 64);
#ifdef IPC_PLANT_CHARGE_FORGOTTEN
    if (row->late)
#endif
        quota_charge_for(&broker->quota, user, lane->user, &charge);
    pairing_link(broker, pairing);
    return 0;
}

void pairing_resume(struct broker *broker, struct pairing *pairing)
{
    struct lane *lane = pairing->lane;
    struct side *writer = &pairing->writer_side, *reader = &pairing->reader_side;
    bool waits = pairing->slot == PAIRING_NO_SLOT && !pairing->late;

    if (lane->state != LANE_LIVE) {
        side_gone(writer);
        if (waits)
            side_gone(reader);
        side_start(reader);
        side_end(reader, lane->reason, writer->known || pairing->start == IPC__CONTROL__START__START_OLDEST);
    } else if (!waits) {
        side_start(writer);
        side_start(reader);
        pairing_requeue(broker, lane->session, writer);
    }
    if (pairing->subscription)
        pairing_requeue(broker, pairing->subscription->session, reader);
    pairing_store(pairing);
    (void)pairing_finish(broker, pairing);
}
