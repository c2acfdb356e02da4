/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/output.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/text.h"

#define COLUMNS_MAX 16
#define COLUMN_MIN  10 /* what a cut column keeps */
#define GAP         2

struct table_cell {
    char *text;
    enum tone tone;
};

struct table {
    const struct table_column *columns;
    size_t column_count;
    struct table_cell *cells;
    size_t cell_count;
    size_t cell_max;
};

struct table *table_new(const struct table_column *columns, size_t column_count)
{
    struct table *table = tool_alloc(NULL, sizeof(*table));
    *table = (struct table){.columns = columns, .column_count = column_count};
    if (column_count > COLUMNS_MAX)
        abort();
    return table;
}

struct table *table_free(struct table *table)
{
    if (!table)
        return NULL;
    for (size_t i = 0; i < table->cell_count; i++)
        free(table->cells[i].text);
    free(table->cells);
    free(table);
    return NULL;
}

void table_add(struct table *table, enum tone tone, const char *format, ...)
{
    _cleanup_free_ char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (size < 0) {
        text = NULL;
        tool_alloc(NULL, SIZE_MAX);
    }
    if (table->cell_count == table->cell_max) {
        table->cell_max = table->cell_max ? 2 * table->cell_max : 64;
        table->cells = tool_alloc(table->cells, table->cell_max * sizeof(*table->cells));
    }
    table->cells[table->cell_count++] =
        (struct table_cell){.text = text_escaped(text, (size_t)size), .tone = tone};
}

void table_add_count(struct table *table, enum tone tone, uint64_t count)
{
    char buffer[TEXT_NUMBER_SIZE];
    table_add(table, tone, "%s", text_count(buffer, count));
}

void table_add_bytes(struct table *table, enum tone tone, uint64_t bytes)
{
    char buffer[TEXT_NUMBER_SIZE];
    table_add(table, tone, "%s", text_bytes(buffer, bytes));
}

static bool color_on(const struct tool *tool)
{
    if (tool->color != TOOL_COLOR_AUTO)
        return tool->color == TOOL_COLOR_ALWAYS;
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    return isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0 && !(no_color && *no_color);
}

const char *output_tone(const struct tool *tool, enum tone tone)
{
    static const char *const sequences[] = {[TONE_PLAIN] = "",
                                            [TONE_BOLD] = "\033[1m",
                                            [TONE_DIM] = "\033[2m",
                                            [TONE_BAD] = "\033[31m",
                                            [TONE_NAME] = "\033[36m"};
    return color_on(tool) ? sequences[tone] : "";
}

const char *output_tone_end(const struct tool *tool, enum tone tone)
{
    return tone != TONE_PLAIN && color_on(tool) ? "\033[0m" : "";
}

/* 0: no limit. */
static size_t terminal_width(void)
{
    struct winsize size;
    if (!isatty(STDOUT_FILENO) || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
        return 0;
    return size.ws_col;
}

/* Cut the widest of the columns that may be cut, until the table fits. If it cannot, it is left as it is: cut names
 * in lines that wrap help nobody. */
static void fit(const struct table *table, size_t *widths, size_t width_max)
{
    size_t cut[COLUMNS_MAX], sum = GAP * (table->column_count - 1);
    for (size_t i = 0; i < table->column_count; i++) {
        cut[i] = widths[i];
        sum += widths[i];
    }
    for (; sum > width_max; sum--) {
        size_t widest = SIZE_MAX;
        for (size_t i = 0; i < table->column_count; i++)
            if (table->columns[i].shrink && cut[i] > COLUMN_MIN &&
                (widest == SIZE_MAX || cut[i] > cut[widest]))
                widest = i;
        if (widest == SIZE_MAX)
            return;
        cut[widest]--;
    }
    for (size_t i = 0; i < table->column_count; i++)
        widths[i] = cut[i];
}

static void print_cell(const struct table *table, const struct tool *tool, size_t column, size_t width,
                       const char *text, enum tone tone)
{
    size_t size = strlen(text);
    bool last = column + 1 == table->column_count;
    bool cut = size > width;
    size_t shown = cut ? width - 3 : size;
    while (cut && shown > 0 && ((unsigned char)text[shown] & 0xc0) == 0x80)
        shown--; /* not within a character */
    size_t pad = cut || size >= width ? 0 : width - size;
    if (table->columns[column].right)
        printf("%*s", (int)pad, "");
    printf("%s%.*s%s%s", output_tone(tool, tone), (int)shown, text, cut ? "..." : "",
           output_tone_end(tool, tone));
    if (last)
        putchar('\n');
    else
        printf("%*s", (int)((table->columns[column].right ? 0 : pad) + GAP), "");
}

static size_t next_column(const struct table *table, size_t column)
{
    return column + 1 < table->column_count ? column + 1 : 0;
}

void table_print(const struct table *table, const struct tool *tool)
{
    size_t widths[COLUMNS_MAX] = {0};
    for (size_t i = 0; i < table->column_count; i++)
        widths[i] = tool->no_header ? 0 : strlen(table->columns[i].title);
    for (size_t i = 0, column = 0; i < table->cell_count; i++, column = next_column(table, column)) {
        size_t size = strlen(table->cells[i].text);
        if (size > widths[column])
            widths[column] = size;
    }
    size_t width_max = terminal_width();
    if (width_max > 0)
        fit(table, widths, width_max);
    if (!tool->no_header)
        for (size_t i = 0; i < table->column_count; i++)
            print_cell(table, tool, i, widths[i], table->columns[i].title, TONE_BOLD);
    for (size_t i = 0, column = 0; i < table->cell_count; i++, column = next_column(table, column))
        print_cell(table, tool, column, widths[column], table->cells[i].text, table->cells[i].tone);
}

static json_t *checked(json_t *value)
{
    if (!value)
        tool_alloc(NULL, SIZE_MAX);
    return value;
}

json_t *output_string(const char *text)
{
    size_t size = strlen(text);
    if (text_is_utf8(text, size))
        return checked(json_stringn(text, size));
    _cleanup_free_ char *escaped = text_escaped(text, size);
    return checked(json_string(escaped));
}

json_t *output_number(uint64_t number)
{
    return checked(json_integer(number > INT64_MAX ? INT64_MAX : (json_int_t)number));
}

void output_set(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, checked(value)) < 0)
        tool_alloc(NULL, SIZE_MAX);
}

void output_append(json_t *array, json_t *value)
{
    if (json_array_append_new(array, checked(value)) < 0)
        tool_alloc(NULL, SIZE_MAX);
}

void output_set_bytes(json_t *object, const char *key, const void *data, size_t size)
{
    bool text = text_is_utf8(data, size);
    output_set(object, "encoding", json_string(text ? "utf-8" : "base64"));
    if (text) {
        output_set(object, key, json_stringn(size ? data : "", size));
    } else {
        _cleanup_free_ char *encoded = text_base64(data, size);
        output_set(object, key, json_string(encoded));
    }
}

static void dump(json_t *value, size_t flags)
{
    _cleanup_free_ char *text = json_dumps(value, flags);
    json_decref(value);
    if (!text)
        tool_alloc(NULL, SIZE_MAX);
    puts(text);
}

void output_document(json_t *document)
{
    dump(document, JSON_INDENT(2));
}

void output_line(json_t *object)
{
    dump(object, JSON_COMPACT);
}
