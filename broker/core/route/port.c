/* SPDX-License-Identifier: Apache-2.0
 *
 * Ports: the router's end. What a session writes is looked at once, copied, and then checked.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include <ipc/error.h>

#include "broker/core/route/router.h"
#include "control.pb-c.h"
#include "libipc/lane/segment.h"
#include "libipc/lane/wait.h"

/* Of one port in one round: bytes, so that they are still in the cache when they are delivered, and deliveries that its
 * acknowledgements may name in all. */
#define TURN_BYTES (256u << 10)
#define NAMED_MAX  4096u

struct open *port_open_of(struct port *port, uint64_t delivery)
{
    struct open *open;

    if (delivery < port->open_first || delivery >= port_next_delivery(port) ||
        delivery - port->open_first >= port->open_capacity)
        return NULL;
    open = &port->open[delivery & (port->open_capacity - 1)];
    return open->offset ? open : NULL;
}

bool port_is_willing(const struct port *port)
{
    return port->about.consumer && !port->ending && !port->broken && !port->wants_room &&
           port->open_count < port->about.prefetch &&
           port_next_delivery(port) - port->open_first < 4 * (uint64_t)port->about.prefetch + 64;
}

void port_set_willing(struct port *port)
{
    if (!list_empty(&port->willing) || !port_is_willing(port))
        return;
    list_append(&port->queue->willing, &port->willing);
    port->queue->n_willing++;
    router_queue_dirty(port->queue);
}

static void set_unwilling(struct port *port)
{
    if (list_empty(&port->willing))
        return;
    list_remove(&port->willing);
    port->queue->n_willing--;
}

void port_broken(struct port *port, const char *text)
{
    struct route_mail *mail;

    if (port->broken)
        return;
    port->broken = true;
    set_unwilling(port);
    list_remove(&port->turn);
    port->state = PORT_HELD;
    mail = route_mail_new(ROUTE_PORT_BROKEN, port->queue->id, 0);
    if (!mail)
        return; /* it is not looked at any more, which is what matters */
    mail->port.id = port->about.id;
    mail->port.session = port->about.session;
    mail->reason = IPC_REASON_CORRUPT;
    (void)snprintf(mail->text, sizeof(mail->text), "%s", text);
    router_mail(port->queue->router, mail);
}

/* The message that the last verdict of an earlier ipcd was about, and all before it, are decided. */
static void decided_by_verdicts(struct port *port)
{
    const struct lane_writer *out = &port->out;
    uint64_t position = out->tail, found = 0;
    bool any = false;

    while (position < out->position) {
        const unsigned char *at = out->ring + (position & (out->ring_size - 1));
        struct ipc_verdict verdict;
        uint32_t low;

        memcpy(&low, at, sizeof(low));
        memcpy(&verdict, at + sizeof(uint64_t), sizeof(verdict));
        found = verdict.position;
        any = true;
        position += ipc_record_stride(low & IPC_RECORD_SIZE);
    }
    if (any)
        port->decided = found + sizeof(uint64_t);
}

void port_check_rung(struct router *router, const struct port *port)
{
    if (port->in.unrung || port->out.unrung)
        router_retry_soon(router);
}

void port_ring_again(struct router *router, struct port *port)
{
    if (port->in.unrung)
        lane_reader_ring(&port->in);
    if (port->out.unrung)
        lane_writer_ring_armed(&port->out);
    port_check_rung(router, port);
}

static int begin(struct router *router, struct port *port)
{
    const struct route_port *about = &port->about;
    struct lane_peer peer = {.cell = NULL,
                             .pairing = about->id,
                             .slot = 0,
                             .bell = about->ring,
                             .pins = true,
                             .fence = about->fence};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = about->id};
    void *core = NULL, *session = NULL;
    int result = lane_segment_map(&core, about->core_fd, IPC_SEGMENT_PORT, about->core_ring_size, true);

    if (result == 0)
        result =
            lane_segment_map(&session, about->session_fd, IPC_SEGMENT_PORT, about->session_ring_size, false);
    port->core = core;
    port->session = session;
    if (result < 0)
        return result;
    peer.cell = &port->session->cell;
    (about->resumed ? lane_writer_resume : lane_writer_init)(&port->out, &port->core->lane,
                                                             lane_segment_ring(core), about->core_ring_size);
    port->out.hasty = true;
    result = lane_writer_add(&port->out, &peer, IPC__CONTROL__START__START_OLDEST);
    if (result < 0)
        return result;
#ifdef IPC_PLANT_CURSOR_RESET
    if (false)
#else
    if (about->resumed && atomic_load_explicit(&port->core->cell.owner, memory_order_relaxed) == about->id)
#endif
        lane_reader_resume(&port->in, &port->session->lane, lane_segment_ring(session),
                           about->session_ring_size, 0, &port->core->cell);
    else
        lane_reader_init(&port->in, &port->session->lane, lane_segment_ring(session),
                         about->session_ring_size, 0, &port->core->cell, about->id,
                         IPC__CONTROL__START__START_OLDEST, true, false);
    port->in.stream_records = IPC_PORT_STREAM_RECORDS;
    port->in.bell = about->ring;
    port->in.hasty = true;
    if (about->resumed && about->ring >= 0)
        lane_reader_ring(&port->in);
    port_check_rung(router, port);
    port->open_first = port->out.sequence;
    if (about->resumed && !about->consumer)
        decided_by_verdicts(port);
    if (about->bell >= 0 && epoll_ctl(router->epoll_fd, EPOLL_CTL_ADD, about->bell, &event) < 0)
        return -errno;
    return 0;
}

static void unmap(struct router *router, struct port *port)
{
    list_remove(&port->rung);
    lane_writer_done(&port->out);
    lane_segment_unmap(port->core, IPC_SEGMENT_PORT, port->about.core_ring_size);
    lane_segment_unmap(port->session, IPC_SEGMENT_PORT, port->about.session_ring_size);
    if (port->about.bell >= 0)
        (void)epoll_ctl(router->epoll_fd, EPOLL_CTL_DEL, port->about.bell, NULL);
    free(port->open);
    free(port);
}

void port_drop(struct port *port)
{
    list_remove(&port->link);
    list_remove(&port->turn);
    list_remove(&port->willing);
    route_mail_free(port->gone);
    unmap(port->queue->router, port);
}

void port_add(struct router *router, struct route_mail *mail)
{
    struct hash_node *node = hash_find(&router->queues, mail->queue);
    struct port *port = calloc(1, sizeof(*port));
    int result = port ? 0 : -ENOMEM;

    if (!node) { /* removed meanwhile, with all its ports */
        free(port);
        route_mail_free(mail);
        return;
    }
    if (port) {
        port->about = mail->port;
        list_init(&port->link);
        list_init(&port->turn);
        list_init(&port->willing);
        list_init(&port->rung);
    }
    if (result == 0) {
        port->queue = list_entry(node, struct queue, node);
        result = begin(router, port);
    }
    if (result < 0) {
        if (port)
            unmap(router, port);
        if (mail->port.resumed && router_put_off(router, mail, result))
            return;
        mail->kind = ROUTE_PORT_GONE;
        mail->result = result;
        router_mail(router, mail);
        return;
    }
    list_append(port->about.consumer ? &port->queue->consumers : &port->queue->producers, &port->link);
    hash_add(&router->ports, &port->node, port->about.id);
    port->state = PORT_HELD;
    router_port_awake(router, port);
    if (port->queue->running)
        port_set_willing(port);
    route_mail_free(mail);
}

void port_gone(struct router *router, struct port *port, bool silent)
{
    struct queue *queue = port->queue;
    struct route_mail *mail = port->gone;

    set_unwilling(port);
    queue_take_back(queue, port,
                    port->reason == IPC_REASON_CLOSED ? IPC_REDELIVERY_CLOSED : IPC_REDELIVERY_DIED);
    list_remove(&port->turn);
    list_remove(&port->link);
    hash_remove(&router->ports, &port->node);
    unmap(router, port);
    if (silent) {
        route_mail_free(mail);
        return;
    }
    queue_publish(queue);      /* what was taken from it is seen when it is gone */
    router_queue_dirty(queue); /* so that mail which was held for its end is looked at again */
    mail->kind = ROUTE_PORT_GONE;
    mail->result = 0;
    router_mail(router, mail);
}

void port_end(struct router *router, struct route_mail *mail)
{
    struct hash_node *node = hash_find(&router->ports, mail->port.id);
    struct port *port = node ? list_entry(node, struct port, node) : NULL;

    if (!port || port->gone) { /* its queue was removed meanwhile */
        route_mail_free(mail);
        return;
    }
    port->ending = true;
    port->reason = mail->reason;
    port->gone = mail;
    set_unwilling(port);
#ifndef IPC_PLANT_DRAIN_FORGOTTEN
    if (!port->broken) {
        if (port->state == PORT_HELD && !list_empty(&port->turn) && !port->letter)
            list_remove(&port->turn);
        if (!port->letter)
            router_port_awake(router, port);
        return;
    }
#endif
    port_gone(router, port, false);
}

/* Returns false if it is not done with yet: one record can name every delivery that there is. */
static bool take_ack(struct queue *queue, struct port *port, const struct lane_record *in, unsigned *left)
{
    char reason[IPC_MAX_REASON_SIZE + 1] = "";
    uint64_t first, last;
    struct ipc_ack ack;

    if (in->size < sizeof(ack) || in->size > sizeof(ack) + IPC_MAX_REASON_SIZE) {
        port_broken(port, "it sent an acknowledgement of a wrong size");
        return false;
    }
    lane_copy_out(&ack, in->body, sizeof(ack));
    lane_copy_out(reason, in->body + sizeof(ack), in->size - sizeof(ack));
    if (!lane_reader_check(&port->in) || ack.reason_size > in->size - sizeof(ack)) {
        port_broken(port, "it sent an acknowledgement that makes no sense");
        return false;
    }
    reason[ack.reason_size] = 0;
    first = ack.first > port->open_first ? ack.first : port->open_first;
    first = first > port->named ? first : port->named;
    last = ack.last < port->out.sequence ? ack.last + 1 : port->out.sequence;
    for (uint64_t delivery = first; delivery < last; delivery++) {
        if (*left == 0) {
            port->named = delivery;
            return false;
        }
        --*left;
        switch (ack.operation) {
        case IPC_ACK_DONE:
            queue_ack(queue, port, delivery);
            break;
        case IPC_ACK_REFUSE:
            queue_refuse(queue, port, delivery, &ack, reason);
            break;
        case IPC_ACK_TOUCH:
            queue_touch(queue, port, delivery, ack.ns);
            break;
        default:
            port_broken(port, "it sent an acknowledgement of no known kind");
            return false;
        }
    }
    port->named = 0;
    return true;
}

static void hold(struct port *port)
{
    list_remove(&port->turn);
    list_append(&port->queue->held, &port->turn);
    port->state = PORT_HELD;
}

/* Once found to lie it is not counted, so that nothing would keep its lane from being overwritten. */
static void check_cursor(struct port *port)
{
    if (port->out.faulted)
        port_broken(port, "the cursor with which it reads what the broker writes makes no sense");
}

/* There is no room for a verdict: the producer shall ring when it has read some. */
static bool hold_for_verdicts(struct port *port)
{
    const struct lane_peer *slowest;
    uint64_t cursor;

    (void)lane_writer_want(&port->out, port->out.ring_size / 4, &slowest, &cursor);
    if (port->out.faulted)
        return true; /* it is looked at, and lets go, at the end of its turn */
    if (!slowest) {
        lane_writer_want_clear(&port->out);
        return false;
    }
    port->wants_room = port->out.ring_size / 4;
    hold(port);
    return true;
}

/* Returns true if the port goes on with its next record. */
static bool take_message(struct queue *queue, struct port *port, const struct lane_record *in)
{
#ifdef IPC_PLANT_CURSOR_EARLY
    lane_reader_release(&port->in, in->next);
    lane_reader_report(&port->in);
#endif
    switch (queue_accept(queue, port, in)) {
    case VERDICT_ACCEPTED:
        if (!port->taken && port->in.position >= port->decided)
            port->taken = port->in.position + 1;
        lane_reader_advance(&port->in, in);
        return true;
    case VERDICT_HOLD:
        hold(port);
        return false;
    case VERDICT_NO_ROOM:
        return !hold_for_verdicts(port);
    default:
        return false;
    }
}

bool port_may_turn(const struct port *port)
{
    return port->about.consumer ? port->queue->running : !port->queue->scanning;
}

bool port_turn(struct router *router, struct port *port, unsigned records)
{
    struct queue *queue = port->queue;
    struct lane_record in;
    const uint64_t until = port->in.position + TURN_BYTES;
    unsigned named = NAMED_MAX;
    bool some = false;
    int found = 0;

    if (!port_may_turn(port))
        return false;
    while (records && !port->broken && port->in.position < until &&
           (found = lane_reader_peek(&port->in, &in)) > 0) {
        some = true;
        records--;
        if (port->about.consumer) {
            if (!take_ack(queue, port, &in, &named))
                break;
            lane_reader_advance(&port->in, &in);
        } else if (!take_message(queue, port, &in)) {
            break;
        }
        port->records++;
    }
    if (found < 0)
        port_broken(port, "a record in its lane makes no sense");
    check_cursor(port);
    if (!port->broken && port->in.consumed != port->in.reported)
        lane_reader_report(&port->in);
    port_check_rung(router, port);
    port->idle = some ? 0 : port->idle + 1;
    if (port->ending && (port->broken || found == 0))
        port_gone(router, port, false);
    return some;
}

void port_commit(struct port *port)
{
    lane_batch_commit(&port->out, &port->batch);
    port_check_rung(port->queue->router, port);
    port->batch.count = 0;
    check_cursor(port);
}

void port_rung(struct router *router, struct port *port)
{
    if (port->wants_room && (lane_writer_has_room(&port->out, port->wants_room) ||
                             lane_writer_make_room(&port->out, port->wants_room) == 0)) {
        port->wants_room = 0;
        lane_writer_want_clear(&port->out);
        port_set_willing(port);
        if (port->state == PORT_HELD && !port->letter)
            router_port_awake(router, port);
    }
    if (port->state == PORT_ASLEEP)
        router_port_awake(router, port);
}

void port_diverted(struct router *router, struct port *port, int result)
{
    struct lane_record in;

    port->letter = false;
    if (!port->broken && lane_reader_peek(&port->in, &in) > 0) {
        queue_diverted(port->queue, port, result);
        lane_reader_advance(&port->in, &in);
        lane_reader_report(&port->in);
        port_check_rung(router, port);
    }
    if (!port->broken)
        router_port_awake(router, port);
}
