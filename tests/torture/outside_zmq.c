/* SPDX-License-Identifier: Apache-2.0
 *
 * Programs of a torture run that have a socket of ZeroMQ. It connects again by itself; those that speak the whole protocol
 * learn of it by an ENOTCONN, which a PING brings if nothing else does, and begin a new session: to the history it is
 * another client.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/support/dealer.h"
#include "tests/torture/self.h"

#define WINDOW     64u  /* messages of which a sender does not know */
#define CREDIT     32u  /* as the PULLs say */
#define SILENCE_MS 50   /* then it asks whether it is still known */
#define AHEAD_MAX  512u /* pushed, and not known to have arrived */

struct outside {
    struct self self;
    struct dealer dealer;
    bool welcome;
    uint64_t pings, credit;
    /* A consumer: the delivery that comes next, up to which it has acknowledged, up to which a PING is behind that (0:
     * none is on its way), and up to which that was answered. */
    uint64_t next, acked, asked, asked_ping, noted;
};

static void say(struct outside *outside, const char *command, uint64_t number, const char *properties,
                const void *body, size_t size)
{
    char id[48];

    (void)snprintf(id, sizeof(id), "%" PRIu32 ":%" PRIu64, outside->self.client, number);
    dealer_say(&outside->dealer, command, id, torture_queue_name(outside->self.work->queue), properties, body,
               size);
}

/* Of what was heard: is it an answer to this session, and to what in it? */
static bool answers(const struct outside *outside, uint64_t *ret)
{
    uint32_t client;

    return sscanf(outside->dealer.id, "%" SCNu32 ":%" SCNu64, &client, ret) == 2 &&
           client == outside->self.client;
}

static bool hears(const struct outside *outside, const char *command)
{
    return strcmp(outside->dealer.command, command) == 0;
}

static void session_begin(struct outside *outside)
{
    struct self *self = &outside->self;

    self->client = ++self->work->torture->clients;
    note(self, (struct event){.kind = EVENT_BEGIN,
                              .client = self->client,
                              .number = self->work->client,
                              .queue = TORTURE_ZMQ});
    outside->welcome = false;
    outside->next = outside->acked = outside->asked = outside->noted = 0;
    say(outside, "HELLO", 0, "{\"name\":\"torture\"}", "", 0);
}

static void outside_begin(struct outside *outside, const struct client_work *work)
{
    char address[128];

    begin_alone(&outside->self, work);
    (void)snprintf(address, sizeof(address), "ipc://%s/zmq-router", work->torture->folder);
    dealer_open(&outside->dealer, address);
    session_begin(outside);
}

/* True: something of this session is there to be looked at. */
static bool hear(struct outside *outside, int timeout_ms)
{
    uint64_t number;

    if (!dealer_hear(&outside->dealer, timeout_ms)) {
        if (timeout_ms)
            say(outside, "PING", ++outside->pings, "", "", 0);
        return false;
    }
    if (hears(outside, "ERROR") && !strchr(outside->dealer.id, ':') &&
        dealer_number(&outside->dealer, "code") != -ENOTCONN)
        FAIL(&outside->self, (int)dealer_number(&outside->dealer, "code")); /* of an ACK, or a queue */
    if (hears(outside, "MSG"))
        return true;
    if (!answers(outside, &number))
        return false;
    if (hears(outside, "WELCOME"))
        outside->welcome = true;
    if (hears(outside, "ERROR") && dealer_number(&outside->dealer, "code") == -ENOTCONN) {
        session_begin(outside);
        return false;
    }
    return true;
}

static void outside_end(struct outside *outside) __attribute__((noreturn));
static void outside_end(struct outside *outside)
{
    note(&outside->self, (struct event){.kind = EVENT_CLOSE, .client = outside->self.client});
    dealer_close(&outside->dealer);
    _exit(0);
}

/* ---- SEND ---- */

static void send_one(struct outside *outside, uint32_t sequence)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(&outside->self, sequence, bytes, &event);

    note(&outside->self, event);
    say(outside, "SEND", sequence, "", bytes, size);
    note(&outside->self, (struct event){.kind = EVENT_SENT, .sequence = sequence, .number = sequence});
}

static void send_heard(struct outside *outside, _Atomic uint32_t *decided)
{
    const bool refused = hears(outside, "ERROR");
    uint64_t number;

    if (!answers(outside, &number) || !number || (!refused && !hears(outside, "OK")))
        return;
    if (refused && dealer_number(&outside->dealer, "code") != -EAGAIN)
        FAIL(&outside->self, (int)dealer_number(&outside->dealer, "code"));
    if (refused)
        note(&outside->self, (struct event){.kind = EVENT_REFUSED, .number = number});
    else
        note(&outside->self, (struct event){.kind = EVENT_CONFIRMED, .number = number});
    if (*decided < number)
        *decided = (uint32_t)number;
}

void outside_zmq_send(const struct client_work *work)
{
    static struct outside outside;
    _Atomic uint32_t *last = &work->torture->last[work->slot], *decided = &work->torture->decided[work->slot];
    uint32_t session = 0, next = 0;

    outside_begin(&outside, work);
    while (!work->torture->producers_stop || *decided < *last) {
        bool room;

        if (session != outside.self.client && outside.welcome) { /* what was not heard of goes once more */
            session = outside.self.client;
            next = *decided + 1;
        }
        room = outside.welcome && next - *decided <= WINDOW &&
               (!work->torture->producers_stop || next <= *last);
        if (room) {
            if (next > *last)
                *last = next;
            send_one(&outside, next++);
        }
        while (hear(&outside, room ? 0 : SILENCE_MS)) {
            send_heard(&outside, decided);
            room = true;
        }
    }
    outside_end(&outside);
}

/* ---- PULL ---- */

static uint8_t redelivered(const char *word)
{
    static const char *const words[] = {"", "died", "closed", "refused", "expired", "requeued"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(words[i], word) == 0)
            return (uint8_t)i;
    return UINT8_MAX;
}

/* Everything so far; and a PING behind it, which is answered when that is with the queue. */
static void acknowledge(struct outside *outside)
{
    char range[64];

    if (outside->acked == outside->next)
        return;
    note(&outside->self,
         (struct event){.kind = EVENT_ACKING, .number = outside->acked, .delivery = outside->next - 1});
    (void)snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, outside->acked, outside->next - 1);
    dealer_say(&outside->dealer, "ACK", range, torture_queue_name(outside->self.work->queue), "", "", 0);
    outside->acked = outside->next;
    if (outside->asked)
        return;
    outside->asked = outside->acked;
    outside->asked_ping = ++outside->pings;
    say(outside, "PING", outside->pings, "", "", 0);
}

static void acknowledged(struct outside *outside, uint64_t pong)
{
    if (!outside->asked || pong != outside->asked_ping)
        return;
    note(&outside->self,
         (struct event){.kind = EVENT_ACKED, .number = outside->noted, .delivery = outside->asked - 1});
    outside->noted = outside->asked;
    outside->asked = 0;
}

static void take(struct outside *outside)
{
    struct dealer *dealer = &outside->dealer;
    uint64_t delivery = strtoull(dealer->id, NULL, 10);

    receive_note(&outside->self,
                 (struct event){.number = (uint64_t)dealer_number(dealer, "number"),
                                .delivery = delivery,
                                .attempt = (uint16_t)dealer_number(dealer, "attempt"),
                                .priority = (uint8_t)dealer_number(dealer, "priority"),
                                .redelivered = redelivered(dealer_text(dealer, "redelivered"))},
                 zmq_msg_data(&dealer->body), zmq_msg_size(&dealer->body));
    if (outside->acked == outside->next)
        outside->acked = delivery; /* what was skipped is not ours to acknowledge */
    outside->next = delivery + 1;
    outside->credit--;
    if (outside->credit > CREDIT / 2)
        return;
    outside->credit += CREDIT / 2;
    say(outside, "PULL", 0, "{\"credit\":16}", "", 0);
    acknowledge(outside);
}

void outside_zmq_pull(const struct client_work *work)
{
    static struct outside outside;
    uint64_t pong;

    outside_begin(&outside, work);
    while (!work->torture->consumers_stop) {
        if (!hear(&outside, SILENCE_MS)) {
            acknowledge(&outside);
        } else if (hears(&outside, "MSG")) {
            take(&outside);
        } else if (hears(&outside, "WELCOME")) {
            outside.credit = CREDIT;
            say(&outside, "PULL", 0, "{\"credit\":32,\"window\":64}", "", 0);
        } else if (hears(&outside, "PONG") && answers(&outside, &pong)) {
            acknowledged(&outside, pong);
        }
    }
    outside_end(&outside);
}

/* ---- PUSH ---- */

static void push_one(struct self *self, void *socket, uint32_t sequence)
{
    const char *name = torture_queue_name(self->work->queue);
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(self, sequence, bytes, &event);

    self->work->torture->last[self->work->slot] = sequence;
    note(self, event);
    while (zmq_send(socket, name, strlen(name), ZMQ_SNDMORE) < 0)
        if (errno != EINTR)
            FAIL(self, -errno);
    while (zmq_send(socket, bytes, size, 0) < 0)
        if (errno != EINTR)
            FAIL(self, -errno);
    note(self, (struct event){.kind = EVENT_SENT, .sequence = sequence});
}

void outside_zmq_push(const struct client_work *work)
{
    static struct self self;
    _Atomic uint32_t *arrived = &work->torture->arrived[work->slot];
    uint32_t next = work->torture->last[work->slot] + 1, first;
    void *context = zmq_ctx_new(), *socket = context ? zmq_socket(context, ZMQ_PUSH) : NULL;
    const int reconnect = 10;
    char address[128];

    begin_alone(&self, work);
    (void)snprintf(address, sizeof(address), "ipc://%s/zmq-push", work->torture->folder);
    if (!socket || zmq_setsockopt(socket, ZMQ_RECONNECT_IVL, &reconnect, sizeof(reconnect)) < 0 ||
        zmq_connect(socket, address) < 0)
        FAIL(&self, -errno);
    for (; !work->torture->producers_stop; next++) {
        push_one(&self, socket, next);
        if (next - *arrived > AHEAD_MAX)
            usleep(1000);
    }
    /* Nobody is killed any more: as soon as one has arrived, all that follow will. */
    for (first = next; *arrived < first; next++) {
        push_one(&self, socket, next);
        usleep(10000);
    }
    work->torture->ended[work->slot] = next - 1;
    note(&self, (struct event){.kind = EVENT_CLOSE, .client = work->client});
    (void)zmq_close(socket);
    while (zmq_ctx_term(context) < 0 && errno == EINTR)
        continue;
    _exit(0);
}
