/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared segments: real processes that coordinate by permits, die with them, and see the broker die.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <ipc/segment.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

#define WORKERS 4
#define ROUNDS  20000u

static ipc_segment *segment_new(ipc_connection *connection, const char *name, uint64_t bytes,
                                unsigned permits, unsigned flags)
{
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    struct ipc_error error;
    ipc_segment *segment = NULL;
    options.bytes = bytes;
    options.permits = permits;
    options.flags = flags;
    if (ipc_segment_open(&segment, connection, name, bytes || flags ? &options : NULL, &error) < 0)
        fprintf(stderr, "%s\n", error.text);
    EXPECT(segment != NULL);
    return segment;
}

/* The sum that all workers make is right only if no two of them are in between at a time. */
static void add_up(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "sum", 4096, 1, IPC_SEGMENT_CREATE);
    volatile uint64_t *sum = ipc_segment_data(segment);
    (void)argument;
    for (unsigned i = 0; i < ROUNDS; i++) {
        int permit = ipc_segment_acquire(segment, SECONDS(50));
        EXPECT_EQ(permit, 0);
        uint64_t before = sum[0];
        sum[1] = before ^ 0x55;
        sum[0] = before + 1;
        EXPECT_EQ(sum[1], before ^ 0x55);
        EXPECT_EQ(ipc_segment_release(segment, permit), 0);
    }
    ipc_segment_close(segment);
    ipc_connection_close(connection);
}

static void test_exclusion(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "sum", 4096, 1, IPC_SEGMENT_CREATE);
    pid_t workers[WORKERS];
    EXPECT_EQ(ipc_segment_created(segment), 1);
    EXPECT_EQ(ipc_segment_size(segment), 4096);
    for (int i = 0; i < WORKERS; i++)
        workers[i] = child_start(add_up, NULL);
    for (int i = 0; i < WORKERS; i++)
        child_done(workers[i]);
    EXPECT_EQ(*(uint64_t *)ipc_segment_data(segment), WORKERS * ROUNDS);
    ipc_segment_close(segment);
    ipc_connection_close(connection);
}

static void test_permits_and_deadline(void **state)
{
    ipc_connection *one = connection_new(), *two = connection_new();
    ipc_segment *mine = segment_new(one, "pool", 100, 3, IPC_SEGMENT_CREATE),
                *yours = segment_new(two, "pool", 0, 0, 0);
    EXPECT_EQ(ipc_segment_created(yours), 0);
    EXPECT_EQ(ipc_segment_size(yours), 100);
    EXPECT_EQ(ipc_segment_permits(yours), 3);
    EXPECT_EQ(ipc_segment_acquire(mine, 0), 0);
    EXPECT_EQ(ipc_segment_acquire(yours, 0), 1);
    EXPECT_EQ(ipc_segment_acquire(mine, 0), 2);
    EXPECT_EQ(ipc_segment_acquire(yours, 0), -EAGAIN);
    EXPECT_EQ(ipc_segment_acquire(yours, 1000000), -ETIMEDOUT);
    EXPECT_EQ(ipc_segment_release(yours, 0), -EPERM);
    EXPECT_EQ(ipc_segment_release(yours, 3), -EINVAL);
    EXPECT_EQ(ipc_segment_release(yours, -1), -EINVAL);
    EXPECT_EQ(ipc_segment_release(mine, 0), 0);
    EXPECT_EQ(ipc_segment_release(mine, 0), -EPERM);
    EXPECT_EQ(ipc_segment_acquire(yours, IPC_FOREVER), 0);
    ipc_segment_close(mine); /* and with it permit 2 */
    EXPECT_EQ(ipc_segment_acquire(yours, IPC_FOREVER), 2);
    ipc_segment_close(yours);
    ipc_connection_close(one);
    ipc_connection_close(two);
}

static void test_mistakes(void **state)
{
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    struct ipc_error error;
    ipc_connection *connection = connection_new();
    ipc_segment *segment, *other = NULL;
    EXPECT_EQ(ipc_segment_open(&other, connection, "none", NULL, &error), -ENOENT);
    EXPECT_TEXT(error.text, "IPC_SEGMENT_CREATE");
    EXPECT_EQ(ipc_segment_open(&other, connection, "a.*", NULL, &error), -EINVAL);
    options.flags = IPC_SEGMENT_CREATE;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EINVAL); /* no size */
    options.bytes = UINT64_C(2) << 30;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "1073741824");
    options.bytes = 10;
    options.permits = 257;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EINVAL);
    options.permits = 256;
    options.flags = 0x100;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EINVAL);
    segment = segment_new(connection, "x", 10, 256, IPC_SEGMENT_EXCLUSIVE);
    options.flags = IPC_SEGMENT_EXCLUSIVE;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EEXIST);
    options.flags = IPC_SEGMENT_CREATE;
    options.bytes = 11;
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", &options, &error), -EINVAL);
    EXPECT_TEXT(error.text, "10 bytes and 256 permits, not 11");
    EXPECT(other == NULL);
    ipc_segment_close(segment);
    EXPECT_EQ(ipc_segment_open(&other, connection, "x", NULL, &error),
              -ENOENT); /* it went with its last user */
    ipc_connection_close(connection);
}

static void test_keep_and_remove(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment =
        segment_new(connection, "kept", 64 << 20, 1, IPC_SEGMENT_CREATE | IPC_SEGMENT_KEEP);
    struct ipc_error error;
    memcpy(ipc_segment_data(segment), "hello", 6);
    ipc_segment_close(segment);
    segment = segment_new(connection, "kept", 0, 0, 0);
    EXPECT_TEXT((char *)ipc_segment_data(segment), "hello");
    EXPECT_EQ(ipc_segment_remove(connection, "kept", &error), 0);
    EXPECT_TEXT((char *)ipc_segment_data(segment), "hello");
    ipc_segment_close(segment);
    EXPECT_EQ(ipc_segment_remove(connection, "kept", &error), -ENOENT);
    ipc_connection_close(connection);
}

static int taken;

static void take_and_wait(void *argument)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "deadly", 4096, 2, IPC_SEGMENT_CREATE);
    EXPECT(ipc_segment_acquire(segment, IPC_FOREVER) >= 0);
    EXPECT(ipc_segment_acquire(segment, IPC_FOREVER) >= 0);
    gate_open(taken);
    EXPECT(ipc_segment_acquire(segment, IPC_FOREVER) < 0); /* it also waits: that must hurt nobody */
}

static void test_death(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "deadly", 4096, 2, IPC_SEGMENT_CREATE);
    taken = gate_new();
    for (unsigned round = 0; round < 20; round++) {
        pid_t holder = child_start(take_and_wait, NULL);
        gate_wait(taken);
        EXPECT_EQ(ipc_segment_acquire(segment, 0), -EAGAIN);
        kill(holder, round % 2 ? SIGKILL : SIGSTOP);
        if (round % 2 == 0) { /* a stopped process is not a dead one */
            EXPECT_EQ(ipc_segment_acquire(segment, 20000000), -ETIMEDOUT);
            kill(holder, SIGKILL);
        }
        int first = ipc_segment_acquire(segment, IPC_FOREVER),
            second = ipc_segment_acquire(segment, IPC_FOREVER);
        EXPECT(first >= 0 && second >= 0 && first != second);
        EXPECT_EQ(ipc_segment_release(segment, first), 0);
        EXPECT_EQ(ipc_segment_release(segment, second), 0);
        EXPECT_EQ(wait_child(holder), 128 + SIGKILL);
    }
    close(taken);
    ipc_segment_close(segment);
    ipc_connection_close(connection);
}

static void hold_across(void *argument)
{
    take_and_wait(argument);
}

/* ipcd is killed: segments, attachments and permits are as they were; who dies meanwhile is found. */
static void test_restart(void **state)
{
    static const char *const quiet[] = {"--log-level", "error", NULL};
    struct guarded guarded;
    broker_stop(&broker);
    guarded_start(&guarded, quiet);
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "deadly", 4096, 2, IPC_SEGMENT_CREATE);
    taken = gate_new();
    for (unsigned round = 0; round < 3; round++) {
        pid_t holder = child_start(hold_across, NULL);
        gate_wait(taken);
        guarded_kill_ipcd(&guarded);
        EXPECT_EQ(ipc_segment_acquire(segment, 0), -EAGAIN);
        ((char *)ipc_segment_data(segment))[0] = (char)round;
        kill(holder, SIGKILL);
        if (round == 1)
            guarded_kill_ipcd(&guarded);
        int first = ipc_segment_acquire(segment, IPC_FOREVER),
            second = ipc_segment_acquire(segment, IPC_FOREVER);
        EXPECT(first >= 0 && second >= 0);
        EXPECT_EQ(ipc_segment_release(segment, first), 0);
        EXPECT_EQ(ipc_segment_release(segment, second), 0);
        EXPECT_EQ(wait_child(holder), 128 + SIGKILL);
        ipc_segment *again = segment_new(connection, "deadly", 0, 0, 0);
        EXPECT_EQ(((char *)ipc_segment_data(again))[0], round);
        ipc_segment_close(again);
    }
    close(taken);
    ipc_segment_close(segment);
    ipc_connection_close(connection);
    guarded_stop(&guarded);
    broker_start(&broker, NULL);
}

static void open_foreign(void *argument)
{
    struct ipc_error error;
    ipc_segment *segment = NULL;
    EXPECT_EQ(setgid(65534), 0);
    EXPECT_EQ(setuid(65534), 0);
    ipc_connection *connection = NULL;
    if (ipc_connection_open(&connection, NULL, NULL, &error) < 0)
        fprintf(stderr, "%s\n", error.text);
    EXPECT(connection != NULL);
    EXPECT_EQ(ipc_segment_open(&segment, connection, "private", NULL, &error), -EACCES);
    EXPECT_TEXT(error.text, "private");
    EXPECT_EQ(ipc_segment_open(&segment, connection, "public", NULL, &error), 0);
    EXPECT_EQ(ipc_segment_acquire(segment, 0), 0);
    ipc_segment_close(segment);
    ipc_connection_close(connection);
}

static void test_mode(void **state)
{
    if (getuid() != 0)
        skip();
    ipc_connection *connection = connection_new();
    ipc_segment *private = segment_new(connection, "private", 100, 1, IPC_SEGMENT_CREATE), *public = NULL;
    struct ipc_segment_options options = IPC_SEGMENT_OPTIONS_INIT;
    options.bytes = 100;
    options.flags = IPC_SEGMENT_CREATE;
    options.mode = 0666;
    EXPECT_EQ(ipc_segment_open(&public, connection, "public", &options, NULL), 0);
    char folder[80];
    snprintf(folder, sizeof(folder), "%s", broker.address);
    *strrchr(folder, '/') = 0;
    EXPECT_EQ(chmod(broker.folder, 0711), 0);
    EXPECT_EQ(chmod(folder, 0711), 0);
    EXPECT_EQ(chmod(broker.address, 0666), 0);
    child_done(child_start(open_foreign, NULL));
    EXPECT_EQ(ipc_segment_acquire(public, IPC_FOREVER), 0);
    ipc_segment_close(private);
    ipc_segment_close(public);
    ipc_connection_close(connection);
}

static void use_inherited(void *argument)
{
    EXPECT_EQ(ipc_segment_acquire(argument, 0), -ECHILD);
    EXPECT_EQ(ipc_segment_release(argument, 0), -ECHILD);
    ipc_segment_close(argument);
}

static void test_fork(void **state)
{
    ipc_connection *connection = connection_new();
    ipc_segment *segment = segment_new(connection, "forked", 100, 1, IPC_SEGMENT_CREATE);
    EXPECT_EQ(ipc_segment_acquire(segment, 0), 0);
    child_done(child_start(use_inherited, segment));
    EXPECT_EQ(ipc_segment_release(segment, 0), 0);
    ipc_segment_close(segment);
    ipc_connection_close(connection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_exclusion), CASE(test_permits_and_deadline),
        CASE(test_mistakes),  CASE(test_keep_and_remove),
        CASE(test_death),     CASE(test_restart),
        CASE(test_mode),      CASE(test_fork),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
