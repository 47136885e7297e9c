/* The reference kernels against arithmetic done another way: known layout bytes, doubles, the C library. */
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "kernels/kernels.h"

static const struct kernels *ref(void)
{
    const struct kernels *const *list;

    kernels_list(&list);
    return list[0];
}

Test(ref, layout_vector)
{
    /* The published vector for t(i) = ((7i + i/3) mod 3) - 1. */
    static const char want[] = "06688558811aa1166006688558811aa1166006688558811aa116600668855881";
    int8_t t[128], back[128];
    uint8_t packed[32];
    char hex[65];

    for (int i = 0; i < 128; i++)
        t[i] = (int8_t)((7 * i + i / 3) % 3 - 1);
    ternary_pack(packed, t, 1, 128);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", packed[i]);
    cr_assert_str_eq(hex, want);
    ternary_unpack(back, packed, 1, 128);
    cr_assert_arr_eq(t, back, sizeof(t));
}

Test(ref, pack_pads_with_zero_trits)
{
    int8_t t[2 * 130], back[2 * 130];
    uint8_t packed[2 * 64];

    for (size_t i = 0; i < sizeof(t); i++)
        t[i] = (int8_t)(i * 7 % 3) - 1;
    ternary_pack(packed, t, 2, 130);
    ternary_unpack(back, packed, 2, 130);
    cr_assert_arr_eq(t, back, sizeof(t));
    cr_assert_eq(packed[32 + 5], 0x55);     /* columns 133, 165, 197, 229: all padding, all zero */
}

Test(ref, ternary_product)
{
    int8_t t[3 * 256], x[2 * 256];
    uint8_t packed[3 * 64];
    int32_t out[2 * 3];

    for (size_t i = 0; i < sizeof(t); i++)
        t[i] = (int8_t)(i * 2654435761u >> 13) % 2;
    for (size_t i = 0; i < sizeof(x); i++)
        x[i] = (int8_t)((i * 40503u >> 3) % 255 - 127);
    ternary_pack(packed, t, 3, 256);
    ref()->ternary_matmul(out, 3, packed, x, 256, 2, 3, 256);
    for (int j = 0; j < 2; j++)
        for (int r = 0; r < 3; r++) {
            int want = 0;

            for (int c = 0; c < 256; c++)
                want += t[r * 256 + c] * x[j * 256 + c];
            cr_assert_eq(out[j * 3 + r], want);
        }
}

Test(ref, quantize_ties_go_to_even)
{
    const float x[] = { 127, 2.5f, -0.5f, 1.5f, -126.5f, 0 };
    const int8_t want[] = { 127, 2, 0, 2, -126, 0 };
    int8_t q[6];

    cr_assert_eq(ref()->quantize_row(q, x, 6), 127);
    cr_assert_arr_eq(q, want, sizeof(q));
    cr_assert_eq(ref()->quantize_row(q, (float[]){ 0, 0 }, 2), 1e-5f);
    cr_assert_eq(q[0], 0);
}

Test(ref, exp_is_close)
{
    double worst = 0;

    for (float x = -87; x <= 88; x += 0.000173f)
        worst = fmax(worst, fabs(kernel_exp(x) / exp(x) - 1));
    cr_assert_lt(worst, 2e-7);
    cr_assert_eq(kernel_exp(0), 1);
    cr_assert_eq(kernel_exp(-88), 0);
    cr_assert_eq(kernel_exp(-INFINITY), 0);
    cr_assert_eq(kernel_exp(1000), kernel_exp(88));
}

Test(ref, half_round_trip)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        if ((h & 0x7c00) == 0x7c00 && h & 0x3ff)
            cr_assert(isnan(f16_to_f32((uint16_t)h)));
        else
            cr_assert_eq(f32_to_f16(f16_to_f32((uint16_t)h)), h);
    }
    cr_assert_eq(f16_to_f32(0x3c00), 1);
    cr_assert_eq(f16_to_f32(0x0001), 0x1p-24f);
    cr_assert_eq(f16_to_f32(0x7bff), 65504);
    cr_assert_eq(f32_to_f16(1 + 0x1p-11f), 0x3c00);             /* ties to even, both ways */
    cr_assert_eq(f32_to_f16(1 + 3 * 0x1p-11f), 0x3c02);
    cr_assert_eq(f32_to_f16(65519.9f), 0x7bff);
    cr_assert_eq(f32_to_f16(65520), 0x7c00);
    cr_assert_eq(f32_to_f16(0x1p-25f), 0);
    cr_assert_eq(f32_to_f16(-0x1.8p-25f), 0x8001);
}

Test(ref, floats_against_doubles)
{
    float a[77], b[77], out[77];
    double dot = 0, squares = 0, e = 0;

    for (int i = 0; i < 77; i++) {
        a[i] = (float)sin(i * 1.7) * 3;
        b[i] = (float)cos(i * 0.9);
        dot += (double)a[i] * b[i];
        squares += (double)a[i] * a[i];
        e += exp(a[i]);
    }
    cr_assert_float_eq(ref()->dot_f32(a, b, 77), dot, 1e-4);

    ref()->rms_norm(out, a, b, 77, 1e-5f);
    for (int i = 0; i < 77; i++)
        cr_assert_float_eq(out[i], a[i] / sqrt(squares / 77 + 1e-5) * b[i], 1e-5);

    memcpy(out, a, sizeof(a));
    ref()->softmax(out, 77);
    for (int i = 0; i < 77; i++)
        cr_assert_float_eq(out[i], exp(a[i]) / e, 1e-6);

    ref()->silu_mul(out, a, b, 77);
    for (int i = 0; i < 77; i++)
        cr_assert_float_eq(out[i], a[i] / (1 + exp(-a[i])) * b[i], 1e-6);
    ref()->relu2_mul(out, a, b, 77);
    for (int i = 0; i < 77; i++)
        cr_assert_float_eq(out[i], pow(fmax(a[i], 0), 2) * b[i], 1e-5);
}

Test(ref, dense_products)
{
    float x[64], out, single[64];
    uint16_t half[64];
    uint8_t q8[2 * Q8_0_BLOCK_BYTES];
    double want_half = 0, want_q8 = 0;

    for (int i = 0; i < 64; i++) {
        uint16_t scale = 0x3800;        /* one half */

        x[i] = (float)sin(i);
        half[i] = f32_to_f16((float)i / 7);
        single[i] = f16_to_f32(half[i]);
        memcpy(q8 + i / 32 * Q8_0_BLOCK_BYTES, &scale, 2);
        q8[i / 32 * Q8_0_BLOCK_BYTES + 2 + i % 32] = (uint8_t)(i * 5 - 128);
        want_half += (double)single[i] * x[i];
        want_q8 += 0.5 * (int8_t)(i * 5 - 128) * x[i];
    }
    ref()->matmul_f16(&out, 1, half, x, 64, 1, 1, 64);
    cr_assert_float_eq(out, want_half, 1e-4);
    ref()->matmul_f32(&out, 1, single, x, 64, 1, 1, 64);
    cr_assert_float_eq(out, want_half, 1e-4);
    ref()->matmul_q8_0(&out, 1, q8, x, 64, 1, 1, 64);
    cr_assert_float_eq(out, want_q8, 1e-3);
}

Test(ref, names)
{
    struct err err = {0};
    const struct kernels *k = kernels_get(&err);

    cr_assert(k || strstr(err.msg, "this machine has"));
}
