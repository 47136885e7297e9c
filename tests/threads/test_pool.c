/* The pool under the thread sanitizer: every element of every range exactly once, ranges that are multiples of the grain,
 * the results visible to the caller, with threads both spinning and asleep between runs; and a forward pass on it. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "engine/internal.h"
#include "tests/engine/gguf_write.h"

#define MAX_N 1000

struct job { int times[MAX_N]; size_t grain, n; int bad; };

static void count(void *arg, size_t begin, size_t end)
{
    struct job *j = arg;

    if (begin % j->grain || (end % j->grain && end != j->n))
        __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    for (size_t i = begin; i < end; i++)
        j->times[i]++;          /* unsynchronised on purpose: ranges must not meet */
}

static int check_runs(unsigned threads, int runs)
{
    static struct job j;
    struct pool *p;

    if (pool_new(&p, threads) < 0 || pool_threads(p) != threads)
        return 1;
    for (int run = 0; run < runs; run++) {
        memset(&j, 0, sizeof(j));
        j.n = (size_t)(run * 7919) % (MAX_N + 1);
        j.grain = (size_t)(run % 5) * 16 + 1;
        if (run % 50 == 49)
            nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);        /* the threads fall asleep */
        pool_run(p, j.n, j.grain, count, &j);
        for (size_t i = 0; i < MAX_N; i++)
            if (j.bad || j.times[i] != (i < j.n)) {
                printf("%u threads, run %d, n %zu, grain %zu: element %zu %d times\n", threads, run, j.n, j.grain, i, j.times[i]);
                return 1;
            }
    }
    pool_free(p);
    return 0;
}

static int check_forward(void)
{
    struct tiny spec = TINY;
    size_t size;
    cleanup(freep) uint8_t *file = NULL;
    static float logits[2][300];
    struct model *m;

    spec.n_embd = 512;
    spec.n_ff = 1024;
    file = tiny_file(&spec, &size);
    if (model_open_memory(&m, file, size, NULL, NULL) < 0)
        return 1;
    for (unsigned i = 0; i < 2; i++) {
        struct forward_row rows[24];
        struct forward *f;
        struct session *s;
        struct kv_pool *kv;
        struct pool *p;

        if (pool_new(&p, i ? 4 : 1) < 0 || forward_new(&f, m, p, 24, NULL) < 0 ||
            kv_pool_new(&kv, m, KV_INT8, 0, NULL) < 0 || session_new(&s, kv, 0) < 0)
            return 1;
        for (int32_t k = 0; k < 24; k++)
            rows[k] = (struct forward_row){ .session = s, .token = k * 11, .logits = k == 23 ? logits[i] : NULL };
        if (forward_run(f, rows, 24) < 0)
            return 1;
        session_free(s);
        kv_pool_free(kv);
        forward_free(f);
        pool_free(p);
    }
    model_free(m);
    if (memcmp(logits[0], logits[1], sizeof(logits[0]))) {
        printf("four threads give other logits than one\n");
        return 1;
    }
    return 0;
}

int main(void)
{
    int failures = check_runs(1, 50) + check_runs(2, 300) + check_runs(3, 300) + check_runs(8, 150) + check_forward();

    printf("%d failures\n", failures);
    return failures != 0;
}
