/* SPDX-License-Identifier: Apache-2.0
 *
 * An ipcd that starts badly: ipcd-run runs this, which does what the first line of the file IPC_TEST_PLAN says, takes that
 * line out of it, and becomes ipcd (IPCD_BIN). A line is
 *
 *      fail            exit before anything
 *      drop NAME...    what was kept under these names is lost; "l*" is all that begins with l
 *      extra NAME      there is a descriptor more, of which no record tells
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/store.h"

static char line[1024];

static void next_line(const char *path)
{
    static char rest[4096];
    FILE *file = path ? fopen(path, "r+e") : NULL;
    size_t size;

    if (!file)
        return;
    if (fgets(line, sizeof(line), file)) {
        size = fread(rest, 1, sizeof(rest), file);
        rewind(file);
        if (ftruncate(fileno(file), 0) < 0 || fwrite(rest, 1, size, file) != size)
            _exit(99);
        line[strcspn(line, "\n")] = '\0';
    }
    (void)fclose(file);
}

static int matches(const char *name, const char *pattern)
{
    size_t size = strcspn(pattern, "*");

    return pattern[size] == '*' ? strncmp(name, pattern, size) == 0 : strcmp(name, pattern) == 0;
}

static void change_store(int index)
{
    static struct ipc_kept entries[4096];
    ssize_t size = pread(index, entries, sizeof(entries), 0);
    size_t n = size > 0 ? (size_t)size / sizeof(*entries) : 0, kept = n;
    char *word = strtok(line, " ");
    int drop = strcmp(word, "drop") == 0;

    while ((word = strtok(NULL, " "))) {
        if (!drop) {
            entries[kept] = (struct ipc_kept){.fd = fcntl(index, F_DUPFD, 3)};
            snprintf(entries[kept++].name, sizeof(entries[0].name), "%s", word);
            continue;
        }
        n = kept;
        kept = 0;
        for (size_t i = 0; i < n; i++) {
            if (matches(entries[i].name, word))
                close(entries[i].fd);
            else
                entries[kept++] = entries[i];
        }
    }
    if (pwrite(index, entries, kept * sizeof(*entries), 0) != (ssize_t)(kept * sizeof(*entries)) ||
        ftruncate(index, (off_t)(kept * sizeof(*entries))) < 0)
        _exit(99);
}

int main(int argc, char **argv)
{
    const char *store = getenv("IPCD_STORE");

    (void)argc;
    next_line(getenv("IPC_TEST_PLAN"));
    if (strcmp(line, "fail") == 0)
        return 3;
    if (line[0] && store)
        change_store(atoi(store));
    execv(getenv("IPCD_BIN"), argv);
    return 99;
}
