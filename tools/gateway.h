/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of the gateways' own services (proto/gateway.proto).
 */
#ifndef IPC_TOOLS_GATEWAY_H
#define IPC_TOOLS_GATEWAY_H

#include <ipc/ipc.h>

#include "gateway.pb-c.h"
#include "tools/ipcctl.h"

struct answers {
    Ipc__Gateway__Item **items;
    size_t count;
};

void answers_done(struct answers *answers);

/* Ask one gateway; what it answers is added. Returns TOOL_OK, or says why not. */
int gateway_ask(const struct tool *tool, ipc_connection *connection, const char *gateway,
                const Ipc__Gateway__Request *request, struct answers *answers);

#endif
