/* SPDX-License-Identifier: Apache-2.0
 *
 * From a packet to the function that works on it. Everything a client may get wrong in the frame is caught here.
 */
#include "broker/core/control/request.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <ipc/error.h>

#include "broker/core/control/access.h"
#include "broker/core/control/drain.h"
#include "broker/core/control/notice.h"
#include "broker/core/control/pairing.h"
#include "broker/core/control/registry.h"
#include "broker/core/control/session.h"
#include "broker/core/util/fd.h"
#include "broker/core/util/log.h"
#include "broker/core/util/text.h"

#define TYPE(name) IPC__CONTROL__TYPE__##name

static void welcome_to(struct broker *broker, struct session *session, uint64_t id)
{
    Ipc__Control__Welcome welcome = IPC__CONTROL__WELCOME__INIT;
    _cleanup_(fd_closep) int board = -1;

    if (session->board_fd >= 0) {
        board = fd_reopen_readonly(session->board_fd);
        if (board < 0) {
            session_fail(broker, session, id, board, "the broker could not hand out the session's board: %s",
                         strerror(-board));
            session_end(broker, session, IPC_REASON_LIMIT, "no descriptor for its board");
            return;
        }
    }
    welcome.version = IPC_CONTROL_VERSION;
    welcome.features = session->features & (IPC_FEATURE_MEMBARRIER | IPC_FEATURE_WAITV);
    welcome.session = session->peer.session;
    welcome.uid = session->peer.uid;
    welcome.ring_size_max = broker->options.config->ring_size_max;
    welcome.server = (char[]){"ipcd " IPCD_VERSION};
    welcome.instance = broker->instance;
    session_reply(broker, session, TYPE(WELCOME), id, &welcome.base, board);
}

void request_hello(struct broker *broker, struct session *session, uint64_t id,
                   const Ipc__Control__Hello *hello)
{
    struct log_about about = {session->peer.session, session->peer.uid, session->peer.pid, session->peer.name,
                              NULL};
    struct refusal refusal;

    if (session->state == SESSION_OPEN) { /* of an ipcd that was killed before its answer went out */
        welcome_to(broker, session, id);
        return;
    }
    text_clean(session->peer.name, sizeof(session->peer.name), hello->name);
    if (hello->version_min > IPC_CONTROL_VERSION || hello->version_max < IPC_CONTROL_VERSION) {
        session_fail(
            broker, session, id, -EPROTONOSUPPORT,
            "the client speaks versions %" PRIu32 " to %" PRIu32
            " of the control protocol, the broker (ipcd %s) speaks %u: use a libipc of the same release",
            hello->version_min, hello->version_max, IPCD_VERSION, IPC_CONTROL_VERSION);
        session_end(broker, session, IPC_REASON_PROTOCOL, "no version of the control protocol in common");
        return;
    }
    if (hello->fingerprint != IPC_LAYOUT_FINGERPRINT) {
        session_fail(broker, session, id, -EPROTONOSUPPORT,
                     "the client's layout of shared memory (%016" PRIx64 ") is not the broker's (%016" PRIx64
                     ", ipcd %s): use a libipc of the same release",
                     hello->fingerprint, (uint64_t)IPC_LAYOUT_FINGERPRINT, IPCD_VERSION);
        session_end(broker, session, IPC_REASON_PROTOCOL, "another layout of shared memory");
        return;
    }
    if (!hello->admin && drain_refuses(broker, session, id, "sessions")) {
        session_end(broker, session, IPC_REASON_SHUTDOWN, NULL);
        return;
    }
    if (!access_check_any(broker, session, id)) {
        session_end(broker, session, IPC_REASON_DENIED, "the policy allows it nothing");
        return;
    }
    session->hello = id;
    session->admin = hello->admin;
    session->features = hello->features;
    if (!broker->options.membarrier)
        session->features &= ~IPC_FEATURE_MEMBARRIER;
    if (session_open(broker, session, &refusal) < 0) {
        session_refuse(broker, session, id, &refusal);
        session_end(broker, session, IPC_REASON_LIMIT, refusal.text);
        return;
    }
    log_write(LOG_SESSION_BEGUN, &about, "session begun%s", session->admin ? " (admin)" : "");
    session_event(broker, session, EVENT_CAME, session->admin ? "a tool" : NULL);
    welcome_to(broker, session, id);
}

static void goodbye(struct broker *broker, struct session *session, uint64_t id)
{
    const Ipc__Control__Done done = IPC__CONTROL__DONE__INIT;

    session_reply(broker, session, TYPE(DONE), id, &done.base, -1);
    session_end(broker, session, IPC_REASON_CLOSED, NULL);
}

static void confirm(struct broker *broker, struct session *session, const Ipc__Control__Confirm *message)
{
    struct pairing *pairing = registry_pairing(broker, message->pairing);

    if (message->notice != TYPE(READER_ADD) && message->notice != TYPE(READER_DEL) &&
        message->notice != TYPE(LANE_ADD) && message->notice != TYPE(LANE_DEL)) {
        session_end(broker, session, IPC_REASON_PROTOCOL, "it confirmed a notice of no known kind");
        return;
    }
    if (pairing)
        pairing_confirm(broker, session, pairing, message->notice, message->result);
    notice_mark(broker, session);
}

static void detach(struct broker *broker, struct session *session, const Ipc__Control__Detach *message)
{
    struct pairing *pairing = registry_pairing(broker, message->pairing);
    struct log_about about = {session->peer.session, session->peer.uid, session->peer.pid, session->peer.name,
                              NULL};
    unsigned reason = message->reason;
    bool writer;

    if (!pairing)
        return;
    writer = pairing->lane->session == session;
#ifndef IPC_PLANT_DETACH_OTHERS
    if (!writer && !(pairing->subscription && pairing->subscription->session == session))
        return; /* not its to end */
#endif
    if (reason != IPC_REASON_SLOW && reason != IPC_REASON_CORRUPT && reason != IPC_REASON_LIMIT)
        reason = IPC_REASON_CLOSED;
    about.reason = reason == IPC_REASON_SLOW      ? "slow"
                   : reason == IPC_REASON_CORRUPT ? "corrupt"
                   : reason == IPC_REASON_LIMIT   ? "limit"
                                                  : "closed";
    log_write(LOG_DETACHED, &about,
              "the %s of topic %s ended pairing %" PRIu64 " of session %" PRIu64
              " (writer) and session %" PRIu64 " (reader)",
              writer ? "writer" : "reader", pairing->lane->topic->name, pairing->id,
              pairing->lane->writer.session, pairing->reader_session);
    pairing_detach(broker, pairing, reason);
}

static void dispatch(struct broker *broker, struct session *session, const struct ipc_frame *frame)
{
    const void *message = frame->message;

    switch (frame->type) {
    case TYPE(ADVERTISE):
        request_advertise(broker, session, frame->id, message);
        break;
    case TYPE(UNADVERTISE):
        request_unadvertise(broker, session, frame->id, message);
        break;
    case TYPE(SUBSCRIBE):
        request_subscribe(broker, session, frame->id, message);
        break;
    case TYPE(UNSUBSCRIBE):
        request_unsubscribe(broker, session, frame->id, message);
        break;
    case TYPE(BELL):
        request_bell(broker, session, frame->id, message);
        break;
    case TYPE(LIST):
        request_list(broker, session, frame->id, message);
        break;
    case TYPE(STATUS):
        request_status(broker, session, frame->id);
        break;
    case TYPE(GOODBYE):
        goodbye(broker, session, frame->id);
        break;
    case TYPE(QUEUE_CREATE):
        request_queue_create(broker, session, frame->id, message);
        break;
    case TYPE(QUEUE_SET):
        request_queue_set(broker, session, frame->id, message);
        break;
    case TYPE(QUEUE_REMOVE):
        request_queue_remove(broker, session, frame->id, message);
        break;
    case TYPE(QUEUE_DO):
        request_queue_do(broker, session, frame->id, message);
        break;
    case TYPE(PORT_OPEN):
        request_port_open(broker, session, frame->id, message);
        break;
    case TYPE(PORT_CLOSE):
        request_port_close(broker, session, frame->id, message);
        break;
    case TYPE(SEGMENT_OPEN):
        request_segment_open(broker, session, frame->id, message);
        break;
    case TYPE(SEGMENT_CLOSE):
        request_segment_close(broker, session, frame->id, message);
        break;
    case TYPE(POLICY):
        request_policy(broker, session, frame->id, message);
        break;
    case TYPE(PORT_BELL):
        request_port_bell(broker, session, frame->id, message);
        break;
    case TYPE(CONFIRM):
        confirm(broker, session, message);
        break;
    case TYPE(DETACH):
        detach(broker, session, message);
        break;
    default:
        session_end(broker, session, IPC_REASON_PROTOCOL,
                    "it sent a frame of a type that only the broker sends");
        break;
    }
}

void request_handle(struct broker *broker, struct session *session, const void *packet, size_t size)
{
    struct ipc_frame frame;
    int result = ipc_frame_unpack(&frame, &broker->arena, packet, size);
    bool word, again;

    if (result < 0) {
        session_end(broker, session, IPC_REASON_PROTOCOL,
                    result == -EMSGSIZE ? "it sent a frame that takes too much memory to read"
                                        : "it sent bytes that are not a frame of the control protocol");
        return;
    }
    if (session->state == SESSION_REFUSED) {
        session_fail(broker, session, frame.id, -EDQUOT, "%s",
                     session->refusal ? session->refusal : "a limit is reached");
        session_end(broker, session, IPC_REASON_LIMIT, NULL);
        return;
    }
    word = frame.type == TYPE(CONFIRM) || frame.type == TYPE(DETACH);
    if (!word && frame.id == 0) {
        session_end(broker, session, IPC_REASON_PROTOCOL, "it sent a request without a number");
        return;
    }
    again = session->resumed && frame.type == TYPE(HELLO) &&
            atomic_load_explicit(&session->row->request, memory_order_relaxed) == frame.id;
    if (!again && (session->state == SESSION_NEW) != (frame.type == TYPE(HELLO))) {
        session_end(broker, session, IPC_REASON_PROTOCOL,
                    session->state == SESSION_NEW ? "it did not begin with HELLO" : "it said HELLO twice");
        return;
    }
    if (session->gone && !word && frame.type != TYPE(GOODBYE))
        return;
    broker->requests += !word;
    broker->state.header->requests = broker->requests;
    if (frame.type == TYPE(HELLO))
        request_hello(broker, session, frame.id, (const Ipc__Control__Hello *)(const void *)frame.message);
    else
        dispatch(broker, session, &frame);
}
