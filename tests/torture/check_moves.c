/* SPDX-License-Identifier: Apache-2.0
 *
 * The history checker, where messages are moved to other queues, or from dead letters back to where they came from: each is in
 * one place at a time, whoever is killed meanwhile. In a queue that something was moved to, the order of those that were sent to
 * it cannot be told from that of the others, and is not looked at.
 */
#include <stdlib.h>

#include "tests/torture/check.h"

void check_move(struct check *check, const struct event *event)
{
    for (unsigned i = 0; i < HISTORY_QUEUES; i++) {
        const bool there = event->number == HISTORY_BACK ? check->history->queues[i].dead_letter >= 0
                                                         : event->number == i;

        if (there && event->time_ns < check->moved_ns[i])
            check->moved_ns[i] = event->time_ns;
    }
    check->found->moves++;
}

bool check_moved_to(const struct check *check, const struct reception *reception)
{
    return check->moved_ns[reception->queue] < reception->time_ns;
}

bool check_letter_again(const struct check *check, const struct reception *reception)
{
    for (unsigned i = 0; i < HISTORY_QUEUES; i++)
        if (check->history->queues[i].dead_letter == reception->queue &&
            check->moved_ns[i] < reception->time_ns)
            return true;
    return false;
}

bool check_letter(const struct check *check, const struct reception *reception, const struct sending *sending)
{
    return check->history->queues[sending->queue].dead_letter == reception->queue ||
           check_letter_again(check, reception);
}

static int by_message(const void *a, const void *b)
{
    const struct reception *left = a, *right = b;

    if (left->sender != right->sender)
        return left->sender < right->sender ? -1 : 1;
    if (left->sequence != right->sequence)
        return left->sequence < right->sequence ? -1 : 1;
    return left->time_ns < right->time_ns ? -1 : left->time_ns > right->time_ns;
}

static void check_hop(struct check *check, const struct reception *last, const struct reception *reception)
{
    struct sending *sending = check_sending(check, reception);

    if (!sending || last->checksum != reception->checksum ||
        !(check_moved_to(check, reception) || check_letter_again(check, reception)))
        return; /* which is found elsewhere */
    check->found->moved += !sending->moved;
    sending->moved = true;
    if (check_lease_end(check, reception) <= reception->time_ns)
        return; /* it may have been read long after it was taken back */
    if (last->acked < reception->time_ns && last->refusing == NEVER &&
        check_lease_end(check, last) > reception->time_ns)
        finding(check, &check->found->duplicated,
                "duplicate: " WHICH ": it was acknowledged as number %" PRIu64 " of queue %u", TELL,
                last->number, last->queue);
    else if (check_over(check, last) > reception->time_ns)
        finding(check, &check->found->duplicated,
                "duplicate: " WHICH ": client %" PRIu32 " has it, as number %" PRIu64 " of queue %u", TELL,
                last->client, last->number, last->queue);
}

void check_moves(struct check *check)
{
    const struct reception *all = check->receptions;

    qsort(check->receptions, check->n_receptions, sizeof(*all), by_message);
    for (size_t i = 1; i < check->n_receptions; i++)
        if (all[i].sender == all[i - 1].sender && all[i].sequence == all[i - 1].sequence &&
            (all[i].queue != all[i - 1].queue || all[i].number != all[i - 1].number))
            check_hop(check, &all[i - 1], &all[i]);
}
