/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq: its settings, and what it brings along for the parts that all gateways share.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

#define OWN(field)   offsetof(struct options, field)
#define GIVEN(field) offsetof(struct binding, field)

static const struct gateway_setting own[] = {
    {"pub", GATEWAY_TEXT, OWN(addresses[ENDPOINT_PUB]), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "Also take what is published at these addresses, such as tcp://127.0.0.1:5551", true},
    {"push", GATEWAY_TEXT, OWN(addresses[ENDPOINT_PUSH]), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "Also take what is pushed into queues there", true},
    {"sub", GATEWAY_TEXT, OWN(addresses[ENDPOINT_SUB]), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "Also serve subscribers to prefixes there", true},
    {"match", GATEWAY_TEXT, OWN(addresses[ENDPOINT_MATCH]), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "Also serve subscribers to patterns there", true},
    {"router", GATEWAY_TEXT, OWN(addresses[ENDPOINT_ROUTER]), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "Also speak the whole protocol there", true},
    {"folder", GATEWAY_TEXT, OWN(folder), 0, sizeof(((struct options *)0)->folder), NULL, "",
     "Where the ipc:// files are (default: beside the broker's socket)"},
    {"keys", GATEWAY_TEXT, OWN(key_file), 0, GATEWAY_VALUE_SIZE, NULL, "",
     "CURVE keys: the gateway's, and those of the clients that may connect by TCP"},
    {"message-size-max", GATEWAY_SIZE, OWN(message_size_max), 1024, UINT64_C(1) << 26, NULL, "64K",
     "Of one frame from outside (default: 64K)"},
    {"connections-max", GATEWAY_COUNT, OWN(connections_max), 1, 65536, NULL, "1024",
     "Over all endpoints (default: 1024)"},
    {"high-water", GATEWAY_COUNT, OWN(high_water), 1, 1000000, NULL, "1000",
     "Messages that a connection may have waiting (default: 1000)"},
    {"backlog-max", GATEWAY_SIZE, OWN(backlog_max), 1, UINT64_C(1) << 32, NULL, "8M",
     "What may wait here for one peer, topic or queue (default: 8M)"},
};

static const char *const endpoint_words[] = {"pub", "push", "sub", "match", "router", NULL};
static const struct gateway_setting binds[] = {
    {"endpoint", GATEWAY_WORD, GIVEN(endpoint), 0, 0, endpoint_words, NULL, NULL},
    {"address", GATEWAY_TEXT, GIVEN(address), 0, GATEWAY_VALUE_SIZE, NULL, "", NULL},
    {"mode", GATEWAY_MODE, GIVEN(mode), 0, 0777, NULL, "", NULL},
};

static int add(struct gateway_config *config, const char *id, const char *origin, unsigned endpoint,
               const char *address)
{
    struct gateway_binding *binding = gateway_config_binding(config, id);

    if (!binding)
        return -ENOMEM;
    (void)snprintf(binding->given.values[0], GATEWAY_VALUE_SIZE, "%s", endpoint_words[endpoint]);
    (void)snprintf(binding->given.values[1], GATEWAY_VALUE_SIZE, "%s", address);
    if (!binding->origin[0])
        (void)snprintf(binding->origin, sizeof(binding->origin), "%s", origin);
    return 0;
}

/* The endpoints' own files, zmq-router and so on; and router-1, router-2 of the addresses that are settings of [gateway]. */
static int defaults(struct gateway_config *config)
{
    char id[GATEWAY_ID_SIZE], words[GATEWAY_VALUE_SIZE];
    int result = 0;

    for (unsigned i = 0; i < ENDPOINT_COUNT && result == 0; i++) {
        unsigned number = 0;
        char *at = words, *word;

        (void)snprintf(id, sizeof(id), "zmq-%s", endpoint_words[i]);
        result = add(config, id, "built in", i, "");
        (void)snprintf(words, sizeof(words), "%s", config->given.values[i]);
        while (result == 0 && (word = strsep(&at, " \t"))) {
            (void)snprintf(id, sizeof(id), "%s-%u", endpoint_words[i], number + 1);
            if (*word)
                result = add(config, id, "[gateway]", i, word);
            number += *word != '\0';
        }
    }
    return result;
}

static int check(const void *all, const void *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct options *options = all;
    const struct binding *given = binding;

    if (!given->address[0] || security_is_local(given->address) || options->key_file[0])
        return 0;
    (void)snprintf(
        why, GATEWAY_WHY_SIZE,
        "%.60s can be reached from other machines, and without keys anybody there could read and write "
        "everything: give --keys=FILE (--make-keys=FILE makes one), or use tcp://127.0.0.1",
        given->address);
    return -EACCES;
}

static int start(struct gateway *common)
{
    static struct zmq_gateway gateway = {.lock = LISTENER_INIT};
    char path[160], error[512];
    int result;

    common->context = &gateway;
    gateway.common = common;
    gateway.options = *(const struct options *)common->own;
    if (!gateway.options.folder[0])
        (void)snprintf(gateway.options.folder, sizeof(gateway.options.folder), "%s", common->folder);
    result = security_read_keys(&gateway);
    if (result < 0)
        return result;
    (void)snprintf(path, sizeof(path), "%s/zmq", gateway.options.folder);
    result = listener_lock(&gateway.lock, path, error, sizeof(error));
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "%s", error);
    return result;
}

static void stop(struct gateway *common)
{
    struct zmq_gateway *gateway = common->context;

    if (!gateway)
        return;
    listener_close(&gateway->lock);
    explicit_bzero(gateway->curve_secret, sizeof(gateway->curve_secret));
    free(gateway->curve_clients);
}

static void tell(struct gateway_binding *binding, Ipc__Gateway__Binding *message)
{
    const struct zmq_gateway *gateway = binding->gateway->context;
    const struct binding *given = binding->settings;
    const struct endpoint_counts *counts = &gateway->sockets[given->endpoint].counts;

    if (given->address[0])
        return; /* counted with the endpoint's own */
    binding->counters.received = counts->received;
    binding->counters.sent = counts->sent;
    binding->counters.bad = counts->bad;
    binding->counters.dropped = counts->dropped;
    binding->counters.denied = counts->denied;
    if (given->endpoint == ENDPOINT_ROUTER)
        peers_tell(gateway, message);
}

static void unmake(const char *made)
{
    (void)made; /* nothing is kept that a kill would leave behind */
}

static bool uses(const struct gateway_binding *binding, const char *made)
{
    (void)binding;
    (void)made;
    return false;
}

int main(int argc, char **argv)
{
    static const char make_keys[] = "--make-keys";
    static const struct gateway_kind kind = {
        .name = "zmq",
        .program = "ipcd-zmq",
        .doc =
            "Join programs with a ZeroMQ socket to the names of ipcd.\vipcd-zmq --make-keys FILE writes a new key file, "
            "and prints the gateway's public key. Addresses are also bound by `ipcctl bind zmq'. Stopped by SIGTERM or "
            "SIGINT. See ipcd-zmq(8).",
        .own = {own, sizeof(own) / sizeof(own[0]), sizeof(struct options)},
        .binds = {binds, sizeof(binds) / sizeof(binds[0]), sizeof(struct binding)},
        .has_rules = true,
        .defaults = defaults,
        .check = check,
        .start = start,
        .stop = stop,
        .open = session_open,
        .close = session_close,
        .round = session_round,
        .bind = address_bind,
        .unbind = address_unbind,
        .uses = uses,
        .unmake = unmake,
        .rules_changed = access_changed,
        .reread = security_reread_keys,
        .peers = tell,
    };

    if (argc == 3 && strcmp(argv[1], make_keys) == 0)
        return security_make_keys(argv[2]) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
    if (argc == 2 && strncmp(argv[1], make_keys, strlen(make_keys)) == 0 && argv[1][strlen(make_keys)] == '=')
        return security_make_keys(argv[1] + strlen(make_keys) + 1) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
    return gateway_main(&kind, argc, argv);
}
