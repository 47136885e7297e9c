/* Each kernel of every variant by itself, over weights that stay in the cache and weights that come from memory. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"

#define MEMORY_BYTES ((size_t)128 << 20)       /* of weights that do not stay in any cache */
#define CACHE_BYTES ((size_t)256 << 10)
#define MOST_ACTIVATIONS 128
#define LEAST_NSEC 20e6         /* of a timing */
#define TIMINGS 5
#define VECTOR 4096

struct work {
    const struct kernels *k;
    uint8_t *weights;
    float *x, *y, *out;
    int8_t *q;
    int32_t *sums;
    size_t n, rows, cols;
};

static void run_ternary(struct work *w)
{
    for (size_t r = 0; r < w->rows; r += 128)
        w->k->ternary_matmul(w->sums, 128, w->weights + w->k->layout->bytes(r, w->cols), w->q, w->cols, w->n,
                             MIN(w->rows - r, 128), w->cols);
}

static void run_sixbit(struct work *w)
{
    for (size_t r = 0; r < w->rows; r += 64)
        w->k->sixbit_matmul(w->sums, 64, w->weights + r * (w->cols / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES), w->q, w->cols,
                            w->n, MIN(w->rows - r, 64), w->cols);
}

static void run_f16(struct work *w)
{
    for (size_t r = 0; r < w->rows; r += 64)
        w->k->matmul_f16(w->out, 64, (uint16_t *)(void *)w->weights + r * w->cols, w->x, w->cols, w->n,
                         MIN(w->rows - r, 64), w->cols);
}

static void run_f32(struct work *w)
{
    for (size_t r = 0; r < w->rows; r += 64)
        w->k->matmul_f32(w->out, 64, (float *)(void *)w->weights + r * w->cols, w->x, w->cols, w->n,
                         MIN(w->rows - r, 64), w->cols);
}

static void run_q8_0(struct work *w)
{
    for (size_t r = 0; r < w->rows; r += 64)
        w->k->matmul_q8_0(w->out, 64, w->weights + r * (w->cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES), w->x, w->cols, w->n,
                          MIN(w->rows - r, 64), w->cols);
}

static void run_quantize(struct work *w) { w->k->quantize_row(w->q, w->x, w->n); }
static void run_rms_norm(struct work *w) { w->k->rms_norm(w->out, w->x, w->y, w->n, 1e-5f); }
static void run_softmax(struct work *w) { w->k->softmax(w->out, w->n); }
static void run_relu2(struct work *w) { w->k->relu2_mul(w->out, w->x, w->y, w->n); }
static void run_silu(struct work *w) { w->k->silu_mul(w->out, w->x, w->y, w->n); }
static void run_dot(struct work *w) { w->out[0] = w->k->dot_f32(w->x, w->y, w->n); }
static void run_axpy(struct work *w) { w->k->axpy_f32(w->out, 1e-9f, w->x, w->n); }
static void run_exp_sums(struct work *w)
{
    double sums[2];

    w->k->exp_sums(w->x, w->n, 1, &sums[0], &sums[1]);
    w->out[0] = (float)(sums[0] + sums[1]);
}

/* bits: of a weight with its share of scales, times 16; 0: a kernel of vectors. */
static const struct product { const char *name; void (*run)(struct work *); size_t bits16; } products[] = {
    { "ternary_matmul", run_ternary, 32 }, { "sixbit_matmul", run_sixbit, 96 }, { "matmul_f16", run_f16, 256 },
    { "matmul_q8_0", run_q8_0, 136 },      { "matmul_f32", run_f32, 512 },
};
static const struct { const char *name; void (*run)(struct work *); } vectors[] = {
    { "quantize_row", run_quantize }, { "rms_norm", run_rms_norm }, { "softmax", run_softmax }, { "relu2_mul", run_relu2 },
    { "silu_mul", run_silu }, { "dot_f32", run_dot }, { "axpy_f32", run_axpy }, { "exp_sums", run_exp_sums },
};

/* Seconds a call: the best of some timings, each long enough to be seen. */
static double time_of(void (*run)(struct work *), struct work *w)
{
    double best = INFINITY;
    size_t calls = 1;

    for (int round = 0; round < TIMINGS;) {
        struct timespec begin, end;
        double nsec;

        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (size_t i = 0; i < calls; i++)
            run(w);
        clock_gettime(CLOCK_MONOTONIC, &end);
        nsec = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
        if (nsec < LEAST_NSEC / 4) {
            calls *= 2;
            continue;
        }
        best = fmin(best, nsec / (double)calls);
        round++;
    }
    return best * 1e-9;
}

static void time_product(const struct product *p, struct work *w, size_t n, size_t cols, size_t bytes,
                         void (*print)(void *arg, const struct kernel_time *t), void *arg)
{
    struct kernel_time t = { .variant = w->k->name, .kernel = p->name };
    size_t row = cols * p->bits16 / 128;

    w->n = n;
    w->cols = cols;
    w->rows = bytes / row / 128 * 128;
    snprintf(t.shape, sizeof(t.shape), "n %zu, cols %zu, %s", n, cols, bytes == MEMORY_BYTES ? "memory" : "cache");
    report_progress("%s %s: %s", t.variant, t.kernel, t.shape);
    t.seconds = time_of(p->run, w);
    t.bytes = w->rows * row;
    t.products = w->rows * cols * n;
    report_progress("%s", "");
    print(arg, &t);
}

static void time_variant(struct work *w, void (*print)(void *arg, const struct kernel_time *t), void *arg)
{
    static const size_t widths[] = { 2560, 6912 }, ns[] = { 1, 8, MOST_ACTIVATIONS };
    bool slow = !strcmp(w->k->name, "ref");        /* its time is told for small shapes only */

    for (size_t p = 0; p < ARRAY_SIZE(products); p++)
        for (size_t c = 0; c < ARRAY_SIZE(widths); c++)
            for (size_t i = 0; i < ARRAY_SIZE(ns) - (slow ? 2 : p ? 1 : 0); i++) {
                time_product(&products[p], w, ns[i], widths[c], CACHE_BYTES * (products[p].bits16 > 128 ? 16 : 4),
                             print, arg);
                if (!slow && i == 0)
                    time_product(&products[p], w, ns[i], widths[c], MEMORY_BYTES, print, arg);
            }
    for (size_t v = 0; v < ARRAY_SIZE(vectors); v++) {
        struct kernel_time t = { .variant = w->k->name, .kernel = vectors[v].name, .bytes = VECTOR * sizeof(float),
                                 .products = VECTOR };

        w->n = VECTOR;
        snprintf(t.shape, sizeof(t.shape), "n %d", VECTOR);
        t.seconds = time_of(vectors[v].run, w);
        print(arg, &t);
    }
}

int bench_kernels(void (*print)(void *arg, const struct kernel_time *t), void *arg)
{
    const struct kernels *const *list;
    size_t n = kernels_list(&list), most = MOST_ACTIVATIONS * 6912;
    cleanup(freep) uint8_t *weights = aligned_alloc(64, MEMORY_BYTES + 4096);
    cleanup(freep) float *x = malloc(most * sizeof(float)), *out = calloc(MOST_ACTIVATIONS * 128, sizeof(float));
    cleanup(freep) int8_t *q = malloc(most);
    cleanup(freep) int32_t *sums = malloc(MOST_ACTIVATIONS * 128 * sizeof(int32_t));
    struct work w = { .weights = weights, .x = x, .y = x, .out = out, .q = q, .sums = sums };

    if (!weights || !x || !out || !q || !sums)
        return -ENOMEM;
    /* Bytes that are valid codes, finite halves and finite floats alike. */
    for (size_t i = 0; i < MEMORY_BYTES + 4096; i++)
        weights[i] = (uint8_t)((i * 2654435761u >> 13) % 3 * 0x15);
    for (size_t i = 0; i < most; i++) {
        x[i] = (float)(int)(i * 2654435761u >> 12 & 255) / 256 - 0.5f;
        q[i] = (int8_t)(x[i] * 254);
    }
    for (size_t i = 0; i < n; i++) {
        w.k = list[i];
        time_variant(&w, print, arg);
    }
    return 0;
}
