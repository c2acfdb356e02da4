/* SPDX-License-Identifier: Apache-2.0
 *
 * The gateways beside ipcd: started when it is ready, started again when they end, each after a while of its own, and ended
 * before it. That one of them dies, or cannot be run, is of no concern to ipcd.
 */
#include "broker/run/run.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define RESTART_NS      UINT64_C(10000000) /* doubled for each that did not get ready */
#define RESTART_DOUBLED 10u                /* times: up to 10 s */

static void start(struct run_gateway *gateway, const struct run_gateways *gateways)
{
    const char *argv[8] = {gateway->path, "--address", gateways->address};
    size_t n = 3;
    const struct environment_change changes[] = {
        {"IPC_ADDRESS", gateways->address},
        {"NOTIFY_SOCKET", gateways->notify},
        {"WATCHDOG_PID", NULL},
        {"WATCHDOG_USEC", NULL},
        {"LISTEN_FDS", NULL},
        {"LISTEN_PID", NULL},
        {"LISTEN_FDNAMES", NULL},
    };
    char **environment = environment_new(changes, sizeof(changes) / sizeof(changes[0]));
    const struct child_plan plan = {
        .argv = argv, .environment = environment, .listen_fd = -1, .foreground_signals = true};
    int result;

    if (gateway->config) {
        argv[n++] = "--config";
        argv[n++] = gateway->config;
    }
    if (gateways->log_level) {
        argv[n++] = "--log-level";
        argv[n] = gateways->log_level;
    }
    result = environment ? child_start(&gateway->child, &plan) : -ENOMEM;
    environment_free(environment);
    gateway->restart_at_ns = 0;
    gateway->ready = false;
    if (result == 0)
        return;
    log_write(LOG_CHILD, NULL, "%s cannot be run: %s", gateway->path, strerror(-result));
    gateway->settled = true;
    if (result != -ENOENT && result != -EACCES)
        gateway->restart_at_ns = time_monotonic_ns() + (RESTART_NS << RESTART_DOUBLED);
}

void gateways_start(struct run_gateways *gateways)
{
    for (size_t i = 0; i < gateways->count; i++)
        start(&gateways->each[i], gateways);
}

bool gateways_settled(const struct run_gateways *gateways)
{
    for (size_t i = 0; i < gateways->count; i++)
        if (!gateways->each[i].settled)
            return false;
    return true;
}

static struct run_gateway *gateway_of(struct run_gateways *gateways, pid_t pid)
{
    for (size_t i = 0; i < gateways->count; i++)
        if (pid > 0 && gateways->each[i].child.pid == pid)
            return &gateways->each[i];
    return NULL;
}

bool gateways_have(const struct run_gateways *gateways, pid_t pid)
{
    return gateway_of((struct run_gateways *)(uintptr_t)gateways, pid) != NULL;
}

bool gateways_run(const struct run_gateways *gateways)
{
    for (size_t i = 0; i < gateways->count; i++)
        if (gateways->each[i].child.pid)
            return true;
    return false;
}

void gateways_ready(struct run_gateways *gateways, pid_t pid)
{
    struct run_gateway *gateway = gateway_of(gateways, pid);

    if (!gateway)
        return;
    gateway->ready = gateway->settled = true;
    gateway->failures = 0;
}

void gateways_signal(struct run_gateways *gateways, int signal)
{
    gateways->stopping = true;
    for (size_t i = 0; i < gateways->count; i++) {
        gateways->each[i].restart_at_ns = 0;
        child_signal(&gateways->each[i].child, signal);
    }
}

void gateways_reload(const struct run_gateways *gateways)
{
    for (size_t i = 0; i < gateways->count; i++)
        child_signal(&gateways->each[i].child, SIGHUP);
}

void gateways_on_end(struct run_gateways *gateways, size_t index)
{
    struct run_gateway *gateway = &gateways->each[index];
    char how[80];
    int status = child_reap(&gateway->child, how, sizeof(how));

    gateway->settled = true;
    if (gateways->stopping) {
        if (status != 0)
            log_write(LOG_CHILD, NULL, "%s %s while it was stopping", gateway->path, how);
        return;
    }
    log_write(LOG_CHILD, NULL, "%s %s; it is started again", gateway->path, how);
    gateway->restart_at_ns = time_monotonic_ns() + (RESTART_NS << gateway->failures);
    if (gateway->failures < RESTART_DOUBLED)
        gateway->failures++; /* until it is ready */
}

uint64_t gateways_due(const struct run_gateways *gateways)
{
    uint64_t at_ns = 0;

    for (size_t i = 0; i < gateways->count; i++) {
        uint64_t restart_at_ns = gateways->each[i].restart_at_ns;

        if (restart_at_ns && (!at_ns || restart_at_ns < at_ns))
            at_ns = restart_at_ns;
    }
    return at_ns;
}

void gateways_restart(struct run_gateways *gateways)
{
    uint64_t now_ns = time_monotonic_ns();

    for (size_t i = 0; i < gateways->count; i++)
        if (gateways->each[i].restart_at_ns && gateways->each[i].restart_at_ns <= now_ns)
            start(&gateways->each[i], gateways);
}
