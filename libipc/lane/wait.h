/* SPDX-License-Identifier: Apache-2.0
 *
 * Sleeping and waking between processes: futexes on shared words, the barrier that a sleeper issues for the
 * others, bells, and time.
 */
#ifndef IPC_LANE_WAIT_H
#define IPC_LANE_WAIT_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "proto/limits.h"

#define LANE_NEVER UINT64_MAX

/* CLOCK_MONOTONIC, nanoseconds. */
uint64_t lane_now(void);

/* The deadline that lies timeout_ns from now; negative: LANE_NEVER. */
uint64_t lane_deadline(int64_t timeout_ns);

/* Register this process for the barriers of others, and learn if it can issue its own. Once per process; any
 * thread. False: every publish needs a fence. */
bool lane_barrier_register(void);

/* After this, whatever other registered processes stored before is visible here, and what this process stored
 * before is visible to them. Without membarrier only the caller's own fence. */
void lane_barrier(void);

/* One word to sleep on. */
struct lane_word {
    const _Atomic uint32_t *word;
    uint32_t value;
    bool private; /* of this process alone */
};

/* The low half of a 64-bit word, to sleep on. */
static inline const _Atomic uint32_t *lane_low_half(const void *word)
{
    return (const _Atomic uint32_t *)word;
}

/* Sleep until one of the words no longer has its value, or is woken, or the deadline (LANE_NEVER: none) passes.
 * Spurious returns are allowed: the caller looks again. Returns 0, or -ETIMEDOUT at the deadline. At most
 * IPC_MAX_WAITV words. On kernels without futex_waitv, it sleeps on the first word in short slices. */
int lane_sleep(const struct lane_word *words, unsigned count, uint64_t deadline_ns);

/* True if futex_waitv works here. */
bool lane_has_waitv(void);

/* Wake all who sleep on the word, which may be mapped read-only. */
void lane_wake(const _Atomic uint32_t *word, bool private);

/* Ring a bell: never blocks, and a full bell has been rung. False: the kernel had no memory for it, and nobody was woken. */
bool lane_bell_ring(int fd);

/* After that: pause, and say if it is worth another try. *tries begins with 0; about 25 ms in all. */
bool lane_bell_again(unsigned *tries);

/* Take everything out of a bell, or so much that it has to be looked at again. Returns false if its other end was shut down. */
bool lane_bell_drain(int fd);

/* Switches for tests and for unusual kernels, from the environment, of what to do without: IPC_WITHOUT=membarrier,waitv in a
 * client, peerpidfd,noexec_seal in the broker. */
bool lane_without(const char *what);

#endif
