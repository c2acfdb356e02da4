/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl doctor: findings, and the checks that need no broker.
 */
#ifndef IPC_TOOLS_DOCTOR_H
#define IPC_TOOLS_DOCTOR_H

#include "tools/ipcctl.h"

enum finding_level { FINDING_OK, FINDING_NOTE, FINDING_PROBLEM };

struct finding {
    const char *check; /* static */
    enum finding_level level;
    char *text, *advice; /* advice: NULL if there is nothing to do */
};

struct doctor {
    struct finding *findings;
    size_t count, problems, notes;
    const char *address;
    bool answers; /* a broker does */
};

/* Add one. `advice` is static, or NULL. */
void doctor_find(struct doctor *doctor, const char *check, enum finding_level level, const char *advice,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));

void doctor_kernel(struct doctor *doctor);
void doctor_mqueue(struct doctor *doctor);
void doctor_leftovers(struct doctor *doctor);
void doctor_service(struct doctor *doctor);
void doctor_configuration(struct doctor *doctor, const char *file);

#endif
