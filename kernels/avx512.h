/* Vectors of 64 bytes, as lines.h and vnni.h use them. Included only where the compiler may use AVX-512 with VNNI. */
#pragma once

#include "kernels/internal.h"

#include <immintrin.h>
#include <stdalign.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define VECS 1                  /* a line */

typedef __m512i vec;

ALWAYS_INLINE vec vec_load(const void *p) { return _mm512_loadu_si512(p); }
ALWAYS_INLINE void vec_store(void *p, vec v) { _mm512_storeu_si512(p, v); }
ALWAYS_INLINE vec vec_and(vec a, vec b) { return _mm512_and_si512(a, b); }
ALWAYS_INLINE vec vec_add(vec a, vec b) { return _mm512_add_epi32(a, b); }
ALWAYS_INLINE vec vec_bytes(char b) { return _mm512_set1_epi8(b); }
ALWAYS_INLINE vec vec_ints(int32_t i) { return _mm512_set1_epi32(i); }
ALWAYS_INLINE vec vec_ints_shift_right(vec v, unsigned n) { return _mm512_srai_epi32(v, n); }
ALWAYS_INLINE vec vec_shift_right_2(vec v) { return _mm512_srli_epi16(v, 2); }
ALWAYS_INLINE vec vec_dot(vec sum, vec codes, vec x) { return _mm512_dpbusd_epi32(sum, codes, x); }

/* Four activations to every four bytes. */
ALWAYS_INLINE vec vec_quad(const void *x)
{
    int32_t four;

    memcpy(&four, x, sizeof(four));
    return _mm512_set1_epi32(four);
}
