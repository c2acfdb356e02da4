/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/lane/wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
# define SYS_futex_waitv 449
#endif

/* How long a sleep on one word of several may last where futex_waitv is missing. */
#define SLICE_NS   UINT64_C(2000000)
/* Looks into a bell at a time: whoever holds its other end may fill it faster than it can be emptied. */
#define DRAINS_MAX 16
/* What takes the place of a barrier that is refused. */
#define BARRIER_NS UINT64_C(1000000)
/* How often a refused bell is tried again, and the first pause, which doubles. */
#define AGAIN_MAX  8u
#define AGAIN_NS   UINT64_C(100000)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool barrier_works;
static bool waitv_works;

uint64_t lane_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t lane_deadline(int64_t timeout_ns)
{
    if (timeout_ns < 0)
        return LANE_NEVER;
    uint64_t now = lane_now();
    uint64_t left = LANE_NEVER - 1 - now;
    return (uint64_t)timeout_ns < left ? now + (uint64_t)timeout_ns : LANE_NEVER;
}

bool lane_without(const char *what)
{
    const char *list = getenv("IPC_WITHOUT");
    size_t size = strlen(what);
    while (list && *list) {
        size_t word = strcspn(list, ",");
        if (word == size && memcmp(list, what, size) == 0)
            return true;
        list += word + (list[word] == ',');
    }
    return false;
}

static struct timespec to_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static void probe(void)
{
    barrier_works = !lane_without("membarrier") &&
                    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0 &&
                    syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0;
    /* Invalid arguments tell a kernel that has the call from one that has not. */
    waitv_works = !lane_without("waitv") && syscall(SYS_futex_waitv, NULL, 0, 0, NULL, 0) < 0 &&
                  errno == EINVAL;
}

bool lane_barrier_register(void)
{
    pthread_once(&once, probe);
    return barrier_works;
}

/* The others rely on it, so there is no way back to a fence of our own. The slow command needs no memory; where a filter
 * refuses that, too, time passes, in which any cpu has long let go of what it stored, and looked again. */
static void barrier(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) == 0 ||
        syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0)
        return;
    const struct timespec pause = to_timespec(BARRIER_NS);
    nanosleep(&pause, NULL);
}

void lane_barrier(void)
{
#ifndef IPC_PLANT_NO_BARRIER
    if (lane_barrier_register())
        barrier();
# ifndef IPC_TSAN
    else
        atomic_thread_fence(memory_order_seq_cst);
# endif
#endif
}

bool lane_has_waitv(void)
{
    pthread_once(&once, probe);
    return waitv_works;
}

static int sleep_on_one(const struct lane_word *word, uint64_t deadline_ns)
{
    struct timespec deadline = to_timespec(deadline_ns);
    int operation = FUTEX_WAIT_BITSET | (word->private ? FUTEX_PRIVATE_FLAG : 0);
    long result = syscall(SYS_futex, word->word, operation, word->value,
                          deadline_ns == LANE_NEVER ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 && errno == ETIMEDOUT ? -ETIMEDOUT : 0;
}

int lane_sleep(const struct lane_word *words, unsigned count, uint64_t deadline_ns)
{
    if (count == 1)
        return sleep_on_one(words, deadline_ns);
    if (!lane_has_waitv()) {
        for (unsigned i = 1; i < count; i++)
            if (atomic_load_explicit(words[i].word, memory_order_acquire) != words[i].value)
                return 0;
        uint64_t slice = lane_now() + SLICE_NS;
        if (slice < deadline_ns) {
            sleep_on_one(words, slice);
            return 0;
        }
        return sleep_on_one(words, deadline_ns);
    }
    struct futex_waitv waiters[IPC_MAX_WAITV];
    if (count > IPC_MAX_WAITV)
        count = IPC_MAX_WAITV;
    for (unsigned i = 0; i < count; i++)
        waiters[i] = (struct futex_waitv){.val = words[i].value,
                                          .uaddr = (uintptr_t)words[i].word,
                                          .flags = FUTEX_32 | (words[i].private ? FUTEX_PRIVATE_FLAG : 0)};
    struct timespec deadline = to_timespec(deadline_ns);
    long result = syscall(SYS_futex_waitv, waiters, count, 0, deadline_ns == LANE_NEVER ? NULL : &deadline,
                          CLOCK_MONOTONIC);
    return result < 0 && errno == ETIMEDOUT ? -ETIMEDOUT : 0;
}

void lane_wake(const _Atomic uint32_t *word, bool private)
{
    syscall(SYS_futex, word, FUTEX_WAKE | (private ? FUTEX_PRIVATE_FLAG : 0), INT_MAX, NULL, NULL, 0);
}

bool lane_bell_ring(int fd)
{
    int saved = errno;
#ifdef IPC_PLANT_RING_BLOCKS
    (void)!send(fd, "", 1, MSG_NOSIGNAL);
#endif
    ssize_t sent;
    do
        sent = send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    bool refused = sent < 0 && (errno == ENOBUFS || errno == ENOMEM);
    errno = saved;
#ifdef IPC_PLANT_RING_REFUSED
    return true;
#endif
    return !refused;
}

bool lane_bell_again(unsigned *tries)
{
    if (*tries == AGAIN_MAX)
        return false;
    struct timespec pause = to_timespec(AGAIN_NS << (*tries)++);
    int saved = errno;
    nanosleep(&pause, NULL);
    errno = saved;
    return true;
}

bool lane_bell_drain(int fd)
{
    char bytes[256];
    for (int i = 0; i < DRAINS_MAX; i++) {
        ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n == 0)
            return false;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)sizeof(bytes))
            return true;
#ifdef IPC_PLANT_DRAIN_WITHOUT_END
        i = 0;
#endif
    }
    return true;
}
