/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading the files of a configuration.
 */
#include "broker/core/util/config.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/core/util/fd.h"

#define FILE_SIZE_MAX ((size_t)1 << 20)

static void fclosep(FILE **file)
{
    if (*file)
        (void)fclose(*file);
}

static unsigned load_file(struct config *config, const char *path, bool required, FILE *errors)
{
    _cleanup_(fclosep) FILE *file = fopen(path, "re");
    _cleanup_(freep) char *text = NULL;
    size_t size;

    if (!file && errno == ENOENT && !required)
        return 0;
    if (!file) {
        fprintf(errors, "%s: cannot be opened: %s\n", path, strerror(errno));
        return 1;
    }
    text = malloc(FILE_SIZE_MAX + 1);
    if (!text) {
        fprintf(errors, "%s: out of memory\n", path);
        return 1;
    }
    errno = 0;
    size = fread(text, 1, FILE_SIZE_MAX + 1, file);
    if (ferror(file)) {
        fprintf(errors, "%s: cannot be read: %s\n", path, strerror(errno));
        return 1;
    }
    if (size > FILE_SIZE_MAX) {
        fprintf(errors, "%s: is larger than %zu bytes\n", path, FILE_SIZE_MAX);
        return 1;
    }
    return config_parse(config, path, text, size, errors);
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

unsigned config_load(struct config *config, const char *path, bool required, FILE *errors)
{
    unsigned mistakes = load_file(config, path, required, errors);
    _cleanup_(freep) char *folder = NULL;
    struct dirent **entries = NULL;
    int n;

    if (asprintf(&folder, "%s.d", path) < 0) {
        folder = NULL;
        fprintf(errors, "%s: out of memory\n", path);
        return mistakes + 1;
    }
    n = scandir(folder, &entries, is_dropin, by_name);
    if (n < 0 && errno != ENOENT && errno != ENOTDIR) {
        fprintf(errors, "%s: cannot be listed: %s\n", folder, strerror(errno));
        return mistakes + 1;
    }
    for (int i = 0; i < n; i++) {
        char *file = NULL;

        if (asprintf(&file, "%s/%s", folder, entries[i]->d_name) >= 0) {
            mistakes += load_file(config, file, true, errors);
            free(file);
        } else {
            fprintf(errors, "%s: out of memory\n", folder);
            mistakes++;
        }
        free(entries[i]);
    }
    free(entries);
    return mistakes;
}

char *config_default_path(void)
{
    const char *home = getenv("HOME"), *folder = getenv("XDG_CONFIG_HOME");
    char *path = NULL;
    int size;

    if (geteuid() == 0)
        return strdup("/etc/ipcd/ipcd.conf");
    if (folder && folder[0] == '/')
        size = asprintf(&path, "%s/ipcd/ipcd.conf", folder);
    else if (home && home[0] == '/')
        size = asprintf(&path, "%s/.config/ipcd/ipcd.conf", home);
    else
        return NULL;
    return size < 0 ? NULL : path;
}
