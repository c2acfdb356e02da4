/* SPDX-License-Identifier: Apache-2.0
 *
 * Other systems in the same run: their servers, started for one repetition, and what is measured of them and of the
 * product side by side.
 */
#ifndef BENCH_PEER_H
#define BENCH_PEER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "bench/bench.h"

struct peer_server {
    pid_t pid;
    char folder[64];
    char address[128]; /* socket or URL, set by who starts it */
};

/* Start a program (found by PATH) in a folder of its own, which it gets as current folder; it ends with this process.
 * 0, or -1 after it was said why not. */
int peer_start(struct peer_server *server, const char *const *arguments);
void peer_stop(struct peer_server *server);

/* A queue: one producer that sends in batches of 64, consumers that take up to 1,024 at once and acknowledge them if the
 * system knows that. */
struct peer_queue {
    const struct peer_server *server;
    uint32_t size;
    unsigned consumers;
    uint64_t count;
    _Atomic uint64_t *taken; /* by all consumers */
};
#define PEER_BATCH   64u
#define PEER_RECEIVE 1024u
#define PEER_AHEAD   10000u /* messages by which a producer is ahead of the consumers, at most */

/* Before a message or a batch is sent: a producer does not run far ahead, as that costs these systems much. */
void peer_queue_pace(const struct peer_queue *queue, uint64_t sent);

typedef int (*peer_role)(struct bench_seat *seat, void *argument);
/* Messages per second, CPU seconds of all processes per million. */
int peer_queue_play(struct peer_queue *queue, peer_role produce, peer_role consume, double *ret_rate,
                    double *ret_cpu);

/* Of the product (queue.c, call.c). */
int queue_rate(uint32_t size, unsigned consumers, uint64_t count, double *ret_rate, double *ret_cpu);
int call_sleeping(unsigned outstanding, uint64_t count, double *ret_p50_ns, double *ret_rate);

/* Of the peers. A figure stays as it is where the library or the server is missing. */
int redis_measure(double rates[2], double cpu[2], double *ret_call_ns);
int nats_measure(double rates[2], double cpu[2]);
int zmq_call(unsigned outstanding, uint64_t count, double *ret_p50_ns, double *ret_rate);

#endif
