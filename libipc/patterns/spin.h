/* SPDX-License-Identifier: Apache-2.0
 *
 * How long to poll before going to sleep: as long as past waits say that it pays.
 */
#ifndef IPC_PATTERNS_SPIN_H
#define IPC_PATTERNS_SPIN_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/topic.h"
#include "libipc/lane/wait.h"

/* A sleep and its wake cost about this much CPU and latency, so polling longer never pays. */
#define SLEEP_COST_NS UINT64_C(20000)
#define WAKE_COST_NS  UINT64_C(8000)
#define EXPECTED_MAX_NS \
 UINT64_C(100000) /* an eighth is less than a sleep: one long wait changes nothing yet */
#define SPIN_PROBE_FIRST 4u
#define SPIN_PROBE_EVERY 64u
/* Looks between two looks at the clock. */
#define SPIN_BLIND       32

struct spin {
    int64_t max_ns;       /* IPC_SPIN_ADAPTIVE, IPC_FOREVER, or a time */
    uint64_t expected_ns; /* how long waits have been taking */
    uint32_t probe;       /* waits without polling */
};
#define SPIN_ADAPTIVE ((struct spin){.max_ns = IPC_SPIN_ADAPTIVE, .expected_ns = EXPECTED_MAX_NS})

static inline void spin_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Between two looks: looking more often pulls the line from under the writer's store. */
static inline void spin_pause(void)
{
    for (int i = 0; i < 4; i++)
        spin_relax();
}

/* Nothing came in SPIN_BLIND looks: what is to bring it may be waiting for this very cpu, which a thread that polls keeps until
 * its slice of some milliseconds is over. Where nobody waits for it this takes a third of a microsecond. */
static inline void spin_yield(void)
{
    (void)sched_yield();
}

/* For how long to poll before going to sleep. */
static inline uint64_t spin_budget(struct spin *spin)
{
    if (spin->max_ns == IPC_FOREVER)
        return LANE_NEVER;
    if (spin->max_ns >= 0)
        return (uint64_t)spin->max_ns;
    if (spin->expected_ns <= SLEEP_COST_NS)
        return 2 * SLEEP_COST_NS;
    uint32_t n = ++spin->probe;
    bool early = n >= SPIN_PROBE_FIRST && n < SPIN_PROBE_EVERY && (n & (n - 1)) == 0;
    return early || n % SPIN_PROBE_EVERY == 0 ? SLEEP_COST_NS : 0;
}

/* Remember how long a wait took; a sleeper was woken later than its message came. How much later is a guess, so that
 * sleeping alone could make waits seem long for ever: what polling saw counts for more. */
static inline void spin_learn(struct spin *spin, uint64_t waited_ns, bool slept)
{
    if (slept) {
        waited_ns = waited_ns > WAKE_COST_NS ? waited_ns - WAKE_COST_NS : 0;
    } else if (spin->expected_ns > SLEEP_COST_NS) {
        spin->expected_ns = SLEEP_COST_NS;
    }
    if (waited_ns > EXPECTED_MAX_NS)
        waited_ns = EXPECTED_MAX_NS;
    spin->expected_ns = spin->expected_ns - spin->expected_ns / 8 + waited_ns / 8;
    if (spin->expected_ns < SLEEP_COST_NS / 2)
        spin->probe = 0;
}

#endif
