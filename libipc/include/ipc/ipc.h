/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file ipc.h
 * libipc: messages between isolated processes of one machine, through shared memory.
 *
 * Include this header for everything; each header below also stands alone. A first program:
 *
 *     ipc_connection *connection;                                  ipc_connection *connection;
 *     ipc_publisher *publisher;                                    ipc_subscription *subscription;
 *     ipc_connection_open(&connection, NULL, NULL, NULL);          ipc_connection_open(&connection, NULL, NULL, NULL);
 *     ipc_publisher_open(&publisher, connection,                   ipc_subscription_open(&subscription, connection,
 *                        "greetings", NULL, NULL);                                       "greetings", NULL, NULL);
 *     ipc_publisher_publish(publisher, "hello", 5);                ipc_subscription_receive(subscription, buffer,
 *                                                                      sizeof(buffer), NULL, IPC_FOREVER);
 *
 * Conventions, for every function of the library:
 *
 * - **Result.** 0 or a count on success, a negative errno value on failure. Each function lists its own errors;
 *   every function may also return -EINVAL (an argument is outside the range that is stated) and -ECHILD (the
 *   handle was opened before a fork, and this is the child: open a connection of its own). `ret` parameters are
 *   left alone on failure.
 * - **Threads.** A connection may be used by any number of threads. A publisher, subscription, producer or
 *   consumer is used by one thread at a time; different ones by different threads at the same time. The library
 *   starts no thread.
 * - **Time.** Timeouts are nanoseconds from the call on, measured by CLOCK_MONOTONIC, and cover the whole call.
 *   0: do not wait; IPC_FOREVER: wait without limit.
 * - **Structs of options** start with their own size, filled in by the initializers below, so that later
 *   versions may add fields. NULL means: all defaults.
 * - **Manners.** The library never prints, logs, exits, aborts, starts threads or processes, or installs signal
 *   handlers. No function is async-signal-safe unless it says so. Descriptors are close-on-exec.
 */
#ifndef IPC_IPC_H
#define IPC_IPC_H

#include <ipc/connection.h>
#include <ipc/error.h>
#include <ipc/mq.h>
#include <ipc/queue.h>
#include <ipc/segment.h>
#include <ipc/service.h>
#include <ipc/topic.h>

#endif
