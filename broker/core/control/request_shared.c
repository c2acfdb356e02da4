/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared segments: opening and closing.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/control/access.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/control/session.h"
#include "broker/core/control/shared.h"
#include "broker/core/control/worker.h"
#include "broker/core/util/fd.h"
#include "proto/name.h"

static void answer_opened(struct broker *broker, struct session *session, const struct attachment *attachment)
{
    Ipc__Control__SegmentOpened opened = IPC__CONTROL__SEGMENT_OPENED__INIT;
    const struct shared_row *row = attachment->shared->row;

    opened.attachment = attachment->id;
    opened.segment = attachment->shared->id;
    opened.size = row->size;
    opened.permits = row->permits;
    opened.created = attachment->row->created;
    session_reply(broker, session, IPC__CONTROL__TYPE__SEGMENT_OPENED, attachment->row->request, &opened.base,
                  attachment->shared->fd);
}

static void attach(struct broker *broker, struct session *session, struct shared *shared, uint64_t id,
                   bool created)
{
    struct refusal refusal;
    struct attachment *attachment = NULL;

    if (quota_take(&broker->quota, session->user, &attachment_charge, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
    } else {
        attachment = registry_attach(broker, session, shared, id, created);
        if (!attachment) {
            quota_return(&broker->quota, session->user, &attachment_charge);
            session_fail(broker, session, id, -ENOMEM, "the broker is out of memory");
        }
    }
    if (attachment)
        answer_opened(broker, session, attachment);
    else if (created)
        registry_shared_unkeep(broker, shared);
}

static void finish(struct broker *broker, struct session *session, const struct job *job, int *fd, int result)
{
    const struct shared_wish wish = {.name = job->name,
                                     .size = job->ring_size,
                                     .permits = job->permits,
                                     .mode = job->mode,
                                     .keep = job->retain};
    const struct charge charge = registry_shared_charge(job->ring_size);
    struct shared *shared = NULL;

    if (registry_shared_named(broker, job->name)) /* somebody was quicker */
        result = -EEXIST;
    if (result == 0)
        result = registry_shared_new(broker, session, &wish, fd, &shared);
    if (result < 0) {
        quota_return(&broker->quota, session->user, &charge);
        session_fail(broker, session, job->request, result,
                     result == -EEXIST ? "shared segment %.200s was made by somebody else meanwhile%s"
                                       : "the broker could not make shared segment %.200s: %s",
                     job->name, result == -EEXIST ? ": open it again" : strerror(-result));
        return;
    }
    attach(broker, session, shared, job->request, true);
}

static void open_finish(struct broker *broker, struct job *job)
{
    struct session *session = registry_session(broker, job->session);

    if (session) {
        finish(broker, session, job, &job->fd, job->result);
        fd_close(job->fd);
        session->busy = false;
        session_answered(broker, session);
    } else {
        const struct charge charge = registry_shared_charge(job->ring_size);

        segment_free(broker, job->user, job->fd, job->size, &charge);
    }
    free(job);
}

static void create(struct broker *broker, struct session *session, uint64_t id,
                   const Ipc__Control__SegmentOpen *open)
{
    struct job job = {.finish = open_finish,
                      .session = session->peer.session,
                      .request = id,
                      .user = session->user,
                      .ring_size = (uint32_t)open->size,
                      .permits = open->permits ? open->permits : 1,
                      .mode = open->mode ? open->mode : 0600,
                      .retain = open->keep};
    struct charge charge = registry_shared_charge(job.ring_size);
    _cleanup_(fd_closep) int fd = -1;
    struct refusal refusal;

    if (open->size == 0 || open->size > IPC_MAX_SHARED_SIZE || open->permits > IPC_MAX_PERMITS ||
        (open->mode & ~0666u)) {
        session_fail(
            broker, session, id, -EINVAL,
            "a shared segment has 1 to %u bytes, 1 to %u permits, and a mode within 0666; asked for were "
            "%" PRIu64 " bytes, %" PRIu32 " permits, mode %04" PRIo32,
            IPC_MAX_SHARED_SIZE, IPC_MAX_PERMITS, open->size, open->permits, open->mode);
        return;
    }
    if (quota_take(&broker->quota, session->user, &charge, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    job.size = segment_size(IPC_SEGMENT_SHARED, job.ring_size);
    (void)snprintf(job.name, sizeof(job.name), "%s", open->name);
    fd = segment_create(IPC_SEGMENT_SHARED);
    if (fd >= 0 && job.size >= WORKER_SIZE_MIN && request_hand_over(broker, session, &job, &fd) == 0)
        return;
    finish(broker, session, &job, &fd, fd < 0 ? fd : segment_allocate(fd, job.size));
}

static struct attachment *opened_before(const struct session *session, uint64_t request)
{
    if (session->resumed)
        list_for_each(node, &session->attachments)
        {
            struct attachment *attachment = list_entry(node, struct attachment, by_session);

            if (attachment->row->request == request)
                return attachment;
        }
    return NULL;
}

void request_segment_open(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__SegmentOpen *open)
{
    const char *wrong = ipc_name_check(open->name, false);
    const struct attachment *before = opened_before(session, id);
    struct shared *shared;

    if (before) {
        answer_opened(broker, session, before);
        return;
    }
    if (request_deny_admin(broker, session, id))
        return;
    if (wrong) {
        session_fail(broker, session, id, -EINVAL, "the segment's name is not valid: %s", wrong);
        return;
    }
    shared = registry_shared_named(broker, open->name);
    if ((shared || open->create) &&
        !access_check(broker, session, id, shared ? VERB_ATTACH : VERB_CREATE, open->name))
        return;
    if (!shared && open->create) {
        create(broker, session, id, open);
    } else if (!shared) {
        session_fail(
            broker, session, id, -ENOENT,
            "there is no shared segment %.200s: open it with its size and IPC_SEGMENT_CREATE to make it",
            open->name);
    } else if (open->exclusive) {
        session_fail(broker, session, id, -EEXIST, "shared segment %.200s exists already", open->name);
    } else if (registry_shared_denied(session, shared)) {
        session_fail(broker, session, id, -EACCES,
                     "uid %" PRIu32 " may not attach to shared segment %.200s: %s", session->peer.uid,
                     open->name, registry_shared_denied(session, shared));
    } else if ((open->size && open->size != shared->row->size) ||
               (open->permits && open->permits != shared->row->permits)) {
        session_fail(broker, session, id, -EINVAL,
                     "shared segment %.200s has %" PRIu32 " bytes and %" PRIu32 " permits, not %" PRIu64
                     " and %" PRIu32 ": ask for what it has, or for 0",
                     open->name, shared->row->size, shared->row->permits, open->size, open->permits);
    } else {
        attach(broker, session, shared, id, false);
    }
}

static int remove_named(struct broker *broker, struct session *session, uint64_t id, const char *name)
{
    struct shared *shared = registry_shared_named(broker, name);
    const char *wrong = ipc_name_check(name, false);

    if (wrong) {
        session_fail(broker, session, id, -EINVAL, "the segment's name is not valid: %s", wrong);
        return -EINVAL;
    }
    if (!shared) {
        session_fail(broker, session, id, -ENOENT, "there is no shared segment %.200s", name);
        return -ENOENT;
    }
    if (registry_shared_denied(session, shared) && session->peer.uid != 0) {
        session_fail(broker, session, id, -EACCES, "uid %" PRIu32 " may not remove shared segment %.200s: %s",
                     session->peer.uid, name, registry_shared_denied(session, shared));
        return -EACCES;
    }
    request_mark_done(session, id);
    registry_shared_unkeep(broker, shared);
    return 0;
}

void request_segment_close(struct broker *broker, struct session *session, uint64_t id,
                           const Ipc__Control__SegmentClose *close)
{
    if (!request_done_before(session, id)) {
        struct attachment *attachment = registry_attachment(session, close->attachment);

        if (*close->remove) {
            if (remove_named(broker, session, id, close->remove) < 0)
                return;
        } else if (!attachment) {
            session_fail(broker, session, id, -ENOENT, "this session has no attachment %" PRIu64,
                         close->attachment);
            return;
        } else {
            request_mark_done(session, id);
            registry_detach(broker, attachment);
        }
    }
    request_answer_done(broker, session, id);
}
