/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"
#include "proto/queue.h"

int gateway_setting_find(const struct gateway_table *table, const char *key, char why[GATEWAY_WHY_SIZE])
{
    char quoted[64];
    size_t at;

    for (size_t i = 0; i < table->count; i++)
        if (strcmp(table->settings[i].key, key) == 0)
            return (int)i;
    text_quote(quoted, sizeof(quoted), key);
    at = (size_t)snprintf(why, GATEWAY_WHY_SIZE, "unknown setting '%s'; there are:", quoted);
    for (size_t i = 0; i < table->count && at < GATEWAY_WHY_SIZE; i++)
        at += (size_t)snprintf(why + at, GATEWAY_WHY_SIZE - at, " %s", table->settings[i].key);
    return -ENOENT;
}

static int parse_mode(const char *value, uint64_t *ret)
{
    size_t size = strlen(value);

    if (size < 3 || size > 4 || strspn(value, "01234567") != size || (size == 4 && value[0] != '0'))
        return -EINVAL;
    for (*ret = 0; *value; value++)
        *ret = *ret << 3 | (uint64_t)(*value - '0');
    return 0;
}

static int parse_word(const struct gateway_setting *setting, const char *value, uint64_t *ret)
{
    for (size_t i = 0; setting->words[i]; i++) {
        if (strcmp(setting->words[i], value) == 0) {
            *ret = i;
            return 0;
        }
    }
    return -EINVAL;
}

static int parse_quantity(const struct gateway_setting *setting, const char *value, uint64_t *ret)
{
    enum ipc_queue_kind kind = setting->kind == GATEWAY_SIZE       ? IPC_QUEUE_SIZE
                               : setting->kind == GATEWAY_DURATION ? IPC_QUEUE_DURATION
                                                                   : IPC_QUEUE_COUNT;

    if (ipc_quantity_parse(value, kind, ret) < 0 || *ret < setting->least || *ret > setting->most)
        return -EINVAL;
    return 0;
}

/* What is allowed, for people. */
static void allowed(const struct gateway_setting *setting, char *text, size_t size)
{
    enum ipc_queue_kind kind = setting->kind == GATEWAY_SIZE       ? IPC_QUEUE_SIZE
                               : setting->kind == GATEWAY_DURATION ? IPC_QUEUE_DURATION
                                                                   : IPC_QUEUE_COUNT;
    char least[32], most[32];
    size_t at = 0;

    if (setting->kind == GATEWAY_MODE) {
        (void)snprintf(text, size, "three octal digits are allowed, such as 660");
    } else if (setting->kind == GATEWAY_WORD) {
        text[0] = '\0';
        for (size_t i = 0; setting->words[i] && at < size; i++)
            at += (size_t)snprintf(text + at, size - at, "%s%s",
                                   i == 0                  ? "it is one of "
                                   : setting->words[i + 1] ? ", "
                                                           : " and ",
                                   setting->words[i]);
    } else if (setting->kind == GATEWAY_TEXT) {
        (void)snprintf(text, size, "at most %" PRIu64 " printable characters without ';' are allowed",
                       (setting->most < GATEWAY_VALUE_SIZE ? setting->most : GATEWAY_VALUE_SIZE) - 1);
    } else {
        ipc_quantity_print(least, sizeof(least), kind, setting->least);
        ipc_quantity_print(most, sizeof(most), kind, setting->most);
        (void)snprintf(text, size, "%s to %s is allowed", least, most);
    }
}

/* Into the number, or, of a text, nothing. */
static int parse(const struct gateway_setting *setting, const char *value, uint64_t *number)
{
    size_t size = strlen(value);

    if (size == 0 || size >= GATEWAY_VALUE_SIZE)
        return -EINVAL;
    switch (setting->kind) {
    case GATEWAY_TEXT:
        for (const char *at = value; *at; at++)
            if (*at < ' ' || *at > '~' || *at == ';')
                return -EINVAL;
        return size < setting->most && value[0] != ' ' && value[size - 1] != ' ' ? 0 : -EINVAL;
    case GATEWAY_MODE:
        return parse_mode(value, number);
    case GATEWAY_WORD:
        return parse_word(setting, value, number);
    case GATEWAY_COUNT:
    case GATEWAY_SIZE:
    case GATEWAY_DURATION:
        return parse_quantity(setting, value, number);
    }
    return -EINVAL;
}

int gateway_setting_give(const struct gateway_table *table, size_t index, const char *value,
                         struct gateway_given *given, char why[GATEWAY_WHY_SIZE])
{
    const struct gateway_setting *setting = &table->settings[index];
    char quoted[64], what[160];
    uint64_t number;

    if (parse(setting, value, &number) < 0) {
        text_quote(quoted, sizeof(quoted), value);
        allowed(setting, what, sizeof(what));
        (void)snprintf(why, GATEWAY_WHY_SIZE, "%s = %s: %s", setting->key, quoted, what);
        return -EINVAL;
    }
    (void)snprintf(given->values[index], GATEWAY_VALUE_SIZE, "%s", value);
    return 0;
}

int gateway_settings_resolve(const struct gateway_table *table, const struct gateway_given *given, void *ret,
                             char why[GATEWAY_WHY_SIZE])
{
    for (size_t i = 0; i < table->count; i++) {
        const struct gateway_setting *setting = &table->settings[i];
        char *field = (char *)ret + setting->offset;
        const char *value = given->values[i][0] ? given->values[i] : setting->fallback;
        uint64_t number = 0;

        if (!value) {
            (void)snprintf(why, GATEWAY_WHY_SIZE, "%s has to be given", setting->key);
            return -EINVAL;
        }
        if (setting->kind == GATEWAY_TEXT) {
            (void)snprintf(field, setting->most, "%s", value);
            continue;
        }
        (void)parse(setting, value, &number); /* it was checked when it was given */
        memcpy(field, &number, sizeof(number));
    }
    return 0;
}
