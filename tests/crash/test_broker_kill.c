/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed before and after each of its system calls, and after each of its stores to shared memory, while a client
 * connects, advertises, subscribes by name and by pattern, is paired, exchanges messages, waits by bell, leaves a
 * retained lane, and takes all of it back; and while another one makes, uses and removes queues, a service and a shared
 * segment; at system calls also while one opens a server and a client and makes calls, and closes both. The ipcd that follows
 * is killed in the same way while it takes over. After each death the client has noticed nothing, a bystander has lost nothing, and neither ipcd nor ipcd-run has more than
 * before.
 *
 * IPC_KILL_FULL=1: each of these (`./dev kill`), of queues and the like every fifth, fewer of the next one's; else every fourth, from another one in
 * each run, and fewer of the second.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/crash/stepped_ipcd.h"
#include "tests/proc/test_broker_raw.h"
#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#define STORES_OF_A_START   100u /* more than it makes before it is ready */
#define STORES_OF_A_CONFIRM 12u

static struct guarded guarded;

static struct broker as_broker(void)
{
    struct broker as = {.pid = guarded.run};
    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    return as;
}

static void be_client(void *argument)
{
    const int *go = argument;
    gate_wait(*go);
    ipc_connection *connection = connection_new(), *other = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "step.by.step", 1 << 14, 0);
    ipc_publisher *kept = publisher_new(connection, "kept", 1 << 12, IPC_PUBLISHER_RETAIN);
    struct ipc_subscription_stats stats;
    publish_numbers(kept, 0, 3, 64);
    publisher_end(kept);
    ipc_subscription *exact = subscription_new(other, "step.by.step", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    ipc_subscription *wild = subscription_new(other, "step.>", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER), 2);
    publish_numbers(publisher, 0, 20, 64);
    receive_numbers(exact, 0, 20, 64);
    receive_numbers(wild, 0, 20, 64);
    EXPECT_EQ(ipc_subscription_stats(exact, &stats), 0);
    EXPECT_EQ(stats.writers, 1); /* nothing was made twice */
    EXPECT(ipc_subscription_fd(wild) >= 0);
    publish_numbers(publisher, 20, 22, 64);
    receive_numbers(wild, 20, 22, 64);
    receive_numbers(exact, 20, 22, 64);
    subscription_end(wild);
    while (ipc_publisher_wait_readers(publisher, 0, 0) != 1) /* what was answered was done */
        sched_yield();
    ipc_subscription *past = subscription_new(other, "kept", IPC_START_OLDEST, IPC_SLOW_DROP_OLDEST, 0);
    receive_numbers(past, 0, 3, 64);
    subscription_end(past);
    publisher_end(publisher);
    while (ipc_subscription_wait_writers(exact, 0, 0) != 0)
        sched_yield();
    subscription_end(exact);
    ipc_connection_close(other);
    ipc_connection_close(connection);
}

/* One thread is both sides of three calls. */
static void use_service(ipc_connection *connection, ipc_connection *other)
{
    ipc_server *server;
    ipc_client *client;
    ipc_call *call;
    struct ipc_request *request;
    struct ipc_reply reply;
    uint32_t question = 42, answer = 0;

    EXPECT_EQ(ipc_server_open(&server, connection, "step.service", NULL, NULL), 0);
    EXPECT_EQ(ipc_client_open(&client, other, "step.service", NULL, NULL), 0);
    for (unsigned i = 0; i < 3; i++) {
        EXPECT_EQ(ipc_call_start(&call, client, &question, sizeof(question), NULL), 0);
        ssize_t got;
        do { /* one thread is both sides: each has to hear of the other */
            EXPECT_EQ(ipc_call_next(call, &reply, 0), -EAGAIN);
            got = ipc_server_receive(server, &answer, sizeof(answer), &request, 1000000);
        } while (got == -ETIMEDOUT);
        EXPECT_EQ(got, sizeof(answer));
        EXPECT_EQ(ipc_request_reply(request, &answer, sizeof(answer), NULL), 0);
        EXPECT_EQ(ipc_call_next(call, &reply, IPC_FOREVER), 1);
        EXPECT(reply.size == sizeof(question) && memcmp(reply.data, &question, sizeof(question)) == 0);
        ipc_call_free(call);
    }
    ipc_client_close(client);
    ipc_server_close(server);
}

static void be_caller(void *argument)
{
    const int *go = argument;

    gate_wait(*go);
    ipc_connection *connection = connection_new(), *other = connection_new();
    use_service(connection, other);
    ipc_connection_close(other);
    ipc_connection_close(connection);
}

/* The same with queues, a service and a shared segment. */
static void be_user(void *argument)
{
    const int *go = argument;
    char text[64];

    gate_wait(*go);
    ipc_connection *connection = connection_new(), *other = connection_new();
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    queue_new(connection, "step.letters", NULL);
    settings.given = IPC_QUEUE_DEAD_LETTER;
    settings.dead_letter = "step.letters";
    queue_new(connection, "step.queue", &settings);
    ipc_producer *producer = producer_new(connection, "step.queue");
    ipc_consumer *consumer = consumer_new(other, "step.queue", 16),
                 *letters = consumer_new(other, "step.letters", 16);
    EXPECT(ipc_consumer_fd(consumer) >= 0);
    send_numbers(producer, 0, 20, 64);
    receive_acked(consumer, 0, 20);
    settings.given = IPC_QUEUE_ATTEMPTS_MAX;
    settings.attempts_max = 1;
    EXPECT_EQ(ipc_queue_set(connection, "step.queue", &settings, NULL), 0);
    send_numbers(producer, 20, 21, 64);
    struct ipc_queue_message message;
    struct ipc_nack nack = IPC_NACK_INIT;
    EXPECT_EQ(receive_number(consumer, &message), 20);
    EXPECT_EQ(ipc_consumer_nack(consumer, message.delivery, message.delivery, &nack), 0);
    EXPECT_EQ(receive_number(letters, &message), 20);
    EXPECT_EQ(ipc_consumer_ack(letters, message.delivery), 0);
    consumer_end(consumer);
    send_numbers(producer, 21, 25, 64); /* goes with the queue */
    producer_end(producer);
    EXPECT_EQ(ipc_queue_remove(connection, "step.queue", 0, NULL), 0);
    consumer_end(letters);
    EXPECT_EQ(ipc_queue_remove(connection, "step.letters", 0, NULL), 0);

    use_service(connection, other);

    ipc_segment *segment, *same;
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    options.bytes = 4096;
    options.permits = 1;
    options.flags = IPC_SEGMENT_CREATE;
    EXPECT_EQ(ipc_segment_open(&segment, connection, "step.segment", &options, NULL), 0);
    EXPECT_EQ(ipc_segment_acquire(segment, IPC_FOREVER), 0);
    snprintf(ipc_segment_data(segment), 64, "%d", (int)getpid());
    EXPECT_EQ(ipc_segment_open(&same, other, "step.segment", NULL, NULL), 0);
    EXPECT_EQ(ipc_segment_acquire(same, 0), -EAGAIN);
    ipc_segment_release(segment, 0);
    EXPECT_EQ(ipc_segment_acquire(same, IPC_FOREVER), 0);
    snprintf(text, sizeof(text), "%d", (int)getpid());
    EXPECT_EQ(strcmp(ipc_segment_data(same), text), 0);
    ipc_segment_close(same);
    ipc_segment_close(segment);
    ipc_connection_close(other);
    ipc_connection_close(connection);
}

/* ---- at each system call ------------------------------------------------------------------------------------------ */

static void trace(pid_t pid, long options)
{
    EXPECT_EQ(ptrace(PTRACE_SEIZE, pid, NULL, options), 0);
}

/* Kill this ipcd under ipcd-run's eyes, and get hold of the next one before its first instruction. */
static pid_t replace(pid_t ipcd)
{
    unsigned long child;
    int status;

    trace(guarded.run, PTRACE_O_TRACEVFORK);
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    for (;;) {
        EXPECT_EQ(waitpid(guarded.run, &status, __WALL), guarded.run);
        EXPECT(WIFSTOPPED(status));
        if (status >> 8 == (SIGTRAP | PTRACE_EVENT_VFORK << 8))
            break;
        EXPECT_EQ(ptrace(PTRACE_CONT, guarded.run, NULL, WSTOPSIG(status)), 0);
    }
    EXPECT_EQ(ptrace(PTRACE_GETEVENTMSG, guarded.run, NULL, &child), 0);
    EXPECT_EQ(waitpid((pid_t)child, &status, __WALL), (pid_t)child);
    EXPECT_EQ(ptrace(PTRACE_SETOPTIONS, (pid_t)child, NULL, PTRACE_O_TRACESYSGOOD), 0);
    EXPECT_EQ(ptrace(PTRACE_DETACH, guarded.run, NULL, NULL), 0);
    return (pid_t)child;
}

/* Let ipcd, or the `next` one, go on for `stops` system call stops while the client works, then kill it. False: the client
 * was done before. */
static bool kill_at(void (*be)(void *), unsigned stops, bool next)
{
    pid_t ipcd = guarded_pid(&guarded);
    int go = gate_new(), status;
    pid_t client = child_start(be, &go);
    bool done = false;

    gate_open(go);
    if (next) {
        ipcd = replace(ipcd);
    } else {
        trace(ipcd, PTRACE_O_TRACESYSGOOD);
        EXPECT_EQ(ptrace(PTRACE_INTERRUPT, ipcd, NULL, NULL), 0);
        EXPECT_EQ(waitpid(ipcd, &status, __WALL), ipcd);
    }
    for (unsigned i = 0; i < stops && !done; i++) {
        EXPECT_EQ(ptrace(PTRACE_SYSCALL, ipcd, NULL, NULL), 0);
        pid_t who = waitpid(-1, &status, __WALL);
        if (who == client) {
            EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            done = true;
        }
    }
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    while (waitpid(ipcd, &status, __WALL) == ipcd && !WIFSIGNALED(status))
        continue;
    guarded_wait_other(&guarded, ipcd);
    if (!done)
        child_done(client);
    close(go);
    return !done;
}

/* A pair that has nothing to do with it, and what there was before. */
struct bystander {
    ipc_connection *writing, *reading;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    struct broker_counts before;
    unsigned kept;
    uint64_t at;
};

static struct bystander bystander_new(void)
{
    const struct broker as = as_broker();
    struct bystander by = {.writing = connection_new(), .reading = connection_new()};
    int go = gate_new();
    gate_open(go);
    child_done(child_start(be_client, &go)); /* leaves its retained lane */
    close(go);
    by.publisher = publisher_new(by.writing, "bystander", 1 << 14, 0);
    by.subscription = subscription_new(by.reading, "bystander", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(by.publisher, 1, IPC_FOREVER), 1);
    by.before = broker_count(&as);
    by.kept = guarded_kept(&guarded);
    return by;
}

static void bystander_goes_on(struct bystander *by)
{
    const struct broker as = as_broker();
    publish_numbers(by->publisher, by->at, by->at + 20, 64);
    receive_numbers(by->subscription, by->at, by->at + 20, 64);
    by->at += 20;
    broker_settles(&as, &by->before);
    while (guarded_kept(&guarded) != by->kept)
        sched_yield();
}

static void bystander_end(struct bystander *by)
{
    publisher_end(by->publisher);
    subscription_end(by->subscription);
    ipc_connection_close(by->writing);
    ipc_connection_close(by->reading);
}

static bool full(void)
{
    return getenv("IPC_KILL_FULL") != NULL;
}

/* Where to begin with so large steps. */
static unsigned offset(unsigned step)
{
    return (unsigned)getpid() % step;
}

static void at_system_calls(void (*be)(void *), bool next, unsigned step)
{
    struct bystander by = bystander_new();
    unsigned kills = 0, stops = offset(step);

    for (;; stops += step, kills++) {
        watchdog(60, "a kill of ipcd at a system call");
        bystander_goes_on(&by);
        if (!kill_at(be, stops, next))
            break;
    }
    printf("%s ipcd was killed at %u of %u system call stops\n", next ? "the next" : "an", kills, stops);
    EXPECT(stops > 100);
    bystander_end(&by);
}

static void test_at_every_system_call(void **state)
{
    at_system_calls(be_client, false, full() ? 1 : 4);
}

static void test_at_system_calls_of_the_next(void **state)
{
    at_system_calls(be_client, true, full() ? 1 : 31);
}

static void test_calls_at_every_system_call(void **state)
{
    at_system_calls(be_caller, false, full() ? 1 : 13);
}

static void test_calls_at_system_calls_of_the_next(void **state)
{
    at_system_calls(be_caller, true, full() ? 7 : 61);
}

static void test_queues_at_every_system_call(void **state)
{
    at_system_calls(be_user, false, full() ? 5 : 13);
}

static void test_queues_at_system_calls_of_the_next(void **state)
{
    at_system_calls(be_user, true, full() ? 29 : 61);
}

/* ---- after each store --------------------------------------------------------------------------------------------- */

#ifdef STEPS_STORES

static struct steps *steps;

/* Kill ipcd after its `first` store from now on, and the next one after its `second` (0: not). How many died? */
static unsigned kill_after(void (*be)(void *), uint64_t first, uint64_t second)
{
    int go = gate_new();
    pid_t client = child_start(be, &go);
    steps->next = second;
    steps->left = first;
    gate_open(go);
    child_done(client);
    close(go);
    uint64_t left = steps->left, next = steps->next;
    steps->next = steps->left = 0;
    return next != second || (second == 0 && left == 0) ? 1 + (second != 0 && left == 0) : 0;
}

static void after_stores(void (*be)(void *), unsigned step)
{
    struct bystander by = bystander_new();
    unsigned first = 1 + offset(step);

    for (;; first += step) {
        watchdog(60, "a kill of ipcd after a store");
        bystander_goes_on(&by);
        if (kill_after(be, first, 0) == 0)
            break;
    }
    printf("ipcd was killed after stores 1 to %u to shared memory, in steps of %u\n", first - 1, step);
    EXPECT(first > 200);
    bystander_end(&by);
}

static void test_after_every_store(void **state)
{
    after_stores(be_client, full() ? 1 : 4);
}

static void test_queues_after_every_store(void **state)
{
    after_stores(be_user, full() ? 5 : 17);
}

static void test_after_stores_of_the_next(void **state)
{
    struct bystander by = bystander_new();
    uint64_t step = full() ? 7 : 151, deaths = 0, died = 1;

    for (uint64_t first = 50; died > 0; first += step)
        for (uint64_t second = 1; second <= STORES_OF_A_START; second += full() ? 1 : 19) {
            watchdog(60, "a kill of the next ipcd after a store");
            bystander_goes_on(&by);
            died = kill_after(be_client, first, second);
            deaths += died;
            if (died < 2)
                break;
        }
    printf("ipcd was killed after a store, and the next one too: %u deaths\n", (unsigned)deaths);
    EXPECT(deaths > 6);
    bystander_end(&by);
}

/* A writer confirms that it counts a reader, and the reader is told to look again: by a frame, and by its mail. */
static void test_mail_after_every_store(void **state)
{
    struct raw_broker as;
    struct raw_client writer, reader;
    unsigned deaths = 0;

    snprintf(as.address, sizeof(as.address), "%s", guarded.address);
    for (unsigned first = 1; first <= STORES_OF_A_CONFIRM; first++) {
        watchdog(60, "a kill of ipcd with mail to be counted");
        raw_hello(&writer, &as, "writer");
        raw_hello(&reader, &as, "reader");
        raw_advertise(&writer, "mail", 4096, false);
        raw_subscribe(&reader, "mail", 0, 1);
        uint64_t pairing = ((const Ipc__Control__ReaderAdd *)raw_expect(&writer, TYPE(READER_ADD)))->pairing;
        raw_expect(&reader, TYPE(LANE_ADD));
        raw_confirm(&reader, TYPE(LANE_ADD), pairing, 0);
        raw_settle(&reader);
        uint64_t mail = atomic_load(&reader.board->mail);
        steps->left = first;
        raw_confirm(&writer, TYPE(READER_ADD), pairing, 0);
        while (atomic_load(&reader.board->mail) == mail)
            if (raw_recv(&writer, MSG_DONTWAIT) == TYPE(READER_ADD)) /* said again by the next ipcd */
                raw_confirm(&writer, TYPE(READER_ADD), pairing, 0);
            else
                sched_yield();
        deaths += steps->left == 0;
        steps->left = 0;
        raw_disconnect(&writer);
        raw_disconnect(&reader);
    }
    printf("ipcd was killed after %u stores while it had mail to count\n", deaths);
    EXPECT(deaths >= 4);
}

static int setup_steps(void **state)
{
    char path[] = "/tmp/ipc-steps.XXXXXX", helper[256];
    const char *arguments[] = {"--log-level", "error", "--watchdog", "0", "--ipcd", helper, NULL};
    int fd = mkstemp(path);
    EXPECT(fd >= 0 && ftruncate(fd, sizeof(*steps)) == 0);
    steps = mmap(NULL, sizeof(*steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(steps != MAP_FAILED);
    close(fd);
    setenv("IPC_TEST_STEPS", path, 1);
    snprintf(helper, sizeof(helper), "%s/stepped_ipcd_helper", getenv("TEST_HELPER_DIR"));
    watchdog(30, "start");
    guarded_start(&guarded, arguments);
    return 0;
}

static int teardown_steps(void **state)
{
    guarded_stop(&guarded);
    unlink(getenv("IPC_TEST_STEPS"));
    munmap(steps, sizeof(*steps));
    return 0;
}
#endif

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
#ifdef STEPS_STORES
        cmocka_unit_test_setup_teardown(test_mail_after_every_store, setup_steps, teardown_steps),
        cmocka_unit_test_setup_teardown(test_after_every_store, setup_steps, teardown_steps),
        cmocka_unit_test_setup_teardown(test_queues_after_every_store, setup_steps, teardown_steps),
        cmocka_unit_test_setup_teardown(test_after_stores_of_the_next, setup_steps, teardown_steps),
#endif
        cmocka_unit_test_setup_teardown(test_at_every_system_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_at_system_calls_of_the_next, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queues_at_every_system_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queues_at_system_calls_of_the_next, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_at_every_system_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_calls_at_system_calls_of_the_next, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
