/* SPDX-License-Identifier: Apache-2.0 */
#include "libipc/patterns/queue_message.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "proto/fields.h"

static_assert((int)IPC_REDELIVERED_DIED == IPC_REDELIVERY_DIED &&
                  (int)IPC_REDELIVERED_CLOSED == IPC_REDELIVERY_CLOSED &&
                  (int)IPC_REDELIVERED_REFUSED == IPC_REDELIVERY_REFUSED &&
                  (int)IPC_REDELIVERED_EXPIRED == IPC_REDELIVERY_EXPIRED &&
                  (int)IPC_REDELIVERED_REQUEUED == IPC_REDELIVERY_REQUEUED,
              "the public names are those of the wire");

static uint64_t number_of(const struct ipc_field *field)
{
    uint64_t number = 0;
    if (field->value_size <= sizeof(number))
        memcpy(&number, field->value, field->value_size);
    return number;
}

/* A terminated copy of a field's text. */
static const char *text_of(const struct ipc_field *field, char *to)
{
    if (field->value_size > 255)
        return NULL;
    memcpy(to, field->value, field->value_size);
    to[field->value_size] = '\0';
    return to;
}

void queue_message_fields(struct ipc_queue_message *message, unsigned char *block, size_t size)
{
    struct ipc_field field;
    size_t position = 0;
    char *texts = (char *)block + size;
    message->fields = block;
    message->fields_size = size;
    while (ipc_field_next(block, size, &position, &field) > 0) {
        switch (field.kind) {
        case IPC_FIELD_TIMESTAMP:
            message->timestamp_ns = number_of(&field);
            break;
        case IPC_FIELD_CONTENT_TYPE:
            message->content_type = text_of(&field, texts);
            break;
        case IPC_FIELD_REPLY_TO:
            message->reply_to = text_of(&field, texts + QUEUE_BLOCK_EXTRA / 2);
            break;
        case IPC_FIELD_ID:
            message->id = field.value;
            message->id_size = field.value_size;
            break;
        case IPC_FIELD_KEY:
            message->key = field.value;
            message->key_size = field.value_size;
            break;
        default:
            break;
        }
    }
}

int ipc_queue_message_next_header(const struct ipc_queue_message *message, size_t *position,
                                  const char **name, size_t *name_size, const void **value,
                                  size_t *value_size)
{
    if (!message)
        return -EINVAL;
    struct ipc_message fields = {.fields = message->fields, .fields_size = message->fields_size};
    return ipc_message_next_header(&fields, position, name, name_size, value, value_size);
}

int ipc_queue_message_header(const struct ipc_queue_message *message, const char *name, const void **value,
                             size_t *value_size)
{
    if (!message)
        return -EINVAL;
    struct ipc_message fields = {.fields = message->fields, .fields_size = message->fields_size};
    return ipc_message_header(&fields, name, value, value_size);
}

int ipc_queue_message_dead_letter(const struct ipc_queue_message *message, struct ipc_dead_letter *ret)
{
    if (!message || !ret)
        return -EINVAL;
    struct ipc_dead_letter letter = {.died_ns = 0};
    struct ipc_field field;
    size_t position = 0;
    bool dead = false;
    while (message->fields && ipc_field_next(message->fields, message->fields_size, &position, &field) > 0) {
        if (field.kind == IPC_FIELD_ORIGIN)
            dead = text_of(&field, letter.origin) || dead;
        else if (field.kind == IPC_FIELD_REASON)
            text_of(&field, letter.reason);
        else if (field.kind == IPC_FIELD_ATTEMPTS)
            letter.attempts = (uint32_t)number_of(&field);
        else if (field.kind == IPC_FIELD_DIED)
            letter.died_ns = number_of(&field);
    }
    if (!dead)
        return -ENOENT;
    *ret = letter;
    return 0;
}

const char *ipc_redelivered_word(unsigned redelivered)
{
    static const char *const words[] = {"not", "died", "closed", "refused", "expired", "requeued"};
    return redelivered < sizeof(words) / sizeof(words[0]) ? words[redelivered] : "unknown";
}
