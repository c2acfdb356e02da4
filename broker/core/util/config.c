/* SPDX-License-Identifier: Apache-2.0
 *
 * One table of settings drives parsing, checks and printing.
 */
#include "broker/core/util/config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/inifile.h"
#include "broker/core/util/log.h"
#include "broker/core/util/memory.h"
#include "broker/core/util/policy_file.h"
#include "broker/core/util/text.h"
#include "proto/name.h"

#define UID_OF_PEOPLE 1000u /* those below are for services, on Debian and elsewhere */

const struct limit_about limit_about[LIMIT_COUNT] = {
#define LIMIT_ABOUT(id, setting, what, bytes, ...)                    LIMIT_ABOUT_(setting, what, bytes, __VA_ARGS__)
#define LIMIT_ABOUT_(setting, what, bytes, user, total, most, advice) {setting, what, advice, bytes},
    LIMITS(LIMIT_ABOUT)
#undef LIMIT_ABOUT
#undef LIMIT_ABOUT_
};

/* What ipcd takes itself, at least, of a memory limit. */
#define CORE_BYTES (UINT64_C(16) << 20)

#define MEMBERS_PER_LINE 12u /* of numbers; see INIFILE_LINE_SIZE */

enum kind { KIND_PATH, KIND_LEVEL, KIND_MODE, KIND_COUNT, KIND_SECONDS, KIND_SIZE };

static const struct setting {
    const char *section, *key;
    enum kind kind;
    size_t offset;
    uint64_t least, most;
} settings[] = {
    {"broker", "address", KIND_PATH, offsetof(struct config, address), 0, 0},
    {"broker", "log-level", KIND_LEVEL, offsetof(struct config, log_level), 0, 0},
    {"broker", "socket-mode", KIND_MODE, offsetof(struct config, socket_mode), 0, 0777},
    {"broker", "drain", KIND_SECONDS, offsetof(struct config, drain), 0, 3600},
    {"broker", "router-threads", KIND_COUNT, offsetof(struct config, router_threads), 1, IPC_MAX_ROUTERS},
#define SETTING_USER(id, setting, what, bytes, user, total_default, highest, advice) \
 {"limits",                                                                          \
  setting,                                                                           \
  (bytes) ? KIND_SIZE : KIND_COUNT,                                                  \
  offsetof(struct config, per_user[LIMIT_##id]),                                     \
  (bytes) ? BYTES_LEAST : 1,                                                         \
  highest},
#define SETTING_TOTAL(id, setting, what, bytes, user, total_default, highest, advice) \
 {"limits",                                                                           \
  "total-" setting,                                                                   \
  (bytes) ? KIND_SIZE : KIND_COUNT,                                                   \
  offsetof(struct config, total[LIMIT_##id]),                                         \
  (bytes) ? BYTES_LEAST : 1,                                                          \
  highest},
#define BYTES_LEAST 4096
    LIMITS(SETTING_USER) LIMITS(SETTING_TOTAL)
#undef SETTING_USER
#undef SETTING_TOTAL
        {"limits", "connects-per-second", KIND_COUNT, offsetof(struct config, connects_per_second), 1,
         1000000},
    {"limits", "hello-timeout", KIND_SECONDS, offsetof(struct config, hello_timeout), 1, 3600},
    {"limits", "ring-size-max", KIND_SIZE, offsetof(struct config, ring_size_max), IPC_MIN_RING_SIZE,
     IPC_MAX_RING_SIZE},
    {"limits", "queue-bytes", KIND_SIZE, offsetof(struct config, queue_bytes), 65536, UINT64_C(1) << 46},
    {"limits", "total-queue-bytes", KIND_SIZE, offsetof(struct config, total_queue_bytes), 65536,
     UINT64_C(1) << 46},
};
#define N_SETTINGS (sizeof(settings) / sizeof(settings[0]))
static_assert(N_SETTINGS <= CONFIG_SETTINGS_MAX, "origin has a place for each setting");

void config_init(struct config *config)
{
    *config = (struct config){
        .log_level = LOG_INFO,
        .connects_per_second = IPC_CONNECTS_DEFAULT,
        .hello_timeout = IPC_HELLO_TIMEOUT_DEFAULT,
        .ring_size_max = IPC_MAX_RING_SIZE,
#define DEFAULT_OF(id, setting, what, bytes, user, total_default, most, advice) \
 .per_user[LIMIT_##id] = (user), .total[LIMIT_##id] = (total_default),
        LIMITS(DEFAULT_OF)
#undef DEFAULT_OF
            .queue_bytes = IPC_QUEUE_BYTES_USER_DEFAULT,
    };
}

void config_done(struct config *config)
{
    free(config->queues);
    config->queues = NULL;
    config->n_queues = 0;
    policy_done(&config->policy);
    config_quotas_done(config);
}

struct parser {
    struct config *config;
    struct config_queue *queue;           /* whose section this is */
    struct policy_rule *rule;             /* the same */
    struct config_quota *quota;           /* the same */
    unsigned set_at[CONFIG_SETTINGS_MAX]; /* line in this file, or 0 */
    bool kept; /* config_print() wrote it: where a thing comes from is the comment before it */
};

static void put_origin(const struct inifile *file, char origin[CONFIG_ORIGIN_SIZE])
{
    const struct parser *parser = file->context;

    if (parser->kept)
        (void)snprintf(origin, CONFIG_ORIGIN_SIZE, "%.95s", file->comment);
    else
        (void)snprintf(origin, CONFIG_ORIGIN_SIZE, "%s:%u", file->path, file->line);
}

static struct config_queue *queue_of(struct config *config, const char *name)
{
    struct config_queue *queues;

    for (size_t i = 0; i < config->n_queues; i++)
        if (strcmp(config->queues[i].name, name) == 0)
            return &config->queues[i];
    queues = reallocarray(config->queues, config->n_queues + 1, sizeof(*queues));
    if (!queues)
        return NULL;
    config->queues = queues;
    queues += config->n_queues++;
    *queues = (struct config_queue){0};
    (void)snprintf(queues->name, sizeof(queues->name), "%s", name);
    ipc_queue_settings_init(&queues->settings);
    return queues;
}

static void check_queue(struct inifile *file, const char *name)
{
    struct parser *parser = file->context;
    const char *wrong = ipc_name_check(name, false);

    if (wrong) {
        inifile_mistake(file, "[queue NAME]: this is no name of a queue: %s", wrong);
        return;
    }
    parser->queue = queue_of(parser->config, name);
    if (!parser->queue)
        inifile_no_memory(file);
    else if (!parser->queue->origin[0])
        put_origin(file, parser->queue->origin);
}

static void check_rule(struct inifile *file, const char *name)
{
    struct parser *parser = file->context;

    parser->rule = policy_file_rule(file, &parser->config->policy, name);
    if (parser->rule && parser->kept)
        put_origin(file, parser->rule->origin);
}

static void check_quota(struct inifile *file, const char *name)
{
    struct parser *parser = file->context;

    if (!policy_file_label(file, "quota", name))
        return;
    parser->quota = config_quota_of(parser->config, name);
    if (!parser->quota)
        inifile_mistake(file, "out of memory");
    else if (!parser->quota->rule.origin[0])
        put_origin(file, parser->quota->rule.origin);
}

static void on_section(struct inifile *file, const char *name)
{
    struct parser *parser = file->context;
    char quoted[80];

    parser->queue = NULL;
    parser->rule = NULL;
    parser->quota = NULL;
    if (strcmp(name, "broker") == 0 || strcmp(name, "limits") == 0)
        return;
    if (strncmp(name, "queue ", 6) == 0) {
        check_queue(file, name + 6 + strspn(name + 6, " "));
        return;
    }
    if (strncmp(name, "rule ", 5) == 0) {
        check_rule(file, name + 5 + strspn(name + 5, " "));
        return;
    }
    if (strncmp(name, "quota ", 6) == 0) {
        check_quota(file, name + 6 + strspn(name + 6, " "));
        return;
    }
    text_quote(quoted, sizeof(quoted), name);
    inifile_mistake(
        file,
        "unknown section [%s]; there are [broker], [limits], [queue NAME], [rule NAME] and [quota NAME]",
        quoted);
}

static void parse_number(struct inifile *file, const char *key, enum kind kind, uint64_t least, uint64_t most,
                         const char *value, uint64_t *field)
{
    bool size = kind == KIND_SIZE;
    char least_text[32], most_text[32], quoted[64];
    uint64_t number = 0;
    int result = text_to_number(value, size, &number);

    if (result == 0 && number >= least && number <= most) {
        *field = number;
        return;
    }
    text_from_number(least_text, sizeof(least_text), least, size);
    text_from_number(most_text, sizeof(most_text), most, size);
    text_quote(quoted, sizeof(quoted), value);
    inifile_mistake(file, "%s = %s: a whole number%s from %s to %s is allowed%s", key, quoted,
                    kind == KIND_SECONDS ? " of seconds" : "", least_text, most_text,
                    size ? ", with K, M or G for 1024, 1024^2, 1024^3 bytes" : "");
}

static void parse_mode(struct inifile *file, const char *value, uint64_t *field)
{
    uint64_t mode = 0;
    size_t size = strlen(value);
    char quoted[64];

    if (size < 3 || size > 4 || strspn(value, "01234567") != size || (size == 4 && value[0] != '0')) {
        text_quote(quoted, sizeof(quoted), value);
        inifile_mistake(file, "socket-mode = %s: three octal digits are allowed, such as 660", quoted);
        return;
    }
    for (; *value; value++)
        mode = mode << 3 | (uint64_t)(*value - '0');
    *field = mode;
}

static void parse_value(struct inifile *file, const struct setting *setting, const char *value)
{
    const struct parser *parser = file->context;
    char *field = (char *)parser->config + setting->offset;
    char quoted[64];

    text_quote(quoted, sizeof(quoted), value);
    switch (setting->kind) {
    case KIND_PATH:
        if (value[0] != '/')
            inifile_mistake(file, "%s = %s: an absolute path is expected", setting->key, quoted);
        else if (strlen(value) > IPC_MAX_ADDRESS_SIZE)
            inifile_mistake(file, "%s: a path of at most %u bytes is allowed", setting->key,
                            IPC_MAX_ADDRESS_SIZE);
        else
            (void)snprintf(field, IPC_MAX_ADDRESS_SIZE + 1, "%s", value);
        break;
    case KIND_LEVEL:
        if (log_level_from_word(value) < 0)
            inifile_mistake(file, "%s = %s: error, warning, notice, info and debug are allowed", setting->key,
                            quoted);
        else
            *(uint64_t *)(void *)field = (uint64_t)log_level_from_word(value);
        break;
    case KIND_MODE:
        parse_mode(file, value, (uint64_t *)(void *)field);
        break;
    case KIND_COUNT:
    case KIND_SECONDS:
    case KIND_SIZE:
        parse_number(file, setting->key, setting->kind, setting->least, setting->most, value,
                     (uint64_t *)(void *)field);
        break;
    }
}

/* The settings of a kind of section, one by one; NULL: no more. */
static const char *setting_of(const char *section, size_t i)
{
    if (strcmp(section, "queue NAME") == 0)
        return i < IPC_QUEUE_SETTINGS ? ipc_queue_settings[i].name : NULL;
    if (strcmp(section, "rule NAME") == 0)
        return i < POLICY_SETTINGS ? policy_settings[i] : NULL;
    if (strcmp(section, "quota NAME") == 0)
        return i == 0 ? "who" : i <= USER_LIMITS ? user_limit_about[i - 1].setting : NULL;
    for (size_t j = 0; j < N_SETTINGS; j++)
        if (strcmp(settings[j].section, section) == 0 && i-- == 0)
            return settings[j].key;
    return NULL;
}

static void unknown_key(struct inifile *file, const char *section, const char *key)
{
    const struct parser *parser = file->context;
    const char *kind = parser->queue                    ? "queue NAME"
                       : parser->rule                   ? "rule NAME"
                       : parser->quota                  ? "quota NAME"
                       : strcmp(section, "broker") == 0 ? "broker"
                       : strcmp(section, "limits") == 0 ? "limits"
                                                        : NULL,
               *known;
    char quoted[80], all[1024] = "";
    size_t at = 0;

    text_quote(quoted, sizeof(quoted), key);
    if (section[0] == '\0') {
        inifile_mistake(file, "'%s' stands before any section; write [broker] or [limits] first", quoted);
        return;
    }
    if (!kind)
        return; /* the section was reported */
    for (size_t i = 0; (known = setting_of(kind, i)) && at < sizeof(all); i++)
        at += (size_t)snprintf(all + at, sizeof(all) - at, " %s", known);
    inifile_mistake(file, "unknown setting '%s' in [%s]; there are:%s", quoted, kind, all);
}

static void parse_queue_setting(struct inifile *file, const struct ipc_queue_setting *setting,
                                const char *value)
{
    struct config_queue *queue = ((struct parser *)file->context)->queue;
    char why[IPC_QUEUE_TEXT_SIZE];

    if (!inifile_once(file, &queue->set_at[setting - ipc_queue_settings], setting->name))
        return;
    if (ipc_queue_setting_parse(setting, value, &queue->settings, why) < 0)
        inifile_mistake(file, "%s", why);
    else if (setting->kind == IPC_QUEUE_NAME)
        (void)snprintf(queue->dead_letter, sizeof(queue->dead_letter), "%s", queue->settings.dead_letter);
    queue->settings.dead_letter = (char *)(uintptr_t)protobuf_c_empty_string;
    if (strcmp(queue->dead_letter, queue->name) == 0)
        inifile_mistake(file, "dead-letter: a queue cannot be the queue of its own dead letters");
}

static void parse_quota_setting(struct inifile *file, int limit, const char *value)
{
    struct config_quota *quota = ((struct parser *)file->context)->quota;
    const struct user_limit_about *about = &user_limit_about[limit];

    if (inifile_once(file, &quota->set_at[limit], about->setting))
        parse_number(file, about->setting, about->bytes ? KIND_SIZE : KIND_COUNT, about->least,
                     about->highest, value, &quota->most[limit]);
}

/* Only in what an ipcd before has kept. */
static void parse_members(struct inifile *file, const char *value)
{
    struct config_quota *quota = ((struct parser *)file->context)->quota;
    char *end;

    for (; *value; value = end + strspn(end, " ")) {
        unsigned long uid = strtoul(value, &end, 10);

        if (end == value || !config_quota_add_member(quota, (uint32_t)uid)) {
            inifile_mistake(file, "members: a list of uids is expected");
            return;
        }
    }
}

static void on_setting(struct inifile *file, const char *section, const char *key, const char *value)
{
    struct parser *parser = file->context;
    const struct ipc_queue_setting *of_queue = parser->queue ? ipc_queue_setting_find(key) : NULL;

    if (of_queue) {
        parse_queue_setting(file, of_queue, value);
        return;
    }
    if (parser->rule && policy_setting_find(key) >= 0) {
        policy_file_setting(file, parser->rule, policy_setting_find(key), value, false);
        return;
    }
    if (parser->quota && strcmp(key, "who") == 0) {
        policy_file_setting(file, &parser->quota->rule, policy_setting_find(key), value, false);
        return;
    }
    if (parser->kept && strcmp(key, "lowered") == 0) {
        parser->config->lowered = true;
        return;
    }
    if (parser->quota && parser->kept && strcmp(key, "members") == 0) {
        parse_members(file, value);
        return;
    }
    if (parser->quota && config_quota_setting(key) >= 0) {
        parse_quota_setting(file, config_quota_setting(key), value);
        return;
    }
    for (size_t i = 0; i < N_SETTINGS; i++) {
        if (strcmp(settings[i].section, section) != 0 || strcmp(settings[i].key, key) != 0)
            continue;
        if (!inifile_once(file, &parser->set_at[i], key))
            return;
        parse_value(file, &settings[i], value);
        put_origin(file, parser->config->origin[i]);
        return;
    }
    unknown_key(file, section, key);
}

static unsigned parse_text(struct config *config, bool kept, const char *path, const char *text, size_t size,
                           FILE *errors)
{
    static const struct inifile_use use = {on_section, on_setting};
    struct parser parser = {.config = config, .kept = kept};

    for (size_t i = 0; i < config->n_queues; i++)
        memset(config->queues[i].set_at, 0, sizeof(config->queues[i].set_at));
    policy_file_begin(&config->policy);
    for (size_t i = 0; i < config->n_quotas; i++) {
        memset(config->quotas[i].set_at, 0, sizeof(config->quotas[i].set_at));
        memset(config->quotas[i].rule.set_at, 0, sizeof(config->quotas[i].rule.set_at));
    }
    return inifile_parse(&use, &parser, path, text, size, errors);
}

unsigned config_parse(struct config *config, const char *path, const char *text, size_t size, FILE *errors)
{
    return parse_text(config, false, path, text, size, errors);
}

unsigned config_load_kept(struct config *config, int fd, FILE *errors)
{
    struct stat st;
    const char *text = fstat(fd, &st) < 0 || st.st_size == 0
                           ? MAP_FAILED
                           : mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    unsigned mistakes;

    if (text == MAP_FAILED) {
        fprintf(errors, "the configuration of the ipcd before cannot be read: %s\n", strerror(errno));
        return 1;
    }
    mistakes =
        parse_text(config, true, "the configuration of the ipcd before", text, (size_t)st.st_size, errors);
    (void)munmap((void *)(uintptr_t)text, (size_t)st.st_size);
    config->kept = true;
    return mistakes;
}

static unsigned parse_file(void *context, const char *path, const char *text, size_t size, FILE *errors)
{
    return config_parse(context, path, text, size, errors);
}

/* A rule or quota may be spread over files, so whether it is whole shows only in the end. */
static unsigned check_rules(const struct config *config, FILE *errors)
{
    unsigned mistakes = 0;

    for (size_t i = 0; i < config->n_quotas; i++) {
        const struct config_quota *quota = &config->quotas[i];
        const char *wrong = config_quota_wrong(quota);

        if (wrong) {
            fprintf(errors, "%s: [quota %s]: %s\n", quota->rule.origin, quota->rule.name, wrong);
            mistakes++;
        }
    }
    return mistakes + policy_file_check(&config->policy, errors);
}

unsigned config_load(struct config *config, const char *path, bool required, FILE *errors)
{
    unsigned mistakes = inifile_load(parse_file, config, path, required, errors);

    return mistakes + check_rules(config, errors);
}

char *config_default_path(void)
{
    return inifile_default_path("ipcd.conf");
}

/* What is allocated beyond a cgroup's limit is not refused: the kernel kills. */
static void lower_to_memory(struct config *config)
{
    uint64_t limit = config->memory_limit, own = limit / 4 > CORE_BYTES ? limit / 4 : CORE_BYTES;
    uint64_t room = limit > own ? limit - own : 0, *segments = &config->total[LIMIT_SEGMENT_BYTES];

    if (limit == UINT64_MAX || (*segments <= room && config->total_queue_bytes <= room - *segments))
        return;
    if (config->total_queue_bytes > room / 3)
        config->total_queue_bytes = room / 3;
    if (*segments > room - config->total_queue_bytes)
        *segments = room - config->total_queue_bytes;
    config->lowered = true;
}

void config_resolve(struct config *config, size_t open_files_max)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct sysinfo memory = {0};
    uint64_t open_files, own, all;

    if (config->router_threads == 0)
        config->router_threads = cpus < 8                     ? 1
                                 : cpus / 4 < IPC_MAX_ROUTERS ? (uint64_t)cpus / 4
                                                              : IPC_MAX_ROUTERS;
    own = IPC_CORE_FDS_BASE + IPC_CORE_FDS_PER_ROUTER * config->router_threads;
    open_files = open_files_max > 2 * own ? open_files_max - own : own;

    if (config->total[LIMIT_DESCRIPTORS] == 0 || config->total[LIMIT_DESCRIPTORS] > open_files)
        config->total[LIMIT_DESCRIPTORS] = open_files;
    if (config->per_user[LIMIT_DESCRIPTORS] == 0)
        config->per_user[LIMIT_DESCRIPTORS] = open_files - open_files / 4;
    all = sysinfo(&memory) == 0 ? (uint64_t)memory.totalram * memory.mem_unit : UINT64_C(1) << 32;
    config->memory_limit = memory_limit();
    if (all > config->memory_limit)
        all = config->memory_limit;
    if (config->total[LIMIT_SEGMENT_BYTES] == 0)
        config->total[LIMIT_SEGMENT_BYTES] = all / 2;
    if (config->total_queue_bytes == 0)
        config->total_queue_bytes = all / 4;
    lower_to_memory(config);
    if (config->socket_mode == 0)
        config->socket_mode = geteuid() == 0 ? 0666 : 0600;
    if (config->kept)
        return;
    policy_resolve(&config->policy, geteuid() < UID_OF_PEOPLE);
    if (config_quotas_resolve(config) < 0)
        log_write(LOG_CONFIG, NULL, "out of memory for the members of the groups in [quota NAME]");
}

/* For the next ipcd also who is in the groups: to ask for that again could take long. */
static void print_members(const struct config_quota *quota, FILE *out)
{
    for (size_t i = 0; i < quota->n_members; i++)
        fprintf(out, "%s%" PRIu32, i % MEMBERS_PER_LINE ? " " : "\nmembers = ", quota->members[i]);
    fputc('\n', out);
}

static void print_quotas(const struct config *config, bool keep, FILE *out)
{
    char text[2 * POLICY_TEXT];

    for (size_t i = 0; i < config->n_quotas; i++) {
        const struct config_quota *quota = &config->quotas[i];

        policy_setting_print(&quota->rule, policy_setting_find("who"), text);
        fprintf(out, "\n# %s\n[quota %s]\nwho = %s\n", quota->rule.origin, quota->rule.name, text);
        for (unsigned j = 0; j < USER_LIMITS; j++) {
            if (!quota->most[j])
                continue;
            text_from_number(text, sizeof(text), quota->most[j], user_limit_about[j].bytes);
            fprintf(out, "%s = %s\n", user_limit_about[j].setting, text);
        }
        if (keep)
            print_members(quota, out);
    }
}

static void print(const struct config *config, bool keep, FILE *out)
{
    const char *section = "";

    if (keep && config->lowered)
        fputs("[limits]\nlowered = yes\n\n", out);
    for (size_t i = 0; i < N_SETTINGS; i++) {
        const char *field = (const char *)config + settings[i].offset;
        uint64_t number = 0;
        char text[IPC_MAX_ADDRESS_SIZE + 1];

        if (strcmp(section, settings[i].section) != 0)
            fprintf(out, "%s[%s]\n", *section ? "\n" : "", settings[i].section);
        section = settings[i].section;
        if (settings[i].kind == KIND_PATH && !*field)
            continue; /* it was passed a socket, and has no address: what is printed has to be readable */
        if (settings[i].kind != KIND_PATH)
            memcpy(&number, field, sizeof(number));
        switch (settings[i].kind) {
        case KIND_PATH:
            (void)snprintf(text, sizeof(text), "%s", field);
            break;
        case KIND_LEVEL:
            (void)snprintf(text, sizeof(text), "%s", log_level_word((int)number));
            break;
        case KIND_MODE:
            (void)snprintf(text, sizeof(text), "%03" PRIo64, number);
            break;
        case KIND_COUNT:
        case KIND_SECONDS:
        case KIND_SIZE:
            text_from_number(text, sizeof(text), number, settings[i].kind == KIND_SIZE);
            break;
        }
        fprintf(out, "# %s\n%s = %s\n", config->origin[i][0] ? config->origin[i] : "default", settings[i].key,
                text);
    }
    for (size_t i = 0; i < config->n_queues; i++) {
        const struct config_queue *queue = &config->queues[i];
        Ipc__Control__QueueSettings given = queue->settings;
        char text[IPC_QUEUE_TEXT_SIZE];

        given.dead_letter = (char *)(uintptr_t)queue->dead_letter;
        fprintf(out, "\n# %s\n[queue %s]\n", queue->origin, queue->name);
        for (size_t j = 0; j < IPC_QUEUE_SETTINGS; j++) {
            if (!ipc_queue_setting_given(&ipc_queue_settings[j], &given))
                continue;
            ipc_queue_setting_print(&ipc_queue_settings[j], &given, text);
            fprintf(out, "%s = %s\n", ipc_queue_settings[j].name, text);
        }
    }
    policy_file_print(&config->policy, out);
    print_quotas(config, keep, out);
}

void config_print(const struct config *config, FILE *out)
{
    print(config, false, out);
}

int config_keep(const struct config *config)
{
    int fd = fd_memory("ipc-config", MFD_CLOEXEC), copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    FILE *out = copy < 0 ? NULL : fdopen(copy, "w");

    if (!out) {
        fd_close(copy);
        return fd_close(fd);
    }
    print(config, true, out);
    return fclose(out) == 0 ? fd : fd_close(fd);
}
