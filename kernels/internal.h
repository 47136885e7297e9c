/* What the files of kernels/ share: the variants, and the constants of the exponential. */
#pragma once

#include "kernels/kernels.h"

extern const struct ternary_layout ternary_lines;

extern const struct kernels kernels_ref;

/* x86-64 builds only. */
extern const struct kernels kernels_avx2;
void ternary_matmul_avx2(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                         size_t n, size_t rows, size_t cols);

/* aarch64 builds only. The later two take all but their integer products from the first. */
extern const struct kernels kernels_neon;
struct kernels kernels_neon_dot(void);
struct kernels kernels_neon_i8mm(void);
void ternary_matmul_neon_dot(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                             size_t n, size_t rows, size_t cols);

/* e^x = 2^k * e^r with r = x - k ln 2 in two steps, and e^r = 1 + r + r^2 P(r). P was fitted for this project: minimax
 * for the relative error on |r| <= ln(2)/2, 3e-9 before rounding. Adding and taking away 1.5 * 2^23 rounds to even. */
#define EXP_LOW (-87.3f)
#define EXP_HIGH 88.0f
#define EXP_LOG2E 1.44269504f
#define EXP_ROUND 12582912.0f
#define EXP_LN2_HIGH 0.693359375f
#define EXP_LN2_LOW (-2.12194440e-4f)
#define EXP_P0 0.49999994f
#define EXP_P1 0.166665196f
#define EXP_P2 0.0416684002f
#define EXP_P3 0.00836885162f
#define EXP_P4 0.00138143182f

#define QUANT_FLOOR 1e-5f       /* of a row's largest magnitude */
#define F16_MAX 65504.0f
#define ATTEND_LEAST 1e-30f     /* of a page's largest weight in attend_int8 */
