/* Integer products for aarch64 with the dot product of four bytes (FEAT_DotProd, Armv8.2), giving ref.c's bytes: a lane is
 * a row of weights, and a line of 16 rows opens into just what the instruction takes. */
#include "kernels/neon.h"

#define TILE 4                  /* rows of x that share the opening of a line */

ALWAYS_INLINE void tile(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                        const int32_t *taken, size_t rows, size_t cols, const size_t n)
{
    int32x4_t sum[TILE][4] = {0};

    for (size_t c = 0; c < cols; c += LINE_COLS, w += LINE)
#pragma GCC unroll 4
        for (size_t v = 0; v < 4; v++) {
            uint8x16_t line = vld1q_u8(w + 16 * v);
            int8x16_t p0 = plane(line, 0), p1 = plane(line, 1), p2 = plane(line, 2), p3 = plane(line, 3);

#pragma GCC unroll 4
            for (size_t j = 0; j < n; j++) {
                int8x16_t xs = vld1q_s8(x + j * x_stride + c);

                sum[j][v] = vdotq_laneq_s32(sum[j][v], p0, xs, 0);
                sum[j][v] = vdotq_laneq_s32(sum[j][v], p1, xs, 1);
                sum[j][v] = vdotq_laneq_s32(sum[j][v], p2, xs, 2);
                sum[j][v] = vdotq_laneq_s32(sum[j][v], p3, xs, 3);
            }
        }
    for (size_t j = 0; j < n; j++)
        store_group(out + j * out_stride, sum[j], taken[j], rows);
}

void ternary_matmul_neon_dot(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                             size_t n, size_t rows, size_t cols)
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

            switch (some) {
            case 1: tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 1); break;
            case 2: tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 2); break;
            case 3: tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 3); break;
            case 4: tile(o, out_stride, lines, xj, x_stride, taken, rows - r, cols, 4); break;
            }
        }
    }
}

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
                for (size_t q = 0; q < 8; q++)
                    sum = vdotq_s32(sum, sixbit(block, q), vld1q_s8(xj + c + 16 * q));
            out[j * out_stride + r] = vaddvq_s32(sum) - taken;
        }
    }
}

void kernels_set_dotprod(struct kernels *k)
{
    k->name = "dotprod";
    k->ternary_matmul = ternary_matmul_neon_dot;
    k->sixbit_matmul = sixbit_matmul;
}
