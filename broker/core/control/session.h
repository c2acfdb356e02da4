/* SPDX-License-Identifier: Apache-2.0
 *
 * One client's connection, from accept to end. Control thread only.
 */
#ifndef IPCD_CORE_CONTROL_SESSION_H
#define IPCD_CORE_CONTROL_SESSION_H

#include "broker/core/control/broker.h"

/* Take over an accepted socket: find out who it is, charge, watch. Over a limit it waits for its first frame to be told
 * so, unless many of that user do (-EDQUOT). The descriptor is the session's on success. Returns 0 or a negative errno. */
int session_new(struct broker *broker, int *fd);

/* HELLO was good. Makes the board unless it is an admin. Returns 0, or a negative errno and the refusal. */
int session_open(struct broker *broker, struct session *session, struct refusal *refusal);

/* End it: what it declared goes, its peers are told, and its record is freed at the end of the round. With `text` the
 * client is told the reason. */
void session_end(struct broker *broker, struct session *session, unsigned reason, const char *text);

/* End those that did not do what they had to in time; when the next deadline is, UINT64_MAX: never. */
void session_end_overdue(struct broker *broker);
uint64_t session_deadline_ns(const struct broker *broker);

/* Free the records of sessions that ended. */
void session_bury(struct broker *broker);

/* Answer a request. `fd` (or -1) stays the caller's. A client that does not read its answers is ended: reason slow. */
void session_reply(struct broker *broker, struct session *session, unsigned type, uint64_t id,
                   const ProtobufCMessage *message, int fd);
void session_reply_with(struct broker *broker, struct session *session, unsigned type, uint64_t id,
                        const ProtobufCMessage *message, const int *fds, size_t n_fds);

/* Answer a request by FAILURE. */
void session_fail(struct broker *broker, struct session *session, uint64_t id, int code, const char *format,
                  ...) __attribute__((format(printf, 5, 6)));

/* The same with a refusal, which is logged. */
void session_refuse(struct broker *broker, struct session *session, uint64_t id,
                    const struct refusal *refusal);

/* Something happened to it that `ipcctl events` tells; with `text` (or NULL) why. */
void session_event(struct broker *broker, const struct session *session, enum event_kind kind,
                   const char *text);

/* Something it may be told, or its socket, changed. */
int session_flush_outbox(struct broker *broker, struct session *session);
void session_send_failed(struct broker *broker, struct session *session, int result);
void session_update_events(struct broker *broker, struct session *session);

/* The request in front was worked on: take it out of the socket, now or when its answer has gone out. */
void session_answered(struct broker *broker, struct session *session);

/* Throw away what it sent: a socket that is closed with something in it takes our last words back. */
void session_drain(struct session *session);

/* Its board, mapped if it is not yet; NULL: it has none, or no memory. */
struct ipc_board *session_board(struct session *session);

/* A session of an earlier ipcd, from its row and its descriptors (-1: not there). NULL: out of memory. */
struct session *session_restore(struct broker *broker, struct session_row *row, int fd, int pidfd,
                                int board_fd);

/* Let the loop know its descriptors. Returns 0 or a negative errno. */
int session_watch(struct broker *broker, struct session *session);

/* Events of the loop. */
void session_on_socket(struct broker *broker, struct session *session, uint32_t events);
void session_on_process(struct broker *broker, struct session *session);

/* Try again with those for whom something was lacking. */
void session_retry_stalled(struct broker *broker);

/* Work on one frame (request.c). */
void request_handle(struct broker *broker, struct session *session, const void *packet, size_t size);

#endif
