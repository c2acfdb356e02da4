/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl gateways, bind and unbind: calls of the services ipcd.gateway.NAME (proto/gateway.proto). Which gateways run, the
 * broker knows by these names.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/admin.h"
#include "tools/gateway.h"
#include "tools/ipcctl.h"
#include "tools/output.h"

#define PREFIX       "ipcd.gateway."
#define SETTINGS_MAX 32

/* ---- asking ---------------------------------------------------------------------------------------------- */

void answers_done(struct answers *answers)
{
    for (size_t i = 0; i < answers->count; i++)
        ipc__gateway__item__free_unpacked(answers->items[i], NULL);
    free(answers->items);
    *answers = (struct answers){0};
}

static int fail(const char *gateway, int result, const struct ipc_reply *reply)
{
    if (result == -ENOENT)
        return tool_fail(TOOL_FAILED, gateway,
                         "no such gateway runs here; start it with `ipcd-run --gateway %s', or run ipcd-%s",
                         gateway, gateway);
    if (result == -ETIMEDOUT)
        return tool_fail(TOOL_TIMEOUT, gateway, "the gateway did not answer in time; --timeout waits longer");
    return tool_fail(result == -EPIPE && reply->server.session == 0 ? TOOL_NO_BROKER : TOOL_FAILED, gateway,
                     "%s", reply->text && *reply->text ? reply->text : strerror(-result));
}

int gateway_ask(const struct tool *tool, ipc_connection *connection, const char *gateway,
                const Ipc__Gateway__Request *request, struct answers *answers)
{
    struct ipc_client_options options = IPC_CLIENT_OPTIONS_INIT;
    struct ipc_call_options how = IPC_CALL_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    struct ipc_reply reply = {.text = ""};
    size_t size = ipc__gateway__request__get_packed_size(request);
    _cleanup_free_ unsigned char *packed = tool_alloc(NULL, size + 1);
    ipc_client *client;
    ipc_call *call;
    char service[64];
    snprintf(service, sizeof(service), PREFIX "%.32s", gateway);
    int result = ipc_client_open(&client, connection, service, &options, &error);
    if (result < 0)
        return tool_fail_error(gateway, result, &error);
    ipc__gateway__request__pack(request, packed);
    how.timeout_ns = tool_timeout(tool);
    result = ipc_call_start(&call, client, packed, size, &how);
    if (result == 0) {
        while ((result = ipc_call_next(call, &reply, IPC_FOREVER)) == 1) {
            Ipc__Gateway__Item *item = ipc__gateway__item__unpack(NULL, reply.size, reply.data);
            if (!item) {
                result = -EBADMSG;
                break;
            }
            answers->items = tool_alloc(answers->items, (answers->count + 1) * sizeof(*answers->items));
            answers->items[answers->count++] = item;
        }
        if (result < 0)
            result = fail(gateway, result, &reply);
        ipc_call_free(call);
    } else {
        result = fail(gateway, result, &reply);
    }
    ipc_client_close(client);
    return result;
}

/* The gateways that run. */
static int find_gateways(const struct tool *tool, struct admin_list *services)
{
    _cleanup_admin_ struct admin *admin = NULL;
    int status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_list(admin, services, IPC__CONTROL__LIST_KIND__LIST_SERVICES, PREFIX "*");
    return status;
}

/* ---- showing --------------------------------------------------------------------------------------------- */

static const char *setting_of(const Ipc__Gateway__Binding *binding, const char *name)
{
    for (size_t i = 0; i < binding->n_settings; i++)
        if (strcmp(binding->settings[i]->name, name) == 0)
            return binding->settings[i]->value;
    return "";
}

static json_t *binding_json(const Ipc__Gateway__Binding *binding)
{
    const struct {
        const char *name;
        uint64_t value;
    } counters[] = {
        {"received", binding->received}, {"sent", binding->sent},     {"bytes", binding->bytes},
        {"dropped", binding->dropped},   {"denied", binding->denied}, {"refused", binding->refused},
        {"bad", binding->bad},           {"dead", binding->dead},     {"held", binding->held}};
    json_t *row = json_object(), *settings = json_object(), *peers = json_array();
    output_set(row, "binding", output_string(binding->id));
    output_set(row, "run_time", json_boolean(binding->run_time));
    output_set(row, "state", output_string(binding->state));
    for (size_t i = 0; i < binding->n_settings; i++)
        output_set(settings, binding->settings[i]->name, output_string(binding->settings[i]->value));
    output_set(row, "settings", settings);
    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
        output_set(row, counters[i].name, output_number(counters[i].value));
    output_set(row, "last_error", output_string(binding->last_error));
    for (size_t i = 0; i < binding->n_peers; i++) {
        const Ipc__Gateway__Peer *peer = binding->peers[i];
        json_t *one = json_object();
        output_set(one, "peer", output_string(peer->name));
        output_set(one, "identity", output_string(peer->identity));
        output_set(one, "address", output_string(peer->address));
        output_set(one, "state", output_string(peer->state));
        output_set(one, "received", output_number(peer->received));
        output_set(one, "sent", output_number(peer->sent));
        output_set(one, "dropped", output_number(peer->dropped));
        output_set(one, "denied", output_number(peer->denied));
        output_append(peers, one);
    }
    output_set(row, "peers", peers);
    return row;
}

static void show_json(const struct answers *answers)
{
    json_t *document = json_object(), *gateways = json_array(), *bindings = NULL;
    for (size_t i = 0; i < answers->count; i++) {
        const Ipc__Gateway__About *about = answers->items[i]->about;
        if (about) {
            json_t *gateway = json_object(), *limits = json_array();
            bindings = json_array();
            output_set(gateway, "gateway", output_string(about->name));
            output_set(gateway, "version", output_string(about->version));
            output_set(gateway, "pid", output_number(about->pid));
            output_set(gateway, "since_ns", output_number(about->since_ns));
            for (size_t j = 0; j < about->n_limits; j++) {
                json_t *limit = json_object();
                output_set(limit, "limit", output_string(about->limits[j]->name));
                output_set(limit, "value", output_number(about->limits[j]->value));
                output_set(limit, "changed_by", output_string(about->limits[j]->advice));
                output_append(limits, limit);
            }
            output_set(gateway, "limits", limits);
            output_set(gateway, "bindings", bindings);
            output_append(gateways, gateway);
        }
        if (answers->items[i]->binding && bindings)
            output_append(bindings, binding_json(answers->items[i]->binding));
    }
    output_set(document, "gateways", gateways);
    output_document(document);
}

static const char *target_of(const Ipc__Gateway__Binding *binding)
{
    const char *const names[] = {"topic", "queue", "service"};
    for (size_t i = 0; i < 3; i++)
        if (*setting_of(binding, names[i]))
            return setting_of(binding, names[i]);
    return "";
}

static const char *outside_of(const Ipc__Gateway__Binding *binding)
{
    return *setting_of(binding, "mqueue") ? setting_of(binding, "mqueue") : setting_of(binding, "address");
}

static void show_text(const struct answers *answers, const struct tool *tool)
{
    static const struct table_column columns[] = {
        {"GATEWAY", false, false}, {"BINDING", false, false}, {"DIRECTION", false, false},
        {"OUTSIDE", false, true},  {"NAME", false, true},     {"RECEIVED", true, false},
        {"SENT", true, false},     {"DROPPED", true, false},  {"DENIED", true, false},
        {"HELD", true, false},     {"BAD", true, false},      {"DEAD", true, false},
        {"STATE", false, false}};
    _cleanup_table_ struct table *table = table_new(columns, sizeof(columns) / sizeof(columns[0]));
    const char *gateway = "";
    for (size_t i = 0; i < answers->count; i++) {
        const Ipc__Gateway__Binding *binding = answers->items[i]->binding;
        if (answers->items[i]->about) {
            gateway = answers->items[i]->about->name;
            if (answers->items[i]->about->bindings == 0) {
                table_add(table, TONE_NAME, "%s", gateway);
                for (size_t j = 1; j < sizeof(columns) / sizeof(columns[0]); j++)
                    table_add(table, TONE_DIM, "%s", j == 1 ? "none" : "");
            }
        }
        if (!binding)
            continue;
        table_add(table, TONE_NAME, "%s", gateway);
        table_add(table, TONE_PLAIN, "%s", binding->id);
        table_add(table, TONE_PLAIN, "%s",
                  *setting_of(binding, "direction") ? setting_of(binding, "direction")
                                                    : setting_of(binding, "endpoint"));
        table_add(table, TONE_PLAIN, "%s", outside_of(binding));
        table_add(table, TONE_NAME, "%s", target_of(binding));
        table_add_count(table, TONE_PLAIN, binding->received);
        table_add_count(table, TONE_PLAIN, binding->sent);
        table_add_count(table, binding->dropped > 0 ? TONE_BAD : TONE_PLAIN, binding->dropped);
        table_add_count(table, binding->denied > 0 ? TONE_BAD : TONE_PLAIN, binding->denied);
        table_add_count(table, TONE_PLAIN, binding->held);
        table_add_count(table, binding->bad > 0 ? TONE_BAD : TONE_PLAIN, binding->bad);
        table_add_count(table, TONE_PLAIN, binding->dead);
        table_add(table, strcmp(binding->state, "open") == 0 ? TONE_PLAIN : TONE_BAD, "%s%s%s",
                  binding->state, *binding->last_error ? ": " : "", binding->last_error);
    }
    table_print(table, tool);
    for (size_t i = 0; i < answers->count; i++) {
        const Ipc__Gateway__Binding *binding = answers->items[i]->binding;
        for (size_t j = 0; binding && j < binding->n_peers; j++)
            printf("%s%s  peer %s  %s  %s  received %" PRIu64 "  sent %" PRIu64 "  dropped %" PRIu64
                   "  denied %" PRIu64 "\n",
                   j == 0 ? "\n" : "", binding->id, binding->peers[j]->name, binding->peers[j]->identity,
                   binding->peers[j]->state, binding->peers[j]->received, binding->peers[j]->sent,
                   binding->peers[j]->dropped, binding->peers[j]->denied);
    }
}

/* ---- the commands ---------------------------------------------------------------------------------------- */

struct gateway_arguments {
    struct tool *tool;
    const char *gateway; /* NULL: all, or whichever it is */
    const char *id;
    Ipc__Gateway__Setting settings[SETTINGS_MAX], *pointers[SETTINGS_MAX];
    size_t n_settings;
};

static error_t parse_common(int key, struct argp_state *state)
{
    struct gateway_arguments *arguments = state->input;
    if (key != ARGP_KEY_INIT)
        return ARGP_ERR_UNKNOWN;
    state->child_inputs[0] = arguments->tool;
    return 0;
}

static error_t parse_gateways(int key, char *value, struct argp_state *state)
{
    struct gateway_arguments *arguments = state->input;
    if (key != ARGP_KEY_ARG)
        return parse_common(key, state);
    if (arguments->gateway)
        argp_error(state, "one GATEWAY at most");
    arguments->gateway = value;
    return 0;
}

/* The first thing that people get wrong, before a gateway is asked, which alone knows all settings. */
static void check_way(const struct gateway_arguments *arguments, struct argp_state *state)
{
    static const struct {
        const char *gateway, *setting, *words[6];
    } ways[] = {{"mq", "direction", {"in", "out", "call", "serve", NULL}},
                {"zmq", "endpoint", {"pub", "push", "sub", "match", "router", NULL}}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        for (size_t j = 0; strcmp(ways[i].gateway, arguments->gateway) == 0 && j < arguments->n_settings;
             j++) {
            const Ipc__Gateway__Setting *setting = &arguments->settings[j];
            size_t k = 0;
            if (strcmp(setting->name, ways[i].setting) != 0)
                continue;
            while (ways[i].words[k] && strcmp(ways[i].words[k], setting->value) != 0)
                k++;
            if (!ways[i].words[k])
                argp_error(state, "%s=%s: see ipcd-%s(8) for those that there are", setting->name,
                           setting->value, arguments->gateway);
        }
    }
}

static void add_setting(struct gateway_arguments *arguments, char *text, struct argp_state *state)
{
    char *equals = strchr(text, '=');
    Ipc__Gateway__Setting *setting = &arguments->settings[arguments->n_settings];
    if (arguments->n_settings == SETTINGS_MAX)
        argp_error(state, "at most %d settings", SETTINGS_MAX);
    *equals = '\0';
    ipc__gateway__setting__init(setting);
    setting->name = text;
    setting->value = equals + 1;
    arguments->pointers[arguments->n_settings++] = setting;
}

static error_t parse_bind(int key, char *value, struct argp_state *state)
{
    struct gateway_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (!arguments->gateway)
            arguments->gateway = value;
        else if (strchr(value, '='))
            add_setting(arguments, value, state);
        else if (arguments->id || arguments->n_settings > 0)
            argp_error(state, "%s: SETTING=VALUE is expected", value);
        else
            arguments->id = value;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->gateway)
            argp_error(state, "at which GATEWAY, such as mq?");
        else if (arguments->n_settings == 0)
            argp_error(state, "which settings? docs/gateways.md and ipcd-%s(8) tell", arguments->gateway);
        else
            check_way(arguments, state);
        return 0;
    default:
        return parse_common(key, state);
    }
}

static error_t parse_unbind(int key, char *value, struct argp_state *state)
{
    struct gateway_arguments *arguments = state->input;
    switch (key) {
    case 'g':
        arguments->gateway = value;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->id)
            argp_error(state, "one ID");
        arguments->id = value;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->id)
            argp_error(state, "the ID of which binding? `ipcctl gateways' lists them");
        return 0;
    default:
        return parse_common(key, state);
    }
}

/* All that runs, or one. */
static int ask_all(const struct gateway_arguments *arguments, ipc_connection *connection,
                   struct answers *answers)
{
    _cleanup_admin_list_ struct admin_list services = ADMIN_LIST_INIT;
    Ipc__Gateway__Request request = IPC__GATEWAY__REQUEST__INIT;
    int status;
    request.verb = IPC__GATEWAY__VERB__LIST;
    if (arguments->gateway)
        return gateway_ask(arguments->tool, connection, arguments->gateway, &request, answers);
    status = find_gateways(arguments->tool, &services);
    for (size_t i = 0; i < services.count && status == TOOL_OK; i++)
        status = gateway_ask(arguments->tool, connection, services.items[i]->name + strlen(PREFIX), &request,
                             answers);
    return status;
}

int cmd_gateways(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .parser = parse_gateways,
        .children = tool_argp_children,
        .args_doc = "[GATEWAY]",
        .doc = "Show the gateways that run, their bindings, and what went through each."};
    struct gateway_arguments arguments = {.tool = tool};
    struct answers answers = {0};
    ipc_connection *connection = NULL;
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;
    int status = tool_connect(&connection, tool, "ipcctl gateways");
    if (status == TOOL_OK)
        status = ask_all(&arguments, connection, &answers);
    if (status == TOOL_OK && tool->json)
        show_json(&answers);
    else if (status == TOOL_OK)
        show_text(&answers, tool);
    answers_done(&answers);
    ipc_connection_close(connection);
    return status;
}

/* Ask for a change, and show the binding. */
static int change(const struct gateway_arguments *arguments, ipc_connection *connection, const char *gateway,
                  const Ipc__Gateway__Request *request)
{
    struct answers answers = {0};
    int status = gateway_ask(arguments->tool, connection, gateway, request, &answers);
    if (status == TOOL_OK && answers.count > 0 && answers.items[0]->binding) {
        if (arguments->tool->json)
            output_document(binding_json(answers.items[0]->binding));
        else
            printf("%s\n", answers.items[0]->binding->id);
    }
    answers_done(&answers);
    return status;
}

int cmd_bind(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .parser = parse_bind,
        .children = tool_argp_children,
        .args_doc = "GATEWAY [ID] SETTING=VALUE...",
        .doc =
            "Bind something outside to a name, as long as the gateway runs, and print the binding's id.\v"
            "The settings are those of a section [bind ID] of the gateway's configuration: see ipcd-mq(8). For example: "
            "ipcctl bind mq direction=in mqueue=/orders queue=orders"};
    struct gateway_arguments arguments = {.tool = tool};
    Ipc__Gateway__Request request = IPC__GATEWAY__REQUEST__INIT;
    ipc_connection *connection = NULL;
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;
    request.verb = IPC__GATEWAY__VERB__BIND;
    if (arguments.id)
        request.id = (char *)(uintptr_t)arguments.id;
    request.settings = arguments.pointers;
    request.n_settings = arguments.n_settings;
    int status = tool_connect(&connection, tool, "ipcctl bind");
    if (status == TOOL_OK)
        status = change(&arguments, connection, arguments.gateway, &request);
    ipc_connection_close(connection);
    return status;
}

/* The one gateway that has a binding of that id. */
static int find_binding(struct gateway_arguments *arguments, const struct answers *answers)
{
    const char *gateway = NULL;
    for (size_t i = 0; i < answers->count; i++) {
        if (answers->items[i]->about)
            gateway = answers->items[i]->about->name;
        if (!answers->items[i]->binding || strcmp(answers->items[i]->binding->id, arguments->id) != 0)
            continue;
        if (arguments->gateway)
            return tool_fail(TOOL_USAGE, arguments->id,
                             "%s and %s both have such a binding; say --gateway=GATEWAY", arguments->gateway,
                             gateway);
        arguments->gateway = gateway;
    }
    return arguments->gateway ? TOOL_OK
                              : tool_fail(TOOL_FAILED, arguments->id,
                                          "no gateway has such a binding; `ipcctl gateways' lists them");
}

int cmd_unbind(struct tool *tool, int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"gateway", 'g', "GATEWAY", 0, "Of this gateway (default: whichever has it)", 0}, {0}};
    static const struct argp argp = {.options = options,
                                     .parser = parse_unbind,
                                     .children = tool_argp_children,
                                     .args_doc = "ID",
                                     .doc = "End a binding that was made with `ipcctl bind'."};
    struct gateway_arguments arguments = {.tool = tool};
    Ipc__Gateway__Request request = IPC__GATEWAY__REQUEST__INIT;
    struct answers answers = {0};
    ipc_connection *connection = NULL;
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;
    int status = tool_connect(&connection, tool, "ipcctl unbind");
    if (status == TOOL_OK && !arguments.gateway) {
        status = ask_all(&arguments, connection, &answers);
        if (status == TOOL_OK)
            status = find_binding(&arguments, &answers);
    }
    request.verb = IPC__GATEWAY__VERB__UNBIND;
    request.id = (char *)(uintptr_t)arguments.id;
    if (status == TOOL_OK)
        status = change(&arguments, connection, arguments.gateway, &request);
    answers_done(&answers);
    ipc_connection_close(connection);
    return status;
}
