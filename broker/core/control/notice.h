/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling sessions what they are owed: derived from the states of their pairings, sent as far as window and socket
 * allow. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_NOTICE_H
#define IPCD_CORE_CONTROL_NOTICE_H

#include "broker/core/control/broker.h"

/* The session has something to be told at the next flush. */
void notice_mark(struct broker *broker, struct session *session);

/* Tell all sessions that are marked: first every writer (or count it in its `pending`, with mail), then readers. */
void notice_flush(struct broker *broker);

/* Count up a session's mail and wake whoever sleeps on it. */
void notice_mail(struct session *session);

/* It shall look at its lanes again. */
void notice_nudge(struct broker *broker, struct session *session);

#endif
