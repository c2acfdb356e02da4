/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/gateway.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/inspect.h"
#include "bench/topic.h"

#define BATCH      64u
#define RECEIVE    256u
#define START_MS   60000
#define QUEUE_SIZE (1u << 23)
#define STEP       64u /* messages between two looks of the one who is waited for */

/* ---- the program ----------------------------------------------------------------------------------------- */

static _Noreturn void be_gateway(const struct gateway_program *gateway, const char *name, pid_t parent)
{
    char self[PATH_MAX], path[PATH_MAX + 64], config[96], notify[96];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || length <= 0)
        _exit(1);
    self[length] = 0;
    char *slash = strrchr(self, '/');
    *slash = 0;
    snprintf(path, sizeof(path), "%s/../broker/%s", self, name);
    snprintf(config, sizeof(config), "%s/conf", gateway->folder);
    snprintf(notify, sizeof(notify), "%s/notify", gateway->folder);
    setenv("NOTIFY_SOCKET", notify, 1);
    execl(path, name, "--config", config, "--log-level=error", (char *)NULL);
    fprintf(stderr, "ipc-bench: %s: %s\n", path, strerror(errno));
    _exit(127);
}

static int wait_ready(int fd, const char *name)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    char text[512] = "";

    while (!strstr(text, "READY=1")) {
        if (poll(&poll_fd, 1, START_MS) <= 0) {
            fprintf(stderr, "ipc-bench: %s does not become ready\n", name);
            return -1;
        }
        ssize_t size = recv(fd, text, sizeof(text) - 1, 0);
        text[size > 0 ? size : 0] = 0;
    }
    return 0;
}

static int start(struct gateway_program *gateway, const char *name, const char *config, int fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[96];
    pid_t parent = getpid();

    snprintf(path, sizeof(path), "%s/conf", gateway->folder);
    FILE *file = fopen(path, "we");
    bool written = file && fputs(config, file) >= 0;
    if (file)
        written = fclose(file) == 0 && written;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/notify", gateway->folder);
    if (!written || fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        fprintf(stderr, "ipc-bench: %s: %s\n", path, strerror(errno));
        return -1;
    }
    fflush(NULL);
    gateway->pid = fork();
    if (gateway->pid == 0)
        be_gateway(gateway, name, parent);
    return gateway->pid < 0 ? -1 : wait_ready(fd, name);
}

int gateway_start(struct gateway_program *gateway, const char *name, const char *config)
{
    *gateway = (struct gateway_program){.folder = "/tmp/ipc-bench-XXXXXX"};
    if (!mkdtemp(gateway->folder)) {
        fprintf(stderr, "ipc-bench: %s: %s\n", gateway->folder, strerror(errno));
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int result = start(gateway, name, config, fd);
    if (fd >= 0)
        close(fd);
    if (result < 0)
        gateway_stop(gateway);
    return result;
}

void gateway_stop(struct gateway_program *gateway)
{
    static const char *const files[] = {"conf", "notify"};
    char path[96];

    if (gateway->pid > 0) {
        kill(gateway->pid, SIGTERM);
        waitpid(gateway->pid, NULL, 0);
    }
    for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
        snprintf(path, sizeof(path), "%s/%s", gateway->folder, files[i]);
        unlink(path);
    }
    rmdir(gateway->folder);
}

void gateway_idle(const struct gateway_program *gateway, double *ret_ticks, double *ret_sleeps)
{
    struct inspection before, after;
    const struct timespec settle = {.tv_nsec = 500000000}, idle = {.tv_sec = 2};

    nanosleep(&settle, NULL); /* it may be about to sleep only now, after what was last said to it */
    double sleeps = inspect_sleeps(gateway->pid);
    bool seen = inspect(&before, gateway->pid) == 0;
    nanosleep(&idle, NULL);
    seen = seen && inspect(&after, gateway->pid) == 0;
    *ret_ticks = seen ? (double)(after.cpu_ticks - before.cpu_ticks) : BENCH_NONE;
    *ret_sleeps = inspect_sleeps(gateway->pid) - sleeps;
}

/* ---- the product's ends ---------------------------------------------------------------------------------- */

static int make_queues(struct bench_seat *seat, void *argument)
{
    const char *const *names = argument;
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_error error;
    ipc_connection *connection;

    settings.given = IPC_QUEUE_BYTES_MAX;
    settings.bytes_max = QUEUE_SIZE;
    if (topic_connect(seat, &connection) < 0)
        return -1;
    for (; *names; names++) {
        ipc_queue_remove(connection, *names, 0, NULL);
        if (ipc_queue_create(connection, *names, &settings, 0, &error) < 0)
            return bench_fail(seat, "%s", error.text);
    }
    ipc_connection_close(connection);
    return 0;
}

int gateway_queues(const char *const *names)
{
    struct bench_role role = {BENCH_ANYWHERE, make_queues, (void *)(uintptr_t)names};

    return bench_play(&role, 1, NULL);
}

void gateway_taken(const struct gateway_stream *stream, uint64_t taken)
{
    if (stream->taken && (taken % STEP == 0 || taken == stream->count))
        atomic_store_explicit(stream->taken, taken, memory_order_relaxed);
}

void gateway_pace(const struct gateway_stream *stream, uint64_t sent)
{
    const struct timespec nap = {.tv_nsec = 100000};

    while (stream->taken && sent - atomic_load_explicit(stream->taken, memory_order_relaxed) >= GATEWAY_AHEAD)
        nanosleep(&nap, NULL);
}

static int fail(struct bench_seat *seat, const char *what, int64_t result)
{
    return bench_fail(seat, "%s: %s", what, strerror((int)-result));
}

int gateway_send(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    unsigned char data[BATCH][GATEWAY_SIZE] = {{0}};
    struct iovec pieces[BATCH];
    ipc_connection *connection;
    ipc_publisher *publisher = NULL;
    ipc_producer *producer = NULL;
    struct ipc_error error = {.text = ""};

    if (topic_connect(seat, &connection) < 0)
        return -1;
    if (stream->topic && topic_publisher(seat, &publisher, connection, stream->topic, 1u << 18) < 0)
        return -1;
    if (stream->topic && ipc_publisher_wait_readers(publisher, 1, INT64_C(30000000000)) < 0)
        return bench_fail(seat, "the gateway does not read %s", stream->topic);
    if (stream->queue && ipc_producer_open(&producer, connection, stream->queue, NULL, &error) < 0)
        return bench_fail(seat, "producer: %s", error.text);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count;) {
        size_t now = stream->count - n < BATCH ? (size_t)(stream->count - n) : BATCH;

        gateway_pace(stream, n);
        for (size_t i = 0; i < now; i++) {
            uint64_t number = n + i;
            memcpy(data[i], &number, sizeof(number));
            pieces[i] = (struct iovec){data[i], GATEWAY_SIZE};
        }
        ssize_t sent = publisher ? ipc_publisher_publish_batch(publisher, pieces, now, 0)
                                 : ipc_producer_send_batch(producer, pieces, now, NULL, IPC_FOREVER, NULL);
        if (sent < 0)
            return fail(seat, "send", sent);
        n += (uint64_t)sent;
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

static int check(struct bench_seat *seat, const void *data, size_t size, uint64_t wanted)
{
    uint64_t got = 0;

    if (size == GATEWAY_SIZE)
        memcpy(&got, data, sizeof(got));
    return size == GATEWAY_SIZE && got == wanted
               ? 0
               : bench_fail(seat, "message %llu of %zu bytes instead of %llu", (unsigned long long)got, size,
                            (unsigned long long)wanted);
}

static int receive_topic(struct bench_seat *seat, const struct gateway_stream *stream,
                         ipc_connection *connection)
{
    unsigned char data[GATEWAY_SIZE];
    ipc_subscription *subscription;

    if (topic_subscription(seat, &subscription, connection, stream->topic, IPC_SPIN_ADAPTIVE) < 0)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; gateway_taken(stream, ++n)) {
        ssize_t size = ipc_subscription_receive(subscription, data, sizeof(data), NULL, IPC_FOREVER);

        if (size < 0)
            return fail(seat, "receive", size);
        if (check(seat, data, (size_t)size, n) < 0)
            return -1;
    }
    bench_end(seat);
    return 0;
}

static int receive_queue(struct bench_seat *seat, const struct gateway_stream *stream,
                         ipc_connection *connection)
{
    struct ipc_queue_message messages[RECEIVE];
    size_t capacity = RECEIVE * (GATEWAY_SIZE + 64);
    unsigned char *buffer = bench_alloc(capacity);
    ipc_consumer *consumer;
    struct ipc_error error;

    if (ipc_consumer_open(&consumer, connection, stream->queue, NULL, &error) < 0)
        return bench_fail(seat, "consumer: %s", error.text);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count;) {
        ssize_t count =
            ipc_consumer_receive_batch(consumer, buffer, capacity, messages, RECEIVE, IPC_FOREVER);

        if (count < 0)
            return fail(seat, "receive", count);
        for (ssize_t i = 0; i < count; i++) {
            if (check(seat, messages[i].data, messages[i].size, n) < 0)
                return -1;
            gateway_taken(stream, ++n);
        }
        int result = ipc_consumer_ack_until(consumer, messages[count - 1].delivery);
        if (result < 0)
            return fail(seat, "ack", result);
    }
    bench_end(seat);
    free(buffer);
    return 0;
}

int gateway_receive(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    ipc_connection *connection;

    if (topic_connect(seat, &connection) < 0 ||
        (stream->topic ? receive_topic : receive_queue)(seat, stream, connection) < 0)
        return -1;
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}
