/* SPDX-License-Identifier: Apache-2.0
 *
 * What an operator does with the messages of a queue: one bounded look at a time, which says where to go on.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/route/router.h"
#include "proto/fields.h"

/* Of one look: records that are examined; bytes that are shown; letters on their way at once. */
#define EXAMINED_MAX 4096u
#define SHOWN_MAX    6144u
#define LETTERS_MAX  64u

struct work {
    struct list link; /* router.works */
    struct router *router;
    struct queue *queue;     /* while looking */
    struct route_mail *mail; /* the wish, which becomes the answer */
    struct route_mail *shown;
    unsigned examined, letters;
    bool looking;
};

static bool field_is(const struct ipc_field *field, const struct route_wish *wish)
{
    size_t size = strlen(wish->header);
    bool named = field->kind == IPC_FIELD_USER && field->name_size == size &&
                 memcmp(field->name, wish->header, size) == 0;

    named = named || (field->kind == IPC_FIELD_ORIGIN && strcmp(wish->header, "origin") == 0) ||
            (field->kind == IPC_FIELD_REASON && strcmp(wish->header, "reason") == 0);
    return named && (!wish->value_size || (field->value_size == wish->value_size &&
                                           memcmp(field->value, wish->value, wish->value_size) == 0));
}

static size_t block_size(struct record *record)
{
    struct ipc_record_headers headers;

    if (!(record->flags & RECORD_HEADERS))
        return 0;
    memcpy(&headers, record_body(record), sizeof(headers));
    return headers.size; /* it was checked when the message was accepted */
}

static bool has_header(struct record *record, const struct route_wish *wish)
{
    size_t size = block_size(record), position = 0;
    struct ipc_field field;

    while (size && ipc_field_next(record_body(record), size, &position, &field) > 0)
        if (field_is(&field, wish))
            return true;
    return false;
}

static bool matches(const struct queue *queue, struct record *record, const struct record_state *state,
                    const struct route_wish *wish)
{
    uint64_t age = queue->router->real_ns > record->time_ns ? queue->router->real_ns - record->time_ns : 0;

    return (wish->priority < 0 || wish->priority == record->priority) && age >= wish->older_than_ns &&
           state->attempt >= wish->attempts_min && (!*wish->header || has_header(record, wish));
}

static uint64_t session_of(const struct queue *queue, uint16_t slot)
{
    list_for_each(node, &queue->consumers)
    {
        const struct port *port = list_entry(node, struct port, link);

        if (port->about.slot == slot)
            return port->about.session;
    }
    return 0;
}

/* Returns false if it does not fit any more. */
static bool show(struct work *work, struct record *record, const struct record_state *state)
{
    const struct router *router = work->queue->router;
    const struct route_wish *wish = &work->mail->wish;
    size_t block = block_size(record), payload = record->size - block, left = SHOWN_MAX - work->shown->size,
           room;
    uint64_t not_before = atomic_load_explicit(&record->not_before, memory_order_relaxed);
    struct route_waiting waiting = {.number = record->number,
                                    .time_ns = record->time_ns,
                                    .session = record->session,
                                    .uid = record->uid,
                                    .pid = record->pid,
                                    .size = (uint32_t)payload,
                                    .attempt = state->attempt,
                                    .priority = record->priority};

    if (state->kind == RECORD_DELIVERED && state->slot < SLOT_DYING)
        waiting.consumer = session_of(work->queue, state->slot);
    if (not_before > router->boot_ns)
        waiting.not_before_ns = router->real_ns + (not_before - router->boot_ns);
    if (left < sizeof(waiting) + 16)
        return false;
    /* Headers are shown whole or not at all; of the payload, what was asked for. */
    room = left - sizeof(waiting) - 16;
    if (block > room && work->shown->size)
        return false;
    waiting.fields_size = block <= room ? (uint32_t)block : 0;
    room -= waiting.fields_size;
    waiting.payload_size = (uint32_t)(payload < wish->payload_max ? payload : wish->payload_max);
    if (waiting.payload_size > room) {
        if (work->shown->size)
            return false;
        waiting.payload_size = (uint32_t)room;
    }
    memcpy(work->shown->bytes + work->shown->size, &waiting, sizeof(waiting));
    work->shown->size += sizeof(waiting);
    memcpy(work->shown->bytes + work->shown->size, record_body(record), waiting.fields_size);
    work->shown->size += (waiting.fields_size + 7) & ~(size_t)7;
    memcpy(work->shown->bytes + work->shown->size, record_body(record) + block, waiting.payload_size);
    work->shown->size += (waiting.payload_size + 7) & ~(size_t)7;
    return true;
}

static int examine(void *data, uint64_t offset, struct record *record)
{
    struct work *work = data;
    const struct route_wish *wish = &work->mail->wish;
    struct record_state state = record_load(record);
    struct entry entry = {.offset = offset, .number = record->number};

    if (++work->examined > EXAMINED_MAX || (wish->count_max && work->mail->done == wish->count_max) ||
        work->letters == LETTERS_MAX)
        return 1;
    if ((wish->operation == 0 ||
         (state.kind == RECORD_WAITING && state.slot != SLOT_ARRIVED && state.slot != SLOT_LEAVING)) &&
        matches(work->queue, record, &state, wish)) {
        switch (wish->operation) {
        case 0:
            if (!show(work, record, &state))
                return 1;
            break;
        case 1:
            queue_forget(work->queue, offset, record, state);
            work->queue->dropped++;
            break;
        default:
            if (!letter_move(work->queue, record, wish->operation == 2 ? wish->target : 0, work))
                goto next;
            work->letters++;
            break;
        }
        work->mail->done++;
    }
next:
    work->mail->next_number = entry.number;
    return 0;
}

static void answer(struct work *work)
{
    struct route_mail *mail = work->mail;

    if (work->looking || work->letters)
        return;
    if (work->shown) { /* the answer is the mail that has what is shown */
        work->shown->done = mail->done;
        work->shown->next_number = mail->next_number;
        work->shown->data = mail->data;
        work->shown->kind = ROUTE_DID;
        route_mail_free(mail);
        mail = work->shown;
    }
    mail->kind = ROUTE_DID;
    router_mail(work->router, mail);
    list_remove(&work->link);
    free(work);
}

void look_do(struct queue *queue, struct route_mail *mail)
{
    struct work *work = calloc(1, sizeof(*work));
    bool peek = mail->wish.operation == 0;

    if (work && peek)
        work->shown = route_mail_new(ROUTE_DO, mail->queue, SHOWN_MAX);
    if (!work || (peek && !work->shown)) {
        free(work);
        mail->kind = ROUTE_DID;
        mail->result = -ENOMEM;
        router_mail(queue->router, mail);
        return;
    }
    *work = (struct work){
        .router = queue->router, .queue = queue, .mail = mail, .shown = work->shown, .looking = true};
    list_append(&queue->router->works, &work->link);
    mail->result = 0;
    mail->done = mail->next_number = 0;
    if (work->shown)
        work->shown->size = 0;
    if (file_each(&queue->file, mail->wish.after, examine, work) == 0)
        mail->next_number = 0; /* that was all */
    else if (mail->next_number == 0)
        mail->next_number = mail->wish.after; /* nothing yet */
    work->looking = false;
    answer(work);
}

void look_letter_done(void *data, int result)
{
    struct work *work = data;

    if (result < 0) {
        work->mail->done--;
        if (work->mail->result == 0)
            work->mail->result = result;
    }
    work->letters--;
    answer(work);
}

void look_drop(struct router *router)
{
    list_for_each_safe(node, &router->works)
    {
        struct work *work = list_entry(node, struct work, link);

        route_mail_free(work->mail);
        route_mail_free(work->shown);
        free(work);
    }
}
