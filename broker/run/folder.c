/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/run/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int folder_make(char *ret, size_t capacity)
{
    const char *base = getenv("XDG_RUNTIME_DIR");
    int size = snprintf(ret, capacity, "%s/ipcd-run.XXXXXX", base && base[0] == '/' ? base : "/tmp");

    if (size < 0 || (size_t)size >= capacity)
        return -ENAMETOOLONG;
    return mkdtemp(ret) ? 0 : -errno; /* mode 0700 */
}

void folder_remove(const char *path)
{
    DIR *folder = opendir(path);
    const struct dirent *entry;

    while (folder && (entry = readdir(folder))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(folder), entry->d_name, 0);
    }
    if (folder)
        (void)closedir(folder);
    (void)rmdir(path);
}
