/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcctl against a real broker. The program first starts itself again below `ipcd-run --private`, so that it has a
 * broker of its own, which ends with it.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/support/watchdog.h"

#define INSIDE        "IPCCTL_TEST_INSIDE"
#define ARGUMENTS_MAX 24
#define LINES         10000
#define CASE_SECONDS  60

/* A running or ended ipcctl. */
struct run {
    pid_t pid;
    int out_fd, err_fd; /* memfds, or -1 */
    int status;
    char *out, *err; /* once it has ended; terminated */
    size_t out_size;
};

static const char *ipcctl_path;

/* ---- processes ---------------------------------------------------------------------------------------------- */

static int memory_file(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* A descriptor from which these bytes can be read. */
static int input_of(const void *data, size_t size)
{
    int fd = memory_file("stdin");
    assert_int_equal(write(fd, data, size), (ssize_t)size);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static void start_with(struct run *run, int in_fd, int out_fd, const char *const *arguments)
{
    *run = (struct run){.out_fd = out_fd < 0 ? memory_file("stdout") : -1, .err_fd = memory_file("stderr")};
    if (out_fd < 0)
        out_fd = run->out_fd;
    run->pid = fork_child();
    assert_true(run->pid >= 0);
    if (run->pid > 0)
        return;
    if (in_fd < 0)
        in_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    char *argv[ARGUMENTS_MAX + 2] = {(char *)"ipcctl"};
    for (int i = 0; i < ARGUMENTS_MAX && arguments[i]; i++)
        argv[i + 1] = (char *)(uintptr_t)arguments[i];
    if (dup2(in_fd, 0) == 0 && dup2(out_fd, 1) == 1 && dup2(run->err_fd, 2) == 2)
        execv(ipcctl_path, argv);
    _exit(126);
}

#define START(run, in_fd, ...) start_with(run, in_fd, -1, (const char *const[]){__VA_ARGS__, NULL})

static char *contents(int fd, size_t *ret_size)
{
    struct stat status;
    if (fd < 0)
        return NULL;
    assert_int_equal(fstat(fd, &status), 0);
    char *text = malloc((size_t)status.st_size + 1);
    assert_non_null(text);
    assert_int_equal(pread(fd, text, (size_t)status.st_size, 0), status.st_size);
    text[status.st_size] = '\0';
    *ret_size = (size_t)status.st_size;
    return text;
}

/* How long the output is so far. */
static size_t printed(const struct run *run)
{
    struct stat status;
    assert_int_equal(fstat(run->out_fd, &status), 0);
    return (size_t)status.st_size;
}

static void finish(struct run *run)
{
    size_t ignored;
    run->status = wait_child(run->pid);
    run->out = contents(run->out_fd, &run->out_size);
    run->err = contents(run->err_fd, &ignored);
}

static void done(struct run *run)
{
    free(run->out);
    free(run->err);
    if (run->out_fd >= 0)
        close(run->out_fd);
    close(run->err_fd);
}

#define RUN(run, in_fd, ...)      \
 do {                             \
  START(run, in_fd, __VA_ARGS__); \
  finish(run);                    \
 } while (0)

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in: %s", part, text);
}

/* It worked, and had nothing to complain about. */
static void assert_fine(const struct run *run)
{
    if (run->status != 0 || run->err[0] != '\0')
        fail_msg("status %d, stderr: %s", run->status, run->err);
}

static json_t *parsed(const char *text)
{
    json_error_t error;
    json_t *document = json_loads(text, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!document)
        fail_msg("not one JSON document (%s, line %d): %s", error.text, error.line, text);
    return document;
}

static json_t *json_of(const char *command, const char *option)
{
    struct run run;
    if (option)
        RUN(&run, -1, command, "--json", option);
    else
        RUN(&run, -1, command, "--json");
    assert_fine(&run);
    json_t *document = parsed(run.out);
    done(&run);
    return document;
}

static const char *text_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (!text)
        fail_msg("no string \"%s\"", key);
    return text;
}

static json_int_t number_at(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        fail_msg("no number \"%s\"", key);
    return json_integer_value(value);
}

/* The row of an array in which a key has this text; NULL if there is none. */
static const json_t *row_with(const json_t *document, const char *array, const char *key, const char *text)
{
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(document, array), i,
                       row) if (strcmp(text_at(row, key), text) == 0) return row;
    return NULL;
}

/* Ask again and again until a subscription with this pattern, or a topic of this name, is listed. */
static void wait_listed(const char *array, const char *key, const char *text)
{
    for (bool found = false; !found;) {
        json_t *document = json_of("ls", "-s");
        found = row_with(document, array, key, text) != NULL;
        json_decref(document);
    }
}

/* ---- what the broker tells ---------------------------------------------------------------------------------- */

static void test_status(void **state)
{
    (void)state;
    struct run run;
    RUN(&run, -1, "status");
    assert_fine(&run);
    json_t *document = json_of("status", NULL);
    assert_int_equal(kill((pid_t)number_at(document, "pid"), 0), 0);
    assert_string_equal(text_at(document, "address"), getenv("IPC_ADDRESS"));
    assert_true(json_is_boolean(json_object_get(document, "membarrier")));
    assert_true(number_at(document, "sessions") >= 1);

    /* The table says the same. */
    char line[512];
    snprintf(line, sizeof(line), "pid            %" JSON_INTEGER_FORMAT "\n", number_at(document, "pid"));
    assert_contains(run.out, line);
    snprintf(line, sizeof(line), "version        %s\n", text_at(document, "version"));
    assert_contains(run.out, line);
    snprintf(line, sizeof(line), "instance       %s\n", text_at(document, "instance"));
    assert_contains(run.out, line);
    json_decref(document);
    done(&run);
}

/* Runs that must work; what they print. */
static void queue(const char *const *arguments, const char *prints)
{
    struct run run;
    start_with(&run, -1, -1, arguments);
    finish(&run);
    assert_fine(&run);
    assert_string_equal(run.out, prints);
    done(&run);
}

static void queue_fails(const char *const *arguments, const char *says)
{
    struct run run;
    start_with(&run, -1, -1, arguments);
    finish(&run);
    assert_int_equal(run.status, 1);
    assert_string_equal(run.out, "");
    assert_contains(run.err, says);
    done(&run);
}

#define QUEUE(prints, ...) queue((const char *const[]){"queue", __VA_ARGS__, NULL}, prints)
#define FAILS(says, ...)   queue_fails((const char *const[]){"queue", __VA_ARGS__, NULL}, says)

static void test_queues(void **state)
{
    (void)state;
    struct run run;
    QUEUE("", "create", "ctl.dead");
    QUEUE("", "create", "ctl.jobs", "lease=30s", "dead-letter=ctl.dead", "bytes-max=1M");
    FAILS("ctl.jobs: there is a queue ctl.jobs already", "create", "ctl.jobs");
    QUEUE("", "create", "ctl.jobs", "--if-missing", "lease=1s");
    QUEUE("", "set", "ctl.jobs", "attempts-max=5", "ttl=36h");
    QUEUE("", "pause", "ctl.jobs");
    FAILS("there is no queue ctl.none", "set", "ctl.none", "ttl=1s");
    FAILS("cannot change", "set", "ctl.jobs", "message-size-max=1K");
    FAILS("sends its dead letters there", "rm", "ctl.dead", "--force");
    FAILS("there is no such queue", "show", "ctl.none");

    RUN(&run, -1, "queue", "show", "ctl.jobs", "--json");
    assert_fine(&run);
    json_t *document = parsed(run.out);
    const json_t *settings = json_object_get(document, "settings");
    assert_string_equal(text_at(document, "state"), "paused");
    assert_int_equal(number_at(document, "waiting"), 0);
    assert_int_equal(number_at(document, "uid"), getuid());
    assert_int_equal(number_at(settings, "lease"), 30000000000);
    assert_int_equal(number_at(settings, "ttl"), 129600000000000);
    assert_int_equal(number_at(settings, "attempts-max"), 5);
    assert_string_equal(text_at(settings, "dead-letter"), "ctl.dead");
    assert_true(json_is_true(json_object_get(settings, "paused")));
    assert_int_equal(json_array_size(json_object_get(document, "ports")), 0);
    json_decref(document);
    done(&run);
    RUN(&run, -1, "queue", "show", "ctl.jobs");
    assert_fine(&run);
    assert_contains(run.out, "lease             30s\n");
    assert_contains(run.out, "bytes-max         1M\n");
    done(&run);
    QUEUE("", "resume", "ctl.jobs");

    RUN(&run, -1, "queue", "ls", "ctl.*", "--json");
    assert_fine(&run);
    document = parsed(run.out);
    assert_int_equal(json_array_size(json_object_get(document, "queues")), 2);
    assert_string_equal(text_at(row_with(document, "queues", "queue", "ctl.jobs"), "state"), "open");
    json_decref(document);
    done(&run);
    document = json_of("ls", NULL);
    assert_non_null(row_with(document, "queues", "queue", "ctl.dead"));
    json_decref(document);
    RUN(&run, -1, "ls");
    assert_fine(&run);
    assert_contains(run.out, "ctl.jobs");
    done(&run);

    QUEUE("0 messages purged\n", "purge", "ctl.jobs", "--priority=3", "--older-than=5m", "-H", "a=b", "-n",
          "7");
    QUEUE("0 messages moved\n", "move", "ctl.jobs", "ctl.dead");
    QUEUE("0 messages requeued\n", "requeue", "ctl.dead");
    FAILS("no queue ctl.none to move to", "move", "ctl.jobs", "ctl.none");
    RUN(&run, -1, "queue", "peek", "ctl.jobs", "--json");
    assert_fine(&run);
    document = parsed(run.out);
    assert_int_equal(json_array_size(json_object_get(document, "messages")), 0);
    assert_string_equal(text_at(document, "operation"), "peek");
    json_decref(document);
    done(&run);
    RUN(&run, -1, "queue", "rm", "ctl.jobs", "--json");
    assert_fine(&run);
    document = parsed(run.out);
    assert_string_equal(text_at(document, "queue"), "ctl.jobs");
    assert_string_equal(text_at(document, "operation"), "rm");
    json_decref(document);
    done(&run);
    QUEUE("", "rm", "ctl.dead");
}

/* A publisher with a reader, as the listings show them. */
static void test_listings_agree(void **state)
{
    (void)state;
    int feed[2];
    assert_int_equal(pipe2(feed, O_CLOEXEC), 0);
    struct run pub, sub, run;
    START(&sub, -1, "sub", "--no-tap", "--count=3", "listings.*");
    START(&pub, feed[0], "pub", "--timeout=0", "--wait=1", "listings.a");
    close(feed[0]);
    assert_int_equal(write(feed[1], "one\ntwo\n", 8), 8);
    while (printed(&sub) < strlen("listings.a one\nlistings.a two\n"))
        sched_yield();

    json_t *document = json_of("ls", "-ls");
    const json_t *topic = row_with(document, "topics", "topic", "listings.a");
    assert_non_null(topic);
    assert_string_equal(text_at(topic, "state"), "live");
    assert_int_equal(number_at(topic, "readers"), 1);
    assert_int_equal(json_array_size(json_object_get(topic, "publishers")), 1);
    const json_t *publisher = json_array_get(json_object_get(topic, "publishers"), 0);
    assert_int_equal(number_at(publisher, "pid"), pub.pid);
    assert_int_equal(number_at(publisher, "uid"), getuid());
    assert_string_equal(text_at(publisher, "name"), "ipcctl pub");
    const json_t *pairing = row_with(document, "pairings", "topic", "listings.a");
    assert_non_null(pairing);
    assert_int_equal(number_at(json_object_get(pairing, "reader"), "pid"), sub.pid);
    assert_int_equal(number_at(pairing, "publisher_session"), number_at(publisher, "session"));
    assert_int_equal(number_at(pairing, "lost"), 0);
    assert_non_null(row_with(document, "subscriptions", "pattern", "listings.*"));

    /* The table has the same row, and nothing else. */
    RUN(&run, -1, "--no-header", "ls", "listings.>");
    assert_fine(&run);
    char name[64], who[64], ring[16], bytes[16], word[16];
    unsigned long long session, readers, published, lost;
    assert_int_equal(sscanf(run.out, "%63s %llu ipcctl %63s %llu %15s %llu %15s %llu %15s", name, &session,
                            who, &readers, ring, &published, bytes, &lost, word),
                     9);
    assert_string_equal(name, "listings.a");
    assert_int_equal(session, number_at(publisher, "session"));
    assert_int_equal(readers, number_at(publisher, "readers"));
    assert_string_equal(ring, "256K");
    assert_int_equal(number_at(publisher, "ring_size"), 256 * 1024);
    assert_int_equal(lost, number_at(publisher, "lost"));
    assert_string_equal(word, "live");
    assert_ptr_equal(strchr(run.out, '\n') + 1, run.out + run.out_size);
    done(&run);
    json_decref(document);

    document = json_of("clients", NULL);
    const json_t *client = row_with(document, "sessions", "name", "ipcctl pub");
    assert_non_null(client);
    assert_int_equal(number_at(client, "pid"), pub.pid);
    assert_int_equal(number_at(client, "topics"), 1);
    assert_true(number_at(client, "bytes") > 0);
    json_decref(document);
    RUN(&run, -1, "clients");
    assert_fine(&run);
    assert_contains(run.out, "ipcctl pub");
    assert_contains(run.out, "ipcctl sub");
    done(&run);
    document = json_of("clients", "--users");
    const json_t *user = json_array_get(json_object_get(document, "users"), 0);
    assert_int_equal(number_at(user, "uid"), getuid());
    assert_true(number_at(user, "sessions") >= 2);
    assert_true(number_at(user, "bytes") > 0 && number_at(user, "bytes") <= number_at(user, "limit_bytes"));
    json_decref(document);
    document = json_of("quota", NULL);
    const json_t *topics = row_with(document, "quota", "resource", "topics");
    assert_int_equal(number_at(topics, "rank"), 1);
    assert_int_equal(number_at(topics, "used"), 1);
    assert_int_equal(number_at(topics, "total_used"), 1);
    assert_true(number_at(topics, "share") <= number_at(topics, "limit"));
    assert_null(row_with(document, "quota", "resource", "queues")); /* nobody has any */
    json_decref(document);
    document = json_of("quota", "--all");
    assert_non_null(row_with(document, "quota", "resource", "queues"));
    assert_non_null(row_with(document, "quota", "resource", "connects-per-second"));
    json_decref(document);
    RUN(&run, -1, "quota", "--no-header", "nobody-of-that-name");
    assert_fine(&run);
    assert_string_equal(run.out, "");
    done(&run);
    RUN(&run, -1, "quota");
    assert_fine(&run);
    assert_contains(run.out, "RESOURCE");
    assert_contains(run.out, "[limits]");
    done(&run);

    assert_int_equal(write(feed[1], "three", 5), 5);
    close(feed[1]);
    finish(&pub);
    finish(&sub);
    assert_fine(&pub);
    assert_fine(&sub);
    assert_string_equal(sub.out, "listings.a one\nlistings.a two\nlistings.a three\n");
    done(&pub);
    done(&sub);
}

/* ---- messages ----------------------------------------------------------------------------------------------- */

static const unsigned char nasty[] =
    "\033[31mred\007 tab\there\nback\\slash \xc3\xa9 \xff\xe2\x80\xae end\0x";
#define NASTY_SIZE (sizeof(nasty) - 1)

/* What one form of `sub` prints of one message. */
static void print_nasty(struct run *sub, const char *form)
{
    struct run pub;
    int in_fd = input_of(nasty, NASTY_SIZE);
    START(sub, -1, "sub", "--no-tap", "--count=1", "nasty", form, "--no-newline");
    RUN(&pub, in_fd, "pub", "--timeout=0", "--wait", "--whole", "--type=x/y\033", "-H", "k=v\n=w", "nasty");
    close(in_fd);
    assert_fine(&pub);
    done(&pub);
    finish(sub);
    assert_fine(sub);
}

static void test_control_bytes(void **state)
{
    (void)state;
    static const char escaped[] =
        "\\x1b[31mred\\x07 tab\\there\\nback\\\\slash \xc3\xa9 \\xff\\u{202e} end\\x00x";
    struct run sub;
    print_nasty(&sub, "--color=never");
    assert_contains(sub.out, "nasty ");
    assert_string_equal(sub.out + strlen("nasty "), escaped);
    done(&sub);

    print_nasty(&sub, "--headers");
    assert_contains(sub.out, " type=x/y\\x1b k=v\\n=w] ");
    assert_contains(sub.out, escaped);
    done(&sub);

    print_nasty(&sub, "--raw");
    assert_int_equal(sub.out_size, NASTY_SIZE);
    assert_memory_equal(sub.out, nasty, NASTY_SIZE);
    done(&sub);

    print_nasty(&sub, "--json");
    json_t *document = parsed(sub.out);
    assert_ptr_equal(strchr(sub.out, '\n') + 1, sub.out + sub.out_size); /* one line */
    assert_string_equal(text_at(document, "encoding"), "base64");
    assert_string_equal(text_at(document, "data"),
                        "G1szMW1yZWQHIHRhYgloZXJlCmJhY2tcc2xhc2ggw6kg/+KAriBlbmQAeA==");
    assert_int_equal(number_at(document, "size"), NASTY_SIZE);
    assert_string_equal(text_at(document, "content_type"), "x/y\033");
    const json_t *header = json_array_get(json_object_get(document, "headers"), 0);
    assert_string_equal(text_at(header, "name"), "k");
    assert_string_equal(text_at(header, "value"), "v\n=w");
    assert_string_equal(text_at(header, "encoding"), "utf-8");
    assert_int_equal(number_at(json_object_get(document, "sender"), "uid"), getuid());
    json_decref(document);
    done(&sub);
}

static void test_pieces(void **state)
{
    (void)state;
    struct run pub, sub;
    int in_fd = input_of("a\nb\0\0c", 6);
    START(&sub, -1, "sub", "--no-tap", "--null", "--raw", "--count=3", "pieces");
    RUN(&pub, in_fd, "pub", "--timeout=0", "--wait", "--null", "pieces");
    close(in_fd);
    assert_fine(&pub);
    done(&pub);
    finish(&sub);
    assert_fine(&sub);
    assert_int_equal(sub.out_size, 7);
    assert_memory_equal(sub.out, "a\nb\0\0c", 7);
    done(&sub);

    START(&sub, -1, "sub", "--no-tap", "--count=4", "pieces", "--json");
    RUN(&pub, -1, "pub", "pieces", "--timeout=0", "--wait=1", "x", "--repeat=3", "--count=4", "--", "-y");
    assert_fine(&pub);
    done(&pub);
    finish(&sub);
    assert_fine(&sub);
    char *line = sub.out;
    for (int i = 0; i < 4; i++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        *end = '\0';
        json_t *document = parsed(line);
        assert_int_equal(number_at(document, "sequence"), i);
        assert_string_equal(text_at(document, "data"), i % 2 ? "-y" : "x");
        json_decref(document);
        line = end + 1;
    }
    assert_string_equal(line, "");
    done(&sub);
}

static void test_retained(void **state)
{
    (void)state;
    struct run run;
    RUN(&run, -1, "pub", "--retain", "retained.x", "first", "second");
    assert_fine(&run);
    done(&run);
    RUN(&run, -1, "sub", "--start=last", "--count=1", "--raw", "retained.x");
    assert_fine(&run);
    assert_string_equal(run.out, "second\n");
    done(&run);
    RUN(&run, -1, "sub", "--start=oldest", "--count=2", "retained.>");
    assert_fine(&run);
    assert_string_equal(run.out, "retained.x first\nretained.x second\n");
    done(&run);
    json_t *document = json_of("ls", "retained.*");
    assert_string_equal(text_at(row_with(document, "topics", "topic", "retained.x"), "state"), "retained");
    json_decref(document);
}

/* Who is subscribed gets the first message, without --wait. */
static void test_first_message(void **state)
{
    (void)state;
    struct run pub, sub;
    START(&sub, -1, "sub", "--count=1", "first.*");
    wait_listed("subscriptions", "pattern", "first.*");
    RUN(&pub, -1, "pub", "first.one", "hello");
    assert_fine(&pub);
    done(&pub);
    finish(&sub);
    assert_fine(&sub);
    assert_string_equal(sub.out, "first.one hello\n");
    done(&sub);
}

static void test_lines_without_loss(void **state)
{
    (void)state;
    char *lines = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&lines, &size);
    assert_non_null(file);
    for (int i = 0; i < LINES; i++)
        fprintf(file, "line %d %.*s\n", i, i % 100,
                "..................................................."
                ".................................................");
    fclose(file);
    int in_fd = input_of(lines, size);
    struct run pub, sub;
    START(&sub, -1, "sub", "--slow=block", "--raw", "--count=10000", "--stats", "lines");
    RUN(&pub, in_fd, "pub", "--timeout=0", "--wait", "lines");
    close(in_fd);
    assert_fine(&pub);
    done(&pub);
    finish(&sub);
    assert_int_equal(sub.status, 0);
    assert_contains(sub.err, "10000 messages (");
    assert_contains(sub.err, "; 0 lost\n");
    assert_int_equal(sub.out_size, size);
    assert_memory_equal(sub.out, lines, size);
    done(&sub);
    free(lines);
}

static void test_bench(void **state)
{
    (void)state;
    struct run run;
    RUN(&run, -1, "bench", "--timeout=0", "--time=0.02", "--sizes=16,70000", "--json");
    assert_fine(&run);
    json_t *document = parsed(run.out);
    const json_t *rows = json_object_get(document, "bench");
    assert_int_equal(json_array_size(rows), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *row = json_array_get(rows, i);
        assert_int_equal(number_at(row, "size"), i == 0 ? 16 : 70000);
        assert_int_equal(number_at(row, "lost"), 0);
        assert_true(number_at(row, "messages") > 0 && number_at(row, "round_trips") > 0);
        assert_true(number_at(row, "round_trip_median_ns") <= number_at(row, "round_trip_worst_ns"));
    }
    json_decref(document);
    done(&run);
    RUN(&run, -1, "bench", "--timeout=0", "--time=0.02", "--sizes=64");
    assert_fine(&run);
    assert_contains(run.out, "ROUND TRIP");
    assert_contains(run.out, "\n 64B");
    done(&run);
}

/* ---- how it ends -------------------------------------------------------------------------------------------- */

static void test_usage(void **state)
{
    (void)state;
    static const char *const wrong[][4] = {{"ls", "a..b"},
                                           {"sub"},
                                           {"pub"},
                                           {"pub", "a.*"},
                                           {"status", "x"},
                                           {"ls", "--bogus"},
                                           {"--timeout=-1", "ls"},
                                           {"sub", "a", "--raw", "--json"},
                                           {"sub", "a", "--slow=now"},
                                           {"bench", "--sizes=1"},
                                           {"pub", "a", "-H", "b"},
                                           {"queue"},
                                           {"queue", "creat", "q"},
                                           {"queue", "create", "a..b"},
                                           {"queue", "create", "q", "ttl=5"},
                                           {"queue", "set", "q", "tll=5s"},
                                           {"queue", "set", "q"},
                                           {"queue", "purge", "q", "--older-than=5"},
                                           {"queue", "move", "q"},
                                           {"queue", "peek", "q", "--force"},
                                           {"queue", "ls", "--count=5"},
                                           {"events", "--kind=broken"},
                                           {"bind", "mq", "direction=sideways"},
                                           {"bind", "zmq", "endpoint=dealer"},
                                           {NULL}};
    struct run run;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        start_with(&run, -1, -1, wrong[i]);
        finish(&run);
        assert_int_equal(run.status, 2);
        assert_string_equal(run.out, "");
        assert_contains(run.err, i + 1 < sizeof(wrong) / sizeof(wrong[0]) ? "--help" : "Usage: ipcctl");
        done(&run);
    }
    RUN(&run, -1, "stauts");
    assert_int_equal(run.status, 2);
    assert_string_equal(run.err, "ipcctl: stauts: there is no such command; did you mean `ipcctl status'?\n");
    done(&run);
    static const char *const commands[] = {"status", "ls",  "clients", "quota", "events",
                                           "doctor", "pub", "sub",     "bench", "queue"};
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        RUN(&run, -1, commands[i], "--help");
        assert_fine(&run);
        char usage[64];
        snprintf(usage, sizeof(usage), "Usage: ipcctl %s [OPTION...]", commands[i]);
        assert_contains(run.out, usage);
        assert_contains(run.out, "--timeout=SECONDS");
        done(&run);
    }
}

/* Every command, with an address where nobody is or nobody answers. */
static void all_fail(const char *address, int status, const char *word)
{
    static const char *const commands[][3] = {{"status"},        {"ls"},       {"clients"},
                                              {"pub", "a", "b"}, {"sub", "a"}, {"bench"}};
    char option[256];
    snprintf(option, sizeof(option), "--address=%s", address);
    for (size_t i = 0; i < 6; i++) {
        struct run run;
        const char *timeout = status == 4 ? "--timeout=0.3" : "--timeout=5";
        if (i == 3)
            RUN(&run, -1, "--json", option, timeout, commands[i][0], commands[i][1], commands[i][2]);
        else if (i == 4)
            RUN(&run, -1, "--json", option, timeout, commands[i][0], commands[i][1]);
        else
            RUN(&run, -1, "--json", option, timeout, commands[i][0]);
        if (run.status != status)
            fail_msg("%s: status %d, stderr: %s", commands[i][0], run.status, run.err);
        assert_string_equal(run.out, "");
        assert_contains(run.err, "ipcctl: ");
        assert_contains(run.err, word);
        assert_ptr_equal(strchr(run.err, '\n') + 1, run.err + strlen(run.err)); /* one line */
        done(&run);
    }
}

static void test_no_broker(void **state)
{
    (void)state;
    all_fail("/nowhere/socket", 3, "/nowhere/socket");
}

static void test_stopped_broker(void **state)
{
    (void)state;
    json_t *document = json_of("status", NULL);
    pid_t broker = (pid_t)number_at(document, "pid");
    json_decref(document);
    *(pid_t *)*state = broker;
    assert_int_equal(kill(broker, SIGSTOP), 0);
    all_fail(getenv("IPC_ADDRESS"), 4, "in time");
    assert_int_equal(kill(broker, SIGCONT), 0);
    json_decref(json_of("status", NULL));
}

static int let_go(void **state)
{
    pid_t *broker = *state;
    if (*broker > 0)
        kill(*broker, SIGCONT);
    return 0;
}

static void test_timeouts(void **state)
{
    (void)state;
    struct run run;
    RUN(&run, -1, "pub", "--timeout=0.05", "--wait", "nobody.there", "x");
    assert_int_equal(run.status, 4);
    assert_contains(run.err, "ipcctl: nobody.there: fewer than 1 readers came in time");
    done(&run);
    RUN(&run, -1, "sub", "--timeout=0.05", "--count=2", "nobody.there");
    assert_int_equal(run.status, 4);
    assert_contains(run.err, "0 of 2 messages came in time");
    done(&run);
    RUN(&run, -1, "sub", "--timeout=0.05", "nobody.there");
    assert_fine(&run);
    done(&run);
}

static void test_refused(void **state)
{
    (void)state;
    struct run run;
    char big[2048];
    memset(big, 'x', sizeof(big));
    int in_fd = memory_file("stdin");
    for (int i = 0; i < 100; i++)
        assert_int_equal(write(in_fd, big, sizeof(big)), (ssize_t)sizeof(big));
    assert_int_equal(lseek(in_fd, 0, SEEK_SET), 0);
    RUN(&run, in_fd, "pub", "refused");
    assert_int_equal(run.status, 1);
    assert_contains(run.err, "message 1 of 204800 bytes is too large; --size-max makes room for it");
    done(&run);
    assert_int_equal(lseek(in_fd, 0, SEEK_SET), 0);
    RUN(&run, in_fd, "pub", "refused", "--size-max=204800");
    assert_fine(&run);
    done(&run);
    close(in_fd);
}

static void test_interrupted(void **state)
{
    (void)state;
    struct run run;
    START(&run, -1, "sub", "--stats", "interrupted.>");
    wait_listed("subscriptions", "pattern", "interrupted.>");
    assert_int_equal(kill(run.pid, SIGINT), 0);
    finish(&run);
    assert_int_equal(run.status, 130);
    assert_string_equal(run.out, "");
    assert_contains(run.err, "0 messages (0B) in ");
    done(&run);

    int feed[2];
    assert_int_equal(pipe2(feed, O_CLOEXEC), 0);
    START(&run, feed[0], "pub", "interrupted.pub");
    wait_listed("topics", "topic", "interrupted.pub");
    assert_int_equal(kill(run.pid, SIGTERM), 0);
    finish(&run);
    assert_int_equal(run.status, 130);
    done(&run);
    close(feed[0]);
    close(feed[1]);
}

static void test_closed_stdout(void **state)
{
    (void)state;
    int out[2];
    struct run run;
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    start_with(&run, -1, out[1], (const char *const[]){"sub", "closed.>", NULL});
    close(out[1]);
    wait_listed("subscriptions", "pattern", "closed.>");
    close(out[0]); /* while it sleeps */
    finish(&run);
    assert_int_equal(run.status, 0);
    assert_string_equal(run.err, "");
    done(&run);

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    close(out[0]);
    start_with(&run, -1, out[1], (const char *const[]){"status", NULL});
    close(out[1]);
    finish(&run);
    assert_int_equal(run.status, 0);
    assert_string_equal(run.err, "");
    done(&run);

    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(full >= 0);
    start_with(&run, -1, full, (const char *const[]){"status", NULL});
    close(full);
    finish(&run);
    assert_int_equal(run.status, 1);
    assert_contains(run.err, "ipcctl: stdout: No space left");
    done(&run);
}

/* ---- completion --------------------------------------------------------------------------------------------- */

static void test_completion(void **state)
{
    (void)state;
    static const char script[] =
        ". \"$IPC_SOURCE_DIR/tools/completion/ipcctl\"\n"
        "complete_words() { COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)); COMPREPLY=()\n"
        "_ipcctl 2>/dev/null; printf '%s,' \"${COMPREPLY[@]}\"; echo; }\n"
        "complete_words \"$0\" s\n"
        "complete_words \"$0\" ls --lo\n"
        "complete_words \"$0\" sub --slow bl\n"
        "complete_words \"$0\" pub completion.t\n"
        "complete_words \"$0\" queue p\n"
        "complete_words \"$0\" queue rm --f\n"
        "complete_words \"$0\" queue create new att\n"
        "complete_words \"$0\" queue move completion.q\n"
        "complete_words \"$0\" queue create completion.q\n";
    if (!getenv("IPC_SOURCE_DIR"))
        skip();
    int feed[2];
    assert_int_equal(pipe2(feed, O_CLOEXEC), 0);
    struct run pub, bash;
    RUN(&bash, -1, "queue", "create", "completion.queue");
    assert_fine(&bash);
    done(&bash);
    START(&pub, feed[0], "pub", "completion.topic");
    close(feed[0]);
    wait_listed("topics", "topic", "completion.topic");
    const char *saved = ipcctl_path;
    ipcctl_path = "/bin/bash";
    START(&bash, -1, "--norc", "-c", script, saved);
    ipcctl_path = saved;
    finish(&bash);
    assert_string_equal(
        bash.out, "status,sub,send,serve,\n--long,\nblock,\ncompletion.topic,\npause,purge,peek,\n--force,\n"
                  "attempts-max=,\ncompletion.queue,\n,\n");
    done(&bash);
    RUN(&bash, -1, "queue", "rm", "completion.queue");
    assert_fine(&bash);
    done(&bash);
    close(feed[1]);
    finish(&pub);
    assert_fine(&pub);
    done(&pub);
}

/* ---- the program -------------------------------------------------------------------------------------------- */

static int before(void **state)
{
    static pid_t stopped;
    stopped = 0;
    *state = &stopped;
    watchdog(CASE_SECONDS, "a case of test_ipcctl");
    return 0;
}

static int after(void **state)
{
    let_go(state);
    return children_left() ? -1 : 0;
}

int main(int argc, char **argv)
{
    const char *parent = getenv("IPCD_RUN_BIN");
    ipcctl_path = getenv("IPCCTL_BIN");
    if (!parent || !ipcctl_path || argc < 1) {
        fprintf(stderr, "IPCD_RUN_BIN and IPCCTL_BIN name the programs to test; skipped\n");
        return 77;
    }
    if (!getenv(INSIDE)) {
        setenv(INSIDE, "1", 1);
        unsetenv("IPC_ADDRESS");
        char self[4096];
        ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);
        if (size > 0) {
            self[size] = '\0';
            execl(parent, parent, "--private", "--", self, (char *)NULL);
        }
        perror(parent);
        return 1;
    }
#define CASE(test) cmocka_unit_test_setup_teardown(test, before, after)
    const struct CMUnitTest tests[] = {
        CASE(test_status),     CASE(test_queues),   CASE(test_listings_agree), CASE(test_control_bytes),
        CASE(test_pieces),     CASE(test_retained), CASE(test_first_message),  CASE(test_lines_without_loss),
        CASE(test_bench),      CASE(test_usage),    CASE(test_no_broker),      CASE(test_stopped_broker),
        CASE(test_timeouts),   CASE(test_refused),  CASE(test_interrupted),    CASE(test_closed_stdout),
        CASE(test_completion),
    };
    return cmocka_run_group_tests_name("ipcctl", tests, NULL, NULL);
}
