/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/dealer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/broker.h"

#define RECONNECT_MS 10

void dealer_open(struct dealer *dealer, const char *address)
{
    const int reconnect = RECONNECT_MS, linger = 0;

    *dealer = (struct dealer){.context = zmq_ctx_new()};
    EXPECT(dealer->context != NULL);
    dealer->socket = zmq_socket(dealer->context, ZMQ_DEALER);
    EXPECT(dealer->socket != NULL);
    EXPECT_EQ(zmq_setsockopt(dealer->socket, ZMQ_RECONNECT_IVL, &reconnect, sizeof(reconnect)), 0);
    EXPECT_EQ(zmq_setsockopt(dealer->socket, ZMQ_LINGER, &linger, sizeof(linger)), 0);
    EXPECT_EQ(zmq_connect(dealer->socket, address), 0);
    EXPECT_EQ(zmq_msg_init(&dealer->body), 0);
}

void dealer_close(struct dealer *dealer)
{
    json_decref(dealer->properties);
    (void)zmq_msg_close(&dealer->body);
    EXPECT_EQ(zmq_close(dealer->socket), 0);
    while (zmq_ctx_term(dealer->context) < 0)
        EXPECT_EQ(errno, EINTR);
}

static void say(struct dealer *dealer, const void *data, size_t size, int flags)
{
    while (zmq_send(dealer->socket, data, size, flags) < 0)
        EXPECT_EQ(errno, EINTR);
}

void dealer_say(struct dealer *dealer, const char *command, const char *id, const char *name,
                const char *properties, const void *body, size_t size)
{
    say(dealer, "IPC1", 4, ZMQ_SNDMORE);
    say(dealer, command, strlen(command), ZMQ_SNDMORE);
    say(dealer, id, strlen(id), ZMQ_SNDMORE);
    say(dealer, name, strlen(name), ZMQ_SNDMORE);
    say(dealer, properties, strlen(properties), ZMQ_SNDMORE);
    say(dealer, body, size, 0);
}

/* The next part, if there is one: into text, or as JSON, or as the body. */
static bool next(struct dealer *dealer, zmq_msg_t *part, bool more)
{
    EXPECT_EQ(zmq_msg_close(part), 0);
    EXPECT_EQ(zmq_msg_init(part), 0);
    while (more && zmq_msg_recv(part, dealer->socket, 0) < 0)
        EXPECT_EQ(errno, EINTR);
    return more && zmq_msg_more(part);
}

bool dealer_hear(struct dealer *dealer, int timeout_ms)
{
    zmq_pollitem_t item = {.socket = dealer->socket, .events = ZMQ_POLLIN};
    char version[16], *const texts[] = {version, dealer->command, dealer->id, dealer->name};
    const size_t sizes[] = {sizeof(version), sizeof(dealer->command), sizeof(dealer->id),
                            sizeof(dealer->name)};
    zmq_msg_t part;
    bool more = true;

    if (zmq_poll(&item, 1, timeout_ms) <= 0)
        return false;
    EXPECT_EQ(zmq_msg_init(&part), 0);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        more = next(dealer, &part, more);
        EXPECT(zmq_msg_size(&part) < sizes[i]);
        snprintf(texts[i], sizes[i], "%.*s", (int)zmq_msg_size(&part), (const char *)zmq_msg_data(&part));
    }
    EXPECT(strcmp(version, "IPC1") == 0);
    more = next(dealer, &part, more);
    json_decref(dealer->properties);
    dealer->properties = json_loadb(zmq_msg_data(&part), zmq_msg_size(&part), 0, NULL);
    EXPECT(dealer->properties != NULL || zmq_msg_size(&part) == 0);
    more = next(dealer, &dealer->body, more);
    EXPECT(!more);
    EXPECT_EQ(zmq_msg_close(&part), 0);
    return true;
}

long long dealer_number(const struct dealer *dealer, const char *property)
{
    return json_integer_value(json_object_get(dealer->properties, property));
}

const char *dealer_text(const struct dealer *dealer, const char *property)
{
    const char *text = json_string_value(json_object_get(dealer->properties, property));

    return text ? text : "";
}
