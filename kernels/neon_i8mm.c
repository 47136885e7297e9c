/* Ternary products for aarch64 with 2x8 by 8x2 matrices of bytes (FEAT_I8MM, Armv8.6), giving ref.c's bytes. Two planes of
 * a line side by side are eight columns of a row; one row of x has nothing to gain and goes the way of neon_dot.c. */
#include "kernels/neon.h"

#define PAIRS 2                 /* of rows of x that share the opening of a line */

/* 2 n rows of x; of an odd number the last is given twice. */
ALWAYS_INLINE void tile(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *const *x, const int32_t *taken,
                        size_t n_x, size_t rows, size_t cols, const size_t n)
{
    int32x4_t sum[PAIRS][8] = {0};              /* [pair of x][pair of rows]: row 0 of x 0, 1; row 1 of x 0, 1 */

    for (size_t c = 0; c < cols; c += LINE_COLS, w += LINE)
#pragma GCC unroll 4
        for (size_t v = 0; v < 4; v++) {
            uint8x16_t line = vld1q_u8(w + 16 * v);
#pragma GCC unroll 2
            for (size_t h = 0; h < 2; h++) {
                uint32x4_t a = vreinterpretq_u32_s8(h ? plane(line, 2) : plane(line, 0));
                uint32x4_t b = vreinterpretq_u32_s8(h ? plane(line, 3) : plane(line, 1));
                int8x16_t rows01 = vreinterpretq_s8_u32(vzip1q_u32(a, b)), rows23 = vreinterpretq_s8_u32(vzip2q_u32(a, b));

#pragma GCC unroll 2
                for (size_t p = 0; p < n; p++) {
                    int8x16_t xs = vcombine_s8(vld1_s8(x[2 * p] + c + 8 * h), vld1_s8(x[2 * p + 1] + c + 8 * h));

                    sum[p][2 * v] = vmmlaq_s32(sum[p][2 * v], rows01, xs);
                    sum[p][2 * v + 1] = vmmlaq_s32(sum[p][2 * v + 1], rows23, xs);
                }
            }
        }
    for (size_t j = 0; j < n_x; j++) {
        int32x4_t own[4];

        for (size_t v = 0; v < 4; v++) {
            const int32x4_t *s = &sum[j / 2][2 * v];

            own[v] = j % 2 ? vuzp2q_s32(s[0], s[1]) : vuzp1q_s32(s[0], s[1]);
        }
        store_group(out + j * out_stride, own, taken[j], rows);
    }
}

static void ternary_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                           size_t rows, size_t cols)
{
    if (n < 2) {
        ternary_matmul_neon_dot(out, out_stride, w, x, x_stride, n, rows, cols);
        return;
    }
    for (size_t j = 0; j < n; j += 2 * PAIRS) {
        size_t some = MIN(n - j, 2 * PAIRS);
        const int8_t *xs[2 * PAIRS];
        int32_t taken[2 * PAIRS];

        for (size_t i = 0; i < 2 * PAIRS; i++) {
            xs[i] = x + (j + MIN(i, some - 1)) * x_stride;
            taken[i] = i < some ? sum_int8(xs[i], cols) : 0;
        }
        for (size_t r = 0; r < rows; r += GROUP) {
            const uint8_t *lines = w + r * (cols / 4);
            int32_t *o = out + j * out_stride + r;

            if (some <= 2)
                tile(o, out_stride, lines, xs, taken, some, rows - r, cols, 1);
            else
                tile(o, out_stride, lines, xs, taken, some, rows - r, cols, 2);
        }
    }
}

void kernels_set_i8mm(struct kernels *k)
{
    k->name = "i8mm";
    k->ternary_matmul = ternary_matmul;
}
