/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl queue: the verbs that are about messages. The broker works on as many as one turn of its router allows; this
 * goes on where that ended.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proto/fields.h"
#include "tools/output.h"
#include "tools/queue.h"
#include "tools/text.h"

#define PEEK_DEFAULT 20u

static void fill(Ipc__Control__QueueDo *request, const struct queue_arguments *arguments)
{
    ipc__control__queue_do__init(request);
    request->queue = (char *)(uintptr_t)arguments->queue;
    if (arguments->target)
        request->target = (char *)(uintptr_t)arguments->target;
    request->priority_plus_1 = arguments->priority_plus_1;
    request->older_than_ns = arguments->older_than_ns;
    request->attempts_min = arguments->attempts_min;
    if (arguments->header)
        request->header = arguments->header;
    if (arguments->value) {
        request->value.data = (uint8_t *)arguments->value;
        request->value.len = strlen(arguments->value);
    }
    request->payload_max = arguments->payload_max;
}

/* The next part, of at most `left` messages. */
static int go_on(struct admin *admin, const struct queue_arguments *arguments, Ipc__Control__QueueDo *request,
                 uint64_t left, const Ipc__Control__QueueDid **ret)
{
    request->count_max = left < UINT32_MAX ? (uint32_t)left : 0;
    admin_renew(admin, arguments->tool);
    int status = admin_request(admin, IPC__CONTROL__TYPE__QUEUE_DO, &request->base,
                               IPC__CONTROL__TYPE__QUEUE_DID, arguments->queue, ret);
    if (status == TOOL_OK && (!*ret || ((*ret)->next != 0 && (*ret)->next <= request->after))) {
        (void)tool_fail(TOOL_FAILED, arguments->queue, "the broker's answers do not get on");
        return TOOL_FAILED;
    }
    return status;
}

static uint64_t limit_of(const struct queue_arguments *arguments, uint64_t otherwise)
{
    if (!arguments->count_given)
        return otherwise;
    return arguments->count ? arguments->count : UINT64_MAX;
}

int queue_move(struct queue_arguments *arguments)
{
    static const struct {
        const char *verb, *done;
        Ipc__Control__QueueOperation operation;
    } operations[] = {
        {"purge", "purged", IPC__CONTROL__QUEUE_OPERATION__PURGE},
        {"move", "moved", IPC__CONTROL__QUEUE_OPERATION__MOVE},
        {"requeue", "requeued", IPC__CONTROL__QUEUE_OPERATION__REQUEUE},
    };
    _cleanup_admin_ struct admin *admin = NULL;
    const Ipc__Control__QueueDid *did = NULL;
    Ipc__Control__QueueDo request;
    uint64_t left = limit_of(arguments, UINT64_MAX), done = 0;
    size_t which = 0;

    while (strcmp(operations[which].verb, arguments->verb) != 0)
        which++;
    fill(&request, arguments);
    request.operation = operations[which].operation;
    int status = admin_open(&admin, arguments->tool);
    do {
        if (status == TOOL_OK)
            status = go_on(admin, arguments, &request, left, &did);
        if (status != TOOL_OK)
            return status;
        done += did->done;
        left -= did->done < left ? did->done : left;
        request.after = did->next;
    } while (request.after != 0 && left > 0);
    if (arguments->tool->json) {
        json_t *document = json_object();
        output_set(document, "messages", output_number(done));
        queue_done(arguments, document);
    } else {
        printf("%" PRIu64 " message%s %s\n", done, done == 1 ? "" : "s", operations[which].done);
    }
    return TOOL_OK;
}

/* What a dead letter says of itself, and what its producer did. */
static const char *field_name(unsigned kind)
{
    switch (kind) {
    case IPC_FIELD_CONTENT_TYPE:
        return "content_type";
    case IPC_FIELD_ID:
        return "id";
    case IPC_FIELD_KEY:
        return "key";
    case IPC_FIELD_REPLY_TO:
        return "reply_to";
    case IPC_FIELD_ORIGIN:
        return "origin";
    case IPC_FIELD_REASON:
        return "reason";
    default:
        return NULL;
    }
}

static bool next_field(const Ipc__Control__Waiting *message, size_t *position, struct ipc_field *field)
{
    return message->fields.len >= sizeof(struct ipc_record_headers) &&
           ipc_field_next(message->fields.data, message->fields.len, position, field) == 1;
}

static json_t *message_json(const Ipc__Control__Waiting *message)
{
    json_t *row = json_object(), *headers = json_array();
    struct ipc_field field;
    size_t position = 0;
    output_set(row, "number", output_number(message->number));
    output_set(row, "time_ns", output_number(message->time_ns));
    output_set(row, "priority", output_number(message->priority));
    output_set(row, "attempt", output_number(message->attempt));
    if (message->not_before_ns)
        output_set(row, "not_before_ns", output_number(message->not_before_ns));
    if (message->consumer)
        output_set(row, "consumer", output_number(message->consumer));
    if (message->peer) {
        output_set(row, "session", output_number(message->peer->session));
        output_set(row, "name", output_string(message->peer->name));
        output_set(row, "uid", output_number(message->peer->uid));
        output_set(row, "pid", output_number(message->peer->pid));
    }
    while (next_field(message, &position, &field)) {
        _cleanup_free_ char *value = strndup(field.value, field.value_size);
        if (field_name(field.kind)) {
            output_set(row, field_name(field.kind), output_string(value ? value : ""));
        } else if (field.kind == IPC_FIELD_USER) {
            json_t *header = json_object();
            _cleanup_free_ char *name = strndup(field.name, field.name_size);
            output_set(header, "name", output_string(name ? name : ""));
            output_set_bytes(header, "value", field.value, field.value_size);
            output_append(headers, header);
        }
    }
    output_set(row, "headers", headers);
    output_set(row, "size", output_number(message->size));
    output_set_bytes(row, "data", message->payload.data, message->payload.len);
    return row;
}

static uint64_t age_ns(uint64_t since_ns)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return now_ns > since_ns ? now_ns - since_ns : 0;
}

static void add_message(struct table *table, const Ipc__Control__Waiting *message)
{
    char age[TEXT_NUMBER_SIZE];
    struct ipc_field field;
    size_t position = 0;
    table_add(table, TONE_PLAIN, "%" PRIu64, message->number);
    table_add(table, TONE_PLAIN, "%s", text_duration(age, age_ns(message->time_ns)));
    table_add(table, TONE_PLAIN, "%" PRIu32, message->priority);
    table_add(table, message->attempt > 1 ? TONE_BAD : TONE_PLAIN, "%" PRIu32, message->attempt);
    table_add(table, TONE_PLAIN, "%s[%" PRIu32 "]", message->peer ? message->peer->name : "",
              message->peer ? message->peer->pid : 0);
    if (message->consumer)
        table_add(table, TONE_BOLD, "with session %" PRIu64, message->consumer);
    else if (message->not_before_ns > message->time_ns + age_ns(message->time_ns))
        table_add(table, TONE_DIM, "delayed");
    else
        table_add(table, TONE_PLAIN, "waits");
    table_add_bytes(table, TONE_PLAIN, message->size);
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    while (out && next_field(message, &position, &field)) {
        if (!field_name(field.kind) && field.kind != IPC_FIELD_USER)
            continue;
        if (field.kind == IPC_FIELD_USER)
            fwrite(field.name, 1, field.name_size, out);
        else
            fputs(field_name(field.kind), out);
        fputc('=', out);
        fwrite(field.value, 1, field.value_size, out);
        fputc(' ', out);
    }
    if (out) {
        fwrite(message->payload.data, 1, message->payload.len, out);
        fclose(out);
    }
    for (size_t i = 0; i < size; i++) /* a NUL would end the cell */
        if (text[i] == '\0')
            text[i] = ' ';
    table_add(table, TONE_PLAIN, "%s", text ? text : "");
    free(text);
}

int queue_peek(struct queue_arguments *arguments)
{
    static const struct table_column columns[] = {{"NUMBER", .right = true},   {"AGE", .right = true},
                                                  {"PRIORITY", .right = true}, {"ATTEMPT", .right = true},
                                                  {"FROM", .shrink = true},    {"STATE"},
                                                  {"SIZE", .right = true},     {"MESSAGE", .shrink = true}};
    _cleanup_admin_ struct admin *admin = NULL;
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    json_t *messages = json_array();
    const Ipc__Control__QueueDid *did = NULL;
    Ipc__Control__QueueDo request;
    uint64_t left = limit_of(arguments, PEEK_DEFAULT);

    fill(&request, arguments);
    request.operation = IPC__CONTROL__QUEUE_OPERATION__PEEK;
    int status = admin_open(&admin, arguments->tool);
    do {
        if (status == TOOL_OK)
            status = go_on(admin, arguments, &request, left, &did);
        for (size_t i = 0; status == TOOL_OK && i < did->n_messages && left > 0; i++, left--) {
            if (arguments->tool->json)
                output_append(messages, message_json(did->messages[i]));
            else
                add_message(table, did->messages[i]);
        }
        request.after = status == TOOL_OK ? did->next : 0;
    } while (request.after != 0 && left > 0);
    if (status == TOOL_OK && arguments->tool->json) {
        json_t *document = json_object();
        output_set(document, "messages", messages);
        queue_done(arguments, document);
        return status;
    }
    json_decref(messages);
    if (status == TOOL_OK)
        table_print(table, arguments->tool);
    return status;
}
