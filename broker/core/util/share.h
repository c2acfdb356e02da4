/* SPDX-License-Identifier: Apache-2.0
 *
 * What one of `n` users may have of `most` when the others have `others`: leaves enough for those that come.
 */
#ifndef IPCD_CORE_UTIL_SHARE_H
#define IPCD_CORE_UTIL_SHARE_H

#include <stdint.h>

static inline uint64_t share_of(uint64_t most, uint64_t others, uint64_t n)
{
    return most > others ? 3 * (most - others) / (3 * n + 1) : 0;
}

#endif
