/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration of a gateway: [gateway], [bind ID], [rule NAME]; and its state file, which is of the same form, with a section
 * [made] besides.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/inifile.h"
#include "broker/core/util/policy_file.h"
#include "broker/core/util/text.h"
#include "broker/gateways/common/gateway.h"

struct common_settings {
    char address[sizeof(((struct gateway_config *)0)->address)];
    uint64_t log_level;
};

static const char *const level_words[] = {"error", "warning", "notice", "info", "debug", NULL};
static const struct gateway_setting common_settings[] = {
    {"address", GATEWAY_TEXT, offsetof(struct common_settings, address), 0, 108, NULL, ""},
    {"log-level", GATEWAY_WORD, offsetof(struct common_settings, log_level), 0, 0, level_words, "notice"},
};
static const struct gateway_table common_table = {common_settings, 2, sizeof(struct common_settings)};

struct parser {
    struct gateway_config *config;
    struct gateway_binding *binding; /* whose section this is */
    struct policy_rule *rule;        /* the same */
    unsigned set_at[GATEWAY_SETTINGS_MAX], common_at[2], bind_at[GATEWAY_SETTINGS_MAX];
};

const char *gateway_id_check(const char *id)
{
    size_t size = strlen(id);

    if (size == 0 || size >= GATEWAY_ID_SIZE)
        return "an id has 1 to 47 characters";
    for (; *id; id++)
        if (!((*id >= 'a' && *id <= 'z') || (*id >= 'A' && *id <= 'Z') || (*id >= '0' && *id <= '9') ||
              *id == '-' || *id == '_' || *id == '.'))
            return "an id consists of letters, digits, '-', '_' and '.'";
    return NULL;
}

struct gateway_binding *gateway_binding_new(const struct gateway_kind *kind, const char *id)
{
    struct gateway_binding *binding = calloc(1, sizeof(*binding));

    if (binding)
        binding->settings = calloc(1, kind->binds.size);
    if (!binding || !binding->settings)
        return gateway_binding_free(binding);
    (void)snprintf(binding->id, sizeof(binding->id), "%s", id);
    return binding;
}

struct gateway_binding *gateway_binding_free(struct gateway_binding *binding)
{
    if (binding)
        free(binding->settings);
    free(binding);
    return NULL;
}

int gateway_binding_resolve(struct gateway_binding *binding, const struct gateway_kind *kind, const void *own,
                            char why[GATEWAY_WHY_SIZE])
{
    int result = gateway_settings_resolve(&kind->binds, &binding->given, binding->settings, why);

    return result < 0 || !kind->check ? result : kind->check(own, binding->settings, why);
}

struct gateway_binding *gateway_config_find(const struct gateway_config *config, const char *id)
{
    for (size_t i = 0; i < config->n_bindings; i++)
        if (strcmp(config->bindings[i]->id, id) == 0)
            return config->bindings[i];
    return NULL;
}

struct gateway_binding *gateway_config_binding(struct gateway_config *config, const char *id)
{
    struct gateway_binding *binding = gateway_config_find(config, id);

    if (binding)
        return binding;
    if (config->n_bindings == GATEWAY_BINDINGS_MAX)
        return NULL;
    config->bindings[config->n_bindings] = gateway_binding_new(config->kind, id);
    return config->bindings[config->n_bindings] ? config->bindings[config->n_bindings++] : NULL;
}

static void on_section(struct inifile *file, const char *name)
{
    struct parser *parser = file->context;
    const char *id = name + 5 + strspn(name + (strncmp(name, "bind ", 5) == 0 ? 5 : 0), " "), *wrong;
    char quoted[80];

    parser->binding = NULL;
    parser->rule = NULL;
    memset(parser->bind_at, 0, sizeof(parser->bind_at));
    if (strcmp(name, "gateway") == 0 || strcmp(name, "made") == 0)
        return;
    if (parser->config->kind->has_rules && strncmp(name, "rule ", 5) == 0) {
        parser->rule = policy_file_rule(file, &parser->config->policy, name + 5 + strspn(name + 5, " "));
        return;
    }
    if (strncmp(name, "bind ", 5) != 0) {
        text_quote(quoted, sizeof(quoted), name);
        inifile_mistake(file, "unknown section [%s]; there are [gateway]%s and [bind ID]", quoted,
                        parser->config->kind->has_rules ? ", [rule NAME]" : "");
        return;
    }
    wrong = gateway_id_check(id);
    if (wrong) {
        inifile_mistake(file, "[bind ID]: %s", wrong);
        return;
    }
    parser->binding = gateway_config_binding(parser->config, id);
    if (!parser->binding)
        inifile_mistake(file, "[bind %s]: there can be %u bindings", id, GATEWAY_BINDINGS_MAX);
    else if (!parser->binding->origin[0])
        (void)snprintf(parser->binding->origin, sizeof(parser->binding->origin), "%s:%u", file->path,
                       file->line);
}

static void give(struct inifile *file, const struct gateway_table *table, size_t index, const char *value,
                 struct gateway_given *given, unsigned *at)
{
    char why[GATEWAY_WHY_SIZE];

    if (*at)
        inifile_mistake(file, "%s was set already in line %u of this section", table->settings[index].key,
                        *at);
    else if (gateway_setting_give(table, index, value, given, why) < 0)
        inifile_mistake(file, "%s", why);
    *at = file->line;
}

static int add_made(struct gateway_config *config, const char *name)
{
    char **made = reallocarray(config->made, config->n_made + 1, sizeof(*made));

    if (!made)
        return -ENOMEM;
    config->made = made;
    made[config->n_made] = strdup(name);
    if (!made[config->n_made])
        return -ENOMEM;
    config->n_made++;
    return 0;
}

static void on_common(struct inifile *file, struct parser *parser, const char *key, const char *value)
{
    struct gateway_config *config = parser->config;
    struct gateway_given given = {0};
    struct common_settings settings;
    char why[GATEWAY_WHY_SIZE];
    int index = gateway_setting_find(&common_table, key, why);

    if (index < 0) {
        index = gateway_setting_find(&config->kind->own, key, why);
        if (index < 0)
            inifile_mistake(file, "%s address log-level", why);
        else
            give(file, &config->kind->own, (size_t)index, value, &config->given, &parser->set_at[index]);
        return;
    }
    give(file, &common_table, (size_t)index, value, &given, &parser->common_at[index]);
    if (!given.values[index][0])
        return;
    (void)gateway_settings_resolve(&common_table, &given, &settings, why);
    if (index == 0 && value[0] != '/')
        inifile_mistake(file, "address = %s: an absolute path is expected", value);
    else if (index == 0)
        (void)snprintf(config->address, sizeof(config->address), "%s", settings.address);
    else
        config->log_level = (uint64_t)log_level_from_word(value);
}

static void on_setting(struct inifile *file, const char *section, const char *key, const char *value)
{
    struct parser *parser = file->context;
    char why[GATEWAY_WHY_SIZE];
    int index;

    if (parser->rule) {
        char quoted[64];

        text_quote(quoted, sizeof(quoted), key);
        if (policy_setting_find(key) < 0)
            inifile_mistake(file, "unknown setting '%s' in [rule NAME]; there are: who allow deny names",
                            quoted);
        else
            policy_file_setting(file, parser->rule, policy_setting_find(key), value, true);
    } else if (parser->binding) {
        index = gateway_setting_find(&parser->config->kind->binds, key, why);
        if (index < 0)
            inifile_mistake(file, "%s", why);
        else
            give(file, &parser->config->kind->binds, (size_t)index, value, &parser->binding->given,
                 &parser->bind_at[index]);
    } else if (strcmp(section, "gateway") == 0) {
        on_common(file, parser, key, value);
    } else if (strcmp(section, "made") == 0) {
        if (add_made(parser->config, value) < 0)
            inifile_mistake(file, "out of memory");
    } else if (section[0] == '\0') {
        inifile_mistake(file, "'%s' stands before any section; write [gateway] or [bind ID] first", key);
    } /* else: the section was reported */
}

unsigned gateway_config_parse(struct gateway_config *config, const char *path, const char *text, size_t size,
                              FILE *errors)
{
    static const struct inifile_use use = {on_section, on_setting};
    struct parser parser = {.config = config};

    policy_file_begin(&config->policy);
    return inifile_parse(&use, &parser, path, text, size, errors);
}

static unsigned parse_file(void *context, const char *path, const char *text, size_t size, FILE *errors)
{
    return gateway_config_parse(context, path, text, size, errors);
}

unsigned gateway_config_load(struct gateway_config *config, const char *path, bool required, FILE *errors)
{
    return inifile_load(parse_file, config, path, required, errors);
}

unsigned gateway_config_resolve(struct gateway_config *config, FILE *errors)
{
    char why[GATEWAY_WHY_SIZE];
    unsigned mistakes = policy_file_check(&config->policy, errors);

    config->own = calloc(1, config->kind->own.size + 1);
    if (!config->own) {
        fprintf(errors, "out of memory\n");
        return 1;
    }
    if (gateway_settings_resolve(&config->kind->own, &config->given, config->own, why) < 0) {
        fprintf(errors, "[gateway]: %s\n", why);
        mistakes++;
    }
    for (size_t i = 0; i < config->n_bindings; i++) {
        if (gateway_binding_resolve(config->bindings[i], config->kind, config->own, why) == 0)
            continue;
        fprintf(errors, "%s: [bind %s]: %s\n", config->bindings[i]->origin, config->bindings[i]->id, why);
        mistakes++;
    }
    return mistakes;
}

void gateway_config_init(struct gateway_config *config, const struct gateway_kind *kind)
{
    *config = (struct gateway_config){.kind = kind, .log_level = LOG_NOTICE};
}

void gateway_config_done(struct gateway_config *config)
{
    for (size_t i = 0; i < config->n_bindings; i++)
        (void)gateway_binding_free(config->bindings[i]);
    for (size_t i = 0; i < config->n_made; i++)
        free(config->made[i]);
    free(config->made);
    free(config->own);
    policy_done(&config->policy);
    *config = (struct gateway_config){0};
}

void gateway_binding_print(const struct gateway_binding *binding, const struct gateway_kind *kind, FILE *out)
{
    fprintf(out, "\n[bind %s]\n", binding->id);
    for (size_t i = 0; i < kind->binds.count; i++)
        if (binding->given.values[i][0])
            fprintf(out, "%s = %s\n", kind->binds.settings[i].key, binding->given.values[i]);
}

void gateway_config_print(const struct gateway_config *config, FILE *out)
{
    fprintf(out, "[gateway]\n");
    if (config->address[0])
        fprintf(out, "address = %s\n", config->address);
    fprintf(out, "log-level = %s\n", log_level_word((int)config->log_level));
    for (size_t i = 0; i < config->kind->own.count; i++) {
        const char *given = config->given.values[i];

        if (given[0] || config->kind->own.settings[i].fallback[0])
            fprintf(out, "%s = %s\n", config->kind->own.settings[i].key,
                    given[0] ? given : config->kind->own.settings[i].fallback);
    }
    for (size_t i = 0; i < config->n_bindings; i++)
        gateway_binding_print(config->bindings[i], config->kind, out);
    policy_file_print(&config->policy, out);
}

/* Written beside it and renamed: whoever reads it sees the old or the new one. It is not synced: it is about things that
 * do not outlive the machine's run. */
int gateway_state_write(struct gateway *gateway)
{
    char path[sizeof(gateway->state_path) + 8];
    FILE *out;
    bool empty = gateway->n_made == 0, bad;

    for (size_t i = 0; i < gateway->n_bindings; i++)
        empty = empty && gateway->bindings[i]->origin[0];
    if (empty) {
        (void)unlink(gateway->state_path);
        return 0;
    }
    (void)snprintf(path, sizeof(path), "%s.new", gateway->state_path);
    out = fopen(path, "we");
    if (out) {
        fprintf(out, "# Written by %s, which reads it when it is started again.\n[made]\n",
                gateway->kind->program);
        for (size_t i = 0; i < gateway->n_made; i++)
            fprintf(out, "name = %s\n", gateway->made[i]);
        for (size_t i = 0; i < gateway->n_bindings; i++)
            if (!gateway->bindings[i]->origin[0])
                gateway_binding_print(gateway->bindings[i], gateway->kind, out);
        bad = ferror(out) != 0;
        if (fclose(out) == 0 && !bad && rename(path, gateway->state_path) == 0)
            return 0;
    }
    int result = errno ? -errno : -EIO;

    log_write(LOG_SYSTEM, NULL, "%s cannot be written: %s", gateway->state_path, strerror(-result));
    (void)unlink(path);
    return result;
}
