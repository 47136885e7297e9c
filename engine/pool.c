/* A few persistent threads that split one range. Decode hands out dozens of ranges a token, a few microseconds each, so
 * a waiting thread spins for a moment and sleeps only then.
 *
 * A run is announced by a new `turn`; its fields are written before and read after it. Sleepers count themselves under
 * the lock and look at the turn once more; the announcer raises the turn first and then looks for sleepers: with both
 * orders sequentially consistent one of the two sees the other, so no wake-up is lost. The way back (`busy` falling to
 * zero, the caller asleep or not) is the same handshake. */
#include "engine/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#define SPINS 4000              /* some ten microseconds */

struct gate {                   /* where one side waits for an atomic to change */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_uint sleepers;
};

struct pool {
    unsigned threads, started;
    pthread_t *ids;             /* (threads - 1) */
    atomic_uint turn, busy, next_index;
    atomic_bool stop;
    struct gate work, done;

    /* The run of this turn. */
    void (*fn)(void *arg, size_t begin, size_t end);
    void *arg;
    size_t n, grain;
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until *value is no longer `old`; spins first. */
static void gate_wait(struct gate *g, atomic_uint *value, unsigned old)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(value) != old)
            return;
        pause_briefly();
    }
    pthread_mutex_lock(&g->lock);
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(value) == old)
        pthread_cond_wait(&g->changed, &g->lock);
    atomic_fetch_sub(&g->sleepers, 1);
    pthread_mutex_unlock(&g->lock);
}

/* After the value has changed. */
static void gate_open(struct gate *g)
{
    if (!atomic_load(&g->sleepers))
        return;
    pthread_mutex_lock(&g->lock);
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void run_share(struct pool *p, unsigned index)
{
    size_t units = (p->n + p->grain - 1) / p->grain;
    size_t begin = units * index / p->threads * p->grain, end = units * (index + 1) / p->threads * p->grain;

    end = MIN(end, p->n);
    if (begin < end)
        p->fn(p->arg, begin, end);
}

static void *pool_thread(void *arg)
{
    struct pool *p = arg;
    unsigned index = atomic_fetch_add(&p->next_index, 1), seen = 0;

    for (;;) {
        gate_wait(&p->work, &p->turn, seen);
        seen++;                 /* pool_run() waits for all, so a turn is never missed */
        if (atomic_load(&p->stop))
            return NULL;
        run_share(p, index);
        if (atomic_fetch_sub(&p->busy, 1) == 1)
            gate_open(&p->done);
    }
}

static void announce(struct pool *p)
{
    atomic_fetch_add(&p->turn, 1);
    gate_open(&p->work);
}

void pool_run(struct pool *p, size_t n, size_t grain, void (*fn)(void *arg, size_t begin, size_t end), void *arg)
{
    unsigned left;

    if (!n)
        return;
    if (p->threads == 1 || n <= grain) {
        fn(arg, 0, n);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    p->grain = grain;
    atomic_store(&p->busy, p->threads - 1);
    announce(p);
    run_share(p, 0);
    while ((left = atomic_load(&p->busy)))
        gate_wait(&p->done, &p->busy, left);
}

static int gate_init(struct gate *g)
{
    int r = pthread_mutex_init(&g->lock, NULL);

    if (r)
        return -r;
    r = pthread_cond_init(&g->changed, NULL);
    if (r)
        pthread_mutex_destroy(&g->lock);
    return -r;
}

static void gate_done(struct gate *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

int pool_new(struct pool **ret, unsigned threads)
{
    struct pool *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return -ENOMEM;
    p->threads = threads;
    p->next_index = 1;
    p->ids = calloc(threads, sizeof(*p->ids));
    r = p->ids ? gate_init(&p->work) : -ENOMEM;
    if (r < 0)
        goto no_work;
    r = gate_init(&p->done);
    if (r < 0)
        goto no_done;
    for (; p->started < threads - 1; p->started++) {
        r = -pthread_create(&p->ids[p->started], NULL, pool_thread, p);
        if (r < 0) {
            pool_free(p);
            return r;
        }
    }
    *ret = p;
    return 0;

no_done:
    gate_done(&p->work);
no_work:
    free(p->ids);
    free(p);
    return r;
}

void pool_free(struct pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    announce(p);
    for (unsigned i = 0; i < p->started; i++)
        pthread_join(p->ids[i], NULL);
    gate_done(&p->work);
    gate_done(&p->done);
    free(p->ids);
    free(p);
}

unsigned pool_threads(const struct pool *p)
{
    return p->threads;
}
