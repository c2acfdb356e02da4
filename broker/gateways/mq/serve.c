/* SPDX-License-Identifier: Apache-2.0
 *
 * A program at two mqueues serves a service: calls go into one, and it puts its answers into the other. In the raw form
 * nothing says which answer is whose, so one call is with it at a time; the others wait in their clients' lanes. If a call's
 * time is up, its client is told, and the answer that is still to come is waited for, for `timeout` at most: it would be
 * taken for that of the next. A call that the program has not read is taken back. That one is with it is marked, so that
 * after this process was killed, or the binding opened again, its answer is waited for as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/text.h"
#include "broker/gateways/mq/mq.h"

#define CLIENT_NS INT64_C(10000000) /* for a client that has no room for its answer */

struct servant {
    struct gateway_binding *binding;
    struct mqueue requests, replies;
    mqd_t back; /* by which requests are taken back; -1: they may not be read */
    ipc_server *server;
    struct gateway_source calls;
    struct ipc_request *request; /* NULL: none is open */
    bool unsent;                 /* it waits for room in the mqueue */
    bool out;                    /* the program has one to answer, whether the request is still open or not */
    struct gateway_timer late;
    uint64_t give_up_ns;
    char *reply, *taken;
};

static void wait_on(struct servant *servant)
{
    servant->binding->blocked = servant->unsent;
    servant->binding->counters.held = servant->request != NULL;
    (void)mqueue_watch(&servant->requests, servant->unsent ? EPOLLOUT : 0);
    (void)gateway_watch(servant->binding->gateway, &servant->calls,
                        servant->request || servant->out ? 0 : EPOLLIN);
}

static void forget(struct servant *servant)
{
    servant->request = NULL;
    if (servant->out)
        gateway_mark(servant->binding, false);
    servant->unsent = servant->out = false;
    gateway_timer_set(servant->binding->gateway, &servant->late, 0);
    wait_on(servant);
}

/* Empty an mqueue. True if something was in it. */
static bool drain(struct servant *servant, mqd_t mqueue, char *buffer, size_t size)
{
    bool any = false;

    while (mqueue >= 0 && mq_receive(mqueue, buffer, size, NULL) >= 0) {
        servant->binding->counters.dropped++;
        any = true;
    }
    return any;
}

static bool take_back(struct servant *servant)
{
    return drain(servant, servant->back, servant->taken, servant->requests.message_size);
}

/* The time of *servant->request is up, or that of the answer after it. */
static void on_late(struct gateway_timer *timer)
{
    struct servant *servant = (void *)((char *)timer - offsetof(struct servant, late));

    if (servant->request) {
        (void)ipc_request_fail(servant->request, ETIMEDOUT,
                               "the program at the mqueue did not answer in time", NULL, 0);
        servant->request = NULL;
        servant->binding->counters.refused++;
        gateway_binding_say(servant->binding, "a call was not answered in time");
    }
    if (!servant->out || take_back(servant) || time_monotonic_ns() >= servant->give_up_ns)
        forget(servant);
    else {
        gateway_timer_set(servant->binding->gateway, &servant->late, servant->give_up_ns);
        wait_on(servant);
    }
}

static void send_request(struct servant *servant)
{
    const struct mq_settings *settings = servant->binding->settings;
    struct ipc_request *request = servant->request;
    uint64_t deadline_ns = request->deadline_ns, now_ns = time_monotonic_ns();

    servant->give_up_ns = now_ns + settings->timeout_ns;
    gateway_mark(servant->binding, true);
    if (mq_send(servant->requests.source.fd, request->data, request->size, 0) == 0) {
        servant->binding->counters.sent++;
        servant->binding->counters.bytes += request->size;
        servant->unsent = false;
        servant->out = true;
    } else if (errno == EAGAIN || errno == EINTR) {
        gateway_mark(servant->binding, false);
        servant->unsent = true;
    } else {
        gateway_binding_fail(servant->binding, "calls cannot be handed on: %s", strerror(errno));
        return;
    }
    gateway_timer_set(servant->binding->gateway, &servant->late,
                      deadline_ns && deadline_ns < servant->give_up_ns ? deadline_ns : servant->give_up_ns);
    wait_on(servant);
}

static void on_call(struct gateway_source *source, uint32_t events)
{
    struct servant *servant = source->context;
    ssize_t size;

    (void)events;
    while (!servant->request && !servant->out) {
        size = ipc_server_receive(servant->server, NULL, 0, &servant->request, 0);
        if (size == -EAGAIN)
            return;
        if (size < 0) {
            if (!gateway_is_over(servant->binding->gateway, size))
                gateway_binding_fail(servant->binding, "calls cannot be taken: %s", strerror((int)-size));
            return;
        }
        if ((size_t)size <= servant->requests.message_size) {
            send_request(servant);
            return;
        }
        (void)ipc_request_fail(servant->request, EMSGSIZE,
                               "the call is larger than a message of the server's mqueue", NULL, 0);
        servant->request = NULL;
        servant->binding->counters.dropped++;
        gateway_binding_say(servant->binding, "a call of %zd bytes is larger than the %zu of its mqueue",
                            size, servant->requests.message_size);
    }
}

static void on_room(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct servant *servant = mqueue->binding->open;

    (void)events;
    if (servant->request && servant->unsent)
        send_request(servant);
}

static void on_reply(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct servant *servant = mqueue->binding->open;
    ssize_t size = mq_receive(source->fd, servant->reply, servant->replies.message_size, NULL);

    (void)events;
    if (size < 0) {
        if (errno != EAGAIN && errno != EINTR)
            gateway_binding_fail(servant->binding, "its mqueue cannot be read: %s", strerror(errno));
        return;
    }
    servant->binding->counters.received++;
    servant->binding->counters.bytes += (size_t)size;
    if (!servant->out) {
        servant->binding->counters.bad++;
        gateway_binding_say(servant->binding, "an answer came that nobody had asked for");
        return;
    }
    if (!servant->request) {
        servant->binding->counters.dropped++; /* it is too late */
    } else if (ipc_request_reply(servant->request, servant->reply, (size_t)size, NULL) == -EMSGSIZE) {
        (void)ipc_request_fail(servant->request, EMSGSIZE, "the answer is too large", NULL, 0);
        servant->binding->counters.dropped++;
    }
    forget(servant);
}

int serve_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct gateway *gateway = binding->gateway;
    struct servant *servant = calloc(1, sizeof(*servant));
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    bool settled;
    int result;

    if (!servant)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = servant;
    servant->binding = binding;
    servant->late.due = on_late;
    servant->requests.source.fd = servant->replies.source.fd = servant->back = -1;
    result = mqueue_open(&servant->requests, binding, settings->mqueue, O_WRONLY, on_room, why);
    if (result == 0)
        result = mqueue_open(&servant->replies, binding, settings->reply, O_RDONLY, on_reply, why);
    if (result < 0)
        return result;
    servant->reply = malloc(servant->replies.message_size);
    servant->taken = malloc(servant->requests.message_size);
    if (!servant->reply || !servant->taken)
        return mq_why(why, settings->reply, -ENOMEM, NULL);
    servant->back = mq_open(settings->mqueue, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    /* Answers to calls of before would be taken for those of ours. */
    settled = take_back(servant);
    settled = drain(servant, servant->replies.source.fd, servant->reply, servant->replies.message_size) ||
              settled;
    if (settled)
        gateway_mark(binding, false);
    servant->out = gateway_is_marked(binding);
    if (servant->out) {
        servant->give_up_ns = time_monotonic_ns() + settings->timeout_ns;
        gateway_timer_set(gateway, &servant->late, servant->give_up_ns);
        gateway_binding_say(binding, "the program may have a call of before: its answer is waited for");
    }
    options.spin_max_ns = 0;
    options.block_max_ns = CLIENT_NS;
    result = ipc_server_open(&servant->server, gateway->connection, settings->service, &options, &error);
    if (result == 0) {
        servant->calls = (struct gateway_source){
            .fd = ipc_server_fd(servant->server), .ready = on_call, .context = servant};
        result = servant->calls.fd < 0 ? servant->calls.fd
                                       : gateway_watch(gateway, &servant->calls, servant->out ? 0 : EPOLLIN);
    }
    if (result == 0)
        result = mqueue_watch(&servant->replies, EPOLLIN);
    return mq_why(why, settings->service, result, &error);
}

void serve_unbind(struct gateway_binding *binding)
{
    struct servant *servant = binding->open;

    gateway_timer_set(binding->gateway, &servant->late, 0);
    mqueue_close(&servant->requests);
    mqueue_close(&servant->replies);
    gateway_unwatch(binding->gateway, &servant->calls);
    (void)ipc_server_close(servant->server);
    if (servant->back >= 0)
        (void)mq_close(servant->back);
    free(servant->reply);
    free(servant->taken);
    free(servant);
}
