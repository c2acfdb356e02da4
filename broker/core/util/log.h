/* SPDX-License-Identifier: Apache-2.0
 *
 * What the core and its parent tell the operator. Each message is of a kind (level, MESSAGE_ID, name) and of each
 * kind at most LOG_BURST are written per second; the rest is counted and said with the next. To the journal with
 * fields if stderr leads there, else key=value lines. Never waits for a reader of stderr. One thread.
 */
#ifndef IPCD_CORE_UTIL_LOG_H
#define IPCD_CORE_UTIL_LOG_H

#include <stdint.h>
#include <syslog.h>

#define LOG_BURST 20u

/* kind, level, MESSAGE_ID, name */
#define LOG_KINDS(X)                                                                      \
 X(STARTED, LOG_NOTICE, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e01", "started")                    \
 X(STOPPED, LOG_NOTICE, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e02", "stopped")                    \
 X(CONFIG, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e03", "configuration")              \
 X(SYSTEM, LOG_ERR, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e04", "system")                         \
 X(SESSION_BEGUN, LOG_INFO, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e05", "session-begun")          \
 X(SESSION_ENDED, LOG_INFO, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e06", "session-ended")          \
 X(SESSION_EXPELLED, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e07", "session-expelled") \
 X(REFUSED, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e08", "refused")                   \
 X(DETACHED, LOG_NOTICE, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e09", "detached")                  \
 X(PAIRING_FAILED, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e0a", "pairing-failed")     \
 X(LANE, LOG_DEBUG, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e0b", "lane")                           \
 X(CHILD, LOG_ERR, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e0c", "child")                           \
 X(QUEUE, LOG_NOTICE, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e10", "queue")                        \
 X(GATEWAY, LOG_NOTICE, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e11", "gateway")                    \
 X(BINDING, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e12", "binding")                   \
 X(BAD_INPUT, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e13", "bad-input")               \
 X(DENIED, LOG_WARNING, "5ad1a3cf1c0e4f7f9e3d6a1b7c2f4e14", "denied")

enum log_kind {
#define LOG_ENUM(kind, level, id, name) LOG_##kind,
    LOG_KINDS(LOG_ENUM)
#undef LOG_ENUM
        LOG_KIND_COUNT
};

/* Whom a message is about; what is 0 or NULL is left out. */
struct log_about {
    uint64_t session;
    uint32_t uid, pid;
    const char *name;
    const char *reason;
};

/* Levels are those of syslog(3), LOG_ERR to LOG_DEBUG. `program` is static. */
void log_init(const char *program, int level);

/* The level by its word (error, warning, notice, info, debug) or -1; and the word of a level. */
int log_level_from_word(const char *word);
const char *log_level_word(int level);

void log_write(enum log_kind kind, const struct log_about *about, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
