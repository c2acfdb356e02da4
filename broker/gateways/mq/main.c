/* SPDX-License-Identifier: Apache-2.0
 *
 * ipcd-mq: POSIX message queues in the broker's name space. See docs/gateways.md and ipcd-mq(8).
 */
#include <errno.h>
#include <string.h>

#include "broker/gateways/mq/mq.h"
#include "proto/name.h"

#define FIELD(name) offsetof(struct mq_settings, name)

static const char *const direction_words[] = {"in", "out", "call", "serve", NULL};
static const char *const full_words[] = {"wait", "drop", NULL};
static const char *const refused_words[] = {"hold", "drop", NULL};
static const char *const oversize_words[] = {"dead-letter", "drop", "split", NULL};
static const char *const form_words[] = {"raw", "enveloped", NULL};
static const char *const yes_words[] = {"no", "yes", NULL};

static const struct gateway_setting settings[] = {
    {"direction", GATEWAY_WORD, FIELD(direction), 0, 0, direction_words, NULL},
    {"form", GATEWAY_WORD, FIELD(form), 0, 0, form_words, "raw"},
    {"mqueue", GATEWAY_TEXT, FIELD(mqueue), 0, MQ_NAME_SIZE, NULL, NULL},
    {"topic", GATEWAY_TEXT, FIELD(topic), 0, GATEWAY_VALUE_SIZE, NULL, ""},
    {"queue", GATEWAY_TEXT, FIELD(queue), 0, GATEWAY_VALUE_SIZE, NULL, ""},
    {"service", GATEWAY_TEXT, FIELD(service), 0, GATEWAY_VALUE_SIZE, NULL, ""},
    {"reply", GATEWAY_TEXT, FIELD(reply), 0, MQ_NAME_SIZE, NULL, ""},
    {"timeout", GATEWAY_DURATION, FIELD(timeout_ns), 1000000, UINT64_C(86400000000000), NULL, "5s"},
    {"full", GATEWAY_WORD, FIELD(full), 0, 0, full_words, "wait"},
    {"refused", GATEWAY_WORD, FIELD(refused), 0, 0, refused_words, "hold"},
    {"oversize", GATEWAY_WORD, FIELD(oversize), 0, 0, oversize_words, "dead-letter"},
    {"dead-letter", GATEWAY_TEXT, FIELD(dead_letter), 0, GATEWAY_VALUE_SIZE, NULL, ""},
    {"ttl", GATEWAY_DURATION, FIELD(ttl_ns), 0, UINT64_C(31536000000000000), NULL, "0s"},
    {"key", GATEWAY_TEXT, FIELD(key), 0, GATEWAY_VALUE_SIZE, NULL, ""},
    {"gather-max", GATEWAY_SIZE, FIELD(gather_max), 1, 67108864, NULL, "1M"},
    {"calls", GATEWAY_COUNT, FIELD(calls), 1, 1024, NULL, "64"},
    {"identity", GATEWAY_TEXT, FIELD(identity), 0, 64, NULL, ""},
    {"create", GATEWAY_WORD, FIELD(create), 0, 0, yes_words, "yes"},
    {"mode", GATEWAY_MODE, FIELD(mode), 0, 0777, NULL, "600"},
    {"owner", GATEWAY_TEXT, FIELD(owner), 0, 64, NULL, ""},
    {"messages", GATEWAY_COUNT, FIELD(messages), 1, 65536, NULL, "10"},
    {"message-size", GATEWAY_SIZE, FIELD(message_size), 1, 16777216, NULL, "8K"},
    {"prefetch", GATEWAY_COUNT, FIELD(prefetch), 1, 65536, NULL, "64"},
};
const struct gateway_table mq_table = {settings, sizeof(settings) / sizeof(settings[0]),
                                       sizeof(struct mq_settings)};

static int wrong_name(char why[GATEWAY_WHY_SIZE], const char *key, const char *name, const char *wrong)
{
    if (!wrong)
        return 0;
    (void)snprintf(why, GATEWAY_WHY_SIZE, "%s = %.100s: %s", key, name, wrong);
    return -EINVAL;
}

/* With settings that only some bindings have: NULL, or what is wrong. */
static const char *wrong_together(const struct mq_settings *given)
{
    if (given->oversize == MQ_OVERSIZE_SPLIT && given->form == MQ_RAW)
        return "oversize = split needs form = enveloped";
    if ((given->ttl_ns || given->key[0]) && (given->direction != MQ_IN || !given->queue[0]))
        return "ttl and key are for messages into a queue";
    if (given->dead_letter[0] && given->direction != MQ_IN)
        return "dead-letter is for messages that come in; one that goes out has its queue's";
    return NULL;
}

/* The mqueue for answers; with form = enveloped a caller may name another, that of `reply` up to a '*' at its end. */
static const char *wrong_reply(const struct mq_settings *given)
{
    const char *star = strchr(given->reply, '*');

    if (star && (given->direction != MQ_CALL || given->form == MQ_RAW))
        return "only with direction = call and form = enveloped there may be a '*'";
    if (star && (star[1] || star == given->reply + 1))
        return "a '*' stands at the end, for what begins with at least one more character than '/'";
    return mqueue_name_check(given->reply);
}

int mq_check(const void *own, const void *binding, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *given = binding;
    bool calls = given->direction == MQ_CALL || given->direction == MQ_SERVE;
    const char *wrong = wrong_together(given);
    int result = wrong_name(why, "mqueue", given->mqueue, mqueue_name_check(given->mqueue));

    (void)own;
    if (result < 0)
        return result;
    if (!wrong && calls && (!given->service[0] || !given->reply[0] || given->topic[0] || given->queue[0]))
        wrong = "service and reply have to be given, and neither topic nor queue";
    if (!wrong && !calls && (!given->topic[0] == !given->queue[0] || given->service[0] || given->reply[0]))
        wrong = "either topic or queue has to be given, and neither service nor reply";
    if (!wrong && strcmp(given->mqueue, given->reply) == 0)
        wrong = "mqueue and reply are the same";
    if (wrong) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "%s", wrong);
        return -EINVAL;
    }
    if (given->dead_letter[0])
        result =
            wrong_name(why, "dead-letter", given->dead_letter, ipc_name_check(given->dead_letter, false));
    if (result == 0 && calls)
        result = wrong_name(why, "reply", given->reply, wrong_reply(given));
    if (result == 0 && calls)
        result = wrong_name(why, "service", given->service, ipc_name_check(given->service, false));
    if (result == 0 && given->topic[0])
        result =
            wrong_name(why, "topic", given->topic, ipc_name_check(given->topic, given->direction == MQ_OUT));
    if (result == 0 && given->queue[0])
        result = wrong_name(why, "queue", given->queue, ipc_name_check(given->queue, false));
    return result;
}

static int start(struct gateway *gateway)
{
    (void)gateway;
    mq_limits_probe();
    return 0;
}

static const struct way {
    int (*bind)(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE]);
    void (*unbind)(struct gateway_binding *binding);
} ways[2][4] = {
    [MQ_RAW] = {[MQ_IN] = {in_bind, in_unbind},
                [MQ_OUT] = {out_bind, out_unbind},
                [MQ_CALL] = {call_bind, call_unbind},
                [MQ_SERVE] = {serve_bind, serve_unbind}},
    [MQ_ENVELOPED] = {[MQ_IN] = {in_bind, in_unbind},
                      [MQ_OUT] = {out_bind, out_unbind},
                      [MQ_CALL] = {ask_bind, ask_unbind},
                      [MQ_SERVE] = {answer_bind, answer_unbind}},
};

static const struct way *way_of(const struct gateway_binding *binding)
{
    const struct mq_settings *given = binding->settings;

    return &ways[given->form][given->direction];
}

/* The mqueue that it reads; NULL: none. */
static const char *reads(const struct gateway_binding *binding)
{
    const struct mq_settings *given = binding->settings;

    return given->direction == MQ_IN || given->direction == MQ_CALL ? given->mqueue
           : given->direction == MQ_SERVE                           ? given->reply
                                                                    : NULL;
}

static int bind_one(struct gateway_binding *binding, char why[GATEWAY_WHY_SIZE])
{
    const char *mqueue = reads(binding);

    for (size_t i = 0; mqueue && i < binding->gateway->n_bindings; i++) {
        const struct gateway_binding *other = binding->gateway->bindings[i];

        if (other == binding || !other->open || !reads(other) || strcmp(reads(other), mqueue) != 0)
            continue;
        (void)snprintf(why, GATEWAY_WHY_SIZE, "mqueue %.64s is read by the binding %s already", mqueue,
                       other->id);
        return -EBUSY;
    }
    return way_of(binding)->bind(binding, why);
}

static void unbind_one(struct gateway_binding *binding)
{
    way_of(binding)->unbind(binding);
}

static bool uses(const struct gateway_binding *binding, const char *made)
{
    const struct mq_settings *given = binding->settings;

    return strcmp(given->mqueue, made) == 0 || strcmp(given->reply, made) == 0;
}

static void on_event(struct gateway *gateway, const struct ipc_event *event)
{
    for (size_t i = 0; i < gateway->n_bindings; i++) {
        const struct mq_settings *given = gateway->bindings[i]->settings;

        if (given->direction == MQ_OUT)
            out_event(gateway->bindings[i], event);
    }
}

int main(int argc, char **argv)
{
    static const struct gateway_kind kind = {
        .name = "mq",
        .program = "ipcd-mq",
        .doc =
            "Join POSIX message queues to the names of ipcd.\vBindings come from the configuration and from `ipcctl "
            "bind mq'. Stopped by SIGTERM or SIGINT. See ipcd-mq(8).",
        .binds = {settings, sizeof(settings) / sizeof(settings[0]), sizeof(struct mq_settings)},
        .check = mq_check,
        .start = start,
        .bind = bind_one,
        .unbind = unbind_one,
        .uses = uses,
        .unmake = mqueue_unmake,
        .event = on_event,
        .limits = mq_limits_tell,
    };

    return gateway_main(&kind, argc, argv);
}
