/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file segment.h
 * Shared segments: memory by name that several processes write, coordinated by a semaphore of permits.
 *
 * A segment has `size` bytes and a fixed number of permits. Whoever holds a permit may do with the bytes what the
 * participants agreed on: with one permit, only one of them at a time. Taking a permit that is free, and giving it back
 * while nobody waits, is one atomic operation and no system call.
 *
 * The permits of a session that ends return by themselves, however it ends: what it was writing may then be half done,
 * which the next one has to be able to cope with. (sem_overview(7) knows no such thing.) The participants trust each
 * other: each of them can write all of it, the semaphore included.
 *
 * When the broker goes away for good (see IPC_CONNECTION_RECONNECT), the segments that it made have no name any more. Whoever has
 * one open keeps its bytes until it is closed, and what others write there; but permits cannot be had (-EPIPE), because
 * nobody would take back those of the dead. To go on, open the name again on the same connection: it is another segment,
 * all zeros, which one of the participants makes and fills, perhaps from the old one that it still has. Until a participant
 * notices (within a tenth of a second, in its next call) it may still take permits of the old one: they keep nobody out
 * of the new one.
 */
#ifndef IPC_SEGMENT_H
#define IPC_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include <ipc/connection.h>
#include <ipc/error.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ipc_segment ipc_segment;

/** Options of ipc_segment_open(). Start from IPC_SEGMENT_OPTIONS_INIT. */
struct ipc_segment_options {
    size_t size;      /**< sizeof(struct ipc_segment_options) */
    uint64_t bytes;   /**< 1 to 1,073,741,824 if it is to be made; of one that exists 0, or what it has */
    unsigned permits; /**< 1 to 256; 0: one, or what it has */
    unsigned flags;   /**< IPC_SEGMENT_* */
    unsigned
        mode; /**< of one that is made: who may open it, as the bits 0600, 0060, 0006 of files; 0: 0600 */
};
#define IPC_SEGMENT_OPTIONS_INIT                 \
 {                                               \
  sizeof(struct ipc_segment_options), 0, 0, 0, 0 \
 }

#define IPC_SEGMENT_CREATE    0x1u /**< make it if it does not exist */
#define IPC_SEGMENT_EXCLUSIVE 0x2u /**< only if it does not exist */
/** It stays, bytes and all, when nobody has it open any more, until ipc_segment_remove(). Else it goes then. */
#define IPC_SEGMENT_KEEP      0x4u

/**
 * Open a shared segment, or make it. A new one is all zeros.
 *
 * @param ret         receives it; yours, end it with ipc_segment_close()
 * @param connection  must outlive it, or end it
 * @param name        as of a topic, without wildcards; a name space of its own
 * @param options     NULL: one that exists
 * @param error       filled in on failure if not NULL
 * @return 0; -ENOENT there is none (and no IPC_SEGMENT_CREATE); -EEXIST IPC_SEGMENT_EXCLUSIVE; -EACCES its mode; -EINVAL
 *         bad name or options, or it has another size or number of permits; -EDQUOT a limit of this user; -EPIPE,
 *         -ETIMEDOUT, -ENOMEM, -ECHILD
 *
 * Any thread. Blocks up to the connection's timeout.
 */
IPC_PUBLIC int ipc_segment_open(ipc_segment **ret, ipc_connection *connection, const char *name,
                                const struct ipc_segment_options *options, struct ipc_error *error);

/** Let go of it: the permits that this session holds return, unless it has opened the same segment twice. NULL is
 * allowed. Blocks for one exchange with the broker. @return NULL */
IPC_PUBLIC ipc_segment *ipc_segment_close(ipc_segment *segment);

/** Its bytes: ipc_segment_size() of them, aligned to a page; valid until it is closed, and not in forked children. */
IPC_PUBLIC void *ipc_segment_data(ipc_segment *segment);
IPC_PUBLIC size_t ipc_segment_size(const ipc_segment *segment);
IPC_PUBLIC unsigned ipc_segment_permits(const ipc_segment *segment);

/** 1 if this call made it: its bytes are still to be filled in. Until they are, hold a permit. */
IPC_PUBLIC int ipc_segment_created(const ipc_segment *segment);

/**
 * Take a permit, waiting for one. Not in order of arrival.
 *
 * @param timeout_ns  0: do not wait; IPC_FOREVER
 * @return the permit's number, 0 to permits - 1, for ipc_segment_release(); -EAGAIN none is free and timeout_ns is 0;
 *         -ETIMEDOUT; -EPIPE the session is over, see below; -ECHILD
 *
 * Any thread; several threads may hold permits. What others wrote before they gave the permit back is visible.
 */
IPC_PUBLIC int ipc_segment_acquire(ipc_segment *segment, int64_t timeout_ns);

/** Give a permit back, from any thread of this process. @return 0; -EINVAL no such number; -EPERM it is not this
 * session's; -EPIPE it is given back, but the session is over: it may have kept nobody out lately; -ECHILD. Never blocks. */
IPC_PUBLIC int ipc_segment_release(ipc_segment *segment, int permit);

/** Undo IPC_SEGMENT_KEEP: the segment goes when nobody has it open. @return 0; -ENOENT; -EACCES; -EPIPE, -ETIMEDOUT */
IPC_PUBLIC int ipc_segment_remove(ipc_connection *connection, const char *name, struct ipc_error *error);

#ifdef __cplusplus
}
#endif

#endif
