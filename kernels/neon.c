/* Kernels for aarch64 (its baseline has these vectors), without fused multiply-add, giving ref.c's bytes.
 *
 * Sixteen running sums are four vectors of four; a tail is a zero-padded sixteen. Ternary codes times activations, at
 * most 254, are added in sixteen-bit lanes: 32 lines of four planes fit before they are widened (32 * 4 * 254 = 32512). */
#include "kernels/neon.h"

#include <math.h>

#define LINES_A_WIDENING 32
#define TILE 2                  /* rows of x that share the opening of a line */

struct v16 { float32x4_t v[4]; };

ALWAYS_INLINE struct v16 load16(const float *p)
{
    return (struct v16){ { vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12) } };
}

ALWAYS_INLINE struct v16 load16_tail(const float *p, size_t n)
{
    float padded[16] = {0};

    memcpy(padded, p, n * sizeof(*p));
    return load16(padded);
}

ALWAYS_INLINE void store16(float *p, struct v16 x)
{
    for (size_t i = 0; i < 4; i++)
        vst1q_f32(p + 4 * i, x.v[i]);
}

ALWAYS_INLINE void store16_tail(float *p, struct v16 x, size_t n)
{
    float padded[16];

    store16(padded, x);
    memcpy(p, padded, n * sizeof(*p));
}

ALWAYS_INLINE struct v16 splat16(float x)
{
    float32x4_t v = vdupq_n_f32(x);

    return (struct v16){ { v, v, v, v } };
}

ALWAYS_INLINE struct v16 add_product(struct v16 s, struct v16 a, struct v16 b)
{
    for (size_t i = 0; i < 4; i++)
        s.v[i] = vaddq_f32(s.v[i], vmulq_f32(a.v[i], b.v[i]));
    return s;
}

ALWAYS_INLINE float fold(struct v16 s)
{
    float32x4_t four = vaddq_f32(vaddq_f32(s.v[0], s.v[2]), vaddq_f32(s.v[1], s.v[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));

    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

ALWAYS_INLINE float32x4_t exp4(float32x4_t x)
{
    uint32x4_t inside = vcgeq_f32(x, vdupq_n_f32(EXP_LOW));
    float32x4_t round = vdupq_n_f32(EXP_ROUND), k, r, p, scale;

    x = vminq_f32(x, vdupq_n_f32(EXP_HIGH));
    k = vsubq_f32(vaddq_f32(vmulq_f32(x, vdupq_n_f32(EXP_LOG2E)), round), round);
    r = vsubq_f32(vsubq_f32(x, vmulq_f32(k, vdupq_n_f32(EXP_LN2_HIGH))), vmulq_f32(k, vdupq_n_f32(EXP_LN2_LOW)));
    p = vaddq_f32(vmulq_f32(vdupq_n_f32(EXP_P4), r), vdupq_n_f32(EXP_P3));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(EXP_P2));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(EXP_P1));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(EXP_P0));
    p = vaddq_f32(vaddq_f32(vmulq_f32(p, vmulq_f32(r, r)), r), vdupq_n_f32(1));
    scale = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(k), vdupq_n_s32(127)), 23));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(vmulq_f32(p, scale)), inside));
}

ALWAYS_INLINE struct v16 exp16(struct v16 x, float max)
{
    for (size_t i = 0; i < 4; i++)
        x.v[i] = exp4(vsubq_f32(x.v[i], vdupq_n_f32(max)));
    return x;
}

/* ---- integers --------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE void ternary_tile(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                                const int32_t *taken, size_t rows, size_t cols, const size_t n)
{
    int32x4_t total[TILE][8] = {0};             /* pairs of columns of two rows each */

    for (size_t first = 0; first < cols; first += LINES_A_WIDENING * LINE_COLS) {
        size_t end = MIN(first + LINES_A_WIDENING * LINE_COLS, cols);
        int16x8_t sum[TILE][8] = {0};

        for (size_t c = first; c < end; c += LINE_COLS, w += LINE)
#pragma GCC unroll 4
            for (size_t v = 0; v < 4; v++) {
                uint8x16_t line = vld1q_u8(w + 16 * v);

#pragma GCC unroll 4
                for (int p = 0; p < 4; p++) {
                    int8x16_t codes = plane(line, p);

#pragma GCC unroll 2
                    for (size_t j = 0; j < n; j++) {
                        int8x16_t quad = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(const void *)
                                                                            (x + j * x_stride + c + 4 * (size_t)p)));

                        sum[j][2 * v] = vmlal_s8(sum[j][2 * v], vget_low_s8(codes), vget_low_s8(quad));
                        sum[j][2 * v + 1] = vmlal_high_s8(sum[j][2 * v + 1], codes, quad);
                    }
                }
            }
        for (size_t j = 0; j < n; j++)
            for (size_t h = 0; h < 8; h++)
                total[j][h] = vpadalq_s16(total[j][h], sum[j][h]);
    }
    for (size_t j = 0; j < n; j++) {
        int32x4_t own[4];

        for (size_t v = 0; v < 4; v++)
            own[v] = vpaddq_s32(total[j][2 * v], total[j][2 * v + 1]);
        store_group(out + j * out_stride, own, taken[j], rows);
    }
}

static void ternary_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                           size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j += TILE) {
        const int8_t *xj = x + j * x_stride;
        size_t some = MIN(n - j, TILE);
        int32_t taken[TILE];

        for (size_t i = 0; i < some; i++)
            taken[i] = sum_int8(xj + i * x_stride, cols);
        for (size_t r = 0; r < rows; r += GROUP) {
            const uint8_t *lines = w + r * (cols / 4);
            int32_t *o = out + j * out_stride + r;

            if (some == 1)
                ternary_tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 1);
            else
                ternary_tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 2);
        }
    }
}

/* Four of the at most 63 * 127 of a product fit sixteen bits. */
static void sixbit_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                          size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j++) {
        const int8_t *xj = x + j * x_stride;
        int32_t taken = 32 * sum_int8(xj, cols);

        for (size_t r = 0; r < rows; r++) {
            const uint8_t *block = w + r * (cols / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES);
            int32x4_t sum = vdupq_n_s32(0);

            for (size_t c = 0; c < cols; c += TERNARY_BLOCK, block += SIXBIT_BLOCK_BYTES)
#pragma GCC unroll 8
                for (size_t q = 0; q < 8; q++) {
                    int8x16_t codes = sixbit(block, q), xs = vld1q_s8(xj + c + 16 * q);
                    int16x8_t products = vmull_s8(vget_low_s8(codes), vget_low_s8(xs));

                    sum = vpadalq_s16(sum, vmlal_high_s8(products, codes, xs));
                }
            out[j * out_stride + r] = vaddvq_s32(sum) - taken;
        }
    }
}

ALWAYS_INLINE int8x16_t quantize16(const float *x, float s)
{
    int32x4_t q[4];

    for (size_t i = 0; i < 4; i++)
        q[i] = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + 4 * i), vdupq_n_f32(s)));
    return vmaxq_s8(vcombine_s8(vqmovn_s16(vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]))),
                                vqmovn_s16(vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3])))), vdupq_n_s8(-127));
}

static float quantize_row(int8_t *q, const float *x, size_t n)
{
    float32x4_t max = vdupq_n_f32(QUANT_FLOOR);
    float a, s;
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        max = vmaxq_f32(max, vabsq_f32(vld1q_f32(x + i)));
    a = vmaxvq_f32(max);
    for (; i < n; i++)
        a = fmaxf(a, fabsf(x[i]));

    s = (float)(127.0 / a);
    for (i = 0; i + 16 <= n; i += 16)
        vst1q_s8(q + i, quantize16(x + i, s));
    if (i < n) {
        float padded[16] = {0};
        int8_t tail[16];

        memcpy(padded, x + i, (n - i) * sizeof(*x));
        vst1q_s8(tail, quantize16(padded, s));
        memcpy(q + i, tail, n - i);
    }
    return a;
}

/* ---- dense ------------------------------------------------------------------------------------------------------ */

/* Sixteen weights from element i of a row, as floats. */
ALWAYS_INLINE struct v16 weights_f32(const void *row, size_t i)
{
    return load16((const float *)row + i);
}

ALWAYS_INLINE struct v16 weights_f16(const void *row, size_t i)
{
    const uint16_t *at = (const uint16_t *)row + i;
    struct v16 w;

    for (size_t k = 0; k < 4; k++)
        w.v[k] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at + 4 * k)));
    return w;
}

ALWAYS_INLINE struct v16 weights_q8_0(const void *row, size_t i)
{
    const uint8_t *block = (const uint8_t *)row + i / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;
    int8x16_t q = vld1q_s8((const int8_t *)block + 2 + i % Q8_0_BLOCK);
    int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_high_s8(q);
    int32x4_t wide[4] = { vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                          vmovl_high_s16(high) };
    struct v16 w;
    uint16_t half;

    memcpy(&half, block, sizeof(half));
    for (size_t k = 0; k < 4; k++)
        w.v[k] = vmulq_n_f32(vcvtq_f32_s32(wide[k]), f16_to_f32(half));
    return w;
}

/* One weight row against n <= 4 activation rows; weight_bytes 0: the type has no tail. */
ALWAYS_INLINE void dense_tile(float *out, size_t out_stride, const void *row, const float *x, size_t x_stride, size_t cols,
                              struct v16 (*weights)(const void *, size_t), size_t weight_bytes, const size_t n)
{
    struct v16 s[4] = { splat16(0), splat16(0), splat16(0), splat16(0) };
    size_t i = 0;

    for (; i + 16 <= cols; i += 16) {
        struct v16 w = weights(row, i);

#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++)
            s[j] = add_product(s[j], w, load16(x + j * x_stride + i));
    }
    if (weight_bytes && i < cols) {
        uint8_t padded[16 * sizeof(float)] = {0};
        struct v16 w;

        memcpy(padded, (const uint8_t *)row + i * weight_bytes, (cols - i) * weight_bytes);
        w = weights(padded, 0);
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++)
            s[j] = add_product(s[j], w, load16_tail(x + j * x_stride + i, cols - i));
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < n; j++)
        out[j * out_stride] = fold(s[j]);
}

ALWAYS_INLINE void dense_matmul(float *out, size_t out_stride, const void *w, size_t row_bytes, const float *x,
                                size_t x_stride, size_t n, size_t rows, size_t cols,
                                struct v16 (*weights)(const void *, size_t), size_t weight_bytes)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < n; j += 4) {
            float *o = out + j * out_stride + r;
            const void *row = (const uint8_t *)w + r * row_bytes;
            const float *xj = x + j * x_stride;

            switch (MIN(n - j, 4)) {
            case 1: dense_tile(o, out_stride, row, xj, x_stride, cols, weights, weight_bytes, 1); break;
            case 2: dense_tile(o, out_stride, row, xj, x_stride, cols, weights, weight_bytes, 2); break;
            case 3: dense_tile(o, out_stride, row, xj, x_stride, cols, weights, weight_bytes, 3); break;
            case 4: dense_tile(o, out_stride, row, xj, x_stride, cols, weights, weight_bytes, 4); break;
            }
        }
}

static void matmul_f16(float *out, size_t out_stride, const uint16_t *w, const float *x, size_t x_stride, size_t n,
                       size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols * sizeof(*w), x, x_stride, n, rows, cols, weights_f16, sizeof(*w));
}

static void matmul_q8_0(float *out, size_t out_stride, const uint8_t *w, const float *x, size_t x_stride, size_t n,
                        size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES, x, x_stride, n, rows, cols, weights_q8_0, 0);
}

static void matmul_f32(float *out, size_t out_stride, const float *w, const float *x, size_t x_stride, size_t n,
                       size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols * sizeof(*w), x, x_stride, n, rows, cols, weights_f32, sizeof(*w));
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static float dot_f32(const float *a, const float *b, size_t n)
{
    struct v16 s = splat16(0);
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        s = add_product(s, load16(a + i), load16(b + i));
    if (i < n)
        s = add_product(s, load16_tail(a + i, n - i), load16_tail(b + i, n - i));
    return fold(s);
}

static void rms_norm(float *out, const float *x, const float *gain, size_t n, float eps)
{
    float r = 1 / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(gain + i)));
    for (; i < n; i++)
        out[i] = (x[i] * r) * gain[i];
}

static void axpy_f32(float *y, float s, const float *x, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vaddq_f32(vld1q_f32(y + i), vmulq_f32(vdupq_n_f32(s), vld1q_f32(x + i))));
    for (; i < n; i++)
        y[i] += s * x[i];
}

static float max_f32(const float *x, size_t n)
{
    float max = x[0];
    size_t i = 0;

    if (n >= 4) {
        float32x4_t most = vld1q_f32(x);

        for (i = 4; i + 4 <= n; i += 4)
            most = vmaxq_f32(most, vld1q_f32(x + i));
        max = vmaxvq_f32(most);
    }
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

static void softmax(float *x, size_t n)
{
    const float max = max_f32(x, n);
    struct v16 s = splat16(0);
    size_t i = 0;
    float sum;

    for (; i + 16 <= n; i += 16) {
        struct v16 e = exp16(load16(x + i), max);

        s = add_product(s, e, splat16(1));
        store16(x + i, e);
    }
    if (i < n) {
        float padded[16] = { [0 ... 15] = -INFINITY };     /* whose exponential is zero */
        struct v16 e;

        memcpy(padded, x + i, (n - i) * sizeof(*x));
        e = exp16(load16(padded), max);
        s = add_product(s, e, splat16(1));
        store16_tail(x + i, e, n - i);
    }
    sum = fold(s);
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vdivq_f32(vld1q_f32(x + i), vdupq_n_f32(sum)));
    for (; i < n; i++)
        x[i] /= sum;
}

/* Four of the sixteen sums, as doubles. */
ALWAYS_INLINE void add_exp4(float64x2_t sum[2], float64x2_t weighted[2], float32x4_t d)
{
    float32x4_t e = exp4(d);
    float64x2_t e01 = vcvt_f64_f32(vget_low_f32(e)), e23 = vcvt_high_f64_f32(e);

    sum[0] = vaddq_f64(sum[0], e01);
    sum[1] = vaddq_f64(sum[1], e23);
    weighted[0] = vaddq_f64(weighted[0], vmulq_f64(e01, vcvt_f64_f32(vget_low_f32(d))));
    weighted[1] = vaddq_f64(weighted[1], vmulq_f64(e23, vcvt_high_f64_f32(d)));
}

ALWAYS_INLINE double fold_double(const float64x2_t s[8])
{
    float64x2_t a = vaddq_f64(vaddq_f64(s[0], s[4]), vaddq_f64(s[2], s[6]));
    float64x2_t b = vaddq_f64(vaddq_f64(s[1], s[5]), vaddq_f64(s[3], s[7]));

    a = vaddq_f64(a, b);
    return vgetq_lane_f64(a, 0) + vgetq_lane_f64(a, 1);
}

static void exp_sums(const float *x, size_t n, float max, double *ret_sum, double *ret_weighted)
{
    float64x2_t sum[8] = {0}, weighted[8] = {0};

    for (size_t i = 0; i < n; i += 16) {
        float d[16];

        for (size_t k = 0; k < 16; k++)         /* what is not there is as far off as gives nothing */
            d[k] = i + k < n ? x[i + k] - max : -200;
        for (size_t k = 0; k < 4; k++)
            add_exp4(sum + 2 * k, weighted + 2 * k, vld1q_f32(d + 4 * k));
    }
    *ret_sum = fold_double(sum);
    *ret_weighted = fold_double(weighted);
}

ALWAYS_INLINE float32x4_t relu2_4(float32x4_t gate, float32x4_t up)
{
    float32x4_t g = vmaxq_f32(gate, vdupq_n_f32(0));

    return vmulq_f32(vmulq_f32(g, g), up);
}

ALWAYS_INLINE float32x4_t silu_4(float32x4_t gate, float32x4_t up)
{
    return vmulq_f32(vdivq_f32(gate, vaddq_f32(vdupq_n_f32(1), exp4(vnegq_f32(gate)))), up);
}

ALWAYS_INLINE void gate_mul(float *out, const float *gate, const float *up, size_t n,
                            float32x4_t (*act)(float32x4_t, float32x4_t))
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1q_f32(out + i, act(vld1q_f32(gate + i), vld1q_f32(up + i)));
    if (i < n) {
        struct v16 g = load16_tail(gate + i, n - i), u = load16_tail(up + i, n - i);

        g.v[0] = act(g.v[0], u.v[0]);
        store16_tail(out + i, g, n - i);
    }
}

static void relu2_mul(float *out, const float *gate, const float *up, size_t n)
{
    gate_mul(out, gate, up, n, relu2_4);
}

static void silu_mul(float *out, const float *gate, const float *up, size_t n)
{
    gate_mul(out, gate, up, n, silu_4);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static void to_f16(uint16_t *out, const float *x, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        float32x4_t cut = vminnmq_f32(vmaxnmq_f32(vld1q_f32(x + i), vdupq_n_f32(-F16_MAX)), vdupq_n_f32(F16_MAX));

        vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(cut)));
    }
    for (; i < n; i++)
        out[i] = f32_to_f16(fminf(fmaxf(x[i], -F16_MAX), F16_MAX));
}

/* ref.c's. The scores of tokens first..end-1 stand in s. */
static float weigh(struct attend *a, float s[ATTEND_TOKENS], size_t first, size_t end)
{
    struct v16 sums = splat16(0);
    float max = a->max, shrink;

    for (size_t t = first; t < end; t++)
        max = s[t] > max ? s[t] : max;
    max += 0.0f;
    for (size_t t = 0; t < ATTEND_TOKENS; t++)
        if (t < first || t >= end)
            s[t] = -INFINITY;
    shrink = kernel_exp(a->max - max);
    for (size_t t = 0; t < ATTEND_TOKENS; t += 16) {
        struct v16 e = exp16(load16(s + t), max);

        sums = add_product(sums, e, splat16(1));
        store16(s + t, e);
    }
    *a = (struct attend){ max, a->sum * shrink + fold(sums) };
    return shrink;
}

/* s[t] = q k_t for whole sixteens of tokens that hold one of first..end-1; what stands outside is not looked at. */
ALWAYS_INLINE void scores(float s[ATTEND_TOKENS], const float *q, const void *k, size_t d, size_t first, size_t end,
                          struct v16 (*at)(const void *, size_t))
{
    for (size_t t = first / 16 * 16; t < end; t += 16) {
        struct v16 sum = splat16(0);

        for (size_t i = 0; i < d; i++)
            sum = add_product(sum, splat16(q[i]), at(k, i * ATTEND_TOKENS + t));
        store16(s + t, sum);
    }
}

ALWAYS_INLINE void values(float *acc, const float s[ATTEND_TOKENS], float shrink, const void *v, size_t d, size_t first,
                          size_t end, struct v16 (*at)(const void *, size_t), float (*one_at)(const void *, size_t))
{
    size_t i = 0;

    for (; i + 16 <= d; i += 16) {
        struct v16 sum = load16(acc + i);

        for (size_t k = 0; k < 4; k++)
            sum.v[k] = vmulq_n_f32(sum.v[k], shrink);
        for (size_t t = first; t < end; t++)
            sum = add_product(sum, splat16(s[t]), at(v, t * d + i));
        store16(acc + i, sum);
    }
    for (; i < d; i++) {
        acc[i] *= shrink;
        for (size_t t = first; t < end; t++)
            acc[i] += s[t] * one_at(v, t * d + i);
    }
}

ALWAYS_INLINE void attend(float *acc, struct attend *a, const float *q, size_t n, const void *k, const void *v, size_t d,
                          size_t first, size_t end, struct v16 (*at)(const void *, size_t),
                          float (*one_at)(const void *, size_t))
{
    for (size_t j = 0; j < n; j++, acc += d, q += d) {
        float s[ATTEND_TOKENS] = {0}, shrink;

        scores(s, q, k, d, first, end, at);
        shrink = weigh(&a[j], s, first, end);
        values(acc, s, shrink, v, d, first, end, at, one_at);
    }
}

ALWAYS_INLINE float one_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}

ALWAYS_INLINE float one_f16(const void *p, size_t i)
{
    return f16_to_f32(((const uint16_t *)p)[i]);
}

static void attend_f32(float *acc, struct attend *a, const float *q, size_t n, const float *k, const float *v, size_t d,
                       size_t first, size_t end)
{
    attend(acc, a, q, n, k, v, d, first, end, weights_f32, one_f32);
}

static void attend_f16(float *acc, struct attend *a, const float *q, size_t n, const uint16_t *k, const uint16_t *v,
                       size_t d, size_t first, size_t end)
{
    attend(acc, a, q, n, k, v, d, first, end, weights_f16, one_f16);
}

static void attend_int8(float *acc, struct attend *a, const int8_t *q, const float *q_units, size_t n, const int8_t *k,
                        const float *k_units, const int8_t *v, const float *v_units, size_t d, size_t first, size_t end)
{
    size_t d4 = (d + 3) / 4 * 4;

    for (size_t j = 0; j < n; j++, acc += d, q += d4) {
        float s[ATTEND_TOKENS] = {0}, most = 0, shrink;
        int32_t p[ATTEND_TOKENS] = {0};

        for (size_t t = first / 4 * 4; t < end; t += 4) {           /* four tokens, four elements of each at a time */
            int32x4_t sum = vdupq_n_s32(0);

            for (size_t i = 0; i < d4; i += 4) {
                int8x16_t keys = vld1q_s8(k + (i / 4 * ATTEND_TOKENS + t) * 4);
                int8x16_t quad = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(const void *)(q + i)));

                sum = vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(vmull_s8(vget_low_s8(keys), vget_low_s8(quad))),
                                                vpaddlq_s16(vmull_high_s8(keys, quad))));
            }
            vst1q_f32(s + t, vmulq_f32(vcvtq_f32_s32(sum), vmulq_f32(vdupq_n_f32(q_units[j]), vld1q_f32(k_units + t))));
        }
        shrink = weigh(&a[j], s, first, end);
        for (size_t t = first; t < end; t++) {
            s[t] *= v_units[t];
            most = s[t] > most ? s[t] : most;
        }
        for (size_t t = first; t < end && most >= ATTEND_LEAST; t++)
            p[t] = (int32_t)rintf(s[t] * (ATTEND_TOP / most));
        for (size_t i = 0; i < d; i++) {
            int32x4_t sum = vdupq_n_s32(0);

            acc[i] *= shrink;
            if (most < ATTEND_LEAST)
                continue;
            for (size_t t = first / 4; t < (end + 3) / 4; t++) {
                int32_t four;

                memcpy(&four, v + (t * d + i) * 4, sizeof(four));
                sum = vmlaq_s32(sum, vld1q_s32(p + 4 * t),
                                vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
            }
            acc[i] += (float)vaddvq_s32(sum) * (most / ATTEND_TOP);
        }
    }
}

void kernels_set_neon(struct kernels *k)
{
    *k = (struct kernels){
        .name = "neon",
        .layout = &ternary_lines,
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
