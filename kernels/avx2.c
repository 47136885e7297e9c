/* Kernels for x86-64 with AVX2 and F16C, without fused multiply-add, giving ref.c's bytes.
 *
 * Sixteen running sums are two vectors of eight; a tail is a zero-padded sixteen. Ternary products are in
 * avx2_ternary.c. */
#include "kernels/avx2.h"

#include <math.h>

#define SIXBIT_AHEAD 512        /* bytes */
#define STREAMS 4               /* of memory that are read side by side where a row is used once: half again as fast */

struct v16 { __m256 lo, hi; };

ALWAYS_INLINE struct v16 load16(const float *p)
{
    return (struct v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}

ALWAYS_INLINE struct v16 load16_tail(const float *p, size_t n)
{
    float padded[16] = {0};

    memcpy(padded, p, n * sizeof(*p));
    return load16(padded);
}

ALWAYS_INLINE void store16(float *p, struct v16 v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

ALWAYS_INLINE void store16_tail(float *p, struct v16 v, size_t n)
{
    float padded[16];

    store16(padded, v);
    memcpy(p, padded, n * sizeof(*p));
}

ALWAYS_INLINE struct v16 zero16(void)
{
    return (struct v16){ _mm256_setzero_ps(), _mm256_setzero_ps() };
}

ALWAYS_INLINE struct v16 add_product(struct v16 s, struct v16 a, struct v16 b)
{
    return (struct v16){ _mm256_add_ps(s.lo, _mm256_mul_ps(a.lo, b.lo)), _mm256_add_ps(s.hi, _mm256_mul_ps(a.hi, b.hi)) };
}

ALWAYS_INLINE float fold(struct v16 s)
{
    __m256 eight = _mm256_add_ps(s.lo, s.hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

ALWAYS_INLINE __m256 exp8(__m256 x)
{
    __m256 inside = _mm256_cmp_ps(x, _mm256_set1_ps(EXP_LOW), _CMP_GE_OQ);
    __m256 round = _mm256_set1_ps(EXP_ROUND), k, r, p, scale;

    x = _mm256_min_ps(x, _mm256_set1_ps(EXP_HIGH));
    k = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E)), round), round);
    r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(k, _mm256_set1_ps(EXP_LN2_HIGH))),
                      _mm256_mul_ps(k, _mm256_set1_ps(EXP_LN2_LOW)));
    p = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(EXP_P4), r), _mm256_set1_ps(EXP_P3));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(EXP_P2));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(EXP_P1));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(EXP_P0));
    p = _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(p, _mm256_mul_ps(r, r)), r), _mm256_set1_ps(1));
    scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23));
    return _mm256_and_ps(_mm256_mul_ps(p, scale), inside);
}

/* ---- six bits --------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE int32_t add_lanes(__m256i v)
{
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));

    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

static int32_t sum_row(const int8_t *x, size_t cols)
{
    __m256i total = _mm256_setzero_si256();

    for (size_t c = 0; c < cols; c += 32) {
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)(x + c)));

        total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return add_lanes(total);
}

/* n_rows * n_x <= 8 products; the rows stand `apart` rows from one another. Two of the at most 63 * 127 * 2 of a maddubs
 * fit sixteen bits. */
ALWAYS_INLINE void sixbit_tile(int32_t *out, size_t out_stride, const uint8_t *w, size_t apart, const int8_t *x,
                               size_t x_stride, size_t cols, const int32_t *x_sums, const size_t n_rows, const size_t n_x)
{
    const __m256i low = _mm256_set1_epi8(15), high = _mm256_set1_epi8(0x30), ones = _mm256_set1_epi16(1);
    const size_t n_blocks = cols / TERNARY_BLOCK;
    __m256i total[8] = {0};

    for (size_t b = 0; b < n_blocks; b++)
#pragma GCC unroll 4
        for (size_t r = 0; r < n_rows; r++) {
            const uint8_t *at = w + (r * apart * n_blocks + b) * SIXBIT_BLOCK_BYTES;
            __m256i n0 = _mm256_loadu_si256((const void *)at), n1 = _mm256_loadu_si256((const void *)(at + 32));
            __m256i t = _mm256_loadu_si256((const void *)(at + 64)), u[4];

            _mm_prefetch(at + SIXBIT_AHEAD, _MM_HINT_T0);
            _mm_prefetch(at + SIXBIT_AHEAD + 64, _MM_HINT_T0);
            u[0] = _mm256_or_si256(_mm256_and_si256(n0, low), _mm256_and_si256(_mm256_slli_epi16(t, 4), high));
            u[1] = _mm256_or_si256(_mm256_and_si256(n1, low), _mm256_and_si256(_mm256_slli_epi16(t, 2), high));
            u[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(n0, 4), low), _mm256_and_si256(t, high));
            u[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(n1, 4), low),
                                   _mm256_and_si256(_mm256_srli_epi16(t, 2), high));
#pragma GCC unroll 4
            for (size_t j = 0; j < n_x; j++)
#pragma GCC unroll 2
                for (size_t q = 0; q < 4; q += 2) {
                    const int8_t *xs = x + j * x_stride + b * TERNARY_BLOCK + q * 32;
                    __m256i pair = _mm256_add_epi16(
                        _mm256_maddubs_epi16(u[q], _mm256_loadu_si256((const void *)xs)),
                        _mm256_maddubs_epi16(u[q + 1], _mm256_loadu_si256((const void *)(xs + 32))));

                    total[r * n_x + j] = _mm256_add_epi32(total[r * n_x + j], _mm256_madd_epi16(pair, ones));
                }
        }
#pragma GCC unroll 4
    for (size_t r = 0; r < n_rows; r++)
#pragma GCC unroll 4
        for (size_t j = 0; j < n_x; j++)
            out[j * out_stride + r * apart] = add_lanes(total[r * n_x + j]) - 32 * x_sums[j];
}

static void sixbit_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                          size_t n, size_t rows, size_t cols)
{
    const size_t row_bytes = cols / TERNARY_BLOCK * SIXBIT_BLOCK_BYTES, apart = rows / STREAMS;

    for (size_t j = 0; j < n; j += 4) {
        size_t some = MIN(n - j, 4), r = 0;
        const int8_t *xj = x + j * x_stride;
        int32_t sums[4], *o = out + j * out_stride;

        for (size_t i = 0; i < some; i++)
            sums[i] = sum_row(xj + i * x_stride, cols);
        for (; some == 1 && r < apart; r++)
            sixbit_tile(o + r, out_stride, w + r * row_bytes, apart, xj, x_stride, cols, sums, STREAMS, 1);
        for (; some == 2 && r < apart; r++)
            sixbit_tile(o + r, out_stride, w + r * row_bytes, apart, xj, x_stride, cols, sums, STREAMS, 2);
        for (r *= STREAMS; r < rows; r++)
            switch (some) {
            case 1: sixbit_tile(o + r, out_stride, w + r * row_bytes, 0, xj, x_stride, cols, sums, 1, 1); break;
            case 2: sixbit_tile(o + r, out_stride, w + r * row_bytes, 0, xj, x_stride, cols, sums, 1, 2); break;
            case 3: sixbit_tile(o + r, out_stride, w + r * row_bytes, 0, xj, x_stride, cols, sums, 1, 3); break;
            case 4: sixbit_tile(o + r, out_stride, w + r * row_bytes, 0, xj, x_stride, cols, sums, 1, 4); break;
            }
    }
}

/* ---- quantising ------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE __m256i quantize32(const float *x, __m256 s)
{
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), s));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), s));
    __m256i c = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), s));
    __m256i d = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), s));
    __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));

    /* Packing works within each half: put the fours back in order. */
    q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_max_epi8(q, _mm256_set1_epi8(-127));
}

static float quantize_row(int8_t *q, const float *x, size_t n)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 max8 = _mm256_set1_ps(QUANT_FLOOR);
    float lanes[8], a = QUANT_FLOOR, s;
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        max8 = _mm256_max_ps(max8, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    _mm256_storeu_ps(lanes, max8);
    for (size_t lane = 0; lane < 8; lane++)
        a = fmaxf(a, lanes[lane]);
    for (; i < n; i++)
        a = fmaxf(a, fabsf(x[i]));

    s = (float)(127.0 / a);
    for (i = 0; i + 32 <= n; i += 32)
        _mm256_storeu_si256((__m256i *)(q + i), quantize32(x + i, _mm256_set1_ps(s)));
    if (i < n) {
        float padded[32] = {0};
        int8_t tail[32];

        memcpy(padded, x + i, (n - i) * sizeof(*x));
        _mm256_storeu_si256((__m256i *)tail, quantize32(padded, _mm256_set1_ps(s)));
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
    const __m128i *at = (const void *)((const uint16_t *)row + i);

    return (struct v16){ _mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1)) };
}

ALWAYS_INLINE struct v16 weights_q8_0(const void *row, size_t i)
{
    const uint8_t *block = (const uint8_t *)row + i / Q8_0_BLOCK * Q8_0_BLOCK_BYTES;
    __m128i q = _mm_loadu_si128((const void *)(block + 2 + i % Q8_0_BLOCK));
    __m256 scale;
    uint16_t half;

    memcpy(&half, block, sizeof(half));
    scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
    return (struct v16){ _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), scale),
                         _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8))), scale) };
}

/* STREAMS weight rows, apart bytes from one another, against one activation row; results apart_out from one another. */
ALWAYS_INLINE void dense_streams(float *out, size_t apart_out, const uint8_t *w, size_t apart, const float *x,
                                 size_t cols, struct v16 (*weights)(const void *, size_t), size_t weight_bytes)
{
    struct v16 s[STREAMS] = { zero16(), zero16(), zero16(), zero16() };
    size_t i = 0;

    for (; i + 16 <= cols; i += 16) {
        struct v16 xs = load16(x + i);

#pragma GCC unroll 4
        for (size_t r = 0; r < STREAMS; r++)
            s[r] = add_product(s[r], weights(w + r * apart, i), xs);
    }
    if (weight_bytes && i < cols) {
        struct v16 xs = load16_tail(x + i, cols - i);

#pragma GCC unroll 4
        for (size_t r = 0; r < STREAMS; r++) {
            uint8_t padded[16 * sizeof(float)] = {0};

            memcpy(padded, w + r * apart + i * weight_bytes, (cols - i) * weight_bytes);
            s[r] = add_product(s[r], weights(padded, 0), xs);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < STREAMS; r++)
        out[r * apart_out] = fold(s[r]);
}

/* One weight row against n <= 4 activation rows; weight_bytes 0: the type has no tail. */
ALWAYS_INLINE void dense_tile(float *out, size_t out_stride, const void *row, const float *x, size_t x_stride, size_t cols,
                              struct v16 (*weights)(const void *, size_t), size_t weight_bytes, const size_t n)
{
    struct v16 s[4] = { zero16(), zero16(), zero16(), zero16() };
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

ALWAYS_INLINE void dense_matmul(float *out, size_t out_stride, const void *w, size_t row_bytes, const float *x, size_t x_stride,
                                size_t n, size_t rows, size_t cols,
                                struct v16 (*weights)(const void *, size_t), size_t weight_bytes)
{
    size_t apart = n == 1 ? rows / STREAMS : 0;

    for (size_t r = 0; r < apart; r++)
        dense_streams(out + r, apart, (const uint8_t *)w + r * row_bytes, apart * row_bytes, x, cols, weights,
                      weight_bytes);
    for (size_t r = apart * STREAMS; r < rows; r++)
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

static void matmul_f16(float *out, size_t out_stride, const uint16_t *w, const float *x, size_t x_stride,
                       size_t n, size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols * sizeof(*w), x, x_stride, n, rows, cols, weights_f16, sizeof(*w));
}

static void matmul_q8_0(float *out, size_t out_stride, const uint8_t *w, const float *x, size_t x_stride,
                        size_t n, size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols / Q8_0_BLOCK * Q8_0_BLOCK_BYTES, x, x_stride, n, rows, cols, weights_q8_0, 0);
}

static void matmul_f32(float *out, size_t out_stride, const float *w, const float *x, size_t x_stride,
                       size_t n, size_t rows, size_t cols)
{
    dense_matmul(out, out_stride, w, cols * sizeof(*w), x, x_stride, n, rows, cols, weights_f32, sizeof(*w));
}

/* ---- vectors ---------------------------------------------------------------------------------------------------- */

static float dot_f32(const float *a, const float *b, size_t n)
{
    struct v16 s = zero16();
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

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(r)),
                                                _mm256_loadu_ps(gain + i)));
    for (; i < n; i++)
        out[i] = (x[i] * r) * gain[i];
}

static void axpy_f32(float *y, float s, const float *x, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_mul_ps(_mm256_set1_ps(s), _mm256_loadu_ps(x + i))));
    for (; i < n; i++)
        y[i] += s * x[i];
}

ALWAYS_INLINE struct v16 exp16(struct v16 x, __m256 max)
{
    return (struct v16){ exp8(_mm256_sub_ps(x.lo, max)), exp8(_mm256_sub_ps(x.hi, max)) };
}

static float max_f32(const float *x, size_t n)
{
    __m256 max8 = _mm256_set1_ps(x[0]);
    float lanes[8], max = x[0];
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        max8 = _mm256_max_ps(max8, _mm256_loadu_ps(x + i));
    _mm256_storeu_ps(lanes, max8);
    for (size_t lane = 0; lane < 8; lane++)
        max = lanes[lane] > max ? lanes[lane] : max;
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

static void softmax(float *x, size_t n)
{
    const __m256 max = _mm256_set1_ps(max_f32(x, n));
    const struct v16 one = { _mm256_set1_ps(1), _mm256_set1_ps(1) };
    struct v16 s = zero16();
    size_t i = 0;
    float sum;

    for (; i + 16 <= n; i += 16) {
        struct v16 e = exp16(load16(x + i), max);

        s = add_product(s, e, one);
        store16(x + i, e);
    }
    if (i < n) {
        float padded[16] = { [0 ... 15] = -INFINITY };     /* whose exponential is zero */
        struct v16 e;

        memcpy(padded, x + i, (n - i) * sizeof(*x));
        e = exp16(load16(padded), max);
        s = add_product(s, e, one);
        store16_tail(x + i, e, n - i);
    }
    sum = fold(s);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_div_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(sum)));
    for (; i < n; i++)
        x[i] /= sum;
}

/* Four vectors of four doubles are the sixteen sums. */
ALWAYS_INLINE double fold_double(const __m256d s[4])
{
    __m256d four = _mm256_add_pd(_mm256_add_pd(s[0], s[2]), _mm256_add_pd(s[1], s[3]));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));

    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

ALWAYS_INLINE void add_exp8(__m256d sum[2], __m256d weighted[2], __m256 d)
{
    __m256 e = exp8(d);

#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256d e4 = _mm256_cvtps_pd(h ? _mm256_extractf128_ps(e, 1) : _mm256_castps256_ps128(e));
        __m256d d4 = _mm256_cvtps_pd(h ? _mm256_extractf128_ps(d, 1) : _mm256_castps256_ps128(d));

        sum[h] = _mm256_add_pd(sum[h], e4);
        weighted[h] = _mm256_add_pd(weighted[h], _mm256_mul_pd(e4, d4));
    }
}

static void exp_sums(const float *x, size_t n, float max, double *ret_sum, double *ret_weighted)
{
    __m256d sum[4] = {0}, weighted[4] = {0};
    const __m256 top = _mm256_set1_ps(max);
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        add_exp8(sum, weighted, _mm256_sub_ps(_mm256_loadu_ps(x + i), top));
        add_exp8(sum + 2, weighted + 2, _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), top));
    }
    if (i < n) {
        float padded[16];

        for (size_t k = 0; k < 16; k++)         /* what has no exponential adds nothing */
            padded[k] = i + k < n ? x[i + k] - max : -1000;
        add_exp8(sum, weighted, _mm256_loadu_ps(padded));
        add_exp8(sum + 2, weighted + 2, _mm256_loadu_ps(padded + 8));
    }
    *ret_sum = fold_double(sum);
    *ret_weighted = fold_double(weighted);
}

ALWAYS_INLINE __m256 relu2_8(__m256 gate, __m256 up)
{
    __m256 g = _mm256_max_ps(gate, _mm256_setzero_ps());

    return _mm256_mul_ps(_mm256_mul_ps(g, g), up);
}

ALWAYS_INLINE __m256 silu_8(__m256 gate, __m256 up)
{
    __m256 e = exp8(_mm256_xor_ps(gate, _mm256_set1_ps(-0.0f)));

    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1), e)), up);
}

ALWAYS_INLINE void gate_mul(float *out, const float *gate, const float *up, size_t n, __m256 (*act)(__m256, __m256))
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, act(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i < n) {
        struct v16 g = load16_tail(gate + i, n - i), u = load16_tail(up + i, n - i);

        store16_tail(out + i, (struct v16){ act(g.lo, u.lo), g.hi }, n - i);
    }
}

static void relu2_mul(float *out, const float *gate, const float *up, size_t n)
{
    gate_mul(out, gate, up, n, relu2_8);
}

static void silu_mul(float *out, const float *gate, const float *up, size_t n)
{
    gate_mul(out, gate, up, n, silu_8);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

#define QUERIES_AT_ONCE 4

static void to_f16(uint16_t *out, const float *x, size_t n)
{
    const __m256 most = _mm256_set1_ps(F16_MAX), least = _mm256_set1_ps(-F16_MAX);
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(x + i), least),
                                                                             most), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        out[i] = f32_to_f16(fminf(fmaxf(x[i], -F16_MAX), F16_MAX));
}

static float most_of(const float s[ATTEND_TOKENS])
{
    __m256 max = _mm256_loadu_ps(s);
    float lanes[8], most;

    for (size_t t = 8; t < ATTEND_TOKENS; t += 8)
        max = _mm256_max_ps(_mm256_loadu_ps(s + t), max);
    _mm256_storeu_ps(lanes, max);
    most = lanes[0];
    for (size_t i = 1; i < 8; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}

/* ref.c's; the scores of whole sixteens, from `first` rounded down to `end` rounded up, stand in s. */
static float weigh(struct attend *a, float s[ATTEND_TOKENS], size_t first, size_t end)
{
    struct v16 sums = zero16();
    float max, shrink;

    for (size_t t = 0; t < first; t++)
        s[t] = -INFINITY;
    for (size_t t = end; t < ATTEND_TOKENS; t++)
        s[t] = -INFINITY;
    max = fmaxf(a->max, most_of(s)) + 0.0f;
    shrink = kernel_exp(a->max - max);
    for (size_t t = 0; t < ATTEND_TOKENS; t += 16) {
        struct v16 e = exp16(load16(s + t), _mm256_set1_ps(max));

        sums.lo = _mm256_add_ps(sums.lo, e.lo);
        sums.hi = _mm256_add_ps(sums.hi, e.hi);
        store16(s + t, e);
    }
    *a = (struct attend){ max, a->sum * shrink + fold(sums) };
    return shrink;
}

ALWAYS_INLINE void scores(float s[][ATTEND_TOKENS], const float *q, const void *k, size_t d, size_t first, size_t end,
                          struct v16 (*at)(const void *, size_t), const size_t n)
{
    for (size_t t = first / 16 * 16; t < end; t += 16) {
        struct v16 sum[QUERIES_AT_ONCE] = { zero16(), zero16(), zero16(), zero16() };

        for (size_t i = 0; i < d; i++) {
            struct v16 key = at(k, i * ATTEND_TOKENS + t);

#pragma GCC unroll 4
            for (size_t j = 0; j < n; j++) {
                __m256 one = _mm256_broadcast_ss(q + j * d + i);

                sum[j] = add_product(sum[j], (struct v16){ one, one }, key);
            }
        }
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++)
            store16(s[j] + t, sum[j]);
    }
}

ALWAYS_INLINE void values(float *acc, float s[][ATTEND_TOKENS], const float *shrink, const void *v, size_t d, size_t first,
                          size_t end, struct v16 (*at)(const void *, size_t), float (*one_at)(const void *, size_t),
                          const size_t n)
{
    size_t i = 0;

    for (; i + 16 <= d; i += 16) {
        struct v16 sum[QUERIES_AT_ONCE];

#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++) {
            __m256 c = _mm256_set1_ps(shrink[j]);
            struct v16 before = load16(acc + j * d + i);

            sum[j] = (struct v16){ _mm256_mul_ps(before.lo, c), _mm256_mul_ps(before.hi, c) };
        }
        for (size_t t = first; t < end; t++) {
            struct v16 value = at(v, t * d + i);

#pragma GCC unroll 4
            for (size_t j = 0; j < n; j++) {
                __m256 weight = _mm256_broadcast_ss(s[j] + t);

                sum[j] = add_product(sum[j], (struct v16){ weight, weight }, value);
            }
        }
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++)
            store16(acc + j * d + i, sum[j]);
    }
    for (; i < d; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = acc[j * d + i] * shrink[j];

            for (size_t t = first; t < end; t++)
                sum += s[j][t] * one_at(v, t * d + i);
            acc[j * d + i] = sum;
        }
}

ALWAYS_INLINE void attend_some(float *acc, struct attend *a, const float *q, const void *k, const void *v, size_t d,
                               size_t first, size_t end, struct v16 (*at)(const void *, size_t),
                               float (*one_at)(const void *, size_t), const size_t n)
{
    float s[QUERIES_AT_ONCE][ATTEND_TOKENS], shrink[QUERIES_AT_ONCE];

    scores(s, q, k, d, first, end, at, n);
    for (size_t j = 0; j < n; j++)
        shrink[j] = weigh(&a[j], s[j], first, end);
    values(acc, s, shrink, v, d, first, end, at, one_at, n);
}

ALWAYS_INLINE void attend(float *acc, struct attend *a, const float *q, size_t n, const void *k, const void *v, size_t d,
                          size_t first, size_t end, struct v16 (*at)(const void *, size_t),
                          float (*one_at)(const void *, size_t))
{
    size_t j = 0;

    for (; j + 4 <= n; j += 4)
        attend_some(acc + j * d, a + j, q + j * d, k, v, d, first, end, at, one_at, 4);
    for (; j + 2 <= n; j += 2)
        attend_some(acc + j * d, a + j, q + j * d, k, v, d, first, end, at, one_at, 2);
    if (j < n)
        attend_some(acc + j * d, a + j, q + j * d, k, v, d, first, end, at, one_at, 1);
}

ALWAYS_INLINE float one_f32(const void *p, size_t i)
{
    return ((const float *)p)[i];
}

ALWAYS_INLINE float one_f16(const void *p, size_t i)
{
    return _cvtsh_ss(((const uint16_t *)p)[i]);
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

/* Sixteen keys at a time: |q| times the keys with q's signs, so that the bytes multiplied are unsigned times signed. Two
 * products fit sixteen bits, 2 * 127 * 127 = 32258. */
ALWAYS_INLINE void scores_int8(float s[][ATTEND_TOKENS], const int8_t *q, const float *q_units, const int8_t *k,
                               const float *k_units, size_t d4, size_t first, size_t end, const size_t n)
{
    for (size_t t = first / 16 * 16; t < end; t += 16) {
        __m256i sum[2 * QUERIES_AT_ONCE] = {0};

        for (size_t i = 0; i < d4; i += 4) {
            const int8_t *at = k + (i / 4 * ATTEND_TOKENS + t) * 4;
            __m256i low = _mm256_loadu_si256((const __m256i *)at), high = _mm256_loadu_si256((const __m256i *)(at + 32));

#pragma GCC unroll 4
            for (size_t j = 0; j < n; j++) {
                __m256i four, size;
                int32_t bytes;

                memcpy(&bytes, q + j * d4 + i, sizeof(bytes));
                four = _mm256_set1_epi32(bytes);
                size = _mm256_abs_epi8(four);
                sum[2 * j] = _mm256_add_epi32(sum[2 * j], _mm256_madd_epi16(_mm256_maddubs_epi16(size,
                    _mm256_sign_epi8(low, four)), _mm256_set1_epi16(1)));
                sum[2 * j + 1] = _mm256_add_epi32(sum[2 * j + 1], _mm256_madd_epi16(_mm256_maddubs_epi16(size,
                    _mm256_sign_epi8(high, four)), _mm256_set1_epi16(1)));
            }
        }
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++) {
            struct v16 units = load16(k_units + t);
            __m256 unit = _mm256_set1_ps(q_units[j]);

            store16(s[j] + t, (struct v16){ _mm256_mul_ps(_mm256_cvtepi32_ps(sum[2 * j]), _mm256_mul_ps(unit, units.lo)),
                                            _mm256_mul_ps(_mm256_cvtepi32_ps(sum[2 * j + 1]), _mm256_mul_ps(unit, units.hi)) });
        }
    }
}

/* Weights of values, all 0 past the ends, as integers; returns what one step of them is worth, 0: all are nothing. */
static float weigh_int8(int16_t p[ATTEND_TOKENS], float s[ATTEND_TOKENS], const float *v_units, size_t first, size_t end)
{
    float most;

    for (size_t t = first / 16 * 16; t < end; t += 16) {
        struct v16 e = load16(s + t), units = load16(v_units + t);

        store16(s + t, (struct v16){ _mm256_mul_ps(e.lo, units.lo), _mm256_mul_ps(e.hi, units.hi) });
    }
    for (size_t t = first / 16 * 16; t < first; t++)
        s[t] = 0;
    for (size_t t = end; t < ATTEND_TOKENS; t++)
        s[t] = 0;
    most = most_of(s);
    if (most < ATTEND_LEAST)
        return 0;
    for (size_t t = 0; t < ATTEND_TOKENS; t += 16) {
        __m256 scale = _mm256_set1_ps(ATTEND_TOP / most);
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(s + t), scale));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(s + t + 8), scale));

        _mm256_storeu_si256((__m256i *)(p + t), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
    }
    return most / ATTEND_TOP;
}

/* Four tokens of four elements of v at a time, whose products stay in pairs until the end. */
ALWAYS_INLINE void values_int8(float *acc, int16_t p[][ATTEND_TOKENS], const float *shrink, const float *units,
                               const int8_t *v, size_t d, size_t first, size_t end, const size_t n)
{
    size_t i = 0, begin = first / 4, stop = (end + 3) / 4;

    for (; i + 8 <= d; i += 8) {
        __m256i sum[2 * QUERIES_AT_ONCE] = {0};

        for (size_t t = begin; t < stop; t++) {
            const __m128i *at = (const __m128i *)(v + (t * d + i) * 4);
            __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128(at)), high = _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1));

#pragma GCC unroll 4
            for (size_t j = 0; j < n; j++) {
                __m256i four;
                int64_t weights;

                memcpy(&weights, p[j] + 4 * t, sizeof(weights));
                four = _mm256_set1_epi64x(weights);
                sum[2 * j] = _mm256_add_epi32(sum[2 * j], _mm256_madd_epi16(low, four));
                sum[2 * j + 1] = _mm256_add_epi32(sum[2 * j + 1], _mm256_madd_epi16(high, four));
            }
        }
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++) {
            __m256i all = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[2 * j], sum[2 * j + 1]), 0xd8);
            __m256 before = _mm256_mul_ps(_mm256_loadu_ps(acc + j * d + i), _mm256_set1_ps(shrink[j]));

            if (units[j] > 0)
                before = _mm256_add_ps(before, _mm256_mul_ps(_mm256_cvtepi32_ps(all), _mm256_set1_ps(units[j])));
            _mm256_storeu_ps(acc + j * d + i, before);
        }
    }
    for (; i < d; i++)
        for (size_t j = 0; j < n; j++) {
            int32_t sum = 0;

            for (size_t t = first; t < end; t++)
                sum += p[j][t] * v[(t / 4 * d + i) * 4 + t % 4];
            acc[j * d + i] *= shrink[j];
            if (units[j] > 0)
                acc[j * d + i] += (float)sum * units[j];
        }
}

ALWAYS_INLINE void attend_some_int8(float *acc, struct attend *a, const int8_t *q, const float *q_units, const int8_t *k,
                                    const float *k_units, const int8_t *v, const float *v_units, size_t d, size_t first,
                                    size_t end, const size_t n)
{
    float s[QUERIES_AT_ONCE][ATTEND_TOKENS], shrink[QUERIES_AT_ONCE], units[QUERIES_AT_ONCE];
    int16_t p[QUERIES_AT_ONCE][ATTEND_TOKENS];

    scores_int8(s, q, q_units, k, k_units, (d + 3) / 4 * 4, first, end, n);
    for (size_t j = 0; j < n; j++) {
        shrink[j] = weigh(&a[j], s[j], first, end);
        units[j] = weigh_int8(p[j], s[j], v_units, first, end);
    }
    values_int8(acc, p, shrink, units, v, d, first, end, n);
}

static void attend_int8(float *acc, struct attend *a, const int8_t *q, const float *q_units, size_t n, const int8_t *k,
                        const float *k_units, const int8_t *v, const float *v_units, size_t d, size_t first, size_t end)
{
    size_t j = 0, d4 = (d + 3) / 4 * 4;

    for (; j + 4 <= n; j += 4)
        attend_some_int8(acc + j * d, a + j, q + j * d4, q_units + j, k, k_units, v, v_units, d, first, end, 4);
    for (; j + 2 <= n; j += 2)
        attend_some_int8(acc + j * d, a + j, q + j * d4, q_units + j, k, k_units, v, v_units, d, first, end, 2);
    if (j < n)
        attend_some_int8(acc + j * d, a + j, q + j * d4, q_units + j, k, k_units, v, v_units, d, first, end, 1);
}

void kernels_set_avx2(struct kernels *k)
{
    *k = (struct kernels){
        .name = "avx2",
        .layout = &ternary_lines,
        .ternary_matmul = ternary_matmul_avx2,
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
