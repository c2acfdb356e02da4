/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "broker/core/util/fd.h"

/* A number from the environment. 1; 0: it is not there; -EINVAL. */
static int number_of(const char *name, uint64_t max, uint64_t *ret)
{
    const char *text = getenv(name);
    char *end;

    if (!text)
        return 0;
    errno = 0;
    *ret = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && *ret <= max ? 1 : -EINVAL;
}

/* Is what a variable says meant for us? As number_of(); without the variable it is if `else_ours`. */
static int is_ours(const char *name, bool else_ours)
{
    uint64_t pid;
    int result = number_of(name, INT_MAX, &pid);

    if (result <= 0)
        return result < 0 ? result : else_ours;
    return pid == (uint64_t)getpid();
}

int daemon_listen_fds(void)
{
    uint64_t count = 0;
    int result = is_ours("LISTEN_PID", false);

    if (result > 0)
        result = number_of("LISTEN_FDS", INT_MAX - DAEMON_LISTEN_FD, &count);
    (void)unsetenv("LISTEN_PID");
    (void)unsetenv("LISTEN_FDS");
    (void)unsetenv("LISTEN_FDNAMES");
    return result < 0 ? result : (int)count;
}

int64_t daemon_watchdog_us(void)
{
    uint64_t us = 0;
    int result = is_ours("WATCHDOG_PID", true);

    if (result > 0)
        result = number_of("WATCHDOG_USEC", INT64_MAX, &us);
    return result < 0 ? result : (int64_t)us;
}

void journal_field(struct journal_entry *entry, const char *key, const char *format, ...)
{
    size_t left = sizeof(entry->bytes) - entry->size, head = strlen(key) + 1 + sizeof(uint64_t);
    char *at = entry->bytes + entry->size, *value = at + head;
    va_list arguments;
    uint64_t length;
    int size;

    if (left <= head)
        return;
    va_start(arguments, format);
    size = vsnprintf(value, left - head, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= left - head)
        return;
    length = (uint64_t)size;
    for (size_t i = 0; i < sizeof(length); i++) /* little endian */
        at[head - sizeof(length) + i] = (char)(length >> 8 * i);
    *stpcpy(at, key) = '\n';
    value[size] = '\n';
    entry->size += head + (size_t)size + 1;
}

int journal_send(const struct journal_entry *entry, const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    _cleanup_(fd_closep) int fd = -1;

    if (snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path) >=
        (int)sizeof(address.sun_path))
        return -ENAMETOOLONG;
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    return sendto(fd, entry->bytes, entry->size, MSG_DONTWAIT | MSG_NOSIGNAL,
                  (const struct sockaddr *)&address, sizeof(address)) < 0
               ? -errno
               : 0;
}
