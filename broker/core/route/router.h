/* SPDX-License-Identifier: Apache-2.0
 *
 * A router from the inside. Everything here belongs to its thread, but for the mailboxes, the counters of struct queue_stats,
 * and the two words that the watchdog reads.
 *
 * What a message goes through:  producer's lane -> port_turn() -> queue_accept() -> the file, and a list of what is ready
 * -> queue_deliver() -> consumer's lane -> port_turn() -> queue_ack() -> done.
 */
#ifndef IPCD_CORE_ROUTE_ROUTER_H
#define IPCD_CORE_ROUTE_ROUTER_H

#include <pthread.h>

#include "broker/core/route/entries.h"
#include "broker/core/route/file.h"
#include "broker/core/route/mailbox.h"
#include "broker/core/route/route.h"
#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"
#include "libipc/lane/reader.h"
#include "libipc/lane/writer.h"
#include "libipc/patterns/spin.h"

/* A record that is on its way to another queue counts as delivered to this; its delivery is that queue, 0: where it came from. */
#define SLOT_LEAVING UINT16_MAX
/* The same if it becomes a dead letter, and while it waits for that: a router that takes over is to know. */
#define SLOT_DYING   (UINT16_MAX - 1u)
/* One that came from another queue, and waits for that to let go of it. */
#define SLOT_ARRIVED (UINT16_MAX - 2u)

/* What a timer is for; with the queue's number above it, struct heap_item.extra. */
enum timer_kind {
    TIMER_EXPIRES, /* its time to live is over */
    TIMER_READY,   /* its delay is over */
    TIMER_BURY,    /* its dead-letter queue had no room: try again; or it is to be moved again */
    TIMER_LEASE,   /* entry: port and delivery */
    TIMER_BITS = 2
};

/* What the header block of a message says. */
struct attributes {
    uint64_t expires, not_before;
    const void *id, *key;
    uint16_t id_size, key_size;
    uint8_t priority;
};

/* An ordering key of which some message is open or waits for another. */
struct key {
    struct hash_node node; /* queue.keys */
    uint64_t port;         /* who has open ones */
    uint32_t open;
    struct entry exposed; /* in the ready lists for it, while some are parked; number 0: none */
    struct heap parked;   /* behind those; by number */
};

/* A delivery that is not acknowledged yet. */
struct open {
    uint64_t offset, number; /* offset 0: acknowledged */
    uint64_t lease;          /* CLOCK_MONOTONIC; 0: none */
    struct key *key;
};

enum port_state {
    PORT_ACTIVE, /* router.active: is looked at in each round */
    PORT_ASLEEP, /* armed: its bell will ring */
    PORT_HELD,   /* its next message cannot be decided yet: queue.held, or a letter, or room for a verdict */
};

struct port {
    struct hash_node node; /* router.ports */
    struct list link;      /* queue.producers or queue.consumers */
    struct list turn;      /* router.active, or queue.held */
    struct list willing;   /* queue.willing */
    struct list rung;      /* router.rung */
    struct route_port about;
    struct queue *queue;
    struct ipc_port *core, *session; /* the two ends, mapped */
    struct lane_reader in;
    struct lane_writer out;
    struct lane_batch batch; /* deliveries that are written and not committed yet */
    enum port_state state;
    bool ending, broken;
    unsigned reason;         /* why it ends */
    struct route_mail *gone; /* the order to end, which becomes the answer */
    uint32_t wants_room;     /* bytes of a record for which its lane from us has none; 0: it has */
    uint32_t idle;           /* rounds without anything */
    uint64_t slept_at;
    uint64_t records; /* read */
    /* Of a producer. */
    uint64_t decided; /* records below this position were decided by an earlier ipcd */
    uint64_t taken;   /* 1 + the position of the first one that this one did; 0: none yet */
    bool letter;      /* its next message is on its way to the dead-letter queue */
    /* Of a consumer: deliveries [open_first, port_next_delivery()), in a ring. */
    struct open *open;
    uint32_t open_capacity, open_count;
    uint64_t open_first;
    uint64_t named; /* where to go on with the acknowledgement that is next; 0: at its beginning */
};

/* Who filled the queue. */
struct owner {
    uint32_t uid;
    uint64_t messages;
};
#define OWNERS_MAX 32u

/* Where a letter came from, and the record that it is here. A message that was diverted comes from a port: its number is a
 * position in the port's lane. */
#define ORIGIN_PORT (UINT64_C(1) << 63)
struct origin {
    uint64_t queue, number;
    uint64_t offset, arrived;
};

/* Message ids that were accepted, by the low half of their hash: places in the file's ring. */
struct ids {
    uint32_t *slots; /* place + 1; 0: free */
    uint32_t capacity;
};

struct queue {
    struct hash_node node; /* router.queues */
    struct list link;      /* router.all */
    struct list dirty;     /* router.dirty: something to deliver, or counters to publish */
    struct router *router;
    uint64_t id;
    char name[IPC_MAX_NAME_SIZE + 1];
    struct queue_settings settings;
    struct queue_stats *stats;
    struct file file;
    bool begun;    /* all its ports are there */
    bool scanning; /* not all that an earlier ipcd left was found: nothing is accepted */
    bool running;  /* all that is open was found: consumers go on */
    bool torn;     /* the lists lack something, for want of memory: made anew from the file */
    int trouble;   /* 0, or why its scan cannot go on: nothing waits for that */
    uint64_t scan_at, scan_wait_ns; /* then: CLOCK_MONOTONIC of the next try, and how long it was put off */
    struct fifo ready[IPC_PRIORITIES];
    uint32_t ready_mask;  /* bit: that list is not empty */
    struct heap returned; /* what came back or was delayed: by priority, then number */
    struct hash keys;
    struct ids ids;
    struct list producers, consumers, willing, held;
    uint32_t n_willing;
    struct owner owners[OWNERS_MAX];
    uint32_t n_owners;
    struct route_mail *held_mail; /* in order: for which all has to be found */
    struct origin *letters;       /* those of an earlier ipcd that are here, in order; freed with the queue */
    uint32_t n_letters;
    uint64_t waiting, delayed, unacked, bytes; /* unacked: those that leave, too */
    uint64_t accepted, acked, redelivered, dead, dropped, rejected, duplicates;
};

struct router {
    struct routers *routers;
    pthread_t thread;
    int epoll_fd, mail_fd;
    struct mailbox in, out;
    struct hash queues, ports;
    struct list all, active, dirty;
    struct list works;                     /* orders that wait for letters */
    struct list rung;                      /* ports whose bells are to be emptied */
    struct heap boot_timers, lease_timers; /* CLOCK_BOOTTIME, CLOCK_MONOTONIC */
    size_t boot_before, lease_before;      /* how many they were after the last sweep */
    uint64_t boot_ns, real_ns, now_ns;     /* as of this round */
    uint64_t retry_at;                     /* something waits for memory; 0: nothing does */
    uint64_t trim_at;                      /* some file has memory to give back; 0: none has */
    struct spin spin;
    _Atomic uint64_t rounds;
    _Atomic bool asleep;
    bool stopping;
    struct route_mail *stop; /* so that stopping needs no memory */
    struct route_mail
        *put_off; /* in order: what of an earlier ipcd's could not be taken up yet, and all mail since */
};

/* ---- router.c ---- */
void router_mail(struct router *router, struct route_mail *mail); /* to the control thread */
void router_port_awake(struct router *router, struct port *port);
void router_queue_dirty(struct queue *queue);
void router_retry_soon(struct router *router);
void router_retry_at(struct router *router, uint64_t at);
/* What an earlier ipcd had is not given up for want of memory: it is tried again, and the control thread is told. False if
 * it is something else: then the mail stays the caller's. */
bool router_put_off(struct router *router, struct route_mail *mail, int result);
bool router_timer(struct queue *queue, enum timer_kind kind, uint64_t at, struct entry entry);

/* ---- port.c ---- */
void port_add(struct router *router, struct route_mail *mail);
void port_end(struct router *router, struct route_mail *mail);
/* Is what it needs of its queue known? It is woken when it is. */
bool port_may_turn(const struct port *port);
/* Look at what its session wrote; bounded. True if there was something. */
bool port_turn(struct router *router, struct port *port, unsigned records);
/* The session makes no sense: nothing of it is looked at any more, and the control thread is told. */
void port_broken(struct port *port, const char *text);
/* All of it is read: let go of it. `silent`: its queue goes. */
void port_gone(struct router *router, struct port *port, bool silent);
/* The same as the thread stops. */
void port_drop(struct port *port);
bool port_is_willing(const struct port *port);
void port_set_willing(struct port *port);
/* Let it have what was written for it. */
void port_commit(struct port *port);
/* Its session was to be rung: if the kernel had no memory for that, it is done later. */
void port_check_rung(struct router *router, const struct port *port);
void port_ring_again(struct router *router, struct port *port);
/* Something moved on its lane: its cursor, or its bell rang. */
void port_rung(struct router *router, struct port *port);
/* Its message was diverted, or not. */
void port_diverted(struct router *router, struct port *port, int result);
struct open *port_open_of(struct port *port, uint64_t delivery);
static inline uint64_t port_next_delivery(const struct port *port)
{
    return port->out.sequence + port->batch.count;
}

/* ---- queue.c ---- */
void queue_add(struct router *router, struct route_mail *mail);
void queue_begin(struct queue *queue);
/* Look for what an earlier ipcd left; bounded. True if there is more. */
bool queue_scan(struct queue *queue);
void queue_set(struct queue *queue, const struct queue_settings *settings);
void queue_free(struct queue *queue);

enum verdict { VERDICT_ACCEPTED, VERDICT_HOLD, VERDICT_NO_ROOM, VERDICT_BROKEN };
enum verdict queue_accept(struct queue *queue, struct port *port, const struct lane_record *in);
/* A letter from another queue. Returns 0 or a negative errno. */
int queue_accept_letter(struct queue *queue, struct route_mail *mail);
/* Its origin knows that it is here, or (mail.result is -EEXIST) keeps it, or (-EAGAIN) is to be asked again. */
void queue_letter_known(struct queue *queue, const struct route_mail *mail);
/* What became of a message that was diverted to the dead-letter queue. */
void queue_diverted(struct queue *queue, struct port *port, int result);
/* Give what is ready to who is willing; bounded. True if something is left to give. */
bool queue_deliver(struct queue *queue);
void queue_ack(struct queue *queue, struct port *port, uint64_t delivery);
void queue_refuse(struct queue *queue, struct port *port, uint64_t delivery, const struct ipc_ack *ack,
                  const char *reason);
void queue_touch(struct queue *queue, struct port *port, uint64_t delivery, uint64_t ns);
/* Everything that a consumer had comes back. */
void queue_take_back(struct queue *queue, struct port *port, unsigned redelivery);
void queue_lease_over(struct queue *queue, struct port *port, uint64_t delivery);
void queue_timer(struct queue *queue, enum timer_kind kind, struct entry entry);
/* Among those that wait, but not as the last of its priority. Returns false if out of memory. */
bool queue_list_between(struct queue *queue, const struct record *head, struct entry entry);
/* It waits again. */
void queue_return(struct queue *queue, struct entry entry, struct record *record, struct record_state state);
/* It leaves for good: done, with its place in the sums. */
void queue_forget(struct queue *queue, uint64_t offset, struct record *record, struct record_state was);
/* It waits, and not to be delivered yet. */
static inline bool queue_is_delayed(const struct queue *queue, const struct record *record)
{
    return atomic_load_explicit(&record->not_before, memory_order_relaxed) > queue->router->boot_ns;
}
void queue_room(struct queue *queue);
void queue_publish(struct queue *queue);
void queue_mend(struct queue *queue);
void letters_sort(struct queue *queue);
uint32_t record_attributes(struct record *record, struct attributes *ret);

/* ---- key.c ---- */
enum key_turn { KEY_FREE, KEY_PARKED, KEY_ELSEWHERE };
/* May a message be delivered to this port? KEY_ELSEWHERE: to *port only, which is the one that has its key's others. */
enum key_turn key_turn(struct queue *queue, struct record *record, struct entry entry, struct port **port,
                       struct key **ret);
void key_opened(struct queue *queue, struct key *key, struct port *port, struct entry entry);
/* One is not open any more; back.number: it waits again. */
void key_closed(struct queue *queue, struct key *key, struct entry back);
/* It was not delivered after all. */
void key_unused(struct queue *queue, struct key *key);
/* A waiting message of it leaves the queue. */
void key_forget(struct queue *queue, struct record *record);
/* It was found open by a scan. */
struct key *key_restore(struct queue *queue, struct record *record, struct port *port);
void keys_clear(struct queue *queue);

/* ---- ids.c ---- */
int ids_init(struct queue *queue);
void ids_done(struct queue *queue);
void ids_hash(const struct queue *queue, const struct attributes *attributes, uint64_t hash[2]);
bool ids_known(const struct queue *queue, const uint64_t hash[2]);
void ids_add(struct queue *queue, const uint64_t hash[2], uint64_t number);

/* ---- letter.c ---- */
/* It becomes a dead letter, or is dropped if there is no place for those. */
void letter_bury(struct queue *queue, struct entry entry, struct record *record, const char *reason);
/* The same for a message that was not accepted, still in its lane's copy at `body`. */
bool letter_divert(struct queue *queue, struct port *port, struct record *record);
/* To the queue `to`; 0: where a dead letter came from. False: it does not say where, or there is no memory. */
bool letter_move(struct queue *queue, struct record *record, uint64_t to, void *work);
/* The same for one that an earlier router was moving. */
void letter_again(struct queue *queue, struct entry entry, struct record *record);
void letter_done(struct router *router, struct route_mail *mail);
/* Has the queue, or port, that it comes from let go of it? False if out of memory. And what that answers (queue may be NULL). */
bool letter_ask(struct queue *queue, const struct origin *letter);
void letter_asked(struct router *router, struct queue *queue, struct route_mail *mail);

/* ---- look.c ---- */
void look_do(struct queue *queue, struct route_mail *mail);
void look_letter_done(void *data, int result);
/* The thread has stopped: what waits for letters is not answered any more. */
void look_drop(struct router *router);

#endif
