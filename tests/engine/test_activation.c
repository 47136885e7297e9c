/* Rows of activations: small cases worked out by hand, and each function against its definition in doubles. */
#include <criterion/criterion.h>
#include <math.h>
#include "engine/internal.h"

static const struct kernels *kernels(void)
{
    return kernels_get(NULL);
}

Test(activation, int4)
{
    float x[] = { 1, -1, 0, 30, -30, 2, -2, 0.1f };
    int8_t q[8];
    double beta = 0;
    float unit;

    for (size_t i = 0; i < 8; i++)
        beta += fabs((double)x[i]) / 8;
    unit = activation_quantize(kernels(), QUANT_INT4_ABSMEAN, q, x, 8);
    cr_expect_float_eq(unit, beta / sqrt(7), 1e-6);
    for (size_t i = 0; i < 8; i++)
        cr_expect_eq(q[i], (int)fmin(fmax(rint((double)x[i] * sqrt(7) / beta), -8), 7), "%zu", i);
    cr_expect(q[3] == 7 && q[4] == -8);

    memset(x, 0, sizeof(x));
    cr_expect_eq(activation_quantize(kernels(), QUANT_INT4_ABSMEAN, q, x, 8), 0);
    for (size_t i = 0; i < 8; i++)
        cr_expect_eq(q[i], 0);
}

Test(activation, half_is_kept)
{
    float x[] = { 1, -3, 2, 2, -2, 0.5f, 3 }, equal[] = { -1, 1, 1, -1, 1 }, one = 5;
    const float kept[] = { 0, -3, 2, 0, 0, 0, 3 }, equal_kept[] = { -1, 1, 0, 0, 0 };
    int8_t q[7];
    float unit = activation_quantize(kernels(), QUANT_TOP50_INT8, q, x, 7);

    cr_expect_float_eq(unit, 3.0 / 127, 1e-8);
    for (size_t i = 0; i < 7; i++)
        cr_expect(x[i] == kept[i] && q[i] == (int8_t)rint(kept[i] * 127 / 3), "%zu", i);
    activation_quantize(kernels(), QUANT_TOP50_INT8, q, equal, 5);
    for (size_t i = 0; i < 5; i++)
        cr_expect_eq(equal[i], equal_kept[i], "%zu", i);
    activation_quantize(kernels(), QUANT_TOP50_INT8, q, &one, 1);
    cr_expect_eq(one, 0);
}

Test(activation, hadamard)
{
    /* Two blocks of four: the largest power of two that divides eight plus four. */
    float x[12], y[12];

    for (size_t i = 0; i < 12; i++)
        x[i] = y[i] = (float)(i * i % 7) - 2;
    activation_hadamard(y, 12);
    for (size_t i = 0; i < 12; i++) {
        float sum = 0;

        for (size_t j = i / 4 * 4; j < i / 4 * 4 + 4; j++)
            sum += (__builtin_popcountl(i % 4 & j % 4) % 2 ? -1 : 1) * x[j];
        cr_expect_float_eq(y[i], sum / 2, 1e-6, "%zu", i);
    }
    activation_hadamard(y, 12);                 /* its own inverse */
    for (size_t i = 0; i < 12; i++)
        cr_expect_float_eq(y[i], x[i], 1e-6);
    x[0] = 7;
    activation_hadamard(x, 1);
    cr_expect_eq(x[0], 7);
}

Test(activation, center)
{
    float x[] = { 1, 2, 3, 6 };

    activation_center(x, x, 4);
    cr_expect(x[0] == -2 && x[1] == -1 && x[2] == 0 && x[3] == 3);
}

Test(activation, rounded)
{
    float x[] = { 7, -7, 3.4f, 0.6f, -0.4f }, y[] = { 3, -1.4f, 1.6f }, zero[2] = {0};
    const float want_x[] = { 7, -7, 3, 1, 0 }, want_y[] = { 3, -1, 2 };

    activation_round(x, 5, 4);
    for (size_t i = 0; i < 5; i++)
        cr_expect_float_eq(x[i], want_x[i], 1e-6);
    activation_round(y, 3, 3);
    for (size_t i = 0; i < 3; i++)
        cr_expect_float_eq(y[i], want_y[i], 1e-6);
    activation_round(zero, 2, 4);
    cr_expect(zero[0] == 0 && zero[1] == 0);
}

Test(activation, gelu)
{
    for (int i = -200; i <= 200; i++) {
        float x = (float)i / 10, up = 1.5f, out;
        double d = (double)x, want = 0.5 * d * (1 + tanh(sqrt(2 / acos(-1)) * (d + 0.044715 * d * d * d))) * 1.5;

        activation_gelu_mul(&out, &x, &up, 1);
        cr_expect_float_eq(out, want, 2e-6 * fmax(fabs(want), 0.01), "%g: %g, expected %g", d, (double)out, want);
    }
}
