/* SPDX-License-Identifier: Apache-2.0
 *
 * Advertising and subscribing.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/error.h>

#include "broker/core/control/access.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/service.h"
#include "broker/core/control/session.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "proto/name.h"

void request_answer_done(struct broker *broker, struct session *session, uint64_t id)
{
    const Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;

    session_reply(broker, session, IPC__CONTROL__TYPE__DONE, id, &done.base, -1);
}

bool request_deny_admin(struct broker *broker, struct session *session, uint64_t id)
{
    if (session->admin)
        session_fail(broker, session, id, -EPERM,
                     "an admin session only looks: connect without admin to take part");
    return session->admin;
}

/* The ring that a client gets for what it asked, or 0 if it asked too much. */
static uint32_t ring_size_of(const struct broker *broker, uint32_t wanted)
{
    uint32_t size = IPC_MIN_RING_SIZE;

    if (wanted == 0)
        wanted = IPC_RING_SIZE_DEFAULT < broker->options.config->ring_size_max
                     ? IPC_RING_SIZE_DEFAULT
                     : (uint32_t)broker->options.config->ring_size_max;
    if (wanted > broker->options.config->ring_size_max || wanted > IPC_MAX_RING_SIZE)
        return 0;
    while (size < wanted)
        size *= 2;
    return size;
}

/* A lane of that name that excludes others, or that excludes an exclusive one. */
static const struct lane *rival(struct broker *broker, const char *name, bool exclusive)
{
    struct topic *topic = registry_topic(broker, SPACE_TOPICS, name, false);

    if (!topic)
        return NULL;
    list_for_each(node, &topic->lanes)
    {
        const struct lane *lane = list_entry(node, struct lane, by_topic);

        if (lane->state == LANE_LIVE && (exclusive || lane->exclusive))
            return lane;
    }
    return NULL;
}

static void advertise_failed(struct broker *broker, struct session *session, uint64_t id, int result,
                             uint32_t ring_size)
{
    char size[32];

    text_from_number(size, sizeof(size), ring_size, true);
    session_fail(broker, session, id, result,
                 "the broker could not make a lane with a ring of %s bytes: %s; ask for a smaller ring", size,
                 strerror(-result));
}

/* Notices about it go out only with the next flush, behind this answer. */
static void answer_advertised(struct broker *broker, struct session *session, const struct lane *lane)
{
    Ipc__Control__Advertised advertised = IPC__CONTROL__ADVERTISED__INIT;

    advertised.lane = lane->id;
    advertised.ring_size = lane->ring_size;
    advertised.readers = lane->readers;
    if (lane->kind == IPC__CONTROL__KIND__KIND_CALL)
        advertised.servers = service_servers(lane->topic);
    session_reply(broker, session, IPC__CONTROL__TYPE__ADVERTISED, lane->request, &advertised.base, lane->fd);
}

/* Once the writers have mail about it. */
static void answer_subscribed(struct broker *broker, struct session *session,
                              struct subscription *subscription, uint32_t matched)
{
    session->subscribed = subscription;
    session->matched = matched;
    session->busy = true;
    notice_mark(broker, session);
}

void request_subscribed(struct broker *broker, struct session *session)
{
    Ipc__Control__Subscribed subscribed = IPC__CONTROL__SUBSCRIBED__INIT;

    subscribed.subscription = session->subscribed->id;
    subscribed.matched = session->matched;
    session_reply(broker, session, IPC__CONTROL__TYPE__SUBSCRIBED, session->subscribed->request,
                  &subscribed.base, -1);
    session->subscribed = NULL;
    session->busy = false;
    session_answered(broker, session);
}

/* Has an ipcd that was killed before its answer went out made it already? */
static struct lane *made_before(const struct session *session, uint64_t request)
{
#ifdef IPC_PLANT_MADE_TWICE
    return NULL;
#endif
    if (session->resumed)
        list_for_each(node, &session->lanes)
        {
            struct lane *lane = list_entry(node, struct lane, by_session);

            if (lane->request == request)
                return lane;
        }
    return NULL;
}

static struct subscription *subscribed_before(const struct session *session, uint64_t request)
{
    if (session->resumed)
        list_for_each(node, &session->subscriptions)
        {
            struct subscription *subscription = list_entry(node, struct subscription, by_session);

            if (subscription->request == request)
                return subscription;
        }
    return NULL;
}

bool request_done_before(const struct session *session, uint64_t request)
{
    return session->resumed && atomic_load_explicit(&session->row->request, memory_order_relaxed) == request;
}

void request_mark_done(struct session *session, uint64_t request)
{
    if (session->row)
        atomic_store_explicit(&session->row->request, request, memory_order_release);
}

/* What a lane that was renewed leaves behind is not kept as the last of its topic: the fresh one is. */
static void replaces(struct broker *broker, const struct session *session, uint64_t target)
{
    struct lane *lane = target ? registry_lane(broker, target) : NULL;

    if (!lane || lane->session != session)
        return;
    lane->retain = false;
    atomic_store_explicit(&lane->row->retain, 0, memory_order_release);
}

static void finish(struct broker *broker, struct session *session, const struct job *job, int *fd, int result)
{
    const struct lane_wish wish = {job->name,    job->ring_size, job->retain, job->exclusive,
                                   job->request, job->kind,      job->target};
    const struct charge charge = lane_charge(job->ring_size);
    struct lane *lane = NULL;
    struct refusal refusal;

    if (result == 0)
        result =
            segment_seal(*fd, IPC_SEGMENT_LANE, job->ring_size, state_number(&broker->state, NUMBER_SEGMENT));
    if (result == 0) {
        lane = lane_new(broker, session, &wish, fd);
        result = lane ? 0 : -ENOMEM;
    }
    if (!lane) {
        quota_return(&broker->quota, session->user, &charge);
        advertise_failed(broker, session, job->request, result, job->ring_size);
        return;
    }
    if (lane->kind == IPC__CONTROL__KIND__KIND_TOPIC) {
        replaces(broker, session, lane->target);
        pairing_join_lane(broker, lane);
    } else if (service_join_lane(broker, lane, &refusal) < 0) {
        pairing_end_lane(broker, lane, IPC_REASON_CLOSED);
        session_refuse(broker, session, job->request, &refusal);
        return;
    }
#ifdef IPC_PLANT_ANSWERED_EARLY
    answer_advertised(broker, session, lane);
    lane_joined(lane);
    return;
#endif
    lane_joined(lane);
    answer_advertised(broker, session, lane);
}

int request_hand_over(struct broker *broker, struct session *session, const struct job *template, int *fd)
{
    struct job *job;

    if (!broker->worker)
        broker->worker = worker_new(broker->worker_fd);
    job = broker->worker ? malloc(sizeof(*job)) : NULL;
    if (!job)
        return -ENOMEM;
    *job = *template;
    list_init(&job->link);
    job->fd = fd_steal(fd);
    session->busy = true;
    session_update_events(broker, session);
    worker_push(broker->worker, job);
    return 0;
}

static void advertise_finish(struct broker *broker, struct job *job)
{
    struct session *session = registry_session(broker, job->session);
    struct charge charge = lane_charge(job->ring_size);
    const struct lane *other = session && job->kind == IPC__CONTROL__KIND__KIND_TOPIC
                                   ? rival(broker, job->name, job->exclusive)
                                   : NULL;

    if (!session || other) {
        segment_free(broker, job->user, fd_steal(&job->fd), job->size, &charge);
        if (session)
            session_fail(broker, session, job->request, -EEXIST,
                         "topic %s is published by session %" PRIu64 " already", job->name,
                         other->writer.session);
    } else {
        finish(broker, session, job, &job->fd, job->result);
        fd_close(job->fd);
    }
    if (session) {
        session->busy = false;
        session_answered(broker, session);
    }
    free(job);
}

void request_advertise(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__Advertise *advertise)
{
    bool topic = advertise->kind == IPC__CONTROL__KIND__KIND_TOPIC;
    const char *name = advertise->topic, *wrong;
    uint32_t ring_size = ring_size_of(broker, advertise->ring_size);
    struct charge charge = lane_charge(ring_size);
    const struct lane *other, *made = made_before(session, id);
    struct refusal refusal;
    struct job job;
    _cleanup_(fd_closep) int fd = -1;

    if (made) {
        answer_advertised(broker, session, made);
        return;
    }
    if (request_deny_admin(broker, session, id))
        return;
    if (!topic && !service_may_advertise(broker, session, id, advertise, &name))
        return;
    wrong = ipc_name_check(name, false);
    if (wrong) {
        session_fail(broker, session, id, -EINVAL, "the name is not valid: %s", wrong);
        return;
    }
    if (advertise->kind != IPC__CONTROL__KIND__KIND_REPLY && /* that one answers calls that were allowed */
        !access_check(broker, session, id, topic ? VERB_PUBLISH : VERB_CALL, name))
        return;
    if (!ring_size) {
        session_fail(broker, session, id, -EINVAL,
                     "a ring of %" PRIu32 " bytes is larger than the %" PRIu64
                     " that are allowed; ask for less, or raise ring-size-max in [limits] of ipcd.conf",
                     advertise->ring_size, broker->options.config->ring_size_max);
        return;
    }
    other = topic ? rival(broker, name, advertise->exclusive) : NULL;
    if (other) {
        session_fail(broker, session, id, -EEXIST,
                     "topic %s is published by session %" PRIu64 " (%s, pid %" PRIu32
                     ") already, and one of the two "
                     "wants to be the only one",
                     name, other->writer.session, other->writer.name, other->writer.pid);
        return;
    }
    if (quota_take(&broker->quota, session->user, &charge, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    job = (struct job){.finish = advertise_finish,
                       .session = session->peer.session,
                       .request = id,
                       .user = session->user,
                       .size = segment_size(IPC_SEGMENT_LANE, ring_size),
                       .ring_size = ring_size,
                       .retain = topic && advertise->retain,
                       .exclusive = topic && advertise->exclusive,
                       .kind = advertise->kind,
                       .target = advertise->target};
    (void)snprintf(job.name, sizeof(job.name), "%s", name);
    fd = segment_create(IPC_SEGMENT_LANE);
    if (fd >= 0 && job.size >= WORKER_SIZE_MIN && request_hand_over(broker, session, &job, &fd) == 0)
        return;
    finish(broker, session, &job, &fd, fd < 0 ? fd : segment_allocate(fd, job.size));
}

void request_unadvertise(struct broker *broker, struct session *session, uint64_t id,
                         const Ipc__Control__Unadvertise *unadvertise)
{
    struct lane *lane = registry_lane(broker, unadvertise->lane);

    if (lane && lane->session == session) { /* even if an ipcd that was killed marked it, and no more */
        request_mark_done(session, id);
        pairing_end_lane(broker, lane, IPC_REASON_CLOSED);
    } else if (!request_done_before(session, id)) {
        session_fail(broker, session, id, -ENOENT, "this session has no lane %" PRIu64, unadvertise->lane);
        return;
    }
    request_answer_done(broker, session, id);
}

static struct subscription *make_subscription(struct broker *broker, struct session *session, uint64_t id,
                                              const Ipc__Control__Subscribe *subscribe)
{
    struct subscription_row *row = state_take(&broker->state, STATE_SUBSCRIPTIONS);
    struct subscription *subscription = NULL;

    if (row)
        subscription = registry_subscription_new(broker, session,
                                                 state_number(&broker->state, NUMBER_SUBSCRIPTION),
                                                 subscribe->kind, subscribe->pattern, row);
    if (!subscription) {
        state_drop(&broker->state, STATE_SUBSCRIPTIONS, row);
        return NULL;
    }
    subscription->request = id;
    subscription->start = (uint8_t)subscribe->start;
    subscription->slow = (uint8_t)subscribe->slow;
    subscription->self = subscribe->self;
    subscription->tap = subscribe->tap;
    if (subscription->tap && subscription->slow == IPC__CONTROL__SLOW__SLOW_BLOCK)
        subscription->slow = IPC__CONTROL__SLOW__SLOW_DROP_OLDEST; /* an observer holds up nobody */
    row->session = session->peer.session;
    row->request = id;
    row->start = subscription->start;
    row->slow = subscription->slow;
    row->self = subscription->self;
    row->tap = subscription->tap;
    row->kind = subscription->kind;
    memcpy(row->pattern, subscription->pattern, strlen(subscription->pattern) + 1);
    state_commit(row, subscription->id);
    return subscription;
}

void request_subscribe(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__Subscribe *subscribe)
{
    bool topic = subscribe->kind == IPC__CONTROL__KIND__KIND_TOPIC;
    const char *wrong = ipc_name_check(subscribe->pattern, topic);
    struct subscription *subscription = subscribed_before(session, id);
    struct refusal refusal;
    uint32_t matched;

    if (subscription) {
        answer_subscribed(broker, session, subscription, subscription->n_pairings);
        return;
    }
    if (request_deny_admin(broker, session, id))
        return;
    if (wrong) {
        session_fail(broker, session, id, -EINVAL, "the pattern is not valid: %s", wrong);
        return;
    }
    if ((unsigned)subscribe->start > IPC__CONTROL__START__START_OLDEST ||
        (unsigned)subscribe->slow > IPC__CONTROL__SLOW__SLOW_DISCONNECT) {
        session_fail(broker, session, id, -EINVAL,
                     "start %u or slow %u is not known to this broker (ipcd %s)", (unsigned)subscribe->start,
                     (unsigned)subscribe->slow, IPCD_VERSION);
        return;
    }
    if (!topic && subscribe->kind != IPC__CONTROL__KIND__KIND_SERVE &&
        subscribe->kind != IPC__CONTROL__KIND__KIND_INBOX) {
        session_fail(broker, session, id, -EINVAL, "there is no subscription of kind %u",
                     (unsigned)subscribe->kind);
        return;
    }
    if (topic ? !access_check_pattern(broker, session, id, subscribe->pattern)
              : !access_check(broker, session, id,
                              subscribe->kind == IPC__CONTROL__KIND__KIND_SERVE ? VERB_SERVE : VERB_CALL,
                              subscribe->pattern))
        return;
    subscription = make_subscription(broker, session, id, subscribe);
    if (!subscription) {
        session_fail(broker, session, id, -ENOMEM, "the broker is out of memory");
        return;
    }
    if (pairing_join_subscription(broker, subscription, &matched, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    atomic_store_explicit(&subscription->row->joined, 1, memory_order_release);
    if (subscription->kind == IPC__CONTROL__KIND__KIND_SERVE)
        service_seek_all(broker, subscription->topic);
    answer_subscribed(broker, session, subscription, matched);
}

void request_unsubscribe(struct broker *broker, struct session *session, uint64_t id,
                         const Ipc__Control__Unsubscribe *unsubscribe)
{
    struct subscription *subscription = registry_subscription(broker, unsubscribe->subscription);

    bool there = subscription && subscription->session == session;

#ifdef IPC_PLANT_END_FORGOTTEN
    there = there && !request_done_before(session, id);
#endif
    if (there) {
        request_mark_done(session, id);
        pairing_end_subscription(broker, subscription, IPC_REASON_CLOSED);
    } else if (!request_done_before(session, id)) {
        session_fail(broker, session, id, -ENOENT, "this session has no subscription %" PRIu64,
                     unsubscribe->subscription);
        return;
    }
    request_answer_done(broker, session, id);
}

void request_bell(struct broker *broker, struct session *session, uint64_t id, const Ipc__Control__Bell *bell)
{
    struct subscription *subscription = registry_subscription(broker, bell->subscription);
    struct refusal refusal;

    if (!subscription || subscription->session != session) {
        session_fail(broker, session, id, -ENOENT, "this session has no subscription %" PRIu64,
                     bell->subscription);
        return;
    }
    if (pairing_ask_bells(broker, subscription, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    request_answer_done(broker, session, id);
}
