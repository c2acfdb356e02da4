/* SPDX-License-Identifier: Apache-2.0
 *
 * Gateways in a benchmark: a program of its own beside the broker, started for one repetition.
 */
#ifndef BENCH_GATEWAY_H
#define BENCH_GATEWAY_H

#include <sys/types.h>

#include <ipc/ipc.h>

#include "bench/bench.h"

struct gateway_program {
    pid_t pid;
    char folder[64]; /* of its configuration */
};

/* Start ipcd-mq or ipcd-zmq with that configuration, and wait until its bindings are open. 0, or -1 after it was said why
 * not. */
int gateway_start(struct gateway_program *gateway, const char *name, const char *config);
void gateway_stop(struct gateway_program *gateway);

/* What it does while nothing comes: CPU time in ticks, and how often its threads went to sleep. */
void gateway_idle(const struct gateway_program *gateway, double *ret_ticks, double *ret_sleeps);

/* Make queues, NULL at the end, instead of those of before. They stay with the private broker. */
int gateway_queues(const char *const *names);

/* In a role, with a struct gateway_stream: the product's ends of what goes through a gateway. Everything is counted and checked: the number of a message
 * stands in its first eight bytes, and the outside end sends them in order. */
#define GATEWAY_SIZE 64u
struct gateway_stream {
    uint64_t count;
    const char *topic, *queue; /* one of both */
    _Atomic uint64_t *taken;   /* by the receiver; NULL: the sender does not wait for it */
    const void *outside;       /* what the roles of the other end need */
};
int gateway_send(struct bench_seat *seat, void *argument);
int gateway_receive(struct bench_seat *seat, void *argument);
/* The receiver has so many; and before one is sent: no more than so many are on the way. */
#define GATEWAY_AHEAD 1024u
void gateway_taken(const struct gateway_stream *stream, uint64_t taken);
void gateway_pace(const struct gateway_stream *stream, uint64_t sent);

#endif
