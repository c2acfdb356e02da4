/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BENCH_SYSCALLS_H
#define BENCH_SYSCALLS_H

#include <stdint.h>

/* What ipc-bench does when it is started again under strace: `count` messages between two processes, each phase
 * between two marks that show in the trace. 0 or -1. */
int bench_traced_run(uint64_t count);

#endif
