/* SPDX-License-Identifier: Apache-2.0
 *
 * A connection from the inside.
 *
 * Any thread of the process may find that the board's mail changed. Whoever gets `lock` then reads the socket
 * (the pump) and puts each notice into the inbox of the publisher or subscription that it is for; the thread
 * that owns that handle takes it from there. So the socket and the tables belong to whoever holds `lock`, a
 * handle to the thread that uses it, and between the two there is only the inbox.
 */
#ifndef IPC_SESSION_SESSION_H
#define IPC_SESSION_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/ipc.h"
#include "libipc/lane/atomic.h"
#include "libipc/lane/wait.h"
#include "proto/frame.h"
#include "proto/layout.h"

#define EVENTS_MAX      256u
#define LOOK_NS         UINT64_C(100000000) /* how often a connection that reconnects looks at its socket */
#define PENDING_WAIT_NS UINT64_C(100000000) /* how long a pump waits for notices that the core announced */

/* Something that the core told us about a handle. */
struct notice {
    struct notice *next;
    uint16_t type; /* READER_ADD, READER_DEL, LANE_ADD, LANE_DEL, PORT_END */
    uint64_t pairing;
    uint64_t lane_id;
    uint32_t slot;
    uint32_t start;
    uint32_t slow;
    uint32_t reason;
    uint32_t ring_size;
    bool tap;
    bool fence;
    bool ended;
    uint64_t call;             /* of a lane of replies: the pairing of its calls */
    uint64_t after;            /* of LANE_ADD: the pairing to be read to its end first, or 0 */
    uint32_t servers;          /* of a lane of calls that lost its server: how many there are now */
    bool replying;             /* and that one's replies end with a LANE_DEL that is still to come */
    bool again;                /* the handle may have been told about this pairing before */
    int bell;                  /* to ring, or to wait on; -1: none */
    struct segment_ref *cells; /* the peer's (READER_ADD) or ours (LANE_ADD): one reference is the notice's */
    uint32_t cell;
    void *lane; /* mapped (LANE_ADD) */
    struct ipc_peer peer;
    char topic[IPC_MAX_NAME_SIZE + 1];
};

/* A cells segment that is mapped once and used by many pairings. Under the connection's lock. */
struct segment_ref {
    struct segment_ref *next;
    uint64_t id;
    uint32_t references;
    bool own;
    void *segment;
};

struct handle;

enum handle_kind { HANDLE_PUBLISHER, HANDLE_SUBSCRIPTION, HANDLE_PORT, HANDLE_SEGMENT };
struct handle_type {
    enum handle_kind kind;
    void (*close)(struct handle *handle);
    int (*descriptor)(struct handle *handle); /* its own, for the connection's; NULL: it has none */
    int (*set)(const struct handle *handle);  /* the same, if it was made; else -1; under lock */
};

/* What publishers, subscriptions, producers and consumers have in common. */
struct handle {
    const struct handle_type *type;
    struct ipc_connection *connection;
    const _Atomic uint32_t *mail; /* of its board */
    struct handle *next;
    uint64_t id;    /* lane of a publisher, subscription, port */
    uint32_t epoch; /* of the connection, in which it was declared; changed under the lock */
    uint32_t mail_seen;
    void *owner;                /* what it is a part of, or NULL */
    void (*close)(void *owner); /* closes that */
    int self;                   /* eventfd that makes the handle's descriptor readable, or -1 */
    _Atomic(struct notice *) inbox;
};

struct ipc_connection {
    struct ipc_board *board;
    _Atomic uint32_t news;  /* private futex word: some inbox got something */
    _Atomic uint32_t ended; /* 0, or the reason why the session is over */
    _Atomic uint32_t epoch; /* counts up when a session ends and when the next one begins */
    uint32_t generation;    /* of the process that opened it: fork guard */
    bool reconnects;

    pthread_mutex_t lock;
    int socket;
    int epoll;
    int64_t timeout_ns;
    uint64_t request_id;
    uint64_t answered; /* a broker that was killed may answer it once more */
    _Atomic uint32_t mail_pumped;
    struct handle *handles;
    struct segment_ref *segments;
    struct ipc_peer identity;
    struct ipc_event *events; /* ring of EVENTS_MAX, made when the first comes */
    uint64_t events_head;
    uint64_t events_tail;
    bool events_lost;
    /* Confirms that did not fit into the socket. */
    unsigned char *outbox;
    size_t outbox_size;
    size_t outbox_capacity;
    /* Between two sessions, see reconnect.c. */
    int timer;           /* readable when it is time to try again; or -1 */
    bool greeting;       /* HELLO was sent */
    uint64_t next_ns;    /* when to try again, or to give up waiting for WELCOME */
    uint64_t backoff_ns; /* after a failure */
    uint64_t began_ns;
    char address[IPC_MAX_ADDRESS_SIZE + 1];

    struct ipc_frame_arena arena;
    unsigned char packet[IPC_MAX_FRAME_SIZE];
};

/* guard.c: notice that this process is a forked child. */
uint32_t guard_generation(bool make);
extern const volatile uint32_t *guard_page __attribute__((visibility("hidden")));

static inline bool guard_foreign(const struct ipc_connection *connection)
{
#ifdef IPC_PLANT_GENERATION_UNCHECKED
    return connection->generation == 0;
#endif
    return *guard_page != connection->generation;
}

/* connection.c: HELLO, as we say it, and its answer, with the board's descriptor, which stays the caller's. */
void hello_fill(Ipc__Control__Hello *message, char *name);
int hello_answered(struct ipc_connection *connection, const Ipc__Control__Welcome *welcome, int fd);

/* reconnect.c */
/* Between two sessions; under lock. */
void reconnect_begin(struct ipc_connection *connection);
/* Look at the socket, or one step towards the next session; never blocks. 0: there is a session; -EAGAIN: not yet;
 * -EPIPE: there will be none. In *next_ns when to look again. */
int connection_look(struct ipc_connection *connection, uint64_t *next_ns);
/* The same, waited for. -ETIMEDOUT instead of -EAGAIN. */
int connection_await(struct ipc_connection *connection, uint64_t deadline_ns);

/* No session now, but there will be another one. Any thread. */
static inline bool connection_between(const struct ipc_connection *connection)
{
    return connection->reconnects &&
           atomic_load_explicit(&connection->ended, memory_order_acquire) == IPC_REASON_SHUTDOWN;
}

/* address.c: the socket's path. 0, -ENAMETOOLONG. */
int address_resolve(char *path, size_t capacity, const char *address);

/* error.c: fill in *error (NULL allowed) and return its code. */
int error_set(struct ipc_error *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* event.c; under lock. */
void event_add(struct ipc_connection *connection, unsigned kind, unsigned reason, const struct ipc_peer *peer,
               const char *topic);

/* pump.c. Read the socket until it is empty and hand out what came; under lock. */
void pump(struct ipc_connection *connection);
/* Take in mail, unless another thread is at it. Returns the mail counter as it stood before, or `seen` if it was not
 * this thread that looked: then look again when the news count changes. Never blocks long. */
uint32_t pump_try(struct ipc_connection *connection, uint32_t seen);
/* Let go of the lock; take in what came while others could not. */
void pump_unlock(struct ipc_connection *connection);
/* Send without an answer (confirm, detach); any thread; kept for later if the socket is full. Nothing, if the handle is
 * of a session that is over. */
void pump_confirm(struct handle *handle, uint16_t notice, uint64_t pairing, int result);
void pump_detach(struct handle *handle, uint64_t pairing, unsigned reason);
/* The session is over. */
void pump_end(struct ipc_connection *connection, unsigned reason);
/* Wake whoever waits for news, and make all descriptors readable. */
void handles_rouse(struct ipc_connection *connection);
/* Take the inbox, oldest first. */
struct notice *inbox_take(struct handle *handle);
void notice_free(struct ipc_connection *connection, struct notice *notice);
void segment_unref(struct ipc_connection *connection, struct segment_ref *segment);

/* Send a request without waiting for its answer, which is passed over; under lock. */
void pump_send(struct ipc_connection *connection, uint16_t type, const ProtobufCMessage *message);

/* request.c: one request and its answer. On success the lock is held and *reply is valid until
 * request_done(); fds are the fd_count descriptors that came, the caller's. On failure nothing is held and *error
 * tells. If it is about a handle (`of`, or NULL) whose session is over: -EPIPE. */
int request_fds_of(struct ipc_connection *connection, const struct handle *of, uint16_t type,
                   const ProtobufCMessage *message, uint16_t reply_type, const ProtobufCMessage **reply,
                   int *fds, unsigned fd_count, struct ipc_error *error);
static inline int request_fds(struct ipc_connection *connection, uint16_t type,
                              const ProtobufCMessage *message, uint16_t reply_type,
                              const ProtobufCMessage **reply, int *fds, unsigned fd_count,
                              struct ipc_error *error)
{
    return request_fds_of(connection, NULL, type, message, reply_type, reply, fds, fd_count, error);
}
/* The same with one descriptor, or none (NULL). */
static inline int request(struct ipc_connection *connection, uint16_t type, const ProtobufCMessage *message,
                          uint16_t reply_type, const ProtobufCMessage **reply, int *fd,
                          struct ipc_error *error)
{
    return request_fds(connection, type, message, reply_type, reply, fd, fd ? 1 : 0, error);
}
void request_done(struct ipc_connection *connection);
/* A request whose answer is DONE, and that is all. 0 or negative errno. */
int request_simple_of(struct ipc_connection *connection, const struct handle *of, uint16_t type,
                      const ProtobufCMessage *message, struct ipc_error *error);
static inline int request_simple(struct ipc_connection *connection, uint16_t type,
                                 const ProtobufCMessage *message, struct ipc_error *error)
{
    return request_simple_of(connection, NULL, type, message, error);
}
/* End a handle in the broker, unless its session is over. If that cannot be asked now, it is asked with the next words
 * to the broker. */
void request_undo(const struct handle *handle, uint16_t type, const ProtobufCMessage *message);

/* connection.c: handles come and go; takes the lock. */
void handle_add(struct ipc_connection *connection, struct handle *handle);
/* It is declared in this session, as `id`; what came for it before is let go; under lock. */
void handle_declared(struct handle *handle, uint64_t id);
void handle_remove(struct ipc_connection *connection, struct handle *handle);

/* The session in which it was declared is over. */
static inline bool handle_ended(const struct handle *handle)
{
    return atomic_load_explicit(&handle->connection->epoch, memory_order_acquire) != handle->epoch;
}

/* Whatever reaches an inbox comes with mail, which each handle sees for itself. */
static inline bool handle_has_mail(const struct handle *handle)
{
    return atomic_load_explicit(handle->mail, LANE_LOOK) != handle->mail_seen;
}

/* What a thread sleeps on beside its lanes, loaded before it looks for the last time: mail, and the news
 * count, which tells what other threads of this process took in for it. */
static inline void handle_words(const struct handle *handle, struct lane_word *words)
{
    struct ipc_connection *connection = handle->connection;
    uint32_t news = atomic_load_explicit(&connection->news, memory_order_seq_cst);
    uint32_t mail = atomic_load_explicit(&connection->board->mail, memory_order_seq_cst);
    words[0] = (struct lane_word){&connection->board->mail, mail, false};
    words[1] = (struct lane_word){&connection->news, news, true};
}

#endif
