/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "libipc/session/session.h"

void event_add(struct ipc_connection *connection, unsigned kind, unsigned reason, const struct ipc_peer *peer,
               const char *topic)
{
    if (!connection->events)
        connection->events = calloc(EVENTS_MAX, sizeof(*connection->events));
    if (!connection->events) {
        connection->events_lost = true;
        return;
    }
    if (connection->events_head - connection->events_tail == EVENTS_MAX) {
        connection->events_tail++;
        connection->events_lost = true;
    }
    struct ipc_event *event = &connection->events[connection->events_head++ % EVENTS_MAX];
    *event = (struct ipc_event){.kind = kind, .reason = reason};
    if (peer)
        event->peer = *peer;
    snprintf(event->topic, sizeof(event->topic), "%s", topic ? topic : "");
}

int ipc_connection_next_event(ipc_connection *connection, struct ipc_event *ret)
{
    if (!connection || !ret)
        return -EINVAL;
    if (guard_foreign(connection))
        return -ECHILD;
    int result = 0;
    pthread_mutex_lock(&connection->lock);
    if (connection->events_lost) {
        connection->events_lost = false;
        result = -EOVERFLOW;
    } else if (connection->events_tail < connection->events_head) {
        *ret = connection->events[connection->events_tail++ % EVENTS_MAX];
        result = 1;
    }
    pump_unlock(connection);
    return result;
}
