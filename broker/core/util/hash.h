/* SPDX-License-Identifier: Apache-2.0
 *
 * Intrusive chained hash tables, by number. Strings go in by their keyed hash (hash_string), so that no client can
 * choose names that fall into one chain.
 */
#ifndef IPCD_CORE_UTIL_HASH_H
#define IPCD_CORE_UTIL_HASH_H

#include <stddef.h>
#include <stdint.h>

struct hash_node {
    struct hash_node *next;
    uint64_t key;
};

struct hash {
    struct hash_node **buckets;
    unsigned bits; /* 1 << bits buckets */
    size_t count;
};

/* Returns 0 or -ENOMEM. */
int hash_init(struct hash *hash);

/* Take all nodes out and free them, each being the beginning of what malloc() gave. */
void hash_clear(struct hash *hash);

/* Frees the table, not the nodes. */
void hash_done(struct hash *hash);

/* Adding never fails: a table that cannot grow has longer chains. */
void hash_add(struct hash *hash, struct hash_node *node, uint64_t key);

/* Take out a node that is in the table, whose buckets stay where they are: whoever walks over them may go on. */
void hash_remove(struct hash *hash, struct hash_node *node);

/* The first node of that key, or NULL. */
struct hash_node *hash_find(const struct hash *hash, uint64_t key);

/* The next node of the same key, or NULL. */
struct hash_node *hash_find_next(const struct hash_node *node);

/* SipHash-1-3 of bytes under a secret key. */
uint64_t hash_string(const uint64_t secret[2], const char *bytes, size_t size);

#endif
