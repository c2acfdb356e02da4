/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of outside peers. The input is frames, each with a byte in front that tells its size; the last is what is
 * left. Whatever is taken must be in its bounds, and properties must be written as they were read.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "broker/gateways/zmq/wire.h"
#include "proto/name.h"

static void check_properties(const struct wire_frame *frame)
{
    static struct wire_properties given, again;
    struct wire_text text = {0};
    const char *sentence = NULL;

    if (wire_properties_parse(frame, &given, &sentence) < 0) {
        if (!sentence)
            abort();
        return;
    }
    wire_text_begin(&text);
    if (given.content_type)
        wire_text_string(&text, "content_type", given.content_type, strlen(given.content_type));
    wire_text_number(&text, "credit", given.credit);
    wire_text_signed(&text, "code", given.code);
    for (size_t i = 0; i < given.header_count; i++)
        wire_text_header(&text, given.headers[i].name, strlen(given.headers[i].name), given.headers[i].value,
                         given.headers[i].value_size);
    const struct wire_frame made = wire_text_end(&text);
    if (made.size <= WIRE_PROPERTIES_MAX) {
        if (wire_properties_parse(&made, &again, &sentence) < 0 || again.header_count != given.header_count ||
            again.credit != given.credit || again.code != given.code)
            abort();
        for (size_t i = 0; i < given.header_count; i++)
            if (again.headers[i].value_size != given.headers[i].value_size ||
                memcmp(again.headers[i].value, given.headers[i].value, given.headers[i].value_size) != 0)
                abort();
        wire_properties_free(&again);
    }
    wire_properties_free(&given);
    wire_text_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_frame frames[8];
    struct wire_message message;
    const char *sentence = NULL;
    char cover[256];
    size_t count = 0, at = 0;
    uint64_t first, last;

    while (at < size && count < 7) {
        size_t wanted = data[at++];
        if (wanted > size - at)
            wanted = size - at;
        frames[count++] = (struct wire_frame){data + at, wanted};
        at += wanted;
    }
    frames[count++] = (struct wire_frame){data + at, size - at};
    int result = wire_parse(frames, count, &message, &sentence);
    if (result < 0 && !sentence)
        abort();
    if (result == 0)
        check_properties(&message.properties);
    if (wire_parse_plain(frames, count, &message, &sentence) == 0) {
        if (ipc_name_check(message.name, false))
            abort();
        check_properties(&message.properties);
    }
    check_properties(&frames[count - 1]);
    wire_prefix_cover((const char *)frames[0].data, frames[0].size, cover);
    if (ipc_name_check(cover, true))
        abort();
    if (wire_range_parse(&frames[0], &first, &last) == 0 && first > last)
        abort();
    return 0;
}
