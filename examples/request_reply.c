/* SPDX-License-Identifier: Apache-2.0
 *
 * A service and its client: calls with an answer, and an error that says what is wrong. Here one process forks the
 * other; usually they are programs of their own.
 *
 *     ipcd-run --private -- request_reply
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipc/ipc.h>

#define SECOND INT64_C(1000000000)

/* Every call that can fail is asked whether it did. */
static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

struct question {
    int64_t dividend, divisor;
};

/* Answer calls until one asks to divide nothing by nothing. */
static void serve(void)
{
    ipc_connection *connection;
    ipc_server *server;
    struct question question = {0, 1};

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "server: connecting");
    check(ipc_server_open(&server, connection, "math.divide", NULL, NULL), "server: opening");
    while (question.dividend != 0 || question.divisor != 0) {
        struct ipc_request *request;
        ssize_t size = check(ipc_server_receive(server, &question, sizeof(question), &request, IPC_FOREVER),
                             "server: receiving");
        if (size != sizeof(question)) {
            check(ipc_request_fail(request, 1, "a question has two numbers", NULL, 0), "server: answering");
        } else if (question.divisor == 0) {
            check(ipc_request_fail(request, 2, "nothing can be divided by 0", NULL, 0), "server: answering");
        } else {
            int64_t answer = question.dividend / question.divisor;
            check(ipc_request_reply(request, &answer, sizeof(answer), NULL), "server: answering");
        }
    }
    ipc_server_close(server);
    ipc_connection_close(connection);
}

int main(void)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct question question = {1000, 8};
    struct ipc_reply reply;
    ipc_connection *connection;
    ipc_client *client;
    int64_t answer;
    int status;

    fflush(stdout);
    if (fork() == 0) {
        serve();
        return 0;
    }
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_client_open(&client, connection, "math.divide", NULL, NULL), "opening");
    options.flags = IPC_CALL_WAIT; /* the server may not be there yet */
    options.timeout_ns = 30 * SECOND;
    check(ipc_client_call(client, &question, sizeof(question), &answer, sizeof(answer), &options, NULL),
          "calling");
    printf("%d / %d = %d\n", (int)question.dividend, (int)question.divisor, (int)answer);

    question = (struct question){0, 0};
    ssize_t result =
        ipc_client_call(client, &question, sizeof(question), &answer, sizeof(answer), NULL, &reply);
    printf("0 / 0: error %d from %s: %s\n", reply.code, reply.server.name, reply.text);
    ipc_client_close(client);
    ipc_connection_close(connection);
    wait(&status);
    return result == -EREMOTEIO && status == 0 ? 0 : 1;
}
