/* SPDX-License-Identifier: Apache-2.0
 *
 * One page per process that the kernel wipes in a forked child: a child that uses its parent's handles is told
 * so, at the price of one load. Handles remember the generation under which they were made.
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libipc/session/session.h"

static uint32_t nowhere;
const volatile uint32_t *guard_page = &nowhere;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t generations;

uint32_t guard_generation(bool make)
{
    pthread_mutex_lock(&lock);
    if (make && guard_page == &nowhere) {
        long size = sysconf(_SC_PAGESIZE);
        void *page = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page != MAP_FAILED && madvise(page, (size_t)size, MADV_WIPEONFORK) == 0)
            guard_page = page;
        else if (page != MAP_FAILED)
            munmap(page, (size_t)size);
    }
    if (make && guard_page != &nowhere && *guard_page == 0)
        *(volatile uint32_t *)(uintptr_t)guard_page = ++generations;
    uint32_t generation = *guard_page;
    pthread_mutex_unlock(&lock);
    return generation;
}
