/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/core/util/memory.h"

/* A tree of cgroups, made of files. */
static char folder[] = "/tmp/ipc-memory-XXXXXX";

static const char *path_of(const char *name)
{
    static char path[256];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void file(const char *name, const char *text)
{
    FILE *out = fopen(path_of(name), "we");

    assert_non_null(out);
    assert_true(fputs(text, out) >= 0 && fclose(out) == 0);
}

static uint64_t limit(const char *cgroups)
{
    char list[256];

    file("list", cgroups);
    (void)snprintf(list, sizeof(list), "%s", path_of("list"));
    return memory_limit_of(list, folder);
}

static void test_version_2(void **state)
{
    (void)state;
    assert_int_equal(limit("0::/a/b\n"), UINT64_MAX);
    file("a/b/memory.max", "max\n");
    assert_int_equal(limit("0::/a/b\n"), UINT64_MAX);
    file("a/b/memory.max", "5000000\n");
    assert_int_equal(limit("0::/a/b\n"), 5000000);
    file("a/memory.max", "4000000\n"); /* those above count, too */
    assert_int_equal(limit("0::/a/b\n"), 4000000);
    assert_int_equal(limit("0::/elsewhere\n"), UINT64_MAX);
    file("memory.max", "3000000\n"); /* of a container that sees no further */
    assert_int_equal(limit("0::/a/b\n"), 3000000);
    assert_int_equal(limit("0::/elsewhere\n"), 3000000);
    assert_int_equal(limit("0::/\n"), 3000000);
}

static void test_version_1(void **state)
{
    static const char both[] = "4:cpuset:/x\n3:memory:/c\n0::/\n";

    (void)state;
    assert_int_equal(unlink(path_of("memory.max")), 0);
    assert_int_equal(limit(both), UINT64_MAX);
    file("memory/c/memory.stat", "cache 7\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 7\n");
    assert_int_equal(limit(both), UINT64_MAX);
    file("memory/c/memory.stat", "cache 7\nhierarchical_memory_limit 6000000\ntotal_cache 7\n");
    assert_int_equal(limit(both), 6000000);
    file("memory/memory.stat", "hierarchical_memory_limit 2000000\n");
    assert_int_equal(limit(both), 6000000);
    assert_int_equal(limit("3:memory:/elsewhere\n"), 2000000);
}

static void test_nonsense(void **state)
{
    (void)state;
    assert_int_equal(limit(""), UINT64_MAX);
    assert_int_equal(limit("memory\n:memory\n0:\n"), UINT64_MAX);
    assert_int_equal(memory_limit_of(path_of("missing"), folder), UINT64_MAX);
}

static int setup(void **state)
{
    static const char *const folders[] = {"a", "a/b", "memory", "memory/c"};

    (void)state;
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++)
        assert_int_equal(mkdir(path_of(folders[i]), 0700), 0);
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = {"list",
                                        "a/b/memory.max",
                                        "a/memory.max",
                                        "memory/c/memory.stat",
                                        "memory/memory.stat",
                                        "a/b",
                                        "a",
                                        "memory/c",
                                        "memory",
                                        ""};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        assert_int_equal(remove(path_of(names[i])), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version_2),
        cmocka_unit_test(test_version_1),
        cmocka_unit_test(test_nonsense),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
