/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry's records: sessions, and what they declared. Control thread only.
 *
 * Every record has a number that is never used again, and a row in the registry segment (state.h) with all that
 * another ipcd needs to go on from there. Pointers between records are shortcuts of this process; what a notice says
 * follows from numbers, states and peers, so that the rows alone describe what every session is still owed. Lists are in order of number: that is the registry order of all matching.
 */
#ifndef IPCD_CORE_CONTROL_RECORDS_H
#define IPCD_CORE_CONTROL_RECORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/control/outbox.h"
#include "broker/core/control/pairing_state.h"
#include "broker/core/control/quota.h"
#include "broker/core/control/state.h"
#include "broker/core/route/route.h"
#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"
#include "proto/layout.h"
#include "proto/limits.h"

/* Who a session is, as the kernel said at its connect; the name is its claim. */
struct peer {
    uint64_t session;
    uint32_t uid, gid, pid;
    char name[IPC_MAX_CLIENT_NAME + 1];
};

enum session_state {
    SESSION_REFUSED, /* over a limit: its first frame is answered by the refusal */
    SESSION_NEW,     /* HELLO is expected */
    SESSION_OPEN,
    SESSION_ENDED, /* until the end of the loop's round */
};

struct session {
    struct hash_node node; /* broker.sessions_by_id */
    struct list link;      /* broker.sessions */
    struct list dirty;     /* broker.dirty: has something to be told */
    struct list unwatched; /* broker.unwatched */
    struct list stalled;   /* broker.stalled: a send failed for want of something that passes */
    struct list overdue;   /* broker.overdue */
    struct list silent;    /* broker.silent */
    struct peer peer;
    gid_t *groups; /* beside that, of its process at its connect: access.c */
    size_t n_groups;
    bool groups_known;
    struct user *user;       /* NULL if it was refused */
    struct session_row *row; /* once HELLO was good */
    enum session_state state;
    bool admin;
    bool busy;    /* a request of it is being worked on: nothing is read meanwhile */
    bool unread;  /* the answer to the request in front has not gone out, so it stays there: the same */
    bool spent;   /* that answer has gone out, but the request could not be taken out of the socket */
    bool resumed; /* of an earlier ipcd, and that request may have been worked on by it */
    bool asks;    /* the same, and there was something in its socket when this ipcd began */
    bool watched; /* the loop knows its descriptors */
    bool wants_out;
    uint32_t events; /* of its socket, as epoll knows them */
    uint64_t hello;  /* number of that request */
    uint64_t features;
    uint64_t since_ns; /* CLOCK_REALTIME */
    uint64_t begun_ns; /* CLOCK_MONOTONIC; of the connect, while HELLO is expected */
    int fd, pidfd, board_fd;
    struct ipc_board *board; /* mapped when first needed: session_board() */
    struct outbox outbox;
    char *refusal;
    struct list lanes, subscriptions, cells;
    struct list ports;
    struct list attachments;         /* struct attachment.by_session */
    struct list port_ends;           /* struct port.notice: PORT_END is due */
    struct subscription *subscribed; /* not answered yet: the publishers are told first */
    uint32_t matched;                /* its lanes with a writer */
    struct port
        *handing; /* the answer in front hands descriptors of this one out, of which no others are kept */
    /* Sides of pairings with something to tell (struct side.due), in the order of their events. */
    struct list writer_adds, reader_adds, dels;
    uint32_t due;        /* length of the three */
    uint32_t last_words; /* frames read after its process died */
    uint32_t window;     /* ADD notices on their way */
    uint32_t unheard;    /* pairings whose reader left, which it has not confirmed */
    bool gone;  /* its process or its end of the socket is: of what it asked nothing is done any more */
    bool nudge; /* NUDGE is due */
    bool renew; /* the same, of some lane */
    bool told;  /* in this flush: mail has to be counted up */
};

enum name_space { SPACE_TOPICS, SPACE_SERVICES, SPACE_INBOXES };

/* A name that somebody advertises or subscribes to. */
struct topic {
    struct hash_node node; /* broker.topics_by_name, by keyed hash */
    enum name_space space;
    struct list lanes;   /* struct lane.by_topic */
    struct list readers; /* struct subscription.by_match: patterns that are just this name */
    char name[];
};

enum lane_state {
    LANE_LIVE,
    LANE_DRAINING, /* the writer is gone; readers read on */
    LANE_RETAINED, /* the same, and it stays when they are done */
};

struct lane {
    struct hash_node node;
    struct list link;       /* broker.lanes */
    struct list by_session; /* while live */
    struct list by_topic;
    uint64_t id;
    uint64_t request; /* that made it */
    struct lane_row *row;
    struct peer writer;
    struct session *session; /* NULL unless live */
    struct user *user;
    struct topic *topic;
    enum lane_state state;
    uint8_t reason; /* why it is not live */
    bool retain, exclusive;
    bool fence;   /* the writer is not registered for barriers of others */
    uint8_t kind; /* enum Kind of control.proto */
    uint64_t
        target; /* KIND_CALL: the inbox; KIND_REPLY: the pairing of the calls; KIND_TOPIC: the lane before it */
    bool renewed; /* RENEW was sent */
    uint32_t ring_size;
    uint32_t readers; /* pairings */
    uint64_t seen_by; /* scratch of pairing_join_missed() */
    int fd;
    uint64_t slots[(IPC_LANE_SLOTS + 63) / 64]; /* bit set: in use */
    struct list pairings;                       /* struct pairing.by_lane */
    struct list waiting;                        /* the same, for those without a slot */
};

/* What wakes one subscription's descriptor, for all writers of one uid. */
struct bell {
    struct list link;
    uint64_t id;
    struct bell_row *row;
    uint32_t uid;
    int ring_fd;
    int read_fd; /* -1 once the reader has been sent it */
};

struct subscription {
    struct hash_node node;
    struct list link; /* broker.subscriptions */
    struct list by_session;
    struct list by_match; /* topic.readers, or broker.wildcards */
    uint64_t id;
    uint64_t request; /* that made it */
    struct subscription_row *row;
    struct session *session;
    struct topic *topic;       /* NULL: a wildcard */
    uint8_t start, slow, kind; /* enums of control.proto */
    bool self, tap, bell;
    bool missed; /* a lane, for want of memory or descriptors: see pairing_join_missed() */
    uint32_t n_pairings;
    struct list pairings; /* struct pairing.by_subscription */
    struct list bells;
    char pattern[];
};

/* A segment of cursors of one reader. Outlives its session while a writer looks at it. */
struct cells {
    struct hash_node node; /* broker.cells_by_id */
    struct list link;      /* session.cells, or broker.orphans */
    uint64_t id;
    struct cells_row *row;
    struct session *session;
    struct user *user;
    int fd;
    bool known;    /* the reader has been sent it */
    uint64_t used; /* bit set: in use */
    struct list pairings;
};

#define PAIRING_NO_SLOT IPC_LANE_SLOTS

struct pairing {
    struct hash_node node;
    struct list link; /* broker.pairings */
    struct list by_lane;
    struct list by_subscription; /* while the reader is there */
    struct list by_cells;
    uint64_t id, lane_id, subscription_id;
    struct pairing_row *row;
    struct lane *lane;
    struct subscription *subscription; /* NULL once the reader side is done */
    struct cells *cells;
    struct bell *bell;
    struct user
        *user; /* who is charged: the reader's, and from its end on the writer's, until that confirms it */
    uint64_t reader_session;
    uint32_t reader_uid;
    uint32_t slot; /* PAIRING_NO_SLOT: waits for one, or needs none (late) */
    uint32_t cell;
    uint8_t start, slow;
    bool tap;
    bool fence;   /* the reader cannot issue a barrier for others */
    bool late;    /* made when the writer was gone */
    bool counted; /* the writer said that it counts the reader, since it was told of it last */
    bool left;    /* the reader is gone, the writer has not confirmed that: one of its session's `unheard` */
    struct side writer_side, reader_side;
};

/* A request that a router works on. */
struct wait {
    struct list link; /* struct queue.waits */
    uint64_t session, request;
    bool removal;
};

struct queue {
    struct hash_node node;    /* broker.queues_by_id */
    struct hash_node by_name; /* broker.queues_by_name, by keyed hash */
    struct list link;         /* broker.queues */
    struct list ports;        /* struct port.by_queue */
    struct list waits;
    uint64_t id;
    struct queue_row *row;
    struct user *user;
    int fd;
    uint32_t producers, consumers;
    struct queue_stats stats; /* its router's */
};

/* One end of a queue in a session's hands. The router knows it until ROUTE_PORT_GONE. */
struct port {
    struct hash_node node; /* broker.ports_by_id */
    struct list link;      /* broker.ports */
    struct list by_queue, by_session, notice;
    uint64_t id;
    struct port_row *row;
    struct queue *queue;     /* NULL: it is gone, and the router knows nothing of the port */
    struct session *session; /* NULL: closed, or the session is gone */
    struct user *user;
    int core_fd, session_fd;
    int bell_fd, ring_fd;           /* what the router is rung by, and what it rings the session by, or -1 */
    int give_ring_fd, give_bell_fd; /* the session's ends of the two, until it has them for sure */
    struct route_mail *end_mail;    /* made early: an end cannot fail for want of memory */
};

/* A segment of users, with permits. */
struct shared {
    struct hash_node by_name; /* broker.shared_by_name */
    struct list link;         /* broker.shared */
    uint64_t id;
    struct shared_row *row;
    struct user *user; /* who made it, and is charged */
    int fd;
    struct ipc_shared *page; /* its first, mapped when needed: registry_shared_page() */
    uint32_t n_attached;
    struct list attachments; /* struct attachment.by_shared */
};

struct attachment {
    struct list by_shared, by_session;
    uint64_t id;
    struct attachment_row *row;
    struct shared *shared;
    struct session *session;
};

#endif
