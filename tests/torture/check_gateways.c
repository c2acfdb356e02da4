/* SPDX-License-Identifier: Apache-2.0
 *
 * The history checker, where gateways are on the way: what their kills explain, and no more than that.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/torture/check.h"

bool check_killed(const struct check *check, unsigned gateway, uint64_t from, uint64_t to)
{
    for (size_t i = 0; i < check->n_kills; i++)
        if (check->kills[i].gateway == gateway && check->kills[i].to > from && check->kills[i].from < to)
            return true;
    return false;
}

void check_sessions(struct check *check)
{
    for (size_t i = 0; i < check->n_clients; i++) {
        struct client *client = &check->clients[i];

        if (client->process && client->process < check->n_clients &&
            check->clients[client->process].end < client->end)
            client->end = check->clients[client->process].end;
        for (size_t k = 0; k < check->n_kills && client->gateway; k++)
            if (check->kills[k].gateway == client->gateway && check->kills[k].to > client->begin &&
                check->kills[k].from < client->end)
                client->end = check->kills[k].from;
    }
}

void check_sequence(struct check *check, const struct reception *reception, const struct sending *sending)
{
    const unsigned gateway = check->history->queues[sending->queue].gateway;
    uint32_t *last = &check->clients[sending->sender].last_sequence[sending->priority];

    if (sending->sequence > *last)
        *last = sending->sequence;
    else if (gateway && check_killed(check, gateway, sending->time_ns, reception->time_ns))
        check->found->overtaken++;
    else
        finding(check, &check->found->disordered,
                "order: " WHICH ": behind sequence %" PRIu32 " of that sender", TELL, *last);
}

/* ---- what has no numbers ---- */

static int by_time(const void *a, const void *b)
{
    const struct reception *left = a, *right = b;

    return left->time_ns < right->time_ns ? -1 : left->time_ns > right->time_ns;
}

static void check_taken(struct check *check, const struct reception *reception)
{
    const struct history_queue *queue = &check->history->queues[reception->queue];
    struct sending *sending = check_content(check, reception);

    if (!sending)
        return;
    sending->done = true; /* whoever takes it from an mqueue has it */
    if (sending->arrived) {
        if (queue->loss == LOSS_NONE &&
            check_killed(check, queue->gateway, sending->time_ns, reception->time_ns))
            check->found->repeated++;
        else
            finding(check, &check->found->duplicated, "duplicate: " WHICH ": nothing explains it", TELL);
        return;
    }
    check_sequence(check, reception, sending);
    sending->arrived = true;
    sending->first_ns = reception->time_ns;
}

void check_raw(struct check *check)
{
    qsort(check->receptions, check->n_receptions, sizeof(*check->receptions), by_time);
    for (size_t i = 0; i < check->n_receptions; i++)
        if (check->history->queues[check->receptions[i].queue].raw)
            check_taken(check, &check->receptions[i]);
}

/* ---- losses ---- */

/* Of one sender, whose messages come in their order: between what came before and what came behind, somebody was killed. */
static void check_missing(struct check *check, const struct sending *sending, uint64_t from, uint64_t to)
{
    const struct history_queue *queue = &check->history->queues[sending->queue];
    bool sender_died = to == NEVER && check->clients[sending->sender].killed;

    if (check_killed(check, queue->gateway, from, to) || (queue->loss == LOSS_KILL && sender_died))
        check->found->cut[sending->queue]++;
    else
        finding(check, &check->found->lost,
                "lost: queue %u, sender %" PRIu32 ", sequence %" PRIu32 ": and no gateway was killed",
                sending->queue, sending->sender, sending->sequence);
}

void check_losses(struct check *check)
{
    const struct sending *all = check->sendings;

    for (size_t i = 0, next; i < check->n_sendings; i = next) {
        uint64_t from = check->clients[all[i].sender].begin, to = NEVER;
        bool same = true;

        for (next = i;
             next < check->n_sendings && !all[next].arrived && (same = all[next].sender == all[i].sender);
             next++)
            continue;
        if (i > 0 && all[i - 1].sender == all[i].sender)
            from = all[i - 1].time_ns;
        if (same && next < check->n_sendings && all[next].sender == all[i].sender)
            to = all[next].first_ns;
        for (size_t k = i; k < next; k++)
            if (all[k].sent && check->history->queues[all[k].queue].loss != LOSS_NONE)
                check_missing(check, &all[k], from, to);
        next += next == i;
    }
    for (unsigned i = 0; i < HISTORY_QUEUES; i++) {
        const struct history_queue *queue = &check->history->queues[i];
        uint64_t kills = check->found->gateway_kills[queue->gateway];

        if (queue->loss == LOSS_ONE && check->found->cut[i] > kills)
            finding(check, &check->found->lost,
                    "lost: queue %u: %" PRIu64 " messages, with %" PRIu64 " kills of its gateway", i,
                    check->found->cut[i], kills);
    }
}
