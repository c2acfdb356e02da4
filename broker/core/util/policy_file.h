/* SPDX-License-Identifier: Apache-2.0
 *
 * Rules of a policy in a configuration: sections [rule NAME].
 */
#ifndef IPCD_CORE_UTIL_POLICY_FILE_H
#define IPCD_CORE_UTIL_POLICY_FILE_H

#include <stdio.h>

#include "broker/core/util/inifile.h"
#include "broker/core/util/policy.h"

/* Is NAME of a section [KIND NAME] one that an operator may choose? Reports it if not. */
bool policy_file_label(struct inifile *file, const char *kind, const char *name);

/* Another file begins, which may give each setting again. */
void policy_file_begin(struct policy *policy);

/* The rule of a section, which is made if there is none. NULL: that was reported. */
struct policy_rule *policy_file_rule(struct inifile *file, struct policy *policy, const char *name);

/* `keys`: is who = key:NAME allowed here? */
void policy_file_setting(struct inifile *file, struct policy_rule *rule, int setting, const char *value,
                         bool keys);

/* At the end: report rules that lack something. Returns how many. */
unsigned policy_file_check(const struct policy *policy, FILE *errors);

void policy_file_print(const struct policy *policy, FILE *out);

#endif
