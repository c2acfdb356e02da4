/* SPDX-License-Identifier: Apache-2.0
 *
 * The registry segment: what outlives this process. One memfd with a header and a table of rows for each kind of
 * record, which whoever keeps our descriptors keeps as well; the next ipcd rebuilds everything else from it
 * (recover.c).
 *
 * A row is there while its id is not 0. The id is stored last when a row is made, and is cleared first when it goes, so
 * that a process killed anywhere leaves rows that are whole. Words that change in between are one store each. Control
 * thread only; nobody else maps this.
 */
#ifndef IPCD_CORE_CONTROL_STATE_H
#define IPCD_CORE_CONTROL_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/limits.h"

#define STATE_MAGIC   UINT64_C(0x7473696765526370) /* "pcRegist" */
#define STATE_VERSION 5u

enum state_table {
    STATE_SESSIONS,
    STATE_LANES,
    STATE_SUBSCRIPTIONS,
    STATE_CELLS,
    STATE_BELLS,
    STATE_PAIRINGS,
    STATE_QUEUES,
    STATE_PORTS,
    STATE_SHARED,
    STATE_ATTACHMENTS,
    STATE_TABLES
};

/* Counters that number the records; cells and boards share the last. */
enum state_number {
    NUMBER_SESSION,
    NUMBER_LANE,
    NUMBER_SUBSCRIPTION,
    NUMBER_PAIRING,
    NUMBER_BELL,
    NUMBER_SEGMENT,
    NUMBER_QUEUE,
    NUMBER_PORT,
    NUMBER_SHARED,
    NUMBER_ATTACHMENT,
    NUMBERS
};

struct state_header {
    uint64_t magic;
    uint32_t version, starts;
    uint64_t fingerprint; /* of the rows, and of the layouts of proto/layout.h */
    char instance[40];
    uint64_t started_ns; /* CLOCK_REALTIME of the first start */
    uint64_t last[NUMBERS];
    uint32_t rows[STATE_TABLES]; /* rows from here on were never used */
    uint64_t requests, ended_badly, refused;
    uint64_t events;          /* number of the last one */
    _Atomic uint64_t working; /* the session whose request is worked on, or 0 */
};

/* First words of each row. */
struct state_row {
    _Atomic uint64_t id; /* 0: free */
    uint32_t next_free;  /* index + 1, while free */
    uint32_t reserved;
};

struct session_row {
    struct state_row row;
    uint64_t features, since_ns;
    _Atomic uint64_t request; /* the last one that changed something */
    uint32_t uid, gid, pid;
    _Atomic uint8_t ending; /* enum ipc_reason + 1 */
    _Atomic uint8_t owed;   /* something is being told: mail or a nudge may be lacking */
    _Atomic uint8_t deaths; /* of ipcd, one after the other, at work on the request in front */
    bool admin, watched;    /* watched: there is a pidfd */
    char name[IPC_MAX_CLIENT_NAME + 1];
};

struct lane_row {
    struct state_row row;
    uint64_t session, request;
    uint32_t uid, gid, pid, ring_size;
    _Atomic uint8_t state; /* enum lane_state; stored after reason */
    _Atomic uint8_t retain;
    _Atomic uint8_t joined; /* its pairings are there, too */
    uint8_t reason;
    bool exclusive, fence;
    uint8_t kind;          /* enum Kind of control.proto */
    _Atomic uint8_t renew; /* its writer is to go on in another one */
    uint64_t target;
    char writer[IPC_MAX_CLIENT_NAME + 1];
    char topic[IPC_MAX_NAME_SIZE + 1];
};

struct subscription_row {
    struct state_row row;
    uint64_t session, request;
    _Atomic uint8_t joined, ending, bell;
    uint8_t start, slow;
    bool self, tap;
    uint8_t kind;
    _Atomic uint8_t missed; /* a lane, for want of memory: is to be looked for again */
    char pattern[IPC_MAX_NAME_SIZE + 1];
};

struct cells_row {
    struct state_row row;
    uint64_t session;
    uint32_t uid;
};

struct bell_row {
    struct state_row row;
    uint64_t subscription;
    uint32_t uid;
};

struct pairing_row {
    struct state_row row;
    uint64_t lane, subscription, cells, reader_session;
    _Atomic uint64_t bell, sides; /* sides: see pairing_store() */
    _Atomic uint32_t slot;
    uint32_t uid, cell;
    uint8_t start, slow;
    bool tap, fence, late;
};

/* Settings are as in QueueSettings; each is changed by one store. */
struct queue_row {
    struct state_row row;
    uint64_t session, request;         /* that made it */
    uint64_t remover, remover_request; /* whose removal it is, once `removing` */
    _Atomic uint64_t messages_max, bytes_max, ttl_ns, delay_ns, lease_ns, dedup_window_ns;
    _Atomic uint64_t dead_letter; /* number of a queue, or 0 */
    _Atomic uint32_t attempts_max;
    uint32_t message_size_max, dedup_window;
    uint32_t uid; /* who made it, and is charged */
    _Atomic uint8_t full, paused, removing;
    uint8_t class;
    char name[IPC_MAX_NAME_SIZE + 1];
};

/* The index of its row is the port's small number. */
struct port_row {
    struct state_row row;
    uint64_t session, queue, request;
    uint32_t uid, pid;
    uint32_t session_ring_size, core_ring_size, prefetch;
    _Atomic uint8_t bell;   /* its session has one */
    _Atomic uint8_t closed; /* enum ipc_reason + 1: the session is done with it */
    _Atomic uint8_t ended;  /* enum ipc_reason + 1: the session is owed a PORT_END */
    bool consumer, fence;
};

struct shared_row {
    struct state_row row;
    uint32_t uid, gid, size, permits, mode;
    _Atomic uint8_t keep; /* it stays although nobody is attached */
    char name[IPC_MAX_NAME_SIZE + 1];
};

struct attachment_row {
    struct state_row row;
    uint64_t shared, session, request;
    bool created;
};

struct state {
    int fd;
    struct state_header *header;
    uint32_t free[STATE_TABLES];     /* index + 1 of the first free row below rows[], or 0 */
    uint32_t capacity[STATE_TABLES]; /* rows that have memory */
};

#define STATE_INIT \
 (struct state)    \
 {                 \
  .fd = -1         \
 }

/* A fresh one. Returns 0 or a negative errno. */
int state_new(struct state *state);

/* That of an earlier process; the descriptor is ours on success. -EPROTO: of a version that we cannot read. */
int state_open(struct state *state, int fd);

/* What state_open() would say to it, and in *ret_version its version. */
int state_check(int fd, uint32_t *ret_version);

void state_close(struct state *state);

/* The next number of a kind; never used again, whoever dies. */
uint64_t state_number(struct state *state, enum state_number kind);

/* A free row, zero but for next_free; NULL: no memory. It is lost to nobody until it gets its id. */
void *state_take(struct state *state, enum state_table table);

/* It is complete. */
void state_commit(void *row, uint64_t id);

/* Free it; NULL is allowed. */
void state_drop(struct state *state, enum state_table table, void *row);

/* Which of its table it is: no other row that is there has the same. */
uint32_t state_index(const struct state *state, enum state_table table, const void *row);

/* Walk: the next row that is there from *at on, which is moved behind it; NULL: no more. */
void *state_next(const struct state *state, enum state_table table, uint32_t *at);

#endif
