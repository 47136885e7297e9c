/* What the files for aarch64 share. Included only where the compiler may use it. */
#pragma once

#include "kernels/internal.h"

#include <arm_neon.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define GROUP 16                /* rows of a line (kernels.h: lines16) */
#define LINE 64                 /* bytes of a line */
#define LINE_COLS 16

/* Plane p of 16 bytes of a line: codes of four rows by four columns. */
ALWAYS_INLINE int8x16_t plane(uint8x16_t line, const int p)
{
    const uint8x16_t mask = vdupq_n_u8(3);

    switch (p) {
    case 0: return vreinterpretq_s8_u8(vandq_u8(line, mask));
    case 1: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(line, 2), mask));
    case 2: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(line, 4), mask));
    default: return vreinterpretq_s8_u8(vshrq_n_u8(line, 6));
    }
}

/* Sum of n int8, n a multiple of 16 and at most 1 << 20. */
ALWAYS_INLINE int32_t sum_int8(const int8_t *x, size_t n)
{
    int32x4_t sum = vdupq_n_s32(0);

    for (size_t i = 0; i < n; i += 16)
        sum = vpadalq_s16(sum, vpaddlq_s8(vld1q_s8(x + i)));
    return vaddvq_s32(sum);
}

/* The sums of one row of x with `rows` <= 16 rows of weights. */
ALWAYS_INLINE void store_group(int32_t *out, const int32x4_t sums[4], int32_t taken, size_t rows)
{
    int32_t all[GROUP];

    for (size_t v = 0; v < 4; v++)
        vst1q_s32(all + 4 * v, vsubq_s32(sums[v], vdupq_n_s32(taken)));
    memcpy(out, all, MIN(rows, GROUP) * sizeof(*out));
}

/* Six-bit codes of the 16 columns from 16 q of a block of 128 (kernels.h). */
ALWAYS_INLINE int8x16_t sixbit(const uint8_t *block, size_t q)
{
    uint8x16_t low = vld1q_u8(block + q % 4 * 16), high = vld1q_u8(block + 64 + q % 2 * 16);

    low = q < 4 ? vandq_u8(low, vdupq_n_u8(15)) : vshrq_n_u8(low, 4);
    high = vandq_u8(vshlq_u8(high, vdupq_n_s8((int8_t)-(int)(q / 2 * 2))), vdupq_n_u8(3));
    return vreinterpretq_s8_u8(vorrq_u8(low, vshlq_n_u8(high, 4)));
}
