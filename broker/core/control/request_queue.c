/* SPDX-License-Identifier: Apache-2.0
 *
 * Creating, changing, removing queues, and what is done to their messages. What a router has to answer keeps the session
 * busy; if we are killed meanwhile, the request is still in its socket and is made again.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/control/access.h"
#include "broker/core/control/queue.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/session.h"
#include "proto/name.h"

#define SHOWN_MAX        64u   /* messages of one PEEK */
#define SHOWN_BYTES_MAX  2048u /* of one payload */
#define ANSWER_SIZE_MAX  (IPC_MAX_FRAME_SIZE - 64u)
#define NO_SETTINGS_TEXT "the request has no settings"

static bool bad_name(struct broker *broker, struct session *session, uint64_t id, const char *name)
{
    const char *wrong = ipc_name_check(name, false);

    if (wrong)
        session_fail(broker, session, id, -EINVAL, "the queue name is not valid: %s", wrong);
    return wrong != NULL;
}

/* Messages will go there: is that allowed? */
static bool may_send_to(struct broker *broker, struct session *session, uint64_t id, const char *name)
{
    return !*name || access_check(broker, session, id, VERB_SEND, name);
}

/* The queue of that name if this session may do with it what it wants, else NULL: then it was told. */
static struct queue *own_queue(struct broker *broker, struct session *session, uint64_t id, const char *name)
{
    struct queue *queue;

    if (bad_name(broker, session, id, name))
        return NULL;
    queue = registry_queue_named(broker, name);
    if (!queue) {
        session_fail(broker, session, id, -ENOENT, "there is no queue %s; `ipcctl queue ls' lists them",
                     name);
        return NULL;
    }
    /* Whose it is does not need to be an administrator. */
    return session->peer.uid == queue->row->uid ||
                   access_check_of(broker, session, id, VERB_ADMINISTER, name, queue->row->uid)
               ? queue
               : NULL;
}

void request_queue_create(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__QueueCreate *create)
{
    Ipc__Control__QueueSettings none = IPC__CONTROL__QUEUE_SETTINGS__INIT;
    const struct queue_wish wish = {create->queue, create->settings ? create->settings : &none, session->user,
                                    session->peer.session, id};
    const struct queue *queue;
    struct refusal refusal;

    if (bad_name(broker, session, id, create->queue))
        return;
    queue = registry_queue_named(broker, create->queue);
    if (request_done_before(session, id) || (queue && create->may_exist && !registry_queue_removing(queue)) ||
        (queue && session->resumed && queue->row->session == wish.session && queue->row->request == id)) {
        request_answer_done(broker, session, id);
        return;
    }
    if (queue) {
        session_fail(broker, session, id, -EEXIST, "there is a queue %s already%s", create->queue,
                     registry_queue_removing(queue) ? ", which is being removed: try again"
                                                    : ": `ipcctl queue set' changes its settings");
        return;
    }
    if (!access_check(broker, session, id, VERB_CREATE, create->queue) ||
        !may_send_to(broker, session, id, wish.settings->dead_letter))
        return;
    if (registry_queue_new(broker, &wish, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        return;
    }
    request_mark_done(session, id);
    request_answer_done(broker, session, id);
}

void request_queue_set(struct broker *broker, struct session *session, uint64_t id,
                       const Ipc__Control__QueueSet *set)
{
    struct queue *queue = own_queue(broker, session, id, set->queue);
    struct refusal refusal;

    if (!queue)
        return;
    if (!set->settings)
        session_fail(broker, session, id, -EINVAL, NO_SETTINGS_TEXT);
    else if (!may_send_to(broker, session, id, set->settings->dead_letter))
        return;
    else if (registry_queue_set(broker, queue, set->settings, &refusal) < 0)
        session_refuse(broker, session, id, &refusal);
    else
        request_answer_done(broker, session, id);
}

/* Hand a request over to the queue's router. Takes the mail, which may be NULL. */
static bool wait_for(struct broker *broker, struct session *session, uint64_t id, struct queue *queue,
                     struct route_mail *mail, bool removal)
{
    struct wait *wait = malloc(sizeof(*wait));

    if (!wait || !mail) {
        free(wait);
        route_mail_free(mail);
        session_fail(broker, session, id, -ENOMEM, "the broker is out of memory");
        return false;
    }
    *wait = (struct wait){.session = session->peer.session, .request = id, .removal = removal};
    list_append(&queue->waits, &wait->link);
    mail->data = wait;
    session->busy = true;
    session_update_events(broker, session);
    return true;
}

void request_queue_remove(struct broker *broker, struct session *session, uint64_t id,
                          const Ipc__Control__QueueRemove *remove)
{
    struct queue *queue;
    struct route_mail *mail;

    if (request_done_before(session, id)) {
        request_answer_done(broker, session, id);
        return;
    }
    queue = own_queue(broker, session, id, remove->queue);
    if (!queue)
        return;
    list_for_each(node, &broker->queues)
    {
        const struct queue *other = list_entry(node, struct queue, link);

        broker->work++;
        if (other->row->dead_letter != queue->id)
            continue;
        session_fail(broker, session, id, -EBUSY,
                     "queue %.200s sends its dead letters there: set its dead-letter first, or remove it",
                     other->row->name);
        return;
    }
    mail = registry_queue_mail(queue, ROUTE_QUEUE_REMOVE, 0);
    if (mail)
        mail->if_empty = remove->if_empty;
    if (!wait_for(broker, session, id, queue, mail, true))
        return;
    if (!remove->if_empty)
        registry_queue_mark_removing(queue, session->peer.session, id);
    routers_send(broker->routers, mail);
}

static int read_wish(const struct broker *broker, const struct queue *queue,
                     const Ipc__Control__QueueDo *wish, struct route_wish *ret, struct refusal *refusal)
{
    const struct queue *target = NULL;

    if ((unsigned)wish->operation > IPC__CONTROL__QUEUE_OPERATION__REQUEUE ||
        wish->priority_plus_1 > IPC_PRIORITIES || strlen(wish->header) >= sizeof(ret->header) ||
        wish->value.len > sizeof(ret->value)) {
        refusal_set(
            refusal, -EINVAL,
            "operation %u, a priority above %u, a header name of more than %zu or a value of more than "
            "%zu bytes: one of them is not possible",
            (unsigned)wish->operation, IPC_PRIORITIES - 1, sizeof(ret->header) - 1, sizeof(ret->value));
        return -EINVAL;
    }
    if (wish->operation == IPC__CONTROL__QUEUE_OPERATION__MOVE) {
        target = registry_queue_named(broker, wish->target);
        if (!target || registry_queue_removing(target)) {
            refusal_set(refusal, -ENOENT, "there is no queue %.200s to move to: create it first",
                        wish->target);
            return -ENOENT;
        }
        if (target == queue) {
            refusal_set(refusal, -EINVAL, "messages cannot be moved to the queue that they are in");
            return -EINVAL;
        }
    }
    *ret = (struct route_wish){.operation = (uint8_t)wish->operation,
                               .target = target ? target->id : 0,
                               .after = wish->after,
                               .older_than_ns = wish->older_than_ns,
                               .count_max = wish->count_max,
                               .attempts_min = wish->attempts_min,
                               .payload_max = wish->payload_max,
                               .priority = (int)wish->priority_plus_1 - 1,
                               .value_size = wish->value.len};
    if (wish->operation == IPC__CONTROL__QUEUE_OPERATION__PEEK) {
        if (ret->count_max == 0 || ret->count_max > SHOWN_MAX)
            ret->count_max = SHOWN_MAX;
        if (ret->payload_max > SHOWN_BYTES_MAX)
            ret->payload_max = SHOWN_BYTES_MAX;
    }
    (void)snprintf(ret->header, sizeof(ret->header), "%s", wish->header);
    if (wish->value.len > 0)
        memcpy(ret->value, wish->value.data, wish->value.len);
    return 0;
}

void request_queue_do(struct broker *broker, struct session *session, uint64_t id,
                      const Ipc__Control__QueueDo *wish)
{
    struct queue *queue = own_queue(broker, session, id, wish->queue);
    struct refusal refusal;
    struct route_wish read;
    struct route_mail *mail;

    if (!queue)
        return;
    if (wish->operation == IPC__CONTROL__QUEUE_OPERATION__MOVE &&
        !may_send_to(broker, session, id, wish->target))
        return;
    if (read_wish(broker, queue, wish, &read, &refusal) < 0) {
        session_fail(broker, session, id, refusal.code, "%s", refusal.text);
        return;
    }
    mail = registry_queue_mail(queue, ROUTE_DO, 0);
    if (!wait_for(broker, session, id, queue, mail, false))
        return;
    mail->wish = read;
    routers_send(broker->routers, mail);
}

/* What of a PEEK fits into an answer; the rest is asked for again. One message alone that does not fit is shown without
 * its bytes. */
struct shown {
    Ipc__Control__Waiting messages[SHOWN_MAX], *pointers[SHOWN_MAX];
    Ipc__Control__Peer peers[SHOWN_MAX];
    size_t n, size;
};

static bool show(struct shown *shown, const struct broker *broker, const struct route_waiting *waiting,
                 const unsigned char *bytes)
{
    Ipc__Control__Waiting *message = &shown->messages[shown->n];
    Ipc__Control__Peer *peer = &shown->peers[shown->n];
    const struct session *producer = registry_session(broker, waiting->session);
    size_t size;

    ipc__control__waiting__init(message);
    ipc__control__peer__init(peer);
    peer->session = waiting->session;
    peer->uid = waiting->uid;
    peer->pid = waiting->pid;
    if (producer)
        peer->name = (char *)(uintptr_t)producer->peer.name;
    message->number = waiting->number;
    message->time_ns = waiting->time_ns;
    message->peer = peer;
    message->size = waiting->size;
    message->priority = waiting->priority;
    message->attempt = waiting->attempt;
    message->not_before_ns = waiting->not_before_ns;
    message->consumer = waiting->consumer;
    message->fields = (ProtobufCBinaryData){waiting->fields_size, (uint8_t *)(uintptr_t)bytes};
    message->payload =
        (ProtobufCBinaryData){waiting->payload_size, (uint8_t *)(uintptr_t)(bytes + waiting->fields_size)};
    size = ipc__control__waiting__get_packed_size(message) + 4;
    if (shown->n == 0 && size > ANSWER_SIZE_MAX) {
        message->fields.len = message->payload.len = 0;
        size = ipc__control__waiting__get_packed_size(message) + 4;
    }
    if (shown->n == SHOWN_MAX || shown->size + size > ANSWER_SIZE_MAX)
        return false;
    shown->size += size;
    shown->pointers[shown->n++] = message;
    return true;
}

static void answer_did(struct broker *broker, struct session *session, uint64_t id,
                       const struct route_mail *mail)
{
    static struct shown shown;
    Ipc__Control__QueueDid did = IPC__CONTROL__QUEUE_DID__INIT;

    did.done = mail->done;
    did.next = mail->next_number;
    shown.n = shown.size = 0;
    for (size_t at = 0; at + sizeof(struct route_waiting) <= mail->size;) {
        struct route_waiting waiting;

        memcpy(&waiting, mail->bytes + at, sizeof(waiting));
        if (!show(&shown, broker, &waiting, mail->bytes + at + sizeof(waiting))) {
            did.next = shown.messages[shown.n - 1].number;
            break;
        }
        at += (sizeof(waiting) + waiting.fields_size + waiting.payload_size + 7) & ~(size_t)7;
    }
    did.messages = shown.pointers;
    did.n_messages = shown.n;
    session_reply(broker, session, IPC__CONTROL__TYPE__QUEUE_DID, id, &did.base, -1);
}

void request_queue_finish(struct broker *broker, struct wait *wait, const struct route_mail *mail)
{
    struct session *session = registry_session(broker, wait->session);
    uint64_t id = wait->request;

    list_remove(&wait->link);
    if (!session || session->state == SESSION_ENDED) {
        free(wait);
        return;
    }
    if (!mail && wait->removal)
        request_answer_done(broker, session, id);
    else if (!mail)
        session_fail(broker, session, id, -ENOENT, "the queue was removed meanwhile");
    else if (mail->result == -EBUSY && wait->removal)
        session_fail(broker, session, id, -EBUSY,
                     "the queue is not empty: purge it, or remove it together with its messages");
    else if (mail->result < 0)
        session_fail(broker, session, id, mail->result, "the queue's router could not do it: %s",
                     strerror(-mail->result));
    else
        answer_did(broker, session, id, mail);
    free(wait);
    session->busy = false;
    session_answered(broker, session);
}
