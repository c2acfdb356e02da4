/* SPDX-License-Identifier: Apache-2.0
 *
 * The threads. A round: mail, timers, each active port's turn, each dirty queue's deliveries. A port in which nothing was
 * found for a while is armed and leaves the active ones until its bell rings; with none left the thread sleeps.
 */
#include "broker/core/route/router.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <ipc/error.h>
#include <sys/prctl.h>

#include "broker/core/util/fd.h"
#include "libipc/lane/wait.h"

#define EVENTS_PER_ROUND 64
/* Records in one round, shared by the active ports, and the least and the most that one takes: many at a time are what makes
 * wakes rare, few what makes the others' wait short. */
#define ROUND_RECORDS    8192u
#define TURN_MIN         64u
#define TURN_MAX         1024u
/* While busy, rounds between two looks at the bells. */
#define ROUNDS_BLIND     2u
/* Rounds without anything after which a port is armed although others are busy. */
#define IDLE_ROUNDS      64u
#define RETRY_NS         UINT64_C(50000000)
#define TRIM_NS          UINT64_C(1000000000)
#define TIMERS_SLACK     1024u

struct routers {
    unsigned count;
    int event_fd;
    unsigned next; /* whose mail is looked at first */
    uint64_t seen[IPC_MAX_ROUTERS];
    struct router router[];
};

/* ---- mail ---- */

struct route_mail *route_mail_new(enum route_kind kind, uint64_t queue, size_t size)
{
    struct route_mail *mail = calloc(1, sizeof(*mail) + size);

    if (!mail)
        return NULL;
    mail->kind = kind;
    mail->queue = queue;
    mail->size = size;
    return mail;
}

struct route_mail *route_mail_free(struct route_mail *mail)
{
    free(mail);
    return NULL;
}

static void ring(int event_fd)
{
    const uint64_t one = 1;

    (void)!write(event_fd, &one, sizeof(one));
}

void router_mail(struct router *router, struct route_mail *mail)
{
    if (mailbox_put(&router->out, mail))
        ring(router->routers->event_fd);
}

unsigned routers_of(const struct routers *routers, uint64_t queue)
{
    return (unsigned)(queue % routers->count);
}

void routers_send(struct routers *routers, struct route_mail *mail)
{
    struct router *router = &routers->router[routers_of(routers, mail->queue)];

    if (mailbox_put(&router->in, mail))
        ring(router->mail_fd);
}

struct route_mail *routers_receive(struct routers *routers)
{
    for (unsigned i = 0; i < routers->count; i++) {
        struct route_mail *mail = mailbox_take(&routers->router[(routers->next + i) % routers->count].out);

        if (!mail)
            continue;
        routers->next = (routers->next + i) % routers->count;
        return mail;
    }
    return NULL;
}

bool routers_alive(struct routers *routers)
{
    bool alive = true;

    for (unsigned i = 0; i < routers->count; i++) {
        uint64_t rounds = atomic_load_explicit(&routers->router[i].rounds, memory_order_relaxed);

        if (rounds == routers->seen[i] &&
            !atomic_load_explicit(&routers->router[i].asleep, memory_order_relaxed))
            alive = false;
        routers->seen[i] = rounds;
    }
    return alive;
}

/* ---- what the others call ---- */

void router_port_awake(struct router *router, struct port *port)
{
    if (port->state == PORT_ACTIVE || port->broken)
        return;
    if (port->state == PORT_ASLEEP)
        lane_reader_disarm(&port->in);
    list_remove(&port->turn);
    list_append(&router->active, &port->turn);
    port->state = PORT_ACTIVE;
    port->idle = 0;
}

void router_queue_dirty(struct queue *queue)
{
    if (list_empty(&queue->dirty))
        list_append(&queue->router->dirty, &queue->dirty);
}

void router_retry_at(struct router *router, uint64_t at)
{
    if (!router->retry_at || at < router->retry_at)
        router->retry_at = at;
}

void router_retry_soon(struct router *router)
{
    router_retry_at(router, router->now_ns + RETRY_NS);
}

static struct queue *queue_of(struct router *router, uint64_t id)
{
    struct hash_node *node = hash_find(&router->queues, id);

    return node ? list_entry(node, struct queue, node) : NULL;
}

static struct port *port_of(struct router *router, uint64_t id)
{
    struct hash_node *node = hash_find(&router->ports, id);

    return node ? list_entry(node, struct port, node) : NULL;
}

/* Does a timer still mean something? Of messages that are gone, and deliveries that are over, it does not. */
static bool timer_counts(void *data, const struct heap_item *item)
{
    struct router *router = data;
    struct queue *queue = queue_of(router, item->extra >> TIMER_BITS);

    if (!queue)
        return false;
    if ((item->extra & ((1u << TIMER_BITS) - 1)) == TIMER_LEASE) {
        struct port *port = port_of(router, item->entry.offset);
        const struct open *open = port ? port_open_of(port, item->entry.number) : NULL;

        return open && open->lease == item->order;
    }
    return file_find(&queue->file, item->entry.offset, item->entry.number) != NULL;
}

bool router_timer(struct queue *queue, enum timer_kind kind, uint64_t at, struct entry entry)
{
    struct router *router = queue->router;
    struct heap *heap = kind == TIMER_LEASE ? &router->lease_timers : &router->boot_timers;
    size_t *before = kind == TIMER_LEASE ? &router->lease_before : &router->boot_before;

    /* Most timers outlive what they are for: they are swept when they are twice as many as after the last sweep. */
    if (heap->count >= 2 * *before + TIMERS_SLACK) {
        heap_filter(heap, timer_counts, router);
        *before = heap->count;
    }
    return heap_push(
        heap,
        &(struct heap_item){.order = at, .entry = entry, .extra = queue->id << TIMER_BITS | (unsigned)kind});
}

/* ---- rounds ---- */

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    (void)clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void read_clocks(struct router *router)
{
    router->now_ns = clock_ns(CLOCK_MONOTONIC);
    router->boot_ns = clock_ns(CLOCK_BOOTTIME);
    router->real_ns = clock_ns(CLOCK_REALTIME);
}

static void remove_queue(struct router *router, struct route_mail *mail)
{
    struct queue *queue = queue_of(router, mail->queue);

    mail->kind = ROUTE_QUEUE_GONE;
    mail->result = !queue ? -ENOENT : mail->if_empty && queue->waiting + queue->unacked ? -EBUSY : 0;
    if (mail->result == 0) {
        mail->dropped = queue->waiting + queue->unacked;
        list_for_each_safe(producer, &queue->producers)
            port_gone(router, list_entry(producer, struct port, link), true);
        list_for_each_safe(consumer, &queue->consumers)
            port_gone(router, list_entry(consumer, struct port, link), true);
        hash_remove(&router->queues, &queue->node);
        queue_free(queue);
    }
    router_mail(router, mail);
}

static void port_bell(struct router *router, struct route_mail *mail)
{
    struct port *port = port_of(router, mail->port.id);

    if (port) {
        port->out.peers[0].bell = port->in.bell = mail->port.ring;
        lane_reader_ring(&port->in); /* what it would have rung for has been so far without it */
        port_check_rung(router, port);
    }
    route_mail_free(mail);
}

static void take_letter(struct router *router, struct route_mail *mail)
{
    struct queue *queue = queue_of(router, mail->queue);

    mail->result = queue ? queue_accept_letter(queue, mail) : -ENOENT;
    mail->kind = ROUTE_LETTER_DONE;
    router_mail(router, mail);
}

/* It cannot become known what is in the queue, or not for long. False: it can be done without. */
static bool refuse_mail(struct router *router, const struct queue *queue, struct route_mail *mail)
{
    if (mail->kind == ROUTE_QUEUE_REMOVE && !mail->if_empty)
        return false;
    mail->kind = mail->kind == ROUTE_DO       ? ROUTE_DID
                 : mail->kind == ROUTE_LETTER ? ROUTE_LETTER_DONE
                                              : ROUTE_QUEUE_GONE;
    mail->result = queue->trouble;
    router_mail(router, mail);
    return true;
}

static bool some_end(const struct list *ports)
{
    list_for_each(node, ports) if (list_entry(node, struct port, link)->ending) return true;
    return false;
}

/* Until it is known what is in the queue: until all was found, and what those said who have left. */
static bool hold_mail(struct router *router, struct queue *queue, struct route_mail *mail)
{
    struct route_mail **last = &queue->held_mail;
    bool end = mail->kind == ROUTE_QUEUE_REMOVE && mail->if_empty &&
               (some_end(&queue->producers) || some_end(&queue->consumers));

    if (!end && (!queue->scanning || (mail->kind != ROUTE_QUEUE_REMOVE && mail->kind != ROUTE_DO &&
                                      mail->kind != ROUTE_LETTER && mail->kind != ROUTE_LETTER_ASK)))
        return false;
    if (queue->trouble && mail->kind != ROUTE_LETTER_ASK)
        return refuse_mail(router, queue, mail);
    while (*last)
        last = &(*last)->next;
    *last = mail;
    mail->next = NULL;
    return true;
}

static void put_off(struct router *router, struct route_mail *mail)
{
    struct route_mail **last = &router->put_off;

    while (*last)
        last = &(*last)->next;
    *last = mail;
    mail->next = NULL;
    router_retry_soon(router);
}

bool router_put_off(struct router *router, struct route_mail *mail, int result)
{
    struct route_mail *news;

    if (result == -EBADMSG || result == -EPROTO) /* it will not get better */
        return false;
    if (!mail->result && (news = route_mail_new(ROUTE_QUEUE_LATE, mail->queue, 0))) {
        news->result = result;
        router_mail(router, news);
    }
    mail->result = result; /* said once */
    put_off(router, mail);
    return true;
}

static void on_mail(struct router *router, struct route_mail *mail)
{
    struct queue *queue = queue_of(router, mail->queue);

    if (router->put_off && mail->kind != ROUTE_STOP) { /* it may be about what is not there yet */
        put_off(router, mail);
        return;
    }
    if (queue && hold_mail(router, queue, mail))
        return;
    switch (mail->kind) {
    case ROUTE_QUEUE_ADD:
        queue_add(router, mail);
        return;
    case ROUTE_QUEUE_READY:
        if (queue)
            queue_begin(queue);
        break;
    case ROUTE_QUEUE_SET:
        if (queue)
            queue_set(queue, &mail->settings);
        break;
    case ROUTE_QUEUE_REMOVE:
        remove_queue(router, mail);
        return;
    case ROUTE_PORT_ADD:
        port_add(router, mail);
        return;
    case ROUTE_PORT_BELL:
        port_bell(router, mail);
        return;
    case ROUTE_PORT_END:
        port_end(router, mail);
        return;
    case ROUTE_DO:
        if (queue) {
            look_do(queue, mail);
            return;
        }
        break;
    case ROUTE_LETTER:
        take_letter(router, mail);
        return;
    case ROUTE_LETTER_DONE:
        letter_done(router, mail);
        return;
    case ROUTE_LETTER_ASK:
        letter_asked(router, queue, mail);
        return;
    case ROUTE_LETTER_KNOWN:
        if (queue)
            queue_letter_known(queue, mail);
        break;
    default:
        break;
    }
    route_mail_free(mail);
}

static void take_again(struct router *router)
{
    struct route_mail *next, *mail = router->put_off;

    router->put_off = NULL;
    for (; mail; mail = next) {
        next = mail->next;
        on_mail(router, mail);
    }
}

static void trim_soon(struct router *router, const struct queue *queue)
{
    if (!router->trim_at && file_trims(&queue->file))
        router->trim_at = router->now_ns + TRIM_NS;
}

static void trim(struct router *router)
{
    router->trim_at = 0;
    list_for_each(node, &router->all)
    {
        struct queue *queue = list_entry(node, struct queue, link);

        if (!file_trims(&queue->file))
            continue;
        file_trim(&queue->file);
        queue_publish(queue);
        trim_soon(router, queue);
    }
}

static void run_timers(struct router *router)
{
    const struct heap_item *top;

    while ((top = heap_top(&router->boot_timers)) && top->order <= router->boot_ns) {
        struct heap_item item = *top;
        struct queue *queue = queue_of(router, item.extra >> TIMER_BITS);

        heap_pop(&router->boot_timers);
        if (queue)
            queue_timer(queue, (enum timer_kind)(item.extra & ((1u << TIMER_BITS) - 1)), item.entry);
    }
    while ((top = heap_top(&router->lease_timers)) && top->order <= router->now_ns) {
        struct heap_item item = *top;
        struct port *port = port_of(router, item.entry.offset);

        heap_pop(&router->lease_timers);
        if (port)
            queue_lease_over(port->queue, port, item.entry.number);
    }
    if (router->trim_at && router->trim_at <= router->now_ns)
        trim(router);
    if (router->retry_at && router->retry_at <= router->now_ns) {
        router->retry_at = 0;
        take_again(router);
        list_for_each(node, &router->all)
        {
            struct queue *queue = list_entry(node, struct queue, link);

            if (queue->scanning && queue->scan_at > router->now_ns)
                router_retry_at(router, queue->scan_at);
            else if (queue->scanning)
                router_queue_dirty(queue);
            else if (queue->torn)
                queue_mend(queue);
            queue_room(queue);
            list_for_each(at, &queue->producers) port_ring_again(router, list_entry(at, struct port, link));
            list_for_each(at, &queue->consumers)
            {
                port_ring_again(router, list_entry(at, struct port, link));
                port_set_willing(list_entry(at, struct port, link));
            }
        }
    }
}

static uint64_t sooner(uint64_t left, uint64_t at, uint64_t now)
{
    uint64_t until = at > now ? at - now : 0;

    return until < left ? until : left;
}

/* How long nothing happens by itself; negative: until a bell or mail. Milliseconds, rounded up. */
static int sleep_ms(const struct router *router)
{
    const struct heap_item *boot = heap_top(&router->boot_timers), *lease = heap_top(&router->lease_timers);
    uint64_t left = UINT64_MAX;

    if (boot)
        left = sooner(left, boot->order, router->boot_ns);
    if (lease)
        left = sooner(left, lease->order, router->now_ns);
    if (router->retry_at)
        left = sooner(left, router->retry_at, router->now_ns);
    if (router->trim_at)
        left = sooner(left, router->trim_at, router->now_ns);
    if (left == UINT64_MAX)
        return -1;
    return left / 1000000 >= 3600000 ? 3600000 : (int)((left + 999999) / 1000000);
}

static void look_at_bells(struct router *router, int timeout_ms)
{
    struct epoll_event events[EVENTS_PER_ROUND];
    int n;

    if (timeout_ms != 0)
        atomic_store_explicit(&router->asleep, true, memory_order_relaxed);
    n = epoll_wait(router->epoll_fd, events, EVENTS_PER_ROUND, timeout_ms);
    atomic_store_explicit(&router->asleep, false, memory_order_relaxed);
    for (int i = 0; i < n; i++) {
        struct port *port;

        if (events[i].data.u64 == 0) {
            uint64_t count;

            (void)!read(router->mail_fd, &count, sizeof(count));
            continue;
        }
        port = port_of(router, events[i].data.u64);
        if (!port)
            continue;
        list_remove(&port->rung);
        list_append(&router->rung, &port->rung);
        port_rung(router, port);
    }
}

/* Only when what they rang for is done: whoever waits for that does not wait for these calls, too. What came in between is
 * seen here, or by the look after the next arming. */
static void empty_bells(struct router *router)
{
    while (!list_empty(&router->rung)) {
        struct port *port = list_entry(router->rung.next, struct port, rung);

        list_remove(&port->rung);
        if (!lane_bell_drain(
                port->about.bell)) /* its other end is closed: the session ends, or cannot ring */
            (void)epoll_ctl(router->epoll_fd, EPOLL_CTL_DEL, port->about.bell, NULL);
        port_rung(router, port);
    }
}

/* Arm the ports in which nothing was found for `rounds` rounds, and make that known; then look once more. */
static void arm_idle(struct router *router, uint32_t rounds)
{
    struct list armed;
    bool barrier = false;

    list_init(&armed);
    list_for_each_safe(node, &router->active)
    {
        struct port *port = list_entry(node, struct port, turn);

        if (port->idle < rounds)
            continue;
        port->in.often = port->records - port->slept_at < IPC_PORT_STREAM_RECORDS;
        port->slept_at = port->records;
        barrier = lane_reader_arm(&port->in, true) || barrier;
        list_remove(&port->turn);
        list_append(&armed, &port->turn);
    }
    if (list_empty(&armed))
        return;
    if (barrier)
        lane_barrier(); /* pairs with lane_publish_fence() in lane_writer_ring() */
#ifndef IPC_TSAN
    else
        atomic_thread_fence(memory_order_seq_cst);
#endif
    list_for_each_safe(node, &armed)
    {
        struct port *port = list_entry(node, struct port, turn);
        struct lane_record record;

        if (barrier)
            lane_reader_barred(&port->in);
        list_remove(&port->turn);
        port->state = PORT_ASLEEP;
#ifndef IPC_PLANT_ROUTER_NO_RELOOK
        if (port_may_turn(port) && (port->ending || lane_reader_peek(&port->in, &record) != 0))
            router_port_awake(router, port);
#endif
    }
}

/* The last of it may be the queue's end. */
static void release_mail(struct router *router, struct queue *queue)
{
    struct route_mail *mail = queue->held_mail, *next;

    for (queue->held_mail = NULL; mail; mail = next) {
        next = mail->next;
        on_mail(router, mail);
    }
}

static bool turns(struct router *router)
{
    bool some = false;
    struct list now;
    unsigned ports = (unsigned)list_take_all(&router->active, &now);
    unsigned records = ROUND_RECORDS / (ports ? ports : 1);

    records = records < TURN_MIN ? TURN_MIN : records > TURN_MAX ? TURN_MAX : records;
    while (!list_empty(&now)) {
        struct port *port = list_entry(now.next, struct port, turn);

        list_remove(&port->turn);
        list_append(&router->active, &port->turn);
        /* It may be gone after this, or held. */
        if (port_turn(router, port, records))
            some = true;
    }
    return some;
}

static bool deliveries(struct router *router)
{
    bool some = false;
    struct list now;

    (void)list_take_all(&router->dirty, &now);
    while (!list_empty(&now)) {
        struct queue *queue = list_entry(now.next, struct queue, dirty);
        bool left;

        list_remove(&queue->dirty);
        left = queue_scan(queue);
        if (queue->torn && !queue->scanning)
            queue_mend(queue);
        left = queue_deliver(queue) || left;
        queue_publish(queue);
        trim_soon(router, queue);
        if (left)
            router_queue_dirty(queue);
        some = some || left;
        if (!queue->scanning || queue->trouble)
            release_mail(router, queue);
    }
    return some || !list_empty(&router->dirty);
}

static void *run(void *data)
{
    struct router *router = data;
    uint64_t idle_since = 0, idle_last = 0, budget = 0;
    unsigned blind = 0;
    bool slept = false;

    (void)prctl(PR_SET_NAME, "router"); /* for top(1), and who looks at threads */
    while (!router->stopping) {
        struct route_mail *mail;
        bool some = false;

        read_clocks(router);
        atomic_store_explicit(&router->rounds,
                              atomic_load_explicit(&router->rounds, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        while ((mail = mailbox_take(&router->in))) {
            if (mail->kind == ROUTE_STOP)
                router->stopping = true;
            on_mail(router, mail);
            some = true;
        }
        run_timers(router);
        some = turns(router) || some;
        some = deliveries(router) || some;
        if (router->stopping)
            break;
        empty_bells(router);
        if (some) {
            if (idle_since) {
                spin_learn(&router->spin, (slept ? router->now_ns : idle_last) - idle_since, slept);
                idle_since = 0;
                slept = false;
            }
            if (++blind % ROUNDS_BLIND == 0) {
                arm_idle(router, IDLE_ROUNDS);
                look_at_bells(router, 0);
            }
            continue;
        }
        if (!idle_since) {
            idle_since = router->now_ns;
            budget = spin_budget(&router->spin);
        }
        idle_last = router->now_ns;
        if (router->now_ns - idle_since < budget && !list_empty(&router->active)) {
            look_at_bells(router, 0);
            spin_yield();
            continue;
        }
        arm_idle(router, 0);
        if (list_empty(&router->active)) {
            look_at_bells(router, sleep_ms(router));
            slept = true;
        }
    }
    return NULL;
}

/* ---- start and stop ---- */

static void router_done(struct router *router)
{
    struct route_mail *mail;

    while ((mail = router->put_off)) {
        router->put_off = mail->next;
        route_mail_free(mail);
    }
    list_for_each_safe(node, &router->all)
    {
        struct queue *queue = list_entry(node, struct queue, link);

        list_for_each_safe(producer, &queue->producers) port_drop(list_entry(producer, struct port, link));
        list_for_each_safe(consumer, &queue->consumers) port_drop(list_entry(consumer, struct port, link));
        queue_free(queue);
    }
    look_drop(router);
    while ((mail = mailbox_take(&router->in)))
        route_mail_free(mail);
    while ((mail = mailbox_take(&router->out)))
        route_mail_free(mail);
    if (!router->stopping)
        route_mail_free(router->stop);
    heap_clear(&router->boot_timers);
    heap_clear(&router->lease_timers);
    hash_done(&router->queues);
    hash_done(&router->ports);
    fd_close(router->epoll_fd);
    fd_close(router->mail_fd);
}

static int router_start(struct routers *routers, struct router *router)
{
    struct epoll_event event = {.events = EPOLLIN};
    sigset_t all, before;
    int result;

    router->routers = routers;
    list_init(&router->all);
    list_init(&router->works);
    list_init(&router->active);
    list_init(&router->rung);
    list_init(&router->dirty);
    router->spin = SPIN_ADAPTIVE;
    router->stop = route_mail_new(ROUTE_STOP, 0, 0);
    router->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    router->mail_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!router->stop)
        return -ENOMEM;
    if (router->epoll_fd < 0 || router->mail_fd < 0 ||
        epoll_ctl(router->epoll_fd, EPOLL_CTL_ADD, router->mail_fd, &event) < 0)
        return -errno;
    result = hash_init(&router->queues);
    if (result == 0)
        result = hash_init(&router->ports);
    if (result < 0)
        return result;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &before);
    result = -pthread_create(&router->thread, NULL, run, router);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

int routers_start(struct routers **ret, unsigned count, int event_fd)
{
    struct routers *routers =
        aligned_alloc(_Alignof(struct routers), sizeof(*routers) + count * sizeof(struct router));

    if (!routers)
        return -ENOMEM;
    memset(routers, 0, sizeof(*routers) + count * sizeof(struct router));
    (void)lane_barrier_register(); /* the writers of this process leave the fence to their readers */
    routers->event_fd = event_fd;
    for (unsigned i = 0; i < count; i++) {
        int result = router_start(routers, &routers->router[i]);

        if (result < 0) {
            router_done(&routers->router[i]);
            routers_stop(routers);
            return result;
        }
        routers->count++;
    }
    *ret = routers;
    return 0;
}

struct routers *routers_stop(struct routers *routers)
{
    if (!routers)
        return NULL;
    for (unsigned i = 0; i < routers->count; i++) {
        struct router *router = &routers->router[i];

        if (mailbox_put(&router->in, router->stop))
            ring(router->mail_fd);
        (void)pthread_join(router->thread, NULL);
        router_done(router);
    }
    free(routers);
    return NULL;
}
