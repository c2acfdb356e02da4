/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fault/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

extern const char __executable_start;

static bool fails(enum fault_kind kind, const void *caller)
{
    if (fault_spared || atomic_load(&fault->kind) != (uint32_t)kind)
        return false;
    uint32_t call = atomic_fetch_add(&fault->calls, 1) + 1;
    if (call < atomic_load(&fault->at) || call > atomic_load(&fault->last))
        return false;
    if (atomic_fetch_add(&fault->hits, 1) == 0)
        atomic_store(&fault->where, (uint64_t)((uintptr_t)caller - (uintptr_t)&__executable_start));
    errno = atomic_load(&fault->error);
    if (errno == FAULT_DEATH)
        raise(SIGKILL);
    return true;
}

#define FAILS(kind) fails(FAULT_##kind, __builtin_return_address(0))

__attribute__((constructor)) static void fault_find(void)
{
    const char *text = getenv("IPC_FAULT");
    fault_spared++;
    void *shared = text ? mmap(NULL, sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(text), 0)
                        : MAP_FAILED;
    fault_spared--;
    if (shared == MAP_FAILED)
        return;
    fault = shared;
    atomic_fetch_add(&fault->begun, 1);
}

__attribute__((destructor)) static void fault_leave(void)
{
    atomic_fetch_add(&fault->left, 1);
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

static void *counted(void *memory)
{
    if (memory)
        atomic_fetch_add(&fault->live, 1);
    return memory;
}

/* WRAP(result, name, (parameters), (arguments), kind): `name` fails with -1. */
#define DECLARE(result, name, parameters) \
 result __real_##name parameters;         \
 result __wrap_##name parameters
#define WRAP(result, name, parameters, arguments, condition) \
 DECLARE(result, name, parameters);                          \
 result __wrap_##name parameters                             \
 {                                                           \
  if (condition)                                             \
   return -1;                                                \
  return __real_##name arguments;                            \
 }
#define ALLOCATES(name, parameters, arguments)                   \
 DECLARE(void *, name, parameters);                              \
 void *__wrap_##name parameters                                  \
 {                                                               \
  return FAILS(ALLOC) ? NULL : counted(__real_##name arguments); \
 }

ALLOCATES(malloc, (size_t size), (size))
ALLOCATES(calloc, (size_t count, size_t size), (count, size))
ALLOCATES(aligned_alloc, (size_t alignment, size_t size), (alignment, size))

DECLARE(void *, realloc, (void *memory, size_t size));
void *__wrap_realloc(void *memory, size_t size)
{
    if (FAILS(ALLOC))
        return NULL;
    return memory ? __real_realloc(memory, size) : counted(__real_realloc(memory, size));
}

DECLARE(char *, strdup, (const char *text));
char *__wrap_strdup(const char *text)
{
    return FAILS(ALLOC) ? NULL : counted(__real_strdup(text));
}

DECLARE(void, free, (void *memory));
void __wrap_free(void *memory)
{
    if (memory)
        atomic_fetch_sub(&fault->live, 1);
    __real_free(memory);
}

DECLARE(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset));
void *__wrap_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    return FAILS(MMAP) ? MAP_FAILED : __real_mmap(at, size, protection, flags, fd, offset);
}

WRAP(int, madvise, (void *at, size_t size, int advice), (at, size, advice), FAILS(MADVISE))
WRAP(int, memfd_create, (const char *name, unsigned flags), (name, flags), FAILS(MEMFD))
WRAP(int, fallocate, (int fd, int mode, off_t offset, off_t size), (fd, mode, offset, size),
     FAILS(FALLOCATE) || FAILS(FALLOCATE_EINTR))
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), FAILS(FTRUNCATE))
WRAP(int, fchmod, (int fd, mode_t mode), (fd, mode), FAILS(FCHMOD))
WRAP(int, fstat, (int fd, struct stat *st), (fd, st), FAILS(FSTAT))
WRAP(ssize_t, pwrite, (int fd, const void *bytes, size_t size, off_t offset), (fd, bytes, size, offset),
     FAILS(PWRITE))
WRAP(ssize_t, pread, (int fd, void *bytes, size_t size, off_t offset), (fd, bytes, size, offset),
     FAILS(PREAD))

/* ---- descriptors ------------------------------------------------------------------------------------------- */

DECLARE(int, open, (const char *path, int flags, ...));
int __wrap_open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return FAILS(OPEN) ? -1 : __real_open(path, flags, mode);
}

DECLARE(int, fcntl, (int fd, int command, ...));
int __wrap_fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return command != F_GET_SEALS && FAILS(FCNTL) ? -1 : __real_fcntl(fd, command, argument);
}

WRAP(int, dup2, (int from, int to), (from, to), FAILS(DUP2))
WRAP(int, socket, (int domain, int type, int protocol), (domain, type, protocol), FAILS(SOCKET))
WRAP(int, socketpair, (int domain, int type, int protocol, int ends[2]), (domain, type, protocol, ends),
     FAILS(SOCKETPAIR))
WRAP(int, bind, (int fd, const struct sockaddr *name, socklen_t size), (fd, name, size), FAILS(BIND))
WRAP(int, listen, (int fd, int backlog), (fd, backlog), FAILS(LISTEN))
WRAP(int, connect, (int fd, const struct sockaddr *name, socklen_t size), (fd, name, size), FAILS(CONNECT))
WRAP(int, accept4, (int fd, struct sockaddr *name, socklen_t *size, int flags), (fd, name, size, flags),
     FAILS(ACCEPT) || FAILS(ACCEPT_EINTR))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags),
     FAILS(SENDMSG) || FAILS(SENDMSG_EINTR))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags),
     FAILS(RECVMSG) || FAILS(RECVMSG_EINTR))
WRAP(ssize_t, send, (int fd, const void *bytes, size_t size, int flags), (fd, bytes, size, flags),
     FAILS(SEND) || /* a bell has room, unless it has been rung */
         ((size > 1 || atomic_load(&fault->error) != EAGAIN) && FAILS(SEND_EINTR)))
WRAP(ssize_t, recv, (int fd, void *bytes, size_t size, int flags), (fd, bytes, size, flags),
     FAILS(RECV) || (flags & MSG_TRUNC && FAILS(RECV_FRAME))) /* no other thread's, so that each is met */
WRAP(int, getsockopt, (int fd, int level, int option, void *value, socklen_t *size),
     (fd, level, option, value, size), FAILS(GETSOCKOPT))
WRAP(int, setsockopt, (int fd, int level, int option, const void *value, socklen_t size),
     (fd, level, option, value, size), FAILS(SETSOCKOPT))

/* ---- waiting, processes -------------------------------------------------------------------------------------- */

WRAP(int, epoll_create1, (int flags), (flags), FAILS(EPOLL_CREATE))
WRAP(int, epoll_ctl, (int set, int operation, int fd, struct epoll_event *event), (set, operation, fd, event),
     operation != EPOLL_CTL_DEL && FAILS(EPOLL_CTL))
static bool falls_asleep(int timeout)
{
    if (timeout != 0 && gettid() == getpid())
        atomic_store(&fault->asleep, 1);
    return false;
}

WRAP(int, epoll_wait, (int set, struct epoll_event *events, int most, int timeout),
     (set, events, most, timeout), FAILS(EPOLL_WAIT) || FAILS(EPOLL_WAIT_DEAD) || falls_asleep(timeout))
WRAP(int, poll, (struct pollfd * polls, nfds_t count, int timeout), (polls, count, timeout), FAILS(POLL))
WRAP(int, ppoll, (struct pollfd * polls, nfds_t count, const struct timespec *timeout, const sigset_t *mask),
     (polls, count, timeout, mask), FAILS(POLL))
WRAP(int, eventfd, (unsigned count, int flags), (count, flags), FAILS(EVENTFD))
WRAP(int, timerfd_create, (int clock, int flags), (clock, flags), FAILS(TIMERFD))
WRAP(int, timerfd_settime, (int fd, int flags, const struct itimerspec *new, struct itimerspec *old),
     (fd, flags, new, old), FAILS(TIMER))
WRAP(int, signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags), FAILS(SIGNALFD))
WRAP(int, pidfd_open, (pid_t pid, unsigned flags), (pid, flags), FAILS(PIDFD))
WRAP(ssize_t, getrandom, (void *bytes, size_t size, unsigned flags), (bytes, size, flags), FAILS(GETRANDOM))
WRAP(int, pipe2, (int ends[2], int flags), (ends, flags), FAILS(PIPE))

/* The frame of this function is gone by the time that a parent of vfork(2) goes on: so its child gets a copy. */
DECLARE(pid_t, vfork, (void));
pid_t __wrap_vfork(void)
{
    return FAILS(VFORK) ? -1 : fork();
}

DECLARE(int, pthread_create,
        (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *data));
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *data)
{
    return FAILS(THREAD) ? errno : __real_pthread_create(thread, attributes, run, data);
}

DECLARE(long, syscall, (long number, ...));
long __wrap_syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (unsigned i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    if ((number == SYS_membarrier && FAILS(MEMBARRIER)) ||
        (number == SYS_futex_waitv && (FAILS(WAITV) || FAILS(WAITV_EINTR))))
        return -1;
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
