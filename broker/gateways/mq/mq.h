/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of ipcd-mq: programs that know nothing but mq_send(3) and mq_receive(3) take part in topics, queues and services.
 */
#ifndef IPCD_GATEWAYS_MQ_MQ_H
#define IPCD_GATEWAYS_MQ_MQ_H

#include <mqueue.h>
#include <sys/epoll.h>

#include <ipc/mq.h>

#include "broker/gateways/common/gateway.h"
#include "proto/limits.h"

#define MQ_NAME_SIZE    128u /* terminated */
#define MQ_PRIORITY_MAX 9u   /* of a message in a queue: an mqueue's are cut to it */
#define MQ_BURST        64u  /* messages of one binding before it is another's turn */

/* ---- settings -------------------------------------------------------------------------------------------- */

enum mq_form { MQ_RAW, MQ_ENVELOPED };
enum mq_direction { MQ_IN, MQ_OUT, MQ_CALL, MQ_SERVE };
enum mq_full { MQ_FULL_WAIT, MQ_FULL_DROP };
enum mq_refused { MQ_REFUSED_HOLD, MQ_REFUSED_DROP };
enum mq_oversize { MQ_OVERSIZE_DEAD_LETTER, MQ_OVERSIZE_DROP, MQ_OVERSIZE_SPLIT };

struct mq_settings {
    uint64_t direction, form;
    char mqueue[MQ_NAME_SIZE], reply[MQ_NAME_SIZE];
    char topic[GATEWAY_VALUE_SIZE], queue[GATEWAY_VALUE_SIZE], service[GATEWAY_VALUE_SIZE];
    char dead_letter[GATEWAY_VALUE_SIZE], key[GATEWAY_VALUE_SIZE];
    uint64_t full, refused, oversize, ttl_ns, gather_max, calls;
    char identity[64], owner[64];
    uint64_t create, mode, messages, message_size, prefetch, timeout_ns;
};

extern const struct gateway_table mq_table;
int mq_check(const void *own, const void *binding, char why[GATEWAY_WHY_SIZE]);

/* ---- limits.c: what the machine allows ------------------------------------------------------------------- */

struct mq_limits {
    uint64_t msg_max, msgsize_max, queues_max, bytes_max; /* the last: RLIMIT_MSGQUEUE, UINT64_MAX: none */
};
extern struct mq_limits mq_limits;

void mq_limits_probe(void);
/* Cut the size of an mqueue to what is allowed. True if something was cut: what, and which setting changes it. */
bool mq_limits_clamp(uint64_t *messages, uint64_t *message_size, char why[GATEWAY_WHY_SIZE]);
void mq_limits_tell(struct gateway *gateway, Ipc__Gateway__About *about);

/* ---- mqueue.c -------------------------------------------------------------------------------------------- */

struct mqueue {
    struct gateway_source source; /* its descriptor is the mqueue's; -1: closed */
    struct gateway_binding *binding;
    size_t messages, message_size;
};

/* Open one for O_RDONLY or O_WRONLY, and make it if it is not there and the binding wants that. 0, or a negative errno and a
 * sentence. */
int mqueue_open(struct mqueue *mqueue, struct gateway_binding *binding, const char *name, int access,
                void (*ready)(struct gateway_source *source, uint32_t events), char why[GATEWAY_WHY_SIZE]);
/* One that is there already, whatever `create` says, for sending. */
int mqueue_find(struct mqueue *mqueue, struct gateway_binding *binding, const char *name,
                void (*ready)(struct gateway_source *source, uint32_t events));
void mqueue_close(struct mqueue *mqueue);
int mqueue_watch(struct mqueue *mqueue, uint32_t events);
void mqueue_unmake(const char *name);
/* NULL, or what is wrong with the name. */
const char *mqueue_name_check(const char *name);

/* ---- envelope.c ------------------------------------------------------------------------------------------ */

/* Headers for libipc from an envelope's: that of the identity is the binding's to state, and comes first. Returns how many:
 * more than IPC_MAX_HEADERS are for libipc to refuse. */
size_t mq_headers_in(const struct mq_settings *settings, const struct ipc_mq_message *message,
                     struct ipc_header headers[IPC_MAX_HEADERS + 1]);

/* Headers for an envelope from libipc's, whose names are not terminated: they are copied. */
struct mq_headers {
    struct ipc_header headers[IPC_MAX_HEADERS];
    char names[IPC_MAX_HEADERS][256];
};
size_t mq_headers_out(struct mq_headers *to, const void *fields, size_t fields_size);

/* An end of that mqueue, or of none. 0, or a negative errno and a sentence. */
int mq_end_open(ipc_mq **ret, const struct mqueue *mqueue, char why[GATEWAY_WHY_SIZE]);

/* ---- in.c, out.c, ... : one kind of binding each ---------------------------------------------------------- */

/* As those of struct gateway_kind. */
int in_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void in_unbind(struct gateway_binding *binding);
int out_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void out_unbind(struct gateway_binding *binding);
void out_event(struct gateway_binding *binding, const struct ipc_event *event);

int call_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void call_unbind(struct gateway_binding *binding);
int serve_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void serve_unbind(struct gateway_binding *binding);
/* The same two in the enveloped form. */
int ask_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void ask_unbind(struct gateway_binding *binding);
int answer_bind(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
void answer_unbind(struct gateway_binding *binding);

/* A sentence about a failed call of libipc. Returns its result. */
int mq_why(char why[GATEWAY_WHY_SIZE], const char *what, int result, const struct ipc_error *error);

#endif
