/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines of results, as text, as JSON lines, as a Markdown table.
 */
#include <jansson.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench/bench.h"

static const char *target_text(const struct bench_line *line, char *text, size_t size)
{
    switch (line->row->kind) {
    case BENCH_RATIO_MIN:
        snprintf(text, size, ">= %.4g x", line->row->target);
        break;
    case BENCH_RATIO_MAX:
        snprintf(text, size, "<= %.4g x", line->row->target);
        break;
    case BENCH_VALUE_MIN:
        snprintf(text, size, ">= %.4g", line->row->target);
        break;
    case BENCH_VALUE_MAX:
        snprintf(text, size, "<= %.4g", line->row->target);
        break;
    case BENCH_INFO:
        snprintf(text, size, "%s", "");
        break;
    }
    return text;
}

static bool judged(const struct bench_line *line, bool *ret_pass)
{
    const struct bench_row *row = line->row;
    double figure = row->kind == BENCH_RATIO_MIN || row->kind == BENCH_RATIO_MAX ? line->ratio : line->value;

    if (row->kind == BENCH_INFO || isnan(figure))
        return false;
    *ret_pass = row->kind == BENCH_RATIO_MIN || row->kind == BENCH_VALUE_MIN ? figure >= row->target
                                                                             : figure <= row->target;
    return true;
}

const char *bench_line_mark(const struct bench_line *line)
{
    bool pass;

    if (judged(line, &pass))
        return pass ? "ok" : *line->waived ? "(short)" : "short";
    return isnan(line->value) ? "not measured" : "";
}

bool bench_line_excused(const struct bench_line *line)
{
    bool pass;

    return *line->waived && (judged(line, &pass) ? !pass : isnan(line->value));
}

static const char *number(char *text, size_t size, double value)
{
    if (isnan(value))
        snprintf(text, size, "-");
    else if (fabs(value) >= 1000)
        snprintf(text, size, "%.0f", value);
    else
        snprintf(text, size, "%.3g", value);
    return text;
}

void bench_table_head(FILE *file)
{
    fprintf(file, "%-40s %9s %-9s  %-24s %9s  %6s  %-9s  %-8s  %s\n", "measurement", "value", "unit", "limit",
            "limit is", "ratio", "target", "mark", "cores");
}

void bench_table_line(FILE *file, const struct bench_line *line)
{
    char value[32], limit[32], ratio[32], target[32];

    fprintf(file, "%-40s %9s %-9s  %-24s %9s  %6s  %-9s  %-8s  %s\n", line->row->name,
            number(value, sizeof(value), line->value), line->row->unit,
            line->row->limit_name ? line->row->limit_name : "",
            line->row->limit_name ? number(limit, sizeof(limit), line->limit) : "",
            isnan(line->ratio) ? "" : number(ratio, sizeof(ratio), line->ratio),
            target_text(line, target, sizeof(target)), bench_line_mark(line),
            line->of->flags & BENCH_PROBED ? bench_state_word(line->state) : "");
    fflush(file);
}

static void set_number(json_t *object, const char *key, double value)
{
    json_object_set_new(object, key, isnan(value) ? json_null() : json_real(value));
}

static json_t *line_object(const struct bench_line *line)
{
    const struct bench_row *row = line->row;
    json_t *object = json_object();
    char target[32];
    bool pass;

    json_object_set_new(object, "name", json_string(row->name));
    json_object_set_new(object, "case", json_string(line->of->name));
    set_number(object, "value", line->value);
    json_object_set_new(object, "unit", json_string(row->unit));
    json_object_set_new(object, "limit_name", row->limit_name ? json_string(row->limit_name) : json_null());
    set_number(object, "limit", line->limit);
    set_number(object, "ratio", line->ratio);
    target_text(line, target, sizeof(target));
    json_object_set_new(object, "target", *target ? json_string(target) : json_null());
    json_object_set_new(object, "pass", judged(line, &pass) ? json_boolean(pass) : json_null());
    json_object_set_new(object, "waived", bench_line_excused(line) ? json_string(line->waived) : json_null());
    json_object_set_new(object, "repetitions", json_integer(line->reps));
    json_object_set_new(object, "disturbed", json_integer(line->disturbed));
    json_object_set_new(object, "cores",
                        line->of->flags & BENCH_PROBED ? json_string(bench_state_word(line->state))
                                                       : json_null());
    set_number(object, "cache_line_ns", line->line_ns);
    json_object_set_new(object, "quick", json_boolean(bench.quick));
    return object;
}

static int finish(FILE *file, const char *path)
{
    bool bad = ferror(file) != 0;

    if (fclose(file) != 0 || bad) {
        fprintf(stderr, "ipc-bench: writing %s: %m\n", path);
        return -1;
    }
    return 0;
}

int bench_write_json(const char *path, const struct bench_line *lines, size_t count)
{
    FILE *file = fopen(path, "we");

    if (!file) {
        fprintf(stderr, "ipc-bench: %s: %m\n", path);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        json_t *object = line_object(&lines[i]);
        json_dumpf(object, file, JSON_COMPACT | JSON_REAL_PRECISION(6));
        json_decref(object);
        fputc('\n', file);
    }
    return finish(file, path);
}

static void markdown_machine(FILE *file)
{
    struct utsname name;
    char model[128] = "unknown processor", line[256];
    FILE *info = fopen("/proc/cpuinfo", "re");

    while (info && fgets(line, sizeof(line), info)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon) {
            colon[strcspn(colon, "\n")] = 0;
            snprintf(model, sizeof(model), "%s", colon + 2);
            break;
        }
    }
    if (info)
        fclose(info);
    uname(&name);
    fprintf(file, "%ld cpus (%s), Linux %s, %u repetitions%s.\n\n", sysconf(_SC_NPROCESSORS_ONLN), model,
            name.release, bench.reps, bench.quick ? ", quick (a tenth of the messages)" : "");
}

int bench_write_markdown(const char *path, const struct bench_line *lines, size_t count)
{
    FILE *file = fopen(path, "we");
    char value[32], limit[32], ratio[32], target[32];

    if (!file) {
        fprintf(stderr, "ipc-bench: %s: %m\n", path);
        return -1;
    }
    markdown_machine(file);
    fputs("| measurement | value | limit | ratio | target | mark | cores |\n"
          "| --- | --- | --- | --- | --- | --- | --- |\n",
          file);
    for (size_t i = 0; i < count; i++) {
        const struct bench_line *line = &lines[i];
        fprintf(file, "| %s | %s %s | %s%s%s%s | %s | %s | %s | %s |\n", line->row->name,
                number(value, sizeof(value), line->value), line->row->unit,
                line->row->limit_name ? line->row->limit_name : "", line->row->limit_name ? " (" : "",
                line->row->limit_name ? number(limit, sizeof(limit), line->limit) : "",
                line->row->limit_name ? ")" : "",
                isnan(line->ratio) ? "" : number(ratio, sizeof(ratio), line->ratio),
                target_text(line, target, sizeof(target)), bench_line_mark(line),
                line->of->flags & BENCH_PROBED ? bench_state_word(line->state) : "");
    }
    fputc('\n', file);
    for (size_t i = 0; i < count; i++)
        if (bench_line_excused(&lines[i]))
            fprintf(file, "- %s: %s.\n", lines[i].row->name, lines[i].waived);
    return finish(file, path);
}
