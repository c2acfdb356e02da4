/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "broker/core/util/text.h"
#include "broker/gateways/mq/mq.h"

/* What the kernel charges for a place in an mqueue beside the bytes of the message: mq_overview(7). */
#define PLACE_BYTES 128u

struct mq_limits mq_limits;

static uint64_t read_limit(const char *path, uint64_t fallback)
{
    FILE *file = fopen(path, "re");
    uint64_t value = fallback;

    if (file && fscanf(file, "%" SCNu64, &value) != 1)
        value = fallback;
    if (file)
        (void)fclose(file);
    return value;
}

void mq_limits_probe(void)
{
    struct rlimit bytes = {.rlim_cur = RLIM_INFINITY};

    mq_limits.msg_max = read_limit("/proc/sys/fs/mqueue/msg_max", 10);
    mq_limits.msgsize_max = read_limit("/proc/sys/fs/mqueue/msgsize_max", 8192);
    mq_limits.queues_max = read_limit("/proc/sys/fs/mqueue/queues_max", 256);
    (void)getrlimit(RLIMIT_MSGQUEUE, &bytes);
    mq_limits.bytes_max = bytes.rlim_cur == RLIM_INFINITY ? UINT64_MAX : bytes.rlim_cur;
}

bool mq_limits_clamp(uint64_t *messages, uint64_t *message_size, char why[GATEWAY_WHY_SIZE])
{
    uint64_t wanted_messages = *messages, wanted_size = *message_size, fits;
    const char *setting = "fs.mqueue.msg_max";

    if (*message_size > mq_limits.msgsize_max) {
        *message_size = mq_limits.msgsize_max;
        setting = "fs.mqueue.msgsize_max";
    }
    if (*messages > mq_limits.msg_max)
        *messages = mq_limits.msg_max;
    fits = mq_limits.bytes_max / (*message_size + PLACE_BYTES);
    if (*messages > fits && fits > 0) {
        *messages = fits;
        setting = "RLIMIT_MSGQUEUE (ulimit -q, LimitMSGQUEUE=)";
    }
    if (*messages == wanted_messages && *message_size == wanted_size)
        return false;
    (void)snprintf(why, GATEWAY_WHY_SIZE,
                   "the machine allows %" PRIu64 " messages of %" PRIu64 " bytes, not %" PRIu64 " of %" PRIu64
                   "; %s changes that",
                   *messages, *message_size, wanted_messages, wanted_size, setting);
    return true;
}

static void tell(Ipc__Gateway__About *about, const char *name, uint64_t value, const char *advice)
{
    Ipc__Gateway__Limit **limits = reallocarray(about->limits, about->n_limits + 1, sizeof(*limits));
    Ipc__Gateway__Limit *limit = malloc(sizeof(*limit));

    if (limits)
        about->limits = limits;
    if (!limits || !limit) {
        free(limit);
        return;
    }
    ipc__gateway__limit__init(limit);
    limit->name = (char *)(uintptr_t)name;
    limit->value = value;
    limit->advice = (char *)(uintptr_t)advice;
    limits[about->n_limits++] = limit;
}

void mq_limits_tell(struct gateway *gateway, Ipc__Gateway__About *about)
{
    (void)gateway;
    tell(about, "messages of an mqueue", mq_limits.msg_max, "sysctl fs.mqueue.msg_max");
    tell(about, "bytes of a message", mq_limits.msgsize_max, "sysctl fs.mqueue.msgsize_max");
    tell(about, "mqueues of the machine", mq_limits.queues_max, "sysctl fs.mqueue.queues_max");
    tell(about, "bytes of all mqueues of the user", mq_limits.bytes_max,
         "RLIMIT_MSGQUEUE: ulimit -q, LimitMSGQUEUE=");
}
