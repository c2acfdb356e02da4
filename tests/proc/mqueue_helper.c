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
 * The same in envelopes, each with a header h: its value is v:
 *   esend MQUEUE FROM TO SIZE, ereceive MQUEUE FROM TO SIZE
 *   ecall MQUEUE REPLIES FROM TO WINDOW   so many requests are open at a time; the mqueue REPLIES is made, and named in them
 *   eserve MQUEUE REPLIES COUNT WINDOW    answer that many at a time, the last first
 */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/mq.h>

#define SIZE_MAX_USED 8192
#define WINDOW_MAX    64

static char buffer[1048576];

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
    if ((size_t)used < size && size < sizeof(buffer))
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

/* ---- in envelopes ------------------------------------------------------------------------------------------ */

static ipc_mq *end_of(mqd_t mqueue)
{
    ipc_mq *end;
    must(ipc_mq_open(&end, mqueue, NULL) == 0, "ipc_mq_open");
    return end;
}

static void do_send(ipc_mq *end, unsigned long from, unsigned long to, size_t size)
{
    const struct ipc_header header = {"h", "v", 1};
    struct ipc_mq_message message = IPC_MQ_MESSAGE_INIT;
    message.data = buffer;
    message.data_size = size;
    message.headers = &header;
    message.header_count = 1;
    for (unsigned long number = from; number < to; number++) {
        fill(number, size);
        must(ipc_mq_send(end, &message, IPC_FOREVER) == 0, "ipc_mq_send");
    }
}

static struct ipc_mq_message next(ipc_mq *end)
{
    struct ipc_mq_message message;
    must(ipc_mq_receive(end, &message, IPC_FOREVER) == 0, "ipc_mq_receive");
    must(message.data_size < sizeof(buffer), "too large");
    memcpy(buffer, message.data, message.data_size);
    buffer[message.data_size] = '\0';
    return message;
}

static void check_header(const struct ipc_mq_message *message)
{
    const void *value;
    size_t size;
    must(ipc_mq_header(message, "h", &value, &size) == 0 && size == 1 && memcmp(value, "v", 1) == 0,
         "header");
}

static void do_ask(ipc_mq *requests, ipc_mq *replies, const char *reply_to, unsigned long from,
                   unsigned long to, unsigned long window)
{
    const struct ipc_header header = {"h", "v", 1};
    struct ipc_mq_message request = IPC_MQ_MESSAGE_INIT;
    unsigned long sent = from, answered = from;
    static char seen[65536];
    request.kind = IPC_MQ_REQUEST;
    request.reply_to = reply_to;
    request.headers = &header;
    request.header_count = 1;
    request.data = buffer;
    request.data_size = 32;
    request.id = &sent;
    request.id_size = sizeof(sent);
    while (answered < to) {
        if (sent < to && sent - answered < window) {
            fill(sent, 32);
            must(ipc_mq_send(requests, &request, IPC_FOREVER) == 0, "ipc_mq_send");
            sent++;
            continue;
        }
        char wanted[64];
        unsigned long id;
        const struct ipc_mq_message reply = next(replies);
        must(reply.kind == IPC_MQ_REPLY && reply.code == 0 && reply.id_size == sizeof(id), "reply");
        memcpy(&id, reply.id, sizeof(id));
        must(id < sizeof(seen) && id >= from && id < sent && !seen[id], "id");
        seen[id] = 1;
        snprintf(wanted, sizeof(wanted), "re:%lu ", id);
        must(strncmp(buffer, wanted, strlen(wanted)) == 0, buffer);
        answered++;
    }
}

static void do_answer(ipc_mq *requests, ipc_mq *replies, unsigned long count, unsigned long window)
{
    static struct {
        char id[255], text[256];
        size_t id_size;
    } open[WINDOW_MAX];
    while (count > 0) {
        unsigned long n = 0;
        for (; n < window && n < count && n < WINDOW_MAX; n++) {
            const struct ipc_mq_message request = next(requests);
            must(request.kind == IPC_MQ_REQUEST && request.id_size > 0 && request.ttl_ns > 0, "request");
            memcpy(open[n].id, request.id, request.id_size);
            open[n].id_size = request.id_size;
            snprintf(open[n].text, sizeof(open[n].text), "re:%.200s", buffer);
        }
        for (count -= n; n-- > 0;) {
            struct ipc_mq_message reply = IPC_MQ_MESSAGE_INIT;
            reply.kind = IPC_MQ_REPLY;
            reply.id = open[n].id;
            reply.id_size = open[n].id_size;
            reply.data = open[n].text;
            reply.data_size = strlen(open[n].text);
            must(ipc_mq_send(replies, &reply, IPC_FOREVER) == 0, "ipc_mq_send");
        }
    }
}

static int enveloped(int argc, char **argv)
{
    const char *mode = argv[1];
    unsigned long from = strtoul(argv[3], NULL, 10), to = strtoul(argv[4], NULL, 10);
    unsigned long last = argc > 5 ? strtoul(argv[5], NULL, 10) : 0,
                  window = argc > 6 ? strtoul(argv[6], NULL, 10) : last;
    ipc_mq *end, *other = NULL;
    if (strcmp(mode, "esend") == 0) {
        end = end_of(open_it(argv[2], O_WRONLY));
        do_send(end, from, to, last);
    } else if (strcmp(mode, "ereceive") == 0) {
        end = end_of(open_it(argv[2], O_RDONLY));
        for (unsigned long number = from; number < to; number++) {
            const struct ipc_mq_message message = next(end);
            check_header(&message);
            check(message.data_size, number, last);
        }
    } else if (strcmp(mode, "ecall") == 0) {
        const struct mq_attr attributes = {.mq_maxmsg = 8, .mq_msgsize = 256};
        mqd_t replies = mq_open(argv[3], O_RDONLY | O_CREAT, 0600, &attributes);
        must(replies >= 0, argv[3]);
        end = end_of(open_it(argv[2], O_WRONLY));
        other = end_of(replies);
        do_ask(end, other, argv[3], to, last, window);
        mq_unlink(argv[3]);
    } else if (strcmp(mode, "eserve") == 0) {
        end = end_of(open_it(argv[2], O_RDONLY));
        other = end_of(open_it(argv[3], O_WRONLY));
        do_answer(end, other, to, last);
    } else {
        return 2;
    }
    ipc_mq_close(end);
    ipc_mq_close(other);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const char *mode = argv[1];
    if (mode[0] == 'e' && argc > 4)
        return enveloped(argc, argv);
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
