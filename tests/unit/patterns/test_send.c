/* SPDX-License-Identifier: Apache-2.0
 *
 * The header block of a message to a queue: there and back, at its limits and beyond.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libipc/patterns/queue_message.h"
#include "libipc/patterns/send.h"
#include "proto/fields.h"
#include "proto/limits.h"

static unsigned char *block;
static int64_t size;

static int setup(void **state)
{
    (void)state;
    block = malloc(IPC_MAX_HEADERS_SIZE + QUEUE_BLOCK_EXTRA);
    return block ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    free(block);
    return 0;
}

/* Write the block, with other bytes than 0 where it goes, and look at its frame. */
static void make(const struct ipc_send *how)
{
    struct ipc_record_headers headers;
    size = send_block_size(how);
    assert_true(size > 0 && size % 8 == 0);
    memset(block, 0xa5, (size_t)size + QUEUE_BLOCK_EXTRA);
    send_block_put(how, block, (uint32_t)size);
    memcpy(&headers, block, sizeof(headers));
    assert_int_equal(ipc_fields_block_check(&headers, (size_t)size), size);
    assert_int_equal(block[size], 0xa5);
    struct ipc_field field;
    size_t position = 0;
    unsigned count = 0;
    int result;
    while ((result = ipc_field_next(block, (size_t)size, &position, &field)) > 0)
        count++;
    assert_int_equal(result, 0);
    assert_int_equal(count, headers.count);
}

static uint64_t find(unsigned kind)
{
    struct ipc_field field;
    size_t position = 0;
    while (ipc_field_next(block, (size_t)size, &position, &field) > 0) {
        uint64_t value = 0;
        if (field.kind != kind)
            continue;
        assert_true(field.value_size <= sizeof(value));
        memcpy(&value, field.value, field.value_size);
        return value;
    }
    fail();
    return 0;
}

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

static void test_nothing(void **state)
{
    struct ipc_send how = IPC_SEND_INIT;
    (void)state;
    assert_int_equal(send_block_size(NULL), 0);
    assert_int_equal(send_block_size(&how), 0);
}

static void test_everything(void **state)
{
    const struct ipc_header headers[] = {{"name", "value", 5}, {"n", NULL, 0}};
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_queue_message message = {.size = 0};
    const void *value;
    size_t value_size;
    char longest[256];
    (void)state;
    memset(longest, 'x', 255);
    longest[255] = '\0';
    how.flags = IPC_SEND_TIMESTAMP;
    how.priority = 9;
    how.id = how.key = longest;
    how.id_size = 255;
    how.key_size = 1;
    how.reply_to = how.content_type = longest;
    how.headers = headers;
    how.header_count = 2;
    make(&how);
    assert_int_equal(find(IPC_FIELD_PRIORITY), 9);
    queue_message_fields(&message, block, (size_t)size);
    assert_string_equal(message.content_type, longest);
    assert_string_equal(message.reply_to, longest);
    assert_int_equal(message.id_size, 255);
    assert_memory_equal(message.id, longest, 255);
    assert_int_equal(message.key_size, 1);
    assert_true(message.timestamp_ns <= now(CLOCK_REALTIME) && message.timestamp_ns > 0);
    assert_int_equal(ipc_queue_message_header(&message, "name", &value, &value_size), 0);
    assert_int_equal(value_size, 5);
    assert_int_equal(ipc_queue_message_header(&message, "n", &value, &value_size), 0);
    assert_int_equal(value_size, 0);
    assert_int_equal(ipc_queue_message_header(&message, "nam", &value, &value_size), -ENOENT);
}

static void test_times(void **state)
{
    struct ipc_send how = IPC_SEND_INIT;
    uint64_t before, real;
    (void)state;
    how.ttl_ns = 1000;
    how.delay_ns = 2000;
    before = now(CLOCK_BOOTTIME);
    make(&how);
    assert_in_range(find(IPC_FIELD_EXPIRES), before + 1000, now(CLOCK_BOOTTIME) + 1000);
    assert_in_range(find(IPC_FIELD_NOT_BEFORE), before + 2000, now(CLOCK_BOOTTIME) + 2000);
    how.ttl_ns = UINT64_MAX;
    how.delay_ns = UINT64_MAX - 1;
    make(&how);
    assert_true(find(IPC_FIELD_EXPIRES) == UINT64_MAX);
    assert_true(find(IPC_FIELD_NOT_BEFORE) == UINT64_MAX);
    how.delay_ns = 0;
    real = now(CLOCK_REALTIME);
    how.deliver_at_ns = real + UINT64_C(3600000000000);
    before = now(CLOCK_BOOTTIME);
    make(&how);
    assert_true(find(IPC_FIELD_NOT_BEFORE) <= now(CLOCK_BOOTTIME) + UINT64_C(3600000000000));
    assert_true(find(IPC_FIELD_NOT_BEFORE) > before);
    how.deliver_at_ns = 1; /* long ago: now */
    before = now(CLOCK_BOOTTIME);
    make(&how);
    assert_in_range(find(IPC_FIELD_NOT_BEFORE), before, now(CLOCK_BOOTTIME));
    how.deliver_at_ns = 0;
    how.flags = IPC_SEND_AT_ONCE; /* said, so that the queue's own delay does not count */
    make(&how);
    assert_true(find(IPC_FIELD_NOT_BEFORE) <= now(CLOCK_BOOTTIME));
}

static void test_refused(void **state)
{
    struct ipc_send how = IPC_SEND_INIT;
    struct ipc_header headers[IPC_MAX_HEADERS + 1];
    char longest[257];
    (void)state;
    memset(longest, 'x', 256);
    longest[256] = '\0';
#define REFUSED(field, bad, good, code)          \
 do {                                            \
  how.field = bad;                               \
  assert_int_equal(send_block_size(&how), code); \
  how.field = good;                              \
 } while (0)
    REFUSED(size, sizeof(how) - 1, sizeof(how), -EINVAL);
    REFUSED(flags, 8, 0, -EINVAL);
    REFUSED(priority, IPC_PRIORITIES, 0, -EINVAL);
    REFUSED(id_size, 1, 0, -EINVAL); /* of NULL */
    REFUSED(key_size, 1, 0, -EINVAL);
    how.id = how.key = longest;
    REFUSED(id_size, 256, 0, -E2BIG);
    REFUSED(key_size, 256, 0, -E2BIG);
    REFUSED(reply_to, "", NULL, -EINVAL);
    REFUSED(reply_to, "a b", NULL, -EINVAL);
    REFUSED(reply_to, longest, NULL, -EINVAL);
    REFUSED(content_type, longest, NULL, -E2BIG);
    how.delay_ns = 1;
    REFUSED(deliver_at_ns, 1, 0, -EINVAL);
    REFUSED(flags, IPC_SEND_AT_ONCE, 0, -EINVAL);
    how.delay_ns = 0;

    for (unsigned i = 0; i <= IPC_MAX_HEADERS; i++)
        headers[i] = (struct ipc_header){"h", longest, 1};
    how.headers = headers;
    REFUSED(header_count, IPC_MAX_HEADERS + 1, 0, -E2BIG);
    how.header_count = 1;
    REFUSED(headers, (&(struct ipc_header){NULL, longest, 1}), headers, -EINVAL);
    REFUSED(headers, (&(struct ipc_header){"", longest, 1}), headers, -EINVAL);
    REFUSED(headers, (&(struct ipc_header){longest, longest, 1}), headers, -E2BIG);
    REFUSED(headers, (&(struct ipc_header){"h", NULL, 1}), headers, -EINVAL);
    REFUSED(headers, (&(struct ipc_header){"h", longest, 65536}), headers, -E2BIG);

    /* The whole block, exactly as large as it may be, and a step more. */
    static unsigned char value[65535];
    const size_t most = IPC_MAX_HEADERS_SIZE - sizeof(struct ipc_record_headers) - ipc_field_size(1, 0);
    headers[0] = (struct ipc_header){"h", value, most};
    make(&how);
    assert_int_equal(size, IPC_MAX_HEADERS_SIZE);
    headers[0].value_size = most + 1;
    assert_int_equal(send_block_size(&how), -E2BIG);
}

/* Blocks that the broker would not write: nothing of them is believed beyond its bounds. */
static void test_strange_blocks(void **state)
{
    struct ipc_queue_message message = {.size = 0};
    struct ipc_dead_letter letter;
    size_t position = sizeof(struct ipc_record_headers);
    static unsigned char value[300];
    (void)state;
    memset(block, 0, 1024);
    memset(value, 'y', sizeof(value));
    ipc_field_put(block, &position,
                  &(struct ipc_field){.kind = IPC_FIELD_CONTENT_TYPE, .value_size = 300, .value = value});
    ipc_field_put(block, &position,
                  &(struct ipc_field){.kind = IPC_FIELD_TIMESTAMP, .value_size = 9, .value = value});
    ipc_field_put(block, &position,
                  &(struct ipc_field){.kind = IPC_FIELD_ORIGIN, .value_size = 256, .value = value});
    ipc_field_put(block, &position, &(struct ipc_field){.kind = 200, .value_size = 3, .value = value});
    queue_message_fields(&message, block, 1024);
    assert_null(message.content_type);
    assert_int_equal(message.timestamp_ns, 0);
    assert_int_equal(ipc_queue_message_dead_letter(&message, &letter), -ENOENT);
    assert_string_equal(ipc_redelivered_word(IPC_REDELIVERED_DIED), "died");
    assert_string_equal(ipc_redelivered_word(99), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing), cmocka_unit_test(test_everything),     cmocka_unit_test(test_times),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_strange_blocks),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
