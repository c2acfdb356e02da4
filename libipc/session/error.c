/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libipc/session/session.h"

#ifndef IPC_VERSION
# define IPC_VERSION "0.1.0"
#endif

int error_set(struct ipc_error *error, int code, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        error->code = code;
        vsnprintf(error->text, sizeof(error->text), format, arguments);
        va_end(arguments);
        size_t used = strlen(error->text);
        if (code == -EMFILE && !strstr(error->text, "NOFILE")) /* not the broker's sentence about its own */
            snprintf(error->text + used, sizeof(error->text) - used,
                     "; this process has all the files open that it may: close some, or raise RLIMIT_NOFILE");
    }
    return code;
}

const char *ipc_reason_word(unsigned reason)
{
    switch (reason) {
#define CASE(name, number, word, text) \
 case number:                          \
  return word;
        IPC_REASONS(CASE)
#undef CASE
    default:
        return "unknown";
    }
}

const char *ipc_reason_text(unsigned reason)
{
    switch (reason) {
#define CASE(name, number, word, text) \
 case number:                          \
  return text;
        IPC_REASONS(CASE)
#undef CASE
    default:
        return "for a reason that this version does not know";
    }
}

const char *ipc_version(void)
{
    return IPC_VERSION;
}
