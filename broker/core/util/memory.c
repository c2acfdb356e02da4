/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define PATH_SIZE 4096

/* The number behind `key` ("": the first word) in a file; UINT64_MAX: no such file, or a word ("max"). */
static uint64_t number_in(const char *path, const char *key)
{
    FILE *file = fopen(path, "re");
    char line[256];
    uint64_t number = UINT64_MAX;
    size_t size = strlen(key);

    while (file && fgets(line, sizeof(line), file))
        if (strncmp(line, key, size) == 0 && sscanf(line + size, "%" SCNu64, &number) == 1)
            break;
    if (file)
        (void)fclose(file);
    return number;
}

static uint64_t at(const char *mount, const char *path, const char *file, const char *key)
{
    char full[PATH_SIZE];
    int size = snprintf(full, sizeof(full), "%s%s/%s", mount, strcmp(path, "/") == 0 ? "" : path, file);

    return size > 0 && size < (int)sizeof(full) ? number_in(full, key) : UINT64_MAX;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Of a container that sees its own cgroup alone, that is the mount's root, whatever its path is called. */
static uint64_t limit_v1(const char *mount, const char *path)
{
    char own[PATH_SIZE / 2];
    uint64_t limit;

    (void)snprintf(own, sizeof(own), "%s/memory", mount);
    limit = at(own, path, "memory.stat", "hierarchical_memory_limit ");
    return limit == UINT64_MAX ? at(own, "/", "memory.stat", "hierarchical_memory_limit ") : limit;
}

static uint64_t limit_v2(const char *mount, char *path)
{
    uint64_t limit = at(mount, "/", "memory.max", "");

    for (char *end; (end = strrchr(path, '/')) && end[1]; *end = '\0')
        limit = least(limit, at(mount, path, "memory.max", ""));
    return limit;
}

uint64_t memory_limit_of(const char *cgroups, const char *mount)
{
    FILE *file = fopen(cgroups, "re");
    char line[PATH_SIZE / 2];
    uint64_t limit = UINT64_MAX;

    while (file && fgets(line, sizeof(line), file)) { /* hierarchy:controllers:path */
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;

        if (!path)
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (strstr(controllers, "memory"))
            limit = least(limit, limit_v1(mount, path));
        else if (strcmp(line, "0:") == 0)
            limit = least(limit, limit_v2(mount, path));
    }
    if (file)
        (void)fclose(file);
    return limit >= INT64_MAX / 2 ? UINT64_MAX : limit; /* how version 1 says that there is none */
}

uint64_t memory_limit(void)
{
    return memory_limit_of("/proc/self/cgroup", "/sys/fs/cgroup");
}
