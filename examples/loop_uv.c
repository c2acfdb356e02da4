/* SPDX-License-Identifier: Apache-2.0
 *
 * A connection in libuv's loop: ipc_connection_fd() stands for all of its subscriptions and for news from the
 * broker. A timer publishes meanwhile.
 *
 *     ipcd-run --private -- loop_uv
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

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

enum { TOPICS = 2, MESSAGES = 50 };

struct program {
    ipc_connection *publishing, *subscribing;
    ipc_publisher *publishers[TOPICS];
    ipc_subscription *subscriptions[TOPICS];
    uint64_t sent, received[TOPICS];
    uv_poll_t poll;
    uv_timer_t timer, deadline;
};

static void on_timer(uv_timer_t *timer)
{
    struct program *program = timer->data;

    for (unsigned i = 0; i < TOPICS; i++)
        check(ipc_publisher_publish(program->publishers[i], &program->sent, sizeof(program->sent)),
              "publishing");
    if (++program->sent == MESSAGES)
        uv_timer_stop(timer);
}

static void on_deadline(uv_timer_t *timer)
{
    expect(false, "everything came within 10 s");
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct program *program = poll->data;
    uint64_t all = 0;

    check(status, "polling");
    check(ipc_connection_dispatch(program->subscribing), "dispatching");
    for (unsigned i = 0; i < TOPICS; i++) {
        uint64_t number;
        ssize_t size;

        while ((size = ipc_subscription_receive(program->subscriptions[i], &number, sizeof(number), NULL,
                                                0)) != -EAGAIN) {
            check(size, "receiving");
            expect(number == program->received[i], "in order, none missing");
            program->received[i]++;
        }
        all += program->received[i];
    }
    if (all == TOPICS * MESSAGES) {
        uv_close((uv_handle_t *)&program->poll, NULL);
        uv_close((uv_handle_t *)&program->timer, NULL);
        uv_close((uv_handle_t *)&program->deadline, NULL);
    }
}

int main(void)
{
    static const char *const topics[TOPICS] = {"left", "right"};
    static struct program program;
    uv_loop_t *loop = uv_default_loop();

    check(ipc_connection_open(&program.publishing, NULL, NULL, NULL), "connecting");
    check(ipc_connection_open(&program.subscribing, NULL, NULL, NULL), "connecting");
    for (unsigned i = 0; i < TOPICS; i++) {
        check(ipc_subscription_open(&program.subscriptions[i], program.subscribing, topics[i], NULL, NULL),
              "subscribing");
        check(ipc_publisher_open(&program.publishers[i], program.publishing, topics[i], NULL, NULL),
              "advertising");
        check(ipc_publisher_wait_readers(program.publishers[i], 1, 10 * SECOND), "waiting for the reader");
    }

    program.poll.data = program.timer.data = &program;
    check(uv_poll_init(loop, &program.poll,
                       (int)check(ipc_connection_fd(program.subscribing), "the descriptor")),
          "uv_poll_init");
    check(uv_poll_start(&program.poll, UV_READABLE, on_readable), "uv_poll_start");
    check(uv_timer_init(loop, &program.timer), "uv_timer_init");
    check(uv_timer_start(&program.timer, on_timer, 1, 1), "uv_timer_start");
    check(uv_timer_init(loop, &program.deadline), "uv_timer_init");
    check(uv_timer_start(&program.deadline, on_deadline, 10000, 0), "uv_timer_start");
    uv_run(loop, UV_RUN_DEFAULT); /* until every handle is closed */
    check(uv_loop_close(loop), "uv_loop_close");

    printf("%d messages through libuv's loop\n", TOPICS * MESSAGES);
    ipc_connection_close(program.publishing);
    ipc_connection_close(program.subscribing);
    return 0;
}
