/* SPDX-License-Identifier: Apache-2.0
 *
 * Bindings come and go. One that cannot be opened is tried again later, each time after a longer while.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"

#define RETRY_NS     UINT64_C(250000000)
#define RETRY_DOUBLE 5u /* times: up to 8 s */

static void say(struct gateway_binding *binding, const char *format, va_list arguments)
    __attribute__((format(printf, 2, 0)));
static void say(struct gateway_binding *binding, const char *format, va_list arguments)
{
    const struct log_about about = {.name = binding->id};

    (void)vsnprintf(binding->error, sizeof(binding->error), format, arguments);
    log_write(LOG_BINDING, &about, "%s", binding->error);
}

void gateway_binding_say(struct gateway_binding *binding, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(binding, format, arguments);
    va_end(arguments);
}

void gateway_close_binding(struct gateway_binding *binding)
{
    gateway_timer_set(binding->gateway, &binding->retry, 0);
    if (binding->open)
        binding->gateway->kind->unbind(binding);
    binding->open = NULL;
    binding->blocked = false;
    binding->counters.held = 0;
}

static void try_again(struct gateway_timer *timer)
{
    struct gateway_binding *binding = (void *)((char *)timer - offsetof(struct gateway_binding, retry));

    gateway_open_binding(binding);
}

static void open_later(struct gateway_binding *binding)
{
    unsigned doubled = binding->failures < RETRY_DOUBLE ? binding->failures : RETRY_DOUBLE;

    gateway_close_binding(binding);
    binding->failures++;
    binding->retry.due = try_again;
    gateway_timer_set(binding->gateway, &binding->retry, time_monotonic_ns() + (RETRY_NS << doubled));
}

void gateway_binding_fail(struct gateway_binding *binding, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(binding, format, arguments);
    va_end(arguments);
    open_later(binding);
}

void gateway_open_binding(struct gateway_binding *binding)
{
    char why[GATEWAY_WHY_SIZE] = "";
    int result = binding->gateway->kind->bind(binding, why);

    if (result == 0) {
        if (binding->failures > 0)
            gateway_binding_say(binding, "it is open now");
        binding->failures = 0;
        binding->error[0] = '\0';
        return;
    }
    if (gateway_is_over(binding->gateway, result)) {
        gateway_close_binding(binding);
        return;
    }
    if (strcmp(why, binding->error) != 0) /* said once */
        gateway_binding_say(binding, "%s", why);
    open_later(binding);
}

void gateway_sweep(struct gateway *gateway, bool all)
{
    size_t kept = 0;

    for (size_t i = 0; i < gateway->n_made; i++) {
        bool used = false;

        for (size_t j = 0; j < gateway->n_bindings && !used && !all; j++)
            used = gateway->kind->uses(gateway->bindings[j], gateway->made[i]);
        if (used) {
            gateway->made[kept++] = gateway->made[i];
            continue;
        }
#ifndef IPC_PLANT_MQUEUE_LEFT
        gateway->kind->unmake(gateway->made[i]);
#endif
        free(gateway->made[i]);
    }
    gateway->n_made = kept;
}

struct gateway_binding *gateway_find(struct gateway *gateway, const char *id)
{
    for (size_t i = 0; i < gateway->n_bindings; i++)
        if (strcmp(gateway->bindings[i]->id, id) == 0)
            return gateway->bindings[i];
    return NULL;
}

static int choose_id(struct gateway *gateway, const char *wanted, char id[GATEWAY_ID_SIZE],
                     char why[GATEWAY_WHY_SIZE])
{
    const char *wrong = *wanted ? gateway_id_check(wanted) : NULL;

    if (wrong) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "%s", wrong);
        return -EINVAL;
    }
    (void)snprintf(id, GATEWAY_ID_SIZE, "%s", wanted);
    for (unsigned i = 1; !*wanted && (!*id || gateway_find(gateway, id)); i++)
        (void)snprintf(id, GATEWAY_ID_SIZE, "%s-%u", gateway->kind->name, i);
    if (!gateway_find(gateway, id))
        return 0;
    (void)snprintf(why, GATEWAY_WHY_SIZE, "there is a binding %s already; end it with ipcctl unbind first",
                   id);
    return -EEXIST;
}

static void take_off(struct gateway *gateway, const struct gateway_binding *binding)
{
    for (size_t i = 0; i < gateway->n_bindings; i++) {
        if (gateway->bindings[i] == binding) {
            memmove(&gateway->bindings[i], &gateway->bindings[i + 1],
                    (gateway->n_bindings - i - 1) * sizeof(gateway->bindings[0]));
            gateway->n_bindings--;
            return;
        }
    }
}

static int give_all(struct gateway_binding *binding, const struct gateway_table *table,
                    const Ipc__Gateway__Request *request, char why[GATEWAY_WHY_SIZE])
{
    for (size_t i = 0; i < request->n_settings; i++) {
        int index = gateway_setting_find(table, request->settings[i]->name, why);

        if (index >= 0 && binding->given.values[index][0]) {
            (void)snprintf(why, GATEWAY_WHY_SIZE, "%s is given twice", table->settings[index].key);
            return -EINVAL;
        }
        if (index < 0 ||
            gateway_setting_give(table, (size_t)index, request->settings[i]->value, &binding->given, why) < 0)
            return -EINVAL;
    }
    return 0;
}

int gateway_bind(struct gateway *gateway, const Ipc__Gateway__Request *request, struct gateway_binding **ret,
                 char why[GATEWAY_WHY_SIZE])
{
    struct gateway_binding *binding;
    char id[GATEWAY_ID_SIZE];
    int result = choose_id(gateway, request->id, id, why);

    if (result == 0 && gateway->n_bindings == GATEWAY_BINDINGS_MAX) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "there can be %u bindings; end one with ipcctl unbind",
                       GATEWAY_BINDINGS_MAX);
        result = -EDQUOT;
    }
    if (result < 0)
        return result;
    binding = gateway_binding_new(gateway->kind, id);
    if (!binding) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "out of memory");
        return -ENOMEM;
    }
    binding->gateway = gateway;
    result = give_all(binding, &gateway->kind->binds, request, why);
    if (result == 0)
        result = gateway_binding_resolve(binding, gateway->kind, gateway->own, why);
    if (result < 0) {
        (void)gateway_binding_free(binding);
        return result;
    }
    gateway->bindings[gateway->n_bindings++] = binding;
    result = gateway->kind->bind(binding, why);
    if (result == 0)
        result = gateway_state_write(gateway);
    if (result < 0) {
        if (!why[0])
            (void)snprintf(why, GATEWAY_WHY_SIZE, "%s", strerror(-result));
        (void)gateway_is_over(gateway, result);
        gateway_close_binding(binding);
        take_off(gateway, binding);
        (void)gateway_binding_free(binding);
        gateway_sweep(gateway, false);
        (void)gateway_state_write(gateway);
        return result;
    }
    *ret = binding;
    return 0;
}

int gateway_unbind(struct gateway *gateway, struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    if (binding->origin[0]) {
        (void)snprintf(
            why, GATEWAY_WHY_SIZE,
            "%s is in the configuration (%s): take it out there, and have %s read that again (SIGHUP)",
            binding->id, binding->origin, gateway->kind->program);
        return -EPERM;
    }
    gateway_close_binding(binding);
    take_off(gateway, binding);
    gateway_sweep(gateway, false);
    return gateway_state_write(gateway);
}

static bool same_settings(const struct gateway_binding *one, const struct gateway_binding *other)
{
    for (size_t i = 0; i < GATEWAY_SETTINGS_MAX; i++)
        if (strcmp(one->given.values[i], other->given.values[i]) != 0)
            return false;
    return true;
}

/* By the settings that hold, each binding has to make sense; else what there was of that id stays. */
static void leave_out_wrong(struct gateway *gateway, struct gateway_config *config)
{
    char why[GATEWAY_WHY_SIZE];

    for (size_t i = config->n_bindings; i-- > 0;) {
        struct gateway_binding *binding = config->bindings[i], *old;

        if (gateway_binding_resolve(binding, gateway->kind, gateway->own, why) == 0)
            continue;
        log_write(LOG_CONFIG, &(struct log_about){.name = binding->id},
                  "it holds from the next start only: %s", why);
        old = gateway_find(gateway, binding->id);
        if (old) {
            binding->given = old->given;
        } else {
            (void)gateway_binding_free(binding);
            config->bindings[i] = config->bindings[--config->n_bindings];
        }
    }
}

/* All that is gone or another one, before anything is opened: it may be of the same mqueue or address. */
static void close_others(struct gateway *gateway, const struct gateway_config *config,
                         struct gateway_changes *changes)
{
    for (size_t i = gateway->n_bindings; i-- > 0;) {
        struct gateway_binding *binding = gateway->bindings[i],
                               *now = gateway_config_find(config, binding->id);

        if (now ? same_settings(binding, now) : !binding->origin[0])
            continue;
        if (now && !binding->origin[0])
            gateway_binding_say(
                binding, "the configuration has such a binding now: what was made at run time is dropped");
        gateway_close_binding(binding);
        take_off(gateway, binding);
        (void)gateway_binding_free(binding);
        *(now ? &changes->changed : &changes->gone) += 1;
    }
}

/* One that is there, or a new one. */
static void take(struct gateway *gateway, struct gateway_binding *binding)
{
    struct gateway_binding *old = gateway_find(gateway, binding->id);

    if (!old && gateway->n_bindings < GATEWAY_BINDINGS_MAX) {
        binding->gateway = gateway;
        gateway->bindings[gateway->n_bindings++] = binding;
        if (gateway->connection && !gateway->over)
            gateway_open_binding(binding);
        return;
    }
    if (old)
        memcpy(old->origin, binding->origin, sizeof(old->origin));
    else
        log_write(LOG_CONFIG, &(struct log_about){.name = binding->id}, "there can be %u bindings",
                  GATEWAY_BINDINGS_MAX);
    (void)gateway_binding_free(binding);
}

void gateway_take_bindings(struct gateway *gateway, struct gateway_config *config,
                           struct gateway_changes *changes)
{
    size_t kept;

    *changes = (struct gateway_changes){0};
    leave_out_wrong(gateway, config);
    close_others(gateway, config, changes);
    kept = gateway->n_bindings;
    for (size_t i = 0; i < config->n_bindings; i++)
        take(gateway, config->bindings[i]);
    config->n_bindings = 0;
    changes->added = (unsigned)(gateway->n_bindings - kept) - changes->changed;
    gateway_sweep(gateway, false); /* of what was made, what nothing uses any more */
    (void)gateway_state_write(gateway);
}
