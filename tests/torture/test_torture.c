/* SPDX-License-Identifier: Apache-2.0
 *
 * Torture of queues, and by gateways of topics and calls: clients that are killed, stopped and replaced all the time, an ipcd that is
 * killed, gateways that are killed between them and outside programs, and a check of what all of them wrote down. test_torture [SECONDS [SEED]], or IPC_TORTURE_SECONDS, IPC_TORTURE_SEED,
 * and IPC_TORTURE_CORE_MS and IPC_TORTURE_GATEWAY_MS, the time between two kills of ipcd, and about that of a gateway.
 */
#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "ipc/ipc.h"
#include "ipc/queue.h"
#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/torture/torture.h"

#define TICK_NS       UINT64_C(20000000) /* between two kills of a client */
#define DEDUP_WINDOW  65536u
#define STILL_TICKS   3000u /* without a message: something is stuck */
#define JOURNAL_BYTES (UINT64_C(2) << 30)
#define DRIVER        TORTURE_CLIENTS /* journal of the driver; drains use those of consumers */

static struct guarded guarded;
static struct torture *torture;
static struct journal *journals[TORTURE_CLIENTS + 1];
static struct slot {
    pid_t pid; /* 0: none */
    uint32_t client;
    bool stopped, drains;
    void (*run)(const struct client_work *work);
    unsigned queue;
    bool produces;
    bool may_fail; /* while ipcd is killed, or a queue is full */
    bool told;     /* a producer: what becomes of its messages */
    bool lasts;    /* is not killed: it could not say what it had taken */
    bool steady;   /* is not even stopped: it would miss what does not wait for it, or answer too late */
} slots[TORTURE_CLIENTS];
static unsigned n_slots;
static bool with_gateways[HISTORY_GATEWAYS];
static uint64_t random_state;
static unsigned bad_exits, failed_orders, stops;
static char zmq_config[] = "zmq:/dev/null", mq_config[80];
static bool stuck;

/* ---- what is put to the test ---- */

static void choose_queues(void)
{
    for (unsigned i = 0; i < TORTURE_QUEUES; i++) {
        static const unsigned prefetch[] = {1, 8, 256}, most[] = {0, 40, 400};
        struct torture_queue *queue = &torture->queues[i];
        uint64_t choice = torture_mix(torture->seed * TORTURE_QUEUES + i);

        /* Each queue has something that it has always, and something of the rest. */
        *queue = (struct torture_queue){.priorities = 1,
                                        .dedup = i == 2 || choice % 4 == 1,
                                        .prefetch = prefetch[(choice >> 8) % 3],
                                        .messages_max = most[(choice >> 16) % 3]};
        if (i == 1 || choice % 4 == 2)
            queue->keys = 5;
        else if (i == 0)
            queue->priorities = 10;
        queue->reject = queue->messages_max && (choice >> 24) % 2;
        if (i == 0 || i == 3 || (choice >> 32) % 4 == 0) {
            queue->lease_ms = i == 0 ? 0 : 200;
            queue->letters = true;
            queue->attempts_max = 5;
        }
    }
    torture->queues[TORTURE_DEAD] = (struct torture_queue){.priorities = 10, .prefetch = 64};
    for (unsigned i = TORTURE_DEAD + 1; i < TORTURE_WAYS; i++)
        torture->queues[i] = (struct torture_queue){.priorities = 1, .prefetch = 64};
    torture->queues[TORTURE_ZMQ_SEND].messages_max = 400;
    torture->queues[TORTURE_MQ_OUT].messages_max = 400;
}

static void create_queues(void)
{
    ipc_connection *connection = connection_new();

    for (unsigned i = TORTURE_ALL; i-- > 0;) {
        const struct torture_queue *queue = &torture->queues[i];
        struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
        const char *name = torture_queue_name(i);
        struct ipc_error error = {0};

        settings.given = IPC_QUEUE_MESSAGES_MAX | IPC_QUEUE_MESSAGE_SIZE_MAX | IPC_QUEUE_FULL |
                         IPC_QUEUE_LEASE | IPC_QUEUE_ATTEMPTS_MAX | IPC_QUEUE_DEDUP_WINDOW |
                         (queue->letters ? IPC_QUEUE_DEAD_LETTER : 0);
        settings.messages_max = queue->messages_max;
        settings.message_size_max = 4096;
        settings.full = queue->reject ? IPC_QUEUE_FULL_REJECT : IPC_QUEUE_FULL_BLOCK;
        settings.lease_ns = queue->lease_ms * UINT64_C(1000000);
        settings.attempts_max = queue->attempts_max;
        settings.dedup_window = queue->dedup ? DEDUP_WINDOW : 0;
        settings.dead_letter = "dead";
        if (ipc_queue_create(connection, name, &settings, 0, &error) < 0) {
            fprintf(stderr, "queue %s: %s\n", name, error.text);
            exit(1);
        }
        printf(
            "queue %s: %s, messages %u, prefetch %u, priorities %u, keys %u, lease %u ms, attempts %u%s%s\n",
            name, queue->reject ? "reject" : "block", queue->messages_max, queue->prefetch, queue->priorities,
            queue->keys, queue->lease_ms, queue->attempts_max, queue->dedup ? ", ids" : "",
            queue->letters ? ", dead letters" : "");
    }
    ipc_connection_close(connection);
}

/* A file without a name: what is written there is there whoever is killed. */
static struct journal *journal_new(void)
{
    char path[] = "/tmp/ipc-torture.XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    struct journal *journal;

    EXPECT(fd >= 0);
    EXPECT_EQ(unlink(path), 0);
    EXPECT_EQ(ftruncate(fd, (off_t)JOURNAL_BYTES), 0);
    journal = mmap(NULL, JOURNAL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    EXPECT(journal != MAP_FAILED);
    close(fd);
    journal->capacity = (JOURNAL_BYTES - sizeof(*journal)) / sizeof(struct event);
    return journal;
}

/* ---- clients ---- */

static void slot_start(unsigned index)
{
    struct slot *slot = &slots[index];
    struct client_work work = {.torture = torture,
                               .journal = journals[index],
                               .client = ++torture->clients,
                               .slot = index,
                               .queue = slot->queue,
                               .drains = slot->drains};

    slot->client = work.client;
    slot->stopped = false;
    slot->pid = fork_child();
    EXPECT(slot->pid >= 0);
    if (slot->pid == 0)
        slot->run(&work);
}

static struct slot *slot_add(void (*run)(const struct client_work *work), unsigned queue)
{
    EXPECT(n_slots < TORTURE_CLIENTS);
    slots[n_slots] = (struct slot){.run = run, .queue = queue};
    return &slots[n_slots++];
}

static struct slot *slot_add_producer(void (*run)(const struct client_work *work), unsigned queue)
{
    struct slot *slot = slot_add(run, queue);

    slot->produces = slot->told = true;
    return slot;
}

/* Topics and calls. */
static void choose_mqueue_slots(void)
{
    struct slot *slot = slot_add(client_subscribe, TORTURE_MQ_TOPIC_IN);

    slot->lasts = slot->steady = true;
    for (unsigned i = 0; i < 2; i++) {
        slot_add_producer(outside_mq_send, TORTURE_MQ_TOPIC_IN)->told = false;
        slot_add_producer(outside_mq_call, TORTURE_MQ_CALL);
        slot_add(client_serve, TORTURE_MQ_CALL);
        slot_add_producer(client_call, TORTURE_MQ_SERVE);
    }
    slot_add(outside_mq_serve, TORTURE_MQ_SERVE);
    slot_add_producer(client_publish_all, TORTURE_MQ_TOPIC_OUT)->told = false;
    slot_add(outside_mq_receive, TORTURE_MQ_TOPIC_OUT)->lasts = true;
    slot_add_producer(outside_mq_call, TORTURE_MQ_CALL_RAW)->lasts = true;
    slot_add(client_serve, TORTURE_MQ_CALL_RAW);
    slot_add_producer(client_call, TORTURE_MQ_SERVE_RAW);
    slot = slot_add(outside_mq_serve, TORTURE_MQ_SERVE_RAW);
    slot->lasts = slot->steady = true;
}

static void choose_slots(void)
{
    for (unsigned i = 0; i < 6; i++)
        slot_add_producer(client_produce, i % TORTURE_QUEUES);
    for (unsigned i = 0; i < 8; i++)
        slot_add(client_consume, i % (TORTURE_QUEUES + 1));
    struct slot *mover = slot_add_producer(client_move, TORTURE_DEAD);
    mover->may_fail = mover->steady = true; /* stopped, it would hardly move anything */
    if (with_gateways[TORTURE_MQ]) {
        for (unsigned i = 0; i < 2; i++)
            slot_add_producer(outside_mq_send, TORTURE_MQ_IN)->told = false;
        slot_add(client_consume, TORTURE_MQ_IN);
        slot_add_producer(client_produce, TORTURE_MQ_OUT);
        slot_add(outside_mq_receive, TORTURE_MQ_OUT)->lasts = true;
        choose_mqueue_slots();
    }
#ifdef TORTURE_WITH_ZMQ
    for (unsigned i = 0; i < 2 && with_gateways[TORTURE_ZMQ]; i++) {
        slot_add_producer(outside_zmq_send, TORTURE_ZMQ_SEND);
        slot_add(outside_zmq_pull, TORTURE_ZMQ_SEND);
        slot_add_producer(outside_zmq_push, TORTURE_ZMQ_PUSH)->told = false;
    }
    if (with_gateways[TORTURE_ZMQ]) {
        slot_add(client_consume, TORTURE_ZMQ_PUSH);
        for (unsigned i = 0; i < 2; i++) {
            slot_add(client_serve, TORTURE_CALLS);
            slot_add_producer(outside_zmq_call, TORTURE_CALLS);
        }
        slot_add_producer(client_publish, TORTURE_TOPIC_OUT);
        slot_add(outside_zmq_subscribe, TORTURE_TOPIC_OUT);
        slot_add_producer(outside_zmq_publish, TORTURE_TOPIC_IN);
        slot_add(client_subscribe, TORTURE_TOPIC_IN);
    }
#endif
}

/* Take the status of those that ended. Returns how many are left. */
static unsigned reap(bool again)
{
    unsigned left = 0;

    for (unsigned i = 0; i < n_slots; i++) {
        int status;

        if (slots[i].pid && waitpid(slots[i].pid, &status, WNOHANG) == slots[i].pid) {
            slots[i].pid = 0;
            if (WIFEXITED(status) && slots[i].may_fail) {
                failed_orders += status != 0;
            } else if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) && status != 0) {
                printf("client %u ended with status %#x\n", slots[i].client, (unsigned)status);
                bad_exits++;
            }
        }
        if (!slots[i].pid && again && !bad_exits)
            slot_start(i);
        left += slots[i].pid != 0;
    }
    return left;
}

static void kill_client(void)
{
    const struct slot *slot = &slots[torture_random(&random_state, n_slots)];

    if (!slot->pid || slot->lasts)
        return;
    journal_append(journals[DRIVER], (struct event){.kind = EVENT_KILL, .client = slot->client});
    kill(slot->pid, SIGKILL);
}

static void stop_client(void)
{
    struct slot *slot = &slots[torture_random(&random_state, n_slots)];

    if (!slot->pid || slot->steady)
        return;
    kill(slot->pid, slot->stopped ? SIGCONT : SIGSTOP);
    slot->stopped = !slot->stopped;
    stops++;
}

/* A child of ipcd-run by that name; 0: it is not there now. */
static pid_t child_named(const char *name)
{
    char path[64], comm[32];
    pid_t found = 0;
    FILE *file;
    int pid;

    (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", guarded.run, guarded.run);
    file = fopen(path, "re");
    while (file && !found && fscanf(file, "%d", &pid) == 1) {
        FILE *one;

        (void)snprintf(path, sizeof(path), "/proc/%d/comm", pid);
        one = fopen(path, "re");
        if (one && fscanf(one, "%31s", comm) == 1 && strcmp(comm, name) == 0)
            found = pid;
        if (one)
            (void)fclose(one);
    }
    if (file)
        (void)fclose(file);
    return found;
}

static void kill_core(void)
{
    pid_t pid = child_named("ipcd");

    if (!pid)
        return;
    journal_append(journals[DRIVER], (struct event){.kind = EVENT_KILL_CORE});
    kill(pid, SIGKILL);
}

static void kill_gateway(void)
{
    const unsigned gateway = torture_random(&random_state, 2) ? TORTURE_ZMQ : TORTURE_MQ;
    const pid_t pid = child_named(gateway == TORTURE_ZMQ ? "ipcd-zmq" : "ipcd-mq");
    const uint64_t before = torture_now();

    if (!pid)
        return;
    kill(pid, SIGKILL);
    while (child_named(gateway == TORTURE_ZMQ ? "ipcd-zmq" : "ipcd-mq") == pid)
        sched_yield();                 /* until it is taken note of: then it is dead */
    torture->gateway_kills[gateway]++; /* who has not seen it yet has begun before */
    journal_append(journals[DRIVER],
                   (struct event){.kind = EVENT_KILL_GATEWAY, .queue = (uint8_t)gateway, .number = before});
}

/* ---- progress ---- */

static bool still(void)
{
    static uint64_t before[TORTURE_WAYS];
    static unsigned ticks[TORTURE_WAYS];

    bool used[TORTURE_WAYS] = {false};

    for (unsigned i = 0; i < n_slots; i++)
        used[slots[i].queue] = true;
    for (unsigned i = 0; i < TORTURE_WAYS; i++) {
        uint64_t now = torture->received[i];

        ticks[i] = now == before[i] ? ticks[i] + 1 : 0;
        before[i] = now;
        if (i != TORTURE_DEAD && used[i] && ticks[i] > STILL_TICKS) {
            printf("stuck: nothing by %s for %u ticks\n", torture_queue_name(i), ticks[i]);
            stuck = true;
        }
    }
    return stuck;
}

static void tick(void)
{
    struct timespec rest = {.tv_nsec = (long)TICK_NS};

    nanosleep(&rest, NULL);
}

/* Wait for those that were told to end. */
static void finish(bool producers)
{
    unsigned ticks = 0, left;
    uint64_t before = 0;

    do {
        uint64_t now = 0;

        tick();
        reap(false);
        left = 0;
        for (unsigned i = 0; i < n_slots; i++) {
            if (producers && !slots[i].produces && !slots[i].pid && !bad_exits)
                slot_start(i);
            left += producers == slots[i].produces && slots[i].pid;
            now += torture->received[slots[i].queue];
        }
        ticks = now == before ? ticks + 1 : 0;
        before = now;
        if (ticks > STILL_TICKS) {
            printf("stuck: %u %s do not end\n", left, producers ? "producers" : "consumers");
            stuck = true;
        }
    } while (left && !stuck && !bad_exits);
}

/* ---- phases ---- */

static void hurt(uint64_t until, uint64_t core_ns, uint64_t gateway_ns)
{
    uint64_t core_at = torture_now() + core_ns, gateway_at = torture_now() + gateway_ns;

    while (torture_now() < until && !bad_exits && !still()) {
        tick();
        reap(true);
        kill_client();
        if (torture_random(&random_state, 3) == 0)
            stop_client();
        if (torture_now() >= core_at) {
            kill_core();
            core_at = torture_now() + core_ns;
        }
        if (torture_now() >= gateway_at) {
            kill_gateway();
            gateway_at = torture_now() + torture_random(&random_state, 2 * gateway_ns);
        }
    }
    for (unsigned i = 0; i < n_slots; i++)
        if (slots[i].pid && slots[i].stopped)
            kill(slots[i].pid, SIGCONT);
}

/* How many messages are in all the queues, or on their way there. */
static uint64_t left_in_queues(bool tell)
{
    char command[512];
    uint64_t left = 0;
    json_t *document, *queue, *rows;
    FILE *pipe;
    size_t i;

    (void)snprintf(command, sizeof(command), "'%s' queue ls --json", getenv("IPCCTL_BIN"));
    pipe = popen(command, "re");
    EXPECT(pipe != NULL);
    document = json_loadf(pipe, 0, NULL);
    (void)pclose(pipe);
    EXPECT(document != NULL);
    rows = json_is_array(document) ? document : json_object_get(document, "queues");
    EXPECT(json_array_size(rows) == TORTURE_ALL);
    json_array_foreach(rows, i, queue)
    {
        left += (uint64_t)(json_integer_value(json_object_get(queue, "waiting")) +
                           json_integer_value(json_object_get(queue, "unacked")));
        if (tell)
            (void)json_dumpf(queue, stdout, JSON_COMPACT);
    }
    json_decref(document);
    for (unsigned slot = 0; slot < n_slots; slot++)
        left += slots[slot].produces && !slots[slot].told && torture->arrived[slot] < torture->ended[slot];
    return left;
}

/* One consumer for each queue, until nothing is left. */
static void drain(void)
{
    uint64_t left, before = UINT64_MAX;
    unsigned same = 0;

    torture->consumers_stop = false;
    for (unsigned i = 0; i < n_slots; i++) {
        bool first = !slots[i].produces;

        for (unsigned k = 0; k < i; k++)
            first = first && (slots[k].produces || slots[k].queue != slots[i].queue);
        slots[i].drains = first;
        if (first)
            slot_start(i);
    }
    do {
        tick();
        reap(false);
        left = left_in_queues(false);
        same = left == before ? same + 1 : 0;
        before = left;
    } while (left && same < STILL_TICKS && !bad_exits);
    if (left) {
        printf("stuck: %" PRIu64 " messages stay in the queues\n", left);
        (void)left_in_queues(true);
        stuck = true;
    }
    torture->consumers_stop = true;
}

static void kill_all(void)
{
    for (unsigned i = 0; i < n_slots; i++)
        if (slots[i].pid) {
            kill(slots[i].pid, SIGKILL);
            wait_child(slots[i].pid);
        }
}

static bool judge(double seconds)
{
    static struct history history;
    struct findings found;

    history.journals = TORTURE_CLIENTS + 1;
    history.stuck = stuck;
    for (unsigned i = 0; i <= TORTURE_CLIENTS; i++) {
        history.events[i] = journals[i]->events;
        history.counts[i] = journals[i]->count;
    }
    for (unsigned i = 0; i < HISTORY_QUEUES; i++)
        history.queues[i].dead_letter = -1;
    for (unsigned i = 0; i < TORTURE_JUDGED; i++)
        history.queues[i] =
            (struct history_queue){.keyed = torture->queues[i].keys != 0,
                                   .remembers = torture->queues[i].dedup ? DEDUP_WINDOW : 0,
                                   .lease_ns = torture->queues[i].lease_ms * UINT64_C(1000000),
                                   .dead_letter = torture->queues[i].letters ? (int)TORTURE_DEAD : -1};
    history.queues[TORTURE_ZMQ_PUSH].loss = LOSS_KILL;
    history.queues[TORTURE_ZMQ_PUSH].gateway = TORTURE_ZMQ;
    history.queues[TORTURE_MQ_IN].loss = history.queues[TORTURE_MQ_TOPIC_IN].loss = LOSS_ONE;
    history.queues[TORTURE_MQ_TOPIC_OUT].loss = LOSS_WAY;
    for (unsigned i = TORTURE_MQ_IN; i < TORTURE_JUDGED; i++) {
        history.queues[i].gateway = TORTURE_MQ;
        history.queues[i].raw = i != TORTURE_MQ_IN;
    }
    EXPECT(history_check(&history, &found, stdout));
    printf("%.0f s, seed %" PRIu64 ": %" PRIu64 " sent, %" PRIu64 " confirmed, %" PRIu64 " refused, %" PRIu64
           " sent again, %" PRIu64 " received, %" PRIu64 " dead letters\n",
           seconds, torture->seed, found.sent, found.confirmed, found.refused, found.resent, found.received,
           found.letters);
    printf("%" PRIu64 " clients and %" PRIu64 " ipcd killed, %" PRIu64
           " closed, %u stops and continues, %" PRIu64 " redeliveries, %" PRIu64
           " of them duplicates with a cause\n",
           found.kills, found.core_kills, found.closes, stops, found.redeliveries, found.duplicates);
    printf("%" PRIu64 " orders to move messages, of which %u failed; %" PRIu64
           " messages came from more than one place\n",
           found.moves, failed_orders, found.moved);
    printf("received by SEND and PULL: %" PRIu64 ", from PUSH: %" PRIu64 ", from an mqueue: %" PRIu64
           ", out of an mqueue: %" PRIu64 "\n",
           torture->received[TORTURE_ZMQ_SEND], torture->received[TORTURE_ZMQ_PUSH],
           torture->received[TORTURE_MQ_IN], torture->received[TORTURE_MQ_OUT]);
    printf("answers to CALL: %" PRIu64 ", by topics to a SUB: %" PRIu64 ", from a PUB: %" PRIu64 "\n",
           torture->received[TORTURE_CALLS], torture->received[TORTURE_TOPIC_OUT],
           torture->received[TORTURE_TOPIC_IN]);
    printf("answers to calls from an mqueue: %" PRIu64 " (raw: %" PRIu64 "), into one: %" PRIu64
           " (raw: %" PRIu64 "); by topics from an mqueue: %" PRIu64 ", into one: %" PRIu64 "\n",
           torture->received[TORTURE_MQ_CALL], torture->received[TORTURE_MQ_CALL_RAW],
           torture->received[TORTURE_MQ_SERVE], torture->received[TORTURE_MQ_SERVE_RAW],
           torture->received[TORTURE_MQ_TOPIC_IN], torture->received[TORTURE_MQ_TOPIC_OUT]);
    printf("%" PRIu64 " ipcd-mq and %" PRIu64 " ipcd-zmq killed: %" PRIu64 " and %" PRIu64
           " messages of the inbound mqueues are missing, %" PRIu64 " of the topic into one, and %" PRIu64
           " of the PUSH sockets; %" PRIu64 " came out of an mqueue again, %" PRIu64
           " were overtaken, %" PRIu32 " calls from mqueues were not waited for\n",
           found.gateway_kills[TORTURE_MQ], found.gateway_kills[TORTURE_ZMQ], found.cut[TORTURE_MQ_IN],
           found.cut[TORTURE_MQ_TOPIC_IN], found.cut[TORTURE_MQ_TOPIC_OUT], found.cut[TORTURE_ZMQ_PUSH],
           found.repeated, found.overtaken, torture->unanswered);
    printf(
        "found: %" PRIu64 " lost, %" PRIu64 " duplicates without a cause, %" PRIu64 " out of order, %" PRIu64
        " altered or invented, %" PRIu64 " stuck; %" PRIu64 " errors, %u bad ends\n",
        found.lost, found.duplicated, found.disordered, found.altered, found.stuck, found.errors, bad_exits);
    return findings_none(&found) && !bad_exits;
}

/* What ipcd-mq binds; but for TORTURE_MQ_IN, which is bound at run time. */
static const struct binding {
    unsigned way;
    const char *direction, *target, *form, *reply; /* the last one: suffix of its mqueue */
} bindings[] = {
    {TORTURE_MQ_OUT, "out", "queue", "raw", NULL},
    {TORTURE_MQ_TOPIC_IN, "in", "topic", "raw", NULL},
    {TORTURE_MQ_TOPIC_OUT, "out", "topic", "raw", NULL},
    {TORTURE_MQ_CALL, "call", "service", "enveloped", "-*"},
    {TORTURE_MQ_CALL_RAW, "call", "service", "raw", "-reply"},
    {TORTURE_MQ_SERVE, "serve", "service", "enveloped", "-reply"},
    {TORTURE_MQ_SERVE_RAW, "serve", "service", "raw", "-reply"},
};

static void write_binding(FILE *file, const struct binding *binding)
{
    const char *way = torture_queue_name(binding->way);
    char mqueue[TORTURE_MQUEUE_SIZE];

    torture_mqueue_name(torture, binding->way, "", mqueue);
    EXPECT(
        fprintf(
            file,
            "[bind %s]\ndirection = %s\nform = %s\nmqueue = %s\n%s = %s\nmessages = 5\nmessage-size = 1536\n",
            way, binding->direction, binding->form, mqueue, binding->target, way) > 0);
    if (binding->reply)
        EXPECT(fprintf(file, "reply = %s%s\n", mqueue, binding->reply) > 0);
    if (binding->way == TORTURE_MQ_SERVE) /* of a program that is killed nobody hears otherwise */
        EXPECT(fprintf(file, "timeout = 500ms\n") > 0);
}

/* Arguments of ipcd-run for those gateways that were built. One binding is in the configuration, the other one is made at run
 * time. */
static void gateways_configure(const char **arguments)
{
    with_gateways[TORTURE_MQ] = getenv("IPCD_MQ_BIN") != NULL;
#ifdef TORTURE_WITH_ZMQ
    with_gateways[TORTURE_ZMQ] = getenv("IPCD_ZMQ_BIN") != NULL;
#endif
    if (with_gateways[TORTURE_MQ]) {
        FILE *file;

        (void)snprintf(mq_config, sizeof(mq_config), "mq:/tmp/ipc-torture-%d.conf", getpid());
        file = fopen(mq_config + 3, "we");
        EXPECT(file != NULL);
        for (size_t i = 0; i < sizeof(bindings) / sizeof(bindings[0]); i++)
            write_binding(file, &bindings[i]);
        EXPECT_EQ(fclose(file), 0);
        *arguments++ = "--gateway";
        *arguments++ = mq_config;
    }
    if (with_gateways[TORTURE_ZMQ]) {
        *arguments++ = "--gateway";
        *arguments++ = zmq_config;
    }
}

static void bind_inbound(void)
{
    char command[512], mqueue[TORTURE_MQUEUE_SIZE];
    unsigned ticks = 0;

    torture_mqueue_name(torture, TORTURE_MQ_IN, "", mqueue);
    (void)snprintf(command, sizeof(command),
                   "'%s' bind mq in direction=in mqueue=%s queue=%s messages=5 message-size=1536 >/dev/null",
                   getenv("IPCCTL_BIN"), mqueue, torture_queue_name(TORTURE_MQ_IN));
    while (system(command) != 0 && ticks++ < STILL_TICKS)
        tick();
}

static void gateways_ended(void)
{
    if (!with_gateways[TORTURE_MQ])
        return;
    EXPECT_EQ(unlink(mq_config + 3), 0);
    for (unsigned i = TORTURE_MQ_IN; i < TORTURE_WAYS; i++) { /* they were the gateway's */
        char mqueue[TORTURE_MQUEUE_SIZE];

        torture_mqueue_name(torture, i, "", mqueue);
        EXPECT(mq_open(mqueue, O_RDONLY) < 0);
    }
}

static uint64_t number(const char *text, const char *variable, uint64_t otherwise)
{
    if (!text)
        text = getenv(variable);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    const char *arguments[] = {"--log-level", "error", NULL, NULL, NULL, NULL, NULL};
    uint64_t seconds = number(argc > 1 ? argv[1] : NULL, "IPC_TORTURE_SECONDS", 15);
    uint64_t seed = number(argc > 2 ? argv[2] : NULL, "IPC_TORTURE_SEED", torture_now() % 1000000);
    uint64_t core_ns = number(NULL, "IPC_TORTURE_CORE_MS", 2000) * UINT64_C(1000000);
    uint64_t gateway_ns = number(NULL, "IPC_TORTURE_GATEWAY_MS", 700) * UINT64_C(1000000);
    bool good;

    setvbuf(stdout, NULL, _IOLBF, 0);
    (void)setrlimit(RLIMIT_MSGQUEUE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}); /* if it may */
    torture = shared_new(sizeof(*torture));
    torture->seed = seed;
    torture->driver = getpid();
    random_state = torture_mix(seed);
    printf("seed %" PRIu64 "\n", seed);
    for (unsigned i = 0; i <= TORTURE_CLIENTS; i++)
        journals[i] = journal_new();
    choose_queues();
    gateways_configure(arguments + 2);
    guarded_start(&guarded, arguments);
    (void)snprintf(torture->folder, sizeof(torture->folder), "%s", guarded.folder);
    create_queues();
    choose_slots();
    if (with_gateways[TORTURE_MQ])
        bind_inbound();
    reap(true);
    hurt(torture_now() + seconds * UINT64_C(1000000000), core_ns, gateway_ns);
    torture->producers_stop = true;
    if (!stuck && !bad_exits)
        finish(true);
    torture->consumers_stop = true;
    if (!stuck && !bad_exits)
        finish(false);
    if (!stuck && !bad_exits) {
        drain();
        finish(false);
    }
    kill_all();
    if (!stuck && !bad_exits) {
        guarded_stop(&guarded);
        gateways_ended();
    } else {
        kill(guarded.run, SIGTERM);
    }
    good = judge((double)seconds);
    return good ? 0 : 1;
}
