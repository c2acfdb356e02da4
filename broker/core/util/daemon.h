/* SPDX-License-Identifier: Apache-2.0
 *
 * What systemd passes to a daemon, as sd_listen_fds(3) and sd_watchdog_enabled(3) have it, and the journal's native protocol
 * (systemd.io/JOURNAL_NATIVE_PROTOCOL). Not from libsystemd, whose seven libraries take 5 ms to load: clients wait for an
 * ipcd that is started again.
 */
#ifndef IPCD_CORE_UTIL_DAEMON_H
#define IPCD_CORE_UTIL_DAEMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DAEMON_LISTEN_FD 3 /* the first descriptor that is passed */
#define DAEMON_JOURNAL   "/run/systemd/journal/socket"

/* How many descriptors were passed to this process, or -EINVAL. Takes that out of the environment: call it before there are
 * other threads. */
int daemon_listen_fds(void);

/* In what time the watchdog of this process is to be told, in microseconds; 0: there is none; -EINVAL. */
int64_t daemon_watchdog_us(void);

/* A journal entry in the making; what does not fit is left out, field by field. */
struct journal_entry {
    char bytes[4096];
    size_t size;
};

/* Append a field; the value may be any text. */
void journal_field(struct journal_entry *entry, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Send it without waiting. Any thread. Returns 0 or a negative errno. */
int journal_send(const struct journal_entry *entry, const char *socket_path);

#endif
