/* SPDX-License-Identifier: Apache-2.0
 *
 * The routers: threads that own the queues, each a shard of them, and share nothing with each other.
 *
 * The control thread makes every descriptor and record, and hands them over by mail; a router answers by mail. What the
 * two share beside the mailboxes are the counters of struct queue_stats and struct route_budget. Functions here are for
 * the control thread.
 */
#ifndef IPCD_CORE_ROUTE_ROUTE_H
#define IPCD_CORE_ROUTE_ROUTE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/limits.h"

enum queue_full { QUEUE_FULL_BLOCK, QUEUE_FULL_REJECT, QUEUE_FULL_DROP_OLDEST, QUEUE_FULL_DEAD_LETTER };
enum queue_class { QUEUE_CRASH_SAFE, QUEUE_BEST_EFFORT };

/* As QueueSettings of control.proto. */
struct queue_settings {
    uint64_t messages_max, bytes_max;
    uint64_t ttl_ns, delay_ns, lease_ns, dedup_window_ns;
    uint32_t message_size_max, attempts_max, dedup_window;
    uint8_t full, class; /* enum queue_full, enum queue_class */
    bool paused;
    bool dead_letter; /* there is a queue for dead letters: the control thread knows which */
};

/* Written by the queue's router, read by anybody. */
struct queue_stats {
    _Atomic uint64_t waiting, delayed, unacked, bytes; /* now */
    _Atomic uint64_t memory;
    _Atomic uint64_t accepted, acked, redelivered, dead, dropped, rejected,
        duplicates; /* since the start of ipcd */
};

/* Memory that the queues of one user may take, over all routers; and, in `all`, those of all users together, of which
 * each has a share (util/share.h). Both are charged. The control thread's; lives until the last ROUTE_QUEUE_GONE. */
struct route_budget {
    _Atomic uint64_t used;
    _Atomic uint64_t max;
    _Atomic uint64_t holders; /* of `all`: users that have queues */
    struct route_budget *all; /* NULL in that one itself */
    uint32_t uid;
};

enum route_kind {
    /* To a router. */
    ROUTE_QUEUE_ADD,    /* fd, settings, stats, budget, its name in bytes; `resumed`: it has content */
    ROUTE_QUEUE_READY,  /* all ports that it had are added: begin */
    ROUTE_QUEUE_SET,    /* settings */
    ROUTE_QUEUE_REMOVE, /* -> ROUTE_QUEUE_GONE with the result: -EBUSY if `if_empty` and it is not */
    ROUTE_PORT_ADD,     /* port */
    ROUTE_PORT_BELL,    /* port.id, port.ring: what to ring its session by */
    ROUTE_PORT_END,     /* port.id, reason; -> ROUTE_PORT_GONE when it is drained */
    ROUTE_DO,           /* wish; -> ROUTE_DID */
    ROUTE_LETTER,       /* a message of another queue; -> ROUTE_LETTER_DONE with the result */
    ROUTE_LETTER_DONE,  /* on its way back to the router that sent it: its own again */
    ROUTE_LETTER_KNOWN, /* and to where it was accepted, mail.to: its origin has let go of it, so it may be delivered; result:
                           see router.h */
    ROUTE_LETTER_ASK, /* from there, of one that an earlier ipcd accepted, to its origin, mail.to (0: the queue of the name in
                         mail.target, if there is one, of which mail.diverted is a port): -> ROUTE_LETTER_KNOWN */
    ROUTE_STOP, /* of routers_stop() */
    /* From a router. */
    ROUTE_QUEUE_GONE, /* if it is: nothing of it or its ports is mapped or used any more; no ROUTE_PORT_GONE follows */
    ROUTE_QUEUE_TROUBLE, /* what an earlier ipcd left in it cannot be found for now (result); it is tried again, and orders are
                            refused until then, but for its removal */
    ROUTE_QUEUE_BROKEN, /* the same unasked: its file makes no sense, or cannot be used (result); text says what */
    ROUTE_QUEUE_LATE, /* it, or a port of it, could not be taken up from an earlier ipcd yet (result); tried again */
    ROUTE_PORT_GONE,   /* nothing of it is mapped or used any more; result < 0: it could not be added */
    ROUTE_PORT_BROKEN, /* its session wrote nonsense, text says what: end the session; the port ends as any */
    ROUTE_DID,
};

/* A port as the router needs it. Descriptors of ports and queues stay the control thread's, all of them, which keeps them
 * open until they are gone. (They are open elsewhere, too: a bell leaves epoll by EPOLL_CTL_DEL alone.) Mail for a queue
 * or port that the router does not know, or no longer, is ignored. */
struct route_port {
    uint64_t id;
    uint16_t slot; /* a small number that no other living port has, the same after a restart */
    bool consumer;
    bool resumed; /* an earlier ipcd used it */
    bool fence;   /* the session cannot issue barriers for others */
    int core_fd, session_fd;
    uint32_t core_ring_size, session_ring_size;
    uint32_t prefetch;
    int bell; /* to be rung by: in the router's epoll */
    int ring; /* to ring the session by, or -1 */
    uint64_t session;
    uint32_t uid, pid;
};

/* Which messages a ROUTE_DO is about: as QueueDo of control.proto. */
struct route_wish {
    uint8_t operation; /* Ipc__Control__QueueOperation */
    uint64_t target;   /* of a MOVE */
    uint64_t after, older_than_ns;
    uint32_t count_max, attempts_min, payload_max;
    int priority; /* -1: any */
    char header[256];
    unsigned char value[256];
    size_t value_size;
};

/* One message that a PEEK shows; they follow each other in route_mail.bytes, each aligned to 8: this, then fields, then
 * payload. */
struct route_waiting {
    uint64_t number, time_ns, not_before_ns, consumer, session;
    uint32_t uid, pid;
    uint32_t size; /* of the whole payload */
    uint32_t attempt;
    uint32_t fields_size, payload_size;
    uint8_t priority;
};

struct route_mail {
    struct route_mail *next; /* of the mailbox */
    enum route_kind kind;
    uint64_t queue;
    int result;
    void *data; /* the control thread's; comes back as it went */
    union {
        struct {
            int fd;
            bool resumed, if_empty;
            struct queue_settings settings;
            struct queue_stats *stats;
            struct route_budget *budget;
            uint64_t dropped; /* of ROUTE_QUEUE_GONE: messages that were in it */
        };
        struct {
            struct route_port port;
            unsigned reason;
            char text[96];
        };
        struct {
            struct route_wish wish;
            uint64_t done, next_number;
        };
        /* A letter: the copy of a message on its way to another queue. It leaves a router with its own queue in mail.queue,
         * and in `to` where it shall go (0: to the dead-letter queue of mail.queue if `dead`, else, for a REQUEUE, to the
         * queue of the name in `target`). It arrives with that queue in mail.queue and the one it comes from in `origin`;
         * so it also comes back, as ROUTE_LETTER_DONE, but with mail.queue the origin again. Accepted, it is the record
         * `arrived` at `offset` there, and waits for ROUTE_LETTER_KNOWN: delivered and acknowledged before, it would be
         * accepted again if ipcd were killed in between. */
        struct {
            uint64_t origin, to, number;
            uint64_t offset, arrived;
            uint64_t
                diverted; /* port, if it is a message that was never in its queue, and `number` where it stands in the lane */
            uint64_t session;
            uint32_t uid, pid;
            uint32_t headers; /* IPC_RECORD_HEADERS or 0 */
            uint8_t priority;
            bool dead; /* a dead letter: else moved on somebody's order */
            char target[IPC_MAX_NAME_SIZE + 1];
        };
    };
    size_t size; /* of bytes: peeked messages, or a letter's body */
    unsigned char bytes[];
};

struct route_mail *route_mail_new(enum route_kind kind, uint64_t queue, size_t size);
struct route_mail *route_mail_free(struct route_mail *mail);

struct routers;

/* `count` threads, which tell of mail by `event_fd` (an eventfd of the control thread). Returns 0 or a negative errno. */
int routers_start(struct routers **ret, unsigned count, int event_fd);

/* Stop the threads; what the queues hold stays as it is. NULL is allowed. Returns NULL. */
struct routers *routers_stop(struct routers *routers);

/* Hand over a mail; its queue says to which router. */
void routers_send(struct routers *routers, struct route_mail *mail);

/* The next mail from any router, or NULL. */
struct route_mail *routers_receive(struct routers *routers);

/* True if each router has come round since the last call, or sleeps. For the watchdog. */
bool routers_alive(struct routers *routers);

/* Which router a queue belongs to. */
unsigned routers_of(const struct routers *routers, uint64_t queue);

/* Set up the file of a fresh queue in an empty memfd: sealed, and with a key of its own for message ids. Returns 0 or a
 * negative errno. */
int queue_file_format(int fd, uint64_t queue, uint32_t dedup_window);

#endif
