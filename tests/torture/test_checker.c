/* SPDX-License-Identifier: Apache-2.0
 *
 * The history checker, tested: a history that is well is found to be, and each way to doctor it is found out.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "tests/torture/history.h"

#define MESSAGES 4u

enum { PRODUCER = 1, ALICE = 2, BOB = 3 };
enum { SENT, RECEIVED_A, RECEIVED_B, DRIVER, JOURNALS };

/* PRODUCER sends four messages, of which the queue refuses the last one; ALICE receives two, acknowledges one, and is killed;
 * BOB receives the other one again, and the third. */
struct story {
    struct event events[JOURNALS][64];
    size_t counts[JOURNALS];
    uint64_t clock;
    struct history history;
};

static void add(struct story *story, unsigned journal, struct event event)
{
    event.time_ns = ++story->clock * 1000;
    story->events[journal][story->counts[journal]++] = event;
}

static struct event received(uint32_t sequence, uint64_t delivery, uint16_t attempt, uint8_t redelivered)
{
    return (struct event){.kind = EVENT_RECEIVED,
                          .number = 10 + sequence,
                          .delivery = delivery,
                          .client = PRODUCER,
                          .sequence = sequence,
                          .checksum = 1000 + sequence,
                          .attempt = attempt,
                          .redelivered = redelivered,
                          .key = 1};
}

static void tell(struct story *story)
{
    *story = (struct story){.clock = 1};
    add(story, SENT, (struct event){.kind = EVENT_BEGIN, .client = PRODUCER});
    for (uint32_t i = 1; i <= MESSAGES; i++) {
        add(story, SENT, (struct event){.kind = EVENT_SEND, .sequence = i, .checksum = 1000 + i, .key = 1});
        add(story, SENT, (struct event){.kind = EVENT_SENT, .sequence = i, .number = 100 * i});
    }
    add(story, SENT, (struct event){.kind = EVENT_REFUSED, .number = 100 * MESSAGES});
    add(story, SENT, (struct event){.kind = EVENT_CONFIRMED, .number = 100 * MESSAGES});
    add(story, RECEIVED_A, (struct event){.kind = EVENT_BEGIN, .client = ALICE});
    add(story, RECEIVED_A, received(1, 0, 1, 0));
    add(story, RECEIVED_A, received(2, 1, 1, 0));
    add(story, RECEIVED_A, (struct event){.kind = EVENT_ACKING, .number = 0, .delivery = 0});
    add(story, RECEIVED_A, (struct event){.kind = EVENT_ACKED, .number = 0, .delivery = 0});
    add(story, DRIVER, (struct event){.kind = EVENT_KILL, .client = ALICE});
    add(story, RECEIVED_B, (struct event){.kind = EVENT_BEGIN, .client = BOB});
    add(story, RECEIVED_B, received(2, 0, 2, 1));
    add(story, RECEIVED_B, received(3, 1, 1, 0));
    add(story, RECEIVED_B, (struct event){.kind = EVENT_ACKING, .number = 0, .delivery = 1});
    add(story, RECEIVED_B, (struct event){.kind = EVENT_ACKED, .number = 0, .delivery = 1});
    story->history.journals = JOURNALS;
    for (unsigned i = 0; i < HISTORY_QUEUES; i++)
        story->history.queues[i] = (struct history_queue){.keyed = true, .dead_letter = -1};
}

static struct findings judge(struct story *story)
{
    struct findings found;
    char texts[4096];
    FILE *out = fmemopen(texts, sizeof(texts), "w");

    for (unsigned i = 0; i < JOURNALS; i++) {
        story->history.events[i] = story->events[i];
        story->history.counts[i] = story->counts[i];
    }
    assert_true(history_check(&story->history, &found, out));
    (void)fclose(out);
    return found;
}

static struct event *at(struct story *story, unsigned journal, enum event_kind kind, unsigned nth)
{
    for (size_t i = 0; i < story->counts[journal]; i++)
        if (story->events[journal][i].kind == kind && nth-- == 0)
            return &story->events[journal][i];
    fail();
    return NULL;
}

static void forget(struct story *story, unsigned journal, enum event_kind kind, unsigned nth)
{
    struct event *event = at(story, journal, kind, nth);
    size_t left = story->counts[journal] - (size_t)(event - story->events[journal]) - 1;

    memmove(event, event + 1, left * sizeof(*event));
    story->counts[journal]--;
}

static void expect(struct story *story, uint64_t lost, uint64_t duplicated, uint64_t disordered,
                   uint64_t altered)
{
    struct findings found = judge(story);

    assert_int_equal(found.lost, lost);
    assert_int_equal(found.duplicated, duplicated);
    assert_int_equal(found.disordered, disordered);
    assert_int_equal(found.altered, altered);
}

static void test_well(void **state)
{
    struct story story;
    struct findings found;

    (void)state;
    tell(&story);
    found = judge(&story);
    assert_true(findings_none(&found));
    assert_int_equal(found.sent, 4);
    assert_int_equal(found.confirmed, 3);
    assert_int_equal(found.refused, 1);
    assert_int_equal(found.received, 4);
    assert_int_equal(found.kills, 1);
    assert_int_equal(found.redeliveries, 1);
    assert_int_equal(found.duplicates, 1);
}

static void test_lost(void **state)
{
    struct story story;

    (void)state;
    tell(&story); /* never delivered */
    forget(&story, RECEIVED_B, EVENT_RECEIVED, 1);
    expect(&story, 1, 0, 0, 0);
    tell(&story); /* delivered, and not again when its consumer was killed */
    forget(&story, RECEIVED_B, EVENT_RECEIVED, 0);
    story.history.queues[0].keyed = false;
    expect(&story, 1, 0, 0, 0);
    tell(&story); /* not if it was not confirmed */
    forget(&story, RECEIVED_B, EVENT_RECEIVED, 1);
    at(&story, SENT, EVENT_CONFIRMED, 0)->number = 200;
    expect(&story, 0, 0, 0, 0);
}

static void test_duplicates(void **state)
{
    struct story story;

    (void)state;
    tell(&story); /* the consumer that had it lives */
    forget(&story, DRIVER, EVENT_KILL, 0);
    story.history.queues[0].keyed = false;
    expect(&story, 0, 1, 0, 0);
    tell(&story); /* it was acknowledged */
    add(&story, RECEIVED_B, received(1, 2, 2, 1));
    expect(&story, 0, 1, 0, 0);
    tell(&story); /* it may have been: no more is known */
    add(&story, RECEIVED_B, received(1, 2, 2, 1));
    forget(&story, RECEIVED_A, EVENT_ACKED, 0);
    expect(&story, 0, 0, 0, 0);
    tell(&story); /* not marked */
    at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->redelivered = 0;
    expect(&story, 0, 1, 0, 0);
    tell(&story); /* as the same attempt */
    at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->attempt = 1;
    expect(&story, 0, 1, 0, 0);
    tell(&story); /* refused, as it says, by nobody */
    at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->redelivered = 3;
    expect(&story, 0, 1, 0, 0);
    tell(&story); /* a lease that the queue does not have */
    at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->redelivered = 4;
    expect(&story, 0, 1, 0, 0);
    story.history.queues[0].lease_ns = 2000;
    expect(&story, 0, 0, 0, 0);
    tell(&story); /* taken twice from its lane */
    add(&story, RECEIVED_B, received(3, 2, 1, 0));
    at(&story, RECEIVED_B, EVENT_RECEIVED, 2)->number = 14;
    expect(&story, 0, 1, 0, 0);
}

/* The next process of the producer sends it again. */
static void send_again(struct story *story)
{
    add(story, SENT, (struct event){.kind = EVENT_BEGIN, .client = 4});
    add(story, SENT, (struct event){.kind = EVENT_SEND, .sequence = 3, .checksum = 1003, .key = 1});
    add(story, SENT, (struct event){.kind = EVENT_SENT, .sequence = 3, .number = 100});
    add(story, SENT, (struct event){.kind = EVENT_CONFIRMED, .number = 100});
}

static void test_ids(void **state)
{
    struct story story;
    struct event again = received(3, 2, 1, 0);

    (void)state;
    tell(&story);
    send_again(&story);
    expect(&story, 1, 0, 0, 0); /* confirmed is confirmed... */
    story.history.queues[0].remembers = 2;
    expect(&story, 0, 0, 0, 0); /* ...but one of an id is enough */
    again.client = 4;
    again.number = 14;
    add(&story, RECEIVED_B, again);
    add(&story, RECEIVED_B, (struct event){.kind = EVENT_ACKING, .number = 2, .delivery = 2});
    expect(&story, 0, 1, 0, 0);
    at(&story, RECEIVED_B, EVENT_RECEIVED, 2)->number = 16; /* there were two in between */
    expect(&story, 0, 0, 0, 0);
    story.history.queues[0].remembers = 0;
    expect(&story, 0, 0, 0, 0);
}

/* Make it that message. */
static void name(struct event *event, uint32_t sequence)
{
    event->sequence = sequence;
    event->number = 10 + sequence;
    event->checksum = 1000 + sequence;
}

static void test_order(void **state)
{
    struct story story;

    (void)state;
    tell(&story); /* of the sender: taken in in another order than they were sent in */
    at(&story, RECEIVED_A, EVENT_RECEIVED, 0)->number = 20;
    story.history.queues[0].keyed = false;
    at(&story, RECEIVED_A, EVENT_RECEIVED, 1)->redelivered = 1; /* not to be found at the consumer */
    expect(&story, 0, 0, 1, 0);
    tell(&story); /* at a consumer */
    story.history.queues[0].keyed = false;
    name(at(&story, RECEIVED_A, EVENT_RECEIVED, 0), 2);
    name(at(&story, RECEIVED_A, EVENT_RECEIVED, 1), 1);
    name(at(&story, RECEIVED_B, EVENT_RECEIVED, 0), 1);
    expect(&story, 0, 0, 1, 0);
    tell(&story); /* of a key: what follows comes before what came back */
    story.events[RECEIVED_B][1].time_ns = story.events[RECEIVED_B][2].time_ns + 1;
    expect(&story, 0, 0, 1, 0);
    tell(&story); /* of a key: two consumers at a time */
    at(&story, DRIVER, EVENT_KILL, 0)->time_ns = at(&story, RECEIVED_B, EVENT_ACKING, 0)->time_ns + 500;
    name(at(&story, RECEIVED_B, EVENT_RECEIVED, 0), 1);
    assert_true(judge(&story).disordered > 0);
}

static void test_content(void **state)
{
    struct story story;

    (void)state;
    tell(&story);
    at(&story, RECEIVED_B, EVENT_RECEIVED, 1)->checksum++;
    expect(&story, 1, 0, 0, 1);
    tell(&story);
    at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->checksum++;
    expect(&story, 0, 0, 0, 1);
    tell(&story);
    at(&story, RECEIVED_B, EVENT_RECEIVED, 1)->priority = 3;
    expect(&story, 1, 0, 0, 1);
    tell(&story); /* nobody sent it */
    add(&story, RECEIVED_B, received(7, 2, 1, 0));
    expect(&story, 0, 0, 0, 1);
    tell(&story); /* the call that was to send it failed */
    add(&story, SENT, (struct event){.kind = EVENT_SEND, .sequence = 7, .checksum = 1007, .key = 1});
    add(&story, SENT, (struct event){.kind = EVENT_NOT_SENT, .sequence = 7});
    add(&story, RECEIVED_B, received(7, 2, 1, 0));
    expect(&story, 0, 0, 0, 1);
    tell(&story); /* it was refused */
    add(&story, RECEIVED_B, received(4, 2, 1, 0));
    expect(&story, 0, 0, 0, 1);
    tell(&story); /* into another queue */
    at(&story, RECEIVED_B, EVENT_RECEIVED, 1)->queue = 1;
    expect(&story, 1, 0, 0, 1);
}

static void test_dead_letters(void **state)
{
    struct story story;

    (void)state;
    tell(&story);
    story.history.queues[0].dead_letter = 1;
    at(&story, RECEIVED_B, EVENT_RECEIVED, 1)->queue = 1;
    expect(&story, 0, 0, 0, 0);
    assert_int_equal(judge(&story).letters, 1);
    add(&story, RECEIVED_B, received(3, 2, 1, 0));
    at(&story, RECEIVED_B, EVENT_RECEIVED, 2)->queue = 1;
    at(&story, RECEIVED_B, EVENT_RECEIVED, 2)->number = 14;
    expect(&story, 0, 1, 0, 0);
}

/* Gateway 1 is killed; `at` is a time of the story. */
static void kill_gateway(struct story *story, uint64_t at_ns)
{
    add(story, DRIVER, (struct event){.kind = EVENT_KILL_GATEWAY, .queue = 1, .number = at_ns});
    story->events[DRIVER][story->counts[DRIVER] - 1].time_ns = at_ns + 1;
}

static void test_lost_by_a_gateway(void **state)
{
    struct story story;
    const struct event again = {.kind = EVENT_RECEIVED,
                                .number = 1,
                                .client = PRODUCER,
                                .sequence = 1,
                                .checksum = 1001,
                                .attempt = 1,
                                .key = 1};

    (void)state;
    for (enum history_loss loss = LOSS_ONE; loss <= LOSS_KILL; loss++) {
        tell(
            &story); /* nothing confirms, and what was sent is there but for the last one, which nobody took */
        forget(&story, SENT, EVENT_CONFIRMED, 0);
        forget(&story, SENT, EVENT_REFUSED, 0);
        story.history.queues[0] = (struct history_queue){.dead_letter = -1, .loss = loss, .gateway = 1};
        expect(&story, 1, 0, 0, 0);
        kill_gateway(&story, at(&story, SENT, EVENT_SEND, 3)->time_ns + 1);
        expect(&story, 0, 0, 0, 0);
        assert_int_equal(judge(&story).cut[0], 1);
        /* two of them with one kill */
        forget(&story, RECEIVED_B, EVENT_RECEIVED, 1);
        expect(&story, loss == LOSS_ONE, 0, 0, 0);
        assert_int_equal(judge(&story).cut[0], 2);
        at(&story, DRIVER, EVENT_KILL_GATEWAY, 0)->queue = 2; /* of another gateway */
        expect(&story, 2, 0, 0, 0);
        /* what came later shows that no kill took what was before it */
        tell(&story);
        forget(&story, SENT, EVENT_CONFIRMED, 0);
        forget(&story, SENT, EVENT_REFUSED, 0);
        name(at(&story, RECEIVED_B, EVENT_RECEIVED, 1), 4);
        story.history.queues[0] = (struct history_queue){.dead_letter = -1, .loss = loss, .gateway = 1};
        kill_gateway(&story, story.clock * 1000 + 1);
        expect(&story, 1, 0, 0, 0);
    }
    tell(&story); /* out of an mqueue again */
    story.history.queues[0] = (struct history_queue){.dead_letter = -1, .raw = true, .gateway = 1};
    forget(&story, RECEIVED_B, EVENT_RECEIVED, 0);
    add(&story, RECEIVED_B, again);
    expect(&story, 0, 1, 0, 0);
    kill_gateway(&story, at(&story, RECEIVED_A, EVENT_RECEIVED, 0)->time_ns);
    expect(&story, 0, 0, 0, 0);
    assert_int_equal(judge(&story).repeated, 1);
    story.history.queues[0].loss = LOSS_ONE; /* what was not kept does not come again */
    expect(&story, 0, 1, 0, 0);
}

/* What the end of a sender explains. */
static void test_lost_with_its_sender(void **state)
{
    struct story story;

    (void)state;
    for (enum history_loss loss = LOSS_WAY; loss <= LOSS_KILL; loss++) {
        tell(&story);
        forget(&story, SENT, EVENT_CONFIRMED, 0);
        forget(&story, SENT, EVENT_REFUSED, 0);
        story.history.queues[0] = (struct history_queue){.dead_letter = -1, .loss = loss, .gateway = 1};
        add(&story, DRIVER, (struct event){.kind = EVENT_KILL, .client = PRODUCER});
        expect(&story, loss == LOSS_WAY, 0, 0, 0);
    }
}

static void test_overtaken(void **state)
{
    struct story story;

    (void)state;
    tell(&story);
    at(&story, RECEIVED_A, EVENT_RECEIVED, 0)->number = 20;
    at(&story, RECEIVED_A, EVENT_RECEIVED, 1)->redelivered = 1;
    story.history.queues[0] = (struct history_queue){.dead_letter = -1, .gateway = 1};
    expect(&story, 0, 0, 1, 0);
    kill_gateway(&story, at(&story, SENT, EVENT_SEND, 0)->time_ns + 1);
    expect(&story, 0, 0, 0, 0);
    assert_int_equal(judge(&story).overtaken, 1);
}

/* Two dead letters in the wrong order: nothing explains it but a kill of ipcd after they were sent. */
static void test_letter_overtaken(void **state)
{
    struct story story;

    (void)state;
    for (unsigned killed = 0; killed < 2; killed++) {
        tell(&story);
        story.history.queues[0].dead_letter = 1;
        for (unsigned i = 0; i < 2; i++) {
            at(&story, RECEIVED_A, EVENT_RECEIVED, i)->queue = 1;
            at(&story, RECEIVED_A, EVENT_RECEIVED, i)->number = 20 - i;
        }
        at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->queue = 1;
        at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->number = 19;
        if (killed) {
            add(&story, DRIVER, (struct event){.kind = EVENT_KILL_CORE});
            story.events[DRIVER][story.counts[DRIVER] - 1].time_ns =
                at(&story, SENT, EVENT_SENT, 1)->time_ns + 1;
        }
        expect(&story, 0, 0, !killed, 0);
    }
}

/* A session with a gateway is over with the gateway, or with the process whose it is. */
static void test_sessions(void **state)
{
    struct story story;
    uint64_t kill_ns;

    (void)state;
    tell(&story);
    kill_ns = at(&story, DRIVER, EVENT_KILL, 0)->time_ns;
    at(&story, DRIVER, EVENT_KILL, 0)->client = 7;
    expect(&story, 0, 1, 0, 0); /* somebody else was killed */
    at(&story, RECEIVED_A, EVENT_BEGIN, 0)->number = 7;
    expect(&story, 0, 0, 0, 0);
    forget(&story, DRIVER, EVENT_KILL, 0);
    kill_gateway(&story, kill_ns);
    expect(&story, 0, 1, 0, 0); /* it has nothing to do with that gateway */
    at(&story, RECEIVED_A, EVENT_BEGIN, 0)->queue = 1;
    expect(&story, 0, 0, 0, 0);
}

/* What was moved to queue 1 is with one consumer at a time, and acknowledged once. */
static void test_moved(void **state)
{
    struct story story;

    (void)state;
    for (unsigned ordered = 0; ordered < 2;
         ordered++) { /* the second message, that ALICE had, comes out of queue 1 */
        tell(&story);
        story.history.queues[0].keyed = ordered; /* nothing is behind in its key that has left */
        at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->queue = 1;
        at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->attempt = 1;
        at(&story, RECEIVED_B, EVENT_RECEIVED, 0)->redelivered = 0;
        add(&story, DRIVER, (struct event){.kind = EVENT_MOVE, .number = ordered ? 1 : 2});
        story.events[DRIVER][story.counts[DRIVER] - 1].time_ns =
            at(&story, RECEIVED_B, EVENT_BEGIN, 0)->time_ns;
        expect(&story, !ordered, 0, 0, !ordered);
    }
    assert_int_equal(judge(&story).moved, 1);
    forget(&story, DRIVER, EVENT_KILL, 0); /* and ALICE has it still */
    expect(&story, 0, 1, 0, 0);
    at(&story, RECEIVED_A, EVENT_ACKING, 0)->delivery = 1; /* or has acknowledged it */
    at(&story, RECEIVED_A, EVENT_ACKED, 0)->delivery = 1;
    expect(&story, 0, 1, 0, 0);
    at(&story, RECEIVED_A, EVENT_ACKED, 0)->delivery = 0; /* or may have */
    expect(&story, 0, 0, 0, 0);
}

static void test_stuck_and_errors(void **state)
{
    struct story story;

    (void)state;
    tell(&story);
    story.history.stuck = 1;
    assert_int_equal(judge(&story).stuck, 1);
    tell(&story);
    add(&story, SENT, (struct event){.kind = EVENT_ERROR, .checksum = 32});
    assert_int_equal(judge(&story).errors, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_well),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_dead_letters),
        cmocka_unit_test(test_lost_by_a_gateway),
        cmocka_unit_test(test_lost_with_its_sender),
        cmocka_unit_test(test_sessions),
        cmocka_unit_test(test_overtaken),
        cmocka_unit_test(test_letter_overtaken),
        cmocka_unit_test(test_moved),
        cmocka_unit_test(test_stuck_and_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
