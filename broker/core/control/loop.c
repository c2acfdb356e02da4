/* SPDX-License-Identifier: Apache-2.0
 *
 * Level-triggered epoll with bounded work per user and round, so that no client keeps the others waiting. Notices go out once
 * per round, ended sessions are freed after it. With nothing to do the thread sleeps without limit.
 */
#include "broker/core/control/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/accept.h"
#include "broker/core/control/drain.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/recover.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/routing.h"
#include "broker/core/control/session.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define EVENTS_PER_ROUND 64
#define RETRY_NS         50000000L
#define RETRY_LATER_S    1
#define ID_BITS          56

static int control(struct broker *broker, int operation, int fd, uint32_t events, enum loop_source source,
                   uint64_t id)
{
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)source << ID_BITS | id};

    return epoll_ctl(broker->epoll_fd, operation, fd, &event) < 0 ? -errno : 0;
}

int loop_add(struct broker *broker, int fd, uint32_t events, enum loop_source source, uint64_t id)
{
    return control(broker, EPOLL_CTL_ADD, fd, events, source, id);
}

int loop_change(struct broker *broker, int fd, uint32_t events, enum loop_source source, uint64_t id)
{
    return control(broker, EPOLL_CTL_MOD, fd, events, source, id);
}

void loop_remove(struct broker *broker, int fd)
{
    (void)epoll_ctl(broker->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void loop_retry_soon(struct broker *broker)
{
    const struct itimerspec soon = {.it_value = {.tv_nsec = RETRY_NS}};

    if (broker->retry_armed)
        return;
    broker->retry_armed = timerfd_settime(broker->retry_fd, 0, &soon, NULL) == 0;
}

void loop_retry_later(struct broker *broker)
{
    const struct itimerspec later = {.it_value = {.tv_sec = RETRY_LATER_S}};

    if (!broker->retry_armed && !broker->retry_later)
        broker->retry_later = timerfd_settime(broker->retry_fd, 0, &later, NULL) == 0;
}

static void on_signal(struct broker *broker)
{
    struct signalfd_siginfo info;

    if (read(broker->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    if (info.ssi_signo == SIGUSR2) {
        keep_on_refused(broker);
        return;
    }
    log_write(LOG_STOPPED, NULL, "stopping: signal %s from pid %u",
              info.ssi_signo == SIGTERM ? "TERM" : "INT", info.ssi_pid);
    broker->stopping = broker->drain_until_ns || !drain_begin(broker); /* asked twice: at once */
}

static void drain(int fd)
{
    uint64_t count;

    (void)!read(fd, &count, sizeof(count));
}

static void on_retry(struct broker *broker)
{
    drain(broker->retry_fd);
    broker->retry_armed = broker->retry_later = broker->watch_later = false;
    keep_retry(broker);
    session_retry_stalled(broker);
    pairing_join_missed(broker);
    accept_resume(broker);
}

static void on_worker(struct broker *broker)
{
    struct job *job;

    drain(broker->worker_fd);
    while ((job = worker_pop(broker->worker)))
        job->finish(broker, job);
}

static void on_event(struct broker *broker, const struct epoll_event *event)
{
    struct session *session = registry_session(broker, event->data.u64 & ((UINT64_C(1) << ID_BITS) - 1));

    switch ((enum loop_source)(event->data.u64 >> ID_BITS)) {
    case LOOP_LISTEN:
        accept_on_event(broker);
        break;
    case LOOP_SIGNAL:
        on_signal(broker);
        break;
    case LOOP_WATCHDOG:
        drain(broker->watchdog_fd);
        if (routers_alive(broker->routers))
            keep_say(broker, "WATCHDOG=1");
        break;
    case LOOP_RETRY:
        on_retry(broker);
        break;
    case LOOP_WORKER:
        on_worker(broker);
        break;
    case LOOP_GUARDIAN:
        keep_on_guardian(broker);
        break;
    case LOOP_ADOPT:
        keep_on_adopt(broker);
        break;
    case LOOP_ROUTERS:
        routing_on_event(broker);
        break;
    case LOOP_SOCKET:
        if (session)
            session_on_socket(broker, session, event->events);
        break;
    case LOOP_PROCESS:
        if (session)
            session_on_process(broker, session);
        break;
    }
}

static void stop(struct broker *broker)
{
    keep_say(broker, "STOPPING=1\nSTATUS=Telling the sessions.");
    list_for_each_safe(node, &broker->refused)
        session_end(broker, list_entry(node, struct session, link), IPC_REASON_SHUTDOWN, NULL);
    /* Nobody is told about anybody's end but his own: there is no flush in between. */
    list_for_each_safe(other, &broker->sessions)
        session_end(broker, list_entry(other, struct session, link), IPC_REASON_SHUTDOWN, "the broker stops");
    session_bury(broker);
}

static bool idle(const struct broker *broker)
{
    return list_empty(&broker->dirty) && (broker->watch_later || list_empty(&broker->unwatched)) &&
           !broker->leftovers;
}

/* How long the loop may sleep, in milliseconds. */
static int patience(const struct broker *broker)
{
    uint64_t deadline_ns = session_deadline_ns(broker), look_ns = drain_deadline_ns(broker), now_ns;

    deadline_ns = look_ns < deadline_ns ? look_ns : deadline_ns;
    if (!idle(broker))
        return 0;
    if (deadline_ns == UINT64_MAX)
        return -1;
    now_ns = time_monotonic_ns();
    return deadline_ns <= now_ns ? 0 : (int)((deadline_ns - now_ns) / 1000000 + 1);
}

int loop_round(struct broker *broker)
{
    struct epoll_event events[EVENTS_PER_ROUND];
    int n = epoll_wait(broker->epoll_fd, events, EVENTS_PER_ROUND, patience(broker));

    if (n < 0 && errno != EINTR) {
        log_write(LOG_SYSTEM, NULL, "epoll_wait: %s", strerror(errno));
        return -errno;
    }
    broker->round++;
    /* Each is the first one at times: it is the first ones that use up their user's budget. */
    for (int i = 0; i < n; i++)
        on_event(broker, &events[((uint64_t)i + broker->round) % (uint64_t)n]);
    recover_some(broker);
    notice_flush(broker);
    session_end_overdue(broker);
    session_bury(broker);
    return 0;
}

int loop_run(struct broker *broker)
{
    int result = 0;

    while (!broker->stopping && !drain_is_over(broker) && result == 0)
        result = loop_round(broker);
    if (result == 0)
        stop(broker);
    return result;
}
