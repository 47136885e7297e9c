/* Every type of matrix: the vectors of bitnet.md 2.12, the layouts that no file marks, and what is refused. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include "engine/source.h"

#define SCALE 0.5f

static int8_t vector_trit(size_t i)
{
    return (int8_t)((7 * i + i / 3) % 3) - 1;
}

static size_t from_hex(uint8_t *out, const char *hex)
{
    size_t n = 0;

    for (; *hex; hex++)
        if (*hex != ' ') {
            unsigned byte;

            cr_assert_eq(sscanf(hex++, "%2x", &byte), 1);
            out[n++] = (uint8_t)byte;
        }
    return n;
}

static struct source_tensor tensor_of(enum tensor_type type, size_t cols, size_t rows, const void *data, size_t bytes)
{
    return (struct source_tensor){ .name = { "blk.0.x.weight", 14 }, .type = type, .n_dims = 2, .dims = { cols, rows, 1, 1 },
                                   .data = data, .bytes = bytes, .scale_kind = SCALE_NONE, .scale = 1 };
}

/* Loads with these options into trits (rows, cols). */
static int load(const struct source_tensor *t, struct ternary_reading how, struct ternary *w, int8_t *trits, struct arena *a,
                struct err *err)
{
    int r = ternary_load(w, t, how, a, err);

    if (!r)
        ternary_unpack(trits, w->w, w->rows, w->cols);
    return r;
}

static void expect_vector(enum tensor_type type, size_t n, const char *hex, const void *scale_before, size_t before, float scale)
{
    cleanup(arena_done) struct arena a;
    uint8_t bytes[512];
    int8_t trits[256];
    struct ternary w;
    struct err err = { "" };
    struct source_tensor t;
    float row[256];

    arena_init(&a);
    memcpy(bytes, scale_before, before);
    t = tensor_of(type, n, 1, bytes, before + from_hex(bytes + before, hex));
    cr_assert_eq(load(&t, (struct ternary_reading){ 0 }, &w, trits, &a, &err), 0, "%s", err.msg);
    cr_expect_eq(w.scale, scale, "type %d", type);
    cr_expect_null(w.row_scales);
    ternary_row(&w, 0, row);
    for (size_t i = 0; i < n; i++) {
        cr_expect_eq(trits[i], vector_trit(i), "type %d, trit %zu", type, i);
        cr_expect_eq(row[i], (float)vector_trit(i));
    }
}

Test(weights, vectors)
{
    const float scale = SCALE;
    const uint16_t half = 0x3800;

    expect_vector(TENSOR_I2_S, 128, "06688558811aa1166006688558811aa1166006688558811aa116600668855881 0000003f"
                  "00000000000000000000000000000000000000000000000000000000", "", 0, SCALE);
    expect_vector(TENSOR_TQ2_0, 256, "9029522542a44a94099029522542a44a94099029522542a44a94099029522542"
                  "522542a44a94099029522542a44a94099029522542a44a94099029522542a44a0038", "", 0, SCALE);
    expect_vector(TENSOR_TQ1_0, 256, "12a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b0"
                  "0ea8058eac84e42cf70ea8058eac84e4c85079460038", "", 0, SCALE);
    expect_vector(TENSOR_IQ1_BN, 64, "de234acb4199234a6141996b1c", &half, 2, SCALE);
    expect_vector(TENSOR_IQ2_BN, 64, "40a502950a542a50a940a502950a542a", &scale, 4, SCALE);
}

Test(weights, hugging_face)
{
    static const float scales[] = { [SCALE_NONE] = 1, [SCALE_MULTIPLY] = 4, [SCALE_DIVIDE] = 0.25f };
    cleanup(arena_done) struct arena a;
    uint8_t bytes[8];
    int8_t trits[32];
    struct ternary w;
    struct source_tensor t = tensor_of(TENSOR_HF_U8, 4, 8, bytes, from_hex(bytes, "84114619 66986288"));

    arena_init(&a);
    for (int kind = SCALE_NONE; kind <= SCALE_DIVIDE; kind++) {
        t.scale_kind = kind;
        t.scale = kind == SCALE_NONE ? 1 : 4;
        cr_assert_eq(load(&t, (struct ternary_reading){ 0 }, &w, trits, &a, NULL), 0);
        cr_expect_eq(w.scale, scales[kind]);
        for (size_t i = 0; i < 32; i++)
            cr_expect_eq(trits[i], vector_trit(i), "trit %zu", i);
    }
}

/* Trits packed by each of the three rules, at a width that is whole blocks and one whose blocks straddle rows. */
Test(weights, i2s_layouts)
{
    static const size_t widths[] = { 256, 96 };
    const size_t rows = 8;

    for (size_t k = 0; k < ARRAY_SIZE(widths); k++)
        for (char layout = 'a'; layout <= 'c'; layout++) {
            cleanup(arena_done) struct arena a;
            size_t cols = widths[k], n = rows * cols;
            uint8_t bytes[8 * 256 / 4 + 32] = {0};
            int8_t trits[8 * 256];
            struct ternary w;
            struct source_tensor t = tensor_of(TENSOR_I2_S, cols, rows, bytes, n / 4 + 32);

            arena_init(&a);
            for (size_t e = 0; e < n; e++) {
                size_t r = e / cols, c = e % cols, block = layout == 'b' ? 64 : 128, quarter = block / 4;
                size_t at = layout == 'c' ? r / 4 * cols + c : e / block * quarter + e % block % quarter;
                size_t place = layout == 'c' ? r % 4 : e % block / quarter;

                bytes[at] |= (uint8_t)(vector_trit(e) + 1) << (6 - 2 * place);
            }
            memcpy(bytes + n / 4, &(float){ SCALE }, 4);
            cr_assert_eq(load(&t, (struct ternary_reading){ .i2s_layout = layout }, &w, trits, &a, NULL), 0);
            cr_expect_eq(w.scale, SCALE);
            cr_expect_eq(w.w == bytes, layout == 'a' && cols == 256, "only whole blocks in layout a stay where they are");
            for (size_t e = 0; e < n; e++)
                cr_expect_eq(trits[e], vector_trit(e), "layout %c, %zu wide, trit %zu", layout, cols, e);
        }
}

Test(weights, rows_of_their_own_scale)
{
    cleanup(arena_done) struct arena a;
    uint8_t bytes[3 * 20], block[16];
    int8_t trits[3 * 64];
    struct ternary w;
    struct source_tensor t = tensor_of(TENSOR_IQ2_BN, 64, 3, bytes, sizeof(bytes));

    arena_init(&a);
    from_hex(block, "40a502950a542a50a940a502950a542a");
    for (size_t r = 0; r < 3; r++) {
        memcpy(bytes + 20 * r, &(float){ r == 1 ? 0 : SCALE }, 4);
        memcpy(bytes + 20 * r + 4, block, 16);
    }
    /* A scale of 0 makes a row of zeros, and leaves the matrix with one scale. */
    cr_assert_eq(load(&t, (struct ternary_reading){ 0 }, &w, trits, &a, NULL), 0);
    cr_expect(!w.row_scales && w.scale == SCALE);
    for (size_t i = 0; i < 3 * 64; i++)
        cr_expect_eq(trits[i], i / 64 == 1 ? 0 : vector_trit(i % 64));

    memcpy(bytes + 40, &(float){ 3 }, 4);
    cr_assert_eq(load(&t, (struct ternary_reading){ 0 }, &w, trits, &a, NULL), 0);
    cr_assert(w.row_scales && w.row_scales[0] == SCALE && w.row_scales[2] == 3);
}

/* Floats: {-c, 0, c} are trits as they stand; others are quantised by their mean magnitude, binary ones cut at the mean. */
Test(weights, masters)
{
    cleanup(arena_done) struct arena a;
    const float exact[] = { 0.25f, 0, -0.25f, 0.25f }, master[] = { 0.3f, -0.1f, -1.2f, 0.8f }, both[] = { 0.5f, -0.5f, 0.5f, 0.5f };
    struct ternary_reading ternary = { 0 }, binary = { .binary = true };
    int8_t trits[4];
    struct ternary w;
    struct source_tensor t = tensor_of(TENSOR_F32, 4, 1, exact, sizeof(exact));

    arena_init(&a);
    cr_assert_eq(load(&t, ternary, &w, trits, &a, NULL), 0);
    cr_expect_eq(w.scale, 0.25f);
    cr_expect(trits[0] == 1 && trits[1] == 0 && trits[2] == -1 && trits[3] == 1);
    t.data = (const uint8_t *)master;
    cr_assert_eq(load(&t, ternary, &w, trits, &a, NULL), 0);
    cr_expect_float_eq(w.scale, 0.6f, 1e-7f);
    cr_expect(trits[0] == 0 && trits[1] == 0 && trits[2] == -1 && trits[3] == 1);
    cr_assert_eq(load(&t, binary, &w, trits, &a, NULL), 0);      /* mean -0.05 */
    cr_expect_float_eq(w.scale, 0.6f, 1e-7f);
    cr_expect(trits[0] == 1 && trits[1] == -1 && trits[2] == -1 && trits[3] == 1);
    t.data = (const uint8_t *)both;
    cr_assert_eq(load(&t, binary, &w, trits, &a, NULL), 0);
    cr_expect(w.scale == 0.5f && trits[0] == 1 && trits[1] == -1);
}

static void expect_refused(const struct source_tensor *t, struct ternary_reading how, const char *says)
{
    cleanup(arena_done) struct arena a;
    struct err err = { "" };
    struct ternary w;

    arena_init(&a);
    cr_expect_eq(ternary_load(&w, t, how, &a, &err), -EINVAL);
    cr_expect(strstr(err.msg, says) && strstr(err.msg, "tensor blk.0.x.weight"), "wanted %s, says: %s", says, err.msg);
}

Test(weights, refusals)
{
    const struct ternary_reading plain = { 0 }, binary = { .binary = true }, by_fours = { .i2s_layout = 'c' };
    uint8_t bytes[256] = {0};
    float *floats = (float *)bytes;
    struct source_tensor t;

    memset(bytes, 0x55, 32);
    memcpy(bytes + 32, &(float){ 1 }, 4);
    t = tensor_of(TENSOR_I2_S, 128, 1, bytes, 64);
    expect_refused(&t, by_fours, "groups of 4 rows");
    expect_refused(&t, binary, "a zero at byte 0");
    bytes[9] = 0x0c;
    expect_refused(&t, plain, "code 3 at byte 9");
    bytes[9] = 0;
    memcpy(bytes + 32, &(float){ INFINITY }, 4);
    expect_refused(&t, plain, "the scale at byte 32");
    t = tensor_of(TENSOR_I2_S, 96, 1, bytes, 56);
    expect_refused(&t, plain, "96 elements, not a multiple of 128");

    memset(bytes, 0x55, 66);
    memcpy(bytes + 64, &(uint16_t){ 0x3800 }, 2);
    memcpy(bytes + 66, bytes, 66);
    bytes[130] = 1;
    t = tensor_of(TENSOR_TQ2_0, 512, 1, bytes, 132);
    expect_refused(&t, plain, "block 1 has the scale");
    bytes[130] = 0;
    expect_refused(&t, binary, "a zero at row 0, column 0");
    bytes[131] = 0xb8;
    expect_refused(&t, plain, "the scale of row 0");

    memset(bytes, 0, sizeof(bytes));
    t = tensor_of(TENSOR_F32, 4, 1, bytes, 16);
    expect_refused(&t, binary, "too small to have a scale");
    floats[2] = NAN;
    expect_refused(&t, plain, "element 2 is not finite");
    t = tensor_of(TENSOR_HF_U8, 4, 4, bytes, 4);
    memset(bytes, 0xff, 4);
    expect_refused(&t, plain, "code 3 at row 0, column 0");
    t = tensor_of(TENSOR_Q8_0, 32, 1, bytes, 34);
    expect_refused(&t, plain, "is of type 8; ternary weights");
}

/* ---- dense ------------------------------------------------------------------------------------------------------ */

/* A block of each type with codes that say their element, read by bitnet.md 2.4's formulas. */
Test(weights, dense_blocks)
{
    uint8_t q4[18] = { 0x00, 0x40 }, q5[22] = { 0x00, 0x40 }, q6[210] = {0};
    struct dense d = { .rows = 1, .cols = 32 };
    float out[256];

    for (size_t j = 0; j < 16; j++) {
        q4[2 + j] = (uint8_t)(j | (15 - j) << 4);
        q5[6 + j] = (uint8_t)(j | (15 - j) << 4);
    }
    memcpy(q5 + 2, &(uint32_t){ 0x80000001 }, 4);               /* elements 0 and 31 have the high bit */
    d.type = TENSOR_Q4_0;
    d.w = q4;
    dense_row(&d, 0, out);
    for (size_t j = 0; j < 16; j++)
        cr_expect(out[j] == 2 * ((float)j - 8) && out[j + 16] == 2 * (7 - (float)j), "q4_0 element %zu", j);
    d.type = TENSOR_Q5_0;
    d.w = q5;
    dense_row(&d, 0, out);
    cr_expect(out[0] == 0 && out[1] == -30 && out[16] == -2 && out[31] == 0 && out[30] == -30);

    for (size_t i = 0; i < 256; i++) {
        /* Element base + l + 32 k: low bits in ql[l + 32 (k % 2)], upper nibble for k > 1; high bits 2k of qh[l]. */
        size_t half = i / 128, k = i % 128 / 32, l = i % 32, code = (i * 7 + i / 64) % 64;

        q6[64 * half + l + 32 * (k % 2)] |= (uint8_t)((code & 15) << (k / 2 * 4));
        q6[128 + 32 * half + l] |= (uint8_t)((code >> 4) << (2 * k));
    }
    for (size_t s = 0; s < 16; s++)
        q6[192 + s] = (uint8_t)(int8_t)((int)s - 8);
    memcpy(q6 + 208, &(uint16_t){ 0x4000 }, 2);
    d = (struct dense){ .w = q6, .type = TENSOR_Q6_K, .rows = 1, .cols = 256 };
    dense_row(&d, 0, out);
    for (size_t i = 0; i < 256; i++)
        cr_expect_eq(out[i], 2 * ((float)(i / 16) - 8) * ((float)((i * 7 + i / 64) % 64) - 32), "q6_k element %zu", i);
}

Test(weights, dense_refusals)
{
    uint8_t bytes[420] = {0};
    struct dense d;
    struct err err = { "" };
    struct source_tensor t = tensor_of(TENSOR_Q6_K, 256, 2, bytes, 420);

    cr_assert_eq(dense_load(&d, &t, &err), 0);
    memcpy(bytes + 418, &(uint16_t){ 0xfc00 }, 2);
    cr_assert_eq(dense_load(&d, &t, &err), -EINVAL);
    cr_expect(strstr(err.msg, "the scale of block 1 is not finite"), "%s", err.msg);
    t = tensor_of(TENSOR_BF16, 2, 2, bytes, 8);
    memcpy(bytes + 6, &(uint16_t){ 0x7f80 }, 2);
    cr_assert_eq(dense_load(&d, &t, &err), -EINVAL);
    cr_expect(strstr(err.msg, "element 3 is not finite"), "%s", err.msg);
    t = tensor_of(TENSOR_TQ1_0, 256, 1, bytes, 54);
    cr_assert_eq(dense_load(&d, &t, &err), -EINVAL);
    cr_expect(strstr(err.msg, "is of type 34"), "%s", err.msg);
}
