/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-run: what it starts, what it says, and what it leaves.
 */
#include <dirent.h>
#include <sys/prctl.h>

#include "tests/proc/test_broker_raw.h"

static char base[64], self[512];

static int start(void **state)
{
    watchdog(20, "run");
    (void)snprintf(base, sizeof(base), "/tmp/ipcd-test.XXXXXX");
    assert_non_null(mkdtemp(base));
    assert_return_code(setenv("XDG_RUNTIME_DIR", base, 1), errno);
    /* Whoever is left behind by its parent comes to us, and is seen. */
    assert_return_code(prctl(PR_SET_CHILD_SUBREAPER, 1), errno);
    return 0;
}

/* Nothing is left: no directory, no process. */
static int stop(void **state)
{
    while (wait(NULL) > 0)
        continue;
    assert_return_code(rmdir(base), errno);
    watchdog(0, NULL);
    return 0;
}

struct run {
    pid_t pid;
    int output; /* of everybody that it started as well */
};

/* `passed_fd`: a socket that it is started with, as by systemd; or -1. */
static void run_start_with(struct run *run, int passed_fd, const char *const arguments[10])
{
    char pid[16];
    const char *argv[14] = {getenv("IPCD_RUN_BIN"), "--ipcd", getenv("IPCD_BIN")};
    int ends[2];

    assert_non_null(argv[0]);
    for (size_t i = 0; i < 10 && arguments[i]; i++)
        argv[i + 3] = arguments[i];
    assert_return_code(pipe2(ends, O_CLOEXEC), errno);
    run->pid = fork_child();
    if (run->pid == 0) {
        (void)dup2(ends[1], STDOUT_FILENO);
        (void)dup2(ends[1], STDERR_FILENO);
        if (passed_fd >= 0) {
            (void)dup2(passed_fd, 3);
            (void)snprintf(pid, sizeof(pid), "%d", (int)getpid());
            setenv("LISTEN_FDS", "1", 1);
            setenv("LISTEN_PID", pid, 1);
        }
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(126);
    }
    close(ends[1]);
    run->output = ends[0];
}

static void run_start(struct run *run, const char *const arguments[10])
{
    run_start_with(run, -1, arguments);
}

/* Reads until everybody that could write is gone. Returns the exit status. */
static int run_end(struct run *run, char *output, size_t size)
{
    size_t used = 0;
    ssize_t n;

    while (used + 1 < size && (n = read(run->output, output + used, size - used - 1)) > 0)
        used += (size_t)n;
    output[used] = '\0';
    close(run->output);
    return wait_child(run->pid);
}

static void run_expect(const char *const arguments[10], int status, const char *text)
{
    static char output[8192];
    struct run run;
    int got;

    run_start(&run, arguments);
    got = run_end(&run, output, sizeof(output));
    if (got != status || !strstr(output, text))
        fail_msg("status %d, output: %s", got, output);
}

static void test_command_runs_with_a_private_broker(void **state)
{
    run_expect(
        (const char *const[10]){"--private", "--", "sh", "-c",
                                "test -S \"$IPC_ADDRESS\" && stat -c %a $(dirname $IPC_ADDRESS) && exit 7",
                                NULL},
        7, "700");
}

static void test_status_of_a_command_that_is_killed(void **state)
{
    run_expect((const char *const[10]){"--private", "--", "sh", "-c", "kill -9 $$", NULL}, 128 + SIGKILL, "");
}

static void test_command_that_does_not_exist(void **state)
{
    run_expect((const char *const[10]){"--private", "--", "/no/such/program", NULL}, 127,
               "/no/such/program cannot be run: No such file or directory");
}

static void test_ipcd_that_does_not_exist(void **state)
{
    run_expect((const char *const[10]){"--private", "--ipcd", "/no/such/ipcd", "--", "true", NULL}, 125,
               "/no/such/ipcd cannot be run: No such file or directory");
}

static void test_ipcd_that_ends_at_once(void **state)
{
    run_expect((const char *const[10]){"--private", "--ipcd", "/bin/false", "--", "echo", "never", NULL}, 125,
               "could not start: it ended with status 1");
}

static void test_signals_reach_the_command(void **state)
{
    static char output[4096];
    struct run run;
    char byte;

    run_start(&run, (const char *const[10]){"--private", "--", self, "wait-for-term", NULL});
    assert_int_equal(read(run.output, &byte, 1), 1);
    assert_return_code(kill(run.pid, SIGTERM), errno);
    assert_int_equal(run_end(&run, output, sizeof(output)), 3);
}

static void test_broker_that_dies_is_started_again(void **state)
{
    static char output[8192];
    static const char script[] =
        "for p in /proc/[0-9]*; do read -r _ comm _ parent _ <$p/stat 2>/dev/null; "
        "test \"$parent\" = $PPID && test \"$comm\" = '(ipcd)' && kill -9 ${p#/proc/}; "
        "done; exec $IPCCTL_BIN status";
    struct run run;
    int status;

    run_start(&run, (const char *const[10]){"--private", "--", "sh", "-c", script, NULL});
    status = run_end(&run, output, sizeof(output));
    if (status != 0 || !strstr(output, "ipcd was killed by signal 9 (KILL); it is started again"))
        fail_msg("status %d, output: %s", status, output);
}

static void test_broker_and_command_end_with_ipcd_run(void **state)
{
    static char output[4096];
    struct run run;
    char byte;

    run_start(&run, (const char *const[10]){"--private", "--", "sh", "-c", "echo x; exec sleep 1000", NULL});
    assert_int_equal(read(run.output, &byte, 1), 1);
    assert_return_code(kill(run.pid, SIGKILL), errno);
    /* The pipe ends when ipcd and the command are gone as well. */
    assert_int_equal(run_end(&run, output, sizeof(output)), 128 + SIGKILL);

    /* The directory of the one that was killed is all that it could not remove. */
    DIR *folder = opendir(base);
    const struct dirent *entry;
    while ((entry = readdir(folder))) {
        static const char *const names[] = {"socket", "socket.lock"};
        char path[400];

        if (strncmp(entry->d_name, "ipcd-run.", 9) != 0)
            continue;
        for (size_t i = 0; i < 2; i++) {
            (void)snprintf(path, sizeof(path), "%s/%s/%s", base, entry->d_name, names[i]);
            (void)unlink(path);
        }
        (void)snprintf(path, sizeof(path), "%s/%s", base, entry->d_name);
        assert_return_code(rmdir(path), errno);
    }
    (void)closedir(folder);
}

static void test_service_tells_its_manager_and_stops_on_sigterm(void **state)
{
    static char output[4096];
    struct raw_broker manager;
    struct raw_client client;
    struct run run;
    char notify[96];
    struct stat st;

    raw_folder(&manager);
    (void)snprintf(notify, sizeof(notify), "%s/notify", manager.folder);
    assert_return_code(setenv("NOTIFY_SOCKET", notify, 1), errno);
    run_start(&run, (const char *const[10]){"--address", manager.address, NULL});
    assert_return_code(unsetenv("NOTIFY_SOCKET"), errno);
    raw_wait_notify(&manager, "READY=1");
    raw_admin(&client, &manager);
    assert_string_equal(raw_status(&client)->guardian, "ipcd-run");
    raw_goodbye(&client);
    assert_return_code(kill(run.pid, SIGTERM), errno);
    raw_wait_notify(&manager, "STOPPING=1");
    assert_int_equal(run_end(&run, output, sizeof(output)), 0);
    assert_int_equal(lstat(manager.address, &st), -1);
    close(manager.notify_fd);
    (void)unlink(notify);
    assert_return_code(rmdir(manager.folder), errno);
}

/* The command of test_signals_reach_the_command: no signal is missed, whenever it comes. */
static int wait_for_term(void)
{
    sigset_t term;
    int got;

    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    (void)sigprocmask(SIG_BLOCK, &term, NULL);
    (void)!write(STDOUT_FILENO, "x", 1);
    return sigwait(&term, &got) == 0 && got == SIGTERM ? 3 : 1;
}

/* Those that wait are told before it ends, or systemd would start it for them again and again. */
static void expect_refusal(const char *const arguments[10], int status, const char *told, const char *logged)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int passed_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    char lock[128], output[8192];
    const Ipc__Control__Failure *failure;
    struct raw_client client = {.fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    struct run run;

    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", base);
    (void)snprintf(lock, sizeof(lock), "%s.lock", address.sun_path);
    assert_return_code(bind(passed_fd, (const void *)&address, sizeof(address)), errno);
    assert_return_code(listen(passed_fd, 8), errno);
    assert_return_code(connect(client.fd, (const void *)&address, sizeof(address)), errno);
    assert_int_equal(send(client.fd, "hello", 5, 0), 5);
    run_start_with(&run, passed_fd, arguments);
    assert_true(raw_recv(&client, 0) >= 0);
    assert_int_equal(client.frame.type, TYPE(FAILURE));
    assert_int_equal(client.frame.id, 0);
    failure = (const void *)client.frame.message;
    assert_int_equal(failure->code, -ESHUTDOWN);
    assert_non_null(strstr(failure->text, told));
    assert_int_equal(run_end(&run, output, sizeof(output)), status);
    assert_non_null(strstr(output, logged));
    assert_int_equal(recv(client.fd, output, sizeof(output), 0), 0);
    close(client.fd);
    close(passed_fd);
    assert_return_code(unlink(address.sun_path), errno);
    (void)unlink(lock);
}

static void test_what_keeps_it_from_starting_is_told_to_who_connects(void **state)
{
    char config[96];

    (void)snprintf(config, sizeof(config), "%s/wrong.conf", base);
    raw_write(config, "[limits]\nsessions = many\n");
    expect_refusal((const char *const[10]){"--config", config, NULL}, 78, "its configuration has mistakes",
                   "wrong.conf:2");
    assert_return_code(unlink(config), errno);
    expect_refusal((const char *const[10]){"--wachdog=10", NULL}, 64, "wrong options", "--wachdog=10");
    expect_refusal((const char *const[10]){"--watchdog=never", NULL}, 64, "wrong options",
                   "--watchdog=never");
    expect_refusal((const char *const[10]){"--ipcd=/nonexistent", NULL}, 125, "could not be started",
                   "/nonexistent cannot be run");
    expect_refusal((const char *const[10]){"--ipcd=false", NULL}, 125, "could not be started",
                   "ended with status 1");
}

int main(int argc, char **argv)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start, stop)
    const struct CMUnitTest tests[] = {
        CASE(test_command_runs_with_a_private_broker),
        CASE(test_status_of_a_command_that_is_killed),
        CASE(test_command_that_does_not_exist),
        CASE(test_ipcd_that_does_not_exist),
        CASE(test_ipcd_that_ends_at_once),
        CASE(test_signals_reach_the_command),
        CASE(test_broker_that_dies_is_started_again),
        CASE(test_broker_and_command_end_with_ipcd_run),
        CASE(test_what_keeps_it_from_starting_is_told_to_who_connects),
        CASE(test_service_tells_its_manager_and_stops_on_sigterm),
    };

    if (argc == 2 && strcmp(argv[1], "wait-for-term") == 0)
        return wait_for_term();
    if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
