/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/drain.h"

#include <errno.h>
#include <inttypes.h>

#include <ipc/error.h>

#include "broker/core/control/port.h"
#include "broker/core/control/session.h"
#include "broker/core/control/stats.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define LOOK_NS   UINT64_C(20000000)
#define SECOND_NS UINT64_C(1000000000)

/* Do its consumers have something to do? What nobody receives cannot be waited for, nor what is delayed. */
static bool is_busy(const struct queue *queue)
{
    const struct queue_stats *stats = &queue->stats;
    uint64_t unacked = atomic_load_explicit(&stats->unacked, memory_order_relaxed);
    uint64_t waiting = atomic_load_explicit(&stats->waiting, memory_order_relaxed);

    if (queue->consumers == 0)
        return false;
    if (unacked > 0 || queue->row->paused)
        return unacked > 0;
    /* By its bytes a message is seen that moves between the other counters just now. */
    return queue->producers > 0 || waiting > 0 ||
           (atomic_load_explicit(&stats->bytes, memory_order_relaxed) > 0 &&
            atomic_load_explicit(&stats->delayed, memory_order_relaxed) == 0);
}

struct left {
    uint64_t messages, calls;
    unsigned queues;
    bool any;
};

static struct left count_left(const struct broker *broker)
{
    struct left left = {0};

    list_for_each(node, &broker->queues)
    {
        const struct queue *queue = list_entry(node, struct queue, link);

        if (!is_busy(queue))
            continue;
        left.queues++;
        left.messages += atomic_load_explicit(&queue->stats.waiting, memory_order_relaxed) +
                         atomic_load_explicit(&queue->stats.unacked, memory_order_relaxed);
    }
    list_for_each(node, &broker->lanes)
    {
        const struct lane *lane = list_entry(node, struct lane, link);

        if (lane->kind == IPC__CONTROL__KIND__KIND_CALL && lane->session)
            left.calls += stats_of_calls(lane->fd);
    }
    left.any = left.queues > 0 || left.calls > 0;
    return left;
}

/* Nothing new into queues, and no new calls. */
static void close_doors(struct broker *broker)
{
    list_for_each_safe(node, &broker->ports)
    {
        struct port *port = list_entry(node, struct port, link);

        if (!port->row->consumer)
            registry_port_retire(broker, port, IPC_REASON_SHUTDOWN);
    }
    list_for_each(node, &broker->lanes)
    {
        const struct lane *lane = list_entry(node, struct lane, link);

        if (lane->kind == IPC__CONTROL__KIND__KIND_CALL && lane->session && session_board(lane->session))
            atomic_store_explicit(&lane->session->board->stops_ns, broker->drain_until_ns,
                                  memory_order_relaxed);
    }
}

bool drain_begin(struct broker *broker)
{
    const uint64_t seconds = broker->options.config->drain;
    const struct left left = count_left(broker);

    if (seconds == 0 || !left.any)
        return false;
    broker->drain_until_ns = time_monotonic_ns() + seconds * SECOND_NS;
    close_doors(broker);
    log_write(LOG_STOPPED, NULL,
              "draining for up to %" PRIu64 " s: %" PRIu64 " messages in %u queues, %" PRIu64 " calls",
              seconds, left.messages, left.queues, left.calls);
    keep_say(broker,
             "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64 "\nSTATUS=Draining for up to %" PRIu64 " s: %" PRIu64
             " messages in %u queues, %" PRIu64 " calls.",
             seconds * 1000000, seconds, left.messages, left.queues, left.calls);
    return true;
}

bool drain_is_over(struct broker *broker)
{
    struct left left;

    if (!broker->drain_until_ns)
        return false;
    left = count_left(broker);
    if (left.any && time_monotonic_ns() < broker->drain_until_ns)
        return false;
    if (left.any)
        log_write(LOG_STOPPED, NULL,
                  "the time to drain is over, with %" PRIu64
                  " messages left in %u queues that are received from, and %" PRIu64 " calls",
                  left.messages, left.queues, left.calls);
    return true;
}

uint64_t drain_deadline_ns(const struct broker *broker)
{
    return broker->drain_until_ns ? time_monotonic_ns() + LOOK_NS : UINT64_MAX;
}

bool drain_refuses(struct broker *broker, struct session *session, uint64_t id, const char *what)
{
    if (!broker->drain_until_ns)
        return false;
    session_fail(broker, session, id, -ESHUTDOWN, "the broker stops: it takes no new %s", what);
    return true;
}
