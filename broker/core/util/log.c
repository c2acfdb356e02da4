/* SPDX-License-Identifier: Apache-2.0
 *
 * State is the process's: a program has one log.
 */
#include "broker/core/util/log.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "broker/core/util/daemon.h"
#include "broker/core/util/text.h"

#define WINDOW_NS UINT64_C(1000000000)
/* A line is one write of at most PIPE_BUF: a pipe that polls writable takes it without waiting. */
#define LINE_SIZE 2048

static const struct {
    int level;
    const char *id, *name;
} kinds[] = {
#define LOG_ROW(kind, level, id, name) {level, id, name},
    LOG_KINDS(LOG_ROW)
#undef LOG_ROW
};

static struct {
    const char *program;
    int level;
    bool journal;
    struct {
        uint64_t since_ns;
        unsigned written, left_out;
    } windows[LOG_KIND_COUNT];
} state = {.program = "ipcd", .level = LOG_INFO};

static const struct {
    const char *word;
    int level;
} levels[] = {
    {"error", LOG_ERR}, {"warning", LOG_WARNING}, {"notice", LOG_NOTICE},
    {"info", LOG_INFO}, {"debug", LOG_DEBUG},
};

int log_level_from_word(const char *word)
{
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcmp(levels[i].word, word) == 0)
            return levels[i].level;
    }
    return -1;
}

const char *log_level_word(int level)
{
    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (levels[i].level == level)
            return levels[i].word;
    }
    return "error";
}

/* JOURNAL_STREAM holds device and inode of the stream that systemd connected. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    uintmax_t device, inode;
    struct stat st;
    char *end;

    if (!stream || fstat(STDERR_FILENO, &st) < 0)
        return false;
    device = strtoumax(stream, &end, 10);
    if (*end != ':')
        return false;
    inode = strtoumax(end + 1, &end, 10);
    return *end == '\0' && device == st.st_dev && inode == st.st_ino;
}

void log_init(const char *program, int level)
{
    state.program = program;
    state.level = level;
    state.journal = stderr_is_journal();
}

/* Returns false if the kind has used up its second; else *ret_left_out is what it had to leave out before. */
static bool admit(enum log_kind kind, unsigned *ret_left_out)
{
    uint64_t now_ns = time_monotonic_ns();

    *ret_left_out = 0;
    if (now_ns - state.windows[kind].since_ns >= WINDOW_NS) {
        *ret_left_out = state.windows[kind].left_out;
        state.windows[kind].since_ns = now_ns;
        state.windows[kind].written = 0;
        state.windows[kind].left_out = 0;
    }
    if (state.windows[kind].written >= LOG_BURST) {
        state.windows[kind].left_out++;
        return false;
    }
    state.windows[kind].written++;
    return true;
}

static void write_line(enum log_kind kind, const struct log_about *about, const char *text)
{
    char line[LINE_SIZE], *at = line;
    struct timespec now = {0};
    struct tm broken = {0};
    struct pollfd writable = {.fd = STDERR_FILENO, .events = POLLOUT};
    char quoted[LINE_SIZE / 2];
    size_t size;
    FILE *out = fmemopen(line, sizeof(line) - 1, "w");

    if (!out)
        return;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &broken);
    fprintf(out, "time=%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ level=%s program=%s event=%s",
            broken.tm_year + 1900, broken.tm_mon + 1, broken.tm_mday, broken.tm_hour, broken.tm_min,
            broken.tm_sec, now.tv_nsec / 1000000, log_level_word(kinds[kind].level), state.program,
            kinds[kind].name);
    if (about && about->session)
        fprintf(out, " session=%" PRIu64, about->session);
    if (about)
        fprintf(out, " uid=%" PRIu32, about->uid);
    if (about && about->pid)
        fprintf(out, " pid=%" PRIu32, about->pid);
    if (about && about->name) {
        text_quote(quoted, 256, about->name);
        fprintf(out, " name=\"%s\"", quoted);
    }
    if (about && about->reason)
        fprintf(out, " reason=%s", about->reason);
    text_quote(quoted, sizeof(quoted), text);
    fprintf(out, " text=\"%s\"", quoted);
    (void)fflush(out);
    size = (size_t)ftell(out);
    (void)fclose(out);
    at += size < sizeof(line) - 1 ? size : sizeof(line) - 1;
    *at++ = '\n';
    if (poll(&writable, 1, 0) == 1 && writable.revents & POLLOUT)
        (void)!write(STDERR_FILENO, line, (size_t)(at - line));
}

/* Returns false if the journal did not take it. */
static bool write_journal(enum log_kind kind, const struct log_about *about, const char *text)
{
    struct journal_entry entry = {.size = 0};
    char name[256];

    journal_field(&entry, "MESSAGE", "%s", text);
    journal_field(&entry, "PRIORITY", "%d", kinds[kind].level);
    journal_field(&entry, "SYSLOG_IDENTIFIER", "%s", state.program);
    journal_field(&entry, "MESSAGE_ID", "%s", kinds[kind].id);
    journal_field(&entry, "IPCD_EVENT", "%s", kinds[kind].name);
    if (about) {
        text_quote(name, sizeof(name), about->name ? about->name : "");
        journal_field(&entry, "IPCD_SESSION", "%" PRIu64, about->session);
        journal_field(&entry, "IPCD_UID", "%" PRIu32, about->uid);
        journal_field(&entry, "IPCD_PID", "%" PRIu32, about->pid);
        journal_field(&entry, "IPCD_NAME", "%s", name);
        journal_field(&entry, "IPCD_REASON", "%s", about->reason ? about->reason : "none");
    }
    return journal_send(&entry, DAEMON_JOURNAL) == 0;
}

void log_write(enum log_kind kind, const struct log_about *about, const char *format, ...)
{
    char text[LINE_SIZE / 2];
    unsigned left_out;
    int saved = errno, size;
    va_list arguments;

    if (kinds[kind].level > state.level || !admit(kind, &left_out))
        return;
    va_start(arguments, format);
    size = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (size < 0)
        return;
    if (left_out && (size_t)size < sizeof(text))
        (void)snprintf(text + size, sizeof(text) - (size_t)size, " (%u more of this kind were not logged)",
                       left_out);
    if (!state.journal || !write_journal(kind, about, text))
        write_line(kind, about, text);
    errno = saved;
}
