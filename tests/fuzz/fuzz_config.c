/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration from any bytes. What is read without a mistake can be printed and read again with the same result.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/util/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What differs between a file and what was printed of it. */
static void forget_origins(struct config *config)
{
    memset(config->origin, 0, sizeof(config->origin));
    config->memory_limit = 0; /* of this machine */
    config->lowered = false;
    for (size_t i = 0; i < config->policy.n; i++) {
        memset(config->policy.rules[i].origin, 0, sizeof(config->policy.rules[i].origin));
        memset(config->policy.rules[i].set_at, 0, sizeof(config->policy.rules[i].set_at));
    }
    for (size_t i = 0; i < config->n_queues; i++) {
        memset(config->queues[i].origin, 0, sizeof(config->queues[i].origin));
        memset(config->queues[i].set_at, 0, sizeof(config->queues[i].set_at));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct config config, again;
    char *said = NULL, *text = NULL;
    size_t said_size = 0, text_size = 0;
    FILE *errors = open_memstream(&said, &said_size), *out;
    unsigned mistakes;

    if (!errors)
        return 0;
    config_init(&config);
    mistakes = config_parse(&config, "fuzz.conf", (const char *)data, size, errors);
    config_resolve(&config, 1024);
    (void)fflush(errors);
    assert((mistakes > 0) == (said_size > 0));
    if (mistakes == 0 && config.address[0] && (out = open_memstream(&text, &text_size))) {
        config_print(&config, out);
        (void)fclose(out);
        config_init(&again);
        mistakes = config_parse(&again, "printed.conf", text, text_size, errors);
        assert(mistakes == 0);
        forget_origins(&config);
        forget_origins(&again);
        assert(config.n_queues == again.n_queues);
        for (size_t i = 0; i < config.n_queues; i++)
            assert(memcmp(&config.queues[i], &again.queues[i], sizeof(config.queues[i])) == 0);
        assert(config.policy.n == again.policy.n);
        for (size_t i = 0; i < config.policy.n; i++)
            assert(memcmp(&config.policy.rules[i], &again.policy.rules[i], sizeof(config.policy.rules[i])) ==
                   0);
        config_done(&again);
        config_done(&config);
        assert(memcmp(&config, &again, sizeof(config)) == 0);
    }
    config_done(&config);
    (void)fclose(errors);
    free(said);
    free(text);
    return 0;
}
