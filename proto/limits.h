/* SPDX-License-Identifier: Apache-2.0
 *
 * Every limit of the system, and what the worst case adds up to. Names that end in _DEFAULT may be changed in
 * the configuration up to the limit of the same name without _DEFAULT; the others are compiled in.
 */
#ifndef IPC_PROTO_LIMITS_H
#define IPC_PROTO_LIMITS_H

#include <assert.h>
#include <stdint.h>

/* Names */
#define IPC_MAX_NAME_SIZE    255u /* topic name or pattern, bytes without the final 0 */
#define IPC_MAX_NAME_LEVELS  32u
#define IPC_MAX_CLIENT_NAME  63u  /* what a client calls itself */
#define IPC_MAX_ADDRESS_SIZE 107u /* sun_path without the final 0 */

/* Lanes */
#define IPC_MIN_RING_SIZE     4096u
#define IPC_MAX_RING_SIZE     (UINT32_C(1) << 28)
#define IPC_RING_SIZE_DEFAULT (UINT32_C(1) << 18)
#define IPC_MAX_LANE_READERS  208u /* slots in a control page */
/* A record, its word included, is at most half the ring. */
#define IPC_MAX_MESSAGE_SIZE  (IPC_MAX_RING_SIZE / 2 - 8)
#define IPC_MAX_HEADERS       64u
#define IPC_MAX_HEADERS_SIZE  65528u /* the whole header block */

/* Queues */
#define IPC_PRIORITIES                 10u /* 0, the default and lowest, to 9 */
#define IPC_MAX_QUEUES                 16384u
#define IPC_MAX_PORTS                  32768u
#define IPC_MAX_REASON_SIZE            255u
#define IPC_MAX_PREFETCH               65536u /* deliveries that a consumer may have open */
#define IPC_PREFETCH_DEFAULT           256u
#define IPC_VERDICT_RING_SIZE          4096u  /* router -> producer */
#define IPC_ACK_RING_SIZE              65536u /* consumer -> router */
#define IPC_QUEUE_MESSAGE_SIZE_DEFAULT 65536u
#define IPC_MAX_QUEUE_MESSAGE_SIZE     (UINT32_C(1) << 26)
#define IPC_QUEUE_BYTES_DEFAULT        (UINT64_C(64) << 20)
#define IPC_MAX_QUEUE_BYTES            (UINT64_C(8) << 30) /* memory of one queue */
#define IPC_MAX_ATTEMPTS               1000u
#define IPC_MAX_DEDUP_WINDOW           (UINT32_C(1) << 20) /* message ids that a queue remembers */
/* A barrier in all other processes costs as much as the fences of thousands of commits: who sleeps once within so many
 * records has the other end of its port fence. */
#define IPC_PORT_STREAM_RECORDS        4096u
#define IPC_MAX_ROUTERS                64u

/* Shared segments */
#define IPC_MAX_SHARED_SEGMENTS 4096u
#define IPC_MAX_SHARED_SIZE     (UINT32_C(1) << 30) /* bytes of users */
#define IPC_MAX_PERMITS         256u
#define IPC_ATTACHMENTS_DEFAULT 4096u
#define IPC_MAX_ATTACHMENTS     32768u

/* Control socket */
#define IPC_MAX_FRAME_SIZE  8192u /* one packet, frame header included */
#define IPC_MAX_FRAME_FDS   4u
#define IPC_MAX_UNPACK_SIZE (4 * IPC_MAX_FRAME_SIZE) /* memory that unpacking one frame may take */
#define IPC_NOTICE_WINDOW   8u /* notices that carry a descriptor and are not confirmed, per session */

/* Per uid (configuration [limits]) */
#define IPC_SESSIONS_DEFAULT         2048u
#define IPC_CONNECTS_DEFAULT         5000u  /* per second */
#define IPC_HELLO_TIMEOUT_DEFAULT    30u    /* seconds from connect to HELLO */
#define IPC_TOPICS_DEFAULT           16384u /* advertised names, over all sessions of the uid */
#define IPC_SUBSCRIPTIONS_DEFAULT    16384u
#define IPC_LANES_DEFAULT            32768u /* pairings of a writer and a reader, charged to the reader */
#define IPC_QUEUES_DEFAULT           4096u
#define IPC_PORTS_DEFAULT            16384u
#define IPC_SEGMENT_BYTES_DEFAULT    (UINT64_C(4) << 30)
#define IPC_QUEUE_BYTES_USER_DEFAULT (UINT64_C(4) << 30) /* memory of all queues of a user */
#define IPC_MAX_SESSIONS             8192u               /* over all uids */
#define IPC_MAX_TOPICS               65536u
#define IPC_MAX_PAIRINGS             262144u

/* Waiting */
#define IPC_MAX_WAITV            128u                 /* FUTEX_WAITV_MAX */
#define IPC_WAIT_LANES_MAX       (IPC_MAX_WAITV - 2u) /* beside the board's mail and the news of other threads */
#define IPC_NET_NS               UINT64_C(5000000000) /* the bounded wait below every sleep */
#define IPC_BLOCK_MAX_DEFAULT_NS UINT64_C(1000000000)

/* The worst case. A router holds its epoll, the eventfd of its mailbox, and a timer. A session holds in the core: its
 * socket, its pidfd, its board; one descriptor for each 63 lanes that it reads; one for each lane that it writes; one
 * bell for each uid that writes to one of its subscriptions; three for each port of a queue, and one more if it asked
 * for a bell. A client keeps its socket and its bells: it closes every other descriptor after mapping. */
#define IPC_CORE_FDS_PER_SESSION 3u
#define IPC_CORE_FDS_BASE        16u
#define IPC_CORE_FDS_PER_ROUTER  4u
#define IPC_CORE_FDS_PER_PORT    5u
/* LimitNOFILE of the service, for ipcd and for ipcd-run, which keeps all of them, too. */
#define IPC_CORE_NOFILE          524288u
static_assert(IPC_CORE_FDS_BASE + IPC_CORE_FDS_PER_ROUTER * IPC_MAX_ROUTERS +
                      IPC_CORE_FDS_PER_SESSION * IPC_MAX_SESSIONS + IPC_MAX_TOPICS + IPC_MAX_PAIRINGS / 63 +
                      IPC_MAX_SESSIONS + IPC_CORE_FDS_PER_PORT * IPC_MAX_PORTS + IPC_MAX_QUEUES +
                      IPC_MAX_SHARED_SEGMENTS <
                  IPC_CORE_NOFILE,
              "and some for the bells");
static_assert(IPC_MAX_FRAME_FDS <= 253, "SCM_MAX_FD");
static_assert(IPC_NOTICE_WINDOW * IPC_MAX_FRAME_FDS <= 64,
              "descriptors in flight count against RLIMIT_NOFILE");
static_assert(IPC_MAX_MESSAGE_SIZE <= 0x0fffffff, "the size field of a record word has 28 bits");
static_assert((IPC_MAX_RING_SIZE & (IPC_MAX_RING_SIZE - 1)) == 0, "a ring is a power of two");

#endif
