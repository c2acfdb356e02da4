/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto/limits.h"
#include "proto/queue.h"

static Ipc__Control__QueueSettings settings;
static char why[IPC_QUEUE_TEXT_SIZE], text[IPC_QUEUE_TEXT_SIZE];

static int set_up(void **state)
{
    ipc_queue_settings_init(&settings);
    return 0;
}

static void test_defaults_are_in_range(void **state)
{
    assert_int_equal(settings.given, 0);
    assert_int_equal(settings.bytes_max, IPC_QUEUE_BYTES_DEFAULT);
    assert_int_equal(settings.message_size_max, IPC_QUEUE_MESSAGE_SIZE_DEFAULT);
    settings.given = UINT32_MAX;
    assert_int_equal(ipc_queue_settings_check(&settings, why), 0);
}

/* The field of each setting has its number in the schema, so that the bits of `given` mean the same to everybody. */
static void test_numbers_are_the_schemas(void **state)
{
    const ProtobufCMessageDescriptor *descriptor = &ipc__control__queue_settings__descriptor;

    assert_int_equal(descriptor->n_fields, IPC_QUEUE_SETTINGS + 1); /* and `given` */
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++) {
        const struct ipc_queue_setting *setting = &ipc_queue_settings[i];
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(descriptor, setting->field);

        assert_non_null(field);
        assert_int_equal(field->offset, setting->offset);
    }
}

static void parse(const char *name, const char *value)
{
    assert_int_equal(ipc_queue_setting_parse(ipc_queue_setting_find(name), value, &settings, why), 0);
    assert_true(ipc_queue_setting_given(ipc_queue_setting_find(name), &settings));
}

static void test_text_and_back(void **state)
{
    static const char *const values[][2] = {
        {"messages-max", "1000"},  {"bytes-max", "3M"},      {"message-size-max", "1K"},
        {"full", "dead-letter"},   {"class", "best-effort"}, {"ttl", "36h"},
        {"delay", "1500ms"},       {"lease", "30s"},         {"attempts-max", "5"},
        {"dead-letter", "a.dead"}, {"dedup-window", "4096"}, {"dedup-time", "2d"},
        {"paused", "yes"},
    };

    assert_int_equal(sizeof(values) / sizeof(values[0]), IPC_QUEUE_SETTINGS);
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++) {
        parse(values[i][0], values[i][1]);
        ipc_queue_setting_print(ipc_queue_setting_find(values[i][0]), &settings, text);
        assert_string_equal(text, values[i][1]);
    }
    assert_int_equal(settings.messages_max, 1000);
    assert_int_equal(settings.bytes_max, 3 << 20);
    assert_int_equal(settings.full, IPC__CONTROL__FULL__FULL_DEAD_LETTER);
    assert_int_equal(settings.lease_ns, UINT64_C(30000000000));
    assert_int_equal(settings.delay_ns, UINT64_C(1500000000));
    assert_string_equal(settings.dead_letter, "a.dead");
    assert_true(settings.paused);
    assert_int_equal(ipc_queue_settings_check(&settings, why), 0);
    parse("dead-letter", "none");
    assert_string_equal(settings.dead_letter, "");
}

static void expect_wrong(const char *name, const char *value, const char *said)
{
    assert_int_equal(ipc_queue_setting_parse(ipc_queue_setting_find(name), value, &settings, why), -EINVAL);
    assert_non_null(strstr(why, name));
    assert_non_null(strstr(why, said));
    assert_int_equal(settings.given, 0);
}

static void test_mistakes_say_what_is_allowed(void **state)
{
    expect_wrong("attempts-max", "1001", "0 to 1000");
    expect_wrong("attempts-max", "-1", "whole number");
    expect_wrong("attempts-max", "", "whole number");
    expect_wrong("attempts-max", "1K", "whole number");
    expect_wrong("bytes-max", "63K", "64K to 8G");
    expect_wrong("bytes-max", "64k", "K, M, G or T");
    expect_wrong("bytes-max", "18446744073709551616", "64K");
    expect_wrong("bytes-max", "99999999999T", "64K");
    expect_wrong("message-size-max", "65M", "64M");
    expect_wrong("ttl", "30", "ns, us, ms, s, m, h, d");
    expect_wrong("ttl", "367d", "366d");
    expect_wrong("full", "explode", "block, reject, drop-oldest, dead-letter");
    expect_wrong("paused", "maybe", "no, yes");
    expect_wrong("dead-letter", "a..b", "empty level");
    assert_null(ipc_queue_setting_find("ful"));
}

static void test_check_of_what_came_over_the_wire(void **state)
{
    settings.full = 4;
    assert_int_equal(ipc_queue_settings_check(&settings, why), 0); /* not given */
    settings.given = 1 << 4;
    assert_int_equal(ipc_queue_settings_check(&settings, why), -EINVAL);
    assert_non_null(strstr(why, "full"));
    settings.given = 1 << 9;
    settings.attempts_max = IPC_MAX_ATTEMPTS;
    assert_int_equal(ipc_queue_settings_check(&settings, why), 0);
    settings.attempts_max++;
    assert_int_equal(ipc_queue_settings_check(&settings, why), -EINVAL);
    settings.given = 1 << 10;
    settings.dead_letter = (char[]){"*"};
    assert_int_equal(ipc_queue_settings_check(&settings, why), -EINVAL);
    assert_non_null(strstr(why, "dead-letter"));
}

static void test_only_what_is_given_is_applied(void **state)
{
    Ipc__Control__QueueSettings change;

    ipc_queue_settings_init(&change);
    change.ttl_ns = 5;
    change.attempts_max = 7;
    change.given = 1 << 9;
    ipc_queue_settings_apply(&settings, &change);
    assert_int_equal(settings.attempts_max, 7);
    assert_int_equal(settings.ttl_ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_defaults_are_in_range, set_up),
        cmocka_unit_test_setup(test_numbers_are_the_schemas, set_up),
        cmocka_unit_test_setup(test_text_and_back, set_up),
        cmocka_unit_test_setup(test_mistakes_say_what_is_allowed, set_up),
        cmocka_unit_test_setup(test_check_of_what_came_over_the_wire, set_up),
        cmocka_unit_test_setup(test_only_what_is_given_is_applied, set_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
