/* SPDX-License-Identifier: Apache-2.0
 *
 * Who may connect, and who they are taken for. ZAP (RFC 27) asks about each connection: by ipc:// comes whoever the
 * folder lets in, with the uid that the kernel told; by tcp:// on the loopback interface anybody of this machine; from
 * beyond only holders of a key that is in the key file, whose identity is the name that stands there.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/gateways/zmq/gateway.h"

#define CLIENTS_MAX 4096u

bool security_is_local(const char *address)
{
    static const char *const local[] = {"ipc://", "inproc://", "tcp://127.",
                                        "tcp://[::1]:", "tcp://localhost:"};

    for (size_t i = 0; i < sizeof(local) / sizeof(local[0]); i++)
        if (strncmp(address, local[i], strlen(local[i])) == 0)
            return true;
    return false;
}

/* One line of the key file: `secret KEY` or `client NAME KEY`. False: neither. */
static bool take_line(struct zmq_gateway *gateway, char *line, char secret[CURVE_KEY_SIZE])
{
    char words[4][80] = {"", "", "", ""};
    int count = sscanf(line, "%79s %79s %79s %79s", words[0], words[1], words[2], words[3]);
    unsigned char bytes[32];

    if (count <= 0 || words[0][0] == '#')
        return true;
    if (count == 2 && strcmp(words[0], "secret") == 0 && strlen(words[1]) == CURVE_KEY_SIZE - 1 &&
        zmq_z85_decode(bytes, words[1])) {
        memcpy(secret, words[1], CURVE_KEY_SIZE);
        return true;
    }
    if (count != 3 || strcmp(words[0], "client") != 0 || strlen(words[1]) >= POLICY_KEY_SIZE ||
        strlen(words[2]) != CURVE_KEY_SIZE - 1 || !zmq_z85_decode(bytes, words[2]) ||
        gateway->n_curve_clients == CLIENTS_MAX)
        return false;
    struct curve_client *clients =
        realloc(gateway->curve_clients, (gateway->n_curve_clients + 1) * sizeof(*clients));

    if (!clients)
        return false;
    gateway->curve_clients = clients;
    memcpy(clients[gateway->n_curve_clients].key, words[2], CURVE_KEY_SIZE);
    memcpy(clients[gateway->n_curve_clients++].name, words[1], strlen(words[1]) + 1);
    return true;
}

int security_read_keys(struct zmq_gateway *gateway)
{
    const char *path = gateway->options.key_file;
    char *secret = gateway->curve_secret, line[512];
    struct stat st;
    FILE *file;
    int fd, result = 0;

    if (!path[0])
        return 0;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    file = fd < 0 ? NULL : fdopen(fd, "r");
    if (!file) {
        result = -errno;
        fd_close(fd);
        log_write(LOG_CONFIG, NULL, "the key file %s cannot be read: %s", path, strerror(-result));
        return result;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (st.st_mode & 077) ||
        (st.st_uid != geteuid() && st.st_uid != 0)) {
        log_write(LOG_CONFIG, NULL,
                  "the key file %s has to be a file of this user with mode 0600: chmod 600 %s", path, path);
        result = -EPERM;
    }
    for (unsigned number = 1; result == 0 && fgets(line, sizeof(line), file); number++) {
        if (take_line(gateway, line, secret))
            continue;
        log_write(LOG_CONFIG, NULL,
                  "%s:%u: neither 'secret KEY' nor 'client NAME KEY', keys of 40 characters in Z85", path,
                  number);
        result = -EINVAL;
    }
    explicit_bzero(line, sizeof(line));
    (void)fclose(file);
    if (result == 0 && !secret[0]) {
        log_write(LOG_CONFIG, NULL,
                  "the key file %s has no line 'secret KEY': ipcd-zmq --make-keys=FILE writes one", path);
        result = -EINVAL;
    }
    return result;
}

/* Is each client of the one among the other, with the same key? */
static bool all_among(const struct curve_client *clients, size_t count, const struct zmq_gateway *gateway)
{
    for (size_t i = 0; i < count; i++) {
        bool found = false;

        for (size_t j = 0; j < gateway->n_curve_clients && !found; j++)
            found = strcmp(clients[i].name, gateway->curve_clients[j].name) == 0 &&
                    strcmp(clients[i].key, gateway->curve_clients[j].key) == 0;
        if (!found)
            return false;
    }
    return true;
}

bool security_reread_keys(struct gateway *common)
{
    struct zmq_gateway *gateway = common->context;
    struct curve_client *clients = gateway->curve_clients;
    const size_t count = gateway->n_curve_clients;
    char secret[CURVE_KEY_SIZE];
    bool same;

    memcpy(secret, gateway->curve_secret, sizeof(secret));
    gateway->curve_clients = NULL;
    gateway->n_curve_clients = 0;
    gateway->curve_secret[0] = '\0';
    same = security_read_keys(gateway) == 0;
    if (same) {
        same = strcmp(secret, gateway->curve_secret) == 0 && all_among(clients, count, gateway);
        free(clients);
    } else {
        log_write(LOG_CONFIG, NULL, "the keys that held hold");
        free(gateway->curve_clients);
        gateway->curve_clients = clients;
        gateway->n_curve_clients = count;
        memcpy(gateway->curve_secret, secret, sizeof(secret));
        same = true;
    }
    explicit_bzero(secret, sizeof(secret));
    return same;
}

int security_make_keys(const char *path)
{
    char public[CURVE_KEY_SIZE], secret[CURVE_KEY_SIZE];
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), result = 0;

    if (fd < 0 || zmq_curve_keypair(public, secret) < 0 ||
        dprintf(fd, "# SPDX-License-Identifier: CC0-1.0\n# public %s\nsecret %s\n# client NAME KEY\n", public,
                secret) < 0) {
        result = -errno;
        fprintf(stderr, "ipcd-zmq: %s: %s\n", path, strerror(-result));
    } else {
        printf("%s\n", public);
    }
    explicit_bzero(secret, sizeof(secret));
    fd_close(fd);
    return result;
}

/* ---- ZAP --------------------------------------------------------------------------------------------------------- */

enum {
    ZAP_VERSION,
    ZAP_REQUEST,
    ZAP_DOMAIN,
    ZAP_ADDRESS,
    ZAP_ROUTING_ID,
    ZAP_MECHANISM,
    ZAP_KEY,
    ZAP_FRAMES
};

struct zap_request {
    char frames[ZAP_FRAMES][256];
    size_t sizes[ZAP_FRAMES];
    unsigned count;
};

static bool receive(void *zap, struct zap_request *request)
{
    int more = 1;

    for (request->count = 0; more; request->count++) {
        char extra[256], *to = request->count < ZAP_FRAMES ? request->frames[request->count] : extra;
        size_t option = sizeof(more);
        int size = zmq_recv(zap, to, 255, ZMQ_DONTWAIT);

        if (size < 0)
            return false;
        size = size < 255 ? size : 255;
        to[size] = '\0';
        if (request->count < ZAP_FRAMES)
            request->sizes[request->count] = (size_t)size;
        (void)zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &option);
    }
    return true;
}

static uint64_t connections(const struct zmq_gateway *gateway)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < ENDPOINT_COUNT; i++)
        count += gateway->sockets[i].counts.connections;
    return count;
}

/* The only reason that passes: whoever is told so connects again by itself. */
static const char too_many[] = "there are as many connections as allowed (--connections-max)";

/* NULL: let in, as `identity`. Else why not. */
static const char *decide(const struct zmq_gateway *gateway, const struct zap_request *request,
                          char identity[IDENTITY_SIZE])
{
    char key[CURVE_KEY_SIZE];

    if (request->count < ZAP_KEY || strcmp(request->frames[ZAP_VERSION], "1.0") != 0)
        return "the request makes no sense";
    if (connections(gateway) > gateway->options.connections_max)
        return too_many;
    if (strcmp(request->frames[ZAP_MECHANISM], "NULL") == 0) {
        unsigned uid;

        /* "localhost:uid:gid:pid" of a peer by ipc:// */
        if (sscanf(request->frames[ZAP_ADDRESS], "localhost:%u:%*u:%*u", &uid) == 1)
            (void)snprintf(identity, IDENTITY_SIZE, "uid:%u", uid);
        else
            (void)snprintf(identity, IDENTITY_SIZE, "local");
        return NULL;
    }
    if (strcmp(request->frames[ZAP_MECHANISM], "CURVE") != 0 || request->count != ZAP_FRAMES ||
        request->sizes[ZAP_KEY] != 32)
        return "only CURVE is spoken here";
    (void)zmq_z85_encode(key, (const unsigned char *)request->frames[ZAP_KEY], 32);
    for (size_t i = 0; i < gateway->n_curve_clients; i++) {
        if (strcmp(gateway->curve_clients[i].key, key) == 0) {
            (void)snprintf(identity, IDENTITY_SIZE, "key:%s", gateway->curve_clients[i].name);
            return NULL;
        }
    }
    return "its key is not in the key file";
}

/* ZMTP's form: a size and a name, a size and a value. */
static void send_metadata(struct zmq_gateway *gateway)
{
    unsigned char text[64] = {sizeof(ACCESS_PROPERTY) - 1};
    char *number = (char *)text + 1 + sizeof(ACCESS_PROPERTY) - 1 + 4;
    int size;

    if (!access_rules(gateway)) {
        (void)zmq_send(gateway->zap, "", 0, 0);
        return;
    }
    memcpy(text + 1, ACCESS_PROPERTY, sizeof(ACCESS_PROPERTY) - 1);
    size = snprintf(number, 24, "%llu", (unsigned long long)++gateway->next_connection);
    number[-1] = (char)size;
    (void)zmq_send(gateway->zap, text, (size_t)(number - (char *)text) + (size_t)size, 0);
}

static void asked(struct zmq_gateway *gateway, struct source *source)
{
    static struct zap_request request; /* only one at a time, and this thread's */

    (void)source;
    while (receive(gateway->zap, &request)) {
        /* Who was accepted by now gets a number that is higher than that of who was gone before: see watch.c. */
        if (access_rules(gateway))
            for (unsigned i = ENDPOINT_SUB; i <= ENDPOINT_MATCH; i++)
                endpoint_news(gateway, &gateway->sockets[i]);
        char identity[IDENTITY_SIZE] = "";
        const char *why = decide(gateway, &request, identity);
        const struct log_about about = {.name = request.frames[ZAP_ADDRESS], .reason = "zap"};

        if (why)
            log_write(LOG_REFUSED, &about, "a connection was refused: %s", why);
        (void)zmq_send(gateway->zap, "1.0", 3, ZMQ_SNDMORE);
        (void)zmq_send(gateway->zap, request.frames[ZAP_REQUEST],
                       request.count > 1 ? request.sizes[ZAP_REQUEST] : 0, ZMQ_SNDMORE);
        (void)zmq_send(gateway->zap, !why ? "200" : why == too_many ? "300" : "400", 3, ZMQ_SNDMORE);
        (void)zmq_send(gateway->zap, why ? why : "OK", strlen(why ? why : "OK"), ZMQ_SNDMORE);
        (void)zmq_send(gateway->zap, identity, strlen(identity), ZMQ_SNDMORE);
        send_metadata(gateway);
    }
}

int security_zap_open(struct zmq_gateway *gateway)
{
    int fd = -1;
    size_t size = sizeof(fd);

    gateway->zap = zmq_socket(gateway->context, ZMQ_REP);
    if (!gateway->zap || zmq_bind(gateway->zap, "inproc://zeromq.zap.01") < 0 ||
        zmq_getsockopt(gateway->zap, ZMQ_FD, &fd, &size) < 0)
        return -errno;
    return source_add(gateway, &gateway->zap_source, fd, asked);
}
