/* SPDX-License-Identifier: Apache-2.0
 *
 * What a process holds, read from /proc.
 */
#ifndef BENCH_INSPECT_H
#define BENCH_INSPECT_H

#include <stdint.h>
#include <sys/types.h>

struct inspection {
    uint64_t rss_bytes;     /* resident, shared memory included */
    uint64_t private_bytes; /* resident, without shared memory */
    uint64_t pss_bytes;     /* resident, what is shared divided by who shares it */
    uint64_t memfd_bytes;   /* allocated in the memfds that it holds descriptors of */
    uint64_t cpu_ticks;     /* user and system */
    unsigned descriptors;
    unsigned mappings;
};

/* 0, or -1 if the process is gone or may not be looked at. */
int inspect(struct inspection *ret, pid_t pid);
/* Its CPU time, in seconds; not a number if that cannot be told. */
double inspect_cpu_s(pid_t pid);

/* How often its threads that are there now went to sleep by themselves. */
double inspect_sleeps(pid_t pid);

/* The process of the broker behind IPC_ADDRESS; -1 if it cannot be told. */
pid_t inspect_broker(void);

/* The two steps of that: who listens at IPC_ADDRESS (which takes a connection), and the broker among its children. */
pid_t inspect_listener(void);
pid_t inspect_broker_of(pid_t listener);

#endif
