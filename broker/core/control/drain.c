/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/drain.h"

#include <errno.h>
#include <inttypes.h>

#include <ipc/error.h>

#include "broker/core/control/port.h"
#include "broker/core/control/session.h"
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

static unsigned count_busy(const struct broker *broker, uint64_t *ret_messages)
{
    unsigned busy = 0;

    *ret_messages = 0;
    list_for_each(node, &broker->queues)
    {
        const struct queue *queue = list_entry(node, struct queue, link);

        if (!is_busy(queue))
            continue;
        busy++;
        *ret_messages += atomic_load_explicit(&queue->stats.waiting, memory_order_relaxed) +
                         atomic_load_explicit(&queue->stats.unacked, memory_order_relaxed);
    }
    return busy;
}

bool drain_begin(struct broker *broker)
{
    const uint64_t seconds = broker->options.config->drain;
    uint64_t messages;
    unsigned busy = count_busy(broker, &messages);

    if (seconds == 0 || busy == 0)
        return false;
    broker->drain_until_ns = time_monotonic_ns() + seconds * SECOND_NS;
    list_for_each_safe(node, &broker->ports)
    {
        struct port *port = list_entry(node, struct port, link);

        if (!port->row->consumer)
            registry_port_retire(broker, port, IPC_REASON_SHUTDOWN);
    }
    log_write(LOG_STOPPED, NULL, "draining for up to %" PRIu64 " s: %" PRIu64 " messages in %u queues",
              seconds, messages, busy);
    keep_say(broker,
             "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64 "\nSTATUS=Draining for up to %" PRIu64 " s: %" PRIu64
             " messages in %u queues.",
             seconds * 1000000, seconds, messages, busy);
    return true;
}

bool drain_is_over(struct broker *broker)
{
    uint64_t messages;
    unsigned busy;

    if (!broker->drain_until_ns)
        return false;
    busy = count_busy(broker, &messages);
    if (busy > 0 && time_monotonic_ns() < broker->drain_until_ns)
        return false;
    if (busy > 0)
        log_write(LOG_STOPPED, NULL,
                  "the time to drain is over, with %" PRIu64
                  " messages left in %u queues that are received from",
                  messages, busy);
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
