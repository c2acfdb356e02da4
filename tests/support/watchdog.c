/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/watchdog.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *volatile doing;

static void bite(int number)
{
    static const char text[] = "watchdog: no progress in: ";
    (void)number;
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    (void)!write(STDERR_FILENO, doing, strlen(doing));
    (void)!write(STDERR_FILENO, "\n", 1);
    _exit(124);
}

void watchdog(unsigned seconds, const char *what)
{
    struct sigaction action = {.sa_handler = bite};
    doing = what;
    sigaction(SIGALRM, &action, NULL);
    alarm(seconds);
}

pid_t fork_child(void)
{
    pid_t parent = getpid();
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(125);
    }
    return child;
}

int wait_child(pid_t child)
{
    int status;
    pid_t done;
    do
        done = waitpid(child, &status, 0);
    while (done < 0 && errno == EINTR);
    if (done != child)
        return -1;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

unsigned descriptors_of(pid_t pid)
{
    char path[64];
    unsigned count = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    if (!dir)
        return 0;
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

unsigned descriptors_open(void)
{
    return descriptors_of(getpid());
}

bool children_left(void)
{
    return waitid(P_ALL, 0, &(siginfo_t){0}, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}
