/* SPDX-License-Identifier: Apache-2.0
 *
 * The order of a flush carries two promises. By the time a reader learns of a lane, its writer has mail about the reader:
 * who then finds nothing and sleeps is known to every later publish. And so it is by the time a subscription is answered: what
 * anybody begins to publish after that is received.
 */
#include "broker/core/control/notice.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker/core/control/pairing.h"
#include "broker/core/control/request.h"
#include "broker/core/control/service.h"
#include "broker/core/control/session.h"
#include "broker/core/util/fd.h"

/* Notices to one session in one flush; the rest goes out in the next rounds of the loop. */
#define FLUSH_MAX    64u
/* Sessions that hear of lanes in one flush. */
#define SESSIONS_MAX 256u

#define TYPE(name) IPC__CONTROL__TYPE__##name

void notice_mark(struct broker *broker, struct session *session)
{
    /* Not yet one of an earlier ipcd that has to be heard first: see recover.c. */
    if (session->state == SESSION_OPEN && session->watched && list_empty(&session->dirty))
        list_append(&broker->dirty, &session->dirty);
}

void notice_mail(struct session *session)
{
    if (!session_board(session))
        return;
    atomic_fetch_add_explicit(&session->board->mail, 1, memory_order_release);
    syscall(SYS_futex, &session->board->mail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static int send_message(struct broker *broker, struct session *session, unsigned type,
                        const ProtobufCMessage *message, const int *fds, size_t n_fds)
{
    int size = ipc_frame_pack(broker->tx, sizeof(broker->tx), (uint16_t)type, 0, message);

    return size < 0 ? size : fd_send(session->fd, broker->tx, (size_t)size, fds, n_fds);
}

static Ipc__Control__Peer peer_message(const struct peer *peer)
{
    Ipc__Control__Peer message = IPC__CONTROL__PEER__INIT;

    message.session = peer->session;
    message.uid = peer->uid;
    message.gid = peer->gid;
    message.pid = peer->pid;
    message.name = (char *)(uintptr_t)peer->name;
    return message;
}

static int send_reader_add(struct broker *broker, struct session *session, struct pairing *pairing,
                           bool again)
{
    Ipc__Control__ReaderAdd message = IPC__CONTROL__READER_ADD__INIT;
    Ipc__Control__Peer peer = peer_message(&pairing->subscription->session->peer);
    _cleanup_(fd_closep) int cells = fd_reopen_readonly(pairing->cells->fd);
    int fds[2] = {cells, pairing->bell ? pairing->bell->ring_fd : -1};

    if (cells < 0)
        return cells;
    message.pairing = pairing->id;
    message.lane = pairing->lane_id;
    message.slot = pairing->slot;
    message.cells = pairing->cells->id;
    message.cell = pairing->cell;
    message.start = (Ipc__Control__Start)pairing->start;
    message.slow = (Ipc__Control__Slow)pairing->slow;
    message.tap = pairing->tap;
    message.again = again;
    message.bell = pairing->bell != NULL;
    message.fence = pairing->fence;
    message.peer = &peer;
    return send_message(broker, session, TYPE(READER_ADD), &message.base, fds, pairing->bell ? 2 : 1);
}

/* The pairing of a subscription with a lane; 0: there is none. */
static uint64_t pairing_of_lane(const struct subscription *subscription, uint64_t lane)
{
    list_for_each(node, &subscription->pairings)
    {
        const struct pairing *pairing = list_entry(node, struct pairing, by_subscription);

        if (pairing->lane_id == lane)
            return pairing->id;
    }
    return 0;
}

static int send_lane_add(struct broker *broker, struct session *session, struct pairing *pairing)
{
    Ipc__Control__LaneAdd message = IPC__CONTROL__LANE_ADD__INIT;
    Ipc__Control__Peer peer = peer_message(&pairing->lane->writer);
    _cleanup_(fd_closep) int lane = fd_reopen_readonly(pairing->lane->fd);
    const bool bell_new = pairing->bell && pairing->bell->read_fd >= 0;
    int fds[3] = {lane}, result;
    size_t n_fds = 1;

    if (lane < 0)
        return lane;
    message.pairing = pairing->id;
    message.subscription = pairing->subscription_id;
    message.lane = pairing->lane_id;
    message.slot = pairing->slot == PAIRING_NO_SLOT ? 0 : pairing->slot;
    message.cells = pairing->cells->id;
    message.cell = pairing->cell;
    message.ring_size = pairing->lane->ring_size;
    message.topic = pairing->lane->topic->name;
    message.peer = &peer;
    message.ended = pairing->late;
    message.cells_new = !pairing->cells->known;
    message.bell_new = bell_new;
    message.fence = pairing->lane->fence;
    message.start = (Ipc__Control__Start)pairing->start;
    if (pairing->lane->kind == IPC__CONTROL__KIND__KIND_REPLY)
        message.call = pairing->lane->target;
    else if (pairing->lane->kind == IPC__CONTROL__KIND__KIND_TOPIC && pairing->lane->target)
        message.after = pairing_of_lane(pairing->subscription, pairing->lane->target);
    if (message.cells_new)
        fds[n_fds++] = pairing->cells->fd;
    if (bell_new)
        fds[n_fds++] = pairing->bell->read_fd;
    result = send_message(broker, session, TYPE(LANE_ADD), &message.base, fds, n_fds);
    if (result < 0)
        return result;
    pairing->cells->known = true;
    if (bell_new) {
        keep_remove(broker, KEEP_BELL_READ, pairing->bell->id);
        pairing->bell->read_fd = fd_close(pairing->bell->read_fd);
    }
    return 0;
}

static int send_del(struct broker *broker, struct session *session, struct pairing *pairing, bool writer)
{
    if (writer) {
        Ipc__Control__ReaderDel message = IPC__CONTROL__READER_DEL__INIT;

        message.pairing = pairing->id;
        message.lane = pairing->lane_id;
        message.slot = pairing->slot;
        message.reason = (Ipc__Control__Reason)pairing->writer_side.reason;
        if (pairing->lane->kind == IPC__CONTROL__KIND__KIND_CALL) {
            message.servers = service_servers(pairing->lane->topic);
            message.replying = service_replies(broker, pairing);
        }
        return send_message(broker, session, TYPE(READER_DEL), &message.base, NULL, 0);
    }
    Ipc__Control__LaneDel message = IPC__CONTROL__LANE_DEL__INIT;

    message.pairing = pairing->id;
    message.subscription = pairing->subscription_id;
    message.reason = (Ipc__Control__Reason)pairing->reader_side.reason;
    return send_message(broker, session, TYPE(LANE_DEL), &message.base, NULL, 0);
}

/* If we are killed before its mail was counted, the next ipcd nudges it. */
static void owe(struct session *session)
{
    if (session->row)
        atomic_store_explicit(&session->row->owed, 1, memory_order_release);
}

/* Send what is due in one list, as long as `budget` lasts. Returns 0 or a negative errno of sending. */
static int flush_adds(struct broker *broker, struct session *session, bool writer, unsigned *budget)
{
    struct list *head = writer ? &session->writer_adds : &session->reader_adds;

    while (!list_empty(head) && *budget > 0 && session->window < IPC_NOTICE_WINDOW) {
        struct side *side = list_entry(head->next, struct side, due), before = *side;
        struct pairing *pairing = writer ? pairing_of_writer_side(side) : pairing_of_reader_side(side);
        int result;

        owe(session);
        side_sent(side); /* first, so that whoever comes after us knows that it may have been told */
        pairing_store(pairing);
        result = writer ? send_reader_add(broker, session, pairing, before.known)
                        : send_lane_add(broker, session, pairing);
        if (result < 0) {
            *side = before;
            pairing_store(pairing);
            return result;
        }
        session->window++;
        side_went(side);
        pairing->counted = pairing->counted && !writer;
        pairing_requeue(broker, session, side);
        session->told = true;
        --*budget;
    }
    return 0;
}

static int flush_dels(struct broker *broker, struct session *session, unsigned *budget)
{
    while (!list_empty(&session->dels) && *budget > 0) {
        struct side *side = list_entry(session->dels.next, struct side, due);
        bool writer = side->writer;
        struct pairing *pairing = writer ? pairing_of_writer_side(side) : pairing_of_reader_side(side);
        int result;

        owe(session);
        result = send_del(broker, session, pairing, writer);
        if (result < 0)
            return result;
        side_sent(side);
        pairing_requeue(broker, session, side);
#ifndef IPC_PLANT_DEATH_UNHEARD
        session->told = true;
#endif
#ifdef IPC_PLANT_SLOT_EARLY
        if (writer)
            pairing_confirm(broker, session, pairing, TYPE(READER_DEL), 0);
#endif
        --*budget;
    }
    return 0;
}

static const char *end_text(unsigned reason)
{
    return reason == IPC__CONTROL__REASON__REASON_CLOSED ? "its queue was removed"
           : reason == IPC__CONTROL__REASON__REASON_LIMIT
               ? "the broker had no memory or descriptors for it"
               : "its queue broke, and is lost: the broker's log says why";
}

static int flush_port_ends(struct broker *broker, struct session *session, unsigned *budget)
{
    while (!list_empty(&session->port_ends) && *budget > 0) {
        struct port *port = list_entry(session->port_ends.next, struct port, notice);
        Ipc__Control__PortEnd message = IPC__CONTROL__PORT_END__INIT;
        const char *text = end_text(port->row->ended - 1u);
        int result;

        message.port = port->id;
        message.reason = (Ipc__Control__Reason)(port->row->ended - 1);
        message.text = (char *)(uintptr_t)text;
        owe(session);
        result = send_message(broker, session, TYPE(PORT_END), &message.base, NULL, 0);
        if (result < 0)
            return result;
        list_remove(&port->notice);
        session->told = true;
        --*budget;
    }
    return 0;
}

/* The flag of the row stays until the lane ends: another ipcd says it again. */
static int flush_renews(struct broker *broker, struct session *session, unsigned *budget)
{
    if (!session->renew)
        return 0;
    list_for_each(node, &session->lanes)
    {
        struct lane *lane = list_entry(node, struct lane, by_session);
        Ipc__Control__Renew message = IPC__CONTROL__RENEW__INIT;
        int result;

        if (lane->renewed || !atomic_load_explicit(&lane->row->renew, memory_order_relaxed))
            continue;
        if (*budget == 0)
            return 0;
        message.lane = lane->id;
        owe(session);
        result = send_message(broker, session, TYPE(RENEW), &message.base, NULL, 0);
        if (result < 0)
            return result;
        lane->renewed = session->told = true;
        --*budget;
    }
    session->renew = false;
    return 0;
}

static int flush_nudge(struct broker *broker, struct session *session)
{
    const Ipc__Control__Done message = IPC__CONTROL__DONE__INIT;
    int result;

    if (!session->nudge)
        return 0;
    result = send_message(broker, session, TYPE(NUDGE), &message.base, NULL, 0);
    if (result == 0) {
        session->nudge = false;
        session->told = true;
    }
    return result;
}

/* While its row does not say otherwise, its board shows that nothing is to come: so a board that needs no word stays
 * unmapped. */
static void post(struct session *session, bool left)
{
    if (session->due)
        owe(session);
    else if (!session->told && !left && session->row &&
             !atomic_load_explicit(&session->row->owed, memory_order_relaxed))
        return;
    if (!session_board(session))
        return;
    atomic_store_explicit(&session->board->pending, session->due, memory_order_relaxed);
#ifdef IPC_PLANT_DEATH_UNHEARD
    left = false;
#endif
    if (session->told || left)
        notice_mail(session);
    if (session->row && !session->nudge && !session->due)
        atomic_store_explicit(&session->row->owed, 0, memory_order_release);
}

void notice_nudge(struct broker *broker, struct session *session)
{
    session->nudge = true;
    owe(session);
    notice_mark(broker, session);
}

void notice_flush(struct broker *broker)
{
    struct list now;
    unsigned n_now = 0;

    /* Who is marked on the way, by what is sent here, has its turn in the next round. */
    list_init(&now);
    list_for_each(node, &broker->dirty)
    {
        struct session *session = list_entry(node, struct session, dirty);
        unsigned budget = FLUSH_MAX;
        int result = session->wants_out ? -EAGAIN : session_flush_outbox(broker, session);

        session->told = false;
        if (result == 0)
            result = flush_dels(broker, session, &budget);
        if (result == 0)
            result = flush_port_ends(broker, session, &budget);
        if (result == 0)
            result = flush_renews(broker, session, &budget);
        if (result == 0)
            result = flush_adds(broker, session, true, &budget);
        post(session, !list_empty(&session->dels) || !list_empty(&session->port_ends) || session->renew ||
                          !list_empty(&session->writer_adds));
        session_send_failed(broker, session, result);
    }
    list_for_each_safe(node, &broker->dirty)
    {
        if (n_now++ == SESSIONS_MAX)
            break;
        list_remove(node);
        list_append(&now, node);
    }
    while (!list_empty(&now)) {
        struct session *session = list_entry(now.next, struct session, dirty);
        unsigned budget = FLUSH_MAX;
        int result = 0;

        list_remove(&session->dirty);
        session->told = false;
        if (session->subscribed) {
            if (!list_empty(&broker->unwatched) && !broker->watch_later) {
                notice_mark(broker, session); /* some publishers cannot be told yet */
                continue;
            }
            request_subscribed(broker, session);
            if (session->state == SESSION_ENDED)
                continue;
        }
        if (session->wants_out || !list_empty(&session->stalled))
            result = -EBUSY; /* told already why */
        if (result == 0)
            result = flush_adds(broker, session, false, &budget);
        if (result == 0)
            result = flush_nudge(broker, session);
        post(session, !list_empty(&session->reader_adds));
        session_send_failed(broker, session, result);
        if (result == 0 &&
            (!list_empty(&session->dels) || !list_empty(&session->port_ends) || session->renew ||
             (session->window < IPC_NOTICE_WINDOW &&
              (!list_empty(&session->writer_adds) || !list_empty(&session->reader_adds)))))
            notice_mark(broker, session);
    }
}
