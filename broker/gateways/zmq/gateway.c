/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/gateways/zmq/gateway.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

void session_over(struct zmq_gateway *gateway)
{
    gateway->common->over = true;
}

/* ---- sources --------------------------------------------------------------------------------------------------- */

static void ready(struct gateway_source *watch, uint32_t events)
{
    struct source *source = list_entry(watch, struct source, watch);

    (void)events;
    if (source->ready)
        source->ready(watch->context, source);
}

int source_add(struct zmq_gateway *gateway, struct source *source, int fd,
               void (*when_ready)(struct zmq_gateway *, struct source *))
{
    source->watch = (struct gateway_source){.fd = fd, .ready = ready, .context = gateway};
    source->ready = when_ready;
    return fd < 0 ? fd : gateway_watch(gateway->common, &source->watch, EPOLLIN);
}

void source_enable(struct zmq_gateway *gateway, struct source *source, bool enabled)
{
    if (source->watch.watched)
        (void)gateway_watch(gateway->common, &source->watch, enabled ? EPOLLIN : 0);
}

void source_bury(struct zmq_gateway *gateway, struct source *source, void *memory)
{
    gateway_unwatch(gateway->common, &source->watch);
    source->ready = NULL;
    source->memory = memory;
    source->next_dead = gateway->dead;
    gateway->dead = source;
}

static void bury(struct zmq_gateway *gateway)
{
    while (gateway->dead) {
        struct source *source = gateway->dead;

        gateway->dead = source->next_dead;
        free(source->memory);
    }
}

bool buffer_grow(struct buffer *buffer, size_t size)
{
    if (buffer->capacity < size) {
        unsigned char *bytes = realloc(buffer->bytes, size);

        if (!bytes)
            return false;
        *buffer = (struct buffer){bytes, size};
    }
    return true;
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

static void take(struct zmq_gateway *gateway, struct endpoint_socket *socket, struct inbound *in)
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
        subscribe_plain(gateway, socket->which, &in->parts[0]);
        return;
    case ENDPOINT_PUB:
    case ENDPOINT_PUSH:
        if (wire_parse_plain(in->frames, in->count, &message, &text) < 0) {
            socket->counts.bad++;
            endpoint_drop(gateway, socket->which, NULL, text);
            return;
        }
        if (access_message(gateway, socket->which, &in->parts[0], message.name))
            outlet_take(gateway, socket->which == ENDPOINT_PUB ? OUTLET_TOPIC : OUTLET_QUEUE, &message, NULL);
        return;
    case ENDPOINT_COUNT:
        return;
    }
}

/* Returns whether there may be more. */
static bool drain(struct zmq_gateway *gateway, struct endpoint_socket *socket)
{
    for (unsigned n = 0; n < ROUND_MAX; n++) {
        struct inbound in;

        /* What waits for room in a queue holds up those that push, and nobody else. */
        if (socket->which == ENDPOINT_PUSH && gateway->overfull)
            return false;
        if (!receive(socket->socket, &in)) {
            socket->touched = socket->skipping = false;
            return false;
        }
        take(gateway, socket, &in);
        while (in.count > 0)
            (void)zmq_msg_close(&in.parts[--in.count]);
    }
    return true;
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

static void news(struct zmq_gateway *gateway, struct source *source)
{
    ipc_connection *connection = source == &gateway->in_source ? gateway->in : gateway->out;
    struct ipc_event event;

    if (ipc_connection_dispatch(connection) < 0)
        session_over(gateway);
    while (ipc_connection_next_event(connection, &event) != 0)
        continue;
}

static uint64_t wanted_at_ns(const struct zmq_gateway *gateway)
{
    uint64_t at_ns = gateway->probe_at_ns;

    if (gateway->holding_topics && gateway->now_ns + RETRY_NS < at_ns)
        at_ns = gateway->now_ns + RETRY_NS;
    if ((gateway->holding || gateway->heartbeats || at_ns != UINT64_MAX || gateway->blocked ||
         gateway->idle_pulls || gateway->call_count || gateway->overlap_ns) &&
        gateway->now_ns + HOUSEKEEPING_NS < at_ns)
        at_ns = gateway->now_ns + HOUSEKEEPING_NS;
    return at_ns;
}

uint64_t session_round(struct gateway *common)
{
    struct zmq_gateway *gateway = common->context;
    bool more = false;

    gateway->now_ns = time_monotonic_ns();
    bury(gateway);
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
        pulls_check(gateway);
        services_check(gateway);
        channels_check(gateway);
    }
    for (size_t i = 0; i < ENDPOINT_COUNT; i++)
        more = more || (gateway->sockets[i].touched && !(i == ENDPOINT_PUSH && gateway->overfull));
    return more ? 0 : wanted_at_ns(gateway);
}

static int open_all(struct zmq_gateway *gateway)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    int result;

    options.name = "ipcd-zmq in";
    result = ipc_connection_open(&gateway->in, gateway->common->address, &options, &error);
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "no second session with the broker: %s", error.text);
        session_over(gateway); /* to be tried again */
        return result;
    }
    gateway->out = gateway->common->connection;
    result = source_add(gateway, &gateway->in_source, ipc_connection_fd(gateway->in), news);
    if (result == 0)
        result = source_add(gateway, &gateway->out_source, ipc_connection_fd(gateway->out), news);
    return result < 0 ? result : sockets_open(gateway);
}

static int prepare(struct zmq_gateway *gateway)
{
    struct hash *const tables[] = {&gateway->peers,    &gateway->peer_numbers, &gateway->outlets,
                                   &gateway->services, &gateway->requests,     &gateway->topics,
                                   &gateway->watchers, &gateway->due};

    gateway->opened = true;
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
    return buffer_grow(&gateway->buffer, 65536) ? 0 : -ENOMEM;
}

int session_open(struct gateway *common)
{
    struct zmq_gateway *gateway = common->context;
    int result = prepare(gateway);

    if (result == 0)
        result = open_all(gateway);
    if (result == 0)
        log_write(LOG_STARTED, NULL, "ipcd-zmq " IPCD_VERSION " listens in %s, epoch %llu",
                  gateway->options.folder, (unsigned long long)gateway->epoch);
    else if (!common->over)
        log_write(LOG_SYSTEM, NULL, "cannot listen: %s", strerror(-result));
    return result;
}

void session_close(struct gateway *common)
{
    struct zmq_gateway *gateway = common->context;

    if (!gateway->opened)
        return;
    peers_end(gateway);
    outlets_end(gateway);
    services_end(gateway);
    watch_end(gateway);
    subscribe_end(gateway);
    access_end(gateway);
    for (size_t i = 0; i < ENDPOINT_COUNT; i++) {
        gateway_unwatch(common, &gateway->sockets[i].source.watch);
        gateway_unwatch(common, &gateway->sockets[i].monitor_source.watch);
    }
    gateway_unwatch(common, &gateway->zap_source.watch);
    gateway_unwatch(common, &gateway->in_source.watch);
    gateway_unwatch(common, &gateway->out_source.watch);
    sockets_close(gateway);
    bury(gateway);
    ipc_connection_close(gateway->in);
    hash_done(&gateway->peers);
    hash_done(&gateway->peer_numbers);
    hash_done(&gateway->outlets);
    hash_done(&gateway->services);
    hash_done(&gateway->requests);
    hash_done(&gateway->topics);
    hash_done(&gateway->watchers);
    hash_done(&gateway->due);
    wire_text_free(&gateway->text);
    free(gateway->buffer.bytes);
    memset((char *)gateway + offsetof(struct zmq_gateway, opened), 0,
           sizeof(*gateway) - offsetof(struct zmq_gateway, opened));
}
