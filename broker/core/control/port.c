/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/port.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <ipc/error.h>

#include "broker/core/control/notice.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

struct port *registry_port(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->ports_by_id, id);

    return node ? list_entry(node, struct port, node) : NULL;
}

static struct charge charge_of(uint64_t descriptors, uint32_t core_ring_size, uint32_t session_ring_size)
{
    return (struct charge){.of = {[LIMIT_PORTS] = 1,
                                  [LIMIT_DESCRIPTORS] = descriptors,
                                  [LIMIT_SEGMENT_BYTES] = segment_size(IPC_SEGMENT_PORT, core_ring_size) +
                                                          segment_size(IPC_SEGMENT_PORT, session_ring_size)}};
}

struct charge registry_port_charge(const struct port_wish *wish)
{
    return charge_of(wish->bell ? 6 : 4, wish->core_ring_size, wish->session_ring_size);
}

static struct charge charge_now(const struct port *port)
{
    return charge_of(3u + (port->ring_fd >= 0) + (port->give_ring_fd >= 0) + (port->give_bell_fd >= 0),
                     port->row->core_ring_size, port->row->session_ring_size);
}

static struct port *link_new(struct broker *broker, struct port_row *row, uint64_t id)
{
    struct port *port = calloc(1, sizeof(*port));

    if (!port)
        return NULL;
    port->id = id;
    port->row = row;
    port->core_fd = port->session_fd = port->bell_fd = port->ring_fd = port->give_ring_fd =
        port->give_bell_fd = -1;
    list_init(&port->by_queue);
    list_init(&port->by_session);
    list_init(&port->notice);
    list_append(&broker->ports, &port->link);
    hash_add(&broker->ports_by_id, &port->node, id);
    return port;
}

static uint32_t *count_of(const struct port *port)
{
    return port->row->consumer ? &port->queue->consumers : &port->queue->producers;
}

static void join(struct port *port, struct queue *queue, struct session *session)
{
    if (queue) {
        port->queue = queue;
        list_append(&queue->ports, &port->by_queue);
    }
    if (session) {
        port->session = session;
        list_append(&session->ports, &port->by_session);
    }
    if (queue && session)
        ++*count_of(port);
}

static void leave_session(struct port *port)
{
    if (port->session && port->session->handing == port)
        port->session->handing = NULL;
    if (port->session && port->queue)
        --*count_of(port);
    list_remove(&port->by_session);
    list_remove(&port->notice);
    port->session = NULL;
}

/* The session's ends are kept until it has them for sure: an answer that comes twice brings the same ones. */
static void hand(struct broker *broker, struct port *port)
{
    if (port->session->handing != port)
        registry_port_handed(broker, port->session);
    port->session->handing = port;
}

static void forget_ends(struct broker *broker, struct port *port)
{
    if (port->give_ring_fd >= 0)
        keep_remove(broker, KEEP_GIVE_RING, port->id);
    if (port->give_bell_fd >= 0)
        keep_remove(broker, KEEP_GIVE_BELL, port->id);
    port->give_ring_fd = fd_close(port->give_ring_fd);
    port->give_bell_fd = fd_close(port->give_bell_fd);
}

void registry_port_handed(struct broker *broker, struct session *session)
{
    struct port *port = session->handing;
    struct charge charge = {0};

    if (!port)
        return;
    session->handing = NULL;
    charge.of[LIMIT_DESCRIPTORS] = (port->give_ring_fd >= 0) + (port->give_bell_fd >= 0);
    forget_ends(broker, port);
    quota_return(&broker->quota, port->user, &charge);
}

/* Socket pairs, as other bells: no hostile session can make them block or drain them. */
static int make_pair(int *ring_fd, int *read_fd)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
        return -errno;
    *ring_fd = ends[0];
    *read_fd = ends[1];
    return 0;
}

static void keep_bell(struct broker *broker, const struct port *port)
{
    keep_store(broker, KEEP_PORT_RING, port->id, &port->ring_fd, 1);
    keep_store(broker, KEEP_GIVE_BELL, port->id, &port->give_bell_fd, 1);
}

static int add_to_router(struct broker *broker, struct port *port, bool resumed)
{
    const struct port_row *row = port->row;
    struct route_mail *mail = registry_queue_mail(port->queue, ROUTE_PORT_ADD, 0);

    port->end_mail = registry_queue_mail(port->queue, ROUTE_PORT_END, 0);
    if (!mail || !port->end_mail) {
        route_mail_free(mail);
        return -ENOMEM;
    }
    mail->port = (struct route_port){.id = port->id,
                                     .slot = (uint16_t)state_index(&broker->state, STATE_PORTS, row),
                                     .consumer = row->consumer,
                                     .resumed = resumed,
                                     .fence = row->fence,
                                     .core_fd = port->core_fd,
                                     .session_fd = port->session_fd,
                                     .core_ring_size = row->core_ring_size,
                                     .session_ring_size = row->session_ring_size,
                                     .prefetch = row->prefetch,
                                     .bell = port->bell_fd,
                                     .ring = port->ring_fd,
                                     .session = row->session,
                                     .uid = row->uid,
                                     .pid = row->pid};
    routers_send(broker->routers, mail);
    return 0;
}

static int seal(struct broker *broker, int core_fd, int session_fd, const struct port_wish *wish)
{
    int result = segment_seal(core_fd, IPC_SEGMENT_PORT, wish->core_ring_size,
                              state_number(&broker->state, NUMBER_SEGMENT));

    return result < 0 ? result
                      : segment_seal(session_fd, IPC_SEGMENT_PORT, wish->session_ring_size,
                                     state_number(&broker->state, NUMBER_SEGMENT));
}

static void free_record(struct broker *broker, struct port *port)
{
    hash_remove(&broker->ports_by_id, &port->node);
    list_remove(&port->link);
    list_remove(&port->by_queue);
    leave_session(port);
    fd_close(port->bell_fd);
    fd_close(port->ring_fd);
    fd_close(port->give_ring_fd);
    fd_close(port->give_bell_fd);
    route_mail_free(port->end_mail);
    free(port);
}

int registry_port_new(struct broker *broker, struct session *session, struct queue *queue,
                      const struct port_wish *wish, int *core_fd, int *session_fd, struct port **ret)
{
    struct port_row *row = state_take(&broker->state, STATE_PORTS);
    struct port *port = row ? link_new(broker, row, state_number(&broker->state, NUMBER_PORT)) : NULL;
    int result = port ? seal(broker, *core_fd, *session_fd, wish) : -ENOMEM;

    if (result < 0) {
        state_drop(&broker->state, STATE_PORTS, row);
        if (port)
            free_record(broker, port);
        return result;
    }
    row->session = session->peer.session;
    row->queue = queue->id;
    row->request = wish->request;
    row->uid = session->peer.uid;
    row->pid = session->peer.pid;
    row->session_ring_size = wish->session_ring_size;
    row->core_ring_size = wish->core_ring_size;
    row->prefetch = wish->prefetch;
    row->consumer = wish->consumer;
    row->fence = !(session->features & IPC_FEATURE_MEMBARRIER);
    row->bell = wish->bell;
    port->user = session->user;
    join(port, queue, session);
    port->core_fd = *core_fd;
    port->session_fd = *session_fd;
    result = make_pair(&port->give_ring_fd, &port->bell_fd);
    if (result == 0 && wish->bell)
        result = make_pair(&port->ring_fd, &port->give_bell_fd);
    if (result == 0)
        result = add_to_router(broker, port, false);
    if (result < 0) {
        state_drop(&broker->state, STATE_PORTS, row);
        free_record(broker, port);
        return result;
    }
    *core_fd = *session_fd = -1;
    keep_store(broker, KEEP_PORT, port->id, (int[]){port->session_fd, port->core_fd, port->bell_fd}, 3);
    keep_store(broker, KEEP_GIVE_RING, port->id, &port->give_ring_fd, 1);
    if (wish->bell)
        keep_bell(broker, port);
    state_commit(row, port->id);
    hand(broker, port);
    *ret = port;
    return 0;
}

int registry_port_make_bell(struct broker *broker, struct port *port, struct refusal *refusal)
{
    const struct charge charge = {.of = {[LIMIT_DESCRIPTORS] = 2}};
    struct route_mail *mail;
    int result = quota_take(&broker->quota, port->user, &charge, refusal);

    if (result < 0)
        return result;
    mail = port->queue ? registry_queue_mail(port->queue, ROUTE_PORT_BELL, 0) : NULL;
    result = port->queue && !mail ? -ENOMEM : make_pair(&port->ring_fd, &port->give_bell_fd);
    if (result < 0) {
        route_mail_free(mail);
        quota_return(&broker->quota, port->user, &charge);
        refusal_set(refusal, result, "the broker could not make a bell: %s", strerror(-result));
        return result;
    }
    keep_bell(broker, port);
    atomic_store_explicit(&port->row->bell, 1, memory_order_release);
    hand(broker, port);
    if (mail) {
        mail->port.id = port->id;
        mail->port.ring = port->ring_fd;
        routers_send(broker->routers, mail);
    }
    return 0;
}

void registry_port_free(struct broker *broker, struct port *port)
{
    struct port_row *row = port->row;
    const uint64_t core_size = segment_size(IPC_SEGMENT_PORT, row->core_ring_size);
    const struct charge core = {.of = {[LIMIT_SEGMENT_BYTES] = core_size, [LIMIT_DESCRIPTORS] = 1}};
    struct charge charge = charge_now(port);

    for (size_t i = 0; i < LIMIT_COUNT; i++)
        charge.of[i] -= core.of[i];
    state_drop(&broker->state, STATE_PORTS, row);
    keep_remove(broker, KEEP_PORT, port->id);
    if (row->bell)
        keep_remove(broker, KEEP_PORT_RING, port->id);
    forget_ends(broker, port);
    segment_free(broker, port->user, port->core_fd, core_size, &core);
    segment_free(broker, port->user, port->session_fd, segment_size(IPC_SEGMENT_PORT, row->session_ring_size),
                 &charge);
    free_record(broker, port);
}

void registry_port_end(struct broker *broker, struct port *port, unsigned reason)
{
    atomic_store_explicit(&port->row->closed, (uint8_t)(reason + 1), memory_order_release);
    leave_session(port);
    if (!port->queue) {
        registry_port_free(broker, port);
        return;
    }
    registry_port_retire(broker, port, reason);
}

void registry_port_retire(struct broker *broker, struct port *port, unsigned reason)
{
    struct route_mail *mail = port->end_mail;

    if (!mail) /* it ends already */
        return;
    port->end_mail = NULL;
    mail->port.id = port->id;
    mail->reason = reason;
    routers_send(broker->routers, mail);
}

static void owe_end(struct broker *broker, struct port *port)
{
    list_append(&port->session->port_ends, &port->notice);
    notice_mark(broker, port->session);
}

void registry_port_gone(struct broker *broker, struct port *port, int result)
{
    if (!port->queue)
        return;
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "queue %s cannot use port %" PRIu64 " of session %" PRIu64 ": %s",
                  port->queue->row->name, port->id, port->row->session, strerror(-result));
    registry_port_queue_gone(broker, port, result < 0 ? IPC_REASON_LIMIT : IPC_REASON_SHUTDOWN);
}

void registry_port_queue_gone(struct broker *broker, struct port *port, unsigned reason)
{
    if (!port->session) {
        registry_port_free(broker, port);
        return;
    }
    --*count_of(port);
    list_remove(&port->by_queue);
    port->queue = NULL;
    atomic_store_explicit(&port->row->ended, (uint8_t)(reason + 1), memory_order_release);
    owe_end(broker, port);
}

int registry_port_restore(struct broker *broker, struct port_row *row, const int kept[3], int ring_fd,
                          int give_ring_fd, int give_bell_fd)
{
    struct user *user = quota_user(&broker->quota, row->uid);
    struct port *port = user ? link_new(broker, row, row->row.id) : NULL;
    struct charge charge;
    bool whole = kept[0] >= 0 && kept[1] >= 0 && kept[2] >= 0 && (ring_fd >= 0 || !row->bell);

    if (!port)
        return -ENOMEM;
    port->user = user;
    port->session_fd = kept[0];
    port->core_fd = kept[1];
    port->bell_fd = kept[2];
    port->ring_fd = ring_fd;
    port->give_ring_fd = give_ring_fd;
    port->give_bell_fd = give_bell_fd;
    charge = charge_now(port);
    quota_charge(&broker->quota, user, &charge);
    join(port, whole ? registry_queue(broker, row->queue) : NULL,
         row->closed ? NULL : registry_session(broker, row->session));
    if (port->session && (give_ring_fd >= 0 || give_bell_fd >= 0))
        hand(broker, port);
    return port->queue ? add_to_router(broker, port, true) : 0;
}

void registry_port_resume(struct broker *broker, struct port *port)
{
    if (!port->session) {
        registry_port_end(broker, port, port->row->closed ? port->row->closed - 1u : IPC_REASON_DIED);
        return;
    }
    if (port->queue)
        return;
    if (!port->row->ended) /* killed when it was to be told */
        atomic_store_explicit(&port->row->ended, IPC_REASON_CLOSED + 1, memory_order_release);
    owe_end(broker, port);
}
