/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of outside peers: what is taken, what is refused, and that properties come back as they went.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "broker/gateways/zmq/wire.h"

static struct wire_frame frame(const char *text)
{
    return (struct wire_frame){text, strlen(text)};
}

static int parse(struct wire_message *message, const char **text, size_t count, const char *const *texts)
{
    struct wire_frame frames[8];

    for (size_t i = 0; i < count; i++)
        frames[i] = frame(texts[i]);
    *text = NULL;
    return wire_parse(frames, count, message, text);
}

static void test_messages(void **state)
{
    struct wire_message message;
    const char *text;

    assert_int_equal(parse(&message, &text, 6, (const char *[]){"IPC1", "SEND", "7", "tasks", "{}", "body"}),
                     0);
    assert_int_equal(message.command, WIRE_SEND);
    assert_string_equal(message.name, "tasks");
    assert_int_equal(message.body.size, 4);
    assert_memory_equal(message.id.data, "7", 1);
    assert_int_equal(parse(&message, &text, 2, (const char *[]){"IPC1", "PING"}), 0);
    assert_int_equal(message.command, WIRE_PING);
    assert_int_equal(message.id.size, 0);
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "SUB", "s", "a.*.>"}), 0);

    for (size_t command = 0; command < WIRE_COMMAND_COUNT; command++) {
        const char *word = wire_command_word((enum wire_command)command);
        assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", word, "", "a.b"}), 0);
        assert_int_equal(message.command, command);
    }
}

static void test_bad_messages(void **state)
{
    static char longest[300];
    struct wire_message message;
    const char *text;

    memset(longest, 'x', sizeof(longest) - 1);
    assert_int_equal(parse(&message, &text, 1, (const char *[]){"IPC1"}), -EPROTO);
    assert_int_equal(parse(&message, &text, 7, (const char *[]){"IPC1", "PING", "", "", "", "", ""}),
                     -EPROTO);
    assert_int_equal(parse(&message, &text, 3, (const char *[]){"IPC2", "PING", "7"}), -EPROTONOSUPPORT);
    assert_int_equal(message.id.size, 1); /* to answer by */
    assert_int_equal(parse(&message, &text, 3, (const char *[]){"IPC", "PING", "7"}), -EPROTONOSUPPORT);
    assert_int_equal(parse(&message, &text, 3, (const char *[]){"IPC1", "PINGS", "7"}), -EOPNOTSUPP);
    assert_int_equal(parse(&message, &text, 3, (const char *[]){"IPC1", "ping", "7"}), -EOPNOTSUPP);
    assert_int_equal(parse(&message, &text, 3, (const char *[]){"IPC1", "PING", longest}), -EINVAL);
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "PUB", "", longest}), -EINVAL);
    longest[256] = '\0'; /* one more than a name may have; an id of 255 is fine */
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "PUB", "", longest}), -EINVAL);
    longest[255] = '\0';
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "PUB", longest, longest}), 0);
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "PUB", "", "a.*"}), -EINVAL);
    assert_int_equal(parse(&message, &text, 4, (const char *[]){"IPC1", "SUB", "", "a.>.b"}), -EINVAL);
    assert_int_equal(parse(&message, &text, 2, (const char *[]){"IPC1", "SEND"}), -EINVAL);
    assert_non_null(text);

    const struct wire_frame nul[] = {frame("IPC1"), frame("PUB"), frame(""), {"a\0b", 3}};
    assert_int_equal(wire_parse(nul, 4, &message, &text), -EINVAL);
}

static void test_plain(void **state)
{
    const struct wire_frame frames[] = {frame("a.b"), frame("{\"priority\":3}"), frame("body"),
                                        frame("more")};
    struct wire_message message;
    const char *text;

    assert_int_equal(wire_parse_plain(frames, 3, &message, &text), 0);
    assert_int_equal(message.properties.size, 14);
    assert_memory_equal(message.body.data, "body", 4);
    assert_int_equal(wire_parse_plain(frames, 2, &message, &text), 0);
    assert_int_equal(message.properties.size, 0);
    assert_int_equal(wire_parse_plain(frames, 1, &message, &text), -EPROTO);
    assert_int_equal(wire_parse_plain(frames, 4, &message, &text), -EPROTO);
    assert_int_equal(wire_parse_plain(frames + 1, 2, &message, &text), 0); /* printable: a name */
}

static int properties(struct wire_properties *ret, const char *json)
{
    const struct wire_frame given = frame(json);
    const char *text = NULL;
    int result = wire_properties_parse(&given, ret, &text);

    assert_true((result == 0) == (text == NULL) || json[0] == '\0');
    return result;
}

static void test_properties(void **state)
{
    struct wire_properties given;

    assert_int_equal(properties(&given, ""), 0);
    assert_int_equal(given.header_count, 0);
    wire_properties_free(&given);
    assert_int_equal(properties(&given,
                                "{\"content_type\":\"text/plain\",\"priority\":9,\"dead\":true,\"code\":-4,"
                                "\"headers\":{\"unit\":\"C\",\"raw\":{\"base64\":\"AAH/\"},\"none\":\"\"}}"),
                     0);
    assert_string_equal(given.content_type, "text/plain");
    assert_int_equal(given.priority, 9);
    assert_int_equal(given.code, -4);
    assert_true(given.dead);
    assert_int_equal(given.header_count, 3);
    assert_string_equal(given.headers[0].name, "unit");
    assert_int_equal(given.headers[1].value_size, 3);
    assert_memory_equal(given.headers[1].value, "\0\1\xff", 3);
    assert_int_equal(given.headers[2].value_size, 0);
    wire_properties_free(&given);

    static const char *const bad[] = {"{",
                                      "[]",
                                      "7",
                                      "{\"priority\":10}",
                                      "{\"priority\":-1}",
                                      "{\"priority\":\"1\"}",
                                      "{\"priority\":1.5}",
                                      "{\"prioriti\":1}",
                                      "{\"dead\":1}",
                                      "{\"credit\":99999999999999999999}",
                                      "{\"headers\":[]}",
                                      "{\"headers\":{\"\":\"x\"}}",
                                      "{\"headers\":{\"a\":1}}",
                                      "{\"headers\":{\"a\":{\"base64\":\"A\"}}}",
                                      "{\"headers\":{\"a\":{\"base64\":\"A===\"}}}",
                                      "{\"headers\":{\"a\":{\"base64\":\"AA=A\"}}}",
                                      "{\"headers\":{\"a\":{\"hex\":\"00\"}}}",
                                      "{\"dead\":true,\"dead\":true}",
                                      "{\"name\":\"a\\u0000b\"}",
                                      "{\"headers\":{\"a\":[[[[[[]]]]]]}}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_true(properties(&given, bad[i]) < 0);
}

static void test_limits(void **state)
{
    struct wire_text text = {0};
    struct wire_properties given;
    const char *sentence;
    char name[8];

    for (unsigned count = 64; count <= 65; count++) {
        wire_text_begin(&text);
        for (unsigned i = 0; i < count; i++)
            wire_text_header(&text, name, (size_t)snprintf(name, sizeof(name), "h%u", i), "v", 1);
        const struct wire_frame made = wire_text_end(&text);
        assert_int_equal(wire_properties_parse(&made, &given, &sentence), count == 64 ? 0 : -EINVAL);
        wire_properties_free(&given);
    }
    char *large = calloc(1, WIRE_PROPERTIES_MAX + 1);
    assert_non_null(large);
    memset(large, ' ', WIRE_PROPERTIES_MAX + 1);
    large[0] = '{';
    large[1] = '}';
    struct wire_frame whole = {large, WIRE_PROPERTIES_MAX};
    assert_int_equal(wire_properties_parse(&whole, &given, &sentence), 0);
    wire_properties_free(&given);
    whole.size++;
    assert_int_equal(wire_properties_parse(&whole, &given, &sentence), -E2BIG);
    free(large);
    wire_text_free(&text);
}

/* What we write others read: text as text, bytes as base64. */
static void test_text(void **state)
{
    static const struct {
        const char *value;
        size_t size;
        bool text;
    } values[] = {{"", 0, true},
                  {"plain \"quoted\" \\ \n", 18, true},
                  {"caf\xc3\xa9", 5, true},
                  {"\xff", 1, false},
                  {"a\0b", 3, false},
                  {"\xc0\x80", 2, false},
                  {"\xed\xa0\x80", 3, false},
                  {"\xf4\x90\x80\x80", 4, false},
                  {"\xf0\x9f\x98\x80", 4, true},
                  {"\xc3", 1, false},
                  {"ab\xff", 3, false}};
    struct wire_text text = {0};
    struct wire_properties given;
    const char *sentence;

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        wire_text_begin(&text);
        wire_text_string(&text, "content_type", "x", 1);
        wire_text_number(&text, "credit", 1000000);
        wire_text_signed(&text, "code", -17);
        wire_text_header(&text, "value", 5, values[i].value, values[i].size);
        const struct wire_frame made = wire_text_end(&text);
        assert_int_equal(wire_properties_parse(&made, &given, &sentence), 0);
        assert_int_equal(given.credit, 1000000);
        assert_int_equal(given.code, -17);
        assert_int_equal(given.headers[0].value_size, values[i].size);
        assert_memory_equal(given.headers[0].value, values[i].value, values[i].size);
        assert_true((memmem(made.data, made.size, "base64", 6) == NULL) == values[i].text);
        wire_properties_free(&given);
    }
    wire_text_begin(&text);
    const struct wire_frame empty = wire_text_end(&text);
    assert_memory_equal(empty.data, "{}", 2);
    wire_text_free(&text);
}

static void test_ranges(void **state)
{
    static const struct {
        const char *text;
        int result;
        uint64_t first, last;
    } ranges[] = {{"17", 0, 17, 17},
                  {"12-17", 0, 12, 17},
                  {"0", 0, 0, 0},
                  {"", -EINVAL, 0, 0},
                  {"-", -EINVAL, 0, 0},
                  {"1-", -EINVAL, 0, 0},
                  {"-1", -EINVAL, 0, 0},
                  {"2-1", -EINVAL, 0, 0},
                  {"1-2-3", -EINVAL, 0, 0},
                  {"x", -EINVAL, 0, 0},
                  {"99999999999999999999999", -EINVAL, 0, 0}};

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        const struct wire_frame given = frame(ranges[i].text);
        uint64_t first = 0, last = 0;
        assert_int_equal(wire_range_parse(&given, &first, &last), ranges[i].result);
        assert_int_equal(first, ranges[i].first);
        assert_int_equal(last, ranges[i].last);
    }
}

static void test_covers(void **state)
{
    static const char *const prefixes[][2] = {
        {"", ">"},   {"pl", ">"},   {"plant.", "plant.>"}, {"plant.7", "plant.>"}, {"plant.7.x", "plant.7.>"},
        {".a", ">"}, {"a..b", ">"}, {"a b.", ">"}};
    char cover[256], longest[300];

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        wire_prefix_cover(prefixes[i][0], strlen(prefixes[i][0]), cover);
        assert_string_equal(cover, prefixes[i][1]);
    }
    memset(longest, 'x', sizeof(longest));
    longest[254] = '.';
    wire_prefix_cover(longest, sizeof(longest), cover);
    assert_string_equal(cover, ">");
    assert_true(wire_cover_contains(">", "a.>"));
    assert_true(wire_cover_contains("a.>", "a.b.>"));
    assert_true(wire_cover_contains("a.>", "a.>"));
    assert_false(wire_cover_contains("a.b.>", "a.>"));
    assert_false(wire_cover_contains("a.>", "ab.>"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_messages), cmocka_unit_test(test_bad_messages),
                                       cmocka_unit_test(test_plain),    cmocka_unit_test(test_properties),
                                       cmocka_unit_test(test_limits),   cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_ranges),   cmocka_unit_test(test_covers)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
