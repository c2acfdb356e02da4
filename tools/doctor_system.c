/* SPDX-License-Identifier: Apache-2.0
 *
 * What ipcctl doctor looks at without a broker: the kernel, mqueues, what earlier brokers left, the service's limits, the
 * configuration. It sees what its user may see, and changes nothing.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/limits.h"
#include "tools/doctor.h"
#include "tools/text.h"

#ifndef SO_PEERPIDFD
# define SO_PEERPIDFD 77
#endif
#ifndef SO_PASSRIGHTS
# define SO_PASSRIGHTS 83
#endif
#ifndef SYS_futex_waitv
# define SYS_futex_waitv 449
#endif

#define MQUEUE_MAGIC 0x19800202

/* ---- the kernel --------------------------------------------------------------------------------------------- */

static bool socket_knows(int option)
{
    int pair[2], value;
    socklen_t size = sizeof(value);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return true;
    bool known = getsockopt(pair[0], SOL_SOCKET, option, &value, &size) == 0 || errno != ENOPROTOOPT;
    if (known && option == SO_PEERPIDFD && size == sizeof(value) && value > 2)
        close(value);
    close(pair[0]);
    close(pair[1]);
    return known;
}

void doctor_kernel(struct doctor *doctor)
{
    struct utsname name;
    if (uname(&name) < 0)
        return;
    long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    if (commands < 0 || !(commands & MEMBARRIER_CMD_GLOBAL_EXPEDITED))
        doctor_find(doctor, "kernel", FINDING_NOTE, "allow membarrier(2) in the filter of system calls",
                    "membarrier is not there or not allowed: each publish costs a fence");
    if (syscall(SYS_futex_waitv, NULL, 0, 0, NULL, 0) < 0 && errno == ENOSYS)
        doctor_find(doctor, "kernel", FINDING_NOTE,
                    "run Linux 5.16 or newer, or allow futex_waitv in the filter",
                    "futex_waitv is not there: waiting for several lanes takes bells");
    if (!socket_knows(SO_PEERPIDFD))
        doctor_find(doctor, "kernel", FINDING_NOTE, "run Linux 6.5 or newer",
                    "SO_PEERPIDFD is not there: clients are found by the number of their process");
    if (!socket_knows(SO_PASSRIGHTS))
        doctor_find(
            doctor, "kernel", FINDING_NOTE, "run Linux 6.16 or newer if clients are not trusted",
            "SO_PASSRIGHTS is not there: a client can hold up the broker by a descriptor that it sends");
    int fd = memfd_create("ipcctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        doctor_find(doctor, "kernel", FINDING_PROBLEM, "allow memfd_create(2) and seals in the sandbox",
                    "memory cannot be made and sealed: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    doctor_find(doctor, "kernel", FINDING_OK, NULL, "Linux %s", name.release);
}

/* ---- mqueues ------------------------------------------------------------------------------------------------ */

static bool number_in(const char *path, uint64_t *ret)
{
    FILE *file = fopen(path, "re");
    bool found = file && fscanf(file, "%" SCNu64, ret) == 1;
    if (file)
        fclose(file);
    return found;
}

void doctor_mqueue(struct doctor *doctor)
{
    static const struct {
        const char *name;
        uint64_t usual;
        const char *what, *advice;
    } settings[] = {
        {"msg_max", 10, "messages in an mqueue", "sysctl -w fs.mqueue.msg_max=10, or more"},
        {"msgsize_max", 8192, "bytes of a message in an mqueue",
         "sysctl -w fs.mqueue.msgsize_max=8192, or more"},
        {"queues_max", 256, "mqueues of all users", "sysctl -w fs.mqueue.queues_max=256, or more"},
    };
    struct rlimit limit;
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        char path[64];
        uint64_t value;
        snprintf(path, sizeof(path), "/proc/sys/fs/mqueue/%s", settings[i].name);
        if (!number_in(path, &value)) {
            doctor_find(doctor, "mqueue", FINDING_NOTE, "only ipcd-mq needs them",
                        "the kernel has no mqueues, or shows no settings of them");
            return;
        }
        bool low = value < settings[i].usual;
        doctor_find(doctor, "mqueue", low ? FINDING_PROBLEM : FINDING_OK, low ? settings[i].advice : NULL,
                    "fs.mqueue.%s is %" PRIu64 " (%s)%s", settings[i].name, value, settings[i].what,
                    low ? ", less than Linux gives by itself" : "");
    }
    if (getrlimit(RLIMIT_MSGQUEUE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        doctor_find(doctor, "mqueue", limit.rlim_cur < 81920 ? FINDING_PROBLEM : FINDING_OK,
                    limit.rlim_cur < 81920 ? "ulimit -q 819200, or LimitMSGQUEUE= of the service" : NULL,
                    "a user's mqueues may take %" PRIu64 " bytes%s", (uint64_t)limit.rlim_cur,
                    limit.rlim_cur < 81920 ? ", not enough for one of 10 messages of 8 KiB" : "");
}

/* ---- what earlier brokers left ------------------------------------------------------------------------------ */

/* What the descriptors of all processes that we may look into lead to. */
struct open_files {
    size_t segments, holders; /* of brokers, and the processes that have them */
    pid_t holder;
    char **mqueues;
    size_t n_mqueues;
};

static void look_at_link(struct open_files *files, const char *target, bool *holds)
{
    if (strncmp(target, "/memfd:ipc-", 11) == 0 || strncmp(target, "/memfd:ipcd-", 12) == 0) {
        files->segments++;
        *holds = true;
    } else if (target[0] == '/' && strchr(target + 1, '/') == NULL) {
        files->mqueues = tool_alloc(files->mqueues, (files->n_mqueues + 1) * sizeof(*files->mqueues));
        files->mqueues[files->n_mqueues++] = strdup(target + 1);
    }
}

static void look_at_process(struct open_files *files, const char *pid)
{
    char path[64], target[4096];
    struct dirent *entry;
    bool holds = false;
    snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
    DIR *folder = opendir(path);
    while (folder && (entry = readdir(folder))) {
        ssize_t size = readlinkat(dirfd(folder), entry->d_name, target, sizeof(target) - 1);
        if (size > 0) {
            target[size] = '\0';
            look_at_link(files, target, &holds);
        }
    }
    if (folder)
        closedir(folder);
    if (holds) {
        files->holders++;
        files->holder = (pid_t)strtol(pid, NULL, 10);
    }
}

static void look_at_processes(struct open_files *files)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc)))
        if (isdigit((unsigned char)entry->d_name[0]))
            look_at_process(files, entry->d_name);
    if (proc)
        closedir(proc);
}

static bool is_open(const struct open_files *files, const char *mqueue)
{
    for (size_t i = 0; i < files->n_mqueues; i++)
        if (files->mqueues[i] && strcmp(files->mqueues[i], mqueue) == 0)
            return true;
    return false;
}

/* Their sizes are in the text of the file: QSIZE:bytes ... */
static void look_at_mqueues(struct doctor *doctor, const struct open_files *files)
{
    struct statfs about;
    struct dirent *entry;
    if (statfs("/dev/mqueue", &about) < 0 || about.f_type != MQUEUE_MAGIC)
        return;
    DIR *folder = opendir("/dev/mqueue");
    while (folder && (entry = readdir(folder))) {
        if (entry->d_name[0] == '.' || is_open(files, entry->d_name))
            continue;
        int fd = openat(dirfd(folder), entry->d_name, O_RDONLY | O_CLOEXEC);
        char text[128] = "";
        if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
            text[0] = '\0';
        if (fd >= 0)
            close(fd);
        uint64_t bytes = strncmp(text, "QSIZE:", 6) == 0 ? strtoull(text + 6, NULL, 10) : 0;
        doctor_find(doctor, "leftovers", FINDING_NOTE, "if nobody needs it, remove it below /dev/mqueue",
                    "no process that can be seen has mqueue /%s open, which holds %" PRIu64 " bytes",
                    entry->d_name, bytes);
    }
    if (folder)
        closedir(folder);
}

/* 1: somebody listens, 0: nobody does, -1: there is none, or it cannot be said. */
static int listens(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), result = -1;
    if (fd < 0)
        return -1;
    if (strlen(path) < sizeof(address.sun_path)) {
        memcpy(address.sun_path, path, strlen(path));
        result = connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN ? 1
                 : errno == ECONNREFUSED                                                                 ? 0
                                                                                                         : -1;
    }
    close(fd);
    return result;
}

void doctor_leftovers(struct doctor *doctor)
{
    struct open_files files = {0};
    char guard[IPC_MAX_ADDRESS_SIZE + 8];
    size_t before = doctor->count;
    snprintf(guard, sizeof(guard), "%s.guard", doctor->address);
    if (listens(doctor->address) == 0)
        doctor_find(doctor, "leftovers", FINDING_PROBLEM,
                    "start ipcd-run (or ipcd) again: it takes the place of the socket",
                    "%s is there, but nobody listens: its broker was killed, and nobody started it again",
                    doctor->address);
    if (listens(guard) == 0)
        doctor_find(doctor, "leftovers", FINDING_PROBLEM,
                    "start ipcd-run again: it takes the place of the socket",
                    "%s is there, but no ipcd has it: both it and its ipcd-run were killed", guard);
    look_at_processes(&files);
    if (!doctor->answers && files.holders)
        doctor_find(
            doctor, "leftovers", FINDING_NOTE,
            "it is given back when these processes close their connections or end",
            "no broker answers, but %zu processes (such as %d) have %zu descriptors of memory of a broker",
            files.holders, (int)files.holder, files.segments);
    look_at_mqueues(doctor, &files);
    for (size_t i = 0; i < files.n_mqueues; i++)
        free(files.mqueues[i]);
    free(files.mqueues);
    if (doctor->count == before)
        doctor_find(doctor, "leftovers", FINDING_OK, NULL, "none");
}

/* ---- the service, the configuration --------------------------------------------------------------------------- */

static bool is_number(const char *text, uint64_t *ret)
{
    char *end;
    *ret = strtoull(text, &end, 10);
    return end != text && *end == '\0';
}

/* As systemd has it, if it is there and knows the unit. */
void doctor_service(struct doctor *doctor)
{
    char line[256];
    bool loaded = false;
    FILE *out =
        popen("systemctl show ipcd.service --property=LoadState,LimitNOFILE,KillMode 2>/dev/null", "re");
    while (out && fgets(line, sizeof(line), out)) {
        char *value = strchr(line, '=');
        uint64_t number;
        line[strcspn(line, "\n")] = '\0';
        if (!value)
            continue;
        *value++ = '\0';
        loaded = loaded || (strcmp(line, "LoadState") == 0 && strcmp(value, "loaded") == 0);
        if (strcmp(line, "LimitNOFILE") == 0 && is_number(value, &number) && number < IPC_CORE_NOFILE)
            doctor_find(doctor, "service", FINDING_PROBLEM,
                        "systemctl edit ipcd.service, and raise LimitNOFILE= in [Service]",
                        "LimitNOFILE of ipcd.service is %" PRIu64 ", and all that it may hold takes %u",
                        number, IPC_CORE_NOFILE);
        if (strcmp(line, "KillMode") == 0 && strcmp(value, "process") != 0)
            doctor_find(doctor, "service", FINDING_PROBLEM,
                        "systemctl edit ipcd.service, and set KillMode=process in [Service]",
                        "KillMode of ipcd.service is %s: a restart ends every session", value);
    }
    if (out)
        pclose(out);
    doctor_find(doctor, "service", FINDING_OK, NULL,
                loaded ? "ipcd.service is known to systemd" : "ipcd.service is not known to a systemd here");
}

/* As ipcd(8) says. */
void doctor_configuration(struct doctor *doctor, const char *file)
{
    int fds[2], status = -1;
    char line[512];
    size_t mistakes = 0;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(fds[1], 2) < 0)
            _exit(127);
        execlp("ipcd", "ipcd", "--check", file ? "--config" : NULL, file, NULL);
        _exit(127);
    }
    close(fds[1]);
    FILE *in = fdopen(fds[0], "r");
    while (in && fgets(line, sizeof(line), in)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "ipcd: ", 6) != 0 && mistakes++ < 20)
            doctor_find(doctor, "configuration", FINDING_PROBLEM, "mend it: see ipcd.conf(5)", "%s", line);
    }
    if (in)
        fclose(in);
    else
        close(fds[0]);
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 127))
        doctor_find(doctor, "configuration", FINDING_NOTE, "have ipcd in PATH, so that it can be asked",
                    "ipcd is not there to be asked about its configuration");
    else if (status != 0 && mistakes == 0)
        doctor_find(doctor, "configuration", FINDING_PROBLEM, "run `ipcd --check'",
                    "ipcd does not accept its configuration");
    else if (status == 0)
        doctor_find(doctor, "configuration", FINDING_OK, NULL, "no mistakes");
}
