/* SPDX-License-Identifier: Apache-2.0
 *
 * Subscriptions: opening, closing, descriptors, counts.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "libipc/lane/segment.h"
#include "libipc/patterns/patterns.h"
#include "proto/name.h"

static struct ipc_subscription *subscription_of(struct handle *handle)
{
    return (struct ipc_subscription *)((char *)handle - offsetof(struct ipc_subscription, handle));
}

static void subscription_close(struct handle *handle)
{
    ipc_subscription_close(subscription_of(handle));
}

static int subscription_descriptor(struct handle *handle)
{
    return ipc_subscription_fd(subscription_of(handle));
}

static int subscription_set(const struct handle *handle)
{
    return ((const struct ipc_subscription *)(const void *)((const char *)handle -
                                                            offsetof(struct ipc_subscription, handle)))
        ->epoll;
}

static const struct handle_type subscription_type = {.kind = HANDLE_SUBSCRIPTION,
                                                     .close = subscription_close,
                                                     .descriptor = subscription_descriptor,
                                                     .set = subscription_set};

int patterns_join_descriptor(struct handle *handle)
{
    int fd = handle->type->descriptor ? handle->type->descriptor(handle) : 0;
    if (fd < 0 || !handle->type->descriptor)
        return fd;
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(handle->connection->epoll, EPOLL_CTL_ADD, fd, &event) < 0 && errno != EEXIST ? -errno
                                                                                                  : 0;
}

/* Have the broker pair it. On success the connection's lock is held, until request_done(). */
static int subscribe(struct ipc_subscription *sub, unsigned start, uint64_t *id, struct ipc_error *error)
{
    Ipc__Control__Subscribe message = IPC__CONTROL__SUBSCRIBE__INIT;
    message.pattern = sub->pattern;
    message.start = (Ipc__Control__Start)start;
    message.slow = (Ipc__Control__Slow)sub->slow;
    message.self = (sub->flags & IPC_SUBSCRIPTION_SELF) != 0;
    message.tap = (sub->flags & IPC_SUBSCRIPTION_TAP) != 0;
    message.kind = (Ipc__Control__Kind)sub->kind;
    const ProtobufCMessage *reply;
    int result = request(sub->handle.connection, IPC__CONTROL__TYPE__SUBSCRIBE, &message.base,
                         IPC__CONTROL__TYPE__SUBSCRIBED, &reply, NULL, error);
    if (result == 0)
        *id = ((const Ipc__Control__Subscribed *)(const void *)reply)->subscription;
    return result;
}

static int declare_again(struct ipc_subscription *sub, unsigned start)
{
    uint64_t id = 0;
    int result = subscribe(sub, start, &id, NULL);
    if (result == 0) {
        handle_declared(&sub->handle, id);
        request_done(sub->handle.connection);
        subscription_past(sub);
    } else if (result == -EPIPE && connection_between(sub->handle.connection)) {
        result = -EAGAIN; /* it is over once more */
    }
    return result;
}

/* All that is in the lanes of the new broker was published after its beginning, so the subscription is older than that. */
int subscription_revive(struct ipc_subscription *sub, uint64_t *next_ns)
{
    int result = handle_look(&sub->handle, next_ns);
    return result == 0 ? declare_again(sub, IPC_START_OLDEST) : result;
}

int subscription_renew(struct ipc_subscription *sub, uint64_t deadline)
{
    struct ipc_connection *connection = sub->handle.connection;
    uint64_t next_ns;
    int result = -EPIPE;
    while (connection->reconnects) {
        result = deadline ? connection_await(connection, deadline) : connection_look(connection, &next_ns);
        if (result == 0)
            result = declare_again(sub, IPC_START_NEXT);
        if ((result != -EAGAIN && result != -ETIMEDOUT) || lane_now() >= deadline)
            break;
    }
    if (result < 0)
        return result;
    while (sub->lane_count)
        subscription_drop(sub, sub->lane_count - 1);
    sub->roused = sub->watched;
    return 0;
}

int ipc_subscription_open(ipc_subscription **ret, ipc_connection *connection, const char *pattern,
                          const struct ipc_subscription_options *options, struct ipc_error *error)
{
    return subscription_open(ret, connection, pattern, IPC__CONTROL__KIND__KIND_TOPIC, options, error);
}

int subscription_open(ipc_subscription **ret, ipc_connection *connection, const char *pattern, unsigned kind,
                      const struct ipc_subscription_options *options, struct ipc_error *error)
{
    const struct ipc_subscription_options defaults = IPC_SUBSCRIPTION_OPTIONS_INIT;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    if (guard_foreign(connection))
        return error_set(error, -ECHILD,
                         "the connection belongs to the parent process: open one of your own");
    const char *fault = ipc_name_check(pattern, kind == IPC__CONTROL__KIND__KIND_TOPIC);
    if (fault)
        return error_set(error, -EINVAL, "bad name or pattern \"%.100s\": %s", pattern ? pattern : "", fault);
    if (!options)
        options = &defaults;
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_SUBSCRIPTION_OPTIONS_INIT");
    if ((unsigned)options->start > IPC_START_OLDEST || (unsigned)options->slow > IPC_SLOW_DISCONNECT)
        return error_set(error, -EINVAL, "start %d or slow %d is not known", (int)options->start,
                         (int)options->slow);
    if (options->flags & ~(IPC_SUBSCRIPTION_SELF | IPC_SUBSCRIPTION_TAP))
        return error_set(error, -EINVAL, "flags 0x%x are not known", options->flags);
    bool tap = (options->flags & IPC_SUBSCRIPTION_TAP) != 0;
    if (tap && options->slow == IPC_SLOW_BLOCK)
        return error_set(error, -EINVAL,
                         "a tap never blocks a publisher: choose another policy for slow readers");

    struct ipc_subscription *sub = calloc(1, sizeof(*sub));
    if (!sub)
        return error_set(error, -ENOMEM, "out of memory");
    sub->handle.connection = connection;
    sub->handle.type = &subscription_type;
    sub->handle.self = -1;
    sub->epoll = -1;
    sub->kind = kind;
    sub->slow = options->slow;
    sub->flags = options->flags;
    sub->spin.max_ns = options->spin_max_ns;
    snprintf(sub->pattern, sizeof(sub->pattern), "%s", pattern);

    int result = subscribe(sub, options->start, &sub->handle.id, error);
    if (result < 0) {
        free(sub);
        return result;
    }
    handle_add(connection, &sub->handle);
    bool join = connection->epoll >= 0;
    request_done(connection);
    if (join && (result = patterns_join_descriptor(&sub->handle)) < 0) {
        error_set(error, result, "cannot put the subscription under the connection's descriptor: %s",
                  strerror(-result));
        ipc_subscription_close(sub);
        return result;
    }
    *ret = sub;
    return 0;
}

ipc_subscription *ipc_subscription_close(ipc_subscription *sub)
{
    if (!sub)
        return NULL;
    struct ipc_connection *connection = sub->handle.connection;
    bool foreign = guard_foreign(connection);
    for (; sub->held_tail != sub->held_head; sub->held_tail++)
        free(sub->held[sub->held_tail % HELD_MAX].copy);
    /* While the handle is still known: a cell is ours until the end of its lane is confirmed. */
    while (sub->lane_count)
        subscription_drop(sub, sub->lane_count - 1);
    if (!foreign) {
        /* Out of the table first: notices that come now are answered by the pump. */
        pthread_mutex_lock(&connection->lock);
        handle_remove(connection, &sub->handle);
        if (connection->epoll >= 0 && sub->epoll >= 0)
            epoll_ctl(connection->epoll, EPOLL_CTL_DEL, sub->epoll, NULL);
        pump_unlock(connection);
    } else {
        handle_remove(connection, &sub->handle);
    }
    struct notice *next;
    for (struct notice *notice = inbox_take(&sub->handle); notice; notice = next) {
        next = notice->next;
        if (!foreign)
            pthread_mutex_lock(&connection->lock);
        notice_free(connection, notice);
        if (!foreign)
            pump_unlock(connection);
    }
    if (!foreign) {
        Ipc__Control__Unsubscribe message = IPC__CONTROL__UNSUBSCRIBE__INIT;
        message.subscription = sub->handle.id;
        request_undo(&sub->handle, IPC__CONTROL__TYPE__UNSUBSCRIBE, &message.base);
    }
    subscription_bells_drop(sub);
    if (sub->epoll >= 0)
        close(sub->epoll);
    if (sub->handle.self >= 0)
        close(sub->handle.self);
    free(sub->bells);
    free(sub->lanes);
    free(sub->held);
    free(sub->scratch);
    free(sub);
    return NULL;
}

/* The set of descriptors behind the user's: the socket, what other threads of this process have to tell, and the
 * bells. It starts readable: nothing is armed yet. */
static int make_descriptor(struct ipc_subscription *sub)
{
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(EPOLL_CLOEXEC);
    if (set < 0)
        return -errno;
    int self = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self < 0 || epoll_ctl(set, EPOLL_CTL_ADD, sub->handle.connection->socket, &event) < 0 ||
        epoll_ctl(set, EPOLL_CTL_ADD, self, &event) < 0) {
        int result = -errno;
        if (self >= 0)
            close(self);
        close(set);
        return result;
    }
    sub->epoll = set;
    sub->handle.self = self;
    return 0;
}

/* Out of the set by hand: a forked child may have it open. */
void subscription_bell_drop(struct ipc_subscription *sub, unsigned index)
{
    if (!guard_foreign(sub->handle.connection))
        epoll_ctl(sub->epoll, EPOLL_CTL_DEL, sub->bells[index].fd, NULL);
    close(sub->bells[index].fd);
    sub->bells[index] = sub->bells[--sub->bell_count];
}

void subscription_bells_drop(struct ipc_subscription *sub)
{
    bool past = false; /* lanes whose publishers still ring the bells of their session */
    for (unsigned i = 0; i < sub->lane_count; i++)
        past = past || sub->lanes[i]->past;
    for (unsigned i = sub->bell_count; i-- > 0;)
        if (!past || !sub->bells[i].past)
            subscription_bell_drop(sub, i);
}

int subscription_bells(struct ipc_subscription *sub, struct ipc_error *error)
{
    if (sub->bells_asked)
        return 0;
    subscription_bells_drop(sub); /* asked again, the core makes all of them anew */
    struct ipc_connection *connection = sub->handle.connection;
    pthread_mutex_lock(&connection->lock);
    int result = sub->epoll >= 0 ? 0 : make_descriptor(sub);
    pump_unlock(connection);
    if (result < 0)
        return error_set(error, result, "cannot make a descriptor to wait on: %s", strerror(-result));
    Ipc__Control__Bell message = IPC__CONTROL__BELL__INIT;
    message.subscription = sub->handle.id;
    result = request_simple_of(connection, &sub->handle, IPC__CONTROL__TYPE__BELL, &message.base, error);
    sub->bells_asked = result == 0;
    return result;
}

int ipc_subscription_fd(ipc_subscription *sub)
{
    if (!sub)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result == 0)
        result = subscription_bells(sub, NULL);
    return result < 0 ? result : sub->epoll;
}

int patterns_join_descriptors(struct ipc_connection *connection)
{
    pthread_mutex_lock(&connection->lock);
    int result = connection->epoll;
    struct handle *handle = connection->handles;
    pump_unlock(connection);
    /* Handles are opened and closed by threads that do not run now, or the caller's own: see the header. */
    for (; handle && result >= 0; handle = handle->next) {
        int joined = patterns_join_descriptor(handle);
        if (joined < 0)
            result = joined;
    }
    return result;
}

int ipc_subscription_wait_writers(ipc_subscription *sub, unsigned count, int64_t timeout_ns)
{
    if (!sub)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    uint64_t deadline = lane_deadline(timeout_ns), look = 0;
    for (;;) {
        struct lane_word words[2];
        handle_words(&sub->handle, words);
        if (handle_has_mail(&sub->handle))
            subscription_news(sub);
        unsigned writers = subscription_writers(sub);
        if (writers >= count)
            return (int)writers;
        uint64_t now = lane_now();
        if (handle_ended(&sub->handle)) {
            result = subscription_revive(sub, &look);
            if (result == 0)
                continue;
            if (result != -EAGAIN)
                return result;
        } else if (now >= look) { /* a broker that was killed sends no mail */
            connection_look(sub->handle.connection, &look);
        }
        if (now >= deadline)
            return -ETIMEDOUT;
        if (!handle_restless(&sub->handle))
            lane_sleep(words, 2, deadline < look ? deadline : look);
    }
}

int ipc_subscription_stats(ipc_subscription *sub, struct ipc_subscription_stats *ret)
{
    if (!sub || !ret)
        return -EINVAL;
    int result = handle_enter(&sub->handle);
    if (result < 0)
        return result;
    *ret = (struct ipc_subscription_stats){.received = sub->received,
                                           .lost = sub->lost_departed,
                                           .sleeps = sub->sleeps,
                                           .polls = sub->polls,
                                           .net = sub->net,
                                           .writers = subscription_writers(sub)};
    for (unsigned i = 0; i < sub->lane_count; i++)
        ret->lost += sub->lanes[i]->reader.lost;
    return 0;
}
