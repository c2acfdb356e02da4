/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/inspect.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static FILE *open_of(pid_t pid, const char *name)
{
    char path[320];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    return fopen(path, "re");
}

/* Sum of the lines "NAME:  <n> kB". */
static uint64_t kilobytes(pid_t pid, const char *file_name, const char *name)
{
    FILE *file = open_of(pid, file_name);
    size_t length = strlen(name);
    uint64_t sum = 0;
    char line[256];

    if (!file)
        return 0;
    while (fgets(line, sizeof(line), file))
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            sum += strtoull(line + length + 1, NULL, 10) * 1024;
    fclose(file);
    return sum;
}

static unsigned lines_of(pid_t pid, const char *name)
{
    FILE *file = open_of(pid, name);
    unsigned count = 0;
    int c;

    if (!file)
        return 0;
    while ((c = getc_unlocked(file)) != EOF)
        count += c == '\n';
    fclose(file);
    return count;
}

static uint64_t ticks_of(pid_t pid)
{
    FILE *file = open_of(pid, "stat");
    char line[1024] = "";

    if (!file)
        return 0;
    char *end = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
    fclose(file);
    uint64_t sum = 0;
    /* After the name come fields 3 and up; utime and stime are fields 14 and 15. */
    for (unsigned field = 3; end && (end = strchr(end + 1, ' ')) != NULL && field <= 15; field++)
        if (field >= 14)
            sum += strtoull(end, NULL, 10);
    return sum;
}

static int descriptors_of(struct inspection *ret, pid_t pid)
{
    char path[300], target[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    DIR *folder = opendir(path);

    if (!folder)
        return -1;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        ret->descriptors++;
        snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, entry->d_name);
        ssize_t length = readlink(path, target, sizeof(target) - 1);
        if (length < 7 || strncmp(target, "/memfd:", 7) != 0)
            continue;
        struct stat status;
        if (stat(path, &status) == 0)
            ret->memfd_bytes += (uint64_t)status.st_blocks * 512;
    }
    closedir(folder);
    return 0;
}

int inspect(struct inspection *ret, pid_t pid)
{
    struct inspection found = {0};

    if (pid <= 0 || descriptors_of(&found, pid) < 0)
        return -1;
    found.rss_bytes = kilobytes(pid, "status", "VmRSS");
    found.private_bytes = found.rss_bytes - kilobytes(pid, "status", "RssShmem");
    found.pss_bytes = kilobytes(pid, "smaps_rollup", "Pss");
    found.mappings = lines_of(pid, "maps");
    found.cpu_ticks = ticks_of(pid);
    *ret = found;
    return 0;
}

double inspect_cpu_s(pid_t pid)
{
    long ticks_per_s = sysconf(_SC_CLK_TCK);
    struct inspection now;

    return inspect(&now, pid) < 0 ? (double)NAN : (double)now.cpu_ticks / (double)ticks_per_s;
}

double inspect_sleeps(pid_t pid)
{
    static const char word[] = "voluntary_ctxt_switches:";
    char path[300], line[256];
    double sum = 0;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *folder = opendir(path);
    if (!folder)
        return (double)NAN;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        snprintf(path, sizeof(path), "task/%s/status", entry->d_name);
        FILE *file = *entry->d_name == '.' ? NULL : open_of(pid, path);
        while (file && fgets(line, sizeof(line), file))
            if (strncmp(line, word, sizeof(word) - 1) == 0)
                sum += strtod(line + sizeof(word) - 1, NULL);
        if (file)
            fclose(file);
    }
    closedir(folder);
    return sum;
}

static int is_broker(pid_t pid)
{
    FILE *file = open_of(pid, "comm");
    char name[32] = "";

    if (!file)
        return 0;
    int result = fgets(name, sizeof(name), file) && strcmp(name, "ipcd\n") == 0;
    fclose(file);
    return result;
}

pid_t inspect_listener(void)
{
    const char *address = getenv("IPC_ADDRESS");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (!address || strlen(address) >= sizeof(name.sun_path))
        return -1;
    memcpy(name.sun_path, address, strlen(address) + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = connect(fd, (struct sockaddr *)&name, sizeof(name));
    if (result == 0)
        result = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    close(fd);
    return result != 0 ? -1 : peer.pid;
}

pid_t inspect_broker_of(pid_t listener)
{
    char path[64];
    int pid, found = -1;

    if (listener <= 0 || is_broker(listener))
        return listener;
    /* The parent listens: the broker is its child. */
    snprintf(path, sizeof(path), "task/%d/children", (int)listener);
    FILE *file = open_of(listener, path);
    while (file && found < 0 && fscanf(file, "%d", &pid) == 1)
        if (is_broker(pid))
            found = pid;
    if (file)
        fclose(file);
    return found;
}

pid_t inspect_broker(void)
{
    return inspect_broker_of(inspect_listener());
}
