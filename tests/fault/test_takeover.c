/* SPDX-License-Identifier: Apache-2.0
 *
 * The next ipcd, refused its n-th allocation or system call of each kind while it takes over from one that was killed. It
 * takes over all the same, or says why not and leaves everything to another one. No session is lost, and all is there
 * again: lanes, bells, a queue, a service, a segment. One that never succeeds is not started for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/fault/fault.h"
#include "tests/support/fault/series.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#define RING_SIZE   65536u
#define SIZE        64u
#define EACH        4u
#define STARTS_MAX  3u  /* of which a fault that lasts spoils all; ipcd-run drops what it keeps after five */
#define FAULT_FD    900 /* what ipcd inherits comes below */
#define STARTS_LOST 5u
#define STARTS_OVER 10u
#define BACKOFF_NS  SECONDS(2) /* ipcd-run pauses 5 s in all before it gives up */

static struct guarded guarded;
static FILE *log_file;

/* ---- what is there ------------------------------------------------------------------------------------------- */

struct population {
    ipc_connection *out, *in;
    ipc_publisher *publisher;
    ipc_subscription *exact, *wild;
    ipc_producer *producer;
    ipc_consumer *consumer;
    ipc_client *client;
    ipc_server *server;
    ipc_segment *made, *found;
    int permit;
    uint64_t sent;
};

static void populate(struct population *all)
{
    struct ipc_segment_options segment = IPC_SEGMENT_OPTIONS_INIT;
    segment.bytes = RING_SIZE;
    segment.flags = IPC_SEGMENT_CREATE;
    *all = (struct population){.out = connection_new(), .in = connection_new()};
    all->exact = subscription_new(all->in, "take.exact", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    all->wild = subscription_new(all->in, "take.*", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    EXPECT(ipc_subscription_fd(all->wild) >= 0);
    all->publisher = publisher_new(all->out, "take.exact", RING_SIZE, 0);
    queue_new(all->out, "take.queue", NULL);
    all->producer = producer_new(all->out, "take.queue");
    all->consumer = consumer_new(all->in, "take.queue", 0);
    EXPECT(ipc_consumer_fd(all->consumer) >= 0);
    EXPECT_EQ(ipc_server_open(&all->server, all->in, "take.service", NULL, NULL), 0);
    EXPECT_EQ(ipc_client_open(&all->client, all->out, "take.service", NULL, NULL), 0);
    EXPECT_EQ(ipc_segment_open(&all->made, all->out, "take.segment", &segment, NULL), 0);
    EXPECT_EQ(ipc_segment_open(&all->found, all->in, "take.segment", NULL, NULL), 0);
    all->permit = ipc_segment_acquire(all->made, IPC_FOREVER);
    EXPECT(all->permit >= 0);
    EXPECT_EQ(ipc_publisher_wait_readers(all->publisher, 2, IPC_FOREVER), 2);
}

static void leave(struct population *all)
{
    ipc_connection_close(all->out);
    ipc_connection_close(all->in);
}

static void call_once(const struct population *all)
{
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_request *request;
    struct ipc_reply reply = {0};
    ipc_call *call;
    uint64_t number = all->sent;
    how.flags = IPC_CALL_WAIT;
    how.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_call_start(&call, all->client, &number, sizeof(number), &how), 0);
    EXPECT_EQ(ipc_server_receive(all->server, NULL, 0, &request, IPC_FOREVER), sizeof(number));
    EXPECT_EQ(ipc_request_reply(request, &number, sizeof(number), NULL), 0);
    EXPECT_EQ(ipc_call_wait(call, IPC_FOREVER), 0);
    EXPECT_EQ(ipc_call_next(call, &reply, 0), 1);
    EXPECT(reply.size == sizeof(number) && memcmp(reply.data, &number, sizeof(number)) == 0);
    ipc_call_free(call);
}

/* The wild subscription waits by its descriptor. */
static void receive_by_bell(ipc_subscription *subscription, uint64_t from, uint64_t to)
{
    struct pollfd wait = {.fd = ipc_subscription_fd(subscription), .events = POLLIN};
    while (from < to) {
        unsigned char message[SIZE];
        struct ipc_message about;
        ssize_t size = ipc_subscription_receive(subscription, message, sizeof(message), &about, 0);
        if (size == -EAGAIN) {
            EXPECT_EQ(poll(&wait, 1, -1), 1);
            continue;
        }
        EXPECT_EQ(size, sizeof(message));
        EXPECT(about.lost == 0 && message_holds(message, sizeof(message), from));
        from++;
    }
}

/* Everybody reaches everybody, in the sessions that were there. */
static void use(struct population *all)
{
    uint64_t from = all->sent, to = all->sent += EACH;
    publish_numbers(all->publisher, from, to, SIZE);
    receive_numbers(all->exact, from, to, SIZE);
    receive_by_bell(all->wild, from, to);
    send_numbers(all->producer, from, to, SIZE);
    receive_acked(all->consumer, from, to);
    call_once(all);
    EXPECT_EQ(ipc_segment_acquire(all->found, 0), -EAGAIN);
    EXPECT_EQ(ipc_segment_release(all->made, all->permit), 0);
    int permit = ipc_segment_acquire(all->found, IPC_FOREVER);
    EXPECT(permit >= 0);
    EXPECT_EQ(ipc_segment_release(all->found, permit), 0);
    all->permit = ipc_segment_acquire(all->made, IPC_FOREVER);
    EXPECT(all->permit >= 0);
}

/* And so does one that comes new. */
static void join(const struct population *all)
{
    ipc_connection *connection = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "take.new", RING_SIZE, 0);
    publish_numbers(publisher, 0, EACH, SIZE);
    receive_by_bell(all->wild, 0, EACH);
    ipc_connection_close(connection);
}

/* Nothing is left of those who came; the wild subscription lets go of a lane when it looks. */
static void settle(const struct population *all, const struct broker_counts *before)
{
    int counter = broker_counter_open(&broker);
    struct broker_counts now;
    char byte;
    do {
        EXPECT_EQ(ipc_subscription_receive(all->wild, &byte, 1, NULL, 0), -EAGAIN);
        now = broker_counter_ask(counter);
    } while (memcmp(&now, before, sizeof(now)) != 0);
    broker_counter_close(counter);
}

/* ---- one takeover --------------------------------------------------------------------------------------------- */

/* Asked while nobody is there to answer. */
struct question {
    ipc_connection *connection;
    ipc_publisher *publisher;
    pthread_t thread;
    struct ipc_error error;
    int result;
};

static void *ask(void *argument)
{
    struct question *question = argument;
    question->result =
        ipc_publisher_open(&question->publisher, question->connection, "asked", NULL, &question->error);
    return NULL;
}

/* The child of ipcd-run that is ipcd; 0: there is none now. */
static pid_t ipcd_now(void)
{
    char path[64];
    int pid = 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)guarded.run, (int)guarded.run);
    FILE *children = fopen(path, "re");
    EXPECT(children != NULL);
    if (fscanf(children, "%d", &pid) != 1)
        pid = 0;
    fclose(children);
    return pid;
}

/* ipcd-run stands still until the fault is armed, so that it meets the next ipcd alone. */
static void kill_ipcd(const struct series *series, struct question *question)
{
    int status;
    pid_t ipcd = ipcd_now();
    struct pollfd dead = {.fd = pidfd_open(ipcd, 0), .events = POLLIN};
    EXPECT(dead.fd >= 0);
    EXPECT_EQ(kill(guarded.run, SIGSTOP), 0);
    EXPECT_EQ(waitpid(guarded.run, &status, WUNTRACED), guarded.run);
    EXPECT(WIFSTOPPED(status));
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    EXPECT_EQ(poll(&dead, 1, -1), 1);
    close(dead.fd);
    if (question)
        EXPECT_EQ(pthread_create(&question->thread, NULL, ask, question), 0);
    atomic_store(&fault->begun, 0);
    atomic_store(&fault->left, 0);
    atomic_store(&fault->asleep, 0);
    series_arm(series);
    EXPECT_EQ(kill(guarded.run, SIGCONT), 0);
}

/* How many lines since the last time are ipcd's own, or have that text in them. */
static unsigned said(const char *text)
{
    char line[2048];
    unsigned n = 0;
    clearerr(log_file);
    while (fgets(line, sizeof(line), log_file)) {
        if (getenv("IPC_FAULT_TELL"))
            fputs(line, stderr);
        n += text ? strstr(line, text) != NULL : strstr(line, " program=ipcd-run ") == NULL;
    }
    return n;
}

static void take_over(struct series *series, struct population *all, const struct broker_counts *before)
{
    struct question question = {.connection = all->out};
    (void)said(NULL);
    kill_ipcd(series, &question);
    while (!atomic_load(&fault->asleep)) { /* with nothing left to do */
        if (series->lasting && atomic_load(&fault->begun) >= STARTS_MAX)
            fault_disarm();
        EXPECT_EQ(waitpid(guarded.run, NULL, WNOHANG), 0);
        sched_yield();
    }
    series_looked(series);
    pthread_join(question.thread, NULL);
    unsigned begun = atomic_load(&fault->begun);
    unsigned reasons = said(NULL);
    EXPECT_EQ(atomic_load(&fault->left), begun - 1); /* none of them crashed */
    EXPECT(begun == 1 || reasons > 0);
    if (getenv("IPC_FAULT_TELL"))
        fprintf(stderr, "   seen %u times, first at 0x%llx; %u starts\n", series->hits,
                (unsigned long long)atomic_load(&fault->where), begun);
    if (question.result == 0) {
        ipc_publisher_close(question.publisher);
    } else {
        EXPECT(series->hits > 0 && question.result != -EPIPE && question.result != -ETIMEDOUT);
        EXPECT(question.error.text[0] != '\0');
    }
    use(all);
    join(all);
    settle(all, before);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static int setup(void **state)
{
    static const char *arguments[] = {"--log-level", "warning", "--ipcd", NULL, NULL};
    char path[] = "/tmp/ipc-takeover-XXXXXX";
    int fd = mkstemp(path), own = dup(STDERR_FILENO);
    (void)state;
    expect_here();
    arguments[3] = getenv("IPCD_FAULT_BIN");
    EXPECT(fd >= 0 && own >= 0);
    log_file = fopen(path, "re");
    EXPECT(log_file && unlink(path) == 0);
    watchdog(60, "starting");
    fault_disarm();
    fcntl(fd, F_SETFL, O_APPEND);
    dup2(fd, STDERR_FILENO);
    guarded_start(&guarded, arguments);
    dup2(own, STDERR_FILENO);
    close(own);
    close(fd);
    snprintf(broker.address, sizeof(broker.address), "%s", guarded.address);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    watchdog(0, "");
    fclose(log_file);
    guarded_stop(&guarded);
    return 0;
}

static void test_takeover(void **state)
{
    struct population all;
    struct broker_counts before;
    struct series series;
    (void)state;
    populate(&all);
    use(&all);
    before = broker_count(&broker);
    series_begin(&series, NULL);
    while (series_next(&series))
        take_over(&series, &all, &before);
    series_end(&series);
    leave(&all);
}

/* Whoever works on that request dies. Its session ends, with the reason, and nobody else's. */
static void test_a_request_that_kills(void **state)
{
    struct broker_counts before;
    struct population all;
    ipc_connection *poison;
    ipc_publisher *publisher;
    struct ipc_error error = {0};
    (void)state;
    populate(&all);
    use(&all);
    before = broker_count(&broker);
    poison = connection_new();
    atomic_store(&fault->begun, 0);
    fault_arm(FAULT_FALLOCATE, 1, UINT32_MAX, FAULT_DEATH);
    EXPECT_EQ(ipc_publisher_open(&publisher, poison, "take.poison", NULL, &error), -EPIPE);
    EXPECT_EQ(fault_disarm(), 3);
    EXPECT_EQ(atomic_load(&fault->begun), 3);
    EXPECT(strstr(error.text, "died each time"));
    while (said("reason=poison") == 0) /* it hears of it first */
        sched_yield();
    ipc_connection_close(poison);
    use(&all);
    join(&all);
    settle(&all, &before);
    leave(&all);
}

/* A lane that a subscription could not be joined with for want of memory, which still lasts when ipcd is killed. */
static void test_missed(void **state)
{
    struct series series = {.kind = FAULT_ALLOC, .lasting = true};
    ipc_publisher *publisher = NULL;
    struct population all;
    (void)state;
    populate(&all);
    do {
        ipc_publisher_close(publisher);
        publisher = NULL;
        (void)said(NULL);
        series.at++;
        series_arm(&series);
        int result = ipc_publisher_open(&publisher, all.out, "take.missed", NULL, NULL);
        EXPECT(result == 0 || (result == -ENOMEM && fault_disarm() > 0));
        EXPECT(result < 0 || atomic_load(&fault->hits) > 0);
    } while (!publisher || said("for now") == 0);
    kill_ipcd(&(const struct series){.kind = FAULT_POLL, .at = UINT32_MAX}, NULL);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, EACH, SIZE);
    receive_by_bell(all.wild, 0, EACH);
    leave(&all);
}

/* None of the next ones succeeds until what was kept is dropped: the sessions are over and told so, others begin. */
static void test_dropped(void **state)
{
    const struct series series = {.kind = FAULT_ALLOC, .lasting = true, .at = 1};
    struct population all;
    (void)state;
    populate(&all);
    kill_ipcd(&series, NULL);
    while (atomic_load(&fault->begun) <= STARTS_LOST)
        sched_yield();
    EXPECT(fault_disarm() > 0);
    (void)event_wait(all.in, IPC_EVENT_ENDED);
    EXPECT_EQ(ipc_publisher_wait_readers(all.publisher, 3, IPC_FOREVER), -EPIPE);
    leave(&all);
    populate(&all);
    use(&all);
    leave(&all);
}

static void test_given_up(void **state)
{
    const struct series series = {.kind = FAULT_ALLOC, .lasting = true, .at = 1};
    struct timespec from, to;
    struct population all;
    int status;
    (void)state;
    populate(&all);
    (void)said(NULL);
    clock_gettime(CLOCK_MONOTONIC, &from);
    kill_ipcd(&series, NULL);
    EXPECT_EQ(waitpid(guarded.run, &status, 0), guarded.run);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 124);
    clock_gettime(CLOCK_MONOTONIC, &to);
    EXPECT(SECONDS(to.tv_sec - from.tv_sec) + to.tv_nsec - from.tv_nsec > BACKOFF_NS);
    EXPECT_EQ(atomic_load(&fault->begun), STARTS_OVER);
    EXPECT_EQ(atomic_load(&fault->left), STARTS_OVER);
    EXPECT(said(NULL) >= STARTS_OVER);
    EXPECT(fault_disarm() > 0);
    EXPECT_EQ(ipc_publisher_wait_readers(all.publisher, 3, IPC_FOREVER), -EPIPE);
    leave(&all);
    EXPECT_EQ(rmdir(guarded.folder), 0);
}

static int teardown_ended(void **state)
{
    (void)state;
    watchdog(0, "");
    fclose(log_file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_takeover, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_request_that_kills, setup, teardown),
        cmocka_unit_test_setup_teardown(test_missed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_given_up, setup, teardown_ended),
    };
    char text[16];
    EXPECT(getenv("IPCD_FAULT_BIN") != NULL);
    fault = fault_share();
    snprintf(text, sizeof(text), "%d", fcntl(atoi(getenv("IPC_FAULT")), F_DUPFD, FAULT_FD));
    setenv("IPC_FAULT", text, 1);
    cmocka_set_test_filter(getenv("IPC_FAULT_CASE"));
    return cmocka_run_group_tests_name("fault_takeover", tests, NULL, NULL);
}
