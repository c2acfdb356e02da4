/* SPDX-License-Identifier: Apache-2.0
 *
 * Many sessions, many lanes: time to connect, time to deliver, descriptors, mappings, memory. Each process holds
 * many connections and keeps to 1,024 descriptors.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench/inspect.h"
#include "bench/topic.h"

#define CLIENT_FDS 1024u
#define PATIENCE   INT64_C(60000000000)

struct plan {
    const char *stem;
    unsigned pub_processes, pub_connections, topics; /* per process, per connection */
    unsigned sub_processes, sub_connections;
    bool one_topic;
    uint64_t messages; /* of each publisher */
    char prefix[TOPIC_NAME_SIZE];
};

enum {
    R_CONNECT,
    R_DELIVER,
    R_BROKER_FDS,
    R_BROKER_RSS,
    R_BROKER_MEMFD,
    R_CLIENT_FDS,
    R_CLIENT_MAPS,
    R_CLIENT_PSS,
    R_COUNT
};
enum { PLAN_SESSIONS, PLAN_MANY, PLAN_IN, PLAN_WILD, PLANS };
#define V(plan, what) ((plan)*R_COUNT + (what))
static_assert(V(PLANS, 0) <= BENCH_VALUES_MAX, "values");

static unsigned publishers_of(const struct plan *plan)
{
    return plan->pub_processes * plan->pub_connections * plan->topics;
}
static unsigned subscribers_of(const struct plan *plan)
{
    return plan->sub_processes * plan->sub_connections;
}

static void keep_to_limit(void)
{
    struct rlimit limit = {CLIENT_FDS, CLIENT_FDS};
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void tell_client(struct bench_seat *seat)
{
    struct inspection self;
    if (inspect(&self, getpid()) < 0)
        return;
    seat->values[0] = self.descriptors;
    seat->values[1] = self.mappings;
    seat->values[2] = (double)self.pss_bytes;
}

static int scale_publish(struct bench_seat *seat, void *argument)
{
    const struct plan *plan = argument;
    unsigned count = plan->pub_connections * plan->topics;
    ipc_connection **connections = bench_alloc(plan->pub_connections * sizeof(*connections));
    ipc_publisher **publishers = bench_alloc(count * sizeof(*publishers));
    char topic[2 * TOPIC_NAME_SIZE];
    int result = 0;

    keep_to_limit();
    bench_begin(seat);
    for (unsigned i = 0; i < count; i++) {
        if (i % plan->topics == 0 && topic_connect(seat, &connections[i / plan->topics]) < 0)
            return -1;
        if (plan->one_topic)
            snprintf(topic, sizeof(topic), "%s.all", plan->prefix);
        else
            snprintf(topic, sizeof(topic), "%s.%u.%u", plan->prefix, seat->index, i);
        if (topic_publisher(seat, &publishers[i], connections[i / plan->topics], topic, 4096) < 0)
            return -1;
    }
    for (unsigned i = 0; i < count && result >= 0; i++)
        result = ipc_publisher_wait_readers(publishers[i], subscribers_of(plan), PATIENCE);
    if (result < 0)
        return bench_fail(seat, "waiting for readers: %s", strerror(-result));
    bench_end(seat);
    bench_meet(seat); /* everyone is connected */
    tell_client(seat);
    bench_meet(seat); /* everyone has been looked at */
    for (uint64_t n = 0; n < plan->messages && result >= 0; n++)
        for (unsigned i = 0; i < count && result >= 0; i++)
            result = ipc_publisher_publish(publishers[i], &n, sizeof(n));
    if (result < 0)
        return bench_fail(seat, "publish: %s", strerror(-result));
    bench_meet(seat); /* everything was received */
    for (unsigned i = 0; i < plan->pub_connections; i++)
        ipc_connection_close(connections[i]);
    return 0;
}

static int scale_subscribe(struct bench_seat *seat, void *argument)
{
    const struct plan *plan = argument;
    ipc_connection **connections = bench_alloc(plan->sub_connections * sizeof(*connections));
    ipc_subscription **subscriptions = bench_alloc(plan->sub_connections * sizeof(*subscriptions));
    uint64_t total = publishers_of(plan) * plan->messages;
    char pattern[2 * TOPIC_NAME_SIZE];
    int result = 0;

    keep_to_limit();
    snprintf(pattern, sizeof(pattern), "%s.%s", plan->prefix, plan->one_topic ? "all" : ">");
    bench_begin(seat);
    for (unsigned i = 0; i < plan->sub_connections; i++)
        if (topic_connect(seat, &connections[i]) < 0 ||
            topic_subscription(seat, &subscriptions[i], connections[i], pattern, 0) < 0)
            return -1;
    for (unsigned i = 0; i < plan->sub_connections && result >= 0; i++)
        result = ipc_subscription_wait_writers(subscriptions[i], publishers_of(plan), PATIENCE);
    if (result < 0)
        return bench_fail(seat, "waiting for writers: %s", strerror(-result));
    bench_end(seat);
    bench_meet(seat);
    tell_client(seat);
    bench_meet(seat);
    uint64_t start = bench_now_ns();
    for (unsigned i = 0; i < plan->sub_connections; i++)
        for (uint64_t n = 0; n < total; n++) {
            struct ipc_message message;
            uint64_t number;
            ssize_t size =
                ipc_subscription_receive(subscriptions[i], &number, sizeof(number), &message, PATIENCE);
            if (size != sizeof(number) || number != message.sequence)
                return bench_fail(seat, "receive %llu of %llu: %s", (unsigned long long)n,
                                  (unsigned long long)total,
                                  size < 0 ? strerror((int)-size) : "another message");
        }
    seat->values[3] = (double)(bench_now_ns() - start);
    bench_meet(seat);
    for (unsigned i = 0; i < plan->sub_connections; i++)
        ipc_connection_close(connections[i]);
    return 0;
}

static int scale_watch(struct bench_seat *seat, void *argument)
{
    struct inspection broker;

    (void)argument;
    bench_begin(seat);
    bench_end(seat);
    bench_meet(seat);
    if (inspect(&broker, inspect_broker()) < 0)
        return bench_fail(seat, "the broker's process is not to be found");
    seat->values[0] = broker.descriptors;
    seat->values[1] = (double)broker.rss_bytes;
    seat->values[2] = (double)broker.memfd_bytes;
    bench_meet(seat);
    bench_meet(seat);
    return 0;
}

static int run_plan(double *values, struct plan plan)
{
    struct bench_role roles[BENCH_ROLES_MAX] = {{BENCH_ANYWHERE, scale_watch, &plan}};
    struct bench_seat seats[BENCH_ROLES_MAX];
    unsigned count = 1;

    topic_name(plan.prefix, plan.stem);
    for (unsigned i = 0; i < plan.pub_processes; i++)
        roles[count++] = (struct bench_role){BENCH_ANYWHERE, scale_publish, &plan};
    for (unsigned i = 0; i < plan.sub_processes; i++)
        roles[count++] = (struct bench_role){BENCH_ANYWHERE, scale_subscribe, &plan};
    if (bench_play(roles, count, seats) < 0)
        return -1;
    values[R_CONNECT] = bench_elapsed_s(seats, count);
    values[R_BROKER_FDS] = seats[0].values[0];
    values[R_BROKER_RSS] = seats[0].values[1];
    values[R_BROKER_MEMFD] = seats[0].values[2];
    values[R_CLIENT_FDS] = values[R_CLIENT_MAPS] = values[R_CLIENT_PSS] = 0;
    for (unsigned i = 1; i < count; i++) {
        values[R_CLIENT_FDS] = fmax(values[R_CLIENT_FDS], seats[i].values[0]);
        values[R_CLIENT_MAPS] = fmax(values[R_CLIENT_MAPS], seats[i].values[1]);
        values[R_CLIENT_PSS] = fmax(values[R_CLIENT_PSS], seats[i].values[2]);
        if (i > plan.pub_processes)
            values[R_DELIVER] = fmax(isnan(values[R_DELIVER]) ? 0 : values[R_DELIVER], seats[i].values[3]);
    }
    values[R_DELIVER] *= 1e-9;
    return 0;
}

static int scale_run(double *values)
{
    unsigned part = bench.quick ? 10 : 1;
    /* The smallest lanes that there are: 4 KiB. */
    struct plan sessions = {"sessions", 10, 100 / part, 1, 0, 0, false, 0, ""};
    struct plan many = {"many", 10, bench.quick ? 2 : 10, 1, 10, bench.quick ? 2 : 10, true, 10, ""};
    struct plan in = {"in", 10, 100 / part, 1, 1, 1, true, 10, ""};
    struct plan wild = {"wild", 10, 1, 1000 / part, 1, 1, false, 1, ""};

    if (run_plan(&values[V(PLAN_SESSIONS, 0)], sessions) < 0)
        bench_waive(V(PLAN_SESSIONS, 0), "failed: the reason is above");
    if (run_plan(&values[V(PLAN_MANY, 0)], many) < 0)
        bench_waive(V(PLAN_MANY, 0), "failed: the reason is above");
    if (run_plan(&values[V(PLAN_IN, 0)], in) < 0)
        bench_waive(V(PLAN_IN, 0), "failed: the reason is above");
    if (run_plan(&values[V(PLAN_WILD, 0)], wild) < 0)
        bench_waive(V(PLAN_WILD, 0), "failed: the reason is above");
    if (bench.quick)
        for (unsigned plan = 0; plan < PLANS; plan++)
            bench_waive(V(plan, 0), "a quick run takes a tenth of the sessions, publishers, topics");
    return 0;
}

#define PLAN_ROWS(name, plan)                                                                       \
 BENCH_FIGURE("scale." name ".connect", V(plan, R_CONNECT), 1, "s"),                                \
     BENCH_FIGURE("scale." name ".broker.descriptors", V(plan, R_BROKER_FDS), 1, "fds"),            \
     BENCH_FIGURE("scale." name ".broker.resident", V(plan, R_BROKER_RSS), 1.0 / (1 << 20), "MiB"), \
     BENCH_FIGURE("scale." name ".segments", V(plan, R_BROKER_MEMFD), 1.0 / (1 << 20), "MiB"),      \
     BENCH_AGAINST_FIXED("scale." name ".client.descriptors", V(plan, R_CLIENT_FDS), 1, "fds",      \
                         "RLIMIT_NOFILE", CLIENT_FDS, BENCH_RATIO_MAX, 1),                          \
     BENCH_AGAINST_FIXED("scale." name ".client.mappings", V(plan, R_CLIENT_MAPS), 1, "maps",       \
                         "vm.max_map_count", 65530, BENCH_RATIO_MAX, 1),                            \
     BENCH_FIGURE("scale." name ".client.pss", V(plan, R_CLIENT_PSS), 1.0 / (1 << 20), "MiB")

static const struct bench_row rows[] = {
    PLAN_ROWS("1000-sessions", PLAN_SESSIONS),
    PLAN_ROWS("100x100", PLAN_MANY),
    BENCH_FIGURE("scale.100x100.deliver", V(PLAN_MANY, R_DELIVER), 1, "s"),
    PLAN_ROWS("1000-to-1", PLAN_IN),
    BENCH_FIGURE("scale.1000-to-1.deliver", V(PLAN_IN, R_DELIVER), 1, "s"),
    PLAN_ROWS("10000-topics", PLAN_WILD),
    BENCH_FIGURE("scale.10000-topics.deliver", V(PLAN_WILD, R_DELIVER), 1, "s"),
};

const struct bench_case bench_case_scale = {"scale",
                                            "1,000 sessions; 100 x 100; 1,000 -> 1; '>' over 10,000 topics",
                                            BENCH_BROKER | BENCH_ONCE, scale_run, BENCH_ROWS(rows)};
