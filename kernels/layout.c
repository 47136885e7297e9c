/* The orders that packed ternary rows are kept in, and their making from the canonical one. Codes are moved four columns
 * at a time, as the bytes of a word: no shift crosses from one byte to the next, so the machine's byte order is of no
 * matter. */
#include "kernels/internal.h"

#include <string.h>

#define LINE_ROWS 16
#define LINE_BYTES 64
#define LINE_COLS 16

/* ---- canonical -------------------------------------------------------------------------------------------------- */

static size_t canonical_bytes(size_t rows, size_t cols)
{
    return rows * (cols / 4);
}

static void canonical_pack(uint8_t *out, const uint8_t *canonical, size_t rows, size_t cols)
{
    memcpy(out, canonical, rows * (cols / 4));
}

static void canonical_row(int8_t *t, const uint8_t *packed, size_t row, size_t cols)
{
    ternary_unpack(t, packed + row * (cols / 4), 1, cols);
}

const struct ternary_layout ternary_canonical = {
    .name = "rows", .group = 1, .bytes = canonical_bytes, .pack = canonical_pack, .row = canonical_row,
};

/* ---- lines ------------------------------------------------------------------------------------------------------ */

static size_t lines_bytes(size_t rows, size_t cols)
{
    return (rows + LINE_ROWS - 1) / LINE_ROWS * LINE_ROWS * (cols / 4);
}

/* One block of a row to its places in eight lines. */
static void lines_pack_block(uint8_t *out, const uint8_t *canonical)
{
    uint32_t words[8];

    memcpy(words, canonical, sizeof(words));
    for (size_t line = 0; line < 8; line++, out += LINE_BYTES) {
        size_t shift = 6 - line / 2 * 2;            /* two lines are one canonical plane */
        uint32_t word = 0;

        for (size_t q = 0; q < 4; q++)
            word |= (words[line % 2 * 4 + q] >> shift & 0x03030303) << 2 * q;
        memcpy(out, &word, sizeof(word));
    }
}

static void lines_pack(uint8_t *out, const uint8_t *canonical, size_t rows, size_t cols)
{
    memset(out, 0x55, lines_bytes(rows, cols));     /* zero trits where the last group has no rows */
    for (size_t r = 0; r < rows; r++)
        for (size_t b = 0; b < cols / TERNARY_BLOCK; b++, canonical += TERNARY_BLOCK / 4)
            lines_pack_block(out + r / LINE_ROWS * LINE_ROWS * (cols / 4) + b * 8 * LINE_BYTES + r % LINE_ROWS * 4, canonical);
}

static void lines_row(int8_t *t, const uint8_t *packed, size_t row, size_t cols)
{
    packed += row / LINE_ROWS * LINE_ROWS * (cols / 4) + row % LINE_ROWS * 4;
    for (size_t c = 0; c < cols; c++)
        t[c] = (int8_t)((packed[c / LINE_COLS * LINE_BYTES + c % 4] >> c % LINE_COLS / 4 * 2 & 3) - 1);
}

const struct ternary_layout ternary_lines = {
    .name = "lines16", .group = LINE_ROWS, .bytes = lines_bytes, .pack = lines_pack, .row = lines_row,
};
