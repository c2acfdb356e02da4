/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/core/control/outbox.h"
#include "tests/support/watchdog.h"

static struct outbox outbox;
static int ends[2];

static int init(void **state)
{
    outbox_init(&outbox);
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends);
}

static int done(void **state)
{
    outbox_done(&outbox);
    if (ends[0] >= 0)
        close(ends[0]);
    close(ends[1]);
    return 0;
}

static void test_order_is_kept_when_the_socket_was_full(void **state)
{
    unsigned sent = 0, received = 0, value;

    while (outbox.size < 64 * sizeof(sent)) {
        assert_int_equal(outbox_send(&outbox, ends[0], &sent, sizeof(sent), NULL, 0), 0);
        sent++;
    }
    assert_int_equal(outbox_flush(&outbox, ends[0]), -EAGAIN);
    while (received < sent) {
        if (recv(ends[1], &value, sizeof(value), 0) == (ssize_t)sizeof(value)) {
            assert_int_equal(value, received);
            received++;
        } else {
            int result = outbox_flush(&outbox, ends[0]);

            assert_true(result == 0 || result == -EAGAIN);
        }
    }
    assert_true(outbox_empty(&outbox));
    assert_int_equal(outbox.size, 0);
}

static void test_it_is_bounded_and_keeps_its_own_descriptors(void **state)
{
    static const char frame[8192];
    unsigned before = descriptors_open();
    int result = 0;

    while (result == 0)
        result = outbox_send(&outbox, ends[0], frame, sizeof(frame), &ends[1], 1);
    assert_int_equal(result, -ENOBUFS);
    assert_int_equal(outbox.size, OUTBOX_SIZE_MAX);
    assert_int_equal(descriptors_open(), before + OUTBOX_SIZE_MAX / sizeof(frame));
    outbox_done(&outbox);
    assert_int_equal(descriptors_open(), before);
}

static void test_a_peer_that_is_gone(void **state)
{
    close(ends[1]);
    ends[1] = dup(ends[0]);
    assert_int_equal(outbox_send(&outbox, ends[0], "x", 1, NULL, 0), -EPIPE);
    assert_true(outbox_empty(&outbox));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, init, done)
    const struct CMUnitTest tests[] = {
        CASE(test_order_is_kept_when_the_socket_was_full),
        CASE(test_it_is_bounded_and_keeps_its_own_descriptors),
        CASE(test_a_peer_that_is_gone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
