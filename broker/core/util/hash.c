/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/util/hash.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BITS_MIN 6u
#define BITS_MAX 24u

static size_t bucket_of(uint64_t key, unsigned bits)
{
    return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - bits));
}

int hash_init(struct hash *hash)
{
    *hash = (struct hash){.bits = BITS_MIN};
    hash->buckets = calloc((size_t)1 << hash->bits, sizeof(*hash->buckets));
    return hash->buckets ? 0 : -ENOMEM;
}

void hash_clear(struct hash *hash)
{
    for (size_t i = 0; hash->buckets && i < (size_t)1 << hash->bits; i++)
        while (hash->buckets[i]) {
            struct hash_node *node = hash->buckets[i];

            hash_remove(hash, node);
            free(node);
        }
}

void hash_done(struct hash *hash)
{
    free(hash->buckets);
    *hash = (struct hash){0};
}

static void resize(struct hash *hash, unsigned bits)
{
    struct hash_node **buckets = calloc((size_t)1 << bits, sizeof(*buckets));

    if (!buckets)
        return;
    for (size_t i = 0; i < (size_t)1 << hash->bits; i++) {
        for (struct hash_node *node = hash->buckets[i], *next; node; node = next) {
            struct hash_node **bucket = &buckets[bucket_of(node->key, bits)];

            next = node->next;
            node->next = *bucket;
            *bucket = node;
        }
    }
    free(hash->buckets);
    hash->buckets = buckets;
    hash->bits = bits;
}

void hash_add(struct hash *hash, struct hash_node *node, uint64_t key)
{
    struct hash_node **bucket;

    if (hash->count >= (size_t)1 << hash->bits && hash->bits < BITS_MAX)
        resize(hash, hash->bits + 1);
    else if (hash->bits > BITS_MIN && hash->count < (size_t)1 << (hash->bits - 3))
        resize(hash, hash->bits - 1);
    bucket = &hash->buckets[bucket_of(key, hash->bits)];
    node->key = key;
    node->next = *bucket;
    *bucket = node;
    hash->count++;
}

void hash_remove(struct hash *hash, struct hash_node *node)
{
    struct hash_node **link = &hash->buckets[bucket_of(node->key, hash->bits)];

    while (*link != node) {
        assert(*link);
        link = &(*link)->next;
    }
    *link = node->next;
    node->next = NULL;
    hash->count--;
}

struct hash_node *hash_find(const struct hash *hash, uint64_t key)
{
    struct hash_node *node = hash->buckets[bucket_of(key, hash->bits)];

    while (node && node->key != key)
        node = node->next;
    return node;
}

struct hash_node *hash_find_next(const struct hash_node *node)
{
    struct hash_node *next = node->next;

    while (next && next->key != node->key)
        next = next->next;
    return next;
}

static uint64_t rotate(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[0] = rotate(v[0], 32);
    v[2] += v[3];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[2] = rotate(v[2], 32);
}

uint64_t hash_string(const uint64_t secret[2], const char *bytes, size_t size)
{
    uint64_t v[4] = {secret[0] ^ UINT64_C(0x736f6d6570736575), secret[1] ^ UINT64_C(0x646f72616e646f6d),
                     secret[0] ^ UINT64_C(0x6c7967656e657261), secret[1] ^ UINT64_C(0x7465646279746573)};

    for (size_t at = 0;; at += 8) {
        size_t left = size - at;
        uint64_t word = 0;

        memcpy(&word, bytes + at, left < 8 ? left : 8);
        if (left < 8)
            word |= (uint64_t)(size & 0xff) << 56;
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
        if (left < 8)
            break;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
