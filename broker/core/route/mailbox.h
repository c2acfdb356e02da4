/* SPDX-License-Identifier: Apache-2.0
 *
 * A mailbox: any thread puts mail in, one takes all of it out, in order. No lock.
 */
#ifndef IPCD_CORE_ROUTE_MAILBOX_H
#define IPCD_CORE_ROUTE_MAILBOX_H

#include "broker/core/route/route.h"

struct mailbox {
    _Atomic(struct route_mail *) newest;
    struct route_mail *oldest; /* the reader's: taken out, and not read yet */
};

/* Returns true if it was empty: then the reader has to be woken. */
static inline bool mailbox_put(struct mailbox *box, struct route_mail *mail)
{
    struct route_mail *newest = atomic_load_explicit(&box->newest, memory_order_relaxed);

    do
        mail->next = newest;
    while (!atomic_compare_exchange_weak_explicit(&box->newest, &newest, mail, memory_order_release,
                                                  memory_order_relaxed));
    return !newest;
}

static inline struct route_mail *mailbox_take(struct mailbox *box)
{
    struct route_mail *mail = box->oldest;

    if (!mail) {
        /* Pairs with the release in mailbox_put(). */
        struct route_mail *newest = atomic_exchange_explicit(&box->newest, NULL, memory_order_acquire);

        while (newest) {
            struct route_mail *next = newest->next;

            newest->next = mail;
            mail = newest;
            newest = next;
        }
    }
    if (mail)
        box->oldest = mail->next;
    return mail;
}

#endif
