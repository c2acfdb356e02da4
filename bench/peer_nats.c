/* SPDX-License-Identifier: Apache-2.0
 *
 * NATS as a queue: a group of subscribers without any acknowledgement or storage, over the loopback. Its protocol is
 * spoken here, with batches in one call: the C library of NATS costs more than its server.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "bench/peer.h"

#define BUFFER (1u << 18)

/* ---- the server ------------------------------------------------------------------------------------------ */

/* A port of the loopback where nobody listens now. */
static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        address.sin_port = 0;
    if (fd >= 0)
        close(fd);
    return ntohs(address.sin_port);
}

/* Or it ends the connection of a subscriber that is slow. */
static int configure(const char *path, unsigned port)
{
    FILE *file = fopen(path, "we");

    if (!file)
        return -1;
    fprintf(file, "host: 127.0.0.1\nport: %u\nmax_pending: 1GB\nwrite_deadline: \"60s\"\n", port);
    return fclose(file) == 0 ? 0 : -1;
}

/* ---- a connection ---------------------------------------------------------------------------------------- */

struct nats {
    int fd;
    size_t begin, end; /* of what was read and not looked at */
    char *buffer;
};

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

/* 1: there is more; 0: nothing came for a while; -1: the connection ended. */
static int read_more(struct nats *nats)
{
    if (nats->begin) {
        memmove(nats->buffer, nats->buffer + nats->begin, nats->end - nats->begin);
        nats->end -= nats->begin;
        nats->begin = 0;
    }
    ssize_t n = read(nats->fd, nats->buffer + nats->end, BUFFER - nats->end);
    if (n > 0)
        nats->end += (size_t)n;
    return n > 0 ? 1 : n < 0 && errno == EAGAIN ? 0 : -1;
}

/* The next line, without its end; NULL: more has to be read. */
static const char *next_line(struct nats *nats, size_t *ret_size)
{
    char *begin = nats->buffer + nats->begin, *end = memchr(begin, '\n', nats->end - nats->begin);

    if (!end)
        return NULL;
    *ret_size = (size_t)(end - begin);
    return begin;
}

/* Send it, and a PING, and wait for the answer to that. */
static int ask(struct nats *nats, const char *text)
{
    if (write_all(nats->fd, text, strlen(text)) < 0 || write_all(nats->fd, "PING\r\n", 6) < 0)
        return -1;
    for (;;) {
        size_t size;
        const char *line = next_line(nats, &size);
        if (!line && read_more(nats) < 0)
            return -1;
        if (!line)
            continue;
        nats->begin += size + 1;
        if (strncmp(line, "PONG", 4) == 0 || strncmp(line, "-ERR", 4) == 0)
            return *line == 'P' ? 0 : -1;
    }
}

static int nats_connect(struct nats *nats, const struct peer_server *server, const char *subscribe)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)atoi(server->address))};
    struct timeval timeout = {.tv_usec = 10000};

    *nats =
        (struct nats){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .buffer = bench_alloc(BUFFER)};
    if (nats->fd >= 0 && connect(nats->fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
        setsockopt(nats->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) == 0 &&
        ask(nats, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n") == 0 && ask(nats, subscribe) == 0)
        return 0;
    if (nats->fd >= 0)
        close(nats->fd);
    free(nats->buffer);
    return -1;
}

static void nats_close(struct nats *nats)
{
    close(nats->fd);
    free(nats->buffer);
}

static int start_nats(struct peer_server *server)
{
    static const char *const arguments[] = {"nats-server", "-c", "config", NULL};
    char path[sizeof(server->folder) + 16];
    unsigned port = free_port();
    struct nats nats;

    (void)snprintf(server->folder, sizeof(server->folder), "/tmp/ipc-bench-XXXXXX");
    if (!mkdtemp(server->folder))
        return -1;
    snprintf(path, sizeof(path), "%s/config", server->folder);
    snprintf(server->address, sizeof(server->address), "%u", port);
    if (configure(path, port) < 0 || peer_start(server, arguments) < 0)
        return -1;
    for (unsigned i = 0; i < 500; i++) {
        if (nats_connect(&nats, server, "") == 0) {
            nats_close(&nats);
            return 0;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    peer_stop(server);
    return -1;
}

/* ---- roles ----------------------------------------------------------------------------------------------- */

static int produce(struct bench_seat *seat, void *argument)
{
    const struct peer_queue *queue = argument;
    char head[32], *batch = bench_alloc(PEER_BATCH * (sizeof(head) + queue->size + 2));
    int head_size = snprintf(head, sizeof(head), "PUB work %u\r\n", queue->size);
    size_t size = (size_t)head_size + queue->size + 2;
    struct nats nats;

    for (unsigned i = 0; i < PEER_BATCH; i++) {
        memcpy(batch + i * size, head, (size_t)head_size);
        memcpy(batch + (i + 1) * size - 2, "\r\n", 2);
    }
    if (nats_connect(&nats, queue->server, "") < 0)
        return bench_fail(seat, "no connection to nats-server");
    bench_begin(seat);
    for (uint64_t sent = 0; sent < queue->count;) {
        uint64_t now = queue->count - sent < PEER_BATCH ? queue->count - sent : PEER_BATCH;
        peer_queue_pace(queue, sent);
        if (write_all(nats.fd, batch, now * size) < 0)
            return bench_fail(seat, "nats: %s", strerror(errno));
        sent += now;
    }
    if (ask(&nats, "") < 0)
        return bench_fail(seat, "nats: no answer to the last message");
    bench_end(seat);
    bench_meet(seat);
    nats_close(&nats);
    free(batch);
    return 0;
}

/* The number of messages that have come completely, which are dropped; -1: something else came. */
static int take(struct nats *nats, uint32_t size)
{
    int count = 0;
    size_t line_size;

    for (const char *line; (line = next_line(nats, &line_size)) != NULL;) {
        if (strncmp(line, "MSG ", 4) == 0) {
            size_t all = line_size + 1 + size + 2;
            if (nats->end - nats->begin < all)
                break;
            if (memcmp(line + all - 2, "\r\n", 2) != 0)
                return -1;
            nats->begin += all;
            count++;
            continue;
        }
        if (strncmp(line, "PING", 4) == 0 ? write_all(nats->fd, "PONG\r\n", 6) < 0 : *line == '-')
            return -1;
        nats->begin += line_size + 1;
    }
    return count;
}

static int consume(struct bench_seat *seat, void *argument)
{
    struct peer_queue *queue = argument;
    struct nats nats;

    if (nats_connect(&nats, queue->server, "SUB work group 1\r\n") < 0)
        return bench_fail(seat, "no connection to nats-server");
    bench_begin(seat);
    while (atomic_load(queue->taken) < queue->count) {
        int result = read_more(&nats), count = take(&nats, queue->size);
        if (result < 0 || count < 0)
            return bench_fail(seat, "nats: %s", result < 0 ? strerror(errno) : "another message");
        atomic_fetch_add(queue->taken, (uint64_t)count);
    }
    bench_end(seat);
    bench_meet(seat);
    nats_close(&nats);
    return 0;
}

int nats_measure(double rates[2], double cpu[2])
{
    static const uint32_t sizes[] = {64, 1024};
    struct peer_server server;
    int result = 0;

    if (start_nats(&server) < 0) {
        fprintf(stderr, "ipc-bench: nats-server could not be started\n");
        return 0;
    }
    for (unsigned i = 0; i < 2 && result == 0; i++) {
        struct peer_queue queue = {&server, sizes[i], 2, bench_count(i ? 200000 : 1000000),
                                   bench_shared(sizeof(*queue.taken))};
        result = peer_queue_play(&queue, produce, consume, &rates[i], &cpu[i]);
    }
    peer_stop(&server);
    return result;
}
