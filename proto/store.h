/* SPDX-License-Identifier: Apache-2.0
 *
 * What ipcd-run tells ipcd about the descriptors that it keeps: IPCD_STORE names an inherited descriptor of a memfd that
 * holds an array of these, in the order in which they were stored. Each descriptor is inherited under the number
 * that stands here.
 */
#ifndef IPC_PROTO_STORE_H
#define IPC_PROTO_STORE_H

#include <stdint.h>

#define IPC_KEPT_NAME_SIZE 24u

struct ipc_kept {
    char name[IPC_KEPT_NAME_SIZE]; /* 1 to 23 printable characters */
    int32_t fd;
    uint32_t part; /* of those that were stored under one name: 0, 1, ... */
};

#endif
