/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file topic.h
 * Topics: publish and subscribe by hierarchical name.
 *
 * A name has levels separated by dots, "plant.7.temperature": at most 255 bytes and 32 levels of printable
 * ASCII without space, '*' and '>'. A subscription's pattern may use '*' for exactly one level and a final '>'
 * for one or more.
 *
 * Each publisher has a lane of its own per topic, which all of its readers read: the payload is written once,
 * the broker is not on the path, and when both sides are awake no system call is made. Order is kept per
 * publisher. Messages of different publishers have no order among each other.
 */
#ifndef IPC_TOPIC_H
#define IPC_TOPIC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <ipc/connection.h>
#include <ipc/error.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ipc_publisher ipc_publisher;
typedef struct ipc_subscription ipc_subscription;

/* ---- publishing ------------------------------------------------------------------------------------------ */

/** Options of ipc_publisher_open(). Start from IPC_PUBLISHER_OPTIONS_INIT. */
struct ipc_publisher_options {
    size_t size;               /**< sizeof(struct ipc_publisher_options) */
    uint32_t message_size_max; /**< bytes, headers included, up to 134,217,720; 0: half the ring, less 8 */
    uint32_t ring_size;        /**< bytes, rounded up to a power of two, 4 KiB to 256 MiB; 0: 256 KiB or what
                                    message_size_max needs, whichever is more */
    unsigned flags;            /**< IPC_PUBLISHER_* */
    int64_t block_max_ns;      /**< how long a publish waits for readers that block it before they are
                                    detached; default 1 s; IPC_FOREVER: never detach */
};
#define IPC_PUBLISHER_OPTIONS_INIT                                   \
 {                                                                   \
  sizeof(struct ipc_publisher_options), 0, 0, 0, INT64_C(1000000000) \
 }

/** Keep the lane when this publisher ends, so that later subscribers that start at last or oldest can read it.
 * The newest such lane of a name and user is kept. */
#define IPC_PUBLISHER_RETAIN    0x1u
/** Put the time of publishing (CLOCK_REALTIME) into each message: about 30 ns each. */
#define IPC_PUBLISHER_TIMESTAMP 0x2u

/**
 * Advertise a topic. Returns once the broker has made the lane; does not wait for readers
 * (ipc_publisher_wait_readers() does).
 *
 * @param ret         receives the publisher; yours, end it with ipc_publisher_close()
 * @param connection  it belongs to; must outlive it, or end it
 * @param topic       its name (no wildcards)
 * @param options     NULL: the defaults
 * @param error       filled in on failure if not NULL
 * @return 0; -EINVAL the name or an option is bad (the error says what); -EDQUOT a limit of this user is
 *         reached; -EACCES; -EPIPE the session is over; -ETIMEDOUT; -ENOMEM, -ENOSPC
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_publisher_open(ipc_publisher **ret, ipc_connection *connection, const char *topic,
                                  const struct ipc_publisher_options *options, struct ipc_error *error);

/** Stop publishing. Readers still get everything that was published. NULL is allowed. An open loan is
 * aborted. Blocks for one exchange with the broker. @return NULL */
IPC_PUBLIC ipc_publisher *ipc_publisher_close(ipc_publisher *publisher);

/**
 * Publish one message: copy it into the lane and let the readers have it.
 *
 * If readers that block (IPC_SLOW_BLOCK) leave no room, waits for them up to block_max_ns; who then still has
 * not read is detached, is told so, and the message is published.
 *
 * @param data        `size` bytes; may be NULL if size is 0; yours again when the call returns
 * @param size        0 to message_size_max
 * @return 0; -EMSGSIZE larger than message_size_max; -EBUSY a loan is open; -EPIPE the session is over
 *
 * No system call unless a reader sleeps or there is no room. While the kernel has no memory to ring the bell of one that sleeps,
 * it tries for some 25 ms; the next message tries again.
 */
IPC_PUBLIC int ipc_publisher_publish(ipc_publisher *publisher, const void *data, size_t size);

/** A header of a message: a name and a value of the user's choice. */
struct ipc_header {
    const char *name;  /**< 1 to 255 bytes, terminated */
    const void *value; /**< value_size bytes; may be NULL if that is 0 */
    size_t value_size; /**< 0 to 65,535 */
};

/** How one message is published. Start from IPC_PUBLISH_INIT. */
struct ipc_publish {
    size_t size;                      /**< sizeof(struct ipc_publish) */
    unsigned flags;                   /**< IPC_PUBLISH_* */
    const char *content_type;         /**< NULL: none. A media type (RFC 6838), at most 255 bytes */
    const struct ipc_header *headers; /**< header_count of them */
    size_t header_count;              /**< 0 to 64 */
};
#define IPC_PUBLISH_INIT                       \
 {                                             \
  sizeof(struct ipc_publish), 0, NULL, NULL, 0 \
 }

/** If blocking readers leave no room: fail with -EAGAIN instead of waiting. Concerns all readers. */
#define IPC_PUBLISH_REJECT      0x1u
/** If blocking readers leave no room: drop this message, count it, and return 0. Concerns all readers. */
#define IPC_PUBLISH_DROP_NEWEST 0x2u
/** More follows at once, as MSG_MORE of send(2): publish this message, but do not wake readers that sleep yet. Those that
 * are awake read it. The next message without this flag wakes them, ipc_publisher_ring(), or lack of room; and if this process
 * dies first, the broker does: what was published is not lost. Never wait for anything else before one of these. */
#define IPC_PUBLISH_MORE        0x4u

/**
 * Publish one message gathered from several pieces, with headers.
 *
 * @param pieces      piece_count of them, joined in order; sum and headers at most message_size_max
 * @param how         NULL: like ipc_publisher_publish()
 * @return as ipc_publisher_publish(); -EAGAIN with IPC_PUBLISH_REJECT; -E2BIG the headers exceed their limits
 */
IPC_PUBLIC int ipc_publisher_publishv(ipc_publisher *publisher, const struct iovec *pieces, int piece_count,
                                      const struct ipc_publish *how);

/** Wake the readers that sleep on what was published with IPC_PUBLISH_MORE. No system call if there are none.
 * @return 0; -ECHILD */
IPC_PUBLIC int ipc_publisher_ring(ipc_publisher *publisher);

/**
 * Publish `count` messages, each one iovec, as one: readers see all or (if this process is killed) none of each
 * part that fits into a quarter of the ring. Cheaper per message than one at a time.
 *
 * @return the number of messages published, `count` unless IPC_PUBLISH_REJECT found no room (then possibly
 *         less, -EAGAIN if none); otherwise as ipc_publisher_publish()
 */
IPC_PUBLIC ssize_t ipc_publisher_publish_batch(ipc_publisher *publisher, const struct iovec *messages,
                                               size_t count, unsigned flags);

/**
 * Borrow room for one message in the lane itself, to build it in place: no copy, whatever its size. Nothing is
 * visible before ipc_publisher_commit(). One loan may be open per publisher.
 *
 * @param size_max    bytes wanted
 * @param how         NULL: no headers
 * @param ret         receives where to write; valid until commit or abort
 * @return as ipc_publisher_publishv()
 */
IPC_PUBLIC int ipc_publisher_loan(ipc_publisher *publisher, size_t size_max, const struct ipc_publish *how,
                                  void **ret);

/** Publish the open loan with `size` bytes, at most what was borrowed. @return 0; -EINVAL no loan is open, or
 * size is larger than what was borrowed; -EPIPE */
IPC_PUBLIC int ipc_publisher_commit(ipc_publisher *publisher, size_t size);

/** Give the open loan back; nobody ever sees it. @return 0; -EINVAL no loan is open */
IPC_PUBLIC int ipc_publisher_abort(ipc_publisher *publisher);

/**
 * Take in news about readers, and wait until at least `count` are admitted: whatever is published from then on
 * reaches them. Taps (the
 * tools' own subscriptions) do not count.
 *
 * @return the number of readers (>= count); -ETIMEDOUT; -EPIPE the session is over
 */
IPC_PUBLIC int ipc_publisher_wait_readers(ipc_publisher *publisher, unsigned count, int64_t timeout_ns);

/** What a publisher has seen. */
struct ipc_publisher_stats {
    uint64_t published; /**< messages */
    uint64_t bytes;     /**< of lane, record words and headers included */
    uint64_t
        overrun;   /**< messages overwritten before some reader had reported them read, summed over readers */
    uint64_t lost; /**< messages missed, as present and past readers report, summed over readers */
    uint64_t dropped;          /**< messages not published because of IPC_PUBLISH_DROP_NEWEST */
    uint64_t detached;         /**< readers detached because they were too slow */
    uint64_t waits;            /**< times it had to wait for room */
    uint64_t rings;            /**< times it had to wake somebody: one system call each */
    uint64_t net;              /**< times only the bounded wait found what it waited for (should stay 0) */
    uint32_t readers;          /**< admitted now */
    uint32_t message_size_max; /**< bytes */
    uint32_t ring_size;        /**< bytes */
};
IPC_PUBLIC int ipc_publisher_stats(ipc_publisher *publisher, struct ipc_publisher_stats *ret);

/* ---- subscribing ----------------------------------------------------------------------------------------- */

/** Where a subscription starts in each lane that it joins. */
enum ipc_start {
    IPC_START_NEXT =
        0, /**< with the next message published after the subscription reached the lane; of a publisher
                               that is opened later: with its first one, always */
    IPC_START_LAST = 1,   /**< with the last one already published, if it is still there */
    IPC_START_OLDEST = 2, /**< with the oldest one still there */
};

/** What happens when this subscription reads more slowly than somebody publishes. */
enum ipc_slow {
    IPC_SLOW_DROP_OLDEST = 0, /**< it misses the oldest messages; each is counted at both ends */
    IPC_SLOW_BLOCK = 1,       /**< the publisher waits, up to its block_max_ns, then detaches this reader */
    IPC_SLOW_DISCONNECT = 2,  /**< it is detached from that publisher, with an event that says so */
};

/** Options of ipc_subscription_open(). Start from IPC_SUBSCRIPTION_OPTIONS_INIT. */
struct ipc_subscription_options {
    size_t size; /**< sizeof(struct ipc_subscription_options) */
    enum ipc_start start;
    enum ipc_slow slow;
    unsigned flags;      /**< IPC_SUBSCRIPTION_* */
    int64_t spin_max_ns; /**< how long a wait may poll before it sleeps; 0: never poll; IPC_FOREVER: never
                              sleep (burns a core); default IPC_SPIN_ADAPTIVE */
};
#define IPC_SPIN_ADAPTIVE INT64_C(-2) /**< poll if past waits say that it pays, at most 50 us */
/* Who polls for more than a few microseconds offers the cpu to others now and then (sched_yield(2)), but for IPC_FOREVER. */
#define IPC_SUBSCRIPTION_OPTIONS_INIT                                                                 \
 {                                                                                                    \
  sizeof(struct ipc_subscription_options), IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0, IPC_SPIN_ADAPTIVE \
 }

/** Also receive what publishers of the same connection publish. */
#define IPC_SUBSCRIPTION_SELF 0x1u
/** An observer: publishers that wait for readers do not count it. It never blocks a publisher. */
#define IPC_SUBSCRIPTION_TAP  0x2u

/**
 * Subscribe to every topic that matches a pattern, now and later. What any publisher begins to publish after this
 * has returned is received; what it was just publishing may be. (Of a connection that several threads use, a thread that
 * publishes while another one is in a call to the broker may learn of the subscription one message later.)
 * ipc_subscription_wait_writers() waits for publishers that have not come yet.
 *
 * @return 0; -EINVAL the pattern or an option is bad (the error says what); -EDQUOT; -EACCES; -EPIPE;
 *         -ETIMEDOUT; -ENOMEM
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_subscription_open(ipc_subscription **ret, ipc_connection *connection, const char *pattern,
                                     const struct ipc_subscription_options *options, struct ipc_error *error);

/** End a subscription; messages taken from it must not be used any more. NULL is allowed. Blocks for one
 * exchange with the broker. @return NULL */
IPC_PUBLIC ipc_subscription *ipc_subscription_close(ipc_subscription *subscription);

/** A message, as received. */
struct ipc_message {
    const void *data; /**< the payload: size bytes */
    size_t size;
    uint64_t sequence;     /**< counts up by 1 per message of a publisher, from 0 */
    uint64_t lost;         /**< messages of this publisher that this subscription missed just before */
    uint64_t timestamp_ns; /**< CLOCK_REALTIME of publishing; 0: not stamped */
    const char *topic;     /**< its name; valid until the next call on this subscription, or, of a message
                                        that was taken, until its release */
    uint64_t publisher;    /**< its number, the same in every subscription: `sequence` is counted
                                        for each. It has a new one, and the count goes on, after a right to
                                        read it was taken from somebody, and after a reconnection */
    const struct ipc_peer *sender; /**< told by the broker, not by the sender; valid as long as topic */
    const char *content_type;      /**< terminated; NULL: none */
    const void *fields;            /**< for ipc_message_header() */
    size_t fields_size;
};

/**
 * Receive one message into a buffer of the caller's.
 *
 * @param buffer      capacity bytes; the payload is copied here
 * @param capacity    bytes
 * @param message     NULL, or receives everything else about the message: data is buffer, content_type and fields
 *                    are valid until the next call on this subscription
 * @param timeout_ns  how long to wait for one
 * @return the payload's size; -EAGAIN none (timeout 0); -ETIMEDOUT none in time; -EMSGSIZE larger than capacity:
 *         message->size says how large, and the message stays to be received; -EPIPE the session is over and
 *         everything was read
 */
IPC_PUBLIC ssize_t ipc_subscription_receive(ipc_subscription *subscription, void *buffer, size_t capacity,
                                            struct ipc_message *message, int64_t timeout_ns);

/**
 * Receive up to `count` messages into one buffer of the caller's, back to back, each aligned to 8 bytes.
 *
 * @return the number received (>= 1); otherwise as ipc_subscription_receive(), -EMSGSIZE if already the first
 *         does not fit. content_type and fields of each are valid until the next call on this subscription
 */
IPC_PUBLIC ssize_t ipc_subscription_receive_batch(ipc_subscription *subscription, void *buffer,
                                                  size_t capacity, struct ipc_message *messages, size_t count,
                                                  int64_t timeout_ns);

/**
 * Take up to `count` messages in place: no copy. For subscriptions with IPC_SLOW_BLOCK only. The publisher's
 * process can still write to what is shown here: a program that does not trust it copies first and checks then.
 *
 * @param messages    count of them are filled in; valid until ipc_subscription_release()
 * @return the number taken (>= 1); -EOPNOTSUPP the subscription does not block; otherwise as
 *         ipc_subscription_receive(). At most 1,024 may be taken and not released (-EBUSY)
 */
IPC_PUBLIC ssize_t ipc_subscription_take(ipc_subscription *subscription, struct ipc_message *messages,
                                         size_t count, int64_t timeout_ns);

/** Give back the `count` oldest messages taken. @return 0; -EINVAL fewer are taken */
IPC_PUBLIC int ipc_subscription_release(ipc_subscription *subscription, size_t count);

/** The header of that name: value and size are stored, the value is valid as long as message->fields.
 * @return 0; -ENOENT the message has none */
IPC_PUBLIC int ipc_message_header(const struct ipc_message *message, const char *name, const void **value,
                                  size_t *value_size);

/** Walk over all headers: start with *position = 0. The name is not terminated: name_size bytes.
 * @return 1 one was stored; 0 there are no more */
IPC_PUBLIC int ipc_message_next_header(const struct ipc_message *message, size_t *position, const char **name,
                                       size_t *name_size, const void **value, size_t *value_size);

/** Wait until at least `count` publishers are attached now; those that have come and gone do not count.
 * @return their number (>= count); -ETIMEDOUT; -EPIPE */
IPC_PUBLIC int ipc_subscription_wait_writers(ipc_subscription *subscription, unsigned count,
                                             int64_t timeout_ns);

/**
 * A descriptor for poll, epoll and the like: readable while the subscription has messages or news
 * (level-triggered). When it is readable, receive with timeout 0 until -EAGAIN. Owned by the subscription;
 * never read from it or close it.
 *
 * @return the descriptor (>= 0); -EMFILE, -ENFILE, -ENOMEM, -EPIPE, -ETIMEDOUT
 *
 * The first call asks the broker for bells and blocks for that.
 */
IPC_PUBLIC int ipc_subscription_fd(ipc_subscription *subscription);

/** What a subscription has seen. */
struct ipc_subscription_stats {
    uint64_t received; /**< messages */
    uint64_t lost;     /**< messages missed */
    uint64_t sleeps;   /**< times it went to sleep */
    uint64_t polls;    /**< waits that ended while polling */
    uint64_t net;      /**< times only the bounded wait found what it waited for (should stay 0) */
    uint32_t writers;  /**< attached now */
};
IPC_PUBLIC int ipc_subscription_stats(ipc_subscription *subscription, struct ipc_subscription_stats *ret);

#ifdef __cplusplus
}
#endif
#endif
