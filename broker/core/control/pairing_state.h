/* SPDX-License-Identifier: Apache-2.0
 *
 * What one side of a pairing (its writer or its reader) has been told, is still to be told, and has confirmed.
 *
 *      WAIT --start--> ADD_DUE --sent--> ADD_SENT --confirmed--> LIVE --again--> ADD_DUE ...
 *
 *      end in WAIT, or in ADD_DUE if it was never sent and need not be      -> DONE
 *      end in ADD_DUE of a reader that did not confirm: the ADD first, then
 *      the DEL (an earlier ipcd may have sent the ADD, or not)              -> (ending is kept)
 *      end in ADD_DUE of others that were told before, in ADD_SENT, LIVE    -> DEL_DUE
 *      DEL_DUE --sent--> DEL_SENT --confirmed--> DONE
 *      gone (the session left, or let go of it)                             -> DONE, from anywhere
 *
 * Pure functions over one struct; they own no list and send nothing.
 */
#ifndef IPCD_CORE_CONTROL_PAIRING_STATE_H
#define IPCD_CORE_CONTROL_PAIRING_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/util/list.h"

enum side_state {
    SIDE_WAIT, /* no slot yet: nothing is told */
    SIDE_ADD_DUE,
    SIDE_ADD_SENT,
    SIDE_LIVE,
    SIDE_DEL_DUE,
    SIDE_DEL_SENT,
    SIDE_DONE,
};

struct side {
    struct list due; /* in one of its session's lists, or alone */
    uint8_t state;   /* enum side_state */
    uint8_t reason;  /* enum ipc_reason, once it ends */
    bool writer;     /* which side of the pairing it is */
    bool known;      /* ADD was sent at least once */
    bool joined;     /* ADD was confirmed at least once */
    bool flight;     /* an ADD is sent and not confirmed: it takes a place in the session's window */
    bool again;      /* to be announced again once that one is confirmed */
    bool ending;     /* DEL follows the ADD that is due */
};

/* What is due for a side now. */
enum side_notice { SIDE_NOTICE_NONE, SIDE_NOTICE_ADD, SIDE_NOTICE_DEL };
enum side_notice side_due(const struct side *side);

void side_init(struct side *side, bool writer);

/* It has its slot: tell. */
void side_start(struct side *side);

/* Announce it again. Returns false if there is nothing to announce any more. */
bool side_again(struct side *side);

/* The due notice is about to go out: whoever restores this state says it again. */
void side_sent(struct side *side);

/* It went out: from now on it counts as told. */
void side_went(struct side *side);

/* Tell it to end. If it was never told about the pairing, it is done at once, unless `owed`: then it is told both, as is
 * one of which an earlier ipcd did not know whether it was told. */
void side_end(struct side *side, unsigned reason, bool owed);

/* Its session left, or let go of the pairing. */
void side_gone(struct side *side);

/* Confirmations. Each returns false if nothing of that kind was unconfirmed. */
bool side_confirm_add(struct side *side);
bool side_confirm_del(struct side *side);

static inline bool side_done(const struct side *side)
{
    return side->state == SIDE_DONE;
}

#endif
