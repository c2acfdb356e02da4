/* SPDX-License-Identifier: Apache-2.0
 *
 * What is kept for ipcd: descriptors under names, which the next ipcd inherits under the numbers that they have here.
 * They are not close-on-exec, so that a restart costs no system call for each; children other than ipcd close them by
 * one close_range().
 */
#include "broker/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "proto/store.h"

struct kept {
    struct hash_node node;
    struct list link;
    char name[IPC_KEPT_NAME_SIZE];
    unsigned count;
    int fds[STORE_PARTS];
};

static const uint64_t no_secret[2]; /* the names are our own child's */

static uint64_t key_of(const char *name)
{
    return hash_string(no_secret, name, strlen(name));
}

static struct kept *find(const struct store *store, const char *name)
{
    for (struct hash_node *node = hash_find(&store->by_name, key_of(name)); node;
         node = hash_find_next(node)) {
        struct kept *kept = list_entry(node, struct kept, node);

        if (strcmp(kept->name, name) == 0)
            return kept;
    }
    return NULL;
}

int store_init(struct store *store)
{
    list_init(&store->kept);
    store->count = 0;
    return hash_init(&store->by_name);
}

static void drop(struct store *store, struct kept *kept)
{
    for (unsigned i = 0; i < kept->count; i++)
        fd_close(kept->fds[i]);
    store->count -= kept->count;
    hash_remove(&store->by_name, &kept->node);
    list_remove(&kept->link);
    free(kept);
}

void store_clear(struct store *store)
{
    list_for_each_safe(node, &store->kept) drop(store, list_entry(node, struct kept, link));
}

void store_done(struct store *store)
{
    if (!store->by_name.buckets)
        return;
    store_clear(store);
    hash_done(&store->by_name);
}

static bool good_name(const char *name)
{
    size_t size = strlen(name);

    for (size_t i = 0; i < size; i++)
        if (name[i] <= ' ' || name[i] > '~')
            return false;
    return size > 0 && size < IPC_KEPT_NAME_SIZE;
}

int store_put(struct store *store, const char *name, const int *fds, unsigned count)
{
    struct kept *kept, *old;

    if (!good_name(name) || count == 0 || count > STORE_PARTS)
        return -EINVAL;
    kept = calloc(1, sizeof(*kept));
    if (!kept)
        return -ENOMEM;
    old = find(store, name);
    if (old)
        drop(store, old);
    memcpy(kept->name, name, strlen(name) + 1);
    memcpy(kept->fds, fds, count * sizeof(*fds));
    kept->count = count;
    store->count += count;
    list_append(&store->kept, &kept->link);
    hash_add(&store->by_name, &kept->node, key_of(name));
    return 0;
}

void store_remove(struct store *store, const char *name)
{
    struct kept *kept = find(store, name);

    if (kept)
        drop(store, kept);
}

int store_get(const struct store *store, const char *name)
{
    const struct kept *kept = find(store, name);

    return kept ? kept->fds[0] : -1;
}

int store_index(const struct store *store)
{
    int fd = fd_memory("ipcd-store", 0); /* inherited, too */
    struct ipc_kept *entries = calloc(store->count + 1, sizeof(*entries));
    size_t n = 0, size = store->count * sizeof(*entries);

    list_for_each(node, &store->kept)
    {
        const struct kept *kept = list_entry(node, struct kept, link);

        for (uint32_t part = 0; entries && part < kept->count; part++) {
            memcpy(entries[n].name, kept->name, sizeof(kept->name));
            entries[n].fd = kept->fds[part];
            entries[n++].part = part;
        }
    }
    if (fd < 0 || !entries || write(fd, entries, size) != (ssize_t)size)
        fd = fd_close(fd);
    free(entries);
    return fd < 0 ? -ENOMEM : fd;
}
