/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker of the file index: the SHA-256 of each file.
 */
#include <openssl/evp.h>

#include "worker.h"

struct digest {
    EVP_MD_CTX *context;
};

static void digest_begin(void *state)
{
    struct digest *digest = state;

    digest->context = must(EVP_MD_CTX_new());
    if (EVP_DigestInit_ex(digest->context, EVP_sha256(), NULL) != 1)
        die("libcrypto has no SHA-256");
}

static void digest_update(void *state, const unsigned char *data, size_t size)
{
    struct digest *digest = state;

    if (EVP_DigestUpdate(digest->context, data, size) != 1)
        die("libcrypto failed");
}

static void digest_finish(void *state, FILE *result)
{
    struct digest *digest = state;
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    if (EVP_DigestFinal_ex(digest->context, bytes, &size) != 1)
        die("libcrypto failed");
    EVP_MD_CTX_free(digest->context);
    for (unsigned i = 0; i < size; i++)
        fprintf(result, "%02x", (unsigned)bytes[i]);
}

int main(int argc, char **argv)
{
    return worker_run(
        &(struct worker){
            .kind = DIGEST,
            .state_size = sizeof(struct digest),
            .begin = digest_begin,
            .update = digest_update,
            .finish = digest_finish,
        },
        argc, argv);
}
