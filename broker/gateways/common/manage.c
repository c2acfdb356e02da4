/* SPDX-License-Identifier: Apache-2.0
 *
 * The gateway's own service: proto/gateway.proto. What callers send is checked like anybody's; only root and the gateway's
 * user may ask, because a binding is made with the gateway's rights.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/gateways/common/gateway.h"
#include "proto/name.h"

#define REQUEST_SIZE_MAX ((size_t)16384)

bool gateway_explain(const struct gateway *gateway, const struct identity *identity, enum verb verb,
                     const char *name, char why[GATEWAY_WHY_SIZE])
{
    char page[64];

    (void)snprintf(page, sizeof(page), "%s(8)", gateway->kind->program);
    if (gateway->policy->n == 0)
        (void)snprintf(why, GATEWAY_WHY_SIZE,
                       "there are no rules: who may connect may do what the gateway may");
    else if (policy_may_everything(identity))
        (void)snprintf(why, GATEWAY_WHY_SIZE, "root and the gateway's own user may do everything");
    else
        return policy_explain(gateway->policy, identity, verb, name, page, why, GATEWAY_WHY_SIZE);
    return true;
}

static int answer(struct ipc_request *request, const Ipc__Gateway__Item *item, bool last)
{
    size_t size = ipc__gateway__item__get_packed_size(item);
    _cleanup_(freep) unsigned char *packed = malloc(size + 1);

    if (!packed)
        return -ENOMEM;
    (void)ipc__gateway__item__pack(item, packed);
    return last ? ipc_request_reply(request, packed, size, NULL)
                : ipc_request_part(request, packed, size, NULL);
}

static int answer_binding(struct ipc_request *request, struct gateway_binding *binding, bool last)
{
    const struct gateway_kind *kind = binding->gateway->kind;
    Ipc__Gateway__Item item = IPC__GATEWAY__ITEM__INIT;
    Ipc__Gateway__Binding message = IPC__GATEWAY__BINDING__INIT;
    Ipc__Gateway__Setting settings[GATEWAY_SETTINGS_MAX], *pointers[GATEWAY_SETTINGS_MAX];
    const struct gateway_counters *counters = &binding->counters;
    int result;

    item.binding = &message;
    if (kind->peers)
        kind->peers(binding, &message);
    message.id = binding->id;
    message.run_time = !binding->origin[0];
    message.state = (char *)(uintptr_t)(!binding->open ? "waiting" : binding->blocked ? "blocked" : "open");
    message.settings = pointers;
    for (size_t i = 0; i < kind->binds.count; i++) {
        const struct gateway_setting *setting = &kind->binds.settings[i];
        const char *value = binding->given.values[i][0] ? binding->given.values[i] : setting->fallback;

        if (!value || !*value)
            continue;
        ipc__gateway__setting__init(&settings[message.n_settings]);
        settings[message.n_settings].name = (char *)(uintptr_t)setting->key;
        settings[message.n_settings].value = (char *)(uintptr_t)value;
        pointers[message.n_settings] = &settings[message.n_settings];
        message.n_settings++;
    }
    message.received = counters->received;
    message.sent = counters->sent;
    message.bytes = counters->bytes;
    message.dropped = counters->dropped;
    message.denied = counters->denied;
    message.refused = counters->refused;
    message.bad = counters->bad;
    message.dead = counters->dead;
    message.held = counters->held;
    message.last_error = binding->error;
    result = answer(request, &item, last);
    for (size_t i = 0; i < message.n_peers; i++)
        free(message.peers[i]);
    free(message.peers);
    return result;
}

static void list(struct gateway *gateway, struct ipc_request *request)
{
    Ipc__Gateway__Item item = IPC__GATEWAY__ITEM__INIT;
    Ipc__Gateway__About about = IPC__GATEWAY__ABOUT__INIT;
    int result;

    item.about = &about;
    about.name = (char *)(uintptr_t)gateway->kind->name;
    about.version = (char *)(uintptr_t)IPCD_VERSION;
    about.pid = (uint32_t)getpid();
    about.since_ns = gateway->since_ns;
    about.bindings = gateway->n_bindings;
    if (gateway->kind->limits)
        gateway->kind->limits(gateway, &about);
    result = answer(request, &item, gateway->n_bindings == 0);
    for (size_t i = 0; i < about.n_limits; i++)
        free(about.limits[i]);
    free(about.limits);
    for (size_t i = 0; i < gateway->n_bindings && result == 0; i++)
        result = answer_binding(request, gateway->bindings[i], i == gateway->n_bindings - 1);
    if (result < 0 && result != -EPIPE)
        (void)ipc_request_fail(request, result, "the answer could not be sent", NULL, 0);
}

static int explain(struct gateway *gateway, struct ipc_request *request,
                   const Ipc__Gateway__Question *question, char why[GATEWAY_WHY_SIZE])
{
    Ipc__Gateway__Item item = IPC__GATEWAY__ITEM__INIT;
    Ipc__Gateway__Decision decision = IPC__GATEWAY__DECISION__INIT;
    struct identity identity = {.uid = POLICY_NOBODY, .gid = POLICY_NOBODY};
    enum verb verb = question ? verb_from_word(question->verb) : VERB_COUNT;
    const char *wrong = question ? ipc_name_check(question->name, false) : "there is none";

    if (!gateway->kind->has_rules || verb == VERB_COUNT || wrong) {
        if (!gateway->kind->has_rules)
            (void)snprintf(why, GATEWAY_WHY_SIZE, "%s has no rules", gateway->kind->program);
        else if (wrong)
            (void)snprintf(why, GATEWAY_WHY_SIZE, "the name is not valid: %s", wrong);
        else
            (void)snprintf(why, GATEWAY_WHY_SIZE, "there is no such verb");
        return -EINVAL;
    }
    if (question->key[0]) {
        identity.key = question->key;
    } else {
        identity.uid = question->uid;
        if (question->n_gids > 0)
            identity = (struct identity){question->uid, question->gids[0], question->gids + 1,
                                         question->n_gids - 1, NULL};
    }
    decision.allowed = gateway_explain(gateway, &identity, verb, question->name, why);
    decision.text = why;
    item.decision = &decision;
    (void)answer(request, &item, true);
    return 0;
}

static void on_request(struct gateway *gateway, struct ipc_request *request,
                       const Ipc__Gateway__Request *asked)
{
    char why[GATEWAY_WHY_SIZE] = "";
    struct gateway_binding *binding = NULL;
    int result = 0;

    switch (asked->verb) {
    case IPC__GATEWAY__VERB__LIST:
        list(gateway, request);
        return;
    case IPC__GATEWAY__VERB__BIND:
        result = gateway_bind(gateway, asked, &binding, why);
        if (result == 0) {
            log_write(LOG_GATEWAY, &(struct log_about){.name = binding->id, .uid = request->caller->uid},
                      "bound at run time");
            (void)answer_binding(request, binding, true);
            return;
        }
        break;
    case IPC__GATEWAY__VERB__UNBIND:
        binding = gateway_find(gateway, asked->id);
        if (!binding) {
            result = -ENOENT;
            (void)snprintf(why, sizeof(why), "there is no such binding; `ipcctl gateways' lists them");
            break;
        }
        result = gateway_unbind(gateway, binding, why);
        if (result == -EPERM)
            break;
        log_write(LOG_GATEWAY, &(struct log_about){.name = binding->id, .uid = request->caller->uid},
                  "unbound");
        (void)answer_binding(request, binding, true);
        (void)gateway_binding_free(binding);
        return;
    case IPC__GATEWAY__VERB__EXPLAIN:
        result = explain(gateway, request, asked->question, why);
        if (result == 0)
            return;
        break;
    default:
        result = -EOPNOTSUPP;
        (void)snprintf(why, sizeof(why), "this gateway (%s) does not know that request", IPCD_VERSION);
    }
    (void)ipc_request_fail(request, result, why[0] ? why : strerror(-result), NULL, 0);
}

static void on_call(struct gateway_source *source, uint32_t events)
{
    struct gateway *gateway = source->context;
    unsigned char buffer[REQUEST_SIZE_MAX];
    struct ipc_request *request;
    ssize_t size;

    (void)events;
    while ((size = ipc_server_receive(gateway->server, NULL, 0, &request, 0)) >= 0) {
        const struct ipc_peer *caller = request->caller;
        Ipc__Gateway__Request *asked = NULL;

        if (size <= (ssize_t)sizeof(buffer)) {
            memcpy(buffer, request->data, (size_t)size); /* the caller can still write to it */
            asked = ipc__gateway__request__unpack(NULL, (size_t)size, buffer);
        }
        if (caller->uid != 0 && caller->uid != geteuid())
            (void)ipc_request_fail(request, -EACCES, "only root and the user of the gateway may ask it", NULL,
                                   0);
        else if (!asked)
            (void)ipc_request_fail(request, -EINVAL, "that is no request of gateway.proto", NULL, 0);
        else
            on_request(gateway, request, asked);
        if (asked)
            ipc__gateway__request__free_unpacked(asked, NULL);
        if (gateway->over)
            return;
    }
    if (!gateway_is_over(gateway, size) && size != -EAGAIN)
        log_write(LOG_SYSTEM, NULL, "calls of the gateway's service cannot be taken: %s",
                  strerror((int)-size));
    gateway_take_events(gateway);
}

int gateway_manage_start(struct gateway *gateway)
{
    struct ipc_server_options options = IPC_SERVER_OPTIONS_INIT;
    struct ipc_error error = {.text = ""};
    char service[64];
    int result;

    options.spin_max_ns = 0;
    (void)snprintf(service, sizeof(service), "ipcd.gateway.%s", gateway->kind->name);
    result = ipc_server_open(&gateway->server, gateway->connection, service, &options, &error);
    if (result == 0) {
        gateway->server_source->fd = ipc_server_fd(gateway->server);
        gateway->server_source->ready = on_call;
        gateway->server_source->context = gateway;
        result = gateway->server_source->fd < 0 ? gateway->server_source->fd
                                                : gateway_watch(gateway, gateway->server_source, EPOLLIN);
    }
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "%s cannot be served: %s", service,
                  error.text[0] ? error.text : strerror(-result));
    return result;
}

void gateway_manage_stop(struct gateway *gateway)
{
    gateway_unwatch(gateway, gateway->server_source);
    gateway->server = ipc_server_close(gateway->server);
}
