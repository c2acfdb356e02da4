/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling who connects that there is no ipcd, and why. A socket on which connections wait would have systemd start us again
 * at once, and without end.
 */
#include "broker/run/run.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/text.h"
#include "proto/frame.h"

#define REFUSE_NS UINT64_C(1000000000) /* so rarely are we started in vain, whoever connects how often */

/* What it sent is not read, and not left unread either, which would have its next look fail before it comes to the answer. */
static void refuse(int fd, const void *answer, size_t size)
{
    unsigned char request[IPC_MAX_FRAME_SIZE];

    (void)shutdown(fd, SHUT_RD);
    while (recv(fd, request, sizeof(request), MSG_DONTWAIT) > 0)
        continue;
    (void)fd_send(fd, answer, size, NULL, 0);
}

void refuse_connections(int listen_fd, int signal_fd, const char *text)
{
    Ipc__Control__Failure message = IPC__CONTROL__FAILURE__INIT;
    struct pollfd polls[] = {{.fd = listen_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}};
    uint64_t until_ns = time_monotonic_ns() + REFUSE_NS, now_ns;
    unsigned char answer[IPC_MAX_FRAME_SIZE];
    char sentence[256];
    int size;

    (void)snprintf(sentence, sizeof(sentence), "there is no broker: %s", text);
    message.code = -ESHUTDOWN;
    message.text = sentence;
    size = ipc_frame_pack(answer, sizeof(answer), IPC__CONTROL__TYPE__FAILURE, 0, &message.base);
    if (size < 0)
        return;
    do {
        _cleanup_(fd_closep) int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        now_ns = time_monotonic_ns();
        if (fd >= 0)
            refuse(fd, answer, (size_t)size);
        else if (now_ns < until_ns)
            (void)poll(polls, 2, (int)((until_ns - now_ns) / 1000000) + 1);
    } while (now_ns < until_ns && polls[1].revents == 0);
}
