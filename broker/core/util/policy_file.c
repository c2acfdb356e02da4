/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/policy_file.h"

#include <string.h>

#include "broker/core/util/text.h"

bool policy_file_label(struct inifile *file, const char *kind, const char *name)
{
    char quoted[80];

    text_quote(quoted, sizeof(quoted), name);
    if (*name && strlen(name) < POLICY_NAME_SIZE && strcmp(quoted, name) == 0)
        return true;
    inifile_mistake(file, "[%s NAME]: this is no name of a %s: %s; 1 to %zu printable characters are allowed",
                    kind, kind, quoted, (size_t)POLICY_NAME_SIZE - 1);
    return false;
}

void policy_file_begin(struct policy *policy)
{
    for (size_t i = 0; i < policy->n; i++)
        memset(policy->rules[i].set_at, 0, sizeof(policy->rules[i].set_at));
}

struct policy_rule *policy_file_rule(struct inifile *file, struct policy *policy, const char *name)
{
    struct policy_rule *rule;

    if (!policy_file_label(file, "rule", name))
        return NULL;
    rule = policy_rule_of(policy, name);
    if (!rule)
        inifile_no_memory(file);
    else if (!rule->origin[0])
        (void)snprintf(rule->origin, sizeof(rule->origin), "%s:%u", file->path, file->line);
    return rule;
}

void policy_file_setting(struct inifile *file, struct policy_rule *rule, int setting, const char *value,
                         bool keys)
{
    char why[POLICY_WHY_SIZE];

    if (!inifile_once(file, &rule->set_at[setting], policy_settings[setting]))
        return;
    if (policy_setting_parse(rule, setting, value, why) < 0)
        inifile_mistake(file, "%s", why);
    else if (!keys && strcmp(policy_settings[setting], "who") == 0 && policy_rule_has_keys(rule))
        inifile_mistake(file, "who: key:NAME: a gateway alone knows keys: rules about them stand in "
                              "ipcd-zmq.conf, see ipcd-zmq(8)");
}

unsigned policy_file_check(const struct policy *policy, FILE *errors)
{
    unsigned mistakes = 0;

    for (size_t i = 0; i < policy->n; i++) {
        const struct policy_rule *rule = &policy->rules[i];
        const char *wrong = policy_rule_wrong(rule);

        if (!wrong)
            continue;
        fprintf(errors, "%s: [rule %s]: %s\n", rule->origin, rule->name, wrong);
        mistakes++;
    }
    return mistakes;
}

void policy_file_print(const struct policy *policy, FILE *out)
{
    char text[2 * POLICY_TEXT];

    for (size_t i = 0; i < policy->n; i++) {
        const struct policy_rule *rule = &policy->rules[i];

        fprintf(out, "\n# %s\n[rule %s]\n", rule->origin, rule->name);
        for (int j = 0; j < POLICY_SETTINGS; j++) {
            policy_setting_print(rule, j, text);
            if (*text)
                fprintf(out, "%s = %s\n", policy_settings[j], text);
        }
    }
}
