/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/frame.h"
#include "proto/layout.h"

#define ARGUMENTS_MAX 16
#define CASE_SECONDS  90

struct broker broker;
rlim_t broker_files;
static pid_t tester; /* the process that cmocka runs in */
static unsigned descriptors_before;

void expect_here(void)
{
    tester = getpid();
}

void expect_failed(const char *file, int line, const char *text, bool numbers, long long left,
                   long long right)
{
    if (numbers)
        fprintf(stderr, "%s:%d: [%d] %s: %lld, %lld\n", file, line, (int)getpid(), text, left, right);
    else
        fprintf(stderr, "%s:%d: [%d] %s\n", file, line, (int)getpid(), text);
    if (getpid() == tester && gettid() == tester)
        _fail(file, line);
    _exit(1);
}

/* ---- brokers --------------------------------------------------------------------------------------------- */

void broker_limit_files(void)
{
    const struct rlimit files = {.rlim_cur = broker_files, .rlim_max = broker_files};
    if (broker_files > 0 && setrlimit(RLIMIT_NOFILE, &files) < 0)
        _exit(127);
}

static void exec_broker(const struct broker *made, const char *const *arguments, const char *notify)
{
    const char *program = getenv("IPCD_BIN"), *source = getenv("IPC_SOURCE_DIR");
    char config[512];
    char *argv[ARGUMENTS_MAX + 6] = {(char *)"ipcd", (char *)"--address", (char *)(uintptr_t)made->address,
                                     (char *)"--config", config};
    snprintf(config, sizeof(config), "%s/tests/support/everybody.conf", source ? source : ".");
    int n = 5;
    if (!getenv("IPC_TEST_LOG")) {
        argv[n++] = (char *)"--log-level";
        argv[n++] = (char *)"error";
    }
    for (int i = 0; arguments && arguments[i] && n < ARGUMENTS_MAX + 5; i++)
        argv[n++] = (char *)(uintptr_t)arguments[i];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    broker_limit_files();
    setenv("NOTIFY_SOCKET", notify, 1);
    unsetenv("IPC_ADDRESS");
    execv(program ? program : "ipcd", argv);
    perror(program ? program : "IPCD_BIN is not set");
    _exit(127);
}

static void bind_to(int fd, const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    EXPECT_EQ(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
}

void broker_start(struct broker *made, const char *const *arguments)
{
    char path[96], text[512];
    *made = (struct broker){.folder = "/tmp/ipc-test-XXXXXX"};
    EXPECT(mkdtemp(made->folder) != NULL);
    snprintf(path, sizeof(path), "%s/ipcd", made->folder);
    EXPECT_EQ(mkdir(path, 0700), 0);
    snprintf(made->address, sizeof(made->address), "%s/ipcd/socket", made->folder);
    snprintf(path, sizeof(path), "%s/notify", made->folder);
    int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    EXPECT(notify >= 0);
    bind_to(notify, path);
    made->pid = fork_child();
    if (made->pid == 0)
        exec_broker(made, arguments, path);
    EXPECT(made->pid > 0);
    ssize_t size;
    do {
        size = recv(notify, text, sizeof(text) - 1, 0);
        text[size > 0 ? size : 0] = '\0';
    } while (size >= 0 && !strstr(text, "READY=1"));
    close(notify);
    unlink(path);
    setenv("IPC_ADDRESS", made->address, 1);
}

static void remove_folder(struct broker *made, bool socket_too)
{
    char path[96];
    snprintf(path, sizeof(path), "%s/ipcd", made->folder);
    if (socket_too) {
        char lock[96];
        snprintf(lock, sizeof(lock), "%s.lock", made->address);
        unlink(made->address);
        unlink(lock);
    }
    EXPECT_EQ(rmdir(path), 0);
    EXPECT_EQ(rmdir(made->folder), 0);
}

void broker_stop(struct broker *made)
{
    kill(made->pid, SIGTERM);
    int status = wait_child(made->pid);
    made->pid = 0;
    remove_folder(made, false);
    EXPECT_EQ(status, 0);
}

void broker_kill(struct broker *made)
{
    child_kill(made->pid);
    broker_forget(made);
}

void broker_forget(struct broker *made)
{
    made->pid = 0;
    remove_folder(made, true);
}

int broker_socket(const struct broker *made)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", made->address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    EXPECT(fd >= 0);
    EXPECT_EQ(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    return fd;
}

static void exchange(int fd, struct ipc_frame *frame, struct ipc_frame_arena *arena, unsigned type,
                     const ProtobufCMessage *message, unsigned reply)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, type, message);
    EXPECT(size > 0);
    EXPECT_EQ(send(fd, packet, (size_t)size, MSG_NOSIGNAL), size);
    ssize_t got = recv(fd, packet, sizeof(packet), 0);
    EXPECT(got > 0);
    EXPECT_EQ(ipc_frame_unpack(frame, arena, packet, (size_t)got), 0);
    if (frame->type == IPC__CONTROL__TYPE__FAILURE)
        fprintf(stderr, "broker: %s\n", ((const Ipc__Control__Failure *)frame->message)->text);
    EXPECT_EQ(frame->type, reply);
}

static struct ipc_frame_arena arena; /* of the session that counts */

int broker_counter_open(const struct broker *made)
{
    struct ipc_frame frame;
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char *)"counts";
    hello.admin = true;
    int fd = broker_socket(made);
    exchange(fd, &frame, &arena, IPC__CONTROL__TYPE__HELLO, &hello.base, IPC__CONTROL__TYPE__WELCOME);
    return fd;
}

struct broker_counts broker_counter_ask(int fd)
{
    struct ipc_frame frame;
    Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    exchange(fd, &frame, &arena, IPC__CONTROL__TYPE__STATUS, &status.base, IPC__CONTROL__TYPE__STATUS_REPLY);
    const Ipc__Control__StatusReply *reply = (const void *)frame.message;
    return (struct broker_counts){reply->sessions - 1, reply->topics,   reply->subscriptions,
                                  reply->pairings,     reply->segments, reply->segment_bytes,
                                  reply->descriptors};
}

void broker_counter_close(int fd)
{
    struct ipc_frame frame;
    Ipc__Control__Done goodbye = IPC__CONTROL__DONE__INIT;
    exchange(fd, &frame, &arena, IPC__CONTROL__TYPE__GOODBYE, &goodbye.base, IPC__CONTROL__TYPE__DONE);
    close(fd);
}

struct broker_counts broker_count(const struct broker *made)
{
    int fd = broker_counter_open(made);
    struct broker_counts counts = broker_counter_ask(fd);
    broker_counter_close(fd);
    return counts;
}

void broker_settles(const struct broker *made, const struct broker_counts *then)
{
    /* In one session: who asks without end must not connect without end. */
    int fd = broker_counter_open(made);
    struct broker_counts now;
    do
        now = broker_counter_ask(fd);
    while (memcmp(&now, then, sizeof(now)) != 0);
    broker_counter_close(fd);
}

/* ---- fixtures -------------------------------------------------------------------------------------------- */

int broker_setup(void **state)
{
    (void)state;
    expect_here();
    descriptors_before = descriptors_open();
    watchdog(CASE_SECONDS, "a case of this program");
    broker_start(&broker, NULL);
    return 0;
}

int broker_teardown(void **state)
{
    (void)state;
    if (broker.pid)
        broker_stop(&broker);
    watchdog(0, "");
    EXPECT_EQ(descriptors_open(), descriptors_before);
    EXPECT(!children_left());
    return 0;
}

int run_variants(char **argv, int (*tests)(void))
{
    static const char *const variants[] = {"waitv", "membarrier", "peerpidfd", "noexec_seal",
                                           "membarrier,waitv,peerpidfd,noexec_seal"};
    if (getenv("IPC_WITHOUT"))
        return tests();
    int failed = tests();
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        pid_t child = fork_child();
        if (child == 0) {
            setenv("IPC_WITHOUT", variants[i], 1);
            printf("---- without %s\n", variants[i]);
            fflush(stdout);
            execv("/proc/self/exe", argv);
            _exit(127);
        }
        failed += wait_child(child) != 0;
    }
    return failed;
}

/* ---- processes ------------------------------------------------------------------------------------------- */

pid_t child_start(void (*work)(void *argument), void *argument)
{
    fflush(NULL);
    pid_t child = fork_child();
    EXPECT(child >= 0);
    if (child == 0) {
        work(argument);
        _exit(0);
    }
    return child;
}

void child_done(pid_t child)
{
    EXPECT_EQ(wait_child(child), 0);
}

void child_kill(pid_t child)
{
    kill(child, SIGKILL);
    EXPECT_EQ(wait_child(child), 128 + SIGKILL);
}

void *shared_new(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    return memory;
}

void shared_free(void *memory, size_t size)
{
    munmap(memory, size);
}

int gate_new(void)
{
    int gate = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    EXPECT(gate >= 0);
    return gate;
}

void gate_open(int gate)
{
    EXPECT_EQ(eventfd_write(gate, 1), 0);
}

void gate_wait(int gate)
{
    eventfd_t one;
    int result;
    do
        result = eventfd_read(gate, &one);
    while (result < 0 && errno == EINTR);
    EXPECT_EQ(result, 0);
}

/* ---- handles --------------------------------------------------------------------------------------------- */

ipc_connection *connection_new(void)
{
    struct ipc_connection_options options = IPC_CONNECTION_OPTIONS_INIT;
    ipc_connection *connection = NULL;
    struct ipc_error error = {0};
    options.timeout_ns = SECONDS(60); /* machines stall */
    int result = ipc_connection_open(&connection, NULL, &options, &error);
    if (result < 0)
        fprintf(stderr, "connect: %s\n", error.text);
    EXPECT_EQ(result, 0);
    return connection;
}

ipc_publisher *publisher_new(ipc_connection *connection, const char *topic, uint32_t ring_size,
                             unsigned flags)
{
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_publisher *publisher = NULL;
    options.ring_size = ring_size;
    options.flags = flags;
    options.block_max_ns = IPC_FOREVER;
    int result = ipc_publisher_open(&publisher, connection, topic, &options, &error);
    if (result < 0)
        fprintf(stderr, "%s: %s\n", topic, error.text);
    EXPECT_EQ(result, 0);
    return publisher;
}

ipc_subscription *subscription_new(ipc_connection *connection, const char *pattern, enum ipc_start start,
                                   enum ipc_slow slow, unsigned flags)
{
    struct ipc_subscription_options options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    struct ipc_error error = {0};
    ipc_subscription *subscription = NULL;
    options.start = start;
    options.slow = slow;
    options.flags = flags;
    int result = ipc_subscription_open(&subscription, connection, pattern, &options, &error);
    if (result < 0)
        fprintf(stderr, "%s: %s\n", pattern, error.text);
    EXPECT_EQ(result, 0);
    return subscription;
}

void publisher_end(ipc_publisher *publisher)
{
    struct ipc_publisher_stats stats;
    EXPECT_EQ(ipc_publisher_stats(publisher, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    ipc_publisher_close(publisher);
}

void subscription_end(ipc_subscription *subscription)
{
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT_EQ(stats.net, 0);
    ipc_subscription_close(subscription);
}

struct ipc_event event_wait(ipc_connection *connection, enum ipc_event_kind kind)
{
    struct ipc_event event = {0};
    while (event.kind != kind) {
        int result = ipc_connection_next_event(connection, &event);
        EXPECT(result >= 0);
        if (result == 0)
            ipc_connection_dispatch(connection);
    }
    return event;
}

void message_fill(void *buffer, size_t size, uint64_t number)
{
    unsigned char *bytes = buffer;
    memcpy(bytes, &number, sizeof(number));
    for (size_t i = sizeof(number); i < size; i++)
        bytes[i] = (unsigned char)(number * 31 + i);
}

bool message_holds(const void *buffer, size_t size, uint64_t number)
{
    const unsigned char *bytes = buffer;
    uint64_t told;
    if (size < sizeof(told))
        return false;
    memcpy(&told, bytes, sizeof(told));
    if (told != number)
        return false;
    for (size_t i = sizeof(number); i < size; i++)
        if (bytes[i] != (unsigned char)(number * 31 + i))
            return false;
    return true;
}

void publish_numbers(ipc_publisher *publisher, uint64_t from, uint64_t to, size_t size)
{
    unsigned char buffer[4096];
    EXPECT(size >= 8 && size <= sizeof(buffer));
    for (uint64_t number = from; number < to; number++) {
        message_fill(buffer, size, number);
        EXPECT_EQ(ipc_publisher_publish(publisher, buffer, size), 0);
    }
}

void receive_numbers(ipc_subscription *subscription, uint64_t from, uint64_t to, size_t size)
{
    unsigned char buffer[4096];
    for (uint64_t number = from; number < to; number++) {
        struct ipc_message message;
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, IPC_FOREVER),
                  size);
        EXPECT_EQ(message.lost, 0);
        EXPECT_EQ(*(uint64_t *)(void *)buffer, number);
        EXPECT(message_holds(buffer, size, number));
    }
}
