/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding the next record over all lanes of a subscription, and waiting for one: polling while that pays, then
 * sleeping on the records themselves (futex_waitv) or, with many lanes or a user's descriptor, by bells.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "libipc/patterns/patterns.h"

/* A reader that has caught up in a stream steps back for a moment, so that the writer's cache lines are not
 * pulled from under it. At most this many pauses (about 5 us); measured, see docs/performance.md. */
#define BACKOFF_MAX         256u
#define STREAM_PAUSES       8u /* a stream has at least a record in the time of so many pauses */
#define BACKOFF_PROBE       8u
#define BACKOFF_PROBE_EVERY 32u
/* Sleeps in a row with fewer records in between, after which a reader counts as one that sleeps often. */
#define NAPS                4u
#define NAP_RECORDS         16u
#define SPOILED_MAX         4u                /* bells shut down before it counts as an attack */
#define ALSO_NS             UINT64_C(1000000) /* who sleeps by bell looks this often at another word */

/* Drop lanes that were read to their end. */
static void sweep(struct ipc_subscription *sub)
{
    for (unsigned i = 0; i < sub->lane_count;) {
        struct sub_lane *lane = sub->lanes[i];
        struct lane_record record;
        bool read = lane->left && (lane->broken || lane_reader_peek(&lane->reader, &record) <= 0);
        if (read && lane->past)
            subscription_read(sub, lane);
        if (read && lane->held == 0)
            subscription_drop(sub, i);
        else
            i++;
    }
    if (sub->current >= sub->lane_count)
        sub->current = 0;
}

static int find_on(struct ipc_subscription *sub, struct sub_lane *candidate, struct lane_record *record,
                   struct sub_lane **lane)
{
    if (__builtin_expect(candidate->broken || candidate->after, 0))
        return 0;
    int result = lane_reader_peek(&candidate->reader, record);
    if (__builtin_expect(result < 0, 0)) {
        subscription_break(sub, candidate, result == -ESTALE ? IPC_REASON_SLOW : IPC_REASON_CORRUPT);
        return 0;
    }
    *lane = candidate;
    return result;
}

int subscription_find(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane)
{
    if (__builtin_expect(handle_has_mail(&sub->handle), 0))
        subscription_news(sub);
    uint64_t burst = sub->received - sub->burst_start;
    if (__builtin_expect(sub->left_count > 0 && burst >= BURST_MAX && !sub->keep, 0))
        sweep(sub); /* a subscription that never runs dry lets go of those that left, too */
    unsigned count = sub->lane_count;
    if (__builtin_expect(count == 0, 0))
        return 0;
    if ((burst < BURST_MAX || count == 1) && find_on(sub, sub->lanes[sub->current], record, lane) > 0)
        return 1;
    unsigned at = sub->current;
    for (unsigned i = 0; i < count && count > 1; i++) {
        at = at + 1 < count ? at + 1 : 0;
        if (find_on(sub, sub->lanes[at], record, lane) > 0) {
            sub->now = NULL;
            sub->current = at;
            sub->burst_start = sub->received;
            return 1;
        }
    }
    if (__builtin_expect(sub->left_count > 0 && !sub->keep, 0))
        sweep(sub);
    return 0;
}

/* Nothing there: learn how far to step back. A stream shows itself by several records per look, and
 * the more the longer it waited. */
static void step_back(struct ipc_subscription *sub)
{
    uint64_t run = sub->received - sub->run_start;
    sub->run_start = sub->received;
    if (run >= 2 && run * STREAM_PAUSES >= sub->backoff) {
        sub->backoff = sub->backoff ? 2 * sub->backoff : BACKOFF_PROBE / 2;
        if (sub->backoff > BACKOFF_MAX)
            sub->backoff = BACKOFF_MAX;
    } else if (run > 0) {
        sub->backoff /= 2;
        if (++sub->probe >= BACKOFF_PROBE_EVERY) {
            sub->probe = 0;
            sub->backoff = BACKOFF_PROBE;
        }
    } else {
        spin_relax();
        return;
    }
    for (uint32_t i = 0; i < sub->backoff; i++)
        spin_relax();
}

/* Arm all lanes and make that known. Who sleeps often lets the writers fence, since a barrier in all of their
 * processes costs more than a few fences: 1 us if they are asleep, many if they have to be interrupted. */
static void arm_all(struct ipc_subscription *sub, bool bell)
{
    sub->naps = sub->received - sub->slept_at < NAP_RECORDS ? sub->naps + (sub->naps < NAPS) : 0;
    sub->slept_at = sub->received;
    bool barrier = false;
    for (unsigned i = 0; i < sub->lane_count; i++) {
        struct lane_reader *reader = &sub->lanes[i]->reader;
        reader->often = sub->naps == NAPS;
        if (!sub->lanes[i]->broken)
            barrier = lane_reader_arm(reader, bell) || barrier;
        sub->lanes[i]->armed = true;
    }
    if (!barrier) {
#ifndef IPC_TSAN
        atomic_thread_fence(memory_order_seq_cst);
#endif
        return;
    }
    lane_barrier(); /* pairs with lane_publish_fence() in lane_writer_ring() */
    for (unsigned i = 0; i < sub->lane_count; i++)
        if (!sub->lanes[i]->broken)
            lane_reader_barred(&sub->lanes[i]->reader);
}

static void disarm_all(struct ipc_subscription *sub)
{
    for (unsigned i = 0; i < sub->lane_count; i++) {
        lane_reader_disarm(&sub->lanes[i]->reader);
        sub->lanes[i]->armed = false;
    }
}

/* False: a lane joined after the others were armed. */
static bool all_armed(const struct ipc_subscription *sub)
{
    for (unsigned i = 0; i < sub->lane_count; i++)
        if (!sub->lanes[i]->armed)
            return false;
    return true;
}

static bool by_bell(const struct ipc_subscription *sub)
{
    return sub->bells_asked || sub->lane_count > IPC_WAIT_LANES_MAX ||
           (sub->lane_count > 0 && !lane_has_waitv());
}

/* Arm every lane, then look again: what was committed before the barrier is seen, what comes after rings. */
static int arm_and_look(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                        bool bell)
{
    arm_all(sub, bell);
#ifdef IPC_PLANT_NO_RELOOK
    return 0;
#endif
    return subscription_find(sub, record, lane);
}

/* A bell was shut down, which only those who ring it can do: ask for others. Who does it again and again loses its lanes
 * to us; the core knows users, not which of a user's processes it was. */
static void bell_spoiled(struct ipc_subscription *sub, uint32_t uid)
{
    sub->bells_asked = false;
#ifndef IPC_PLANT_SPOILED_ALWAYS
    if (++sub->spoiled > SPOILED_MAX)
        for (unsigned i = 0; i < sub->lane_count; i++)
            if (sub->lanes[i]->sender.uid == uid)
                subscription_break(sub, sub->lanes[i], IPC_REASON_CORRUPT);
#endif
}

/* Make the descriptor quiet, unless there is something after all. */
static int quiet(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane)
{
    uint64_t count;
    (void)!read(sub->handle.self, &count, sizeof(count));
    for (unsigned i = sub->bell_count; i-- > 0;) {
        if (lane_bell_drain(sub->bells[i].fd))
            continue;
        if (sub->bells[i].past) /* all who rang it are in another session */
            subscription_bell_drop(sub, i);
        else
            bell_spoiled(sub, sub->bells[i].uid);
    }
    uint64_t next_ns;
    int revived = connection_look(sub->handle.connection, &next_ns);
    if (handle_ended(&sub->handle))
        revived = subscription_revive(sub, &next_ns);
    if (!sub->bells_asked && revived == 0)
        subscription_bells(sub, NULL);
    subscription_news(sub); /* what was pumped before its mail was counted up is in the inbox already */
    int result = arm_and_look(sub, record, lane, true);
    if (result == 0 && revived < 0 && revived != -EAGAIN)
        result = revived;
    bool waits = result == -EPIPE && connection_between(sub->handle.connection); /* its owner: for a broker */
    if ((result != 0 && !waits) || !all_armed(sub) || !sub->bells_asked || sub->roused)
        (void)!write(sub->handle.self, &(uint64_t){1}, sizeof(uint64_t));
    return result;
}

static int sleep_by_bell(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                         uint64_t deadline)
{
    int result = subscription_bells(sub, NULL);
    if (result == -EPIPE && !handle_restless(&sub->handle))
        result = 0; /* those that we have ring without a broker, too */
    if (result == 0)
        result = quiet(sub, record, lane);
    if (result != 0)
        return result;
    sub->sleeps++;
    uint64_t now = lane_now();
    uint64_t left = deadline > now ? deadline - now : 0;
    if (sub->also.word && left > ALSO_NS)
        left = ALSO_NS;
    struct timespec limit = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    struct pollfd wait = {.fd = sub->epoll, .events = POLLIN};
    ppoll(&wait, 1, &limit, NULL);
    return 0;
}

/* Sleep on the records that come next. Returns as subscription_find(). */
static int sleep_by_futex(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                          uint64_t deadline)
{
    struct lane_word words[IPC_MAX_WAITV];
    unsigned count = 2;
    handle_words(&sub->handle, words);
    int result = arm_and_look(sub, record, lane, false);
    if (result == 0) {
        bool quiet_lanes = all_armed(sub) && sub->lane_count + !!sub->also.word <= IPC_WAIT_LANES_MAX &&
                           !handle_restless(&sub->handle) && !sub->roused;
        if (sub->also.word)
            words[count++] = sub->also;
        for (unsigned i = 0; i < sub->lane_count && quiet_lanes; i++) {
            if (sub->lanes[i]->broken)
                continue;
            quiet_lanes =
                lane_reader_sleeps_on(&sub->lanes[i]->reader, &words[count].word, &words[count].value);
            words[count++].private = false;
        }
        if (quiet_lanes) {
            sub->sleeps++;
            lane_sleep(words, count, deadline);
        }
    }
    disarm_all(sub);
    return result;
}

/* Look a while without looking at the clock. */
static int spin_blind(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane)
{
    for (int i = 0; i < SPIN_BLIND; i++) {
        if (sub->lane_count > 0)
            lane_reader_fetch(&sub->lanes[sub->current]->reader);
        int result = subscription_find(sub, record, lane);
        if (result > 0)
            return result;
        spin_pause();
    }
    return 0;
}

/* Poll until *now reaches `until`. */
static int spin(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                uint64_t until, uint64_t *now)
{
    while (*now < until && !handle_ended(&sub->handle) && !subscription_roused(sub)) {
        int result = spin_blind(sub, record, lane);
        if (result > 0)
            return result;
        if (sub->spin.max_ns != IPC_FOREVER)
            spin_yield();
        *now = lane_now();
    }
    return 0;
}

/* Nothing found, and not allowed to wait. */
static int find_no_more(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane)
{
    int result = 0;
    if (sub->epoll >= 0) {
        result = quiet(sub, record, lane);
    } else if (handle_ended(&sub->handle)) {
        uint64_t next_ns;
        result = subscription_revive(sub, &next_ns);
    } else if (sub->handle.connection->reconnects && lane_now() >= sub->look_at_ns) {
        connection_look(sub->handle.connection, &sub->look_at_ns);
    }
    if (result == 0)
        result = subscription_roused(sub) ? -EINTR : -EAGAIN;
    return result;
}

int subscription_wait(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                      int64_t timeout_ns)
{
    step_back(sub);
    int result = subscription_find(sub, record, lane);
    if (result > 0)
        return result;
    if (subscription_roused(sub))
        return -EINTR;
    if (timeout_ns == 0)
        return find_no_more(sub, record, lane);

    uint64_t budget = spin_budget(&sub->spin);
    if (budget > 0 && spin_blind(sub, record, lane) > 0) {
        sub->polls++;
        spin_learn(&sub->spin, 0, false);
        return 1;
    }
    const uint64_t start = lane_now();
    const uint64_t deadline = timeout_ns < 0 ? LANE_NEVER : start + (uint64_t)timeout_ns;
    uint64_t now = start, check = start + (sub->handle.connection->reconnects ? LOOK_NS : IPC_NET_NS);
    uint64_t spin_until = budget < deadline - start ? start + budget : deadline;
    bool slept = false;
    while ((result = spin(sub, record, lane, spin_until < check ? spin_until : check, &now)) == 0) {
        if (subscription_roused(sub))
            return -EINTR;
        if (handle_ended(&sub->handle)) {
            result = subscription_revive(sub, &check);
            if (result == 0)
                continue;
            if (result != -EAGAIN)
                return subscription_find(sub, record, lane) > 0 ? 1 : result;
        }
        if (now >= deadline)
            return -ETIMEDOUT;
        if (now >= check) { /* a broker that was killed sends no mail */
            connection_look(sub->handle.connection, &check);
            continue;
        }
        uint64_t net = now + IPC_NET_NS;
        uint64_t until = deadline < net ? deadline : net;
        if (sub->handle.connection->reconnects && check < until) /* else the net is to be seen at work */
            until = check;
        result = by_bell(sub) ? sleep_by_bell(sub, record, lane, until)
                              : sleep_by_futex(sub, record, lane, until);
        if (result != 0) /* it came while we armed: the wait was over before */
            break;
        slept = true;
        now = lane_now();
        result = subscription_find(sub, record, lane);
#ifndef IPC_PLANT_NET_UNCOUNTED
        sub->net += result > 0 && now >= net;
#endif
        if (result != 0)
            break;
        spin_until = 0;
    }
    if (result < 0)
        return result;
    sub->polls += !slept;
    spin_learn(&sub->spin, now - start, slept);
    return 1;
}
