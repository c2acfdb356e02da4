/* SPDX-License-Identifier: Apache-2.0
 *
 * The history checker. Messages are told apart by what their producers wrote into them (sender, sequence), by the number
 * that their queue gave them, and by their deliveries; times are compared only where one event caused the other.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tests/torture/check.h"

#define TEXTS_MAX 12u

void finding(struct check *check, uint64_t *count, const char *format, ...)
{
    va_list arguments;

    if ((*count)++ >= TEXTS_MAX)
        return;
    va_start(arguments, format);
    (void)vfprintf(check->out, format, arguments);
    va_end(arguments);
    (void)fputc('\n', check->out);
}

/* ---- reading the journals ---- */

static bool allocate(struct check *check)
{
    size_t sendings = 0, receptions = 0, clients = 0, kills = 0;

    for (unsigned j = 0; j < check->history->journals; j++)
        for (size_t i = 0; i < check->history->counts[j]; i++) {
            const struct event *event = &check->history->events[j][i];

            sendings += event->kind == EVENT_SEND;
            receptions += event->kind == EVENT_RECEIVED;
            kills += event->kind == EVENT_KILL_GATEWAY || event->kind == EVENT_KILL_CORE;
            if ((event->kind == EVENT_BEGIN || event->kind == EVENT_KILL) && event->client >= clients)
                clients = event->client + 1;
        }
    check->n_clients = clients;
    check->sendings = calloc(sendings + 1, sizeof(*check->sendings));
    check->receptions = calloc(receptions + 1, sizeof(*check->receptions));
    check->clients = calloc(clients + 1, sizeof(*check->clients));
    check->kills = calloc(kills + 1, sizeof(*check->kills));
    for (size_t i = 0; check->clients && i < clients; i++)
        check->clients[i].end = NEVER;
    return check->sendings && check->receptions && check->clients && check->kills;
}

static void client_ends(struct check *check, const struct event *event)
{
    struct client *client = &check->clients[event->client];

    if (event->time_ns < client->end)
        client->end = event->time_ns;
}

/* The receptions with these deliveries of the client that began at `first`. */
static void answered(struct check *check, size_t first, const struct event *event)
{
    for (size_t i = check->n_receptions; i > first; i--) {
        struct reception *reception = &check->receptions[i - 1];

        if (reception->delivery < event->number)
            break;
        if (reception->delivery > event->delivery)
            continue;
        if (event->kind == EVENT_ACKING && reception->acking == NEVER)
            reception->acking = event->time_ns;
        if (event->kind == EVENT_ACKED && reception->acked == NEVER)
            reception->acked = event->time_ns;
        if (event->kind == EVENT_REFUSING && reception->refusing == NEVER) {
            reception->refusing = event->time_ns;
            reception->held_back = event->attempt != 0;
        }
    }
}

static void read_consumer(struct check *check, const struct event *event, uint32_t client, size_t first)
{
    struct reception *reception = &check->receptions[check->n_receptions];

    switch (event->kind) {
    case EVENT_RECEIVED:
        check->n_receptions++;
        check->found->received++;
        *reception = (struct reception){.number = event->number,
                                        .time_ns = event->time_ns,
                                        .delivery = event->delivery,
                                        .acking = NEVER,
                                        .acked = NEVER,
                                        .refusing = NEVER,
                                        .client = client,
                                        .sender = event->client,
                                        .producer = event->producer,
                                        .sequence = event->sequence,
                                        .checksum = event->checksum,
                                        .attempt = event->attempt,
                                        .key = event->key,
                                        .queue = event->queue,
                                        .priority = event->priority,
                                        .redelivered = event->redelivered};
        break;
    case EVENT_ACKING:
    case EVENT_ACKED:
    case EVENT_REFUSING:
        answered(check, first, event);
        break;
    default:
        break;
    }
}

static void read_producer(struct check *check, const struct event *event, uint32_t client, size_t first)
{
    struct sending *all = check->sendings, *last = &all[check->n_sendings];

    switch (event->kind) {
    case EVENT_SEND:
        *last = (struct sending){.time_ns = event->time_ns,
                                 .sender = client,
                                 .producer = event->producer,
                                 .sequence = event->sequence,
                                 .checksum = event->checksum,
                                 .key = event->key,
                                 .queue = event->queue,
                                 .priority = event->priority};
        check->n_sendings++;
        check->found->sent++;
        break;
    case EVENT_NOT_SENT: /* of the last one, or of the last ones */
        while (check->n_sendings > first && all[check->n_sendings - 1].sequence >= event->sequence) {
            check->n_sendings--;
            check->found->sent--;
        }
        break;
    case EVENT_SENT:
        for (size_t i = check->n_sendings; i > first && !all[i - 1].sent; i--) {
            all[i - 1].sent = true;
            all[i - 1].ticket = event->number;
        }
        break;
    case EVENT_REFUSED:
        for (size_t i = check->n_sendings; i > first && !all[i - 1].confirmed; i--)
            if (all[i - 1].sent && all[i - 1].ticket == event->number) {
                all[i - 1].refused = true;
                check->found->refused++;
            }
        break;
    case EVENT_CONFIRMED:
        for (size_t i = check->n_sendings; i > first && !all[i - 1].confirmed; i--)
            if (all[i - 1].sent && all[i - 1].ticket <= event->number) {
                /* Everything before it, too. */
                for (size_t k = i; k > first && !all[k - 1].confirmed; k--) {
                    all[k - 1].confirmed = true;
                    check->found->confirmed += !all[k - 1].refused;
                }
                break;
            }
        break;
    default:
        break;
    }
}

static void read_journal(struct check *check, const struct event *events, size_t count)
{
    uint32_t client = 0;
    size_t sendings = check->n_sendings, receptions = check->n_receptions;

    for (size_t i = 0; i < count; i++) {
        const struct event *event = &events[i];

        switch (event->kind) {
        case EVENT_BEGIN:
            client = event->client;
            check->clients[client].begin = event->time_ns;
            check->clients[client].process = (uint32_t)event->number;
            check->clients[client].gateway = event->queue;
            sendings = check->n_sendings;
            receptions = check->n_receptions;
            break;
        case EVENT_CLOSE:
            client_ends(check, event);
            check->found->closes++;
            break;
        case EVENT_KILL:
            client_ends(check, event);
            check->clients[event->client].killed = true;
            check->found->kills++;
            break;
        case EVENT_KILL_GATEWAY:
            check->kills[check->n_kills++] =
                (struct gateway_kill){.gateway = event->queue, .from = event->number, .to = event->time_ns};
            check->found->gateway_kills[event->queue % HISTORY_GATEWAYS]++;
            break;
        case EVENT_KILL_CORE:
            check->kills[check->n_kills++] =
                (struct gateway_kill){.from = event->time_ns, .to = event->time_ns};
            check->found->core_kills++;
            break;
        case EVENT_MOVE:
            check_move(check, event);
            break;
        case EVENT_ERROR:
            finding(check, &check->found->errors, "error: client %" PRIu32 ": line %" PRIu64 ": %s",
                    event->client, event->number, strerror((int)event->checksum));
            break;
        default:
            read_producer(check, event, client, sendings);
            read_consumer(check, event, client, receptions);
            break;
        }
    }
}

/* ---- content ---- */

int check_by_sender(const void *a, const void *b)
{
    const struct sending *left = a, *right = b;

    if (left->sender != right->sender)
        return left->sender < right->sender ? -1 : 1;
    return left->sequence < right->sequence ? -1 : left->sequence > right->sequence;
}

struct sending *check_sending(struct check *check, const struct reception *reception)
{
    struct sending wanted = {.sender = reception->sender, .sequence = reception->sequence};

    return bsearch(&wanted, check->sendings, check->n_sendings, sizeof(wanted), check_by_sender);
}

struct sending *check_content(struct check *check, const struct reception *reception)
{
    struct sending *sending = check_sending(check, reception);
    uint64_t *count = &check->found->altered;

    if (!sending)
        finding(check, count, "invented: " WHICH ": nobody sent that", TELL);
    else if (sending->checksum != reception->checksum || sending->producer != reception->producer)
        finding(check, count, "altered: " WHICH ": its bytes", TELL);
    else if (sending->priority != reception->priority || sending->key != reception->key)
        finding(check, count, "altered: " WHICH ": its priority or key", TELL);
    else if (sending->queue != reception->queue && !check_letter(check, reception, sending) &&
             !check_moved_to(check, reception))
        finding(check, count, "altered: " WHICH ": it was sent to queue %u", TELL, sending->queue);
    else if (sending->refused)
        finding(check, count, "invented: " WHICH ": it was refused, and came", TELL);
    else
        return sending;
    return NULL;
}

/* ---- duplicates ---- */

/* A lease begins when a message is given out, which is after it was sent and before it is received. */
uint64_t check_lease_end(struct check *check, const struct reception *reception)
{
    uint64_t lease = check->history->queues[reception->queue].lease_ns;
    const struct sending *sending = lease ? check_sending(check, reception) : NULL;

    return sending ? sending->time_ns + lease : NEVER;
}

/* Does the history show why a message came again after `last`? */
static const char *without_cause(struct check *check, const struct reception *last,
                                 const struct reception *now)
{
    const struct client *holder = &check->clients[last->client];
    bool lease_over = check_lease_end(check, last) <= now->time_ns;

    if (now->attempt <= last->attempt)
        return "its attempt number did not grow";
    /* There may have been deliveries in between which nobody lived to write down: then all that is known is how the
     * last one that was written down could end. */
    switch (now->attempt == last->attempt + 1 ? now->redelivered : UINT8_MAX) {
    case 0:
        return "it does not say that it was delivered before";
    case 1:
    case 2:
        if (holder->end > now->time_ns)
            return "it says that its consumer ended, which did not";
        break;
    case 3:
        if (last->refusing > now->time_ns)
            return "it says that its consumer refused it, which did not";
        break;
    case 4:
        if (!lease_over)
            return "it says that its lease was over, which was not";
        break;
    default:
        if (holder->end > now->time_ns && last->refusing > now->time_ns && !lease_over)
            return "nothing ended the delivery before";
        break;
    }
    if (last->acked < now->time_ns && last->refusing == NEVER && !lease_over)
        return "it was acknowledged";
    return NULL;
}

/* By attempt rather than by time: a consumer that was stopped may read what it was given long after its lease was over. */
static int by_number(const void *a, const void *b)
{
    const struct reception *left = a, *right = b;

    if (left->queue != right->queue)
        return left->queue < right->queue ? -1 : 1;
    if (left->number != right->number)
        return left->number < right->number ? -1 : 1;
    if (left->attempt != right->attempt)
        return left->attempt < right->attempt ? -1 : 1;
    return left->time_ns < right->time_ns ? -1 : left->time_ns > right->time_ns;
}

static void check_again(struct check *check, const struct reception *last, const struct reception *reception)
{
    const char *why = without_cause(check, last, reception);

    check->found->redeliveries++;
    if (reception->sender != last->sender || reception->sequence != last->sequence ||
        reception->checksum != last->checksum)
        finding(check, &check->found->altered, "altered: " WHICH ": it was another one before", TELL);
    if (why)
        finding(check, &check->found->duplicated,
                "duplicate: " WHICH ": attempt %u of client %" PRIu32 " at %" PRIu64
                " us, before %u of client %" PRIu32 " at %" PRIu64 " us: %s",
                TELL, reception->attempt, reception->client, reception->time_ns / 1000, last->attempt,
                last->client, last->time_ns / 1000, why);
    else
        check->found->duplicates++;
}

/* What a queue took in, in the order in which it took it in. */
static void check_entry(struct check *check, const struct reception *reception, struct sending *sending)
{
    const bool moved = check_moved_to(check, reception);

    sending->arrived = true;
    if (sending->queue != reception->queue)
        return;
    if (sending->number && !moved)
        finding(check, &check->found->duplicated, "duplicate: " WHICH ": sent once, taken twice: %" PRIu64,
                TELL, sending->number);
    else if (!moved)
        check_sequence(check, reception, sending);
    if (!sending->number)
        sending->number = reception->number;
}

/* One message of a queue: all its receptions, in order. */
static void check_message(struct check *check, const struct reception *reception, size_t count)
{
    struct sending *sending = check_content(check, reception);

    if (!sending)
        return;
    if (!sending->arrived)
        sending->first_ns = reception->time_ns; /* their order is that of deliveries, not of time */
    for (size_t i = 1; i < count; i++)
        if (reception[i].time_ns < sending->first_ns)
            sending->first_ns = reception[i].time_ns;
    if (check_letter(check, reception, sending)) {
        check->found->letters++;
        if (sending->letter && !check_letter_again(check, reception))
            finding(check, &check->found->duplicated, "duplicate: " WHICH ": a dead letter twice", TELL);
        sending->letter = true;
    } else {
        check_entry(check, reception, sending);
    }
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            check_again(check, &reception[i - 1], &reception[i]);
        sending->done |= reception[i].acking != NEVER;
    }
}

static void check_messages(struct check *check)
{
    struct reception *all = check->receptions;

    qsort(all, check->n_receptions, sizeof(*all), by_number);
    for (size_t i = 0, next; i < check->n_receptions; i = next) {
        for (next = i + 1; next < check->n_receptions && all[next].queue == all[i].queue &&
                           all[next].number == all[i].number;)
            next++;
        if (!check->history->queues[all[i].queue].raw)
            check_message(check, &all[i], next - i);
    }
}

static int by_producer(const void *a, const void *b)
{
    const struct sending *left = a, *right = b;

    if (left->producer != right->producer)
        return left->producer < right->producer ? -1 : 1;
    return left->sequence < right->sequence ? -1 : left->sequence > right->sequence;
}

static bool within(uint32_t window, uint64_t a, uint64_t b)
{
    return (a < b ? b - a : a - b) <= window;
}

/* What was confirmed has been acknowledged by somebody; what a queue that remembers ids took in, it took in once. */
static void check_sendings(struct check *check)
{
    struct sending *all = check->sendings;

    qsort(all, check->n_sendings, sizeof(*all), by_producer);
    for (size_t i = 0, next; i < check->n_sendings; i = next) {
        uint32_t remembers = check->history->queues[all[i].queue].remembers;
        const struct sending *before = NULL; /* that arrived */
        unsigned done = 0;

        for (next = i; next < check->n_sendings && all[next].producer == all[i].producer &&
                       all[next].sequence == all[i].sequence;
             next++) {
            done += all[next].done;
            if (!all[next].arrived)
                continue;
            if (before && before->number && all[next].number &&
                within(remembers, before->number, all[next].number))
                finding(check, &check->found->duplicated,
                        "duplicate: producer %" PRIu32 ", sequence %" PRIu32 ": taken as %" PRIu64
                        " and %" PRIu64 ", with an id",
                        all[i].producer, all[i].sequence, before->number, all[next].number);
            before = &all[next];
        }
        check->found->resent += next - i - 1;
        for (size_t k = i; k < next; k++) {
            check->found->acknowledged += all[k].done;
            if (all[k].confirmed && !all[k].refused && !all[k].done && !(remembers && done))
                finding(check, &check->found->lost,
                        "lost: queue %u, sender %" PRIu32 ", sequence %" PRIu32 ": confirmed, and %s",
                        all[k].queue, all[k].sender, all[k].sequence,
                        all[k].arrived ? "nobody acknowledged it, and it is gone" : "never delivered");
        }
    }
}

/* ---- order ---- */

static int by_client(const void *a, const void *b)
{
    const struct reception *left = a, *right = b;

    if (left->client != right->client)
        return left->client < right->client ? -1 : 1;
    return left->delivery < right->delivery ? -1 : left->delivery > right->delivery;
}

/* A dead letter of which the next ipcd first has to ask where it comes from does not hold up the others; nor does what is moved
 * there. */
static bool letter_waited(struct check *check, const struct reception *reception)
{
    const struct sending *sending = check_sending(check, reception);

    return sending && (check_moved_to(check, reception) ||
                       (check_letter(check, reception, sending) &&
                        check_killed(check, 0, sending->time_ns, reception->time_ns)));
}

/* What one consumer is given for the first time comes in the order of the queue, per priority, or else per key. */
static void check_order(struct check *check)
{
    uint64_t last[HISTORY_KEYS][10] = {{0}};

    qsort(check->receptions, check->n_receptions, sizeof(*check->receptions), by_client);
    for (size_t i = 0; i < check->n_receptions; i++) {
        const struct reception *reception = &check->receptions[i];
        uint64_t *before = &last[reception->key % HISTORY_KEYS][reception->priority % 10];

        if (i == 0 || reception[-1].client != reception->client)
            memset(last, 0, sizeof(last));
        if (i > 0 && reception[-1].client == reception->client &&
            reception[-1].delivery == reception->delivery)
            finding(check, &check->found->duplicated, "duplicate: " WHICH ": delivery %" PRIu64 " twice",
                    TELL, reception->delivery);
        if (reception->redelivered || reception->attempt != 1 || check->history->queues[reception->queue].raw)
            continue;
        if (reception->number > *before)
            *before = reception->number;
        else if (letter_waited(check, reception))
            check->found->overtaken++;
        else
            finding(check, &check->found->disordered, "order: " WHICH ": after number %" PRIu64, TELL,
                    *before);
    }
}

static int by_key(const void *a, const void *b)
{
    const struct reception *left = a, *right = b;

    if (left->queue != right->queue)
        return left->queue < right->queue ? -1 : 1;
    if (left->key != right->key)
        return left->key < right->key ? -1 : 1;
    return left->time_ns < right->time_ns ? -1 : left->time_ns > right->time_ns;
}

/* When a delivery was over for certain, or may have been. */
uint64_t check_over(struct check *check, const struct reception *reception)
{
    uint64_t end = check->clients[reception->client].end, lease = check_lease_end(check, reception);

    if (reception->acking < end)
        end = reception->acking;
    if (reception->refusing < end)
        end = reception->refusing;
    return lease < end ? lease : end;
}

/* It has no say in what comes after it any more. */
static bool passed_by(struct check *check, const struct reception *other, const struct reception *reception)
{
    const struct sending *sending;

    if (other->number == reception->number || other->acking < reception->time_ns ||
        (other->refusing < reception->time_ns && other->held_back))
        return true;
    sending = check_sending(check, other);
    return !sending || sending->letter || sending->moved;
}

/* Messages of one key are with one consumer at a time, and what came back goes out before what follows it. */
static void check_keys(struct check *check)
{
    struct reception *all = check->receptions;
    const struct reception *pending[64]; /* received, and not acknowledged as far as is known */
    unsigned n_pending = 0;

    qsort(all, check->n_receptions, sizeof(*all), by_key);
    for (size_t i = 0; i < check->n_receptions; i++) {
        const struct reception *reception = &all[i];
        unsigned kept = 0;

        if (i == 0 || reception[-1].queue != reception->queue || reception[-1].key != reception->key)
            n_pending = 0;
        if (!check->history->queues[reception->queue].keyed || !reception->key ||
            check_lease_end(check, reception) <=
                reception->time_ns) /* it may read what was taken back long ago */
            continue;
        for (unsigned p = 0; p < n_pending; p++) {
            const struct reception *other = pending[p];

            if (passed_by(check, other, reception))
                continue;
            pending[kept++] = other;
            if (other->client == reception->client)
                continue;
            if (check_over(check, other) > reception->time_ns)
                finding(check, &check->found->disordered,
                        "order: " WHICH ": client %" PRIu32 " has number %" PRIu64 " of key %u", TELL,
                        other->client, other->number, other->key);
            else if (other->number < reception->number && !check->history->queues[reception->queue].lease_ns)
                finding(check, &check->found->disordered,
                        "order: " WHICH ": number %" PRIu64 " of key %u is to come first", TELL,
                        other->number, other->key);
        }
        n_pending = kept;
        if (n_pending < sizeof(pending) / sizeof(pending[0]))
            pending[n_pending++] = reception;
    }
}

bool history_check(const struct history *history, struct findings *ret, FILE *out)
{
    struct check check = {.history = history, .found = ret, .out = out};
    bool enough;

    *ret = (struct findings){.stuck = history->stuck};
    memset(check.moved_ns, 0xff, sizeof(check.moved_ns));
    enough = allocate(&check);
    if (enough) {
        for (unsigned j = 0; j < history->journals; j++)
            read_journal(&check, history->events[j], history->counts[j]);
        check_sessions(&check);
        qsort(check.sendings, check.n_sendings, sizeof(*check.sendings), check_by_sender);
        check_raw(&check);
        check_moves(&check);
        check_messages(&check);
        check_losses(&check);
        check_order(&check);
        check_keys(&check);
        check_sendings(&check);
    }
    free(check.sendings);
    free(check.receptions);
    free(check.clients);
    free(check.kills);
    return enough;
}
