/* Ternary products with dot products of four bytes, for avxvnni.c and avx512vnni.c, which define before
 *     FEW         rows of activations that are multiplied as the lines come from memory
 *     FEW_GROUPS  groups of lines that are read side by side when there is one row of activations
 *     TILE        rows of activations in a tile, of two vectors of weights
 *
 * Codes 0..2 go unsigned times signed activations into 32-bit lanes, one a row. Where the lines come from memory, the
 * four planes of a line stay at 1, 4, 16 and 64 times their value, each with sums of its own. A row's sums begin at the
 * negative sum of the activations that they will meet, which takes codes back to trits: the largest, of 2^18 activations
 * 64 times, still fits. Many rows are multiplied in tiles, from lines opened into bytes in the first cache. */
#pragma once

#include "kernels/lines.h"

#define TILE_GROUPS (2 / VECS)
#define MANY 240                /* rows of x whose sums are kept at a time */

ALWAYS_INLINE void store_rows(int32_t *out, const vec *sums, size_t rows)
{
    int32_t edge[GROUP];

    if (rows >= GROUP) {
        for (size_t v = 0; v < VECS; v++)
            vec_store(out + v * (GROUP / VECS), sums[v]);
        return;
    }
    for (size_t v = 0; v < VECS; v++)
        vec_store(edge + v * (GROUP / VECS), sums[v]);
    memcpy(out, edge, rows * sizeof(*out));
}

ALWAYS_INLINE void load_rows(vec *sums, const int32_t *out, size_t rows)
{
    int32_t edge[GROUP] = {0};

    if (rows < GROUP)
        out = memcpy(edge, out, rows * sizeof(*out));
    for (size_t v = 0; v < VECS; v++)
        sums[v] = vec_load(out + v * (GROUP / VECS));
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* n_groups groups of lines, `apart` bytes from each other, their outputs out_apart, times n rows of x. */
ALWAYS_INLINE void few_lines(int32_t *out, size_t out_stride, size_t out_apart, const uint8_t *w, size_t apart, const int8_t *x,
                             size_t x_stride, int32_t begin[FEW][4], size_t cols, size_t rows, const size_t n_groups,
                             const size_t n)
{
    const vec planes[4] = { vec_bytes(3), vec_bytes(12), vec_bytes(48), vec_bytes((char)192) };
    vec sum[FEW_GROUPS * VECS][FEW][4];

#pragma GCC unroll 4
    for (size_t v = 0; v < n_groups * VECS; v++)
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++)
#pragma GCC unroll 4
            for (size_t q = 0; q < 4; q++)
                sum[v][j][q] = vec_ints(begin[j][q]);
    for (size_t i = 0; i < cols; i += 16)
#pragma GCC unroll 4
        for (size_t v = 0; v < n_groups * VECS; v++) {
            const uint8_t *at = w + v / VECS * apart + i / 16 * LINE + v % VECS * sizeof(vec);
            vec codes = vec_load(at);

            if (v % VECS == 0)
                _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
            for (size_t q = 0; q < 4; q++)
#pragma GCC unroll 4
                for (size_t j = 0; j < n; j++)
                    sum[v][j][q] = vec_dot(sum[v][j][q], vec_and(codes, planes[q]), vec_quad(x + j * x_stride + i + 4 * q));
        }
#pragma GCC unroll 2
    for (size_t g = 0; g < n_groups; g++)
#pragma GCC unroll 4
        for (size_t j = 0; j < n; j++) {
            vec total[VECS];

#pragma GCC unroll 2
            for (size_t v = 0; v < VECS; v++) {
                const vec *s = sum[g * VECS + v][j];

                total[v] = vec_add(vec_add(s[0], vec_ints_shift_right(s[1], 2)),
                                   vec_add(vec_ints_shift_right(s[2], 4), vec_ints_shift_right(s[3], 6)));
            }
            store_rows(out + g * out_apart + j * out_stride, total, rows);
        }
}

ALWAYS_INLINE void few(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t rows,
                       size_t cols, const size_t n)
{
    const size_t group_bytes = GROUP * (cols / 4), half = n == 1 && FEW_GROUPS == 2 ? rows / (2 * GROUP) : 0;
    int32_t begin[FEW][4];

    for (size_t j = 0; j < n; j++) {
        sum_planes(begin[j], x + j * x_stride, cols);
        for (size_t q = 0; q < 4; q++)
            begin[j][q] *= -(1 << 2 * q);
    }
    /* Two groups at a time come from the two halves of the rows: two streams are read faster than one. */
    for (size_t g = 0; g < half; g++)
        few_lines(out + g * GROUP, out_stride, half * GROUP, w + g * group_bytes, half * group_bytes, x, x_stride, begin, cols,
                  GROUP, FEW_GROUPS, n);
    for (size_t r = 2 * half * GROUP; r < rows; r += GROUP)
        few_lines(out + r, out_stride, 0, w + r / GROUP * group_bytes, 0, x, x_stride, begin, cols, rows - r, 1, n);
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* TILE_GROUPS groups of opened lines times n <= TILE rows of x; begin: what sums begin with, NULL: what out has. */
ALWAYS_INLINE void tile(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride,
                        const int32_t *begin, size_t cols, size_t rows, const size_t n)
{
    const size_t rows_of[2] = { MIN(rows, GROUP), rows > GROUP ? rows - GROUP : 0 };
    vec sum[TILE][2];

#pragma GCC unroll 12
    for (size_t j = 0; j < n; j++)
        if (begin)
            sum[j][0] = sum[j][1] = vec_ints(begin[j]);
        else
            for (size_t g = 0; g < TILE_GROUPS; g++)
                load_rows(sum[j] + g, out + j * out_stride + g * GROUP, rows_of[g]);
    for (size_t c = 0; c < cols; c += 4) {
        vec first = vec_load(open + c * GROUP), second = vec_load(open + c * GROUP + (VECS == 2 ? LINE / 2 : RUN * GROUP));

#pragma GCC unroll 12
        for (size_t j = 0; j < n; j++) {
            vec xj = vec_quad(x + j * x_stride + c);

            sum[j][0] = vec_dot(sum[j][0], first, xj);
            sum[j][1] = vec_dot(sum[j][1], second, xj);
        }
    }
#pragma GCC unroll 12
    for (size_t j = 0; j < n; j++)
        for (size_t g = 0; g < TILE_GROUPS; g++)
            store_rows(out + j * out_stride + g * GROUP, sum[j] + g, rows_of[g]);
}

/* Each a function, so that each has the registers to itself. */
#define TILE_OF(n) \
    static void tile_##n(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride, \
                         const int32_t *begin, size_t cols, size_t rows) \
    { \
        tile(out, out_stride, open, x, x_stride, begin, cols, rows, n); \
    }
TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6)
#if TILE > 6
TILE_OF(7) TILE_OF(8) TILE_OF(9) TILE_OF(10) TILE_OF(11) TILE_OF(12)
#endif

static void tiles(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride,
                  const int32_t *begin, size_t n, size_t cols, size_t rows)
{
    static void (*const of[])(int32_t *, size_t, const uint8_t *, const int8_t *, size_t, const int32_t *, size_t, size_t) = {
        NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6,
#if TILE > 6
        tile_7, tile_8, tile_9, tile_10, tile_11, tile_12,
#endif
    };

    for (size_t left = (n + TILE - 1) / TILE, j = 0; left; left--) {
        size_t height = (n - j + left - 1) / left;

        of[height](out + j * out_stride, out_stride, open, x + j * x_stride, x_stride, begin ? begin + j : NULL, cols, rows);
        j += height;
    }
}

static void many(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                 const int32_t *begin, size_t rows, size_t cols)
{
    alignas(64) uint8_t open[TILE_GROUPS * RUN * GROUP] = {0};

    for (size_t c = 0; c < cols; c += RUN) {
        size_t n_cols = MIN(cols - c, RUN);

        for (size_t r = 0; r < rows; r += TILE_GROUPS * GROUP) {
            for (size_t g = 0; g < TILE_GROUPS && r + g * GROUP < rows; g++)
                open_lines(open + g * RUN * GROUP, w + (r + g * GROUP) * (cols / 4) + c / 16 * LINE, n_cols);
            tiles(out + r, out_stride, open, x + c, x_stride, c ? NULL : begin, n, n_cols, rows - r);
        }
    }
}

static void many_rows(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                      size_t rows, size_t cols)
{
    for (size_t j = 0; j < n; j += MANY) {
        size_t some = MIN(n - j, MANY);
        int32_t begin[MANY];

        for (size_t i = 0; i < some; i++)
            begin[i] = -sum_row(x + (j + i) * x_stride, cols);
        for (size_t r = 0; r < rows; r += ROWS)
            many(out + j * out_stride + r, out_stride, w + r * (cols / 4), x + j * x_stride, x_stride, some, begin,
                 MIN(rows - r, ROWS), cols);
    }
}
