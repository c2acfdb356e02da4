/* SPDX-License-Identifier: Apache-2.0 */
#include <systemd/sd-daemon.h>

#include "broker/gateways/zmq/gateway.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define EVENTS_MAX 64

void gateway_fail(struct gateway *gateway, const char *format, ...)
{
    char text[512];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (!gateway->stopping)
        log_write(LOG_SYSTEM, NULL, "%s", text);
    gateway->stopping = true;
    gateway->exit_status = EXIT_FAILURE;
}

/* ---- sources --------------------------------------------------------------------------------------------------- */

int source_add(struct gateway *gateway, struct source *source, int fd,
               void (*ready)(struct gateway *, struct source *))
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};

    source->fd = fd;
    source->ready = ready;
    source->added = source->enabled = fd >= 0 && epoll_ctl(gateway->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
    return fd < 0 ? fd : source->added ? 0 : -errno;
}

void source_enable(struct gateway *gateway, struct source *source, bool enabled)
{
    struct epoll_event event = {.events = enabled ? EPOLLIN : 0, .data.ptr = source};

    if (source->enabled == enabled || !source->added)
        return;
    source->enabled = enabled;
    (void)epoll_ctl(gateway->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

void source_bury(struct gateway *gateway, struct source *source, void *memory)
{
    if (source->added)
        (void)epoll_ctl(gateway->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->added = false;
    source->ready = NULL;
    source->memory = memory;
    source->next_dead = gateway->dead;
    gateway->dead = source;
}

static void bury(struct gateway *gateway)
{
    while (gateway->dead) {
        struct source *source = gateway->dead;

        gateway->dead = source->next_dead;
        free(source->memory);
    }
}

unsigned char *gateway_buffer(struct gateway *gateway, size_t size)
{
    if (gateway->capacity < size) {
        unsigned char *buffer = realloc(gateway->buffer, size);

        if (!buffer)
            return NULL;
        gateway->buffer = buffer;
        gateway->capacity = size;
    }
    return gateway->buffer;
}

/* ---- sockets of ZeroMQ ----------------------------------------------------------------------------------------- */

struct inbound {
    zmq_msg_t parts[WIRE_FRAMES_MAX + 2]; /* the routing id, and one more than may be */
    struct wire_frame frames[WIRE_FRAMES_MAX + 2];
    size_t count;
};

static bool receive(void *socket, struct inbound *in)
{
    const size_t most = sizeof(in->parts) / sizeof(in->parts[0]);
    bool more = true;

    for (in->count = 0; more; in->count += in->count < most) {
        zmq_msg_t extra, *part = in->count < most ? &in->parts[in->count] : &extra;

        (void)zmq_msg_init(part);
        if (zmq_msg_recv(part, socket, ZMQ_DONTWAIT) < 0) {
            (void)zmq_msg_close(part);
            return false; /* the parts of a message come together: it is the first one */
        }
        more = zmq_msg_more(part);
        if (part == &extra)
            (void)zmq_msg_close(part);
        else
            in->frames[in->count] = (struct wire_frame){zmq_msg_data(part), zmq_msg_size(part)};
    }
    return true;
}

static void take(struct gateway *gateway, struct endpoint_socket *socket, struct inbound *in)
{
    struct wire_message message;
    const char *text = NULL;

    socket->counts.received++;
    switch (socket->which) {
    case ENDPOINT_ROUTER:
        peer_receive(gateway, &in->parts[0], in->frames + 1, in->count - 1);
        return;
    case ENDPOINT_SUB:
    case ENDPOINT_MATCH:
        subscribe_plain(gateway, socket->which, &in->frames[0]);
        return;
    case ENDPOINT_PUB:
    case ENDPOINT_PUSH:
        if (wire_parse_plain(in->frames, in->count, &message, &text) < 0) {
            socket->counts.bad++;
            endpoint_drop(gateway, socket->which, NULL, text);
            return;
        }
        outlet_take(gateway, socket->which == ENDPOINT_PUB ? OUTLET_TOPIC : OUTLET_QUEUE, &message, NULL);
        return;
    case ENDPOINT_COUNT:
        return;
    }
}

/* Returns whether there may be more. */
static bool drain(struct gateway *gateway, struct endpoint_socket *socket)
{
    for (unsigned n = 0; n < ROUND_MAX; n++) {
        struct inbound in;

        /* What waits for room in a queue holds up those that push, and nobody else. */
        if (socket->which == ENDPOINT_PUSH && gateway->overfull)
            return false;
        if (!receive(socket->socket, &in)) {
            socket->touched = false;
            return false;
        }
        take(gateway, socket, &in);
        while (in.count > 0)
            (void)zmq_msg_close(&in.parts[--in.count]);
    }
    return true;
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

static void news(struct gateway *gateway, struct source *source)
{
    ipc_connection *connection = source == &gateway->in_source ? gateway->in : gateway->out;
    struct ipc_event event;

    if (ipc_connection_dispatch(connection) < 0)
        gateway_fail(gateway, "the session with the broker is over");
    while (ipc_connection_next_event(connection, &event) != 0)
        continue;
}

static void signalled(struct gateway *gateway, struct source *source)
{
    struct signalfd_siginfo info;

    if (read(source->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        gateway->stopping = true;
}

static int timeout_ms(const struct gateway *gateway)
{
    if (gateway->probe_at_ns <= gateway->now_ns)
        return 0;
    if (gateway->probe_at_ns - gateway->now_ns < HOUSEKEEPING_NS)
        return (int)((gateway->probe_at_ns - gateway->now_ns) / 1000000) + 1;
    if (gateway->holding_topics)
        return (int)(RETRY_NS / 1000000);
    if (gateway->holding || gateway->heartbeats || gateway->probe_at_ns != UINT64_MAX || gateway->blocked ||
        gateway->call_count)
        return (int)(HOUSEKEEPING_NS / 1000000);
    return -1;
}

static void round_of(struct gateway *gateway)
{
    struct epoll_event events[EVENTS_MAX];
    bool more = false;

    for (size_t i = 0; i < ENDPOINT_COUNT; i++)
        if (gateway->sockets[i].touched)
            more = drain(gateway, &gateway->sockets[i]) || more;
    if (gateway->blocked)
        peers_retry(gateway);
    if (gateway->holding)
        outlets_retry(gateway);
    if (gateway->now_ns >= gateway->probe_at_ns)
        peers_probe(gateway);
    if (gateway->now_ns >= gateway->housekeeping_ns) {
        gateway->housekeeping_ns = gateway->now_ns + HOUSEKEEPING_NS;
        peers_check(gateway);
        services_check(gateway);
    }
    for (size_t i = 0; i < ENDPOINT_COUNT; i++)
        more = more || (gateway->sockets[i].touched && !(i == ENDPOINT_PUSH && gateway->overfull));
    int count = epoll_wait(gateway->epoll_fd, events, EVENTS_MAX, more ? 0 : timeout_ms(gateway));
    gateway->now_ns = time_monotonic_ns();
    for (int i = 0; i < count; i++) {
        struct source *source = events[i].data.ptr;

        if (source->ready)
            source->ready(gateway, source);
    }
    bury(gateway);
}

static int connect_to_broker(struct gateway *gateway, ipc_connection **ret, struct source *source,
                             const char *name)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error;
    int result;

    options.name = name;
    result = ipc_connection_open(ret, gateway->options.broker, &options, &error);
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "no session with the broker: %s", error.text);
        return result;
    }
    return source_add(gateway, source, ipc_connection_fd(*ret), news);
}

static int open_all(struct gateway *gateway)
{
    sigset_t signals;
    int result;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL); /* before libzmq has threads */
    gateway->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (gateway->epoll_fd < 0)
        return -errno;
    result = source_add(gateway, &gateway->signal_source, signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK),
                        signalled);
    if (result == 0)
        result = connect_to_broker(gateway, &gateway->in, &gateway->in_source, "ipcd-zmq in");
    if (result == 0)
        result = connect_to_broker(gateway, &gateway->out, &gateway->out_source, "ipcd-zmq out");
    if (result == 0)
        result = sockets_open(gateway);
    return result;
}

static int prepare(struct gateway *gateway)
{
    struct hash *const tables[] = {&gateway->peers,    &gateway->peer_numbers, &gateway->outlets,
                                   &gateway->services, &gateway->requests,     &gateway->topics};

    gateway->epoll_fd = -1;
    list_init(&gateway->peer_list);
    list_init(&gateway->outlet_list);
    list_init(&gateway->channels);
    list_init(&gateway->syncs);
    gateway->now_ns = time_monotonic_ns();
    gateway->probe_at_ns = UINT64_MAX;
    if (getrandom(gateway->secret, sizeof(gateway->secret), 0) != (ssize_t)sizeof(gateway->secret) ||
        getrandom(&gateway->epoch, sizeof(gateway->epoch), 0) != (ssize_t)sizeof(gateway->epoch))
        return -EIO;
    gateway->epoch >>= 12; /* exact in a JavaScript number */
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
        if (hash_init(tables[i]) < 0)
            return -ENOMEM;
    return gateway_buffer(gateway, 65536) ? 0 : -ENOMEM;
}

static void done(struct gateway *gateway)
{
    peers_end(gateway);
    outlets_end(gateway);
    services_end(gateway);
    subscribe_end(gateway);
    sockets_close(gateway);
    bury(gateway);
    ipc_connection_close(gateway->in);
    ipc_connection_close(gateway->out);
    hash_done(&gateway->peers);
    hash_done(&gateway->peer_numbers);
    hash_done(&gateway->outlets);
    hash_done(&gateway->services);
    hash_done(&gateway->requests);
    hash_done(&gateway->topics);
    wire_text_free(&gateway->text);
    free(gateway->buffer);
    free(gateway->curve_clients);
    if (gateway->signal_source.added)
        fd_close(gateway->signal_source.fd);
    fd_close(gateway->epoll_fd);
}

static void ready(const struct gateway *gateway)
{
    log_write(LOG_STARTED, NULL, "ipcd-zmq " IPCD_VERSION " listens, epoch %llu",
              (unsigned long long)gateway->epoch);
    (void)sd_notifyf(0, "READY=1\nSTATUS=Listening in %s.", gateway->options.folder);
}

int gateway_run(struct gateway *gateway)
{
    int result = prepare(gateway);

    if (result == 0)
        result = open_all(gateway);
    if (result < 0)
        gateway_fail(gateway, "cannot start: %s", strerror(-result));
    else
        ready(gateway);
    while (!gateway->stopping)
        round_of(gateway);
    done(gateway);
    return gateway->exit_status;
}
