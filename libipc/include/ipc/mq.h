/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file mq.h
 * Envelopes for programs that talk to ipcd-mq by POSIX message queues: headers, ids, replies, and messages that are larger
 * than their mqueue allows. See proto/mq.md.
 *
 * Nothing in here needs a connection, or the broker to be there: the mqueue is all there is between the program and
 * the gateway. Programs that do not want the envelope use mq_send(3) and mq_receive(3), and a binding with `form = raw`.
 */
#ifndef IPC_MQ_H
#define IPC_MQ_H

#include <mqueue.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <ipc/error.h>
#include <ipc/topic.h>

#ifdef __cplusplus
extern "C" {
#endif

/** One end of an mqueue: what it needs for packing, and the pieces of messages that are not complete yet. */
typedef struct ipc_mq ipc_mq;

/** What an envelope is. */
enum ipc_mq_kind {
    IPC_MQ_MESSAGE = 0, /**< for or from a topic or queue */
    IPC_MQ_REQUEST = 1, /**< a call of a service; answered by one reply with the same id */
    IPC_MQ_REPLY = 2,   /**< the answer */
};

/** A message with its envelope, to be sent or as received. Start from IPC_MQ_MESSAGE_INIT. */
struct ipc_mq_message {
    size_t size;           /**< sizeof(struct ipc_mq_message) */
    enum ipc_mq_kind kind; /**< IPC_MQ_* */
    unsigned
        priority; /**< of the mqueue, 0, the lowest, to 31: not in the envelope. In queues 9 is the highest */
    const void *data; /**< the payload: data_size bytes */
    size_t data_size; /**< bytes */
    const char
        *name; /**< of the topic, queue or service, up to 255 bytes, as the gateway tells; NULL: none */
    const void *
        id; /**< of a reply: that of its request; of a message: for deduplication. id_size bytes; NULL: none */
    size_t id_size;  /**< bytes, 0 to 255 */
    const void *key; /**< of a queue's message, as in struct ipc_send: key_size bytes; NULL: none */
    size_t key_size; /**< bytes, 0 to 255 */
    const char
        *reply_to; /**< of a request: the mqueue for its reply, such as "/answers-17"; of a queue's message:
                                   a queue; up to 255 bytes; NULL: none */
    const char *content_type;         /**< NULL: none. A media type (RFC 6838), at most 255 bytes */
    const struct ipc_header *headers; /**< header_count of them */
    size_t header_count;              /**< 0 to 64 */
    uint64_t
        ttl_ns; /**< of a request: how long somebody waits for the reply; of a message: as in struct ipc_send; 0: unsaid */
    uint64_t delay_ns; /**< of a queue's message: as in struct ipc_send; 0: unsaid */
    unsigned attempt;  /**< of a queue's message, as received: 1: the first time that it is delivered */
    int code;          /**< of a reply: an error of the service's choice; 0: success */
    const char *text;  /**< of a reply: a sentence about the error, up to 255 bytes; NULL: none */
};
#define IPC_MQ_MESSAGE_INIT                                                                                  \
 {                                                                                                           \
  sizeof(struct ipc_mq_message), IPC_MQ_MESSAGE, 0, NULL, 0, NULL, NULL, 0, NULL, 0, NULL, NULL, NULL, 0, 0, \
      0, 0, 0, NULL                                                                                          \
 }

/** Options of ipc_mq_open(). Start from IPC_MQ_OPTIONS_INIT. */
struct ipc_mq_options {
    size_t size; /**< sizeof(struct ipc_mq_options) */
    size_t
        message_size_max; /**< bytes of a message that comes in pieces, its envelope included; default 16 MiB */
};
#define IPC_MQ_OPTIONS_INIT                           \
 {                                                    \
  sizeof(struct ipc_mq_options), (size_t)16 * 1048576 \
 }

/**
 * Make an end of an mqueue.
 *
 * @param ret         receives it; yours, end it with ipc_mq_close()
 * @param mqueue      from mq_open(3), with or without O_NONBLOCK; stays yours, and open as long as the end is. (mqd_t)-1:
 *                    none, for programs that call mq_send(3) and mq_receive(3) themselves
 * @param options     NULL: the defaults
 * @return 0; -EINVAL; -EBADF; -ENOMEM
 *
 * Any thread. Does not block. After a fork parent and child must not both go on with it.
 */
IPC_PUBLIC int ipc_mq_open(ipc_mq **ret, mqd_t mqueue, const struct ipc_mq_options *options);

/** End it. The mqueue stays open. NULL is allowed. @return NULL */
IPC_PUBLIC ipc_mq *ipc_mq_close(ipc_mq *mq);

/**
 * Put a message into the mqueue, in pieces if it is too large for one: then nobody but one program may receive from
 * that mqueue.
 *
 * @param message     yours; not kept
 * @param timeout_ns  how long to wait for room
 * @return 0; -EAGAIN no room (timeout 0), -ETIMEDOUT no room in time: call again with the same message, and what of it was
 *         sent already is not sent again (another message instead: the receiver drops what it has of this one); -E2BIG a
 *         text, id, key or header is too long, or there are too many; -EMSGSIZE the mqueue's messages have less than 128
 *         bytes, which is too little for pieces; -EINVAL; -ENOMEM; others of mq_send(3)
 *
 * One thread at a time, as everything below.
 */
IPC_PUBLIC int ipc_mq_send(ipc_mq *mq, const struct ipc_mq_message *message, int64_t timeout_ns);

/**
 * Receive the next whole message.
 *
 * @param ret         receives it; what it points to is valid until the next receive or unpack
 * @param timeout_ns  how long to wait for it
 * @return 0; -EAGAIN none (timeout 0); -ETIMEDOUT none in time; -EBADMSG what came was no envelope, or made no sense: it is
 *         dropped and counted; -EMSGSIZE its pieces would be more than message_size_max: the same; -ENOMEM; others of
 *         mq_receive(3)
 */
IPC_PUBLIC int ipc_mq_receive(ipc_mq *mq, struct ipc_mq_message *ret, int64_t timeout_ns);

/** Pack a message into a buffer, for a mq_send(3) of one's own; NULL: only tell the size. @return its size; -EMSGSIZE it is
 * more than `capacity`; -E2BIG, -EINVAL as ipc_mq_send(). Any thread. */
IPC_PUBLIC ssize_t ipc_mq_pack(const struct ipc_mq_message *message, void *buffer, size_t capacity);

/** Take in what came from an mqueue by a mq_receive(3) of one's own: `size` bytes, which are copied.
 * @return 1 *ret is a message, valid as with ipc_mq_receive(); 0 it was a piece, and more have to come; -EBADMSG, -EMSGSIZE,
 *         -ENOMEM as ipc_mq_receive() */
IPC_PUBLIC int ipc_mq_unpack(ipc_mq *mq, const void *data, size_t size, struct ipc_mq_message *ret);

/** The header of that name: value and size are stored, the value is valid as long as the message.
 * @return 0; -ENOENT the message has none. Any thread. */
IPC_PUBLIC int ipc_mq_header(const struct ipc_mq_message *message, const char *name, const void **value,
                             size_t *value_size);

/** What an end has seen. */
struct ipc_mq_stats {
    uint64_t received; /**< whole messages */
    uint64_t sent;     /**< the same */
    uint64_t pieces;   /**< of messages, received and sent */
    uint64_t bad;      /**< of what was received: no envelopes, and pieces that fit to nothing */
    uint64_t
        incomplete; /**< messages given up: pieces were missing, or too many came in pieces at a time (16) */
    uint32_t open;  /**< messages of which pieces are there, now */
};
IPC_PUBLIC int ipc_mq_stats(const ipc_mq *mq, struct ipc_mq_stats *ret);

#ifdef __cplusplus
}
#endif
#endif
