/* Every kernel variant of this machine against the reference, byte for byte, after dav1d's checkasm: odd shapes,
 * adversarial values, guard bytes around every output, inputs of exactly the size they need (so that the address
 * sanitizer sees a read past them).
 *
 *     check [--seed N]          exit status 1 when a variant differs
 *     check --bench [THREADS]   how fast the kernels are (bench.c) that TERN_CPU names, or else the best */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "check.h"

#define GUARD 64
#define GUARD_BYTE 0xa5

static const struct kernels *const *list, *ref, *variant;      /* all, the first of them, and the one at hand */
static size_t n_list;
static size_t n_checks, n_failures;

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

static void outputs_free(struct outputs *o)
{
    free(o->base[0]);
    free(o->base[1]);
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
    outputs_free(o);
}

/* ---- one check a kernel ----------------------------------------------------------------------------------------- */

/* Of memory that begins at an odd address, and ends where it is no longer needed. */
static void *unaligned(const void *from, size_t bytes, void **ret_base)
{
    size_t odd = random_u64() % 64;
    uint8_t *p = allocate(bytes + odd);

    *ret_base = p;
    return memcpy(p + odd, from, bytes);
}

static void check_ternary_shape(size_t n, size_t rows, size_t cols, bool extreme)
{
    size_t out_stride = rows + random_u64() % 5, x_stride = cols + random_u64() % 70;
    size_t x_bytes = n ? (n - 1) * x_stride + cols : 0;
    cleanup(freep) uint8_t *w = random_ternary(rows * cols / 4, extreme);
    cleanup(freep) int8_t *x = random_activations(x_bytes, extreme || random_u64() % 4 == 0);
    cleanup(freep) void *x_base = NULL;
    const int8_t *own_x = unaligned(x, x_bytes, &x_base);
    struct outputs want = outputs_new(n * out_stride * sizeof(int32_t));
    char shape[80];

    snprintf(shape, sizeof(shape), "n=%zu rows=%zu cols=%zu%s", n, rows, cols, extreme ? " extreme" : "");
    ref->ternary_matmul(output(&want, 0), out_stride, w, x, x_stride, n, rows, cols);
    for (size_t i = 0; i < n_list; i++) {
        struct outputs o = outputs_new(n * out_stride * sizeof(int32_t));
        size_t bytes = list[i]->layout->bytes(rows, cols);
        cleanup(freep) uint8_t *packed = allocate(bytes);
        cleanup(freep) void *base = NULL;

        variant = list[i];
        variant->layout->pack(packed, w, rows, cols);
        memcpy(output(&o, 0), output(&want, 0), n * out_stride * sizeof(int32_t));
        variant->ternary_matmul(output(&o, 1), out_stride, unaligned(packed, bytes, &base), own_x, x_stride, n, rows, cols);
        outputs_check(&o, "ternary_matmul", shape);
    }
    outputs_free(&want);
}

/* All variants, so that the reference is computed once: all widths to 8192 and some beyond, all counts of rows to 70 on either side and batches of 512. */
static void check_ternary(void)
{
    static const size_t wide[] = { 6912, 8192, 8320, 16512, 20480 };

    for (size_t i = 1; i <= 70; i++) {
        check_ternary_shape(1 + random_u64() % 9, i, TERNARY_BLOCK * (1 + random_u64() % 20), i % 7 == 0);
        check_ternary_shape(i, 1 + random_u64() % 40, TERNARY_BLOCK * (1 + random_u64() % 9), i % 7 == 1);
        check_ternary_shape(random_u64() % 6, 1 + random_u64() % 40, TERNARY_BLOCK * (1 + i % 64), i % 7 == 2);
    }
    for (size_t i = 0; i < 2 * ARRAY_SIZE(wide); i++) {
        check_ternary_shape(1 + i, 33, wide[i / 2], i % 2);
        check_ternary_shape(20 + i, 3, wide[i / 2], i % 2);
    }
    check_ternary_shape(70, 70, 640, false);
    check_ternary_shape(512, 17, 640, false);
    check_ternary_shape(512, 33, 128, true);
    check_ternary_shape(241, 150, 256, false);
}

/* Rows come back from a layout as they went in, also when packed in two parts. */
static void check_layout(void)
{
    for (size_t i = 0; i < 60; i++) {
        const struct ternary_layout *l = variant->layout;
        size_t rows = 1 + random_u64() % 70, cols = TERNARY_BLOCK * (1 + random_u64() % 9);
        size_t first = random_u64() % (rows / l->group + 1) * l->group, bytes = l->bytes(rows, cols);
        cleanup(freep) uint8_t *w = random_ternary(rows * cols / 4, false);
        struct outputs o = outputs_new(bytes), p = outputs_new(rows * cols);
        int8_t *row = output(&p, 0);

        l->pack(output(&o, 0), w, rows, cols);
        for (size_t r = 0; r < rows; r++)
            l->row(row + r * cols, output(&o, 0), r, cols);
        ternary_unpack(output(&p, 1), w, rows, cols);
        outputs_check(&p, "layout", "row");
        l->pack(output(&o, 1), w, first, cols);
        l->pack((uint8_t *)output(&o, 1) + l->bytes(first, cols), w + first * cols / 4, rows - first, cols);
        outputs_check(&o, "layout", "in two parts");
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

int main(int argc, char **argv)
{
    n_list = check_list(&list);
    ref = list[0];
    if (argc >= 2 && !strcmp(argv[1], "--bench")) {
        struct err err = {0};
        const struct kernels *k = kernels_get(&err);

        if (!k) {
            fprintf(stderr, "%s\n", err.msg);
            return 2;
        }
        bench_small(ref, k);
        return bench_ternary(k, argc == 3 ? (unsigned)atoi(argv[2]) : 2);
    }
    if (argc == 3 && !strcmp(argv[1], "--seed"))
        random_state = strtoull(argv[2], NULL, 0);
    else if (argc != 1) {
        fprintf(stderr, "usage: check [--seed N | --bench [THREADS]]\n");
        return 2;
    }

    check_ternary();
    for (size_t i = 0; i < n_list; i++) {       /* the reference too: its own guard bytes */
        variant = list[i];
        check_layout();
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
    }
    printf("%zu variants, %zu checks, %zu failures\n", n_list, n_checks, n_failures);
    return n_failures != 0;
}
