/* SPDX-License-Identifier: Apache-2.0
 *
 * usage: filtered FILTER PROGRAM [ARGUMENT...]
 * Run a program below a filter of system calls that filtered.py made. Below a filtered program there is no second one, which
 * the first would not allow.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static struct sock_filter lines[BPF_MAXINSNS];
    struct sock_fprog filter = {.filter = lines};
    FILE *file;

    if (argc < 3)
        return 64;
    if (!getenv("IPC_FILTERED")) {
        file = fopen(argv[1], "re");
        if (!file) {
            perror(argv[1]);
            return 126;
        }
        filter.len = (unsigned short)fread(lines, sizeof(*lines), BPF_MAXINSNS, file);
        (void)fclose(file);
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0 || setenv("IPC_FILTERED", "1", 1) < 0) {
            perror("filtered");
            return 126;
        }
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
