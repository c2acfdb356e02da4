/* SPDX-License-Identifier: Apache-2.0
 *
 * A port from the session's side: what a producer and a consumer have in common. It is a handle, a lane to
 * the router, a lane from it, and the ways to wait for either.
 */
#ifndef IPC_PATTERNS_PORT_H
#define IPC_PATTERNS_PORT_H

#include "libipc/lane/reader.h"
#include "libipc/lane/writer.h"
#include "libipc/patterns/spin.h"
#include "libipc/session/session.h"

struct port {
    struct handle handle;
    struct lane_writer writer; /* what we say */
    struct lane_reader reader; /* what the router says */
    struct ipc_port *own;
    struct ipc_port *other; /* mapped for reading */
    int over;               /* 0, or what every call returns: the port has ended */
    bool closed;            /* the core was told that we are done with it */
    int set;                /* descriptor of the user: socket, self and bell; or -1 */
    int bell;               /* by which the router rings us, or -1 */
    struct spin spin;
    uint64_t slept_at;
    uint64_t sleeps;
    uint64_t polls;
    uint64_t net;
    char queue[IPC_MAX_NAME_SIZE + 1];
};

/* What is asked for. */
struct port_wish {
    const struct handle_type *type;
    const char *queue;
    bool consumer;
    uint32_t ring_size;
    uint32_t prefetch;
    int64_t spin_max_ns;
};

/* Open it. On success the connection's lock is not held, and the core's answer is in *opened but for its
 * strings. Ended by port_close(). 0 or negative errno with *error. */
int port_open(struct port *port, struct ipc_connection *connection, const struct port_wish *wish,
              Ipc__Control__PortOpened *opened, uint32_t *message_size_max, struct ipc_error *error);

/* Put a new one under the connection's descriptor, if that is in use. */
int port_join(struct port *port, struct ipc_error *error);

/* End it, and let go of everything but its memory. Also in a forked child. */
void port_close(struct port *port);

/* Take in what the core has to say. */
void port_news(struct port *port);

/* A port that has ended is given back to the core once nobody looks at it any more. */
void port_give_back(struct port *port);

/* 0, or the negative errno with which calls on it fail. */
static inline int port_over(const struct port *port)
{
    if (__builtin_expect(port->over, 0))
        return port->over;
    if (__builtin_expect(port->writer.faulted, 0))
        return -EPROTO;
    return __builtin_expect(handle_ended(&port->handle), 0) ? -EPIPE : 0;
}

/* At the start of every call. */
static inline int port_enter(struct port *port)
{
    if (__builtin_expect(guard_foreign(port->handle.connection), 0))
        return -ECHILD;
    if (__builtin_expect(handle_has_mail(&port->handle), 0))
        port_news(port);
    return port_over(port);
}

/* Whether what is waited for is there: > 0; 0 not yet; negative errno. `goal` is for it to know. */
typedef int port_look(struct port *port, uint64_t goal);

/* Wait for it; it depends on what the router says, and, if `want` is not 0, on the router's cursor reaching
 * that. Returns what look returned, or -ETIMEDOUT, -EIDRM, -EACCES, -EPIPE, -EPROTO. */
int port_wait(struct port *port, port_look *look, uint64_t goal, uint64_t want, uint64_t deadline);

/* Wait for room for a record of that stride, which `look` finds with lane_writer_make_room(). 0 or as
 * port_wait(). */
int port_wait_room(struct port *port, port_look *look, uint32_t stride, uint64_t deadline);

/* The user's descriptor; makes it and asks for the bell at first. */
int port_fd(struct port *port);
/* The same, as it is: for struct handle_type. */
int port_set(const struct handle *handle);

/* If the descriptor is in use, make it quiet, and have it ring when there is a record or the router's cursor
 * passes `want` (0: not for that). Returns what look returned. */
int port_quiet(struct port *port, port_look *look, uint64_t goal, uint64_t want);

#endif
