/* SPDX-License-Identifier: Apache-2.0
 *
 * An answer in many parts, which come while the server still works; and a client that has seen enough.
 *
 *     ipcd-run --private -- stream_reply
 */
#include <errno.h>
#include <stdbool.h>
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

static bool is_prime(uint32_t number)
{
    for (uint32_t i = 2; i * i <= number; i++)
        if (number % i == 0)
            return false;
    return number > 1;
}

/* One call: all primes from a number on, one part each, until nobody wants more. */
static void serve(void)
{
    ipc_connection *connection;
    ipc_server *server;
    struct ipc_request *request;
    uint32_t number;
    int result = 0;

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "server: connecting");
    check(ipc_server_open(&server, connection, "math.primes", NULL, NULL), "server: opening");
    check(ipc_server_receive(server, &number, sizeof(number), &request, IPC_FOREVER), "server: receiving");
    for (; result == 0 && number < UINT32_MAX; number++)
        if (is_prime(number)) {
            result = ipc_request_part(request, &number, sizeof(number), NULL);
        }
    if (result == -ECANCELED || result == -EPIPE) /* it cancelled, or has left already */
        printf("server: it wants no more\n");
    if (result != -EPIPE)
        check(ipc_request_end(request), "server: ending");
    ipc_server_close(server);
    ipc_connection_close(connection);
}

int main(void)
{
    struct ipc_call_options options = IPC_CALL_OPTIONS_INIT;
    struct ipc_reply reply;
    uint32_t from = 1000, prime = 0;
    ipc_connection *connection;
    ipc_client *client;
    ipc_call *call;
    int status;

    fflush(stdout);
    if (fork() == 0) {
        serve();
        return 0;
    }
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_client_open(&client, connection, "math.primes", NULL, NULL), "opening");
    options.flags = IPC_CALL_WAIT;
    options.timeout_ns = 30 * SECOND; /* for all of the answer */
    check(ipc_call_start(&call, client, &from, sizeof(from), &options), "calling");
    for (int i = 0; i < 5 && check(ipc_call_next(call, &reply, IPC_FOREVER), "waiting") == 1; i++) {
        memcpy(&prime, reply.data, sizeof(prime));
        printf("%u\n", prime);
    }
    ipc_call_free(call); /* which cancels it */
    ipc_client_close(client);
    ipc_connection_close(connection);
    wait(&status);
    return prime == 1031 && status == 0 ? 0 : 1;
}
