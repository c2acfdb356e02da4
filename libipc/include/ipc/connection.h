/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file connection.h
 * A connection to the broker: one session with an identity, and everything that it owns.
 */
#ifndef IPC_CONNECTION_H
#define IPC_CONNECTION_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <ipc/error.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ipc_connection ipc_connection;

/** Options of ipc_connection_open(). Start from IPC_CONNECTION_OPTIONS_INIT. */
struct ipc_connection_options {
    size_t size;        /**< sizeof(struct ipc_connection_options) */
    const char *name;   /**< what the tools show, at most 63 bytes; NULL: the program's short name */
    int64_t timeout_ns; /**< for the connect and for each later request to the broker; default 5 s */
    unsigned flags;     /**< IPC_CONNECTION_* */
};
#define IPC_CONNECTION_OPTIONS_INIT                                   \
 {                                                                    \
  sizeof(struct ipc_connection_options), NULL, INT64_C(5000000000), 0 \
 }

/**
 * When the broker goes away (it is stopped, or killed together with its guardian), connect again and go on with the
 * same publishers and subscriptions. Without this flag their calls return -EPIPE from then on, and a new connection
 * has to be opened.
 *
 * There is no thread behind it: it happens inside the calls on the connection and its handles, each of which looks at
 * times if the broker is still there. Meanwhile nothing fails: a publisher goes on to publish to the readers that it
 * had, and a subscription to receive from them; when the broker is back each of them is declared again by its next
 * call, which takes one more exchange with the broker. (So a thread that waits for its own subscription to be a reader of its
 * publisher calls both in turn.) Calls that need the broker wait for it up to their timeout
 * or the connection's (-ETIMEDOUT, or -EAGAIN if they do not wait). Descriptors keep their numbers.
 *
 * A subscription reads what a publisher wrote before it found the new broker, then what came after; what is missing in
 * between is counted as lost, like any other loss. The program is told by IPC_EVENT_ENDED, IPC_EVENT_RECONNECTED, and by
 * the coming and going of peers. A session that ended for another reason than IPC_REASON_SHUTDOWN stays ended.
 *
 * Servers are registered again by their next ipc_server_receive(); requests of the old session can no more be answered
 * (-EPIPE). Calls that a client had under way end with -ECONNRESET once what was answered is read; with IPC_CALL_RETRY they are
 * sent again as soon as there is a server, within their timeout. A call that is made while there is no session waits for
 * one. Servers may come back later than clients: IPC_CALL_WAIT waits for them, without it there is -ENOENT.
 *
 * Producers, consumers and shared segments (see there) return -EPIPE: close them and open others on the same connection. What
 * a producer sent and the broker had not confirmed is then refused, with -EPIPE: see ipc_producer_next_refusal().
 */
#define IPC_CONNECTION_RECONNECT 0x1u

/**
 * Connect to a broker.
 *
 * @param ret         receives the connection; yours, end it with ipc_connection_close()
 * @param address     path of the broker's socket, at most 107 bytes. NULL: the environment's IPC_ADDRESS; else
 *                    $XDG_RUNTIME_DIR/ipcd/socket if it exists; else /run/ipcd/socket
 * @param options     NULL: the defaults
 * @param error       filled in on failure if not NULL
 * @return 0; -EINVAL an option is bad; -ENOENT or -ECONNREFUSED no broker at that address; -ENAMETOOLONG; -EACCES the broker does not let
 *         this user in; -EDQUOT a limit of this user is reached; -EPROTONOSUPPORT the broker speaks another
 *         version; -ESHUTDOWN it is stopping, or cannot start; -ETIMEDOUT; -EMFILE, -ENFILE, -ENOMEM
 *
 * Any thread. Blocks up to the timeout. After a fork the child opens a connection of its own.
 */
IPC_PUBLIC int ipc_connection_open(ipc_connection **ret, const char *address,
                                   const struct ipc_connection_options *options, struct ipc_error *error);

/**
 * End a connection, its publishers, subscriptions, producers and consumers: all of their handles become invalid. What was
 * published stays readable to those who already read it. NULL is allowed.
 *
 * One thread, when no other uses the connection or anything of it. Blocks for one exchange with the broker. In
 * a forked child it frees the child's memory only, and the parent's session lives on.
 *
 * @return NULL
 */
IPC_PUBLIC ipc_connection *ipc_connection_close(ipc_connection *connection);

/** Who somebody is, as the broker saw it when they connected. */
struct ipc_peer {
    uint64_t session; /**< number of the session, unique in the life of a broker; 0: nobody */
    uint32_t uid;     /**< user, from the socket */
    uint32_t gid;     /**< group, from the socket */
    uint32_t pid;     /**< process, from the socket; may have been reused since */
    char name[64];    /**< what it calls itself: a claim, not an identity */
};

/** Who this connection is to others. Any thread. Does not block. */
IPC_PUBLIC int ipc_connection_identity(const ipc_connection *connection, struct ipc_peer *ret);

/** What happened to a connection: see ipc_connection_next_event(). */
enum ipc_event_kind {
    IPC_EVENT_READER_JOINED = 1, /**< a reader of one of my publishers was admitted */
    IPC_EVENT_READER_LEFT = 2,   /**< a reader left, with a reason */
    IPC_EVENT_WRITER_JOINED = 3, /**< a publisher that matches one of my subscriptions was attached */
    IPC_EVENT_WRITER_LEFT = 4,   /**< such a publisher left, with a reason; all that it published was read */
    IPC_EVENT_ENDED = 5,         /**< the session is over, with a reason */
    IPC_EVENT_RECONNECTED =
        7, /**< a new session began, see IPC_CONNECTION_RECONNECT: peer is what we are now */
    IPC_EVENT_QUEUE_ENDED =
        6, /**< a queue that one of my producers or consumers uses was removed (reason closed), or may
                                      not be used any more; its name is in topic */
};

struct ipc_event {
    unsigned kind;        /**< enum ipc_event_kind */
    unsigned reason;      /**< enum ipc_reason */
    struct ipc_peer peer; /**< who */
    char topic[256];      /**< of which name */
};

/**
 * Take the next event. Events are collected by every call of the library on this connection, those about a
 * publisher's readers by the calls on that publisher (ipc_publisher_wait_readers(publisher, 0, 0) does no more than
 * that), those about a subscription's writers by the calls on that subscription. The last 256 are kept.
 *
 * @return 1 an event was stored in *ret; 0 there is none; -EOVERFLOW some were lost since the last call (call
 *         again)
 *
 * Any thread. Does not block.
 */
IPC_PUBLIC int ipc_connection_next_event(ipc_connection *connection, struct ipc_event *ret);

/**
 * A descriptor for poll, epoll and the like: readable while the connection has news from the broker or any of
 * its subscriptions has messages (level-triggered). On readable, call ipc_connection_dispatch(), then receive
 * from the subscriptions with timeout 0 until -EAGAIN. Owned by the connection; never read from it or close it.
 *
 * @return the descriptor (>= 0); -EMFILE, -ENFILE, -ENOMEM
 *
 * Any thread. The first call asks the broker for bells and blocks for that.
 */
IPC_PUBLIC int ipc_connection_fd(ipc_connection *connection);

/**
 * Take in what the broker has to say (peers come and go). Every publish, receive and wait does this by itself;
 * a program that does none of them for long and wants its descriptor quiet calls this.
 *
 * @return 0; -EPIPE the session is over (the reason comes as an event); -EAGAIN it is over, and the broker was not
 *         there to begin another one (IPC_CONNECTION_RECONNECT): the descriptor is readable when it is time to try again
 *
 * Any thread. Does not block.
 */
IPC_PUBLIC int ipc_connection_dispatch(ipc_connection *connection);

#ifdef __cplusplus
}
#endif
#endif
