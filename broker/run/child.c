/* SPDX-License-Identifier: Apache-2.0
 *
 * A child learns by PR_SET_PDEATHSIG that its parent is gone, unless it is to survive us. That of exec failing comes back
 * through a pipe that exec closes. Until then it has our memory, not a copy, which would cost the more the more we keep.
 */
#include "broker/run/run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/core/util/fd.h"

/* In the child, between vfork and exec: async-signal-safe calls alone, and no store that the parent should not see. Returns
 * the errno of what failed; *ret_report_fd: where to report it. */
static int become(const struct child_plan *plan, pid_t parent, int report_fd, int *ret_report_fd)
{
    sigset_t none;

    *ret_report_fd = report_fd;
    if (plan->foreground_signals && setpgid(0, 0) < 0)
        return errno;
    if (!plan->survives && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return errno;
    if (!plan->survives && getppid() != parent)
        return ECHILD; /* it died before */
    if (!plan->inherits && close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
        return errno;
    if (plan->listen_fd >= 0) {
        if (report_fd == 3) {
            *ret_report_fd = fcntl(3, F_DUPFD_CLOEXEC, 4);
            if (*ret_report_fd < 0)
                return errno;
        }
        if (plan->listen_fd == 3 ? fcntl(3, F_SETFD, 0) < 0 : dup2(plan->listen_fd, 3) < 0)
            return errno;
    }
    (void)signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    execvpe(plan->argv[0], (char *const *)(uintptr_t)plan->argv, plan->environment);
    return errno;
}

/* LISTEN_PID has to name the child, which only the child knows: it fills in a place that is there. */
static void set_listen_pid(char *const *environment)
{
    static const char key[] = "LISTEN_PID=";

    for (char *const *entry = environment; *entry; entry++) {
        char digits[16], *to = *entry + sizeof(key) - 1;
        size_t n = sizeof(digits);

        if (strncmp(*entry, key, sizeof(key) - 1) != 0)
            continue;
        for (pid_t pid = getpid(); pid > 0; pid /= 10)
            digits[--n] = (char)('0' + pid % 10);
        memcpy(to, digits + n, sizeof(digits) - n);
        to[sizeof(digits) - n] = '\0';
    }
}

int child_start(struct child *child, const struct child_plan *plan)
{
    int report[2], failed = 0, own_failed, own_report;
    pid_t parent = getpid(), pid;
    ssize_t size;

    if (pipe2(report, O_CLOEXEC) < 0)
        return -errno;
    pid = vfork();
    if (pid == 0) {
        if (plan->listen_fd >= 0)
            set_listen_pid(plan->environment);
        own_failed = become(plan, parent, report[1], &own_report);
        (void)!write(own_report, &own_failed, sizeof(own_failed));
        _exit(127);
    }
    if (pid < 0)
        failed = errno;
    fd_close(report[1]);
    size = pid > 0 ? read(report[0], &failed, sizeof(failed)) : 0;
    fd_close(report[0]);
    if (pid < 0)
        return -failed;
    if (size == (ssize_t)sizeof(failed)) {
        (void)waitpid(pid, NULL, 0);
        return -failed;
    }
    child->pid = pid;
    child->pidfd = pidfd_open(pid, 0);
    if (child->pidfd < 0) {
        failed = errno;
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        child->pid = 0;
        return -failed;
    }
    return 0;
}

int child_reap(struct child *child, char *ret_text, size_t text_size)
{
    int status = 0, result;

    if (child->adopted) {
        child->pidfd = fd_close(child->pidfd);
        child->pid = 0;
        child->adopted = false;
        (void)snprintf(ret_text, text_size, "is gone");
        return 0;
    }
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    child->pid = 0;
    child->pidfd = fd_close(child->pidfd);
    if (WIFSIGNALED(status)) {
        result = 128 + WTERMSIG(status);
        (void)snprintf(ret_text, text_size, "was killed by signal %d (%s)%s", WTERMSIG(status),
                       sigabbrev_np(WTERMSIG(status)), WCOREDUMP(status) ? ", core dumped" : "");
    } else {
        result = WEXITSTATUS(status);
        (void)snprintf(ret_text, text_size, "ended with status %d", result);
    }
    return result;
}

void child_signal(const struct child *child, int signal)
{
    if (child->pid > 0)
        (void)pidfd_send_signal(child->pidfd, signal, NULL, 0);
}

static bool changed(const char *entry, const struct environment_change *changes, size_t n_changes)
{
    for (size_t i = 0; i < n_changes; i++) {
        size_t size = strlen(changes[i].name);

        if (strncmp(entry, changes[i].name, size) == 0 && entry[size] == '=')
            return true;
    }
    return false;
}

char **environment_free(char **environment)
{
    for (char **entry = environment; entry && *entry; entry++)
        free(*entry);
    free(environment);
    return NULL;
}

char **environment_new(const struct environment_change *changes, size_t n_changes)
{
    size_t n = 0, at = 0;
    char **environment;

    while (environ[n])
        n++;
    environment = calloc(n + n_changes + 1, sizeof(*environment));
    for (size_t i = 0; environment && i < n; i++) {
        if (changed(environ[i], changes, n_changes))
            continue;
        environment[at] = strdup(environ[i]);
        if (!environment[at++])
            return environment_free(environment);
    }
    for (size_t i = 0; environment && i < n_changes; i++) {
        if (!changes[i].value)
            continue;
        if (asprintf(&environment[at], "%s=%s", changes[i].name, changes[i].value) < 0) {
            environment[at] = NULL;
            return environment_free(environment);
        }
        at++;
    }
    return environment;
}
