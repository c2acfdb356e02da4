/* SPDX-License-Identifier: Apache-2.0
 *
 * One user floods the broker in every way at once (connects, declarations, bytes, answers and messages that it does not read),
 * while an innocent pair exchanges messages and declares things: none of that is refused or lost. How long their round
 * trips take is measured before and meanwhile, in one run, and printed; with IPC_TEST_MEASURE=1, on a machine that does
 * nothing else, a 99th percentile that more than doubles fails. Those who flood run at the lowest priority, so that it is
 * the broker that is measured, and not who has the processors. Then the same with a broker that may open 64 files.
 */
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "tests/support/hostile.h"

enum { CONNECTS, DECLARATIONS, BYTES, UNREAD, KINDS };

#define ROUND_TRIPS 4000u
#define EVERY       100u /* round trips, a declaration */
#define BEGUN       100u /* requests of each kind before the pair is measured beside them */

static struct shared {
    uint32_t trip_ns[2][ROUND_TRIPS]; /* before; meanwhile */
    uint32_t declare_ns[2][ROUND_TRIPS / EVERY];
} * shared;
static struct {
    int joined, calm, flooding, go, measured, end;
} gates;
static bool declares;

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the flood ---------------------------------------------------------------------------------------------- */

static int flood_send(int fd, unsigned type, uint64_t id, const ProtobufCMessage *message)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, id, message);

    return send(fd, packet, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) == size ? 0 : -errno;
}

/* Whatever becomes of it. */
static int flood_connect(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", hostile.raw.address);
    while (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        sched_yield();
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char *)(uintptr_t) "flood";
    (void)flood_send(fd, TYPE(HELLO), 1, &hello.base);
    return fd;
}

/* Descriptors that come along go as well. */
static void throw_away(int fd)
{
    while (recv(fd, NULL, 0, MSG_TRUNC | MSG_DONTWAIT) > 0)
        continue;
}

static int flood_ask(unsigned kind, int fd, uint64_t id)
{
    static const Ipc__Control__Status status = {PROTOBUF_C_MESSAGE_INIT(&ipc__control__status__descriptor)};
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;
    char topic[48];

    snprintf(topic, sizeof(topic), "flood.%u.%u", kind, (unsigned)id);
    advertise.topic = topic;
    advertise.ring_size = kind == BYTES ? 1 << 20 : 4096;
    subscribe.pattern = (char *)(uintptr_t) ">";
    if (kind == UNREAD)
        return flood_send(fd, TYPE(STATUS), id, &status.base);
    if (kind == DECLARATIONS && id % 2)
        return flood_send(fd, TYPE(SUBSCRIBE), id, &subscribe.base);
    return flood_send(fd, TYPE(ADVERTISE), id, &advertise.base);
}

static void flood(void *argument)
{
    unsigned kind = *(const unsigned *)argument;
    int fd = -1;

    hostile_become(WHO_ATTACKER);
    EXPECT_EQ(setpriority(PRIO_PROCESS, 0, 19), 0);
    for (uint64_t i = 1;; i++) {
        struct pollfd until = {.fd = fd, .events = kind == UNREAD ? POLLOUT : POLLIN | POLLOUT};

        if (i == BEGUN)
            gate_open(gates.flooding);
        if (fd < 0 || kind == CONNECTS) {
            if (fd >= 0)
                close(fd);
            fd = flood_connect();
            continue;
        }
        if (poll(&until, 1, 10) > 0 && until.revents & (POLLHUP | POLLERR)) {
            close(fd);
            fd = -1;
            continue;
        }
        if (kind != UNREAD)
            throw_away(fd);
        (void)flood_ask(kind, fd, i + 1);
    }
}

/* ---- the innocent pair -------------------------------------------------------------------------------------- */

static void echo(void *argument)
{
    char byte;

    hostile_become(WHO_PEER);
    ipc_connection *connection = connection_new();
    ipc_publisher *pong = publisher_new(connection, "innocent.pong", 4096, 0);
    ipc_subscription *ping = subscription_new(connection, "innocent.ping", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(pong, 1, SECONDS(60)), 1);
    gate_open(gates.joined);
    for (unsigned i = 0; i < 2 * ROUND_TRIPS; i++) {
        EXPECT_EQ(ipc_subscription_receive(ping, &byte, 1, NULL, SECONDS(60)), 1);
        EXPECT_EQ(ipc_publisher_publish(pong, &byte, 1), 0);
    }
    gate_wait(gates.end);
    ipc_publisher_close(pong);
    ipc_subscription_close(ping);
    ipc_connection_close(connection);
}

/* Something new, which nobody may keep it from. */
static void declare(ipc_connection *connection, uint32_t *ret_ns)
{
    ipc_publisher *publisher = NULL;
    struct ipc_error error = {.text = ""};
    uint64_t before = now_ns();
    int result = ipc_publisher_open(&publisher, connection, "innocent.more", NULL, &error);

    if (result < 0)
        fprintf(stderr, "an innocent user was refused: %s\n", error.text);
    EXPECT_EQ(result, 0);
    *ret_ns = (uint32_t)(now_ns() - before);
    ipc_publisher_close(publisher);
}

static void measure(ipc_connection *connection, ipc_publisher *ping, ipc_subscription *pong, unsigned flooded)
{
    char byte = 'x';

    for (unsigned i = 0; i < ROUND_TRIPS; i++) {
        uint64_t before = now_ns();
        EXPECT_EQ(ipc_publisher_publish(ping, &byte, 1), 0);
        EXPECT_EQ(ipc_subscription_receive(pong, &byte, 1, NULL, SECONDS(60)), 1);
        shared->trip_ns[flooded][i] = (uint32_t)(now_ns() - before);
        if (declares && i % EVERY == 0)
            declare(connection, &shared->declare_ns[flooded][i / EVERY]);
    }
}

static void talk(void *argument)
{
    hostile_become(WHO_CALM);
    ipc_connection *connection = connection_new();
    ipc_publisher *ping = publisher_new(connection, "innocent.ping", 4096, 0);
    ipc_subscription *pong = subscription_new(connection, "innocent.pong", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    EXPECT_EQ(ipc_publisher_wait_readers(ping, 1, SECONDS(60)), 1);
    gate_wait(gates.joined); /* the other has both, too */
    measure(connection, ping, pong, 0);
    gate_open(gates.calm);
    gate_wait(gates.go);
    measure(connection, ping, pong, 1);
    gate_open(gates.measured);
    gate_wait(gates.end);
    ipc_publisher_close(ping);
    ipc_subscription_close(pong);
    ipc_connection_close(connection);
}

static int compare(const void *left, const void *right)
{
    const uint32_t *a = left, *b = right;

    return (*a > *b) - (*a < *b);
}

static double report(const char *what, uint32_t *calm, uint32_t *flooded, unsigned n)
{
    qsort(calm, n, sizeof(*calm), compare);
    qsort(flooded, n, sizeof(*flooded), compare);
    double ratio = (double)flooded[n - 1 - n / 100] / (double)calm[n - 1 - n / 100];
    printf("%s: p50 %.1f us, p99 %.1f us; beside the flood p50 %.1f us, p99 %.1f us: %.2f times\n", what,
           calm[n / 2] / 1e3, calm[n - 1 - n / 100] / 1e3, flooded[n / 2] / 1e3,
           flooded[n - 1 - n / 100] / 1e3, ratio);
    fflush(stdout);
    return ratio;
}

static bool is_let_in(void)
{
    struct pollfd answered;
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    struct ipc_frame_arena arena;
    struct ipc_frame frame;
    ssize_t size;

    EXPECT_EQ(seteuid(hostile.uid[WHO_CALM]), 0);
    answered = (struct pollfd){.fd = flood_connect(), .events = POLLIN};
    EXPECT_EQ(seteuid(0), 0);
    EXPECT_EQ(poll(&answered, 1, -1), 1);
    size = recv(answered.fd, packet, sizeof(packet), 0);
    close(answered.fd);
    return size > 0 && ipc_frame_unpack(&frame, &arena, packet, (size_t)size) == 0 &&
           frame.type == TYPE(WELCOME);
}

static void run(const char *config, rlim_t files)
{
    static unsigned kinds[KINDS] = {CONNECTS, DECLARATIONS, BYTES, UNREAD};
    pid_t children[KINDS], pair[2];
    watchdog(120, "flood");
    for (int *gate = &gates.joined; gate <= &gates.end; gate++)
        *gate = gate_new();
    declares = files == 0;
    hostile_files = files;
    hostile_start(false, config);
    pair[0] = child_start(echo, NULL);
    pair[1] = child_start(talk, NULL);
    gate_wait(gates.calm);
    for (unsigned kind = 0; kind < KINDS; kind++)
        children[kind] = child_start(flood, &kinds[kind]);
    for (unsigned kind = 0; kind < KINDS; kind++)
        gate_wait(gates.flooding);
    gate_open(gates.go);
    gate_wait(gates.measured);
    for (unsigned kind = 0; kind < KINDS; kind++)
        child_kill(children[kind]);
    gate_open(gates.end);
    gate_open(gates.end);
    child_done(pair[0]);
    child_done(pair[1]);
    while (!is_let_in()) /* until those that were killed have given back what they had */
        sched_yield();
    hostile_log_expect("event=refused", "limit reached", "uid=61001", NULL);
    hostile_stop();
    for (int *gate = &gates.joined; gate <= &gates.end; gate++)
        close(*gate);
    watchdog(0, NULL);
}

static void test_a_flood(void **state)
{
    run("[limits]\nsessions = 100\ntopics = 500\nlanes = 2000\nconnects-per-second = 500\n"
        "total-segment-bytes = 64M\n",
        0);
    double trips = report("round trips of messages", shared->trip_ns[0], shared->trip_ns[1], ROUND_TRIPS);
    (void)report("declarations", shared->declare_ns[0], shared->declare_ns[1], ROUND_TRIPS / EVERY);
    if (getenv("IPC_TEST_MEASURE"))
        EXPECT(trips <= 2);
}

/* Nearly all of them are in use before the flood: what is there goes on, and ipcd does not die. */
static void test_a_flood_with_few_descriptors(void **state)
{
    run("[broker]\nrouter-threads = 1\n", 64);
}

static int tests(void)
{
    static const struct CMUnitTest all[] = {
        cmocka_unit_test(test_a_flood),
        cmocka_unit_test(test_a_flood_with_few_descriptors),
    };

    shared = shared_new(sizeof(*shared));
    int failed = cmocka_run_group_tests(all, NULL, NULL);
    shared_free(shared, sizeof(*shared));
    return failed;
}

int main(void)
{
    expect_here();
    return hostile_run("flood", tests);
}
