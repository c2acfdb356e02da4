/* SPDX-License-Identifier: Apache-2.0
 *
 * One request at a time over the control socket, each exchange under the deadline of the whole command. What the
 * broker sends is checked like anybody's: a page that does not move on ends the listing.
 */
#include "tools/admin.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "libipc/session/session.h"
#include "proto/layout.h"
#include "proto/limits.h"

struct admin {
    int fd;
    uint64_t deadline_ns; /* 0: none */
    uint64_t id;          /* of the last request */
    struct sockaddr_un address;
    unsigned char packet[IPC_MAX_FRAME_SIZE];
    struct ipc_frame_arena arena;
};

const char *admin_address(const struct admin *admin)
{
    return admin->address.sun_path;
}

static int fail_timeout(const struct admin *admin, const char *doing)
{
    return tool_fail(
        TOOL_TIMEOUT, admin->address.sun_path,
        "the broker did not answer %s in time; is it stopped or overloaded? --timeout waits longer", doing);
}

static int fail_ended(const struct admin *admin, const char *text)
{
    return tool_fail(TOOL_NO_BROKER, admin->address.sun_path, "the broker ended the session%s%s; try again",
                     text && *text ? ": " : "", text ? text : "");
}

static int fail_protocol(const struct admin *admin)
{
    return tool_fail(
        TOOL_NO_BROKER, admin->address.sun_path,
        "what answers there does not speak this protocol; is it ipcd, and of this version (" IPCD_VERSION
        ")?");
}

/* Nanoseconds left, INT64_MAX if there is no deadline. */
static int64_t left_ns(const struct admin *admin)
{
    if (admin->deadline_ns == 0)
        return INT64_MAX;
    uint64_t now = tool_now_ns();
    return now < admin->deadline_ns ? (int64_t)(admin->deadline_ns - now) : 0;
}

/* True if the socket became ready in time. */
static bool wait_for(const struct admin *admin, short events)
{
    for (;;) {
        struct pollfd poll_fd = {.fd = admin->fd, .events = events};
        int64_t left = left_ns(admin);
        int64_t ms = left / 1000000 + 1;
        int r = poll(&poll_fd, 1, left == INT64_MAX ? -1 : left == 0 ? 0 : ms > 3600000 ? 3600000 : (int)ms);
        if (r > 0 || (r < 0 && errno != EINTR))
            return true; /* an error shows in what follows */
        if (r == 0 && left_ns(admin) == 0)
            return false;
    }
}

static int do_connect(struct admin *admin)
{
    admin->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (admin->fd < 0)
        return tool_fail(TOOL_FAILED, "socket", "%s", strerror(errno));
    /* A connect waits as long as the backlog is full; the send timeout bounds that. */
    int64_t left = left_ns(admin);
    if (left != INT64_MAX) {
        struct timeval bound = {.tv_sec = left / 1000000000, .tv_usec = left / 1000 % 1000000 + 1};
        if (bound.tv_usec > 999999)
            bound = (struct timeval){.tv_sec = bound.tv_sec + 1};
        setsockopt(admin->fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound));
    }
    const char *path = admin->address.sun_path;
    if (connect(admin->fd, (const struct sockaddr *)&admin->address, sizeof(admin->address)) == 0)
        return TOOL_OK;
    switch (errno) {
    case EAGAIN:
    case EINPROGRESS:
        return fail_timeout(admin, "the connect");
    case ENOENT:
        return tool_fail(TOOL_NO_BROKER, path,
                         "there is no broker; start ipcd, or name its socket with --address or IPC_ADDRESS");
    case ECONNREFUSED:
        return tool_fail(TOOL_NO_BROKER, path,
                         "the socket is there, but no broker listens; start ipcd again");
    case EACCES:
        return tool_fail(TOOL_NO_BROKER, path, "this user may not connect; see the socket's mode and group");
    default:
        return tool_fail(TOOL_NO_BROKER, path, "%s; does --address name ipcd's socket?", strerror(errno));
    }
}

static int send_frame(struct admin *admin, uint16_t type, const ProtobufCMessage *message)
{
    int size = ipc_frame_pack(admin->packet, sizeof(admin->packet), type, ++admin->id, message);
    if (size < 0)
        return tool_fail(TOOL_FAILED, "request", "%s", strerror(-size));
    for (;;) {
        if (send(admin->fd, admin->packet, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL) == size)
            return TOOL_OK;
        if (errno == EPIPE || errno == ECONNRESET)
            return TOOL_OK; /* what the broker said before it hung up is still to be read */
        if (errno != EAGAIN && errno != EINTR)
            return tool_fail(TOOL_NO_BROKER, admin->address.sun_path, "%s", strerror(errno));
        if (!wait_for(admin, POLLOUT))
            return fail_timeout(admin, "a request");
    }
}

/* Receive the answer to the last request, which must be of this type. */
static int receive_frame(struct admin *admin, uint16_t type, const char *doing, const void *ret_message)
{
    for (;;) {
        if (!wait_for(admin, POLLIN))
            return fail_timeout(admin, doing);
        ssize_t size = recv(admin->fd, admin->packet, sizeof(admin->packet), MSG_DONTWAIT | MSG_TRUNC);
        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (size == 0 || (size < 0 && errno == ECONNRESET))
            return fail_ended(admin, NULL);
        if (size < 0)
            return tool_fail(TOOL_NO_BROKER, admin->address.sun_path, "%s", strerror(errno));
        struct ipc_frame frame;
        if ((size_t)size > sizeof(admin->packet) ||
            ipc_frame_unpack(&frame, &admin->arena, admin->packet, (size_t)size) < 0)
            return fail_protocol(admin);
        if (frame.type == IPC__CONTROL__TYPE__ENDED)
            return fail_ended(admin, ((const Ipc__Control__Ended *)frame.message)->text);
        if (frame.type == IPC__CONTROL__TYPE__FAILURE) {
            const Ipc__Control__Failure *failure = (const Ipc__Control__Failure *)frame.message;
            bool refused = type == IPC__CONTROL__TYPE__WELCOME && failure->code != -EDQUOT;
            return tool_fail(refused ? TOOL_NO_BROKER : TOOL_FAILED, doing, "%s",
                             *failure->text ? failure->text : strerror(-failure->code));
        }
        if (frame.type != type || frame.id != admin->id)
            continue; /* a notice, or an answer to nobody */
        *(const ProtobufCMessage **)ret_message = frame.message;
        return TOOL_OK;
    }
}

int admin_open(struct admin **ret, const struct tool *tool)
{
    _cleanup_admin_ struct admin *admin = tool_alloc(NULL, sizeof(*admin));
    memset(admin, 0, sizeof(*admin));
    admin->fd = -1;
    admin_renew(admin, tool);
    admin->address.sun_family = AF_UNIX;
    if (address_resolve(admin->address.sun_path, sizeof(admin->address.sun_path), tool->address) < 0)
        return tool_fail(TOOL_USAGE, "IPC_ADDRESS", "the path of a socket has at most %u bytes",
                         IPC_MAX_ADDRESS_SIZE);
    int status = do_connect(admin);
    if (status != TOOL_OK)
        return status;
    Ipc__Control__Hello hello = IPC__CONTROL__HELLO__INIT;
    hello.version_min = hello.version_max = IPC_CONTROL_VERSION;
    hello.fingerprint = IPC_LAYOUT_FINGERPRINT;
    hello.name = (char *)"ipcctl";
    hello.admin = true;
    const Ipc__Control__Welcome *welcome;
    status = send_frame(admin, IPC__CONTROL__TYPE__HELLO, &hello.base);
    if (status == TOOL_OK)
        status = receive_frame(admin, IPC__CONTROL__TYPE__WELCOME, "the greeting", &welcome);
    if (status != TOOL_OK)
        return status;
    *ret = admin;
    admin = NULL;
    return TOOL_OK;
}

struct admin *admin_close(struct admin *admin)
{
    if (!admin)
        return NULL;
    if (admin->fd >= 0) {
        Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;
        int size = ipc_frame_pack(admin->packet, sizeof(admin->packet), IPC__CONTROL__TYPE__GOODBYE,
                                  ++admin->id, &done.base);
        if (size > 0) /* its answer is of no interest */
            (void)!send(admin->fd, admin->packet, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        close(admin->fd);
    }
    free(admin);
    return NULL;
}

int admin_request(struct admin *admin, uint16_t type, const ProtobufCMessage *message, uint16_t reply,
                  const char *doing, const void *ret_message)
{
    int status = send_frame(admin, type, message);
    return status == TOOL_OK ? receive_frame(admin, reply, doing, ret_message) : status;
}

void admin_renew(struct admin *admin, const struct tool *tool)
{
    int64_t timeout = tool_timeout(tool);
    admin->deadline_ns = timeout == IPC_FOREVER ? 0 : tool_now_ns() + (uint64_t)timeout;
}

int admin_status(struct admin *admin, const Ipc__Control__StatusReply **ret)
{
    Ipc__Control__Status request = IPC__CONTROL__STATUS__INIT;
    return admin_request(admin, IPC__CONTROL__TYPE__STATUS, &request.base, IPC__CONTROL__TYPE__STATUS_REPLY,
                         "status", ret);
}

/* A copy that outlives the arena, with an empty name and an empty peer where there is none. */
static Ipc__Control__Item *copy_item(const Ipc__Control__Item *from)
{
    unsigned char buffer[IPC_MAX_FRAME_SIZE];
    size_t size = protobuf_c_message_get_packed_size(&from->base);
    if (size > sizeof(buffer))
        return NULL;
    protobuf_c_message_pack(&from->base, buffer);
    Ipc__Control__Item *item = ipc__control__item__unpack(NULL, size, buffer);
    if (item && !item->peer) {
        item->peer = tool_alloc(NULL, sizeof(*item->peer));
        ipc__control__peer__init(item->peer);
    }
    return item;
}

void admin_list_done(struct admin_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        ipc__control__item__free_unpacked(list->items[i], NULL);
    free(list->items);
    *list = (struct admin_list)ADMIN_LIST_INIT;
}

static int list_rows(struct admin *admin, struct admin_list *ret, Ipc__Control__ListKind kind,
                     const char *pattern, uint64_t after)
{
    _cleanup_admin_list_ struct admin_list list = ADMIN_LIST_INIT;
    Ipc__Control__List request = IPC__CONTROL__LIST__INIT;
    request.kind = kind;
    request.after = after;
    request.pattern = (char *)(pattern ? pattern : "");
    for (;;) {
        const Ipc__Control__Page *page = NULL;
        int status = admin_request(admin, IPC__CONTROL__TYPE__LIST, &request.base, IPC__CONTROL__TYPE__PAGE,
                                   "the listing", &page);
        if (status != TOOL_OK || !page)
            return status;
        if (page->n_items > 0)
            list.items = tool_alloc(list.items, (list.count + page->n_items) * sizeof(*list.items));
        for (size_t i = 0; i < page->n_items; i++) {
            list.items[list.count] = copy_item(page->items[i]);
            if (!list.items[list.count])
                return fail_protocol(admin);
            list.count++;
        }
        list.all = page->all;
        if (page->next == 0)
            break;
        if (page->next <= request.after)
            return fail_protocol(admin);
        request.after = page->next;
    }
    *ret = list;
    list = (struct admin_list)ADMIN_LIST_INIT;
    return TOOL_OK;
}

int admin_list(struct admin *admin, struct admin_list *ret, Ipc__Control__ListKind kind, const char *pattern)
{
    return list_rows(admin, ret, kind, pattern, 0);
}

int admin_list_after(struct admin *admin, struct admin_list *ret, Ipc__Control__ListKind kind, uint64_t after)
{
    return list_rows(admin, ret, kind, NULL, after);
}

const char *admin_slow_word(Ipc__Control__Slow slow)
{
    static const char *const words[] = {"drop-oldest", "block", "disconnect"};
    return (unsigned)slow < 3 ? words[slow] : "?";
}

const char *admin_start_word(Ipc__Control__Start start)
{
    static const char *const words[] = {"next", "last", "oldest"};
    return (unsigned)start < 3 ? words[start] : "?";
}
