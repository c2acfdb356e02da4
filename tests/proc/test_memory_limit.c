/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd in a memory cgroup with a small limit: what would not fit is refused before the kernel kills; and an ipcd that is
 * killed for want of memory all the same comes back, with every session. ipcd-run stays outside. Skipped where no memory
 * cgroup can be made.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"
#include "tests/support/queue.h"

#define LIMIT     (UINT64_C(96) << 20)
#define RING_SIZE (4u << 20)
#define LANES_MAX 64u
#define HOG_STEP  (UINT64_C(1) << 20)

static struct guarded guarded;
static char group[128], script[64];

/* ---- a cgroup ---------------------------------------------------------------------------------------------------- */

static bool write_file(const char *folder, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return good;
}

static uint64_t read_number(const char *name, const char *key)
{
    char path[256], line[256];
    uint64_t number = UINT64_MAX;
    snprintf(path, sizeof(path), "%s/%s", group, name);
    FILE *file = fopen(path, "re");
    while (file && number == UINT64_MAX && fgets(line, sizeof(line), file))
        if (strncmp(line, key, strlen(key)) == 0)
            number = strtoull(line + strlen(key), NULL, 10);
    if (file)
        fclose(file);
    return number;
}

/* Version 1, or 2 if its memory controller is handed down from the root. */
static bool group_make(void)
{
    static const struct {
        const char *mount, *file;
    } kinds[] = {{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}};
    char limit[32];
    snprintf(limit, sizeof(limit), "%llu", (unsigned long long)LIMIT);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        snprintf(group, sizeof(group), "%s/ipc-test-%d", kinds[i].mount, (int)getpid());
        if (mkdir(group, 0700) < 0)
            continue;
        if (write_file(group, kinds[i].file, limit)) {
            (void)write_file(group, "memory.swap.max", "0");
            return true;
        }
        rmdir(group);
    }
    return false;
}

static uint64_t kills(void)
{
    uint64_t v1 = read_number("memory.oom_control", "oom_kill ");
    return v1 != UINT64_MAX ? v1 : read_number("memory.events", "oom_kill ");
}

static int setup(void **state)
{
    const char *const arguments[] = {"--ipcd", script, "--log-level", "error", NULL};
    (void)state;
    expect_here();
    watchdog(100, "ipcd in a memory cgroup");
    snprintf(script, sizeof(script), "/tmp/ipc-test-%d.sh", (int)getpid());
    int fd = open(script, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    EXPECT(fd >= 0);
    /* If something has to be killed, it is ipcd. */
    dprintf(fd,
            "#!/bin/sh\necho 1000 >/proc/self/oom_score_adj; echo $$ >%s/cgroup.procs && exec %s \"$@\"\n",
            group, getenv("IPCD_BIN"));
    close(fd);
    guarded_start(&guarded, arguments);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    guarded_stop(&guarded);
    unlink(script);
    watchdog(0, "");
    return 0;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static bool doctor_tells(void)
{
    char command[320], *line = NULL;
    size_t capacity = 0;
    bool tells = false;
    snprintf(command, sizeof(command), "%s doctor --json --address=%s", getenv("IPCCTL_BIN"),
             guarded.address);
    FILE *in = popen(command, "re");
    EXPECT(in != NULL);
    while (getline(&line, &capacity, in) > 0)
        tells = tells || strstr(line, "both were lowered to fit into it");
    free(line);
    EXPECT_EQ(WEXITSTATUS(pclose(in)), 1);
    return tells;
}

/* Also by an ipcd that goes on with the configuration of the one before. */
static void test_lowered_limits_are_a_problem(void **state)
{
    char config[64];
    const char *const arguments[] = {"--ipcd", script, "--config", config, "--log-level", "error", NULL};
    (void)state;
    guarded_stop(&guarded);
    snprintf(config, sizeof(config), "/tmp/ipc-test-%d.conf", (int)getpid());
    FILE *file = fopen(config, "we");
    EXPECT(file != NULL);
    EXPECT(fputs("[limits]\ntotal-segment-bytes = 1G\n", file) > 0);
    EXPECT_EQ(fclose(file), 0);
    guarded_start(&guarded, arguments);
    unlink(config);
    EXPECT(doctor_tells());
    guarded_kill_ipcd(&guarded);
    EXPECT(doctor_tells());
}

/* Rings, and messages of a queue, until there is no more room. */
static void test_refused(void **state)
{
    static unsigned char message[60000];
    struct ipc_publisher_options options = IPC_PUBLISHER_OPTIONS_INIT;
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    ipc_connection *connection = connection_new();
    ipc_publisher *publishers[LANES_MAX] = {NULL};
    struct ipc_error error = {0};
    unsigned n = 0;
    int result = 0;
    uint64_t sent = 0, ticket;
    (void)state;
    options.ring_size = RING_SIZE;
    do {
        char topic[32];
        EXPECT(n < LANES_MAX);
        snprintf(topic, sizeof(topic), "limit.%u", n);
        result = ipc_publisher_open(&publishers[n], connection, topic, &options, &error);
    } while (result == 0 && ++n);
    EXPECT_EQ(result, -EDQUOT);
    EXPECT_TEXT(error.text, "segment-bytes");
    EXPECT(n > 0 && n * (uint64_t)RING_SIZE < LIMIT);
    settings.bytes_max = UINT64_C(1) << 30;
    settings.full = IPC_QUEUE_FULL_REJECT;
    settings.given = IPC_QUEUE_BYTES_MAX | IPC_QUEUE_FULL;
    error = (struct ipc_error){0};
    queue_new(connection, "limit", &settings);
    ipc_producer *producer = producer_new(connection, "limit");
    while ((result = ipc_producer_send(producer, message, sizeof(message), IPC_FOREVER, &ticket)) == 0 &&
           (result = ipc_producer_confirm(producer, ticket, IPC_FOREVER, &error)) == 0)
        EXPECT(++sent * sizeof(message) < LIMIT);
    printf("%u rings of %u MiB and %llu messages of %zu bytes fit; then: %s\n", n, RING_SIZE >> 20,
           (unsigned long long)sent, sizeof(message), error.text);
    EXPECT(sent > 0 && error.text[0] != '\0');
    EXPECT_EQ(guarded_status(&guarded).starts, 1);
    EXPECT_EQ(kills(), 0);
    ipc_connection_close(connection);
}

/* Somebody else in the cgroup takes all of it. */
static void hog(void *argument)
{
    (void)argument;
    EXPECT(write_file(group, "cgroup.procs", "0"));
    for (uint64_t taken = 0; taken < LIMIT; taken += HOG_STEP) {
        unsigned char *more =
            mmap(NULL, HOG_STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        EXPECT(more != MAP_FAILED);
    }
    for (;;)
        pause();
}

static void test_killed(void **state)
{
    ipc_connection *connection = connection_new(), *other = connection_new();
    ipc_publisher *publisher = publisher_new(connection, "killed", RING_SIZE, 0), *more;
    ipc_subscription *subscription = subscription_new(other, "killed", IPC_START_OLDEST, IPC_SLOW_BLOCK, 0);
    uint64_t before = kills();
    pid_t ipcd = guarded_pid(&guarded);
    struct pollfd dead = {.fd = pidfd_open(ipcd, 0), .events = POLLIN};
    (void)state;
    queue_new(connection, "killed", NULL);
    ipc_producer *producer = producer_new(connection, "killed");
    ipc_consumer *consumer = consumer_new(other, "killed", 0);
    send_numbers(producer, 0, 100, 1000);
    EXPECT_EQ(ipc_publisher_wait_readers(publisher, 1, IPC_FOREVER), 1);
    publish_numbers(publisher, 0, 10, 1000);
    pid_t child = child_start(hog, NULL);
    EXPECT_EQ(poll(&dead, 1, -1), 1);
    close(dead.fd);
    kill(child, SIGKILL);
    (void)wait_child(child);
    guarded_wait_other(&guarded, ipcd);
    EXPECT(kills() > before);
    publish_numbers(publisher, 10, 20, 1000);
    receive_numbers(subscription, 0, 20, 1000);
    receive_acked(consumer, 0, 100);
    send_numbers(producer, 100, 110, 1000);
    receive_acked(consumer, 100, 110);
    more = publisher_new(connection, "more", RING_SIZE, 0);
    publisher_end(more);
    ipc_connection_close(other);
    ipc_connection_close(connection);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lowered_limits_are_a_problem, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed, setup, teardown),
    };
    EXPECT(getenv("IPCD_BIN") && getenv("IPCD_RUN_BIN"));
    if (getenv("IPC_SANITIZE") && *getenv("IPC_SANITIZE")) {
        printf("skipped: a sanitizer's own memory does not fit\n");
        return 77;
    }
    if (!group_make()) {
        printf("skipped: no memory cgroup can be made below /sys/fs/cgroup, of version 1 or 2\n");
        return 77;
    }
    int failed = cmocka_run_group_tests_name("memory_limit", tests, NULL, NULL);
    while (rmdir(group) < 0 && errno == EBUSY) /* the last of it is on its way out */
        sched_yield();
    return failed;
}
