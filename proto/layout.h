/* SPDX-License-Identifier: Apache-2.0
 *
 * Every byte of shared memory that two processes look at: segments, boards, cells, lanes, records.
 *
 * Each word has exactly one writer, named in the comment of its group. Words are fixed-width, little-endian,
 * positions are 64-bit byte counts that only grow, and nothing here is a pointer. Whoever reads a word that a
 * peer writes loads it once, checks it (proto/check.h), and uses the checked copy.
 */
#ifndef IPC_PROTO_LAYOUT_H
#define IPC_PROTO_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/limits.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the layouts are little-endian");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "shared words must be lock-free");

#define IPC_LAYOUT_MAGIC     UINT64_C(0x0031647063706900) /* "\0ipcpd1\0" */
#define IPC_LAYOUT_ABI_MAJOR 1
#define IPC_LAYOUT_ABI_MINOR 0
#define IPC_LAYOUT_LINE      128 /* two cache lines: the adjacent-line prefetcher couples pairs */
#define IPC_LAYOUT_PAGE      4096

enum ipc_segment_kind {
    IPC_SEGMENT_BOARD = 1,  /* written by the core, read by one session */
    IPC_SEGMENT_CELLS = 2,  /* written by one reading session, read by the writers of its lanes */
    IPC_SEGMENT_LANE = 3,   /* written by one publishing session, read by its readers */
    IPC_SEGMENT_PORT = 4,   /* one end of a port: written by that end, read by the other */
    IPC_SEGMENT_SHARED = 5, /* of users: written by all sessions that are attached to it */
};

/* First bytes of every segment, filled in by the core before it hands the segment out. It detects accidents
 * (another version, another compiler); it proves nothing about a hostile peer. */
struct ipc_segment_header {
    uint64_t magic;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint32_t kind; /* enum ipc_segment_kind */
    uint64_t fingerprint;
    uint64_t size; /* of the whole segment, bytes */
    uint64_t id;   /* unique in the life of a broker */
    uint64_t reserved[3];
};

/* One per session. Writer: the core. */
struct ipc_board {
    struct ipc_segment_header header;
    /* Counts changes that wait in the session's socket; a futex word for whoever sleeps. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint32_t mail;
    /* Notices that did not fit into the window yet: more will follow each confirmation. */
    _Atomic uint32_t pending;
    /* Non-zero once the core has ended this session: an enum ipc_reason. */
    _Atomic uint32_t ended;
    uint32_t reserved;
    /* The core stops, and finishes what is under way, until then (CLOCK_MONOTONIC): no call is begun. 0: it does not. */
    _Atomic uint64_t stops_ns;
    unsigned char more[IPC_LAYOUT_PAGE - IPC_LAYOUT_LINE - 24];
};

#define IPC_ARMED       UINT64_C(1) /* I sleep on this lane: wake me */
#define IPC_ARMED_BELL  UINT64_C(2) /* by the bell, not by the futex of the record */
#define IPC_ARMED_FENCE UINT64_C(4) /* I sleep often, without a barrier for you: fence each publish */
#define IPC_ARMED_STEP  UINT64_C(8)

/* One per (reader, lane). Writer: the reading session. */
struct ipc_cell {
    /* Everything below this position of the lane has been consumed; its low half is a futex word. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t cursor;
    /* The pairing that this cell serves now; stored after cursor, so whoever sees it sees a cursor of it. */
    _Atomic uint64_t owner;
    /* Records of this lane that the reader missed. */
    _Atomic uint64_t lost;
    /* IPC_ARMED and the other bits below, and above them a count that only grows, over pairings too. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t armed;
    /* Position of the record whose word I sleep on; stored before armed. */
    _Atomic uint64_t asleep;
};

#define IPC_CELLS_PER_SEGMENT 63u
struct ipc_cells {
    struct ipc_segment_header header;
    _Alignas(2 * IPC_LAYOUT_LINE) struct ipc_cell cells[IPC_CELLS_PER_SEGMENT];
};

/* One per reader that the writer has admitted. Writer: the publishing session. */
struct ipc_slot {
    _Atomic uint64_t start;          /* 0: not admitted; else the position | 1 from which it is counted */
    _Atomic uint64_t start_sequence; /* of the record at start; stored before start */
};

#define IPC_LANE_SLOTS 208u
/* The control page of a lane; the ring follows it. Writer: the publishing session. */
struct ipc_lane {
    struct ipc_segment_header header;
    uint32_t ring_size; /* bytes, a power of two */
    uint32_t reserved;
    /* Valid from here on: the writer moves it before it overwrites. Always a record boundary. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t tail;
    _Atomic uint64_t tail_sequence; /* of the record at tail; may lag or lead by one step of tail */
    /* Published at least up to here: a hint, stored with each step of tail, from which to walk. */
    _Atomic uint64_t head;
    _Atomic uint64_t overrun; /* records overwritten before a counted reader had reported them read */
    /* The cursor position that the writer waits for; 0: it does not wait. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t want;
    /* Of a lane of calls: how many its server has and has not answered, for a core that stops; no peer looks at it. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t calls;
    _Alignas(2 * IPC_LAYOUT_LINE) struct ipc_slot slots[IPC_LANE_SLOTS];
};

/* One end of a port, the two-way connection of a session with a router of the core: a lane for what this end says,
 * whose only reader (slot 0) is the other end, and the cell with which this end reads what the other says. The ring
 * follows. Both cells have the port's number as their pairing. Writer: this end. */
struct ipc_port {
    struct ipc_lane lane;
    struct ipc_cell cell;
};

/* The first page of a shared segment: a semaphore of permits, which coordinates what the users' bytes behind the page
 * mean. The one place that several processes write: they trust each other. A permit is a word with the session that holds it,
 * so that the core can take back those of a session that ended. */
#define IPC_SHARED_WAITERS 64u
struct ipc_shared {
    struct ipc_segment_header header;
    /* Futex word. Bit 0: somebody waits, or did; above it the count of releases that found it set. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint32_t turn;
    /* Each 0 or the session that holds it; those from the segment's number of permits on are not used. */
    _Alignas(IPC_LAYOUT_LINE) _Atomic uint64_t owners[IPC_MAX_PERMITS];
    /* Sessions that wait, as far as there is room: for whoever looks. */
    _Atomic uint64_t waiters[IPC_SHARED_WAITERS];
};

/* A record: one 64-bit word, then `size` bytes of body, padded to 8.
 *
 *   bits 63..32  sequence number, low half
 *   bit  31      committed
 *   bit  30      the body starts with a header block (struct ipc_record_headers)
 *   bits 29..28  0
 *   bits 27..0   size of the body in bytes
 *
 * The word of the record that comes next is not committed and carries the stamp of its lap in its low half (0 in
 * a fresh lane), so that whoever sleeps on it (its low half is the futex word) can tell it from the same place
 * one lap later. The writer stamps it before it commits the record in front of it.
 */
#define IPC_RECORD_COMMITTED UINT32_C(0x80000000)
#define IPC_RECORD_HEADERS   UINT32_C(0x40000000)
#define IPC_RECORD_RESERVED  UINT32_C(0x30000000)
#define IPC_RECORD_SIZE      UINT32_C(0x0fffffff)
#define IPC_RECORD_ALIGN     8u

/* Header block at the start of a body, present if IPC_RECORD_HEADERS: `size` bytes in all, a multiple of 8,
 * then the payload. Fields follow one after the other, each {u8 kind, u8 name_size, u16 value_size, name,
 * value}; the rest of the block is zero (kind 0 ends the list). */
struct ipc_record_headers {
    uint32_t size;
    uint16_t count;
    uint16_t reserved;
};
enum ipc_field_kind {
    IPC_FIELD_END = 0,
    IPC_FIELD_TIMESTAMP = 1,    /* u64, CLOCK_REALTIME nanoseconds, no name */
    IPC_FIELD_CONTENT_TYPE = 2, /* text, no name */
    IPC_FIELD_USER = 3,         /* name and value of the user's choice */
    /* Of messages to queues; no names. Times are u64 nanoseconds of CLOCK_BOOTTIME. */
    IPC_FIELD_PRIORITY = 4,   /* u8, 0 to IPC_PRIORITIES - 1: higher ones first */
    IPC_FIELD_EXPIRES = 5,    /* time */
    IPC_FIELD_NOT_BEFORE = 6, /* time */
    IPC_FIELD_ID = 7,         /* 1 to 255 bytes: for deduplication */
    IPC_FIELD_KEY = 8,        /* 1 to 255 bytes: messages of one key go to one consumer at a time, in order */
    IPC_FIELD_REPLY_TO = 9,   /* name of a queue */
    /* Put in front by the core when a message becomes a dead letter. */
    IPC_FIELD_ORIGIN = 10,   /* name of the queue that it was in */
    IPC_FIELD_REASON = 11,   /* text */
    IPC_FIELD_ATTEMPTS = 12, /* u32: how often it had been delivered */
    IPC_FIELD_DIED = 13,     /* u64, CLOCK_REALTIME nanoseconds */
};

/* What goes through ports of queues, each the start of a record's body.
 *
 * producer -> router: a message as in a topic's lane (header block if IPC_RECORD_HEADERS, payload). Its fate is
 * decided, and is acceptance, once the router's cursor has passed it and no verdict names its position.
 * router -> producer: struct ipc_verdict, then a sentence, for a message that was not accepted, before the cursor
 * passes it.
 * router -> consumer: struct ipc_delivery, then the message as its producer wrote it. The number of a delivery is
 * the sequence number of its record.
 * consumer -> router: struct ipc_ack, then `reason_size` bytes of text.
 */
struct ipc_verdict {
    uint64_t position; /* of the record */
    int32_t code;      /* negative errno; 0: a duplicate, which counts as accepted */
    uint32_t reserved;
};

enum ipc_redelivery {
    IPC_REDELIVERY_NONE = 0,
    IPC_REDELIVERY_DIED = 1,     /* the consumer that had it died */
    IPC_REDELIVERY_CLOSED = 2,   /* it left without an acknowledgement */
    IPC_REDELIVERY_REFUSED = 3,  /* it refused it (nack) */
    IPC_REDELIVERY_EXPIRED = 4,  /* it took longer than the queue's lease */
    IPC_REDELIVERY_REQUEUED = 5, /* an operator put it back */
};

struct ipc_delivery {
    uint64_t number;  /* of the message in its queue: counts up, and is never used again */
    uint64_t time_ns; /* CLOCK_REALTIME of its acceptance */
    uint64_t session; /* its producer, as the core knows it */
    uint32_t uid, pid;
    uint16_t attempt; /* 1: the first */
    uint8_t priority;
    uint8_t redelivery; /* enum ipc_redelivery: why it comes again */
    uint32_t reserved;
};

enum ipc_ack_operation {
    IPC_ACK_DONE = 1, /* it is done with: it leaves the queue */
    IPC_ACK_REFUSE =
        2, /* deliver it again, to somebody, after `ns`; or make it a dead letter (IPC_ACK_DEAD) */
    IPC_ACK_TOUCH = 3, /* the lease of the queue begins anew, for `ns` (0: as long as the queue says) */
};
#define IPC_ACK_DEAD 1u /* flag of IPC_ACK_REFUSE: not again */
struct ipc_ack {
    uint8_t operation;
    uint8_t flags;
    uint16_t reason_size; /* at most IPC_MAX_REASON_SIZE */
    uint32_t reserved;
    uint64_t first, last; /* deliveries, both included; those that are not open are ignored */
    uint64_t ns;
};

/* What goes through the lanes of a service, each the start of a record's body; the header block (if
 * IPC_RECORD_HEADERS) and the payload follow.
 *
 * client -> server: struct ipc_call_head. It is for the server that the pairing names; others pass it over.
 * server -> client: struct ipc_reply_head, one or (IPC_REPLY_END on the last) several for a call.
 */
enum ipc_call_operation { IPC_OPERATION_CALL = 1, IPC_OPERATION_CANCEL = 2 };
struct ipc_call_head {
    uint64_t id; /* of the client's choice, never used again in an inbox */
    uint64_t pairing;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none */
    uint32_t operation;
    uint32_t reserved;
};

#define IPC_REPLY_END   1u /* nothing comes after it */
#define IPC_REPLY_ERROR 2u /* an error: code, then in front of the payload a sentence and its final 0 */
#define IPC_REPLY_EMPTY 4u /* no part of the answer, only its end */
struct ipc_reply_head {
    uint64_t id;
    int32_t code;
    uint32_t flags;
};

static inline uint32_t ipc_record_stride(uint32_t body_size)
{
    return (uint32_t)sizeof(uint64_t) + ((body_size + IPC_RECORD_ALIGN - 1) & ~(IPC_RECORD_ALIGN - 1));
}

/* The stamp of an uncommitted record word at a position: the lap number, scattered (the multiplier is odd, so
 * laps stay distinct) so that payload left over from another lap is not taken for a stamp. */
static inline uint32_t ipc_record_stamp(uint64_t position, uint32_t ring_size)
{
    uint32_t lap = (uint32_t)(position >> __builtin_ctz(ring_size));
    return (lap * UINT32_C(0x9e3779b1) ^ UINT32_C(0x2545f491)) & ~IPC_RECORD_COMMITTED;
}

/* Changes with every size and offset below. */
#define IPC_LAYOUT_FINGERPRINT                                                                 \
 ((uint64_t)sizeof(struct ipc_board) << 48 ^ (uint64_t)sizeof(struct ipc_cells) << 32 ^        \
  (uint64_t)offsetof(struct ipc_cell, armed) << 24 ^ (uint64_t)sizeof(struct ipc_cell) << 16 ^ \
  (uint64_t)sizeof(struct ipc_lane) << 4 ^ (uint64_t)offsetof(struct ipc_lane, want))

static_assert(sizeof(struct ipc_segment_header) == 64, "layout");
static_assert(sizeof(struct ipc_board) == IPC_LAYOUT_PAGE, "layout");
static_assert(offsetof(struct ipc_board, mail) == 128 && offsetof(struct ipc_board, stops_ns) == 144,
              "layout");
static_assert(sizeof(struct ipc_cell) == 256 && offsetof(struct ipc_cell, armed) == 128, "layout");
static_assert(sizeof(struct ipc_cells) == 4 * IPC_LAYOUT_PAGE, "layout");
static_assert(offsetof(struct ipc_lane, tail) == 128 && offsetof(struct ipc_lane, want) == 256, "layout");
static_assert(offsetof(struct ipc_lane, calls) == 384 && offsetof(struct ipc_lane, slots) == 512, "layout");
static_assert(sizeof(struct ipc_slot) == 16, "layout");
static_assert(sizeof(struct ipc_lane) <= IPC_LAYOUT_PAGE, "a lane's control block is one page");
static_assert(sizeof(struct ipc_record_headers) == 8, "layout");
static_assert(sizeof(struct ipc_shared) <= IPC_LAYOUT_PAGE, "a shared segment's control block is one page");
static_assert(offsetof(struct ipc_shared, owners) == 256, "layout");
static_assert(sizeof(struct ipc_port) == IPC_LAYOUT_PAGE, "a port's control block is one page");
static_assert(offsetof(struct ipc_port, cell) == sizeof(struct ipc_lane), "layout");
static_assert(sizeof(struct ipc_verdict) == 16 && sizeof(struct ipc_delivery) == 40, "layout");
static_assert(sizeof(struct ipc_ack) == 32, "layout");
static_assert(sizeof(struct ipc_call_head) == 32 && sizeof(struct ipc_reply_head) == 16, "layout");

#endif
