/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq beside a zmq_proxy: the same outside programs, and between them the gateway instead of the proxy. All sockets hold
 * 10,000 messages, which is far more than are on the way: a PUB drops what its subscriber may have read long ago, because it
 * hears of that late. Sender and receiver are pinned, what is between them is left to the scheduler.
 */
#include "bench/gateway.h"

#ifdef IPC_HAVE_ZMQ
# include <errno.h>
# include <libgen.h>
# include <limits.h>
# include <signal.h>
# include <stdatomic.h>
# include <stdlib.h>
# include <string.h>
# include <sys/prctl.h>
# include <sys/wait.h>
# include <unistd.h>
# include <zmq.h>

# include "bench/topic.h"
#endif

#define SIZE    GATEWAY_SIZE
#define WATER   10000
#define WINDOW  1024u
#define ACK     64u
#define QUEUE   "bench.zmq.queue"
#define STALLED "bench.zmq.stalled"
#define SERVICE "bench.zmq.service"

enum {
    V_PUSH,
    V_PROXY_PUSH,
    V_SUB,
    V_PROXY_SUB,
    V_CALL,
    V_PROXY_CALL,
    V_PULL,
    V_SUB_LATE,
    V_SUB_BESIDE,
    V_PULL_BESIDE,
    V_TICKS,
    V_SLEEPS,
};

#ifdef IPC_HAVE_ZMQ
/* ---- sockets --------------------------------------------------------------------------------------------- */

/* What the roles of a trial share besides the stream: where they connect to. */
struct outside {
    char front[128], back[128]; /* sender's and receiver's */
    char router[128];           /* of a gateway's subscriber; "" */
};

struct end {
    void *context, *socket;
};

static void *socket_open(void *context, int type)
{
    const int water = WATER;
    void *socket = zmq_socket(context, type);

    if (socket)
        (void)(zmq_setsockopt(socket, ZMQ_SNDHWM, &water, sizeof(water)) |
               zmq_setsockopt(socket, ZMQ_RCVHWM, &water, sizeof(water)));
    return socket;
}

static int end_open(struct bench_seat *seat, struct end *end, int type, const char *address)
{
    end->context = zmq_ctx_new();
    end->socket = socket_open(end->context, type);
    return end->socket && zmq_connect(end->socket, address) == 0
               ? 0
               : bench_fail(seat, "%s: %s", address, zmq_strerror(zmq_errno()));
}

static int end_close(struct end *end)
{
    const int none = 0;

    zmq_setsockopt(end->socket, ZMQ_LINGER, &none, sizeof(none));
    zmq_close(end->socket);
    return zmq_ctx_term(end->context);
}

static int zmq_failed(struct bench_seat *seat, const char *what)
{
    return bench_fail(seat, "%s: %s", what, zmq_strerror(zmq_errno()));
}

/* A message whose parts are texts, but for the last. */
static int send_parts(void *socket, const char *const *texts, const void *data, size_t size)
{
    for (; *texts; texts++)
        if (zmq_send(socket, *texts, strlen(*texts), ZMQ_SNDMORE) < 0)
            return -1;
    return zmq_send(socket, data, size, 0) < 0 ? -1 : 0;
}

/* The next message: its last part, and (or NULL) the `which`th, counted from 0, terminated. Its size or -1. */
static int receive_parts(void *socket, void *last, size_t capacity, unsigned which, char text[64])
{
    char part[512];
    int more = 1, size = 0;
    size_t more_size = sizeof(more);

    for (unsigned i = 0; more; i++) {
        size = zmq_recv(socket, part, sizeof(part), 0);
        if (size < 0 || zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &more_size) < 0)
            return -1;
        if (i == which && text)
            snprintf(text, 64, "%.*s", size < 63 ? size : 63, part);
    }
    memcpy(last, part, (size_t)size < capacity ? (size_t)size : capacity);
    return size;
}

static void gateway_address(char address[128], const char *endpoint)
{
    char copy[PATH_MAX];

    snprintf(copy, sizeof(copy), "%s", getenv("IPC_ADDRESS"));
    snprintf(address, 128, "ipc://%.90s/zmq-%s", dirname(copy), endpoint);
}

static int command(struct bench_seat *seat, struct end *end, const char *const *texts, const char *answer)
{
    char got[64] = "", last[256];

    if (send_parts(end->socket, texts, "", 0) < 0 ||
        receive_parts(end->socket, last, sizeof(last), 1, got) < 0)
        return zmq_failed(seat, texts[1]);
    return strcmp(got, answer) == 0 ? 0 : bench_fail(seat, "%s is answered by %s", texts[1], got);
}

static int greet(struct bench_seat *seat, struct end *end, const char *address)
{
    static const char *const hello[] = {"IPC1", "HELLO", "h", "", NULL};

    return end_open(seat, end, ZMQ_DEALER, address) < 0 ? -1 : command(seat, end, hello, "WELCOME");
}

/* ---- the proxy ------------------------------------------------------------------------------------------- */

static _Noreturn void be_proxy(const struct outside *outside, const int types[2], int ready, pid_t parent)
{
    const char *const addresses[2] = {outside->front, outside->back};
    void *context = zmq_ctx_new(), *sockets[2];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    for (int i = 0; i < 2; i++) {
        sockets[i] = socket_open(context, types[i]);
        if (!sockets[i] || zmq_bind(sockets[i], addresses[i]) != 0)
            _exit(1);
    }
    if (write(ready, "", 1) == 1)
        zmq_proxy(sockets[0], sockets[1], NULL);
    _exit(1);
}

static pid_t proxy_start(struct outside *outside, int front, int back)
{
    static unsigned used;
    const int types[2] = {front, back};
    int ready[2];
    pid_t parent = getpid();
    char byte;

    snprintf(outside->front, sizeof(outside->front), "ipc://@ipc-bench-%d-%u-front", (int)parent, used);
    snprintf(outside->back, sizeof(outside->back), "ipc://@ipc-bench-%d-%u-back", (int)parent, used++);
    if (pipe(ready) < 0)
        return -1;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        be_proxy(outside, types, ready[1], parent);
    close(ready[1]);
    bool good = pid > 0 && read(ready[0], &byte, 1) == 1;
    close(ready[0]);
    if (!good)
        fprintf(stderr, "ipc-bench: no zmq_proxy\n");
    return good ? pid : -1;
}

static void proxy_stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- outside --------------------------------------------------------------------------------------------- */

static int push(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    const char *const texts[] = {QUEUE, NULL};
    unsigned char data[SIZE] = {0};
    struct end end;

    if (end_open(seat, &end, ZMQ_PUSH, outside->front) < 0)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        memcpy(data, &n, sizeof(n));
        if (send_parts(end.socket, texts, data, SIZE) < 0)
            return zmq_failed(seat, "push");
    }
    bench_end(seat);
    bench_meet(seat);
    return end_close(&end);
}

/* It waits for a subscriber, which a PUB cannot see. */
static int publish(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    const char *const texts[] = {stream->topic, NULL};
    unsigned char data[SIZE] = {0};
    struct end end;

    if (end_open(seat, &end, ZMQ_XPUB, outside->front) < 0 ||
        receive_parts(end.socket, data, sizeof(data), 0, NULL) < 1)
        return zmq_failed(seat, "subscription");
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        gateway_pace(stream, n);
        memcpy(data, &n, sizeof(n));
        if (send_parts(end.socket, texts, data, SIZE) < 0)
            return zmq_failed(seat, "publish");
    }
    bench_end(seat);
    bench_meet(seat);
    return end_close(&end);
}

static int check(struct bench_seat *seat, int size, const void *data, uint64_t wanted)
{
    uint64_t got;

    memcpy(&got, data, sizeof(got));
    if (size < 0)
        return bench_fail(seat, "%s", zmq_strerror(zmq_errno()));
    return size == SIZE && got == wanted
               ? 0
               : bench_fail(seat, "message %llu of %d bytes instead of %llu", (unsigned long long)got, size,
                            (unsigned long long)wanted);
}

/* PULL or SUB. values[0]: messages per second of the last two thirds; who does not read has been sent by then what he and
 * the sockets hold. */
static int take_all(struct bench_seat *seat, const struct gateway_stream *stream, struct end *end)
{
    const uint64_t first = stream->count / 3;
    unsigned char data[SIZE];
    uint64_t first_ns = 0;

    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; gateway_taken(stream, ++n)) {
        if (n == first)
            first_ns = bench_now_ns();
        if (check(seat, receive_parts(end->socket, data, SIZE, 0, NULL), data, n) < 0)
            return -1;
    }
    bench_end(seat);
    seat->values[0] = (double)(stream->count - first) * 1e9 / (double)(seat->end_ns - first_ns);
    bench_meet(seat);
    return end_close(end);
}

static int pull(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    struct end end;

    return end_open(seat, &end, ZMQ_PULL, outside->back) < 0 ? -1 : take_all(seat, stream, &end);
}

/* The gateway knows of everything that it subscribed to: there may be other subscribers of the topic. */
static int wait_subscribed(struct bench_seat *seat, struct end *end, const char *router)
{
    char word[32];
    const char *const sync[] = {"IPC1", "SYNC", word, NULL};
    struct end dealer;

    snprintf(word, sizeof(word), "\n%d", (int)getpid());
    if (zmq_setsockopt(end->socket, ZMQ_SUBSCRIBE, word, strlen(word)) != 0)
        return zmq_failed(seat, "subscribe");
    return greet(seat, &dealer, router) < 0 || command(seat, &dealer, sync, "OK") < 0 ? -1
                                                                                      : end_close(&dealer);
}

static int subscribe_to(struct bench_seat *seat, const struct gateway_stream *stream, struct end *end)
{
    const struct outside *outside = stream->outside;

    if (end_open(seat, end, ZMQ_SUB, outside->back) < 0)
        return -1;
    if (zmq_setsockopt(end->socket, ZMQ_SUBSCRIBE, stream->topic, strlen(stream->topic)) != 0)
        return zmq_failed(seat, "subscribe");
    return *outside->router ? wait_subscribed(seat, end, outside->router) : 0;
}

static int subscribe(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    struct end end;

    return subscribe_to(seat, stream, &end) < 0 ? -1 : take_all(seat, stream, &end);
}

/* Someone who does not read. */
static int stall(struct bench_seat *seat, struct end *end)
{
    bench_begin(seat);
    bench_end(seat);
    bench_meet(seat);
    return end_close(end);
}

static int subscribe_and_stall(struct bench_seat *seat, void *argument)
{
    struct end end;

    return subscribe_to(seat, argument, &end) < 0 ? -1 : stall(seat, &end);
}

/* ---- at the router --------------------------------------------------------------------------------------- */

static int begin_pull(struct bench_seat *seat, const struct gateway_stream *stream, const char *queue,
                      struct end *end)
{
    const struct outside *outside = stream->outside;
    char properties[96];
    const char *const texts[] = {"IPC1", "PULL", "p", queue, properties, NULL};

    snprintf(properties, sizeof(properties), "{\"credit\":%llu,\"window\":%u}",
             (unsigned long long)stream->count, WINDOW);
    return greet(seat, end, outside->back) < 0 ? -1 : command(seat, end, texts, "OK");
}

static int pull_acknowledged(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    unsigned char data[SIZE];
    char first[64] = "", last[64], range[129];
    const char *const ack[] = {"IPC1", "ACK", range, NULL};
    static const char *const stop[] = {"IPC1", "STOP", "s", QUEUE, NULL};
    struct end end;

    if (begin_pull(seat, stream, QUEUE, &end) < 0)
        return -1;
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; gateway_taken(stream, ++n)) {
        if (check(seat, receive_parts(end.socket, data, SIZE, 2, n % ACK ? last : first), data, n) < 0)
            return -1;
        if (n % ACK != ACK - 1)
            continue;
        snprintf(range, sizeof(range), "%s-%s", first, last);
        if (send_parts(end.socket, ack, QUEUE, strlen(QUEUE)) < 0)
            return zmq_failed(seat, "ACK");
    }
    bench_end(seat);
    if (command(seat, &end, stop, "OK") < 0) /* and the last ACK was heard */
        return -1;
    bench_meet(seat);
    return end_close(&end);
}

static int pull_and_stall(struct bench_seat *seat, void *argument)
{
    struct end end;

    return begin_pull(seat, argument, STALLED, &end) < 0 ? -1 : stall(seat, &end);
}

/* Calls one at a time: of a DEALER at the router, of a REQ at the proxy. */
static int call_all(struct bench_seat *seat, const struct gateway_stream *stream, struct end *end,
                    const char *const *texts)
{
    unsigned char data[SIZE] = {0};
    struct bench_sample sample;

    bench_sample_init(&sample, stream->count);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        uint64_t before = bench_ticks();

        memcpy(data, &n, sizeof(n));
        if (send_parts(end->socket, texts, data, SIZE) < 0 ||
            check(seat, receive_parts(end->socket, data, SIZE, 0, NULL), data, n) < 0)
            return zmq_failed(seat, "call");
        bench_sample_add(&sample, bench_ticks() - before);
    }
    bench_end(seat);
    seat->values[0] = bench_sample_quantile(&sample, 0.5);
    bench_meet(seat);
    return end_close(end);
}

static int call(struct bench_seat *seat, void *argument)
{
    static const char *const texts[] = {"IPC1", "CALL", "c", SERVICE, "", NULL};
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    struct end end;

    bench_meet(seat); /* the server is there */
    return greet(seat, &end, outside->front) < 0 ? -1 : call_all(seat, stream, &end, texts);
}

static int request(struct bench_seat *seat, void *argument)
{
    static const char *const none[] = {NULL};
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    struct end end;

    bench_meet(seat);
    return end_open(seat, &end, ZMQ_REQ, outside->front) < 0 ? -1 : call_all(seat, stream, &end, none);
}

static int reply(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    unsigned char data[SIZE];
    struct end end;

    if (end_open(seat, &end, ZMQ_REP, outside->back) < 0)
        return -1;
    bench_meet(seat);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++)
        if (zmq_recv(end.socket, data, SIZE, 0) != SIZE || zmq_send(end.socket, data, SIZE, 0) < 0)
            return zmq_failed(seat, "reply");
    bench_end(seat);
    bench_meet(seat);
    return end_close(&end);
}

static int serve(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    unsigned char data[SIZE];
    ipc_connection *connection;
    ipc_server *server;

    options.spin_max_ns = 0;
    if (topic_connect(seat, &connection) < 0 ||
        ipc_server_open(&server, connection, SERVICE, &options, NULL) < 0)
        return bench_fail(seat, "no server");
    bench_meet(seat);
    bench_begin(seat);
    for (uint64_t n = 0; n < stream->count; n++) {
        struct ipc_request *asked;

        if (ipc_server_receive(server, data, SIZE, &asked, IPC_FOREVER) != SIZE ||
            ipc_request_reply(asked, data, SIZE, NULL) < 0)
            return bench_fail(seat, "echo of a service");
    }
    bench_end(seat);
    bench_meet(seat);
    ipc_connection_close(connection);
    return 0;
}

/* ---- one repetition -------------------------------------------------------------------------------------- */

typedef int role(struct bench_seat *seat, void *argument);

/* Sender, receiver, and (or NULL) one that stalls. Rate, or p50 of the sender's calls; the receiver's values[0]. */
static int play(double *ret, double *ret_late, bool calls, role *sender, role *receiver, role *third,
                struct gateway_stream *stream)
{
    struct bench_role roles[] = {{0, sender, stream}, {1, receiver, stream}, {BENCH_ANYWHERE, third, stream}};
    struct bench_seat seats[3];

    stream->taken = bench_shared(sizeof(*stream->taken));
    if (bench_play(roles, third ? 3 : 2, seats) < 0)
        return -1;
    *ret = calls ? seats[0].values[0]
                 : (double)stream->count * 1e9 / (double)(seats[1].end_ns - seats[0].start_ns);
    *ret_late = seats[1].values[0];
    return 0;
}

/* A first level of its own: a prefix is served by whole levels. */
static const char *new_topic(void)
{
    static char name[TOPIC_NAME_SIZE];
    static unsigned used;

    snprintf(name, sizeof(name), "bench-zmq-%u.topic", used++);
    return name;
}

static int proxy_run(double *values)
{
    static const struct {
        int front, back;
        unsigned value;
        role *sender, *receiver;
    } trials[] = {{ZMQ_PULL, ZMQ_PUSH, V_PROXY_PUSH, push, pull},
                  {ZMQ_XSUB, ZMQ_XPUB, V_PROXY_SUB, publish, subscribe},
                  {ZMQ_ROUTER, ZMQ_DEALER, V_PROXY_CALL, request, reply}};
    int result = 0;

    for (size_t i = 0; i < sizeof(trials) / sizeof(*trials) && result == 0; i++) {
        bool calls = trials[i].front == ZMQ_ROUTER;
        struct outside outside = {.router = ""};
        struct gateway_stream stream = {
            .count = bench_count(calls ? 5000 : 300000), .topic = new_topic(), .outside = &outside};
        pid_t proxy = proxy_start(&outside, trials[i].front, trials[i].back);

        if (proxy < 0)
            return -1;
        result = play(&values[trials[i].value], &(double){0}, calls, trials[i].sender, trials[i].receiver,
                      NULL, &stream);
        proxy_stop(proxy);
    }
    return result;
}

static int push_run(double *ret)
{
    struct outside outside = {.router = ""};
    struct gateway_stream stream = {.count = bench_count(300000), .queue = QUEUE, .outside = &outside};

    gateway_address(outside.front, "push");
    return play(ret, &(double){0}, false, push, gateway_receive, NULL, &stream);
}

static int sub_run(double *ret, double *ret_late, role *third)
{
    struct outside outside = {.router = ""};
    struct gateway_stream stream = {.count = bench_count(300000), .topic = new_topic(), .outside = &outside};

    gateway_address(outside.back, "sub");
    gateway_address(outside.router, "router");
    return play(ret, ret_late, false, gateway_send, subscribe, third, &stream);
}

static int pull_run(double *ret, role *third)
{
    struct outside outside = {.router = ""};
    struct gateway_stream stream = {.count = bench_count(192000), .queue = QUEUE, .outside = &outside};

    gateway_address(outside.back, "router");
    return play(ret, &(double){0}, false, gateway_send, pull_acknowledged, third, &stream);
}

static int call_run(double *ret)
{
    struct outside outside = {.router = ""};
    struct gateway_stream stream = {.count = bench_count(5000), .outside = &outside};

    gateway_address(outside.front, "router");
    return play(ret, &(double){0}, true, call, serve, NULL, &stream);
}

static int start(struct gateway_program *gateway)
{
    static const char *const queues[] = {QUEUE, STALLED, NULL};

    return gateway_queues(queues) < 0 ? -1
                                      : gateway_start(gateway, "ipcd-zmq", "[gateway]\nhigh-water = 10000\n");
}

static int measure(double *values)
{
    struct gateway_stream stalled = {.count = 20000, .queue = STALLED};
    struct bench_role fill = {BENCH_ANYWHERE, gateway_send, &stalled};

    if (push_run(&values[V_PUSH]) < 0 || sub_run(&values[V_SUB], &values[V_SUB_LATE], NULL) < 0 ||
        call_run(&values[V_CALL]) < 0 || pull_run(&values[V_PULL], NULL) < 0 ||
        sub_run(&(double){0}, &values[V_SUB_BESIDE], subscribe_and_stall) < 0 ||
        bench_play(&fill, 1, NULL) < 0)
        return -1;
    return pull_run(&values[V_PULL_BESIDE], pull_and_stall);
}

static int zmq_run(double *values)
{
    struct gateway_program gateway;

    if (proxy_run(values) < 0 || start(&gateway) < 0)
        return -1;
    int result = measure(values);
    gateway_stop(&gateway);
    return result;
}

/* Peers that are connected, and say nothing. */
static int be_idle(struct bench_seat *seat, void *argument)
{
    const struct gateway_stream *stream = argument;
    const struct outside *outside = stream->outside;
    struct end subscriber, dealer;

    if (subscribe_to(seat, stream, &subscriber) < 0 || greet(seat, &dealer, outside->router) < 0)
        return -1;
    bench_meet(seat);
    bench_meet(seat);
    end_close(&subscriber);
    return end_close(&dealer);
}

struct idle {
    const struct gateway_program *gateway;
    double *ret; /* shared */
};

static int watch(struct bench_seat *seat, void *argument)
{
    const struct idle *idle = argument;

    bench_meet(seat);
    gateway_idle(idle->gateway, &idle->ret[V_TICKS], &idle->ret[V_SLEEPS]);
    bench_meet(seat);
    return 0;
}

static int zmq_idle_run(double *values)
{
    struct gateway_program gateway;
    struct outside outside = {.router = ""};
    struct gateway_stream stream = {.topic = new_topic(), .outside = &outside};
    struct idle idle = {&gateway, bench_shared(BENCH_VALUES_MAX * sizeof(double))};
    struct bench_role roles[] = {{BENCH_ANYWHERE, watch, &idle}, {BENCH_ANYWHERE, be_idle, &stream}};

    gateway_address(outside.back, "sub");
    gateway_address(outside.router, "router");
    if (start(&gateway) < 0)
        return -1;
    int result = push_run(&values[V_PUSH]);
    if (result == 0)
        result = bench_play(roles, 2, NULL);
    gateway_stop(&gateway);
    values[V_TICKS] = idle.ret[V_TICKS];
    values[V_SLEEPS] = idle.ret[V_SLEEPS];
    return result;
}
#else
static int zmq_run(double *values)
{
    (void)values;
    for (unsigned i = V_PUSH; i <= V_SLEEPS; i++)
        bench_waive(i, "built without ZeroMQ");
    return 0;
}

static int zmq_idle_run(double *values)
{
    return zmq_run(values);
}
#endif

static const struct bench_row rows[] = {
    BENCH_AGAINST("gateway-zmq.push", V_PUSH, 1e-3, "k/s", "zmq_proxy PULL/PUSH", V_PROXY_PUSH,
                  BENCH_RATIO_MIN, 0.9),
    BENCH_AGAINST("gateway-zmq.subscribe", V_SUB, 1e-3, "k/s", "zmq_proxy XSUB/XPUB", V_PROXY_SUB,
                  BENCH_RATIO_MIN, 0.9),
    BENCH_AGAINST("gateway-zmq.call.p50", V_CALL, 1e-3, "us", "zmq_proxy ROUTER/DEALER", V_PROXY_CALL,
                  BENCH_RATIO_MAX, 1.3),
    BENCH_FIGURE("gateway-zmq.pull", V_PULL, 1e-3, "k/s"),
    BENCH_AGAINST("gateway-zmq.subscribe.beside-a-stalled-one", V_SUB_BESIDE, 1e-3, "k/s", "alone",
                  V_SUB_LATE, BENCH_RATIO_MIN, 0.9),
    BENCH_AGAINST("gateway-zmq.pull.beside-a-stalled-one", V_PULL_BESIDE, 1e-3, "k/s", "alone", V_PULL,
                  BENCH_RATIO_MIN, 0.9),
};
static const struct bench_row idle_rows[] = {
    BENCH_AT_MOST("gateway-zmq.idle.cpu", V_TICKS, "ticks", 0),
    BENCH_AT_MOST("gateway-zmq.idle.sleeps", V_SLEEPS, "times", 0),
};

const struct bench_case bench_case_gateway_zmq = {"gateway-zmq", "ipcd-zmq beside a zmq_proxy, 64 B",
                                                  BENCH_PROBED | BENCH_BROKER, zmq_run, BENCH_ROWS(rows)};
const struct bench_case bench_case_gateway_zmq_idle = {
    "gateway-zmq-idle", "ipcd-zmq while nothing comes (2 s)", BENCH_BROKER | BENCH_ONCE, zmq_idle_run,
    BENCH_ROWS(idle_rows)};
