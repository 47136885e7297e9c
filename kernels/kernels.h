/* The arithmetic of the engine, one table of functions an instruction set, chosen at run time.
 *
 * kernels/ref.c is the meaning; every other file gives the same bytes. Ternary kernels are integers in, integers out.
 * Float kernels keep sixteen running sums (element i goes to sum i mod 16, zero-padded tail) and fold them
 * 8, 4, 2, 1: s[i] += s[i+8] for i<8, then s[i] += s[i+4] for i<4, …; with -ffp-contract=off and no fused
 * multiply-add, so that a scalar loop and a vector loop agree to the bit and the check is memcmp.
 *
 * Packed ternary rows ("layout A", the canonical I2_S order of bitnet.cpp): cols is a multiple of 128; a row is
 * cols/4 bytes; in each block of 128 columns / 32 bytes, byte p holds columns p (bits 7:6), p+32 (5:4), p+64 (3:2),
 * p+96 (1:0); a code c is t+1 for t in {-1, 0, +1}; code 3 never occurs (loaders reject it).
 *
 * A variant multiplies rows in an order of its own, its `layout`, made of canonical rows when a model is loaded. Besides
 * the canonical one ("rows") there is "lines16": groups of 16 rows, in a group a 64-byte line for each 16 columns; byte
 * 4 r + j of line i holds, from its low bits up, columns 16 i + j, 16 i + 4 + j, 16 i + 8 + j and 16 i + 12 + j of row r.
 * A line is read once, in order, and opens into four lines of 16 rows x 4 columns of bytes, which is what the dot
 * products of four bytes and the tiles of x86 take.
 *
 * No function here allocates, fails, or keeps its arguments. No alignment is required beyond the element's. */
#pragma once

#include <stdbool.h>
#include "base/err.h"

#define TERNARY_BLOCK 128
#define SIXBIT_BLOCK_BYTES 96   /* of 128 columns */
#define Q8_0_BLOCK 32           /* weights a block */
#define Q8_0_BLOCK_BYTES 34     /* f16 scale, 32 int8 */
#define ATTEND_TOKENS 64        /* that one page of keys and values holds */
#define ATTEND_TOP 16383        /* the largest integer weight of a token in attend_int8 */

/* What a query has seen so far: the largest score, and the sum of e^(score - max). Begins as { -INFINITY, 0 }. */
struct attend { float max, sum; };

/* An order of packed ternary rows; cols is a multiple of 128. Row r, where it is a multiple of `group`, begins at
 * bytes(r, cols). Lives for ever; the name tells the order for good, so it may be part of a cache's key. */
struct ternary_layout {
    const char *name;
    size_t group;               /* rows that are interleaved; the last group is filled up with rows of zeros */
    size_t (*bytes)(size_t rows, size_t cols);
    /* out (bytes(rows, cols)) of canonical rows; they may not overlap. Row ranges that begin at multiples of group may be
     * packed apart, in any order or thread. */
    void (*pack)(uint8_t *out, const uint8_t *canonical, size_t rows, size_t cols);
    /* The trits (cols) of one row. For checks and the rare use of single rows: slow. */
    void (*row)(int8_t *t, const uint8_t *packed, size_t row, size_t cols);
};
extern const struct ternary_layout ternary_canonical;

struct kernels {
    const char *name;           /* what TERN_CPU takes: "ref", "avx2", … */

    /* Two variants may share one; `w` of ternary_matmul is in it. 64-byte aligned rows are read fastest. */
    const struct ternary_layout *layout;

    /* Exact integer sums of packed ternary rows with int8 activations.
     *   out  (n, rows)   int32, row j of x gives out[j*out_stride .. +rows); out_stride >= rows
     *   w    (rows, cols) in `layout`, from a row that is a multiple of layout->group
     *   x    (n, cols)   int8 in -127..127, x_stride >= cols bytes apart; columns past the logical width are zero
     *   cols a multiple of 128, at most 1<<20
     * n = 1 streams the weights; many rows of x share their unpacking: from about 32 little is left to gain, and
     * 128 to 256 are as good as more. 64 to 256 weight rows a call keep the sums in the second cache.
     * Source: BitNet b1.58, arXiv:2402.17764. */
    void (*ternary_matmul)(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                           size_t n, size_t rows, size_t cols);

    /* Absmax quantisation of one activation row: a = max(max|x_i|, 1e-5), s = (float)(127.0 / a),
     * q_i = rint-to-even(x_i * s) clamped to -127..127. Returns a (so x_i ~ q_i * a / 127). n of any size.
     * NaN and infinities must not occur in x. */
    float (*quantize_row)(int8_t *q, const float *x, size_t n);

    /* out_i = (x_i * r) * gain_i with r = 1 / sqrtf(sum(x^2) / n + eps); out may be x. */
    void (*rms_norm)(float *out, const float *x, const float *gain, size_t n, float eps);

    /* Sum of a_i * b_i. */
    float (*dot_f32)(const float *a, const float *b, size_t n);
    /* y_i += s * x_i */
    void (*axpy_f32)(float *y, float s, const float *x, size_t n);

    /* Dense rows against float activations: out[j*out_stride + r] = dot(w row r, x row j).
     *   w (rows, cols) IEEE half / bfloat16 / Q8_0 blocks / float; cols % 32 == 0 for Q8_0
     *   x (n, cols) float, x_stride floats apart
     * Each product is f32(w) * x; Q8_0's f32(w) = (float)q * f32(d). */
    void (*matmul_f16)(float *out, size_t out_stride, const uint16_t *w, const float *x, size_t x_stride, size_t n, size_t rows, size_t cols);
    void (*matmul_q8_0)(float *out, size_t out_stride, const uint8_t *w, const float *x, size_t x_stride, size_t n, size_t rows, size_t cols);
    void (*matmul_f32)(float *out, size_t out_stride, const float *w, const float *x, size_t x_stride, size_t n, size_t rows, size_t cols);

    /* Exact integer sums of 6-bit rows with int8 activations: out[j*out_stride + r] = sum of (code - 32) * x.
     *   w    (rows, cols) blocks of 128 columns in 96 bytes. Low four bits of the codes: byte p < 64 holds column p
     *        (3:0) and p+64 (7:4). High two: byte 64+p, p < 32, holds column p (1:0), p+32, p+64 and p+96 (7:6)
     *   x    (n, cols)    int8 in -127..127, x_stride >= cols bytes apart
     *   cols a multiple of 128, at most 1<<18 */
    void (*sixbit_matmul)(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                          size_t n, size_t rows, size_t cols);

    /* With d_i = x_i - max and e_i = kernel_exp(d_i): the sums of e_i and of e_i * d_i, in sixteen running doubles
     * folded as above. max >= every x_i, all finite and their differences too. */
    void (*exp_sums)(const float *x, size_t n, float max, double *ret_sum, double *ret_weighted);

    /* In place softmax of n scores: subtract the maximum, kernel_exp, divide by the sixteen-way sum. n >= 1. */
    void (*softmax)(float *x, size_t n);

    /* out_i = max(gate_i, 0)^2 * up_i, and out_i = silu(gate_i) * up_i with silu(v) = v / (1 + kernel_exp(-v)). */
    void (*relu2_mul)(float *out, const float *gate, const float *up, size_t n);
    void (*silu_mul)(float *out, const float *gate, const float *up, size_t n);

    /* Attention of n queries to tokens first..end-1 of one page, 0 <= first < end <= ATTEND_TOKENS, without ever holding
     * more scores than the page has tokens (the running softmax of Milakov and Gimelshein, arXiv:1805.02867). For each
     * query, with s_t = sum over i in order of q_i * k_ti, m = max(a->max, max s_t), c = kernel_exp(a->max - m) and
     * p_t = kernel_exp(s_t - m):
     *     a->sum = a->sum * c + the sixteen-way sum of p_t;  a->max = m
     *     acc_i = acc_i * c, then + p_t * v_ti for each t in order
     * so that at the end acc_i / a->sum is the answer; acc begins as zeros.
     *   acc (n, d) float     q (n, d) float, multiplied by the scale of scores     a (n)
     *   k   (d, ATTEND_TOKENS)     v (ATTEND_TOKENS, d)     of which only tokens first..end-1 need be set
     * Each query is computed as if alone. */
    void (*attend_f32)(float *acc, struct attend *a, const float *q, size_t n, const float *k, const float *v, size_t d,
                       size_t first, size_t end);
    void (*attend_f16)(float *acc, struct attend *a, const float *q, size_t n, const uint16_t *k, const uint16_t *v,
                       size_t d, size_t first, size_t end);
    /* The same in integers, -127..127, each token and query with what one step of it is worth:
     *     s_t = (float)sum(q_i * k_ti) * (q_unit * k_units_t)
     *     w_t = p_t * v_units_t, W = max w_t, P_t = rint(w_t * (ATTEND_TOP / W))
     *     acc_i = acc_i * c + (float)sum(P_t * v_ti) * (W / ATTEND_TOP);  nothing is added when W < 1e-30
     *   q (n, d4) int8, d4 = d rounded up to 4, zero past d
     *   k (d4 / 4, ATTEND_TOKENS, 4): elements 4i..4i+3 of a token side by side, zero past d
     *   v (ATTEND_TOKENS / 4, d, 4): the same element of four tokens side by side
     * Here k, v and their units must be set to something for all tokens up to the end of the last group of 16. */
    void (*attend_int8)(float *acc, struct attend *a, const int8_t *q, const float *q_units, size_t n, const int8_t *k,
                        const float *k_units, const int8_t *v, const float *v_units, size_t d, size_t first, size_t end);
    /* Halves of x, which is cut to the largest finite ones. */
    void (*to_f16)(uint16_t *out, const float *x, size_t n);
};

/* The best variant this machine runs, or the one TERN_CPU names. Chosen once, thread-safe. TERN_CPU naming an unknown
 * or unsupported variant: NULL, with *err listing what this machine has. Lives for ever. */
const struct kernels *kernels_get(struct err *err);

/* All variants this machine can run, reference first; returns how many. For the check and for `--json`. */
size_t kernels_list(const struct kernels *const **ret);

/* exp() by range reduction and a polynomial in plain float operations, the same bits in every variant; relative error
 * under 2e-7 on -87..88; 0 below -87.3, FLT_MAX-ish saturation above 88. */
float kernel_exp(float x);

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);      /* round to nearest even */
static inline float bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } v = { .u = (uint32_t)h << 16 };
    return v.f;
}

/* Pack rows of trits (t in -1..1, row-major, `cols` logical columns) into layout A with zero trits up to the padded
 * width; out is rows * padded/4 bytes, padded = cols rounded up to 128. For loaders and tests. */
void ternary_pack(uint8_t *out, const int8_t *t, size_t rows, size_t cols);
void ternary_unpack(int8_t *t, const uint8_t *packed, size_t rows, size_t cols);

/* One row of sixbit_matmul(): q (cols) in -32..31 to cols/128 blocks; cols a multiple of 128. */
void sixbit_pack(uint8_t *out, const int8_t *q, size_t cols);
