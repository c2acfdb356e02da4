/* SPDX-License-Identifier: Apache-2.0
 *
 * Servers: requests from the lanes of calls, answers through a lane of replies to each client.
 *
 * A lane of replies is opened when the core tells of a lane of calls, and closed when that one ends; open requests of that
 * client stay, and are answered to nobody.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/service.h"
#include "libipc/patterns/publish.h"

#define REQUESTS_DEFAULT 1024u
#define REQUESTS_MAX     65536u

struct request {
    struct ipc_request shown;
    struct caller *caller;
    struct request *next, **at; /* of its caller; or the next unused one */
    uint64_t id;
    bool cancelled;
};

/* A client, as far as one lane of its calls goes. */
struct caller {
    struct lane_owner owner; /* gone: its lane of calls was dropped */
    struct caller *next;
    struct ipc_server *server;
    struct sub_lane *lane;              /* unless gone */
    struct ipc_publisher *replies;      /* NULL: closed */
    bool admitted;                      /* it has begun to read them */
    uint64_t scanned, scanned_sequence; /* up to here its lane was looked through for cancels */
    struct request *requests;
    struct ipc_peer peer;
};

struct ipc_server {
    struct ipc_subscription *calls;
    struct ipc_connection *connection;
    struct ipc_publisher_options reply_options;
    struct caller *callers;
    struct request *unused;
    void *copy;            /* of the payload that was to be shown in place and could not */
    struct sub_lane *held; /* its last request is shown in place */
    uint64_t held_until;
    uint32_t open, requests_max, caller_count;
    uint64_t received, answered, expired, cancelled, rings;
    char service[IPC_MAX_NAME_SIZE + 1];
};

static int check(const struct ipc_server *server)
{
    return server ? handle_enter(&server->calls->handle) : -EINVAL;
}

static void close_server(void *server)
{
    ipc_server_close(server);
}

int ipc_server_open(ipc_server **ret, ipc_connection *connection, const char *service,
                    const struct ipc_server_options *options, struct ipc_error *error)
{
    const struct ipc_server_options defaults = IPC_SERVER_OPTIONS_INIT;
    struct ipc_subscription_options calls = IPC_SUBSCRIPTION_OPTIONS_INIT;
    if (!options)
        options = &defaults;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_SERVER_OPTIONS_INIT");
    if (options->requests_max > REQUESTS_MAX)
        return error_set(error, -EINVAL, "requests_max is %u, the limit is %u", options->requests_max,
                         REQUESTS_MAX);
    if (options->message_size_max > IPC_MAX_MESSAGE_SIZE - sizeof(struct ipc_reply_head))
        return error_set(error, -EINVAL, "message_size_max is %u, the limit is %zu",
                         options->message_size_max, IPC_MAX_MESSAGE_SIZE - sizeof(struct ipc_reply_head));
    struct ipc_server *server = calloc(1, sizeof(*server));
    if (!server)
        return error_set(error, -ENOMEM, "out of memory");
    server->connection = connection;
    server->requests_max = options->requests_max ? options->requests_max : REQUESTS_DEFAULT;
    server->reply_options = (struct ipc_publisher_options)IPC_PUBLISHER_OPTIONS_INIT;
    server->reply_options.ring_size = options->ring_size;
    server->reply_options.block_max_ns = options->block_max_ns;
    if (options->message_size_max)
        server->reply_options.message_size_max = options->message_size_max +
                                                 (uint32_t)sizeof(struct ipc_reply_head);
    calls.slow = IPC_SLOW_BLOCK;
    calls.spin_max_ns = options->spin_max_ns;
    int result =
        subscription_open(&server->calls, connection, service, IPC__CONTROL__KIND__KIND_SERVE, &calls, error);
    if (result < 0) {
        free(server);
        return result;
    }
    memcpy(server->service, service, strlen(service) + 1);
    server->calls->handle.owner = server;
    server->calls->handle.close = close_server;
    server->calls->watched = true;
    *ret = server;
    return 0;
}

static void caller_close(struct caller *caller)
{
    if (!caller->replies)
        return;
    caller->server->rings += caller->replies->writer.rings;
    caller->replies->handle.self = -1; /* that of the calls */
    ipc_publisher_close(caller->replies);
    caller->replies = NULL;
    for (struct request *request = caller->requests; request; request = request->next)
        request->cancelled = true;
}

ipc_server *ipc_server_close(ipc_server *server)
{
    if (!server)
        return NULL;
    /* The calls first: their clients learn that no more answers come than are under way. */
    ipc_subscription_close(server->calls);
    while (server->callers) {
        struct caller *caller = server->callers;
        server->callers = caller->next;
        caller_close(caller);
        for (struct request *request = caller->requests, *next; request; request = next) {
            next = request->next;
            free(request);
        }
        free(caller);
    }
    while (server->unused) {
        struct request *request = server->unused;
        server->unused = request->next;
        free(request);
    }
    free(server->copy);
    free(server);
    return NULL;
}

/* A lane of calls that is new: make one for the answers. */
static void admit(struct ipc_server *server, struct sub_lane *lane)
{
    struct caller *caller = calloc(1, sizeof(*caller));
    uint32_t servers;
    int result = -ENOMEM;
    if (caller)
        result = publisher_open(&caller->replies, server->connection, server->service,
                                IPC__CONTROL__KIND__KIND_REPLY, lane->pairing, &server->reply_options,
                                &servers, NULL);
    if (result == 0 && caller->replies->handle.epoch != server->calls->handle.epoch) {
        ipc_publisher_close(caller->replies); /* by now that pairing means nothing */
        result = -EPIPE;
    }
    if (result < 0) {
        free(caller);
        subscription_break(server->calls, lane, result == -EACCES ? IPC_REASON_CLOSED : IPC_REASON_LIMIT);
        return;
    }
    caller->server = server;
    caller->lane = lane;
    caller->peer = lane->sender;
    caller->replies->handle.owner = server;
    caller->replies->handle.close = close_server;
    caller->replies->handle.self = server->calls->handle.self;
    caller->next = server->callers;
    server->callers = caller;
    server->caller_count++;
    lane->owner = &caller->owner;
}

static void look_at_caller(struct caller *caller)
{
    struct ipc_publisher *replies = caller->replies;
    struct ipc_subscription *calls = caller->server->calls;
    if (!replies)
        return;
    if (publisher_has_news(replies))
        publisher_news(replies);
    if (replies->writer.faulted)
        publisher_report_faults(replies);
    caller->admitted = caller->admitted || replies->writer.peer_count > 0;
    if (caller->owner.gone || caller->lane->left) {
        caller_close(caller);
    } else if (caller->admitted && replies->writer.peer_count == 0) { /* it does not take our answers */
        subscription_break(calls, caller->lane,
                           replies->left.reason == IPC_REASON_SLOW ? IPC_REASON_SLOW : IPC_REASON_CLOSED);
        caller_close(caller);
    }
}

static void news(struct ipc_server *server)
{
    struct ipc_subscription *calls = server->calls;
    calls->roused = false;
    for (unsigned i = 0; i < calls->lane_count && !handle_ended(&calls->handle); i++)
        if (!calls->lanes[i]->owner && !calls->lanes[i]->left && !calls->lanes[i]->broken)
            admit(server, calls->lanes[i]);
    struct caller **at = &server->callers;
    while (*at) {
        struct caller *caller = *at;
        look_at_caller(caller);
        if (caller->replies || caller->requests || !caller->owner.gone) {
            at = &caller->next;
            continue;
        }
        *at = caller->next;
        server->caller_count--;
        free(caller);
    }
}

/* The last request that was shown in place is not looked at any more. */
static void let_go(struct ipc_server *server)
{
    struct sub_lane *lane = server->held;
    if (!lane)
        return;
    server->held = NULL;
    lane->held = 0;
    if (!lane->broken)
        lane_reader_release(&lane->reader, server->held_until);
}

static struct request *request_new(struct ipc_server *server, struct caller *caller,
                                   const struct ipc_call_head *head)
{
    struct request *request = server->unused;
    if (request)
        server->unused = request->next;
    else if (!(request = malloc(sizeof(*request))))
        return NULL;
    *request = (struct request){.shown = {.deadline_ns = head->deadline_ns, .caller = &caller->peer},
                                .caller = caller,
                                .next = caller->requests,
                                .at = &caller->requests,
                                .id = head->id};
    if (caller->requests)
        caller->requests->at = &request->next;
    caller->requests = request;
    server->open++;
    return request;
}

static void request_done_with(struct request *request)
{
    struct ipc_server *server = request->caller->server;
    *request->at = request->next;
    if (request->next)
        request->next->at = request->at;
    request->next = server->unused;
    server->unused = request;
    server->open--;
    if (request->caller->owner.gone)
        server->calls->roused = true; /* its caller may be freed */
}

/* Put the payload of a call where the user wants it. Its size, or as subscription_copy(). */
static ssize_t show(struct ipc_server *server, struct sub_lane *lane, const struct lane_record *record,
                    const struct lane_record *rest, void *buffer, size_t capacity, struct ipc_request *shown,
                    bool *again)
{
    struct ipc_subscription *calls = server->calls;
    struct ipc_message message = {0};
    struct lane_record block_only = *rest;
    bool in_place = !buffer && lane_reader_in_place(&lane->reader);
    int64_t block = 0;
    ssize_t size;
    calls->scratch_size = 0;
    if (in_place) {
        /* Only the headers are copied. */
        if (rest->flags & IPC_RECORD_HEADERS) {
            struct ipc_record_headers headers;
            if (rest->size < sizeof(headers))
                return -EPROTO;
            lane_copy_out(&headers, rest->body, sizeof(headers));
            block_only.size = headers.size <= rest->size ? headers.size : rest->size;
            size = subscription_copy(calls, lane, &block_only, NULL, 0, &block, again);
            if (*again || size < 0)
                return size == -EMSGSIZE ? -EPROTO : size;
        }
        size = (ssize_t)(rest->size - (size_t)block);
        shown->data = rest->body + block;
        *again = false;
        server->held = lane;
        server->held_until = record->next;
        lane->held = 1;
        lane_reader_hold(&lane->reader, record);
    } else {
        void *copy = buffer;
        if (!buffer) { /* it may be overwritten, since its writer does not count us yet */
            free(server->copy);
            server->copy = copy = malloc(rest->size + 1);
            capacity = rest->size;
            if (!copy)
                return -ENOMEM;
        }
        size = subscription_copy(calls, lane, rest, copy, capacity, &block, again);
        if (*again || size < 0)
            return size;
        shown->data = copy;
        lane_reader_advance(&lane->reader, record);
    }
    shown->size = (size_t)size;
    if (block > 0) {
        message_describe_fields(&message, calls->scratch, (size_t)block);
        shown->content_type = message.content_type;
        shown->fields = message.fields;
        shown->fields_size = message.fields_size;
    }
    return size;
}

static void cancel(struct ipc_server *server, const struct caller *caller, uint64_t id)
{
    for (struct request *request = caller->requests; request; request = request->next)
        if (request->id == id && !request->cancelled) {
            request->cancelled = true;
            server->cancelled++;
        }
}

/* One record of a lane of calls. 1: a request; 0: nothing for the user; or an error for it. */
static int take(struct ipc_server *server, struct sub_lane *lane, const struct lane_record *record,
                void *buffer, size_t capacity, struct ipc_request **ret, ssize_t *ret_size)
{
    struct caller *caller = (struct caller *)(void *)lane->owner;
    struct lane_record rest = *record;
    struct ipc_call_head head;
    bool again = false;
    if (record->size < sizeof(head))
        return lane_reader_check(&lane->reader) ? -EPROTO : 0;
    lane_copy_out(&head, record->body, sizeof(head));
    if (!lane_reader_check(&lane->reader))
        return 0;
    bool late = head.deadline_ns && lane_now() >= head.deadline_ns;
    bool mine = head.pairing == lane->pairing && caller && caller->replies && !lane->left;
    if (mine && head.operation == IPC_OPERATION_CANCEL)
        cancel(server, caller, head.id);
    if (!mine || head.operation != IPC_OPERATION_CALL || late) {
        server->expired += mine && late && head.operation == IPC_OPERATION_CALL;
        lane_reader_advance(&lane->reader, record);
        return 0;
    }
    if (server->open >= server->requests_max)
        return -EBUSY;
    struct request *request = request_new(server, caller, &head);
    if (!request)
        return -ENOMEM;
    rest.body += sizeof(head);
    rest.size -= (uint32_t)sizeof(head);
    *ret_size = show(server, lane, record, &rest, buffer, capacity, &request->shown, &again);
    if (again || *ret_size < 0) {
        request_done_with(request);
        return again ? 0 : (int)*ret_size;
    }
    server->received++;
    *ret = &request->shown;
    return 1;
}

ssize_t ipc_server_receive(ipc_server *server, void *buffer, size_t capacity, struct ipc_request **request,
                           int64_t timeout_ns)
{
    int result = request ? check(server) : -EINVAL;
    if (result < 0)
        return result;
    struct ipc_subscription *calls = server->calls;
    uint64_t deadline = 0;
    let_go(server);
    if (calls->epoll >= 0)
        news(server);
    for (;;) {
        struct lane_record record;
        struct sub_lane *lane;
        ssize_t size;
        if (calls->roused)
            news(server);
        result = subscription_find(calls, &record, &lane);
        if (result == 0) {
            int64_t left = timeout_ns;
            if (timeout_ns > 0) {
                uint64_t now = lane_now();
                if (!deadline)
                    deadline = now + (uint64_t)timeout_ns;
                left = deadline > now ? (int64_t)(deadline - now) : 0;
            }
            result = subscription_wait(calls, &record, &lane, left);
            if (result == -EPIPE)
                result = subscription_renew(calls, timeout_ns < 0 ? LANE_NEVER : deadline);
            if (result == -EAGAIN && timeout_ns != 0)
                result = -ETIMEDOUT;
            if (result == 0)
                continue;
        }
        if (result == -EINTR)
            continue;
        if (result < 0)
            return result;
        if (!lane->owner && calls->roused)
            continue; /* its client is to be told first where the answers come from */
        calls->received++;
        result = take(server, lane, &record, buffer, capacity, request, &size);
        if (result > 0)
            return size;
        if (result == -EPROTO)
            subscription_break(calls, lane, IPC_REASON_CORRUPT);
        else if (result < 0)
            return result;
    }
}

/* Look through what its client has sent and was not received yet. */
static void look_for_cancels(struct ipc_server *server, struct caller *caller)
{
    struct lane_reader ahead = caller->lane->reader;
    struct lane_record record;
    if (caller->scanned > ahead.position) {
        ahead.position = caller->scanned;
        ahead.sequence = caller->scanned_sequence;
    }
    /* What lies more than a ring ahead is a lie. */
    const uint64_t end = caller->lane->reader.position + ahead.ring_size;
    while (lane_reader_in_place(&ahead) && ahead.position < end && lane_reader_peek(&ahead, &record) > 0) {
        struct ipc_call_head head;
        if (record.size >= sizeof(head)) {
            lane_copy_out(&head, record.body, sizeof(head));
            if (head.operation == IPC_OPERATION_CANCEL && head.pairing == caller->lane->pairing)
                cancel(server, caller, head.id);
        }
        lane_reader_hold(&ahead, &record);
        caller->scanned = ahead.position;
        caller->scanned_sequence = ahead.sequence;
    }
}

/* Its client, which does not read on, may have given up the call. */
static bool unwanted(void *about)
{
    struct request *request = about;
    if (!request->caller->owner.gone && !request->caller->lane->broken)
        look_for_cancels(request->caller->server, request->caller);
    return request->cancelled;
}

/* Room for an answer, and its start. A client that is not admitted yet reads from the beginning of the lane: up to one ring
 * nothing is lost. */
static int open_answer(struct request *request, uint32_t flags, int code, uint64_t size,
                       const struct ipc_publish *how, uint32_t *headers, unsigned char **body)
{
    struct caller *caller = request->caller;
    struct ipc_reply_head head = {.id = request->id, .code = code, .flags = flags};
#ifdef IPC_PLANT_REPLY_WRONG_CALL
    head.id = caller->requests->id;
#endif
    uint64_t stride = ipc_record_stride((uint32_t)(sizeof(head) + (how ? IPC_MAX_HEADERS_SIZE : 0) + size));
    if (size > IPC_MAX_MESSAGE_SIZE)
        return -EMSGSIZE;
    if (caller->server->calls->roused || (caller->replies && handle_has_mail(&caller->replies->handle)))
        look_at_caller(caller);
    while (caller->replies && !caller->admitted &&
           caller->replies->writer.position + stride + sizeof(uint64_t) > caller->replies->writer.ring_size) {
        /* Its end would be told by the calls' inbox. */
        int result =
            ipc_publisher_wait_readers(caller->replies, 1, caller->server->reply_options.block_max_ns);
        subscription_news(caller->server->calls);
        look_at_caller(caller);
        if (result < 0 && caller->replies) {
            subscription_break(caller->server->calls, caller->lane, IPC_REASON_SLOW);
            caller_close(caller);
        }
    }
    if (!caller->replies)
        return -EPIPE;
    caller->replies->unwanted = unwanted;
    caller->replies->unwanted_about = request;
    int result = publisher_open_message(caller->replies, sizeof(head), size, how, headers, body);
    caller->replies->unwanted = NULL;
    if (result == 0 && caller->admitted && caller->replies->writer.peer_count == 0) {
        look_at_caller(caller);
        return -EPIPE;
    }
    if (result == 0)
        lane_copy_in(*body, &head, sizeof(head));
    return result;
}

/* Gather an answer of two pieces. */
static int answer(struct ipc_request *shown, uint32_t flags, int code, const void *first, size_t first_size,
                  const void *second, size_t second_size, const struct ipc_publish *how)
{
    struct request *request = (struct request *)(void *)shown;
    if (!request || (!second && second_size) || (how && how->flags))
        return -EINVAL;
    struct ipc_server *server = request->caller->server;
    int result = check(server);
    if (result < 0)
        return result;
    if (request->cancelled && request->caller->replies && (flags & IPC_REPLY_END)) { /* nobody waits for it */
        request_done_with(request);
        return 0;
    }
    uint32_t headers;
    unsigned char *body;
    result = open_answer(request, flags, code, (uint64_t)first_size + second_size, how, &headers, &body);
    if (result == 0) {
        unsigned char *at = body + sizeof(struct ipc_reply_head) + headers;
        if (first_size)
            lane_copy_in(at, first, first_size);
        if (second_size)
            lane_copy_in(at + first_size, second, second_size);
        publisher_commit(request->caller->replies,
                         (uint32_t)(sizeof(struct ipc_reply_head) + headers + first_size + second_size),
                         headers);
        server->answered += (flags & IPC_REPLY_END) != 0;
    }
    if (result == -ECANCELED && (flags & IPC_REPLY_END))
        result = 0; /* as before it began to wait */
    if ((result == 0 && (flags & IPC_REPLY_END)) || result == -EPIPE)
        request_done_with(request);
    return result;
}

int ipc_request_reply(struct ipc_request *request, const void *data, size_t size,
                      const struct ipc_publish *how)
{
    return answer(request, IPC_REPLY_END, 0, NULL, 0, data, size, how);
}

int ipc_request_part(struct ipc_request *request, const void *data, size_t size,
                     const struct ipc_publish *how)
{
    struct request *own = (struct request *)(void *)request;
    int result = own ? check(own->caller->server) : -EINVAL;
    if (result < 0)
        return result;
    if (own->caller->replies && !own->caller->owner.gone && !own->caller->lane->broken)
        look_for_cancels(own->caller->server, own->caller);
    if (own->cancelled && own->caller->replies)
        return -ECANCELED;
    return answer(request, 0, 0, NULL, 0, data, size, how);
}

int ipc_request_fail(struct ipc_request *request, int code, const char *text, const void *data, size_t size)
{
    char sentence[256] = "";
    if (text)
        memcpy(sentence, text, strnlen(text, sizeof(sentence) - 1));
    return answer(request, IPC_REPLY_END | IPC_REPLY_ERROR, code, sentence, strlen(sentence) + 1, data, size,
                  NULL);
}

int ipc_request_end(struct ipc_request *request)
{
    return answer(request, IPC_REPLY_END | IPC_REPLY_EMPTY, 0, NULL, 0, NULL, 0, NULL);
}

int ipc_request_cancelled(struct ipc_request *shown)
{
    struct request *request = (struct request *)(void *)shown;
    struct ipc_server *server = request ? request->caller->server : NULL;
    int result = check(server);
    if (result < 0)
        return result;
    if (handle_has_mail(&server->calls->handle))
        subscription_news(server->calls);
    look_at_caller(request->caller);
    if (request->caller->replies && !request->caller->owner.gone && !request->caller->lane->broken)
        look_for_cancels(server, request->caller);
    if (!request->caller->replies || (shown->deadline_ns && lane_now() >= shown->deadline_ns))
        request->cancelled = true;
    return request->cancelled;
}

int ipc_request_header(const struct ipc_request *request, const char *name, const void **value,
                       size_t *value_size)
{
    if (!request)
        return -EINVAL;
    const struct ipc_message message = {.fields = request->fields, .fields_size = request->fields_size};
    return ipc_message_header(&message, name, value, value_size);
}

int ipc_server_fd(ipc_server *server)
{
    int result = check(server);
    if (result < 0)
        return result;
    int fd = ipc_subscription_fd(server->calls);
    for (struct caller *caller = server->callers; caller; caller = caller->next)
        if (caller->replies)
            caller->replies->handle.self = server->calls->handle.self;
    return fd;
}

int ipc_server_stats(ipc_server *server, struct ipc_server_stats *ret)
{
    int result = ret ? check(server) : -EINVAL;
    if (result < 0)
        return result;
    *ret = (struct ipc_server_stats){.received = server->received,
                                     .answered = server->answered,
                                     .expired = server->expired,
                                     .cancelled = server->cancelled,
                                     .sleeps = server->calls->sleeps,
                                     .polls = server->calls->polls,
                                     .net = server->calls->net,
                                     .rings = server->rings,
                                     .open = server->open};
    for (const struct caller *caller = server->callers; caller; caller = caller->next)
        if (caller->replies) {
            ret->rings += caller->replies->writer.rings;
            ret->clients++;
        }
    return 0;
}
