/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/shared.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

const struct charge attachment_charge = {.of = {[LIMIT_ATTACHMENTS] = 1}};

struct charge registry_shared_charge(uint32_t size)
{
    return (struct charge){
        .of = {[LIMIT_DESCRIPTORS] = 1, [LIMIT_SEGMENT_BYTES] = segment_size(IPC_SEGMENT_SHARED, size)}};
}

struct shared *registry_shared_named(const struct broker *broker, const char *name)
{
    uint64_t key = hash_string(broker->secret, name, strlen(name));

    for (struct hash_node *node = hash_find(&broker->shared_by_name, key); node;
         node = hash_find_next(node)) {
        struct shared *shared = list_entry(node, struct shared, by_name);

        if (strcmp(shared->row->name, name) == 0)
            return shared;
    }
    return NULL;
}

const char *registry_shared_denied(const struct session *session, const struct shared *shared)
{
    const struct shared_row *row = shared->row;
    uint32_t shift = session->peer.uid == row->uid ? 6 : session->peer.gid == row->gid ? 3 : 0;

    return (row->mode >> shift & 6) == 6 ? NULL : "its mode gives this user no access";
}

struct ipc_shared *registry_shared_page(struct shared *shared)
{
    void *page;

    if (shared->page || shared->fd < 0)
        return shared->page;
    page = mmap(NULL, IPC_LAYOUT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared->fd, 0);
    if (page != MAP_FAILED)
        shared->page = page;
    return shared->page;
}

static struct shared *link_new(struct broker *broker, struct shared_row *row, uint64_t id, int fd)
{
    struct shared *shared = calloc(1, sizeof(*shared));

    if (!shared)
        return NULL;
    shared->user = quota_user(&broker->quota, row->uid);
    if (!shared->user) {
        free(shared);
        return NULL;
    }
    shared->id = id;
    shared->row = row;
    shared->fd = fd;
    list_init(&shared->attachments);
    list_append(&broker->shared, &shared->link);
    hash_add(&broker->shared_by_name, &shared->by_name,
             hash_string(broker->secret, row->name, strlen(row->name)));
    return shared;
}

int registry_shared_new(struct broker *broker, struct session *session, const struct shared_wish *wish,
                        int *fd, struct shared **ret)
{
    struct shared_row *row;
    struct shared *shared;
    uint64_t id = state_number(&broker->state, NUMBER_SHARED);
    int result = segment_seal(*fd, IPC_SEGMENT_SHARED, wish->size, id);

    if (result < 0)
        return result;
    row = state_take(&broker->state, STATE_SHARED);
    if (!row)
        return -ENOMEM;
    row->uid = session->peer.uid;
    row->gid = session->peer.gid;
    row->size = wish->size;
    row->permits = wish->permits;
    row->mode = wish->mode;
    row->keep = wish->keep;
    memcpy(row->name, wish->name, strlen(wish->name) + 1);
    shared = link_new(broker, row, id, *fd);
    if (!shared) {
        state_drop(&broker->state, STATE_SHARED, row);
        return -ENOMEM;
    }
    *fd = -1;
    keep_store(broker, KEEP_SHARED, id, &shared->fd, 1);
    state_commit(row, id);
    *ret = shared;
    return 0;
}

void registry_shared_free(struct broker *broker, struct shared *shared)
{
    struct charge charge = registry_shared_charge(shared->row->size);

    list_for_each_safe(node, &shared->attachments)
    {
        struct attachment *attachment = list_entry(node, struct attachment, by_shared);

        state_drop(&broker->state, STATE_ATTACHMENTS, attachment->row);
        list_remove(&attachment->by_session);
        free(attachment);
    }
    if (shared->page)
        munmap(shared->page, IPC_LAYOUT_PAGE);
    hash_remove(&broker->shared_by_name, &shared->by_name);
    list_remove(&shared->link);
    state_drop(&broker->state, STATE_SHARED, shared->row);
    keep_remove(broker, KEEP_SHARED, shared->id);
    segment_free(broker, shared->user, shared->fd, charge.of[LIMIT_SEGMENT_BYTES], &charge);
    free(shared);
}

static void release(struct broker *broker, struct shared *shared)
{
    if (shared->n_attached == 0 && !shared->row->keep)
        registry_shared_free(broker, shared);
}

void registry_shared_unkeep(struct broker *broker, struct shared *shared)
{
    shared->row->keep = 0;
    release(broker, shared);
}

static struct attachment *join(struct shared *shared, struct session *session, struct attachment_row *row,
                               uint64_t id)
{
    struct attachment *attachment = calloc(1, sizeof(*attachment));

    if (!attachment)
        return NULL;
    *attachment = (struct attachment){.id = id, .row = row, .shared = shared, .session = session};
    list_append(&shared->attachments, &attachment->by_shared);
    list_init(&attachment->by_session);
    if (session)
        list_append(&session->attachments, &attachment->by_session);
    shared->n_attached++;
    return attachment;
}

struct attachment *registry_attach(struct broker *broker, struct session *session, struct shared *shared,
                                   uint64_t request, bool created)
{
    struct attachment_row *row = state_take(&broker->state, STATE_ATTACHMENTS);
    uint64_t id = state_number(&broker->state, NUMBER_ATTACHMENT);
    struct attachment *attachment = row ? join(shared, session, row, id) : NULL;

    if (!attachment) {
        state_drop(&broker->state, STATE_ATTACHMENTS, row);
        return NULL;
    }
    row->shared = shared->id;
    row->session = session->peer.session;
    row->request = request;
    row->created = created;
    state_commit(row, id);
    return attachment;
}

struct attachment *registry_attachment(const struct session *session, uint64_t id)
{
    list_for_each(node, &session->attachments)
    {
        struct attachment *attachment = list_entry(node, struct attachment, by_session);

        if (attachment->id == id)
            return attachment;
    }
    return NULL;
}

/* Is the session attached by another one, too? Its permits are the session's. */
static bool attached_otherwise(const struct attachment *gone)
{
    list_for_each(node, &gone->shared->attachments)
    {
        const struct attachment *attachment = list_entry(node, struct attachment, by_shared);

        if (attachment != gone && attachment->row->session == gone->row->session)
            return true;
    }
    return false;
}

/* What a session held comes back. Whoever waits is woken in any case: the dead may have been about to. */
static void take_back(struct shared *shared, uint64_t session)
{
    struct ipc_shared *page = registry_shared_page(shared);
    unsigned returned = 0;

    if (!page)
        return;
#ifndef IPC_PLANT_PERMITS_KEPT
    for (unsigned i = 0; i < shared->row->permits; i++) {
        uint64_t owner = session;

        returned += atomic_compare_exchange_strong(&page->owners[i], &owner, 0);
    }
#endif
    for (unsigned i = 0; i < IPC_SHARED_WAITERS; i++) {
        uint64_t waiter = session;

        (void)atomic_compare_exchange_strong(&page->waiters[i], &waiter, 0);
    }
    atomic_fetch_add(&page->turn, 2);
    syscall(SYS_futex, &page->turn, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (returned) {
        const struct log_about about = {.session = session};

        log_write(LOG_LANE, &about, "%u permits of shared segment %s returned", returned, shared->row->name);
    }
}

void registry_detach(struct broker *broker, struct attachment *attachment)
{
    struct shared *shared = attachment->shared;

    if (!attached_otherwise(attachment))
        take_back(shared, attachment->row->session);
    state_drop(&broker->state, STATE_ATTACHMENTS, attachment->row);
    if (attachment->session)
        quota_return(&broker->quota, attachment->session->user, &attachment_charge);
    list_remove(&attachment->by_shared);
    list_remove(&attachment->by_session);
    free(attachment);
    shared->n_attached--;
    release(broker, shared);
}

int registry_shared_restore(struct broker *broker, struct shared_row *row, int fd)
{
    const struct charge charge = registry_shared_charge(row->size);
    struct shared *shared = link_new(broker, row, row->row.id, fd);

    if (!shared) {
        fd_close(fd);
        return -ENOMEM;
    }
    quota_charge(&broker->quota, shared->user, &charge);
    return 0;
}

int registry_attachment_restore(struct broker *broker, struct attachment_row *row)
{
    struct session *session = registry_session(broker, row->session);

    list_for_each(node, &broker->shared)
    {
        struct shared *shared = list_entry(node, struct shared, link);

        if (shared->id != row->shared)
            continue;
        if (!join(shared, session, row, row->row.id))
            return -ENOMEM;
        if (session)
            quota_charge(&broker->quota, session->user, &attachment_charge);
        return 0;
    }
    state_drop(&broker->state, STATE_ATTACHMENTS, row);
    return 0;
}

void registry_shared_resume(struct broker *broker)
{
    list_for_each_safe(node, &broker->shared)
    {
        struct shared *shared = list_entry(node, struct shared, link);

        if (shared->fd < 0) {
            const struct log_about about = {.uid = shared->row->uid};

            log_write(LOG_SYSTEM, &about, "the memory of shared segment %s was not kept: it is gone",
                      shared->row->name);
            registry_shared_free(broker, shared);
            continue;
        }
        shared->n_attached++; /* so that it stays until all are looked at */
        list_for_each_safe(at, &shared->attachments)
        {
            struct attachment *attachment = list_entry(at, struct attachment, by_shared);

            if (!attachment->session)
                registry_detach(broker, attachment);
        }
        shared->n_attached--;
        release(broker, shared);
    }
}
