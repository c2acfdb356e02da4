/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients: opening, closing, and the servers that come and go.
 *
 * A client begins with one lane. When a call finds all lanes with a server busy, it opens one more, up to four; one that
 * finds no further server waits in the core for the next one, so that nothing has to be asked again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "libipc/patterns/publish.h"
#include "libipc/patterns/service.h"

/* How long the replies of a server that left may take to be announced. */
#define LEAVING_NS UINT64_C(1000000000)

static int make_lane(struct ipc_client *client, struct call_lane *lane, struct ipc_error *error)
{
    struct ipc_publisher *publisher;
    uint32_t servers;
    int result = publisher_open(&publisher, client->connection, client->service,
                                IPC__CONTROL__KIND__KIND_CALL, client->inbox->handle.id,
                                &client->lane_options, &servers, error);
    if (result < 0)
        return result;
    if (publisher->handle.epoch != client->inbox->handle.epoch) { /* by now that inbox means nothing */
        ipc_publisher_close(publisher);
        return error_set(error, -EPIPE, "the session with the broker is over");
    }
    *lane = (struct call_lane){.publisher = publisher, .expected = servers > client->lane_count};
    publisher->handle.owner = client;
    publisher->handle.close = client->inbox->handle.close;
    publisher->handle.self = client->inbox->handle.self;
    return 0;
}

static int open_lane(struct ipc_client *client, struct ipc_error *error)
{
    int result = make_lane(client, &client->lanes[client->lane_count], error);
    client->lane_count += result == 0;
    return result;
}

static void close_lane(struct call_lane *lane)
{
    lane->publisher->handle.self = -1; /* the inbox's */
    ipc_publisher_close(lane->publisher);
    free(lane->cancels);
}

static void close_client(void *client)
{
    ipc_client_close(client);
}

static int check_options(const struct ipc_client_options *options, struct ipc_error *error)
{
    if (options->size != sizeof(*options))
        return error_set(error, -EINVAL, "the options do not start from IPC_CLIENT_OPTIONS_INIT");
    if (options->calls_max > CALLS_MAX)
        return error_set(error, -EINVAL, "calls_max is %u, the limit is %u", options->calls_max, CALLS_MAX);
    if (options->message_size_max > IPC_MAX_MESSAGE_SIZE - sizeof(struct ipc_call_head))
        return error_set(error, -EINVAL, "message_size_max is %u, the limit is %zu",
                         options->message_size_max, IPC_MAX_MESSAGE_SIZE - sizeof(struct ipc_call_head));
    return 0;
}

int ipc_client_open(ipc_client **ret, ipc_connection *connection, const char *service,
                    const struct ipc_client_options *options, struct ipc_error *error)
{
    const struct ipc_client_options defaults = IPC_CLIENT_OPTIONS_INIT;
    struct ipc_subscription_options inbox = IPC_SUBSCRIPTION_OPTIONS_INIT;
    if (!options)
        options = &defaults;
    if (!ret || !connection)
        return error_set(error, -EINVAL, "ret or connection is NULL");
    int result = check_options(options, error);
    if (result < 0)
        return result;
    struct ipc_client *client = calloc(1, sizeof(*client));
    if (!client)
        return error_set(error, -ENOMEM, "out of memory");
    client->connection = connection;
    client->lane_options = (struct ipc_publisher_options)IPC_PUBLISHER_OPTIONS_INIT;
    client->lane_options.ring_size = options->ring_size;
    if (options->message_size_max)
        client->lane_options.message_size_max = options->message_size_max +
                                                (uint32_t)sizeof(struct ipc_call_head);
    client->buffer_max = options->buffer_max;
    client->calls_max = options->calls_max ? options->calls_max : CALLS_MAX;
    client->unsent_end = &client->unsent;
    client->finished_end = &client->finished;
    client->earliest = LANE_NEVER;
    client->timer = -1;
    inbox.slow = IPC_SLOW_BLOCK;
    inbox.spin_max_ns = options->spin_max_ns;
    result =
        subscription_open(&client->inbox, connection, service, IPC__CONTROL__KIND__KIND_INBOX, &inbox, error);
    if (result < 0) {
        free(client);
        return result;
    }
    client->inbox->handle.owner = client;
    client->inbox->handle.close = close_client;
    client->inbox->watched = true;
    snprintf(client->service, sizeof(client->service), "%s", service);
    result = open_lane(client, error);
    if (result < 0) {
        ipc_client_close(client);
        return result;
    }
    *ret = client;
    return 0;
}

static void free_call(struct ipc_call *call)
{
    part_free(call->client, call->taken);
    while (call->parts) {
        struct part *part = call->parts;
        call->parts = part->next;
        part_free(call->client, part);
    }
    free(call->copy);
    free(call);
}

ipc_client *ipc_client_close(ipc_client *client)
{
    if (!client)
        return NULL;
    for (uint32_t i = 0; i < client->call_capacity; i++)
        if (client->calls[i])
            free_call(client->calls[i]);
    for (struct ipc_call *call = client->finished, *next; call; call = next) {
        next = call->next;
        free_call(call);
    }
    while (client->unused) {
        struct ipc_call *call = client->unused;
        client->unused = call->next;
        free(call);
    }
    for (uint32_t i = 0; i < client->lane_count; i++)
        close_lane(&client->lanes[i]);
    if (client->timer >= 0)
        close(client->timer);
    ipc_subscription_close(client->inbox);
    while (client->leaving) {
        struct leaving *leaving = client->leaving;
        client->leaving = leaving->next;
        free(leaving);
    }
    free(client->shown);
    while (client->parts) {
        struct part *part = client->parts;
        client->parts = part->next;
        free(part);
    }
    free(client->calls);
    free(client->free_places);
    free(client);
    return NULL;
}

static void abandon_calls(struct ipc_client *client, uint64_t pairing, unsigned reason,
                          const struct ipc_peer *server)
{
    for (uint32_t i = 0; i < client->call_capacity; i++) {
        struct ipc_call *call = client->calls[i];
        if (call && call->state == CALL_SENT && call->pairing == pairing)
            call_abandon(call, reason, server);
    }
}

/* There are no servers, and nothing is under way any more. Returns if there was something. */
static bool lose_calls(struct ipc_client *client)
{
    bool any = false;
    for (uint32_t i = 0; i < client->lane_count; i++) {
        struct call_lane *lane = &client->lanes[i];
        any = any || lane->pairing;
        lane->pairing = 0;
        lane->cancel_count = 0;
        lane_set_open(lane, 0);
        lane->expected = lane->refused = false;
    }
    client->cancels = 0;
    while (client->leaving) {
        struct leaving *leaving = client->leaving;
        client->leaving = leaving->next;
        free(leaving);
    }
    for (uint32_t i = 0; i < client->call_capacity; i++) {
        struct ipc_call *call = client->calls[i];
        if (call && call->state == CALL_SENT) {
            any = true; /* its server may have left before */
            call_lose(call);
        }
    }
    return any;
}

int client_renew(struct ipc_client *client, uint64_t deadline)
{
    struct call_lane first;
    uint64_t next_ns;
    if (!client->connection->reconnects || connection_look(client->connection, &next_ns) == -EPIPE)
        return -EPIPE;
    if (lose_calls(client))
        return 1;
    int result = handle_ended(&client->inbox->handle) ? subscription_renew(client->inbox, deadline) : 0;
    if (result < 0)
        return result;
    while (client->lane_count > 1)
        close_lane(&client->lanes[--client->lane_count]);
    client->lane_count = 0; /* the first one is asked what a call may be, so there is always one */
    result = make_lane(client, &first, NULL);
    client->lane_count = 1;
    client->no_more_lanes = false;
    if (result == -EPIPE && client_ended(client) && connection_between(client->connection))
        return deadline ? 1 : -EAGAIN; /* it is over once more */
    if (result < 0)
        return result;
    close_lane(&client->lanes[0]);
    client->lanes[0] = first;
    return 1;
}

static bool has_replies(const struct ipc_client *client, uint64_t pairing)
{
    for (unsigned i = 0; i < client->inbox->lane_count; i++)
        if (client->inbox->lanes[i]->call == pairing && !client->inbox->lanes[i]->broken)
            return true;
    return false;
}

/* A server has left. What it answered before counts. */
static void server_left(struct ipc_client *client, struct call_lane *lane)
{
    const struct reader_left *left = &lane->publisher->left;
    bool known = left->pairing == lane->pairing;
    unsigned reason = known ? left->reason : IPC_REASON_CLOSED;
    bool replying = known && left->replying;
    uint64_t pairing = lane->pairing;
    subscription_news(client->inbox); /* what was told of its replies before */
    uint32_t others = 0, open = lane->open;
    for (uint32_t i = 0; i < client->lane_count; i++)
        others += &client->lanes[i] != lane && client->lanes[i].pairing != 0;
    lane->pairing = 0;
    lane_set_open(lane, 0);
    client->cancels -= lane->cancel_count;
    lane->cancel_count = 0;
    lane->refused = reason == IPC_REASON_LIMIT;
    lane->expected = known && !lane->refused && left->servers > others;
    if (open == 0)
        return;
    struct leaving *leaving = replying || has_replies(client, pairing) ? malloc(sizeof(*leaving)) : NULL;
    if (!leaving) {
        abandon_calls(client, pairing, reason, &lane->server);
        return;
    }
    *leaving = (struct leaving){.next = client->leaving,
                                .pairing = pairing,
                                .reason = reason,
                                .server = lane->server,
                                .replying = replying,
                                .until = lane_now() + LEAVING_NS};
    client->leaving = leaving;
}

/* A server whose lane of replies is gone, or made no sense, answers nothing any more, and may stay: it is done without. */
static void leave_mute(const struct ipc_client *client, struct call_lane *lane)
{
    struct lane_writer *writer = &lane->publisher->writer;
    bool there = false, broken = false;
    for (unsigned i = 0; i < client->inbox->lane_count; i++)
        if (client->inbox->lanes[i]->call == lane->pairing) {
            there = true;
            broken = broken || client->inbox->lanes[i]->broken;
        }
    bool mute = broken || (lane->replying && !there);
    for (uint32_t i = 0; i < writer->peer_count && mute; i++)
        if (writer->peers[i].pairing == lane->pairing) {
            writer->peers[i].fault = IPC_REASON_CORRUPT;
            writer->faulted = true;
        }
    lane->replying = there;
}

static void look_at_lane(struct ipc_client *client, struct call_lane *lane)
{
    struct ipc_publisher *publisher = lane->publisher;
    struct lane_writer *writer = &publisher->writer;
    if (publisher_has_news(publisher))
        publisher_news(publisher);
    if (lane->pairing)
        leave_mute(client, lane);
    if (writer->faulted)
        publisher_report_faults(publisher);
    uint64_t now = writer->peer_count ? writer->peers[writer->peer_count - 1].pairing : 0;
    if (now == lane->pairing)
        return;
    if (lane->pairing)
        server_left(client, lane);
    if (!now)
        return;
    lane->pairing = now;
    lane->expected = lane->refused = lane->replying = false;
    for (struct reader_ref *reader = publisher->readers; reader; reader = reader->next)
        if (reader->pairing == now)
            lane->server = reader->peer;
}

/* Settle the calls of servers that left and whose replies were read. */
static void look_at_leaving(struct ipc_client *client)
{
    struct leaving **at = &client->leaving;
    while (*at) {
        struct leaving *leaving = *at;
        bool there = has_replies(client, leaving->pairing);
        leaving->replying = leaving->replying && !there;
        if (there || (leaving->replying && lane_now() < leaving->until)) {
            at = &leaving->next;
            continue;
        }
        *at = leaving->next;
        abandon_calls(client, leaving->pairing, leaving->reason, &leaving->server);
        free(leaving);
    }
}

void client_news(struct ipc_client *client)
{
    bool lost = client->connection->reconnects && client_ended(client); /* nor are its servers */
    client->inbox->roused = false;
    for (uint32_t i = 0; i < client->lane_count && !lost; i++)
        look_at_lane(client, &client->lanes[i]);
    if (client->leaving)
        look_at_leaving(client);
    if (client->unsent)
        calls_send_unsent(client);
}

/* The broker finishes the calls that are under way, and no others. */
static bool stops(const struct ipc_client *client)
{
    uint64_t until = atomic_load_explicit(&client->connection->board->stops_ns, memory_order_relaxed);
    return until && lane_now() < until;
}

bool client_expects(const struct ipc_client *client)
{
    if (stops(client))
        return client->connection->reconnects;
    for (uint32_t i = 0; i < client->lane_count; i++)
        if (client->lanes[i].expected || client->lanes[i].pairing)
            return true;
    return false;
}

int client_nobody(const struct ipc_client *client)
{
    if (stops(client))
        return -ESHUTDOWN;
    for (uint32_t i = 0; i < client->lane_count; i++)
        if (client->lanes[i].refused)
            return -EDQUOT;
    return -ENOENT;
}

const char *client_nobody_text(struct ipc_client *client, int code)
{
    snprintf(client->text, sizeof(client->text),
             code == -ENOENT      ? "service %s has no server"
             : code == -ESHUTDOWN ? "the broker stops: it takes no new calls of service %s"
                                  : "no server of service %s has room for this client: a limit was reached, "
                                    "which the broker's log names (events refused, pairing-failed)",
             client->service);
    return client->text;
}

struct call_lane *client_lane(struct ipc_client *client)
{
    struct call_lane *best = NULL;
    bool all = true;
    if (stops(client))
        return NULL;
    for (uint32_t i = 0; i < client->lane_count; i++) {
        struct call_lane *lane = &client->lanes[i];
        all = all && lane->pairing;
        if (lane->pairing && (!best || lane->open < best->open))
            best = lane;
    }
    if (best && best->open > 0 && all && client->lane_count < CLIENT_LANES && !client->no_more_lanes &&
        !client_ended(client))
        client->no_more_lanes = open_lane(client, NULL) < 0;
    return best;
}

int client_check(const struct ipc_client *client)
{
    return client ? handle_enter(&client->inbox->handle) : -EINVAL;
}

int ipc_client_fd(ipc_client *client)
{
    int result = client_check(client);
    if (result < 0)
        return result;
    int fd = ipc_subscription_fd(client->inbox);
    if (fd < 0 || client->timer >= 0)
        return fd;
    struct epoll_event event = {.events = EPOLLIN};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer < 0)
        return -errno;
    if (epoll_ctl(fd, EPOLL_CTL_ADD, timer, &event) < 0) {
        result = -errno;
        close(timer);
        return result;
    }
    client->timer = timer;
    client->timer_at = LANE_NEVER;
    for (uint32_t i = 0; i < client->lane_count; i++)
        client->lanes[i].publisher->handle.self = client->inbox->handle.self;
    (void)!write(client->inbox->handle.self, &(uint64_t){1}, sizeof(uint64_t)); /* to be dispatched once */
    return fd;
}

int ipc_client_stats(ipc_client *client, struct ipc_client_stats *ret)
{
    int result = ret ? client_check(client) : -EINVAL;
    if (result < 0)
        return result;
    const struct ipc_subscription *inbox = client->inbox;
    *ret = (struct ipc_client_stats){.calls = client->made,
                                     .failed = client->failed,
                                     .retried = client->retried,
                                     .waits = client->waits,
                                     .sleeps = inbox->sleeps,
                                     .polls = inbox->polls,
                                     .net = inbox->net,
                                     .open = client->open};
    for (uint32_t i = 0; i < client->lane_count; i++) {
        ret->rings += client->lanes[i].publisher->writer.rings;
        ret->servers += client->lanes[i].pairing != 0;
    }
    return 0;
}
