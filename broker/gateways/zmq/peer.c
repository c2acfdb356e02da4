/* SPDX-License-Identifier: Apache-2.0
 *
 * Peers of the router: who said HELLO, what they are answered, and how they leave. A peer that is gone keeps its place
 * until peers_check(), so that whoever holds it may finish.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "broker/gateways/zmq/gateway.h"
#include "proto/limits.h"

#define PROBE_LEAST_NS UINT64_C(1000000)
#define PROBE_MOST_NS  UINT64_C(10000000000)

static const struct wire_frame nothing = {"", 0};

struct kept {
    struct list link;
    size_t sizes[5]; /* command, id, name, properties, body */
    unsigned char bytes[];
};

static uint64_t key_of(const struct zmq_gateway *gateway, const void *id, size_t size)
{
    return hash_string(gateway->secret, id, size);
}

static struct peer *find(const struct zmq_gateway *gateway, const void *id, size_t size)
{
    struct hash_node *node = hash_find(&gateway->peers, key_of(gateway, id, size));

    for (; node; node = hash_find_next(node)) {
        struct peer *peer = list_entry(node, struct peer, node);

        if (peer->id_size == size && memcmp(peer->id, id, size) == 0)
            return peer;
    }
    return NULL;
}

struct peer *peer_by_number(const struct zmq_gateway *gateway, uint64_t number)
{
    struct hash_node *node = hash_find(&gateway->peer_numbers, number);
    struct peer *peer = node ? list_entry(node, struct peer, number_node) : NULL;

    return peer && !peer->gone ? peer : NULL;
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static int send_frame(void *socket, const void *data, size_t size, int flags)
{
    return zmq_send(socket, data, size, flags | ZMQ_DONTWAIT) < 0 ? -errno : 0;
}

/* To whoever has that routing id. Only the first frame can fail: room is looked for there, for all of them. */
static int send_to(struct zmq_gateway *gateway, const void *id, size_t id_size,
                   const struct wire_frame frames[5])
{
    struct endpoint_socket *router = &gateway->sockets[ENDPOINT_ROUTER];
    unsigned last = 4;
    int result;

    router->touched = true;
    while (last > 0 && frames[last].size == 0)
        last--;
    result = send_frame(router->socket, id, id_size, ZMQ_SNDMORE);
    if (result == 0)
        result = send_frame(router->socket, WIRE_VERSION, strlen(WIRE_VERSION), ZMQ_SNDMORE);
    for (unsigned i = 0; i <= last && result == 0; i++)
        result = send_frame(router->socket, frames[i].data, frames[i].size, i < last ? ZMQ_SNDMORE : 0);
    router->counts.sent += result == 0;
    return result;
}

static void leave(struct peer *peer, const char *why)
{
    const struct log_about about = {.name = peer->name, .reason = peer->identity};

    if (peer->gone)
        return;
    peer->gone = true;
    log_write(LOG_DETACHED, &about, "the peer %llu left: %s", (unsigned long long)peer->number, why);
}

static int keep(struct zmq_gateway *gateway, struct peer *peer, const struct wire_frame frames[5])
{
    size_t size = sizeof(struct kept), at = 0;
    struct kept *kept;

    for (unsigned i = 0; i < 5; i++)
        size += frames[i].size;
    kept = peer->backlog_bytes + size > gateway->options.backlog_max ? NULL : malloc(size);
    if (!kept) {
        leave(peer, "it does not read what it is answered");
        return -EPIPE;
    }
    for (unsigned i = 0; i < 5; i++) {
        kept->sizes[i] = frames[i].size;
        if (frames[i].size)
            memcpy(kept->bytes + at, frames[i].data, frames[i].size);
        at += frames[i].size;
    }
    gateway->blocked += list_empty(&peer->backlog);
    list_append(&peer->backlog, &kept->link);
    peer->backlog_bytes += size;
    return 0;
}

bool peer_ready(const struct peer *peer)
{
    return !peer->gone && list_empty(&peer->backlog);
}

int peer_send(struct zmq_gateway *gateway, struct peer *peer, const char *command, struct wire_frame id,
              const char *name, struct wire_frame properties, struct wire_frame body, bool droppable)
{
    const struct wire_frame frames[5] = {
        {command, strlen(command)}, id, {name, strlen(name)}, properties, body};
    int result;

    if (peer->gone)
        return -EPIPE;
    result = list_empty(&peer->backlog) ? send_to(gateway, peer->id, peer->id_size, frames) : -EAGAIN;
    if (result == 0) {
        peer->sent++;
        return 0;
    }
    if (result == -EAGAIN && droppable) {
        peer->dropped++;
        gateway->sockets[ENDPOINT_ROUTER].counts.dropped++;
        return -EAGAIN;
    }
    if (result == -EAGAIN)
        return keep(gateway, peer, frames);
    leave(peer, "its connection ended");
    return -EPIPE;
}

void peer_ok(struct zmq_gateway *gateway, struct peer *peer, struct wire_frame id)
{
    (void)peer_send(gateway, peer, "OK", id, "", nothing, nothing, false);
}

static struct wire_frame describe(struct zmq_gateway *gateway, int code, const char *text)
{
    const char *name = strerrorname_np(-code);

    wire_text_begin(&gateway->text);
    wire_text_string(&gateway->text, "errno", name ? name : "EIO", strlen(name ? name : "EIO"));
    wire_text_signed(&gateway->text, "code", code);
    wire_text_string(&gateway->text, "text", text, strlen(text));
    return wire_text_end(&gateway->text);
}

void peer_error(struct zmq_gateway *gateway, struct peer *peer, struct wire_frame id, int code,
                const char *text)
{
    (void)peer_send(gateway, peer, "ERROR", id, "", describe(gateway, code, text), nothing, false);
}

/* To somebody who is no peer (yet): if it does not read it, it goes without. */
static void error_to(struct zmq_gateway *gateway, const void *id, size_t id_size, struct wire_frame about,
                     int code, const char *text)
{
    const struct wire_frame frames[5] = {
        {"ERROR", 5}, about, nothing, describe(gateway, code, text), nothing};

    (void)send_to(gateway, id, id_size, frames);
}

static bool retry(struct zmq_gateway *gateway, struct peer *peer)
{
    while (!list_empty(&peer->backlog)) {
        struct kept *kept = list_entry(peer->backlog.next, struct kept, link);
        struct wire_frame frames[5];
        size_t at = 0;
        int result;

        for (unsigned i = 0; i < 5; i++) {
            frames[i] = (struct wire_frame){kept->bytes + at, kept->sizes[i]};
            at += kept->sizes[i];
        }
        result = send_to(gateway, peer->id, peer->id_size, frames);
        if (result == -EAGAIN)
            return false;
        if (result < 0) {
            leave(peer, "its connection ended");
            return false;
        }
        peer->sent++;
        peer->backlog_bytes -= sizeof(*kept) + at;
        list_remove(&kept->link);
        free(kept);
    }
    gateway->blocked--;
    return true;
}

void peers_retry(struct zmq_gateway *gateway)
{
    list_for_each(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);

        if (peer->gone || list_empty(&peer->backlog) || !retry(gateway, peer))
            continue;
        pulls_resume(gateway, peer);
        service_resume(gateway, peer);
    }
}

/* ---- coming and going --------------------------------------------------------------------------------------------- */

static struct peer *peer_new(struct zmq_gateway *gateway, const void *id, size_t size)
{
    struct peer *peer = size > 0 && size <= sizeof(peer->id) ? calloc(1, sizeof(*peer)) : NULL;

    if (!peer)
        return NULL;
    memcpy(peer->id, id, size);
    peer->id_size = size;
    peer->number = ++gateway->next_number;
    list_init(&peer->backlog);
    list_init(&peer->pulls);
    list_init(&peer->subs);
    list_init(&peer->serves);
    list_init(&peer->calls);
    list_append(&gateway->peer_list, &peer->link);
    hash_add(&gateway->peers, &peer->node, key_of(gateway, id, size));
    hash_add(&gateway->peer_numbers, &peer->number_node, peer->number);
    gateway->peer_count++;
    return peer;
}

static void let_go(struct zmq_gateway *gateway, struct peer *peer)
{
    pulls_end(gateway, peer);
    subs_end(gateway, peer);
    service_end_peer(gateway, peer);
}

static void peer_end(struct zmq_gateway *gateway, struct peer *peer)
{
    let_go(gateway, peer);
    gateway->blocked -= !list_empty(&peer->backlog);
    list_for_each_safe(link, &peer->backlog) free(list_entry(link, struct kept, link));
    gateway->heartbeats -= peer->heartbeat_ns > 0;
    hash_remove(&gateway->peers, &peer->node);
    hash_remove(&gateway->peer_numbers, &peer->number_node);
    list_remove(&peer->link);
    visitor_done(&peer->visitor);
    gateway->peer_count--;
    free(peer);
}

void peers_end(struct zmq_gateway *gateway)
{
    list_for_each_safe(link, &gateway->peer_list) peer_end(gateway, list_entry(link, struct peer, link));
}

void peers_tell(const struct zmq_gateway *gateway, Ipc__Gateway__Binding *message)
{
    message->peers = calloc(gateway->peer_count + 1, sizeof(message->peers[0]));
    if (!message->peers)
        return;
    list_for_each(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);
        Ipc__Gateway__Peer *told = peer->gone ? NULL : malloc(sizeof(*told));

        if (!told)
            continue;
        ipc__gateway__peer__init(told);
        told->name = peer->name;
        told->identity = peer->identity;
        told->address = peer->address;
        told->received = peer->received;
        told->sent = peer->sent;
        told->dropped = peer->dropped;
        told->denied = peer->denied;
        told->state = (char *)(uintptr_t)(list_empty(&peer->backlog) ? "open" : "blocked");
        message->peers[message->n_peers++] = told;
    }
}

void peers_check(struct zmq_gateway *gateway)
{
    list_for_each_safe(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);

        if (peer->heartbeat_ns && gateway->now_ns - peer->heard_ns > 3 * peer->heartbeat_ns)
            leave(peer, "it was not heard for three heartbeats");
        if (peer->gone)
            peer_end(gateway, peer);
    }
}

/* A connection of that number ended, or another one has the number by now, or its pipe is not taken down yet, for what it said before
 * is still in it: ask, until it is gone or, long after that, says something. */
void peers_disconnected(struct zmq_gateway *gateway, int fd)
{
    list_for_each(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);

        if (peer->fd == fd && !peer->probe_wait_ns)
            peer->probe_wait_ns = PROBE_LEAST_NS;
    }
    peers_probe(gateway);
}

void peers_probe(struct zmq_gateway *gateway)
{
    gateway->probe_at_ns = UINT64_MAX;
    list_for_each(link, &gateway->peer_list)
    {
        struct peer *peer = list_entry(link, struct peer, link);

        if (!peer->probe_wait_ns)
            continue;
        if (gateway->now_ns >= peer->probe_at_ns) {
#ifndef IPC_PLANT_PEER_UNASKED
            (void)peer_send(gateway, peer, "PING", nothing, "", nothing, nothing, true);
#endif
            peer->probe_at_ns = gateway->now_ns + peer->probe_wait_ns;
            if (peer->probe_wait_ns < PROBE_MOST_NS)
                peer->probe_wait_ns *= 2;
        }
        if (peer->probe_at_ns < gateway->probe_at_ns)
            gateway->probe_at_ns = peer->probe_at_ns;
    }
    peers_check(gateway);
}

/* ---- commands ------------------------------------------------------------------------------------------------------ */

static void copy_property(char *to, size_t size, const zmq_msg_t *message, const char *property)
{
    const char *value = zmq_msg_gets(message, property);

    (void)snprintf(to, size, "%s", value ? value : "");
}

static void hello(struct zmq_gateway *gateway, struct peer *peer, zmq_msg_t *routing_id,
                  const struct wire_message *message, const struct wire_properties *given)
{
    let_go(gateway, peer); /* it begins anew */
    if (access_rules(gateway))
        visitor_take(gateway, &peer->visitor, routing_id);
    copy_property(peer->identity, sizeof(peer->identity), routing_id, "User-Id");
    copy_property(peer->address, sizeof(peer->address), routing_id, "Peer-Address");
    text_clean(peer->name, sizeof(peer->name), given->name ? given->name : "");
    peer->fd = zmq_msg_get(routing_id, ZMQ_SRCFD);
    gateway->heartbeats += (given->heartbeat_ms > 0) - (peer->heartbeat_ns > 0);
    peer->heartbeat_ns = given->heartbeat_ms * 1000000;
    peer->greeted = true;
    wire_text_begin(&gateway->text);
    wire_text_number(&gateway->text, "version", 1);
    wire_text_number(&gateway->text, "epoch", gateway->epoch);
    wire_text_number(&gateway->text, "peer", peer->number);
    wire_text_string(&gateway->text, "identity", peer->identity, strlen(peer->identity));
    wire_text_number(&gateway->text, "message_size_max", gateway->options.message_size_max);
    (void)peer_send(gateway, peer, "WELCOME", message->id, "", wire_text_end(&gateway->text), nothing, false);
}

static void carry_out(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                      const struct wire_properties *given)
{
    switch (message->command) {
    case WIRE_PING:
        (void)peer_send(gateway, peer, "PONG", message->id, "", nothing, nothing, false);
        return;
    case WIRE_BYE:
        (void)peer_send(gateway, peer, "BYE", message->id, "", nothing, nothing, false);
        leave(peer, "it said so");
        peers_check(gateway);
        return;
    case WIRE_PULL:
    case WIRE_ACK:
    case WIRE_NACK:
    case WIRE_STOP:
        pull_command(gateway, peer, message, given);
        return;
    case WIRE_SUB:
    case WIRE_UNSUB:
    case WIRE_SYNC:
        subscribe_command(gateway, peer, message, given);
        return;
    default:
        service_command(gateway, peer, message, given);
        return;
    }
}

/* If there are rules: answers go to a routing id, so nobody may have that of somebody else. Those that libzmq chooses, of five
 * bytes with a zero first, cannot be guessed; another connection with the same one has to say who it is. */
static int check_connection(const struct peer *peer, zmq_msg_t *routing_id, const char **ret_text)
{
    const char *id = zmq_msg_data(routing_id);

#ifdef IPC_PLANT_ROUTING_CHOSEN
    return 0;
#endif
    if (zmq_msg_size(routing_id) != 5 || id[0] != 0) {
        *ret_text = "where there are rules the gateway chooses routing ids: leave ZMQ_ROUTING_ID alone";
        return -EINVAL;
    }
    if (peer && peer->visitor.connection != access_connection(routing_id)) {
        *ret_text = "say HELLO first, and after each new connection";
        return -ENOTCONN;
    }
    return 0;
}

void peer_receive(struct zmq_gateway *gateway, zmq_msg_t *routing_id, const struct wire_frame *frames,
                  size_t count)
{
    static struct wire_properties given; /* large; this thread's */
    struct endpoint_counts *counts = &gateway->sockets[ENDPOINT_ROUTER].counts;
    const void *id = zmq_msg_data(routing_id);
    size_t id_size = zmq_msg_size(routing_id);
    struct peer *peer = find(gateway, id, id_size);
    struct wire_message message;
    const char *text = NULL;
    int result = wire_parse(frames, count, &message, &text);

    if (peer && peer->gone) {
        peers_check(gateway);
        peer = NULL;
    }
    if (result == 0 && !peer && message.command != WIRE_HELLO) {
        result = -ENOTCONN;
        text = "say HELLO first, and after each new connection";
    }
    if (result == 0 && access_rules(gateway))
        result = check_connection(peer, routing_id, &text);
    /* Messages on their way into topics and queues are taken apart there, later if they have to wait. */
    const bool later = result == 0 && (message.command == WIRE_PUB || message.command == WIRE_SEND);
    if (result == 0 && !later)
        result = wire_properties_parse(&message.properties, &given, &text);
    if (result == 0 && !peer) {
        peer = gateway->peer_count < gateway->options.connections_max ? peer_new(gateway, id, id_size) : NULL;
        result = peer ? 0 : -EDQUOT;
        text = "there are as many peers as allowed (--connections-max)";
        if (!peer)
            wire_properties_free(&given);
    }
    if (result != 0) {
        const struct log_about about = {.name = peer ? peer->name : "",
                                        .reason = peer ? peer->identity : "router"};

        counts->bad++;
        log_write(LOG_BAD_INPUT, &about, "a message was refused: %s", text);
        error_to(gateway, id, id_size, message.id, result, text);
        return;
    }
    peer->received++;
    peer->heard_ns = gateway->now_ns;
    if (peer->probe_wait_ns >= PROBE_MOST_NS) /* before that, it may have been said when it was still there */
        peer->probe_wait_ns = peer->probe_at_ns = 0;
    if (!access_peer(gateway, peer, &message)) {
        if (!later)
            wire_properties_free(&given);
        return;
    }
    if (later) {
        outlet_take(gateway, message.command == WIRE_PUB ? OUTLET_TOPIC : OUTLET_QUEUE, &message, peer);
        return;
    }
    if (message.command == WIRE_HELLO)
        hello(gateway, peer, routing_id, &message, &given);
    else
        carry_out(gateway, peer, &message, &given);
    wire_properties_free(&given);
}
