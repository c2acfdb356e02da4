/* SPDX-License-Identifier: Apache-2.0
 *
 * What outside peers say, and how they are answered: proto/zmq.md. Pure functions, any thread.
 */
#ifndef IPCD_GATEWAYS_ZMQ_WIRE_H
#define IPCD_GATEWAYS_ZMQ_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ipc/ipc.h>

#define WIRE_VERSION        "IPC1"
#define WIRE_FRAMES_MAX     6u
#define WIRE_ID_MAX         255u
#define WIRE_PROPERTIES_MAX 131072u /* bytes of the frame: all headers, as base64 */

/* Command, whether it names something, and what: nothing, a name, a pattern. */
#define WIRE_COMMANDS(X) \
 X(HELLO, NOTHING)       \
 X(PING, NOTHING)        \
 X(BYE, NOTHING)         \
 X(PUB, NAME)            \
 X(SEND, NAME)           \
 X(PULL, NAME)           \
 X(ACK, NAME)            \
 X(NACK, NAME)           \
 X(STOP, NAME)           \
 X(SUB, PATTERN)         \
 X(UNSUB, NOTHING)       \
 X(CALL, NAME)           \
 X(CANCEL, NOTHING)      \
 X(SERVE, NAME)          \
 X(READY, NAME)          \
 X(PART, NOTHING)        \
 X(RESPONSE, NOTHING)    \
 X(END, NOTHING)         \
 X(FAIL, NOTHING)        \
 X(UNSERVE, NAME)        \
 X(SYNC, NOTHING)

enum wire_command {
#define WIRE_ENUM(command, named) WIRE_##command,
    WIRE_COMMANDS(WIRE_ENUM)
#undef WIRE_ENUM
        WIRE_COMMAND_COUNT
};

const char *wire_command_word(enum wire_command command);

struct wire_frame {
    const void *data;
    size_t size;
};

/* What the properties of a message can say. What is not given is 0, NULL or as wire_properties_parse() found it. */
struct wire_properties {
    const char *content_type, *reply_to, *name, *reason, *start, *text;
    const char *message_id, *key;
    uint64_t priority, ttl_ms, delay_ms, credit, window, timeout_ms, heartbeat_ms;
    int64_t code;
    bool dead, retry, wait, stream;
    size_t header_count;
    struct ipc_header headers[64];
    void *memory; /* what all of these point into */
};

struct wire_message {
    enum wire_command command;
    struct wire_frame id, properties, body;
    char name[256];
};

/* Take a message to the ROUTER apart. Returns 0, or a negative errno and a sentence that says what is wrong; the id is
 * set in either case, to answer by. Nothing is copied but the name. */
int wire_parse(const struct wire_frame *frames, size_t count, struct wire_message *ret,
               const char **ret_text);

/* A message to the endpoints `pub` and `push`: name, properties or not, body. Sets name, properties and body. */
int wire_parse_plain(const struct wire_frame *frames, size_t count, struct wire_message *ret,
                     const char **ret_text);

/* The properties: a JSON object, or nothing at all. Returns 0, or a negative errno and a sentence. Free them. */
int wire_properties_parse(const struct wire_frame *frame, struct wire_properties *ret, const char **ret_text);
void wire_properties_free(struct wire_properties *properties);

/* "17" or "12-17". Returns 0 or -EINVAL. */
int wire_range_parse(const struct wire_frame *frame, uint64_t *ret_first, uint64_t *ret_last);

/* ---- to peers --------------------------------------------------------------------------------------------- */

/* Properties in the making; grows. If memory runs out, `failed` is set and the text is "". */
struct wire_text {
    char *bytes;
    size_t size, capacity;
    bool failed, in_headers;
};

void wire_text_begin(struct wire_text *text);
void wire_text_number(struct wire_text *text, const char *key, uint64_t value);
void wire_text_signed(struct wire_text *text, const char *key, int64_t value);
void wire_text_string(struct wire_text *text, const char *key, const void *value, size_t size);
/* One header; they come last. */
void wire_text_header(struct wire_text *text, const char *name, size_t name_size, const void *value,
                      size_t value_size);
struct wire_frame wire_text_end(struct wire_text *text);
void wire_text_free(struct wire_text *text);

/* The prefix of an outside subscription as a pattern that covers it. */
void wire_prefix_cover(const char *prefix, size_t size, char ret[256]);

/* Does what matches `inner` match `outer`, both being covers? */
bool wire_cover_contains(const char *outer, const char *inner);

#endif
