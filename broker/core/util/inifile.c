/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/inifile.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ini.h>

#include "broker/core/util/fd.h"

#define MISTAKES_MAX  50u
#define FILE_SIZE_MAX ((size_t)1 << 20)

static bool lacked;

bool inifile_lacked(void)
{
    return lacked;
}

bool inifile_once(struct inifile *file, unsigned *line, const char *key)
{
    if (*line)
        inifile_mistake(file, "%s was set already in line %u of this file", key, *line);
    else
        *line = file->line;
    return *line == file->line;
}

void inifile_no_memory(struct inifile *file)
{
    lacked = true;
    inifile_mistake(file, "out of memory");
}

/* Something that is there was not read: the reason is errno. */
static unsigned unread(FILE *errors, const char *path, const char *what)
{
    lacked = lacked || errno == ENOMEM || errno == EMFILE || errno == ENFILE || errno == EIO;
    fprintf(errors, "%s: cannot be %s: %s\n", path, what, strerror(errno));
    return 1;
}

void inifile_mistake(struct inifile *file, const char *format, ...)
{
    va_list arguments;

    if (file->mistakes++ >= MISTAKES_MAX)
        return;
    fprintf(file->errors, "%s:%u: ", file->path, file->line);
    va_start(arguments, format);
    vfprintf(file->errors, format, arguments);
    va_end(arguments);
    fputc('\n', file->errors);
}

static void begin_section(struct inifile *file, const char *line)
{
    size_t size = strcspn(line + 1, "]\r\n");

    if (line[1 + size] != ']')
        return; /* inih complains */
    (void)snprintf(file->section, sizeof(file->section), "%.*s", (int)size, line + 1);
    file->use->section(file, file->section);
}

/* The next line for inih, without the space before it (which would continue the line before). A line that inih would
 * split, or that has a zero byte, is reported and handed over empty. */
static char *read_line(char *line, int capacity, void *user)
{
    struct inifile *file = user;
    const char *newline, *start = file->at;
    size_t size;

    if (start >= file->end)
        return NULL;
    newline = memchr(start, '\n', (size_t)(file->end - start));
    file->at = newline ? newline + 1 : file->end;
    file->line++;
    size = (size_t)((newline ? newline : file->end) - start);
    while (size > 0 && (*start == ' ' || *start == '\t' || *start == '\r')) {
        start++;
        size--;
    }
    if (memchr(start, '\0', size)) {
        inifile_mistake(file, "the line has a zero byte");
        size = 0;
    } else if (size > INIFILE_LINE_SIZE || size + 2 > (size_t)capacity) {
        inifile_mistake(file, "the line has %zu bytes, more than the %u that are allowed", size,
                        INIFILE_LINE_SIZE);
        size = 0;
    }
    memcpy(line, start, size);
    line[size] = '\0';
    if (line[0] == '[')
        begin_section(file, line);
    else if (line[0] == '#')
        (void)snprintf(file->comment, sizeof(file->comment), "%s", line + 1 + strspn(line + 1, " "));
    line[size] = '\n';
    line[size + 1] = '\0';
    return line;
}

/* inih's own idea of the section is cut short. */
static int on_setting(void *user, const char *section, const char *key, const char *value)
{
    struct inifile *file = user;

    (void)section;
    file->use->setting(file, file->section, key, value);
    return 1;
}

unsigned inifile_parse(const struct inifile_use *use, void *context, const char *path, const char *text,
                       size_t size, FILE *errors)
{
    struct inifile file = {
        .use = use, .context = context, .path = path, .at = text, .end = text + size, .errors = errors};
    int line = ini_parse_stream(read_line, &file, on_setting, &file);

    if (line < 0) {
        inifile_no_memory(&file);
    } else if (line > 0) {
        file.line = (unsigned)line;
        inifile_mistake(&file, "'setting = value', '[section]', or a comment after '#' is expected");
    }
    if (file.mistakes > MISTAKES_MAX)
        fprintf(errors, "%s: %u more mistakes\n", path, file.mistakes - MISTAKES_MAX);
    return file.mistakes;
}

static void fclosep(FILE **file)
{
    if (*file)
        (void)fclose(*file);
}

static unsigned load_file(inifile_parser *parse, void *context, const char *path, bool required, FILE *errors)
{
    _cleanup_(fclosep) FILE *file = fopen(path, "re");
    _cleanup_(freep) char *text = NULL;
    size_t size;

    if (!file && errno == ENOENT && !required)
        return 0;
    if (!file)
        return unread(errors, path, "opened");
    text = malloc(FILE_SIZE_MAX + 1);
    if (!text)
        return unread(errors, path, "read");
    errno = 0;
    size = fread(text, 1, FILE_SIZE_MAX + 1, file);
    if (ferror(file))
        return unread(errors, path, "read");
    if (size > FILE_SIZE_MAX) {
        fprintf(errors, "%s: is larger than %zu bytes\n", path, FILE_SIZE_MAX);
        return 1;
    }
    return parse(context, path, text, size, errors);
}

static int is_dropin(const struct dirent *entry)
{
    size_t size = strlen(entry->d_name);

    return entry->d_name[0] != '.' && size > 5 && strcmp(entry->d_name + size - 5, ".conf") == 0;
}

static int by_name(const struct dirent **left, const struct dirent **right)
{
    return strcmp((*left)->d_name, (*right)->d_name);
}

unsigned inifile_load(inifile_parser *parse, void *context, const char *path, bool required, FILE *errors)
{
    unsigned mistakes = load_file(parse, context, path, required, errors);
    _cleanup_(freep) char *folder = NULL;
    struct dirent **entries = NULL;
    int n;

    if (asprintf(&folder, "%s.d", path) < 0) {
        folder = NULL;
        return mistakes + unread(errors, path, "read");
    }
    n = scandir(folder, &entries, is_dropin, by_name);
    if (n < 0 && errno != ENOENT && errno != ENOTDIR)
        return mistakes + unread(errors, folder, "listed");
    for (int i = 0; i < n; i++) {
        char *file = NULL;

        if (asprintf(&file, "%s/%s", folder, entries[i]->d_name) >= 0) {
            mistakes += load_file(parse, context, file, true, errors);
            free(file);
        } else {
            mistakes += unread(errors, folder, "read");
        }
        free(entries[i]);
    }
    free(entries);
    return mistakes;
}

char *inifile_default_path(const char *name)
{
    const char *home = getenv("HOME"), *folder = getenv("XDG_CONFIG_HOME");
    char *path = NULL;
    int size;

    if (geteuid() == 0)
        size = asprintf(&path, "/etc/ipcd/%s", name);
    else if (folder && folder[0] == '/')
        size = asprintf(&path, "%s/ipcd/%s", folder, name);
    else if (home && home[0] == '/')
        size = asprintf(&path, "%s/.config/ipcd/%s", home, name);
    else
        return NULL;
    return size < 0 ? NULL : path;
}
