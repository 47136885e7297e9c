/* Values that the checks and the bench give to kernels. */
#include "check.h"

#include <math.h>
#include <string.h>

uint64_t random_state = 1;

uint64_t random_u64(void)       /* splitmix64 */
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static double random_unit(void)
{
    return (double)(random_u64() >> 11) * 0x1p-53;
}

void *allocate(size_t bytes)
{
    void *p = malloc(bytes + !bytes);

    if (!p)
        exit(2);
    return p;
}

static float random_float(int kind)
{
    float sign = random_u64() & 1 ? 1 : -1;

    switch (kind) {
    case KIND_WIDE: return sign * (float)exp2(random_unit() * 80 - 40);
    case KIND_TINY: return sign * (float)(random_unit() * 1e-38);              /* many are subnormal */
    case KIND_ZERO: return 0;
    case KIND_TIES: return sign * ((float)(random_u64() % 127) + 0.5f);
    case KIND_SIGNED_ZERO: return random_u64() % 4 ? sign * 0.0f : sign;
    case KIND_HUGE: return sign * (float)(random_unit() * 1e17);
    default: return (float)(random_unit() * 2 - 1);
    }
}

float *random_floats(size_t n, int kind)
{
    float *x = allocate(n * sizeof(*x));

    for (size_t i = 0; i < n; i++)
        x[i] = random_float(kind);
    if (kind == KIND_TIES && n)
        x[random_u64() % n] = 127;       /* so that the scale is one */
    return x;
}

int8_t *random_activations(size_t n, bool extreme)
{
    int8_t *x = allocate(n);

    for (size_t i = 0; i < n; i++)
        x[i] = extreme ? (random_u64() % 8 ? 127 : -127) : (int8_t)(random_u64() % 255 - 127);
    if (extreme && random_u64() & 1)
        memset(x, random_u64() & 1 ? 127 : -127, n);
    return x;
}

uint8_t *random_ternary(size_t bytes, bool extreme)
{
    static const uint8_t whole[] = { 0x00, 0x55, 0xaa };
    uint8_t *w = allocate(bytes);

    if (extreme) {
        memset(w, whole[random_u64() % 3], bytes);
        return w;
    }
    for (size_t i = 0; i < bytes; i++)
        w[i] = random_u64() % 3 | random_u64() % 3 << 2 | random_u64() % 3 << 4 | random_u64() % 3 << 6;
    return w;
}

uint16_t random_half(void)       /* finite, all exponents */
{
    uint16_t h;

    do
        h = (uint16_t)random_u64();
    while ((h & 0x7c00) == 0x7c00);
    return h;
}

uint8_t *random_q8_0(size_t blocks)
{
    uint8_t *w = allocate(blocks * Q8_0_BLOCK_BYTES);

    for (size_t b = 0; b < blocks; b++) {
        uint16_t scale = random_half();

        for (size_t k = 0; k < Q8_0_BLOCK_BYTES; k++)
            w[b * Q8_0_BLOCK_BYTES + k] = (uint8_t)random_u64();
        memcpy(w + b * Q8_0_BLOCK_BYTES, &scale, sizeof(scale));
    }
    return w;
}
