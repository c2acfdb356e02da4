/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests of the broker from outside: a broker of one's own, and clients that speak frames over a plain socket. Every
 * wait ends by an event, under the watchdog.
 */
#ifndef IPC_TESTS_BROKER_RAW_H
#define IPC_TESTS_BROKER_RAW_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <ipc/error.h>

#include "proto/frame.h"
#include "proto/layout.h"
#include "tests/support/watchdog.h"

#define TYPE(name) IPC__CONTROL__TYPE__##name

struct raw_broker {
    pid_t pid;
    char folder[64], address[96], config[96];
    int notify_fd;
};

struct raw_client {
    int fd;
    uint64_t last_id, session;
    struct ipc_board *board;
    struct ipc_frame_arena arena;
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    /* Of the frame received last. */
    struct ipc_frame frame;
    int fds[IPC_MAX_FRAME_FDS];
    unsigned n_fds;
};

/* ---- the broker -------------------------------------------------------------------------------------------- */

static inline void raw_folder(struct raw_broker *broker)
{
    struct sockaddr_un notify = {.sun_family = AF_UNIX};

    *broker = (struct raw_broker){.notify_fd = -1};
    (void)snprintf(broker->folder, sizeof(broker->folder), "/tmp/ipcd-test.XXXXXX");
    assert_non_null(mkdtemp(broker->folder));
    (void)snprintf(broker->address, sizeof(broker->address), "%s/socket", broker->folder);
    (void)snprintf(broker->config, sizeof(broker->config), "%s/ipcd.conf", broker->folder);
    (void)snprintf(notify.sun_path, sizeof(notify.sun_path), "%s/notify", broker->folder);
    broker->notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(broker->notify_fd >= 0);
    assert_return_code(bind(broker->notify_fd, (const struct sockaddr *)&notify, sizeof(notify)), errno);
}

/* The policy of these brokers, unless the test is about that. */
#define RAW_EVERYBODY \
 "[rule everybody]\n" \
 "who = anyone\n"     \
 "allow = publish subscribe send receive call serve attach create\n"

static inline void raw_write(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* Wait until the broker says `what` to its service manager, or ends. */
static inline void raw_wait_notify(struct raw_broker *broker, const char *what)
{
    char text[512];
    struct pollfd polls[] = {{.fd = broker->notify_fd, .events = POLLIN},
                             {.fd = pidfd_open(broker->pid, 0), .events = POLLIN}};

    do {
        ssize_t size;

        assert_true(poll(polls, 2, -1) > 0);
        size = recv(broker->notify_fd, text, sizeof(text) - 1, MSG_DONTWAIT);
        assert_true(size > 0);
        text[size] = '\0';
    } while (!strstr(text, what));
    close(polls[1].fd);
}

/* As raw_broker_start(), with a limit of open files; 0: as it is. */
static inline void raw_broker_start_limited(struct raw_broker *broker, const char *config,
                                            const char *const extra[4], rlim_t files)
{
    const char *program = getenv("IPCD_BIN");
    char text[4096];

    assert_non_null(program);
    raw_folder(broker);
    (void)snprintf(text, sizeof(text), "%s\n%s", config ? config : "", RAW_EVERYBODY);
    raw_write(broker->config, text);
    broker->pid = fork_child();
    assert_true(broker->pid >= 0);
    if (broker->pid == 0) {
        char notify[96];
        const char *argv[12] = {program,
                                "--address",
                                broker->address,
                                "--config",
                                broker->config,
                                "--log-level",
                                getenv("IPCD_TEST_LOG") ? getenv("IPCD_TEST_LOG") : "error"};

        for (size_t i = 0; extra && i < 4 && extra[i]; i++)
            argv[7 + i] = extra[i];
        (void)snprintf(notify, sizeof(notify), "%s/notify", broker->folder);
        (void)setenv("NOTIFY_SOCKET", notify, 1);
        if (files > 0 && setrlimit(RLIMIT_NOFILE, &(struct rlimit){files, files}) < 0)
            _exit(126);
        execv(program, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    raw_wait_notify(broker, "READY=1");
}

/* Start ipcd with a configuration (or NULL) and up to 4 further arguments; returns when it is ready. */
static inline void raw_broker_start(struct raw_broker *broker, const char *config, const char *const extra[4])
{
    raw_broker_start_limited(broker, config, extra, 0);
}

/* Stop it by SIGTERM; its exit status has to be 0. Everything that is in the folder is removed; what the broker should
 * have removed fails the test. */
static inline void raw_broker_stop(struct raw_broker *broker)
{
    char path[128];
    struct stat st;

    assert_return_code(kill(broker->pid, SIGTERM), errno);
    assert_int_equal(wait_child(broker->pid), 0);
    assert_int_equal(lstat(broker->address, &st), -1);
    (void)snprintf(path, sizeof(path), "%s.lock", broker->address);
    assert_int_equal(lstat(path, &st), -1);
    close(broker->notify_fd);
    (void)unlink(broker->config);
    (void)snprintf(path, sizeof(path), "%s/notify", broker->folder);
    (void)unlink(path);
    assert_return_code(rmdir(broker->folder), errno);
}

static inline unsigned raw_broker_descriptors(const struct raw_broker *broker)
{
    char path[64];
    unsigned n = 0;

    for (int fd = 0; fd < 4096; fd++) {
        (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)broker->pid, fd);
        n += access(path, F_OK) == 0 || readlink(path, (char[1]){0}, 1) >= 0;
    }
    return n;
}

/* ---- clients ----------------------------------------------------------------------------------------------- */

static inline void raw_connect(struct raw_client *client, const struct raw_broker *broker)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    memset(client, 0, sizeof(*client));
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", broker->address);
    client->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(client->fd >= 0);
    assert_return_code(connect(client->fd, (const struct sockaddr *)&address, sizeof(address)), errno);
}

static inline void raw_drop_fds(struct raw_client *client)
{
    for (unsigned i = 0; i < client->n_fds; i++)
        close(client->fds[i]);
    client->n_fds = 0;
}

static inline void raw_disconnect(struct raw_client *client)
{
    raw_drop_fds(client);
    if (client->board)
        munmap(client->board, sizeof(*client->board));
    client->board = NULL;
    close(client->fd);
    client->fd = -1;
}

static inline void raw_send_as(struct raw_client *client, unsigned type, uint64_t id,
                               const ProtobufCMessage *message)
{
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    int size = ipc_frame_pack(packet, sizeof(packet), (uint16_t)type, id, message);

    assert_true(size > 0);
    assert_int_equal(send(client->fd, packet, (size_t)size, MSG_NOSIGNAL), size);
}

static inline uint64_t raw_send(struct raw_client *client, unsigned type, const ProtobufCMessage *message)
{
    raw_send_as(client, type, ++client->last_id, message);
    return client->last_id;
}

/* Receive one frame. Returns its type, or -1 if the broker hung up. With MSG_DONTWAIT also 0: there is none. */
static inline int raw_recv(struct raw_client *client, int flags)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(client->fds))];
    } control;
    struct iovec piece = {.iov_base = client->packet, .iov_len = sizeof(client->packet)};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t size;

    raw_drop_fds(client);
    size = recvmsg(client->fd, &message, flags | MSG_CMSG_CLOEXEC);
    if (size < 0 && errno == EAGAIN)
        return 0;
    if (size <= 0)
        return -1;
    assert_false(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (rights) {
        assert_int_equal(rights->cmsg_type, SCM_RIGHTS);
        client->n_fds = (unsigned)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(client->fds, CMSG_DATA(rights), client->n_fds * sizeof(int));
    }
    assert_int_equal(ipc_frame_unpack(&client->frame, &client->arena, client->packet, (size_t)size), 0);
    assert_true(client->n_fds <= ipc_frame_fds_max(client->frame.type));
    return client->frame.type;
}

/* The next frame has to be of that type. Its message lives until the next one is received. */
static inline const void *raw_expect(struct raw_client *client, unsigned type)
{
    int got = raw_recv(client, 0);

    if (got == TYPE(FAILURE) && type != TYPE(FAILURE))
        print_error("failure: %s\n",
                    ((const Ipc__Control__Failure *)(const void *)client->frame.message)->text);
    if (got == TYPE(ENDED) && type != TYPE(ENDED))
        print_error("ended: %s\n", ((const Ipc__Control__Ended *)(const void *)client->frame.message)->text);
    assert_int_equal(got, type);
    return client->frame.message;
}

/* The broker ends the session with this reason (and, if it had a board, says so there). */
static inline void raw_expect_ended(struct raw_client *client, unsigned reason)
{
    const Ipc__Control__Ended *ended = raw_expect(client, TYPE(ENDED));

    assert_int_equal(ended->reason, reason);
    assert_true(strlen(ended->text) > 0);
    assert_int_equal(raw_recv(client, 0), -1);
    if (client->board)
        assert_int_equal(atomic_load(&client->board->ended), reason);
}

static inline void raw_hello_as(struct raw_client *client, const char *name, bool admin)
{
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;

    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.features = IPC_FEATURE_MEMBARRIER;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char *)(uintptr_t)name;
    hello.admin = admin;
    raw_send(client, TYPE(HELLO), &hello.base);
}

static inline void raw_hello(struct raw_client *client, const struct raw_broker *broker, const char *name)
{
    const Ipc__Control__Welcome *welcome;

    raw_connect(client, broker);
    raw_hello_as(client, name, false);
    welcome = raw_expect(client, TYPE(WELCOME));
    client->session = welcome->session;
    assert_int_equal(client->n_fds, 1);
    client->board = mmap(NULL, sizeof(*client->board), PROT_READ, MAP_SHARED, client->fds[0], 0);
    assert_true(client->board != MAP_FAILED);
}

static inline void raw_admin(struct raw_client *client, const struct raw_broker *broker)
{
    raw_connect(client, broker);
    raw_hello_as(client, "admin", true);
    client->session = ((const Ipc__Control__Welcome *)raw_expect(client, TYPE(WELCOME)))->session;
    assert_int_equal(client->n_fds, 0);
}

static inline const Ipc__Control__StatusReply *raw_status(struct raw_client *client)
{
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;

    raw_send(client, TYPE(STATUS), &status.base);
    return raw_expect(client, TYPE(STATUS_REPLY));
}

/* Returns the lane; its descriptor is client->fds[0] until the next frame. */
static inline uint64_t raw_advertise(struct raw_client *client, const char *topic, uint32_t ring_size,
                                     bool retain)
{
    Ipc__Control__Advertise advertise = IPC__CONTROL__ADVERTISE__INIT;
    const Ipc__Control__Advertised *advertised;

    advertise.topic = (char *)(uintptr_t)topic;
    advertise.ring_size = ring_size;
    advertise.retain = retain;
    raw_send(client, TYPE(ADVERTISE), &advertise.base);
    advertised = raw_expect(client, TYPE(ADVERTISED));
    assert_int_equal(client->n_fds, 1);
    return advertised->lane;
}

static inline uint64_t raw_subscribe(struct raw_client *client, const char *pattern, unsigned start,
                                     uint32_t matched)
{
    Ipc__Control__Subscribe subscribe = IPC__CONTROL__SUBSCRIBE__INIT;
    const Ipc__Control__Subscribed *subscribed;

    subscribe.pattern = (char *)(uintptr_t)pattern;
    subscribe.start = (Ipc__Control__Start)start;
    raw_send(client, TYPE(SUBSCRIBE), &subscribe.base);
    subscribed = raw_expect(client, TYPE(SUBSCRIBED));
    assert_int_equal(subscribed->matched, matched);
    return subscribed->subscription;
}

static inline void raw_unsubscribe(struct raw_client *client, uint64_t subscription)
{
    Ipc__Control__Unsubscribe unsubscribe = IPC__CONTROL__UNSUBSCRIBE__INIT;

    unsubscribe.subscription = subscription;
    raw_send(client, TYPE(UNSUBSCRIBE), &unsubscribe.base);
    raw_expect(client, TYPE(DONE));
}

static inline void raw_unadvertise(struct raw_client *client, uint64_t lane)
{
    Ipc__Control__Unadvertise unadvertise = IPC__CONTROL__UNADVERTISE__INIT;

    unadvertise.lane = lane;
    raw_send(client, TYPE(UNADVERTISE), &unadvertise.base);
    raw_expect(client, TYPE(DONE));
}

static inline void raw_confirm(struct raw_client *client, unsigned notice, uint64_t pairing, int result)
{
    Ipc__Control__Confirm confirm = IPC__CONTROL__CONFIRM__INIT;

    confirm.notice = (Ipc__Control__Type)notice;
    confirm.pairing = pairing;
    confirm.result = result;
    raw_send_as(client, TYPE(CONFIRM), 0, &confirm.base);
}

static inline void raw_goodbye(struct raw_client *client)
{
    const Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;

    raw_send(client, TYPE(GOODBYE), &done.base);
    raw_expect(client, TYPE(DONE));
    assert_int_equal(raw_recv(client, 0), -1);
    raw_disconnect(client);
}

/* More round trips than the broker makes in one round of its loop: everything that it was sent before has been worked on,
 * and what followed from it was told to everybody. */
static inline void raw_settle(struct raw_client *client)
{
    for (unsigned i = 0; i < 40; i++)
        (void)raw_status(client);
}

#endif
