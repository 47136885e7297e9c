/* The reference kernels: what every other instruction set has to reproduce to the bit, written to be read. The order of
 * additions is part of the meaning (kernels.h); nothing here may be reassociated or fused. */
#include "kernels/internal.h"

#include <math.h>
#include <string.h>

#define SUMS 16

static float fold(float s[SUMS])
{
    for (size_t half = SUMS / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

static float bits_to_f32(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

static uint32_t f32_to_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff;

    if (mag < 0x0400)                                   /* zero and subnormals: a count of 2^-24 */
        return bits_to_f32(sign | f32_to_bits((float)mag * 0x1p-24f));
    if (mag >= 0x7c00)
        return bits_to_f32(sign | 0x7f800000 | mag << 13);
    return bits_to_f32(sign | ((mag << 13) + (112u << 23)));
}

uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_to_bits(f), mag = u & 0x7fffffff;
    uint16_t sign = u >> 16 & 0x8000;

    if (mag > 0x7f800000)
        return sign | 0x7e00;
    if (mag >= 0x477ff000)                              /* 65520 and up round to infinity */
        return sign | 0x7c00;
    if (mag < 0x38800000)                               /* below 2^-14: round to a count of 2^-24 */
        return sign | (uint16_t)lrintf(bits_to_f32(mag) * 0x1p24f);
    mag -= 112u << 23;
    return sign | (uint16_t)((mag + 0xfff + (mag >> 13 & 1)) >> 13);
}

float kernel_exp(float x)
{
    float k, r, p;

    if (!(x >= EXP_LOW))
        return 0;
    if (x > EXP_HIGH)
        x = EXP_HIGH;
    k = (x * EXP_LOG2E + EXP_ROUND) - EXP_ROUND;
    r = (x - k * EXP_LN2_HIGH) - k * EXP_LN2_LOW;
    p = (((EXP_P4 * r + EXP_P3) * r + EXP_P2) * r + EXP_P1) * r + EXP_P0;
    return ((p * (r * r) + r) + 1) * bits_to_f32((uint32_t)((int32_t)k + 127) << 23);
}

/* The code of column c of a packed row. */
static int code_at(const uint8_t *row, size_t c)
{
    size_t in_block = c % TERNARY_BLOCK;

    return row[c / TERNARY_BLOCK * 32 + in_block % 32] >> (6 - in_block / 32 * 2) & 3;
}

void ternary_pack(uint8_t *out, const int8_t *t, size_t rows, size_t cols)
{
    for (size_t r = 0; r < rows; r++, t += cols)
        for (size_t c = 0; c < cols; c += TERNARY_BLOCK, out += 32) {
            int8_t padded[TERNARY_BLOCK] = {0};
            const int8_t *block = t + c;

            if (cols - c < TERNARY_BLOCK) {
                memcpy(padded, block, cols - c);
                block = padded;
            }
            for (size_t p = 0; p < 32; p++)
                out[p] = (uint8_t)((block[p] + 1) << 6 | (block[p + 32] + 1) << 4 | (block[p + 64] + 1) << 2 |
                                   (block[p + 96] + 1));
        }
}

void ternary_unpack(int8_t *t, const uint8_t *packed, size_t rows, size_t cols)
{
    size_t padded = (cols + TERNARY_BLOCK - 1) / TERNARY_BLOCK * TERNARY_BLOCK;

    for (size_t r = 0; r < rows; r++, packed += padded / 4, t += cols)
        for (size_t c = 0; c < cols; c++)
            t[c] = code_at(packed, c) - 1;
}

static void ternary_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                           size_t n, size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < rows; r++) {
            int32_t sum = 0;

            for (size_t c = 0; c < cols; c++)
                sum += (code_at(w + r * (cols / 4), c) - 1) * x[j * x_stride + c];
            out[j * out_stride + r] = sum;
        }
}

void sixbit_pack(uint8_t *out, const int8_t *q, size_t cols)
{
    for (; cols; cols -= TERNARY_BLOCK, q += TERNARY_BLOCK, out += SIXBIT_BLOCK_BYTES) {
        uint8_t u[TERNARY_BLOCK];

        for (size_t c = 0; c < TERNARY_BLOCK; c++)
            u[c] = (uint8_t)(q[c] + 32);
        for (size_t p = 0; p < 64; p++)
            out[p] = (uint8_t)((u[p] & 15) | u[p + 64] << 4);
        for (size_t p = 0; p < 32; p++)
            out[64 + p] = (uint8_t)(u[p] >> 4 | u[p + 32] >> 4 << 2 | u[p + 64] >> 4 << 4 | u[p + 96] >> 4 << 6);
    }
}

static int sixbit_at(const uint8_t *row, size_t c)
{
    const uint8_t *block = row + c / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES;
    size_t p = c % TERNARY_BLOCK;

    return (block[p % 64] >> p / 64 * 4 & 15) + (block[64 + p % 32] >> p / 32 * 2 & 3) * 16 - 32;
}

static void sixbit_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                          size_t n, size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < rows; r++) {
            int32_t sum = 0;

            for (size_t c = 0; c < cols; c++)
                sum += sixbit_at(w + r * (cols / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES), c) * x[j * x_stride + c];
            out[j * out_stride + r] = sum;
        }
}

static float quantize_row(int8_t *q, const float *x, size_t n)
{
    float a = QUANT_FLOOR, s;

    for (size_t i = 0; i < n; i++)
        a = fmaxf(a, fabsf(x[i]));
    s = (float)(127.0 / a);
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)fminf(fmaxf(rintf(x[i] * s), -127), 127);
    return a;
}

static float dot_f32(const float *a, const float *b, size_t n)
{
    float s[SUMS] = {0};

    for (size_t i = 0; i < n; i++)
        s[i % SUMS] += a[i] * b[i];
    return fold(s);
}

static void rms_norm(float *out, const float *x, const float *gain, size_t n, float eps)
{
    float r = 1 / sqrtf(dot_f32(x, x, n) / (float)n + eps);

    for (size_t i = 0; i < n; i++)
        out[i] = (x[i] * r) * gain[i];
}

static void axpy_f32(float *y, float s, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += s * x[i];
}

static void matmul_f16(float *out, size_t out_stride, const uint16_t *w, const float *x, size_t x_stride,
                       size_t n, size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < rows; r++) {
            float s[SUMS] = {0};

            for (size_t c = 0; c < cols; c++)
                s[c % SUMS] += f16_to_f32(w[r * cols + c]) * x[j * x_stride + c];
            out[j * out_stride + r] = fold(s);
        }
}

static void matmul_q8_0(float *out, size_t out_stride, const uint8_t *w, const float *x, size_t x_stride,
                        size_t n, size_t rows, size_t cols)
{
    size_t row_bytes = cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;

    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < rows; r++) {
            float s[SUMS] = {0};

            for (size_t c = 0; c < cols; c++) {
                const uint8_t *block = w + r * row_bytes + c / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;
                uint16_t scale;

                memcpy(&scale, block, sizeof(scale));
                s[c % SUMS] += (float)(int8_t)block[2 + c % Q8_0_BLOCK] * f16_to_f32(scale) * x[j * x_stride + c];
            }
            out[j * out_stride + r] = fold(s);
        }
}

static void matmul_f32(float *out, size_t out_stride, const float *w, const float *x, size_t x_stride,
                       size_t n, size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j++)
        for (size_t r = 0; r < rows; r++)
            out[j * out_stride + r] = dot_f32(w + r * cols, x + j * x_stride, cols);
}

static double fold_double(double s[SUMS])
{
    for (size_t half = SUMS / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

static void exp_sums(const float *x, size_t n, float max, double *ret_sum, double *ret_weighted)
{
    double sum[SUMS] = {0}, weighted[SUMS] = {0};

    for (size_t i = 0; i < n; i++) {
        float d = x[i] - max;
        double e = (double)kernel_exp(d);

        sum[i % SUMS] += e;
        weighted[i % SUMS] += e * (double)d;
    }
    *ret_sum = fold_double(sum);
    *ret_weighted = fold_double(weighted);
}

static void softmax(float *x, size_t n)
{
    float s[SUMS] = {0}, max = x[0], sum;

    for (size_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i++) {
        x[i] = kernel_exp(x[i] - max);
        s[i % SUMS] += x[i];
    }
    sum = fold(s);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

static void relu2_mul(float *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = gate[i] > 0 ? gate[i] : 0;

        out[i] = (g * g) * up[i];
    }
}

static void silu_mul(float *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (gate[i] / (1 + kernel_exp(-gate[i]))) * up[i];
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static void to_f16(uint16_t *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = f32_to_f16(fminf(fmaxf(x[i], -F16_MAX), F16_MAX));
}

/* Scores of tokens first..end-1 become what their exponentials weigh, all others 0. Returns what was seen before is
 * multiplied by. */
static float weigh(struct attend *a, float s[ATTEND_TOKENS], size_t first, size_t end)
{
    float max = a->max, sums[SUMS] = {0}, shrink;

    for (size_t t = first; t < end; t++)
        max = s[t] > max ? s[t] : max;
    max += 0.0f;                                        /* of two zeros the positive one, whatever came first */
    shrink = kernel_exp(a->max - max);
    for (size_t t = 0; t < ATTEND_TOKENS; t++) {
        s[t] = t >= first && t < end ? kernel_exp(s[t] - max) : 0;
        sums[t % SUMS] += s[t];
    }
    *a = (struct attend){ max, a->sum * shrink + fold(sums) };
    return shrink;
}

static float at_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}

static float at_f16(const void *p, size_t i)
{
    return f16_to_f32(((const uint16_t *)p)[i]);
}

static void attend(float *acc, struct attend *a, const float *q, size_t n, const void *k, const void *v, size_t d,
                   size_t first, size_t end, float (*at)(const void *p, size_t i))
{
    for (size_t j = 0; j < n; j++, acc += d, q += d) {
        float s[ATTEND_TOKENS] = {0}, shrink;

        for (size_t t = first; t < end; t++)
            for (size_t i = 0; i < d; i++)
                s[t] += q[i] * at(k, i * ATTEND_TOKENS + t);
        shrink = weigh(&a[j], s, first, end);
        for (size_t i = 0; i < d; i++) {
            acc[i] *= shrink;
            for (size_t t = first; t < end; t++)
                acc[i] += s[t] * at(v, t * d + i);
        }
    }
}

static void attend_f32(float *acc, struct attend *a, const float *q, size_t n, const float *k, const float *v, size_t d,
                       size_t first, size_t end)
{
    attend(acc, a, q, n, k, v, d, first, end, at_f32);
}

static void attend_f16(float *acc, struct attend *a, const float *q, size_t n, const uint16_t *k, const uint16_t *v,
                       size_t d, size_t first, size_t end)
{
    attend(acc, a, q, n, k, v, d, first, end, at_f16);
}

static void attend_int8(float *acc, struct attend *a, const int8_t *q, const float *q_units, size_t n, const int8_t *k,
                        const float *k_units, const int8_t *v, const float *v_units, size_t d, size_t first, size_t end)
{
    size_t d4 = (d + 3) / 4 * 4;

    for (size_t j = 0; j < n; j++, acc += d, q += d4) {
        float s[ATTEND_TOKENS] = {0}, most = 0, shrink;

        for (size_t t = first; t < end; t++) {
            int32_t sum = 0;

            for (size_t i = 0; i < d; i++)
                sum += q[i] * k[(i / 4 * ATTEND_TOKENS + t) * 4 + i % 4];
            s[t] = (float)sum * (q_units[j] * k_units[t]);
        }
        shrink = weigh(&a[j], s, first, end);
        for (size_t t = first; t < end; t++) {
            s[t] *= v_units[t];
            most = s[t] > most ? s[t] : most;
        }
        for (size_t i = 0; i < d; i++) {
            int32_t sum = 0;

            acc[i] *= shrink;
            if (most < ATTEND_LEAST)
                continue;
            for (size_t t = first; t < end; t++)
                sum += (int32_t)rintf(s[t] * (ATTEND_TOP / most)) * v[(t / 4 * d + i) * 4 + t % 4];
            acc[i] += (float)sum * (most / ATTEND_TOP);
        }
    }
}

void kernels_set_ref(struct kernels *k)
{
    *k = (struct kernels){
        .name = "ref",
        .layout = &ternary_canonical,
        .ternary_matmul = ternary_matmul,
        .quantize_row = quantize_row,
        .rms_norm = rms_norm,
        .dot_f32 = dot_f32,
        .axpy_f32 = axpy_f32,
        .matmul_f16 = matmul_f16,
        .matmul_q8_0 = matmul_q8_0,
        .matmul_f32 = matmul_f32,
        .sixbit_matmul = sixbit_matmul,
        .exp_sums = exp_sums,
        .softmax = softmax,
        .relu2_mul = relu2_mul,
        .silu_mul = silu_mul,
        .attend_f32 = attend_f32,
        .attend_f16 = attend_f16,
        .attend_int8 = attend_int8,
        .to_f16 = to_f16,
    };
}
