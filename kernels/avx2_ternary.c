/* Ternary products for x86-64 with AVX2, of lines of 16 rows (kernels.h).
 *
 * Codes 0..2 go unsigned times signed activations, four columns of eight rows at a time, into sixteen-bit lanes of two
 * columns each. Before a run of columns the lanes are given the negative sum of its activations, which takes codes back
 * to trits: a lane may wrap on the way, but ends at a sum of trits, 127 a column at most. So 512 columns fit before lanes
 * are widened (128 steps * 2 * 127 = 32512), or 256 where half of the planes stay at four times their value.
 *
 * One or two rows of activations are multiplied as the lines come from memory, two groups of lines at a time from the
 * two halves of the rows, and prefetched: two streams are read faster than one. More rows are taken in tiles of two
 * vectors of weights by six rows, from lines opened once into bytes in the first cache. */
#include "kernels/avx2.h"

#define GROUP 16                /* rows of a line */
#define LINE 64                 /* bytes of a line */
#define AHEAD 1024              /* bytes to prefetch ahead in each stream */
#define FEW 2                   /* rows of x that are multiplied as the lines come */
#define FEW_RUN 256             /* columns between widenings of these */
#define FEW_COLS 8192           /* whose sums of activations are kept at a time */
#define RUN 512                 /* columns between widenings, and opened at a time */
#define ROWS 128                /* rows of weights whose sums stay in the second cache while columns pass */
#define TILE 6                  /* rows of x in a tile */
#define MANY 240                /* rows of x whose sums of activations are kept at a time */

/* Four activations to every four bytes. */
ALWAYS_INLINE __m256i quad(const void *x)
{
    int32_t four;

    memcpy(&four, x, sizeof(four));
    return _mm256_set1_epi32(four);
}

ALWAYS_INLINE __m256i add_codes(__m256i sum, __m256i codes, __m256i x)
{
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
}

/* Which of rows first..first+8 are there. */
ALWAYS_INLINE __m256i rows_mask(size_t rows, size_t first)
{
    __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)rows - (int)first), at);
}

ALWAYS_INLINE void store_rows(int32_t *out, __m256i low, __m256i high, size_t rows, bool add)
{
    if (rows >= GROUP) {
        if (add) {
            low = _mm256_add_epi32(low, load(out));
            high = _mm256_add_epi32(high, load(out + 8));
        }
        _mm256_storeu_si256((__m256i *)out, low);
        _mm256_storeu_si256((__m256i *)(out + 8), high);
    } else {
        __m256i mask_low = rows_mask(rows, 0), mask_high = rows_mask(rows, 8);

        if (add) {
            low = _mm256_add_epi32(low, _mm256_maskload_epi32(out, mask_low));
            high = _mm256_add_epi32(high, _mm256_maskload_epi32(out + 8, mask_high));
        }
        _mm256_maskstore_epi32(out, mask_low, low);
        _mm256_maskstore_epi32(out + 8, mask_high, high);
    }
}

/* Sums of pairs of activations, of sixteen columns an addition: lane 2 q + p is of columns 4 q + 2 p and the next. */
ALWAYS_INLINE __m128i sum_pairs(const int8_t *x, size_t cols)
{
    __m256i sum = _mm256_setzero_si256();

    for (size_t c = 0; c < cols; c += 32)
        sum = add_codes(sum, _mm256_set1_epi8(1), load(x + c));
    return _mm_add_epi16(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* What lanes begin with, for a run of columns: those of the first and third plane, and of the others four times. */
static void few_begin(int32_t begin[2], const int8_t *x, size_t cols)
{
    __m128i sum = sum_pairs(x, cols);

    sum = _mm_sub_epi16(_mm_setzero_si128(), _mm_add_epi16(sum, _mm_srli_si128(sum, 8)));
    begin[0] = _mm_cvtsi128_si32(sum);
    begin[1] = _mm_extract_epi32(_mm_slli_epi16(sum, 2), 1);
}

/* n_groups <= 2 groups of lines, `apart` bytes from each other, their outputs out_apart, times n rows of x. */
ALWAYS_INLINE void few_lines(int32_t *out, size_t out_stride, size_t out_apart, const uint8_t *w, size_t apart,
                             const int8_t *x, size_t x_stride, int32_t begin[FEW][FEW_COLS / FEW_RUN][2], size_t cols,
                             size_t rows, bool add, const size_t n_groups, const size_t n)
{
    const __m256i ones = _mm256_set1_epi8(3), fours = _mm256_set1_epi8(12);
    const size_t n_halves = 2 * n_groups;
    __m256i total[4][FEW] = {0};

    for (size_t c = 0; c < cols; c += FEW_RUN) {
        size_t end = MIN(c + FEW_RUN, cols);
        __m256i sum[4][FEW], sum4[4][FEW];

#pragma GCC unroll 4
        for (size_t h = 0; h < n_halves; h++)
#pragma GCC unroll 2
            for (size_t j = 0; j < n; j++) {
                sum[h][j] = quad(&begin[j][c / FEW_RUN][0]);
                sum4[h][j] = quad(&begin[j][c / FEW_RUN][1]);
            }
#pragma GCC unroll 2
        for (size_t i = c; i < end; i += 16) {
#pragma GCC unroll 4
            for (size_t h = 0; h < n_halves; h++) {
                const uint8_t *at = w + h / 2 * apart + i / 16 * LINE + h % 2 * 32;
                __m256i low = load(at), high = _mm256_srli_epi16(low, 4);
                __m256i codes[4] = { _mm256_and_si256(low, ones), _mm256_and_si256(low, fours),
                                     _mm256_and_si256(high, ones), _mm256_and_si256(high, fours) };

                if (h % 2 == 0)
                    _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
                /* Activations are cheaper to load again than to keep. */
                if (n > 1)
                    __asm__ volatile("" : : : "memory");
#pragma GCC unroll 2
                for (size_t j = 0; j < n; j++) {
                    const int8_t *xj = x + j * x_stride + i;

                    sum[h][j] = add_codes(sum[h][j], codes[0], quad(xj));
                    sum4[h][j] = add_codes(sum4[h][j], codes[1], quad(xj + 4));
                    sum[h][j] = add_codes(sum[h][j], codes[2], quad(xj + 8));
                    sum4[h][j] = add_codes(sum4[h][j], codes[3], quad(xj + 12));
                }
            }
        }
#pragma GCC unroll 4
        for (size_t h = 0; h < n_halves; h++)
#pragma GCC unroll 2
            for (size_t j = 0; j < n; j++)
                total[h][j] = _mm256_add_epi32(total[h][j], _mm256_add_epi32(
                    _mm256_madd_epi16(sum[h][j], _mm256_set1_epi16(4)), _mm256_madd_epi16(sum4[h][j], _mm256_set1_epi16(1))));
    }
#pragma GCC unroll 2
    for (size_t g = 0; g < n_groups; g++)
#pragma GCC unroll 2
        for (size_t j = 0; j < n; j++)
            store_rows(out + g * out_apart + j * out_stride, _mm256_srai_epi32(total[2 * g][j], 2),
                       _mm256_srai_epi32(total[2 * g + 1][j], 2), rows, add);
}

ALWAYS_INLINE void few(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                       size_t rows, size_t cols, const size_t n)
{
    const size_t group_bytes = GROUP * (cols / 4), half = rows / (2 * GROUP);       /* groups of a half, left out the last */

    for (size_t c = 0; c < cols; c += FEW_COLS) {
        size_t n_cols = MIN(cols - c, FEW_COLS);
        const uint8_t *at = w + c / 16 * LINE;
        int32_t begin[FEW][FEW_COLS / FEW_RUN][2];

        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < n_cols; i += FEW_RUN)
                few_begin(begin[j][i / FEW_RUN], x + j * x_stride + c + i, MIN(n_cols - i, FEW_RUN));
        if (n == 1)
            for (size_t g = 0; g < half; g++)
                few_lines(out + g * GROUP, out_stride, half * GROUP, at + g * group_bytes, half * group_bytes, x + c, x_stride,
                          begin, n_cols, GROUP, c > 0, 2, n);
        for (size_t r = n == 1 ? 2 * half * GROUP : 0; r < rows; r += GROUP)
            few_lines(out + r, out_stride, 0, at + r / GROUP * group_bytes, 0, x + c, x_stride, begin, n_cols, rows - r, c > 0,
                      1, n);
    }
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* Lines to bytes: each four lines of 16 rows x 4 columns. */
static void open_lines(uint8_t *open, const uint8_t *w, size_t cols)
{
    const __m256i mask = _mm256_set1_epi8(3);

    for (size_t i = 0; i < cols / 16; i++, w += LINE, open += 4 * LINE) {
        __m256i low = load(w), high = load(w + 32);

        _mm_prefetch((const char *)w + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            _mm256_store_si256((__m256i *)(open + q * LINE), _mm256_and_si256(_mm256_srli_epi16(low, 2 * q), mask));
            _mm256_store_si256((__m256i *)(open + q * LINE + 32), _mm256_and_si256(_mm256_srli_epi16(high, 2 * q), mask));
        }
    }
}

/* One group of opened lines times n <= TILE rows of x. */
ALWAYS_INLINE void tile(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride,
                        const int32_t *begin, size_t cols, size_t rows, bool add, const size_t n)
{
    const __m256i one = _mm256_set1_epi16(1);
    __m256i low[TILE], high[TILE];

#pragma GCC unroll 6
    for (size_t j = 0; j < n; j++)
        low[j] = high[j] = quad(begin + j);
#pragma GCC unroll 2
    for (size_t c = 0; c < cols; c += 4) {
        __m256i w_low = load(open + c * 16), w_high = load(open + c * 16 + 32);

#pragma GCC unroll 6
        for (size_t j = 0; j < n; j++) {
            __m256i xj = quad(x + j * x_stride + c);

            low[j] = add_codes(low[j], w_low, xj);
            high[j] = add_codes(high[j], w_high, xj);
        }
    }
#pragma GCC unroll 6
    for (size_t j = 0; j < n; j++)
        store_rows(out + j * out_stride, _mm256_madd_epi16(low[j], one), _mm256_madd_epi16(high[j], one), rows, add);
}

/* Each a function, so that each has the registers to itself. */
typedef void tile_fn(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride,
                     const int32_t *begin, size_t cols, size_t rows, bool add);
#define TILE_OF(n) \
    static void tile_##n(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride, \
                         const int32_t *begin, size_t cols, size_t rows, bool add) \
    { \
        tile(out, out_stride, open, x, x_stride, begin, cols, rows, add, n); \
    }
TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6)

static void tiles(int32_t *out, size_t out_stride, const uint8_t *open, const int8_t *x, size_t x_stride,
                  const int32_t *begin, size_t n, size_t cols, size_t rows, bool add)
{
    static tile_fn *const of[] = { NULL, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6 };

    for (size_t left = (n + TILE - 1) / TILE, j = 0; left; left--) {
        size_t height = (n - j + left - 1) / left;

        of[height](out + j * out_stride, out_stride, open, x + j * x_stride, x_stride, begin + j, cols, rows, add);
        j += height;
    }
}

static void many(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                 size_t rows, size_t cols)
{
    alignas(64) uint8_t open[RUN * GROUP];
    int32_t begin[MANY];

    for (size_t c = 0; c < cols; c += RUN) {
        size_t n_cols = MIN(cols - c, RUN);

        for (size_t j = 0; j < n; j++) {
            __m128i sum = sum_pairs(x + j * x_stride + c, n_cols);

            sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 8));
            sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 4));
            begin[j] = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), sum));
        }
        for (size_t r = 0; r < rows; r += GROUP) {
            open_lines(open, w + r * (cols / 4) + c / 16 * LINE, n_cols);
            tiles(out + r, out_stride, open, x + c, x_stride, begin, n, n_cols, rows - r, c > 0);
        }
    }
}

void ternary_matmul_avx2(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                         size_t n, size_t rows, size_t cols)
{
    switch (n) {
    case 0: return;
    case 1: few(out, out_stride, w, x, x_stride, rows, cols, 1); return;
    case 2: few(out, out_stride, w, x, x_stride, rows, cols, 2); return;
    }
    for (size_t r = 0; r < rows; r += ROWS)
        for (size_t j = 0; j < n; j += MANY)
            many(out + j * out_stride + r, out_stride, w + r * (cols / 4), x + j * x_stride, x_stride, MIN(n - j, MANY),
                 MIN(rows - r, ROWS), cols);
}
