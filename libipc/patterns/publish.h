/* SPDX-License-Identifier: Apache-2.0
 *
 * Between publisher.c (who reads) and publish.c (what is published).
 */
#ifndef IPC_PATTERNS_PUBLISH_H
#define IPC_PATTERNS_PUBLISH_H

#include "libipc/patterns/patterns.h"

/* Take in mail: admit and forget readers. */
void publisher_news(struct ipc_publisher *publisher);

/* Forget the readers that the writer gave up on, and tell the core. */
void publisher_report_faults(struct ipc_publisher *publisher);

#endif
