/* SPDX-License-Identifier: Apache-2.0
 *
 * A work queue: tasks go to whichever worker is free, and none is lost if one dies. Here a worker kills itself in the
 * middle of its work; the tasks that it had and had not acknowledged go to the others, and say that they come again.
 *
 *     ipcd-run --private -- work_queue
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipc/ipc.h>

enum { TASKS = 1000, WORKERS = 3, PREFETCH = 10 };
#define READY UINT64_MAX /* instead of a result */

struct result {
    uint64_t task, square;
    unsigned attempt;
};

static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

/* Takes tasks until it is told that there are no more. The result goes out before the task is acknowledged: who dies in
 * between leaves a result and a task that comes again, never a task without a result. */
static int work(unsigned number)
{
    ipc_connection *connection;
    ipc_consumer *tasks;
    ipc_producer *results;
    struct ipc_consumer_options options = IPC_CONSUMER_OPTIONS_INIT;

    options.prefetch = PREFETCH; /* as many tasks as it may sit on */
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_consumer_open(&tasks, connection, "tasks", &options, NULL), "tasks");
    check(ipc_producer_open(&results, connection, "results", NULL, NULL), "results");
    check(
        ipc_producer_send(results, &(struct result){.task = READY}, sizeof(struct result), IPC_FOREVER, NULL),
        "saying that it is ready");
    for (unsigned n = 0;; n++) {
        struct ipc_queue_message message;
        struct result result;
        uint64_t ticket;

        check(ipc_consumer_receive(tasks, &result.task, sizeof(result.task), &message, IPC_FOREVER),
              "a task");
        if (number == 0 && n == PREFETCH / 2)
            raise(SIGKILL);
        if (result.task == TASKS) { /* the end: for one worker each */
            check(ipc_consumer_ack(tasks, message.delivery), "acknowledging the end");
            break;
        }
        result.square = result.task * result.task;
        result.attempt = message.attempt;
        check(ipc_producer_send(results, &result, sizeof(result), IPC_FOREVER, &ticket), "a result");
        check(ipc_producer_confirm(results, ticket, IPC_FOREVER, NULL), "the result is in its queue");
        check(ipc_consumer_ack(tasks, message.delivery), "acknowledging the task");
    }
    ipc_connection_close(connection);
    return 0;
}

static struct result take_result(ipc_consumer *results)
{
    struct ipc_queue_message message;
    struct result result;

    check(ipc_consumer_receive(results, &result, sizeof(result), &message, IPC_FOREVER), "a result");
    check(ipc_consumer_ack(results, message.delivery), "acknowledging a result");
    return result;
}

int main(void)
{
    ipc_connection *connection;
    ipc_producer *tasks;
    ipc_consumer *results;
    pid_t workers[WORKERS];
    static unsigned seen[TASKS];
    unsigned done = 0, again = 0, died = 0;

    /* Queues live by themselves: who comes first makes them. */
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_queue_create(connection, "tasks", NULL, IPC_QUEUE_MAY_EXIST, NULL), "creating tasks");
    check(ipc_queue_create(connection, "results", NULL, IPC_QUEUE_MAY_EXIST, NULL), "creating results");
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = fork();
        if (workers[i] == 0)
            _exit(work(i)); /* a child opens a connection of its own */
        check(workers[i], "forking");
    }

    check(ipc_consumer_open(&results, connection, "results", NULL, NULL), "results");
    for (unsigned i = 0; i < WORKERS; i++)
        take_result(results);

    check(ipc_producer_open(&tasks, connection, "tasks", NULL, NULL), "tasks");
    for (uint64_t task = 0; task < TASKS; task++)
        check(ipc_producer_send(tasks, &task, sizeof(task), IPC_FOREVER, NULL), "sending");
    check(ipc_producer_flush(tasks, IPC_FOREVER), "all tasks are in the queue"); /* now they are safe */

    while (done < TASKS) {
        struct result result = take_result(results);

        if (result.task >= TASKS || result.square != result.task * result.task)
            return 1;
        done += seen[result.task]++ == 0;
        again += result.attempt > 1;
    }

    for (uint64_t i = 0, end = TASKS; i < WORKERS - 1; i++)
        check(ipc_producer_send(tasks, &end, sizeof(end), IPC_FOREVER, NULL), "sending");
    for (unsigned i = 0; i < WORKERS; i++) {
        int status;

        check(waitpid(workers[i], &status, 0), "waiting");
        died += WIFSIGNALED(status);
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
            return 1;
    }
    printf("%u tasks done by %d workers, %u of which died; tasks were delivered again: %s\n", done, WORKERS,
           died, again > 0 ? "yes" : "no");
    ipc_connection_close(connection);
    return died == 1 ? 0 : 1;
}
