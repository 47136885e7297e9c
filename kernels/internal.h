/* What the files of kernels/ share: the variants, and the constants of the exponential. */
#pragma once

#include "kernels/kernels.h"

extern const struct ternary_layout ternary_lines;

/* Each overwrites the name and the functions that it does better; select.c. */
void kernels_set_ref(struct kernels *k);

/* x86-64 builds only. */
void kernels_set_avx2(struct kernels *k);
void kernels_set_avxvnni(struct kernels *k);
void kernels_set_avx512vnni(struct kernels *k);
void kernels_set_amx(struct kernels *k);
void ternary_matmul_avx2(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                         size_t n, size_t rows, size_t cols);
void ternary_matmul_avx512vnni(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                               size_t n, size_t rows, size_t cols);
bool x86_has_avx2(void);
bool x86_has_avxvnni(void);
bool x86_has_avx512vnni(void);
bool x86_has_amx(void);

/* aarch64 builds only. */
void kernels_set_neon(struct kernels *k);
void kernels_set_dotprod(struct kernels *k);
void kernels_set_i8mm(struct kernels *k);
bool aarch64_has_dotprod(void);
bool aarch64_has_i8mm(void);
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
