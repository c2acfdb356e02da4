/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/message.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/output.h"
#include "tools/text.h"

static void print_json(const struct ipc_message *message)
{
    json_t *row = json_object(), *sender = json_object(), *headers = json_array();
    output_set(row, "topic", output_string(message->topic));
    output_set(row, "sequence", output_number(message->sequence));
    output_set(row, "lost", output_number(message->lost));
    if (message->timestamp_ns != 0)
        output_set(row, "timestamp_ns", output_number(message->timestamp_ns));
    output_set(sender, "session", output_number(message->sender->session));
    output_set(sender, "name", output_string(message->sender->name));
    output_set(sender, "uid", output_number(message->sender->uid));
    output_set(sender, "pid", output_number(message->sender->pid));
    output_set(row, "sender", sender);
    if (message->content_type)
        output_set(row, "content_type", output_string(message->content_type));
    const char *name;
    const void *value;
    size_t position = 0, name_size, value_size;
    while (ipc_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1) {
        json_t *header = json_object();
        _cleanup_free_ char *copy = strndup(name, name_size);
        output_set(header, "name", output_string(copy ? copy : ""));
        output_set_bytes(header, "value", value, value_size);
        output_append(headers, header);
    }
    if (json_array_size(headers) > 0)
        output_set(row, "headers", headers);
    else
        json_decref(headers);
    output_set(row, "size", output_number(message->size));
    output_set_bytes(row, "data", message->data, message->size);
    output_line(row);
}

static void print_headers(const struct tool *tool, const struct ipc_message *message)
{
    const char *dim = output_tone(tool, TONE_DIM), *end = output_tone_end(tool, TONE_DIM);
    char time[TEXT_NUMBER_SIZE];
    printf("%s[#%" PRIu64 " session=%" PRIu64 " sender=", dim, message->sequence, message->sender->session);
    text_escape(stdout, message->sender->name, strlen(message->sender->name));
    printf("[%" PRIu32 "]", message->sender->pid);
    if (message->timestamp_ns != 0)
        printf(" time=%s", text_time(time, message->timestamp_ns));
    if (message->content_type) {
        fputs(" type=", stdout);
        text_escape(stdout, message->content_type, strlen(message->content_type));
    }
    const char *name;
    const void *value;
    size_t position = 0, name_size, value_size;
    while (ipc_message_next_header(message, &position, &name, &name_size, &value, &value_size) == 1) {
        putchar(' ');
        text_escape(stdout, name, name_size);
        putchar('=');
        text_escape(stdout, value, value_size);
    }
    printf("]%s ", end);
}

void message_print(const struct message_format *format, const struct ipc_message *message)
{
    if (format->tool->json) {
        print_json(message);
        return;
    }
    if (format->raw) {
        fwrite(message->data, 1, message->size, stdout);
    } else {
        printf("%s%s%s ", output_tone(format->tool, TONE_NAME), message->topic,
               output_tone_end(format->tool, TONE_NAME));
        if (format->headers)
            print_headers(format->tool, message);
        text_escape(stdout, message->data, message->size);
    }
    if (format->delimiter >= 0)
        putchar(format->delimiter);
}
