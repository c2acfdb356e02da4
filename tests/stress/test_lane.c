/* SPDX-License-Identifier: Apache-2.0
 *
 * Writers and readers of lanes, as processes, more of them than there are processors; under ThreadSanitizer as
 * threads over one mapping. Every message is checked: its number, its size, its content. Readers that pin lose
 * nothing, readers that do not count exactly what they missed, and nobody is ever found asleep beside work.
 *
 * test_lane [SECONDS [SEED [NET_MS]]], or IPC_STRESS_SECONDS, IPC_STRESS_SEED.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control.pb-c.h"
#include "libipc/lane/wait.h"
#include "proto/limits.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#ifdef IPC_TSAN
# define THREADS true
#else
# define THREADS false
#endif

#define WRITERS_MAX             4u
#define READERS_MAX             8u
#define RING_SIZE               8192u
#define PAIRING(writer, reader) (100u + (writer)*READERS_MAX + (reader))
#define END                     IPC_RECORD_HEADERS /* flag of the last record of a lane */

static struct {
    unsigned writers, readers;
    bool answering; /* two roles that take turns, each writes one lane and reads the other */
    int lane_fds[WRITERS_MAX];
    int cells_fds[READERS_MAX];
    uint64_t seed, net_ns, until;
    /* One mapping for all threads. */
    struct ipc_lane *lanes[WRITERS_MAX];
    struct ipc_cells *cells[READERS_MAX];
} setting;

static struct shared {
    _Atomic uint32_t mail; /* nobody writes it: here everybody lives */
    _Atomic uint64_t published, received, lost, overrun, sleeps, rings, waits, net;
} * shared;

struct role {
    unsigned index;
    bool writes;
    uint64_t random;
    pthread_t thread;
    pid_t process;
};

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void spin(uint64_t rounds)
{
    for (uint64_t i = 0; i < rounds; i++)
        __asm__ volatile("" ::: "memory");
}

_Noreturn static void fail(const char *what, unsigned reader, unsigned writer, uint64_t number)
{
    fprintf(stderr, "reader %u, writer %u, message %llu: %s\n", reader, writer, (unsigned long long)number,
            what);
    _exit(1);
}

/* Every reader can work out what the size must be. */
static uint32_t size_of(unsigned writer, uint64_t number)
{
    uint64_t random = setting.seed + number * 2654435761u + writer + 1;
    next_random(&random);
    uint64_t kind = next_random(&random) % 32;
    /* Many lines to write, which the reader has in its cache: the commit stays in the store buffer for long, and
     * the look at who sleeps overtakes it by far. Only the sleeper's barrier keeps that harmless. */
    if (setting.answering)
        return kind < 8 ? 8 : 1800 + (uint32_t)kind;
    uint32_t limit = kind == 0 ? lane_body_size_max(RING_SIZE) + 1 : kind < 6 ? 700 : 120;
    return (uint32_t)(next_random(&random) % limit);
}

static struct ipc_lane *lane_of(unsigned writer, bool writable)
{
    if (THREADS)
        return setting.lanes[writer];
    return fixture_map(setting.lane_fds[writer], IPC_SEGMENT_LANE, RING_SIZE, writable);
}

static struct ipc_cells *cells_of(unsigned reader, bool writable)
{
    if (THREADS)
        return setting.cells[reader];
    return fixture_map(setting.cells_fds[reader], IPC_SEGMENT_CELLS, 0, writable);
}

static bool pins(unsigned reader)
{
    return setting.answering || reader % 3 != 1;
}

static bool in_place(unsigned reader)
{
    return reader % 3 == 2;
}

/* ---- writing ---------------------------------------------------------------------------------------------- */

struct writing {
    struct lane_writer writer;
    unsigned index;
    uint64_t *random;
    uint64_t waits, net;
};

static void writing_begin(struct writing *writing, unsigned index, uint64_t *random)
{
    struct ipc_lane *lane = lane_of(index, true);
    *writing = (struct writing){.index = index, .random = random};
    lane_writer_init(&writing->writer, lane, lane_segment_ring(lane), RING_SIZE);
    for (unsigned i = 0; i < setting.readers; i++) {
        if (setting.answering && i == index)
            continue;
        struct lane_peer peer = {.cell = &cells_of(i, false)->cells[index],
                                 .pairing = PAIRING(index, i),
                                 .slot = i,
                                 .bell = -1,
                                 .pins = pins(i)};
        if (lane_writer_add(&writing->writer, &peer, IPC__CONTROL__START__START_OLDEST) < 0)
            abort();
    }
}

static void wait_for_room(struct writing *writing, uint32_t size)
{
    const struct lane_peer *slowest;
    uint64_t raw;
    writing->waits++;
    for (;;) {
        lane_writer_want(&writing->writer, ipc_record_stride(size), &slowest, &raw);
        int result = 0;
        if (slowest) {
            struct lane_word words[] = {{lane_low_half(&slowest->cell->cursor), (uint32_t)raw, false},
                                        {&shared->mail, 0, false}};
            result = lane_sleep(words, 2, lane_now() + setting.net_ns);
        }
        lane_writer_want_clear(&writing->writer);
        if (lane_writer_make_room(&writing->writer, ipc_record_stride(size)) == 0) {
            writing->net += result == -ETIMEDOUT;
            return;
        }
    }
}

static void write_one(struct writing *writing, uint32_t flags)
{
    static _Thread_local unsigned char message[RING_SIZE];
    struct lane_writer *writer = &writing->writer;
    uint32_t size = flags ? 0 : size_of(writing->index, writer->sequence);
    unsigned char *body;
    if (lane_writer_reserve(writer, size, &body) < 0) {
        wait_for_room(writing, size);
        if (lane_writer_reserve(writer, size, &body) < 0)
            abort();
    }
    fixture_fill(message, size, writer->sequence * WRITERS_MAX + writing->index);
    lane_copy_in(body, message, size);
    lane_writer_commit(writer, size, flags);
}

static void writing_end(struct writing *writing)
{
    struct lane_writer *writer = &writing->writer;
    write_one(writing, END);
    atomic_fetch_add(&shared->published, writer->sequence);
    atomic_fetch_add(&shared->overrun, writer->overrun);
    atomic_fetch_add(&shared->rings, writer->rings);
    atomic_fetch_add(&shared->waits, writing->waits);
    atomic_fetch_add(&shared->net, writing->net);
    lane_writer_done(writer);
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

struct reading {
    struct lane_reader readers[WRITERS_MAX];
    uint64_t seen[WRITERS_MAX]; /* number that the next message of that writer has if none is lost */
    bool ended[WRITERS_MAX];
    unsigned index, live;
    uint64_t received, sleeps, net;
    uint64_t *random;
};

static void reading_begin(struct reading *reading, unsigned index, uint64_t *random)
{
    struct ipc_cells *cells = cells_of(index, true);
    *reading = (struct reading){.index = index, .random = random};
    for (unsigned i = 0; i < setting.writers; i++) {
        struct ipc_lane *lane = lane_of(i, false);
        reading->ended[i] = setting.answering && i == index;
        if (reading->ended[i])
            continue;
        reading->live++;
        lane_reader_init(&reading->readers[i], lane, lane_segment_ring(lane), RING_SIZE, index,
                         &cells->cells[i], PAIRING(i, index), IPC__CONTROL__START__START_OLDEST, pins(index),
                         false);
    }
}

static void check(struct reading *reading, unsigned writer, const struct lane_record *record,
                  const unsigned char *body, uint64_t lost)
{
    if (record->sequence != reading->seen[writer] + lost)
        fail("the gap is not what was counted", reading->index, writer, record->sequence);
    if (pins(reading->index) && lost)
        fail("a pinning reader lost something", reading->index, writer, record->sequence);
    if (record->size != (record->flags ? 0 : size_of(writer, record->sequence)))
        fail("wrong size", reading->index, writer, record->sequence);
    if (!fixture_holds(body, record->size, record->sequence * WRITERS_MAX + writer))
        fail("wrong content", reading->index, writer, record->sequence);
    reading->seen[writer] = record->sequence + 1;
    reading->received++;
    if (record->flags) {
        reading->ended[writer] = true;
        reading->live--;
    }
}

/* Receive one message of a writer, if there is one. */
static bool read_one(struct reading *reading, unsigned writer)
{
    static _Thread_local unsigned char message[RING_SIZE];
    struct lane_reader *reader = &reading->readers[writer];
    struct lane_record record;
    for (;;) {
        int result = lane_reader_peek(reader, &record);
        if (result == 0)
            return false;
        if (result < 0)
            fail(strerror(-result), reading->index, writer, reading->seen[writer]);
        uint64_t lost = reader->just_lost;
        if (in_place(reading->index) && lane_reader_in_place(reader)) {
            lane_reader_hold(reader, &record);
            check(reading, writer, &record, record.body, lost);
            if (next_random(reading->random) % 4 == 0)
                lane_reader_release(reader, record.next);
            return true;
        }
        lane_copy_out(message, record.body, record.size);
        if (!lane_reader_check(reader))
            continue;
        lane_reader_advance(reader, &record);
        check(reading, writer, &record, message, lost);
        return true;
    }
}

/* Sleep until some writer has something. The look after arming is the one in lane_reader_sleeps_on(). */
static void sleep_for_any(struct reading *reading)
{
    struct lane_word words[WRITERS_MAX + 1];
    unsigned count = 0;
    bool quiet = true;
    int result = 0;
    if (setting.answering) /* let the answer come while we arm, more often than it would */
        spin(next_random(reading->random) % (UINT64_C(1) << (8 + next_random(reading->random) % 10)));
    for (unsigned i = 0; i < setting.writers; i++) {
        if (reading->ended[i])
            continue;
        /* It may go to sleep with some records held, but not with so many that a writer needs the room. */
        struct lane_reader *reader = &reading->readers[i];
        if (reader->position - reader->consumed > RING_SIZE / 8 || next_random(reading->random) % 2)
            lane_reader_release(reader, reader->position);
        lane_reader_arm(reader, false);
    }
    lane_barrier();
    for (unsigned i = 0; i < setting.writers && quiet; i++) {
        if (reading->ended[i])
            continue;
        quiet = lane_reader_sleeps_on(&reading->readers[i], &words[count].word, &words[count].value);
        words[count++].private = false;
    }
    if (!setting.answering) /* asleep on one word alone: that takes less time */
        words[count++] = (struct lane_word){&shared->mail, 0, false};
    if (quiet) {
        reading->sleeps++;
        result = lane_sleep(words, count, lane_now() + setting.net_ns);
    }
    for (unsigned i = 0; i < setting.writers; i++) {
        const _Atomic uint32_t *word;
        uint32_t value;
        if (reading->ended[i])
            continue;
        reading->net += result == -ETIMEDOUT && !lane_reader_sleeps_on(&reading->readers[i], &word, &value);
        lane_reader_disarm(&reading->readers[i]);
    }
}

static void reading_end(struct reading *reading)
{
    for (unsigned i = 0; i < setting.writers; i++)
        atomic_fetch_add(&shared->lost, reading->readers[i].lost);
    atomic_fetch_add(&shared->received, reading->received);
    atomic_fetch_add(&shared->sleeps, reading->sleeps);
    atomic_fetch_add(&shared->net, reading->net);
}

/* ---- roles ------------------------------------------------------------------------------------------------ */

static void write_until_the_end(struct role *role)
{
    struct writing writing;
    writing_begin(&writing, role->index, &role->random);
    uint64_t pause = 1;
    for (uint64_t n = 1; lane_now() < setting.until; n++) {
        write_one(&writing, 0);
        if (n % 512 == 0) /* busy for a while, then in pace with a sleeping reader */
            pause = UINT64_C(1) << next_random(&role->random) % 15;
        spin(next_random(&role->random) % pause);
    }
    writing_end(&writing);
}

static void read_until_the_end(struct role *role)
{
    struct reading reading;
    reading_begin(&reading, role->index, &role->random);
    while (reading.live) {
        unsigned found = 0;
        for (unsigned i = 0; i < setting.writers; i++) {
            for (unsigned k = 0; k < 16 && !reading.ended[i]; k++) {
                if (!read_one(&reading, i))
                    break;
                found++;
            }
        }
        if (found && next_random(&role->random) % 64 == 0)
            spin(next_random(&role->random) % 20000);
        if (!found)
            sleep_for_any(&reading);
    }
    reading_end(&reading);
}

/* 0 asks, 1 answers: both are asleep if one wake-up is lost. */
static void take_turns(struct role *role)
{
    struct writing writing;
    struct reading reading;
    unsigned other = 1 - role->index;
    writing_begin(&writing, role->index, &role->random);
    reading_begin(&reading, role->index, &role->random);
    bool more = true;
    if (role->index == 0)
        write_one(&writing, 0);
    while (reading.live) {
        if (!read_one(&reading, other)) {
            sleep_for_any(&reading);
            continue;
        }
        if (reading.ended[other])
            break;
        spin(next_random(&role->random) % 4096);
        if (role->index == 0 && lane_now() >= setting.until) {
            more = false;
            writing_end(&writing);
        } else {
            write_one(&writing, 0);
        }
    }
    if (more)
        writing_end(&writing);
    reading_end(&reading);
}

static void *role_main(void *data)
{
    struct role *role = data;
    if (setting.answering)
        take_turns(role);
    else if (role->writes)
        write_until_the_end(role);
    else
        read_until_the_end(role);
    return NULL;
}

static void start(struct role *role)
{
    if (THREADS) {
        if (pthread_create(&role->thread, NULL, role_main, role) != 0)
            abort();
        return;
    }
    role->process = fork_child();
    if (role->process == 0) {
        watchdog(0, "");
        lane_barrier_register();
        role_main(role);
        _exit(0);
    }
    if (role->process < 0)
        abort();
}

/* Wait for all of them. When one fails, the others would wait for it for ever: they are ended too. */
static bool finish(struct role *roles, unsigned count)
{
    bool good = true;
    if (THREADS) {
        for (unsigned i = 0; i < count; i++)
            pthread_join(roles[i].thread, NULL);
        return true;
    }
    for (unsigned left = count; left > 0; left--) {
        int status;
        pid_t ended = waitpid(-1, &status, 0);
        for (unsigned i = 0; i < count; i++) {
            if (roles[i].process == ended)
                roles[i].process = 0;
            if (status != 0 && roles[i].process)
                kill(roles[i].process, SIGKILL);
        }
        good = good && ended > 0 && status == 0;
    }
    return good;
}

static bool run(const char *name, unsigned writers, unsigned readers, bool answering, uint64_t duration_ns)
{
    struct role roles[WRITERS_MAX + READERS_MAX];
    setting.writers = writers;
    setting.readers = readers;
    setting.answering = answering;
    *shared = (struct shared){0};
    for (unsigned i = 0; i < writers; i++) {
        setting.lane_fds[i] = fixture_segment(IPC_SEGMENT_LANE, RING_SIZE);
        if (THREADS)
            setting.lanes[i] = fixture_map(setting.lane_fds[i], IPC_SEGMENT_LANE, RING_SIZE, true);
    }
    for (unsigned i = 0; i < readers; i++) {
        setting.cells_fds[i] = fixture_segment(IPC_SEGMENT_CELLS, 0);
        if (THREADS)
            setting.cells[i] = fixture_map(setting.cells_fds[i], IPC_SEGMENT_CELLS, 0, true);
    }
    setting.until = lane_now() + duration_ns;
    watchdog((unsigned)(duration_ns / 1000000000 + setting.net_ns / 100000000 + 30), name);
    unsigned count = answering ? 2 : writers + readers;
    for (unsigned i = 0; i < count; i++) {
        roles[i] = (struct role){.writes = i < writers, .index = i < writers || answering ? i : i - writers};
        roles[i].random = setting.seed * 1000003 + i + 1;
        start(&roles[i]);
    }
    bool good = finish(roles, count);
    for (unsigned i = 0; i < writers; i++) {
        close(setting.lane_fds[i]);
        if (THREADS)
            lane_segment_unmap(setting.lanes[i], IPC_SEGMENT_LANE, RING_SIZE);
    }
    for (unsigned i = 0; i < readers; i++) {
        close(setting.cells_fds[i]);
        if (THREADS)
            lane_segment_unmap(setting.cells[i], IPC_SEGMENT_CELLS, 0);
    }
    uint64_t each = answering ? 1 : readers;
    uint64_t expected = atomic_load(&shared->published) * each;
    good = good && shared->net == 0 && shared->received + shared->lost == expected;
    printf(
        "%-12s %s: published %llu, received %llu, lost %llu (of %llu), overrun %llu, sleeps %llu, rings %llu, "
        "waits for room %llu, net %llu\n",
        name, good ? "good" : "BAD", (unsigned long long)shared->published,
        (unsigned long long)shared->received, (unsigned long long)shared->lost, (unsigned long long)expected,
        (unsigned long long)shared->overrun, (unsigned long long)shared->sleeps,
        (unsigned long long)shared->rings, (unsigned long long)shared->waits,
        (unsigned long long)shared->net);
    fflush(stdout);
    return good;
}

static double number(const char *argument, const char *variable, double otherwise)
{
    const char *text = argument ? argument : getenv(variable);
    return text && *text ? strtod(text, NULL) : otherwise;
}

int main(int argc, char **argv)
{
    double seconds = number(argc > 1 ? argv[1] : NULL, "IPC_STRESS_SECONDS", 5);
    double seed = number(argc > 2 ? argv[2] : NULL, "IPC_STRESS_SEED", (double)(lane_now() % 1000000));
    double net_ms = number(argc > 3 ? argv[3] : NULL, "IPC_STRESS_NET_MS", (double)(IPC_NET_NS / 1000000));
    setting.seed = (uint64_t)seed;
    setting.net_ns = (uint64_t)net_ms * 1000000;
    printf("seed %llu, %g seconds, as %s\n", (unsigned long long)setting.seed, seconds,
           THREADS ? "threads" : "processes");
    fflush(stdout);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    unsigned before = descriptors_open();
    uint64_t part = (uint64_t)(seconds * 1e9 / 3);
    bool good = run("taking turns", 2, 2, true, part) && run("1 to 8", 1, 8, false, part) &&
                run("4 to 4", 4, 4, false, part);
    if (descriptors_open() != before || children_left()) {
        printf("BAD: descriptors or processes are left\n");
        good = false;
    }
    return !good;
}
