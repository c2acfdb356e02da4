/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IPC_TESTS_STEPPED_IPCD_H
#define IPC_TESTS_STEPPED_IPCD_H

#include <stdint.h>

/* A sanitizer wants the signals for itself. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(IPC_TSAN)
# define STEPS_STORES 1
#endif

/* Shared by a test and by each ipcd that it has started. */
struct steps {
    volatile uint64_t stores; /* of all of them */
    volatile uint64_t left;   /* after so many more the one at work is killed; 0: none is */
    volatile uint64_t next;   /* the same for the one that comes after it */
};

#endif
