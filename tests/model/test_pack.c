/* The packers against the vectors of bitnet.md 2.12, and back through the reader of every type. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include "engine/source.h"
#include "model/pack.h"

static void trits_of_vectors(int8_t *t, size_t n)
{
    for (size_t i = 0; i < n; i++)
        t[i] = (int8_t)((7 * i + i / 3) % 3) - 1;
}

static void check_bytes(const uint8_t *got, const char *hex, const char *what)
{
    for (size_t i = 0; hex[2 * i]; i++) {
        unsigned want;

        cr_assert_eq(sscanf(hex + 2 * i, "%2x", &want), 1);
        cr_assert_eq(got[i], want, "%s: byte %zu is %02x, not %02x", what, i, got[i], want);
    }
}

static void check_vector(enum tensor_type type, size_t cols, size_t skip, const char *hex)
{
    uint8_t out[1024] = {0};
    struct packer p;
    int8_t t[256];

    trits_of_vectors(t, cols);
    cr_assert_eq(packer_init(&p, "t", type, cols, 1, 0.5f, NULL, NULL), 0);
    cr_assert_leq(pack_row(&p, t, out), packer_room(&p));
    check_bytes(out + skip, hex, type_name(type));
}

Test(pack, vectors)
{
    check_vector(TENSOR_I2_S, 128, 0, "06688558811aa1166006688558811aa1166006688558811aa116600668855881");
    check_vector(TENSOR_TQ2_0, 256, 0, "9029522542a44a94099029522542a44a94099029522542a44a94099029522542"
                                       "522542a44a94099029522542a44a94099029522542a44a94099029522542a44a0038");
    check_vector(TENSOR_TQ1_0, 256, 0, "12a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b0"
                                       "0ea8058eac84e42cf70ea8058eac84e4c85079460038");
    check_vector(TENSOR_IQ1_BN, 64, 2, "de234acb4199234a6141996b1c");
    check_vector(TENSOR_IQ2_BN, 64, 4, "40a502950a542a50a940a502950a542a");
}

/* Rows of 192 are a block and a half of I2_S: one block lies in two rows. */
Test(pack, blocks_that_straddle_rows)
{
    enum { COLS = 192, ROWS = 4 };
    int8_t t[ROWS * COLS];
    uint8_t out[1024], want[1024];
    size_t n = 0;
    struct packer p;

    trits_of_vectors(t, ROWS * COLS);
    cr_assert_eq(packer_init(&p, "t", TENSOR_I2_S, COLS, ROWS, 0.5f, NULL, NULL), 0);
    for (size_t r = 0; r < ROWS; r++)
        n += pack_row(&p, t + r * COLS, out + n);
    ternary_pack(want, t, 1, ROWS * COLS);
    cr_assert_eq(n, ROWS * COLS / 4 + 32);
    cr_assert_eq(memcmp(out, want, ROWS * COLS / 4), 0);
}

Test(pack, refuses_what_it_cannot_hold)
{
    float rows[2] = { 0.5f, 0.25f };
    struct err err = {0};
    struct packer p;

    cr_expect_eq(packer_init(&p, "odd", TENSOR_TQ2_0, 384, 2, 0.5f, NULL, &err), -EINVAL);
    cr_expect_not_null(strstr(err.msg, "odd"));
    cr_expect_eq(packer_init(&p, "t", TENSOR_IQ2_BN, 96, 2, 0.5f, NULL, NULL), -EINVAL);
    cr_expect_eq(packer_init(&p, "t", TENSOR_I2_S, 64, 1, 0.5f, NULL, NULL), -EINVAL);
    cr_expect_eq(packer_init(&p, "t", TENSOR_I2_S, 128, 2, 0.5f, rows, NULL), -EINVAL);
    cr_expect_eq(packer_init(&p, "t", TENSOR_IQ1_BN, 128, 2, 0.1f, NULL, &err), -EINVAL);
    cr_expect_not_null(strstr(err.msg, "0.1"));
    cr_expect_eq(packer_init(&p, "t", TENSOR_IQ2_BN, 128, 2, 0.1f, NULL, NULL), 0);
    cr_expect_eq(packer_init(&p, "t", TENSOR_TQ1_0, 256, 2, 0, rows, NULL), 0);
}

/* Every type of floats gives back what it was made of, to half a step of its blocks, or to a whole one at the end of the
 * scale that lacks a step. */
Test(pack, floats)
{
    static const struct { enum tensor_type type; float tolerance; } kinds[] = {
        { TENSOR_F32, 0 },       { TENSOR_F16, 5e-4f },    { TENSOR_BF16, 4e-3f }, { TENSOR_Q8_0, 4.1e-3f },
        { TENSOR_Q6_K, 3.3e-2f },
        { TENSOR_Q5_0, 6.5e-2f }, { TENSOR_Q4_0, 0.13f },
    };
    float x[512], back[512], zeros[256] = {0};
    uint8_t out[2048];

    for (size_t i = 0; i < 512; i++)
        x[i] = sinf((float)(i * i % 97)) * (i < 256 ? 1 : 0.01f);
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
        size_t n = pack_floats(kinds[k].type, x, 512, out);
        struct source_tensor t = { .type = kinds[k].type, .n_dims = 2, .dims = { 512, 1, 1, 1 }, .data = out, .bytes = n };
        struct dense d;

        cr_assert_eq(dense_load(&d, &t, NULL), 0, "%s", type_name(kinds[k].type));
        dense_row(&d, 0, back);
        for (size_t i = 0; i < 512; i++)
            cr_expect_leq(fabsf(back[i] - x[i]), kinds[k].tolerance * (i < 256 ? 1 : 0.011f), "%s, element %zu: %g for %g",
                          type_name(kinds[k].type), i, (double)back[i], (double)x[i]);
        pack_floats(kinds[k].type, zeros, 256, out);
        t.dims[0] = 256;
        cr_assert_eq(dense_load(&d, &t, NULL), 0);
        dense_row(&d, 0, back);
        for (size_t i = 0; i < 256; i++)
            cr_expect_eq(back[i], 0, "%s: zeros", type_name(kinds[k].type));
    }
}
