/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/lane_fixture.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libipc/lane/wait.h"

#define PAIRING 100u

int fixture_segment(enum ipc_segment_kind kind, uint32_t ring_size)
{
    static uint64_t id;
    struct ipc_segment_header header = lane_segment_header(kind, ring_size, ++id);
    int fd = memfd_create("fixture", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)lane_segment_size(kind, ring_size)) < 0 ||
        pwrite(fd, &header, sizeof(header), 0) != sizeof(header) ||
        (kind == IPC_SEGMENT_LANE && pwrite(fd, &ring_size, sizeof(ring_size),
                                            offsetof(struct ipc_lane, ring_size)) != sizeof(ring_size)) ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

void *fixture_map(int fd, enum ipc_segment_kind kind, uint32_t ring_size, bool writable)
{
    void *segment;
    return lane_segment_map(&segment, fd, kind, ring_size, writable) == 0 ? segment : NULL;
}

static bool map_all(struct fixture *fixture)
{
    fixture->lane = fixture_map(fixture->lane_fd, IPC_SEGMENT_LANE, fixture->ring_size, true);
    fixture->lane_read = fixture_map(fixture->lane_fd, IPC_SEGMENT_LANE, fixture->ring_size, false);
    fixture->cells = fixture_map(fixture->cells_fd, IPC_SEGMENT_CELLS, 0, true);
    fixture->cells_read = fixture_map(fixture->cells_fd, IPC_SEGMENT_CELLS, 0, false);
    return fixture->lane && fixture->lane_read && fixture->cells && fixture->cells_read;
}

bool fixture_init(struct fixture *fixture, uint32_t ring_size)
{
    *fixture = (struct fixture){.ring_size = ring_size, .lane_fd = -1, .cells_fd = -1};
    fixture->lane_fd = fixture_segment(IPC_SEGMENT_LANE, ring_size);
    fixture->cells_fd = fixture_segment(IPC_SEGMENT_CELLS, 0);
    if (fixture->lane_fd < 0 || fixture->cells_fd < 0)
        return false;
    if (!map_all(fixture))
        return false;
    lane_writer_init(&fixture->writer, fixture->lane, lane_segment_ring(fixture->lane), ring_size);
    return true;
}

bool fixture_remap(struct fixture *fixture)
{
    if (!map_all(fixture))
        return false;
    fixture->writer.lane = fixture->lane;
    fixture->writer.ring = lane_segment_ring(fixture->lane);
    fixture->writer.peers = NULL;
    fixture->writer.armed = NULL;
    fixture->writer.peer_count = fixture->writer.peer_capacity = 0;
    return true;
}

void fixture_done(struct fixture *fixture)
{
    if (fixture->lane)
        lane_writer_done(&fixture->writer);
    lane_segment_unmap(fixture->lane, IPC_SEGMENT_LANE, fixture->ring_size);
    lane_segment_unmap((void *)(uintptr_t)fixture->lane_read, IPC_SEGMENT_LANE, fixture->ring_size);
    lane_segment_unmap(fixture->cells, IPC_SEGMENT_CELLS, 0);
    lane_segment_unmap((void *)(uintptr_t)fixture->cells_read, IPC_SEGMENT_CELLS, 0);
    if (fixture->lane_fd >= 0)
        close(fixture->lane_fd);
    if (fixture->cells_fd >= 0)
        close(fixture->cells_fd);
}

void fixture_begin_at(struct fixture *fixture, uint64_t position, uint64_t sequence)
{
    struct lane_writer *writer = &fixture->writer;
    writer->position = writer->tail = position;
    writer->limit = position + writer->ring_size;
    writer->sequence = writer->tail_sequence = sequence;
    lane_writer_stamp(writer, position);
    atomic_store(&fixture->lane->tail_sequence, sequence);
    atomic_store(&fixture->lane->head, position);
    atomic_store(&fixture->lane->tail, position);
}

void fixture_attach(struct fixture *fixture, struct lane_reader *reader, unsigned index,
                    enum fixture_policy policy, unsigned start)
{
    const unsigned char *ring = lane_segment_ring((void *)(uintptr_t)fixture->lane_read);
    lane_reader_init(reader, fixture->lane_read, ring, fixture->ring_size, index,
                     &fixture->cells->cells[index], PAIRING + index, start, policy == FIXTURE_PIN, false);
}

int fixture_admit(struct fixture *fixture, unsigned index, enum fixture_policy policy, unsigned start)
{
    struct lane_peer peer = {.cell = &fixture->cells_read->cells[index],
                             .pairing = PAIRING + index,
                             .slot = index,
                             .bell = -1,
                             .pins = policy == FIXTURE_PIN,
                             .disconnect = policy == FIXTURE_DISCONNECT};
    return lane_writer_add(&fixture->writer, &peer, start);
}

void fixture_join(struct fixture *fixture, struct lane_reader *reader, unsigned index,
                  enum fixture_policy policy, unsigned start)
{
    /* In life no pairing's number comes twice; here an earlier reader's cursor may still stand in the cell. */
    atomic_store(&fixture->cells->cells[index].owner, 0);
    if (fixture_admit(fixture, index, policy, start) < 0)
        abort();
    fixture_attach(fixture, reader, index, policy, start);
}

static uint64_t scatter(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static unsigned char content(uint64_t number, size_t at, uint64_t *eight)
{
    if (at % 8 == 0)
        *eight = scatter(number * 1000003 + at / 8);
    return (unsigned char)(*eight >> at % 8 * 8);
}

void fixture_fill(unsigned char *body, size_t size, uint64_t number)
{
    uint64_t eight = 0;
    for (size_t i = 0; i < size; i++)
        body[i] = content(number, i, &eight);
}

bool fixture_holds(const unsigned char *body, size_t size, uint64_t number)
{
    uint64_t eight = 0;
    for (size_t i = 0; i < size; i++)
        if (body[i] != content(number, i, &eight))
            return false;
    return true;
}

int fixture_publish(struct lane_writer *writer, uint32_t size)
{
    static _Thread_local unsigned char message[1 << 17];
    unsigned char *body;
    int result = lane_writer_reserve(writer, size, &body);
    if (result < 0)
        return result;
    if (size > sizeof(message))
        abort();
    fixture_fill(message, size, writer->sequence);
    lane_copy_in(body, message, size);
    lane_writer_commit(writer, size, 0);
    return 0;
}

int fixture_receive(struct lane_reader *reader, struct lane_record *record)
{
    static _Thread_local unsigned char message[1 << 17];
    for (;;) {
        int result = lane_reader_peek(reader, record);
        if (result <= 0)
            return result;
        if (record->size > sizeof(message))
            return -EBADMSG;
        lane_copy_out(message, record->body, record->size);
        if (!lane_reader_check(reader))
            continue;
        lane_reader_advance(reader, record);
        return fixture_holds(message, record->size, record->sequence) ? 1 : -EBADMSG;
    }
}
