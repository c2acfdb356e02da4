/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libipc/session/session.h"

int address_resolve(char *path, size_t capacity, const char *address)
{
    int size;
    if (!address || !*address)
        address = getenv("IPC_ADDRESS");
    if (address && *address) {
        size = snprintf(path, capacity, "%s", address);
    } else {
        const char *runtime = getenv("XDG_RUNTIME_DIR");
        size = runtime && *runtime ? snprintf(path, capacity, "%s/ipcd/socket", runtime) : -1;
        if (size < 0 || (size_t)size >= capacity || access(path, F_OK) < 0)
            size = snprintf(path, capacity, "/run/ipcd/socket");
    }
    return size >= 0 && (size_t)size < capacity ? 0 : -ENAMETOOLONG;
}
