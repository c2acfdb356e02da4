/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file queue.h
 * Queues: each message goes to one consumer, and stays until that consumer has acknowledged it.
 *
 * A queue has a name as a topic has one (no wildcards) and exists by itself: it is declared by the broker's
 * configuration, by `ipcctl queue create` or by ipc_queue_create(). A producer puts messages in, the broker
 * hands each to one of the consumers, and again to another one if that one dies, refuses it, or takes too
 * long.
 *
 * - **At least once.** What was confirmed to a producer is delivered until some consumer acknowledges it,
 *   whatever process is killed meanwhile, the broker included. A message that comes again says so (attempt,
 *   redelivery). With message ids and a queue that remembers them, sending again what was not confirmed makes
 *   no duplicates.
 * - **Order** is kept per producer and priority, and per key. What is delivered again comes before what
 *   follows it.
 * - Producers and consumers live on when the broker is killed and started again: nothing is to be done for
 *   it.
 */
#ifndef IPC_QUEUE_H
#define IPC_QUEUE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <ipc/connection.h>
#include <ipc/error.h>
#include <ipc/topic.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ipc_producer ipc_producer;
typedef struct ipc_consumer ipc_consumer;

/* ---- queues ----------------------------------------------------------------------------------------------
 * */

/** What happens to a message when its queue is full. */
enum ipc_queue_full {
    IPC_QUEUE_FULL_BLOCK = 0,       /**< its producer waits, and no other */
    IPC_QUEUE_FULL_REJECT = 1,      /**< it is refused: see ipc_producer_next_refusal() */
    IPC_QUEUE_FULL_DROP_OLDEST = 2, /**< the oldest message that waits makes room for it */
    IPC_QUEUE_FULL_DEAD_LETTER = 3, /**< it goes to the queue for dead letters, and counts as accepted */
};

/** What survives. */
enum ipc_queue_safety {
    IPC_QUEUE_CRASH_SAFE =
        0, /**< what was confirmed survives the death of any process, but not of the machine */
    IPC_QUEUE_BEST_EFFORT = 1, /**< content ends with the broker's process */
};

/** Settings of a queue. Start from IPC_QUEUE_SETTINGS_INIT, set fields, and name them in `given`. */
struct ipc_queue_settings {
    size_t size;                  /**< sizeof(struct ipc_queue_settings) */
    unsigned given;               /**< IPC_QUEUE_*: the fields that count. The others keep what they had */
    enum ipc_queue_full full;     /**< default: block */
    enum ipc_queue_safety safety; /**< default: crash safe; fixed at creation */
    uint32_t
        message_size_max;  /**< bytes, headers included, up to 64 MiB; default 64 KiB; fixed at creation */
    uint64_t messages_max; /**< that wait or are with consumers; 0, the default: no limit but bytes */
    uint64_t bytes_max;    /**< of memory that they take; default 64 MiB */
    uint64_t ttl_ns;       /**< of messages that do not say; 0, the default: for ever */
    uint64_t delay_ns;     /**< of messages that do not say; 0, the default: none */
    uint64_t
        lease_ns; /**< a message that a consumer has for longer is taken back; 0, the default: never, unless
                                      it dies */
    uint32_t
        attempts_max; /**< deliveries before a message becomes a dead letter, up to 1,000; 0, the default: no limit */
    uint32_t
        dedup_window; /**< message ids that it remembers, up to 1,048,576; 0, the default: none; fixed at creation */
    uint64_t dedup_window_ns; /**< and for how long; 0, the default: until there are too many */
    const char *
        dead_letter; /**< queue that dead letters go to; "" or NULL, the default: they are dropped, and counted */
    int paused;      /**< nothing is delivered while this is not 0 */
};
#define IPC_QUEUE_SETTINGS_INIT                                                                             \
 {                                                                                                          \
  sizeof(struct ipc_queue_settings), 0, IPC_QUEUE_FULL_BLOCK, IPC_QUEUE_CRASH_SAFE, 0, 0, 0, 0, 0, 0, 0, 0, \
      0, NULL, 0                                                                                            \
 }

#define IPC_QUEUE_MESSAGES_MAX     0x0002u
#define IPC_QUEUE_BYTES_MAX        0x0004u
#define IPC_QUEUE_MESSAGE_SIZE_MAX 0x0008u
#define IPC_QUEUE_FULL             0x0010u
#define IPC_QUEUE_SAFETY           0x0020u
#define IPC_QUEUE_TTL              0x0040u
#define IPC_QUEUE_DELAY            0x0080u
#define IPC_QUEUE_LEASE            0x0100u
#define IPC_QUEUE_ATTEMPTS_MAX     0x0200u
#define IPC_QUEUE_DEAD_LETTER      0x0400u
#define IPC_QUEUE_DEDUP_WINDOW     0x0800u
#define IPC_QUEUE_DEDUP_WINDOW_NS  0x1000u
#define IPC_QUEUE_PAUSED           0x2000u

/** Flag of ipc_queue_create(): if there is such a queue, leave it as it is and return 0. */
#define IPC_QUEUE_MAY_EXIST 0x1u
/** Flag of ipc_queue_remove(): only if it holds no message. */
#define IPC_QUEUE_IF_EMPTY  0x1u

/**
 * Create a queue. It stays when this connection ends.
 *
 * @param settings    NULL: the defaults
 * @param flags       0 or IPC_QUEUE_MAY_EXIST
 * @param error       filled in on failure if not NULL
 * @return 0; -EEXIST; -EINVAL a name or a setting is bad (the error says what); -EACCES; -EDQUOT; -EPIPE;
 *         -ETIMEDOUT; -ENOMEM
 *
 * Any thread. Blocks up to the connection's timeout, as the two functions below.
 */
IPC_PUBLIC int ipc_queue_create(ipc_connection *connection, const char *queue,
                                const struct ipc_queue_settings *settings, unsigned flags,
                                struct ipc_error *error);

/** Change settings of a queue that is in use. @return as ipc_queue_create(); -ENOENT there is no such queue
 * */
IPC_PUBLIC int ipc_queue_set(ipc_connection *connection, const char *queue,
                             const struct ipc_queue_settings *settings, struct ipc_error *error);

/** Remove a queue with all that is in it. Its producers and consumers get -EIDRM.
 * @return 0; -ENOENT; -EBUSY it is not empty (IPC_QUEUE_IF_EMPTY); -EACCES; -EPIPE; -ETIMEDOUT */
IPC_PUBLIC int ipc_queue_remove(ipc_connection *connection, const char *queue, unsigned flags,
                                struct ipc_error *error);

/* ---- producing -------------------------------------------------------------------------------------------
 * */

/**
 * A message that the queue did not take.
 *
 * Every message has a ticket: a number that is greater than that of the producer's message before it, and
 * never 0.
 */
struct ipc_refusal {
    uint64_t ticket; /**< of the message, as the call that sent it told */
    int code;        /**< negative errno */
    char text[244];  /**< which queue, why, and what to do; terminated */
};

/** Options of ipc_producer_open(). Start from IPC_PRODUCER_OPTIONS_INIT. */
struct ipc_producer_options {
    size_t size; /**< sizeof(struct ipc_producer_options) */
    uint32_t
        ring_size; /**< bytes on the way to the broker, rounded up to a power of two, at most 256 MiB; 0: 256 KiB, or
                              what two messages of the queue's largest size need */
    int64_t spin_max_ns; /**< as in struct ipc_subscription_options: for waits for room and for confirms */
    /** Called by ipc_producer_dispatch(), in its thread, for each message that was refused; NULL: they are kept for
     * ipc_producer_next_refusal(). It may send, but not dispatch nor close. */
    void (*refused)(void *context, const struct ipc_refusal *refusal);
    /** Called by ipc_producer_dispatch() when more was confirmed: everything up to that ticket is decided. NULL: none */
    void (*confirmed)(void *context, uint64_t ticket);
    void *context; /**< handed to both */
};
#define IPC_PRODUCER_OPTIONS_INIT                                             \
 {                                                                            \
  sizeof(struct ipc_producer_options), 0, IPC_SPIN_ADAPTIVE, NULL, NULL, NULL \
 }

/**
 * Begin to send to a queue.
 *
 * @param ret         receives the producer; yours, end it with ipc_producer_close()
 * @param connection  it belongs to; must outlive it, or end it
 * @param queue       its name
 * @param options     NULL: the defaults
 * @param error       filled in on failure if not NULL
 * @return 0; -ENOENT there is no such queue; -EINVAL; -EACCES; -EDQUOT; -EPIPE the session is over;
 *         -ETIMEDOUT; -ENOMEM, -ENOSPC, -EMFILE
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_producer_open(ipc_producer **ret, ipc_connection *connection, const char *queue,
                                 const struct ipc_producer_options *options, struct ipc_error *error);

/** Stop sending. What was sent is still taken in, in so far as the queue has room; who wants to know calls
 * ipc_producer_flush() first. An open loan is aborted. NULL is allowed. Blocks for one exchange with the
 * broker.
 * @return NULL */
IPC_PUBLIC ipc_producer *ipc_producer_close(ipc_producer *producer);

/** How a message is sent. Start from IPC_SEND_INIT. */
struct ipc_send {
    size_t size;            /**< sizeof(struct ipc_send) */
    unsigned flags;         /**< IPC_SEND_* */
    unsigned priority;      /**< 0, the lowest, to 9 */
    uint64_t ttl_ns;        /**< it expires that long after now; 0: as the queue says; UINT64_MAX: never */
    uint64_t delay_ns;      /**< it is delivered that long after now at the earliest; 0: as the queue says */
    uint64_t deliver_at_ns; /**< or at that CLOCK_REALTIME, as the clock stands now; 0: see delay_ns */
    const void *id;         /**< for deduplication: id_size bytes, 0 (none) to 255 */
    size_t id_size;         /**< bytes */
    const void *key;        /**< messages of one key go to one consumer at a time, in order: key_size bytes */
    size_t key_size;        /**< bytes, 0 (none) to 255 */
    const char *reply_to;   /**< name of the queue that answers go to; NULL: none */
    const char *content_type;         /**< NULL: none. A media type (RFC 6838), at most 255 bytes */
    const struct ipc_header *headers; /**< header_count of them */
    size_t header_count;              /**< 0 to 64 */
};
#define IPC_SEND_INIT                                                           \
 {                                                                              \
  sizeof(struct ipc_send), 0, 0, 0, 0, 0, NULL, 0, NULL, 0, NULL, NULL, NULL, 0 \
 }

/** Deliver it without delay, even if the queue has one. */
#define IPC_SEND_AT_ONCE   0x1u
/** Put the time of sending (CLOCK_REALTIME) into the message. */
#define IPC_SEND_TIMESTAMP 0x2u
/** More follows at once, as MSG_MORE of send(2): send this message, but do not wake the broker's router yet if it sleeps. The
 * next message without this flag wakes it, ipc_producer_ring(), ipc_producer_confirm(), _flush(), _dispatch() or _close(), or
 * lack of room; and if this process dies first, the queue takes in what was sent all the same. Never wait for anything else
 * before one of these. */
#define IPC_SEND_MORE      0x4u

/**
 * Send one message. Returns when it is in the producer's lane to the broker, from where the queue takes it
 * even if this process is killed now; it is *accepted* when it is confirmed.
 *
 * @param data        `size` bytes; may be NULL if size is 0; yours again when the call returns
 * @param timeout_ns  how long to wait for room, which is missing while the queue is full and blocks
 * @param ticket      receives the message's ticket if not NULL
 * @return 0; -EAGAIN no room (timeout 0); -ETIMEDOUT no room in time; -EMSGSIZE larger than the queue allows;
 *         -EBUSY a loan is open; -ENOBUFS 1,024 refused messages wait to be taken
 *         (ipc_producer_next_refusal()); -EIDRM the queue was removed; -EACCES it may not be used any more;
 *         -EPIPE the session is over; -EPROTO the broker's lane makes no sense
 *
 * One thread at a time, as everything below. No system call while the broker's router is awake and there is
 * room.
 */
IPC_PUBLIC int ipc_producer_send(ipc_producer *producer, const void *data, size_t size, int64_t timeout_ns,
                                 uint64_t *ticket);

/** The same, gathered from piece_count pieces, with everything that `how` says (NULL: nothing).
 * @return as ipc_producer_send(); -EINVAL also if `how` makes no sense; -E2BIG the headers exceed their
 *         limits */
IPC_PUBLIC int ipc_producer_sendv(ipc_producer *producer, const struct iovec *pieces, int piece_count,
                                  const struct ipc_send *how, int64_t timeout_ns, uint64_t *ticket);

/** Wake the router if it sleeps on what was sent with IPC_SEND_MORE. No system call if it does not.
 * @return 0; -EIDRM, -EACCES, -EPIPE, -EPROTO, -ECHILD */
IPC_PUBLIC int ipc_producer_ring(ipc_producer *producer);

/**
 * Send `count` messages, each one iovec, in the same manner: cheaper per message than one at a time. Parts of
 * them, each as much as fits into a quarter of the lane, become visible to the broker at once.
 *
 * @param how         NULL: nothing; else the same for all of them, without id
 * @param ticket      receives the last sent message's ticket if not NULL
 * @return how many were sent (>= 1): fewer than `count` if there was no room in time, or if one is too large;
 *         otherwise as ipc_producer_sendv()
 */
IPC_PUBLIC ssize_t ipc_producer_send_batch(ipc_producer *producer, const struct iovec *messages, size_t count,
                                           const struct ipc_send *how, int64_t timeout_ns, uint64_t *ticket);

/** Borrow room for a message of up to size_max bytes in the lane itself, to build it in place. One loan may
 * be open.
 * @param ret receives where to write; valid until commit or abort. @return as ipc_producer_sendv() */
IPC_PUBLIC int ipc_producer_loan(ipc_producer *producer, size_t size_max, const struct ipc_send *how,
                                 int64_t timeout_ns, void **ret);

/** Send the open loan with `size` bytes. @return 0; -EINVAL no loan is open, or size is larger than what was
 * borrowed; -EIDRM, -EACCES, -EPIPE, -EPROTO */
IPC_PUBLIC int ipc_producer_commit(ipc_producer *producer, size_t size, uint64_t *ticket);

/** Give the open loan back. @return 0; -EINVAL no loan is open */
IPC_PUBLIC int ipc_producer_abort(ipc_producer *producer);

/**
 * Wait until the fate of the message with that ticket is decided.
 *
 * @param error       filled in if it was refused, and if the call failed
 * @return 0: it is in the queue, or is a duplicate of one that was; the code of its refusal, which is taken
 *         by this (a refusal that was taken before is not known any more: 0), also if the session is over by now;
 *         -EAGAIN not decided (timeout 0); -ETIMEDOUT not decided in time; -EINVAL there is no such ticket; -EIDRM, -EACCES, -EPIPE,
 *         -EPROTO as ipc_producer_send()
 */
IPC_PUBLIC int ipc_producer_confirm(ipc_producer *producer, uint64_t ticket, int64_t timeout_ns,
                                    struct ipc_error *error);

/**
 * Wait until the fate of everything that was sent is decided.
 *
 * @return 0: every message that was sent since the last flush is in the queue, or is a duplicate; -EBADMSG:
 *         all are decided, and some of them were refused: ipc_producer_next_refusal() tells which, unless
 *         they were taken before; otherwise as ipc_producer_confirm()
 */
IPC_PUBLIC int ipc_producer_flush(ipc_producer *producer, int64_t timeout_ns);

/** Everything up to this ticket is decided, as far as it is known now. 0: nothing yet. Does not block. */
IPC_PUBLIC uint64_t ipc_producer_confirmed(ipc_producer *producer);

/** Take the oldest refused message that was not taken yet. When the session is over (-EPIPE), everything that was sent
 * and not decided before counts as refused, with the code -EPIPE: it may be lost, and can be sent again by another
 * producer. (If only this session ended, and not the broker, the queue may have taken it in afterwards: ids keep it
 * from coming twice.) @return 1 one was stored; 0 there is none. Does not block. */
IPC_PUBLIC int ipc_producer_next_refusal(ipc_producer *producer, struct ipc_refusal *ret);

/** Take in confirms and refusals, call the callbacks, and make the descriptor quiet. Does not block.
 * @return 0; -EIDRM, -EACCES, -EPIPE, -EPROTO */
IPC_PUBLIC int ipc_producer_dispatch(ipc_producer *producer);

/**
 * A descriptor for poll, epoll and the like: readable when there is something for ipc_producer_dispatch():
 * confirms, refusals, news from the broker. Owned by the producer; never read from it or close it.
 *
 * @return the descriptor (>= 0); -EMFILE, -ENFILE, -ENOMEM, -EPIPE, -ETIMEDOUT
 *
 * The first call asks the broker for a bell and blocks for that.
 */
IPC_PUBLIC int ipc_producer_fd(ipc_producer *producer);

struct ipc_producer_stats {
    uint64_t sent;             /**< messages */
    uint64_t bytes;            /**< of lane, record words and headers included */
    uint64_t undecided_bytes;  /**< of those, not decided yet */
    uint64_t refused;          /**< messages */
    uint64_t duplicates;       /**< messages: as far as the broker told */
    uint64_t waits;            /**< times it had to wait for room */
    uint64_t sleeps;           /**< times it went to sleep, for room or for confirms */
    uint64_t rings;            /**< times it had to wake the router: one system call each */
    uint64_t net;              /**< times only the bounded wait found what it waited for (should stay 0) */
    uint32_t message_size_max; /**< bytes, headers included */
    uint32_t ring_size;        /**< bytes */
};
IPC_PUBLIC int ipc_producer_stats(ipc_producer *producer, struct ipc_producer_stats *ret);

/* ---- consuming -------------------------------------------------------------------------------------------
 * */

/** Options of ipc_consumer_open(). Start from IPC_CONSUMER_OPTIONS_INIT. */
struct ipc_consumer_options {
    size_t size; /**< sizeof(struct ipc_consumer_options) */
    uint32_t
        prefetch; /**< messages that it may have and not have acknowledged, 1 to 65,536; 0: 256. 1: strictly one after
                              the other, and the best balance; more: the best throughput */
    uint32_t
        ring_size; /**< bytes on the way from the broker, rounded up to a power of two, at most 256 MiB; 0: 256 KiB, or
                              what two messages of the queue's largest size need */
    int64_t spin_max_ns; /**< as in struct ipc_subscription_options */
};
#define IPC_CONSUMER_OPTIONS_INIT                              \
 {                                                             \
  sizeof(struct ipc_consumer_options), 0, 0, IPC_SPIN_ADAPTIVE \
 }

/** Begin to consume from a queue. Parameters and errors as ipc_producer_open(). */
IPC_PUBLIC int ipc_consumer_open(ipc_consumer **ret, ipc_connection *connection, const char *queue,
                                 const struct ipc_consumer_options *options, struct ipc_error *error);

/** Stop consuming. What was acknowledged is acknowledged; everything else that it has goes to others, marked
 * IPC_REDELIVERED_CLOSED. NULL is allowed. Blocks for one exchange with the broker. @return NULL */
IPC_PUBLIC ipc_consumer *ipc_consumer_close(ipc_consumer *consumer);

/** Why a message comes again. */
enum ipc_redelivered {
    IPC_REDELIVERED_NOT = 0,      /**< it is the first time */
    IPC_REDELIVERED_DIED = 1,     /**< the consumer that had it died */
    IPC_REDELIVERED_CLOSED = 2,   /**< that consumer was closed */
    IPC_REDELIVERED_REFUSED = 3,  /**< that consumer refused it: ipc_consumer_nack() */
    IPC_REDELIVERED_EXPIRED = 4,  /**< that consumer took longer than the queue's lease */
    IPC_REDELIVERED_REQUEUED = 5, /**< an operator put it back */
};

/** The short word for it, such as "died". Static; any thread; async-signal-safe. Never NULL. */
IPC_PUBLIC const char *ipc_redelivered_word(unsigned redelivered);

/** A message, as received. */
struct ipc_queue_message {
    const void *data; /**< the payload: size bytes */
    size_t size;
    uint64_t delivery;        /**< by which it is acknowledged: counts up by 1 per message of a consumer */
    uint64_t number;          /**< of the message in its queue: the same each time it is delivered */
    uint64_t accepted_ns;     /**< CLOCK_REALTIME at which the queue took it */
    uint64_t timestamp_ns;    /**< CLOCK_REALTIME of sending; 0: not stamped */
    uint64_t sender_session;  /**< who sent it, as told by the broker; see struct ipc_peer */
    uint32_t sender_uid;      /**< the same */
    uint32_t sender_pid;      /**< the same */
    unsigned attempt;         /**< 1: the first time that it is delivered */
    unsigned redelivered;     /**< enum ipc_redelivered */
    unsigned priority;        /**< 0 to 9 */
    const char *content_type; /**< terminated; NULL: none */
    const char *reply_to;     /**< name of a queue, terminated; NULL: none */
    const void *id;           /**< id_size bytes; NULL: none */
    size_t id_size;
    const void *key; /**< key_size bytes; NULL: none */
    size_t key_size;
    const void *fields; /**< for ipc_queue_message_header() */
    size_t fields_size;
};

/**
 * Receive one message into a buffer of the caller's.
 *
 * @param buffer      capacity bytes; the payload is copied here
 * @param message     receives everything about it: data is buffer; content_type, reply_to, id, key and fields
 *                    are valid until the next call on this consumer
 * @param timeout_ns  how long to wait for one
 * @return the payload's size; -EAGAIN none (timeout 0); -ETIMEDOUT none in time; -EMSGSIZE larger than
 *         capacity: message->size says how large, and the message stays to be received; -EIDRM the queue was
 *         removed; -EACCES it may not be used any more; -EPIPE the session is over; -EPROTO the broker's lane
 *         makes no sense
 *
 * One thread at a time, as everything below. No system call while there are messages.
 */
IPC_PUBLIC ssize_t ipc_consumer_receive(ipc_consumer *consumer, void *buffer, size_t capacity,
                                        struct ipc_queue_message *message, int64_t timeout_ns);

/**
 * Receive up to `count` messages into one buffer, back to back, each aligned to 8 bytes.
 *
 * @return the number received (>= 1); otherwise as ipc_consumer_receive(), -EMSGSIZE if already the first
 *         does not fit
 */
IPC_PUBLIC ssize_t ipc_consumer_receive_batch(ipc_consumer *consumer, void *buffer, size_t capacity,
                                              struct ipc_queue_message *messages, size_t count,
                                              int64_t timeout_ns);

/**
 * Take up to `count` messages in place: no copy. The memory is written by the broker alone. Acknowledging is
 * another matter, and does not give the place back.
 *
 * @param messages    count of them are filled in; valid until ipc_consumer_release()
 * @return the number taken (>= 1); otherwise as ipc_consumer_receive(). At most 1,024 may be taken and not
 *         released (-EBUSY), and while they are, nothing more may come than fits into the rest of the ring
 */
IPC_PUBLIC ssize_t ipc_consumer_take(ipc_consumer *consumer, struct ipc_queue_message *messages, size_t count,
                                     int64_t timeout_ns);

/** Give back the `count` oldest messages taken. @return 0; -EINVAL fewer are taken */
IPC_PUBLIC int ipc_consumer_release(ipc_consumer *consumer, size_t count);

/**
 * Acknowledge a message: it is done with, and leaves the queue. Written at once, and counts even if this
 * process is killed now.
 *
 * @param delivery    of the message. One that was acknowledged, refused or taken back before is passed over
 * @return 0; -EINVAL no such message has been received; -ETIMEDOUT the broker did not read acknowledgements
 *         within the connection's timeout; -EIDRM, -EACCES, -EPIPE, -EPROTO as ipc_consumer_receive()
 *
 * No system call while the broker's router is awake.
 */
IPC_PUBLIC int ipc_consumer_ack(ipc_consumer *consumer, uint64_t delivery);

/** All from `first` to `last`, both included. */
IPC_PUBLIC int ipc_consumer_ack_range(ipc_consumer *consumer, uint64_t first, uint64_t last);

/** All that were received up to that one. */
IPC_PUBLIC int ipc_consumer_ack_until(ipc_consumer *consumer, uint64_t delivery);

/** These; neighbours in the list that follow each other cost no more than one. @return 0: all; otherwise none
 * is sure */
IPC_PUBLIC int ipc_consumer_ack_many(ipc_consumer *consumer, const uint64_t *deliveries, size_t count);

/** How a message is refused. Start from IPC_NACK_INIT. */
struct ipc_nack {
    size_t size;        /**< sizeof(struct ipc_nack) */
    unsigned flags;     /**< IPC_NACK_* */
    uint64_t delay_ns;  /**< it comes again that much later, at the earliest */
    const char *reason; /**< up to 255 bytes of text: a dead letter keeps it; NULL: none */
};
#define IPC_NACK_INIT                 \
 {                                    \
  sizeof(struct ipc_nack), 0, 0, NULL \
 }

/** Not again: it becomes a dead letter now. */
#define IPC_NACK_DEAD 0x1u

/** Refuse all from `first` to `last`: they are delivered again, to this or another consumer. @param how NULL:
 * at once.
 * @return as ipc_consumer_ack(); -E2BIG the reason is too long */
IPC_PUBLIC int ipc_consumer_nack(ipc_consumer *consumer, uint64_t first, uint64_t last,
                                 const struct ipc_nack *how);

/** The lease of all from `first` to `last` begins anew: for lease_ns from now on; 0: for as long as the queue
 * says. Without effect if the queue has no lease. @return as ipc_consumer_ack() */
IPC_PUBLIC int ipc_consumer_touch(ipc_consumer *consumer, uint64_t first, uint64_t last, uint64_t lease_ns);

/** Wait until the queue has taken in every acknowledgement, refusal and touch: what was acknowledged is gone
 * from it.
 * @return 0; -EAGAIN, -ETIMEDOUT not yet; -EIDRM, -EACCES, -EPIPE, -EPROTO */
IPC_PUBLIC int ipc_consumer_flush(ipc_consumer *consumer, int64_t timeout_ns);

/**
 * A descriptor for poll, epoll and the like: readable while there are messages or news (level-triggered).
 * When it is readable, receive with timeout 0 until -EAGAIN. Owned by the consumer; never read from it or
 * close it.
 *
 * @return the descriptor (>= 0); -EMFILE, -ENFILE, -ENOMEM, -EPIPE, -ETIMEDOUT
 *
 * The first call asks the broker for a bell and blocks for that.
 */
IPC_PUBLIC int ipc_consumer_fd(ipc_consumer *consumer);

struct ipc_consumer_stats {
    uint64_t received;  /**< messages */
    uint64_t answers;   /**< records of acknowledgement, refusal and touch that were written */
    uint64_t sleeps;    /**< times it went to sleep */
    uint64_t polls;     /**< waits that ended while polling */
    uint64_t rings;     /**< times it had to wake the router: one system call each */
    uint64_t net;       /**< times only the bounded wait found what it waited for (should stay 0) */
    uint32_t prefetch;  /**< as granted */
    uint32_t ring_size; /**< bytes */
};
IPC_PUBLIC int ipc_consumer_stats(ipc_consumer *consumer, struct ipc_consumer_stats *ret);

/* ---- what is in a message
 * ---------------------------------------------------------------------------------- */

/** The header of that name: as ipc_message_header(). */
IPC_PUBLIC int ipc_queue_message_header(const struct ipc_queue_message *message, const char *name,
                                        const void **value, size_t *value_size);

/** Walk over all headers: as ipc_message_next_header(). */
IPC_PUBLIC int ipc_queue_message_next_header(const struct ipc_queue_message *message, size_t *position,
                                             const char **name, size_t *name_size, const void **value,
                                             size_t *value_size);

/** How a message became a dead letter. */
struct ipc_dead_letter {
    char origin[256];  /**< the queue that it was in */
    char reason[256];  /**< why it died */
    uint32_t attempts; /**< how often it had been delivered there */
    uint64_t died_ns;  /**< CLOCK_REALTIME */
};

/** What happened to a message before it came into a queue for dead letters. @return 0; -ENOENT it is not a
 * dead letter */
IPC_PUBLIC int ipc_queue_message_dead_letter(const struct ipc_queue_message *message,
                                             struct ipc_dead_letter *ret);

#ifdef __cplusplus
}
#endif
#endif
