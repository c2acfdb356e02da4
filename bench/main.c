/* SPDX-License-Identifier: Apache-2.0
 *
 * ipc-bench: measures libipc and its broker against limits that are measured in the same run.
 */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/syscalls.h"

#define LINES_MAX     256u
/* No further repetitions of a case that took so long: a busy machine must not stretch a run without end. */
#define CASE_BUDGET_S (bench.quick ? 8.0 : 35.0)

struct bench_settings bench = {.reps = 0};

static const struct bench_case *const cases[] = {
    &bench_case_limits,
    &bench_case_memory,
    &bench_case_throughput,
    &bench_case_roundtrip,
    &bench_case_adaptive,
    &bench_case_large,
    &bench_case_fanout,
    &bench_case_publisher,
    &bench_case_syscalls,
    &bench_case_idle,
    &bench_case_scale,
    &bench_case_call,
    &bench_case_queue,
    &bench_case_queue_latency,
    &bench_case_queue_memory,
    &bench_case_resume,
    &bench_case_flood,
    &bench_case_gateway_mq,
    &bench_case_gateway_mq_idle,
    &bench_case_gateway_zmq,
    &bench_case_gateway_zmq_idle,
    &bench_case_peers,
    &bench_case_peers_queue,
};
#define CASE_COUNT (sizeof(cases) / sizeof(*cases))

static struct bench_line lines[LINES_MAX];
static size_t line_count;
static unsigned states[3]; /* repetitions kept, by placement */
static char waived[BENCH_VALUES_MAX][160];

static struct {
    bool selected[CASE_COUNT];
    bool any;
    bool list;
    const char *json, *markdown;
    unsigned long traced;
} options;

void bench_waive(unsigned value, const char *format, ...)
{
    if (value >= BENCH_VALUES_MAX || *waived[value])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(waived[value], sizeof(waived[value]), format, arguments);
    va_end(arguments);
}

/* ---- repetitions ----------------------------------------------------------------------------------------- */

struct repetition {
    enum bench_state state;
    bool disturbed;
    double line_ns;
    double values[BENCH_VALUES_MAX];
};

static int measure_once(const struct bench_case *of, struct repetition *ret, bool *ret_straddled)
{
    double before_ns = BENCH_NONE, after_ns = BENCH_NONE;
    enum bench_state before = BENCH_STATE_UNKNOWN, after = BENCH_STATE_UNKNOWN;

    bool first = false, second = false;

    for (size_t i = 0; i < BENCH_VALUES_MAX; i++)
        ret->values[i] = BENCH_NONE;
    if (of->flags & BENCH_PROBED)
        before = bench_probe(&before_ns, &first);
    if (of->run(ret->values) < 0)
        return -1;
    if (of->flags & BENCH_PROBED)
        after = bench_probe(&after_ns, &second);
    *ret_straddled = before != after || (of->flags & BENCH_PROBED && before == BENCH_STATE_UNKNOWN);
    ret->disturbed = first || second;
    ret->state = before;
    ret->line_ns = (before_ns + after_ns) / 2;
    return 0;
}

/* Repeat until one state has enough repetitions, or three times as many were tried. Returns how many count; they
 * come first. */
static unsigned measure(const struct bench_case *of, struct repetition *kept, unsigned *ret_thrown)
{
    static struct repetition all[3 * BENCH_REPS_MAX];
    unsigned wanted = of->flags & BENCH_ONCE ? 1 : bench.reps, count = 0, in_state[3] = {0}, failures = 0;
    unsigned thrown = 0, tries = wanted * 3;
    uint64_t start = bench_now_ns();

    for (unsigned i = 0; i < tries; i++) {
        if (count && (double)(bench_now_ns() - start) * 1e-9 > CASE_BUDGET_S)
            break;
        bool straddled = false;
        if (measure_once(of, &all[count], &straddled) < 0) {
            if (++failures == 2)
                break;
            continue;
        }
        if (straddled) {
            thrown++;
            continue;
        }
        if (++in_state[all[count++].state] == wanted)
            break;
    }
    enum bench_state best = BENCH_STATE_UNKNOWN;
    for (unsigned state = 0; state < 3; state++)
        if (in_state[state] > in_state[best])
            best = (enum bench_state)state;
    unsigned found = 0;
    for (unsigned i = 0; i < count && found < wanted; i++)
        if (all[i].state == best)
            kept[found++] = all[i];
    *ret_thrown = thrown + count - found;
    return found;
}

static void make_line(struct bench_line *line, const struct bench_case *of, const struct bench_row *row,
                      const struct repetition *kept, unsigned count)
{
    double values[BENCH_REPS_MAX] = {0}, limits[BENCH_REPS_MAX] = {0};
    double ratios[BENCH_REPS_MAX] = {0}, line_ns[BENCH_REPS_MAX] = {0};
    unsigned disturbed = 0;

    for (unsigned i = 0; i < count; i++) {
        values[i] = kept[i].values[row->value] * row->scale;
        limits[i] = row->limit >= 0 ? kept[i].values[row->limit] * row->scale : row->limit_fixed;
        ratios[i] = row->limit_name && limits[i] != 0 ? values[i] / limits[i] : BENCH_NONE;
        line_ns[i] = kept[i].line_ns;
        disturbed += kept[i].disturbed;
    }
    *line = (struct bench_line){.of = of,
                                .row = row,
                                .value = bench_median(values, count),
                                .limit = bench_median(limits, count),
                                .ratio = bench_median(ratios, count),
                                .reps = count,
                                .disturbed = disturbed,
                                .state = count ? kept[0].state : BENCH_STATE_UNKNOWN,
                                .line_ns = bench_median(line_ns, count)};
    snprintf(line->waived, sizeof(line->waived), "%s", waived[row->value]);
}

static int run_case(const struct bench_case *of)
{
    static struct repetition kept[BENCH_REPS_MAX];
    unsigned thrown = 0, disturbed = 0;
    uint64_t start = bench_now_ns();

    memset(waived, 0, sizeof(waived));
    unsigned count = measure(of, kept, &thrown);
    printf("\n%s: %s (%u repetitions, %.0f s%s", of->name, of->what, count,
           (double)(bench_now_ns() - start) * 1e-9, thrown ? "" : ")\n");
    if (thrown)
        printf("; %u thrown away: the cores changed place, or were busy)\n", thrown);
    for (unsigned i = 0; i < count; i++) {
        states[kept[i].state]++;
        disturbed += kept[i].disturbed;
    }
    if (disturbed)
        printf("  %u of %u repetitions shared the cpus with other processes: noise\n", disturbed, count);
    if (of->flags & BENCH_PROBED && count < bench.reps && count)
        printf("  only %u of %u repetitions: the cores changed place too often, or were busy\n", count,
               bench.reps);
    if (!count) {
        printf("  %s\n", thrown ? "no repetition stayed within one placement of the cores"
                                : "failed: the reason is above");
        return thrown ? 0 : -1;
    }
    for (size_t i = 0; i < of->row_count && line_count < LINES_MAX; i++) {
        make_line(&lines[line_count], of, &of->rows[i], kept, count);
        bench_table_line(stdout, &lines[line_count++]);
    }
    return 0;
}

static void summary(void)
{
    unsigned ok = 0, is_short = 0, excused = 0, missing = 0;

    for (size_t i = 0; i < line_count; i++) {
        const char *mark = bench_line_mark(&lines[i]);
        ok += strcmp(mark, "ok") == 0;
        is_short += strcmp(mark, "short") == 0;
        excused += strcmp(mark, "(short)") == 0;
        missing += strcmp(mark, "not measured") == 0;
    }
    printf("\n%u targets met, %u short, %u short for a reason that is given, %u figures not measured\n", ok,
           is_short, excused, missing);
    if (states[BENCH_STATE_ONE_CORE] && states[BENCH_STATE_TWO_CORES])
        printf("The cores changed place between cases: compare within a case only.\n");
    else if (states[BENCH_STATE_ONE_CORE])
        printf(
            "All in the state 'one core' (two threads of one): what two cores do did not show in this run.\n");
    for (size_t i = 0; i < line_count; i++)
        if (bench_line_excused(&lines[i]))
            printf("%s: %s\n", lines[i].row->name, lines[i].waived);
}

/* ---- the broker ------------------------------------------------------------------------------------------ */

#define INSIDE "IPC_BENCH_INSIDE"

static bool find_parent_program(char *path, size_t size)
{
    const char *given = getenv("IPCD_RUN_BIN");
    char self[PATH_MAX];

    if (given && *given) {
        snprintf(path, size, "%s", given);
        return access(path, X_OK) == 0;
    }
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length <= 0)
        return false;
    self[length] = 0;
    char *slash = strrchr(self, '/');
    if (!slash)
        return false;
    *slash = 0;
    int wanted = snprintf(path, size, "%s/../broker/ipcd-run", self);
    return wanted > 0 && (size_t)wanted < size && access(path, X_OK) == 0;
}

/* Start again as the child of a private broker. Returns only if that is not possible. */
static void run_under_broker(int argc, char **argv)
{
    char path[PATH_MAX];

    if (getenv(INSIDE))
        return;
    if (!find_parent_program(path, sizeof(path))) {
        fprintf(stderr,
                "ipc-bench: no ipcd-run beside this program's build folder (IPCD_RUN_BIN names another)\n");
        return;
    }
    char **arguments = bench_alloc(((size_t)argc + 6) * sizeof(*arguments));
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[length > 0 ? length : 0] = 0;
    int n = 0;
    arguments[n++] = path;
    arguments[n++] = (char[]){"--private"};
    arguments[n++] = (char[]){"--log-level=warning"};
    arguments[n++] = (char[]){"--"};
    arguments[n++] = self;
    for (int i = 1; i < argc; i++)
        arguments[n++] = argv[i];
    arguments[n] = NULL;
    setenv(INSIDE, "1", 1);
    fflush(NULL);
    execv(path, arguments);
    fprintf(stderr, "ipc-bench: %s: %s\n", path, strerror(errno));
    unsetenv(INSIDE);
    free(arguments);
}

/* ---- arguments ------------------------------------------------------------------------------------------- */

enum { OPTION_TRACED = 256 };

static const struct argp_option option_table[] = {
    {"only", 'o', "NAME,...", 0, "Run these cases alone (see --list)", 0},
    {"list", 'l', NULL, 0, "List the cases and end", 0},
    {"reps", 'r', "N", 0, "Repetitions of each case (5; quick: 3)", 0},
    {"quick", 'q', NULL, 0, "A tenth of the messages: to see that all works, not to quote", 0},
    {"json", 'j', "FILE", 0, "Write one JSON object per measurement, one a line", 0},
    {"markdown", 'm', "FILE", 0, "Write the table for docs/performance.md", 0},
    {"peers", 'p', NULL, 0, "Measure other systems, too", 0},
    {"traced", OPTION_TRACED, "MILLISECONDS", OPTION_HIDDEN, NULL, 0},
    {0},
};

static bool parse_number(const char *text, unsigned long max, unsigned long *ret)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (errno || end == text || *end || !number || number > max)
        return false;
    *ret = number;
    return true;
}

static void select_cases(struct argp_state *state, const char *list)
{
    /* A copy: the arguments are handed on when the broker starts this program again. */
    char *copy = strdup(list), *rest = copy;

    for (char *name; (name = strsep(&rest, ",")) != NULL;) {
        size_t i = 0;
        while (i < CASE_COUNT && strcmp(cases[i]->name, name) != 0)
            i++;
        if (i == CASE_COUNT)
            argp_error(state, "there is no case '%s' (--list shows them)", name);
        options.selected[i] = options.any = true;
    }
    free(copy);
}

static error_t parse_option(int key, char *argument, struct argp_state *state)
{
    unsigned long number = 0;

    switch (key) {
    case 'o':
        select_cases(state, argument);
        return 0;
    case 'l':
        options.list = true;
        return 0;
    case 'r':
        if (!parse_number(argument, BENCH_REPS_MAX, &number))
            argp_error(state, "--reps takes 1 to %u, not '%s'", BENCH_REPS_MAX, argument);
        bench.reps = (unsigned)number;
        return 0;
    case 'q':
        bench.quick = true;
        return 0;
    case 'j':
        options.json = argument;
        return 0;
    case 'm':
        options.markdown = argument;
        return 0;
    case 'p':
        bench.peers = true;
        return 0;
    case OPTION_TRACED:
        if (!parse_number(argument, 1000000000, &options.traced))
            argp_error(state, "--traced takes a number");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool wanted(size_t i)
{
    if (options.any)
        return options.selected[i];
    return !(cases[i]->flags & BENCH_PEER) || bench.peers;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {
        option_table,
        parse_option,
        NULL,
        "Measure libipc and its broker against limits measured in the same run.\v"
        "docs/performance.md tells how each figure comes about. A private broker is started for the run.",
        NULL,
        NULL,
        NULL};
    bool broker_needed = false;
    int result = 0;

    argp_parse(&parser, argc, argv, 0, NULL, NULL);
    if (options.list) {
        for (size_t i = 0; i < CASE_COUNT; i++)
            printf("%-12s %s\n", cases[i]->name, cases[i]->what);
        return 0;
    }
    if (options.traced)
        return bench_traced_run(options.traced) < 0;
    for (size_t i = 0; i < CASE_COUNT; i++)
        broker_needed |= wanted(i) && cases[i]->flags & BENCH_BROKER;
    if (broker_needed)
        run_under_broker(argc, argv);
    bool have_broker = getenv(INSIDE) != NULL;
    if (!bench.reps)
        bench.reps = bench.quick ? 3 : 5;

    bench_ticks_calibrate();
    bench_table_head(stdout);
    for (size_t i = 0; i < CASE_COUNT; i++) {
        if (!wanted(i))
            continue;
        if (cases[i]->flags & BENCH_BROKER && !have_broker) {
            printf("\n%s: not run, there is no broker\n", cases[i]->name);
            result = 1;
        } else if (run_case(cases[i]) < 0) {
            result = 1;
        }
    }
    summary();
    if (options.json && bench_write_json(options.json, lines, line_count) < 0)
        result = 1;
    if (options.markdown && bench_write_markdown(options.markdown, lines, line_count) < 0)
        result = 1;
    return result;
}
