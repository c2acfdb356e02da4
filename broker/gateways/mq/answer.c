/* SPDX-License-Identifier: Apache-2.0
 *
 * A program at two mqueues serves a service, in the enveloped form: each request has an id that comes back in its reply, so
 * that several are with the program at a time. An id is made of a random number, drawn when the binding is opened, and of a
 * count: what answers a request of an earlier time, or one that nobody waits for any more, is known by it and dropped.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "broker/core/util/text.h"
#include "broker/gateways/mq/mq.h"

#define CLIENT_NS INT64_C(10000000) /* for a client that has no room for its answer */

struct id {
    uint64_t drawn, number;
};

struct open_request {
    struct ipc_request *request; /* NULL: a free place */
    struct id id;
    uint64_t late_ns;
};

struct answerer {
    struct gateway_binding *binding;
    struct mqueue requests, replies;
    ipc_mq *out, *in;
    ipc_server *server;
    struct gateway_source calls;
    struct gateway_timer late;
    struct id id; /* of the last one */
    struct open_request *open, *unsent;
    size_t count;
    char *buffer; /* of the message size of `replies` */
    struct mq_headers headers;
};

static void wait_on(struct answerer *answerer)
{
    const struct mq_settings *settings = answerer->binding->settings;
    uint64_t first_ns = 0;

    for (size_t i = 0; i < settings->calls && answerer->count > 0; i++)
        if (answerer->open[i].request && (!first_ns || answerer->open[i].late_ns < first_ns))
            first_ns = answerer->open[i].late_ns;
    answerer->binding->blocked = answerer->unsent;
    answerer->binding->counters.held = answerer->count;
    gateway_timer_set(answerer->binding->gateway, &answerer->late, first_ns);
    (void)mqueue_watch(&answerer->requests, answerer->unsent ? EPOLLOUT : 0);
    (void)gateway_watch(answerer->binding->gateway, &answerer->calls,
                        answerer->unsent || answerer->count == settings->calls ? 0 : EPOLLIN);
}

static void end_request(struct answerer *answerer, struct open_request *open)
{
    open->request = NULL;
    answerer->count--;
    if (answerer->unsent == open)
        answerer->unsent = NULL;
}

static void fail(struct answerer *answerer, struct open_request *open, int code, const char *text)
{
    (void)ipc_request_fail(open->request, code, text, NULL, 0);
    end_request(answerer, open);
    gateway_binding_say(answerer->binding, "a call failed: %s", text);
}

static void on_late(struct gateway_timer *timer)
{
    struct answerer *answerer = (void *)((char *)timer - offsetof(struct answerer, late));
    const struct mq_settings *settings = answerer->binding->settings;
    uint64_t now_ns = time_monotonic_ns();

    for (size_t i = 0; i < settings->calls; i++) {
        struct open_request *open = &answerer->open[i];

        if (!open->request || open->late_ns > now_ns)
            continue;
        answerer->binding->counters.refused++;
        fail(answerer, open, ETIMEDOUT, "the program at the mqueue did not answer in time");
    }
    wait_on(answerer);
}

/* True if the binding goes on. */
static bool send_request(struct answerer *answerer, struct open_request *open)
{
    const struct mq_settings *settings = answerer->binding->settings;
    const struct ipc_request *request = open->request;
    struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT;
    uint64_t now_ns = time_monotonic_ns();
    int result = 0;

    message.kind = IPC_MQ_REQUEST;
    message.name = settings->service;
    message.id = &open->id;
    message.id_size = sizeof(open->id);
    message.reply_to = settings->reply;
    message.content_type = request->content_type;
    message.headers = answerer->headers.headers;
    message.header_count = mq_headers_out(&answerer->headers, request->fields, request->fields_size);
    message.data = request->data;
    message.data_size = request->size;
    message.ttl_ns = open->late_ns > now_ns ? open->late_ns - now_ns : 1;
    if (settings->oversize != MQ_OVERSIZE_SPLIT &&
        ipc_mq_pack(&message, NULL, 0) > (ssize_t)answerer->requests.message_size)
        result = -EMSGSIZE;
    if (result == 0)
        result = ipc_mq_send(answerer->out, &message, 0);
    answerer->unsent = result == -EAGAIN ? open : NULL;
    if (result == 0) {
        answerer->binding->counters.sent++;
        answerer->binding->counters.bytes += request->size;
    } else if (result == -EMSGSIZE || result == -E2BIG) {
        answerer->binding->counters.dropped++;
        fail(answerer, open, EMSGSIZE, "the call is larger than a message of the server's mqueue");
    } else if (result != -EAGAIN) {
        gateway_binding_fail(answerer->binding, "calls cannot be handed on: %s", strerror(-result));
        return false;
    }
    return true;
}

static void on_call(struct gateway_source *source, uint32_t events)
{
    struct answerer *answerer = source->context;
    const struct mq_settings *settings = answerer->binding->settings;

    (void)events;
    for (unsigned i = 0; i < MQ_BURST && !answerer->unsent && answerer->count < settings->calls; i++) {
        struct open_request *open = answerer->open;
        struct ipc_request *request;
        ssize_t size = ipc_server_receive(answerer->server, NULL, 0, &request, 0);

        if (size == -EAGAIN)
            break;
        if (size < 0) {
            if (!gateway_is_over(answerer->binding->gateway, size))
                gateway_binding_fail(answerer->binding, "calls cannot be taken: %s", strerror((int)-size));
            return;
        }
        while (open->request)
            open++;
        answerer->id.number++;
        *open = (struct open_request){request, answerer->id, time_monotonic_ns() + settings->timeout_ns};
        if (request->deadline_ns && request->deadline_ns < open->late_ns)
            open->late_ns = request->deadline_ns;
        answerer->count++;
        if (!send_request(answerer, open))
            return;
    }
    wait_on(answerer);
}

static void on_room(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct answerer *answerer = mqueue->binding->open;

    (void)events;
    if (!answerer->unsent || send_request(answerer, answerer->unsent))
        wait_on(answerer);
}

static struct open_request *find(struct answerer *answerer, const struct ipc_mq_message *reply)
{
    const struct mq_settings *settings = answerer->binding->settings;

    if (reply->id_size != sizeof(struct id))
        return NULL;
    for (size_t i = 0; i < settings->calls; i++)
        if (answerer->open[i].request && &answerer->open[i] != answerer->unsent &&
            memcmp(&answerer->open[i].id, reply->id, sizeof(struct id)) == 0)
            return &answerer->open[i];
    return NULL;
}

static void take_reply(struct answerer *answerer, const struct ipc_mq_message *reply)
{
    struct open_request *open = reply->kind == IPC_MQ_REPLY ? find(answerer, reply) : NULL;
    struct ipc_publish how = IPC_PUBLISH_INIT;

    if (!open) {
        answerer->binding->counters.dropped++;
        gateway_binding_say(answerer->binding,
                            "dropped: what answers no call, or one that nobody waits for any more");
        return;
    }
    how.content_type = reply->content_type;
    how.headers = reply->headers;
    how.header_count = reply->header_count;
    if (reply->code != 0) {
        (void)ipc_request_fail(open->request, reply->code, reply->text, reply->data, reply->data_size);
    } else {
        int result = ipc_request_reply(open->request, reply->data, reply->data_size, &how);

        if (result == -EMSGSIZE || result == -E2BIG || result == -EINVAL) { /* it is still open */
            answerer->binding->counters.dropped++;
            fail(answerer, open, -result, "the answer is too large, or its headers are");
            return;
        }
    }
    end_request(answerer, open);
}

static void on_reply(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct answerer *answerer = mqueue->binding->open;

    (void)events;
    for (unsigned i = 0; i < MQ_BURST; i++) {
        struct ipc_mq_message reply;
        ssize_t size = mq_receive(source->fd, answerer->buffer, mqueue->message_size, NULL);
        int result;

        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (size < 0) {
            gateway_binding_fail(answerer->binding, "its mqueue cannot be read: %s", strerror(errno));
            return;
        }
        answerer->binding->counters.bytes += (size_t)size;
        result = ipc_mq_unpack(answerer->in, answerer->buffer, (size_t)size, &reply);
        answerer->binding->counters.received += result != 0;
        if (result == 1) {
            take_reply(answerer, &reply);
        } else if (result < 0) {
            answerer->binding->counters.bad++;
            gateway_binding_say(answerer->binding,
                                "an answer that is no envelope, or larger than gather-max");
        }
    }
    wait_on(answerer);
}

int answer_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct gateway *gateway = binding->gateway;
    struct answerer *answerer = calloc(1, sizeof(*answerer));
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    int result;

    if (!answerer)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = answerer;
    answerer->binding = binding;
    answerer->late.due = on_late;
    answerer->requests.source.fd = answerer->replies.source.fd = -1;
    if (getrandom(&answerer->id.drawn, sizeof(answerer->id.drawn), 0) < 0)
        return mq_why(why, "random numbers", -errno, NULL);
    result = mqueue_open(&answerer->requests, binding, settings->mqueue, O_WRONLY, on_room, why);
    if (result == 0)
        result = mqueue_open(&answerer->replies, binding, settings->reply, O_RDONLY, on_reply, why);
    if (result == 0)
        result = mq_end_open(&answerer->out, &answerer->requests, why);
    if (result == 0)
        result = mq_end_open(&answerer->in, &answerer->replies, why);
    if (result < 0)
        return result;
    answerer->buffer = malloc(answerer->replies.message_size);
    answerer->open = calloc(settings->calls, sizeof(*answerer->open));
    if (!answerer->buffer || !answerer->open)
        return mq_why(why, settings->reply, -ENOMEM, NULL);
    options.spin_max_ns = 0;
    options.block_max_ns = CLIENT_NS;
    result = ipc_server_open(&answerer->server, gateway->connection, settings->service, &options, &error);
    if (result == 0) {
        answerer->calls = (struct gateway_source){
            .fd = ipc_server_fd(answerer->server), .ready = on_call, .context = answerer};
        result = answerer->calls.fd < 0 ? answerer->calls.fd
                                        : gateway_watch(gateway, &answerer->calls, EPOLLIN);
    }
    if (result == 0)
        result = mqueue_watch(&answerer->replies, EPOLLIN);
    return mq_why(why, settings->service, result, &error);
}

void answer_unbind(struct gateway_binding *binding)
{
    struct answerer *answerer = binding->open;

    gateway_timer_set(binding->gateway, &answerer->late, 0);
    mqueue_close(&answerer->requests);
    mqueue_close(&answerer->replies);
    gateway_unwatch(binding->gateway, &answerer->calls);
    (void)ipc_server_close(answerer->server);
    (void)ipc_mq_close(answerer->out);
    (void)ipc_mq_close(answerer->in);
    free(answerer->open);
    free(answerer->buffer);
    free(answerer);
}
