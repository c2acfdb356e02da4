/* SPDX-License-Identifier: Apache-2.0
 *
 * Bells in hostile hands: rung without end, filled, made blocking, shut down, closed, never emptied; from either end.
 */
#include "tests/support/hostile.h"

#include <sys/epoll.h>

static ipc_connection *in, *out, *same_out;
static ipc_subscription *subscription;
static ipc_publisher *honest;
static struct raw_client attacker;
static struct held_lane lane;
static struct ipc_cells *cells;
static uint64_t sent;

static int poll_in(int fd, int timeout_ms)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, timeout_ms);
}

/* The reader waits by descriptor; another user's publisher and the attacker write to it. */
static int setup(void **state)
{
    hostile_setup(state);
    sent = 0;
    in = hostile_connection(WHO_PEER);
    out = hostile_connection(WHO_CALM);
    same_out = hostile_connection(WHO_ATTACKER);
    subscription = subscription_new(in, "bell.*", IPC_START_NEXT, IPC_SLOW_DROP_OLDEST, 0);
    EXPECT(ipc_subscription_fd(subscription) >= 0);
    honest = publisher_new(out, "bell.honest", 65536, 0);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    held_lane_open(&lane, &attacker, "bell.attack", 4096);
    held_lane_admit(&lane, &attacker, &cells);
    EXPECT(lane.writer.peers[0].bell >= 0);
    EXPECT_EQ(ipc_publisher_wait_readers(honest, 1, IPC_FOREVER), 1);
    EXPECT_EQ(ipc_subscription_wait_writers(subscription, 2, IPC_FOREVER), 2);
    return 0;
}

static int teardown(void **state)
{
    lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
    held_lane_close(&lane);
    raw_disconnect(&attacker);
    ipc_subscription_close(subscription);
    publisher_end(honest);
    ipc_connection_close(in);
    ipc_connection_close(out);
    ipc_connection_close(same_out);
    return hostile_teardown(state);
}

/* The next message of the honest publisher reaches the reader, which waits for its descriptor as a loop does. */
static void pass_one(void)
{
    unsigned char buffer[4096];
    struct ipc_message message;
    publish_numbers(honest, sent, sent + 1, 64);
    for (;;) {
        ssize_t size = ipc_subscription_receive(subscription, buffer, sizeof(buffer), &message, 0);
        if (size >= 0 && strcmp(message.topic, "bell.honest") == 0)
            break;
        EXPECT(size >= 0 || size == -EAGAIN);
        if (size == -EAGAIN)
            EXPECT(poll_in(ipc_subscription_fd(subscription), -1) > 0);
    }
    EXPECT(message_holds(buffer, 64, sent));
    EXPECT_EQ(message.lost, 0);
    sent++;
    while (ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0) >= 0)
        continue;
}

static void fill(int fd)
{
    static const char bytes[4096];
    while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        continue;
}

static void ring_without_end(void *argument)
{
    static const char bytes[65536];
    int fd = *(int *)argument;
    for (;;)
        (void)!send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
}

static void test_rung_without_end(void **state)
{
    pid_t ringers[2];
    (void)state;
    int bell = lane.writer.peers[0].bell;
    EXPECT_EQ(fcntl(bell, F_SETFL, 0), 0); /* never an EAGAIN in between */
    for (unsigned i = 0; i < 2; i++)
        ringers[i] = child_start(ring_without_end, &bell);
    for (unsigned i = 0; i < 300; i++)
        pass_one();
    for (unsigned i = 0; i < 2; i++)
        child_kill(ringers[i]);
}

/* Another publisher of the attacker's user has the same bell: full, blocking, with no room, it rings and goes on. */
static void test_filled_and_blocking(void **state)
{
    ipc_publisher *publisher = publisher_new(same_out, "bell.same", 65536, 0);
    int bell = lane.writer.peers[0].bell;
    (void)state;
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    EXPECT_EQ(setsockopt(bell, SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)), 0);
    for (unsigned i = 0; i < 100; i++) {
        EXPECT_EQ(fcntl(bell, F_SETFL, 0), 0);
        fill(bell);
        publish_numbers(publisher, i, i + 1, 64);
        EXPECT_EQ(fcntl(bell, F_SETFL, O_NONBLOCK), 0);
        fill(bell);
        pass_one();
    }
    publisher_end(publisher);
}

static uint64_t requests(void)
{
    static struct raw_client looker;
    hostile_hello(&looker, WHO_CALM, "looker");
    uint64_t count = raw_status(&looker)->requests;
    raw_goodbye(&looker);
    return count;
}

/* Shut down once: the reader asks for another, and that is that; also for the bells of others, which it gets anew. */
static void test_shut_down_once(void **state)
{
    int bell = lane.writer.peers[0].bell;
    (void)state;
    pass_one();
    EXPECT_EQ(shutdown(bell, SHUT_RDWR), 0);
    for (unsigned i = 0; i < 50; i++)
        pass_one();
    uint64_t before = requests();
    for (unsigned i = 0; i < 200; i++)
        pass_one();
    EXPECT(requests() - before < 10);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT_EQ(stats.writers, 2);
}

/* Shut down each time that another one comes: the reader leaves the lanes of that user, and of no other. */
static void test_shut_down_again_and_again(void **state)
{
    struct ipc_event event = {0};
    (void)state;
    while (!(event.kind == IPC_EVENT_WRITER_LEFT && event.peer.uid == hostile.uid[WHO_ATTACKER])) {
        int type;
        (void)shutdown(lane.writer.peers[0].bell, SHUT_RDWR);
        while ((type = raw_recv(&attacker, MSG_DONTWAIT)) > 0) {
            if (type == TYPE(READER_ADD) && attacker.n_fds == 2) {
                uint64_t pairing =
                    ((const Ipc__Control__ReaderAdd *)(const void *)attacker.frame.message)->pairing;
                close(lane.writer.peers[0].bell);
                lane.writer.peers[0].bell = attacker.fds[1];
                attacker.fds[1] = -1;
                raw_confirm(&attacker, TYPE(READER_ADD), pairing, 0);
            }
        }
        pass_one();
        while (ipc_connection_next_event(in, &event) > 0 && event.kind != IPC_EVENT_WRITER_LEFT)
            continue;
    }
    EXPECT_EQ(event.reason, IPC_REASON_CORRUPT);
    hostile_log_expect("detached", "reason=corrupt", "topic bell.attack", "the reader", NULL);
    struct ipc_subscription_stats stats;
    EXPECT_EQ(ipc_subscription_stats(subscription, &stats), 0);
    EXPECT_EQ(stats.writers, 1);
    for (unsigned i = 0; i < 50; i++)
        pass_one();
}

/* Urgent bytes, and descriptors whose last close would wait for an hour. */
static void test_strange_rings(void **state)
{
    int bell = lane.writer.peers[0].bell, peer;
    struct raw_client as_client = {.fd = bell};
    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        (void)!send(bell, "!", 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL);
        pass_one();
    }
    int lingering = hostile_lingering(3600, &peer);
    ssize_t result = hostile_send(&as_client, "!", 1, &lingering, 1);
    if (result < 0) { /* Linux 6.16 and later */
        EXPECT_EQ(errno, EPERM);
        EXPECT_EQ(setsockopt(lingering, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger)),
                  0);
    } else { /* not to be prevented: do not wait for it ourselves */
        EXPECT_EQ(setsockopt(lingering, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger)),
                  0);
    }
    close(lingering);
    close(peer);
    pass_one();
}

/* The reader is the attacker: it arms for a bell that it never empties, fills backwards, shuts down, closes. */
static void test_never_emptied(void **state)
{
    struct held_cell cell;
    Ipc__Control__Bell ask = IPC__CONTROL__BELL__INIT;
    ipc_subscription *other = subscription_new(in, "ring.me", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
    (void)state;
    ask.subscription = hostile_subscribe(&attacker, "ring.me", 0, IPC_SLOW_DROP_OLDEST);
    raw_send(&attacker, TYPE(BELL), &ask.base);
    (void)hostile_wait(&attacker, TYPE(DONE));
    ipc_publisher *publisher = publisher_new(out, "ring.me", 65536, 0);
    held_cell_open(&cell, &attacker, NULL);
    EXPECT(cell.bell_fd >= 0);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 2, IPC_FOREVER), 2);
    EXPECT_EQ(ipc_subscription_wait_writers(other, 1, IPC_FOREVER), 1);
    for (uint64_t i = 0; i < 20000; i++) {
        atomic_store(&cell.cell->armed, i * IPC_ARMED_STEP | IPC_ARMED | IPC_ARMED_BELL);
        if (i == 5000) {
            EXPECT_EQ(fcntl(cell.bell_fd, F_SETFL, 0), 0);
            fill(cell.bell_fd);
        }
        if (i == 10000)
            EXPECT_EQ(shutdown(cell.bell_fd, SHUT_RDWR), 0);
        if (i == 15000) {
            close(cell.bell_fd);
            cell.bell_fd = -1;
        }
        publish_numbers(publisher, i, i + 1, 64);
        receive_numbers(other, i, i + 1, 64);
    }
    held_cell_close(&cell);
    subscription_end(other);
    publisher_end(publisher);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_rung_without_end),          ATTACK(test_filled_and_blocking), ATTACK(test_shut_down_once),
        ATTACK(test_shut_down_again_and_again), ATTACK(test_strange_rings),       ATTACK(test_never_emptied),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(void)
{
    return hostile_run("hostile/test_bells", tests);
}
