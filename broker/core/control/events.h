/* SPDX-License-Identifier: Apache-2.0
 *
 * What happened lately: who came, went, died, was denied, was over a limit. A bounded memory with numbers that only grow,
 * also over a restart, so that whoever reads sees what it missed. Control thread only; never on the way of a message.
 *
 * A user that makes very many is heard of EVENTS_BURST at once, then EVENTS_PER_SECOND; the rest is counted and told with
 * the next. When the memory is full, the oldest goes of the user that has most in it: what one does costs the events
 * of no other that has fewer.
 */
#ifndef IPCD_CORE_CONTROL_EVENTS_H
#define IPCD_CORE_CONTROL_EVENTS_H

#include "broker/core/control/records.h"

#define EVENTS_KEPT       2048u
#define EVENTS_BURST      64u
#define EVENTS_PER_SECOND 8u
#define EVENT_TEXT        384u

#define EVENT_KINDS(X)                                         \
 X(STARTED, "started") /* ipcd, again or for the first time */ \
 X(CAME, "came")                                               \
 X(WENT, "went") /* it closed */                               \
 X(DIED, "died")                                               \
 X(ENDED, "ended")   /* by the broker */                       \
 X(DENIED, "denied") /* by the policy */                       \
 X(LIMIT, "limit")                                             \
 X(MORE, "more") /* of that user, which were only counted */

enum event_kind {
#define EVENT_ENUM(kind, word) EVENT_##kind,
    EVENT_KINDS(EVENT_ENUM)
#undef EVENT_ENUM
};
const char *event_word(enum event_kind kind);

struct event {
    struct list link;      /* events.all */
    struct list by_source; /* event_source.events */
    struct event_source *source;
    uint64_t sequence;
    uint64_t time_ns; /* CLOCK_REALTIME */
    uint64_t more;    /* before this one, of that user, which were only counted */
    struct peer peer;
    enum event_kind kind;
    char text[EVENT_TEXT];
};

struct event_source {
    struct hash_node node; /* events.by_uid */
    struct list link;      /* events.sources, or events.spare */
    struct list events;    /* the oldest first */
    size_t n;
    double left; /* a bucket, filled as time passes */
    uint64_t at_ns;
    uint64_t untold;
    uint32_t uid;
};

struct events {
    uint64_t *last; /* number of the newest */
    uint64_t own_last;
    struct list all; /* the oldest first */
    struct hash by_uid;
    struct list sources, spare;
    size_t n, n_sources; /* of the memory below, from the start */
    struct event memory[EVENTS_KEPT];
    struct event_source source_memory[EVENTS_KEPT + 1];
};

/* Returns 0 or -ENOMEM. */
int events_init(struct events *events);
void events_done(struct events *events);

/* Numbers go on after *last, which is kept from now on. */
void events_go_on(struct events *events, uint64_t *last);

/* `text` is cut to size; NULL: none. Times are CLOCK_MONOTONIC. */
void events_add(struct events *events, uint64_t now_ns, enum event_kind kind, const struct peer *peer,
                const char *text);

/* Tell of those that were only counted and have no other after them. */
void events_flush(struct events *events, uint64_t now_ns);

/* The node of the first event after a number; the head of the list: there is none. */
struct list *events_after(struct events *events, uint64_t sequence);

#endif
