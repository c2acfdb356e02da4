/* SPDX-License-Identifier: Apache-2.0
 *
 * A lane whose every byte its writer makes up, and changes while it is read. The reader says so or reads on;
 * it never leaves the ring. Input: how the reader begins, words of the control page, then steps: what to do, or
 * what to store where.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libipc/lane/reader.h"

#define RING_SIZE 4096u

struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t take(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    size_t n = bytes < input->left ? bytes : input->left;
    if (n)
        memcpy(&value, input->at, n);
    input->at += n;
    input->left -= n;
    return value;
}

/* A position or number near something that matters, or any. */
static uint64_t odd_number(struct input *input, const struct lane_reader *reader)
{
    uint64_t how = take(input, 1);
    switch (how & 7) {
    case 0:
        return take(input, 8);
    case 1:
        return reader->position + (how >> 3) * 8;
    case 2:
        return reader->position - (how >> 3) * 8;
    case 3:
        return reader->sequence + (how >> 3);
    case 4:
        return UINT64_MAX - (how >> 3);
    case 5:
        return UINT64_C(1) << (how >> 2);
    case 6:
        return reader->position + RING_SIZE + (how >> 3) * 8;
    default:
        return how >> 3;
    }
}

static void look_at(struct lane_reader *reader, struct lane_record *record, bool hold)
{
    static unsigned char copy[RING_SIZE];
    int result = lane_reader_peek(reader, record);
    if (result != 0 && result != 1 && result != -EPROTO && result != -ESTALE)
        abort();
    if (result != 1)
        return;
    if (record->body < reader->ring || record->size > RING_SIZE / 2 - 8 ||
        record->body + record->size > reader->ring + (size_t)2 * RING_SIZE)
        abort();
    lane_copy_out(copy, record->body, record->size);
    if (!lane_reader_check(reader))
        return;
    if (hold && lane_reader_in_place(reader))
        lane_reader_hold(reader, record);
    else
        lane_reader_advance(reader, record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ipc_lane lane;
    static struct ipc_cells cells;
    struct input input = {data, size};
    struct lane_reader reader = {0};
    struct lane_record record = {0};
    const _Atomic uint32_t *word;
    uint32_t value;

    /* Of the exact size: any step out of the two mappings of the ring is seen. */
    unsigned char *ring = aligned_alloc(64, (size_t)2 * RING_SIZE);
    if (!ring)
        return 0;
    memset(&lane, 0, sizeof(lane));
    memset(&cells, 0, sizeof(cells));
    memset(ring, 0, (size_t)2 * RING_SIZE);
    unsigned how = (unsigned)take(&input, 1);
    unsigned slot = (unsigned)take(&input, 1) % IPC_LANE_SLOTS;
    lane.tail = odd_number(&input, &reader);
    lane.tail_sequence = odd_number(&input, &reader);
    lane.head = odd_number(&input, &reader);
    lane.slots[slot].start = odd_number(&input, &reader);
    lane.slots[slot].start_sequence = odd_number(&input, &reader);
    lane_reader_init(&reader, &lane, ring, RING_SIZE, slot, &cells.cells[0], 1, how % 3, how & 4, how & 8);
    while (input.left) {
        unsigned step = (unsigned)take(&input, 1);
        size_t at = reader.position & (RING_SIZE - 1);
        uint64_t number = 0;
        switch (step & 15) {
        case 0:
        case 1:
            look_at(&reader, &record, step & 16);
            break;
        case 2: /* a record as it should be, of any size */
            number = reader.sequence << 32 | IPC_RECORD_COMMITTED | take(&input, 2);
            memcpy(ring + at, &number, sizeof(number));
            break;
        case 3: /* anything where it looks */
            number = take(&input, 8);
            memcpy(ring + at, &number, sizeof(number));
            break;
        case 4:
            number = odd_number(&input, &reader);
            memcpy(ring + (take(&input, 2) & (RING_SIZE - 8)), &number, sizeof(number));
            break;
        case 5:
            lane.tail = odd_number(&input, &reader);
            break;
        case 6:
            lane.tail_sequence = odd_number(&input, &reader);
            break;
        case 7:
            lane.want = odd_number(&input, &reader);
            break;
        case 8:
            lane.slots[slot].start = odd_number(&input, &reader);
            break;
        case 9:
            lane_reader_arm(&reader, step & 16);
            break;
        case 10:
            lane_reader_disarm(&reader);
            break;
        case 11:
            lane_reader_sleeps_on(&reader, &word, &value);
            if ((const unsigned char *)word < ring || (const unsigned char *)word > ring + RING_SIZE - 8)
                abort();
            break;
        case 12:
            lane_reader_report(&reader);
            break;
        case 13:
            lane_reader_release(&reader, reader.position);
            break;
        case 14:
            lane_reader_in_place(&reader);
            break;
        default:
            lane_reader_ended(&reader);
        }
        if (reader.position % IPC_RECORD_ALIGN != 0)
            abort();
    }
    free(ring);
    return 0;
}
