/* SPDX-License-Identifier: Apache-2.0
 *
 * Publishers and subscriptions from the inside.
 */
#ifndef IPC_PATTERNS_PATTERNS_H
#define IPC_PATTERNS_PATTERNS_H

#include "libipc/lane/reader.h"
#include "libipc/lane/writer.h"
#include "libipc/patterns/spin.h"
#include "libipc/session/session.h"

/* The reader of a publisher that left last. */
struct reader_left {
    uint64_t pairing;
    unsigned reason;
    uint32_t servers; /* see struct notice */
    bool replying;
    struct ipc_peer peer;
};

/* What a publisher remembers of a counted reader beside its lane_peer. */
struct reader_ref {
    struct reader_ref *next;
    uint64_t pairing;
    struct segment_ref *cells;
    struct ipc_peer peer;
};

struct ipc_publisher {
    struct handle handle;
    struct lane_writer writer;
    struct ipc_lane *lane;
    uint32_t plain_size_end; /* bodies below this size may go the short way; 0: none, now */
    uint32_t message_size_max;
    unsigned flags;
    int64_t block_max_ns;
    /* Asked while it waits for room, now and then: is the message not wanted any more? NULL: it is. */
    bool (*unwanted)(void *about);
    void *unwanted_about;
    bool looks; /* the connection reconnects: look now and then if the broker is there */
    uint64_t look_at_ns;
    uint64_t rings_seen;
    uint64_t bytes_past;   /* in lanes of earlier sessions */
    uint32_t loan_size;    /* bytes of payload lent out, if loan_open */
    uint32_t loan_headers; /* bytes of headers in front of it */
    uint32_t loan_flags;
    bool loan_open;
    bool loan_more;
    bool renew; /* the broker wants it in another lane */
    struct reader_ref *readers;
    uint64_t dropped;
    uint64_t detached;
    uint64_t waits;
    uint64_t net;
    struct reader_left left;
    char topic[IPC_MAX_NAME_SIZE + 1];
};

/* What a lane of a subscription is a part of. */
struct lane_owner {
    bool gone; /* the lane was dropped */
};

/* One lane that a subscription reads. */
struct sub_lane {
    struct lane_reader reader;
    uint64_t pairing, id;
    void *map;
    uint32_t ring_size;
    struct segment_ref *cells;
    unsigned held;   /* records taken in place and not released */
    unsigned reason; /* why the writer left */
    bool left;       /* the writer left: read to the end, then drop */
    bool broken;     /* not to be read any more */
    bool past; /* of an earlier session: it has no pairing, and stays until its publisher has another lane */
    struct sub_lane *after; /* that one is read first: an earlier lane of the same publisher; NULL: none */
    bool armed;
    uint64_t call; /* see struct notice */
    struct lane_owner *owner;
    struct ipc_peer sender;
    char topic[IPC_MAX_NAME_SIZE + 1];
};

/* A record taken in place. */
struct held {
    struct sub_lane *lane;
    uint64_t next;
    unsigned char *copy; /* of its headers, or of all of it if it could not be pinned; NULL: none */
};

#define HELD_MAX 1024u

/* A bell to wait on, which the writers of one user ring. */
struct bell_end {
    int fd;
    uint32_t uid;
    bool past; /* of an earlier session */
};

/* Records read from one lane in a row while others wait. */
#define BURST_MAX 64u

struct ipc_subscription {
    struct handle handle;
    unsigned kind, slow, flags;
    struct spin spin;
    uint64_t look_at_ns; /* when to look at the connection again, if this never sleeps */
    struct sub_lane **lanes;
    unsigned lane_count;
    unsigned lane_capacity;
    unsigned current; /* index of the lane that is read now */
    struct sub_lane
        *now; /* that lane, if the short way is open: it is not broken, nothing of it is held, the number
                             of its next record is known; NULL after any change of the lanes */
    uint64_t burst_start; /* `received`, when it became that lane */
    uint64_t burst_end;   /* from here on the others are looked at */
    unsigned left_count;  /* lanes that are left or broken and not dropped yet */
    bool watched; /* waits end with -EINTR after each change of its lanes, or mail: `roused` says so until
                             it is taken back */
    bool roused;
    struct lane_word also; /* waits end with -EINTR when this word (NULL: none) no longer has its value */
    bool keep;             /* a batch is being put together: its lanes stay */

    /* Polling: see poll.c */
    uint64_t run_start; /* `received`, when the lanes were last empty */
    uint32_t backoff;   /* pauses before the next look */
    uint32_t probe;
    uint64_t slept_at; /* received, when it went to sleep last */
    uint32_t naps;     /* sleeps in a row with few records in between */

    int epoll; /* descriptor of the user, or -1 */
    struct bell_end *bells;
    unsigned bell_count;
    unsigned spoiled; /* bells that were shut down */
    bool bells_asked;

    struct held *held; /* ring of HELD_MAX, made when first needed */
    uint64_t held_head;
    uint64_t held_tail;

    unsigned char *scratch; /* header blocks of the messages that were received last */
    size_t scratch_size;
    size_t scratch_capacity;

    char pattern[IPC_MAX_NAME_SIZE + 1];
    uint64_t received;
    uint64_t lost_departed;
    uint64_t sleeps;
    uint64_t polls;
    uint64_t net;
};

/* Put a handle's descriptor under the connection's. 0 or negative errno. */
int patterns_join_descriptor(struct handle *handle);

/* Put the descriptors of all handles under the connection's. 0 or negative errno; returns the
 * connection's descriptor. */
int patterns_join_descriptors(struct ipc_connection *connection);

/* Every entry into the library on a handle. */
static inline int handle_enter(const struct handle *handle)
{
    return __builtin_expect(guard_foreign(handle->connection), 0) ? -ECHILD : 0;
}

/* The session of a handle is over. 0: there is another one, in which to declare it again; -EAGAIN: there will be one,
 * in *next_ns it is to be looked for again; -EPIPE. */
static inline int handle_look(const struct handle *handle, uint64_t *next_ns)
{
    int result = connection_look(handle->connection, next_ns);
    return handle->owner || (result == 0 && !handle->connection->reconnects) ? -EPIPE : result;
}

/* Between two sessions it may sleep: not if it is to be declared again, or to fail. */
static inline bool handle_restless(const struct handle *handle)
{
    return handle_ended(handle) && (handle->owner || !connection_between(handle->connection));
}

/* publisher.c, subscription.c: of any kind (control.proto). `target` as in ADVERTISE; *servers as in ADVERTISED. */
int publisher_open(struct ipc_publisher **ret, ipc_connection *connection, const char *topic, unsigned kind,
                   uint64_t target, const struct ipc_publisher_options *options, uint32_t *servers,
                   struct ipc_error *error);
int subscription_open(struct ipc_subscription **ret, ipc_connection *connection, const char *pattern,
                      unsigned kind, const struct ipc_subscription_options *options, struct ipc_error *error);

/* receive.c: copy the payload of a record that was found, and its header block to the scratch memory. Returns the
 * payload's size; -EMSGSIZE; -EPROTO; in *again if it was overwritten. */
ssize_t subscription_copy(struct ipc_subscription *sub, struct sub_lane *lane,
                          const struct lane_record *record, void *buffer, size_t capacity, int64_t *block,
                          bool *again);
/* What headers tell that has a place of its own in the message. The block is a private copy, with BLOCK_EXTRA
 * bytes behind it. */
#define BLOCK_EXTRA 264u
void message_describe_fields(struct ipc_message *message, unsigned char *block, size_t size);

/* lanes.c: what the core says about a subscription's lanes. */
void subscription_news(struct ipc_subscription *sub);
void subscription_drop(struct ipc_subscription *sub, unsigned index);
/* The session is over. 0: declared in another one; -EAGAIN: not yet, see handle_look(); -EPIPE; or why it could not be
 * declared. */
int subscription_revive(struct ipc_subscription *sub, uint64_t *next_ns);
/* The same for the part of a client or server, which the session's end has ended: what it had is let go, its owner is
 * to look. Waits until the deadline (0: not at all). 0; -EAGAIN, -ETIMEDOUT; -EPIPE; or why. */
int subscription_renew(struct ipc_subscription *sub, uint64_t deadline);
/* Its lanes are of an earlier session now. */
void subscription_past(struct ipc_subscription *sub);
/* All of an earlier lane was read: the one after it is next. */
void subscription_read(struct ipc_subscription *sub, const struct sub_lane *past);
/* Publishers that are attached. */
unsigned subscription_writers(const struct ipc_subscription *sub);
int subscription_bells(struct ipc_subscription *sub, struct ipc_error *error);
void subscription_bells_drop(struct ipc_subscription *sub);
void subscription_bell_drop(struct ipc_subscription *sub, unsigned index);
/* A lane that cannot be read any more: tell the core, and wait for its word that the lane is gone. */
void subscription_break(struct ipc_subscription *sub, struct sub_lane *lane, unsigned reason);

static inline bool subscription_roused(const struct ipc_subscription *sub)
{
    return sub->roused ||
           (sub->also.word && atomic_load_explicit(sub->also.word, memory_order_relaxed) != sub->also.value);
}

/* poll.c: find a record, or wait for one. */
int subscription_find(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane);
int subscription_wait(struct ipc_subscription *sub, struct lane_record *record, struct sub_lane **lane,
                      int64_t timeout_ns);

#endif
