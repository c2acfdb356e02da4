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
#include "tests/torture/calls_topics.h"

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

/* ---- CALL ---- */

static void call_one(struct outside *outside, uint32_t number)
{
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(&outside->self, number, bytes, &event);

    say(outside, "CALL", number,
        number % 2 ? "{\"timeout_ms\":5000,\"retry\":true}" : "{\"timeout_ms\":5000}", bytes, size);
}

/* The answer to that call, and to no other; or why there is none. */
static void call_over(struct outside *outside, uint32_t number)
{
    int code = (int)dealer_number(&outside->dealer, "code");

    if (hears(outside, "ERROR")) {
        if (!may_fail(code))
            FAIL(&outside->self, code);
        return;
    }
    if (!hears(outside, "REPLY"))
        FAIL(&outside->self, -EPROTO);
    if (!is_answer(&outside->self, number, zmq_msg_data(&outside->dealer.body),
                   zmq_msg_size(&outside->dealer.body)))
        FAIL(&outside->self, -EBADMSG);
    outside->self.work->torture->received[TORTURE_CALLS]++;
}

void outside_zmq_call(const struct client_work *work)
{
    static struct outside outside;
    uint64_t open[CALLS] = {0}, number;
    uint32_t session = 0, made = 0;
    unsigned n_open = 0;

    outside_begin(&outside, work);
    while (!work->torture->producers_stop || n_open) {
        bool room;

        if (session != outside.self.client && outside.welcome) { /* nobody answers what was asked before */
            session = outside.self.client;
            memset(open, 0, sizeof(open));
            n_open = made = 0;
        }
        room = outside.welcome && n_open < CALLS && !work->torture->producers_stop;
        for (unsigned i = 0; room && i < CALLS; i++)
            if (!open[i]) {
                open[i] = ++made;
                n_open++;
                call_one(&outside, made);
                break;
            }
        while (hear(&outside, room ? 0 : SILENCE_MS)) {
            room = true;
            if (hears(&outside, "WELCOME") || hears(&outside, "PONG") || !answers(&outside, &number))
                continue;
            unsigned i = 0;
            while (i < CALLS && open[i] != number)
                i++;
            if (i == CALLS) /* it was answered before */
                FAIL(&outside.self, -EEXIST);
            open[i] = 0;
            n_open--;
            call_over(&outside, (uint32_t)number);
        }
    }
    outside_end(&outside);
}

/* ---- plain sockets ---- */

struct plain {
    struct self self;
    void *context, *socket;
};

static void plain_begin(struct plain *plain, const struct client_work *work, int type, const char *endpoint)
{
    const int reconnect = 10;
    char address[128];

    begin_alone(&plain->self, work);
    plain->context = zmq_ctx_new();
    plain->socket = plain->context ? zmq_socket(plain->context, type) : NULL;
    (void)snprintf(address, sizeof(address), "ipc://%s/%s", work->torture->folder, endpoint);
    if (!plain->socket ||
        zmq_setsockopt(plain->socket, ZMQ_RECONNECT_IVL, &reconnect, sizeof(reconnect)) < 0 ||
        zmq_connect(plain->socket, address) < 0)
        FAIL(&plain->self, -errno);
}

static void plain_end(struct plain *plain) __attribute__((noreturn));
static void plain_end(struct plain *plain)
{
    note(&plain->self, (struct event){.kind = EVENT_CLOSE, .client = plain->self.client});
    (void)zmq_close(plain->socket);
    while (zmq_ctx_term(plain->context) < 0 && errno == EINTR)
        continue;
    _exit(0);
}

static void plain_send(struct plain *plain, const void *data, size_t size, int flags)
{
    while (zmq_send(plain->socket, data, size, flags) < 0)
        if (errno != EINTR)
            FAIL(&plain->self, -errno);
}

void outside_zmq_publish(const struct client_work *work)
{
    static struct plain plain;
    const char *name = torture_queue_name(work->queue);
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    const int linger = 0;
    struct event event;

    plain_begin(&plain, work, ZMQ_PUB, "zmq-pub");
    if (zmq_setsockopt(plain.socket, ZMQ_LINGER, &linger, sizeof(linger)) < 0)
        FAIL(&plain.self, -errno);
    for (uint32_t sequence = 1; !work->torture->producers_stop; sequence++) {
        size_t size = compose(&plain.self, sequence, bytes, &event);

        plain_send(&plain, name, strlen(name), ZMQ_SNDMORE);
        plain_send(&plain, "", 0, ZMQ_SNDMORE);
        plain_send(&plain, bytes, size, 0);
        usleep(PACE_US);
    }
    plain_end(&plain);
}

void outside_zmq_subscribe(const struct client_work *work)
{
    static struct plain plain;
    const char *name = torture_queue_name(work->queue);
    unsigned char frames[3][TORTURE_SIZE_MAX + 64];
    const int patience = 50;

    plain_begin(&plain, work, ZMQ_SUB, "zmq-sub");
    if (zmq_setsockopt(plain.socket, ZMQ_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
        zmq_setsockopt(plain.socket, ZMQ_SUBSCRIBE, name, strlen(name)) < 0)
        FAIL(&plain.self, -errno);
    while (!work->torture->consumers_stop) {
        int sizes[3] = {-1, -1, -1};

        for (unsigned i = 0; i < 3; i++)
            if ((sizes[i] = zmq_recv(plain.socket, frames[i], sizeof(frames[i]), 0)) < 0)
                break;
        if (sizes[0] < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (sizes[2] < 0 || (size_t)sizes[2] > sizeof(frames[2]) || (size_t)sizes[0] != strlen(name) ||
            memcmp(frames[0], name, strlen(name)) != 0)
            FAIL(&plain.self, -EPROTO);
        published(&plain.self, frames[2], (size_t)sizes[2], 0);
    }
    plain_end(&plain);
}

/* ---- PUSH ---- */

static void push_one(struct plain *plain, uint32_t sequence)
{
    struct self *self = &plain->self;
    const char *name = torture_queue_name(self->work->queue);
    unsigned char bytes[TORTURE_SIZE_MAX + 64];
    struct event event;
    size_t size = compose(self, sequence, bytes, &event);

    self->work->torture->last[self->work->slot] = sequence;
    note(self, event);
    plain_send(plain, name, strlen(name), ZMQ_SNDMORE);
    plain_send(plain, bytes, size, 0);
    note(self, (struct event){.kind = EVENT_SENT, .sequence = sequence});
}

void outside_zmq_push(const struct client_work *work)
{
    static struct plain plain;
    _Atomic uint32_t *arrived = &work->torture->arrived[work->slot];
    uint32_t next = work->torture->last[work->slot] + 1, first;

    plain_begin(&plain, work, ZMQ_PUSH, "zmq-push");
    for (; !work->torture->producers_stop; next++) {
        push_one(&plain, next);
        if (next - *arrived > AHEAD_MAX)
            usleep(1000);
    }
    /* Nobody is killed any more: as soon as one has arrived, all that follow will. */
    for (first = next; *arrived < first; next++) {
        push_one(&plain, next);
        usleep(10000);
    }
    work->torture->ended[work->slot] = next - 1;
    plain_end(&plain);
}
