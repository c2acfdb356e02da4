/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/bell.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/core/util/fd.h"

static const struct charge bell_charge = {.of = {[LIMIT_DESCRIPTORS] = 2}};

struct bell *bell_find(const struct subscription *subscription, uint32_t uid)
{
    list_for_each(node, &subscription->bells)
    {
        struct bell *bell = list_entry(node, struct bell, link);

        if (bell->uid == uid)
            return bell;
    }
    return NULL;
}

int bell_make(struct broker *broker, struct subscription *subscription, uint32_t uid, struct refusal *refusal)
{
    struct user *user = subscription->session->user;
    struct bell *bell;
    int ends[2], result;

    if (bell_find(subscription, uid))
        return 0;
    result = quota_take(&broker->quota, user, &bell_charge, refusal);
    if (result < 0)
        return result;
    bell = calloc(1, sizeof(*bell));
    if (bell)
        bell->row = state_take(&broker->state, STATE_BELLS);
    if (!bell || !bell->row || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) {
        result = bell && bell->row ? -errno : -ENOMEM;
        if (bell)
            state_drop(&broker->state, STATE_BELLS, bell->row);
        free(bell);
        quota_return(&broker->quota, user, &bell_charge);
        refusal_set(refusal, result, "the broker could not make a bell: %s", strerror(-result));
        return result;
    }
    bell->uid = uid;
    bell->ring_fd = ends[0];
    bell->read_fd = ends[1];
    if (broker->options.passrights) {
        fd_refuse_rights(ends[0]);
        fd_refuse_rights(ends[1]);
    }
    bell->id = state_number(&broker->state, NUMBER_BELL);
    bell->row->subscription = subscription->id;
    bell->row->uid = uid;
    keep_store(broker, KEEP_BELL_RING, bell->id, &bell->ring_fd, 1);
    keep_store(broker, KEEP_BELL_READ, bell->id, &bell->read_fd, 1);
    state_commit(bell->row, bell->id);
    list_append(&subscription->bells, &bell->link);
    return 0;
}

struct bell *bell_restore(struct broker *broker, struct subscription *subscription, struct bell_row *row,
                          int ring_fd, int read_fd)
{
    struct bell *bell = calloc(1, sizeof(*bell));

    if (!bell)
        return NULL;
    *bell =
        (struct bell){.id = row->row.id, .row = row, .uid = row->uid, .ring_fd = ring_fd, .read_fd = read_fd};
    quota_charge(&broker->quota, subscription->session->user, &bell_charge);
    list_append(&subscription->bells, &bell->link);
    return bell;
}

void bell_free_all(struct broker *broker, struct subscription *subscription)
{
    list_for_each_safe(node, &subscription->bells)
    {
        struct bell *bell = list_entry(node, struct bell, link);

        list_remove(&bell->link);
        state_drop(&broker->state, STATE_BELLS, bell->row);
        keep_remove(broker, KEEP_BELL_RING, bell->id);
        if (bell->read_fd >= 0)
            keep_remove(broker, KEEP_BELL_READ, bell->id);
        fd_close(bell->ring_fd);
        fd_close(bell->read_fd);
        quota_return(&broker->quota, subscription->session->user, &bell_charge);
        free(bell);
    }
}
