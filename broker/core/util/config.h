/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration: defaults, then a file, then its drop-ins (FILE.d/ *.conf in lexical order, each may change what
 * came before). Every mistake is reported with file and line; nothing is used unless there is none.
 */
#ifndef IPCD_CORE_UTIL_CONFIG_H
#define IPCD_CORE_UTIL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "broker/core/util/policy.h"
#include "proto/limits.h"
#include "proto/queue.h"

/* What is counted and limited, per user and in total: id, setting, the words for it, whether it is bytes, default per
 * user, default in total, most that can be set, and what the user can do. Defaults of 0 are chosen at start. */
#define LIMITS(X)                                                                                          \
 X(SESSIONS, "sessions", "sessions", false, IPC_SESSIONS_DEFAULT, IPC_MAX_SESSIONS, IPC_MAX_SESSIONS,      \
   "close connections")                                                                                    \
 X(TOPICS, "topics", "advertised topics", false, IPC_TOPICS_DEFAULT, IPC_MAX_TOPICS, IPC_MAX_TOPICS,       \
   "close publishers")                                                                                     \
 X(SUBSCRIPTIONS, "subscriptions", "subscriptions", false, IPC_SUBSCRIPTIONS_DEFAULT, IPC_MAX_TOPICS,      \
   IPC_MAX_TOPICS, "close subscriptions")                                                                  \
 X(LANES, "lanes", "pairings of a lane and a reader", false, IPC_LANES_DEFAULT, IPC_MAX_PAIRINGS,          \
   IPC_MAX_PAIRINGS, "subscribe to fewer topics")                                                          \
 X(QUEUES, "queues", "queues", false, IPC_QUEUES_DEFAULT, IPC_MAX_QUEUES, IPC_MAX_QUEUES, "remove queues") \
 X(PORTS, "ports", "ports of queues", false, IPC_PORTS_DEFAULT, IPC_MAX_PORTS, IPC_MAX_PORTS,              \
   "close producers or consumers")                                                                         \
 X(ATTACHMENTS, "attachments", "attachments of shared segments", false, IPC_ATTACHMENTS_DEFAULT,           \
   IPC_MAX_ATTACHMENTS, IPC_MAX_ATTACHMENTS, "close shared segments")                                      \
 X(DESCRIPTORS, "descriptors", "file descriptors of the broker", false, 0, 0, UINT64_C(1) << 20,           \
   "close publishers or subscriptions")                                                                    \
 X(SEGMENT_BYTES, "segment-bytes", "bytes of shared memory", true, IPC_SEGMENT_BYTES_DEFAULT, 0,           \
   UINT64_C(1) << 46, "advertise with smaller rings")

enum limit {
#define LIMIT_ENUM(id, ...) LIMIT_##id,
    LIMITS(LIMIT_ENUM)
#undef LIMIT_ENUM
        LIMIT_COUNT
};

struct limit_about {
    const char *setting, *what, *advice;
    bool bytes;
};
extern const struct limit_about limit_about[LIMIT_COUNT];

/* What one user may have: the limits above, and two more. */
#define USER_QUEUE_BYTES LIMIT_COUNT
#define USER_CONNECTS    (LIMIT_COUNT + 1) /* per second */
#define USER_LIMITS      ((unsigned)LIMIT_COUNT + 2)

struct user_limit_about {
    const char *setting;
    bool bytes;
    uint64_t least, highest;
};
extern const struct user_limit_about user_limit_about[USER_LIMITS];

struct user_limits {
    uint64_t most[USER_LIMITS];
    const char *from[USER_LIMITS]; /* the [quota NAME] that says so; NULL: [limits] */
};

#define CONFIG_SETTINGS_MAX 32u
#define CONFIG_ORIGIN_SIZE  96u

/* A section [queue NAME]: what is given in it. */
struct config_queue {
    char name[IPC_MAX_NAME_SIZE + 1], dead_letter[IPC_MAX_NAME_SIZE + 1];
    Ipc__Control__QueueSettings settings;
    char origin[CONFIG_ORIGIN_SIZE];
    unsigned set_at[IPC_QUEUE_SETTINGS]; /* line in the file at hand, or 0 */
};

/* A section [quota NAME]: limits of those that its `who` names. */
struct config_quota {
    struct policy_rule rule;    /* its name, origin and who */
    uint64_t most[USER_LIMITS]; /* 0: not given */
    unsigned set_at[USER_LIMITS];
    uint32_t *members; /* of its groups, in order; from config_resolve() on */
    size_t n_members;
};

struct config {
    char address[IPC_MAX_ADDRESS_SIZE + 1]; /* empty: the default of whoever runs it */
    uint64_t log_level;                     /* LOG_ERR to LOG_DEBUG */
    uint64_t socket_mode;
    uint64_t per_user[LIMIT_COUNT];
    uint64_t total[LIMIT_COUNT];
    uint64_t connects_per_second; /* per user */
    uint64_t hello_timeout;       /* seconds from connect to HELLO */
    uint64_t ring_size_max;
    uint64_t queue_bytes, total_queue_bytes; /* memory of the queues of one user, and of all */
    uint64_t router_threads;
    uint64_t drain;              /* seconds */
    uint64_t memory_limit;       /* of the cgroup, or UINT64_MAX */
    bool lowered;                /* the totals of memory were, below that */
    struct config_queue *queues; /* in the order in which they were first named */
    size_t n_queues;
    struct policy policy;
    bool kept;                   /* config_load_kept() filled it: users and groups were looked up before */
    struct config_quota *quotas; /* in the order in which they were first named */
    size_t n_quotas;
    /* Where each setting comes from, in the order of the table in config.c; "" is the default. */
    char origin[CONFIG_SETTINGS_MAX][CONFIG_ORIGIN_SIZE];
};

void config_init(struct config *config);

/* Free what it has allocated. */
void config_done(struct config *config);

/* Read a file and its drop-ins. A file that does not exist is a mistake only if `required`. Mistakes are written to
 * `errors`, one line each. Returns their number. */
unsigned config_load(struct config *config, const char *path, bool required, FILE *errors);

/* The file that is read if none is named; free it. NULL: there is no place for one. */
char *config_default_path(void);

/* As config_load(), for the text of one file. */
unsigned config_parse(struct config *config, const char *path, const char *text, size_t size, FILE *errors);

/* Sections [quota NAME] (quotas.c): that of a name, made if need be (NULL: out of memory); the index of a setting, or -1;
 * what it lacks, or NULL; who is in its groups; freeing them all. */
struct config_quota *config_quota_of(struct config *config, const char *name);
int config_quota_setting(const char *key);
const char *config_quota_wrong(const struct config_quota *quota);
int config_quotas_resolve(struct config *config);
bool config_quota_add_member(struct config_quota *quota, uint32_t uid);
void config_quotas_done(struct config *config);

/* What a user may have: of each limit what the first [quota NAME] says that speaks of the user and sets it, else
 * [limits]. What *ret points at is the configuration's. */
void config_user_limits(const struct config *config, uint32_t uid, struct user_limits *ret);

/* Fill in what is still 0 from what this process may use, and lower what is more. */
void config_resolve(struct config *config, size_t open_files_max);

/* For the next ipcd, which is to go on with the same if this one dies: a memfd, or -1; and reading it. */
int config_keep(const struct config *config);
unsigned config_load_kept(struct config *config, int fd, FILE *errors);

/* Write a configuration as a file that would set it. */
void config_print(const struct config *config, FILE *out);

#endif
