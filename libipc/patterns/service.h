/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients of services from the inside: client.c opens lanes to servers and knows who is there, call.c makes calls and
 * settles them, answer.c takes in what servers reply. All of it belongs to the thread that uses the client.
 */
#ifndef IPC_PATTERNS_SERVICE_H
#define IPC_PATTERNS_SERVICE_H

#include "ipc/service.h"
#include "libipc/patterns/patterns.h"

#define CLIENT_LANES 4u
#define CALLS_MAX    65536u
#define CLIENT_PARTS 64u /* kept for the next answers */
#define PART_KEEP    UINT32_C(65536)

/* A lane of calls; its server is its reader. */
struct call_lane {
    struct ipc_publisher *publisher;
    uint64_t pairing; /* with the server; 0: none */
    struct ipc_peer server;
    uint32_t open;     /* calls that this server has */
    bool expected;     /* the core said that there is a server for it */
    bool refused;      /* its last server had no room for us */
    bool replying;     /* its server has a lane of replies to us */
    uint64_t *cancels; /* ids of calls that the server is still to be told of, for want of room */
    uint32_t cancel_count, cancel_capacity;
};

/* A server that left and may have answered some of its calls: they are settled when its replies were read. */
struct leaving {
    struct leaving *next;
    uint64_t pairing;
    unsigned reason;
    struct ipc_peer server;
    bool replying;  /* its lane of replies is still to come */
    uint64_t until; /* for so long */
};

/* What was received and not taken yet; then the header block with BLOCK_EXTRA bytes, and the payload. */
struct part {
    struct part *next;
    size_t capacity, block, size;
    int32_t code;
    uint32_t flags; /* IPC_REPLY_* */
    struct ipc_peer server;
    unsigned char bytes[];
};

enum call_state {
    CALL_UNSENT, /* waits for a server: in client.unsent */
    CALL_SENT,
    CALL_OVER,
};

struct ipc_call {
    struct ipc_client *client;
    struct ipc_call *next; /* in client.unsent, client.finished, or client.unused */
    uint64_t id;           /* while it is not over; its low 16 bits are its place in client.calls */
    uint64_t pairing;      /* it was sent to */
    uint64_t deadline;
    struct call_lane *lane;
    enum call_state state;
    unsigned flags;
    int result;      /* once it is over: 0, or a negative errno */
    unsigned reason; /* of -EPIPE */
    struct ipc_peer server;
    unsigned char *copy; /* the record's body, to be sent (again); NULL: sent, and not again */
    uint32_t copy_size, copy_headers;

    /* ipc_client_call(): where the answer goes, and what else it told. */
    void *into;
    size_t into_capacity;
    bool direct;
    struct ipc_message answer;

    struct part *parts, **parts_end;
    struct part *taken; /* what the user looks at */
    size_t buffered;
    bool started; /* some of its answer came */
    void (*done)(ipc_call *call, void *context);
    void *context;
    bool finished; /* in client.finished */
};

struct ipc_client {
    struct ipc_subscription *inbox;
    struct ipc_connection *connection;
    struct call_lane lanes[CLIENT_LANES];
    uint32_t lane_count;
    bool no_more_lanes; /* a limit was reached */
    struct ipc_publisher_options lane_options;
    uint64_t buffer_max;

    struct ipc_call **calls; /* by the low bits of their ids; NULL: free */
    uint32_t call_capacity, calls_max;
    uint32_t *free_places, free_count;
    uint32_t open;
    uint64_t serial;
    struct ipc_call *unsent, **unsent_end;
    struct ipc_call *finished, **finished_end;
    struct ipc_call *unused;
    struct part *parts;
    struct part *shown; /* what ipc_client_call() told last */
    uint32_t part_count;
    struct leaving *leaving;
    uint64_t earliest; /* no call's deadline is before it */

    int timer; /* -1: nobody asked for a descriptor */
    uint64_t timer_at;
    uint64_t made, failed, retried, waits;
    uint32_t cancels; /* in all lanes */
    char text[640];
    char service[IPC_MAX_NAME_SIZE + 1];
};

/* Calls that the server of a lane has: the core is to know when it stops. */
static inline void lane_set_open(struct call_lane *lane, uint32_t open)
{
    lane->open = open;
    atomic_store_explicit(&lane->publisher->writer.lane->calls, open, memory_order_relaxed);
}

/* client.c */
/* Take in what the core said: servers that came, and those that left. */
void client_news(struct ipc_client *client);
/* The lane to send the next call by, with more lanes if load asks for it; NULL: no server now. */
struct call_lane *client_lane(struct ipc_client *client);
/* No lane has a server. Is one to come? */
bool client_expects(const struct ipc_client *client);
/* None is: -ENOENT; -EDQUOT if those that there are have no room for us; -ESHUTDOWN the broker stops; and the sentence about
 * that. */
int client_nobody(const struct ipc_client *client);
const char *client_nobody_text(struct ipc_client *client, int code);

/* call.c */
void call_settle(struct ipc_call *call, int result);
/* The session is over in which it was sent: to be sent again once there is a server, or settled. */
void call_lose(struct ipc_call *call);
/* Its server left: ask another, or settle it. */
void call_abandon(struct ipc_call *call, unsigned reason, const struct ipc_peer *server);
void calls_send_unsent(struct ipc_client *client);
void calls_send_cancels(struct ipc_client *client);
void calls_expire(struct ipc_client *client, uint64_t now);
int client_check(const struct ipc_client *client);
/* The session is over: what was under way is settled, or is to be sent again; then begin anew, waiting until the deadline
 * (0: not at all). 1: something of that was done; -EAGAIN, -ETIMEDOUT; -EPIPE there will be no other session; or why. */
int client_renew(struct ipc_client *client, uint64_t deadline);
/* What client_turn() returned is no reason to go on. */
static inline bool client_over(int result)
{
    return result < 0 && result != -EAGAIN && result != -ETIMEDOUT;
}
static inline bool client_ended(const struct ipc_client *client)
{
    return handle_ended(&client->inbox->handle) || handle_ended(&client->lanes[0].publisher->handle);
}

/* answer.c */
/* One step: take in one record or the news, waiting until the deadline (0: not at all). 1: something was taken in;
 * -EAGAIN, -ETIMEDOUT; -EPIPE the session is over. */
int client_turn(struct ipc_client *client, uint64_t deadline);
struct part *part_free(struct ipc_client *client, struct part *part);
void call_describe(struct ipc_call *call, struct part *part, struct ipc_reply *reply);

#endif
