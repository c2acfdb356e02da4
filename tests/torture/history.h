/* SPDX-License-Identifier: Apache-2.0
 *
 * What the clients of a torture run wrote down, each in a journal of its own that survives it, and the check of all of
 * it. A client that is killed leaves a journal that errs on the known side: it says what it is about to do before it
 * does it, and that it is done afterwards. No code of the system under test is used here.
 */
#ifndef IPC_TESTS_TORTURE_HISTORY_H
#define IPC_TESTS_TORTURE_HISTORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define HISTORY_QUEUES    20u
#define HISTORY_PRODUCERS 52u
#define HISTORY_JOURNALS  52u
#define HISTORY_KEYS      16u
#define HISTORY_GATEWAYS  3u /* 0: none */
#define HISTORY_BACK      UINT64_MAX

enum event_kind {
    EVENT_BEGIN, /* a client begins: client; a session with a gateway: number: its process, queue: the gateway */
    EVENT_CLOSE,     /* it is about to close */
    EVENT_SEND,      /* it is about to send: producer, sequence, checksum, queue, priority, key */
    EVENT_NOT_SENT,  /* that call failed: sequence */
    EVENT_SENT,      /* it returned: sequence, number: its ticket */
    EVENT_REFUSED,   /* number: ticket */
    EVENT_CONFIRMED, /* everything up to ticket `number` is decided; refusals among it were written before */
    EVENT_RECEIVED,  /* all of it; client: the sender, as the message says */
    EVENT_ACKING,    /* it is about to acknowledge deliveries number to delivery */
    EVENT_ACKED,     /* that call returned */
    EVENT_REFUSING,  /* it is about to refuse them; attempt: not 0 if they are to come later or never */
    EVENT_ERROR,     /* a call failed as it should not: checksum: errno; number: line */
    EVENT_KILL,      /* written by the driver: it is about to kill that client */
    EVENT_KILL_CORE, /* the same for ipcd */
    EVENT_MOVE, /* it is about to move messages of queue to queue `number`, or (HISTORY_BACK) dead letters back */
    EVENT_KILL_GATEWAY, /* it has killed a gateway: queue: which; number: the time before that */
};

struct event {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint64_t number;
    uint64_t delivery;
    uint32_t client; /* a process: never the same again */
    uint32_t producer, sequence, checksum;
    uint16_t attempt, key;
    uint8_t kind, queue, priority, redelivered;
};

struct journal {
    _Atomic uint64_t count;
    uint64_t capacity;
    struct event events[];
};

/* What may be missing of what was sent: on the way through a gateway that nobody acknowledges. */
enum history_loss {
    LOSS_NONE, /* of what was confirmed */
    LOSS_ONE,  /* with each kill of the gateway one message of what was taken */
    LOSS_WAY,  /* with each kill of the gateway what was on its way */
    LOSS_KILL, /* the same, and with each kill of the sender */
};

struct history_queue {
    bool keyed;
    uint32_t remembers; /* so many message ids */
    bool
        raw; /* what comes out has no number nor attempt, and is not acknowledged; with loss, it comes once */
    uint8_t gateway; /* that is on the way, with loss or raw */
    enum history_loss loss;
    uint64_t lease_ns;
    int dead_letter; /* queue; -1: none */
};

struct history {
    const struct event *events[HISTORY_JOURNALS];
    size_t counts[HISTORY_JOURNALS];
    unsigned journals;
    struct history_queue queues[HISTORY_QUEUES];
    unsigned stuck; /* as the driver saw it */
};

/* The five findings, and what else was counted. */
struct findings {
    uint64_t lost, duplicated, disordered, altered, stuck;
    uint64_t sent, confirmed, refused, received, acknowledged, redeliveries, duplicates, letters, resent;
    uint64_t kills, core_kills, closes, errors, gateway_kills[HISTORY_GATEWAYS];
    uint64_t cut[HISTORY_QUEUES]; /* missing, as the way allows it: no finding */
    uint64_t repeated;            /* came again from an mqueue, after a kill */
    uint64_t
        overtaken; /* by what was sent later, over a kill of the gateway that both went through; a dead letter, over one of ipcd; in a
                    * queue that messages are moved to */
    uint64_t moves, moved; /* orders; messages that were seen in more than one place */
};

/* Texts of the first findings go to `out`. Returns false if there was no memory. */
bool history_check(const struct history *history, struct findings *ret, FILE *out);

static inline bool findings_none(const struct findings *f)
{
    return !(f->lost | f->duplicated | f->disordered | f->altered | f->stuck | f->errors);
}

#endif
