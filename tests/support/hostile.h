/* SPDX-License-Identifier: Apache-2.0
 *
 * For tests with hostile clients: a real ipcd under a uid of its own, and clients under others. Who connects decides by
 * its effective uid at that moment, so one process can hold sessions of several users; what the kernel decides later (by
 * /proc, say) is tried by children that became that user for good.
 */
#ifndef IPC_TESTS_HOSTILE_H
#define IPC_TESTS_HOSTILE_H

#include "tests/proc/test_broker_raw.h"
#include "tests/support/broker.h"

#include "libipc/lane/segment.h"
#include "libipc/lane/writer.h"

enum who { WHO_BROKER, WHO_ATTACKER, WHO_PEER, WHO_CALM, WHO_COUNT };

struct hostile {
    struct raw_broker raw;
    struct broker_counts idle; /* what the core has of everything when nobody is there */
    char log[96];
    uid_t uid[WHO_COUNT];
};
extern struct hostile hostile;
extern const char *hostile_argument; /* one more for ipcd, or NULL */
extern rlim_t hostile_files;         /* that ipcd may have open; 0: as many as we */

/* Start ipcd, all of `uid` being the same user or each another; `config` (or NULL) is added to ipcd.conf. */
void hostile_start(bool same_uid, const char *config);

/* End it: it has as much of everything as at first, leaves with 0, and no sanitizer had anything to say. */
void hostile_stop(void);

/* Fixtures for cmocka: a broker, and everybody is another user. */
int hostile_setup(void **state);
int hostile_teardown(void **state);

/* main() of a test program; not for root, it is skipped. */
int hostile_run(const char *what, int (*tests)(void));

/* In a child: become that user for good. */
void hostile_become(enum who who);

/* Sessions of that user, made by this process: a raw one, a handle of libipc. */
void hostile_connect(struct raw_client *client, enum who who);
void hostile_hello(struct raw_client *client, enum who who, const char *name);
ipc_connection *hostile_connection(enum who who);

/* ipcd's log has a line with all of these words (the last is NULL). */
void hostile_log_expect(const char *first, ...) __attribute__((sentinel));

/* A frame whose message is given by its bytes, and descriptors with it. Returns as sendmsg(2). */
ssize_t hostile_send(struct raw_client *client, const void *packet, size_t size, const int *fds, size_t n);

/* The next frame of that type; others are passed over. */
const void *hostile_wait(struct raw_client *client, unsigned type);

/* Ask for a lane, and do not wait for it. */
void hostile_advertise(struct raw_client *client, const char *topic, uint32_t ring_size);

/* Requests, with whatever notices come before their answers passed over. */
void hostile_unadvertise(struct raw_client *client, uint64_t lane);
uint64_t hostile_subscribe(struct raw_client *client, const char *pattern, unsigned start, unsigned slow);
void hostile_unsubscribe(struct raw_client *client, uint64_t subscription);

/* The broker still answers, and this session is still one. */
void hostile_alive(struct raw_client *client);

/* A TCP socket whose last close waits for `seconds`, and its other end in *peer. */
int hostile_lingering(int seconds, int *peer);

/* A lane as its publisher holds it. */
struct held_lane {
    uint64_t id;
    int fd;
    uint32_t ring_size;
    struct ipc_lane *lane;
    struct lane_writer writer;
};
/* From the ADVERTISED that was just received; and with asking for it. */
void held_lane_map(struct held_lane *held, struct raw_client *client);
void held_lane_open(struct held_lane *held, struct raw_client *client, const char *topic, uint32_t ring_size);
/* Take in the next reader: READER_ADD, mapped, admitted, confirmed. Its cells are *ret_cells (unmapped by
 * lane_segment_unmap()). Returns the pairing. */
uint64_t held_lane_admit(struct held_lane *held, struct raw_client *client, struct ipc_cells **ret_cells);
void held_lane_close(struct held_lane *held);
int held_lane_publish(struct held_lane *held, uint64_t number, uint32_t size);

/* A lane as its reader holds it. */
struct held_cell {
    uint64_t pairing, lane_id;
    int lane_fd, cells_fd, bell_fd; /* -1: none came */
    uint32_t ring_size, index;
    const struct ipc_lane *lane; /* read-only */
    struct ipc_cells *cells;     /* NULL: an earlier notice brought them */
    struct ipc_cell *cell;
};
/* From the LANE_ADD that comes next, confirmed. `cells` of the session, if they are there already. */
void held_cell_open(struct held_cell *held, struct raw_client *client, struct ipc_cells *cells);
void held_cell_close(struct held_cell *held);

/* Random numbers by a seed. */
static inline uint64_t hostile_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Memory that a client can write; with a ring of so many bytes. */
struct hostile_area {
    unsigned char *at;
    size_t size;
    uint32_t ring;
};
/* So many writes somewhere in them: values that could matter, near what is there, or any. */
void hostile_scribble(const struct hostile_area *areas, unsigned count, unsigned writes, uint64_t *random);

#endif
