/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared segments and their permits. A permit is a word: taking it is a compare-and-swap of 0 to our session.
 *
 * Waiting: set bit 0 of `turn`, look again at all permits, sleep on `turn`. Giving back: clear the word, and if bit 0 is
 * set, clear it by counting `turn` up, and wake all. Nobody counts waiters, so nobody's death can leave a wrong count; who
 * is killed between clearing and waking is made up for by the core, which wakes all when a session ends.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ipc/segment.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"
#include "proto/name.h"

struct ipc_segment {
    struct handle handle;
    struct ipc_shared *shared;
    uint64_t session; /* in which it was opened: the owner that its permits name */
    _Atomic uint64_t look_at_ns;
    uint32_t size, permits;
    bool created;
};

static void close_handle(struct handle *handle)
{
    ipc_segment_close((struct ipc_segment *)((char *)handle - offsetof(struct ipc_segment, handle)));
}

static const struct handle_type type = {.kind = HANDLE_SEGMENT, .close = close_handle};

static int check(ipc_connection *connection, const char *name, struct ipc_error *error)
{
    if (!connection)
        return error_set(error, -EINVAL, "connection is NULL");
    if (guard_foreign(connection))
        return error_set(error, -ECHILD,
                         "the connection belongs to the parent process: open one of your own");
    const char *fault = ipc_name_check(name, false);
    if (fault)
        return error_set(error, -EINVAL, "bad segment name \"%.100s\": %s", name ? name : "", fault);
    return 0;
}

static int detach(ipc_connection *connection, const struct handle *of, uint64_t attachment)
{
    Ipc__Control__SegmentClose message = IPC__CONTROL__SEGMENT_CLOSE__INIT;
    const ProtobufCMessage *reply;
    message.attachment = attachment;
    int result = request_fds_of(connection, of, IPC__CONTROL__TYPE__SEGMENT_CLOSE, &message.base,
                                IPC__CONTROL__TYPE__DONE, &reply, NULL, 0, NULL);
    if (result == 0)
        request_done(connection);
    return result;
}

int ipc_segment_open(ipc_segment **ret, ipc_connection *connection, const char *name,
                     const struct ipc_segment_options *options, struct ipc_error *error)
{
    const struct ipc_segment_options defaults = IPC_SEGMENT_OPTIONS_INIT;
    if (!ret)
        return error_set(error, -EINVAL, "ret is NULL");
    int result = check(connection, name, error);
    if (result < 0)
        return result;
    if (!options)
        options = &defaults;
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_SEGMENT_OPTIONS_INIT");
    if (options->flags & ~(IPC_SEGMENT_CREATE | IPC_SEGMENT_EXCLUSIVE | IPC_SEGMENT_KEEP))
        return error_set(error, -EINVAL, "flags 0x%x are not known", options->flags);

    ipc_segment *segment = calloc(1, sizeof(*segment));
    if (!segment)
        return error_set(error, -ENOMEM, "out of memory");
    segment->handle.type = &type;
    segment->handle.connection = connection;
    segment->handle.self = -1;
    Ipc__Control__SegmentOpen message = IPC__CONTROL__SEGMENT_OPEN__INIT;
    message.name = (char *)(uintptr_t)name;
    message.size = options->bytes;
    message.permits = options->permits;
    message.create = (options->flags & (IPC_SEGMENT_CREATE | IPC_SEGMENT_EXCLUSIVE)) != 0;
    message.exclusive = (options->flags & IPC_SEGMENT_EXCLUSIVE) != 0;
    message.keep = (options->flags & IPC_SEGMENT_KEEP) != 0;
    message.mode = options->mode;
    const ProtobufCMessage *reply;
    int fd = -1;
    result = request(connection, IPC__CONTROL__TYPE__SEGMENT_OPEN, &message.base,
                     IPC__CONTROL__TYPE__SEGMENT_OPENED, &reply, &fd, error);
    if (result < 0) {
        free(segment);
        return result;
    }
    const Ipc__Control__SegmentOpened *opened = (const void *)reply;
    void *map = NULL;
    segment->handle.id = opened->attachment;
    segment->session = connection->identity.session;
    segment->size = (uint32_t)opened->size;
    segment->permits = opened->permits;
    segment->created = opened->created;
    result = opened->size > IPC_MAX_SHARED_SIZE || opened->permits > IPC_MAX_PERMITS
                 ? -EPROTO
                 : lane_segment_map_shared(&map, fd, segment->size);
    close(fd);
    if (result == 0)
        handle_add(connection, &segment->handle);
    request_done(connection);
    if (result < 0) {
        (void)detach(connection, NULL, segment->handle.id);
        uint32_t size = segment->size;
        free(segment);
        return error_set(error, result, "cannot map shared segment \"%s\" (%" PRIu32 " bytes): %s", name,
                         size, strerror(-result));
    }
    segment->shared = map;
    *ret = segment;
    return 0;
}

ipc_segment *ipc_segment_close(ipc_segment *segment)
{
    if (!segment)
        return NULL;
    ipc_connection *connection = segment->handle.connection;
    if (!guard_foreign(connection)) {
        lane_segment_unmap(segment->shared, IPC_SEGMENT_SHARED, segment->size);
        handle_remove(connection, &segment->handle);
        if (!handle_ended(&segment->handle))
            (void)detach(connection, &segment->handle, segment->handle.id);
    }
    free(segment);
    return NULL;
}

void *ipc_segment_data(ipc_segment *segment)
{
    return segment ? (char *)segment->shared + IPC_LAYOUT_PAGE : NULL;
}

size_t ipc_segment_size(const ipc_segment *segment)
{
    return segment ? segment->size : 0;
}

unsigned ipc_segment_permits(const ipc_segment *segment)
{
    return segment ? segment->permits : 0;
}

int ipc_segment_created(const ipc_segment *segment)
{
    return segment && segment->created;
}

/* Permits are words: nothing about them tells that the broker is gone, and somebody else may hold the same ones of another. */
static void look(ipc_segment *segment)
{
    struct ipc_connection *connection = segment->handle.connection;
    struct timespec now;
    uint64_t next_ns;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (connection->reconnects && (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec >=
                                      atomic_load_explicit(&segment->look_at_ns, memory_order_relaxed)) {
        connection_look(connection, &next_ns);
        atomic_store_explicit(&segment->look_at_ns, next_ns, memory_order_relaxed);
    }
}

/* The acquire pairs with the release in ipc_segment_release(), and with the core's when it takes one back. */
static int take(ipc_segment *segment)
{
    for (unsigned i = 0; i < segment->permits; i++) {
        _Atomic uint64_t *owner = &segment->shared->owners[i];
        uint64_t nobody = 0;
        if (atomic_load_explicit(owner, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(owner, &nobody, segment->session))
            return (int)i;
    }
    return -EAGAIN;
}

/* So that ipcctl shows who waits. Returns a place, or IPC_SHARED_WAITERS. */
static unsigned show_waiting(ipc_segment *segment)
{
    unsigned place = 0;
    for (; place < IPC_SHARED_WAITERS; place++) {
        uint64_t nobody = 0;
        if (atomic_compare_exchange_strong(&segment->shared->waiters[place], &nobody, segment->session))
            break;
    }
    return place;
}

static int wait_for_permit(ipc_segment *segment, uint64_t deadline)
{
    struct ipc_shared *shared = segment->shared;
    struct handle *handle = &segment->handle;
    uint64_t check = 0;
    uint32_t seen = handle->mail_seen;
    for (;;) {
        struct lane_word words[3];
        handle_words(handle, words + 1);
        uint32_t turn = atomic_fetch_or(&shared->turn, 1) | 1;
        int permit = take(segment);
        if (permit >= 0)
            return permit;
        if (words[1].value != seen) /* not the handle's own count: other threads may be here, too */
            seen = pump_try(handle->connection, seen);
        if (handle_ended(handle))
            return -EPIPE;
        uint64_t now = lane_now();
        if (now >= deadline)
            return -ETIMEDOUT;
        if (now >= check) { /* a broker that was killed sends no mail */
            connection_look(handle->connection, &check);
            continue;
        }
        words[0] = (struct lane_word){(const _Atomic uint32_t *)&shared->turn, turn, false};
        (void)lane_sleep(words, 3, deadline < check ? deadline : check);
    }
}

int ipc_segment_acquire(ipc_segment *segment, int64_t timeout_ns)
{
    if (!segment)
        return -EINVAL;
    int result = handle_enter(&segment->handle);
    if (result < 0)
        return result;
    look(segment);
    if (handle_ended(&segment->handle))
        return -EPIPE;
    int permit = take(segment);
    if (permit >= 0 || timeout_ns == 0)
        return permit;
    unsigned place = show_waiting(segment);
    permit = wait_for_permit(segment, lane_deadline(timeout_ns));
    if (place < IPC_SHARED_WAITERS)
        atomic_store_explicit(&segment->shared->waiters[place], 0, memory_order_relaxed);
    return permit;
}

int ipc_segment_release(ipc_segment *segment, int permit)
{
    if (!segment || permit < 0 || (unsigned)permit >= segment->permits)
        return -EINVAL;
    int result = handle_enter(&segment->handle);
    if (result < 0)
        return result;
    struct ipc_shared *shared = segment->shared;
    uint64_t owner = segment->session;
    if (!atomic_compare_exchange_strong(&shared->owners[permit], &owner, 0))
        return -EPERM;
    /* Sequentially consistent with the waiter's: it sees the free word, or we see its bit. */
    uint32_t turn = atomic_load(&shared->turn);
    while (turn & 1) {
        if (atomic_compare_exchange_weak(&shared->turn, &turn, (turn & ~1u) + 2)) {
            lane_wake((const _Atomic uint32_t *)&shared->turn, false);
            break;
        }
    }
    look(segment);
    return handle_ended(&segment->handle) ? -EPIPE : 0;
}

int ipc_segment_remove(ipc_connection *connection, const char *name, struct ipc_error *error)
{
    Ipc__Control__SegmentClose message = IPC__CONTROL__SEGMENT_CLOSE__INIT;
    const ProtobufCMessage *reply;
    int result = check(connection, name, error);
    if (result < 0)
        return result;
    message.remove = (char *)(uintptr_t)name;
    result = request(connection, IPC__CONTROL__TYPE__SEGMENT_CLOSE, &message.base, IPC__CONTROL__TYPE__DONE,
                     &reply, NULL, error);
    if (result == 0)
        request_done(connection);
    return result;
}
