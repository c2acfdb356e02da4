/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that knows nothing but mqueues serves and calls a service of ipcd, by way of ipcd-mq and with the envelopes of
 * <ipc/mq.h>; it has no connection to the broker. One process serves, and another one has several calls open at a time:
 *
 *   ipcd-run --private --gateway=mq -- sh -c '
 *     ipcctl bind mq direction=serve form=enveloped mqueue=/upper reply=/upper-done service=upper
 *     ipcctl bind mq direction=call form=enveloped mqueue=/upper-ask "reply=/upper-for-*" service=upper
 *     mqueue_service /upper'
 */
#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipc/mq.h>

#define CALLS 5

static void must(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "mqueue_service: %s: %s\n", what, strerror(-result));
    exit(EXIT_FAILURE);
}

static ipc_mq *end_open(mqd_t mqueue, const char *name)
{
    ipc_mq *end = NULL;

    if (mqueue == (mqd_t)-1) {
        perror(name);
        exit(EXIT_FAILURE);
    }
    must(ipc_mq_open(&end, mqueue, NULL), name);
    return end;
}

static void serve(const char *name)
{
    char done[64];

    snprintf(done, sizeof(done), "%s-done", name);
    ipc_mq *requests = end_open(mq_open(name, O_RDONLY), name);
    ipc_mq *replies = end_open(mq_open(done, O_WRONLY), done);

    for (int i = 0; i < CALLS; i++) {
        struct ipc_mq_message message;
        char text[64];

        must(ipc_mq_receive(requests, &message, IPC_FOREVER), "receiving a request");
        message.data_size = message.data_size < sizeof(text) ? message.data_size : sizeof(text);
        for (size_t at = 0; at < message.data_size; at++)
            text[at] = (char)toupper(((const unsigned char *)message.data)[at]);
        message.kind = IPC_MQ_REPLY; /* its id stays as it is */
        message.data = text;
        must(ipc_mq_send(replies, &message, IPC_FOREVER), "replying");
    }
    ipc_mq_close(requests);
    ipc_mq_close(replies);
}

static void call(const char *name)
{
    static const char *const words[CALLS] = {"one", "two", "three", "four", "five"};
    const struct mq_attr size = {.mq_maxmsg = CALLS, .mq_msgsize = 512};
    char ask[64], reply_to[64];

    snprintf(ask, sizeof(ask), "%s-ask", name);
    snprintf(reply_to, sizeof(reply_to), "%s-for-%d", name, (int)getpid());
    ipc_mq *replies = end_open(mq_open(reply_to, O_RDONLY | O_CREAT | O_EXCL, 0600, &size), reply_to);
    ipc_mq *requests = end_open(mq_open(ask, O_WRONLY), ask);

    for (int i = 0; i < CALLS; i++) {
        struct ipc_mq_message request = IPC_MQ_MESSAGE_INIT;

        request.kind = IPC_MQ_REQUEST;
        request.id = &i;
        request.id_size = sizeof(i);
        request.reply_to = reply_to;
        request.data = words[i];
        request.data_size = strlen(words[i]);
        must(ipc_mq_send(requests, &request, IPC_FOREVER), "calling");
    }
    for (int i = 0; i < CALLS; i++) {
        struct ipc_mq_message reply;
        int which;

        must(ipc_mq_receive(replies, &reply, IPC_FOREVER), "receiving a reply");
        if (reply.code != 0 || reply.id_size != sizeof(which)) {
            fprintf(stderr, "mqueue_service: a call failed: %s\n", reply.text ? reply.text : "");
            exit(EXIT_FAILURE);
        }
        memcpy(&which, reply.id, sizeof(which));
        printf("%s -> %.*s\n", words[which], (int)reply.data_size, (const char *)reply.data);
    }
    ipc_mq_close(requests);
    ipc_mq_close(replies);
    mq_unlink(reply_to);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "/upper";
    pid_t server = fork();
    int status = 0;

    if (server == 0) {
        serve(name);
        return EXIT_SUCCESS;
    }
    if (server < 0)
        return EXIT_FAILURE;
    call(name);
    return waitpid(server, &status, 0) == server && status == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
