/* SPDX-License-Identifier: Apache-2.0
 *
 * Scatter and gather: one question goes to several queues, each with workers of its own, and says where answers go
 * (reply_to). The answers carry the question's id, so that late answers to an earlier question are told apart.
 *
 *     ipcd-run --private -- scatter_queues
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ipc/ipc.h>

#define SECOND INT64_C(1000000000)

enum { SHOPS = 4, QUESTIONS = 10 };

static ssize_t check(ssize_t result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror((int)-result));
        exit(1);
    }
    return result;
}

static void queue_name(char name[static 16], unsigned shop)
{
    snprintf(name, 16, "shop.%u", shop);
}

/* What does it cost? Answers wherever it is asked to, until it is asked nothing. */
static int sell(unsigned shop)
{
    ipc_connection *connection;
    ipc_consumer *questions;
    ipc_producer *answers = NULL;
    char name[16], where[256] = "";

    queue_name(name, shop);
    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_consumer_open(&questions, connection, name, NULL, NULL), name);
    for (;;) {
        struct ipc_queue_message question;
        struct ipc_send how = IPC_SEND_INIT;
        uint32_t item, price;
        struct iovec piece = {&price, sizeof(price)};

        if (check(ipc_consumer_receive(questions, &item, sizeof(item), &question, IPC_FOREVER),
                  "a question") == 0)
            break;
        if (question.reply_to && strcmp(where, question.reply_to) != 0) { /* somebody else asks */
            snprintf(where, sizeof(where), "%s", question.reply_to);
            answers = ipc_producer_close(answers);
            check(ipc_producer_open(&answers, connection, where, NULL, NULL), where);
        }
        price = (item * 7 + shop * 5) % 23 + 1;
        how.id = question.id; /* it is about this question */
        how.id_size = question.id_size;
        check(ipc_producer_sendv(answers, &piece, 1, &how, IPC_FOREVER, NULL), "an answer");
        check(ipc_producer_flush(answers, IPC_FOREVER), "the answer is in its queue");
        check(ipc_consumer_ack(questions, question.delivery), "acknowledging");
    }
    ipc_connection_close(connection);
    return 0;
}

/* Ask all, and wait for all. */
static void ask(ipc_producer **shops, ipc_consumer *answers, uint32_t item)
{
    struct ipc_send how = IPC_SEND_INIT;
    struct iovec piece = {&item, sizeof(item)};
    uint32_t best = UINT32_MAX;

    how.reply_to = "answers";
    how.id = &item;
    how.id_size = sizeof(item);
    how.ttl_ns = (uint64_t)(10 * SECOND); /* nobody waits for longer */
    for (unsigned i = 0; i < SHOPS; i++)
        check(ipc_producer_sendv(shops[i], &piece, 1, &how, IPC_FOREVER, NULL), "asking");
    for (unsigned got = 0; got < SHOPS;) {
        struct ipc_queue_message answer;
        uint32_t price;

        check(ipc_consumer_receive(answers, &price, sizeof(price), &answer, 10 * SECOND), "an answer");
        check(ipc_consumer_ack(answers, answer.delivery), "acknowledging");
        if (answer.id_size != sizeof(item) || memcmp(answer.id, &item, sizeof(item)) != 0)
            continue; /* to an earlier question */
        best = price < best ? price : best;
        got++;
    }
    printf("item %u: the best of %d prices is %u\n", item, SHOPS, best);
}

int main(void)
{
    ipc_connection *connection;
    ipc_producer *shops[SHOPS];
    ipc_consumer *answers;
    char name[16];

    check(ipc_connection_open(&connection, NULL, NULL, NULL), "connecting");
    check(ipc_queue_create(connection, "answers", NULL, IPC_QUEUE_MAY_EXIST, NULL), "answers");
    for (unsigned i = 0; i < SHOPS; i++) {
        pid_t child;

        queue_name(name, i);
        check(ipc_queue_create(connection, name, NULL, IPC_QUEUE_MAY_EXIST, NULL), name);
        child = fork();
        if (child == 0)
            _exit(sell(i));
        check(child, "forking");
        check(ipc_producer_open(&shops[i], connection, name, NULL, NULL), name);
    }
    check(ipc_consumer_open(&answers, connection, "answers", NULL, NULL), "answers");
    for (uint32_t item = 0; item < QUESTIONS; item++)
        ask(shops, answers, item);

    for (unsigned i = 0; i < SHOPS; i++)
        check(ipc_producer_send(shops[i], NULL, 0, IPC_FOREVER, NULL), "closing time");
    for (unsigned i = 0; i < SHOPS; i++) {
        int status;

        check(wait(&status), "waiting");
        if (status != 0)
            return 1;
    }
    ipc_connection_close(connection);
    return 0;
}
