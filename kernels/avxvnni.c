/* Ternary products for x86-64 with AVX-VNNI, the dot products of AVX-512 on vectors of 32 bytes: a line is two of them.
 * The rest is AVX2's. */
#include "kernels/internal.h"

#include <immintrin.h>
#include <stdalign.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define VECS 2                  /* a line */
#define FEW 1
#define FEW_GROUPS 1
#define TILE 6

typedef __m256i vec;

ALWAYS_INLINE vec vec_load(const void *p) { return _mm256_loadu_si256(p); }
ALWAYS_INLINE void vec_store(void *p, vec v) { _mm256_storeu_si256(p, v); }
ALWAYS_INLINE vec vec_and(vec a, vec b) { return _mm256_and_si256(a, b); }
ALWAYS_INLINE vec vec_add(vec a, vec b) { return _mm256_add_epi32(a, b); }
ALWAYS_INLINE vec vec_bytes(char b) { return _mm256_set1_epi8(b); }
ALWAYS_INLINE vec vec_ints(int32_t i) { return _mm256_set1_epi32(i); }
ALWAYS_INLINE vec vec_ints_shift_right(vec v, int n) { return _mm256_srai_epi32(v, n); }
ALWAYS_INLINE vec vec_shift_right_2(vec v) { return _mm256_srli_epi16(v, 2); }
ALWAYS_INLINE vec vec_dot(vec sum, vec codes, vec x) { return _mm256_dpbusd_avx_epi32(sum, codes, x); }

/* Four activations to every four bytes. */
ALWAYS_INLINE vec vec_quad(const void *x)
{
    int32_t four;

    memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
}

#include "kernels/vnni.h"

static void ternary_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                           size_t n, size_t rows, size_t cols)
{
    if (n == 1)
        few(out, out_stride, w, x, x_stride, rows, cols, 1);
    else
        many_rows(out, out_stride, w, x, x_stride, n, rows, cols);
}

void kernels_set_avxvnni(struct kernels *k)
{
    k->name = "avxvnni";
    k->ternary_matmul = ternary_matmul;
}
