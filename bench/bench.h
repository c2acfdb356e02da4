/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of ipc-bench share: cases and their rows, the processes of one repetition, time.
 *
 * A case measures a handful of values, each repetition all of them one after the other, so that what is divided
 * by each other was measured within the same second and the same placement of the cores. A row turns one value
 * into a line of the table.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
# include <x86intrin.h>
#endif

#define BENCH_VALUES_MAX 64u
#define BENCH_REPS_MAX   31u
#define BENCH_ROLES_MAX  32u
#define BENCH_LINE       128
#define BENCH_NONE       ((double)NAN) /* not measured */

/* ---- settings -------------------------------------------------------------------------------------------- */

struct bench_settings {
    unsigned reps;
    bool quick;
    bool peers;
};
extern struct bench_settings bench;

/* A count of messages: a tenth of it if this run is quick. */
static inline uint64_t bench_count(uint64_t full)
{
    return bench.quick ? full / 10 : full;
}

/* ---- cases and rows -------------------------------------------------------------------------------------- */

enum bench_kind {
    BENCH_INFO,      /* for orientation, never short */
    BENCH_RATIO_MIN, /* value / limit is to be at least the target */
    BENCH_RATIO_MAX, /* value / limit is to be at most the target */
    BENCH_VALUE_MIN, /* the value itself */
    BENCH_VALUE_MAX,
};

struct bench_row {
    const char *name;
    unsigned value;         /* index of the value */
    double scale;           /* shown = value * scale */
    const char *unit;       /* of what is shown */
    const char *limit_name; /* NULL: none */
    int limit;              /* index of the value that is the limit, or -1: limit_fixed */
    double limit_fixed;     /* in the unit shown */
    enum bench_kind kind;
    double target;
};

/* A figure alone; a figure with a limit that was measured; with a limit that is a number. */
#define BENCH_FIGURE(n, v, s, u)                                                               \
 {                                                                                             \
  .name = (n), .value = (v), .scale = (s), .unit = (u), .limit = -1, .limit_fixed = BENCH_NONE \
 }
#define BENCH_AGAINST(n, v, s, u, l_name, l, k, t)                                            \
 {                                                                                            \
  .name = (n), .value = (v), .scale = (s), .unit = (u), .limit_name = (l_name), .limit = (l), \
  .limit_fixed = BENCH_NONE, .kind = (k), .target = (t)                                       \
 }
#define BENCH_AGAINST_FIXED(n, v, s, u, l_name, l, k, t)                                     \
 {                                                                                           \
  .name = (n), .value = (v), .scale = (s), .unit = (u), .limit_name = (l_name), .limit = -1, \
  .limit_fixed = (l), .kind = (k), .target = (t)                                             \
 }
#define BENCH_AT_MOST(n, v, u, t)                                                             \
 {                                                                                            \
  .name = (n), .value = (v), .scale = 1, .unit = (u), .limit = -1, .limit_fixed = BENCH_NONE, \
  .kind = BENCH_VALUE_MAX, .target = (t)                                                      \
 }
#define BENCH_ROWS(rows) (rows), sizeof(rows) / sizeof(*(rows))

#define BENCH_PROBED 0x1u /* keep only repetitions that stayed within one placement of the cores */
#define BENCH_BROKER 0x2u /* needs a broker */
#define BENCH_PEER   0x4u /* measures others: only with --peers */
#define BENCH_ONCE   0x8u /* one repetition tells everything */

struct bench_case {
    const char *name;
    const char *what;
    unsigned flags;
    int (*run)(
        double *values); /* one repetition; BENCH_NONE stays where nothing was measured; < 0: it failed */
    const struct bench_row *rows;
    size_t row_count;
};

extern const struct bench_case bench_case_limits, bench_case_throughput, bench_case_roundtrip,
    bench_case_adaptive, bench_case_large, bench_case_fanout, bench_case_publisher, bench_case_idle,
    bench_case_syscalls, bench_case_memory, bench_case_scale, bench_case_peers, bench_case_peers_queue,
    bench_case_call, bench_case_queue, bench_case_queue_latency, bench_case_queue_memory, bench_case_resume,
    bench_case_flood, bench_case_gateway_mq, bench_case_gateway_mq_idle, bench_case_gateway_zmq,
    bench_case_gateway_zmq_idle;

/* Say why a value could not be measured, or why its target cannot be met on this machine. The first one counts. */
void bench_waive(unsigned value, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- one repetition's processes -------------------------------------------------------------------------- */

#define BENCH_ANYWHERE (-1) /* not pinned */

struct bench_stage;
/* A process's place in a repetition, in memory shared with the others and with the parent. */
struct bench_seat {
    _Alignas(BENCH_LINE) struct bench_stage *stage;
    unsigned index;
    uint64_t start_ns; /* CLOCK_MONOTONIC of bench_begin() and bench_end() */
    uint64_t end_ns;
    uint64_t cpu_ns; /* of the process, between the two */
    uint64_t messages;
    double values[8];
    char failure[200];
};
struct bench_role {
    int cpu; /* or BENCH_ANYWHERE */
    int (*run)(struct bench_seat *seat, void *argument);
    void *argument;
};

/* Run each role in a process of its own and wait for all of them. seats receives what they left. 0, or -1 after
 * the failure was printed; then all have been ended. */
int bench_play(const struct bench_role *roles, unsigned count, struct bench_seat *seats);

/* In a role: wait until everyone has come this far, then start the clocks. May be called once more after
 * bench_end(), by all. */
void bench_begin(struct bench_seat *seat);
void bench_end(struct bench_seat *seat);

/* In a role: wait for everyone once more, outside of what is measured. */
void bench_meet(struct bench_seat *seat);

/* In a role: say what went wrong. Returns -1. */
int bench_fail(struct bench_seat *seat, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* From the first begin to the last end. */
double bench_elapsed_s(const struct bench_seat *seats, unsigned count);
double bench_cpu_s(const struct bench_seat *seats, unsigned count);

void bench_pin(int cpu);
/* Shared with the children, prefaulted; ended by the process. Exits if there is no memory. */
void *bench_shared(size_t size);
void *bench_alloc(size_t size);

/* ---- time ------------------------------------------------------------------------------------------------ */

static inline uint64_t bench_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
uint64_t bench_cpu_ns(void);

/* A clock of a few nanoseconds, the same on all cores; bench_tick_ns is the length of its tick. */
extern double bench_tick_ns;
static inline uint64_t bench_ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __rdtsc();
#else
    return bench_now_ns();
#endif
}
void bench_ticks_calibrate(void);

static inline void bench_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* What follows is not begun before what comes before is done, guesses included. */
static inline void bench_in_order(void)
{
#if defined(__x86_64__) || defined(__i386__)
    _mm_lfence();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* ---- figures --------------------------------------------------------------------------------------------- */

/* Latencies of one process, in ticks. */
struct bench_sample {
    uint32_t *ticks;
    size_t count, capacity;
};
void bench_sample_init(struct bench_sample *sample, size_t capacity);
static inline void bench_sample_add(struct bench_sample *sample, uint64_t ticks)
{
    if (sample->count < sample->capacity)
        sample->ticks[sample->count++] = ticks > UINT32_MAX ? UINT32_MAX : (uint32_t)ticks;
}
/* Sorts; in nanoseconds. */
double bench_sample_quantile(struct bench_sample *sample, double quantile);
double bench_median(const double *values, size_t count);

/* ---- placement (probe.c) --------------------------------------------------------------------------------- */

enum bench_state { BENCH_STATE_UNKNOWN, BENCH_STATE_TWO_CORES, BENCH_STATE_ONE_CORE };
const char *bench_state_word(enum bench_state state);
/* Measure the cache-line round trip between the cpus 0 and 1, in nanoseconds. Disturbed: other processes took
 * these cpus meanwhile. */
enum bench_state bench_probe(double *ret_ns, bool *ret_disturbed);

/* ---- the table (table.c) --------------------------------------------------------------------------------- */

struct bench_line {
    const struct bench_case *of;
    const struct bench_row *row;
    double value, limit, ratio; /* shown units; BENCH_NONE: not measured, none */
    unsigned reps, disturbed;   /* repetitions, and how many of them shared the cpus with other processes */
    enum bench_state state;
    double line_ns; /* cache-line round trip, median over the repetitions that count */
    char waived[160];
};
/* It is not met, or was not measured, for the reason in `waived`. */
bool bench_line_excused(const struct bench_line *line);
/* What stands in the last column: "ok", "short", "(short)", "not measured" or "". */
const char *bench_line_mark(const struct bench_line *line);
void bench_table_head(FILE *file);
void bench_table_line(FILE *file, const struct bench_line *line);
int bench_write_json(const char *path, const struct bench_line *lines, size_t count);
int bench_write_markdown(const char *path, const struct bench_line *lines, size_t count);

#endif
