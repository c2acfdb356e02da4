/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq: outside programs with a ZeroMQ socket, in ipcd's name space. One thread, one epoll loop; libzmq has its own.
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
#include "broker/gateways/zmq/wire.h"

#define PEER_THINGS_MAX 256u  /* subscriptions, queues, services of one peer, each */
#define PEER_CALLS_MAX  1024u /* open at a time, of one peer */
#define OUTLETS_MAX     4096u /* topics and queues that are held open */
#define CHANNELS_MAX    1024u /* subscriptions for plain subscribers */
#define TOPICS_MAX      65536u
#define SYNCS_MAX       1024u
#define ROUND_MAX       256u                 /* messages of one socket before the others have their turn */
#define BLOCK_MAX_NS    UINT64_C(1000000000) /* how long what is full holds up others */
#define RETRY_NS        UINT64_C(1000000)    /* a topic has no descriptor that says that there is room */
#define HOUSEKEEPING_NS UINT64_C(100000000)
#define ADDRESSES_MAX   8u
#define IDENTITY_SIZE   64u
#define CURVE_KEY_SIZE  41u

enum endpoint { ENDPOINT_PUB, ENDPOINT_PUSH, ENDPOINT_SUB, ENDPOINT_MATCH, ENDPOINT_ROUTER, ENDPOINT_COUNT };

struct gateway;

/* A descriptor in the loop. */
struct source {
    int fd;
    bool added, enabled;
    void (*ready)(struct gateway *gateway, struct source *source); /* NULL: it is over */
    struct source *next_dead;
    void *memory; /* freed with it */
};

struct endpoint_counts {
    uint64_t received, sent, bad, dropped, connections, handshakes_failed;
};

struct endpoint_socket {
    enum endpoint which;
    void *socket, *monitor;
    struct source source, monitor_source;
    bool touched;
    struct endpoint_counts counts;
};

struct options {
    const char *broker; /* address; NULL: the default */
    const char *addresses[ENDPOINT_COUNT][ADDRESSES_MAX];
    unsigned address_count[ENDPOINT_COUNT];
    const char *folder; /* for the ipc:// files; NULL: beside the broker's socket */
    const char *key_file;
    uint64_t message_size_max; /* of a frame */
    uint64_t connections_max;
    uint64_t high_water;  /* messages per connection */
    uint64_t backlog_max; /* bytes: of one peer's answers; of what waits for one topic or queue */
};

/* An outside client by its public key. */
struct curve_client {
    char key[CURVE_KEY_SIZE], identity[IDENTITY_SIZE];
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
    uint64_t received, sent, dropped;
};

struct gateway {
    struct options options;
    void *context;
    struct endpoint_socket sockets[ENDPOINT_COUNT];
    struct listener lock; /* of the folder: libzmq would take the files away from another gateway */
    void *zap;
    struct source zap_source, signal_source, in_source, out_source;
    int epoll_fd;
    int exit_status;
    bool stopping;
    ipc_connection *in, *out;
    uint64_t epoch, next_number, now_ns, housekeeping_ns, probe_at_ns;
    uint64_t secret[2];
    struct curve_client *curve_clients;
    size_t n_curve_clients;
    struct source *dead;

    struct hash peers, peer_numbers;
    struct list peer_list;
    unsigned peer_count, heartbeats, blocked; /* of them: with a heartbeat; with a backlog */

    struct hash outlets;
    struct list outlet_list; /* least recently used first */
    unsigned outlet_count, holding, holding_topics, overfull;

    struct hash services, requests;
    unsigned call_count;

    struct list channels;
    unsigned channel_count;
    struct hash topics; /* counts for plain subscribers */
    struct list syncs;  /* seen or asked for, oldest first */
    unsigned sync_count;

    unsigned char *buffer; /* for what libipc copies out */
    size_t capacity;
    struct wire_text text;
};

/* ---- gateway.c: the loop -------------------------------------------------------------------------------------- */

int gateway_run(struct gateway *gateway);
/* Say why, and end. */
void gateway_fail(struct gateway *gateway, const char *format, ...) __attribute__((format(printf, 2, 3)));

int source_add(struct gateway *gateway, struct source *source, int fd,
               void (*ready)(struct gateway *, struct source *));
void source_enable(struct gateway *gateway, struct source *source, bool enabled);
/* Out of the loop; frees memory, which holds the source, at the end of the round. */
void source_bury(struct gateway *gateway, struct source *source, void *memory);

/* A buffer of at least that size; NULL: no memory. */
unsigned char *gateway_buffer(struct gateway *gateway, size_t size);

/* ---- sockets.c ------------------------------------------------------------------------------------------------ */

int sockets_open(struct gateway *gateway);
void sockets_close(struct gateway *gateway);
const char *endpoint_word(enum endpoint which);
/* Count and log what cannot be answered. */
void endpoint_drop(struct gateway *gateway, enum endpoint which, const char *name, const char *why);

/* ---- security.c ----------------------------------------------------------------------------------------------- */

/* Read the key file, check that what the addresses ask for is safe. Returns 0 or a negative errno after it said why. */
int security_prepare(struct gateway *gateway, char ret_secret[CURVE_KEY_SIZE]);
int security_make_keys(const char *path);
int security_zap_open(struct gateway *gateway);

/* ---- peer.c --------------------------------------------------------------------------------------------------- */

/* Take a message of a peer: frames without its routing id. */
void peer_receive(struct gateway *gateway, zmq_msg_t *routing_id, const struct wire_frame *frames,
                  size_t count);
struct peer *peer_by_number(const struct gateway *gateway, uint64_t number);
/* May messages and requests be sent to it now? */
bool peer_ready(const struct peer *peer);
/* Send, or keep until there is room. With `droppable`, drop instead. Returns 0; -EAGAIN it was dropped; -EPIPE gone. */
int peer_send(struct gateway *gateway, struct peer *peer, const char *command, struct wire_frame id,
              const char *name, struct wire_frame properties, struct wire_frame body, bool droppable);
void peer_ok(struct gateway *gateway, struct peer *peer, struct wire_frame id);
void peer_error(struct gateway *gateway, struct peer *peer, struct wire_frame id, int code, const char *text);
/* Its backlog, now that there may be room. */
void peers_retry(struct gateway *gateway);
void peers_check(struct gateway *gateway); /* heartbeats, and those that are gone */
void peers_disconnected(struct gateway *gateway, int fd);
void peers_probe(struct gateway *gateway); /* at probe_at_ns */
void peers_end(struct gateway *gateway);

/* ---- outlet.c: into topics and queues --------------------------------------------------------------------------- */

enum outlet_kind { OUTLET_TOPIC, OUTLET_QUEUE };

/* Take a message, of a peer or (NULL) of somebody who cannot be answered. */
void outlet_take(struct gateway *gateway, enum outlet_kind kind, const struct wire_message *message,
                 struct peer *peer);
void outlets_retry(struct gateway *gateway);
void outlets_end(struct gateway *gateway);

/* ---- pull.c: out of queues ---------------------------------------------------------------------------------------- */

void pull_command(struct gateway *gateway, struct peer *peer, const struct wire_message *message,
                  const struct wire_properties *given);
void pulls_resume(struct gateway *gateway, struct peer *peer);
void pulls_end(struct gateway *gateway, struct peer *peer);

/* ---- subscribe.c: out of topics ----------------------------------------------------------------------------------- */

void subscribe_command(struct gateway *gateway, struct peer *peer, const struct wire_message *message,
                       const struct wire_properties *given);
void subs_end(struct gateway *gateway, struct peer *peer);
/* What XPUB says: 1 or 0, and the text. */
void subscribe_plain(struct gateway *gateway, enum endpoint which, const struct wire_frame *frame);
void subscribe_end(struct gateway *gateway);
/* The headers of a message into gateway->text, which has begun. */
void put_headers(struct wire_text *text, const char *content_type, const void *fields, size_t fields_size);

/* ---- service.c ------------------------------------------------------------------------------------------------------ */

void service_command(struct gateway *gateway, struct peer *peer, const struct wire_message *message,
                     const struct wire_properties *given);
void service_resume(struct gateway *gateway, struct peer *peer);
void service_end_peer(struct gateway *gateway, struct peer *peer);
void services_check(struct gateway *gateway);
void services_end(struct gateway *gateway);

#endif
