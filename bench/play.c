/* SPDX-License-Identifier: Apache-2.0
 *
 * The processes of one repetition: forked from a parent that does nothing else meanwhile, pinned, started
 * together, and ended together if one of them fails. Also time and figures.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"

#define WATCHDOG_S 90

struct bench_stage {
    _Atomic uint32_t arrived;
    _Atomic uint32_t round;
    uint32_t count;
    struct bench_seat seats[BENCH_ROLES_MAX];
};

double bench_tick_ns = 1;

void bench_pin(int cpu)
{
    if (cpu < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof(set), &set);
}

void *bench_alloc(size_t size)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, size ? size : 1) != 0) {
        fprintf(stderr, "ipc-bench: no memory for %zu bytes\n", size);
        exit(1);
    }
    memset(memory, 0, size);
    return memory;
}

void *bench_shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "ipc-bench: no shared memory of %zu bytes: %s\n", size, strerror(errno));
        exit(1);
    }
    return memory;
}

uint64_t bench_cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void bench_ticks_calibrate(void)
{
    uint64_t ticks = bench_ticks(), ns = bench_now_ns(), now;
    while ((now = bench_now_ns()) - ns < 50000000u) {}
    uint64_t passed = bench_ticks() - ticks;
    bench_tick_ns = passed ? (double)(now - ns) / (double)passed : 1;
}

/* ---- in a role ------------------------------------------------------------------------------------------- */

void bench_meet(struct bench_seat *seat)
{
    struct bench_stage *stage = seat->stage;
    uint32_t round = atomic_load(&stage->round);
    if (atomic_fetch_add(&stage->arrived, 1) + 1 == stage->count) {
        atomic_store(&stage->arrived, 0);
        atomic_store(&stage->round, round + 1);
        syscall(SYS_futex, &stage->round, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
        return;
    }
    while (atomic_load(&stage->round) == round)
        syscall(SYS_futex, &stage->round, FUTEX_WAIT, round, NULL, NULL, 0);
}

void bench_begin(struct bench_seat *seat)
{
    bench_meet(seat);
    seat->cpu_ns = bench_cpu_ns();
    seat->start_ns = bench_now_ns();
}

void bench_end(struct bench_seat *seat)
{
    seat->end_ns = bench_now_ns();
    seat->cpu_ns = bench_cpu_ns() - seat->cpu_ns;
}

int bench_fail(struct bench_seat *seat, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(seat->failure, sizeof(seat->failure), format, arguments);
    va_end(arguments);
    return -1;
}

/* ---- in the parent --------------------------------------------------------------------------------------- */

static _Noreturn void be_child(const struct bench_role *role, struct bench_seat *seat, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    alarm(WATCHDOG_S);
    bench_pin(role->cpu);
    _exit(role->run(seat, role->argument) < 0 ? 1 : 0);
}

static void end_all(const pid_t *pids, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (pids[i] > 0)
            kill(pids[i], SIGKILL);
}

int bench_play(const struct bench_role *roles, unsigned count, struct bench_seat *seats)
{
    struct bench_stage *stage = bench_shared(sizeof(*stage));
    pid_t pids[BENCH_ROLES_MAX] = {0};
    pid_t parent = getpid();
    int result = 0;

    stage->count = count;
    fflush(NULL);
    for (unsigned i = 0; i < count; i++) {
        stage->seats[i].stage = stage;
        stage->seats[i].index = i;
        pids[i] = fork();
        if (pids[i] == 0)
            be_child(&roles[i], &stage->seats[i], parent);
        if (pids[i] < 0) {
            fprintf(stderr, "ipc-bench: fork: %s\n", strerror(errno));
            result = -1;
            end_all(pids, i);
            count = i;
            break;
        }
    }
    for (unsigned left = count; left;) {
        int status;
        pid_t pid = wait(&status);
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid < 0)
            break;
        unsigned i = 0;
        while (i < count && pids[i] != pid)
            i++;
        if (i == count)
            continue;
        pids[i] = 0;
        left--;
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0) && result == 0) {
            const char *failure = stage->seats[i].failure;
            if (*failure)
                fprintf(stderr, "ipc-bench: process %u: %s\n", i, failure);
            else if (WIFSIGNALED(status))
                fprintf(stderr, "ipc-bench: process %u ended by %s\n", i, strsignal(WTERMSIG(status)));
            else
                fprintf(stderr, "ipc-bench: process %u failed\n", i);
            result = -1;
            end_all(pids, count);
        }
    }
    if (seats)
        memcpy(seats, stage->seats, count * sizeof(*seats));
    munmap(stage, sizeof(*stage));
    return result;
}

double bench_elapsed_s(const struct bench_seat *seats, unsigned count)
{
    uint64_t start = UINT64_MAX, end = 0;
    for (unsigned i = 0; i < count; i++) {
        start = seats[i].start_ns < start ? seats[i].start_ns : start;
        end = seats[i].end_ns > end ? seats[i].end_ns : end;
    }
    return (double)(end - start) * 1e-9;
}

double bench_cpu_s(const struct bench_seat *seats, unsigned count)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += seats[i].cpu_ns;
    return (double)sum * 1e-9;
}

/* ---- figures --------------------------------------------------------------------------------------------- */

void bench_sample_init(struct bench_sample *sample, size_t capacity)
{
    sample->ticks = bench_alloc(capacity * sizeof(*sample->ticks));
    sample->count = 0;
    sample->capacity = capacity;
}

static int compare_ticks(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* A virtual machine's tick counter may move in steps of 10 ns or more, a tenth of the shortest round trip: so the
 * quantile is interpolated within the step that it falls into. */
double bench_sample_quantile(struct bench_sample *sample, double quantile)
{
    if (!sample->count)
        return BENCH_NONE;
    qsort(sample->ticks, sample->count, sizeof(*sample->ticks), compare_ticks);
    size_t rank = (size_t)((double)(sample->count - 1) * quantile), first = rank, last = rank;
    uint32_t at = sample->ticks[rank];
    while (first > 0 && sample->ticks[first - 1] == at)
        first--;
    while (last + 1 < sample->count && sample->ticks[last + 1] == at)
        last++;
    double low = first > 0 ? ((double)sample->ticks[first - 1] + at) / 2 : at;
    double high = last + 1 < sample->count ? ((double)sample->ticks[last + 1] + at) / 2 : at;
    double part = ((double)(rank - first) + 0.5) / (double)(last - first + 1);
    return (low + (high - low) * part) * bench_tick_ns;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *values, size_t count)
{
    double sorted[BENCH_REPS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < count && n < BENCH_REPS_MAX; i++)
        if (!isnan(values[i]))
            sorted[n++] = values[i];
    if (!n)
        return BENCH_NONE;
    qsort(sorted, n, sizeof(*sorted), compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}
