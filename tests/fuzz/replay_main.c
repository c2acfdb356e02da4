/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a fuzz target over files instead of under libFuzzer, so that every past finding is an ordinary test with
 * any compiler: first the empty input, then each regular file of the folders (or files) given.
 */
#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_SIZE_MAX ((size_t)16 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Optional in a fuzz target, as under libFuzzer. */
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

static size_t n_inputs;

static void run(const uint8_t *bytes, size_t size)
{
    /* An allocation of the exact size: a read past the end is a finding under ASan. */
    uint8_t *copy = malloc(size ? size : 1);

    if (!copy) {
        fprintf(stderr, "replay: out of memory for %zu bytes\n", size);
        exit(1);
    }
    if (size)
        memcpy(copy, bytes, size);
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    n_inputs++;
}

static int run_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "rbe");
    uint8_t *bytes;
    size_t n;

    if (!file) {
        fprintf(stderr, "replay: cannot open %s: %s\n", path, strerror(errno));
        return -1;
    }
    if (size > INPUT_SIZE_MAX) {
        fprintf(stderr, "replay: %s: %zu bytes, more than the limit of %zu\n", path, size, INPUT_SIZE_MAX);
        fclose(file);
        return -1;
    }
    bytes = malloc(size ? size : 1);
    if (!bytes) {
        fprintf(stderr, "replay: out of memory for %s\n", path);
        fclose(file);
        return -1;
    }
    n = fread(bytes, 1, size, file);
    fclose(file);
    if (n != size) {
        fprintf(stderr, "replay: %s: read %zu of %zu bytes\n", path, n, size);
        free(bytes);
        return -1;
    }
    fprintf(stderr, "replay: %s\n", path); /* the last line before a crash names the input */
    run(bytes, size);
    free(bytes);
    return 0;
}

static int run_path(const char *path);

static int run_folder(const char *path)
{
    struct dirent **entries;
    int failed = 0;
    int n = scandir(path, &entries, NULL, alphasort); /* sorted: a failure repeats at the same place */

    if (n < 0) {
        fprintf(stderr, "replay: cannot list %s: %s\n", path, strerror(errno));
        return -1;
    }
    for (int i = 0; i < n; i++) {
        if (entries[i]->d_name[0] != '.') {
            char *child = NULL;

            if (asprintf(&child, "%s/%s", path, entries[i]->d_name) < 0)
                child = NULL;
            if (!child || run_path(child) < 0)
                failed = -1;
            free(child);
        }
        free(entries[i]);
    }
    free(entries);
    return failed;
}

static int run_path(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        return -1;
    }
    if (S_ISDIR(st.st_mode))
        return run_folder(path);
    return S_ISREG(st.st_mode) ? run_file(path, (size_t)st.st_size) : 0;
}

int main(int argc, char **argv)
{
    int failed = 0;

    if (LLVMFuzzerInitialize)
        (void)LLVMFuzzerInitialize(&argc, &argv);
    run((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        if (run_path(argv[i]) < 0)
            failed = 1;
    }
    printf("replay: %zu inputs\n", n_inputs);
    return failed;
}
