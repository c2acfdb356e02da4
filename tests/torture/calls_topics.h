/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IPC_TESTS_TORTURE_CALLS_TOPICS_H
#define IPC_TESTS_TORTURE_CALLS_TOPICS_H

#include "tests/torture/self.h"

#define PACE_US 200 /* between two messages of a publisher: not a wait, how fast it is */
#define CALLS   8u  /* at a time */

/* What a request was, and a checksum of all of it. */
struct torture_answer {
    struct body of;
    uint32_t sum;
};

/* Is that what a server has to answer to that request of this process? */
bool is_answer(const struct self *self, uint32_t number, const void *data, size_t size);
/* May a call end with it: its server was killed, there is none now, or it is stopped? */
bool may_fail(int code);
/* A message of a topic has come, which that session published (0: it is not said). */
void published(struct self *self, const void *data, size_t size, uint64_t session);

#endif
