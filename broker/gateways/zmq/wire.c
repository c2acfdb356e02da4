/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/gateways/zmq/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "proto/limits.h"
#include "proto/name.h"

enum named { NOTHING, NAME, PATTERN };

static const struct {
    const char *word;
    enum named named;
} commands[] = {
#define WIRE_ROW(command, named) {#command, named},
    WIRE_COMMANDS(WIRE_ROW)
#undef WIRE_ROW
};

const char *wire_command_word(enum wire_command command)
{
    return commands[command].word;
}

static bool frame_is(const struct wire_frame *frame, const char *text)
{
    return frame->size == strlen(text) && memcmp(frame->data, text, frame->size) == 0;
}

static int take_name(const struct wire_frame *frame, enum named named, char ret[256], const char **ret_text)
{
    const void *data = frame->data ? frame->data : "";

    if (frame->size > IPC_MAX_NAME_SIZE || memchr(data, '\0', frame->size)) {
        *ret_text = "the name is longer than 255 bytes, or holds a NUL";
        return -EINVAL;
    }
    memcpy(ret, data, frame->size);
    ret[frame->size] = '\0';
    *ret_text = ipc_name_check(ret, named == PATTERN);
    return *ret_text ? -EINVAL : 0;
}

int wire_parse(const struct wire_frame *frames, size_t count, struct wire_message *ret, const char **ret_text)
{
    static const struct wire_frame nothing = {"", 0};
    size_t at = 0;

    ret->id = nothing;
    ret->name[0] = '\0';
    if (count < 2 || count > WIRE_FRAMES_MAX) {
        *ret_text = "a message has 2 to 6 frames: version, command, id, name, properties, body";
        return -EPROTO;
    }
    if (count > 2 && frames[2].size <= WIRE_ID_MAX)
        ret->id = frames[2];
    if (!frame_is(&frames[0], WIRE_VERSION)) {
        *ret_text = "the first frame is not the version " WIRE_VERSION ", the one that is spoken here";
        return -EPROTONOSUPPORT;
    }
    while (at < WIRE_COMMAND_COUNT && !frame_is(&frames[1], commands[at].word))
        at++;
    if (at == WIRE_COMMAND_COUNT) {
        *ret_text = "the second frame is not a command";
        return -EOPNOTSUPP;
    }
    if (count > 2 && frames[2].size > WIRE_ID_MAX) {
        *ret_text = "the id is longer than 255 bytes";
        return -EINVAL;
    }
    ret->command = (enum wire_command)at;
    ret->properties = count > 4 ? frames[4] : nothing;
    ret->body = count > 5 ? frames[5] : nothing;
    if (commands[at].named == NOTHING)
        return 0;
    return take_name(count > 3 ? &frames[3] : &nothing, commands[at].named, ret->name, ret_text);
}

int wire_parse_plain(const struct wire_frame *frames, size_t count, struct wire_message *ret,
                     const char **ret_text)
{
    if (count < 2 || count > 3) {
        *ret_text = "a message has 2 or 3 frames: name, properties or not, body";
        return -EPROTO;
    }
    ret->id = (struct wire_frame){"", 0};
    ret->properties = count == 3 ? frames[1] : ret->id;
    ret->body = frames[count - 1];
    return take_name(&frames[0], NAME, ret->name, ret_text);
}

/* ---- properties -------------------------------------------------------------------------------------------- */

/* jansson recurses: an object of properties is three deep at most. */
static bool too_deep(const char *text, size_t size)
{
    unsigned depth = 0;
    bool quoted = false;

    for (size_t i = 0; i < size; i++) {
        if (quoted && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            quoted = !quoted;
        else if (!quoted && (text[i] == '{' || text[i] == '['))
            depth++;
        else if (!quoted && (text[i] == '}' || text[i] == ']'))
            depth -= depth > 0;
        if (depth > 3)
            return true;
    }
    return false;
}

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;

    return at ? (int)(at - digits) : -1;
}

/* In place, as it becomes shorter. Returns the size or -EINVAL. */
static ssize_t base64_decode(char *text, size_t size)
{
    size_t out = 0, padding = 0;
    uint32_t bits = 0;

    if (size % 4)
        return -EINVAL;
    for (size_t i = 0; i < size; i++) {
        int digit = base64_digit(text[i]);

        if (text[i] == '=' && i + 2 >= size)
            padding++;
        if (padding ? text[i] != '=' : digit < 0)
            return -EINVAL;
        bits = bits << 6 | (uint32_t)(padding ? 0 : digit);
        if (i % 4 == 3) {
            for (int shift = 16; shift >= 0; shift -= 8)
                text[out++] = (char)(bits >> shift);
            bits = 0;
        }
    }
    return (ssize_t)(out - padding);
}

enum kind { TEXT, NUMBER, SIGNED, FLAG };

#define OWN(field) offsetof(struct wire_properties, field)
static const struct {
    const char *key;
    enum kind kind;
    size_t offset;
    uint64_t most; /* of a number; of a text: its size */
} keys[] = {
    {"content_type", TEXT, OWN(content_type), 255},
    {"reply_to", TEXT, OWN(reply_to), IPC_MAX_NAME_SIZE},
    {"name", TEXT, OWN(name), IPC_MAX_CLIENT_NAME},
    {"reason", TEXT, OWN(reason), IPC_MAX_REASON_SIZE},
    {"start", TEXT, OWN(start), 16},
    {"text", TEXT, OWN(text), 255},
    {"message_id", TEXT, OWN(message_id), 255},
    {"key", TEXT, OWN(key), 255},
    {"priority", NUMBER, OWN(priority), IPC_PRIORITIES - 1},
    {"ttl_ms", NUMBER, OWN(ttl_ms), UINT64_C(1) << 42},
    {"delay_ms", NUMBER, OWN(delay_ms), UINT64_C(1) << 42},
    {"credit", NUMBER, OWN(credit), 1000000},
    {"window", NUMBER, OWN(window), IPC_MAX_PREFETCH},
    {"timeout_ms", NUMBER, OWN(timeout_ms), UINT64_C(1) << 42},
    {"heartbeat_ms", NUMBER, OWN(heartbeat_ms), 3600000},
    {"code", SIGNED, OWN(code), INT32_MAX},
    {"dead", FLAG, OWN(dead), 0},
    {"retry", FLAG, OWN(retry), 0},
    {"wait", FLAG, OWN(wait), 0},
    {"stream", FLAG, OWN(stream), 0},
};

/* False: it is not what that key wants. */
static bool set(struct wire_properties *properties, size_t which, const json_t *value)
{
    void *field = (char *)properties + keys[which].offset;

    switch (keys[which].kind) {
    case TEXT:
        if (!json_is_string(value) || json_string_length(value) > keys[which].most)
            return false;
        *(const char **)field = json_string_value(value);
        return true;
    case NUMBER:
        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            (uint64_t)json_integer_value(value) > keys[which].most)
            return false;
        *(uint64_t *)field = (uint64_t)json_integer_value(value);
        return true;
    case SIGNED:
        if (!json_is_integer(value) || llabs(json_integer_value(value)) > INT32_MAX)
            return false;
        *(int64_t *)field = json_integer_value(value);
        return true;
    case FLAG:
        if (!json_is_boolean(value))
            return false;
        *(bool *)field = json_is_true(value);
        return true;
    }
    return false;
}

static const char *set_headers(struct wire_properties *properties, json_t *headers)
{
    const char *name;
    json_t *value;

    if (!json_is_object(headers))
        return "the property headers is not an object";
    json_object_foreach(headers, name, value)
    {
        struct ipc_header *header = &properties->headers[properties->header_count];
        json_t *text =
            json_is_object(value) && json_object_size(value) == 1 ? json_object_get(value, "base64") : value;

        if (properties->header_count++ == IPC_MAX_HEADERS)
            return "there are more than 64 headers";
        if (!name[0] || strlen(name) > 255 || !json_is_string(text))
            return "a header has a name of 1 to 255 bytes, and is a string or {\"base64\": string}";
        const char *bytes = json_string_value(text);
        ssize_t size = (ssize_t)json_string_length(text);
        if (text != value) /* in place: the value is ours alone */
            size = base64_decode((char *)(uintptr_t)bytes, (size_t)size);
        if (size < 0 || size > 65535)
            return "a header's value is not base64, or longer than 65535 bytes";
        *header = (struct ipc_header){name, bytes, (size_t)size};
    }
    return NULL;
}

static const char *set_all(struct wire_properties *properties, json_t *root)
{
    const char *key;
    json_t *value;

    if (!json_is_object(root))
        return "the properties are not a JSON object";
    json_object_foreach(root, key, value)
    {
        size_t which = 0;

        while (which < sizeof(keys) / sizeof(keys[0]) && strcmp(keys[which].key, key) != 0)
            which++;
        if (strcmp(key, "headers") == 0) {
            const char *text = set_headers(properties, value);

            if (text)
                return text;
        } else if (which == sizeof(keys) / sizeof(keys[0])) {
            return "there is a property that is not known: see proto/zmq.md";
        } else if (!set(properties, which, value)) {
            return "a property has a value that is not allowed for it: see proto/zmq.md";
        }
    }
    return NULL;
}

int wire_properties_parse(const struct wire_frame *frame, struct wire_properties *ret, const char **ret_text)
{
    json_t *root;

    memset(ret, 0, offsetof(struct wire_properties, headers));
    ret->memory = NULL;
    if (frame->size == 0)
        return 0;
    if (frame->size > WIRE_PROPERTIES_MAX || too_deep(frame->data, frame->size)) {
        *ret_text = "the properties are larger than 128 KiB, or more than three deep";
        return -E2BIG;
    }
    root = json_loadb(frame->data, frame->size, JSON_REJECT_DUPLICATES, NULL);
    *ret_text = set_all(ret, root);
    if (*ret_text) {
        json_decref(root);
        return -EINVAL;
    }
    ret->memory = root;
    return 0;
}

void wire_properties_free(struct wire_properties *properties)
{
    json_decref(properties->memory);
    properties->memory = NULL;
}

int wire_range_parse(const struct wire_frame *frame, uint64_t *ret_first, uint64_t *ret_last)
{
    uint64_t numbers[2] = {0, 0};
    const char *text = frame->data;
    unsigned which = 0;
    bool digits = false;

    if (frame->size > 41)
        return -EINVAL;
    for (size_t i = 0; i < frame->size; i++) {
        if (text[i] == '-' && digits && which == 0) {
            which = 1;
            digits = false;
        } else if (text[i] < '0' || text[i] > '9' || numbers[which] > UINT64_MAX / 10 - 1) {
            return -EINVAL;
        } else {
            numbers[which] = numbers[which] * 10 + (uint64_t)(text[i] - '0');
            digits = true;
        }
    }
    if (!digits || (which && numbers[1] < numbers[0]))
        return -EINVAL;
    *ret_first = numbers[0];
    *ret_last = numbers[which];
    return 0;
}

/* ---- to peers ---------------------------------------------------------------------------------------------- */

static char *room(struct wire_text *text, size_t size)
{
    if (text->failed)
        return NULL;
    if (text->capacity - text->size < size) {
        size_t capacity = 2 * text->capacity + size + 256;
        char *bytes = realloc(text->bytes, capacity);

        if (!bytes) {
            text->failed = true;
            return NULL;
        }
        text->bytes = bytes;
        text->capacity = capacity;
    }
    return text->bytes + text->size;
}

static void add(struct wire_text *text, const char *bytes, size_t size)
{
    char *to = room(text, size);

    if (to && size) {
        memcpy(to, bytes, size);
        text->size += size;
    }
}

static void add_number(struct wire_text *text, uint64_t value)
{
    char digits[20];
    size_t at = sizeof(digits);

    do
        digits[--at] = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    add(text, digits + at, sizeof(digits) - at);
}

/* The size of the UTF-8 character at `at`, or 0. */
static size_t character(const unsigned char *at, size_t left)
{
    size_t size = at[0] < 0x80                    ? 1
                  : at[0] >= 0xc2 && at[0] < 0xe0 ? 2
                  : (at[0] & 0xf0) == 0xe0        ? 3
                  : at[0] >= 0xf0 && at[0] < 0xf5 ? 4
                                                  : 0;

    if (size == 0 || size > left)
        return 0;
    for (size_t i = 1; i < size; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
        (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    return size;
}

static bool is_text(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0, step; i < size; i += step) {
        step = bytes[i] ? character(bytes + i, size - i) : 0;
        if (step == 0)
            return false;
    }
    return true;
}

static void add_base64(struct wire_text *text, const unsigned char *bytes, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    add(text, "{\"base64\":\"", 11);
    for (size_t i = 0; i < size; i += 3) {
        uint32_t bits = (uint32_t)bytes[i] << 16 | (i + 1 < size ? (uint32_t)bytes[i + 1] << 8 : 0) |
                        (i + 2 < size ? bytes[i + 2] : 0);
        char four[4] = {digits[bits >> 18], digits[bits >> 12 & 63],
                        i + 1 < size ? digits[bits >> 6 & 63] : '=', i + 2 < size ? digits[bits & 63] : '='};
        add(text, four, 4);
    }
    add(text, "\"}", 2);
}

static void add_quoted(struct wire_text *text, const unsigned char *bytes, size_t size)
{
    add(text, "\"", 1);
    for (size_t i = 0; i < size; i++) {
        char escape[8];

        if (bytes[i] >= ' ' && bytes[i] != '"' && bytes[i] != '\\') {
            add(text, (const char *)bytes + i, 1);
            continue;
        }
        (void)snprintf(escape, sizeof(escape), "\\u%04x", bytes[i]);
        add(text, escape, 6);
    }
    add(text, "\"", 1);
}

static void add_value(struct wire_text *text, const unsigned char *bytes, size_t size)
{
    if (is_text(bytes, size))
        add_quoted(text, bytes, size);
    else
        add_base64(text, bytes, size);
}

static void add_key(struct wire_text *text, const char *key)
{
    add(text, text->size > 1 ? ",\"" : "\"", text->size > 1 ? 2 : 1);
    add(text, key, strlen(key));
    add(text, "\":", 2);
}

void wire_text_begin(struct wire_text *text)
{
    text->size = 0;
    text->failed = text->in_headers = false;
    add(text, "{", 1);
}

void wire_text_number(struct wire_text *text, const char *key, uint64_t value)
{
    add_key(text, key);
    add_number(text, value);
}

void wire_text_signed(struct wire_text *text, const char *key, int64_t value)
{
    add_key(text, key);
    if (value < 0)
        add(text, "-", 1);
    add_number(text, value < 0 ? -(uint64_t)value : (uint64_t)value);
}

void wire_text_string(struct wire_text *text, const char *key, const void *value, size_t size)
{
    add_key(text, key);
    add_value(text, value, size);
}

void wire_text_header(struct wire_text *text, const char *name, size_t name_size, const void *value,
                      size_t value_size)
{
    if (!is_text((const unsigned char *)name, name_size))
        return; /* a name of JSON is text: the table in proto/zmq.md says so */
    if (!text->in_headers) {
        add_key(text, "headers");
        add(text, "{", 1);
        text->in_headers = true;
    } else {
        add(text, ",", 1);
    }
    add_quoted(text, (const unsigned char *)name, name_size);
    add(text, ":", 1);
    add_value(text, value, value_size);
}

struct wire_frame wire_text_end(struct wire_text *text)
{
    add(text, "}}", text->in_headers ? 2 : 1);
    if (text->failed)
        return (struct wire_frame){"", 0};
    return (struct wire_frame){text->bytes, text->size};
}

void wire_text_free(struct wire_text *text)
{
    free(text->bytes);
    *text = (struct wire_text){0};
}

/* ---- prefixes ---------------------------------------------------------------------------------------------- */

void wire_prefix_cover(const char *prefix, size_t size, char ret[256])
{
    const char *dot = size ? memrchr(prefix, '.', size) : NULL;
    size_t whole = dot ? (size_t)(dot - prefix) + 1 : 0;

    if (whole + 1 > IPC_MAX_NAME_SIZE)
        whole = 0;
    if (whole)
        memcpy(ret, prefix, whole);
    ret[whole] = '>';
    ret[whole + 1] = '\0';
    if (ipc_name_check(ret, true)) /* no name begins so: nothing will come, whatever it is */
        memcpy(ret, ">", 2);
}

bool wire_cover_contains(const char *outer, const char *inner)
{
    size_t size = strlen(outer) - 1;

    return strncmp(outer, inner, size) == 0;
}
