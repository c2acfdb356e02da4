/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/pairing_state.h"

#include <assert.h>

void side_init(struct side *side, bool writer)
{
    *side = (struct side){.state = SIDE_WAIT, .writer = writer};
    list_init(&side->due);
}

enum side_notice side_due(const struct side *side)
{
    return side->state == SIDE_ADD_DUE   ? SIDE_NOTICE_ADD
           : side->state == SIDE_DEL_DUE ? SIDE_NOTICE_DEL
                                         : SIDE_NOTICE_NONE;
}

void side_start(struct side *side)
{
    if (side->state == SIDE_WAIT)
        side->state = SIDE_ADD_DUE;
}

bool side_again(struct side *side)
{
    switch (side->state) {
    case SIDE_WAIT:
    case SIDE_ADD_DUE:
        return true; /* the one that is due says it */
    case SIDE_ADD_SENT:
        side->again = true;
        return true;
    case SIDE_LIVE:
        side->state = SIDE_ADD_DUE;
        return true;
    default:
        return false;
    }
}

void side_sent(struct side *side)
{
    if (side->state == SIDE_DEL_DUE) {
        side->state = SIDE_DEL_SENT;
        return;
    }
    assert(side->state == SIDE_ADD_DUE && !side->flight);
    side->known = true;
    side->flight = true;
    side->state = SIDE_ADD_SENT;
}

void side_went(struct side *side)
{
    if (side->state == SIDE_ADD_SENT && side->ending)
        side->state = SIDE_DEL_DUE;
}

void side_end(struct side *side, unsigned reason, bool owed)
{
    switch (side->state) {
    case SIDE_WAIT:
        side->reason = (uint8_t)reason;
        side->state = SIDE_DONE;
        return;
    case SIDE_ADD_DUE:
        if (side->ending)
            return;
        side->reason = (uint8_t)reason;
        /* A writer needs no ADD to understand a DEL, and of a reader that left there is none to be sent. */
        if (side->joined || (side->known && side->writer))
            side->state = SIDE_DEL_DUE;
        else if (side->known || owed)
            side->ending = true;
        else
            side->state = SIDE_DONE;
        return;
    case SIDE_ADD_SENT:
    case SIDE_LIVE:
        side->reason = (uint8_t)reason;
        side->again = false;
        side->state = SIDE_DEL_DUE;
        return;
    default:
        return; /* the first reason is the one that is told */
    }
}

void side_gone(struct side *side)
{
    side->state = SIDE_DONE;
    side->flight = false;
    side->again = false;
}

bool side_confirm_add(struct side *side)
{
    if (!side->flight)
        return false;
    side->flight = false;
    side->joined = true;
    if (side->state == SIDE_ADD_SENT)
        side->state = side->again ? SIDE_ADD_DUE : SIDE_LIVE;
    side->again = false;
    return true;
}

bool side_confirm_del(struct side *side)
{
    if (side->state != SIDE_DEL_SENT)
        return false;
    side->state = SIDE_DONE;
    side->flight = false;
    return true;
}
