/* SPDX-License-Identifier: Apache-2.0
 *
 * What systemd passes to a daemon, and what the journal gets.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/core/util/daemon.h"

static const char *own_pid(void)
{
    static char text[16];

    (void)snprintf(text, sizeof(text), "%d", (int)getpid());
    return text;
}

static int listen_fds(const char *pid, const char *count)
{
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", count, 1);
    setenv("LISTEN_FDNAMES", "a", 1);
    return daemon_listen_fds();
}

static void test_listen_fds(void **state)
{
    (void)state;
    assert_int_equal(daemon_listen_fds(), 0);
    assert_int_equal(listen_fds(own_pid(), "2"), 2);
    assert_null(getenv("LISTEN_PID"));
    assert_null(getenv("LISTEN_FDS"));
    assert_null(getenv("LISTEN_FDNAMES"));
    assert_int_equal(daemon_listen_fds(), 0);
    assert_int_equal(listen_fds("1", "2"), 0);
    assert_int_equal(listen_fds("", "2"), -EINVAL);
    assert_int_equal(listen_fds("-1", "2"), -EINVAL);
    assert_int_equal(listen_fds(own_pid(), "two"), -EINVAL);
    assert_int_equal(listen_fds(own_pid(), "2147483647"), -EINVAL);
}

static void test_watchdog(void **state)
{
    (void)state;
    unsetenv("WATCHDOG_PID");
    unsetenv("WATCHDOG_USEC");
    assert_int_equal(daemon_watchdog_us(), 0);
    setenv("WATCHDOG_USEC", "1500000", 1);
    assert_int_equal(daemon_watchdog_us(), 1500000);
    setenv("WATCHDOG_PID", own_pid(), 1);
    assert_int_equal(daemon_watchdog_us(), 1500000);
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(daemon_watchdog_us(), 0);
    unsetenv("WATCHDOG_PID");
    setenv("WATCHDOG_USEC", "1 s", 1);
    assert_int_equal(daemon_watchdog_us(), -EINVAL);
    unsetenv("WATCHDOG_USEC");
}

static void test_journal(void **state)
{
    static const char expected[] = "MESSAGE\n\x0b\0\0\0\0\0\0\0two\nlines=1\n"
                                   "PRIORITY\n\x01\0\0\0\0\0\0\0"
                                   "6\n";
    struct journal_entry entry = {.size = 0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char folder[] = "/tmp/ipc-journal-XXXXXX", received[sizeof(entry.bytes)], *large;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
    assert_int_equal(journal_send(&entry, address.sun_path), -ENOENT);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    journal_field(&entry, "MESSAGE", "%s", "two\nlines=1");
    large = malloc(sizeof(entry.bytes));
    memset(large, 'x', sizeof(entry.bytes) - 1);
    large[sizeof(entry.bytes) - 1] = '\0';
    journal_field(&entry, "LARGE", "%s", large); /* is left out */
    free(large);
    journal_field(&entry, "PRIORITY", "%d", 6);
    assert_int_equal(journal_send(&entry, address.sun_path), 0);
    assert_int_equal(recv(fd, received, sizeof(received), MSG_DONTWAIT), sizeof(expected) - 1);
    assert_memory_equal(received, expected, sizeof(expected) - 1);
    /* Who does not read is not waited for. */
    int result = 0;
    for (int i = 0; i < 100000 && result == 0; i++)
        result = journal_send(&entry, address.sun_path);
    assert_int_equal(result, -EAGAIN);
    close(fd);
    assert_int_equal(unlink(address.sun_path), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen_fds),
        cmocka_unit_test(test_watchdog),
        cmocka_unit_test(test_journal),
    };
    return cmocka_run_group_tests_name("daemon", tests, NULL, NULL);
}
