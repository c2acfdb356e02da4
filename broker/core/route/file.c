/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/route/file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/core/util/share.h"
#include "proto/layout.h"

#ifndef MADV_POPULATE_WRITE
# define MADV_POPULATE_WRITE 23
#endif

#define MAGIC   UINT64_C(0x6575657551637069) /* "ipcQueue" */
#define VERSION 2u
#define SEALS   (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Memory comes in these steps; the first records of a small queue take a smaller one. */
#define STEP       (UINT64_C(64) << 10)
#define STEP_SMALL (UINT64_C(16) << 10)
/* Free chunks that keep their memory: these, or half as many as are in use; and so many more, until file_trim(), of a queue
 * that fills and empties: to give memory back and take it again costs more than all else that its messages need. */
#define SPARE      2u
#define SPARE_BUSY 64u

#define RUN_BITS 16u

/* Of one slice of a scan. A file is read for it, not touched: a first touch of a page can cost as much as a read of many. */
#define SLICE_RECORDS 1024u
#define SLICE_READS   16u
#define WINDOW        (UINT64_C(64) << 10)

static_assert(sizeof(struct record) == 72, "records are laid out for good");
static_assert(sizeof(struct file_header) <= IPC_LAYOUT_PAGE && sizeof(struct file_id) == 32, "layout");

static uint64_t directory_size(void)
{
    return FILE_CHUNKS * sizeof(struct file_slot);
}

static uint64_t chunks_offset(uint32_t dedup_window)
{
    uint64_t end = IPC_LAYOUT_PAGE + directory_size() + (uint64_t)dedup_window * sizeof(struct file_id);

    return (end + FILE_CHUNK - 1) / FILE_CHUNK * FILE_CHUNK;
}

static uint64_t file_size(uint32_t dedup_window)
{
    return chunks_offset(dedup_window) + FILE_CHUNKS * FILE_CHUNK;
}

int queue_file_format(int fd, uint64_t queue, uint32_t dedup_window)
{
    struct file_header header = {
        .magic = MAGIC, .version = VERSION, .dedup_window = dedup_window, .queue = queue, .next_number = 1};
    ssize_t n;

    if (getrandom(header.secret, sizeof(header.secret), 0) != (ssize_t)sizeof(header.secret))
        return -EIO;
    if (fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t)file_size(dedup_window)) < 0 ||
        fallocate(fd, 0, 0, IPC_LAYOUT_PAGE) < 0)
        return -errno;
    n = pwrite(fd, &header, sizeof(header), 0);
    if (n != (ssize_t)sizeof(header))
        return n < 0 ? -errno : -EIO;
    return fcntl(fd, F_ADD_SEALS, SEALS) < 0 ? -errno : 0;
}

static void budget_return(struct route_budget *budget, uint64_t bytes)
{
    for (; budget; budget = budget->all)
        atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed);
}

static void budget_force(struct route_budget *budget, uint64_t bytes)
{
    for (; budget; budget = budget->all)
        atomic_fetch_add_explicit(&budget->used, bytes, memory_order_relaxed);
}

static bool within_max(struct route_budget *budget, uint64_t used)
{
    return used <= atomic_load_explicit(&budget->max, memory_order_relaxed);
}

static bool within_share(struct route_budget *all, uint64_t used_by_all, uint64_t used)
{
    uint64_t max = atomic_load_explicit(&all->max, memory_order_relaxed);
    uint64_t holders = atomic_load_explicit(&all->holders, memory_order_relaxed);

    return used <= share_of(max, used_by_all > used ? used_by_all - used : 0, holders);
}

static bool budget_take(struct route_budget *budget, uint64_t bytes)
{
    struct route_budget *all = budget ? budget->all : NULL;
    uint64_t used, used_by_all;

    if (!budget)
        return true;
    used = atomic_fetch_add_explicit(&budget->used, bytes, memory_order_relaxed) + bytes;
    used_by_all = all ? atomic_fetch_add_explicit(&all->used, bytes, memory_order_relaxed) + bytes : 0;
    if (within_max(budget, used) &&
        (!all || (within_max(all, used_by_all) && within_share(all, used_by_all, used))))
        return true;
    budget_return(budget, bytes);
    return false;
}

/* Nobody else is about to miss what a file keeps for later. */
static bool budget_is_ample(struct route_budget *budget)
{
    for (; budget; budget = budget->all)
        if (!within_max(budget, 2 * atomic_load_explicit(&budget->used, memory_order_relaxed)))
            return false;
    return true;
}

static int charge(struct file *file, uint64_t bytes)
{
    if (!budget_take(file->budget, bytes))
        return -EDQUOT;
    file->memory += bytes;
    return 0;
}

static void discharge(struct file *file, uint64_t bytes)
{
    budget_return(file->budget, bytes);
    file->memory -= bytes;
}

/* Memory for a range of whole pages, in our page table too: from here on touching it cannot fail. Charged by the caller. */
static int populate(struct file *file, uint64_t from, uint64_t size)
{
    while (fallocate(file->fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)size) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    (void)madvise(file->map + from, size,
                  MADV_POPULATE_WRITE); /* on older kernels each page comes by itself */
    return 0;
}

static void punch(struct file *file, uint64_t from, uint64_t size)
{
    (void)fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)size);
}

static uint64_t chunk_offset(const struct file *file, uint32_t chunk)
{
    return file->chunks_at + (uint64_t)chunk * FILE_CHUNK;
}

/* The first chunk of the run that it is in. */
static uint32_t chunk_of(const struct file *file, uint64_t offset)
{
    uint32_t chunk = (uint32_t)((offset - file->chunks_at) / FILE_CHUNK);

    return chunk - file->chunks[chunk].inside;
}

static void run_begin(struct file *file, uint32_t chunk, uint32_t run)
{
    file->chunks[chunk].run = run;
    for (uint32_t i = 0; i < run; i++)
        file->chunks[chunk + i].inside = i;
}

static int chunks_reserve(struct file *file, uint32_t count)
{
    uint32_t capacity = file->capacity ? file->capacity : 8;
    void *grown;

    while (capacity < count)
        capacity *= 2;
    if (capacity == file->capacity)
        return 0;
    grown = realloc(file->chunks, capacity * sizeof(*file->chunks));
    if (!grown)
        return -ENOMEM;
    file->chunks = grown;
    grown = realloc(file->free, capacity * sizeof(*file->free));
    if (!grown)
        return -ENOMEM;
    file->free = grown;
    memset(file->chunks + file->capacity, 0, (capacity - file->capacity) * sizeof(*file->chunks));
    file->capacity = capacity;
    return 0;
}

int file_open(struct file *file, int fd, uint64_t queue, bool resumed, struct route_budget *budget)
{
    struct file_header header;
    struct stat st;
    uint64_t size;

    *file = (struct file){.fd = fd, .budget = budget, .current = FILE_CHUNKS};
    ssize_t read = pread(fd, &header, sizeof(header), 0);

    if (read < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (read != (ssize_t)sizeof(header) || header.magic != MAGIC || header.version != VERSION ||
        header.queue != queue || header.dedup_window > IPC_MAX_DEDUP_WINDOW || header.chunks > FILE_CHUNKS)
        return -EBADMSG;
    size = file_size(header.dedup_window);
    if ((uint64_t)st.st_size != size)
        return -EBADMSG;
    if (chunks_reserve(file, header.chunks + 1) < 0)
        return -ENOMEM;
    file->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (file->map == MAP_FAILED) {
        int result = -errno;

        file->map = NULL;
        file_close(file);
        return result;
    }
    file->header = (struct file_header *)(void *)file->map;
    file->directory = (struct file_slot *)(void *)(file->map + IPC_LAYOUT_PAGE);
    file->ids = (struct file_id *)(void *)(file->map + IPC_LAYOUT_PAGE + directory_size());
    file->chunks_at = chunks_offset(header.dedup_window);
    file->next_number = header.next_number;
    file->memory = IPC_LAYOUT_PAGE;
    if (resumed && header.dedup_window) {
        uint64_t ids = header.ids < header.dedup_window ? header.ids : header.dedup_window;
        uint64_t bytes = (ids * sizeof(struct file_id) + IPC_LAYOUT_PAGE - 1) / IPC_LAYOUT_PAGE *
                         IPC_LAYOUT_PAGE;

        file->ids_populated = (uint64_t)((unsigned char *)file->ids - file->map) + bytes;
        file->memory += bytes;
    }
    budget_force(budget, file->memory);
    return 0;
}

void file_close(struct file *file)
{
    if (file->map)
        munmap(file->map, file_size(file->header ? file->header->dedup_window : 0));
    if (file->memory)
        discharge(file, file->memory);
    free(file->chunks);
    free(file->free);
    free(file->scan.left);
    *file = (struct file){.fd = -1};
}

static uint32_t spare(const struct file *file)
{
    return file->n_used / 2 > SPARE ? file->n_used / 2 : SPARE;
}

static void cool_one(struct file *file)
{
    uint32_t coldest = file->free[file->n_free - file->n_warm--];

    punch(file, chunk_offset(file, coldest), FILE_CHUNK);
    discharge(file, file->chunks[coldest].populated);
    file->chunks[coldest].populated = 0;
}

/* A chunk is free; of those only some keep their memory. free[] has the cold ones first, then the warm ones, the
 * warmest, which is taken next, last. */
static void chunk_release(struct file *file, uint32_t chunk)
{
    file->n_used--;
    file->chunks[chunk].run = 0;
    file->chunks[chunk].inside = 0;
    if (file->chunks[chunk].populated) {
        file->free[file->n_free++] = chunk;
        file->n_warm++;
    } else {
        memmove(file->free + 1, file->free, file->n_free * sizeof(*file->free));
        file->free[0] = chunk;
        file->n_free++;
    }
    while (file->n_warm > spare(file) && (file->n_warm > SPARE_BUSY || !budget_is_ample(file->budget)))
        cool_one(file);
}

void file_trim(struct file *file)
{
    uint32_t unused = file->warm_low;

    while (unused-- && file->n_warm > spare(file))
        cool_one(file);
    file->warm_low = file->n_warm;
}

bool file_trims(const struct file *file)
{
    return file->n_warm > spare(file);
}

static void run_release(struct file *file, uint32_t chunk)
{
    uint32_t run = file->chunks[chunk].run;

    atomic_store_explicit(&file->directory[chunk].word, 0, memory_order_release);
    for (uint32_t i = 0; i < run; i++)
        chunk_release(file, chunk + i);
}

/* `run` chunks in a row that are free, or were never used. FILE_CHUNKS: none. */
static uint32_t find_run(struct file *file, uint32_t run)
{
    uint32_t chunks = atomic_load_explicit(&file->header->chunks, memory_order_relaxed), in_row = 0;

    if (run == 1 && file->n_free) {
        file->n_warm -= file->n_warm > 0;
        return file->free[--file->n_free];
    }
    for (uint32_t i = 0; run > 1 && i < chunks; i++) {
        bool is_free = false;

        for (uint32_t f = 0; f < file->n_free && !is_free; f++)
            is_free = file->free[f] == i;
        in_row = is_free ? in_row + 1 : 0;
        if (in_row < run)
            continue;
        for (uint32_t f = 0; f < file->n_free;) {
            if (file->free[f] + run <= i || file->free[f] > i) {
                f++;
                continue;
            }
            file->n_warm -= file->chunks[file->free[f]].populated > 0;
            memmove(file->free + f, file->free + f + 1, (--file->n_free - f) * sizeof(*file->free));
        }
        return i - run + 1;
    }
    if (chunks + run > FILE_CHUNKS || chunks_reserve(file, chunks + run) < 0)
        return FILE_CHUNKS;
    /* The directory's page is there before its word is stored. */
    for (uint32_t i = chunks; i < chunks + run; i++)
        if (i % (IPC_LAYOUT_PAGE / sizeof(struct file_slot)) == 0 &&
            populate(file, IPC_LAYOUT_PAGE + i * sizeof(struct file_slot), IPC_LAYOUT_PAGE) < 0)
            return FILE_CHUNKS;
    atomic_store_explicit(&file->header->chunks, chunks + run, memory_order_release);
    for (uint32_t i = chunks; i < chunks + run; i++)
        file->chunks[i] = (struct chunk){0};
    return chunks;
}

/* Memory for everything below `until` of the run that starts with a chunk. */
static int ensure(struct file *file, uint32_t chunk, uint64_t until)
{
    uint64_t start = chunk_offset(file, chunk);
    uint32_t at = chunk + (uint32_t)((until - start - 1) / FILE_CHUNK);

    for (uint32_t i = chunk; i <= at; i++) {
        struct chunk *about = &file->chunks[i];
        uint64_t offset = chunk_offset(file, i);
        uint64_t wanted = until - offset < FILE_CHUNK ? until - offset : FILE_CHUNK, step, target;
        int result;

        if (wanted <= about->populated)
            continue;
        step = file->n_used <= 1 && wanted <= STEP_SMALL ? STEP_SMALL : STEP;
        target = (wanted + step - 1) / step * step;
        result = charge(file, target - about->populated);
        if (result < 0)
            return result;
        result = populate(file, offset + about->populated, target - about->populated);
        if (result < 0) {
            discharge(file, target - about->populated);
            return result;
        }
        about->populated = (uint32_t)target;
    }
    return 0;
}

static void set_end(struct file *file, uint64_t offset)
{
    atomic_store_explicit(&file_record(file, offset)->state, 0, memory_order_release);
}

/* Take a chunk into use that has room for a record of that stride. */
static int begin_chunk(struct file *file, uint64_t stride)
{
    uint64_t needed = stride + sizeof(uint64_t);
    uint32_t run = (uint32_t)((needed + FILE_CHUNK - 1) / FILE_CHUNK), chunk = find_run(file, run), old;
    int result;

    if (chunk == FILE_CHUNKS)
        return -ENOSPC;
    file->n_used += run;
    if (file->n_warm < file->warm_low)
        file->warm_low = file->n_warm;
    run_begin(file, chunk, run);
    result = ensure(file, chunk, chunk_offset(file, chunk) + needed);
    if (result < 0) {
        run_release(file, chunk);
        return result;
    }
    old = file->current;
    file->chunks[chunk].live = 0;
    file->chunks[chunk].marks = 0;
    file->chunks[chunk].first_number = file->next_number;
    atomic_store_explicit(&file->directory[chunk].marks, 0, memory_order_relaxed);
    set_end(file, chunk_offset(file, chunk));
    atomic_store_explicit(&file->header->next_number, file->next_number, memory_order_release);
    atomic_store_explicit(&file->directory[chunk].word, ++file->used_index << RUN_BITS | run,
                          memory_order_release);
    file->current = chunk;
    file->end = chunk_offset(file, chunk);
    file->until = file->end + run * FILE_CHUNK;
    if (old != FILE_CHUNKS && file->chunks[old].live == 0)
        run_release(file, old);
    return 0;
}

int file_reserve(struct file *file, uint32_t size, uint64_t *ret_offset, uint64_t *ret_number)
{
    uint64_t stride = record_stride(size);
    int result = 0;

    if (file->current == FILE_CHUNKS || file->end + stride + sizeof(uint64_t) > file->until)
        result = begin_chunk(file, stride);
    else if (file->end + stride + sizeof(uint64_t) >
             chunk_offset(file, file->current) + file->chunks[file->current].populated)
        result = ensure(file, file->current, file->end + stride + sizeof(uint64_t));
    if (result < 0)
        return result;
    *ret_offset = file->end;
    *ret_number = file->next_number;
    return 0;
}

static void mark(struct file *file, uint32_t chunk, uint32_t marks)
{
    if ((file->chunks[chunk].marks & marks) == marks)
        return;
    file->chunks[chunk].marks |= marks;
#ifndef IPC_PLANT_MARK_FORGOTTEN
    atomic_store_explicit(&file->directory[chunk].marks, file->chunks[chunk].marks, memory_order_release);
#endif
}

void file_delivers(struct file *file, uint64_t offset)
{
    mark(file, chunk_of(file, offset), FILE_DELIVERED);
}

void file_commit(struct file *file, uint64_t offset, const struct record_state *state)
{
    struct record *record = file_record(file, offset);

    assert(offset == file->end && record->number == file->next_number);
    file->end = offset + record_stride(record->size);
#ifndef IPC_PLANT_END_LATE
    set_end(file, file->end);
#endif
    mark(file, file->current, 1u << record->priority);
    record_store(record, state);
    file->next_number++;
    file->chunks[file->current].live++;
}

struct record *file_find(const struct file *file, uint64_t offset, uint64_t number)
{
    const struct chunk *chunk = &file->chunks[chunk_of(file, offset)];
    struct record *record = file_record(file, offset);

    if (!chunk->run || number < chunk->first_number)
        return NULL;
    assert(record->number == number);
    return record_load(record).kind == RECORD_DONE ? NULL : record;
}

void file_done(struct file *file, uint64_t offset)
{
    uint32_t chunk = chunk_of(file, offset);

#ifndef IPC_PLANT_ACK_UNSTORED
    record_store(file_record(file, offset), &(struct record_state){.kind = RECORD_DONE});
#endif
    assert(file->chunks[chunk].live > 0);
    if (--file->chunks[chunk].live == 0 && chunk != file->current)
        run_release(file, chunk);
}

static int by_index(const void *a, const void *b)
{
    const struct file_left *left = a, *right = b;

    return left->index < right->index ? -1 : left->index > right->index;
}

/* The chunks in use in the order in which they were taken. What is free now may have memory: that goes. */
static uint32_t find_used(struct file *file, struct file_left *used)
{
    uint32_t chunks = atomic_load_explicit(&file->header->chunks, memory_order_relaxed), n = 0;

    for (uint32_t i = 0; i < chunks;) {
        uint64_t word = atomic_load_explicit(&file->directory[i].word, memory_order_acquire);
        uint32_t run = (uint32_t)(word & ((1u << RUN_BITS) - 1));

        if (word && run && run <= chunks - i) {
            used[n++] = (struct file_left){
                .index = word >> RUN_BITS,
                .chunk = i,
                .run = run,
                .marks = (uint32_t)atomic_load_explicit(&file->directory[i].marks, memory_order_relaxed)};
            i += run;
            continue;
        }
        punch(file, chunk_offset(file, i), FILE_CHUNK);
        file->free[file->n_free++] = i++;
    }
    qsort(used, n, sizeof(*used), by_index);
    return n;
}

/* Limits may be lower now. */
static void count_memory(struct file *file, uint32_t chunk, uint64_t memory)
{
    file->chunks[chunk].populated = (uint32_t)memory;
    file->memory += memory;
    budget_force(file->budget, memory);
}

static int scan_begin(struct file *file)
{
    struct file_scan *scan = &file->scan;

    scan->left = malloc((atomic_load(&file->header->chunks) + 1) * sizeof(*scan->left));
    if (!scan->left)
        return -ENOMEM;
    scan->at = scan->n = find_used(file, scan->left);
    for (uint32_t i = 0; i < scan->n; i++) {
        struct file_left *left = &scan->left[i];

        file->n_used += left->run;
        file->used_index = left->index;
        file->current = left->chunk;
        file->until = chunk_offset(file, left->chunk) + left->run * FILE_CHUNK;
        scan->open += (left->marks & FILE_DELIVERED) != 0;
        for (unsigned priority = 0; priority < IPC_PRIORITIES; priority++)
            scan->ahead[priority] += left->marks >> priority & 1;
        /* What a chunk that is full has is all there; the last one is allocated again as it is needed. */
        for (uint32_t c = 0; c < left->run && i + 1 < scan->n; c++)
            count_memory(file, left->chunk + c, FILE_CHUNK);
    }
    scan->begun = true;
    return 0;
}

/* A piece of the file. */
struct window {
    uint64_t from, size;
    unsigned reads;
    _Alignas(struct record) unsigned char bytes[WINDOW];
};

/* `size` bytes at an offset, of which those behind `until` do not count; NULL: they cannot be read. */
static const void *look(const struct file *file, struct window *window, uint64_t offset, uint64_t until,
                        size_t size)
{
    ssize_t n;

    if (offset >= window->from && offset + size <= window->from + window->size)
        return window->bytes + (offset - window->from);
    do
        n = pread(file->fd, window->bytes, until - offset < WINDOW ? until - offset : WINDOW, (off_t)offset);
    while (n < 0 && errno == EINTR);
    window->reads++;
    window->from = offset;
    window->size = n < 0 ? 0 : (uint64_t)n;
    return window->size < size ? NULL : window->bytes;
}

/* Which comes next, and what is to be known of it while it is scanned: it must not be released meanwhile. */
static bool scan_next(struct file *file)
{
    struct file_scan *scan = &file->scan;
    const struct file_left *left;
    struct chunk *chunk;

    if (scan->at < scan->n)
        return true;
    scan->at = scan->prefix;
    while (scan->open && scan->at < scan->n &&
           (scan->left[scan->at].scanned || !(scan->left[scan->at].marks & FILE_DELIVERED)))
        scan->at++;
    if (scan->at == scan->n)
        return false;
    left = &scan->left[scan->at];
    chunk = &file->chunks[left->chunk];
    run_begin(file, left->chunk, left->run);
    chunk->marks = left->marks;
    chunk->first_number = UINT64_MAX;
    chunk->live = 1;
    scan->offset = chunk_offset(file, left->chunk);
    return true;
}

static void scan_end_last(struct file *file)
{
    struct file_left *last = &file->scan.left[file->scan.n - 1];

    file->end = file->scan.offset;
    for (uint32_t c = 0; c < last->run; c++) {
        uint64_t start = chunk_offset(file, last->chunk + c),
                 bytes = file->end > start ? file->end - start : 0;

        count_memory(file, last->chunk + c,
                     bytes < FILE_CHUNK ? (bytes + IPC_LAYOUT_PAGE - 1) / IPC_LAYOUT_PAGE * IPC_LAYOUT_PAGE
                                        : FILE_CHUNK);
    }
}

/* All of it is found. */
static void scan_end(struct file *file)
{
    struct file_scan *scan = &file->scan;
    struct file_left *left = &scan->left[scan->at];
    struct chunk *chunk = &file->chunks[left->chunk];

    left->scanned = true;
    scan->open -= (left->marks & FILE_DELIVERED) != 0;
    for (unsigned priority = 0; priority < IPC_PRIORITIES; priority++)
        scan->ahead[priority] -= left->marks >> priority & 1;
    while (scan->prefix < scan->n && scan->left[scan->prefix].scanned) {
        if (scan->listed < scan->left[scan->prefix].until)
            scan->listed = scan->left[scan->prefix].until;
        scan->prefix++;
    }
    if (scan->at + 1 == scan->n)
        scan_end_last(file);
    if (chunk->first_number == UINT64_MAX)
        chunk->first_number = file->next_number;
    if (--chunk->live == 0 && left->chunk != file->current)
        run_release(file, left->chunk);
    scan->at = scan->n;
}

int file_scan(struct file *file,
              int (*found)(void *data, uint64_t offset, const struct record *head, bool in_order), void *data)
{
    struct file_scan *scan = &file->scan;
    unsigned records = 0;
    struct window window;

    window.reads = 0;
    window.from = window.size = 0;
    if (!scan->begun && scan_begin(file) < 0)
        return -ENOMEM;
    while (scan_next(file)) {
        struct file_left *left = &scan->left[scan->at];
        struct chunk *chunk = &file->chunks[left->chunk];
        uint64_t until = chunk_offset(file, left->chunk) + left->run * FILE_CHUNK;
        bool in_order = scan->at == scan->prefix;

        for (;; records++) {
            const struct record *head = NULL;
            int result = 0;

            if (records == SLICE_RECORDS || window.reads == SLICE_READS)
                return 1;
            if (scan->offset + sizeof(*head) <= until) {
                head = look(file, &window, scan->offset, until, sizeof(*head));
                if (!head)
                    return -EIO;
            }
            if (!head || record_load(head).kind == RECORD_END ||
                record_stride(head->size) + sizeof(uint64_t) > until - scan->offset)
                break;
            if (record_load(head).kind != RECORD_DONE)
                result = found(data, scan->offset, head, in_order);
            if (result < 0)
                return result;
            chunk->live += record_load(head).kind != RECORD_DONE;
            if (chunk->first_number == UINT64_MAX)
                chunk->first_number = head->number;
            if (head->number >= file->next_number)
                file->next_number = head->number + 1;
            left->until = head->number + 1;
            if (in_order)
                scan->listed = left->until;
            scan->offset += record_stride(head->size);
        }
        scan_end(file);
    }
    free(scan->left);
    *scan = (struct file_scan){.begun = true};
    return 0;
}

bool file_scan_is_first(const struct file *file, unsigned priority, uint64_t number)
{
    const struct file_scan *scan = &file->scan;

    for (unsigned above = priority + 1; above < IPC_PRIORITIES; above++)
        if (scan->ahead[above])
            return false;
    return number < scan->listed || !scan->ahead[priority];
}

static int each_in(struct file *file, const struct file_left *in, uint64_t after,
                   int (*found)(void *data, uint64_t offset, struct record *record), void *data)
{
    uint64_t at = chunk_offset(file, in->chunk), until = at + in->run * FILE_CHUNK;
    int result = 0;

    /* It may be released, and even taken into use again, on the way. */
    while (result == 0 && at + sizeof(struct record) <= until &&
           (in->chunk != file->current || at < file->end) && file->chunks[in->chunk].run &&
           file->chunks[in->chunk].first_number == in->index) {
        struct record *record = file_record(file, at);
        struct record_state state = record_load(record);

        if (state.kind == RECORD_END)
            break;
        if (state.kind != RECORD_DONE && record->number > after)
            result = found(data, at, record);
        at += record_stride(record->size);
    }
    return result;
}

int file_each(struct file *file, uint64_t after,
              int (*found)(void *data, uint64_t offset, struct record *record), void *data)
{
    uint32_t chunks = atomic_load_explicit(&file->header->chunks, memory_order_relaxed), n = 0;
    struct file_left *used = malloc((chunks + 1) * sizeof(*used));
    int result = used ? 0 : -ENOMEM;

    for (uint32_t i = 0; used && i < chunks; i++)
        if (file->chunks[i].run)
            used[n++] = (struct file_left){
                .index = file->chunks[i].first_number, .chunk = i, .run = file->chunks[i].run};
    if (used)
        qsort(used, n, sizeof(*used), by_index);
    for (uint32_t i = 0; i < n && result == 0; i++)
        if (i + 1 == n || used[i + 1].index > after + 1)
            result = each_in(file, &used[i], after, found, data);
    free(used);
    return result;
}

int file_id_reserve(struct file *file)
{
    uint64_t place = atomic_load_explicit(&file->header->ids, memory_order_relaxed) %
                     file->header->dedup_window;
    uint64_t offset = (uint64_t)((unsigned char *)&file->ids[place] - file->map) / IPC_LAYOUT_PAGE *
                      IPC_LAYOUT_PAGE;
    int result;

    if (offset < file->ids_populated)
        return 0;
    result = charge(file, IPC_LAYOUT_PAGE);
    if (result < 0)
        return result;
    result = populate(file, offset, IPC_LAYOUT_PAGE);
    if (result < 0)
        discharge(file, IPC_LAYOUT_PAGE);
    else
        file->ids_populated = offset + IPC_LAYOUT_PAGE;
    return result;
}

uint32_t file_id_append(struct file *file, const struct file_id *id)
{
    uint64_t count = atomic_load_explicit(&file->header->ids, memory_order_relaxed);
    uint32_t place = (uint32_t)(count % file->header->dedup_window);

    file->ids[place] = *id;
    atomic_store_explicit(&file->header->ids, count + 1, memory_order_release);
    return place;
}
