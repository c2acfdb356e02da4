/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq: outside programs with a ZeroMQ socket, in ipcd's name space. A gateway as all are (common/gateway.h); libzmq has
 * threads of its own. A binding is an address that an endpoint listens on. When the session is over everything is taken down,
 * sockets and all, and made anew with the next one: to peers that looks as if the gateway was started again.
 *
 * A socket of ZeroMQ has an edge-triggered descriptor, and every call on it may take an edge: so what was sent on or
 * received from is `touched`, and the loop does not sleep before it has received from it until there was nothing.
 *
 * Handles of libipc are of two connections: what comes in (publishers, producers, clients) and what goes out
 * (subscriptions, consumers, servers), since a session does not talk with itself. Objects with a source are freed at the
 * end of a round, as the round may still hold an event of theirs.
 */
#ifndef IPCD_GATEWAYS_ZMQ_GATEWAY_H
#define IPCD_GATEWAYS_ZMQ_GATEWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ipc/ipc.h>
#include <zmq.h>

#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"
#include "broker/core/util/listener.h"
#include "broker/gateways/common/gateway.h"
#include "broker/gateways/zmq/wire.h"

#define PEER_THINGS_MAX 256u  /* subscriptions, queues, services of one peer, each */
#define PEER_CALLS_MAX  1024u /* open at a time, of one peer */
#define OUTLETS_MAX     4096u /* topics and queues that are held open */
#define CHANNELS_MAX    1024u /* subscriptions for plain subscribers */
#define TEXTS_MAX       1024u /* of one of them */
#define TOPICS_MAX      65536u
#define SYNCS_MAX       1024u
#define ROUND_MAX       256u                 /* messages of one socket before the others have their turn */
#define BLOCK_MAX_NS    UINT64_C(1000000000) /* how long what is full holds up others */
#define RETRY_NS        UINT64_C(1000000)    /* a topic has no descriptor that says that there is room */
#define HOUSEKEEPING_NS UINT64_C(100000000)
#define IDENTITY_SIZE   (POLICY_KEY_SIZE + 4u) /* key:NAME */
#define CURVE_KEY_SIZE  41u
#define VISITORS        256u /* whose rights are at hand */
#define ACCESS_WHY_SIZE 640u
#define ACCESS_PROPERTY "Ipcd" /* of messages: the number of their connection */

enum endpoint { ENDPOINT_PUB, ENDPOINT_PUSH, ENDPOINT_SUB, ENDPOINT_MATCH, ENDPOINT_ROUTER, ENDPOINT_COUNT };

struct zmq_gateway;

/* A descriptor in the loop. */
struct source {
    struct gateway_source watch;
    void (*ready)(struct zmq_gateway *gateway, struct source *source); /* NULL: it is over */
    struct source *next_dead;
    void *memory; /* freed with it */
};

struct endpoint_counts {
    uint64_t received, sent, bad, dropped, denied, connections, handshakes_failed;
};

struct endpoint_socket {
    enum endpoint which;
    void *socket, *monitor;
    struct source source, monitor_source;
    bool touched, skipping;
    struct endpoint_counts counts;
};

/* Settings of [gateway]. */
struct options {
    char addresses[ENDPOINT_COUNT][GATEWAY_VALUE_SIZE]; /* of more bindings, with spaces between */
    char folder[128]; /* for the ipc:// files; "": beside the broker's socket */
    char key_file[GATEWAY_VALUE_SIZE];
    uint64_t message_size_max; /* of a frame */
    uint64_t connections_max;
    uint64_t high_water;  /* messages per connection */
    uint64_t backlog_max; /* bytes: of one peer's answers; of what waits for one topic or queue */
};

/* And of a binding. */
struct binding {
    uint64_t endpoint;
    char address[GATEWAY_VALUE_SIZE]; /* "": the endpoint's own file */
    uint64_t mode;                    /* of a file; 0: as the broker's socket, for our group */
};

/* An outside client by its public key. */
struct curve_client {
    char key[CURVE_KEY_SIZE], name[POLICY_KEY_SIZE];
};

/* Somebody, as the rules know him: by his connection. */
struct visitor {
    uint64_t connection;
    struct identity identity;
    char name[IDENTITY_SIZE];
    gid_t *groups;
};

struct peer {
    struct hash_node node, number_node;
    struct list link;
    uint64_t number; /* never used again */
    unsigned char id[255];
    size_t id_size;
    char name[64], identity[IDENTITY_SIZE], address[64];
    int fd; /* of its connection, to know it in the monitor's events */
    uint64_t heard_ns, heartbeat_ns;
    uint64_t probe_at_ns, probe_wait_ns; /* it may be gone: when to ask again; 0: there is no doubt */
    struct list backlog;                 /* messages that its connection had no room for */
    size_t backlog_bytes;
    bool gone, greeted;
    struct list pulls, subs, serves, calls;
    unsigned pull_count, sub_count, serve_count, call_count;
    uint64_t received, sent, dropped, denied;
    struct visitor visitor; /* if there are rules */
};

/* For what libipc copies out. */
struct buffer {
    unsigned char *bytes;
    size_t capacity;
};

struct zmq_gateway {
    struct gateway *common;
    struct options options;
    struct listener lock; /* of the folder: libzmq would take the files away from another gateway */
    char curve_secret[CURVE_KEY_SIZE];
    struct curve_client *curve_clients;
    size_t n_curve_clients;

    /* All that follows is of one session. */
    bool opened;
    void *context;
    struct endpoint_socket sockets[ENDPOINT_COUNT];
    void *zap;
    struct source zap_source, in_source, out_source;
    ipc_connection *in, *out; /* out is common's */
    uint64_t epoch, next_number, now_ns, housekeeping_ns, probe_at_ns;
    uint64_t secret[2];
    uint64_t next_connection; /* if there are rules */
    struct visitor visitors[VISITORS];
    struct source *dead;

    struct hash peers, peer_numbers;
    struct list peer_list;
    unsigned peer_count, heartbeats, blocked; /* of them: with a heartbeat; with a backlog */
    unsigned idle_pulls;

    struct hash outlets;
    struct list outlet_list; /* least recently used first */
    unsigned outlet_count, holding, holding_topics, overfull;

    struct hash services, requests;
    unsigned call_count;

    struct hash watchers; /* plain subscribers, if there are rules */
    struct list channels;
    unsigned channel_count;
    struct hash topics; /* counts for plain subscribers */
    uint64_t
        overlap_ns;    /* until then what a broader channel replaced is read beside it; 0: there is no such */
    struct hash due;   /* by publisher: what comes next of it, meanwhile */
    struct list syncs; /* seen or asked for, oldest first */
    unsigned sync_count;

    struct buffer buffer;
    struct wire_text text;
};

/* ---- gateway.c: the loop -------------------------------------------------------------------------------------- */

/* As those of struct gateway_kind. */
int session_open(struct gateway *common);
void session_close(struct gateway *common);
uint64_t session_round(struct gateway *common);
/* A call of libipc said that it is over. */
void session_over(struct zmq_gateway *gateway);

int source_add(struct zmq_gateway *gateway, struct source *source, int fd,
               void (*ready)(struct zmq_gateway *, struct source *));
void source_enable(struct zmq_gateway *gateway, struct source *source, bool enabled);
/* Out of the loop; frees memory, which holds the source, at the end of the round. */
void source_bury(struct zmq_gateway *gateway, struct source *source, void *memory);

/* At least that large. False: no memory. */
bool buffer_grow(struct buffer *buffer, size_t size);

/* ---- sockets.c ------------------------------------------------------------------------------------------------ */

int sockets_open(struct zmq_gateway *gateway);
void sockets_close(struct zmq_gateway *gateway);
/* As those of struct gateway_kind. */
int address_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void address_unbind(struct gateway_binding *binding);
const char *endpoint_word(enum endpoint which);
/* What its monitor tells. */
void endpoint_news(struct zmq_gateway *gateway, struct endpoint_socket *socket);
/* Count and log what cannot be answered. */
void endpoint_drop(struct zmq_gateway *gateway, enum endpoint which, const char *name, const char *why);

/* ---- security.c ----------------------------------------------------------------------------------------------- */

/* Read the key file, if there is one. Returns 0 or a negative errno after it said why. */
int security_read_keys(struct zmq_gateway *gateway);
/* Read it again; with mistakes, what held holds. False: a key is gone or another one, for which all have to connect again. */
bool security_reread_keys(struct gateway *common);
/* Reached by programs of this machine only? */
bool security_is_local(const char *address);
int security_make_keys(const char *path);
int security_zap_open(struct zmq_gateway *gateway);

/* ---- access.c ------------------------------------------------------------------------------------------------- */

/* Are there any? Otherwise everything is allowed. */
bool access_rules(const struct zmq_gateway *gateway);
/* The number of the connection that a message came by. */
uint64_t access_connection(const zmq_msg_t *message);
/* Who sent that message. Zeroed at first; done with visitor_done(). */
void visitor_take(struct zmq_gateway *gateway, struct visitor *visitor, const zmq_msg_t *message);
/* Without his groups: by what ZAP knows. */
void visitor_identify(struct visitor *visitor, const char *name, const char *address);
void visitor_done(struct visitor *visitor);

/* May who sent that publish or send to `name`? Counted and logged if not. */
bool access_message(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message,
                    const char *name);
/* As that of struct gateway_kind. */
bool access_changed(struct gateway *common, bool had_rules);
/* May the peer do that? It is told if not, by an ERROR with that id. There are rules. */
bool access_has(struct zmq_gateway *gateway, struct peer *peer, enum verb verb, const char *name,
                struct wire_frame id);
/* May the peer do what it says? It is told if not. */
bool access_peer(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message);
/* May it see that topic? */
bool access_topic(const struct zmq_gateway *gateway, const struct peer *peer, const char *topic);
/* All topics of a pattern? */
bool access_covers(const struct zmq_gateway *gateway, const struct visitor *visitor, const char *pattern);
/* The same; counted and logged if not. */
bool access_plain(struct zmq_gateway *gateway, enum endpoint which, const struct visitor *visitor,
                  const char *pattern);
void access_end(struct zmq_gateway *gateway);

/* ---- peer.c --------------------------------------------------------------------------------------------------- */

/* Take a message of a peer: frames without its routing id. */
void peer_receive(struct zmq_gateway *gateway, zmq_msg_t *routing_id, const struct wire_frame *frames,
                  size_t count);
struct peer *peer_by_number(const struct zmq_gateway *gateway, uint64_t number);
/* May messages and requests be sent to it now? */
bool peer_ready(const struct peer *peer);
/* Send, or keep until there is room. With `droppable`, drop instead. Returns 0; -EAGAIN it was dropped; -EPIPE gone. */
int peer_send(struct zmq_gateway *gateway, struct peer *peer, const char *command, struct wire_frame id,
              const char *name, struct wire_frame properties, struct wire_frame body, bool droppable);
void peer_ok(struct zmq_gateway *gateway, struct peer *peer, struct wire_frame id);
void peer_error(struct zmq_gateway *gateway, struct peer *peer, struct wire_frame id, int code,
                const char *text);
/* Its backlog, now that there may be room. */
void peers_retry(struct zmq_gateway *gateway);
void peers_check(struct zmq_gateway *gateway); /* heartbeats, and those that are gone */
void peers_disconnected(struct zmq_gateway *gateway, int fd);
void peers_probe(struct zmq_gateway *gateway); /* at probe_at_ns */
void peers_end(struct zmq_gateway *gateway);
/* For LIST. */
void peers_tell(const struct zmq_gateway *gateway, Ipc__Gateway__Binding *message);

/* ---- outlet.c: into topics and queues --------------------------------------------------------------------------- */

enum outlet_kind { OUTLET_TOPIC, OUTLET_QUEUE };

/* Take a message, of a peer or (NULL) of somebody who cannot be answered. */
void outlet_take(struct zmq_gateway *gateway, enum outlet_kind kind, const struct wire_message *message,
                 struct peer *peer);
void outlets_retry(struct zmq_gateway *gateway);
void outlets_end(struct zmq_gateway *gateway);

/* ---- pull.c: out of queues ---------------------------------------------------------------------------------------- */

void pull_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                  const struct wire_properties *given);
void pulls_resume(struct zmq_gateway *gateway, struct peer *peer);
void pulls_end(struct zmq_gateway *gateway, struct peer *peer);
void pulls_review(struct zmq_gateway *gateway, struct peer *peer); /* by other rules */
void pulls_check(struct zmq_gateway *gateway);                     /* those that want no more */

/* ---- subscribe.c: out of topics ----------------------------------------------------------------------------------- */

void subscribe_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                       const struct wire_properties *given);
void subs_end(struct zmq_gateway *gateway, struct peer *peer);
void subs_review(struct zmq_gateway *gateway, struct peer *peer); /* by other rules */
/* What XPUB says: 1 or 0, and the text. */
void subscribe_plain(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message);
void channels_check(struct zmq_gateway *gateway); /* those that were replaced */
void subscribe_end(struct zmq_gateway *gateway);
/* The headers of a message into gateway->text, which has begun. */
void put_headers(struct wire_text *text, const char *content_type, const void *fields, size_t fields_size);

/* ---- watch.c: plain subscribers where there are rules ----------------------------------------------------------- */

/* What their monitors tell. */
void watch_accepted(struct zmq_gateway *gateway, enum endpoint which, int fd, const char *address);
void watch_disconnected(struct zmq_gateway *gateway, enum endpoint which, int fd);
/* Nobody listens on that address any more, and who came by it is gone. */
void watch_unbound(struct zmq_gateway *gateway, enum endpoint which, const char *address);
/* As subscribe_plain(). */
void watch_message(struct zmq_gateway *gateway, enum endpoint which, const zmq_msg_t *message);
/* Other rules: connections that have what they may not have any more are ended, and those that were denied something, so that
 * they connect and ask again. */
void watch_review(struct zmq_gateway *gateway);
void watch_end(struct zmq_gateway *gateway);

/* And what those use of subscribe.c: the pattern that serves a text; NULL, or what is wrong. It is wanted once more: false: it
 * cannot be had. No more. A text of SYNC came, or is wanted no more; it was passed over with others (`skipped`). False: it is none. */
const char *plain_pattern(enum endpoint which, const struct wire_frame *text, char ret[256]);
bool plain_want(struct zmq_gateway *gateway, enum endpoint which, const char *pattern);
void plain_want_no_more(struct zmq_gateway *gateway, enum endpoint which, const char *pattern);
void plain_refused(struct zmq_gateway *gateway, enum endpoint which, const char *name, const char *why);
bool plain_sync(struct zmq_gateway *gateway, const struct wire_frame *text, bool there, bool skipped);

/* ---- service.c ------------------------------------------------------------------------------------------------------ */

void service_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                     const struct wire_properties *given);
void service_resume(struct zmq_gateway *gateway, struct peer *peer);
void service_end_peer(struct zmq_gateway *gateway, struct peer *peer);
void serves_review(struct zmq_gateway *gateway, struct peer *peer); /* by other rules */
void services_check(struct zmq_gateway *gateway);
void services_end(struct zmq_gateway *gateway);

#endif
