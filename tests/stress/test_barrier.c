/* SPDX-License-Identifier: Apache-2.0
 *
 * The handshake between a publish and going to sleep, many times at the same moment: a reader arms, issues the
 * barrier (or, as one that sleeps often, lets the writer fence) and looks; a writer publishes and looks who sleeps.
 * Whatever the order, the reader finds the record or the writer rings. No thread ever waits in the kernel here, which
 * could make up for a missing barrier.
 *
 * test_barrier [ROUNDS], or IPC_STRESS_ROUNDS.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#ifdef IPC_TSAN
# define ROUNDS 5000
#else
# define ROUNDS 30000
#endif

static struct shared {
    _Alignas(128) _Atomic uint64_t writer_round;
    _Alignas(128) _Atomic uint64_t reader_round;
    _Alignas(128) _Atomic uint64_t quiet; /* the reader found nothing in that round */
} * shared;

static struct fixture lane;
static struct lane_reader reader;
static uint64_t rounds;

static void meet(_Atomic uint64_t *mine, const _Atomic uint64_t *other, uint64_t round)
{
    atomic_store(mine, round);
    for (unsigned i = 1; atomic_load(other) < round; i++)
        if (i % 4096 == 0)
            sched_yield();
}

/* A while of any magnitude: a few instructions, or longer than a barrier takes. */
static void spin(uint64_t *random)
{
    *random = *random * UINT64_C(6364136223846793005) + 1;
    uint64_t rounds_max = UINT64_C(1) << (*random >> 32) % 14;
    for (uint64_t i = (*random >> 40) % rounds_max; i > 0; i--)
        __asm__ volatile("" ::: "memory");
}

/* Stores to lines that no cache holds: those of the commit have to wait behind them, in sight of nobody. Without that, two
 * threads of one core see each other's stores almost at once. */
#define FAR_SIZE (UINT64_C(1) << 26)
static volatile unsigned char *far;

static void delay_stores(uint64_t *random)
{
    for (uint64_t left = *random >> 32 & 31; left > 0; left--) {
        *random = *random * UINT64_C(6364136223846793005) + 1;
        far[*random >> 32 & (FAR_SIZE - 1)] = 1;
    }
}

static void *reader_main(void *data)
{
    const _Atomic uint32_t *word;
    uint32_t value;
    uint64_t random = 1;
    struct lane_record record;
    (void)data;
    for (uint64_t round = 1; round <= rounds; round++) {
        meet(&shared->reader_round, &shared->writer_round, 2 * round);
        spin(&random);
        reader.often = round / 64 % 2; /* turns of either way to sleep */
        if (lane_reader_arm(&reader, false)) {
            lane_barrier();
            lane_reader_barred(&reader);
        } else {
#ifndef IPC_TSAN
            atomic_thread_fence(memory_order_seq_cst);
#endif
        }
        if (lane_reader_sleeps_on(&reader, &word, &value))
            atomic_store(&shared->quiet, round);
        meet(&shared->reader_round, &shared->writer_round, 2 * round + 1);
        lane_reader_disarm(&reader);
        if (fixture_receive(&reader, &record) != 1)
            abort();
    }
    return NULL;
}

static uint64_t write_all(void)
{
    uint64_t random = 2, slept = 0;
    for (uint64_t round = 1; round <= rounds; round++) {
        unsigned char *body;
        if (lane_writer_reserve(&lane.writer, 1000, &body) < 0)
            abort();
        meet(&shared->writer_round, &shared->reader_round, 2 * round);
        spin(&random);
        uint64_t rings = lane.writer.rings;
        unsigned char message[1000] = {0};
        lane_copy_in(body, message, sizeof(message));
        fixture_fill(message, 8, lane.writer.sequence);
        lane_copy_in(body, message, 8);
        delay_stores(&random);
        lane_writer_commit(&lane.writer, 8, 0);
        bool rang = lane.writer.rings != rings;
        meet(&shared->writer_round, &shared->reader_round, 2 * round + 1);
        if (atomic_load(&shared->quiet) == round) {
            slept++;
            if (!rang) {
                printf("BAD: in round %llu the reader found nothing and the writer did not ring\n",
                       (unsigned long long)round);
                return 0;
            }
        }
    }
    return slept;
}

int main(int argc, char **argv)
{
    const char *text = argc > 1 ? argv[1] : getenv("IPC_STRESS_ROUNDS");
    rounds = text && *text ? strtoull(text, NULL, 10) : ROUNDS;
    watchdog(300, "stress/test_barrier");
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !fixture_init(&lane, 4096) || !lane_barrier_register())
        printf("without membarrier: each publish is fenced\n");
    far = mmap(NULL, FAR_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (far == MAP_FAILED)
        return 1;
    fixture_admit(&lane, 0, FIXTURE_DROP, IPC__CONTROL__START__START_NEXT);
#ifdef IPC_TSAN
    pthread_t thread;
    fixture_attach(&lane, &reader, 0, FIXTURE_DROP, IPC__CONTROL__START__START_NEXT);
    if (pthread_create(&thread, NULL, reader_main, NULL) != 0)
        return 1;
    uint64_t slept = write_all();
    if (slept > 0)
        pthread_join(thread, NULL);
#else
    pid_t child = fork_child();
    if (child == 0) {
        struct fixture own = lane;
        if (!fixture_remap(&own))
            _exit(1);
        lane = own;
        lane_barrier_register();
        fixture_attach(&lane, &reader, 0, FIXTURE_DROP, IPC__CONTROL__START__START_NEXT);
        reader_main(NULL);
        _exit(0);
    }
    uint64_t slept = write_all();
    if (slept == 0)
        return 1;
    if (wait_child(child) != 0)
        return 1;
#endif
    printf("%llu rounds, the reader would have slept in %llu\n", (unsigned long long)rounds,
           (unsigned long long)slept);
    return slept == 0;
}
