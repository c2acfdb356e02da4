/* SPDX-License-Identifier: Apache-2.0
 *
 * Servers that lie to their clients, clients that lie to their servers, and what those who share a segment can do to it: an
 * honest server and an honest client of other users go on.
 */
#include "tests/support/hostile.h"

#include <sched.h>

#include "ipc/segment.h"
#include "ipc/service.h"
#include "libipc/lane/reader.h"

#define KIND(name) IPC__CONTROL__KIND__KIND_##name
#define RING       4096u

static ipc_connection *serving, *calling;
static ipc_server *server;
static ipc_client *client;
static struct raw_client attacker;

static uint64_t subscribe_kind(const char *service, unsigned kind)
{
    Ipc__Control__Subscribe message = IPC__CONTROL__SUBSCRIBE__INIT;
    message.pattern = (char *)(uintptr_t)service;
    message.slow = IPC__CONTROL__SLOW__SLOW_BLOCK;
    message.kind = (Ipc__Control__Kind)kind;
    raw_send(&attacker, TYPE(SUBSCRIBE), &message.base);
    return ((const Ipc__Control__Subscribed *)hostile_wait(&attacker, TYPE(SUBSCRIBED)))->subscription;
}

static void advertise_kind(struct held_lane *lane, const char *service, unsigned kind, uint64_t target)
{
    Ipc__Control__Advertise message = IPC__CONTROL__ADVERTISE__INIT;
    message.topic = (char *)(uintptr_t)service;
    message.ring_size = RING;
    message.kind = (Ipc__Control__Kind)kind;
    message.target = target;
    raw_send(&attacker, TYPE(ADVERTISE), &message.base);
    (void)hostile_wait(&attacker, TYPE(ADVERTISED));
    held_lane_map(lane, &attacker);
}

static void put(struct held_lane *lane, const void *body, uint32_t size, uint32_t flags)
{
    unsigned char *at;
    EXPECT_EQ(lane_writer_reserve(&lane->writer, size, &at), 0);
    memcpy(at, body, size);
    lane_writer_commit(&lane->writer, size, flags);
}

/* The honest server answers what is there with twice the number. Returns how many there were. */
static unsigned serve(void)
{
    struct ipc_request *request;
    uint64_t number = 0;
    unsigned n = 0;
    ssize_t size;
    while ((size = ipc_server_receive(server, NULL, 0, &request, 0)) >= 0) {
        if (size == sizeof(number))
            memcpy(&number, request->data, sizeof(number));
        number *= 2;
        int result = ipc_request_reply(request, &number, sizeof(number), NULL);
        EXPECT(result == 0 || result == -EPIPE);
        n++;
    }
    EXPECT_EQ(size, -EAGAIN);
    return n;
}

static ipc_call *ask(uint64_t number)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    ipc_call *call;
    options.flags = IPC_CALL_WAIT;
    options.timeout_ns = IPC_FOREVER;
    EXPECT_EQ(ipc_call_start(&call, client, &number, sizeof(number), &options), 0);
    return call;
}

/* The call is answered, by the right one, and once. */
static void expect_answer(ipc_call *call, uint64_t number)
{
    struct ipc_reply reply;
    uint64_t got;
    int result;
    while ((result = ipc_call_wait(call, 0)) == -EAGAIN) {
        serve();
        sched_yield();
    }
    EXPECT_EQ(result, 0);
    EXPECT_EQ(ipc_call_next(call, &reply, 0), 1);
    EXPECT_EQ(reply.code, 0);
    EXPECT_EQ(reply.size, sizeof(got));
    memcpy(&got, reply.data, sizeof(got));
    EXPECT_EQ(got, 2 * number);
    EXPECT_EQ(ipc_call_next(call, &reply, 0), 0);
    ipc_call_free(call);
}

static int setup(void **state)
{
    hostile_setup(state);
    serving = hostile_connection(WHO_PEER);
    calling = hostile_connection(WHO_CALM);
    EXPECT_EQ(ipc_server_open(&server, serving, "honest", NULL, NULL), 0);
    EXPECT_EQ(ipc_client_open(&client, calling, "honest", NULL, NULL), 0);
    expect_answer(ask(1), 1);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    return 0;
}

static int teardown(void **state)
{
    expect_answer(ask(7), 7);
    hostile_alive(&attacker); /* between two clients the accuser may be the liar: nobody loses a session */
    raw_disconnect(&attacker);
    ipc_client_close(client);
    ipc_server_close(server);
    ipc_connection_close(calling);
    ipc_connection_close(serving);
    return hostile_teardown(state);
}

/* ---- a client that lies ---------------------------------------------------------------------------------- */

enum outcome { READS, CORRUPT };

struct call_lie {
    const char *name;
    enum outcome outcome;
    unsigned requests; /* that its server gets */
    int64_t pairing;   /* more than its own */
    uint64_t deadline;
    uint32_t operation, size, flags;
    unsigned times;
};

static void test_calls_that_lie(void **state)
{
    const uint32_t whole = sizeof(struct ipc_call_head) + 8;
    const struct call_lie lies[] = {
        {"a call", READS, 1, 0, 0, IPC_OPERATION_CALL, whole, 0, 1},
        {"of no payload", READS, 1, 0, 0, IPC_OPERATION_CALL, whole - 8, 0, 1},
        {"the same call three times", READS, 3, 0, 0, IPC_OPERATION_CALL, whole, 0, 3},
        {"for another server", READS, 0, 1, 0, IPC_OPERATION_CALL, whole, 0, 1},
        {"for the server before", READS, 0, -1, 0, IPC_OPERATION_CALL, whole, 0, 1},
        {"too late", READS, 0, 0, 1, IPC_OPERATION_CALL, whole, 0, 1},
        {"of operation 0", READS, 0, 0, 0, 0, whole, 0, 1},
        {"of operation 3", READS, 0, 0, 0, 3, whole, 0, 1},
        {"of all operations", READS, 0, 0, 0, UINT32_MAX, whole, 0, 1},
        {"cancels what never was", READS, 0, 0, 0, IPC_OPERATION_CANCEL, whole, 0, 50},
        {"of no bytes", CORRUPT, 0, 0, 0, IPC_OPERATION_CALL, 0, 0, 1},
        {"of half a head", CORRUPT, 0, 0, 0, IPC_OPERATION_CALL, sizeof(struct ipc_call_head) - 1, 0, 1},
        {"with headers of no size", CORRUPT, 0, 0, 0, IPC_OPERATION_CALL, whole, IPC_RECORD_HEADERS, 1},
        {"with headers in no bytes", CORRUPT, 0, 0, 0, IPC_OPERATION_CALL, whole - 8, IPC_RECORD_HEADERS, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        const struct call_lie *lie = &lies[i];
        struct held_lane lane;
        struct ipc_cells *cells;
        unsigned char body[64] = {0};
        unsigned got = 0;
        watchdog(60, lie->name);
        uint64_t inbox = subscribe_kind("honest", KIND(INBOX));
        advertise_kind(&lane, "honest", KIND(CALL), inbox);
        uint64_t pairing = held_lane_admit(&lane, &attacker, &cells);
        const struct ipc_call_head head = {.id = 1,
                                           .pairing = pairing + (uint64_t)lie->pairing,
                                           .deadline_ns = lie->deadline,
                                           .operation = lie->operation};
        memcpy(body, &head, sizeof(head));
        for (unsigned k = 0; k < lie->times; k++)
            put(&lane, body, lie->size, lie->flags);
        if (lie->outcome == CORRUPT) {
            int type;
            while ((type = raw_recv(&attacker, MSG_DONTWAIT)) != TYPE(READER_DEL)) {
                EXPECT(type >= 0);
                EXPECT_EQ(serve(), 0);
                sched_yield();
            }
            EXPECT_EQ(((const Ipc__Control__ReaderDel *)(const void *)attacker.frame.message)->reason,
                      IPC_REASON_CORRUPT);
            raw_confirm(&attacker, TYPE(READER_DEL), pairing, 0);
        } else {
            while (atomic_load(&cells->cells[lane.writer.peers[0].cell - cells->cells].cursor) <
                   lane.writer.position) {
                got += serve();
                sched_yield();
            }
            got += serve();
            EXPECT_EQ(got, lie->requests);
        }
        expect_answer(ask(i), i);
        lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
        hostile_unsubscribe(&attacker, inbox);
        hostile_unadvertise(&attacker, lane.id);
        held_lane_close(&lane);
    }
    hostile_log_expect("detached", "reason=corrupt", "honest", NULL);
}

/* ---- a server that lies ---------------------------------------------------------------------------------- */

struct reply_lie {
    const char *name;
    bool truth; /* it is passed over, and the true answer counts */
    int result; /* of ipc_call_next() */
    int64_t id; /* more than that of the call */
    int32_t code;
    uint32_t flags, size, record_flags;
};

/* The other client: of the service of the attacker, which is its only server. */
static void test_replies_that_lie(void **state)
{
    const uint32_t whole = sizeof(struct ipc_reply_head) + 8;
    const struct reply_lie lies[] = {
        {"an answer", false, 1, 0, 0, IPC_REPLY_END, whole, 0},
        {"of no payload", false, 1, 0, 0, IPC_REPLY_END, whole - 8, 0},
        {"of all flags", false, 0, 0, 0, UINT32_MAX, whole, 0},
        {"empty, with a payload", false, 0, 0, 0, IPC_REPLY_END | IPC_REPLY_EMPTY, whole, 0},
        {"an error without its sentence", false, -EREMOTEIO, 0, -5, IPC_REPLY_END | IPC_REPLY_ERROR,
         whole - 8, 0},
        {"an error whose sentence has no end", false, -EREMOTEIO, 0, -5, IPC_REPLY_END | IPC_REPLY_ERROR,
         whole, 0},
        {"an error of code 0", false, -EREMOTEIO, 0, 0, IPC_REPLY_END | IPC_REPLY_ERROR, whole, 0},
        {"to a call of nobody", true, 1, 1 << 20, 0, IPC_REPLY_END, whole, 0},
        {"to the call before", true, 1, -(1 << 16), 0, IPC_REPLY_END, whole, 0},
        {"to another place", true, 1, 1, 0, IPC_REPLY_END, whole, 0},
        {"to the last place", true, 1, 65535, 0, IPC_REPLY_END, whole, 0},
        {"of no bytes", false, -EPIPE, 0, 0, IPC_REPLY_END, 0, 0},
        {"of half a head", false, -EPIPE, 0, 0, IPC_REPLY_END, sizeof(struct ipc_reply_head) - 1, 0},
        {"with headers of no size", false, -EPIPE, 0, 0, IPC_REPLY_END, whole, IPC_RECORD_HEADERS},
        {"with headers in no bytes", false, -EPIPE, 0, 0, IPC_REPLY_END, whole - 8, IPC_RECORD_HEADERS},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        const struct reply_lie *lie = &lies[i];
        struct held_lane replies;
        struct held_cell calls;
        struct lane_reader reader;
        struct lane_record record;
        struct ipc_cells *cells;
        struct ipc_call_head head;
        struct ipc_reply reply;
        unsigned char body[64];
        watchdog(60, lie->name);
        ipc_client *honest = client, *victim;
        uint64_t serves = subscribe_kind("lies", KIND(SERVE));
        EXPECT_EQ(ipc_client_open(&victim, calling, "lies", NULL, NULL), 0);
        client = victim;
        ipc_call *call = ask(5);
        client = honest;
        held_cell_open(&calls, &attacker, NULL);
        lane_reader_init(&reader, calls.lane, (const unsigned char *)calls.lane + IPC_LAYOUT_PAGE,
                         calls.ring_size, 0, calls.cell, calls.pairing, IPC__CONTROL__START__START_OLDEST,
                         true, false);
        while (lane_reader_peek(&reader, &record) <= 0)
            EXPECT_EQ(ipc_call_wait(call, 0), -EAGAIN);
        memcpy(&head, record.body, sizeof(head));
        advertise_kind(&replies, "lies", KIND(REPLY), calls.pairing);
        (void)held_lane_admit(&replies, &attacker, &cells);
        memset(body, 'x', sizeof(body));
        const struct ipc_reply_head lied = {
            .id = head.id + (uint64_t)lie->id, .code = lie->code, .flags = lie->flags};
        memcpy(body, &lied, sizeof(lied));
        put(&replies, body, lie->size, lie->record_flags);
        const struct ipc_reply_head truth = {.id = head.id, .flags = IPC_REPLY_END};
        memcpy(body, &truth, sizeof(truth)); /* the truth, or a second answer */
        memcpy(body + sizeof(truth), &(uint64_t){10}, 8);
        put(&replies, body, whole, 0);
        while (ipc_call_wait(call, 0) == -EAGAIN)
            sched_yield();
        EXPECT_EQ(ipc_call_next(call, &reply, 0), lie->result);
        EXPECT(strlen(reply.text) < 600);
        if (lie->truth)
            EXPECT(reply.size == 8 && memcmp(reply.data, &(uint64_t){10}, 8) == 0);
        EXPECT(ipc_call_next(call, &reply, 0) != 1); /* no second one */
        ipc_call_free(call);
        expect_answer(ask(i), i);
        ipc_client_close(victim);
        lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
        hostile_unsubscribe(&attacker, serves);
        hostile_unadvertise(&attacker, replies.id);
        held_lane_close(&replies);
        held_cell_close(&calls);
        raw_disconnect(&attacker);
        hostile_hello(&attacker, WHO_ATTACKER, "attacker");
    }
}

static void put_when_read(struct held_lane *lane, const void *body, uint32_t size, ipc_call *open)
{
    uint32_t stride = ipc_record_stride(size);
    while (!lane_writer_has_room(&lane->writer, stride) && lane_writer_make_room(&lane->writer, stride) < 0)
        EXPECT_EQ(ipc_call_wait(open, 0), -EAGAIN);
    put(lane, body, size, 0);
}

/* One client, two servers of one service: the attacker answers the call that the other one has. */
static void test_replies_to_calls_of_others(void **state)
{
    struct held_lane replies;
    struct held_cell calls;
    struct lane_reader reader;
    struct lane_record record;
    struct ipc_cells *cells;
    struct ipc_call_head head;
    struct ipc_request *request;
    uint64_t number;
    (void)state;
    ipc_call *first = ask(21);
    while (ipc_server_receive(server, &number, sizeof(number), &request, 0) < 0)
        EXPECT_EQ(ipc_call_wait(first, 0), -EAGAIN);
    (void)subscribe_kind("honest", KIND(SERVE));
    ipc_call *between = ask(23); /* the server is busy: another lane is opened, which goes to the other one */
    held_cell_open(&calls, &attacker, NULL);
    EXPECT_EQ(ipc_call_wait(first, 0), -EAGAIN);
    ipc_call *second = ask(22);
    lane_reader_init(&reader, calls.lane, (const unsigned char *)calls.lane + IPC_LAYOUT_PAGE,
                     calls.ring_size, 0, calls.cell, calls.pairing, IPC__CONTROL__START__START_OLDEST, true,
                     false);
    while (lane_reader_peek(&reader, &record) <= 0)
        EXPECT_EQ(ipc_call_wait(second, 0), -EAGAIN);
    memcpy(&head, record.body, sizeof(head));
    advertise_kind(&replies, "honest", KIND(REPLY), calls.pairing);
    (void)held_lane_admit(&replies, &attacker, &cells);
    struct {
        struct ipc_reply_head head;
        uint64_t number;
    } body = {.number = 666};
    body.head.flags = IPC_REPLY_END;
    for (uint64_t serial = 0; serial < 16; serial++)
        for (uint64_t place = 0; place < 64; place++) { /* whichever it has */
            body.head.id = serial << 16 | place;
            if (body.head.id != head.id)
                put_when_read(&replies, &body, sizeof(body), first);
        }
    body.head.id = head.id;
    body.number = 44;
    put_when_read(&replies, &body, sizeof(body), first);
    expect_answer(second, 22);
    EXPECT_EQ(ipc_call_wait(first, 0), -EAGAIN);
    EXPECT_EQ(ipc_request_reply(request, &(uint64_t){42}, sizeof(uint64_t), NULL), 0);
    expect_answer(first, 21);
    expect_answer(between, 23);
    lane_segment_unmap(cells, IPC_SEGMENT_CELLS, 0);
    held_lane_close(&replies);
    held_cell_close(&calls);
    raw_disconnect(&attacker);
    hostile_hello(&attacker, WHO_ATTACKER, "attacker");
}

/* ---- shared segments ------------------------------------------------------------------------------------- */

static void look_at_segments(unsigned n)
{
    Ipc__Control__List list = IPC__CONTROL__LIST__INIT;
    list.kind = IPC__CONTROL__LIST_KIND__LIST_SEGMENTS;
    raw_send(&attacker, TYPE(LIST), &list.base);
    EXPECT_EQ(((const Ipc__Control__Page *)hostile_wait(&attacker, TYPE(PAGE)))->n_items, n);
}

static void test_a_segment_scribbled_over(void **state)
{
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    uint64_t random = 88172645463325252;
    ipc_segment *segment, *mine, *theirs;
    (void)state;
    ipc_connection *evil = hostile_connection(WHO_ATTACKER);
    options.bytes = 64;
    options.permits = 4;
    options.flags = IPC_SEGMENT_CREATE | IPC_SEGMENT_KEEP;
    EXPECT_EQ(ipc_segment_open(&mine, serving, "mine", &options, NULL), 0);
    EXPECT_EQ(ipc_segment_open(&theirs, evil, "mine", NULL, NULL), -EACCES);
    options.mode = 0666;
    EXPECT_EQ(ipc_segment_open(&segment, serving, "ours", &options, NULL), 0);
    EXPECT_EQ(ipc_segment_open(&theirs, evil, "ours", NULL, NULL), 0);
    unsigned char *page = (unsigned char *)ipc_segment_data(theirs) - IPC_LAYOUT_PAGE;
    struct ipc_shared *shared = (struct ipc_shared *)(void *)page;
    const struct hostile_area area = {page, IPC_LAYOUT_PAGE + 64, 4096};
    for (unsigned i = 0; i < 200; i++) {
        watchdog(60, "a segment is scribbled over");
        hostile_scribble(&area, 1, 10000, &random);
        look_at_segments(2);
        int permit = ipc_segment_acquire(segment, 0);
        EXPECT(permit >= -EAGAIN && permit < 4);
        EXPECT(permit >= 0 || permit == -EAGAIN);
        if (permit >= 0)
            (void)ipc_segment_release(segment, permit);
        for (int k = 0; k < 4; k++) /* its own neighbour is as it should be */
            EXPECT_EQ(ipc_segment_acquire(mine, 0), k);
        EXPECT_EQ(ipc_segment_acquire(mine, 0), -EAGAIN);
        for (int k = 0; k < 4; k++)
            EXPECT_EQ(ipc_segment_release(mine, k), 0);
    }
    /* Owner words of others: of the honest one, of the liar, of nobody that there is. */
    for (unsigned i = 0; i < IPC_MAX_PERMITS; i++)
        atomic_store(&shared->owners[i], i % 2 ? UINT64_MAX : atomic_load(&shared->owners[0]));
    for (unsigned i = 0; i < IPC_SHARED_WAITERS; i++)
        atomic_store(&shared->waiters[i], UINT64_MAX - i);
    look_at_segments(2);
    ipc_connection_close(evil); /* closes its segment, too */
    look_at_segments(2);
    ipc_segment_close(segment);
    EXPECT_EQ(ipc_segment_remove(serving, "ours", NULL), 0); /* it can be got rid of, and had anew */
    look_at_segments(1);
    EXPECT_EQ(ipc_segment_open(&segment, serving, "ours", &options, NULL), 0);
    EXPECT_EQ(ipc_segment_acquire(segment, 0), 0);
    ipc_segment_close(segment);
    ipc_segment_close(mine);
    EXPECT_EQ(ipc_segment_remove(serving, "ours", NULL), 0);
    EXPECT_EQ(ipc_segment_remove(serving, "mine", NULL), 0);
}

static int tests(void)
{
#define ATTACK(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest all[] = {
        ATTACK(test_calls_that_lie),
        ATTACK(test_replies_that_lie),
        ATTACK(test_replies_to_calls_of_others),
        ATTACK(test_a_segment_scribbled_over),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}

int main(int argc, char **argv)
{
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* one of them */
    return hostile_run("hostile/test_services", tests);
}
