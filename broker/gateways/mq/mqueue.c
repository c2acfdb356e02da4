/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/gateways/mq/mq.h"

const char *mqueue_name_check(const char *name)
{
    if (name[0] != '/' || !name[1] || strchr(name + 1, '/'))
        return "the name of an mqueue is '/' and then no more of them, such as /orders";
    return NULL;
}

/* USER, USER:GROUP or :GROUP, by name or number. */
static int owner_of(const char *owner, uid_t *uid, gid_t *gid)
{
    char user[64], *colon, *end = NULL;
    const struct passwd *passwd;
    const struct group *group;

    *uid = (uid_t)-1;
    *gid = (gid_t)-1;
    (void)snprintf(user, sizeof(user), "%s", owner);
    colon = strchr(user, ':');
    if (colon)
        *colon++ = '\0';
    if (user[0]) {
        passwd = getpwnam(user);
        *uid = passwd ? passwd->pw_uid : (uid_t)strtoul(user, &end, 10);
        if (!passwd && *end)
            return -ENOENT;
    }
    if (colon && *colon) {
        group = getgrnam(colon);
        *gid = group ? group->gr_gid : (gid_t)strtoul(colon, &end, 10);
        if (!group && *end)
            return -ENOENT;
    }
    return 0;
}

static void explain(char why[GATEWAY_WHY_SIZE], const char *name, int error)
{
    switch (error) {
    case ENOENT:
        (void)snprintf(why, GATEWAY_WHY_SIZE, "there is no mqueue %s, and create = no", name);
        break;
    case EMFILE:
        (void)snprintf(why, GATEWAY_WHY_SIZE,
                       "mqueue %s: its user has no room for another one (%" PRIu64
                       " bytes); RLIMIT_MSGQUEUE (ulimit -q, LimitMSGQUEUE=) changes that",
                       name, mq_limits.bytes_max);
        break;
    case ENOSPC:
        (void)snprintf(why, GATEWAY_WHY_SIZE,
                       "mqueue %s: the machine has %" PRIu64
                       " mqueues, and no more are allowed; fs.mqueue.queues_max changes that",
                       name, mq_limits.queues_max);
        break;
    case EACCES:
        (void)snprintf(why, GATEWAY_WHY_SIZE,
                       "mqueue %s may not be opened by this user; see its mode and owner", name);
        break;
    default:
        (void)snprintf(why, GATEWAY_WHY_SIZE, "mqueue %s: %s", name, strerror(error));
    }
}

static int make(struct gateway_binding *binding, const char *name, int access, char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    uint64_t messages = settings->messages, message_size = settings->message_size;
    uid_t uid;
    gid_t gid;
    mqd_t fd;

    if (owner_of(settings->owner, &uid, &gid) < 0) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "owner = %s: there is no such user or group", settings->owner);
        return -EINVAL;
    }
    if (mq_limits_clamp(&messages, &message_size, why))
        gateway_binding_say(binding, "mqueue %s: %s", name, why);
    why[0] = '\0';
    if (gateway_made(binding->gateway, name) < 0) {
        (void)snprintf(why, GATEWAY_WHY_SIZE, "mqueue %s: what is made cannot be written to %s", name,
                       binding->gateway->state_path);
        return -EIO;
    }
    const struct mq_attr attributes = {.mq_maxmsg = (long)messages, .mq_msgsize = (long)message_size};

    fd = mq_open(name, access | O_CREAT | O_EXCL | O_NONBLOCK | O_CLOEXEC, settings->mode, &attributes);
    if (fd < 0)
        return -errno;
    /* Not as the umask has it. */
    if (fchmod(fd, (mode_t)settings->mode) == 0 &&
        ((uid == (uid_t)-1 && gid == (gid_t)-1) || fchown(fd, uid, gid) == 0))
        return fd;
    (void)snprintf(why, GATEWAY_WHY_SIZE, "mqueue %s cannot be given to %s: %s", name, settings->owner,
                   strerror(errno));
    (void)mq_close(fd);
    (void)mq_unlink(name);
    return -EPERM;
}

int mqueue_open(struct mqueue *mqueue, struct gateway_binding *binding, const char *name, int access,
                void (*ready)(struct gateway_source *source, uint32_t events), char why[GATEWAY_WHY_SIZE])
{
    const struct mq_settings *settings = binding->settings;
    struct mq_attr attributes;
    mqd_t fd;

    why[0] = '\0';
    *mqueue = (struct mqueue){.source = {.fd = -1}};
    fd = mq_open(name, access | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        fd = -errno;
    if (fd == -ENOENT && settings->create)
        fd = make(binding, name, access, why);
    if (fd == -EEXIST) { /* made by somebody else just now */
        gateway_unmade(binding->gateway, name);
        fd = mq_open(name, access | O_NONBLOCK | O_CLOEXEC);
        fd = fd < 0 ? -errno : fd;
    }
    if (fd < 0) {
        if (!why[0])
            explain(why, name, -fd);
        return fd;
    }
    (void)mq_getattr(fd, &attributes);
    mqueue->source.fd = fd;
    mqueue->source.ready = ready;
    mqueue->source.context = mqueue;
    mqueue->binding = binding;
    mqueue->messages = (size_t)attributes.mq_maxmsg;
    mqueue->message_size = (size_t)attributes.mq_msgsize;
    return 0;
}

int mqueue_find(struct mqueue *mqueue, struct gateway_binding *binding, const char *name,
                void (*ready)(struct gateway_source *source, uint32_t events))
{
    struct mq_attr attributes;
    mqd_t fd = mq_open(name, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

    *mqueue = (struct mqueue){.source = {.fd = -1}};
    if (fd < 0)
        return -errno;
    (void)mq_getattr(fd, &attributes);
    *mqueue = (struct mqueue){.source = {.fd = fd, .ready = ready, .context = mqueue},
                              .binding = binding,
                              .messages = (size_t)attributes.mq_maxmsg,
                              .message_size = (size_t)attributes.mq_msgsize};
    return 0;
}

void mqueue_close(struct mqueue *mqueue)
{
    if (mqueue->source.fd < 0 || !mqueue->binding)
        return;
    gateway_unwatch(mqueue->binding->gateway, &mqueue->source);
    (void)mq_close(mqueue->source.fd);
    mqueue->source.fd = -1;
}

int mqueue_watch(struct mqueue *mqueue, uint32_t events)
{
    return gateway_watch(mqueue->binding->gateway, &mqueue->source, events);
}

void mqueue_unmake(const char *name)
{
    (void)mq_unlink(name);
}

int mq_why(char why[GATEWAY_WHY_SIZE], const char *what, int result, const struct ipc_error *error)
{
    if (result < 0)
        (void)snprintf(why, GATEWAY_WHY_SIZE, "%s: %s", what,
                       error && error->text[0] ? error->text : strerror(-result));
    return result;
}
