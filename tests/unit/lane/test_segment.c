/* SPDX-License-Identifier: Apache-2.0
 *
 * Which descriptors are mapped as segments, and which are refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tests/support/lane_fixture.h"
#include "tests/support/watchdog.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int make(const struct ipc_segment_header *header, size_t size, int seals)
{
    int fd = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    assert_int_equal(pwrite(fd, header, sizeof(*header), 0), sizeof(*header));
    if (seals)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void refused(struct ipc_segment_header header, size_t size, int seals)
{
    void *segment = NULL;
    int fd = make(&header, size, seals);
    assert_int_equal(lane_segment_map(&segment, fd, IPC_SEGMENT_LANE, 4096, false), -EPROTO);
    assert_null(segment);
    close(fd);
}

static void test_refusals(void **state)
{
    const struct ipc_segment_header good = lane_segment_header(IPC_SEGMENT_LANE, 4096, 9);
    struct ipc_segment_header bad;
    (void)state;
    unsigned before = descriptors_open();
    refused(good, 8192 + 1, SEALS);
    refused(good, 8192 - 1, SEALS);
    refused(good, 4096, SEALS);
    refused(good, 8192, 0);
    refused(good, 8192, F_SEAL_SHRINK | F_SEAL_GROW);
    refused(good, 8192, F_SEAL_SHRINK | F_SEAL_SEAL);
    refused(good, 8192, F_SEAL_GROW | F_SEAL_SEAL);
    bad = good;
    bad.magic++;
    refused(bad, 8192, SEALS);
    bad = good;
    bad.abi_major++;
    refused(bad, 8192, SEALS);
    bad = good;
    bad.kind = IPC_SEGMENT_CELLS;
    refused(bad, 8192, SEALS);
    bad = good;
    bad.fingerprint ^= 1;
    refused(bad, 8192, SEALS);
    bad = good;
    bad.size++;
    refused(bad, 8192, SEALS);
    bad = good;
    bad.reserved[2] = 1;
    refused(bad, 8192, SEALS);

    void *segment;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(lane_segment_map(&segment, fd, IPC_SEGMENT_LANE, 4096, false) < 0);
    close(fd);
    assert_int_equal(lane_segment_map(&segment, -1, IPC_SEGMENT_LANE, 4096, false), -EBADF);
    static const uint32_t sizes[] = {0, 1, 2048, 4095, 4097, 12288, IPC_MAX_RING_SIZE * 2, UINT32_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_int_equal(lane_segment_map(&segment, -1, IPC_SEGMENT_LANE, sizes[i], false), -EPROTO);
    assert_int_equal(lane_segment_map(&segment, -1, IPC_SEGMENT_BOARD, 4096, false), -EPROTO);
    assert_int_equal(lane_segment_map(&segment, -1, (enum ipc_segment_kind)77, 0, false), -EPROTO);
    assert_int_equal(descriptors_open(), before);
}

static void test_newer_minor_is_fine(void **state)
{
    struct ipc_segment_header header = lane_segment_header(IPC_SEGMENT_LANE, 4096, 9);
    void *segment;
    (void)state;
    header.abi_minor++;
    int fd = make(&header, 8192, SEALS);
    assert_int_equal(lane_segment_map(&segment, fd, IPC_SEGMENT_LANE, 4096, true), 0);
    lane_segment_unmap(segment, IPC_SEGMENT_LANE, 4096);
    close(fd);
}

static void test_rings_back_to_back(void **state)
{
    (void)state;
    for (uint32_t size = IPC_MIN_RING_SIZE; size <= 1 << 20; size *= 4) {
        int fd = fixture_segment(IPC_SEGMENT_LANE, size);
        unsigned char *writing = lane_segment_ring(fixture_map(fd, IPC_SEGMENT_LANE, size, true));
        unsigned char *reading = lane_segment_ring(fixture_map(fd, IPC_SEGMENT_LANE, size, false));
        close(fd); /* the mappings need it no more */
        for (uint32_t at = 0; at < size; at += 1021) {
            writing[at + size] = (unsigned char)(at >> 3);
            assert_int_equal(reading[at], (unsigned char)(at >> 3));
            assert_int_equal(reading[at + size], (unsigned char)(at >> 3));
        }
        lane_segment_unmap(writing - IPC_LAYOUT_PAGE, IPC_SEGMENT_LANE, size);
        lane_segment_unmap(reading - IPC_LAYOUT_PAGE, IPC_SEGMENT_LANE, size);
    }
    lane_segment_unmap(NULL, IPC_SEGMENT_LANE, 4096);
}

/* A descriptor that was opened for reading cannot be mapped for writing; and a child of fork has no mapping. */
static void test_rights_and_fork(void **state)
{
    char path[64];
    void *segment = NULL;
    (void)state;
    int fd = fixture_segment(IPC_SEGMENT_CELLS, 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int reading = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(lane_segment_map(&segment, reading, IPC_SEGMENT_CELLS, 0, true), -EACCES);
    assert_null(segment);
    assert_int_equal(lane_segment_map(&segment, reading, IPC_SEGMENT_CELLS, 0, false), 0);
    pid_t child = fork_child();
    if (child == 0) {
        /* mincore fails on addresses that are not mapped */
        unsigned char pages[8];
        _exit(mincore(segment, lane_segment_size(IPC_SEGMENT_CELLS, 0), pages) < 0 ? 0 : 1);
    }
    assert_int_equal(wait_child(child), 0);
    lane_segment_unmap(segment, IPC_SEGMENT_CELLS, 0);
    close(reading);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_newer_minor_is_fine),
        cmocka_unit_test(test_rings_back_to_back),
        cmocka_unit_test(test_rights_and_fork),
    };
    watchdog(60, "unit/lane/test_segment");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
