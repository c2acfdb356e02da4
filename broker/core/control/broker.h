/* SPDX-License-Identifier: Apache-2.0
 *
 * The control thread's whole state. One thread; no function here blocks.
 */
#ifndef IPCD_CORE_CONTROL_BROKER_H
#define IPCD_CORE_CONTROL_BROKER_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/control/events.h"
#include "broker/core/control/keep.h"
#include "broker/core/control/quota.h"
#include "broker/core/control/records.h"
#include "broker/core/control/state.h"
#include "broker/core/util/config.h"
#include "broker/core/util/hash.h"
#include "broker/core/util/list.h"
#include "proto/frame.h"

struct broker_options {
    const struct config *config;
    int config_fd;        /* of config_keep(), or -1; the broker's */
    const char *guardian; /* who keeps this broker alive: "ipcd-run", "systemd", "" */
    bool membarrier;      /* sessions may rely on membarrier */
    bool peer_pidfd;      /* try SO_PEERPIDFD */
    bool passrights;      /* refuse descriptors by SO_PASSRIGHTS */
};

struct broker {
    struct broker_options options;
    char instance[33];
    uint64_t started_ns;
    uint64_t secret[2]; /* of hash_string */

    /* The loop. */
    int epoll_fd, listen_fd, signal_fd, watchdog_fd, retry_fd, reserve_fd, worker_fd, routers_fd;
    bool stopping;
    uint64_t drain_until_ns; /* 0: it does not stop yet, or at once */
    bool retry_armed, retry_later;
    bool listen_paused;
    bool missed;                       /* some subscription did */
    uint64_t turned_away, full_log_ns; /* connections since that was logged; when it is logged again */
    struct worker *worker;
    struct routers *routers;

    struct keep keep;

    /* The registry. Numbers count up from 1. */
    struct state state;
    struct hash sessions_by_id, lanes_by_id, subscriptions_by_id, pairings_by_id, cells_by_id, topics_by_name;
    struct hash queues_by_id, queues_by_name, ports_by_id, shared_by_name;
    struct list sessions, lanes, subscriptions, pairings, queues, ports, shared;
    struct list wildcards; /* struct subscription.by_match */
    size_t n_topics;
    struct quota quota;

    struct list dirty, stalled, ended, refused;
    struct list silent;          /* sessions that have not said HELLO yet, the oldest first */
    struct list overdue;         /* sessions that are to be ended for what they do not confirm */
    struct list orphans;         /* cells whose session is gone */
    struct list unwatched;       /* sessions of an earlier ipcd, not in the loop yet */
    bool watch_later;            /* something is lacking for those: try again in a moment */
    struct leftovers *leftovers; /* of recover.c: descriptors of an earlier ipcd that may belong to nothing */
    unsigned n_refused;

    struct events events;

    /* Counters. */
    uint64_t requests, ended_badly, denied, n_boards;
    uint64_t round; /* of the loop */
    uint64_t work;  /* records looked at for the request at hand: budget.h */

    /* One frame at a time is received, worked on and sent. */
    _Alignas(16) unsigned char rx[IPC_MAX_FRAME_SIZE + 1];
    unsigned char tx[IPC_MAX_FRAME_SIZE];
    struct ipc_frame_arena arena;
};

/* On success everything of the broker is there but the listening socket; on failure nothing is left. Returns 0 or a
 * negative errno, after it was logged. */
int broker_new(struct broker **ret, const struct broker_options *options);

/* Ends what is left without a word to anybody. NULL is allowed. Returns NULL. */
struct broker *broker_free(struct broker *broker);

#endif
