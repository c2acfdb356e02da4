/* SPDX-License-Identifier: Apache-2.0
 *
 * What the words of lanes and cells say, for listings. Read through the descriptor, so that nothing is mapped and no
 * peer can do anything about it; what comes back is numbers of somebody else's, for display alone. Any thread.
 */
#ifndef IPCD_CORE_CONTROL_STATS_H
#define IPCD_CORE_CONTROL_STATS_H

#include <stdbool.h>
#include <stdint.h>

struct lane_stats {
    uint64_t head, sequence, overrun;
};

struct cell_stats {
    uint64_t cursor, lost;
};

/* `budget`: bytes of rings that may still be read on the search for the newest record; it is counted down. What cannot
 * be read is 0. */
void stats_of_lane(struct lane_stats *ret, int fd, uint32_t ring_size, uint64_t *budget);

/* Of a cell that serves another pairing, or none yet, everything is 0. Returns true if it serves this one. */
bool stats_of_cell(struct cell_stats *ret, int fd, uint32_t cell, uint64_t pairing);

/* Calls that the writer of a lane of calls says are not answered. */
uint32_t stats_of_calls(int fd);

#endif
