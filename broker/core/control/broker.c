/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/broker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <ipc/error.h>

#include "broker/core/control/lane.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/port.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/recover.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/session.h"
#include "broker/core/control/shared.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/daemon.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

static int open_watchdog(struct broker *broker)
{
    int64_t interval_us = daemon_watchdog_us();
    struct itimerspec half = {0};

    if (interval_us <= 0)
        return 0;
    half.it_interval.tv_sec = (time_t)(interval_us / 2 / 1000000);
    half.it_interval.tv_nsec = (long)(interval_us / 2 % 1000000 * 1000);
    half.it_value = half.it_interval;
    broker->watchdog_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (broker->watchdog_fd < 0 || timerfd_settime(broker->watchdog_fd, 0, &half, NULL) < 0)
        return -errno;
    return loop_add(broker, broker->watchdog_fd, EPOLLIN, LOOP_WATCHDOG, 0);
}

static int open_descriptors(struct broker *broker)
{
    sigset_t signals;
    int result;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR2);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    broker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    broker->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    broker->retry_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    broker->worker_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    broker->routers_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    broker->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (broker->epoll_fd < 0 || broker->signal_fd < 0 || broker->retry_fd < 0 || broker->worker_fd < 0 ||
        broker->routers_fd < 0 || broker->reserve_fd < 0)
        return -errno;
    result = loop_add(broker, broker->signal_fd, EPOLLIN, LOOP_SIGNAL, 0);
    if (result == 0)
        result = loop_add(broker, broker->retry_fd, EPOLLIN, LOOP_RETRY, 0);
    if (result == 0)
        result = loop_add(broker, broker->worker_fd, EPOLLIN, LOOP_WORKER, 0);
    if (result == 0)
        result = loop_add(broker, broker->routers_fd, EPOLLIN, LOOP_ROUTERS, 0);
    if (result == 0)
        result = routers_start(&broker->routers, (unsigned)broker->options.config->router_threads,
                               broker->routers_fd);
    return result < 0 ? result : open_watchdog(broker);
}

int broker_new(struct broker **ret, const struct broker_options *options)
{
    struct broker *broker = calloc(1, sizeof(*broker));
    uint64_t random[4];
    int result;

    if (!broker) {
        log_write(LOG_SYSTEM, NULL, "the broker cannot start: %s", strerror(ENOMEM));
        return -ENOMEM;
    }
    broker->options = *options;
    broker->epoll_fd = broker->listen_fd = broker->signal_fd = broker->watchdog_fd = broker->retry_fd =
        broker->reserve_fd = broker->worker_fd = broker->routers_fd = -1;
    broker->keep = KEEP_INIT;
    broker->state = STATE_INIT;
    broker->started_ns = time_realtime_ns();
    result = registry_init(broker);
    if (result == 0 && getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        result = -EIO;
    if (result == 0) {
        memcpy(broker->secret, random, sizeof(broker->secret));
        (void)snprintf(broker->instance, sizeof(broker->instance), "%016" PRIx64 "%016" PRIx64, random[2],
                       random[3]);
        result = open_descriptors(broker);
    }
    if (result == 0)
        result = keep_init(broker, strcmp(options->guardian, "ipcd-run") == 0);
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "the broker cannot start: %s", strerror(-result));
        broker_free(broker);
        return result;
    }
    *ret = broker;
    return 0;
}

static void drop_job(struct job *job)
{
    if (job->destroy)
        (void)segment_destroy(job->fd, job->size);
    else
        fd_close(job->fd);
    free(job);
}

struct broker *broker_free(struct broker *broker)
{
    if (!broker)
        return NULL;
    list_for_each_safe(node, &broker->sessions)
        session_end(broker, list_entry(node, struct session, link), IPC_REASON_SHUTDOWN, NULL);
    list_for_each_safe(refused, &broker->refused)
        session_end(broker, list_entry(refused, struct session, link), IPC_REASON_SHUTDOWN, NULL);
    session_bury(broker);
    broker->routers = routers_stop(broker->routers);
    list_for_each_safe(port, &broker->ports) registry_port_free(broker, list_entry(port, struct port, link));
    list_for_each_safe(queue, &broker->queues)
        registry_queue_free(broker, list_entry(queue, struct queue, link));
    list_for_each_safe(shared, &broker->shared)
        registry_shared_free(broker, list_entry(shared, struct shared, link));
    /* What is left now are lanes that were retained. */
    list_for_each_safe(left, &broker->lanes)
    {
        struct lane *lane = list_entry(left, struct lane, link);

        lane->state = LANE_DRAINING;
        lane_release(broker, lane);
    }
    broker->worker = worker_free(broker->worker, drop_job);
    recover_done(broker);
    registry_done(broker);
    keep_done(broker);
    state_close(&broker->state);
    fd_close(broker->epoll_fd);
    fd_close(broker->signal_fd);
    fd_close(broker->watchdog_fd);
    fd_close(broker->retry_fd);
    fd_close(broker->reserve_fd);
    fd_close(broker->worker_fd);
    fd_close(broker->routers_fd);
    free(broker);
    return NULL;
}
