/* SPDX-License-Identifier: Apache-2.0
 *
 * Sleeping, waking, bells. Each sleep is ended by another thread that waits until the sleeper is in the kernel.
 * The whole set runs again without futex_waitv and without membarrier.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#define NEXT IPC__CONTROL__START__START_NEXT

static struct fixture lane;

static int setup(void **state)
{
    (void)state;
    return fixture_init(&lane, IPC_MIN_RING_SIZE) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    fixture_done(&lane);
    return 0;
}

/* True once a thread of ours sleeps in a futex call. */
static bool sleeps(pid_t thread)
{
    char path[64], text[64] = "";
    snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    int call = n > 0 && strncmp(text, "running", 7) != 0 ? (int)strtol(text, NULL, 10) : -1;
    return call == SYS_futex || call == 449;
}

struct sleeper {
    struct lane_word words[IPC_MAX_WAITV];
    unsigned count;
    uint64_t deadline;
    _Atomic pid_t thread;
    _Atomic int result; /* 1: not back yet */
};

static void *sleeper_main(void *data)
{
    struct sleeper *sleeper = data;
    atomic_store(&sleeper->thread, gettid());
    int result;
    do /* as every caller: look again after each return */
        result = lane_sleep(sleeper->words, sleeper->count, sleeper->deadline);
    while (result == 0 &&
           *sleeper->words[sleeper->count - 1].word == sleeper->words[sleeper->count - 1].value);
    atomic_store(&sleeper->result, result);
    return NULL;
}

static pthread_t sleeper_start(struct sleeper *sleeper)
{
    pthread_t thread;
    atomic_store(&sleeper->thread, 0);
    atomic_store(&sleeper->result, 1);
    if (pthread_create(&thread, NULL, sleeper_main, sleeper) != 0)
        abort();
    while (atomic_load(&sleeper->thread) == 0 || !sleeps(atomic_load(&sleeper->thread)))
        sched_yield();
    return thread;
}

static void test_any_number_of_words(void **state)
{
    static _Atomic uint32_t words[IPC_MAX_WAITV];
    static const unsigned counts[] = {1, 2, 3, 64, 127, 128};
    (void)state;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        for (unsigned private = 0; private < 2; private ++) {
            struct sleeper sleeper = {.count = counts[i], .deadline = LANE_NEVER};
            for (unsigned k = 0; k < counts[i]; k++)
                sleeper.words[k] = (struct lane_word){&words[k], atomic_load(&words[k]), private};
            pthread_t thread = sleeper_start(&sleeper);
            _Atomic uint32_t *last = &words[counts[i] - 1];
            atomic_fetch_add(last, 1);
            lane_wake(last, private);
            pthread_join(thread, NULL);
            assert_int_equal(atomic_load(&sleeper.result), 0);
        }
    }
}

static void test_changed_before(void **state)
{
    _Atomic uint32_t words[3] = {1, 2, 3};
    (void)state;
    for (unsigned changed = 0; changed < 3; changed++) {
        struct lane_word set[3];
        for (unsigned i = 0; i < 3; i++)
            set[i] = (struct lane_word){&words[i], i + 1 + (i == changed), false};
        assert_int_equal(lane_sleep(set, 3, LANE_NEVER), 0);
    }
    assert_int_equal(lane_sleep(&(struct lane_word){&words[0], 9, true}, 1, LANE_NEVER), 0);
}

static void test_deadline(void **state)
{
    _Atomic uint32_t words[2] = {1, 2};
    struct lane_word set[] = {{&words[0], 1, false}, {&words[1], 2, false}};
    (void)state;
    for (unsigned count = 1; count <= 2; count++) {
        assert_int_equal(lane_sleep(set, count, 1), -ETIMEDOUT); /* long past */
        uint64_t deadline = lane_deadline(5000000);
        int result;
        do
            result = lane_sleep(set, count, deadline);
        while (result == 0);
        assert_int_equal(result, -ETIMEDOUT);
        assert_true(lane_now() >= deadline);
    }
    assert_true(lane_deadline(-1) == LANE_NEVER);
    assert_true(lane_deadline(INT64_MAX) > lane_now());
    assert_true(lane_deadline(0) <= lane_now());
}

static void test_without(void **state)
{
    char *before = getenv("IPC_WITHOUT");
    char saved[64] = "";
    (void)state;
    if (before)
        snprintf(saved, sizeof(saved), "%s", before);
    setenv("IPC_WITHOUT", "waitv,membarrier", 1);
    assert_true(lane_without("waitv") && lane_without("membarrier"));
    assert_false(lane_without("wait") || lane_without("") || lane_without("waitv,"));
    setenv("IPC_WITHOUT", ",,waitvx,,", 1);
    assert_false(lane_without("waitv"));
    setenv("IPC_WITHOUT", saved, 1);
}

/* A reader asleep by futex, on the mapping that it may only read, is woken by the next publish. */
static void test_publish_wakes(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    _Atomic uint32_t mail = 5;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    for (int i = 0; i < 200; i++) {
        struct sleeper sleeper = {.count = 2, .deadline = LANE_NEVER};
        lane_reader_arm(&reader, false);
        lane_barrier();
        assert_int_equal(fixture_receive(&reader, &record), 0);
        sleeper.words[0] = (struct lane_word){&mail, 5, false};
        assert_true(lane_reader_sleeps_on(&reader, &sleeper.words[1].word, &sleeper.words[1].value));
        pthread_t thread = sleeper_start(&sleeper);
        assert_int_equal(fixture_publish(&lane.writer, (uint32_t)i * 4), 0);
        pthread_join(thread, NULL);
        lane_reader_disarm(&reader);
        assert_int_equal(fixture_receive(&reader, &record), 1);
    }
    assert_int_equal(lane.writer.rings, 200);
}

/* The same for one that holds records in place: its cursor is not where it sleeps. */
static void test_publish_wakes_holder(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    for (int i = 0; i < 20; i++) {
        struct sleeper sleeper = {.count = 1, .deadline = LANE_NEVER};
        lane_reader_arm(&reader, false);
        lane_barrier();
        assert_true(lane_reader_sleeps_on(&reader, &sleeper.words[0].word, &sleeper.words[0].value));
        pthread_t thread = sleeper_start(&sleeper);
        assert_int_equal(fixture_publish(&lane.writer, 16), 0);
        pthread_join(thread, NULL);
        lane_reader_disarm(&reader);
        assert_int_equal(lane_reader_peek(&reader, &record), 1);
        lane_reader_hold(&reader, &record);
    }
    assert_int_equal(lane.writer.rings, 20);
}

/* Being counted by a writer rings a reader that went to sleep before. */
static void test_admission_wakes(void **state)
{
    struct lane_reader reader;
    struct sleeper sleeper = {.count = 1, .deadline = LANE_NEVER};
    (void)state;
    fixture_attach(&lane, &reader, 0, FIXTURE_DROP, NEXT);
    lane_reader_arm(&reader, false);
    lane_barrier();
    assert_true(lane_reader_sleeps_on(&reader, &sleeper.words[0].word, &sleeper.words[0].value));
    pthread_t thread = sleeper_start(&sleeper);
    assert_int_equal(fixture_publish(&lane.writer, 16), 0);
    assert_int_equal(lane.writer.rings, 0);
    assert_int_equal(fixture_admit(&lane, 0, FIXTURE_DROP, NEXT), 0);
    pthread_join(thread, NULL);
    assert_int_equal(lane.writer.rings, 1);
}

/* A writer that waits for room is woken by the reader that crosses what it wants, and by no other. */
static void test_crossing_wakes(void **state)
{
    struct lane_reader reader;
    struct lane_record record;
    (void)state;
    fixture_join(&lane, &reader, 0, FIXTURE_PIN, NEXT);
    for (int round = 0; round < 50; round++) {
        while (fixture_publish(&lane.writer, 100) == 0)
            ;
        struct sleeper sleeper = {.count = 1, .deadline = LANE_NEVER};
        const struct lane_peer *slowest;
        uint64_t raw;
        uint64_t want = lane_writer_want(&lane.writer, 112, &slowest, &raw);
        assert_non_null(slowest);
        sleeper.words[0] = (struct lane_word){lane_low_half(&slowest->cell->cursor), (uint32_t)raw, false};
        pthread_t thread = sleeper_start(&sleeper);
        while (reader.position < want) {
            assert_int_equal(fixture_receive(&reader, &record), 1);
            if (reader.position <
                want) { /* a report that does not cross wakes nobody, though the word moved */
                lane_reader_report(&reader);
                assert_true(sleeps(atomic_load(&sleeper.thread)));
                assert_int_equal(atomic_load(&sleeper.result), 1);
            }
        }
        lane_reader_report(&reader);
        pthread_join(thread, NULL);
        lane_writer_want_clear(&lane.writer);
    }
    assert_int_equal(reader.lost, 0);
}

static void test_bells(void **state)
{
    int pair[2];
    char byte;
    unsigned before = descriptors_open();
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    for (int i = 0; i < 3000; i++) /* far beyond full: never blocks */
        lane_bell_ring(pair[1]);
    assert_true(lane_bell_drain(pair[0]));
    assert_int_equal(recv(pair[0], &byte, 1, MSG_DONTWAIT), -1);
    assert_true(lane_bell_drain(pair[0])); /* empty */
    for (int rings = 255; rings <= 513; rings++) {
        for (int i = 0; i < rings; i++)
            lane_bell_ring(pair[1]);
        assert_true(lane_bell_drain(pair[0]));
        assert_int_equal(recv(pair[0], &byte, 1, MSG_DONTWAIT), -1);
    }
    const char rings[16384] = {0}; /* who has the other end rings faster than it can be emptied */
    assert_int_equal(send(pair[1], rings, sizeof(rings), MSG_DONTWAIT), sizeof(rings));
    assert_true(lane_bell_drain(pair[0]));
    assert_int_equal(recv(pair[0], &byte, 1, MSG_DONTWAIT), 1);
    shutdown(pair[1], SHUT_RDWR);
    while (lane_bell_drain(pair[0])) {}
    errno = 77;
    lane_bell_ring(pair[1]); /* no SIGPIPE, and errno as it was */
    assert_int_equal(errno, 77);
    close(pair[0]);
    lane_bell_ring(pair[1]);
    close(pair[1]);
    lane_bell_ring(pair[1]);
    assert_int_equal(descriptors_open(), before);
}

int main(int argc, char **argv)
{
#define LANE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_number_of_words),
        cmocka_unit_test(test_changed_before),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_without),
        LANE(test_publish_wakes),
        LANE(test_publish_wakes_holder),
        LANE(test_admission_wakes),
        LANE(test_crossing_wakes),
        cmocka_unit_test(test_bells),
    };
    static const char *const without[] = {"", "waitv", "membarrier", "waitv,membarrier"};
    (void)argv;
    watchdog(60, "unit/lane/test_wait");
    if (argc > 1) /* one setting, in a process of its own: it is read once */
        return cmocka_run_group_tests(tests, NULL, NULL);
    int failed = 0;
    for (unsigned i = 0; i < sizeof(without) / sizeof(without[0]); i++) {
        pid_t child = fork_child();
        if (child == 0) {
            setenv("IPC_WITHOUT", without[i], 1);
            execl("/proc/self/exe", "test_wait", "one", NULL);
            _exit(126);
        }
        int status = wait_child(child);
        printf("without \"%s\": status %d\n", without[i], status);
        failed += status != 0;
    }
    return failed || children_left();
}
