/* What the graphs of the family do to one row of activations besides the kernels: BitNet a4.8's quantisers, v2's
 * Hadamard transform, b1's mean subtraction, rounded keys and values, Gemma's GELU. Plain loops, the same in every
 * variant: sums are in double and in order, so that one row gives the same bits wherever and with whatever it runs. */
#include "engine/internal.h"

#include <math.h>
#include <string.h>

#define INT4_EPSILON 1e-5       /* beside a row's mean magnitude */

static float quantize_int4(int8_t *q, const float *x, size_t n)
{
    double sum = 0;
    float s;

    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    sum /= (double)n;
    s = (float)(sqrt(7) / (sum + INT4_EPSILON));
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)fminf(fmaxf(rintf(x[i] * s), -8), 7);
    return (float)(sum / sqrt(7));
}

/* Magnitudes of floats are in the order of their bits. */
static uint32_t magnitude(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u & 0x7fffffff;
}

static size_t count_from(const float *x, size_t n, uint32_t least)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += magnitude(x[i]) >= least;
    return count;
}

/* Zero all but the n/2 largest; of equals the first are kept. */
static void keep_half(float *x, size_t n)
{
    uint32_t last = 0;          /* the largest magnitude that n/2 elements reach: the last one kept */
    size_t left;

    for (uint32_t bit = 1u << 30; bit; bit >>= 1)
        if (count_from(x, n, last | bit) >= n / 2)
            last |= bit;
    left = n / 2 - count_from(x, n, last + 1);
    for (size_t i = 0; i < n; i++)
        if (magnitude(x[i]) < last || (magnitude(x[i]) == last && !left))
            x[i] = 0;
        else if (magnitude(x[i]) == last)
            left--;
}

float activation_quantize(const struct kernels *k, enum quantizer how, int8_t *q, float *x, size_t n)
{
    if (how == QUANT_INT4_ABSMEAN)
        return quantize_int4(q, x, n);
    if (how == QUANT_TOP50_INT8)
        keep_half(x, n);
    return k->quantize_row(q, x, n) / 127;
}

void activation_hadamard(float *x, size_t n)
{
    size_t size = n & -n;
    float unit = (float)(1 / sqrt((double)size));

    for (size_t half = 1; half < size; half *= 2)
        for (size_t i = 0; i < n; i += 2 * half)
            for (size_t j = i; j < i + half; j++) {
                float a = x[j], b = x[j + half];

                x[j] = a + b;
                x[j + half] = a - b;
            }
    for (size_t i = 0; i < n; i++)
        x[i] *= unit;
}

void activation_center(float *out, const float *x, size_t n)
{
    double mean = 0;

    for (size_t i = 0; i < n; i++)
        mean += (double)x[i];
    mean /= (double)n;
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] - mean);
}

void activation_round(float *x, size_t n, unsigned bits)
{
    float top = (float)((1u << (bits - 1)) - 1), a = 0;

    for (size_t i = 0; i < n; i++)
        a = fmaxf(a, fabsf(x[i]));
    if (!(a >= 1e-30f)) {               /* nothing that a scale in f32 could hold */
        memset(x, 0, n * sizeof(*x));
        return;
    }
    for (size_t i = 0; i < n; i++)
        x[i] = fminf(fmaxf(rintf(x[i] * (top / a)), -top), top) * (a / top);
}

void activation_gelu_mul(float *out, const float *gate, const float *up, size_t n)
{
    /* (1 + tanh z) / 2 = 1 / (1 + e^-2z) with z = sqrt(2 / pi) (x + 0.044715 x^3) */
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], z2 = 1.59576912f * (x + 0.044715f * (x * x * x));

        out[i] = (x / (1 + kernel_exp(-z2))) * up[i];
    }
}
