/* SPDX-License-Identifier: Apache-2.0
 *
 * How much memory the kernel lets this process have before it kills it.
 */
#ifndef IPCD_CORE_UTIL_MEMORY_H
#define IPCD_CORE_UTIL_MEMORY_H

#include <stdint.h>

/* The limit of its memory cgroup (version 1 or 2) and of those above; UINT64_MAX: there is none, or it cannot be seen. */
uint64_t memory_limit(void);

/* The same from files elsewhere: what /proc/self/cgroup says, and where the cgroups are mounted. */
uint64_t memory_limit_of(const char *cgroups, const char *mount);

#endif
