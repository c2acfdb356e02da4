/* SPDX-License-Identifier: Apache-2.0
 *
 * The lanes of a subscription: joined and dropped as the core says, by the thread that owns the subscription.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"

static struct sub_lane *lane_find(struct ipc_subscription *sub, uint64_t pairing)
{
    for (unsigned i = 0; i < sub->lane_count; i++)
        if (sub->lanes[i]->pairing == pairing && !sub->lanes[i]->past)
            return sub->lanes[i];
    return NULL;
}

static bool lanes_reserve(struct ipc_subscription *sub)
{
    if (sub->lane_count < sub->lane_capacity)
        return true;
    unsigned capacity = sub->lane_capacity ? 2 * sub->lane_capacity : 4;
    struct sub_lane **lanes = realloc(sub->lanes, capacity * sizeof(struct sub_lane *));
    if (!lanes)
        return false;
    sub->lanes = lanes;
    sub->lane_capacity = capacity;
    return true;
}

static void bell_keep(struct ipc_subscription *sub, struct notice *notice)
{
    if (notice->bell < 0 || sub->epoll < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN};
    struct bell_end *bells = realloc(sub->bells, (sub->bell_count + 1) * sizeof(*bells));
    if (bells)
        sub->bells = bells;
    if (!bells || epoll_ctl(sub->epoll, EPOLL_CTL_ADD, notice->bell, &event) < 0) {
        sub->bells_asked = false; /* without it nothing is quiet: see quiet() */
        return;
    }
    sub->bells[sub->bell_count++] = (struct bell_end){.fd = notice->bell, .uid = notice->peer.uid};
    notice->bell = -1;
}

/* The broker paired us with a publisher, but this process has no room for it. */
static void refuse(struct ipc_subscription *sub, const struct notice *notice)
{
    struct ipc_connection *connection = sub->handle.connection;
    pump_detach(&sub->handle, notice->pairing, IPC_REASON_LIMIT);
    pthread_mutex_lock(&connection->lock);
    event_add(connection, IPC_EVENT_WRITER_LEFT, IPC_REASON_LIMIT, &notice->peer, notice->topic);
    pump_unlock(connection);
}

/* The lane that a publisher had in the session before, if there is one: of those with its name the one that is furthest on.
 * It has all that was published before the new lane, so it is read first, and then dropped. */
static void succeed(struct ipc_subscription *sub, struct sub_lane *lane)
{
    struct sub_lane *before = NULL;
    for (unsigned i = 0; i < sub->lane_count; i++) {
        struct sub_lane *past = sub->lanes[i];
        if (past->past && !past->left && past->sender.uid == lane->sender.uid &&
            past->sender.pid == lane->sender.pid && strcmp(past->topic, lane->topic) == 0 &&
            (!before || past->reader.sequence > before->reader.sequence))
            before = past;
    }
    if (!before)
        return;
    before->left = true;
    before->reason = IPC_REASON_SHUTDOWN;
    sub->left_count += !before->broken;
    lane->after = before;
}

void subscription_past(struct ipc_subscription *sub)
{
    sub->now = NULL;
    for (unsigned i = 0; i < sub->lane_count; i++) {
        struct sub_lane *lane = sub->lanes[i];
        if (!lane->left && (lane->past || lane->broken)) { /* whoever wrote it did not come back */
            lane->left = true;
            lane->reason = IPC_REASON_SHUTDOWN;
            sub->left_count += !lane->broken;
        }
        lane->past = true;
    }
    for (unsigned i = 0; i < sub->bell_count; i++)
        sub->bells[i].past = true;
    sub->bells_asked = false;
}

unsigned subscription_writers(const struct ipc_subscription *sub)
{
    unsigned count = 0;
    for (unsigned i = 0; i < sub->lane_count; i++)
        count += !sub->lanes[i]->left && !sub->lanes[i]->broken && !sub->lanes[i]->past;
    return count;
}

static void join(struct ipc_subscription *sub, struct notice *notice)
{
    struct ipc_connection *connection = sub->handle.connection;
    bell_keep(sub, notice);
    struct sub_lane *known = lane_find(sub, notice->pairing);
    if (known) {
        known->armed = false;
        return;
    }
    struct sub_lane *lane = lanes_reserve(sub) ? aligned_alloc(64, (sizeof(*lane) + 63) & ~(size_t)63) : NULL;
    if (!lane) {
        refuse(sub, notice);
        return;
    }
    *lane = (struct sub_lane){.pairing = notice->pairing,
                              .id = notice->lane_id,
                              .map = notice->lane,
                              .ring_size = notice->ring_size,
                              .cells = notice->cells,
                              .call = notice->call,
                              .sender = notice->peer};
    snprintf(lane->topic, sizeof(lane->topic), "%s", notice->topic);
    struct ipc_cells *cells = notice->cells->segment;
    lane_reader_init(&lane->reader, lane->map, lane_segment_ring(lane->map), lane->ring_size, notice->slot,
                     &cells->cells[notice->cell], lane->pairing, notice->start, sub->slow == IPC_SLOW_BLOCK,
                     notice->ended);
    notice->lane = NULL;
    notice->cells = NULL;
    if (notice->after)
        lane->after = lane_find(sub, notice->after);
    else
        succeed(sub, lane);
    sub->now = NULL;
    sub->lanes[sub->lane_count++] = lane;
    pthread_mutex_lock(&connection->lock);
    event_add(connection, IPC_EVENT_WRITER_JOINED, 0, &lane->sender, lane->topic);
    pump_unlock(connection);
}

void subscription_break(struct ipc_subscription *sub, struct sub_lane *lane, unsigned reason)
{
    if (lane->broken)
        return;
    sub->now = NULL;
    lane->broken = true;
    sub->roused = sub->watched;
    if (lane->left)
        return;
    sub->left_count++;
    if (lane->past)
        lane->left = true;
    else
        pump_detach(&sub->handle, lane->pairing, reason);
}

void subscription_read(struct ipc_subscription *sub, const struct sub_lane *past)
{
    for (unsigned i = 0; i < sub->lane_count; i++) {
        struct sub_lane *lane = sub->lanes[i];
        if (lane->after != past)
            continue;
        lane->after = NULL;
        if (past->reader.knows)
            lane_reader_continue(&lane->reader, past->reader.sequence);
    }
}

void subscription_drop(struct ipc_subscription *sub, unsigned index)
{
    struct ipc_connection *connection = sub->handle.connection;
    struct sub_lane *lane = sub->lanes[index];
    bool foreign = guard_foreign(connection);
    sub->now = NULL;
    sub->lanes[index] = sub->lanes[--sub->lane_count];
    sub->left_count -= lane->left || lane->broken;
    sub->lost_departed += lane->reader.lost;
    sub->roused = sub->watched;
    if (lane->owner)
        lane->owner->gone = true;
    subscription_read(sub, lane);
    if (!foreign) {
        lane_reader_disarm(&lane->reader);
        lane_segment_unmap(lane->map, IPC_SEGMENT_LANE, lane->ring_size);
        pthread_mutex_lock(&connection->lock);
        segment_unref(connection, lane->cells);
        if (lane->left)
            event_add(connection, IPC_EVENT_WRITER_LEFT, lane->reason, &lane->sender, lane->topic);
        pump_unlock(connection);
        if (lane->left && !lane->past)
            pump_confirm(&sub->handle, IPC__CONTROL__TYPE__LANE_DEL, lane->pairing, 0);
    }
    free(lane);
}

void subscription_news(struct ipc_subscription *sub)
{
    struct ipc_connection *connection = sub->handle.connection;
    uint32_t seen = sub->handle.mail_seen;
    sub->handle.mail_seen = pump_try(connection, seen);
    sub->roused = sub->roused || (sub->watched && sub->handle.mail_seen != seen);
    struct notice *next;
    for (struct notice *notice = inbox_take(&sub->handle); notice; notice = next) {
        next = notice->next;
        sub->roused = sub->watched;
        struct sub_lane *lane = NULL;
        if (notice->type == IPC__CONTROL__TYPE__LANE_ADD) {
            join(sub, notice);
        } else if ((lane = lane_find(sub, notice->pairing)) && !lane->left) {
            sub->left_count += !lane->broken;
            lane->left = true;
            lane->reason = notice->reason;
            lane_reader_ended(&lane->reader);
        } else if (!lane) {
            pump_confirm(&sub->handle, IPC__CONTROL__TYPE__LANE_DEL, notice->pairing, 0);
        }
        pthread_mutex_lock(&connection->lock);
        notice_free(connection, notice);
        pump_unlock(connection);
    }
}
