/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd, killed after a store of its own to memory that outlives it. What it maps to be shared is read-only to it, so that each
 * store faults; the handler lets this one instruction through and counts it. Which one is the last is told by the file
 * IPC_TEST_STEPS: see stepped_ipcd.h. Where that cannot be (STEPS_STORES) it is ipcd and no more.
 */
static int ipcd_main(int argc, char **argv);
#define main ipcd_main
#include "broker/core/main.c" // NOLINT(bugprone-suspicious-include): all of ipcd, and a main() around it
#undef main

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "tests/crash/stepped_ipcd.h"

#ifdef STEPS_STORES

# define RANGES_MAX 4096u
# define TRAP_FLAG  0x100

static struct steps *steps;
static struct range {
    uintptr_t from, to;
} ranges[RANGES_MAX];
static unsigned n_ranges;
static _Thread_local const struct range *open_range; /* whose store is on its way */

static void protect(const struct range *range, int protection)
{
    if (mprotect((void *)range->from, range->to - range->from, protection) < 0) // NOLINT
        _exit(98);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;

    (void)number;
    for (unsigned i = 0; i < n_ranges; i++) {
        if (at < ranges[i].from || at >= ranges[i].to)
            continue;
        open_range = &ranges[i];
        protect(open_range, PROT_READ | PROT_WRITE);
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
        return;
    }
    (void)signal(SIGSEGV, SIG_DFL); /* its own mistake */
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
    protect(open_range, PROT_READ);
    steps->stores++;
    if (steps->left == 0 || --steps->left > 0)
        return;
    steps->left = steps->next;
    steps->next = 0;
    (void)kill(getpid(), SIGKILL);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    long result = syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    void *memory = (void *)result; // NOLINT

    if (steps && memory != MAP_FAILED && fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE &&
        n_ranges < RANGES_MAX) {
        ranges[n_ranges] = (struct range){(uintptr_t)memory, (uintptr_t)memory + size};
        protect(&ranges[n_ranges++], PROT_READ);
    }
    return memory;
}

int munmap(void *memory, size_t size)
{
    for (unsigned i = 0; i < n_ranges; i++)
        if (ranges[i].from == (uintptr_t)memory)
            ranges[i] = ranges[--n_ranges];
    return (int)syscall(SYS_munmap, memory, size);
}

/* Its threads block what they can: a fault that is blocked is the end. */
int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t ours = *set;

    (void)sigdelset(&ours, SIGSEGV);
    (void)sigdelset(&ours, SIGTRAP);
    return sigprocmask(how, &ours, old) < 0 ? errno : 0;
}

static void begin(void)
{
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO},
                     trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    const char *path = getenv("IPC_TEST_STEPS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *memory = fd < 0 ? MAP_FAILED
                          : mmap(NULL, sizeof(*steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED)
        return;
    fd_close(fd);
    (void)sigaction(SIGSEGV, &fault, NULL);
    (void)sigaction(SIGTRAP, &trap, NULL);
    steps = memory;
}

#else
static void begin(void)
{
}
#endif

int main(int argc, char **argv)
{
    begin();
    return ipcd_main(argc, argv);
}
