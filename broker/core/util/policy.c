/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/policy.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/core/util/text.h"
#include "proto/name.h"

enum setting { SETTING_WHO, SETTING_ALLOW, SETTING_DENY, SETTING_NAMES };

const char *const policy_settings[POLICY_SETTINGS] = {"who", "allow", "deny", "names"};

#define SEPARATORS " \t,"
#define ALL_VERBS  ((1u << VERB_COUNT) - 1)

static const struct {
    const char *word, *phrase;
} verbs[VERB_COUNT] = {
#define VERB_TEXTS(id, word, phrase) {word, phrase},
    VERBS(VERB_TEXTS)
#undef VERB_TEXTS
};

const char *verb_word(enum verb verb)
{
    return verbs[verb].word;
}

const char *verb_phrase(enum verb verb)
{
    return verbs[verb].phrase;
}

enum verb verb_from_word(const char *word)
{
    enum verb verb = 0;

    while (verb < VERB_COUNT && strcmp(verbs[verb].word, word) != 0)
        verb++;
    return verb;
}

struct policy_rule *policy_rule_of(struct policy *policy, const char *name)
{
    struct policy_rule *rules;

    for (size_t i = 0; i < policy->n; i++)
        if (strcmp(policy->rules[i].name, name) == 0)
            return &policy->rules[i];
    rules = reallocarray(policy->rules, policy->n + 1, sizeof(*rules));
    if (!rules)
        return NULL;
    policy->rules = rules;
    rules += policy->n++;
    *rules = (struct policy_rule){0};
    (void)snprintf(rules->name, sizeof(rules->name), "%s", name);
    return rules;
}

void policy_done(struct policy *policy)
{
    free(policy->rules);
    *policy = (struct policy){0};
}

int policy_setting_find(const char *key)
{
    for (int i = 0; i < POLICY_SETTINGS; i++)
        if (strcmp(policy_settings[i], key) == 0)
            return i;
    return -1;
}

/* The next word of a list; returns false at its end. */
static bool next_word(const char **at, char word[POLICY_TEXT])
{
    size_t size;

    *at += strspn(*at, SEPARATORS);
    size = strcspn(*at, SEPARATORS);
    if (size == 0 || size >= POLICY_TEXT)
        return false;
    memcpy(word, *at, size);
    word[size] = '\0';
    *at += size;
    return true;
}

static int wrong(char why[POLICY_WHY_SIZE], const char *key, const char *word, const char *expected)
{
    char quoted[80];

    text_quote(quoted, sizeof(quoted), word);
    (void)snprintf(why, POLICY_WHY_SIZE, "%s: %s: %s", key, quoted, expected);
    return -EINVAL;
}

/* A user or group by its name or number. */
static bool find_id(const char *text, bool user, uint32_t *ret)
{
    const struct passwd *passwd;
    const struct group *group;
    uint64_t number;

    if (text_to_number(text, false, &number) == 0) {
        *ret = (uint32_t)number;
        return number < UINT32_MAX;
    }
    if (user) {
        passwd = getpwnam(text);
        *ret = passwd ? passwd->pw_uid : 0;
        return passwd != NULL;
    }
    group = getgrnam(text);
    *ret = group ? group->gr_gid : 0;
    return group != NULL;
}

static int parse_who(struct policy_rule *rule, const char *value, char why[POLICY_WHY_SIZE])
{
    char word[POLICY_TEXT];

    rule->n_who = 0;
    while (next_word(&value, word)) {
        struct policy_who *who = &rule->who[rule->n_who];
        bool user = strncmp(word, "user:", 5) == 0;

        if (rule->n_who == POLICY_WHO_MAX)
            return wrong(why, "who", word, "at most 10 are possible: make a group, or another rule");
        if (strcmp(word, "anyone") == 0)
            *who = (struct policy_who){.kind = WHO_ANYONE};
        else if (strncmp(word, "key:", 4) == 0 && word[4] && strlen(word + 4) < sizeof(who->key)) {
            who->kind = WHO_KEY;
            (void)snprintf(who->key, sizeof(who->key), "%.63s", word + 4);
        } else if (!user && strncmp(word, "group:", 6) != 0)
            return wrong(
                why, "who", word,
                "anyone, user:NAME and group:NAME are allowed, or their numbers; and key:NAME of a gateway");
        else if (find_id(word + (user ? 5 : 6), user, &who->id))
            who->kind = user ? WHO_USER : WHO_GROUP;
        else
            return wrong(why, "who", word, user ? "there is no such user" : "there is no such group");
        rule->n_who++;
    }
    return 0;
}

static int parse_verbs(uint32_t *ret, const char *key, const char *value, char why[POLICY_WHY_SIZE])
{
    char word[POLICY_TEXT];

    *ret = 0;
    while (next_word(&value, word)) {
        enum verb verb = verb_from_word(word);

        if (verb < VERB_COUNT)
            *ret |= 1u << verb;
        else if (strcmp(word, "all") == 0)
            *ret |= ALL_VERBS;
        else
            return wrong(why, key, word, VERB_WORDS " and all are allowed");
    }
    return 0;
}

static int parse_names(struct policy_rule *rule, const char *value, char why[POLICY_WHY_SIZE])
{
    char word[POLICY_TEXT];

    rule->names_size = 0;
    while (next_word(&value, word)) {
        const char *bad = ipc_name_check(word, true);
        size_t size = strlen(word) + 1;

        if (bad)
            return wrong(why, "names", word, bad);
        if (rule->names_size + size > sizeof(rule->names))
            return wrong(why, "names", word, "the list is too long: make another rule");
        memcpy(rule->names + rule->names_size, word, size);
        rule->names_size += size;
    }
    return 0;
}

int policy_setting_parse(struct policy_rule *rule, int setting, const char *value, char why[POLICY_WHY_SIZE])
{
    switch ((enum setting)setting) {
    case SETTING_WHO:
        return parse_who(rule, value, why);
    case SETTING_ALLOW:
        return parse_verbs(&rule->allow, "allow", value, why);
    case SETTING_DENY:
        return parse_verbs(&rule->deny, "deny", value, why);
    case SETTING_NAMES:
        return parse_names(rule, value, why);
    }
    return -EINVAL;
}

static bool speaks_of_kind(const struct policy_rule *rule, unsigned kind)
{
    for (unsigned i = 0; i < rule->n_who; i++)
        if (rule->who[i].kind == kind)
            return true;
    return false;
}

bool policy_rule_has_keys(const struct policy_rule *rule)
{
    return speaks_of_kind(rule, WHO_KEY);
}

bool policy_has_groups(const struct policy *policy)
{
    for (size_t i = 0; i < policy->n; i++)
        if (speaks_of_kind(&policy->rules[i], WHO_GROUP))
            return true;
    return false;
}

const char *policy_rule_wrong(const struct policy_rule *rule)
{
    if (rule->n_who == 0)
        return "it does not say who: 'who = group:NAME' (or user:NAME, or anyone)";
    if (!(rule->allow | rule->deny))
        return "it neither allows nor denies anything: 'allow = publish subscribe' (or deny)";
    if (rule->allow & rule->deny)
        return "it allows and denies the same";
    return NULL;
}

void policy_resolve(struct policy *policy, bool of_system)
{
    const struct group *group = policy->n == 0 && of_system ? getgrnam("ipc") : NULL;
    struct policy_rule *rule = group ? policy_rule_of(policy, "default") : NULL;

    if (!rule)
        return;
    (void)snprintf(rule->origin, sizeof(rule->origin), "built in");
    rule->who[0] = (struct policy_who){.kind = WHO_GROUP, .id = group->gr_gid};
    rule->n_who = 1;
    rule->allow = ALL_VERBS & ~(1u << VERB_ADMINISTER); /* each does that with what it made */
}

static void add(char text[2 * POLICY_TEXT], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(char text[2 * POLICY_TEXT], const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;

    if (used > 0 && used + 1 < 2 * POLICY_TEXT)
        text[used++] = ' ';
    va_start(arguments, format);
    (void)vsnprintf(text + used, 2 * POLICY_TEXT - used, format, arguments);
    va_end(arguments);
}

static void print_verbs(uint32_t bits, char text[2 * POLICY_TEXT])
{
    if (bits == ALL_VERBS) {
        add(text, "all");
        return;
    }
    for (enum verb verb = 0; verb < VERB_COUNT; verb++)
        if (bits & 1u << verb)
            add(text, "%s", verb_word(verb));
}

void policy_setting_print(const struct policy_rule *rule, int setting, char text[2 * POLICY_TEXT])
{
    text[0] = '\0';
    switch ((enum setting)setting) {
    case SETTING_WHO:
        for (unsigned i = 0; i < rule->n_who; i++)
            if (rule->who[i].kind == WHO_ANYONE)
                add(text, "anyone");
            else if (rule->who[i].kind == WHO_KEY)
                add(text, "key:%s", rule->who[i].key);
            else
                add(text, "%s:%u", rule->who[i].kind == WHO_USER ? "user" : "group",
                    (unsigned)rule->who[i].id);
        break;
    case SETTING_ALLOW:
        print_verbs(rule->allow, text);
        break;
    case SETTING_DENY:
        print_verbs(rule->deny, text);
        break;
    case SETTING_NAMES:
        for (size_t at = 0; at < rule->names_size; at += strlen(rule->names + at) + 1)
            add(text, "%s", rule->names + at);
        break;
    }
}

static bool is_member(const struct identity *identity, uint32_t gid)
{
    if (identity->gid == gid)
        return true;
    for (size_t i = 0; i < identity->n_groups; i++)
        if (identity->groups[i] == gid)
            return true;
    return false;
}

static bool speaks_of(const struct policy_rule *rule, const struct identity *identity)
{
    for (unsigned i = 0; i < rule->n_who; i++) {
        const struct policy_who *who = &rule->who[i];

        if (who->kind == WHO_ANYONE || (who->kind == WHO_USER && who->id == identity->uid) ||
            (who->kind == WHO_GROUP && is_member(identity, who->id)) ||
            (who->kind == WHO_KEY && identity->key && strcmp(who->key, identity->key) == 0))
            return true;
    }
    return false;
}

static bool names(const struct policy_rule *rule, const char *name,
                  bool (*matches)(const char *, const char *))
{
    for (size_t at = 0; at < rule->names_size; at += strlen(rule->names + at) + 1)
        if (matches(rule->names + at, name))
            return true;
    return rule->names_size == 0;
}

const struct policy_rule *policy_find(const struct policy *policy, const struct identity *identity,
                                      enum verb verb, const char *name)
{
    for (size_t i = 0; i < policy->n; i++) {
        const struct policy_rule *rule = &policy->rules[i];

        if ((rule->allow | rule->deny) & 1u << verb && names(rule, name, ipc_name_match) &&
            speaks_of(rule, identity))
            return rule;
    }
    return NULL;
}

bool policy_may_everything(const struct identity *identity)
{
    return identity->uid == 0 || identity->uid == geteuid();
}

bool policy_allows(const struct policy *policy, const struct identity *identity, enum verb verb,
                   const char *name)
{
    const struct policy_rule *rule;

    if (policy_may_everything(identity))
        return true;
    rule = policy_find(policy, identity, verb, name);
    return rule && rule->allow & 1u << verb;
}

bool policy_explain(const struct policy *policy, const struct identity *identity, enum verb verb,
                    const char *name, const char *page, char *why, size_t size)
{
    const struct policy_rule *rule = policy_find(policy, identity, verb, name);
    bool allowed = policy_allows(policy, identity, verb, name);

    if (policy_may_everything(identity))
        (void)snprintf(why, size, "root and the broker's own user may do everything");
    else if (!rule)
        (void)snprintf(why, size, "no rule of the policy allows it ([rule NAME] in %s)", page);
    else
        (void)snprintf(why, size, "rule '%s' (%s) %s it", rule->name, rule->origin,
                       allowed ? "allows" : "denies");
    return allowed;
}

/* A rule that allows counts if it covers the pattern; one that denies, if some name is in both. */
bool policy_allows_all(const struct policy *policy, const struct identity *identity, enum verb verb,
                       const char *pattern)
{
    if (policy_may_everything(identity))
        return true;
    for (size_t i = 0; i < policy->n; i++) {
        const struct policy_rule *rule = &policy->rules[i];

        if (rule->deny & 1u << verb && names(rule, pattern, ipc_name_overlap) && speaks_of(rule, identity))
            return false;
        if (rule->allow & 1u << verb && names(rule, pattern, ipc_name_cover) && speaks_of(rule, identity))
            return true;
    }
    return false;
}

/* A rule that allows counts if some name is in both patterns; one that denies, if it covers all of them. */
bool policy_may_allow(const struct policy *policy, const struct identity *identity, enum verb verb,
                      const char *pattern)
{
    if (policy_may_everything(identity))
        return true;
    for (size_t i = 0; i < policy->n; i++) {
        const struct policy_rule *rule = &policy->rules[i];

        if (rule->allow & 1u << verb && names(rule, pattern, ipc_name_overlap) && speaks_of(rule, identity))
            return true;
        if (rule->deny & 1u << verb && names(rule, pattern, ipc_name_cover) && speaks_of(rule, identity))
            return false;
    }
    return false;
}

bool policy_knows(const struct policy *policy, const struct identity *identity)
{
    if (policy_may_everything(identity))
        return true;
    for (size_t i = 0; i < policy->n; i++)
        if (policy->rules[i].allow && speaks_of(&policy->rules[i], identity))
            return true;
    return false;
}
