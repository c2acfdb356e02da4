/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/service.h"

#include <errno.h>
#include <inttypes.h>

#include <ipc/error.h>

#include "broker/core/control/drain.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/session.h"
#include "broker/core/util/log.h"

#define KIND(name) IPC__CONTROL__KIND__KIND_##name

static bool side_lives(const struct side *side)
{
    return !side->ending && side->state < SIDE_DEL_DUE;
}

/* Neither side is leaving it. */
static bool lives(const struct pairing *pairing)
{
    return pairing->subscription && side_lives(&pairing->writer_side) && side_lives(&pairing->reader_side);
}

const struct pairing *service_pairing(const struct lane *lane)
{
    list_for_each(node, &lane->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_lane);

        if (lives(pairing))
            return pairing;
    }
    return NULL;
}

static const struct subscription *server_of(const struct lane *lane)
{
    const struct pairing *pairing = service_pairing(lane);

    return pairing ? pairing->subscription : NULL;
}

/* Has another lane of the same inbox that server? */
static bool taken(const struct lane *lane, const struct subscription *server)
{
    list_for_each(node, &lane->session->lanes)
    {
        const struct lane *other = list_entry(node, struct lane, by_session);

        if (other != lane && other->kind == KIND(CALL) && other->target == lane->target &&
            server_of(other) == server)
            return true;
    }
    return false;
}

/* That failed: log it, and try again, soon if it was for want of memory. */
static void miss(struct broker *broker, const struct lane *lane, struct subscription *subscription,
                 const struct refusal *refusal)
{
    const struct peer *reader = &subscription->session->peer;
    const struct log_about about = {reader->session, reader->uid, reader->pid, reader->name, "limit"};

    log_write(LOG_PAIRING_FAILED, &about, "subscription %" PRIu64 " gets no %s of service %s: %s",
              subscription->id, lane->kind == KIND(CALL) ? "calls" : "replies", lane->topic->name,
              refusal->text);
    pairing_missed(broker, subscription);
    if (refusal->code == -EDQUOT)
        loop_retry_later(broker);
    else
        loop_retry_soon(broker);
}

/* A server for a lane of calls that has none, or NULL. */
static struct subscription *choose(struct broker *broker, const struct lane *lane)
{
    struct subscription *best = NULL;

    if (lane->kind != KIND(CALL) || lane->state != LANE_LIVE || server_of(lane))
        return NULL;
#ifdef IPC_PLANT_SERVICE_NOT_RENEWED
    if (lane->readers > 0)
        return NULL;
#endif
    list_for_each(node, &lane->topic->readers)
    {
        struct subscription *server = list_entry(node, struct subscription, by_match);

        broker->work++;
        if ((!best || server->n_pairings < best->n_pairings) && !taken(lane, server))
            best = server;
    }
    return best;
}

/* What was meant for another server is not for this one. */
#define START_OF_CALLS IPC__CONTROL__START__START_NEXT

void service_seek(struct broker *broker, struct lane *lane)
{
    struct subscription *server = choose(broker, lane);
    struct refusal refusal;

    if (server && pairing_join(broker, lane, server, START_OF_CALLS, &refusal) < 0)
        miss(broker, lane, server, &refusal);
}

void service_seek_all(struct broker *broker, const struct topic *service)
{
    list_for_each(node, &service->lanes) service_seek(broker, list_entry(node, struct lane, by_topic));
}

void service_left(struct broker *broker, struct session *session, const struct lane *lane)
{
    if (lane->kind == KIND(CALL))
        list_for_each(node, &session->lanes) service_seek(broker, list_entry(node, struct lane, by_session));
}

int service_join_lane(struct broker *broker, struct lane *lane, struct refusal *refusal)
{
    struct subscription *reader = choose(broker, lane);
    unsigned start = START_OF_CALLS;

    if (lane->kind == KIND(REPLY)) { /* the client may have left while a large lane was made */
        const struct pairing *calls = registry_pairing(broker, lane->target);

        reader = calls && lives(calls) ? registry_subscription(broker, calls->lane->target) : NULL;
        start = IPC__CONTROL__START__START_OLDEST;
    }
    if (!reader || pairing_join(broker, lane, reader, start, refusal) == 0)
        return 0;
    if (refusal->code != -EDQUOT)
        miss(broker, lane, reader, refusal);
    return refusal->code == -EDQUOT ? -EDQUOT : 0;
}

void service_refused(struct broker *broker, const struct pairing *pairing)
{
    struct pairing *calls = NULL;

    if (pairing->lane->kind == KIND(REPLY))
        calls = registry_pairing(broker, pairing->lane->target);
    if (calls && lives(calls))
        pairing_detach(broker, calls, IPC_REASON_LIMIT);
    if (pairing->lane->kind != KIND(CALL) || !pairing->subscription)
        return;
    pairing_missed(broker, pairing->subscription);
    loop_retry_later(broker);
}

void service_join_missed(struct broker *broker, struct subscription *subscription)
{
    if (subscription->kind == KIND(SERVE))
        service_seek_all(broker, subscription->topic);
    if (subscription->kind != KIND(INBOX))
        return;
    list_for_each(node, &subscription->topic->lanes)
    {
        struct lane *lane = list_entry(node, struct lane, by_topic);

        struct pairing *calls = registry_pairing(broker, lane->target);
        struct refusal refusal;

        if (lane->state == LANE_LIVE && lane->readers == 0 && service_join_lane(broker, lane, &refusal) < 0 &&
            calls)
            pairing_detach(broker, calls, IPC_REASON_LIMIT);
    }
}

static bool may_call(struct broker *broker, struct session *session, uint64_t id,
                     const Ipc__Control__Advertise *advertise)
{
    const struct subscription *inbox = registry_subscription(broker, advertise->target);

    if (drain_refuses(broker, session, id, "calls"))
        return false;
    if (inbox && inbox->session == session && inbox->kind == KIND(INBOX))
        return true;
    session_fail(broker, session, id, -ENOENT, "this session has no inbox %" PRIu64 " for the replies",
                 advertise->target);
    return false;
}

static bool may_reply(struct broker *broker, struct session *session, uint64_t id,
                      const Ipc__Control__Advertise *advertise, const char **ret_name)
{
    const struct pairing *calls = registry_pairing(broker, advertise->target);

    if (calls && calls->lane->kind == KIND(CALL) && calls->subscription &&
        calls->subscription->session == session && lives(calls)) {
        *ret_name = calls->lane->topic->name;
        return true;
    }
    session_fail(broker, session, id, -EACCES,
                 "pairing %" PRIu64 " does not bring calls to this session: it may not reply to them",
                 advertise->target);
    return false;
}

bool service_may_advertise(struct broker *broker, struct session *session, uint64_t id,
                           const Ipc__Control__Advertise *advertise, const char **ret_name)
{
    if (advertise->kind == KIND(CALL))
        return may_call(broker, session, id, advertise);
    if (advertise->kind == KIND(REPLY))
        return may_reply(broker, session, id, advertise, ret_name);
    session_fail(broker, session, id, -EINVAL, "there is no lane of kind %u", (unsigned)advertise->kind);
    return false;
}

uint32_t service_servers(const struct topic *service)
{
    uint32_t n = 0;

    list_for_each(node, &service->readers) n++;
    return n;
}

bool service_replies(const struct broker *broker, const struct pairing *calls)
{
    const struct subscription *inbox = registry_subscription(broker, calls->lane->target);

    if (inbox)
        list_for_each(node, &inbox->pairings)
        {
            const struct pairing *replies = list_entry(node, struct pairing, by_subscription);

            if (replies->lane->target == calls->id && replies->reader_side.state < SIDE_DEL_SENT)
                return true;
        }
    return false;
}
