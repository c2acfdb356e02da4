/* SPDX-License-Identifier: Apache-2.0
 *
 * What the cases about topics share: one end of a topic opened in a role, and the product's side of streams and
 * round trips.
 */
#ifndef BENCH_TOPIC_H
#define BENCH_TOPIC_H

#include <ipc/ipc.h>

#include "bench/bench.h"

#define TOPIC_NAME_SIZE 64u

/* A name that no earlier repetition used. */
void topic_name(char name[TOPIC_NAME_SIZE], const char *stem);

/* In a role. 0, or -1 after bench_fail(). */
int topic_connect(struct bench_seat *seat, ipc_connection **ret);
int topic_publisher(struct bench_seat *seat, ipc_publisher **ret, ipc_connection *connection,
                    const char *topic, uint32_t ring_size);
/* Lossless: it blocks its publisher, without limit. */
int topic_subscription(struct bench_seat *seat, ipc_subscription **ret, ipc_connection *connection,
                       const char *topic, int64_t spin_max_ns);

/* One publisher and `readers` subscriber processes. */
struct topic_stream {
    uint32_t size, ring_size;
    uint32_t batch; /* 0: one call per message; else so many per call, at both ends */
    int64_t spin_max_ns;
    uint64_t count;
    unsigned readers;     /* more than one: not pinned */
    double rate;          /* result: deliveries per second */
    double cpu_s_million; /* result: CPU seconds of all processes per million messages published */
    char topic[TOPIC_NAME_SIZE];
};
int topic_stream_run(struct topic_stream *stream);

/* There and back between two processes, on two topics. */
struct topic_pair {
    uint32_t size;
    bool in_place; /* loan and take instead of publish and receive */
    int64_t spin_max_ns;
    uint64_t count;  /* round trips at most */
    uint64_t max_ns; /* and time at most; 0: no limit */
    char there[TOPIC_NAME_SIZE], back[TOPIC_NAME_SIZE];
};
/* values: p50, p99 in ns; messages: round trips */
int topic_pair_ping(struct bench_seat *seat, void *argument);
int topic_pair_pong(struct bench_seat *seat, void *argument);
int topic_pair_run(struct topic_pair *pair, double *ret_p50, double *ret_p99, double *ret_cpu_ns);

#endif
