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
#include "broker/core/util/inifile.h"
#include "broker/core/util/listener.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "broker/gateways/zmq/gateway.h"

const char *argp_program_version = "ipcd-zmq " IPCD_VERSION;

#define WHY_SIZE 128

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
    OPTION_LOG_LEVEL,
    OPTION_CHECK
};

static const struct argp_option options[] = {
    {"address", 'a', "PATH", 0, "The broker's socket (default: where clients look for it)", 0},
    {"config", 'c', "FILE", 0,
     "Read FILE and FILE.d/*.conf: options of these names in [gateway]; those given here have precedence (default: "
     "/etc/ipcd/ipcd-zmq.conf, or for a user ~/.config/ipcd/ipcd-zmq.conf, if it is there)",
     0},
    {"check", OPTION_CHECK, NULL, 0, "Say every mistake in the configuration, and exit", 0},
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

/* What both the command line and the configuration give: 0, or -EINVAL and a sentence. Texts are kept, not copied. */
static int number(const char *value, uint64_t least, uint64_t most, uint64_t *ret, char why[WHY_SIZE])
{
    uint64_t parsed;
    int result = text_to_number(value, true, &parsed);

    if (result == 0 && parsed >= least && parsed <= most) {
        *ret = parsed;
        return 0;
    }
    (void)snprintf(why, WHY_SIZE, "a number from %llu to %llu is allowed", (unsigned long long)least,
                   (unsigned long long)most);
    return -EINVAL;
}

static int give(struct options *given, int key, char *value, char why[WHY_SIZE])
{
    int level;

    switch (key) {
    case 'a':
        given->broker = value;
        return 0;
    case OPTION_PUB:
    case OPTION_PUSH:
    case OPTION_SUB:
    case OPTION_MATCH:
    case OPTION_ROUTER:
        key -= OPTION_PUB;
        if (given->address_count[key] == ADDRESSES_MAX) {
            (void)snprintf(why, WHY_SIZE, "an endpoint has at most %u addresses", ADDRESSES_MAX);
            return -EINVAL;
        }
        given->addresses[key][given->address_count[key]++] = value;
        return 0;
    case OPTION_FOLDER:
        given->folder = value;
        return 0;
    case OPTION_KEYS:
        given->key_file = value;
        return 0;
    case OPTION_MESSAGE_SIZE_MAX:
        return number(value, 1024, UINT64_C(1) << 26, &given->message_size_max, why);
    case OPTION_CONNECTIONS_MAX:
        return number(value, 1, 65536, &given->connections_max, why);
    case OPTION_HIGH_WATER:
        return number(value, 1, 1000000, &given->high_water, why);
    case OPTION_BACKLOG_MAX:
        return number(value, 1, UINT64_C(1) << 32, &given->backlog_max, why);
    case OPTION_LOG_LEVEL:
        level = log_level_from_word(value);
        if (level >= 0) {
            log_init("ipcd-zmq", level);
            return 0;
        }
        (void)snprintf(why, WHY_SIZE, "error, warning, notice, info and debug are allowed");
        return -EINVAL;
    default:
        return -ENOENT;
    }
}

struct arguments {
    const char *config_path;
    bool check;
    struct options given;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    char why[WHY_SIZE];
    int result;

    switch (key) {
    case 'c':
        arguments->config_path = value;
        return 0;
    case OPTION_CHECK:
        arguments->check = true;
        return 0;
    case OPTION_MAKE_KEYS:
        exit(security_make_keys(value) < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s' for? There are only options", value);
        return 0;
    default:
        break;
    }
    result = key > 0 && value ? give(&arguments->given, key, value, why) : -ENOENT;
    for (const struct argp_option *option = options; result == -EINVAL && option->name; option++)
        if (option->key == key)
            argp_error(state, "--%s=%s: %s", option->name, value, why);
    return result == 0 ? 0 : ARGP_ERR_UNKNOWN;
}

/* ---- the configuration -------------------------------------------------------------------------------------- */

static void on_section(struct inifile *file, const char *name)
{
    if (strcmp(name, "gateway") != 0)
        inifile_mistake(file, "unknown section [%.40s]; there is [gateway]", name);
}

static bool in_files(const struct argp_option *option)
{
    return option->key != 'c' && option->key != OPTION_CHECK && option->key != OPTION_MAKE_KEYS;
}

/* One value; addresses may be several, with spaces between. They live as long as the program. */
static void set_one(struct inifile *file, const struct argp_option *option, const char *value)
{
    char why[WHY_SIZE], *copy = strdup(value), *word, *at = copy;
    bool several = option->key >= OPTION_PUB && option->key <= OPTION_ROUTER;

    if (!copy) {
        inifile_mistake(file, "out of memory");
        return;
    }
    while ((word = several ? strsep(&at, " \t") : copy)) {
        if ((!several || *word) && give(file->context, option->key, word, why) < 0)
            inifile_mistake(file, "%s = %.60s: %s", option->name, word, why);
        if (!several)
            return;
    }
}

static void on_setting(struct inifile *file, const char *section, const char *key, const char *value)
{
    if (strcmp(section, "gateway") != 0) {
        if (!*section)
            inifile_mistake(file, "'%.40s' stands before any section; write [gateway] first", key);
        return;
    }
    for (const struct argp_option *option = options; option->name; option++)
        if (in_files(option) && strcmp(option->name, key) == 0) {
            set_one(file, option, value);
            return;
        }
    inifile_mistake(
        file, "unknown setting '%.40s' in [gateway]; they are named as the options of ipcd-zmq(8)", key);
}

static unsigned parse_file(void *context, const char *path, const char *text, size_t size, FILE *errors)
{
    static const struct inifile_use use = {on_section, on_setting};

    return inifile_parse(&use, context, path, text, size, errors);
}

/* What is given by an option replaces what the files say. */
static void merge(struct options *into, const struct options *given)
{
    for (size_t i = 0; i < ENDPOINT_COUNT; i++)
        if (given->address_count[i] > 0) {
            memcpy(into->addresses[i], given->addresses[i], sizeof(into->addresses[i]));
            into->address_count[i] = given->address_count[i];
        }
    into->broker = given->broker ? given->broker : into->broker;
    into->folder = given->folder ? given->folder : into->folder;
    into->key_file = given->key_file ? given->key_file : into->key_file;
#define NUMBER(field, fallback) \
 into->field = given->field ? given->field : into->field ? into->field : (fallback)
    NUMBER(message_size_max, 65536);
    NUMBER(connections_max, 1024);
    NUMBER(high_water, 1000);
    NUMBER(backlog_max, UINT64_C(8) << 20);
#undef NUMBER
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
    struct arguments arguments = {0};
    _cleanup_(freep) char *path = NULL;
    char folder[128];
    unsigned mistakes = 0;

    gateway.lock = (struct listener)LISTENER_INIT;
    log_init("ipcd-zmq", LOG_NOTICE);
    (void)argp_parse(&parser, argc, argv, 0, NULL, &arguments);
    path = arguments.config_path ? strdup(arguments.config_path) : inifile_default_path("ipcd-zmq.conf");
    if (path)
        mistakes = inifile_load(parse_file, &gateway.options, path, arguments.config_path != NULL, stderr);
    if (mistakes > 0) {
        fprintf(stderr, "ipcd-zmq: the configuration has mistakes; nothing was started\n");
        return EXIT_FAILURE;
    }
    if (arguments.check)
        return EXIT_SUCCESS;
    merge(&gateway.options, &arguments.given);
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
