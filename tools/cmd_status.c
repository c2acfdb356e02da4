/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl status: the broker in one screen.
 */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "tools/admin.h"
#include "tools/output.h"
#include "tools/text.h"

static error_t parse(int key, char *value, struct argp_state *state)
{
    if (key == ARGP_KEY_INIT)
        state->child_inputs[0] = state->input;
    return key == ARGP_KEY_INIT ? 0 : ARGP_ERR_UNKNOWN;
}

static uint64_t uptime_ns(const Ipc__Control__StatusReply *reply)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return now_ns > reply->started_ns ? now_ns - reply->started_ns : 0;
}

static void print_json(const Ipc__Control__StatusReply *reply, const struct admin *admin)
{
    json_t *document = json_object();
    output_set(document, "address", output_string(admin_address(admin)));
    output_set(document, "version", output_string(reply->version));
    output_set(document, "instance", output_string(reply->instance));
    output_set(document, "pid", output_number(reply->pid));
    output_set(document, "started_ns", output_number(reply->started_ns));
    output_set(document, "uptime_ns", output_number(uptime_ns(reply)));
    output_set(document, "sessions", output_number(reply->sessions));
    output_set(document, "topics", output_number(reply->topics));
    output_set(document, "subscriptions", output_number(reply->subscriptions));
    output_set(document, "pairings", output_number(reply->pairings));
    output_set(document, "segments", output_number(reply->segments));
    output_set(document, "segment_bytes", output_number(reply->segment_bytes));
    output_set(document, "rss_bytes", output_number(reply->rss_bytes));
    output_set(document, "descriptors", output_number(reply->descriptors));
    output_set(document, "descriptors_max", output_number(reply->descriptors_max));
    output_set(document, "requests", output_number(reply->requests));
    output_set(document, "refused", output_number(reply->refused));
    output_set(document, "denied", output_number(reply->denied));
    output_set(document, "ended_badly", output_number(reply->ended_badly));
    output_set(document, "membarrier", json_boolean(reply->membarrier));
    output_set(document, "guardian", output_string(reply->guardian));
    output_set(document, "starts", output_number(reply->starts));
    output_document(document);
}

static void print_table(const Ipc__Control__StatusReply *reply, const struct admin *admin,
                        const struct tool *tool)
{
    static const struct table_column columns[] = {{"WHAT"}, {"VALUE", .shrink = true}};
    _cleanup_table_ struct table *table = table_new(columns, 2);
    char a[TEXT_NUMBER_SIZE], b[TEXT_NUMBER_SIZE];

#define ROW(what, tone, ...) (table_add(table, TONE_DIM, what), table_add(table, tone, __VA_ARGS__))
    ROW("address", TONE_PLAIN, "%s", admin_address(admin));
    ROW("version", TONE_PLAIN, "%s", reply->version);
    ROW("instance", TONE_PLAIN, "%s", reply->instance);
    ROW("pid", TONE_PLAIN, "%" PRIu32, reply->pid);
    ROW("uptime", TONE_PLAIN, "%s, since %s", text_duration(a, uptime_ns(reply)),
        text_time(b, reply->started_ns));
    ROW("sessions", TONE_PLAIN, "%s", text_count(a, reply->sessions));
    ROW("topics", TONE_PLAIN, "%s", text_count(a, reply->topics));
    ROW("subscriptions", TONE_PLAIN, "%s", text_count(a, reply->subscriptions));
    ROW("pairings", TONE_PLAIN, "%s", text_count(a, reply->pairings));
    ROW("segments", TONE_PLAIN, "%s in %s", text_bytes(a, reply->segment_bytes),
        text_count(b, reply->segments));
    ROW("own memory", TONE_PLAIN, "%s", text_bytes(a, reply->rss_bytes));
    /* From here on the next client may be refused. */
    bool tight = reply->descriptors_max > 0 && reply->descriptors > reply->descriptors_max / 10 * 9;
    ROW("descriptors", tight ? TONE_BAD : TONE_PLAIN, "%s of %s", text_count(a, reply->descriptors),
        text_count(b, reply->descriptors_max));
    ROW("requests", TONE_PLAIN, "%s", text_count(a, reply->requests));
    ROW("refused", reply->refused ? TONE_BAD : TONE_PLAIN, "%s", text_count(a, reply->refused));
    ROW("denied", reply->denied ? TONE_BAD : TONE_PLAIN, "%s", text_count(a, reply->denied));
    ROW("ended badly", reply->ended_badly ? TONE_BAD : TONE_PLAIN, "%s", text_count(a, reply->ended_badly));
    ROW("membarrier", TONE_PLAIN, "%s", reply->membarrier ? "yes" : "no: each publish costs a fence");
    bool guarded = strcmp(reply->guardian, "ipcd-run") == 0;
    ROW("guardian", guarded ? TONE_PLAIN : TONE_BAD, "%s%s", *reply->guardian ? reply->guardian : "none",
        guarded ? "" : ": if the broker dies, its sessions end");
    ROW("starts", TONE_PLAIN, "%s", text_count(a, reply->starts));
#undef ROW
    struct tool quiet = *tool;
    quiet.no_header = true; /* the first column is the header */
    table_print(table, &quiet);
}

int cmd_status(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .parser = parse,
        .children = tool_argp_children,
        .doc = "Tell about the broker: version, process, what it holds, whom it refused, who guards it."};
    if (argp_parse(&argp, argc, argv, 0, NULL, tool) != 0)
        return TOOL_USAGE;

    _cleanup_admin_ struct admin *admin = NULL;
    const Ipc__Control__StatusReply *reply;
    int status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_status(admin, &reply);
    if (status != TOOL_OK)
        return status;
    if (tool->json)
        print_json(reply, admin);
    else
        print_table(reply, admin, tool);
    return TOOL_OK;
}
