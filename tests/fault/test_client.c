/* SPDX-License-Identifier: Apache-2.0
 *
 * libipc, refused its n-th allocation or system call of each kind, for every n, once and for good, on a client's whole
 * way, each time in a process of its own. Calls fail with a reason or do what they say; nothing leaks; the same process
 * can go the whole way afterwards; and the broker has nothing left of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/fault/fault.h"
#include "tests/support/fault/series.h"
#include "tests/support/fault/way.h"

#define RING_SIZE 65536u

static bool tasks;

static void walk_in_child(void *argument)
{
    struct series *series = argument;
    const struct way way = {.ring_size = RING_SIZE, .tasks = tasks, .lasting = series->lasting};
    const struct way clean = {.ring_size = RING_SIZE, .tasks = tasks};
    unsigned descriptors = descriptors_open(), segments = segments_mapped(getpid());
    int64_t live = atomic_load(&fault->live);
    series_arm(series);
    unsigned failed = way_walk(&way);
    series_done(series, failed);
    EXPECT_EQ(descriptors_open(), descriptors);
    EXPECT_EQ(segments_mapped(getpid()), segments);
    EXPECT_EQ(atomic_load(&fault->live), live);
    if (series->hits > 0)
        EXPECT_EQ(way_walk(&clean), 0);
    EXPECT_EQ(descriptors_open(), descriptors);
    EXPECT_EQ(segments_mapped(getpid()), segments);
    EXPECT_EQ(atomic_load(&fault->live), live);
}

static void walk_each(void)
{
    /* These are no library's calls, or those of its helpers here. */
    static const enum fault_kind without[] = {FAULT_VFORK, FAULT_PIPE, FAULT_DUP2, FAULT_NONE};
    struct broker_counts before;
    struct series series;
    broker_start(&broker, NULL);
    EXPECT_EQ(way_walk(&(const struct way){.ring_size = RING_SIZE, .tasks = tasks}), 0);
    before = broker_count(&broker);
    series_begin(&series, NULL);
    series_without(&series, without);
    while (series_next(&series)) {
        pid_t child = child_start(walk_in_child, &series);
        int status = wait_child(child);
        series_looked(&series);
        if (status != 0)
            fprintf(stderr, "%s %u: status %d, first at 0x%llx\n", fault_words[series.kind].word, series.at,
                    status, (unsigned long long)atomic_load(&fault->where));
        EXPECT_EQ(status, 0);
        broker_settles(&broker, &before);
    }
    series_end(&series);
    broker_stop(&broker);
}

static void test_topics(void **state)
{
    (void)state;
    tasks = false;
    walk_each();
}

static void test_tasks(void **state)
{
    (void)state;
    tasks = true;
    walk_each();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_topics),
        cmocka_unit_test(test_tasks),
    };
    fault = fault_share();
    unsetenv("IPC_FAULT");
    cmocka_set_test_filter(getenv("IPC_FAULT_CASE")); /* as in fault_broker */
    return cmocka_run_group_tests_name("fault_client", tests, NULL, NULL);
}
