/* SPDX-License-Identifier: Apache-2.0
 *
 * Gateways for tests: programs of their own beside a broker, and what they say of themselves.
 */
#ifndef IPC_TESTS_GATEWAY_H
#define IPC_TESTS_GATEWAY_H

#include <sys/types.h>

#include "gateway.pb-c.h"
#include "tests/support/broker.h"

struct gateway_process {
    pid_t pid;
    const char *program; /* the variable that names it, such as "IPCD_MQ_BIN" */
    char folder[48], config[80], notify[80];
    int notify_fd;
};

/* Start it with a configuration, at the broker that IPC_ADDRESS names, and wait until it is ready. */
void gateway_process_start(struct gateway_process *made, const char *program, const char *config);
/* The same program and configuration once more. */
void gateway_process_again(struct gateway_process *made);
/* It is ready once more, after it was connected again. */
void gateway_process_ready(struct gateway_process *made);
/* Have it read another configuration, and wait until that is done. */
void gateway_process_reload(struct gateway_process *made, const char *config);
void gateway_process_kill(struct gateway_process *made);
/* End it by SIGTERM: it must leave with 0. */
void gateway_process_stop(struct gateway_process *made);

/* Ask a gateway. Returns what ipc_client_call() does; *ret_text (or NULL): the error's sentence. The binding in the answer, or
 * NULL; free it with ipc__gateway__binding__free_unpacked(). */
Ipc__Gateway__Binding *gateway_ask(ipc_connection *connection, const char *gateway, Ipc__Gateway__Verb verb,
                                   const char *id, const char *const *settings, int *ret_result,
                                   char ret_text[256]);

/* What it says of one of its bindings, as numbers; waited for until there is one of that state (or "": any). */
struct gateway_numbers {
    uint64_t received, sent, dropped, refused, bad, dead, held;
    char error[256];
};
struct gateway_numbers gateway_wait_state(ipc_connection *connection, const char *gateway, const char *id,
                                          const char *state);

#endif
