/* SPDX-License-Identifier: Apache-2.0
 *
 * Who may do what with which names: rules in the order of the configuration, and the first that speaks of somebody, a
 * verb and a name decides. Root and the broker's own user may do everything, since nothing could keep them from it; what no
 * rule speaks of is denied. Pure but for the names of users and groups, which are looked up when a rule is read.
 */
#ifndef IPCD_CORE_UTIL_POLICY_H
#define IPCD_CORE_UTIL_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define VERBS(X)                                       \
 X(PUBLISH, "publish", "publish to topic")             \
 X(SUBSCRIBE, "subscribe", "subscribe to topic")       \
 X(SEND, "send", "send to queue")                      \
 X(RECEIVE, "receive", "receive from queue")           \
 X(CALL, "call", "call service")                       \
 X(SERVE, "serve", "serve service")                    \
 X(ATTACH, "attach", "attach to shared segment")       \
 X(CREATE, "create", "create queue or shared segment") \
 X(ADMINISTER, "administer", "change or look into queue")

enum verb {
#define VERB_ENUM(id, ...) VERB_##id,
    VERBS(VERB_ENUM)
#undef VERB_ENUM
        VERB_COUNT
};

/* The word of a verb, what it is in a sentence, and the verb of a word (VERB_COUNT: there is none). */
#define VERB_WORDS "publish, subscribe, send, receive, call, serve, attach, create, administer"
const char *verb_word(enum verb verb);
const char *verb_phrase(enum verb verb);
enum verb verb_from_word(const char *word);

#define POLICY_SETTINGS  4
#define POLICY_NAME_SIZE 64u
#define POLICY_WHO_MAX   10u  /* as numbers in one line of a file */
#define POLICY_TEXT      192u /* bytes of a list in a rule */
#define POLICY_WHY_SIZE  256u
#define POLICY_KEY_SIZE  64u /* the name of a CURVE key, with its zero byte */

struct policy_who {
    enum { WHO_ANYONE, WHO_USER, WHO_GROUP, WHO_KEY } kind;
    uint32_t id;
    char key[POLICY_KEY_SIZE];
};

struct policy_rule {
    char name[POLICY_NAME_SIZE];
    char origin[96];
    uint32_t allow, deny; /* bits of verbs */
    struct policy_who who[POLICY_WHO_MAX];
    unsigned n_who;
    char names[POLICY_TEXT]; /* patterns, each with its zero byte; none: every name */
    size_t names_size;
    unsigned set_at[POLICY_SETTINGS]; /* line in the file at hand, or 0: of config.c */
};

struct policy {
    struct policy_rule *rules;
    size_t n;
};

/* Somebody who asks. `groups` are those beside gid. Who is known by a key has no uid and gid: POLICY_NOBODY. */
#define POLICY_NOBODY UINT32_MAX
struct identity {
    uint32_t uid, gid;
    const gid_t *groups;
    size_t n_groups;
    const char *key; /* its name, or NULL */
};

/* The rule of that name, which is made at the end if there is none. NULL: out of memory. */
struct policy_rule *policy_rule_of(struct policy *policy, const char *name);
void policy_done(struct policy *policy);

/* The settings of a rule. The index of `key`, or -1: there is no such setting. */
int policy_setting_find(const char *key);
extern const char *const policy_settings[POLICY_SETTINGS];

/* Set one. Returns 0, or -EINVAL with the reason. What is given replaces what a file before gave. */
int policy_setting_parse(struct policy_rule *rule, int setting, const char *value, char why[POLICY_WHY_SIZE]);

/* Does it speak of keys, which only a gateway knows? Of groups? */
bool policy_rule_has_keys(const struct policy_rule *rule);
bool policy_has_groups(const struct policy *policy);

/* What a rule lacks, or NULL. */
const char *policy_rule_wrong(const struct policy_rule *rule);

/* Without any rule: a broker of the system is for the members of group `ipc`, if there is one. */
void policy_resolve(struct policy *policy, bool of_system);

/* A setting as it would be given; "": not at all. */
void policy_setting_print(const struct policy_rule *rule, int setting, char text[2 * POLICY_TEXT]);

/* Root and the broker's own user. */
bool policy_may_everything(const struct identity *identity);

/* The rule that speaks of this; NULL: none does, so it is denied, but for who may do everything. */
const struct policy_rule *policy_find(const struct policy *policy, const struct identity *identity,
                                      enum verb verb, const char *name);
bool policy_allows(const struct policy *policy, const struct identity *identity, enum verb verb,
                   const char *name);

/* The same, and the reason: the rule, or that there is none in what that page describes. */
bool policy_explain(const struct policy *policy, const struct identity *identity, enum verb verb,
                    const char *name, const char *page, char *why, size_t size);

/* Is every name that a pattern matches allowed? False if in doubt. */
bool policy_allows_all(const struct policy *policy, const struct identity *identity, enum verb verb,
                       const char *pattern);

/* May some name that a pattern matches be allowed? True if in doubt. */
bool policy_may_allow(const struct policy *policy, const struct identity *identity, enum verb verb,
                      const char *pattern);

/* Is there anything that is allowed? */
bool policy_knows(const struct policy *policy, const struct identity *identity);

#endif
