/* SPDX-License-Identifier: Apache-2.0
 *
 * One thread that allocates and frees large segments, so that the control thread does not wait while the kernel clears
 * hundreds of megabytes. Started with the first job. The two threads share the two queues here and nothing else.
 */
#ifndef IPCD_CORE_CONTROL_WORKER_H
#define IPCD_CORE_CONTROL_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/control/quota.h"
#include "broker/core/util/list.h"
#include "proto/limits.h"

/* From this size on a segment is the worker's. */
#define WORKER_SIZE_MIN (UINT64_C(4) << 20)

struct broker;

struct job {
    struct list link;
    /* For the worker: what to allocate, or to destroy. */
    bool destroy;
    int fd;
    uint64_t size;
    int result;
    /* For the control thread: for whom, and what then. */
    void (*finish)(struct broker *broker, struct job *job);
    uint64_t session, request;
    struct user *user;
    struct charge charge; /* to return when it is destroyed */
    uint32_t ring_size;
    uint32_t permits, mode;
    bool retain, exclusive;
    unsigned kind;
    uint64_t target;
    uint32_t prefetch; /* of a port; with them its ring size is that of the messages' lane */
    bool consumer, bell;
    char name[IPC_MAX_NAME_SIZE + 1];
};

struct worker;

/* `event_fd` becomes readable when jobs are done; it stays the caller's. Returns NULL if there is no memory or thread. */
struct worker *worker_new(int event_fd);

/* Waits for the job at hand; the others are handed to `drop`. NULL is allowed. Returns NULL. */
struct worker *worker_free(struct worker *worker, void (*drop)(struct job *job));

void worker_push(struct worker *worker, struct job *job);

/* The next job that is done, or NULL. */
struct job *worker_pop(struct worker *worker);

#endif
