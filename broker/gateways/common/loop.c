/* SPDX-License-Identifier: Apache-2.0
 *
 * One epoll loop. A source that is unwatched in the middle of a round is taken out of what that round has still to do.
 */
#include <errno.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"

#define EVENTS_PER_ROUND 64
#define PREEMPTED_NS     UINT64_C(1000000) /* how often the preemptions are counted, */
#define PREEMPTED_OFTEN  16                /* and how many are too many */

int gateway_loop_init(struct gateway *gateway)
{
    gateway->spin = SPIN_ADAPTIVE;
    gateway->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return gateway->epoll_fd < 0 ? -errno : 0;
}

void gateway_loop_done(struct gateway *gateway)
{
    gateway->epoll_fd = fd_close(gateway->epoll_fd);
}

int gateway_watch(struct gateway *gateway, struct gateway_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};

    if (source->watched && source->events == events)
        return 0;
    if (epoll_ctl(gateway->epoll_fd, source->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, source->fd, &event) < 0)
        return -errno;
    source->watched = true;
    source->events = events;
    return 0;
}

void gateway_unwatch(struct gateway *gateway, struct gateway_source *source)
{
    if (!source->watched)
        return;
    (void)epoll_ctl(gateway->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->watched = false;
    for (int i = 0; i < gateway->n_pending; i++)
        if (gateway->pending[i].data.ptr == source)
            gateway->pending[i].data.ptr = NULL;
}

static void take_out(struct gateway *gateway, struct gateway_timer *timer)
{
    for (struct gateway_timer **at = &gateway->timers; *at; at = &(*at)->next) {
        if (*at == timer) {
            *at = timer->next;
            break;
        }
    }
    timer->set = false;
}

void gateway_timer_set(struct gateway *gateway, struct gateway_timer *timer, uint64_t at_ns)
{
    struct gateway_timer **at = &gateway->timers;

    if (timer->set)
        take_out(gateway, timer);
    if (at_ns == 0)
        return;
    while (*at && (*at)->at_ns <= at_ns)
        at = &(*at)->next;
    timer->at_ns = at_ns;
    timer->next = *at;
    timer->set = true;
    *at = timer;
}

static void run_timers(struct gateway *gateway)
{
    uint64_t now_ns;

    if (!gateway->timers)
        return;
    now_ns = time_monotonic_ns();
    while (gateway->timers && gateway->timers->at_ns <= now_ns && !gateway->over) {
        struct gateway_timer *timer = gateway->timers;

        take_out(gateway, timer);
        timer->due(timer);
    }
}

/* The kernel likes to have who wakes and who is woken share a cpu. Where both are in a stream, they then take turns at every
 * message or two, though the next cpu may do less; and since both are always about to run, they stay. Who is preempted so
 * often steps aside. Without effect where only one cpu is allowed, or the call is not. */
static void step_aside(struct gateway *gateway, uint64_t now_ns)
{
    struct rusage usage;
    cpu_set_t allowed, others;
    long preempted;

    if (now_ns - gateway->preempted_ns < PREEMPTED_NS)
        return;
    (void)getrusage(RUSAGE_THREAD, &usage);
    preempted = usage.ru_nivcsw - gateway->preempted;
    gateway->preempted = usage.ru_nivcsw;
    if (now_ns - gateway->preempted_ns < 2 * PREEMPTED_NS && preempted > PREEMPTED_OFTEN &&
        sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        others = allowed;
        CPU_CLR((unsigned)sched_getcpu(), &others);
        if (sched_setaffinity(0, sizeof(others), &others) == 0)
            (void)sched_setaffinity(0, sizeof(allowed), &allowed);
    }
    gateway->preempted_ns = now_ns;
}

/* Up to EVENTS_PER_ROUND events, waited for until at_ns: polling while that pays. How many, or a negative errno. */
static int wait_for_events(struct gateway *gateway, struct epoll_event *events, uint64_t at_ns)
{
    const uint64_t start = time_monotonic_ns(), budget = spin_budget(&gateway->spin);
    uint64_t now = start;
    bool slept = false;
    int n = 0;

    while (n == 0 && now < at_ns && now - start < budget) {
        n = epoll_wait(gateway->epoll_fd, events, EVENTS_PER_ROUND, 0);
        if (n == 0)
            spin_yield();
        now = time_monotonic_ns();
    }
    if (n == 0) {
        uint64_t left = at_ns > now ? at_ns - now : 0;
        struct timespec limit = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};

        n = epoll_pwait2(gateway->epoll_fd, events, EVENTS_PER_ROUND, at_ns < UINT64_MAX ? &limit : NULL,
                         NULL);
        now = time_monotonic_ns();
        slept = left > 0;
    }
    if (n > 0) {
        spin_learn(&gateway->spin, now - start, slept);
        step_aside(gateway, now);
    }
    return n >= 0 ? n : errno == EINTR ? 0 : -errno;
}

int gateway_loop_run(struct gateway *gateway)
{
    struct epoll_event events[EVENTS_PER_ROUND];

    while (!gateway->over && !gateway->stopping) {
        uint64_t at_ns = gateway->kind->round ? gateway->kind->round(gateway) : UINT64_MAX;
        int n;

        if (gateway->over || gateway->stopping)
            break;
        if (gateway->timers && gateway->timers->at_ns < at_ns)
            at_ns = gateway->timers->at_ns;
        n = wait_for_events(gateway, events, at_ns);
        if (n < 0)
            return n;
        gateway->pending = events;
        gateway->n_pending = n;
        for (int i = 0; i < gateway->n_pending && !gateway->over; i++) {
            struct gateway_source *source = events[i].data.ptr;

            if (source)
                source->ready(source, events[i].events);
        }
        gateway->n_pending = 0;
        run_timers(gateway);
    }
    return 0;
}
