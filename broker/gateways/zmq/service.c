/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of peers: one client of libipc for each service, shared. Services of peers: a server for each peer and service, so
 * that callers learn at once that it left.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/text.h"
#include "broker/gateways/zmq/gateway.h"

static const struct wire_frame nothing = {"", 0};

struct service {
    struct source source;
    struct hash_node node;
    struct zmq_gateway *gateway;
    char name[256];
    ipc_client *client;
    struct list streams; /* calls whose parts are wanted as they come */
    unsigned open;
};

struct call {
    struct list link, stream_link;
    struct peer *peer;
    struct service *service;
    ipc_call *call;
    size_t id_size;
    unsigned char id[WIRE_ID_MAX];
};

/* A service that a peer serves. */
struct serve {
    struct source source;
    struct list link, asked;
    struct peer *peer;
    char name[256];
    ipc_server *server;
    uint64_t credit;
};

/* A call that the peer has to answer. */
struct asked {
    struct hash_node node; /* by its number */
    struct list link;
    struct serve *serve;
    struct ipc_request *request;
    bool cancelled;
};

static struct wire_frame id_of(const struct call *call)
{
    return (struct wire_frame){call->id, call->id_size};
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static void call_end(struct zmq_gateway *gateway, struct call *call)
{
    list_remove(&call->link);
    list_remove(&call->stream_link);
    call->peer->call_count--;
    call->service->open--;
    gateway->call_count--;
    ipc_call_free(call->call);
    free(call);
}

static void send_part(struct zmq_gateway *gateway, const struct call *call, const char *command,
                      const struct ipc_reply *reply, const void *data)
{
    wire_text_begin(&gateway->text);
    put_headers(&gateway->text, reply->content_type, reply->fields, reply->fields_size);
    const struct wire_frame properties = wire_text_end(&gateway->text);

    (void)peer_send(gateway, call->peer, command, id_of(call), call->service->name,
                    properties.size > 2 ? properties : nothing, (struct wire_frame){data, reply->size},
                    false);
}

static void send_failure(struct zmq_gateway *gateway, const struct call *call, int code,
                         const struct ipc_reply *reply)
{
    const char *name = strerrorname_np(-code);

    wire_text_begin(&gateway->text);
    wire_text_string(&gateway->text, "errno", name ? name : "EIO", strlen(name ? name : "EIO"));
    wire_text_signed(&gateway->text, "code", code == -EREMOTEIO ? reply->code : code);
    wire_text_string(&gateway->text, "text", reply->text, strlen(reply->text));
    (void)peer_send(gateway, call->peer, "ERROR", id_of(call), call->service->name,
                    wire_text_end(&gateway->text),
                    (struct wire_frame){reply->data, code == -EREMOTEIO ? reply->size : 0}, false);
}

/* Parts that have come. Returns whether the call is over, which its peer was told. */
static bool pass_parts(struct zmq_gateway *gateway, struct call *call)
{
    struct ipc_reply reply;
    int result;

    while ((result = ipc_call_next(call->call, &reply, 0)) == 1)
        send_part(gateway, call, "PART", &reply, reply.data);
    if (result == -EAGAIN)
        return false;
    if (result == 0)
        (void)peer_send(gateway, call->peer, "END", id_of(call), call->service->name, nothing, nothing,
                        false);
    else
        send_failure(gateway, call, result, &reply);
    return true;
}

/* The whole answer is there. One part alone is REPLY: so the first is kept until there is another, or none. */
static void pass_answer(struct zmq_gateway *gateway, struct call *call)
{
    struct ipc_reply first, end;
    int result = ipc_call_next(call->call, &first, 0);
    unsigned char *copy;

    if (result == 0) {
        (void)peer_send(gateway, call->peer, "END", id_of(call), call->service->name, nothing, nothing,
                        false);
        return;
    }
    if (result < 0) {
        send_failure(gateway, call, result, &first);
        return;
    }
    if (!buffer_grow(&gateway->buffer, first.size + first.fields_size + 256)) {
        peer_error(gateway, call->peer, id_of(call), -ENOMEM, "the gateway has no memory for the answer");
        return;
    }
    copy = gateway->buffer.bytes;
    memcpy(copy, first.data ? first.data : "", first.size);
    if (first.fields_size)
        memcpy(copy + first.size, first.fields, first.fields_size);
    first.fields = copy + first.size;
    if (first.content_type)
        first.content_type =
            memcpy(copy + first.size + first.fields_size, first.content_type, strlen(first.content_type) + 1);
    result = ipc_call_next(call->call, &end, 0);
    send_part(gateway, call, result == 0 ? "REPLY" : "PART", &first, copy);
    if (result == 0)
        return;
    if (result == 1) {
        send_part(gateway, call, "PART", &end, end.data);
        (void)pass_parts(gateway, call);
    } else {
        send_failure(gateway, call, result, &end);
    }
}

static void call_over(ipc_call *over, void *context)
{
    struct call *call = context;
    struct zmq_gateway *gateway = call->service->gateway;

    (void)over;
    if (list_empty(&call->stream_link))
        pass_answer(gateway, call);
    else
        (void)pass_parts(gateway, call);
    call_end(gateway, call);
}

static void service_run(struct zmq_gateway *gateway, struct service *service)
{
    int result = ipc_client_dispatch(service->client, 0);

    list_for_each_safe(link, &service->streams)
    {
        struct call *call = list_entry(link, struct call, stream_link);

        (void)call;
        if (pass_parts(gateway, call))
            call_end(gateway, call);
    }
    if (result == -EPIPE)
        session_over(gateway);
}

static void service_ready(struct zmq_gateway *gateway, struct source *source)
{
    service_run(gateway, list_entry(source, struct service, source));
}

static void service_end(struct zmq_gateway *gateway, struct service *service)
{
    hash_remove(&gateway->services, &service->node);
    source_bury(gateway, &service->source, service);
    ipc_client_close(service->client);
}

static struct service *find_service(const struct zmq_gateway *gateway, const char *name)
{
    struct hash_node *node = hash_find(&gateway->services, hash_string(gateway->secret, name, strlen(name)));

    for (; node; node = hash_find_next(node))
        if (strcmp(list_entry(node, struct service, node)->name, name) == 0)
            return list_entry(node, struct service, node);
    return NULL;
}

/* Every service that has no call, when there are too many. */
static void make_place(struct zmq_gateway *gateway)
{
    for (size_t i = 0; gateway->services.count >= OUTLETS_MAX && i < (size_t)1 << gateway->services.bits; i++)
        for (struct hash_node *node = gateway->services.buckets[i], *next; node; node = next) {
            struct service *service = list_entry(node, struct service, node);

            next = node->next;
            if (service->open == 0)
                service_end(gateway, service);
        }
}

static int service_get(struct zmq_gateway *gateway, const char *name, struct service **ret,
                       struct ipc_error *error)
{
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    struct service *service = find_service(gateway, name);
    int result;

    if (service) {
        *ret = service;
        return 0;
    }
    make_place(gateway);
    service = gateway->services.count < OUTLETS_MAX ? calloc(1, sizeof(*service)) : NULL;
    if (!service) {
        (void)snprintf(error->text, sizeof(error->text), "the gateway has no place for another service");
        return -ENOBUFS;
    }
    service->gateway = gateway;
    (void)snprintf(service->name, sizeof(service->name), "%s", name);
    list_init(&service->streams);
    hash_add(&gateway->services, &service->node, hash_string(gateway->secret, name, strlen(name)));
    if (gateway->options.message_size_max > 65536)
        options.message_size_max = (uint32_t)gateway->options.message_size_max + 65536; /* headers */
    result = ipc_client_open(&service->client, gateway->in, name, &options, error);
    if (result == 0)
        result = source_add(gateway, &service->source, ipc_client_fd(service->client), service_ready);
    if (result < 0) {
        service_end(gateway, service);
        return result;
    }
    *ret = service;
    return 0;
}

static struct call *find_call(const struct peer *peer, const struct wire_frame *id)
{
    list_for_each(link, &peer->calls)
    {
        struct call *call = list_entry(link, struct call, link);

        if (call->id_size == id->size && memcmp(call->id, id->data, id->size) == 0)
            return call;
    }
    return NULL;
}

static int call_make(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                     const struct wire_properties *given, struct ipc_error *error)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct service *service = NULL;
    struct call *call;
    int result;

    if (peer->call_count >= PEER_CALLS_MAX) {
        (void)snprintf(error->text, sizeof(error->text), "a peer has at most %u calls open", PEER_CALLS_MAX);
        return -EBUSY;
    }
    result = service_get(gateway, message->name, &service, error);
    call = result == 0 ? calloc(1, sizeof(*call)) : NULL;
    if (!call)
        return result < 0 ? result : -ENOMEM;
    call->peer = peer;
    call->service = service;
    call->id_size = message->id.size;
    memcpy(call->id, message->id.data, message->id.size);
    list_init(&call->stream_link);
    list_append(&peer->calls, &call->link);
    peer->call_count++;
    service->open++;
    gateway->call_count++;
    options.flags = IPC_CALL_KEEP | (given->retry ? IPC_CALL_RETRY : 0) | (given->wait ? IPC_CALL_WAIT : 0);
    if (given->timeout_ms)
        options.timeout_ns = (int64_t)(given->timeout_ms * 1000000);
    options.content_type = given->content_type;
    options.headers = given->headers;
    options.header_count = given->header_count;
    options.done = given->stream ? NULL : call_over;
    options.context = call;
    if (given->stream)
        list_append(&service->streams, &call->stream_link);
    result = ipc_call_start(&call->call, service->client, message->body.data, message->body.size, &options);
    if (result < 0) {
        (void)snprintf(error->text, sizeof(error->text), "%s",
                       result == -ENOENT     ? "the service has no server"
                       : result == -EMSGSIZE ? "the call is larger than is allowed here"
                                             : strerrordesc_np(-result));
        call->call = NULL;
        call_end(gateway, call);
    }
    return result;
}

/* ---- serving ------------------------------------------------------------------------------------------------------ */

static void asked_end(struct zmq_gateway *gateway, struct asked *asked)
{
    hash_remove(&gateway->requests, &asked->node);
    list_remove(&asked->link);
    free(asked);
}

static void serve_end(struct zmq_gateway *gateway, struct serve *serve)
{
    list_for_each_safe(link, &serve->asked) asked_end(gateway, list_entry(link, struct asked, link));
    list_remove(&serve->link);
    serve->peer->serve_count--;
    source_bury(gateway, &serve->source, serve);
    ipc_server_close(serve->server);
}

void serves_review(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->serves)
    {
        struct serve *serve = list_entry(link, struct serve, link);

        if (!access_has(gateway, peer, VERB_SERVE, serve->name,
                        (struct wire_frame){serve->name, strlen(serve->name)}))
            serve_end(gateway, serve);
    }
}

/* Tell the peer of calls that nobody waits for any more. */
static void pass_cancels(struct zmq_gateway *gateway, struct serve *serve)
{
    list_for_each(link, &serve->asked)
    {
        struct asked *asked = list_entry(link, struct asked, link);
        char number[24];

        if (asked->cancelled || ipc_request_cancelled(asked->request) != 1)
            continue;
        asked->cancelled = true;
        const struct wire_frame id = {
            number, (size_t)snprintf(number, sizeof(number), "%llu", (unsigned long long)asked->node.key)};
        (void)peer_send(gateway, serve->peer, "CANCEL", id, serve->name, nothing, nothing, false);
    }
}

/* Returns 0, or a negative errno: no more now. */
static int ask(struct zmq_gateway *gateway, struct serve *serve)
{
    struct asked *asked = calloc(1, sizeof(*asked));
    struct ipc_request *request = NULL;
    char number[24];
    ssize_t size = asked ? ipc_server_receive(serve->server, gateway->buffer.bytes, gateway->buffer.capacity,
                                              &request, 0)
                         : -ENOMEM;

    if (size < 0) {
        free(asked);
        if (size == -EMSGSIZE)
            return buffer_grow(&gateway->buffer, 2 * gateway->buffer.capacity) ? 0 : -ENOMEM;
        return (int)size;
    }
    asked->serve = serve;
    asked->request = request;
    hash_add(&gateway->requests, &asked->node, ++gateway->next_number);
    list_append(&serve->asked, &asked->link);
    wire_text_begin(&gateway->text);
    wire_text_number(&gateway->text, "uid", request->caller->uid);
    wire_text_number(&gateway->text, "sender", request->caller->session);
    if (request->deadline_ns) {
        uint64_t now_ns = time_monotonic_ns();

        wire_text_number(&gateway->text, "timeout_ms",
                         request->deadline_ns > now_ns ? (request->deadline_ns - now_ns + 999999) / 1000000
                                                       : 0);
    }
    put_headers(&gateway->text, request->content_type, request->fields, request->fields_size);
    const struct wire_frame id = {
        number, (size_t)snprintf(number, sizeof(number), "%llu", (unsigned long long)asked->node.key)};
    serve->credit--;
    (void)peer_send(gateway, serve->peer, "REQUEST", id, serve->name, wire_text_end(&gateway->text),
                    (struct wire_frame){gateway->buffer.bytes, (size_t)size}, false);
    return 0;
}

static void serve_run(struct zmq_gateway *gateway, struct serve *serve)
{
    int result = 0;

    for (unsigned n = 0; n < ROUND_MAX && result == 0 && serve->credit && peer_ready(serve->peer); n++)
        result = ask(gateway, serve);
    if (!list_empty(&serve->asked))
        pass_cancels(gateway, serve);
    if (result == -EPIPE)
        session_over(gateway);
    source_enable(gateway, &serve->source, serve->credit && peer_ready(serve->peer));
}

static void serve_ready(struct zmq_gateway *gateway, struct source *source)
{
    serve_run(gateway, list_entry(source, struct serve, source));
}

static struct serve *find_serve(const struct peer *peer, const char *name)
{
    list_for_each(link, &peer->serves)
    {
        struct serve *serve = list_entry(link, struct serve, link);

        if (strcmp(serve->name, name) == 0)
            return serve;
    }
    return NULL;
}

static int serve_open(struct zmq_gateway *gateway, struct peer *peer, const char *name, struct serve **ret,
                      struct ipc_error *error)
{
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    struct serve *serve = peer->serve_count < PEER_THINGS_MAX ? calloc(1, sizeof(*serve)) : NULL;
    int result;

    if (!serve) {
        (void)snprintf(error->text, sizeof(error->text), "a peer serves at most %u services",
                       PEER_THINGS_MAX);
        return -EDQUOT;
    }
    serve->peer = peer;
    (void)snprintf(serve->name, sizeof(serve->name), "%s", name);
    list_init(&serve->asked);
    list_append(&peer->serves, &serve->link);
    peer->serve_count++;
    options.block_max_ns = 0; /* a caller that does not read holds up nobody */
    if (gateway->options.message_size_max > 65536)
        options.message_size_max = (uint32_t)gateway->options.message_size_max + 65536; /* headers */
    result = ipc_server_open(&serve->server, gateway->out, name, &options, error);
    if (result == 0)
        result = source_add(gateway, &serve->source, ipc_server_fd(serve->server), serve_ready);
    if (result < 0) {
        serve_end(gateway, serve);
        return result;
    }
    *ret = serve;
    return 0;
}

static void serve_more(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                       const struct wire_properties *given)
{
    struct serve *serve = find_serve(peer, message->name);
    struct ipc_error error = {0};
    int result = 0;

    if (!serve)
        result = message->command == WIRE_SERVE ? serve_open(gateway, peer, message->name, &serve, &error)
                                                : -ENOENT;
    if (result < 0) {
        peer_error(gateway, peer, message->id, result,
                   result == -ENOENT ? "this peer does not serve that" : error.text);
        return;
    }
    serve->credit += given->credit ? given->credit : 1;
    if (message->command == WIRE_SERVE)
        peer_ok(gateway, peer, message->id);
    serve_run(gateway, serve);
}

/* PART, RESPONSE, END, FAIL. */
static void reply(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                  const struct wire_properties *given)
{
    uint64_t number = 0, last = 0;
    struct hash_node *node = wire_range_parse(&message->id, &number, &last) == 0 && number == last
                                 ? hash_find(&gateway->requests, number)
                                 : NULL;
    struct asked *asked = node ? list_entry(node, struct asked, node) : NULL;
    struct ipc_publish how = IPC_PUBLISH_INIT;
    const struct wire_frame *body = &message->body;
    int result;

    if (!asked || asked->serve->peer != peer) {
        peer_error(gateway, peer, message->id, -ENOENT,
                   "there is no such request, or it was answered before");
        return;
    }
    how.content_type = given->content_type;
    how.headers = given->headers;
    how.header_count = given->header_count;
    if (message->command == WIRE_PART)
        result = ipc_request_part(asked->request, body->data, body->size, &how);
    else if (message->command == WIRE_RESPONSE)
        result = ipc_request_reply(asked->request, body->data, body->size, &how);
    else if (message->command == WIRE_END)
        result = ipc_request_end(asked->request);
    else
        result = ipc_request_fail(asked->request, (int)given->code, given->text, body->data, body->size);
    if (result < 0)
        peer_error(gateway, peer, message->id, result,
                   result == -EPIPE       ? "the caller is gone"
                   : result == -ECANCELED ? "the caller wants no more"
                   : result == -EMSGSIZE  ? "the answer is larger than is allowed here"
                                          : strerrordesc_np(-result));
    if (result == -EPIPE || (result == 0 && message->command != WIRE_PART))
        asked_end(gateway, asked);
}

/* ---- both ------------------------------------------------------------------------------------------------------------ */

void service_command(struct zmq_gateway *gateway, struct peer *peer, const struct wire_message *message,
                     const struct wire_properties *given)
{
    struct ipc_error error = {0};
    struct serve *serve;
    struct call *call;
    int result;

    if (strncmp(message->name, "ipcd.", 5) == 0) {
        peer_error(
            gateway, peer, message->id, -EACCES,
            "services whose name begins with ipcd are the broker's own; programs outside may not use them");
        return;
    }
    switch (message->command) {
    case WIRE_CALL:
        result = call_make(gateway, peer, message, given, &error);
        if (result < 0)
            peer_error(gateway, peer, message->id, result, error.text);
        return;
    case WIRE_CANCEL:
        call = find_call(peer, &message->id);
        if (!call)
            return;
        peer_error(gateway, peer, message->id, -ECANCELED, "it was cancelled");
        call_end(gateway, call);
        return;
    case WIRE_SERVE:
    case WIRE_READY:
        serve_more(gateway, peer, message, given);
        return;
    case WIRE_UNSERVE:
        serve = find_serve(peer, message->name);
        if (serve)
            serve_end(gateway, serve);
        peer_ok(gateway, peer, message->id);
        return;
    default:
        reply(gateway, peer, message, given);
        return;
    }
}

void service_resume(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each(link, &peer->serves) serve_run(gateway, list_entry(link, struct serve, link));
}

void service_end_peer(struct zmq_gateway *gateway, struct peer *peer)
{
    list_for_each_safe(link, &peer->serves) serve_end(gateway, list_entry(link, struct serve, link));
    list_for_each_safe(link, &peer->calls) call_end(gateway, list_entry(link, struct call, link));
}

/* A call that waits for room in a lane of its client has no other event. */
void services_check(struct zmq_gateway *gateway)
{
    for (size_t i = 0; gateway->call_count && i < (size_t)1 << gateway->services.bits; i++)
        for (struct hash_node *node = gateway->services.buckets[i]; node; node = node->next) {
            struct service *service = list_entry(node, struct service, node);

            if (service->open)
                service_run(gateway, service);
        }
}

void services_end(struct zmq_gateway *gateway)
{
    for (size_t i = 0; gateway->services.buckets && i < (size_t)1 << gateway->services.bits; i++)
        while (gateway->services.buckets[i])
            service_end(gateway, list_entry(gateway->services.buckets[i], struct service, node));
}
