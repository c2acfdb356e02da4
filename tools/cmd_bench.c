/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl bench: is this machine, with this broker, as fast as it should be? Two processes, one topic in each
 * direction: a stream at several sizes, then the same sizes to and fro. A self-test of a few seconds, not a
 * measurement to compare by: that is what bench/ is for.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/ipcctl.h"
#include "tools/output.h"
#include "tools/text.h"

#define SIZES_MAX      8
#define SAMPLES_MAX    100000
#define SIZE_MIN       16u
#define SIZE_MAX_BENCH ((uint64_t)(64u << 20))

/* The first bytes of each message. */
enum { KIND_STREAM = 1, KIND_REPORT = 2, KIND_PING = 3, KIND_END = 4 };
struct bench_head {
    uint64_t kind;
    uint64_t count; /* in the answer to KIND_REPORT: messages that arrived */
};

struct bench_arguments {
    struct tool *tool;
    uint64_t sizes[SIZES_MAX];
    size_t size_count;
    int64_t time_ns; /* of each figure */
};

struct bench_row {
    uint64_t size, messages, lost, elapsed_ns, round_trips, median_ns, p99_ns, worst_ns;
};

/* One process of the two. */
struct bench_side {
    ipc_connection *connection;
    ipc_publisher *publisher;
    ipc_subscription *subscription;
    unsigned char *buffer;
    size_t capacity;
    int64_t timeout_ns;
    int go_fd; /* one byte into it, once the broker is known to be there, lets the other process begin; or -1 */
};

enum { KEY_SIZES = 0x2000, KEY_TIME };

static const struct argp_option options[] = {
    {"sizes", KEY_SIZES, "BYTES,...", 0,
     "Sizes of messages, up to 8, from 16 bytes to 64 MiB (16,256,4096,65536,1048576)", 0},
    {"time", KEY_TIME, "SECONDS", 0, "How long to measure each figure (0.3)", 0},
    {0}};

static void parse_sizes(struct argp_state *state, struct bench_arguments *arguments, char *text)
{
    char *rest = text, *part;
    arguments->size_count = 0;
    while ((part = strsep(&rest, ",")) != NULL) {
        if (arguments->size_count == SIZES_MAX)
            argp_error(state, "--sizes: at most %d sizes", SIZES_MAX);
        arguments->sizes[arguments->size_count++] =
            tool_parse_number(state, "--sizes", part, SIZE_MIN, SIZE_MAX_BENCH);
    }
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct bench_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case KEY_SIZES:
        parse_sizes(state, arguments, value);
        return 0;
    case KEY_TIME:
        arguments->time_ns = tool_parse_seconds(state, "--time", value);
        if (arguments->time_ns == IPC_FOREVER || arguments->time_ns > INT64_C(600000000000))
            argp_error(state, "--time: more than 0 and at most 600 seconds");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int open_side(struct bench_side *side, const struct bench_arguments *arguments, pid_t pid, bool echo)
{
    const struct tool *tool = arguments->tool;
    char there[64], back[64];
    snprintf(there, sizeof(there), "ipcctl.bench.%d.there", (int)pid);
    snprintf(back, sizeof(back), "ipcctl.bench.%d.back", (int)pid);
    for (size_t i = 0; i < arguments->size_count; i++)
        if (arguments->sizes[i] > side->capacity)
            side->capacity = arguments->sizes[i];
    side->buffer = tool_alloc(NULL, side->capacity);
    memset(side->buffer, 'x', side->capacity);
    side->timeout_ns = tool_timeout(tool);

    int status = tool_connect(&side->connection, tool, echo ? "ipcctl bench (echo)" : "ipcctl bench");
    if (status != TOOL_OK)
        return status;
    if (side->go_fd >= 0 && write(side->go_fd, "", 1) != 1)
        return tool_fail(TOOL_FAILED, "pipe", "%s", strerror(errno));
    struct ipc_error error = {0};
    struct ipc_publisher_options publisher_options = IPC_PUBLISHER_OPTIONS_INIT;
    publisher_options.message_size_max = (uint32_t)side->capacity;
    /* Room for some of the largest, as one would choose for a stream. */
    uint64_t ring = 8 * (uint64_t)side->capacity;
    publisher_options.ring_size = (uint32_t)(ring < IPC_RING_SIZE_DEFAULT ? IPC_RING_SIZE_DEFAULT
                                             : ring > IPC_MAX_RING_SIZE   ? IPC_MAX_RING_SIZE
                                                                          : ring);
    publisher_options.block_max_ns = side->timeout_ns;
    int r = ipc_publisher_open(&side->publisher, side->connection, echo ? back : there, &publisher_options,
                               &error);
    if (r < 0)
        return tool_fail_error("publisher", r, &error);
    struct ipc_subscription_options subscription_options = IPC_SUBSCRIPTION_OPTIONS_INIT;
    subscription_options.slow = IPC_SLOW_BLOCK;
    r = ipc_subscription_open(&side->subscription, side->connection, echo ? there : back,
                              &subscription_options, &error);
    if (r == 0)
        r = ipc_publisher_wait_readers(side->publisher, 1, side->timeout_ns);
    if (r >= 0)
        r = ipc_subscription_wait_writers(side->subscription, 1, side->timeout_ns);
    return r < 0 ? tool_fail_error("peer", r, &error) : TOOL_OK;
}

static void close_side(struct bench_side *side)
{
    ipc_connection_close(side->connection);
    free(side->buffer);
}

static int send_kind(struct bench_side *side, uint64_t kind, uint64_t count, size_t size)
{
    struct bench_head head = {.kind = kind, .count = count};
    if (size < sizeof(head))
        size = sizeof(head);
    memcpy(side->buffer, &head, sizeof(head));
    return ipc_publisher_publish(side->publisher, side->buffer, size);
}

static int receive_head(struct bench_side *side, struct bench_head *ret, size_t *ret_size, int64_t timeout_ns)
{
    ssize_t size =
        ipc_subscription_receive(side->subscription, side->buffer, side->capacity, NULL, timeout_ns);
    if (size < 0)
        return (int)size;
    if ((size_t)size < sizeof(*ret))
        return -EPROTO;
    memcpy(ret, side->buffer, sizeof(*ret));
    *ret_size = (size_t)size;
    return 0;
}

/* The other process: counts the stream, sends pings back. */
static int echo(const struct bench_arguments *arguments, pid_t pid)
{
    struct bench_side side = {.go_fd = -1};
    struct bench_head head = {0};
    uint64_t count = 0;
    size_t size = 0;
    int status = open_side(&side, arguments, pid, true);
    while (status == TOOL_OK && head.kind != KIND_END) {
        int r = receive_head(&side, &head, &size, IPC_FOREVER);
        if (r == 0 && head.kind == KIND_STREAM)
            count++;
        if (r == 0 && head.kind == KIND_REPORT) {
            r = send_kind(&side, KIND_REPORT, count, sizeof(head));
            count = 0;
        }
        if (r == 0 && head.kind == KIND_PING)
            r = send_kind(&side, KIND_PING, 0, size);
        if (r < 0)
            status = tool_fail_error("echo", r, NULL);
    }
    close_side(&side);
    return status;
}

static int measure_stream(struct bench_side *side, struct bench_row *row, uint64_t time_ns)
{
    uint64_t start = tool_now_ns(), now = start;
    int r = 0;
    while (r == 0 && !tool_interrupted() && now - start < time_ns) {
        /* Look at the clock once in about 64 KiB. */
        for (uint64_t bytes = 0; bytes <= 65536 && r == 0; bytes += row->size) {
            r = send_kind(side, KIND_STREAM, 0, row->size);
            row->messages++;
        }
        now = tool_now_ns();
    }
    struct bench_head head = {0};
    size_t size = 0;
    if (r == 0)
        r = send_kind(side, KIND_REPORT, 0, sizeof(head));
    if (r == 0)
        r = receive_head(side, &head, &size, side->timeout_ns);
    row->elapsed_ns = tool_now_ns() - start; /* until all had arrived */
    row->lost = row->messages - head.count;
    return r;
}

static int by_time(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int measure_round_trip(struct bench_side *side, struct bench_row *row, uint64_t time_ns,
                              uint64_t *samples)
{
    uint64_t start = tool_now_ns(), now = start;
    size_t count = 0;
    while (!tool_interrupted() && now - start < time_ns && count < SAMPLES_MAX) {
        struct bench_head head;
        size_t size = 0;
        uint64_t before = tool_now_ns();
        int r = send_kind(side, KIND_PING, 0, row->size);
        if (r == 0)
            r = receive_head(side, &head, &size, side->timeout_ns);
        if (r < 0)
            return r;
        now = tool_now_ns();
        samples[count++] = now - before;
    }
    if (count == 0)
        return 0;
    qsort(samples, count, sizeof(*samples), by_time);
    row->round_trips = count;
    row->median_ns = samples[count / 2];
    row->p99_ns = samples[count * 99 / 100];
    row->worst_ns = samples[count - 1];
    return 0;
}

static uint64_t per_second(uint64_t count, uint64_t elapsed_ns)
{
    return elapsed_ns > 0 ? (uint64_t)((double)count * 1e9 / (double)elapsed_ns) : 0;
}

static void print_json(const struct bench_row *rows, size_t count)
{
    json_t *document = json_object(), *array = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *row = json_object();
        output_set(row, "size", output_number(rows[i].size));
        output_set(row, "messages", output_number(rows[i].messages));
        output_set(row, "elapsed_ns", output_number(rows[i].elapsed_ns));
        output_set(row, "messages_per_second",
                   output_number(per_second(rows[i].messages, rows[i].elapsed_ns)));
        output_set(row, "bytes_per_second",
                   output_number(per_second(rows[i].messages * rows[i].size, rows[i].elapsed_ns)));
        output_set(row, "lost", output_number(rows[i].lost));
        output_set(row, "round_trips", output_number(rows[i].round_trips));
        output_set(row, "round_trip_median_ns", output_number(rows[i].median_ns));
        output_set(row, "round_trip_p99_ns", output_number(rows[i].p99_ns));
        output_set(row, "round_trip_worst_ns", output_number(rows[i].worst_ns));
        output_append(array, row);
    }
    output_set(document, "bench", array);
    output_document(document);
}

static void print_table(const struct bench_row *rows, size_t count, const struct tool *tool)
{
    static const struct table_column columns[] = {
        {"SIZE", .right = true}, {"MESSAGES/S", .right = true}, {"BYTES/S", .right = true},
        {"LOST", .right = true}, {"ROUND TRIP", .right = true}, {"P99", .right = true},
        {"WORST", .right = true}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    for (size_t i = 0; i < count; i++) {
        char time[TEXT_NUMBER_SIZE];
        table_add_bytes(table, TONE_PLAIN, rows[i].size);
        table_add_count(table, TONE_BOLD, per_second(rows[i].messages, rows[i].elapsed_ns));
        table_add_bytes(table, TONE_PLAIN, per_second(rows[i].messages * rows[i].size, rows[i].elapsed_ns));
        table_add_count(table, rows[i].lost ? TONE_BAD : TONE_PLAIN, rows[i].lost);
        table_add(table, TONE_BOLD, "%s", text_duration(time, rows[i].median_ns));
        table_add(table, TONE_PLAIN, "%s", text_duration(time, rows[i].p99_ns));
        table_add(table, TONE_PLAIN, "%s", text_duration(time, rows[i].worst_ns));
    }
    table_print(table, tool);
}

static int measure(const struct bench_arguments *arguments, pid_t pid, struct bench_row *rows, int go_fd)
{
    struct bench_side side = {.go_fd = go_fd};
    uint64_t *samples = tool_alloc(NULL, SAMPLES_MAX * sizeof(*samples));
    int status = open_side(&side, arguments, pid, false);
    for (size_t i = 0; i < arguments->size_count && status == TOOL_OK; i++) {
        rows[i] = (struct bench_row){.size = arguments->sizes[i]};
        int r = measure_stream(&side, &rows[i], (uint64_t)arguments->time_ns);
        if (r == 0)
            r = measure_round_trip(&side, &rows[i], (uint64_t)arguments->time_ns, samples);
        if (r < 0)
            status = tool_fail_error("bench", r, NULL);
        if (tool_interrupted())
            status = TOOL_INTERRUPTED;
    }
    if (side.publisher)
        send_kind(&side, KIND_END, 0, sizeof(struct bench_head));
    close_side(&side);
    free(samples);
    return status;
}

int cmd_bench(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .doc =
            "Test the broker that runs: two processes exchange messages of several sizes for some seconds.\v"
            "ROUND TRIP is the median of a message and its answer. Whatever else the machine does at the same "
            "time shows in the figures."};
    struct bench_arguments arguments = {
        .tool = tool, .sizes = {16, 256, 4096, 65536, 1048576}, .size_count = 5, .time_ns = 300000000};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    int go[2];
    if (tool_catch_signals() < 0 || pipe2(go, O_CLOEXEC) < 0)
        return tool_fail(TOOL_FAILED, "descriptors", "%s", strerror(errno));
    pid_t parent = getpid(), child = fork();
    if (child < 0)
        return tool_fail(TOOL_FAILED, "fork", "%s", strerror(errno));
    if (child == 0) {
        /* Ends with the parent, by the parent alone. */
        signal(SIGINT, SIG_IGN);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char byte;
        close(go[1]);
        if (getppid() != parent || read(go[0], &byte, 1) != 1)
            _exit(TOOL_NO_BROKER);
        close(go[0]);
        _exit(echo(&arguments, parent));
    }
    struct bench_row rows[SIZES_MAX];
    close(go[0]);
    int status = measure(&arguments, parent, rows, go[1]);
    close(go[1]);
    if (status != TOOL_OK)
        kill(child, SIGKILL);
    int child_status;
    while (waitpid(child, &child_status, 0) < 0 && errno == EINTR)
        continue;
    if (status != TOOL_OK)
        return status;
    if (tool->json)
        print_json(rows, arguments.size_count);
    else
        print_table(rows, arguments.size_count, tool);
    return TOOL_OK;
}
