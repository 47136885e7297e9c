/* How fast kernels are.
 *
 * Ternary products run at the shapes of BitNet b1.58 2B4T over a working set that no cache holds, as a token's pass over
 * a model does: each thread multiplies its part of the rows of one matrix after another. Beside them stands the memory's
 * own speed, read in the same minute: four streams, prefetched. The other kernels run in the cache, beside the
 * reference. */
#include "check.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define ROUNDS 7

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- from memory -------------------------------------------------------------------------------------------------- */

#define WORKING_SET ((size_t)512 << 20)
#define MOST_PRODUCTS 16e9      /* multiplications a round: with many rows of x not all of the working set is used */
#define MAX_THREADS 64
#define MAX_N 512

struct job {
    const struct kernels *k;            /* NULL: read only */
    const uint8_t *w;
    size_t matrices, rows, cols, n;
    unsigned threads;
};

struct part { struct job *job; unsigned thread; int32_t *out; const int8_t *x; pthread_t id; };

typedef uint64_t vector __attribute__((vector_size(32)));

static uint64_t read_streams(const uint8_t *p, size_t bytes)
{
    const size_t apart = bytes / 4 / 64 * 64;
    vector sum[4] = {0};

    for (size_t i = 0; i < apart; i += 64)
#pragma GCC unroll 4
        for (size_t s = 0; s < 4; s++) {
            const vector *at = (const vector *)(p + s * apart + i);

            __builtin_prefetch((const uint8_t *)at + 1024);
            sum[s] ^= at[0] ^ at[1];
        }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3];
}

static void *run_part(void *arg)
{
    struct part *p = arg;
    const struct job *j = p->job;
    size_t group = 16, groups = (j->rows + group - 1) / group;
    size_t from = groups * p->thread / j->threads * group, to = MIN(groups * (p->thread + 1) / j->threads * group, j->rows);
    size_t bytes = j->rows * j->cols / 4;

    if (!j->k) {
        size_t share = j->matrices * bytes / j->threads / 256 * 256;

        *(volatile uint64_t *)p->out = read_streams(j->w + p->thread * share, share);
        return NULL;
    }
    for (size_t m = 0; m < j->matrices; m++)
        j->k->ternary_matmul(p->out, to - from, j->w + m * bytes + j->k->layout->bytes(from, j->cols), p->x, j->cols, j->n,
                             to - from, j->cols);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b;
}

/* Seconds a round: the median, and the best. */
static double run_job(struct job *j, struct part *parts, double *ret_best)
{
    double taken[ROUNDS];

    for (size_t r = 0; r < ROUNDS; r++) {
        double begin = seconds();

        for (unsigned t = 1; t < j->threads; t++) {
            parts[t].job = j;
            if (pthread_create(&parts[t].id, NULL, run_part, &parts[t]))
                exit(2);
        }
        parts[0].job = j;
        run_part(&parts[0]);
        for (unsigned t = 1; t < j->threads; t++)
            pthread_join(parts[t].id, NULL);
        taken[r] = seconds() - begin;
    }
    qsort(taken, ROUNDS, sizeof(*taken), compare);
    *ret_best = taken[0];
    return taken[ROUNDS / 2];
}

int bench_ternary(const struct kernels *k, unsigned max_threads)
{
    static const struct { size_t rows, cols; } shapes[] = { { 2560, 2560 }, { 640, 2560 }, { 6912, 2560 }, { 2560, 6912 } };
    static const size_t ns[] = { 1, 2, 3, 4, 8, 32, 128, 512 };
    uint8_t *w = mmap(NULL, WORKING_SET, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct part parts[MAX_THREADS];

    if (w == MAP_FAILED)
        return 2;
    madvise(w, WORKING_SET, MADV_HUGEPAGE);
    max_threads = MIN(max_threads, MAX_THREADS);
    for (size_t i = 0; i < WORKING_SET; i += 8) {
        uint64_t codes = random_u64();

        codes &= ~(codes >> 1 & codes & 0x5555555555555555);        /* no code is 3 */
        memcpy(w + i, &codes, sizeof(codes));
    }
    for (unsigned t = 0; t < max_threads; t++)
        parts[t] = (struct part){ .thread = t, .out = allocate(MAX_N * 6912 * sizeof(int32_t)),
                                  .x = random_activations(MAX_N * 6912, false) };
    for (unsigned threads = 1; threads <= max_threads; threads *= 2) {
        for (size_t s = 0; s < ARRAY_SIZE(shapes); s++) {
            struct job read = { .w = w, .matrices = 1, .rows = 2048, .cols = WORKING_SET / 512, .threads = threads };
            double best, middle = run_job(&read, parts, &best), speed = (double)WORKING_SET / 1e9 / best;

            printf("%-10s threads %u  memory %.1f GB/s, best %.1f\n", k->name, threads, (double)WORKING_SET / 1e9 / middle, speed);
            for (size_t i = 0; i < ARRAY_SIZE(ns); i++) {
                size_t bytes = shapes[s].rows * shapes[s].cols / 4;
                double products = (double)(bytes * 4 * ns[i]);
                struct job j = { .k = k, .w = w, .rows = shapes[s].rows, .cols = shapes[s].cols, .n = ns[i], .threads = threads,
                                 .matrices = MIN(WORKING_SET / bytes, (size_t)(MOST_PRODUCTS / products) + 1) };
                double median = run_job(&j, parts, &best), all = (double)(bytes * j.matrices) / 1e9;

                printf("%-10s threads %u  %4zu x %4zu  n %3zu  %6.2f GB/s %7.1f GMAC/s %5.1f %% of memory;  best %6.2f GB/s "
                       "%7.1f GMAC/s %5.1f %%\n", k->name, threads, j.rows, j.cols, j.n, all / median,
                       all * 4 * (double)j.n / median, 100 * all / median / speed, all / best, all * 4 * (double)j.n / best,
                       100 * all / best / speed);
                fflush(stdout);
            }
        }
    }
    for (unsigned t = 0; t < max_threads; t++) {
        free(parts[t].out);
        free((void *)parts[t].x);
    }
    munmap(w, WORKING_SET);
    return 0;
}

/* ---- in the cache ------------------------------------------------------------------------------------------------ */

#define BENCH_COLS 2560
#define BENCH_ROWS 256

struct bench {
    uint8_t *sixbit, *q8_0;
    uint16_t *half;
    float *single, *x, *out;
    int8_t *q;
};

static void bench_sixbit(const struct kernels *k, struct bench *b)
{
    k->sixbit_matmul((int32_t *)b->out, BENCH_ROWS, b->sixbit, b->q, BENCH_COLS, 2, BENCH_ROWS, BENCH_COLS);
}
static void bench_exp_sums(const struct kernels *k, struct bench *b)
{
    k->exp_sums(b->x, BENCH_COLS, 1, (double *)b->out, (double *)b->out + 1);
}
static void bench_quantize(const struct kernels *k, struct bench *b) { k->quantize_row(b->q, b->x, BENCH_COLS); }
static void bench_rms_norm(const struct kernels *k, struct bench *b) { k->rms_norm(b->out, b->x, b->single, BENCH_COLS, 1e-5f); }
static void bench_dot(const struct kernels *k, struct bench *b) { *b->out = k->dot_f32(b->x, b->single, BENCH_COLS); }
static void bench_axpy(const struct kernels *k, struct bench *b) { k->axpy_f32(b->out, 1e-9f, b->x, BENCH_COLS); }
static void bench_f16(const struct kernels *k, struct bench *b)
{
    k->matmul_f16(b->out, BENCH_ROWS, b->half, b->x, BENCH_COLS, 1, BENCH_ROWS, BENCH_COLS);
}
static void bench_q8_0(const struct kernels *k, struct bench *b)
{
    k->matmul_q8_0(b->out, BENCH_ROWS, b->q8_0, b->x, BENCH_COLS, 1, BENCH_ROWS, BENCH_COLS);
}
static void bench_f32(const struct kernels *k, struct bench *b)
{
    k->matmul_f32(b->out, BENCH_ROWS, b->single, b->x, BENCH_COLS, 1, BENCH_ROWS, BENCH_COLS);
}
static void bench_softmax(const struct kernels *k, struct bench *b) { k->softmax(b->out, BENCH_COLS); }
static void bench_relu2(const struct kernels *k, struct bench *b) { k->relu2_mul(b->out, b->x, b->single, BENCH_COLS); }
static void bench_silu(const struct kernels *k, struct bench *b) { k->silu_mul(b->out, b->x, b->single, BENCH_COLS); }

/* A page for four queries of 128, as the 2B model has them; what q8_0 points to serves as integers. */
static void bench_attend_f16(const struct kernels *k, struct bench *b)
{
    struct attend a[4] = { { -INFINITY, 0 }, { -INFINITY, 0 }, { -INFINITY, 0 }, { -INFINITY, 0 } };

    k->attend_f16(b->out, a, b->x, 4, b->half, b->half + 8192, 128, 0, ATTEND_TOKENS);
}
static void bench_attend_int8(const struct kernels *k, struct bench *b)
{
    struct attend a[4] = { { -INFINITY, 0 }, { -INFINITY, 0 }, { -INFINITY, 0 }, { -INFINITY, 0 } };
    static const float units[ATTEND_TOKENS] = { [0 ... ATTEND_TOKENS - 1] = 1e-3f };

    k->attend_int8(b->out, a, b->q, units, 4, b->q, units, b->q + 8192, units, 128, 0, ATTEND_TOKENS);
}

static const struct { const char *name; void (*run)(const struct kernels *, struct bench *); } benches[] = {
    { "sixbit_matmul n=2", bench_sixbit },     { "exp_sums", bench_exp_sums },
    { "quantize_row", bench_quantize },        { "rms_norm", bench_rms_norm },
    { "dot_f32", bench_dot },                  { "axpy_f32", bench_axpy },
    { "matmul_f16", bench_f16 },               { "matmul_q8_0", bench_q8_0 },
    { "matmul_f32", bench_f32 },               { "softmax", bench_softmax },
    { "relu2_mul", bench_relu2 },              { "silu_mul", bench_silu },
    { "attend_f16", bench_attend_f16 },        { "attend_int8", bench_attend_int8 },
};

/* The best of five, each long enough to be seen; nanoseconds a call. */
static double time_of(void (*run)(const struct kernels *, struct bench *), const struct kernels *k, struct bench *b)
{
    double best = INFINITY;
    size_t calls = 1;

    for (int round = 0; round < 5;) {
        struct timespec begin, end;
        double nsec;

        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (size_t i = 0; i < calls; i++)
            run(k, b);
        clock_gettime(CLOCK_MONOTONIC, &end);
        nsec = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
        if (nsec < 5e6) {
            calls *= 2;
            continue;
        }
        best = fmin(best, nsec / (double)calls);
        round++;
    }
    return best;
}

void bench_small(const struct kernels *ref, const struct kernels *variant)
{
    struct bench b = {
        .q8_0 = random_q8_0(BENCH_ROWS * BENCH_COLS / Q8_0_BLOCK),
        .sixbit = random_ternary(BENCH_ROWS * BENCH_COLS / 4 * 3, false),
        .half = allocate(BENCH_ROWS * BENCH_COLS * 2), .single = random_floats(BENCH_ROWS * BENCH_COLS, KIND_PLAIN),
        .x = random_floats(BENCH_COLS, KIND_PLAIN), .out = random_floats(BENCH_COLS * 8, KIND_PLAIN),
        .q = random_activations(BENCH_COLS * 8, false),
    };

    for (size_t i = 0; i < BENCH_ROWS * BENCH_COLS; i++)
        b.half[i] = f32_to_f16(b.single[i]);
    for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
        double slow = time_of(benches[i].run, ref, &b), fast = time_of(benches[i].run, variant, &b);

        printf("%-6s %-20s %10.0f ns %8.1fx\n", variant->name, benches[i].name, fast, slow / fast);
    }
    free(b.sixbit);
    free(b.q8_0);
    free(b.half);
    free(b.single);
    free(b.x);
    free(b.out);
    free(b.q);
}

