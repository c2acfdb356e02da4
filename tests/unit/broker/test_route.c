/* SPDX-License-Identifier: Apache-2.0
 *
 * Routers, with this test in the place of the control thread and of the sessions: real segments, real threads.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/segment.h"
#include "broker/core/route/route.h"
#include "control.pb-c.h"
#include "libipc/lane/reader.h"
#include "libipc/lane/segment.h"
#include "libipc/lane/wait.h"
#include "libipc/lane/writer.h"
#include "proto/fields.h"

#define RING       65536u
#define PATIENCE_S 60

struct client {
    uint64_t id, queue;
    uint16_t slot;
    bool consumer;
    uint32_t prefetch;
    int session_fd, core_fd, bell, router_bell;
    struct ipc_port *session, *core;
    struct lane_writer out;
    struct lane_reader in;
};

struct stage {
    int event_fd;
    struct routers *routers;
    struct route_budget all, budget;
    struct queue_stats stats[8];
    struct queue_settings settings[8];
    int files[8];
    uint64_t dead_letter[8];
    bool keeps_answers;       /* to letters */
    bool keeps_questions;     /* about them */
    bool drops_letters;       /* and questions about them */
    struct route_mail *mails; /* that were not letters */
    uint64_t next_port;
};

static uint64_t deadline;

static void patience(void)
{
    assert_true(lane_now() < deadline);
}

static void start(struct stage *stage, unsigned threads)
{
    assert_int_equal(routers_start(&stage->routers, threads, stage->event_fd), 0);
}

static int setup(void **state)
{
    struct stage *stage = calloc(1, sizeof(*stage));

    stage->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    stage->all.max = UINT64_C(1) << 60;
    stage->budget = (struct route_budget){.max = UINT64_MAX / 2, .all = &stage->all};
    for (int i = 0; i < 8; i++)
        stage->files[i] = -1;
    deadline = lane_now() + PATIENCE_S * UINT64_C(1000000000);
    start(stage, 1);
    *state = stage;
    return 0;
}

static int teardown(void **state)
{
    struct stage *stage = *state;

    routers_stop(stage->routers);
    while (stage->mails) {
        struct route_mail *next = stage->mails->next;

        route_mail_free(stage->mails);
        stage->mails = next;
    }
    for (int i = 0; i < 8; i++)
        if (stage->files[i] >= 0)
            close(stage->files[i]);
    close(stage->event_fd);
    free(stage);
    return 0;
}

/* Queues are called q0, q1, ... */
static uint64_t queue_named(const char *name)
{
    return *name ? strtoull(name + 1, NULL, 10) : 0;
}

static void ask(struct stage *stage, struct route_mail *mail)
{
    mail->origin = mail->queue;
    mail->queue = mail->to ? mail->to : queue_named(mail->target);
    routers_send(stage->routers, mail);
}

/* What the control thread does with mail. */
static void pump(struct stage *stage, int timeout_ms)
{
    struct pollfd wait = {.fd = stage->event_fd, .events = POLLIN};
    struct route_mail *mail;
    uint64_t count;

    (void)poll(&wait, 1, timeout_ms);
    (void)!read(stage->event_fd, &count, sizeof(count));
    while ((mail = routers_receive(stage->routers))) {
        if (stage->drops_letters && (mail->kind == ROUTE_LETTER || mail->kind == ROUTE_LETTER_ASK)) {
            route_mail_free(mail);
        } else if (mail->kind == ROUTE_LETTER_ASK && !stage->keeps_questions) {
            ask(stage, mail);
        } else if (mail->kind == ROUTE_LETTER) {
            uint64_t from = mail->queue, to = mail->to ? mail->to : mail->dead ? stage->dead_letter[from] : 0;

            if (!to)
                to = queue_named(mail->target);
            if (!to) {
                mail->kind = ROUTE_LETTER_DONE;
                mail->result = -ENOENT;
            } else {
                mail->origin = from;
                mail->queue = to;
            }
            routers_send(stage->routers, mail);
        } else if (mail->kind == ROUTE_LETTER_DONE && !stage->keeps_answers) {
            mail->queue = mail->origin;
            routers_send(stage->routers, mail);
        } else if (mail->kind == ROUTE_LETTER_KNOWN) {
            mail->queue = mail->to;
            routers_send(stage->routers, mail);
        } else {
            struct route_mail **last = &stage->mails;

            while (*last)
                last = &(*last)->next;
            mail->next = NULL;
            *last = mail;
        }
    }
}

static struct route_mail *wait_mail(struct stage *stage, enum route_kind kind)
{
    for (;;) {
        for (struct route_mail **at = &stage->mails; *at; at = &(*at)->next)
            if ((*at)->kind == kind) {
                struct route_mail *mail = *at;

                *at = mail->next;
                return mail;
            }
        patience();
        pump(stage, 100);
    }
}

static void add_queue(struct stage *stage, uint64_t id, bool resumed)
{
    char name[16];
    struct route_mail *mail;
    size_t size = (size_t)snprintf(name, sizeof(name), "q%d", (int)id);

    if (!resumed) {
        stage->files[id] = memfd_create("queue", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_int_equal(queue_file_format(stage->files[id], id, stage->settings[id].dedup_window), 0);
    }
    mail = route_mail_new(ROUTE_QUEUE_ADD, id, size);
    memcpy(mail->bytes, name, size);
    mail->fd = stage->files[id];
    mail->resumed = resumed;
    mail->settings = stage->settings[id];
    mail->settings.dead_letter = stage->dead_letter[id] != 0;
    if (!mail->settings.message_size_max)
        mail->settings.message_size_max = 16384;
    mail->stats = &stage->stats[id];
    mail->budget = &stage->budget;
    routers_send(stage->routers, mail);
}

static void ready(struct stage *stage, uint64_t id)
{
    routers_send(stage->routers, route_mail_new(ROUTE_QUEUE_READY, id, 0));
}

static void new_queue(struct stage *stage, uint64_t id)
{
    add_queue(stage, id, false);
    ready(stage, id);
}

static void tell(struct stage *stage, struct client *client, bool resumed)
{
    struct route_mail *mail = route_mail_new(ROUTE_PORT_ADD, client->queue, 0);

    mail->port = (struct route_port){.id = client->id,
                                     .slot = client->slot,
                                     .consumer = client->consumer,
                                     .resumed = resumed,
                                     .core_fd = client->core_fd,
                                     .session_fd = client->session_fd,
                                     .core_ring_size = RING,
                                     .session_ring_size = RING,
                                     .prefetch = client->prefetch,
                                     .bell = client->router_bell,
                                     .ring = -1,
                                     .session = 1000 + client->id,
                                     .uid = 7};
    routers_send(stage->routers, mail);
}

static void open_port(struct stage *stage, struct client *client, uint64_t queue, bool consumer,
                      uint32_t prefetch)
{
    struct lane_peer peer = {.pins = true};
    int ends[2];
    void *map;

    *client =
        (struct client){.id = ++stage->next_port, .queue = queue, .consumer = consumer, .prefetch = prefetch};
    client->slot = (uint16_t)client->id;
    client->session_fd = segment_make(IPC_SEGMENT_PORT, RING, 2 * client->id);
    client->core_fd = segment_make(IPC_SEGMENT_PORT, RING, 2 * client->id + 1);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    client->bell = ends[0];
    client->router_bell = ends[1];
    assert_int_equal(lane_segment_map(&map, client->session_fd, IPC_SEGMENT_PORT, RING, true), 0);
    client->session = map;
    assert_int_equal(lane_segment_map(&map, client->core_fd, IPC_SEGMENT_PORT, RING, false), 0);
    client->core = map;
    peer.cell = &client->core->cell;
    peer.pairing = client->id;
    peer.bell = client->bell;
    lane_writer_init(&client->out, &client->session->lane, lane_segment_ring(client->session), RING);
    assert_int_equal(lane_writer_add(&client->out, &peer, 0), 0);
    lane_reader_init(&client->in, &client->core->lane, lane_segment_ring(client->core), RING, 0,
                     &client->session->cell, client->id, IPC__CONTROL__START__START_OLDEST, true, false);
    client->in.bell = client->bell;
    tell(stage, client, false);
}

static void end_port(struct stage *stage, struct client *client)
{
    struct route_mail *mail = route_mail_new(ROUTE_PORT_END, client->queue, 0);

    mail->port.id = client->id;
    mail->reason = IPC_REASON_DIED;
    routers_send(stage->routers, mail);
}

static void free_port(struct client *client)
{
    lane_writer_done(&client->out);
    lane_segment_unmap(client->session, IPC_SEGMENT_PORT, RING);
    lane_segment_unmap(client->core, IPC_SEGMENT_PORT, RING);
    close(client->session_fd);
    close(client->core_fd);
    close(client->bell);
    close(client->router_bell);
}

static void close_port(struct stage *stage, struct client *client)
{
    end_port(stage, client);
    route_mail_free(wait_mail(stage, ROUTE_PORT_GONE));
    free_port(client);
}

struct how {
    int priority;
    uint64_t expires, not_before;
    const char *id, *key, *header;
};

static uint64_t boot_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static size_t fields_of(const struct how *how, unsigned char *block)
{
    struct ipc_record_headers headers = {0};
    size_t position = sizeof(headers);
    uint8_t priority;

    if (!how)
        return 0;
    memset(block, 0, 1024);
    priority = (uint8_t)how->priority;
#define PUT(condition, ...)                                          \
 if (condition) {                                                    \
  ipc_field_put(block, &position, &(struct ipc_field){__VA_ARGS__}); \
  headers.count++;                                                   \
 }
    PUT(how->priority, .kind = IPC_FIELD_PRIORITY, .value_size = 1, .value = &priority)
    PUT(how->expires, .kind = IPC_FIELD_EXPIRES, .value_size = 8, .value = &how->expires)
    PUT(how->not_before, .kind = IPC_FIELD_NOT_BEFORE, .value_size = 8, .value = &how->not_before)
    PUT(how->id, .kind = IPC_FIELD_ID, .value_size = (uint16_t)strlen(how->id), .value = how->id)
    PUT(how->key, .kind = IPC_FIELD_KEY, .value_size = (uint16_t)strlen(how->key), .value = how->key)
    PUT(how->header, .kind = IPC_FIELD_USER, .name_size = 1, .name = "h",
        .value_size = (uint16_t)strlen(how->header), .value = how->header)
#undef PUT
    headers.size = (uint32_t)ipc_fields_block_size(position - sizeof(headers));
    memcpy(block, &headers, sizeof(headers));
    return headers.size;
}

/* Write one message; waits for room. Returns the position of its record. */
static uint64_t put(struct client *client, const struct how *how, const void *payload, size_t size)
{
    unsigned char block[1024], *body = NULL;
    size_t fields = fields_of(how, block);
    uint64_t position = client->out.position;

    while (lane_writer_reserve(&client->out, (uint32_t)(fields + size), &body) < 0) {
        patience();
        sched_yield();
    }
    memcpy(body, block, fields);
    memcpy(body + fields, payload, size);
    lane_writer_commit(&client->out, (uint32_t)(fields + size), fields ? IPC_RECORD_HEADERS : 0);
    return position;
}

static void put_number(struct client *client, const struct how *how, uint64_t number)
{
    put(client, how, &number, sizeof(number));
}

static bool confirmed(const struct client *client)
{
    return atomic_load(&client->core->cell.owner) == client->id &&
           atomic_load(&client->core->cell.cursor) == client->out.position;
}

static void wait_confirmed(struct stage *stage, struct client *client)
{
    while (!confirmed(client)) {
        patience();
        pump(stage, 0);
        sched_yield();
    }
}

struct got {
    struct ipc_delivery head;
    uint64_t delivery, value;
    size_t size;
    unsigned char fields[2048];
    size_t fields_size;
};

static bool get(struct client *client, struct got *got)
{
    struct lane_record record;
    struct ipc_record_headers headers;
    const unsigned char *at;

    if (lane_reader_peek(&client->in, &record) != 1)
        return false;
    memset(got, 0, sizeof(*got));
    memcpy(&got->head, record.body, sizeof(got->head));
    at = record.body + sizeof(got->head);
    got->size = record.size - sizeof(got->head);
    if (record.flags & IPC_RECORD_HEADERS) {
        memcpy(&headers, at, sizeof(headers));
        got->fields_size = headers.size;
        memcpy(got->fields, at, headers.size);
        at += headers.size;
        got->size -= headers.size;
    }
    memcpy(&got->value, at, got->size < 8 ? got->size : 8);
    got->delivery = record.sequence;
    lane_reader_advance(&client->in, &record);
    if (client->in.consumed != client->in.reported)
        lane_reader_report(&client->in);
    return true;
}

static struct got want(struct stage *stage, struct client *client)
{
    struct got got;

    while (!get(client, &got)) {
        patience();
        pump(stage, 0);
        sched_yield();
    }
    return got;
}

static void ack(struct client *client, uint8_t operation, uint64_t first, uint64_t last, uint64_t ns,
                uint8_t flags)
{
    struct ipc_ack record = {.operation = operation, .flags = flags, .first = first, .last = last, .ns = ns};
    unsigned char *body = NULL;

    while (lane_writer_reserve(&client->out, sizeof(record), &body) < 0)
        patience();
    memcpy(body, &record, sizeof(record));
    lane_writer_commit(&client->out, sizeof(record), 0);
}

static void settle(struct stage *stage, const _Atomic uint64_t *word, uint64_t value)
{
    while (atomic_load(word) != value) {
        patience();
        pump(stage, 1);
    }
}

static void test_order_and_ack(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 100);
    for (uint64_t i = 0; i < 20000; i++) {
        struct got got;

        put_number(&producer, NULL, i);
        if (i < 50)
            continue;
        got = want(stage, &consumer);
        assert_int_equal(got.value, i - 50);
        assert_int_equal(got.head.number, i - 50 + 1);
        assert_int_equal(got.head.attempt, 1);
        assert_int_equal(got.head.session, 1000 + producer.id);
        ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    }
    wait_confirmed(stage, &producer);
    for (uint64_t i = 20000 - 50; i < 20000; i++)
        assert_int_equal(want(stage, &consumer).value, i);
    ack(&consumer, IPC_ACK_DONE, 0, UINT64_MAX, 0, 0);
    settle(stage, &stage->stats[1].acked, 20000);
    settle(stage, &stage->stats[1].unacked, 0);
    assert_int_equal(atomic_load(&stage->stats[1].bytes), 0);
    close_port(stage, &producer);
    close_port(stage, &consumer);
}

static void test_prefetch_and_death(void **state)
{
    struct stage *stage = *state;
    struct client producer, first, second;
    struct got got;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &first, 1, true, 4);
    for (uint64_t i = 0; i < 10; i++)
        put_number(&producer, NULL, i);
    wait_confirmed(stage, &producer);
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(want(stage, &first).value, i);
    settle(stage, &stage->stats[1].unacked, 4);
    assert_false(get(&first, &got));
    ack(&first, IPC_ACK_DONE, 1, 1, 0, 0); /* the second one only */
    assert_int_equal(want(stage, &first).value, 4);
    /* It dies with an acknowledgement in its lane that nobody has read: that counts. */
    ack(&first, IPC_ACK_DONE, 2, 2, 0, 0);
    close_port(stage, &first);
    open_port(stage, &second, 1, true, 100);
    got = want(stage, &second);
    assert_int_equal(got.value, 0);
    assert_int_equal(got.head.attempt, 2);
    assert_int_equal(got.head.redelivery, IPC_REDELIVERY_DIED);
    assert_int_equal(want(stage, &second).value, 3);
    for (uint64_t i = 4; i < 10; i++) {
        got = want(stage, &second);
        assert_int_equal(got.value, i);
        assert_int_equal(got.head.attempt, i == 4 ? 2 : got.head.attempt);
    }
    close_port(stage, &second);
    close_port(stage, &producer);
    settle(stage, &stage->stats[1].waiting, 8);
}

static void restart(struct stage *stage, struct client **clients, size_t n, unsigned threads)
{
    routers_stop(stage->routers);
    start(stage, threads);
    for (uint64_t id = 1; id < 8; id++)
        if (stage->files[id] >= 0)
            add_queue(stage, id, true);
    for (size_t i = 0; i < n; i++)
        tell(stage, clients[i], true);
    for (uint64_t id = 1; id < 8; id++)
        if (stage->files[id] >= 0)
            ready(stage, id);
}

static void test_resume(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    uint64_t sent = 0, next = 0, open_from = 0;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 64);
    for (unsigned round = 0; round < 60; round++) {
        for (unsigned i = 0; i < 37 + round; i++)
            put_number(&producer, NULL, sent++);
        if (round % 3 != 2)
            wait_confirmed(stage, &producer);
        for (unsigned i = 0; i < 23; i++) {
            struct got got = want(stage, &consumer);

            assert_int_equal(got.value, next);
            assert_int_equal(got.head.attempt, 1);
            next++;
            if (i % 2 == 0) { /* all that is open so far */
                ack(&consumer, IPC_ACK_DONE, open_from, got.delivery, 0, 0);
                open_from = got.delivery + 1;
            }
        }
        restart(stage, (struct client *[]){&producer, &consumer}, 2, 1 + round % 3);
    }
    while (next < sent) {
        struct got got = want(stage, &consumer);

        assert_int_equal(got.value, next);
        assert_int_equal(got.head.attempt, 1);
        next++;
        ack(&consumer, IPC_ACK_DONE, open_from, got.delivery, 0, 0);
        open_from = got.delivery + 1;
    }
    settle(stage, &stage->stats[1].unacked, 0);
    settle(stage, &stage->stats[1].waiting, 0);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* Chunks enough for many slices of a scan. */
#define MANY 6000u

static void put_large(struct client *client, const struct how *how, uint64_t number)
{
    uint64_t payload[64] = {number};

    put(client, how, payload, sizeof(payload));
}

static void pause_queue(struct stage *stage, uint64_t id, bool paused)
{
    struct route_mail *mail = route_mail_new(ROUTE_QUEUE_SET, id, 0);

    stage->settings[id].paused = paused;
    mail->settings = stage->settings[id];
    mail->settings.message_size_max = 16384;
    routers_send(stage->routers, mail);
}

static void want_and_ack(struct stage *stage, struct client *client, uint64_t value)
{
    struct got got = want(stage, client);

    assert_int_equal(got.value, value);
    assert_int_equal(got.head.attempt, 1);
    ack(client, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
}

/* Deliveries begin before all is found, and their order does not show it. */
static void test_resume_of_many(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    struct route_mail *mail;

    stage->settings[1].paused = true;
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1000);
    for (uint64_t i = 0; i < MANY; i++)
        put_large(&producer,
                  i == MANY - 1   ? &(struct how){.priority = 9}
                  : i == MANY / 2 ? &(struct how){.priority = 5}
                                  : NULL,
                  i);
    wait_confirmed(stage, &producer);
    stage->settings[1].paused = false;
    restart(stage, (struct client *[]){&producer, &consumer}, 2, 1);
    mail = route_mail_new(ROUTE_QUEUE_REMOVE, 1, 0);
    mail->if_empty = true;
    routers_send(stage->routers, mail);
    put_large(&producer, &(struct how){.priority = 1}, MANY);

    want_and_ack(stage, &consumer, MANY - 1);
    want_and_ack(stage, &consumer, MANY / 2);
    for (uint64_t i = 0; i < MANY - 1;) {
        struct got got = want(stage, &consumer);

        if (got.value != MANY) /* which comes as soon as the producer is heard */
            assert_int_equal(got.value, i == MANY / 2 ? ++i : i);
        i += got.value != MANY;
        ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    }
    mail = wait_mail(stage, ROUTE_QUEUE_GONE);
    assert_int_equal(mail->result, -EBUSY);
    route_mail_free(mail);
    settle(stage, &stage->stats[1].acked, MANY + 1);
    settle(stage, &stage->stats[1].waiting, 0);
    settle(stage, &stage->stats[1].bytes, 0);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* The router hears of all at once: what a consumer said before it left counts before the queue is removed if it is empty. */
static void test_remove_after_the_end(void **state)
{
    struct stage *stage = *state;

    for (uint64_t i = 0; i < 20; i++) {
        struct client producer, consumer;
        struct route_mail *mail, *next;

        new_queue(stage, 1);
        open_port(stage, &producer, 1, false, 0);
        open_port(stage, &consumer, 1, true, 10);
        put_number(&producer, NULL, i);
        struct got got = want(stage, &consumer);
        wait_confirmed(stage, &producer);
        ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
        end_port(stage, &consumer);
        mail = route_mail_new(ROUTE_QUEUE_REMOVE, 1, 0);
        mail->if_empty = true;
        routers_send(stage->routers, mail);
        mail = wait_mail(stage, ROUTE_QUEUE_GONE);
        assert_int_equal(mail->result, 0);
        route_mail_free(mail);
        while ((mail = stage->mails)) {
            next = mail->next;
            route_mail_free(mail);
            stage->mails = next;
        }
        free_port(&consumer);
        free_port(&producer);
        close(stage->files[1]);
        stage->files[1] = -1;
        memset(&stage->stats[1], 0, sizeof(stage->stats[1]));
    }
}

/* In a late slice: a message that expires, one that is delayed. */
static void test_resume_of_times(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, undertaker;
    uint64_t soon;
    struct got got;

    stage->settings[1].paused = true;
    stage->dead_letter[1] = 2;
    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1000);
    open_port(stage, &undertaker, 2, true, 1000);
    for (uint64_t i = 0; i < MANY; i++)
        put_large(&producer, NULL, i);
    wait_confirmed(stage, &producer);
    soon = boot_ns() + 300000000;
    put_large(&producer, &(struct how){.not_before = soon}, MANY);
    put_large(&producer, &(struct how){.expires = soon}, MANY + 1);
    put_large(&producer, NULL, MANY + 2);
    wait_confirmed(stage, &producer);
    restart(stage, (struct client *[]){&producer, &consumer, &undertaker}, 3, 1);
    assert_int_equal(want(stage, &undertaker).value, MANY + 1);
    assert_true(boot_ns() >= soon);
    pause_queue(stage, 1, false);
    for (uint64_t i = 0; i < MANY; i++)
        want_and_ack(stage, &consumer, i);
    got = want(stage, &consumer);
    assert_in_range(got.value, MANY, MANY + 2);
    assert_int_equal(got.value + want(stage, &consumer).value, 2 * MANY + 2);
    assert_true(boot_ns() >= soon);
    assert_false(get(&undertaker, &got));
    ack(&consumer, IPC_ACK_DONE, 0, UINT64_MAX - 1, 0, 0);
    settle(stage, &stage->stats[1].waiting, 0);
    settle(stage, &stage->stats[1].unacked, 0);
    settle(stage, &stage->stats[1].delayed, 0);
    close_port(stage, &undertaker);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* A letter that its origin does not know of lies in a late slice of the other queue. */
static void test_resume_of_letters(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, filler;

    stage->dead_letter[1] = 2;
    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &filler, 2, false, 0);
    for (uint64_t i = 0; i < MANY; i++)
        put_large(&filler, NULL, i);
    wait_confirmed(stage, &filler);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1);
    put_number(&producer, NULL, 7);
    assert_int_equal(want(stage, &consumer).value, 7);
    stage->keeps_answers = true;
    ack(&consumer, IPC_ACK_REFUSE, 0, 0, 0, IPC_ACK_DEAD);
    settle(stage, &stage->stats[2].waiting, MANY + 1);
    route_mail_free(wait_mail(stage, ROUTE_LETTER_DONE));
    stage->keeps_answers = false;
    for (unsigned round = 0; round < 3; round++) {
        restart(stage, (struct client *[]){&producer, &consumer, &filler}, 3, 1);
        settle(stage, &stage->stats[1].waiting, 0);
        settle(stage, &stage->stats[1].unacked, 0);
        settle(stage, &stage->stats[2].waiting, MANY + 1);
    }
    close_port(stage, &filler);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* Ask the router for something, and wait until it says so: mail before it has been taken in. */
static void settle_mail(struct stage *stage)
{
    routers_send(stage->routers, route_mail_new(ROUTE_QUEUE_REMOVE, 7, 0));
    route_mail_free(wait_mail(stage, ROUTE_QUEUE_GONE));
}

static int did(struct stage *stage, enum route_kind kind, bool if_empty, enum route_kind answer)
{
    struct route_mail *mail = route_mail_new(kind, 1, 0);
    int result;

    mail->if_empty = kind == ROUTE_QUEUE_REMOVE && if_empty;
    if (kind == ROUTE_DO)
        mail->wish = (struct route_wish){.priority = -1, .count_max = 1};
    routers_send(stage->routers, mail);
    mail = wait_mail(stage, answer);
    result = mail->result;
    route_mail_free(mail);
    return result;
}

/* The file cannot be read for a while: orders are refused meanwhile, or what can be done without is done. */
static void test_scan_that_fails(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    int file, unreadable = open("/dev/null", O_WRONLY | O_CLOEXEC);

    stage->settings[1].paused = true;
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1000);
    for (uint64_t i = 0; i < MANY; i++)
        put_large(&producer, NULL, i);
    wait_confirmed(stage, &producer);
    file = dup(stage->files[1]);
    assert_true(file >= 0 && unreadable >= 0);
    for (unsigned round = 0; round < 2; round++) {
        struct route_mail *mail;

        routers_stop(stage->routers);
        start(stage, 1);
        add_queue(stage, 1, true);
        settle_mail(stage);
        assert_int_equal(dup2(unreadable, stage->files[1]), stage->files[1]);
        tell(stage, &producer, true);
        tell(stage, &consumer, true);
        ready(stage, 1);
        mail = wait_mail(stage, ROUTE_QUEUE_TROUBLE);
        assert_int_equal(mail->result, -EIO);
        route_mail_free(mail);
        assert_int_equal(did(stage, ROUTE_DO, false, ROUTE_DID), -EIO);
        assert_int_equal(did(stage, ROUTE_QUEUE_REMOVE, true, ROUTE_QUEUE_GONE), -EIO);
        if (round == 1) /* nothing of it is needed for that */
            assert_int_equal(did(stage, ROUTE_QUEUE_REMOVE, false, ROUTE_QUEUE_GONE), 0);
        assert_int_equal(dup2(file, stage->files[1]), stage->files[1]);
        if (round == 1)
            break;
        put_number(&producer, NULL, MANY);
        wait_confirmed(stage, &producer); /* it is read again */
        assert_int_equal(did(stage, ROUTE_DO, false, ROUTE_DID), 0);
        pause_queue(stage, 1, false);
        for (uint64_t i = 0; i < 10; i++)
            want_and_ack(stage, &consumer, i);
        settle(stage, &stage->stats[1].acked, 10);
    }
    close(file);
    close(unreadable);
    free_port(&consumer);
    free_port(&producer);
}

/* What is open lies behind much that waits, and keeps an older message of its key from others. */
static void test_resume_with_open_key(void **state)
{
    struct stage *stage = *state;
    const uint64_t first = 10, open = 4000;
    struct client producer, a, b;
    struct got got;

    stage->settings[1].paused = true;
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &a, 1, true, 1);
    for (uint64_t i = 0; i < MANY; i++)
        put_large(&producer,
                  i == first  ? &(struct how){.key = "key"}
                  : i == open ? &(struct how){.key = "key", .priority = 1}
                              : NULL,
                  i);
    wait_confirmed(stage, &producer);
    pause_queue(stage, 1, false);
    got = want(stage, &a);
    assert_int_equal(got.value, open);
    open_port(stage, &b, 1, true, 50);
    want_and_ack(stage, &b, 0);
    restart(stage, (struct client *[]){&producer, &a, &b}, 3, 1);
    for (uint64_t i = 1; i < MANY; i++)
        if (i != first && i != open)
            want_and_ack(stage, &b, i);
    settle(stage, &stage->stats[1].waiting, 1);
    ack(&a, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    while (!get(&a, &got) && !get(&b, &got)) {
        patience();
        pump(stage, 0);
    }
    assert_int_equal(got.value, first);
    close_port(stage, &a);
    close_port(stage, &b);
    close_port(stage, &producer);
}

static void test_priority_and_delay(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    uint64_t soon = boot_ns() + UINT64_C(200000000);
    bool delayed = false;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    put_number(&producer, &(struct how){.not_before = soon}, 100);
    for (uint64_t i = 0; i < 30; i++)
        put_number(&producer, &(struct how){.priority = (int)(i % 3)}, i);
    put_number(&producer, &(struct how){.expires = 1}, 101);
    wait_confirmed(stage, &producer);
    settle(stage, &stage->stats[1].dropped, 1);
    open_port(stage, &consumer, 1, true, 100);
    for (uint64_t p = 3; p-- > 0;)
        for (uint64_t i = p; i < 30; i += 3) {
            uint64_t value = want(stage, &consumer).value;

            if (value == 100 && !delayed) { /* a slow machine */
                assert_true(boot_ns() >= soon);
                delayed = true;
                value = want(stage, &consumer).value;
            }
            assert_int_equal(value, i);
        }
    if (!delayed)
        assert_int_equal(want(stage, &consumer).value, 100);
    assert_true(boot_ns() >= soon);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

static void test_refuse_and_dead_letters(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, undertaker;
    struct got got;
    size_t position = 0;
    struct ipc_field field;
    unsigned found = 0;

    stage->dead_letter[1] = 2;
    stage->settings[1].attempts_max = 3;
    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1);
    put_number(&producer, NULL, 1);
    put_number(&producer, NULL, 2);
    for (unsigned attempt = 1; attempt <= 3; attempt++) {
        got = want(stage, &consumer);
        assert_int_equal(got.value, 1);
        assert_int_equal(got.head.attempt, attempt);
        assert_int_equal(got.head.redelivery, attempt > 1 ? IPC_REDELIVERY_REFUSED : IPC_REDELIVERY_NONE);
        ack(&consumer, IPC_ACK_REFUSE, got.delivery, got.delivery, 0, 0);
    }
    got = want(stage, &consumer);
    assert_int_equal(got.value, 2);
    ack(&consumer, IPC_ACK_REFUSE, got.delivery, got.delivery, 1000000000, IPC_ACK_DEAD);
    open_port(stage, &undertaker, 2, true, 10);
    got = want(stage, &undertaker);
    assert_int_equal(got.value, 1);
    assert_int_equal(got.head.session, 1000 + producer.id);
    while (ipc_field_next(got.fields, got.fields_size, &position, &field) > 0) {
        if (field.kind == IPC_FIELD_ORIGIN) {
            assert_memory_equal(field.value, "q1", 2);
            found++;
        } else if (field.kind == IPC_FIELD_ATTEMPTS) {
            assert_int_equal(*(const uint8_t *)field.value, 3);
            found++;
        } else if (field.kind == IPC_FIELD_REASON || field.kind == IPC_FIELD_DIED) {
            found++;
        }
    }
    assert_int_equal(found, 4);
    assert_int_equal(want(stage, &undertaker).value, 2);
    settle(stage, &stage->stats[1].dead, 2);
    assert_int_equal(atomic_load(&stage->stats[1].unacked), 0);
    assert_int_equal(atomic_load(&stage->stats[1].delayed), 0);
    assert_int_equal(atomic_load(&stage->stats[1].bytes), 0);
    close_port(stage, &undertaker);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* Acknowledged before its origin let go of it, it would come again from there after a restart. */
static void test_letter_waits_for_origin(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, undertaker;
    struct route_mail *mail;
    struct got got;

    stage->dead_letter[1] = 2;
    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1);
    open_port(stage, &undertaker, 2, true, 10);
    put_number(&producer, NULL, 1);
    got = want(stage, &consumer);
    stage->keeps_answers = true;
    ack(&consumer, IPC_ACK_REFUSE, got.delivery, got.delivery, 0, IPC_ACK_DEAD);
    mail = wait_mail(stage, ROUTE_LETTER_DONE);
    settle(stage, &stage->stats[2].waiting, 1);
    assert_int_equal(atomic_load(&stage->stats[1].unacked), 1);
    stage->keeps_answers = false;
    mail->queue = mail->origin;
    routers_send(stage->routers, mail);
    assert_int_equal(want(stage, &undertaker).value, 1);
    settle(stage, &stage->stats[1].dead, 1);
    close_port(stage, &undertaker);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* ipcd is killed when the letter is here and its origin does not know, and the next one before they have talked. */
static void test_letter_and_two_deaths(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, undertaker;
    struct client *clients[] = {&producer, &consumer, &undertaker};
    struct got got;

    stage->dead_letter[1] = 2;
    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 1);
    open_port(stage, &undertaker, 2, true, 10);
    put_number(&producer, NULL, 1);
    got = want(stage, &consumer);
    stage->keeps_answers = true;
    ack(&consumer, IPC_ACK_REFUSE, got.delivery, got.delivery, 0, IPC_ACK_DEAD);
    route_mail_free(wait_mail(stage, ROUTE_LETTER_DONE));
    stage->drops_letters = true;
    restart(stage, clients, 3, 1);
    settle(stage, &stage->stats[2].waiting, 1);
    settle_mail(stage);
    assert_false(get(&undertaker, &got));
    stage->keeps_answers = stage->drops_letters = false;
    restart(stage, clients, 3, 1);
    got = want(stage, &undertaker);
    assert_int_equal(got.value, 1);
    ack(&undertaker, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    settle(stage, &stage->stats[1].waiting, 0);
    settle(stage, &stage->stats[2].unacked, 0);
    restart(stage, clients, 3, 1);
    settle(stage, &stage->stats[2].waiting, 0);
    settle_mail(stage);
    assert_false(get(&undertaker, &got));
    close_port(stage, &undertaker);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* A queue is full and diverts a message, and ipcd is killed before its producer's cursor passed it. */
static void test_divert_and_death(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, undertaker, *clients[] = {&producer, &consumer, &undertaker};
    /* The queue is full again; it has room, and is asked when that is over, or by the ipcd after that; it is asked first. */
    enum { FULL, ASKED_LATE, ASKED_BY_THE_NEXT, ASKED_FIRST };

    stage->settings[1] = (struct queue_settings){.messages_max = 1, .full = QUEUE_FULL_DEAD_LETTER};
    stage->dead_letter[1] = 2;
    new_queue(stage, 1);
    new_queue(stage, 2);
    for (unsigned way = FULL; way <= ASKED_FIRST; way++) {
        bool is_letter = way == FULL || way == ASKED_FIRST;
        struct got first, got;

        open_port(stage, &producer, 1, false, 0);
        open_port(stage, &consumer, 1, true, 1);
        open_port(stage, &undertaker, 2, true, 10);
        stage->keeps_answers = true;
        put_number(&producer, NULL, 1);
        first = want(stage, &consumer);
        put_number(&producer, NULL, 2);
        route_mail_free(wait_mail(stage, ROUTE_LETTER_DONE));
        stage->keeps_answers = false;
        if (!is_letter) {
            ack(&consumer, IPC_ACK_DONE, first.delivery, first.delivery, 0, 0);
            settle(stage, &stage->stats[1].unacked, 0);
        }
        if (way == ASKED_FIRST)
            stage->settings[1].full = QUEUE_FULL_BLOCK;
        stage->keeps_questions = way == ASKED_LATE;
        stage->drops_letters = way == ASKED_BY_THE_NEXT;
        restart(stage, clients, 3, 1);
        got = want(stage, is_letter ? &undertaker : &consumer);
        assert_int_equal(got.value, 2);
        if (is_letter)
            ack(&consumer, IPC_ACK_DONE, first.delivery, first.delivery, 0, 0);
        wait_confirmed(stage, &producer);
        if (way == ASKED_BY_THE_NEXT) {
            stage->drops_letters = false;
            restart(stage, clients, 3, 1);
            settle(stage, &stage->stats[2].waiting, 0);
        }
        ack(is_letter ? &undertaker : &consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
        settle(stage, &stage->stats[1].unacked, 0);
        if (way == ASKED_LATE) {
            ask(stage, wait_mail(stage, ROUTE_LETTER_ASK));
            stage->keeps_questions = false;
        }
        settle(stage, &stage->stats[2].waiting, 0);
        settle(stage, &stage->stats[2].unacked, 0);
        settle_mail(stage);
        assert_false(get(&undertaker, &got));
        assert_false(get(&consumer, &got));
        close_port(stage, &undertaker);
        close_port(stage, &consumer);
        close_port(stage, &producer);
    }
}

/* A message is moved, and ipcd killed before its origin knows that it has arrived: it arrives, and nobody is given it at its
 * origin, however late that hears of it. */
static void test_move_and_death(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, other, *clients[] = {&producer, &consumer, &other};
    struct route_mail *mail;
    struct got got;

    for (uint64_t from = 1; from <= 3; from += 2) {
        bool late = from == 3; /* the next ipcd is killed before it, too */

        new_queue(stage, from);
        new_queue(stage, from + 1);
        open_port(stage, &producer, from, false, 0);
        put_number(&producer, NULL, 1);
        settle(stage, &stage->stats[from].waiting, 1);
        stage->keeps_answers = true;
        mail = route_mail_new(ROUTE_DO, from, 0);
        mail->wish = (struct route_wish){.operation = 2, .target = from + 1, .priority = -1};
        routers_send(stage->routers, mail);
        route_mail_free(wait_mail(stage, ROUTE_LETTER_DONE));
        stage->keeps_answers = false;
        open_port(stage, &consumer, from + 1, true, 10);
        open_port(stage, &other, from, true, 10);
        stage->drops_letters = late;
        restart(stage, clients, 3, 1);
        if (late) {
            settle(stage, &stage->stats[from].unacked, 1);
            stage->drops_letters = false;
            restart(stage, clients, 3, 1);
        }
        got = want(stage, &consumer);
        assert_int_equal(got.value, 1);
        settle(stage, &stage->stats[from].waiting, 0);
        settle(stage, &stage->stats[from].unacked, 0);
        assert_false(get(&other, &got));
        ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
        settle(stage, &stage->stats[consumer.queue].unacked, 0);
        assert_int_equal(atomic_load(&stage->stats[from].bytes) + atomic_load(&stage->stats[from + 1].bytes),
                         0);
        close_port(stage, &other);
        close_port(stage, &consumer);
        close_port(stage, &producer);
    }
}

static void test_ids_and_keys(void **state)
{
    struct stage *stage = *state;
    struct client producer, a, b, *clients[] = {&producer};
    struct got first, got;
    char id[16];

    stage->settings[1].dedup_window = 100;
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t i = 0; i < 90; i++) {
            (void)snprintf(id, sizeof(id), "id-%d", (int)i);
            put_number(&producer, &(struct how){.id = id, .key = i % 2 ? "odd" : "even"}, i);
        }
        wait_confirmed(stage, &producer);
        if (round == 1)
            restart(stage, clients, 1, 1);
    }
    settle(stage, &stage->stats[1].waiting, 90);
    for (uint64_t i = 0; i < 101; i++) { /* and then it has forgotten the first */
        (void)snprintf(id, sizeof(id), "new-%d", (int)i);
        put_number(&producer, &(struct how){.id = id}, 1000);
    }
    put_number(&producer, &(struct how){.id = "id-0"}, 1000);
    wait_confirmed(stage, &producer);
    settle(stage, &stage->stats[1].waiting, 192);

    /* One key goes to one consumer at a time. */
    open_port(stage, &a, 1, true, 1);
    first = want(stage, &a);
    assert_int_equal(first.value, 0);
    open_port(stage, &b, 1, true, 1000);
    for (uint64_t i = 1; i < 90; i += 2)
        assert_int_equal(want(stage, &b).value, i);
    for (unsigned i = 0; i < 102; i++)
        assert_int_equal(want(stage, &b).value, 1000);
    assert_false(get(&b, &got));
    ack(&a, IPC_ACK_DONE, first.delivery, first.delivery, 0, 0);
    for (uint64_t i = 2; i < 90; i += 2) { /* to whichever of the two comes first */
        while (!get(&a, &got) && !get(&b, &got)) {
            patience();
            pump(stage, 0);
        }
        assert_int_equal(got.value, i);
        ack(&a, IPC_ACK_DONE, 0, UINT64_MAX, 0, 0);
        ack(&b, IPC_ACK_DONE, 0, UINT64_MAX, 0, 0);
    }
    settle(stage, &stage->stats[1].waiting, 0);
    close_port(stage, &a);
    close_port(stage, &b);
    close_port(stage, &producer);
}

/* What comes back goes out before what is ready already, and that before what is parked: none may be forgotten. */
static void test_key_comes_back(void **state)
{
    struct stage *stage = *state;
    const struct how key = {.key = "key"};
    struct client producer, a, b;
    struct got got;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &a, 1, true, 1);
    for (uint64_t i = 1; i <= 6; i++)
        put_number(&producer, i == 3 || i == 6 ? NULL : &key, i);
    got = want(stage, &a);
    assert_int_equal(got.value, 1);
    open_port(stage, &b, 1, true, 10);
    assert_int_equal(want(stage, &b).value, 3);
    assert_int_equal(want(stage, &b).value, 6); /* 2, 4 and 5 are parked now */
    close_port(stage, &b);
    for (unsigned i = 0; i < 2; i++) { /* each time one more of them is ready behind it */
        ack(&a, IPC_ACK_REFUSE, got.delivery, got.delivery, 0, 0);
        got = want(stage, &a);
        assert_int_equal(got.value, 1);
    }
    open_port(stage, &b, 1, true, 1);
    assert_int_equal(want(stage, &b).value, 3); /* 2 is parked again, 4 is not */
    ack(&a, IPC_ACK_DONE, 0, UINT64_MAX, 0, 0);
    for (uint64_t i = 2; i <= 5; i += i == 2 ? 2 : 1) {
        got = want(stage, &a);
        assert_int_equal(got.value, i);
        ack(&a, IPC_ACK_DONE, 0, UINT64_MAX, 0, 0);
    }
    assert_int_equal(want(stage, &a).value, 6);
    close_port(stage, &a);
    close_port(stage, &b);
    close_port(stage, &producer);
}

static int verdict(struct stage *stage, struct client *producer, uint64_t position)
{
    struct lane_record record;
    struct ipc_verdict head;

    while (lane_reader_peek(&producer->in, &record) != 1) {
        patience();
        pump(stage, 0);
    }
    memcpy(&head, record.body, sizeof(head));
    lane_reader_advance(&producer->in, &record);
    assert_int_equal(head.position, position);
    return head.code;
}

static void test_full(void **state)
{
    struct stage *stage = *state;
    struct client producer, other, consumer;
    uint64_t position, number = 9;
    struct got got;

    /* Reject. */
    stage->settings[1] = (struct queue_settings){.messages_max = 3, .full = QUEUE_FULL_REJECT};
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    for (uint64_t i = 0; i < 3; i++)
        put_number(&producer, NULL, i);
    position = put(&producer, NULL, &number, sizeof(number));
    assert_int_equal(verdict(stage, &producer, position), -ENOSPC);
    position = put(&producer, NULL, (char[20000]){0}, 20000);
    assert_int_equal(verdict(stage, &producer, position), -EMSGSIZE);
    wait_confirmed(stage, &producer);
    close_port(stage, &producer);

    /* Drop the oldest. */
    stage->settings[2] = (struct queue_settings){.messages_max = 3, .full = QUEUE_FULL_DROP_OLDEST};
    new_queue(stage, 2);
    open_port(stage, &producer, 2, false, 0);
    for (uint64_t i = 0; i < 10; i++)
        put_number(&producer, NULL, i);
    wait_confirmed(stage, &producer);
    settle(stage, &stage->stats[2].dropped, 7);
    open_port(stage, &consumer, 2, true, 10);
    for (uint64_t i = 7; i < 10; i++)
        assert_int_equal(want(stage, &consumer).value, i);
    close_port(stage, &consumer);
    close_port(stage, &producer);

    /* Block, which is no concern of the other queues, and ends when there is room. */
    stage->settings[3] = (struct queue_settings){.messages_max = 3, .full = QUEUE_FULL_BLOCK};
    new_queue(stage, 3);
    open_port(stage, &producer, 3, false, 0);
    open_port(stage, &other, 2, false, 0);
    for (uint64_t i = 0; i < 10; i++)
        put_number(&producer, NULL, i);
    put_number(&other, NULL, 1);
    wait_confirmed(stage, &other);
    settle(stage, &stage->stats[3].waiting, 3);
    assert_false(confirmed(&producer));
    open_port(stage, &consumer, 3, true, 2);
    for (uint64_t i = 0; i < 10; i++) {
        got = want(stage, &consumer);
        assert_int_equal(got.value, i);
        ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    }
    wait_confirmed(stage, &producer);
    close_port(stage, &consumer);
    close_port(stage, &producer);

    /* Make it a dead letter. */
    stage->settings[4] = (struct queue_settings){.messages_max = 1, .full = QUEUE_FULL_DEAD_LETTER};
    stage->dead_letter[4] = 5;
    stage->settings[5] = (struct queue_settings){.messages_max = 2, .full = QUEUE_FULL_REJECT};
    new_queue(stage, 4);
    new_queue(stage, 5);
    open_port(stage, &producer, 4, false, 0);
    for (uint64_t i = 0; i < 3; i++)
        put_number(&producer, NULL, i);
    wait_confirmed(stage, &producer);
    settle(stage, &stage->stats[5].waiting, 2);
    position = put(&producer, NULL, &number, sizeof(number));
    assert_int_equal(verdict(stage, &producer, position), -ENOSPC);
    close_port(stage, &producer);
    close_port(stage, &other);
}

static struct route_mail *look(struct stage *stage, uint64_t queue, struct route_wish wish)
{
    struct route_mail *mail = route_mail_new(ROUTE_DO, queue, 0);

    mail->wish = wish;
    routers_send(stage->routers, mail);
    return wait_mail(stage, ROUTE_DID);
}

static void test_look(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    struct route_mail *mail;
    struct route_waiting waiting;
    uint64_t seen = 0, after = 0;

    new_queue(stage, 1);
    new_queue(stage, 2);
    open_port(stage, &producer, 1, false, 0);
    for (uint64_t i = 0; i < 300; i++)
        put_number(&producer, &(struct how){.priority = (int)(i % 2), .header = i % 3 ? "no" : "yes"}, i);
    wait_confirmed(stage, &producer);

    do { /* peek at all of them */
        mail = look(stage, 1,
                    (struct route_wish){.operation = 0, .after = after, .priority = -1, .payload_max = 100});
        assert_int_equal(mail->result, 0);
        for (size_t at = 0; at < mail->size; seen++) {
            memcpy(&waiting, mail->bytes + at, sizeof(waiting));
            assert_int_equal(waiting.number, seen + 1);
            assert_int_equal(waiting.priority, seen % 2);
            assert_int_equal(waiting.size, 8);
            at += sizeof(waiting) + ((waiting.fields_size + 7) & ~7u);
            assert_int_equal(mail->bytes[at] | mail->bytes[at + 1] << 8, seen);
            at += (waiting.payload_size + 7) & ~7u;
        }
        after = mail->next_number;
        route_mail_free(mail);
    } while (after);
    assert_int_equal(seen, 300);

    seen = 0;
    after = 0;
    do { /* move those of priority 1 */
        mail =
            look(stage, 1, (struct route_wish){.operation = 2, .after = after, .priority = 1, .target = 2});
        seen += mail->done;
        after = mail->next_number;
        route_mail_free(mail);
    } while (after);
    assert_int_equal(seen, 150);
    settle(stage, &stage->stats[2].waiting, 150);
    mail = look(
        stage, 1,
        (struct route_wish){.operation = 1, .priority = -1, .header = "h", .value = "yes", .value_size = 3});
    assert_int_equal(mail->done, 50);
    assert_int_equal(mail->next_number, 0);
    route_mail_free(mail);
    settle(stage, &stage->stats[1].waiting, 100);
    open_port(stage, &consumer, 1, true, 1000);
    for (uint64_t i = 0; i < 300; i++)
        if (i % 2 == 0 && i % 3)
            assert_int_equal(want(stage, &consumer).value, i);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

/* A queue that is empty keeps its memory for a while, and most of it no longer. */
static void wait_given_back(struct stage *stage)
{
    while (atomic_load(&stage->budget.used) > UINT64_C(1) << 20) {
        patience();
        sched_yield();
    }
}

/* What a queue held goes back when it is empty; the same memory is used again and again. */
static void test_memory(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    unsigned char payload[5000];
    uint64_t peak;

    stage->settings[1].message_size_max = 30000;
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    memset(payload, 7, sizeof(payload));
    for (unsigned i = 0; i < 2000; i++)
        put(&producer, NULL, payload, 1 + i * 2 % sizeof(payload));
    wait_confirmed(stage, &producer);
    settle(stage, &stage->stats[1].waiting, 2000);
    peak = atomic_load(&stage->budget.used);
    assert_true(peak >= atomic_load(&stage->stats[1].bytes));
    assert_true(peak < atomic_load(&stage->stats[1].bytes) * 115 / 100 + (UINT64_C(512) << 10));
    open_port(stage, &consumer, 1, true, 64);
    for (unsigned i = 0; i < 2000; i++) {
        struct got got = want(stage, &consumer);

        assert_int_equal(got.size, 1 + i * 2 % sizeof(payload));
        ack(&consumer, IPC_ACK_DONE, 0, got.delivery, 0, 0);
    }
    settle(stage, &stage->stats[1].unacked, 0);
    wait_given_back(stage);
    for (unsigned i = 0; i < 20000; i++) {
        put(&producer, NULL, payload, 100);
        ack(&consumer, IPC_ACK_DONE, 0, want(stage, &consumer).delivery, 0, 0);
    }
    settle(stage, &stage->stats[1].unacked, 0);
    wait_given_back(stage);
    close_port(stage, &consumer);
    close_port(stage, &producer);
    {
        struct route_mail *mail = route_mail_new(ROUTE_QUEUE_REMOVE, 1, 0);

        routers_send(stage->routers, mail);
        mail = wait_mail(stage, ROUTE_QUEUE_GONE);
        assert_int_equal(mail->result, 0);
        route_mail_free(mail);
    }
    assert_int_equal(atomic_load(&stage->budget.used), 0);
    assert_int_equal(atomic_load(&stage->all.used), 0);
}

static void test_lease(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer;
    struct got got;

    stage->settings[1].lease_ns = UINT64_C(100000000);
    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 10);
    put_number(&producer, NULL, 5);
    got = want(stage, &consumer);
    ack(&consumer, IPC_ACK_TOUCH, got.delivery, got.delivery, UINT64_C(200000000), 0);
    got = want(stage, &consumer);
    assert_int_equal(got.value, 5);
    assert_int_equal(got.head.attempt, 2);
    assert_int_equal(got.head.redelivery, IPC_REDELIVERY_EXPIRED);
    ack(&consumer, IPC_ACK_DONE, got.delivery, got.delivery, 0, 0);
    settle(stage, &stage->stats[1].acked, 1);
    close_port(stage, &consumer);
    close_port(stage, &producer);
}

static void test_nonsense(void **state)
{
    struct stage *stage = *state;
    struct client producer, consumer, honest;
    struct ipc_record_headers headers = {.size = 4096};
    struct route_mail *mail;
    unsigned char *body = NULL;

    new_queue(stage, 1);
    open_port(stage, &producer, 1, false, 0);
    open_port(stage, &consumer, 1, true, 10);
    open_port(stage, &honest, 1, false, 0);
    assert_int_equal(lane_writer_reserve(&producer.out, 64, &body), 0);
    memcpy(body, &headers, sizeof(headers));
    lane_writer_commit(&producer.out, 64, IPC_RECORD_HEADERS);
    mail = wait_mail(stage, ROUTE_PORT_BROKEN);
    assert_int_equal(mail->port.id, producer.id);
    route_mail_free(mail);
    ack(&consumer, 77, 0, UINT64_MAX, 0, 0); /* of nothing: ignored */
    put_number(&honest, NULL, 3);
    assert_int_equal(want(stage, &consumer).value, 3);
    ack(&consumer, 77, 0, UINT64_MAX, 0, 0);
    mail = wait_mail(stage, ROUTE_PORT_BROKEN);
    assert_int_equal(mail->port.id, consumer.id);
    route_mail_free(mail);
    close_port(stage, &consumer);
    close_port(stage, &producer);
    close_port(stage, &honest);
    settle(stage, &stage->stats[1].waiting, 1);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_order_and_ack),
        CASE(test_prefetch_and_death),
        CASE(test_resume),
        CASE(test_remove_after_the_end),
        CASE(test_resume_of_many),
        CASE(test_resume_of_times),
        CASE(test_resume_of_letters),
        CASE(test_scan_that_fails),
        CASE(test_resume_with_open_key),
        CASE(test_priority_and_delay),
        CASE(test_refuse_and_dead_letters),
        CASE(test_letter_waits_for_origin),
        CASE(test_letter_and_two_deaths),
        CASE(test_divert_and_death),
        CASE(test_move_and_death),
        CASE(test_ids_and_keys),
        CASE(test_key_comes_back),
        CASE(test_full),
        CASE(test_look),
        CASE(test_memory),
        CASE(test_lease),
        CASE(test_nonsense),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
