/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/queue.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ipc/error.h>

#include "broker/core/control/port.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/segment.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"

static const struct charge queue_charge = {.of = {[LIMIT_QUEUES] = 1, [LIMIT_DESCRIPTORS] = 1}};

struct queue *registry_queue(const struct broker *broker, uint64_t id)
{
    struct hash_node *node = hash_find(&broker->queues_by_id, id);

    return node ? list_entry(node, struct queue, node) : NULL;
}

struct queue *registry_queue_named(const struct broker *broker, const char *name)
{
    uint64_t key = hash_string(broker->secret, name, strlen(name));

    for (struct hash_node *node = hash_find(&broker->queues_by_name, key); node;
         node = hash_find_next(node)) {
        struct queue *queue = list_entry(node, struct queue, by_name);

        if (strcmp(queue->row->name, name) == 0)
            return queue;
    }
    return NULL;
}

bool registry_queue_removing(const struct queue *queue)
{
    return atomic_load_explicit(&queue->row->removing, memory_order_relaxed) != 0;
}

void registry_queue_settings(const struct broker *broker, const struct queue *queue,
                             Ipc__Control__QueueSettings *ret)
{
    const struct queue_row *row = queue->row;
    const struct queue *dead_letter = row->dead_letter ? registry_queue(broker, row->dead_letter) : NULL;

    ipc_queue_settings_init(ret);
    ret->messages_max = row->messages_max;
    ret->bytes_max = row->bytes_max;
    ret->message_size_max = row->message_size_max;
    ret->full = (Ipc__Control__Full)row->full;
    ret->class_ = (Ipc__Control__Class)row->class;
    ret->ttl_ns = row->ttl_ns;
    ret->delay_ns = row->delay_ns;
    ret->lease_ns = row->lease_ns;
    ret->attempts_max = row->attempts_max;
    if (dead_letter)
        ret->dead_letter = dead_letter->row->name;
    ret->dedup_window = row->dedup_window;
    ret->dedup_window_ns = row->dedup_window_ns;
    ret->paused = row->paused;
}

/* What may change while it is in use; one store each. */
static void store_settings(struct queue_row *row, const Ipc__Control__QueueSettings *settings,
                           const struct queue *dead_letter)
{
    row->messages_max = settings->messages_max;
    row->bytes_max = settings->bytes_max;
    row->full = (uint8_t)settings->full;
    row->ttl_ns = settings->ttl_ns;
    row->delay_ns = settings->delay_ns;
    row->lease_ns = settings->lease_ns;
    row->attempts_max = settings->attempts_max;
    row->dead_letter = dead_letter ? dead_letter->id : 0;
    row->dedup_window_ns = settings->dedup_window_ns;
    row->paused = settings->paused != 0;
}

static struct queue_settings route_settings(const struct queue *queue)
{
    const struct queue_row *row = queue->row;

    return (struct queue_settings){
        .messages_max = row->messages_max,
        .bytes_max = row->bytes_max,
        .ttl_ns = row->ttl_ns,
        .delay_ns = row->delay_ns,
        .lease_ns = row->lease_ns,
        .dedup_window_ns = row->dedup_window_ns,
        .message_size_max = row->message_size_max,
        .attempts_max = row->attempts_max,
        .dedup_window = row->dedup_window,
        .full = row->full,
        .class = row->class,
        .paused = row->paused,
        .dead_letter = row->dead_letter != 0,
    };
}

static int check_fixed(const struct queue *queue, const Ipc__Control__QueueSettings *now,
                       const Ipc__Control__QueueSettings *given, struct refusal *refusal)
{
    for (size_t i = 0; i < IPC_QUEUE_SETTINGS; i++) {
        const struct ipc_queue_setting *setting = &ipc_queue_settings[i];
        char text[IPC_QUEUE_TEXT_SIZE];

        if (!setting->fixed || !ipc_queue_setting_given(setting, given) ||
            ipc_queue_setting_get(setting, now) == ipc_queue_setting_get(setting, given))
            continue;
        ipc_queue_setting_print(setting, now, text);
        refusal_set(refusal, -EINVAL,
                    "%s of queue %s is %s and cannot change: remove the queue and create it anew",
                    setting->name, queue->row->name, text);
        return -EINVAL;
    }
    return 0;
}

/* Where dead letters go, which must lead to an end. */
static int check_dead_letter(const struct broker *broker, const struct queue *queue, const char *name,
                             struct queue **ret, struct refusal *refusal)
{
    struct queue *target = *name ? registry_queue_named(broker, name) : NULL;
    const struct queue *at = target;

    *ret = target;
    if (!*name)
        return 0;
    if (!target || registry_queue_removing(target)) {
        refusal_set(refusal, -ENOENT, "dead-letter: there is no queue %.200s: create it first", name);
        return -ENOENT;
    }
    while (at && at != queue)
        at = registry_queue(broker, at->row->dead_letter);
    if (!at)
        return 0;
    refusal_set(refusal, -ELOOP,
                "dead-letter: dead letters of queue %.200s would come back to it: choose a queue whose own "
                "dead letters go elsewhere",
                queue->row->name);
    return -ELOOP;
}

/* `queue`: NULL if it is to be made. In *merged what holds then. 0, or a negative errno and the refusal. */
static int merge(const struct broker *broker, const struct queue *queue,
                 const Ipc__Control__QueueSettings *given, Ipc__Control__QueueSettings *merged,
                 struct queue **ret_dead_letter, struct refusal *refusal)
{
    char why[IPC_QUEUE_TEXT_SIZE];
    int result;

    if (ipc_queue_settings_check(given, why) < 0) {
        refusal_set(refusal, -EINVAL, "%s", why);
        return -EINVAL;
    }
    ipc_queue_settings_init(merged);
    if (queue) {
        registry_queue_settings(broker, queue, merged);
        result = check_fixed(queue, merged, given, refusal);
        if (result < 0)
            return result;
    }
    ipc_queue_settings_apply(merged, given);
    result = check_dead_letter(broker, queue, merged->dead_letter, ret_dead_letter, refusal);
    if (result < 0)
        return result;
    if (merged->full == IPC__CONTROL__FULL__FULL_DEAD_LETTER && !*ret_dead_letter) {
        refusal_set(refusal, -EINVAL,
                    "full: dead-letter needs a queue for dead letters: set dead-letter, too");
        return -EINVAL;
    }
    if (merged->bytes_max < merged->message_size_max) {
        refusal_set(refusal, -EINVAL,
                    "bytes-max: %" PRIu64 " bytes are less than one message of message-size-max (%" PRIu32
                    "): raise the one or lower the other",
                    merged->bytes_max, merged->message_size_max);
        return -EINVAL;
    }
    return 0;
}

struct route_mail *registry_queue_mail(const struct queue *queue, enum route_kind kind, size_t size)
{
    return route_mail_new(kind, queue->id, size);
}

static int send_simple(struct broker *broker, const struct queue *queue, enum route_kind kind)
{
    struct route_mail *mail = registry_queue_mail(queue, kind, 0);

    if (!mail)
        return -ENOMEM;
    mail->settings = route_settings(queue);
    routers_send(broker->routers, mail);
    return 0;
}

int registry_queue_ready(struct broker *broker, struct queue *queue)
{
    return send_simple(broker, queue, ROUTE_QUEUE_READY);
}

static int add_to_router(struct broker *broker, struct queue *queue, bool resumed)
{
    size_t size = strlen(queue->row->name) + 1;
    struct route_mail *mail = registry_queue_mail(queue, ROUTE_QUEUE_ADD, size);

    if (!mail)
        return -ENOMEM;
    mail->fd = queue->fd;
    mail->resumed = resumed;
    mail->settings = route_settings(queue);
    mail->stats = &queue->stats;
    mail->budget = &queue->user->budget;
    memcpy(mail->bytes, queue->row->name, size);
    routers_send(broker->routers, mail);
    return 0;
}

static int make_file(const struct queue *queue)
{
    _cleanup_(fd_closep) int fd = segment_memfd("ipc-queue");
    int result = fd < 0 ? fd : queue_file_format(fd, queue->id, queue->row->dedup_window);

    return result < 0 ? result : fd_steal(&fd);
}

static void keep_file(struct broker *broker, const struct queue *queue)
{
    if (queue->row->class == QUEUE_CRASH_SAFE)
        keep_store(broker, KEEP_QUEUE, queue->id, &queue->fd, 1);
}

static struct queue *link_new(struct broker *broker, struct queue_row *row, uint64_t id, struct user *user)
{
    struct queue *queue = calloc(1, sizeof(*queue));

    if (!queue)
        return NULL;
    queue->id = id;
    queue->row = row;
    queue->user = user;
    queue->fd = -1;
    list_init(&queue->ports);
    list_init(&queue->waits);
    list_append(&broker->queues, &queue->link);
    hash_add(&broker->queues_by_id, &queue->node, id);
    hash_add(&broker->queues_by_name, &queue->by_name,
             hash_string(broker->secret, row->name, strlen(row->name)));
    return queue;
}

void registry_queue_free(struct broker *broker, struct queue *queue)
{
    list_for_each_safe(node, &queue->waits)
        free(list_entry(node, struct wait, link)); /* a broker that stops answers nobody */
    state_drop(&broker->state, STATE_QUEUES, queue->row);
    if (queue->row->class == QUEUE_CRASH_SAFE)
        keep_remove(broker, KEEP_QUEUE, queue->id);
    fd_close(queue->fd);
    quota_return(&broker->quota, queue->user, &queue_charge);
    hash_remove(&broker->queues_by_id, &queue->node);
    hash_remove(&broker->queues_by_name, &queue->by_name);
    list_remove(&queue->link);
    free(queue);
}

int registry_queue_new(struct broker *broker, const struct queue_wish *wish, struct refusal *refusal)
{
    Ipc__Control__QueueSettings merged;
    struct queue *dead_letter, *queue;
    struct queue_row *row;
    struct route_mail *ready;
    int result = merge(broker, NULL, wish->settings, &merged, &dead_letter, refusal);

    if (result == 0)
        result = quota_take(&broker->quota, wish->user, &queue_charge, refusal);
    if (result < 0)
        return result;
    row = state_take(&broker->state, STATE_QUEUES);
    if (row) {
        row->session = wish->session;
        row->request = wish->request;
        row->uid = wish->user->uid;
        row->message_size_max = merged.message_size_max;
        row->dedup_window = merged.dedup_window;
        row->class = (uint8_t)merged.class_;
        store_settings(row, &merged, dead_letter);
        (void)snprintf(row->name, sizeof(row->name), "%s", wish->name);
    }
    queue = row ? link_new(broker, row, state_number(&broker->state, NUMBER_QUEUE), wish->user) : NULL;
    if (!queue) {
        state_drop(&broker->state, STATE_QUEUES, row);
        quota_return(&broker->quota, wish->user, &queue_charge);
        refusal_set(refusal, -ENOMEM, "the broker has no memory for the queue's record");
        return -ENOMEM;
    }
    ready = registry_queue_mail(queue, ROUTE_QUEUE_READY, 0);
    queue->fd = make_file(queue);
    result = queue->fd < 0 ? queue->fd : ready ? add_to_router(broker, queue, false) : -ENOMEM;
    if (result == 0) {
        keep_file(broker, queue);
        state_commit(row, queue->id);
        routers_send(broker->routers, ready);
    } else {
        route_mail_free(ready);
        refusal_set(refusal, result, "the broker could not make the queue's file: %s", strerror(-result));
        registry_queue_free(broker, queue);
        return result;
    }
    log_write(LOG_QUEUE, NULL, "queue %s is created for user %" PRIu32, row->name, row->uid);
    return 0;
}

int registry_queue_set(struct broker *broker, struct queue *queue,
                       const Ipc__Control__QueueSettings *settings, struct refusal *refusal)
{
    Ipc__Control__QueueSettings merged;
    struct queue *dead_letter;
    int result = merge(broker, queue, settings, &merged, &dead_letter, refusal);

    if (result < 0)
        return result;
    store_settings(queue->row, &merged, dead_letter);
    result = send_simple(broker, queue, ROUTE_QUEUE_SET);
    if (result < 0)
        refusal_set(refusal, result, "the broker is out of memory");
    return result;
}

void registry_queue_mark_removing(struct queue *queue, uint64_t session, uint64_t request)
{
    if (registry_queue_removing(queue))
        return;
    queue->row->remover = session;
    queue->row->remover_request = request;
    atomic_store_explicit(&queue->row->removing, 1, memory_order_release);
}

/* Its row goes next: the request must count as done before. */
static void settle_removal(struct broker *broker, const struct queue_row *row)
{
    struct session *session = registry_session(broker, row->remover);

    if (session && session->row)
        atomic_store_explicit(&session->row->request, row->remover_request, memory_order_release);
}

void registry_queue_gone(struct broker *broker, struct queue *queue, unsigned reason)
{
    registry_queue_mark_removing(queue, 0, 0);
    list_for_each(other, &broker->queues)
    {
        struct queue *source = list_entry(other, struct queue, link);

        if (source->row->dead_letter != queue->id)
            continue;
        source->row->dead_letter = 0;
        (void)send_simple(broker, source, ROUTE_QUEUE_SET);
    }
    list_for_each_safe(node, &queue->ports)
        registry_port_queue_gone(broker, list_entry(node, struct port, by_queue), reason);
    settle_removal(broker, queue->row);
    registry_queue_free(broker, queue);
}

int registry_queue_restore(struct broker *broker, struct queue_row *row, int fd)
{
    _cleanup_(fd_closep) int kept = fd;
    bool resumed = fd >= 0 && row->class == QUEUE_CRASH_SAFE;
    struct user *user = quota_user(&broker->quota, row->uid);
    struct queue *queue;

    if (atomic_load_explicit(&row->removing, memory_order_relaxed)) {
        settle_removal(broker, row);
        keep_remove(broker, KEEP_QUEUE, row->row.id);
        state_drop(&broker->state, STATE_QUEUES, row);
        return 0;
    }
    queue = user ? link_new(broker, row, row->row.id, user) : NULL;
    if (!queue)
        return -ENOMEM;
    quota_charge(&broker->quota, user, &queue_charge);
    if (!resumed) {
        if (row->class == QUEUE_BEST_EFFORT)
            log_write(LOG_QUEUE, NULL, "queue %s begins empty: its class is best-effort", row->name);
        else
            log_write(LOG_SYSTEM, NULL, "queue %s has lost its messages: its file was not kept", row->name);
        kept = fd_close(kept);
        kept = make_file(queue);
        if (kept < 0)
            return kept;
    }
    queue->fd = fd_steal(&kept);
    if (!resumed)
        keep_file(broker, queue);
    return add_to_router(broker, queue, resumed);
}

static void configure(struct broker *broker, const struct config_queue *wanted, bool links)
{
    const uint32_t linked = UINT32_C(1) << ipc_queue_setting_find("full")->field |
                            UINT32_C(1) << ipc_queue_setting_find("dead-letter")->field;
    Ipc__Control__QueueSettings settings = wanted->settings;
    struct queue *queue = registry_queue_named(broker, wanted->name);
    struct refusal refusal;
    int result = 0;

    settings.dead_letter = (char *)(uintptr_t)wanted->dead_letter;
    if (!links) { /* the queue for its dead letters may come later */
        settings.given &= ~linked;
        settings.dead_letter = (char *)(uintptr_t)protobuf_c_empty_string;
    }
    if (queue && (links || settings.given)) {
        result = registry_queue_set(broker, queue, &settings, &refusal);
    } else if (!queue && !links) {
        const struct queue_wish wish = {wanted->name, &settings, quota_user(&broker->quota, geteuid()), 0, 0};

        refusal_set(&refusal, -ENOMEM, "out of memory");
        result = wish.user ? registry_queue_new(broker, &wish, &refusal) : -ENOMEM;
    }
    if (result < 0)
        log_write(LOG_SYSTEM, NULL, "[queue %s] (%s): %s", wanted->name, wanted->origin, refusal.text);
}

void registry_queue_configure(struct broker *broker)
{
    const struct config *config = broker->options.config;

    for (unsigned links = 0; links < 2; links++)
        for (size_t i = 0; i < config->n_queues; i++)
            configure(broker, &config->queues[i], links);
}
