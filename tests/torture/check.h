/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the history checker share.
 */
#ifndef IPC_TESTS_TORTURE_CHECK_H
#define IPC_TESTS_TORTURE_CHECK_H

#include <inttypes.h>

#include "tests/torture/history.h"

#define NEVER UINT64_MAX

struct sending {
    uint32_t sender, producer, sequence, checksum;
    uint16_t key;
    uint8_t queue, priority;
    bool sent, confirmed, refused;
    bool arrived, letter, done; /* came from its queue, as a dead letter; somebody acknowledged it */
    bool moved;                 /* came from more than one place */
    uint64_t ticket, number, time_ns;
    uint64_t first_ns; /* of its first reception */
};

struct reception {
    uint64_t number, time_ns, delivery, acking, acked, refusing;
    uint32_t client, sender, producer, sequence, checksum;
    uint16_t attempt, key;
    uint8_t queue, priority, redelivered;
    bool held_back; /* refused for later, or for good */
};

struct client {
    uint64_t begin, end; /* or NEVER */
    uint32_t process;    /* of a session with a gateway: the client whose kill ends it, too; 0: none */
    uint8_t gateway;
    bool killed;
    uint32_t last_sequence[10];
};

struct gateway_kill {
    uint8_t gateway;   /* 0: of ipcd */
    uint64_t from, to; /* it was killed in between */
};

struct check {
    const struct history *history;
    struct findings *found;
    FILE *out;
    struct sending *sendings; /* by sender, then sequence: one each */
    struct reception *receptions;
    struct client *clients;
    struct gateway_kill *kills;
    size_t n_sendings, n_receptions, n_clients, n_kills;
    uint64_t moved_ns[HISTORY_QUEUES]; /* the first order to move something there, or NEVER */
};

void finding(struct check *check, uint64_t *count, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define WHICH "queue %u, number %" PRIu64 ", sender %" PRIu32 ", sequence %" PRIu32
#define TELL  reception->queue, reception->number, reception->sender, reception->sequence

int check_by_sender(const void *a, const void *b);
/* The sending that this is, or NULL. */
struct sending *check_sending(struct check *check, const struct reception *reception);
/* The same; that there is none is said. */
struct sending *check_content(struct check *check, const struct reception *reception);

/* When its lease is over for certain. */
uint64_t check_lease_end(struct check *check, const struct reception *reception);
/* When that delivery was over for certain, or may have been. */
uint64_t check_over(struct check *check, const struct reception *reception);

/* ---- check_moves.c ---- */

void check_move(struct check *check, const struct event *event);
/* May what was received have been moved there by somebody's order? */
bool check_moved_to(const struct check *check, const struct reception *reception);
/* May it have been moved to a queue, and have become a dead letter of that? */
bool check_letter_again(const struct check *check, const struct reception *reception);
/* Is it a dead letter, of the queue that it was sent to or, perhaps, moved to? */
bool check_letter(const struct check *check, const struct reception *reception,
                  const struct sending *sending);
/* What is in several queues, one after the other, is with one consumer at a time, and is acknowledged once. */
void check_moves(struct check *check);

/* ---- check_gateways.c ---- */

/* Sessions with a gateway end with it, and with the process whose they are. */
void check_sessions(struct check *check);
/* Was it killed in that time? */
bool check_killed(const struct check *check, unsigned gateway, uint64_t from, uint64_t to);
/* The order of a sender's messages, which a gateway that is killed between them does not keep. */
void check_sequence(struct check *check, const struct reception *reception, const struct sending *sending);
/* What came without a number. The sendings are in order of their senders, here and below. */
void check_raw(struct check *check);
/* What is missing on ways that may lose: only by a kill, and how much. */
void check_losses(struct check *check);

#endif
