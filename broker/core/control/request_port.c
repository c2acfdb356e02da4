/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing ports of queues.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/error.h>

#include "broker/core/control/access.h"
#include "broker/core/control/drain.h"
#include "broker/core/control/port.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/session.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/text.h"
#include "proto/name.h"

/* The answer may go out twice, each time with the same descriptors: see registry_port_handed(). */
static void answer_opened(struct broker *broker, struct session *session, const struct port *port)
{
    Ipc__Control__PortOpened opened = IPC__CONTROL__PORT_OPENED__INIT;
    Ipc__Control__QueueSettings settings = IPC__CONTROL__QUEUE_SETTINGS__INIT;
    _cleanup_(fd_closep) int core_fd = fd_reopen_readonly(port->core_fd);
    const int fds[] = {port->session_fd, core_fd, port->give_ring_fd, port->give_bell_fd};

    if (core_fd < 0 || port->give_ring_fd < 0) {
        session_end(broker, session, IPC_REASON_LIMIT, "the broker has no descriptors for its port");
        return;
    }
    if (port->queue)
        registry_queue_settings(broker, port->queue, &settings);
    opened.port = port->id;
    opened.queue = port->row->queue;
    opened.session_ring_size = port->row->session_ring_size;
    opened.core_ring_size = port->row->core_ring_size;
    opened.prefetch = port->row->prefetch;
    opened.settings = &settings;
    opened.fence = !broker->options.membarrier;
    session_reply_with(broker, session, IPC__CONTROL__TYPE__PORT_OPENED, port->row->request, &opened.base,
                       fds, port->give_bell_fd >= 0 ? 4 : 3);
}

static struct port *opened_before(const struct session *session, uint64_t request)
{
    if (session->resumed)
        list_for_each(node, &session->ports)
        {
            struct port *port = list_entry(node, struct port, by_session);

            if (port->row->request == request)
                return port;
        }
    return NULL;
}

/* The ring for messages: as asked, but two of the largest fit in. 0: that is more than is allowed, which was said. */
static uint32_t message_ring(struct broker *broker, struct session *session, uint64_t id,
                             const struct queue *queue, const Ipc__Control__PortOpen *open)
{
    uint64_t most = broker->options.config->ring_size_max, size = IPC_MIN_RING_SIZE;
    uint64_t least = 2 * ((uint64_t)queue->row->message_size_max + sizeof(uint64_t) +
                          (open->role == IPC__CONTROL__ROLE__CONSUMER ? sizeof(struct ipc_delivery) : 0));
    uint64_t wanted = open->ring_size                ? open->ring_size
                      : most < IPC_RING_SIZE_DEFAULT ? most
                                                     : IPC_RING_SIZE_DEFAULT;

    while (size < wanted || size < least)
        size *= 2;
    if (size <= most)
        return (uint32_t)size;
    session_fail(broker, session, id, -EINVAL,
                 "%s takes a ring of %" PRIu64 " bytes, more than the %" PRIu64
                 " that are allowed; %s, or raise ring-size-max in [limits] of ipcd.conf",
                 wanted > least ? "what was asked for" : "a message of the queue's message-size-max", size,
                 most,
                 wanted > least ? "ask for less" : "create the queue anew with a smaller message-size-max");
    return 0;
}

static struct port_wish wish_of(const struct job *job)
{
    return (struct port_wish){.core_ring_size = job->consumer ? job->ring_size : IPC_VERDICT_RING_SIZE,
                              .session_ring_size = job->consumer ? IPC_ACK_RING_SIZE : job->ring_size,
                              .prefetch = job->prefetch,
                              .consumer = job->consumer,
                              .bell = job->bell,
                              .request = job->request};
}

static void open_failed(struct broker *broker, struct session *session, uint64_t id, int result)
{
    session_fail(broker, session, id, result,
                 "the broker could not make the port: %s; ask for a smaller ring", strerror(-result));
}

static void no_queue(struct broker *broker, struct session *session, uint64_t id, const char *name)
{
    session_fail(
        broker, session, id, -ENOENT,
        "there is no queue %.200s: create it with `ipcctl queue create', or by a section [queue NAME] of "
        "ipcd.conf",
        name);
}

/* The segment for messages is allocated, or could not be. The charge was taken. */
static void finish(struct broker *broker, struct session *session, const struct job *job, int *fd, int result)
{
    const struct port_wish wish = wish_of(job);
    const struct charge charge = registry_port_charge(&wish);
    struct queue *queue = registry_queue_named(broker, job->name);
    _cleanup_(fd_closep) int other = -1;
    struct port *port;

    if (!queue || registry_queue_removing(queue)) {
        quota_return(&broker->quota, session->user, &charge);
        no_queue(broker, session, job->request, job->name);
        return;
    }
    if (result == 0)
        result = other = segment_create(IPC_SEGMENT_PORT);
    if (result >= 0)
        result = segment_allocate(other, segment_size(IPC_SEGMENT_PORT, wish.consumer ? wish.session_ring_size
                                                                                      : wish.core_ring_size));
    if (result >= 0)
        result = registry_port_new(broker, session, queue, &wish, wish.consumer ? fd : &other,
                                   wish.consumer ? &other : fd, &port);
    if (result < 0) {
        quota_return(&broker->quota, session->user, &charge);
        open_failed(broker, session, job->request, result);
        return;
    }
    answer_opened(broker, session, port);
}

static void open_finish(struct broker *broker, struct job *job)
{
    struct session *session = registry_session(broker, job->session);

    if (session) {
        finish(broker, session, job, &job->fd, job->result);
        fd_close(job->fd);
        session->busy = false;
        session_answered(broker, session);
    } else {
        const struct port_wish wish = wish_of(job);
        const struct charge charge = registry_port_charge(&wish);

        segment_free(broker, job->user, job->fd, job->size, &charge);
    }
    free(job);
}

void request_port_open(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__PortOpen *open)
{
    const char *wrong = ipc_name_check(open->queue, false);
    const struct port *made = opened_before(session, id);
    const struct queue *queue;
    _cleanup_(fd_closep) int fd = -1;
    struct port_wish wish;
    struct charge charge;
    struct refusal refusal;
    struct job job;

    if (made) {
        answer_opened(broker, session, made);
        return;
    }
    if (request_deny_admin(broker, session, id))
        return;
    if (wrong || (unsigned)open->role > IPC__CONTROL__ROLE__CONSUMER || open->prefetch > IPC_MAX_PREFETCH) {
        session_fail(broker, session, id, -EINVAL,
                     wrong ? "the queue name is not valid: %s"
                           : "a port is of a producer or a consumer, with a prefetch of at most 65536%s",
                     wrong ? wrong : "");
        return;
    }
    if (!access_check(broker, session, id,
                      open->role == IPC__CONTROL__ROLE__CONSUMER ? VERB_RECEIVE : VERB_SEND, open->queue))
        return;
    if (open->role == IPC__CONTROL__ROLE__PRODUCER && drain_refuses(broker, session, id, "messages"))
        return;
    queue = registry_queue_named(broker, open->queue);
    if (!queue || registry_queue_removing(queue)) {
        no_queue(broker, session, id, open->queue);
        return;
    }
    job = (struct job){.finish = open_finish,
                       .session = session->peer.session,
                       .request = id,
                       .user = session->user,
                       .ring_size = message_ring(broker, session, id, queue, open),
                       .prefetch = open->prefetch ? open->prefetch : IPC_PREFETCH_DEFAULT,
                       .consumer = open->role == IPC__CONTROL__ROLE__CONSUMER,
                       .bell = open->bell};
    if (!job.ring_size)
        return;
    job.size = segment_size(IPC_SEGMENT_PORT, job.ring_size);
    (void)snprintf(job.name, sizeof(job.name), "%s", open->queue);
    wish = wish_of(&job);
    charge = registry_port_charge(&wish);
    if (quota_take(&broker->quota, session->user, &charge, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    fd = segment_create(IPC_SEGMENT_PORT);
    if (fd >= 0 && job.size >= WORKER_SIZE_MIN && request_hand_over(broker, session, &job, &fd) == 0)
        return;
    finish(broker, session, &job, &fd, fd < 0 ? fd : segment_allocate(fd, job.size));
}

static struct port *own_port(struct broker *broker, struct session *session, uint64_t id, uint64_t number)
{
    struct port *port = registry_port(broker, number);

    if (port && port->session == session)
        return port;
    session_fail(broker, session, id, -ENOENT, "this session has no port %" PRIu64, number);
    return NULL;
}

void request_port_close(struct broker *broker, struct session *session, uint64_t id,
                        const Ipc__Control__PortClose *close)
{
    struct port *port = registry_port(broker, close->port);

    /* An ipcd that was killed may have marked it, and no more. */
    if ((port && port->session == session) || !request_done_before(session, id)) {
        port = own_port(broker, session, id, close->port);
        if (!port)
            return;
        request_mark_done(session, id);
        registry_port_end(broker, port, IPC_REASON_CLOSED);
    }
    request_answer_done(broker, session, id);
}

void request_port_bell(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__PortBell *bell)
{
    const Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;
    struct port *port = own_port(broker, session, id, bell->port);
    struct refusal refusal;

    if (!port)
        return;
    if (port->row->bell && port->give_bell_fd < 0) {
        session_fail(broker, session, id, -EEXIST, "port %" PRIu64 " has its bell already", port->id);
        return;
    }
    if (!port->row->bell && registry_port_make_bell(broker, port, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    session_reply(broker, session, IPC__CONTROL__TYPE__DONE, id, &done.base, port->give_bell_fd);
}
