/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/run/run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "proto/store.h"

#define MESSAGE_SIZE_MAX 4096u

int notify_init(struct notify *notify)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint64_t random[2];
    const int on = 1;

    notify->fd = -1;
    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return -EIO;
    (void)snprintf(notify->address, sizeof(notify->address), "@ipcd-run/%016" PRIx64 "%016" PRIx64, random[0],
                   random[1]);
    size_t size = strlen(notify->address);

    memcpy(address.sun_path + 1, notify->address + 1, size - 1);
    notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (notify->fd < 0 ||
        bind(notify->fd, (const struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size)) < 0 ||
        setsockopt(notify->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) {
        int result = -errno;

        notify_done(notify);
        return result;
    }
    return 0;
}

void notify_done(struct notify *notify)
{
    notify->fd = fd_close(notify->fd);
}

void notify_parse(const char *text, struct notify_news *ret)
{
    *ret = (struct notify_news){0};
    while (*text) {
        size_t size = strcspn(text, "\n");
        char line[320];

        (void)snprintf(line, sizeof(line), "%.*s", (int)(size < sizeof(line) - 1 ? size : sizeof(line) - 1),
                       text);
        if (strcmp(line, "READY=1") == 0)
            ret->ready = true;
        else if (strcmp(line, "FDSTORE=1") == 0)
            ret->store = true;
        else if (strcmp(line, "FDSTOREREMOVE=1") == 0)
            ret->remove = true;
        else if (strcmp(line, "STOPPING=1") == 0)
            ret->stopping = true;
        else if (strcmp(line, "WATCHDOG=1") == 0)
            ret->watchdog = true;
        else if (strncmp(line, "EXTEND_TIMEOUT_USEC=", 20) == 0)
            ret->extend_us = strtoull(line + 20, NULL, 10);
        else if (strncmp(line, "STATUS=", 7) == 0)
            text_clean(ret->status, sizeof(ret->status), line + 7);
        text += size + (text[size] == '\n');
    }
}

/* The sender, and the descriptors that it sent along; those beyond STORE_PARTS are closed. */
static pid_t sender_of(struct msghdr *message, int *fds, unsigned *ret_count)
{
    pid_t pid = 0;

    *ret_count = 0;

    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level != SOL_SOCKET)
            continue;
        if (control->cmsg_type == SCM_CREDENTIALS) {
            struct ucred sender;

            memcpy(&sender, CMSG_DATA(control), sizeof(sender));
            pid = sender.pid;
        } else if (control->cmsg_type == SCM_RIGHTS) {
            for (size_t at = 0; at + sizeof(int) <= control->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
                int fd;

                memcpy(&fd, CMSG_DATA(control) + at, sizeof(fd));
                if (*ret_count < STORE_PARTS)
                    fds[(*ret_count)++] = fd;
                else
                    fd_close(fd);
            }
        }
    }
    return pid;
}

/* The names of a message, one after the other; NULL: no more. */
static const char *next_name(const char **at, char *name, size_t size)
{
    static const char key[] = "FDNAME=";

    while (**at) {
        const char *line = *at;
        size_t length = strcspn(line, "\n");

        *at += length + (line[length] == '\n');
        if (strncmp(line, key, sizeof(key) - 1) != 0 || length - (sizeof(key) - 1) >= size)
            continue;
        (void)snprintf(name, size, "%.*s", (int)(length - (sizeof(key) - 1)), line + sizeof(key) - 1);
        return name;
    }
    return NULL;
}

/* Returns true if the descriptors are the store's now. */
static bool keep(struct store *store, const struct notify_news *news, const char *text, const int *fds,
                 unsigned count)
{
    char name[IPC_KEPT_NAME_SIZE];

    if (news->store)
        return next_name(&text, name, sizeof(name)) && store_put(store, name, fds, count) == 0;
    while (news->remove && next_name(&text, name, sizeof(name)))
        store_remove(store, name);
    return false;
}

int notify_read(struct notify *notify, pid_t pid, struct store *store, struct notify_news *ret)
{
    for (;;) {
        char text[MESSAGE_SIZE_MAX + 1];
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(8 * sizeof(int))];
        } control;
        struct iovec piece = {.iov_base = text, .iov_len = MESSAGE_SIZE_MAX};
        struct msghdr message = {
            .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        int fds[STORE_PARTS];
        unsigned count;
        ssize_t size = recvmsg(notify->fd, &message, MSG_DONTWAIT); /* what is kept is inherited */
        bool ours;
        pid_t sender;

        if (size < 0) {
            if (errno == EINTR)
                continue;
            return errno == EAGAIN ? 0 : -errno;
        }
        sender = sender_of(&message, fds, &count);
        ours = sender == pid && pid > 0;
        text[size] = '\0';
        notify_parse(text, ret);
        ret->sender = sender;
        if (!ours || (message.msg_flags & MSG_CTRUNC) || !keep(store, ret, text, fds, count)) {
            ret->refused = ours && ret->store;
            while (count > 0)
                fd_close(fds[--count]);
        }
        return 1;
    }
}
