/* SPDX-License-Identifier: Apache-2.0
 *
 * A client is killed at every point of its control plane: it connects, advertises, subscribes, publishes, waits and
 * takes all of it back under ptrace, and dies before and after each of its system calls, and after each
 * instruction that changed memory it shares with others. After each death the core has what it had before, and two
 * bystanders, whose topics the victim had joined, have lost nothing and go on. Another one sends to a queue and receives from
 * it: what it was told is in the queue comes to the next consumer, in order, unless it had begun to acknowledge it.
 *
 * IPC_KILL_FULL=1: with queues at each point, too; else at every seventh, from another one in each run.
 */
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/queue.h"

#define WINDOWS_MAX 12u
#define WINDOW_SIZE \
 1024u /* at the start of each shared mapping and of its second page: control words and records */
#define SECOND_PAGE 4096u

/* ---- the victim ---------------------------------------------------------------------------------------------- */

static ipc_connection *connection_of_victim(void)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection;
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        _exit(1);
    raise(SIGSTOP);
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_connection_open(&connection, NULL, &options, NULL), 0);
    return connection;
}

static void be_victim(void *argument)
{
    struct ipc_subscription_options reading = IPC_SUBSCRIPTION_OPTIONS_INIT;
    ipc_connection *connection = connection_of_victim();
    ipc_subscription *subscription;
    unsigned char buffer[64];
    (void)argument;
    ipc_publisher *publisher = publisher_new(connection, "victim", 4096, 0);
    reading.start = IPC_START_OLDEST;
    reading.slow = IPC_SLOW_BLOCK;
    reading.spin_max_ns = 0;
    EXPECT_EQ(ipc_subscription_open(&subscription, connection, "bystander", &reading, NULL), 0);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, 3, 64);
    for (int i = 0; i < 3; i++)
        EXPECT(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 100000) != -EPIPE);
    EXPECT(ipc_subscription_fd(subscription) >= 0);
    EXPECT(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0) != -EPIPE);
    ipc_subscription_close(subscription);
    ipc_publisher_close(publisher);
    ipc_connection_close(connection);
}

#define QUEUE "victim.queue"
#define SENT  4u

/* How far the victim has come: numbers. */
struct progress {
    volatile uint64_t first;     /* of this one's */
    volatile uint64_t confirmed; /* behind the last that it was told is in the queue */
    volatile uint64_t acking,
        acked; /* behind the last that it began to acknowledge, that it was told is taken in */
};
static struct progress *progress;

static void be_victim_of_queues(void *argument)
{
    ipc_connection *connection = connection_of_victim();
    ipc_producer *producer = producer_new(connection, QUEUE);
    struct ipc_queue_message message;
    uint64_t first = progress->first;
    (void)argument;
    send_numbers(producer, first, first + 1, 64);
    progress->confirmed = first + 1;
    send_numbers(producer, first + 1, first + SENT, 64);
    progress->confirmed = first + SENT;
    ipc_consumer *consumer = consumer_new(connection, QUEUE, 2);
    EXPECT_EQ(receive_number(consumer, &message), first);
    progress->acking = first + 1;
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    EXPECT(ipc_consumer_fd(consumer) >= 0);
    EXPECT_EQ(receive_number(consumer, &message), first + 1);
    progress->acking = first + 2;
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    EXPECT_EQ(receive_number(consumer, &message), first + 2);
    EXPECT_EQ(ipc_consumer_nack(consumer, message.delivery, message.delivery, NULL), 0);
    EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    progress->acked = first + 2;
    ipc_consumer_close(consumer);
    ipc_producer_close(producer);
    ipc_connection_close(connection);
}

/* ---- the tracer ---------------------------------------------------------------------------------------------- */

struct tracee {
    pid_t pid;
    int status;
    int memory; /* /proc/PID/mem */
    unsigned stops;
    struct iovec windows[WINDOWS_MAX];
    unsigned window_count;
    unsigned char before[WINDOWS_MAX * WINDOW_SIZE], now[WINDOWS_MAX * WINDOW_SIZE];
};

static struct tracee tracee;

static bool resume(int request)
{
    EXPECT_EQ(ptrace((enum __ptrace_request)request, tracee.pid, NULL, NULL), 0);
    EXPECT_EQ(waitpid(tracee.pid, &tracee.status, 0), tracee.pid);
    return WIFSTOPPED(tracee.status);
}

/* On to the next entry into, or return from, a system call. False: it has ended. */
static bool next_stop(void)
{
    do
        if (!resume(PTRACE_SYSCALL))
            return false;
    while (WSTOPSIG(tracee.status) != (SIGTRAP | 0x80));
    tracee.stops++;
    return true;
}

static void tracee_start(void (*be)(void *))
{
    char path[64];
    tracee.stops = tracee.window_count = 0;
    tracee.pid = child_start(be, NULL);
    EXPECT_EQ(waitpid(tracee.pid, &tracee.status, 0), tracee.pid);
    EXPECT(WIFSTOPPED(tracee.status));
    EXPECT_EQ(ptrace(PTRACE_SETOPTIONS, tracee.pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL), 0);
    snprintf(path, sizeof(path), "/proc/%d/mem", (int)tracee.pid);
    tracee.memory = open(path, O_RDONLY | O_CLOEXEC);
    EXPECT(tracee.memory >= 0);
}

static void tracee_end(void)
{
    if (WIFSTOPPED(tracee.status)) {
        kill(tracee.pid, SIGKILL);
        while (!WIFSIGNALED(tracee.status))
            EXPECT_EQ(waitpid(tracee.pid, &tracee.status, 0), tracee.pid);
    } else {
        EXPECT(WIFEXITED(tracee.status) && WEXITSTATUS(tracee.status) == 0);
    }
    close(tracee.memory);
}

#if defined(__x86_64__)
/* The mappings that it may write to and others can see. */
static void windows_find(void)
{
    char path[64], line[512], permissions[8];
    unsigned long long from, to;
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)tracee.pid);
    FILE *maps = fopen(path, "re");
    EXPECT(maps != NULL);
    tracee.window_count = 0;
    while (fgets(line, sizeof(line), maps)) {
        if (!strstr(line, "memfd:ipc-") || sscanf(line, "%llx-%llx %7s", &from, &to, permissions) != 3 ||
            strcmp(permissions, "rw-s") != 0)
            continue;
        for (uint64_t at = from; at <= from + SECOND_PAGE && at < to && tracee.window_count < WINDOWS_MAX;
             at += SECOND_PAGE)
            tracee.windows[tracee.window_count++] = (struct iovec){(void *)(uintptr_t)at, WINDOW_SIZE};
    }
    fclose(maps);
}

static void windows_read(unsigned char *contents)
{
    struct iovec local = {contents, tracee.window_count * (size_t)WINDOW_SIZE};
    if (tracee.window_count == 0)
        return;
    EXPECT_EQ(process_vm_readv(tracee.pid, &local, 1, tracee.windows, tracee.window_count, 0), local.iov_len);
}

static bool windows_changed(void)
{
    size_t size = tracee.window_count * (size_t)WINDOW_SIZE;
    windows_read(tracee.now);
    bool changed = memcmp(tracee.now, tracee.before, size) != 0;
    if (changed)
        memcpy(tracee.before, tracee.now, size);
    return changed;
}

static bool at_system_call(void)
{
    unsigned char code[2] = {0};
    errno = 0;
    long address = ptrace(PTRACE_PEEKUSER, tracee.pid, offsetof(struct user_regs_struct, rip), NULL);
    EXPECT_EQ(errno, 0);
    return pread(tracee.memory, code, sizeof(code), address) == 2 && code[0] == 0x0f && code[1] == 0x05;
}

/* Step it, over system calls as well, until it has stored to shared memory so often. False: it ended before. */
static bool run_to_store(unsigned stores)
{
    for (; tracee.window_count == 0; windows_find())
        if (!next_stop())
            return false;
    windows_read(tracee.before);
    for (unsigned seen = 0; seen < stores;) {
        bool call = at_system_call();
        if (!resume(PTRACE_SINGLESTEP))
            return false;
        if (call) { /* perhaps it mapped something */
            windows_find();
            windows_read(tracee.before);
        } else if (tracee.window_count > 0) {
            seen += windows_changed();
        }
    }
    return true;
}
#else
static bool run_to_store(unsigned stores)
{
    (void)stores;
    return resume(PTRACE_CONT);
}
#endif

/* Run it up to that stop. False: it ended before. */
static bool run_to_stop(unsigned stop)
{
    while (tracee.stops < stop)
        if (!next_stop())
            return false;
    return true;
}

/* ---- the bystanders ------------------------------------------------------------------------------------------ */

struct bystanders {
    ipc_connection *out, *in;
    ipc_publisher *publisher;
    ipc_subscription *subscription, *of_victim;
    uint64_t number;
};

static void bystanders_go_on(struct bystanders *them)
{
    unsigned char buffer[64];
    publish_numbers(them->publisher, them->number, them->number + 10, 64);
    receive_numbers(them->subscription, them->number, them->number + 10, 64);
    them->number += 10;
    ssize_t size;
    while ((size = ipc_subscription_receive(them->of_victim, buffer, sizeof(buffer), NULL, 0)) >= 0)
        EXPECT_EQ(size, 64);
    EXPECT_EQ(size, -EAGAIN);
}

static unsigned broker_descriptors(void)
{
    char path[64];
    unsigned count = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)broker.pid);
    DIR *folder = opendir(path);
    EXPECT(folder != NULL);
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

/* Until the core has what it had before the victim came. */
static void settle(struct bystanders *them, const struct broker_counts *then, unsigned descriptors)
{
    struct broker_counts now;
    do {
        bystanders_go_on(them);
        now = broker_count(&broker);
    } while (memcmp(&now, then, sizeof(now)) != 0 || broker_descriptors() != descriptors);
}

/* All that the victim may have left in the queue, and then a mark. */
static void queue_is_right(struct bystanders *them)
{
    uint64_t mark = progress->first + SENT, last = 0, number;
    ipc_producer *producer = producer_new(them->out, QUEUE);
    ipc_consumer *consumer = consumer_new(them->in, QUEUE, 16);
    struct ipc_queue_message message;
    send_numbers(producer, mark, mark + 1, 64);
    while ((number = receive_number(consumer, &message)) != mark) {
        EXPECT(number >= progress->acked && number < mark);
        EXPECT(last ? number == last + 1 : number <= progress->acking);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        last = number;
    }
    EXPECT(progress->acking == progress->confirmed || last + 1 >= progress->confirmed);
    EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
    receive_nothing(consumer);
    ipc_producer_close(producer);
    ipc_consumer_close(consumer);
    progress->first = progress->confirmed = progress->acking = progress->acked = mark + 1;
}

static void kill_everywhere(void (*be)(void *), void (*check)(struct bystanders *), unsigned step)
{
    struct bystanders them = {.out = connection_new(), .in = connection_new()};
    unsigned stops = (unsigned)getpid() % step, stores = stops;
    watchdog(500, "killing a client everywhere");
    them.publisher = publisher_new(them.out, "bystander", 4096, 0);
    them.subscription = subscription_new(them.in, "bystander", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    them.of_victim = subscription_new(them.in, "victim", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(them.publisher, 1, IPC_FOREVER), 1);
    bystanders_go_on(&them);
    struct broker_counts before = broker_count(&broker);
    unsigned descriptors = broker_descriptors(), again;
    while ((again = broker_descriptors()) != descriptors) /* that of who asked may still be closing */
        descriptors = again;

    for (bool more = true; more; stops += more ? step : 0) {
        tracee_start(be);
        more = run_to_stop(stops + 1);
        tracee_end();
        settle(&them, &before, descriptors);
        check(&them);
    }
    for (bool more = true; more; stores += more ? step : 0) {
        tracee_start(be);
        more = run_to_store(stores + 1);
        tracee_end();
        settle(&them, &before, descriptors);
        check(&them);
    }
    printf("killed at %u stops of system calls and after %u stores to shared memory\n", stops, stores);
    EXPECT(stops > 100);
#if defined(__x86_64__)
    EXPECT(stores > 10);
#endif
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(them.subscription, &stats), 0);
    EXPECT_EQ(stats.lost, 0);
    EXPECT_EQ(stats.writers, 1);
    publisher_end(them.publisher);
    subscription_end(them.subscription);
    subscription_end(them.of_victim);
    ipc_connection_close(them.out);
    ipc_connection_close(them.in);
}

static void nothing_more(struct bystanders *them)
{
    (void)them;
}

static void test_kill_everywhere(void **state)
{
    (void)state;
    kill_everywhere(be_victim, nothing_more, 1);
}

static void test_queues_kill_everywhere(void **state)
{
    ipc_connection *connection = connection_new();
    (void)state;
    progress = shared_new(sizeof(*progress));
    progress->first = progress->confirmed = progress->acking = progress->acked = 1;
    queue_new(connection, QUEUE, NULL);
    kill_everywhere(be_victim_of_queues, queue_is_right, getenv("IPC_KILL_FULL") ? 1 : 7);
    EXPECT_EQ(ipc_queue_remove(connection, QUEUE, IPC_QUEUE_IF_EMPTY, NULL), 0);
    ipc_connection_close(connection);
    shared_free(progress, sizeof(*progress));
}

int main(void)
{
    const struct CMUnitTest tests[] = {CASE(test_kill_everywhere), CASE(test_queues_kill_everywhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
