/* SPDX-License-Identifier: Apache-2.0
 *
 * How `ipcctl sub` prints a message: as a line of text, as it is, or as a JSON object.
 */
#ifndef IPC_TOOLS_MESSAGE_H
#define IPC_TOOLS_MESSAGE_H

#include "tools/ipcctl.h"

struct message_format {
    const struct tool *tool;
    bool raw;      /* the payload as it is */
    bool headers;  /* text: also sender, time, content type and headers */
    int delimiter; /* after each message; -1: nothing */
};

void message_print(const struct message_format *format, const struct ipc_message *message);

#endif
