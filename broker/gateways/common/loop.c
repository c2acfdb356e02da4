/* SPDX-License-Identifier: Apache-2.0
 *
 * One epoll loop. A source that is unwatched in the middle of a round is taken out of what that round has still to do.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <time.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"

#define EVENTS_PER_ROUND 64

int gateway_loop_init(struct gateway *gateway)
{
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

int gateway_loop_run(struct gateway *gateway)
{
    struct epoll_event events[EVENTS_PER_ROUND];

    while (!gateway->over && !gateway->stopping) {
        uint64_t at_ns = gateway->kind->round ? gateway->kind->round(gateway) : UINT64_MAX;
        struct timespec left = {0};
        int n;

        if (gateway->over || gateway->stopping)
            break;
        if (gateway->timers && gateway->timers->at_ns < at_ns)
            at_ns = gateway->timers->at_ns;
        if (at_ns > 0 && at_ns < UINT64_MAX) {
            uint64_t now_ns = time_monotonic_ns();

            if (at_ns > now_ns)
                left = (struct timespec){.tv_sec = (time_t)((at_ns - now_ns) / 1000000000),
                                         .tv_nsec = (long)((at_ns - now_ns) % 1000000000)};
        }
        n = epoll_pwait2(gateway->epoll_fd, events, EVENTS_PER_ROUND, at_ns < UINT64_MAX ? &left : NULL,
                         NULL);
        if (n < 0 && errno != EINTR)
            return -errno;
        gateway->pending = events;
        gateway->n_pending = n > 0 ? n : 0;
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
