/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/hostile.h"

#include <arpa/inet.h>
#include <grp.h>
#include <netinet/in.h>
#include <sys/prctl.h>

#define UID_FIRST    61000u /* users that nobody is */
#define CASE_SECONDS 120

struct hostile hostile;
const char *hostile_argument;
rlim_t hostile_files;
static unsigned descriptors_before;

static struct broker as_broker(void)
{
    struct broker made = {.pid = hostile.raw.pid};
    snprintf(made.address, sizeof(made.address), "%s/socket", hostile.raw.folder);
    return made;
}

void hostile_become(enum who who)
{
    gid_t gid = hostile.uid[who];
    EXPECT_EQ(seteuid(0), 0);
    EXPECT_EQ(setgroups(0, NULL), 0);
    EXPECT_EQ(setresgid(gid, gid, gid), 0);
    EXPECT_EQ(setresuid(gid, gid, gid), 0);
    /* As a program that was started by that user: the change of user took both. */
    prctl(PR_SET_DUMPABLE, 1);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void exec_ipcd(void)
{
    const char *program = getenv("IPCD_BIN");
    struct raw_broker *raw = &hostile.raw;
    char notify[96];
    int log = open(hostile.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    EXPECT(program && log >= 0);
    EXPECT_EQ(dup2(log, STDERR_FILENO), STDERR_FILENO);
    snprintf(notify, sizeof(notify), "%s/notify", raw->folder);
    setenv("NOTIFY_SOCKET", notify, 1);
    if (hostile_files)
        EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &(const struct rlimit){hostile_files, hostile_files}), 0);
    hostile_become(WHO_BROKER);
    execl(program, "ipcd", "--address", raw->address, "--config", raw->config, "--log-level", "info",
          hostile_argument, NULL);
    _exit(127);
}

void hostile_start(bool same_uid, const char *config)
{
    char text[1024], path[96];
    struct raw_broker *raw = &hostile.raw;
    for (unsigned i = 0; i < WHO_COUNT; i++)
        hostile.uid[i] = UID_FIRST + (same_uid ? 0 : i);
    raw_folder(raw);
    snprintf(hostile.log, sizeof(hostile.log), "%s/log", raw->folder);
    snprintf(text, sizeof(text), "[broker]\nsocket-mode = 666\n%s\n%s", config ? config : "", RAW_EVERYBODY);
    raw_write(raw->config, text);
    snprintf(path, sizeof(path), "%s/notify", raw->folder);
    EXPECT_EQ(chmod(path, 0666), 0);
    EXPECT_EQ(chmod(raw->folder, 0755), 0);
    EXPECT_EQ(chown(raw->folder, hostile.uid[WHO_BROKER], hostile.uid[WHO_BROKER]), 0);
    fflush(NULL);
    raw->pid = fork_child();
    EXPECT(raw->pid >= 0);
    if (raw->pid == 0)
        exec_ipcd();
    raw_wait_notify(raw, "READY=1");
    setenv("IPC_ADDRESS", raw->address, 1);
    struct broker made = as_broker();
    hostile.idle = broker_count(&made);
}

static bool line_has(const char *line, const char *first, va_list words)
{
    for (const char *word = first; word; word = va_arg(words, const char *))
        if (!strstr(line, word))
            return false;
    return true;
}

void hostile_log_expect(const char *first, ...)
{
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;
    struct broker made = as_broker();
    broker_count(&made); /* what it has been sent is worked on, and logged */
    FILE *file = fopen(hostile.log, "re");
    EXPECT(file != NULL);
    while (!found && getline(&line, &capacity, file) >= 0) {
        va_list words;
        va_start(words, first);
        found = line_has(line, first, words);
        va_end(words);
    }
    free(line);
    fclose(file);
    if (!found) {
        va_list words;
        fprintf(stderr, "no line of the log has all of:");
        va_start(words, first);
        for (const char *word = first; word; word = va_arg(words, const char *))
            fprintf(stderr, " '%s'", word);
        va_end(words);
        fprintf(stderr, "\n");
    }
    EXPECT(found);
}

/* What a sanitizer, an assertion or the C library says of a broken program. */
static void log_is_clean(void)
{
    static const char *const bad[] = {"Sanitizer", "runtime error:", "Assertion", "corrupted"};
    char *line = NULL;
    size_t capacity = 0;
    bool clean = true;
    FILE *file = fopen(hostile.log, "re");
    EXPECT(file != NULL);
    while (getline(&line, &capacity, file) >= 0) {
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
            clean = clean && !strstr(line, bad[i]);
        if (!clean)
            fputs(line, stderr);
    }
    free(line);
    fclose(file);
    EXPECT(clean);
}

void hostile_stop(void)
{
    struct broker made = as_broker();
    struct raw_broker *raw = &hostile.raw;
    if (waitpid(raw->pid, NULL, WNOHANG) == 0)
        broker_settles(&made, &hostile.idle);
    log_is_clean();
    (void)unlink(hostile.log);
    raw_broker_stop(raw);
    raw->pid = 0;
}

int hostile_setup(void **state)
{
    (void)state;
    expect_here();
    descriptors_before = descriptors_open();
    watchdog(CASE_SECONDS, "a case with hostile clients");
    hostile_start(false, NULL);
    return 0;
}

int hostile_teardown(void **state)
{
    (void)state;
    hostile_stop();
    watchdog(0, "");
    EXPECT_EQ(descriptors_open(), descriptors_before);
    EXPECT(!children_left());
    return 0;
}

int hostile_run(const char *what, int (*tests)(void))
{
    if (geteuid() != 0) {
        printf("%s: skipped: only root can be several users\n", what);
        return 77;
    }
    signal(SIGPIPE, SIG_IGN);
    return tests();
}

void hostile_connect(struct raw_client *client, enum who who)
{
    EXPECT_EQ(seteuid(hostile.uid[who]), 0);
    raw_connect(client, &hostile.raw);
    EXPECT_EQ(seteuid(0), 0);
}

void hostile_hello(struct raw_client *client, enum who who, const char *name)
{
    EXPECT_EQ(seteuid(hostile.uid[who]), 0);
    raw_hello(client, &hostile.raw, name);
    EXPECT_EQ(seteuid(0), 0);
}

ipc_connection *hostile_connection(enum who who)
{
    EXPECT_EQ(seteuid(hostile.uid[who]), 0);
    ipc_connection *connection = connection_new();
    EXPECT_EQ(seteuid(0), 0);
    return connection;
}

ssize_t hostile_send(struct raw_client *client, const void *packet, size_t size, const int *fds, size_t n)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253)] = {0};
    struct iovec piece = {.iov_base = (void *)(uintptr_t)packet, .iov_len = size};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (n) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, n * sizeof(int));
    }
    return sendmsg(client->fd, &message, MSG_NOSIGNAL);
}

const void *hostile_wait(struct raw_client *client, unsigned type)
{
    int got;
    do {
        got = raw_recv(client, 0);
        EXPECT(got > 0);
    } while (got != (int)type);
    return client->frame.message;
}

void hostile_advertise(struct raw_client *client, const char *topic, uint32_t ring_size)
{
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;
    message.topic = (char *)(uintptr_t)topic;
    message.ring_size = ring_size;
    raw_send(client, TYPE(ADVERTISE), &message.base);
}

void hostile_unadvertise(struct raw_client *client, uint64_t lane)
{
    Ipc__Control__Unadvertise message = IPC__CONTROL__UNADVERTISE__INIT;
    message.lane = lane;
    raw_send(client, TYPE(UNADVERTISE), &message.base);
    (void)hostile_wait(client, TYPE(DONE));
}

uint64_t hostile_subscribe(struct raw_client *client, const char *pattern, unsigned start, unsigned slow)
{
    Ipc__Control__Subscribe message = IPC__CONTROL__SUBSCRIBE__INIT;
    message.pattern = (char *)(uintptr_t)pattern;
    message.start = (Ipc__Control__Start)start;
    message.slow = (Ipc__Control__Slow)slow;
    raw_send(client, TYPE(SUBSCRIBE), &message.base);
    return ((const Ipc__Control__Subscribed *)hostile_wait(client, TYPE(SUBSCRIBED)))->subscription;
}

void hostile_unsubscribe(struct raw_client *client, uint64_t subscription)
{
    Ipc__Control__Unsubscribe message = IPC__CONTROL__UNSUBSCRIBE__INIT;
    message.subscription = subscription;
    raw_send(client, TYPE(UNSUBSCRIBE), &message.base);
    (void)hostile_wait(client, TYPE(DONE));
}

void hostile_alive(struct raw_client *client)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    raw_send(client, TYPE(STATUS), &status.base);
    (void)hostile_wait(client, TYPE(STATUS_REPLY));
}

int hostile_lingering(int seconds, int *peer)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger linger = {.l_onoff = 1, .l_linger = seconds};
    static const char zeros[1 << 16];
    socklen_t size = sizeof(name);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(listener >= 0 && fd >= 0);
    EXPECT_EQ(bind(listener, (struct sockaddr *)&name, size), 0);
    EXPECT_EQ(listen(listener, 1), 0);
    EXPECT_EQ(getsockname(listener, (struct sockaddr *)&name, &size), 0);
    EXPECT_EQ(connect(fd, (struct sockaddr *)&name, size), 0);
    *peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    EXPECT(*peer >= 0);
    close(listener);
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    while (send(fd, zeros, sizeof(zeros), MSG_DONTWAIT) > 0)
        continue;
    return fd;
}

/* ---- random writes -------------------------------------------------------------------------------------- */

static uint64_t lie(uint64_t random, const unsigned char *at, uint32_t ring)
{
    const uint64_t special[] = {0,
                                1,
                                7,
                                8,
                                ring,
                                ring - 1,
                                ring + 8,
                                UINT64_MAX,
                                UINT64_MAX - 7,
                                UINT64_C(1) << 63,
                                UINT32_MAX,
                                IPC_RECORD_COMMITTED,
                                IPC_RECORD_COMMITTED | IPC_RECORD_HEADERS | 64,
                                IPC_RECORD_COMMITTED | (ring / 2 - 8),
                                IPC_ARMED,
                                IPC_ARMED | IPC_ARMED_BELL | IPC_ARMED_FENCE};
    uint64_t there;
    memcpy(&there, at, 8);
    switch (random >> 60) {
    case 0 ... 3:
        return special[random >> 8 & 15];
    case 4 ... 6: /* near what is there: the checks have to be exact */
        return there + (random >> 8 & 31) * 8 - 128;
    case 7 ... 8:
        return there ^ UINT64_C(1) << (random >> 8 & 63);
    case 9: /* a record that goes on from there */
        return (there & 0xffffffff00000000) | IPC_RECORD_COMMITTED | (random >> 8 & 0xffff);
    default:
        return random * UINT64_C(0x9e3779b97f4a7c15);
    }
}

void hostile_scribble(const struct hostile_area *areas, unsigned count, unsigned writes, uint64_t *random)
{
    for (unsigned i = 0; i < writes; i++) {
        uint64_t r = hostile_random(random);
        const struct hostile_area *area = &areas[r % count];
        /* Half of the writes go to the first page, where the words are. */
        size_t limit = r >> 20 & 1 && area->size > 4096 ? 4096 : area->size;
        unsigned char *at = area->at + (r >> 32) % (limit / 8) * 8;
        uint64_t v = lie(hostile_random(random), at, area->ring);
        if (r >> 21 & 3)
            atomic_store_explicit((_Atomic uint64_t *)(void *)at, v, memory_order_relaxed);
        else
            at[r >> 24 & 7] = (unsigned char)v;
    }
}

/* ---- what real clients hold ------------------------------------------------------------------------------ */

static int steal_fd(struct raw_client *client, unsigned index)
{
    if (index >= client->n_fds)
        return -1;
    int fd = client->fds[index];
    client->fds[index] = -1;
    return fd;
}

void held_lane_map(struct held_lane *held, struct raw_client *client)
{
    const Ipc__Control__Advertised *advertised = (const void *)client->frame.message;
    void *lane;
    held->id = advertised->lane;
    held->ring_size = advertised->ring_size;
    held->fd = steal_fd(client, 0);
    EXPECT_EQ(lane_segment_map(&lane, held->fd, IPC_SEGMENT_LANE, held->ring_size, true), 0);
    held->lane = lane;
    lane_writer_init(&held->writer, lane, lane_segment_ring(lane), held->ring_size);
}

void held_lane_open(struct held_lane *held, struct raw_client *client, const char *topic, uint32_t ring_size)
{
    hostile_advertise(client, topic, ring_size);
    (void)hostile_wait(client, TYPE(ADVERTISED));
    held_lane_map(held, client);
}

uint64_t held_lane_admit(struct held_lane *held, struct raw_client *client, struct ipc_cells **ret_cells)
{
    const Ipc__Control__ReaderAdd *add = hostile_wait(client, TYPE(READER_ADD));
    void *cells;
    EXPECT_EQ(add->lane, held->id);
    int fd = steal_fd(client, 0);
    EXPECT_EQ(lane_segment_map(&cells, fd, IPC_SEGMENT_CELLS, 0, false), 0);
    close(fd);
    *ret_cells = cells;
    uint64_t pairing = add->pairing;
    const struct lane_peer peer = {.cell = &(*ret_cells)->cells[add->cell],
                                   .pairing = pairing,
                                   .slot = add->slot,
                                   .bell = steal_fd(client, 1),
                                   .pins = add->slow == IPC__CONTROL__SLOW__SLOW_BLOCK,
                                   .fence = add->fence};
    EXPECT_EQ(lane_writer_add(&held->writer, &peer, add->start), 0);
    raw_confirm(client, TYPE(READER_ADD), pairing, 0);
    return pairing;
}

void held_lane_close(struct held_lane *held)
{
    for (uint32_t i = 0; i < held->writer.peer_count; i++)
        if (held->writer.peers[i].bell >= 0)
            close(held->writer.peers[i].bell);
    lane_writer_done(&held->writer);
    lane_segment_unmap(held->lane, IPC_SEGMENT_LANE, held->ring_size);
    close(held->fd);
}

int held_lane_publish(struct held_lane *held, uint64_t number, uint32_t size)
{
    unsigned char *body;
    int result = lane_writer_reserve(&held->writer, size, &body);
    if (result < 0)
        return result;
    message_fill(body, size, number);
    lane_writer_commit(&held->writer, size, 0);
    return 0;
}

void held_cell_open(struct held_cell *held, struct raw_client *client, struct ipc_cells *cells)
{
    const Ipc__Control__LaneAdd *add = hostile_wait(client, TYPE(LANE_ADD));
    void *map;
    *held = (struct held_cell){.pairing = add->pairing,
                               .lane_id = add->lane,
                               .lane_fd = steal_fd(client, 0),
                               .cells_fd = add->cells_new ? steal_fd(client, 1) : -1,
                               .bell_fd = add->bell_new ? steal_fd(client, add->cells_new ? 2 : 1) : -1,
                               .ring_size = add->ring_size,
                               .index = add->cell};
    EXPECT_EQ(lane_segment_map(&map, held->lane_fd, IPC_SEGMENT_LANE, held->ring_size, false), 0);
    held->lane = map;
    if (held->cells_fd >= 0) {
        EXPECT_EQ(lane_segment_map(&map, held->cells_fd, IPC_SEGMENT_CELLS, 0, true), 0);
        held->cells = map;
        cells = map;
    }
    EXPECT(cells != NULL);
    held->cell = &cells->cells[held->index];
    raw_confirm(client, TYPE(LANE_ADD), held->pairing, 0);
}

void held_cell_close(struct held_cell *held)
{
    lane_segment_unmap((void *)(uintptr_t)held->lane, IPC_SEGMENT_LANE, held->ring_size);
    lane_segment_unmap(held->cells, IPC_SEGMENT_CELLS, 0);
    const int fds[] = {held->lane_fd, held->cells_fd, held->bell_fd};
    for (unsigned i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}
