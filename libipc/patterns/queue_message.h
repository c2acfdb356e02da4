/* SPDX-License-Identifier: Apache-2.0
 *
 * What a delivery says, as struct ipc_queue_message.
 */
#ifndef IPC_PATTERNS_QUEUE_MESSAGE_H
#define IPC_PATTERNS_QUEUE_MESSAGE_H

#include <stddef.h>

#include "ipc/queue.h"
#include "proto/layout.h"

/* Room behind a copied header block for two terminated texts. */
#define QUEUE_BLOCK_EXTRA 512u

/* Everything but what is in the header block. */
static inline void queue_message_describe(struct ipc_queue_message *message,
                                          const struct ipc_delivery *delivery, uint64_t number)
{
    *message = (struct ipc_queue_message){.delivery = number,
                                          .number = delivery->number,
                                          .accepted_ns = delivery->time_ns,
                                          .sender_session = delivery->session,
                                          .sender_uid = delivery->uid,
                                          .sender_pid = delivery->pid,
                                          .attempt = delivery->attempt,
                                          .redelivered = delivery->redelivery,
                                          .priority = delivery->priority};
}

/* What the header block says. It is a private copy, with QUEUE_BLOCK_EXTRA bytes behind it. */
void queue_message_fields(struct ipc_queue_message *message, unsigned char *block, size_t size);

#endif
