/* SPDX-License-Identifier: Apache-2.0
 *
 * One packet from the core. Under the connection's lock.
 */
#ifndef IPC_SESSION_RECEIVE_H
#define IPC_SESSION_RECEIVE_H

#include "libipc/session/session.h"

/* 0: a frame; its message is valid until the next one. -EAGAIN, -EPIPE, -EPROTO. Descriptors are stored in
 * fds[IPC_MAX_FRAME_FDS] in any case and are the caller's. */
int receive_frame(struct ipc_connection *connection, struct ipc_frame *frame, int *fds, unsigned *fd_count);

/* Handle a frame that is not the reply somebody waits for, and its descriptors. */
void receive_dispatch(struct ipc_connection *connection, const struct ipc_frame *frame, int *fds,
                      unsigned count);

void receive_close(int *fds, unsigned count);

#endif
