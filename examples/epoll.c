/* SPDX-License-Identifier: Apache-2.0
 *
 * A subscription in an epoll loop, beside other descriptors: here a timer whose ticks publish, as a program's
 * other work would. The descriptor is level-triggered: when it is readable, receive with timeout 0 until
 * -EAGAIN.
 *
 *     ipcd-run --private -- epoll
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <ipc/ipc.h>

#define SECOND INT64_C(1000000000)

/* Every call that can fail is asked whether it did. */
static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

static void expect(bool fact, const char *what)
{
    if (!fact) {
        fprintf(stderr, "not true: %s\n", what);
        exit(1);
    }
}

enum { TICKS = 20, MESSAGES_PER_TICK = 5 };

static void watch(int loop, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    check(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0, "epoll_ctl");
}

static uint64_t drain(ipc_subscription *subscription, uint64_t expected)
{
    uint64_t number;
    ssize_t size;

    while ((size = ipc_subscription_receive(subscription, &number, sizeof(number), NULL, 0)) != -EAGAIN) {
        check(size, "receiving");
        expect(number == expected, "in order, none missing");
        expected++;
    }
    return expected;
}

int main(void)
{
    const struct itimerspec every_ms = {{0, 1000000}, {0, 1000000}};
    ipc_connection *publishing, *subscribing;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    uint64_t sent = 0, received = 0;
    int loop = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    int bell;

    expect(loop >= 0 && timer >= 0, "there are descriptors left");
    check(ipc_connection_open(&publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&subscribing, NULL, NULL, NULL), "connecting");
    check(ipc_publisher_open(&publisher, publishing, "ticks", NULL, NULL), "advertising");
    check(ipc_subscription_open(&subscription, subscribing, "ticks", NULL, NULL), "subscribing");
    check(ipc_publisher_wait_readers(publisher, 1, 10 * SECOND), "waiting for the reader");

    bell = (int)check(ipc_subscription_fd(subscription),
                      "asking for the descriptor"); /* the subscription's own */
    watch(loop, bell);
    watch(loop, timer);
    check(timerfd_settime(timer, 0, &every_ms, NULL) < 0 ? -errno : 0, "starting the timer");

    while (received < TICKS * MESSAGES_PER_TICK) {
        struct epoll_event events[4];
        int n = epoll_wait(loop, events, 4, 10000);

        expect(n > 0, "something happens within 10 s");
        for (int i = 0; i < n; i++) {
            uint64_t ticks;

            if (events[i].data.fd == bell) {
                received = drain(subscription, received);
            } else if (read(timer, &ticks, sizeof(ticks)) == sizeof(ticks) &&
                       sent < TICKS * MESSAGES_PER_TICK) {
                for (unsigned n_of_tick = 0; n_of_tick < MESSAGES_PER_TICK; n_of_tick++, sent++)
                    check(ipc_publisher_publish(publisher, &sent, sizeof(sent)), "publishing");
            }
        }
    }
    printf("%llu messages through an epoll loop\n", (unsigned long long)received);
    ipc_connection_close(publishing);
    ipc_connection_close(subscribing);
    close(timer);
    close(loop);
    return 0;
}
