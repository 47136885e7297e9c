/* A few persistent threads that share one range. Decode hands out dozens of ranges a token, a few microseconds each, so
 * a waiting thread spins for a moment and sleeps only then.
 *
 * The range is cut into some pieces a thread and whoever is free claims the next one, the caller too: slow cores take
 * fewer, and a thread that the kernel has taken off its core holds up nobody unless it is inside a piece. A thread may
 * therefore come to a run that is over, even while the next one is being written down. So a claim names its run: `claim`
 * is (turn << 32 | next piece), and who reads the run's fields and then moves `claim` on from the same turn has read the
 * fields of a run that cannot end before its piece is done.
 *
 * Sleepers count themselves under the lock and look once more; the other side changes the value first and then looks for
 * sleepers. Both are sequentially consistent, so one of the two sees the other and no wake-up is lost. */
#include "engine/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#define SPINS 1000              /* tens of microseconds */
#define PIECES_A_THREAD 4

struct gate {                   /* where one side waits for an atomic to change */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_uint sleepers;
};

struct pool {
    unsigned threads, started;
    pthread_t *ids;             /* (threads - 1) */
    atomic_uint turn;           /* the run announced last */
    atomic_bool stop;
    struct gate work, done;

    /* The run. Atomic since late threads read it at any time (see above). */
    _Atomic(uint64_t) claim;
    void (*_Atomic fn)(void *arg, size_t begin, size_t end);
    void *_Atomic arg;
    _Atomic size_t n, piece;
    atomic_uint pieces, finished;
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

/* Take pieces of this turn's run until none is left; returns whether its last one was finished here. */
static bool run_pieces(struct pool *p, unsigned turn)
{
    unsigned pieces = atomic_load(&p->pieces);
    size_t n = atomic_load(&p->n), piece = atomic_load(&p->piece);
    void (*fn)(void *, size_t, size_t) = atomic_load(&p->fn);
    void *arg = atomic_load(&p->arg);
    uint64_t claim = atomic_load(&p->claim);
    bool last = false;

    while (claim >> 32 == turn && (uint32_t)claim < pieces) {
        size_t begin = (uint32_t)claim * piece;

        if (!atomic_compare_exchange_weak(&p->claim, &claim, claim + 1))
            continue;
        fn(arg, begin, MIN(begin + piece, n));
        last = atomic_fetch_add(&p->finished, 1) + 1 == pieces;
        claim = atomic_load(&p->claim);
    }
    return last;
}

static void *pool_thread(void *arg)
{
    struct pool *p = arg;
    unsigned seen = 0;

    for (;;) {
        gate_wait(&p->work, &p->turn, seen);
        seen = atomic_load(&p->turn);
        if (atomic_load(&p->stop))
            return NULL;
        if (run_pieces(p, seen))
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
    size_t piece = n / (p->threads * PIECES_A_THREAD) / grain * grain;
    unsigned turn = atomic_load(&p->turn) + 1, pieces, finished;

    if (!n)
        return;
    if (p->threads == 1 || n <= grain) {
        fn(arg, 0, n);
        return;
    }
    piece = MAX(piece, grain);
    pieces = (unsigned)((n + piece - 1) / piece);
    atomic_store(&p->claim, (uint64_t)turn << 32 | UINT32_MAX);      /* close the last run before its fields change */
    atomic_store(&p->fn, fn);
    atomic_store(&p->arg, arg);
    atomic_store(&p->n, n);
    atomic_store(&p->piece, piece);
    atomic_store(&p->pieces, pieces);
    atomic_store(&p->finished, 0);
    atomic_store(&p->claim, (uint64_t)turn << 32);
    announce(p);
    run_pieces(p, turn);
    while ((finished = atomic_load(&p->finished)) < pieces)
        gate_wait(&p->done, &p->finished, finished);
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
