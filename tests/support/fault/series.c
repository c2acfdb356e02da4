/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/fault/series.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/support/broker.h"

#define RUN_SECONDS (getenv("IPC_FAULT_SECONDS") ? (unsigned)atoi(getenv("IPC_FAULT_SECONDS")) : 60u)
#define SHARE       4u
#define INPUT_LASTS 64u
#define PAUSE_LASTS 6u /* after each the broker waits a while */

static char doing[512];
static size_t doing_size;

void series_says(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(doing + doing_size, sizeof(doing) - doing_size, format, arguments);
    va_end(arguments);
}

void series_begin(struct series *series, const enum fault_kind *only)
{
    const char *seed = getenv("IPC_FAULT_SEED");
    *series = (struct series){.only = only, .share = getenv("IPC_FAULT_FULL") ? 1 : SHARE};
    series->brief = series->sparse = getenv("IPC_FAULT_BRIEF") != NULL;
    series->random = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
    if (series->share > 1)
        printf("IPC_FAULT_SEED=%llu\n", (unsigned long long)series->random);
}

void series_without(struct series *series, const enum fault_kind *without)
{
    series->without = without;
}

static bool listed(const enum fault_kind *list, enum fault_kind kind)
{
    while (*list != FAULT_NONE && *list != kind)
        list++;
    return *list == kind;
}

static bool wanted(const struct series *series)
{
    const char *word = getenv("IPC_FAULT_ONLY");
    if (word && *word && strcmp(word, fault_words[series->kind].word) != 0)
        return false;
    return (!series->only || listed(series->only, series->kind)) &&
           (!series->without || !listed(series->without, series->kind));
}

static bool toss(struct series *series)
{
    series->random = series->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (series->random >> 33) % series->share == 0;
}

static bool chosen(struct series *series)
{
    bool first = series->error == 0 && !series->lasting;
    return series->share == 1 || series->runs == 0 || (first && !series->sparse) || toss(series);
}

/* To the first call of the next way to fail. */
static bool next_way(struct series *series)
{
    series->at = 0;
    if (series->begun && !series->lasting && fault_words[series->kind].nature != FAULT_ONCE) {
        series->lasting = true;
        return true;
    }
    series->lasting = false;
    if (series->begun && series->error + 1 < FAULT_ERRORS_MAX &&
        fault_words[series->kind].errors[series->error + 1]) {
        series->error++;
        return true;
    }
    series->error = 0;
    series->begun = true;
    do
        series->kind++;
    while (series->kind < FAULT_KIND_COUNT && !wanted(series));
    return series->kind < FAULT_KIND_COUNT;
}

bool series_next(struct series *series)
{
    if (!series->begun || series->hits == 0) {
        do
            if (!next_way(series))
                return false;
        while (series->brief && series->runs > 0 && !toss(series)); /* some, whatever the dice say */
    }
    do
        series->at++;
    while (!chosen(series));
    return true;
}

void series_arm(const struct series *series)
{
    const struct fault_word *word = &fault_words[series->kind];
    uint32_t last = !series->lasting              ? series->at
                    : word->nature == FAULT_PAUSE ? series->at + PAUSE_LASTS
                    : word->nature == FAULT_INPUT ? series->at + INPUT_LASTS
                                                  : UINT32_MAX;
    int n = snprintf(doing, sizeof(doing), "%s fails by %s, %s call %u%s; ", word->word,
                     strerrorname_np(word->errors[series->error]), series->lasting ? "from" : "at",
                     series->at, series->lasting ? " on" : "");
    doing_size = (size_t)n;
    watchdog(RUN_SECONDS, doing);
    if (getenv("IPC_FAULT_TELL"))
        fprintf(stderr, "%s\n", doing);
    fault_arm(series->kind, series->at, last, word->errors[series->error]);
}

void series_looked(struct series *series)
{
    series->hits = fault_disarm();
    series->runs += series->hits > 0;
    series->total++;
}

void series_done(struct series *series, unsigned failed)
{
    series_looked(series);
    if (failed > 0 && series->hits == 0)
        fprintf(stderr, "%s not seen, yet %u steps failed\n", doing, failed);
    EXPECT(failed == 0 || series->hits > 0);
    if (getenv("IPC_FAULT_TELL"))
        fprintf(stderr, "   seen %u times, first at 0x%llx; %u steps failed\n", series->hits,
                (unsigned long long)atomic_load(&fault->where), failed);
}

void series_end(const struct series *series)
{
    watchdog(0, "");
    printf("%u faults, %u runs\n", series->runs, series->total);
    const char *word = getenv("IPC_FAULT_ONLY");
    EXPECT(series->runs > 0 || (word && *word));
}

unsigned segments_mapped(pid_t pid)
{
    char path[64], line[512];
    unsigned n = 0;
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    FILE *maps = fopen(path, "r");
    while (maps && fgets(line, sizeof(line), maps))
        n += strstr(line, "memfd:ipc-") != NULL;
    if (maps)
        fclose(maps);
    return n;
}
