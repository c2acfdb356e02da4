/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file error.h
 * Errors, and the reasons why things end.
 */
#ifndef IPC_ERROR_H
#define IPC_ERROR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
# define IPC_PUBLIC __attribute__((visibility("default")))
#else
# define IPC_PUBLIC
#endif

/** Wait without limit, where a timeout in nanoseconds is asked for. */
#define IPC_FOREVER INT64_C(-1)

/**
 * What went wrong, for people: filled in by slow calls (connect, open, declare) when they fail and are given
 * one. Untouched on success.
 */
struct ipc_error {
    int code;       /**< the negative errno that the call returned */
    char text[252]; /**< what failed, which name or limit, and what to do; always terminated */
};

/** Why a peer, a pairing or a session ended: code, short word, sentence. The numbers are those of
 * control.proto. */
#define IPC_REASONS(X)                                                  \
 X(NONE, 0, "none", "nothing ended")                                    \
 X(CLOSED, 1, "closed", "it was closed by its owner")                   \
 X(DIED, 2, "died", "its process ended without closing it")             \
 X(SLOW, 3, "slow", "it did not read in time")                          \
 X(PROTOCOL, 4, "protocol", "it broke the control protocol")            \
 X(LIMIT, 5, "limit", "a limit was reached")                            \
 X(DENIED, 6, "denied", "the policy does not allow it")                 \
 X(SHUTDOWN, 7, "shutdown", "the broker stopped")                       \
 X(KICKED, 8, "kicked", "an operator ended it")                         \
 X(CORRUPT, 9, "corrupt", "shared memory that it writes made no sense") \
 X(POISON, 10, "poison", "the broker died each time it worked on its request")

enum ipc_reason {
#define IPC_REASON_ENUM(name, number, word, text) IPC_REASON_##name = number,
    IPC_REASONS(IPC_REASON_ENUM)
#undef IPC_REASON_ENUM
};

/** The short word for a reason, such as "died". Static; any thread; async-signal-safe. Never NULL. */
IPC_PUBLIC const char *ipc_reason_word(unsigned reason);

/** The sentence for a reason. Static; any thread; async-signal-safe. Never NULL. */
IPC_PUBLIC const char *ipc_reason_text(unsigned reason);

/** The version of the library, "major.minor.patch". Static; any thread. */
IPC_PUBLIC const char *ipc_version(void);

#ifdef __cplusplus
}
#endif
#endif
