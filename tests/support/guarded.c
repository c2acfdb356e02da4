/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/guarded.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "proto/frame.h"
#include "proto/layout.h"
#include "tests/support/broker.h"

#define SAME_LOOKS 50u /* as often the same: nothing is on its way any more */

static int send_frame(int fd, uint16_t type, uint64_t id, const ProtobufCMessage *message)
{
    unsigned char packet[512];
    int size = ipc_frame_pack(packet, sizeof(packet), type, id, message);
    return send(fd, packet, (size_t)size, MSG_NOSIGNAL) == size ? 0 : -1;
}

/* Ask whoever serves the address: an admin session of its own. Pid 0: nobody answers. */
static struct guarded_status ask(const struct guarded *guarded)
{
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    const Ipc__Control__Status status = IPC__CONTROL__STATUS__INIT;
    const Ipc__Control__Done bye = IPC__CONTROL__DONE__INIT;
    static _Alignas(16) struct ipc_frame_arena arena;
    static unsigned char packet[IPC_MAX_FRAME_SIZE];
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct ipc_frame frame;
    struct guarded_status told = {0};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    EXPECT(fd >= 0);
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", guarded->address);
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char[]){"test"};
    hello.admin = true;
    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) == 0 &&
        send_frame(fd, IPC__CONTROL__TYPE__HELLO, 1, &hello.base) == 0 &&
        send_frame(fd, IPC__CONTROL__TYPE__STATUS, 2, &status.base) == 0) {
        ssize_t size;
        while (told.pid == 0 && (size = recv(fd, packet, sizeof(packet), 0)) > 0)
            if (ipc_frame_unpack(&frame, &arena, packet, (size_t)size) == 0 &&
                frame.type == IPC__CONTROL__TYPE__STATUS_REPLY) {
                const Ipc__Control__StatusReply *reply = (const void *)frame.message;
                told.pid = (pid_t)reply->pid;
                told.starts = reply->starts;
                snprintf(told.guardian, sizeof(told.guardian), "%s", reply->guardian);
            }
    }
    if (told.pid != 0 && send_frame(fd, IPC__CONTROL__TYPE__GOODBYE, 3, &bye.base) == 0)
        while (recv(fd, packet, sizeof(packet), 0) >
               0) /* until the session is gone: it is not to be counted */
            continue;
    close(fd);
    return told;
}

struct guarded_status guarded_status(const struct guarded *guarded)
{
    return ask(guarded);
}

pid_t guarded_wait_other(const struct guarded *guarded, pid_t other)
{
    for (;;) {
        pid_t pid = ask(guarded).pid;
        if (pid != 0 && pid != other)
            return pid;
        sched_yield();
    }
}

pid_t guarded_pid(const struct guarded *guarded)
{
    return guarded_wait_other(guarded, 0);
}

/* With nothing to read, that is: whoever is sent something is awake until it has read it. */
static bool sleeps(pid_t pid)
{
    char path[64], state = 'R';
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    EXPECT(file != NULL);
    EXPECT(fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
    fclose(file);
    return state == 'S';
}

unsigned guarded_kept(const struct guarded *guarded)
{
    while (!sleeps(guarded->run))
        sched_yield();
    unsigned kept = descriptors_of(guarded->run);
    for (unsigned same = 0; same < SAME_LOOKS; same++) {
        unsigned now = descriptors_of(guarded->run);
        if (now != kept)
            same = 0;
        kept = now;
        sched_yield();
    }
    return kept;
}

void guarded_kill_ipcd(const struct guarded *guarded)
{
    pid_t pid = guarded_pid(guarded);
    EXPECT_EQ(kill(pid, SIGKILL), 0);
    guarded_wait_other(guarded, pid);
}

void guarded_run(struct guarded *guarded, const char *const *arguments)
{
    const char *argv[16] = {getenv("IPCD_RUN_BIN"), "--address", guarded->address, "--config", "/dev/null"};
    unsigned n = 5;
    EXPECT(argv[0] != NULL);
    while (arguments && *arguments)
        argv[n++] = *arguments++;
    guarded->run = fork_child();
    EXPECT(guarded->run >= 0);
    if (guarded->run == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* so that it takes ipcd along */
        broker_limit_files();
        execv(argv[0], (char **)(uintptr_t)argv);
        _exit(127);
    }
}

void guarded_start(struct guarded *guarded, const char *const *arguments)
{
    snprintf(guarded->folder, sizeof(guarded->folder), "/tmp/ipc-guarded.XXXXXX");
    EXPECT(mkdtemp(guarded->folder) != NULL);
    snprintf(guarded->address, sizeof(guarded->address), "%s/socket", guarded->folder);
    setenv("IPC_ADDRESS", guarded->address, 1);
    guarded_run(guarded, arguments);
    guarded_pid(guarded);
}

void guarded_lose(const struct guarded *guarded)
{
    pid_t ipcd = guarded_pid(guarded);
    struct pollfd gone = {.fd = pidfd_open(ipcd, 0), .events = POLLIN};
    EXPECT(gone.fd >= 0);
    EXPECT_EQ(kill(guarded->run, SIGSTOP), 0); /* so that it starts no other */
    EXPECT_EQ(kill(ipcd, SIGKILL), 0);
    child_kill(guarded->run);
    EXPECT_EQ(poll(&gone, 1, -1), 1);
    close(gone.fd);
}

void guarded_stop(struct guarded *guarded)
{
    int status;
    EXPECT_EQ(kill(guarded->run, SIGTERM), 0);
    EXPECT_EQ(waitpid(guarded->run, &status, 0), guarded->run);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT_EQ(rmdir(guarded->folder), 0);
}
