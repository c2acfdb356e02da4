/* SPDX-License-Identifier: Apache-2.0
 *
 * Scatter and gather: a job in many pieces, each a call; several servers share them, and the answers are added up as
 * they come, in the order in which they come.
 *
 *     ipcd-run --private -- scatter_gather
 */
#include <errno.h>
#include <signal.h>
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

enum { SERVERS = 3, PIECES = 50, PIECE = 10000 };

struct piece {
    uint64_t from, to;
};

/* The sum of the numbers in a piece. */
static void serve(void)
{
    ipc_connection *connection;
    ipc_server *server;

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "server: connecting");
    check(ipc_server_open(&server, connection, "math.sum", NULL, NULL), "server: opening");
    for (;;) {
        struct ipc_request *request;
        struct piece piece;
        uint64_t sum = 0;
        check(ipc_server_receive(server, &piece, sizeof(piece), &request, IPC_FOREVER), "server: receiving");
        for (uint64_t i = piece.from; i < piece.to; i++)
            sum += i;
        check(ipc_request_reply(request, &sum, sizeof(sum), NULL), "server: answering");
    }
}

struct gathered {
    uint64_t sum;
    unsigned pieces;
};

/* Called by ipc_client_dispatch() when a call is over. */
static void gather(ipc_call *call, void *context)
{
    struct gathered *gathered = context;
    struct ipc_reply reply;
    uint64_t sum = 0;

    int result = ipc_call_next(call, &reply, 0);
    if (result != 1) {
        fprintf(stderr, "a piece failed: %s\n", reply.text);
        exit(1);
    }
    memcpy(&sum, reply.data, sizeof(sum));
    gathered->sum += sum;
    gathered->pieces++;
    ipc_call_free(call);
}

int main(void)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct gathered gathered = {0, 0};
    ipc_connection *connection;
    ipc_client *client;
    pid_t servers[SERVERS];

    fflush(stdout);
    for (int i = 0; i < SERVERS; i++) {
        servers[i] = fork();
        if (servers[i] == 0)
            serve();
    }
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_client_open(&client, connection, "math.sum", NULL, NULL), "opening");
    options.flags = IPC_CALL_WAIT | IPC_CALL_RETRY; /* a sum may be computed twice */
    options.timeout_ns = 30 * SECOND;
    options.done = gather;
    options.context = &gathered;
    for (uint64_t i = 0; i < PIECES; i++) {
        const struct piece piece = {i * PIECE, (i + 1) * PIECE};
        ipc_call *call;
        check(ipc_call_start(&call, client, &piece, sizeof(piece), &options), "calling");
    }
    while (gathered.pieces < PIECES)
        check(ipc_client_dispatch(client, IPC_FOREVER), "waiting");
    printf("%u pieces, sum %llu\n", gathered.pieces, (unsigned long long)gathered.sum);
    ipc_client_close(client);
    ipc_connection_close(connection);
    for (int i = 0; i < SERVERS; i++) {
        kill(servers[i], SIGTERM);
        waitpid(servers[i], NULL, 0);
    }
    const uint64_t all = (uint64_t)PIECES * PIECE;
    return gathered.sum == all * (all - 1) / 2 ? 0 : 1;
}
