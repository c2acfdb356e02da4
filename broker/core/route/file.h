/* SPDX-License-Identifier: Apache-2.0
 *
 * The file of a queue: a memfd that outlives this process, in which the queue's messages lie.
 *
 *   page 0      struct file_header
 *   directory   for each chunk a word, 0, or how many chunks were taken into use before it and how many follow it; and marks
 *               of what may be in it
 *   ids         a ring of the message ids that were accepted last
 *   chunks      of FILE_CHUNK bytes, or several in a row for a large message: records one after the other
 *
 * Records are appended to the chunk that was taken into use last. All of a record is written before the release store of its
 * state commits it; before that the state of the record behind it is set to 0, so that a scan finds the end. A chunk
 * is in use once its word in the directory is stored, which comes after its first state was set to 0. A mark is set before the
 * first state that it is about. A process killed between any two stores leaves all of this true. One thread: the queue's
 * router.
 */
#ifndef IPCD_CORE_ROUTE_FILE_H
#define IPCD_CORE_ROUTE_FILE_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/route/route.h"

#define FILE_CHUNK  (UINT64_C(256) << 10)
#define FILE_CHUNKS 32768u
static_assert(FILE_CHUNKS * FILE_CHUNK >= IPC_MAX_QUEUE_BYTES, "a queue can be as large as it may");

struct file_header {
    uint64_t magic;
    uint32_t version, dedup_window;
    uint64_t queue;
    uint64_t secret[2];           /* for the ids */
    _Atomic uint64_t next_number; /* of messages: at least this */
    _Atomic uint64_t ids;         /* appended to the ring in all */
    _Atomic uint32_t chunks;      /* chunks from here on were never used */
};

/* Marks: the priorities of the records in it, and that one of them was delivered. */
#define FILE_DELIVERED (1u << IPC_PRIORITIES)
struct file_slot {
    _Atomic uint64_t word;
    _Atomic uint64_t marks;
};

struct file_id {
    uint64_t hash[2];
    uint64_t time_ns; /* CLOCK_BOOTTIME */
    uint64_t number;
};

/* The state of a record, in one word: what it is; how often it was delivered; why it was taken back last; and while it is
 * delivered to whom (struct route_port.slot), and the low half of the number of the delivery. */
enum record_kind { RECORD_END, RECORD_WAITING, RECORD_DELIVERED, RECORD_DONE };
struct record_state {
    enum record_kind kind;
    unsigned attempt;
    unsigned redelivery; /* enum ipc_redelivery */
    uint16_t slot;
    uint32_t delivery;
};

#define RECORD_HEADERS 1u /* the body starts with a header block */
#define RECORD_EXPIRES 2u
#define RECORD_KEY     4u
#define RECORD_ID      8u
#define RECORD_LETTER  16u /* came from another queue */

struct record {
    _Atomic uint64_t state;
    uint64_t number;
    uint64_t origin;   /* port; of a letter the queue that it was in */
    uint64_t position; /* in the lane of that port; of a letter its number in that queue */
    uint64_t session;  /* its producer */
    uint32_t uid, pid;
    uint64_t time_ns;            /* CLOCK_REALTIME */
    _Atomic uint64_t not_before; /* CLOCK_BOOTTIME; stored before the state; 0: at once */
    uint32_t size;               /* of the body that follows */
    uint8_t priority, flags;
    uint16_t reserved;
};

/* Private, for each chunk. */
struct chunk {
    uint64_t first_number; /* records of lower numbers are not in it: it was used again */
    uint32_t live;         /* records that are not done */
    uint32_t populated;    /* bytes that have memory */
    uint32_t run;          /* chunks in a row from here; 0: free, or inside of a run */
    uint32_t inside;       /* chunks of its run before it: records may start in each of them */
    uint32_t marks;
};

/* A run of chunks that an earlier process left. */
struct file_left {
    uint64_t index;
    uint64_t until; /* once it was scanned: behind its last number */
    uint32_t chunk, run;
    uint32_t marks;
    bool scanned;
};

/* What was not found yet. */
struct file_scan {
    bool begun;
    struct file_left *left;         /* in the order in which they were taken into use */
    uint32_t n, prefix;             /* of those; the first that was not scanned */
    uint32_t open;                  /* of those with FILE_DELIVERED that were not scanned */
    uint32_t at;                    /* which is being scanned; n: none */
    uint64_t offset;                /* of the next record there */
    uint64_t listed;                /* all numbers below this were found */
    uint32_t ahead[IPC_PRIORITIES]; /* how many that were not scanned have the mark of this priority */
};

struct file {
    int fd; /* the control thread's */
    unsigned char *map;
    struct file_header *header;
    struct file_slot *directory;
    struct file_id *ids;
    uint64_t chunks_at; /* offset of chunk 0 */
    struct chunk *chunks;
    uint32_t capacity; /* of chunks[] */
    uint32_t *free;    /* those without memory, then the n_warm with it, the warmest last */
    uint32_t n_free, n_warm, n_used;
    uint32_t warm_low;   /* the lowest n_warm since the last file_trim() */
    uint32_t current;    /* chunk that is appended to; FILE_CHUNKS: none */
    uint64_t end, until; /* offsets: where the next record goes; where the chunk ends */
    uint64_t used_index; /* chunks taken into use in all */
    uint64_t next_number;
    uint64_t memory;
    uint64_t ids_populated;
    struct route_budget *budget;
    struct file_scan scan;
};

static inline uint64_t record_word(const struct record_state *state)
{
    unsigned attempt = state->attempt < 1023 ? state->attempt : 1023;

    return (uint64_t)state->kind << 62 | (uint64_t)attempt << 52 | (uint64_t)state->redelivery << 48 |
           (uint64_t)state->slot << 32 | state->delivery;
}

static inline struct record_state record_state_of(uint64_t word)
{
    return (struct record_state){.kind = (enum record_kind)(word >> 62),
                                 .attempt = word >> 52 & 1023,
                                 .redelivery = word >> 48 & 15,
                                 .slot = (uint16_t)(word >> 32),
                                 .delivery = (uint32_t)word};
}

static inline uint64_t record_stride(uint32_t size)
{
    return (sizeof(struct record) + size + 7) & ~UINT64_C(7);
}

/* Map it. `resumed`: it may have content, which a scan then finds. The descriptor stays the caller's. Returns 0,
 * -EBADMSG if it is not the file of that queue, or another negative errno. */
int file_open(struct file *file, int fd, uint64_t queue, bool resumed, struct route_budget *budget);

/* Unmap it, and return what it was charged. Its memory goes with its last descriptor. */
void file_close(struct file *file);

/* Find some more of the records that an earlier process left and that are not done; bounded. Nothing can be appended until
 * all is found. First come those in chunks of which something was delivered, then the others, oldest first; `in_order`: all
 * that were accepted before it were found before. `head` is a copy without the body. Returns 1, 0 when all is found, or a
 * negative errno, of `found` for one: the same record comes again. */
int file_scan(struct file *file,
              int (*found)(void *data, uint64_t offset, const struct record *head, bool in_order),
              void *data);

/* False while a delivered record may not have been found yet. */
static inline bool file_scan_has_open(const struct file *file)
{
    return file->scan.begun && file->scan.open == 0;
}

/* Was everything found that has a higher priority, or the same and a lower number? */
bool file_scan_is_first(const struct file *file, unsigned priority, uint64_t number);

/* Every record behind number `after` that is not done, in order, until `found` returns other than 0. Returns what that
 * was, or 0. `found` may make records done, and append. */
int file_each(struct file *file, uint64_t after,
              int (*found)(void *data, uint64_t offset, struct record *record), void *data);

static inline struct record *file_record(const struct file *file, uint64_t offset)
{
    return (struct record *)(void *)(file->map + offset);
}

static inline unsigned char *record_body(struct record *record)
{
    return (unsigned char *)(record + 1);
}

/* The record that had this number when somebody took down its offset, or NULL if it is done with. */
struct record *file_find(const struct file *file, uint64_t offset, uint64_t number);

/* Room for a record with a body of that size: its offset, and the number that it will have; nothing is there until
 * file_commit(). -EDQUOT: the budget; -ENOSPC: the file's own bounds; -ENOMEM. */
int file_reserve(struct file *file, uint32_t size, uint64_t *ret_offset, uint64_t *ret_number);
void file_commit(struct file *file, uint64_t offset, const struct record_state *state);

static inline void record_store(struct record *record, const struct record_state *state)
{
    atomic_store_explicit(&record->state, record_word(state), memory_order_release);
}

static inline struct record_state record_load(const struct record *record)
{
    return record_state_of(atomic_load_explicit(&record->state, memory_order_acquire));
}

/* To be called before it is delivered. */
void file_delivers(struct file *file, uint64_t offset);

/* It is done with; its memory is used again when all around it is. */
void file_done(struct file *file, uint64_t offset);

/* Does more free memory wait than the file keeps in the long run? */
bool file_trims(const struct file *file);
/* Give back what was not needed since the last time. */
void file_trim(struct file *file);

static inline uint32_t file_id_space(const struct file *file)
{
    return file->header->dedup_window;
}

/* Room in the ring of ids for one more. 0 or a negative errno. */
int file_id_reserve(struct file *file);
/* Append it; returns its place in the ring. */
uint32_t file_id_append(struct file *file, const struct file_id *id);

#endif
