/* SPDX-License-Identifier: Apache-2.0
 *
 * Envelopes of outside programs. The input is messages of an mqueue, each with two bytes in front that tell its size; the last
 * is what is left. Whatever is taken must be packed again, and come out as it was.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <ipc/mq.h>

#define MUST(condition) \
 do {                   \
  if (!(condition))     \
   abort();             \
 } while (0)

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool same_data(const void *a, size_t a_size, const void *b, size_t b_size)
{
    return a_size == b_size && (a_size == 0 || memcmp(a, b, a_size) == 0);
}

static void check(const struct ipc_mq_message *given, ipc_mq *other)
{
    struct ipc_mq_message again;
    ssize_t size = ipc_mq_pack(given, NULL, 0);
    MUST(size > 0);
    unsigned char *bytes = malloc((size_t)size);
    MUST(bytes && ipc_mq_pack(given, bytes, (size_t)size) == size);
    MUST(ipc_mq_unpack(other, bytes, (size_t)size, &again) == 1);
    free(bytes);
    MUST(again.kind == given->kind && again.ttl_ns == given->ttl_ns && again.delay_ns == given->delay_ns &&
         again.attempt == given->attempt && again.code == given->code);
    MUST(same_text(again.name, given->name) && same_text(again.reply_to, given->reply_to) &&
         same_text(again.content_type, given->content_type) && same_text(again.text, given->text));
    MUST(same_data(again.data, again.data_size, given->data, given->data_size) &&
         same_data(again.id, again.id_size, given->id, given->id_size) &&
         same_data(again.key, again.key_size, given->key, given->key_size));
    MUST(again.header_count == given->header_count);
    for (size_t i = 0; i < given->header_count; i++)
        MUST(same_text(again.headers[i].name, given->headers[i].name) &&
             same_data(again.headers[i].value, again.headers[i].value_size, given->headers[i].value,
                       given->headers[i].value_size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct ipc_mq_options options = {sizeof(options), 65536};
    struct ipc_mq_message message;
    struct ipc_mq_stats stats;
    ipc_mq *mq = NULL, *other = NULL;

    MUST(ipc_mq_open(&mq, (mqd_t)-1, &options) == 0 && ipc_mq_open(&other, (mqd_t)-1, &options) == 0);
    while (size > 0) {
        size_t wanted = size < 2 ? size : (size_t)data[0] << 8 | data[1];
        if (size >= 2) {
            data += 2;
            size -= 2;
        }
        if (wanted > size)
            wanted = size;
        if (ipc_mq_unpack(mq, data, wanted, &message) == 1)
            check(&message, other);
        data += wanted;
        size -= wanted;
    }
    MUST(ipc_mq_stats(mq, &stats) == 0 && stats.open <= 16);
    ipc_mq_close(mq);
    ipc_mq_close(other);
    return 0;
}
