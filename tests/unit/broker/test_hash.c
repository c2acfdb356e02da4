/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/core/util/hash.h"

#define COUNT 10000u

static struct hash_node nodes[COUNT];

/* Who takes out what he meets meets everything, and the table is small again with what comes next. */
static void test_walk_and_take_out(void **state)
{
    struct hash hash;
    size_t met = 0;
    unsigned bits;

    (void)state;
    assert_int_equal(hash_init(&hash), 0);
    bits = hash.bits;
    for (unsigned i = 0; i < COUNT; i++)
        hash_add(&hash, &nodes[i], i);
    assert_true(hash.bits > bits + 4);
    for (size_t i = 0; i < (size_t)1 << hash.bits; i++)
        while (hash.buckets[i]) {
            hash_remove(&hash, hash.buckets[i]);
            met++;
        }
    assert_int_equal(met, COUNT);
    assert_int_equal(hash.count, 0);
    for (unsigned i = 0; i < 20; i++)
        hash_add(&hash, &nodes[i], i);
    assert_int_equal(hash.bits, bits);
    for (unsigned i = 0; i < 20; i++)
        assert_ptr_equal(hash_find(&hash, i), &nodes[i]);
    hash_done(&hash);
}

static void test_clear(void **state)
{
    struct hash hash = {0};

    (void)state;
    hash_clear(&hash); /* one that was not made, too */
    assert_int_equal(hash_init(&hash), 0);
    for (unsigned i = 0; i < COUNT; i++)
        hash_add(&hash, malloc(sizeof(struct hash_node)), i);
    hash_clear(&hash);
    assert_int_equal(hash.count, 0);
    assert_null(hash_find(&hash, 1));
    hash_done(&hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_walk_and_take_out),
        cmocka_unit_test(test_clear),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
