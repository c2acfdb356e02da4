/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fault/fault.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static struct fault own;
struct fault *fault = &own;
_Thread_local unsigned fault_spared;

const struct fault_word fault_words[FAULT_KIND_COUNT] = {
#define X(name, word, nature, ...) [FAULT_##name] = {#word, FAULT_##nature, {__VA_ARGS__}},
    FAULT_KINDS(X)
#undef X
};

struct fault *fault_share(void)
{
    char text[16];
    int fd = memfd_create("fault", 0);
    if (fd < 0 || ftruncate(fd, sizeof(struct fault)) < 0)
        abort();
    struct fault *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        abort();
    snprintf(text, sizeof(text), "%d", fd);
    setenv("IPC_FAULT", text, 1);
    return shared;
}

void fault_arm(enum fault_kind kind, uint32_t at, uint32_t last, int error)
{
    atomic_store(&fault->kind, FAULT_NONE);
    atomic_store(&fault->at, at);
    atomic_store(&fault->last, last);
    atomic_store(&fault->error, error);
    atomic_store(&fault->calls, 0);
    atomic_store(&fault->hits, 0);
    atomic_store(&fault->kind, kind);
}

unsigned fault_disarm(void)
{
    atomic_store(&fault->kind, FAULT_NONE);
    return atomic_load(&fault->hits);
}
