/* SPDX-License-Identifier: Apache-2.0
 *
 * Files of [sections] with `setting = value`, and their drop-ins. inih splits the lines; it tells neither line numbers
 * nor empty sections, so the reader that feeds it does. Every mistake is reported with file and line.
 */
#ifndef IPCD_CORE_UTIL_INIFILE_H
#define IPCD_CORE_UTIL_INIFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define INIFILE_LINE_SIZE 190u /* what inih takes on its stack */

struct inifile;
struct inifile_use {
    /* A section begins; the whole name. */
    void (*section)(struct inifile *file, const char *name);
    /* A setting of the section at hand ("": none yet). */
    void (*setting)(struct inifile *file, const char *section, const char *key, const char *value);
};

struct inifile {
    const struct inifile_use *use;
    void *context;
    const char *path;
    FILE *errors;
    unsigned line, mistakes;
    const char *at, *end; /* what was not read yet */
    char section[INIFILE_LINE_SIZE + 1];
    char comment[INIFILE_LINE_SIZE + 1]; /* the last one: what stands behind its '#' */
};

/* Count a mistake, and report it unless there were too many. */
void inifile_mistake(struct inifile *file, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A setting that may be given once in a file or section: *line is where, or 0. Reports the second one. */
bool inifile_once(struct inifile *file, unsigned *line, const char *key);

/* The same, for want of memory. */
void inifile_no_memory(struct inifile *file);

/* Was anything not read so far for want of memory or descriptors? Then what counts as a mistake need not be one. */
bool inifile_lacked(void);

/* Read a text. Returns the number of mistakes. */
unsigned inifile_parse(const struct inifile_use *use, void *context, const char *path, const char *text,
                       size_t size, FILE *errors);

/* Have a file and its drop-ins (PATH.d/ *.conf in lexical order) parsed. One that does not exist is a mistake only if
 * `required`. Returns the number of mistakes. */
typedef unsigned inifile_parser(void *context, const char *path, const char *text, size_t size, FILE *errors);
unsigned inifile_load(inifile_parser *parse, void *context, const char *path, bool required, FILE *errors);

/* Where a file of that name is looked for; free it. NULL: there is no place for one. */
char *inifile_default_path(const char *name);

#endif
