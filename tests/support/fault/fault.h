/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of libc that fail when told to: a program linked with inject.c and the option --wrap for each of fault_calls in
 * tests/CMakeLists.txt has its own calls of them (not those of other libraries) counted and, when armed, refused. The
 * words are shared, so that one process tells another, and so that a fault counts on over a restart.
 */
#ifndef IPC_TESTS_FAULT_H
#define IPC_TESTS_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Kind, and what the kernel or libc may say then. ONCE: over at the next try by its nature. INPUT, PAUSE: what lasts ends
 * after a while, or nothing could be seen of what follows: a broker that cannot read, or send, cannot answer. */
#define FAULT_KINDS(X)                                      \
 X(ALLOC, alloc, NORMAL, ENOMEM)                            \
 X(MMAP, mmap, NORMAL, ENOMEM)                              \
 X(MADVISE, madvise, NORMAL, ENOMEM)                        \
 X(MEMFD, memfd_create, NORMAL, ENOMEM, EMFILE, EINVAL)     \
 X(FALLOCATE, fallocate, NORMAL, ENOSPC, ENOMEM)            \
 X(FALLOCATE_EINTR, fallocate_eintr, ONCE, EINTR)           \
 X(FTRUNCATE, ftruncate, NORMAL, ENOMEM)                    \
 X(FCHMOD, fchmod, NORMAL, EPERM)                           \
 X(FSTAT, fstat, NORMAL, ENOMEM)                            \
 X(PWRITE, pwrite, NORMAL, ENOSPC)                          \
 X(PREAD, pread, NORMAL, EIO)                               \
 X(OPEN, open, NORMAL, EMFILE, ENFILE, ENOMEM)              \
 X(FCNTL, fcntl, NORMAL, EMFILE, EPERM)                     \
 X(DUP2, dup2, NORMAL, EMFILE)                              \
 X(SOCKET, socket, NORMAL, EMFILE, ENOBUFS)                 \
 X(SOCKETPAIR, socketpair, NORMAL, EMFILE, ENOBUFS)         \
 X(BIND, bind, NORMAL, ENOMEM)                              \
 X(LISTEN, listen, NORMAL, EADDRINUSE)                      \
 X(CONNECT, connect, NORMAL, ECONNREFUSED, EAGAIN)          \
 X(ACCEPT, accept4, PAUSE, EMFILE, ENFILE, ENOMEM, ENOBUFS) \
 X(ACCEPT_EINTR, accept4_eintr, ONCE, EINTR, ECONNABORTED)  \
 X(SENDMSG, sendmsg, PAUSE, ENOBUFS, ENOMEM, ETOOMANYREFS)  \
 X(SENDMSG_EINTR, sendmsg_eintr, ONCE, EINTR, EAGAIN)       \
 X(RECVMSG, recvmsg, INPUT, ENOMEM, ENOBUFS)                \
 X(RECVMSG_EINTR, recvmsg_eintr, ONCE, EINTR)               \
 X(RECV, recv, ONCE, EINTR, EAGAIN)                         \
 X(RECV_FRAME, recv_frame, ONCE, EINTR, EAGAIN)             \
 X(SEND, send, INPUT, ENOBUFS, ENOMEM)                      \
 X(SEND_EINTR, send_eintr, ONCE, EINTR, EAGAIN)             \
 X(GETSOCKOPT, getsockopt, NORMAL, EMFILE, ESRCH)           \
 X(SETSOCKOPT, setsockopt, NORMAL, ENOMEM)                  \
 X(EPOLL_CREATE, epoll_create1, NORMAL, EMFILE, ENOMEM)     \
 X(EPOLL_CTL, epoll_ctl, NORMAL, ENOMEM, ENOSPC)            \
 X(EPOLL_WAIT, epoll_wait, ONCE, EINTR)                     \
 X(EPOLL_WAIT_DEAD, epoll_wait_dead, NORMAL, EINVAL)        \
 X(POLL, poll, INPUT, EINTR, ENOMEM)                        \
 X(EVENTFD, eventfd, NORMAL, EMFILE, ENOMEM)                \
 X(TIMERFD, timerfd_create, NORMAL, EMFILE)                 \
 X(TIMER, timerfd_settime, NORMAL, ENOMEM)                  \
 X(SIGNALFD, signalfd, NORMAL, EMFILE)                      \
 X(PIDFD, pidfd_open, NORMAL, EMFILE, ENOMEM, ESRCH)        \
 X(GETRANDOM, getrandom, NORMAL, ENOSYS)                    \
 X(THREAD, pthread_create, NORMAL, EAGAIN)                  \
 X(VFORK, vfork, NORMAL, EAGAIN)                            \
 X(PIPE, pipe2, NORMAL, EMFILE)                             \
 X(MEMBARRIER, membarrier, NORMAL, ENOMEM, ENOSYS)          \
 X(WAITV, futex_waitv, NORMAL, ENOMEM, ENOSYS)              \
 X(WAITV_EINTR, futex_waitv_eintr, ONCE, EINTR)

enum fault_kind {
    FAULT_NONE,
#define X(name, word, nature, ...) FAULT_##name,
    FAULT_KINDS(X)
#undef X
        FAULT_KIND_COUNT
};

enum fault_nature { FAULT_NORMAL, FAULT_ONCE, FAULT_INPUT, FAULT_PAUSE };

#define FAULT_ERRORS_MAX 4
struct fault_word {
    const char *word;
    enum fault_nature nature;
    int errors[FAULT_ERRORS_MAX]; /* 0: no more */
};
extern const struct fault_word fault_words[FAULT_KIND_COUNT];

struct fault {
    _Atomic uint32_t kind; /* FAULT_NONE: count only */
    _Atomic uint32_t at;   /* the how manieth call from now fails */
    _Atomic uint32_t last; /* and those up to this one */
    _Atomic int32_t error;
    _Atomic uint32_t calls; /* of that kind since it was armed */
    _Atomic uint32_t hits;
    _Atomic int64_t live;    /* allocations that were not freed */
    _Atomic uint64_t where;  /* the caller of the first that failed, from the start of its program */
    _Atomic uint32_t begun;  /* programs that found these words */
    _Atomic uint32_t left;   /* and those that ended by exit(3) */
    _Atomic uint32_t asleep; /* one of them had nothing to do: its first thread waited for events */
};

/* The words of this process; never NULL. */
extern struct fault *fault;

/* The calls of this thread are left alone while this is not 0. */
extern _Thread_local unsigned fault_spared;

/* Words that children share: those of fork, and programs that find the descriptor of them in IPC_FAULT. */
struct fault *fault_share(void);

/* In place of an error: the call is the last one of its process. */
#define FAULT_DEATH (-1)

void fault_arm(enum fault_kind kind, uint32_t at, uint32_t last, int error);
/* Returns how often the fault was seen. */
unsigned fault_disarm(void);

#endif
