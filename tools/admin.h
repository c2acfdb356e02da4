/* SPDX-License-Identifier: Apache-2.0
 *
 * The broker's own view of itself: LIST and STATUS over an admin session (no board, no lanes).
 */
#ifndef IPC_TOOLS_ADMIN_H
#define IPC_TOOLS_ADMIN_H

#include "proto/frame.h"
#include "tools/ipcctl.h"

struct admin;

/* Open an admin session. Returns TOOL_OK, or says why not and returns the status to end with. */
int admin_open(struct admin **ret, const struct tool *tool);
struct admin *admin_close(struct admin *admin);
static inline void admin_closep(struct admin **admin)
{
    admin_close(*admin);
}
#define _cleanup_admin_ __attribute__((cleanup(admin_closep)))

/* Valid until the next call. Results as admin_open(). */
int admin_status(struct admin *admin, const Ipc__Control__StatusReply **ret);

/* One request, which has to be answered by that type. `doing` is what it is about, in messages. What *ret_message points
 * at lives until the next call. Results as admin_open(). */
int admin_request(struct admin *admin, uint16_t type, const ProtobufCMessage *message, uint16_t reply,
                  const char *doing, const void *ret_message);

/* What follows has the whole time again: of a command that goes on as long as it gets on. */
void admin_renew(struct admin *admin, const struct tool *tool);

/* Rows of one kind, copied; never NULL peers or names. */
struct admin_list {
    Ipc__Control__Item **items;
    size_t count;
    bool all; /* nothing was left out because it is others' */
};
#define ADMIN_LIST_INIT \
 {                      \
  NULL, 0, false        \
 }
void admin_list_done(struct admin_list *list);
#define _cleanup_admin_list_ __attribute__((cleanup(admin_list_done)))

/* All rows of a kind; pattern: NULL for all names. Results as admin_open(). */
int admin_list(struct admin *admin, struct admin_list *ret, Ipc__Control__ListKind kind, const char *pattern);

/* Those after a number. */
int admin_list_after(struct admin *admin, struct admin_list *ret, Ipc__Control__ListKind kind,
                     uint64_t after);

/* The path of the broker's socket that is in use. */
const char *admin_address(const struct admin *admin);

/* The words of the protocol's numbers, as in the options of `ipcctl sub`. */
const char *admin_slow_word(Ipc__Control__Slow slow);
const char *admin_start_word(Ipc__Control__Start start);

#endif
