/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file service.h
 * Services: calls by name, answered by one of several servers.
 *
 * A service's name has the form of a topic's, without wildcards; services and topics are different name spaces. A
 * call goes through a lane of its client to one server, and the answer through a lane of that server to the client:
 * the broker introduces them and is not on the path of a call. Calls of one client are spread over up to 4 servers
 * at a time, each to the one that has the fewest of them open.
 *
 * **A call is executed at most once**, unless it was made with IPC_CALL_RETRY: then it may have been executed by a
 * server that died before it answered, and again by another.
 *
 * A server or a client is used by one thread at a time, with its requests and calls.
 */
#ifndef IPC_SERVICE_H
#define IPC_SERVICE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <ipc/connection.h>
#include <ipc/error.h>
#include <ipc/topic.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ipc_server ipc_server;
typedef struct ipc_client ipc_client;
typedef struct ipc_call ipc_call;

/* ---- serving --------------------------------------------------------------------------------------------- */

/** Options of ipc_server_open(). Start from IPC_SERVER_OPTIONS_INIT. */
struct ipc_server_options {
    size_t size;               /**< sizeof(struct ipc_server_options) */
    uint32_t message_size_max; /**< bytes of a reply, headers included; 0: half the ring, less 24 */
    uint32_t
        ring_size; /**< bytes for the replies to each client; 0: 256 KiB or what message_size_max needs */
    uint32_t requests_max; /**< requests that may be open at a time; 0: 1,024; at most 65,536 */
    int64_t block_max_ns;  /**< how long a reply waits for a client that does not read before that client is
                                    detached; default 1 s */
    int64_t spin_max_ns;   /**< as in struct ipc_subscription_options */
};
#define IPC_SERVER_OPTIONS_INIT                                                      \
 {                                                                                   \
  sizeof(struct ipc_server_options), 0, 0, 0, INT64_C(1000000000), IPC_SPIN_ADAPTIVE \
 }

/**
 * Serve calls of a name from now on. Several servers of one name share its calls.
 *
 * @return 0; -EINVAL; -EDQUOT a limit of this user is reached; -EACCES; -EPIPE the session is over; -ETIMEDOUT;
 *         -ENOMEM
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_server_open(ipc_server **ret, ipc_connection *connection, const char *service,
                               const struct ipc_server_options *options, struct ipc_error *error);

/** Stop serving. Calls that were not answered end with -EPIPE at their clients, or go to another server; open
 * requests become invalid. NULL is allowed. @return NULL */
IPC_PUBLIC ipc_server *ipc_server_close(ipc_server *server);

/** A call that this server has to answer: open until it was answered. */
struct ipc_request {
    const void *data; /**< the payload: size bytes, as ipc_server_receive() says */
    size_t size;
    uint64_t deadline_ns; /**< CLOCK_MONOTONIC: nobody waits for the answer any more; 0: none */
    const struct ipc_peer
        *caller;              /**< told by the broker, not by the caller; as long as the request is open */
    const char *content_type; /**< NULL: none. Valid until the next ipc_server_receive(), as the next two */
    const void *fields;       /**< for ipc_request_header() */
    size_t fields_size;
    void *context; /**< the user's own; NULL at first */
};

/**
 * Take the next request. Several may be open at a time and be answered in any order. Calls that nobody waits for any
 * more (their deadline has passed, they were cancelled, their client is gone) are left out.
 *
 * @param buffer      capacity bytes: the payload is copied here. NULL: data points into shared memory, until the next
 *                    ipc_server_receive(); the caller's process can still write to it: a server that does not trust
 *                    it copies first and checks then
 * @param request     receives it; the library's, until it was answered
 * @param timeout_ns  how long to wait for one
 * @return the payload's size; -EAGAIN none (timeout 0); -ETIMEDOUT none in time; -EMSGSIZE larger than capacity:
 *         the call stays to be received; -EBUSY requests_max are open; -EPIPE the session is over
 */
IPC_PUBLIC ssize_t ipc_server_receive(ipc_server *server, void *buffer, size_t capacity,
                                      struct ipc_request **request, int64_t timeout_ns);

/** A header of a request, as ipc_message_header(). */
IPC_PUBLIC int ipc_request_header(const struct ipc_request *request, const char *name, const void **value,
                                  size_t *value_size);

/**
 * Answer a request; it is over then. If the client reads too slowly, waits for it up to block_max_ns.
 *
 * @param how         NULL: no headers. Flags must be 0
 * @return 0; -EPIPE the client, or the session in which it came, is gone: the request is over as well; -EMSGSIZE larger
 *         than message_size_max, and -EINVAL, -E2BIG: the request is still open
 */
IPC_PUBLIC int ipc_request_reply(struct ipc_request *request, const void *data, size_t size,
                                 const struct ipc_publish *how);

/** One part of a streamed answer; the request stays open until ipc_request_end(), ipc_request_reply() (the last
 * part) or ipc_request_fail(). @return as ipc_request_reply(); -ECANCELED the client wants no more: the request is still
 * open */
IPC_PUBLIC int ipc_request_part(struct ipc_request *request, const void *data, size_t size,
                                const struct ipc_publish *how);

/** The end of a streamed answer. @return as ipc_request_reply() */
IPC_PUBLIC int ipc_request_end(struct ipc_request *request);

/**
 * Answer with an error; the request is over then.
 *
 * @param code        of the service's own choice
 * @param text        a sentence, at most 255 bytes of it; NULL: none
 * @param data        size bytes for programs, or NULL
 * @return as ipc_request_reply()
 */
IPC_PUBLIC int ipc_request_fail(struct ipc_request *request, int code, const char *text, const void *data,
                                size_t size);

/** Does nobody wait for the answer any more? Takes in what clients say without waiting. Answering is still required
 * (ipc_request_end() will do). @return 1 nobody does; 0 */
IPC_PUBLIC int ipc_request_cancelled(struct ipc_request *request);

/** A descriptor that is readable (level-triggered) while there may be requests: then receive with timeout 0 until
 * -EAGAIN. As ipc_subscription_fd(). */
IPC_PUBLIC int ipc_server_fd(ipc_server *server);

/** What a server has seen. */
struct ipc_server_stats {
    uint64_t received;           /**< requests */
    uint64_t answered;           /**< of these, answered with success or an error */
    uint64_t expired;            /**< calls left out because their deadline had passed */
    uint64_t cancelled;          /**< calls that were cancelled */
    uint64_t sleeps, polls, net; /**< as in struct ipc_subscription_stats */
    uint64_t rings;              /**< clients woken: one system call each */
    uint32_t open;               /**< requests now */
    uint32_t clients;            /**< now */
};
IPC_PUBLIC int ipc_server_stats(ipc_server *server, struct ipc_server_stats *ret);

/* ---- calling --------------------------------------------------------------------------------------------- */

/** Options of ipc_client_open(). Start from IPC_CLIENT_OPTIONS_INIT. */
struct ipc_client_options {
    size_t size;               /**< sizeof(struct ipc_client_options) */
    uint32_t message_size_max; /**< bytes of a call, headers included; 0: half the ring, less 40 */
    uint32_t ring_size; /**< bytes for the calls to each server; 0: 256 KiB or what message_size_max needs */
    uint32_t calls_max; /**< calls that may be open at a time; 0: 65,536, the most */
    uint64_t
        buffer_max; /**< bytes of parts that were received and not taken yet, above which a streamed answer
                                    is given up; default 16 MiB */
    int64_t spin_max_ns; /**< as in struct ipc_subscription_options */
};
#define IPC_CLIENT_OPTIONS_INIT                                                     \
 {                                                                                  \
  sizeof(struct ipc_client_options), 0, 0, 0, UINT64_C(16777216), IPC_SPIN_ADAPTIVE \
 }

/**
 * Make ready to call a service. It need not have a server yet.
 *
 * @return 0; -EINVAL; -EDQUOT a limit of this user is reached; -EACCES; -ESHUTDOWN the broker stops; -EPIPE the session is
 *         over; -ETIMEDOUT; -ENOMEM, -ENOSPC
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_client_open(ipc_client **ret, ipc_connection *connection, const char *service,
                               const struct ipc_client_options *options, struct ipc_error *error);

/** End it; its calls are cancelled and become invalid. NULL is allowed. @return NULL */
IPC_PUBLIC ipc_client *ipc_client_close(ipc_client *client);

/** How a call is made. Start from IPC_CALL_OPTIONS_INIT. */
struct ipc_call_options {
    size_t size;                      /**< sizeof(struct ipc_call_options) */
    unsigned flags;                   /**< IPC_CALL_* */
    int64_t timeout_ns;               /**< the whole call, all waits included; default 5 s */
    const char *content_type;         /**< NULL: none */
    const struct ipc_header *headers; /**< header_count of them */
    size_t header_count;
    void (*done)(ipc_call *call,
                 void *context); /**< NULL, or called by ipc_client_dispatch() when the call is over; it
                                                      may free it */
    void *context;
};
#define IPC_CALL_OPTIONS_INIT                                                        \
 {                                                                                   \
  sizeof(struct ipc_call_options), 0, INT64_C(5000000000), NULL, NULL, 0, NULL, NULL \
 }

/** If its server leaves before it answers, ask another: the call may be executed twice. */
#define IPC_CALL_RETRY 0x1u
/** If there is no server, wait for one to appear. */
#define IPC_CALL_WAIT  0x2u
/** ipc_call_start(): if there is no room in the lane to its server, keep a copy and send it from later calls of the
 * library on this client, instead of waiting for room. No event says that there is room: dispatch at times. */
#define IPC_CALL_KEEP  0x4u

/** An answer, or a part of one, or an error. */
struct ipc_reply {
    const void *data; /**< size bytes */
    size_t size;
    int code;         /**< of an error that the server answered with (-EREMOTEIO); else the call's result */
    const char *text; /**< a sentence about an error; "" if there is none */
    struct ipc_peer server;   /**< who answered, or who left; session 0: nobody */
    unsigned reason;          /**< -EPIPE: why that server left, an enum ipc_reason */
    const char *content_type; /**< NULL: none */
    const void *fields;       /**< for ipc_reply_header() */
    size_t fields_size;
};

/** A header of a reply, as ipc_message_header(). */
IPC_PUBLIC int ipc_reply_header(const struct ipc_reply *reply, const char *name, const void **value,
                                size_t *value_size);

/**
 * Call and wait for the answer.
 *
 * @param data        size bytes: the payload
 * @param buffer      capacity bytes: the answer's payload is copied here
 * @param options     NULL: the defaults
 * @param reply       NULL, or receives everything else, on failure too; valid until the next call of the library on
 *                    this client
 * @return the size of the answer's payload. Errors:
 *         -ENOENT the service has no server, -EDQUOT none that has room for this client, as a limit was reached (at
 *         once; IPC_CALL_WAIT waits); -ESHUTDOWN the broker stops, and finishes what is under way (a connection that
 *         reconnects waits for the next broker);
 *         -EREMOTEIO the server answered with an error: reply->code and text;
 *         -EPIPE the server left before it answered (reply->server, reason), or reply->server.session is 0 and the
 *         session is over; -ECONNRESET the broker went away before an answer came, and this connection reconnects
 *         (IPC_CONNECTION_RECONNECT): the call may have been executed or not;
 *         -ETIMEDOUT no answer in time; -EMSGSIZE the call is larger than message_size_max (reply->size is 0), or the
 *         answer larger than capacity (reply->size says how large; it is lost); -EBUSY calls_max are open; -E2BIG;
 *         -ENOMEM
 *
 * No system call unless the server sleeps or there is no room, and this thread has to.
 */
IPC_PUBLIC ssize_t ipc_client_call(ipc_client *client, const void *data, size_t size, void *buffer,
                                   size_t capacity, const struct ipc_call_options *options,
                                   struct ipc_reply *reply);

/**
 * Start a call, and go on. Waits only for room in the lane to its server, within its timeout (IPC_CALL_KEEP: not at all). While a connection that
 * reconnects has no session it is sent later, as if it had IPC_CALL_WAIT.
 *
 * @param ret         receives the call; yours, free it with ipc_call_free()
 * @return 0; -ENOENT, -EDQUOT, -ESHUTDOWN, -EMSGSIZE, -EBUSY, -E2BIG, -ETIMEDOUT, -EPIPE, -ENOMEM as ipc_client_call()
 */
IPC_PUBLIC int ipc_call_start(ipc_call **ret, ipc_client *client, const void *data, size_t size,
                              const struct ipc_call_options *options);

/**
 * The next part of the answer; an answer that is not streamed has one part.
 *
 * @param reply       NULL, or receives the part or the error; valid until the next call of the library on this call
 * @param timeout_ns  how long to wait for it, beside the call's own timeout
 * @return 1 a part; 0 that was all; -EAGAIN none yet (timeout 0); -ETIME none in this time, the call goes on; or, the
 *         call being over, -EREMOTEIO, -EPIPE, -ECONNRESET, -ETIMEDOUT, -ENOENT, -EDQUOT, -ESHUTDOWN as ipc_client_call(),
 *         -ECANCELED it was cancelled, -ENOBUFS more than buffer_max was received and not taken
 */
IPC_PUBLIC int ipc_call_next(ipc_call *call, struct ipc_reply *reply, int64_t timeout_ns);

/** Wait until the call is over, whether its parts were taken or not. @return 0; -EAGAIN, -ETIME not yet */
IPC_PUBLIC int ipc_call_wait(ipc_call *call, int64_t timeout_ns);

/** Give it up: it is over with -ECANCELED, unless it was over before, and its server is told. @return 0 */
IPC_PUBLIC int ipc_call_cancel(ipc_call *call);

/** Free it; if it is not over, it is cancelled first. NULL is allowed. @return NULL */
IPC_PUBLIC ipc_call *ipc_call_free(ipc_call *call);

/** What was given as options.context. */
IPC_PUBLIC void *ipc_call_context(const ipc_call *call);

/**
 * Take in answers, end calls whose time is up, and run the done functions of those that are over.
 *
 * @param timeout_ns  how long to wait for the first
 * @return the number of calls that came to their end, perhaps 0; -EPIPE the session is over (after the done functions
 *         of all calls have run)
 */
IPC_PUBLIC int ipc_client_dispatch(ipc_client *client, int64_t timeout_ns);

/** A descriptor that is readable (level-triggered) while ipc_client_dispatch() has something to do, deadlines
 * included: then dispatch with timeout 0. As ipc_subscription_fd(). */
IPC_PUBLIC int ipc_client_fd(ipc_client *client);

/** What a client has seen. */
struct ipc_client_stats {
    uint64_t calls;
    uint64_t failed;             /**< ended otherwise than by an answer */
    uint64_t retried;            /**< sent to another server after theirs had left */
    uint64_t waits;              /**< times a call waited for room */
    uint64_t sleeps, polls, net; /**< as in struct ipc_subscription_stats */
    uint64_t rings;              /**< servers woken: one system call each */
    uint32_t open;               /**< calls now */
    uint32_t servers;            /**< it has a lane to, now */
};
IPC_PUBLIC int ipc_client_stats(ipc_client *client, struct ipc_client_stats *ret);

#ifdef __cplusplus
}
#endif
#endif
