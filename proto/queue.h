/* SPDX-License-Identifier: Apache-2.0
 *
 * The settings of a queue: their names, ranges and defaults, and their text as in ipcd.conf(5) and ipcctl(1). One table
 * for the core, its configuration and the tools. Pure functions, any thread.
 */
#ifndef IPC_PROTO_QUEUE_H
#define IPC_PROTO_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control.pb-c.h"

enum ipc_queue_kind {
    IPC_QUEUE_COUNT,
    IPC_QUEUE_SIZE,     /* bytes, with a suffix K, M, G or T */
    IPC_QUEUE_DURATION, /* nanoseconds, with a suffix ns, us, ms, s, m, h or d */
    IPC_QUEUE_WORD,
    IPC_QUEUE_SWITCH, /* yes or no */
    IPC_QUEUE_NAME,   /* of a queue, or none */
};

struct ipc_queue_setting {
    const char *name;
    enum ipc_queue_kind kind;
    uint8_t field; /* its number in QueueSettings, and its bit in `given` */
    uint8_t size;  /* of the field in memory */
    uint16_t offset;
    bool fixed; /* at creation */
    uint64_t least, most, fallback;
    const char *const *words;
    const char *what;
};

#define IPC_QUEUE_SETTINGS 13u
extern const struct ipc_queue_setting ipc_queue_settings[IPC_QUEUE_SETTINGS];

#define IPC_QUEUE_TEXT_SIZE 512u /* for a value, or for what is wrong with one */

/* NULL: there is no setting of that name. */
const struct ipc_queue_setting *ipc_queue_setting_find(const char *name);

/* Numbers, words and switches only. */
uint64_t ipc_queue_setting_get(const struct ipc_queue_setting *setting,
                               const Ipc__Control__QueueSettings *settings);
void ipc_queue_setting_put(const struct ipc_queue_setting *setting, Ipc__Control__QueueSettings *settings,
                           uint64_t value);

static inline bool ipc_queue_setting_given(const struct ipc_queue_setting *setting,
                                           const Ipc__Control__QueueSettings *settings)
{
    return settings->given >> setting->field & 1;
}

/* Store a value from its text and mark it as given; a name stays in the caller's memory. 0, or -EINVAL and a sentence. */
int ipc_queue_setting_parse(const struct ipc_queue_setting *setting, const char *text,
                            Ipc__Control__QueueSettings *settings, char why[IPC_QUEUE_TEXT_SIZE]);

/* Its text, which ipc_queue_setting_parse() understands. */
void ipc_queue_setting_print(const struct ipc_queue_setting *setting,
                             const Ipc__Control__QueueSettings *settings, char text[IPC_QUEUE_TEXT_SIZE]);

/* Are the given ones in their ranges? 0, or -EINVAL and a sentence. */
int ipc_queue_settings_check(const Ipc__Control__QueueSettings *settings, char why[IPC_QUEUE_TEXT_SIZE]);

/* Initialised, with all defaults; none is given. */
void ipc_queue_settings_init(Ipc__Control__QueueSettings *settings);

/* Those of `from` that are given, into `to`. */
void ipc_queue_settings_apply(Ipc__Control__QueueSettings *to, const Ipc__Control__QueueSettings *from);

/* A whole number with one of the suffixes of a kind: IPC_QUEUE_COUNT (none), IPC_QUEUE_SIZE or IPC_QUEUE_DURATION (one
 * is needed but for 0). 0, -EINVAL or -ERANGE. */
int ipc_quantity_parse(const char *text, enum ipc_queue_kind kind, uint64_t *ret);

/* With the largest suffix that divides it. */
void ipc_quantity_print(char *text, size_t capacity, enum ipc_queue_kind kind, uint64_t number);

#endif
