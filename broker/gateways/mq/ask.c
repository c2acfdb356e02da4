/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs at an mqueue call a service, in the enveloped form: each request names the mqueue for its reply, and the reply has
 * the id of its request, so that several are open at a time. Programs may name only mqueues that the binding's `reply` allows,
 * since it is the gateway that writes to them. A reply that finds no room waits for `timeout` at most, and holds up only
 * those to the same mqueue.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "broker/core/util/text.h"
#include "broker/gateways/mq/mq.h"

#define TARGETS_MAX 64u /* mqueues for replies that are kept open */

struct target {
    struct mqueue mqueue;
    char name[MQ_NAME_SIZE];
    ipc_mq *envelopes;
    unsigned calls; /* that are to be answered there */
    bool full;
    uint64_t used;
};

struct call {
    struct call *next;
    struct target *target;
    ipc_call *call; /* NULL: the reply is complete */
    unsigned char id[255];
    size_t id_size;
    char *data; /* size bytes, of capacity */
    size_t size, capacity;
    int code;
    char text[256], content_type[256];
    uint64_t give_up_ns; /* of a complete one */
};

struct asker {
    struct gateway_binding *binding;
    struct mqueue requests;
    ipc_mq *envelopes;
    ipc_client *client;
    struct gateway_source answers;
    struct gateway_timer late;
    char *buffer; /* of the mqueue's message size */
    struct target *targets[TARGETS_MAX];
    uint64_t uses;
    struct call *calls, **last;
    size_t count;
};

/* ---- mqueues for replies --------------------------------------------------------------------------------- */

static struct target *target_free(struct target *target)
{
    if (target) {
        mqueue_close(&target->mqueue);
        (void)ipc_mq_close(target->envelopes);
    }
    free(target);
    return NULL;
}

static bool allowed(const struct mq_settings *settings, const char *name)
{
    size_t size = strcspn(settings->reply, "*");

    return settings->reply[size] ? strncmp(name, settings->reply, size) == 0 && !mqueue_name_check(name)
                                 : strcmp(name, settings->reply) == 0;
}

/* Was it removed since it was opened? Then another one may have its name. */
static bool is_removed(const struct target *target)
{
    struct stat about;

    return fstat(target->mqueue.source.fd, &about) < 0 || about.st_nlink == 0;
}

static void on_room(struct gateway_source *source, uint32_t events);

/* Open it in a place that is free, or whose mqueue nobody has used for the longest time. */
static int target_open(struct asker *asker, const char *name, struct target **ret)
{
    struct target **place = NULL, *target;
    int result;

    for (unsigned i = 0; i < TARGETS_MAX; i++) {
        struct target **at = &asker->targets[i];

        if (!*at || ((*at)->calls == 0 && (!place || (*place && (*at)->used < (*place)->used))))
            place = at;
        if (place && !*place)
            break;
    }
    if (!place)
        return -EMFILE;
    target = calloc(1, sizeof(*target));
    if (!target)
        return -ENOMEM;
    result = mqueue_find(&target->mqueue, asker->binding, name, on_room);
    if (result == 0)
        result = ipc_mq_open(&target->envelopes, target->mqueue.source.fd, NULL);
    if (result < 0) {
        (void)target_free(target);
        return result;
    }
    (void)snprintf(target->name, sizeof(target->name), "%s", name);
    (void)target_free(*place);
    *ret = *place = target;
    return 0;
}

/* 0, or a negative errno. */
static int target_find(struct asker *asker, const char *name, struct target **ret)
{
    const struct mq_settings *settings = asker->binding->settings;
    int result = 0;

    if (!allowed(settings, name))
        return -EACCES;
    *ret = NULL;
    for (unsigned i = 0; i < TARGETS_MAX && !*ret; i++) {
        struct target *target = asker->targets[i];

        if (!target || strcmp(target->name, name) != 0)
            continue;
        if (!is_removed(target))
            *ret = target;
        else if (target->calls == 0)
            asker->targets[i] = target_free(target);
    }
    if (!*ret)
        result = target_open(asker, name, ret);
    if (result == 0)
        (*ret)->used = ++asker->uses;
    return result;
}

/* ---- replies --------------------------------------------------------------------------------------------- */

static void wait_on(struct asker *asker)
{
    const struct mq_settings *settings = asker->binding->settings;
    uint64_t first_ns = 0;
    bool full = false;

    for (const struct call *call = asker->calls; call; call = call->next) {
        full = full || !call->call;
        if (!call->call && (!first_ns || call->give_up_ns < first_ns))
            first_ns = call->give_up_ns;
    }
    asker->binding->blocked = full;
    asker->binding->counters.held = asker->count;
    gateway_timer_set(asker->binding->gateway, &asker->late, first_ns);
    (void)mqueue_watch(&asker->requests, asker->count < settings->calls ? EPOLLIN : 0);
}

/* Take a call out of the list. Returns what follows it. */
static struct call **end_call(struct asker *asker, struct call **at)
{
    struct call *call = *at;

    *at = call->next;
    if (!*at)
        asker->last = at;
    call->target->calls--;
    asker->count--;
    (void)ipc_call_free(call->call);
    free(call->data);
    free(call);
    return at;
}

/* Its envelope, or, when that was too large, one that says so. */
static int send_reply(struct asker *asker, struct call *call)
{
    const struct mq_settings *settings = asker->binding->settings;
    struct gateway_counters *counters = &asker->binding->counters;
    struct ipc_mq_message reply = IPC_MQ_MESSAGE_INIT;
    int result;

    reply.kind = IPC_MQ_REPLY;
    reply.name = settings->service;
    reply.id = call->id;
    reply.id_size = call->id_size;
    reply.content_type = call->content_type;
    reply.data = call->data;
    reply.data_size = call->size;
    reply.code = call->code;
    reply.text = call->text;
    if (settings->oversize != MQ_OVERSIZE_SPLIT &&
        ipc_mq_pack(&reply, NULL, 0) > (ssize_t)call->target->mqueue.message_size) {
        call->size = 0;
        reply.data_size = 0;
        reply.code = call->code = -EMSGSIZE;
        reply.text = "the answer is larger than a message of its mqueue";
        (void)snprintf(call->text, sizeof(call->text), "%s", reply.text);
        counters->dropped++;
    }
    result = ipc_mq_send(call->target->envelopes, &reply, 0);
    if (result == 0) {
        counters->sent++;
        counters->bytes += reply.data_size;
    } else if (result != -EAGAIN) {
        counters->dropped++;
        gateway_binding_say(asker->binding, "dropped: a reply that cannot be sent to mqueue %.64s: %s",
                            call->target->name, strerror(-result));
    }
    return result;
}

/* Send what is complete, each mqueue's in order, as far as there is room. */
static void send_replies(struct asker *asker)
{
    for (unsigned i = 0; i < TARGETS_MAX; i++)
        if (asker->targets[i])
            asker->targets[i]->full = false;
    for (struct call **at = &asker->calls; *at;) {
        struct call *call = *at;

        if (!call->call && !call->target->full) {
            if (send_reply(asker, call) != -EAGAIN) {
                at = end_call(asker, at);
                continue;
            }
            call->target->full = true;
        }
        at = &call->next;
    }
    for (unsigned i = 0; i < TARGETS_MAX; i++)
        if (asker->targets[i])
            (void)mqueue_watch(&asker->targets[i]->mqueue, asker->targets[i]->full ? EPOLLOUT : 0);
    wait_on(asker);
}

static void on_room(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;

    (void)events;
    send_replies(mqueue->binding->open);
}

static void on_late(struct gateway_timer *timer)
{
    struct asker *asker = (void *)((char *)timer - offsetof(struct asker, late));
    uint64_t now_ns = time_monotonic_ns();

    for (struct call **at = &asker->calls; *at;) {
        struct call *call = *at;

        if (call->call || call->give_up_ns > now_ns) {
            at = &call->next;
            continue;
        }
        asker->binding->counters.dropped++;
        gateway_binding_say(asker->binding, "dropped: a reply for which mqueue %.64s had no room in time",
                            call->target->name);
        at = end_call(asker, at);
    }
    send_replies(asker);
}

static void complete(struct asker *asker, struct call *call, int code, const char *text)
{
    const struct mq_settings *settings = asker->binding->settings;

    call->call = ipc_call_free(call->call);
    call->give_up_ns = time_monotonic_ns() + settings->timeout_ns;
    if (code == 0)
        return;
    asker->binding->counters.refused++;
    call->size = 0;
    call->code = code;
    (void)snprintf(call->text, sizeof(call->text), "%s", text);
}

/* 0, or a negative errno: the answer is given up. */
static int add_part(struct asker *asker, struct call *call, const struct ipc_reply *part)
{
    const struct mq_settings *settings = asker->binding->settings;

    if (part->size > settings->gather_max - call->size)
        return -EMSGSIZE;
    if (call->size + part->size > call->capacity) {
        char *larger = realloc(call->data, call->size + part->size);

        if (!larger)
            return -ENOMEM;
        call->data = larger;
        call->capacity = call->size + part->size;
    }
    if (part->size)
        memcpy(call->data + call->size, part->data, part->size);
    call->size += part->size;
    (void)snprintf(call->content_type, sizeof(call->content_type), "%s",
                   part->content_type ? part->content_type : "");
    return 0;
}

/* Take what came of an answer. */
static void take_answer(struct asker *asker, struct call *call)
{
    struct ipc_reply reply = {.text = ""};
    int result;

    while (call->call && (result = ipc_call_next(call->call, &reply, 0)) != -EAGAIN) {
        if (result == 1) {
            result = add_part(asker, call, &reply);
            if (result < 0)
                complete(asker, call, result, "the answer is larger than gather-max");
        } else if (!gateway_is_over(asker->binding->gateway,
                                    result == -EPIPE && reply.server.session == 0 ? -EPIPE : 0)) {
            int code = result == -EREMOTEIO && reply.code ? reply.code : result;

            complete(asker, call, code, reply.text && *reply.text ? reply.text : strerror(-result));
        } else {
            return;
        }
    }
}

static void on_answers(struct gateway_source *source, uint32_t events)
{
    struct asker *asker = source->context;
    struct gateway *gateway = asker->binding->gateway;

    (void)events;
    if (gateway_is_over(gateway, ipc_client_dispatch(asker->client, 0)))
        return;
    for (struct call *call = asker->calls; call && !gateway->over; call = call->next)
        take_answer(asker, call);
    if (!gateway->over)
        send_replies(asker);
}

/* ---- requests -------------------------------------------------------------------------------------------- */

static void bad(struct asker *asker, const char *why)
{
    asker->binding->counters.bad++;
    gateway_binding_say(asker->binding, "a bad request: %s", why);
}

static void start_call(struct asker *asker, struct call *call, const struct ipc_mq_message *request)
{
    const struct mq_settings *settings = asker->binding->settings;
    struct ipc_header headers[IPC_MAX_HEADERS + 1];
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    int result;

    how.timeout_ns = (int64_t)(request->ttl_ns && request->ttl_ns < settings->timeout_ns
                                   ? request->ttl_ns
                                   : settings->timeout_ns);
    how.flags = IPC_CALL_WAIT | IPC_CALL_KEEP;
    how.content_type = request->content_type;
    how.headers = headers;
    how.header_count = mq_headers_in(settings, request, headers);
    result = ipc_call_start(&call->call, asker->client, request->data, request->data_size, &how);
    if (gateway_is_over(asker->binding->gateway, result))
        return;
    if (result < 0)
        complete(asker, call, result, strerror(-result));
    else
        take_answer(asker, call); /* an answer that is there already wakes nobody */
}

static void take_request(struct asker *asker, const struct ipc_mq_message *request)
{
    const struct mq_settings *settings = asker->binding->settings;
    struct target *target;
    struct call *call;
    int result;

    if (request->kind != IPC_MQ_REQUEST || (request->name && strcmp(request->name, settings->service) != 0)) {
        bad(asker, "it is no request, or for another service");
        return;
    }
    result = target_find(asker, request->reply_to ? request->reply_to : settings->reply, &target);
    call = result == 0 ? calloc(1, sizeof(*call)) : NULL;
    if (!call) {
        bad(asker, result == -EACCES ? "it wants its reply in an mqueue that `reply' does not allow"
                                     : "the mqueue for its reply cannot be opened");
        return;
    }
    call->target = target;
    target->calls++;
    call->id_size = request->id_size;
    if (request->id_size)
        memcpy(call->id, request->id, request->id_size);
    *asker->last = call;
    asker->last = &call->next;
    asker->count++;
    start_call(asker, call, request);
}

static void on_request(struct gateway_source *source, uint32_t events)
{
    struct mqueue *mqueue = source->context;
    struct asker *asker = mqueue->binding->open;
    const struct mq_settings *settings = mqueue->binding->settings;
    struct gateway *gateway = mqueue->binding->gateway;

    (void)events;
    for (unsigned i = 0; i < MQ_BURST && asker->count < settings->calls && !gateway->over; i++) {
        struct ipc_mq_message request;
        ssize_t size = mq_receive(source->fd, asker->buffer, mqueue->message_size, NULL);
        int result;

        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (size < 0) {
            gateway_binding_fail(asker->binding, "its mqueue cannot be read: %s", strerror(errno));
            return;
        }
        asker->binding->counters.bytes += (size_t)size;
        result = ipc_mq_unpack(asker->envelopes, asker->buffer, (size_t)size, &request);
        asker->binding->counters.received += result != 0;
        if (result == 1)
            take_request(asker, &request);
        else if (result < 0)
            bad(asker, result == -EMSGSIZE ? "its pieces are more than gather-max" : "it is no envelope");
    }
    if (!gateway->over)
        send_replies(asker);
}

int ask_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct gateway *gateway = binding->gateway;
    struct asker *asker = calloc(1, sizeof(*asker));
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    struct mqueue replies;
    int result;

    if (!asker)
        return mq_why(why, "binding", -ENOMEM, NULL);
    binding->open = asker;
    asker->binding = binding;
    asker->last = &asker->calls;
    asker->late.due = on_late;
    asker->requests.source.fd = -1;
    options.spin_max_ns = 0;
    result = mq_why(why, settings->service,
                    ipc_client_open(&asker->client, gateway->connection, settings->service, &options, &error),
                    &error);
    if (result == 0 &&
        !strchr(settings->reply, '*')) { /* made if need be; opened for each request that names it */
        result = mqueue_open(&replies, binding, settings->reply, O_WRONLY, on_room, why);
        if (result == 0)
            mqueue_close(&replies);
    }
    if (result == 0)
        result = mqueue_open(&asker->requests, binding, settings->mqueue, O_RDONLY, on_request, why);
    if (result == 0)
        result = mq_end_open(&asker->envelopes, &asker->requests, why);
    if (result < 0)
        return result;
    asker->buffer = malloc(asker->requests.message_size);
    asker->answers =
        (struct gateway_source){.fd = ipc_client_fd(asker->client), .ready = on_answers, .context = asker};
    result = !asker->buffer ? -ENOMEM : asker->answers.fd < 0 ? asker->answers.fd : 0;
    if (result == 0)
        result = gateway_watch(gateway, &asker->answers, EPOLLIN);
    if (result == 0)
        result = mqueue_watch(&asker->requests, EPOLLIN);
    return mq_why(why, settings->service, result, NULL);
}

void ask_unbind(struct gateway_binding *binding)
{
    struct asker *asker = binding->open;

    gateway_timer_set(binding->gateway, &asker->late, 0);
    mqueue_close(&asker->requests);
    gateway_unwatch(binding->gateway, &asker->answers);
    while (asker->calls)
        (void)end_call(asker, &asker->calls);
    for (unsigned i = 0; i < TARGETS_MAX; i++)
        (void)target_free(asker->targets[i]);
    (void)ipc_client_close(asker->client);
    (void)ipc_mq_close(asker->envelopes);
    free(asker->buffer);
    free(asker);
}
