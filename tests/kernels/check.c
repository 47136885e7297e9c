/* Every kernel variant of this machine against the reference, byte for byte, after dav1d's checkasm: odd shapes,
 * adversarial values, guard bytes around every output, inputs of exactly the size they need (so that the address
 * sanitizer sees a read past them).
 *
 *     check [--seed N]      exit status 1 when a variant differs
 *     check --bench         also the time of each kernel, reference / variant */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "kernels/kernels.h"

#define GUARD 64
#define GUARD_BYTE 0xa5

static uint64_t random_state = 1;
static const struct kernels *ref, *variant;
static size_t n_checks, n_failures;

static uint64_t random_u64(void)       /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static double random_unit(void)
{
    return (double)(random_u64() >> 11) * 0x1p-53;
}

static void *allocate(size_t bytes)
{
    void *p = malloc(bytes + !bytes);

    if (!p)
        exit(2);
    return p;
}

/* Two equal outputs, one for the reference and one for the variant. */
struct outputs { uint8_t *base[2]; size_t bytes; };

static struct outputs outputs_new(size_t bytes)
{
    struct outputs o = { .bytes = bytes };

    for (int i = 0; i < 2; i++) {
        o.base[i] = allocate(bytes + 2 * GUARD);
        memset(o.base[i], GUARD_BYTE, bytes + 2 * GUARD);
    }
    return o;
}

static void *output(const struct outputs *o, int i)
{
    return o->base[i] + GUARD;
}

static bool guard_intact(const uint8_t *p)
{
    for (size_t i = 0; i < GUARD; i++)
        if (p[i] != GUARD_BYTE)
            return false;
    return true;
}

static void outputs_check(struct outputs *o, const char *kernel, const char *shape)
{
    bool intact = true;

    n_checks++;
    for (int i = 0; i < 2; i++)
        intact = intact && guard_intact(o->base[i]) && guard_intact(o->base[i] + GUARD + o->bytes);
    if (!intact || memcmp(o->base[0], o->base[1], o->bytes + 2 * GUARD)) {
        size_t at = 0;

        while (at < o->bytes && o->base[0][GUARD + at] == o->base[1][GUARD + at])
            at++;
        printf("FAILED %s %s %s: %s at byte %zu\n", variant->name, kernel, shape, intact ? "differs" : "wrote outside", at);
        n_failures++;
    }
    free(o->base[0]);
    free(o->base[1]);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

enum { KIND_PLAIN, KIND_WIDE, KIND_TINY, KIND_ZERO, KIND_TIES, KIND_SIGNED_ZERO, KIND_HUGE, N_KINDS };

static float random_float(int kind)
{
    float sign = random_u64() & 1 ? 1 : -1;

    switch (kind) {
    case KIND_WIDE: return sign * (float)exp2(random_unit() * 80 - 40);
    case KIND_TINY: return sign * (float)(random_unit() * 1e-38);              /* many are subnormal */
    case KIND_ZERO: return 0;
    case KIND_TIES: return sign * ((float)(random_u64() % 127) + 0.5f);
    case KIND_SIGNED_ZERO: return random_u64() % 4 ? sign * 0.0f : sign;
    case KIND_HUGE: return sign * (float)(random_unit() * 1e17);
    default: return (float)(random_unit() * 2 - 1);
    }
}

static float *random_floats(size_t n, int kind)
{
    float *x = allocate(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = random_float(kind);
    if (kind == KIND_TIES && n)
        x[random_u64() % n] = 127;       /* so that the scale is one */
    return x;
}

static int8_t *random_activations(size_t n, bool extreme)
{
    int8_t *x = allocate(n);

    for (size_t i = 0; i < n; i++)
        x[i] = extreme ? (random_u64() % 8 ? 127 : -127) : (int8_t)(random_u64() % 255 - 127);
    if (extreme && random_u64() & 1)
        memset(x, random_u64() & 1 ? 127 : -127, n);
    return x;
}

static uint8_t *random_ternary(size_t bytes, bool extreme)
{
    static const uint8_t whole[] = { 0x00, 0x55, 0xaa };
    uint8_t *w = allocate(bytes);

    if (extreme) {
        memset(w, whole[random_u64() % 3], bytes);
        return w;
    }
    for (size_t i = 0; i < bytes; i++)
        w[i] = random_u64() % 3 | random_u64() % 3 << 2 | random_u64() % 3 << 4 | random_u64() % 3 << 6;
    return w;
}

static uint16_t random_half(void)       /* finite, all exponents */
{
    uint16_t h;

    do
        h = (uint16_t)random_u64();
    while ((h & 0x7c00) == 0x7c00);
    return h;
}

/* ---- one check a kernel ----------------------------------------------------------------------------------------- */

static void check_ternary(void)
{
    static const size_t widths[] = { 128, 256, 384, 1920, 2048, 2176, 2560, 6912, 8704 };

    for (size_t i = 0; i < 120; i++) {
        size_t n = random_u64() % 10, rows = random_u64() % 40, cols = widths[random_u64() % ARRAY_SIZE(widths)];
        size_t out_stride = rows + random_u64() % 5, x_stride = cols + random_u64() % 70;
        cleanup(freep) uint8_t *w = random_ternary(rows * cols / 4, i % 4 == 3);
        cleanup(freep) uint8_t *own = allocate(variant->layout->bytes(rows, cols));
        cleanup(freep) int8_t *x = random_activations(n ? (n - 1) * x_stride + cols : 0, i % 3 == 2);
        struct outputs o = outputs_new(n * out_stride * sizeof(int32_t));
        char shape[80];

        snprintf(shape, sizeof(shape), "n=%zu rows=%zu cols=%zu", n, rows, cols);
        variant->layout->pack(own, w, rows, cols);
        ref->ternary_matmul(output(&o, 0), out_stride, w, x, x_stride, n, rows, cols);
        variant->ternary_matmul(output(&o, 1), out_stride, own, x, x_stride, n, rows, cols);
        outputs_check(&o, "ternary_matmul", shape);
    }
}

static void check_sixbit(void)
{
    static const size_t widths[] = { 128, 256, 384, 2560, 2688, 8192 };

    for (size_t i = 0; i < 60; i++) {
        size_t n = random_u64() % 10, rows = random_u64() % 9, cols = widths[random_u64() % ARRAY_SIZE(widths)];
        size_t out_stride = rows + random_u64() % 5, x_stride = cols + random_u64() % 70;
        size_t bytes = rows * (cols / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES);
        cleanup(freep) uint8_t *w = allocate(bytes);
        cleanup(freep) int8_t *x = random_activations(n ? (n - 1) * x_stride + cols : 0, i % 3 == 2);
        struct outputs o = outputs_new(n * out_stride * sizeof(int32_t));

        for (size_t k = 0; k < bytes; k++)
            w[k] = i % 4 == 3 ? 255 : i % 4 == 2 ? 0 : (uint8_t)random_u64();
        ref->sixbit_matmul(output(&o, 0), out_stride, w, x, x_stride, n, rows, cols);
        variant->sixbit_matmul(output(&o, 1), out_stride, w, x, x_stride, n, rows, cols);
        outputs_check(&o, "sixbit_matmul", "");
    }
}

static size_t odd_length(size_t i)
{
    return i < 70 ? i + 1 : 1 + random_u64() % 3000;
}

static void check_quantize(void)
{
    for (size_t i = 0; i < 300; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *x = random_floats(n, i % N_KINDS);
        struct outputs o = outputs_new(n + sizeof(float));
        float a;

        a = ref->quantize_row(output(&o, 0), x, n);
        memcpy((uint8_t *)output(&o, 0) + n, &a, sizeof(a));
        a = variant->quantize_row(output(&o, 1), x, n);
        memcpy((uint8_t *)output(&o, 1) + n, &a, sizeof(a));
        outputs_check(&o, "quantize_row", "");
    }
}

static void check_rms_norm(void)
{
    for (size_t i = 0; i < 300; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *x = random_floats(n, i % N_KINDS);
        cleanup(freep) float *gain = random_floats(n, i / N_KINDS % 3);
        struct outputs o = outputs_new(n * sizeof(float));

        ref->rms_norm(output(&o, 0), x, gain, n, 1e-5f);
        memcpy(output(&o, 1), x, n * sizeof(*x));               /* in place for the variant */
        variant->rms_norm(output(&o, 1), output(&o, 1), gain, n, 1e-5f);
        outputs_check(&o, "rms_norm", "");
    }
}

static void check_dot_axpy(void)
{
    for (size_t i = 0; i < 300; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *a = random_floats(n, i % N_KINDS);
        cleanup(freep) float *b = random_floats(n, i / N_KINDS % 3);
        struct outputs o = outputs_new(sizeof(float)), y = outputs_new(n * sizeof(float));

        *(float *)output(&o, 0) = ref->dot_f32(a, b, n);
        *(float *)output(&o, 1) = variant->dot_f32(a, b, n);
        outputs_check(&o, "dot_f32", "");

        memcpy(output(&y, 0), a, n * sizeof(*a));
        memcpy(output(&y, 1), a, n * sizeof(*a));
        ref->axpy_f32(output(&y, 0), 0.37f, b, n);
        variant->axpy_f32(output(&y, 1), 0.37f, b, n);
        outputs_check(&y, "axpy_f32", "");
    }
}

static void check_matmul_f16_f32(void)
{
    for (size_t i = 0; i < 150; i++) {
        size_t n = random_u64() % 10, rows = random_u64() % 9, cols = odd_length(i);
        size_t out_stride = rows + random_u64() % 5, x_stride = cols + random_u64() % 9;
        cleanup(freep) uint16_t *half = allocate(rows * cols * sizeof(*half));
        cleanup(freep) float *single = random_floats(rows * cols, i % 3);
        cleanup(freep) float *x = random_floats(n ? (n - 1) * x_stride + cols : 0, i / 3 % 3);
        struct outputs o = outputs_new(n * out_stride * sizeof(float)), p = outputs_new(n * out_stride * sizeof(float));

        for (size_t k = 0; k < rows * cols; k++)
            half[k] = random_half();
        ref->matmul_f16(output(&o, 0), out_stride, half, x, x_stride, n, rows, cols);
        variant->matmul_f16(output(&o, 1), out_stride, half, x, x_stride, n, rows, cols);
        outputs_check(&o, "matmul_f16", "");
        ref->matmul_f32(output(&p, 0), out_stride, single, x, x_stride, n, rows, cols);
        variant->matmul_f32(output(&p, 1), out_stride, single, x, x_stride, n, rows, cols);
        outputs_check(&p, "matmul_f32", "");
    }
}

static uint8_t *random_q8_0(size_t blocks)
{
    uint8_t *w = allocate(blocks * Q8_0_BLOCK_BYTES);

    for (size_t b = 0; b < blocks; b++) {
        uint16_t scale = random_half();

        for (size_t k = 0; k < Q8_0_BLOCK_BYTES; k++)
            w[b * Q8_0_BLOCK_BYTES + k] = (uint8_t)random_u64();
        memcpy(w + b * Q8_0_BLOCK_BYTES, &scale, sizeof(scale));
    }
    return w;
}

static void check_matmul_q8_0(void)
{
    for (size_t i = 0; i < 80; i++) {
        size_t n = random_u64() % 10, rows = random_u64() % 9, cols = 32 * (1 + random_u64() % 20);
        size_t out_stride = rows + random_u64() % 5, x_stride = cols + random_u64() % 9;
        cleanup(freep) uint8_t *w = random_q8_0(rows * cols / Q8_0_BLOCK);
        cleanup(freep) float *x = random_floats(n ? (n - 1) * x_stride + cols : 0, i % 3);
        struct outputs o = outputs_new(n * out_stride * sizeof(float));

        ref->matmul_q8_0(output(&o, 0), out_stride, w, x, x_stride, n, rows, cols);
        variant->matmul_q8_0(output(&o, 1), out_stride, w, x, x_stride, n, rows, cols);
        outputs_check(&o, "matmul_q8_0", "");
    }
}

static void check_softmax(void)
{
    for (size_t i = 0; i < 300; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *x = random_floats(n, i % N_KINDS);
        struct outputs o = outputs_new(n * sizeof(float));

        for (size_t k = 0; k < n && i % 2; k++)
            x[k] *= 60;                                         /* some exponentials vanish */
        memcpy(output(&o, 0), x, n * sizeof(*x));
        memcpy(output(&o, 1), x, n * sizeof(*x));
        ref->softmax(output(&o, 0), n);
        variant->softmax(output(&o, 1), n);
        outputs_check(&o, "softmax", "");
    }
}

static void check_exp_sums(void)
{
    for (size_t i = 0; i < 200; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *x = random_floats(n, i % N_KINDS);
        struct outputs o = outputs_new(2 * sizeof(double));
        float max = x[0];

        for (size_t k = 0; k < n; k++) {
            x[k] *= i % 2 ? 60 : 1;
            max = k ? fmaxf(max, x[k]) : x[k];
        }
        ref->exp_sums(x, n, max, output(&o, 0), (double *)output(&o, 0) + 1);
        variant->exp_sums(x, n, max, output(&o, 1), (double *)output(&o, 1) + 1);
        outputs_check(&o, "exp_sums", "");
    }
}

static void check_activations(void)
{
    for (size_t i = 0; i < 300; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *gate = random_floats(n, i % N_KINDS);
        cleanup(freep) float *up = random_floats(n, i / N_KINDS % 3);
        struct outputs o = outputs_new(n * sizeof(float)), p = outputs_new(n * sizeof(float));

        for (size_t k = 0; k < n && i % 2; k++)
            gate[k] *= 90;
        ref->relu2_mul(output(&o, 0), gate, up, n);
        memcpy(output(&o, 1), gate, n * sizeof(*gate));         /* in place for the variant */
        variant->relu2_mul(output(&o, 1), output(&o, 1), up, n);
        outputs_check(&o, "relu2_mul", "");
        ref->silu_mul(output(&p, 0), gate, up, n);
        memcpy(output(&p, 1), gate, n * sizeof(*gate));
        variant->silu_mul(output(&p, 1), output(&p, 1), up, n);
        outputs_check(&p, "silu_mul", "");
    }
}

/* Two pages, one after the other, as attention goes through them; first the one whose tokens are cut off. */
static void check_attend_floats(void)
{
    for (size_t i = 0; i < 240; i++) {
        size_t d = i < 40 ? i + 1 : 2 * (1 + random_u64() % 140), n = random_u64() % 10, m = ATTEND_TOKENS * d;
        size_t first = i % 3 ? 0 : random_u64() % 64, end = i % 2 ? 64 : first + 1 + random_u64() % (64 - first);
        bool half = i % 4 / 2;
        cleanup(freep) float *q = random_floats(n * d, i % N_KINDS), *k = random_floats(2 * m, i / N_KINDS % 3);
        cleanup(freep) float *v = random_floats(2 * m, i / 2 % N_KINDS);
        cleanup(freep) uint16_t *hk = allocate(2 * 2 * m), *hv = allocate(2 * 2 * m);
        struct outputs acc = outputs_new(n * d * sizeof(float)), state = outputs_new(n * sizeof(struct attend));
        char shape[80];

        snprintf(shape, sizeof(shape), "n=%zu d=%zu tokens %zu to %zu", n, d, first, end);
        ref->to_f16(hk, k, 2 * m);
        ref->to_f16(hv, v, 2 * m);
        for (int o = 0; o < 2; o++) {
            const struct kernels *kernels = o ? variant : ref;
            struct attend *a = output(&state, o);

            memset(output(&acc, o), 0, n * d * sizeof(float));
            for (size_t j = 0; j < n; j++)
                a[j] = (struct attend){ -INFINITY, 0 };
            for (size_t page = 0; page < 2; page++)
                if (half)
                    kernels->attend_f16(output(&acc, o), a, q, n, hk + page * m, hv + page * m, d, page ? 0 : first,
                                        page ? 64 : end);
                else
                    kernels->attend_f32(output(&acc, o), a, q, n, k + page * m, v + page * m, d, page ? 0 : first,
                                        page ? 64 : end);
        }
        outputs_check(&acc, half ? "attend_f16" : "attend_f32", shape);
        outputs_check(&state, half ? "attend_f16" : "attend_f32", "state");
    }
}

static void check_attend_int8(void)
{
    for (size_t i = 0; i < 200; i++) {
        size_t d = i < 40 ? i + 1 : 2 * (1 + random_u64() % 140), d4 = (d + 3) / 4 * 4, n = random_u64() % 10;
        size_t first = i % 3 ? 0 : random_u64() % 64, end = i % 2 ? 64 : first + 1 + random_u64() % (64 - first);
        cleanup(freep) int8_t *q = random_activations(n * d4, i % 5 == 4), *k = random_activations(2 * d4 * 64, i % 7 == 6);
        cleanup(freep) int8_t *v = random_activations(2 * d * 64, i % 6 == 5);
        cleanup(freep) float *q_units = random_floats(n, KIND_PLAIN), *units = random_floats(4 * 64, i % 3);
        struct outputs acc = outputs_new(n * d * sizeof(float)), state = outputs_new(n * sizeof(struct attend));
        char shape[80];

        snprintf(shape, sizeof(shape), "n=%zu d=%zu tokens %zu to %zu", n, d, first, end);
        for (size_t j = 0; j < 4 * 64; j++)
            units[j] = fabsf(units[j]);
        for (size_t j = 0; j < n; j++)
            for (size_t c = 0; c < d4; c++)
                if (c >= d)
                    q[j * d4 + c] = 0;
        for (int o = 0; o < 2; o++) {
            struct attend *a = output(&state, o);

            memset(output(&acc, o), 0, n * d * sizeof(float));
            for (size_t j = 0; j < n; j++)
                a[j] = (struct attend){ -INFINITY, 0 };
            for (size_t page = 0; page < 2; page++)
                (o ? variant : ref)->attend_int8(output(&acc, o), a, q, q_units, n, k + page * d4 * 64, units + page * 128,
                                                 v + page * d * 64, units + page * 128 + 64, d, page ? 0 : first,
                                                 page ? 64 : end);
        }
        outputs_check(&acc, "attend_int8", shape);
        outputs_check(&state, "attend_int8", "state");
    }
}

static void check_to_f16(void)
{
    for (size_t i = 0; i < 200; i++) {
        size_t n = odd_length(i);
        cleanup(freep) float *x = random_floats(n, i % N_KINDS);
        struct outputs o = outputs_new(n * sizeof(uint16_t));

        ref->to_f16(output(&o, 0), x, n);
        variant->to_f16(output(&o, 1), x, n);
        outputs_check(&o, "to_f16", "");
    }
}

/* ---- bench ------------------------------------------------------------------------------------------------------ */

#define BENCH_COLS 2560
#define BENCH_ROWS 256

struct bench {
    uint8_t *ternary, *sixbit, *q8_0;
    uint16_t *half;
    float *single, *x, *out;
    int8_t *q;
};

static void bench_ternary(const struct kernels *k, struct bench *b, size_t n)
{
    k->ternary_matmul((int32_t *)b->out, BENCH_ROWS, b->ternary, b->q, BENCH_COLS, n, BENCH_ROWS, BENCH_COLS);
}
static void bench_ternary_1(const struct kernels *k, struct bench *b) { bench_ternary(k, b, 1); }
static void bench_ternary_8(const struct kernels *k, struct bench *b) { bench_ternary(k, b, 8); }
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
    { "ternary_matmul n=1", bench_ternary_1 }, { "ternary_matmul n=8", bench_ternary_8 },
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

static void bench(void)
{
    struct bench b = {
        .ternary = random_ternary(BENCH_ROWS * BENCH_COLS / 4, false), .q8_0 = random_q8_0(BENCH_ROWS * BENCH_COLS / Q8_0_BLOCK),
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
    free(b.ternary);
    free(b.sixbit);
    free(b.q8_0);
    free(b.half);
    free(b.single);
    free(b.x);
    free(b.out);
    free(b.q);
}

int main(int argc, char **argv)
{
    const struct kernels *const *list;
    size_t n = kernels_list(&list);
    bool want_bench = argc == 2 && !strcmp(argv[1], "--bench");

    if (argc == 3 && !strcmp(argv[1], "--seed"))
        random_state = strtoull(argv[2], NULL, 0);
    else if (argc != 1 && !want_bench) {
        fprintf(stderr, "usage: check [--seed N | --bench]\n");
        return 2;
    }

    ref = list[0];
    for (size_t i = 0; i < n; i++) {       /* the reference too: its own guard bytes */
        variant = list[i];
        check_ternary();
        check_sixbit();
        check_quantize();
        check_rms_norm();
        check_dot_axpy();
        check_matmul_f16_f32();
        check_matmul_q8_0();
        check_exp_sums();
        check_softmax();
        check_activations();
        check_attend_floats();
        check_attend_int8();
        check_to_f16();
        if (want_bench)
            bench();
    }
    printf("%zu variants, %zu checks, %zu failures\n", n, n_checks, n_failures);
    return n_failures != 0;
}
