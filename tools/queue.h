/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of `ipcctl queue` share: its arguments, and the verbs.
 */
#ifndef IPC_TOOLS_QUEUE_H
#define IPC_TOOLS_QUEUE_H

#include <jansson.h>

#include "tools/admin.h"
#include "tools/ipcctl.h"

struct queue_arguments {
    struct tool *tool;
    const char *verb;
    const char *queue; /* or a pattern, of ls; NULL: not given */
    const char *target;
    Ipc__Control__QueueSettings settings;
    bool force, if_missing;
    /* Which messages. */
    uint32_t priority_plus_1, attempts_min;
    uint64_t older_than_ns, count;
    bool count_given;
    char *header, *value; /* value: NULL: any */
    uint32_t payload_max;
};

/* purge, peek, move, requeue. Return an enum tool_status. */
int queue_peek(struct queue_arguments *arguments);
int queue_move(struct queue_arguments *arguments);

/* Rows of LIST_QUEUES as a table, or as an array, in order of their names. */
void queue_print(struct admin_list *list, const struct tool *tool);
json_t *queue_rows(struct admin_list *list);

/* The end of a verb that changed something: {"operation", "queue"} and what `document` has already (or NULL). */
void queue_done(const struct queue_arguments *arguments, json_t *document);

#endif
