/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-zmq: arguments.
 */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

const char *argp_program_version = "ipcd-zmq " IPCD_VERSION;

enum option_key {
    OPTION_PUB = 256, /* in the order of enum endpoint */
    OPTION_PUSH,
    OPTION_SUB,
    OPTION_MATCH,
    OPTION_ROUTER,
    OPTION_FOLDER,
    OPTION_KEYS,
    OPTION_MAKE_KEYS,
    OPTION_MESSAGE_SIZE_MAX,
    OPTION_CONNECTIONS_MAX,
    OPTION_HIGH_WATER,
    OPTION_BACKLOG_MAX,
    OPTION_LOG_LEVEL
};

static const struct argp_option options[] = {
    {"address", 'a', "PATH", 0, "The broker's socket (default: where clients look for it)", 0},
    {"pub", OPTION_PUB, "ADDRESS", 0, "Also take what is published at ADDRESS, such as tcp://127.0.0.1:5551",
     0},
    {"push", OPTION_PUSH, "ADDRESS", 0, "Also take what is pushed into queues at ADDRESS", 0},
    {"sub", OPTION_SUB, "ADDRESS", 0, "Also serve subscribers to prefixes at ADDRESS", 0},
    {"match", OPTION_MATCH, "ADDRESS", 0, "Also serve subscribers to patterns at ADDRESS", 0},
    {"router", OPTION_ROUTER, "ADDRESS", 0, "Also speak the whole protocol at ADDRESS", 0},
    {"folder", OPTION_FOLDER, "PATH", 0, "Where the ipc:// files are (default: beside the broker's socket)",
     0},
    {"keys", OPTION_KEYS, "FILE", 0,
     "CURVE keys: the gateway's, and those of the clients that may connect by TCP", 0},
    {"make-keys", OPTION_MAKE_KEYS, "FILE", 0,
     "Write a new key file, print the gateway's public key, and exit", 0},
    {"message-size-max", OPTION_MESSAGE_SIZE_MAX, "BYTES", 0, "Of one frame from outside (default: 65536)",
     0},
    {"connections-max", OPTION_CONNECTIONS_MAX, "N", 0, "Over all endpoints (default: 1024)", 0},
    {"high-water", OPTION_HIGH_WATER, "N", 0, "Messages that a connection may have waiting (default: 1000)",
     0},
    {"backlog-max", OPTION_BACKLOG_MAX, "BYTES", 0,
     "What may wait here for one peer, topic or queue (default: 8388608)", 0},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "error, warning, notice, info or debug", 0},
    {0},
};

static uint64_t number(struct argp_state *state, const char *name, const char *value, uint64_t least,
                       uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long parsed = strtoull(value, &end, 10);

    if (errno || *end || end == value || value[0] == '-' || parsed < least || parsed > most)
        argp_error(state, "--%s=%s: a number from %llu to %llu is allowed", name, value,
                   (unsigned long long)least, (unsigned long long)most);
    return parsed;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct options *given = state->input;
    int level;

    switch (key) {
    case 'a':
        given->broker = value;
        break;
    case OPTION_PUB:
    case OPTION_PUSH:
    case OPTION_SUB:
    case OPTION_MATCH:
    case OPTION_ROUTER:
        key -= OPTION_PUB;
        if (given->address_count[key] == ADDRESSES_MAX)
            argp_error(state, "an endpoint has at most %u addresses", ADDRESSES_MAX);
        given->addresses[key][given->address_count[key]++] = value;
        break;
    case OPTION_FOLDER:
        given->folder = value;
        break;
    case OPTION_KEYS:
        given->key_file = value;
        break;
    case OPTION_MAKE_KEYS:
        exit(security_make_keys(value) < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    case OPTION_MESSAGE_SIZE_MAX:
        given->message_size_max = number(state, "message-size-max", value, 1024, UINT64_C(1) << 26);
        break;
    case OPTION_CONNECTIONS_MAX:
        given->connections_max = number(state, "connections-max", value, 1, 65536);
        break;
    case OPTION_HIGH_WATER:
        given->high_water = number(state, "high-water", value, 1, 1000000);
        break;
    case OPTION_BACKLOG_MAX:
        given->backlog_max = number(state, "backlog-max", value, 1, UINT64_C(1) << 32);
        break;
    case OPTION_LOG_LEVEL:
        level = log_level_from_word(value);
        if (level < 0)
            argp_error(state, "--log-level=%s: error, warning, notice, info and debug are allowed", value);
        log_init("ipcd-zmq", level);
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s' for? There are only options", value);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* Where clients look for the broker, to find the folder that its socket is in. */
static int find_folder(const struct options *given, char ret[128])
{
    const char *address = given->broker ? given->broker : getenv("IPC_ADDRESS");
    char own[IPC_MAX_ADDRESS_SIZE + 1];
    const char *slash;

    if (!address && listener_default_address(own, sizeof(own)) < 0)
        return -ENOENT;
    address = address ? address : own;
    slash = strrchr(address, '/');
    (void)snprintf(ret, 128, "%.*s", slash ? (int)(slash - address) : 1, slash ? address : ".");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct argp parser = {
        options,
        parse_option,
        NULL,
        "The gateway between ipcd and programs with a ZeroMQ socket.\vStopped by SIGTERM or SIGINT. See ipcd-zmq(8).",
        NULL,
        NULL,
        NULL};
    static struct gateway gateway;
    char folder[128];

    gateway.lock = (struct listener)LISTENER_INIT;
    gateway.options = (struct options){.message_size_max = 65536,
                                       .connections_max = 1024,
                                       .high_water = 1000,
                                       .backlog_max = UINT64_C(8) << 20};
    log_init("ipcd-zmq", LOG_NOTICE);
    (void)argp_parse(&parser, argc, argv, 0, NULL, &gateway.options);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)fd_raise_limit();
    if (!gateway.options.folder) {
        if (find_folder(&gateway.options, folder) < 0) {
            log_write(LOG_SYSTEM, NULL,
                      "where is the broker? Give --address, or set IPC_ADDRESS or XDG_RUNTIME_DIR");
            return EXIT_FAILURE;
        }
        gateway.options.folder = folder;
    }
    return gateway_run(&gateway);
}
