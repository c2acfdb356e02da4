/* SPDX-License-Identifier: Apache-2.0
 *
 * Ports: opening and closing, news from the core, and waiting: by polling while that pays, then on the
 * futexes of the record that comes next and of the router's cursor, or, where a descriptor is needed, by the
 * port's bell.
 */
#include "libipc/patterns/port.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"
#include "proto/name.h"

/* ---- opening and closing ---------------------------------------------------------------------------------
 * */

static unsigned char *ring_of(struct ipc_port *end)
{
    return lane_segment_ring(end);
}

static void port_unmap(struct port *port)
{
    lane_segment_unmap(port->own, IPC_SEGMENT_PORT, port->writer.ring_size);
    lane_segment_unmap(port->other, IPC_SEGMENT_PORT, port->reader.ring_size);
    port->own = port->other = NULL;
}

/* Both ends, mapped, and the lanes in them joined: we are the one reader of the one, the router of the other.
 * */
static int join_lanes(struct port *port, const Ipc__Control__PortOpened *opened, const int *fds)
{
    void *own, *other;
    int result = lane_segment_map(&own, fds[0], IPC_SEGMENT_PORT, opened->session_ring_size, true);
    if (result < 0)
        return result;
    result = lane_segment_map(&other, fds[1], IPC_SEGMENT_PORT, opened->core_ring_size, false);
    if (result < 0) {
        lane_segment_unmap(own, IPC_SEGMENT_PORT, opened->session_ring_size);
        return result;
    }
    port->own = own;
    port->other = other;
    lane_writer_init(&port->writer, &port->own->lane, ring_of(own), opened->session_ring_size);
    lane_reader_init(&port->reader, &port->other->lane, ring_of(other), opened->core_ring_size, 0,
                     &port->own->cell, opened->port, IPC__CONTROL__START__START_OLDEST, true, false);
    port->reader.stream_records = IPC_PORT_STREAM_RECORDS;
    port->reader.bell = fds[2];
    struct lane_peer router = {.cell = &port->other->cell,
                               .pairing = opened->port,
                               .bell = fds[2],
                               .pins = true,
                               .fence = opened->fence};
    result = lane_writer_add(&port->writer, &router, IPC__CONTROL__START__START_OLDEST);
    if (result < 0)
        port_unmap(port);
    return result;
}

static void close_core_port(struct ipc_connection *connection, const struct handle *of, uint64_t id)
{
    Ipc__Control__PortClose message = IPC__CONTROL__PORT_CLOSE__INIT;
    message.port = id;
    request_simple_of(connection, of, IPC__CONTROL__TYPE__PORT_CLOSE, &message.base, NULL);
}

int port_open(struct port *port, struct ipc_connection *connection, const struct port_wish *wish,
              Ipc__Control__PortOpened *opened, uint32_t *message_size_max, struct ipc_error *error)
{
    const char *fault = ipc_name_check(wish->queue, false);
    if (fault)
        return error_set(error, -EINVAL, "bad queue name \"%.100s\": %s", wish->queue ? wish->queue : "",
                         fault);
    if (wish->ring_size > IPC_MAX_RING_SIZE)
        return error_set(error, -EINVAL, "ring_size is %u, the limit is %u", wish->ring_size,
                         IPC_MAX_RING_SIZE);
    if (guard_foreign(connection))
        return error_set(error, -ECHILD,
                         "the connection belongs to the parent process: open one of your own");
    *port = (struct port){.handle = {.type = wish->type, .connection = connection, .self = -1},
                          .spin = {.max_ns = wish->spin_max_ns},
                          .set = -1,
                          .bell = -1};
    snprintf(port->queue, sizeof(port->queue), "%s", wish->queue);

    Ipc__Control__PortOpen message = IPC__CONTROL__PORT_OPEN__INIT;
    message.queue = port->queue;
    message.role = wish->consumer ? IPC__CONTROL__ROLE__CONSUMER : IPC__CONTROL__ROLE__PRODUCER;
    message.ring_size = wish->ring_size;
    message.prefetch = wish->prefetch;
    const ProtobufCMessage *reply;
    int fds[3];
    int result = request_fds(connection, IPC__CONTROL__TYPE__PORT_OPEN, &message.base,
                             IPC__CONTROL__TYPE__PORT_OPENED, &reply, fds, 3, error);
    if (result < 0)
        return result;
    *opened = *(const Ipc__Control__PortOpened *)(const void *)reply;
    *message_size_max = opened->settings ? opened->settings->message_size_max : 0;
    opened->settings = NULL; /* it goes with the lock */
    port->handle.id = opened->port;
    result = join_lanes(port, opened, fds);
    if (result == 0)
        handle_add(connection, &port->handle);
    request_done(connection);
    close(fds[0]);
    close(fds[1]);
    if (result < 0) {
        close(fds[2]);
        lane_writer_done(&port->writer);
        close_core_port(connection, NULL, opened->port);
        return error_set(error, result, "cannot map the lanes to queue \"%s\" (%u and %u bytes): %s",
                         wish->queue, opened->session_ring_size, opened->core_ring_size, strerror(-result));
    }
    return 0;
}

int port_join(struct port *port, struct ipc_error *error)
{
    struct ipc_connection *connection = port->handle.connection;
    pthread_mutex_lock(&connection->lock);
    bool join = connection->epoll >= 0;
    pump_unlock(connection);
    int result = join ? patterns_join_descriptor(&port->handle) : 0;
    if (result < 0)
        error_set(error, result, "cannot put queue \"%s\" under the connection's descriptor: %s", port->queue,
                  strerror(-result));
    return result;
}

void port_close(struct port *port)
{
    struct ipc_connection *connection = port->handle.connection;
    bool foreign = guard_foreign(connection);
    if (!foreign) {
        if (!port->closed)
            close_core_port(connection, &port->handle, port->handle.id);
        pthread_mutex_lock(&connection->lock);
        if (connection->epoll >= 0 && port->set >= 0)
            epoll_ctl(connection->epoll, EPOLL_CTL_DEL, port->set, NULL);
    }
    handle_remove(connection, &port->handle);
    struct notice *next;
    for (struct notice *notice = inbox_take(&port->handle); notice; notice = next) {
        next = notice->next;
        notice_free(connection, notice);
    }
    if (!foreign) {
        port_unmap(port);
        pump_unlock(connection);
    }
    close(port->reader.bell);
    lane_writer_done(&port->writer);
    if (port->bell >= 0)
        close(port->bell);
    if (port->set >= 0)
        close(port->set);
    if (port->handle.self >= 0)
        close(port->handle.self);
}

/* ---- news ------------------------------------------------------------------------------------------------
 * */

void port_give_back(struct port *port)
{
    struct ipc_connection *connection = port->handle.connection;
    if (!port->over || port->closed)
        return;
    Ipc__Control__PortClose message = IPC__CONTROL__PORT_CLOSE__INIT;
    message.port = port->handle.id;
    pthread_mutex_lock(&connection->lock);
    if (!handle_ended(&port->handle))
        pump_send(connection, IPC__CONTROL__TYPE__PORT_CLOSE, &message.base);
    pump_unlock(connection);
    port->closed = true;
}

void port_news(struct port *port)
{
    struct ipc_connection *connection = port->handle.connection;
    port->handle.mail_seen = pump_try(connection, port->handle.mail_seen);
    struct notice *next;
    for (struct notice *notice = inbox_take(&port->handle); notice; notice = next) {
        next = notice->next;
        pthread_mutex_lock(&connection->lock);
        if (!port->over) {
            port->over = notice->reason == IPC_REASON_DENIED     ? -EACCES
                         : notice->reason == IPC_REASON_SHUTDOWN ? -EPIPE /* soon */
                                                                 : -EIDRM;
            event_add(connection, IPC_EVENT_QUEUE_ENDED, notice->reason, NULL, port->queue);
        }
        notice_free(connection, notice);
        pump_unlock(connection);
    }
}

/* ---- waiting ---------------------------------------------------------------------------------------------
 * */

/* Let the router know that we sleep, for its next record and for a cursor (0: none), and which word of the
 * cursor to sleep on. False: the cursor is there already. */
static bool arm(struct port *port, bool bell, uint64_t want, struct lane_word *cursor)
{
    struct lane_reader *reader = &port->reader;
    reader->often = reader->sequence - port->slept_at < IPC_PORT_STREAM_RECORDS;
    port->slept_at = reader->sequence;
    bool barrier = lane_reader_arm(reader, bell), there = false;
    if (want) {
        const struct lane_peer *router;
        uint64_t raw = 0;
        lane_writer_want_at(&port->writer, want, &router, &raw);
        there = !router;
        if (router && cursor)
            *cursor = (struct lane_word){lane_low_half(&router->cell->cursor), (uint32_t)raw, false};
    }
    if (barrier) {
        lane_barrier(); /* pairs with lane_publish_fence() in lane_writer_ring() */
    } else {
#ifndef IPC_TSAN
        atomic_thread_fence(memory_order_seq_cst);
#endif
    }
    if (barrier)
        lane_reader_barred(reader);
    return !there;
}

static void disarm(struct port *port, uint64_t want)
{
    lane_reader_disarm(&port->reader);
    if (want)
        lane_writer_want_clear(&port->writer);
}

static int sleep_by_futex(struct port *port, port_look *look, uint64_t goal, uint64_t want, uint64_t until)
{
    struct lane_word words[4];
    handle_words(&port->handle, words);
    bool quiet = arm(port, false, want, &words[3]);
    int result = look(port, goal);
    if (result == 0 && quiet && port_over(port) == 0 && !handle_has_mail(&port->handle) &&
        lane_reader_sleeps_on(&port->reader, &words[2].word, &words[2].value)) {
        words[2].private = false;
        port->sleeps++;
        lane_sleep(words, want ? 4 : 3, until);
    }
    disarm(port, want);
    return result;
}

static int make_descriptor(struct port *port)
{
    struct ipc_connection *connection = port->handle.connection;
    struct epoll_event event = {.events = EPOLLIN};
    int result = 0, set = epoll_create1(EPOLL_CLOEXEC);
    if (set < 0)
        return -errno;
    int self = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_lock(&connection->lock);
    if (self < 0 || epoll_ctl(set, EPOLL_CTL_ADD, connection->socket, &event) < 0 ||
        epoll_ctl(set, EPOLL_CTL_ADD, self, &event) < 0 ||
        epoll_ctl(set, EPOLL_CTL_ADD, port->bell, &event) < 0) {
        result = -errno;
        if (self >= 0)
            close(self);
        close(set);
    } else {
        port->set = set;
        port->handle.self = self;
    }
    pump_unlock(connection);
    return result;
}

/* Ask for the bell, and make the descriptor. */
static int bell_ready(struct port *port)
{
    struct ipc_connection *connection = port->handle.connection;
    if (port->bell < 0) {
        Ipc__Control__PortBell message = IPC__CONTROL__PORT_BELL__INIT;
        message.port = port->handle.id;
        const ProtobufCMessage *reply;
        int result = request_fds_of(connection, &port->handle, IPC__CONTROL__TYPE__PORT_BELL, &message.base,
                                    IPC__CONTROL__TYPE__DONE, &reply, &port->bell, 1, NULL);
        if (result < 0)
            return result;
        request_done(connection);
    }
    return port->set >= 0 ? 0 : make_descriptor(port);
}

int port_set(const struct handle *handle)
{
    return ((const struct port *)(const void *)((const char *)handle - offsetof(struct port, handle)))->set;
}

int port_fd(struct port *port)
{
    int result = port_enter(port);
    if (result == 0)
        result = bell_ready(port);
    return result < 0 ? result : port->set;
}

static void make_readable(struct port *port)
{
    if (port->handle.self >= 0)
        (void)!write(port->handle.self, &(uint64_t){1}, sizeof(uint64_t));
}

/* Bells of the router's that were refused: false if they still are. */
static bool rung(struct port *port)
{
    if (port->writer.unrung)
        lane_writer_ring_armed(&port->writer);
    if (port->reader.unrung)
        lane_reader_ring(&port->reader);
    return !port->writer.unrung && !port->reader.unrung;
}

int port_quiet(struct port *port, port_look *look, uint64_t goal, uint64_t want)
{
    bool restless = !rung(port);
    if (port->set < 0)
        return look(port, goal);
    uint64_t count;
    (void)!read(port->handle.self, &count, sizeof(count));
    lane_bell_drain(port->bell);
    ipc_connection_dispatch(port->handle.connection);
    port_news(port);
    bool quiet = arm(port, true, want, NULL);
    int result = look(port, goal);
    if (result == 0)
        result = port_over(port);
    if (result != 0 || !quiet || port->reader.position != port->reader.armed_at || restless)
        make_readable(port);
    return result;
}

static int sleep_by_bell(struct port *port, port_look *look, uint64_t goal, uint64_t want, uint64_t until)
{
    int result = bell_ready(port);
    if (result == 0)
        result = port_quiet(port, look, goal, want);
    if (result == 0) {
        port->sleeps++;
        uint64_t now = lane_now();
        uint64_t left = until > now ? until - now : 0;
        struct timespec limit = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
        struct pollfd wait = {.fd = port->set, .events = POLLIN};
        ppoll(&wait, 1, &limit, NULL);
    }
    if (want)
        lane_writer_want_clear(&port->writer);
    make_readable(port); /* what it was armed for is over */
    return result;
}

/* Look a while without looking at the clock. */
static int spin_blind(struct port *port, port_look *look, uint64_t goal)
{
    int result = 0;
    for (int i = 0; i < SPIN_BLIND && (result = look(port, goal)) == 0; i++) {
        if (handle_has_mail(&port->handle))
            port_news(port);
        spin_pause();
    }
    return result;
}

int port_wait(struct port *port, port_look *look, uint64_t goal, uint64_t want, uint64_t deadline)
{
    uint64_t budget = spin_budget(&port->spin);
    int result = budget > 0 ? spin_blind(port, look, goal) : look(port, goal);
    if (result != 0) {
        port->polls++;
        spin_learn(&port->spin, 0, false);
        return result;
    }
    const uint64_t start = lane_now();
    uint64_t now = start, check = start + (port->handle.connection->reconnects ? LOOK_NS : IPC_NET_NS);
    uint64_t spin_until = budget < LANE_NEVER - start ? start + budget : LANE_NEVER;
    bool slept = false;
    for (;;) {
        if (handle_has_mail(&port->handle))
            port_news(port);
        if ((result = port_over(port)) < 0)
            return result;
        bool restless = !rung(port); /* each try has its pauses: that is rest enough */
        if (now >= deadline)
            return -ETIMEDOUT;
        if (now >= check) { /* a broker that was killed sends no mail */
            connection_look(port->handle.connection, &check);
            now = lane_now();
            continue;
        }
        uint64_t net = now + IPC_NET_NS;
        if (now < spin_until || restless) {
            result = spin_blind(port, look, goal);
            if (result == 0 && port->spin.max_ns != IPC_FOREVER)
                spin_yield();
        } else {
            uint64_t until = deadline < net ? deadline : net;
            if (port->handle.connection->reconnects && check < until) /* else the net is to be seen at work */
                until = check;
            bool by_bell = port->set >= 0 || !lane_has_waitv();
            result = by_bell ? sleep_by_bell(port, look, goal, want, until)
                             : sleep_by_futex(port, look, goal, want, until);
            if (result != 0) /* it came while we armed: the wait was over before */
                break;
            slept = true;
            result = look(port, goal);
            port->net += result > 0 && lane_now() >= net;
        }
        now = lane_now();
        if (result != 0)
            break;
    }
    if (result > 0) {
        port->polls += !slept;
        spin_learn(&port->spin, now - start, slept);
    }
    return result;
}

int port_wait_room(struct port *port, port_look *look, uint32_t stride, uint64_t deadline)
{
    uint64_t room = stride + sizeof(uint64_t);
    if (room < port->writer.ring_size / 4)
        room = port->writer.ring_size / 4;
    uint64_t want = port->writer.position + room - port->writer.ring_size;
    int result = port_wait(port, look, stride, want, deadline);
    return result < 0 ? result : 0;
}
