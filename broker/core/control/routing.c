/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/routing.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/port.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/request.h"
#include "broker/core/control/session.h"
#include "broker/core/util/log.h"

#define MAILS_PER_ROUND 256u

/* Everybody who waits for something of a queue that is gone. */
static void answer_all(struct broker *broker, struct queue *queue)
{
    list_for_each_safe(node, &queue->waits)
        request_queue_finish(broker, list_entry(node, struct wait, link), NULL);
}

/* With the queue went those who waited. */
static void answer(struct broker *broker, const struct route_mail *mail)
{
    if (registry_queue(broker, mail->queue))
        request_queue_finish(broker, mail->data, mail);
}

static void queue_over(struct broker *broker, struct route_mail *mail)
{
    struct queue *queue = registry_queue(broker, mail->queue);
    const struct wait *wait = mail->data;

    if (!queue)
        return;
    if (wait)
        registry_queue_mark_removing(queue, wait->session, wait->request);
    log_write(LOG_QUEUE, NULL, "queue %s is removed, with %" PRIu64 " messages", queue->row->name,
              mail->dropped);
    answer_all(broker, queue);
    registry_queue_gone(broker, queue, IPC_REASON_CLOSED);
}

static void queue_broken(struct broker *broker, const struct route_mail *mail)
{
    struct queue *queue = registry_queue(broker, mail->queue);

    if (!queue)
        return;
    log_write(LOG_SYSTEM, NULL, "queue %s and its messages are lost: %s", queue->row->name, mail->text);
    answer_all(broker, queue);
    registry_queue_gone(broker, queue, IPC_REASON_CORRUPT);
}

static void queue_late(struct broker *broker, const struct route_mail *mail)
{
    const struct queue *queue = registry_queue(broker, mail->queue);

    if (queue)
        log_write(LOG_SYSTEM, NULL,
                  "queue %s cannot go on yet: %s; its messages are kept, and it is tried again",
                  queue->row->name, strerror(-mail->result));
}

static void queue_in_trouble(struct broker *broker, const struct route_mail *mail)
{
    struct queue *queue = registry_queue(broker, mail->queue);

    if (queue)
        log_write(
            LOG_SYSTEM, NULL,
            "what an earlier ipcd left in queue %s cannot be read: %s; it is tried again, and can be removed",
            queue->row->name, strerror(-mail->result));
}

static void port_broken(struct broker *broker, const struct route_mail *mail)
{
    struct port *port = registry_port(broker, mail->port.id);

    if (port && port->session)
        session_end(broker, port->session, IPC_REASON_CORRUPT, mail->text);
}

/* On its way to another queue; what cannot go there goes back. Takes the mail. */
static void forward(struct broker *broker, struct route_mail *mail)
{
    const struct queue *from = registry_queue(broker, mail->queue), *to = NULL;

    if (mail->to)
        to = registry_queue(broker, mail->to);
    else if (mail->dead && from)
        to = registry_queue(broker, from->row->dead_letter);
    else if (!mail->dead)
        to = registry_queue_named(broker, mail->target);
    mail->origin = mail->queue;
    if (to && to != from && !registry_queue_removing(to)) {
        mail->queue = to->id;
    } else {
        mail->kind = ROUTE_LETTER_DONE;
        mail->result = -ENOENT;
    }
    routers_send(broker->routers, mail);
}

static void pass_on(struct broker *broker, struct route_mail *mail, uint64_t queue)
{
    mail->queue = queue;
    routers_send(broker->routers, mail);
}

static uint64_t named_or(const struct broker *broker, const char *name, uint64_t otherwise)
{
    const struct queue *queue = registry_queue_named(broker, name);

    return queue ? queue->id : otherwise;
}

/* Takes the mail. */
static void handle(struct broker *broker, struct route_mail *mail)
{
    struct port *port;

    switch (mail->kind) {
    case ROUTE_LETTER:
        forward(broker, mail);
        return;
    case ROUTE_LETTER_DONE:
        pass_on(broker, mail, mail->origin);
        return;
    case ROUTE_LETTER_ASK:
        mail->origin = mail->queue;
        pass_on(broker, mail, mail->to ? mail->to : named_or(broker, mail->target, mail->queue));
        return;
    case ROUTE_LETTER_KNOWN:
        pass_on(broker, mail, mail->to);
        return;
    case ROUTE_QUEUE_GONE:
        if (mail->result < 0)
            answer(broker, mail);
        else
            queue_over(broker, mail);
        break;
    case ROUTE_QUEUE_BROKEN:
        queue_broken(broker, mail);
        break;
    case ROUTE_QUEUE_TROUBLE:
        queue_in_trouble(broker, mail);
        break;
    case ROUTE_QUEUE_LATE:
        queue_late(broker, mail);
        break;
    case ROUTE_PORT_GONE:
        port = registry_port(broker, mail->port.id);
        if (port)
            registry_port_gone(broker, port, mail->result);
        break;
    case ROUTE_PORT_BROKEN:
        port_broken(broker, mail);
        break;
    case ROUTE_DID:
        answer(broker, mail);
        break;
    default:
        break;
    }
    route_mail_free(mail);
}

void routing_on_event(struct broker *broker)
{
    const uint64_t one = 1;
    uint64_t count;
    struct route_mail *mail;

    (void)!read(broker->routers_fd, &count, sizeof(count));
    for (unsigned i = 0; i < MAILS_PER_ROUND; i++) {
        mail = routers_receive(broker->routers);
        if (!mail)
            return;
        handle(broker, mail);
    }
    (void)!write(broker->routers_fd, &one, sizeof(one)); /* there may be more */
}
