/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/core/control/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "broker/core/control/segment.h"

struct worker {
    pthread_t thread;
    int event_fd;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct list waiting, done;
    bool stopping;
};

static void *run(void *data)
{
    struct worker *worker = data;

    (void)prctl(PR_SET_NAME, "allocator");
    (void)pthread_mutex_lock(&worker->lock);
    while (!worker->stopping) {
        const uint64_t one = 1;
        struct job *job;

        if (list_empty(&worker->waiting)) {
            (void)pthread_cond_wait(&worker->changed, &worker->lock);
            continue;
        }
        job = list_entry(worker->waiting.next, struct job, link);
        list_remove(&job->link);
        (void)pthread_mutex_unlock(&worker->lock);
        if (job->destroy)
            job->fd = segment_destroy(job->fd, job->size);
        else
            job->result = segment_allocate(job->fd, job->size);
        (void)pthread_mutex_lock(&worker->lock);
        list_append(&worker->done, &job->link);
        (void)!write(worker->event_fd, &one, sizeof(one));
    }
    (void)pthread_mutex_unlock(&worker->lock);
    return NULL;
}

struct worker *worker_new(int event_fd)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    sigset_t all, before;
    int result;

    if (!worker)
        return NULL;
    worker->event_fd = event_fd;
    list_init(&worker->waiting);
    list_init(&worker->done);
    (void)pthread_mutex_init(&worker->lock, NULL);
    (void)pthread_cond_init(&worker->changed, NULL);
    sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &before);
    result = pthread_create(&worker->thread, NULL, run, worker);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0) {
        free(worker);
        return NULL;
    }
    return worker;
}

struct worker *worker_free(struct worker *worker, void (*drop)(struct job *job))
{
    if (!worker)
        return NULL;
    (void)pthread_mutex_lock(&worker->lock);
    worker->stopping = true;
    (void)pthread_cond_signal(&worker->changed);
    (void)pthread_mutex_unlock(&worker->lock);
    (void)pthread_join(worker->thread, NULL);
    list_for_each_safe(node, &worker->waiting) drop(list_entry(node, struct job, link));
    list_for_each_safe(done, &worker->done) drop(list_entry(done, struct job, link));
    (void)pthread_cond_destroy(&worker->changed);
    (void)pthread_mutex_destroy(&worker->lock);
    free(worker);
    return NULL;
}

void worker_push(struct worker *worker, struct job *job)
{
    (void)pthread_mutex_lock(&worker->lock);
    list_append(&worker->waiting, &job->link);
    (void)pthread_cond_signal(&worker->changed);
    (void)pthread_mutex_unlock(&worker->lock);
}

struct job *worker_pop(struct worker *worker)
{
    struct job *job = NULL;

    (void)pthread_mutex_lock(&worker->lock);
    if (!list_empty(&worker->done)) {
        job = list_entry(worker->done.next, struct job, link);
        list_remove(&job->link);
    }
    (void)pthread_mutex_unlock(&worker->lock);
    return job;
}
