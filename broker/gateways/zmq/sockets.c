/* SPDX-License-Identifier: Apache-2.0
 *
 * The listening sockets, and what their monitors tell: who connects and leaves, whose handshake fails.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "broker/gateways/zmq/gateway.h"

#define HANDSHAKE_MS 10000
#define HEARTBEAT_MS 10000 /* of ZeroMQ's own, toward other machines */
#define LISTEN_MAX   1024
#define LINGER_MS    200 /* not 0: see address_unbind() */

static const struct {
    const char *word;
    int type;
} kinds[ENDPOINT_COUNT] = {
    [ENDPOINT_PUB] = {"pub", ZMQ_SUB},          [ENDPOINT_PUSH] = {"push", ZMQ_PULL},
    [ENDPOINT_SUB] = {"sub", ZMQ_XPUB},         [ENDPOINT_MATCH] = {"match", ZMQ_XPUB},
    [ENDPOINT_ROUTER] = {"router", ZMQ_ROUTER},
};

const char *endpoint_word(enum endpoint which)
{
    return kinds[which].word;
}

void endpoint_drop(struct zmq_gateway *gateway, enum endpoint which, const char *name, const char *why)
{
    const struct log_about about = {.name = name, .reason = endpoint_word(which)};

    gateway->sockets[which].counts.dropped++;
    log_write(LOG_REFUSED, &about, "a message was dropped: %s", why);
}

static void touched(struct zmq_gateway *gateway, struct source *source)
{
    list_entry(source, struct endpoint_socket, source)->touched = true;
    (void)gateway;
}

void endpoint_news(struct zmq_gateway *gateway, struct endpoint_socket *socket)
{
    const bool watched = access_rules(gateway) &&
                         (socket->which == ENDPOINT_SUB || socket->which == ENDPOINT_MATCH);
    unsigned char event[6];
    char address[256];

    gateway->now_ns = time_monotonic_ns();
    while (zmq_recv(socket->monitor, event, sizeof(event), ZMQ_DONTWAIT) == (int)sizeof(event)) {
        uint16_t kind;
        uint32_t value;
        int size = zmq_recv(socket->monitor, address, sizeof(address) - 1, ZMQ_DONTWAIT);

        memcpy(&kind, event, sizeof(kind));
        memcpy(&value, event + 2, sizeof(value));
        address[size < 0 ? 0 : size < (int)sizeof(address) ? size : (int)sizeof(address) - 1] = '\0';
        if (kind == ZMQ_EVENT_ACCEPTED) {
            socket->counts.connections++;
            if (watched)
                watch_accepted(gateway, socket->which, (int)value, address);
        } else if (kind == ZMQ_EVENT_DISCONNECTED) {
            socket->counts.connections -= socket->counts.connections > 0;
            if (socket->which == ENDPOINT_ROUTER)
                peers_disconnected(gateway, (int)value);
            if (watched)
                watch_disconnected(gateway, socket->which, (int)value);
        } else {
            const struct log_about about = {.name = address, .reason = endpoint_word(socket->which)};

            socket->counts.handshakes_failed++;
            if (kind == ZMQ_EVENT_ACCEPT_FAILED)
                log_write(LOG_REFUSED, &about, "a connection could not be accepted: %s",
                          strerror((int)value));
            else
                log_write(LOG_REFUSED, &about, "a handshake failed (%u)", (unsigned)value);
        }
    }
}

static void monitored(struct zmq_gateway *gateway, struct source *source)
{
    endpoint_news(gateway, list_entry(source, struct endpoint_socket, monitor_source));
}

static int set(void *socket, int option, int value)
{
    return zmq_setsockopt(socket, option, &value, sizeof(value)) < 0 ? -errno : 0;
}

static int descriptor(void *socket)
{
    int fd = -1;
    size_t size = sizeof(fd);

    return zmq_getsockopt(socket, ZMQ_FD, &fd, &size) < 0 ? -errno : fd;
}

static int prepare(struct zmq_gateway *gateway, struct endpoint_socket *socket)
{
    const struct options *options = &gateway->options;
    int64_t most = (int64_t)options->message_size_max;
    int water = (int)options->high_water, failed = 0;

    failed |= set(socket->socket, ZMQ_LINGER, LINGER_MS);
    failed |= set(socket->socket, ZMQ_SNDHWM, water) | set(socket->socket, ZMQ_RCVHWM, water);
    failed |= set(socket->socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) |
              set(socket->socket, ZMQ_BACKLOG, LISTEN_MAX);
    failed |= zmq_setsockopt(socket->socket, ZMQ_MAXMSGSIZE, &most, sizeof(most));
    failed |= zmq_setsockopt(socket->socket, ZMQ_ZAP_DOMAIN, "ipcd", 4);
    if (kinds[socket->which].type == ZMQ_ROUTER)
        failed |= set(socket->socket, ZMQ_ROUTER_MANDATORY, 1) | set(socket->socket, ZMQ_ROUTER_HANDOVER, 1);
    if (kinds[socket->which].type == ZMQ_XPUB)
        failed |= set(socket->socket, ZMQ_XPUB_NODROP, 1) |
                  set(socket->socket, ZMQ_XPUB_MANUAL, access_rules(gateway));
    if (kinds[socket->which].type == ZMQ_SUB)
        failed |= zmq_setsockopt(socket->socket, ZMQ_SUBSCRIBE, "", 0);
    return failed ? -EINVAL : 0;
}

static int watch(struct zmq_gateway *gateway, struct endpoint_socket *socket)
{
    const int events = ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_ACCEPT_FAILED | ZMQ_EVENT_DISCONNECTED |
                       ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                       ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    char name[64];

    (void)snprintf(name, sizeof(name), "inproc://monitor-%s", endpoint_word(socket->which));
    if (zmq_socket_monitor(socket->socket, name, events) < 0)
        return -errno;
    socket->monitor = zmq_socket(gateway->context, ZMQ_PAIR);
    if (!socket->monitor || set(socket->monitor, ZMQ_LINGER, 0) < 0 ||
        set(socket->monitor, ZMQ_RCVHWM, 0) < 0 || zmq_connect(socket->monitor, name) < 0)
        return -errno;
    int result = source_add(gateway, &socket->monitor_source, descriptor(socket->monitor), monitored);
    monitored(gateway, &socket->monitor_source); /* who has never looked is not woken */
    return result;
}

static int open_one(struct zmq_gateway *gateway, struct endpoint_socket *socket)
{
    int result;

    socket->socket = zmq_socket(gateway->context, kinds[socket->which].type);
    if (!socket->socket)
        return -errno;
    result = prepare(gateway, socket);
    if (result == 0)
        result = watch(gateway, socket);
    if (result == 0)
        result = source_add(gateway, &socket->source, descriptor(socket->socket), touched);
    socket->touched = true;
    return result;
}

/* Each address listens with the options that hold when it is bound: the kernel tells who dies on this machine, and who may
 * reach a file. */
static int prepare_address(struct zmq_gateway *gateway, struct endpoint_socket *socket, bool file)
{
    const bool curve = gateway->curve_secret[0] && !file;
    int result = set(socket->socket, ZMQ_CURVE_SERVER, curve);

    if (curve &&
        zmq_setsockopt(socket->socket, ZMQ_CURVE_SECRETKEY, gateway->curve_secret, CURVE_KEY_SIZE) < 0)
        result = -errno;
    return result < 0 ? result : set(socket->socket, ZMQ_HEARTBEAT_IVL, file ? 0 : HEARTBEAT_MS);
}

/* NULL: it is no file. */
static const char *file_of(const char *address)
{
    return strncmp(address, "ipc://", 6) == 0 ? address + 6 : NULL;
}

/* Reached by who may reach the broker, if that is our own user or group. */
static mode_t mode_like_broker(const struct gateway *common)
{
    struct stat st;

    return stat(common->address, &st) == 0 && (st.st_mode & S_IWGRP) && st.st_gid == getegid() ? 0660 : 0600;
}

int address_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    struct zmq_gateway *gateway = binding->gateway->context;
    const struct binding *given = binding->settings;
    struct endpoint_socket *socket = &gateway->sockets[given->endpoint];
    char address[sizeof(given->address) + 16];
    const char *file;
    mode_t before;
    int result;

    if (given->address[0])
        (void)snprintf(address, sizeof(address), "%s", given->address);
    else
        (void)snprintf(address, sizeof(address), "ipc://%s/zmq-%s", gateway->options.folder,
                       endpoint_word((enum endpoint)given->endpoint));
    file = file_of(address);
    result = prepare_address(gateway, socket, file != NULL);
    before = umask(0177);
    if (result == 0 && zmq_bind(socket->socket, address) < 0)
        result = -errno;
    (void)umask(before);
    if (result == 0 && file &&
        chmod(file, given->mode ? (mode_t)given->mode : mode_like_broker(binding->gateway)) < 0)
        result = -errno;
    if (result == 0 && !(binding->open = strdup(address)))
        result = -ENOMEM;
    if (result < 0)
        (void)snprintf(why, GATEWAY_WHY_SIZE, "%.160s cannot be listened on: %s", address,
                       zmq_strerror(-result));
    socket->touched = true; /* the calls may have taken an edge */
    return result;
}

void address_unbind(struct gateway_binding *binding)
{
    struct zmq_gateway *gateway = binding->gateway->context;
    const struct binding *given = binding->settings;
    const char *file = file_of(binding->open);

    /* Not at the end, when nobody sees to the socket before it is closed: libzmq 4.3.4 aborts if a peer leaves meanwhile who is
     * just being sent a message of several frames. */
    if (!gateway->common->over && !gateway->common->stopping)
        (void)zmq_unbind(gateway->sockets[given->endpoint].socket, binding->open);
    gateway->sockets[given->endpoint].touched = true;
    if (access_rules(gateway))
        watch_unbound(gateway, (enum endpoint)given->endpoint, binding->open);
    if (file)
        (void)unlink(file); /* libzmq leaves it */
    free(binding->open);
}

int sockets_open(struct zmq_gateway *gateway)
{
    int result;

    gateway->context = zmq_ctx_new();
    if (!gateway->context)
        return -errno;
    result = security_zap_open(gateway);
    for (unsigned i = 0; result == 0 && i < ENDPOINT_COUNT; i++) {
        gateway->sockets[i].which = (enum endpoint)i;
        result = open_one(gateway, &gateway->sockets[i]);
    }
    return result;
}

void sockets_close(struct zmq_gateway *gateway)
{
    for (unsigned i = 0; i < ENDPOINT_COUNT; i++) {
        if (!gateway->sockets[i].socket)
            continue;
        if (gateway->sockets[i].monitor) {
            /* First: libzmq loses the memory of an event that it cannot send any more. */
            (void)zmq_socket_monitor(gateway->sockets[i].socket, NULL, 0);
            (void)zmq_close(gateway->sockets[i].monitor);
        }
        (void)zmq_close(gateway->sockets[i].socket);
    }
    if (gateway->zap)
        (void)zmq_close(gateway->zap);
    if (gateway->context)
        (void)zmq_ctx_term(gateway->context);
}
