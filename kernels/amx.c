/* Ternary products for x86-64 with AMX int8: opened lines are tiles as they are, 16 quads of columns x 16 rows, and rows of
 * activations are tiles where they lie. Few rows of activations go to AVX-512 VNNI, the rest is AVX2's.
 *
 * A block of products is 2 x 2 tiles of 16 x 16 sums, which begin at the negative sums of activations, as codes are
 * t + 1, and go to `out` between runs of columns. Tiles are a thread's own; they are let go before a call returns, so
 * that a switch of threads need not save them. */
#include "kernels/avx512.h"
#include "kernels/lines.h"

#define TILES_RUN 1024          /* columns opened at a time, of two groups: what the first cache holds */
#define SIDE 16                 /* rows of a tile */
#define BLOCK 32                /* rows of activations, and of weights, in a block */
#define LEAST 12                /* rows of activations that are worth tiles */

/* What was written before is in memory, as the tile instructions find it: gcc's macros do not say that they read. */
ALWAYS_INLINE void settle(void)
{
    __asm__ volatile("" : : : "memory");
}

/* Tiles 0..3: sums of activations' tile 4 with weights' 6 and 7, then of 5 with 6 and 7. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void configure(size_t n)
{
    alignas(64) struct tile_config c = { .palette = 1 };
    size_t first = MIN(n, SIDE), second = n - first;

    for (size_t t = 0; t < 8; t++) {
        c.rows[t] = (uint8_t)(t > 5 ? SIDE : t == 5 || t == 2 || t == 3 ? second : first);
        c.row_bytes[t] = c.rows[t] ? LINE : 0;
    }
    settle();
    _tile_loadconfig(&c);
}

/* Add n <= BLOCK rows of x times two groups of opened lines to sums. */
static void block(int32_t *sums, size_t stride, const uint8_t *open, const int8_t *x, size_t x_stride, size_t n, size_t cols)
{
    const size_t bytes = stride * sizeof(*sums);
    const uint8_t *second_open = open + TILES_RUN * GROUP;

    settle();
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + GROUP, bytes);
    if (n <= SIDE) {
        for (size_t c = 0; c < cols; c += LINE) {
            _tile_loadd(4, x + c, x_stride);
            _tile_loadd(6, open + c * GROUP, LINE);
            _tile_loadd(7, second_open + c * GROUP, LINE);
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
        }
    } else {
        const int8_t *second_x = x + SIDE * x_stride;
        int32_t *second_sums = sums + SIDE * stride;

        _tile_loadd(2, second_sums, bytes);
        _tile_loadd(3, second_sums + GROUP, bytes);
        for (size_t c = 0; c < cols; c += LINE) {
            _tile_loadd(4, x + c, x_stride);
            _tile_loadd(6, open + c * GROUP, LINE);
            _tile_loadd(7, second_open + c * GROUP, LINE);
            _tile_dpbsud(0, 4, 6);
            _tile_loadd(5, second_x + c, x_stride);
            _tile_dpbsud(1, 4, 7);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        _tile_stored(2, second_sums, bytes);
        _tile_stored(3, second_sums + GROUP, bytes);
    }
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + GROUP, bytes);
}

/* As block(), of which only `rows` rows of weights are there. */
static void edge_block(int32_t *sums, size_t stride, const uint8_t *open, const int8_t *x, size_t x_stride, size_t n,
                       size_t cols, size_t rows)
{
    alignas(64) int32_t whole[BLOCK * BLOCK] = {0};

    for (size_t j = 0; j < n; j++)
        memcpy(whole + j * BLOCK, sums + j * stride, rows * sizeof(*sums));
    block(whole, BLOCK, open, x, x_stride, n, cols);
    for (size_t j = 0; j < n; j++)
        memcpy(sums + j * stride, whole + j * BLOCK, rows * sizeof(*sums));
}

/* Two groups, or what there is of them, times all rows of x. */
static void groups(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride, size_t n,
                   size_t rows, size_t cols)
{
    alignas(64) uint8_t open[2 * TILES_RUN * GROUP];

    if (rows <= GROUP)
        memset(open + TILES_RUN * GROUP, 0, TILES_RUN * GROUP);
    for (size_t c = 0; c < cols; c += TILES_RUN) {
        size_t n_cols = MIN(cols - c, TILES_RUN);

        open_lines(open, w + c / 16 * LINE, n_cols);
        if (rows > GROUP)
            open_lines(open + TILES_RUN * GROUP, w + GROUP * (cols / 4) + c / 16 * LINE, n_cols);
        for (size_t j = 0; j < n; j += BLOCK) {
            size_t some = MIN(n - j, BLOCK);

            if (j == 0 || some < BLOCK)
                configure(some);
            if (rows < BLOCK)
                edge_block(out + j * out_stride, out_stride, open, x + j * x_stride + c, x_stride, some, n_cols, rows);
            else
                block(out + j * out_stride, out_stride, open, x + j * x_stride + c, x_stride, some, n_cols);
        }
    }
}

static void ternary_matmul(int32_t *out, size_t out_stride, const uint8_t *w, const int8_t *x, size_t x_stride,
                           size_t n, size_t rows, size_t cols)
{
    if (n < LEAST) {
        ternary_matmul_avx512vnni(out, out_stride, w, x, x_stride, n, rows, cols);
        return;
    }
    for (size_t j = 0; j < n; j++) {
        int32_t begin = -sum_row(x + j * x_stride, cols);

        for (size_t r = 0; r < rows; r++)
            out[j * out_stride + r] = begin;
    }
    for (size_t r = 0; r < rows; r += BLOCK)
        groups(out + r, out_stride, w + r * (cols / 4), x, x_stride, n, MIN(rows - r, BLOCK), cols);
    _tile_release();
}

void kernels_set_amx(struct kernels *k)
{
    k->name = "amx";
    k->ternary_matmul = ternary_matmul;
}
