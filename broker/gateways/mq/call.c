/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs at an mqueue call a service: a request comes in one mqueue, and its answer goes into another. In the raw form
 * nothing says which answer is whose, so there is one call at a time, and the next request is received when its answer is
 * in the mqueue. A call that fails is answered by an empty message.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/gateways/mq/mq.h"

struct caller {
    struct gateway_binding *binding;
    struct mqueue requests, replies;
    ipc_client *client;
    ipc_call *call; /* NULL: none is under way */
    struct gateway_source answers;
    char *request, *reply; /* of the mqueues' message sizes */
    size_t reply_size;
    bool failed, held; /* the answer is complete, and waits for room */
};

static void wait_on(struct caller *caller)
{
    caller->binding->blocked = caller->held;
    caller->binding->counters.held = caller->call || caller->held;
    (void)mqueue_watch(&caller->replies, caller->held ? EPOLLOUT : 0);
    (void)mqueue_watch(&caller->requests, caller->call || caller->held ? 0 : EPOLLIN);
}

static void send_reply(struct caller *caller)
{
    struct gateway_counters *counters = &caller->binding->counters;

    if (mq_send(caller->replies.source.fd, caller->reply, caller->reply_size, 0) == 0) {
        counters->sent++;
        counters->bytes += caller->reply_size;
        caller->held = false;
    } else if (errno != EAGAIN && errno != EINTR) {
        gateway_binding_fail(caller->binding, "answers cannot be sent: %s", strerror(errno));
        return;
    }
    wait_on(caller);
}

static void fail(struct caller *caller, const char *text)
{
    caller->failed = true;
    caller->reply_size = 0;
    caller->binding->counters.refused++;
    gateway_binding_say(caller->binding, "a call failed, and is answered by an empty message: %s", text);
}

static void add_part(struct caller *caller, const struct ipc_reply *part)
{
    if (caller->failed)
        return;
    if (part->size > caller->replies.message_size - caller->reply_size) {
        fail(caller, "its answer is larger than a message of its mqueue");
        return;
    }
    memcpy(caller->reply + caller->reply_size, part->data, part->size);
    caller->reply_size += part->size;
}

/* Take what came of the answer. True if it is over; NULL reply: it never began. */
static void take_answer(struct caller *caller)
{
    struct ipc_reply reply = {.text = ""};
    int result;

    while (caller->call && (result = ipc_call_next(caller->call, &reply, 0)) != -EAGAIN) {
        if (result == 1) {
            add_part(caller, &reply);
            continue;
        }
        if (gateway_is_over(caller->binding->gateway,
                            result == -EPIPE && reply.server.session == 0 ? -EPIPE : 0))
            return;
        if (result < 0)
            fail(caller, reply.text && *reply.text ? reply.text : strerror(-result));
        caller->call = ipc_call_free(caller->call);
        caller->held = true;
        send_reply(caller);
        return;
    }
}

static void on_answers(struct gateway_source *source, uint32_t events)
{
    struct caller *caller = source->context;
    int result = ipc_client_dispatch(caller->client, 0);

    (void)events;
    if (!gateway_is_over(caller->binding->gateway, result))
        take_answer(caller);
}

static void on_request(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct caller *caller = mqueue->binding->open;
    const struct mq_settings *settings = mqueue->binding->settings;
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    ssize_t size = mq_receive(source->fd, caller->request, caller->requests.message_size, NULL);
    int result;

    (void)events;
    if (size < 0) {
        if (errno != EAGAIN && errno != EINTR)
            gateway_binding_fail(caller->binding, "its mqueue cannot be read: %s", strerror(errno));
        return;
    }
    caller->binding->counters.received++;
    caller->binding->counters.bytes += (size_t)size;
    caller->reply_size = 0;
    caller->failed = false;
    how.timeout_ns = (int64_t)settings->timeout_ns;
    how.flags = IPC_CALL_WAIT | IPC_CALL_KEEP;
    result = ipc_call_start(&caller->call, caller->client, caller->request, (size_t)size, &how);
    if (result == 0) {
        take_answer(caller); /* an answer that is there already wakes nobody */
        if (caller->binding->open && !caller->binding->gateway->over)
            wait_on(caller);
    } else if (!gateway_is_over(caller->binding->gateway, result)) {
        fail(caller, strerror(-result));
        caller->held = true;
        send_reply(caller);
    }
}

static void on_room(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;

    (void)events;
    send_reply(mqueue->binding->open);
}

int call_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct gateway *gateway = binding->gateway;
    struct caller *caller = calloc(1, sizeof(*caller));
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    int result;

    if (!caller)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = caller;
    caller->binding = binding;
    caller->requests.source.fd = caller->replies.source.fd = -1;
    options.spin_max_ns = 0;
    result = mq_why(
        why, settings->service,
        ipc_client_open(&caller->client, gateway->connection, settings->service, &options, &error), &error);
    if (result == 0)
        result = mqueue_open(&caller->replies, binding, settings->reply, O_WRONLY, on_room, why);
    if (result == 0)
        result = mqueue_open(&caller->requests, binding, settings->mqueue, O_RDONLY, on_request, why);
    if (result < 0)
        return result;
    caller->request = malloc(caller->requests.message_size);
    caller->reply = malloc(caller->replies.message_size);
    caller->answers =
        (struct gateway_source){.fd = ipc_client_fd(caller->client), .ready = on_answers, .context = caller};
    result = !caller->request || !caller->reply ? -ENOMEM : caller->answers.fd < 0 ? caller->answers.fd : 0;
    if (result == 0)
        result = gateway_watch(gateway, &caller->answers, EPOLLIN);
    if (result == 0)
        result = mqueue_watch(&caller->requests, EPOLLIN);
    return mq_why(why, settings->service, result, NULL);
}

void call_unbind(struct gateway_binding *binding)
{
    struct caller *caller = binding->open;

    mqueue_close(&caller->requests);
    mqueue_close(&caller->replies);
    gateway_unwatch(binding->gateway, &caller->answers);
    (void)ipc_call_free(caller->call);
    (void)ipc_client_close(caller->client);
    free(caller->request);
    free(caller->reply);
    free(caller);
}
