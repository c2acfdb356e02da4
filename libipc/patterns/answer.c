/* SPDX-License-Identifier: Apache-2.0
 *
 * What servers reply: to the call that it is for, and to what the user sees of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libipc/patterns/service.h"

static struct part *part_new(struct ipc_client *client, size_t size)
{
    struct part *part = client->parts;
    if (part && part->capacity >= size) {
        client->parts = part->next;
        client->part_count--;
        return part;
    }
    size_t capacity = size < 256 ? 256 : size;
    part = malloc(sizeof(*part) + capacity);
    if (part)
        part->capacity = capacity;
    return part;
}

struct part *part_free(struct ipc_client *client, struct part *part)
{
    if (!part)
        return NULL;
    if (client->part_count < CLIENT_PARTS && part->capacity <= PART_KEEP) {
        part->next = client->parts;
        client->parts = part;
        client->part_count++;
    } else {
        free(part);
    }
    return NULL;
}

static struct ipc_call *call_of(const struct ipc_client *client, uint64_t id)
{
    uint32_t place = (uint32_t)id & (CALLS_MAX - 1);
    struct ipc_call *call = place < client->call_capacity ? client->calls[place] : NULL;
#ifdef IPC_PLANT_REPLY_TO_ANY
    return call;
#endif
    return call && call->id == id ? call : NULL;
}

/* The answer of a call that waits: straight to where it is wanted. */
static ssize_t take_direct(struct ipc_call *call, struct sub_lane *lane, const struct lane_record *record,
                           bool *again)
{
    struct ipc_subscription *inbox = call->client->inbox;
    int64_t block;
    inbox->scratch_size = 0;
    ssize_t size = subscription_copy(inbox, lane, record, call->into, call->into_capacity, &block, again);
    if (*again || (size < 0 && size != -EMSGSIZE))
        return size;
    call->answer = (struct ipc_message){.data = call->into, .size = record->size - (size_t)block};
    call->server = lane->sender;
    if (block > 0 && size >= 0)
        message_describe_fields(&call->answer, inbox->scratch, (size_t)block);
    return size;
}

/* Any other: to be taken later. */
static ssize_t take_part(struct ipc_call *call, struct sub_lane *lane, const struct lane_record *record,
                         const struct ipc_reply_head *head, bool *again)
{
    struct ipc_client *client = call->client;
    struct ipc_subscription *inbox = client->inbox;
    struct part *part = part_new(client, (size_t)record->size + BLOCK_EXTRA);
    int64_t block;
    if (!part)
        return -ENOMEM;
    inbox->scratch_size = 0;
    ssize_t size = subscription_copy(inbox, lane, record, part->bytes, part->capacity, &block, again);
    if (*again || size < 0) {
        part_free(client, part);
        return size;
    }
    if (block > 0) {
        memmove(part->bytes + block + BLOCK_EXTRA, part->bytes, (size_t)size);
        memcpy(part->bytes, inbox->scratch, (size_t)block);
    }
    part->next = NULL;
    part->block = (size_t)block;
    part->size = (size_t)size;
    part->code = head->code;
    part->flags = head->flags;
    part->server = lane->sender;
    *call->parts_end = part;
    call->parts_end = &part->next;
    call->buffered += (size_t)size;
    call->started = true;
    return size;
}

/* One record of an inbox. False: what its lane holds makes no sense. */
static bool take(struct ipc_client *client, struct sub_lane *lane, const struct lane_record *record)
{
    struct lane_record rest = *record;
    struct ipc_reply_head head;
    bool again = false;
    if (record->size < sizeof(head))
        return !lane_reader_check(&lane->reader);
    lane_copy_out(&head, record->body, sizeof(head));
    if (!lane_reader_check(&lane->reader))
        return true;
    struct ipc_call *call = call_of(client, head.id);
    if (!call || call->state != CALL_SENT ||
        call->pairing != lane->call) { /* settled already, or none of its own */
        lane_reader_advance(&lane->reader, record);
        return true;
    }
    rest.body += sizeof(head);
    rest.size -= (uint32_t)sizeof(head);
    if (head.flags & IPC_REPLY_EMPTY) {
        call->server = lane->sender;
        lane_reader_advance(&lane->reader, record);
        call_settle(call, 0);
        return true;
    }
    ssize_t size = call->direct && head.flags == IPC_REPLY_END && head.code == 0 && !call->parts
                       ? take_direct(call, lane, &rest, &again)
                       : take_part(call, lane, &rest, &head, &again);
    if (again)
        return true;
    if (size == -EPROTO)
        return false;
    lane_reader_advance(&lane->reader, record);
    if (size < 0)
        call_settle(call, (int)size);
    else if (head.flags & IPC_REPLY_ERROR)
        call_settle(call, -EREMOTEIO);
    else if (head.flags & IPC_REPLY_END)
        call_settle(call, 0);
    else if (call->buffered > client->buffer_max) {
        ipc_call_cancel(call);
        call->result = -ENOBUFS;
    }
    return true;
}

/* Until when the next wait may last. */
static int64_t turn_timeout(const struct ipc_client *client, uint64_t deadline)
{
    for (const struct leaving *leaving = client->leaving; leaving; leaving = leaving->next)
        if (leaving->replying && leaving->until < deadline)
            deadline = leaving->until;
    if (deadline == LANE_NEVER || deadline == 0)
        return deadline == 0 ? 0 : IPC_FOREVER;
    uint64_t now = lane_now();
    return deadline > now ? (int64_t)(deadline - now) : 0;
}

int client_turn(struct ipc_client *client, uint64_t deadline)
{
    struct ipc_subscription *inbox = client->inbox;
    struct lane_record record;
    struct sub_lane *lane;
    if (client->unsent)
        calls_send_unsent(client);
    if (inbox->roused)
        client_news(client);
    int result = subscription_find(inbox, &record, &lane);
    if (result == 0) {
        if (client->cancels)
            calls_send_cancels(client);
        result = subscription_wait(inbox, &record, &lane, turn_timeout(client, deadline));
    }
    if (result == -EINTR || (result == -ETIMEDOUT && client->leaving)) {
        client_news(client);
        return 1;
    }
    if (result == -EPIPE)
        return client_renew(client, deadline);
    if (result < 0)
        return result;
    inbox->received++;
    if (!take(client, lane, &record))
        subscription_break(inbox, lane, IPC_REASON_CORRUPT);
    return 1;
}

static const char *describe_end(struct ipc_call *call)
{
    struct ipc_client *client = call->client;
    const struct ipc_peer *server = &call->server;
    char *text = client->text;
    size_t size = sizeof(client->text);
    if (call->result == 0)
        return "";
    if (call->result == -EPIPE && server->session)
        snprintf(text, size, "the server %s (pid %u, uid %u) of service %s left before it answered: %s",
                 server->name, server->pid, server->uid, client->service, ipc_reason_text(call->reason));
    else if (call->result == -EPIPE)
        snprintf(text, size, "the session with the broker is over");
    else if (call->result == -ECONNRESET)
        snprintf(
            text, size,
            "the broker went away before service %s answered: the call may have been executed or not, and "
            "may be made again",
            client->service);
    else if (call->result == -ETIMEDOUT)
        snprintf(text, size, "service %s did not answer in time", client->service);
    else if (call->result == -ENOENT || call->result == -EDQUOT || call->result == -ESHUTDOWN)
        return client_nobody_text(client, call->result);
    else
        snprintf(text, size, "%s", strerror(-call->result));
    return text;
}

void call_describe(struct ipc_call *call, struct part *part, struct ipc_reply *reply)
{
    if (!part && call->taken && call->direct)
        part = call->taken;
    *reply = (struct ipc_reply){.code = call->result, .text = ""};
    reply->server = call->server;
    if (!part) {
        reply->reason = call->reason;
        reply->text = describe_end(call);
        if (call->direct) {
            reply->size = call->answer.size;
            reply->content_type = call->answer.content_type;
            reply->fields = call->answer.fields;
            reply->fields_size = call->answer.fields_size;
        }
        return;
    }
    struct ipc_message message = {.data = part->bytes + part->block + (part->block ? BLOCK_EXTRA : 0),
                                  .size = part->size};
    if (part->block)
        message_describe_fields(&message, part->bytes, part->block);
    reply->server = part->server;
    reply->code = part->code;
    reply->data = message.data;
    reply->size = message.size;
    reply->content_type = message.content_type;
    reply->fields = message.fields;
    reply->fields_size = message.fields_size;
    if (!(part->flags & IPC_REPLY_ERROR))
        return;
    /* The sentence, and its 0, come first. */
    const char *text = message.data;
    size_t length = strnlen(text, message.size);
    if (length == message.size)
        return;
    reply->text = text;
    reply->data = text + length + 1;
    reply->size = message.size - length - 1;
}

int ipc_reply_header(const struct ipc_reply *reply, const char *name, const void **value, size_t *value_size)
{
    if (!reply)
        return -EINVAL;
    const struct ipc_message message = {.fields = reply->fields, .fields_size = reply->fields_size};
    return ipc_message_header(&message, name, value, value_size);
}
