/* SPDX-License-Identifier: Apache-2.0
 *
 * What bindings in the enveloped form share: proto/mq.md.
 */
#include <string.h>

#include "broker/gateways/mq/mq.h"

#define IDENTITY "identity"

size_t mq_headers_in(const struct mq_settings *settings, const struct ipc_mq_message *message,
                     struct ipc_header headers[IPC_MAX_HEADERS + 1])
{
    size_t count = 0;

    if (settings->identity[0])
        headers[count++] = (struct ipc_header){IDENTITY, settings->identity, strlen(settings->identity)};
    for (size_t i = 0; i < message->header_count; i++)
        if (strcmp(message->headers[i].name, IDENTITY) != 0)
            headers[count++] = message->headers[i];
    return count;
}

size_t mq_headers_out(struct mq_headers *to, const void *fields, size_t fields_size)
{
    const struct ipc_message message = {.fields = fields, .fields_size = fields_size};
    struct ipc_header *header = to->headers;
    size_t position = 0, name_size;
    const char *name;

    while (header < to->headers + IPC_MAX_HEADERS &&
           ipc_message_next_header(&message, &position, &name, &name_size, &header->value,
                                   &header->value_size) > 0) {
        char *copy = to->names[header - to->headers];

        memcpy(copy, name, name_size);
        copy[name_size] = '\0';
        header++->name = copy;
    }
    return (size_t)(header - to->headers);
}

int mq_end_open(ipc_mq **ret, const struct mqueue *mqueue, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = mqueue->binding->settings;
    struct ipc_mq_options options = IPC_MQ_OPTIONS_INIT;

    options.message_size_max = settings->gather_max;
    return mq_why(why, settings->mqueue, ipc_mq_open(ret, mqueue->source.fd, &options), NULL);
}
