/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed at every instruction of its router's way through a few messages: taking them out of the producer's lane,
 * storing and confirming them, delivering, taking back what was refused, and taking acknowledgements. With the next ipcd the
 * client gets each message as often, in the order and with the attempt that it would get without that.
 *
 * What a kill leaves is the memory that others share, and the kernel's state. An instruction that neither changes such memory
 * nor calls the kernel changes neither, so that a kill behind it leaves what a kill before it leaves. The instructions fall
 * into classes by that: each begins with a call or with one that changed memory, which is seen by comparing all that ipcd maps
 * to be shared and may write, byte by byte, after each single instruction. ipcd is killed once in each class, at an
 * instruction of it that is drawn by lot. That needs the same classes in each round: client and router take turns, one stands
 * still while the other one works, and a class is known again by what it begins with and how often that was before. A round
 * that ended in another one (what is done while nothing happens is not always the same) is made again.
 *
 * IPC_KILL_FULL=1: in each class (`./dev kill`); else in every ninth, from another one in each run.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#ifdef __x86_64__

# define PHASES       3u
# define MESSAGES     3u
# define MAPPINGS_MAX 32u
# define RANGES_MAX   64u
# define CLASSES_MAX  4096u
# define CLOCKS       8u /* the last is CLOCK_BOOTTIME */
# define BLOCK        512
# define PAGE_BITS    12
# define IN_PAGE      UINT64_C(0xfff)
# define TRIES_MAX    50u
# define STEP         9u

static struct guarded guarded;

/* ---- the client ------------------------------------------------------------------------------------------------ */

struct stage {
    int go, done; /* a phase of it */
};

/* The router has its turn between the phases; if it was killed, each of them waits for what it needs. */
static void round_of(const struct stage *stage, ipc_producer *producer, ipc_consumer *consumer)
{
    struct ipc_queue_message message;
    unsigned char buffer[100];

    gate_wait(stage->go);
    for (uint64_t number = 0; number < MESSAGES; number++) {
        message_fill(buffer, sizeof(buffer), number);
        EXPECT_EQ(ipc_producer_send(producer, buffer, sizeof(buffer), IPC_FOREVER, NULL), 0);
    }
    gate_open(stage->done);

    gate_wait(stage->go);
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
    EXPECT_EQ(receive_number(consumer, &message), 0);
    EXPECT_EQ(message.attempt, 1);
    EXPECT_EQ(ipc_consumer_nack(consumer, message.delivery, message.delivery, NULL), 0);
    gate_open(stage->done);

    gate_wait(stage->go);
    /* It comes back to its place, but the next may have been on their way already. */
    bool again = false;
    for (uint64_t next = 1; next < MESSAGES || !again;) {
        uint64_t number = receive_number(consumer, &message);
        if (number == 0) {
            EXPECT(!again);
            again = true;
        } else {
            EXPECT_EQ(number, next++);
        }
        EXPECT_EQ(message.attempt, number == 0 ? 2 : 1);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    }
    gate_open(stage->done);
}

static void be_client(void *argument)
{
    const struct stage *stage = argument;
    ipc_connection *connection = connection_new();

    queue_new(connection, "stepped", NULL);
    ipc_producer *producer = producer_new(connection, "stepped");
    ipc_consumer *consumer = consumer_new(connection, "stepped", 8);
    gate_open(stage->done);
    round_of(stage, producer, consumer);
    gate_wait(stage->go);
    receive_nothing(consumer);
    consumer_end(consumer);
    producer_end(producer);
    EXPECT_EQ(ipc_queue_remove(connection, "stepped", 0, NULL), 0);
    ipc_connection_close(connection);
    gate_open(stage->done);
}

static void client_phase(const struct stage *stage)
{
    gate_open(stage->go);
    gate_wait(stage->done);
}

/* ---- what ipcd shares ------------------------------------------------------------------------------------------- */

/* A segment that it may write. Only what has memory is looked at, since a look would give it some. */
struct mapping {
    ino_t inode;
    int fd;
    size_t size;
    blkcnt_t seen; /* bytes */
    const unsigned char *now;
    unsigned char *then;
    struct {
        size_t from, to;
    } ranges[RANGES_MAX];
    unsigned n_ranges;
};

struct class
{
    uint64_t what; /* it begins with */
    unsigned nth;  /* of those that begin so */
    unsigned more; /* instructions that are in it */
};

struct traced {
    pid_t ipcd, router;
    int memory, epoll_fd; /* where it sleeps, or -1 */
    unsigned long vdso, vdso_end;
    struct timespec clocks[CLOCKS];
    struct mapping mappings[MAPPINGS_MAX];
    unsigned n_mappings;
    unsigned instructions; /* since the round began */
    struct class classes[CLASSES_MAX];
    unsigned n_classes;
};

static struct traced traced;

/* Which pages are to be looked at. Those that it has and never touched are not seen at first: until they are, this is done again.
 * What has no memory is zero. */
static void mapping_look(struct mapping *mapping)
{
    struct stat st;

    EXPECT_EQ(fstat(mapping->fd, &st), 0);
    if (st.st_blocks * (blkcnt_t)BLOCK == mapping->seen)
        return;
    mapping->n_ranges = 0;
    mapping->seen = 0;
    for (off_t from, to = 0; (from = lseek(mapping->fd, to, SEEK_DATA)) >= 0;) {
        to = lseek(mapping->fd, from, SEEK_HOLE);
        EXPECT(to > from && mapping->n_ranges < RANGES_MAX);
        mapping->ranges[mapping->n_ranges].from = (size_t)from;
        mapping->ranges[mapping->n_ranges++].to = (size_t)to;
        mapping->seen += to - from;
    }
}

static bool mapping_changed(struct mapping *mapping)
{
    bool changed = false;

    mapping_look(mapping);
    for (unsigned i = 0; i < mapping->n_ranges; i++) {
        size_t from = mapping->ranges[i].from, size = mapping->ranges[i].to - from;
        if (memcmp(mapping->then + from, mapping->now + from, size) == 0)
            continue;
        memcpy(mapping->then + from, mapping->now + from, size);
        changed = true;
    }
    return changed;
}

static bool memory_changed(void)
{
    bool changed = false;

    for (unsigned i = 0; i < traced.n_mappings; i++)
        changed = mapping_changed(&traced.mappings[i]) || changed;
    return changed;
}

static void mapping_add(const char *fd_path, const struct stat *st)
{
    struct mapping *mapping = &traced.mappings[traced.n_mappings++];

    EXPECT(traced.n_mappings <= MAPPINGS_MAX);
    *mapping = (struct mapping){.inode = st->st_ino, .size = (size_t)st->st_size};
    mapping->fd = open(fd_path, O_RDONLY | O_CLOEXEC);
    EXPECT(mapping->fd >= 0);
    mapping->now = mmap(NULL, mapping->size, PROT_READ, MAP_SHARED, mapping->fd, 0);
    mapping->then =
        mmap(NULL, mapping->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT(mapping->now != MAP_FAILED && mapping->then != MAP_FAILED);
    mapping_changed(mapping);
}

static bool mapping_find(ino_t inode)
{
    for (unsigned i = 0; i < traced.n_mappings; i++)
        if (traced.mappings[i].inode == inode)
            return true;
    return false;
}

/* By a descriptor of ipcd's: it keeps them all. */
static void mapping_new(ino_t inode)
{
    char path[300];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)traced.ipcd);
    DIR *folder = opendir(path);
    EXPECT(folder != NULL);
    for (const struct dirent *entry; !mapping_find(inode) && (entry = readdir(folder));) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)traced.ipcd, entry->d_name);
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_ino == inode)
            mapping_add(path, &st);
    }
    closedir(folder);
    EXPECT(mapping_find(inode));
}

static void mappings_find(void)
{
    char line[512], permissions[8];
    unsigned long inode;

    snprintf(line, sizeof(line), "/proc/%d/maps", (int)traced.ipcd);
    FILE *maps = fopen(line, "re");
    EXPECT(maps != NULL);
    while (fgets(line, sizeof(line), maps)) {
        if (strstr(line, "[vdso]"))
            EXPECT(sscanf(line, "%lx-%lx", &traced.vdso, &traced.vdso_end) == 2);
        if (sscanf(line, "%*x-%*x %7s %*x %*s %lu", permissions, &inode) == 2 &&
            strcmp(permissions, "rw-s") == 0 && !mapping_find(inode))
            mapping_new(inode);
    }
    fclose(maps);
}

/* ---- stepping -------------------------------------------------------------------------------------------------- */

static pid_t router_of(pid_t ipcd)
{
    char path[64], name[32];
    pid_t found = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)ipcd);
    DIR *tasks = opendir(path);
    EXPECT(tasks != NULL);
    for (const struct dirent *task; (task = readdir(tasks));) {
        char comm[512];
        snprintf(comm, sizeof(comm), "%s/%s/comm", path, task->d_name);
        FILE *file = fopen(comm, "re");
        if (file && fscanf(file, "%31s", name) == 1 && strcmp(name, "router") == 0)
            found = atoi(task->d_name);
        if (file)
            fclose(file);
    }
    closedir(tasks);
    EXPECT(found != 0);
    return found;
}

static void traced_begin(void)
{
    char path[64];
    cpu_set_t one;
    int status;

    traced = (struct traced){.ipcd = guarded_pid(&guarded), .epoll_fd = -1};
    traced.router = router_of(traced.ipcd);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)traced.ipcd);
    traced.memory = open(path, O_RDWR | O_CLOEXEC);
    EXPECT(traced.memory >= 0);
    /* On one cpu: a step is a switch from here to there and back. */
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    EXPECT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(sched_setaffinity(traced.router, sizeof(one), &one), 0);
    EXPECT_EQ(ptrace(PTRACE_SEIZE, traced.router, NULL, NULL), 0);
    EXPECT_EQ(ptrace(PTRACE_INTERRUPT, traced.router, NULL, NULL), 0);
    EXPECT_EQ(waitpid(traced.router, &status, __WALL), traced.router);
    mappings_find();
}

/* Kill it; the next one answers then. */
static void traced_end(void)
{
    int status;

    EXPECT_EQ(kill(traced.ipcd, SIGKILL), 0);
    while (waitpid(traced.router, &status, __WALL) == traced.router && !WIFSIGNALED(status) &&
           !WIFEXITED(status))
        continue;
    for (unsigned i = 0; i < traced.n_mappings; i++) {
        struct mapping *mapping = &traced.mappings[i];
        munmap((void *)(uintptr_t)mapping->now, mapping->size);
        munmap(mapping->then, mapping->size);
        close(mapping->fd);
    }
    close(traced.memory);
    if (traced.epoll_fd >= 0)
        close(traced.epoll_fd);
    guarded_wait_other(&guarded, traced.ipcd);
}

/* Would this call of epoll_wait(2) sleep? */
static bool would_sleep(const struct user_regs_struct *registers)
{
    struct pollfd events = {.events = POLLIN};

    if ((int)registers->r10 == 0)
        return false;
    if (traced.epoll_fd < 0) {
        int process = pidfd_open(traced.ipcd, 0);
        EXPECT(process >= 0);
        traced.epoll_fd = pidfd_getfd(process, (int)registers->rdi, 0);
        EXPECT(traced.epoll_fd >= 0);
        close(process);
    }
    events.fd = traced.epoll_fd;
    return poll(&events, 1, 0) == 0;
}

/* The vDSO's clock_gettime(2), done for it: stepped, it would begin again with each tick of the clock, for ever. And the time is
 * its own, so that it goes the same way in each round: a millisecond is over, which is longer than it polls. */
static void clock_read(struct user_regs_struct *registers)
{
    struct {
        struct timespec time;
        uint64_t back;
    } stack;

    EXPECT(registers->rdi < CLOCKS);
    struct timespec *time = &traced.clocks[registers->rdi];
    if (time->tv_sec == 0)
        EXPECT_EQ(clock_gettime((clockid_t)registers->rdi, time), 0);
    time->tv_nsec += 1000000;
    if (time->tv_nsec >= 1000000000) {
        time->tv_nsec -= 1000000000;
        time->tv_sec++;
    }
    stack.time = *time;
    EXPECT(registers->rsi - registers->rsp < 1 << 16);
    EXPECT_EQ(pwrite(traced.memory, &stack.time, sizeof(stack.time), (off_t)registers->rsi),
              sizeof(stack.time));
    EXPECT_EQ(pread(traced.memory, &stack.back, sizeof(stack.back), (off_t)registers->rsp),
              sizeof(stack.back));
    registers->rax = 0;
    registers->rip = stack.back;
    registers->rsp += sizeof(stack.back);
    EXPECT_EQ(ptrace(PTRACE_SETREGS, traced.router, NULL, registers), 0);
}

enum stepped { STEPPED, STEPPED_CLASS, STEPPED_ASLEEP };

static enum stepped class_begins(uint64_t what)
{
    struct class class = {.what = what};

    EXPECT(traced.n_classes < CLASSES_MAX);
    for (unsigned i = 0; i < traced.n_classes; i++)
        class.nth += traced.classes[i].what == what;
    traced.classes[traced.n_classes++] = class;
    return STEPPED_CLASS;
}

/* One instruction. */
static enum stepped step(void)
{
    struct user_regs_struct registers;
    unsigned char code[2] = {0};
    int status;

    EXPECT_EQ(ptrace(PTRACE_GETREGS, traced.router, NULL, &registers), 0);
    if (registers.rip >= traced.vdso && registers.rip < traced.vdso_end) {
        clock_read(&registers);
        return STEPPED;
    }
    bool call = pread(traced.memory, code, sizeof(code), (off_t)registers.rip) == sizeof(code) &&
                code[0] == 0x0f && code[1] == 0x05;
    if (call && registers.rax == SYS_epoll_wait && would_sleep(&registers))
        return STEPPED_ASLEEP;
    EXPECT_EQ(ptrace(PTRACE_SINGLESTEP, traced.router, NULL, NULL), 0);
    EXPECT_EQ(waitpid(traced.router, &status, __WALL), traced.router);
    EXPECT(WIFSTOPPED(status) && status >> 8 == SIGTRAP);
    traced.instructions++;
    if (call && (registers.rax == SYS_mmap || registers.rax == SYS_munmap))
        mappings_find();
    if (!memory_changed() && !call)
        return STEPPED;
    /* Where in its page, which is the same in each process, and which call. */
    return class_begins((registers.rip & IN_PAGE) | (call ? (registers.rax + 1) << PAGE_BITS : 0));
}

static bool is_in(const struct class *wanted)
{
    const struct class *class = &traced.classes[traced.n_classes - 1];

    return class->what == wanted->what && class->nth == wanted->nth;
}

/* Until it is in that class (NULL: to the end). False: it sleeps before. */
static bool run_to(const struct class *wanted)
{
    while (!wanted || !is_in(wanted)) {
        enum stepped how = step();
        if (how == STEPPED_ASLEEP)
            return false;
        traced.classes[traced.n_classes - 1].more += how == STEPPED;
    }
    return true;
}

/* On by up to so many instructions, by lot. */
static void go_on(uint64_t *seed, unsigned most)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1;
    for (unsigned more = (unsigned)(*seed >> 33) % (most + 1); more > 0; more--)
        if (step() != STEPPED)
            break;
}

/* A round in which ipcd is killed in that class, or (NULL) at its end. False: that, or in another class. */
static bool round_with_kill(const struct stage *stage, const struct class *wanted, uint64_t *seed)
{
    pid_t client = child_start(be_client, (void *)(uintptr_t)stage);
    unsigned phase = 0;
    bool there = false;

    gate_wait(stage->done);
    traced_begin();
    while (step() != STEPPED_ASLEEP) /* what it was interrupted in */
        continue;
    traced.instructions = traced.n_classes = 0;
    while (phase < PHASES && !there) {
        client_phase(stage);
        class_begins(~phase++);
        there = run_to(wanted);
    }
    if (there)
        go_on(seed, wanted->more);
    there = there && is_in(wanted);
    traced_end();
    while (phase++ <= PHASES)
        client_phase(stage);
    child_done(client);
    return there;
}

static void test_at_every_instruction(void **state)
{
    static struct class classes[CLASSES_MAX];
    struct stage stage = {.go = gate_new(), .done = gate_new()};
    unsigned step_size = getenv("IPC_KILL_FULL") ? 1 : STEP, kills = 0, others = 0;
    uint64_t seed = (uint64_t)getpid();

    (void)state;
    watchdog(120, "a kill of ipcd while its router is stepped");
    guarded_kill_ipcd(&guarded); /* each one to come has taken over, too */
    round_with_kill(&stage, NULL, &seed);
    unsigned n_classes = traced.n_classes;
    memcpy(classes, traced.classes, sizeof(classes));
    printf("%u instructions of the router are in %u classes\n", traced.instructions, n_classes);
    EXPECT(n_classes > 100);
    for (unsigned i = (unsigned)getpid() % step_size; i < n_classes; i += step_size, kills++)
        for (unsigned tries = 0;; tries++) {
            watchdog(120, "a kill of ipcd while its router is stepped");
            if (round_with_kill(&stage, &classes[i], &seed))
                break;
            others++;
            EXPECT(tries < TRIES_MAX);
        }
    printf("ipcd was killed in %u of them, and %u times in another one than was meant\n", kills, others);
    close(stage.go);
    close(stage.done);
}

static int setup(void **state)
{
    static const char *const quiet[] = {"--log-level", "error", "--watchdog", "0", NULL};
    watchdog(30, "start");
    guarded_start(&guarded, quiet);
    return 0;
}

static int teardown(void **state)
{
    guarded_stop(&guarded);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_at_every_instruction, setup, teardown)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
int main(void)
{
    return 77;
}
#endif
