/* SPDX-License-Identifier: Apache-2.0
 *
 * `ipcctl doctor`: each fault that a test can make is made, and has to be found by its check.
 */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/support/broker.h"
#include "tests/support/guarded.h"

static struct guarded guarded;
static char folder[64]; /* of a broker that is not there, and for files */

/* What it finds when `prepare` (or NULL) was called in its process first, which ends with 77 if it cannot. NULL: that. */
static json_t *examine_with(const char *address, bool (*prepare)(void), const char *option, int *ret_status)
{
    char where[128];
    int fds[2];

    snprintf(where, sizeof(where), "--address=%s", address);
    EXPECT_EQ(pipe(fds), 0);
    pid_t child = fork_child();
    EXPECT(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (prepare && !prepare())
            _exit(77);
        dup2(fds[1], 1);
        close(fds[0]);
        close(fds[1]);
        execl(getenv("IPCCTL_BIN"), "ipcctl", "doctor", "--json", "--timeout=0", where, option, NULL);
        _exit(126);
    }
    close(fds[1]);
    FILE *in = fdopen(fds[0], "r");
    json_t *document = json_loadf(in, 0, NULL);
    fclose(in);
    *ret_status = wait_child(child);
    return document;
}

/* The finding of a check whose text has that part. */
static const json_t *find(const json_t *document, const char *check, const char *part)
{
    const json_t *row;
    size_t i;

    json_array_foreach(json_object_get(document, "findings"), i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "check")), check) == 0 &&
            strstr(json_string_value(json_object_get(row, "text")), part))
            return row;
    }
    return NULL;
}

static void expect_found(const json_t *document, const char *check, const char *result, const char *part)
{
    const json_t *row = find(document, check, part);

    if (!row || strcmp(json_string_value(json_object_get(row, "result")), result) != 0) {
        char *text = json_dumps(document, JSON_INDENT(1));
        fprintf(stderr, "%s, %s: '%s' is not in %s\n", check, result, part, text);
        free(text);
        EXPECT(false);
    }
    /* Each says what to do, unless all is well. */
    EXPECT(json_is_string(json_object_get(row, "advice")) == (strcmp(result, "ok") != 0));
}

/* A fault, and what has to be found. Where the fault cannot be made, nothing is said. */
static void expect_fault(const char *address, bool (*prepare)(void), const char *option, const char *check,
                         const char *result, const char *part)
{
    int status;
    json_t *document = examine_with(address, prepare, option, &status);

    if (status == 77) {
        json_decref(document);
        return;
    }
    EXPECT(document != NULL);
    EXPECT_EQ(status, json_integer_value(json_object_get(document, "problems")) > 0);
    expect_found(document, check, result, part);
    json_decref(document);
}

static int setup(void **state)
{
    snprintf(folder, sizeof(folder), "/tmp/ipc-doctor.XXXXXX");
    EXPECT(mkdtemp(folder) != NULL);
    return 0;
}

static int teardown(void **state)
{
    char path[96];

    snprintf(path, sizeof(path), "%s/ipcd.conf", folder);
    unlink(path);
    snprintf(path, sizeof(path), "%s/systemctl", folder);
    unlink(path);
    snprintf(path, sizeof(path), "%s/socket", folder);
    unlink(path);
    EXPECT_EQ(rmdir(folder), 0);
    return 0;
}

static void test_a_broker_that_is_well(void **state)
{
    int status;

    guarded_start(&guarded, NULL);
    json_t *document = examine_with(guarded.address, NULL, NULL, &status);
    expect_found(document, "broker", "ok", " answers (process ");
    expect_found(document, "guardian", "ok", "keeps its sessions");
    expect_found(document, "folder", "ok", guarded.folder);
    expect_found(document, "socket", "ok", guarded.address);
    expect_found(document, "descriptors", "ok", "the broker has ");
    expect_found(document, "memory", "ok", "total-segment-bytes is ");
    EXPECT(find(document, "leftovers", guarded.folder) == NULL);
    json_decref(document);

    EXPECT_EQ(chmod(guarded.folder, 0777), 0);
    expect_fault(guarded.address, NULL, NULL, "folder", "problem", "anybody may replace the broker's socket");
    EXPECT_EQ(chmod(guarded.folder, 0700), 0);
    guarded_stop(&guarded);
}

/* As after an upgrade of ipcctl alone: both are told, and the rest of the findings still comes. */
static void test_a_broker_of_another_version(void **state)
{
    const char *const arguments[] = {"--ipcd", getenv("IPCD_OTHER_BIN"), NULL};

    EXPECT(arguments[1] != NULL);
    guarded_start(&guarded, arguments);
    expect_fault(guarded.address, NULL, NULL, "broker", "note", "ipcd 99.0.0 answers");
    expect_fault(guarded.address, NULL, NULL, "broker", "note", "and this is ipcctl " IPCD_VERSION);
    expect_fault(guarded.address, NULL, NULL, "guardian", "ok", "keeps its sessions");
    guarded_stop(&guarded);
}

static bool as_nobody(void)
{
    return getuid() == 0 && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0;
}

static void test_a_socket_that_lets_nobody_in(void **state)
{
    guarded_start(&guarded, NULL);
    EXPECT_EQ(chmod(guarded.folder, 0755), 0);
    EXPECT_EQ(chmod(guarded.address, 0600), 0);
    expect_fault(guarded.address, as_nobody, NULL, "socket", "problem", "this user may not connect");
    EXPECT_EQ(chmod(guarded.folder, 0700), 0);
    expect_fault(guarded.address, as_nobody, NULL, "socket", "problem", "Permission denied");
    guarded_stop(&guarded);
}

static void test_no_broker(void **state)
{
    char address[96];

    expect_fault("/nowhere/socket", NULL, NULL, "folder", "problem", "cannot be looked at");
    snprintf(address, sizeof(address), "%s/socket", folder);
    expect_fault(address, NULL, NULL, "broker", "problem", "no broker answers");
    expect_fault(address, NULL, NULL, "socket", "problem", "No such file");
    int fd = open(address, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    EXPECT(fd >= 0);
    close(fd);
    expect_fault(address, NULL, NULL, "socket", "problem", "is no socket");
}

/* Memory of a broker, as its clients keep it. */
static void test_leftovers_of_brokers(void **state)
{
    struct broker killed;

    broker_start(&killed, NULL);
    child_kill(killed.pid);
    expect_fault(killed.address, NULL, NULL, "leftovers", "problem",
                 "but nobody listens: its broker was killed");
    int fd = memfd_create("ipc-lane", MFD_CLOEXEC);
    EXPECT(fd >= 0);
    expect_fault(killed.address, NULL, NULL, "leftovers", "note", "have ");
    close(fd);
    broker_forget(&killed);

    char guard[96];
    guarded_start(&guarded, NULL);
    pid_t ipcd = guarded_pid(&guarded);
    snprintf(guard, sizeof(guard), "%s.guard", guarded.address);
    EXPECT_EQ(access(guard, F_OK), 0);
    kill(guarded.run, SIGSTOP); /* so that it does not start the next one */
    kill(ipcd, SIGKILL);
    child_kill(guarded.run);
    expect_fault(guarded.address, NULL, NULL, "leftovers", "problem", "both it and its ipcd-run were killed");
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", guarded.folder);
    EXPECT_EQ(system(command), 0);
}

static void test_few_descriptors(void **state)
{
    broker_files = 64;
    guarded_start(&guarded, NULL);
    expect_fault(guarded.address, NULL, NULL, "descriptors", "problem", "its limit of open files is 64");
    guarded_stop(&guarded);
    broker_files = 0;
}

static void test_nobody_guards_it(void **state)
{
    struct broker alone;

    broker_start(&alone, NULL);
    expect_fault(alone.address, NULL, NULL, "guardian", "note", "if the broker dies, its sessions end");
    broker_stop(&alone);
}

static bool few_mqueues(void)
{
    FILE *file = unshare(CLONE_NEWIPC) == 0 ? fopen("/proc/sys/fs/mqueue/msg_max", "we") : NULL;

    return file && fputs("1\n", file) >= 0 && fclose(file) == 0;
}

static bool little_for_mqueues(void)
{
    const struct rlimit limit = {1000, 1000};

    return setrlimit(RLIMIT_MSGQUEUE, &limit) == 0;
}

static bool orphaned_mqueue(void)
{
    if (unshare(CLONE_NEWIPC | CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("mqueue", "/dev/mqueue", "mqueue", 0, NULL) < 0)
        return false;
    mqd_t mqueue = mq_open("/orphan", O_CREAT | O_RDWR, 0600, NULL);
    bool made = mqueue >= 0 && mq_send(mqueue, "abc", 3, 0) == 0;
    mq_close(mqueue);
    return made;
}

static void test_mqueues(void **state)
{
    expect_fault("/nowhere/socket", few_mqueues, NULL, "mqueue", "problem", "fs.mqueue.msg_max is 1 ");
    expect_fault("/nowhere/socket", little_for_mqueues, NULL, "mqueue", "problem", "may take 1000 bytes");
    expect_fault("/nowhere/socket", orphaned_mqueue, NULL, "leftovers", "note",
                 "has mqueue /orphan open, which holds 3 bytes");
}

static void write_file(const char *path, mode_t mode, const char *text)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_TRUNC, mode);

    EXPECT(fd >= 0);
    EXPECT_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

/* The ipcd that is tested is the one that it finds, and a systemctl that says what is wrong. */
static bool in_path(void)
{
    char path[512], *end;

    snprintf(path, sizeof(path), "%s:", folder);
    snprintf(path + strlen(path), sizeof(path) - strlen(path), "%s", getenv("IPCD_BIN"));
    end = strrchr(path, '/');
    snprintf(end, sizeof(path) - (size_t)(end - path), ":/usr/bin:/bin");
    return setenv("PATH", path, 1) == 0;
}

static void test_configuration_and_service(void **state)
{
    char config[96], systemctl[96], option[128];

    snprintf(config, sizeof(config), "%s/ipcd.conf", folder);
    snprintf(systemctl, sizeof(systemctl), "%s/systemctl", folder);
    snprintf(option, sizeof(option), "--config=%s", config);
    write_file(config, 0600, "[limits]\nsessions = 7\n");
    write_file(systemctl, 0700,
               "#!/bin/sh\necho LoadState=loaded; echo LimitNOFILE=1024; echo KillMode=control-group\n");
    expect_fault("/nowhere/socket", in_path, option, "configuration", "ok", "no mistakes");
    expect_fault("/nowhere/socket", in_path, option, "service", "problem",
                 "LimitNOFILE of ipcd.service is 1024");
    expect_fault("/nowhere/socket", in_path, option, "service", "problem", "a restart ends every session");
    write_file(config, 0600, "[limits]\nsessions = many\n");
    expect_fault("/nowhere/socket", in_path, option, "configuration", "problem", ":2: sessions = many");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define FAULT(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        FAULT(test_a_broker_that_is_well),
        FAULT(test_a_broker_of_another_version),
        FAULT(test_a_socket_that_lets_nobody_in),
        FAULT(test_no_broker),
        FAULT(test_leftovers_of_brokers),
        FAULT(test_few_descriptors),
        FAULT(test_nobody_guards_it),
        FAULT(test_mqueues),
        FAULT(test_configuration_and_service),
    };

    expect_here();
    watchdog(90, "doctor");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
