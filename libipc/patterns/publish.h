/* SPDX-License-Identifier: Apache-2.0
 *
 * Between publisher.c (who reads) and publish.c (what is published).
 */
#ifndef IPC_PATTERNS_PUBLISH_H
#define IPC_PATTERNS_PUBLISH_H

#include "libipc/patterns/patterns.h"

/* Which messages may go the short way. */
static inline void publisher_set_plain(struct ipc_publisher *publisher)
{
    bool none = publisher->loan_open || publisher->renew || publisher->looks ||
                (publisher->flags & IPC_PUBLISHER_TIMESTAMP);
    publisher->plain_size_end = none ? 0 : publisher->message_size_max + 1;
}

/* Take in mail: admit and forget readers. */
void publisher_news(struct ipc_publisher *publisher);

/* Is there any? Also what another thread took in before it was counted as mail. */
static inline bool publisher_has_news(const struct ipc_publisher *publisher)
{
    return handle_has_mail(&publisher->handle) ||
           atomic_load_explicit(&publisher->handle.inbox, memory_order_relaxed) != NULL;
}

/* Open a message: room for `prefix` bytes of the caller's, the headers, and `size` bytes of payload, in *body. *headers is
 * what the headers take. 0; 1: it is dropped; negative errno. Then publisher_commit() with all of it. */
int publisher_open_message(struct ipc_publisher *publisher, uint32_t prefix, uint64_t size,
                           const struct ipc_publish *how, uint32_t *headers, unsigned char **body);
void publisher_commit(struct ipc_publisher *publisher, uint32_t size, uint32_t headers);

/* The two halves of that: the size of the header block (0: none; -EINVAL, -E2BIG), and writing it. */
int64_t publisher_headers_size(const struct ipc_publisher *publisher, const struct ipc_publish *how);
void publisher_put_headers(const struct ipc_publisher *publisher, const struct ipc_publish *how,
                           unsigned char *block, uint32_t size);

/* The session is over. 0: declared again, or, while there is no other session, to go on with the readers that are
 * there; -EBUSY: a loan of the old lane is open; -EPIPE; or why it could not be declared. */
int publisher_revive(struct ipc_publisher *publisher);

/* Go on in another lane, as the broker asked. 0, or why there is none; then nothing is published. */
int publisher_renew(struct ipc_publisher *publisher);

/* Look if the broker is still there, if the last look is long ago. */
void publisher_look(struct ipc_publisher *publisher);

/* Forget the readers that the writer gave up on, and tell the core. */
void publisher_report_faults(struct ipc_publisher *publisher);

#endif
