/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/recover.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/access.h"
#include "broker/core/control/bell.h"
#include "broker/core/control/lane.h"
#include "broker/core/control/loop.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/port.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/service.h"
#include "broker/core/control/session.h"
#include "broker/core/control/shared.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"
#include "proto/store.h"

#define WORK_PER_ROUND 64u
#define PARTS          IPC_MAX_FRAME_FDS
#define POLLS          256u /* sockets in one look */
#define DEATHS_MAX     3u   /* of ipcd, before a request is held to be the reason: one or two may be chance */

/* One name of the index. What is taken out of `fds` belongs to a record; the rest belongs to nothing. */
struct kept {
    struct hash_node node;
    char name[IPC_KEPT_NAME_SIZE];
    int fds[PARTS];
};

struct leftovers {
    struct kept *kept;
    size_t count, next;
    struct hash by_name;
};

static uint64_t key_of(enum keep_kind kind, uint64_t id)
{
    return (uint64_t)kind << 56 | id;
}

static uint64_t key_of_name(const char *name)
{
    return key_of((enum keep_kind)(unsigned char)name[0], strtoull(name + 1, NULL, 10));
}

static struct kept *find(const struct leftovers *left, enum keep_kind kind, uint64_t id)
{
    struct hash_node *node = hash_find(&left->by_name, key_of(kind, id));

    return node ? list_entry(node, struct kept, node) : NULL;
}

static int take_part(struct kept *kept, unsigned part)
{
    return kept ? fd_steal(&kept->fds[part]) : -1;
}

static int take(const struct leftovers *left, enum keep_kind kind, uint64_t id)
{
    return take_part(find(left, kind, id), 0);
}

static int read_index(struct leftovers *left, int fd)
{
    struct stat st;
    _cleanup_(freep) struct ipc_kept *entries = NULL;
    size_t n;

    if (fstat(fd, &st) < 0)
        return -errno;
    n = (size_t)st.st_size / sizeof(*entries);
    entries = malloc(n * sizeof(*entries) + 1);
    left->kept = calloc(n + 1, sizeof(*left->kept));
    if (!entries || !left->kept || hash_init(&left->by_name) < 0)
        return -ENOMEM;
    if (pread(fd, entries, n * sizeof(*entries), 0) != (ssize_t)(n * sizeof(*entries)))
        return -EIO;
    for (size_t i = 0; i < n; i++) {
        struct kept *kept = &left->kept[left->count];

        if (entries[i].part >= PARTS)
            continue;
        if (entries[i].part == 0) {
            memcpy(kept->name, entries[i].name, sizeof(kept->name) - 1);
            for (unsigned part = 0; part < PARTS; part++)
                kept->fds[part] = -1;
            hash_add(&left->by_name, &kept->node, key_of_name(kept->name));
            left->count++;
        } else {
            kept--;
        }
        if (left->count > 0)
            kept->fds[entries[i].part] = entries[i].fd;
    }
    return 0;
}

static struct leftovers *leftovers_free(struct leftovers *left)
{
    if (left) {
        hash_done(&left->by_name);
        free(left->kept);
        free(left);
    }
    return NULL;
}

/* Sessions first: everything else hangs on them. */
static int load_session(struct broker *broker, const struct leftovers *left, void *data)
{
    struct session_row *row = data;
    struct kept *kept = find(left, KEEP_SESSION, row->row.id);
    unsigned part = 0;
    int fd = take_part(kept, part++);
    int pidfd = row->watched ? take_part(kept, part++) : -1;
    int board_fd = row->admin ? -1 : take_part(kept, part);
    struct session *session = session_restore(broker, row, fd, pidfd, board_fd);

    if (session)
        list_append(&broker->unwatched, &session->unwatched);
    return session ? 0 : -ENOMEM;
}

static int load_lane(struct broker *broker, const struct leftovers *left, void *data)
{
    struct lane_row *row = data;

    if (row->joined)
        return lane_restore(broker, row, take(left, KEEP_LANE, row->row.id)) ? 0 : -ENOMEM;
    state_drop(&broker->state, STATE_LANES, row); /* not answered yet: it is made anew */
    return 0;
}

static int load_subscription(struct broker *broker, const struct leftovers *left, void *data)
{
    const struct charge charge = {.of = {[LIMIT_SUBSCRIPTIONS] = 1}};
    struct subscription_row *row = data;
    struct session *session = registry_session(broker, row->session);
    struct subscription *subscription;

    (void)left;
    if (!row->joined || !session) { /* the same */
        state_drop(&broker->state, STATE_SUBSCRIPTIONS, row);
        return 0;
    }
    subscription = registry_subscription_new(broker, session, row->row.id, row->kind, row->pattern, row);
    if (!subscription)
        return -ENOMEM;
    subscription->request = row->request;
    subscription->start = row->start;
    subscription->slow = row->slow;
    subscription->self = row->self;
    subscription->tap = row->tap;
    subscription->bell = row->bell;
    if (row->missed) {
        pairing_missed(broker, subscription);
        loop_retry_soon(broker);
    }
    quota_charge(&broker->quota, session->user, &charge);
    return 0;
}

static int load_bell(struct broker *broker, const struct leftovers *left, void *data)
{
    struct bell_row *row = data;
    struct subscription *subscription = registry_subscription(broker, row->subscription);
    int ring_fd, read_fd;

    if (!subscription) {
        state_drop(&broker->state, STATE_BELLS, row);
        return 0;
    }
    ring_fd = take(left, KEEP_BELL_RING, row->row.id);
    read_fd = take(left, KEEP_BELL_READ, row->row.id);
    return bell_restore(broker, subscription, row, ring_fd, read_fd) ? 0 : -ENOMEM;
}

static int load_cells(struct broker *broker, const struct leftovers *left, void *data)
{
    struct cells_row *row = data;

    return cells_restore(broker, row, take(left, KEEP_CELLS, row->row.id)) ? 0 : -ENOMEM;
}

static int load_pairing(struct broker *broker, const struct leftovers *left, void *data)
{
    (void)left;
    return pairing_restore(broker, data);
}

static int load_shared(struct broker *broker, const struct leftovers *left, void *data)
{
    struct shared_row *row = data;

    return registry_shared_restore(broker, row, take(left, KEEP_SHARED, row->row.id));
}

static int load_attachment(struct broker *broker, const struct leftovers *left, void *data)
{
    (void)left;
    return registry_attachment_restore(broker, data);
}

static int load_queue(struct broker *broker, const struct leftovers *left, void *data)
{
    struct queue_row *row = data;

    return registry_queue_restore(broker, row, take(left, KEEP_QUEUE, row->row.id));
}

static int load_port(struct broker *broker, const struct leftovers *left, void *data)
{
    struct port_row *row = data;
    struct kept *kept = find(left, KEEP_PORT, row->row.id);
    const int fds[3] = {take_part(kept, 0), take_part(kept, 1), take_part(kept, 2)};

    return registry_port_restore(broker, row, fds, row->bell ? take(left, KEEP_PORT_RING, row->row.id) : -1,
                                 take(left, KEEP_GIVE_RING, row->row.id),
                                 row->bell ? take(left, KEEP_GIVE_BELL, row->row.id) : -1);
}

static int by_number(const void *a, const void *b)
{
    uint64_t left = (*(struct state_row *const *)a)->id, right = (*(struct state_row *const *)b)->id;

    return left < right ? -1 : left > right;
}

/* All rows of a table in the order of their numbers, which is the registry's. */
static int load(struct broker *broker, const struct leftovers *left, enum state_table table,
                int (*load_one)(struct broker *broker, const struct leftovers *left, void *row))
{
    size_t most = broker->state.header->rows[table], n = 0;
    _cleanup_(freep) void **rows = malloc((most + 1) * sizeof(*rows));
    int result = rows ? 0 : -ENOMEM;

    for (uint32_t at = 0; rows && (rows[n] = state_next(&broker->state, table, &at));)
        n++;
    if (rows)
        qsort(rows, n, sizeof(*rows), by_number);
    for (size_t i = 0; i < n && result == 0; i++)
        result = load_one(broker, left, rows[i]);
    return result;
}

static int load_all(struct broker *broker, const struct leftovers *left)
{
    static const struct {
        enum state_table table;
        int (*load_one)(struct broker *broker, const struct leftovers *left, void *row);
    } steps[] = {
        {STATE_SESSIONS, load_session},
        {STATE_SHARED, load_shared},
        {STATE_ATTACHMENTS, load_attachment},
        {STATE_QUEUES, load_queue},
        {STATE_PORTS, load_port},
        {STATE_LANES, load_lane},
        {STATE_SUBSCRIPTIONS, load_subscription},
        {STATE_BELLS, load_bell},
        {STATE_CELLS, load_cells},
        {STATE_PAIRINGS, load_pairing},
    };
    int result = 0;

    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps) && result == 0; i++)
        result = load(broker, left, steps[i].table, steps[i].load_one);
    return result;
}

/* A store may lose something: what stands in the registry without its descriptors is over. */
static bool was_lost(const struct session *session)
{
#ifdef IPC_PLANT_HALF_SESSION
    return false;
#endif
    bool lost = session->fd < 0 || (!session->admin && session->board_fd < 0);

    list_for_each(node, &session->lanes) lost = lost || list_entry(node, struct lane, by_session)->fd < 0;
    list_for_each(node, &session->cells) lost = lost || list_entry(node, struct cells, link)->fd < 0;
    list_for_each(node, &session->subscriptions)
    {
        list_for_each(bells, &list_entry(node, struct subscription, by_session)->bells)
        {
            lost = lost || list_entry(bells, struct bell, link)->ring_fd < 0;
        }
    }
    list_for_each(node, &session->ports)
    {
        const struct port *port = list_entry(node, struct port, by_session);

        lost = lost || port->core_fd < 0 || port->session_fd < 0 || port->bell_fd < 0 ||
               (port->row->bell && port->ring_fd < 0);
    }
    return lost;
}

/* Nobody can be shown it any more. If its writer is there, its session ends below. */
static void end_lost_lane(struct lane *lane)
{
    list_for_each(node, &lane->pairings)
    {
        struct pairing *pairing = list_entry(node, struct pairing, by_lane);

        if (pairing->reader_side.known)
            continue;
        side_gone(&pairing->reader_side);
        pairing_store(pairing);
    }
    if (lane->session)
        return;
    lane->retain = false;
    atomic_store_explicit(&lane->row->retain, 0, memory_order_release);
    lane_set_state(lane, LANE_DRAINING);
}

/* Whatever was being done when the earlier ipcd was killed is done to its end; each step may have been made already. */
static void finish_what_was_begun(struct broker *broker)
{
    list_for_each_safe(ending, &broker->subscriptions)
    {
        struct subscription *subscription = list_entry(ending, struct subscription, link);

        if (subscription->row->ending)
            pairing_end_subscription(broker, subscription, subscription->row->ending);
    }
    list_for_each(all, &broker->lanes)
    {
        struct lane *lane = list_entry(all, struct lane, link);

        if (lane->fd < 0)
            end_lost_lane(lane);
    }
    list_for_each_safe(node, &broker->pairings)
        pairing_resume(broker, list_entry(node, struct pairing, link));
    list_for_each_safe(lanes, &broker->lanes) lane_resume(broker, list_entry(lanes, struct lane, link));
    list_for_each(calls, &broker->lanes) service_seek(broker, list_entry(calls, struct lane, link));
    list_for_each_safe(ports, &broker->ports)
        registry_port_resume(broker, list_entry(ports, struct port, link));
    list_for_each_safe(left, &broker->orphans) cells_release(broker, list_entry(left, struct cells, link));
    registry_shared_resume(broker);
    list_for_each_safe(sessions, &broker->sessions)
    {
        struct session *session = list_entry(sessions, struct session, link);

        if (session->row->ending)
            session_end(broker, session, session->row->ending - 1u, NULL);
        else if (was_lost(session))
            session_end(broker, session, IPC_REASON_LIMIT, "its descriptors were not kept");
    }
    session_bury(broker);
}

/* Who waits for an answer goes first. */
static void find_who_asks(struct broker *broker)
{
    struct pollfd polls[POLLS];
    struct list *next = broker->unwatched.next;

    while (next != &broker->unwatched) {
        struct list *first = next;
        unsigned n = 0;

        for (; next != &broker->unwatched && n < POLLS; next = next->next)
            polls[n++] =
                (struct pollfd){.fd = list_entry(next, struct session, unwatched)->fd, .events = POLLIN};
        bool failed = poll(polls, n, 0) < 0;
        for (unsigned i = 0; i < n; i++) {
            struct list *node = first;

            first = node->next;
            if (!failed && !polls[i].revents)
                continue;
            list_entry(node, struct session, unwatched)->asks = true;
            list_remove(node);
            list_append(broker->unwatched.next, node);
        }
    }
}

static struct leftovers *leftovers_new(int index_fd)
{
    struct leftovers *left = calloc(1, sizeof(*left));

    if (left && read_index(left, index_fd) < 0)
        return leftovers_free(left);
    return left;
}

static int begin_anew(struct broker *broker)
{
    int result = state_new(&broker->state);

    if (result < 0)
        return result;
    events_go_on(&broker->events, &broker->state.header->events);
    broker->state.header->started_ns = broker->started_ns;
    memcpy(broker->state.header->instance, broker->instance, sizeof(broker->instance));
    return 0;
}

static struct kept *named(const struct leftovers *left, const char *name)
{
    for (size_t i = 0; i < left->count; i++)
        if (strcmp(left->kept[i].name, name) == 0)
            return &left->kept[i];
    return NULL;
}

/* The request that the ipcd before worked on when it ended: by that, or by chance. */
static void count_death(struct broker *broker)
{
    struct session *session = registry_session(broker, broker->state.header->working);

    broker->state.header->working = 0;
    if (session && session->row->deaths < DEATHS_MAX)
        session->row->deaths++;
}

static int go_on(struct broker *broker)
{
    struct kept *registry = named(broker->leftovers, "registry"),
                *config = named(broker->leftovers, "config");
    int result;

    if (config && config->fds[0] == broker->options.config_fd)
        (void)take_part(config, 0);
    else
        keep_config(broker);
    if (!registry)
        return begin_anew(broker);
    result = state_open(&broker->state, registry->fds[0]);
    if (result < 0 && result != -EBADMSG && result != -EPROTO)
        return result; /* it is there, but something is lacking: another try may have it */
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL,
                  "the state that an earlier ipcd left is not readable (%s): its sessions are ended",
                  strerror(-result));
        return begin_anew(broker);
    }
    (void)take_part(registry, 0);
    broker->started_ns = broker->state.header->started_ns;
    memcpy(broker->instance, broker->state.header->instance, sizeof(broker->instance));
    broker->requests = broker->state.header->requests;
    broker->ended_badly = broker->state.header->ended_badly;
    events_go_on(&broker->events, &broker->state.header->events);
    result = load_all(broker, broker->leftovers);
    if (result == 0) {
        count_death(broker);
        finish_what_was_begun(broker);
        find_who_asks(broker);
    }
    for (struct list *node = broker->queues.next; result == 0 && node != &broker->queues; node = node->next)
        result = registry_queue_ready(broker, list_entry(node, struct queue, link));
    return result;
}

static void say_started(struct broker *broker)
{
    const struct peer self = {.uid = geteuid(), .gid = getegid(), .pid = (uint32_t)getpid(), .name = "ipcd"};
    char text[64];

    (void)snprintf(text, sizeof(text), "ipcd %s, start %" PRIu32, IPCD_VERSION, broker->state.header->starts);
    events_add(&broker->events, time_monotonic_ns(), EVENT_STARTED, &self, text);
}

int recover(struct broker *broker)
{
    const char *told = getenv("IPCD_STORE");
    int index_fd = told ? atoi(told) : -1, result;
    bool fresh = index_fd <= 2;

    if (fresh) {
        result = begin_anew(broker);
    } else {
        broker->leftovers = leftovers_new(index_fd);
        fd_close(index_fd);
        result = broker->leftovers ? go_on(broker) : -ENOMEM;
    }
    if (result < 0) {
        log_write(LOG_SYSTEM, NULL, "the registry cannot be set up: %s", strerror(-result));
        return result;
    }
    say_started(broker);
    registry_queue_configure(broker);
    if (broker->state.header->starts > 1) {
        size_t n = 0;

        list_for_each(node, &broker->sessions) n++;
        access_revoke(broker);
        log_write(LOG_STARTED, NULL, "going on with %zu sessions of the ipcd before (start %u)", n,
                  broker->state.header->starts);
    } else if (broker->keep.stores) {
        keep_all(broker);
    }
    return 0;
}

static void watch(struct broker *broker, struct session *session)
{
    int result = session_watch(broker, session);

    if (result < 0 && result != -EEXIST) {
        session->watched = false;
        loop_remove(broker, session->fd);
        list_append(&broker->unwatched, &session->unwatched);
        broker->watch_later = true;
        loop_retry_soon(broker);
        return;
    }
    session_update_events(broker, session);
    /* The request that an earlier ipcd did not finish comes before any notice: the client knows what it made from the
     * answer alone. */
    if (session->row->deaths >= DEATHS_MAX)
        session_end(broker, session, IPC_REASON_POISON, "the broker died each time it worked on its request");
    else if (session->asks)
        session_on_socket(broker, session, EPOLLIN);
    if (session->state == SESSION_ENDED)
        return;
    session->resumed = session->resumed && session->busy;
#ifndef IPC_PLANT_NUDGE_FORGOTTEN
    if (session->row->owed)
        notice_nudge(broker, session);
#endif
    notice_mark(broker, session);
}

/* Of a request that was not finished, or of a record whose end was. */
static void drop(struct broker *broker, struct kept *kept)
{
    bool some = false;

    for (unsigned part = 0; part < PARTS; part++) {
        some = some || kept->fds[part] >= 0;
        if (kept->name[0] == KEEP_SESSION && part == 0 && kept->fds[0] >= 0)
            (void)shutdown(kept->fds[0], SHUT_RDWR);
        kept->fds[part] = fd_close(kept->fds[part]);
    }
    if (some && strcmp(kept->name, "listener") != 0 && strcmp(kept->name, "config") != 0)
        keep_say(broker, "FDSTOREREMOVE=1\nFDNAME=%s", kept->name);
}

void recover_some(struct broker *broker)
{
    struct leftovers *left = broker->leftovers;

#ifdef IPC_PLANT_LEFT_OPEN
    broker->leftovers = left = leftovers_free(left);
#endif
    for (unsigned i = 0; i < WORK_PER_ROUND && !broker->watch_later && !list_empty(&broker->unwatched); i++) {
        struct list *node = broker->unwatched.next;

        list_remove(node);
        watch(broker, list_entry(node, struct session, unwatched));
    }
    for (unsigned i = 0; left && i < WORK_PER_ROUND && left->next < left->count; i++)
        drop(broker, &left->kept[left->next++]);
    if (left && left->next == left->count)
        broker->leftovers = leftovers_free(left);
}

void recover_done(struct broker *broker)
{
    broker->leftovers = leftovers_free(broker->leftovers);
}

bool recover_check(int fd)
{
    uint32_t version;
    int result = state_check(fd, &version);

    if (result == 0)
        return true;
    if (result == -EPROTO)
        fprintf(stderr,
                "ipcd: the running broker's state is of version %" PRIu32
                " or of another layout, this ipcd %s reads version %u: stop the broker to start this one\n",
                version, IPCD_VERSION, STATE_VERSION);
    else
        fprintf(stderr, "ipcd: --check-state: descriptor %d is not the state of a broker\n", fd);
    return false;
}
