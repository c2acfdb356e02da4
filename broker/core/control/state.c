/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/state.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/core/control/segment.h"
#include "broker/core/util/fd.h"
#include "proto/layout.h"

#define PAGE  4096u
#define CHUNK (16u * PAGE) /* memory is allocated in these: what a row needs is there before it is touched */

/* The address space of a table is reserved for the most it can hold; memory comes as it is used. */
static const struct {
    uint32_t size, most;
} tables[STATE_TABLES] = {
    [STATE_SESSIONS] = {sizeof(struct session_row), 2 * IPC_MAX_SESSIONS},
    [STATE_LANES] = {sizeof(struct lane_row), 2 * IPC_MAX_TOPICS},
    [STATE_SUBSCRIPTIONS] = {sizeof(struct subscription_row), 2 * IPC_MAX_TOPICS},
    [STATE_CELLS] = {sizeof(struct cells_row), 2 * IPC_MAX_SESSIONS + IPC_MAX_PAIRINGS / 32},
    [STATE_BELLS] = {sizeof(struct bell_row), 2 * IPC_MAX_TOPICS},
    [STATE_PAIRINGS] = {sizeof(struct pairing_row), 2 * IPC_MAX_PAIRINGS},
    [STATE_QUEUES] = {sizeof(struct queue_row), 2 * IPC_MAX_QUEUES},
    [STATE_PORTS] = {sizeof(struct port_row), 2 * IPC_MAX_PORTS},
    [STATE_SHARED] = {sizeof(struct shared_row), 2 * IPC_MAX_SHARED_SEGMENTS},
    [STATE_ATTACHMENTS] = {sizeof(struct attachment_row), 2 * IPC_MAX_ATTACHMENTS},
};
static_assert(2 * IPC_MAX_PORTS <= UINT16_MAX + 1, "a port's small number has 16 bits");

#define FINGERPRINT                                                                           \
 ((uint64_t)IPC_LAYOUT_FINGERPRINT ^ (uint64_t)sizeof(struct session_row) << 1 ^              \
  (uint64_t)sizeof(struct lane_row) << 11 ^ (uint64_t)sizeof(struct subscription_row) << 21 ^ \
  (uint64_t)sizeof(struct cells_row) << 31 ^ (uint64_t)sizeof(struct bell_row) << 41 ^        \
  (uint64_t)sizeof(struct pairing_row) << 51 ^ (uint64_t)sizeof(struct queue_row) << 6 ^      \
  (uint64_t)sizeof(struct port_row) << 16 ^ (uint64_t)sizeof(struct shared_row) << 26 ^       \
  (uint64_t)sizeof(struct attachment_row) << 36)

static_assert(sizeof(struct state_header) <= PAGE, "the header is one page");
static_assert(sizeof(struct session_row) % 8 == 0 && sizeof(struct lane_row) % 8 == 0 &&
                  sizeof(struct subscription_row) % 8 == 0 && sizeof(struct pairing_row) % 8 == 0 &&
                  sizeof(struct queue_row) % 8 == 0 && sizeof(struct port_row) % 8 == 0 &&
                  sizeof(struct shared_row) % 8 == 0 && sizeof(struct attachment_row) % 8 == 0,
              "ids are aligned");

static size_t offset_of(enum state_table table)
{
    size_t offset = PAGE;

    for (int i = 0; i < (int)table; i++)
        offset += ((size_t)tables[i].size * tables[i].most + CHUNK - 1) / CHUNK * CHUNK;
    return offset;
}

static void *row_at(const struct state *state, enum state_table table, uint32_t index)
{
    return (char *)state->header + offset_of(table) + (size_t)tables[table].size * index;
}

static int map(struct state *state)
{
    void *memory = mmap(NULL, offset_of(STATE_TABLES), PROT_READ | PROT_WRITE, MAP_SHARED, state->fd, 0);

    if (memory == MAP_FAILED)
        return -errno;
    state->header = memory;
    return 0;
}

int state_new(struct state *state)
{
    int result;

    *state = STATE_INIT;
    state->fd = fd_memory("ipc-registry", MFD_CLOEXEC);
    if (state->fd < 0)
        return fd_steal(&state->fd);
    result = fchmod(state->fd, 0600) < 0 || ftruncate(state->fd, (off_t)offset_of(STATE_TABLES)) < 0 ||
                     fallocate(state->fd, 0, 0, PAGE) < 0
                 ? -errno
                 : map(state);
    if (result < 0) {
        state_close(state);
        return result;
    }
    state->header->version = STATE_VERSION;
    state->header->fingerprint = FINGERPRINT;
    state->header->starts = 1;
    state->header->magic = STATE_MAGIC;
    return 0;
}

int state_check(int fd, uint32_t *ret_version)
{
    struct state_header header;
    struct stat st;

    *ret_version = 0;
    ssize_t size = pread(fd, &header, sizeof(header), 0);
    if (size < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (size != (ssize_t)sizeof(header) || header.magic != STATE_MAGIC)
        return -EBADMSG;
    *ret_version = header.version;
    if (header.version != STATE_VERSION || header.fingerprint != FINGERPRINT)
        return -EPROTO;
    if ((size_t)st.st_size != offset_of(STATE_TABLES))
        return -EBADMSG;
    for (int i = 0; i < STATE_TABLES; i++)
        if (header.rows[i] > tables[i].most)
            return -EBADMSG;
    return 0;
}

int state_open(struct state *state, int fd)
{
    uint32_t version;
    int result = state_check(fd, &version);

    *state = STATE_INIT;
    if (result < 0)
        return result;
    state->fd = fd;
    result = map(state);
    if (result < 0) {
        state->fd = -1;
        return result;
    }
    for (int i = 0; i < STATE_TABLES; i++) {
        state->capacity[i] = state->header->rows[i];
        for (uint32_t index = state->header->rows[i]; index-- > 0;) {
            struct state_row *row = row_at(state, (enum state_table)i, index);

            if (atomic_load_explicit(&row->id, memory_order_relaxed) != 0)
                continue;
            row->next_free = state->free[i];
            state->free[i] = index + 1;
        }
    }
    state->header->starts++;
    return 0;
}

void state_close(struct state *state)
{
    if (state->header)
        munmap(state->header, offset_of(STATE_TABLES));
    fd_close(state->fd);
    *state = STATE_INIT;
}

uint64_t state_number(struct state *state, enum state_number kind)
{
    return ++state->header->last[kind];
}

static bool grow(struct state *state, enum state_table table)
{
    size_t start = offset_of(table), size = tables[table].size;
    size_t end = (size * state->capacity[table] + CHUNK - 1) / CHUNK * CHUNK;

    if (end < size * (state->capacity[table] + 1)) {
        if (fallocate(state->fd, 0, (off_t)(start + end), CHUNK) < 0)
            return false;
        end += CHUNK;
    }
    state->capacity[table] = (uint32_t)(end / size);
    return true;
}

void *state_take(struct state *state, enum state_table table)
{
    uint32_t *rows = &state->header->rows[table], index;
    struct state_row *row;

    if (state->free[table]) {
        index = state->free[table] - 1;
        row = row_at(state, table, index);
        state->free[table] = row->next_free;
    } else {
        index = *rows;
        if (index >= tables[table].most || (index >= state->capacity[table] && !grow(state, table)))
            return NULL;
        row = row_at(state, table, index);
        ++*rows; /* its id is 0: it was never used */
    }
    memset((char *)row + sizeof(*row), 0, tables[table].size - sizeof(*row));
    return row;
}

void state_commit(void *row, uint64_t id)
{
    atomic_store_explicit(&((struct state_row *)row)->id, id, memory_order_release);
}

uint32_t state_index(const struct state *state, enum state_table table, const void *row)
{
    size_t index = (size_t)((const char *)row - (const char *)row_at(state, table, 0)) / tables[table].size;

    assert(index < state->header->rows[table]);
    return (uint32_t)index;
}

void state_drop(struct state *state, enum state_table table, void *row)
{
    struct state_row *head = row;
    uint32_t index;

    if (!row)
        return;
    index = state_index(state, table, row);
    atomic_store_explicit(&head->id, 0, memory_order_release);
    head->next_free = state->free[table];
    state->free[table] = index + 1;
}

void *state_next(const struct state *state, enum state_table table, uint32_t *at)
{
    while (*at < state->header->rows[table]) {
        struct state_row *row = row_at(state, table, (*at)++);

        if (atomic_load_explicit(&row->id, memory_order_acquire) != 0)
            return row;
    }
    return NULL;
}
