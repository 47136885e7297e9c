/* Lines of 16 ternary rows (kernels.h) for the files whose instructions add the products of four bytes to 32-bit lanes.
 * Included after the vector operations of avxvnni.c or avx512.h: `vec`, VECS of them a line, and vec_…(). */
#pragma once

#define GROUP 16                /* rows of a line */
#define LINE 64                 /* bytes of a line */
#define AHEAD 1024              /* bytes to prefetch ahead in each stream */
#define RUN 512                 /* columns opened at a time */
#define ROWS 128                /* rows of weights whose sums stay in the second cache while columns pass */

/* Lines to bytes: each four lines of 16 rows x 4 columns. open is 64-byte aligned. */
ALWAYS_INLINE void open_lines(uint8_t *open, const uint8_t *w, size_t cols)
{
    const vec mask = vec_bytes(3);

    for (size_t i = 0; i < cols / 16; i++, w += LINE, open += 4 * LINE) {
        _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 2
        for (size_t v = 0; v < VECS; v++) {
            vec codes = vec_load(w + v * sizeof(vec));

#pragma GCC unroll 4
            for (size_t q = 0; q < 4; q++, codes = vec_shift_right_2(codes))
                vec_store(open + q * LINE + v * sizeof(vec), vec_and(codes, mask));
        }
    }
}

/* The sums of a row's activations, plane by plane: columns 4 q..4 q + 3 of each sixteen. */
ALWAYS_INLINE void sum_planes(int32_t sums[4], const int8_t *x, size_t cols)
{
    int32_t lanes[sizeof(vec) / sizeof(int32_t)];
    vec sum = vec_ints(0);

    for (size_t c = 0; c < cols; c += sizeof(vec))
        sum = vec_dot(sum, vec_bytes(1), vec_load(x + c));
    vec_store(lanes, sum);
    memset(sums, 0, 4 * sizeof(*sums));
    for (size_t i = 0; i < ARRAY_SIZE(lanes); i++)
        sums[i % 4] += lanes[i];
}

ALWAYS_INLINE int32_t sum_row(const int8_t *x, size_t cols)
{
    int32_t sums[4];

    sum_planes(sums, x, cols);
    return sums[0] + sums[1] + sums[2] + sums[3];
}
