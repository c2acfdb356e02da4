/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that has libzmq and nothing else, and speaks proto/zmq.md with a DEALER.
 */
#ifndef IPC_TESTS_DEALER_H
#define IPC_TESTS_DEALER_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>
#include <zmq.h>

struct dealer {
    void *context, *socket;
    /* The last message that was heard. */
    char command[16], id[256], name[256];
    json_t *properties;
    zmq_msg_t body;
};

void dealer_open(struct dealer *dealer, const char *address);
void dealer_close(struct dealer *dealer);
/* Properties: JSON, or "". */
void dealer_say(struct dealer *dealer, const char *command, const char *id, const char *name,
                const char *properties, const void *body, size_t size);
/* False: nothing came in that time. -1: for ever. */
bool dealer_hear(struct dealer *dealer, int timeout_ms);
/* Of what was heard; 0 or "" if it is not there. */
long long dealer_number(const struct dealer *dealer, const char *property);
const char *dealer_text(const struct dealer *dealer, const char *property);

#endif
