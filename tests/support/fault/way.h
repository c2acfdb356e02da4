/* SPDX-License-Identifier: Apache-2.0
 *
 * A client's whole way: two connections, two pairs of publisher and subscription (one found by name and waited for on
 * its lane, one by wildcard and through a descriptor), messages in every form, and the ends of all of them. Each step may
 * fail while a fault is seen, but then it says so; what succeeds has to work.
 */
#ifndef IPC_TESTS_FAULT_WAY_H
#define IPC_TESTS_FAULT_WAY_H

#include <stdbool.h>
#include <stdint.h>

struct way {
    uint32_t ring_size;
    bool tasks;   /* instead of topics: a queue, a service, a segment. Needs a broker that outlives it */
    bool lasting; /* the fault stays: wait no longer than it takes for others, then end it */
};

/* Returns the number of steps that failed. */
unsigned way_walk(const struct way *way);

/* The same with nothing armed: every step must succeed. */
void way_walk_clean(uint32_t ring_size);

#endif
