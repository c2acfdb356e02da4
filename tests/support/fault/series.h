/* SPDX-License-Identifier: Apache-2.0
 *
 * Every fault in turn: each kind, each error, once and lasting, at the first call, the second, and so on, until a run goes
 * by without it. IPC_FAULT_FULL=1 tries all; otherwise errors after the first and lasting faults are tried at a share of
 * the calls that follows from a seed, which is printed (IPC_FAULT_SEED repeats it), so that a run has a bounded length.
 * IPC_FAULT_BRIEF=1 takes a share of the ways to fail, too.
 */
#ifndef IPC_TESTS_FAULT_SERIES_H
#define IPC_TESTS_FAULT_SERIES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/support/fault/fault.h"

struct series {
    enum fault_kind kind;
    unsigned error; /* index into the kind's errors */
    bool lasting;
    uint32_t at;
    unsigned hits; /* of the run that was done last */
    bool begun;
    const enum fault_kind *only; /* FAULT_NONE at the end; NULL: all */
    const enum fault_kind *without;
    uint64_t random;
    unsigned share; /* one in so many */
    bool brief;     /* of the ways, too */
    bool sparse;    /* of all, not only of later errors and lasting faults */
    unsigned runs, total;
};

void series_begin(struct series *series, const enum fault_kind *only);
void series_without(struct series *series, const enum fault_kind *without);

/* The next fault; false: that was the last. */
bool series_next(struct series *series);
void series_arm(const struct series *series);

/* The run is over: disarms. Nothing may have failed if the fault was not seen. */
void series_done(struct series *series, unsigned failed);

/* The same, for a run that another process did. */
void series_looked(struct series *series);

/* Print how many there were. There must have been some. */
void series_end(const struct series *series);

/* What the watchdog tells beside the fault. */
void series_says(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Of another process. */
unsigned segments_mapped(pid_t pid);

#endif
