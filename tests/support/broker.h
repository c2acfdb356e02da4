/* SPDX-License-Identifier: Apache-2.0
 *
 * A private broker for a test, and what tests with several processes share: checks that also work in children,
 * gates between processes, and handles that are opened without options and looked at when they are closed.
 */
#ifndef IPC_TESTS_BROKER_H
#define IPC_TESTS_BROKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "ipc/ipc.h"
#include "tests/support/watchdog.h"

/* ---- checks ---------------------------------------------------------------------------------------------- */

/* Fail the test; in a child, say why and exit with status 1. */
void expect_failed(const char *file, int line, const char *text, bool numbers, long long left,
                   long long right) __attribute__((noreturn));

/* This thread runs the tests: the setups below say so, too. */
void expect_here(void);

#define EXPECT(condition)                                      \
 do {                                                          \
  if (!(condition))                                            \
   expect_failed(__FILE__, __LINE__, #condition, false, 0, 0); \
 } while (0)
#define EXPECT_EQ(a, b)                                                  \
 do {                                                                    \
  long long left_ = (long long)(a), right_ = (long long)(b);             \
  if (left_ != right_)                                                   \
   expect_failed(__FILE__, __LINE__, #a " == " #b, true, left_, right_); \
 } while (0)
#define EXPECT_TEXT(text, part) EXPECT(strstr((text), (part)) != NULL)

/* ---- brokers --------------------------------------------------------------------------------------------- */

struct broker {
    pid_t pid; /* 0: not running */
    char folder[48];
    char address[80];
};

/* Start ipcd in a folder of its own, and wait until it is ready. Its address is put into IPC_ADDRESS. `arguments`
 * (or NULL) are added to its command line. */
void broker_start(struct broker *made, const char *const *arguments);

/* The open files that the brokers started from now on may have, ipcd-run's too; 0: as many as we. */
extern rlim_t broker_files;
void broker_limit_files(void); /* in the child that becomes one */

/* End it by SIGTERM, check that it leaves with 0 and leaves no file, and remove its folder. */
void broker_stop(struct broker *made);

/* End it by SIGKILL, and remove its folder. */
void broker_kill(struct broker *made);

/* It ended by itself: remove its folder. */
void broker_forget(struct broker *made);

/* What the core says of itself, without the session that asks. */
struct broker_counts {
    uint64_t sessions, topics, subscriptions, pairings, segments, segment_bytes, descriptors;
};
struct broker_counts broker_count(const struct broker *made);

/* The same by one session, for those who ask often: it may not connect without end. */
int broker_counter_open(const struct broker *made);
struct broker_counts broker_counter_ask(int fd);
void broker_counter_close(int fd);

/* Ask until the core has as much of everything as then. */
void broker_settles(const struct broker *made, const struct broker_counts *then);

/* A socket connected to the broker, for what libipc would not send. */
int broker_socket(const struct broker *made);

/* ---- fixtures for cmocka: each case has a broker, and leaves nothing ---------------------------------------- */

extern struct broker broker;
int broker_setup(void **state);
int broker_teardown(void **state);
#define CASE(function) cmocka_unit_test_setup_teardown(function, broker_setup, broker_teardown)

/* Run the program's tests as they are, then again with each of IPC_WITHOUT, and without all of them. Returns main()'s result. */
int run_variants(char **argv, int (*tests)(void));

/* ---- processes ------------------------------------------------------------------------------------------- */

/* A child that runs work(argument) and exits with status 0, or 1 if a check fails. */
pid_t child_start(void (*work)(void *argument), void *argument);
/* It must have exited with 0. */
void child_done(pid_t child);
/* Kill it and take its status. */
void child_kill(pid_t child);

/* Memory that children share, zeroed. */
void *shared_new(size_t size);
void shared_free(void *memory, size_t size);

/* Let one pass; wait until one may pass. Between any two processes or threads. */
int gate_new(void);
void gate_open(int gate);
void gate_wait(int gate);

/* ---- handles --------------------------------------------------------------------------------------------- */

ipc_connection *connection_new(void);
ipc_publisher *publisher_new(ipc_connection *connection, const char *topic, uint32_t ring_size,
                             unsigned flags);
ipc_subscription *subscription_new(ipc_connection *connection, const char *pattern, enum ipc_start start,
                                   enum ipc_slow slow, unsigned flags);
/* Close; it must not have needed the bounded wait. */
void publisher_end(ipc_publisher *publisher);
void subscription_end(ipc_subscription *subscription);

/* The next event of that kind, waited for; others are passed over. */
struct ipc_event event_wait(ipc_connection *connection, enum ipc_event_kind kind);

/* Messages that tell their number: sizes and content follow from it. `size` is at least 8. */
void message_fill(void *buffer, size_t size, uint64_t number);
bool message_holds(const void *buffer, size_t size, uint64_t number);
/* Publish numbers [from, to) with messages of that size; receive them one by one, without loss. */
void publish_numbers(ipc_publisher *publisher, uint64_t from, uint64_t to, size_t size);
void receive_numbers(ipc_subscription *subscription, uint64_t from, uint64_t to, size_t size);

#define SECONDS(n) (INT64_C(1000000000) * (n))

#endif
