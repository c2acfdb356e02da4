/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/queue.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "proto/limits.h"
#include "proto/name.h"

typedef Ipc__Control__QueueSettings settings_t;

#define SECOND   UINT64_C(1000000000)
#define LONGEST  (366 * 24 * 3600 * SECOND)
#define AT(name) sizeof(((settings_t *)NULL)->name), offsetof(settings_t, name)

static const char *const full_words[] = {"block", "reject", "drop-oldest", "dead-letter", NULL};
static const char *const class_words[] = {"crash-safe", "best-effort", NULL};

const struct ipc_queue_setting ipc_queue_settings[IPC_QUEUE_SETTINGS] = {
    {"messages-max", IPC_QUEUE_COUNT, 1, AT(messages_max), false, 0, UINT64_C(1) << 40, 0, NULL,
     "messages that it holds, those with consumers included; 0: as many as fit into bytes-max"},
    {"bytes-max", IPC_QUEUE_SIZE, 2, AT(bytes_max), false, 65536, IPC_MAX_QUEUE_BYTES,
     IPC_QUEUE_BYTES_DEFAULT, NULL, "memory that its messages take"},
    {"message-size-max", IPC_QUEUE_SIZE, 3, AT(message_size_max), true, 64, IPC_MAX_QUEUE_MESSAGE_SIZE,
     IPC_QUEUE_MESSAGE_SIZE_DEFAULT, NULL, "the largest message, headers included"},
    {"full", IPC_QUEUE_WORD, 4, AT(full), false, 0, 3, 0, full_words, "what happens when it is full"},
    {"class", IPC_QUEUE_WORD, 5, AT(class_), true, 0, 1, 0, class_words, "what its messages outlive"},
    {"ttl", IPC_QUEUE_DURATION, 6, AT(ttl_ns), false, 0, LONGEST, 0, NULL,
     "time to live of messages that do not say; 0: for ever"},
    {"delay", IPC_QUEUE_DURATION, 7, AT(delay_ns), false, 0, LONGEST, 0, NULL,
     "delay of messages that do not say"},
    {"lease", IPC_QUEUE_DURATION, 8, AT(lease_ns), false, 0, LONGEST, 0, NULL,
     "an unacknowledged delivery is taken back after that; 0: only if its consumer ends"},
    {"attempts-max", IPC_QUEUE_COUNT, 9, AT(attempts_max), false, 0, IPC_MAX_ATTEMPTS, 0, NULL,
     "deliveries before a message becomes a dead letter; 0: no limit"},
    {"dead-letter", IPC_QUEUE_NAME, 10, AT(dead_letter), false, 0, 0, 0, NULL,
     "the queue that dead letters go to; none: they are dropped"},
    {"dedup-window", IPC_QUEUE_COUNT, 11, AT(dedup_window), true, 0, IPC_MAX_DEDUP_WINDOW, 0, NULL,
     "message ids that it remembers"},
    {"dedup-time", IPC_QUEUE_DURATION, 12, AT(dedup_window_ns), false, 0, LONGEST, 0, NULL,
     "for how long; 0: until the window is full"},
    {"paused", IPC_QUEUE_SWITCH, 13, AT(paused), false, 0, 1, 0, NULL, "nothing is delivered"},
};

static const struct unit {
    const char *suffix;
    uint64_t factor;
} sizes[] = {{"T", UINT64_C(1) << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"", 1}},
  durations[] = {{"d", 86400 * SECOND}, {"h", 3600 * SECOND}, {"m", 60 * SECOND}, {"s", SECOND},
                 {"ms", SECOND / 1000}, {"us", 1000},         {"ns", 1}},
  counts[] = {{"", 1}};

static const struct unit *units_of(enum ipc_queue_kind kind, size_t *ret_n)
{
    *ret_n = kind == IPC_QUEUE_SIZE ? 5 : kind == IPC_QUEUE_DURATION ? 7 : 1;
    return kind == IPC_QUEUE_SIZE ? sizes : kind == IPC_QUEUE_DURATION ? durations : counts;
}

int ipc_quantity_parse(const char *text, enum ipc_queue_kind kind, uint64_t *ret)
{
    const char *at = text;
    uint64_t number = 0;
    size_t n;
    const struct unit *units = units_of(kind, &n);

    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(number, 10u, &number) ||
            __builtin_add_overflow(number, (unsigned)(*at - '0'), &number))
            return -ERANGE;
    }
    if (at == text)
        return -EINVAL;
    if (!*at && number == 0) {
        *ret = 0;
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(at, units[i].suffix) != 0)
            continue;
        return __builtin_mul_overflow(number, units[i].factor, ret) ? -ERANGE : 0;
    }
    return -EINVAL;
}

void ipc_quantity_print(char *text, size_t capacity, enum ipc_queue_kind kind, uint64_t number)
{
    size_t n, i = 0;
    const struct unit *units = units_of(kind, &n);

    while (number % units[i].factor != 0)
        i++;
    (void)snprintf(text, capacity, "%" PRIu64 "%s", number / units[i].factor, number ? units[i].suffix : "");
}

const struct ipc_queue_setting *ipc_queue_setting_find(const char *name)
{
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++)
        if (strcmp(ipc_queue_settings[i].name, name) == 0)
            return &ipc_queue_settings[i];
    return NULL;
}

uint64_t ipc_queue_setting_get(const struct ipc_queue_setting *setting, const settings_t *settings)
{
    const char *field = (const char *)settings + setting->offset;
    uint64_t large;
    uint32_t small;

    assert(setting->kind != IPC_QUEUE_NAME);
    memcpy(&large, field, setting->size == sizeof(large) ? sizeof(large) : 0);
    memcpy(&small, field, sizeof(small));
    return setting->size == sizeof(large) ? large : small;
}

void ipc_queue_setting_put(const struct ipc_queue_setting *setting, settings_t *settings, uint64_t value)
{
    char *field = (char *)settings + setting->offset;
    uint32_t small = (uint32_t)value;

    assert(setting->kind != IPC_QUEUE_NAME);
    if (setting->size == sizeof(value))
        memcpy(field, &value, sizeof(value));
    else
        memcpy(field, &small, sizeof(small));
}

static char **name_of(const struct ipc_queue_setting *setting, settings_t *settings)
{
    return (char **)(void *)((char *)settings + setting->offset);
}

static int wrong_range(const struct ipc_queue_setting *setting, char *why)
{
    char least[32], most[32];

    ipc_quantity_print(least, sizeof(least), setting->kind, setting->least);
    ipc_quantity_print(most, sizeof(most), setting->kind, setting->most);
    (void)snprintf(why, IPC_QUEUE_TEXT_SIZE, "%s: %s from %s to %s is allowed%s", setting->name,
                   setting->kind == IPC_QUEUE_DURATION ? "a time" : "a whole number", least, most,
                   setting->kind == IPC_QUEUE_DURATION ? ", with one of ns, us, ms, s, m, h, d"
                   : setting->kind == IPC_QUEUE_SIZE   ? ", with K, M, G or T for powers of 1024 bytes"
                                                       : "");
    return -EINVAL;
}

static int wrong_word(const struct ipc_queue_setting *setting, const char *const *words, char *why)
{
    size_t used = (size_t)snprintf(why, IPC_QUEUE_TEXT_SIZE, "%s: allowed are", setting->name);

    for (; *words; words++)
        used +=
            (size_t)snprintf(why + used, IPC_QUEUE_TEXT_SIZE - used, " %s%s", *words, words[1] ? "," : "");
    return -EINVAL;
}

static int wrong_name(const struct ipc_queue_setting *setting, const char *name, char *why)
{
    const char *wrong = *name ? ipc_name_check(name, false) : NULL;

    if (!wrong)
        return 0;
    (void)snprintf(why, IPC_QUEUE_TEXT_SIZE, "%s: this is no name of a queue: %s", setting->name, wrong);
    return -EINVAL;
}

int ipc_queue_setting_parse(const struct ipc_queue_setting *setting, const char *text, settings_t *settings,
                            char why[IPC_QUEUE_TEXT_SIZE])
{
    static const char *const switches[] = {"no", "yes", NULL};
    const char *const *words = setting->kind == IPC_QUEUE_SWITCH ? switches : setting->words;
    uint64_t number = 0;

    switch (setting->kind) {
    case IPC_QUEUE_NAME:
        text = strcmp(text, "none") == 0 ? "" : text;
        if (wrong_name(setting, text, why) < 0)
            return -EINVAL;
        *name_of(setting, settings) = (char *)(uintptr_t)text;
        break;
    case IPC_QUEUE_WORD:
    case IPC_QUEUE_SWITCH:
        while (words[number] && strcmp(words[number], text) != 0)
            number++;
        if (!words[number])
            return wrong_word(setting, words, why);
        ipc_queue_setting_put(setting, settings, number);
        break;
    default:
        if (ipc_quantity_parse(text, setting->kind, &number) < 0 || number < setting->least ||
            number > setting->most)
            return wrong_range(setting, why);
        ipc_queue_setting_put(setting, settings, number);
        break;
    }
    settings->given |= UINT32_C(1) << setting->field;
    return 0;
}

void ipc_queue_setting_print(const struct ipc_queue_setting *setting, const settings_t *settings,
                             char text[IPC_QUEUE_TEXT_SIZE])
{
    uint64_t number = setting->kind == IPC_QUEUE_NAME ? 0 : ipc_queue_setting_get(setting, settings);
    const char *name;

    switch (setting->kind) {
    case IPC_QUEUE_NAME:
        memcpy(&name, (const char *)settings + setting->offset, sizeof(name));
        (void)snprintf(text, IPC_QUEUE_TEXT_SIZE, "%s", *name ? name : "none");
        break;
    case IPC_QUEUE_WORD:
        (void)snprintf(text, IPC_QUEUE_TEXT_SIZE, "%s",
                       number <= setting->most ? setting->words[number] : "?");
        break;
    case IPC_QUEUE_SWITCH:
        (void)snprintf(text, IPC_QUEUE_TEXT_SIZE, "%s", number ? "yes" : "no");
        break;
    default:
        ipc_quantity_print(text, IPC_QUEUE_TEXT_SIZE, setting->kind, number);
        break;
    }
}

int ipc_queue_settings_check(const settings_t *settings, char why[IPC_QUEUE_TEXT_SIZE])
{
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++) {
        const struct ipc_queue_setting *setting = &ipc_queue_settings[i];
        uint64_t number;

        if (!ipc_queue_setting_given(setting, settings))
            continue;
        if (setting->kind == IPC_QUEUE_NAME) {
            if (wrong_name(setting, settings->dead_letter, why) < 0)
                return -EINVAL;
            continue;
        }
        number = ipc_queue_setting_get(setting, settings);
        if (number >= setting->least && number <= setting->most)
            continue;
        if (setting->kind == IPC_QUEUE_WORD)
            return wrong_word(setting, setting->words, why);
        return wrong_range(setting, why);
    }
    return 0;
}

void ipc_queue_settings_init(settings_t *settings)
{
    ipc__control__queue_settings__init(settings);
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++)
        if (ipc_queue_settings[i].kind != IPC_QUEUE_NAME)
            ipc_queue_setting_put(&ipc_queue_settings[i], settings, ipc_queue_settings[i].fallback);
}

void ipc_queue_settings_apply(settings_t *to, const settings_t *from)
{
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++)
        if (ipc_queue_setting_given(&ipc_queue_settings[i], from))
            memcpy((char *)to + ipc_queue_settings[i].offset,
                   (const char *)from + ipc_queue_settings[i].offset, ipc_queue_settings[i].size);
}
