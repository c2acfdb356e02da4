/* SPDX-License-Identifier: Apache-2.0
 *
 * What can be done with the descriptors that a client was given, and with those that it sends: by processes of the
 * attacker's user, and of the broker's own.
 */
#include "tests/support/hostile.h"

#include <linux/falloc.h>
#include <sys/syscall.h>

static struct raw_client attacker;
static struct held_lane lane;
static struct held_cell cell;
static struct ipc_board *board;
static int board_fd;

static int setup(void **state)
{
    hostile_setup(state);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    board_fd = attacker.fds[0];
    attacker.fds[0] = -1;
    board = attacker.board;
    held_lane_open(&lane, &attacker, "attack.own", 4096);
    return 0;
}

static int teardown(void **state)
{
    held_lane_close(&lane);
    close(board_fd);
    raw_disconnect(&attacker);
    return hostile_teardown(state);
}

static void reopen(char *path, size_t size, int fd)
{
    snprintf(path, size, "/proc/self/fd/%d", fd);
}

/* Nothing that a descriptor for reading gives can be made to write, or changed. */
static void cannot_write(int fd, size_t size)
{
    char path[64];
    reopen(path, sizeof(path), fd);
    EXPECT(open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
    EXPECT(open(path, O_WRONLY | O_CLOEXEC) < 0 && errno == EACCES);
    EXPECT(truncate(path, 0) < 0 && (errno == EACCES || errno == EPERM));
    EXPECT(chmod(path, 0777) < 0 && errno == EPERM);
    EXPECT(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    EXPECT(map != MAP_FAILED);
    EXPECT(mprotect(map, size, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    EXPECT(madvise(map, size, MADV_REMOVE) < 0);
    munmap(map, size);
    EXPECT(pwrite(fd, "x", 1, 0) < 0 && errno == EBADF);
    EXPECT(ftruncate(fd, 0) < 0);
    EXPECT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0);
    EXPECT(fchmod(fd, 0777) < 0 && errno == EPERM);
    EXPECT(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
    EXPECT(syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, hostile.raw.pid, 0), 3, 0) < 0);
    snprintf(path, sizeof(path), "/proc/%d/fd/3", (int)hostile.raw.pid);
    EXPECT(open(path, O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
}

/* Who writes a segment can write it, and no more. */
static void cannot_resize(int fd, size_t size)
{
    EXPECT(ftruncate(fd, 0) < 0 && errno == EPERM);
    EXPECT(ftruncate(fd, (off_t)size + 4096) < 0 && errno == EPERM);
    EXPECT(fallocate(fd, 0, 0, (off_t)size + 4096) < 0 && errno == EPERM);
    EXPECT(pwrite(fd, "x", 1, (off_t)size) < 0 && errno == EPERM);
    EXPECT(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
    EXPECT(fchmod(fd, 0777) < 0 && errno == EPERM);
    int seals = fcntl(fd, F_GET_SEALS);
    EXPECT_EQ(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    EXPECT_EQ(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0);
    struct stat st;
    EXPECT_EQ(fstat(fd, &st), 0);
    EXPECT_EQ(st.st_size, size);
    EXPECT_EQ(st.st_mode & 0777, 0600);
    EXPECT_EQ(st.st_uid, hostile.uid[WHO_BROKER]);
}

static void try_all(void *who)
{
    hostile_become((enum who)(uintptr_t)who);
    cannot_write(cell.lane_fd, IPC_LAYOUT_PAGE + cell.ring_size);
    cannot_write(board_fd, sizeof(struct ipc_board));
    cannot_resize(lane.fd, IPC_LAYOUT_PAGE + lane.ring_size);
    cannot_resize(cell.cells_fd, sizeof(struct ipc_cells));
}

/* The attacker itself; and a friend to whom it passed all that it has. */
static void test_reopened_truncated_grown_sealed(void **state)
{
    struct raw_client victim;
    struct held_lane other;
    (void)state;
    hostile_hello(&victim, WHO_PEER, "victim");
    held_lane_open(&other, &victim, "victim.own", 8192);
    hostile_subscribe(&attacker, "victim.own", 0, 0);
    held_cell_open(&cell, &attacker, NULL);
    child_done(child_start(try_all, (void *)(uintptr_t)WHO_ATTACKER));
    child_done(child_start(try_all, (void *)(uintptr_t)WHO_CALM));
    held_cell_close(&cell);
    held_lane_close(&other);
    raw_disconnect(&victim);
}

/* Pages punched out of a lane under a reader: it finds nothing there, and lives. */
static void test_punched_under_a_reader(void **state)
{
    ipc_connection *in = hostile_connection(WHO_PEER);
    unsigned char buffer[4096];
    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        struct ipc_cells *cells;
        struct held_lane own;
        ipc_subscription *subscription =
            subscription_new(in, "attack.punched", IPC_START_NEXT, i % 2 ? IPC_SLOW_BLOCK : 0, 0);
        held_lane_open(&own, &attacker, "attack.punched", 8192);
        held_lane_admit(&own, &attacker, &cells);
        EXPECT_EQ(ipc_subscription_wait_writers(subscription, 1, IPC_FOREVER), 1);
        for (uint64_t k = 0; k < i; k++)
            EXPECT_EQ(held_lane_publish(&own, k, 64), 0);
        for (unsigned k = 0; k < i / 2; k++)
            EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER), 64);
        EXPECT_EQ(fallocate(own.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, i % 3 * 4096, 4096), 0);
        while (ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0) >= 0)
            continue;
        lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
        hostile_unadvertise(&attacker, own.id);
        held_lane_close(&own);
        ipc_subscription_close(subscription);
    }
    ipc_connection_close(in);
}

/* Kept after the end: what it maps is empty and nobody's, and the charge is returned. Whatever it writes there reaches
 * nobody. */
static void test_kept_after_the_end(void **state)
{
    struct broker as = {0};
    (void)state;
    for (uint64_t i = 0; i < 10; i++)
        EXPECT_EQ(held_lane_publish(&lane, i, 64), 0);
    raw_disconnect(&attacker);
    snprintf(as.address, sizeof(as.address), "%s/socket", hostile.raw.folder);
    broker_settles(&as, &hostile.idle);
    const unsigned char *bytes = (const unsigned char *)lane.lane;
    for (size_t i = 0; i < IPC_LAYOUT_PAGE + lane.ring_size; i++)
        EXPECT_EQ(bytes[i], 0);
    memset(lane.lane, 0xff, IPC_LAYOUT_PAGE + lane.ring_size);
    broker_settles(&as, &hostile.idle);
    hostile_hello(&attacker, WHO_ATTACKER, "again");
}

/* Written to after its end, while a reader still drains it. */
static void test_written_while_it_is_drained(void **state)
{
    ipc_connection *in = hostile_connection(WHO_PEER);
    unsigned char buffer[4096];
    uint64_t seed = 0x123456789abcdef;
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        struct ipc_cells *cells;
        struct held_lane own;
        ipc_subscription *subscription =
            subscription_new(in, "attack.drained", IPC_START_NEXT, IPC_SLOW_BLOCK, 0);
        held_lane_open(&own, &attacker, "attack.drained", 4096);
        held_lane_admit(&own, &attacker, &cells);
        for (uint64_t k = 0; k < 40; k++)
            EXPECT_EQ(held_lane_publish(&own, k, 64), 0);
        EXPECT_EQ(ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, IPC_FOREVER), 64);
        hostile_unadvertise(&attacker, own.id);
        for (unsigned k = 0; k < 200; k++) {
            uint64_t random = hostile_random(&seed);
            memcpy((char *)own.lane + random % (IPC_LAYOUT_PAGE + own.ring_size - 8), &seed, 8);
            (void)ipc_subscription_receive(subscription, buffer, sizeof(buffer), NULL, 0);
        }
        lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
        held_lane_close(&own);
        ipc_subscription_close(subscription);
    }
    ipc_connection_close(in);
}

/* Descriptors sent to the core: refused by the kernel, or closed by the core, and the session is over. */
static void send_descriptors(const int *fds, size_t n)
{
    static const struct ipc_frame_header whole = {.magic = IPC_FRAME_MAGIC, .type = TYPE(STATUS), .id = 1};
    struct raw_client client;
    hostile_hello(&client, WHO_ATTACKER, "smuggler");
    ssize_t result = hostile_send(&client, &whole, sizeof(whole), fds, n);
    if (result < 0) {
        EXPECT_EQ(errno, EPERM);
        hostile_alive(&client);
    } else {
        EXPECT_EQ(((const Ipc__Control__Ended *)hostile_wait(&client, TYPE(ENDED)))->reason,
                  IPC_REASON_PROTOCOL);
    }
    raw_disconnect(&client);
}

static int null_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0);
    return fd;
}

static void send_all_kinds(void)
{
    int fds[253], pipes[2];
    unsigned before = raw_broker_descriptors(&hostile.raw);
    fds[0] = null_fd();
    for (unsigned i = 1; i < 253; i++)
        fds[i] = fds[0];
    send_descriptors(fds, 1);
    send_descriptors(fds, IPC_MAX_FRAME_FDS);
    send_descriptors(fds, 253);
    close(fds[0]);
    EXPECT_EQ(pipe2(pipes, O_CLOEXEC), 0);
    const int objects[] = {lane.fd,  board_fd, attacker.fd,
                           pipes[0], pipes[1], memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    for (size_t i = 0; i < sizeof(objects) / sizeof(objects[0]); i++)
        send_descriptors(&objects[i], 1);
    close(pipes[0]);
    close(pipes[1]);
    close(objects[5]);
    do /* sessions of others may still be on their way out */
        hostile_alive(&attacker);
    while (raw_broker_descriptors(&hostile.raw) > before);
}

static void test_sent_to_the_core(void **state)
{
    (void)state;
    send_all_kinds();
}

/* Where the kernel refuses none. */
static int setup_older(void **state)
{
    hostile_argument = "--no-passrights";
    int result = setup(state);
    hostile_argument = NULL;
    return result;
}

static void test_sent_to_an_older_core(void **state)
{
    (void)state;
    send_all_kinds();
    hostile_log_expect("session-expelled", "name=\"smuggler\"", "it sent a descriptor", NULL);
}

/* A socket whose last close waits for an hour: the core does not. */
static void test_lingering_socket_sent_to_the_core(void **state)
{
    int peer, lingering = hostile_lingering(3600, &peer);
    struct raw_client client;
    static const struct ipc_frame_header whole = {.magic = IPC_FRAME_MAGIC, .type = TYPE(STATUS), .id = 1};
    (void)state;
    hostile_hello(&client, WHO_ATTACKER, "lingerer");
    int off = 0;
    /* Older kernels cannot refuse it; docs/threat-model.md says so. */
    bool refuses = setsockopt(client.fd, SOL_SOCKET, 83 /* SO_PASSRIGHTS */, &off, sizeof(off)) == 0;
    if (refuses) {
        EXPECT(hostile_send(&client, &whole, sizeof(whole), &lingering, 1) < 0 && errno == EPERM);
        hostile_alive(&client);
    }
    struct linger none = {0};
    EXPECT_EQ(setsockopt(lingering, SOL_SOCKET, SO_LINGER, &none, sizeof(none)), 0);
    close(lingering);
    close(peer);
    raw_disconnect(&client);
    hostile_alive(&attacker);
}

/* What libipc maps it has looked at: sealed, of that size, with that header. */
static void test_wrong_objects_are_not_mapped(void **state)
{
    const size_t size = IPC_LAYOUT_PAGE + 4096;
    const struct ipc_segment_header header = lane_segment_header(IPC_SEGMENT_LANE, 4096, 1);
    static const unsigned seals[] = {0, F_SEAL_SHRINK, F_SEAL_SHRINK | F_SEAL_GROW,
                                     F_SEAL_SHRINK | F_SEAL_SEAL, F_SEAL_GROW | F_SEAL_SEAL};
    void *map;
    int pipes[2];
    (void)state;
    for (size_t i = 0; i < sizeof(seals) / sizeof(seals[0]); i++) {
        int fd = memfd_create("wrong", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        EXPECT(fd >= 0);
        EXPECT_EQ(ftruncate(fd, (off_t)size), 0);
        EXPECT_EQ(pwrite(fd, &header, sizeof(header), 0), sizeof(header));
        EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
        EXPECT_EQ(lane_segment_map(&map, fd, IPC_SEGMENT_LANE, 4096, false), -EPROTO);
        close(fd);
    }
    EXPECT_EQ(lane_segment_map(&map, lane.fd, IPC_SEGMENT_LANE, 8192, false), -EPROTO);
    EXPECT_EQ(lane_segment_map(&map, lane.fd, IPC_SEGMENT_CELLS, 0, false), -EPROTO);
    EXPECT_EQ(lane_segment_map(&map, board_fd, IPC_SEGMENT_CELLS, 0, false), -EPROTO);
    EXPECT_EQ(pipe2(pipes, O_CLOEXEC), 0);
    int null = null_fd();
    const int objects[] = {pipes[0], null, attacker.fd, -1};
    for (size_t i = 0; i < sizeof(objects) / sizeof(objects[0]); i++)
        EXPECT(lane_segment_map(&map, objects[i], IPC_SEGMENT_LANE, 4096, false) < 0);
    close(null);
    close(pipes[0]);
    close(pipes[1]);
}

static void reopen_as_broker(void *argument)
{
    char path[64];
    (void)argument;
    hostile_become(WHO_BROKER);
    reopen(path, sizeof(path), cell.lane_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    EXPECT(fd >= 0);
    cannot_resize(fd, IPC_LAYOUT_PAGE + cell.ring_size);
}

/* The broker's own user is no stranger: the mode keeps it out of nothing. What holds even then are the seals. */
static void test_the_same_user_is_no_boundary(void **state)
{
    struct raw_client victim;
    struct held_lane other;
    (void)state;
    hostile_hello(&victim, WHO_PEER, "victim");
    held_lane_open(&other, &victim, "victim.own", 8192);
    hostile_subscribe(&attacker, "victim.own", 0, 0);
    held_cell_open(&cell, &attacker, NULL);
    pid_t child = child_start(reopen_as_broker, NULL);
    int status = wait_child(child);
    EXPECT_EQ(status, 0);
    held_cell_close(&cell);
    held_lane_close(&other);
    raw_disconnect(&victim);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_reopened_truncated_grown_sealed),
        ATTACK(test_punched_under_a_reader),
        ATTACK(test_kept_after_the_end),
        ATTACK(test_written_while_it_is_drained),
        ATTACK(test_sent_to_the_core),
        cmocka_unit_test_setup_teardown(test_sent_to_an_older_core, setup_older, teardown),
        ATTACK(test_lingering_socket_sent_to_the_core),
        ATTACK(test_wrong_objects_are_not_mapped),
        ATTACK(test_the_same_user_is_no_boundary),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(void)
{
    return hostile_run("hostile/test_descriptors", tests);
}
