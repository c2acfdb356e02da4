/* SPDX-License-Identifier: Apache-2.0
 *
 * Queues are created, changed and removed by clients that may.
 */
#include <errno.h>

#include "ipc/queue.h"
#include "libipc/session/session.h"
#include "proto/name.h"

#define GIVEN_ALL 0x3ffeu

/* The bits of `given` are the numbers of the fields on the wire. */
static int convert(Ipc__Control__QueueSettings *to, const struct ipc_queue_settings *from,
                   struct ipc_error *error)
{
    ipc__control__queue_settings__init(to);
    if (!from)
        return 0;
    if (from->size != sizeof(*from))
        return error_set(error, -EINVAL, "the settings do not start from IPC_QUEUE_SETTINGS_INIT");
    if (from->given & ~GIVEN_ALL)
        return error_set(error, -EINVAL, "given names fields that are not known: 0x%x", from->given);
    if ((unsigned)from->full > IPC_QUEUE_FULL_DEAD_LETTER || (unsigned)from->safety > IPC_QUEUE_BEST_EFFORT)
        return error_set(error, -EINVAL, "full %d or safety %d is not known", (int)from->full,
                         (int)from->safety);
    to->given = from->given;
    to->messages_max = from->messages_max;
    to->bytes_max = from->bytes_max;
    to->message_size_max = from->message_size_max;
    to->full = (Ipc__Control__Full)from->full;
    to->class_ = (Ipc__Control__Class)from->safety;
    to->ttl_ns = from->ttl_ns;
    to->delay_ns = from->delay_ns;
    to->lease_ns = from->lease_ns;
    to->attempts_max = from->attempts_max;
    if (from->dead_letter && (from->given & IPC_QUEUE_DEAD_LETTER))
        to->dead_letter = (char *)(uintptr_t)from->dead_letter;
    to->dedup_window = from->dedup_window;
    to->dedup_window_ns = from->dedup_window_ns;
    to->paused = from->paused != 0;
    return 0;
}

static int check(ipc_connection *connection, const char *queue, struct ipc_error *error)
{
    if (!connection)
        return error_set(error, -EINVAL, "connection is NULL");
    const char *fault = ipc_name_check(queue, false);
    if (fault)
        return error_set(error, -EINVAL, "bad queue name \"%.100s\": %s", queue ? queue : "", fault);
    if (guard_foreign(connection))
        return error_set(error, -ECHILD,
                         "the connection belongs to the parent process: open one of your own");
    return 0;
}

int ipc_queue_create(ipc_connection *connection, const char *queue, const struct ipc_queue_settings *settings,
                     unsigned flags, struct ipc_error *error)
{
    Ipc__Control__QueueSettings converted;
    int result = check(connection, queue, error);
    if (result == 0)
        result = convert(&converted, settings, error);
    if (result == 0 && (flags & ~IPC_QUEUE_MAY_EXIST))
        result = error_set(error, -EINVAL, "flags 0x%x are not known", flags);
    if (result < 0)
        return result;
    Ipc__Control__QueueCreate message = IPC__CONTROL__QUEUE_CREATE__INIT;
    message.queue = (char *)(uintptr_t)queue;
    message.settings = &converted;
    message.may_exist = (flags & IPC_QUEUE_MAY_EXIST) != 0;
    return request_simple(connection, IPC__CONTROL__TYPE__QUEUE_CREATE, &message.base, error);
}

int ipc_queue_set(ipc_connection *connection, const char *queue, const struct ipc_queue_settings *settings,
                  struct ipc_error *error)
{
    Ipc__Control__QueueSettings converted;
    int result = check(connection, queue, error);
    if (result == 0)
        result = convert(&converted, settings, error);
    if (result < 0)
        return result;
    Ipc__Control__QueueSet message = IPC__CONTROL__QUEUE_SET__INIT;
    message.queue = (char *)(uintptr_t)queue;
    message.settings = &converted;
    return request_simple(connection, IPC__CONTROL__TYPE__QUEUE_SET, &message.base, error);
}

int ipc_queue_remove(ipc_connection *connection, const char *queue, unsigned flags, struct ipc_error *error)
{
    int result = check(connection, queue, error);
    if (result == 0 && (flags & ~IPC_QUEUE_IF_EMPTY))
        result = error_set(error, -EINVAL, "flags 0x%x are not known", flags);
    if (result < 0)
        return result;
    Ipc__Control__QueueRemove message = IPC__CONTROL__QUEUE_REMOVE__INIT;
    message.queue = (char *)(uintptr_t)queue;
    message.if_empty = (flags & IPC_QUEUE_IF_EMPTY) != 0;
    return request_simple(connection, IPC__CONTROL__TYPE__QUEUE_REMOVE, &message.base, error);
}
