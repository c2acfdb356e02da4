/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl doctor: whether a broker runs here as it should, and what to do if not.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libipc/session/session.h"
#include "proto/limits.h"
#include "tools/admin.h"
#include "tools/doctor.h"
#include "tools/output.h"
#include "tools/text.h"

static const char *const level_words[] = {"ok", "note", "problem"};

struct doctor_arguments {
    struct tool *tool;
    const char *config;
};

static const struct argp_option options[] = {
    {"config", 'c', "FILE", 0, "The broker's configuration, as ipcd takes it", 0}, {0}};

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct doctor_arguments *arguments = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = arguments->tool;
        return 0;
    case 'c':
        arguments->config = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

void doctor_find(struct doctor *doctor, const char *check, enum finding_level level, const char *advice,
                 const char *format, ...)
{
    struct finding finding = {.check = check, .level = level};
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&finding.text, format, arguments) < 0)
        finding.text = NULL;
    va_end(arguments);
    if (advice)
        finding.advice = strdup(advice);
    doctor->findings = tool_alloc(doctor->findings, (doctor->count + 1) * sizeof(*doctor->findings));
    doctor->findings[doctor->count++] = finding;
    doctor->problems += level == FINDING_PROBLEM;
    doctor->notes += level == FINDING_NOTE;
}

/* ---- the socket and its folder ------------------------------------------------------------------------------ */

static void check_folder(struct doctor *doctor, uid_t broker)
{
    char path[IPC_MAX_ADDRESS_SIZE + 1];
    struct stat st;
    snprintf(path, sizeof(path), "%s", doctor->address);
    char *end = strrchr(path, '/');
    if (end)
        end[end == path] = '\0';
    if (!end || stat(path, &st) < 0) {
        doctor_find(doctor, "folder", FINDING_PROBLEM,
                    "start ipcd, which makes its folder, or systemd-tmpfiles --create",
                    "the folder of %s cannot be looked at: %s", doctor->address, strerror(errno));
        return;
    }
    if (st.st_mode & S_IWOTH && !(st.st_mode & S_ISVTX))
        doctor_find(doctor, "folder", FINDING_PROBLEM, "chmod o-w it",
                    "anybody may replace the broker's socket: %s has mode %04o", path,
                    (unsigned)st.st_mode & 07777);
    else if (st.st_uid != 0 && st.st_uid != geteuid() && st.st_uid != broker)
        doctor_find(doctor, "folder", FINDING_PROBLEM,
                    "use a folder of root or of the broker's user, or name the right socket with --address",
                    "%s belongs to user %u, who could answer in the broker's place", path,
                    (unsigned)st.st_uid);
    else
        doctor_find(doctor, "folder", FINDING_OK, NULL, "%s has mode %04o, and is user %u's", path,
                    (unsigned)st.st_mode & 07777, (unsigned)st.st_uid);
}

static void check_socket(struct doctor *doctor)
{
    struct stat st;
    if (lstat(doctor->address, &st) < 0)
        doctor_find(doctor, "socket", FINDING_PROBLEM,
                    errno == EACCES ? "its folder lets this user not in: see its mode and group"
                                    : "start ipcd-run, or name the socket with --address or IPC_ADDRESS",
                    "%s: %s", doctor->address, strerror(errno));
    else if (!S_ISSOCK(st.st_mode))
        doctor_find(doctor, "socket", FINDING_PROBLEM, "move it away, and start ipcd again",
                    "%s is no socket", doctor->address);
    else if (access(doctor->address, W_OK) < 0)
        doctor_find(doctor, "socket", FINDING_PROBLEM, "see socket-mode in [broker] of ipcd.conf",
                    "this user may not connect: %s has mode %04o", doctor->address,
                    (unsigned)st.st_mode & 07777);
    else
        doctor_find(doctor, "socket", FINDING_OK, NULL, "%s has mode %04o", doctor->address,
                    (unsigned)st.st_mode & 07777);
}

/* ---- the broker --------------------------------------------------------------------------------------------- */

/* The hard limit of open files of a process; 0: cannot be read. */
static uint64_t open_files_of(uint32_t pid)
{
    char path[32], line[256];
    uint64_t soft = 0, hard = 0;
    snprintf(path, sizeof(path), "/proc/%" PRIu32 "/limits", pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof(line), file))
        if (sscanf(line, "Max open files %" SCNu64 " %" SCNu64, &soft, &hard) == 2)
            break;
    if (file)
        fclose(file);
    return hard;
}

static void check_descriptors(struct doctor *doctor, const Ipc__Control__StatusReply *status)
{
    static const char raise[] = "raise LimitNOFILE= of the service, or `ulimit -Hn' of who starts it";
    uint64_t limit = open_files_of(status->pid);
    bool tight = status->descriptors > status->descriptors_max / 10 * 9;
    /* Sessions alone. */
    bool low = limit && limit < IPC_CORE_FDS_BASE + IPC_CORE_FDS_PER_SESSION * (uint64_t)IPC_SESSIONS_DEFAULT;
    doctor_find(doctor, "descriptors", tight ? FINDING_PROBLEM : FINDING_OK,
                tight ? "see who has them (`ipcctl quota'), or raise LimitNOFILE=" : NULL,
                "the broker has %" PRIu64 " of the %" PRIu64 " that it may have", status->descriptors,
                status->descriptors_max);
    if (limit && limit < IPC_CORE_NOFILE)
        doctor_find(doctor, "descriptors", low ? FINDING_PROBLEM : FINDING_NOTE, raise,
                    "its limit of open files is %" PRIu64 "; %s takes %u", limit,
                    low ? "what one user may have by default, with topics and queues,"
                        : "all that it may hold",
                    IPC_CORE_NOFILE);
}

static void check_memory(struct doctor *doctor, const Ipc__Control__StatusReply *status)
{
    char limit[TEXT_NUMBER_SIZE], segments[TEXT_NUMBER_SIZE], queues[TEXT_NUMBER_SIZE];
    text_bytes(segments, status->segment_bytes_max);
    text_bytes(queues, status->queue_bytes_max);
    if (status->memory_limit)
        text_bytes(limit, status->memory_limit);
    else
        snprintf(limit, sizeof(limit), "none");
    doctor_find(doctor, "memory", status->lowered ? FINDING_PROBLEM : FINDING_OK,
                status->lowered ? "raise MemoryMax= of the service, or set less in [limits] of ipcd.conf"
                                : NULL,
                "total-segment-bytes is %s, total-queue-bytes %s, the limit of the memory cgroup %s%s",
                segments, queues, limit, status->lowered ? ": both were lowered to fit into it" : "");
}

static void check_status(struct doctor *doctor, const Ipc__Control__StatusReply *status)
{
    bool other = strcmp(status->version, IPCD_VERSION) != 0;
    bool guarded = strcmp(status->guardian, "ipcd-run") == 0;
    doctor_find(doctor, "broker", other ? FINDING_NOTE : FINDING_OK,
                other ? "restart the broker with the installed version: ipcd-run keeps its sessions" : NULL,
                "ipcd %s answers (process %" PRIu32 ", start %" PRIu32 ")%s", status->version, status->pid,
                status->starts, other ? ", and this is ipcctl " IPCD_VERSION : "");
    doctor_find(doctor, "guardian", guarded ? FINDING_OK : FINDING_NOTE,
                guarded ? NULL : "start it by ipcd-run, or by the systemd unit",
                guarded ? "ipcd-run keeps its sessions" : "if the broker dies, its sessions end");
    if (!status->membarrier)
        doctor_find(doctor, "broker", FINDING_NOTE,
                    "allow membarrier(2) in the service's filter of system calls",
                    "the broker has no membarrier: each publish costs a fence");
    check_descriptors(doctor, status);
    check_memory(doctor, status);
}

/* Who the broker runs as, or UINT32_MAX. */
static uid_t check_broker(struct doctor *doctor, const struct tool *tool)
{
    _cleanup_admin_ struct admin *admin = NULL;
    const Ipc__Control__StatusReply *reply = NULL;
    char why[512] = "";
    tool_fail_into(why, sizeof(why));
    int status = admin_open(&admin, tool);
    if (status == TOOL_OK)
        status = admin_status(admin, &reply);
    tool_fail_into(NULL, 0);
    if (status != TOOL_OK) {
        doctor_find(doctor, "broker", FINDING_PROBLEM, "see the other findings, and the log of ipcd",
                    "no broker answers: %s", why);
        return UINT32_MAX;
    }
    doctor->answers = true;
    check_status(doctor, reply);
    char path[32];
    struct stat st;
    snprintf(path, sizeof(path), "/proc/%" PRIu32, reply->pid);
    return stat(path, &st) == 0 ? st.st_uid : UINT32_MAX;
}

/* ---- output ------------------------------------------------------------------------------------------------- */

static void print_json(const struct doctor *doctor)
{
    json_t *document = json_object(), *findings = json_array();
    for (size_t i = 0; i < doctor->count; i++) {
        const struct finding *finding = &doctor->findings[i];
        json_t *row = json_object();
        output_set(row, "check", output_string(finding->check));
        output_set(row, "result", output_string(level_words[finding->level]));
        output_set(row, "text", output_string(finding->text ? finding->text : ""));
        output_set(row, "advice", finding->advice ? output_string(finding->advice) : json_null());
        output_append(findings, row);
    }
    output_set(document, "address", output_string(doctor->address));
    output_set(document, "problems", output_number(doctor->problems));
    output_set(document, "notes", output_number(doctor->notes));
    output_set(document, "findings", findings);
    output_document(document);
}

static void print_text(const struct doctor *doctor, const struct tool *tool)
{
    for (size_t i = 0; i < doctor->count; i++) {
        const struct finding *finding = &doctor->findings[i];
        enum tone tone = finding->level == FINDING_PROBLEM ? TONE_BAD
                         : finding->level == FINDING_NOTE  ? TONE_BOLD
                                                           : TONE_DIM;
        printf("%s%-7s%s  %-13s  ", output_tone(tool, tone), level_words[finding->level],
               output_tone_end(tool, tone), finding->check);
        text_escape(stdout, finding->text ? finding->text : "", finding->text ? strlen(finding->text) : 0);
        putchar('\n');
        if (finding->advice)
            printf("%25s-> %s\n", "", finding->advice);
    }
}

int cmd_doctor(struct tool *tool, int argc, char **argv)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = tool_argp_children,
        .doc =
            "Look whether a broker runs here as it should: its socket, limits, memory, version, service and "
            "configuration, the kernel, mqueues, what earlier ones left; and say what to do.\v"
            "The exit status is 0 if there is no problem (there may be notes), else 1. It changes nothing, and sees "
            "what its user may see: root sees most."};
    struct doctor_arguments arguments = {.tool = tool};
    if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
        return TOOL_USAGE;

    char address[IPC_MAX_ADDRESS_SIZE + 1];
    struct doctor doctor = {.address = address};
    if (address_resolve(address, sizeof(address), tool->address) < 0)
        return tool_fail(TOOL_USAGE, "IPC_ADDRESS", "the path of a socket has at most %u bytes",
                         IPC_MAX_ADDRESS_SIZE);
    uid_t broker = check_broker(&doctor, tool);
    check_folder(&doctor, broker);
    check_socket(&doctor);
    doctor_leftovers(&doctor);
    doctor_configuration(&doctor, arguments.config);
    doctor_service(&doctor);
    doctor_mqueue(&doctor);
    doctor_kernel(&doctor);
    if (tool->json)
        print_json(&doctor);
    else
        print_text(&doctor, tool);
    int status = doctor.problems ? TOOL_FAILED : TOOL_OK;
    for (size_t i = 0; i < doctor.count; i++) {
        free(doctor.findings[i].text);
        free(doctor.findings[i].advice);
    }
    free(doctor.findings);
    return status;
}
