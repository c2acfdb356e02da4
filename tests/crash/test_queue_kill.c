/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd is killed after each of its stores to shared memory while a client creates queues, sends, receives, acknowledges,
 * refuses, and waits for a dead letter and an expired message, and an operator moves messages to another queue and back;
 * and the ipcd that follows, too, while it takes over. The client gets each message as often, in the order and with the
 * attempt that it would get without that.
 *
 * IPC_KILL_FULL=1: after each store (`./dev kill`); else in steps, from another one in each run.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/queue.h"
#include "tests/crash/stepped_ipcd.h"
#include "tests/support/broker.h"
#include "tests/support/guarded.h"

#ifdef STEPS_STORES

# define MESSAGES        6u
# define MOVED           10u /* the first number of those that are */
# define STORES_OF_START 60u
# define NO_SESSION      3 /* what ipcctl exits with */

static struct guarded guarded;
static struct steps *steps;

static void send_number(ipc_producer *producer, uint64_t number, bool expires)
{
    struct ipc_send how = IPC_SEND_INIT;
    const struct iovec piece = {&number, sizeof(number)};
    const uint16_t key = number % 2;

    how.id = &number;
    how.id_size = sizeof(number);
    how.key = &key;
    how.key_size = sizeof(key);
    if (expires) {
        how.ttl_ns = 1;
        how.delay_ns = UINT64_C(3600) * 1000000000;
    }
    EXPECT_EQ(ipc_producer_sendv(producer, &piece, 1, &how, IPC_FOREVER, NULL), 0);
}

static uint64_t receive_number(ipc_consumer *consumer, unsigned attempt, unsigned redelivered,
                               uint64_t *delivery)
{
    struct ipc_queue_message message;
    uint64_t number = UINT64_MAX;

    EXPECT_EQ(ipc_consumer_receive(consumer, &number, sizeof(number), &message, IPC_FOREVER), sizeof(number));
    EXPECT_EQ(message.attempt, attempt);
    EXPECT_EQ(message.redelivered, redelivered);
    *delivery = message.delivery;
    return number;
}

static ipc_consumer *consumer_new(ipc_connection *connection, const char *queue)
{
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;
    ipc_consumer *consumer;

    options.prefetch = 1;
    EXPECT_EQ(ipc_consumer_open(&consumer, connection, queue, &options, NULL), 0);
    return consumer;
}

static void consumer_end(ipc_consumer *consumer)
{
    EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    ipc_consumer_close(consumer);
}

/* It becomes so: its router counts after it has told, and a letter is done with last. */
static void remove_empty(ipc_connection *connection, const char *queue)
{
    int result;

    do
        result = ipc_queue_remove(connection, queue, IPC_QUEUE_IF_EMPTY, NULL);
    while (result == -EBUSY);
    EXPECT_EQ(result, 0);
}

/* An operator's order, for ipcctl, whose session ends if ipcd is killed before it has kept it: then it is given again. */
static void order(const char *what)
{
    char command[320];
    int status;

    (void)snprintf(command, sizeof(command), "exec '%s' queue %s >/dev/null", getenv("IPCCTL_BIN"), what);
    do
        status = system(command);
    while (status == NO_SESSION << 8);
    EXPECT_EQ(status, 0);
}

/* These numbers (bits), in any order. */
static void receive_letters(ipc_consumer *consumer, uint64_t numbers)
{
    uint64_t delivery;

    while (numbers) {
        uint64_t bit = UINT64_C(1) << receive_number(consumer, 1, IPC_REDELIVERED_NOT, &delivery);

        EXPECT(numbers & bit);
        numbers &= ~bit;
        EXPECT_EQ(ipc_consumer_ack(consumer, delivery), 0);
    }
}

/* Messages are moved to another queue by order, and a dead letter back to where it died. */
static void move(ipc_connection *connection, ipc_producer *producer)
{
    struct ipc_nack dead = IPC_NACK_INIT;
    ipc_consumer *consumer;
    uint64_t delivery;

    send_number(producer, MOVED, false);
    send_number(producer, MOVED + 1, false);
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
    order("move work dead");
    consumer = consumer_new(connection, "dead");
    receive_letters(consumer, UINT64_C(3) << MOVED);
    consumer_end(consumer);

    send_number(producer, MOVED + 2, false);
    consumer = consumer_new(connection, "work");
    dead.flags = IPC_NACK_DEAD;
    EXPECT_EQ(receive_number(consumer, 1, IPC_REDELIVERED_NOT, &delivery), MOVED + 2);
    EXPECT_EQ(ipc_consumer_nack(consumer, delivery, delivery, &dead), 0);
    EXPECT_EQ(ipc_consumer_flush(consumer, IPC_FOREVER), 0);
    for (;;) { /* it may not be there yet */
        struct ipc_queue_message message;
        uint64_t number;
        ssize_t n;

        order("requeue dead");
        n = ipc_consumer_receive(consumer, &number, sizeof(number), &message, 1000000);
        if (n == -ETIMEDOUT)
            continue;
        EXPECT_EQ(n, sizeof(number));
        EXPECT_EQ(number, MOVED + 2);
        EXPECT_EQ(ipc_consumer_ack(consumer, message.delivery), 0);
        break;
    }
    consumer_end(consumer);
}

static void be_client(void *argument)
{
    struct ipc_queue_settings settings = IPC_QUEUE_SETTINGS_INIT;
    struct ipc_nack dead = IPC_NACK_INIT;
    ipc_connection *connection;
    ipc_producer *producer;
    ipc_consumer *consumer;
    uint64_t delivery;

    gate_wait(*(const int *)argument);
    connection = connection_new();
    settings.given = IPC_QUEUE_DEDUP_WINDOW | IPC_QUEUE_DEAD_LETTER;
    settings.dedup_window = 64;
    settings.dead_letter = "dead";
    dead.flags = IPC_NACK_DEAD;
    EXPECT_EQ(ipc_queue_create(connection, "dead", NULL, 0, NULL), 0);
    EXPECT_EQ(ipc_queue_create(connection, "work", &settings, 0, NULL), 0);
    EXPECT_EQ(ipc_producer_open(&producer, connection, "work", NULL, NULL), 0);
    for (uint64_t i = 0; i < MESSAGES; i++)
        send_number(producer, i, false);
    send_number(producer, 2, false); /* is known */
    send_number(producer, MESSAGES, true);
    EXPECT_EQ(ipc_producer_flush(producer, IPC_FOREVER), 0);
    consumer = consumer_new(connection, "work");
    for (uint64_t i = 0; i < MESSAGES; i++) {
        EXPECT_EQ(receive_number(consumer, 1, IPC_REDELIVERED_NOT, &delivery), i);
        if (i == 1) {
            EXPECT_EQ(ipc_consumer_nack(consumer, delivery, delivery, NULL), 0);
            EXPECT_EQ(receive_number(consumer, 2, IPC_REDELIVERED_REFUSED, &delivery), i);
        }
        if (i == 3)
            EXPECT_EQ(ipc_consumer_nack(consumer, delivery, delivery, &dead), 0);
        else
            EXPECT_EQ(ipc_consumer_ack(consumer, delivery), 0);
    }
    consumer_end(consumer);
    consumer = consumer_new(connection, "dead");
    receive_letters(consumer, UINT64_C(1) << 3 | UINT64_C(1) << MESSAGES);
    consumer_end(consumer);
    move(connection, producer);
    ipc_producer_close(producer);
    remove_empty(connection, "work");
    remove_empty(connection, "dead");
    ipc_connection_close(connection);
}

/* Kill ipcd after its `first` store from now on, and the next one after its `second` (0: not). How many died? */
static unsigned kill_after(uint64_t first, uint64_t second)
{
    int go = gate_new();
    pid_t client = child_start(be_client, &go);
    uint64_t left, next;

    steps->next = second;
    steps->left = first;
    gate_open(go);
    child_done(client);
    close(go);
    left = steps->left;
    next = steps->next;
    steps->next = steps->left = 0;
    return next != second || (second == 0 && left == 0) ? 1 + (second != 0 && left == 0) : 0;
}

static bool full(void)
{
    return getenv("IPC_KILL_FULL") != NULL;
}

static void test_after_every_store(void **state)
{
    unsigned step = full() ? 1 : 23, first = 1 + (unsigned)getpid() % step;
    struct broker asked = {.pid = guarded.run};
    struct broker_counts before;

    (void)state;
    snprintf(asked.address, sizeof(asked.address), "%s", guarded.address);
    EXPECT_EQ(kill_after(0, 0), 1);
    before = broker_count(&asked);
    for (;; first += step) {
        watchdog(120, "a kill of ipcd after a store");
        if (kill_after(first, 0) == 0)
            break;
        broker_settles(&asked, &before);
    }
    printf("ipcd was killed after stores 1 to %u to shared memory, in steps of %u\n", first - 1, step);
    EXPECT(first > 300);
}

static void test_after_stores_of_the_next(void **state)
{
    uint64_t step = full() ? 17 : 251, deaths = 0, died = 1;

    (void)state;
    for (uint64_t first = 100; died > 0; first += step)
        for (uint64_t second = 1; second <= STORES_OF_START; second += full() ? 3 : 23) {
            watchdog(120, "a kill of the next ipcd after a store");
            died = kill_after(first, second);
            deaths += died;
            if (died < 2)
                break;
        }
    printf("ipcd was killed after a store, and the next one too: %u deaths\n", (unsigned)deaths);
    EXPECT(deaths > 6);
}

static int setup(void **state)
{
    char path[] = "/tmp/ipc-steps.XXXXXX", helper[256];
    const char *arguments[] = {"--log-level", "error", "--watchdog", "0", "--ipcd", helper, NULL};
    int fd = mkstemp(path);

    (void)state;
    EXPECT(fd >= 0 && ftruncate(fd, sizeof(*steps)) == 0);
    steps = mmap(NULL, sizeof(*steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(steps != MAP_FAILED);
    close(fd);
    setenv("IPC_TEST_STEPS", path, 1);
    snprintf(helper, sizeof(helper), "%s/stepped_ipcd_helper", getenv("TEST_HELPER_DIR"));
    watchdog(30, "start");
    guarded_start(&guarded, arguments);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    guarded_stop(&guarded);
    unlink(getenv("IPC_TEST_STEPS"));
    munmap(steps, sizeof(*steps));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_after_every_store, setup, teardown),
        cmocka_unit_test_setup_teardown(test_after_stores_of_the_next, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
int main(void)
{
    return 77;
}
#endif
