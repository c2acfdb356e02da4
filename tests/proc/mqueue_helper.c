/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that knows POSIX message queues and nothing of the broker. A message is its number in decimal, then a space and
 * x up to its size. Each of its modes ends with status 0 if all was as it should be.
 *   send MQUEUE FROM TO SIZE [PRIORITY]   numbers [FROM, TO)
 *   receive MQUEUE FROM TO SIZE           exactly these, in order
 *   collect MQUEUE LAST                   print the numbers that come, up to LAST
 *   say MQUEUE TEXT [PRIORITY]            one text
 *   hear MQUEUE TEXT                      must be the next one
 *   call MQUEUE REPLIES FROM TO           send numbers, each followed by receiving "re:NUMBER"
 *   serve MQUEUE REPLIES COUNT            answer each with "re:" and what came
 */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MAX_USED 8192

static char buffer[SIZE_MAX_USED + 64];

static void must(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "mqueue_helper: %s: %s\n", what, strerror(errno));
    exit(1);
}

static mqd_t open_it(const char *name, int how)
{
    mqd_t mqueue = mq_open(name, how);
    must(mqueue >= 0, name);
    return mqueue;
}

static void fill(unsigned long number, size_t size)
{
    int used = snprintf(buffer, sizeof(buffer), "%lu ", number);
    if ((size_t)used < size)
        memset(buffer + used, 'x', size - (size_t)used);
}

static size_t receive(mqd_t mqueue)
{
    ssize_t size = mq_receive(mqueue, buffer, SIZE_MAX_USED, NULL);
    must(size >= 0, "mq_receive");
    buffer[size] = '\0';
    return (size_t)size;
}

static void check(size_t size, unsigned long number, size_t wanted_size)
{
    char *end;
    unsigned long got = strtoul(buffer, &end, 10);
    if (got == number && size == wanted_size && *end == ' ' &&
        strspn(end + 1, "x") == size - (size_t)(end + 1 - buffer))
        return;
    fprintf(stderr, "mqueue_helper: %lu wanted, got %zu bytes: %.40s\n", number, size, buffer);
    exit(1);
}

static void do_call(mqd_t mqueue, mqd_t replies, unsigned long from, unsigned long to)
{
    for (unsigned long number = from; number < to; number++) {
        char wanted[64];
        fill(number, 32);
        must(mq_send(mqueue, buffer, 32, 0) == 0, "mq_send");
        receive(replies);
        snprintf(wanted, sizeof(wanted), "re:%lu ", number);
        must(strncmp(buffer, wanted, strlen(wanted)) == 0, buffer);
    }
}

static void do_serve(mqd_t mqueue, mqd_t replies, unsigned long count)
{
    while (count-- > 0) {
        static char answer[sizeof(buffer)];
        receive(mqueue);
        size_t size = (size_t)snprintf(answer, sizeof(answer), "re:%s", buffer);
        must(mq_send(replies, answer, size, 0) == 0, "mq_send");
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const char *mode = argv[1];
    unsigned long from = strtoul(argv[3], NULL, 10), to = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    size_t size = argc > 5 ? strtoul(argv[5], NULL, 10) : 0;
    if (strcmp(mode, "send") == 0) {
        mqd_t mqueue = open_it(argv[2], O_WRONLY);
        for (unsigned long number = from; number < to; number++) {
            fill(number, size);
            must(mq_send(mqueue, buffer, size, argc > 6 ? (unsigned)atoi(argv[6]) : 0) == 0, "mq_send");
        }
    } else if (strcmp(mode, "receive") == 0) {
        mqd_t mqueue = open_it(argv[2], O_RDONLY);
        for (unsigned long number = from; number < to; number++)
            check(receive(mqueue), number, size);
    } else if (strcmp(mode, "collect") == 0) {
        mqd_t mqueue = open_it(argv[2], O_RDONLY);
        unsigned long number;
        do {
            receive(mqueue);
            number = strtoul(buffer, NULL, 10);
            printf("%lu\n", number);
            fflush(stdout);
        } while (number != from);
    } else if (strcmp(mode, "say") == 0) {
        must(mq_send(open_it(argv[2], O_WRONLY), argv[3], strlen(argv[3]), (unsigned)to) == 0, "mq_send");
    } else if (strcmp(mode, "hear") == 0) {
        receive(open_it(argv[2], O_RDONLY));
        must(strcmp(buffer, argv[3]) == 0, buffer);
    } else if (strcmp(mode, "call") == 0 && argc > 5) {
        do_call(open_it(argv[2], O_WRONLY), open_it(argv[3], O_RDONLY), to, strtoul(argv[5], NULL, 10));
    } else if (strcmp(mode, "serve") == 0) {
        do_serve(open_it(argv[2], O_RDONLY), open_it(argv[3], O_WRONLY), to);
    } else {
        return 2;
    }
    return 0;
}
