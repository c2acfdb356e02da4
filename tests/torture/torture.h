/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver of a torture run and its clients share.
 */
#ifndef IPC_TESTS_TORTURE_TORTURE_H
#define IPC_TESTS_TORTURE_TORTURE_H

#include <assert.h>
#include <sys/types.h>
#include <time.h>

#include "tests/torture/history.h"

#define TORTURE_QUEUES   4u /* and one for dead letters */
#define TORTURE_DEAD     TORTURE_QUEUES
#define TORTURE_CLIENTS  51u
#define TORTURE_SIZE_MAX 1400u

/* Queues with outside programs at one end, or both. */
enum { TORTURE_ZMQ_SEND = TORTURE_DEAD + 1, TORTURE_ZMQ_PUSH, TORTURE_MQ_IN, TORTURE_MQ_OUT, TORTURE_ALL };
/* Topics by way of mqueues, of which a history is written as of queues. */
enum { TORTURE_MQ_TOPIC_IN = TORTURE_ALL, TORTURE_MQ_TOPIC_OUT, TORTURE_JUDGED };
/* What no history is written of, since nobody promises anything that it would show: calls, and topics by way of ZeroMQ. Whoever
 * gets something looks at it. Calls by mqueue: from one (enveloped and raw), and into one (the same). */
enum {
    TORTURE_CALLS = TORTURE_JUDGED,
    TORTURE_TOPIC_OUT,
    TORTURE_TOPIC_IN,
    TORTURE_MQ_CALL,
    TORTURE_MQ_CALL_RAW,
    TORTURE_MQ_SERVE,
    TORTURE_MQ_SERVE_RAW,
    TORTURE_WAYS
};
enum { TORTURE_MQ = 1, TORTURE_ZMQ }; /* gateways */

static_assert(TORTURE_CLIENTS <= HISTORY_PRODUCERS && TORTURE_CLIENTS < HISTORY_JOURNALS &&
                  TORTURE_JUDGED <= HISTORY_QUEUES,
              "room in the history");

/* What a queue is put to: follows from the seed. */
struct torture_queue {
    unsigned keys, priorities; /* 0 keys: none */
    bool dedup, reject, letters;
    unsigned messages_max, lease_ms, attempts_max, prefetch;
};

/* In memory that the clients share, beside their journals. */
struct torture {
    uint64_t seed;
    struct torture_queue queues[TORTURE_WAYS];
    char folder[64];          /* of the gateways' sockets */
    pid_t driver;             /* in the names of mqueues */
    _Atomic uint32_t clients; /* the last number that a process or session got */
    _Atomic uint32_t gateway_kills[HISTORY_GATEWAYS], unanswered; /* calls that were open then, by mqueue */
    _Atomic bool producers_stop, consumers_stop;
    _Atomic bool subscribed;                 /* to TORTURE_MQ_TOPIC_IN */
    _Atomic uint64_t hellos, heard;          /* by TORTURE_MQ_TOPIC_OUT: the last one of each */
    _Atomic uint64_t received[TORTURE_WAYS]; /* messages, answers: the driver looks if something moves */
    /* Of a producer, whatever process it is: the last sequence number that it used; all up to the other one are decided. */
    _Atomic uint32_t last[TORTURE_CLIENTS], decided[TORTURE_CLIENTS];
    _Atomic uint32_t ended[TORTURE_CLIENTS]; /* the last one, of a producer that was not killed */
    _Atomic uint32_t
        arrived[TORTURE_CLIENTS]; /* of a producer that is not told: the last one that somebody received */
};

struct client_work {
    struct torture *torture;
    struct journal *journal;
    uint32_t client; /* number of this process */
    unsigned slot;
    unsigned queue;
    bool drains; /* a consumer that acknowledges everything, until told to stop */
};

/* Run as that client, and exit. */
void client_produce(const struct client_work *work) __attribute__((noreturn));
void client_consume(const struct client_work *work) __attribute__((noreturn));
void client_move(const struct client_work *work) __attribute__((noreturn));
void client_serve(const struct client_work *work) __attribute__((noreturn));
void client_call(const struct client_work *work) __attribute__((noreturn));
void client_publish(const struct client_work *work) __attribute__((noreturn));
void client_publish_all(const struct client_work *work) __attribute__((noreturn));
void client_subscribe(const struct client_work *work) __attribute__((noreturn));
/* Programs that know nothing of libipc, with mqueues and sockets of ZeroMQ. */
void outside_mq_send(const struct client_work *work) __attribute__((noreturn));
void outside_mq_receive(const struct client_work *work) __attribute__((noreturn));
void outside_mq_call(const struct client_work *work) __attribute__((noreturn));
void outside_mq_serve(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_send(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_pull(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_push(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_call(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_publish(const struct client_work *work) __attribute__((noreturn));
void outside_zmq_subscribe(const struct client_work *work) __attribute__((noreturn));

const char *torture_queue_name(unsigned queue);
/* Of the mqueue of that way; suffix "": what comes first. */
#define TORTURE_MQUEUE_SIZE 64
void torture_mqueue_name(const struct torture *torture, unsigned way, const char *suffix,
                         char ret[TORTURE_MQUEUE_SIZE]);

static inline uint64_t torture_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* False: the journal is full. */
static inline bool journal_append(struct journal *journal, struct event event)
{
    uint64_t count = atomic_load_explicit(&journal->count, memory_order_relaxed);

    if (count == journal->capacity)
        return false;
    event.time_ns = torture_now();
    journal->events[count] = event;
    atomic_store_explicit(&journal->count, count + 1, memory_order_release);
    return true;
}

/* The same numbers for the same arguments, in every run of a seed. */
static inline uint64_t torture_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline uint64_t torture_random(uint64_t *state, uint64_t below)
{
    return torture_mix((*state)++) % below;
}

#endif
