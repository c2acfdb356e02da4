/* SPDX-License-Identifier: Apache-2.0
 *
 * Kill at every instruction: for each operation on a lane, one victim after the other is single-stepped to its
 * i-th instruction and killed there, for every i until the operation ends (or sleeps in the kernel: it is killed
 * asleep, too). Then the survivors look at what it left: the lane holds what it held before or what it holds
 * afterwards, nothing between; the others go on; whoever slept is awake after the core's treatment of the dead
 * (count up its mail and wake it; take the dead reader out).
 * And a reader that joins is admitted at each of its instructions.
 *
 * test_lane [OPERATION | join]. IPC_CRASH_POINTS: at most so many points an operation, evenly spread (0: all).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "proto/limits.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#define NEXT   IPC__CONTROL__START__START_NEXT
#define LAST   IPC__CONTROL__START__START_LAST
#define OLDEST IPC__CONTROL__START__START_OLDEST
#define SIZE   100u

#if defined(__SANITIZE_ADDRESS__)
# define POINTS 60 /* the instrumented code is much longer */
#else
# define POINTS 0
#endif

/* What both sides know, and what the victim tells before it is stepped. */
static struct page {
    _Atomic uint32_t mail;
    _Atomic uint64_t before; /* records published so far */
} * page;

static struct fixture lane;
static struct lane_reader victim, pinned, dropping; /* pinned: slot 0, dropping: slot 1, the victim: slot 2 */
static struct lane_record record;
static const char *operation;
static long point;

static void fail(const char *what, long long value)
{
    fprintf(stderr, "%s, killed before instruction %ld: %s (%lld)\n", operation, point, what, value);
    exit(1);
}

#define require(condition, value)        \
 do {                                    \
  if (!(condition))                      \
   fail(#condition, (long long)(value)); \
 } while (0)

static void publish(unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (fixture_publish(&lane.writer, SIZE) < 0)
            abort();
}

static void receive(struct lane_reader *reader, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (fixture_receive(reader, &record) != 1)
            abort();
}

/* ---- a sleeping survivor ---------------------------------------------------------------------------------- */

static struct sleeper {
    struct lane_word words[2];
    pthread_t thread;
    _Atomic pid_t id;
    bool here;
} sleeper;

static bool asleep(pid_t process, pid_t thread)
{
    char path[64], text[64] = "";
    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", process, thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    long call = n > 0 && strncmp(text, "running", 7) != 0 ? strtol(text, NULL, 10) : -1;
    return call == SYS_futex || call == 449;
}

static void *sleeper_main(void *data)
{
    (void)data;
    atomic_store(&sleeper.id, gettid());
    /* Asleep until the core counts up the mail, whoever else wakes it. */
    while (atomic_load(&page->mail) == 0) {
        if (*sleeper.words[0].word == sleeper.words[0].value)
            lane_sleep(sleeper.words, 2, LANE_NEVER);
        else
            lane_sleep(&sleeper.words[1], 1, LANE_NEVER);
    }
    return NULL;
}

static void sleeper_start(const _Atomic uint32_t *word, uint32_t value)
{
    sleeper.words[0] = (struct lane_word){word, value, false};
    sleeper.words[1] = (struct lane_word){&page->mail, 0, false};
    sleeper.here = true;
    atomic_store(&sleeper.id, 0);
    if (pthread_create(&sleeper.thread, NULL, sleeper_main, NULL) != 0)
        abort();
    while (!atomic_load(&sleeper.id) || !asleep(getpid(), atomic_load(&sleeper.id)))
        sched_yield();
}

/* What the core does for everybody whom the dead might have had to wake. */
static void treat(void)
{
    atomic_fetch_add(&page->mail, 1);
    lane_wake(&page->mail, false);
    if (sleeper.here)
        pthread_join(sleeper.thread, NULL);
    sleeper.here = false;
}

/* ---- the writer is the victim ----------------------------------------------------------------------------- */

static void writer_new(uint64_t position)
{
    lane_writer_init(&lane.writer, lane.lane, lane_segment_ring(lane.lane), lane.ring_size);
    fixture_begin_at(&lane, position, 1000);
}

static void writer_with_readers(uint64_t position, unsigned records, bool pinning)
{
    writer_new(position);
    if (pinning)
        fixture_admit(&lane, 0, FIXTURE_PIN, OLDEST);
    fixture_admit(&lane, 1, FIXTURE_DROP, OLDEST);
    publish(records);
    lane_barrier_register();
}

static void prepare_publish(void)
{
    writer_with_readers(0, 5, true);
}

static void prepare_wrap(void)
{
    writer_with_readers(4096 * 4 - 5 * 112 - 40, 5, true);
}

/* The next one does not fit before tail moves. */
static void prepare_full(void)
{
    writer_with_readers(0, 40, false);
    while (lane_writer_has_room(&lane.writer, 112))
        publish(1);
}

static void prepare_pinned_full(void)
{
    writer_with_readers(0, 36, true);
}

static void survivors(void)
{
    if (atomic_load(&lane.lane_read->slots[0].start))
        fixture_attach(&lane, &pinned, 0, FIXTURE_PIN, OLDEST);
    else
        pinned.lane = NULL;
    fixture_attach(&lane, &dropping, 1, FIXTURE_DROP, OLDEST);
    receive(&dropping, 2);
    if (pinned.lane)
        receive(&pinned, 1);
}

static void survivors_asleep(void)
{
    const _Atomic uint32_t *word;
    uint32_t value;
    survivors();
    receive(&pinned, 4);
    lane_reader_arm(&pinned, false);
    lane_barrier();
    if (!lane_reader_sleeps_on(&pinned, &word, &value))
        abort();
    sleeper_start(word, value);
}

/* What is published next: its content is worked out before the steps are counted. */
static unsigned char messages[3][SIZE];

static void run_publish(void)
{
    unsigned char *body;
    if (lane_writer_reserve(&lane.writer, SIZE, &body) == 0) {
        lane_copy_in(body, messages[0], SIZE);
        lane_writer_commit(&lane.writer, SIZE, 0);
    }
}

static void run_loan(void)
{
    unsigned char *body;
    if (lane_writer_reserve(&lane.writer, 60, &body) == 0) {
        for (unsigned i = 0; i < 60; i++) /* a user who fills it in byte by byte */
            *(volatile unsigned char *)&body[i] = messages[0][i];
        lane_writer_commit(&lane.writer, 60, 0);
    }
}

static void run_batch(void)
{
    struct lane_writer *writer = &lane.writer;
    uint64_t position = writer->position;
    for (uint32_t i = 0; i < 3; i++) {
        lane_copy_in(lane_writer_body(writer, position), messages[i], SIZE - i);
        if (i > 0)
            atomic_store_explicit(lane_writer_word(writer, position),
                                  lane_record_word(writer->sequence + i, SIZE - i, 0), memory_order_relaxed);
        position += ipc_record_stride(SIZE - i);
    }
    lane_writer_stamp(writer, position);
    atomic_store_explicit(lane_writer_word(writer, writer->position),
                          lane_record_word(writer->sequence, SIZE, 0), LANE_PUBLISH);
    writer->position = position;
    writer->sequence += 3;
    lane_writer_ring(writer);
}

static void run_wait_for_room(void)
{
    const struct lane_peer *slowest;
    uint64_t raw;
    if (lane_writer_make_room(&lane.writer, 112) == -EAGAIN) {
        lane_writer_want(&lane.writer, 112, &slowest, &raw);
        struct lane_word words[] = {{lane_low_half(&slowest->cell->cursor), (uint32_t)raw, false},
                                    {&page->mail, 0, false}};
        lane_sleep(words, 2, LANE_NEVER);
        lane_writer_want_clear(&lane.writer);
    }
}

static void run_admit(void)
{
    fixture_admit(&lane, 2, FIXTURE_PIN, LAST);
}

static void run_remove(void)
{
    int bell;
    lane_writer_remove(&lane.writer, 101, &bell);
}

/* Read to the end; the number of the record that would come next. */
static uint64_t drain(struct lane_reader *reader)
{
    int result;
    while ((result = fixture_receive(reader, &record)) == 1)
        ;
    require(result == 0, result);
    return record.sequence + 1;
}

static void writer_died(uint64_t new_records)
{
    static uint64_t most;
    uint64_t before = atomic_load(&page->before);
    uint64_t at = atomic_load(&lane.lane_read->tail), end = 0;
    const unsigned char *ring = lane_segment_ring((void *)(uintptr_t)lane.lane_read);

    for (;;) { /* the chain */
        uint64_t word =
            atomic_load((const _Atomic uint64_t *)(const void *)(ring + (at & (lane.ring_size - 1))));
        if (!((uint32_t)word & IPC_RECORD_COMMITTED)) {
            require((uint32_t)word == ipc_record_stamp(at, lane.ring_size), word);
            break;
        }
        uint32_t size = (uint32_t)word & IPC_RECORD_SIZE;
        require(size <= SIZE && (end == 0 || word >> 32 == end), word >> 32);
        require(fixture_holds(ring + (at & (lane.ring_size - 1)) + 8, size, word >> 32), word >> 32);
        end = (word >> 32) + 1;
        at += ipc_record_stride(size);
    }
    require(end == before || end == before + new_records, end);
    if (point == 0)
        most = 0;
    if (point != LONG_MAX) {
        require(end >= most, end); /* what was visible stays visible */
        most = end;
    }

    treat();
    if (pinned.lane) {
        require(drain(&pinned) == end, record.sequence);
        require(pinned.lost == 0, pinned.lost);
    }
    require(drain(&dropping) == end, record.sequence);
    /* Somebody who joins only now. */
    for (unsigned start = NEXT; start <= OLDEST; start++) {
        struct lane_reader late;
        lane_reader_init(&late, lane.lane_read, ring, lane.ring_size, 5, &lane.cells->cells[5], 7, start,
                         false, true);
        if (start != NEXT)
            require(drain(&late) == end, record.sequence);
        require(lane_reader_peek(&late, &record) == 0, start);
    }
    /* The reader that was being admitted. */
    uint64_t admitted = atomic_load(&lane.lane_read->slots[2].start);
    if (admitted) {
        fixture_attach(&lane, &victim, 2, FIXTURE_PIN, LAST);
        require(drain(&victim) == end && victim.lost == 0, victim.lost);
    }
}

/* ---- a reader is the victim ------------------------------------------------------------------------------- */

static void reader_scene(enum fixture_policy policy, unsigned records)
{
    writer_new(0);
    fixture_admit(&lane, 1, FIXTURE_DROP, OLDEST);
    fixture_admit(&lane, 2, policy, OLDEST);
    fixture_attach(&lane, &dropping, 1, FIXTURE_DROP, OLDEST);
    publish(records);
    lane_barrier_register();
}

static void scene_some(void)
{
    reader_scene(FIXTURE_PIN, 10);
}

static void scene_full(void)
{
    reader_scene(FIXTURE_PIN, 36);
}

static void scene_overrun(void)
{
    reader_scene(FIXTURE_DROP, 100);
}

static void attach(void)
{
    fixture_attach(&lane, &victim, 2, FIXTURE_PIN, OLDEST);
}

static void attach_some(void)
{
    attach();
    receive(&victim, 4);
}

static void attach_and_hold(void)
{
    attach();
    for (int i = 0; i < 6; i++) {
        if (lane_reader_peek(&victim, &record) != 1)
            abort();
        lane_reader_hold(&victim, &record);
    }
}

static void attach_at_end(void)
{
    attach();
    receive(&victim, 10);
}

static void attach_armed(void)
{
    attach_at_end();
    lane_reader_arm(&victim, false);
}

static void attach_before_overrun(void)
{
    fixture_attach(&lane, &victim, 2, FIXTURE_DROP, OLDEST);
}

static void attach_before_want(void)
{
    attach();
    receive(&victim, 8);
    victim.reported = victim.position; /* it reports in steps; the next report is the one that crosses */
}

/* The writer, a thread of the survivor, waits for room. */
static void writer_asleep(void)
{
    const struct lane_peer *slowest;
    uint64_t raw;
    lane_writer_want(&lane.writer, 112, &slowest, &raw);
    if (!slowest || slowest->slot != 2)
        abort();
    sleeper_start(lane_low_half(&slowest->cell->cursor), (uint32_t)raw);
}

static void run_receive(void)
{
    do {
        if (lane_reader_peek(&victim, &record) != 1)
            return;
        lane_copy_out(messages[0], record.body, SIZE);
    } while (!lane_reader_check(&victim));
    lane_reader_advance(&victim, &record);
}

static void run_report(void)
{
    lane_reader_report(&victim);
}

static void run_release(void)
{
    lane_reader_release(&victim, victim.position);
}

static void run_arm(void)
{
    lane_reader_arm(&victim, false);
    lane_barrier();
}

static void run_arm_and_sleep(void)
{
    struct lane_word words[2] = {{NULL, 0, false}, {&page->mail, 0, false}};
    lane_reader_arm(&victim, false);
    lane_barrier();
    if (lane_reader_peek(&victim, &record) == 0 &&
        lane_reader_sleeps_on(&victim, &words[0].word, &words[0].value))
        lane_sleep(words, 2, LANE_NEVER);
}

static void run_disarm(void)
{
    lane_reader_disarm(&victim);
}

static void run_receive_and_report(void)
{
    run_receive();
    lane_reader_report(&victim);
}

static void run_want_cross(void)
{
    run_receive();
    lane_reader_report(&victim);
}

static void reader_died(void)
{
    int bell;
    uint64_t cursor = atomic_load(&lane.cells_read->cells[2].cursor);
    require(cursor % 112 == 0 || cursor == lane.writer.tail, cursor);
    require(cursor <= lane.writer.position, cursor);
    treat();
    lane_writer_want_clear(&lane.writer);
    /* Others are served while the dead one is still counted, as far as it lets them. */
    for (int i = 0; i < 20; i++) {
        int result = fixture_publish(&lane.writer, SIZE);
        require(result == 0 || result == -EAGAIN, result);
    }
    require(drain(&dropping) == lane.writer.sequence, record.sequence);
    require(!lane.writer.faulted, cursor); /* it died, it did not lie */
    require(lane_writer_remove(&lane.writer, 102, &bell), 0);
    publish(100);
    require(drain(&dropping) == lane.writer.sequence, record.sequence);
}

/* ---- stepping --------------------------------------------------------------------------------------------- */

static const struct operation {
    const char *name;
    void (*scene)(void);     /* in the survivor, before the victim exists; NULL: the writer is the victim */
    void (*prepare)(void);   /* in the victim */
    void (*survivors)(void); /* in the survivor, before the victim is stepped */
    void (*run)(void);       /* the operation */
    uint64_t new_records;
    bool sleeps;
} operations[] = {
    {"publish", NULL, prepare_publish, survivors, run_publish, 1},
    {"publish-wrap", NULL, prepare_wrap, survivors, run_publish, 1},
    {"publish-tail", NULL, prepare_full, survivors, run_publish, 1},
    {"publish-ring", NULL, prepare_publish, survivors_asleep, run_publish, 1},
    {"loan-commit", NULL, prepare_publish, survivors, run_loan, 1},
    {"batch", NULL, prepare_wrap, survivors, run_batch, 3},
    {"wait-for-room", NULL, prepare_pinned_full, survivors, run_wait_for_room, 0, true},
    {"admit", NULL, prepare_publish, survivors, run_admit, 0},
    {"remove", NULL, prepare_publish, survivors, run_remove, 0},
    {"attach", scene_some, lane_barrier, NULL, attach, 0},
    {"receive", scene_some, attach_some, NULL, run_receive, 0},
    {"receive-report", scene_some, attach_some, NULL, run_receive_and_report, 0},
    {"receive-overrun", scene_overrun, attach_before_overrun, NULL, run_receive_and_report, 0},
    {"release", scene_some, attach_and_hold, NULL, run_release, 0},
    {"report", scene_some, attach_some, NULL, run_report, 0},
    {"report-crossing", scene_full, attach_before_want, writer_asleep, run_want_cross, 0},
    {"arm", scene_some, attach_at_end, NULL, run_arm, 0},
    {"arm-sleep", scene_some, attach_at_end, NULL, run_arm_and_sleep, 0, true},
    {"disarm", scene_some, attach_armed, NULL, run_disarm, 0},
};

_Noreturn static void victim_main(const struct operation *op)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 || !fixture_remap(&lane))
        _exit(126);
    op->prepare();
    for (unsigned i = 0; i < 3; i++)
        fixture_fill(messages[i], SIZE, lane.writer.sequence + i);
    if (!op->scene)
        atomic_store(&page->before, lane.writer.sequence);
    raise(SIGSTOP);
    op->run();
    raise(SIGUSR1);
    _exit(0);
}

/* One instruction further. False: it ended the operation, or sleeps. */
static bool step(pid_t process, bool sleeps)
{
    int status;
    pid_t stopped;
    if (ptrace(PTRACE_SINGLESTEP, process, NULL, NULL) < 0)
        fail("ptrace", errno);
    while ((stopped = waitpid(process, &status, sleeps ? WNOHANG : 0)) == 0) {
        if (asleep(process, process))
            return false;
        sched_yield();
    }
    if (stopped != process || !WIFSTOPPED(status) ||
        (WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGUSR1))
        fail("the victim ended by itself", status);
    return WSTOPSIG(status) == SIGTRAP;
}

/* A fresh victim, killed before its instruction number `point`, or where the operation ends. Returns how many
 * instructions it made. */
static long kill_one(const struct operation *op)
{
    int status;
    long count = 0;
    atomic_store(&page->mail, 0);
    if (!fixture_init(&lane, IPC_MIN_RING_SIZE))
        fail("fixture", errno);
    if (op->scene)
        op->scene();
    pid_t process = fork_child();
    if (process == 0)
        victim_main(op);
    if (waitpid(process, &status, 0) != process || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
        fail("the victim did not start", status);
    if (op->survivors)
        op->survivors();
    while (count < point && step(process, op->sleeps))
        count++;
    kill(process, SIGKILL);
    do
        if (waitpid(process, &status, 0) != process)
            fail("waitpid", errno);
    while (!WIFSIGNALED(status));
    if (op->scene)
        reader_died();
    else
        writer_died(op->new_records);
    fixture_done(&lane);
    return count;
}

/* ---- joining ---------------------------------------------------------------------------------------------- */

_Noreturn static void joiner_main(unsigned start)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 || !fixture_remap(&lane))
        _exit(126);
    raise(SIGSTOP);
    fixture_attach(&lane, &victim, 2, FIXTURE_PIN, start);
    raise(SIGUSR1);
    uint64_t promised = atomic_load(&page->before), first = UINT64_MAX, next = 0;
    while (fixture_receive(&victim, &record) == 1) {
        first = first < record.sequence ? first : record.sequence;
        next = record.sequence + 1;
    }
    _exit(first <= promised && next == promised + 3 && victim.lost == 0 ? 0 : 1);
}

/* A reader joins, is admitted before its instruction number `point`, and goes on: whatever is published from then on is
 * its. Returns how many instructions it made until then. */
static long join_one(unsigned start)
{
    int status;
    long count = 0;
    bool joins = true;
    if (!fixture_init(&lane, IPC_MIN_RING_SIZE))
        fail("fixture", errno);
    writer_new(0);
    publish(10);
    pid_t process = fork_child();
    if (process == 0)
        joiner_main(start);
    if (waitpid(process, &status, 0) != process || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGSTOP)
        fail("the reader did not start", status);
    while (count < point && (joins = step(process, false)))
        count++;
    fixture_admit(&lane, 2, FIXTURE_PIN, start);
    atomic_store(&page->before, lane.writer.sequence);
    publish(3);
    while (ptrace(PTRACE_CONT, process, NULL, NULL) == 0 && waitpid(process, &status, 0) == process &&
           WIFSTOPPED(status))
        continue;
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, status);
    fixture_done(&lane);
    return joins ? count : -1;
}

static long join_everywhere(void)
{
    long total = 0;
    for (unsigned start = NEXT; start <= OLDEST; start++) {
        operation = start == NEXT ? "join-next" : start == LAST ? "join-last" : "join-oldest";
        watchdog(500, operation);
        for (point = 0; join_one(start) == point; point++)
            total++;
    }
    printf("%-16s %6ld points\n", "join", total);
    return total;
}

int main(int argc, char **argv)
{
    const char *text = getenv("IPC_CRASH_POINTS");
    long limit = text && *text ? strtol(text, NULL, 10) : POINTS;
#ifdef IPC_TSAN
    printf("skipped: ThreadSanitizer's own threads cannot be single-stepped\n");
    return 77;
#endif
    page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 1;
    lane_barrier_register();
    /* Stepper and victim take turns: on one processor that is much cheaper. */
    cpu_set_t one;
    CPU_ZERO(&one);
    int here = sched_getcpu();
    CPU_SET(here < 0 ? 0 : here, &one);
    sched_setaffinity(0, sizeof(one), &one);
    unsigned before = descriptors_open();
    long total = 0;
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        const struct operation *op = &operations[i];
        if (argc > 1 && strcmp(argv[1], op->name) != 0)
            continue;
        operation = op->name;
        watchdog(500, operation);
        point = LONG_MAX;
        long count = kill_one(op), killed = 1;
        long stride = limit > 0 && count > limit ? (count + limit - 1) / limit : 1;
        for (point = 0; kill_one(op) == point && point < LONG_MAX - stride; point += stride)
            killed++;
        printf("%-16s %6ld instructions, killed at %ld of them\n", op->name, count, killed);
        fflush(stdout);
        total += killed;
    }
    printf("killed %ld times\n", total);
    if (argc == 1 || strcmp(argv[1], "join") == 0)
        total += join_everywhere();
    if (descriptors_open() != before || children_left()) {
        printf("BAD: descriptors or processes are left\n");
        return 1;
    }
    return total == 0;
}
