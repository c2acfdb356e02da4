/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain subscribers where there are rules. XPUB asks before it subscribes (ZMQ_XPUB_MANUAL), and of each connection what it
 * subscribes to is kept here, since libzmq does not tell whose subscriptions end.
 *
 * What is subscribed to is what libzmq 4.3.4 holds for the connection of the message received last. It holds that
 * - for a connection that is gone, if it was gone before its message was received: that would use freed memory. So the
 *   monitor is asked first, who tells of it earlier than libzmq frees anything; and as numbers of descriptors are used
 *   again, a message has to be of a connection that was let in after the descriptor's last one was accepted. This needs the
 *   one thread of libzmq's that there is by default, for its events to be in order.
 * - for another connection, once somebody has sent what no SUB sends: then nothing more is subscribed to before everything
 *   that waits has been received. Whose texts are among that has to connect again, and so has who sent it: a SUB does by
 *   itself, and says all of its texts once more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

/* A connection. */
struct watcher {
    struct hash_node node;
    uint64_t least;  /* its number is at least that */
    uint64_t number; /* 0: it has said nothing yet */
    struct visitor visitor;
    bool denied; /* something that it asked for */
    uint64_t address;
    struct list texts;
    unsigned count;
};

struct text {
    struct list link;
    size_t size;
    char bytes[];
};

static uint64_t key_of(enum endpoint which, int fd)
{
    return (uint64_t)which << 32 | (uint32_t)fd;
}

static struct watcher *find(const struct zmq_gateway *gateway, enum endpoint which, int fd)
{
    struct hash_node *node = hash_find(&gateway->watchers, key_of(which, fd));

    return node ? list_entry(node, struct watcher, node) : NULL;
}

/* What connections have in common that came by one address: of a file its name, else the port, since who listens on all
 * interfaces is told one of them. */
static uint64_t hash_address(const struct zmq_gateway *gateway, const char *address)
{
    const char *port = strncmp(address, "tcp:", 4) == 0 ? strrchr(address, ':') : address;

    return hash_string(gateway->secret, port, strlen(port));
}

static void forget(struct zmq_gateway *gateway, enum endpoint which, struct watcher *watcher,
                   struct text *text)
{
    char pattern[256];

    if (!plain_pattern(which, &(struct wire_frame){text->bytes, text->size}, pattern))
        plain_want_no_more(gateway, which, pattern);
    list_remove(&text->link);
    watcher->count--;
    free(text);
}

static void watcher_end(struct zmq_gateway *gateway, struct watcher *watcher)
{
    const enum endpoint which = (enum endpoint)(watcher->node.key >> 32);

    list_for_each_safe(link, &watcher->texts)
        forget(gateway, which, watcher, list_entry(link, struct text, link));
    hash_remove(&gateway->watchers, &watcher->node);
    visitor_done(&watcher->visitor);
    free(watcher);
}

void watch_accepted(struct zmq_gateway *gateway, enum endpoint which, int fd, const char *address)
{
    struct watcher *watcher = find(gateway, which, fd);

    if (watcher)
        watcher_end(gateway, watcher);
    watcher = calloc(1, sizeof(*watcher));
    if (!watcher)
        return; /* it cannot subscribe */
    watcher->least = gateway->next_connection + 1;
    watcher->address = hash_address(gateway, address);
    list_init(&watcher->texts);
    hash_add(&gateway->watchers, &watcher->node, key_of(which, fd));
}

void watch_disconnected(struct zmq_gateway *gateway, enum endpoint which, int fd)
{
    struct watcher *watcher = find(gateway, which, fd);

    if (watcher)
        watcher_end(gateway, watcher);
}

static void end_all(struct zmq_gateway *gateway, enum endpoint which, const uint64_t *address)
{
    struct hash *all = &gateway->watchers;

    for (size_t i = 0; all->buckets && i < (size_t)1 << all->bits; i++)
        for (struct hash_node *node = all->buckets[i], *next; node; node = next) {
            struct watcher *watcher = list_entry(node, struct watcher, node);

            next = node->next;
            if (!address || (node->key >> 32 == which && watcher->address == *address))
                watcher_end(gateway, watcher);
        }
}

void watch_unbound(struct zmq_gateway *gateway, enum endpoint which, const char *address)
{
    const uint64_t hash = hash_address(gateway, address);

    if (which == ENDPOINT_SUB || which == ENDPOINT_MATCH) {
        endpoint_news(gateway, &gateway->sockets[which]);
        end_all(gateway, which, &hash);
    }
}

static bool has_all(struct zmq_gateway *gateway, const struct watcher *watcher)
{
    const enum endpoint which = (enum endpoint)(watcher->node.key >> 32);
    char pattern[256];

    list_for_each(link, &watcher->texts)
    {
        const struct text *text = list_entry(link, struct text, link);

        if (!plain_pattern(which, &(struct wire_frame){text->bytes, text->size}, pattern) &&
            !access_plain(gateway, which, &watcher->visitor, pattern))
            return false;
    }
    return true;
}

/* Nothing goes out on it any more. That its descriptor is still the one it was, the monitor has just said; if it is not,
 * somebody else has to connect again. */
static void hang_up(struct zmq_gateway *gateway, struct watcher *watcher)
{
    (void)shutdown((int)(uint32_t)watcher->node.key, SHUT_RDWR);
    watcher_end(gateway, watcher);
}

/* libzmq ends subscriptions of the connection heard last only, and not those of another one: so the connection is ended. */
void watch_review(struct zmq_gateway *gateway)
{
    struct hash *all = &gateway->watchers;

    endpoint_news(gateway, &gateway->sockets[ENDPOINT_SUB]);
    endpoint_news(gateway, &gateway->sockets[ENDPOINT_MATCH]);
    for (size_t i = 0; all->buckets && i < (size_t)1 << all->bits; i++)
        for (struct hash_node *node = all->buckets[i], *next; node; node = next) {
            struct watcher *watcher = list_entry(node, struct watcher, node);

            next = node->next;
            if (watcher->denied || !has_all(gateway, watcher))
                hang_up(gateway, watcher);
        }
}

void watch_end(struct zmq_gateway *gateway)
{
    end_all(gateway, ENDPOINT_COUNT, NULL);
}

/* Who sent that, if it is still there. */
static struct watcher *sender_of(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message)
{
    const uint64_t number = access_connection(message);
    struct watcher *watcher;

    if (!number)
        return NULL; /* libzmq says it of a connection that ended */
    endpoint_news(gateway, &gateway->sockets[which]);
    watcher = find(gateway, which, zmq_msg_get(message, ZMQ_SRCFD));
    if (!watcher || number < watcher->least || (watcher->number && watcher->number != number))
        return NULL;
    if (!watcher->number)
        visitor_take(gateway, &watcher->visitor, message);
    watcher->number = number;
    return watcher;
}

static struct text *find_text(const struct watcher *watcher, const struct wire_frame *text)
{
    list_for_each(link, &watcher->texts)
    {
        struct text *known = list_entry(link, struct text, link);

        if (known->size == text->size && memcmp(known->bytes, text->data, text->size) == 0)
            return known;
    }
    return NULL;
}

static void subscribe(struct zmq_gateway *gateway, enum endpoint which, struct watcher *watcher,
                      const struct wire_frame *text)
{
    void *socket = gateway->sockets[which].socket;
    char pattern[256];
    const char *wrong = plain_pattern(which, text, pattern);
    struct text *kept;

    if (!wrong && watcher->count >= TEXTS_MAX)
        wrong = "a plain subscriber has as many as can be";
    if (wrong) {
        plain_refused(gateway, which, pattern, wrong);
        return;
    }
    if (find_text(watcher, text))
        return;
    if (!access_plain(gateway, which, &watcher->visitor, pattern)) {
        watcher->denied = true;
        return;
    }
    kept = malloc(sizeof(*kept) + text->size);
    /* Before anything else is done with the socket. */
    if (!kept || zmq_setsockopt(socket, ZMQ_SUBSCRIBE, text->data, text->size) < 0 ||
        !plain_want(gateway, which, pattern)) {
        free(kept);
        return;
    }
    kept->size = text->size;
    if (text->size)
        memcpy(kept->bytes, text->data, text->size);
    list_append(&watcher->texts, &kept->link);
    watcher->count++;
}

void watch_message(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message)
{
    const char *bytes = zmq_msg_data((zmq_msg_t *)(uintptr_t)message);
    const struct wire_frame text = {bytes + 1, zmq_msg_size(message) - 1};
    struct endpoint_socket *socket = &gateway->sockets[which];
    struct watcher *watcher = sender_of(gateway, which, message);
    struct text *kept;

    if (zmq_msg_size(message) == 0 || (bytes[0] != 0 && bytes[0] != 1)) {
        socket->skipping = true;
        plain_refused(gateway, which, "", "somebody sends what a SUB does not send");
    } else if ((watcher || bytes[0] == 1) &&
               plain_sync(gateway, &text, bytes[0] == 1, socket->skipping || !watcher)) {
        return;
    }
#ifndef IPC_PLANT_TEXTS_LOST
    if (watcher && socket->skipping)
        hang_up(gateway, watcher);
#endif
    if (!watcher || socket->skipping)
        return;
    if (bytes[0] == 1) {
        subscribe(gateway, which, watcher, &text);
        return;
    }
    kept = find_text(watcher, &text);
    if (!kept)
        return;
    (void)zmq_setsockopt(socket->socket, ZMQ_UNSUBSCRIBE, text.data, text.size);
    forget(gateway, which, watcher, kept);
}
