/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls: made, sent, settled once, and waited for.
 *
 * A call that is not over has a place in client.calls, and its id is never used again: an answer that comes too late
 * finds nobody. Whatever ends a call goes through call_settle().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "libipc/patterns/publish.h"
#include "libipc/patterns/service.h"

#define PLACE_BITS 16
/* While a server is expected, the core is asked this often if there is one. */
#define EXPECT_NS  UINT64_C(100000000)

static int places_grow(struct ipc_client *client)
{
    uint32_t capacity = client->call_capacity ? 2 * client->call_capacity : 64;
    if (capacity > CALLS_MAX)
        return -EBUSY;
    struct ipc_call **calls = realloc(client->calls, capacity * sizeof(struct ipc_call *));
    if (!calls)
        return -ENOMEM;
    client->calls = calls;
    uint32_t *places = realloc(client->free_places, capacity * sizeof(*places));
    if (!places)
        return -ENOMEM;
    client->free_places = places;
    for (uint32_t i = capacity; i-- > client->call_capacity;) {
        calls[i] = NULL;
        places[client->free_count++] = i;
    }
    client->call_capacity = capacity;
    return 0;
}

static void arm_timer(struct ipc_client *client)
{
    if (client->timer < 0 || client->earliest >= client->timer_at)
        return;
    uint64_t at = client->earliest ? client->earliest : 1;
    struct itimerspec when = {.it_value = {(time_t)(at / 1000000000), (long)(at % 1000000000)}};
    timerfd_settime(client->timer, TFD_TIMER_ABSTIME, &when, NULL);
    client->timer_at = at;
}

static int call_new(struct ipc_call **ret, struct ipc_client *client, const struct ipc_call_options *options)
{
    if (client->open >= client->calls_max)
        return -EBUSY;
    if (client->free_count == 0) {
        int result = places_grow(client);
        if (result < 0)
            return result;
    }
    struct ipc_call *call = client->unused;
    if (call)
        client->unused = call->next;
    else if (!(call = malloc(sizeof(*call))))
        return -ENOMEM;
    uint32_t place = client->free_places[--client->free_count];
    client->calls[place] = call;
    client->open++;
    client->made++;
    memset(call, 0, sizeof(*call));
    call->client = client;
    call->id = ++client->serial << PLACE_BITS | place;
    call->deadline = lane_deadline(options->timeout_ns);
    call->flags = options->flags;
#ifdef IPC_PLANT_RETRY_UNASKED
    call->flags |= IPC_CALL_RETRY;
#endif
    call->parts_end = &call->parts;
    call->done = options->done;
    call->context = options->context;
    if (call->deadline < client->earliest) {
        client->earliest = call->deadline;
        arm_timer(client);
    }
    *ret = call;
    return 0;
}

static void unlink_unsent(struct ipc_call *call)
{
    struct ipc_client *client = call->client;
    struct ipc_call **at = &client->unsent;
    while (*at != call)
        at = &(*at)->next;
    *at = call->next;
    if (client->unsent_end == &call->next)
        client->unsent_end = at;
}

void call_settle(struct ipc_call *call, int result)
{
    struct ipc_client *client = call->client;
    if (call->state == CALL_OVER)
        return;
    if (call->state == CALL_UNSENT && call->copy)
        unlink_unsent(call);
    if (call->lane && call->lane->pairing == call->pairing)
        lane_set_open(call->lane, call->lane->open - 1);
    uint32_t place = (uint32_t)call->id & (CALLS_MAX - 1);
    client->calls[place] = NULL;
    client->free_places[client->free_count++] = place;
    client->open--;
    client->failed += result < 0 && result != -EREMOTEIO;
    call->state = CALL_OVER;
    call->result = result;
    call->lane = NULL;
    free(call->copy);
    call->copy = NULL;
    if (!call->done)
        return;
    call->finished = true;
    call->next = NULL;
    *client->finished_end = call;
    client->finished_end = &call->next;
    /* Whoever waits for the descriptor is to run it. */
    if (client->inbox->handle.self >= 0)
        (void)!write(client->inbox->handle.self, &(uint64_t){1}, sizeof(uint64_t));
}

static struct ipc_call_head head_of(const struct ipc_call *call, const struct call_lane *lane,
                                    uint32_t operation)
{
    return (struct ipc_call_head){.id = call->id,
                                  .pairing = lane->pairing,
                                  .deadline_ns = call->deadline == LANE_NEVER ? 0 : call->deadline,
                                  .operation = operation};
}

/* It counts from before its server may see it. */
static void commit(struct ipc_call *call, struct call_lane *lane, uint32_t size, uint32_t headers)
{
    lane_set_open(lane, lane->open + 1);
    publisher_commit(lane->publisher, size, headers);
    call->state = CALL_SENT;
    call->lane = lane;
    call->pairing = lane->pairing;
}

/* Keep the record's body, to be sent later, or again. */
static int keep_copy(struct ipc_call *call, const struct call_lane *lane, const void *data, size_t size,
                     const struct ipc_publish *how)
{
    const struct ipc_publisher *publisher = lane->publisher;
    int64_t block = publisher_headers_size(publisher, how);
    if (block < 0)
        return (int)block;
    uint64_t total = sizeof(struct ipc_call_head) + (uint64_t)block + size;
    if (total > publisher->message_size_max)
        return -EMSGSIZE;
    call->copy = malloc((size_t)total);
    if (!call->copy)
        return -ENOMEM;
    if (block)
        publisher_put_headers(publisher, how, call->copy + sizeof(struct ipc_call_head), (uint32_t)block);
    if (size)
        memcpy(call->copy + sizeof(struct ipc_call_head) + block, data, size);
    call->copy_size = (uint32_t)total;
    call->copy_headers = (uint32_t)block;
    return 0;
}

/* Send what was kept. 0; -EAGAIN there is no room. */
static int send_copy(struct ipc_call *call, struct call_lane *lane)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    how.flags = IPC_PUBLISH_REJECT;
    uint32_t headers;
    unsigned char *body;
    int result = publisher_open_message(lane->publisher, 0, call->copy_size, &how, &headers, &body);
    if (result < 0)
        return result;
    struct ipc_call_head head = head_of(call, lane, IPC_OPERATION_CALL);
    lane_copy_in(body, &head, sizeof(head));
    lane_copy_in(body + sizeof(head), call->copy + sizeof(head), call->copy_size - sizeof(head));
    commit(call, lane, call->copy_size, call->copy_headers);
    if (!(call->flags & IPC_CALL_RETRY)) {
        free(call->copy);
        call->copy = NULL;
    }
    return 0;
}

static void queue_unsent(struct ipc_call *call)
{
    struct ipc_client *client = call->client;
    call->state = CALL_UNSENT;
    call->lane = NULL;
    call->next = NULL;
    *client->unsent_end = call;
    client->unsent_end = &call->next;
}

void calls_send_unsent(struct ipc_client *client)
{
    while (client->unsent) {
        struct ipc_call *call = client->unsent;
        struct call_lane *lane = client_lane(client);
        if (!lane && (client_expects(client) || (call->flags & IPC_CALL_WAIT)))
            return;
        if (!lane) {
            call_settle(call, call->server.session ? -EPIPE : client_nobody(client));
            continue;
        }
        unlink_unsent(call);
        if (send_copy(call, lane) < 0) {
            call->next = client->unsent;
            client->unsent = call;
            if (!call->next)
                client->unsent_end = &call->next;
            return;
        }
    }
}

void call_abandon(struct ipc_call *call, unsigned reason, const struct ipc_peer *server)
{
    call->reason = reason;
    call->server = *server;
    if (!call->copy || call->started) { /* of an answer that was begun there may not be another beginning */
        call_settle(call, -EPIPE);
        return;
    }
    call->client->retried++;
    queue_unsent(call);
}

void call_lose(struct ipc_call *call)
{
    call->reason = IPC_REASON_SHUTDOWN;
    if (call->lane)
        call->server = call->lane->server;
    if (!call->copy || call->started) {
        call_settle(call, -ECONNRESET);
        return;
    }
    call->flags |= IPC_CALL_WAIT; /* servers begin anew as well */
    call->client->retried++;
    queue_unsent(call);
}

static bool send_cancel(struct call_lane *lane, uint64_t id)
{
    struct ipc_publish how = IPC_PUBLISH_INIT;
    how.flags = IPC_PUBLISH_REJECT;
    struct ipc_call_head head = {.id = id, .pairing = lane->pairing, .operation = IPC_OPERATION_CANCEL};
    uint32_t headers;
    unsigned char *body;
    if (publisher_open_message(lane->publisher, sizeof(head), 0, &how, &headers, &body) < 0)
        return false;
    lane_copy_in(body, &head, sizeof(head));
    publisher_commit(lane->publisher, sizeof(head), 0);
    return true;
}

void calls_send_cancels(struct ipc_client *client)
{
    for (uint32_t i = 0; i < client->lane_count && client->cancels; i++) {
        struct call_lane *lane = &client->lanes[i];
        while (lane->cancel_count && send_cancel(lane, lane->cancels[lane->cancel_count - 1])) {
            lane->cancel_count--;
            client->cancels--;
        }
    }
}

/* Tell its server that nobody waits any more; if there is no room now, later. */
static void cancel_at_server(struct ipc_call *call)
{
    struct call_lane *lane = call->lane;
    if (call->state != CALL_SENT || lane->pairing != call->pairing ||
        handle_ended(&lane->publisher->handle) || send_cancel(lane, call->id))
        return;
    if (lane->cancel_count == lane->cancel_capacity) {
        uint32_t capacity = lane->cancel_capacity ? 2 * lane->cancel_capacity : 16;
        uint64_t *cancels = realloc(lane->cancels, capacity * sizeof(*cancels));
        if (!cancels)
            return; /* its deadline will tell it */
        lane->cancels = cancels;
        lane->cancel_capacity = capacity;
    }
    lane->cancels[lane->cancel_count++] = call->id;
    call->client->cancels++;
}

void calls_expire(struct ipc_client *client, uint64_t now)
{
    if (now < client->earliest)
        return;
    client->earliest = LANE_NEVER;
    client->timer_at = LANE_NEVER;
    for (uint32_t i = 0; i < client->call_capacity; i++) {
        struct ipc_call *call = client->calls[i];
        if (!call)
            continue;
        if (call->deadline <= now)
            call_settle(call, -ETIMEDOUT);
        else if (call->deadline < client->earliest)
            client->earliest = call->deadline;
    }
    arm_timer(client);
}

/* Ask, rather than rely on what was told. */
static bool any_server(struct ipc_client *client)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    const ProtobufCMessage *reply;
    list.kind = IPC__CONTROL__LIST_KIND__LIST_SERVICES;
    list.pattern = client->service;
    if (request(client->connection, IPC__CONTROL__TYPE__LIST, &list.base, IPC__CONTROL__TYPE__PAGE, &reply,
                NULL, NULL) < 0)
        return true;
    const Ipc__Control__Page *page = (const void *)reply;
    bool any = page->n_items > 0 && page->items[0]->servers > 0;
    request_done(client->connection);
    return any;
}

/* A lane with a server, waiting for one if the core or the caller says so. 0; what client_nobody() says; -ETIMEDOUT;
 * -EPIPE. */
static int find_server(struct ipc_call *call, struct call_lane **lane)
{
    struct ipc_client *client = call->client;
    uint64_t ask = lane_now() + EXPECT_NS;
    while (!(*lane = client_lane(client))) {
        client_news(client); /* of a mail that another handle has seen */
        if ((*lane = client_lane(client)))
            break;
        bool wait = call->flags & IPC_CALL_WAIT;
        /* A server that has just come may be in the core's mail to us, behind what we know. */
        if (!client_expects(client) && !wait && (client_nobody(client) != -ENOENT || !any_server(client)))
            return client_nobody(client);
        int result = client_turn(client, wait || call->deadline < ask ? call->deadline : ask);
        uint64_t now = lane_now();
        if (client_over(result) || now >= call->deadline)
            return client_over(result) ? result : -ETIMEDOUT;
        if (!wait && now >= ask) {
            if (!client_lane(client) && !any_server(client))
                return -ENOENT;
            ask = now + EXPECT_NS;
        }
    }
    return 0;
}

/* The lane of its server is full: wait for room or for another server, and take in answers meanwhile, since the server
 * may be waiting for room itself. */
static int wait_for_room(struct ipc_call *call, struct call_lane *lane, uint64_t size)
{
    struct ipc_client *client = call->client;
    struct lane_writer *writer = &lane->publisher->writer;
    uint32_t stride = ipc_record_stride((uint32_t)size);
    uint64_t pairing = lane->pairing;
    int result = 1;
    client->waits++;
    while (result > 0 && lane->pairing == pairing && lane_writer_make_room(writer, stride) < 0) {
        const struct lane_peer *slowest;
        uint64_t raw;
        lane_writer_want(writer, stride, &slowest, &raw);
        if (slowest)
            client->inbox->also =
                (struct lane_word){lane_low_half(&slowest->cell->cursor), (uint32_t)raw, false};
        result = client_turn(client, call->deadline);
        client->inbox->also.word = NULL;
        lane_writer_want_clear(writer);
    }
    return result < 0 ? result : 0;
}

static int send_direct(struct ipc_call *call, struct call_lane *lane, const void *data, size_t size,
                       const struct ipc_publish *how)
{
    uint32_t headers;
    unsigned char *body;
    struct ipc_call_head head = head_of(call, lane, IPC_OPERATION_CALL);
    int result = publisher_open_message(lane->publisher, sizeof(head), size, how, &headers, &body);
    if (result < 0)
        return result;
    lane_copy_in(body, &head, sizeof(head));
    if (size)
        lane_copy_in(body + sizeof(head) + headers, data, size);
    commit(call, lane, (uint32_t)sizeof(head) + headers + (uint32_t)size, headers);
    return 0;
}

/* What follows is in a session. 0; -EAGAIN, -ETIMEDOUT, -EPIPE, or why there is none. */
static int begin_anew(struct ipc_client *client, uint64_t deadline)
{
    int result = 0;
    while (result >= 0 && client_ended(client))
        result = client_renew(client, deadline);
    return result < 0 ? result : 0;
}

/* Send a new call. Answers taken in on the way may settle others, never this one. */
static int send_call(struct ipc_call *call, const void *data, size_t size,
                     const struct ipc_call_options *options)
{
    struct ipc_client *client = call->client;
    struct ipc_publish how = {sizeof(how), IPC_PUBLISH_REJECT, options->content_type, options->headers,
                              options->header_count};
    if (client->cancels)
        calls_send_cancels(client);
    if (call->flags & IPC_CALL_RETRY) {
        int result = keep_copy(call, &client->lanes[0], data, size, &how);
        if (result < 0)
            return result;
    }
    for (;;) {
        int over = begin_anew(client, call->direct ? call->deadline : 0);
        if (over == -EAGAIN)
            call->flags |= IPC_CALL_WAIT; /* it is queued below; servers begin anew as well */
        else if (over < 0)
            return over;
        struct call_lane *lane = client_lane(client);
        if (!lane && !call->direct) {
            client_news(client); /* of a mail that another handle has seen */
            lane = client_lane(client);
        }
        if (!lane && !call->direct && (client_expects(client) || (call->flags & IPC_CALL_WAIT))) {
            int result = call->copy ? 0 : keep_copy(call, &client->lanes[0], data, size, &how);
            if (result == 0)
                queue_unsent(call);
            return result;
        }
        if (!lane) {
            int result = find_server(call, &lane);
            if (result < 0)
                return result;
        }
        /* What was kept before goes first. */
        int result = client->unsent && call->flags & IPC_CALL_KEEP && !call->direct ? -EAGAIN
                     : call->copy                                                   ? send_copy(call, lane)
                                  : send_direct(call, lane, data, size, &how);
        if (result == -EPIPE && client->connection->reconnects && client_ended(client))
            continue; /* it was not sent */
        if (result != -EAGAIN)
            return result;
        if (call->flags & IPC_CALL_KEEP && !call->direct) {
            result = call->copy ? 0 : keep_copy(call, lane, data, size, &how);
            if (result == 0)
                queue_unsent(call);
            return result;
        }
        result =
            wait_for_room(call, lane, call->copy ? call->copy_size : sizeof(struct ipc_call_head) + size);
        if (result < 0)
            return result == -EAGAIN ? -ETIMEDOUT : result;
    }
}

static void call_release(struct ipc_call *call)
{
    struct ipc_client *client = call->client;
    call->taken = part_free(client, call->taken);
    while (call->parts) {
        struct part *part = call->parts;
        call->parts = part->next;
        part_free(client, part);
    }
    call->next = client->unused;
    client->unused = call;
}

static int begin(struct ipc_call **ret, struct ipc_client *client, const void *data, size_t size,
                 const struct ipc_call_options *options, void *into, size_t capacity, bool direct)
{
    if ((!data && size) || options->size != sizeof(*options) ||
        (options->flags & ~(IPC_CALL_RETRY | IPC_CALL_WAIT | IPC_CALL_KEEP)))
        return -EINVAL;
    if (size > IPC_MAX_MESSAGE_SIZE)
        return -EMSGSIZE;
    struct ipc_call *call;
    int result = call_new(&call, client, options);
    if (result < 0)
        return result;
    call->into = into;
    call->into_capacity = capacity;
    call->direct = direct;
    result = send_call(call, data, size, options);
    if (result == 0) {
        *ret = call;
        return 0;
    }
    call->done = NULL;
    free(call->copy);
    call->copy = NULL;
    call_settle(call, result);
    call_release(call);
    return result;
}

int ipc_call_start(ipc_call **ret, ipc_client *client, const void *data, size_t size,
                   const struct ipc_call_options *options)
{
    static const struct ipc_call_options defaults = IPC_CALL_OPTIONS_INIT;
    int result = ret ? client_check(client) : -EINVAL;
    if (result < 0)
        return result;
    return begin(ret, client, data, size, options ? options : &defaults, NULL, 0, false);
}

/* Until it is over, or `parts` and there is one. */
static int wait_for(struct ipc_call *call, uint64_t deadline, bool parts)
{
    struct ipc_client *client = call->client;
    while (call->state != CALL_OVER && !(parts && call->parts)) {
        uint64_t until = call->deadline < deadline ? call->deadline : deadline;
        int result = client_turn(client, until);
        if (result > 0)
            continue;
        if (client_over(result)) {
            call_settle(call, result);
            break;
        }
        if (call->deadline != LANE_NEVER && lane_now() >= call->deadline)
            call_settle(call, -ETIMEDOUT);
        else if (deadline == 0 || lane_now() >= deadline)
            return deadline == 0 ? -EAGAIN : -ETIME;
    }
    return 0;
}

ssize_t ipc_client_call(ipc_client *client, const void *data, size_t size, void *buffer, size_t capacity,
                        const struct ipc_call_options *options, struct ipc_reply *reply)
{
    static const struct ipc_call_options defaults = IPC_CALL_OPTIONS_INIT;
    int result = buffer || !capacity ? client_check(client) : -EINVAL;
    if (result < 0)
        return result;
    if (!options)
        options = &defaults;
    struct ipc_call *call = NULL;
    result = options->done ? -EINVAL : begin(&call, client, data, size, options, buffer, capacity, true);
    if (result < 0) {
        if (reply) {
            *reply = (struct ipc_reply){.code = result, .text = ""};
            if (result == -ENOENT || result == -EDQUOT || result == -ESHUTDOWN)
                reply->text = client_nobody_text(client, result);
            else if (result == -ETIMEDOUT && client_ended(client))
                reply->text = "the broker went away, and did not come back in time";
        }
        return result;
    }
    (void)wait_for(call, LANE_NEVER, false);
    result = call->result;
    if (call->parts) { /* an error, or a stream, whose first part is given */
        struct part *part = call->taken = call->parts;
        call->parts = part->next;
        call->answer = (struct ipc_message){
            .data = part->bytes + part->block + (part->block ? BLOCK_EXTRA : 0), .size = part->size};
        if (result == 0 && part->size > capacity)
            result = -EMSGSIZE;
        else if (result == 0 && part->size)
            memcpy(buffer, call->answer.data, part->size);
    }
    ssize_t answered = result < 0 ? result : (ssize_t)call->answer.size;
    if (reply)
        call_describe(call, NULL, reply);
    if (reply && result == 0)
        reply->data = buffer;
    if (reply)
        reply->code = result == -EREMOTEIO ? reply->code : result;
    part_free(client, client->shown);
    client->shown = call->taken;
    call->taken = NULL;
    call_release(call);
    return answered;
}

int ipc_call_next(ipc_call *call, struct ipc_reply *reply, int64_t timeout_ns)
{
    int result = call ? client_check(call->client) : -EINVAL;
    if (result < 0)
        return result;
    call->taken = part_free(call->client, call->taken);
    if (!call->parts && call->state != CALL_OVER) {
        result = wait_for(call, timeout_ns == 0 ? 0 : lane_deadline(timeout_ns), true);
        if (result < 0)
            return result;
    }
    struct part *part = call->parts;
    if (part) {
        call->parts = part->next;
        if (!call->parts)
            call->parts_end = &call->parts;
        call->taken = part;
        call->buffered -= part->size;
    }
    if (reply)
        call_describe(call, part, reply);
    if (part && !(part->flags & IPC_REPLY_ERROR))
        return 1;
    return call->result;
}

int ipc_call_wait(ipc_call *call, int64_t timeout_ns)
{
    int result = call ? client_check(call->client) : -EINVAL;
    if (result < 0)
        return result;
    return wait_for(call, timeout_ns == 0 ? 0 : lane_deadline(timeout_ns), false);
}

int ipc_call_cancel(ipc_call *call)
{
    int result = call ? client_check(call->client) : -EINVAL;
    if (result < 0)
        return result;
    cancel_at_server(call);
    call_settle(call, -ECANCELED);
    return 0;
}

ipc_call *ipc_call_free(ipc_call *call)
{
    if (!call || client_check(call->client) < 0)
        return NULL;
    struct ipc_client *client = call->client;
    if (!call->finished)
        call->done = NULL;
    if (call->state != CALL_OVER)
        ipc_call_cancel(call);
    if (call->finished) {
        struct ipc_call **at = &client->finished;
        while (*at != call)
            at = &(*at)->next;
        *at = call->next;
        if (client->finished_end == &call->next)
            client->finished_end = at;
    }
    call_release(call);
    return NULL;
}

void *ipc_call_context(const ipc_call *call)
{
    return call ? call->context : NULL;
}

static int run_finished(struct ipc_client *client)
{
    int n = 0;
    while (client->finished) {
        struct ipc_call *call = client->finished;
        client->finished = call->next;
        if (!client->finished)
            client->finished_end = &client->finished;
        call->finished = false;
        call->done(call, call->context);
        n++;
    }
    return n;
}

int ipc_client_dispatch(ipc_client *client, int64_t timeout_ns)
{
    int result = client_check(client);
    if (result < 0)
        return result;
    uint64_t deadline = timeout_ns == 0 ? 0 : lane_deadline(timeout_ns);
    uint32_t before = client->open;
    int ran = 0;
    if (client->timer >= 0) {
        uint64_t fired;
        (void)!read(client->timer, &fired, sizeof(fired));
        client_news(client);
    }
    for (;;) {
        uint64_t until = client->open < before || client->finished ? 0 : deadline;
        result = client_turn(client, until && client->earliest < until ? client->earliest : until);
        if (client->earliest != LANE_NEVER && result <= 0)
            calls_expire(client, lane_now());
        if (client_over(result))
            for (uint32_t i = 0; i < client->call_capacity; i++)
                if (client->calls[i])
                    call_settle(client->calls[i], result);
        if (result > 0)
            continue;
        if (client_over(result) || until == 0 || client->open < before || client->finished ||
            lane_now() >= deadline)
            break;
    }
    int ended = before > client->open ? (int)(before - client->open) : 0;
    ran = run_finished(client);
    return client_over(result) ? result : ran > ended ? ran : ended;
}
